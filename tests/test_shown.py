"""How objects show themselves: one short line in a terminal, a table in a notebook, a figure that stays visible."""

from __future__ import annotations

import dataclasses
import importlib.util
import shutil
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from torch import Tensor

import mechrep
from mechrep.ablation.circuit import Circuit
from mechrep.ablation.effects import example_effects
from mechrep.drawn import Figure, printed
from mechrep.errors import InputError, StoreError
from mechrep.figures import new_figure, save_figure
from mechrep.interventions import Experts, Heads, Neurons, SinkPatch, resample
from mechrep.pictures.axes import plain_label
from mechrep.provenance import Provenance
from mechrep.results import Result, Shown
from mechrep.saved import import_results
from mechrep.sections import Section
from mechrep.text.corpus import Corpus

LONGEST = 400
EVIL = "<script>alert(1)</script>" * 40


def subclasses(base: type) -> Iterator[type]:
    for one in base.__subclasses__():
        if one.__module__.startswith("mechrep."):
            yield one
            yield from subclasses(one)


import_results()
CLASSES = sorted(set(subclasses(Shown)) - {Result}, key=lambda one: one.__name__)


def filled(kind: type) -> Any:
    """An object of this class with large values of about the right types, whatever its own checks would say."""
    one = object.__new__(kind)
    for field in dataclasses.fields(kind):
        hint = typing.get_type_hints(kind)[field.name]
        origin = typing.get_origin(hint) or hint
        value: Any = EVIL
        if hint is Provenance:
            value = Provenance({"name": EVIL, "fingerprint": "f"}, {"texts": 1_000_000}, {})
        elif hasattr(hint, "dim_str"):
            value = torch.rand([7 + place for place in range(len(hint.dim_str.split()))])
        elif isinstance(origin, type) and issubclass(origin, Mapping):
            value = {EVIL: list(range(10_000))}
        elif isinstance(origin, type) and issubclass(origin, Sequence) and origin is not str:
            value = [getattr(kind, "ranked_by", ""), *[EVIL] * 10_000]
        elif origin in (int, float, bool):
            value = origin(origin is not bool)
        object.__setattr__(one, field.name, value)
    return one


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_result_is_one_short_line(kind: type) -> None:
    line = repr(filled(kind))
    assert len(line) <= LONGEST and "\n" not in line and line.startswith(kind.__name__)
    assert "tensor(" not in line


@pytest.fixture(scope="module")
def model() -> mechrep.Model:
    return mechrep.load_model("mechrep-tiny")


@pytest.fixture(scope="module")
def corpus(model: mechrep.Model) -> Corpus:
    rows = [[0, *range(9, 49), *[40, 41, 42, 43] * 9], [0, *range(60, 90)]]
    return Corpus.from_tokens(rows, model=model).with_cycles()


def test_the_other_objects_are_short_too_and_show_html(model: mechrep.Model, corpus: Corpus) -> None:
    many = [(layer, number) for layer in range(4) for number in range(300)]
    bank = resample(torch.zeros(2, 4, 352))
    evil = Circuit(EVIL, neurons=many, heads=many, layers=[("mlp", n) for n in range(90)], found=EVIL)
    evil_frame = corpus.with_columns(note=EVIL)
    shown: list[Any] = [
        model, evil_frame, corpus[0], mechrep.CorpusCache(model, evil_frame, intervention=Neurons(many, bank)), evil,
        Neurons(many), Heads(many), Experts(many), SinkPatch(0, range(300)),
        Neurons(many) + Heads(many) + SinkPatch(1, 2),
        Circuit("all", layers=[("mlp", n) for n in range(90)]).intervention(), example_effects(),
        Section(EVIL[:40], example_effects().provenance, {}), mechrep.detect_cycle([0, *list(range(500)) * 3]),
    ]  # fmt: skip
    for one in shown:
        assert len(repr(one)) <= LONGEST and "\n" not in repr(one), repr(one)
        page = one._repr_html_() if hasattr(one, "_repr_html_") else ""
        assert "<script" not in page and len(page) < 20_000
    assert all(hasattr(one, "_repr_html_") for one in shown[:2] + shown[3:12])


def test_a_corpus_shows_its_words_and_its_loop(model: mechrep.Model, corpus: Corpus, tmp_path: Path) -> None:
    page = corpus._repr_html_()
    assert model.decode(corpus.row(0)[-20:-16]) in page and "⟪" in page and "looping" in page
    text = corpus[0]
    assert (list(text.ids), text.text) == (corpus.row(0), model.decode(corpus.row(0))) and str(text) == text.text
    assert "".join(text.tokens) == text.text and len(text.tokens) == len(text.ids)
    assert [list(one.ids) for one in corpus] == [corpus.row(0), corpus.row(1)] and corpus[-1].ids == list(corpus)[1].ids
    assert corpus.decode(1) == corpus.decode(1, model)
    corpus.save(tmp_path / "texts.parquet")
    assert Corpus.load(tmp_path / "texts.parquet", model)[0].text == text.text
    joined = Corpus.concatenate(Corpus.load(tmp_path / "texts.parquet"), corpus.with_columns(id=["a", "b"]))
    assert joined[0].text == joined[2].text == text.text
    bare = Corpus.from_tokens([[1, 2]])
    assert "<td>tokens-0</td>" in bare._repr_html_() and repr(bare[0]) == "Text([1, 2])"
    for wrong in (2, -3):
        with pytest.raises(IndexError):
            corpus[wrong]
    with pytest.raises(InputError, match="model="):
        bare.decode(0)


