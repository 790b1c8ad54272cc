"""``TextKindContrast`` against hooks spelled out, on planted and random models; the design, and its tables."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import mechrep
from mechrep.errors import InputError
from mechrep.generation.text_kinds import control_texts, induced_texts, joined_texts, natural_texts
from mechrep.measures.head_scores import score_heads
from mechrep.measures.natural_vs_induced import (
    TextKindContrast,
    TextKindContrastResult,
    confidence_figure,
    contrast_text_kinds,
    lens_figure,
)
from mechrep.measures.text_kind_design import HeadEffects, KindDesign, head_contrast_figure
from mechrep.models.load import load_model
from mechrep.models.model import Model
from mechrep.text.corpus import Corpus
from tests.planted.two_mechanisms import prompts, two_mechanisms
from tests.tiny_models import N_HEADS, N_LAYERS, fresh, random_tokens

NEW, COPIES = 60, 2
FAMILIES = ("llama_gqa", "gpt2", "gpt_neox", "gemma2")


def planted_conditions() -> list[Corpus]:
    model, listed = two_mechanisms().model, prompts(two_mechanisms().model, 4)
    builders = (natural_texts, induced_texts, control_texts)
    return [build(model, listed, max_new_tokens=NEW) for build in builders]


@functools.cache
def planted() -> TextKindContrastResult:
    return contrast_text_kinds(two_mechanisms().model, planted_conditions(), copies=COPIES)


@functools.cache
def random_model(family: str) -> Model:
    return load_model(fresh(family, seed=5))


@functools.cache
def random_texts(family: str) -> Corpus:
    """Made-up conditions: three cycles in three places, one with a seam, and a text without a cycle."""
    rows, tokens = [], random_tokens(4, 20, seed=7).tolist()
    places = [(2, 5), (1, 4), (0, 3)]
    for (start, period), row in zip(places, tokens, strict=False):
        rows.append([*row[:start], *row[start : start + period] * (COPIES + 1)])
    rows.append(tokens[3][:12])
    corpus = Corpus.from_tokens(rows, model=random_model(family))
    return corpus.with_columns(
        start=[2, 1, 0, None], period=[5, 4, 3, None], onset=[7, 5, 3, None], prompt_length=[7, 9, 3, 6],
        text_kind=["natural", "induced", "natural", "control"], builder=["n", "i", "n", "c"],
        prompt=["p", "p", "q", "r"], seam=[False, True, False, False],
    )  # fmt: skip


# --- every number by hand ------------------------------------------------------------------------------------------


def by_hand(model: Model, ids: list[int], place: int) -> dict[str, Any]:
    """Facts and attribution of one predicted token, from TransformerLens' own hooks and Hugging Face's own modules."""
    with torch.no_grad():
        logits, cache = model.tl.run_with_cache(torch.tensor([ids]))
    scores, token = logits[0, place - 1].double(), ids[place]
    others = scores.clone()
    others[token] = -torch.inf
    rival = int(others.argmax())
    log_p = scores.log_softmax(-1)
    stream = cache[f"blocks.{N_LAYERS - 1}.hook_resid_post"][0, place - 1].double()
    weight = model.tl.W_U.double()
    bias = getattr(model.tl.unembed, "b_U", None)
    difference = weight[:, token] - weight[:, rival]
    norm = model.tl.ln_final

    def through(vector: Tensor) -> float:
        """The final norm is affine once its scale is frozen: f(x) for the whole stream, minus f(x - vector)."""
        centred = vector - vector.mean() if model.anatomy.norm.startswith("LN") else vector
        whole = stream - stream.mean() if model.anatomy.norm.startswith("LN") else stream
        out, zero = (norm(v.float()[None, None])[0, 0].double() for v in (stream, torch.zeros_like(stream)))
        gain_over_scale = torch.where(whole.abs() > 1e-9, (out - zero) / whole, 0.0)
        return float((centred * gain_over_scale) @ difference)

    heads = np.zeros((N_LAYERS, N_HEADS))
    mlps = np.zeros(N_LAYERS)
    for layer in range(N_LAYERS):
        z = cache[f"blocks.{layer}.attn.hook_z"][0, place - 1].double()
        for head in range(N_HEADS):
            heads[layer, head] = through(z[head] @ model.tl.blocks[layer].attn.W_O[head].double())
        mlps[layer] = through(cache[f"blocks.{layer}.hook_mlp_out"][0, place - 1].double())
    return {
        "log_probability": float(log_p[token]),
        "entropy": float(-(log_p.exp() * log_p).sum()),
        "rank": float(1 + (scores > scores[token]).sum()),
        "logit_difference": float(scores[token] - scores[rival]),
        "unembedding_bias": 0.0 if bias is None else float(bias[token] - bias[rival]),
        "heads": heads,
        "mlps": mlps,
    }


def expected_places(corpus: Corpus, text: int) -> dict[int, list[int]]:
    """Copy to predicted positions, written out: everything but seams and position 0."""
    facts = corpus.frame.iloc[text]
    if text == 3:
        return {0: list(range(6, 12))}
    start, period = int(facts["start"]), int(facts["period"])
    return {
        k: [
            start + k * period + j
            for j in range(period)
            if start + k * period + j > 0 and not (facts["seam"] and j == 0)
        ]
        for k in range(COPIES + 1)
    }


@pytest.mark.parametrize("family", ["llama_gqa", "gpt2", "gpt_neox"])
def test_every_mean_is_that_of_one_token_at_a_time(family: str) -> None:
    model, corpus = random_model(family), random_texts(family)
    result = mechrep.CorpusCache(model, corpus).run(TextKindContrast(model, copies=COPIES))
    for text in range(len(corpus)):
        places = expected_places(corpus, text)
        for copy in range(COPIES + 1):
            assert int(result.counts[text, copy]) == len(places.get(copy, []))
            if copy not in places:
                assert result.of("entropy")[text, copy].isnan()
                continue
            rows = [by_hand(model, corpus.row(text), place) for place in places[copy]]
            for name in ("log_probability", "entropy", "rank", "logit_difference"):
                mean = np.mean([row[name] for row in rows])
                assert abs(float(result.of(name)[text, copy]) - mean) < 1e-3, name
            for name in ("heads", "mlps"):
                mean = np.mean([row[name] for row in rows], axis=0)
                assert np.abs(getattr(result, name)[text, copy].numpy() - mean).max() < 1e-3, name
    assert float(result.heads.nan_to_num(0.0).abs().max()) > 0.1


# TransformerLens does not fold the norms behind Gemma 2's attention.
@pytest.mark.parametrize(
    ("family", "folded"),
    [(name, fold) for name in FAMILIES for fold in (False, True) if (name, fold) != ("gemma2", True)],
)
def test_parts_sum_to_the_logit_difference(family: str, folded: bool) -> None:
    model, corpus = load_model(fresh(family, seed=5)), random_texts(family)
    if folded:
        model.enable_compatibility_mode()
    result = mechrep.CorpusCache(model, corpus).run(TextKindContrast(model, copies=COPIES))
    assert result.residual() < 1e-4 and float(result.of("logit_difference").nan_to_num(0.0).abs().max()) > 0.5
    raw = mechrep.CorpusCache(random_model(family), corpus).run(TextKindContrast(random_model(family), copies=2))
    same = (result.of("log_probability") - raw.of("log_probability")).abs().nan_to_num(0.0).max()
    assert float(same) < 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_probabilities_are_those_of_the_model_itself(family: str) -> None:
    """The plain Hugging Face module with its own caps, not the pieces that attribution puts together."""
    model, corpus = random_model(family), random_texts(family)
    result = mechrep.CorpusCache(model, corpus).run(TextKindContrast(model, copies=COPIES))
    for text in range(len(corpus)):
        with torch.no_grad():
            log_p = model.plain(torch.tensor([corpus.row(text)])).logits[0].double().log_softmax(-1)
        for copy, places in expected_places(corpus, text).items():
            mean = np.mean([float(log_p[place - 1, corpus.row(text)[place]]) for place in places])
            assert abs(float(result.of("log_probability")[text, copy]) - mean) < 1e-3
            assert abs(float(result.lens[text, copy, -1]) - mean) < 1e-3


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_heads_are_columns_of_the_output_projection_and_not_slices_of_its_output(family: str) -> None:
    """Zeroed ``z`` is a head without its columns; the same slice of the attention's output is something else."""
    module = fresh(family, seed=5)
    model, tokens = load_model(module), random_tokens(2, 12, seed=1)
    layer, head, width = 1, 2, model.anatomy.d_head
    part = slice(head * width, (head + 1) * width)

    def cut(name: str, index: Any) -> Tensor:
        def hook(activation: Tensor, hook: Any = None) -> Tensor:
            activation = activation.clone()
            activation[index] = 0.0
            return activation

        with torch.no_grad():
            return model.tl.run_with_hooks(tokens, fwd_hooks=[(f"blocks.{layer}.{name}", hook)])

    by_head = cut("attn.hook_z", (slice(None), slice(None), head))
    by_slice = cut("hook_attn_out", (slice(None), slice(None), part))
    other = fresh(family, seed=5)
    attention = {"llama": "self_attn.o_proj", "gpt_neox": "attention.dense"}[family]
    stack = {"llama": "model.layers", "gpt_neox": "gpt_neox.layers"}[family]
    with torch.no_grad():
        projection: Any = other.get_submodule(f"{stack}.{layer}.{attention}")
        projection.weight[:, part] = 0.0
        columns, clean = other(tokens).logits, module(tokens).logits
    assert (by_head - columns).abs().max() < 1e-4 and (clean - columns).abs().max() > 0.1
    effect, of_slice = (clean - columns).flatten(), (clean - by_slice).flatten()
    assert torch.nn.functional.cosine_similarity(effect, of_slice, dim=0) < 0.7


