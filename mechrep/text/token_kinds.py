"""Which ids stand for a piece of text, and of what kind: whatever draws tokens at random draws them from here.

A vocabulary holds more than text: marks such as ``<|im_start|>``, bytes such as ``<0xE3>``, slots that nothing was ever
trained on.  A model that reads those says nothing about text.  Marks and bytes are told by their names; slots without
training by the embedding, because names do not tell (``SolidGoldMagikarp`` looks like text).
"""

from __future__ import annotations

import re
import unicodedata
import weakref
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from mechrep.guards import Count, guarded
from mechrep.models import tiny
from mechrep.models.model import Model

KINDS = ("frequent", "rare", "punctuation", "subword")
FREQUENT = 0.5  # the share of a text's words that frequent words make up
# An untrained row lies on another one, or near zero: by these shares of what is usual in the same matrix.
ON_ANOTHER, NEAR_ZERO = 0.1, 0.25
_SAMPLE = 64  # rows that tell how far the nearest neighbour usually is
_TABLES, _BITS, _MATES = 8, 30, 4  # hash tables, bits of a key, rows of the same key that a row is compared with
_ROWS = 16_384  # of a matrix, at once
_ANCHOR = "a"  # a token is decoded behind it, so that the blank in front of a word is seen
_NO_CHARACTER = "\ufffd"  # what decoders write for bytes that are no character
_ANGLES, _SQUARES = re.compile(r"<[^\s<>]+>"), re.compile(r"\[[^\s\[\]]+\]")
_PAIR = 2


class _Vocabulary(NamedTuple):
    """What is kept of a model: what it was worked out for, its ordinary ids, and the text of each."""

    state: tuple[Any, ...]
    ids: np.ndarray
    texts: list[str] | None
    kinds: dict[str, list[int]]


_known: weakref.WeakKeyDictionary[Model, _Vocabulary] = weakref.WeakKeyDictionary()


def ordinary_ids(model: Model) -> np.ndarray:
    """Ids that stand for a piece of text and were trained, ascending.

    Left out are special tokens; marks and bytes, which are added tokens in brackets and all tokens ``<...>``; ids
    without a token; and ids whose embedding was never trained, see :func:`untrained_rows`.

    Args:
        model: its tokenizer and its embedding are read once and again when either has changed.

    Returns:
        Ids, for a model without tokenizer all that are not special and were trained.

    Limits: a byte-level vocabulary has pieces that are parts of a character.  They are left in, although some of them
    may hardly have occurred in training; of :func:`token_kinds` they are of no kind.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> ids = ordinary_ids(model)
        >>> model.bos_id in ids, model.encode(" the", prepend_bos=False)[0] in ids
        (False, True)
    """
    return _vocabulary(model).ids.copy()


def token_kinds(model: Model) -> dict[str, list[int]]:
    """Ordinary ids by kind; no id has two, and many have none.

    *frequent*: words that make up half of the words of the embedded held-out text, the most frequent first.  *rare*:
    words that never occur there.  *punctuation*: neither letters nor digits.  *subword*: letters that go on with a word
    that has begun.  A word is a token of letters behind a blank.

    Args:
        model: the model.

    Returns:
        Ascending ids of each of :data:`KINDS`, frequent ones by frequency; an empty list where there are none.  A model
        without tokenizer has one kind, ``"token"``.

    Limits: the held-out text is English; rare words of a model of many languages are mostly of other languages.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> kinds = token_kinds(model)
        >>> model.decode([kinds["frequent"][0]]), [model.decode([token]) for token in kinds["punctuation"][:3]]
        (' the', ['!', '"', '#'])
    """
    return {kind: list(ids) for kind, ids in _vocabulary(model).kinds.items()}


