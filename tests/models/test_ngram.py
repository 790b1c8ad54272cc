"""The n-gram baseline: against a plain second implementation, by hand, and on text whose entropy is known."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mechrep.errors import InputError
from mechrep.models import tiny

pytest.importorskip("scripts", reason="the training recipe is no part of the installed package")

from scripts.train_tiny.ngram import FALLBACK_DISCOUNTS, NgramModel
from scripts.train_tiny.recipe import Recipe
from scripts.train_tiny.train import held_out_loss


class PlainKneserNey:
    """The textbook definition with dictionaries and loops, one probability at a time."""

    def __init__(self, stream: list[int], order: int, d_vocab: int) -> None:
        self.order, self.d_vocab = order, d_vocab
        ring = stream + stream[:order]
        occurrences = {k: Counter(tuple(ring[i : i + k]) for i in range(len(stream))) for k in range(1, order + 1)}
        self.counts: dict[int, dict[tuple[int, ...], int]] = {order: occurrences[order]}
        for k in range(1, order):
            predecessors: dict[tuple[int, ...], set[int]] = {}
            for first, *rest in occurrences[k + 1]:
                predecessors.setdefault(tuple(rest), set()).add(first)
            self.counts[k] = {gram: len(before) for gram, before in predecessors.items()}
        self.discounts = {k: self.chen_goodman(Counter(counts.values())) for k, counts in self.counts.items()}

    @staticmethod
    def chen_goodman(n: Counter[int]) -> list[float]:
        if min(n[1], n[2], n[3]) == 0:
            return list(FALLBACK_DISCOUNTS)
        y = n[1] / (n[1] + 2 * n[2])
        discounts = [i - (i + 1) * y * n[i + 1] / n[i] for i in (1, 2, 3)]
        return discounts if min(discounts) > 0 else list(FALLBACK_DISCOUNTS)

    def probability(self, context: tuple[int, ...], token: int) -> float:
        context = context[max(0, len(context) - self.order + 1) :]
        k = len(context) + 1
        shorter = self.probability(context[1:], token) if context else 1 / self.d_vocab
        following = {w: self.counts[k].get((*context, w), 0) for w in range(self.d_vocab)}
        total = sum(following.values())
        if total == 0:
            return shorter
        taken = {w: self.discounts[k][min(c, 3) - 1] if c else 0.0 for w, c in following.items()}
        return (following[token] - taken[token] + sum(taken.values()) * shorter) / total

    def log_probabilities(self, row: list[int]) -> list[float]:
        return [math.log(self.probability(tuple(row[:t]), row[t])) for t in range(1, len(row))]


def skewed_stream(d_vocab: int, length: int, seed: int = 0) -> np.ndarray:
    """Ids of very unequal frequency; the highest id never occurs."""
    shares = 1.0 / np.arange(1, d_vocab) ** 1.5
    return np.random.default_rng(seed).choice(d_vocab - 1, length, p=shares / shares.sum()).astype(np.uint16)


def distribution(model: NgramModel, context: list[int]) -> np.ndarray:
    """p(w | context) for every w, from one window per w."""
    rows = np.array([[*context, w] for w in range(model.d_vocab)])
    return np.exp(model.log_probabilities(rows)[:, -1])


class MarkovChain:
    """A random chain of order 2 over 6 symbols."""

    size = 6

    def __init__(self, seed: int) -> None:
        self.generator = np.random.default_rng(seed)
        self.table = self.generator.dirichlet(np.full(self.size, 0.5), (self.size, self.size))

    def sample(self, length: int) -> np.ndarray:
        cumulative, draws = self.table.cumsum(-1).tolist(), self.generator.random(length).tolist()
        ids = [0, 1]
        for draw in draws:
            ids.append(min(sum(draw > edge for edge in cumulative[ids[-2]][ids[-1]]), self.size - 1))
        return np.array(ids[2:])

    def entropy(self) -> float:
        """Nats per symbol: the entropy of each row, weighted with the stationary share of its pair."""
        pairs = np.full((self.size, self.size), 1 / self.size**2)
        for _ in range(500):
            pairs = np.einsum("ab,abc->bc", pairs, self.table)
        return -float(np.einsum("ab,abc,abc->", pairs, self.table, np.log(self.table)))


@pytest.mark.parametrize(("order", "d_vocab", "length"), [(1, 40, 400), (2, 12, 300), (3, 9, 500), (5, 6, 800)])
def test_it_agrees_with_the_plain_definition(order: int, d_vocab: int, length: int) -> None:
    stream = skewed_stream(d_vocab, length)
    rows = np.random.default_rng(1).integers(0, d_vocab, (6, 9))
    rows[:3] = stream[:27].reshape(3, 9)  # contexts that occur, beside those that mostly do not
    plain = PlainKneserNey(stream.tolist(), order, d_vocab)
    model = NgramModel.fit(stream, order, d_vocab)
    np.testing.assert_allclose(model.discounts, [plain.discounts[k] for k in range(1, order + 1)], rtol=1e-12)
    assert (model.discounts[-1] != FALLBACK_DISCOUNTS).all()  # the highest order is estimated, not assumed
    expected = [plain.log_probabilities(row) for row in rows.tolist()]
    np.testing.assert_allclose(model.log_probabilities(rows), expected, rtol=1e-10)
    assert model.mean_loss(rows) == pytest.approx(-np.mean(expected))


@given(st.lists(st.integers(0, 3), min_size=4, max_size=60), st.integers(1, 4), st.data())
def test_any_short_stream_agrees_with_the_plain_definition(stream: list[int], order: int, data: st.DataObject) -> None:
    row = data.draw(st.lists(st.integers(0, 4), min_size=2, max_size=7))
    model = NgramModel.fit(np.array(stream), order, d_vocab=5)
    expected = PlainKneserNey(stream, order, 5).log_probabilities(row)
    np.testing.assert_allclose(model.log_probabilities(np.array([row]))[0], expected, rtol=1e-10)


def test_a_bigram_model_by_hand() -> None:
    # Pairs of the ring: 01 01 10 10 02 20.  Predecessors: two of 0, one of 1, one of 2.  Nothing occurs three times.
    model = NgramModel.fit(np.array([0, 1, 0, 1, 0, 2]), order=2, d_vocab=4)
    assert model.discounts.tolist() == [[0.5, 1.0, 1.5]] * 2
    unigram = np.array([3 / 8, 1 / 4, 1 / 4, 1 / 8])  # ([2 - 1, 1 - 0.5, 1 - 0.5, 0] + (1 + 0.5 + 0.5) / 4) / 4
    after_0 = np.array([0, 2 - 1, 1 - 0.5, 0]) / 3 + (1 + 0.5) / 3 * unigram
    np.testing.assert_allclose(distribution(model, [0]), after_0)
    np.testing.assert_allclose(distribution(model, [3]), unigram)  # 3 never occurs


@pytest.mark.parametrize(
    ("occurrences", "expected"),
    [
        ([1, 1, 1, 1, 2, 2, 3, 4], [0.5, 1.25, 1.0]),  # N = 4, 2, 1, 1: Y = 1/2
        ([1, 1, 2, 3], [0.5, 0.5, 3.0]),  # N_4 = 0: all of a count of three is given away
        ([1, 2, 3, 3, 3, 3], FALLBACK_DISCOUNTS),  # D(2) = 2 - 3 * 1/3 * 4 < 0
        ([1, 1, 2, 4], FALLBACK_DISCOUNTS),  # N_3 = 0
    ],
)
def test_discounts_by_hand(occurrences: list[int], expected: list[float]) -> None:
    stream = np.repeat(np.arange(len(occurrences)), occurrences)
    np.testing.assert_allclose(NgramModel.fit(stream, order=1, d_vocab=9).discounts, [expected])


@pytest.mark.parametrize("order", [1, 2, 4])
def test_probabilities_sum_to_one(order: int) -> None:
    stream = skewed_stream(20, 2000)
    model = NgramModel.fit(stream, order, d_vocab=20)
    generator = np.random.default_rng(2)
    seen = [stream[i : i + 5].tolist() for i in generator.integers(0, 1900, 8)]
    unseen = [*generator.integers(0, 20, (8, 5)).tolist(), [19] * 5, [19]]
    for context in seen + unseen:
        probabilities = distribution(model, context)
        assert probabilities.min() > 0
        assert probabilities.sum() == pytest.approx(1, abs=1e-12)


def test_the_stream_is_a_ring() -> None:
    stream, rows = skewed_stream(10, 300), skewed_stream(10, 60, seed=3).reshape(4, 15)
    turned = NgramModel.fit(np.roll(stream, 77), 4, 10).log_probabilities(rows)
    np.testing.assert_array_equal(turned, NgramModel.fit(stream, 4, 10).log_probabilities(rows))


def test_a_context_stays_in_its_window_and_ends_at_bos() -> None:
    model = NgramModel.fit(skewed_stream(12, 3000), order=4, d_vocab=12)
    rows = skewed_stream(12, 200, seed=4).reshape(10, 20)
    together = model.log_probabilities(rows)
    alone = np.concatenate([model.log_probabilities(row[None]) for row in rows])
    np.testing.assert_array_equal(together, alone)
    last_four = np.stack([model.log_probabilities(rows[:, t - 3 : t + 1])[:, -1] for t in range(3, 20)], axis=1)
    np.testing.assert_array_equal(together[:, 2:], last_four)
    bos = np.full((10, 1), 11)  # an id that the stream lacks
    np.testing.assert_allclose(model.log_probabilities(np.hstack([bos, rows]))[:, 1:], together, rtol=1e-12)


def test_the_loss_approaches_the_entropy_of_a_markov_chain() -> None:
    chain = MarkovChain(seed=0)
    stream, rows = chain.sample(100_000), chain.sample(40_000).reshape(400, 100)
    true = -np.log(chain.table[rows[:, :-2], rows[:, 1:-1], rows[:, 2:]])
    assert true.mean() == pytest.approx(chain.entropy(), abs=4 * true.std() / math.sqrt(true.size))

    def excess(order: int, tokens: int) -> float:
        """Over the chain's own loss, on the symbols with two symbols of context in the window."""
        model = NgramModel.fit(stream[:tokens], order, chain.size)
        return -model.log_probabilities(rows)[:, 1:].mean() - true.mean()

    for order, tokens in itertools.product((3, 5), (20_000, 100_000)):
        free_parameters = chain.size ** (order - 1) * (chain.size - 1)
        assert (
            0 < excess(order, tokens) < 2 * free_parameters / (2 * tokens)
        )  # twice what unsmoothed counts cost on average
    assert excess(5, 100_000) < excess(5, 20_000) / 2
    assert excess(1, 100_000) > excess(2, 100_000) + 0.1 > 0.2


