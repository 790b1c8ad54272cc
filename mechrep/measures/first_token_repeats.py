"""Do repetitions of a token after a prefix come to the state of the token alone, and how fast?

Texts are a prefix and n repetitions of x; the limit is x alone, without BOS.  Per number of repetitions::

    distance(n) = |out(repetition n) - out(x alone)|    of layer 0's attention output, and of layer 0 as a whole
    w(n)        = attention of each head to the prefix, at repetition n

and, on a pure run of x without prefix, whether all positions are in one state at every depth: they are in models
without positions in their values (rotary, ALiBi, none), and are not where positions are learned.

Of a prefix of m tokens a head of layer 0 without positions gives the share::

    w = S / (S + n),  S = sum_j exp(s_j - s_x),   so the odds w / (1 - w) = S / n fall with slope -1 in log-log, exactly

With rotary positions S oscillates within bounds.  ALiBi multiplies the prefix by exp(-a n), a the head's slope, so the
log of the odds is a straight line in n; a sliding window W drops the prefix at n = W.  Where values depend on the
position there is no such limit.  These laws are arithmetic of the softmax and need no training: null models obey them
too, so what is measured is compared with theory and not with null models.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechrep.errors import InputError, MissingPartError
from mechrep.figures import DASHES, INK, SEQUENCE, counted, new_figure, styled, translucent
from mechrep.guards import guarded, one_of
from mechrep.measures.first_token import LAYER, check_patterns, corpus_of, other_token_mass
from mechrep.measures.sink_norms import repeat_grid
from mechrep.models.anatomy import Site
from mechrep.models.model import Model
from mechrep.models.reading import read_activations
from mechrep.provenance import provenance_of
from mechrep.results import Result
from mechrep.stats import percentile_interval
from mechrep.text.corpus import Corpus

if TYPE_CHECKING:
    import plotly.graph_objects as go

Law = Literal["power", "exponential", "zero", "none"]

SMALLEST = 1e-30  # of a share of attention; below lies what float32 cannot hold well
_TAIL = 4  # fits use the last numbers of repeats, from a fourth of the largest on
_FEWEST = 4


@dataclass(frozen=True)
class Fit:
    """Two straight lines through the tail of one curve.

    Attributes:
        slope: of log y against log n.
        slope_rmse: distance of the points from that line, in log units.
        rate: of log y against n, per repetition.
        rate_rmse: the same for this line.
    """

    slope: float
    slope_rmse: float
    rate: float
    rate_rmse: float

    @property
    def law(self) -> Law:
        """The line that is nearer; ``"none"`` without a fit, or where nothing falls by a tenth over the tail."""
        if math.isnan(self.slope) or self.slope > math.log(0.9) / math.log(_TAIL):
            return "none"
        return "power" if self.slope_rmse <= self.rate_rmse else "exponential"


NO_FIT = Fit(math.nan, math.nan, math.nan, math.nan)


def fit_decay(repeats: Sequence[int], values: Sequence[float], floor: float = SMALLEST) -> Fit:
    """Fit both laws to the tail of a curve.

    Args:
        repeats: numbers of repeats, rising.
        values: one per number.
        floor: from the first value below it on, the curve is rounding error and left out.

    Returns:
        The fit; NaN where fewer than four points are left.

    Example:
        >>> fit = fit_decay(list(range(1, 65)), [3 / n for n in range(1, 65)])
        >>> round(fit.slope, 6), fit.law
        (-1.0, 'power')
    """
    n, y = np.asarray(repeats, dtype=float), np.asarray(values, dtype=float)
    low = np.flatnonzero(~(y > floor))
    n, y = (n[: low[0]], y[: low[0]]) if len(low) else (n, y)
    if len(n) == 0:
        return NO_FIT
    tail = n >= n[-1] / _TAIL
    if tail.sum() < _FEWEST:
        return NO_FIT
    (slope, slope_rmse), (rate, rate_rmse) = (_line(x[tail], np.log(y[tail])) for x in (np.log(n), n))
    return Fit(slope, slope_rmse, rate, rate_rmse)


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Slope of the straight line through the points, and their root mean square distance from it."""
    slope, intercept = np.polyfit(x, y, 1)
    return float(slope), float(np.sqrt(np.mean((y - slope * x - intercept) ** 2)))


