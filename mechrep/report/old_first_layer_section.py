"""The section on the first layer: how it tells the first token from others, and what that means for repeats."""

from __future__ import annotations

import math
from collections.abc import Iterable

from mechrep.ablation.old_sweeps import NO_BREAK
from mechrep.figures import counted
from mechrep.measures.first_token_detectors import SAME_VALUE, convergence_figure, detector_figure
from mechrep.measures.first_token_heads import head_cuts_figure
from mechrep.measures.first_token_mass import other_token_mass_figure
from mechrep.report.old_first_layer_tables import first_layer_tables
from mechrep.report.old_head_words import listed
from mechrep.report.page import Badge, ReportFigure, Section, decimals, interval
from mechrep.studies.first_layer import FirstLayerStudy

_SOURCE = (
    "That the first layer detects other tokens, the score of neurons and the curve of copies: Yona et al. 2025 (arXiv "
    "2503.08908). The identity, masses, held-out areas, nulls, cuts and rates are mechrep’s own."
)
_LAWS = {
    "power": "like 1/n, a slope of −1 in log-log",
    "exponential": "exponentially in n",
    "zero": "to exactly 0 once the prefix is out of sight",
    "none": "not at all, as the position is part of the value",
}


def first_layer_section(study: FirstLayerStudy) -> Section:
    """Whether layer 0 marks the first token, what carries the mark, and what copies of a token make of it."""
    return Section(
        title="How the first layer tells the first token from others",
        anchor="first-layer",
        finding=_finding(study),
        answer=[_masses(study), _neurons(study), _heads(study), _copies(study), _repeats(study)],
        badges=list(_badges(study)),
        figures=list(_figures(study)),
        tables=list(first_layer_tables(study)),
        notes=_notes(study),
        limits=[
            "A model can know BOS by its identity; then it may have a sink although nothing looks for other tokens.",
            "Attention on other tokens is near that of a uniform head wherever all words differ; it says what a head "
            "could tell, and the cuts say what it does.",
            "Heads that do the same work hide each other: compare the losses with that of all heads together.",
            "A few hundred copies show only the beginning of a law; heads that prefer the prefix need thousands.",
        ],
        source=_SOURCE,
    )


def _area(value: float, low: float, high: float) -> str:
    return f"{decimals(value, 3)} (95{NO_BREAK}% {decimals(low, 3)} to {decimals(high, 3)})"


def _nulls(study: FirstLayerStudy) -> str:
    shuffled, models = study.summary.shuffled_auroc, study.summary.null_aurocs
    text = f"shuffled places reach at most {decimals(shuffled, 3)}"
    return f"{text}, {counted(len(models), 'null model')} at most {decimals(max(models), 3)}" if models else text


def _finding(study: FirstLayerStudy) -> str:
    summary = study.summary
    area = _area(summary.auroc, *summary.interval)
    if not summary.found:
        return (
            f"In {study.model_name} no neuron was found that tells a first token from a second or third: the best has "
            f"an area under the ROC curve of {area} on other words, where {_nulls(study)}."
        )
    layer, neuron = summary.neurons[0]
    heads = f"heads that carry the mark: {listed(summary.heads)}" if summary.heads else "no single head carries it"
    return (
        f"In {study.model_name} neuron {neuron} of layer {layer} tells a first token from a second or third, with an "
        f"area under the ROC curve of {area} on other words, where {_nulls(study)}; {heads}."
    )


def _masses(study: FirstLayerStudy) -> str:
    mass, summary = study.parts.mass, study.summary
    shown = [f"head {head} {decimals(float(mass.mass[head]))}" for head in mass.ranking()[:8]]
    more = f" and {len(mass.mass) - 8} more" if len(mass.mass) > 8 else ""
    exact = (
        f"holds on this model to {summary.identity_error:.1e} of the mean value norm"
        if summary.identity_error < SAME_VALUE
        else f"fails on this model by {summary.identity_error:.1e} of the mean value norm, so the rest of this section "
        "does not describe it"
    )
    same = (
        "and so does its form with other tokens only, as equal tokens have equal values"
        if summary.same_value_error < SAME_VALUE
        else f"but not with other tokens only (error {summary.same_value_error:.1e}), as the position is part of values"
    )
    return (
        f"What attention can tell: a head moves a token away from its own value by the values of other tokens alone. "
        f"This identity {exact}, {same}. Share of attention on other tokens in {counted(mass.n_texts, 'text')}: "
        f"{', '.join(shown)}{more}; a uniform head has {decimals(summary.uniform_mass)}."
    )


