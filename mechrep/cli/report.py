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
    Texts,
    existing_file,
    load_named,
    make_folder,
    parse_numbers,
    read_text,
)


@app.command(short_help="The whole study, as one HTML page.")
def report(
    model: ModelName,
    out: Annotated[Path, typer.Option(help="Folder for the report, the tables and the unfinished work.")] = Path(
        "report"
    ),
    preset: PresetOption = Preset.mechrep,
    texts: Texts = 200,
    others: Annotated[int, typer.Option(min=0, help="Loop-free texts to collect.")] = 40,
    ks: Annotated[
        str | None, typer.Option(help="Numbers of neurons to cut, e.g. 0,10,100; up to 7 % by default.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Draws of each control.")] = 3,
    seed: Seed = 0,
    held_out: Annotated[Path | None, existing_file("Text for the perplexity (UTF-8).")] = None,
    device: Device = None,
    dtype: DtypeOption = None,
    revision: Revision = None,
) -> None:
    """Find repetition neurons, cut and boost them beside controls, and write one HTML report.

    Stopped runs go on where they were when the same command is given again.
    """
    numbers = parse_numbers(ks)
    held_out_text = None if held_out is None else read_text(held_out)
    make_folder(out)
    loaded = load_named(model, revision, device, dtype)
    from mechrep.studies.repetition_study import run_repetition_study
    from mechrep.views.report import save_tables, write_report

    study = run_repetition_study(
        loaded,
        preset=preset.value,
        n_loops=texts,
        n_others=others,
        ks=numbers,
        seeds=seeds,
        held_out_text=held_out_text,
        store=out / "store",
        seed=seed,
    )
    save_tables(study, out)
    typer.echo(write_report(study, out / "report.html"))
