"""``mechrep heads``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mechrep.cli.app import app
from mechrep.cli.options import Device, DtypeOption, ModelName, Revision, Seed, load_named, make_folder, save_frame

if TYPE_CHECKING:
    from mechrep.measures.head_scores import HeadScoreResult

@app.command(short_help="Which attention heads copy, and what all heads look at.")
def heads(
    model: ModelName,
    out: Annotated[Path, typer.Option(help="Folder for scores, tables, figure and circuit.")] = Path("heads"),
    period: Annotated[int, typer.Option(min=3, help="Tokens of the random segment that is repeated.")] = 50,
    sequences: Annotated[int, typer.Option(min=2, help="Random texts.")] = 32,
    loops: Annotated[int, typer.Option(min=0, help="Natural loops to score the heads on too (0: none).")] = 0,
    seed: Seed = 0,
    device: Device = None,
    dtype: DtypeOption = None,
    revision: Revision = None,
) -> None:
    """Score all heads on random repeats: induction, duplicate token, previous, current and first token.

    Heads whose prefix matching is clearly above chance are written as induction.json, which `mechrep ablate` takes.
    """
    make_folder(out)
    loaded = load_named(model, revision, device, dtype)
    from mechrep.ablation.circuit import Circuit
    from mechrep.cache.corpus_cache import CorpusCache
    from mechrep.generation.loops import collect_loops
    from mechrep.measures import head_scores as analyzer
    from mechrep.measures.head_scores import head_scores_figure

    result = analyzer.score_heads(loaded, n=period, sequences=sequences, seed=seed)
    _report(result, out, "random-repeats", "random repeats")
    head_scores_figure(result).write_html(out / "heads.html", include_plotlyjs=True)
    copying = len(result.clear("induction"))
    if copying:
        Circuit.from_heads(result, copying).save(out / "induction.json")
    else:
        why = f"no head matches prefixes clearly above chance ({analyzer.CLEAR} adjusted)"
        typer.echo(f"{why}, so no circuit is written")
    if loops:
        corpus = collect_loops(loaded, loops, n_others=0, seed=seed)
        (natural,) = CorpusCache(loaded, corpus).run(analyzer.HeadScores("hiraoka2025", bos_id=loaded.bos_id))
        _report(natural, out, "natural-loops", f"{len(corpus)} natural loops, queries after the onset")
    typer.echo(out)


def _report(result: HeadScoreResult, out: Path, name: str, title: str) -> None:
    import pandas as pd

    from mechrep.report.page import text_table

    result.save(out / name)
    frame = pd.concat([result.to_frame(score).assign(score=score) for score in result.names], ignore_index=True)
    save_frame(frame, out / f"{name}.parquet")
    rows = []
    for number, score in enumerate(result.names):
        for layer, head in result.top(min(2, result.scores[0].numel()), score):
            value, error = (float(t[number, layer, head]) for t in (result.scores, result.standard_errors))
            rows.append((score, f"{layer}.{head}", value, error, float(result.chance[number])))
    typer.echo(f"\n{title}: the best heads of each kind")
    typer.echo(text_table(pd.DataFrame(rows, columns=["score", "head", "mean", "s.e.", "chance"])))
