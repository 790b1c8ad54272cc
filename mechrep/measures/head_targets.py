"""Where a head of each kind looks: target keys per query, as masks, worked out once per batch.

``D[i, j] = 1`` iff key ``j`` is a target of query ``i``; ``bos`` is 1 where position 0 holds a BOS, else 0:

===============  =============================================  ======================
score            target                                         queries
===============  =============================================  ======================
induction        ``bos < j <= i, tok[j-1] == tok[i], j-1 < i``  an earlier copy exists
duplicate_token  ``bos <= j < i, tok[j] == tok[i]``             an earlier copy exists
previous_token   ``j == i - 1``                                 ``i >= 1 + bos``
current_token    ``j == i``                                     ``i >= 1``
first_token      ``j == 0``                                     ``i >= 1``
===============  =============================================  ======================

The masks of induction and duplicate token are tensors; a diagonal and a column need none.

Published normalisations of prefix matching, each to the letter; never carry a threshold from one to another.

What a head scores that attends to nothing but the token after the earlier copy (``[BOS] + r + r``, ``n = 50`` unless
another stimulus is named):

====================  ============  ====================================================================
``induction``         1.0           mechrep's own, see :mod:`mechrep.measures.head_scores`
``tl_mul``            0.495         0.5 without BOS; 0.746 on ``r * 4``: all rows count, matching or not
``tl_mul_no_bos``     0.5 to 1.0    by where idle rows rest; NaN for a head that only looks at BOS
``tl_abs``            0.495         -0.48 for a head with uniform attention
``diagonal``          0.96 or 0.98  by where the last row of the first copy rests
``doan2025``          0.495         ``[BOS] + r * 4``: 150 queries over 303 pairs
``song2025``          1.0           25/26 with BOS; ``n = 25``
====================  ============  ====================================================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from mechrep.cache.corpus_cache import Batch
from mechrep.errors import InputError, NothingFoundError
from mechrep.guards import check_count, guarded, one_of
from mechrep.measures.neurons import check_onsets
from mechrep.results import Result

SCORES: tuple[str, ...] = ("induction", "duplicate_token", "previous_token", "current_token", "first_token")
ALIASES = {"self_finding": "duplicate_token"}  # as Hiraoka and Inui 2025 call it
EXPLAINED = len(SCORES)  # one more row of the tensors below: the union of all targets

Copies = Literal["all", "newest", "oldest"]


@dataclass(frozen=True)
class Loops:
    """Loops of a batch, as the corpus' frame states them; -1 where a text has none.

    Attributes:
        start: first position of the first copy.
        onset: first position of the second copy.
        period: length of a copy.
        end: position behind the last copy; the text's length where the frame does not tell.
    """

    start: Int[Tensor, " batch"]
    onset: Int[Tensor, " batch"]
    period: Int[Tensor, " batch"]
    end: Int[Tensor, " batch"]

    @classmethod
    def of(cls, batch: Batch) -> Loops:
        """Read the frame of a batch.

        Raises:
            InputError: a loop that does not lie in its text.
        """
        frame, lengths = batch.frame, batch.lengths
        start, onset, period = (positions_in(frame, name) for name in ("start", "onset", "period"))
        marked = onset >= 0
        check_onsets(frame.assign(start=start, onset=onset).loc[marked], lengths[marked.tolist()])
        copies = frame["copies"].astype(float).fillna(0).to_numpy() if "copies" in frame else np.zeros(len(frame))
        whole = np.stack([start, onset, period, np.rint(copies * period)]).astype(np.int64)
        facts = torch.from_numpy(whole).to(lengths.device)
        end = torch.where(facts[3] > 0, (facts[0] + facts[3]).minimum(lengths), lengths)
        return cls(facts[0], facts[1], facts[2], end)


@dataclass(frozen=True)
class HeadTargets:
    """Targets of a batch.  Axis ``score`` runs over ``SCORES``, and then the union of all targets.

    Attributes:
        masks: targets of duplicate token, of induction, and those of the two that are neither the first, the current
            nor the previous token; first axis in this order.
        valid: queries with at least one target, of texts in which the score can be told from others.
        valid_without_sink: the same when column 0 is no target.
        uniform: what a head gives the targets that attends to all keys ``0 .. i`` alike; 0 for other queries.
    """

    masks: Float[Tensor, "mask batch query_pos key_pos"]
    valid: Bool[Tensor, "score batch query_pos"]
    valid_without_sink: Bool[Tensor, "score batch query_pos"]
    uniform: Float[Tensor, "score batch query_pos"]

    def to(self, device: torch.device) -> HeadTargets:
        """The same on the device of one layer: the layers of a spread model lie on several."""
        parts = (self.masks, self.valid, self.valid_without_sink, self.uniform)
        return HeadTargets(*(part.to(device) for part in parts))


def positions_in(frame: pd.DataFrame, name: str) -> Int64[np.ndarray, " text"]:
    """A column of whole numbers, -1 where the frame has none."""
    column = frame[name] if name in frame else pd.Series(-1, index=frame.index)
    return column.astype("Float64").fillna(-1).to_numpy(dtype=np.int64)


def earlier_copies(
    tokens: Int[Tensor, "batch pos"], has_bos: Bool[Tensor, " batch"], copies: Copies = "all"
) -> Bool[Tensor, "batch query_pos key_pos"]:
    """Keys before the query that hold the query's own token: the targets of duplicate-token heads, by ids.

    Args:
        tokens: ids.
        has_bos: whether position 0 is a BOS, which is no target.
        copies: ``"all"``, or only the ``"newest"`` or the ``"oldest"``.

    Example:
        >>> mask = earlier_copies(torch.tensor([[0, 7, 8, 7]]), torch.tensor([True]))
        >>> mask.nonzero().tolist()
        [[0, 3, 1]]
    """
    query, key = _positions(tokens)
    same = tokens[:, :, None] == tokens[:, None, :]
    return _chosen(same & (key < query) & (key >= has_bos.long()[:, None, None]), copies)


def aligned_copies(
    tokens: Int[Tensor, "batch pos"], loops: Loops, copies: Copies = "all"
) -> Bool[Tensor, "batch query_pos key_pos"]:
    """The same by position in a loop: ``j = i - m * period >= start`` for ``i >= onset``, ``m >= 1``.

    Chance repeats inside a cycle and before it do not count, nor does what follows the loop.

    Args:
        tokens: ids, of which only the shape counts.
        loops: where the loops lie.
        copies: as in :func:`earlier_copies`.
    """
    query, key = _positions(tokens)
    start, period, end = (value[:, None, None] for value in (loops.start, loops.period, loops.end))
    apart = query - key
    whole = (period > 0) & (apart % period.clamp_min(1) == 0)
    return _chosen(whole & (apart > 0) & (key >= start) & (start >= 0) & (query < end), copies)


def one_later(mask: Bool[Tensor, "*batch query_pos key_pos"]) -> Bool[Tensor, "*batch query_pos key_pos"]:
    """The keys that follow the targets: what induction looks at where a duplicate-token head looks at ``mask``."""
    return torch.nn.functional.pad(mask[..., :-1], (1, 0))


def head_targets(
    self_finding: Bool[Tensor, "batch query_pos key_pos"],
    has_bos: Bool[Tensor, " batch"],
    queries: Bool[Tensor, "batch query_pos"],
    confounded: Bool[Tensor, "score batch"],
) -> HeadTargets:
    """All targets of a batch.

    Args:
        self_finding: from :func:`earlier_copies` or :func:`aligned_copies`.
        has_bos: whether position 0 is a BOS.
        queries: those that may count at all; none in the padding.
        confounded: texts in which a score cannot be told from another, one row per score.
    """
    induction = one_later(self_finding)
    query, key = _positions(queries)
    rest = (self_finding | induction) & (key > 0) & (key < query - 1)
    position = torch.arange(queries.shape[1], device=queries.device).expand_as(queries)
    after_first, after_bos = position >= 1, position >= 1 + has_bos.long()[:, None]
    counts = torch.stack(
        [
            induction.sum(-1),
            self_finding.sum(-1),
            after_bos.long(),
            after_first.long(),
            after_first.long(),
            # first and current token, and from query 2 on the previous one apart from the first
            after_first * 2 + (position >= 2) + rest.sum(-1),
        ]
    )
    in_column_0 = torch.zeros_like(counts)
    in_column_0[1] = self_finding[:, :, 0]
    in_column_0[2] = after_bos & (position == 1)
    in_column_0[4:] = after_first
    usable = queries & ~confounded[:, :, None]
    valid = usable & (counts > 0)
    return HeadTargets(
        masks=torch.stack([self_finding, induction, rest]).float(),
        valid=valid,
        valid_without_sink=usable & (counts > in_column_0),
        uniform=(counts / (position + 1)).masked_fill(~valid, 0.0),
    )


def attention_on_targets(
    pattern: Float[Tensor, "batch head query_pos key_pos"], targets: HeadTargets
) -> Float[Tensor, "score batch head query_pos"]:
    """Each query's attention on its targets, ``sum_j A[i, j] D[i, j]``; axis ``score`` as in :class:`HeadTargets`."""
    # Not einsum: it would make one small matrix product per query, which takes twice as long.
    self_finding, induction, rest = ((pattern * mask[:, None]).sum(-1) for mask in targets.masks.to(pattern))
    current = pattern.diagonal(dim1=-2, dim2=-1)
    previous = torch.nn.functional.pad(pattern.diagonal(offset=-1, dim1=-2, dim2=-1), (1, 0))
    first = pattern[..., 0]
    explained = first + current + rest
    explained[..., 2:] += previous[..., 2:]
    return torch.stack([induction, self_finding, previous, current, first, explained])


