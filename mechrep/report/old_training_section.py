"""The section on training: which mechanism appears first, and whether the same heads carry loops and copying."""

from __future__ import annotations

from mechrep.ablation.old_sweeps import percent
from mechrep.figures import counted
from mechrep.report.old_head_words import name_of
from mechrep.report.old_training_words import (
    HEADS,
    LOOPS,
    MEASURES,
    agreement_row,
    agreement_words,
    earliest_words,
    first_words,
    heads_badge,
    loops_words,
    order_badge,
    other_pairs_words,
    pair_words,
    specialisation_words,
    start_words,
    step_words,
)
from mechrep.report.page import Badge, ReportFigure, ReportTable, Section, decimals, interval
from mechrep.studies.checkpoints import flow_figure, mechanisms_figure
from mechrep.studies.training import TrainingStudy
from mechrep.studies.training_heads import (
    CANNOT_TELL,
    INDUCED,
    NATURAL,
    agreement_figure,
    head_maps_figure,
    specialisation_figure,
)

_SOURCE = (
    "Induction over training: Olsson et al. 2022 (arXiv 2209.11895). Natural loops against copying in context, and the "
    "claim that heads for copying specialise during training while natural loops come early: Mahaut and Franzon 2025 "
    "(arXiv 2504.01100). One break by least squares: Bai 1994 (J. Time Series Analysis 15)."
)


def training_section(study: TrainingStudy) -> Section:
    """When each mechanism appears, whether loops precede induction, and whether the same heads carry both."""
    paragraphs = [earliest_words(study), start_words(study), pair_words(study), *_about_heads(study)]
    badges = [_step_badge(study, LOOPS), _step_badge(study, HEADS)]
    badges += [order_badge(study), heads_badge(study)]
    return Section(
        title="Which mechanism comes first in training, and do the same heads carry both",
        anchor="training",
        finding=f"In {study.model_name}, {first_words(study)}; {loops_words(study)}; {agreement_words(study)}.",
        answer=[paragraph for paragraph in paragraphs if paragraph],
        badges=[badge for badge in badges if badge is not None],
        figures=_figures(study),
        tables=_tables(study),
        notes=_notes(study),
        limits=[
            "Rate is not mechanism: a model that has learned nothing may loop, because what it says next depends on "
            "little but the last token. An early curve of loops does not say that the later loops have its cause.",
            "A step lies between two checkpoints; the grid resolves no more, and a gradual rise is placed near its "
            "middle. A measure that rises and falls has one step here, the sharper one.",
            "Intervals are over texts, of one training run: another run of the same recipe may have another order.",
            "The tests of steps are not corrected for the number of measures. With fewer than five checkpoints no "
            "order of them is rare enough.",
            "The best head can be another head at every checkpoint. Direct attribution sees what a head writes for "
            "the next token, not what later parts make of it. With few heads the controls have few different draws.",
        ],
        source=_SOURCE,
    )


def _about_heads(study: TrainingStudy) -> list[str]:
    if study.heads is None:
        return ["What single heads do was not measured, so nothing is said about whether the same heads carry both."]
    return [_agreement_paragraph(study), other_pairs_words(study), specialisation_words(study)]


