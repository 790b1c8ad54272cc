"""The training script of mechrep-tiny: batches, recipe, and a stopped run that goes on as if it had not stopped."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from mechrep.errors import InputError
from mechrep.models.load import load_model

pytest.importorskip("scripts", reason="the training recipe is no part of the installed package")

from scripts.train_tiny import data
from scripts.train_tiny.checkpoints import kept_steps
from scripts.train_tiny.optimizers import Optimizers
from scripts.train_tiny.recipe import Recipe, value_at
from scripts.train_tiny.train import train

BOS, EOS, FIRST = 0, 1, 3
SMALL = Recipe(
    n_layers=2,
    n_heads=2,
    d_model=32,
    d_mlp=48,
    d_vocab=300,
    n_ctx=32,
    tokens=40 * 128,
    tokens_per_step=128,
    lengths=((20, 16.0), (40, 32.0)),
    easy_repeat_shares=((10, 0.5), (40, 0.1)),
    longest_periods=((10, 12.0), (40, 20.0)),
    bos_shares=((10, 1.0), (40, 0.5)),
    muon_steps=12,
    warmup_steps=5,
    held_out_share=0.3,
    shortest_document=60,
)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty short documents of three paragraphs."""
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    words = re.findall("[a-z]+", "the old ship sailed slowly over the cold grey sea while seven men sang")
    generator = np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as lines:
        for _ in range(40):
            paragraphs = [" ".join(generator.choice(words, 20)) + "." for _ in range(3)]
            lines.write(json.dumps({"text": "\n\n".join(paragraphs)}) + "\n")
    return path


