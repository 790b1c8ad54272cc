"""Which repeated tokens turn into the state of the first position: by stage of the sink, kind of token, and BOS.

One number would be an accident of the stimulus: in one model no frequent token moves after a later stage, most rare
ones do, and after an earlier stage all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechrep.cache.corpus_cache import CorpusCache
from mechrep.measures.sink_norms import CLEARLY_ABOVE, MOVED, RepeatNormResult, RepeatNorms, SinkNormResult
from mechrep.measures.sink_stages import NormStage
from mechrep.models.model import Model
from mechrep.stats import proportion_interval
from mechrep.text.stimuli import repeated_tokens

ALL_KINDS = "all"
PER_KIND = 4  # tokens drawn of each kind, unless the effort says more
_BARE = 32  # repetitions without BOS: there is nothing before them that could hold them back


@dataclass(frozen=True, eq=False)
class RepeatedTokens:
    """Norms of tokens that were repeated, after BOS and without it.

    Attributes:
        kinds: kind of each token, by id.
        after_bos: repetitions after BOS; ``None`` for a model without one.
        without_bos: repetitions at the beginning.
    """

    kinds: Mapping[int, str]
    after_bos: RepeatNormResult | None
    without_bos: RepeatNormResult

    @property
    def main(self) -> RepeatNormResult:
        """After BOS where there is one."""
        return self.without_bos if self.after_bos is None else self.after_bos


def read_repeats(model: Model, tokens: Sequence[tuple[int, str]], repeats: int) -> RepeatedTokens:
    """Read each token repeated, after BOS and without.

    Args:
        model: the model.
        tokens: ids with the kind of each, see :func:`mechrep.text.stimuli.draw_tokens`.
        repeats: how often, after BOS; at the beginning of a text a few are enough.
    """
    ids, room = [token for token, _ in tokens], model.anatomy.n_ctx

    def read(n: int, bos: bool) -> RepeatNormResult:
        corpus = repeated_tokens(model, ids, n, bos)
        return CorpusCache(model, corpus, progress=False).run(RepeatNorms())

    after = None if model.bos_id is None else read(min(repeats, room - 1), True)
    bare = read(min(_BARE if after is not None else repeats, room), False)
    return RepeatedTokens(dict(tokens), after, bare)


def moved_rows(
    read: RepeatedTokens, stages: Sequence[NormStage], texts: Mapping[bool, SinkNormResult]
) -> list[dict[str, Any]]:
    """Shares of tokens that end at least half-way to the first position, by stage, kind and BOS.

    Half-way is on the log scale, from the norm of ordinary positions to that of BOS, or without BOS of the first
    position of texts, at the depth of the stage's peak.  Where the first position is not twice as large as others
    (without BOS that happens) there is nowhere to move to: the share is NaN.

    Args:
        read: of :func:`read_repeats`.
        stages: of the sink.
        texts: norms of ordinary texts, with BOS (True) and without.

    Returns:
        Rows with ``stage, peak, kind, bos, tokens, moved, low, high``, and ``repeats``: the median number of
        repetitions after which those that moved were half-way, NaN where none did.
    """
    rows = []
    for bos, result in ((True, read.after_bos), (False, read.without_bos)):
        if result is None or bos not in texts:
            continue
        for number, stage in enumerate(stages, start=1):
            moved = _moved(result, texts[bos], stage.peak)
            for kind in dict.fromkeys([*read.kinds.values(), ALL_KINDS]):
                mine = [kind in (ALL_KINDS, read.kinds[token]) for token in result.token_ids]
                rows.append(
                    {"stage": number, "peak": stage.peak, "kind": kind, "bos": bos} | _share(moved[mine], result)
                )
    return rows


def _moved(result: RepeatNormResult, texts: SinkNormResult, depth: int) -> Float[Tensor, "text repeat"]:
    """How far each number of repetitions has moved each token; NaN where there is nowhere to move to."""
    typical = texts.other_norm[depth].double()
    top = (result.bos_norm if result.bos else texts.first_norm)[depth].double()
    moved = (result.norm[:, depth].double().log() - typical.log()) / (top.log() - typical.log())
    return torch.full_like(moved, torch.nan) if not top >= CLEARLY_ABOVE * typical else moved


def _share(moved: Tensor, result: RepeatNormResult) -> dict[str, Any]:
    n, there = len(moved), not bool(moved.isnan().any())
    half = moved >= MOVED
    count = int(half[:, -1].sum()) if there else 0
    low, high = proportion_interval(count, n) if there else (float("nan"), float("nan"))
    # Norms may fall again: the first number of repetitions from which on they stay half-way.
    stays = half.flip(1).int().cumprod(1).sum(1)
    since = [result.repeats[-int(one)] for one in stays.tolist() if one]
    median = float(torch.tensor(since, dtype=torch.float64).quantile(0.5)) if there and since else float("nan")
    share = count / n if there else float("nan")
    return {"tokens": n, "moved": share, "low": low, "high": high, "repeats": median}
