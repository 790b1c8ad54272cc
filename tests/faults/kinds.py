"""Everything that mechrep writes and reads back: what writes it, what reads it, as a value that can be compared."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import mechrep
from mechrep.cache import CorpusCache
from mechrep.generation.loops import PromptTexts
from mechrep.journal import Journal
from mechrep.models.anatomy import Site
from mechrep.provenance import Provenance
from mechrep.report.build import build_report, facts_of
from mechrep.results import Result
from mechrep.run import Run
from mechrep.sections import Section
from tests.cache.counting import MeanOf, MeanResult, model, texts_of
from tests.report.made_up import heads, words

FAMILY = "llama_gqa"
LENGTHS = (5, 9, 14, 9, 3, 11, 8)
PROVENANCE = Provenance({"name": "hand"}, {"texts": 3}, {"r": 5})


@dataclass(frozen=True)
class Kind:
    """A kind of file: what writes it, what reads it, and what was read as a value that can be compared."""

    write: Callable[[Path], Any]
    read: Callable[[Path], Any]


def _facts(result: Result) -> dict[str, str]:
    values = {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
    return {name: repr(one.tolist() if isinstance(one, torch.Tensor) else one) for name, one in values.items()}


def _mean() -> Result:
    return CorpusCache(model(FAMILY), texts_of(LENGTHS)).run(MeanOf(Site.RESID_POST))


def _stopped(folder: Path) -> None:
    cache = CorpusCache(model(FAMILY), texts_of(LENGTHS), batch_size=2, store=folder)
    assert cache.store is not None
    cache.store.seconds = 0
    with pytest.raises(KeyboardInterrupt):
        cache.run(MeanOf(Site.GATE_ACT, dies_at=2))


def _resumed(folder: Path) -> Any:
    # What it writes is taken away again: each damage meets the same store.
    cache = CorpusCache(model(FAMILY), texts_of(LENGTHS), batch_size=2, store=folder)
    assert cache.store is not None
    cache.store.keep_result = cache.store.checkpoint = lambda *_, **__: None  # pyright: ignore
    return cache.run(MeanOf(Site.GATE_ACT)).mean.tolist()


def _table(folder: Path) -> None:
    mechrep.Corpus.from_texts(["the sea", "the king said"], model=mechrep.load_model("mechrep-tiny")).save(
        folder / "texts.parquet"
    )


def _row(folder: Path) -> Any:
    corpus = mechrep.Corpus.load(folder / "texts.parquet")
    return corpus.frame.to_json(), [corpus.row(i) for i in range(len(corpus))], corpus._facts()


def _section(folder: Path) -> Any:
    section = mechrep.load(folder / "heads")
    assert isinstance(section, Section)
    tables = {name: table.to_json() for name, table in section.tables.items()}
    figures = {name: figure.to_json() for name, figure in section.figures.items()}
    plain = [section.name, section.variant, repr(section.fields), repr(section.provenance), repr(section.views)]
    return plain, section.claims.to_json(), tables, figures


def _report(folder: Path) -> None:
    texts = Path(tempfile.mkdtemp())
    words(texts)
    parts = {"heads": lambda *_: heads()}
    build_report(model(FAMILY), folder, parts=parts, texts=texts, run=Run(progress=False), command="mechrep heads x")
    shutil.rmtree(folder / "sections" / "heads")  # only the list of parts is damaged here
    for path in folder.glob("report.*"):
        path.unlink()


def _texts(folder: Path) -> mechrep.Corpus:
    return PromptTexts(mechrep.load_model("mechrep-tiny"), store=folder).between(0, 2)


KINDS = {
    "result": Kind(
        lambda folder: _mean().save(folder / "mean"), lambda folder: _facts(MeanResult.load(folder / "mean"))
    ),
    "section": Kind(lambda folder: heads().save(folder / "heads"), _section),
    "list of parts": Kind(_report, lambda folder: repr(facts_of(folder))),
    "corpus": Kind(_table, _row),
    "circuit": Kind(
        lambda folder: mechrep.Circuit("two", heads=[(0, 1)], neurons=[(1, 3)], found="by eye").save(folder / "c.json"),
        lambda folder: repr(dataclasses.astuple(mechrep.Circuit.load(folder / "c.json"))),
    ),
    "shard of a study": Kind(
        lambda folder: Journal(folder, PROVENANCE).keep(0, [{"values": [0.1, float("nan"), 3], "places": [0, 1]}]),
        lambda folder: repr(Journal(folder, PROVENANCE).find(0)),
    ),
    "written texts": Kind(
        lambda folder: _texts(folder),
        lambda folder: _texts(folder).frame.to_json(),
    ),
    "sums of a pass": Kind(_stopped, _resumed),
}
