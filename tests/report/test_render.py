"""The page holds every number, loads nothing, leads everywhere it points to, and cannot be broken by its texts."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import hashlib
import itertools
import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from mechrep.ablation.effects import NOT_SUPPORTED, SUPPORTED, TOO_FEW
from mechrep.errors import InputError
from mechrep.report.front import front_of
from mechrep.report.render import render_page, report_json
from mechrep.report.view import VERDICTS, view_of
from mechrep.report.words import TEXT, column_texts, number, to_html, words_of
from mechrep.sections import Section
from mechrep.viewer.assets import viewer_script
from tests.report.made_up import FIELDS, SCRIPT, heads, missing, seen, sinks, words

VOID = {"meta", "br", "hr", "img", "input", "link"}
SECTIONS = [heads(), sinks(), missing()]
Attributes = dict[str, str | None]
TAGS = re.compile(
    "html|head|meta|title|style|noscript|body|a|nav|div|button|span|main|header|p|h[123]|section|details|summary|table|"
    "caption|thead|tbody|t[rhd]|b|strong|code|ul|li|d[ltd]|pre|figure|figcaption|script|svg|rect|path|circle"
)


class Page(HTMLParser):
    """Tags that balance, what they would load, scripts, and the text that is seen."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, Attributes, list[str]]] = []
        self.scripts: list[tuple[Attributes, str]] = []
        self.text, self.cells = "", [[]]
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs), list(self.open)))
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
        elif "style" not in self.open:
            self.text += data

    def all(self, name: str) -> list[Attributes]:
        return [attributes for tag, attributes, _ in self.tags if tag == name]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return words(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def source(texts: Path) -> str:
    return render_page("net", SECTIONS, command="mechrep report net", texts=texts)


@pytest.fixture(scope="module")
def page(source: str) -> Page:
    return Page(source)


@pytest.fixture(scope="module")
def record(texts: Path) -> dict[str, Any]:
    return report_json("net", SECTIONS, command="mechrep report net", texts=texts)


# --- safe and whole -------------------------------------------------------------------------------------------------


def test_tags_balance_and_nothing_is_loaded(source: str, page: Page) -> None:
    assert page.open == []
    for tag, attributes, _ in page.tags:
        assert tag not in ("link", "iframe", "img", "object", "embed", "base", "form")
        assert not {"src", "srcset", "action", "data"} & attributes.keys()
        assert not any(name.startswith("on") for name in attributes)
        inside = r"data:image/png;base64," if tag == "image" else r"#|https://arxiv\.org/abs/[\d.]+$"
        assert re.match(inside, str(attributes.get("href", inside)))
    style = source[source.index("<style>") : source.index("</style>")]
    assert "url(" not in style and "@import" not in style
    assert not re.search(r"fetch\(|XMLHttpRequest|import\(|https?:", page.scripts[-1][1])


def test_only_our_scripts_may_run(page: Page) -> None:
    (policy,) = (a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and "default-src 'none'" in policy and "http" not in policy
    (script,) = (text for attributes, text in page.scripts if "type" not in attributes)
    (packed,) = (text for attributes, text in page.scripts if attributes.get("id") == "plotly")
    plotly = gzip.decompress(base64.b64decode(packed)).decode()
    texts = (script, plotly, viewer_script())
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts]
    assert [f"'sha256-{digest}'" for digest in digests] == re.findall(r"'sha256-[^']+'", policy)
    assert "plotly.js" in plotly[:200]


def test_planted_markup_stays_text(texts: Path) -> None:
    table = pd.DataFrame({SCRIPT: ["<b>cell</b>"], "n": [1]})
    figure = go.Figure(go.Bar(x=[SCRIPT], y=[1])).update_layout(title={"text": SCRIPT})
    claims = heads().claims.assign(name=SCRIPT, family=SCRIPT, controls=SCRIPT)
    bad = heads(fields=FIELDS | {"head": SCRIPT, "model": SCRIPT}, claims=claims, tables={"scores": table},
                figures={"forest": figure}, views={"seen": seen()})  # fmt: skip
    source = render_page(f"net {SCRIPT}", [bad, sinks()], command=SCRIPT, texts=texts)
    found = Page(source)
    assert found.open == [] and "<script>alert" not in source and "<b>cell" not in source
    assert found.text.count("<script>alert(1)</script>") >= 12 and "<b>cell</b>" in found.text
    data = [json.loads(text) for attributes, text in found.scripts if attributes.get("type") == "application/json"]
    assert len(found.scripts) == 6 and len(data) == 3
    assert all("alert" in json.dumps(one) for one in data if "ink" not in one)
    assert str(to_html("{x} **{x}**", {"x": "**a** [b](#c) {y}"}, "here")).count("**a** [b](#c) {y}") == 2


WORDS = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc", "Zl", "Zp")), min_size=1, max_size=20)
SIZES = st.one_of(st.none(), st.floats(-1e300, 1e300), st.sampled_from([float("nan"), float("inf"), float("-inf")]))
CELLS = st.one_of(SIZES, st.integers(-(10**9), 10**9), WORDS, st.booleans())


@settings(max_examples=8, phases=(Phase.generate,))  # a page takes a second: no shrinking
@given(
    names=st.lists(
        st.tuples(WORDS, st.sampled_from(VERDICTS), st.sampled_from(["loss", "few"])), min_size=1, max_size=12
    ),
    numbers=st.lists(st.one_of(SIZES, st.floats(0, 1)), min_size=12, max_size=12),
    rows=st.lists(st.tuples(CELLS, CELLS), max_size=4),
    head=WORDS,
)
def test_whatever_a_section_holds_the_page_is_whole(
    texts: Path, names: list[Any], numbers: list[Any], rows: list[Any], head: str
) -> None:
    claims = pd.DataFrame(
        [
            {"claim": claim, "verdict": verdict, "unit": "nats", "name": name, "k": 1, "effect": number, "low": number,
             "high": number, "baseline": 0.0, "value": number, "q": number, "m": 9, "controls": name, "family": name}
            for (name, verdict, claim), number in zip(names, numbers, strict=False)
        ]
    ).astype(object)  # fmt: skip
    table = pd.DataFrame(rows, columns=["a", head or "b"]) if head != "a" else pd.DataFrame()
    fields = FIELDS | {"head": head, "model": head}
    section = dataclasses.replace(SECTIONS[0], fields=fields, claims=claims, tables={"scores": table}, figures={})
    page = Page(render_page(head, [section, SECTIONS[1]], command=head, texts=texts))
    assert page.open == [] and all(TAGS.fullmatch(tag) for tag, _, _ in page.tags)
    ids = [str(attributes["id"]) for _, attributes, _ in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids)) and {str(a["href"])[1:] for a in page.all("a") if a["href"][0] == "#"} <= set(ids)
    rows_of_claims = [one for one in ids if re.match(r"claim-", one)]
    assert len(rows_of_claims) == len(names) + len(SECTIONS[1].claims)
    assert all(name in page.text for name, _, _ in names)