def _positions(grid: Tensor) -> tuple[Tensor, Tensor]:
    """Query and key positions of a grid ``[batch pos]``, to be compared with each other."""
    position = torch.arange(grid.shape[1], device=grid.device)
    return position[:, None], position[None, :]


def _chosen(mask: Tensor, copies: Copies) -> Tensor:
    """All targets of a query, or the one that is nearest to it or farthest from it."""
    if copies == "newest":
        return mask & (mask.flip(-1).cumsum(-1).flip(-1) == 1)
    return mask & (mask.cumsum(-1) == 1) if copies == "oldest" else mask


VARIANTS = ("tl_mul", "tl_mul_no_bos", "tl_abs", "diagonal", "doan2025", "song2025")
NEED_PERIOD = frozenset({"diagonal", "doan2025", "song2025"})

# Keyword arguments of mechrep.score_heads.  The published filters of tokens (by frequency, by BPE rank) are
# not among them: they depend on the tokenizer, and mechrep draws from all ordinary tokens.
PROTOCOLS: Mapping[str, Mapping[str, Any]] = {
    "olsson2022": {"n": 25, "copies": 4, "bos": True},  # read off result.induction, copies="all"
    "song2025": {"n": 25, "sequences": 50, "bos": False, "variants": ("song2025",)},
    "doan2025": {"n": 50, "copies": 4, "sequences": 5, "bos": True, "variants": ("doan2025",)},
    "yin2025": {"n": 50, "sequences": 1000, "bos": True, "variants": ("tl_abs", "tl_mul")},
}


