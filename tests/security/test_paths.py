"""Names in data never lead out of the folder that a user has chosen."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import mechrep
from mechrep.disk import SUMS, _write_sums, is_plain_name, read_record, write_record
from mechrep.errors import InputError, StoreError
from mechrep.models.model import Model
from mechrep.report.build import build_report, load_sections, write_page
from mechrep.run import Run
from mechrep.sections import Section, slug, slugs
from tests.report.made_up import heads, provenance, words

OUTSIDE = (
    "..", "../x", "../../x", "/x", "//x", "\\x", "..\\x", "C:\\x", "C:x", "x/../../y", "./x", ".", "", "x/y", "a\0b",
    "con", "NUL", "aux.txt", "com1", "LPT9", "x.", "x ", " x", "x" * 300, "a\nb", "a:b", "a*b", "a?b", "a|b", "<a>",
    '"a"', "\u202ex", "~/x\0",
)  # fmt: skip


@pytest.fixture(scope="module")
def tiny() -> Model:
    return mechrep.load_model("mechrep-tiny")


def test_no_name_leads_elsewhere() -> None:
    assert [name for name in OUTSIDE if is_plain_name(name)] == []
    assert all(is_plain_name(slug(name)) for name in OUTSIDE)
    made = slugs([*OUTSIDE, *map(str.upper, OUTSIDE), "x-2"])
    assert len(set(made.values())) == len(made) and all(map(is_plain_name, made.values()))


def test_sections_and_tables_stay_in_their_folder(tiny: Model, tmp_path: Path, trust: Callable[..., None]) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    out, before = tmp_path / "deep" / "er" / "out", sorted(tmp_path.rglob("*"))
    for name in OUTSIDE:
        section = Section(name, provenance(), {})
        parts: Any = {"heads": lambda *_, one=section: one}
        with pytest.raises(InputError, match="section"):
            build_report(tiny, out, parts=parts, texts=words(texts), run=Run(progress=False))
    tables = {name: pd.DataFrame({"n": [i]}) for i, name in enumerate(OUTSIDE)}
    heads(tables=tables).save(tmp_path / "one")
    back = Section.load(tmp_path / "one")
    assert [int(back.tables[name]["n"].iloc[0]) for name in OUTSIDE] == list(range(len(OUTSIDE)))
    there = {path for path in tmp_path.rglob("*") if not path.is_relative_to(tmp_path / "one")}
    assert {path for path in there if path.is_file()} - set(before) <= set(texts.iterdir())
    trust(
        section="security",
        what="names in data that lead out of --out, or that a system reserves: refused or renamed",
        asked="all",
        measured=f"{len(OUTSIDE)} of {len(OUTSIDE)}",
        holds=True,
    )


PARTS: Any = {"heads": lambda *_: heads()}


@pytest.fixture(scope="module")
def built(tiny: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a report, its words, and a section that is no part of it."""
    folder = tmp_path_factory.mktemp("built")
    (folder / "texts").mkdir()
    build_report(tiny, folder / "a" / "out", parts=PARTS, texts=words(folder / "texts"), run=Run(progress=False))
    heads().save(folder / "a" / "x")
    return folder


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_report_from_elsewhere_cannot_reach_out(name: str, built: Path, tiny: Model, tmp_path: Path) -> None:
    """Its list and its records may say anything; what they name is neither read nor removed."""
    shutil.copytree(built, tmp_path / "copy")
    texts, out, mine = (tmp_path / "copy" / part for part in ("texts", "a/out", "a/x"))
    listed = out / "sections" / "parts.json"
    record = read_record(listed)
    record["parts"]["heads"]["sections"] = [name]
    write_record(listed, record)
    for act in (lambda: load_sections(out), lambda: write_page(out, texts=texts),
                lambda: build_report(tiny, out, parts=PARTS, texts=texts, run=Run(progress=False))):  # fmt: skip
        with pytest.raises(StoreError, match=r"parts\.json"):
            act()
    assert Section.load(mine).name == "heads"


def test_a_section_and_its_sums_name_only_their_own_files(tmp_path: Path) -> None:
    heads().save(tmp_path / "one")
    (tmp_path / "secret.parquet").write_text("x")
    record = tmp_path / "one" / "section.json"
    good = record.read_text()
    for old, new in (('"scores": "scores"', '"scores": "../../secret"'), ('"name": "heads"', '"name": "../heads"')):
        assert old in good
        record.write_text(good.replace(old, new))
        (tmp_path / "one" / SUMS).unlink()
        _write_sums(tmp_path / "one")
        with pytest.raises(StoreError, match="is no name"):
            Section.load(tmp_path / "one")
    (tmp_path / "one" / SUMS).write_text(f"{'0' * 64}  ../secret.parquet\n")
    with pytest.raises(StoreError, match="damaged"):
        Section.load(tmp_path / "one")
