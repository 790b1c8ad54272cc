"""Finished shards of a long study on disk, so that a stopped study goes on where it was.

The disk store of a :class:`~mechrep.cache.corpus_cache.CorpusCache`: finished results and half-finished sums.

Layout: ``results/<key>/`` (a saved Result) and ``states/<key>.safetensors`` (an analyzer's sums after so many
texts).  A key is a fingerprint of weights, texts, settings and versions, so a store can serve many models and
corpora, and a changed weight never meets an old number.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mechrep.disk import tidy, write_whole
from mechrep.errors import StoreError
from mechrep.provenance import package_versions
from mechrep.results import Result

if TYPE_CHECKING:
    from torch import Tensor

    from mechrep.cache.corpus_cache import Analyzer
    from mechrep.models.model import Model
    from mechrep.text.corpus import Corpus


_SECONDS_BETWEEN_CHECKPOINTS = 20.0


class Store:
    """One folder of results and states.

    Raises:
        StoreError: the folder cannot be made or written.
    """

    def __init__(self, folder: Path, *, seconds: float = _SECONDS_BETWEEN_CHECKPOINTS) -> None:
        self.folder, self.seconds = folder, seconds
        self._last = time.monotonic()
        try:
            for name in ("results", "states"):
                (folder / name).mkdir(parents=True, exist_ok=True)
                tidy(folder / name)
        except OSError as error:
            raise StoreError(
                f"store {folder} ({error.strerror})", "a folder to write to", "choose another folder"
            ) from error

    def key(self, model: Model, corpus: Corpus, analyzer: Analyzer, under: str = "") -> str:
        """Fingerprint of everything that decides an analyzer's numbers."""
        record = {
            "model": model.fingerprint(),
            "dtype": str(model.dtype),
            "corpus": corpus.fingerprint(),
            "facts": corpus.frame.to_json(orient="split", default_handler=str),
            "analyzer": type(analyzer).__name__,
            "config": analyzer.config,
            "versions": package_versions(),
        } | ({"under": under} if under else {})
        return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:24]

    def find_result(self, key: str, analyzer: Analyzer) -> Result | None:
        """The finished result under this key, if there is one."""
        folder = self.folder / "results" / key
        return analyzer.load_result(folder) if folder.is_dir() else None

    def keep_result(self, key: str, result: Result) -> None:
        """File a finished result; its half-finished state is no longer needed."""
        result.save(self.folder / "results" / key)
        self._state_path(key).unlink(missing_ok=True)

    def resume(self, keys: dict[int, str], analyzers: dict[int, Analyzer]) -> dict[int, int]:
        """Load stored states into the analyzers; how many texts each has behind it."""
        return {index: self._load(keys[index], analyzer) for index, analyzer in analyzers.items()}

    def _load(self, key: str, analyzer: Analyzer) -> int:
        from safetensors import SafetensorError, safe_open

        path = self._state_path(key)
        if not path.exists():
            return 0
        try:
            with safe_open(path, "pt") as file:
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
                facts = file.metadata()
            if facts["sha256"] != _sum_of(state, facts["texts"]):
                raise ValueError("changed since it was written: its sum differs")
            analyzer.load_state(state)
            return int(facts["texts"])
        except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
            raise StoreError(
                f"{path} ({error})", "a state written by this store", "delete that file and run again"
            ) from error

    def checkpoint(self, keys: dict[int, str], analyzers: dict[int, Analyzer], texts: int, *, now: bool) -> None:
        """Write the states now and then, each in one move; a killed run loses what came after the last one."""
        if not now and time.monotonic() - self._last < self.seconds:
            return
        for index, analyzer in analyzers.items():
            self._write(self._state_path(keys[index]), analyzer.state, str(texts))
        self._last = time.monotonic()

    def _write(self, path: Path, tensors: Mapping[str, Tensor], texts: str) -> None:
        from safetensors.torch import save_file

        state = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        facts = {"texts": texts, "sha256": _sum_of(state, texts)}
        write_whole(path, lambda partial: save_file(state, partial, metadata=facts))

    def _state_path(self, key: str) -> Path:
        return self.folder / "states" / f"{key}.safetensors"


def _sum_of(state: Mapping[str, Tensor], texts: str) -> str:
    """SHA-256 of names, types, shapes and bytes of the sums, and of the number of texts behind them."""
    import torch

    digest = hashlib.sha256(texts.encode())
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
