"""Every study of one model, one after the other: the parts of ``mechrep report``.

A part is a function from a model, the settings and what earlier parts found to a study; a new one adds its line to
:data:`PARTS`, and its section to :mod:`mechrep.views.report.sections`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechrep.errors import InputError
from mechrep.models.model import Model
from mechrep.progress import progress_bar
from mechrep.studies import head_study, repetition_study


@dataclass(frozen=True)
class StudySettings:
    """What all parts share.

    Attributes:
        preset: ``"mechrep"`` or ``"hiraoka2025"``: whose detector and windows decide about loops.
        n_loops: looping texts to collect.
        n_others: loop-free texts to collect.
        ks: numbers of neurons to cut; by default up to 7 % of the model.
        seeds: draws of each control.
        held_out_text: English by default.
        store: folder that lets a stopped study go on.
        seed: of prompts, splits and draws.
        progress: show progress bars.
    """

    preset: str = "mechrep"
    n_loops: int = 200
    n_others: int = 40
    ks: Sequence[int] | None = None
    seeds: int = 3
    held_out_text: str | None = None
    store: Path | None = None
    seed: int = 0
    progress: bool | None = None

    def loops(self) -> dict[str, Any]:
        """The arguments of studies of looping texts."""
        names = ("preset", "n_loops", "n_others", "seeds", "held_out_text", "store", "seed", "progress")
        return {name: getattr(self, name) for name in names}


def _neurons(model: Model, settings: StudySettings, _earlier: Mapping[str, Any]) -> Any:
    return repetition_study.run_repetition_study(model, ks=settings.ks, **settings.loops())


def _heads(model: Model, settings: StudySettings, earlier: Mapping[str, Any]) -> Any:
    first = earlier.get("neurons")
    known = {} if first is None else {"corpus": first.corpus, "neurons": first.neurons}
    return head_study.run_head_study(model, **known, **settings.loops())


Part = Callable[[Model, StudySettings, Mapping[str, Any]], Any]
PARTS: Mapping[str, Part] = {"neurons": _neurons, "heads": _heads}


def run_studies(
    model: Model, parts: Sequence[str] | None = None, settings: StudySettings | None = None
) -> Iterator[Any]:
    """Run the parts in the order of :data:`PARTS`, and hand over each study as soon as it is done.

    Args:
        model: the model.
        parts: names; all by default.
        settings: shared by all parts.

    Raises:
        InputError: an unknown part; and whatever a part raises.

    Example:
        >>> list(PARTS)[:2]
        ['neurons', 'heads']
    """
    unknown = sorted(set(parts or ()) - set(PARTS))
    if unknown:
        raise InputError(f"part {unknown[0]!r}", f"some of {', '.join(PARTS)}", "choose among these")
    chosen = [name for name in PARTS if parts is None or name in parts]
    shared, done = settings or StudySettings(), {}
    with progress_bar(len(chosen), "report", "part", shared.progress) as bar:
        for name in chosen:
            done[name] = PARTS[name](model, shared, done)
            bar.update()
            yield done[name]
