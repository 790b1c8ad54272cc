"""First-detector neurons: which neurons of the first MLP tell a first token from a second or third, whoever it is?

1. Triples of consecutive tokens without BOS (:mod:`mechrep.measures.first_token_mass`); every token of the text is
   seen at all three places, so its identity says nothing.
2. Neurons are chosen with one half of the text and of the vocabulary, and judged by the other half: the area under the
   ROC curve of first against the rest, first against second, second against third.
3. The same for one direction of the MLP's input, the difference between the means of first tokens and others.
4. Nulls: the whole of it with places shuffled within every triple, and neurons chosen blindly.

``FirstDetectorResult``: neurons that tell the first token of a text, beside what shuffled places would give.

Do copies of a token after a prefix come to the state of the token alone, and how fast?

Texts are a prefix and n copies of x; the limit is x alone, without BOS.  Per number of copies::

    distance(n) = |out(copy n) - out(x alone)|      of layer 0's attention output, and of layer 0 as a whole
    w(n)        = attention of each head to the prefix, at copy n

and, on a pure run of x without prefix, whether all positions are in one state at every depth: they are in models
without positions in their values (rotary, ALiBi, none), and are not where positions are learned.

``ConvergenceResult``: distances of copies from the token alone, rates fitted to them, and what theory expects.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechrep.errors import InputError
from mechrep.figures import DASHES, INK, SEQUENCE, counted, styled, translucent
from mechrep.measures.first_token_mass import (
    LAYER,
    WIDTH,
    Law,
    Seen,
    Triples,
    alibi_slopes,
    check_patterns,
    corpus_of,
    detector_layer,
    expected,
    fit_decay,
    other_token_mass,
    read_triples,
    triples_of,
)
from mechrep.measures.sink_norms import repeat_grid
from mechrep.models.anatomy import Site
from mechrep.models.model import Model
from mechrep.models.reading import read_activations
from mechrep.provenance import Provenance, provenance_of
from mechrep.results import Result, check_count
from mechrep.stats import areas_of_ranks, auroc_draws, aurocs, percentile_interval
from mechrep.text.corpus import Corpus

if TYPE_CHECKING:
    import plotly.graph_objects as go

Score = Literal["auroc", "published"]


@dataclass(frozen=True, eq=False)
class FirstDetectorResult(Result):
    """Areas under the ROC curve of neurons of the first MLP behind the attention of layer 0.

    Held-out areas are signed by the selection half: 1 tells first tokens perfectly, 0.5 not at all, and below 0.5 what
    was chosen does not hold on other tokens.

    Attributes:
        layer: whose MLP: 0, or 1 in parallel blocks.
        score: the published one, mean of first minus second token, all triples.
        selection_auroc: first against second and third in the selection half; below 0.5: lower at first tokens.
        auroc: the same held out.
        first_second: first against second, held out.
        second_third: second against third, held out; 0.5 where a neuron says "first" and counts no further.
        neurons: the best by the selection half, most telling first.
        intervals: 95 % of the held-out area of each of these, bootstrap over words.
        values: what goes into their activation function at the first, second and third token of every triple.
        state_auroc: held-out area of one direction of the MLP's input, from the mean of others to that of first tokens.
        state_interval: 95 % of it.
        shuffled_aurocs: held-out area of the best neuron when places are shuffled, one per shuffle.
        random_aurocs: held-out areas of neurons chosen blindly.
        n_selection: tokens that neurons are chosen with.
        n_test: tokens that they are judged by.
    """

    layer: int
    score: Float[Tensor, " neuron"]
    selection_auroc: Float[Tensor, " neuron"]
    auroc: Float[Tensor, " neuron"]
    first_second: Float[Tensor, " neuron"]
    second_third: Float[Tensor, " neuron"]
    neurons: Sequence[int]
    intervals: Float[Tensor, "top 2"]
    values: Float[Tensor, "triple 3 top"]
    state_auroc: float
    state_interval: Sequence[float]
    shuffled_aurocs: Sequence[float]
    random_aurocs: Sequence[float]
    n_selection: int
    n_test: int

    @property
    def best_auroc(self) -> float:
        """Held-out area of the neuron that the selection half chose."""
        return float(self.auroc[self.neurons[0]])

    @property
    def null_auroc(self) -> float:
        """What the interval of a detector must lie above: the best of the shuffled places."""
        return max(0.5, *self.shuffled_aurocs)

    @property
    def detectors(self) -> list[int]:
        """Those of ``neurons`` whose interval lies above the null."""
        return [n for n, (low, _) in zip(self.neurons, self.intervals.tolist(), strict=True) if low > self.null_auroc]

    @property
    def found(self) -> bool:
        """Whether the chosen neuron tells first tokens better than anything under shuffled places."""
        return self.neurons[0] in self.detectors

    def ranking(self, score: Score = "auroc") -> list[int]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """All neurons, the most telling of the selection half first, or by the published score (largest first).

        Raises:
            InputError: another score.
        """
        if score not in ("auroc", "published"):
            raise InputError(f"score={score!r}", "'auroc' or 'published'", "choose one of these")
        values = (self.selection_auroc - 0.5).abs() if score == "auroc" else self.score
        return torch.argsort(values, descending=True, stable=True).tolist()

    def top(self, k: int, score: Score = "auroc") -> list[tuple[int, int]]:
        """The first ``k`` of a ranking, as ``(layer, neuron)``: what :class:`mechrep.Neurons` takes.

        Raises:
            InputError: ``k`` larger than the number of neurons, or another score.
        """
        check_count(k, len(self.auroc), "neurons")
        return [(self.layer, neuron) for neuron in self.ranking(score)[:k]]

    def to_frame(self) -> pd.DataFrame:
        """One row per neuron, most telling first; intervals of the best ones only."""
        order = self.ranking()
        ends = torch.full((len(order), 2), torch.nan)
        ends[list(self.neurons)] = self.intervals
        columns = {
            "auroc": self.auroc,
            "low": ends[:, 0],
            "high": ends[:, 1],
            "first_second": self.first_second,
            "second_third": self.second_third,
            "selection_auroc": self.selection_auroc,
            "score": self.score,
        }
        values = {name: value[order].numpy() for name, value in columns.items()}
        return pd.DataFrame({"layer": self.layer, "neuron": order, **values})

    def plot(self) -> go.Figure:
        """Histograms of the best neuron at the three places."""
        return detector_figure(self)


_PAIRS = {"first_second": (0, 1), "second_third": (1, 2)}
_RANDOM = 100


def first_token_detectors(
    model: Model,
    texts: Corpus | Sequence[str] | None = None,
    *,
    layer: int | None = None,
    triples: int = 1000,
    k: int = 10,
    shuffles: int = 20,
    seed: int = 0,
) -> FirstDetectorResult:
    """Looks for neurons that tell the first token of a text from the second and third.

    Args:
        model: the model.
        texts: a corpus, or texts; held-out English by default.
        layer: whose MLP is read; by default the first that sees the attention of layer 0, as published.  A model may
            need the attention of more layers to tell.
        triples: at most so many triples of consecutive tokens.
        k: neurons that are kept with intervals and values.
        shuffles: how often the places are shuffled for the null.
        seed: of halves, shuffles and bootstrap samples.

    Returns:
        Areas per neuron, with nulls; ``found`` is False where the best neuron does not clear them.

    Raises:
        InputError: no such layer, too few texts, another model's corpus, no neurons or shuffles asked for, or a
            parallel model of one layer.

    Source: the published score, ``mean((Q_0 - Q_1) W_gate)`` over 1000 triples, is Yona et al. 2025 (arXiv 2503.08908).
    Held-out halves, areas, intervals and nulls are mechrep's own.

    Limits: read is what goes into the activation function (``GATE_PRE``), as published.  In parallel blocks (GPT-NeoX)
    the MLP of layer 0 cannot see attention 0, so layer 1 is read.  Learned positions tell places apart without any
    attention: cut the heads and see (:func:`mechrep.measures.first_token_heads.first_layer_head_cuts`).

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> result = first_token_detectors(model, triples=60, k=2, shuffles=2)
        >>> len(result.top(2)), result.auroc.shape[0] == model.anatomy.d_mlp
        (2, True)
    """
    if not 1 <= k <= model.anatomy.d_mlp or shuffles < 1:
        raise InputError(
            f"k={k}, shuffles={shuffles}", f"1 to {model.anatomy.d_mlp} neurons, at least one shuffle", "correct them"
        )
    read = detector_layer(model.anatomy) if layer is None else layer
    if not 0 <= read < model.anatomy.n_layers:
        raise InputError(f"layer {read}", f"a layer from 0 to {model.anatomy.n_layers - 1}", "count layers from 0")
    corpus = corpus_of(model, texts)
    stimulus = triples_of(model, corpus, limit=triples, seed=seed)
    seen = read_triples(model, stimulus.tokens, layer=read)
    places, ids = stimulus.places, stimulus.ids
    selection, test, first = stimulus.selection, stimulus.test, stimulus.places == 0
    chosen = aurocs(seen.neurons[selection], first[selection])
    signs = np.where(chosen < 0.5, -1.0, 1.0).astype(np.float32)
    oriented = seen.neurons[test] * signs
    areas = aurocs(oriented, first[test])
    ranking = _ranking(chosen)
    top = ranking[:k]
    generator = np.random.default_rng(seed)
    blind = generator.choice(len(chosen), min(_RANDOM, len(chosen)), replace=False)
    state = state_scores(seen, stimulus)
    config = {"triples": len(stimulus.tokens), "k": k, "shuffles": shuffles, "seed": seed}
    config |= {} if layer is None else {"layer": layer}
    return FirstDetectorResult(
        provenance_of(model, corpus, config),
        layer=read,
        score=torch.from_numpy((seen.neurons[places == 0] - seen.neurons[places == 1]).mean(0)),
        selection_auroc=torch.from_numpy(chosen).float(),
        auroc=torch.from_numpy(areas).float(),
        **{name: torch.from_numpy(_pair(oriented, places[test], *pair)).float() for name, pair in _PAIRS.items()},
        neurons=top,
        intervals=torch.tensor([_interval(oriented[:, n], first[test], ids[test], seed) for n in top]),
        values=torch.from_numpy(seen.neurons[:, top].reshape(-1, WIDTH, k)),
        state_auroc=float(aurocs(state[:, None], first[test])[0]),
        state_interval=list(_interval(state, first[test], ids[test], seed)),
        shuffled_aurocs=_shuffled(seen.neurons, stimulus, shuffles, generator),
        random_aurocs=areas[blind].tolist(),
        n_selection=int(selection.sum()),
        n_test=int(test.sum()),
    )


def state_scores(seen: Seen, triples: Triples) -> Float[np.ndarray, " token"]:
    """The test observations along the direction from the mean of the others to the mean of first tokens.

    The direction is that of the selection half.
    """
    first = triples.places == 0
    means = [seen.state[triples.selection & label].mean(0) for label in (first, ~first)]
    return seen.state[triples.test] @ (means[0] - means[1])


def _ranking(selection: Float[np.ndarray, " neuron"]) -> list[int]:
    """Neurons, those that tell first tokens best in the selection half first, in either direction."""
    return np.argsort(-np.abs(selection - 0.5), kind="stable").tolist()


def _pair(
    values: Float[np.ndarray, "token neuron"], places: np.ndarray, one: int, other: int
) -> Float[np.ndarray, " neuron"]:
    among = (places == one) | (places == other)
    return aurocs(values[among], places[among] == one)


def _interval(
    values: Float[np.ndarray, " token"], first: Bool[np.ndarray, " token"], ids: np.ndarray, seed: int
) -> tuple[float, float]:
    """Bootstrap over words: all places at which a word stands are drawn together."""
    draws = auroc_draws(values, first, ids, seed=seed)
    return percentile_interval(draws[np.isfinite(draws)].tolist())


def _shuffled(
    neurons: Float[np.ndarray, "token neuron"], triples: Triples, shuffles: int, generator: np.random.Generator
) -> list[float]:
    """Held-out area of the best neuron where places are permuted within each triple, so that no neuron can know them.

    A value whose place is shuffled keeps its neuron's distribution, and the choice of the best is made anew.
    """
    from scipy.stats import rankdata

    halves = [(mask, rankdata(neurons[mask], axis=0)) for mask in (triples.selection, triples.test)]
    found: list[float] = []
    for _ in range(shuffles):
        places = generator.permuted(np.tile(np.arange(WIDTH), (len(triples.tokens), 1)), axis=1).flatten()
        chosen, held_out = (areas_of_ranks(ranks, places[mask] == 0) for mask, ranks in halves)
        best = _ranking(chosen)[0]
        found.append(float(held_out[best] if chosen[best] >= 0.5 else 1 - held_out[best]))
    return found


PLACES = ("attention", "layer")  # output of layer 0's attention, and of layer 0
SAME_VALUE = 1e-3  # larger deviations within a run of one token: the position is part of the value
_ROUNDING = 1e-5  # of the limit's norm; closer than that, distances are rounding error
_SLOPE_TOLERANCE = {"rotary": 0.5}  # rotary scores oscillate
_TOLERANCE = 0.1
_DRAWS = 1000  # of bootstrap intervals


@dataclass(frozen=True, eq=False)
class ConvergenceResult(Result):
    """Copies of tokens after a prefix, against the same token alone.

    Attributes:
        token_ids: the repeated tokens, one per text.
        prefix_length: tokens in front of the copies, m.
        repeats: numbers of copies n at which is measured (1, then in logarithmic steps, then all).
        distance: from the state of the token alone; places are :data:`PLACES`.
        limit_norm: norm of that state.
        mass: attention of each head to the prefix at copy n, w.
        odds: the same over the attention to the copies, w / (1 - w).
        window: how many keys layer 0 sees; 0 where it sees all.
        pure_deviation: in a run of one token without anything before it, the largest distance from the first position
            over its norm, after every layer.
        value_deviation: the same of the output of layer 0's attention: rounding where equal tokens have equal values.
        head_slope: of log odds against log n, over the last three quarters of the copies; NaN where too little
            is left to fit.
        head_rate: of the same against n, per copy.
        slope: of log distance against log n.
        rate: of the same against n, per copy.
        mass_law: which line is nearer for most heads and tokens: ``"power"``, ``"exponential"``, ``"zero"`` (the prefix
            is out of sight), or ``"none"`` (it does not fall).
        law: the same for the distance of the attention's output.
        theory: the law that the kind of positions lets expect for ``mass_law``; ``"none"`` where values depend on the
            position, so that distances have no reason to vanish.
        theory_words: why.
        expected_rates: rate of every head under ALiBi; empty elsewhere.
        positions: kind of position encoding.
    """

    token_ids: Sequence[int]
    prefix_length: int
    repeats: Sequence[int]
    distance: Float[Tensor, "text place repeat"]
    limit_norm: Float[Tensor, "text place"]
    mass: Float[Tensor, "text head repeat"]
    odds: Float[Tensor, "text head repeat"]
    window: int
    pure_deviation: Float[Tensor, "text layer"]
    value_deviation: Float[Tensor, " text"]
    head_slope: Float[Tensor, "text head"]
    head_rate: Float[Tensor, "text head"]
    slope: Float[Tensor, "text place"]
    rate: Float[Tensor, "text place"]
    mass_law: str
    law: str
    theory: str
    theory_words: str
    expected_rates: Sequence[float]
    positions: str

    @classmethod
    def from_measured(
        cls,
        provenance: Provenance,
        *,
        token_ids: Sequence[int],
        prefix_length: int,
        repeats: Sequence[int],
        distance: Float[Tensor, "text place repeat"],
        limit_norm: Float[Tensor, "text place"],
        mass: Float[Tensor, "text head repeat"],
        odds: Float[Tensor, "text head repeat"],
        window: int,
        pure_deviation: Float[Tensor, "text layer"],
        value_deviation: Float[Tensor, " text"],
        positions: str,
    ) -> ConvergenceResult:
        """Fit the curves and look up the theory."""
        heads = [[fit_decay(repeats, curve) for curve in text] for text in odds.tolist()]
        outputs = [
            [fit_decay(repeats, curve, _ROUNDING * norm) for curve, norm in zip(curves, norms, strict=True)]
            for curves, norms in zip(distance.tolist(), limit_norm.tolist(), strict=True)
        ]
        theory = expected(positions, window, bool(value_deviation.max() < SAME_VALUE))
        return cls(
            provenance,
            token_ids=list(token_ids),
            prefix_length=prefix_length,
            repeats=list(repeats),
            distance=distance.float(),
            limit_norm=limit_norm.float(),
            mass=mass.float(),
            odds=odds.float(),
            window=window,
            pure_deviation=pure_deviation.float(),
            value_deviation=value_deviation.float(),
            head_slope=torch.tensor([[fit.slope for fit in text] for text in heads]),
            head_rate=torch.tensor([[fit.rate for fit in text] for text in heads]),
            slope=torch.tensor([[fit.slope for fit in text] for text in outputs]),
            rate=torch.tensor([[fit.rate for fit in text] for text in outputs]),
            mass_law="zero" if window else _most([fit.law for text in heads for fit in text]),
            law="zero"
            if bool((distance[:, 0, -1] <= _ROUNDING * limit_norm[:, 0]).all()) and window
            else _most([text[0].law for text in outputs]),
            theory=theory.law,
            theory_words=theory.words,
            expected_rates=[-slope for slope in alibi_slopes(mass.shape[1])] if positions == "alibi" else [],
            positions=positions,
        )

    @property
    def median_slope(self) -> float:
        """Median over heads and tokens of ``head_slope``; -1 is 1/n."""
        return float(np.nanmedian(self.head_slope.numpy())) if bool(self.head_slope.isfinite().any()) else float("nan")

    @property
    def slope_interval(self) -> tuple[float, float]:
        """95 % of ``median_slope``, bootstrap over tokens; NaN where no slope was fitted."""
        slopes = self.head_slope.double().numpy()
        fitted = slopes[np.isfinite(slopes).any(1)]
        if not len(fitted):
            return (float("nan"), float("nan"))
        picks = np.random.default_rng(0).integers(0, len(fitted), (_DRAWS, len(fitted)))
        return percentile_interval([float(np.nanmedian(fitted[pick])) for pick in picks])

    @property
    def agrees(self) -> bool:
        """Whether what was measured is what theory expects.

        1/n: the median slope is -1 to 0.1, to 0.5 with rotary positions.  ALiBi: the heads' rates are their slopes, to
        10 % in the median.  A window: nothing is left of the prefix.  Values with positions: the distance stays.
        ``False`` may mean too few copies: large scores (rotary ones turn by up to their size) take thousands.
        """
        if self.theory == "none":
            return self.law == "none"
        if self.theory == "zero":
            beyond = [index for index, n in enumerate(self.repeats) if n >= self.window]
            return bool((self.mass[:, :, beyond] == 0).all())
        if self.theory == "exponential":
            ratio = self.head_rate / torch.tensor(self.expected_rates)
            return bool((ratio - 1).nanmedian().abs() <= _TOLERANCE)
        return abs(self.median_slope + 1) <= _SLOPE_TOLERANCE.get(self.positions, _TOLERANCE)

    def relative(self, place: str = "attention") -> Float[Tensor, "text repeat"]:
        """Distance over the norm of the limit.

        Raises:
            InputError: another place than those of :data:`PLACES`.
        """
        if place not in PLACES:
            raise InputError(f"place={place!r}", f"one of {PLACES}", "choose one of these")
        index = PLACES.index(place)
        return self.distance[:, index] / self.limit_norm[:, index, None]

    def top(self, k: int) -> list[int]:
        """The ``k`` tokens whose last copy is nearest to the token alone, after layer 0.

        Raises:
            InputError: ``k`` larger than the number of tokens.
        """
        check_count(k, len(self.token_ids), "tokens")
        order = torch.argsort(self.relative("layer")[:, -1], stable=True).tolist()
        return [self.token_ids[text] for text in order[:k]]

    def to_frame(self) -> pd.DataFrame:
        """One row per token and number of copies: distances over the limit's norm, and the mean mass of the heads."""
        texts, points = len(self.token_ids), len(self.repeats)
        columns = {f"{place}_distance": self.relative(place).flatten().numpy() for place in PLACES}
        ids = [token for token in self.token_ids for _ in range(points)]
        mass = self.mass.mean(1).flatten().numpy()
        return pd.DataFrame({"token_id": ids, "repeats": [*self.repeats] * texts, **columns, "mass": mass})

    def plot(self) -> go.Figure:
        """Distances against the number of copies."""
        return convergence_figure(self)


