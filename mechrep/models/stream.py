"""What a part's output becomes on its way to the residual stream, and what the residual stream becomes as logits.

The one place that knows what stands behind a module: norms after attention and MLP (Gemma 2 and 3, OLMo 2 and 3,
GLM-4), residual multipliers (Granite), the final norm, scales of the logits (Cohere, Granite) and soft caps (Gemma).

A norm is ``N(x) = g * c(x) / s(x) + b``: gains ``g`` and bias ``b``; ``c`` takes the mean away (LayerNorm) or nothing
(RMSNorm); ``s`` alone is not linear.  With ``s`` frozen at what it is, what a part of the output contributes is

    m * g * c(part) / s(output)

with the multiplier ``m``.  Norms are read off by running them, which is the same for every family: gains stored as
``1 + g`` (Gemma), folded away (compatibility mode) or absent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from mechrep.errors import ModelError
from mechrep.models.anatomy import Site
from mechrep.models.experts import down_matrix
from mechrep.models.model import Model
from mechrep.models.parts import capped, first_tensor, weight_of, wide

Writer = Literal["attention", "mlp"]

_ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-4}


def exact(tensor: Tensor) -> Tensor:
    """The same in float64, in which sums are taken; float32 on Apple's GPUs, which have nothing wider."""
    return tensor.detach().float() if tensor.device.type == "mps" else tensor.detach().double()