def _neurons(study: FirstLayerStudy) -> str:
    summary, seen = study.summary, study.parts.detectors
    best = seen.neurons[0]
    counts = (
        f"Neurons: {len(summary.neurons)} of the {len(seen.neurons)} most telling beyond every null on words that they "
        "were not chosen with"
        if summary.found
        else "Neurons: not found; none clears every null on words that it was not chosen with"
    )
    parts = f"first against second {decimals(float(seen.first_second[best]), 3)}, "
    parts += f"second against third {decimals(float(seen.second_third[best]), 3)}"
    state = _area(summary.state_auroc, *seen.state_interval)
    return (
        f"{counts} (n = {counted(seen.n_test, 'token')}). The best, neuron {best} of layer {seen.layer}, has "
        f"{_area(seen.best_auroc, *seen.intervals[0].tolist())}: {parts}. One direction of the input of its MLP has "
        f"{state}."
    )


def _heads(study: FirstLayerStudy) -> str:
    summary, cuts = study.summary, study.parts.cuts
    low, high = cuts.state_interval[0, -1].tolist()
    lost = interval(float(cuts.state_loss[0, -1]), low, high, 3, sign=True)
    together = f"With all heads of layer 0 at zero the MLP’s input loses {lost} of its area"
    if not summary.found:
        text = f"Heads: as no mark was found, there is none to carry. {together}."
    elif summary.heads:
        verb = "carries" if len(summary.heads) == 1 else "carry"
        text = f"Heads: {listed(summary.heads)} {verb} the mark, in both kinds of cut. {together}"
    else:
        text = f"Heads: no single one costs clearly more than a typical other head. {together}"
    if summary.found:
        needed = "the mark needs attention" if summary.needs_attention else "the mark does not go with attention"
        text += f": {needed}."
    if cuts.sink_layer is None:
        return f"{text} Its norm cannot be followed: {cuts.sink_reason}."
    low, high = cuts.norm_interval[0, -1].tolist()
    norm = interval(float(cuts.norm_loss[0, -1]), low, high, sign=True)
    return (
        f"{text} The log norm ratio of the first position after layer {cuts.sink_layer} loses {norm} of "
        f"{decimals(cuts.log_ratio)}."
    )


def _copies(study: FirstLayerStudy) -> str:
    copies, summary = study.parts.convergence, study.summary
    first, last = decimals(study.first_distance, 3), decimals(summary.last_distance, 3)
    text = (
        f"Copies: after layer 0 the state of copy 1 is {first} of its norm away from that of the token alone, that of "
        f"copy {copies.repeats[-1]:,} {last} (medians of {counted(len(copies.token_ids), 'token')} after a prefix of "
        f"{copies.prefix_length}). "
    )
    if not math.isnan(summary.slope):
        ends = " to ".join(decimals(end) for end in study.slope_interval)
        text += f"The odds of the prefix fall with a slope of {decimals(summary.slope)} in log-log (95{NO_BREAK}% "
        text += f"{ends}; median over heads and tokens, interval over tokens). "
    agreed = "what was measured agrees" if copies.agrees else "what was measured does not agree"
    text += f"Theory expects them to fall {_LAWS[copies.theory]} ({copies.theory_words}): {agreed}. "
    pure = f"{summary.pure_deviation:.1e}"
    if summary.pure_deviation < SAME_VALUE:
        return f"{text}Without anything before it, a run of one token is in one state at every depth (to {pure})."
    return f"{text}Without anything before it, a run of one token is not in one state (positions differ by {pure})."