def _most(laws: Sequence[Law]) -> Law:
    """The most frequent law, in a tie the first of them."""
    return Counter(laws).most_common(1)[0][0]


_PREFIX = "some prefix: "
_TOKENS, _REPEATS, _PURE = 8, 500, 64
_SITES = (Site.ATTN_OUT, Site.RESID_POST)  # in the order of convergence_result.PLACES


def first_layer_convergence(
    model: Model,
    token_ids: Sequence[int] | None = None,
    *,
    prefix: Sequence[int] | None = None,
    repeats: int | None = None,
) -> ConvergenceResult:
    """Measures how copies of each token approach that token alone, as the first layer sees them.

    Args:
        model: the model, in float32 or finer.
        token_ids: the repeated tokens; by default the 8 most frequent of held-out English.
        prefix: ids in front of the copies; by default ``"some prefix: "``, with BOS by the model's habit.
        repeats: number of copies; by default 500, or what the model reads.

    Returns:
        Distances and masses against the number of copies, the fitted rates, and what theory expects.

    Raises:
        InputError: half precision, no tokenizer and no ids, an empty prefix or one that holds a repeated token, fewer
            than 8 copies, more than the model reads, or a model without attention patterns.

    Source: BOS, ``"some prefix: "`` and 500 copies is Yona et al. 2025 (arXiv 2503.08908), whose figure names attention
    0 and draws layer 0 with its MLP; both are here.  Masses, fits and the comparison with theory are mechrep's own.

    Limits: a fit over a few hundred copies sees the beginning of a law only; heads with a strong preference for the
    prefix need thousands.  Half precision makes neighbouring copies equal by rounding, and is refused.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> result = first_layer_convergence(model, [300, 301], repeats=40)
        >>> result.repeats[-1], result.theory, bool((result.pure_deviation < 1e-4).all())
        (40, 'power', True)
    """
    check_patterns(model.anatomy)
    if model.dtype.itemsize < torch.float32.itemsize:
        raise InputError(
            f"{model.name} in {str(model.dtype).removeprefix('torch.')}",
            "float32: half precision makes neighbouring copies equal by rounding",
            "load it with dtype=torch.float32",
        )
    front, tokens = _front_and_tokens(model, prefix, token_ids)
    most = model.anatomy.n_ctx - len(front)
    copies = min(most, _REPEATS) if repeats is None else repeats
    if not 8 <= copies <= most:
        raise InputError(f"{copies} copies after {len(front)} tokens", f"8 to {most}", "choose others, or shorten it")
    rows = Corpus.from_tokens([[*front, *[token] * copies] for token in tokens], model=model)
    grid = repeat_grid(copies)
    seen = [_follow(model, rows.row(text), len(front), grid) for text in range(len(tokens))]
    limits = [_states(model, [token], [0]) for token in tokens]
    runs = [_run_deviations(model, token, min(_PURE, model.anatomy.n_ctx)) for token in tokens]
    return ConvergenceResult.from_measured(
        provenance_of(model, rows, {"prefix": front, "repeats": copies}),
        token_ids=tokens,
        prefix_length=len(front),
        repeats=grid,
        distance=torch.stack([(s.states - limit).norm(dim=-1) for s, limit in zip(seen, limits, strict=True)]),
        limit_norm=torch.stack([limit[:, 0].norm(dim=-1) for limit in limits]),
        mass=torch.stack([s.mass for s in seen]),
        odds=torch.stack([s.odds for s in seen]),
        window=max(s.window for s in seen),
        pure_deviation=torch.stack([layers for layers, _ in runs]),
        value_deviation=torch.stack([attention for _, attention in runs]),
        positions=model.anatomy.positions,
    )


