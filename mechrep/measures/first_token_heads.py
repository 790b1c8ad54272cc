"""Which heads of layer 0 carry the mark "first token"?  Cut each, hold each at its mean, and see what is left of it.

Three things are read under every cut, the same tokens and texts each time:

* the *detector*: held-out area under the ROC curve of the neuron that tells first tokens best in the whole model;
* the *state*: the same of one direction of the MLP's input, found anew under the cut: is the mark gone, or elsewhere?
* the *norm*: mean log ratio of the residual norm at the first position to the mean elsewhere, after the sink layer.

All heads together show what attention carries at all (learned positions need none); each other head is the control.

``HeadCutResult``: what is left of the first token's mark when heads of layer 0 are cut.

The first token's mark: attention to other tokens, the neuron that tells, the heads that carry it, and copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechrep.cache.corpus_cache import CorpusCache
from mechrep.errors import InputError
from mechrep.figures import ACCENT, INK, SEQUENCE, styled
from mechrep.interventions.ops import Heads, mean, zero
from mechrep.measures.first_token_detectors import state_scores
from mechrep.measures.first_token_mass import (
    LAYER,
    Hooks,
    Triples,
    check_patterns,
    corpus_of,
    detector_layer,
    read_triples,
    triples_of,
    windows,
)
from mechrep.measures.sink_norms import CLEARLY_ABOVE, SinkNormResult, SinkNorms, norms_of
from mechrep.models.anatomy import Site
from mechrep.models.model import Model
from mechrep.models.reading import read_activations
from mechrep.provenance import provenance_of
from mechrep.results import Result, check_count
from mechrep.stats import auroc_draws, aurocs, paired_bootstrap_interval, percentile_interval
from mechrep.text.corpus import Corpus

if TYPE_CHECKING:
    import plotly.graph_objects as go

OPS = ("zero", "mean")
Mark = Literal["detector", "state", "norm"]
MARKS: tuple[Mark, ...] = ("detector", "state", "norm")


@dataclass(frozen=True, eq=False)
class HeadCutResult(Result):
    """Losses under cuts, in rows ``("zero", "mean")`` and a column per head of layer 0, the last for all heads.

    Attributes:
        detector: ``[layer, neuron]`` that tells first tokens best in the whole model.
        detector_auroc: its held-out area under the ROC curve in the whole model.
        state_auroc: that of one direction of the MLP's input.
        sink_layer: layer after which norms are read; ``None`` without a norm sink in texts without BOS.
        sink_reason: why there is none, or empty.
        log_ratio: mean over texts of log (norm at the first position over the mean elsewhere), in the whole model.
        detector_loss: area that the detector loses under the cut; at most ``detector_auroc - 0.5`` is a mark lost, and
            more a mark turned round.
        state_loss: area that the best direction loses; it is found anew under every cut.
        norm_loss: of the log ratio; NaN without a norm sink.
        detector_interval: 95 %, bootstrap over words, paired.
        state_interval: 95 %, bootstrap over words, paired.
        norm_interval: 95 %, bootstrap over texts, paired.
    """

    detector: Sequence[int]
    detector_auroc: float
    state_auroc: float
    sink_layer: int | None
    sink_reason: str
    log_ratio: float
    detector_loss: Float[Tensor, "op head"]
    state_loss: Float[Tensor, "op head"]
    norm_loss: Float[Tensor, "op head"]
    detector_interval: Float[Tensor, "op head 2"]
    state_interval: Float[Tensor, "op head 2"]
    norm_interval: Float[Tensor, "op head 2"]

    @property
    def n_heads(self) -> int:
        """Heads of layer 0."""
        return self.detector_loss.shape[1] - 1

    @property
    def needs_attention(self) -> bool:
        """Whether the mark goes when all heads of layer 0 are cut: the state then loses most of what it tells."""
        told, lost = self.state_auroc - 0.5, float(self.state_loss[0, -1])
        return told > 0 and lost > 0.5 * told and float(self.state_interval[0, -1, 0]) > 0

    def loss(self, mark: Mark = "detector") -> Float[Tensor, "op head"]:
        """One of the three losses by name.

        Raises:
            InputError: another name.
        """
        if mark not in MARKS:
            raise InputError(f"mark={mark!r}", f"one of {MARKS}", "choose one of these")
        return getattr(self, f"{mark}_loss")

    def interval(self, mark: Mark = "detector") -> Float[Tensor, "op head 2"]:
        """Its interval.

        Raises:
            InputError: another name.
        """
        self.loss(mark)
        return getattr(self, f"{mark}_interval")

    def carriers(self, mark: Mark = "detector") -> list[tuple[int, int]]:
        """Heads whose cut costs clearly more than that of a typical other head, in both kinds of cut, largest first.

        Clearly: the lower end of its interval lies above 0 and above the median of the others' upper ends.

        Raises:
            InputError: another name of a mark.
        """
        ends = self.interval(mark)[:, :-1]
        found = []
        for head in range(self.n_heads):
            others = [other for other in range(self.n_heads) if other != head]
            control = ends[:, others, 1].median(1).values.clamp_min(0) if others else torch.zeros(len(OPS))
            if bool((ends[:, head, 0] > control).all()):
                found.append(head)
        return [(0, head) for head in sorted(found, key=lambda head: -float(self.loss(mark)[0, head]))]

    def ranking(self, mark: Mark = "detector", op: str = "zero") -> list[int]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Heads of layer 0, those whose cut costs most first.

        Raises:
            InputError: another mark or kind of cut.
        """
        if op not in OPS:
            raise InputError(f"op={op!r}", f"one of {OPS}", "choose one of these")
        values = torch.nan_to_num(self.loss(mark)[OPS.index(op), :-1], nan=-torch.inf)
        return torch.argsort(values, descending=True, stable=True).tolist()

    def top(self, k: int, mark: Mark = "detector") -> list[tuple[int, int]]:
        """The ``k`` heads whose zeroing costs most, as ``(layer, head)``: what :class:`mechrep.Heads` takes.

        Raises:
            InputError: ``k`` larger than the number of heads, or another mark.
        """
        check_count(k, self.n_heads, "heads")
        return [(0, head) for head in self.ranking(mark)[:k]]

    def to_frame(self) -> pd.DataFrame:
        """One row per mark, kind of cut and head; ``"all"`` stands for all heads together."""
        rows = []
        for mark in MARKS:
            losses, ends = self.loss(mark), self.interval(mark)
            for row, op in enumerate(OPS):
                for head in range(self.n_heads + 1):
                    name = "all" if head == self.n_heads else str(head)
                    rows.append((mark, op, name, float(losses[row, head]), *ends[row, head].tolist()))
        return pd.DataFrame(rows, columns=["mark", "op", "head", "loss", "low", "high"])

    def plot(self) -> go.Figure:
        """Losses of every head, a panel per mark."""
        return head_cuts_figure(self)


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


