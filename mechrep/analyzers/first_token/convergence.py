"""Do copies of a token after a prefix come to the state of the token alone, and how fast?

Texts are a prefix and n copies of x; the limit is x alone, without BOS.  Per number of copies::

    distance(n) = |out(copy n) - out(x alone)|      of layer 0's attention output, and of layer 0 as a whole
    w(n)        = attention of each head to the prefix, at copy n

and, on a pure run of x without prefix, whether all positions are in one state at every depth: they are in models
without positions in their values (rotary, ALiBi, none), and are not where positions are learned.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mechrep.analyzers.first_token.convergence_result import ConvergenceResult as ConvergenceResult
from mechrep.analyzers.first_token.other_tokens import LAYER, check_patterns, other_token_mass
from mechrep.analyzers.first_token.triples import corpus_of
from mechrep.analyzers.sinks.repeat_norms import repeat_grid
from mechrep.errors import InputError
from mechrep.models.anatomy import Site
from mechrep.models.model import Model
from mechrep.models.reading import read_activations
from mechrep.provenance import provenance_of
from mechrep.text.corpus import Corpus

_PREFIX = "some prefix: "
_TOKENS, _REPEATS, _PURE = 8, 500, 64
_SITES = (Site.ATTN_OUT, Site.RESID_POST)  # in the order of convergence_result.PLACES


def first_layer_convergence(
    model: Model,
    token_ids: Sequence[int] | None = None,
    *,
    prefix: Sequence[int] | None = None,
    repeats: int | None = None,
) -> ConvergenceResult:
    """Measures how copies of each token approach that token alone, as the first layer sees them.

    Args:
        model: the model, in float32 or finer.
        token_ids: the repeated tokens; by default the 8 most frequent of held-out English.
        prefix: ids in front of the copies; by default ``"some prefix: "``, with BOS by the model's habit.
        repeats: number of copies; by default 500, or what the model reads.

    Returns:
        Distances and masses against the number of copies, the fitted rates, and what theory expects.

    Raises:
        InputError: half precision, no tokenizer and no ids, an empty prefix or one that holds a repeated token, fewer
            than 8 copies, more than the model reads, or a model without attention patterns.

    Source: BOS, ``"some prefix: "`` and 500 copies is Yona et al. 2025 (arXiv 2503.08908), whose figure names attention
    0 and draws layer 0 with its MLP; both are here.  Masses, fits and the comparison with theory are mechrep's own.

    Limits: a fit over a few hundred copies sees the beginning of a law only; heads with a strong preference for the
    prefix need thousands.  Half precision makes neighbouring copies equal by rounding, and is refused.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> result = first_layer_convergence(model, [300, 301], repeats=40)
        >>> result.repeats[-1], result.theory, bool((result.pure_deviation < 1e-4).all())
        (40, 'power', True)
    """
    check_patterns(model.anatomy)
    if model.dtype.itemsize < torch.float32.itemsize:
        raise InputError(
            f"{model.name} in {str(model.dtype).removeprefix('torch.')}",
            "float32: half precision makes neighbouring copies equal by rounding",
            "load it with dtype=torch.float32",
        )
    front, tokens = _front_and_tokens(model, prefix, token_ids)
    most = model.anatomy.n_ctx - len(front)
    copies = min(most, _REPEATS) if repeats is None else repeats
    if not 8 <= copies <= most:
        raise InputError(f"{copies} copies after {len(front)} tokens", f"8 to {most}", "choose others, or shorten it")
    rows = Corpus.from_tokens([[*front, *[token] * copies] for token in tokens], model=model)
    grid = repeat_grid(copies)
    seen = [_follow(model, rows.row(text), len(front), grid) for text in range(len(tokens))]
    limits = [_states(model, [token], [0]) for token in tokens]
    runs = [_run_deviations(model, token, min(_PURE, model.anatomy.n_ctx)) for token in tokens]
    return ConvergenceResult.from_measured(
        provenance_of(model, rows, {"prefix": front, "repeats": copies}),
        token_ids=tokens,
        prefix_length=len(front),
        repeats=grid,
        distance=torch.stack([(s.states - limit).norm(dim=-1) for s, limit in zip(seen, limits, strict=True)]),
        limit_norm=torch.stack([limit[:, 0].norm(dim=-1) for limit in limits]),
        mass=torch.stack([s.mass for s in seen]),
        odds=torch.stack([s.odds for s in seen]),
        window=max(s.window for s in seen),
        pure_deviation=torch.stack([layers for layers, _ in runs]),
        value_deviation=torch.stack([attention for _, attention in runs]),
        positions=model.anatomy.positions,
    )


class _Followed:
    """States and masses of one text at the copies asked for, filled while the model runs."""

    states: Float[Tensor, "place repeat d_model"]
    mass: Float[Tensor, "head repeat"]
    odds: Float[Tensor, "head repeat"]
    window: int


def _follow(model: Model, ids: list[int], front: int, grid: Sequence[int]) -> _Followed:
    places = [front + n - 1 for n in grid]
    followed, row = _Followed(), torch.tensor(ids)

    def receive(pattern: Tensor, _site: Site, _layer: int) -> None:
        exact = pattern[0].cpu().double()
        rows = exact[:, places]
        followed.mass = other_token_mass(rows, row, torch.tensor(places))
        # Not 1 - w: where a head hardly looks at the copies, that is rounding.
        followed.odds = followed.mass / (rows * (row == row[-1])).sum(-1)
        followed.window = _window(exact)

    read_activations(model, row[None].to(model.device), {Site.PATTERN: [LAYER]}, receive)
    followed.states = _states(model, ids, places)
    return followed


def _window(pattern: Float[Tensor, "head query_pos key_pos"]) -> int:
    """How many keys the last query sees, where that is fewer than all; 0 where it sees the first.

    A key counts as seen if any head gives it anything at all.
    """
    seen = (pattern[:, -1] > 0).any(0).nonzero().flatten()
    return 0 if int(seen[0]) == 0 else pattern.shape[-1] - int(seen[0])


def _states(model: Model, ids: list[int], places: Sequence[int]) -> Float[Tensor, "place repeat d_model"]:
    """Outputs of layer 0's attention and of layer 0, at some positions of one text."""
    found: dict[Site, Tensor] = {}

    def receive(activation: Tensor, site: Site, _layer: int) -> None:
        found[site] = activation[0, list(places)].cpu().double()

    read_activations(model, torch.tensor([ids], device=model.device), {site: [LAYER] for site in _SITES}, receive)
    return torch.stack([found[site] for site in _SITES])


