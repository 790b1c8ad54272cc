"""What every analysis relies on, checked by running the model once when it is loaded.

A hook that never fires, a pattern that is not one, or a text that depends on its neighbours would turn every later
number into nonsense without a word.  So a model that breaks one of these promises is refused, with the reason.
"""

from __future__ import annotations

import inspect

import torch
from torch import Tensor

from mechrep.errors import ModelError
from mechrep.models.anatomy import Site
from mechrep.models.attention import reading_of
from mechrep.models.finite import no_number
from mechrep.models.model import Model
from mechrep.models.neurons import find_up_projections, looking_at
from mechrep.models.reading import choose_view, product_bias, read_activations
from mechrep.models.stream import Stream

_TOLERANCE = {torch.float64: 1e-5, torch.float32: 2e-4, torch.float16: 3e-2, torch.bfloat16: 1.5e-1}


@torch.no_grad()
def check_contract(model: Model) -> None:
    """Run two short rows of ids through the model and refuse it with the first promise that it breaks.

    Checked: no logit is NaN; rows of the attention pattern sum to 1 (to less where a learned sink takes the rest);
    neurons have the stated number, and ``MLP_POST`` is ``GATE_ACT`` times the up-projection in a gated MLP; removing
    all neurons of a layer changes the logits; the last residual stream gives the logits; what comes later changes
    nothing before it, nor how far away it is; a text has the same logits alone and in a batch.

    Raises:
        ModelError: naming the broken promise.
    """
    tokens = model.probe_tokens()
    if not model.fast:
        _check_transformer_lens(model, tokens)
        return
    logits = model.plain_logits(tokens)
    bad = int((~torch.isfinite(logits)).sum())
    if bad and model.dtype is torch.float16:
        raise no_number(model.name, model.dtype, f"{bad} of {logits.numel()} logits")
    _require(model, not bad, f"logits are numbers ({bad} of {logits.numel()} are not)")
    _check_later_text(model, tokens, logits)
    _check_company(model, tokens, logits)
    _check_far_text(model, tokens, logits)
    _check_patterns(model, tokens)
    _check_neurons(model, tokens, logits)
    _check_head(model, tokens, logits)


def _close(model: Model, one: Tensor, other: Tensor) -> bool:
    scale = other.float().abs().max().clamp_min(1e-6)
    return ((one.float() - other.float()).abs().max() / scale).item() <= _TOLERANCE.get(model.dtype, 2e-4)


def _check_later_text(model: Model, tokens: Tensor, logits: Tensor) -> None:
    other, last = tokens.clone(), tokens.shape[1] - 1
    other[:, last] = (other[:, last] + 1) % model.anatomy.d_vocab
    same = _close(model, model.plain_logits(other)[:, :last], logits[:, :last])
    _require(model, same, "a later token changes nothing before it (it is no causal model)")


def _check_company(model: Model, tokens: Tensor, logits: Tensor) -> None:
    length = tokens.shape[1] // 2
    alone = model.plain_logits(tokens[1:, :length])
    _require(
        model, _close(model, alone, logits[1:, :length]), "a text has the same logits alone and beside a longer one"
    )


def _check_far_text(model: Model, tokens: Tensor, logits: Tensor) -> None:
    """A last token at the end of the context, in place of a text that long: positions may not depend on it unseen."""
    assert model.plain is not None
    if model.lengths is not None or "position_ids" not in inspect.signature(type(model.plain).forward).parameters:
        return
    last = tokens.shape[1] - 1
    positions = torch.arange(last + 1, device=tokens.device)[None].repeat(len(tokens), 1)
    positions[:, last] = model.anatomy.n_ctx - 1
    moved = model.plain(input_ids=tokens, position_ids=positions, use_cache=False).logits
    same = _close(model, moved[:, :last], logits[:, :last])
    _require(model, same, "positions of a text do not depend on how long it is, in a way that was not found")


def _check_patterns(model: Model, tokens: Tensor) -> None:
    there = model.anatomy.attention_layers
    if choose_view(model, {Site.PATTERN}) != "plain":
        return  # TransformerLens' view is checked when it is built
    sinks, sums = reading_of(model).sinks, []
    read_activations(model, tokens, {Site.PATTERN: there}, lambda pattern, *_: sums.append(pattern.float().sum(-1)))
    tolerance = max(_TOLERANCE.get(model.dtype, 2e-4), 1e-3)
    for layer, rows in zip(there, sums, strict=True):
        within = bool((rows <= 1 + tolerance).all()) and (sinks or bool((rows >= 1 - tolerance).all()))
        _require(model, within, f"attention rows of layer {layer} sum to 1")


