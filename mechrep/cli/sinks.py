"""``mechrep sinks``."""

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
    load_named,
    make_folder,
    save_frame,
)

if TYPE_CHECKING:
    from mechrep.measures.find_sink import SinkResult
    from mechrep.studies.sinks import SinkStudy, SinkTables


@app.command(short_help="Whether a model has an attention sink, what makes it, and what repeats do.")
def sinks(
    model: ModelName,
    out: Annotated[Path, typer.Option(help="Folder for results, tables and figures.")] = Path("sinks"),
    tokens: Annotated[int, typer.Option(min=1, help="Tokens to repeat.")] = 32,
    repeats: Annotated[int | None, typer.Option(min=2, help="Copies of each; up to 512 by default.")] = None,
    layer: SinkLayer = None,
    behaviour: Annotated[bool, typer.Option(help="Also ask whether the model can repeat these tokens.")] = True,
    seeds: Annotated[int, typer.Option(min=1, help="Draws of each control.")] = 3,
    seed: Seed = 0,
    device: Device = None,
    dtype: DtypeOption = None,
    revision: Revision = None,
) -> None:
    """Look for an attention sink at the first position, beside models that know nothing; then for its cause.

    Prints norms, sink layer, sink neurons and whether the ways to find them agree, heads that rest on the first
    position, what repeated tokens do, whether published findings are met, and what is lost without the sink neurons.
    """
    make_folder(out)
    loaded = load_named(model, revision, device, dtype)
    from mechrep.studies.sinks import run_sink_study

    options = {
        "layer": layer,
        "seeds": seeds,
        "tokens": tokens,
        "repeats": repeats,
        "behaviour": behaviour,
        "seed": seed,
    }
    study = run_sink_study(loaded, **options)
    _save(study, out)
    _print_finding(study)
    _print_causes(study)
    _draw(study, out)
    _print_behaviour(study)
    typer.echo(out)


def _save(study: SinkStudy, out: Path) -> None:
    tables = study.tables
    parts = {"sink": study.sink, "norms": tables.norms, "repeats": tables.repeats, "heads": tables.heads}
    parts |= {"ablation": study.ablation, "behaviour": study.behaviour}
    for name, part in parts.items():
        if part is not None:
            part.save(out / name)
            save_frame(part.to_frame(), out / f"{'layers' if name == 'sink' else name}.parquet")


def _print_finding(study: SinkStudy) -> None:
    import pandas as pd

    from mechrep.report.page import text_table

    result, tables = study.sink, study.tables
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
    typer.echo(f"\n{_published(study)}")


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


def _published(study: SinkStudy) -> str:
    if study.known == "unknown":
        return f"nothing is published on {study.model_name} as far as known_sinks() knows"
    met = "met" if study.known == "met" else "NOT met"
    return f"published sinks of {study.model_name}: {met}; see known_sinks()"


def _print_causes(study: SinkStudy) -> None:
    from mechrep.report.page import text_table

    if study.ablation is None:
        typer.echo("\nno neurons to set to zero")
        return
    frame = study.ablation.summary()
    columns = ["cut", "measure", "untouched", "value", "change", "low", "high", "n", "beyond"]
    columns += [name for name in frame if name in set(study.ablation.selections)]
    cut = ", ".join(f"{name}: {len(study.ablation.neurons_of(name))}" for name in study.ablation.cut_names)
    typer.echo(
        f"\nsink neurons set to zero ({cut}), 95 % intervals of the change; mean change with as many other neurons; "
        "beyond: the interval lies beyond every draw of them and beyond 0"
    )
    typer.echo(text_table(frame[columns]))


def _draw(study: SinkStudy, out: Path) -> None:
    from mechrep.measures.attention_sinks import sink_heads_figure
    from mechrep.measures.sink_norms import norms_by_layer_figure, norms_vs_repeats_figure
    from mechrep.studies.repeat_behaviour import repeat_behaviour_figure, text_against_repeats_figure
    from mechrep.studies.sink_ablation import sink_cause_figure

    result, tables = study.sink, study.tables
    layer = tables.layer(result)
    figures = {
        "norms-by-layer": norms_by_layer_figure(tables.norms),
        "norms-vs-repeats": norms_vs_repeats_figure(tables.repeats, layer, tables.norms.other_norm, names=study.names),
        "sink-heads": sink_heads_figure(tables.heads),
        "attention": text_against_repeats_figure(
            [tables.text_pattern, tables.repeat_pattern],
            [study.text_tokens, study.repeat_tokens],
            head=result.best_head,
            name=study.model_name,
        ),
    }
    if study.ablation is not None:
        figures["cause"] = sink_cause_figure(study.ablation)
    if study.behaviour is not None:
        figures["behaviour"] = repeat_behaviour_figure(study.behaviour)
    for name, figure in figures.items():
        figure.write_html(out / f"{name}.html", include_plotlyjs=True)


def _print_behaviour(study: SinkStudy) -> None:
    from mechrep.report.page import text_table

    found = study.behaviour
    if found is None:
        return
    frame = found.to_frame()
    last = frame[frame["repeats"] == found.repeats[-1]]
    columns = ["condition", "p_next", "p_low", "p_high", "run", "diverged", "diverged_low", "diverged_high"]
    typer.echo(f"\nafter {found.repeats[-1]} copies, {found.new_tokens} more asked for")
    typer.echo(text_table(last[columns].reset_index(drop=True)))
