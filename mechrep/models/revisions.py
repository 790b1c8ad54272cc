"""Which checkpoints a model has: their names, in the order of training, and how far training was."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mechrep.errors import InputError, ModelError
from mechrep.guards import each_once
from mechrep.models import tiny

Revisions = str | Sequence[str] | Mapping[str, str | Path]

GRID = (0, 128, 256, 512, 1000, 2000, 4000, 8000, 16000, 33000, 66000, 143000)  # Pythia's steps, by default
_PYTHIA_STEPS = (0, *(2**k for k in range(10)), *range(1000, 143_001, 1000))
_PYTHIA_BATCH = 2_097_152  # tokens per step
_STEP = re.compile(r"(?:step|checkpoint)[-_]?(\d+)")
_TOKENS = re.compile(r"tokens?[-_]?(\d+(?:\.\d+)?)([MBT])")
_UNITS = {"M": 1e6, "B": 1e9, "T": 1e12}


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint.

    Attributes:
        name: of the revision.
        spec: what :func:`mechrep.load_model` is given.
        revision: its revision, or ``None`` where ``spec`` is a checkpoint's own folder.
        step: of training; NaN if the name does not say.
        tokens: seen so far; NaN if not known.
        identity: changes when the weights do, as far as can be told without loading them.
    """

    name: str
    spec: str
    revision: str | None
    step: float
    tokens: float
    identity: str


def list_checkpoints(model: str | Path, revisions: Revisions = "all") -> list[Checkpoint]:
    """The checkpoints that are meant.

    Args:
        model: ``"mechrep-tiny"``, a hub name, or a folder that holds a folder for each checkpoint, such as
            ``checkpoint-500``.
        revisions: ``"all"``: all that there are, in the order of their steps (Pythia's 154 are known by heart, other
            models' are asked of the hub); ``"grid"``: of these, the ones next to :data:`GRID`, which resolves the rise
            of induction in Pythia; a list of names, in the order of training; or a mapping from names to folders, for
            checkpoints that lie on a disk.

    Raises:
        InputError: no revision, one twice, one that an embedded model does not have, or a folder that is not there.
        ModelError: a hub that cannot be asked, or a model without revisions that name a step.

    Example:
        >>> [checkpoint.step for checkpoint in list_checkpoints("mechrep-tiny", ["step0", "step512"])]
        [0.0, 512.0]
    """
    if isinstance(revisions, Mapping):
        return _folders(revisions)
    name = str(model)
    if name not in tiny.NAMES and Path(name).expanduser().is_dir():
        return _inside(name, revisions)
    if isinstance(revisions, str):
        _check_word(revisions)
        known = all_revisions(name)
        names = known if revisions == "all" else _nearest_to_grid(known)
    else:
        names = list(revisions)
    each_once("revisions", names)
    if name in tiny.NAMES:
        missing = [revision for revision in names if revision not in tiny.revisions(name)]
        if missing:
            raise InputError(
                f"revision {missing[0]!r} of {name}",
                f"kept checkpoints: {', '.join(tiny.revisions(name))}",
                "choose among these, or revisions='all'",
            )
    seen = {f"step{line['step']}": float(line["tokens"]) for line in tiny.history(name)} if name in tiny.NAMES else {}
    return [
        Checkpoint(
            revision,
            name,
            revision,
            _number(_STEP, revision),
            seen.get(revision, _tokens_seen(name, revision)),
            _embedded_identity(name, revision) if name in tiny.NAMES else f"{name}@{revision}",
        )
        for revision in names
    ]


