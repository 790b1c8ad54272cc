"""The three conditions, as corpora cut from one set of greedy continuations.

With the prompt ``x``, its greedy continuation ``g`` and the cycle ``c`` that ``g`` ends in::

    natural                    x + g up to the loop, c, c            texts that loop by themselves
    icl_from_nonrepeating(n)   x, n + 1 times                        texts that do not
    icl_from_cycle(n)          c, n + 1 times, and no other context  cycles of texts that do
    control_nonrepeating       x + g                                 texts that do not

A BOS in front of the prompt stays in front and is not repeated.  ``prompt_length`` says how far a text is given; what
follows it is the copy that is expected next.  Ids are kept: nothing is decoded and encoded again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from mechrep.errors import InputError, NothingFoundError
from mechrep.generation.conditions.presets import Builder, Cut, check_choice, condition_preset
from mechrep.generation.conditions.written import ConditionTexts, prompt_facts, write_texts
from mechrep.models.model import Model
from mechrep.text.corpus import Corpus

_LOOK = "print(mechrep.generation.conditions.condition_flow(...).counts()) says how many of each there are"


def natural_condition(
    model: Model,
    prompts: Corpus,
    *,
    preset: str = "mechrep",
    cut: Cut | None = None,
    max_new_tokens: int | None = None,
    batch_size: int = 256,
    progress: bool | None = None,
) -> Corpus:
    """Prompts whose greedy continuation loops, cut where the loop begins.

    Args:
        model: the model.
        prompts: the fixed list, the same for all conditions and all checkpoints.
        preset: ``"mechrep"`` or a published one, see :mod:`mechrep.generation.conditions.presets`.
        cut: ``"start"``: the prompt ends before the first copy of the cycle; ``"onset"``: after it.  The preset's by
            default: ``"onset"``, for ``mahaut2025`` ``"start"``.
        max_new_tokens: greedy tokens after each prompt; by default 1000, or what fits into the context.
        batch_size: rows computed together.
        progress: show a progress bar.

    Returns:
        A corpus with ``condition`` and ``builder`` ``"natural"``, the ``prompt`` that each text is from, ``start``,
        ``onset``, ``period``, the copies ``shown`` before ``prompt_length``, and ``seam``.  ``frame.attrs`` counts
        ``prompts`` tried and ``new_tokens`` generated.

    Raises:
        NothingFoundError: no text loops.
        InputError: prompts that leave no room in the context, an unknown preset or cut.

    Source: Mahaut & Franzon 2025 (arXiv 2504.01100).

    Limits: where a prompt ends at the model's own loop, the greedy continuation is the loop by construction: compare
    conditions by log-probability, not by how often a loop comes.

    Example:
        >>> import mechrep
        >>> from mechrep.generation.conditions import natural_condition
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> prompts = mechrep.generation.sample_prompts(model, 12)
        >>> natural = natural_condition(model, prompts, max_new_tokens=150)
        >>> set(natural.frame["builder"]), bool((natural.frame["onset"] == natural.frame["prompt_length"]).all())
        ({'natural'}, True)
    """
    check_choice("cut", cut, ("start", "onset"))
    texts = _written(model, prompts, preset, max_new_tokens, batch_size, progress)
    shown = 1 if (cut or condition_preset(preset).cut) == "onset" else 0
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
    columns = {"condition": "natural", "builder": "natural", "shown": shown, "seam": False}
    return _corpus(model, texts, numbers, rows, columns, starts, periods)


def induced_condition(
    model: Model,
    prompts: Corpus,
    copies: int | None = None,
    builder: Builder | None = None,
    *,
    preset: str = "mechrep",
    max_new_tokens: int | None = None,
    batch_size: int = 256,
    progress: bool | None = None,
) -> Corpus:
    """Texts that are to be copied because they were shown ``copies`` times.

    Args:
        model: the model.
        prompts: the fixed list.
        copies: how often each is shown; the preset's 2 by default.
        builder: ``"text"``: the prompts that do *not* loop by themselves; ``"cycle"``, the older variant: the cycle
            alone of those that do.  They differ in text, in length and in what the model would do by itself.
        preset: as in :func:`natural_condition`, as for all that follows.
        max_new_tokens: as there.
        batch_size: as there.
        progress: as there.

    Returns:
        A corpus as that of :func:`natural_condition`, with ``condition`` ``"induced"`` and ``builder``
        ``"icl_from_nonrepeating(2)"`` or ``"icl_from_cycle(2)"``.  ``seam`` is true for the first builder: a text cut
        anywhere does not lead back to its beginning, so the first token of each copy counts in no average.

    Raises:
        NothingFoundError: every text loops by itself (none does, for ``"cycle"``).
        InputError: copies that do not fit into the context, or what :func:`natural_condition` refuses.

    Source: Mahaut & Franzon 2025 (arXiv 2504.01100), second version (``"text"``) and first (``"cycle"``).

    Example:
        >>> import mechrep
        >>> from mechrep.generation.conditions import induced_condition
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> prompts = mechrep.generation.sample_prompts(model, 12)
        >>> induced = induced_condition(model, prompts, 3, "cycle", max_new_tokens=150)
        >>> set(induced.frame["builder"]), set(induced.frame["shown"])
        ({'icl_from_cycle(3)'}, {3})
    """
    check_choice("builder", builder, ("text", "cycle"))
    chosen = condition_preset(preset)
    times, what = chosen.copies if copies is None else copies, builder or chosen.builder
    texts = _written(model, prompts, preset, max_new_tokens, batch_size, progress)
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
    columns = {"condition": "induced", "builder": builder_name(what, times), "shown": times, "seam": what == "text"}
    return _corpus(model, texts, numbers, whole, columns, starts, periods)


def control_condition(
    model: Model,
    prompts: Corpus,
    *,
    preset: str = "mechrep",
    max_new_tokens: int | None = None,
    batch_size: int = 256,
    progress: bool | None = None,
) -> Corpus:
    """Prompts with a continuation that does not loop: no repetition to go on with.

    Args:
        model: the model.
        prompts: the fixed list.
        preset: as in :func:`natural_condition`, as for all that follows.
        max_new_tokens: as there.
        batch_size: as there.
        progress: as there.

    Returns:
        A corpus with ``condition`` ``"control"`` and ``builder`` ``"control_nonrepeating"``; ``start``, ``onset`` and
        ``period`` are missing, and an EOS at the end is left out.

    Raises:
        NothingFoundError: every text loops by itself, or ends at once.
        InputError: what :func:`natural_condition` refuses.

    Example:
        >>> import mechrep
        >>> from mechrep.generation.conditions import control_condition
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> prompts = mechrep.generation.sample_prompts(model, 12)
        >>> control = control_condition(model, prompts, max_new_tokens=20)
        >>> bool(control.frame["onset"].isna().all())
        True
    """
    texts = _written(model, prompts, preset, max_new_tokens, batch_size, progress)
    numbers, rows = [], []
    for i, loops in enumerate(texts.loops):
        ids = texts.written.row(i)
        ids = ids[:-1] if ids[-1] in model.eos_ids else ids
        if not loops and len(ids) > len(prompts.row(i)):
            numbers.append(i)
            rows.append(ids)
    if not numbers:
        raise NothingFoundError(
            f"{len(prompts)} prompts to {model.name}, {int(texts.loops.sum())} of which loop by themselves within "
            f"{texts.max_new_tokens} tokens (preset {preset!r}) and the others end at once",
            "continuations that do not loop",
            f"try more prompts, fewer max_new_tokens or another checkpoint; {_LOOK}",
        )
    columns = {"condition": "control", "builder": "control_nonrepeating", "shown": 0, "seam": False}
    return _corpus(model, texts, numbers, rows, columns)


def builder_name(builder: Builder, copies: int) -> str:
    """What an induced condition is called in every table."""
    return f"icl_from_nonrepeating({copies})" if builder == "text" else f"icl_from_cycle({copies})"


def shown_rows(
    model: Model, texts: ConditionTexts, builder: Builder, copies: int
) -> tuple[list[int], list[list[int]], list[int]]:
    """Numbers, rows as shown, and lengths of one copy, of the texts that an induced condition shows.

    Raises:
        InputError: fewer than one copy, a prompt of fewer than two tokens, or copies that do not fit.
    """
    if copies < 1:
        raise InputError(f"copies={copies}", "at least 1", "ask for 2, as the published condition does")
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


def _written(
    model: Model, prompts: Corpus, preset: str, max_new_tokens: int | None, batch_size: int, progress: bool | None
) -> ConditionTexts:
    return write_texts(
        model, prompts, preset=preset, max_new_tokens=max_new_tokens, batch_size=batch_size, progress=progress
    )


def _corpus(
    model: Model,
    texts: ConditionTexts,
    numbers: list[int],
    rows: Sequence[Sequence[int]],
    columns: dict[str, Any],
    starts: Sequence[int] | None = None,
    periods: Sequence[int] | None = None,
) -> Corpus:
    """The condition as a corpus, with the facts that every condition has."""
    frame = prompt_facts(texts.prompts, numbers).assign(**columns, detector=condition_preset(texts.preset).detector)
    frame["id"] = frame["prompt"] + "/" + frame["builder"]
    if starts is None or periods is None:
        frame["prompt_length"] = [len(texts.prompts.row(i)) for i in numbers]
    else:
        frame["start"], frame["period"] = pd.array(list(starts), "Int64"), pd.array(list(periods), "Int64")
        frame["onset"] = frame["start"] + frame["period"]
        frame["prompt_length"] = frame["start"] + frame["shown"] * frame["period"]
        frame["copies"] = [(len(row) - s) / p for row, s, p in zip(rows, starts, periods, strict=True)]
    corpus = Corpus.from_tokens(rows, model=model, frame=frame, bos_policy=texts.prompts.bos_policy)
    facts = {"prompts": len(texts.prompts), "new_tokens": texts.new_tokens, "preset": texts.preset}
    corpus.frame.attrs.update(facts)
    return corpus
