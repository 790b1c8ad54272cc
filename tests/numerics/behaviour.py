"""What a reader takes from a run in each type: losses, what is written, loops and their onsets, the sink's layer."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from mechrep.ablation.score import token_losses
from mechrep.cache.corpus_cache import CorpusCache
from mechrep.generation import sample_prompts
from mechrep.generation.decode import generate
from mechrep.measures.head_scores import score_heads
from mechrep.measures.sink_norms import SinkNorms
from mechrep.models import tiny
from mechrep.models.load import load_model
from mechrep.models.model import Model
from mechrep.text.corpus import Corpus
from mechrep.text.windows import windows_of_text
from tests.numerics.measure import LOW, model_of

NEW_TOKENS = 60


@dataclass(frozen=True)
class Behaviour:
    """Answers of one model; corpora are the same for all types.

    Attributes:
        loss: nats per token on held-out text, by window.
        written: greedy continuations.
        sampled: continuations at temperature 1, all from one seed.
        onsets: of the loops in ``written``, -1 without.
        sink: the layer behind which the first position is large, if any.
        ratio: how many times as large.
        heads: the five best induction heads.
    """

    loss: torch.Tensor
    written: list[list[int]]
    sampled: list[list[int]]
    onsets: list[int]
    sink: int | None
    ratio: float
    heads: list[tuple[int, int]]


def behaviour(
    model: Model, prompts: Corpus, windows: Corpus, new_tokens: int = NEW_TOKENS, *, drawn: bool = True
) -> Behaviour:
    """Ask a model.

    Args:
        model: the model.
        prompts: that are continued.
        windows: of held-out text.
        new_tokens: that are written.
        drawn: whether texts are drawn too.
    """
    greedy = generate(model, prompts, max_new_tokens=new_tokens, progress=False)
    sampled = generate(model, prompts, max_new_tokens=new_tokens, temperature=1.0, progress=False) if drawn else greedy
    onsets = greedy.with_cycles(eos_id=model.eos_ids).frame["onset"].astype("Float64").fillna(-1)
    norms = CorpusCache(model, windows, progress=False).run(SinkNorms())
    return Behaviour(
        token_losses(model, windows, [None], progress=False)[0],
        [greedy.row(i) for i in range(len(greedy))],
        [sampled.row(i) for i in range(len(sampled))],
        [int(onset) for onset in onsets],
        norms.layer,
        norms.largest_ratio,
        score_heads(model, n=25, sequences=8).ranking("induction")[:5],
    )


@functools.cache
def tiny_behaviour(*dtypes: torch.dtype, texts: int = 16) -> Behaviour:
    """Of mechrep-tiny, whose weights went through these types."""
    own = load_model("mechrep-tiny", check=False)
    windows = windows_of_text(own, tiny.held_out_text(), length=64, limit=texts)
    return behaviour(model_of("mechrep-tiny", *dtypes), sample_prompts(own, texts), windows)


def compared(found: Behaviour, right: Behaviour) -> dict[str, float]:
    """Differences, by name; shares are of texts."""
    pairs = list(zip(found.written, right.written, strict=True))
    parts = [
        next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None) for one, other in pairs
    ]
    loops = [(one >= 0) == (other >= 0) for one, other in zip(found.onsets, right.onsets, strict=True)]
    same = [one == other for one, other in pairs]
    onsets = [one == other for one, other in zip(found.onsets, right.onsets, strict=True)]
    return {
        "loss, nats per token": abs(float(found.loss.mean() - right.loss.mean())),
        "loss, worst window": float((found.loss - right.loss).abs().max()),
        "greedy texts that are the same": sum(same) / len(same),
        "sampled texts that are the same": sum(a == b for a, b in zip(found.sampled, right.sampled, strict=True))
        / len(same),
        "first token that differs": min((part for part in parts if part is not None), default=float("nan")),
        "texts with the same answer to: does it loop": sum(loops) / len(loops),
        "onsets that are the same, of texts that are": sum(o for o, s in zip(onsets, same, strict=True) if s)
        / max(1, sum(same)),
        "sink layer is the same": float(found.sink == right.sink),
        "sink ratio, share": abs(found.ratio / right.ratio - 1),
        "five best induction heads that stay": len(set(found.heads) & set(right.heads)) / 5,
    }


def of_dtype(dtype: str, texts: int = 16) -> dict[str, float]:
    """One type against float64 of the same weights."""
    low = LOW[dtype]
    return compared(tiny_behaviour(low, texts=texts), tiny_behaviour(low, torch.float64, texts=texts))
