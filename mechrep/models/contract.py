"""What every analysis relies on, checked by running the model once when it is loaded.

A hook that never fires, a pattern that is not one, or two views that disagree would turn every later number into
nonsense without a word.  So a model that breaks one of these promises is refused, with the reason.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mechrep.errors import ModelError
from mechrep.models.anatomy import Site
from mechrep.models.model import Model
from mechrep.models.reading import PLAIN_SITES, product_bias, read_activations

_TOLERANCE = {torch.float64: 1e-5, torch.float32: 2e-4, torch.float16: 3e-2, torch.bfloat16: 1.5e-1}


@torch.no_grad()
def check_contract(model: Model) -> None:
    """Run two short rows of ids through the model and refuse it with the first promise that it breaks.

    Checked: rows of the attention pattern sum to 1; ``MLP_POST`` is ``GATE_ACT`` (times the up-projection in a gated
    MLP); key and value heads have the stated number; removing all neurons of a layer changes the logits; the plain
    view gives the same logits and activations as the TransformerLens view.

    Raises:
        ModelError: naming the broken promise.
    """
    tolerance = _TOLERANCE.get(model.dtype, 2e-4)
    tokens = model.probe_tokens()
    layers = range(model.anatomy.n_layers)
    sites = [Site.PATTERN, Site.K, Site.GATE_ACT, Site.MLP_POST, *([Site.UP_PROJ] if model.anatomy.gated else [])]
    seen: dict[tuple[Site, int], Tensor] = {}

    def keep(activation: Tensor, site: Site, layer: int) -> None:
        seen[site, layer] = activation.detach().float().clone()

    read_activations(model, tokens, {site: layers for site in sites}, keep, view="transformer_lens")
    for layer in layers:
        _check_layer(model, seen, layer, tolerance)
    _check_edit_counts(model, tokens)
    if model.plain is not None:
        _check_views_agree(model, tokens, seen, tolerance)


def _check_layer(model: Model, seen: dict[tuple[Site, int], Tensor], layer: int, tolerance: float) -> None:
    anatomy = model.anatomy
    rows = seen[Site.PATTERN, layer].sum(-1)
    _require(model, (rows - 1).abs().max().item() <= max(tolerance, 1e-3), f"attention rows of layer {layer} sum to 1")
    kv_heads = seen[Site.K, layer].shape[-2]
    _require(
        model, kv_heads in (anatomy.n_kv_heads, anatomy.n_heads), f"layer {layer} has {anatomy.n_kv_heads} key heads"
    )
    post, expected = seen[Site.MLP_POST, layer], seen[Site.GATE_ACT, layer]
    _require(model, post.shape[-1] == anatomy.d_mlp, f"layer {layer} has {anatomy.d_mlp} neurons")
    if anatomy.gated:
        expected = expected * seen[Site.UP_PROJ, layer] + product_bias(model, layer)
        what = f"mlp_post of layer {layer} is act(gate) times the up-projection"
    else:
        what = f"mlp_post of layer {layer} is the activation function's output"
    scale = post.abs().max().clamp_min(1e-6)
    _require(model, ((post - expected).abs().max() / scale).item() <= tolerance, what)


def _check_edit_counts(model: Model, tokens: Tensor) -> None:
    """Each layer's neurons, removed together, must change the logits: else the hook does nothing."""
    clean = model.tl(tokens)
    for layer in {0, model.anatomy.n_layers // 2, model.anatomy.n_layers - 1}:
        name = model.anatomy.hook_name(Site.MLP_POST, layer)
        cut = model.run_with_hooks(tokens, fwd_hooks=[(name, lambda activation, hook: torch.zeros_like(activation))])
        _require(
            model, bool((cut - clean).abs().max() > 0), f"removing all neurons of layer {layer} changes the logits"
        )


def _check_views_agree(model: Model, tokens: Tensor, seen: dict[tuple[Site, int], Tensor], tolerance: float) -> None:
    reference, plain = model.tl(tokens).float(), model.plain_logits(tokens).float()
    scale = reference.abs().max().clamp_min(1.0)
    _require(model, ((reference - plain).abs().max() / scale).item() <= tolerance, "both views give the same logits")
    differences: list[float] = []

    def compare(activation: Tensor, site: Site, layer: int) -> None:
        expected = seen[site, layer]
        _require(model, activation.shape == expected.shape, "both views give activations of the same shape")
        scale = expected.abs().max().clamp_min(1e-6)
        differences.append(((activation.float() - expected).abs().max() / scale).item())

    sites = {Site.GATE_ACT, Site.MLP_POST} & PLAIN_SITES
    read_activations(model, tokens, {site: range(model.anatomy.n_layers) for site in sites}, compare, view="plain")
    _require(model, max(differences) <= tolerance, "both views give the same neuron activations")


def _require(model: Model, holds: bool, promise: str) -> None:
    if not holds:
        raise ModelError(
            f"{model.name!r} ({model.anatomy.architecture})",
            f"that {promise}",
            "mechrep would measure something else on this model; load_model(..., check=False) skips the check",
        )
