"""``mechrep checkpoints``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mechrep.cli.app import app
from mechrep.cli.options import Device, DtypeOption, ModelName, make_folder
from mechrep.errors import StoreError

if TYPE_CHECKING:
    import pandas as pd

    from mechrep.studies.checkpoints import CheckpointResult


@app.command(short_help="Each mechanism over training: when it appears, and in which order.")
def checkpoints(
    model: ModelName,
    out: Annotated[Path, typer.Option(help="Folder for tables and figures; unfinished runs go on there.")] = Path(
        "checkpoints"
    ),
    revisions: Annotated[
        str, typer.Option(help="all, grid, or names in the order of training: step0,step512,...")
    ] = "all",
    measures: Annotated[str, typer.Option(help="all, or some of heads,sinks,loops.")] = "all",
    prompts: Annotated[int, typer.Option(min=4, help="Prompts whose loops are counted, the same everywhere.")] = 64,
    device: Device = None,
    dtype: DtypeOption = None,
) -> None:
    """Measure heads, sinks and loops at every checkpoint, one model in memory at a time.

    A run that was stopped goes on where it was.  Prints the values, the change point of each measure with its interval,
    and which comes first.
    """
    make_folder(out)
    import torch

    from mechrep.studies.checkpoints import MEASURES, measure_named, over_checkpoints
    from mechrep.views.terminal import text_table

    names = list(MEASURES) if measures == "all" else [name.strip() for name in measures.split(",")]
    chosen = [measure_named(name, **({"prompts": prompts} if name == "loops" else {})) for name in names]
    result = over_checkpoints(
        chosen,
        model=model,
        revisions=revisions if revisions in ("all", "grid") else [name.strip() for name in revisions.split(",")],
        store=out / "store",
        device=device,
        dtype=None if dtype is None else getattr(torch, dtype.value),
    )
    points, order = result.change_points(), result.order()
    result.save(out / "result")
    for title, table in (("values", result.wide()), ("change points", points), ("order of appearance", order)):
        typer.echo(f"\n{title}")
        typer.echo(text_table(table) if len(table) else "no clear step in any two measures")
    _write(result, {"checkpoints": result.to_frame(), "change-points": points, "order": order}, out)
    typer.echo(out)


def _write(result: CheckpointResult, tables: dict[str, pd.DataFrame], out: Path) -> None:
    from mechrep.views.checkpoint_plots import flow_figure, mechanisms_figure

    figures: dict[str, Any] = {"mechanisms": mechanisms_figure(result)}
    if "loops_naturally" in result.measures and len(result.revisions) > 1:
        figures["flow"] = flow_figure(result)
    try:
        for name, table in tables.items():
            table.to_csv(out / f"{name}.csv", index=False)
        for name, figure in figures.items():
            figure.write_html(out / f"{name}.html", include_plotlyjs=True)
    except OSError as error:
        raise StoreError(
            f"folder {out} ({error.strerror})", "a place to write", "free space or choose another"
        ) from error
