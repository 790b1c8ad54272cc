"""What the studies of a report hold: their results by name, as one record of provenance, and as files."""

from __future__ import annotations

import dataclasses
import html
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mechrep.errors import StoreError
from mechrep.results import Result
from mechrep.studies.head_cuts import CircuitCut
from mechrep.studies.head_study import HeadStudy
from mechrep.studies.repetition_study import RepetitionStudy
from mechrep.studies.sweep_result import SweepResult

_LONG = ("conditions", "circuits")  # settings of every condition: they stand whole in the saved results


def results_of(study: Any) -> Iterator[tuple[str, Result]]:
    """The results that a study holds, by the names of its fields; those of cuts by the names of their circuits."""
    for field in dataclasses.fields(study):
        value = getattr(study, field.name)
        if isinstance(value, Result):
            yield field.name, value
        elif isinstance(value, (list, tuple)):
            yield from ((f"cut-{_slug(one)}", one.result) for one in value if isinstance(one, CircuitCut))


def provenance_html(studies: Sequence[Any]) -> str:
    """Model, texts, versions and settings as folded JSON."""
    record: dict[str, Any] = {}
    for study in studies:
        part = record[_name(study)] = {"study": study.provenance.to_dict()}
        for name, result in results_of(study):
            part[name] = result.provenance.to_dict()
            part[name]["config"] = {key: value for key, value in part[name]["config"].items() if key not in _LONG}
    text = html.escape(json.dumps(record, indent=2, ensure_ascii=False, default=str))
    summary = "<summary>Provenance: model, texts, versions, settings</summary>"
    return f'<section id="provenance"><details>{summary}<pre>{text}</pre></details></section>'


def save_tables(studies: Any, folder: str | Path) -> Path:
    """Write the numbers of one study or several: tables as Parquet, results as safetensors with JSON.

    ``tables/`` holds one Parquet file per table, ``results/`` one folder per result (``Result.load`` reads it back),
    ``circuits/`` what was cut (``Circuit.load``, ``mechrep ablate``), ``corpus.parquet`` the texts; ``examples.json``,
    ``kinds.json`` and ``provenance.json`` are what they say.

    Args:
        studies: of :func:`mechrep.studies.run_repetition_study` or
            :func:`mechrep.studies.head_study.run_head_study`, or several.
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
            for name, result in results_of(study):
                result.to_frame().to_parquet(target / "tables" / f"{name}.parquet")
                result.save(target / "results" / name)
                if isinstance(result, SweepResult):
                    result.outcome_frame().to_parquet(target / "tables" / f"{name}_outcomes.parquet")
            study.corpus.save(target / "corpus.parquet")
            _save_records(study, target)
        _write(target / "provenance.json", {_name(study): study.provenance.to_dict() for study in given})
    except OSError as error:
        raise StoreError(
            f"folder {target} ({error.strerror})", "a place to write", "free space or choose another"
        ) from error
    return target


def _save_records(study: Any, target: Path) -> None:
    """What is no result."""
    if isinstance(study, RepetitionStudy):
        _write(target / "examples.json", study.examples)
    if isinstance(study, HeadStudy):
        _write(target / "kinds.json", [dataclasses.asdict(kind) for kind in study.kinds])
        if study.profiles is not None:
            study.profiles.to_parquet(target / "tables" / "profiles.parquet")
        (target / "circuits").mkdir(exist_ok=True)
        for cut in study.cuts:
            cut.circuit.save(target / "circuits" / f"{_slug(cut)}.json")


def _write(path: Path, record: Any) -> None:
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False), encoding="utf-8")


def _name(study: Any) -> str:
    return str(study.provenance.config.get("study", type(study).__name__))


def _slug(cut: CircuitCut) -> str:
    return re.sub(r"[^a-z0-9]+", "-", cut.circuit.name.lower()).strip("-")
