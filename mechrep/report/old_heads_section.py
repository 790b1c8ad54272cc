"""The section on heads: which copy, which find the token's earlier self, which look one token back or rest."""

from __future__ import annotations

import plotly.graph_objects as go

from mechrep.ablation.old_controls import ON_LOOPS, ON_REPEATS, PUBLISHED
from mechrep.figures import attention_map_figure, counted
from mechrep.measures.head_scores import PUBLISHED_THRESHOLD, head_scores_figure, layer_profile_figure
from mechrep.report.old_head_words import KINDS, listed, name_of, scored
from mechrep.report.page import Badge, ReportFigure, ReportTable, Section, decimals
from mechrep.studies.heads import HeadStudy

_ROWS = 16  # heads in the table of scores
_NORMAL = 1.96
_SOURCE = (
    "Induction and previous-token heads: Elhage et al. 2021; Olsson et al. 2022 (arXiv 2209.11895). Self-finding heads "
    "and the rule of one half: Hiraoka and Inui 2025 (arXiv 2410.13497). Thresholds on random repeats are conventions."
)


def heads_section(study: HeadStudy) -> Section:
    """Which heads are of which kind, and by which rule."""
    return Section(
        title="Which heads copy, which find the token’s earlier self",
        anchor="heads",
        finding=_finding(study),
        answer=[_induction(study), _self_finding(study), _others(study)],
        badges=[_badge(study, "induction"), _badge(study, "self_finding")],
        figures=_figures(study),
        tables=[_kinds_table(study), _scores_table(study)],
        notes=_notes(study),
        limits=[
            "Attention is not effect: what a head looks at need not be what it does; the next section asks for that.",
            "A head can do one thing on random repeats and another in a loop; both scores stand in the table.",
            "In a loop the same tokens come back many times, so even attention already scores high there: read a score "
            "beside it.",
            "Self-finding needs a sharp distinction from attention to the token before or to all of the loop; loops of "
            "one token cannot make it and are left out.",
        ],
        source=_SOURCE,
    )


def _finding(study: HeadStudy) -> str:
    parts = []
    for kind in ("induction", "self_finding"):
        heads = study.heads_of(kind, ON_REPEATS if kind == "induction" else None)
        parts.append(f"{counted(len(heads), KINDS[kind])} ({listed(heads)})" if heads else f"no {KINDS[kind]}")
    return f"By the rules below, {study.model_name} has {parts[0]} and {parts[1]}."


def _badge(study: HeadStudy, kind: str) -> Badge:
    heads = study.heads_of(kind, ON_REPEATS if kind == "induction" else None)
    return Badge("good", counted(len(heads), KINDS[kind])) if heads else Badge("none", f"{KINDS[kind]}: not found")


def _induction(study: HeadStudy) -> str:
    heads = study.heads_of("induction", ON_REPEATS)
    best = heads[0] if heads else study.scores.top(1)[0]
    where = f"on random repeats it gives {scored(study.scores, 'induction', best)} of its attention to the token that "
    where += "followed the earlier copy"
    band = [float(end[best]) for end in study.copying.functional_band]
    says = f"its direct effect on that token is {decimals(float(study.copying.functional[best]), 2)} of at most 1 "
    says += f"(99 % of a permutation null: {decimals(band[0], 2)} to {decimals(band[1], 2)})"
    loops = f"after the onset of natural loops the attention is {scored(study.loop_scores, 'induction', best)}"
    if not heads:
        return f"Induction: not found. {name_of(best)} comes nearest: {where}, and {says}."
    more = f" {counted(len(heads), 'head')} meet the rule: {listed(heads, 8)}." if len(heads) > 1 else ""
    return f"Induction: {name_of(best)} copies. {where[0].upper()}{where[1:]}, and {says}; {loops}.{more}"


