"""Sweeps as studies: what is held out, what is kept on disk, what the table says, what is refused."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mechrep.ablation import old_sweeps as sweeps
from mechrep.errors import InputError, NothingFoundError, StoreError
from mechrep.interventions import add, mean, scale
from mechrep.studies import SweepResult, activation_sweep, deactivation_sweep
from tests.studies.loops import free, looping, model, neurons

FAMILY = "gpt_neox"
NEW = 40


def deactivated(**options: Any) -> SweepResult:
    settings: dict[str, Any] = {"ks": [12], "controls": ["random"], "seeds": 2, "max_new_tokens": NEW}
    settings |= {"neurons": neurons(FAMILY).top(30), "corpus": looping(FAMILY)}
    return deactivation_sweep(model(FAMILY), **(settings | options))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every call that decodes."""
    rows: list[int] = []
    real = sweeps.run_requests

    def counted(model: Any, requests: Any, *args: Any, **options: Any) -> Any:
        rows.append(len(requests))
        return real(model, requests, *args, **options)

    monkeypatch.setattr(sweeps, "run_requests", counted)
    return rows


# --- held-out texts ------------------------------------------------------------------------------------------------


def test_texts_that_the_neurons_were_found_on_are_left_out_unless_the_protocol_says_otherwise() -> None:
    from mechrep.cache import CorpusCache
    from mechrep.measures.neurons import RepetitionNeurons

    find, test = looping(FAMILY).split(0.5)
    (found,) = CorpusCache(model(FAMILY), find).run(RepetitionNeurons("hiraoka2025", r=10))
    everything: dict[str, Any] = {"neurons": found, "controls": [], "ks": [5]}
    assert set(deactivated(**everything).outcome_frame()["text"]) == set(test.frame["id"])
    all_ids = set(looping(FAMILY).frame["id"])
    assert set(deactivated(**everything, held_out=False).outcome_frame()["text"]) == all_ids
    assert set(deactivated(**everything, preset="hiraoka2025").outcome_frame()["text"]) == all_ids
    strict = deactivated(**everything, preset="hiraoka2025", held_out=True)
    assert set(strict.outcome_frame()["text"]) == set(test.frame["id"])
    with pytest.raises(InputError, match="exactly the texts on which the neurons were found"):
        deactivated(**(everything | {"corpus": find}))


# --- the journal ---------------------------------------------------------------------------------------------------


def test_a_stopped_sweep_goes_on_with_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: list[int]
) -> None:
    n = len(looping(FAMILY))
    monkeypatch.setattr(sweeps, "_ROWS_PER_SHARD", n)  # one condition per shard
    whole = deactivated()
    assert calls == [n] * 4  # none, top, two draws
    calls.clear()
    real, countdown = sweeps.run_requests, itertools.count()

    def dies(*args: Any, **options: Any) -> Any:
        if next(countdown) == 2:
            raise KeyboardInterrupt
        return real(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(sweeps, "run_requests", dies)
        with pytest.raises(KeyboardInterrupt):
            deactivated(store=tmp_path)
    assert len(calls) == 2
    calls.clear()
    resumed = deactivated(store=tmp_path)
    assert calls == [n] * 2 and resumed.outcomes == whole.outcomes
    calls.clear()
    again = deactivated(store=tmp_path)
    assert calls == [] and not list(tmp_path.rglob("*.partial"))
    pd.testing.assert_frame_equal(again.to_frame(), whole.to_frame())


def test_whatever_decides_the_outcome_decides_where_it_is_kept(tmp_path: Path, calls: list[int]) -> None:
    sd, corpus = neurons(FAMILY).normal_sd, looping(FAMILY)
    common: dict[str, Any] = {"controls": [], "store": tmp_path}
    later = corpus.with_columns(onset=corpus.frame["onset"] + corpus.frame["onset"] - corpus.frame["start"])
    variants: list[dict[str, Any]] = [
        {}, {"op": add(sd)}, {"op": add(2 * sd)}, {"op": mean(sd)}, {"op": scale(0.5)}, {"op": scale(0.5 + 1e-9)},
        {"ks": [11]}, {"preset": "hiraoka2025"}, {"max_new_tokens": 30}, {"stop_early": False},
        {"corpus": later}, {"corpus": corpus.select([0, 1])}, {"neurons": neurons(FAMILY).top(30)[::-1]},
    ]  # fmt: skip
    for number, options in enumerate(variants, start=1):
        deactivated(**(common | options))
        assert len(calls) == number, f"{options} was answered with the numbers of another sweep"
        deactivated(**(common | options))
        assert len(calls) == number, f"{options} was computed twice"


def test_the_cut_of_an_activation_sweep_counts_too(tmp_path: Path, calls: list[int]) -> None:
    for length in (20, 25, 20):
        activation_sweep(
            model(FAMILY), free(FAMILY), neurons=[(0, 1)], ks=[1], controls=[], prompt_length=length,
            max_new_tokens=5, store=tmp_path,
        )  # fmt: skip
    assert len(calls) == 2


def test_a_store_that_cannot_be_used_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="a folder to write to"):
        deactivated(store=tmp_path / "file" / "below")
    deactivated(store=tmp_path)
    (shard,) = (tmp_path / "studies").rglob("shard-*.json")
    shard.write_text(shard.read_text()[:50])
    with pytest.raises(StoreError, match=f"{shard.name}.*delete that file"):
        deactivated(store=tmp_path)
    shard.unlink()

    def full(self: Path, *_: Any, **__: Any) -> int:
        self.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(StoreError, match="No space left"):
        deactivated(store=tmp_path)
    assert not list(tmp_path.rglob("*.partial")) and not list(tmp_path.rglob("shard-*"))


