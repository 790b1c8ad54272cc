"""The section on token information: do loops look at tokens that carry little, and do they need them?"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import pandas as pd

from mechrep.ablation.old_sweeps import NO_BREAK, percent
from mechrep.figures import counted
from mechrep.measures.token_information import head_information_figure, information_figure
from mechrep.report.page import Badge, ReportFigure, ReportTable, Section, decimals, interval
from mechrep.studies.token_information_study import FREE, HELD_OUT, LOOPS, InformationStudy

TEXTS = {LOOPS: "loops", FREE: "texts of the model that do not loop", HELD_OUT: "held-out text"}
_POOR = ("newline", "sentence_end", "punctuation", "bracket", "function_word")
_LOW, _FEW = "low_surprisal", 8  # the group of the question; texts below which an interval means little
_WAYS = {"mask": "hidden from the queries", "swap": "exchanged for other tokens"}
_LIMITS = [
    "Attention is not effect; the cuts are. Hidden tokens can still act through what later tokens took from them "
    "before the last copy, and a swap changes what the model expects.",
    "Low information is the lowest quartile of each text in the model’s own surprisal at its first copy; another "
    "definition can give another answer.",
    "The mean over heads can hide single heads that look at such tokens: the map shows each.",
    "Intervals draw texts anew and are not corrected for the number of groups; the answer is about one of them.",
    "That a bias is not found does not show that there is none.",
]
_SOURCE = (
    "That natural loops attend to low-information tokens is a claim of Mahaut and Franzon 2025 (arXiv 2504.01100), who "
    "define none; the definitions are mechrep’s. Their ratio sets attention over prompt and loop against the prompt "
    "alone."
)
Attention = Literal["more", "more, but so do others", "as much", "less", "open"]


def information_section(study: InformationStudy) -> Section:
    """Where loops look by the information of the attended token, beside sinks, position and other texts."""
    return Section(
        title="Do loops look at tokens that carry little information?",
        anchor="token-information",
        finding=f"{_attention_words(study)}; {_cut_words(study)}.",
        answer=list(_answer(study)),
        badges=_badges(study),
        figures=_figures(study),
        tables=[_bias_table(study), *_controls_table(study), *_cut_table(study)],
        notes=_notes(study),
        limits=_LIMITS,
        source=_SOURCE,
    )


def attention_answer(study: InformationStudy) -> Attention:
    """Do loops look at low-information tokens, sinks apart, more than a position-matched reader and than other texts?

    ``"more"``: the bias lies above 1, and above that of every control with enough texts.  ``"more, but so do others"``:
    above 1, but not above a control.  ``"open"``: too few texts, or no control.
    """
    row = _row(study.bias["matched"], _LOW)
    controls = _controls(study)
    if study.n(LOOPS) < _FEW or pd.isna(row["low"]):
        return "open"
    if row["high"] < 1:
        return "less"
    if row["low"] <= 1:
        return "as much"
    if not controls:
        return "open"
    beyond = [_group(study.compared[name], _LOW)["low"] > 0 for name in controls]
    return "more" if all(beyond) else "more, but so do others"


def _controls(study: InformationStudy) -> list[str]:
    return [name for name in study.compared if study.n(name) >= _FEW]


def _row(table: pd.DataFrame, group: str, condition: str = LOOPS) -> pd.Series:
    return table[(table["condition"] == condition) & (table["group"] == group)].iloc[0]


def _group(table: pd.DataFrame, group: str) -> pd.Series:
    return table[table["group"] == group].iloc[0]


def _bias(row: pd.Series) -> str:
    return f"{decimals(row['bias'])}, 95{NO_BREAK}% {decimals(row['low'])} to {decimals(row['high'])}"


def _attention_words(study: InformationStudy) -> str:
    row = f"{_bias(_row(study.bias['matched'], _LOW))}; {counted(study.n(LOOPS), 'text')}"
    start = f"In loops of {study.model_name}, attention to low-information tokens, sinks left out, "
    reader = "that a reader of the usual distances would give them"
    return (
        start
        + {
            "more": f"is more than {reader} (bias {row}), and more than in texts that do not loop",
            "more, but so do others": f"is more than {reader} (bias {row}), but not than in texts that do not loop",
            "as much": f"is not found to be more than {reader} (bias {row})",
            "less": f"is less than {reader} (bias {row})",
            "open": f"cannot be judged: too few texts or no control (bias {row})",
        }[attention_answer(study)]
    )


def cut_answer(study: InformationStudy, way: str) -> Literal["leans", "leans less", "no difference", "open"]:
    """Does the loop need low-information tokens more than as many others?"""
    row = _change(study, way, "low - others")
    if row["n_texts"] < _FEW:
        return "open"
    return "leans" if row["high"] < 0 else "leans less" if row["low"] > 0 else "no difference"


def _change(study: InformationStudy, way: str, cut: str) -> pd.Series:
    table = study.cuts[way].summary()
    return table[table["cut"] == cut].iloc[0]


_CUT_WORDS = {
    "leans": "loops lose more than without as many others",
    "leans less": "loops lose less than without as many others",
    "no difference": "loops are not found to lose more than without as many others",
    "open": "too few texts tell",
}


def _cut_words(study: InformationStudy) -> str:
    if not study.cuts:
        return "whether loops need these tokens could not be tried"
    parts = []
    for way in study.cuts:
        row = _change(study, way, "low - others")
        ends = interval(row["change"], row["low"], row["high"], sign=True)
        parts.append(f"with them {_WAYS[way]} {_CUT_WORDS[cut_answer(study, way)]} ({ends} nats, n = {row['n_texts']})")
    return "; ".join(parts)


def _badges(study: InformationStudy) -> list[Badge]:
    words: dict[Attention, Badge] = {
        "more": Badge("good", "attention: beyond position and controls"),
        "more, but so do others": Badge("none", "attention: not beyond texts that do not loop"),
        "as much": Badge("none", "attention: no more than position explains"),
        "less": Badge("none", "attention: less than position explains"),
        "open": Badge("open", "attention: too few texts or no control"),
    }
    badges = [words[attention_answer(study)]]
    kinds: dict[str, tuple[Literal["good", "open", "none"], str]] = {
        "leans": ("good", "loops need them more than others"),
        "leans less": ("none", "loops need them less than others"),
        "no difference": ("none", "no more needed than others"),
        "open": ("open", "too few texts"),
    }
    for way in study.cuts:
        kind, said = kinds[cut_answer(study, way)]
        badges.append(Badge(kind, f"{way}: {said}"))
    return badges


def _answer(study: InformationStudy) -> Iterable[str]:
    visible, other = _row(study.bias["visible"], _LOW), _row(study.bias["matched"], "low_unigram")
    yield (
        f"Against a reader that takes all visible tokens alike the bias towards tokens of low surprisal is "
        f"{_bias(visible)}; against one that weights distances as each head usually does it is "
        f"{_bias(_row(study.bias['matched'], _LOW))}. By frequency instead of surprisal: {_bias(other)}."
    )
    for name, table in study.compared.items():
        row = _group(table, _LOW)
        few = "" if study.n(name) >= _FEW else ": too few texts to judge by"
        yield (
            f"Beside {TEXTS[name]}, cut to the same lengths and read at the same positions "
            f"({counted(study.n(name), 'different text')}{few}): bias {decimals(row['first'])} in loops and "
            f"{decimals(row['second'])} there, log2 of the quotient "
            f"{interval(row['log2_ratio'], row['low'], row['high'], sign=True)}."
        )
    yield _class_sentence(study)
    yield _sink_sentence(study)
    for way in study.cuts:
        changes = {name: _change(study, way, name) for name in ("low", "others")}
        told = {name: interval(one["change"], one["low"], one["high"], sign=True) for name, one in changes.items()}
        yield (
            f"Low-information tokens {_WAYS[way]}: the log-probability of the last copy changes by {told['low']} nats "
            f"per token, with as many other tokens by {told['others']} (n = {changes['low']['n_texts']})."
        )
    for name, why in study.left_out.items():
        yield f"Left out, {TEXTS.get(name, name)}: {why}."


def _class_sentence(study: InformationStudy) -> str:
    """The classes that the paper calls low in information."""
    above = [group for group in _POOR if _row(study.bias["matched"], group)["low"] > 1]
    beyond = [
        group
        for group in above
        if _controls(study) and all(_group(study.compared[name], group)["low"] > 0 for name in _controls(study))
    ]
    told, clear = (", ".join(group.replace("_", " ") for group in groups) or "none" for groups in (above, beyond))
    return (
        "By token class, as the paper has it (newlines, ends of sentences, punctuation, brackets, function words), "
        f"loops look more than the usual distances explain at: {told}; of these, more than every control text does: "
        f"{clear}."
    )


def _sink_sentence(study: InformationStudy) -> str:
    table = study.sinks.groupby("condition", sort=False)[["first_position", "other_sinks"]].mean()
    parts = [f"{TEXTS.get(str(name), str(name))}: {percent(one['first_position'])} and {percent(one['other_sinks'])}"
             for name, one in table.iterrows()]  # fmt: skip
    return (
        "What sinks take is in none of these numbers; of all attention the first position and other sinks take, in "
        f"{'; '.join(parts)}."
    )


def _figures(study: InformationStudy) -> list[ReportFigure]:
    return [
        ReportFigure(
            "token-information-groups",
            information_figure(study.attention, matched=True),
            "Attention to each group of tokens over what a reader of the usual distances would give it, mean over "
            "heads with 95 % intervals over texts; sinks are left out. Low surprisal answers the question: is its "
            "marker for loops right of 1, and right of those of the other texts?",
            "groups of which few tokens are visible have wide intervals, and the axis is logarithmic.",
        ),
        ReportFigure(
            "token-information-heads",
            head_information_figure(study.attention, _LOW, condition=LOOPS),
            "Each cell is a head: orange looks at tokens of low surprisal more than a reader of all visible tokens "
            "alike, blue less.",
            "this reader does not know distances: a head that looks back a fixed way is coloured by what stands there.",
        ),
    ]


def _bias_table(study: InformationStudy) -> ReportTable:
    rows, published = [], study.published.summary()
    published = published[published["condition"] == LOOPS]
    for group in study.attention.groups:
        one = [_row(study.bias[name], group) for name in ("visible", "matched")]
        one.append(published[published["group"] == group].iloc[0])
        cells = [interval(row["bias"], row["low"], row["high"]) for row in one]
        shares = [decimals(one[0][name], 3) for name in ("share_att", "share_vis")]
        rows.append([group.replace("_", " "), *shares, *cells])
    return ReportTable(
        f"What {counted(study.n(LOOPS), 'looping text')} look at",
        ["tokens", "of attention", "of visible tokens", "bias [95 %]", "bias, by distance [95 %]", "as published"],
        rows,
        "Bias: share of attention over the share that a reader gives them who takes all visible tokens alike, or "
        "weights distances as the head usually does; means over heads. 1 is no preference. – where no such token is "
        "visible. As published: the key with most attention only, sinks included, against the make-up of the prompt.",
    )


def _controls_table(study: InformationStudy) -> Iterable[ReportTable]:
    rows = []
    for name, table in study.compared.items():
        for row in table.to_dict("records"):
            ends = interval(row["log2_ratio"], row["low"], row["high"], sign=True)
            group = str(row["group"]).replace("_", " ")
            rows.append([TEXTS[name], group, decimals(row["first"]), decimals(row["second"]), ends])
    if rows:
        yield ReportTable(
            "Loops beside texts that do not loop",
            ["control", "tokens", "bias in loops", "bias there", "log2 of the quotient [95 %]"],
            rows,
            "Position-matched biases. Each loop has a control text of its length, read at the same positions.",
        )


def _cut_table(study: InformationStudy) -> Iterable[ReportTable]:
    rows = []
    for way, cut in study.cuts.items():
        for row in cut.summary().to_dict("records"):
            ends = interval(row["change"], row["low"], row["high"], 3, sign=True)
            rows.append([_WAYS[way], row["cut"].replace("-", "−"), ends, int(row["n_texts"]), cut.left_out])
    if rows:
        yield ReportTable(
            "What the last copy loses",
            ["tokens are", "which", "change [95 %] (nats per token)", "texts", "left out"],
            rows,
            "Others: as many tokens that are not low, each the nearest partner of a low one in its part of the text.",
        )


def _notes(study: InformationStudy) -> list[tuple[str, str]]:
    pairs = [f"{way}: {decimals(float(cut.pairs.mean()), 1)} pairs, {decimals(float(cut.distance.mean()), 1)} apart"
             for way, cut in study.cuts.items()]  # fmt: skip
    return [
        (
            "Loops",
            f"{study.n(LOOPS)} texts that the model wrote, of at most four copies; read from the second copy on.",
        ),
        (
            "Sinks",
            "the first position, and keys that the queries behind give more than 0.3 on average, are no keys here.",
        ),
        (
            "Low information",
            "the lowest quartile of surprisal; every copy of a loop has the surprisal of its first copy.",
        ),
        ("Usual distances", "each head’s mean attention by distance in held-out text."),
        (
            "Cuts",
            f"what is done to every copy but the last, which is scored ({'; '.join(pairs) or 'none'}, on average).",
        ),
    ]
