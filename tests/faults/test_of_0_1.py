"""Files that mechrep 0.1 itself wrote (``of_0_1``, by ``of_0_1/write.py``): read, or refused with what to do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import mechrep
from mechrep.disk import SUMS
from mechrep.errors import StoreError
from mechrep.generation.compare import Comparison
from mechrep.journal import Journal
from mechrep.models.model import Model
from mechrep.report.build import build_report, facts_of, load_sections
from mechrep.report.words import TEXT
from mechrep.run import Run
from mechrep.sections import Section
from tests.faults.of_0_1.write import PROVENANCE, TEXTS
from tests.report.made_up import heads, words

OLD = Path(__file__).parent / "of_0_1"
LONG = "a" * 100
ODD = ("title", "lead", "table: scores", f"table: {LONG}")


@pytest.fixture(scope="module")
def tiny() -> Model:
    return mechrep.load_model("mechrep-tiny")


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A copy: reading may tidy, and what is saved again has the layout of today."""
    return Path(shutil.copytree(OLD, tmp_path / "old"))


def test_these_are_of_0_1() -> None:
    files = [*OLD.rglob("result.json"), *OLD.rglob("section.json")]
    versions = [json.loads(path.read_text(encoding="utf-8"))["provenance"]["versions"] for path in files]
    assert len(files) == 6 and {one["mechrep"] for one in versions} == {"0.1.0"}
    assert not list(OLD.rglob(SUMS))


def test_results(old: Path, tiny: Model) -> None:
    read, now = mechrep.load(old / "sinks"), mechrep.attention_sinks(tiny, TEXTS)
    assert isinstance(read, type(now)) and read.provenance.versions["mechrep"] == "0.1.0"
    assert read.n_texts == 2 and (read.alpha - now.alpha).abs().max() < 1e-5
    compared = mechrep.load(old / "compared")
    assert isinstance(compared, Comparison) and [len(one) for one in compared.written] == [2, 2]
    for result in (read, compared):  # saved again, it has sums, and says the same
        result.save(old / "again")
        assert (old / "again" / SUMS).is_file() and repr(mechrep.load(old / "again")) == repr(result)
        shutil.rmtree(old / "again")


def test_a_corpus_and_a_circuit(old: Path, tiny: Model) -> None:
    corpus = mechrep.Corpus.load(old / "corpus.parquet", tiny)
    assert [corpus.row(i) for i in range(2)] == [tiny.encode(text) for text in TEXTS]
    circuit = mechrep.load(old / "circuit.json")
    assert isinstance(circuit, mechrep.Circuit) and (circuit.name, circuit.found) == ("two", "by eye")
    assert (circuit.heads, circuit.neurons) == (((0, 1),), ((1, 3),))


def test_what_a_report_is_made_of(old: Path) -> None:
    assert facts_of(old / "report").command == "mechrep report mechrep-tiny --only first-layer --effort quick"
    (section,) = load_sections(old / "report")
    assert list(section.figures) == ["mass", "detector", "repeats, power"] and len(section.claims)


@pytest.mark.slow
def test_a_part_of_today_beside_one_of_0_1(old: Path, tiny: Model, tmp_path: Path) -> None:
    texts, report = tmp_path / "texts", old / "report"
    texts.mkdir()
    words(texts)
    shutil.copy(TEXT / "first-layer.md", texts)
    (texts / "odd.md").write_text("".join(f"# {one}\nWords.\n" for one in ODD), encoding="utf-8")
    listed = json.loads((report / "sections" / "parts.json").read_text(encoding="utf-8"))
    listed["parts"]["odd"] = {"sections": ["odd"], "command": "mechrep odd", "cost": {}}
    (report / "sections" / "parts.json").write_text(json.dumps(listed), encoding="utf-8")
    shutil.copytree(old / "odd", report / "sections" / "odd")
    build_report(tiny, report, parts={"heads": lambda *_: heads()}, texts=texts, run=Run(progress=False))
    told = json.loads((report / "report.json").read_text(encoding="utf-8"))["sections"]
    assert [one["name"] for one in told] == ["heads", "first-layer", "odd"]
    files = [table["file"] for one in told for table in one["tables"].values()]
    assert len(files) == 4 and [file for file in files if not (report / file).is_file()] == []


def test_links_lead_to_the_files_that_are_there(old: Path, tmp_path: Path) -> None:
    section = Section.load(old / "odd")
    assert section.tables[LONG]["name"].tolist() == [LONG]
    assert (old / "odd" / "tables" / f"{section.table_file(LONG)}.parquet").is_file()
    before = section.table_file(LONG)
    section.save(old / "new")
    again = Section.load(old / "new")
    assert section.table_file(LONG) == again.table_file(LONG) != before
    assert all((old / "new" / "tables" / f"{again.table_file(key)}.parquet").is_file() for key in again.tables)


def test_what_0_1_wrote_one_over_the_other_is_refused(old: Path) -> None:
    with pytest.raises(StoreError, match=r"tables that share a file: A b, a-b.*make this part again"):
        mechrep.load(old / "shared")
    with pytest.raises(StoreError, match=r"'con' is no name of a file.*make this part again"):
        mechrep.load(old / "reserved")


def test_a_store_begins_anew(old: Path) -> None:
    (shard,) = (old / "store").rglob("shard-*.json")
    now = Journal(old / "store", PROVENANCE)
    assert now.folder != shard.parent and now.find(0) is None
    shutil.copy(shard, now.folder)
    with pytest.raises(StoreError, match=r"shard-00000.*delete that file and run again"):
        now.find(0)