# --- the planted model ---------------------------------------------------------------------------------------------


def test_induced_copying_is_written_by_the_planted_head_and_the_natural_loop_by_the_mlp() -> None:
    model, result = two_mechanisms(), planted()
    effects, head = result.head_effects(), two_mechanisms().heads[1]
    induced, natural = effects.mean("induced"), effects.mean("natural")
    assert 9.9 < induced[head] < 10.1 and np.abs(natural).max() < 1e-6
    assert np.abs(np.delete(induced.ravel(), head[0] * 4 + head[1])).max() < 1e-6
    parts = result.parts_frame().query("part == 'mlp'").set_index(["text_kind", "layer"])["value"]
    assert parts["natural", model.mlp] > 15 and abs(parts["induced", model.mlp]) < 0.01
    frame = effects.contrast()
    assert (frame["layer"][0], frame["head"][0]) == head and frame["q"][0] == frame["q"].min()
    assert frame["D"][0] > 4.9 and (frame["D"][1:].abs() < 1e-6).all() and (frame["p"][1:] == 1).all()
    assert effects.compare(2, swaps=20)["shared_top"].value == 0 and result.residual() < 1e-4
    assert result.groups == {"natural": 4, "induced": 4, "control": 4}


def test_confidence_rises_with_the_first_cycle_shown() -> None:
    frame = planted().to_frame().set_index(["measure", "text_kind", "copy"])["value"]
    for condition in ("natural", "induced"):
        assert frame["probability", condition, 0] < 0.9 < 0.99 < frame["probability", condition, 1]
        assert frame["entropy", condition, 1] < 0.1 < 0.9 < frame["entropy", condition, 0]
        assert frame["correct", condition, 2] == 1.0
    assert frame["correct", "control", 0] == 1.0, "a control's tokens are the model's own"
    lens = planted().lens_frame().query("copy == 1").set_index(["text_kind", "layer"])["value"]
    for condition in ("natural", "induced"):  # neither mechanism has spoken before the last layer
        assert lens[condition, 1] < -1 < -0.1 < lens[condition, 2]


