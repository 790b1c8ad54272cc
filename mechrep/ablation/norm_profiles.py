"""The norm ratio by depth under many interventions at once: what is left of a sink at every later depth."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mechrep.ablation.sink_outcomes import ReadRows, Wanted, read_rows
from mechrep.interventions.ops import Intervention
from mechrep.measures.sink_norms import other_positions
from mechrep.models.model import Model
from mechrep.text.corpus import Corpus


def norm_profiles(
    model: Model, corpus: Corpus, interventions: Sequence[Intervention | None], last: int | None = None
) -> Float[Tensor, "intervention depth"]:
    """Norm at the first position over the mean elsewhere, after every layer, under each intervention.

    Args:
        model: the model.
        corpus: a few short texts of at least two tokens, right-padded.
        interventions: each with ``when="all"``; ``None`` is the baseline.
        last: depth after which nothing is read; by default all.  Depth 0 is the input of block 0.

    Returns:
        Ratios for the depths 1 to ``last``, in columns 1 to ``last``; column 0 is NaN.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> corpus = mechrep.Corpus.from_texts(["The sea was calm.", "It rained all day."], model=model)
        >>> zero = mechrep.Neurons([(2, 3)], "zero", when="all")
        >>> ratios = norm_profiles(model, corpus, [None, zero])
        >>> ratios.shape, bool((ratios[0, 1:3] == ratios[1, 1:3]).all())
        (torch.Size([2, 5]), True)
    """
    corpus.check_model(model)
    depths = model.anatomy.n_layers if last is None else last
    first, others = torch.zeros(2, len(interventions), depths + 1, dtype=torch.float64)

    def take(rows: ReadRows) -> None:
        inside = other_positions(corpus.lengths[rows.texts], corpus.tokens.shape[1])
        for layer, norms in rows.norms.items():
            first[:, layer + 1].index_add_(0, rows.conditions, norms[:, 0])
            others[:, layer + 1].index_add_(0, rows.conditions, norms.masked_fill(~inside, 0.0).sum(1))

    read_rows(model, corpus, interventions, Wanted(range(depths)), take, progress=False)
    return (first / len(corpus) / (others / float((corpus.lengths - 1).sum()))).float()


def excess_removed(ratios: Float[Tensor, "condition depth"]) -> Float[Tensor, "intervention depth"]:
    """Share of the first position's excess norm that each intervention removes, by depth.

    With the ratio ``r`` of norms: ``1 - (r' - 1) / (r - 1)``.  1: the first position is as large as the others; 0:
    nothing changed; NaN where it is no larger to begin with.

    Args:
        ratios: of :func:`norm_profiles`; the first row is the baseline.

    Source: zeroing the neurons and reading the norms is Yona et al. 2025 (arXiv 2503.08908), figure 5, on repeated
    tokens; the share is mechrep's own.

    Example:
        >>> excess_removed(torch.tensor([[1.0, 5.0], [1.0, 2.0]])).tolist()
        [[nan, 0.75]]
    """
    excess = ratios.double() - 1
    return torch.where(excess[0] > 0, 1 - excess[1:] / excess[0], torch.nan).float()
