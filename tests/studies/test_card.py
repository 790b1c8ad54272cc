"""The card: its numbers against plain forward passes, on planted models, and against what the package says."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import pytest
import torch
from torch import Tensor

import mechrep
from mechrep.ablation.effects import SUPPORTED
from mechrep.errors import InputError
from mechrep.models import tiny
from mechrep.models.model import Model
from mechrep.notation import as_pairs
from mechrep.run import Run
from mechrep.studies.card import (
    SINK_LENGTH,
    CardResult,
    CardRow,
    CardSizes,
    history_figure,
    loss_windows,
    measure_card,
)
from mechrep.text.stimuli import random_repeats, repeated_tokens
from mechrep.text.windows import windows_of_text
from tests.planted.circuits import induction_circuit
from tests.planted.sinks import sink_model
from tests.studies import card_by_hand as by_hand

PERIOD = 50


@pytest.fixture(scope="module")
def model() -> Model:
    return mechrep.load_model("mechrep-tiny")


@pytest.fixture(scope="module")
def card(model: Model, card_sizes: dict[str, int]) -> CardResult:
    return measure_card(model, prompts=8, nulls=0)


@pytest.fixture(scope="module")
def judged(model: Model) -> CardResult:
    return measure_card(model, prompts=8, run=Run(effort="quick", progress=False))


@pytest.fixture(scope="module")
def published() -> pd.DataFrame:
    return tiny.phenomena()


@pytest.fixture(scope="module")
def eager(model: Model) -> Any:
    twin = copy.deepcopy(model.plain)
    assert twin is not None
    twin.set_attn_implementation("eager")
    return twin


def text_windows(model: Model) -> Tensor:
    return windows_of_text(model, tiny.held_out_text(), length=SINK_LENGTH, limit=100).tokens


def test_losses(model: Model, card: CardResult, eager: Any) -> None:
    tokens = loss_windows(model, tiny.held_out_text()).tokens
    loss = by_hand.losses(by_hand.look(eager, tokens), tokens).mean(1)
    assert card.value("held-out loss") == pytest.approx(loss.mean().item(), abs=1e-4)
    gain = torch.tensor(tiny.ngram_losses()) - loss
    assert card.value("5-gram") == pytest.approx(gain.mean().item(), abs=1e-4)


def test_copying_heads(model: Model, card: CardResult, eager: Any) -> None:
    tokens = random_repeats(model, n=PERIOD, sequences=32, seed=0).tokens
    seen = by_hand.look(eager, tokens)
    for measure, scores in (
        ("best head: prefix matching", by_hand.induction(seen, PERIOD)),
        ("best head: mean attention to the token before", by_hand.previous_token(seen)),
    ):
        row = card.row(measure)
        layer, head = divmod(int(scores.argmax()), scores.shape[1])
        assert row.value == pytest.approx(scores.max().item(), abs=1e-5)
        assert row.note == f"L{layer}H{head}"
    loss = by_hand.losses(seen, tokens)
    gain = loss[:, :PERIOD].mean() - loss[:, PERIOD + 1 :].mean()
    assert card.value("loss on the first copy") == pytest.approx(gain.item(), abs=1e-4)


def test_sinks_and_norms(model: Model, card: CardResult, eager: Any) -> None:
    seen = by_hand.look(eager, text_windows(model))
    alpha = by_hand.first_token(seen)
    assert card.value("share of heads") == pytest.approx((alpha > 0.3).float().mean().item(), abs=1e-6)
    assert card.value("best head: mean attention to the first") == pytest.approx(alpha.max().item(), abs=1e-5)
    layer = int(card.row("norm at the first").note.removeprefix("layer "))
    assert card.value("norm at the first") == pytest.approx(by_hand.norm_ratio(seen)[layer].item(), rel=1e-4)


def test_the_neurons_named_make_the_norm(model: Model, card: CardResult, eager: Any) -> None:
    layer = int(card.row("norm at the first").note.removeprefix("layer "))
    row = card.row("share of the excess")
    pairs = as_pairs(row.note.partition(";")[0], "neuron")
    names = [neuron for _, neuron in pairs]
    assert {place for place, _ in pairs} == {layer}

    def cut(_module: Any, args: tuple[Tensor]) -> tuple[Tensor]:
        values = args[0].clone()
        values[..., names] = 0
        return (values,)

    tokens = text_windows(model)
    whole = by_hand.norm_ratio(by_hand.look(eager, tokens))[layer].item()
    handle = eager.model.layers[layer].mlp.down_proj.register_forward_pre_hook(cut)
    rest = by_hand.norm_ratio(by_hand.look(eager, tokens))[layer].item()
    handle.remove()
    assert row.value == pytest.approx(1 - (rest - 1) / (whole - 1), abs=1e-3)


def test_repeated_tokens(model: Model, card: CardResult, eager: Any) -> None:
    row = card.row("share of tokens whose norm")
    layer = int(card.row("norm at the first").note.removeprefix("layer "))
    norms = by_hand.look(eager, text_windows(model)).norms[layer]
    typical, bos = norms[:, 1:].mean().log(), norms[:, 0].mean().log()
    ordinary = [token for token in range(model.anatomy.d_vocab) if token not in model.special_ids]
    tokens = repeated_tokens(
        model, ordinary[::40], loss_windows(model, tiny.held_out_text()).tokens.shape[1] - 1, bos=True
    ).tokens
    moved = (by_hand.look(eager, tokens).norms[layer, :, -1].log() - typical) / (bos - typical)
    low, high = row.low, row.high
    share = (moved >= 0.5).float().mean().item()
    assert low - 0.25 <= share <= high + 0.25, "another sample of the same tokens"


def check_published(card: CardResult, published: pd.DataFrame, *left_out: str) -> None:
    last = published[published["revision"] == tiny.revisions()[-1]].set_index("measure")["value"]
    rows = [row for row in card.rows if row.phenomenon not in left_out]
    for row in rows:
        assert row.value == pytest.approx(float(last[row.measure]), abs=0.01, nan_ok=True), row.measure
    assert len(rows) >= 7


def test_the_package_states_what_is_measured(card: CardResult, published: pd.DataFrame) -> None:
    check_published(card, published, "greedy loops", "language", "repeated token")  # these on more and longer texts


@pytest.mark.slow
def test_the_package_states_what_is_measured_on_all_texts(
    model: Model, published: pd.DataFrame, card_sizes: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, size in card_sizes.items():
        monkeypatch.setattr(f"mechrep.studies.card.{name}", size)
    check_published(measure_card(model, prompts=8, nulls=0), published, "greedy loops")


def test_the_untrained_model_shows_nothing(published: pd.DataFrame) -> None:
    first = published[published["revision"] == "step0"]
    barred = first[first["least"].notna() & (first["phenomenon"] != "greedy loops")]
    assert len(barred) >= 8
    assert not barred["shown"].fillna(value=False).any()


def test_twelve_checkpoints_over_all_of_training(published: pd.DataFrame) -> None:
    revisions = published["revision"].unique().tolist()
    assert revisions == tiny.revisions()
    assert len(revisions) >= 12
    assert revisions[0] == "step0"
    assert {f"step{line['step']}" for line in tiny.history()} >= set(revisions)


@pytest.mark.slow
def test_a_planted_circuit_is_perfect_and_a_planted_sink_is_found() -> None:
    copier = measure_card(induction_circuit("llama_gqa").model, held_out_text=word_text(), prompts=8, nulls=0)
    assert copier.value("best head: prefix matching") > 0.99
    assert copier.value("best head: mean attention to the token before") > 0.99
    sink = measure_card(sink_model("llama").model, held_out_text=word_text(), prompts=8, nulls=0)
    assert sink.value("norm at the first position") > 20
    assert sink.value("share of the excess") > 0.9
    assert sink.value("best head: mean attention to the first") > 0.9
    assert sink.value("share of tokens whose norm") == 1.0


def word_text() -> str:
    """A text of the planted models' words, each in a place of its own."""
    generator = torch.Generator().manual_seed(0)
    return " ".join(f"w{3 + int(torch.randint(60, (1,), generator=generator))}" for _ in range(4000))


