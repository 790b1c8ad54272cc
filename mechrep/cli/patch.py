"""``mechrep patch``."""

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
    existing_file,
    load_named,
    make_folder,
    read_text,
)
from mechrep.errors import StoreError


@app.command(short_help="What the sink patch does to norms, repetition and perplexity.")
def patch(
    model: ModelName,
    out: Annotated[Path, typer.Option(help="Folder for the patch, the result and its tables.")] = Path("patch"),
    layer: Annotated[int | None, typer.Option(min=0, help="The sink layer; found by default.")] = None,
    neurons: Annotated[str | None, typer.Option(help="Sink neurons of that layer: 7890 or 7890,10411.")] = None,
    repeats: Annotated[int | None, typer.Option(min=2, help="How often a token is repeated; 512 by default.")] = None,
    text: Annotated[Path | None, existing_file("Ordinary text for norms, attention and perplexity (UTF-8).")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Draws of each control.")] = 5,
    seed: Seed = 0,
    device: Device = None,
    dtype: DtypeOption = None,
    revision: Revision = None,
) -> None:
    """Hold the sink neurons at the level of the first token after BOS, and measure the model before and after.

    Controls: the same patch on random, layer-matched and activation-matched neurons.
    """
    if (layer is None) != (neurons is None):
        raise typer.BadParameter("give both --layer and --neurons, or neither")
    numbers = None if neurons is None else _numbers(neurons)
    ordinary = None if text is None else read_text(text)
    make_folder(out)
    loaded = load_named(model, revision, device, dtype)
    from mechrep.interventions.ops import SinkPatch
    from mechrep.report.page import text_table
    from mechrep.studies.sink_patch import run_patch_study
    from mechrep.text.corpus import windows_of_text

    result = run_patch_study(
        loaded,
        None if layer is None or numbers is None else SinkPatch(layer, numbers),
        texts=None if ordinary is None else windows_of_text(loaded, ordinary, length=64, limit=100),
        repeats=repeats,
        seeds=seeds,
        seed=seed,
    )
    result.save(out / "result")
    summary = result.summary()
    try:
        summary.to_csv(out / "summary.csv", index=False)
        summary.to_json(out / "summary.json", orient="records", indent=1)
        result.to_frame().to_csv(out / "conditions.csv", index=False)
    except OSError as error:
        raise StoreError(f"folder {out} ({error.strerror})", "a place to write", "choose another with --out") from error
    typer.echo(
        f"layer {result.layer}, neurons {', '.join(map(str, result.neurons))}; {result.repeats} repeats of each of "
        f"{len(result.token_ids)} tokens"
    )
    typer.echo(text_table(summary[["measure", "original", "patched", "difference", "low", "high"]]))
    controls = [name for name in dict.fromkeys(result.selections) if f"{name}_low" in summary]
    typer.echo(f"\nthe same difference when as many other neurons are held (mean and range of {seeds} draws)")
    typer.echo(text_table(summary[["measure", *(f"{c}{end}" for c in controls for end in ("", "_low", "_high"))]]))
    if result.moved_reason:
        typer.echo(f"no share of tokens that drift: {result.moved_reason}")
    typer.echo(out)


def _numbers(neurons: str) -> list[int]:
    """Neurons written as ``7890,10411``."""
    try:
        return [int(part) for part in neurons.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"{neurons!r} is no list such as 7890,10411", param_hint="--neurons") from error
