"""``sink_cut_study``: what becomes of norm, attention, language and repetition when the sink neurons are set to zero?

Conditions: nothing; all sink neurons; the first alone, where there are several; and for each of these cuts, several
times each, as many random neurons of the model, random ones of the sink layer, and ones of the sink layer that are as
active on ordinary text.  Under every condition the same texts and the same repeated tokens are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechrep.analyzers.sinks.norms import norms_of, other_positions
from mechrep.analyzers.sinks.result import SinkResult
from mechrep.errors import NothingFoundError
from mechrep.interventions.neurons import Neurons
from mechrep.models.anatomy import Site
from mechrep.models.model import Model
from mechrep.models.reading import choose_view, read_activations
from mechrep.progress import progress_bar
from mechrep.provenance import provenance_of
from mechrep.studies.controls import CONTROLS, Unit, as_seeds
from mechrep.studies.sink_ablation_result import ALL, CUT, FIRST, UNTOUCHED
from mechrep.studies.sink_ablation_result import SinkCutResult as SinkCutResult
from mechrep.studies.sink_measures import (
    TOKENS_PER_BATCH,
    Editing,
    control_cells,
    edited,
    ordinary_texts,
    predictions,
    repeated_stimulus,
    second_half,
    text_losses,
    untouched,
)
from mechrep.text.corpus import Corpus

_Condition = tuple[str, str, int, tuple[Unit, ...]]  # cut, selection, seed, units


@torch.no_grad()
def sink_cut_study(
    model: Model,
    sink: SinkResult,
    *,
    texts: Corpus | Sequence[str] | None = None,
    tokens: Sequence[int | str] | None = None,
    repeats: int | None = None,
    controls: Sequence[str] = CONTROLS,
    seeds: int | Sequence[int] = 3,
    progress: bool | None = None,
) -> SinkCutResult:
    """Sets sink neurons to zero, at every position, and measures what changes, beside as many other neurons.

    Args:
        model: the model.
        sink: of :func:`~mechrep.analyzers.sinks.find_sink.find_sink`; its ``neurons`` are cut.
        texts: ordinary texts for norms, attention and loss: a corpus, or texts.  By default up to 100 windows of 64
            tokens of held-out English, with BOS by the model's habit.
        tokens: ids, or words of one token, to repeat; by default the 16 most frequent ones of the texts.
        repeats: how often; by default 512, or what the context holds.
        controls: ``"random"``, ``"layer_matched"``, ``"activation_matched"``; the last matches the mean absolute
            activation on the texts, first position left out.
        seeds: number of draws of each control, or the seeds.
        progress: show a progress bar.

    Returns:
        Measures per condition; ``summary()`` has each change with its interval, its controls, and whether it lies
        beyond them.

    Raises:
        NothingFoundError: the model has no norm sink, so there are no neurons to cut.
        InputError: a corpus of another model, texts of one token, no tokens to repeat, an unknown control or more
            neurons than a control can match.

    Source: zeroing the neurons and reading norms on repeats is Yona et al. 2025 (arXiv 2503.08908); that language
    suffers is Oh et al. 2024 (arXiv 2410.01866) and Yu et al. 2024 (arXiv 2411.07191).  The other measures, the
    controls and the intervals are mechrep's own.

    Limits: zero can lie far from anything a neuron does.  The neurons are those that were chosen for what they do to
    the norm, on the same default texts, so that the norm falls is no surprise; the other measures had no say.  No
    other neuron is as active at the first position, so activations are matched at the others.  "Continued" reads the
    most probable token after true copies.

    Example:
        >>> import dataclasses, mechrep
        >>> from mechrep.models.nulls import reinitialised
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> texts = ["The sea was calm that day.", "It rained, and it rained."]
        >>> sink = mechrep.find_sink(reinitialised(model), texts=texts)
        >>> sink = dataclasses.replace(sink, layer=0, neurons=[[0, 3]])  # any neuron will do for an example
        >>> result = sink_cut_study(model, sink, texts=texts, tokens=[300], repeats=9, seeds=1, progress=False)
        >>> list(result.selections), result.summary()["measure"].tolist()[0]
        (['none', 'top', 'random', 'layer_matched', 'activation_matched'], 'first_norm')
    """
    if sink.layer is None or not sink.neurons:
        raise NothingFoundError(
            f"{model.name}: {sink.reason}",
            "a norm sink, whose neurons could be cut",
            "there is nothing to cut here; to see what other neurons do, use ablation_study",
        )
    corpus = ordinary_texts(model, texts)
    stimulus = repeated_stimulus(model, corpus, tokens, repeats)
    view = choose_view(model, {Site.RESID_POST, Site.MLP_POST, Site.PATTERN})
    conditions = _conditions(model, sink, controls, as_seeds(seeds), corpus, view)
    measured = []
    with progress_bar(len(conditions), "cutting sink neurons", "condition", progress) as bar:
        for *_, units in conditions:
            cut = Neurons(units, "zero", site=Site.MLP_POST, when="all") if units else None
            editing = partial(edited, model, cut, view)
            measured.append(_measure(model, corpus, stimulus, sink, view, editing))
            bar.update(1)
    config = {
        "study": "sink cuts",
        "controls": list(controls),
        "conditions": [[cut, name, seed, [list(unit) for unit in units]] for cut, name, seed, units in conditions],
        "stimulus": stimulus.fingerprint(),
    }
    return SinkCutResult(
        provenance_of(model, corpus, config),
        layer=sink.layer,
        neurons=[neuron for _, neuron in sink.neurons],
        cuts=[cut for cut, *_ in conditions],
        selections=[selection for _, selection, *_ in conditions],
        seeds=[seed for *_, seed, _ in conditions],
        units=[[list(unit) for unit in units] for *_, units in conditions],
        token_ids=[int(token) for token in stimulus.frame["token_id"]],
        repeats=int(stimulus.frame["repeats"].iloc[0]),
        bos=bool(stimulus.frame["bos"].iloc[0]),
        head=list(sink.best_head),
        **{name: torch.stack([each[name] for each in measured]).float() for name in measured[0]},
    )


def _conditions(
    model: Model, sink: SinkResult, controls: Sequence[str], seeds: Sequence[int], corpus: Corpus, view: Any
) -> list[_Condition]:
    """The untouched model, then every cut with its own controls, which are as large as it is."""
    assert sink.layer is not None
    neurons = [neuron for _, neuron in sink.neurons]
    cuts = {ALL: neurons} | ({FIRST: neurons[:1]} if len(neurons) > 1 else {})
    conditions: list[_Condition] = [(UNTOUCHED, UNTOUCHED, 0, ())]
    for name, cut in cuts.items():
        conditions.append((name, CUT, 0, tuple((sink.layer, neuron) for neuron in cut)))
        cells = control_cells(model, sink.layer, cut, controls, seeds, corpus, view)
        conditions += [(name, *cell) for cell in cells]
    return conditions


def _measure(
    model: Model, corpus: Corpus, stimulus: Corpus, sink: SinkResult, view: Any, editing: Editing
) -> dict[str, Tensor]:
    """Every measure under one condition, by the name of its field."""
    assert sink.layer is not None
    half, continued, p_next = second_half(stimulus), [], []
    for _, hits, scores in predictions(model, stimulus, view, editing):
        continued.append(hits[:, half:].double().mean(1))
        p_next.append(scores[:, half:].double().exp().mean(1))
    norms, last = (_norms(model, texts, sink.layer, view, editing) for texts in (corpus, stimulus))
    return {
        "first_norm": norms[:, 0],
        "typical_norm": norms[:, 1],
        "repeat_norm": last[:, 2],
        "attention": attention_to_first(model, corpus, sink.best_head, view, editing),
        "losses": text_losses(model, corpus, view, editing),
        "continued": torch.cat(continued),
        "p_next": torch.cat(p_next),
    }


def _norms(
    model: Model, corpus: Corpus, layer: int, view: Any, editing: Editing
) -> Float[Tensor, "text first_others_last"]:
    """Per text the norm after ``layer`` at the first position, the mean at the others, and at the last one."""
    found = torch.zeros(len(corpus), 3, dtype=torch.float64)

    def receive(rows: Tensor, residual: Tensor) -> None:
        norms, lengths = norms_of(residual).cpu().double(), corpus.lengths[rows]
        others = other_positions(lengths, norms.shape[1])
        mean = (norms * others).sum(1) / others.sum(1)
        found[rows] = torch.stack([norms[:, 0], mean, norms[torch.arange(len(rows)), lengths - 1]], dim=1)

    _read(model, corpus, Site.RESID_POST, layer, view, editing, receive)
    return found


@torch.no_grad()
def attention_to_first(
    model: Model, corpus: Corpus, head: tuple[int, int], view: Any, editing: Editing = untouched
) -> Float[Tensor, " text"]:
    """Mean attention of one ``(layer, head)`` to the first position, per text, over all queries but the first.

    Args:
        model: the model.
        corpus: short texts of at least two tokens: patterns are read whole.
        head: the head.
        view: ``"auto"``, or one of the two views by name.
        editing: what to hold open while a batch is read; nothing by default.
    """
    found = torch.zeros(len(corpus), dtype=torch.float64)

    def receive(rows: Tensor, pattern: Tensor) -> None:
        column = pattern[:, head[1], :, 0].float().cpu().double()
        others = other_positions(corpus.lengths[rows], column.shape[1])
        found[rows] = (column * others).sum(1) / others.sum(1)

    _read(model, corpus, Site.PATTERN, head[0], view, editing, receive)
    return found


def _read(model: Model, corpus: Corpus, site: Site, layer: int, view: Any, editing: Editing, receive: Any) -> None:
    """Hand over one site of one layer, batch by batch."""
    for rows in torch.arange(len(corpus)).split(max(1, TOKENS_PER_BATCH // corpus.tokens.shape[1])):
        tokens = corpus.tokens[rows].to(model.device)

        def hand_over(activation: Tensor, _site: Site, _layer: int, rows: Tensor = rows) -> None:
            receive(rows, activation)

        with editing(tokens):
            read_activations(model, tokens, {site: [layer]}, hand_over, view=view)
