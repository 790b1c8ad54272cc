"""Texts of the studies that have not moved to :mod:`mechrep.ablation.texts` yet."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mechrep.errors import InputError
from mechrep.generation.loops import collect_loops, loop_preset, sample_prompts
from mechrep.models.model import Model
from mechrep.stats import proportion_interval
from mechrep.store import Store
from mechrep.text.corpus import Corpus

_FIND_SHARE = 0.8


def collect_texts(
    model: Model, n_loops: int, n_others: int, preset: str, seed: int, store: str | Path | None, progress: bool | None
) -> Corpus:
    """The corpus, read back from the store when the same model has written it before."""
    path = None
    if store is not None:
        Store(Path(store))  # refuses a place that cannot be written before anything is computed
        path = Path(store) / f"corpus-{model.fingerprint()}-{preset}-{n_loops}-{n_others}-{seed}.parquet"
        if path.exists():
            return Corpus.load(path)
    corpus = collect_loops(model, n_loops, n_others=n_others, preset=preset, seed=seed, progress=progress)
    corpus = corpus.with_columns(prompts_tried=corpus.frame.attrs["prompts"])
    if path is not None:
        corpus.save(path)
    return corpus


def split_texts(looping: Corpus, preset: str, seed: int) -> tuple[Corpus, Corpus]:
    """Looping texts to find with and to test with; the published protocol does both on the same ones."""
    if preset == "hiraoka2025":
        return looping, looping
    if len(looping) < 2:
        raise InputError(
            f"{len(looping)} looping text", "at least 2: one to find neurons, one to test them", "try more prompts"
        )
    share = min(_FIND_SHARE, (len(looping) - 1) / len(looping))
    return looping.split(share, seed=seed)


def measure_loop_share(model: Model, preset: str, *, n: int = 256, seed: int = 0) -> tuple[float, tuple[float, float]]:
    """Share of sampled prompts whose greedy continuation loops by the preset's detector, with a Wilson interval."""
    from mechrep.generation.decode import generate

    chosen = loop_preset(preset)
    prompts = sample_prompts(
        model, n, length=chosen.sampled, temperature=chosen.temperature, top_k=chosen.top_k, seed=seed + 1_000_003
    )
    texts = generate(model, prompts, max_new_tokens=chosen.greedy, progress=False)
    found = texts.with_cycles(chosen.detector, eos_id=model.eos_ids).frame["onset"].notna()
    return float(np.mean(found)), proportion_interval(int(found.sum()), n)
