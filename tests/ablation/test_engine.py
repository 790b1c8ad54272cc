"""The engine: it equals a plain loop, keeps what is finished, and measures expensive outcomes under fewer draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

import mechrep
from mechrep import run as options
from mechrep.ablation.effects import Condition, Measure
from mechrep.ablation.forecast import forecast
from mechrep.ablation.outcomes import Cost, HeldOutLoss, LoopLogProbability, looping_texts
from mechrep.ablation.run import cost_of, measure_effects
from mechrep.errors import InputError, StoreError
from mechrep.interventions import Neurons, add, resample
from mechrep.interventions.apply import fingerprint_of
from mechrep.interventions.ops import Heads, Intervention
from mechrep.run import Run

UNITS = ["a", "b", "c"]
HEADS = Heads([(0, 0), (1, 0)], when="all")


class Sizes:
    """How many heads an intervention zeroes, plus the unit's number: nothing is run."""

    measures = (Measure("size", "count"),)
    units = clusters = UNITS
    cost = Cost(read=10, written=2)

    def __init__(self, *, regenerates: bool = False, name: str = "size") -> None:
        self.regenerates, self.facts, self.calls = regenerates, {"name": name}, []
        self.measures = (Measure(name, "count"),)

    def values(
        self, interventions: Sequence[Intervention | None], progress: bool | None
    ) -> Float[Tensor, "measure intervention unit"]:
        self.calls.append(len(interventions))
        sizes = [0.0 if one is None else float(len(one.units)) for one in interventions]  # pyright: ignore
        return torch.tensor([[[size + unit for unit in range(3)] for size in sizes]])


def cells(draws: int = 6) -> list[Any]:
    chosen = [(Condition(), None), (Condition("two", "ablation", 2), Heads([(0, 0), (1, 0)], when="all"))]
    heads = [Heads([(layer, 1), (3, head)], when="all") for layer in range(3) for head in range(2)]
    return [*chosen, *((Condition("two", "random", 2, seed=d), heads[d]) for d in range(draws))]


@pytest.fixture(scope="module")
def model() -> mechrep.Model:
    return mechrep.load_model("mechrep-tiny")


def test_every_condition_is_measured_on_every_unit(model: mechrep.Model) -> None:
    effects = measure_effects(model, cells(), [Sizes()], config={})
    assert effects.values[0].tolist() == [[s, s + 1, s + 2] for s in (0.0, *[2.0] * 7)]
    assert effects.units == [UNITS] and effects.provenance.config["conditions"][1]["name"] == "two"


