"""What mechrep should say about a model, computed without it: one text at a time, plain torch hooks, no cache.

Everything runs on a copy of the Hugging Face module whose attention is computed step by step.  ``check`` holds the
oracles against the model itself: parts add up to the residual stream, heads to what attention writes, experts to their
block, direct logits to the logits.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tests.families.zoo import D_MODEL, N_HEADS, Family, quietly

Units = Sequence[tuple[int, int]]


def plain(family: Family, model: Any) -> Any:
    """A copy that computes attention step by step, so that patterns can be seen, if that is the same computation.

    Built anew: Falcon takes another implementation only when it is made, and its patterns without it see the future.
    """
    if family.blind:
        return copy.deepcopy(model)
    twin = quietly(lambda: type(model)._from_config(copy.deepcopy(model.config), attn_implementation="eager"))
    twin.load_state_dict(model.state_dict())
    return twin.eval().requires_grad_(False)


@torch.no_grad()
def logits(model: nn.Module, ids: Sequence[int]) -> Tensor:
    """``[pos d_vocab]`` of one text alone."""
    forget(model)
    return model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0]


@torch.no_grad()
def forget(model: Any) -> None:
    """Undo what dynamic rotary positions remember of longer texts: they grow, and shrink only for a short text."""
    positions = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    if positions.get("rope_type") == "dynamic":
        model(input_ids=torch.tensor([[0]]), use_cache=False)


@dataclass
class Seen:
    """One text under a model: everything by layer, with axes ``pos``, ``head``, ... and no batch.

    Attributes:
        before, middle, after: the residual stream ``[pos d_model]``; no middle where attention and MLP are parallel.
        pattern: ``[head query_pos key_pos]`` of layers with softmax attention.
        z: what heads read ``[pos head d_head]``, before the output projection.
        attention, mlp: what really reaches the residual stream ``[pos d_model]``, behind norms and factors.
        act, product: neurons of dense MLPs ``[pos d_mlp]``: the activation function's output; what is projected down.
        final: what the final norm reads ``[pos d_model]``.
        logits: ``[pos d_vocab]``.
    """

    before: dict[int, Tensor] = field(default_factory=dict)
    middle: dict[int, Tensor] = field(default_factory=dict)
    after: dict[int, Tensor] = field(default_factory=dict)
    pattern: dict[int, Tensor] = field(default_factory=dict)
    z: dict[int, Tensor] = field(default_factory=dict)
    attention: dict[int, Tensor] = field(default_factory=dict)
    mlp: dict[int, Tensor] = field(default_factory=dict)
    act: dict[int, Tensor] = field(default_factory=dict)
    product: dict[int, Tensor] = field(default_factory=dict)
    final: Tensor = field(default_factory=lambda: torch.empty(0))
    logits: Tensor = field(default_factory=lambda: torch.empty(0))


def _first(args: Any, kwargs: Any) -> Tensor:
    found = args[0] if args else kwargs.get("hidden_states", next(iter(kwargs.values())))
    return found[0] if found.ndim == 3 else found


def _only(output: Any) -> Tensor:
    found = output[0] if isinstance(output, tuple) else output
    return found[0] if found.ndim == 3 else found


def _on_input(module: nn.Module, keep: Callable[[Tensor], Any]) -> Any:
    """Hand the (first) input of a module, without its batch axis, to ``keep``."""
    return module.register_forward_pre_hook(
        lambda _module, args, kwargs: keep(_first(args, kwargs).clone()) and None, with_kwargs=True
    )


def _on_output(module: nn.Module, keep: Callable[[Tensor], Any]) -> Any:
    return module.register_forward_hook(lambda _module, _args, output: keep(_only(output).clone()) and None)


@torch.no_grad()
def look(family: Family, model: Any, ids: Sequence[int]) -> Seen:
    """Everything there is to see of one text; ``model`` is :func:`plain`."""
    forget(model)
    seen, raw = Seen(), dict[tuple[str, int], Tensor]()

    def into(where: dict[int, Tensor], layer: int) -> Callable[[Tensor], Any]:
        return lambda value: where.__setitem__(layer, value)

    def weights(layer: int) -> Callable[..., None]:
        def hook(_module: Any, _args: Any, output: Any) -> None:
            if not family.blind:
                (seen.pattern[layer],) = [part[0] for part in output[1:] if isinstance(part, Tensor) and part.ndim == 4]

        return hook

    with ExitStack() as stack:

        def listen(handle: Any) -> None:
            stack.callback(handle.remove)

        for layer in range(family.n_layers):
            block = family.layer(model, layer)
            listen(_on_input(block, into(seen.before, layer)))
            listen(_on_output(block, into(seen.after, layer)))
            if family.middle is not None and not family.rewritten:
                listen(_on_input(family.part(model, layer, family.middle), into(seen.middle, layer)))
            if layer in family.with_attention:
                listen(family.part(model, layer, family.attention).register_forward_hook(weights(layer)))
                projection = family.part(model, layer, family.output)
                listen(_on_input(projection, into(seen.z, layer)))
                listen(_on_output(projection, lambda value, layer=layer: raw.__setitem__(("attention", layer), value)))
            if layer in family.dense:
                down = family.part(model, layer, family.down)
                listen(_on_input(down, into(seen.product, layer)))
                listen(_on_output(down, lambda value, layer=layer: raw.__setitem__(("mlp", layer), value)))
                listen(_on_output(family.part(model, layer, family.act or family.gate), into(seen.act, layer)))
        listen(_on_input(model.get_submodule(family.norm), lambda value: setattr(seen, "final", value)))
        tokens = torch.tensor([list(ids)])
        seen.logits = model(input_ids=tokens, use_cache=False, output_attentions=not family.blind).logits[0]

    for layer in family.with_attention:
        seen.z[layer] = seen.z[layer].unflatten(-1, (N_HEADS, -1))
        if family.rewritten:
            continue
        seen.attention[layer] = _behind(
            family, model, layer, family.post_attention, raw["attention", layer], family.scale
        )
    for layer in family.dense:
        if family.act is None:
            seen.act[layer] = torch.nn.functional.silu(seen.act[layer])
    for layer in range(family.n_layers if not family.rewritten else 0):
        if layer in seen.middle:
            seen.mlp[layer] = seen.after[layer] - seen.middle[layer]
        else:
            seen.mlp[layer] = _behind(family, model, layer, family.post_mlp, raw["mlp", layer], mlp_scale(family))
    return seen


def mlp_scale(family: Family) -> float:
    """Factor on the MLP's output."""
    return family.scale if family.mlp_scale is None else family.mlp_scale