def test_texts_of_ones_own_are_told_apart_once_cycles_are_marked(corpus: Corpus) -> None:
    assert corpus.frame["condition"].tolist() == ["looping", "loop_free"]
    assert corpus.where(condition="looping").row(0) == corpus.row(0)
    given = corpus.with_columns(condition=["icl", "loop_free"]).with_cycles()
    assert given.frame["condition"].tolist() == ["icl", "loop_free"], "a word of the user's own stays"
    again = corpus.with_columns(condition="looping").with_cycles()
    assert again.frame["condition"].tolist() == ["looping", "loop_free"]


@pytest.mark.parametrize(
    "analyzer", [mechrep.AttentionSinks, mechrep.SinkNorms, mechrep.RepetitionNeurons, mechrep.TokenInformation]
)
def test_results_have_a_table_and_a_figure(model: mechrep.Model, corpus: Corpus, analyzer: Any) -> None:
    if analyzer is mechrep.TokenInformation:
        result: Result = example_effects()
    else:
        result = mechrep.CorpusCache(model, corpus).run(analyzer())
    assert result._repr_html_().count("<tr>") <= 11 and "overflow-x" in result._repr_html_()
    figure = result.plot()
    assert isinstance(figure, Figure) and len(repr(figure)) <= LONGEST and len(figure.data) > 0


def test_any_result_along_axes_has_a_figure(model: mechrep.Model, corpus: Corpus) -> None:
    sinks = mechrep.CorpusCache(model, corpus).run(mechrep.AttentionSinks())
    figure: Any = Result.plot(sinks)
    torch.testing.assert_close(torch.tensor(figure.data[0].z), sinks.alpha.double())
    assert mechrep.ov_scores(model).plot().data


# --- figures ---------------------------------------------------------------------------------------------------


def test_a_figure_is_saved_by_the_ending_of_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "plotly" in save_figure(new_figure(), tmp_path / "x.html").read_text(encoding="utf-8")
    with pytest.raises(StoreError, match="a place to write"):
        save_figure(new_figure(), tmp_path / "missing" / "x.html")
    with pytest.raises(InputError, match=r"x\.bmp"):
        save_figure(new_figure(), tmp_path / "x.bmp")
    monkeypatch.setattr("mechrep.drawn.can_draw", lambda: False)
    with pytest.raises(InputError, match=r"mechrep\[figures\]"):
        example_effects().save_figure(tmp_path / "x.svg")
    assert not (tmp_path / "x.svg").exists()


def test_a_notebook_gets_a_picture_beside_the_live_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plotly.io.renderers.default", "plotly_mimetype")
    monkeypatch.setattr("mechrep.drawn.can_draw", lambda: False)  # it needs no kaleido
    bundle = example_effects().plot()._repr_mimebundle_()
    assert set(bundle) == {"application/vnd.plotly.v1+json", "text/plain", "image/svg+xml"}
    tree = ElementTree.fromstring(bundle["image/svg+xml"])
    assert [one.tag for one in tree.iter()].count("{http://www.w3.org/2000/svg}svg") > 1
    assert plain_label(example_effects().plot().layout.title.text)[:20] in "".join(tree.itertext())
    foreign = new_figure()
    foreign.add_pie(values=[1, 2])
    assert "image/svg+xml" not in foreign._repr_mimebundle_()


def test_without_a_browser_a_file_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = pytest.importorskip("choreographer.errors", reason="kaleido is not installed: mechrep[figures]")

    def fails(*_: object, **__: object) -> bytes:
        raise errors.ChromeNotFoundError

    monkeypatch.setattr("kaleido.calc_fig_sync", fails)
    monkeypatch.setattr("mechrep.drawn._start_drawing", lambda: None)
    with pytest.raises(InputError, match="kaleido_get_chrome"):
        printed(new_figure(), "svg")


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("kaleido") is None or not shutil.which("chromium"), reason="kaleido or chromium is missing"
)
def test_kaleido_draws(tmp_path: Path) -> None:
    assert "<svg" in example_effects().save_figure(tmp_path / "x.svg").read_text(encoding="utf-8")
    assert (example_effects().save_figure(tmp_path / "x.png")).read_bytes().startswith(b"\x89PNG")


# --- anything that was saved -----------------------------------------------------------------------------------


def test_load_reads_anything_that_was_saved(tmp_path: Path, corpus: Corpus) -> None:
    effects = example_effects()
    effects.save(tmp_path / "effects")
    corpus.save(tmp_path / "texts.parquet")
    circuit = Circuit("mine", heads="L2H0")
    circuit.save(tmp_path / "mine.json")
    Section("neurons", effects.provenance, {"k": 1}).save(tmp_path / "section")
    loaded = mechrep.load(tmp_path / "effects")
    assert type(loaded) is type(effects) and torch.equal(_values(loaded), effects.values)
    texts, mine, section = (mechrep.load(str(tmp_path / name)) for name in ("texts.parquet", "mine.json", "section"))
    assert isinstance(texts, Corpus) and texts.fingerprint() == corpus.fingerprint()
    assert mine == circuit and isinstance(section, Section) and section.fields == {"k": 1}


def _values(result: Any) -> Tensor:
    return result.values


def test_what_nobody_saved_is_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    example_effects().save(tmp_path / "out" / "effects")
    (tmp_path / "other" / "result.json").parent.mkdir()
    (tmp_path / "other" / "result.json").write_text('{"kind": "Stranger"}')
    for path, said in {
        "model": "load_model", "missing": "does not exist", "out": "effects", "other": "Stranger",
    }.items():  # fmt: skip
        with pytest.raises(StoreError, match=said):
            mechrep.load(tmp_path / path)
