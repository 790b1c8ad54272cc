"""The page in a browser: one screen answers, everything unfolds, sorts, is found by its address, prints, and fits."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import pytest

from mechrep.ablation.effects import NOT_SUPPORTED
from mechrep.figures import styled
from mechrep.report.render import render_page
from tests.report.made_up import FIELDS, SCRIPT, heads, missing, seen, sinks, words

WIDTH, HEIGHT = 1280, 800
LONG = "a_name_that_goes_on_and_on " * 8


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page with everything that pages have, and names that would do harm."""
    folder = tmp_path_factory.mktemp("page")
    claims = heads().claims
    many = pd.concat([claims] * 6, ignore_index=True)
    wide = pd.DataFrame({f"column number {i}": [0.123 * i, 2.0] for i in range(14)} | {SCRIPT: [SCRIPT, LONG]})
    figures = {"forest": _figure()}
    tables = {"scores": wide, "long": heads().tables["long"]}
    first = heads(fields=FIELDS | {"model": SCRIPT}, claims=many, tables=tables, figures=figures,
                  views={"seen": seen()})  # fmt: skip
    nothing = sinks(claims=sinks().claims.assign(verdict=NOT_SUPPORTED))
    page = folder / "report.html"
    costs = {"heads": {"seconds": 12.0, "read": 1000.0, "written": 10.0}}
    page.write_text(render_page(f"net {SCRIPT}", [first, nothing, missing()], command="mechrep report net " + "x" * 90,
                                costs=costs, texts=words(folder)))  # fmt: skip
    return page.as_uri()


def _figure() -> go.Figure:
    figure = go.Figure([go.Scatter(x=[0, 1, 2], y=[1, 3, 2], name=SCRIPT), go.Scatter(x=[0, 2], y=[2, 2], name="b")])
    return styled(figure, title=SCRIPT, subtitle="b", x="x", y="y")