def alibi_slopes(n_heads: int) -> list[float]:
    """The slope of every head under ALiBi: a geometric sequence, filled up with every second of the next finer one.

    Source: Press et al. 2022 (arXiv 2108.12409).

    Example:
        >>> alibi_slopes(4), len(alibi_slopes(12))
        ([0.25, 0.0625, 0.015625, 0.00390625], 12)
    """
    power = 2 ** int(math.log2(n_heads))
    slopes = [2 ** (-8 * (head + 1) / power) for head in range(power)]
    finer = [2 ** (-4 * (head + 1) / power) for head in range(2 * power)]
    return slopes + finer[::2][: n_heads - power]


def expected(positions: str, window: int, same_value: bool) -> Law:
    """The law by which theory expects the odds of a head to fall.

    Args:
        positions: the model's kind of position encoding, as :class:`mechrep.models.anatomy.Anatomy` has it.
        window: how many keys layer 0 sees; 0 for all.
        same_value: whether equal tokens have equal values wherever they stand, measured on a run of one token.

    Example:
        >>> expected("rotary", 0, True), expected("alibi", 0, True), expected("standard", 0, False)
        ('power', 'exponential', 'none')
    """
    if not same_value:
        return "none"
    if window:
        return "zero"
    return "exponential" if positions == "alibi" else "power"


PLACES = ("attention", "layer")  # output of layer 0's attention, and of layer 0
SAME_VALUE = 1e-3  # larger deviations within a run of one token: the position is part of the value
_ROUNDING = 1e-5  # of the limit's norm; closer than that, distances are rounding error
_SLOPE_TOLERANCE = {"rotary": 0.5}  # rotary scores oscillate
_TOLERANCE = 0.1
_DRAWS = 1000  # of bootstrap intervals


@dataclass(frozen=True, eq=False)
class ConvergenceResult(Result):
    """Repetitions of tokens after a prefix, against the same token alone.

    Attributes:
        token_ids: the repeated tokens, one per text.
        prefix_length: tokens in front of the repetitions, m.
        repeats: numbers of repetitions n at which is measured (1, then in logarithmic steps, then all).
        distance: from the state of the token alone; places are :data:`PLACES`.
        limit_norm: norm of that state.
        mass: attention of each head to the prefix at repetition n, w.
        odds: the same over the attention to the repetitions, w / (1 - w).
        window: how many keys layer 0 sees; 0 where it sees all.
        pure_deviation: in a run of one token without anything before it, the largest distance from the first position
            over its norm, after every layer.
        value_deviation: the same of the output of layer 0's attention: rounding where equal tokens have equal values.
        head_slope: of log odds against log n, over the last three quarters of the repetitions; NaN where too little
            is left to fit.
        head_rate: of the same against n, per repetition.
        slope: of log distance against log n.
        rate: of the same against n, per repetition.
        mass_law: which line is nearer for most heads and tokens: ``"power"``, ``"exponential"``, ``"zero"`` (the prefix
            is out of sight), or ``"none"`` (it does not fall).
        law: the same for the distance of the attention's output.
        theory: the law that the kind of positions lets expect for ``mass_law``; ``"none"`` where values depend on the
            position, so that distances have no reason to vanish.
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
    expected_rates: Sequence[float]
    positions: str

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
        ``False`` may mean too few repetitions: large scores (rotary ones turn by up to their size) take thousands.
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

    @guarded
    def relative(self, place: str = "attention") -> Float[Tensor, "text repeat"]:
        """Distance over the norm of the limit.

        Raises:
            InputError: another place than those of :data:`PLACES`.
        """
        one_of("place", place, PLACES)
        index = PLACES.index(place)
        return self.distance[:, index] / self.limit_norm[:, index, None]

    def to_frame(self) -> pd.DataFrame:
        """One row per token and number of repetitions: distances over the limit's norm, mean mass of the heads."""
        texts, points = len(self.token_ids), len(self.repeats)
        columns = {f"{place}_distance": self.relative(place).flatten().numpy() for place in PLACES}
        ids = [token for token in self.token_ids for _ in range(points)]
        mass = self.mass.mean(1).flatten().numpy()
        return pd.DataFrame({"token_id": ids, "repeats": [*self.repeats] * texts, **columns, "mass": mass})

    def plot(self) -> go.Figure:
        """Distances against the number of repetitions."""
        return convergence_figure(self)


