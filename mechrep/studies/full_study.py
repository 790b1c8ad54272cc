"""Every study of one model, one after the other: the parts of ``mechrep report``.

A part is a function from a model, the settings and what earlier parts found to a study; a new one adds its line to
:data:`PARTS`, and its section to :mod:`mechrep.report.write`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechrep.errors import InputError, NothingFoundError
from mechrep.models.model import Model
from mechrep.progress import progress_bar
from mechrep.provenance import Provenance, provenance_of
from mechrep.run import Run
from mechrep.studies import first_layer as first_layer_study
from mechrep.studies import heads as head_study
from mechrep.studies import natural_vs_induced_study as text_kind_study
from mechrep.studies import neurons as repetition_study
from mechrep.studies import sink_patch as repair_study
from mechrep.studies import sinks as sink_study
from mechrep.studies import token_information_study as information_study
from mechrep.studies import training as training_study
from mechrep.text.corpus import windows_of_text


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
        sink_layer: a layer to take as the sink layer, see :func:`mechrep.find_sink`.
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
    sink_layer: int | None = None
    store: Path | None = None
    seed: int = 0
    progress: bool | None = None

    def common(self) -> dict[str, Any]:
        """What every study takes."""
        return {"store": self.store, "seed": self.seed, "progress": self.progress}

    def loops(self) -> dict[str, Any]:
        """The arguments of the studies of looping texts."""
        names = ("preset", "n_loops", "n_others", "seeds", "held_out_text")
        return {name: getattr(self, name) for name in names} | self.common()


@dataclass(frozen=True)
class MissingStudy:
    """A part for which this model has nothing to study, as its own answer on the page.

    Attributes:
        model_name: how the model was named.
        part: name of the part.
        reason: what was looked for and not found.
        provenance: of the attempt.
    """

    model_name: str
    part: str
    reason: str
    provenance: Provenance


def _neurons(model: Model, settings: StudySettings, _earlier: Mapping[str, Any]) -> Any:
    options = Run(store=settings.store, seed=settings.seed, progress=settings.progress)
    return repetition_study.run_repetition_study(model, preset=settings.preset, ks=settings.ks, run=options)


def _heads(model: Model, settings: StudySettings, earlier: Mapping[str, Any]) -> Any:
    first = earlier.get("neurons")
    known = {} if first is None else {"corpus": first.corpus, "neurons": first.neurons}
    options = Run(store=settings.store, seed=settings.seed, progress=settings.progress)
    return head_study.run_head_study(model, preset=settings.preset, run=options, **known)


def _sinks(model: Model, settings: StudySettings, _earlier: Mapping[str, Any]) -> Any:
    options = Run(store=settings.store, seed=settings.seed, progress=settings.progress)
    text = settings.held_out_text
    return sink_study.run_sink_study(model, layer=settings.sink_layer, held_out_text=text, run=options)


def _first_layer(model: Model, settings: StudySettings, _earlier: Mapping[str, Any]) -> Any:
    texts = None if settings.held_out_text is None else [settings.held_out_text]
    return first_layer_study.run_first_layer_study(model, texts=texts, layer=settings.sink_layer, **settings.common())


def _patch(model: Model, settings: StudySettings, _earlier: Mapping[str, Any]) -> Any:
    text = settings.held_out_text
    windows = None if text is None else windows_of_text(model, text, length=64, limit=100)
    run = Run(store=settings.store, seed=settings.seed)
    return repair_study.run_repair_study(model, layer=settings.sink_layer, texts=windows, run=run)


def _text_kinds(model: Model, settings: StudySettings, _earlier: Mapping[str, Any]) -> Any:
    options = Run(store=settings.store, seed=settings.seed, progress=settings.progress)
    return text_kind_study.run_text_kind_study(model, run=options)


def _information(model: Model, settings: StudySettings, earlier: Mapping[str, Any]) -> Any:
    corpus = None if "neurons" not in earlier else earlier["neurons"].corpus
    return information_study.run_information_study(
        model, corpus=corpus, preset=settings.preset, run=Run(store=settings.store, seed=settings.seed)
    )


def _training(model: Model, settings: StudySettings, _earlier: Mapping[str, Any]) -> Any:
    run = Run(store=settings.store, seed=settings.seed, progress=settings.progress)
    return training_study.run_training_study(model, run=run)


Part = Callable[[Model, StudySettings, Mapping[str, Any]], Any]
PARTS: Mapping[str, Part] = {
    "neurons": _neurons,
    "heads": _heads,
    "sinks": _sinks,
    "first-layer": _first_layer,
    "patch": _patch,
    "text-kinds": _text_kinds,
    "information": _information,
    "training": _training,
}


def run_studies(
    model: Model, parts: Sequence[str] | None = None, settings: StudySettings | None = None
) -> Iterator[Any]:
    """Run the parts in the order of :data:`PARTS`, and hand over each study as soon as it is done.

    A part that finds nothing to study gives a :class:`MissingStudy` with the reason, and the others go on.

    Args:
        model: the model.
        parts: names; all by default.
        settings: shared by all parts.

    Raises:
        InputError: an unknown part; and whatever a part raises.
        NothingFoundError: what the last part raised, where none found anything.

    Example:
        >>> list(PARTS)[:2]
        ['neurons', 'heads']
    """
    unknown = sorted(set(parts or ()) - set(PARTS))
    if unknown:
        raise InputError(f"part {unknown[0]!r}", f"some of {', '.join(PARTS)}", "choose among these")
    chosen = [name for name in PARTS if parts is None or name in parts]
    shared, done, missing = settings or StudySettings(), {}, []
    with progress_bar(len(chosen), "report", "part", shared.progress) as bar:
        for name in chosen:
            try:
                done[name] = study = PARTS[name](model, shared, done)
            except NothingFoundError as error:
                missing.append(name)
                if len(missing) == len(chosen):
                    raise
                study = MissingStudy(model.name, name, str(error), provenance_of(model, None, {"study": name}))
            bar.update()
            yield study
