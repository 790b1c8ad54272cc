"""Which heads are worth ablating: a first-order estimate of what ablating each head alone would do, for all at once.

Ablating ``H`` heads one at a time takes ``H`` passes over the texts.  Let every head have a gate ``g`` at the edited
positions, ``z <- z + g (z_ablated - z)``: 0 is the model as it is, 1 the head ablated.  Then::

    estimate = d value / d g  at  g = 0            (what the ablation does, were the model linear in this head)

and one pass forward and one backward give it for all heads of all layers.  :func:`screened_heads` takes the heads with
the largest estimates and a random sample of the others: those are ablated exactly, and :func:`agreement` says how well
the estimate foretold it.

Source: attribution patching: Nanda 2023, Syed et al. 2023 (arXiv 2310.10348), Kramár et al. 2024 (AtP*, arXiv
2403.00745), who show where it fails; gates of heads: Michel et al. 2019 (arXiv 1905.10650).

Limits: first order.  A head whose attention is saturated, or whose work others take over once it is gone, is misjudged;
the random sample tells how often.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechrep.ablation.score import ScoredText, first_read, go_on_from, prefixes_of
from mechrep.errors import InputError
from mechrep.guards import one_of
from mechrep.interventions.ops import Op, as_op
from mechrep.models.anatomy import Site
from mechrep.models.finite import no_number
from mechrep.models.memory import in_batches
from mechrep.models.model import Model
from mechrep.progress import progress_bar

Unit = tuple[int, int]
ALL_EXACTLY = 40  # of so many heads, each is ablated
FIRST, SAMPLED = 20, 12  # of more: those with the largest estimates, and others at random
_TOKENS_PER_BATCH = 256  # what a backward pass keeps is many times larger than what a forward pass does
_LOGITS_PER_BATCH = 2**24
_DOING = "estimating what heads do"


@dataclass(frozen=True)
class WeightedText:
    """A text, and how its tokens' log-probabilities make one number.

    Attributes:
        text: what is predicted and from where it is edited.
        weights: of the log-probabilities of its tokens from ``first`` on.
    """

    text: ScoredText
    weights: Float[Tensor, " token"]


def estimated_effects(
    model: Model, texts: Sequence[WeightedText], op: Op | str = "zero", *, progress: bool | None = None
) -> Float[Tensor, "text layer head"]:
    """What ablating each head alone would change in each text's weighted log-probability, to first order.

    Args:
        model: the model.
        texts: what to predict, from where heads are ablated, and with which weights.
        op: operation on heads.
        progress: show a progress bar.

    Returns:
        Float64, on the CPU; NaN for layers without attention.

    Raises:
        InputError: an operation that does not say what a head gives.
        ModelError: gradients that are no numbers, as in float16 beyond its range.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> text = ScoredText((0, 5, 6, 7, 5, 6, 7), first=4, start=3, number=0)
        >>> estimated_effects(model, [WeightedText(text, torch.ones(3) / 3)]).shape
        torch.Size([1, 4, 2])
    """
    op, anatomy = as_op(op), model.anatomy
    found = torch.full((len(texts), anatomy.n_layers, anatomy.n_heads), torch.nan, dtype=torch.float64)
    there = list(anatomy.attention_layers)
    groups: dict[tuple[int, int, int], list[int]] = {}
    for index, one in enumerate(texts):
        groups.setdefault(one.text.shape, []).append(index)

    def estimate(some: Sequence[int]) -> Float[Tensor, "text layer head"]:
        return _of_one_shape(model, [texts[i] for i in some], op)

    with progress_bar(len(texts), _DOING, "text", progress) as bar, _no_other_gradients(model):
        for (length, first, _), group in groups.items():
            rows = min(_TOKENS_PER_BATCH // length, _LOGITS_PER_BATCH // (anatomy.d_vocab * (length - first)))
            for some, estimates in in_batches(group, rows, estimate, _DOING):
                if not bool(estimates[:, there].isfinite().all()):
                    raise no_number(model.name, model.dtype, "gradients")
                found[torch.tensor(some)[:, None], torch.tensor(there)] = estimates[:, there].cpu().double()
                bar.update(len(some))
    return found


@contextmanager
def _no_other_gradients(model: Model) -> Iterator[None]:
    """While open, no weight asks for a gradient: what would be needed for it is not kept either."""
    module = model.plain if model.fast else model.tl
    assert module is not None
    asking = [weight for weight in module.parameters() if weight.requires_grad]
    for weight in asking:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in asking:
            weight.requires_grad_(True)


def _of_one_shape(model: Model, texts: Sequence[WeightedText], op: Op) -> Float[Tensor, "text layer head"]:
    """All texts have one length, and are predicted and edited from the same place on."""
    anatomy, device = model.anatomy, model.device
    length, first, _ = texts[0].text.shape
    begin = 0 if op.moves_attention or not model.fast else first_read(model, texts[0].text.shape)
    tokens = torch.tensor([one.text.tokens for one in texts], device=device)
    starts = torch.tensor([one.text.start for one in texts], device=device)
    weights = torch.stack([one.weights for one in texts]).to(device)
    gates = torch.zeros(len(texts), anatomy.n_layers, anatomy.n_heads, device=device, dtype=model.dtype)
    gates.requires_grad_(True)
    mask = torch.arange(begin, length, device=device) >= starts[:, None]
    ablated = _ablated(model, [one.text.number for one in texts], op)

    def gated(z: Float[Tensor, "text pos head d_head"], layer: int) -> Tensor:
        gate = gates[:, layer].to(z)[:, None] * mask[:, : z.shape[1], None].to(z)
        return z + gate[..., None] * (ablated(z, layer) - z)

    if model.fast:
        with torch.no_grad():
            prefixes = prefixes_of(model, tokens[:, :begin])
        every = torch.arange(len(texts), device=device)
        with _gated(model, gated), torch.enable_grad():
            assert model.plain is not None
            logits = model.plain(
                input_ids=tokens[:, begin:],
                logits_to_keep=length - first + 1,
                **go_on_from(prefixes, [every] * anatomy.n_layers),
            ).logits[:, :-1]
    else:
        hooks = [
            (anatomy.hook_name(Site.Z, layer), lambda z, hook, layer=layer: gated(z, layer))  # noqa: ARG005
            for layer in anatomy.attention_layers
        ]
        with torch.enable_grad(), model.each_alone(torch.full((len(texts),), length)):
            logits = model.run_with_hooks(tokens, fwd_hooks=hooks)[:, first - 1 : -1]
    with torch.enable_grad():
        losses = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), tokens[:, first:].flatten().to(logits.device), reduction="none"
        )
        value = -(losses * weights.flatten().float().to(losses.device)).sum()
    (estimates,) = torch.autograd.grad(value, gates)
    return estimates


def _ablated(model: Model, numbers: Sequence[int], op: Op) -> Callable[[Tensor, int], Tensor]:
    """What every head of a layer gives when it is ablated, as a function of what it gives."""
    anatomy = model.anatomy
    heads, shape = torch.arange(anatomy.n_heads), (anatomy.n_layers, anatomy.n_heads, anatomy.d_head)
    distinct = numbers if op.differs_by_text else numbers[:1]

    def ablated(z: Float[Tensor, "text pos head d_head"], layer: int) -> Tensor:
        if op.moves_attention:  # at position 0 there is nothing else to attend to
            return z[:, :1]
        layers = torch.full_like(heads, layer)
        offsets = torch.stack([op.offsets(layers, heads, number, shape) for number in distinct])
        return op.factor * z + offsets[:, None].to(z)

    return ablated


@contextmanager
def _gated(model: Model, change: Callable[[Tensor, int], Tensor]) -> Iterator[None]:
    """While open, passes of the plain view change what all heads give."""
    handles, d_head = model.handles, model.anatomy.d_head
    assert handles is not None
    with ExitStack() as stack:
        for layer in model.anatomy.attention_layers:
            output = handles.attention_outputs[layer]
            if output is None:
                raise InputError(f"layer {layer} of {model.name}", "heads whose outputs can be read", "leave heads out")

            def edit(_module: Any, args: Any, layer: int = layer) -> tuple[Any, ...]:
                z = args[0].unflatten(-1, (-1, d_head))
                return (change(z, layer).flatten(-2), *args[1:])

            stack.callback(output.register_forward_pre_hook(edit).remove)
        yield


# --- which heads are ablated exactly ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Screening:
    """Which heads are ablated exactly, and by what they were chosen.

    Attributes:
        estimates: mean over texts, by the measure that is foretold.
        first: heads with the largest estimates of some measure, whatever their sign.
        sampled: others, at random, in the order of the model.
    """

    estimates: Mapping[str, Float[Tensor, "layer head"]]
    first: list[Unit]
    sampled: list[Unit]

    @property
    def heads(self) -> list[Unit]:
        """Both, in the order of the model."""
        return sorted([*self.first, *self.sampled])

    @property
    def n_heads(self) -> int:
        """Heads with an estimate."""
        return int((~next(iter(self.estimates.values())).isnan()).sum())

    @property
    def facts(self) -> dict[str, Any]:
        """For the notes of a table, see :func:`screening_of`."""
        tables = {
            name: [[None if math.isnan(value) else value for value in row] for row in table.tolist()]
            for name, table in self.estimates.items()
        }
        return {"estimates": tables, "first": list(map(list, self.first)), "sampled": list(map(list, self.sampled))}


def screened_heads(
    estimates: Mapping[str, Float[Tensor, "layer head"]], *, first: int = FIRST, sampled: int = SAMPLED, seed: int = 0
) -> Screening:
    """The heads with the largest estimates, of several measures by turns, and a random sample of the others.

    Example:
        >>> chosen = screened_heads({"loss": torch.tensor([[0.1, -3.0], [0.2, 0.0]])}, first=1, sampled=2)
        >>> chosen.first, len(chosen.sampled), len(chosen.heads)
        ([(0, 1)], 2, 3)
    """
    rankings = []
    for table in estimates.values():
        units: list[Unit] = [(int(layer), int(head)) for layer, head in (~table.isnan()).nonzero().tolist()]
        rankings.append(sorted(units, key=lambda unit, table=table: -abs(float(table[unit]))))
    ranked = list(dict.fromkeys(unit for units in zip(*rankings, strict=True) for unit in units))
    rest = ranked[first:]
    drawn = np.random.default_rng(seed).choice(len(rest), min(sampled, len(rest)), replace=False) if rest else []
    return Screening(estimates, ranked[:first], sorted(rest[int(place)] for place in drawn))


def screening_of(notes: Mapping[str, Any]) -> Screening | None:
    """By what the heads of a table were chosen, from its notes; ``None`` where all were ablated.

    Example:
        >>> chosen = screened_heads({"loss": torch.tensor([[0.5, -3.0], [0.25, 0.0]])}, first=1, sampled=2)
        >>> screening_of({"screened": chosen.facts}).first, screening_of({})
        ([(0, 1)], None)
    """
    if "screened" not in notes:
        return None
    facts = notes["screened"]
    tables = {
        name: torch.tensor([[math.nan if value is None else value for value in row] for row in table])
        for name, table in facts["estimates"].items()
    }
    return Screening(tables, *([(a, b) for a, b in facts[name]] for name in ("first", "sampled")))


@dataclass(frozen=True)
class Agreement:
    """How well estimates foretold what heads do when they are ablated.

    Attributes:
        n: heads that were ablated exactly.
        rank_correlation: Spearman's, of the sizes, over these heads.
        sampled: heads among them that were drawn at random from those with small estimates.
        missed: sampled heads with a larger effect than the middle one of those that the estimate put first.
    """

    n: int
    rank_correlation: float
    sampled: int
    missed: int


def agreement(screening: Screening, measure: str, exact: Mapping[Unit, float]) -> Agreement:
    """Compare estimates of a measure with exact effects.

    Args:
        screening: which heads, and by what.
        measure: one that heads were screened by.
        exact: mean effect of each of ``screening.heads``.

    Raises:
        InputError: another measure.

    Example:
        >>> chosen = screened_heads({"loss": torch.tensor([[0.1, -3.0], [0.2, 0.0]])}, first=1, sampled=3)
        >>> agreement(chosen, "loss", {(0, 0): 0.15, (0, 1): -2.0, (1, 0): 0.3, (1, 1): 0.01})
        Agreement(n=4, rank_correlation=1.0, sampled=3, missed=0)
    """
    from scipy.stats import rankdata

    one_of("measure", measure, screening.estimates)
    table, heads = screening.estimates[measure], screening.heads
    sizes = np.array([abs(exact[unit]) for unit in heads])
    ranks = [rankdata(values) for values in ([abs(float(table[unit])) for unit in heads], sizes)]
    varies = all(len(set(one)) > 1 for one in ranks)
    correlation = round(float(np.corrcoef(*ranks)[0, 1]), 12) if varies else math.nan
    middle = float(np.median([abs(exact[unit]) for unit in screening.first])) if screening.first else math.nan
    missed = sum(abs(exact[unit]) > middle for unit in screening.sampled)
    return Agreement(len(heads), correlation, len(screening.sampled), int(missed))
