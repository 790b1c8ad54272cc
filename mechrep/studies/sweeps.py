"""Deactivation and activation sweeps: cut neurons from the onset of loops, boost them on loop-free texts.

Every text under every condition is one row of one batch; nothing is run twice and a text whose question is answered
stops.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mechrep.analyzers.neuron_result import RepetitionNeuronResult
from mechrep.analyzers.windows import check_onsets
from mechrep.errors import InputError, NothingFoundError
from mechrep.generation.generate import run_requests
from mechrep.generation.requests import Continuation, Decoding, Request
from mechrep.interventions.ops import Op, as_op
from mechrep.models.model import Model
from mechrep.provenance import provenance_of
from mechrep.studies.conditions import Condition, sweep_conditions
from mechrep.studies.controls import CONTROLS, Unit, as_seeds
from mechrep.studies.journal import Journal
from mechrep.studies.outcomes import OldLoop, outcome_of
from mechrep.studies.sweep_result import SweepResult
from mechrep.text.corpus import Corpus

NEW_TOKENS = 160  # as published
ACTIVATION_PROMPT = 50  # as published
_ROWS_PER_SHARD = 4096


def deactivation_sweep(
    model: Model,
    corpus: Corpus,
    *,
    neurons: RepetitionNeuronResult | Sequence[Unit],
    ks: Sequence[int],
    controls: Sequence[str] = CONTROLS,
    seeds: int | Sequence[int] = 5,
    preset: str = "mechrep",
    op: Op | str = "zero",
    max_new_tokens: int = NEW_TOKENS,
    stop_early: bool = True,
    held_out: bool | None = None,
    batch_size: int = 256,
    store: str | Path | None = None,
    progress: bool | None = None,
) -> SweepResult:
    """Cut every looping text at its onset, change neurons from there on, and see whether it still repeats.

    The prompt is ``ids[:onset]``; the edit is active from ``onset - 1``, the position that predicts the onset token;
    greedy decoding.  ``k = 0`` (selection ``"none"``) is always run: what it loses is numerical noise and texts whose
    loop was ending anyway.

    Args:
        model: the model.
        corpus: texts with ``onset`` (others are left out).
        neurons: a :class:`RepetitionNeuronResult` or a ranked list of ``(layer, neuron)``.
        ks: numbers of neurons.
        controls: see :mod:`mechrep.studies.controls`.
        seeds: number of draws of each control, or the seeds.
        preset: detector preset; with ``"hiraoka2025"`` the count is the published one.
        op: ``"zero"`` as published, or any operation.
        max_new_tokens: published: 160.
        stop_early: end a text as soon as the detector has fired (with the default detector: as soon as its loop is
            all but certain).  Escapes after that point are then not seen.
        held_out: leave out texts that the neurons were found on; default: yes, except under ``"hiraoka2025"``, which
            tests on the texts it searched.
        batch_size: rows computed together.
        store: folder in which finished shards are kept, so that a stopped sweep goes on.
        progress: show a progress bar.

    Returns:
        A :class:`SweepResult` whose ``to_frame()`` has one row per condition.

    Raises:
        InputError: ``k`` larger than the number of neurons, a control that cannot be drawn, another model's corpus,
            a loop that does not lie in its text.
        NothingFoundError: no text with an onset is left.

    Source: Hiraoka & Inui 2025 (arXiv 2410.13497), section on deactivation.

    Limits: zeroing may push a layer off the activations it ever sees; compare controls, and ``mean`` or ``resample``.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> texts = mechrep.Corpus.from_tokens([[0, *range(30, 60), *[9, 8, 7, 6, 5] * 6]], model=model).with_cycles()
        >>> sweep = deactivation_sweep(model, texts, neurons=[(3, 1), (3, 2)], ks=[2], controls=["random"], seeds=1)
        >>> sweep.to_frame()["selection"].tolist()
        ['none', 'top', 'random']
    """
    corpus.check_model(model)
    texts = _with_onset(_unseen(corpus, neurons, preset != "hiraoka2025" if held_out is None else held_out))
    onsets, starts = texts.frame["onset"].astype(int).tolist(), texts.frame["start"].astype(int).tolist()
    loops = [
        OldLoop(start, onset, tuple(texts.row(i)[start:onset]))
        for i, (start, onset) in enumerate(zip(starts, onsets, strict=True))
    ]
    prompts = [texts.row(i)[:onset] for i, onset in enumerate(onsets)]
    study = _Sweep(model, texts, "deactivation", preset, as_op(op), max_new_tokens, stop_early)
    conditions = sweep_conditions(model, neurons, ks, controls, as_seeds(seeds))
    return study.run(conditions, prompts, loops, batch_size=batch_size, store=store, progress=progress)


def activation_sweep(
    model: Model,
    corpus: Corpus,
    *,
    neurons: RepetitionNeuronResult | Sequence[Unit],
    ks: Sequence[int],
    controls: Sequence[str] = CONTROLS,
    seeds: int | Sequence[int] = 5,
    preset: str = "mechrep",
    op: Op | str = "add",
    prompt_length: int = ACTIVATION_PROMPT,
    max_new_tokens: int = NEW_TOKENS,
    stop_early: bool = True,
    batch_size: int = 256,
    store: str | Path | None = None,
    progress: bool | None = None,
) -> SweepResult:
    """Cut loop-free texts after ``prompt_length`` tokens, boost neurons from there on, and see whether a loop begins.

    As :func:`deactivation_sweep`, with ``a + 1`` (published) instead of zero.  Plus 1 is not on one scale for all
    neurons; ``mechrep.interventions.add(standard_deviations(result, 2))`` is.

    Args:
        model: the model.
        corpus: loop-free texts (those with an onset are left out).
        neurons: a result or a ranked list of ``(layer, neuron)``.
        ks: numbers of neurons.
        controls: see :mod:`mechrep.studies.controls`.
        seeds: number of draws of each control, or the seeds.
        preset: detector preset.
        op: ``"add"`` (+1) as published, or any operation.
        prompt_length: published: 50.
        max_new_tokens: published: 160.
        stop_early: end a text as soon as the detector has fired.
        batch_size: rows computed together.
        store: folder in which finished shards are kept.
        progress: show a progress bar.

    Raises:
        InputError: as in :func:`deactivation_sweep`, or texts shorter than ``prompt_length``.
        NothingFoundError: no loop-free text.

    Source: Hiraoka & Inui 2025 (arXiv 2410.13497), section on activation.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> story = "It was a fine day, and the sun stood high over the little town, where nobody slept."
        >>> texts = mechrep.Corpus.from_texts([story], model=model)
        >>> sweep = activation_sweep(model, texts, neurons=[(3, 1)], ks=[1], controls=[], seeds=1, prompt_length=30)
        >>> sweep.to_frame()["k"].tolist()
        [0, 1]
    """
    corpus.check_model(model)
    free = corpus.frame["onset"].isna() if "onset" in corpus.frame else None
    if free is not None and not free.any():
        raise NothingFoundError(
            f"{len(corpus)} texts, all with an onset", "loop-free texts", "collect some with n_others="
        )
    texts = corpus if free is None else corpus.select(free)
    if int(texts.lengths.min()) < prompt_length:
        long_enough = texts.lengths >= prompt_length
        if not bool(long_enough.any()):
            raise InputError(
                f"{len(texts)} loop-free texts of at most {int(texts.lengths.max())} tokens",
                f"texts of at least {prompt_length} tokens",
                "lower prompt_length or use longer texts",
            )
        texts = texts.select(long_enough)
    prompts = [texts.row(i)[:prompt_length] for i in range(len(texts))]
    study = _Sweep(model, texts, "activation", preset, as_op(op), max_new_tokens, stop_early)
    conditions = sweep_conditions(model, neurons, ks, controls, as_seeds(seeds))
    return study.run(conditions, prompts, [None] * len(prompts), batch_size=batch_size, store=store, progress=progress)


class _Sweep:
    """What the two sweeps share: rows, decoding, outcomes, shards."""

    def __init__(
        self, model: Model, texts: Corpus, kind: str, preset: str, op: Op, max_new_tokens: int, stop_early: bool
    ) -> None:
        self.model, self.texts, self.kind, self.preset, self.op = model, texts, kind, preset, op
        self.stop_early = stop_early
        self.decoding = Decoding(max_new_tokens, ["eos", preset] if stop_early else "eos")

    def run(
        self,
        conditions: Sequence[Condition],
        prompts: Sequence[Sequence[int]],
        loops: Sequence[OldLoop | None],
        *,
        batch_size: int,
        store: str | Path | None,
        progress: bool | None,
    ) -> SweepResult:
        config = self._config(conditions, prompts, loops)
        provenance = provenance_of(self.model, self.texts, config)
        journal = None if store is None else Journal(Path(store), provenance)
        per_shard = max(1, _ROWS_PER_SHARD // len(prompts))
        outcomes: list[dict[str, Any]] = []
        for first in range(0, len(conditions), per_shard):
            shard = conditions[first : first + per_shard]
            records = journal.find(first) if journal is not None else None
            if records is None:
                answers = self._decode(shard, prompts, batch_size, progress)
                records = self._outcomes(shard, answers, prompts, loops)
                if journal is not None:
                    journal.keep(first, records)
            outcomes += records
        return SweepResult(provenance, self.kind, self.preset, outcomes)

    def _decode(
        self, shard: Sequence[Condition], prompts: Sequence[Sequence[int]], batch_size: int, progress: bool | None
    ) -> list[Continuation]:
        requests = []
        for condition in shard:
            intervention = condition.intervention(self.op, "last")
            for text, prompt in enumerate(prompts):
                requests.append(Request(tuple(prompt), intervention, len(prompt) - 1, text))
        what = f"{self.kind} ({shard[0].selection} k={shard[0].k} ...)"
        return run_requests(self.model, requests, self.decoding, batch_size=batch_size, progress=progress, what=what)

    def _outcomes(
        self,
        shard: Sequence[Condition],
        answers: Sequence[Continuation],
        prompts: Sequence[Sequence[int]],
        loops: Sequence[OldLoop | None],
    ) -> list[dict[str, Any]]:
        ids, records = self.texts.frame["id"].tolist(), []
        special = sorted(self.model.special_ids)
        for number, answer in enumerate(answers):
            condition, text = shard[number // len(prompts)], number % len(prompts)
            facts = outcome_of(
                answer.ids,
                len(prompts[text]),
                preset=self.preset,
                old=loops[text],
                eos_id=answer.ids[-1] if answer.reason == "eos" else None,
                special_ids=special,
            )
            cell = {"selection": condition.selection, "k": condition.k, "seed": condition.seed, "text": ids[text]}
            records.append(cell | facts | {"stop_reason": answer.reason})
        return records

    def _config(
        self, conditions: Sequence[Condition], prompts: Sequence[Sequence[int]], loops: Sequence[OldLoop | None]
    ) -> dict[str, Any]:
        cuts = [
            (len(prompt), None if loop is None else loop.start) for prompt, loop in zip(prompts, loops, strict=True)
        ]
        return {
            "study": self.kind,
            "preset": self.preset,
            "op": self.op.name,
            "op_values": self.op.fingerprint,
            "cuts": _digest(cuts),
            "max_new_tokens": self.decoding.max_new_tokens,
            "stop_early": self.stop_early,
            "conditions": [[c.selection, c.k, c.seed, [list(unit) for unit in c.units]] for c in conditions],
        }


def _digest(value: Any) -> str:
    """Fingerprint of what decides the outcomes, yet is too long to stand in a record."""
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]


def _unseen(corpus: Corpus, neurons: RepetitionNeuronResult | Sequence[Unit], held_out: bool) -> Corpus:
    """Texts that the neurons were not found on."""
    if not held_out or not isinstance(neurons, RepetitionNeuronResult):
        return corpus
    seen = corpus.frame["id"].isin(set(neurons.texts))
    if seen.all():
        raise InputError(
            "a corpus of exactly the texts on which the neurons were found",
            "texts that the search has not seen: testing where one searched inflates the effect",
            "find, test = corpus.split(); search on the one, sweep on the other (or pass held_out=False and say so)",
        )
    return corpus.select(~seen)


def _with_onset(corpus: Corpus) -> Corpus:
    has = corpus.frame["onset"].notna() & corpus.frame["start"].notna()
    if not has.any():
        raise NothingFoundError(
            f"{len(corpus)} texts without an onset",
            "texts in which a cycle was found",
            "call corpus.with_cycles() or collect loops with mechrep.generation.collect_loops",
        )
    texts = corpus.select(has)
    check_onsets(texts.frame, texts.lengths)
    return texts
