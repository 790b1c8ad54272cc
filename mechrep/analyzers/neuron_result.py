"""``RepetitionNeuronResult``: what a run of :class:`~mechrep.analyzers.neurons.RepetitionNeurons` found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechrep.errors import InputError
from mechrep.provenance import Provenance
from mechrep.results import Result, check_count

if TYPE_CHECKING:
    import plotly.graph_objects as go

Score = Literal["delta", "t", "dprime"]
PUBLISHED_SHARE = 0.005  # the published set: the first int(0.005 N) neurons of the ranking


@dataclass(frozen=True, eq=False)
class RepetitionNeuronResult(Result):
    """Rise of every neuron at the onset of loops, with its uncertainty.

    Attributes:
        delta: repetition mean minus normal mean, in units of the activation, pooled over positions.
        normal_mean: mean activation in the normal window.
        repetition_mean: mean activation in the repetition window.
        normal_sd: standard deviation over positions of the normal window.
        repetition_sd: the same for the repetition window.
        delta_published: ``delta`` with the published normal window.
        delta_clean: ``delta`` with the window before the first copy.
        standard_error: of the mean over texts of the per-text difference (the text is the unit).
        t: that mean over its standard error; infinite where all texts agree exactly.
        dprime: ``delta`` over the root mean of the two variances: an effect size without unit.
        profile: mean activation at offsets ``-r .. r`` from the position that predicts the onset token.
        n_texts: texts used.
        n_dropped: texts of the corpus that had no onset or no normal window.
        r: width of the windows.
        texts: ids of the texts used; tests of these neurons must use other texts.
    """

    delta: Float[Tensor, "layer neuron"]
    normal_mean: Float[Tensor, "layer neuron"]
    repetition_mean: Float[Tensor, "layer neuron"]
    normal_sd: Float[Tensor, "layer neuron"]
    repetition_sd: Float[Tensor, "layer neuron"]
    delta_published: Float[Tensor, "layer neuron"]
    delta_clean: Float[Tensor, "layer neuron"]
    standard_error: Float[Tensor, "layer neuron"]
    t: Float[Tensor, "layer neuron"]
    dprime: Float[Tensor, "layer neuron"]
    profile: Float[Tensor, "layer offset neuron"]
    n_texts: int
    n_dropped: int
    r: int
    texts: Sequence[str]

    @classmethod
    def from_state(
        cls, state: Mapping[str, Tensor], provenance: Provenance, r: int, texts: Sequence[str], dropped: int
    ) -> RepetitionNeuronResult:
        """Turn sums into means; a window without a single position gives NaN."""
        counts = state["counts"]
        normal, repetition, published, clean = (
            state[f"{name}_sum"] / counts[i] for i, name in enumerate(("normal", "repetition", "published", "clean"))
        )
        variances = [
            (state[f"{name}_squares"] / counts[i] - mean.square()).clamp_min(0)
            for i, (name, mean) in enumerate((("normal", normal), ("repetition", repetition)))
        ]
        n = state["texts"].item()
        mean = state["text_sum"] / n
        # Bessel's correction; below rounding error the texts agree exactly and the variance is zero.
        spread = (state["text_squares"] / n - mean.square()).clamp_min(0)
        spread = torch.where(spread < 1e-12 * (state["text_squares"] / n), 0.0, spread)
        error = (spread / (n - 1)).sqrt() if n > 1 else torch.full_like(mean, torch.nan)
        delta = repetition - normal
        profile = state["profile_sum"] / state["profile_count"][None, :, None]
        tensors = {
            "delta": delta,
            "normal_mean": normal,
            "repetition_mean": repetition,
            "normal_sd": variances[0].sqrt(),
            "repetition_sd": variances[1].sqrt(),
            "delta_published": repetition - published,
            "delta_clean": repetition - clean,
            "standard_error": error,
            "t": _ratio(mean, error),
            "dprime": _ratio(delta, ((variances[0] + variances[1]) / 2).sqrt()),
            "profile": profile,
        }
        floats = {name: value.float() for name, value in tensors.items()}
        return cls(provenance, **floats, n_texts=int(n), n_dropped=dropped, r=r, texts=list(texts))

    @property
    def n_neurons(self) -> int:
        """Neurons in the whole model."""
        return self.delta.numel()

    @property
    def published_k(self) -> int:
        """Size of the published set, ``int(0.005 N)``."""
        return int(PUBLISHED_SHARE * self.n_neurons)

    def ranking(self, score: Score = "delta") -> list[tuple[int, int]]:
        """All ``(layer, neuron)`` pairs, highest score first; ties keep the order of the flat index."""
        if score not in ("delta", "t", "dprime"):
            raise InputError(f"score={score!r}", "'delta', 't' or 'dprime'", "choose one of these")
        values = getattr(self, score).flatten()
        order = torch.argsort(torch.nan_to_num(values, nan=-torch.inf), descending=True, stable=True)
        width = self.delta.shape[1]
        return [(index // width, index % width) for index in order.tolist()]

    def top(self, k: int, score: Score = "delta") -> list[tuple[int, int]]:
        """The ``k`` neurons that rise most.

        Args:
            k: how many.
            score: ``"delta"`` (published), ``"t"`` or ``"dprime"``.

        Raises:
            InputError: ``k`` larger than the number of neurons.
        """
        check_count(k, self.n_neurons, "neurons")
        return self.ranking(score)[:k]

    def layer_counts(self, k: int | None = None) -> list[int]:
        """How many of the top ``k`` (default: the published share) lie in each layer; those that fall are skipped."""
        counts = [0] * self.delta.shape[0]
        for layer, neuron in self.top(self.published_k if k is None else k):
            if self.delta[layer, neuron] >= 0:
                counts[layer] += 1
        return counts

    def to_frame(self, k: int | None = None) -> pd.DataFrame:
        """One row per neuron, best first: rank, layer, neuron, delta, its standard error, t, dprime, both means."""
        units = self.ranking() if k is None else self.top(k)
        layers, neurons = torch.tensor(units, dtype=torch.long).reshape(-1, 2).T
        columns = (
            "delta",
            "standard_error",
            "t",
            "dprime",
            "normal_mean",
            "repetition_mean",
            "delta_published",
            "delta_clean",
        )
        values: dict[str, Any] = {name: getattr(self, name)[layers, neurons].numpy() for name in columns}
        return pd.DataFrame({"rank": range(len(units)), "layer": layers.numpy(), "neuron": neurons.numpy(), **values})

    def plot(self, k: int = 4) -> go.Figure:
        """Activation of the top ``k`` neurons round the onset."""
        from mechrep.views.plots import plot_onset_profile

        return plot_onset_profile(self, k=k)


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """``above / below``; 0 where both vanish, signed infinity where only the divisor does."""
    return torch.where(above == 0, torch.where(below.isnan(), below, 0.0), above / below)