def _agreement_paragraph(study: TrainingStudy) -> str:
    row = agreement_row(study)
    if row is None:
        assert study.heads is not None
        counts = study.heads.counts
        most = counts[counts["condition"] == NATURAL]["n"].max()
        return (
            f"Heads: at no checkpoint did enough texts loop to compare the heads (at most {most} of "
            f"{study.provenance.config['prompts']})."
        )
    controls = f"heads that changed places reach {decimals(row['random_high'])}, within their layers "
    controls += f"{decimals(row['layer_high'])}, in 2.5 % of the draws; the same order of heads would give "
    controls += decimals(row["best"])
    halves = f"{decimals(row['reliability_first'])} and {decimals(row['reliability_second'])}"
    leads = [name_of([int(part) for part in row[end].split(".")]) for end in ("lead_first", "lead_second")]
    assert study.heads is not None
    heads = study.heads.history.natural[0, 0].numel()
    text = (
        f"Heads: at {row['revision']}, what heads do in natural loops and in induced copying overlaps by "
        f"{interval(row['value'], row['low'], row['high'])} of 1 (95 %, bootstrap; {int(row['n_first'])} and "
        f"{counted(int(row['n_second']), 'text')}; {controls}). Two halves of the texts of one condition overlap by "
        f"{halves}. {leads[0]} does most in natural loops and {leads[1]} in induced copying; they are one head in "
        f"{percent(row['same_lead'])} of the draws, by chance in 1 of {heads}. Of the first "
        f"{counted(int(row['k']), 'head')} the conditions share {int(row['shared'])} "
        f"[{decimals(row['shared_low'], 0)} to {decimals(row['shared_high'], 0)}], by chance "
        f"{decimals(row['chance'], 1)}; the rank correlation of all heads, most of which may do next to nothing, is "
        f"{interval(row['rank'], row['rank_low'], row['rank_high'])}."
    )
    if row["verdict"] == CANNOT_TELL:
        text += (
            " The controls reach nearly what the same heads would: few heads do nearly all of it, among few, or the "
            "heads of a layer are alike. That one head leads in both is seen; that it is more than chance is not shown."
            if leads[0] == leads[1]
            else " The controls reach nearly what the same heads would, so nothing can be told from chance here."
        )
    return text


def _step_badge(study: TrainingStudy, measure: str) -> Badge | None:
    verdict = study.verdict_of(measure)
    if verdict is None:
        return None
    kind, words = step_words(study, measure)
    return Badge(kind, f"{MEASURES[measure].short}: {words}")


def _figures(study: TrainingStudy) -> list[ReportFigure]:
    result = study.checkpoints
    figures = [
        ReportFigure(
            "training-mechanisms",
            mechanisms_figure(result),
            "One panel per measure, 95 % intervals over texts. A dotted line marks a clear step, the grey band where "
            "it may lie.",
            "two checkpoints far apart can hide a long, slow change between them.",
        )
    ]
    if {LOOPS, "copies_in_icl"} <= set(result.measures) and len(result.revisions) > 1:
        figures.append(
            ReportFigure(
                "training-flow",
                flow_figure(result),
                "The same prompts from left to right: those that loop by themselves, those that do not but are copied "
                "when shown twice, and the others.",
                "whether a text that loops by itself would be copied is not asked here; a text has one place.",
            )
        )
    if study.heads is None:
        return figures
    return [
        *figures,
        ReportFigure(
            "training-head-maps",
            head_maps_figure(study.heads.history),
            "Rows: natural loops, induced copying, and the induction score on random repeats; columns: checkpoints. "
            "Blue heads help the expected token against its best rival, red heads hinder it.",
            "effects grow with the model’s confidence; compare the pattern, not the strength, from left to right. An "
            "empty map had too few texts.",
        ),
        ReportFigure(
            "training-specialisation",
            specialisation_figure(study.heads.specialisation, study.model_name),
            "0: all heads do as much; near 1: one head does all. The dotted lines are what texts give whose heads "
            "changed places one text at a time.",
            "with few texts, noise alone looks like specialisation; the dotted line has the same texts.",
        ),
        ReportFigure(
            "training-agreement",
            agreement_figure(study.heads.agreement, study.model_name),
            "1: every head does as large a part in both conditions. Where the interval lies above the grey line it "
            "is beyond the controls; the dotted line is what two halves of one condition reach.",
            "heads of late layers do more in every condition, so the control within layers matters most.",
        ),
    ]


def _tables(study: TrainingStudy) -> list[ReportTable]:
    return [_steps_table(study), _order_table(study), *([_heads_table(study)] if study.heads is not None else [])]


