"""What the patch study still reads in the old way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechrep.ablation.old_controls import CONTROLS, Unit, _nearest, control_units
from mechrep.errors import InputError
from mechrep.measures.sink_norms import other_positions
from mechrep.models.anatomy import Site
from mechrep.models.model import Model
from mechrep.models.reading import read_activations
from mechrep.text.corpus import Corpus

_LOGITS_PER_BATCH = 2**24
TOKENS_PER_BATCH = 4096

Cell = tuple[str, int, tuple[Unit, ...]]
Editing = Callable[[Tensor], AbstractContextManager[None]]


def untouched(_tokens: Tensor) -> AbstractContextManager[None]:
    """No edit at all."""
    return nullcontext()


def control_cells(
    model: Model,
    layer: int,
    neurons: Sequence[int],
    controls: Sequence[str],
    seeds: Sequence[int],
    corpus: Corpus,
    view: Any,
) -> list[Cell]:
    """Every control of some neurons of one layer from every seed: its name, the seed, the units.

    Activation-matched ones have nearly the same mean absolute activation (after the product) in the texts, at all
    positions but the first.

    Raises:
        InputError: an unknown control or one twice, or more neurons than a control can match.
    """
    unknown = set(controls) - set(CONTROLS)
    if unknown or len(set(controls)) < len(controls):
        raise InputError(f"controls={list(controls)}", f"some of {CONTROLS}, each once", "choose among these")
    cells: list[Cell] = []
    sizes = _sizes(model, corpus, layer, view) if "activation_matched" in controls else np.zeros(0)
    shape: dict[str, Any] = {"n_layers": model.anatomy.n_layers, "d_mlp": model.anatomy.d_mlp}
    units = [(layer, neuron) for neuron in neurons]
    for control in controls:
        for seed in seeds:
            if control != "activation_matched":
                drawn = control_units(control, units, **shape, seed=seed)
            else:
                # Asked first, because it refuses a layer in which too few neurons are left.
                control_units("layer_matched", units, **shape, seed=seed)
                free = np.setdiff1d(np.arange(shape["d_mlp"]), neurons)
                generator = np.random.default_rng([seed, CONTROLS.index(control), len(neurons)])
                drawn = [(layer, n) for n in sorted(_nearest(sizes, neurons, free, generator))]
            cells.append((control, seed, tuple(drawn)))
    return cells


def _sizes(model: Model, corpus: Corpus, layer: int, view: Any) -> np.ndarray:
    """Mean absolute activation of every neuron of the layer, after the product, at all positions but the first."""
    total = torch.zeros(model.anatomy.d_mlp, dtype=torch.float64)
    for rows in torch.arange(len(corpus)).split(max(1, TOKENS_PER_BATCH // corpus.tokens.shape[1])):
        inside = other_positions(corpus.lengths[rows], corpus.tokens.shape[1])

        def add(activation: Tensor, _site: Site, _layer: int, inside: Tensor = inside) -> None:
            nonlocal total
            total += activation[inside.to(activation.device)].abs().double().sum(0).cpu()

        read_activations(model, corpus.tokens[rows].to(model.device), {Site.MLP_POST: [layer]}, add, view=view)
    return (total / (corpus.lengths - 1).sum()).numpy()


def predictions(
    model: Model, corpus: Corpus, view: str, editing: Editing = untouched
) -> Iterator[tuple[Int[Tensor, " text"], Bool[Tensor, "text pos"], Float[Tensor, "text pos"]]]:
    """Batches: lengths; whether each next token is the most probable one; its log-probability."""
    width = corpus.tokens.shape[1]
    for rows in torch.arange(len(corpus)).split(max(1, _LOGITS_PER_BATCH // (width * model.anatomy.d_vocab))):
        tokens = corpus.tokens[rows].to(model.device)
        with editing(tokens):
            logits: Float[Tensor, "text pos d_vocab"] = model.plain_logits(tokens) if view == "plain" else model(tokens)
        logits, following = logits[:, :-1].float(), tokens[:, 1:].to(logits.device)
        scores = logits.gather(-1, following[..., None]).squeeze(-1) - logits.logsumexp(-1)
        yield corpus.lengths[rows], (logits.argmax(-1) == following).cpu(), scores.cpu()


def text_losses(model: Model, corpus: Corpus, view: str, editing: Editing = untouched) -> Float[Tensor, " text"]:
    """Mean loss of each text in nats per token, all positions."""
    losses = []
    for lengths, _, scores in predictions(model, corpus, view, editing):
        inside = torch.arange(scores.shape[1]) < (lengths - 1)[:, None]
        losses.append(-(scores * inside).sum(1) / inside.sum(1))
    return torch.cat(losses)


def second_half(stimulus: Corpus) -> int:
    """Of repeated tokens: the first position after which a copy of the second half is predicted."""
    return int(stimulus.lengths[0]) - int(stimulus.frame["repeats"].iloc[0]) // 2 - 1