def all_revisions(name: str) -> list[str]:
    """Names of all checkpoints, first to last.

    Raises:
        ModelError: they cannot be found.

    Example:
        >>> len(all_revisions("EleutherAI/pythia-70m"))
        154
    """
    if name in tiny.NAMES:
        return tiny.revisions(name)
    if name.startswith("EleutherAI/pythia"):
        return [f"step{step}" for step in _PYTHIA_STEPS]
    from huggingface_hub import list_repo_refs
    from huggingface_hub.errors import (
        HFValidationError,
        HTTPError,  # pyright: ignore[reportPrivateImportUsage] - the HTTP library differs from version to version
    )

    try:
        refs = list_repo_refs(name)
    except (HTTPError, HFValidationError, OSError) as error:
        reason = (str(error) or repr(error)).splitlines()[0]
        raise ModelError(
            f"the revisions of {name!r} ({reason})", "a hub that can be reached", "name the revisions yourself"
        ) from error
    steps = [ref.name for ref in [*refs.branches, *refs.tags] if _STEP.search(ref.name)]
    if not steps:
        raise ModelError(
            f"{name!r}, none of whose revisions names a step", "checkpoints of training", "name the revisions yourself"
        )
    return sorted(dict.fromkeys(steps), key=lambda revision: _number(_STEP, revision))


def _check_word(revisions: str) -> None:
    """Refuse a text that is not one of the two words for many: a single name is easily given without its list."""
    if revisions not in ("all", "grid"):
        raise InputError(
            f"revisions={revisions!r}",
            "'all', 'grid', a list of names, or a mapping from names to folders",
            f"pass [{revisions!r}] for this one",
        )


def _inside(name: str, revisions: str | Sequence[str]) -> list[Checkpoint]:
    """The checkpoints in a folder of folders; no hub is asked."""
    there = {path.name: path for path in Path(name).expanduser().iterdir() if (path / "config.json").is_file()}
    steps = sorted((one for one in there if _STEP.search(one)), key=lambda one: _number(_STEP, one))
    if not isinstance(revisions, str):
        missing = [one for one in revisions if one not in there]
        if missing or not revisions:
            given, known = missing[0] if missing else "none", ", ".join(steps or sorted(there)) or "none"
            raise InputError(f"revision {given!r} of folder {name!r}", f"folders in it: {known}", "choose among these")
        return _folders({one: there[one] for one in each_once("revisions", revisions)})
    _check_word(revisions)
    if not steps:
        raise ModelError(
            f"folder {name!r}, which holds no checkpoints", "folders with config.json, such as checkpoint-500, in it",
            "name the folder above them, or pass a mapping from names to folders",
        )  # fmt: skip
    return _folders({one: there[one] for one in (steps if revisions == "all" else _nearest_to_grid(steps))})


def _nearest_to_grid(names: Sequence[str]) -> list[str]:
    steps = [_number(_STEP, name) for name in names]
    last = max(steps)
    wanted = [step for step in GRID if step <= last] + [last]
    chosen = {min(range(len(names)), key=lambda i, w=w: abs(steps[i] - w)) for w in wanted}
    return [names[i] for i in sorted(chosen)]


def _folders(revisions: Mapping[str, str | Path]) -> list[Checkpoint]:
    if not revisions:
        raise InputError("no revision", "at least one", "name some")
    found = []
    for name, place in revisions.items():
        folder = Path(place).expanduser()
        if not (folder / "config.json").is_file():
            raise InputError(
                f"revision {name!r} at {folder}", "a folder in Hugging Face format, with config.json", "check the path"
            )
        files = sorted((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in folder.iterdir())
        identity = hashlib.sha256(repr(files).encode()).hexdigest()[:24]
        step, tokens = _number(_STEP, name), _tokens_seen("", name)
        found.append(Checkpoint(name, str(folder.resolve()), None, step, tokens, identity))
    return found


def _embedded_identity(name: str, revision: str) -> str:
    with tiny.weights(name, revision).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:24]


def _number(pattern: re.Pattern[str], name: str) -> float:
    found = pattern.search(name)
    return float(found.group(1)) if found else float("nan")


def _tokens_seen(model: str, revision: str) -> float:
    """Tokens by the revision's name (OLMo writes them), or by Pythia's batch."""
    found = _TOKENS.search(revision)
    if found:
        return float(found.group(1)) * _UNITS[found.group(2)]
    return _number(_STEP, revision) * _PYTHIA_BATCH if model.startswith("EleutherAI/pythia") else float("nan")
