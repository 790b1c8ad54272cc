"""``mechrep card``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mechrep.cli.app import app
from mechrep.cli.options import (
    Device,
    DtypeOption,
    ModelName,
    Revision,
    Seed,
    SinkLayer,
    existing_file,
    load_named,
    make_folder,
    read_text,
)
from mechrep.errors import StoreError

if TYPE_CHECKING:
    from mechrep.run import Run


@app.command(short_help="Which phenomena a model shows, as one table.")
def card(
    model: ModelName,
    out: Annotated[Path, typer.Option(help="Folder for the card's table and figure.")] = Path("card"),
    revisions: Annotated[
        str | None, typer.Option(help="Measure checkpoints too: step0,step512,... or, for an embedded model, all.")
    ] = None,
    prompts: Annotated[int, typer.Option(min=8, help="Sampled prompts for the share that loops.")] = 256,
    nulls: Annotated[int | None, typer.Option(min=0, help="Null models to compare with; 0: bars only.")] = None,
    sink_layer: SinkLayer = None,
    held_out: Annotated[Path | None, existing_file("Text for losses and sinks (UTF-8).")] = None,
    seed: Seed = 0,
    device: Device = None,
    dtype: DtypeOption = None,
    revision: Revision = None,
) -> None:
    """Measure loops, induction, attention sinks, BOS norm and repeated tokens, each beside its bar and null models.

    Every part is kept in the folder as soon as it is measured: after an interruption the same command goes on.
    """
    text = None if held_out is None else read_text(held_out)
    wanted = None if revisions is None else _revisions(model, revisions)
    make_folder(out)
    loaded = load_named(model, revision, device, dtype)
    from mechrep.report.page import text_table
    from mechrep.run import Run
    from mechrep.studies.card import measure_card

    run = Run(store=out / "store", seed=seed)
    result = measure_card(loaded, held_out_text=text, prompts=prompts, sink_layer=sink_layer, nulls=nulls, run=run)
    result.save(out / "card")
    columns = ["measure", "value", "low", "high", "least", "most", "shown", "verdict"]
    typer.echo(text_table(result.to_frame()[columns].fillna("")))
    if wanted is not None:
        _card_history(model, wanted, prompts, sink_layer, run, out)
    typer.echo(out)


def _revisions(model: str, text: str) -> list[str]:
    """Names of checkpoints, first to last."""
    from mechrep.models import tiny

    if text != "all":
        return [name.strip() for name in text.split(",")]
    if model not in tiny.NAMES:
        raise typer.BadParameter("all is known for embedded models only; name the revisions", param_hint="--revisions")
    return tiny.revisions(model)


def _card_history(model: str, revisions: list[str], prompts: int, sink_layer: int | None, run: Run, out: Path) -> None:
    from mechrep.models import tiny
    from mechrep.report.page import text_table
    from mechrep.studies.card import appearances, card_history, history_figure

    history = card_history(model, revisions, prompts=prompts, sink_layer=sink_layer, run=run)
    tokens = {f"step{line['step']}": line["tokens"] for line in tiny.history(model)} if model in tiny.NAMES else None
    try:
        history.to_json(out / "history.jsonl", orient="records", lines=True)
        history_figure(history, model, tokens).write_html(out / "history.html", include_plotlyjs=True)
    except OSError as error:
        raise StoreError(
            f"folder {out} ({error.strerror})", "a place to write", "free space or choose another"
        ) from error
    typer.echo(text_table(appearances(history)))