# --- the table -----------------------------------------------------------------------------------------------------


def test_the_table_counts_the_outcomes_and_its_intervals_are_wilsons(tmp_path: Path) -> None:
    sweep = deactivated(ks=[12, 30], seeds=3)
    frame, outcomes = sweep.to_frame(), sweep.outcome_frame()
    assert frame[["selection", "k", "seed"]].values.tolist()[:3] == [["none", 0, 0], ["top", 12, 0], ["random", 12, 0]]
    for row in frame.itertuples():
        cell = outcomes[(outcomes["selection"] == row.selection) & (outcomes["k"] == row.k)]
        cell = cell[cell["seed"] == row.seed]
        assert row.texts == len(cell) == len(looping(FAMILY)) and row.still_repeating == cell["repeating"].sum()
        ends = stats.binomtest(int(row.still_repeating), len(cell)).proportion_ci(0.95, "wilson")
        assert (row.share, row.low, row.high) == pytest.approx((cell["repeating"].mean(), ends.low, ends.high))
        escapes = [value for value in cell["escaped_at"] if value == value and value is not None]
        assert row.escaped == len(escapes) and row.relooped == cell["relooped"].sum()
        if escapes:
            assert row.median_tokens_to_escape == np.median(escapes)
        else:
            assert np.isnan(row.median_tokens_to_escape)
    summary = sweep.summary().set_index(["selection", "k"])
    draws = frame[(frame["selection"] == "random") & (frame["k"] == 12)]["share"]
    assert summary.loc[("random", 12), "draws"] == 3 and summary.loc[("random", 12), "share"] == draws.mean()
    assert summary.loc[("random", 12), ["low", "high"]].tolist() == np.percentile(draws, [2.5, 97.5]).tolist()
    assert summary.loc[("top", 12), "low"] == frame.loc[1, "low"]
    # it reads like its table, and comes back from disk the same
    assert (
        sweep["share"].tolist() == frame["share"].tolist() and len(sweep) == len(frame) and sweep.shape == frame.shape
    )
    assert sweep.query("k == 30")["selection"].tolist() == ["top", "random", "random", "random"]
    sweep.save(tmp_path / "sweep")
    loaded = SweepResult.load(tmp_path / "sweep")
    pd.testing.assert_frame_equal(loaded.to_frame(), frame)
    assert loaded.outcomes == sweep.outcomes and loaded.provenance.to_dict() == sweep.provenance.to_dict()
    with pytest.raises(AttributeError):
        sweep.no_such_column  # noqa: B018


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"preset": "hiraoka2026"}, InputError, "hiraoka2026"),
        ({"op": "one"}, InputError, "op='one'"),
        ({"max_new_tokens": 0}, InputError, "max_new_tokens=0"),
        ({"max_new_tokens": 1000}, InputError, "at most 256 positions"),
        ({"batch_size": 0}, InputError, "batch_size=0"),
        ({"seeds": 0}, InputError, "seeds=0"),
        ({"ks": [31]}, InputError, "0 to 30, the neurons given"),
        ({"neurons": []}, InputError, r"neurons=\[\]"),
        ({"neurons": [(9, 0)], "ks": [1], "controls": []}, InputError, "layer 9"),
        ({"neurons": [(0, 48)], "ks": [1], "controls": []}, InputError, "neuron 48 of layer 0"),
        ({"neurons": [(0, 1), (0, 1)], "ks": [2], "controls": []}, InputError, "duplicates"),
        ({"controls": ["activation_matched"]}, InputError, "with a list of neurons"),
    ],
)
def test_bad_input_is_refused(options: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        deactivated(**options)


def test_texts_that_do_not_suit_the_question_are_refused() -> None:
    loops, others = looping(FAMILY), free(FAMILY)
    with pytest.raises(NothingFoundError, match="6 texts without an onset"):
        deactivated(corpus=others)
    with pytest.raises(InputError, match="0 <= start < onset < length"):
        deactivated(corpus=loops.with_columns(start=loops.frame["onset"]))
    with pytest.raises(NothingFoundError, match="all with an onset"):
        activation_sweep(model(FAMILY), loops, neurons=[(0, 1)], ks=[1])
    with pytest.raises(InputError, match=r"texts of at most \d+ tokens.*at least 200 tokens"):
        activation_sweep(model(FAMILY), others, neurons=[(0, 1)], ks=[1], prompt_length=200)
