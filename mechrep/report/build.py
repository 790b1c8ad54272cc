"""The whole report: its parts one after the other, each kept on disk as data as soon as it is there.

``out/`` holds ``report.html``, ``report.json``, and ``sections/NAME/`` with every table (Parquet) and figure (JSON) of
a section.  The page is made of these folders alone: a part can be replaced, and the page made again, without the rest.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shlex
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechrep.disk import is_plain_name, plain_name, read_record, tidy, write_record, write_whole
from mechrep.errors import InputError, ModelError, NothingFoundError, StoreError
from mechrep.guards import some_of
from mechrep.models.meter import metered
from mechrep.models.model import Model
from mechrep.progress import progress_bar
from mechrep.provenance import provenance_of
from mechrep.report.render import render_page, report_json
from mechrep.run import Run
from mechrep.sections import LEFT_OUT, MISSING, Section
from mechrep.studies import (
    first_layer,
    heads,
    natural_vs_induced_study,
    neurons,
    sink_patch,
    sinks,
    token_information_study,
    training,
)
from mechrep.studies.requirements import what_can_be_measured
from mechrep.text.files import read_text
from mechrep.text.windows import windows_of_text

_LIST = "parts.json"
_VERSION = 2  # of the list; version 1, of mechrep 0.1, has no sum
_SECONDS_BETWEEN_PAGES = 60.0  # the page of what is there already; it takes some seconds itself
_NEURONS = "the study of repetition neurons"  # made once per run


@dataclass(frozen=True)
class Settings:
    """What some parts can be told, beside effort and seed.

    Attributes:
        preset: whose detector and windows decide about loops, ``"mechrep"`` or ``"hiraoka2025"``.
        sink_layer: a layer to take as the sink layer, see :func:`mechrep.find_sink`.
        held_out: a file of text that the model has not seen in training; English by default.
    """

    preset: str = "mechrep"
    sink_layer: int | None = None
    held_out: Path | None = None

    @property
    def held_out_text(self) -> str | None:
        """What is in the file.

        Raises:
            InputError: it cannot be read.
        """
        return None if self.held_out is None else read_text(self.held_out)


# Runs a study; gives its section or several.  One that finds nothing to study gets a section named like the part.
Part = Callable[[Model, Run, Settings], Section | Sequence[Section]]


def _neurons(model: Model, run: Run, settings: Settings) -> Section:
    options = {"preset": settings.preset, "held_out_text": settings.held_out_text}
    study = run.once(_NEURONS, lambda: neurons.run_repetition_study(model, **options, run=run))
    return study.section()


def _heads(model: Model, run: Run, settings: Settings) -> list[Section]:
    earlier = run.made.get(_NEURONS)  # where the part on neurons was made before
    known = None if earlier is None else earlier.neurons
    return heads.run_head_study(model, neurons=known, preset=settings.preset, run=run).section()


def _sinks(model: Model, run: Run, settings: Settings) -> Section:
    options = {"layer": settings.sink_layer, "held_out_text": settings.held_out_text}
    return sinks.run_sink_study(model, **options, run=run).section()


def _first_layer(model: Model, run: Run, settings: Settings) -> Section:
    texts = None if settings.held_out_text is None else [settings.held_out_text]
    return first_layer.run_first_layer_study(model, texts=texts, layer=settings.sink_layer, run=run).section()


def _patch(model: Model, run: Run, settings: Settings) -> Section:
    text = settings.held_out_text
    windows = None if text is None else windows_of_text(model, text, length=64, limit=100)
    return sink_patch.run_repair_study(model, texts=windows, layer=settings.sink_layer, run=run).section()


def _text_kinds(model: Model, run: Run, _settings: Settings) -> Section:
    return natural_vs_induced_study.run_text_kind_study(model, run=run).section()


def _information(model: Model, run: Run, settings: Settings) -> Section:
    options = {"preset": settings.preset, "held_out_text": settings.held_out_text}
    return token_information_study.run_information_study(model, **options, run=run).section()


def _training(model: Model, run: Run, _settings: Settings) -> Section:
    return training.run_training_study(model, run=run).section()


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


def build_report(
    model: Model,
    out: str | Path,
    *,
    only: Sequence[str] | None = None,
    run: Run | None = None,
    settings: Settings | None = None,
    command: str = "",
    parts: Mapping[str, Part] | None = None,
    texts: Path | None = None,
) -> Path:
    """Run the parts in their order; after each, write page, data and tables anew.

    A part that finds nothing to study says so in its section, and so does one that needs what this model does not have;
    the others go on.  A part replaces what an earlier run into the same folder left of it; all other parts stay.

    Args:
        model: the model.
        out: folder of the report; made if it is missing.
        only: names of parts; by default all.
        run: effort, seed and so on; without a store, unfinished work is kept in ``out/store``.
        settings: what some parts can be told.
        command: that makes these parts again; the page shows it.
        parts: by default :data:`PARTS`.
        texts: folder of the words; by default mechrep's own.

    Returns:
        The page.

    Raises:
        InputError: an unknown part; and whatever a part raises.
        StoreError: the folder cannot be written, or holds the report of another model.
    """
    target, run, settings = Path(out), run or Run(), settings or Settings()
    known = PARTS if parts is None else parts
    chosen = _chosen(only, known)
    if settings.sink_layer is not None:
        model.anatomy.check_layer(settings.sink_layer)
    facts = {"name": model.name, "fingerprint": model.fingerprint()}
    listed = _listed(target) or {"model": facts, "parts": {}}
    if listed["model"] != facts:
        raise StoreError(f"{target}, a report on {listed['model']}", f"one on {facts}", "choose another folder")
    if run.store is None:
        run = dataclasses.replace(run, store=target / "store")
    for folder in (target, target / "sections"):
        tidy(folder)
    shown = time.monotonic()
    with progress_bar(len(chosen), "report", "part", run.progress, every=0.0) as bar:
        try:
            for name in chosen:
                bar.set_postfix_str(name)
                with metered(model) as meter:
                    made = _made(name, known[name], model, run, settings)
                listed = _listed(target) or listed  # another run may have put its parts there meanwhile
                old = listed["parts"].pop(name, {"sections": [], "command": None, "cost": {}})
                before = old["sections"]
                # Made again by the same command, a part takes its work from the store, and costs what it once did.
                costs = [meter.facts(), *([old["cost"]] if old["command"] == command and old["cost"] else [])]
                cost = max(costs, key=lambda one: one["read"] + one["written"])
                after = _keep(target, name, made, listed, {"command": command, "cost": cost})
                listed["parts"] = {
                    one: listed["parts"][one] for one in [*known, *listed["parts"]] if one in listed["parts"]
                }
                write_record(target / "sections" / _LIST, {"version": _VERSION, **listed}, parents=True, indent=1)
                for stale in set(before) - set(after):
                    shutil.rmtree(target / "sections" / stale, ignore_errors=True)
                if time.monotonic() - shown > _SECONDS_BETWEEN_PAGES:
                    write_page(target, texts=texts)
                    shown = time.monotonic()
                bar.update()
        except BaseException:  # what is there can be read all the same; what went wrong is said, and not what follows
            with contextlib.suppress(StoreError):
                write_page(target, texts=texts)
            raise
    write_page(target, texts=texts)
    return target / "report.html"


def write_page(out: str | Path, *, texts: Path | None = None) -> Path:
    """Make the page and ``report.json`` of a report's folder again, from what is kept there.

    Args:
        out: folder of the report.
        texts: folder of the words; by default mechrep's own.

    Returns:
        The page.

    Raises:
        StoreError: there is no report in this folder, it is damaged, or it cannot be written.
    """
    target, listed = Path(out), _listed(Path(out))
    sections = load_sections(target)
    name = listed["model"]["name"]
    command = whole_command({part: one["command"] for part, one in listed["parts"].items()})
    redo = {
        section: command_of(one["command"], part)
        or f"build_report(load_model({name!r}), {str(out)!r}, only=[{part!r}])"
        for part, one in listed["parts"].items()
        for section in one["sections"]
    }
    costs = {part: one["cost"] for part, one in listed["parts"].items() if one["cost"]}
    record = report_json(name, sections, command=command, costs=costs, texts=texts)
    write_whole(target / "report.json", json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False))
    write_whole(
        target / "report.html", render_page(name, sections, command=command, costs=costs, redo=redo, texts=texts)
    )
    return target / "report.html"


@dataclass(frozen=True)
class Facts:
    """What a report's folder says about the report.

    Attributes:
        name: of the model.
        command: that makes all of it again; empty where it was made in Python.
        costs: of each part, see :class:`mechrep.models.meter.Meter`.
    """

    name: str
    command: str
    costs: Mapping[str, Mapping[str, float]]


def facts_of(out: str | Path) -> Facts:
    """What a report's folder says about the report.

    Raises:
        StoreError: there is no report in this folder, or it is damaged.
    """
    listed = _found(Path(out))
    costs = {part: one["cost"] for part, one in listed["parts"].items() if one["cost"]}
    command = whole_command({part: one["command"] for part, one in listed["parts"].items()})
    return Facts(listed["model"]["name"], command, costs)


def is_report(folder: str | Path) -> bool:
    """Whether a folder holds a report that :func:`build_report` wrote."""
    return (Path(folder) / "sections" / _LIST).is_file()


def command_of(command: str, part: str) -> str:
    """The command line that makes one part again, from the one that made it with others.

    Example:
        >>> command_of("mechrep report net --only heads,sinks --effort quick", "sinks")
        'mechrep report net --effort quick --only sinks'
    """
    words = shlex.split(command)
    if words[:2] != ["mechrep", "report"]:
        return command  # it makes this part alone
    return shlex.join([*_without_only(words), "--only", part])


def whole_command(commands: Mapping[str, str]) -> str:
    """One command line for all parts, where they were made with the same options; otherwise one for each.

    Args:
        commands: that made the parts, by part.

    Example:
        >>> whole_command({"heads": "mechrep report net --only heads", "sinks": "mechrep report net --only sinks"})
        'mechrep report net --only heads,sinks'
    """
    lines = list(dict.fromkeys(line for line in commands.values() if line))
    bare = {shlex.join(_without_only(shlex.split(line))) for line in lines}
    if len(lines) < 2 or len(bare) > 1 or not lines[0].startswith("mechrep report "):
        return "\n".join(lines)
    return f"{bare.pop()} --only {','.join(commands)}"


def _without_only(words: Sequence[str]) -> list[str]:
    kept = [word for word in words if not word.startswith("--only=")]
    while "--only" in kept:
        place = kept.index("--only")
        del kept[place : place + 2]
    return kept


def load_sections(out: str | Path) -> list[Section]:
    """The sections of a report's folder, in the order of the page.

    Raises:
        StoreError: there is no report in this folder, or it is damaged.
    """
    target, listed = Path(out), _found(Path(out))
    names = [name for part in listed["parts"].values() for name in part["sections"]]
    return [Section.load(target / "sections" / name) for name in names]


def _keep(
    target: Path, part: str, made: Sequence[Section], listed: dict[str, Any], facts: Mapping[str, Any]
) -> list[str]:
    """Write the sections of a part, and put them into the list of the report, with its command and what it cost."""
    names = [section.name for section in made]
    if odd := [name for name in names if not is_plain_name(name)]:
        raise InputError(f"section {odd[0]!r} of part {part!r}", "a plain word: it is the name of a folder", "rename")
    taken = {name for other in listed["parts"].values() for name in other["sections"]}
    if taken & set(names) or len(set(names)) < len(names):
        raise InputError(f"part {part!r} with sections {names}", "names that no other section has", "rename")
    for section in made:
        section.save(target / "sections" / section.name)
    listed["parts"][part] = {"sections": names, **facts}
    return names


def _chosen(only: Sequence[str] | None, known: Mapping[str, Part]) -> list[str]:
    if only is not None:
        some_of("parts", only, known)
    return [name for name in known if only is None or name in only]


def _made(name: str, part: Part, model: Model, run: Run, settings: Settings) -> list[Section]:
    """The sections of a part; one that says why, where there is nothing to study or nothing to study it with."""
    said: dict[str, Any] = {"model": model.name}
    provenance = provenance_of(model, None, {"study": name, "effort": run.effort, "seed": run.seed})
    if PARTS.get(name) is part:  # another may need less: a command that was given its texts, for instance
        (row,) = what_can_be_measured(model, [name])
        if not row.measured:
            said |= {"reason": row.reason, "remedy": f"mechrep models {model.source} --explain lists what is measured"}
            return [Section(name, provenance, said, variant=LEFT_OUT)]
    try:
        made = part(model, run, settings)
    except NothingFoundError as error:
        said |= {"given": error.given, "expected": error.expected, "remedy": error.remedy}
        return [Section(name, provenance, said, variant=MISSING)]
    except ModelError as error:
        said |= {"reason": f"{error.given}; needed: {error.expected}", "remedy": error.remedy}
        return [Section(name, provenance, said, variant=LEFT_OUT)]
    return [made] if isinstance(made, Section) else list(made)


def _found(target: Path) -> dict[str, Any]:
    listed = _listed(target)
    if not listed:
        raise StoreError(f"{target} without a report", "a folder that build_report() wrote", "build the report first")
    return listed


def _listed(target: Path) -> dict[str, Any]:
    """What the folder holds: the model, and of every part the sections and the command; nothing of a new folder."""
    path = target / "sections" / _LIST
    if not path.is_file():
        return {}
    try:
        listed = read_record(path)
        parts = {
            name: {
                "sections": [plain_name(one) for one in part["sections"]],
                "command": part["command"],
                "cost": dict(part.get("cost", {})),
            }
            for name, part in listed["parts"].items()
        }
        return {"model": listed["model"], "parts": parts}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise StoreError(f"{path} ({error})", "the list of a report's parts", "delete it and build again") from error
