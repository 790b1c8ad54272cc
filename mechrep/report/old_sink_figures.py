"""Figures of the section on sinks, with how to read them and where they mislead."""

from __future__ import annotations

from mechrep.measures.attention_sinks import sink_heads_figure
from mechrep.measures.sink_norms import norms_by_layer_figure, norms_vs_repeats_figure
from mechrep.report.old_head_words import name_of
from mechrep.report.page import ReportFigure
from mechrep.studies.repeat_behaviour import repeat_behaviour_figure, text_against_repeats_figure
from mechrep.studies.sink_ablation import sink_cause_figure
from mechrep.studies.sinks import SinkStudy


def sink_figures(study: SinkStudy) -> list[ReportFigure]:
    """In the order of the argument: norm, heads, repeats, one head's patterns, cause, behaviour."""
    figures = [_norms(study), _heads(study), _repeats(study), _patterns(study)]
    if study.ablation is not None:
        figures.append(_cause(study))
    if study.behaviour is not None:
        figures.append(_behaviour(study))
    return figures


def _norms(study: SinkStudy) -> ReportFigure:
    return ReportFigure(
        "sink-norms",
        norms_by_layer_figure(study.tables.norms),
        "The length of the residual stream at the first position and elsewhere, layer by layer. A sink is a first "
        "position that rises far above the others in one layer and stays there.",
        "the axis is logarithmic, and all positions grow with depth: what counts is the distance between the lines.",
    )


def _heads(study: SinkStudy) -> ReportFigure:
    return ReportFigure(
        "sink-heads",
        sink_heads_figure(study.tables.heads),
        "Each cell is a head; the number is the share of its attention that goes to the first position, the first "
        "query left out. A head that rests has much, whatever the text.",
        "no model has 0 here, not even one that knows nothing: the best heads of null models stand in the text above.",
    )


def _repeats(study: SinkStudy) -> ReportFigure:
    tables = study.tables
    return ReportFigure(
        "sink-repeats",
        norms_vs_repeats_figure(tables.repeats, tables.layer(study.sink), tables.norms.other_norm, names=study.names),
        "The length of the residual stream at the n-th copy of a token. A line that climbs from the dotted line "
        "(ordinary positions) to the dashed one (BOS) is a token whose copies turn into sinks.",
        "both axes are logarithmic; a line that has not climbed by its last copy might climb later.",
    )


def _patterns(study: SinkStudy) -> ReportFigure:
    tables, head = study.tables, study.sink.best_head
    return ReportFigure(
        "sink-attention",
        text_against_repeats_figure(
            [tables.text_pattern, tables.repeat_pattern],
            [study.text_tokens, study.repeat_tokens],
            head=head,
            name=study.model_name,
        ),
        f"What {name_of(head)}, the head that gives most to the first position, looks at: left the beginning of a "
        "text, right the token whose norm grows most, repeated. A full first column is rest on the first position.",
        "one text and one token; the averages over all of them stand in the text above and in a table below.",
    )


def _cause(study: SinkStudy) -> ReportFigure:
    assert study.ablation is not None
    return ReportFigure(
        "sink-cause",
        sink_cause_figure(study.ablation),
        "Every panel is a measure, the filled mark its change with the sink neurons at zero (95 % interval), the open "
        "marks the same with as many other neurons, one mark per draw. An effect of these neurons lies apart from all "
        "open marks and from the dotted line.",
        "scales differ from panel to panel, and a small change can lie beyond controls that do nothing at all.",
    )


def _behaviour(study: SinkStudy) -> ReportFigure:
    assert study.behaviour is not None
    return ReportFigure(
        "sink-behaviour",
        repeat_behaviour_figure(study.behaviour),
        "Left the probability of one more copy after so many, right the share of tokens that the model leaves off when "
        "it goes on by itself. “none” is the untouched model; others, if any, have neurons at zero: those of the sink, "
        "those that follow in the ranking (matched), random ones.",
        "after one copy nobody expects a repeat; and greedy writing hides how near another token was.",
    )
