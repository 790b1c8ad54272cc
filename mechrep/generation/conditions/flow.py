"""What becomes of every text of the list: does it loop by itself, may it be shown again, and is it then copied?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import pandas as pd

from mechrep.generation.conditions.builders import builder_name, shown_rows
from mechrep.generation.conditions.presets import Builder, condition_preset
from mechrep.generation.conditions.written import ConditionTexts, continue_texts, cycle_of, write_texts
from mechrep.models.model import Model
from mechrep.text.corpus import Corpus


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
    texts: ConditionTexts
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


def condition_flow(
    model: Model,
    prompts: Corpus,
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
    kind.  Both are greedy; with teacher forcing see :class:`mechrep.ConditionContrast`.

    Args:
        model: the model.
        prompts: the fixed list.
        preset: see :func:`~mechrep.generation.conditions.written.write_texts`, as for the last three.
        copies: how often a text (or cycle) is shown; the preset's 2 by default.
        builder: ``"text"`` shows the texts that do not loop by themselves, ``"cycle"`` the cycles of those that do; the
            preset's by default.
        max_new_tokens: as there.
        batch_size: as there.
        progress: as there.

    Raises:
        InputError: as :func:`~mechrep.generation.conditions.written.write_texts`; copies that do not fit into the
            context.

    Source: Mahaut & Franzon 2025 (arXiv 2504.01100).  The version of their code that was read lists texts in which
    *no natural cycle* was found where it speaks of copying; here these are two flags.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> prompts = mechrep.Corpus.from_texts(["The sea was calm", "And the king said"], model=model)
        >>> flow = condition_flow(model, prompts, max_new_tokens=60)
        >>> bool((flow.frame["loops_naturally"] ^ flow.frame["eligible_for_icl"]).all())
        True
    """
    chosen = condition_preset(preset)
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
    model: Model, texts: ConditionTexts, builder: Builder, copies: int, batch_size: int, progress: bool | None
) -> Flow:
    loops = texts.loops
    frame = pd.DataFrame({"prompt": texts.prompts.frame["id"], "loops_naturally": loops, "eligible_for_icl": ~loops})
    for name, dtype in (("copies_in_icl", "boolean"), ("loops_in_icl", "boolean"), ("copy_run", "Int64")):
        frame[name] = pd.array([pd.NA] * len(frame), dtype=dtype)
    frame["copy_share"] = float("nan")
    numbers, rows, lengths = shown_rows(model, texts, builder, copies)
    if not numbers:
        return Flow(frame, texts, None, builder_name(builder, copies), texts.new_tokens)
    prompts = Corpus.from_tokens(rows, model=model, source="shown")
    cycles = [row[len(row) - length :] for row, length in zip(rows, lengths, strict=True)]
    by_prompt = {tuple(row): cycle for row, cycle in zip(rows, cycles, strict=True)}

    def decided(ids: list[int], prompt_length: int) -> bool:
        copy, after = by_prompt[tuple(ids[:prompt_length])], ids[prompt_length:]
        run = copy_run(after, copy)
        copying = run >= len(copy) or run < len(after)
        return copying and cycle_of(model, ids, prompt_length, texts.preset) is not None

    room = model.anatomy.n_ctx - int(prompts.lengths.max())
    limit = min(texts.max_new_tokens, room)
    early = condition_preset(texts.preset).stop_early
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
