"""``mechrep contrast``."""

from __future__ import annotations

from enum import StrEnum
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
    read_text,
    save_frame,
)

if TYPE_CHECKING:
    import pandas as pd

    from mechrep.models.model import Model
    from mechrep.studies.natural_vs_induced_study import BuilderContrast, ConditionStudy

_CONFIDENCE = ["probability", "entropy", "rank"]


class ConditionsOf(StrEnum):
    """Whose protocol makes the conditions."""

    mechrep = "mechrep"
    mahaut2025 = "mahaut2025"
    mahaut2025_v1 = "mahaut2025_v1"


class Shown(StrEnum):
    """What is shown to be copied."""

    text = "text"
    cycle = "cycle"
    both = "both"


class HeadCut(StrEnum):
    """What is put in the place of a head."""

    mean = "mean"
    zero = "zero"
    resample = "resample"


@app.command(short_help="Natural loops against copying: do they use the same heads?")
def contrast(
    model: ModelName,
    out: Annotated[Path, typer.Option(help="Folder for results, tables and figures.")] = Path("contrast"),
    text: Annotated[
        Path | None, existing_file("Text to take prompts from (UTF-8); the embedded English one by default.")
    ] = None,
    prompts: Annotated[int, typer.Option(min=4, help="Prompts, spread evenly over the text.")] = 200,
    length: Annotated[int, typer.Option(min=4, help="Tokens of each prompt, without BOS.")] = 32,
    preset: Annotated[ConditionsOf, typer.Option(help="Whose protocol makes the conditions.")] = ConditionsOf.mechrep,
    builder: Annotated[
        Shown, typer.Option(help="Induced condition: texts that do not loop, the cycles of those that do, or both.")
    ] = Shown.both,
    copies: Annotated[int, typer.Option(min=1, help="How often they are shown.")] = 2,
    new_tokens: Annotated[int | None, typer.Option(min=16, help="Greedy tokens after each prompt.")] = None,
    op: Annotated[HeadCut, typer.Option(help="What is put in the place of a head that is cut.")] = HeadCut.mean,
    k: Annotated[int, typer.Option(min=1, help="Heads compared, and cut together.")] = 3,
    regenerate: Annotated[int, typer.Option(min=0, help="Write so many texts again under every cut (dear).")] = 0,
    seed: Seed = 0,
    device: Device = None,
    dtype: DtypeOption = None,
    revision: Revision = None,
) -> None:
    """Build natural loops and induced copies from one list of prompts, and measure both with one estimator.

    Direct attribution, single-head ablation and patching of all heads, their contrast with intervals, corrected tests
    and the placebo of swapped labels, and the answer: do the two conditions use different heads?
    Stopped runs go on where they were when the same command is given again.
    """
    written = None if text is None else read_text(text)
    make_folder(out)
    loaded = load_named(model, revision, device, dtype)
    from mechrep.studies.natural_vs_induced_study import BUILDERS, run_condition_study

    study = run_condition_study(
        loaded,
        prompts=prompts,
        length=length,
        preset=preset.value,
        builders=[shown for shown in BUILDERS if builder.value in (shown, "both")],
        copies=copies,
        max_new_tokens=new_tokens,
        k=k,
        op=op.value,
        held_out_text=written,
        store=out / "store",
        seed=seed,
    )
    for reason in study.left_out.values():
        typer.echo(f"left out: {reason}")
    for shown, found in study.contrasts.items():
        typer.echo(f"\n== {found.builder} against natural, {study.prompts} prompts ==")
        _table(study.flow[shown], out / f"flow-{shown}.parquet")
        save_frame(study.texts[shown], out / f"texts-{shown}.parquet")
        _report(study, found, out, shown)
        if regenerate:
            _check_by_writing(loaded, study, found, regenerate, seed)
    typer.echo(f"\ntokens generated: {study.new_tokens} for all conditions, none for the heads that were cut alone")
    if not study.contrasts:
        raise typer.Exit(1)
    typer.echo("")
    for found in study.contrasts.values():
        typer.echo(_answer(found, study.k))
    typer.echo(out)