class _Followed:
    """States and masses of one text at the copies asked for, filled while the model runs."""

    states: Float[Tensor, "place repeat d_model"]
    mass: Float[Tensor, "head repeat"]
    odds: Float[Tensor, "head repeat"]
    window: int


def _follow(model: Model, ids: list[int], front: int, grid: Sequence[int]) -> _Followed:
    places = [front + n - 1 for n in grid]
    followed, row = _Followed(), torch.tensor(ids)

    def receive(pattern: Tensor, _site: Site, _layer: int) -> None:
        exact = pattern[0].cpu().double()
        rows = exact[:, places]
        followed.mass = other_token_mass(rows, row, torch.tensor(places))
        # Not 1 - w: where a head hardly looks at the copies, that is rounding.
        followed.odds = followed.mass / (rows * (row == row[-1])).sum(-1)
        followed.window = _window(exact)

    read_activations(model, row[None].to(model.device), {Site.PATTERN: [LAYER]}, receive)
    followed.states = _states(model, ids, places)
    return followed


def _window(pattern: Float[Tensor, "head query_pos key_pos"]) -> int:
    """How many keys the last query sees, where that is fewer than all; 0 where it sees the first.

    A key counts as seen if any head gives it anything at all.
    """
    seen = (pattern[:, -1] > 0).any(0).nonzero().flatten()
    return 0 if int(seen[0]) == 0 else pattern.shape[-1] - int(seen[0])


