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
    """Positions at which a circuit is ablated."""

    from_onset = "from_onset"
    all = "all"


@app.command(short_help="Ablate saved circuits, beside controls.")
def ablate(
    model: ModelName,
    circuit: Annotated[
        list[Path], existing_file("A circuit, as `mechrep heads` writes it; may be given several times.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the result, its table and its figure.")] = Path("ablation"),
    op: Annotated[Operation, typer.Option(help="zero, or for heads alone: attention moved to BOS.")] = Operation.zero,
    when: Annotated[Where, typer.Option(help="From the onset of loops on, or everywhere.")] = Where.from_onset,
    loops: Annotated[int, typer.Option(min=2, help="Looping texts to collect.")] = 64,
    seeds: Annotated[int, typer.Option(min=1, help="Draws of each control.")] = 99,
    regenerate: Annotated[bool, typer.Option(help="Regenerate the looping texts, too (expensive).")] = False,
    seed: Seed = 0,
    device: Device = None,
    dtype: DtypeOption = None,
    revision: Revision = None,
) -> None:
    """What loops, copying and language lose when circuits are ablated, each alone and all together.

    Controls: random and layer-matched components, and for heads others with the same attention to BOS.
    """
    from mechrep.ablation.circuit import Circuit

    circuits = [Circuit.load(path) for path in circuit]
    make_folder(out)
    loaded = load_named(model, revision, device, dtype)
    from mechrep.ablation.study import READ_OUTCOMES, Controls, StudyTexts, ablation_study
    from mechrep.generation.loops import collect_loops
    from mechrep.measures.head_scores import score_heads
    from mechrep.report.page import text_table
    from mechrep.run import Run

    for each in circuits:
        each.check_model(loaded)
    together = circuits[0]
    for each in circuits[1:]:
        together = together + each
    heads_only = all(each.kinds == ("heads",) for each in circuits)
    kinds = ("random", "layer_matched", *(("bos_matched",) if heads_only else ()))
    match = {"bos_matched": score_heads(loaded, seed=seed).first_token} if heads_only else {}
    effects = ablation_study(
        loaded,
        circuits if len(circuits) == 1 else [*circuits, together],
        texts=StudyTexts(loops=collect_loops(loaded, loops, n_others=0, seed=seed)),
        ops=(op.value,),
        controls=Controls(kinds, seeds, circuits, match, strict=False),
        outcomes=(*READ_OUTCOMES, *(("still_looping",) if regenerate else ())),
        when=when.value,
        run=Run(store=out / "store", seed=seed),
    )
    effects.save(out / "result")
    summary = effects.summary()
    save_frame(summary, out / "summary.parquet")
    effects.plot().write_html(out / "ablation.html", include_plotlyjs=True)
    columns = ["name", "part", "k", "measure", "copy", "baseline", "effect", "low", "high", "controls", "q", "verdict"]
    typer.echo(text_table(summary[columns]))
    typer.echo(out)
