"""The tables of the section on repetition neurons."""

from __future__ import annotations

import pandas as pd

from mechrep.ablation.old_loss import LossResult, perplexity_summary
from mechrep.ablation.old_sweeps import SweepResult, percent
from mechrep.figures import style_of
from mechrep.measures.neurons import RepetitionNeuronResult
from mechrep.report.page import ReportTable, decimals

_TOP = 20


def neuron_table(result: RepetitionNeuronResult, k: int = _TOP) -> ReportTable:
    """The top ``k`` neurons with their rise, its standard error, t and d'."""
    frame = result.to_frame(min(k, result.n_neurons))
    rows = [
        [
            row.rank + 1,
            row.layer,
            row.neuron,
            row.delta,
            row.standard_error,
            decimals(row.t),
            decimals(row.dprime, 3),
            row.normal_mean,
            row.repetition_mean,
        ]
        for row in frame.itertuples(index=False)
    ]
    head = ["rank", "layer", "neuron", "Δ", "standard error", "t", "d'", "normal mean", "repetition mean"]
    return ReportTable(
        f"The {len(rows)} neurons that rise most",
        head,
        rows,
        "Δ is pooled over positions. Standard error and t take the text as the unit; d' is Δ over the spread of single "
        f"positions. Of {result.n_neurons:,} neurons some reach a large t by chance: t ranks, it does not test.",
    )


def sweep_table(sweep: SweepResult) -> ReportTable:
    """One row per k: share of repeating texts for the top neurons and every control."""
    summary, names = sweep.summary(), _selections(sweep.summary())
    cells = sweep.to_frame().set_index(["selection", "k"])
    cut = sweep.kind == "deactivation"
    rows: list[list[object]] = []
    for k in sorted(summary["k"].unique().tolist()):
        row: list[object] = [k]
        for name in names:
            row.append(_share(summary, "none" if k == 0 else name, k))
        if cut:
            at = ("none", 0) if k == 0 else ("top", k)
            known = at in cells.index
            first = cells.loc[[at]].iloc[0] if known else None
            row += [int(first["escaped"]), int(first["relooped"])] if first is not None else ["", ""]
        rows.append(row)
    head = ["k", *map(_heading, names), *(["left the old loop", "in another loop"] if cut else [])]
    what = "Texts that still repeat after the cut" if cut else "Texts that begin to repeat under the boost"
    note = "Brackets: 95 % over texts where there is one set, the range of the draws (central 95 %) for controls."
    note += " The last two columns count texts under the cut of the top neurons." if cut else ""
    return ReportTable(f"{what}, of {int(summary['texts'].max())}", head, rows, note)


def perplexity_table(result: LossResult) -> ReportTable:
    """One row per k: perplexity for the top neurons and every control."""
    summary = perplexity_summary(result)
    names = _selections(summary)
    rows = [
        [k, *(_perplexity(summary, "none" if k == 0 else name, k) for name in names)]
        for k in sorted(summary["k"].unique().tolist())
    ]
    what = "cut" if result.op == "zero" else "boosted"
    return ReportTable(
        f"Perplexity on held-out text when neurons are {what}",
        ["k", *map(_heading, names)],
        rows,
        "Brackets: 95 % bootstrap interval over windows of text for the top neurons, smallest and largest draw for "
        "controls.",
    )


def _selections(summary: pd.DataFrame) -> list[str]:
    return [name for name in summary["selection"].unique() if name != "none"]


def _row(summary: pd.DataFrame, name: str, k: int) -> pd.Series | None:
    found = summary[(summary["selection"] == name) & (summary["k"] == k)]
    return None if found.empty else found.iloc[0]


def _share(summary: pd.DataFrame, name: str, k: int) -> str:
    row = _row(summary, name, k)
    return "" if row is None else f"{percent(row['share'])} [{100 * row['low']:.0f}–{100 * row['high']:.0f}]"


def _perplexity(summary: pd.DataFrame, name: str, k: int) -> str:
    row = _row(summary, name, k)
    if row is None:
        return ""
    middle = f"{row['perplexity']:.2f}"
    return middle if k == 0 else f"{middle} [{row['low']:.2f}–{row['high']:.2f}]"


def _heading(selection: str) -> str:
    return style_of(selection).label.removesuffix(" neurons")
