"""Repeat behaviour beside a plain greedy loop over the bare Hugging Face model, with neurons cut in its weights."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from mechrep.errors import InputError
from mechrep.interventions.ops import Neurons, SinkPatch
from mechrep.measures.sink_neurons import sink_neurons
from mechrep.models.anatomy import Site
from mechrep.models.load import load_model
from mechrep.studies.repeat_behaviour import RepeatBehaviourResult, repeat_behaviour, sink_conditions
from mechrep.text.corpus import Corpus
from tests.analyzers.sinks_by_hand import PROVENANCE, check_equal
from tests.planted.circuits import induction_circuit
from tests.tiny_models import D_VOCAB, N_CTX, N_LAYERS, PARTS, fresh, random_tokens, tiny_tokenizer

CUT = [*((1, neuron) for neuron in range(0, 40, 2)), (2, 0)]


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
def test_numbers_are_those_of_a_greedy_loop(family: str, tmp_path: Path) -> None:
    module = repeater(family)
    cut: Any = copy.deepcopy(module)
    for layer, neuron in CUT:
        weight: Any = PARTS[family].of(cut, "mlp_output", layer).weight
        (weight[neuron] if family == "gpt2" else weight[:, neuron]).zero_()
    tokens, counts, new = [5, 9, 50], [1, 3, 9], 6
    conditions = {"cut": Neurons(CUT, "zero", site=Site.MLP_POST, when="all")}
    result = repeat_behaviour(load_model(module), tokens, counts, conditions, new_tokens=new, batch_size=4)
    assert list(result.conditions) == ["none", "cut"] and list(result.repeats) == counts
    seen = set()
    for row, witness in enumerate((module, cut)):
        for t, token in enumerate(tokens):
            for place, n in enumerate(counts):
                p_next, top, run = answer(witness, [0, *[token] * n], new)
                assert float(result.p_next[row, t, place]) == pytest.approx(p_next, rel=1e-3, abs=1e-6)
                assert bool(result.top_next[row, t, place]) == top == (result.run[row, t, place] > 0)
                assert int(result.run[row, t, place]) == run
                seen.add(run)
    assert len(seen) > 1, "models that always or never repeat would prove little"
    assert (result.p_next[0] - result.p_next[1]).abs().max() > 1e-3
    result.save(tmp_path / "r")
    check_equal(RepeatBehaviourResult.load(tmp_path / "r"), result)


def test_the_reference_view_gives_the_same() -> None:
    model = load_model(repeater("llama"))
    edit = {"late": Neurons(CUT, "zero", when="last")}
    fast = repeat_behaviour(model, [5, 17], [1, 4], edit, new_tokens=3)
    model.plain = None
    check_equal(repeat_behaviour(model, [5, 17], [1, 4], edit, new_tokens=3), fast, rtol=1e-3)


def test_without_bos_the_first_copy_is_the_first_position() -> None:
    module = repeater("gpt2")
    result = repeat_behaviour(load_model(module), [7], [2], bos=False, new_tokens=2)
    assert float(result.p_next[0, 0, 0]) == pytest.approx(answer(module, [7, 7], 2)[0], rel=1e-3)


def test_a_chat_asks_for_the_word_and_the_copies_begin_the_answer(tmp_path: Path) -> None:
    module, tokenizer = repeater("llama"), tiny_tokenizer(tmp_path)
    model = load_model(module, tokenizer=tokenizer)
    with pytest.raises(InputError, match="chat template"):
        repeat_behaviour(model, [5], [1], prompt="chat")
    tokenizer.chat_template = "<bos> {% for m in messages %}w9 {{ m.content }} {% endfor %}w10"
    result = repeat_behaviour(
        model, [5, 17], [1, 4], prompt="chat", instruction="w20 {word} w21", new_tokens=2, batch_size=3
    )
    for t, token in enumerate((5, 17)):
        for place, n in enumerate((1, 4)):
            ids = [0, 9, 20, token, 21, 10, *[token] * n]
            p_next, _, run = answer(module, ids, 2)
            assert float(result.p_next[0, t, place]) == pytest.approx(p_next, rel=1e-3, abs=1e-6)
            assert int(result.run[0, t, place]) == run


def test_tables_count_and_compare_token_by_token() -> None:
    run = torch.tensor([[[4.0], [1.0]], [[4.0], [4.0]]])
    result = RepeatBehaviourResult(
        PROVENANCE,
        conditions=["none", "patch"],
        token_ids=[8, 9],
        repeats=[100],
        new_tokens=4,
        prompt="bare",
        p_next=torch.tensor([[[0.9], [0.1]], [[0.9], [0.7]]]),
        top_next=torch.tensor([[[1.0], [0.0]], [[1.0], [1.0]]]),
        run=run,
    )
    frame = result.to_frame().set_index("condition")
    assert frame["diverged"].to_dict() == {"none": 0.5, "patch": 0.0}
    assert frame["run"].to_dict() == {"none": 2.5, "patch": 4.0}
    assert frame.loc["patch", "p_change"] == pytest.approx(0.3) and frame.loc["none", "p_change"] == 0
    assert frame.loc["none", "diverged_low"] < 0.5 < frame.loc["none", "diverged_high"]
    assert result.ranking() == [9, 8] and result.top(1) == [9] and result.ranking("patch") == [8, 9]
    with pytest.raises(InputError, match="condition 'x'"):
        result.of("x")


def test_controls_are_as_large_as_the_sink_and_without_it() -> None:
    model = load_model(fresh("llama"))
    scores = sink_neurons(model, Corpus.from_tokens(random_tokens(2, 5), model=model), 1)
    ranking, conditions = scores.ranking(), sink_conditions(scores, 4, draws=5, seed=1)
    sets = {name: [neuron for _, neuron in value.units] for name, value in conditions.items()}  # pyright: ignore
    assert sets["sink"] == ranking[:4] and sets["matched"] == ranking[4:8]
    drawn = [tuple(units) for name, units in sets.items() if name.startswith("random")]
    assert len(set(drawn)) == 5 and all(len(set(units)) == 4 and not set(units) & {*ranking[:4]} for units in drawn)
    assert {value.when for value in conditions.values()} == {"all"}
    with pytest.raises(InputError, match="k=25"):
        sink_conditions(scores, 25)


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
        {"interventions": {"none": Neurons([(0, 0)])}},
    ],
)
def test_bad_questions_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        repeat_behaviour(load_model(fresh("llama")), **({"tokens": [5]} | options))


def test_a_planted_copier_repeats_what_it_has_seen_often() -> None:
    """An induction circuit says the token again once it has stood there twice."""
    model = induction_circuit("llama").model
    result = repeat_behaviour(model, [9, 20], [1, 2, 6], new_tokens=3)
    assert (result.run[0, :, 1:] == 3).all() and not result.diverged[0, :, 1:].any()
    assert (result.p_next[0, :, 0] < result.p_next[0, :, 1]).all()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_sink_patch_can_be_a_condition(family: str) -> None:
    """Both views, and the patch by hand: the up-projection held at its level at the first token after BOS."""
    model = load_model(repeater(family))
    patch = SinkPatch(1, range(0, 40, 2))
    fast = repeat_behaviour(model, [5, 17], [1, 6], {"patched": patch}, new_tokens=3)
    for t, token in enumerate((5, 17)):
        for place, n in enumerate((1, 6)):
            tokens = torch.tensor([[0, *[token] * n]])
            logits = model.run_with_hooks(tokens, fwd_hooks=patch.hooks(model)).detach()
            share = logits[0, -1].softmax(-1)[token]
            assert float(fast.p_next[1, t, place]) == pytest.approx(float(share), rel=1e-3)
    # With learned positions the copies differ, so that holding them changes something; one copy is its own level.
    torch.testing.assert_close(fast.p_next[1, :, 0], fast.p_next[0, :, 0], rtol=1e-4, atol=1e-7)
    assert (fast.p_next[1, :, 1] - fast.p_next[0, :, 1]).abs().max() > 1e-5
    model.plain = None
    check_equal(repeat_behaviour(model, [5, 17], [1, 6], {"patched": patch}, new_tokens=3), fast, rtol=1e-3)
