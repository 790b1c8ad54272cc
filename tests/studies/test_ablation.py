"""Ablation studies as studies: which conditions, which texts, what the tables say, what is kept, what is refused."""

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
from scipy import stats

from mechrep.ablation import old_study as ablation_plan
from mechrep.ablation.circuit import Circuit
from mechrep.ablation.old_outcomes import LoopLogProbability
from mechrep.ablation.old_study import AblationResult, HeadSweepResult, ablation_study, single_head_sweep
from mechrep.cache import CorpusCache
from mechrep.errors import InputError, NothingFoundError
from mechrep.interventions import Heads, mean
from mechrep.measures.head_scores import HeadScoreResult, score_heads
from mechrep.measures.neurons import RepetitionNeuronResult, RepetitionNeurons
from mechrep.models import tiny as embedded
from mechrep.models.load import load_model
from mechrep.models.model import Model
from mechrep.stats import paired_bootstrap_interval
from mechrep.studies import token_losses
from mechrep.text.corpus import Corpus
from mechrep.text.stimuli import random_repeats
from tests.tiny_models import D_MLP, N_CTX, N_HEADS, N_LAYERS, fresh, random_tokens, tiny

FAMILY = "llama_gqa"
HEADS = Circuit("heads", heads=[(0, 1), (2, 3)])
NEURONS = Circuit("neurons", neurons=[(1, 4), (1, 5), (2, 9)])
CELLS = ["circuit", "part", "selection", "k", "seed"]


@functools.cache
def model() -> Model:
    return load_model(copy.deepcopy(tiny(FAMILY)))


@functools.cache
def loops(n: int = 4) -> Corpus:
    """Loops of different periods, one of which leaves no room for a second copy, and a text without a loop."""
    rows = [[*random_tokens(1, 8, seed=i)[0].tolist(), *list(range(20, 25 + i)) * 4] for i in range(n - 1)]
    rows.append([9, *range(3, 61), *range(3, 61)])
    corpus = Corpus.from_tokens([*rows, list(range(3, 60))], model=model(), source="loop").with_cycles()
    assert corpus.frame["onset"].isna().tolist() == [False] * n + [True]
    return corpus


@functools.cache
def found() -> RepetitionNeuronResult:
    (result,) = CorpusCache(model(), loops().select([0, 1])).run(RepetitionNeurons("hiraoka2025", r=5))
    assert isinstance(result, RepetitionNeuronResult)
    return result


@functools.cache
def scores() -> HeadScoreResult:
    return score_heads(model(), n=8, sequences=2)


def study(circuits: Any = HEADS, **options: Any) -> AblationResult:
    settings: dict[str, Any] = {"corpus": loops(), "controls": (), "copies": 2, "outcomes": ["loop_log_probability"]}
    return ablation_study(model(), circuits, **(settings | options))


def cells(result: AblationResult) -> list[tuple]:
    return [tuple(condition[name] for name in CELLS) for condition in result.conditions]


# --- conditions ----------------------------------------------------------------------------------------------------


def test_a_union_is_cut_whole_and_by_kinds_each_with_the_controls_that_it_can_have() -> None:
    result = study(
        HEADS + NEURONS,
        controls=["random", "activation_matched", "bos_matched"],
        seeds=[3, 7],
        neurons=found(),
        head_scores=scores(),
    )
    name = "heads + neurons"
    expected = [("none", "whole", "none", 0, 0)]
    for part, k, kinds in (
        ("whole", 5, ["random"]),
        ("neurons", 3, ["random", "activation_matched"]),
        ("heads", 2, ["random", "bos_matched"]),
    ):
        expected += [(name, part, "top", k, 0), *((name, part, kind, k, seed) for kind in kinds for seed in (3, 7))]
    assert cells(result) == expected
    for condition in result.conditions[1:]:
        assert len(condition["neurons"]) == (0 if condition["part"] == "heads" else 3)
        assert len(condition["heads"]) == (0 if condition["part"] == "neurons" else 2)
    top = [condition for condition in result.conditions if condition["selection"] == "top"]
    assert top[0]["heads"] == top[2]["heads"] == [[0, 1], [2, 3]] and top[1]["neurons"] == [[1, 4], [1, 5], [2, 9]]


