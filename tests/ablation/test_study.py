"""Ablation studies: which conditions, which texts, what is kept, what is refused."""

from __future__ import annotations

import copy
import functools
import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mechrep.ablation import run as engine
from mechrep.ablation import study as plan
from mechrep.ablation import texts as shared
from mechrep.ablation.circuit import Circuit
from mechrep.ablation.effect_plots import single_head_frame
from mechrep.ablation.effects import Effects
from mechrep.ablation.outcomes import LoopDecoding, LoopLogProbability
from mechrep.ablation.study import Controls, StudyTexts, ablation_study, single_head_sweep
from mechrep.cache import CorpusCache
from mechrep.errors import InputError, NothingFoundError
from mechrep.interventions import Heads, mean
from mechrep.measures.head_scores import HeadScoreResult, score_heads
from mechrep.measures.neurons import RepetitionNeuronResult, RepetitionNeurons
from mechrep.models import tiny as embedded
from mechrep.models.load import load_model
from mechrep.models.model import Model
from mechrep.run import Run
from mechrep.studies import token_losses
from mechrep.text.corpus import Corpus
from mechrep.text.stimuli import random_repeats
from tests.tiny_models import D_MLP, N_CTX, N_HEADS, N_LAYERS, fresh, random_tokens, tiny

FAMILY = "llama_gqa"
HEADS = Circuit("heads", heads=[(0, 1), (2, 3)])
NEURONS = Circuit("neurons", neurons=[(1, 4), (1, 5), (2, 9)])
CELLS = ["name", "part", "selection", "k", "seed"]


@functools.cache
def model() -> Model:
    return load_model(copy.deepcopy(tiny(FAMILY)))


@functools.cache
def loops(n: int = 4) -> Corpus:
    """Loops of different periods, one of which leaves no room for a second repetition, and a text without a loop."""
    rows = [[*random_tokens(1, 8, seed=i)[0].tolist(), *list(range(20, 25 + i)) * 4] for i in range(n - 1)]
    rows.append([9, *range(3, 61), *range(3, 61)])
    corpus = Corpus.from_tokens([*rows, list(range(3, 60))], model=model(), source="loop").with_cycles()
    assert corpus.frame["onset"].isna().tolist() == [False] * n + [True]
    return corpus


@functools.cache
def found() -> RepetitionNeuronResult:
    return CorpusCache(model(), loops().select([0, 1])).run(RepetitionNeurons("hiraoka2025", r=5))


@functools.cache
def scores() -> HeadScoreResult:
    return score_heads(model(), n=8, sequences=2)


def study(circuits: Any = HEADS, loops: Any = loops, **options: Any) -> Effects:
    """A study of few repetitions without controls; what is no argument of it is about its texts."""
    names = {"repeats", "windows", "copies", "decoding", "held_out"}
    given: dict[str, Any] = {"copies": 2, "loops": loops() if callable(loops) else loops}
    given |= {name: options.pop(name) for name in names & set(options)}
    settings: dict[str, Any] = {"controls": (), "outcomes": ["loop_log_probability"], "texts": StudyTexts(**given)}
    return ablation_study(model(), circuits, **(settings | options))


def cells(effects: Effects) -> list[tuple]:
    return [tuple(condition.facts[name] for name in CELLS) for condition in effects.conditions]


# --- conditions -----------------------------------------------------------------------------------------------------


def test_a_union_is_ablated_whole_and_by_kinds_each_with_the_controls_that_it_can_have() -> None:
    match = {"activation_matched": found().normal_mean, "bos_matched": scores().first_token}
    kinds = ["random", "activation_matched", "bos_matched"]
    effects = study(HEADS + NEURONS, controls=Controls(kinds, draws=2, match=match))
    name, expected = "heads + neurons", [("baseline", "whole", "baseline", 0, 0)]
    for part, k, own in (
        ("whole", 5, ["random"]),
        ("neurons", 3, ["random", "activation_matched"]),
        ("heads", 2, ["random", "bos_matched"]),
    ):
        draws = [(name, part, kind, k, seed) for kind in own for seed in (0, 1)]
        expected += [(name, part, "ablation", k, 0), *draws]
    assert cells(effects) == expected
    for condition in effects.conditions[1:]:
        held = condition.components
        assert len(held.get("neurons", [])) == (0 if condition.part == "heads" else 3)
        assert len(held.get("heads", [])) == (0 if condition.part == "neurons" else 2)
        if condition.selection != "ablation":
            assert not {tuple(unit) for unit in held.get("heads", [])} & set(HEADS.heads)
    tested = [condition.components for condition in effects.conditions if condition.selection == "ablation"]
    assert tested[0] == {**tested[1], **tested[2]} and tested[1] == NEURONS.components


