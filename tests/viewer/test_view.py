"""What a view holds: the numbers of the model, its tokens, its loop, and pages that run nothing that a text brings."""

from __future__ import annotations

import base64
import html
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import mechrep
from mechrep.errors import InputError, MissingPartError, StoreError
from mechrep.interventions import Heads, Neurons
from mechrep.viewer.quantities import heads_of, read_quantities
from mechrep.viewer.show import View, token_texts
from tests.unchecked import as_users_call

LOOP = "The sea was calm, and the sea was calm, and the sea was calm, and the sea was calm, and the sea was calm, and"
MINE = np.arange(47.0) - 30
HOSTILE = "</script><img src=x onerror=alert(1)> <!-- &lt; \u2028 \u202e"


@pytest.fixture(scope="module")
def model() -> mechrep.Model:
    return mechrep.load_model("mechrep-tiny")


@pytest.fixture(scope="module")
def looked(model: mechrep.Model) -> View:
    return mechrep.view(model, LOOP, ["L2N5", "surprisal", "norm L1", "L2H0", {"mine": MINE}], layers=[3])


def test_values_are_those_of_the_cache(model: mechrep.Model, looked: View) -> None:
    cache = mechrep.CorpusCache(model, looked.corpus)
    neuron = cache[mechrep.Site.GATE_ACT, 2][0, :, 5].double().numpy()
    np.testing.assert_allclose(looked.values["L2N5"], neuron, rtol=1e-5, atol=1e-6)
    norms = cache[mechrep.Site.RESID_POST, 1][0].double().norm(dim=-1).numpy()
    np.testing.assert_allclose(looked.values["norm L1"], norms, rtol=1e-5)
    np.testing.assert_array_equal(looked.values["mine"], MINE)
    for layer, head in [(2, 0), (3, 0), (3, 1)]:
        pattern = cache[mechrep.Site.PATTERN, layer][0, head].double().numpy()
        np.testing.assert_allclose(np.sqrt(looked.attention(layer, head)), np.sqrt(pattern), atol=0.5 / 96 + 1e-5)


def test_surprisal_and_attention_are_those_of_transformers(model: mechrep.Model, looked: View) -> None:
    ids = torch.tensor([looked.corpus.row(0)])
    plain = model.plain
    assert plain is not None
    usual = plain.config._attn_implementation
    plain.set_attn_implementation("eager")
    with torch.no_grad():
        out = plain(input_ids=ids, output_attentions=True)
    plain.set_attn_implementation(usual)
    for layer, head in [(2, 0), (3, 1)]:
        np.testing.assert_allclose(looked.attention(layer, head), out.attentions[layer][0, head].numpy(), atol=0.004)
    losses = -out.logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    assert np.isnan(looked.values["surprisal"][0])
    np.testing.assert_allclose(looked.values["surprisal"][1:], losses.double().numpy(), rtol=1e-4, atol=1e-5)


