"""Why a head attends: its score, before the softmax, as a sum over what every earlier part of the model wrote.

The residual stream before the head is a sum of components ``x_a``: embedding, each earlier head, each earlier MLP,
biases. With the norm's scale ``s`` frozen, queries and keys are sums too, and rotary position embeddings ``R_i`` turn
each component on its own::

    q_a(i) = x_a(i) [c diag(g) W_Q] / s(i)          k_b(j) = x_b(j) [c diag(g) W_K] / s(j)
    score(i, j) = sum over a, b of  q_a(i) R_i . k_b(j) R_j / sqrt(d_head)

Everything is the model's own: the rotation is read while it runs, and the sum is checked against its score.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechrep.errors import InputError, ModelError, NothingFoundError
from mechrep.guards import Count, check_count, guarded, one_of, within
from mechrep.measures.head_circuits import HeadCircuits
from mechrep.measures.head_targets import ALIASES, Copies, earlier_copies, one_later
from mechrep.models.anatomy import Site
from mechrep.models.model import Model
from mechrep.models.parts import wide
from mechrep.models.reading import read_activations
from mechrep.models.stream import exact
from mechrep.provenance import provenance_of
from mechrep.results import Result
from mechrep.text.corpus import Corpus, CorpusLike


@dataclass(frozen=True, eq=False)
class QKAttributionResult(Result):
    """Contributions to one head's scores before the softmax.

    A ``_contrast`` is the contribution less its mean over the query's other keys.

    Attributes:
        layer: of the head.
        head: its number.
        components: names: ``embed`` (``pos_embed`` beside it where positions are learned), ``L0H0`` and so on for
            earlier heads, ``MLP0`` and so on, ``bias`` (all biases on the way), ``remainder`` (rounding error, or what
            is unknown).
        edges: ``(text, query, key)``.
        scores: the model's own scores.
        pairs: mean over the edges, first axis the query's component, second the key's; its sum is the mean score.
        pairs_contrast: the same as a contrast; NaN if a query sees one key only.
        by_query: contribution of each component of the query, with all components of the key; rows sum to ``scores``.
        by_query_contrast: the same as a contrast; NaN for a query that sees one key only.
        by_key: contribution of each component of the key, with all components of the query; rows sum to ``scores``.
        by_key_contrast: the same as a contrast; NaN for a query that sees one key only.
    """

    layer: int
    head: int
    components: Sequence[str]
    edges: Int[Tensor, "edge 3"]
    scores: Float[Tensor, " edge"]
    pairs: Float[Tensor, "component component"]
    pairs_contrast: Float[Tensor, "component component"]
    by_query: Float[Tensor, "edge component"]
    by_query_contrast: Float[Tensor, "edge component"]
    by_key: Float[Tensor, "edge component"]
    by_key_contrast: Float[Tensor, "edge component"]

    @guarded
    def marginals(self, side: Literal["query", "key"]) -> pd.DataFrame:
        """One row per component of one side: component, contribution, contrast, and share (of the summed contrast).

        Means over the edges; the largest contrast comes first.

        Raises:
            InputError: neither query nor key.
        """
        tables = {"query": (self.by_query, self.by_query_contrast), "key": (self.by_key, self.by_key_contrast)}
        one_of("side", side, tables)
        contribution, contrast = (table.double().mean(0) for table in tables[side])
        columns = {"contribution": contribution, "contrast": contrast, "share": contrast / contrast.sum()}
        frame = pd.DataFrame({"component": self.components, **{name: part.numpy() for name, part in columns.items()}})
        return frame.sort_values("contrast", ascending=False, kind="stable", ignore_index=True)

    @guarded
    def top(self, k: int) -> list[tuple[str, str]]:
        """The ``k`` pairs of components, the query's first, that tell the key most from the query's other keys.

        Raises:
            InputError: ``k`` larger than the number of pairs.
        """
        frame = self.to_frame().sort_values("contrast", ascending=False, kind="stable", ignore_index=True)
        check_count(k, len(frame), "pairs of components")
        return [(str(a), str(b)) for a, b in frame.loc[:, ["component_query", "component_key"]].to_numpy()[:k]]

    def to_frame(self) -> pd.DataFrame:
        """One row per pair, largest contribution first: component_query, component_key, contribution, contrast."""
        order = torch.argsort(self.pairs.abs().flatten(), descending=True, stable=True)
        names, width = list(self.components), len(self.components)
        return pd.DataFrame(
            {
                "component_query": [names[index // width] for index in order.tolist()],
                "component_key": [names[index % width] for index in order.tolist()],
                "contribution": self.pairs.flatten()[order].numpy(),
                "contrast": self.pairs_contrast.flatten()[order].numpy(),
            }
        )


Edge = tuple[int, int, int]  # text, query, key
Side = Literal["Q", "K"]

# Of the product of the lengths of query and key.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}
_HALF_PRECISION_TOLERANCE = 0.05


def component_names(model: Model, layer: int) -> list[str]:
    """The components that the residual stream before a layer is a sum of, in the order of a result."""
    start = ["embed", "pos_embed"] if model.anatomy.positions == "standard" else ["embed"]
    heads = range(model.anatomy.n_heads)
    blocks = [[*(f"L{earlier}H{head}" for head in heads), f"MLP{earlier}"] for earlier in range(layer)]
    return [*start, *(name for block in blocks for name in block), "bias", "remainder"]


@dataclass(frozen=True)
class HeadOnText:
    """One head on one text.

    Attributes:
        queries: by component, see :func:`component_names`; turned by the rotation.
        keys: the same.
        scores: the model's own, before the softmax.
    """

    queries: Float[Tensor, "pos component d_head"]
    keys: Float[Tensor, "pos component d_head"]
    scores: Float[Tensor, "pos pos"]

    @classmethod
    def read(cls, circuits: HeadCircuits, layer: int, head: int, ids: list[int]) -> HeadOnText:
        """Run the text up to the head's layer."""
        model, seen = circuits.model, {}
        wanted: dict[Site, Any] = dict.fromkeys((Site.Z, Site.MLP_OUT), range(layer))
        wanted |= {site: (layer,) for site in (Site.Q, Site.K, Site.SCORES)}
        wanted |= {Site.EMBED: (0,), Site.RESID_PRE: (0, layer)}

        def keep(activation: Tensor, site: Site, layer: int) -> None:
            seen[site, layer] = activation[0].clone()

        tokens = torch.tensor([ids], device=model.device)
        with _rotation(model, layer) as turn:
            read_activations(model, tokens, wanted, keep, view="transformer_lens")
        q, k = (_by_component(circuits, layer, head, side, seen) for side in ("Q", "K"))
        return cls(turn(q), turn(k), exact(seen[Site.SCORES, layer][head]))

    def contributions(self, edge: Edge, model: Model) -> tuple[Tensor, Tensor]:
        """``[component component]``, query first: of the edge, and less the mean over the query's other keys."""
        text, query, key = edge
        hidden = torch.finfo(model.dtype).min / 2
        visible = self.scores[query, : query + 1] > hidden
        if not visible[key]:
            raise InputError(
                f"edge ({text}, {query}, {key})", "a key that the model lets the query see", "drop the edge"
            )
        scaled = self.queries[query] / self.queries.shape[-1] ** 0.5
        table, score = scaled @ self.keys[key].T, self.scores[query, key]
        size = max(1.0, float(scaled.sum(0).norm() * self.keys[key].sum(0).norm()))
        if abs(float(table.sum() - score)) > _TOLERANCE.get(model.dtype, _HALF_PRECISION_TOLERANCE) * size:
            raise ModelError(
                f"{model.name!r} ({model.anatomy.architecture}), score {float(score):.4g} at edge {edge}",
                f"the product of query and key, which is {float(table.sum()):.4g}",
                "this model caps, norms, scales or turns its scores in a way that is not known here",
            )
        others = visible.clone()
        others[key] = False
        mean = self.keys[: query + 1][others].mean(0)  # NaN for a query that sees one key only
        return table.cpu(), (scaled @ (self.keys[key] - mean).T).cpu()


