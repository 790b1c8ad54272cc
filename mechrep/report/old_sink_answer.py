"""The answer of the section on sinks: a paragraph for each question, every sentence from the numbers."""

from __future__ import annotations

import math

from mechrep.ablation.old_sweeps import NO_BREAK, percent
from mechrep.figures import counted
from mechrep.measures.sink_norms import SINK_RATIO
from mechrep.report.old_head_words import listed, name_of
from mechrep.report.old_sink_words import cut_words, effect_sentence, named_neurons
from mechrep.report.page import decimals
from mechrep.studies.sinks import SinkStudy

_JUDGED = ("first_norm", "attention", "losses", "continued", "p_next")


def sink_answer(study: SinkStudy) -> list[str]:
    """Norm, heads, neurons, cause, repeats, attention, behaviour, cluster, what is published."""
    return [
        _norms(study),
        _heads(study),
        _neurons(study),
        _cause(study),
        _repeats(study),
        _attention(study),
        *([_behaviour(study)] if study.behaviour is not None else []),
        _cluster(study),
        _known(study),
    ]


def _first(study: SinkStudy) -> str:
    return "BOS" if study.sink.first_is_bos else "the first token"


def moved_words(study: SinkStudy) -> str:
    """How many repeated tokens come half-way to the first position, or why that cannot be asked."""
    count, tokens, low, high, reason = study.moved()
    copies = f"{study.tables.repeats.repeats[-1]:,} copies"
    if reason:
        return f"whether repeated tokens come to it cannot be asked: {reason}"
    ends = f"95{NO_BREAK}% {percent(low)} to {percent(high)}"
    if not count:
        return f"none of {counted(tokens, 'repeated token')} comes half-way to it within {copies} ({ends})"
    come = "comes" if count == 1 else "come"
    return f"{count} of {counted(tokens, 'repeated token')} {come} at least half-way to it within {copies} ({ends})"


def _norms(study: SinkStudy) -> str:
    sink, null = study.sink, max(study.sink.null_ratios)
    text = (
        f"Norm: at {_first(study)} the residual stream is up to {decimals(sink.bos_ratio)} times as long as elsewhere "
    )
    text += f"({counted(study.tables.norms.n_texts, 'text')}; {counted(len(sink.null_ratios), 'null model')} at most "
    needed, named = sink.provenance.config.get("ratio", SINK_RATIO), "layer" in sink.provenance.config
    text += f"{decimals(null)}; more than {needed:g} was asked for): {'a' if sink.norm_found else 'no'} norm sink."
    place = study.tables.norms.ranking()[0]
    jump, z = float(sink.excess_profile[place]), float(sink.profile_z[place])
    what = "It is made" if sink.norm_found and not named else "The largest jump, no sink, is"
    if named:
        what = f"Layer {sink.provenance.config['layer']} was named as the sink layer; the largest jump is"
    text += f" {what} in layer {place} of {len(sink.profile)}, where the first position grows most beyond the others "
    text += f"({decimals(math.exp(jump))} times as much; {decimals(z, 1)} robust deviations from the median layer). "
    return text + _published(study)


def _published(study: SinkStudy) -> str:
    rule, sink = study.published, study.sink
    if rule.layer is None:
        return f"The published rule names no layer: {rule.reason}."
    if not sink.norm_found:
        return f"The published rule names layer {rule.layer}; it asks for no null model."
    return f"The published rule names layer {rule.layer}, {'the same' if rule.layer == sink.layer else 'another one'}."


def _heads(study: SinkStudy) -> str:
    sink, best = study.sink, study.sink.best_head
    own = f"{name_of(best)} gives it {percent(float(sink.alpha[best]))} of its attention"
    beside = (
        f"best head of any null model {percent(max(sink.null_alphas))}, a uniform head {percent(sink.uniform_alpha)}"
    )
    about = f"in texts of {sink.mean_length:.0f} tokens {own} ({beside})"
    published = f"The published sink rate is {decimals(sink.sink_share, 1)}{NO_BREAK}%."
    if not sink.heads_found:
        return f"Heads: none rests on the first position beyond the null models; {about}. {published}"
    n = f"{len(sink.sink_heads)} of {counted(sink.alpha.numel(), 'head')}"
    return f"Heads: {n} rest on the first position ({listed(sink.sink_heads, 8)}); {about}. {published}"


def _neurons(study: SinkStudy) -> str:
    sink = study.sink
    if not sink.neurons:
        return "Neurons: there is no norm sink, so no neuron is named as its maker."
    text = f"Neurons: {named_neurons(sink.neurons)} (by contribution at the first position). Setting "
    text += f"{'it' if len(sink.neurons) == 1 else 'them'} to zero removes {_whole(sink.removed['neurons'])} of the "
    text += (
        f"excess norm in a few texts; the most effective of five random draws {_whole(sink.removed['random'])}, those "
    )
    text += f"that follow in the ranking {_whole(sink.removed['matched'])}."
    shares = ", ".join(f"{way} {percent(share)}" for way, share in sink.agreement.items())
    return f"{text} Share of them that the other ways to find them name: {shares}." if shares else text