def _steps_table(study: TrainingStudy) -> ReportTable:
    starts, rows = study.starts.set_index("measure"), []
    for point in study.points.to_dict("records"):
        start, low, high = (float(x) for x in starts.loc[point["measure"], ["first", "low", "high"]])
        rows.append(
            [
                MEASURES[point["measure"]].words,
                interval(start, low, high),
                f"{point['before']} to {point['after']}",
                f"{point['earliest']} to {point['latest']}",
                interval(point["size"], point["low"], point["high"], sign=True),
                decimals(point["explained"]),
                decimals(point["p"], 3),
                point["verdict"],
            ]
        )
    head = ["measure", "at the first", "step between", "95 % within", "size of the step", "explained", "p", "verdict"]
    return ReportTable(
        "When each measure changes",
        head,
        rows,
        "Explained: share of the variance over checkpoints that one step takes away. p: share of shuffled orders of "
        "the checkpoints in which one step explains as much.",
    )


def _order_table(study: TrainingStudy) -> ReportTable:
    rows = [
        [
            MEASURES[pair["first"]].words,
            MEASURES[pair["second"]].words,
            *(decimals(pair[name]) for name in ("earlier", "same", "later")),
            pair["verdict"],
        ]
        for pair in study.order.to_dict("records")
        if HEADS in (pair["first"], pair["second"])
    ]
    return ReportTable(
        "Which comes before induction, which after",
        ["one", "other", "earlier", "same", "later", "verdict"],
        rows,
        "Share of bootstrap draws in which the first step is earlier, between the same checkpoints, or later. Only "
        "measures that appear are compared" + ("." if rows else "; here there is no such pair with induction."),
    )


def _heads_table(study: TrainingStudy) -> ReportTable:
    assert study.heads is not None
    agreement, gini = study.heads.agreement, study.heads.specialisation.set_index(["revision", "condition"])
    rows = []
    for row in agreement[(agreement["first"] == NATURAL) & (agreement["second"] == INDUCED)].to_dict("records"):
        concentration = [gini.loc[(row["revision"], condition)] for condition in (NATURAL, INDUCED)]
        rows.append(
            [
                row["revision"],
                int(row["n_first"]),
                int(row["n_second"]),
                *(interval(one["value"], one["low"], one["high"]) for one in concentration),
                interval(row["value"], row["low"], row["high"]),
                decimals(max(row["random_high"], row["layer_high"])),
                f"{decimals(row['shared'], 0)} of {row['k']}",
                row["verdict"],
            ]
        )
    head = ["checkpoint", "loops", "shown", "Gini, loops", "Gini, copying", "overlap", "controls"]
    return ReportTable(
        "Do the same heads carry natural loops and induced copying",
        [*head, "first heads shared", "verdict"],
        rows,
        "Loops and shown: numbers of texts. Controls: the higher 97.5 % of heads that changed places among all heads "
        "and within layers. A dash: too few texts.",
    )


def _notes(study: TrainingStudy) -> list[tuple[str, str]]:
    config = study.provenance.config
    return [
        (
            "Texts",
            f"{counted(int(config['prompts']), 'prompt')} of held-out text, the same at every one of "
            f"{counted(len(study.checkpoints.revisions), 'checkpoint')}; random repeats; windows of held-out text.",
        ),
        (
            "Natural loops",
            "the greedy continuation of a prompt ends in a cycle; of a phrase, if it has two tokens or more.",
        ),
        (
            "Induced copying",
            "a prompt is shown twice. Whether it is copied is counted for those that do not loop by themselves (the "
            "published condition); what heads do is read for all of them, teacher-forced, so that the texts stay "
            "the same.",
        ),
        (
            "What a head does",
            "direct logit attribution: what it adds to the logit of the expected token over that of its best rival, "
            "mean over the copies behind the first.",
        ),
        (
            "Step",
            "one step between two levels, by least squares. Clear: its size has a 95 % interval without 0 and it "
            "explains at least half of the variance over checkpoints; it appears if, besides, fewer than 5 % of the "
            "shuffled orders of the checkpoints have a step that explains as much. One checkpoint apart from all "
            "others lies at an end in 2 of K orders: a step next to an end is named so, and is as sure as that "
            "checkpoint.",
        ),
        (
            "Same heads",
            "overlap: the sum over heads of the smaller of its two shares of what all heads do. The same heads, if its "
            "interval lies beyond heads that changed places, among all and within layers.",
        ),
    ]
