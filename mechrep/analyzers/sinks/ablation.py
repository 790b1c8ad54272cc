"""Do the sink neurons carry the norm?  Set them to zero and see how much of the sink is left.

With the ratio of the norm at the first position to the mean norm elsewhere, in the untouched model and with neurons
set to zero at all positions, BOS included::

    removed = 1 - (ratio_cut - 1) / (ratio - 1)

1: the first position is as large as the others.  0: nothing changed.  The same is done with random neurons of the
layer, and with the neurons that contribute nearly as much.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechrep.analyzers.sinks.neurons_result import SinkNeuronResult
from mechrep.analyzers.sinks.norms import norms_of, other_positions
from mechrep.errors import InputError
from mechrep.interventions.neurons import Neurons
from mechrep.models.anatomy import Site
from mechrep.models.model import Model
from mechrep.provenance import provenance_of
from mechrep.results import Result, check_count
from mechrep.text.corpus import Corpus

_TOKENS_PER_BATCH = 4096


@dataclass(frozen=True, eq=False)
class SinkAblationResult(Result):
    """What is left of the sink under each cut.

    Attributes:
        layers: the layers whose output is read, the sink layer first.
        cuts: the name of each row: ``"none"``, ``"top k"``, ``"random"`` or ``"matched"``.
        units: the neurons of each row.
        ratio: norm at the first position over the mean norm elsewhere.
        removed: share of the untouched model's excess that the cut removes; NaN where there is none.
    """

    layers: Sequence[int]
    cuts: Sequence[str]
    units: Sequence[Sequence[int]]
    ratio: Float[Tensor, "cut layer"]
    removed: Float[Tensor, "cut layer"]

    def removed_by(self, cut: str) -> Float[Tensor, " draw"]:
        """Removed share at the sink layer's output, for every row of this name.

        Raises:
            InputError: no row of this name.
        """
        rows = [row for row, name in enumerate(self.cuts) if name == cut]
        if not rows:
            raise InputError(f"cut {cut!r}", f"one of {sorted(set(self.cuts))}", "choose among these")
        return self.removed[rows, 0]

    def top(self, k: int) -> list[str]:
        """The names of the ``k`` cuts that remove most at the sink layer."""
        check_count(k, len(self.cuts), "cuts")
        values = torch.nan_to_num(self.removed[:, 0], nan=-torch.inf)
        return [str(self.cuts[row]) for row in torch.argsort(values, descending=True, stable=True).tolist()[:k]]

    def to_frame(self) -> pd.DataFrame:
        """One row per cut and layer."""
        places = [(cut, layer) for cut in range(len(self.cuts)) for layer in range(len(self.layers))]
        return pd.DataFrame(
            {
                "cut": [self.cuts[cut] for cut, _ in places],
                "neurons": [len(self.units[cut]) for cut, _ in places],
                "layer": [self.layers[layer] for _, layer in places],
                "ratio": self.ratio.flatten().numpy(),
                "removed": self.removed.flatten().numpy(),
            }
        )


@torch.no_grad()
def sink_neuron_ablation(
    model: Model, corpus: Corpus, neurons: SinkNeuronResult, *, k: int = 5, draws: int = 5, seed: int = 0
) -> SinkAblationResult:
    """Sets sink neurons to zero at all positions and measures what is left of the first position's norm.

    Args:
        model: the model.
        corpus: ordinary texts of at least two tokens; a few dozen short ones will do.
        neurons: scores of the sink layer's neurons; cut by contribution at the first position.
        k: the first 1, 2, ... k neurons are cut together.
        draws: how many sets of ``k`` random other neurons of the layer are cut as a control.
        seed: of these draws.

    Returns:
        Ratios and removed shares at the output of the sink layer and of every layer after it.

    Raises:
        InputError: ``k`` more than half of the layer, no draws, texts of one token only, or another model's corpus.

    Source: zeroing the neurons and reading the norms is Yona et al. 2025 (arXiv 2503.08908), figure 5, on repeated
    tokens; the share and both controls are mechrep's own.

    Limits: zero can lie far from anything a neuron does.  ``"matched"`` are the ``k`` neurons that follow in the
    ranking.

    Example:
        >>> import mechrep
        >>> from mechrep.analyzers.sinks.neurons import sink_neurons
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> corpus = mechrep.Corpus.from_texts(["The sea was calm.", "It rained all day."], model=model)
        >>> result = sink_neuron_ablation(model, corpus, sink_neurons(model, corpus, 0), k=2, draws=1)
        >>> list(result.cuts), result.layers[0]
        (['none', 'top 1', 'top 2', 'random', 'matched'], 0)
    """
    corpus.check_model(model)
    width = neurons.contribution.shape[1]
    if not 1 <= k <= width // 2 or draws < 1:
        raise InputError(
            f"k={k}, draws={draws}", f"k from 1 to half of the {width} neurons, at least one draw", "correct them"
        )
    if not bool((corpus.lengths > 1).any()):
        raise InputError("texts of one token", "texts with other positions to compare with", "use longer texts")
    ranking, generator = neurons.ranking(), np.random.default_rng(seed)
    cuts: list[tuple[str, list[int]]] = [("none", []), *((f"top {n}", ranking[:n]) for n in range(1, k + 1))]
    cuts += [("random", sorted(generator.choice(ranking[k:], k, replace=False).tolist())) for _ in range(draws)]
    cuts.append(("matched", ranking[k : 2 * k]))
    layers = range(neurons.layer, model.anatomy.n_layers)
    ratio = torch.stack([_ratios(model, corpus, [(neurons.layer, n) for n in cut], layers) for _, cut in cuts])
    excess = ratio - 1
    removed = torch.where(excess[:1] > 0, 1 - excess / excess[:1], torch.nan)
    return SinkAblationResult(
        provenance_of(model, corpus, {"layer": neurons.layer, "k": k, "draws": draws, "seed": seed}),
        layers=list(layers),
        cuts=[name for name, _ in cuts],
        units=[cut for _, cut in cuts],
        ratio=ratio.float(),
        removed=removed.float(),
    )


def _ratios(model: Model, corpus: Corpus, units: list[tuple[int, int]], layers: range) -> Float[Tensor, " layer"]:
    """Norm at the first position over the mean elsewhere, by layer, with ``units`` set to zero."""
    hooks = Neurons(units, "zero", site=Site.MLP_POST, when="all").hooks(model) if units else []
    sums = torch.zeros(len(layers), 2, dtype=torch.float64)
    step = max(1, _TOKENS_PER_BATCH // corpus.tokens.shape[1])
    for rows in torch.arange(len(corpus)).split(step):
        tokens, lengths = corpus.tokens[rows].to(model.device), corpus.lengths[rows]

        def reader(index: int, lengths: Tensor = lengths) -> Any:
            def read(activation: Tensor, hook: Any = None) -> None:  # noqa: ARG001 - TransformerLens' hook point
                norms = norms_of(activation).cpu().double()
                others = norms[other_positions(lengths, norms.shape[1])]
                sums[index] += torch.stack([norms[:, 0].sum(), others.sum()])

            return read

        reading = [(model.anatomy.hook_name(Site.RESID_POST, layer), reader(i)) for i, layer in enumerate(layers)]
        model.run_with_hooks(tokens, fwd_hooks=[*hooks, *reading])
    counts = torch.tensor([len(corpus), int((corpus.lengths - 1).sum())])
    first, others = (sums / counts).unbind(-1)
    return first / others