def test_sizes_of_one_ranking_are_circuits_of_one_name_and_no_control_holds_a_larger_one() -> None:
    circuits = [Circuit.from_heads(scores(), k) for k in (1, 3)]
    effects = study([*circuits, HEADS], controls=Controls(["random"], draws=5))
    assert [one.k for one in effects.conditions if one.selection == "ablation"] == [1, 3, 2]
    largest = {tuple(unit) for unit in circuits[1].heads}
    for one in effects.conditions:
        if one.name == circuits[0].name and one.selection == "random":
            assert not {tuple(unit) for unit in one.components["heads"]} & largest
    assert effects.notes["excluded"] == {circuits[0].label: circuits[1].label}


def test_excluded_circuits_are_in_no_control_and_what_cannot_be_drawn_is_refused_or_noted() -> None:
    barred = Circuit("barred", heads=[(0, 0), (0, 2)])
    one = Circuit("one", heads=[(0, 1)])
    wanted = Controls(["layer_matched"], draws=9, exclude=[barred])
    assert [c.components["heads"] for c in study(one, controls=wanted).conditions[2:]] == [[[0, 3]]]
    all_four = Circuit("layer", heads=[(0, head) for head in range(N_HEADS)])
    with pytest.raises(InputError, match="layer_matched"):
        study(all_four, controls=["layer_matched"])
    effects = study(all_four, controls=Controls(["random", "layer_matched"], draws=2, strict=False))
    assert [c.selection for c in effects.conditions] == ["baseline", "ablation", "random", "random"]
    assert list(effects.notes["left_out"]) == [f"layer_matched, {all_four.label}"]


def test_whole_layers_have_whole_layers_as_controls() -> None:
    deep = Circuit("deep", layers=[("mlp", 1), ("mlp", 2), ("attention", 0)])
    with pytest.raises(InputError, match="at most 1 where 2 are needed"):  # two of three MLPs: no others are left
        study(deep, controls=["random"])
    effects = study(Circuit("deep", layers=[("mlp", 2), ("attention", 0)]), controls=Controls(["random"], draws=3))
    assert cells(effects)[1] == ("deep", "whole", "ablation", 2, 0)
    for condition in effects.conditions[2:]:
        parts = [tuple(unit) for unit in condition.components["layers"]]
        assert Counter(part for part, _ in parts) == {"mlp": 1, "attention": 1}
        assert not {("mlp", 2), ("attention", 0)} & set(parts)
    assert (effects.to_frame().query("selection != 'baseline'")["effect"].abs() > 1e-4).all()


def test_operations_are_conditions_and_a_pair_is_one() -> None:
    table = mean(torch.randn(N_LAYERS, D_MLP, generator=torch.Generator().manual_seed(0)))
    effects = study(HEADS + NEURONS, ops=["zero", (table, "to_bos")])
    assert list(dict.fromkeys(c.op for c in effects.conditions)) == ["", "zero", "mean/to_bos"]
    frame = effects.to_frame().query("copy == 1").set_index(["part", "op"])["value"]
    assert frame.nunique() == 1 + 3 * 2
    alone = study(HEADS, ops=["to_bos"]).to_frame().query("copy == 1 and op == 'to_bos'")["value"].item()
    assert frame["heads", "mean/to_bos"] == pytest.approx(alone, abs=1e-6)


# --- texts ----------------------------------------------------------------------------------------------------------


def test_texts_that_a_circuit_was_found_on_are_left_out_even_after_it_was_saved(tmp_path: Path) -> None:
    circuit = HEADS + Circuit.from_neurons(found(), 2)
    circuit.save(tmp_path / "c.json")
    names = loops().frame["id"].tolist()
    for one in (circuit, Circuit.load(tmp_path / "c.json")):
        assert study(one).units[0] == names[2:4]
    assert study(circuit, held_out=False).units[0] == names[:4]
    with pytest.raises(InputError, match="exactly the texts on which the components were found"):
        study(circuit, loops=loops().select([0, 1]))


def test_a_repetition_that_does_not_fit_is_missing_and_counts_nowhere() -> None:
    effects = study(copies=3)
    frame, texts = effects.to_frame(), effects.unit_frame()
    long = loops().frame["id"][3]  # a period of 58 from position 1 on: one repetition fits after its onset
    assert frame.groupby("copy")["texts"].first().to_dict() == {0: 4, 1: 4, 2: 3, 3: 3}
    assert texts[texts["unit_id"] == long].groupby("copy")["value"].count().to_dict() == {0: 2, 1: 2}
    assert int(loops().frame["onset"][3]) + 2 * 58 > N_CTX >= int(loops().frame["onset"][3]) + 58
    assert frame["value"].notna().all() and str(frame["copy"].dtype) == "Int64"


