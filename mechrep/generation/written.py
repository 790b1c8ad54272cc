"""What a model writes after one fixed list of prompts, once: every kind of text is taken from these texts.

A text *loops naturally* if the detector finds a cycle that its continuation ends in.  With early stopping a text ends
when its loop is all but certain; where copies in the prompt brought that about too soon for the detector, which looks
at the continuation alone, the text is continued.  So stopping changes no answer that the detector gives at the stop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal
from weakref import WeakKeyDictionary

import numpy as np
from jaxtyping import Bool

from mechrep.errors import InputError
from mechrep.generation.decode import Decoding, generate
from mechrep.guards import one_of
from mechrep.models.model import Model
from mechrep.text.corpus import Corpus, CorpusLike
from mechrep.text.cycles import detect_cycle
from mechrep.text.watch import Cycle

Builder = Literal["text", "cycle"]
Cut = Literal["start", "onset"]


@dataclass(frozen=True)
class TextKindPreset:
    """How the texts of one model are made and told apart.

    Attributes:
        detector: preset of :func:`mechrep.detect_cycle`; it looks at the continuation only.
        new_tokens: greedy tokens after each prompt, or as many as fit into the context.
        stop_early: stop a text once its loop is all but certain (:class:`~mechrep.text.watch.TailWatch`).
        builder: what induced texts show.
        copies: how often.
        cut: where natural prompts end: before the first copy of the loop, or after it.
        padded_is_loop: published evaluation: a text that ended is padded with EOS, and the padding counts as a loop.
    """

    detector: str = "mechrep"
    new_tokens: int = 1000
    stop_early: bool = True
    builder: Builder = "text"
    copies: int = 2
    cut: Cut = "onset"
    padded_is_loop: bool = False


PRESETS = {
    "mechrep": TextKindPreset(),
    "mahaut2025": TextKindPreset("mahaut2025", stop_early=False, cut="start"),
    "mahaut2025_released": TextKindPreset("mahaut2025", stop_early=False, cut="start", padded_is_loop=True),
    "mahaut2025_v1": TextKindPreset("mahaut2025", stop_early=False, builder="cycle", cut="start"),
}


def text_kind_preset(name: str) -> TextKindPreset:
    """A preset by name.

    Raises:
        InputError: an unknown name.
    """
    one_of("preset", name, sorted(PRESETS))
    return PRESETS[name]


_LEAST_NEW_TOKENS = 16  # two copies of the shortest text that counts as a loop


@dataclass(frozen=True, eq=False)
class WrittenTexts:
    """One model's greedy continuations of a fixed list of prompts.

    Attributes:
        prompts: the list.
        written: prompts and continuations, in the order of the prompts, with the cycle of each.
        preset: name of the preset.
        max_new_tokens: so many at most after each prompt.
        new_tokens: tokens that were generated in all.
        model: fingerprint of the model.
    """

    prompts: Corpus
    written: Corpus
    preset: str
    max_new_tokens: int
    new_tokens: int
    model: str

    @property
    def loops(self) -> Bool[np.ndarray, " text"]:
        """Whether each text loops by itself."""
        return self.written.frame["onset"].notna().to_numpy(dtype=bool)

    def continuation(self, i: int) -> list[int]:
        """Generated ids of text i."""
        return self.written.row(i)[len(self.prompts.row(i)) :]


_KNOWN: WeakKeyDictionary[Model, dict[tuple[object, ...], WrittenTexts]] = WeakKeyDictionary()


def write_texts(
    model: Model,
    prompts: CorpusLike,
    *,
    preset: str = "mechrep",
    max_new_tokens: int | None = None,
    batch_size: int = 256,
    progress: bool | None = None,
) -> WrittenTexts:
    """Continue every prompt greedily; the same list is never continued twice by the same model.

    The answer is remembered for as long as the model lives, under the fingerprint of weights, prompts and settings.

    Args:
        model: the model.
        prompts: the fixed list; the whole of each text is its prompt.
        preset: a key of :data:`PRESETS`.
        max_new_tokens: continue by at most so many; by default the preset's 1000, or what fits into the context.
        batch_size: rows computed together.
        progress: show a progress bar.

    Raises:
        InputError: a corpus of another tokenizer, prompts that leave no room in the context, an unknown preset.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> prompts = mechrep.Corpus.from_texts(["The sea was", "And the king"], model=model)
        >>> texts = write_texts(model, prompts, max_new_tokens=40)
        >>> texts is write_texts(model, prompts, max_new_tokens=40), len(texts.loops)
        (True, 2)
    """
    chosen = text_kind_preset(preset)
    prompts = Corpus.of(prompts, model)
    prompts.check_model(model)
    limit = _new_tokens(model, prompts, chosen.new_tokens, max_new_tokens)
    fingerprint = model.fingerprint()
    known = _KNOWN.setdefault(model, {})
    key = (fingerprint, prompts.fingerprint(), chosen.detector, chosen.stop_early, limit)
    if key not in known:

        def found(ids: list[int], prompt_length: int) -> Cycle | None:
            return cycle_of(model, ids, prompt_length, preset)

        rows = [prompts.row(i) for i in range(len(prompts))]
        facts = prompts.frame.drop(columns=["start", "onset", "period", "copies"])
        fresh = Corpus.from_tokens(rows, model=model, attention_mask=True, frame=facts, bos_policy=prompts.bos_policy)
        written = continue_texts(
            model, fresh, limit, stop_early=chosen.stop_early, decided=lambda ids, n: found(ids, n) is not None,
            batch_size=batch_size, progress=progress,
        )  # fmt: skip
        lengths = written.frame["prompt_length"].tolist()
        cycles = [found(written.row(i), lengths[i]) for i in range(len(written))]
        columns = {name: [getattr(c, name, None) for c in cycles] for name in ("start", "onset", "period", "copies")}
        written = written.with_columns(**columns, detector=chosen.detector)
        new_tokens = int(written.lengths.sum()) - sum(lengths)
        known[key] = WrittenTexts(prompts, written, preset, limit, new_tokens, fingerprint)
    return known[key]


def already_written(model: Model, texts: Corpus, preset: str = "mechrep") -> tuple[Corpus, int]:
    """Take texts that the model continued greedily as the continuations of their prompts: none is written again.

    Args:
        model: the model that wrote them.
        texts: with ``prompt_length``, as :func:`mechrep.generation.decode.generate` marks it.
        preset: a key of :data:`PRESETS`.

    Returns:
        The prompts, and tokens after each, for :func:`write_texts` and all that builds on it.

    Raises:
        InputError: texts without ``prompt_length``, or of another tokenizer.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> prompts = mechrep.Corpus.from_texts(["The sea was", "And the king"], model=model)
        >>> texts = mechrep.generate(model, prompts, max_new_tokens=30, progress=False)
        >>> again, limit = already_written(model, texts)
        >>> write_texts(model, again, max_new_tokens=limit).written.row(1) == texts.row(1)
        True
    """
    texts.check_model(model)
    if "prompt_length" not in texts.frame or texts.frame["prompt_length"].isna().any():
        raise InputError("texts without prompt_length", "texts that the model continued", "use mechrep.generate")
    chosen, lengths = text_kind_preset(preset), texts.frame["prompt_length"].astype(int).tolist()
    rows = [texts.row(i) for i in range(len(texts))]
    limit = max(len(row) - n for row, n in zip(rows, lengths, strict=True))
    facts = texts.frame[["id", "source"]].reset_index(drop=True)
    given = [row[:n] for row, n in zip(rows, lengths, strict=True)]
    policy = texts.bos_policy
    prompts = Corpus.from_tokens(given, model=model, attention_mask=True, frame=facts, bos_policy=policy)
    cycles = [cycle_of(model, row, n, preset) for row, n in zip(rows, lengths, strict=True)]
    columns = {name: [getattr(c, name, None) for c in cycles] for name in ("start", "onset", "period", "copies")}
    written = texts.with_columns(**columns, detector=chosen.detector)
    fingerprint = model.fingerprint()
    key = (fingerprint, prompts.fingerprint(), chosen.detector, chosen.stop_early, limit)
    new_tokens = sum(map(len, rows)) - sum(lengths)
    known = WrittenTexts(prompts, written, preset, limit, new_tokens, fingerprint)
    _KNOWN.setdefault(model, {})[key] = known
    return prompts, limit


def _new_tokens(model: Model, prompts: Corpus, usual: int, given: int | None) -> int:
    """Tokens to write after each prompt.

    Raises:
        InputError: the prompts do not leave room for them.
    """
    longest = int(prompts.lengths.max())
    room = model.anatomy.n_ctx - longest
    needed = _LEAST_NEW_TOKENS if given is None else given
    if needed < 1 or room < needed:
        name = prompts.frame["id"][int(prompts.lengths.argmax())]
        raise InputError(
            f"prompt {name!r} of {longest} tokens and {needed} new ones",
            f"at least 1 new token, and at most the {model.anatomy.n_ctx} positions of {model.name} in all",
            "shorten the prompts or lower max_new_tokens",
        )
    return given if given is not None else min(room, usual)


def continue_texts(
    model: Model,
    prompts: Corpus,
    max_new_tokens: int,
    *,
    stop_early: bool,
    decided: Callable[[list[int], int], bool],
    batch_size: int = 256,
    progress: bool | None = None,
) -> Corpus:
    """Continue prompts greedily up to EOS; with ``stop_early`` until their loop is certain *and* they are decided.

    Args:
        model: the model.
        prompts: the prompts.
        max_new_tokens: at most so many.
        stop_early: stop at certain loops.
        decided: says of ids and prompt length whether a text that was stopped has its answer.
        batch_size: rows computed together.
        progress: show a progress bar.
    """
    rules = Decoding(["eos", "mechrep"] if stop_early else "eos")
    written = generate(
        model, prompts, max_new_tokens=max_new_tokens, decoding=rules, batch_size=batch_size, progress=progress
    )
    rows, lengths = [written.row(i) for i in range(len(written))], prompts.lengths.tolist()
    reasons = written.frame["stop_reason"].tolist()
    for i, row in enumerate(rows):
        left = max_new_tokens - (len(row) - lengths[i])
        if reasons[i] == "stopped" and left > 0 and not decided(row, lengths[i]):
            alone = Corpus.from_tokens([row], model=model, attention_mask=True)
            more = generate(model, alone, max_new_tokens=left, progress=False)
            rows[i], reasons[i] = more.row(0), str(more.frame["stop_reason"][0])
    frame = written.frame.assign(stop_reason=reasons)
    return Corpus.from_tokens(rows, model=model, attention_mask=True, frame=frame, bos_policy=prompts.bos_policy)


def cycle_of(
    model: Model, ids: list[int], prompt_length: int, preset: str, *, padded_to: int | None = None
) -> Cycle | None:
    """The cycle that a continuation ends in, by a preset's detector.

    Args:
        model: whose EOS ends a text.
        ids: prompt and continuation.
        prompt_length: of the prompt; the detector does not look at it.
        preset: a key of :data:`PRESETS`.
        padded_to: for presets that count padding as a loop: new tokens up to which a text is padded with EOS.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> ids = [0, 5, 6, 7, 8, 9, *model.eos_ids]
        >>> found = [cycle_of(model, ids, 2, name, padded_to=9) for name in ("mahaut2025", "mahaut2025_released")]
        >>> found[0] is None, found[1].period
        (True, 2)
    """
    chosen = text_kind_preset(preset)
    continuation, eos_ids = ids[prompt_length:], model.eos_ids
    special = model.special_ids
    if chosen.padded_is_loop and padded_to is not None and continuation and continuation[-1] in eos_ids:
        continuation, special = continuation + continuation[-1:] * (padded_to - len(continuation)), frozenset()
    cycle = detect_cycle(continuation, chosen.detector, eos_id=eos_ids, special_ids=special)
    return None if cycle is None else cycle.shifted(prompt_length)
