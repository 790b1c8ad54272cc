"""Where a head of each kind looks: target keys per query, as masks, worked out once per batch.

``D[i, j] = 1`` iff key ``j`` is a target of query ``i``; ``bos`` is 1 where position 0 holds a BOS, else 0:

==============  =============================================  ======================
score           target                                         queries
==============  =============================================  ======================
induction       ``bos < j <= i, tok[j-1] == tok[i], j-1 < i``  an earlier copy exists
self_finding    ``bos <= j < i, tok[j] == tok[i]``             an earlier copy exists
previous_token  ``j == i - 1``                                 ``i >= 1 + bos``
current_token   ``j == i``                                     ``i >= 1``
first_token     ``j == 0``                                     ``i >= 1``
==============  =============================================  ======================

The masks of induction and self-finding are tensors; a diagonal and a column need none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from mechrep.analyzers.windows import check_onsets
from mechrep.cache.analyzer import Batch

SCORES: tuple[str, ...] = ("induction", "self_finding", "previous_token", "current_token", "first_token")
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
        masks: targets of self-finding, of induction, and those of the two that are neither the first, the current
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
    """Keys before the query that hold the query's own token: the targets of self-finding, by ids.

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
    """The keys that follow the targets: what induction looks at where self-finding looks at ``mask``."""
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
