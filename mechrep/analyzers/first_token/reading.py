"""What the first MLP gets and makes of the triples, with heads of layer 0 cut or whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechrep.errors import InputError
from mechrep.models.anatomy import Anatomy, Site
from mechrep.models.model import Model

_TEXTS_PER_BATCH = 512
Hooks = Sequence[tuple[str, Callable[..., Any]]]


class Seen(NamedTuple):
    """What is seen of every token of the triples, in float32.

    Attributes:
        neurons: what goes into the activation function.
        state: the normalised input of that MLP, before the norm's gain.
    """

    neurons: Float[np.ndarray, "token neuron"]
    state: Float[np.ndarray, "token d_model"]


def detector_layer(anatomy: Anatomy) -> int:
    """The first MLP that can see what the attention of layer 0 has written: in parallel blocks that of layer 1.

    Raises:
        InputError: a parallel model of one layer.
    """
    layer = int(anatomy.parallel)
    if layer >= anatomy.n_layers:
        raise InputError(
            f"{anatomy.architecture} with one parallel layer", "an MLP behind the attention of layer 0", "use another"
        )
    return layer


@torch.no_grad()
def read_triples(model: Model, tokens: Int[Tensor, "triple 3"], cuts: Hooks = (), layer: int | None = None) -> Seen:
    """Run the triples, each a text of its own without BOS, and read the first MLP that sees layer 0.

    Args:
        model: the model.
        tokens: the triples.
        cuts: TransformerLens hooks that edit something before.
        layer: of the MLP, where it is not the first that sees layer 0.
    """
    anatomy = model.anatomy
    layer = detector_layer(anatomy) if layer is None else layer
    seen: dict[Site, list[Tensor]] = {Site.GATE_PRE: [], Site.MLP_INPUT_NORMALIZED: []}

    def reader(site: Site) -> tuple[str, Callable[..., None]]:
        def read(activation: Tensor, hook: Any = None) -> None:  # noqa: ARG001 - TransformerLens' hook point
            seen[site].append(activation.float().cpu().flatten(0, 1))

        return anatomy.hook_name(site, layer), read

    hooks = [*cuts, *(reader(site) for site in seen)]
    stop = {"stop_at_layer": layer + 1} if layer + 1 < anatomy.n_layers else {}
    for batch in tokens.split(_TEXTS_PER_BATCH):
        model.run_with_hooks(batch.to(model.device), fwd_hooks=hooks, **stop)
    neurons, state = (torch.cat(parts).numpy() for parts in seen.values())
    return Seen(neurons, state)
