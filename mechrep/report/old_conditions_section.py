"""The section on conditions: do natural loops and copying that was asked for rest on other heads?"""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from mechrep.ablation.old_sweeps import NO_BREAK
from mechrep.figures import counted
from mechrep.measures.natural_vs_induced import confidence_figure, lens_figure
from mechrep.measures.text_kind_design import head_contrast_figure
from mechrep.report.old_condition_claims import (
    CONDITIONS,
    claims_table,
    enough,
    set_sentence,
    sets_table,
    specialised_sentence,
)
from mechrep.report.old_head_words import listed, name_of
from mechrep.report.page import Badge, ReportFigure, ReportTable, Section, decimals, interval
from mechrep.studies.natural_vs_induced_study import BuilderContrast, ConditionStudy

SHOWN = {"text": "texts shown again", "cycle": "cycles shown again"}
_MEASURES = {"ablation": "cut alone", "attribution": "direct attribution", "patching": "patched from other text"}
_KINDS = {
    "induction": "induction",
    "self_finding": "self-finding",
    "previous_token": "previous token",
    "first_token": "sink",
}
_LEVEL, _ROWS = 0.05, 12
_LIMITS = [
    "A loop is also a repeated text: from the second copy on, heads that copy can work in natural loops as well.",
    "The conditions are different texts. Cycles shown again come from the same prompts as the loops, but without what "
    "stood before them; texts shown again come from prompts that do not loop.",
    "Heads cut alone can stand in for each other; the sets below are cut together, but only the sets that were found.",
    "With few heads rankings are coarse, and a random set of control heads can hold heads that matter.",
    "That a test finds nothing does not show that the conditions are alike.",
]
_SOURCE = (
    "The question and the conditions: Mahaut and Franzon 2025 (arXiv 2504.01100). The estimators are mechrep’s own: "
    "heads before the output projection, the same positions in both conditions, log-probabilities without a ceiling."
)


def conditions_section(study: ConditionStudy) -> Section:
    """Natural loops against copying that was asked for in context."""
    return Section(
        title="Do natural loops and copying in context use different heads?",
        anchor="conditions",
        finding=_finding(study),
        answer=list(_answer(study)),
        badges=[_badge(shown, found) for shown, found in study.contrasts.items()] or [Badge("none", "no contrast")],
        figures=[figure for shown, found in study.contrasts.items() for figure in _figures(shown, found)],
        tables=list(_tables(study)),
        notes=_notes(study),
        limits=_LIMITS,
        source=_SOURCE,
    )


def _finding(study: ConditionStudy) -> str:
    if not study.contrasts:
        return f"Whether {study.model_name} copies and loops with different heads cannot be asked: {_reasons(study)}."
    parts = [_judged(study, shown, found) for shown, found in study.contrasts.items()]
    return f"In {study.model_name}, {'; '.join(parts)}."


def _judged(study: ConditionStudy, shown: str, found: BuilderContrast) -> str:
    what = f"natural loops and copying of {SHOWN[shown]}"
    if not enough(found):
        n = min(found.cut.conditions.count(name) for name in CONDITIONS)
        return f"whether {what} rest on different heads is open ({counted(n, 'text')} in one of the conditions)"
    common, shared = found.compared("common"), found.compared("shared_top")
    says = f"{shared['value']:.0f} of the first {study.k} shared; part of the effect that the same heads carry in both "
    says += f"{_ends(common)}, labels swapped {decimals(common['null'])}"
    differing = found.compared("differing_heads")
    words = {
        "other heads": f"{what} rest on different heads ({says})",
        "same heads": f"{what} rest on largely the same heads ({says}), of which "
        f"{counted(int(differing['value']), 'head')} {_matter(differing)} to a different degree",
        "not found": f"no difference between the heads of {what} was found ({says})",
    }
    return words[found.answer]


def _matter(row: pd.Series) -> str:
    return "matters" if row["value"] == 1 else "matter"


