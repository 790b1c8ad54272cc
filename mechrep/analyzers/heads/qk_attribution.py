"""Why a head attends: its score, before the softmax, as a sum over what every earlier part of the model wrote.

The residual stream before the head is a sum of components ``x_a``: embedding, each earlier head, each earlier MLP,
biases. With the norm's scale ``s`` frozen, queries and keys are sums too, and rotary position embeddings ``R_i`` turn
each component on its own::

    q_a(i) = x_a(i) [c diag(g) W_Q] / s(i)          k_b(j) = x_b(j) [c diag(g) W_K] / s(j)
    score(i, j) = sum over a, b of  q_a(i) R_i . k_b(j) R_j / sqrt(d_head)

Everything is the model's own: the rotation is read while it runs, and the sum is checked against its score.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from mechrep.analyzers.heads.circuits import HeadCircuits
from mechrep.analyzers.heads.qk_attribution_result import QKAttributionResult as QKAttributionResult
from mechrep.analyzers.heads.qk_components import Edge, HeadOnText, component_names
from mechrep.analyzers.heads.targets import Copies, earlier_copies, one_later
from mechrep.errors import InputError, NothingFoundError
from mechrep.models.model import Model
from mechrep.provenance import provenance_of
from mechrep.text.corpus import Corpus


def target_edges(
    corpus: Corpus,
    target: Literal["induction", "self_finding"] = "induction",
    *,
    bos_id: int | None,
    copies: Copies = "newest",
    per_text: int | None = None,
) -> list[Edge]:
    """Where a head of a kind would look: ``(text, query, key)`` of every target in a corpus.

    Args:
        corpus: texts with repeats.
        target: ``"induction"``: the key follows an earlier copy of the query's token; ``"self_finding"``: it is one.
        bos_id: id that is a BOS, and no copy of anything, where it begins a text.
        copies: which earlier copies.
        per_text: only the first so many of each text.

    Raises:
        NothingFoundError: no token is repeated.

    Example:
        >>> import mechrep
        >>> corpus = mechrep.Corpus.from_tokens([[0, 7, 8, 7]], model=mechrep.load_model("mechrep-tiny"))
        >>> target_edges(corpus, bos_id=0), target_edges(corpus, "self_finding", bos_id=0)
        ([(0, 3, 2)], [(0, 3, 1)])
    """
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
def qk_attribution(model: Model, corpus: Corpus, head: tuple[int, int], edges: Sequence[Edge]) -> QKAttributionResult:
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
    if not 0 <= head[1] < model.anatomy.n_heads:
        raise InputError(
            f"head {head[1]} of layer {head[0]}", f"a head from 0 to {model.anatomy.n_heads - 1}", "check the model"
        )
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