def test_merged_halves_are_the_whole_and_a_saved_result_is_itself(tmp_path: Path) -> None:
    model = two_mechanisms().model
    corpus = joined_texts(*planted_conditions(), n_ctx=model.anatomy.n_ctx, copies=COPIES)
    whole = planted()
    for store in (None, tmp_path / "store"):
        again = mechrep.CorpusCache(model, corpus, batch_size=3, store=store).run(TextKindContrast(model, copies=2))
        for name in ("measures", "heads", "mlps", "lens"):
            assert torch.allclose(getattr(again, name), getattr(whole, name), atol=1e-4, equal_nan=True)
    whole.save(tmp_path / "result")
    loaded = TextKindContrastResult.load(tmp_path / "result")
    assert torch.equal(loaded.counts, whole.counts) and loaded.to_frame().equals(whole.to_frame())


def test_two_builders_of_one_condition_are_never_pooled() -> None:
    model, listed = two_mechanisms().model, prompts(two_mechanisms().model, 4)
    both = [induced_texts(model, listed, 2, what, max_new_tokens=NEW) for what in ("text", "cycle")]  # pyright: ignore
    result = contrast_text_kinds(model, both, copies=1)
    assert set(result.groups) == {"icl_from_nonrepeating(2)", "icl_from_cycle(2)"}
    with pytest.raises(InputError, match="two kinds"):
        result.head_effects().contrast()