_SECOND = SEQUENCE[1]
LOSSES = {
    "detector": "area under the ROC curve that the detector loses",
    "state": "area under the ROC curve that the MLP's input loses",
    "norm": "log of the first position's norm ratio that is lost",
}


def head_cuts_figure(result: HeadCutResult, mark: Mark = "detector") -> go.Figure:
    """What cutting each head of layer 0 costs, and all of them together; bars are 95 % intervals.

    Args:
        result: what was measured.
        mark: ``"detector"``, ``"state"`` or ``"norm"``.

    Raises:
        InputError: another mark, or the norm of a model without a norm sink.

    Source: mechrep's own.

    Example:
        >>> import mechrep
        >>> from mechrep.measures.first_token import first_layer_head_cuts
        >>> result = first_layer_head_cuts(mechrep.load_model("mechrep-tiny"), triples=60)
        >>> [line.name for line in head_cuts_figure(result).data]
        ['set to zero', 'held at its mean']
    """
    import plotly.graph_objects as go

    losses, ends = result.loss(mark), result.interval(mark)
    if bool(losses.isnan().all()):
        raise InputError(f"losses of the {mark}", f"one of {MARKS} that was measured", result.sink_reason)
    figure, heads = go.Figure(), [*map(str, range(result.n_heads)), "all"]
    for row, name in enumerate(("set to zero", "held at its mean")):
        _add_losses(figure, heads, losses[row], ends[row], name, row)
    whole = {"detector": result.detector_auroc, "state": result.state_auroc, "norm": result.log_ratio}[mark]
    layer, neuron = result.detector
    about = {
        "detector": f"detector L{layer}N{neuron}, area {whole:.3f} in the whole model",
        "state": f"area {whole:.3f} in the whole model",
        "norm": f"after layer {result.sink_layer}, log ratio {whole:.2f} in the whole model",
    }[mark]
    styled(
        figure,
        title="What cutting a head of layer 0 takes from the first token's mark",
        subtitle=f"{result.provenance.model['name']}; {about}",
        x="head of layer 0",
        y=LOSSES[mark],
    )
    figure.add_hline(y=0, line={"color": INK, "width": 1}, layer="below")
    return figure.update_xaxes(type="category", categoryorder="array", categoryarray=heads)


def _add_losses(
    figure: go.Figure,
    heads: list[str],
    losses: Float[Tensor, " head"],
    ends: Float[Tensor, "head 2"],
    name: str,
    row: int,
) -> None:
    assert row < len(OPS)
    figure.add_scatter(
        x=heads,
        y=losses.numpy(),
        error_y={
            "type": "data",
            "array": (ends[:, 1] - losses).clamp_min(0).numpy(),
            "arrayminus": (losses - ends[:, 0]).clamp_min(0).numpy(),
            "thickness": 1.5,
        },
        name=name,
        mode="markers",
        marker={"color": (ACCENT, _SECOND)[row], "size": 9, "symbol": ("circle", "square-open")[row]},
        customdata=ends.numpy(),
        hovertemplate=f"head %{{x}} {name}<br>%{{y:.3f}} lost (%{{customdata[0]:.3f}} to %{{customdata[1]:.3f}})"
        "<extra></extra>",
    )
