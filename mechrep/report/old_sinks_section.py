"""The section on attention sinks: does the model rest on its first token, what makes it so, what do repeats do?"""

from __future__ import annotations

from mechrep.figures import counted
from mechrep.report.old_sink_answer import moved_words, sink_answer
from mechrep.report.old_sink_figures import sink_figures
from mechrep.report.old_sink_tables import sink_report_tables
from mechrep.report.old_sink_words import control_draws, verdict_of
from mechrep.report.page import Badge, Section, decimals
from mechrep.studies.sink_ablation import ALL
from mechrep.studies.sinks import SinkStudy

_SOURCE = (
    "Sink neurons, repeated tokens and the published rule for the layer: Yona et al. 2025 (arXiv 2503.08908). "
    "Attention to the first token: Xiao et al. 2024 (arXiv 2309.17453); Gu et al. 2025 (arXiv 2410.10781). Null "
    "models, controls, intervals, measures of behaviour and clusters are mechrep’s own."
)


def sinks_section(study: SinkStudy) -> Section:
    """Whether there is a sink, what makes it, what repeats do to a token, and what is lost without the cause."""
    return Section(
        title="Does it rest on its first token, and do repeats become one?",
        anchor="sinks",
        finding=_finding(study),
        answer=sink_answer(study),
        badges=_badges(study),
        figures=sink_figures(study),
        tables=sink_report_tables(study),
        notes=_notes(study),
        limits=_limits(study),
        source=_SOURCE,
    )


def _finding(study: SinkStudy) -> str:
    sink = study.sink
    if not sink.found:
        return (
            f"No attention sink was found in {study.model_name}: neither the norm at the first position nor any head’s "
            "attention to it goes beyond both the thresholds and every null model."
        )
    if not sink.norm_found:
        heads = counted(len(sink.sink_heads), "head")
        return (
            f"In {study.model_name} {heads} of {sink.alpha.numel()} rest on the first position, but its norm is not "
            "that of a sink, so no neurons make one and repeated tokens have nothing to become."
        )
    rests = counted(len(sink.sink_heads), "head") if sink.heads_found else "no head"
    text = f"In {study.model_name} the norm at the first position is {decimals(sink.bos_ratio, 1)} times that of the "
    text += f"others, made in layer {sink.layer}, and {rests} of {sink.alpha.numel()} "
    text += f"{'rests' if len(sink.sink_heads) < 2 else 'rest'} on it; {moved_words(study)}."
    return text


def _badges(study: SinkStudy) -> list[Badge]:
    sink = study.sink
    badges = [
        Badge("good", "norm sink: beyond every null model")
        if sink.norm_found
        else Badge("none", "norm sink: not found"),
        Badge("good", f"{counted(len(sink.sink_heads), 'sink head')}: beyond every null model")
        if sink.heads_found
        else Badge("none", "sink heads: not found"),
    ]
    if study.ablation is not None:
        summary = study.ablation.summary()
        rows = summary[summary["cut"] == ALL].set_index("measure", drop=False)
        names = {"first_norm": "norm without its neurons", "attention": "attention without them"}
        badges += [Badge.of(verdict_of(rows.loc[measure]), name) for measure, name in names.items()]
    return [*badges, _moved_badge(study)]


def _moved_badge(study: SinkStudy) -> Badge:
    count, tokens, low, _, reason = study.moved()
    words = f"repeats that become a sink: {count} of {tokens}"
    if reason:
        return Badge("none", "repeats that become a sink: nothing to become")
    if not count:
        return Badge("none", f"{words}, not found")
    return Badge("good" if low > 0.5 else "open", words)


def _notes(study: SinkStudy) -> list[tuple[str, str]]:
    notes = [
        (
            "Texts",
            f"{counted(study.tables.norms.n_texts, 'window')} of {study.sink.mean_length:.0f} tokens of held-out text"
            f"{', each after BOS' if study.sink.first_is_bos else ', without BOS'}.",
        ),
        (
            "Null models",
            "the same model with shuffled weights and with weights drawn anew; what counts exceeds all of them and a "
            "threshold.",
        ),
        (
            "Repeats",
            f"{counted(len(study.names), 'ordinary token')} drawn at random, built from ids. Half-way is meant on the "
            "log scale, from the typical norm to that of the first position, after the sink layer.",
        ),
    ]
    if study.ablation is None:
        return notes
    result = study.ablation
    return [
        *notes,
        (
            "Cut",
            "activations after the product with the up-projection set to zero at every position, BOS included. Repeats "
            "continued: share of copies of the second half after which the same token is the most probable next one.",
        ),
        (
            "Controls",
            f"{counted(control_draws(result), 'draw')} of as many neurons: random (any), layer-matched (of the sink "
            "layer), activation-matched (of the sink layer, nearly as active at other positions than the first).",
        ),
        ("Beyond controls", "the interval over texts or tokens lies beyond every draw of every control, and beyond 0."),
    ]


def _limits(study: SinkStudy) -> list[str]:
    limits = [
        "A norm sink is not a head sink: a head can rest on the first position without any large norm, and the other "
        "way round.",
        "Attention to the first position falls with the length of the text; compare at equal length only.",
        "A token that has not come half-way within so many copies might with more.",
    ]
    if study.ablation is not None:
        limits += [
            "The neurons were chosen because they make this norm, in the same texts: that the norm falls without them "
            "is no independent finding, what happens to attention, loss and repetition is.",
            "Zero can lie far from anything that a neuron does, and no other neuron is as active at the first position "
            "as these.",
        ]
    return limits
