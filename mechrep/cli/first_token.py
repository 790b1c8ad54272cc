"""``mechrep first-token``."""

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
    save_frame,
)

if TYPE_CHECKING:
    from mechrep.measures.first_token import FirstTokenParts, FirstTokenResult


@app.command(name="first-token", short_help="How layer 0 tells the first token from all others.")
def first_token(
    model: ModelName,
    out: Annotated[Path, typer.Option(help="Folder for results, tables and figures.")] = Path("first-token"),
    texts: Annotated[Path | None, existing_file("A text to measure on; held-out English by default.")] = None,
    layer: SinkLayer = None,
    triples: Annotated[int, typer.Option(min=20, help="Triples of consecutive tokens.")] = 1000,
    repeats: Annotated[int | None, typer.Option(min=8, help="Copies of a token; 500 or what fits by default.")] = None,
    seed: Seed = 0,
    device: Device = None,
    dtype: DtypeOption = None,
    revision: Revision = None,
) -> None:
    """Which neurons tell a first token, which heads of layer 0 carry that mark, and what copies of a token do to it."""
    make_folder(out)
    loaded = load_named(model, revision, device, dtype)
    from mechrep.measures.first_token import first_token_parts

    given = None if texts is None else [read_text(texts)]
    parts = first_token_parts(loaded, texts=given, layer=layer, triples=triples, repeats=repeats, seed=seed)
    result = parts.summary()
    result.save(out / "result")
    _save(parts, out)
    _report(result, parts)
    typer.echo(out)


def _save(parts: FirstTokenParts, out: Path) -> None:
    """Each measurement as a folder, a table and a figure."""
    measured = {
        "mass": parts.mass,
        "detectors": parts.detectors,
        "heads": parts.cuts,
        "convergence": parts.convergence,
    }
    for name, result in measured.items():
        result.save(out / name)
        save_frame(result.to_frame(), out / f"{name}.parquet")
        result.plot().write_html(out / f"{name}.html", include_plotlyjs=True)


def _report(result: FirstTokenResult, parts: FirstTokenParts) -> None:
    import pandas as pd

    from mechrep.report.page import text_table

    low, high = result.interval
    copies = f"law {result.law}, slope {result.slope:.2f}; expected {result.theory}"
    rows = [
        ("a neuron tells the first token", "yes" if result.found else "no", f"nulls {_nulls(result):.3f}"),
        ("best neuron, area under ROC", f"{result.auroc:.3f}", f"{low:.3f} to {high:.3f}"),
        ("input of its MLP, area", f"{result.state_auroc:.3f}", "one direction"),
        ("heads that carry it", ", ".join(f"0.{head}" for _, head in result.heads) or "none", "zero and mean"),
        ("all heads cut: area lost", f"{result.lost_together:.3f}", _goes(result)),
        ("attention to others, largest", f"{float(result.mass.max()):.3f}", f"uniform {result.uniform_mass:.3f}"),
        ("error of the identity", f"{result.identity_error:.1e}", f"equal values {result.same_value_error:.1e}"),
        ("copies of one token alone differ", f"{result.pure_deviation:.1e}", "without BOS"),
        (f"distance after {result.repeats} copies", f"{result.last_distance:.3f}", copies),
        ("as theory expects", "yes" if result.agrees else "no", parts.convergence.theory_words),
    ]
    typer.echo(text_table(pd.DataFrame(rows, columns=["what", "value", "beside"])))
    typer.echo(result.reason)
    if parts.cuts.sink_reason:
        typer.echo(f"no norm to follow: {parts.cuts.sink_reason}")


def _nulls(result: FirstTokenResult) -> float:
    return max(result.shuffled_auroc, *result.null_aurocs)


def _goes(result: FirstTokenResult) -> str:
    return "the mark goes" if result.needs_attention else "the mark does not need attention, or there is none"
