"""``CardResult``: the phenomena of a model as a table, each number beside the bar that it is held to."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from mechrep.models.model import Model
from mechrep.provenance import provenance_of
from mechrep.results import Result
from mechrep.text.corpus import Corpus


@dataclass(frozen=True)
class CardRow:
    """One number of the card.

    Attributes:
        phenomenon: what is looked for.
        measure: how it is measured.
        value: the number; NaN where the question has no answer, and ``note`` says why.
        low: lower end of a 95 % interval, or NaN where none is known.
        high: upper end.
        n: what the interval is over.
        least: the bar: the value must reach it.
        most: the other bar: the value must not exceed it.
        note: which head, layer or neuron; or why there is no number.
    """

    phenomenon: str
    measure: str
    value: float
    low: float = float("nan")
    high: float = float("nan")
    n: str = ""
    least: float = float("nan")
    most: float = float("nan")
    note: str = ""

    @property
    def bar(self) -> str:
        """The bars in words."""
        if math.isnan(self.most):
            return "" if math.isnan(self.least) else f"at least {self.least:g}"
        return f"at most {self.most:g}" if math.isnan(self.least) else f"{self.least:g} to {self.most:g}"

    @property
    def shown(self) -> bool | None:
        """Whether the value lies within the bars; None where there is no bar."""
        if math.isnan(self.least) and math.isnan(self.most):
            return None
        return not (self.value < self.least or self.value > self.most or math.isnan(self.value))


@dataclass(frozen=True, eq=False)
class CardResult(Result):
    """The rows of a model's card.

    Attributes:
        rows: see :class:`CardRow`, as JSON-ready values.
    """

    rows: Sequence[dict[str, object]]

    def card_rows(self) -> list[CardRow]:
        """The rows."""
        return [CardRow(**row) for row in self.rows]  # pyright: ignore[reportArgumentType]

    def value(self, measure: str) -> float:
        """One number, by the beginning of its measure's name.

        Raises:
            KeyError: no such measure, or several.
        """
        (row,) = [row for row in self.card_rows() if row.measure.startswith(measure)] or [None]
        if row is None:
            raise KeyError(measure)
        return row.value

    def to_frame(self) -> pd.DataFrame:
        """One row per measure, with ``shown``: True, False, or missing where no bar is set."""
        rows = self.card_rows()
        frame = pd.DataFrame(self.rows)
        return frame.assign(shown=pd.array([row.shown for row in rows], dtype="boolean"))

    def to_markdown(self) -> str:
        """The table of a model card: phenomenon, measure, value with its interval, bar, whether it is reached."""
        lines = ["| phenomenon | measure | value | bar | shown |", "|---|---|---|---|---|"]
        for row in self.card_rows():
            interval = "" if math.isnan(row.low) else f" [{row.low:.2f}, {row.high:.2f}]"
            note = f" ({row.note})" if row.note else ""
            shown = {None: "", True: "yes", False: "**no**"}[row.shown]
            lines.append(
                f"| {row.phenomenon} | {row.measure}{note} | {row.value:.2f}{interval} | {row.bar} | {shown} |"
            )
        return "\n".join(lines)


def card_of(rows: Sequence[CardRow], model: Model, corpus: Corpus, **config: object) -> CardResult:
    """A card with its provenance.

    Args:
        rows: the numbers.
        model: what they were measured on.
        corpus: on which texts.
        config: settings of the measurement.
    """
    return CardResult(provenance_of(model, corpus, dict(config)), [dataclasses.asdict(row) for row in rows])