_PREFIX = "some prefix: "
_TOKENS, _REPEATS, _PURE = 8, 500, 64
_SITES = (Site.ATTN_OUT, Site.RESID_POST)  # in the order of PLACES


def first_layer_convergence(
    model: Model,
    token_ids: Sequence[int] | None = None,
    *,
    prefix: Sequence[int] | None = None,
    repeats: int | None = None,
) -> ConvergenceResult:
    """Measures how repetitions of each token approach that token alone, as the first layer sees them.

    Args:
        model: the model, in float32 or finer.
        token_ids: the repeated tokens; by default the 8 most frequent of held-out English.
        prefix: ids in front of the repetitions; by default ``"some prefix: "``, with BOS by the model's habit.
        repeats: number of repetitions; by default 500, or what the model reads.

    Returns:
        Distances and masses against the number of repetitions, the fitted rates, and what theory expects.

    Raises:
        InputError: half precision, no tokenizer and no ids, an empty prefix or one that holds a repeated token, fewer
            than 8 repetitions, more than the model reads, or a model without attention patterns.

    Source: BOS, ``"some prefix: "`` and 500 repetitions is Yona et al. 2025 (arXiv 2503.08908), whose figure names
    attention 0 and draws layer 0 with its MLP; both are here.  Masses, fits and the comparison with theory are
    mechrep's own.

    Limits: a fit over a few hundred repetitions sees the beginning of a law only; heads with a strong preference for
    the prefix need thousands.  Half precision makes neighbouring repetitions equal by rounding, and is refused.

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
            "float32: half precision makes neighbouring repetitions equal by rounding",
            "load it with dtype=torch.float32",
        )
    front, tokens = _front_and_tokens(model, prefix, token_ids)
    most = model.anatomy.n_ctx - len(front)
    n = min(most, _REPEATS) if repeats is None else repeats
    if not 8 <= n <= most:
        raise InputError(f"{n} repetitions after {len(front)} tokens", f"8 to {most}", "choose others, or shorten it")
    rows = Corpus.from_tokens([[*front, *[token] * n] for token in tokens], model=model, attention_mask=True)
    grid = repeat_grid(n)
    seen = [_follow(model, rows.row(text), len(front), grid) for text in range(len(tokens))]
    limits = [_states(model, [token], [0]) for token in tokens]
    runs = [_run_deviations(model, token, min(_PURE, model.anatomy.n_ctx)) for token in tokens]
    distance = torch.stack([(s.states - limit).norm(dim=-1) for s, limit in zip(seen, limits, strict=True)])
    limit_norm = torch.stack([limit[:, 0].norm(dim=-1) for limit in limits])
    odds, window = torch.stack([s.odds for s in seen]), max(s.window for s in seen)
    value_deviation, positions = torch.stack([attention for _, attention in runs]), model.anatomy.positions
    return ConvergenceResult(
        provenance_of(model, rows, {"prefix": front, "repeats": n}),
        token_ids=tokens,
        prefix_length=len(front),
        repeats=grid,
        distance=distance.float(),
        limit_norm=limit_norm.float(),
        mass=torch.stack([s.mass for s in seen]).float(),
        odds=odds.float(),
        window=window,
        pure_deviation=torch.stack([layers for layers, _ in runs]).float(),
        value_deviation=value_deviation.float(),
        theory=expected(positions, window, bool(value_deviation.max() < SAME_VALUE)),
        expected_rates=[-slope for slope in alibi_slopes(odds.shape[1])] if positions == "alibi" else [],
        positions=positions,
        **_fitted(grid, odds, distance, limit_norm, window),
    )


def _fitted(
    repeats: Sequence[int],
    odds: Float[Tensor, "text head repeat"],
    distance: Float[Tensor, "text place repeat"],
    limit_norm: Float[Tensor, "text place"],
    window: int,
) -> dict[str, Any]:
    """Slopes, rates and laws of a :class:`ConvergenceResult`, by field."""
    heads = [[fit_decay(repeats, curve) for curve in text] for text in odds.tolist()]
    outputs = [
        [fit_decay(repeats, curve, _ROUNDING * norm) for curve, norm in zip(curves, norms, strict=True)]
        for curves, norms in zip(distance.tolist(), limit_norm.tolist(), strict=True)
    ]
    vanished = window and bool((distance[:, 0, -1] <= _ROUNDING * limit_norm[:, 0]).all())
    return {
        "head_slope": torch.tensor([[fit.slope for fit in text] for text in heads]),
        "head_rate": torch.tensor([[fit.rate for fit in text] for text in heads]),
        "slope": torch.tensor([[fit.slope for fit in text] for text in outputs]),
        "rate": torch.tensor([[fit.rate for fit in text] for text in outputs]),
        "mass_law": "zero" if window else _most([fit.law for text in heads for fit in text]),
        "law": "zero" if vanished else _most([text[0].law for text in outputs]),
    }


def _most(laws: Sequence[Law]) -> Law:
    """The most frequent law, in a tie the first of them."""
    return Counter(laws).most_common(1)[0][0]


class _Followed:
    """States and masses of one text at the repetitions asked for, filled while the model runs."""

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
        # Not 1 - w: where a head hardly looks at the repetitions, that is rounding.
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
        raise MissingPartError(f"{model.name}, which has no tokenizer", "ids", "pass prefix=[...] and token_ids=[...]")
    front = model.encode(_PREFIX) if prefix is None else list(prefix)
    if token_ids is None:
        corpus = corpus_of(model, None)
        counted = Counter(token for text in range(len(corpus)) for token in corpus.row(text))
        unfit = model.special_ids.union(front)  # one in the prefix would be no other token
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


def convergence_figure(result: ConvergenceResult, place: str = "layer") -> go.Figure:
    """Relative distance of repetitions from the token alone, against the number of repetitions; both axes logarithmic.

    Args:
        result: what was measured.
        place: ``"attention"`` or ``"layer"``: the output of layer 0's attention, or of layer 0.

    Raises:
        InputError: another place.

    Source: Yona et al. 2025 (arXiv 2503.08908), the convergence curve of one token.

    Example:
        >>> import mechrep
        >>> from mechrep.measures.first_token_repeats import first_layer_convergence
        >>> result = first_layer_convergence(mechrep.load_model("mechrep-tiny"), [300, 301], repeats=40)
        >>> convergence_figure(result).layout.yaxis.type
        'log'
    """

    distances, figure, names = result.relative(place), new_figure(), len(SEQUENCE)
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
            hovertemplate=f"token {token}, repetition %{{x:,}}<br>distance %{{y:.3g}}<extra></extra>",
        )
    styled(
        figure,
        title="Repetitions of a token approach the token alone",
        subtitle=f"{result.provenance.model['name']}, after {counted(result.prefix_length, 'other token')}",
        x="number of the repetition (logarithmic)",
        y=f"relative distance after {place} 0",
    )
    return figure.update_xaxes(type="log", dtick=1).update_yaxes(type="log")
