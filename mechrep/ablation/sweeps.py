"""Deactivation and activation sweeps: ablate neurons from the onset of loops, boost them on loop-free texts.

Every text under every condition is one row of one batch; nothing is run twice and a text whose question is answered
stops.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from jaxtyping import Float
from torch import Tensor

from mechrep.ablation.circuit import Circuit
from mechrep.ablation.effects import Effects
from mechrep.ablation.outcomes import (
    HeldOutLoss,
    LoopDecoding,
    Outcome,
    Regeneration,
    loop_free_texts,
    looping_texts,
    unseen,
)
from mechrep.ablation.run import measure_effects
from mechrep.ablation.study import Controls, ablation_cells
from mechrep.errors import InputError
from mechrep.guards import Some, Whole, guarded
from mechrep.interventions.ops import Op
from mechrep.measures.neurons import RepetitionNeuronResult
from mechrep.models.model import Model
from mechrep.results import check_same_model
from mechrep.run import Run
from mechrep.text.corpus import Corpus

NAME = "repetition neurons"
Unit = tuple[int, int]
Neurons = RepetitionNeuronResult | Sequence[Unit]


@guarded
def deactivation_sweep(
    model: Model,
    corpus: Corpus,
    *,
    neurons: Neurons,
    ks: Some[Whole],
    op: Op | str = "zero",
    controls: Controls | Sequence[str] = ("layer_matched",),
    decoding: LoopDecoding | None = None,
    run: Run | None = None,
) -> Effects:
    """Stop every looping text at its onset, change neurons from there on, and see whether it still repeats.

    The prompt is ``ids[:onset]``; the edit is active from ``onset - 1``, the position that predicts the onset token;
    greedy decoding.  The baseline is always run: what it loses is numerical noise and texts whose loop was ending
    anyway.

    Args:
        model: the model.
        corpus: texts with ``onset`` (others are left out); those on which a result's neurons were found are left out
            too, except under the preset ``"hiraoka2025"``, which tests on the texts it searched.
        neurons: a :class:`RepetitionNeuronResult` or a ranked list of ``(layer, neuron)``.
        ks: numbers of neurons.
        op: ``"zero"`` as published, or any operation.
        controls: kinds of controls, or :class:`~mechrep.ablation.study.Controls`.
        decoding: detector preset, tokens to write (published: 160), whether a text stops early.
        run: options; the effort says how many draws.

    Returns:
        Effects with the measures ``still_repeating``, ``escaped``, ``tokens_to_escape``, ``relooped``, ``new_period``;
        ``wide()`` has one row per condition with counts.

    Raises:
        InputError: ``k`` larger than the number of neurons, a control that cannot be drawn, another model's corpus or
            neurons, a loop that does not lie in its text.
        NothingFoundError: no text with an onset is left.

    Source: Hiraoka & Inui 2025 (arXiv 2410.13497), section on deactivation.

    Limits: zeroing may push a layer off the activations it ever sees; compare controls, and ``mean`` or ``resample``.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> texts = mechrep.Corpus.from_tokens([[0, *range(30, 60), *[9, 8, 7, 6, 5] * 6]], model=model).with_cycles()
        >>> sweep = deactivation_sweep(model, texts, neurons=[(3, 1), (3, 2)], ks=[2], controls=())
        >>> sweep.wide()[["selection", "k", "texts", "still_repeating"]].values.tolist()[0][:3]
        ['baseline', 0, 1]
    """
    how = decoding or LoopDecoding()
    corpus.check_model(model)
    if isinstance(neurons, RepetitionNeuronResult) and how.preset != "hiraoka2025":
        corpus = unseen(corpus, set(neurons.texts))
    texts, loops = looping_texts(corpus)
    outcome = Regeneration("still_repeating", model, texts, [loop.onset for loop in loops], loops, how)
    return _sweep(model, outcome, "deactivation", neurons, ks, op, controls, run)


@guarded
def activation_sweep(
    model: Model,
    corpus: Corpus,
    *,
    neurons: Neurons,
    ks: Some[Whole],
    op: Op | str = "add",
    controls: Controls | Sequence[str] = ("layer_matched",),
    decoding: LoopDecoding | None = None,
    run: Run | None = None,
) -> Effects:
    """Stop loop-free texts after 50 tokens (as published), boost neurons from there on, and see whether a loop begins.

    As :func:`deactivation_sweep`, with ``a + 1`` (published) instead of zero, and the measure ``newly_repeating``.
    Plus 1 is not on one scale for all neurons; ``mechrep.interventions.add(2 * result.normal_sd)`` is.

    Args:
        model: the model.
        corpus: loop-free texts (those with an onset, and those of fewer than 50 tokens, are left out).
        neurons: a result or a ranked list of ``(layer, neuron)``.
        ks: numbers of neurons.
        op: ``"add"`` (+1) as published, or any operation.
        controls: as there.
        decoding: as there.
        run: options.

    Raises:
        InputError: as in :func:`deactivation_sweep`.
        NothingFoundError: no loop-free text of 50 tokens.

    Source: Hiraoka & Inui 2025 (arXiv 2410.13497), section on activation.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> story = "It was a fine day, and the sun stood high over the little town, where nobody slept. "
        >>> story += "Then the old king went down to the harbour with his two sons, to see the ships come home."
        >>> texts = mechrep.Corpus.from_texts([story], model=model)
        >>> sweep = activation_sweep(model, texts, neurons=[(3, 1)], ks=[1], controls=())
        >>> sweep.wide()["k"].tolist()
        [0, 1]
    """
    corpus.check_model(model)
    how = decoding or LoopDecoding()
    texts = loop_free_texts(model, corpus, how.prompt_length)
    outcome = Regeneration("newly_repeating", model, texts, [how.prompt_length] * len(texts), None, how)
    return _sweep(model, outcome, "activation", neurons, ks, op, controls, run)


@guarded
def loss_sweep(
    model: Model,
    corpus: Corpus,
    *,
    neurons: Neurons,
    ks: Some[Whole],
    op: Op | str = "zero",
    controls: Controls | Sequence[str] = ("layer_matched",),
    run: Run | None = None,
) -> Effects:
    """Loss on held-out windows, nats per token, under the conditions of a sweep: what does the change cost elsewhere?

    Args:
        model: the model.
        corpus: windows made by :func:`mechrep.text.windows.windows_of_text`.
        neurons: a result or a ranked list of ``(layer, neuron)``.
        ks: numbers of neurons.
        op: the operation.
        controls: as in :func:`deactivation_sweep`.
        run: options.

    Raises:
        InputError: as in :func:`deactivation_sweep`, or windows of different lengths.

    Source: the direction (deactivation costs little, activation costs much) is Hiraoka & Inui 2025 (arXiv
    2410.13497); window length, stride and scored half are mechrep's own, the paper's are not known to us.

    Example:
        >>> import mechrep
        >>> from mechrep.models import tiny
        >>> from mechrep.text.windows import windows_of_text
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> windows = windows_of_text(model, tiny.held_out_text(), length=64, limit=4)
        >>> loss_sweep(model, windows, neurons=[(3, 1)], ks=[1], controls=()).wide()["selection"].tolist()
        ['baseline', 'ablation']
    """
    return _sweep(model, HeldOutLoss(model, corpus), "loss", neurons, ks, op, controls, run)


def rankings(name: str, ks: Sequence[int], **units: Sequence[Unit]) -> list[Circuit]:
    """The first ``k`` of a ranking for every ``k``, as circuits of one name.

    Args:
        name: of all.
        ks: sizes; 0, the baseline, is left out.
        units: one of ``neurons=`` and ``heads=``, the strongest first.

    Raises:
        InputError: no size, or one larger than the ranking.

    Example:
        >>> [len(one) for one in rankings("heads", [0, 1, 3], heads=[(2, 1), (3, 0), (1, 1)])]
        [1, 3]
    """
    ((kind, ranking),) = units.items()
    try:
        numbers = sorted({operator.index(k) for k in ks})
    except TypeError:
        numbers = []
    if not numbers or numbers[0] < 0 or numbers[-1] > len(ranking):
        raise InputError(
            f"ks={list(ks)}", f"numbers from 0 to {len(ranking)}, the {kind} given", "lower k or rank more"
        )
    parts: list[tuple[int, dict[str, Any]]] = [(k, {kind: ranking[:k]}) for k in numbers if k]
    return [Circuit(name, found=f"the first {k}", **part) for k, part in parts]


def _sweep(
    model: Model,
    outcome: Outcome,
    kind: str,
    neurons: Neurons,
    ks: Sequence[int],
    op: Op | str,
    controls: Controls | Sequence[str],
    run: Run | None,
) -> Effects:
    options, when = run or Run(), "last" if outcome.regenerates else "all"
    wanted = controls if isinstance(controls, Controls) else Controls(tuple(controls))
    if isinstance(neurons, RepetitionNeuronResult):
        check_same_model(neurons, model)
        matched: Mapping[str, Float[Tensor, "layer unit"]] = {"activation_matched": neurons.normal_mean}
        wanted = replace(wanted, match={**matched, **wanted.match})
    circuits = rankings(NAME, ks, neurons=as_ranking(neurons))
    if wanted.draws is None and outcome.regenerates:  # the engine measures no more of them
        wanted = replace(wanted, draws=options.sizes_on(model).regenerated_draws)
    if not circuits:
        wanted = replace(wanted, kinds=())
    cells, notes = ablation_cells(model, circuits, ops=[op], controls=wanted, when=when, run=options)
    return measure_effects(model, cells, [outcome], config={"study": kind}, run=options, notes=notes)


def as_ranking(neurons: Neurons) -> list[Unit]:
    """The ranked units of a result, or the list itself.

    Raises:
        InputError: an empty list, or one of other things than pairs.
    """
    if isinstance(neurons, RepetitionNeuronResult):
        return neurons.ranking()
    try:
        ranking = [(operator.index(layer), operator.index(neuron)) for layer, neuron in neurons]
    except (TypeError, ValueError):
        ranking = []
    if not ranking:
        raise InputError(
            f"neurons={list(neurons)[:3]}", "a ranked list of (layer, neuron), or a result", "pass result.top(k)"
        )
    return ranking