def _self_finding(study: HeadStudy) -> str:
    heads, scores, loops = study.heads_of("self_finding"), study.scores, study.loop_scores
    first = heads[0] if heads else scores.top(1, "self_finding")[0]
    who = "attends" if heads else "comes nearest on random repeats and attends"
    found = f"{listed(heads, 8)}" if heads else "not found, neither on random repeats nor in loops"
    text = f"Self-finding: {found}. {name_of(first)} {who} to the token’s earlier self with "
    text += f"{scored(scores, 'self_finding', first, 3)}"
    if "self_finding" in loops.missing:
        return f"{text}; natural loops cannot tell ({loops.missing['self_finding']})."
    highest = loops.top(1, "self_finding")[0]
    text += f"; after the onset of natural loops the highest score is {name_of(highest)}’s, "
    text += f"{scored(loops, 'self_finding', highest, 3)}, where the published rule asks for more than "
    text += f"{PUBLISHED_THRESHOLD:g}."
    rules = [place for place in (ON_REPEATS, ON_LOOPS) if study.heads_of("self_finding", place)]
    if len(rules) == 1:
        text += f" Only the rule on {rules[0]} is met."
    published = [unit for unit in study.heads_of("self_finding", PUBLISHED) if unit not in heads]
    if published:
        text += f" That rule alone would name {listed(published, 8)}, too, but even attention comes near it there."
    return text


def _others(study: HeadStudy) -> str:
    parts = []
    for kind in ("previous_token", "first_token"):
        heads = study.heads_of(kind)
        number = list(study.scores.names).index(kind)
        named = [f"{name_of(head)} {decimals(float(study.scores.scores[number][head]))}" for head in heads[:4]]
        more = f" and {len(heads) - 4} more" if len(heads) > 4 else ""
        parts.append(f"{KINDS[kind]}s: {', '.join(named) + more if heads else 'none'}")
    return f"{parts[0][0].upper()}{parts[0][1:]}; {parts[1]} (share of attention on random repeats)."


def _figures(study: HeadStudy) -> list[ReportFigure]:
    on_repeats = _titled(head_scores_figure(study.scores), "What every head looks at: random repeats")
    on_loops = _titled(
        head_scores_figure(study.loop_scores), "What every head looks at: natural loops, after the onset"
    )
    figures = [
        ReportFigure(
            "heads-repeats",
            on_repeats,
            "Each cell is a head; the number is its attention to the targets of that kind, averaged over queries that "
            "have one. A perfect head has 1. Random tokens, twice: nothing but the repeat can guide a head.",
            "a score is a share of attention, not of effect, and a head that rests on the first token is no idle head.",
        ),
        ReportFigure(
            "heads-loops",
            on_loops,
            "The same in texts that the model wrote and that loop, for queries from the second copy on: do the heads "
            "do there what they do on random repeats?",
            "in a loop many keys hold the same token, so even attention (chance, above each panel) is far from 0.",
        ),
    ]
    figures += [_attention(study, unit) for unit in study.example.patterns]
    if study.profiles is not None:
        figures.append(_profiles(study))
    return figures


def _attention(study: HeadStudy, unit: tuple[int, int]) -> ReportFigure:
    example = study.example
    kinds = [KINDS[kind] for kind in KINDS if unit in study.heads_of(kind)]
    title = f"What L{unit[0]} H{unit[1]} looks at in one loop" + (f" ({kinds[0]})" if kinds else "")
    figure = attention_map_figure(example.patterns[unit], example.tokens, title=title, name=study.model_name)
    return ReportFigure(
        f"attention-{unit[0]}-{unit[1]}",
        figure,
        f"Text {example.text_id}, of median attention for this kind of head, from its first copy on; the second begins "
        f"at row {example.onset}. An induction head shows a stripe one column to the right of where the row’s own "
        "token stood before, a self-finding head the stripe through it.",
        "one text, and a head can look elsewhere in others; attention to tokens before this stretch (the first token "
        "among them) is not shown, so rows need not add up to 1.",
    )


