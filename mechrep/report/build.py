"""The whole report: its parts one after the other, each kept on disk as data as soon as it is there.

``out/`` holds ``report.html``, ``report.json``, and ``sections/NAME/`` with every table (Parquet) and figure (JSON) of
a section.  The page is made of these folders alone: a part can be replaced, and the page made again, without the rest.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mechrep.errors import InputError, NothingFoundError, StoreError
from mechrep.models.model import Model
from mechrep.progress import progress_bar
from mechrep.provenance import provenance_of
from mechrep.report.render import render_page, report_json
from mechrep.run import Run
from mechrep.sections import MISSING, Section
from mechrep.studies import neurons

_LIST = "parts.json"


# Runs a study; gives its section or several.  One that finds nothing to study gets a section named like the part.
Part = Callable[[Model, Run], Section | Sequence[Section]]


def _neurons(model: Model, run: Run) -> Section:
    return neurons.run_repetition_study(model, run=run).section()


PARTS: Mapping[str, Part] = {"neurons": _neurons}


def build_report(
    model: Model,
    out: str | Path,
    *,
    only: Sequence[str] | None = None,
    run: Run | None = None,
    parts: Mapping[str, Part] | None = None,
    texts: Path | None = None,
) -> Path:
    """Run the parts in their order; after each, write page, data and tables anew.

    A part that finds nothing to study says so in its section, and the others go on.  A part replaces what an earlier
    run into the same folder left of it; all other parts stay.

    Args:
        model: the model.
        out: folder of the report; made if it is missing.
        only: names of parts; by default all.
        run: effort, seed and so on; without a store, unfinished work is kept in ``out/store``.
        parts: by default :data:`PARTS`.
        texts: folder of the words; by default mechrep's own.

    Returns:
        The page.

    Raises:
        InputError: an unknown part; and whatever a part raises.
        StoreError: the folder cannot be written, or holds the report of another model.
    """
    target, run = Path(out), run or Run()
    known = PARTS if parts is None else parts
    chosen = _chosen(only, known)
    listed = _listed(target)
    facts = {"name": model.name, "fingerprint": model.fingerprint()}
    if listed and listed["model"] != facts:
        raise StoreError(f"{target}, a report on {listed['model']}", f"one on {facts}", "choose another folder")
    if run.store is None:
        run = dataclasses.replace(run, store=target / "store")
    earlier = listed.get("parts", {})
    listed = {"model": facts, "command": _command(model, target, run), "parts": earlier}
    with progress_bar(len(chosen), "report", "part", run.progress, every=0.0) as bar:
        for name in chosen:
            bar.set_postfix_str(name)
            before = listed["parts"].pop(name, [])
            after = _keep(target, name, _made(name, known[name], model, run), listed, list(known))
            write_page(target, texts=texts)
            for stale in set(before) - set(after):
                shutil.rmtree(target / "sections" / stale, ignore_errors=True)
            bar.update()
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
    name, command = listed["model"]["name"], listed["command"]
    record = report_json(name, sections, command=command, texts=texts)
    _write(target / "report.json", json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False))
    _write(target / "report.html", render_page(name, sections, command=command, texts=texts))
    return target / "report.html"


def load_sections(out: str | Path) -> list[Section]:
    """The sections of a report's folder, in the order of the page.

    Raises:
        StoreError: there is no report in this folder, or it is damaged.
    """
    target, listed = Path(out), _listed(Path(out))
    if not listed:
        raise StoreError(f"{target} without a report", "a folder that build_report() wrote", "build the report first")
    names = [name for names in listed["parts"].values() for name in names]
    return [Section.load(target / "sections" / name) for name in names]


def _keep(target: Path, part: str, made: Sequence[Section], listed: dict[str, Any], order: list[str]) -> list[str]:
    """Write the sections of a part, and put them into the list of the report, in the order of all parts."""
    names = [section.name for section in made]
    taken = {name for names in listed["parts"].values() for name in names}
    if taken & set(names) or len(set(names)) < len(names):
        raise InputError(f"part {part!r} with sections {names}", "names that no other section has", "rename")
    for section in made:
        section.save(target / "sections" / section.name)
    kept = listed["parts"] | {part: names}
    listed["parts"] = {name: kept[name] for name in [*order, *kept] if name in kept}
    _write(target / "sections" / _LIST, json.dumps(listed, indent=1, ensure_ascii=False))
    return names


def _chosen(only: Sequence[str] | None, known: Mapping[str, Part]) -> list[str]:
    unknown = sorted(set(only or ()) - set(known))
    if unknown or (only is not None and not only):
        raise InputError(f"parts {list(only or ())}", f"some of {', '.join(known)}", "choose among these")
    return [name for name in known if only is None or name in only]


def _made(name: str, part: Part, model: Model, run: Run) -> list[Section]:
    try:
        made = part(model, run)
    except NothingFoundError as error:
        fields = {"model": model.name, "given": error.given, "expected": error.expected, "remedy": error.remedy}
        provenance = provenance_of(model, None, {"study": name, "effort": run.effort, "seed": run.seed})
        return [Section(name, provenance, fields, variant=MISSING)]
    return [made] if isinstance(made, Section) else list(made)


def _listed(target: Path) -> dict[str, Any]:
    """What the folder holds: the model, the command, and the sections of every part; nothing of a new folder."""
    path = target / "sections" / _LIST
    if not path.is_file():
        return {}
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
        return {name: listed[name] for name in ("model", "command", "parts")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path} ({error})", "the list of a report's parts", "delete it and build again") from error


def _command(model: Model, target: Path, run: Run) -> str:
    return shlex.join(["mechrep", "report", model.name, "--effort", run.effort, "--seed", str(run.seed),
                       "--out", target.name])  # fmt: skip


def _write(path: Path, text: str) -> None:
    """A file, whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_text(text, encoding="utf-8", newline="\n")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)  # left only by a failure
    except OSError as error:
        raise StoreError(
            f"{path} ({error.strerror})", "a place to write", "free space or choose another folder"
        ) from error