def _behind(family: Family, model: nn.Module, layer: int, norm: str | None, value: Tensor, scale: float) -> Tensor:
    """What becomes of a part's output on its way into the residual stream."""
    return scale * (value if norm is None else family.part(model, layer, norm)(value))


# -- sums -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def frozen(norm: nn.Module, whole: Tensor, part: Tensor) -> Tensor:
    """What a norm makes of a part of its input if its scale is that of the whole: linear in the part, no bias."""
    width = whole.shape[-1]
    signs = torch.ones(width)
    signs[1::2] = -1.0  # of mean 0 and mean square 1: any norm gives back its gain (and bias) on it
    nothing = norm(torch.zeros(1, width))[0]
    gain = (norm(signs[None])[0] - nothing) * signs
    centred = bool((norm(torch.ones(1, width))[0] - nothing).abs().max() < 1e-3)
    eps = next((float(getattr(norm, name)) for name in ("eps", "variance_epsilon") if hasattr(norm, name)), 1e-5)
    if centred:
        whole, part = whole - whole.mean(-1, keepdim=True), part - part.mean(-1, keepdim=True)
    whole, part = whole.double(), part.double()
    return (gain.double() * (1 + eps) ** 0.5 * part / (whole.pow(2).mean(-1, keepdim=True) + eps).sqrt()).float()


