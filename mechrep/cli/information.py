"""``mechrep information``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    existing_file,
    load_named,
    make_folder,
    read_text,
    save_frame,
)

if TYPE_CHECKING:
    from mechrep.studies.token_information_study import InformationStudy


class Ways(StrEnum):
    """What is done to low-information tokens."""

    mask = "mask"
    swap = "swap"
    both = "both"


@app.command(short_help="Do loops look at tokens that carry little information?")
def information(
    model: ModelName,
    out: Annotated[Path, typer.Option(help="Folder for results, tables and figures.")] = Path("information"),
    texts: Annotated[int, typer.Option("--texts", min=1, help="Looping texts to collect.")] = 100,
    others: Annotated[int, typer.Option(min=0, help="Loop-free texts to collect, as controls.")] = 40,
    preset: PresetOption = Preset.mechrep,
    way: Annotated[Ways, typer.Option(help="Hide low-information tokens, exchange them, or both.")] = Ways.both,
    seeds: Annotated[int, typer.Option(min=1, help="Draws of partner tokens per text.")] = 4,
    held_out: Annotated[Path | None, existing_file("Text for frequencies, distances and controls (UTF-8).")] = None,
    seed: Seed = 0,
    device: Device = None,
    dtype: DtypeOption = None,
    revision: Revision = None,
) -> None:
    """Attention by the information of the attended token, in loops and in texts that do not loop; and the cuts.

    Sinks are left out, and every bias stands beside that of a reader of the usual distances.
    Stopped runs go on where they were when the same command is given again.
    """
    held_out_text = None if held_out is None else read_text(held_out)
    make_folder(out)
    loaded = load_named(model, revision, device, dtype)
    from mechrep.measures.token_information import head_information_figure, information_figure
    from mechrep.report.old_information_section import information_section
    from mechrep.studies.token_information_study import WAYS, run_information_study

    study = run_information_study(
        loaded,
        preset=preset.value,
        n_loops=texts,
        n_others=others,
        seeds=seeds,
        ways=[one for one in WAYS if way.value in (one, "both")],
        held_out_text=held_out_text,
        store=out / "store",
        seed=seed,
    )
    _report(study, out)
    information_figure(study.attention, matched=True).write_html(out / "groups.html", include_plotlyjs=True)
    head_information_figure(study.attention).write_html(out / "heads.html", include_plotlyjs=True)
    typer.echo(f"\n{information_section(study).finding}")
    typer.echo(out)


def _report(study: InformationStudy, out: Path) -> None:
    """Print and write the tables."""
    from mechrep.report.page import text_table

    study.attention.save(out / "attention")
    tables = {"bias-matched": study.bias["matched"], "bias-visible": study.bias["visible"], "sinks": study.sinks}
    tables |= {f"beside-{name}": table for name, table in study.compared.items()}
    for way, cut in study.cuts.items():
        cut.save(out / f"cut-{way}")
        tables[f"cut-{way}"] = cut.summary()
    for name, table in tables.items():
        save_frame(table, out / f"{name}.parquet")
        if name != "sinks":
            typer.echo(f"\n{name.replace('-', ', ')}")
            typer.echo(text_table(table))
    for name, why in study.left_out.items():
        typer.echo(f"left out, {name}: {why}")
