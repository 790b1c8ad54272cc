"""Texts that several studies of one run share: made once, kept in the run's store, the same in every part.

Loops that the model writes itself, held-out windows, random repeats, and null models (the same model without what it
has learned).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np

from mechrep.errors import InputError, NothingFoundError
from mechrep.generation.loops import PromptTexts, collect_loops
from mechrep.models import tiny
from mechrep.models.model import Model
from mechrep.models.nulls import NullKind, as_null
from mechrep.run import Run
from mechrep.stats import proportion_interval
from mechrep.store import Store
from mechrep.text.corpus import Corpus
from mechrep.text.families import loop_families
from mechrep.text.stimuli import random_repeats
from mechrep.text.windows import windows_of_text

_FIND_SHARE = 0.5  # of the looping texts are searched, the others tested: it is the test that lacks texts
_PERIOD, _REPEATS_SEED = 50, 1_000_003  # random repeats on which no head was scored
_WINDOW = 128  # tokens


def shared_loops(model: Model, run: Run, preset: str = "mechrep") -> Corpus:
    """Looping and loop-free texts that the model writes itself, with ``family`` and ``split``, once per run.

    ``split`` is ``"find"`` or ``"test"`` for looping texts (by whole families; under ``"hiraoka2025"``, which searches
    and tests on the same texts, ``"both"``) and ``"other"`` for loop-free ones.  ``prompts_tried`` counts prompts, and
    ``prompts_looped`` those whose texts loop; with a store every block of prompts is kept when it is written.

    Raises:
        NothingFoundError: the model wrote no looping text.
        NothingFoundError: too few families of loops.

    Example:
        >>> import mechrep
        >>> from mechrep.run import Run
        >>> run, model = Run(effort="quick"), mechrep.load_model("mechrep-tiny")
        >>> corpus = shared_loops(model, run)
        >>> corpus is shared_loops(model, run), sorted(set(corpus.frame["split"]))
        (True, ['find', 'other', 'test'])
    """
    sizes, weights = run.sizes_on(model), model.fingerprint()
    name = f"own-loops-{weights}-{preset}-{sizes.loops}-{sizes.others}-{run.seed}"

    def make() -> Corpus:
        written = _written(model, run, preset)
        corpus = collect_loops(model, sizes.loops, n_others=sizes.others, texts=written, progress=run.progress)
        tried, looped = (int(corpus.frame.attrs[name]) for name in ("prompts", "looped"))
        corpus = corpus.with_columns(prompts_tried=tried, prompts_looped=looped, family=loop_families(corpus))
        return with_split(corpus, preset, run.seed)

    return run.once(name, lambda: _kept(run, name, make))


def _written(model: Model, run: Run, preset: str) -> PromptTexts:
    """Texts from sampled prompts, which all parts of a run share."""
    key = ("texts from prompts", model.fingerprint(), preset)
    return run.once(key, lambda: PromptTexts(model, preset, run.seed, run.store, run.batch_size or 256))


def _kept(run: Run, name: str, make: Callable[[], Corpus]) -> Corpus:
    """A corpus from the run's store, or made now and filed there."""
    if run.store is None:
        return make()
    Store(Path(run.store))  # refuses a place that cannot be written before anything is computed
    path = Path(run.store) / f"{name}.parquet"
    if path.exists():
        return Corpus.load(path)
    corpus = make()
    corpus.save(path)
    return corpus


def with_split(corpus: Corpus, preset: str = "mechrep", seed: int = 0) -> Corpus:
    """The corpus with a column ``split``; a family of loops stays on one side.

    Raises:
        NothingFoundError: too few families of loops.
    """
    looping = corpus.frame["onset"].notna().to_numpy()
    if preset == "hiraoka2025":
        return corpus.with_columns(split=np.where(looping, "both", "other").tolist())
    texts = corpus.select(looping)
    families = loop_families(texts)
    share = min(_FIND_SHARE, (len(texts) - 1) / len(texts))
    try:
        find, _ = texts.split(share, seed=seed, clusters=families)
    except InputError as error:
        raise NothingFoundError(
            f"{len(texts)} looping texts in {len(set(families))} families of loops",
            "families to find with, and others to test with",
            "try more prompts",
        ) from error
    found = set(find.frame["id"])
    names = [
        "other" if not loops else "find" if name in found else "test"
        for name, loops in zip(corpus.frame["id"], looping, strict=True)
    ]
    return corpus.with_columns(split=names)


def find_and_test(corpus: Corpus) -> tuple[Corpus, Corpus]:
    """The looping texts to search and those to test on, as ``split`` says.

    Raises:
        InputError: what is no corpus, or has no ``split``.
    """
    if not isinstance(corpus, Corpus) or "split" not in corpus.frame:
        raise InputError(
            f"{corpus!r:.60}, without the column 'split'",
            "a corpus of looping and loop-free texts that says which to search",
            "leave it out, or mark it: mechrep.ablation.texts.with_split(corpus.with_cycles())",
        )
    if (corpus.frame["split"] == "both").any():
        both = corpus.where(split="both")
        return both, both
    return corpus.where(split="find"), corpus.where(split="test")


Share = tuple[float, tuple[float, float], int]


def loop_share(model: Model, preset: str, run: Run, n: int) -> Share:
    """Share of the first ``n`` sampled prompts whose greedy continuation loops, its Wilson interval, and n.

    The prompts are those of :func:`shared_loops`: in one run each is written once.
    """
    written = _written(model, run, preset)
    return _share(int(written.loops(written.between(0, n)).sum()), n)


def share_found(corpus: Corpus) -> Share | None:
    """The same of all prompts that were tried for a corpus of :func:`shared_loops`; ``None`` for other corpora.

    They were tried in rounds whose size was fixed beforehand, and those of the last round count too.
    """
    if not {"prompts_tried", "prompts_looped"} <= set(corpus.frame):
        return None
    return _share(int(corpus.frame["prompts_looped"].iloc[0]), int(corpus.frame["prompts_tried"].iloc[0]))


def _share(looped: int, n: int) -> Share:
    return looped / n, proportion_interval(looped, n), n


def shared_windows(model: Model, run: Run, text: str | None = None, length: int = _WINDOW) -> Corpus:
    """Windows of held-out text, English by default (public-domain books), once per run."""
    key = ("windows", model.fingerprint(), text, length, run.sizes_on(model).windows)

    def make() -> Corpus:
        size = min(model.anatomy.n_ctx, length)
        return windows_of_text(model, text or tiny.held_out_text(), length=size, limit=run.sizes_on(model).windows)

    return run.once(key, make)


def shared_repeats(model: Model, run: Run) -> Corpus:
    """Random repeats on which no head was scored, once per run."""
    n = min(_PERIOD, (model.anatomy.n_ctx - 1) // 2)
    key = ("repeats", model.fingerprint(), n, run.sizes_on(model).sequences)
    return run.once(
        key, lambda: random_repeats(model, n=n, sequences=run.sizes_on(model).sequences, seed=_REPEATS_SEED)
    )


def null_models(model: Model, run: Run) -> list[Callable[[], AbstractContextManager[Model]]]:
    """Makers of null models: shuffled and re-initialised weights by turns, ``run.sizes.nulls`` of them.

    ``with make() as null:``: meanwhile the model itself computes so, see :func:`~mechrep.models.nulls.as_null`; only
    activations can be asked for.
    """
    kinds: tuple[NullKind, NullKind] = ("shuffled", "reinitialised")
    numbers, own = range(run.sizes_on(model).nulls), model.fingerprint()
    return [functools.partial(as_null, model, kinds[number % 2], run.seed + number // 2, own) for number in numbers]
