"""Which heads of layer 0 carry the mark "first token"?  Cut each, hold each at its mean, and see what is left of it.

Three things are read under every cut, the same tokens and texts each time:

* the *detector*: held-out area under the ROC curve of the neuron that tells first tokens best in the whole model;
* the *state*: the same of one direction of the MLP's input, found anew under the cut: is the mark gone, or elsewhere?
* the *norm*: mean log ratio of the residual norm at the first position to the mean elsewhere, after the sink layer.

All heads together show what attention carries at all (learned positions need none); each other head is the control.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechrep.analyzers.first_token.auroc import auroc_draws, aurocs
from mechrep.analyzers.first_token.detectors import state_scores
from mechrep.analyzers.first_token.head_cuts_result import OPS
from mechrep.analyzers.first_token.head_cuts_result import HeadCutResult as HeadCutResult
from mechrep.analyzers.first_token.other_tokens import LAYER, check_patterns
from mechrep.analyzers.first_token.reading import Hooks, detector_layer, read_triples
from mechrep.analyzers.first_token.triples import Triples, corpus_of, triples_of
from mechrep.analyzers.first_token.windows import windows
from mechrep.analyzers.sinks.norms import SinkNormResult, SinkNorms, norms_of
from mechrep.analyzers.sinks.repeat_norms_result import CLEARLY_ABOVE
from mechrep.cache.corpus_cache import CorpusCache
from mechrep.interventions.heads import Heads
from mechrep.interventions.ops import mean, zero
from mechrep.models.anatomy import Site
from mechrep.models.model import Model
from mechrep.models.reading import read_activations
from mechrep.provenance import provenance_of
from mechrep.stats import paired_bootstrap_interval, percentile_interval
from mechrep.text.corpus import Corpus

_TEXTS_PER_BATCH = 64


def first_layer_head_cuts(
    model: Model,
    texts: Corpus | Sequence[str] | None = None,
    *,
    layer: int | None = None,
    triples: int = 1000,
    seed: int = 0,
) -> HeadCutResult:
    """Cuts every head of layer 0 in turn, and all together, and measures what is left of the first token's mark.

    Args:
        model: the model.
        texts: a corpus, or texts; held-out English by default.
        layer: whose MLP reads the mark, and after which norms are read; by default the first MLP that sees layer 0, and
            the layer of the largest jump.
        triples: at most so many triples of consecutive tokens for detector and state.
        seed: of halves and bootstrap samples.

    Returns:
        Losses per head and kind of cut, with intervals.

    Raises:
        InputError: too few texts, another model's corpus, a model without attention patterns, or a parallel model of
            one layer.

    Source: that the first layer's attention marks the first token is Yona et al. 2025 (arXiv 2503.08908), whose release
    names no heads; these cuts are mechrep's own.  Zero and mean: Olsson et al. 2022 (arXiv 2209.11895), Wang et al.
    2023 (arXiv 2211.00593).

    Limits: heads that do the same job hide each other: compare the sum of the losses with that of all heads.  Norms are
    read in texts without BOS; where no norm sink is there, the norm's losses are NaN, with the reason.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> result = first_layer_head_cuts(model, triples=60)
        >>> result.detector_loss.shape == (2, model.anatomy.n_heads + 1)  # zero and mean; each head, and all
        True
    """
    check_patterns(model.anatomy)
    corpus = corpus_of(model, texts)
    stimulus = triples_of(model, corpus, limit=triples, seed=seed)
    text = windows(model, corpus)
    sink_layer, reason = _sink_layer(model, text, layer)
    read = detector_layer(model.anatomy) if layer is None else layer
    sets = [[head] for head in range(model.anatomy.n_heads)] + [list(range(model.anatomy.n_heads))]
    marks = _Marks.choose(model, stimulus, read, seed)
    whole = marks.under(model, ())
    log_ratio = _log_ratios(model, text, sink_layer, ()) if sink_layer is not None else None
    places = [(op, heads) for op in range(len(OPS)) for heads in range(len(sets))]
    shape = (len(OPS), len(sets))
    losses = {name: torch.full(shape, torch.nan) for name in ("detector", "state", "norm")}
    intervals = {name: torch.full((*shape, 2), torch.nan) for name in losses}
    means = {id(tokens): _mean_outputs(model, tokens) for tokens in (stimulus.tokens, text)}

    def cut(op: int, heads: int, tokens: Tensor) -> Hooks:
        done = zero() if OPS[op] == "zero" else mean(means[id(tokens)])
        return Heads([(LAYER, head) for head in sets[heads]], done, when="all").hooks(model)

    for place in places:
        left = marks.under(model, cut(*place, stimulus.tokens))
        for name in ("detector", "state"):
            before, after = getattr(whole, name), getattr(left, name)
            losses[name][place] = before.area - after.area
            intervals[name][place] = torch.tensor(_finite_interval(before.draws - after.draws))
        if sink_layer is not None and log_ratio is not None:
            lost = (log_ratio - _log_ratios(model, text, sink_layer, cut(*place, text))).tolist()
            losses["norm"][place] = float(np.mean(lost))
            intervals["norm"][place] = torch.tensor(paired_bootstrap_interval(lost, seed=seed))
    return HeadCutResult(
        provenance_of(model, corpus, {"triples": len(stimulus.tokens), "layer": layer, "seed": seed}),
        detector=[read, marks.neuron],
        detector_auroc=whole.detector.area,
        state_auroc=whole.state.area,
        sink_layer=sink_layer,
        sink_reason=reason,
        log_ratio=float("nan") if log_ratio is None else float(log_ratio.mean()),
        **{f"{name}_loss": value for name, value in losses.items()},
        **{f"{name}_interval": value for name, value in intervals.items()},
    )


class _Area(NamedTuple):
    area: float
    draws: Float[np.ndarray, " draw"]


class _Left(NamedTuple):
    """What is left of the mark: held-out areas of the detector and of the state."""

    detector: _Area
    state: _Area


class _Marks(NamedTuple):
    """The best detector of the whole model, to be judged under every cut."""

    stimulus: Triples
    layer: int
    neuron: int
    sign: float
    seed: int

    @classmethod
    def choose(cls, model: Model, stimulus: Triples, layer: int, seed: int) -> _Marks:
        seen, first = read_triples(model, stimulus.tokens, layer=layer), stimulus.places == 0
        areas = aurocs(seen.neurons[stimulus.selection], first[stimulus.selection])
        best = int(np.abs(areas - 0.5).argmax())
        return cls(stimulus, layer, best, -1.0 if areas[best] < 0.5 else 1.0, seed)

    def under(self, model: Model, cuts: Hooks) -> _Left:
        seen, test = read_triples(model, self.stimulus.tokens, cuts, self.layer), self.stimulus.test
        first, ids = (self.stimulus.places == 0)[test], self.stimulus.ids[test]

        def area(values: Float[np.ndarray, " token"]) -> _Area:
            return _Area(float(aurocs(values[:, None], first)[0]), auroc_draws(values, first, ids, seed=self.seed))

        return _Left(area(self.sign * seen.neurons[test, self.neuron]), area(state_scores(seen, self.stimulus)))


def _sink_layer(model: Model, text: Tensor, named: int | None) -> tuple[int | None, str]:
    """The layer after which the first position is large without BOS, or why there is none."""
    bare = Corpus.from_tokens(text, model=model, bos_policy="absent")
    (norms,) = CorpusCache(model, bare, progress=False).run(SinkNorms())
    assert isinstance(norms, SinkNormResult)
    if named is not None and float(norms.ratio[named + 1]) >= CLEARLY_ABOVE:
        return named, ""
    if named is None and norms.layer is not None:
        return norms.layer, ""
    return None, f"without BOS the first position is at most {norms.largest_ratio:.3g} times as large as the others"


def _mean_outputs(model: Model, tokens: Tensor) -> Float[Tensor, "layer head d_head"]:
    """Mean output of every head of layer 0 over all positions; other layers, which nobody cuts, are zero."""
    anatomy = model.anatomy
    total = torch.zeros(anatomy.n_layers, anatomy.n_heads, anatomy.d_head, dtype=torch.float64)

    def add(activation: Tensor, _site: Site, layer: int) -> None:
        total[layer] += activation.double().sum((0, 1)).cpu()

    for batch in tokens.split(_TEXTS_PER_BATCH):
        read_activations(model, batch.to(model.device), {Site.Z: [LAYER]}, add)
    return (total / tokens.numel()).float()


@torch.no_grad()
def _log_ratios(model: Model, text: Tensor, layer: int, cuts: Hooks) -> Float[np.ndarray, " text"]:
    """Per text the log of the norm at the first position over the mean norm elsewhere, after a layer."""
    found: list[Tensor] = []

    def read(activation: Tensor, hook: Any = None) -> None:  # noqa: ARG001 - TransformerLens' hook point
        norms = norms_of(activation).cpu().double()
        found.append((norms[:, 0] / norms[:, 1:].mean(1)).log())

    stop = {"stop_at_layer": layer + 1} if layer + 1 < model.anatomy.n_layers else {}
    hooks = [*cuts, (model.anatomy.hook_name(Site.RESID_POST, layer), read)]
    for batch in text.split(_TEXTS_PER_BATCH):
        model.run_with_hooks(batch.to(model.device), fwd_hooks=hooks, **stop)
    return torch.cat(found).numpy()


def _finite_interval(draws: Float[np.ndarray, " draw"]) -> tuple[float, float]:
    return percentile_interval(draws[np.isfinite(draws)].tolist())
