"""What kind of token each token of a text is: newline, sentence end, punctuation, bracket, word, number, or other.

The class is that of the *word in the text* that a token is part of, not of the token by itself: the piece ``and`` of
``thousand`` is part of a content word, the ``,`` of ``3,000`` of a number.  The text is decoded once; a token that ends
inside a character takes the class of that character.

English words are told apart by a list of function words.  Japanese has no blanks: kanji and katakana are content; of a
stretch of hiragana the longest ending that splits into function words is function, and what stands before it belongs to
the word in front (in 食べました, べ is content and ました function).  This is a rule of thumb, without a dictionary: a
content word in hiragana that happens to split into particles (はな, flower) is taken for them.

Function words of English and Japanese: the closed classes, which carry grammar and little else.

Articles, pronouns, prepositions, conjunctions, auxiliaries and particles, not the frequent nouns and verbs that lists
of "stop words" hold too.
"""

from __future__ import annotations

import functools
import itertools
import re
import unicodedata
from collections.abc import Callable, Collection, Sequence

import torch
from jaxtyping import Int64
from torch import Tensor

from mechrep.errors import InputError
from mechrep.guards import one_of
from mechrep.models.model import Model
from mechrep.text.corpus import Corpus
from mechrep.text.shown import token_spans as token_spans

_ENGLISH = """
a an the this that these those some any no each every either neither both all such another other
i you he she it we they me him her us them my your his its our their mine yours hers ours theirs thou thee thy thine ye
myself yourself himself herself itself ourselves yourselves themselves who whom whose which what whoever whatever one
about above across after against along amid among around as at before behind below beneath beside besides between
beyond by despite down during except for from in inside into like near of off on onto out outside over past per since
through throughout till to toward towards under until unto up upon via with within without
and or but nor so yet if because although though unless while whereas whether than lest when where why how
be am is are was were been being have has had having do does did doing can could may might must shall should will would
ought hath doth art wast wert not never there here then thus too very just only also even
"""
# What is left of a contraction behind its apostrophe.
CLITICS = frozenset({"s", "t", "re", "ve", "ll", "d", "m"})

# Particles; the copula, auxiliaries and endings of verbs; formal nouns; what points; what joins.
_JAPANESE_FUNCTION_WORDS = """
は が を に へ と で も の や か ね よ ぞ ぜ わ から まで より など だけ しか ばかり ほど くらい ぐらい こそ
さえ でも ながら ので のに けど けれど けれども ば たら なら って とか には では とは へは との への での からの
までの として について によって によると において だ です ます まし ませ ません でした ました だった だろう
でしょう である であった では な ない なかった なく なければ ず た て いる いた いて いない います れる られる
れた られた せる させる たい たく よう ようだ らしい そうだ べき ください する した して すれば しない しました
します ある あった あり あって なる なった なり なって こと もの ため とき ところ ほう これ それ あれ どれ この
その あの どの ここ そこ あそこ どこ こう そう ああ どう こんな そんな そして しかし また または および ただし
だから すると それで それから でも つまり さらに なお
"""


@functools.cache
def english_function_words() -> frozenset[str]:
    """Lower-case words, contractions in their parts.

    Example:
        >>> "the" in english_function_words(), "sea" in english_function_words()
        (True, False)
    """
    return frozenset(_ENGLISH.split())


@functools.cache
def japanese_function_words() -> frozenset[str]:
    """Words and endings in hiragana.

    Example:
        >>> "から" in japanese_function_words()
        True
    """
    return frozenset(_JAPANESE_FUNCTION_WORDS.split())


CLASSES = ("newline", "sentence_end", "punctuation", "bracket", "function_word", "content_word", "number", "other")
PADDING = -1  # class of what is no token

_SENTENCE_END = frozenset(".!?…。\uff01\uff1f｡\uff0e‼⁇⁈⁉")
_JAPANESE = "々〆ヶー\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uff66-\uff9f"
_LETTER = rf"(?:(?![{_JAPANESE}])\w)"
_WORDS = re.compile(
    rf"(?P<japanese>[{_JAPANESE}]+)"
    rf"|(?P<number>\d+(?:[.,:/]\d+)*(?!{_LETTER}))"
    rf"|(?P<word>{_LETTER}+(?:['’]{_LETTER}+)*)"
)
_HIRAGANA = re.compile("[\u3041-\u309f]+")


