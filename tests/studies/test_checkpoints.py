"""``over_checkpoints``: planted curves, one model at a time, going on after a kill, and what is refused."""

from __future__ import annotations

import gc
import itertools
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import mechrep
from mechrep.cache.corpus_cache import CorpusCache
from mechrep.cli.app import app
from mechrep.cli.checkpoints import checkpoints as command
from mechrep.errors import InputError, ModelError
from mechrep.generation.text_kinds import condition_flow
from mechrep.measures.attention_sinks import AttentionSinks
from mechrep.measures.head_scores import HeadScores
from mechrep.models import tiny as embedded
from mechrep.models.model import Model
from mechrep.provenance import Provenance
from mechrep.studies.checkpoints import (
    CheckpointResult,
    Measure,
    change_point,
    flow_figure,
    head_mechanisms,
    list_checkpoints,
    loop_flags,
    measure_named,
    mechanisms_figure,
    over_checkpoints,
    sink_share,
)
from mechrep.text.corpus import windows_of_text
from mechrep.text.stimuli import random_repeats
from tests.tiny_models import tiny, tiny_tokenizer

# --- change points ----------------------------------------------------------------------------------------------


def step(place: int, checkpoints: int = 12, units: int = 40, *, size: float = 1.0, noise: float = 0.3, seed: int = 0):
    """Units that step up between checkpoints ``place`` and ``place + 1``; every unit has a level of its own."""
    rng = np.random.default_rng(seed)
    level = rng.normal(0, noise, units) + rng.normal(0, noise, (checkpoints, units))
    return level + size * (np.arange(checkpoints)[:, None] > place)


def brute_force(means: np.ndarray) -> int:
    errors = [
        ((means[: k + 1] - means[: k + 1].mean()) ** 2).sum() + ((means[k + 1 :] - means[k + 1 :].mean()) ** 2).sum()
        for k in range(len(means) - 1)
    ]
    return int(np.argmin(errors))


@given(st.lists(st.integers(-9, 9), min_size=2, max_size=9).filter(lambda values: len(set(values)) > 1))
def test_the_step_is_that_of_least_squares(values: list[int]) -> None:
    means = np.array(values, dtype=float)
    point, _ = change_point(means[:, None], draws=2)
    best = brute_force(means)
    left, right = means[: best + 1], means[best + 1 :]
    chosen_left, chosen_right = means[: point.after + 1], means[point.after + 1 :]
    error = sum(((part - part.mean()) ** 2).sum() for part in (left, right))
    assert sum(((part - part.mean()) ** 2).sum() for part in (chosen_left, chosen_right)) == pytest.approx(error)
    assert point.size == pytest.approx(chosen_right.mean() - chosen_left.mean())
    assert point.explained == pytest.approx(1 - error / ((means - means.mean()) ** 2).sum())


@pytest.mark.parametrize(("place", "size"), [(0, 1.0), (5, 1.0), (10, 1.0), (4, -1.0)])
def test_planted_steps_are_found(place: int, size: float) -> None:
    point, drawn = change_point(step(place, size=size, seed=place), draws=200)
    assert point.after == place and point.low <= place <= point.high and point.clear
    assert point.size * size > 0
    assert len(drawn) == 200 and float((drawn == place).mean()) > 0.5


def test_intervals_cover_faint_steps_and_a_smooth_rise_lies_in_its_middle() -> None:
    covered, sizes = 0, 0
    for seed in range(40):
        point, _ = change_point(step(5, units=15, size=0.25, noise=0.3, seed=seed), draws=200)
        covered += point.low <= 5 <= point.high
        sizes += point.size_low <= 0.25 <= point.size_high
    assert covered >= 34 and sizes >= 32
    rise = 1 / (1 + np.exp(-(np.arange(13) - 6.0)))
    point, _ = change_point(rise[:, None] + np.random.default_rng(0).normal(0, 0.05, (13, 30)), draws=200)
    assert point.after in (5, 6) and point.low <= 5 <= point.high


def test_noise_has_no_clear_step() -> None:
    found = [change_point(step(5, size=0.0, seed=seed), draws=200)[0] for seed in range(20)]
    assert sum(point.clear for point in found) <= 2
    flat, _ = change_point(np.ones((6, 3)), draws=10)
    assert flat.size == 0 and not flat.clear


