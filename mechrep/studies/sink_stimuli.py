"""Two smaller questions of the study of sinks: what the published rule names, and one head on three kinds of text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import Tensor

from mechrep.analyzers.sinks.cause import begins_with_bos
from mechrep.analyzers.sinks.layer import bos_mlp_norms, outlier_layer
from mechrep.analyzers.sinks.result import SinkResult
from mechrep.errors import InputError, NothingFoundError
from mechrep.models.model import Model
from mechrep.stats import paired_bootstrap_interval
from mechrep.studies.sink_ablation import attention_to_first
from mechrep.text.corpus import Corpus
from mechrep.text.random_repeats import ordinary_ids
from mechrep.text.repeated import repeated_tokens

_PUBLISHED_LAYERS = 15  # that the released code looks at


@dataclass(frozen=True, eq=False)
class PublishedLayer:
    """The published rule for the sink layer: the first MLP that writes an outlier at BOS.

    Attributes:
        layer: what the rule names; ``None`` where it names none or cannot.
        reason: why there is none, or empty.
        mlp_norms: norm of what each of the first layers' MLPs writes at BOS, the whole profile; ``None`` without BOS.
    """

    layer: int | None
    reason: str
    mlp_norms: Float[Tensor, " layer"] | None


@dataclass(frozen=True, eq=False)
class HeadOnStimuli:
    """Attention to the first position by the head that rests on it most, in equally long texts of three kinds.

    Attributes:
        head: the ``(layer, head)``; chosen on ordinary text.
        length: tokens per text; the attention falls with it.
        text: of each ordinary text.
        random: of each text of different random tokens.
        repeats: of each text of one token, repeated.
    """

    head: tuple[int, int]
    length: int
    text: Float[Tensor, " text"]
    random: Float[Tensor, " draw"]
    repeats: Float[Tensor, " token"]

    def to_frame(self) -> pd.DataFrame:
        """One row per kind: mean attention with a 95 % bootstrap interval over texts."""
        rows = []
        for kind in ("text", "random", "repeats"):
            values = getattr(self, kind).tolist()
            low, high = paired_bootstrap_interval(values)
            rows.append({"kind": kind, "texts": len(values), "mean": float(np.mean(values)), "low": low, "high": high})
        return pd.DataFrame(rows)


def published_layer(model: Model) -> PublishedLayer:
    """The published rule, its profile, and why it names no layer where it does not.

    Source: Yona et al. 2025 (arXiv 2503.08908), ``find_sink_layer`` of the released code.
    """
    try:
        norms = bos_mlp_norms(model, min(_PUBLISHED_LAYERS, model.anatomy.n_layers))
    except InputError as error:
        return PublishedLayer(None, f"given {error.given}, it needs {error.expected}", None)
    try:
        return PublishedLayer(outlier_layer(norms), "", norms.float())
    except InputError as error:
        return PublishedLayer(None, f"given {error.given}, it needs {error.expected}", norms.float())
    except NothingFoundError as error:
        return PublishedLayer(None, f"of {error.given}, none is {error.expected}", norms.float())


def head_on_stimuli(model: Model, sink: SinkResult, texts: Corpus, tokens: Sequence[int], seed: int) -> HeadOnStimuli:
    """The head that rests most on the first position: on text, on random texts and on repeats, all equally long.

    Args:
        model: the model.
        sink: says which head.
        texts: ordinary texts; the shortest gives the length of the others.
        tokens: repeated ones; there are as many random texts.
        seed: of the random texts.
    """
    bos, length = begins_with_bos(model, texts), int(texts.lengths.min())
    generator, ordinary = np.random.default_rng(seed), ordinary_ids(model)
    start = [model.bos_id] if bos and model.bos_id is not None else []
    width = length - len(start)
    rows = [[*start, *generator.choice(ordinary, width, replace=width > len(ordinary)).tolist()] for _ in tokens]
    random = Corpus.from_tokens(rows, model=model, source="random", bos_policy="prepended" if bos else "absent")
    repeats = repeated_tokens(model, list(tokens), width, bos)
    values = [attention_to_first(model, corpus, sink.best_head, "auto").float() for corpus in (texts, random, repeats)]
    return HeadOnStimuli(sink.best_head, length, *values)
