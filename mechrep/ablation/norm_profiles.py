"""The norm ratio by depth under many interventions at once: what is left of a sink at every later depth.

The rows of a batch are (text, intervention); below the first layer that an intervention edits they are one row per
text (:class:`~mechrep.ablation.score.Branches`), and the pass ends with the last depth that is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mechrep.ablation.score import Branches, first_edited_layers
from mechrep.cache.corpus_cache import CorpusCache
from mechrep.generation.slot_cache import shares_keys, why_not_kept
from mechrep.interventions.apply import EditTable
from mechrep.interventions.ops import Intervention
from mechrep.measures.sink_norms import SinkNorms, norms_of, other_positions
from mechrep.models.anatomy import Site
from mechrep.models.model import Model
from mechrep.models.reading import choose_view, read_activations
from mechrep.text.corpus import Corpus

_TOKENS_PER_BATCH = 2048


@torch.no_grad()
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
    sums = torch.zeros(3, len(interventions), depths + 1, dtype=torch.float64)  # first, others, number of others
    wanted = {Site.RESID_POST: range(depths)}
    if choose_view(model, wanted) != "plain":
        results = [_alone(model, corpus, one)[: depths + 1] for one in interventions]
        return torch.stack(results)
    n_texts, n = len(corpus), len(interventions)
    owners, numbers = torch.arange(n_texts).repeat_interleave(n), torch.arange(n).repeat(n_texts)
    table = EditTable(
        model, [*interventions] * n_texts, owners.tolist(), first_tokens=corpus.tokens[owners, 0].tolist(),
        starts=[0] * len(owners),
    )  # fmt: skip
    first_layers = first_edited_layers(table, model.anatomy.n_layers).cpu()
    if why_not_kept(model) or shares_keys(model):
        first_layers = torch.zeros_like(first_layers)  # layers above look at the rows of layers below
    with table.applied():
        for rows in torch.arange(len(owners)).split(max(1, _TOKENS_PER_BATCH // corpus.tokens.shape[1])):
            _read(model, corpus, table, rows, (owners, numbers, first_layers), sums)
    sums[:, :, 0] = torch.nan
    return (sums[0] / n_texts / (sums[1] / sums[2])).float()


def _alone(model: Model, corpus: Corpus, intervention: Intervention | None) -> Float[Tensor, " depth"]:
    (norms,) = CorpusCache(model, corpus, intervention=intervention, progress=False).run(SinkNorms())
    ratio = norms.ratio.clone()
    ratio[0] = torch.nan
    return ratio


def _read(
    model: Model, corpus: Corpus, table: EditTable, rows: Tensor, of_rows: tuple[Tensor, Tensor, Tensor], sums: Tensor
) -> None:
    """Add one batch to the sums."""
    owners, numbers, first_layers = (each[rows] for each in of_rows)
    plan = Branches.of(owners.tolist(), first_layers.tolist(), model.anatomy.n_layers)
    device, width = model.device, corpus.tokens.shape[1]
    positions = torch.arange(width, device=device)

    def aim(some: Tensor) -> None:
        chosen = rows[some.cpu()].to(device)
        everywhere = torch.ones(len(chosen), width, dtype=torch.bool, device=device)
        table.aim(chosen, everywhere, positions.expand(len(chosen), -1))

    def receive(states: Tensor, _site: Site, layer: int) -> None:
        computed = plan.rows[layer]
        norms = norms_of(states).cpu()
        inside = other_positions(corpus.lengths[owners[computed]], width)
        first, others = norms[:, 0].double(), (norms * inside).double().sum(1)
        place = plan.places(layer)
        for slot, values in enumerate((first, others, inside.double().sum(1))):
            sums[slot, :, layer + 1].index_add_(0, numbers, values[place])

    lowest = plan.rows[0]
    tokens = corpus.tokens[owners[lowest]].to(device)
    layers = range(sums.shape[2] - 1)
    with model.each_alone(corpus.lengths[owners[lowest]]), plan.applied(model, aim):
        read_activations(model, tokens, {Site.RESID_POST: layers}, receive, view="plain")