def _check_neurons(model: Model, tokens: Tensor, logits: Tensor) -> None:
    assert model.plain is not None and model.handles is not None
    find_up_projections(model.plain, model.handles)  # raises where the product is another
    layers = model.anatomy.layers_with(Site.MLP_POST)
    for layer in sorted({layers[0], layers[len(layers) // 2], layers[-1]}):
        widths = []

        def zero(neurons: Tensor, columns: slice, widths: list[int] = widths) -> Tensor:
            widths.append(columns.stop - columns.start)
            return torch.zeros_like(neurons)

        with looking_at(model.plain, model.handles, Site.MLP_POST, layer, zero):
            cut = model.plain_logits(tokens)
        stated = model.anatomy.neurons[layer]
        _require(model, sum(widths) == stated, f"layer {layer} has {stated} neurons")
        _require(model, bool((cut != logits).any()), f"removing all neurons of layer {layer} changes the logits")


def _check_head(model: Model, tokens: Tensor, logits: Tensor) -> None:
    if model.trace is None or model.trace.head is None or model.trace.finish is None or model.steered:
        return  # then there is no logit lens, and asking for one says so
    last, states = model.anatomy.n_layers - 1, []
    read_activations(model, tokens, {Site.RESID_POST: [last]}, lambda stream, *_: states.append(stream.clone()))
    _require(model, _close(model, Stream(model).logits(states[0]), logits), "the last residual stream gives the logits")


# --- models with a TransformerLens view only ------------------------------------------------------------------------


def _check_transformer_lens(model: Model, tokens: Tensor) -> None:
    layers = range(model.anatomy.n_layers)
    sites = [Site.PATTERN, Site.K, Site.GATE_ACT, Site.MLP_POST, *([Site.UP_PROJ] if model.anatomy.gated else [])]
    seen: dict[tuple[Site, int], Tensor] = {}

    def keep(activation: Tensor, site: Site, layer: int) -> None:
        seen[site, layer] = activation.detach().float().clone()

    read_activations(model, tokens, {site: layers for site in sites}, keep, view="transformer_lens")
    for layer in layers:
        _check_layer(model, seen, layer)
    clean = model.tl(tokens)
    for layer in {0, model.anatomy.n_layers // 2, model.anatomy.n_layers - 1}:
        name = model.anatomy.hook_name(Site.MLP_POST, layer)
        cut = model.run_with_hooks(tokens, fwd_hooks=[(name, lambda activation, hook: torch.zeros_like(activation))])
        _require(model, bool((cut != clean).any()), f"removing all neurons of layer {layer} changes the logits")


def _check_layer(model: Model, seen: dict[tuple[Site, int], Tensor], layer: int) -> None:
    anatomy, tolerance = model.anatomy, _TOLERANCE.get(model.dtype, 2e-4)
    rows = seen[Site.PATTERN, layer].sum(-1)
    _require(model, (rows - 1).abs().max().item() <= max(tolerance, 1e-3), f"attention rows of layer {layer} sum to 1")
    kv_heads = seen[Site.K, layer].shape[-2]
    _require(
        model, kv_heads in (anatomy.n_kv_heads, anatomy.n_heads), f"layer {layer} has {anatomy.n_kv_heads} key heads"
    )
    post, expected = seen[Site.MLP_POST, layer], seen[Site.GATE_ACT, layer]
    _require(model, post.shape[-1] == anatomy.d_mlp, f"layer {layer} has {anatomy.d_mlp} neurons")
    what = f"mlp_post of layer {layer} is the activation function's output"
    if anatomy.gated:
        expected = expected * seen[Site.UP_PROJ, layer] + product_bias(model, layer)
        what = f"mlp_post of layer {layer} is act(gate) times the up-projection"
    scale = post.abs().max().clamp_min(1e-6)
    _require(model, ((post - expected).abs().max() / scale).item() <= tolerance, what)


def _require(model: Model, holds: bool, promise: str) -> None:
    if not holds:
        raise ModelError(
            f"{model.name!r} ({model.anatomy.architecture})",
            f"that {promise}",
            "mechrep would measure something else on this model; load_model(..., check=False) skips the check",
        )
