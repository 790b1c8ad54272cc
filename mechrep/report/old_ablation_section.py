"""The section on cuts: what loops, copying and language lose without the heads, and whether controls lose as much."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mechrep.ablation.old_study import ablation_curves_figure
from mechrep.ablation.old_sweeps import Verdict
from mechrep.figures import counted
from mechrep.report.old_cut_plots import SELECTIONS, cuts_figure, single_heads_figure
from mechrep.report.old_effects import Effect, effects_of
from mechrep.report.old_head_words import listed, name_of
from mechrep.report.page import Badge, ReportFigure, ReportTable, Section, decimals, interval
from mechrep.studies.heads import BEST, JOINT, CircuitCut, HeadStudy

_HEADLINE = {"copy_accuracy": "copying", "still_looping": "loops", "loss": "perplexity"}
_WORDS: dict[Verdict, str] = {
    "beyond controls": "beyond every control",
    "beyond controls, few texts": "beyond every control, but in few texts",
    "not beyond controls": "no more than controls explain",
    "no controls": "without controls this says nothing about these heads",
}
_TOLD = [  # outcomes that the text tells of; the tables have all
    ("copy_accuracy", None),
    ("loop_log_probability", 1),
    ("still_looping", None),
    ("newly_looping", None),
    ("loss", None),
]
_ROWS = 16
_TESTED = {"copy_accuracy": None, "loop_log_probability": 1, "loss": None}


def ablation_section(study: HeadStudy) -> Section:
    """What cutting the heads does, against all controls."""
    paragraphs = [*_circuits(study), _single(study), _overlap(study)]
    return Section(
        title="What cutting them does",
        anchor="cuts",
        finding=_finding(study),
        answer=[paragraph for paragraph in paragraphs if paragraph],
        badges=[Badge.of(one.verdict, _HEADLINE[one.outcome]) for one in _headline(study)],
        figures=list(_figures(study)),
        tables=[*(_cut_table(cut, part) for cut in study.cuts for part in _parts(cut)), _single_table(study)],
        notes=_notes(study),
        limits=[
            "A cut part can be replaced by others in the same pass, so a small effect does not show that it does "
            "nothing.",
            "Zero may lie far from what a head writes on ordinary text; the mean is a gentler cut.",
            "Intervals are over texts; controls are single draws on the same texts. With few heads a control has few "
            "different draws, and one of them may hold another part of the circuit: the tables name the farthest one.",
            "Intervals of circuits are not corrected for their number; the tests of single heads are (Holm).",
            "Heads that do the same work hide each other when cut alone.",
        ],
        source=(
            "Cutting heads and copying: Olsson et al. 2022 (arXiv 2209.11895). Counting loops, and whether heads and "
            "neurons lie in the same layers: Hiraoka and Inui 2025 (arXiv 2410.13497)."
        ),
    )


def _headline(study: HeadStudy) -> list[Effect]:
    if not study.cuts:
        return []
    found = {one.outcome: one for one in _effects(study.cuts[0])}
    if "still_looping" not in found:
        return [found[name] for name in ("copy_accuracy", "loss")]
    return [found[name] for name in _HEADLINE]


def _effects(cut: CircuitCut, part: str = "whole") -> list[Effect]:
    return effects_of(cut.result, cut.circuit.name, part)


def _finding(study: HeadStudy) -> str:
    if not study.cuts:
        return f"No head of {study.model_name} qualifies as an induction or self-finding head, so no circuit was cut."
    parts = [f"{one.short_sentence}: {_judged(study, one)}" for one in _headline(study)]
    return f"With {_what(study.cuts[0])} cut, {'; '.join(parts)}."


def _what(cut: CircuitCut) -> str:
    circuit = cut.circuit
    if circuit.name == BEST:
        return f"the {BEST} {name_of(circuit.heads[0])}"
    heads = listed(circuit.heads, 6)
    if circuit.name == JOINT:
        return f"the induction heads ({heads}) and {counted(len(circuit.neurons), 'repetition neuron')}"
    return f"the {circuit.name} ({heads}{', cut at every position' if cut.when == 'all' else ''})"


def _circuits(study: HeadStudy) -> Iterable[str]:
    for cut in study.cuts:
        found = {(one.outcome, one.copy): one for one in _effects(cut)}
        parts = [f"{found[key].sentence}: {_judged(study, found[key])}" for key in _TOLD if key in found]
        yield f"Without {_what(cut)}: {'; '.join(parts)}."
    if not study.heads_of("self_finding"):
        yield "No self-finding head was found, so none was cut; every head alone was (below)."


def _judged(study: HeadStudy, effect: Effect) -> str:
    """The verdict in words; where a control did as much, which, and whether it is itself part of the circuit."""
    if effect.verdict != "not beyond controls" or effect.nearest is None or effect.change == 0:
        return _WORDS[effect.verdict]
    circuit = {*study.heads_of("induction"), *study.heads_of("previous_token")}
    shared = [tuple(unit) for unit in effect.nearest["heads"] if tuple(unit) in circuit]
    part = f", where {listed(shared)} {'is' if len(shared) == 1 else 'are'} of the induction circuit" if shared else ""
    return f"{_WORDS[effect.verdict]} (farthest {_farthest(effect.nearest)}{part})"


def _single(study: HeadStudy) -> str:
    parts = []
    for outcome, copy in _TESTED.items():
        number = study.single.measure_number(outcome, copy)
        if len(study.single.texts[number]) < 2:
            continue
        table = study.single.tests(outcome, copy)
        clear = table[table["holm"] < 0.05]
        names = listed([(row.layer, row.head) for row in clear.itertuples()]) if len(clear) else "none"
        what = {"copy_accuracy": "copying", "loop_log_probability": "the loop’s next copy", "loss": "held-out loss"}
        parts.append(f"{what[outcome]}: {names}")
    return f"Cut alone, these heads change something after Holm’s correction (p < 0.05). {'; '.join(parts)}."


def _overlap(study: HeadStudy) -> str:
    if study.profiles is None:
        return "Whether neurons and heads lie in the same layers cannot be asked: one of the two was not found."
    row = study.profiles.iloc[0]
    more = "more than chance" if row["p"] < 0.05 else "no more than chance explains"
    return (
        f"Repetition neurons and induction heads overlap in their layers by {decimals(row['overlap'])} of 1; shuffled "
        f"layers give {decimals(row['null'])} (95 % {decimals(row['null_low'])} to {decimals(row['null_high'])}), "
        f"p = {decimals(row['p'])}: {more}."
    )


def _figures(study: HeadStudy) -> Iterable[ReportFigure]:
    if study.cuts:
        yield ReportFigure(
            "circuits-cut",
            cuts_figure(study.cuts, study.model_name),
            "Filled points are cuts with their 95 % interval over texts, open ones single draws of controls: as many "
            "other heads (or neurons). The dotted line is the untouched model. A cut means something where its bar "
            "clears all open points.",
            "each panel has its own scale, and loops, repeats and held-out text are different texts; loop-free texts "
            "were written again under the first cut alone.",
        )
    yield ReportFigure(
        "single-heads",
        single_heads_figure(study.single, study.model_name),
        "Each cell is one head, cut alone: orange where the outcome falls, blue where it rises. Stars survive the "
        "correction for having looked at all heads.",
        "colours are scaled to each panel’s largest change, so a panel of small changes looks as strong as one of "
        "large ones.",
    )
    for outcome, copy, words in (("copy_accuracy", None, "copying"), ("loop_log_probability", 1, "the next copy")):
        figure = ablation_curves_figure(study.ranking, outcome, copy)
        if outcome == "loop_log_probability":
            figure.update_layout(title_text="What loops lose as more heads are cut")
        else:
            figure.update_layout(title_text="What copying loses as more heads are cut")
        figure.update_xaxes(title_text="heads cut", tickformat="d", dtick=1 if _largest_k(study) <= 8 else None)
        yield ReportFigure(
            f"ranking-{outcome.replace('_', '-')}",
            figure,
            f"The heads that score highest on induction are cut together, and {words} is measured; the other lines are "
            "as many control heads (mean of the draws, with their range).",
            "beyond the first few the ranking is arbitrary, and with many heads cut controls run out of heads that "
            "differ.",
        )


def _largest_k(study: HeadStudy) -> int:
    return max(int(condition["k"]) for condition in study.ranking.conditions)


def _cut_table(cut: CircuitCut, part: str) -> ReportTable:
    effects = _effects(cut, part)
    names = list(effects[0].controls)
    rows = []
    for one in effects:
        scale = one.scale
        path = f"{one.untouched_text} → {one.value_text}"
        change, low, high = (scale.factor * x for x in (one.change, one.low, one.high))
        ends = interval(change, low, high, scale.places + 1, sign=True)
        controls = [_range([scale.factor * x for x in one.controls[name]], scale.places + 1) for name in names]
        farthest = "" if one.nearest is None else _farthest(one.nearest)
        rows.append([one.in_table, path, ends, one.n, one.verdict, *controls, farthest])
    head = ["outcome", "untouched → cut", "change [95 %]", "texts", "verdict", *(SELECTIONS[name] for name in names)]
    what = _what(cut) if part == "whole" else f"of {_what(cut)}, the {part} alone"
    return ReportTable(
        f"Cut: {what}",
        [*head, "farthest control"],
        rows,
        f"{_draws(cut, part)} Changes: percentage points for shares, nats per token for the others; that of perplexity "
        "is the change of its logarithm. Controls: smallest and largest change over draws.",
    )


def _range(changes: Sequence[float], places: int) -> str:
    low, high = decimals(min(changes), places, sign=True), decimals(max(changes), places, sign=True)
    return low if low == high else f"{low} to {high}"


def _farthest(condition: dict) -> str:
    units = [tuple(unit) for unit in condition["heads"]]
    name = SELECTIONS.get(condition["selection"], str(condition["selection"]))
    return f"{name}: {listed(units, 3)}" if units else name


def _draws(cut: CircuitCut, part: str) -> str:
    """How many draws there were, how many of them differ, and what could not be drawn."""
    own = [c for c in cut.result.conditions if c["circuit"] == cut.circuit.name and c["part"] == part]
    parts = []
    for name in dict.fromkeys(c["selection"] for c in own if c["selection"] != "top"):
        draws = [str((c["heads"], c["neurons"])) for c in own if c["selection"] == name]
        label = SELECTIONS[name]
        parts.append(f"{label} {counted(len(draws), 'draw')}, {len(set(draws))} different")
    text = f"{'; '.join(parts)}." if parts else "No control could be drawn."
    if part == "whole" and cut.left_out and cut.circuit.kinds == ("heads",):
        reasons = "; ".join(f"{SELECTIONS[name]} ({why})" for name, why in cut.left_out.items())
        text += f" Could not be drawn: {reasons}."
    return text


def _parts(cut: CircuitCut) -> list[str]:
    return ["whole", *(cut.circuit.kinds if len(cut.circuit.kinds) > 1 else ())]


def _single_table(study: HeadStudy) -> ReportTable:
    tables, head = [], ["head"]
    for outcome, copy in _TESTED.items():
        number = study.single.measure_number(outcome, copy)
        if len(study.single.texts[number]) > 1:
            tables.append(study.single.tests(outcome, copy).set_index(["layer", "head"]))
            head += [{"copy_accuracy": "copying", "loss": "held-out loss"}.get(outcome, "loop, next copy"), "p (Holm)"]
    best = sorted(tables[0].index, key=lambda unit: min(float(table.loc[unit, "holm"]) for table in tables))[:_ROWS]
    rows = []
    for unit in best:
        row: list[object] = [name_of(unit)]
        for table in tables:
            cell = table.loc[unit]
            row.append(interval(cell["effect"], cell["effect_low"], cell["effect_high"], 3, sign=True))
            row.append(decimals(float(cell["holm"]), 3))
        rows.append(row)
    return ReportTable(
        f"Every head cut alone: {len(rows)} of {counted(len(tables[0]), 'head')}",
        head,
        rows,
        "Change with its 95 % interval (copying: share of tokens; others: nats per token); p of a paired t-test over "
        "texts, corrected for all heads by Holm.",
    )


def _notes(study: HeadStudy) -> list[tuple[str, str]]:
    seeds = study.provenance.config.get("seeds", [])
    return [
        (
            "Cut",
            "a head’s output z ← 0: in loops from the position that predicts the onset token on (the induction "
            "circuit: everywhere, because previous-token heads work in the first copy); elsewhere at every scored "
            "position.",
        ),
        (
            "Loops",
            "looping texts on which nothing was searched. Log-probability: of the loop’s own next tokens, "
            "teacher-forced. Still looping: the text is written again from its onset on, greedily, and counted.",
        ),
        ("Copying", "share of the second copy’s tokens that are the most probable ones, on other random repeats."),
        ("Perplexity", "on the second half of windows of held-out text."),
        (
            "Controls",
            f"{counted(len(seeds), 'draw')} of as many other heads: random (any), layer-matched (in the same layers), "
            "BOS-matched (no induction heads, with nearly the same attention to the first token); of neurons also "
            "activation-matched.",
        ),
        ("Beyond controls", "the interval over texts lies beyond every draw of every control, and beyond no change."),
    ]
