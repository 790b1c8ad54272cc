"""Kinds of text: natural loops, induced copies and controls, taken from one set of greedy continuations.

With the prompt ``x``, its greedy continuation ``g`` and the cycle ``c`` that ``g`` ends in::

    builder                    text                                  prompts
    natural                    x + g up to the loop, c, c            that loop by themselves
    icl_from_nonrepeating(n)   x, n + 1 times                        that do not
    icl_from_cycle(n)          c, n + 1 times, and no other context  that loop
    control_nonrepeating       x + g                                 that do not

A BOS in front of the prompt stays in front and is not repeated.  ``prompt_length`` says how far a text is given; what
follows it is the copy that is expected next.  Ids are kept: nothing is decoded and encoded again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import pandas as pd

from mechrep.errors import InputError, NothingFoundError
from mechrep.generation.loops import without_counter
from mechrep.generation.written import (
    Builder,
    Cut,
    WrittenTexts,
    continue_texts,
    cycle_of,
    text_kind_preset,
    write_texts,
)
from mechrep.guards import Count, guarded
from mechrep.models.model import Model
from mechrep.text.corpus import Corpus, CorpusLike
from mechrep.text.families import linked, loop_families

COPIES = 3  # copies beyond the first, where nothing else is said
_LOOK = "print(mechrep.generation.text_kinds.text_flow(...).counts()) says how many of each there are"


@guarded
def natural_texts(
    model: Model,
    prompts: CorpusLike,
    *,
    preset: str = "mechrep",
    cut: Cut | None = None,
    max_new_tokens: Count | None = None,
    batch_size: Count = 256,
    progress: bool | None = None,
) -> Corpus:
    """Prompts whose greedy continuation loops, cut where the loop begins.

    Args:
        model: the model.
        prompts: the fixed list, the same for all kinds of text and all checkpoints.
        preset: ``"mechrep"`` or a published one, see :mod:`mechrep.generation.written`.
        cut: ``"start"``: the prompt ends before the first copy of the cycle; ``"onset"``: after it.  The preset's by
            default: ``"onset"``, for ``mahaut2025`` ``"start"``.
        max_new_tokens: greedy tokens after each prompt; by default 1000, or what fits into the context.
        batch_size: rows computed together.
        progress: show a progress bar.

    Returns:
        A corpus with ``text_kind`` and ``builder`` ``"natural"``, the ``prompt`` that each text is from, ``start``,
        ``onset``, ``period``, the copies ``shown`` before ``prompt_length``, and ``seam``.  ``frame.attrs`` counts
        ``prompts`` tried and ``new_tokens`` generated.

    Raises:
        NothingFoundError: no text loops.
        InputError: prompts that leave no room in the context, an unknown preset or cut.

    Source: Mahaut & Franzon 2025 (arXiv 2504.01100).

    Limits: where a prompt ends at the model's own loop, the greedy continuation is the loop by construction: compare
    kinds of text by log-probability, not by how often a loop comes.

    Example:
        >>> import mechrep
        >>> from mechrep.generation.text_kinds import natural_texts
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> prompts = mechrep.generation.sample_prompts(model, 12)
        >>> natural = natural_texts(model, prompts, max_new_tokens=150)
        >>> set(natural.frame["builder"]), bool((natural.frame["onset"] == natural.frame["prompt_length"]).all())
        ({'natural'}, True)
    """
    prompts = Corpus.of(prompts, model)
    texts = write_texts(
        model, prompts, preset=preset, max_new_tokens=max_new_tokens, batch_size=batch_size, progress=progress
    )
    shown = 1 if (cut or text_kind_preset(preset).cut) == "onset" else 0
    numbers = [i for i, loops in enumerate(texts.loops) if loops]
    if not numbers:
        raise NothingFoundError(
            f"{len(prompts)} prompts to {model.name}, none of which loops by itself within {texts.max_new_tokens} "
            f"tokens (preset {preset!r})",
            "at least one natural loop",
            "try more prompts, a larger max_new_tokens or another preset",
        )
    frame = texts.written.frame
    rows, starts, periods = [], [], []
    for i in numbers:
        start, onset = int(frame["start"][i]), int(frame["onset"][i])
        rows.append([*texts.written.row(i)[:onset], *texts.written.row(i)[start:onset]])
        starts.append(start)
        periods.append(onset - start)
    columns = {"text_kind": "natural", "builder": "natural", "shown": shown, "seam": False}
    return _corpus(model, texts, numbers, rows, columns, starts, periods)


@guarded
def induced_texts(
    model: Model,
    prompts: CorpusLike,
    copies: Count | None = None,
    builder: Builder | None = None,
    *,
    preset: str = "mechrep",
    max_new_tokens: Count | None = None,
    batch_size: Count = 256,
    progress: bool | None = None,
) -> Corpus:
    """Texts that are to be copied because they were shown ``copies`` times.

    Args:
        model: the model.
        prompts: the fixed list.
        copies: how often each is shown; the preset's 2 by default.
        builder: ``"text"``: the prompts that do *not* loop by themselves; ``"cycle"``, the older variant: the cycle
            alone of those that do.  They differ in text, in length and in what the model would do by itself.
        preset: as in :func:`natural_texts`, as for all that follows.
        max_new_tokens: as there.
        batch_size: as there.
        progress: as there.

    Returns:
        A corpus as that of :func:`natural_texts`, with ``text_kind`` ``"induced"`` and ``builder``
        ``"icl_from_nonrepeating(2)"`` or ``"icl_from_cycle(2)"``.  ``seam`` is true for the first builder: a text cut
        anywhere does not lead back to its beginning, so the first token of each copy counts in no average.

    Raises:
        NothingFoundError: every text loops by itself (none does, for ``"cycle"``).
        InputError: copies that do not fit into the context, or what :func:`natural_texts` refuses.

    Source: Mahaut & Franzon 2025 (arXiv 2504.01100), second version (``"text"``) and first (``"cycle"``).

    Example:
        >>> import mechrep
        >>> from mechrep.generation.text_kinds import induced_texts
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> prompts = mechrep.generation.sample_prompts(model, 12)
        >>> induced = induced_texts(model, prompts, 3, "cycle", max_new_tokens=150)
        >>> set(induced.frame["builder"]), set(induced.frame["shown"])
        ({'icl_from_cycle(3)'}, {3})
    """
    chosen = text_kind_preset(preset)
    times, what = chosen.copies if copies is None else copies, builder or chosen.builder
    prompts = Corpus.of(prompts, model)
    texts = write_texts(
        model, prompts, preset=preset, max_new_tokens=max_new_tokens, batch_size=batch_size, progress=progress
    )
    numbers, rows, periods = shown_rows(model, texts, what, times)
    if not numbers:
        rule = "all of which loop" if what == "text" else "none of which loops"
        remedy = "fewer max_new_tokens, another builder ('cycle')" if what == "text" else "builder='text'"
        raise NothingFoundError(
            f"{len(prompts)} prompts to {model.name}, {rule} by themselves within {texts.max_new_tokens} tokens "
            f"(preset {preset!r})",
            "texts that can be shown again",
            f"try more prompts, {remedy} or another checkpoint; {_LOOK}",
        )
    whole = [[*row, *row[len(row) - period :]] for row, period in zip(rows, periods, strict=True)]
    starts = [len(row) - times * period for row, period in zip(rows, periods, strict=True)]
    columns = {"text_kind": "induced", "builder": builder_name(what, times), "shown": times, "seam": what == "text"}
    return _corpus(model, texts, numbers, whole, columns, starts, periods)


@guarded
def control_texts(
    model: Model,
    prompts: CorpusLike,
    *,
    preset: str = "mechrep",
    max_new_tokens: Count | None = None,
    batch_size: Count = 256,
    progress: bool | None = None,
) -> Corpus:
    """Prompts with a continuation that does not loop, nor count: no repetition to go on with.

    Args:
        model: the model.
        prompts: the fixed list.
        preset: as in :func:`natural_texts`, as for all that follows.
        max_new_tokens: as there.
        batch_size: as there.
        progress: as there.

    Returns:
        A corpus with ``text_kind`` ``"control"`` and ``builder`` ``"control_nonrepeating"``; ``start``, ``onset`` and
        ``period`` are missing, and an EOS at the end is left out.

    Raises:
        NothingFoundError: every text loops by itself, or ends at once.
        InputError: what :func:`natural_texts` refuses.

    Example:
        >>> import mechrep
        >>> from mechrep.generation.text_kinds import control_texts
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> prompts = mechrep.generation.sample_prompts(model, 12)
        >>> control = control_texts(model, prompts, max_new_tokens=20)
        >>> bool(control.frame["onset"].isna().all())
        True
    """
    prompts = Corpus.of(prompts, model)
    texts = write_texts(
        model, prompts, preset=preset, max_new_tokens=max_new_tokens, batch_size=batch_size, progress=progress
    )
    numbers, rows, free = [], [], without_counter(model, texts.written)
    for i, loops in enumerate(texts.loops):
        ids = texts.written.row(i)
        ids = ids[:-1] if ids[-1] in model.eos_ids else ids
        if not loops and free[i] and len(ids) > len(prompts.row(i)):
            numbers.append(i)
            rows.append(ids)
    if not numbers:
        raise NothingFoundError(
            f"{len(prompts)} prompts to {model.name}, {int(texts.loops.sum())} of which loop by themselves within "
            f"{texts.max_new_tokens} tokens (preset {preset!r}) and the others end at once",
            "continuations that do not loop",
            f"try more prompts, fewer max_new_tokens or another checkpoint; {_LOOK}",
        )
    columns = {"text_kind": "control", "builder": "control_nonrepeating", "shown": 0, "seam": False}
    return _corpus(model, texts, numbers, rows, columns)


def builder_name(builder: Builder, copies: int) -> str:
    """What induced texts are called in every table."""
    return f"icl_from_nonrepeating({copies})" if builder == "text" else f"icl_from_cycle({copies})"


def shown_rows(
    model: Model, texts: WrittenTexts, builder: Builder, copies: int
) -> tuple[list[int], list[list[int]], list[int]]:
    """Numbers, rows as shown, and lengths of one copy, of the texts that are shown again.

    Raises:
        InputError: fewer than one copy, a prompt of fewer than two tokens, or copies that do not fit.
    """
    frame = texts.written.frame
    numbers = [i for i, loops in enumerate(texts.loops) if loops == (builder == "cycle")]
    rows, periods = [], []
    for i in numbers:
        prompt = texts.prompts.row(i)
        begin = prompt[:1] if prompt[0] == model.bos_id else []
        if builder == "cycle":
            copy = texts.written.row(i)[int(frame["start"][i]) : int(frame["onset"][i])]
        else:
            copy = prompt[len(begin) :]
        length = len(begin) + (copies + 1) * len(copy)
        if len(copy) < (2 if builder == "text" else 1) or length > model.anatomy.n_ctx:
            raise InputError(
                f"text {frame['id'][i]!r}: {len(copy)} tokens, {copies} times and once more",
                f"texts of at least 2 tokens that fit into the {model.anatomy.n_ctx} positions of {model.name}",
                "use other prompts or fewer copies",
            )
        rows.append([*begin, *copy * copies])
        periods.append(len(copy))
    return numbers, rows, periods


def _corpus(
    model: Model,
    texts: WrittenTexts,
    numbers: list[int],
    rows: Sequence[Sequence[int]],
    columns: dict[str, Any],
    starts: Sequence[int] | None = None,
    periods: Sequence[int] | None = None,
) -> Corpus:
    """One kind as a corpus, with the facts that every kind has."""
    facts = texts.prompts.frame.iloc[numbers]
    frame = pd.DataFrame({"prompt": facts["id"].tolist(), "source": facts["source"].tolist()})
    frame = frame.assign(**columns, detector=text_kind_preset(texts.preset).detector)
    frame["id"] = frame["prompt"] + "/" + frame["builder"]
    if starts is None or periods is None:
        frame["prompt_length"] = [len(texts.prompts.row(i)) for i in numbers]
    else:
        frame["start"], frame["period"] = pd.array(list(starts), "Int64"), pd.array(list(periods), "Int64")
        frame["onset"] = frame["start"] + frame["period"]
        frame["prompt_length"] = frame["start"] + frame["shown"] * frame["period"]
        frame["copies"] = [(len(row) - s) / p for row, s, p in zip(rows, starts, periods, strict=True)]
    corpus = Corpus.from_tokens(
        rows, model=model, attention_mask=True, frame=frame, bos_policy=texts.prompts.bos_policy
    )
    counts = {"prompts": len(texts.prompts), "new_tokens": texts.new_tokens, "preset": texts.preset}
    corpus.frame.attrs.update(counts)
    return corpus


@dataclass(frozen=True, eq=False)
class Flow:
    """Four flags per text of a fixed list, for one model.

    Attributes:
        frame: one row per prompt, in the order of the list: ``prompt``; ``loops_naturally``; ``eligible_for_icl`` (does
            not loop by itself: one or the other); ``copies_in_icl`` and ``loops_in_icl``, missing where the text was
            not shown; ``copy_run``, tokens of the continuation that go on with the copy, and ``copy_share``, the same
            by length of the copy.
        texts: the natural continuations.
        shown: the texts as shown, with what the model wrote after them; ``None`` where there is none to show.
        builder: what was shown, with the number of copies.
        new_tokens: tokens generated for the flow, the natural continuations among them.
    """

    frame: pd.DataFrame
    texts: WrittenTexts
    shown: Corpus | None
    builder: str
    new_tokens: int

    def counts(self) -> pd.DataFrame:
        """How many texts have each flag, of how many that could: ``flag, n, of``."""
        flags = ["loops_naturally", "eligible_for_icl", "copies_in_icl", "loops_in_icl"]
        rows = [(flag, int(self.frame[flag].sum()), int(self.frame[flag].notna().sum())) for flag in flags]
        return pd.DataFrame(rows, columns=["flag", "n", "of"])


_KNOWN: WeakKeyDictionary[Model, dict[tuple[object, ...], Flow]] = WeakKeyDictionary()


def copy_run(continuation: Sequence[int], copy: Sequence[int]) -> int:
    """Length of the longest prefix of a continuation that goes on with the copy, over and over.

    A text that was shown in whole copies is *copied* if this is at least the length of one.

    Example:
        >>> copy_run([7, 8, 9, 7, 8, 1], [7, 8, 9]), copy_run([8], [7, 8, 9])
        (5, 0)
    """
    for place, token in enumerate(continuation):
        if token != copy[place % len(copy)]:
            return place
    return len(continuation)


def text_flow(
    model: Model,
    prompts: CorpusLike,
    *,
    preset: str = "mechrep",
    copies: int | None = None,
    builder: Builder | None = None,
    max_new_tokens: int | None = None,
    batch_size: int = 256,
    progress: bool | None = None,
) -> Flow:
    """Say of every text whether it loops by itself, and of those shown again whether they are copied and loop.

    With ``m`` the number of generated tokens that go on with the copy (:func:`copy_run`), a text is *copied* if
    ``m`` is at least the length of one copy; it *loops* if its continuation, without the prompt, ends in a cycle of any
    kind.  Both are greedy; with teacher forcing see :class:`mechrep.TextKindContrast`.

    Args:
        model: the model.
        prompts: the fixed list.
        preset: see :func:`~mechrep.generation.written.write_texts`, as for the last three.
        copies: how often a text (or cycle) is shown; the preset's 2 by default.
        builder: ``"text"`` shows the texts that do not loop by themselves, ``"cycle"`` the cycles of those that do; the
            preset's by default.
        max_new_tokens: as there.
        batch_size: as there.
        progress: as there.

    Raises:
        InputError: as :func:`~mechrep.generation.written.write_texts`; copies that do not fit into the
            context.

    Source: Mahaut & Franzon 2025 (arXiv 2504.01100).  The version of their code that was read lists texts in which
    *no natural cycle* was found where it speaks of copying; here these are two flags.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> prompts = mechrep.Corpus.from_texts(["The sea was calm", "And the king said"], model=model)
        >>> flow = text_flow(model, prompts, max_new_tokens=60)
        >>> bool((flow.frame["loops_naturally"] ^ flow.frame["eligible_for_icl"]).all())
        True
    """
    chosen = text_kind_preset(preset)
    prompts = Corpus.of(prompts, model)
    texts = write_texts(
        model, prompts, preset=preset, max_new_tokens=max_new_tokens, batch_size=batch_size, progress=progress
    )
    times = chosen.copies if copies is None else copies
    what = chosen.builder if builder is None else builder
    key = (texts.model, prompts.fingerprint(), preset, texts.max_new_tokens, times, what)
    known = _KNOWN.setdefault(model, {})
    if key not in known:
        known[key] = _show(model, texts, what, times, batch_size, progress)
    return known[key]


def _show(
    model: Model, texts: WrittenTexts, builder: Builder, copies: int, batch_size: int, progress: bool | None
) -> Flow:
    loops = texts.loops
    frame = pd.DataFrame({"prompt": texts.prompts.frame["id"], "loops_naturally": loops, "eligible_for_icl": ~loops})
    for name, dtype in (("copies_in_icl", "boolean"), ("loops_in_icl", "boolean"), ("copy_run", "Int64")):
        frame[name] = pd.array([pd.NA] * len(frame), dtype=dtype)
    frame["copy_share"] = float("nan")
    numbers, rows, lengths = shown_rows(model, texts, builder, copies)
    if not numbers:
        return Flow(frame, texts, None, builder_name(builder, copies), texts.new_tokens)
    prompts = Corpus.from_tokens(rows, model=model, attention_mask=True, source="shown")
    cycles = [row[len(row) - length :] for row, length in zip(rows, lengths, strict=True)]
    by_prompt = {tuple(row): cycle for row, cycle in zip(rows, cycles, strict=True)}

    def decided(ids: list[int], prompt_length: int) -> bool:
        copy, after = by_prompt[tuple(ids[:prompt_length])], ids[prompt_length:]
        run = copy_run(after, copy)
        copying = run >= len(copy) or run < len(after)
        return copying and cycle_of(model, ids, prompt_length, texts.preset) is not None

    room = model.anatomy.n_ctx - int(prompts.lengths.max())
    limit = min(texts.max_new_tokens, room)
    early = text_kind_preset(texts.preset).stop_early
    written = continue_texts(
        model, prompts, limit, stop_early=early, decided=decided, batch_size=batch_size, progress=progress
    )
    for number, row, copy, i in zip(numbers, rows, cycles, range(len(rows)), strict=True):
        ids = written.row(i)
        run = copy_run(ids[len(row) :], copy)
        cycle = cycle_of(model, ids, len(row), texts.preset, padded_to=limit)
        frame.loc[number, ["copies_in_icl", "loops_in_icl", "copy_run", "copy_share"]] = [
            run >= len(copy), cycle is not None, run, run / len(copy),
        ]  # fmt: skip
    written = written.with_columns(prompt=frame["prompt"].iloc[numbers].tolist())
    new_tokens = int(written.lengths.sum() - prompts.lengths.sum())
    return Flow(frame, texts, written, builder_name(builder, copies), texts.new_tokens + new_tokens)


def text_kinds_of(frame: pd.DataFrame) -> list[str]:
    """Kind of each text: ``text_kind``, or ``condition`` of texts that no builder made (``"looping"``, ...)."""
    known = frame["condition"]
    if "text_kind" in frame:
        known = frame["text_kind"].where(frame["text_kind"].notna(), known)
    return known.fillna("").astype(str).tolist()


def labels_of(frame: pd.DataFrame) -> list[str]:
    """Group of each text: its kind, or its builder where a kind has several, which are never pooled."""
    kinds, builders = text_kinds_of(frame), frame["builder"].astype(str).tolist()
    return builders if len(set(zip(kinds, builders, strict=True))) > len(set(kinds)) else kinds


def clusters_of(frame: pd.DataFrame) -> list[str]:
    """Texts that are not independent: of one prompt, or of one family of loops (:func:`joined_texts` has them)."""
    prompts = frame["prompt"].astype(str).tolist()
    return linked(prompts, frame["family"].astype(str).tolist()) if "family" in frame else linked(prompts)


def joined_texts(*texts: Corpus, n_ctx: int, copies: int = COPIES) -> Corpus:
    """Join kinds of text; one with a cycle becomes what was before it and ``copies + 1`` times the cycle.

    The tokens beyond a text's own are known: they are the next copies of the cycle, whatever the model would
    write.  A text has as many whole copies as fit into the context, at least two.  The column
    ``family`` names its family of loops (:func:`mechrep.text.families.loop_families`).

    Args:
        *texts: of :func:`natural_texts`, :func:`induced_texts` and :func:`control_texts`, from one list of prompts.
        n_ctx: positions that the model reads.
        copies: copies beyond the first.

    Raises:
        InputError: no texts, fewer than one copy, the same texts twice, or a text whose second copy does not
            fit into the context.

    Example:
        >>> frame = pd.DataFrame({"start": [1], "onset": [3], "period": [2], "builder": "natural"})
        >>> natural = Corpus.from_tokens([[0, 5, 6, 5, 6]], frame=frame)
        >>> joined_texts(natural, n_ctx=8).row(0)
        [0, 5, 6, 5, 6, 5, 6]
    """
    if not texts or copies < 1:
        raise InputError(f"{len(texts)} kinds of text, copies={copies}", "at least one of each", "pass texts")
    if unbuilt := [number for number, text in enumerate(texts) if "builder" not in text.frame]:
        expected = "texts of natural_texts, induced_texts or control_texts"
        raise InputError(f"texts {unbuilt[0]} without the column 'builder'", expected, "build them with these")
    joined = Corpus.concatenate(*texts)
    rows = []
    for i, (start, onset) in enumerate(zip(joined.frame["start"], joined.frame["onset"], strict=True)):
        row = joined.row(i)
        if not pd.isna(start):
            cycle = row[int(start) : int(onset)]
            fit = min(copies + 1, (n_ctx - int(start)) // len(cycle))
            if fit < 2:
                raise InputError(
                    f"text {joined.frame['id'][i]!r}: a cycle of {len(cycle)} from position {start}",
                    f"two copies within {n_ctx} positions",
                    "use shorter prompts",
                )
            row = [*row[: int(start)], *cycle * fit]
        rows.append(row)
    frame = joined.frame.copy()
    frame["prompt_length"] = frame["prompt_length"].clip(upper=[len(row) for row in rows])
    longer = Corpus.from_tokens(rows, frame=frame, bos_policy=joined.bos_policy)
    facts = {name: getattr(joined, name) for name in ("tokenizer", "bos_id", "d_vocab", "model_name")}
    frame = longer.frame.assign(family=loop_families(longer))
    return Corpus(longer.tokens, longer.lengths, frame, bos_policy=joined.bos_policy, **facts)
