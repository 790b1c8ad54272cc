"""The second main job from end to end: which heads copy, which find the token's earlier self, and what cuts do.

What a study of heads cuts: the circuits that its heads make, each with every control that can be drawn for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import Tensor

from mechrep.ablation.circuit import Circuit
from mechrep.ablation.old_conditions import Circuits, MatchBy, ablation_conditions, as_circuits
from mechrep.ablation.old_controls import CONTROLS, HEAD_CONTROLS, ON_REPEATS, HeadKind, as_seeds, head_kinds, heads_of
from mechrep.ablation.old_study import (
    CHEAP_OUTCOMES,
    AblationResult,
    HeadSweepResult,
    ablation_study,
    layer_profiles,
    single_head_sweep,
)
from mechrep.ablation.old_sweeps import ACTIVATION_PROMPT
from mechrep.cache.corpus_cache import CorpusCache
from mechrep.errors import InputError, NothingFoundError
from mechrep.interventions.ops import When
from mechrep.measures.head_copying import HeadCopying, HeadCopyingResult
from mechrep.measures.head_scores import HeadScoreResult, HeadScores
from mechrep.measures.neurons import RepetitionNeuronResult, RepetitionNeurons
from mechrep.models import tiny
from mechrep.models.anatomy import Site
from mechrep.models.model import Model
from mechrep.provenance import Provenance, provenance_of
from mechrep.studies.neurons import collect_texts, split_texts
from mechrep.text.corpus import Corpus, windows_of_text
from mechrep.text.stimuli import random_repeats

BEST, INDUCTION, SELF_FINDING, CIRCUIT, JOINT = (
    "best induction head",
    "all induction heads",
    "self-finding heads",
    "induction circuit",
    "induction heads and repetition neurons",
)


@dataclass(frozen=True)
class CircuitCut:
    """One circuit, cut, beside its controls.

    Attributes:
        circuit: what was cut.
        when: where: ``"from_onset"`` or ``"all"``.
        result: outcomes.
        left_out: controls that cannot be drawn for this circuit, and why.
    """

    circuit: Circuit
    when: When
    result: AblationResult
    left_out: Mapping[str, str]


@dataclass(frozen=True)
class CutSettings:
    """What all cuts of a study share.

    Attributes:
        texts: looping texts on which nothing was searched, and loop-free ones.
        windows: held-out text.
        scores: of heads, for ``"bos_matched"``.
        neurons: for ``"activation_matched"``.
        seeds: draws of each control.
        preset: of the detector.
        store: folder for finished shards.
        progress: show progress bars.
    """

    texts: Corpus
    windows: Corpus
    scores: HeadScoreResult
    neurons: RepetitionNeuronResult
    seeds: Sequence[int]
    preset: str
    store: str | Path | None
    progress: bool | None


def planned_circuits(
    kinds: Sequence[HeadKind], neurons: RepetitionNeuronResult, n_heads: int
) -> list[tuple[Circuit, When]]:
    """The circuits that these heads make, and where each is cut.

    The induction circuit is the induction heads with the previous-token heads below them.  It is cut at all positions,
    because a previous-token head does its work in the first copy.  The last one joins the induction heads with the
    published share of repetition neurons.

    Args:
        kinds: of :func:`mechrep.ablation.old_controls.head_kinds`.
        neurons: the ranking of the same model.
        n_heads: heads per layer.

    Returns:
        Circuits with ``when``; none where no head qualifies.
    """
    sizes = {"n_layers": len(neurons.delta), "n_heads": n_heads}
    induction = heads_of(kinds, "induction", ON_REPEATS)
    self_finding = heads_of(kinds, "self_finding")
    planned: list[tuple[Circuit, When]] = []

    def add(name: str, heads: Sequence[Unit], when: When = "from_onset") -> None:
        planned.append((Circuit(name, heads=heads, found="by their scores", sizes=sizes), when))

    if induction:
        add(BEST, induction[:1])
    if len(induction) > 1:
        add(INDUCTION, induction)
    if self_finding:
        add(SELF_FINDING, self_finding)
    highest = max((layer for layer, _ in induction), default=0)
    previous = [unit for unit in heads_of(kinds, "previous_token") if unit[0] < highest and unit not in induction]
    if previous:
        add(CIRCUIT, [*induction, *previous], "all")
    k = max(1, neurons.published_k)
    if induction:
        heads = Circuit(JOINT, heads=induction, sizes=sizes)
        together = heads + Circuit.from_neurons(neurons, k)
        facts: dict[str, Any] = {"found": together.found, "provenance": together.provenance}
        planned.append((Circuit(JOINT, neurons=together.neurons, heads=together.heads, **facts), "from_onset"))
    return planned


def cut_circuit(model: Model, circuit: Circuit, when: When, outcomes: Sequence[str], with_: CutSettings) -> CircuitCut:
    """Cut one circuit by zero, beside every control that can be drawn for it.

    Raises:
        InputError: see :func:`mechrep.ablation.old_study.ablation_study`.
        NothingFoundError: no text of the kind that an outcome needs.
    """
    wanted = HEAD_CONTROLS if circuit.kinds == ("heads",) else tuple(dict.fromkeys((*CONTROLS, *HEAD_CONTROLS)))
    controls, left_out = drawable(model, circuit, wanted, with_)
    result = _ablate(model, circuit, controls, when, outcomes, with_)
    return CircuitCut(circuit, when, result, left_out)


def cut_ranking(model: Model, ks: Sequence[int], outcomes: Sequence[str], with_: CutSettings) -> AblationResult:
    """Cut the heads that score highest on induction, more and more of them, beside what can be drawn for every k."""
    controls, _ = drawable(model, with_.scores, HEAD_CONTROLS, with_, ks)
    return _ablate(model, with_.scores, controls, "from_onset", outcomes, with_, ks)


def drawable(
    model: Model, circuits: Circuits, wanted: Sequence[str], with_: CutSettings, ks: Sequence[int] | None = None
) -> tuple[list[str], dict[str, str]]:
    """Which controls can be drawn, and why the others cannot: layers may lack heads beside those cut."""
    chosen, match_by = as_circuits(circuits, ks), MatchBy(with_.scores, neurons=with_.neurons)
    left_out = {}
    for control in wanted:
        try:
            ablation_conditions(
                model, chosen, ops=["zero"], controls=[control], seeds=with_.seeds, match_by=match_by, when="all"
            )
        except InputError as error:
            left_out[control] = f"{error.given}; there are {error.expected}"
    return [control for control in wanted if control not in left_out], left_out


def _ablate(
    model: Model,
    circuits: Circuits,
    controls: Sequence[str],
    when: When,
    outcomes: Sequence[str],
    with_: CutSettings,
    ks: Sequence[int] | None = None,
) -> AblationResult:
    return ablation_study(
        model,
        circuits,
        corpus=with_.texts,
        ks=ks,
        controls=controls,
        seeds=with_.seeds,
        outcomes=outcomes,
        when=when,
        copies=2,
        windows=with_.windows,
        preset=with_.preset,
        head_scores=with_.scores,
        neurons=with_.neurons,
        held_out=False,  # the caller's texts are others already, or the same ones where a preset wants it so
        store=with_.store,
        progress=with_.progress,
    )


_EXAMPLE_TOKENS = 48  # so many can be read on the axes of an attention map
_CANDIDATES = 16  # texts among which the example is chosen

Unit = tuple[int, int]


@dataclass(frozen=True)
class LoopExample:
    """What some heads look at in one looping text.

    Attributes:
        text_id: of the text.
        tokens: of the stretch that is shown, decoded one by one.
        first: place of the stretch in its text.
        onset: place of the second copy in the stretch.
        patterns: attention by head, within the stretch; what goes to tokens before it is cut off.
    """

    text_id: str
    tokens: list[str]
    first: int
    onset: int
    patterns: Mapping[Unit, Float[Tensor, "query_pos key_pos"]]


@dataclass(frozen=True)
class HeadStudy:
    """Everything that the report shows about heads.

    Attributes:
        model_name: how the model was named.
        preset: whose detector decides what a loop is.
        corpus: looping and loop-free texts, with ``split`` (find, test).
        scores: of all heads, on random repeats.
        copying: what all heads say there, with permutation nulls.
        loop_scores: of all heads, on the looping texts to find with, for queries after the onset (``hiraoka2025``).
        kinds: which heads count as what, by which rule.
        neurons: repetition neurons of the same texts.
        single: every head cut alone, on the looping texts to test with.
        ranking: more and more of the heads that score highest on induction, cut together.
        cuts: the circuits that the heads make, cut; none where no head qualifies.
        profiles: of :func:`mechrep.studies.layer_profiles`; ``None`` without an induction head or a rising neuron.
        example: attention in one looping text.
        provenance: of the whole study.
    """

    model_name: str
    preset: str
    corpus: Corpus
    scores: HeadScoreResult
    copying: HeadCopyingResult
    loop_scores: HeadScoreResult
    kinds: Sequence[HeadKind]
    neurons: RepetitionNeuronResult
    single: HeadSweepResult
    ranking: AblationResult
    cuts: Sequence[CircuitCut]
    profiles: pd.DataFrame | None
    example: LoopExample
    provenance: Provenance

    def heads_of(self, kind: str, measured_on: str | None = None) -> list[Unit]:
        """Heads of a kind, by any of its rules or by that of one kind of text."""
        return heads_of(self.kinds, kind, measured_on)


def default_head_ks(n_heads: int) -> list[int]:
    """Numbers of heads to cut: 1, 2, 3, 4, 8, ... up to three eighths of the model, and at most 32.

    Example:
        >>> default_head_ks(8), default_head_ks(144)
        ([1, 2, 3], [1, 2, 3, 4, 8, 16, 32])
    """
    return [k for k in (1, 2, 3, 4, 8, 16, 32) if k <= max(1, 3 * n_heads // 8)]


def run_head_study(
    model: Model,
    *,
    corpus: Corpus | None = None,
    neurons: RepetitionNeuronResult | None = None,
    preset: str = "mechrep",
    n_loops: int = 200,
    n_others: int = 100,
    period: int = 50,
    sequences: int = 32,
    ks: Sequence[int] | None = None,
    seeds: int | Sequence[int] = 5,
    regenerate: bool = True,
    held_out_text: str | None = None,
    store: str | Path | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> HeadStudy:
    """Score all heads, sort them into kinds, and cut them beside controls.

    Heads are scored on random repeats and on the looping texts to find with, and cut in the other looping texts.

    Args:
        model: the model.
        corpus: of a :class:`~mechrep.studies.neurons.RepetitionStudy`; by default the same texts are
            collected (and shared through the store).
        neurons: the ranking of that study; by default it is measured.
        preset: as there; with ``"hiraoka2025"`` heads are scored and cut on the same texts.
        n_loops: looping texts to collect.
        n_others: loop-free texts to collect.
        period: of the random repeats; as much of it as fits the context twice.
        sequences: random repeats.
        ks: numbers of heads of the ranking to cut together; see :func:`default_head_ks`.
        seeds: draws of each control.
        regenerate: write texts again under the cuts of circuits, and count loops (dear).
        held_out_text: English by default.
        store: folder that lets a stopped study go on.
        seed: of prompts, split and random repeats.
        progress: show progress bars.

    Raises:
        NothingFoundError: the model wrote no looping text.
        InputError: fewer than two looping texts, ``ks`` that the model cannot serve, sizes that do not fit it.
        ModelError: a model without attention patterns.

    Source: see :mod:`mechrep.measures.head_scores` and :func:`mechrep.studies.ablation_study`.

    Limits: a cut by zero; thresholds are conventions; intervals of cuts are not corrected for their number, those of
    single heads are.
    """
    if corpus is None:
        corpus = collect_texts(model, n_loops, n_others, preset, seed, store, progress)
    find, test = _texts(corpus, preset, seed)
    scores, copying = _score_repeats(model, period, sequences, seed, store)
    natural, found = _read_loops(model, find, preset, neurons, store, progress)
    kinds = head_kinds(scores, copying, natural)
    free = (corpus.frame["onset"].isna() & (corpus.lengths.numpy() >= ACTIVATION_PROMPT)).to_numpy()
    windows = windows_of_text(model, held_out_text or tiny.held_out_text())
    texts = corpus.select(free | corpus.frame["id"].isin(test.frame["id"]).to_numpy())
    settings = CutSettings(texts, windows, scores, found, as_seeds(seeds), preset, store, progress)
    chosen = default_head_ks(model.anatomy.n_layers * model.anatomy.n_heads) if ks is None else list(ks)
    single = single_head_sweep(
        model, test, outcomes=CHEAP_OUTCOMES, copies=2, windows=windows, preset=preset, store=store, progress=progress
    )
    cuts = []
    for circuit, when in planned_circuits(kinds, found, model.anatomy.n_heads):
        # Loop-free texts run to their end under every condition: the first circuit alone has to pay for them.
        dear = ["still_looping", *(["newly_looping"] if free.any() and not cuts else [])] if regenerate else []
        cuts.append(cut_circuit(model, circuit, when, [*CHEAP_OUTCOMES, *dear], settings))
    config = {"study": "heads", "preset": preset, "ks": chosen, "seeds": list(settings.seeds), "seed": seed}
    return HeadStudy(
        model_name=model.name,
        preset=preset,
        corpus=_with_split(corpus, find, test),
        scores=scores,
        copying=copying,
        loop_scores=natural,
        kinds=kinds,
        neurons=found,
        single=single,
        ranking=cut_ranking(model, chosen, CHEAP_OUTCOMES, settings),
        cuts=cuts,
        profiles=_profiles(found, scores),
        example=_example(model, test, kinds, scores),
        provenance=provenance_of(model, corpus, config),
    )


def _texts(corpus: Corpus, preset: str, seed: int) -> tuple[Corpus, Corpus]:
    """The looping texts to find with and those to test with: as the corpus says, else split here."""
    looping = corpus.where(condition="looping")
    splits = set(looping.frame["split"]) if "split" in looping.frame else set()
    if {"find", "test"} <= splits:
        return looping.where(split="find"), looping.where(split="test")
    return split_texts(looping, preset, seed)


def _with_split(corpus: Corpus, find: Corpus, test: Corpus) -> Corpus:
    tested, found = set(test.frame["id"]), set(find.frame["id"])
    names = ["test" if one in tested else "find" if one in found else "other" for one in corpus.frame["id"]]
    return corpus.with_columns(split=names)


def _score_repeats(
    model: Model, period: int, sequences: int, seed: int, store: str | Path | None
) -> tuple[HeadScoreResult, HeadCopyingResult]:
    """What :func:`~mechrep.measures.head_scores.score_heads` and ``score_copying`` give, in one pass, and kept."""
    n = min(period, (model.anatomy.n_ctx - 1) // 2)
    texts = random_repeats(model, n=n, sequences=sequences, seed=seed)
    cache = CorpusCache(model, texts, batch_size=max(1, 2048 // texts.tokens.shape[1]), store=store, progress=False)
    scores, copying = cache.run(HeadScores(bos_id=model.bos_id), HeadCopying(model))
    assert isinstance(scores, HeadScoreResult) and isinstance(copying, HeadCopyingResult)
    return scores, copying


def _read_loops(
    model: Model,
    find: Corpus,
    preset: str,
    neurons: RepetitionNeuronResult | None,
    store: str | Path | None,
    progress: bool | None,
) -> tuple[HeadScoreResult, RepetitionNeuronResult]:
    """Scores of heads on natural loops, and the neurons of the same texts unless they are known, in one pass."""
    analyzers = [HeadScores("hiraoka2025", bos_id=model.bos_id), *([RepetitionNeurons(preset)] if not neurons else [])]
    scores, *rest = CorpusCache(model, find, store=store, progress=progress).run(*analyzers)
    found = neurons if neurons is not None else rest[0]
    assert isinstance(scores, HeadScoreResult) and isinstance(found, RepetitionNeuronResult)
    return scores, found


def _profiles(neurons: RepetitionNeuronResult, scores: HeadScoreResult) -> pd.DataFrame | None:
    try:
        return layer_profiles(neurons, scores)
    except NothingFoundError:  # an answer too: there is nothing to lay side by side
        return None


def _example(model: Model, texts: Corpus, kinds: Sequence[HeadKind], scores: HeadScoreResult) -> LoopExample:
    """A text in which the heads of interest can be seen at work, at least two copies of its loop."""
    induction = heads_of(kinds, "induction", ON_REPEATS) or scores.top(1)
    heads = list(dict.fromkeys([induction[0], *heads_of(kinds, "self_finding")[:1]]))
    text = _typical(model, texts, heads[-1], "self_finding" if len(heads) > 1 else "induction")
    (start,), (onset,) = (text.frame[name].astype(int) for name in ("start", "onset"))
    end = min(start + max(_EXAMPLE_TOKENS, 2 * (onset - start)), int(text.lengths[0]))
    cache = CorpusCache(model, text, progress=False)
    patterns = {
        (layer, head): cache.get(Site.PATTERN, layers=[layer])[0, 0, head, start:end, start:end].float()
        for layer, head in heads
    }
    tokens = [model.decode([token]) for token in text.row(0)[start:end]]
    return LoopExample(str(text.frame["id"].iloc[0]), tokens, start, onset - start, patterns)


def _typical(model: Model, texts: Corpus, head: Unit, score: str) -> Corpus:
    """The text with the median score of a head: neither the best example nor the worst.

    Of the texts whose loop fits an axis twice, as far as there are such; periods of 1 and 2 show nothing.
    """
    periods = texts.frame["onset"].astype(int) - texts.frame["start"].astype(int)
    for mask in ((periods > 2) & (2 * periods <= _EXAMPLE_TOKENS), periods > 2, periods > 0):
        if mask.any():
            break
    candidates = [texts.select([int(place)]) for place in np.flatnonzero(mask)[:_CANDIDATES]]
    values = []
    for one in candidates:
        (result,) = CorpusCache(model, one, progress=False).run(HeadScores("hiraoka2025", bos_id=model.bos_id))
        assert isinstance(result, HeadScoreResult)
        values.append(float(result.of(score)[head]))
    return candidates[int(np.argsort(values)[len(values) // 2])]