def test_rankings_are_cut_at_every_k_and_bring_what_their_controls_are_matched_by() -> None:
    result = study([found(), scores(), HEADS], ks=[2, 3], controls=["activation_matched", "bos_matched"], seeds=1,
                   head_scores=scores())  # fmt: skip
    sizes = Counter((c["circuit"], c["k"], c["selection"]) for c in result.conditions[1:])
    both = {("repetition neurons", k, kind) for k in (2, 3) for kind in ("top", "activation_matched")}
    both |= {("induction heads", k, kind) for k in (2, 3) for kind in ("top", "bos_matched")}
    assert sizes == Counter(both | {("heads", 2, "top"), ("heads", 2, "bos_matched")})
    cut = {(c["circuit"], c["k"]): c for c in result.conditions if c["selection"] == "top"}
    assert {tuple(u) for u in cut["repetition neurons", 3]["neurons"]} == set(found().top(3))
    assert {tuple(u) for u in cut["induction heads", 2]["heads"]} == set(scores().top(2))


def test_whole_layers_have_whole_layers_as_controls() -> None:
    result = study(Circuit("deep", layers=[("mlp", 1), ("mlp", 2), ("attention", 0)]), controls=["random"], seeds=3)
    assert cells(result)[1] == ("deep", "whole", "top", 3, 0)
    for condition in result.conditions[2:]:
        assert Counter(part for part, _ in condition["layers"]) == {"mlp": 2, "attention": 1}
    frame = result.to_frame()
    assert (frame[frame["selection"] != "none"]["effect"].abs() > 1e-4).all()


def test_operations_are_conditions_and_a_pair_is_one() -> None:
    table = mean(torch.randn(N_LAYERS, D_MLP, generator=torch.Generator().manual_seed(0)))
    result = study(HEADS + NEURONS, ops=["zero", (table, "to_bos")])
    assert list(dict.fromkeys(c["op"] for c in result.conditions)) == ["none", "zero", "mean/to_bos"]
    frame = result.to_frame().query("copy == 1").set_index(["part", "op"])["value"]
    assert frame.nunique() == 1 + 3 * 2
    alone = study(HEADS, ops=["to_bos"]).to_frame().query("copy == 1 and op == 'to_bos'")["value"].item()
    assert frame["heads", "mean/to_bos"] == pytest.approx(alone, abs=1e-6)


# --- texts ---------------------------------------------------------------------------------------------------------


def test_texts_that_a_circuit_was_found_on_are_left_out_even_after_it_was_saved(tmp_path: Path) -> None:
    circuit = HEADS + Circuit.from_neurons(found(), 2)
    circuit.save(tmp_path / "c.json")
    names = loops().frame["id"].tolist()
    for one in (circuit, Circuit.load(tmp_path / "c.json")):
        assert study(one).texts[0] == names[2:4]
    assert study(circuit, held_out=False).texts[0] == names[:4]
    with pytest.raises(InputError, match="exactly the texts on which the circuits were found"):
        study(circuit, corpus=loops().select([0, 1]))


def test_a_copy_that_does_not_fit_is_missing_and_counts_nowhere() -> None:
    result = study(copies=3)
    frame, text = result.to_frame(), result.text_frame()
    long = loops().frame["id"][3]  # a period of 58 from position 1 on: one copy fits after its onset
    assert frame.groupby("copy")["texts"].first().to_dict() == {0: 4, 1: 4, 2: 3, 3: 3}
    assert text[text["text"] == long].groupby("copy")["value"].count().to_dict() == {0: 2, 1: 2, 2: 0, 3: 0}
    assert int(loops().frame["onset"][3]) + 2 * 58 > N_CTX >= int(loops().frame["onset"][3]) + 58
    assert frame["value"].notna().all() and str(frame["copy"].dtype) == "Int64"