def _states(model: Model, ids: list[int], places: Sequence[int]) -> Float[Tensor, "place repeat d_model"]:
    """Outputs of layer 0's attention and of layer 0, at some positions of one text."""
    found: dict[Site, Tensor] = {}

    def receive(activation: Tensor, site: Site, _layer: int) -> None:
        found[site] = activation[0, list(places)].cpu().double()

    read_activations(model, torch.tensor([ids], device=model.device), {site: [LAYER] for site in _SITES}, receive)
    return torch.stack([found[site] for site in _SITES])


def _run_deviations(model: Model, token: int, length: int) -> tuple[Float[Tensor, " layer"], Float[Tensor, ""]]:
    """Largest distances from the first position in a run of one token, over its norm: after layers, of attention 0."""
    found: dict[tuple[Site, int], Tensor] = {}

    def receive(activation: Tensor, site: Site, layer: int) -> None:
        states = activation[0].cpu().double()
        found[site, layer] = (states - states[0]).norm(dim=-1).max() / states[0].norm()

    tokens, layers = torch.full((1, length), token, device=model.device), range(model.anatomy.n_layers)
    read_activations(model, tokens, {Site.RESID_POST: layers, Site.ATTN_OUT: [LAYER]}, receive)
    return torch.stack([found[Site.RESID_POST, layer] for layer in layers]), found[Site.ATTN_OUT, LAYER]


