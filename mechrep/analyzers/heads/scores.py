"""``HeadScores``: what every attention head looks at, on repetitive text.

For attention ``A`` and the targets ``D`` of :mod:`mechrep.analyzers.heads.targets`, over all queries with a target::

    score(head) = sum_{texts, i} sum_j A[head, i, j] D[i, j]  /  number of queries        (a perfect head: 1.0)
    chance      = the same for A[i, j] = 1 / (i + 1)

Targets are found by ids, so accidental repeats count as what they are, and only their masks live as long as a batch.
Of the patterns, one layer exists at a time; the state is sums over texts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import torch
from torch import Tensor

from mechrep.analyzers.heads.result import HeadScoreResult as HeadScoreResult
from mechrep.analyzers.heads.rules import (
    NOT_USED,
    Average,
    BatchTargets,
    Form,
    HeadRules,
    Queries,
)
from mechrep.analyzers.heads.targets import SCORES, Copies, HeadTargets, attention_on_targets
from mechrep.cache.analyzer import Analyzer, Batch
from mechrep.cache.corpus_cache import CorpusCache
from mechrep.errors import ModelError, NothingFoundError
from mechrep.models.anatomy import Anatomy, Site
from mechrep.models.model import Model
from mechrep.provenance import Provenance
from mechrep.text.random_repeats import random_repeats

_LEAST_OFF_SINK = 1e-6  # of a row's attention: less is rounding error of what lies on the sink
_TOKENS_PER_BATCH = 2048  # a pattern is heads x T x T per text; on a CPU small batches stay in its cache


class HeadScores(Analyzer):
    """Scores every head as induction, self-finding, previous-token, current-token and first-token head.

    Args:
        preset: ``"mechrep"`` (default): all queries, each counts once.  ``"hiraoka2025"``: queries from the second copy
            of the loop on, mean per text and then over texts; a head qualifies with more than 0.5
            (:meth:`HeadScoreResult.above`).  Print leaves open whether queries are averaged or texts counted; for the
            latter choose ``average="threshold"``.
        bos_id: id that is a BOS where it stands at position 0, as ``model.bos_id`` gives it; None for texts without.
            A BOS is neither a copy of anything nor a previous token.
        copies: for induction and self-finding: ``"all"`` earlier copies, or only the ``"newest"`` or ``"oldest"``.
        form: ``"id"``: a copy is the same id.  ``"aligned"``: a copy is the same place in the loop that the corpus'
            frame states (``start``, ``onset``, ``period``, ``copies``), so chance repeats do not count.
        queries: overrides the preset's: ``"all"``, or ``"after_onset"``, those from the second copy on.
        positions: with ``"after_onset"``: only the first so many of them.
        average: overrides the preset's: over queries (``"query"``), over queries and then texts (``"text"``), or the
            share of texts whose score exceeds ``threshold`` (``"threshold"``).
        threshold: for ``average="threshold"``.
        variants: published normalisations of prefix matching to measure beside it, see
            :mod:`mechrep.analyzers.heads.variants`.

    Raises:
        InputError: unknown or contradicting settings; a corpus whose frame lacks what they need.
        ModelError: a model without attention patterns.
        NothingFoundError: a corpus without a single repeated token, or, where an onset is needed, without a loop.

    Source: Elhage et al. 2021; Olsson et al. 2022 (arXiv 2209.11895); self-finding: Hiraoka and Inui 2025 (2410.13497).

    Limits: Attention is not effect: heads that suppress copies match prefixes too.  In loops of period 1 all targets
    but the first token are the same keys; such texts do not count for those scores, which are NaN if there are no
    others (``missing`` says ``period-1``).  In loops of period 2 the newest induction target is the previous token;
    with ``copies="newest"`` they do not count for induction (``period-2``).  A period is known only from the frame.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> corpus = mechrep.Corpus.from_tokens([[0, 5, 6, 7, 5, 6, 7, 5], [0, 8, 9, 10, 8, 9, 10]], model=model)
        >>> (result,) = mechrep.CorpusCache(model, corpus).run(HeadScores(bos_id=model.bos_id))
        >>> result.induction.shape == (model.anatomy.n_layers, model.anatomy.n_heads), result.n_queries["induction"]
        (True, 7)
    """

    sites: ClassVar[frozenset[Site]] = frozenset({Site.PATTERN})

    def __init__(
        self,
        preset: str = "mechrep",
        *,
        bos_id: int | None,
        copies: Copies = "all",
        form: Form = "id",
        queries: Queries | None = None,
        positions: int | None = None,
        average: Average | None = None,
        threshold: float = 0.5,
        variants: Sequence[str] = (),
    ) -> None:
        self.preset = preset
        self.rules = HeadRules.of(
            preset,
            variants,
            bos_id=bos_id,
            copies=copies,
            form=form,
            queries=queries,
            positions=positions,
            average=average,
            threshold=threshold,
        )
        self.state = {}

    @property
    def config(self) -> dict[str, Any]:
        """All settings."""
        return {"preset": self.preset, **dataclasses.asdict(self.rules), "variants": list(self.rules.variants)}

    def prepare(self, anatomy: Anatomy, frame: pd.DataFrame) -> None:
        """Empty sums for this model's heads; refuses a corpus whose frame lacks what the settings need."""
        if not anatomy.has(Site.PATTERN):
            raise ModelError(anatomy.architecture, "attention patterns", "this model has no heads to score")
        self.rules.check_frame(frame)
        heads, scores, variants = (anatomy.n_layers, anatomy.n_heads), len(SCORES) + 1, len(self.rules.variants)
        shapes: dict[str, tuple[int, ...]] = {"not_used": (len(NOT_USED),), "observed": (1,)}
        shapes |= dict.fromkeys(("weight", "weight_squares", "texts", "queries", "chance"), (scores,))
        shapes |= dict.fromkeys(("sum", "squares", "cross"), (scores, *heads))
        shapes |= dict.fromkeys(("sink_sum", "sink_weight", "sink_dropped"), (scores, *heads))
        shapes["variants"] = (variants, *heads)
        self.state = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}
        self._known: BatchTargets | None = None

    def _known_of(self, batch: Batch) -> BatchTargets:
        if self._known is None or self._known.batch is not batch:
            self._known = self.rules.look_at(batch)
        return self._known

    def observe(self, activation: Tensor, site: Site, layer: int, batch: Batch) -> None:  # noqa: ARG002 - it has one
        """Add one layer of one batch."""
        known = self._known_of(batch)
        targets = known.targets.to(activation.device)
        pattern = activation.float() if activation.dtype.itemsize < 4 else activation
        # Apple's GPUs have no float64.
        wide = torch.float32 if pattern.device.type == "mps" else torch.float64
        on_targets = attention_on_targets(pattern, targets).to(wide)
        self._add_scores(on_targets, targets, layer)
        self._add_without_sink(on_targets, pattern[..., 1:].sum(-1).to(wide), targets, layer)
        for texts in known.variant_texts:
            for number, name in enumerate(self.rules.variants):
                self.state["variants"][number, layer] += texts.score(name, pattern).to(wide).sum(0).cpu()

    def _add_scores(self, on_targets: Tensor, targets: HeadTargets, layer: int) -> None:
        attention = on_targets.masked_fill(~targets.valid[:, :, None], 0.0).sum(-1)  # [score text head]
        value, weight = self._text_value(attention, targets.valid.sum(-1)[:, :, None])
        sums = torch.stack([value, value.square(), value * weight]).sum(2).cpu()
        for name, part in zip(("sum", "squares", "cross"), sums, strict=True):
            self.state[name][:, layer] += part

    def _add_without_sink(self, on_targets: Tensor, off_sink: Tensor, targets: HeadTargets, layer: int) -> None:
        """The same with column 0 taken away, as a target and from every row's attention."""
        kept, on_first = on_targets.clone(), on_targets[4]
        kept[1] -= on_first * targets.masks[0, :, None, :, 0].to(on_first)  # a first token without BOS can be a copy
        kept[5] -= on_first
        valid, enough = targets.valid_without_sink[:, :, None], off_sink >= _LEAST_OFF_SINK
        attention = (kept / off_sink).masked_fill(~(valid & enough), 0.0).sum(-1)
        value, weight = self._text_value(attention, (valid & enough).sum(-1))
        dropped = (valid & ~enough).sum(-1).to(value)
        sums = torch.stack([value, weight, dropped]).sum(2).cpu()
        for name, part in zip(("sink_sum", "sink_weight", "sink_dropped"), sums, strict=True):
            self.state[name][:, layer] += part

    def _text_value(self, attention: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
        """What each text adds above and below the fraction line of the mean."""
        if self.rules.average == "query":
            return attention, queries.to(attention)
        mean = attention / queries.clamp_min(1)
        value = mean if self.rules.average == "text" else (mean > self.rules.threshold).to(attention)
        return value, (queries > 0).to(attention)

    def finish_batch(self, batch: Batch) -> None:
        """Count texts and queries, and add what uniform attention would give, once for all layers."""
        known = self._known_of(batch)
        queries = known.targets.valid.sum(-1)
        chance, weight = self._text_value(known.targets.uniform.sum(-1), queries)
        counts = {"weight": weight, "weight_squares": weight.square(), "texts": queries > 0, "queries": queries}
        for name, part in (counts | {"chance": chance, "not_used": known.not_used}).items():
            self.state[name] += part.cpu().double().sum(-1)
        self.state["observed"] += len(batch.texts)
        self._known = None  # masks are as large as one head's patterns

    def result(self, provenance: Provenance) -> HeadScoreResult:
        """Means, their errors, chance, and what was left out.

        Raises:
            NothingFoundError: no token was repeated in any text that could be used.
        """
        not_used = dict(zip(NOT_USED, map(int, self.state["not_used"].tolist()), strict=True))
        texts = self.state["texts"].tolist()
        period = next((reason for reason in ("period-1", "period-2") if not_used[reason]), None)
        if texts[0] == 0 and period is None:
            raise NothingFoundError(
                f"{int(self.state['observed'])} texts in which no query that counts repeats an earlier token",
                "texts with repeats",
                "make some with mechrep.text.random_repeats",
            )
        # Without a text whose period is in the way, what lacks a query is a text too short to have one.
        reason = period or "no query"
        missing = {name: reason for name, n in zip(SCORES, texts, strict=False) if n == 0}
        return HeadScoreResult.from_state(self.state, provenance, self.rules.variants, not_used, missing)

    def load_result(self, folder: Path) -> HeadScoreResult:
        """Read a stored result."""
        return HeadScoreResult.load(folder)


def score_heads(
    model: Model,
    *,
    n: int = 50,
    copies: int = 2,
    sequences: int = 32,
    seed: int = 0,
    bos: bool | None = None,
    variants: Sequence[str] = (),
) -> HeadScoreResult:
    """Score all heads of a model on random repeated tokens: ``random_repeats`` read by :class:`HeadScores`.

    Args:
        model: the model.
        n: period of the repeats.
        copies: copies of each.
        sequences: texts.
        seed: of the draw.
        bos: whether texts begin with BOS; by default if the model has one.
        variants: published normalisations to add.  ``score_heads(model, **PROTOCOLS["song2025"])`` measures what a
            paper measured, see :mod:`mechrep.analyzers.heads.variants`.

    Raises:
        InputError: texts that cannot be made or read, see :func:`mechrep.text.random_repeats.random_repeats`.
        ModelError: a model without attention patterns.

    Example:
        >>> import mechrep
        >>> result = score_heads(mechrep.load_model("mechrep-tiny"), n=20, sequences=8)
        >>> bool(result.induction.max() > 5 * result.chance[0])
        True
    """
    corpus = random_repeats(model, n=n, copies=copies, sequences=sequences, seed=seed, bos=bos)
    batch_size = max(1, _TOKENS_PER_BATCH // corpus.tokens.shape[1])
    cache = CorpusCache(model, corpus, batch_size=batch_size, progress=False)
    (result,) = cache.run(HeadScores(bos_id=model.bos_id, variants=variants))
    assert isinstance(result, HeadScoreResult)
    return result