def test_the_texts_are_by_default_what_the_model_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def collect(given: Model, n: int, **options: Any) -> Corpus:
        asked.append((given, n, options["n_others"], options["preset"]))
        return loops()

    monkeypatch.setattr(ablation_plan, "collect_loops", collect)
    given, own = study(), study(corpus=None)
    assert torch.equal(given.values.nan_to_num(), own.values.nan_to_num()) and asked == [(model(), 64, 0, "mechrep")]
    study(corpus=None, outcomes=["copy_accuracy"], repeats=random_repeats(model(), n=5, sequences=2))
    assert len(asked) == 1


def test_repeats_and_windows_have_defaults() -> None:
    small = load_model("mechrep-tiny")
    result = ablation_study(small, Circuit("x", heads=[(0, 0)]), outcomes=["copy_accuracy"], controls=())
    assert result.texts[0][0].startswith("random-50x2-1000003") and len(result.texts[0]) == 32
    settings = ablation_plan.Settings(None, None, None, "all", 1, "mechrep", 5, 5)
    corpus = settings.outcomes(small, ["loss"], frozenset())["loss"].corpus
    assert corpus.row(0)[1:9] == small.encode(embedded.held_out_text(), prepend_bos=False)[:8]


# --- tables --------------------------------------------------------------------------------------------------------


@functools.cache
def full() -> AblationResult:
    """All cheap outcomes, with a control from three seeds."""
    windows = Corpus.from_tokens(random_tokens(5, 20, seed=9), model=model())
    return study(
        controls=["random"], seeds=3, outcomes=["loop_log_probability", "copy_accuracy", "loss"], windows=windows,
        repeats=random_repeats(model(), n=7, sequences=4),
    )  # fmt: skip


def test_the_frame_says_value_effect_and_both_intervals() -> None:
    result, frame = full(), full().to_frame()
    assert len(frame) == len(result.measures) * len(result.conditions)
    for number, measure in enumerate(result.measures):
        here = frame.iloc[number * 5 : number * 5 + 5]
        assert (here["outcome"] == measure["outcome"]).all()
        for row, values in zip(here.itertuples(), result.values[number].numpy(), strict=True):
            known = ~np.isnan(values)
            values, clean = values[known], result.values[number][0].numpy()[known]
            facts: Any = row
            assert facts.value == pytest.approx(values.mean()) and facts.texts == known.sum()
            assert facts.effect == pytest.approx((values - clean).mean(), abs=1e-12)
            expected = paired_bootstrap_interval(values - clean)
            assert (facts.effect_low, facts.effect_high) == pytest.approx(expected, abs=1e-12)
            interval = paired_bootstrap_interval(values)
            if measure["outcome"] == "copy_accuracy":
                assert facts.n == 4 * 6
                interval = stats.binomtest(round(values.sum() * 6), 24).proportion_ci(method="wilson")
            else:
                assert facts.n == known.sum()
            assert (facts.low, facts.high) == pytest.approx(tuple(interval))
    loss = frame[frame["outcome"] == "loss"]
    assert np.allclose(loss["perplexity"], np.exp(loss["value"]))
    assert frame[frame["outcome"] != "loss"]["perplexity"].isna().all()
    assert (frame[frame["selection"] == "none"][["effect", "effect_low", "effect_high"]] == 0).all().all()


