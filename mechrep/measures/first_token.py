"""How can the first layer tell the first token from the others, and on which texts is that asked?

For head h of layer 0, pattern A, values v and head output z at query t, in every model whose rows of A sum to 1::

    z_t - v_t = sum_j A[t, j] (v_j - v_t)                                    the exact identity
              = sum_{j: id_j != id_t} A[t, j] (v_j - v_t)                    where equal tokens have equal values
    w_t       = sum_{j: id_j != id_t} A[t, j]                                the other-token mass
    |z_t - v_t| <= w_t max_j |v_j - v_t|

At the first position w = 0, and so it is at every position of a run of one token: layer 0 can say "not the first" only
through w > 0.  The second line fails where the position is part of the value (learned positions).
:class:`FirstTokenDetection` measures w and checks all three lines.

The texts are windows of ordinary text without BOS, which would be told by its identity; and triples of consecutive
tokens, each beginning one token after the one before, so that every token (but for two at either end of a text) is once
the first, once the second and once the third: who it is says nothing about its place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechrep.cache.corpus_cache import Analyzer, Batch
from mechrep.errors import InputError, MissingPartError
from mechrep.figures import DASHES, INK, SEQUENCE, counted, new_figure, styled, translucent
from mechrep.guards import Count, check_count, guarded
from mechrep.interventions.apply import applied
from mechrep.interventions.ops import Intervention
from mechrep.models import tiny
from mechrep.models.anatomy import Anatomy, Site
from mechrep.models.model import Model
from mechrep.models.reading import choose_view, read_activations
from mechrep.models.stream import Stream
from mechrep.provenance import Provenance
from mechrep.results import Result
from mechrep.text.corpus import Corpus, CorpusLike

if TYPE_CHECKING:
    import plotly.graph_objects as go

LAYER = 0  # the first layer; later ones read states that attention has mixed already
_LARGEST = ("identity_error", "same_value_error", "bound_excess")  # largest values; all other state is sums


@dataclass(frozen=True, eq=False)
class OtherTokenResult(Result):
    """Attention of layer 0 to other tokens than the own one; means over all positions but the first of each text.

    Errors are the largest over all texts and positions, in units of the head's mean value norm.

    Attributes:
        mass: ``w``, per head; NaN where no text has a second token.
        by_position: mean over texts of ``w_t`` at each of the first positions; NaN where no text is that long.
        uniform_mass: what ``w`` would be if a head attended uniformly to these texts.
        identity_error: of ``z_t - v_t = sum_j A[t, j] (v_j - v_t)``: rounding, in every model whose rows sum to 1.
        same_value_error: of the same sum over other tokens only: rounding where equal tokens have equal values,
            large where the position is part of the value.
        bound_excess: the largest of ``|sum over others| - w_t max |v_j - v_t|``, which is never above rounding.
        value_shift: mean of ``|z_t - v_t|``, in units of the mean value norm.
        head_shift: mean of ``|(z_t - v_t) W_O|``, in units of the residual stream; NaN without ``W_O``.
        shift_by_position: mean over texts of ``|sum_h (z_t - v_t) W_O|`` at each of the first positions.
        n_texts: texts.
        n_queries: positions after the first of each text.
    """

    mass: Float[Tensor, " head"]
    by_position: Float[Tensor, "head pos"]
    uniform_mass: float
    identity_error: Float[Tensor, " head"]
    same_value_error: Float[Tensor, " head"]
    bound_excess: Float[Tensor, " head"]
    value_shift: Float[Tensor, " head"]
    head_shift: Float[Tensor, " head"]
    shift_by_position: Float[Tensor, " pos"]
    n_texts: int
    n_queries: int

    ranked_by: ClassVar[str] = "mass"

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], provenance: Provenance, residual: bool) -> OtherTokenResult:
        """Turn sums into means."""
        queries, norm = state["queries"], state["value_norm"] / state["tokens"]
        known = 1.0 if residual else torch.nan
        tensors = {
            "mass": state["mass"] / queries,
            "by_position": state["mass_by_position"] / state["position_count"],
            # 0 over 0 is a head without values, which is without error too.
            **{name: (state[name] / norm).masked_fill(state[name] == 0, 0) for name in _LARGEST},
            "value_shift": state["value_shift"] / queries / norm,
            "head_shift": known * state["head_shift"] / queries,
            "shift_by_position": known * state["shift_by_position"] / state["position_count"],
        }
        return cls(
            provenance,
            **{name: value.float() for name, value in tensors.items()},
            uniform_mass=float(state["uniform_mass"] / queries),
            n_texts=int(state["texts"]),
            n_queries=int(queries),
        )

    @guarded
    def top(self, k: int) -> list[tuple[int, int]]:
        """The ``k`` heads with the largest other-token mass, as ``(layer, head)``.

        Raises:
            InputError: ``k`` larger than the number of heads.
        """
        check_count(k, len(self.mass), "heads")
        return [(LAYER, head) for head in self.ranking()[:k]]

    def plot(self) -> go.Figure:
        """Mass by position, a line per head."""
        return other_token_mass_figure(self)


def check_patterns(anatomy: Anatomy) -> None:
    """Refuse a model whose heads cannot be looked at.

    Raises:
        MissingPartError: no attention patterns, values or head outputs.
    """
    absent = [site.value for site in (Site.PATTERN, Site.V, Site.Z) if not anatomy.has(site)]
    if absent:
        raise MissingPartError(
            f"{anatomy.architecture}, without {', '.join(absent)}",
            "attention with a pattern, values and an output of each head",
            "first-token detection by attention cannot be measured on this model",
        )


class FirstTokenDetection(Analyzer[OtherTokenResult]):
    """Measures the other-token mass of every head of layer 0 by position, and checks the identity on the model.

    Args:
        positions: how many first positions get a mean of their own.
        outputs: ``W_O`` of layer 0, to give shifts in the units of the residual stream too; :meth:`of` takes it from
            a model.  Without it they are NaN.

    Raises:
        InputError: fewer than one position; when run, a model without attention patterns, values or head outputs.

    Source: that the first layer detects other tokens is Yona et al. 2025 (arXiv 2503.08908); the identity, the mass and
    the bound are mechrep's own.

    Limits: a mass is no use of it: what the model makes of the shift is shown by
    :func:`mechrep.ablation.first_token_outcomes.first_layer_heads`.  With BOS in front every later token has
    another token before it; compare with ``uniform_mass``.  Read from the TransformerLens view, the slower one.
    Where a norm follows the attention (Gemma 2), shifts are those before it.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> corpus = mechrep.Corpus.from_texts(["The sea was calm.", "It rained all day."], model=model)
        >>> result = mechrep.CorpusCache(model, corpus).run(FirstTokenDetection.of(model))
        >>> float(result.by_position[:, 0].max()), bool((result.identity_error < 1e-4).all())
        (0.0, True)
    """

    sites: ClassVar[frozenset[Site]] = frozenset({Site.PATTERN, Site.V, Site.Z})

    @guarded
    def __init__(self, positions: Count = 64, *, outputs: Float[Tensor, "head d_head d_model"] | None = None) -> None:
        self.positions = positions
        self.outputs = None if outputs is None else outputs.detach().cpu().double()
        self.state = {}
        self._seen: dict[Site, Tensor] = {}

    @classmethod
    @guarded
    def of(cls, model: Model, positions: Count = 64) -> FirstTokenDetection:
        """The analyzer with the model's own ``W_O``, which gives shifts in the units of the residual stream.

        Raises:
            InputError: a model without attention patterns, values or head outputs.
        """
        check_patterns(model.anatomy)
        return cls(positions, outputs=Stream(model).head_outputs(LAYER))

    @property
    def config(self) -> dict[str, Any]:
        """How many positions are followed one by one, and whose ``W_O``."""
        outputs = None if self.outputs is None else hashlib.sha256(self.outputs.numpy().tobytes()).hexdigest()[:16]
        return {"positions": self.positions, "outputs": outputs}

    def layers(self, anatomy: Anatomy, site: Site) -> range:  # noqa: ARG002 - the same for all sites
        """The first layer."""
        return range(LAYER, LAYER + 1)

    def prepare(self, anatomy: Anatomy, frame: pd.DataFrame) -> None:  # noqa: ARG002 - any corpus will do
        """Empty sums for this model's heads."""
        check_patterns(anatomy)
        self._heads, self._kv_heads, self._seen = anatomy.n_heads, anatomy.n_kv_heads, {}
        tables = {
            "mass_by_position": (self._heads, self.positions),
            "shift_by_position": (self.positions,),
            "position_count": (self.positions,),
            **dict.fromkeys(("mass", "value_norm", "value_shift", "head_shift", *_LARGEST), (self._heads,)),
            **dict.fromkeys(("texts", "tokens", "queries", "uniform_mass"), (1,)),
        }
        self.state = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in tables.items()}
        self.state["bound_excess"] -= torch.inf

    def observe(self, activation: Tensor, site: Site, layer: int, batch: Batch) -> None:  # noqa: ARG002 - there is one
        """Add one batch, once its values, its pattern and what the heads made of both are there, in any order."""
        if site is Site.V:
            # Some views repeat each key-value head for the query heads that share it, others do not.
            activation = activation[:, :, :: activation.shape[2] // self._kv_heads]
            activation = activation.repeat_interleave(self._heads // self._kv_heads, dim=2)
        self._seen[site] = activation.cpu().double()
        if len(self._seen) < len(self.sites):
            return
        for row, length in enumerate(batch.lengths.tolist()):
            pattern, values = self._seen[Site.PATTERN][row], self._seen[Site.V][row]
            values, moved, others = self._predict(pattern, values, batch.tokens[row, :length].cpu())
            self._compare(self._seen[Site.Z][row, :length] - values, values, moved, others)
        self._seen = {}

    def _predict(
        self, pattern: Float[Tensor, "head query_pos key_pos"], values: Float[Tensor, "pos head d_head"], ids: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Count the masses of one text; its values, what the identity predicts, and the same from other tokens only."""
        length = len(ids)
        exact, values = pattern[:, :length, :length].cpu().double(), values[:length]
        differs = ids[:, None] != ids[None, :]
        to_others, mass = exact * differs, other_token_mass(exact, ids)
        self._count(mass, differs)
        moved = torch.einsum("hqk,khd->qhd", exact, values) - exact.sum(-1).T[..., None] * values
        others = torch.einsum("hqk,khd->qhd", to_others, values) - mass.T[..., None] * values
        by_head = values.transpose(0, 1)
        farthest = torch.cdist(by_head, by_head).masked_fill(~differs.tril(), 0).amax(-1)
        self._raise("bound_excess", (others.norm(dim=-1).T - mass * farthest).amax(-1))
        return values, moved, others

    def _count(self, mass: Float[Tensor, "head query_pos"], differs: Tensor) -> None:
        length, width = mass.shape[1], min(self.positions, mass.shape[1])
        seen = torch.arange(1, length + 1, dtype=torch.float64)
        self.state["mass_by_position"][:, :width] += mass[:, :width]
        self.state["position_count"][:width] += 1
        self.state["mass"] += mass[:, 1:].sum(-1)
        self.state["uniform_mass"] += (differs.tril().sum(-1) / seen)[1:].sum()
        for name, count in (("texts", 1), ("tokens", length), ("queries", length - 1)):
            self.state[name] += count

    def _compare(self, shift: Tensor, values: Tensor, moved: Tensor, others: Tensor) -> None:
        """Add what the heads of one text really did, ``z_t - v_t`` ``[pos head d_head]``."""
        self._raise("identity_error", (shift - moved).norm(dim=-1).amax(0))
        self._raise("same_value_error", (shift - others).norm(dim=-1).amax(0))
        self.state["value_norm"] += values.norm(dim=-1).sum(0)
        self.state["value_shift"] += shift[1:].norm(dim=-1).sum(0)
        if self.outputs is not None:
            written = torch.einsum("phd,hdm->phm", shift, self.outputs)
            width = min(self.positions, len(shift))
            self.state["head_shift"] += written[1:].norm(dim=-1).sum(0)
            self.state["shift_by_position"][:width] += written.sum(1).norm(dim=-1)[:width]

    def _raise(self, name: str, values: Float[Tensor, " head"]) -> None:
        self.state[name] = torch.maximum(self.state[name], values)

    def merge(self, other: Analyzer) -> None:
        """Add the sums of another analyzer with the same settings; of largest errors the larger one counts."""
        mine = {name: self.state[name] for name in _LARGEST}
        super().merge(other)
        for name, values in mine.items():
            self.state[name] = torch.maximum(values, other.state[name])

    def result(self, provenance: Provenance) -> OtherTokenResult:
        """Means per head and position, and the largest errors."""
        return OtherTokenResult.from_state(self.state, provenance, residual=self.outputs is not None)


def other_token_mass(
    pattern: Float[Tensor, "*batch query_pos key_pos"],
    ids: Int[Tensor, " key_pos"],
    queries: Int[Tensor, " query_pos"] | None = None,
) -> Float[Tensor, "*batch query_pos"]:
    """``w_t``: attention that queries give to keys of another token than their own.

    Args:
        pattern: of one text, rows are queries.
        ids: the text's tokens.
        queries: positions of the rows; all of the text by default.

    Example:
        >>> pattern = torch.tensor([[1.0, 0.0, 0.0], [0.25, 0.75, 0.0], [0.25, 0.25, 0.5]])
        >>> other_token_mass(pattern, torch.tensor([7, 8, 8])).tolist()
        [0.0, 0.25, 0.25]
    """
    own = ids if queries is None else ids[queries]
    return (pattern * (own[:, None] != ids[None, :])).sum(-1)


@torch.no_grad()
def largest_mass(model: Model, tokens: Int[Tensor, "text pos"]) -> float:
    """The largest :attr:`OtherTokenResult.mass` of any head, from the pattern alone: all that a null model is asked.

    Args:
        model: the model.
        tokens: texts of one length, without padding.
    """
    total = torch.zeros(model.anatomy.n_heads, dtype=torch.float64)

    def add(pattern: Tensor, _site: Site, _layer: int) -> None:
        differs = (batch[:, :, None] != batch[:, None])[:, None]
        total.add_((pattern * differs)[:, :, 1:].double().sum((0, 2, 3)).cpu())

    for some in tokens.split(_TEXTS_PER_BATCH):
        batch = some.to(model.device)
        with model.each_alone(torch.full((len(batch),), batch.shape[1])):
            read_activations(model, batch, {Site.PATTERN: [LAYER]}, add)
    return float(total.max() / (len(tokens) * (tokens.shape[1] - 1)))


# --- texts ----------------------------------------------------------------------------------------------------------

_TEXTS_PER_BATCH = 512


class Seen(NamedTuple):
    """What is seen of every token of the triples, in float32.

    Attributes:
        neurons: what goes into the activation function.
        state: the normalised input of that MLP, before the norm's gain.
    """

    neurons: Float[np.ndarray, "token neuron"]
    state: Float[np.ndarray, "token d_model"]


def detector_layer(anatomy: Anatomy) -> int:
    """The first MLP that can see what the attention of layer 0 has written: in parallel blocks that of layer 1.

    Raises:
        MissingPartError: a parallel model of one layer.
    """
    layer = int(anatomy.parallel)
    if layer >= anatomy.n_layers:
        raise MissingPartError(
            f"{anatomy.architecture} with one parallel layer", "an MLP behind the attention of layer 0", "use another"
        )
    return layer


@torch.no_grad()
def read_triples(
    model: Model, tokens: Int[Tensor, "triple 3"], intervention: Intervention | None = None, layer: int | None = None
) -> Seen:
    """Run the triples, each a text of its own without BOS, and read an MLP.

    Args:
        model: the model.
        tokens: the triples.
        intervention: what the model is under, at every position.
        layer: of the MLP; by default the first that sees the attention of layer 0.
    """
    read = detector_layer(model.anatomy) if layer is None else layer
    sites = (Site.GATE_PRE, Site.MLP_INPUT_NORMALIZED)
    view, wanted = choose_view(model, sites), {site: [read] for site in sites}
    seen: dict[Site, list[Tensor]] = {site: [] for site in sites}

    def keep(activation: Tensor, site: Site, _layer: int) -> None:
        seen[site].append(activation.float().cpu().flatten(0, 1))

    for some in tokens.split(_TEXTS_PER_BATCH):
        batch = some.to(model.device)
        with applied(model, intervention, batch, view=view):
            read_activations(model, batch, wanted, keep, view=view)
    return Seen(*(torch.cat(parts).numpy() for parts in seen.values()))


WIDTH = 3
_FEWEST_TRIPLES = 20  # triples; below, halves of halves are left to a handful of tokens
_LIMIT = 1000  # of Yona et al. 2025


@dataclass(frozen=True)
class Triples:
    """Triples and who is allowed to learn from what.

    Observations are counted triple by triple: number ``3 i + p`` is the token at place ``p`` of triple ``i``.

    Attributes:
        tokens: the triples.
        selection: observations that neurons are chosen with: first half of the text, one half of the vocabulary.
        test: observations that they are judged by: second half of the text, the other half of the vocabulary.
    """

    tokens: Int[Tensor, "triple 3"]
    selection: Bool[np.ndarray, " token"]
    test: Bool[np.ndarray, " token"]

    @property
    def ids(self) -> Int[np.ndarray, " token"]:
        """The token of each observation."""
        return self.tokens.flatten().numpy()

    @property
    def places(self) -> Int[np.ndarray, " token"]:
        """Its place: 0, 1 or 2."""
        return np.tile(np.arange(WIDTH), len(self.tokens))


def corpus_of(model: Model, texts: CorpusLike | None) -> Corpus:
    """The texts that an analysis is given: a corpus of the model, texts, or by default held-out English.

    Raises:
        InputError: a corpus of another model, or no tokenizer and no corpus.
    """
    if texts is not None:
        corpus = Corpus.of(texts, model)
        corpus.check_model(model)
        return corpus
    if model.tokenizer is None:
        raise MissingPartError(
            f"{model.name}, which has no tokenizer", "a corpus of ids", "pass texts=Corpus.from_tokens(...)"
        )
    ids = model.encode(tiny.held_out_text(), prepend_bos=False)
    length = min(model.anatomy.n_ctx, len(ids))
    starts = range(0, len(ids) - length + 1, length)
    return Corpus.from_tokens(
        [ids[start : start + length] for start in starts], model=model, attention_mask=True, bos_policy="absent"
    )


def triples_of(model: Model, corpus: Corpus, *, limit: int = _LIMIT, seed: int = 0) -> Triples:
    """All triples of consecutive ordinary tokens, in the order of the corpus.

    Args:
        model: whose special ids take no part.
        corpus: texts, none of which need begin with BOS.
        limit: at most so many triples.
        seed: of the halves of the vocabulary.

    Raises:
        InputError: too few triples, or halves without tokens at all three places.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> triples = triples_of(model, corpus_of(model, None), limit=50)
        >>> triples.tokens.shape, bool((triples.tokens[1:, 0] == triples.tokens[:-1, 1]).all())
        (torch.Size([50, 3]), True)
    """
    rows: list[list[int]] = []
    special = model.special_ids
    for text in range(len(corpus)):
        ids = corpus.row(text)
        windows = (ids[start : start + WIDTH] for start in range(len(ids) - WIDTH + 1))
        rows += [window for window in windows if not special.intersection(window)]
        if len(rows) >= limit:
            break
    tokens = torch.tensor(rows[:limit], dtype=torch.long).reshape(-1, WIDTH)
    vocabulary = tokens.unique().numpy()
    chosen = np.random.default_rng(seed).permutation(vocabulary)[: len(vocabulary) // 2]
    known = np.isin(tokens.flatten().numpy(), chosen)
    early = np.repeat(np.arange(len(tokens)) < len(tokens) // 2, WIDTH)
    triples = Triples(tokens, known & early, ~known & ~early)
    for half in (triples.selection, triples.test):
        if len(tokens) < _FEWEST_TRIPLES or len(set(triples.places[half])) < WIDTH:
            raise InputError(
                f"{len(tokens)} triples of consecutive tokens without special ones",
                f"at least {_FEWEST_TRIPLES}, of enough different tokens to keep some aside",
                "use longer texts, or raise limit",
            )
    return triples


_LENGTH, _WINDOWS = 64, 64


def windows(model: Model, corpus: Corpus, limit: int = _WINDOWS) -> Int[Tensor, "text pos"]:
    """Windows of at most 64 ordinary tokens, spread over the corpus; special tokens are left out.

    Args:
        model: whose special tokens.
        corpus: the texts.
        limit: at most so many windows.

    Raises:
        InputError: texts of a token or two.
    """
    special = model.special_ids
    bodies = [[token for token in corpus.row(text) if token not in special] for text in range(len(corpus))]
    length = min(_LENGTH, max(map(len, bodies)))
    if length < 2:
        raise InputError("texts of a single token", "texts with other positions to compare with", "use longer texts")
    rows = [body[start : start + length] for body in bodies for start in range(0, len(body) - length + 1, length)]
    picks = np.unique(np.linspace(0, len(rows) - 1, min(limit, len(rows))).astype(int))
    return torch.tensor([rows[pick] for pick in picks])


_REST = translucent(INK, 0.45)


def other_token_mass_figure(result: OtherTokenResult) -> go.Figure:
    """Share of attention on other tokens by position, a line per head of layer 0.

    Args:
        result: what was measured.

    Source: Yona et al. 2025 (arXiv 2503.08908) for the idea; the mass is mechrep's own.

    Example:
        >>> import mechrep
        >>> from mechrep.measures.first_token import FirstTokenDetection
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> corpus = mechrep.Corpus.from_texts(["The sea was calm.", "It rained all day."], model=model)
        >>> result = mechrep.CorpusCache(model, corpus).run(FirstTokenDetection())
        >>> len(other_token_mass_figure(result).data) == model.anatomy.n_heads
        True
    """

    known = int((~result.by_position.isnan().any(0)).sum())
    figure = new_figure()
    for place, head in enumerate(result.ranking()):
        coloured = place < len(SEQUENCE)
        look = (
            {"color": SEQUENCE[place], "dash": DASHES[place], "width": 2} if coloured else {"color": _REST, "width": 1}
        )
        figure.add_scatter(
            x=list(range(known)),
            y=result.by_position[head, :known].numpy(),
            name=f"head {head}" if coloured else f"{len(result.mass) - len(SEQUENCE)} other heads",
            legendgroup="" if coloured else "rest",
            showlegend=place <= len(SEQUENCE),
            mode="lines",
            line=look,
            hovertemplate=f"head {head}, position %{{x}}<br>%{{y:.3f}} on other tokens<extra></extra>",
        )
    about = f"{counted(result.n_texts, 'text')}; a uniform head has {result.uniform_mass:.2f} on average"
    styled(
        figure,
        title="Attention of layer 0 to other tokens",
        subtitle=f"{result.provenance.model['name']}, {about}",
        x="position",
        y="share of attention on other tokens",
    )
    return figure.update_yaxes(range=[0, 1.02])