def tl_mul(
    pattern: Float[Tensor, "*batch head query_pos key_pos"],
    target: Float[Tensor, "*batch query_pos key_pos"],
    *,
    exclude_bos: bool = False,
) -> Float[Tensor, "*batch head"]:
    """TransformerLens' ``detect_head`` with ``error_measure="mul"``: attention on targets over all attention.

    ``sum A * D / sum A`` over *all* rows, those without a target too.

    Args:
        pattern: attention.
        target: 1 at target keys, else 0.
        exclude_bos: leave column 0 out of both sums.  A head that looks at nothing else gives NaN.

    Source: TransformerLens, ``head_detector`` (as of 3.9.0).

    Example:
        >>> tl_mul(torch.tensor([[[1.0, 0.0], [0.25, 0.75]]]), torch.tensor([[0.0, 0.0], [1.0, 0.0]])).tolist()
        [0.125]
    """
    from_key = 1 if exclude_bos else 0
    kept = pattern[..., from_key:]
    return torch.einsum("...hqk,...qk->...h", kept, target[..., from_key:].to(kept)) / kept.sum((-2, -1))


def tl_abs(
    pattern: Float[Tensor, "*batch head query_pos key_pos"], target: Float[Tensor, "*batch query_pos key_pos"]
) -> Float[Tensor, "*batch head"]:
    """TransformerLens' ``detect_head`` with ``error_measure="abs"``: ``1 - round(T * mean abs(A - D), 3)``.

    Args:
        pattern: attention.
        target: wanted attention.

    Source: TransformerLens, ``head_detector`` (as of 3.9.0).  Used by Yin and Steinhardt 2025 (arXiv 2502.14010), with
    releases that may have computed ``"mul"`` instead.

    Example:
        >>> tl_abs(torch.eye(4)[None], torch.eye(4)).tolist()
        [1.0]
    """
    apart = (pattern - target.to(pattern).unsqueeze(-3)).abs()
    return 1 - torch.round(apart.mean((-2, -1)) * pattern.shape[-1], decimals=3)