def test_values_are_those_of_one_condition_at_a_time(model: mechrep.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of one batch, shards and stores change no number: nothing of one condition gets into another."""
    monkeypatch.setattr("mechrep.ablation.run._ROWS_PER_SHARD", 9)
    texts = mechrep.Corpus.from_tokens([[0, *range(20 + i, 52 + i)] for i in range(3)], model=model)
    loops = mechrep.Corpus.from_tokens([[0, *range(30, 50), *[9, 8, 7, 6, 5] * 4]], model=model).with_cycles()
    neurons = Neurons([(1, 3), (2, 5), (3, 300)], "add", when="all")
    mixed = [*cells(2), (Condition("n", "ablation", 3, "add"), neurons), (Condition("b", "ablation"), neurons + HEADS)]
    outcomes = [HeldOutLoss(model, texts), LoopLogProbability(model, *looping_texts(loops), 2, "from_onset")]
    together = measure_effects(model, mixed, outcomes, config={}).values
    for place, (_, intervention) in enumerate(mixed):
        alone = [outcome.values([intervention], False)[:, 0].double() for outcome in outcomes]
        for values, own in zip(together[:, place], torch.cat([_padded(one) for one in alone]), strict=True):
            torch.testing.assert_close(values, own, atol=2e-5, rtol=0, equal_nan=True)
    assert together[0, 1:, 0].unique().numel() == len(mixed) - 1


def _padded(values: Float[Tensor, "measure unit"]) -> Float[Tensor, "measure longest"]:
    return torch.nn.functional.pad(values, (0, 3 - values.shape[1]), value=torch.nan)


def test_the_fingerprint_is_of_all_that_decides_the_numbers(model: mechrep.Model) -> None:
    """Another value, unit, order or beginning is another study; the same written otherwise is the same."""
    one, other = Neurons([(1, 3)], "zero", when="all"), Neurons([(2, 3)], "zero", when="all")
    different = [
        [one],
        [other],
        [one, other],
        [other, one],
        [None, one],
        [one, None],
        [Neurons([(1, 3)], "zero", when="last")],
        [Neurons([(1, 3)], "add", when="all")],
        [Neurons([(1, 3)], add(1.5), when="all")],
        [Neurons([(1, 3), (2, 3)], "zero", when="all")],
        [Heads([(1, 1)], when="all")],
        [HEADS],
        [one + HEADS],
    ]
    found = [fingerprint_of(model, chosen) for chosen in different]
    assert len(set(found)) == len(different)
    assert fingerprint_of(model, [Neurons([(2, 3), (1, 3)], "zero", when="all")]) == found[9]
    assert fingerprint_of(model, [HEADS + one]) == found[12]


def test_expensive_outcomes_are_measured_under_the_first_draws_alone(
    model: mechrep.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(options.EFFORTS, "quick", replace(options.EFFORTS["quick"], regenerated_draws=2))
    cheap, expensive = Sizes(), Sizes(regenerates=True, name="written")
    run = Run(effort="quick")
    effects = measure_effects(model, cells(), [cheap, expensive], config={}, run=run)
    assert effects.values[0].isnan().sum() == 0
    assert effects.values[1].isnan().any(-1).tolist() == [False] * 4 + [True] * 4
    assert effects.draws().set_index("measure")["m"].to_dict() == {"size": 6, "written": 2}
    assert cost_of(cells(), [cheap, expensive], 2) == Cost(read=10 * (8 + 4), written=2 * (8 + 4))


def test_a_killed_run_goes_on_and_computes_nothing_twice(
    model: mechrep.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mechrep.ablation.run._ROWS_PER_SHARD", 6)  # two conditions a shard
    run, whole = Run(store=tmp_path), measure_effects(model, cells(), [Sizes()], config={})

    class Dies(Sizes):
        def values(self, interventions: Sequence[Intervention | None], progress: bool | None) -> Any:
            if len(self.calls) == 2:
                raise KeyboardInterrupt
            return super().values(interventions, progress)

    with pytest.raises(KeyboardInterrupt):
        measure_effects(model, cells(), [Dies()], config={}, run=run)
    again = Sizes()
    effects = measure_effects(model, cells(), [again], config={}, run=run)
    assert again.calls == [2, 2] and torch.equal(effects.values, whole.values)
    third = Sizes()
    assert torch.equal(measure_effects(model, cells(), [third], config={}, run=run).values, whole.values)
    assert third.calls == [] and not list(tmp_path.rglob("*.partial"))
    other = Sizes(name="other")
    measure_effects(model, cells(), [other], config={}, run=run)
    assert other.calls, "another outcome is another study"
    shard = next(tmp_path.rglob("shard-*.json"))
    shard.write_text(shard.read_text()[:20])
    with pytest.raises(StoreError, match="delete that file"):
        measure_effects(model, cells(), [Sizes()], config={}, run=run)
        measure_effects(model, cells(), [Sizes(name="other")], config={}, run=run)


def test_a_store_serves_another_effort_and_other_shards(
    model: mechrep.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With more draws the same shard holds other conditions: what was kept for it is not taken for them."""
    for name, draws in (("quick", 1), ("full", 3)):
        monkeypatch.setitem(options.EFFORTS, name, replace(options.EFFORTS[name], regenerated_draws=draws))
    for rows in (6, 9):
        monkeypatch.setattr("mechrep.ablation.run._ROWS_PER_SHARD", rows)
        for effort in ("quick", "full", "quick"):
            two = [*cells(4), *((replace(one, name="other"), edit) for one, edit in cells(4)[1:])]
            kept, plain = (
                measure_effects(model, two, [Sizes(regenerates=True)], config={}, run=Run(store=store, effort=effort))
                for store in (tmp_path, None)
            )
            torch.testing.assert_close(kept.values, plain.values, equal_nan=True)


def test_what_makes_no_table_is_refused(model: mechrep.Model) -> None:
    for chosen, outcomes, match in (
        ([], [Sizes()], "0 conditions"),
        (cells()[1:], [Sizes()], "the baseline first"),
        (cells(), [], "0 outcomes"),
        ([*cells(), cells()[1]], [Sizes()], "twice"),
        (cells(), [Sizes(), Sizes()], "twice"),
    ):
        with pytest.raises(InputError, match=match):
            measure_effects(model, chosen, outcomes, config={})


def test_what_it_will_cost_is_said_before_it_starts_where_it_is_long(
    model: mechrep.Model, capsys: pytest.CaptureFixture[str]
) -> None:
    long = Sizes()
    long.cost = Cost(read=10**9)
    measure_effects(model, cells(1), [long], config={"study": "a long one"})
    assert "a long one: at most 3,000,000,000 tokens to read" in capsys.readouterr().err
    measure_effects(model, cells(1), [Sizes()], config={})
    measure_effects(model, cells(1), [long], config={}, run=Run(progress=False))
    assert capsys.readouterr().err == ""
    small, large = (forecast(model, Cost(read=n)) for n in (10**6, 10**7))
    assert large.minutes == pytest.approx(10 * small.minutes) and small.gib > 0


def test_a_column_is_measured_once_in_a_run_and_alike_draws_once(model: mechrep.Model) -> None:
    run, outcome, again = Run(progress=False), Sizes(), Sizes()
    twice = [*cells(3), (Condition("two", "random", 2, seed=9), cells(3)[2][1])]
    first = measure_effects(model, twice, [outcome], config={}, run=run)
    assert outcome.calls == [5] and torch.equal(first.values[:, 2], first.values[:, 5])
    second = measure_effects(model, cells(4), [again], config={"study": "another"}, run=run)
    assert again.calls == [1] and torch.equal(second.values[:, :5], first.values[:, :5])
    for other in (Sizes(name="weight"), Sizes(regenerates=True, name="third")):
        measure_effects(model, cells(3), [other], config={}, run=run)
        assert other.calls == [5], "another outcome is measured anew"
    fresh = Sizes()
    measure_effects(model, cells(3), [fresh], config={}, run=Run(progress=False))
    assert fresh.calls == [5], "and so is the same one in another run"


def test_what_differs_from_text_to_text_is_never_taken_from_another_study(model: mechrep.Model) -> None:
    bank = torch.zeros(4, model.anatomy.n_layers, model.anatomy.d_mlp)
    drawn = Neurons([(0, 1)], resample(bank, seed=1), when="all")
    assert drawn.differs_by_text
    run, both = Run(progress=False), [Sizes(), Sizes()]
    for outcome in both:
        measure_effects(
            model, [(Condition(), None), (Condition("n", "ablation", 1), drawn)], [outcome], config={}, run=run
        )
    assert [outcome.calls for outcome in both] == [[2], [1]]
