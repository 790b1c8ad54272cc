"""``over_checkpoints``: planted curves, one model at a time, going on after a kill, and what is refused."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mechrep
from mechrep.ablation.effects import NOT_SUPPORTED, SUPPORTED, TOO_FEW, Effects
from mechrep.cache.corpus_cache import CorpusCache
from mechrep.errors import InputError, ModelError
from mechrep.generation.text_kinds import text_flow
from mechrep.measures.attention_sinks import AttentionSinks
from mechrep.measures.head_scores import HeadScores
from mechrep.measures.mechanisms import head_mechanisms, loop_flags, sink_share
from mechrep.models import tiny as embedded
from mechrep.models.model import Model
from mechrep.models.revisions import list_checkpoints
from mechrep.run import Run
from mechrep.studies.checkpoints import (
    ModelMeasure,
    change_points,
    measure_named,
    order_of_steps,
    over_checkpoints,
    revisions_of,
    training_curves,
)
from mechrep.text.stimuli import random_repeats
from mechrep.text.windows import windows_of_text
from tests.measures.test_change_points import step
from tests.studies.training_by_hand import table
from tests.tiny_models import tiny, tiny_tokenizer

# --- steps and their order --------------------------------------------------------------------------------------


def test_planted_steps_are_supported_and_noise_is_not() -> None:
    result = table(
        {"late": step(8, seed=1), "early": step(3, seed=2), "noise": step(3, size=0.0), "edge": step(0, seed=4)}
    )
    points, names = change_points(result).set_index("measure"), revisions_of(result)
    assert points.loc[["late", "early"], "verdict"].tolist() == [SUPPORTED] * 2
    assert points.loc["noise", "verdict"] != SUPPORTED and points.loc["edge", "verdict"] == TOO_FEW
    assert (points.loc["early", "before"], points.loc["early", "after"]) == (names[3], names[4])
    assert points.loc["late", "earliest"] == names[8] and points.loc["late", "latest"] == names[9]
    assert points.loc["late", "value"] - points.loc["late", "baseline"] == pytest.approx(points.loc["late", "effect"])
    assert points.loc["late", "n"] == 40 and points.loc["late", "m"] == 12 * 11 * 10 // 6 // 2 - 1


def test_the_rule_for_steps_keeps_its_level() -> None:
    """Curves without a trend, whose texts have levels of their own and checkpoints too: 5 % are called steps."""
    wrong = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        values = rng.normal(0, 0.3, (12, 1)) + rng.normal(0, 0.1, (12, 20))
        wrong += change_points(table({"a": values}), draws=200, seed=seed)["verdict"].iloc[0] == SUPPORTED
    assert wrong <= 7


def test_the_order_of_planted_steps() -> None:
    result = table(
        {"late": step(8, seed=1), "early": step(3, seed=2), "also": step(3, seed=3), "noise": step(8, size=0.0)}
    )
    order = order_of_steps(result).set_index(["first", "second"])
    far = order.loc[("early", "late")]
    assert far["effect"] == 5 and far["verdict"] == SUPPORTED and far["earlier"] > 0.99 and far["low"] > 0
    tie = order[order.index.isin([("early", "also"), ("also", "early")])].iloc[0]
    assert tie["effect"] == 0 and tie["verdict"] == NOT_SUPPORTED and tie["same"] > 0.9
    without = [row for pair, row in order.iterrows() if "noise" in tuple(pair)]
    assert all(row["verdict"] != SUPPORTED for row in without), "there is no order without a step"
    with pytest.raises(InputError, match="lates"):
        order_of_steps(result, [("lates", "early")])


def test_an_order_that_all_draws_agree_on_is_not_refuted_where_checkpoints_are_too_few() -> None:
    """Steps of nine checkpoints have a p-value of 2 / 84 at least: too much where three pairs are asked about."""
    clear = {name: step(place, checkpoints=9, noise=0.01, seed=place) for name, place in (("a", 2), ("b", 5))}
    flat = {"noise": step(4, checkpoints=9, size=0.0, seed=7)}
    order = order_of_steps(table(clear | flat)).set_index(["first", "second"])
    assert order.loc[("a", "b"), "earlier"] == 1.0 and order.loc[("a", "b"), "q"] > 0.05
    assert order.loc[("a", "b"), "verdict"] == TOO_FEW and order.loc[("a", "b"), "p"] == order.loc[("a", "b"), "least"]
    assert SUPPORTED not in set(order["verdict"]) and NOT_SUPPORTED in set(order["verdict"])


def test_measures_with_the_same_units_are_drawn_together() -> None:
    """Two copies of one faint measure: drawn together they never part; drawn apart they do."""
    faint = step(5, units=10, size=0.3, noise=0.5, seed=3)
    together = table({"a": faint, "b": faint})
    ids = [together.units[0], [f"other {i}" for i in range(10)]]
    apart = dataclasses.replace(together, units=ids, clusters=ids)
    assert float(order_of_steps(together)["same"].iloc[0]) == 1.0
    assert float(order_of_steps(apart)["same"].iloc[0]) < 0.95


def test_the_table_has_means_and_intervals_of_units() -> None:
    values = step(2, checkpoints=4, units=50)
    values[3] = np.nan
    frame = table({"a": values, "single": values[:, :1]}).to_frame()
    part = frame[frame["measure"] == "a"]
    np.testing.assert_allclose(part["value"][:3], values[:3].mean(1))
    assert part["texts"].tolist() == [50, 50, 50, 0] and np.isnan(part["value_low"].iloc[3])
    error = values[:3].std(1, ddof=1) / 50**0.5
    np.testing.assert_allclose((part["value_high"] - part["value_low"])[:3] / (2 * 1.96 * error), 1.0, atol=0.2)
    assert bool(frame.loc[frame["measure"] == "single", "value_low"].isna().all())


def test_the_figure_stands_on_steps_of_training_and_marks_supported_steps() -> None:
    figure = training_curves(table({"late": step(8, seed=1), "noise": step(3, size=0.0)}))
    lines = [trace for trace in figure.data if trace.mode == "lines+markers"]
    assert len(lines) == 2 and lines[0].x[0] == 16 and figure.layout.xaxis.type == "log"  # 0 stands at half of 32
    assert len(figure.layout.shapes) == 2  # the band and the line of one step
    unnamed = over_checkpoints([embedding_size], revisions=TWO)
    assert len(training_curves(unnamed).data) == 1


# --- the study --------------------------------------------------------------------------------------------------

TWO = embedded.revisions()[:2]


def embedding_size(model: Model) -> dict[str, float]:
    return {"size": float(model.tl.W_E.double().abs().mean())}


def test_the_numbers_are_those_of_each_checkpoint() -> None:
    revisions = [embedded.revisions()[0], embedded.revisions()[-1]]
    result = over_checkpoints({"size": embedding_size}, revisions=revisions)
    for revision, value in zip(revisions, result.wide()["size"], strict=True):
        module: Any = embedded.load("mechrep-tiny", revision, dtype=torch.float32)[0]
        assert value == pytest.approx(float(module.get_input_embeddings().weight.detach().double().abs().mean()))
    assert result.conditions[0].step == 0 and result.notes["tokens"][1] == embedded.history()[-1]["tokens"]


def test_one_model_is_in_memory_at_a_time() -> None:
    seen: list[weakref.ref[Model]] = []
    alive: list[int] = []

    def watch(model: Model) -> dict[str, float]:
        gc.collect()
        seen.append(weakref.ref(model))
        alive.append(sum(one() is not None for one in seen))
        return {"alive": 1.0}

    over_checkpoints([watch], revisions=TWO)
    assert alive == [1, 1]


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    revisions, seen = TWO, []

    class Killed(Exception):
        pass

    def measure(model: Model) -> dict[str, Any]:
        seen.append(model.revision)
        if len(seen) == 2:
            raise Killed
        return {"size": [float(model.tl.W_E.abs().mean()), 1.0]}

    with pytest.raises(Killed):
        over_checkpoints([measure], revisions=revisions, run=Run(store=tmp_path))
    result = over_checkpoints([measure], revisions=revisions, run=Run(store=tmp_path))
    assert seen == [*revisions, revisions[1]]
    np.testing.assert_array_equal(
        over_checkpoints([measure], revisions=revisions, run=Run(store=tmp_path)).of("size"), result.of("size")
    )
    assert len(seen) == 3
    # Other settings are another measure; another list of checkpoints is not.
    over_checkpoints([measure], revisions=revisions[1:], run=Run(store=tmp_path))
    assert len(seen) == 3
    over_checkpoints([ModelMeasure("measure", measure, {"seed": 1})], revisions=revisions[:1], run=Run(store=tmp_path))
    assert len(seen) == 4


def test_the_table_is_kept_whole(tmp_path: Path) -> None:
    result = over_checkpoints(["sinks"], revisions=TWO)
    result.save(tmp_path / "result")
    again = Effects.load(tmp_path / "result")
    np.testing.assert_array_equal(again.of("sink"), result.of("sink"))
    assert again.notes == result.notes and revisions_of(again) == TWO
    assert [(one.name, one.unit) for one in again.measures] == [("sink_heads", "share"), ("sink", "score")]


def test_analyzers_are_read_over_the_corpus() -> None:
    model = mechrep.load_model("mechrep-tiny", revision=TWO[0])
    corpus = windows_of_text(model, embedded.held_out_text(), length=32, limit=4)
    result = over_checkpoints([AttentionSinks()], revisions=TWO, corpus=corpus)
    own = CorpusCache(model, corpus, progress=False).run(AttentionSinks())
    assert result.of("AttentionSinks: alpha, largest")[0, 0] == pytest.approx(float(own.to_frame()["alpha"].max()))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One model as three checkpoints on disk, the last with another tokenizer."""
    places = {}
    for name, bos in (("step1", True), ("step2", True), ("step3", False)):
        place = tmp_path_factory.mktemp(name)
        module: Any = tiny("llama")
        module.save_pretrained(place)
        tiny_tokenizer(place, bos=bos)
        places[name] = place
    return places


