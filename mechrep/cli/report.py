"""``mechrep report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mechrep.cli.app import app
from mechrep.cli.options import (
    Device,
    DtypeOption,
    ModelName,
    Preset,
    PresetOption,
    Revision,
    Seed,
    SinkLayer,
    Texts,
    existing_file,
    load_named,
    make_folder,
    parse_numbers,
    read_text,
)

_PARTS = ("neurons", "heads", "sinks", "first-layer", "patch", "conditions", "information", "training")
# Those of mechrep.studies.full_study, which would take seconds to import.


@app.command(short_help="The whole study, as one HTML page.")
def report(
    model: ModelName,
    out: Annotated[Path, typer.Option(help="Folder for the report, the tables and the unfinished work.")] = Path(
        "report"
    ),
    only: Annotated[
        str | None, typer.Option(help=f"Parts to study, of {','.join(_PARTS)}; all by default.", metavar="PART,...")
    ] = None,
    preset: PresetOption = Preset.mechrep,
    texts: Texts = 200,
    others: Annotated[int, typer.Option(min=0, help="Loop-free texts to collect.")] = 40,
    ks: Annotated[
        str | None, typer.Option(help="Numbers of neurons to cut, e.g. 0,10,100; up to 7 % by default.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Draws of each control.")] = 3,
    seed: Seed = 0,
    sink_layer: SinkLayer = None,
    held_out: Annotated[Path | None, existing_file("Text for the perplexity (UTF-8).")] = None,
    device: Device = None,
    dtype: DtypeOption = None,
    revision: Revision = None,
) -> None:
    """Ask every question of mechrep of one model, beside controls, and write the answers as one HTML page.

    Repetition neurons, copying heads, attention sinks, the first layer, the sink patch with benchmarks, natural loops
    against copying, attention to low-information tokens, and mechanisms over training.  The page is written after every
    part, and grows.
    Stopped runs go on where they were when the same command is given again.
    """
    numbers, parts = parse_numbers(ks), _parts(only)
    held_out_text = None if held_out is None else read_text(held_out)
    make_folder(out)
    loaded = load_named(model, revision, device, dtype)
    from mechrep.report.page import save_tables
    from mechrep.report.write import write_report
    from mechrep.studies.full_study import StudySettings, run_studies

    settings = StudySettings(
        preset=preset.value,
        n_loops=texts,
        n_others=others,
        ks=numbers,
        seeds=seeds,
        held_out_text=held_out_text,
        sink_layer=sink_layer,
        store=out / "store",
        seed=seed,
    )
    studies, target = [], out / "report.html"
    for study in run_studies(loaded, parts, settings):
        studies.append(study)  # the page is there, and grows, from the first part on
        save_tables(studies, out)
        write_report(studies, target)
    typer.echo(target)


def _parts(text: str | None) -> list[str]:
    """The parts that were asked for, in the order of the report."""
    asked = list(_PARTS) if text is None else [part.strip() for part in text.split(",")]
    unknown = [part for part in asked if part not in _PARTS]
    if unknown:
        raise typer.BadParameter(f"{unknown[0]!r} is none of {', '.join(_PARTS)}", param_hint="--only")
    return [part for part in _PARTS if part in asked]