def weights_of(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model.safetensors")


def test_a_run_that_was_stopped_goes_on_to_the_same_weights(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train([texts], tmp_path / "whole", SMALL)
    monkeypatch.setattr("scripts.train_tiny.train._SECONDS_BETWEEN_STATES", 0.0)  # a state after every step
    original, left = Optimizers.step, iter(range(25))

    def stop_in_between(self: Optimizers, step: int) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        original(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(Optimizers, "step", stop_in_between)
        with pytest.raises(KeyboardInterrupt):
            train([texts], tmp_path / "stopped", SMALL)
    assert not (tmp_path / "stopped" / "model.safetensors").exists()
    train([texts], tmp_path / "stopped", SMALL)
    whole, resumed = weights_of(tmp_path / "whole"), weights_of(tmp_path / "stopped")
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        torch.testing.assert_close(value, resumed[name], atol=2e-3, rtol=2e-3)
    lines = [(tmp_path / name / "history.jsonl").read_text().splitlines() for name in ("whole", "stopped")]
    steps = [[json.loads(line)["step"] for line in part] for part in lines]
    assert steps[0] == steps[1] == sorted(kept_steps(SMALL.steps))


def test_a_run_can_go_on_from_the_weights_of_another(texts: Path, tmp_path: Path) -> None:
    train([texts], tmp_path / "first", SMALL)
    kept = tmp_path / "first" / "revisions" / "step32.safetensors"
    branch = dataclasses.replace(SMALL, first_step=32)
    train([texts], tmp_path / "branch", branch, start=kept)
    lines = (tmp_path / "branch" / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [32, 40]
    for name, value in load_file(tmp_path / "branch" / "revisions" / "step32.safetensors").items():
        assert torch.equal(value, load_file(kept)[name])
    assert json.loads((tmp_path / "branch" / "recipe.json").read_text())["start"] == kept.name
    for recipe, start in ((SMALL, kept), (branch, None)):
        with pytest.raises(InputError, match="both a file of weights and the step"):
            train([texts], tmp_path / "refused", recipe, start=start)
    assert not (tmp_path / "refused").exists()


def test_what_it_leaves_is_a_model_that_learned_something(texts: Path, tmp_path: Path) -> None:
    train([texts], tmp_path, SMALL)
    model = load_model(str(tmp_path))
    assert (model.anatomy.n_layers, model.anatomy.d_vocab, model.bos_id) == (2, SMALL.d_vocab, BOS)
    history = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert history[0]["held_out_loss"] == pytest.approx(np.log(SMALL.d_vocab), abs=0.3)  # knows nothing
    assert history[-1]["held_out_loss"] < history[0]["held_out_loss"] - 1
    stored = json.loads((tmp_path / "recipe.json").read_text())
    names = {field.name for field in dataclasses.fields(Recipe)}
    assert Recipe.from_dict({name: value for name, value in stored.items() if name in names}) == SMALL
    assert stored["data"] == ["texts.jsonl"]


def test_a_batch_depends_on_recipe_and_step_alone_and_follows_the_schedules() -> None:
    stream = np.random.default_rng(1).integers(FIRST, 300, 5000).astype(np.uint16)
    stream[::50] = EOS
    early, again = (data.training_batch(stream, SMALL, 3, BOS, EOS, FIRST) for _ in range(2))
    assert torch.equal(early, again)
    assert early.shape == (8, 16)
    assert not torch.equal(early, data.training_batch(stream, SMALL, 4, BOS, EOS, FIRST))
    assert bool((early[:, 0] == BOS).all())
    assert data.training_batch(stream, SMALL, 30, BOS, EOS, FIRST).shape == (4, 32)
    late = torch.cat([data.training_batch(stream, SMALL, step, BOS, EOS, FIRST) for step in range(20, 220)])
    share = (late[:, 0] == BOS).double().mean().item()
    assert abs(share - 0.5) < 0.07, "half of the late sequences begin with BOS"
    assert int((late[:, 1:] == BOS).sum()) == 0, "BOS stands at position 0 only"


def test_a_sequence_with_bos_begins_where_a_document_begins() -> None:
    recipe = dataclasses.replace(SMALL, easy_repeat_shares=((1, 0.0),), bos_shares=((1, 1.0),))
    stream = np.random.default_rng(2).integers(FIRST + 1, 300, 4000).astype(np.uint16)
    stream[::40] = EOS
    stream[1::40] = FIRST  # marks the beginnings, and nothing else
    for step in range(20):
        batch = data.training_batch(stream, recipe, step, BOS, EOS, FIRST)
        assert bool((batch[:, 1] == FIRST).all())


@given(st.lists(st.text(alphabet="ab \n", max_size=30), max_size=12), st.integers(1, 60))
def test_paragraphs_are_cut_without_loss(paragraphs: list[str], shortest: int) -> None:
    text = "\n\n".join(paragraphs)
    pieces = data.split_paragraphs(text, shortest)
    assert "\n\n".join(pieces) == text
    assert len(pieces) == 1 or min(map(len, pieces)) >= shortest


def test_easy_repeats_repeat() -> None:
    stream = np.arange(FIRST, 203).astype(np.uint16)
    for seed in range(20):
        row = data.easy_repeats(np.random.default_rng(seed), stream, 64, 20, FIRST, 300)
        periods = [p for p in range(3, 21) if (row[p : 2 * p] == row[:p]).all()]
        assert len(row) == 64
        assert periods, "the first segment comes at least twice, within 64 tokens"


def test_kept_steps_are_log_spaced_from_the_untrained_model_to_the_last() -> None:
    steps = sorted(kept_steps(23_000))
    assert (steps[0], steps[-1]) == (0, 23_000)
    ratios = np.array(steps[2:]) / np.array(steps[1:-1])
    assert len(steps) >= 12
    assert ratios.max() < 2.1, "at least one per doubling"


def test_schedules_and_learning_rate() -> None:
    assert [value_at(SMALL.bos_shares, step) for step in (0, 9, 10, 39, 10_000)] == [1.0, 1.0, 0.5, 0.5, 0.5]
    factors = [SMALL.learning_rate_factor(step) for step in range(SMALL.steps + 1)]
    assert factors[0] == pytest.approx(1 / SMALL.warmup_steps)
    assert max(factors) == 1.0
    assert factors[-1] == 0.0
    assert factors[30:] == sorted(factors[30:], reverse=True)


def test_a_recipe_with_an_unknown_field_is_refused() -> None:
    with pytest.raises(InputError, match="n_layer in a recipe"):
        Recipe.from_dict({"n_layer": 3})
