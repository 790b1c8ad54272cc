"""Where a number comes from: versions, model, texts and settings, as a value that travels with every result."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import platform
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

from mechrep.guards import check_fields

_PACKAGES = ("mechrep", "transformer-lens", "transformers", "torch", "numpy")


def package_versions() -> dict[str, str]:
    """Versions of the packages that can change a number; every caller has a record of its own.

    Example:
        >>> "torch" in package_versions()
        True
    """
    return dict(_versions())


@functools.cache  # installed packages do not change while a program runs, and looking them up reads files
def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Provenance:
    """Everything needed to say how a result was made.

    Attributes:
        model: name, revision, weights fingerprint, dtype, device, views.
        corpus: fingerprint, number of texts, BOS policy, tokenizer.
        config: the analyzer's or study's own settings.
        versions: see :func:`package_versions`.
        made: UTC time.
    """

    model: dict[str, Any]
    corpus: dict[str, Any]
    config: dict[str, Any]
    versions: dict[str, str] = field(default_factory=package_versions)
    made: str = field(default_factory=_now)

    def __post_init__(self) -> None:
        check_fields(self)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return dataclasses.asdict(self)


def provenance_of(model: Any, corpus: Any, config: dict[str, Any]) -> Provenance:
    """Provenance of a result measured with ``model`` on ``corpus`` (mechrep's own kinds; ``None`` without texts)."""
    facts = {
        "name": model.name,
        "revision": model.revision,
        "fingerprint": model.fingerprint(),
        "architecture": model.anatomy.architecture,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "processed": model.processed,
    }
    texts = (
        {}
        if corpus is None
        else {
            "fingerprint": corpus.fingerprint(),
            "texts": len(corpus),
            "bos_policy": corpus.bos_policy,
            "tokenizer": corpus.tokenizer,
        }
    )
    return Provenance(facts, texts, config)
