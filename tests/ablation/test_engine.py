"""The engine: it equals a plain loop, keeps what is finished, and measures expensive outcomes under fewer draws."""

from __future__ import annotations

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
from mechrep.ablation.outcomes import Cost
from mechrep.ablation.run import cost_of, measure_effects
from mechrep.errors import InputError, StoreError
from mechrep.interventions.ops import Heads, Intervention
from mechrep.run import Run

UNITS = ["a", "b", "c"]


class Sizes:
    """How many heads an intervention zeroes, plus the unit's number: nothing is run."""

    measures = (Measure("size", "count"),)
    units = clusters = UNITS
    cost = Cost(read=10, written=2)

    def __init__(self, *, regenerates: bool = False, name: str = "size") -> None:
        self.regenerates, self.facts, self.calls = regenerates, {"name": name}, []
        self.measures = (Measure(name, "count"),)

    def values(
        self, interventions: list[Intervention | None], progress: bool | None
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
    assert cost_of(cells(), [cheap, expensive], run) == Cost(read=10 * (8 + 4), written=2 * (8 + 4))


def test_a_killed_run_goes_on_and_computes_nothing_twice(
    model: mechrep.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mechrep.ablation.run._ROWS_PER_SHARD", 6)  # two conditions a shard
    run, whole = Run(store=tmp_path), measure_effects(model, cells(), [Sizes()], config={})

    class Dies(Sizes):
        def values(self, *arguments: Any) -> Any:
            if len(self.calls) == 2:
                raise KeyboardInterrupt
            return super().values(*arguments)

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
