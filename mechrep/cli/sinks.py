"""``mechrep sinks``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mechrep.cli.app import app
from mechrep.cli.options import (
    Device,
    DtypeOption,
    ModelName,
    Revision,
    Seed,
    SinkLayer,
    load_named,
    make_folder,
    save_frame,
)


@app.command(short_help="Whether a model has an attention sink, what makes it, and what repeats do.")
def sinks(
    model: ModelName,
    out: Annotated[Path, typer.Option(help="Folder for results, tables and figures.")] = Path("sinks"),
    tokens: Annotated[int, typer.Option(min=1, help="Tokens to repeat.")] = 32,
    repeats: Annotated[int | None, typer.Option(min=2, help="Repeats of each; up to 512 by default.")] = None,
    layer: SinkLayer = None,
    behaviour: Annotated[bool, typer.Option(help="Also ask whether the model can repeat these tokens.")] = True,
    effort: Annotated[str, typer.Option(help="quick, standard or full.")] = "standard",
    seed: Seed = 0,
    device: Device = None,
    dtype: DtypeOption = None,
    revision: Revision = None,
) -> None:
    """Look for an attention sink at the first position, beside models that know nothing; then for its cause.

    Prints norms, sink layer, sink neurons, heads that rest on the first position, what repeated tokens do, and what is
    lost without the sink neurons; each claim with its verdict.
    """
    make_folder(out)
    loaded = load_named(model, revision, device, dtype)
    from mechrep.report.terminal import section_text
    from mechrep.run import Run
    from mechrep.studies.sinks import run_sink_study

    run = Run(store=out / "store", seed=seed, effort=effort)
    study = run_sink_study(loaded, layer=layer, tokens=tokens, repeats=repeats, behaviour=behaviour, run=run)
    parts = {"sink": study.sink, "norms": study.norms, "repeats": study.repeats, "heads": study.heads}
    parts |= {"ablation": study.ablation, "behaviour": study.behaviour}
    for name, part in parts.items():
        if part is not None:
            part.save(out / name)
            save_frame(part.to_frame(), out / f"{'layers' if name == 'sink' else name}.parquet")
    section = study.section()
    for name, figure in section.figures.items():
        figure.write_html(out / f"{name}.html", include_plotlyjs=True)
    typer.echo(section_text(section, tables=len(section.tables)))
    typer.echo(out)