def _by_component(
    circuits: HeadCircuits, layer: int, head: int, side: Side, seen: dict[tuple[Site, int], Tensor]
) -> Float[Tensor, "pos component d_head"]:
    """A head's queries or keys before the rotation, as sums; components as in :func:`component_names`."""
    anatomy, stream = circuits.model.anatomy, seen[Site.RESID_PRE, layer]
    weight = exact(circuits.reading(layer, side)[head])
    start = exact(seen[Site.RESID_PRE, 0]).to(weight)  # the layers of a spread model lie on several devices
    if anatomy.positions == "standard":
        token = exact(seen[Site.EMBED, 0]).to(weight)
        parts = [(token @ weight)[:, None], ((start - token) @ weight)[:, None]]
    else:
        parts = [(start @ weight)[:, None]]
    bias = torch.zeros_like(parts[0][:, 0])
    for earlier in range(layer):
        z = seen[Site.Z, earlier]
        factor, constant = circuits.writing_scale(earlier, z)
        through = exact(circuits.writing(earlier)).to(weight.device) @ weight  # [head d_head d_head]
        parts.append(torch.einsum("phd,hde->phe", exact(z).to(weight), through) * factor.to(weight)[..., None])
        parts.append((exact(seen[Site.MLP_OUT, earlier]).to(weight) @ weight)[:, None])
        bias += constant.to(weight) @ weight
    scale = circuits.norm(layer).scale(stream)[..., None]
    read = torch.cat([*parts, bias[:, None]], dim=1) / scale
    read[:, -1] += exact(circuits.reading_bias(layer, side)[head])
    whole = exact(seen[Site.Q if side == "Q" else Site.K, layer])
    own = whole[:, head * whole.shape[1] // circuits.n_heads]
    return torch.cat([read, (own - read.sum(1))[:, None]], dim=1)


@contextmanager
def _rotation(model: Model, layer: int) -> Iterator[Any]:
    """A function that turns ``[pos component d_head]`` as one layer does, once the model has run inside the context."""
    attention: Any = model.blocks[layer].attn
    read: dict[str, Tensor] = {}

    def turn(vectors: Float[Tensor, "pos component d_head"]) -> Float[Tensor, "pos component d_head"]:
        if model.anatomy.positions == "rotary" and hasattr(attention, "apply_rotary"):  # HookedTransformer
            return exact(attention.apply_rotary(wide(vectors)[None])[0])
        if not read:  # positions are learned, or there are none
            return vectors
        cos, sin = (exact(read[name])[0, :, None] for name in ("hook_cos", "hook_sin"))
        width = cos.shape[-1]
        turned, still = vectors[..., :width], vectors[..., width:]
        swapped = torch.cat([-turned[..., width // 2 :], turned[..., : width // 2]], dim=-1)
        return torch.cat([turned * cos + swapped * sin, still], dim=-1)

    with ExitStack() as stack:
        for name in ("hook_cos", "hook_sin"):
            point = getattr(attention, name, None)
            if point is not None:

                def keep(_module: Any, _args: Any, value: Tensor, name: str = name) -> None:
                    read[name] = value.detach()

                stack.callback(point.register_forward_hook(keep).remove)
        yield turn


@guarded
def target_edges(
    corpus: Corpus,
    target: str = "induction",
    *,
    bos_id: int | None,
    copies: Copies = "newest",
    per_text: Count | None = None,
) -> list[Edge]:
    """Where a head of a kind would look: ``(text, query, key)`` of every target in a corpus.

    Args:
        corpus: texts with repeats.
        target: ``"induction"``: the key follows an earlier copy of the query's token; ``"duplicate_token"``: it is one.
        bos_id: id that is a BOS, and no copy of anything, where it begins a text.
        copies: which earlier copies.
        per_text: only the first so many of each text.

    Raises:
        InputError: an unknown target.
        NothingFoundError: no token is repeated.

    Example:
        >>> import mechrep
        >>> corpus = mechrep.Corpus.from_tokens([[0, 7, 8, 7]], model=mechrep.load_model("mechrep-tiny"))
        >>> target_edges(corpus, bos_id=0), target_edges(corpus, "duplicate_token", bos_id=0)
        ([(0, 3, 2)], [(0, 3, 1)])
    """
    one_of("target", ALIASES.get(target, target), ("induction", "duplicate_token"))
    edges: list[Edge] = []
    for text in range(len(corpus)):
        tokens = torch.tensor([corpus.row(text)])
        mask = earlier_copies(tokens, tokens[:, 0] == (-1 if bos_id is None else bos_id), copies)
        found = (one_later(mask) if target == "induction" else mask)[0].nonzero()[:per_text]
        edges += [(text, query, key) for query, key in found.tolist()]
    if not edges:
        raise NothingFoundError(f"{len(corpus)} texts without a repeated token", "texts with repeats", "choose others")
    return edges


@torch.no_grad()
@guarded
def qk_attribution(
    model: Model, corpus: CorpusLike, head: tuple[int, int], edges: Sequence[Edge]
) -> QKAttributionResult:
    """Attribute one head's attention scores to the components that its queries and keys are made of.

    Args:
        model: the model; raw, or in compatibility mode.
        corpus: the texts.
        head: ``(layer, head)``.
        edges: ``(text, query, key)``, the positions in a text; for instance from :func:`target_edges`.

    Returns:
        Contributions of all pairs of components (mean over the edges) and of every component on the query and on the
        key side (edge by edge).  Each comes with its contrast: less the mean over the other keys that the query can
        see, which is what the softmax decides on.

    Raises:
        InputError: a head that does not exist; no edges; an edge outside its text, with the query before the key, or
            that the model masks (sliding windows); a corpus of another model.
        ModelError: a model without separate heads, or whose scores are no plain product of query and key (soft caps,
            norms of queries and keys, ALiBi, other scales or rotations).

    Source: Elhage et al. 2021 (*A Mathematical Framework for Transformer Circuits*), section on QK circuits; the norm's
    scale frozen as in direct logit attribution.

    Limits: a direct attribution: what an earlier head wrote has its own causes, and the frozen scale hides that a
    component also changes the scale.  Scores are of one head; what it then does is another question.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> corpus = mechrep.Corpus.from_tokens([[0, *range(9, 19), *range(9, 19)]], model=model)
        >>> result = qk_attribution(model, corpus, (1, 0), target_edges(corpus, bos_id=model.bos_id))
        >>> torch.allclose(result.by_key.sum(1), result.scores, atol=1e-3)
        True
        >>> list(result.to_frame().columns[:3])
        ['component_query', 'component_key', 'contribution']
    """
    corpus = Corpus.of(corpus, model)
    corpus.check_model(model)
    _check(model, corpus, head, edges)
    circuits, (layer, number) = HeadCircuits(model), head
    names = component_names(model, layer)
    size = len(names)
    pairs, contrast = (torch.zeros(size, size, dtype=torch.float64) for _ in range(2))
    rows: dict[Edge, dict[str, Tensor]] = {}
    for text in sorted({edge[0] for edge in edges}):
        seen = HeadOnText.read(circuits, layer, number, corpus.row(text))
        for edge in dict.fromkeys(edge for edge in edges if edge[0] == text):
            table, other = seen.contributions(edge, model)
            pairs += table
            contrast += other
            kinds = {"": table, "_contrast": other}
            rows[edge] = {f"by_query{kind}": t.sum(1) for kind, t in kinds.items()}
            rows[edge] |= {f"by_key{kind}": t.sum(0) for kind, t in kinds.items()}
            rows[edge]["scores"] = seen.scores[edge[1], edge[2]]
    kept = list(dict.fromkeys(edges))
    stacked = {name: torch.stack([rows[edge][name] for edge in kept]).float() for name in rows[kept[0]]}
    return QKAttributionResult(
        provenance_of(model, corpus, {"head": list(head), "edges": len(kept)}),
        layer=layer,
        head=number,
        components=names,
        edges=torch.tensor(kept),
        pairs=(pairs / len(kept)).float(),
        pairs_contrast=(contrast / len(kept)).float(),
        **stacked,
    )


def _check(model: Model, corpus: Corpus, head: tuple[int, int], edges: Sequence[Edge]) -> None:
    model.anatomy.check_layer(head[0])
    within("head", head[1], 0, model.anatomy.n_heads - 1, "a head")
    if not edges:
        raise InputError("no edges", "at least one (text, query, key)", "take them from target_edges")
    for text, query, key in edges:
        length = int(corpus.lengths[text]) if 0 <= text < len(corpus) else 0
        if not (0 <= query < length and 0 <= key < length):
            where = f"text {text} of {length} tokens" if length else f"a corpus of {len(corpus)} texts"
            raise InputError(
                f"edge ({text}, {query}, {key})", f"positions in {where}", "count texts and positions from 0"
            )
        if query < key:
            raise InputError(
                f"edge ({text}, {query}, {key}), the query before the key",
                "(text, query, key) with key <= query: a query sees nothing behind itself",
                "swap the positions",
            )