def _ends(row: pd.Series) -> str:
    return f"{decimals(row['value'])}, 95{NO_BREAK}% {decimals(row['low'])} to {decimals(row['high'])}"


def _badge(shown: str, found: BuilderContrast) -> Badge:
    if not enough(found):
        return Badge("open", f"{SHOWN[shown]}: too few texts")
    kinds = {"other heads": "good", "same heads": "open", "not found": "none"}
    words = {
        "other heads": "different heads",
        "same heads": "same heads, different degree",
        "not found": "no difference found",
    }
    return Badge(kinds[found.answer], f"{SHOWN[shown]}: {words[found.answer]}")  # pyright: ignore[reportArgumentType]


def _answer(study: ConditionStudy) -> Iterable[str]:
    yield _flow_sentence(study)
    for shown, found in study.contrasts.items():
        if not enough(found):
            n = " and ".join(str(found.cut.conditions.count(name)) for name in CONDITIONS)
            yield f"{SHOWN[shown].capitalize()}: {n} texts are too few for intervals and tests; the tables have them."
            continue
        yield f"{SHOWN[shown].capitalize()}: {_heads_sentence(found)} {_placebo_sentence(found)}"
        yield f"{SHOWN[shown].capitalize()}: {specialised_sentence(found)} {set_sentence(study, found)}"
        yield f"{SHOWN[shown].capitalize()}: {_confidence_sentence(found)}"
    for name, why in study.left_out.items():
        yield f"Left out, {SHOWN.get(name, name)}: {why}."
    for shown, found in study.contrasts.items():
        for part, why in found.left_out.items():
            yield f"Left out, {SHOWN[shown]}, {part}: {why}."


def _reasons(study: ConditionStudy) -> str:
    return "; ".join(study.left_out.values()) or "no induced condition was asked for"


def _flow_sentence(study: ConditionStudy) -> str:
    parts = []
    for shown, table in study.flow.items():
        copied = table.set_index("flag").loc["copies_in_icl"]
        parts.append(f"of {counted(int(copied['of']), shown)} shown again {copied['n']} are copied")
    loops = next(iter(study.flow.values())).set_index("flag").loc["loops_naturally"] if study.flow else None
    first = f"Of {counted(study.prompts, 'prompt')}, {len(study.natural) if loops is None else loops['n']} loop"
    return f"{first} by themselves; {'; '.join(parts)}."


def _heads_sentence(found: BuilderContrast) -> str:
    table = found.heads["ablation"]
    clear = table[table["fdr"] < _LEVEL]
    n = f"{table['n_induced'].iloc[0]} and {table['n_natural'].iloc[0]} texts"
    if clear.empty:
        return f"cut alone, no head matters to a different degree (false discovery rate {_LEVEL:g}; {n})."
    row = clear.iloc[0]
    told = (
        f"most of all {name_of((int(row['layer']), int(row['head'])))}, whose cut changes the log-probability of the "
    )
    told += (
        f"next copy by {interval(row['induced'], row['induced_low'], row['induced_high'], sign=True)} nats per token "
    )
    told += (
        f"when induced and by {interval(row['natural'], row['natural_low'], row['natural_high'], sign=True)} in loops"
    )
    heads = listed([(int(one.layer), int(one.head)) for one in clear.itertuples()], 6)  # pyright: ignore
    return f"cut alone, {heads} {_matter(pd.Series({'value': len(clear)}))} to a different degree, {told} ({n})."


def _placebo_sentence(found: BuilderContrast) -> str:
    common, ranks = found.compared("common"), found.compared("rank_correlation")
    differing = found.compared("differing_heads")
    lows, highs = (int(differing[name]) for name in ("null_low", "null_high"))
    heads = f"{highs}" if lows == highs else f"{lows} to {highs}"
    return (
        f"With the labels of the conditions swapped, {heads} heads differ ({counted(int(differing['swaps']), 'test')}) "
        f"and the same heads carry {decimals(common['null'])} of the effect (95{NO_BREAK}% "
        f"{decimals(common['null_low'])} to {decimals(common['null_high'])}; p = {decimals(common['p'], 3)} for as "
        f"little as observed). Rank correlation of all heads: {_ends(ranks)}, labels swapped {decimals(ranks['null'])} "
        f"(p = {decimals(ranks['p'], 3)})."
    )


