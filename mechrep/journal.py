"""Finished work of studies, kept in small shards: a run that was stopped goes on from there."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from mechrep.disk import read_record, tidy, write_record
from mechrep.errors import StoreError
from mechrep.provenance import Provenance

_VERSION = 2  # of a shard; version 1, of mechrep 0.1, is never asked for: other versions of mechrep have other folders


class Journal:
    """A folder of shards that belong to one model, one corpus and one set of settings.

    Args:
        folder: where studies are kept; each gets a folder of its own, named by its fingerprint.
        provenance: of the study; the time it was made does not count.

    Raises:
        StoreError: the folder cannot be made.
    """

    def __init__(self, folder: Path, provenance: Provenance) -> None:
        facts = provenance.to_dict()
        del facts["made"]
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]
        self.folder = folder / "studies" / key
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            tidy(self.folder)
        except OSError as error:
            raise StoreError(
                f"store {self.folder} ({error.strerror})", "a folder to write to", "choose another"
            ) from error

    def find(self, shard: int) -> list[dict[str, Any]] | None:
        """The records of a finished shard, or ``None``.

        Raises:
            StoreError: it cannot be read, or has changed since it was written.
        """
        path = self._path(shard)
        if not path.exists():
            return None
        try:
            return list(read_record(path, (_VERSION,))["records"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"{path} ({error})", "a shard written by this study", "delete that file and run again"
            ) from error

    def keep(self, shard: int, records: list[dict[str, Any]]) -> None:
        """Write a finished shard in one move."""
        write_record(self._path(shard), {"version": _VERSION, "records": records})

    def _path(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:05d}.json"
