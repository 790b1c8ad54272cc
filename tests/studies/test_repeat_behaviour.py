"""Repeat behaviour beside a plain greedy loop over the bare Hugging Face model, with neurons zeroed in its weights."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from mechrep.ablation.score import score_tokens
from mechrep.ablation.sink_outcomes import SinkOnRepeats
from mechrep.ablation.study import Controls
from mechrep.errors import InputError
from mechrep.interventions.ops import Neurons, SinkPatch
from mechrep.models.anatomy import Site
from mechrep.models.load import load_model
from mechrep.run import Run
from mechrep.studies.repeat_behaviour import repeat_behaviour, repeat_behaviour_figure
from mechrep.studies.sink_ablation import sink_conditions
from mechrep.text.stimuli import repeated_tokens
from tests.planted.circuits import induction_circuit
from tests.tiny_models import D_VOCAB, N_CTX, N_LAYERS, PARTS, fresh, tiny_tokenizer

ABLATED = [*((1, neuron) for neuron in range(0, 40, 2)), (2, 0)]


def answer(module: Any, ids: list[int], new: int) -> tuple[float, bool, int]:
    """Probability of the last token once more, whether it is the best, and how many copies follow greedily."""
    logits = module(torch.tensor([ids])).logits[0, -1]
    token, run = ids[-1], 0
    first = (float(logits.softmax(-1)[token]), int(logits.argmax()) == token)
    while run < new and int(module(torch.tensor([ids])).logits[0, -1].argmax()) == token:
        ids, run = [*ids, token], run + 1
    return (*first, run)


def repeater(family: str) -> Any:
    """A random model that likes to say what it has just read: its blocks are quiet beside its embedding."""
    module = fresh(family)
    module.get_output_embeddings().weight.copy_(module.get_input_embeddings().weight)
    if family == "gpt2":  # tied
        module.get_input_embeddings().weight.mul_(3)
    for layer in range(N_LAYERS):
        for part in ("mlp_output", "attention_output"):
            for parameter in PARTS[family].of(module, part, layer).parameters():
                parameter.mul_(0.15)
    return module


@pytest.mark.parametrize("family", ["llama_gqa", "gpt2"])
def test_numbers_are_those_of_a_greedy_loop(family: str) -> None:
    module = repeater(family)
    without: Any = copy.deepcopy(module)
    for layer, neuron in ABLATED:
        weight: Any = PARTS[family].of(without, "mlp_output", layer).weight
        (weight[neuron] if family == "gpt2" else weight[:, neuron]).zero_()
    tokens, counts, new = [5, 9, 50], [1, 3, 9], 6
    conditions = {"without": Neurons(ABLATED, "zero", site=Site.MLP_POST, when="all")}
    run = Run(batch_size=4, progress=False)
    effects = repeat_behaviour(load_model(module), tokens, counts, conditions, new_tokens=new, run=run)
    assert [one.name for one in effects.conditions] == ["baseline", "without"]
    assert effects.units[0] == ["5", "9", "50"]
    seen = set()
    for row, witness in enumerate((module, without)):
        for n in counts:
            found = {name: effects.of(name, n)[row] for name in ("p_next", "continues", "run", "abandoned")}
            for t, token in enumerate(tokens):
                p_next, top, written = answer(witness, [0, *[token] * n], new)
                assert found["p_next"][t] == pytest.approx(p_next, rel=1e-3, abs=1e-6)
                assert bool(found["continues"][t]) == top == (found["run"][t] > 0)
                assert int(found["run"][t]) == written and bool(found["abandoned"][t]) == (written < new)
                seen.add(written)
    assert len(seen) > 1, "models that always or never repeat would prove little"
    assert abs(effects.effect_of("p_next", 9)[1]).max() > 1e-3


def test_the_reference_view_gives_the_same_and_starts_may_differ() -> None:
    model = load_model(repeater("llama"))
    edits = {"late": Neurons(ABLATED, "zero", when="last"), "all": Neurons(ABLATED, "zero", when="all")}
    fast = repeat_behaviour(model, [5, 17], [1, 4], edits, new_tokens=3)
    alone = repeat_behaviour(model, [5, 17], [1, 4], {"all": edits["all"]}, new_tokens=3)
    torch.testing.assert_close(alone.values, fast.values[:, [0, 2]], rtol=1e-4, atol=1e-6)
    model.plain = None
    slow = repeat_behaviour(model, [5, 17], [1, 4], edits, new_tokens=3)
    torch.testing.assert_close(slow.values, fast.values, rtol=1e-3, atol=1e-5)


def test_without_bos_the_first_repetition_is_the_first_position() -> None:
    module = repeater("gpt2")
    effects = repeat_behaviour(load_model(module), [7], [2], bos=False, new_tokens=2)
    assert effects.of("p_next", 2)[0, 0] == pytest.approx(answer(module, [7, 7], 2)[0], rel=1e-3)


def test_a_chat_asks_for_the_word_and_the_repetitions_begin_the_answer(tmp_path: Path) -> None:
    module, tokenizer = repeater("llama"), tiny_tokenizer(tmp_path)
    model = load_model(module, tokenizer=tokenizer)
    with pytest.raises(InputError, match="chat template"):
        repeat_behaviour(model, [5], [1], prompt="chat")
    with pytest.raises(InputError, match="word"):
        repeat_behaviour(model, [5], [1], prompt="say it")
    tokenizer.chat_template = "<bos> {% for m in messages %}w9 {{ m.content }} {% endfor %}w10"
    effects = repeat_behaviour(model, [5, 17], [1, 4], prompt="w20 {word} w21", new_tokens=2)
    for t, token in enumerate((5, 17)):
        for n in (1, 4):
            p_next, _, run = answer(module, [0, 9, 20, token, 21, 10, *[token] * n], 2)
            assert effects.of("p_next", n)[0, t] == pytest.approx(p_next, rel=1e-3, abs=1e-6)
            assert int(effects.of("run", n)[0, t]) == run


def test_texts_are_written_under_the_first_draws_only() -> None:
    model, run = load_model(fresh("llama")), Run(effort="quick", progress=False)
    cells = sink_conditions(model, [(1, 3), (1, 7)], first_alone=False, controls=Controls(draws=25), run=run)
    effects = repeat_behaviour(model, [5, 17, 20], [1, 4], cells, new_tokens=2, run=run)
    assert effects.of("p_next", 4).shape == (27, 3) and not np.isnan(effects.of("p_next", 4)).any()
    assert np.isnan(effects.of("run", 4)).all(1).sum() == 25 - run.sizes_on(model).regenerated_draws
    summary = effects.summary().set_index(["measure", "copy"])
    assert (
        summary.loc[("p_next", 4), "m"] == 25 and summary.loc[("run", 4), "m"] == run.sizes_on(model).regenerated_draws
    )
    figure = repeat_behaviour_figure(effects)
    assert len(figure.data) == 6 and json.loads(figure.to_json())
    for line, measure in zip((figure.data[0], figure.data[3]), ("p_next", "abandoned"), strict=True):
        assert line.name == "baseline" and list(line.x) == [1, 4]
        np.testing.assert_allclose(line.y, [effects.of(measure, n)[0].mean() for n in (1, 4)])
    assert [line.showlegend for line in figure.data] == [True] * 3 + [False] * 3


def test_names_are_data() -> None:
    model = load_model(fresh("llama"))
    edit = {"<b>%{y}": Neurons([(1, 3)], "zero", when="all")}
    line = repeat_behaviour_figure(repeat_behaviour(model, [5, 9], [1, 2], edit, new_tokens=2)).data[1]
    assert line.name == "&lt;b&gt;%{y}" and "%{y}<br>" not in line.hovertemplate.replace("%{customdata}<br>", "")


@pytest.mark.parametrize(
    "options",
    [
        {"tokens": []},
        {"tokens": [5, 5]},
        {"tokens": [D_VOCAB]},
        {"tokens": 0},
        {"ns": [0]},
        {"ns": [N_CTX]},
        {"new_tokens": 0, "ns": [1]},
        {"interventions": {"baseline": Neurons([(0, 0)])}},
        {"prompt": "loud"},
    ],
)
def test_bad_questions_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        repeat_behaviour(load_model(fresh("llama")), **({"tokens": [5]} | options))


def test_a_planted_copier_repeats_what_it_has_seen_often() -> None:
    """An induction circuit says the token again once it has stood there twice."""
    model = induction_circuit("llama").model
    result = repeat_behaviour(model, [9, 20], [1, 2, 6], new_tokens=3)
    for n in (2, 6):
        assert (result.of("run", n) == 3).all() and not result.of("abandoned", n).any()
    assert (result.of("p_next", 1) < result.of("p_next", 2)).all()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_sink_patch_can_be_a_condition(family: str) -> None:
    """Both views, and the patch by hand: the up-projection held at its level at the first token after BOS."""
    model = load_model(repeater(family))
    patch = SinkPatch(1, range(0, 40, 2))
    fast = repeat_behaviour(model, [5, 17], [1, 6], {"patched": patch}, new_tokens=3)
    for t, token in enumerate((5, 17)):
        for n in (1, 6):
            tokens = torch.tensor([[0, *[token] * n]])
            logits = model.run_with_hooks(tokens, fwd_hooks=patch.hooks(model)).detach()
            share = logits[0, -1].softmax(-1)[token]
            assert float(fast.of("p_next", n)[1, t]) == pytest.approx(float(share), rel=1e-3)
    # With learned positions the repetitions differ, so that holding them changes something; one is its own level.
    np.testing.assert_allclose(*fast.of("p_next", 1), rtol=1e-4, atol=1e-7)
    assert abs(fast.effect_of("p_next", 6)[1]).max() > 1e-5
    model.plain = None
    slow = repeat_behaviour(model, [5, 17], [1, 6], {"patched": patch}, new_tokens=3)
    torch.testing.assert_close(slow.values, fast.values, rtol=1e-3, atol=1e-5)


def test_what_the_ablation_has_read_is_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model, run, tokens, edit = load_model(repeater("llama")), Run(progress=False), [5, 17], Neurons(ABLATED, when="all")
    alone = repeat_behaviour(model, tokens, [1, 4, 6], {"without": edit}, new_tokens=2)
    SinkOnRepeats(model, repeated_tokens(model, tokens, 8, True), 1, run).values([None, edit], False)
    scored = Mock(side_effect=score_tokens)
    monkeypatch.setattr(sys.modules["mechrep.studies.repeat_behaviour"], "score_tokens", scored)
    shared = repeat_behaviour(model, tokens, [1, 4, 6], {"without": edit}, new_tokens=2, run=run)
    assert not scored.called
    torch.testing.assert_close(shared.values, alone.values, rtol=1e-4, atol=1e-6)
    repeat_behaviour(model, tokens, [9], {"without": edit}, new_tokens=2, run=run)
    assert scored.called, "more repetitions than were read"


def test_what_ends_at_once_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the next token is known to be another one there is nothing to write; the numbers are the same."""
    model, tokens, cut = load_model(repeater("llama_gqa")), [5, 17, 9, 30], {"cut": Neurons(ABLATED, when="all")}
    behaviour = sys.modules["mechrep.studies.repeat_behaviour"]
    run_requests, asked = behaviour.run_requests, []
    monkeypatch.setattr(
        behaviour,
        "run_requests",
        lambda model, some, *rest, **kw: asked.append(some) or run_requests(model, some, *rest, **kw),
    )
    effects = repeat_behaviour(model, tokens, [1, 6], cut, new_tokens=3)
    continues = np.stack([effects.of("continues", n) for n in (1, 6)])
    assert len(asked[-1]) == continues.sum() and 0 < continues.sum() < continues.size
    runs = np.stack([effects.of("run", n) for n in (1, 6)])
    assert ((runs > 0) == (continues > 0)).all()


def test_where_no_repetition_is_gone_on_with_nothing_is_written() -> None:
    """A random model that never says a token twice: every run is 0, under every condition."""
    model = load_model(fresh("gpt2", seed=1))
    cut = {"cut": Neurons(ABLATED, when="all")}
    every = repeat_behaviour(model, list(range(3, 40)), [1], cut, new_tokens=2)
    none = [int(unit) for unit, both in zip(every.units[0], every.of("continues", 1).T, strict=True) if not both.any()]
    effects = repeat_behaviour(model, none[:4], [1], cut, new_tokens=2)
    assert len(none) >= 4 and (effects.of("run", 1) == 0).all() and (effects.of("abandoned", 1) == 1).all()