def test_more_than_the_upper_bar_is_said_to_be_more_and_not_missing() -> None:
    rows = [CardRow("a", "b", value, least=0.25, most=0.85) for value in (0.1, 0.5, 0.9, math.nan)]
    assert [row.judgement for row in rows] == ["less than 0.25", "reached", "more than 0.85", "not measured"]
    assert CardRow("a", "b", 0.9).judgement == "" and all(row.judgement in row.line for row in rows)


def test_a_large_model_reads_little_and_shows_rows_as_they_come(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mechrep.studies.card.LARGE_WEIGHTS", 10)
    monkeypatch.setattr("mechrep.run.LARGE_WEIGHTS", 10)
    run, shown = Run(effort="quick", progress=False), []
    sizes, least = CardSizes.of(model, run), run.sizes_on(model)
    assert sizes.prompts == least.loops and sizes.copies == least.repeats and sizes.sequences == least.sequences
    card = measure_card(model, prompts=4, nulls=1, run=run, show=shown.append)
    assert [row.measure for row in shown] == [row.measure for row in card.rows]
    assert f"{4 * least.tokens} tokens, {least.repeats - 1} times" in card.row("share of tokens whose norm").n
    assert len(card.row("best head: prefix matching").draws) == 1


def test_rows_know_whether_they_reach_their_bars() -> None:
    assert CardRow("a", "b", 0.5).shown is None
    assert [CardRow("a", "b", value, least=0.25, most=0.85).shown for value in (0.2, 0.25, 0.85, 0.9)] == [
        False,
        True,
        True,
        False,
    ]
    assert CardRow("a", "b", math.nan, least=0.3).shown is False


@pytest.mark.slow
def test_verdicts_come_from_null_models_and_random_neurons(judged: CardResult) -> None:
    frame = judged.to_frame().set_index("measure")
    detected = frame[frame["m"] > 0]
    assert set(detected["verdict"]) == {SUPPORTED} and (detected["m"] == 19).all() and len(detected) == 7
    assert detected["q"].max() <= 0.05 and (detected["value"] > detected["control_high"]).all()
    assert set(frame.loc[frame["m"] == 0, "verdict"]) == {""}
    assert judged.row("share of the excess").controls == "random neurons"
    nothing = CardResult(judged.provenance, [dataclasses.replace(row, draws=()) for row in judged.rows])
    assert set(nothing.to_frame()["verdict"]) == {""}


@pytest.mark.slow
def test_a_null_model_is_not_supported(judged: CardResult) -> None:
    """Each null as if it were the model, beside the other nulls."""
    wrong = 0
    for row in (row for row in judged.rows if row.controls == "null models"):
        for place, value in enumerate(row.draws):
            others = [*row.draws[:place], *row.draws[place + 1 :], row.draws[place - 1]]
            one = dataclasses.replace(row, value=value, low=math.nan, high=math.nan, texts=0, draws=others)
            wrong += CardResult(judged.provenance, [one]).to_frame()["verdict"].iloc[0] == SUPPORTED
    assert wrong <= 6 * 2


def test_an_interrupted_card_goes_on_and_measures_only_what_is_new(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def row(name: str) -> Callable[..., list[CardRow]]:
        def make(*_: Any) -> list[CardRow]:
            calls.append(name)
            if name == "norms" and calls.count(name) == 1:
                raise KeyboardInterrupt
            return [CardRow(name, name, float(len(calls)), draws=[0.0])]

        return make

    for name in ("language", "loops", "copying", "sinks", "norms", "repeated_tokens", "beside"):
        monkeypatch.setattr(f"mechrep.studies.card._Card.{name}", row(name))
    run = Run(store=tmp_path, progress=False)
    with pytest.raises(KeyboardInterrupt):
        measure_card(model, prompts=8, nulls=2, run=run)
    before = list(calls)
    first = measure_card(model, prompts=8, nulls=2, run=run)
    assert calls[len(before) :] == ["norms", "repeated_tokens", "beside", "beside"]
    done = len(calls)
    again = measure_card(model, prompts=8, nulls=2, run=run)
    assert len(calls) == done
    pd.testing.assert_frame_equal(again.to_frame(), first.to_frame())
    measure_card(model, prompts=9, nulls=3, run=run)
    assert calls[done:] == ["loops", "beside"], "other prompts and one null model more cost only themselves"
    measure_card(mechrep.load_model("mechrep-tiny", revision="step0"), prompts=8, nulls=0, run=run)
    assert calls[done + 2 :] == ["language", "loops", "copying", "sinks", "norms", "repeated_tokens"]


@pytest.mark.parametrize("given", ["nothing of the kind", "best head"])
def test_a_row_is_found_by_the_beginning_of_its_measure_only(card: CardResult, given: str) -> None:
    with pytest.raises(InputError, match="rows"):
        card.row(given)


def test_a_layer_that_is_not_there(model: Model) -> None:
    with pytest.raises(InputError, match="layer 9"):
        measure_card(model, sink_layer=9)


def test_a_card_is_saved_and_read_back(card: CardResult, tmp_path: Any) -> None:
    card.save(tmp_path / "card")
    again = CardResult.load(tmp_path / "card")
    pd.testing.assert_frame_equal(again.to_frame(), card.to_frame())


# --- the card over training as a figure -------------------------------------------------------------------------

REVISIONS = ["step0", "step8", "step64"]
TOKENS = {"step0": 0, "step8": 16_384, "step16": 32_768, "step64": 131_072}


def history(revisions: list[str] = REVISIONS) -> pd.DataFrame:
    rows = []
    for number, (measure, least, most) in enumerate([("a < b", 0.25, 0.85), ("open", math.nan, math.nan)]):
        for step, revision in enumerate(revisions):
            value = 0.1 * step + number
            low, high = (value - 0.05, value + 0.05) if number == 0 else (math.nan, math.nan)
            rows.append(("<b>loops</b>", measure, value, low, high, least, most, revision))
    columns = ["phenomenon", "measure", "value", "low", "high", "least", "most", "revision"]
    return pd.DataFrame(rows, columns=columns)


def lines(figure: go.Figure) -> list[go.Scatter]:
    return [trace for trace in figure.data if trace.mode == "lines+markers"]


def bars(figure: go.Figure) -> list[float]:
    return [trace.y[0] for trace in figure.data if trace.line.dash == "dot"]


def test_values_bars_and_places_are_those_of_the_table() -> None:
    figure = history_figure(history(), "my <model>", TOKENS)
    first, second = lines(figure)
    assert list(first.y) == [0.0, 0.1, 0.2] and list(second.y) == [1.0, 1.1, 1.2]
    assert list(first.x) == [8192.0, 16_384.0, 131_072.0], "nothing seen stands left of the first place, at half of it"
    assert bars(figure) == [0.25, 0.85]
    assert all(axis.type == "log" for axis in figure.select_xaxes())
    assert "<b>loops</b>" not in figure.to_json().replace("\\u003c", "<"), "markup in names is shown, not obeyed"
    assert figure.layout.title.subtitle.text == "my &lt;model&gt;"


def test_revisions_without_tokens_stand_side_by_side() -> None:
    figure = history_figure(history(["main", "<i>x</i>"]), "hub/model")
    assert list(lines(figure)[0].x) == ["main", "&lt;i&gt;x&lt;/i&gt;"]
    assert lines(figure)[0].customdata[1][0] == "&lt;i&gt;x&lt;/i&gt;"
    assert all(axis.type != "log" for axis in figure.select_xaxes())
    assert json.loads(figure.to_json())["data"]


def test_one_checkpoint_is_a_figure_too() -> None:
    figure = history_figure(history(["step0"]), "m", TOKENS)
    assert list(lines(figure)[0].x) == [8192.0]