def test_the_texts_are_by_default_what_the_model_writes_once_per_run(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def make(given: Model, run: Run, preset: str) -> Corpus:
        asked.append((given, preset))
        return loops()

    monkeypatch.setattr(plan, "shared_loops", make)
    given, own = study(), study(loops=None)
    assert torch.equal(given.values.nan_to_num(), own.values.nan_to_num()) and asked == [(model(), "mechrep")]
    study(loops=None, outcomes=["copy_accuracy"], repeats=random_repeats(model(), n=5, sequences=2))
    assert len(asked) == 1


def test_repeats_and_windows_have_defaults() -> None:
    small, run = load_model("mechrep-tiny"), Run(effort="quick")
    texts = StudyTexts().outcomes(small, ["copy_accuracy", "loss"], when="all", run=run)
    assert texts[0].units[0].startswith("random-50x2-1000003") and len(texts[0].units) == run.sizes_on(small).sequences
    corpus = shared.shared_windows(small, run)
    assert corpus.row(0)[1:9] == small.encode(embedded.held_out_text(), prepend_bos=False)[:8]
    assert len(texts[1].units) == len(corpus) == run.sizes_on(small).windows


def test_losses_are_those_of_token_losses_and_heads_can_attend_to_the_first_token() -> None:
    windows = Corpus.from_tokens(random_tokens(5, 20, seed=9), model=model())
    for op in ("zero", "to_bos"):
        effects = study(outcomes=["loss"], windows=windows, ops=[op])
        ablated = Heads(HEADS.heads, op, "all")
        assert torch.allclose(effects.values[0], token_losses(model(), windows, [None, ablated]))
        reference = copy.copy(model())
        reference.plain = None
        assert (effects.values[0] - token_losses(reference, windows, [None, ablated])).abs().max() < 1e-4


# --- on disk --------------------------------------------------------------------------------------------------------


def test_a_stopped_study_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"controls": Controls(["random"], draws=4)}
    kept = options | {"run": Run(store=tmp_path)}
    expected, rows, limit = study(**options), [], 2
    real = LoopLogProbability.values

    def values(self: LoopLogProbability, interventions: Any, progress: Any) -> Any:
        if len(rows) == limit:
            raise TimeoutError
        rows.append(len(interventions))
        return real(self, interventions, progress)

    monkeypatch.setattr(LoopLogProbability, "values", values)
    monkeypatch.setattr(engine, "_ROWS_PER_SHARD", 8)  # two conditions on four texts
    with pytest.raises(TimeoutError):
        study(**kept)
    rows, limit = [], 9
    effects = study(**kept)
    assert rows == [2]  # six conditions, of which four were kept
    for again in (effects, study(**kept)):
        assert again.to_frame().equals(expected.to_frame()) and rows == [2]
    study(**(kept | {"when": "all", "controls": Controls(["random"], draws=1)}))  # another study in the same store
    assert rows == [2, 2, 1]


# --- single heads ---------------------------------------------------------------------------------------------------


def test_the_sweep_of_single_heads_is_one_study_per_head() -> None:
    repeats, outcomes = random_repeats(model(), n=7, sequences=2), ["loop_log_probability", "copy_accuracy"]
    texts = StudyTexts(loops=loops(), repeats=repeats, copies=2)
    sweep = single_head_sweep(model(), outcomes=outcomes, texts=texts)
    assert len(sweep.conditions) == 1 + N_LAYERS * N_HEADS and sweep.notes == {"peers": "other heads"}
    for place, (layer, head) in enumerate(itertools.product(range(N_LAYERS), range(N_HEADS)), 1):
        alone = study(Circuit("one", heads=[(layer, head)]), repeats=repeats, outcomes=outcomes)
        assert sweep.conditions[place].components == {"heads": [[layer, head]]}
        difference = (sweep.values[:, place] - alone.values[:, 1]).abs()
        assert torch.nan_to_num(difference).max() < 1e-5
        assert torch.equal(sweep.values[:, place].isnan(), alone.values[:, 1].isnan())
        assert torch.equal(sweep.values[3, place, :2], alone.values[3, 1, :2])  # accuracies are counts


def signs(values: np.ndarray) -> float:
    """Share of the ways to give signs to values that give a sum as large."""
    sums = [abs(np.dot(ways, values)) for ways in itertools.product([1, -1], repeat=len(values))]
    return float(np.mean(np.array(sums) >= abs(values.sum()) - 1e-12))


