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

    from mechrep.studies.training import TrainingStudy


@app.command(short_help="Each mechanism over training: when it appears, and in which order.")
def checkpoints(
    model: ModelName,
    out: Annotated[Path, typer.Option(help="Folder for tables and figures; unfinished runs go on there.")] = Path(
        "checkpoints"
    ),
    revisions: Annotated[
        str, typer.Option(help="all, grid, or names in the order of training: step0,step512,...")
    ] = "all",
    measures: Annotated[str, typer.Option(help="all, or some of heads,sinks,loops,head_effects.")] = "all",
    prompts: Annotated[int, typer.Option(min=4, help="Prompts whose loops are counted, the same everywhere.")] = 64,
    device: Device = None,
    dtype: DtypeOption = None,
) -> None:
    """Measure heads, sinks and loops at every checkpoint, one model in memory at a time.

    A run that was stopped goes on where it was.  Prints the values, the change point of each measure with its interval,
    which comes first, and whether the same heads carry natural loops and induced copying.
    """
    make_folder(out)
    import torch

    from mechrep.report.page import text_table
    from mechrep.studies.training import TRAINING_MEASURES, training_study

    study = training_study(
        model,
        revisions=revisions if revisions in ("all", "grid") else [name.strip() for name in revisions.split(",")],
        measures=TRAINING_MEASURES if measures == "all" else [name.strip() for name in measures.split(",")],
        prompts=prompts,
        store=out / "store",
        device=device,
        dtype=None if dtype is None else getattr(torch, dtype.value),
    )
    study.checkpoints.save(out / "result")
    if study.heads is not None:
        study.heads.history.save(out / "heads")
    shown = {"values": study.checkpoints.wide(), "change points": study.points, "order of appearance": study.order}
    if study.heads is not None:
        columns = ["revision", "first", "second", "value", "low", "high", "n_first", "n_second", "verdict"]
        shown["do the same heads carry both (overlap of what they do)"] = study.heads.agreement[columns]
    for title, table in shown.items():
        if table.shape[1] > 1:  # heads' effects alone have no values of their own
            typer.echo(f"\n{title}")
            typer.echo(text_table(table) if len(table) else "nothing to compare")
    _write(study, out)
    typer.echo(out)


def _write(study: TrainingStudy, out: Path) -> None:
    tables = {
        "checkpoints": study.values,
        "change-points": study.points,
        "order": study.order,
        "starts": study.starts,
    }
    if study.heads is not None:
        heads = study.heads
        tables |= {
            "heads": heads.history.to_frame(),
            "heads-specialisation": heads.specialisation,
            "heads-agreement": heads.agreement,
            "heads-change-points": heads.points,
        }
    _write_files(tables, _figures(study), out)


def _figures(study: TrainingStudy) -> dict[str, Any]:
    from mechrep.studies.checkpoints import flow_figure, mechanisms_figure
    from mechrep.studies.training_heads import agreement_figure, head_maps_figure, specialisation_figure

    result = study.checkpoints
    figures: dict[str, Any] = {"mechanisms": mechanisms_figure(result)} if result.measures else {}
    if "loops_naturally" in result.measures and len(result.revisions) > 1:
        figures["flow"] = flow_figure(result)
    if study.heads is not None:
        figures["head-maps"] = head_maps_figure(study.heads.history)
        figures["heads-specialisation"] = specialisation_figure(study.heads.specialisation, study.model_name)
        figures["heads-agreement"] = agreement_figure(study.heads.agreement, study.model_name)
    return figures


def _write_files(tables: dict[str, pd.DataFrame], figures: dict[str, Any], out: Path) -> None:
    """Write tables as CSV and figures as HTML.

    Raises:
        StoreError: the folder cannot be written.
    """
    try:
        for name, table in tables.items():
            table.to_csv(out / f"{name}.csv", index=False)
        for name, figure in figures.items():
            figure.write_html(out / f"{name}.html", include_plotlyjs=True)
    except OSError as error:
        raise StoreError(
            f"folder {out} ({error.strerror})", "a place to write", "free space or choose another"
        ) from error
