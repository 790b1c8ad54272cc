"""One token many times over: the stimulus that shows whether repeats turn into an attention sink.

Built from ids, never from text: joining words with blanks gives a pure repeat only under SentencePiece; under
byte-level BPE the first word of a text is another token than the same word after a blank.  With and without BOS are
different experiments, so the choice is part of the value.

Random ids repeated: the stimulus on which attention heads are told apart, because nothing but the copy helps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mechrep.errors import InputError
from mechrep.guards import Count, Seed, Several, Whole, check_fields, each_once, guarded
from mechrep.models.model import Model
from mechrep.text.corpus import Corpus
from mechrep.text.corpus_io import TokenizingModel
from mechrep.text.token_kinds import ordinary_ids

_PROBE_COPIES = 3  # the first word of a text, and two after a blank


@dataclass(frozen=True)
class RepeatedToken:
    """``token_id`` repeated ``n`` times, after BOS or not; a value that any model can turn into ids.

    Attributes:
        token_id: the token.
        n: number of copies.
        bos: whether BOS comes first.

    Raises:
        InputError: a negative id, or fewer than one copy.
    """

    token_id: Whole
    n: Count
    bos: bool = True

    def __post_init__(self) -> None:
        check_fields(self)

    def ids(self, bos_id: int | None) -> list[int]:
        """The ids of the text.

        Args:
            bos_id: the model's BOS; not looked at where ``bos`` is False.

        Raises:
            InputError: BOS is wanted and there is none.
        """
        if self.bos and bos_id is None:
            raise InputError("a repeated token after BOS", "a model that has a BOS", "pass bos=False")
        return [*([bos_id] if self.bos and bos_id is not None else []), *[self.token_id] * self.n]

    def corpus(self, model: TokenizingModel) -> Corpus:
        """The text as a corpus of one; see :func:`repeated_tokens`."""
        return repeated_tokens(model, [self.token_id], self.n, self.bos)


def repeated_token(token_id: int, n: int, bos: bool = True) -> RepeatedToken:
    """One token ``n`` times, after BOS or not.

    Args:
        token_id: the token; :func:`single_token_id` finds the id of a word.
        n: number of copies, at least 1.
        bos: whether BOS comes first.  Pure repeats with and without BOS are different experiments: without it every
            position of a rotary model is in the same state.

    Returns:
        A value with ``ids(bos_id)`` and ``corpus(model)``: which id is BOS depends on the model.

    Raises:
        InputError: a negative id, or fewer than one copy.

    Source: the stimulus of Yona et al. 2025 (arXiv 2503.08908), whose released code repeats text.

    Example:
        >>> repeated_token(7, 4).ids(bos_id=0)
        [0, 7, 7, 7, 7]
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> repeated_token(300, 3, bos=False).corpus(model).row(0)
        [300, 300, 300]
    """
    return RepeatedToken(token_id, n, bos)


@guarded
def repeated_tokens(model: TokenizingModel, tokens: Sequence[int | str], n: int, bos: bool = True) -> Corpus:
    """A corpus of one text per token, each ``n`` copies of it.

    Args:
        model: whose ids and BOS.
        tokens: ids, or words that are a single token; none twice.
        n: copies in every text.
        bos: whether every text begins with BOS.

    Returns:
        A corpus whose frame says ``token_id``, ``repeats`` and ``bos`` of every text.

    Raises:
        InputError: no tokens, a word of several tokens or whose token is ambiguous, an id outside the vocabulary or
            twice, a text longer than the model reads, or BOS for a model without one.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> corpus = repeated_tokens(model, [300, 301], 5)
        >>> corpus.frame[["token_id", "repeats", "bos"]].values.tolist(), corpus.lengths.tolist()
        ([[300, 5, True], [301, 5, True]], [6, 6])
    """
    ids = [single_token_id(model, token) if isinstance(token, str) else token for token in tokens]
    each_once("tokens", ids, least=0)
    rows = [RepeatedToken(token, n, bos).ids(model.bos_id) for token in ids]
    frame = pd.DataFrame(
        {"id": [f"repeated-{token}" for token in ids], "token_id": ids, "repeats": n, "bos": bool(bos)},
        index=range(len(ids)),
    )
    return Corpus.from_tokens(
        rows,
        model=model,
        attention_mask=True,
        source="repeated",
        frame=frame,
        bos_policy="prepended" if bos else "absent",
    )


def single_token_id(model: TokenizingModel, word: str) -> int:
    """The id of a word that is one token, and the same token wherever it stands.

    A byte-level BPE has two ids for a word: one for the first word of a text and one, with the blank inside, for all
    others.  A word given with its leading blank (``" the"``) means the second and is not ambiguous.

    Args:
        model: whose tokenizer.
        word: the word.

    Raises:
        InputError: several tokens, or another token after a blank than at the start of a text (both are named).

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> model.decode([single_token_id(model, " the")])
        ' the'
    """
    ids = model.encode(word, prepend_bos=False)
    if len(ids) != 1:
        raise InputError(f"{word!r}, which is the tokens {ids}", "a word of one token", "choose another, or pass an id")
    joined = [] if word[:1].isspace() else model.encode(" ".join([word] * _PROBE_COPIES), prepend_bos=False)
    if set(joined) - set(ids):
        raise InputError(
            f"{word!r}, which is token {ids[0]} at the start of a text and {joined[1:]} in two later places",
            "a word that is the same token everywhere",
            f"pass the id that is meant, or the word with its blank, {' ' + word!r}",
        )
    return ids[0]


@guarded
def random_repeats(
    model: Model, *, n: Count = 50, copies: Several = 2, sequences: Count = 32, seed: Seed = 0, bos: bool | None = None
) -> Corpus:
    """Texts ``[BOS] + r * copies``, where ``r`` is ``n`` different ids drawn uniformly from the ordinary tokens.

    The texts are ids from the start: to decode random ids and encode them again can break the repeat.  Drawing
    *without replacement* leaves no repeated token but the planned ones.  Ordinary tokens are
    those of :func:`mechrep.text.token_kinds.ordinary_ids`: neither marks nor slots without training.

    Args:
        model: the model that will read the texts.
        n: length of ``r``, the period.
        copies: how often ``r`` stands in each text.
        sequences: number of texts.
        seed: of the draws; the first ``k`` texts do not depend on ``sequences``.
        bos: whether the texts begin with BOS.  Default: they do, if the model has one; ``corpus.bos_policy`` tells.

    Returns:
        A corpus whose frame says where the copies lie, as :meth:`Corpus.with_cycles` would: ``start`` (first position
        of the first copy, 1 with BOS), ``onset`` (first position of the second), ``period`` and ``copies``.

    Raises:
        InputError: fewer than 1 id, 2 copies or 1 text, texts longer than the model reads, more different ids than
            there are ordinary tokens, or ``bos=True`` for a model without BOS.

    Source:
        Olsson et al. 2022 (arXiv 2209.11895) read induction heads off repeated random tokens.

    Limits:
        Such texts are far from what the model was trained on.  A head that copies here may do other things in prose.

    Example:
        >>> import mechrep
        >>> corpus = random_repeats(mechrep.load_model("mechrep-tiny"), n=3, sequences=2)
        >>> [text[1:4] == text[4:] and len(set(text)) == 4 for text in map(corpus.row, range(2))]
        [True, True]
        >>> corpus.frame[["start", "onset", "period", "copies"]].values.tolist()
        [[1, 4, 3, 2.0], [1, 4, 3, 2.0]]
    """
    if bos and model.bos_id is None:
        raise InputError(f"bos=True for {model.name!r}, which has no BOS", "a model with a BOS id", "pass bos=False")
    prefix = [model.bos_id] if model.bos_id is not None and bos is not False else []
    length = len(prefix) + n * copies
    if length > model.anatomy.n_ctx:
        raise InputError(
            f"n={n}, copies={copies}: {length} tokens with BOS"
            if prefix
            else f"n={n}, copies={copies}: {length} tokens",
            f"at most n_ctx = {model.anatomy.n_ctx} tokens",
            "choose a smaller n or fewer copies",
        )
    ordinary = ordinary_ids(model)
    if n > len(ordinary):
        raise InputError(
            f"n={n} different ids",
            f"at most the {len(ordinary)} ordinary tokens of {model.name!r}",
            "choose a smaller n",
        )
    draw = np.random.default_rng(seed)
    texts = [[*prefix, *draw.choice(ordinary, n, replace=False).tolist() * copies] for _ in range(sequences)]
    facts = {"start": len(prefix), "onset": len(prefix) + n, "period": n, "copies": float(copies)}
    frame = pd.DataFrame({"id": [f"random-{n}x{copies}-{seed}-{text}" for text in range(sequences)], **facts})
    policy = "prepended" if prefix else "absent"
    return Corpus.from_tokens(
        texts, model=model, attention_mask=True, source="random_repeats", frame=frame, bos_policy=policy
    )
