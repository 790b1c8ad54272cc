"""``mechrep contrast``."""

from __future__ import annotations

import functools
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

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

    from mechrep.analyzers.conditions.effects import HeadEffects
    from mechrep.models.model import Model
    from mechrep.text.corpus import Corpus

_LEVEL = 0.05
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

    Direct attribution and single-head ablation of all heads, their contrast with intervals and corrected tests, and
    the answer: do the two conditions use different heads?
    """
    written = None if text is None else read_text(text)
    make_folder(out)
    loaded = load_named(model, revision, device, dtype)
    from mechrep.errors import NothingFoundError
    from mechrep.generation.conditions import condition_flow, control_condition, induced_condition, natural_condition
    from mechrep.models import tiny
    from mechrep.text.windows import windows_of_text

    begin = 1 if loaded.default_prepend_bos and loaded.bos_id is not None else 0
    listed = windows_of_text(loaded, written or tiny.held_out_text(), length=length + begin, limit=prompts)
    common: dict[str, Any] = {"preset": preset.value, "max_new_tokens": new_tokens}
    natural = natural_condition(loaded, listed, **common)
    control = _or_say(functools.partial(control_condition, loaded, listed, **common), NothingFoundError)
    answers = []
    wanted: list[Literal["text", "cycle"]] = ["text", "cycle"]
    for shown in wanted:
        if builder.value not in (shown, "both"):
            continue
        flow = condition_flow(loaded, listed, copies=copies, builder=shown, **common)
        make = functools.partial(induced_condition, loaded, listed, copies, shown, **common)
        induced = _or_say(make, NothingFoundError)
        if induced is None:
            if builder is not Shown.both:
                raise typer.Exit(1)
            continue
        typer.echo(f"\n== {flow.builder} against natural, {len(listed)} prompts ==")
        _table(flow.counts(), out / f"flow-{shown}.parquet")
        save_frame(flow.frame, out / f"texts-{shown}.parquet")
        conditions = [natural, induced, *([control] if control is not None else [])]
        answers.append(
            _one_contrast(
                loaded, conditions, control, out, shown, k=k, op=op.value, regenerate=regenerate, seed=seed,
                generated=flow.new_tokens,
            )
        )  # fmt: skip
    typer.echo("")
    for answer in answers:
        typer.echo(answer)
    typer.echo(out)


def _or_say(make: Any, kind: type[Exception]) -> Any:
    """What was made, or ``None`` after saying why there is nothing."""
    try:
        return make()
    except kind as error:
        typer.echo(f"left out: {error}")
        return None


def _one_contrast(
    model: Model,
    conditions: list[Corpus],
    control: Corpus | None,
    out: Path,
    name: str,
    *,
    k: int,
    op: str,
    regenerate: int,
    seed: int,
    generated: int,
) -> str:
    """Measure, print and write one builder's contrast; returns the answer in words."""
    from mechrep.analyzers.conditions import contrast_conditions
    from mechrep.analyzers.heads.scores import score_heads
    from mechrep.studies.contrast import ablation_contrast, head_dissociation
    from mechrep.views.contrast_plots import confidence_figure, head_contrast_figure, lens_figure

    seen = contrast_conditions(model, conditions)
    seen.save(out / f"seen-{name}")
    frame = seen.to_frame()
    save_frame(frame, out / f"confidence-{name}.parquet")
    _show("confidence by cycles shown", frame[frame["measure"].isin(_CONFIDENCE)])
    cut = ablation_contrast(model, conditions, ops=[op], reference=control, seed=seed)
    cut.save(out / f"cut-{name}")
    scores, k = score_heads(model, seed=seed), min(k, model.anatomy.n_layers * model.anatomy.n_heads // 2)
    tables = {}
    for measure, effects in (("attribution", seen.head_effects()), ("ablation", cut.head_effects())):
        tables[measure] = effects.contrast()
        save_frame(tables[measure], out / f"heads-{measure}-{name}.parquet")
        _show(f"{effects.measure}: heads that differ most (D > 0: larger when induced)", tables[measure].head(6))
        head_contrast_figure(effects).write_html(out / f"heads-{measure}-{name}.html", include_plotlyjs=True)
        _table(effects.specialisation(), out / f"specialisation-{measure}-{name}.parquet")
        _table(effects.overlap(scores, k), out / f"overlap-{measure}-{name}.parquet")
    sets = head_dissociation(model, conditions[:2], k=k, op=op, reference=control, seed=seed)
    save_frame(sets, out / f"sets-{name}.parquet")
    means = sets.groupby(["heads_of", "selection", "condition"], sort=False)[["effect", "low", "high", "n"]].mean()
    _show(f"{k} heads cut together, in texts on which they were not found", means.reset_index())
    confidence_figure(seen).write_html(out / f"confidence-{name}.html", include_plotlyjs=True)
    lens_figure(seen).write_html(out / f"lens-{name}.html", include_plotlyjs=True)
    heads = model.anatomy.n_layers * model.anatomy.n_heads
    typer.echo(f"\ntokens generated: {generated} for all conditions, {cut.new_tokens} for {heads} heads cut alone")
    if regenerate:
        _check_by_writing(model, conditions[:2], control, cut, op, regenerate, seed, k)
    return _answer(set(conditions[1].frame["builder"]).pop(), tables["ablation"], cut.head_effects(), k)


def _check_by_writing(
    model: Model, conditions: list[Corpus], control: Corpus | None, cut: Any, op: str, texts: int, seed: int, k: int
) -> None:
    from mechrep.studies.contrast import agreement, regenerated_contrast

    dear = regenerated_contrast(model, conditions, op=op, reference=control, texts=texts, seed=seed)
    _show("the same from texts that were written again", agreement(cut, dear, k=k))
    typer.echo(f"tokens generated to write {len(dear.ids)} texts again under every cut: {dear.new_tokens}")


def _answer(builder: str, table: pd.DataFrame, effects: HeadEffects, k: int) -> str:
    """Do the two conditions use different heads?  With intervals, numbers of texts and what was corrected for."""
    shared, first = effects.shared_top(k), table.iloc[0]
    differ = int((table["fdr"] < _LEVEL).sum())
    same = int(shared["shared"])
    which = {0: f"yes, none of the first {k} is the same", k: f"no, the same {k} lead in both"}
    return (
        f"Do {builder} and natural loops use different heads?\n"
        f"  which: {which.get(same, f'in part, {same} of the first {k} are the same')} "
        f"(95 % {shared['low']:.0f} to {shared['high']:.0f}; chance {shared['chance']:.1f}); "
        f"rank correlation {shared['rank_correlation']:.2f} "
        f"[{shared['rank_correlation_low']:.2f}, {shared['rank_correlation_high']:.2f}]\n"
        f"  how much: {differ} of {len(table)} heads matter to a different degree (FDR {_LEVEL:g}); most of all "
        f"{first['layer']:.0f}.{first['head']:.0f}, D = {first['D']:.3f} [{first['D_low']:.3f}, {first['D_high']:.3f}] "
        f"nats\n"
        f"  n = {first['n_induced']:.0f} induced, {first['n_natural']:.0f} natural texts"
    )


def _show(title: str, frame: pd.DataFrame) -> None:
    from mechrep.views.terminal import text_table

    typer.echo(f"\n{title}")
    typer.echo(text_table(frame))


def _table(frame: pd.DataFrame, path: Path) -> None:
    save_frame(frame, path)
    _show(path.stem.replace("-", ", "), frame)