def _front_and_tokens(
    model: Model, prefix: Sequence[int] | None, token_ids: Sequence[int] | None
) -> tuple[list[int], list[int]]:
    """The prefix and the repeated tokens, as given or by default."""
    if model.tokenizer is None and (prefix is None or token_ids is None):
        raise InputError(f"{model.name}, which has no tokenizer", "ids", "pass prefix=[...] and token_ids=[...]")
    front = model.encode(_PREFIX) if prefix is None else list(prefix)
    if token_ids is None:
        corpus = corpus_of(model, None)
        counted = Counter(token for text in range(len(corpus)) for token in corpus.row(text))
        unfit = model.special_ids.union(front)  # a copy in the prefix would be no other token
        tokens = [token for token, _ in counted.most_common() if token not in unfit][:_TOKENS]
    else:
        tokens = list(token_ids)
    if not front or not tokens or len(set(tokens)) < len(tokens) or set(front).intersection(tokens):
        raise InputError(
            f"prefix {front}, repeated tokens {tokens}",
            "at least one of each, no token twice, and none of them in the prefix",
            "choose others",
        )
    return front, tokens


_REST = translucent(INK, 0.45)
_PLACES = ("first token", "second token", "third token")


def detector_figure(result: FirstDetectorResult, neuron: int | None = None) -> go.Figure:
    """What one neuron is at the first, second and third token, as three histograms.

    Args:
        result: what was measured.
        neuron: one of the result's ``neurons``; the most telling by default.

    Raises:
        InputError: a neuron whose values were not kept.

    Source: Yona et al. 2025 (arXiv 2503.08908), the histogram of the first-detector neuron.

    Example:
        >>> import mechrep
        >>> from mechrep.measures.first_token import first_token_detectors
        >>> result = first_token_detectors(mechrep.load_model("mechrep-tiny"), triples=60, k=2, shuffles=1)
        >>> [part.name for part in detector_figure(result).data]
        ['first token', 'second token', 'third token']
    """
    import plotly.graph_objects as go

    chosen = result.neurons[0] if neuron is None else neuron
    if chosen not in result.neurons:
        raise InputError(f"neuron {chosen}", f"one of {list(result.neurons)}", "ask for more neurons (k)")
    values = result.values[:, :, list(result.neurons).index(chosen)]
    low, high = float(values.min()), float(values.max())
    bins = {"start": low, "end": high, "size": max((high - low) / 40, 1e-9)}
    figure = go.Figure()
    for place, name in enumerate(_PLACES):
        figure.add_histogram(
            x=values[:, place].numpy(),
            xbins=bins,
            autobinx=False,
            histnorm="probability",
            name=name,
            marker={"color": SEQUENCE[place], "pattern": {"shape": ("", "/", "\\")[place]}},
            opacity=0.6,
            hovertemplate=f"{name}, %{{x}}<br>%{{y:.1%}} of its values<extra></extra>",
        )
    low_end, high_end = result.intervals[list(result.neurons).index(chosen)].tolist()
    areas = (
        f"area first against rest {float(result.auroc[chosen]):.3f} ({low_end:.3f} to {high_end:.3f}) on other words"
    )
    styled(
        figure,
        title=f"Neuron {chosen} of layer {result.layer} at the first three tokens",
        subtitle=f"{result.provenance.model['name']}; {areas}, shuffled places at most {result.null_auroc:.3f}",
        x="what goes into the neuron's activation function",
        y="share of tokens",
    )
    return figure.update_layout(barmode="overlay", bargap=0)