def _run(norm: Any, vectors: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
    """A norm in float32 at least: how a half-precision model rounds is no part of the norm's gain, bias and scale."""
    if not isinstance(norm, nn.Module) or vectors.dtype.itemsize >= 4:
        return norm(vectors)
    own = {name: wide(tensor) for name, tensor in (*norm.named_parameters(), *norm.named_buffers())}
    return functional_call(norm, own, (wide(vectors),))


@dataclass(frozen=True)
class FrozenNorm:
    """A norm as ``N(x) = gain * c(x) / s(x) + bias``.

    Attributes:
        module: the norm itself.
        gain: up to one common factor, which :meth:`scale` takes into account.
        bias: zeros where it has none.
        centred: whether ``c`` takes the mean away.
    """

    module: Any
    gain: Float[Tensor, " d_model"]
    bias: Float[Tensor, " d_model"]
    centred: bool

    @classmethod
    def of(cls, module: Any, width: int, like: Tensor) -> FrozenNorm:
        """Run a norm on three vectors: of zeros, which leaves the bias; of ones, which centring removes; of +1 and -1.

        Args:
            module: the norm.
            width: ``d_model``.
            like: a weight beside it, for type and device.
        """
        probes = torch.zeros(3, width, dtype=like.dtype, device=like.device)
        probes[1:], probes[2, 1::2] = 1.0, -1.0
        bias, flat, uneven = wide(_run(module, probes[None])[0])
        centred = bool((flat - bias).abs().max() < 1e-3 * (uneven - bias).abs().max())
        probe = wide(probes[2])
        return cls(module, (uneven - bias) / (probe - probe.mean() * centred), bias, centred)

    @classmethod
    def none(cls, width: int, like: Tensor) -> FrozenNorm:
        """No norm at all, as a norm that changes nothing."""
        weight = wide(torch.ones(width, device=like.device, dtype=like.dtype))
        return cls(lambda vectors: vectors, weight, torch.zeros_like(weight), centred=False)

    def fold(self, weight: Float[Tensor, "... d_model out"]) -> Float[Tensor, "... d_model out"]:
        """``c diag(g) W``: a weight that reads the norm's output, made to read its input."""
        scaled = self.gain[:, None] * weight
        return scaled - scaled.mean(-2, keepdim=True) if self.centred else scaled

    def apply(self, vectors: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """``g * c(x)``: the norm without its scale and bias."""
        return self.gain * (vectors - vectors.mean(-1, keepdim=True) if self.centred else vectors)

    def scale(self, vectors: Float[Tensor, "... d_model"]) -> Float[Tensor, "... 1"]:
        """``s(x)``, from what the norm makes of the vectors."""
        linear, out = exact(self.apply(wide(vectors))), exact(_run(self.module, vectors)) - exact(self.bias)
        scale = linear.square().sum(-1, keepdim=True) / (linear * out).sum(-1, keepdim=True)
        return scale.nan_to_num(1.0)  # of a vector of zeros, to which no scale does anything

    def normalised(self, vectors: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """``c(x) / s(x)``, with ``s`` the usual size of ``c(x)``: what the norm makes of vectors before its gain."""
        centred = wide(vectors)
        centred = centred - centred.mean(-1, keepdim=True) if self.centred else centred
        eps = float(getattr(self.module, "variance_epsilon", getattr(self.module, "eps", 1e-6)) or 0.0)
        return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()


class Stream:
    """Norms, multipliers and unembedding of a model, asked as they are now: make a new one when weights change.

    Args:
        model: with a plain view; or a TransformerLens model, raw or in compatibility mode.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> stream, tokens = Stream(model), model.probe_tokens()
        >>> with torch.no_grad():
        ...     states = model.plain(tokens, output_hidden_states=True).hidden_states[-2]
        ...     states = model.handles.layers[-1](states, position_embeddings=model.plain.model.rotary_emb(
        ...         states, torch.arange(tokens.shape[1])[None]))
        ...     torch.allclose(stream.logits(states), model.plain_logits(tokens), atol=1e-4)
        True
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self._norms: dict[tuple[str, int], FrozenNorm | None] = {}

    @property
    def _plain(self) -> bool:
        return self.model.trace is not None and not self.model.processed

    def before(self, layer: int, reader: Writer = "attention") -> FrozenNorm:
        """The norm that attention, or the MLP, reads the residual stream through; one that does nothing for none."""
        number = "1" if reader == "attention" else "2"
        found = self._norm(f"before_{reader}", layer, f"ln{number}")
        return FrozenNorm.none(self.model.anatomy.d_model, self._like) if found is None else found

    def behind(self, layer: int, writer: Writer) -> FrozenNorm | None:
        """The norm that an output passes before it is added; ``None`` where there is none."""
        return self._norm(f"behind_{writer}", layer, f"ln{'1' if writer == 'attention' else '2'}_post")

    def multiplier(self, layer: int, writer: Writer = "attention") -> float:
        """What an output is multiplied with before it is added to the residual stream."""
        if not self._plain:
            return float(getattr(self.model.tl.cfg, "residual_multiplier", None) or 1.0)
        assert self.model.trace is not None
        roles = self.model.trace.roles[layer]
        return roles.multiplier if writer == "attention" else roles.mlp_multiplier

    def contributions(
        self,
        layer: int,
        writer: Writer,
        parts: Float[Tensor, "*batch part d_model"],
        output: Float[Tensor, "*batch d_model"],
    ) -> Float[Tensor, "*batch part d_model"]:
        """What parts of an output add to the residual stream, in float64.

        Args:
            layer: of the attention or MLP.
            writer: which of the two.
            parts: vectors that the output is the sum of (or some of them).
            output: the whole output, as its last matrix gives it.

        Raises:
            ModelError: a layer where it was not found what the output becomes.
        """
        self.check(layer, writer)
        behind = self.behind(layer, writer)
        if behind is None:
            return exact(parts) * self.multiplier(layer, writer)
        factor = self.multiplier(layer, writer) / behind.scale(output.to(self.model.dtype))
        return exact(behind.apply(wide(parts))) * factor[..., None, :]

    def check(self, layer: int, writer: Writer) -> None:
        """Refuse a layer where it was not found what becomes of an output."""
        if not self._plain:
            return
        assert self.model.trace is not None
        roles = self.model.trace.roles[layer]
        if (roles.attention_writes if writer == "attention" else roles.mlp_writes) is None:
            raise ModelError(
                f"what the {writer} of layer {layer} of {self.model.name!r} ({self.model.anatomy.architecture}) writes",
                "an output that is added to the residual stream, behind a norm or times a number at most",
                "contributions would be wrong for this model; use ablations",
            )

    def neuron_outputs(self, layer: int) -> Float[Tensor, "neuron d_model"]:
        """The row of the MLP's output matrix that each neuron writes along, before what stands behind the MLP."""
        if not self._plain:
            return wide(self.model.tl.blocks[layer].mlp.W_out)
        handles = self.model.handles
        assert handles is not None
        experts, down = handles.experts[layer], handles.mlp_outputs[layer]
        rows = [down_matrix(experts)] if experts is not None else []
        rows += [weight_of(down)] if down is not None else []
        return wide(torch.cat(rows) if len(rows) > 1 else rows[0])

    def neuron_lengths(self, layer: int) -> Float[Tensor, " neuron"]:
        """Length of what one unit of each neuron adds, before :meth:`neuron_factors`."""
        rows, behind = self.neuron_outputs(layer), self.behind(layer, "mlp")
        return exact(rows if behind is None else behind.apply(rows)).norm(dim=1)

    def neuron_factors(
        self,
        layer: int,
        post: Float[Tensor, "*batch neuron"],
        router: Float[Tensor, "*batch expert"] | None,
        output: Float[Tensor, "*batch d_model"],
    ) -> Float[Tensor, "*batch neuron"]:
        """What each neuron's product with its row is multiplied with on its way to the residual stream, in float64.

        The residual multiplier over the scale of a norm behind the MLP; for routed experts times the router's weight,
        and for shared experts times their gate, which is worked out from what is left of the output without the others.

        Args:
            layer: of the neurons.
            post: ``MLP_POST``.
            router: ``ROUTER``; ``None`` in a layer with a dense MLP.
            output: of the whole MLP, before the norm behind it.

        Raises:
            ModelError: a layer where it was not found what the output becomes.
        """
        self.check(layer, "mlp")
        behind = self.behind(layer, "mlp")
        factor = torch.full_like(exact(output[..., :1]), self.multiplier(layer, "mlp"))
        if behind is not None:
            factor = factor / behind.scale(output.to(self.model.dtype))
        if router is None:
            inner = self._inner_factor(layer, exact(post), exact(output))
            return (factor * inner).expand(*post.shape[:-1], post.shape[-1])
        width, routed = self.model.anatomy.d_expert, router.shape[-1] * self.model.anatomy.d_expert
        weights = exact(router).repeat_interleave(width, dim=-1)
        if post.shape[-1] > routed:
            rows = exact(self.neuron_outputs(layer))
            rest = exact(output) - (exact(post[..., :routed]) * weights) @ rows[:routed]
            shared = exact(post[..., routed:]) @ rows[routed:]
            gate = (rest * shared).sum(-1, keepdim=True) / shared.square().sum(-1, keepdim=True).clamp_min(1e-30)
            weights = torch.cat([weights, gate.expand(*post.shape[:-1], post.shape[-1] - routed)], -1)
        return weights * factor

    def _inner_factor(self, layer: int, post: Tensor, output: Tensor) -> float:
        """What the MLP multiplies its last matrix' output with (Falcon-H1); 1 elsewhere."""
        made = post @ exact(self.neuron_outputs(layer)).to(post)
        down = None if self.model.handles is None else self.model.handles.mlp_outputs[layer]
        if getattr(down, "bias", None) is not None:
            return 1.0
        factor = float((made * output).sum() / made.square().sum().clamp_min(1e-30))
        return 1.0 if abs(factor - 1) < _ROUNDING.get(self.model.dtype, 2e-2) else factor

    @contextmanager
    def raw_outputs(self, layer: int, receive: Callable[[Tensor], None]) -> Iterator[None]:
        """While open, the MLP's output before the norm behind it is handed over at every pass.

        Args:
            layer: of the MLP.
            receive: gets ``[batch pos d_model]`` (positions without their texts in some families).
        """
        self.check(layer, "mlp")
        behind = self.behind(layer, "mlp")
        trace, block = self.model.trace, None if self._plain else self.model.tl.blocks[layer]
        if behind is not None:
            hook = behind.module.register_forward_pre_hook(lambda _m, args: receive(args[0]))
        else:
            writer: Any = block.mlp if block is not None else trace.roles[layer].mlp_writes  # pyright: ignore
            hook = writer.register_forward_hook(lambda _m, _a, output: receive(first_tensor(output)))  # pyright: ignore
        try:
            yield
        finally:
            hook.remove()

    def head_outputs(self, layer: int) -> Float[Tensor, "head d_head d_model"]:
        """``W_O`` of every head, before what stands behind attention."""
        if not self._plain:
            return wide(self.model.tl.blocks[layer].attn.W_O)
        assert self.model.handles is not None
        output = self.model.handles.attention_outputs[layer]
        if output is None:
            raise ModelError(
                f"heads of layer {layer} of {self.model.name!r}",
                f"one of the layers with softmax attention: {self.model.anatomy.attention_layers}",
                "leave it out",
            )
        return wide(weight_of(output)).unflatten(0, (self.model.anatomy.n_heads, self.model.anatomy.d_head))

    def head_inputs(self, layer: int, site: Site) -> tuple[Float[Tensor, "head d_model d_head"], Tensor | None]:
        """``W_Q``, ``W_K`` or ``W_V``, one matrix per head that has its own, and the bias beside it.

        Args:
            layer: with softmax attention.
            site: ``Q``, ``K`` or ``V``.
        """
        handles = self.model.handles if self._plain else None
        parts = (
            None if handles is None else {Site.Q: handles.queries, Site.K: handles.keys, Site.V: handles.values}[site]
        )
        module = None if parts is None else parts[layer]
        if module is None:  # TransformerLens takes fused matrices apart
            attention, letter = self.model.tl.blocks[layer].attn, site.value.upper()
            try:
                own, weight = getattr(attention, f"b_{letter}", None), getattr(attention, f"W_{letter}")
            except NotImplementedError as error:
                raise ModelError(
                    f"{self.model.name!r}, with compressed keys and values (MLA)",
                    f"a matrix {letter} of every head",
                    "use scores of attention patterns, or ablations",
                ) from error
            return wide(weight), None if own is None else wide(own)
        weight = wide(weight_of(module)).unflatten(1, (-1, self.model.anatomy.d_head)).transpose(0, 1)
        bias: Any = getattr(module, "bias", None)
        return weight, None if bias is None else wide(bias).unflatten(0, (-1, self.model.anatomy.d_head))

    @property
    def embedding(self) -> Float[Tensor, "d_vocab d_model"]:
        """``W_E``, before any factor that the family multiplies it with."""
        if not self._plain:
            return wide(self.model.tl.W_E)
        return wide(self.model.plain.get_input_embeddings().weight)  # pyright: ignore

    def output_bias(self, layer: int) -> Float[Tensor, " d_model"] | None:
        """The bias of attention's output matrix."""
        if not self._plain:
            return getattr(self.model.tl.blocks[layer].attn, "b_O", None)
        assert self.model.handles is not None
        return getattr(self.model.handles.attention_outputs[layer], "bias", None)

    @property
    def final_norm(self) -> FrozenNorm:
        """The norm before the unembedding."""
        found = self._norm("final", -1, "ln_final")
        return FrozenNorm.none(self.model.anatomy.d_model, self._like) if found is None else found

    @property
    def unembedding(self) -> Float[Tensor, "d_model d_vocab"]:
        """``W_U``, with the factor behind it (Cohere, Granite), before any soft cap."""
        return (wide(weight_of(self._head)) if self._plain else wide(self.model.tl.W_U)) * self._finish[0]

    @property
    def unembedding_bias(self) -> Float[Tensor, " d_vocab"] | None:
        """The unembedding's own bias, with that factor."""
        own = getattr(self._head, "bias", None) if self._plain else getattr(self.model.tl.unembed, "b_U", None)
        return None if own is None else wide(own) * self._finish[0]

    def raw_logits(self, states: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_vocab"]:
        """Final norm and unembedding with the factor behind it, before a soft cap: linear in what the norm gives."""
        states = states.to(self.model.dtype)
        if not self._plain:
            rows = states.reshape(1, -1, states.shape[-1])
            made = self.model.tl.unembed(self.model.tl.ln_final(rows)).view(*states.shape[:-1], -1)
        else:
            norm = self.model.trace.final_norm  # pyright: ignore
            made = self._head(states if norm is None else norm(states))
        return made * self._finish[0] if self._finish[0] != 1 else made

    def lens(self, states: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_vocab"]:
        """Raw logits for ranks and rivals, in float32 at least.

        Of a half-precision model they are worked out anew from its residual stream: bfloat16 keeps eight bits, so that
        the best logits of one position are often equal, and which of them is first would be chance.
        """
        if self.model.dtype.itemsize >= 4:
            return self.raw_logits(states)
        weight, bias = self._wide_head
        norm = self.model.trace.final_norm if self._plain else self.model.tl.ln_final  # pyright: ignore
        read = wide(states) if norm is None else wide(_run(norm, states.to(self.model.dtype)))
        return read @ weight if bias is None else read @ weight + bias

    @cached_property
    def _wide_head(self) -> tuple[Float[Tensor, "d_model d_vocab"], Float[Tensor, " d_vocab"] | None]:
        return self.unembedding, self.unembedding_bias

    def finish(self, raw: Float[Tensor, "*batch d_vocab"]) -> Float[Tensor, "*batch d_vocab"]:
        """The soft cap behind raw logits, where there is one."""
        return capped(raw, self._finish[1])

    @property
    def _finish(self) -> tuple[float, float]:
        """Factor and soft cap."""
        if not self._plain:
            return 1.0, max(0.0, float(getattr(self.model.tl.cfg, "output_logits_soft_cap", None) or 0.0))
        finish = self.model.trace.finish  # pyright: ignore
        if finish is None:
            raise ModelError(
                f"logits of {self.model.name!r} ({self.model.anatomy.architecture})",
                "logits that are the unembedding's output, scaled and capped at most",
                "read logits from the model itself; it has no logit lens",
            )
        return finish

    def logits(self, states: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_vocab"]:
        """What the model makes of a residual stream: of the last layer its logits, of an earlier one the logit lens."""
        return self.finish(self.raw_logits(states))

    @property
    def _head(self) -> Any:
        head = None if self.model.trace is None else self.model.trace.head
        if head is None:
            raise ModelError(
                f"the unembedding of {self.model.name!r} ({self.model.anatomy.architecture})",
                "a matrix that reads the last residual stream through one norm",
                "read logits from the model itself",
            )
        return head

    @property
    def _like(self) -> Tensor:
        return next(self.model._any_view().parameters())

    def _norm(self, role: str, layer: int, name: str) -> FrozenNorm | None:
        if (role, layer) not in self._norms:
            trace = self.model.trace
            if not self._plain:
                owner = self.model.tl if layer < 0 else self.model.tl.blocks[layer]
                module = getattr(owner, name, None)
            else:
                assert trace is not None
                module = trace.final_norm if layer < 0 else getattr(trace.roles[layer], role)
            width = self.model.anatomy.d_model
            self._norms[role, layer] = None if module is None else FrozenNorm.of(module, width, self._like_of(module))
        return self._norms[role, layer]

    def _like_of(self, module: Any) -> Tensor:
        """A tensor of the type and on the device that a norm works with; its own weight says where it lies."""
        own = next(iter(module.parameters()), None) if hasattr(module, "parameters") else None
        return self._like if own is None else torch.empty(0, dtype=self.model.dtype, device=own.device)
