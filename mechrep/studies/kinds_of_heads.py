"""Which heads are of which kind: all heads' scores on random repeats and on loops, beside those of null models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechrep.ablation.controls import Unit
from mechrep.ablation.effects import LEVEL, SUPPORTED, detection, judge
from mechrep.cache.corpus_cache import CorpusCache, OnTexts
from mechrep.errors import ModelError
from mechrep.measures.head_copying import HeadCopying, HeadCopyingResult
from mechrep.measures.head_scores import PUBLISHED_THRESHOLD, HeadScoreResult, HeadScores
from mechrep.models.model import Model
from mechrep.run import Run
from mechrep.stats import known, largest
from mechrep.text.corpus import Corpus

ON_REPEATS, ON_LOOPS = "random repeats", "natural loops"
KINDS = (
    ("induction", ON_REPEATS),
    ("duplicate_token", ON_REPEATS),
    ("previous_token", ON_REPEATS),
    ("first_token", ON_REPEATS),
    ("induction", ON_LOOPS),
    ("duplicate_token", ON_LOOPS),
)
_NULL_TOKENS = 104  # that a null model reads of each kind of text, at least one text
_NORMAL = 1.96  # standard errors on either side that hold 95 %


@dataclass(frozen=True)
class HeadReadings:
    """What all heads of one model look at and say.

    Attributes:
        repeats: scores on random repeats.
        copying: what the heads say there; ``None`` where what single heads write cannot be told apart.
        loops: scores on natural loops, for queries after the onset (``hiraoka2025``).
    """

    repeats: HeadScoreResult
    copying: HeadCopyingResult | None
    loops: HeadScoreResult

    def of(self, kind: str, measured_on: str) -> Float[Tensor, "layer head"]:
        """One score on one kind of text."""
        return (self.repeats if measured_on == ON_REPEATS else self.loops).of(kind)


def read_heads(model: Model, repeats: Corpus, loops: Corpus, run: Run) -> HeadReadings:
    """Score all heads on both kinds of text, a pass over each."""
    size = run.batch_size or max(1, 2048 // repeats.tokens.shape[1])  # small: patterns are as large as texts squared
    cache = CorpusCache(model, repeats, batch_size=size, run=run, progress=False)
    try:
        writing = [HeadCopying(model)]
    except ModelError:  # compressed values, gates behind the heads, ...: what they look at is measured all the same
        writing = []
    scores, *copying = cache.run_all([HeadScores(bos_id=model.bos_id), *writing])
    cache = CorpusCache(model, loops, run=run)
    natural = cache.run(HeadScores("hiraoka2025", bos_id=model.bos_id))
    return HeadReadings(scores, copying[0] if copying else None, natural)


@dataclass(frozen=True)
class NullTexts:
    """The beginnings of few texts of both kinds, which all null models read.

    Attributes:
        texts: random repeats, and loops after them.
        repeats: how many are random repeats.
    """

    texts: Corpus
    repeats: int

    @classmethod
    def of(cls, repeats: Corpus, loops: Corpus) -> NullTexts:
        """Of these texts the shortest, up to the end of their second repetition."""
        parts = [_beginnings(repeats, _NULL_TOKENS), _beginnings(loops, _NULL_TOKENS)]
        named = [part.with_columns(id=[f"{kind}-{n}" for n in range(len(part))]) for kind, part in enumerate(parts)]
        return cls(Corpus.concatenate(*(replace(part, bos_policy="as given") for part in named)), len(parts[0]))


def read_null_heads(null: Model, both: NullTexts, run: Run) -> HeadReadings:
    """What the heads of a null model look at, from one pass over few texts of both kinds.

    Making the weights of a null model takes as long as reading a few hundred tokens, so it is made once.  Few texts
    make the highest of all heads stand out more by chance: a bar that is too high rather than too low.
    """
    n = len(both.texts)
    kinds = (
        OnTexts(HeadScores(bos_id=null.bos_id), range(both.repeats)),
        OnTexts(HeadScores("hiraoka2025", bos_id=null.bos_id), range(both.repeats, n)),
    )
    scores, natural = CorpusCache(null, both.texts, batch_size=n, run=run, progress=False).run(*kinds)
    return HeadReadings(scores, None, natural)


def _beginnings(texts: Corpus, tokens: int) -> Corpus:
    """Texts that are short up to the end of their second repetition, cut there; so many tokens in all, or one text."""
    frame = texts.frame
    ends = np.minimum(2 * frame["onset"] - frame["start"], texts.lengths.numpy()).astype(int)
    tells = (frame["onset"] - frame["start"]).to_numpy() > 2  # a shorter loop cannot tell heads apart
    order = sorted(range(len(texts)), key=lambda i: (not tells[i], ends[i]))
    fits = max(1, int((np.cumsum([ends[i] for i in order]) <= tokens).sum()))
    chosen = sorted(order[:fits])
    part, lengths = texts.select(chosen), torch.tensor([int(ends[i]) for i in chosen])
    real = torch.arange(int(lengths.max())) < lengths[:, None]
    cut = part.tokens[:, : real.shape[1]].masked_fill(~real, part.pad_id)
    return replace(part, tokens=cut, lengths=lengths)


def head_kinds(own: HeadReadings, nulls: Sequence[Any]) -> pd.DataFrame:
    """Test of every head, of every kind, on every kind of text: does it stand out from null models?

    A draw is the highest of all heads of one null model, so having looked at all heads is part of the p-value (the
    largest statistic of Westfall & Young): with 19 null models a head above all of them has p = 0.05.  Beside what an
    induction head looks at (prefix matching) stands what it says (``functional``), with a test of its own: what it
    says where queries swap their targets (``functional_null``), times the number of heads that were looked at.  It
    does not decide the kind: in deep models many induction heads act through later heads.

    Args:
        own: of the model.
        nulls: :class:`HeadReadings` of models that have learned nothing, on texts of the same kinds.

    Returns:
        One row per kind, kind of text and head, highest score first: ``kind``, ``measured_on``, ``layer``, ``head``,
        the columns of :func:`mechrep.ablation.effects.judge`, and two conventions beside the verdict: ``clear`` (at
        least 0.3 above uniform attention; in loops above the published 0.5, too), and ``published`` (more than 0.5 in
        loops, the published rule); for induction on random repeats ``says`` (``functional``), ``says_p``, and
        ``null_says``, the highest upper end of a head's 99 % band of it by chance.

    Source: self-finding in loops: Hiraoka & Inui 2025 (arXiv 2410.13497); tests by the largest statistic: Westfall &
    Young 1993 (*Resampling-Based Multiple Testing*).

    Limits: null models tell what the architecture gives, not what any trained head has: a small difference from them
    can be real and of no importance, which ``clear`` is there for.

    Example:
        >>> import mechrep
        >>> from mechrep.models.nulls import shuffled
        >>> from mechrep.run import Run
        >>> model, run = mechrep.load_model("mechrep-tiny"), Run(progress=False)
        >>> rows = [[0, *range(30 + i, 60 + i), *[9, 8, 7, 6, 5] * 8] for i in range(6)]
        >>> loops = mechrep.Corpus.from_tokens(rows, model=model).with_cycles()
        >>> repeats = mechrep.text.random_repeats(model, n=20, sequences=6)
        >>> own, null = (read_heads(one, repeats, loops, run) for one in (model, shuffled(model)))
        >>> table = head_kinds(own, [null] * 19)  # one and the same: real nulls differ
        >>> heads_of(table, "induction") == own.repeats.top(1)
        True
    """
    tables = [_kind_table(own, nulls, kind, place) for kind, place in KINDS]
    family = "one kind of head on one kind of text"
    return judge(pd.concat(tables, ignore_index=True), within=["kind", "measured_on", "name"], family=family)


def _kind_table(own: HeadReadings, nulls: Sequence[Any], kind: str, place: str) -> pd.DataFrame:
    result = own.repeats if place == ON_REPEATS else own.loops
    table, errors = result.of(kind), result.standard_errors[result.row(kind)]
    draws = [_at_chance_of(null.repeats if place == ON_REPEATS else null.loops, kind, result) for null in nulls]
    clear, said, by_chance = set(result.clear(kind)), None, float("nan")
    if (kind, place) == ("induction", ON_REPEATS) and own.copying is not None:
        said, by_chance = _p_of_saying(own.copying), largest(own.copying.functional_band[1])
    elif place == ON_LOOPS:
        clear &= set(result.above(PUBLISHED_THRESHOLD, kind))
    published = result.above(PUBLISHED_THRESHOLD, kind) if place == ON_LOOPS else []
    rows = []
    for unit in result.ranking(kind):
        value, half = float(table[unit]), _NORMAL * float(errors[unit])
        row = detection(
            name_of(unit), kind, value, draws, interval=(value - half, value + half), n=result.n_texts[kind]
        )
        says = (float("nan"),) * 2
        if said is not None and own.copying is not None:
            says = float(own.copying.functional[unit]), float(said[unit])
        facts = {"kind": kind, "measured_on": place, "layer": unit[0], "head": unit[1]}
        conventions = {"clear": unit in clear, "published": unit in published}
        rows.append(facts | row | conventions | {"says": says[0], "says_p": says[1], "null_says": by_chance})
    return pd.DataFrame(rows)


def _at_chance_of(null: HeadScoreResult, kind: str, own: HeadScoreResult) -> float:
    """The highest score of a null model, on texts in which uniform attention gives what it gives in the model's."""
    row = null.row(kind)
    chance = float(own.chance[row])
    return chance + (1 - chance) * largest(null.adjusted[row])


