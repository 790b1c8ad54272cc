"""Tables of the section on sinks."""

from __future__ import annotations

import math

from mechrep.figures import counted, style_of
from mechrep.report.old_head_words import name_of
from mechrep.report.old_sink_words import cut_words, measure_name, neuron_name, shown_change, shown_value, verdict_of
from mechrep.report.page import ReportTable, decimals
from mechrep.studies.sink_ablation import CUT, MEASURES, UNTOUCHED
from mechrep.studies.sinks import SinkStudy

_NEURONS, _HEADS = 10, 10  # rows
_CONTROLS = {"random": "random", "layer_matched": "layer-matched", "activation_matched": "activation-matched"}


def sink_report_tables(study: SinkStudy) -> list[ReportTable]:
    """Layers, heads, neurons, the cut, kinds of text, behaviour, cluster; each where it was measured."""
    tables = [_layers(study), _heads(study)]
    if study.tables.neurons is not None:
        tables.append(_neurons(study))
    if study.ablation is not None:
        tables.append(_causes(study))
    tables.append(_stimuli(study))
    if study.behaviour is not None:
        tables.append(_behaviour(study))
    if study.cluster is not None:
        tables.append(_cluster(study))
    return tables


def _layers(study: SinkStudy) -> ReportTable:
    sink, frame, norms = study.sink, study.tables.by_layer(), study.published.mlp_norms
    rows = []
    for layer, row in enumerate(frame.itertuples(index=False)):
        written = decimals(float(norms[layer])) if norms is not None and layer < len(norms) else "–"
        numbers = [row.first, row.typical, row.ratio, math.exp(float(sink.excess_profile[layer]))]
        numbers += [float(sink.profile_z[layer]), row[4], row[5]]
        rows.append([layer, *(decimals(float(number)) for number in numbers), written])
    head = ["layer", "first position", "others", "ratio", "growth beyond the others’", "deviations"]
    head += ["last copy, median", "last copy, largest", "MLP writes at BOS"]
    return ReportTable(
        "Norms after each layer",
        head,
        rows,
        "Growth: factor by which the first position’s norm grows in the layer beyond that of the other positions "
        "(largest: the sink layer, where there is a sink); deviations: robust deviations from the median layer. Last "
        f"copy: of {counted(len(study.names), 'token')}. The last column is what the published rule looks at.",
    )


def _heads(study: SinkStudy) -> ReportTable:
    frame = study.tables.heads.to_frame().head(_HEADS)
    resting = {tuple(head) for head in study.sink.sink_heads}
    rows = [
        [
            name_of((int(row.layer), int(row.head))),
            decimals(row.alpha),
            decimals(row.rate),
            decimals(row.row_entropy),
            "rests" if (row.layer, row.head) in resting else "no",
        ]
        for row in frame.itertuples(index=False)
    ]
    return ReportTable(
        f"Attention to the first position: {len(rows)} of {counted(study.sink.alpha.numel(), 'head')}",
        [
            "head",
            "share of attention",
            "texts above the published threshold",
            "entropy of rows",
            "counts as a sink head",
        ],
        rows,
        f"A uniform head has {decimals(study.sink.uniform_alpha)}; the best heads of the null models "
        f"{', '.join(decimals(value) for value in study.sink.null_alphas)}. Entropy: 1 is uniform.",
    )


def _neurons(study: SinkStudy) -> ReportTable:
    assert study.tables.neurons is not None
    frame, chosen = study.tables.neurons.to_frame().head(_NEURONS), {tuple(unit) for unit in study.sink.neurons}
    rows = [
        [
            neuron_name((int(row.layer), int(row.neuron))),
            decimals(row.contribution_first),
            decimals(row.authors_first),
            decimals(row.bos_only_first),
            "yes" if (row.layer, row.neuron) in chosen else "no",
        ]
        for row in frame.itertuples(index=False)
    ]
    return ReportTable(
        f"Neurons that write most at the first position: {len(rows)} of layer {study.tables.neurons.layer}",
        ["neuron", "contribution", "by the gate alone", "activation", "sink neuron"],
        rows,
        "Contribution: absolute activation times the norm of the output row. By the gate alone: the published score, "
        "which ignores activation function and up-projection.",
    )


