"""``mechrep sinks``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mechrep.cli.app import app
from mechrep.cli.options import Device, DtypeOption, ModelName, Revision, Seed, load_named, make_folder, save_frame

if TYPE_CHECKING:
    import pandas as pd

    from mechrep.analyzers.sinks.result import SinkResult
    from mechrep.models.model import Model
    from mechrep.studies.sink_tables import SinkTables


@app.command(short_help="Whether a model has an attention sink, what makes it, and what repeats do.")
def sinks(
    model: ModelName,
    out: Annotated[Path, typer.Option(help="Folder for results, tables and figures.")] = Path("sinks"),
    tokens: Annotated[int, typer.Option(min=1, help="Tokens to repeat.")] = 32,
    repeats: Annotated[int | None, typer.Option(min=2, help="Copies of each; up to 512 by default.")] = None,
    behaviour: Annotated[bool, typer.Option(help="Also ask whether the model can repeat these tokens.")] = True,
    seed: Seed = 0,
    device: Device = None,
    dtype: DtypeOption = None,
    revision: Revision = None,
) -> None:
    """Look for an attention sink at the first position, beside models that know nothing; then for its cause.

    Prints norms, sink layer, sink neurons and whether the ways to find them agree, heads that rest on the first
    position, what repeated tokens do, and whether published findings are met.
    """
    make_folder(out)
    loaded = load_named(model, revision, device, dtype)
    from mechrep.analyzers.sinks.find_sink import find_sink
    from mechrep.studies.sink_tables import measure_tables

    result = find_sink(loaded, seed=seed)
    result.save(out / "sink")
    save_frame(result.to_frame(), out / "layers.parquet")
    tables = measure_tables(loaded, result, tokens=tokens, repeats=repeats, seed=seed)
    for name, part in (("norms", tables.norms), ("repeats", tables.repeats), ("heads", tables.heads)):
        part.save(out / name)
        save_frame(part.to_frame(), out / f"{name}.parquet")
    _print_finding(loaded, result, tables)
    _draw(loaded, result, tables, out)
    if behaviour:
        _behaviour(loaded, result, tables, out, seed)
    typer.echo(out)


def _print_finding(model: Model, result: SinkResult, tables: SinkTables) -> None:
    import pandas as pd

    from mechrep.views.terminal import text_table

    typer.echo(result.reason)
    typer.echo(f"null models: norm ratios {_numbers(result.null_ratios)}, best heads {_numbers(result.null_alphas)}")
    typer.echo("\nnorms of the residual stream after each layer")
    typer.echo(text_table(tables.by_layer()))
    if result.layer is not None:
        neurons = ", ".join(f"{layer}:{neuron}" for layer, neuron in result.neurons)
        typer.echo(f"\nsink layer {result.layer}, sink neurons {neurons}")
        typer.echo(text_table(pd.DataFrame(result.agreement.items(), columns=["way to find them", "share in common"])))
        typer.echo("\nshare of the excess norm that is gone when neurons are set to zero")
        typer.echo(text_table(pd.DataFrame(result.removed.items(), columns=["neurons", "removed"])))
    typer.echo(f"\nrepeated tokens: {_repeats(result, tables)}")
    heads = tables.heads.to_frame()[["layer", "head", "alpha", "rate", "row_entropy"]]
    resting = {(int(layer), int(head)) for layer, head in result.sink_heads}
    shown = heads.head(max(2, min(len(resting), 10)))
    sink = [(layer, head) in resting for layer, head in zip(shown["layer"], shown["head"], strict=True)]
    typer.echo(f"\nheads that attend most to the first position ({len(resting)} of {len(heads)} rest on it)")
    typer.echo(text_table(shown.assign(sink=sink)))
    typer.echo(f"\n{_published(model.name, result)}")


def _numbers(values: object) -> str:
    return ", ".join(f"{value:.3g}" for value in values)  # pyright: ignore[reportGeneralTypeIssues]


def _repeats(result: SinkResult, tables: SinkTables) -> str:
    norms = tables.repeats
    largest = f"the largest comes to {tables.largest_repeat:.3g} times the typical norm"
    about = f"{len(norms.token_ids)} tokens, {norms.repeats[-1]} copies each; {largest}"
    if not result.norm_found:
        return f"{about}; {result.moved_reason}"
    moved = tables.moved(result)
    if moved.reason:
        return f"{about}; {moved.reason}"
    return f"{about}; {moved.share:.0%} come at least half-way (log scale) to the norm of BOS"


def _published(name: str, result: SinkResult) -> str:
    from mechrep.analyzers.sinks.known_sinks import is_known, matches_known

    if not is_known(name):
        return f"nothing is published on {name} as far as known_sinks() knows"
    return f"published sinks of {name}: {'met' if matches_known(name, result) else 'NOT met'}; see known_sinks()"


def _draw(model: Model, result: SinkResult, tables: SinkTables, out: Path) -> None:
    from mechrep.views.repeat_plots import text_against_repeats_figure
    from mechrep.views.sink_plots import norms_by_layer_figure, norms_vs_repeats_figure, sink_heads_figure

    layer = tables.layer(result)
    names = {token: model.decode([token]) for token in tables.repeats.token_ids}
    figures = {
        "norms-by-layer": norms_by_layer_figure(tables.norms),
        "norms-vs-repeats": norms_vs_repeats_figure(tables.repeats, layer, tables.norms.other_norm, names=names),
        "sink-heads": sink_heads_figure(tables.heads),
        "attention": text_against_repeats_figure(
            [tables.text_pattern, tables.repeat_pattern],
            [[model.decode([token]) for token in ids] for ids in (tables.text_ids, tables.repeat_ids)],
            head=result.best_head,
            name=model.name,
        ),
    }
    for name, figure in figures.items():
        figure.write_html(out / f"{name}.html", include_plotlyjs=True)


def _behaviour(model: Model, result: SinkResult, tables: SinkTables, out: Path, seed: int) -> None:
    from mechrep.studies.repeat_behaviour import repeat_behaviour, sink_conditions
    from mechrep.views.repeat_plots import repeat_behaviour_figure
    from mechrep.views.terminal import text_table

    conditions = None
    if tables.neurons is not None:
        conditions = sink_conditions(tables.neurons, max(1, len(result.neurons)), seed=seed)
    found = repeat_behaviour(model, list(tables.repeats.token_ids), interventions=conditions, seed=seed)
    found.save(out / "behaviour")
    frame: pd.DataFrame = found.to_frame()
    save_frame(frame, out / "behaviour.parquet")
    repeat_behaviour_figure(found).write_html(out / "behaviour.html", include_plotlyjs=True)
    last = frame[frame["repeats"] == found.repeats[-1]]
    columns = ["condition", "p_next", "p_low", "p_high", "run", "diverged", "diverged_low", "diverged_high"]
    typer.echo(f"\nafter {found.repeats[-1]} copies, {found.new_tokens} more asked for")
    typer.echo(text_table(last[columns].reset_index(drop=True)))
