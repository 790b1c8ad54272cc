"""What the studies of a report hold: their results by name, as one record of provenance, and as files."""

from __future__ import annotations

import dataclasses
import html
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mechrep.errors import StoreError
from mechrep.results import Result
from mechrep.studies.circuit import Circuit
from mechrep.studies.head_cuts import CircuitCut
from mechrep.studies.sweep_result import SweepResult
from mechrep.text.corpus import Corpus

_LONG = ("conditions", "circuits")  # settings of every condition: they stand whole in the saved results
_KEPT = (Result, Corpus, Circuit, pd.DataFrame)


def parts_of(study: Any, kind: type) -> Iterator[tuple[str, Any]]:
    """Everything of a kind that a study holds, by the names of its fields.

    What stands in a list or a mapping is named by its key or its number, what stands in a record of its own by the
    names of both fields; cuts by their circuits.
    """
    for field in _fields(study):
        yield from _within(getattr(study, field), field, kind)


def _fields(record: Any) -> Sequence[str]:
    if dataclasses.is_dataclass(record):
        return [field.name for field in dataclasses.fields(record)]
    return record._fields  # a named tuple


def _within(value: Any, name: str, kind: type) -> Iterator[tuple[str, Any]]:
    if isinstance(value, kind):
        yield name, value
    elif isinstance(value, _KEPT):
        return
    elif isinstance(value, CircuitCut):
        yield from ((f"cut-{_slug(value)}", part) for part in (value.circuit, value.result) if isinstance(part, kind))
    elif dataclasses.is_dataclass(value) or hasattr(value, "_fields"):
        for field in _fields(value):
            yield from _within(getattr(value, field), f"{name}-{field}", kind)
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield from _within(one, f"{name}-{key}", kind)
    elif isinstance(value, (list, tuple)):
        for number, one in enumerate(value):
            yield from _within(one, f"{name}-{number}", kind)


def provenance_html(studies: Sequence[Any]) -> str:
    """Model, texts, versions and settings as folded JSON."""
    record: dict[str, Any] = {}
    for study in studies:
        part = record[_name(study)] = {"study": study.provenance.to_dict()}
        for name, result in parts_of(study, Result):
            part[name] = result.provenance.to_dict()
            part[name]["config"] = {key: value for key, value in part[name]["config"].items() if key not in _LONG}
    text = html.escape(json.dumps(record, indent=2, ensure_ascii=False, default=str))
    summary = "<summary>Provenance: model, texts, versions, settings</summary>"
    return f'<section id="provenance"><details>{summary}<pre>{text}</pre></details></section>'


def save_tables(studies: Any, folder: str | Path) -> Path:
    """Write the numbers of one study or several: tables as Parquet, results as safetensors with JSON.

    ``tables/`` holds one Parquet file per table, ``results/`` one folder per result (``Result.load`` reads it back),
    ``circuits/`` what was cut (``Circuit.load``, ``mechrep ablate``), ``corpus.parquet`` the texts; what a study has
    besides (``examples.json``, ``kinds.json``) is what its name says, and so is ``provenance.json``.

    Args:
        studies: one study, or several of different kinds (:mod:`mechrep.views.report.sections` lists them).
        folder: made if it is missing.

    Returns:
        The folder.

    Raises:
        StoreError: the folder cannot be written.
    """
    target, given = Path(folder), list(studies) if isinstance(studies, Sequence) else [studies]
    try:
        (target / "tables").mkdir(parents=True, exist_ok=True)
        for study in given:
            _save_study(study, target)
        _write(target / "provenance.json", {_name(study): study.provenance.to_dict() for study in given})
    except OSError as error:
        raise StoreError(
            f"folder {target} ({error.strerror})", "a place to write", "free space or choose another"
        ) from error
    return target


def _save_study(study: Any, target: Path) -> None:
    for name, result in parts_of(study, Result):
        result.to_frame().to_parquet(target / "tables" / f"{name}.parquet")
        result.save(target / "results" / name)
        if isinstance(result, SweepResult):
            result.outcome_frame().to_parquet(target / "tables" / f"{name}_outcomes.parquet")
    for name, table in parts_of(study, pd.DataFrame):
        table.to_parquet(target / "tables" / f"{name}.parquet")
    for name, corpus in parts_of(study, Corpus):
        corpus.save(target / f"{name}.parquet")
    for name, circuit in parts_of(study, Circuit):
        (target / "circuits").mkdir(exist_ok=True)
        circuit.save(target / "circuits" / f"{name.removeprefix('cut-')}.json")
    for name in ("examples", "kinds"):
        if isinstance(records := getattr(study, name, None), (list, tuple)):
            _write(target / f"{name}.json", [_plain(record) for record in records])


def _plain(record: Any) -> Any:
    return dataclasses.asdict(record) if dataclasses.is_dataclass(record) else record  # pyright: ignore


def _write(path: Path, record: Any) -> None:
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False), encoding="utf-8")


def _name(study: Any) -> str:
    return str(study.provenance.config.get("study", type(study).__name__))


def _slug(cut: CircuitCut) -> str:
    return re.sub(r"[^a-z0-9]+", "-", cut.circuit.name.lower()).strip("-")