def _report(study: ConditionStudy, found: BuilderContrast, out: Path, name: str) -> None:
    """Print and write one builder's contrast."""
    from mechrep.measures.natural_vs_induced import confidence_figure, lens_figure
    from mechrep.measures.text_kind_design import head_contrast_figure

    for part, why in found.left_out.items():
        typer.echo(f"left out, {part}: {why}")
    results = {"seen": found.seen, "cut": found.cut, "patched": found.patched}
    for label, result in results.items():
        if result is not None:
            result.save(out / f"{label}-{name}")
    frame = found.seen.to_frame()
    save_frame(frame, out / f"confidence-{name}.parquet")
    _show("confidence by cycles shown", frame[frame["measure"].isin(_CONFIDENCE)])
    effects = {"attribution": found.seen.head_effects(), "ablation": found.cut.head_effects()}
    if found.patched is not None:
        effects["patching"] = found.patched.head_effects()
    for measure, one in effects.items():
        table = found.heads[measure]
        save_frame(table, out / f"heads-{measure}-{name}.parquet")
        _show(f"{one.measure}: heads that differ most (D > 0: larger when induced)", table.head(6))
        head_contrast_figure(one).write_html(out / f"heads-{measure}-{name}.html", include_plotlyjs=True)
        _table(found.specialisation[measure], out / f"specialisation-{measure}-{name}.parquet")
        _table(found.overlap[measure], out / f"overlap-{measure}-{name}.parquet")
        _table(found.comparison[measure], out / f"comparison-{measure}-{name}.parquet")
    if found.sets is not None:
        save_frame(found.sets, out / f"sets-{name}.parquet")
        groups = found.sets.groupby(["heads_of", "selection", "condition"], sort=False)
        means = groups[["effect", "low", "high", "n"]].mean()
        _show(f"{study.k} heads cut together, in texts on which they were not found", means.reset_index())
    confidence_figure(found.seen).write_html(out / f"confidence-{name}.html", include_plotlyjs=True)
    lens_figure(found.seen).write_html(out / f"lens-{name}.html", include_plotlyjs=True)


def _check_by_writing(model: Model, study: ConditionStudy, found: BuilderContrast, texts: int, seed: int) -> None:
    from mechrep.studies.text_kind_effects import agreement, regenerated_contrast

    dear = regenerated_contrast(
        model, [study.natural, found.induced], op=study.op, reference=study.control, texts=texts, seed=seed
    )
    _show("the same from texts that were written again", agreement(found.cut, dear, k=study.k))
    typer.echo(f"tokens generated to write {len(dear.ids)} texts again under every cut: {dear.new_tokens}")


def _answer(found: BuilderContrast, k: int) -> str:
    """Do the two conditions use different heads?  With intervals, numbers of texts and what was corrected for."""
    shared, ranks = found.compared("shared_top"), found.compared("rank_correlation")
    common = found.compared("common")
    differing, first = found.compared("differing_heads"), found.heads["ablation"].iloc[0]
    same = int(shared["value"])
    which = {0: f"yes, none of the first {k} is the same", k: f"no, the same {k} lead in both"}
    return (
        f"Do {found.builder} and natural loops use different heads?\n"
        f"  which: {which.get(same, f'in part, {same} of the first {k} are the same')} "
        f"(95 % {shared['low']:.0f} to {shared['high']:.0f}; with swapped labels {shared['null']:.1f}); "
        f"rank correlation {ranks['value']:.2f} [{ranks['low']:.2f}, {ranks['high']:.2f}] "
        f"(swapped {ranks['null']:.2f})\n"
        f"  in common: the same heads carry {common['value']:.2f} [{common['low']:.2f}, {common['high']:.2f}] of the "
        f"effect in both (swapped {common['null']:.2f}, p = {common['p']:.3f})\n"
        f"  how much: {differing['value']:.0f} of {len(found.heads['ablation'])} heads matter to a different degree "
        f"(FDR 0.05; swapped {differing['null_low']:.0f} to {differing['null_high']:.0f}); most of all "
        f"{first['layer']:.0f}.{first['head']:.0f}, D = {first['D']:.3f} [{first['D_low']:.3f}, {first['D_high']:.3f}] "
        f"nats\n"
        f"  n = {first['n_induced']:.0f} induced, {first['n_natural']:.0f} natural texts"
    )


def _show(title: str, frame: pd.DataFrame) -> None:
    from mechrep.report.page import text_table

    typer.echo(f"\n{title}")
    typer.echo(text_table(frame))


def _table(frame: pd.DataFrame, path: Path) -> None:
    save_frame(frame, path)
    _show(path.stem.replace("-", ", "), frame)
