"""The table of every study, measure x condition x unit, and what follows from it: effects, intervals, one verdict.

A *condition* is what the model is under: the baseline, an ablation, a draw of a control, a null model, a checkpoint.
A *measure* gives one number per *unit* (text, token, question).  A study says which conditions and which measures;
effect, interval, p-value, verdict, forest plot, curve and Parquet file are made here, once.

The verdict, the one rule of the whole package:

* **Units.**  Texts of one cluster (a family of loops) are one independent unit: intervals resample clusters.
* **p-value.**  Two questions, and the larger of their p-values counts, because the claim needs both answers.

  *Do the texts agree that there is an effect?*  How rarely changed signs of the clusters' effects give a mean as far
  from 0, :func:`~mechrep.stats.sign_flip_p_values`.  Without this a set whose effect is noise would stand out from
  controls that do nothing at all.

  *Is it more than any set of this size does?*  The rank of the effect among ``m`` control draws,
  ``p = (1 + number of draws at least as extreme) / (m + 1)``.  Without a direction named before, extreme means far from
  0 on either side.  With several kinds of control the largest p counts: the effect must stand out from each kind.

  Among *peers*, where every ablation is tested and is a control of all others, ranks say nothing: whatever the effects,
  each rank comes once.  There the second question is whether the effect differs from that of the middle peer, by
  signs over texts like the first.
* **Family.**  Benjamini and Hochberg's q-values within the family of tests that the claim names: those that answer one
  question of texts of one kind, at all sizes and by all measures.
* **Size.**  The effect must exceed the floor of its unit, and its 95 % interval must exclude 0.
* **Words.**  "supported" (``q <= 0.05`` and beyond the floor), "not supported", or "too few": with so few units or
  draws ``q <= 0.05`` cannot be reached, whatever the effect; or this one is as far out as so few can show, and its
  family is too large for that.

The error rate, by simulation in the tests: 4.4 to 5.6 % where sets differ by chance alone (whether by less or by much
more than texts), and where controls do nothing and the effect is noise over texts (2.5 % with a direction: texts are
asked about both sides); with texts on their own and in families, even of uneven size.  It is less where both are so
(1.5 to 3.5 %: both answers must be wrong), and where few texts answer yes or no (1 to 4 %: draws tie).  Effects of a
few texts that lie far to one side make it 7 to 8 %.

Limits: controls that all move a measure one way hide a smaller effect the other way, unless its direction was named.

Source: rank p-values: Phipson & Smyth 2010 (Statistical Applications in Genetics and Molecular Biology 9, 39); the
larger of two p-values: Berger 1982 (Technometrics 24, 295-300); false discovery rate: Benjamini & Hochberg 1995
(Journal of the Royal Statistical Society B 57, 289-300).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import Tensor

from mechrep.ablation.conditions import (
    ABLATION,
    BASELINE,
    CELL,
    CHECKPOINT,
    NOT_SUPPORTED,
    SUPPORTED,
    TOO_FEW,
    UNITS,
    Condition,
    Measure,
)
from mechrep.errors import InputError
from mechrep.guards import check_count, guarded, one_of
from mechrep.results import Result
from mechrep.stats import cluster_intervals, least_sign_flip_p, proportion_interval, range_of_draws, sign_flip_p_values

if TYPE_CHECKING:
    import plotly.graph_objects as go

_TESTED = (BASELINE, ABLATION, CHECKPOINT)  # all other selections are controls
LEVEL = 0.05
_ROUNDED = LEVEL + 1e-9  # q of 0.05 is 0.05000000000000001 in some families
FEWEST_UNITS = 6  # changed signs of fewer independent units cannot reach 0.05 even if all of them agree


@dataclass(frozen=True, eq=False)
class Effects(Result):
    """What every unit got in every measure under every condition.

    Attributes:
        conditions: the columns; the first is the baseline that effects are differences to.
        measures: the rows.
        units: ids of the units of each measure, in the order of ``values``.
        clusters: the cluster of each unit; units of one cluster are not independent.
        values: NaN where a unit has no such number, or was not measured under a condition.
        notes: what the numbers do not say: ``excluded``, components that no control may hold; ``left_out``, controls
            that could not be drawn; ``peers``: each ablation's controls are all others of its size and operation, under
            this name; ``middle``: names of the ablations that stand for the usual ones, where the others were picked.

    Example:
        >>> from mechrep.ablation.effects import example_effects
        >>> effects = example_effects()
        >>> row = effects.summary().iloc[0]
        >>> print(row["measure"], round(row["effect"], 2), row["m"], row["verdict"])
        loss 1.01 99 supported
    """

    conditions: Sequence[Condition]
    measures: Sequence[Measure]
    units: Sequence[Sequence[str]]
    clusters: Sequence[Sequence[str]]
    values: Float[Tensor, "measure condition unit"]
    notes: Mapping[str, Any] = field(default_factory=dict)

    nested: ClassVar[Mapping[str, type]] = {"conditions": Condition, "measures": Measure}

    def __post_init__(self) -> None:
        sizes = (len(self.measures), len(self.conditions))
        ragged = [name for name, ids in (("units", self.units), ("clusters", self.clusters)) if len(ids) != sizes[0]]
        if ragged or tuple(self.values.shape[:2]) != sizes or self.conditions[0].selection != BASELINE:
            raise InputError(
                f"values of shape {tuple(self.values.shape)} for {sizes[0]} measures and {sizes[1]} conditions",
                "a number per measure, condition and unit; the first condition the baseline",
                "give units and clusters for every measure",
            )

    # --- reading ----------------------------------------------------------------------------------------------------

    @guarded
    def number(self, measure: str | None = None, copy: int | None = None) -> int:
        """Place of a measure; by default the first, and of the copies of a loop the first that has several tokens.

        Raises:
            InputError: a measure or copy that is not there.
        """
        name = self.measures[0].name if measure is None else measure
        places = {m.copy: place for place, m in enumerate(self.measures) if m.name == name}
        if copy is None and places and None not in places:
            copy = min(1, max(one for one in places if one is not None))
        if copy not in places:
            measured = sorted({(m.name, m.copy) for m in self.measures}, key=str)
            raise InputError(f"measure {name!r}, copy {copy}", f"one of {measured}", "choose one that was measured")
        return places[copy]

    @guarded
    def of(self, measure: str | None = None, copy: int | None = None) -> Float[np.ndarray, "condition unit"]:
        """Values of one measure, for the units that it has."""
        place = self.number(measure, copy)
        return self.values[place, :, : len(self.units[place])].double().numpy()

    @guarded
    def effect_of(self, measure: str | None = None, copy: int | None = None) -> Float[np.ndarray, "condition unit"]:
        """Differences to the baseline, unit by unit."""
        values = self.of(measure, copy)
        return values - values[:1]

    def mean_effects(self) -> list[Float[np.ndarray, " condition"]]:
        """Of every measure: the mean difference to the baseline, over the units that have both."""
        return [_mean(self._change(number)) for number in range(len(self.measures))]

    @guarded
    def select(self, keep: Sequence[int] | None = None, measures: Sequence[str] | None = None) -> Effects:
        """Fewer conditions (the baseline stays) or measures.

        Raises:
            InputError: a measure that is not there.
        """
        for name in measures or ():
            one_of("measure", name, self._names())
        rows = [i for i, m in enumerate(self.measures) if measures is None or m.name in measures]
        columns = list(range(len(self.conditions))) if keep is None else [0, *(i for i in keep if i)]
        return dataclasses.replace(
            self,
            conditions=[self.conditions[i] for i in columns],
            measures=[self.measures[i] for i in rows],
            units=[self.units[i] for i in rows],
            clusters=[self.clusters[i] for i in rows],
            values=self.values[rows][:, columns],
        )

    def _names(self) -> list[str]:
        return list(dict.fromkeys(m.name for m in self.measures))

    def _shown_frame(self) -> pd.DataFrame:
        return self.to_frame() if len(self.conditions) == 1 else self.summary()

    # --- tables -----------------------------------------------------------------------------------------------------

    def to_frame(self) -> pd.DataFrame:
        """One row per measure and condition.

        Columns: ``name, selection, k, op, part, seed, model, step``; ``measure, copy, unit, over``; ``value``, the mean
        over units, with the 95 % interval ``value_low``/``value_high``; ``effect``, the mean difference to the baseline
        over the units that have both, with ``low``/``high``; ``n`` independent units (clusters) among ``texts`` units.
        Intervals resample clusters; where each number is yes or no and each unit its own cluster, the interval of the
        value is Wilson's.  Of control draws intervals are left out: their spread over draws is what counts.
        """
        cells = self._cells()
        tables = [self._table(place, cells) for place in range(len(self.measures))]
        return pd.concat(tables, ignore_index=True).astype({"copy": "Int64", "step": float})

    def _cells(self) -> pd.DataFrame:
        return pd.DataFrame({name: [getattr(one, name) for one in self.conditions] for name in CELL})

    def _table(self, place: int, cells: pd.DataFrame) -> pd.DataFrame:
        measure, ids = self.measures[place], np.asarray(self.clusters[place], dtype=str)
        values = self.values[place, :, : len(ids)].double().numpy()
        change, (names, members) = values - values[:1], np.unique(ids, return_inverse=True)
        own = cells["selection"].isin(_TESTED).to_numpy()
        value_ends, ends = (np.full((len(values), 2), np.nan) for _ in range(2))
        if measure.over != "model":
            value_ends[own] = cluster_intervals(values[own], ids)
            ends[own] = cluster_intervals(change[own], ids)
            if measure.trials == 1 and len(names) == len(ids):
                value_ends[own] = [
                    proportion_interval(int(np.nansum(v)), int((~np.isnan(v)).sum())) for v in values[own]
                ]
        known = ~np.isnan(change)
        return cells.assign(
            measure=measure.name, copy=measure.copy, unit=measure.unit, over=measure.over,
            value=_mean(values), value_low=value_ends[:, 0], value_high=value_ends[:, 1],
            effect=_mean(change), low=ends[:, 0], high=ends[:, 1],
            n=(known @ np.eye(len(names))[members] > 0).sum(1), texts=known.sum(1),
        )  # fmt: skip

    def unit_frame(self) -> pd.DataFrame:
        """One row per measure, condition and unit: ``unit_id``, ``cluster``, ``value``."""
        cells, tables = self._cells(), []
        for measure, ids, clusters, values in zip(self.measures, self.units, self.clusters, self.values, strict=True):
            table = cells.loc[cells.index.repeat(len(ids))].reset_index(drop=True)
            tables.append(
                table.assign(
                    measure=measure.name, copy=measure.copy, unit=measure.unit,
                    unit_id=list(ids) * len(cells), cluster=list(clusters) * len(cells),
                    value=values[:, : len(ids)].flatten().tolist(),
                )
            )  # fmt: skip
        frame = pd.concat(tables, ignore_index=True).astype({"copy": "Int64", "step": float})
        return frame[frame["value"].notna()].reset_index(drop=True)

    def wide(self) -> pd.DataFrame:
        """One row per condition, a column per measure: means, or counts where each number is yes or no.

        Missing where a condition was not measured.
        """
        frame = self._cells()
        frame["texts"] = (~self.values.isnan()).sum(-1).max(0).values.tolist()
        for measure, values in zip(self.measures, self.values.double().numpy(), strict=True):
            name = measure.name if measure.copy is None else f"{measure.name} {measure.copy}"
            frame[name] = _mean(values)
            if measure.trials == 1:
                counts = pd.Series(np.nansum(values, 1).round(), dtype="Int64").mask(frame[name].isna())
                frame[name] = counts if counts.isna().any() else counts.astype(int)
        return frame

    def draws(self) -> pd.DataFrame:
        """One row per measure, ablation and kind of control: ``m`` draws, their mean and range, the p-value.

        ``control_low`` and ``control_high`` are :func:`~mechrep.stats.range_of_draws`.  ``p`` is the rank's, or among
        peers that of the difference to the middle one.
        """
        places, rows = self._controls(), []
        for number, measure in enumerate(self.measures):
            change = self._change(number)
            effects, apart = _mean(change), self._p_beside_peers(number, change)
            for place, kinds in places.items():
                condition, own = self.conditions[place], effects[place]
                facts = {name: getattr(condition, name) for name in _OF}
                facts |= {"measure": measure.name, "copy": measure.copy, "unit": measure.unit, "effect": own}
                for kind, members in kinds.items():
                    drawn = effects[members]
                    drawn = drawn[~np.isnan(drawn)]
                    if len(drawn):
                        p = rank_p_value(own, drawn, measure.direction) if apart is None else apart[place]
                        spread = dict(zip(_SPREAD, (drawn.mean(), *range_of_draws(drawn)), strict=True))
                        rows.append(facts | {"control": kind, "m": len(drawn), **spread, "p": p})
        columns = [*_OF, "measure", "copy", "unit", "effect", "control", "m", *_SPREAD, "p"]
        return pd.DataFrame(rows, columns=columns).astype({"copy": "Int64"})

    def _change(self, number: int) -> Float[np.ndarray, "condition unit"]:
        values = self.values[number, :, : len(self.units[number])].double().numpy()
        return values - values[:1]

    def _controls(self) -> dict[int, dict[str, list[int]]]:
        """Of each ablation, by its place: the places of its draws, by kind of control."""
        ablations = [place for place, one in enumerate(self.conditions) if one.selection == ABLATION]
        peers = self.notes.get("peers")
        if peers is not None:
            alike: dict[Any, list[int]] = {}
            for place in ablations:
                alike.setdefault(self.conditions[place].like, []).append(place)
            return {
                place: {peers: [other for other in alike[self.conditions[place].like] if other != place]}
                for place in ablations
            }
        drawn: dict[Any, dict[str, list[int]]] = {}
        for place, one in enumerate(self.conditions):
            if one.selection not in _TESTED:
                drawn.setdefault(one.of, {}).setdefault(one.selection, []).append(place)
        return {place: drawn.get(self.conditions[place].of, {}) for place in ablations}

    def _p_of_units(self, number: int, change: Float[np.ndarray, "condition unit"]) -> Float[np.ndarray, " condition"]:
        """p-values of no effect over the units, of ablations; NaN for others, and where a number is exact."""
        own = np.array([one.selection == ABLATION for one in self.conditions])
        found = np.full(len(own), np.nan)
        if self.measures[number].over != "model":
            found[own] = sign_flip_p_values(change[own], self.clusters[number])
        return found

    def _p_beside_peers(
        self, number: int, change: Float[np.ndarray, "condition unit"]
    ) -> Float[np.ndarray, " condition"] | None:
        """p-values of no difference to the median of all ablations of a kind, unit by unit; ``None`` without peers.

        1 where an effect is nearer to 0 than the median.
        """
        if self.notes.get("peers") is None:
            return None
        apart, groups = np.full_like(change, np.nan), {}
        for place, one in enumerate(self.conditions):
            if one.selection == ABLATION:
                groups.setdefault(one.like, []).append(place)
        usual = self.notes.get("middle")
        for members in groups.values():
            among = [place for place in members if usual is None or self.conditions[place].name in usual]
            for unit in range(change.shape[1]):
                column = change[among, unit]
                if not np.isnan(column).all():
                    apart[members, unit] = change[members, unit] - np.nanmedian(column)
        nearer = _mean(apart) * _mean(change) < 0
        return np.where(nearer, 1.0, self._p_of_units(number, apart))

    @guarded
    def summary(self, within: Sequence[str] = (), family: str = "") -> pd.DataFrame:
        """One row per measure and ablation, with controls and verdict.

        Columns as :meth:`to_frame` has, and: ``baseline``, the value without the ablation; ``controls``, their kinds;
        ``m`` draws of the kind that has fewest; ``control_mean``, ``control_low``, ``control_high`` over all of them;
        ``p_units``, how rarely texts give such a mean if there is no effect; ``p``, the largest of this and of those
        beside each kind of control; ``least``, the smallest that it could be; ``q``, ``family``, ``verdict``
        (:func:`judge`).

        Args:
            within: columns that divide the tests into families; by default the table is one family.
            family: its name.
        """
        frame, draws = self.to_frame(), self.draws()
        keys = [*_OF, "measure", "copy"]
        table = frame[frame["selection"] == ABLATION].drop(columns=["selection", "seed"])
        table = table.merge(_over_kinds(draws), on=keys, how="left")
        table["m"] = table["m"].fillna(0).astype(int)
        table["controls"] = table["controls"].fillna("")
        base = frame[frame["selection"] == BASELINE].drop_duplicates(["measure", "copy"])
        measures = pd.DataFrame(
            {
                "measure": [one.name for one in self.measures],
                "copy": pd.array([one.copy for one in self.measures], dtype="Int64"),
                "direction": [one.direction for one in self.measures],
                "baseline": base["value"].to_numpy(),
                "floor": [UNITS[one.unit].floor for one in self.measures],
                "relative": [UNITS[one.unit].relative for one in self.measures],
            }
        )
        table = table.merge(measures, on=["measure", "copy"], how="left")
        table["floor"] *= np.where(table.pop("relative"), table["baseline"].abs(), 1.0)
        own = [place for place, one in enumerate(self.conditions) if one.selection == ABLATION]
        table["p_units"] = np.concatenate(
            [self._p_of_units(number, self._change(number))[own] for number in range(len(self.measures))]
        )
        least = np.where(table["over"] == "model", 0.0, [least_sign_flip_p(n) for n in table["n"]])
        ranked = 0.0 if "peers" in self.notes else 1 / (table["m"] + 1)
        table["p"] = table[["p", "p_units"]].max(axis=1).where(table["p"].notna())
        table["least"] = np.maximum(least, ranked)
        return judge(table, within=within, family=family)

    @guarded
    def ranking(  # pyright: ignore[reportIncompatibleMethodOverride] - of a measure, not of a field
        self, measure: str | None = None, copy: int | None = None
    ) -> list[int]:
        """Places of the ablations, the one that changes a measure most first."""
        sizes = np.abs(_mean(self.effect_of(measure, copy)))
        chosen = [i for i, one in enumerate(self.conditions) if one.selection == ABLATION]
        return sorted(chosen, key=lambda place: -np.nan_to_num(sizes[place]))

    @guarded
    def top(self, k: int, measure: str | None = None, copy: int | None = None) -> list[Condition]:
        """The ``k`` ablations that change a measure most.

        Raises:
            InputError: ``k`` larger than their number, or a measure that is not there.
        """
        ranking = self.ranking(measure, copy)
        check_count(k, len(ranking), "ablations")
        return [self.conditions[place] for place in ranking[:k]]

    @guarded
    def to_parquet(self, path: str | Path) -> None:
        """Write :meth:`unit_frame` for other programs (R, DuckDB, polars)."""
        self.unit_frame().to_parquet(path)

    # --- figures ----------------------------------------------------------------------------------------------------

    @guarded
    def plot(self, measures: Sequence[str] | None = None) -> go.Figure:
        """Forest plot: a panel per measure, a line per ablation with its interval, every control draw an open mark."""
        from mechrep.ablation.effect_plots import forest

        return forest(self, measures)

    @guarded
    def curve(self, x: str = "k", measures: Sequence[str] | None = None) -> go.Figure:
        """The measures over ``"k"`` (numbers of components) or ``"step"`` (training), with intervals and controls."""
        from mechrep.ablation.effect_plots import curve

        return curve(self, x, measures)


_OF = ["name", "k", "op", "part", "model"]
_SPREAD = ["control_mean", "control_low", "control_high"]


def _mean(values: Float[np.ndarray, "condition unit"]) -> Float[np.ndarray, " condition"]:
    known = ~np.isnan(values)
    sums, counts = np.where(known, values, 0.0).sum(1), known.sum(1)
    return np.divide(sums, counts, out=np.full(len(values), np.nan), where=counts > 0)


def _over_kinds(draws: pd.DataFrame) -> pd.DataFrame:
    """One row per measure and ablation from one per kind of control: their names, the fewest draws, the largest p."""
    weighted = draws.assign(sums=draws["control_mean"] * draws["m"], draws=draws["m"])
    table = weighted.groupby([*_OF, "measure", "copy"], sort=False, dropna=False).agg(
        controls=("control", ", ".join), m=("m", "min"), sums=("sums", "sum"), draws=("draws", "sum"),
        control_low=("control_low", "min"), control_high=("control_high", "max"), p=("p", "max"),
    )  # fmt: skip
    table.insert(2, "control_mean", table.pop("sums") / table.pop("draws"))
    return table.reset_index()


# --- the one verdict ------------------------------------------------------------------------------------------------


def rank_p_value(effect: float, draws: Sequence[float] | Float[np.ndarray, " draw"], direction: int = 0) -> float:
    """How rarely a control draw is as extreme: ``p = (1 + number of such draws) / (m + 1)``.

    Under the null the set under test is one more draw, so every rank is equally likely and p is valid at any ``m``.

    Args:
        effect: of the set under test.
        draws: effects of its controls.
        direction: the sign that was named before looking, or 0: then extreme means far from 0.

    Returns:
        NaN without draws.

    Example:
        >>> rank_p_value(-2.0, [0.1, -0.3, 0.2]), rank_p_value(-2.0, [0.1, -0.3, 0.2], direction=1)
        (0.25, 1.0)
    """
    known = np.asarray(draws, dtype=float)
    known = known[~np.isnan(known)]
    if len(known) == 0 or np.isnan(effect):
        return float("nan")
    own, others = (abs(effect), np.abs(known)) if direction == 0 else (direction * effect, direction * known)
    tolerance = 1e-9 * max(1.0, abs(own))  # equal up to rounding counts as equal
    return float((1 + (others >= own - tolerance).sum()) / (len(known) + 1))


def detection(
    name: str,
    measure: str,
    value: float,
    draws: Sequence[float],
    *,
    unit: str = "score",
    interval: tuple[float, float] = (float("nan"), float("nan")),
    n: int = 0,
    direction: int = 1,
) -> dict[str, Any]:
    """A row for :func:`judge`: is something there at all, beside what null models and random units give?

    ``effect`` is the value minus the mean of the draws; so are ``control_low`` and ``control_high`` of the draws.

    Args:
        name: what was looked for.
        measure: what was measured.
        value: of the model, or of the unit found.
        draws: the same of null models or random units.
        unit: a key of :data:`UNITS`.
        interval: of the value over texts, where there is one.
        n: independent units behind the value; 0: it is exact for the model.
        direction: the sign that counts.

    Example:
        >>> row = detection("norm sink", "ratio", 9.0, [1.0 + i / 100 for i in range(19)], unit="ratio")
        >>> judge([row])[["p", "verdict"]].values.tolist()
        [[0.05, 'supported']]
    """
    known = [draw for draw in draws if not np.isnan(draw)]
    centre = float(np.mean(known)) if known else float("nan")
    least, most = range_of_draws(known)
    return {
        "name": name, "measure": measure, "unit": unit, "value": value, "baseline": centre, "effect": value - centre,
        "low": interval[0] - centre, "high": interval[1] - centre, "n": n, "over": "text" if n else "model",
        "direction": direction, "floor": UNITS[unit].floor * (abs(centre) if UNITS[unit].relative else 1.0),
        "controls": "null models", "m": len(known), "control_mean": 0.0 if known else centre,
        "control_low": least - centre, "control_high": most - centre,
        "p": rank_p_value(value, known, direction),
    }  # fmt: skip


def judge(
    rows: pd.DataFrame | Sequence[Mapping[str, Any]], *, within: Sequence[str] = (), family: str = ""
) -> pd.DataFrame:
    """Add ``q``, ``family`` and ``verdict`` to rows of effects.  No other place decides a verdict.

    Args:
        rows: with ``effect, low, high, n, over, direction, floor, m, p``, as :meth:`Effects.summary` and
            :func:`detection` make them; ``least``, the smallest that p could be, where it is not ``1 / (m + 1)``.
        within: columns that divide the rows into families for the false discovery rate.
        family: what the family is called.

    Returns:
        The rows; ``family`` is the name with the number of tests in it.  Rows that can reach no q of 0.05 are "too few"
        and do not burden the others' q-values.  So are rows with the smallest p that they could have and a q above
        0.05: no draw is as extreme, and what is missing are draws, or a smaller family.
    """
    from scipy.stats import false_discovery_control

    table = pd.DataFrame(rows).reset_index(drop=True)
    if table.empty:
        return table.assign(q=pd.Series(dtype=float), family=pd.Series(dtype=str), verdict=pd.Series(dtype=str))
    exact = table["over"] == "model"
    ranked = 1 / (table["m"] + 1)
    least = table["least"].fillna(ranked) if "least" in table else ranked
    reachable = (least <= _ROUNDED) & (exact | (table["n"] >= FEWEST_UNITS)) & table["p"].notna()
    keys = within[0] if len(within) == 1 else list(within)
    groups = table.groupby(keys, sort=False, dropna=False).groups if within else {"": table.index}
    table["q"], table["family"] = np.nan, family
    for index in groups.values():
        tested = [place for place in index if reachable[place]]
        if tested:
            table.loc[tested, "q"] = false_discovery_control(table.loc[tested, "p"].to_numpy(float), method="bh")
        noun = "test" if len(tested) == 1 else "tests"
        table.loc[index, "family"] = f"{family} ({len(tested)} {noun})".strip()
    signed = np.where(table["direction"] == 0, table["effect"].abs(), table["direction"] * table["effect"])
    apart = (table["low"] > 0) | (table["high"] < 0) | (table["low"].isna() & exact)
    rare = table["q"] <= _ROUNDED
    holds = reachable & rare & (signed >= table["floor"]) & apart
    more = ~reachable | (~rare & (table["p"] <= least + 1e-9))  # what more draws, or more units, might show
    table["verdict"] = np.where(more, TOO_FEW, np.where(holds, SUPPORTED, NOT_SUPPORTED))
    return table


def example_effects(shift: float = 1.0, n: int = 12, m: int = 99, seed: int = 0) -> Effects:
    """A small made-up table for examples and tests: one ablation that changes the loss by ``shift``, and controls."""
    import torch

    from mechrep.provenance import Provenance

    generator = np.random.default_rng(seed)
    values = generator.normal(2.0, 0.3, n) + generator.normal(0, 0.05, (2 + m, n))
    values[1] += shift
    conditions = [Condition(), Condition("heads", ABLATION, 2, "zero")]
    conditions += [Condition("heads", "random", 2, "zero", seed=draw) for draw in range(m)]
    names = [f"text-{i}" for i in range(n)]
    provenance = Provenance({"name": "made up"}, {"texts": n}, {"study": "example"})
    return Effects(provenance, conditions, [Measure("loss")], [names], [names], torch.from_numpy(values)[None])
