"""Texts in which the model falls into a loop by itself, and texts in which it does not.

A text in a loop with a counter (:mod:`mechrep.text.counters`) is neither: it is never handed out as loop-free.

The recipe of the published work: BOS, ten sampled tokens, then greedy decoding; a detector says whether the text
loops.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from jaxtyping import Bool

from mechrep.errors import InputError, MissingPartError, NothingFoundError
from mechrep.generation.decode import generate
from mechrep.models.model import Model
from mechrep.progress import progress_bar
from mechrep.text.corpus import Corpus
from mechrep.text.counters import counting_loop
from mechrep.text.cycles import MIN_COPIES, repeats_after_prompt


@dataclass(frozen=True)
class LoopPreset:
    """How looping texts are made and told from others.

    Attributes:
        detector: preset of :func:`mechrep.detect_cycle`.
        min_copies: a text is looping only with so many copies; with fewer it is neither looping nor loop-free.
        sampled: tokens sampled after BOS.
        temperature: of the sampled tokens.
        top_k: of the sampled tokens.
        greedy: tokens then decoded greedily.
        min_prefix: the onset must be later than this position.
    """

    detector: str = "hiraoka2025"
    min_copies: float = 0.0
    sampled: int = 10
    temperature: float = 1.0
    top_k: int = 50
    greedy: int = 200
    min_prefix: int = 50

    def within(self, n_ctx: int) -> LoopPreset:
        """The same for a model that reads so many positions: fewer tokens are written where they would not fit.

        Example:
            >>> LoopPreset().within(128).greedy
            117
        """
        return replace(self, greedy=min(self.greedy, n_ctx - 1 - self.sampled))


_FEWEST = 16  # prompts tried together

PRESETS = {
    "hiraoka2025": LoopPreset(),
    # The canonical detector sees loops of any period, and two copies at a text's end are no loop yet: like the
    # published detector, ask for a third.
    "mechrep": LoopPreset(detector="mechrep", min_copies=float(MIN_COPIES)),
}


def loop_preset(name: str) -> LoopPreset:
    """A preset by name.

    Raises:
        InputError: an unknown name.
    """
    if name not in PRESETS:
        raise InputError(f"preset {name!r}", f"one of {sorted(PRESETS)}", "choose one of these")
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
    from mechrep.generation.decode import Decoding, Request, answers_to_corpus, run_requests

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


def collect_loops(
    model: Model,
    n_loops: int,
    *,
    n_others: int | None = None,
    preset: str = "mechrep",
    seed: int = 0,
    max_prompts: int | None = None,
    batch_size: int = 256,
    progress: bool | None = None,
) -> Corpus:
    """Let the model write until ``n_loops`` of its texts loop, and keep some that do not.

    Args:
        model: the model.
        n_loops: looping texts wanted (condition ``"looping"``).
        n_others: loop-free texts wanted (condition ``"loop_free"``); as many as loops by default.
        preset: ``"hiraoka2025"`` or ``"mechrep"``: which detector decides, see :data:`PRESETS`.
        seed: of the prompts.
        max_prompts: give up after so many prompts; by default 20 for each text wanted.
        batch_size: rows computed together.
        progress: show a progress bar.

    Returns:
        A corpus with ``condition``, ``onset``, ``period`` and ``copies``.  ``frame.attrs["prompts"]`` is the number of
        prompts that were tried.  Fewer texts than wanted are returned when ``max_prompts`` ran out.

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
    chosen = loop_preset(preset).within(model.anatomy.n_ctx)
    n_others = n_loops if n_others is None else n_others
    limit = 20 * (n_loops + n_others) if max_prompts is None else max_prompts
    if n_loops < 1 or n_others < 0 or limit < 1:
        raise InputError(
            f"n_loops={n_loops}, n_others={n_others}, max_prompts={max_prompts}", "at least 1, 0 and 1", "correct them"
        )
    found: dict[str, list[Corpus]] = {"looping": [], "loop_free": []}
    tried = 0
    with progress_bar(n_loops, "collecting loops", "loop", progress) as bar:
        while tried < limit and (_count(found["looping"]) < n_loops or _count(found["loop_free"]) < n_others):
            n = min(_next_batch(n_loops, n_others, found, tried, batch_size), limit - tried)
            texts = _write(model, chosen, n, seed, tried, batch_size)
            tried += n
            for condition, kept in _sort_out(texts, chosen, model).items():
                found[condition] += [kept] if kept is not None else []
            bar.update(min(n_loops, _count(found["looping"])) - bar.n)
    if not found["looping"]:
        raise NothingFoundError(
            f"{tried} prompts to {model.name}",
            f"a text that {chosen.detector!r} calls a loop, with its onset after position {chosen.min_prefix}",
            "try more prompts (max_prompts), another preset, or another model",
        )
    parts = [
        Corpus.concatenate(*group).select(range(min(wanted, _count(group))))
        for group, wanted in ((found["looping"], n_loops), (found["loop_free"], n_others))
        if group and wanted
    ]
    corpus = Corpus.concatenate(*parts)
    corpus.frame.attrs["prompts"] = tried
    return corpus


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


def _next_batch(n_loops: int, n_others: int, found: dict[str, list[Corpus]], tried: int, most: int) -> int:
    """Prompts to try next: what is missing, and where half of the texts loop, twice that.

    Prompts have their own random numbers, so that the texts do not depend on how they were batched; how many are tried
    does.
    """
    missing = max(n_loops - _count(found["looping"]), 0) + max(n_others - _count(found["loop_free"]), 0)
    return min(max(2 * missing, _FEWEST, tried), max(most, _FEWEST))


def _count(parts: list[Corpus]) -> int:
    return sum(map(len, parts))


def _write(model: Model, preset: LoopPreset, n: int, seed: int, first: int, batch_size: int) -> Corpus:
    prompts = sample_prompts(
        model, n, length=preset.sampled, temperature=preset.temperature, top_k=preset.top_k, seed=seed, first=first
    )
    texts = generate(model, prompts, max_new_tokens=preset.greedy, batch_size=batch_size, progress=False)
    # Special ids are kept: an EOS ends the greedy part, and the detectors are told about it.
    return texts.with_cycles(preset.detector, eos_id=model.eos_ids)


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
