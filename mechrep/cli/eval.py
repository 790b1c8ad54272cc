"""``mechrep eval``."""

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
    existing_file,
    load_named,
    make_folder,
    parse_units,
    read_text,
    save_frame,
)
from mechrep.errors import InputError, NothingFoundError

if TYPE_CHECKING:
    from mechrep.interventions.ops import SinkPatch
    from mechrep.models.model import Model

_AUTO = "auto"


@app.command("eval", short_help="Benchmarks with and without a patch or a cut.")
def evaluate(
    model: ModelName,
    data: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            help="Folder of question files: mmlu*.jsonl.gz and so on. Not needed for continuation and recall.",
        ),
    ] = None,
    patch: Annotated[
        str | None, typer.Option(metavar="FILE|auto", help="Sink neurons to hold: auto, L:N,L:N, or a .json file.")
    ] = None,
    circuit: Annotated[Path | None, existing_file("A circuit to cut, as `mechrep heads` writes it.")] = None,
    tasks: Annotated[
        str, typer.Option(help="Benchmarks, separated by commas.")
    ] = "mmlu,arc_challenge,hellaswag,winogrande,truthfulqa",
    limit: Annotated[int | None, typer.Option(min=1, help="Ask only so many questions of each.")] = None,
    controls: Annotated[int, typer.Option(min=0, help="Draws of layer-matched other units for each (0: none).")] = 3,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows per forward pass.")] = 16,
    out: Annotated[Path, typer.Option(help="Folder for the result, its tables and its figure.")] = Path("eval"),
    seed: Seed = 0,
    device: Device = None,
    dtype: DtypeOption = None,
    revision: Revision = None,
) -> None:
    """Ask benchmark questions through lm-evaluation-harness: original, patched, and their paired difference.

    Needs `pip install mechrep[evals]`. Finished benchmarks are kept in OUT; the same command goes on where it stopped.
    """
    from mechrep.ablation.benchmark_tasks import require_harness

    require_harness()
    from mechrep.ablation.benchmark_tasks import as_tasks, read_documents
    from mechrep.ablation.benchmarks import Questions, benchmark_study, paired_answers
    from mechrep.ablation.circuit import Circuit
    from mechrep.interventions.ops import Intervention
    from mechrep.report.page import text_table

    names = [name.strip() for name in tasks.split(",")]
    for task in as_tasks(names):
        read_documents(task, data, 1)  # what is missing is said before the long work
    make_folder(out)
    cut = None if circuit is None else Circuit.load(circuit)
    loaded = load_named(model, revision, device, dtype)
    interventions: dict[str, Intervention | Circuit] = {}
    if patch is not None:
        interventions["patched"] = _find_patch(loaded, seed) if patch == _AUTO else _read_patch(patch)
    if cut is not None:
        interventions[cut.name] = cut
    from mechrep.run import Run

    result = benchmark_study(
        loaded,
        interventions,
        questions=Questions(names, data, limit),
        controls=("layer_matched",) if controls else (),
        batch_size=batch_size,
        run=Run(store=out / "store", seed=seed, effort="quick"),
    )
    result.save(out / "result")
    result.to_parquet(out / "questions.parquet")
    save_frame(result.to_frame(), out / "conditions.parquet")
    import pandas as pd

    from mechrep.ablation.benchmarks import in_words

    for name, change in interventions.items():
        done = change.intervention(when="all") if isinstance(change, Circuit) else change
        typer.echo(f"{name}: {in_words(done)}")
    typer.echo(text_table(pd.DataFrame(result.notes["benchmarks"]).T.rename_axis("benchmark").reset_index()))
    if interventions:
        result.plot().write_html(out / "eval.html", include_plotlyjs=True)
        summary = result.summary()
        save_frame(summary, out / "summary.parquet")
        columns = ["measure", "name", "baseline", "value", "effect", "low", "high", "control_low", "control_high", "q"]
        typer.echo(text_table(summary[[*columns, "verdict"]]))
        answers = paired_answers(result)
        typer.echo(text_table(answers[answers["selection"] == "ablation"]))
    else:
        typer.echo(text_table(result.to_frame()[["measure", "value", "value_low", "value_high", "n"]]))
    typer.echo(out)


def _find_patch(model: Model, seed: int) -> SinkPatch:
    """The patch on the sink neurons that are found in the model itself."""
    from mechrep.interventions.ops import SinkPatch
    from mechrep.run import Run
    from mechrep.studies.find_sink import find_sink

    sink = find_sink(model, run=Run(seed=seed))
    if sink.layer is None or not sink.neurons:
        raise NothingFoundError(
            f"--patch auto for {model.name}: {sink.facts}", "a model with a norm sink", "name its neurons yourself"
        )
    return SinkPatch(sink.layer, [neuron for _, neuron in sink.neurons])


def _read_patch(text: str) -> SinkPatch:
    """The patch in a file, or on the neurons of a list."""
    import json

    from mechrep.interventions.ops import SinkPatch

    if text.endswith(".json"):
        try:
            values = json.loads(read_text(Path(text)))
        except ValueError as error:
            raise InputError(f"{text} ({error})", "what SinkPatch.to_dict() gives, as JSON", "correct it") from error
        if isinstance(values, dict):
            return SinkPatch.from_dict(values)
    units = parse_units(text)
    layers = {layer for layer, _ in units}
    if len(layers) != 1:
        raise InputError(f"--patch {text}, neurons of layers {sorted(layers)}", "neurons of one layer", "choose one")
    return SinkPatch(layers.pop(), [neuron for _, neuron in units])