def test_the_same_sections_make_the_same_page(source: str, texts: Path) -> None:
    assert render_page("net", SECTIONS, command="mechrep report net", texts=texts) == source


# --- everything is there, and is linked -------------------------------------------------------------------------------


def test_links_lead_to_places_that_are_there_once(page: Page) -> None:
    ids = [str(attributes["id"]) for _, attributes, _ in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = {str(a["href"])[1:] for a in page.all("a") if str(a.get("href")).startswith("#")}
    used |= {str(a[name]) for _, a, _ in page.tags for name in ("aria-labelledby",) if name in a}
    assert used <= set(ids)
    places = {"heads", "claim-heads-loss", "redo-heads", "table-heads-long", "figure-heads-forest"}
    assert places <= set(ids) & used


def test_claims_stand_in_the_order_of_their_verdicts(page: Page, record: dict[str, Any]) -> None:
    rows = [str(a["id"]) for a in page.all("tr") if str(a.get("id")).startswith("claim-")]
    assert rows == [claim["anchor"] for claim in record["claims"]]
    assert rows == ["claim-heads-loss", "claim-sinks-norm", "claim-heads-few", "claim-sinks-attention"]
    places = [VERDICTS.index(claim["verdict"]) for claim in record["claims"]]
    assert places == sorted(places) and record["counts"]["supported"] == places.count(0) == 2


def test_shares_are_shown_as_percentage_points(texts: Path) -> None:
    claim = view_of(sinks(), texts).claims[1]
    assert claim.unit == "percentage points" and claim.level == ("59.5 %", "50.0 %")
    assert (claim.effect, claim.interval, claim.range) == ("−9.5", "−19.5 to 0.5", "−9.5 to 9.5")
    assert claim.controls == "39 × null models"


def numbers_of(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        yield from (one for part in value.values() for one in numbers_of(part))
    elif isinstance(value, list):
        yield from (one for part in value for one in numbers_of(part))
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield value


def test_every_number_of_the_record_is_on_the_page(page: Page, record: dict[str, Any], texts: Path) -> None:
    json.dumps(record, allow_nan=False)
    text = page.text
    for section in record["sections"]:
        for table in section["tables"].values():
            for column in zip(*table["rows"], strict=True):
                assert all(cell in text for cell in column_texts(column))
            assert table["total"] == len(table["rows"]) or number(table["total"]) in text
        for name in ("title", "lead", "notes", "limits", "source"):
            for line in section.get(name, "").splitlines() if section["variant"] != "missing" else []:
                assert re.sub(r"\s+", " ", line.replace("- ", "", 1)) in re.sub(r"\s+", " ", text)
        for value in numbers_of(section["provenance"]):
            assert str(value) in text
    for claim in (claim for section in SECTIONS for claim in view_of(section, texts).claims):
        shown = (*claim.level, claim.effect, claim.interval, claim.range, claim.controls, claim.q, claim.text)
        assert all(part in text for part in shown)


def test_long_tables_are_shortened_and_say_so(page: Page, record: dict[str, Any]) -> None:
    table = record["sections"][0]["tables"]["table-heads-long"]
    assert len(table["rows"]) == 200 and table["total"] == 300 and "300" in page.text
    assert sum("short" in str(a.get("class")) for a in page.all("table")) == 1


def test_tables_of_effects_are_in_the_units_of_the_claims(texts: Path) -> None:
    frame = pd.DataFrame({"measure": ["a", "b"], "unit": ["share", "nats"], "baseline": [0.5, 0.5], "n": [9, 9]})
    record = report_json("net", [heads(tables={"long": frame})], texts=texts)
    (table,) = record["sections"][0]["tables"].values()
    assert table["rows"] == [["a", "percentage points", 50.0, 9], ["b", "nats", 0.5, 9]]


def test_a_section_that_finds_nothing_folds_to_one_line(texts: Path) -> None:
    nothing = heads(claims=heads().claims.assign(verdict=NOT_SUPPORTED))
    for section, folded in ((nothing, True), (heads(), False), (heads(claims=pd.DataFrame()), False)):
        page = Page(render_page("net", [section], texts=texts))
        assert view_of(section, texts).null == folded and page.open == []
        headings = [parents for tag, attributes, parents in page.tags if attributes.get("id") == "heads-title"]
        assert [("summary" in parents) for parents in headings] == [folded]


def test_the_first_screen_asks_the_same_whatever_the_verdicts(texts: Path) -> None:
    for verdict in VERDICTS:
        sections = [heads(claims=heads().claims.assign(verdict=verdict)), sinks()]
        front = front_of([view_of(section, texts) for section in sections], texts)
        assert sorted(str(claim.row["claim"]) for claim in front.claims) == ["attention", "few", "loss", "norm"]
        places = [VERDICTS.index(claim.verdict) for claim in front.claims]
        assert places == sorted(places) and len(front.answer) == 1 and len(front.pictures) <= 3


def test_answers_are_of_the_claim_with_the_best_verdict(tmp_path: Path) -> None:
    for name in ("intro", "glossary", "missing"):
        shutil.copy(TEXT / f"{name}.md", tmp_path)
    (tmp_path / "ablation.md").write_text(
        "# title\nA\n# lead\nB\n# claim: loop\n{name} | l\n# claim: looping\n{name} | s\n"
        "# answer: loop supported\nLoop {value:.2f}\n# answer: looping too few\nFew {value:.2f}\n"
    )
    claims = pd.concat([heads().claims.head(1).assign(claim=claim) for claim in ("looping", "loop")])
    for verdicts, said in (
        ((TOO_FEW, SUPPORTED), "Loop"),
        ((TOO_FEW, TOO_FEW), "Few"),
        ((NOT_SUPPORTED, NOT_SUPPORTED), words_of("intro").block("answer: nothing")),
    ):
        section = dataclasses.replace(
            heads(claims=claims.assign(verdict=verdicts), figures={}, tables={}), name="ablation"
        )
        (answer,) = front_of([view_of(section, tmp_path)], tmp_path).answer
        assert answer.startswith(said)


def test_long_lists_of_units_are_counted() -> None:
    assert str(to_html("{x:few}", {"x": "L1H0, L1H1, L2H0, L3H3"}, "here")) == "L1H0, L1H1 + 2 more"
    assert words_of("heads").parts("claim: induction", {"name": "a | b"})[0] == "a | b"


def test_small_chances_are_never_shown_as_zero(texts: Path) -> None:
    frame = pd.DataFrame({"head": ["a", "b", "c"], "q": [1e-9, 0.05, None], "p": [0.0, 1.0, 0.0012]})
    table = view_of(heads(tables={"scores": frame}), texts).tables[0]
    assert [row[1:] for row in table.cells] == [["< 0.001", "< 0.001"], ["0.05", "1"], ["–", "0.0012"]]
    assert view_of(heads(claims=heads().claims.assign(q=0.0004)), texts).claims[0].q == "< 0.001"


def test_a_missing_part_is_folded_to_one_line(texts: Path, record: dict[str, Any]) -> None:
    view = view_of(missing(), texts)
    assert view.missing and not view.notes and "a sink" in view.lead_text
    assert "None: 9.250." in view_of(sinks(variant="not_found"), texts).lead_text
    assert record["sections"][2]["variant"] == "missing"


# --- accessible -------------------------------------------------------------------------------------------------------


def test_headings_go_down_one_step_at_a_time_and_tables_have_captions(page: Page) -> None:
    levels = [int(tag[1]) for tag, _, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert len(page.all("table")) == len(page.all("caption")) == 6
    assert all(a.get("scope") for a in page.all("th")) and page.all("html")[0]["lang"] == "en"
    assert all(a.get("aria-label") for a in page.all("div") if a.get("role") == "img")
    assert [tag for tag, _, _ in page.tags].count("main") == 1
    assert all(a.get("type") == "button" for a in page.all("button"))


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "parts"),
    [
        (heads(fields={"model": "net"}), ["heads.md", "# lead", "{head}"]),
        (heads(tables={"other": pd.DataFrame({"a": [1]})}), ["heads.md", "# table: other"]),
        (sinks(claims=sinks().claims.assign(claim="other")), ["sinks.md", "# claim: other"]),
        (sinks(variant="other"), ["sinks.md", "# lead: other"]),
        (sinks(claims=sinks().claims.drop(columns="claim")), ["sinks", "claim"]),
        (heads(fields=FIELDS | {"score": "high"}), ["heads.md", "# lead", ".2f"]),
        (dataclasses.replace(sinks(), name="nowhere"), ["nowhere.md"]),
        (dataclasses.replace(sinks(), name="../intro"), ["../intro"]),
    ],
)
def test_missing_words_and_fields_are_named(texts: Path, section: Section, parts: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        render_page("net", [section], texts=texts)
    assert all(part in str(caught.value) for part in parts)


@pytest.mark.parametrize("text", ["{a.b}", "{a[0]}", "{", "{}", "{0}"])
def test_fields_are_plain_names(text: str) -> None:
    with pytest.raises(InputError, match="here"):
        to_html(text, {"a": 1}, "here")


def test_a_page_needs_sections_of_different_names(texts: Path) -> None:
    for sections in ([], [sinks(), sinks()]):
        with pytest.raises(InputError, match="section"):
            render_page("net", sections, texts=texts)


def test_words_have_headings_once(tmp_path: Path) -> None:
    for text in ("# lead\na\n# lead\nb\n", "words\n# lead\na\n"):
        (tmp_path / "x.md").write_text(text)
        with pytest.raises(InputError, match="heading"):
            words_of("x", tmp_path)


def test_all_texts_can_be_read() -> None:
    for path in sorted(TEXT.glob("*.md")):
        assert words_of(path.stem).blocks