@dataclass
class Watched:
    """Pages that may ask for nothing and complain about nothing."""

    browser: Any
    address: str
    contexts: list[Any] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def page(self, place: str = "", **options: Any) -> Any:
        self.contexts.append(self.browser.new_context(**({"viewport": {"width": WIDTH, "height": HEIGHT}} | options)))
        page = self.contexts[-1].new_page()
        page.on("console", lambda message: self.troubles.append(message.text))
        page.on("pageerror", lambda error: self.troubles.append(str(error)))
        page.on("dialog", lambda dialog: (self.troubles.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: self.asked.append(request.url))
        page.goto(self.address + place)
        return page

    def check(self) -> None:
        assert not self.troubles
        assert [url for url in self.asked if not url.startswith((self.address, "data:", "blob:"))] == []

    def close(self) -> None:
        for context in self.contexts:
            context.close()


@pytest.fixture(scope="module")
def shared(chromium: Any, address: str) -> Iterator[tuple[Watched, Any]]:
    """One page for the tests that need no settings of their own."""
    watched = Watched(chromium, address)
    yield watched, watched.page()
    watched.close()


@pytest.fixture
def opened(chromium: Any, address: str, shared: tuple[Watched, Any]) -> Iterator[Any]:
    """Shows the page as it is when it is opened at an address: the shared one, or a fresh one."""
    own, (others, kept) = Watched(chromium, address), shared

    def page_of(place: str = "", fresh: bool = False, **options: Any) -> Any:
        if fresh or options:
            return own.page(place, **options)
        kept.evaluate(AGAIN, place)
        return kept

    yield page_of
    own.close()
    own.check()
    others.check()


# Everything folded and light, as at first; then to a place.
AGAIN = """async (place) => {
  document.querySelectorAll("details").forEach((one) => (one.open = false));
  delete document.documentElement.dataset.theme;
  history.replaceState(null, "", location.pathname);
  scrollTo(0, 0);
  if (place) location.hash = place;
  await new Promise((done) => setTimeout(done, 60));
}"""


def bottom(page: Any, selector: str) -> float:
    return page.evaluate("(one) => document.querySelector(one).getBoundingClientRect().bottom", selector)


def test_the_first_screen_holds_answer_claims_pictures_and_cost(opened: Any) -> None:
    page = opened(fresh=True)
    for selector in ("h1", ".answer", "#front-claims table", ".tally", ".thumbs", ".cost:last-child"):
        assert 0 < bottom(page, selector) <= HEIGHT, selector
    assert page.locator("#front-claims tbody tr").count() == 10 and page.locator(".thumbs svg").count() >= 1
    run = "[...document.body.querySelectorAll('script:not([type])')].map(one => one.textContent.length)"
    assert sum(page.evaluate(run)) < 20_000, "the first paint does not wait for the library of figures"


def test_everything_but_a_screen_for_each_question_is_folded(opened: Any) -> None:
    page = opened()
    assert page.locator("details[open]").count() == 0
    assert page.locator("#sinks > details").count() == 1 and page.locator("#heads > details").count() == 1
    assert bottom(page, "#sinks") - bottom(page, "#heads") < 120, "a null result takes one line"


def test_figures_become_live_when_they_are_seen(opened: Any) -> None:
    page = opened("#figure-heads-forest")
    page.wait_for_selector("#figure-heads-forest .plot.drawn .main-svg")
    assert not page.locator("#figure-heads-forest .still").is_visible()
    page.click("#theme")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_texts_can_be_looked_at(opened: Any) -> None:
    page = opened("#text-heads-seen")
    shown = page.locator("#text-heads-seen .mechrep-view[data-shown]")
    assert shown.is_visible() and SCRIPT in shown.inner_text() and "surprisal" in shown.inner_text()
    plain = opened(java_script_enabled=False)
    plain.locator("#heads summary").click()
    assert SCRIPT in plain.locator("#text-heads-seen .mv-plain").inner_text()


def test_an_address_unfolds_what_it_names(opened: Any) -> None:
    for anchor in ("claim-heads-loss", "table-heads-long-150", "table-heads-scores", "term-control", "first-layer"):
        page = opened(f"#{anchor}", fresh=anchor == "table-heads-long-150")
        assert page.locator(f"#{anchor}").is_visible() and bottom(page, f"#{anchor}") > 0
        assert page.evaluate("(one) => document.getElementById(one).getBoundingClientRect().top", anchor) < HEIGHT
    page = opened()
    page.click("#front-claims tbody tr:first-child td.number a >> nth=0")
    assert re.search(r"#claim-", page.url) and page.locator(f"#{page.url.split('#')[1]}").is_visible()


def test_tables_are_sorted_by_click_and_by_key(opened: Any) -> None:
    page = opened("#table-heads-long")
    head = page.locator("#table-heads-long thead th").nth(1)
    column = (
        "[...document.querySelectorAll('#table-heads-long tbody td:nth-child(2)')].map(one => Number(one.textContent))"
    )
    head.locator("button").click()
    values = page.evaluate(column)
    assert head.get_attribute("aria-sort") == "descending" and values == sorted(values, reverse=True)
    head.locator("button").press("Enter")
    assert head.get_attribute("aria-sort") == "ascending" and page.evaluate(column) == sorted(values)
    page.click("button.all[data-table=table-heads-long]")
    assert page.locator("#table-heads-long tbody tr:visible").count() == 200


def test_small_chances_sort_before_larger_ones(opened: Any) -> None:
    page = opened("#claims")
    page.evaluate("document.querySelector('#claims-table tbody tr td:last-child').firstChild.textContent = '< 0.001'")
    page.click("#claims-table thead th:last-child button")
    assert page.locator("#claims-table tbody tr").first.locator("td").last.inner_text().startswith("< 0.001")


def test_a_table_is_saved_as_csv(opened: Any) -> None:
    page = opened("#table-heads-long")
    with page.expect_download() as waiting:
        page.click("button.csv[data-table=table-heads-long]")
    frame = pd.read_csv(waiting.value.path())
    assert list(frame) == ["layer", "norm"] and len(frame) == 200 and frame["norm"].is_monotonic_increasing


def test_a_command_can_be_taken_along(opened: Any) -> None:
    page = opened()
    page.click("#redo-heads .copy")
    page.locator("#redo-heads .copy", has_text=re.compile("^(Copied|Selected)$")).wait_for()


def test_no_table_is_wider_than_the_page(opened: Any) -> None:
    page = opened()
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    wide = "one => one.filter(box => box.scrollWidth > box.clientWidth + 1).map(box => box.id)"
    assert page.locator(".table").evaluate_all(wide) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_needs_no_sideways_scroll(opened: Any, scheme: str) -> None:
    page = opened(viewport={"width": 400, "height": 800}, color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") == 400


def test_without_script_there_are_tables_and_pictures(opened: Any) -> None:
    page = opened(java_script_enabled=False)
    assert page.locator("#front-claims tbody tr").count() == 10
    page.locator("#heads summary").click()
    assert page.locator("#table-heads-long tbody tr:visible").count() == 200
    assert page.locator("#figure-heads-forest .still").is_visible() and not page.locator(".copy").first.is_visible()


def test_paper_holds_what_is_folded(opened: Any) -> None:
    page = opened()
    content = page.pdf(prefer_css_page_size=True)
    assert len(content) < 3_000_000
    page.emulate_media(media="print")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.locator("#claims-table").is_visible() and page.locator("#figure-heads-forest .still").is_visible()
    assert not page.locator("#glossary dl").is_visible() and not page.locator("nav").is_visible()
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.locator("details[open]").count() == 0
