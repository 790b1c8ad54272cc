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
    from mechrep.studies.natural_vs_induced_study import TextKindContrastStudy, TextKindStudy


class TextsOf(StrEnum):
    """Whose protocol makes the texts."""

    mechrep = "mechrep"
    mahaut2025 = "mahaut2025"
    mahaut2025_v1 = "mahaut2025_v1"


class Shown(StrEnum):
    """What is shown to be copied."""

    text = "text"
    cycle = "cycle"
    both = "both"


class HeadOp(StrEnum):
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
    preset: Annotated[TextsOf, typer.Option(help="Whose protocol makes the texts.")] = TextsOf.mechrep,
    builder: Annotated[
        Shown,
        typer.Option(help="What induced texts show: texts that do not loop, the cycles of those that do, or both."),
    ] = Shown.both,
    copies: Annotated[int, typer.Option(min=1, help="How often they are shown.")] = 2,
    new_tokens: Annotated[int | None, typer.Option(min=16, help="Greedy tokens after each prompt.")] = None,
    op: Annotated[HeadOp, typer.Option(help="What is put in the place of a head that is ablated.")] = HeadOp.mean,
    k: Annotated[int, typer.Option(min=1, help="Heads compared, and ablated together.")] = 3,
    regenerate: Annotated[
        int, typer.Option(min=0, help="Regenerate so many texts of each kind under every ablation (expensive).")
    ] = 0,
    seed: Seed = 0,
    device: Device = None,
    dtype: DtypeOption = None,
    revision: Revision = None,
) -> None:
    """Build natural loops and induced copies from one list of prompts, and measure both with one estimator.

    Direct attribution, single-head ablation and patching of all heads, their contrast with intervals, corrected tests
    and the placebo of swapped labels, and the answer: do the two kinds of text use different heads?
    Stopped runs go on where they were when the same command is given again.
    """
    written = None if text is None else read_text(text)
    make_folder(out)
    loaded = load_named(model, revision, device, dtype)
    from mechrep.models import tiny
    from mechrep.run import Run
    from mechrep.studies.natural_vs_induced_study import BUILDERS, run_text_kind_study
    from mechrep.text.corpus import windows_of_text

    begin = 1 if loaded.default_prepend_bos and loaded.bos_id is not None else 0
    study = run_text_kind_study(
        loaded,
        prompts=windows_of_text(loaded, written or tiny.held_out_text(), length=length + begin, limit=prompts),
        preset=preset.value,
        builders={shown: copies for shown in BUILDERS if builder.value in (shown, "both")},
        max_new_tokens=new_tokens,
        k=k,
        op=op.value,
        run=Run(store=out / "store", seed=seed),
    )
    section = study.section()
    section.save(out / "section")
    for shown, found in study.contrasts.items():
        save_frame(study.texts[shown], out / f"texts-{shown}.parquet")
        for label, result in {"seen": found.seen, "ablated": found.ablated, "patched": found.patched}.items():
            if result is not None:
                result.save(out / f"{label}-{shown}")
        if regenerate:
            _check_by_regenerating(loaded, study, found, regenerate, seed)
    for key, frame in section.tables.items():
        save_frame(frame, out / f"{key.replace('_', '-')}.parquet")
        _show(key.replace("_", ", "), frame.head(12))
    for key, figure in section.figures.items():
        figure.write_html(out / f"{key.replace('_', '-')}.html", include_plotlyjs=True)
    typer.echo(f"\ntokens generated: {study.new_tokens} for all texts, none for the heads that were ablated alone")
    if not study.contrasts:
        raise typer.Exit(1)
    _show("claims", section.claims[["claim", "induced_texts", "effect", "low", "high", "m", "n", "q", "verdict"]])
    typer.echo(out)


def _check_by_regenerating(
    model: Model, study: TextKindStudy, found: TextKindContrastStudy, texts: int, seed: int
) -> None:
    from mechrep.measures.text_kind_design import agreement
    from mechrep.run import Run
    from mechrep.studies.text_kind_effects import NEW_TOKENS, head_effects, regenerated_contrast

    both = [study.natural, found.induced]
    again = regenerated_contrast(model, both, op=study.op, reference=study.control, sample=texts, run=Run(seed=seed))
    _show("the same from regenerated texts", agreement(head_effects(found.ablated), head_effects(again), k=study.k))
    names = [measure.name for measure in again.measures if measure.name.startswith(NEW_TOKENS)]
    typer.echo(f"tokens generated for them: {sum(int(again.of(name).sum()) for name in names)}")


def _show(title: str, frame: pd.DataFrame) -> None:
    from mechrep.report.page import text_table

    typer.echo(f"\n{title}")
    typer.echo(text_table(frame))