def convergence_figure(result: ConvergenceResult, place: str = "layer") -> go.Figure:
    """Relative distance of copies from the token alone, against the number of copies; both axes logarithmic.

    Args:
        result: what was measured.
        place: ``"attention"`` or ``"layer"``: the output of layer 0's attention, or of layer 0.

    Raises:
        InputError: another place.

    Source: Yona et al. 2025 (arXiv 2503.08908), the convergence curve of one token.

    Example:
        >>> import mechrep
        >>> from mechrep.measures.first_token import first_layer_convergence
        >>> result = first_layer_convergence(mechrep.load_model("mechrep-tiny"), [300, 301], repeats=40)
        >>> convergence_figure(result).layout.yaxis.type
        'log'
    """
    import plotly.graph_objects as go

    distances, figure, names = result.relative(place), go.Figure(), len(SEQUENCE)
    for text, token in enumerate(result.token_ids):
        coloured = text < names
        figure.add_scatter(
            x=list(result.repeats),
            y=np.where(distances[text] > 0, distances[text], np.nan),  # exactly 0 has no place on this axis
            name=f"token {token}" if coloured else counted(len(result.token_ids) - names, "other token"),
            legendgroup="" if coloured else "rest",
            showlegend=text <= names,
            mode="lines+markers",
            marker={"size": 4},
            line={"color": SEQUENCE[text], "dash": DASHES[text], "width": 2}
            if coloured
            else {"color": _REST, "width": 1},
            hovertemplate=f"token {token}, copy %{{x:,}}<br>distance %{{y:.3g}}<extra></extra>",
        )
    fit = f"share of the prefix: slope {result.median_slope:.2f}, expected {result.theory}"
    agreed = "agrees" if result.agrees else "does not agree"
    styled(
        figure,
        title="Copies of a token approach the token alone",
        subtitle=f"{result.provenance.model['name']}, {counted(result.prefix_length, 'token')} before; {fit}: {agreed}",
        x="number of the copy (logarithmic)",
        y=f"distance from the token alone, over its norm, after {_where(place)}",
    )
    return figure.update_xaxes(type="log", dtick=1).update_yaxes(type="log")


def _where(place: str) -> str:
    return "attention 0" if place == "attention" else "layer 0"
