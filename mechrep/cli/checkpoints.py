"""``mechrep checkpoints``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mechrep.cli.app import app
from mechrep.cli.options import Device, DtypeOption, ModelName, make_folder
from mechrep.errors import StoreError

if TYPE_CHECKING:
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

    A run that was stopped goes on where it was.  Prints the claims, when each measure changes and which comes first;
    writes tables and figures, also on whether the same heads carry natural loops and induced repetition.
    """
    make_folder(out)
    import torch

    from mechrep.report.terminal import print_section
    from mechrep.run import Run
    from mechrep.studies.training import TRAINING_MEASURES, run_training_study

    study = run_training_study(
        model,
        revisions=revisions if revisions in ("all", "grid") else [name.strip() for name in revisions.split(",")],
        measures=TRAINING_MEASURES if measures == "all" else [name.strip() for name in measures.split(",")],
        prompts=prompts,
        run=Run(store=out / "store"),
        device=device,
        dtype=None if dtype is None else getattr(torch, dtype.value),
    )
    section = study.section()
    study.checkpoints.save(out / "result")
    if study.heads is not None:
        study.heads.history.save(out / "heads")
    _write(study, section.figures, out)
    print_section(section)
    typer.echo(out)


def _write(study: TrainingStudy, figures: Mapping[str, Any], out: Path) -> None:
    """Write tables as CSV and figures as HTML.

    Raises:
        StoreError: the folder cannot be written.
    """
    tables = {"checkpoints": study.checkpoints.to_frame(), "steps": study.points, "order": study.order}
    if study.heads is not None:
        heads = study.heads
        tables |= {"heads": heads.history.to_frame(), "heads-specialisation": heads.specialisation}
        tables |= {"heads-agreement": heads.agreement, "heads-steps": heads.points}
    try:
        for name, table in tables.items():
            table.to_csv(out / f"{name}.csv", index=False)
        for name, figure in figures.items():
            figure.write_html(out / f"{name}.html", include_plotlyjs=True)
    except OSError as error:
        raise StoreError(
            f"folder {out} ({error.strerror})", "a place to write", "free space or choose another"
        ) from error
