"""``layer_profiles``: do the top neurons and the top heads lie in the same layers?"""

from __future__ import annotations

import numpy as np
import pandas as pd

from mechrep.analyzers.heads.result import HeadScoreResult
from mechrep.analyzers.neuron_result import RepetitionNeuronResult
from mechrep.errors import InputError, NothingFoundError
from mechrep.stats import percentile_interval
from mechrep.studies.head_controls import induction_heads


def layer_profiles(
    neurons: RepetitionNeuronResult,
    heads: HeadScoreResult,
    *,
    k_neurons: int | None = None,
    k_heads: int | None = None,
    score: str = "induction",
    draws: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Share of the top neurons and of the top heads in each layer, and how far the two profiles overlap.

    With the shares ``p`` of neurons and ``q`` of heads::

        overlap = sum over layers of min(p_l, q_l)            0: no layer in common;  1: the same profile

    The null shuffles the layers of the heads' profile: as concentrated as it is, but anywhere.

    Args:
        neurons: a ranking of neurons.
        heads: scores of heads of the same model.
        k_neurons: the first so many; by default the published share of 0.5 %.  Neurons that fall are left out.
        k_heads: the first so many; by default all induction heads (prefix matching of at least 0.3 above chance).
        score: of the heads.
        draws: of the null.
        seed: of the draws.

    Returns:
        One row per layer: ``layer``, the counts ``neurons`` and ``heads``, ``neuron_share`` and ``head_share``; and,
        the same in every row, ``overlap``, the mean ``null`` with its central 95 % ``null_low``/``null_high``, and
        ``p``, the share of draws (the observed one among them) that overlap at least as much.

    Raises:
        InputError: results of models with different layers, a ``k`` larger than there are, fewer than one draw, or
            ``k_heads`` left out with another score than induction.
        NothingFoundError: no neuron that rises among the first, or no induction head.

    Source: the question is Hiraoka & Inui 2025's (arXiv 2410.13497), section 5; overlap and null are mechrep's own.

    Limits: neighbouring layers count as different, and with few layers the null is coarse.

    Example:
        >>> import mechrep
        >>> from mechrep.analyzers.heads.scores import score_heads
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> rows = [[0, *range(30 + i, 60 + i), *[9, 8, 7, 6, 5] * 8] for i in range(3)]
        >>> texts = mechrep.Corpus.from_tokens(rows, model=model).with_cycles()
        >>> (neurons,) = mechrep.CorpusCache(model, texts).run(mechrep.RepetitionNeurons("hiraoka2025", r=10))
        >>> profiles = layer_profiles(neurons, score_heads(model, n=10, sequences=4), k_neurons=50, k_heads=2)
        >>> float(profiles["head_share"].sum())
        1.0
    """
    n_layers = len(neurons.delta)
    if len(heads.scores[0]) != n_layers or draws < 1:
        raise InputError(
            f"neurons of {n_layers} layers, heads of {len(heads.scores[0])}, draws={draws}",
            "two results of one model, at least one draw",
            "measure both on the same model",
        )
    if k_heads is None and score != "induction":
        raise InputError(f"score={score!r} without k_heads", "a number of heads", "pass k_heads=")
    units = induction_heads(heads) if k_heads is None else heads.top(k_heads, score)
    head_counts = np.bincount([layer for layer, _ in units], minlength=n_layers)
    neuron_counts = np.array(neurons.layer_counts(k_neurons))
    if not neuron_counts.sum() or not head_counts.sum():
        raise NothingFoundError(
            f"{neuron_counts.sum()} neurons that rise and {head_counts.sum()} heads",
            "at least one of each",
            "pass k_neurons= and k_heads=",
        )
    neuron_share, head_share = neuron_counts / neuron_counts.sum(), head_counts / head_counts.sum()
    overlap = float(np.minimum(neuron_share, head_share).sum())
    generator = np.random.default_rng(seed)
    null = np.array([np.minimum(neuron_share, generator.permutation(head_share)).sum() for _ in range(draws)])
    low, high = percentile_interval(null.tolist())
    return pd.DataFrame(
        {
            "layer": range(n_layers),
            "neurons": neuron_counts,
            "heads": head_counts,
            "neuron_share": neuron_share,
            "head_share": head_share,
            "overlap": overlap,
            "null": null.mean(),
            "null_low": low,
            "null_high": high,
            "p": (1 + int((null >= overlap - 1e-12).sum())) / (1 + draws),
        }
    )
