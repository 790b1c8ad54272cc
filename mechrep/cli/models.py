"""``mechrep models``."""

from __future__ import annotations

import typer

from mechrep.cli.app import app


@app.command(short_help="The embedded models and their checkpoints.")
def models() -> None:
    """The embedded models with their checkpoints, and how to name others."""
    from mechrep.models import tiny

    for name in tiny.NAMES:
        kept = tiny.revisions(name)
        typer.echo(f"{name}: embedded, no network; {len(kept)} checkpoints for --revision, the last by default")
        typer.echo(f"  {'revision':>10} {'tokens seen':>13} {'held-out loss':>14}")
        for line in tiny.history(name):
            revision = f"step{line['step']}"
            label = revision if revision in kept else f"({line['step']})"
            typer.echo(f"  {label:>10} {line['tokens']:>13,} {line['held_out_loss']:>14.3f}")
        typer.echo("  Steps in brackets were measured, not kept.")
    typer.echo("others: a hub name (EleutherAI/pythia-70m), or a folder with config.json and weights (./my-model)")