def test_single_heads_have_all_other_heads_as_controls() -> None:
    texts = StudyTexts(repeats=random_repeats(model(), n=7, sequences=4))
    sweep = single_head_sweep(model(), outcomes=["copy_accuracy"], texts=texts)
    table = single_head_frame(sweep, "copy_loss_drop")
    assert list(table)[:8] == ["layer", "head", "effect", "low", "high", "p", "q", "verdict"]
    by_text = sweep.effect_of("copy_loss_drop")[1:]
    effects, apart = by_text.mean(1), by_text - np.median(by_text, axis=0)
    order = np.argsort(-np.abs(effects), kind="stable")
    units = list(itertools.product(range(N_LAYERS), range(N_HEADS)))
    assert list(zip(table["layer"], table["head"], strict=True)) == [units[i] for i in order]
    np.testing.assert_allclose(table["effect"], effects[order])
    p_values = [
        max(signs(own), signs(other) if other.mean() * own.mean() > 0 else 1.0)
        for own, other in zip(by_text[order], apart[order], strict=True)
    ]
    np.testing.assert_allclose(table["p"], p_values)
    assert set(table["verdict"]) == {"too few"} and table["q"].isna().all(), "four texts"
    with pytest.raises(InputError, match="measure 'loss'"):
        single_head_frame(sweep, "loss")


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"circuits": []}, r"circuits \[\]"),
        ({"circuits": Circuit("x", heads=[(0, N_HEADS)])}, f"head {N_HEADS} of layer 0"),
        ({"circuits": [HEADS, HEADS]}, "one for each name and size"),
        ({"outcomes": ["accuracy"]}, r"outcomes=\['accuracy'\].*newly_looping"),
        ({"outcomes": []}, r"outcomes=\[\]"),
        ({"outcomes": ["loss", "loss"]}, "each once"),
        ({"controls": ["nearest"]}, "control='nearest'"),
        ({"controls": ["activation_matched"]}, "controls='activation_matched'.*bos_matched"),
        ({"controls": ["random", "random"]}, "each once"),
        ({"controls": ["bos_matched"]}, "'bos_matched' with nothing to match by"),
        ({"circuits": NEURONS, "controls": ["activation_matched"]}, "'activation_matched' with nothing to match by"),
        ({"ops": []}, r"ops \[\]"),
        ({"ops": ["zero", "zero"]}, "with 'zero' twice"),
        ({"ops": ["remove"]}, "op='remove'"),
        ({"when": "last"}, "when='last'"),
        ({"copies": 0}, "copies=0"),
        ({"outcomes": ["copy_accuracy"], "repeats": loops}, "kinds of start, onset and period"),
        ({"outcomes": ["loss"], "windows": loops}, "one length"),
    ],
)
def test_one_clear_error_each(options: dict, match: str) -> None:
    given = {name: value() if callable(value) else value for name, value in options.items()}
    with pytest.raises(InputError, match=match):
        study(given.pop("circuits", HEADS), **given)


def test_what_was_found_in_another_model_is_refused() -> None:
    other = load_model(fresh(FAMILY, seed=5))
    for circuit in (Circuit.from_heads(scores(), 1), HEADS + Circuit.from_neurons(found(), 2)):
        with pytest.raises(InputError, match=r"found in .*weights"):
            ablation_study(other, circuit, controls=(), texts=loops())
    wide = load_model(fresh(FAMILY, intermediate_size=D_MLP + 8))
    matched = Controls(["activation_matched"], match={"activation_matched": found().normal_mean})
    with pytest.raises(InputError, match=rf"a table of \({N_LAYERS}, {D_MLP}\) to match by"):
        ablation_study(wide, NEURONS, controls=matched, texts=loops())


def test_texts_that_are_not_there_are_missed() -> None:
    free, unmarked = loops().select([4]), Corpus.from_tokens([[5, 6, 7]], model=model())
    for corpus in (free, unmarked):
        for outcome in ("loop_log_probability", "still_looping"):
            with pytest.raises(NothingFoundError, match="without an onset"):
                study(loops=corpus, outcomes=[outcome])
    with pytest.raises(NothingFoundError, match="none of them loop-free and of 50 tokens"):
        study(loops=loops().select([0, 1]), outcomes=["newly_looping"], decoding=LoopDecoding(prompt_length=50))
    with pytest.raises(InputError, match="0 <= start < onset < length"):
        study(loops=unmarked.with_columns(start=[1], onset=[3]))