@torch.no_grad()
def heads(family: Family, model: nn.Module, seen: Seen, layer: int) -> Tensor:
    """What every head adds to the residual stream ``[head pos d_model]``, behind norm and factor, without biases."""
    projection, z = family.part(model, layer, family.output), seen.z[layer]
    nothing = projection(torch.zeros_like(z).flatten(1))
    alone = torch.stack([projection(_only_head(z, head).flatten(1)) - nothing for head in range(N_HEADS)])
    if family.post_attention is not None:
        norm = family.part(model, layer, family.post_attention)
        alone = frozen(norm, projection(z.flatten(1)), alone)
    return alone * family.scale


def _only_head(z: Tensor, head: int) -> Tensor:
    kept = torch.zeros_like(z)
    kept[:, head] = z[:, head]
    return kept


@torch.no_grad()
def neurons(family: Family, model: nn.Module, seen: Seen, layer: int) -> Tensor:
    """What every neuron of a dense MLP adds to the residual stream ``[neuron pos d_model]``."""
    down, product = family.part(model, layer, family.down), seen.product[layer]
    columns = down(torch.eye(product.shape[-1])) - down(torch.zeros(1, product.shape[-1]))  # [neuron d_model]
    alone = product.T[:, :, None] * columns[:, None]
    if family.post_mlp is not None:
        alone = frozen(family.part(model, layer, family.post_mlp), down(product), alone)
    return alone * mlp_scale(family)


@torch.no_grad()
def direct_logits(family: Family, model: nn.Module, seen: Seen, part: Tensor) -> Tensor:
    """Logits of a part ``[... pos d_model]`` of the last residual stream, before any soft cap, at the final scale."""
    head = model.get_submodule(family.head)
    nothing = head(torch.zeros(1, part.shape[-1]))[0]
    return (head(frozen(model.get_submodule(family.norm), seen.final, part)) - nothing) * family.logit_scale


@torch.no_grad()
def lens(family: Family, model: nn.Module, stream: Tensor) -> Tensor:
    """The logit lens: what final norm, unembedding, factor and soft cap make of any residual stream."""
    values = model.get_submodule(family.head)(model.get_submodule(family.norm)(stream)) * family.logit_scale
    return values if family.softcap is None else family.softcap * (values / family.softcap).tanh()


def uncapped(family: Family, values: Tensor) -> Tensor:
    """Logits before the soft cap."""
    if family.softcap is None:
        return values
    return family.softcap * torch.atanh((values / family.softcap).clamp(-1 + 1e-7, 1 - 1e-7))


# -- edits ----------------------------------------------------------------------------------------------------


@contextmanager
def edited(*edits: tuple[nn.Module, Callable[..., Any], bool]) -> Iterator[None]:
    """While open, inputs (or outputs) of modules are what the functions make of them."""
    with ExitStack() as stack:
        for module, change, at_output in edits:
            if at_output:
                hook: Any = lambda _module, _args, output, change=change: change(output)  # noqa: E731
                stack.callback(module.register_forward_hook(hook).remove)
            else:
                hook = lambda _module, args, change=change: (change(args[0]), *args[1:])  # noqa: E731
                stack.callback(module.register_forward_pre_hook(hook).remove)
        yield


def _by_layer(units: Units) -> dict[int, list[int]]:
    layers: dict[int, list[int]] = {}
    for layer, number in units:
        layers.setdefault(layer, []).append(number)
    return layers


