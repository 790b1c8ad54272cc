"""What attention heads read and write, as weights with the norms before and behind them folded in.

Vectors are rows: head ``h`` moves ``x [W_V(h) W_O(h)]`` from key to query.  How norms are folded in is said in
:mod:`mechrep.analyzers.heads.frozen_norm`.  That the pieces are the model's own is
checked on a probe before they are used.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mechrep.analyzers.heads.frozen_norm import FrozenNorm, exact, wide
from mechrep.errors import ModelError
from mechrep.models.anatomy import Site
from mechrep.models.model import Model
from mechrep.models.reading import read_activations
from mechrep.provenance import Provenance, provenance_of

Reader = Literal["Q", "K", "V"]

_SITES: dict[Reader, Site] = {"Q": Site.Q, "K": Site.K, "V": Site.V}
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
_HALF_PRECISION_TOLERANCE = 0.1


class HeadCircuits:
    """The weights of a model's heads, one matrix per query head, as :mod:`mechrep.analyzers.heads.circuits` says.

    Query head ``h`` reads key-value head ``h // (n_heads / n_kv_heads)``; that one's weights are repeated here.

    Args:
        model: the model, raw or in compatibility mode: what is worked out from these weights is the same.  Norms are
            remembered, so make new circuits when weights change.

    Attributes:
        model: the model.
        n_heads: query heads per layer.

    Raises:
        ModelError: a model without separate heads, or whose queries, keys, values and attention outputs are not what
            norm and weights make of the residual stream (attention behind a gate, compressed keys, other norms).

    Example:
        >>> import mechrep
        >>> circuits = HeadCircuits(mechrep.load_model("mechrep-tiny"))
        >>> ov = circuits.reading(1, "V") @ circuits.writing(1)
        >>> ov.shape[0] == circuits.n_heads, ov.shape[1] == ov.shape[2] == circuits.unembed.shape[0]
        (True, True)
    """

    def __init__(self, model: Model) -> None:
        anatomy = model.anatomy
        absent = [site.value for site in (*_SITES.values(), Site.Z, Site.ATTN_OUT) if not anatomy.has(site)]
        if absent:
            raise ModelError(
                f"{anatomy.architecture}, without {', '.join(absent)}",
                "attention with a query, key, value and output of each head",
                "this model has no separate heads; use a score of attention patterns",
            )
        self.model, self.n_heads = model, anatomy.n_heads
        self._norms: dict[int, FrozenNorm] = {}
        self._check()

    def norm(self, layer: int) -> FrozenNorm:
        """The norm whose output the heads of a layer read."""
        if layer not in self._norms:
            self._norms[layer] = self._frozen(self._block(layer).ln1, layer)
        return self._norms[layer]

    @cached_property
    def final_norm(self) -> FrozenNorm:
        """The norm before the unembedding."""
        return FrozenNorm.of(self.model.ln_final, self.model.anatomy.d_model, self.model.W_U)

    @cached_property
    def unembed(self) -> Float[Tensor, "d_model d_vocab"]:
        """``W_U`` with the final norm folded in, centred over the vocabulary; its bias left out."""
        folded = self.final_norm.fold(wide(self.model.W_U))
        return folded - folded.mean(-1, keepdim=True)

    def reading(self, layer: int, which: Reader) -> Float[Tensor, "head d_model d_head"]:
        """``W_Q``, ``W_K`` or ``W_V`` with the norm before it folded in."""
        return self._per_head(self.norm(layer).fold(wide(getattr(self._block(layer).attn, f"W_{which}"))))

    def reading_bias(self, layer: int, which: Reader) -> Float[Tensor, "head d_head"]:
        """What stands beside :meth:`reading`: the bias of the projection and that of the norm before it."""
        attention = self._block(layer).attn
        bias = self.norm(layer).bias @ wide(getattr(attention, f"W_{which}"))
        own = getattr(attention, f"b_{which}", None)
        return self._per_head(bias if own is None else bias + wide(own))

    def writing(self, layer: int) -> Float[Tensor, "head d_head d_model"]:
        """``W_O``, with the norm behind it folded in, where there is one (Gemma 2)."""
        weight, behind = wide(self._block(layer).attn.W_O), self._norm_behind(layer)
        return weight if behind is None else behind.apply(weight)

    def writing_scale(
        self, layer: int, z: Float[Tensor, "*batch head d_head"]
    ) -> tuple[Float[Tensor, "*batch 1"], Float[Tensor, "*batch d_model"]]:
        """What turns ``sum_h z_h W_O(h)`` into the attention's output: a factor per position, and a bias."""
        attention, behind = self._block(layer).attn, self._norm_behind(layer)
        own = getattr(attention, "b_O", None)
        summed = torch.einsum("...hd,hdm->...m", exact(z), exact(attention.W_O))
        bias = torch.zeros_like(summed) if own is None else exact(own).expand_as(summed)
        if behind is None:
            return torch.ones_like(summed[..., :1]), bias
        factor = 1 / behind.scale((summed + bias).to(self.model.dtype))
        return factor, exact(behind.apply(wide(bias))) * factor + exact(behind.bias)

    def head_outputs(self, layer: int, z: Float[Tensor, "*batch head d_head"]) -> Float[Tensor, "*batch head d_model"]:
        """What each head adds to the residual stream because of the tokens it looks at: value biases left out.

        Rows of attention sum to 1, so a head adds its value biases always; compatibility mode moves them to ``b_O``.
        """
        factor, _ = self.writing_scale(layer, z)
        moved = exact(z) - exact(self.reading_bias(layer, "V"))
        return torch.einsum("...hd,hdm->...hm", moved, exact(self.writing(layer))) * factor[..., None]

    def _block(self, layer: int) -> Any:
        return self.model.blocks[layer]

    def _frozen(self, module: Any, layer: int) -> FrozenNorm:
        return FrozenNorm.of(module, self.model.anatomy.d_model, self._block(layer).attn.W_V)

    def _norm_behind(self, layer: int) -> FrozenNorm | None:
        module = getattr(self._block(layer), "ln1_post", None)
        return None if module is None else self._frozen(module, layer)

    def _per_head(self, weight: Tensor) -> Tensor:
        return weight.repeat_interleave(self.n_heads // weight.shape[0], dim=0)

    @torch.no_grad()
    def _check(self) -> None:
        model, seen = self.model, {}
        layers = range(model.anatomy.n_layers)

        def keep(activation: Tensor, site: Site, layer: int) -> None:
            seen[site, layer] = activation.clone()

        sites = (Site.RESID_PRE, *_SITES.values(), Site.Z, Site.ATTN_OUT)
        wanted = {site: layers for site in sites}
        read_activations(model, model.probe_tokens(), wanted, keep, view="transformer_lens")
        tolerance = _TOLERANCE.get(model.dtype, _HALF_PRECISION_TOLERANCE)
        for layer in layers:
            for what, expected, found in self._promises({site: seen[site, layer] for site in sites}, layer):
                size = expected.abs().max().clamp_min(1e-6)
                if ((expected - found).abs().max() / size).item() > tolerance:
                    raise ModelError(
                        f"{model.name!r} ({model.anatomy.architecture}), {what} of layer {layer}",
                        "heads that read the residual stream through one norm and add up to the attention's output",
                        "scores from weights would be wrong for this model; use scores of attention patterns",
                    )

    def _promises(self, seen: dict[Site, Tensor], layer: int) -> Iterator[tuple[str, Tensor, Tensor]]:
        """What the model computed, and the same from the pieces given here."""
        stream = seen[Site.RESID_PRE]
        scale = self.norm(layer).scale(stream)[..., None]
        for which, site in _SITES.items():
            read = torch.einsum("bpm,hmd->bphd", exact(stream), exact(self.reading(layer, which))) / scale
            found = self._per_head(exact(seen[site]).movedim(2, 0)).movedim(0, 2)
            yield site.value, found, read + exact(self.reading_bias(layer, which))
        factor, bias = self.writing_scale(layer, seen[Site.Z])
        written = torch.einsum("bphd,hdm->bpm", exact(seen[Site.Z]), exact(self.writing(layer)))
        yield "the attention output", exact(seen[Site.ATTN_OUT]), written * factor + bias


class _NoTexts:
    """Stands for the corpus in the provenance of what is read off weights alone."""

    bos_policy = "no texts"

    def __init__(self, model: Model) -> None:
        self.tokenizer = model.tokenizer_fingerprint

    def __len__(self) -> int:
        return 0

    def fingerprint(self) -> str:
        return "no texts"


def weights_provenance(model: Model, config: dict[str, Any]) -> Provenance:
    """Provenance of a result that no text took part in."""
    return provenance_of(model, _NoTexts(model), config)