def test_all_is_read_in_one_pass(model: mechrep.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []
    forward = type(model.plain).forward
    monkeypatch.setattr(type(model.plain), "forward", lambda self, *a, **k: passes.append(1) or forward(self, *a, **k))
    mechrep.view(model, LOOP, ["L2N5", "L0N1", "surprisal", "norm L1", "L2H0"], layers=[0, 1, 3])
    assert len(passes) == 1


def test_an_intervention_acts_from_the_onset_that_is_shown(model: mechrep.Model) -> None:
    plain = mechrep.view(model, LOOP, ["L2N5", "surprisal"])
    onset = plain.cycle.onset
    under = mechrep.view(model, LOOP, ["L2N5", "surprisal"], intervention=Neurons("L2N5"))
    assert not under.values["L2N5"][onset:].any() and under.values["L2N5"][: onset - 1].any()
    assert not np.allclose(under.values["surprisal"][onset + 1 :], plain.values["surprisal"][onset + 1 :])
    whole = mechrep.view(model, LOOP, "surprisal", intervention=Heads([(2, 0)], when="all"))
    by_hand = mechrep.CorpusCache(model, plain.corpus, intervention=Heads([(2, 0)], when="all"))
    states = by_hand[mechrep.Site.RESID_POST, 3]
    from mechrep.models.stream import Stream

    with torch.no_grad():
        losses = -Stream(model).logits(states[0, :-1]).log_softmax(-1)
    picked = losses[torch.arange(len(losses)), torch.tensor(plain.corpus.row(0)[1:])]
    np.testing.assert_allclose(whole.values["surprisal"][1:], picked.double().numpy(), rtol=1e-4, atol=1e-5)


def test_the_loop_is_found_taken_from_the_corpus_or_given(model: mechrep.Model) -> None:
    found = mechrep.view(model, LOOP)
    ids = found.corpus.row(0)
    cycle = found.cycle
    assert all(ids[i] == ids[i + cycle.period] for i in range(cycle.start, cycle.end - cycle.period))
    left = mechrep.view(model, LOOP + " then it rained.").cycle
    assert (left.start, left.period) == (cycle.start, cycle.period) and left.end >= cycle.end
    counting = mechrep.view(model, "".join(f"Day {day}: rain. " for day in range(1, 8)).strip())
    assert counting.cycle.period == 8 and counting.cycle.end == len(counting.tokens)
    corpus = mechrep.Corpus.from_texts([LOOP, "no loop"], model=model).with_cycles()
    assert mechrep.view(model, corpus, row=0).cycle == cycle
    assert mechrep.view(model, corpus, row=1).cycle is None
    assert mechrep.view(model, LOOP, cycle=None).cycle is None
    with pytest.raises(InputError, match="cycle"):
        mechrep.view(model, "short", cycle=cycle)


def test_tokens_join_to_the_text(model: mechrep.Model) -> None:
    text = "It was — très — cold: 海 and\n\n\U0001f30a."
    tokens = token_texts(model, model.encode(text))
    assert len(tokens) == len(model.encode(text))
    assert "".join(tokens[1:]) == model.decode(model.encode(text)[1:])


@pytest.mark.parametrize(
    ("asked", "word"),
    [
        ("L2X5", "L18N264"),
        ("L99N0", "layer 99"),
        ("L0H7", "head 7"),
        ("norm L9", "layer 9"),
        ({"mine": [1.0, 2.0]}, "one for each"),
        ({"mine": [[1.0]]}, "one number per token"),
        ({"mine": ["a"]}, "one number per token"),
        ([1.5], "L18N264"),
        (np.arange(3.0), "L18N264"),
        (["surprisal", "surprisal"], "each once"),
    ],
)
def test_what_cannot_be_shown_is_refused(model: mechrep.Model, asked: object, word: str) -> None:
    with pytest.raises(InputError, match=word):
        mechrep.view(model, "the sea", asked)


def test_one_text_at_a_time(model: mechrep.Model) -> None:
    with pytest.raises(InputError, match="row"):
        mechrep.view(model, ["one", "two"])
    with pytest.raises(InputError, match="row 7"):
        mechrep.view(model, ["one", "two"], row=7)


@pytest.mark.parametrize(
    "values",
    [
        np.zeros(5),
        np.full(5, np.nan),
        np.array([1e308, -1e308, 0, 1, 2]),
        np.array([1e-320, 0, 0, 0, 0]),
        np.ones(5) > 0,
    ],
)
def test_values_of_any_size_can_be_shown(model: mechrep.Model, values: np.ndarray) -> None:
    (shown,) = mechrep.view(model, "the sea", {"mine": values}).payload()["quantities"]
    assert shown["low"] < shown["high"] and json.dumps(shown, allow_nan=False)


def test_a_text_of_one_token_and_one_without_quantities(model: mechrep.Model) -> None:
    one = mechrep.view(model, [[5]], ["surprisal", "L2N5", "L2H0"])
    assert np.isnan(one.values["surprisal"]).all() and one.attention(2, 0).tolist() == [[1.0]]
    assert mechrep.view(model, "the sea", (), layers=[1]).payload()["quantities"] == []


def test_names_for_what_has_one() -> None:
    (one,) = read_quantities({"the step": "L18N264"})
    assert (one.name, one.kind, one.layer, one.number) == ("the step", "neuron", 18, 264)


def test_a_page_is_data_and_one_script(model: mechrep.Model, tmp_path: Path) -> None:
    view = mechrep.view(model, HOSTILE, {HOSTILE: np.zeros(len(model.encode(HOSTILE)))})
    view.save(tmp_path / "view.html")
    page = (tmp_path / "view.html").read_text(encoding="utf-8")
    assert page.count("</script>") == 2 and "<img" not in page and "<!--" not in page
    (data,) = re.findall(r'<script type="application/json">(.*?)</script>', page, re.S)
    payload = json.loads(data)
    assert payload["tokens"] == view.tokens and payload["quantities"][0]["name"] == HOSTILE
    markup = re.sub(r"<script.*?</script>", "", page.replace(html.escape(HOSTILE), ""), flags=re.DOTALL)
    assert not re.findall(r"(?:src|href)=|url\(|@import|https?://|<img", markup)
    with pytest.raises(StoreError):
        view.save(tmp_path)


def test_several_on_a_page_share_the_script(looked: View) -> None:
    alone, shared = looked.to_fragment(), looked.to_fragment(assets=False)
    assert shared in alone and "<style" not in shared and "module" not in shared


def test_the_names_of_the_text_and_the_columns_survive(looked: View) -> None:
    payload = looked.payload()
    assert payload["layers"] == [2, 3] and [one["head"] for one in payload["maps"]] == [0, 0, 1]
    assert [one["name"] for one in payload["quantities"]] == ["L2N5", "surprisal", "norm L1", "L2H0", "mine"]
    assert isinstance(payload["cycle"]["start"], int) and json.dumps(payload)
    assert pd.notna(looked.corpus.frame["onset"][0]) and len(repr(looked)) < 400


def test_the_widget_answers_for_a_layer(model: mechrep.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("anywidget", reason="anywidget is not installed: pip install mechrep[widget]")
    view = mechrep.view(model, LOOP, "surprisal")
    widget = view.widget()
    assert widget.payload["layers"] == [0, 1, 2, 3] and widget.payload["maps"] == []
    answer = widget.answer(2)
    shown = mechrep.view(model, LOOP, (), layers=[2]).payload()["maps"]
    assert answer == {"layer": 2, "maps": shown}
    assert "layer 9" in widget.answer(9)["error"]
    monkeypatch.setattr(View, "maps_of", lambda *_: pytest.fail("every layer was read with the first"))
    assert [one["layer"] for one in widget.answer(3)["maps"]] == [3, 3]
    data, _ = widget._repr_mimebundle_()
    assert data["text/html"] == view.to_fragment() and "application/vnd.jupyter.widget-view+json" in data
    sent: list[dict] = []
    widget.send = lambda content, buffers=None: sent.append(content)
    widget._handle_custom_msg({"layer": 2}, [])
    widget._handle_custom_msg("nonsense", [])
    assert sent == [answer]


def test_without_anywidget_the_error_says_what_to_install(looked: View, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "anywidget", None)
    with pytest.raises(MissingPartError, match=re.escape("mechrep[widget]")):
        looked.widget()


def test_what_the_model_holds_for_impossible_has_no_colour_and_the_rest_is_shown(model: mechrep.Model) -> None:
    seen = mechrep.view(model, "the sea and the sea", "surprisal")
    seen.reading.values[0, 3] = float("inf")
    (packed,) = seen.payload()["quantities"]
    numbers = np.frombuffer(base64.b64decode(packed["data"]), "<f2").astype(float) * packed["scale"]
    assert np.isnan(numbers[3]) and np.isfinite(np.delete(numbers, [0, 3])).all()
    with pytest.raises(InputError, match="infinite"):
        mechrep.view(model, "the sea and the sea", {"own": [float("inf")] * len(seen.tokens)}).payload()


def test_more_maps_than_a_page_can_hold_are_refused_before_the_work(
    model: mechrep.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mechrep.viewer.show._MOST_PAIRS", 8 * 20**2 - 1)
    monkeypatch.setattr("mechrep.viewer.show.read_text", None)
    with pytest.raises(InputError, match="fewer layers"):
        mechrep.view(model, [0, *range(30, 49)], "surprisal", layers=range(4))


@pytest.mark.parametrize("row", [1, -1])
def test_a_row_that_is_none(model: mechrep.Model, row: int) -> None:
    with pytest.raises(InputError, match="row"):
        mechrep.view(model, "the sea", row=row)


@pytest.mark.parametrize("layers", ["12", ["1"], [None], [True], 12])
def test_layers_that_are_none_are_refused_in_words(model: mechrep.Model, layers: Any) -> None:
    unchecked = as_users_call(heads_of)  # as users call it, without the checks of types that tests add
    with pytest.raises(InputError, match="layer"):
        unchecked(layers, model.anatomy)


def test_a_mapping_of_two_numbers_is_two_numbers(model: mechrep.Model) -> None:
    assert len(mechrep.view(model, [0, 30], {"x": (1, 2)}).values["x"]) == 2
    with pytest.raises(InputError, match=r"2 values for 'x'.*18N264"):
        mechrep.view(model, "the sea, the sea", {"x": (1, 2)})


def test_any_error_of_the_kernel_is_told(model: mechrep.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("anywidget", reason="anywidget is not installed: pip install mechrep[widget]")
    widget, sent = mechrep.view(model, LOOP, "surprisal").widget(), []

    def fails(*_: Any) -> None:
        raise MemoryError("no room")

    widget.send = lambda content, buffers=None: sent.append(content)
    widget.maps_of = fails
    with pytest.raises(MemoryError):
        widget._asked(widget, {"layer": 2}, [])
    assert sent == [{"layer": 2, "error": "MemoryError: no room"}]