def _p_of_saying(copying: HeadCopyingResult) -> Float[Tensor, "layer head"]:
    """How often a head would say the next token so clearly if its queries had each other's targets, for all heads."""
    z = (copying.functional - copying.functional_null).double() / copying.functional_null_sd.double()
    p = torch.special.ndtr(-z) * len(known(copying.functional))
    return p.clamp_max(1.0).masked_fill(copying.functional.isnan(), 1.0).float()


def heads_that_say(kinds: pd.DataFrame) -> list[Unit]:
    """Induction heads that raise the logit of the next token beyond chance.

    Example:
        >>> rows = pd.DataFrame({"kind": "induction", "measured_on": ON_REPEATS, "layer": [1, 0], "head": [2, 0]})
        >>> heads_that_say(rows.assign(verdict="supported", clear=True, says_p=[0.01, 1.0]))
        [(1, 2)]
    """
    return heads_of(kinds[kinds["says_p"] <= LEVEL], "induction", ON_REPEATS)


def heads_of(kinds: pd.DataFrame, kind: str, measured_on: str | None = None) -> list[Unit]:
    """Heads of a kind: supported, and clear by the convention; those on random repeats first, best first.

    Example:
        >>> rows = pd.DataFrame({"kind": "induction", "measured_on": ON_LOOPS, "layer": [1, 0], "head": [2, 0]})
        >>> heads_of(rows.assign(verdict="supported", clear=[True, False]), "induction")
        [(1, 2)]
    """
    mine = kinds[(kinds["kind"] == kind) & (kinds["verdict"] == SUPPORTED) & kinds["clear"]]
    mine = mine if measured_on is None else mine[mine["measured_on"] == measured_on]
    return list(dict.fromkeys(zip(mine["layer"].tolist(), mine["head"].tolist(), strict=True)))


def name_of(unit: Unit) -> str:
    """How a head is called.

    Example:
        >>> name_of((3, 1))
        'L3H1'
    """
    return f"L{unit[0]}H{unit[1]}"
