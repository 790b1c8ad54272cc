"""Names and texts that would do harm, everywhere a page shows one: they are text, whatever they say."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

import mechrep
from mechrep.ablation.effects import example_effects
from mechrep.disk import read_record, write_record
from mechrep.figures import styled
from mechrep.generation.compare import compare
from mechrep.models.model import Model
from mechrep.report.build import build_report
from mechrep.report.render import render_page
from mechrep.report.side_by_side import write_side_by_side
from mechrep.report.words import TEXT
from mechrep.run import Run
from mechrep.sections import Section
from tests.report.made_up import FIELDS, heads, provenance, seen, sinks, words
from tests.security.payloads import PAYLOADS

pytestmark = pytest.mark.slow
ALL = " ".join(PAYLOADS)
# What no page of mechrep has; and attributes that run something.
_HARM = """() => {
  const tags = "iframe, object, embed, base, form, link[href], meta[http-equiv=refresh], math, video";
  const found = [...document.querySelectorAll(`${tags}, img:not([src^=data])`)].map(one => one.outerHTML);
  for (const one of document.querySelectorAll("*"))
    for (const {name, value} of one.attributes)
      if (/^on/i.test(name) || (/href|src|action/i.test(name) && /^\\s*javascript:/i.test(value)))
        found.push(one.outerHTML);
  return found;
}"""
_SPACE = str.maketrans({"\u2028": " ", "\u2029": " ", "\ufeff": "", "\u200b": "", "\r": ""})


def plain(text: str) -> str:
    """Without what a page may lay out in another way."""
    return " ".join(text.translate(_SPACE).split())


@pytest.fixture(scope="module")
def tiny() -> Model:
    return mechrep.load_model("mechrep-tiny")


# As if somebody pointed at everything.
_POINT = """() => {
  document.querySelectorAll("details").forEach(one => one.open = true);
  const all = [...document.querySelectorAll("button, [data-at], td, th, a")];
  for (const one of all.filter(one => !one.closest(".js-plotly-plot")).slice(0, 400))
    for (const kind of ["pointerover", "mouseover", "focusin"])
      one.dispatchEvent(new MouseEvent(kind, {bubbles: true}));
}"""


@pytest.fixture
def opened(chromium: Any, tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Opens a page, unfolds everything, and gives its text; it may run, load and say nothing."""
    troubles: list[object] = []
    page = chromium.new_context(viewport={"width": 1280, "height": 900}).new_page()
    page.on("console", lambda message: troubles.append(message.text))
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("dialog", lambda dialog: (troubles.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda one: one.url.startswith(("file:", "data:", "blob:")) or troubles.append(one.url))

    def text_of(source: str | Path, turns: int = 0) -> str:
        path = source if isinstance(source, Path) else tmp_path / "page.html"
        if isinstance(source, str):
            path.write_text(source, encoding="utf-8")
        page.goto(path.as_uri())
        page.evaluate(_POINT)
        for _ in range(turns):  # figures become live when they are seen
            page.mouse.wheel(0, 2000)
            page.wait_for_timeout(200)
        page.evaluate(_POINT)
        assert page.evaluate(_HARM) == []
        assert page.evaluate("document.title !== 'ran' && location.protocol === 'file:'")
        return page.evaluate("document.body.textContent")

    yield text_of
    page.context.close()
    assert troubles == []


def harmful(name: str) -> Section:
    """A section that is full of them."""
    table = pd.DataFrame({"n": range(len(PAYLOADS)), name: PAYLOADS})
    effects = example_effects()
    claims = effects.summary(family="heads").assign(claim="loss")
    claims = pd.concat([claims.head(1)] * len(PAYLOADS), ignore_index=True)
    claims = claims.assign(name=PAYLOADS, family=PAYLOADS, controls=PAYLOADS)
    traces = [go.Scatter(x=[0, 1], y=[i, i], name=text, text=[text, text]) for i, text in enumerate(PAYLOADS[:12])]
    figure = styled(go.Figure(traces), title=name, subtitle=name, x=name, y=name)
    view = seen() | {"tokens": list(PAYLOADS[:3]), "model": name, "text": name, "under": name}
    return heads(
        provenance=dataclasses.replace(provenance(name), config={name: ALL}),
        fields=FIELDS | {"head": name, "model": name}, claims=claims, tables={"scores": table, name: table},
        figures={"forest": figure}, views={"seen": view},
    )  # fmt: skip


def shown(text: str, payloads: Any = PAYLOADS) -> int:
    there = plain(text)
    missing = [one for one in payloads if plain(one) not in there]
    assert missing == []
    return len(payloads)


def _words(folder: Path, *names: str) -> Path:
    words(folder)
    text = (folder / "heads.md").read_text()
    for name in names:
        text += f"\n# table: {name}\nA table.\n"
    (folder / "heads.md").write_text(text, encoding="utf-8")
    shutil.copy(TEXT / "side-by-side.md", folder)
    return folder


def test_a_report(opened: Any, tmp_path: Path, trust: Callable[..., None]) -> None:
    section = harmful("x")
    page = render_page(ALL, [section, sinks()], command=ALL, redo={"heads": ALL}, texts=_words(tmp_path, "x"))
    count = shown(opened(page, turns=6))
    for payload in PAYLOADS[::6]:  # alone, where one stands for all: a name of a model, in titles and addresses
        one = heads(fields=FIELDS | {"head": payload, "model": payload}, provenance=provenance(payload))
        shown(opened(render_page(payload, [one], command=payload, texts=tmp_path)), [payload])
    _told(trust, "a report", count)


def test_reports_side_by_side(opened: Any, tiny: Model, tmp_path: Path, trust: Callable[..., None]) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    _words(texts, "x")
    folders = [tmp_path / "javascript:alert(1)", tmp_path / "b' onclick='alert(1)"]
    for folder in folders:
        build_report(tiny, folder, parts={"heads": lambda *_: harmful("x")}, texts=texts, run=Run(progress=False))
        record = read_record(folder / "sections" / "parts.json")
        record["model"]["name"] = ALL
        write_record(folder / "sections" / "parts.json", record)
    shown(opened(folders[0] / "report.html", turns=6))
    _told(trust, "reports side by side", shown(opened(write_side_by_side(folders, tmp_path / "both", texts=texts))))


def test_the_viewer(opened: Any, tiny: Model, trust: Callable[..., None]) -> None:
    count = 0
    for payload in PAYLOADS:
        length = len(tiny.encode(payload))
        seen = mechrep.view(tiny, payload, [{payload: np.linspace(-1, 1, length)}, "surprisal"])
        text = opened(seen.to_html())
        count += plain(payload) in plain(text)
        opened(f"<body>{seen.to_fragment(assets=False)}</body>")
    assert count == len(PAYLOADS)
    _told(trust, "the viewer", count)


def test_what_a_notebook_shows(opened: Any, tiny: Model, trust: Callable[..., None]) -> None:
    frame = pd.DataFrame({"id": PAYLOADS, "source": PAYLOADS, ALL: PAYLOADS})
    rows = [[0, 5 + i, 6] for i in range(len(PAYLOADS))]
    corpus = mechrep.Corpus.from_tokens(rows, model=tiny, frame=frame)
    texts = mechrep.Corpus.from_texts(list(PAYLOADS), model=tiny)
    circuits = [mechrep.Circuit(one, heads=[(0, 1)], found=one, provenance={one: one}) for one in PAYLOADS]
    result = mechrep.attention_sinks(tiny, texts)
    named = dataclasses.replace(result, provenance=provenance(ALL))
    compared = compare(tiny, texts.select(range(4)), {"baseline": None, PAYLOADS[0]: mechrep.Heads([(0, 0)])},
                       max_new_tokens=4, progress=False)  # fmt: skip
    parts = [corpus, texts, *circuits, named, compared, tiny, example_effects()]
    page = "\n".join(f"<div>{one._repr_html_()}</div>" for one in parts)
    _told(trust, "what notebooks show", shown(opened(f'<meta charset="utf-8"><body>{page}</body>')))


def _told(trust: Callable[..., None], where: str, count: int) -> None:
    what = f"harmful names and texts in {where}, in a browser: text, nothing run, nothing loaded"
    trust(
        section="security", what=what, asked=f"all {len(PAYLOADS)}", measured=str(count), holds=count == len(PAYLOADS)
    )