def test_the_summary_takes_the_draws_of_a_control_together() -> None:
    frame, summary = full().to_frame(), full().summary()
    assert summary.groupby("selection")["draws"].first().to_dict() == {"none": 1, "random": 3, "top": 1}
    for outcome, copied in ((m["outcome"], m["copy"]) for m in full().measures):
        draws, one = (
            table[(table["outcome"] == outcome) & (table["copy"].fillna(-1) == (-1 if copied is None else copied))]
            for table in (frame, summary)
        )
        drawn, row = draws[draws["selection"] == "random"], one[one["selection"] == "random"].iloc[0]
        assert row["effect"] == pytest.approx(drawn["effect"].mean())
        assert row["low"] == pytest.approx(np.percentile(drawn["value"], 2.5))
        assert row["effect_high"] == pytest.approx(np.percentile(drawn["effect"], 97.5))
        top = one[one["selection"] == "top"].iloc[0]
        assert top["low"] == draws[draws["selection"] == "top"]["low"].item()


def test_the_top_conditions_change_a_measure_most() -> None:
    frame = full().to_frame().query("copy == 1 and selection != 'none'")
    order = frame["effect"].abs().sort_values(ascending=False).index
    expected = frame.loc[order, CELLS].to_dict("records")
    assert [{name: cell[name] for name in CELLS} for cell in full().top(4)] == expected
    assert full().top(1, "loss") != [] and full().top(2, "loop_log_probability", 2) != []
    for options, match in (
        ({"k": 5}, "k = 5"),
        ({"k": 1, "outcome": "still_looping"}, "still_looping"),
        ({"k": 1, "copy": 9}, "copy 9"),
    ):
        with pytest.raises(InputError, match=match):
            full().top(**options)


def test_losses_are_those_of_the_loss_study_and_heads_can_attend_to_the_first_token() -> None:
    windows = Corpus.from_tokens(random_tokens(5, 20, seed=9), model=model())
    for op in ("zero", "to_bos"):
        result = study(outcomes=["loss"], windows=windows, ops=[op])
        cut = Heads(HEADS.heads, op, "all")
        assert torch.allclose(result.values[0].float(), token_losses(model(), windows, [None, cut]))
        reference = copy.copy(model())
        reference.plain = None
        slow = token_losses(reference, windows, [None, cut])
        assert (result.values[0] - slow).abs().max() < 1e-4


# --- on disk -------------------------------------------------------------------------------------------------------


def test_a_result_comes_back_from_disk(tmp_path: Path) -> None:
    full().save(tmp_path / "result")
    assert AblationResult.load(tmp_path / "result").to_frame().equals(full().to_frame())


def test_a_stopped_study_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"controls": ["random"], "seeds": 4, "store": tmp_path}
    expected = study(controls=["random"], seeds=4)
    rows: list[int] = []
    limit = 2
    real = LoopLogProbability.values

    def values(self: LoopLogProbability, interventions: Any, progress: Any) -> Any:
        if len(rows) == limit:
            raise TimeoutError
        rows.append(len(interventions))
        return real(self, interventions, progress)

    monkeypatch.setattr(LoopLogProbability, "values", values)
    monkeypatch.setattr(ablation_plan, "_ROWS_PER_SHARD", 8)  # two conditions on four texts
    with pytest.raises(TimeoutError):
        study(**options)
    rows, limit = [], 9
    result = study(**options)
    assert rows == [2]  # six conditions, of which four were kept
    for again in (result, study(**options)):
        assert again.to_frame().equals(expected.to_frame()) and rows == [2]
    study(**(options | {"when": "all", "seeds": 1}))  # another study in the same store
    assert rows == [2, 2, 1]


# --- single heads --------------------------------------------------------------------------------------------------