def test_overlap_with_known_heads() -> None:
    scores = score_heads(two_mechanisms().model, n=9, sequences=4)
    given = {name: scores.of(name) for name in ("induction", "previous_token")}
    overlap = planted().head_effects().overlap(given, 1).set_index(["text_kind", "score"])["shared"]
    assert overlap["induced", "induction"] == 1 and overlap["induced", "previous_token"] == 0
    assert overlap["natural"].max() == 0
    with pytest.raises(InputError, match="same model"):
        made_up = HeadEffects(np.zeros((2, 3, 2)), ["induced", "natural"], ["p", "p"], "made up")
        made_up.overlap(given, 1)


def test_swapped_planted_effects_vanish_too() -> None:
    table = planted().head_effects().swapped(1).contrast()
    assert ((table["D_low"] <= 1e-9) & (table["D_high"] >= -1e-9)).all()


def test_planted_effects_are_as_concentrated_as_can_be() -> None:
    table = planted().head_effects().concentration().set_index(["text_kind", "measure"])["value"]
    assert table["induced", "effective_heads"] == pytest.approx(1.0) and np.isnan(table["natural", "gini"])


# --- figures -------------------------------------------------------------------------------------------------------


def test_confidence_is_drawn_by_cycles_shown() -> None:
    figure: Any = confidence_figure(planted())
    frame = planted().to_frame()
    lines = [trace for trace in figure.data if trace.mode == "lines+markers"]
    assert len(lines) == 3 * 3 and {line.name for line in lines} == {"natural", "induced", "control"}
    first = next(line for line in lines if line.name == "induced")
    expected = frame.query("text_kind == 'induced' and measure == 'probability'")["value"]
    assert list(first.y) == pytest.approx(expected.tolist()) and list(first.x) == [0, 1, 2]
    assert "mechrep" not in figure.layout.title.text and "4 texts" in figure.layout.title.subtitle.text


def test_the_lens_is_drawn_by_layer() -> None:
    figure: Any = lens_figure(planted())
    lines = {trace.name: trace for trace in figure.data if trace.mode == "lines+markers"}
    assert set(lines) == {"natural", "induced", "control"}
    assert len(lines["natural"].y) == two_mechanisms().model.anatomy.n_layers + 1


def test_head_maps_show_both_conditions_and_what_tells_them_apart() -> None:
    effects = planted().head_effects().select([one for one in planted().ids if "control" not in one])
    figure: Any = head_contrast_figure(effects)
    induced, natural, difference = (np.array(trace.z) for trace in figure.data)
    assert np.allclose(induced, effects.mean("induced")) and np.allclose(natural, effects.mean("natural"))
    assert np.allclose(difference, (induced - natural) / 2, atol=1e-9)
    assert all(trace.zmin == -trace.zmax for trace in figure.data)
    odd = HeadEffects(effects.values, effects.text_kinds, effects.clusters, "<b>made up</b>")
    escaped: Any = head_contrast_figure(odd)
    assert "<b>" not in escaped.layout.title.subtitle.text


# --- bad input -----------------------------------------------------------------------------------------------------


def test_bad_input() -> None:
    model, result = two_mechanisms().model, planted()
    with pytest.raises(InputError, match="natural_texts"):
        mechrep.CorpusCache(model, prompts(model, 1)).run(TextKindContrast(model))
    with pytest.raises(InputError, match="copies=0"):
        TextKindContrast(model, copies=0)
    with pytest.raises(InputError, match="'surprise'"):
        result.of("surprise")
    with pytest.raises(InputError, match="copy 9"):
        result.head_effects(9)
    with pytest.raises(InputError, match="heads"):
        result.top(100)
    with pytest.raises(InputError, match="two kinds"):
        KindDesign(["a", "a", "b"], ["p", "p", "q"], "a", "a")
    with pytest.raises(InputError, match="without texts"):
        result.head_effects().mean("other")