def test_more_context_helps_on_text() -> None:
    _, tokenizer = tiny.load(tiny.DEFAULT, None, dtype=torch.float32)
    ids = np.array(tokenizer(tiny.held_out_text(), add_special_tokens=False)["input_ids"], dtype=np.uint16)
    stream, rows = ids[:-2048], ids[-2048:].reshape(8, 256)
    losses = [NgramModel.fit(stream, order).mean_loss(rows) for order in (1, 2, 5)]
    assert math.log(512) - 0.5 > losses[0] > losses[1] + 0.5 > losses[2] + 0.5


class BigramNetwork(nn.Module):
    """The bigram model as a network, that keeps the windows it is given."""

    def __init__(self, model: NgramModel) -> None:
        super().__init__()
        size = model.d_vocab
        pairs = np.array(list(itertools.product(range(size), repeat=2)))
        table = torch.from_numpy(model.log_probabilities(pairs).reshape(size, size))
        self.table = nn.Parameter(table, requires_grad=False)
        self.seen: list[Tensor] = []

    def forward(self, input_ids: Tensor, use_cache: bool) -> SimpleNamespace:
        self.seen.append(input_ids)
        return SimpleNamespace(logits=self.table[input_ids])


def test_the_loss_is_that_of_the_training_script() -> None:
    network = BigramNetwork(model := NgramModel.fit(skewed_stream(12, 3000), order=2, d_vocab=12))
    expected = held_out_loss(network, skewed_stream(12, 900, seed=5), Recipe(n_ctx=64), bos_id=11)
    assert model.mean_loss(torch.cat(network.seen).numpy()) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("stream", "order", "d_vocab", "given_in_words"),
    [
        ([0, 1, 2], 0, 4, "order=0"),
        ([0, 1, 2], 8, 512, "order=8"),  # keys of 72 bits
        ([0, 1], 3, 4, "a stream of 2 tokens"),
        ([0, 1, 4], 2, 4, "ids from 0 to 4"),
        ([0, -1, 3], 2, 4, "ids from -1 to 3"),
    ],
)
def test_it_refuses_a_stream_that_it_cannot_count(
    stream: list[int], order: int, d_vocab: int, given_in_words: str
) -> None:
    with pytest.raises(InputError, match=given_in_words):
        NgramModel.fit(np.array(stream), order, d_vocab)


@pytest.mark.parametrize(
    ("rows", "given_in_words"),
    [
        ([[0], [1]], r"windows of shape \(2, 1\)"),
        (np.zeros((0, 5), dtype=int), r"windows of shape \(0, 5\)"),
        ([[0, 4]], "ids from 0 to 4"),
        ([[-1, 0]], "ids from -1 to 0"),
    ],
)
def test_it_refuses_windows_without_a_prediction(rows: list[list[int]] | np.ndarray, given_in_words: str) -> None:
    model = NgramModel.fit(np.array([0, 1, 2, 3]), 2, 4)
    with pytest.raises(InputError, match=given_in_words):
        model.mean_loss(np.array(rows))