def diagonal(pattern: Float[Tensor, "*batch head query_pos key_pos"], n: int) -> Float[Tensor, "*batch head"]:
    """Mean of the diagonal ``j = i - n + 1`` over all its ``T - n + 1`` entries, boundary rows included.

    Args:
        pattern: attention on repeats of ``n`` tokens.
        n: period.

    Source: the idiom of TransformerLens' demos and of courses built on it (threshold 0.4 there).
    """
    return pattern.diagonal(offset=1 - n, dim1=-2, dim2=-1).mean(-1)


def song2025(pattern: Float[Tensor, "*batch head query_pos key_pos"], n: int = 25) -> Float[Tensor, "*batch head"]:
    """Row and column 0 removed, rows divided by their sum; mean of the diagonal ``j = i - n + 1`` of what is left.

    As in the released code each entry adds 1e-6 to the sum that a row is divided by: a perfect head scores
    ``1 / (1 + 1e-6 (T - 1))``, and an empty row 0.

    Args:
        pattern: attention on two copies of ``n`` tokens.
        n: period.

    Source: Song, Xu and Zhong 2025 (arXiv 2408.09503), released code.
    """
    inner = pattern[..., 1:, 1:]
    return diagonal(inner / (inner + 1e-6).sum(-1, keepdim=True), n)