@pytest.mark.slow
def test_checkpoints_in_folders_and_of_another_tokenizer(folders: dict[str, Path], tmp_path: Path) -> None:
    good = {name: folders[name] for name in ("step1", "step2")}
    result = over_checkpoints([embedding_size], revisions=good, run=Run(store=tmp_path))
    assert [one.step for one in result.conditions] == [1, 2] and len(set(result.notes["fingerprints"])) == 1
    for _ in range(2):  # from the models, and from the store
        with pytest.raises(InputError, match=r"'step3' .tokenizer"):
            over_checkpoints([embedding_size], revisions=folders, run=Run(store=tmp_path))


@pytest.mark.parametrize(
    ("revisions", "said"),
    [
        (["step0", "step7"], "revision 'step7' of mechrep-tiny"),
        ([], "at least one"),
        (["step0", "step0"], "each once"),
        ("some", "'all', 'grid', a list"),
        ("a list of names", "'all', 'grid', a list"),
        ({}, "no revision"),
        ({"step1": "nowhere"}, "config.json"),
    ],
)
def test_revisions_that_do_not_exist(revisions: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        over_checkpoints([embedding_size], revisions=revisions)


@pytest.mark.parametrize("given", [3.0, {}, {"a": "b"}, {"a": []}, {"a": [[1.0]]}, None])
def test_measures_that_give_no_numbers(given: Any) -> None:
    with pytest.raises(InputError, match="which gave"):
        over_checkpoints({"bad": lambda model: given}, revisions=TWO[:1])


def test_measures_that_cannot_be_told_apart_or_change_their_units() -> None:
    lengths = itertools.count(2)
    with pytest.raises(InputError, match="the same units"):
        over_checkpoints({"growing": lambda model: {"a": [1.0] * next(lengths)}}, revisions=TWO)
    with pytest.raises(InputError, match="names of their own"):
        over_checkpoints({"one": lambda m: {"a": 1.0}, "two": lambda m: {"a": 2.0}}, revisions=TWO[:1])
    for bad, said in (
        ([], "at least one"),
        (["induktion"], "induktion"),
        ([AttentionSinks()], "corpus"),
        ([embedding_size] * 2, "'embedding_size' twice"),
    ):
        with pytest.raises(InputError, match=said):
            over_checkpoints(bad, revisions=TWO)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="settings"):
        measure_named("loops", texts=3)