def test_missing_values_are_passed_over() -> None:
    values = step(4, checkpoints=8, noise=0.05)
    gaps = values.copy()
    gaps[2], gaps[6, 10:] = np.nan, np.nan
    point, drawn = change_point(gaps, draws=100)
    assert point.after == 4 and 2 not in set(drawn.tolist())
    with pytest.raises(InputError, match="1 of 8"):
        change_point(np.where(np.arange(8)[:, None] == 3, values, np.nan))


def planted_result(**series: np.ndarray) -> CheckpointResult:
    n = len(next(iter(series.values())))
    return CheckpointResult(
        Provenance({"name": "planted"}, {"texts": 0}, {}),
        revisions=[f"step{i}" for i in range(n)],
        steps=[float(i) for i in range(n)],
        tokens=[float("nan")] * n,
        fingerprints=[""] * n,
        units={name: values.tolist() for name, values in series.items()},
        sources={name: name.split("_")[0] for name in series},
    )


def test_the_order_of_planted_steps() -> None:
    result = planted_result(late=step(8, seed=1), early=step(3, seed=2), also=step(3, seed=3), noise=step(3, size=0.0))
    points = result.change_points().set_index("measure")
    assert points.loc["early", "before"] == "step3" and points.loc["early", "after"] == "step4"
    assert points.loc["late", "earliest"] == "step8" and bool(points.loc["late", "clear"])
    order = result.order()
    assert "noise" not in {*order["first"], *order["second"]}
    pair = order[(order["first"] == "early") & (order["second"] == "late")]
    assert float(pair["earlier"].iloc[0]) > 0.99
    tie = order[order["first"].isin(["early", "also"]) & order["second"].isin(["early", "also"])]
    assert float(tie["same"].iloc[0]) > 0.9
    with pytest.raises(InputError, match="measure 'lates'"):
        result.order(["lates", "early"])


def test_measures_of_one_source_are_drawn_together() -> None:
    """Two copies of one faint measure: drawn together they never part; drawn apart they do."""
    faint = step(5, units=10, size=0.3, noise=0.5, seed=3)
    together, apart = planted_result(a_1=faint, a_2=faint), planted_result(a=faint, b=faint)
    assert float(together.order(["a_1", "a_2"])["same"].iloc[0]) == 1.0
    assert float(apart.order(["a", "b"])["same"].iloc[0]) < 0.95


def test_the_table_has_means_and_intervals_of_units() -> None:
    values = step(2, checkpoints=4, units=50)
    values[3] = np.nan
    frame = planted_result(a=values, single=values[:, :1]).to_frame()
    part = frame[frame["measure"] == "a"]
    np.testing.assert_allclose(part["value"][:3], values[:3].mean(1))
    assert part["n"].tolist() == [50, 50, 50, 0] and bool(part[["value", "low", "high"]].iloc[3].isna().all())
    error = values[:3].std(1, ddof=1) / 50**0.5
    np.testing.assert_allclose((part["high"] - part["low"])[:3] / (2 * 1.96 * error), 1.0, atol=0.2)
    assert bool(frame.loc[frame["measure"] == "single", "low"].isna().all())


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
    assert result.steps[0] == 0 and result.tokens[1] == embedded.history()[-1]["tokens"]


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
        over_checkpoints([measure], revisions=revisions, store=tmp_path)
    result = over_checkpoints([measure], revisions=revisions, store=tmp_path)
    assert seen == [*revisions, revisions[1]]
    np.testing.assert_array_equal(
        over_checkpoints([measure], revisions=revisions, store=tmp_path).of("size"), result.of("size")
    )
    assert len(seen) == 3
    # Other settings are another measure; another list of checkpoints is not.
    over_checkpoints([measure], revisions=revisions[1:], store=tmp_path)
    assert len(seen) == 3
    over_checkpoints([Measure("measure", measure, {"seed": 1})], revisions=revisions[:1], store=tmp_path)
    assert len(seen) == 4