def _confidence_sentence(found: BuilderContrast) -> str:
    table = found.seen.to_frame()
    parts = []
    for name in found.seen.groups:
        own = table[(table["condition"] == name) & (table["measure"] == "probability")]
        first, last = own.iloc[0], own.iloc[-1]
        value = interval(first["value"], first["low"], first["high"])
        if first["copy"] == last["copy"]:
            parts.append(f"{name}, without a repeat: {value} ({counted(int(first['n']), 'text')})")
            continue
        after = interval(last["value"], last["low"], last["high"])
        cycles = f"after {counted(int(last['copy']), 'cycle')} {after}"
        parts.append(f"{name}: {value} in the first copy, {cycles} ({counted(int(last['n']), 'text')})")
    return f"probability of the expected token, {'; '.join(parts)}."


def _figures(shown: str, found: BuilderContrast) -> Iterable[ReportFigure]:
    yield ReportFigure(
        f"conditions-heads-{shown}",
        head_contrast_figure(found.cut.head_effects()),
        f"What cutting each head alone does to the next copies ({SHOWN[shown]}): left when induced, in the middle in "
        "natural loops, right half of the difference. Hover for intervals and corrected p-values.",
        "one scale for all panels: small differences between large effects look pale, whatever their p-value.",
    )
    yield ReportFigure(
        f"conditions-confidence-{shown}",
        confidence_figure(found.seen),
        "How sure the model is of the token that goes on with the cycle, by the number of cycles that it has seen; "
        "bands are 95 % intervals over texts. Do the lines of loops and of copies meet?",
        "copy 0 of a loop has its own prompt before it, copy 0 of an induced text has nothing.",
    )
    yield ReportFigure(
        f"conditions-lens-{shown}",
        lens_figure(found.seen),
        "The expected token’s log-probability read off the residual stream before each layer, after one cycle.",
        "the lens reads early layers through the last layer’s eyes; what it cannot read may still be there.",
    )


def _tables(study: ConditionStudy) -> Iterable[ReportTable]:
    yield claims_table(study)
    rows = [
        [SHOWN[shown], flag.replace("_", " "), n, of]
        for shown, table in study.flow.items()
        for flag, n, of in table[["flag", "n", "of"]].itertuples(index=False)
    ]
    yield ReportTable(
        "What becomes of the prompts", ["induced condition", "flag", "texts", "of"], rows,
        "Eligible is not copied: a text that does not loop by itself may be shown again; it is copied if at least "
        "one whole copy follows.",
    )  # fmt: skip
    for shown, found in study.contrasts.items():
        yield _heads_table(shown, found)
        yield _comparison_table(study, shown, found)
        if found.sets is not None:
            yield sets_table(study, SHOWN[shown], found.sets)
        yield _kinds_table(study, shown, found)


