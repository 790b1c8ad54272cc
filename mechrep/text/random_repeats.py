"""Random ids repeated: the stimulus on which attention heads are told apart, because nothing but the copy helps."""

from __future__ import annotations

import numpy as np
import pandas as pd

from mechrep.errors import InputError
from mechrep.models.model import Model
from mechrep.text.corpus import Corpus


def random_repeats(
    model: Model, *, n: int = 50, copies: int = 2, sequences: int = 32, seed: int = 0, bos: bool | None = None
) -> Corpus:
    """Texts ``[BOS] + r * copies``, where ``r`` is ``n`` different ids drawn uniformly from the ordinary tokens.

    The texts are ids from the start: to decode random ids and encode them again can break the repeat.  Drawing
    *without replacement* leaves no repeated token but the planned ones.  Ordinary tokens are all ids of the
    tokenizer's vocabulary (of the whole vocabulary, for a model without tokenizer) except ``model.special_ids``; rows
    of the embedding that belong to no token are never drawn.

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
    if min(n, sequences) < 1 or copies < 2:
        raise InputError(
            f"n={n}, copies={copies}, sequences={sequences}", "n >= 1, copies >= 2, sequences >= 1", "correct them"
        )
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
    return Corpus.from_tokens(texts, model=model, source="random_repeats", frame=frame, bos_policy=policy)


def ordinary_ids(model: Model) -> np.ndarray:
    """Ids that stand for a piece of text, ascending."""
    d_vocab = model.anatomy.d_vocab
    known = range(d_vocab) if model.tokenizer is None else model.tokenizer.get_vocab().values()
    return np.array(sorted({token for token in known if token < d_vocab} - model.special_ids), dtype=np.int64)