def token_classes(corpus: Corpus, model: Model, *, on: str = "word") -> Int64[Tensor, "text pos"]:
    """The class of every token, as its number in :data:`CLASSES`; padding is -1, special tokens are ``other``.

    Args:
        corpus: the texts.
        model: whose tokenizer they are in.
        on: ``"word"``: the class of the word in the text; ``"piece"``: of the token decoded alone, as published.

    Raises:
        InputError: a model without a tokenizer, or with another than the corpus has; an unknown ``on``.

    Source: the classes are those of Mahaut & Franzon 2025 (arXiv 2504.01100), whose code decides on the piece; what it
    calls programming is ``other`` here.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> corpus = mechrep.Corpus.from_texts(["The sea."], model=model)
        >>> [CLASSES[number] for number in token_classes(corpus, model)[0].tolist()][-1]
        'sentence_end'
    """
    one_of("on", on, ("word", "piece"))
    if model.tokenizer is None:
        raise InputError(f"{model.name}, which has no tokenizer", "texts that can be decoded", "use another model")
    corpus.check_model(model)
    known: dict[tuple[int, ...], str] = {}  # loops repeat the same few tokens over and over

    def decode(ids: Sequence[int]) -> str:
        key = tuple(ids)
        if key not in known:
            known[key] = model.decode(ids)
        return known[key]

    classes = torch.full(corpus.tokens.shape, PADDING, dtype=torch.int64)
    for text in range(len(corpus)):
        ids = corpus.row(text)
        names = classes_of_tokens(ids, decode, model.special_ids, on=on)
        classes[text, : len(ids)] = torch.tensor([CLASSES.index(name) for name in names])
    return classes


def classes_of_tokens(
    ids: Sequence[int],
    decode: Callable[[Sequence[int]], str],
    special_ids: Collection[int] = (),
    *,
    on: str = "word",
) -> list[str]:
    """The class of every token of one text.

    Args:
        ids: the text.
        decode: from ids to text.
        special_ids: ids that are no text; words do not reach across them.
        on: see :func:`token_classes`.

    Example:
        >>> pieces = ["a", " thous", "and", " sea", "s", ".", "\\n"]
        >>> decode = lambda ids: "".join(pieces[i] for i in ids)
        >>> classes_of_tokens(range(7), decode)[1:]
        ['content_word', 'content_word', 'content_word', 'content_word', 'sentence_end', 'newline']
        >>> classes_of_tokens(range(7), decode, on="piece")[2]
        'function_word'
    """
    names: list[str] = []
    for special, group in itertools.groupby(ids, key=lambda token: token in special_ids):
        part = list(group)
        if special:
            names += ["other"] * len(part)
        elif on == "piece":
            names += [_class_at(text := decode([token]), 0, len(text), character_classes(text)) for token in part]
        else:
            text, spans = token_spans(part, decode)
            classes = character_classes(text)
            names += [_class_at(text, begin, end, classes) for begin, end in spans]
    return names


def character_classes(text: str) -> list[str]:
    """The class of every character of a text; blanks are ``other``.

    Example:
        >>> character_classes("It's 3,5!")
        ['function_word', 'function_word', 'function_word', 'function_word', 'other',
         'number', 'number', 'number', 'sentence_end']
    """
    classes = [_sign_class(character) for character in text]
    for match in _WORDS.finditer(text):
        begin, end, word = match.start(), match.end(), match.group()
        if match.lastgroup == "number":
            classes[begin:end] = ["number"] * len(word)
        elif match.lastgroup == "word":
            classes[begin:end] = ["function_word" if is_english_function_word(word) else "content_word"] * len(word)
        else:
            classes[begin:end] = _japanese_classes(word)
    return classes


def is_english_function_word(word: str) -> bool:
    """Whether a word, contractions among them, is a function word.

    Example:
        >>> [is_english_function_word(word) for word in ("The", "don't", "it’s", "John's", "sea")]
        [True, True, True, False, False]
    """
    known = english_function_words()
    word = word.casefold().replace("’", "'")
    stem, apostrophe, rest = word.partition("'")
    if not apostrophe:
        return word in known
    return word in ("can't", "won't", "shan't") or (
        rest in CLITICS and (stem in known or stem.removesuffix("n") in known)
    )


def _class_at(text: str, begin: int, end: int, classes: Sequence[str]) -> str:
    """The first character that is no blank decides; of blanks, a newline."""
    for place in range(begin, end):
        if not text[place].isspace():
            return classes[place]
    return "newline" if "newline" in classes[begin:end] else "other"


def _sign_class(character: str) -> str:
    """The class of a character that is in no word."""
    category = unicodedata.category(character)
    if character in "\n\r\u2028\u2029":
        return "newline"
    if character in _SENTENCE_END:
        return "sentence_end"
    if category in ("Ps", "Pe"):
        return "bracket"
    return "punctuation" if category.startswith("P") else "other"


def _japanese_classes(run: str) -> list[str]:
    """Kanji and katakana are content; so is hiragana up to the longest ending that splits into function words."""
    classes = ["content_word"] * len(run)
    for match in _HIRAGANA.finditer(run):
        stretch, begin = match.group(), match.start()
        splits = [False] * len(stretch) + [True]
        for place in reversed(range(len(stretch))):
            splits[place] = any(
                splits[end] and stretch[place:end] in japanese_function_words()
                for end in range(place + 1, len(stretch) + 1)
            )
        first = splits.index(True)
        classes[begin + first : match.end()] = ["function_word"] * (len(stretch) - first)
    return classes