def _heads_table(shown: str, found: BuilderContrast) -> ReportTable:
    table, patched = found.heads["ablation"].head(_ROWS), found.heads.get("patching")
    others = None if patched is None else patched.set_index(["layer", "head"])
    seen = found.heads["attribution"].set_index(["layer", "head"])
    rows = []
    for row in table.to_dict("records"):
        unit = (int(row["layer"]), int(row["head"]))
        cells = [interval(row[n], row[f"{n}_low"], row[f"{n}_high"], 3, sign=True) for n in (*CONDITIONS, "D")]
        extra = [decimals(float(seen.loc[unit, "D"]), 3, sign=True)]  # pyright: ignore[reportArgumentType]
        extra.append("–" if others is None else decimals(float(others.loc[unit, "D"]), 3, sign=True))  # pyright: ignore
        rows.append([name_of(unit), *cells, decimals(row["fdr"], 3), *extra])
    head = ["head", "induced [95 %]", "natural [95 %]", "D [95 %]", "p (FDR)", "D, attribution", "D, patching"]
    return ReportTable(
        f"Heads that differ most, {SHOWN[shown]}: {len(rows)} of {counted(len(found.heads['ablation']), 'head')}",
        head,
        rows,
        "Change of the log-probability of the expected tokens with the head cut (nats per token; below 0: it helps to "
        "repeat), and D, half of what induced differs by from natural; p of 10,000 swaps, corrected for all heads.",
    )


def _comparison_table(study: ConditionStudy, shown: str, found: BuilderContrast) -> ReportTable:
    words = {
        "common": "part of the effect that the same heads carry",
        "rank_correlation": "rank correlation of all heads",
        "shared_top": f"shared among the first {study.k}",
        "gini": "Gini coefficient, induced − natural",
        "effective_heads": "effective heads, induced − natural",
        "differing_heads": "heads that differ (FDR 0.05)",
    }
    rows = []
    for measure, table in found.comparison.items():
        for row in table.to_dict("records"):
            null = f"{decimals(row['null'])} ({decimals(row['null_low'])} to {decimals(row['null_high'])})"
            ends = interval(row["value"], row["low"], row["high"])
            value = decimals(row["value"], 0) if row["measure"] == "differing_heads" else ends
            rows.append([_MEASURES[measure], words[row["measure"]], value, null, decimals(row["p"], 3), row["swaps"]])
    return ReportTable(
        f"The two conditions and the placebo, {SHOWN[shown]}",
        ["effect", "measure", "observed [95 %]", "labels swapped (95 %)", "p", "swaps"],
        rows,
        "p: share of swaps as far out as observed (as low, for the first three; on both sides for Gini and "
        " effective heads). Of differing heads the placebo is ten whole tests, with their range.",
    )


def _kinds_table(study: ConditionStudy, shown: str, found: BuilderContrast) -> ReportTable:
    rows = [
        [row["condition"], _KINDS[row["score"]], row["shared"], row["chance"], decimals(row["rank_correlation"])]
        for row in found.overlap["ablation"].to_dict("records")
        if row["condition"] in CONDITIONS
    ]
    return ReportTable(
        f"What kind of heads lead, {SHOWN[shown]}",
        ["condition", "score on random repeats", f"shared of the first {study.k}", "by chance", "rank correlation"],
        rows,
        "Heads by the size of their effect when cut alone, beside their scores of attention on random repeats.",
    )


def _notes(study: ConditionStudy) -> list[tuple[str, str]]:
    op = {"mean": "its mean over texts that do not repeat", "zero": "0"}.get(study.op, study.op)
    return [
        (
            "Natural",
            f"{counted(len(study.natural), 'prompt')} whose greedy continuation loops ({study.preset} preset).",
        ),
        (
            "Induced",
            "cycles of these loops, or texts that do not loop, shown again and again; the builders are not pooled.",
        ),
        ("Cut", f"the head’s output z becomes {op}, at every position; tokens are given, nothing is generated."),
        (
            "Effect",
            "mean change of log p over the tokens of a copy (seams left out), then over copies, then over texts.",
        ),
        ("Intervals and tests", "draw prompts anew and swap the conditions’ labels; the prompt is the unit."),
        (
            "Same heads",
            "the sum over heads of the smaller of its two shares of the summed effects: 1 if all heads have the same "
            "shares in both conditions. Below one half, the heads are called different; that is a convention.",
        ),
        ("Sets", "heads are found on half of the prompts and cut together on the other, beside as many control heads."),
        ("Cost", f"{study.new_tokens:,} tokens were generated for all conditions, none for the cuts."),
    ]
