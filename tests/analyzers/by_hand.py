"""Activations made by hand, handed to an analyzer as a cache would: no model takes part."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mechrep.cache import Batch
from mechrep.measures.neurons import RepetitionNeuronResult, RepetitionNeurons
from mechrep.models.anatomy import Anatomy
from mechrep.provenance import Provenance
from tests.analyzers.looping_texts import as_corpus
from tests.analyzers.oracle import Loop

PROVENANCE = Provenance({"name": "hand"}, {"texts": 0}, {})


def anatomy(n_layers: int, d_mlp: int) -> Anatomy:
    """Sizes of a model that need not exist."""
    sizes = {"n_layers": n_layers, "n_heads": 2, "n_kv_heads": 2, "d_model": 8, "d_head": 4, "d_mlp": d_mlp}
    kinds = {"gated": False, "parallel": False, "activation": "gelu", "positions": "standard", "norm": "LN"}
    return Anatomy(**sizes, d_vocab=61, n_ctx=128, **kinds, architecture="hand")  # pyright: ignore[reportArgumentType]


def observed(
    tables: Sequence[np.ndarray], loops: Sequence[Loop], *, batch_size: int = 100, name: str = "loop", **options: object
) -> RepetitionNeurons:
    """An analyzer that has seen one table ``[pos layer neuron]`` per text, layer by layer and batch by batch."""
    analyzer = RepetitionNeurons(**options)  # pyright: ignore[reportArgumentType]
    corpus = as_corpus(loops, name=name)
    n_layers, d_mlp = tables[0].shape[1:]
    analyzer.prepare(anatomy(n_layers, d_mlp), corpus.frame)
    for first in range(0, len(loops), batch_size):
        texts = list(range(first, min(first + batch_size, len(loops))))
        lengths = corpus.lengths[texts]
        batch = Batch(corpus.tokens[texts][:, : int(lengths.max())], lengths, tuple(texts), corpus.frame.iloc[texts])
        for layer in range(n_layers):
            analyzer.observe(_padded([tables[text][:, layer] for text in texts]), analyzer.site, layer, batch)
        analyzer.finish_batch(batch)
    return analyzer


def result_of(tables: Sequence[np.ndarray], loops: Sequence[Loop], **options: object) -> RepetitionNeuronResult:
    """What an analyzer says that has seen the tables."""
    return observed(tables, loops, **options).result(PROVENANCE)  # pyright: ignore[reportArgumentType]


def _padded(rows: Sequence[np.ndarray]) -> Tensor:
    """Rows of unequal length side by side; what stands in the padding must never count, so it is huge."""
    padded = torch.full((len(rows), max(map(len, rows)), rows[0].shape[1]), 1e6)
    for number, row in enumerate(rows):
        padded[number, : len(row)] = torch.from_numpy(row)
    return padded
