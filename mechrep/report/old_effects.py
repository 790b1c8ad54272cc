"""What one cut changed, beside what its controls changed: rows for tables, sentences and badges alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mechrep.ablation.old_study import AblationResult
from mechrep.ablation.old_sweeps import NO_BREAK, Verdict, percent
from mechrep.errors import InputError
from mechrep.figures import counted
from mechrep.report.page import decimals

_FEW = 8  # texts below which an interval over texts means little

# What is measured, in the words of a table and of a sentence.
OUTCOMES: dict[tuple[str, int | None], tuple[str, str]] = {
    ("loop_log_probability", 0): ("loop, onset token (nats)", "log-probability of the loop’s onset token"),
    ("loop_log_probability", 1): ("loop, next copy (nats)", "log-probability of the loop’s next copy"),
    ("loop_log_probability", 2): ("loop, the copy after (nats)", "log-probability of the copy after the next"),
    ("copy_accuracy", None): ("copying on random repeats", "copying on random repeats"),
    ("copy_loss_drop", None): ("copying, loss saved (nats)", "loss saved by copying"),
    ("loss", None): ("held-out perplexity", "held-out perplexity"),
    ("still_looping", None): ("still looping", "share of looping texts that still loop"),
    ("newly_looping", None): ("newly looping", "share of loop-free texts that now loop"),
}


@dataclass(frozen=True)
class Scale:
    """Unit, factor and decimals of a change."""

    unit: str
    factor: float
    places: int

    def text(self, change: float) -> str:
        """A change, signed; with one decimal more where it would vanish."""
        number = change * self.factor
        small = 0 < abs(number) < 10**-self.places
        return decimals(number, self.places + int(small), sign=True)


@dataclass(frozen=True)
class Effect:
    """One outcome under one cut.

    Attributes:
        outcome: its name.
        copy: of the loop, where there are copies.
        untouched: value without a cut.
        value: value under the cut.
        value_ends: its 95 % interval.
        change: mean difference over texts; of the loss, where the outcome is perplexity.
        low: lower end of its 95 % interval over texts (paired bootstrap).
        high: upper end.
        n: texts.
        controls: name of each control with the changes of its draws.
        nearest: what the control that went farthest in the same direction cut, as cells of the result.
        verdict: ``"beyond controls"`` when the interval lies beyond every draw of every control, and beyond 0 (with
            ``"few texts"`` when there are fewer than eight).
    """

    outcome: str
    copy: int | None
    untouched: float
    value: float
    value_ends: tuple[float, float]
    change: float
    low: float
    high: float
    n: int
    controls: dict[str, list[float]]
    nearest: dict | None
    verdict: Verdict

    @property
    def in_table(self) -> str:
        """What is measured, for a table."""
        return OUTCOMES[self.outcome, self.copy][0]

    @property
    def short_sentence(self) -> str:
        """What happened, with the interval of the value and the number of texts."""
        low, high = (self._shown(end) for end in self.value_ends)
        return f"{self._path} (95{NO_BREAK}% {low} to {high}, {counted(self.n, 'text')})"

    @property
    def sentence(self) -> str:
        """What happened, with everything that it must be judged by."""
        scale = self.scale
        change = f"{scale.text(self.change)} {scale.unit}, 95{NO_BREAK}% {scale.text(self.low)} to "
        return f"{self._path} ({change}{scale.text(self.high)}, n = {self.n}; {self.beside})"

    @property
    def _path(self) -> str:
        what, before, after = OUTCOMES[self.outcome, self.copy][1], self.untouched_text, self.value_text
        return f"{what}: {before}, unchanged" if before == after else f"{what} goes from {before} to {after}"

    @property
    def beside(self) -> str:
        """What the controls did."""
        draws = [draw for changes in self.controls.values() for draw in changes]
        if not draws:
            return "no controls"
        return f"controls {self.scale.text(min(draws))} to {self.scale.text(max(draws))}"

    @property
    def scale(self) -> Scale:
        """How its changes are written."""
        return Scale("points", 100.0, 0) if self.is_share else Scale("nats", 1.0, 2)

    @property
    def is_share(self) -> bool:
        """Whether it is a share of texts or tokens."""
        return self.outcome in ("copy_accuracy", "still_looping", "newly_looping")

    @property
    def untouched_text(self) -> str:
        """The value without a cut, in its unit."""
        return self._shown(self.untouched)

    @property
    def value_text(self) -> str:
        """The value under the cut, in its unit."""
        return self._shown(self.value)

    def _shown(self, value: float) -> str:
        if self.outcome == "loss":
            return decimals(float(np.exp(value)), 2)
        return percent(value) if self.is_share else decimals(value, 2)


def effects_of(result: AblationResult, circuit: str, part: str = "whole") -> list[Effect]:
    """All outcomes of one circuit's cut, in the order in which they were measured."""
    frame = result.to_frame()
    return [_effect(frame, result, measure, circuit, part) for measure in result.measures]


def _effect(frame: pd.DataFrame, result: AblationResult, measure: dict, circuit: str, part: str) -> Effect:
    here = (frame["outcome"] == measure["outcome"]) & (
        frame["copy"].isna() if measure["copy"] is None else frame["copy"] == measure["copy"]
    )
    rows = frame[here].reset_index(drop=True)  # in the order of the conditions
    own = (rows["circuit"] == circuit) & (rows["part"] == part)
    top, controls = rows[own & (rows["selection"] == "top")], rows[own & (rows["selection"] != "top")]
    if len(top) != 1:
        raise InputError(f"{len(top)} cuts of {circuit!r}, {part}", "one operation", "show one operation at a time")
    cut = top.iloc[0]
    changes = {str(name): draws["effect"].tolist() for name, draws in controls.groupby("selection", sort=False)}
    order = controls["effect"].sort_values(ascending=cut["effect"] < 0)
    return Effect(
        outcome=measure["outcome"],
        copy=measure["copy"],
        untouched=float(rows["value"].iloc[0]),
        value=float(cut["value"]),
        value_ends=(float(cut["low"]), float(cut["high"])),
        change=float(cut["effect"]),
        low=float(cut["effect_low"]),
        high=float(cut["effect_high"]),
        n=int(cut["texts"]),
        controls=changes,
        nearest=dict(result.conditions[int(order.index[0])]) if len(order) else None,
        verdict=_verdict(cut, controls["effect"].tolist()),
    )


def _verdict(cut: pd.Series, draws: Sequence[float]) -> Verdict:
    if not draws:
        return "no controls"
    beyond = cut["effect_high"] < min(0.0, *draws) or cut["effect_low"] > max(0.0, *draws)
    if not beyond:
        return "not beyond controls"
    return "beyond controls" if cut["texts"] >= _FEW else "beyond controls, few texts"