def _repeats(study: FirstLayerStudy) -> str:
    """What follows for runs of one token, as far as both halves were found."""
    summary, copies = study.summary, study.parts.convergence
    if copies.theory == "none":
        return "What it means for repeats: copies have no reason to end up in the state of a first token here."
    if not study.comes_near:
        return (
            "What it means for repeats: within these copies a long run does not come near the state of a first token, "
            "so nothing that reads this state need take it for one."
        )
    if not summary.found:
        return (
            "What it means for repeats: a long run comes near the state of the token alone, but no neuron was found "
            "that reads being first from that state, so this alone makes no sink."
        )
    return (
        "What it means for repeats: a long run comes near the state of the token alone, and a mark of the first token "
        "is read from that state; what acts on the mark must in the end act on a long run, too. Whether the norm then "
        "grows is asked of the sink and the patch, not here."
    )


def _badges(study: FirstLayerStudy) -> Iterable[Badge]:
    summary = study.summary
    found = "a neuron tells the first token: beyond every null"
    yield Badge("good", found) if summary.found else Badge("none", "a neuron that tells the first token: not found")
    if summary.found:
        yield (
            Badge("good", f"carried by {listed(summary.heads)}")
            if summary.heads
            else Badge("none", "a head that carries it: not found")
        )
    agreed = summary.agrees
    yield Badge("good", "copies: as theory expects") if agreed else Badge("open", "copies: not as theory expects")


def _figures(study: FirstLayerStudy) -> Iterable[ReportFigure]:
    parts = study.parts
    yield ReportFigure(
        "first-mass",
        other_token_mass_figure(parts.mass),
        "Each line is a head of layer 0: the share of its attention that lies on other tokens than the query’s own, by "
        "position. At the first position there is no other token; only above 0 can a head say “not the first”.",
        "where all words differ even a uniform head is near 1 after a few positions.",
    )
    yield ReportFigure(
        "first-detector",
        detector_figure(parts.detectors),
        "What goes into the most telling neuron when the same words stand first, second and third. A detector’s first "
        "histogram stands apart from the other two.",
        "the most telling of many neurons looks telling; the area beside it is that on words it was not chosen with.",
    )
    mark = "detector" if parts.cuts.sink_layer is None else "norm"
    for name in dict.fromkeys(("detector", mark)):
        yield ReportFigure(
            f"first-cuts-{name}",
            head_cuts_figure(parts.cuts, name),
            "What is lost when a head of layer 0 is set to zero or held at its mean, with 95 % intervals; last, all "
            "heads together. A head carries the mark if both kinds of cut cost clearly more than a typical other head.",
            "where there is no mark there is nothing to lose, and points scatter round 0.",
        )
    yield ReportFigure(
        "first-copies",
        convergence_figure(parts.convergence, "layer"),
        "How far copies of a token after a prefix are from the state of the token alone, after layer 0; a straight "
        "line downwards is a power of the number of copies.",
        "distances level off at rounding, and a MLP can make a distance fall faster or slower than the attention.",
    )


def _notes(study: FirstLayerStudy) -> list[tuple[str, str]]:
    parts = study.parts
    seen, copies = parts.detectors, parts.convergence
    return [
        (
            "Other tokens",
            "the sum of a head’s attention over keys whose token is not the query’s own; layer 0, no BOS.",
        ),
        (
            "Neurons",
            f"triples of consecutive tokens without BOS, so that every word is once first, once second and once third; "
            f"chosen with {counted(seen.n_selection, 'token')} of one half of the text and of the vocabulary, judged "
            f"by {counted(seen.n_test, 'token')} of the other. Area under the ROC curve: 0.5 tells nothing, 1 all.",
        ),
        (
            "Nulls",
            f"the whole search with places shuffled within triples ({counted(len(seen.shuffled_aurocs), 'shuffle')}), "
            f"and on copies of the model that know nothing ({len(parts.null_aurocs)}: weights shuffled, weights drawn "
            "anew). Found: the interval of the best neuron lies above all of them.",
        ),
        ("Heads", "each head of layer 0, and all, set to zero and held at the mean; intervals over words, paired."),
        (
            "Copies",
            f"a prefix of {counted(copies.prefix_length, 'token')}, then copies of one token, against that token alone "
            "without BOS; odds of the prefix: its share of attention over that of the copies.",
        ),
    ]
