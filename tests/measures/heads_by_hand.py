"""Attention made by hand, and ``HeadScores`` as plainly as it can be written: loops over texts, heads and queries.

The definitions are those of the table in ``mechrep/analyzers/head_targets.py``, query by query; nothing of mechrep
takes part but the corpus that carries the ids.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch

from mechrep.cache import Batch
from mechrep.measures.head_scores import HeadScoreResult, HeadScores
from mechrep.models.anatomy import Site
from mechrep.text.corpus import Corpus
from tests.analyzers.by_hand import PROVENANCE, anatomy

NAMES = ("induction", "duplicate_token", "previous_token", "current_token", "first_token")
BOS = 0


@dataclass(frozen=True)
class Text:
    """Ids, where their loop lies (None: nowhere), and the attention ``[layer head query key]`` of two heads each."""

    ids: list[int]
    pattern: np.ndarray
    loop: tuple[int, int, int] | None = None  # start, period, end


def random_pattern(draw: np.random.Generator, length: int, layers: int = 2, heads: int = 2) -> np.ndarray:
    """Causal rows that sum to 1, some of them on the first key alone."""
    weights = np.tril(draw.exponential(size=(layers, heads, length, length)) ** 3) + 0.0
    weights[draw.random(weights.shape[:3]) < 0.1, 1:] = 0
    return weights / weights.sum(-1, keepdims=True)


def repeated(r: Sequence[int], copies: int = 2, bos: bool = True) -> list[int]:
    """Copies of ``r`` behind a BOS."""
    return [BOS] * bos + list(r) * copies


def one_head(ids: Sequence[int], looks_at: Callable[[int], int | Sequence[int]]) -> np.ndarray:
    """A pattern ``[1, 1, T, T]``: each query spreads its attention evenly over the keys that it looks at."""
    pattern = np.zeros((1, 1, len(ids), len(ids)))
    for query in range(len(ids)):
        keys = looks_at(query)
        keys = [keys] if isinstance(keys, int) else list(keys)
        pattern[0, 0, query, keys] = 1 / len(keys)
    return pattern


def two_heads(pattern: np.ndarray) -> np.ndarray:
    """The stand-in anatomy has two heads: the same one twice."""
    return np.repeat(pattern, 2, axis=1)


def text(
    ids: list[int], looks_at: Callable[[int], int | Sequence[int]], loop: tuple[int, int, int] | None = None
) -> Text:
    return Text(ids, two_heads(one_head(ids, looks_at)), loop)


def induction_key(ids: list[int], rest: int | None = 0) -> Callable[[int], int]:
    """Where a perfect induction head looks: at the newest target, else at ``rest`` (None: at itself)."""

    def looks_at(i: int) -> int:
        found = copies_of(Text(ids, np.zeros(0)), i, Rules(copies="newest"))
        return found[0] + 1 if found else (i if rest is None else rest)

    return looks_at


def mixed_texts(seed: int, n: int = 7) -> list[Text]:
    """Few words, so accidental repeats are everywhere; some texts begin with BOS, some loop; all lengths differ."""
    draw = np.random.default_rng(seed)
    texts = []
    for number in range(n):
        start, period = int(draw.integers(1, 8)), (1, 2, 3, 5, 4)[number % 5]
        cycle, copies = draw.integers(3, 11, period).tolist(), int(draw.integers(2, 4))
        tail = draw.integers(3, 11, int(draw.integers(0, 4))).tolist()  # what follows the loop
        ids = [*draw.integers(3, 11, start).tolist(), *cycle * copies, *tail]
        if number % 3:
            ids[0] = BOS
        loop = None if number == 3 else (start, period, start + period * copies)
        texts.append(Text(ids, random_pattern(draw, len(ids)), loop))
    return texts


# -- mechrep ----------------------------------------------------------------------------------------------------------


def as_corpus(texts: Sequence[Text], name: str = "text") -> Corpus:
    loops = [text.loop or (None, None, None) for text in texts]
    frame = pd.DataFrame(
        {
            "id": [f"{name}-{i}" for i in range(len(texts))],
            "start": [start for start, _, _ in loops],
            "onset": [None if start is None else start + period for start, period, _ in loops],
            "period": [period for _, period, _ in loops],
            "copies": [np.nan if start is None else (end - start) / period for start, period, end in loops],
        }
    )
    return Corpus.from_tokens([text.ids for text in texts], frame=frame)


def observed(
    texts: Sequence[Text], *, batch_size: int = 100, padding: float = np.nan, name: str = "text", **options: object
) -> HeadScores:
    """An analyzer that has seen the patterns, layer by layer; what stands in the padding must never count."""
    analyzer = HeadScores(**({"bos_id": BOS} | options))  # pyright: ignore[reportArgumentType]
    corpus = as_corpus(texts, name)
    layers = texts[0].pattern.shape[0]
    analyzer.prepare(anatomy(layers, 4), corpus.frame)
    for first in range(0, len(texts), batch_size):
        rows = list(range(first, min(first + batch_size, len(texts))))
        lengths = corpus.lengths[rows]
        width = int(lengths.max())
        batch = Batch(corpus.tokens[rows][:, :width], lengths, tuple(rows), corpus.frame.iloc[rows])
        for layer in range(layers):
            padded = torch.full((len(rows), 2, width, width), padding, dtype=torch.float64)
            for place, row in enumerate(rows):
                size = len(texts[row].ids)
                padded[place, :, :size] = 0
                padded[place, :, :size, :size] = torch.from_numpy(texts[row].pattern[layer])
            before = padded.clone()
            analyzer.observe(padded, analyzer_site(analyzer), layer, batch)
            assert torch.equal(padded.nan_to_num(7.0), before.nan_to_num(7.0)), "the pattern is the model's own"
        analyzer.finish_batch(batch)
    return analyzer


def analyzer_site(analyzer: HeadScores) -> Site:
    (site,) = analyzer.sites
    return site


def result_of(texts: Sequence[Text], **options: object) -> HeadScoreResult:
    """What the analyzer says that has seen the texts."""
    return observed(texts, **options).result(PROVENANCE)  # pyright: ignore[reportArgumentType]


# -- the same by loops ------------------------------------------------------------------------------------------------


@dataclass
class Rules:
    """Settings of the oracle, named as in mechrep."""

    copies: str = "all"
    form: str = "id"
    queries: str = "all"
    positions: int | None = None
    average: str | float = "query"


@dataclass
class Found:
    """The numbers of the oracle."""

    scores: np.ndarray
    standard_errors: np.ndarray
    chance: np.ndarray
    without_sink: np.ndarray
    dropped: np.ndarray
    unexplained: np.ndarray
    n_queries: list[int] = field(default_factory=list)


def copies_of(text: Text, i: int, rules: Rules) -> list[int]:
    """Earlier copies of query ``i``."""
    if rules.form == "aligned":
        if text.loop is None:
            return []
        start, period, end = text.loop
        found = [i - m * period for m in range(1, i + 1) if i - m * period >= start] if i < end else []
    else:
        bos = int(text.ids[0] == BOS)
        found = [j for j in range(bos, i) if text.ids[j] == text.ids[i]]
    found.sort()
    return {"all": found, "newest": found[-1:], "oldest": found[:1]}[rules.copies]


def targets_of(text: Text, i: int, name: str, rules: Rules) -> list[int]:
    """Target keys of query ``i``."""
    bos = int(text.ids[0] == BOS)
    if name == "induction":
        return [j + 1 for j in copies_of(text, i, rules)]
    if name == "duplicate_token":
        return copies_of(text, i, rules)
    if i < 1:
        return []
    if name == "previous_token":
        return [i - 1] if i >= 1 + bos else []
    return [i] if name == "current_token" else [0]


def confounded(text: Text, name: str, rules: Rules) -> bool:
    period = None if text.loop is None else text.loop[1]
    if period == 1:
        return name != "first_token"
    return period == 2 and rules.copies == "newest" and name == "induction"


def queries_of(text: Text, rules: Rules) -> list[int]:
    every = list(range(len(text.ids)))
    if rules.queries == "all":
        return every
    if text.loop is None:
        return []
    onset = text.loop[0] + text.loop[1]
    return every[onset:] if rules.positions is None else every[onset : onset + rules.positions]


def mean_over(per_text: Sequence[Sequence[float]], rules: Rules) -> float:
    """The average of the rules over texts, each a list of one value per query."""
    used = [values for values in per_text if len(values)]
    if rules.average == "query":
        return float(np.mean([value for values in used for value in values])) if used else np.nan
    means = [float(np.mean(values)) for values in used]
    if isinstance(rules.average, float):
        means = [float(mean > rules.average) for mean in means]
    return float(np.mean(means)) if means else np.nan


def error_over(per_text: Sequence[Sequence[float]], rules: Rules) -> float:
    """Standard error with the text as the unit; of a ratio of sums, by its residuals."""
    used = [values for values in per_text if len(values)]
    n = len(used)
    if n < 2:
        return np.nan
    if rules.average != "query":
        means = [mean_over([values], rules) for values in used]
        return float(np.std(means, ddof=1) / np.sqrt(n))
    mean = mean_over(per_text, rules)
    residuals = [sum(values) - mean * len(values) for values in used]
    return float(np.sqrt(n / (n - 1) * np.sum(np.square(residuals))) / sum(map(len, used)))


def oracle(texts: Sequence[Text], rules: Rules) -> Found:
    """All numbers of ``HeadScores``, one query after the other."""
    layers, heads = texts[0].pattern.shape[:2]
    shape = (len(NAMES), layers, heads)
    found = Found(*(np.full(shape, np.nan) for _ in range(2)), np.full(len(NAMES), np.nan), *(
        np.full(shape, np.nan), np.zeros(shape), np.full((layers, heads), np.nan)
    ))  # fmt: skip
    for number, name in enumerate(NAMES):
        jobs = [
            [(i, keys) for i in queries_of(text, rules) if (keys := targets_of(text, i, name, rules))]
            if not confounded(text, name, rules)
            else []
            for text in texts
        ]
        found.n_queries.append(sum(map(len, jobs)))
        found.chance[number] = mean_over([[len(keys) / (i + 1) for i, keys in job] for job in jobs], rules)
        for layer in range(layers):
            for head in range(heads):
                values = [
                    [text.pattern[layer, head, i, keys].sum() for i, keys in job]
                    for text, job in zip(texts, jobs, strict=True)
                ]
                found.scores[number, layer, head] = mean_over(values, rules)
                found.standard_errors[number, layer, head] = error_over(values, rules)
                rest, dropped = without_sink(texts, jobs, layer, head)
                found.without_sink[number, layer, head] = mean_over(rest, rules)
                found.dropped[number, layer, head] = dropped
    for layer in range(layers):
        for head in range(heads):
            left = [
                [1 - text.pattern[layer, head, i, union(text, i, rules)].sum() for i in queries_of(text, rules) if i]
                for text in texts
            ]
            if not isinstance(rules.average, float):
                found.unexplained[layer, head] = mean_over(left, rules)
    return found


def union(text: Text, i: int, rules: Rules) -> list[int]:
    return sorted({key for name in NAMES for key in targets_of(text, i, name, rules)})


def without_sink(
    texts: Sequence[Text], jobs: Sequence[Sequence[tuple[int, list[int]]]], layer: int, head: int
) -> tuple[list[list[float]], int]:
    values, dropped = [], 0
    for text, job in zip(texts, jobs, strict=True):
        values.append([])
        for i, keys in job:
            keys = [key for key in keys if key > 0]
            row = text.pattern[layer, head, i]
            if keys and row[1:].sum() < 1e-6:
                dropped += 1
            elif keys:
                values[-1].append(row[keys].sum() / row[1:].sum())
    return values, dropped
