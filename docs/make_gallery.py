"""Makes docs/real-models: tables and figures of the page on real models, from reports that lie in folders.

    python docs/make_gallery.py                      # the reports that `make report-real` writes
    python docs/make_gallery.py NAME=FOLDER ...      # others

Each table lays the verdicts of all models side by side; each figure is one of a report's.  The words of the page are
written by hand, in docs/real-models.md, which includes these files.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mechrep.models import tiny

OUT = Path(__file__).parent / "real-models"
_REPORTS = Path(__file__).parents[1] / "report-real"
_USUAL = {"SmolLM2-135M-Instruct": "smollm2-135m", "Gemma 3 270M": "gemma3-270m", "mechrep-tiny": "mechrep-tiny"}
_WIDTH, _HEIGHT = 760, 420  # where a figure does not say how high it is

# Table -> rows: section and claim of a report, and what was asked.
TABLES: Mapping[str, Sequence[tuple[str, str, str]]] = {
    "neurons": (
        ("neurons", "still_repeating", "Top 0.5 % of the neurons at zero from the onset on: texts that still loop"),
        ("neurons", "escaped", "The same: texts that leave their loop at some point"),
        ("neurons", "newly_repeating", "The same neurons plus 1: loop-free texts that begin to loop"),
        ("neurons", "loss_zero", "The same neurons at zero: loss on ordinary text"),
        ("neurons", "loss_add", "The same neurons plus 1: loss on ordinary text"),
    ),
    "heads": (
        ("heads", "induction", "Best induction head, random repeats: attention to the token after the earlier copy"),
        ("heads", "induction_in_loops", "The same in loops that the model wrote"),
        ("heads", "previous_token", "Best previous-token head"),
        ("heads", "duplicate_token", "Best duplicate-token head, random repeats"),
        ("heads", "duplicate_token_in_loops", "The same in loops that the model wrote"),
        ("ablation", "loop", "Induction heads at zero: log-probability of a loop's next repetition"),
        ("ablation", "looping", "The same: loops that go on when they are written anew"),
        ("ablation", "newly", "The same: loop-free texts that begin to loop"),
        ("ablation", "copying", "The same: random repeats that are predicted"),
        ("ablation", "loss", "The same: loss on ordinary text"),
    ),
    "sinks": (
        ("sinks", "norm_sink", "Norm at the first position over that elsewhere"),
        ("sinks", "sink_heads", "Best head: attention to the first position"),
        ("sinks", "without_attention", "Sink neurons at zero: that head's attention to the first position"),
        ("sinks", "without_loss", "The same: loss on ordinary text"),
        ("sinks", "without_repeat_norm", "The same: norm of a repeated token"),
        ("sinks", "without_p_next", "The same: probability that a repeated token comes once more"),
        ("sinks", "behaviour", "The same: repeated tokens that are abandoned"),
        ("sinks", "cluster", "Different tokens with similar values in layer 0, against random ones"),
        ("first-layer", "mass", "First layer: best head's attention to other tokens"),
        ("first-layer", "detector", "First layer: best neuron, area under the curve, first token against others"),
        ("first-layer", "attention", "The same without the heads of the first layer"),
        ("first-layer", "head", "The same without its best head"),
        ("patch", "drifted", "Sink neurons held: repeated tokens that drift to the first position's norm"),
        ("patch", "continued", "The same: copies that the model continues"),
        ("patch", "loss", "The same: loss on ordinary text"),
        ("patch", "benchmark", "The same: margin of the right answer in a benchmark"),
    ),
    "text-kinds": (
        ("text-kinds", "natural_heads", "Heads that matter most in natural loops at zero: log-probability there"),
        ("text-kinds", "induced_heads", "Heads that matter most in texts shown again at zero: log-probability there"),
        ("text-kinds", "other_heads", "Do the two rest on other heads? Share of the effect in common"),
        ("text-kinds", "degree", "Heads whose effect differs between the two"),
        ("text-kinds", "fewer_heads", "Is copying in fewer heads? Gini coefficient"),
        ("information", "attention", "Loops: attention to low-surprisal tokens, beyond distance"),
        ("information", "attention_held_out", "The same, against ordinary text"),
        ("information", "attention_loop_free", "The same, against the model's own loop-free text"),
        ("information", "mask", "Low-surprisal tokens hidden: log-probability of the last repetition"),
        ("information", "swap", "Low-surprisal tokens exchanged: the same"),
    ),
}

# Figure of a report -> name of the file.
FIGURES = {
    ("neurons", "profile"): "onset", ("neurons", "layers"): "layers",
    ("sinks", "norms"): "norms", ("sinks", "repeats"): "repeats", ("heads", "repeats"): "heads",
}  # fmt: skip


def read(folder: Path) -> dict[str, Any]:
    """What a report's folder holds as data."""
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