def _causes(study: SinkStudy) -> ReportTable:
    result = study.ablation
    assert result is not None
    summary = result.summary()
    controls = [name for name in dict.fromkeys(result.selections) if name not in (UNTOUCHED, CUT)]
    rows = []
    for _, row in summary.iterrows():
        measure, cut = str(row["measure"]), str(row["cut"])
        ends = f"{shown_change(measure, row['low'])} to {shown_change(measure, row['high'])}"
        drawn = result.draws(cut, measure)
        beside = [
            f"{shown_change(measure, min(drawn[name]))} to {shown_change(measure, max(drawn[name]))}"
            if name in drawn
            else "–"
            for name in controls
        ]
        values = [shown_value(measure, row["untouched"]), shown_value(measure, row["value"])]
        change = [shown_change(measure, row["change"]), "all alike" if row["alike"] else ends, int(row["n"])]
        what = measure_name(result, measure)
        rows.append([cut_words(result, cut), what, *values, *change, *beside, verdict_of(row)])
    names = [_CONTROLS.get(name, style_of(name).label) for name in controls]
    return ReportTable(
        "Sink neurons at zero, beside controls",
        ["at zero", "measure", "untouched", "without", "change", "95 % interval", "n", *names, "verdict"],
        rows,
        f"Changes of shares in points (norms and loss in their own units); of controls the range over draws. Repeats: "
        f"{counted(len(result.token_ids), 'token')}, {result.repeats:,} copies each. {len(MEASURES)} measures are "
        "looked at, and intervals are not corrected for that.",
    )


def _stimuli(study: SinkStudy) -> ReportTable:
    names = {"text": "ordinary text", "random": "different random tokens", "repeats": "one token, repeated"}
    rows = [
        [names[row.kind], row.texts, decimals(row.mean), f"{decimals(row.low)} to {decimals(row.high)}"]
        for row in study.on_stimuli.to_frame().itertuples(index=False)
    ]
    head = name_of(study.on_stimuli.head)
    return ReportTable(
        f"Attention of {head} to the first position in texts of {study.on_stimuli.length} tokens",
        ["text", "n", "share of attention", "95 % interval"],
        rows,
    )


def _behaviour(study: SinkStudy) -> ReportTable:
    assert study.behaviour is not None
    frame = study.behaviour.to_frame()
    rows = [
        [
            row.condition,
            row.repeats,
            decimals(row.p_next),
            f"{decimals(row.p_low)} to {decimals(row.p_high)}",
            decimals(row.p_change, 3, sign=True),
            f"{decimals(row.p_change_low, 3, sign=True)} to {decimals(row.p_change_high, 3, sign=True)}",
            decimals(row.run, 1),
            decimals(row.diverged),
            f"{decimals(row.diverged_low)} to {decimals(row.diverged_high)}",
        ]
        for row in frame.itertuples(index=False)
    ]
    head = ["at zero", "copies given", "next copy", "95 %", "change", "95 % ", "copies written", "left off", "95 %  "]
    return ReportTable(
        f"Repeating {counted(len(study.behaviour.token_ids), 'token')}",
        head,
        rows,
        f"Next copy: its probability. Copies written: greedily, at most {study.behaviour.new_tokens}. Left off: share "
        "of tokens with fewer. Change: of the next copy’s probability, against the untouched model, token by token.",
    )


def _cluster(study: SinkStudy) -> ReportTable:
    assert study.cluster is not None
    layer = study.tables.layer(study.sink)
    rows = [
        [
            row.kind,
            row.texts,
            decimals(row.diameter),
            f"{decimals(row.signal)} [{decimals(row.signal_low)} to {decimals(row.signal_high)}]",
            f"{decimals(row.norm)} [{decimals(row.norm_low)} to {decimals(row.norm_high)}]",
        ]
        for row in study.cluster.to_frame(layer).itertuples(index=False)
    ]
    return ReportTable(
        "A cluster of different tokens (ours) beside random sets and plain repeats",
        ["tokens", "texts", "diameter", "other-token signal", f"norm after layer {layer}"],
        rows,
        "Signal: distance of layer 0’s attention output at the last position from the token’s own value; it is small "
        "where nothing else seems to be there. Brackets: 95 % over orders of the cluster, over random sets.",
    )