def _run_deviations(model: Model, token: int, length: int) -> tuple[Float[Tensor, " layer"], Float[Tensor, ""]]:
    """Largest distances from the first position in a run of one token, over its norm: after layers, of attention 0."""
    found: dict[tuple[Site, int], Tensor] = {}

    def receive(activation: Tensor, site: Site, layer: int) -> None:
        states = activation[0].cpu().double()
        found[site, layer] = (states - states[0]).norm(dim=-1).max() / states[0].norm()

    tokens, layers = torch.full((1, length), token, device=model.device), range(model.anatomy.n_layers)
    read_activations(model, tokens, {Site.RESID_POST: layers, Site.ATTN_OUT: [LAYER]}, receive)
    return torch.stack([found[Site.RESID_POST, layer] for layer in layers]), found[Site.ATTN_OUT, LAYER]


def _front_and_tokens(
    model: Model, prefix: Sequence[int] | None, token_ids: Sequence[int] | None
) -> tuple[list[int], list[int]]:
    """The prefix and the repeated tokens, as given or by default."""
    if model.tokenizer is None and (prefix is None or token_ids is None):
        raise InputError(f"{model.name}, which has no tokenizer", "ids", "pass prefix=[...] and token_ids=[...]")
    front = model.encode(_PREFIX) if prefix is None else list(prefix)
    if token_ids is None:
        corpus = corpus_of(model, None)
        counted = Counter(token for text in range(len(corpus)) for token in corpus.row(text))
        unfit = model.special_ids.union(front)  # a copy in the prefix would be no other token
        tokens = [token for token, _ in counted.most_common() if token not in unfit][:_TOKENS]
    else:
        tokens = list(token_ids)
    if not front or not tokens or len(set(tokens)) < len(tokens) or set(front).intersection(tokens):
        raise InputError(
            f"prefix {front}, repeated tokens {tokens}",
            "at least one of each, no token twice, and none of them in the prefix",
            "choose others",
        )
    return front, tokens
