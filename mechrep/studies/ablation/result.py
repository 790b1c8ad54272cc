"""``AblationResult``: what every text got under every condition, and the tables made from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import Tensor

from mechrep.errors import InputError
from mechrep.results import Result, check_count
from mechrep.stats import percentile_interval, proportion_interval
from mechrep.studies.ablation.conditions import CELL
from mechrep.studies.ablation.statistics import bootstrap_intervals


@dataclass(frozen=True, eq=False)
class AblationResult(Result):
    """Outcomes of an ablation study.

    Attributes:
        conditions: ``circuit, part, selection, k, op, seed`` and the components cut; the first is the untouched model.
        measures: ``outcome``, ``copy`` of the loop (0: its onset token alone; ``None`` where there are no copies) and
            ``trials`` (each value is the share of so many; 0: it is a mean).
        texts: ids of the texts of each measure.
        values: in nats per token, or shares; NaN where a measure has no such text, or the text no such copy.
    """

    conditions: Sequence[dict[str, Any]]
    measures: Sequence[dict[str, Any]]
    texts: Sequence[Sequence[str]]
    values: Float[Tensor, "measure condition text"]

    def to_frame(self) -> pd.DataFrame:
        """One row per measure and condition.

        Columns: ``circuit, part, selection, k, op, seed, outcome, copy``; ``value``, the mean over texts, with a 95 %
        interval ``low``/``high`` (for shares Wilson's over all ``n`` trials, else the bootstrap's over ``n`` texts);
        ``effect``, the mean difference to the untouched model in the same texts, with its paired bootstrap interval
        ``effect_low``/``effect_high``; ``texts``; and the ``perplexity`` that a ``loss`` makes.
        """
        tables = [self._table(number) for number in range(len(self.measures))]
        frame = pd.concat(tables, ignore_index=True)
        return frame.astype({"copy": "Int64"})

    def _known(self, measure: int) -> Float[np.ndarray, "condition text"]:
        """The values of a measure in the texts that have one: the same under all conditions."""
        values = self.values[measure].double().numpy()
        return values[:, ~np.isnan(values[0])]

    def _table(self, number: int) -> pd.DataFrame:
        measure, values = self.measures[number], self._known(number)
        effects = values - values[:1]
        trials = measure["trials"] * values.shape[1]
        if trials:
            counts = np.rint(values.sum(1) * measure["trials"]).astype(int)
            ends = np.array([proportion_interval(int(count), trials) for count in counts])
        else:
            ends = bootstrap_intervals(values)
        effect_ends = bootstrap_intervals(effects)
        table = pd.DataFrame(list(self.conditions))[CELL]
        return table.assign(
            outcome=measure["outcome"],
            copy=pd.array([measure["copy"]] * len(table), dtype="Int64"),
            value=values.mean(1),
            low=ends[:, 0],
            high=ends[:, 1],
            effect=effects.mean(1),
            effect_low=effect_ends[:, 0],
            effect_high=effect_ends[:, 1],
            n=trials or values.shape[1],
            texts=values.shape[1],
            perplexity=np.exp(values.mean(1)) if measure["outcome"] == "loss" else np.nan,
        )

    def text_frame(self) -> pd.DataFrame:
        """One row per measure, condition and text: its ``value``."""
        cells = pd.DataFrame(list(self.conditions))[CELL]
        tables = []
        for measure, names, values in zip(self.measures, self.texts, self.values, strict=True):
            for cell, row in zip(cells.to_dict("records"), values[:, : len(names)].tolist(), strict=True):
                facts = cell | {"outcome": measure["outcome"], "copy": measure["copy"]}
                tables.append(pd.DataFrame({"text": list(names), "value": row}).assign(**facts))
        frame = pd.concat(tables, ignore_index=True).astype({"copy": "Int64"})
        return frame[[*CELL, "outcome", "copy", "text", "value"]]

    def summary(self) -> pd.DataFrame:
        """As :meth:`to_frame`, with the draws of a control taken together.

        Of several draws ``value`` and ``effect`` are the means, and their intervals the central 95 % over draws (the
        least and the largest when there are few); ``draws`` counts them.
        """
        by = [name for name in CELL if name != "seed"] + ["outcome", "copy"]
        rows = []
        for _, cell in self.to_frame().groupby(by, sort=False, dropna=False):
            row = cell.iloc[0].drop("seed").to_dict() | {"draws": len(cell)}
            if len(cell) > 1:
                for name, ends in (("value", ("low", "high")), ("effect", ("effect_low", "effect_high"))):
                    row |= dict(zip(ends, percentile_interval(cell[name].tolist()), strict=True))
                    row[name] = cell[name].mean()
                row["perplexity"] = cell["perplexity"].mean()
            rows.append(row)
        return pd.DataFrame(rows).astype({"copy": "Int64"})

    def measure_number(self, outcome: str | None = None, copy: int | None = None) -> int:
        """Place of a measure; by default the first outcome, and of the copies of a loop the first.

        Raises:
            InputError: an outcome or copy that was not measured.
        """
        name = self.measures[0]["outcome"] if outcome is None else outcome
        places = {m["copy"]: i for i, m in enumerate(self.measures) if m["outcome"] == name}
        wanted = min(1, max(places)) if copy is None and None not in places and places else copy
        if wanted not in places:
            measured = [(m["outcome"], m["copy"]) for m in self.measures]
            raise InputError(f"outcome {name!r}, copy {copy}", f"one of {measured}", "choose one that was measured")
        return places[wanted]

    def ranking(self, outcome: str | None = None, copy: int | None = None) -> list[int]:
        """Numbers of all conditions but the untouched model, the one that changes a measure most first.

        Args:
            outcome: by default the first.
            copy: of the loop, by default the first.
        """
        values = self._known(self.measure_number(outcome, copy))
        sizes = np.abs((values - values[:1]).mean(1)[1:])
        return [int(place) + 1 for place in np.argsort(-sizes, kind="stable")]

    def top(self, k: int, outcome: str | None = None, copy: int | None = None) -> list[Any]:
        """The cells of the ``k`` conditions that change a measure most.

        Raises:
            InputError: ``k`` larger than the number of conditions, or a measure that is not there.
        """
        ranking = self.ranking(outcome, copy)
        check_count(k, len(ranking), "conditions")
        return [{name: self.conditions[place][name] for name in CELL} for place in ranking[:k]]
