"""What a report on sinks shows beside the finding itself: norms of text and repeats, heads, and one head's patterns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechrep.analyzers.sinks.attention_sinks import AttentionSinkResult, AttentionSinks
from mechrep.analyzers.sinks.neurons import SinkNeuronResult, sink_neurons
from mechrep.analyzers.sinks.norms import SinkNormResult, SinkNorms
from mechrep.analyzers.sinks.repeat_norms import RepeatNormResult, RepeatNorms
from mechrep.analyzers.sinks.repeat_norms_result import Moved
from mechrep.analyzers.sinks.result import SinkResult
from mechrep.cache.corpus_cache import CorpusCache
from mechrep.models import tiny
from mechrep.models.anatomy import Site
from mechrep.models.model import Model
from mechrep.models.reading import read_activations
from mechrep.text.corpus import Corpus
from mechrep.text.random_repeats import ordinary_ids
from mechrep.text.repeated import repeated_tokens
from mechrep.text.windows import windows_of_text

_LENGTH, _WINDOWS = 64, 100  # of find_sink's own texts
_REPEATS = 512
_SHOWN = 24  # positions of a drawn pattern


@dataclass(frozen=True, eq=False)
class SinkTables:
    """Measurements on ordinary text and on repeats of some tokens.

    Attributes:
        norms: of ordinary text.
        heads: attention to the first position in ordinary text.
        repeats: norms of repeated tokens.
        neurons: scores of the sink layer's neurons; ``None`` where there is no sink layer.
        text_ids: the beginning of one text.
        repeat_ids: the beginning of one repeat.
        text_pattern: attention of the head that rests most on the first position, on ``text_ids``.
        repeat_pattern: the same on ``repeat_ids``.
    """

    norms: SinkNormResult
    heads: AttentionSinkResult
    repeats: RepeatNormResult
    neurons: SinkNeuronResult | None
    text_ids: list[int]
    repeat_ids: list[int]
    text_pattern: Float[Tensor, "_ _"]
    repeat_pattern: Float[Tensor, "_ _"]

    def layer(self, result: SinkResult) -> int:
        """The sink layer, or where there is none that of the largest excess jump."""
        return self.norms.ranking()[0] if result.layer is None else result.layer

    def moved(self, result: SinkResult) -> Moved:
        """How far the repeats have moved to BOS, after :meth:`layer`."""
        return self.repeats.moved(self.layer(result), self.norms.other_norm)

    @property
    def largest_repeat(self) -> float:
        """Norm of a token's last copy over the typical norm, the largest over tokens and layers."""
        return float((self.repeats.norm[:, 1:, -1].double() / self.norms.other_norm[1:].double()).max())

    def by_layer(self) -> pd.DataFrame:
        """One row per layer: norm at the first position, elsewhere, and at the last copy of repeated tokens."""
        last = self.repeats.norm[:, 1:, -1].double()
        return pd.DataFrame(
            {
                "layer": range(len(self.norms.jump)),
                "first": self.norms.first_norm[1:].numpy(),
                "typical": self.norms.other_norm[1:].numpy(),
                "ratio": self.norms.ratio[1:].numpy(),
                "repeat median": last.quantile(0.5, dim=0).numpy(),
                "repeat largest": last.amax(0).numpy(),
            }
        )


def measure_tables(
    model: Model,
    result: SinkResult,
    *,
    tokens: int = 32,
    repeats: int | None = None,
    texts: Corpus | None = None,
    seed: int = 0,
) -> SinkTables:
    """Measure what goes with a finding.

    Args:
        model: the model.
        result: of :func:`~mechrep.analyzers.sinks.find_sink.find_sink`, on the same texts.
        tokens: how many ordinary tokens are repeated, drawn at random (all where there are fewer).
        repeats: copies of each; by default 512, or as many as the context holds.
        texts: ordinary texts; by default those of ``find_sink``.
        seed: of the tokens.

    Raises:
        InputError: more copies than the context holds, or no tokenizer.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> sink = mechrep.find_sink(model, texts=["The sea was calm.", "It rained all day."])
        >>> tables = measure_tables(model, sink, tokens=4, repeats=50)
        >>> tables.by_layer().shape[0] == model.anatomy.n_layers, len(tables.repeats.token_ids)
        (True, 4)
    """
    bos = model.default_prepend_bos and model.bos_id is not None
    copies = min(_REPEATS, model.anatomy.n_ctx - int(bos)) if repeats is None else repeats
    ordinary = ordinary_ids(model)
    chosen = np.random.default_rng(seed).choice(ordinary, min(tokens, len(ordinary)), replace=False)
    stimulus = repeated_tokens(model, sorted(chosen.tolist()), copies, bos)
    text = texts
    if text is None:
        text = windows_of_text(model, tiny.held_out_text(), length=min(_LENGTH, model.anatomy.n_ctx), limit=_WINDOWS)
    norms, heads = CorpusCache(model, text, progress=False).run(SinkNorms(), AttentionSinks())
    (moved,) = CorpusCache(model, stimulus, progress=False).run(RepeatNorms())
    assert isinstance(norms, SinkNormResult) and isinstance(heads, AttentionSinkResult)
    assert isinstance(moved, RepeatNormResult)
    largest = moved.token_ids.index(moved.top(1, norms.ranking()[0] if result.layer is None else result.layer)[0])
    text_ids, repeat_ids = text.row(0)[:_SHOWN], stimulus.row(largest)[:_SHOWN]
    return SinkTables(
        norms,
        heads,
        moved,
        None if result.layer is None else sink_neurons(model, _windows(text), result.layer),
        text_ids,
        repeat_ids,
        _pattern(model, text_ids, *result.best_head),
        _pattern(model, repeat_ids, *result.best_head),
    )


def _windows(text: Corpus) -> Corpus:
    """Some of the texts: a causal model's first position is the same in all that begin alike."""
    return text.select(range(min(len(text), 16)))


@torch.no_grad()
def _pattern(model: Model, ids: list[int], layer: int, head: int) -> Float[Tensor, "query_pos key_pos"]:
    kept: list[Tensor] = []
    tokens = torch.tensor([ids], device=model.device)
    read_activations(model, tokens, {Site.PATTERN: [layer]}, lambda pattern, *_: kept.append(pattern[0, head].cpu()))
    return kept[0].float()