def test_analyzers_are_read_over_the_corpus() -> None:
    model = mechrep.load_model("mechrep-tiny", revision=TWO[0])
    corpus = windows_of_text(model, embedded.held_out_text(), length=32, limit=4)
    result = over_checkpoints([AttentionSinks()], revisions=TWO, corpus=corpus)
    (own,) = CorpusCache(model, corpus, progress=False).run(AttentionSinks())
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


def test_checkpoints_in_folders_and_of_another_tokenizer(folders: dict[str, Path], tmp_path: Path) -> None:
    good = {name: folders[name] for name in ("step1", "step2")}
    result = over_checkpoints([embedding_size], revisions=good, store=tmp_path)
    assert result.steps == [1, 2] and len(set(result.fingerprints)) == 1
    for _ in range(2):  # from the models, and from the store
        with pytest.raises(InputError, match=r"'step3' .tokenizer"):
            over_checkpoints([embedding_size], revisions=folders, store=tmp_path)


@pytest.mark.parametrize(
    ("revisions", "said"),
    [
        (["step0", "step7"], "revision 'step7' of mechrep-tiny"),
        ([], "at least one"),
        (["step0", "step0"], "each once"),
        ("some", "'all', 'grid'"),
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
        ([embedding_size] * 2, "own name"),
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
    (whole,) = CorpusCache(model, corpus, progress=False).run(HeadScores(bos_id=model.bos_id))
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
    (whole,) = CorpusCache(model, corpus, progress=False).run(AttentionSinks())
    assert np.mean(numbers["sink"]) == pytest.approx(float(whole.to_frame()["alpha"].max()), rel=1e-4)
    flags = loop_flags(model, prompts=6)
    prompts = windows_of_text(model, embedded.held_out_text(), length=33, limit=6)
    frame = condition_flow(model, prompts, max_new_tokens=200).frame
    assert flags["loops_naturally"] == frame["loops_naturally"].astype(float).tolist()
    np.testing.assert_array_equal(np.isnan(flags["copies_in_icl"]), ~frame["eligible_for_icl"].to_numpy())


# --- figures and the command ------------------------------------------------------------------------------------


def test_figures_show_the_numbers(tmp_path: Path) -> None:
    loops = (np.arange(6)[:, None] < np.array([6, 3, 0, 0])).astype(float)
    copies = np.where(loops > 0, np.nan, (np.arange(6)[:, None] >= np.array([9, 9, 4, 9])).astype(float))
    result = planted_result(loops_naturally=loops, copies_in_icl=copies, early=step(2, checkpoints=6))
    figure: Any = mechanisms_figure(result)
    assert len(figure.data) == 6  # a band and a line each
    np.testing.assert_allclose(figure.data[5].y, step(2, checkpoints=6).mean(1))
    flow: Any = flow_figure(result, ["step0", "step5"])
    link = flow.data[0].link
    flows = {(a, b): n for a, b, n in zip(link.source, link.target, link.value, strict=True)}
    # 0 loops, 1 copies, 2 neither; the second checkpoint's nodes begin at 3.
    assert flows == {(0, 3): 1, (0, 5): 1, (2, 4): 1, (2, 5): 1}
    with pytest.raises(InputError, match="loops"):
        flow_figure(planted_result(a=loops))
    result.save(tmp_path / "saved")
    np.testing.assert_array_equal(CheckpointResult.load(tmp_path / "saved").of("copies_in_icl"), copies)


def test_the_command(tmp_path: Path) -> None:
    assert command.__doc__
    arguments = ["checkpoints", "mechrep-tiny", "--revisions", ",".join(TWO), "--measures", "sinks", "--out"]
    answer = CliRunner().invoke(app, [*arguments, str(tmp_path)])
    assert answer.exit_code == 0, answer.output
    assert "change points" in answer.output and TWO[1] in answer.output
    table = (tmp_path / "checkpoints.csv").read_text()
    assert table.startswith("measure,revision,step") and "sink_heads" in table
    assert (tmp_path / "mechanisms.html").stat().st_size > 1000
    missing = CliRunner().invoke(app, ["checkpoints", "mechrep-tiny", "--revisions", "step7", "--out", str(tmp_path)])
    assert missing.exit_code == 1 and "step7" in missing.output
