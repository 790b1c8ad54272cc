"""The tables of the section on the sink patch: every measure, every benchmark, and the published form."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from mechrep.ablation.old_benchmarks import BenchmarkResult, benchmark_table
from mechrep.report.old_patch_words import CONTROLS, ends, held, ranges, value
from mechrep.report.page import ReportTable
from mechrep.studies.sink_patch import Change, PatchStudyResult, RepairStudy, benchmark_changes


def patch_tables(study: RepairStudy, changes: dict[str, Change]) -> Iterable[ReportTable]:
    """The tables of a study; none without a patch."""
    if study.patch is not None:
        yield _changes_table(study.patch, changes.values())
    if study.benchmarks is not None:
        yield _questions_table(study.benchmarks)
        poster = benchmark_table(study.benchmarks)
        yield ReportTable(
            "The same in the form of the published table",
            list(poster.columns),
            poster.values.tolist(),
            "Per cent right, original → patched, and the 95 % interval of the paired difference in percentage points; "
            "* where it leaves out 0.",
        )


def _changes_table(patch: PatchStudyResult, changes: Iterable[Change]) -> ReportTable:
    rows, names = [], []
    for one in changes:
        names = list(one.controls)
        path = f"{value(one, one.original)} → {value(one, one.patched)}"
        rows.append([one.measure, path, ends(one), one.n or "–", one.verdict or "no interval", *ranges(one)])
    return ReportTable(
        f"The patch: {held(patch)}",
        ["measure", "untouched → patched", "change [95 %]", "n", "verdict", *(CONTROLS.get(n, n) for n in names)],
        rows,
        "n: tokens or texts. Changes: percentage points for shares, nats per token for the loss; controls: least and "
        "largest change over their draws.",
    )


def _questions_table(result: BenchmarkResult) -> ReportTable:
    frame = result.to_frame()
    own = frame[frame["selection"] == "intervention"].reset_index(drop=True)
    rows, names = [], []
    for one, (_, row) in zip(benchmark_changes(result), own.iterrows(), strict=True):
        names = list(one.controls)
        path = f"{value(one, one.original)} → {value(one, one.patched)}"
        changed = ["–", "–", "–"] if pd.isna(row["gained"]) else [row["gained"], row["lost"], float(row["p_value"])]
        rows.append([one.measure, path, ends(one), one.n, *changed, row["truncated"], one.verdict, *ranges(one)])
    head = ["benchmark", "untouched → patched", "difference [95 %]", "questions", "gained", "lost", "p (McNemar)"]
    return ReportTable(
        "The same questions with and without the patch",
        [*head, "cut off", "verdict", *(CONTROLS.get(n, n) for n in names)],
        rows,
        "Differences are paired: percentage points, for margins (log-probability of the right choice minus the largest "
        "of the others) nats. Gained and lost: right only with, and only without the patch. Cut off: longer than the "
        "context. Controls: least and largest difference over their draws.",
    )