def change_neurons(
    family: Family, model: nn.Module, units: Units, *, factor: float = 0.0, offset: float = 0.0, start: int = 0
) -> Any:
    """Neurons' activations ``a <- a * factor + offset`` from a position on, while open (one text, no cache)."""
    made = []
    for layer, numbers in _by_layer(units).items():

        def change(value: Tensor, numbers: list[int] = numbers) -> Tensor:
            new = value.clone()
            rows = new if new.ndim == 2 else new[0]
            rows[start:, numbers] = rows[start:, numbers] * factor + offset
            return new

        if family.act is not None:
            made.append((family.part(model, layer, family.act), change, True))
        else:  # no module gives the activation; without an offset it is the product that changes
            assert offset == 0.0
            made.append((family.part(model, layer, family.down), change, False))
    return edited(*made)


def zero_heads(family: Family, model: nn.Module, units: Units, *, start: int = 0) -> Any:
    """Heads read nothing from a position on, while open."""
    made = []
    for layer, numbers in _by_layer(units).items():

        def change(value: Tensor, numbers: list[int] = numbers) -> Tensor:
            new = value.clone()
            new.unflatten(-1, (N_HEADS, -1))[..., start:, numbers, :] = 0
            return new

        made.append((family.part(model, layer, family.output), change, False))
    return edited(*made)


