"""The report is one file that asks nobody, holds everything, and cannot be broken by its texts."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from mechrep.ablation.old_loss import LossResult
from mechrep.ablation.old_sweeps import SweepResult
from mechrep.errors import StoreError
from mechrep.measures.neurons import RepetitionNeuronResult
from mechrep.report.page import save_tables
from mechrep.report.write import report_html, write_report
from mechrep.text.corpus import Corpus
from tests.views import study_by_hand as by_hand

VOID = {"meta", "br", "hr", "img", "input", "link"}
FIGURES = [
    "profile",
    "sorted",
    "layers",
    "deactivation",
    "activation",
    "deactivation-perplexity",
    "activation-perplexity",
]


class Page(HTMLParser):
    """Tags that balance, what they would load, scripts, and the text that is seen."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append((dict(attrs), ""))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            attributes, text = self.scripts[-1]
            self.scripts[-1] = (attributes, text + data)
        elif self.open and self.open[-1] != "style":
            self.text += data


@pytest.fixture(scope="module")
def source() -> str:
    return report_html(by_hand.study(f"net {by_hand.SCRIPT}"))


@pytest.fixture(scope="module")
def page(source: str) -> Page:
    return Page(source)


def test_tags_balance(page: Page) -> None:
    assert page.open == []


def test_nothing_is_loaded(source: str, page: Page) -> None:
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "img", "object", "embed", "base")
        assert not {"src", "srcset", "action", "data"} & attributes.keys()
        assert str(attributes.get("href", "#")).startswith("#"), "links lead to places in this page"
        assert not any(name.startswith("on") for name in attributes)
    style = source[source.index("<style>") : source.index("</style>")]
    assert "url(" not in style and "@import" not in style
    (policy,) = (a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and "default-src 'none'" in policy and "http" not in policy
    own = page.scripts[-1][1]
    assert not re.search(r"fetch\(|XMLHttpRequest|import\(|https?:", own)


def test_only_our_scripts_may_run(page: Page) -> None:
    (policy,) = (a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    running = [text for attributes, text in page.scripts if "type" not in attributes]
    assert len(page.scripts) == 4 and len(running) == 2  # two hold JSON
    for text in running:
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in str(policy)
    assert "plotly.js" in running[0][:200]


def test_planted_markup_stays_text(source: str, page: Page) -> None:
    assert by_hand.SCRIPT not in source and "<script>alert" not in source
    assert page.text.count("<script>alert(1)</script>") >= 3  # model name, prompt, loop, cut: shown as they are
    assert "<b>before</b>" in page.text


def test_every_figure_has_its_box_and_its_data(page: Page) -> None:
    boxes = [a["id"] for _, a in page.tags if a.get("class") == "plot"]
    assert boxes == FIGURES
    data = json.loads(next(text for a, text in page.scripts if a.get("id") == "figures"))
    assert list(data) == FIGURES
    assert all(figure["data"] and "title" not in figure["layout"] for figure in data.values())
    assert page.text.count("Mind:") == len(FIGURES)


def test_every_table_is_there(page: Page) -> None:
    labels = [a["aria-label"] for tag, a in page.tags if tag == "table"]
    assert len(labels) == 5 and labels[0] == "The 20 neurons that rise most"
    assert sum(tag == "tr" for tag, _ in page.tags) == (20 + 1) + 4 * (3 + 1)
    assert "75\u00a0% [60–86]" in page.text  # 30 of 40: Wilson's interval


def test_parts_stand_in_their_order(page: Page) -> None:
    parts = [
        "repeat itself?",
        "cutting the 100 neurons",
        "What was asked",
        "of prompts loop",
        "Activation of the top",
        "Texts that still repeat when",
        "The 20 neurons that rise most",
        "What it looks like",
        "How it was measured",
        "What this cannot say",
        "Provenance: model",
    ]
    places = [page.text.index(part) for part in parts]
    assert places == sorted(places)


def test_three_examples_are_shown_with_what_the_cut_made_of_them(page: Page) -> None:
    assert [f"something else {i}" in page.text for i in range(4)] == [True, True, True, False]
    assert sum(tag == "mark" for tag, _ in page.tags) == 3 + 1  # and the legend


def test_a_study_without_loop_free_texts_says_so() -> None:
    page = Page(report_html(by_hand.study(activation=False)))
    assert [a["id"] for _, a in page.tags if a.get("class") == "plot"] == [f for f in FIGURES if f != "activation"]
    assert "Boosting was not tested" in page.text and page.open == []


def test_an_effect_that_controls_share_is_not_sold(page: Page) -> None:
    assert "beyond every control" in page.text
    counts = {"top": (30, 20), "random": (40, 38), "layer_matched": (30, 18)}
    weak = Page(report_html(by_hand.study(counts=counts)))
    assert "not beyond controls" in weak.text and "beyond every control" not in weak.text
    assert "no fewer than cutting as many layer-matched neurons" in weak.text


def test_write_report_makes_folders_and_replaces(tmp_path: Path) -> None:
    target = tmp_path / "a" / "report.html"
    for _ in range(2):
        assert write_report(by_hand.study(), target) == target
    assert [path.name for path in target.parent.iterdir()] == ["report.html"]
    assert target.read_bytes().decode("utf-8").startswith("<!DOCTYPE html>")


def test_write_report_says_where_it_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file"):
        write_report(by_hand.study(), tmp_path / "file" / "report.html")
    with pytest.raises(StoreError, match="file"):
        save_tables(by_hand.study(), tmp_path / "file")


def test_save_tables_can_be_read_back(tmp_path: Path) -> None:
    study = by_hand.study()
    folder = save_tables(study, tmp_path / "out")
    names = ("neurons", "deactivation", "activation", "deactivation_loss", "activation_loss")
    for name in names:
        table = getattr(study, name).to_frame()
        pd.testing.assert_frame_equal(pd.read_parquet(folder / "tables" / f"{name}.parquet"), table, check_dtype=False)
    assert RepetitionNeuronResult.load(folder / "results" / "neurons").top(3) == study.neurons.top(3)
    assert SweepResult.load(folder / "results" / "deactivation").outcomes == study.deactivation.outcomes
    assert LossResult.load(folder / "results" / "activation_loss").op == "add(1)"
    assert Corpus.load(folder / "corpus.parquet").fingerprint() == study.corpus.fingerprint()
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["repetition"]["config"]["study"] == "repetition"
    assert html.unescape(json.loads((folder / "examples.json").read_text())[0]["loop"]) == study.examples[0]["loop"]
    assert len(pd.read_parquet(folder / "tables" / "deactivation_outcomes.parquet")) == len(study.deactivation.outcomes)
