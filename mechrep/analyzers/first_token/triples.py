"""Three consecutive tokens, over and over: the stimulus in which only the place tells a first token from the others.

The triples overlap, each beginning one token after the one before.  So every token of the text (but for two at either
end) is once the first, once the second and once the third: who the token is says nothing about its place.  BOS never
takes part, as it would be told by its identity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mechrep.errors import InputError
from mechrep.models import tiny
from mechrep.models.model import Model
from mechrep.text.corpus import Corpus

WIDTH = 3
_FEWEST = 20  # triples; below, halves of halves are left to a handful of tokens
_LIMIT = 1000  # of Yona et al. 2025


@dataclass(frozen=True)
class Triples:
    """Triples and who is allowed to learn from what.

    Observations are counted triple by triple: number ``3 i + p`` is the token at place ``p`` of triple ``i``.

    Attributes:
        tokens: the triples.
        selection: observations that neurons are chosen with: first half of the text, one half of the vocabulary.
        test: observations that they are judged by: second half of the text, the other half of the vocabulary.
    """

    tokens: Int[Tensor, "triple 3"]
    selection: Bool[np.ndarray, " token"]
    test: Bool[np.ndarray, " token"]

    @property
    def ids(self) -> Int[np.ndarray, " token"]:
        """The token of each observation."""
        return self.tokens.flatten().numpy()

    @property
    def places(self) -> Int[np.ndarray, " token"]:
        """Its place: 0, 1 or 2."""
        return np.tile(np.arange(WIDTH), len(self.tokens))


def corpus_of(model: Model, texts: Corpus | Sequence[str] | None) -> Corpus:
    """The texts that an analysis is given: a corpus of the model, texts, or by default held-out English.

    Raises:
        InputError: a corpus of another model, or no tokenizer and no corpus.
    """
    if isinstance(texts, Corpus):
        texts.check_model(model)
        return texts
    if model.tokenizer is None:
        raise InputError(
            f"{model.name}, which has no tokenizer", "a corpus of ids", "pass texts=Corpus.from_tokens(...)"
        )
    if texts is not None:
        return Corpus.from_texts(texts, model=model)
    ids = model.encode(tiny.held_out_text(), prepend_bos=False)
    length = min(model.anatomy.n_ctx, len(ids))
    starts = range(0, len(ids) - length + 1, length)
    return Corpus.from_tokens([ids[start : start + length] for start in starts], model=model, bos_policy="absent")


def triples_of(model: Model, corpus: Corpus, *, limit: int = _LIMIT, seed: int = 0) -> Triples:
    """All triples of consecutive ordinary tokens, in the order of the corpus.

    Args:
        model: whose special ids take no part.
        corpus: texts, none of which need begin with BOS.
        limit: at most so many triples.
        seed: of the halves of the vocabulary.

    Raises:
        InputError: too few triples, or halves without tokens at all three places.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> triples = triples_of(model, corpus_of(model, None), limit=50)
        >>> triples.tokens.shape, bool((triples.tokens[1:, 0] == triples.tokens[:-1, 1]).all())
        (torch.Size([50, 3]), True)
    """
    rows: list[list[int]] = []
    for text in range(len(corpus)):
        ids = corpus.row(text)
        windows = (ids[start : start + WIDTH] for start in range(len(ids) - WIDTH + 1))
        rows += [window for window in windows if not model.special_ids.intersection(window)]
        if len(rows) >= limit:
            break
    tokens = torch.tensor(rows[:limit], dtype=torch.long).reshape(-1, WIDTH)
    vocabulary = tokens.unique().numpy()
    chosen = np.random.default_rng(seed).permutation(vocabulary)[: len(vocabulary) // 2]
    known = np.isin(tokens.flatten().numpy(), chosen)
    early = np.repeat(np.arange(len(tokens)) < len(tokens) // 2, WIDTH)
    triples = Triples(tokens, known & early, ~known & ~early)
    for half in (triples.selection, triples.test):
        if len(tokens) < _FEWEST or len(set(triples.places[half])) < WIDTH:
            raise InputError(
                f"{len(tokens)} triples of consecutive tokens without special ones",
                f"at least {_FEWEST}, of enough different tokens to keep some aside",
                "use longer texts, or raise limit",
            )
    return triples
