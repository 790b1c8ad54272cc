"""The tables of the section on the first layer: heads, neurons and copies."""

from __future__ import annotations

from collections.abc import Iterable

from mechrep.figures import counted
from mechrep.report.page import ReportTable, decimals, interval
from mechrep.studies.first_layer import FirstLayerStudy

_ROWS = 16


def first_layer_tables(study: FirstLayerStudy) -> Iterable[ReportTable]:
    """Every head of layer 0, the most telling neurons, every repeated token."""
    yield _heads(study)
    yield _neurons(study)
    yield _copies(study)


def _heads(study: FirstLayerStudy) -> ReportTable:
    mass, cuts = study.parts.mass, study.parts.cuts
    carriers = {head for _, head in study.summary.heads}
    order = mass.ranking()[:_ROWS]
    rows = []
    for head in order:
        row: list[object] = [f"L0 H{head}", float(mass.mass[head]), float(mass.head_shift[head])]
        rows.append([*row, *(_lost(study, op, head) for op in (0, 1)), "yes" if head in carriers else "no"])
    rows.append(["all", "–", "–", *(_lost(study, op, cuts.n_heads) for op in (0, 1)), "–"])
    return ReportTable(
        f"{len(order)} of {counted(len(mass.mass), 'head')} of layer 0",
        ["head", "on other tokens", "shift", "lost at zero [95 %]", "lost at the mean [95 %]", "carries the mark"],
        rows,
        f"On other tokens: share of attention (a uniform head: {decimals(mass.uniform_mass)}). Shift: mean norm of "
        "what the head adds beyond the token’s own value, in units of the residual stream. Lost: area under the ROC "
        "curve of the best neuron.",
    )


def _lost(study: FirstLayerStudy, op: int, head: int) -> str:
    cuts = study.parts.cuts
    low, high = cuts.detector_interval[op, head].tolist()
    return interval(float(cuts.detector_loss[op, head]), low, high, 3, sign=True)


def _neurons(study: FirstLayerStudy) -> ReportTable:
    seen = study.parts.detectors
    clear = {neuron for _, neuron in study.summary.neurons}
    rows = []
    for neuron, (low, high) in zip(seen.neurons, seen.intervals.tolist(), strict=True):
        pairs = [float(seen.first_second[neuron]), float(seen.second_third[neuron]), float(seen.score[neuron])]
        verdict = "beyond every null" if neuron in clear else "not beyond nulls"
        rows.append([neuron, interval(float(seen.auroc[neuron]), low, high, 3), *pairs, verdict])
    nulls = ", ".join(decimals(area, 3) for area in study.summary.null_aurocs)
    return ReportTable(
        f"The {len(rows)} most telling neurons of layer {seen.layer}",
        ["neuron", "area [95 %]", "first, second", "second, third", "published score", "verdict"],
        rows,
        f"Areas under the ROC curve on words that the neurons were not chosen with. Nulls: shuffled places at most "
        f"{decimals(seen.null_auroc, 3)}, null models {nulls or 'none'}; the best of {len(seen.random_aurocs)} neurons "
        f"taken blindly {decimals(max(seen.random_aurocs), 3)}.",
    )


def _copies(study: FirstLayerStudy) -> ReportTable:
    copies = study.parts.convergence
    attention, layer = copies.relative("attention"), copies.relative("layer")
    rows = [
        [
            f"token {token}",
            *(float(place[text, index]) for place in (attention, layer) for index in (0, -1)),
            float(copies.head_slope[text].nanmedian()),
            float(copies.pure_deviation[text].max()),
        ]
        for text, token in enumerate(copies.token_ids[:_ROWS])
    ]
    last = f"copy {copies.repeats[-1]:,}"
    return ReportTable(
        f"Copies of {counted(len(rows), 'token')} against each token alone",
        [
            "token",
            "attention 0, copy 1",
            f"attention 0, {last}",
            "layer 0, copy 1",
            f"layer 0, {last}",
            "slope",
            "pure run",
        ],
        rows,
        "Distances over the norm of the state of the token alone. Slope: of the odds of the prefix against the number "
        "of copies, log-log, median over heads. Pure run: largest relative difference between positions of a run "
        "without prefix, at any depth.",
    )
