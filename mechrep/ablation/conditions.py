"""The words of the table of effects: its conditions, its measures, their units, and the verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mechrep.errors import InputError

BASELINE, ABLATION, CHECKPOINT = "baseline", "ablation", "checkpoint"
SUPPORTED, NOT_SUPPORTED, TOO_FEW = "supported", "not supported", "too few"


@dataclass(frozen=True)
class Unit:
    """What the numbers of a measure are.

    Attributes:
        label: of an axis.
        floor: an effect smaller than this is never supported: it is rounding, or of no use.
        scale: factor for display.
        relative: whether the floor is a share of the baseline's size.
    """

    label: str
    floor: float
    scale: float = 1.0
    relative: bool = False


UNITS: Mapping[str, Unit] = {
    "share": Unit("percentage points", 0.01, scale=100.0),
    "nats": Unit("nats", 0.01),
    "norm": Unit("norm", 0.01, relative=True),
    "score": Unit("score", 0.01),
    "ratio": Unit("ratio", 0.01, relative=True),
    "count": Unit("count", 0.5),
}


@dataclass(frozen=True)
class Condition:
    """One column of the table: what the model is under.

    Attributes:
        name: which set of components is changed; ``"baseline"`` for none.
        selection: ``"baseline"``, ``"ablation"`` (the set itself, whatever is done to it), ``"checkpoint"`` (another
            checkpoint than the first, which is the baseline), or the kind of a control.
        k: number of components.
        op: what is done, ``"zero"``, ``"mean"``, ``"add"``, ``"hold"``.
        part: ``"whole"``, or of a set of several kinds the kind that is changed alone.
        seed: number of the draw of a control, from 0.
        model: the checkpoint or null model; empty for the model under study.
        step: training step of a checkpoint.
        components: ``[layer, number]`` by kind, for the record.
    """

    name: str = BASELINE
    selection: str = BASELINE
    k: int = 0
    op: str = ""
    part: str = "whole"
    seed: int = 0
    model: str = ""
    step: float | None = None
    components: Mapping[str, Sequence[Sequence[Any]]] = field(default_factory=dict, compare=False)

    @property
    def of(self) -> tuple[Any, ...]:
        """What an ablation shares with its controls: everything but ``selection`` and ``seed``."""
        return self.name, self.k, self.op, self.part, self.model

    @property
    def like(self) -> tuple[Any, ...]:
        """What peers share: size, operation and model."""
        return self.k, self.op, self.model

    @property
    def facts(self) -> dict[str, Any]:
        """The columns of tables."""
        return {name: getattr(self, name) for name in CELL}


CELL = ["name", "selection", "k", "op", "part", "seed", "model", "step"]


@dataclass(frozen=True)
class Measure:
    """One row of the table.

    Attributes:
        name: of the measure.
        unit: a key of :data:`UNITS`.
        over: what the numbers are averaged over: ``"text"``, ``"token"``, ``"question"``; ``"model"``: one number that
            is exact for the model, without an interval.
        copy: repetition of a loop that it looks at; ``None`` where there is none.
        trials: each number is the share of so many; 1: yes or no; 0: it is a mean.
        direction: 1 or -1 where the claim named the sign of the effect before looking; 0: both sides.
    """

    name: str
    unit: str = "nats"
    over: str = "text"
    copy: int | None = None
    trials: int = 0
    direction: int = 0

    @property
    def label(self) -> str:
        """Name, and repetition where there is one.

        Example:
            >>> Measure("loss").label, Measure("loss", copy=1).label
            ('loss', 'loss 1')
        """
        return self.name if self.copy is None else f"{self.name} {self.copy}"

    def __post_init__(self) -> None:
        if self.unit not in UNITS or self.direction not in (-1, 0, 1):
            raise InputError(
                f"measure {self.name!r} in {self.unit!r}, direction {self.direction!r}",
                f"a unit of {sorted(UNITS)}, and a direction of -1, 0 or 1",
                "choose among these",
            )
