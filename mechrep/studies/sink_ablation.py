"""``sink_ablation``: what becomes of norm, attention, language and repetition without the sink neurons?

Conditions: the baseline; all sink neurons set to zero; the first alone, where there are several; and for each of these
the draws of its controls, as many other neurons.  Under every condition the same texts and the same repeated tokens
are read, each in one forward pass.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechrep.ablation.circuit import Circuit
from mechrep.ablation.effects import ABLATION, Effects
from mechrep.ablation.run import Cell, measure_effects
from mechrep.ablation.sink_outcomes import sink_outcomes
from mechrep.ablation.study import Controls, ablation_cells
from mechrep.errors import InputError, NothingFoundError
from mechrep.guards import Several, guarded
from mechrep.measures.sink_neurons import begins_with_bos
from mechrep.measures.sink_norms import other_positions
from mechrep.models.anatomy import Site
from mechrep.models.model import Model
from mechrep.models.reading import read_activations
from mechrep.run import LARGE_WEIGHTS, Run
from mechrep.studies.find_sink import SinkResult, frequent_tokens, ordinary_texts
from mechrep.text.corpus import Corpus
from mechrep.text.stimuli import repeated_tokens
from mechrep.text.token_kinds import draw_tokens

CONTROLS = Controls()
ALL, FIRST = "sink neurons", "first sink neuron"
_TOKENS_PER_BATCH = 4096


def repeated_stimulus(
    model: Model, corpus: Corpus, tokens: Sequence[int | str] | None, repeats: int | None, run: Run
) -> Corpus:
    """Repeated tokens, with BOS where the texts have it; by default drawn at random, of every kind alike.

    Which tokens are repeated decides what they do: the most frequent ones of a text are those that a model knows best.
    How many, and how often, the effort says where it is not given.

    Raises:
        InputError: fewer than two repeats or no tokens, and what ``repeated_tokens`` refuses.
    """
    bos = begins_with_bos(model, corpus)
    n = min(model.anatomy.n_ctx - bos, run.sizes_on(model).repeats) if repeats is None else repeats
    if tokens is None:  # a vocabulary in which no token has a kind has its texts' tokens
        tokens = drawn_tokens(model, run) or frequent_tokens(model, corpus, run.sizes_on(model).tokens)
    if not tokens:
        raise InputError("no token to repeat", "at least one", "pass tokens=, or texts that are not all special tokens")
    return repeated_tokens(model, tokens, n, bos)


def drawn_tokens(model: Model, run: Run) -> list[int]:
    """As many tokens as the effort says, drawn at random, in turn of every kind that the model has.

    Example:
        >>> import mechrep
        >>> model, run = mechrep.load_model("mechrep-tiny"), Run(effort="quick")
        >>> len(drawn_tokens(model, run)) == run.sizes_on(model).tokens
        True
    """
    n = run.sizes_on(model).tokens
    kinds: dict[str, list[int]] = {}
    for token, kind in draw_tokens(model, n, run.seed):
        kinds.setdefault(kind, []).append(token)
    turns = itertools.zip_longest(*kinds.values())
    return [token for turn in turns for token in turn if token is not None][:n]


@guarded
def sink_conditions(
    model: Model,
    neurons: Sequence[tuple[int, int]],
    *,
    first_alone: bool = True,
    controls: Controls | Sequence[str] = CONTROLS,
    run: Run | None = None,
) -> list[Cell]:
    """The baseline, sink neurons set to zero at every position, and as many others as controls.

    Args:
        model: the model.
        neurons: ``(layer, neuron)``, the most important first, for instance ``find_sink(model).top(2)``.
        first_alone: also the first of them alone, where there are several; without draws of its own in large models.
        controls: kinds, or :class:`~mechrep.ablation.study.Controls`; none holds a sink neuron.
        run: options; the effort says how many draws.

    Returns:
        Conditions ``"sink neurons"`` and ``"first sink neuron"`` with their controls, each with what it does.

    Raises:
        InputError: no neurons, ones that the model does not have, or a control that cannot be drawn.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> cells = sink_conditions(model, [(0, 3), (0, 9)], controls=Controls(draws=2))
        >>> [(condition.name, condition.selection) for condition, _ in cells][1:3]
        [('sink neurons', 'ablation'), ('sink neurons', 'layer_matched')]
    """
    every = Circuit(ALL, neurons=neurons)
    circuits = [every]
    if first_alone and len(neurons) > 1:
        circuits.append(Circuit(FIRST, neurons=list(neurons)[:1]))
    wanted = controls if isinstance(controls, Controls) else Controls(tuple(controls))
    wanted = replace(wanted, exclude=[*wanted.exclude, every])
    cells, _ = ablation_cells(model, circuits, ops=["zero"], controls=wanted, when="all", run=run or Run())
    if model.n_weights <= LARGE_WEIGHTS:
        return cells
    # In large models the first alone is told, not tested: its draws would cost as much as all others together.
    return [cell for cell in cells if cell[0].name != FIRST or cell[0].selection == ABLATION]


@guarded
def sink_ablation(
    model: Model,
    sink: SinkResult,
    *,
    texts: Corpus | Sequence[str] | None = None,
    tokens: Sequence[int | str] | None = None,
    repeats: Several | None = None,
    controls: Controls | Sequence[str] = CONTROLS,
    run: Run | None = None,
) -> Effects:
    """Sets sink neurons to zero, at every position, and measures what changes, beside as many other neurons.

    Measures by text (:class:`~mechrep.ablation.sink_outcomes.SinkOnTexts`): ``first_norm``, ``typical_norm``,
    ``attention`` of the best head to the first position, ``loss``; by repeated token
    (:class:`~mechrep.ablation.sink_outcomes.SinkOnRepeats`): ``repeat_norm``, ``continued``, ``p_next``.

    Args:
        model: the model.
        sink: of :func:`~mechrep.studies.find_sink.find_sink`; its ``neurons`` are ablated.
        texts: ordinary texts: a corpus, or texts.  By default up to 100 windows of 64 tokens of held-out English, with
            BOS by the model's habit.
        tokens: ids, or words of one token, to repeat; by default drawn at random, of every kind alike.
        repeats: how often; by default what the effort says, or what the context holds.
        controls: kinds, or :class:`~mechrep.ablation.study.Controls`: ``"layer_matched"``, ``"random"``,
            ``"activation_matched"``, by default matched in the mean absolute activation on the texts, first position
            left out.
        run: options; the effort says how many draws.

    Returns:
        Effects; ``summary()`` has each change with its interval, its controls and its verdict.

    Raises:
        NothingFoundError: the model has no norm sink, so there are no neurons to ablate.
        InputError: a corpus of another model, texts of one token, no tokens to repeat, an unknown control or more
            neurons than a control can match.

    Source: zeroing the neurons and reading norms on repeats is Yona et al. 2025 (arXiv 2503.08908); that language
    suffers is Oh et al. 2024 (arXiv 2410.01866) and Yu et al. 2024 (arXiv 2411.07191).  The other measures, the
    controls and the verdict are mechrep's own.

    Limits: zero can lie far from anything a neuron does.  The neurons were chosen for what they do to the norm, on the
    same default texts, so that the norm falls is no surprise; they were not chosen by the other measures.  No other
    neuron is as active at the first position, so activations are matched at the others.

    Example:
        >>> import dataclasses, mechrep
        >>> from mechrep.models.nulls import reinitialised
        >>> from mechrep.studies.sink_cause import SinkStage
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> texts = ["The sea was calm that day.", "It rained, and it rained."]
        >>> sink = mechrep.find_sink(reinitialised(model), texts=texts)
        >>> sink = dataclasses.replace(sink, stages=[SinkStage.made_by([(0, 3)])])  # any neuron will do for an example
        >>> effects = sink_ablation(model, sink, texts=texts, tokens=[300], repeats=9, controls=Controls(draws=2))
        >>> effects.wide()["selection"].tolist(), effects.measures[0].name
        (['baseline', 'ablation', 'layer_matched', 'layer_matched'], 'first_norm')
    """
    if sink.layer is None or not sink.neurons:
        raise NothingFoundError(
            f"{model.name}: {sink.facts}",
            "a norm sink, whose neurons could be ablated",
            "there is nothing to ablate here; to see what other neurons do, use ablation_study",
        )
    options, corpus = run or Run(), ordinary_texts(model, texts)
    stimulus = repeated_stimulus(model, corpus, tokens, repeats, options)
    wanted = controls if isinstance(controls, Controls) else Controls(tuple(controls))
    if "activation_matched" in wanted.kinds and "activation_matched" not in wanted.match:
        sizes = activation_sizes(model, corpus, sink.layer)
        wanted = replace(wanted, match={**wanted.match, "activation_matched": sizes})
    neurons = sink.top(len(sink.neurons))
    cells = sink_conditions(model, neurons, controls=wanted, run=options)
    outcomes = sink_outcomes(model, corpus, stimulus, sink.layer, sink.best_head, options)
    config = {"study": "sink ablation", "layer": sink.layer, "head": list(sink.best_head)}
    notes = {"excluded": {ALL: "sink neurons"}}
    return measure_effects(model, cells, outcomes, config=config, run=options, notes=notes)


def changed(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of a summary in which the ablation or a draw of its controls changed anything; elsewhere nothing was tested.

    Example:
        >>> from mechrep.ablation.effects import example_effects
        >>> len(changed(example_effects().summary()))
        1
    """
    return rows[(rows[["effect", "low", "high", "control_mean"]].fillna(0) != 0).any(axis=1)]


def activation_sizes(model: Model, corpus: Corpus, layer: int) -> Float[Tensor, "layer neuron"]:
    """Mean absolute activation of a layer's neurons, after the product, first position left out; 0 in other layers."""
    sizes = torch.zeros(model.anatomy.n_layers, model.anatomy.d_mlp, dtype=torch.float64)
    for rows in torch.arange(len(corpus)).split(max(1, _TOKENS_PER_BATCH // corpus.tokens.shape[1])):
        inside = other_positions(corpus.lengths[rows], corpus.tokens.shape[1])

        def add(activation: Tensor, _site: Site, _layer: int, inside: Tensor = inside) -> None:
            sizes[layer] += activation[inside.to(activation.device)].abs().double().sum(0).cpu()

        with model.each_alone(corpus.lengths[rows]):
            read_activations(model, corpus.tokens[rows].to(model.device), {Site.MLP_POST: [layer]}, add)
    return (sizes / (corpus.lengths - 1).sum()).float()