@guarded
def draw_tokens(model: Model, per_kind: Count, seed: int = 0) -> list[tuple[int, str]]:
    """Tokens of every kind, drawn at random.

    Args:
        model: the model.
        per_kind: so many of each kind; all, where there are fewer.
        seed: of the draws.

    Returns:
        ``(id, kind)``, kind by kind; the first draws of a kind do not depend on how many there are.

    Raises:
        InputError: ``per_kind`` below 1.

    Example:
        >>> import mechrep
        >>> drawn = draw_tokens(mechrep.load_model("mechrep-tiny"), 2)
        >>> [kind for _, kind in drawn]  # so small a vocabulary has no rare words
        ['frequent', 'frequent', 'punctuation', 'punctuation', 'subword', 'subword']
    """
    return [
        (int(ids[place]), kind)
        for number, (kind, ids) in enumerate(token_kinds(model).items())
        for place in np.random.default_rng([seed, number]).permutation(len(ids))[:per_kind]
    ]


def _vocabulary(model: Model) -> _Vocabulary:
    weight = _embedding(model)
    state = (id(weight), getattr(weight, "_version", 0), model.tokenizer_fingerprint, model.special_ids)
    known = _known.get(model)
    if known is None or known.state != state:
        known = _known[model] = _read(model, weight, state)
    return known


def _embedding(model: Model) -> Tensor | None:
    """The rows that tokens are read as; None where they are not in memory as numbers."""
    part: Any = None if model.plain is None else model.plain.get_input_embeddings()  # pyright: ignore
    weight = getattr(part, "weight", None) if model.plain is not None else model.tl.W_E
    usable = isinstance(weight, Tensor) and weight.is_floating_point() and not weight.is_meta
    return weight if usable and weight is not None and len(weight) >= model.anatomy.d_vocab else None


def _read(model: Model, weight: Tensor | None, state: tuple[Any, ...]) -> _Vocabulary:
    d_vocab, tokenizer = model.anatomy.d_vocab, model.tokenizer
    known = range(d_vocab) if tokenizer is None else tokenizer.get_vocab().values()
    ids = np.array(sorted({token for token in known if token < d_vocab} - model.special_ids), dtype=np.int64)
    texts = None
    if tokenizer is not None:
        texts = _texts(tokenizer, ids.tolist())
        added = {number: token.special for number, token in tokenizer.added_tokens_decoder.items()}
        names = tokenizer.convert_ids_to_tokens(ids.tolist())
        of_text = [
            _is_text(name, text, added.get(token)) for token, name, text in zip(ids.tolist(), names, texts, strict=True)
        ]
        ids, texts = ids[of_text], [text for text, chosen in zip(texts, of_text, strict=True) if chosen]
    if weight is not None:
        trained = ~untrained_rows(weight[:d_vocab]).numpy()[ids]
        ids, texts = (
            ids[trained],
            None if texts is None else [t for t, kept in zip(texts, trained, strict=True) if kept],
        )
    kinds = {"token": ids.tolist()} if texts is None else _kinds(model, ids.tolist(), texts)
    return _Vocabulary(state, ids, texts, kinds)


def _texts(tokenizer: Any, ids: list[int]) -> list[str]:
    """What each token adds to a text that it stands in."""
    anchor = tokenizer(_ANCHOR, add_special_tokens=False)["input_ids"]
    options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    before = tokenizer.decode(anchor, **options)
    return [
        text.removeprefix(before) for text in tokenizer.batch_decode([[*anchor, token] for token in ids], **options)
    ]


def _is_text(name: str, text: str, special: bool | None) -> bool:
    """Whether this is text; ``special`` is what the tokenizer says of an added token, and None for all others."""
    if special or not text or _ANGLES.fullmatch(name):
        return False
    return special is None or not _SQUARES.fullmatch(name)


def _kinds(model: Model, ids: list[int], texts: list[str]) -> dict[str, list[int]]:
    words, found = [], {kind: [] for kind in KINDS}
    for token, text in zip(ids, texts, strict=True):
        bare = text.lstrip(" ")
        letters = {unicodedata.category(character)[0] for character in bare}
        if not letters or _NO_CHARACTER in text:
            continue
        if letters <= {"P", "S"}:
            found["punctuation"].append(token)
        elif letters <= {"L", "M"}:
            (words if len(bare) < len(text) else found["subword"]).append(token)
    counts = Counter(model.encode(tiny.held_out_text(), prepend_bos=False))
    found["rare"] = [token for token in words if not counts[token]]
    often = sorted((token for token in words if counts[token]), key=lambda token: (-counts[token], token))
    reached = np.cumsum([counts[token] for token in often])
    if len(often):
        found["frequent"] = often[: int(np.searchsorted(reached, FREQUENT * reached[-1])) + 1]
    return found


