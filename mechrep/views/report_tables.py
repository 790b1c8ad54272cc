"""The report's tables as HTML.  Every cell is escaped, numbers stand right."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from numbers import Integral

import pandas as pd

from mechrep.analyzers.neuron_result import RepetitionNeuronResult
from mechrep.studies.loss import LossResult
from mechrep.studies.sweep_result import SweepResult
from mechrep.views.finding import percent
from mechrep.views.sweep_plots import perplexity_summary
from mechrep.views.theme import style_of

_TOP = 20


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[object]], note: str = "") -> str:
    """An HTML table that scrolls in its own box.

    Args:
        caption: above the table, plain text.
        head: names of the columns, plain text.
        rows: cells; numbers are right-aligned, everything is escaped.
        note: below the table, plain text.

    Example:
        >>> "<td>&lt;b&gt;</td>" in table("one", ["name"], [["<b>"]])
        True
    """
    numeric = [all(_shown(row[i])[:1] in "0123456789−–∞" for row in rows) for i in range(len(head))]
    kinds = [' class="number"' if is_number else "" for is_number in numeric]
    heads = "".join(f'<th scope="col"{kind}>{html.escape(name)}</th>' for name, kind in zip(head, kinds, strict=True))
    lines = [
        "".join(f"<td{kind}>{html.escape(_shown(cell))}</td>" for cell, kind in zip(row, kinds, strict=True))
        for row in rows
    ]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    below = f'<p class="note">{html.escape(note)}</p>' if note else ""
    return (
        f'<h3>{html.escape(caption)}</h3><div class="table" tabindex="0"><table aria-label="{html.escape(caption)}">'
        f"<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>{below}"
    )


def neuron_table(result: RepetitionNeuronResult, k: int = _TOP) -> str:
    """The top ``k`` neurons with their rise, its standard error, t and d'."""
    frame = result.to_frame(min(k, result.n_neurons))
    rows = [
        [
            row.rank + 1,
            row.layer,
            row.neuron,
            row.delta,
            row.standard_error,
            _decimals(row.t),
            _decimals(row.dprime, 3),
            row.normal_mean,
            row.repetition_mean,
        ]
        for row in frame.itertuples(index=False)
    ]
    head = ["rank", "layer", "neuron", "Δ", "standard error", "t", "d'", "normal mean", "repetition mean"]
    return table(
        f"The {len(rows)} neurons that rise most",
        head,
        rows,
        "Δ is pooled over positions. Standard error and t take the text as the unit; d' is Δ over the spread of single "
        f"positions. Of {result.n_neurons:,} neurons some reach a large t by chance: t ranks, it does not test.",
    )


def sweep_table(sweep: SweepResult) -> str:
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
    return table(f"{what}, of {int(summary['texts'].max())}", head, rows, note)


def perplexity_table(result: LossResult) -> str:
    """One row per k: perplexity for the top neurons and every control."""
    summary = perplexity_summary(result)
    names = _selections(summary)
    rows = [
        [k, *(_perplexity(summary, "none" if k == 0 else name, k) for name in names)]
        for k in sorted(summary["k"].unique().tolist())
    ]
    what = "cut" if result.op == "zero" else "boosted"
    return table(
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


def _shown(cell: object) -> str:
    """Whole numbers with separators, others with four decimals, so that they line up; text as it is."""
    if isinstance(cell, float):
        return _decimals(cell, 4)
    return f"{cell:,}" if isinstance(cell, Integral) else str(cell)


def _decimals(number: float, places: int = 2) -> str:
    """A number with a real minus sign; a dash where it is not known."""
    if math.isnan(number):
        return "–"
    text = "∞" if math.isinf(number) else f"{abs(number):.{places}f}"
    return f"−{text}" if number < 0 else text