def test_names_of_revisions() -> None:
    pythia = list_checkpoints("EleutherAI/pythia-70m", "grid")
    assert [int(one.step) for one in pythia] == [0, 128, 256, 512, 1000, 2000, 4000, 8000, 16000, 33000, 66000, 143000]
    assert pythia[4].tokens == 1000 * 2_097_152 and len(list_checkpoints("EleutherAI/pythia-1.4b")) == 154
    (olmo,) = list_checkpoints("allenai/OLMo-1B-hf", ["step1000-tokens4B"])
    assert (olmo.step, olmo.tokens) == (1000, 4e9)
    with pytest.raises(ModelError, match="name the revisions"):
        list_checkpoints("nobody/nothing")
    grid = list_checkpoints("mechrep-tiny", "grid")
    assert grid[0].name == embedded.revisions()[0] and grid[-1].name == embedded.revisions()[-1]
    assert [one.name for one in list_checkpoints("mechrep-tiny")] == embedded.revisions()


# --- ready-made measures ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> Model:
    return mechrep.load_model("mechrep-tiny")


def test_head_mechanisms_are_those_of_head_scores(model: Model) -> None:
    numbers = head_mechanisms(model, sequences=32)
    corpus = random_repeats(model, n=50, sequences=32)
    whole = CorpusCache(model, corpus, progress=False).run(HeadScores(bos_id=model.bos_id))
    for name in ("induction", "self_finding", "previous_token"):
        assert np.mean(numbers[name]) == pytest.approx(float(whole.of(name).max()), rel=1e-4)  # pyright: ignore
    losses = []
    plain: Any = model.plain
    with torch.no_grad():
        for ids in (corpus.row(0), corpus.row(1)):
            tokens = torch.tensor([ids])
            log_p = plain(tokens).logits[0, :-1].log_softmax(-1).gather(-1, tokens[0, 1:, None])[:, 0]
            losses.append(float(log_p[51:].mean() - log_p[1:50].mean()))
    np.testing.assert_allclose(np.array(numbers["copying"])[:2], losses, rtol=1e-3)


def test_sinks_and_loops_are_those_of_their_analyzers(model: Model) -> None:
    numbers = sink_share(model, windows=32)
    corpus = windows_of_text(model, embedded.held_out_text(), length=64, limit=32)
    whole = CorpusCache(model, corpus, progress=False).run(AttentionSinks())
    assert np.mean(numbers["sink"]) == pytest.approx(float(whole.to_frame()["alpha"].max()), rel=1e-4)
    flags = loop_flags(model, prompts=6)
    prompts = windows_of_text(model, embedded.held_out_text(), length=33, limit=6)
    frame = text_flow(model, prompts, max_new_tokens=200).frame
    assert flags["loops_naturally"] == frame["loops_naturally"].astype(float).tolist()
    np.testing.assert_array_equal(np.isnan(flags["copies_in_icl"]), ~frame["eligible_for_icl"].to_numpy())