def first_claims(report: Mapping[str, Any]) -> dict[tuple[str, str], Mapping[str, Any]]:
    """The first claim of each kind in the order of its section; of several, the page says which was tested."""
    found: dict[tuple[str, str], Mapping[str, Any]] = {}
    for section in report["sections"]:
        for claim in section["claims"]:
            found.setdefault((section["name"], str(claim["claim"]).removesuffix("_weak")), claim)
    return found


def number(value: float | None) -> str:
    """Three digits that count."""
    if value is None:
        return "–"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value + 0.0:.{digits}f}".replace("-", "−")


def cell(claim: Mapping[str, Any] | None) -> str:
    """Verdict, effect with its interval, controls with their number, q."""
    if claim is None:
        return "not asked"
    lines = [f"**{claim['verdict']}**" if claim["verdict"] == "supported" else str(claim["verdict"])]
    before, after = claim.get("baseline"), claim.get("value")
    if before is not None and after is not None:
        lines.append(f"{number(before)} → {number(after)}")
    ends = "" if claim.get("low") is None else f" [{number(claim['low'])}, {number(claim['high'])}]"
    lines.append(f"effect {number(claim['effect'])}{ends}")
    if claim.get("control_low") is not None:
        lines.append(f"controls {number(claim['control_low'])} to {number(claim['control_high'])} ({claim['m']})")
    lines.append(f"q {number(claim.get('q'))}" + (f", n {claim['n']}" if claim.get("n") else ""))
    return "<br>".join(lines)


def table(rows: Sequence[tuple[str, str, str]], reports: Mapping[str, Mapping[str, Any]]) -> str:
    """One table in Markdown."""
    claims = {name: first_claims(report) for name, report in reports.items()}
    lines = ["| question | " + " | ".join(claims) + " |", "|---" * (len(claims) + 1) + "|"]
    for section, claim, question in rows:
        cells = [cell(found.get((section, claim))) for found in claims.values()]
        if any(one != "not asked" for one in cells):
            lines.append(f"| {question} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def costs(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """What each part of each report cost."""
    parts = list(dict.fromkeys(part for report in reports.values() for part in report["costs"]))
    lines = ["| part | " + " | ".join(reports) + " |", "|---" * (len(reports) + 1) + "|"]
    for part in parts:
        cells = []
        for report in reports.values():
            cost = report["costs"].get(part)
            words = "{:,.0f} s, {:,.0f} read, {:,.0f} written"
            cells.append("–" if cost is None else words.format(cost["seconds"], cost["read"], cost["written"]))
        lines.append(f"| {part} | " + " | ".join(cells) + " |")
    totals = [sum(cost["seconds"] for cost in report["costs"].values()) / 60 for report in reports.values()]
    lines.append("| together | " + " | ".join(f"{minutes:.1f} min" for minutes in totals) + " |")
    return "\n".join(lines) + "\n"


def draw(name: str, folder: Path) -> None:
    """The figures of one report, as SVG."""
    import plotly.io

    for (section, figure), target in FIGURES.items():
        for path in sorted((folder / "sections" / section / "figures").glob(f"{figure}*.json"))[:1]:
            shown = plotly.io.from_json(path.read_text(encoding="utf-8"))
            shown.write_image(OUT / f"{name}-{target}.svg", width=_WIDTH, height=shown.layout.height or _HEIGHT)


def main(arguments: Sequence[str]) -> None:
    """Make everything."""
    given = {name: Path(folder) for name, _, folder in (one.partition("=") for one in arguments)}
    usual = {name: _REPORTS / folder for name, folder in _USUAL.items()}
    folders = given or {name: folder for name, folder in usual.items() if (folder / "report.json").is_file()}
    if not folders:
        raise SystemExit(f"no report in {_REPORTS}: run make report-real")
    reports = {name: read(folder) for name, folder in folders.items()}
    OUT.mkdir(exist_ok=True)
    for name, rows in TABLES.items():
        (OUT / f"{name}.md").write_text(table(rows, reports), encoding="utf-8")
    (OUT / "costs.md").write_text(costs(reports), encoding="utf-8")
    for folder in folders.values():
        if folder.name not in tiny.NAMES:  # the page shows pretrained models; the embedded one has pages of its own
            draw(folder.name, folder)


if __name__ == "__main__":
    main(sys.argv[1:])
