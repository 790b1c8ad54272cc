"""Function words of English and Japanese: the closed classes, which carry grammar and little else.

Articles, pronouns, prepositions, conjunctions, auxiliaries and particles, not the frequent nouns and verbs that lists
of "stop words" hold too.
"""

from __future__ import annotations

import functools

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
_JAPANESE = """
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
    return frozenset(_JAPANESE.split())