def _profiles(study: HeadStudy) -> ReportFigure:
    assert study.profiles is not None
    row = study.profiles.iloc[0]
    chance = f"{decimals(row['null'])}, 95 % {decimals(row['null_low'])} to {decimals(row['null_high'])}"
    return ReportFigure(
        "layer-profiles",
        layer_profile_figure(study.neurons, study.scores, k_heads=int(study.profiles["heads"].sum())),
        "Left the repetition neurons of the published share, right the induction heads, by layer. The profiles "
        f"overlap by {decimals(row['overlap'])} of 1 (with shuffled layers: {chance}; p = {decimals(row['p'])}).",
        "with few layers or few heads chance overlaps much, and neurons of late layers rise more for reasons of scale.",
    )


def _titled(figure: go.Figure, title: str) -> go.Figure:
    return figure.update_layout(title_text=title)


def _kinds_table(study: HeadStudy) -> ReportTable:
    rows = [
        [KINDS[kind.kind] + "s", kind.measured_on, kind.rule, listed(kind.heads, 8) if kind.heads else "not found"]
        for kind in study.kinds
    ]
    return ReportTable("Which heads count as what", ["kind", "measured on", "rule", "heads"], rows)


def _scores_table(study: HeadStudy) -> ReportTable:
    chosen = [unit for kind in KINDS for unit in study.heads_of(kind)]
    order = list(dict.fromkeys([*chosen, *study.scores.ranking("induction")]))[:_ROWS]
    rows = [[name_of(unit), *_scores(study, unit)] for unit in order]
    head = ["head", "induction", "…in loops", "self-finding", "…in loops", "previous", "first", "says the copy"]
    total = study.scores.unexplained.numel()
    return ReportTable(
        f"Scores of {len(rows)} of {counted(total, 'head')}",
        head,
        rows,
        "Share of attention ± half of its 95 % interval (1.96 standard errors, the text is the unit), on random "
        "repeats and, where the column says so, after the onset of natural loops. Says the copy: correlation of the "
        "head’s direct logits with the token that comes next (1: says nothing else).",
    )


def _scores(study: HeadStudy, unit: tuple[int, int]) -> list[str]:
    columns = [
        (study.scores, "induction"),
        (study.loop_scores, "induction"),
        (study.scores, "self_finding"),
        (study.loop_scores, "self_finding"),
    ]
    cells = []
    for result, score in columns:
        number = list(result.names).index(score)
        value, error = float(result.scores[number][unit]), float(result.standard_errors[number][unit])
        cells.append(f"{decimals(value)} ± {decimals(_NORMAL * error)}")
    plain = [study.scores.previous_token, study.scores.first_token, study.copying.functional]
    return [*cells, *(decimals(float(table[unit])) for table in plain)]


def _notes(study: HeadStudy) -> list[tuple[str, str]]:
    repeats, loops = study.scores, study.loop_scores
    dropped = {reason: n for reason, n in loops.not_used.items() if n}
    left_out = f" Left out: {', '.join(f'{n} ({reason})' for reason, n in dropped.items())}." if dropped else ""
    return [
        (
            "Random repeats",
            f"{counted(max(repeats.n_texts.values()), 'text')} of random ordinary tokens, each text twice the same.",
        ),
        (
            "Natural loops",
            f"{counted(max(loops.n_texts.values()), 'looping text')} that the model wrote, those on which neurons were "
            f"searched; queries from the second copy on, mean per text and then over texts.{left_out}",
        ),
        ("Induction", "attention to tokens that followed earlier copies of the query’s own token."),
        ("Self-finding", "attention to earlier copies of the query’s own token."),
        ("Even attention", "what a head scores that looks at all earlier tokens alike; “above chance” takes it off."),
        (
            "Null of copying",
            "the queries of a text swap their targets; mean and spread over all permutations are exact.",
        ),
    ]