def _whole(share: float) -> str:
    """A share that can lie outside 0 and 1."""
    return f"{decimals(100 * share, 0)}{NO_BREAK}%"


def _cause(study: SinkStudy) -> str:
    result = study.ablation
    if result is None:
        return "What the sink’s neurons cause was not measured: no norm sink, so there is nothing to set to zero."
    summary = result.summary()
    parts = []
    for cut in result.cut_names:
        rows = summary[(summary["cut"] == cut) & summary["measure"].isin(_JUDGED)]
        sentences = "; ".join(effect_sentence(result, row) for _, row in rows.iterrows())
        parts.append(f"With {cut_words(result, cut)} set to zero everywhere: {sentences}.")
    return " ".join(parts)


def _repeats(study: SinkStudy) -> str:
    text = f"Repeated tokens: {moved_words(study)}."
    if study.sink.norm_found:
        rows = study.crossings()
        parts = []
        for row in rows.itertuples(index=False):
            when = f", half of them by copy {row.median:.0f} (first {row.fewest:.0f}, last {row.most:.0f})"
            parts.append(f"{percent(row.tau)} by {row.reached} of {row.tokens}{when if row.reached else ''}")
        text += f" Shares of the norm of {_first(study)} that are reached: {'; '.join(parts)}."
    largest = f"{decimals(study.tables.largest_repeat)} times the typical norm"
    return f"{text} The largest norm at a last copy, over tokens and layers, is {largest}."


def _attention(study: SinkStudy) -> str:
    frame = study.on_stimuli.to_frame().set_index("kind")

    def shown(kind: str) -> str:
        row = frame.loc[kind]
        ends = f"95{NO_BREAK}% {percent(row['low'])} to {percent(row['high'])}"
        return f"{percent(row['mean'])} ({ends}, n = {int(row['texts'])})"

    repeats, others = frame.loc["repeats"], frame.loc[["text", "random"]]
    if repeats["high"] < others["low"].min():
        says = "less in repeats than in either of the others"
    elif repeats["low"] > others["high"].max():
        says = "more in repeats than in either of the others"
    else:
        says = "in repeats it cannot be told from both of the others"
    return (
        f"Attention of {name_of(study.on_stimuli.head)} to the first position, {study.on_stimuli.length} tokens each: "
        f"{shown('text')} in text, {shown('random')} in different random tokens, {shown('repeats')} in repeats of one "
        f"token: {says}. The head was chosen on text, so the first number may flatter it."
    )


def _behaviour(study: SinkStudy) -> str:
    assert study.behaviour is not None
    result = study.behaviour
    frame = result.to_frame()
    last = frame[(frame["condition"] == "none") & (frame["repeats"] == result.repeats[-1])].iloc[0]
    start = frame[(frame["condition"] == "none") & (frame["repeats"] == result.repeats[0])].iloc[0]
    ends = f"95{NO_BREAK}% {percent(last['p_low'])} to {percent(last['p_high'])}"
    left = f"95{NO_BREAK}% {percent(last['diverged_low'])} to {percent(last['diverged_high'])}"
    copies = "copy" if result.repeats[0] == 1 else "copies"
    return (
        f"Can it repeat a token? After {result.repeats[-1]:,} copies the next one has a probability of "
        f"{percent(last['p_next'])} ({ends}, {counted(len(result.token_ids), 'token')}; after {result.repeats[0]} "
        f"{copies} {percent(start['p_next'])}); left to itself the model leaves off within "
        f"{counted(result.new_tokens, 'token')} for {percent(last['diverged'])} of them ({left})."
    )


def _cluster(study: SinkStudy) -> str:
    if study.cluster is None:
        return f"Clusters of different tokens were not tried: {study.cluster_reason}."
    result, layer = study.cluster, study.tables.layer(study.sink)
    n = counted(len(result.random_sets), "random set")
    ours = f"{len(result.cluster)} tokens that the first layer’s output-value weights bring in most alike"
    small = f"p = {decimals(result.p_signal, 3)} that a random set of this size signals other tokens as little"
    large = f"p = {decimals(result.p_norm(layer), 3)} that one comes to so large a norm after layer {layer}"
    return (
        f"A cluster of our own making, not the paper’s, whose algorithm is not known to us: {ours}; {small}, {large} "
        f"({n})."
    )


def _known(study: SinkStudy) -> str:
    if study.known == "unknown":
        return f"Published sinks: none of {study.model_name} is known to us."
    met = "met: same layer, and a published neuron comes first" if study.known == "met" else "not met"
    return f"Published sinks of {study.model_name} are {met}."
