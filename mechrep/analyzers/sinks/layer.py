"""Which layer makes the first position large: the published rule, and jumps of the log norm.

Published (:func:`outlier_layer`): the first layer whose MLP writes more at BOS than the mean plus two standard
deviations over the layers.  One outlier among K numbers can lie at most (K - 1) / sqrt(K) standard deviations from the
mean, so the rule cannot fire below six layers; two writing layers hide each other, and so do late layers that write the
sink back down.

mechrep (:func:`robust_z`, used by :class:`~mechrep.analyzers.sinks.norms.SinkNorms`): the layer over which the log norm
of the first position rises most, with its distance from the other layers' median in units of their median deviation.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from mechrep.errors import InputError, NothingFoundError
from mechrep.models.anatomy import Site
from mechrep.models.model import Model
from mechrep.models.reading import read_activations

FEWEST_LAYERS = 6  # (K - 1) / sqrt(K) is 1.79 for K = 5 and 2.04 for K = 6
_DEVIATIONS = 2.0
_MAD_OF_NORMAL = 0.6744897501960817  # median absolute deviation of a standard normal


def outlier_layer(mlp_norms: Float[Tensor, " layer"]) -> int:
    """The first layer whose value exceeds mean + 2 standard deviations (ddof 1) of all of them.

    Args:
        mlp_norms: one norm per layer, for instance from :func:`bos_mlp_norms`.

    Raises:
        InputError: fewer than six layers, where no values whatever could pass.
        NothingFoundError: no layer passes.

    Source: Yona et al. 2025 (arXiv 2503.08908), ``find_sink_layer`` of the released code.

    Example:
        >>> outlier_layer(torch.tensor([1.0, 90.0, 1.0, 1.0, 1.0, 1.0]))
        1
    """
    if len(mlp_norms) < FEWEST_LAYERS:
        raise InputError(
            f"{len(mlp_norms)} layers",
            f"at least {FEWEST_LAYERS}: among fewer no value lies two standard deviations above the mean",
            "use the largest jump of the norm (SinkNorms, find_sink)",
        )
    values = mlp_norms.double()
    threshold = values.mean() + _DEVIATIONS * values.std(correction=1)
    above = (values > threshold).nonzero().flatten()
    if not len(above):
        raise NothingFoundError(
            f"{len(values)} layers, the largest at {float(values.max()):.3g}",
            f"one above mean + 2 sd = {float(threshold):.3g}",
            "two large layers hide each other: look at the whole profile (SinkNorms), or ask for fewer layers",
        )
    return int(above[0])


def bos_mlp_norms(model: Model, layers: int | None = None) -> Float[Tensor, " layer"]:
    """Norm of what each layer's MLP adds to the residual stream when the text is BOS alone.

    Args:
        model: the model.
        layers: only the first so many; all by default.  The released code asks for 15 of Llama-2-7b's 32.

    Raises:
        InputError: a model without BOS, or another number of layers than it has.
    """
    count = model.anatomy.n_layers if layers is None else layers
    if model.bos_id is None or not 1 <= count <= model.anatomy.n_layers:
        raise InputError(
            f"the first {count} layers of {model.name} on BOS (id {model.bos_id})",
            f"a model with BOS, and 1 to {model.anatomy.n_layers} layers",
            "use SinkNorms on texts, or leave layers out",
        )
    norms = torch.zeros(count, dtype=torch.float64)

    def receive(activation: Tensor, _site: Site, layer: int) -> None:
        norms[layer] = activation[0, 0].detach().cpu().double().norm()

    tokens = torch.tensor([[model.bos_id]], device=model.device)
    read_activations(model, tokens, {Site.MLP_OUT: range(count)}, receive)
    return norms


def sink_layer_yona2025(model: Model, layers: int | None = None) -> int:
    """The published sink layer: :func:`outlier_layer` of :func:`bos_mlp_norms`.

    Args:
        model: the model.
        layers: look at the first so many only.

    Raises:
        InputError: fewer than six layers, or no BOS.
        NothingFoundError: no layer passes.

    Example:
        >>> import mechrep
        >>> sink_layer_yona2025(mechrep.load_model("mechrep-tiny"), layers=4)
        Traceback (most recent call last):
        mechrep.errors.InputError: given: 4 layers; expected: at least 6: among fewer no value lies two standard \
deviations above the mean; to do: use the largest jump of the norm (SinkNorms, find_sink)
    """
    return outlier_layer(bos_mlp_norms(model, layers))


def robust_z(values: Float[Tensor, " layer"]) -> Float[Tensor, " layer"]:
    """Distance of each value from the median, in standard deviations as the median absolute deviation estimates them.

    Unlike a z-score, one or two outliers do not raise the scale that they are measured with.  Where more than half of
    the values are equal the scale is zero: the equal ones get 0 and the others an infinite distance.

    Example:
        >>> robust_z(torch.tensor([0.0, 1.0, 2.0, 3.0, 100.0])).round(decimals=1).tolist()
        [-1.3, -0.7, 0.0, 0.7, 66.1]
    """
    offset = values.double() - values.double().quantile(0.5)  # not median(): that is no mean of the middle two
    scale = offset.abs().quantile(0.5) / _MAD_OF_NORMAL
    return torch.where(offset == 0, 0.0, offset / scale)
