"""An n-gram baseline: how much of mechrep-tiny's loss do counts of the last few tokens explain?

Interpolated modified Kneser-Ney over token ids, on sorted arrays: 60 million tokens take half a minute and 2 GiB on one
core.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Integer, UInt64

from mechrep.errors import InputError

FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)


@dataclass(frozen=True, eq=False)
class _Order:
    """What one order k adds: shares of the k-grams that occur, and what their contexts leave to the order below."""

    ngrams: UInt64[np.ndarray, " ngram"]
    shares: Float[np.ndarray, " ngram"]
    contexts: UInt64[np.ndarray, " context"]
    remainders: Float[np.ndarray, " context"]


@dataclass(frozen=True, eq=False)
class NgramModel:
    """Interpolated modified Kneser-Ney model of order n over token ids.

    With h the k - 1 tokens before w, and h' the same without its first token::

        p_k(w | h) = (c_k(h w) - D_k(c_k(h w))) / sum_v c_k(h v)  +  g_k(h) p_{k-1}(w | h'),      p_0(w) = 1 / d_vocab
        g_k(h)     = sum_v D_k(c_k(h v)) / sum_v c_k(h v),        g_k(h) = 1 for a context that never occurs

    c_n is the number of occurrences; below the highest order c_k(h w) is the number of different tokens that precede
    h w (continuation count).  With N_i k-grams of count i, and Y = N_1 / (N_1 + 2 N_2)::

        D_k(0) = 0,   D_k(i) = i - (i + 1) Y N_{i+1} / N_i  for i = 1, 2,   D_k(3 or more) = 3 - 4 Y N_4 / N_3

    Where N_1, N_2 or N_3 is 0, or a discount is not positive, that order takes ``FALLBACK_DISCOUNTS``, the values of
    KenLM's ``--discount_fallback``: usual for k = 1, because every token of a small vocabulary has many predecessors.

    Attributes:
        d_vocab: number of token ids.
        discounts: D_k(1), D_k(2), D_k(3 or more), for k = 1, ..., n.
        orders: the tables, k = 1 first.

    Source: Chen & Goodman 1998, *An Empirical Study of Smoothing Techniques for Language Modeling* (Harvard TR-10-98).
    Fallback: Heafield et al. 2013, *Scalable Modified Kneser-Ney Language Model Estimation* (ACL), and its program.

    Limits: it sees the last n - 1 tokens only; what a text repeats from further back is out of its reach.

    Example:
        >>> import mechrep
        >>> from mechrep.models import tiny
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> ids = np.array(model.tokenizer(tiny.held_out_text(), add_special_tokens=False)["input_ids"])
        >>> rows = ids[-1024:].reshape(8, 128)
        >>> unigram, trigram = (NgramModel.fit(ids[:-1024], n, d_vocab=512).mean_loss(rows) for n in (1, 3))
        >>> bool(trigram < unigram < np.log(512))
        True
    """

    d_vocab: int
    discounts: Float[np.ndarray, "order 3"]
    orders: tuple[_Order, ...]

    @classmethod
    def fit(cls, stream: Integer[np.ndarray, " token"], order: int = 5, d_vocab: int = 512) -> NgramModel:
        """Count a stream of token ids.

        The stream is read as a ring, its last token followed by its first, so that every n-gram has a predecessor and
        all orders count the same text.  N-grams that span two documents (an EOS inside) are counted like any other.

        Args:
            stream: ids of the training text, document after document, without BOS.
            order: n; the last n - 1 tokens are the context.
            d_vocab: number of token ids.

        Raises:
            InputError: ``order`` below 1 or too large for 64-bit keys, a stream shorter than ``order``, or ids
                outside the vocabulary.
        """
        if order < 1 or d_vocab < 1 or d_vocab**order >= 2**64:
            raise InputError(
                f"order={order}, d_vocab={d_vocab}", "both >= 1, d_vocab**order < 2**64", "choose a lower order"
            )
        if len(stream) < order:
            raise InputError(f"a stream of {len(stream)} tokens", f"at least order = {order}", "give more text")
        _check_ids(stream, d_vocab)
        ring = np.concatenate([stream, stream[: order - 1]])
        keys = _pack([ring[offset : offset + len(stream)] for offset in range(order)], d_vocab)
        orders, discounts = [], []
        for k in range(order, 0, -1):
            keys.sort()
            starts, counts = _runs(keys)
            ngrams = keys[starts]
            discounts.append(_discounts(counts))
            orders.append(_estimate(ngrams, counts, discounts[-1], d_vocab))
            if k > 1:  # dropping the first token of each different k-gram leaves one entry per predecessor
                keys = ngrams % np.uint64(d_vocab ** (k - 1))
        return cls(d_vocab, np.stack(discounts[::-1]), tuple(orders[::-1]))

    def log_probabilities(self, rows: Integer[np.ndarray, "window pos"]) -> Float[np.ndarray, "window pos-1"]:
        """Log probability, in nats, of every token of each window but the first, given those before it.

        A context never reaches beyond its window: near the start p_k of a lower order k predicts.  A context with a
        token that the training text lacks (BOS) never occurs, so g_k = 1 and the tokens after it are the context.

        Args:
            rows: windows of ids, each at least 2 long; position 0 is not predicted.

        Raises:
            InputError: no window, windows of one token, or ids outside the vocabulary.
        """
        length = rows.shape[1]
        if length < 2 or len(rows) == 0:
            raise InputError(f"windows of shape {rows.shape}", "at least 1 window of 2 tokens", "give longer windows")
        _check_ids(rows, self.d_vocab)
        probabilities = np.full((len(rows), length - 1), 1 / self.d_vocab)
        for k, table in enumerate(self.orders[:length], start=1):
            first = max(k - 1, 1)  # the first position that is predicted and has k - 1 tokens before it
            ngrams = _pack([rows[:, first - back : length - back] for back in range(k - 1, -1, -1)], self.d_vocab)
            share = _look_up(ngrams, table.ngrams, table.shares, missing=0.0)
            remainder = _look_up(ngrams // np.uint64(self.d_vocab), table.contexts, table.remainders, missing=1.0)
            probabilities[:, first - 1 :] = share + remainder * probabilities[:, first - 1 :]
        return np.log(probabilities)

    def mean_loss(self, rows: Integer[np.ndarray, "window pos"]) -> float:
        """Mean loss in nats per predicted token of windows, see :meth:`log_probabilities`."""
        return -float(self.log_probabilities(rows).mean())


def _check_ids(ids: Integer[np.ndarray, "*shape"], d_vocab: int) -> None:
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= d_vocab:
        raise InputError(f"ids from {low} to {high}", f"0 to {d_vocab - 1}", "give the tokenizer's d_vocab")


def _pack(columns: Sequence[Integer[np.ndarray, "*shape"]], d_vocab: int) -> UInt64[np.ndarray, "*shape"]:
    """One number per n-gram; the last token is the lowest digit, so sorting puts equal contexts together."""
    keys = columns[0].astype(np.uint64)
    for column in columns[1:]:
        keys *= np.uint64(d_vocab)
        keys += column.astype(np.uint64)
    return keys


def _runs(values: UInt64[np.ndarray, " value"]) -> tuple[Int[np.ndarray, " run"], Int[np.ndarray, " run"]]:
    """Start and length of each run of equal values."""
    starts = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))
    return starts, np.diff(starts, append=len(values))


def _discounts(counts: Int[np.ndarray, " ngram"]) -> Float[np.ndarray, " discount"]:
    n_1, n_2, n_3, n_4 = (int(np.count_nonzero(counts == i)) for i in (1, 2, 3, 4))
    if n_1 and n_2 and n_3:
        y = n_1 / (n_1 + 2 * n_2)
        values = np.array([1 - 2 * y * n_2 / n_1, 2 - 3 * y * n_3 / n_2, 3 - 4 * y * n_4 / n_3])
        if (values > 0).all():
            return values
    return np.array(FALLBACK_DISCOUNTS)


def _estimate(
    ngrams: UInt64[np.ndarray, " ngram"],
    counts: Int[np.ndarray, " ngram"],
    discounts: Float[np.ndarray, " discount"],
    d_vocab: int,
) -> _Order:
    """Discounted shares of the n-grams, and per context the mass that discounting freed."""
    contexts = ngrams // np.uint64(d_vocab)
    starts, sizes = _runs(contexts)
    taken = discounts[np.minimum(counts, 3) - 1]
    totals = np.add.reduceat(counts, starts)
    shares = (counts - taken) / np.repeat(totals, sizes)
    return _Order(ngrams, shares, contexts[starts], np.add.reduceat(taken, starts) / totals)


def _look_up(
    wanted: UInt64[np.ndarray, "window pos"],
    keys: UInt64[np.ndarray, " key"],
    values: Float[np.ndarray, " key"],
    missing: float,
) -> Float[np.ndarray, "window pos"]:
    index = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    return np.where(keys[index] == wanted, values[index], missing)
