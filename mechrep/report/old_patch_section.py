"""The section on the sink patch: what it repairs, what it costs, and whether other neurons would have done the same."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from mechrep.ablation.old_benchmarks import MARGIN, UNTOUCHED, BenchmarkResult, benchmark_figure
from mechrep.ablation.old_sweeps import NO_BREAK, percent
from mechrep.figures import counted
from mechrep.report.old_patch_tables import patch_tables
from mechrep.report.old_patch_words import CONTROLS, held, in_words, measured, told
from mechrep.report.page import Badge, ReportFigure, Section, decimals
from mechrep.studies.sink_patch import DRIFT, LOSS, Change, RepairStudy, benchmark_changes, patch_changes, patch_figure

_SOURCE = (
    "The patch, and asking for norms, repetition and benchmarks: Yona et al. 2025 (arXiv 2503.08908). Measures, "
    "controls and intervals are mechrep’s own. Paired verdicts: McNemar 1947 (Psychometrika 12, 153-157)."
)
_REPAIR = ("norm at the last repeat", "repeats continued")
_QUESTIONS = {
    "continuation": "Continuation: which of four passages of equal length comes next in held-out text.",
    "recall": "Recall: a passage shown twice, the second time cut before a word; which word of it comes.",
}
_ATTENTION = "attention to the first position, best head"


def patch_section(study: RepairStudy) -> Section:
    """What holding the sink neurons changes, beside the same patch on other neurons."""
    changes = patch_changes(study.patch) if study.patch is not None else {}
    return Section(
        title="What the patch repairs, and what it costs",
        anchor="patch",
        finding=_finding(study, changes),
        answer=list(_answer(study, changes)),
        badges=list(_badges(study, changes)),
        figures=list(_figures(study)),
        tables=list(patch_tables(study, changes)),
        notes=list(_notes(study)) if study.patch is not None else [],
        limits=[
            "The patch has no detector of repeats: it holds these neurons in every text, so sinks at delimiters in "
            "mid-text go, too.",
            "“Repeats continued” reads the most probable next token after true copies; it says nothing about what "
            "follows the first other token.",
            "A share of tokens counts those that were repeated here; others may drift after more copies.",
            "Intervals are not corrected for the number of measures. A benchmark that is answered at chance can lose "
            "nothing, and no difference is no proof of none.",
        ],
        source=_SOURCE,
    )


def _finding(study: RepairStudy, changes: dict[str, Change]) -> str:
    if study.patch is None:
        return f"{study.model_name} was not patched: {study.reason}."
    drift, loss = changes[DRIFT], changes[LOSS]
    tokens = counted(len(study.patch.token_ids), "repeated token")
    holding = f"Holding {held(study.patch)}"
    if math.isnan(drift.original):
        asked = f"whether repeats drift to the norm of the first position cannot be asked ({study.patch.moved_reason})"
        return f"In {study.model_name}, {asked}; {holding[0].lower()}{holding[1:]} {_cost(loss)}."
    if drift.original == 0:
        return (
            f"There is nothing to repair in {study.model_name}: none of {tokens} drifts to the norm of the first "
            f"position within {study.patch.repeats:,} copies; {holding[0].lower()}{holding[1:]} {_cost(loss)}."
        )
    return (
        f"{holding} changes the share of {tokens} that drift to the norm of the first position from "
        f"{percent(drift.original)} to {percent(drift.patched)} ({in_words(drift)}), and {_cost(loss)}."
    )


def _cost(loss: Change) -> str:
    before, after = (decimals(float(np.exp(value))) for value in (loss.original, loss.patched))
    path = f"leaves the perplexity of ordinary text at {before}" if before == after else None
    path = path or f"changes the perplexity of ordinary text from {before} to {after}"
    return f"{path} ({measured(loss)})"


def _answer(study: RepairStudy, changes: dict[str, Change]) -> Iterable[str]:
    if study.patch is None:
        yield "Without a sink there are no neurons to hold, so nothing was measured and no benchmark was asked."
        return
    drift = changes[DRIFT]
    repaired = [drift] if drift.original > 0 or drift.patched > 0 else []
    yield " ".join(f"{told(one)}." for one in [*repaired, *(changes[name] for name in _REPAIR)])
    yield (
        f"{told(changes[_ATTENTION])}. {told(changes['norm of the first position'])}. {told(changes['typical norm'])}."
    )
    if study.benchmarks is None:
        yield f"Benchmarks were not asked: {study.benchmarks_reason}."
        return
    yield " ".join(_asked(study.benchmarks))


def _asked(result: BenchmarkResult) -> Iterable[str]:
    """One sentence per benchmark, and whether there is anything to lose."""
    frame = result.to_frame()
    for facts, one in zip(result.tasks, _verdicts(result), strict=True):
        rows = frame[(frame["task"] == facts["task"]) & (frame["metric"] != MARGIN)]
        untouched = rows[rows["condition"] == UNTOUCHED].iloc[0]
        cut = rows[rows["selection"] == "intervention"].iloc[0]
        counts = "" if pd.isna(cut["gained"]) else f", gained {cut['gained']}, lost {cut['lost']}, McNemar’s p = "
        test = f"{counts}{decimals(float(cut['p_value']))}" if counts else ""
        text = f"{facts['title']}: {percent(one.original)} right → {percent(one.patched)} ({measured(one)}{test})."
        if untouched["low"] <= facts["chance"]:
            ends = f"95{NO_BREAK}% {percent(untouched['low'])} to {percent(untouched['high'])}"
            text += f" Untouched it is not clearly above chance ({ends}; chance {percent(facts['chance'])}), so there "
            text += "is little to lose."
        yield text


def _verdicts(result: BenchmarkResult) -> list[Change]:
    """The first metric of each benchmark."""
    found = {one.measure: one for one in benchmark_changes(result)}
    names = [next(m["metric"] for m in result.measures if m["task"] == facts["task"]) for facts in result.tasks]
    return [found[f"{facts['title']}, {name}"] for facts, name in zip(result.tasks, names, strict=True)]


def _badges(study: RepairStudy, changes: dict[str, Change]) -> Iterable[Badge]:
    if study.patch is None:
        yield Badge("none", "sink to patch: not found")
        return
    drift = changes[DRIFT]
    if math.isnan(drift.original):
        yield Badge("open", "drift: cannot be asked")
    elif drift.original == 0:
        yield Badge("none", "nothing to repair: no repeat drifts")
    else:
        yield _badge(drift, "drift")
    yield _badge(changes[LOSS], "perplexity")
    if study.benchmarks is None:
        yield Badge("open", "benchmarks: not asked")
        return
    for facts, one in zip(study.benchmarks.tasks, _verdicts(study.benchmarks), strict=True):
        yield _badge(one, facts["title"])


def _badge(one: Change, what: str) -> Badge:
    return Badge.of(one.verdict, what) if one.verdict is not None else Badge("open", f"{what}: no interval")


def _figures(study: RepairStudy) -> Iterable[ReportFigure]:
    if study.patch is not None:
        yield ReportFigure(
            "patch-changes",
            patch_figure(study.patch),
            "Filled points are the patch, with a 95 % interval over tokens or texts where there is one; open ones are "
            "single draws of controls: as many other neurons, held in the same way. The dotted line is the untouched "
            "model. The patch means something where its bar clears all open points.",
            "each panel has its own scale, so a panel of tiny changes looks as strong as one of large ones; points "
            "without a bar cannot be judged.",
        )
    if study.benchmarks is not None:
        figure = benchmark_figure(study.benchmarks)
        yield ReportFigure(
            "patch-benchmarks",
            figure.update_layout(title_text="What the patch costs on benchmarks"),
            "The filled point is the patch, with the 95 % interval of the difference over the same questions; open "
            "ones are controls, the mean of their draws with the least and the largest.",
            "at chance there is nothing to lose, and a wide interval around 0 says only that few questions were asked.",
        )


def _notes(study: RepairStudy) -> Sequence[tuple[str, str]]:
    patch = study.patch
    assert patch is not None
    begin = "after BOS" if patch.bos else "of the text, as the model has no BOS"
    draws = ", ".join(
        f"{CONTROLS.get(name, name)} {counted(len(patch.of(name)), 'draw')}"
        for name in dict.fromkeys(patch.selections)
        if name not in patch.selections[:2]
    )
    notes = [
        (
            "Patch",
            f"the value of the up-projection (of the activation, where there is no gate) is held at that of the first "
            f"token {begin}, at every later position. The neurons are those of the sink that was found.",
        ),
        (
            "Drift",
            f"of {counted(len(patch.token_ids), 'token')}, each repeated {patch.repeats:,} times: the log norm after "
            "the sink layer has moved at least half-way from that of ordinary positions to that of the first one, both "
            "in the untouched model.",
        ),
        (
            "Repeats continued",
            "share of the second half of the copies after which the same token is the most probable next one.",
        ),
        ("Attention", f"of L{patch.head[0]} H{patch.head[1]}, which rests most on the first position when untouched."),
        ("Perplexity", f"on {counted(patch.losses.shape[1], 'window')} of ordinary text, all positions."),
        ("Controls", f"the same patch on as many other neurons: {draws or 'none were run'}."),
        ("Beyond controls", "the interval lies beyond every draw of every control, and beyond no change."),
    ]
    if study.benchmarks is not None:
        known = [_QUESTIONS[facts["task"]] for facts in study.benchmarks.tasks if facts["task"] in _QUESTIONS]
        notes.append(("Benchmarks", " ".join(["asked through lm-evaluation-harness, zero-shot.", *known])))
    return notes
