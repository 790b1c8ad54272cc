"""The first main job from end to end: collect loops, find repetition neurons, cut and boost them against controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mechrep.ablation.old_controls import CONTROLS
from mechrep.ablation.old_loss import LossResult, loss_sweep
from mechrep.ablation.old_sweeps import ACTIVATION_PROMPT, NEW_TOKENS, SweepResult, activation_sweep, deactivation_sweep
from mechrep.cache.corpus_cache import CorpusCache
from mechrep.errors import InputError
from mechrep.generation.decode import Decoding, Request, run_requests
from mechrep.generation.loops import collect_loops, loop_preset, sample_prompts
from mechrep.interventions.ops import Neurons
from mechrep.measures.neurons import RepetitionNeuronResult, RepetitionNeurons
from mechrep.models import tiny
from mechrep.models.model import Model
from mechrep.provenance import Provenance, provenance_of
from mechrep.stats import proportion_interval
from mechrep.store import Store
from mechrep.text.corpus import Corpus, windows_of_text

_FIND_SHARE = 0.8  # of the looping texts find the neurons, the rest test them (default preset)


@dataclass(frozen=True)
class RepetitionStudy:
    """Everything that the report shows.

    Attributes:
        model_name: how the model was named.
        preset: ``"mechrep"`` or ``"hiraoka2025"``.
        corpus: all texts, with ``condition`` (looping, loop_free) and ``split`` (find, test).
        neurons: the ranking and its uncertainty.
        deactivation: sweep on held-out looping texts.
        activation: sweep on loop-free texts, or ``None`` where the model wrote none.
        deactivation_loss: loss on held-out text under the deactivation.
        activation_loss: the same under the activation.
        prompts: prompts tried while collecting.
        loop_share: share of sampled prompts that loop, with its interval.
        examples: looping texts with and without the top neurons.
        provenance: of the whole study.
    """

    model_name: str
    preset: str
    corpus: Corpus
    neurons: RepetitionNeuronResult
    deactivation: SweepResult
    activation: SweepResult | None
    deactivation_loss: LossResult
    activation_loss: LossResult
    prompts: int
    loop_share: float
    loop_share_interval: tuple[float, float]
    examples: list[dict[str, Any]]
    provenance: Provenance


def default_ks(n_neurons: int) -> list[int]:
    """Numbers of neurons to try: the published share (0.5 %) and a sweep up to about 7 % of the model.

    Example:
        >>> default_ks(1408)
        [0, 3, 7, 14, 28, 56, 98]
    """
    shares = (0.0025, 0.005, 0.01, 0.02, 0.04, 0.07)
    return sorted({0, *(max(1, int(share * n_neurons)) for share in shares)})


def run_repetition_study(
    model: Model,
    *,
    preset: str = "mechrep",
    n_loops: int = 200,
    n_others: int = 100,
    ks: Sequence[int] | None = None,
    controls: Sequence[str] = CONTROLS,
    seeds: int | Sequence[int] = 5,
    held_out_text: str | None = None,
    store: str | Path | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> RepetitionStudy:
    """Find repetition neurons and test what they do.

    Args:
        model: the model.
        preset: ``"hiraoka2025"`` searches and tests on the same texts with the published windows and detector;
            ``"mechrep"`` searches on 80 % of the looping texts and tests on the others.
        n_loops: looping texts to collect.
        n_others: loop-free texts to collect.
        ks: numbers of neurons; see :func:`default_ks`.
        controls: see :mod:`mechrep.ablation.old_controls`.
        seeds: draws of each control.
        held_out_text: English by default (public-domain books that mechrep-tiny was not trained on).
        store: folder that lets a stopped study go on.
        seed: of the prompts and the split.
        progress: show progress bars.

    Raises:
        NothingFoundError: the model wrote no looping text.
        InputError: fewer than two looping texts, or ``ks`` that the model cannot serve.
    """
    corpus = collect_texts(model, n_loops, n_others, preset, seed, store, progress)
    looping = corpus.where(condition="looping")
    find, test = split_texts(looping, preset, seed)
    (neurons,) = CorpusCache(model, find, store=store, progress=progress).run(RepetitionNeurons(preset))
    assert isinstance(neurons, RepetitionNeuronResult)
    chosen = default_ks(model.anatomy.n_neurons) if ks is None else list(ks)
    common: dict[str, Any] = {
        "neurons": neurons,
        "ks": chosen,
        "controls": controls,
        "seeds": seeds,
        "progress": progress,
    }
    sweep = deactivation_sweep(model, test, preset=preset, store=store, **common)
    free = ((corpus.frame["condition"] == "loop_free") & (corpus.lengths.numpy() >= ACTIVATION_PROMPT)).tolist()
    boosted = None
    if any(free):
        boosted = activation_sweep(model, corpus.select(free), preset=preset, store=store, **common)
    windows = windows_of_text(model, held_out_text or tiny.held_out_text())
    losses = [loss_sweep(model, windows, op=op, store=store, **common) for op in ("zero", "add")]
    share, interval = measure_loop_share(model, preset, seed=seed)
    tested = set(test.frame["id"])
    found = set(find.frame["id"])
    corpus = corpus.with_columns(
        split=["test" if name in tested else "find" if name in found else "other" for name in corpus.frame["id"]]
    )
    return RepetitionStudy(
        model_name=model.name,
        preset=preset,
        corpus=corpus,
        neurons=neurons,
        deactivation=sweep,
        activation=boosted,
        deactivation_loss=losses[0],
        activation_loss=losses[1],
        prompts=int(corpus.frame["prompts_tried"].iloc[0]),
        loop_share=share,
        loop_share_interval=interval,
        examples=_examples(model, test, neurons, max(chosen)),
        provenance=provenance_of(model, corpus, {"study": "repetition", "preset": preset, "ks": chosen, "seed": seed}),
    )


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


def _examples(
    model: Model, texts: Corpus, neurons: RepetitionNeuronResult, k: int, count: int = 3
) -> list[dict[str, Any]]:
    """A few looping texts: what came before the loop, the loop, and what is written instead when neurons are cut."""
    onsets, starts = texts.frame["onset"].astype(int), texts.frame["start"].astype(int)
    chosen = range(min(count, len(texts)))
    cut = Neurons(neurons.top(k), "zero", when="last")
    requests = [Request(tuple(texts.row(i)[: onsets[i]]), cut, int(onsets[i]) - 1, i) for i in chosen]
    answers = run_requests(model, requests, Decoding(NEW_TOKENS), progress=False)
    examples = []
    for i, answer in zip(chosen, answers, strict=True):
        ids, prompt = texts.row(i), int(texts.frame["prompt_length"].iloc[i])
        start = max(prompt, int(starts[i]))
        examples.append(
            {
                "text_id": str(texts.frame["id"].iloc[i]),
                "prompt": model.decode(ids[:prompt]),
                "loop_before": _decode_after(model, ids[:start], prompt),
                "first_copy": _decode_after(model, ids[: onsets[i]], start),
                "loop": _decode_after(model, ids, int(onsets[i])),
                "cut": _decode_after(model, answer.ids, int(onsets[i])),
                "k": k,
            }
        )
    return examples


def _decode_after(model: Model, ids: Sequence[int], begin: int) -> str:
    """Text of ``ids[begin:]`` as it reads in its place: a piece alone may lose its leading blank."""
    return model.decode(ids)[len(model.decode(ids[:begin])) :]