@contextmanager
def heads_to_first(family: Family, model: nn.Module, units: Units, *, start: int = 0) -> Iterator[None]:
    """Heads attend to position 0 alone, from a position on, while open: ``z(t) <- v(0)`` (behind the gate of ``t``).

    Position 0 can attend to nothing else, so ``z(0)`` is ``v(0)``, except where a sink takes a part or a gate follows.
    """
    values, gates, made = dict[int, Tensor](), dict[int, Tensor](), []
    with ExitStack() as stack:
        for layer, numbers in _by_layer(units).items():
            attention = family.part(model, layer, family.attention)
            if family.sinks or family.gated_attention:
                keep = lambda value, layer=layer: values.__setitem__(layer, value)  # noqa: E731
                stack.callback(_on_output(attention.get_submodule("v_proj"), keep).remove)
            if family.gated_attention:  # query and gate of a head lie side by side
                keep = lambda value, layer=layer: gates.__setitem__(layer, value)  # noqa: E731
                stack.callback(_on_output(attention.get_submodule("q_proj"), keep).remove)

            def change(value: Tensor, layer: int = layer, numbers: list[int] = numbers) -> Tensor:
                new = value.clone()
                z = new.view(-1, N_HEADS, new.shape[-1] // N_HEADS)
                for head in numbers:
                    first = z[0, head].clone()
                    if layer in values:
                        first = values[layer].unflatten(-1, (family.n_kv, -1))[0, head * family.n_kv // N_HEADS]
                    if layer in gates:
                        first = first * gates[layer].unflatten(-1, (N_HEADS, -1))[:, head].chunk(2, -1)[1].sigmoid()
                    z[start:, head] = first[start:] if first.ndim == 2 else first
                return new

            made.append((family.part(model, layer, family.output), change, False))
        stack.enter_context(edited(*made))
        yield


@contextmanager
def holding_up(family: Family, model: nn.Module, layer: int, numbers: Sequence[int], anchor: int) -> Iterator[None]:
    """Up-projections of neurons keep the level of one position from there on (without a gate: their activation)."""

    def change(value: Tensor) -> Tensor:
        new = value.clone()
        rows = new if new.ndim == 2 else new[0]
        held = rows.chunk(2, -1)[1] if family.fused else rows
        if len(held) > anchor:
            held[anchor:, list(numbers)] = held[anchor, list(numbers)].clone()
        return new

    where = family.act if family.up is None else family.up
    with edited((family.part(model, layer, where), change, True)):
        yield


def continuation(model: nn.Module, ids: Sequence[int], tokens: int) -> list[int]:
    """Greedy, every token from a forward pass over the whole text."""
    text = list(ids)
    for _ in range(tokens):
        text.append(int(logits(model, text)[-1].argmax()))
    return text


# -- experts --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Routed:
    """Experts of one layer on one text; zero where a token is not routed to an expert.

    Attributes:
        weight: routing weight ``[pos expert]``.
        chosen: which experts a token is routed to ``[pos expert]``.
        act: output of the activation function ``[pos expert neuron]``.
        product: what is projected down ``[pos expert neuron]``.
        written: what each expert adds to the block's output ``[pos expert d_model]``.
        block: output of the experts together ``[pos d_model]``.
    """

    weight: Tensor
    chosen: Tensor
    act: Tensor
    product: Tensor
    written: Tensor
    block: Tensor


@torch.no_grad()
def experts(family: Family, model: Any, ids: Sequence[int], layer: int) -> Routed:
    """Neurons of the experts of a layer, by hand from their weights."""
    module, seen = family.part(model, layer, family.experts), dict[str, Any]()
    with ExitStack() as stack:
        stack.callback(module.register_forward_pre_hook(lambda _m, args: seen.__setitem__("in", args)).remove)
        stack.callback(module.register_forward_hook(lambda _m, _a, out: seen.__setitem__("out", out)).remove)
        logits(model, ids)
    hidden, count, length = seen["in"][0].reshape(-1, D_MODEL), module.down_proj.shape[0], len(ids)
    weight = torch.zeros(length, count)
    block = seen["out"].reshape(-1, length, D_MODEL).sum(0)
    if len(seen["in"]) == 1:  # Llama 4: every expert reads all tokens, multiplied by their scores (0 or a sigmoid)
        inputs = hidden.reshape(count, length, -1)
        chosen = (inputs != 0).any(-1).T
        weight = chosen.float()
    else:
        _, index, routing = seen["in"]
        inputs = hidden[None].expand(count, -1, -1)
        weight.scatter_(1, index, routing.float())
        chosen = torch.zeros(length, count, dtype=torch.bool).scatter_(1, index, True)
    act, product, written = (
        torch.stack(parts, 1) for parts in zip(*(_expert(module, inputs[e], e) for e in range(count)), strict=True)
    )
    on = chosen[..., None]
    return Routed(weight, chosen, act * on, product * on, written * on * weight[..., None], block)


def expert_rows(family: Family, model: Any, layer: int) -> Tensor:
    """What one unit of each neuron makes an expert write ``[expert neuron d_model]``."""
    down = family.part(model, layer, family.experts).down_proj
    return down if down.shape[2] == D_MODEL else down.transpose(1, 2)


def _expert(module: Any, inputs: Tensor, expert: int) -> tuple[Tensor, Tensor, Tensor]:
    """Activation, product and output of one expert for all tokens."""
    both, down = module.gate_up_proj[expert], module.down_proj[expert]
    transposed = down.shape[1] == D_MODEL
    both, down = (both, down) if transposed else (both.T, down.T)
    mixed = inputs @ both
    if hasattr(module, "gate_up_proj_bias"):  # gpt-oss: gate and up take turns, and are clamped
        mixed = mixed + module.gate_up_proj_bias[expert]
        gate, up = mixed[..., ::2].clamp(max=module.limit), mixed[..., 1::2].clamp(-module.limit, module.limit)
        act = gate * torch.sigmoid(module.alpha * gate)
        return act, act * (up + 1), (act * (up + 1)) @ down + module.down_proj_bias[expert]
    gate, up = mixed.chunk(2, -1)
    act = module.act_fn(gate)
    return act, act * up, (act * up) @ down


@torch.no_grad()
def without_expert_neurons(family: Family, model: Any, units: Sequence[tuple[int, int, int]]) -> Any:
    """A copy whose neurons ``(layer, expert, neuron)`` write nothing: their rows of the output matrix are zero."""
    twin = copy.deepcopy(model)
    for layer, expert, neuron in units:
        module = family.part(twin, layer, family.experts)
        down: Any = module.down_proj
        (down[expert] if down.shape[2] == D_MODEL else down[expert].T)[neuron] = 0
    return twin


@torch.no_grad()
def shared_expert(family: Family, model: Any, ids: Sequence[int], layer: int) -> Seen:
    """Neurons of the expert that every token is sent to, in ``act`` and ``product``: not by layer, one tensor each."""
    module, seen = family.part(model, layer, family.shared), Seen()
    (down,) = (part for name, part in module.named_modules() if name in ("down_proj", "output_linear"))
    (act,) = (part for name, part in module.named_modules() if name in ("act_fn", "activation_fn", "activation"))
    handles = [
        _on_input(down, lambda value: setattr(seen, "product", value)),
        _on_output(act, lambda value: setattr(seen, "act", value)),
    ]
    logits(model, ids)
    for handle in handles:
        handle.remove()
    return seen


# -- the oracles against the model ----------------------------------------------------------------------------


def gap(found: Tensor, expected: Tensor) -> float:
    """The largest difference, as a share of the largest number expected."""
    if found.shape != expected.shape:
        return float("inf")
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max().clamp_min(1e-6))


def check(family: Family, model: Any, ids: Sequence[int]) -> dict[str, float]:
    """How far the oracles are from what the model itself does: every number should be rounding."""
    eager = plain(family, model)
    seen, found = look(family, eager, ids), dict[str, float]()
    found["eager logits"] = gap(seen.logits, logits(model, ids))
    last = family.n_layers - 1
    found["final norm reads the last layer"] = gap(seen.final, seen.after[last])
    if family.rewritten:
        return found
    found["logit lens"] = gap(lens(family, eager, seen.final), seen.logits)
    found["direct logits"] = gap(
        direct_logits(family, eager, seen, seen.final) + _bias(family, eager), uncapped(family, seen.logits)
    )
    for layer in range(family.n_layers):
        _check_layer(family, eager, seen, layer, found, ids)
    return found


def _bias(family: Family, model: nn.Module) -> Tensor:
    """Logits of no residual stream at all: of the biases of final norm and unembedding."""
    head, norm = model.get_submodule(family.head), model.get_submodule(family.norm)
    return head(norm(torch.zeros(1, D_MODEL)))[0] * family.logit_scale


def _check_layer(
    family: Family, model: Any, seen: Seen, layer: int, found: dict[str, float], ids: Sequence[int]
) -> None:
    parts = seen.mlp[layer]
    if layer in family.with_attention:
        parts = parts + seen.attention[layer]
        if layer in seen.pattern:
            rows = seen.pattern[layer].sum(-1) - 1
            found[f"pattern {layer}"] = float(rows.clamp_min(0).max() if family.sinks else rows.abs().max())
            found[f"future {layer}"] = float(seen.pattern[layer].triu(1).abs().max())
        summed = heads(family, model, seen, layer).sum(0)
        nothing = family.part(model, layer, family.output)(torch.zeros(1, seen.z[layer][0].numel()))
        if family.post_attention is None:
            found[f"heads {layer}"] = gap(summed + nothing * family.scale, seen.attention[layer])
        else:
            found[f"heads {layer}"] = gap(summed, seen.attention[layer])
    if family.beside is None and layer in family.with_attention:
        found[f"parts {layer}"] = gap(seen.before[layer] + parts, seen.after[layer])
    if layer in family.dense:
        down = family.part(model, layer, family.down)
        constant = down(torch.zeros(1, seen.product[layer].shape[-1])) * mlp_scale(family)
        summed = neurons(family, model, seen, layer).sum(0) + (constant if family.post_mlp is None else 0)
        found[f"neurons {layer}"] = gap(summed, seen.mlp[layer])
        if family.up is None:
            found[f"activation {layer}"] = gap(seen.act[layer], seen.product[layer])
    else:
        routed = experts(family, model, ids, layer)
        found[f"experts {layer}"] = gap(routed.written.sum(1), routed.block)