def doan2025(pattern: Float[Tensor, "*batch head query_pos key_pos"], n: int = 50) -> Float[Tensor, "*batch head"]:
    """Attention on ``[BOS] + r * m`` over the number of (query, key) pairs, not of queries.

    Query ``i > n`` has the keys ``c n + (i mod n) + 1`` for ``c < floor(i / n)``.  Where ``i`` is a multiple of ``n``
    they include key 1, which follows BOS.

    Args:
        pattern: attention on BOS and at least two copies of ``n`` tokens.
        n: period.

    Raises:
        InputError: a length that is not BOS and two or more copies.

    Source: Doan et al. 2025 (arXiv 2507.07810), released code.
    """
    length = pattern.shape[-1]
    if n < 1 or length <= 2 * n or length % n != 1 % n:
        raise InputError(f"a text of {length} tokens for doan2025", f"BOS and copies of n = {n} tokens", "correct n")
    pairs = [(i, copy * n + i % n + 1) for i in range(n + 1, length) for copy in range(i // n)]
    query, key = torch.tensor(pairs, device=pattern.device).T
    return pattern[..., query, key].mean(-1)


@dataclass(frozen=True)
class VariantTexts:
    """Texts of a batch that have one length and one period, so that their patterns need no padding.

    Attributes:
        rows: their places in the batch.
        length: tokens of each.
        period: of their loops, where the frame states it.
        target: TransformerLens' detection pattern for induction heads, to which a BOS is a token like others.
    """

    rows: list[int]
    length: int
    period: int
    target: Float[Tensor, "text query_pos key_pos"]

    @classmethod
    def of(
        cls, tokens: Int[Tensor, "batch pos"], lengths: Int[Tensor, " batch"], periods: Sequence[int]
    ) -> list[VariantTexts]:
        """The texts of a batch, sorted by length and period."""
        alike: dict[tuple[int, int], list[int]] = {}
        for row, (length, period) in enumerate(zip(lengths.tolist(), periods, strict=True)):
            alike.setdefault((length, period), []).append(row)
        groups = []
        for (length, period), rows in alike.items():
            ids = tokens[rows][:, :length]
            no_bos = torch.zeros(len(rows), dtype=torch.bool, device=ids.device)
            groups.append(cls(rows, length, period, one_later(earlier_copies(ids, no_bos)).float()))
        return groups

    def score(self, name: str, pattern: Float[Tensor, "batch head query_pos key_pos"]) -> Float[Tensor, "text head"]:
        """One of ``VARIANTS``, given the attention of the whole batch."""
        real = pattern[self.rows][:, :, : self.length, : self.length]
        if name in NEED_PERIOD:
            return {"diagonal": diagonal, "doan2025": doan2025, "song2025": song2025}[name](real, self.period)
        return (
            tl_abs(real, self.target) if name == "tl_abs" else tl_mul(real, self.target, exclude_bos=name != "tl_mul")
        )


Form = Literal["id", "aligned"]
Queries = Literal["all", "after_onset"]
Average = Literal["query", "text"]

PRESETS: dict[str, dict[str, str]] = {
    "mechrep": {"queries": "all", "average": "query"},
    "hiraoka2025": {"queries": "after_onset", "average": "text"},
}
NOT_USED: tuple[str, ...] = ("no onset", "period-1", "period-2", "no repeated token")
_CHOICES = {
    "copies": ("all", "newest", "oldest"),
    "form": ("id", "aligned"),
    "queries": ("all", "after_onset"),
}


@dataclass(frozen=True)
class HeadRules:
    """The settings of :class:`~mechrep.measures.head_scores.HeadScores`, which explains them; made by :meth:`of`."""

    bos_id: int | None
    copies: Copies
    form: Form
    queries: Queries
    positions: int | None
    average: Average | float
    variants: tuple[str, ...]

    @classmethod
    def of(cls, preset: str, variants: Sequence[str], **settings: Any) -> HeadRules:
        """A preset's settings with one's own; ``queries`` and ``average`` that are None stay the preset's.

        Raises:
            InputError: an unknown or contradicting setting.
        """
        one_of("preset", preset, PRESETS)
        settings |= {name: value for name, value in PRESETS[preset].items() if settings[name] is None}
        for name, known in _CHOICES.items():
            one_of(name, settings[name], known)
        if isinstance(settings["average"], str):
            one_of("average", settings["average"], (*get_args(Average), "or a number"))
        else:
            settings["average"] = float(settings["average"])
        for name in variants:
            one_of("variant", name, VARIANTS)
        positions, queries = settings["positions"], settings["queries"]
        if positions is not None and queries == "all":
            raise InputError(
                f"positions={positions}, queries={queries!r}", "positions beside queries='after_onset'", "correct them"
            )
        return cls(**settings, variants=tuple(variants))

    @property
    def need_loops(self) -> bool:
        """Whether texts without a loop have nothing to count."""
        return self.form == "aligned" or self.queries == "after_onset"

    def check_frame(self, frame: pd.DataFrame) -> None:
        """Refuse a corpus whose frame lacks what the settings need.

        Raises:
            InputError: a variant that needs periods, and a text without one.
            NothingFoundError: no text with a loop where one is needed.
        """
        if self.need_loops and not (positions_in(frame, "onset") >= 0).any():
            raise NothingFoundError(
                f"{len(frame)} texts, none with an onset",
                "texts in which a loop is marked",
                "mark cycles with corpus.with_cycles(), or choose queries='all' and form='id'",
            )
        if NEED_PERIOD.intersection(self.variants) and (positions_in(frame, "period") < 1).any():
            raise InputError(
                f"variants {list(self.variants)} for texts without a period",
                "repeats of a known period",
                "make the corpus with mechrep.text.random_repeats",
            )

    def look_at(self, batch: Batch) -> BatchTargets:
        """Everything about a batch that no layer changes."""
        tokens, lengths, loops = batch.tokens, batch.lengths, Loops.of(batch)
        has_bos = tokens[:, 0] == (-1 if self.bos_id is None else self.bos_id)
        aligned = self.form == "aligned"
        copies = aligned_copies(tokens, loops, self.copies) if aligned else earlier_copies(tokens, has_bos, self.copies)
        period_1, period_2 = loops.period == 1, (loops.period == 2) & (self.copies == "newest")
        confounded = torch.zeros(EXPLAINED + 1, len(tokens), dtype=torch.bool, device=tokens.device)
        confounded[:4] |= period_1  # all but the first token are the same keys
        confounded[0] |= period_2  # the newest induction target is the previous token
        targets = head_targets(copies, has_bos, self._queries(batch, loops), confounded)
        no_onset = (loops.onset < 0) & self.need_loops
        no_repeat = ~targets.valid[0].any(-1) & ~confounded[0] & ~no_onset
        texts = VariantTexts.of(tokens, lengths, loops.period.tolist()) if self.variants else []
        return BatchTargets(batch, targets, torch.stack([no_onset, period_1, period_2, no_repeat]), texts)

    def _queries(self, batch: Batch, loops: Loops) -> Bool[Tensor, "batch query_pos"]:
        """Real positions that may count."""
        position = torch.arange(batch.tokens.shape[1], device=batch.tokens.device)[None]
        real = position < batch.lengths[:, None]
        if self.queries == "all":
            return real
        last = batch.lengths if self.positions is None else loops.onset + self.positions
        return real & (loops.onset[:, None] >= 0) & (position >= loops.onset[:, None]) & (position < last[:, None])


@dataclass(frozen=True)
class BatchTargets:
    """What is worked out once per batch, not once per layer.

    Attributes:
        batch: the batch.
        targets: targets of all queries.
        not_used: texts that a repetition score cannot use, by reason, in the order of ``NOT_USED``.
        variant_texts: the texts, sorted for published variants; none where no variant is asked for.
    """

    batch: Batch
    targets: HeadTargets
    not_used: Bool[Tensor, "reason batch"]
    variant_texts: Sequence[VariantTexts]


@dataclass(frozen=True, eq=False)
class HeadTableResult(Result):
    """Base of results with several scores per head, ``names``; the first of them ranks.

    ``"self_finding"`` is taken for ``"duplicate_token"`` wherever a score is named.
    """

    names: ClassVar[Sequence[str]]

    @guarded
    def of(self, score: str) -> Float[Tensor, "layer head"]:
        """One of the scores by its name.

        Raises:
            InputError: a name that is not among ``names``.
        """
        one_of("score", score, self.names)
        return getattr(self, score)

    @guarded
    def ranking(self, by: str | None = None) -> list[tuple[int, int]]:
        """``(layer, head)`` pairs, highest score first, ties in the order of layers and heads.

        Heads without a value (of layers without attention, for instance) are left out, unless none has one.
        """
        values = self.of(by or self.names[0])
        return self._sorted(by)[: int((~values.isnan()).sum()) or values.numel()]

    def _sorted(self, by: str | None) -> list[tuple[int, int]]:
        """All heads, those without a value last."""
        values = self.of(by or self.names[0])
        order = torch.argsort(torch.nan_to_num(values.flatten(), nan=-torch.inf), descending=True, stable=True)
        return [divmod(index, values.shape[1]) for index in order.tolist()]

    @guarded
    def top(self, k: int, score: str | None = None) -> list[tuple[int, int]]:
        """The ``k`` heads that score highest, by default on the first of ``names``.

        Raises:
            InputError: ``k`` larger than the number of heads, or an unknown score.
        """
        ranking = self.ranking(score)
        check_count(k, len(ranking), "heads")
        return ranking[:k]

    def columns(self) -> dict[str, Float[Tensor, "layer head"]]:
        """The columns of the table."""
        return {name: self.of(name) for name in self.names}

    @guarded
    def to_frame(self, score: str | None = None) -> pd.DataFrame:
        """One row per head, highest ``score`` first: rank, layer, head, and :meth:`columns`."""
        units = self._sorted(score)
        layers, heads = torch.tensor(units, dtype=torch.long).reshape(-1, 2).T
        values = {name: table[layers, heads].numpy() for name, table in self.columns().items()}
        return pd.DataFrame({"rank": range(len(units)), "layer": layers.numpy(), "head": heads.numpy(), **values})
