"""Texts in which the model falls into a loop by itself, and texts in which it does not.

A text in a loop with a counter (:mod:`mechrep.text.counters`) is neither: it is never handed out as loop-free.

The recipe of the published work: BOS, ten sampled tokens, then greedy decoding; a detector says whether the text
loops.  A text ends as soon as that is settled and what studies look at has been written.  Prompts are tried in their
order, in rounds whose size is fixed beforehand; all that were tried count for the share that loops.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool

from mechrep.errors import MissingPartError, NothingFoundError
from mechrep.generation.decode import Decoding, Request, answers_to_corpus, generate, run_requests
from mechrep.guards import Count, Seed, Whole, guarded, one_of
from mechrep.journal import Journal
from mechrep.models.model import Model
from mechrep.progress import progress_bar
from mechrep.provenance import provenance_of
from mechrep.text.corpus import Corpus
from mechrep.text.counters import counting_loop
from mechrep.text.cycles import MIN_COPIES, repeats_after_prompt
from mechrep.text.watch import TailWatch, watch_for


@dataclass(frozen=True)
class LoopPreset:
    """How looping texts are made and told from others.

    Attributes:
        detector: preset of :func:`mechrep.detect_cycle`.
        min_copies: a text is looping only with so many copies; with fewer it is neither looping nor loop-free.
        sampled: tokens sampled after BOS.
        temperature: of the sampled tokens.
        top_k: of the sampled tokens.
        greedy: tokens then decoded greedily, at most.
        min_prefix: the onset must be later than this position.
        after: tokens that a looping text has from its onset on, where ``greedy`` leaves room for them.
    """

    detector: str = "hiraoka2025"
    min_copies: float = 0.0
    sampled: int = 10
    temperature: float = 1.0
    top_k: int = 50
    greedy: int = 200
    min_prefix: int = 50
    after: int = 32

    def within(self, n_ctx: int) -> LoopPreset:
        """The same for a model that reads so many positions: fewer tokens are written where they would not fit.

        Example:
            >>> LoopPreset().within(128).greedy
            117
        """
        return replace(self, greedy=min(self.greedy, n_ctx - 1 - self.sampled))


_BLOCK = 24  # prompts written and kept together
_BLOCKS = 4  # of them in one batch, at most
_OTHERS = 4  # times the prompts that the loops took are tried, however few loop-free texts there are

PRESETS = {
    "hiraoka2025": LoopPreset(),
    # The canonical detector sees loops of any period, and two copies are no loop yet: like the published detector, ask
    # for a third.  Three copies of a long period need room: pretrained models come to many of them after 200 tokens.
    "mechrep": LoopPreset(detector="mechrep", min_copies=float(MIN_COPIES), greedy=320),
}


def loop_preset(name: str) -> LoopPreset:
    """A preset by name.

    Raises:
        InputError: an unknown name.
    """
    one_of("preset", name, sorted(PRESETS))
    return PRESETS[name]


def sample_prompts(
    model: Model,
    n: int,
    *,
    length: int = 10,
    temperature: float = 1.0,
    top_k: int | None = 50,
    seed: int = 0,
    first: int = 0,
) -> Corpus:
    """Prompts that the model itself begins: BOS and ``length`` sampled tokens.

    An EOS among the sampled tokens does not end the prompt, as in the published recipe.  Prompt number ``i`` is the
    same whatever ``n`` is.

    Args:
        model: the model.
        n: how many.
        length: sampled tokens.
        temperature: of the sampling.
        top_k: sample among so many tokens.
        seed: of the sampling.
        first: number of the first prompt, to go on where an earlier call ended.

    Raises:
        MissingPartError: the model has no id that could start a text.

    Source: Hiraoka & Inui 2025 (arXiv 2410.13497), released code.

    Example:
        >>> import mechrep
        >>> prompts = sample_prompts(mechrep.load_model("mechrep-tiny"), 3, length=4)
        >>> [len(prompts.row(i)) for i in range(3)]
        [5, 5, 5]
    """
    if model.bos_id is None:
        raise MissingPartError(
            f"{model.name}, which has no BOS and no EOS id", "an id that starts a text", "make prompts yourself"
        )
    frame = pd.DataFrame({"id": [f"sample-{seed}-{first + i}" for i in range(n)], "source": "sampled by the model"})
    starts = Corpus.from_tokens(
        [[model.bos_id]] * n, model=model, attention_mask=True, frame=frame, bos_policy="prepended"
    )
    requests = [Request((model.bos_id,), length, text=first + i) for i in range(n)]
    decoding = Decoding(None, temperature, top_k, seed)
    return answers_to_corpus(model, starts, run_requests(model, requests, decoding, progress=False))


class LoopWatch:
    """Says when a text that may fall into a loop has shown what is asked of it.

    It may end once the preset's detector has fired and the text is ``after`` tokens past the onset, or when the onset
    is too early to be of use.  The published detector stays with its first loop however the text goes on, so nothing is
    decided otherwise than by the finished text.  For the default one a text loops that has come to end in so many
    copies as the preset asks for, in 32 tokens or more.

    Args:
        preset: see :class:`LoopPreset`.
        prompt: ids of the prompt.
        special_ids: no loop on their own, for the default detector.
    """

    def __init__(self, preset: LoopPreset, prompt: Sequence[int], special_ids: Collection[int] = ()) -> None:
        default = preset.detector == "mechrep"  # the others are given the prompt too
        self.preset, self.special = preset, frozenset(special_ids) if default else frozenset[int]()
        self.length, self.first = len(prompt), len(prompt) if default else 0
        copies = math.ceil(preset.min_copies)
        self.inner = TailWatch(copies=copies) if default else watch_for(preset.detector)(prompt)

    def push(self, token: int) -> bool:
        """Take the next token; true once the text may end."""
        self.length += 1
        if not self.inner.push(token):
            return False
        cycle = self.inner.cycle
        if cycle is None or set(cycle.tokens) <= self.special:
            return False
        onset = cycle.onset + self.first
        return onset <= self.preset.min_prefix or self.length >= onset + self.preset.after


@dataclass(frozen=True)
class _UntilLoop:
    """The rule that ends a text by a :class:`LoopWatch`."""

    preset: LoopPreset
    special_ids: frozenset[int]

    def watch(self, prompt: Sequence[int]) -> LoopWatch:
        return LoopWatch(self.preset, prompt, self.special_ids)


@dataclass(eq=False)
class PromptTexts:
    """Texts that a model writes from its own prompts, number by number: written once, kept, the same however asked for.

    Args:
        model: the model.
        preset: of :data:`PRESETS`.
        seed: of the prompts.
        store: folder that keeps written texts, in blocks; a stopped run goes on where it was.
        batch_size: rows computed together.

    Raises:
        InputError: an unknown preset.
        StoreError: a store that cannot be written.

    Example:
        >>> import mechrep
        >>> texts = PromptTexts(mechrep.load_model("mechrep-tiny"))
        >>> few, more = texts.between(1, 2), texts.between(0, 3)
        >>> few.row(0) == more.row(1), texts.loops(more).shape
        (True, (3,))
    """

    model: Model
    preset: str = "mechrep"
    seed: int = 0
    store: str | Path | None = None
    batch_size: int = 256
    written: dict[int, Corpus] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.rules = loop_preset(self.preset).within(self.model.anatomy.n_ctx)
        config = {"study": "texts from sampled prompts", "seed": self.seed, "block": _BLOCK, **asdict(self.rules)}
        self.journal = Journal(Path(self.store), provenance_of(self.model, None, config)) if self.store else None

    def between(self, first: int, end: int) -> Corpus:
        """The texts of prompts ``first`` to ``end - 1`` with their cycles; what is missing is written now."""
        begin = first // _BLOCK
        sizes = {number: min(_BLOCK, end - number * _BLOCK) for number in range(begin, math.ceil(end / _BLOCK))}
        for number, size in sizes.items():
            if self.journal is not None and len(self.written.get(number, ())) < size:
                self._read(number)
        missing = [number for number, size in sizes.items() if len(self.written.get(number, ())) < size]
        if missing:
            self._write(missing[0], [sizes[number] for number in range(missing[0], missing[-1] + 1)])
        whole = Corpus.concatenate(*(self.written[number].select(range(size)) for number, size in sizes.items()))
        return whole.select(range(first - begin * _BLOCK, len(whole)))

    def loops(self, texts: Corpus) -> Bool[np.ndarray, " text"]:
        """Whether each text falls into a loop, wherever it begins."""
        found = texts.frame["onset"].notna() & (texts.frame["copies"] >= self.rules.min_copies)
        return found.fillna(False).to_numpy(dtype=bool)

    def _write(self, block: int, sizes: Sequence[int]) -> None:
        rules, model = self.rules, self.model
        prompts = sample_prompts(
            model, sum(sizes), length=rules.sampled, temperature=rules.temperature, top_k=rules.top_k, seed=self.seed,
            first=block * _BLOCK,
        )  # fmt: skip
        decoding = Decoding(["eos", _UntilLoop(rules, frozenset(model.special_ids))])
        texts = generate(
            model, prompts, max_new_tokens=rules.greedy, decoding=decoding, batch_size=self.batch_size, progress=False
        )
        for number in range(len(sizes)):
            some = texts.select(range(number * _BLOCK, number * _BLOCK + sizes[number]))
            self._take(block + number, some)
            if self.journal is not None:
                reasons = some.frame["stop_reason"].tolist()
                records = [{"ids": some.row(i), "stop_reason": reason} for i, reason in enumerate(reasons)]
                self.journal.keep(block + number, records)

    def _read(self, block: int) -> None:
        records = None if self.journal is None else self.journal.find(block)
        if records is not None:
            facts = {
                "id": [f"sample-{self.seed}-{block * _BLOCK + i}" for i in range(len(records))],
                "source": "sampled by the model",
                "prompt_length": 1 + self.rules.sampled,
                "stop_reason": [record["stop_reason"] for record in records],
            }
            rows = [record["ids"] for record in records]
            self._take(block, Corpus.from_tokens(
                rows, model=self.model, attention_mask=True, frame=pd.DataFrame(facts), bos_policy="prepended"
            ))  # fmt: skip

    def _take(self, block: int, texts: Corpus) -> None:
        # Special ids are kept: an EOS ends the greedy part, and the detectors are told about it.
        self.written[block] = texts.with_cycles(self.rules.detector, eos_id=self.model.eos_ids)


@guarded
def collect_loops(
    model: Model,
    n_loops: Count,
    *,
    n_others: Whole | None = None,
    preset: str = "mechrep",
    seed: Seed = 0,
    max_prompts: Count | None = None,
    texts: PromptTexts | None = None,
    progress: bool | None = None,
) -> Corpus:
    """Let the model write until ``n_loops`` of its texts loop, and keep some that do not.

    Args:
        model: the model.
        n_loops: looping texts wanted (condition ``"looping"``).
        n_others: loop-free texts wanted (condition ``"loop_free"``); as many as loops by default.
        preset: ``"hiraoka2025"`` or ``"mechrep"``: which detector decides, see :data:`PRESETS`.
        seed: of the prompts.
        max_prompts: give up after so many prompts; by default 20 for each text wanted; sooner where the loops are there
            and four times as many prompts show that loop-free texts are too rare for that.
        texts: where the texts come from, in place of ``preset`` and ``seed``: to keep what is written, or to share it.
        progress: show a progress bar.

    Returns:
        A corpus with ``condition``, ``onset``, ``period`` and ``copies``; the first texts in the order of the prompts.
        ``frame.attrs["prompts"]`` is the number of prompts that were tried, ``frame.attrs["looped"]`` how many of
        their texts loop.  Fewer texts than wanted are returned when ``max_prompts`` ran out.

    Raises:
        NothingFoundError: not one text looped.
        InputError: an unknown preset, or numbers of texts that make no sense.

    Source: Hiraoka & Inui 2025 (arXiv 2410.13497).

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> corpus = collect_loops(model, 4, n_others=2)
        >>> "looping" in set(corpus.frame["condition"])
        True
    """
    n_others = n_loops if n_others is None else n_others
    limit = 20 * (n_loops + n_others) if max_prompts is None else max_prompts
    source = texts or PromptTexts(model, preset, seed)
    found: dict[str, list[Corpus]] = {"looping": [], "loop_free": []}
    tried, looped, for_loops, at_once = 0, 0, 0, _BLOCK * math.ceil((n_loops + n_others) / (2 * _BLOCK))
    with progress_bar(n_loops, "collecting loops", "loop", progress) as bar:
        while tried < limit and (_count(found["looping"]) < n_loops or _count(found["loop_free"]) < n_others):
            before, tried = tried, min(tried + at_once, limit)
            new = source.between(before, tried)
            looped += int(source.loops(new).sum())
            for condition, kept in _sort_out(new, source.rules, model).items():
                found[condition] += [kept] if kept is not None else []
            loops, others = _count(found["looping"]), _count(found["loop_free"])
            bar.update(min(n_loops, loops) - bar.n)
            for_loops = for_loops or tried * (loops >= n_loops)
            hopeless = others * limit < n_others * tried  # at this rate they will not all be found
            if max_prompts is None and hopeless and 0 < _OTHERS * for_loops <= tried:
                break
            at_once = _next_prompts(tried, ((loops, n_loops), (others, n_others)))
    if not found["looping"]:
        raise NothingFoundError(
            f"{tried} prompts to {model.name}",
            f"a text that {source.rules.detector!r} calls a loop, with its onset after position "
            f"{source.rules.min_prefix}",
            "try more prompts (max_prompts), another preset, or another model",
        )
    parts = [
        Corpus.concatenate(*group).select(range(min(wanted, _count(group))))
        for group, wanted in ((found["looping"], n_loops), (found["loop_free"], n_others))
        if group and wanted
    ]
    corpus = Corpus.concatenate(*parts)
    corpus.frame.attrs["prompts"], corpus.frame.attrs["looped"] = tried, looped
    return corpus


def _next_prompts(tried: int, found_and_wanted: Sequence[tuple[int, int]]) -> int:
    """Prompts that are likely to give what is missing, in whole blocks: one large batch costs less than many small.

    Example:
        >>> _next_prompts(24, [(16, 16), (2, 6)]), _next_prompts(24, [(0, 16), (2, 2)])
        (48, 96)
    """
    needed = [(wanted - found) * tried / max(found, 1) for found, wanted in found_and_wanted if found < wanted]
    return _BLOCK * min(_BLOCKS, max(1, math.ceil(max(needed, default=0) / _BLOCK)))


def without_counter(model: Model, corpus: Corpus) -> Bool[np.ndarray, " text"]:
    """Whether each text is free of loops with a counter, after its prompt; all are where a model has no tokenizer.

    Args:
        model: whose ids they are.
        corpus: the texts.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> texts = ["He went to the door and said no.", "".join(f"He said no, {n}. " for n in range(8, 14))]
        >>> without_counter(model, mechrep.Corpus.from_texts(texts, model=model)).tolist()
        [True, False]
    """
    if model.tokenizer is None:
        return np.ones(len(corpus), dtype=bool)
    lengths = corpus.frame["prompt_length"].tolist()
    found = [
        counting_loop(corpus.row(i), model.decode, lengths[i], eos_id=model.eos_ids, special_ids=model.special_ids)
        for i in range(len(corpus))
    ]
    return np.array([loop is None for loop in found])


def _count(parts: list[Corpus]) -> int:
    return sum(map(len, parts))


def _sort_out(texts: Corpus, preset: LoopPreset, model: Model) -> dict[str, Corpus | None]:
    """Looping texts with a late enough onset, and texts that fell into no loop at all, not even for a while."""
    late = (texts.frame["onset"] > preset.min_prefix).fillna(False)
    eos_ids, special_ids = model.eos_ids, model.special_ids
    decode = None if model.tokenizer is None else model.decode
    loop_free = [
        pd.isna(onset)
        and not repeats_after_prompt(
            texts.row(i), int(length), preset.detector, eos_id=eos_ids, special_ids=special_ids, decode=decode
        )
        for i, (onset, length) in enumerate(zip(texts.frame["onset"], texts.frame["prompt_length"], strict=True))
    ]
    masks = {"looping": late & (texts.frame["copies"] >= preset.min_copies), "loop_free": pd.Series(loop_free)}
    return {
        condition: texts.select(mask).with_columns(condition=condition) if mask.any() else None
        for condition, mask in masks.items()
    }