@torch.no_grad()
def untrained_rows(weight: Float[Tensor, "d_vocab d_model"]) -> Bool[Tensor, " d_vocab"]:
    """Rows of an embedding that no training told apart: they lie on another row, or near zero.

    What never occurred in training was moved by all losses alike, so such rows end up in one place.  *On another*: the
    distance is less than a tenth of what the nearest neighbour's usually is.  *Near zero*: shorter than a quarter of
    the median length.

    Args:
        weight: one row per token.

    Returns:
        Whether each row is untrained; none is where more than half would be: such a matrix does not tell.

    Limits: rows that were drawn at random before training and never moved cannot be told from trained ones; nor can
    rare tokens that were moved a little.  Rows are looked up by hashing: of two rows that lie just near enough to each
    other, with no third one, one in a hundred is missed.

    Source: that untrained tokens show in the embedding is Land and Bartolo 2024 (arXiv 2405.05417); the measure is
    mechrep's own.

    Example:
        >>> rows = torch.randn(50, 16, generator=torch.Generator().manual_seed(0))
        >>> rows[7], rows[20] = rows[3], 0.0
        >>> untrained_rows(rows).nonzero().flatten().tolist()
        [3, 7, 20]
    """
    weight = weight.detach()
    norms = torch.cat([part.float().norm(dim=1) for part in weight.split(_ROWS)]).cpu()
    small = norms < NEAR_ZERO * norms.median()
    large = (~small).nonzero().flatten()
    if len(large) < _PAIR:
        return torch.zeros_like(small)
    close = torch.zeros_like(small)
    generator = torch.Generator().manual_seed(0)
    limit = ON_ANOTHER * _usual_distance(weight, large, generator)
    for keys in _keys(weight, generator):
        order = large[keys[large].argsort(stable=True)]
        for shift in range(1, min(_MATES + 1, len(order))):
            same = (keys[order[:-shift]] == keys[order[shift:]]) & ~(close[order[:-shift]] & close[order[shift:]])
            first, second = order[:-shift][same], order[shift:][same]
            for one, other in zip(first.split(_ROWS), second.split(_ROWS), strict=True):
                near = _apart(weight, one, other) < limit
                close[one[near]], close[other[near]] = True, True
    found = small | close
    return found if 2 * int(found.sum()) <= len(found) else torch.zeros_like(found)


def _apart(weight: Tensor, one: Int64[Tensor, " row"], other: Int64[Tensor, " row"]) -> Float[Tensor, " row"]:
    one, other = one.to(weight.device), other.to(weight.device)
    return (weight[one].float() - weight[other].float()).norm(dim=1).cpu()


def _usual_distance(weight: Tensor, rows: Int64[Tensor, " row"], generator: torch.Generator) -> float:
    """The median distance of a row from its nearest neighbour."""
    chosen = rows[torch.randperm(len(rows), generator=generator)[:_SAMPLE]].to(weight.device)
    sample = weight[chosen].float()
    nearest = torch.full((len(sample),), torch.inf, device=weight.device)
    for part in torch.arange(len(weight)).split(_ROWS):
        block = part.to(weight.device)
        distances = torch.cdist(sample, weight[block].float())
        distances.masked_fill_(chosen[:, None] == block, torch.inf)
        nearest = nearest.minimum(distances.min(1).values)
    return float(nearest.median())


def _keys(weight: Tensor, generator: torch.Generator) -> Int64[Tensor, "table d_vocab"]:
    """Hash keys that rows of almost one direction from the mean share: the signs of random projections."""
    directions = torch.randn(weight.shape[1], _TABLES * _BITS, generator=generator).to(weight.device)
    mean = torch.stack([part.float().sum(0) for part in weight.split(_ROWS)]).sum(0) / len(weight)
    powers = 2 ** torch.arange(_BITS)
    signs = ((part.float() - mean) @ directions > 0 for part in weight.split(_ROWS))
    return torch.cat([(part.cpu().unflatten(1, (_TABLES, _BITS)) * powers).sum(2) for part in signs]).T
