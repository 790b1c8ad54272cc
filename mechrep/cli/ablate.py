"""``mechrep ablate``."""

from __future__ import annotations

from enum import StrEnum
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
    save_frame,
)


class Operation(StrEnum):
    """What is done to the components of a circuit."""

    zero = "zero"
    to_bos = "to_bos"


class Where(StrEnum):
    """Positions at which a circuit is cut."""

    from_onset = "from_onset"
    all = "all"


@app.command(short_help="Cut saved circuits out of a model, beside controls.")
def ablate(
    model: ModelName,
    circuit: Annotated[
        list[Path], existing_file("A circuit, as `mechrep heads` writes it; may be given several times.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the result, its table and its figure.")] = Path("ablation"),
    op: Annotated[Operation, typer.Option(help="zero, or for heads alone: attention moved to BOS.")] = Operation.zero,
    when: Annotated[Where, typer.Option(help="Loops are cut from their onset on, or everywhere.")] = Where.from_onset,
    loops: Annotated[int, typer.Option(min=2, help="Looping texts to collect.")] = 64,
    seeds: Annotated[int, typer.Option(min=1, help="Draws of each control.")] = 5,
    regenerate: Annotated[bool, typer.Option(help="Write the looping texts again, too (dear).")] = False,
    seed: Seed = 0,
    device: Device = None,
    dtype: DtypeOption = None,
    revision: Revision = None,
) -> None:
    """What loops, copying and language lose when circuits are cut, each alone and all together.

    Controls: random and layer-matched components, and for heads others with the same attention to BOS.
    """
    from mechrep.ablation.circuit import Circuit

    circuits = [Circuit.load(path) for path in circuit]
    make_folder(out)
    loaded = load_named(model, revision, device, dtype)
    from mechrep.ablation.old_study import CHEAP_OUTCOMES, ablation_figure, ablation_study
    from mechrep.generation.loops import collect_loops
    from mechrep.measures.head_scores import score_heads
    from mechrep.report.page import text_table

    for each in circuits:
        each.check(loaded.anatomy)
    together = circuits[0]
    for each in circuits[1:]:
        together = together + each
    heads_only = all(each.kinds == ("heads",) for each in circuits)
    result = ablation_study(
        loaded,
        circuits if len(circuits) == 1 else [*circuits, together],
        corpus=collect_loops(loaded, loops, n_others=0, seed=seed),
        ops=(op.value,),
        controls=("random", "layer_matched", *(("bos_matched",) if heads_only else ())),
        seeds=seeds,
        outcomes=(*CHEAP_OUTCOMES, *(("still_looping",) if regenerate else ())),
        when=when.value,
        head_scores=score_heads(loaded, seed=seed) if heads_only else None,
        store=out / "store",
    )
    result.save(out / "result")
    summary = result.summary()
    save_frame(summary, out / "summary.parquet")
    ablation_figure(result).write_html(out / "ablation.html", include_plotlyjs=True)
    columns = ["circuit", "part", "selection", "k", "outcome", "copy", "value", "effect", "effect_low", "effect_high"]
    typer.echo(text_table(summary[columns]))
    typer.echo(out)
