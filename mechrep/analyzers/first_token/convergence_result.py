"""``ConvergenceResult``: distances of copies from the token alone, rates fitted to them, and what theory expects."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechrep.analyzers.first_token.rates import Law, alibi_slopes, expected, fit_decay
from mechrep.errors import InputError
from mechrep.provenance import Provenance
from mechrep.results import Result, check_count
from mechrep.stats import percentile_interval

if TYPE_CHECKING:
    import plotly.graph_objects as go

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
        from mechrep.views.first_token_plots import convergence_figure

        return convergence_figure(self)


def _most(laws: Sequence[Law]) -> Law:
    """The most frequent law, in a tie the first of them."""
    return Counter(laws).most_common(1)[0][0]