def test_the_sweep_of_single_heads_is_one_study_per_head() -> None:
    repeats, options = (
        random_repeats(model(), n=7, sequences=2),
        {"outcomes": ["loop_log_probability", "copy_accuracy"]},
    )
    sweep = single_head_sweep(model(), loops(), copies=2, repeats=repeats, **options)
    assert isinstance(sweep, HeadSweepResult) and len(sweep.conditions) == 1 + N_LAYERS * N_HEADS
    for place, (layer, head) in enumerate(itertools.product(range(N_LAYERS), range(N_HEADS)), 1):
        alone = study(Circuit("one", heads=[(layer, head)]), repeats=repeats, **options)
        assert sweep.conditions[place]["heads"] == [[layer, head]]
        difference = (sweep.values[:, place] - alone.values[:, 1]).abs()
        assert torch.nan_to_num(difference).max() < 1e-5
        assert torch.equal(sweep.values[:, place].isnan(), alone.values[:, 1].isnan())
        assert torch.equal(sweep.values[3, place, :2], alone.values[3, 1, :2])  # accuracies are counts
    table = sweep.tests("copy_loss_drop")
    assert [(row.layer, row.head) for row in table.itertuples()] == sweep.top(12, "copy_loss_drop")  # pyright: ignore
    assert table["effect"].abs().is_monotonic_decreasing and (table["p"] <= table["fdr"]).all()
    assert (table["fdr"] <= table["holm"] + 1e-12).all()
    with pytest.raises(InputError, match="k = 13"):
        sweep.top(13)


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"circuits": []}, "0 circuits and 0 rankings"),
        ({"circuits": Circuit("x", heads=[(0, N_HEADS)])}, f"head {N_HEADS} of layer 0"),
        ({"circuits": [HEADS, HEADS]}, "one circuit for each name and size"),
        ({"circuits": scores, "ks": None}, "1 rankings with ks=None"),
        ({"circuits": scores, "ks": [0]}, r"ks=\[0\]"),
        ({"circuits": scores, "ks": [99]}, "k = 99"),
        ({"circuits": found, "ks": [10**6]}, "k = 1000000"),
        ({"ks": [1]}, r"1 circuits and 0 rankings with ks=\[1\]"),
        ({"outcomes": ["accuracy"]}, r"outcomes=\['accuracy'\].*newly_looping"),
        ({"outcomes": []}, r"outcomes=\[\]"),
        ({"outcomes": ["loss", "loss"]}, "each once"),
        ({"controls": ["nearest"]}, r"controls=\['nearest'\]"),
        ({"controls": ["activation_matched"]}, "controls among .*bos_matched"),
        ({"controls": ["random", "random"]}, "each once"),
        ({"controls": ["bos_matched"]}, "'bos_matched' without head scores"),
        ({"circuits": NEURONS, "controls": ["activation_matched"]}, "with a list of neurons"),
        ({"seeds": 0, "controls": ["random"]}, "seeds=0"),
        ({"ops": []}, r"ops \[\]"),
        ({"ops": ["zero", "zero"]}, "each name once"),
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


def test_neurons_of_another_model_match_nothing() -> None:
    wide = load_model(fresh(FAMILY, intermediate_size=D_MLP + 8))
    with pytest.raises(InputError, match=rf"neurons= of \({N_LAYERS}, {D_MLP}\) neurons.*layers of {D_MLP + 8}"):
        ablation_study(wide, NEURONS, controls=["activation_matched"], neurons=found(), corpus=loops())


def test_texts_that_are_not_there_are_missed() -> None:
    free = loops().select([4])
    unmarked = Corpus.from_tokens([[5, 6, 7]], model=model())
    for corpus in (free, unmarked):
        for outcome in ("loop_log_probability", "still_looping"):
            with pytest.raises(NothingFoundError, match="without an onset"):
                study(corpus=corpus, outcomes=[outcome])
    with pytest.raises(NothingFoundError, match="none of them loop-free and of 50 tokens"):
        study(corpus=loops().select([0, 1]), outcomes=["newly_looping"])
    with pytest.raises(InputError, match="0 <= start < onset < length"):
        study(corpus=unmarked.with_columns(start=[1], onset=[3]))
    with pytest.raises(InputError, match="a test over 1 text"):
        single_head_sweep(model(), loops().select([0]), copies=1).tests()
