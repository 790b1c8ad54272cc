"""Direct logit attribution: how much each part of the model adds to one token's logit over another's.

With the final norm frozen at its scale ``s``, the logit difference of ``e`` and ``r`` is linear in what the parts add
to the residual stream ``x``, ``x = embedding + sum over layers of (heads + attention bias + MLP)``::

    logit(e) - logit(r) = x . d / s + b(e) - b(r)          d = c diag(g) (W_U[:, e] - W_U[:, r])
    DLA(part)           = (what the part adds) . d / s

where ``g`` and ``c`` are the final norm's gain and centring.  A head adds ``z_h W_O(h)`` (through the norm behind the
attention, where there is one); the MLP of a layer is what the layer adds besides.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechrep.analyzers.heads.circuits import HeadCircuits
from mechrep.analyzers.heads.frozen_norm import exact, wide
from mechrep.models.model import Model

_LOGITS_AT_ONCE = 2**25


@dataclass(frozen=True)
class TokenPrediction:
    """What a residual stream says about an expected token.

    Attributes:
        log_probability: of it, in nats.
        entropy: of all tokens, in nats.
        rank: 1 for the most probable token; ties count for it.
        rival: the most probable token among all others.
        difference: logit of the token minus that of its rival.
    """

    log_probability: Float[Tensor, " query"]
    entropy: Float[Tensor, " query"]
    rank: Float[Tensor, " query"]
    rival: Int[Tensor, " query"]
    difference: Float[Tensor, " query"]


class LogitAttribution:
    """Predictions and direct logit attribution for one model.

    Args:
        model: the model, raw or in compatibility mode.

    Raises:
        ModelError: a model without separate heads, see :class:`~mechrep.analyzers.heads.circuits.HeadCircuits`.

    Limits: where logits are capped behind the unembedding (Gemma 2), attribution is of the logits before the cap.

    Example:
        >>> import mechrep
        >>> attribution = LogitAttribution(mechrep.load_model("mechrep-tiny"))
        >>> stream = torch.randn(3, attribution.circuits.model.anatomy.d_model)
        >>> attribution.predict(stream, torch.tensor([5, 6, 7])).rank.shape
        torch.Size([3])
    """

    def __init__(self, model: Model) -> None:
        self.circuits = HeadCircuits(model)
        self.model = model

    @cached_property
    def bias(self) -> Float[Tensor, " d_vocab"]:
        """Logits that do not depend on the residual stream: ``b_norm W_U + b_U``."""
        weight, own = wide(self.model.W_U), getattr(self.model.unembed, "b_U", None)
        bias = self.circuits.final_norm.bias.to(weight) @ weight
        return bias if own is None else bias + wide(own)

    def predict(self, stream: Float[Tensor, "query d_model"], expected: Int[Tensor, " query"]) -> TokenPrediction:
        """What the final norm and the unembedding make of a residual stream (of any layer: the logit lens)."""
        parts: list[list[Tensor]] = []
        size = max(1, _LOGITS_AT_ONCE // self.model.anatomy.d_vocab)
        for some, tokens in zip(stream.split(size), expected.split(size), strict=True):
            logits = wide(self.model.unembed(self.model.ln_final(some[None].to(self.model.dtype))))[0]
            parts.append(_judge(logits, tokens, self._cap))
        return TokenPrediction(*(torch.cat(columns) for columns in zip(*parts, strict=True)))

    @cached_property
    def _cap(self) -> float:
        configured = getattr(self.model.cfg, "output_logits_soft_cap", None)
        return float(configured) if configured and configured > 0 else 0.0

    def direction(
        self, expected: Int[Tensor, " query"], rival: Int[Tensor, " query"]
    ) -> Float[Tensor, "query d_model"]:
        """``d``: what a part has to add for ``e`` to gain on ``r``."""
        unembed = self.circuits.unembed
        return exact((unembed[:, expected] - unembed[:, rival]).T)

    def heads(
        self, layer: int, z: Float[Tensor, "query head d_head"], direction: Float[Tensor, "query d_model"]
    ) -> tuple[Float[Tensor, "query head"], Float[Tensor, " query"]]:
        """What each head of a layer adds along a direction, and what the attention's bias does; not yet over ``s``."""
        factor, bias = self.circuits.writing_scale(layer, z)
        along = torch.einsum("hdm,qm->qhd", exact(self.circuits.writing(layer)), direction)
        return (exact(z) * along).sum(-1) * factor, (bias * direction).sum(-1)


def _judge(logits: Float[Tensor, "query d_vocab"], expected: Int[Tensor, " query"], cap: float) -> list[Tensor]:
    place = expected[:, None]
    own = logits.gather(1, place)
    rank = 1 + (logits > own).sum(1)
    others = logits.scatter(1, place, -torch.inf)
    best, rival = others.max(1)
    capped = cap * (logits / cap).tanh() if cap else logits
    log_probabilities = exact(capped).log_softmax(1)
    entropy = -(log_probabilities.exp() * log_probabilities).nan_to_num(0.0).sum(1)
    return [log_probabilities.gather(1, place)[:, 0], entropy, exact(rank), rival, exact(own[:, 0] - best)]
