"""What mechrep is asked about a planted model: a verdict beside what is true, or what an intervention did.

A *verdict* is one thing that mechrep could call found: a head of a kind, a neuron, a claim of a study.  What was not
planted in a model is asked for as well, so that there are many verdicts that must be no.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from mechrep.ablation.circuit import Circuit
from mechrep.ablation.effects import SUPPORTED, Effects, detection, judge
from mechrep.ablation.masking import information_masking
from mechrep.ablation.study import Controls, StudyTexts, ablation_study
from mechrep.ablation.texts import null_models
from mechrep.cache.corpus_cache import CorpusCache
from mechrep.errors import InputError
from mechrep.generation.text_kinds import control_texts, induced_texts, natural_texts
from mechrep.interventions import Heads, Intervention, Neurons, SinkPatch
from mechrep.measures.attention_sinks import AttentionSinks
from mechrep.measures.distance_profile import distance_profile
from mechrep.measures.first_token_detectors import first_token_detectors
from mechrep.measures.head_scores import HeadScores
from mechrep.measures.neurons import RepetitionNeurons
from mechrep.measures.sink_neurons import sink_neurons
from mechrep.measures.sink_norms import SinkNorms
from mechrep.measures.token_facts import token_facts
from mechrep.measures.token_information import TokenInformation
from mechrep.models.anatomy import Site
from mechrep.models.model import Model
from mechrep.run import Run
from mechrep.studies.find_sink import find_sink
from mechrep.studies.first_layer import DETECTOR, HEAD, find_first_token
from mechrep.studies.kinds_of_heads import (
    KINDS,
    ON_REPEATS,
    NullTexts,
    head_kinds,
    heads_of,
    read_heads,
    read_null_heads,
)
from mechrep.studies.neurons import neurons_that_rise, rising_neurons
from mechrep.studies.text_kind_effects import ablation_contrast
from mechrep.text.corpus import Corpus
from mechrep.text.stimuli import random_repeats
from tests.planted.texts import words
from tests.planted.two_mechanisms import ordinary_texts, reading_texts, several_prompts
from tests.planted.workbench import BOS, WORDS, Unit

_TEXTS, _PERIOD = 8, 9  # of random repeats; texts that loop have the shorter period of their words' digits
_COPIES, _RISING = 3, 16  # repetitions of a loop; texts in which neurons rise


@dataclass(frozen=True)
class Truth:
    """A planted model, and all that is true of it.

    Attributes:
        model: the model.
        heads: by kind, as :func:`~mechrep.studies.kinds_of_heads.head_kinds` names them.
        sinks: neurons that make a sink, in the order of depth.
        drifts: repeated tokens become sinks.
        loops: neurons that rise when a loop begins.
        amplifiers: those of them without which a loop ends.
        first: the neuron that tells a first token, and the heads that it needs.
        reader: the head that looks at low-information tokens.
        copying: heads that copies depend on, and loops do not.
        half: heads that rest on BOS until there is something to look at: no answer about that is wrong.
        judged: asked beside null models and many draws; else by the measures alone, which takes a tenth of the time.
    """

    model: Model
    heads: dict[str, set[Unit]] = field(default_factory=dict)
    sinks: Sequence[Unit] = ()
    drifts: bool = False
    loops: Sequence[Unit] = ()
    amplifiers: Sequence[Unit] = ()
    first: tuple[Unit, set[Unit]] | None = None
    reader: Unit | None = None
    copying: Sequence[Unit] = ()
    half: frozenset[Unit] = frozenset()
    judged: bool = True

    @property
    def draws(self) -> int | None:
        """Of controls: as many as are usual, or just enough for a verdict."""
        return None if self.judged else 19

    def run(self) -> Run:
        """Fresh options: nothing is shared between questions."""
        return Run(effort="quick", progress=False)


@dataclass(frozen=True)
class Answer:
    """One verdict or one intervention.

    Attributes:
        asked: the question.
        about: the unit or the claim; of an intervention, what it was to do.
        planted: whether it is true.
        found: whether mechrep says so; of an intervention, whether it did.
        done: it is an intervention.
    """

    asked: str
    about: str
    planted: bool
    found: bool
    done: bool = False


def _units(asked: str, every: Iterable[Unit], planted: Iterable[Unit], found: Iterable[Unit]) -> Iterator[Answer]:
    true, said = set(planted), set(found)
    for unit in sorted({*every, *true, *said}):
        yield Answer(asked, str(unit), unit in true, unit in said)


def _did(asked: str, **what: bool) -> Iterator[Answer]:
    for about, holds in what.items():
        yield Answer(asked, about.replace("_", " "), True, bool(holds), done=True)


def _every_head(model: Model) -> list[Unit]:
    return [(layer, head) for layer in range(model.anatomy.n_layers) for head in range(model.anatomy.n_heads)]


# --- texts ------------------------------------------------------------------------------------------------------------


def ordinary(model: Model, rows: int = 12, length: int = 30) -> Corpus:
    """BOS and different words."""
    texts = [[BOS, *words(length, seed=row)] for row in range(rows)]
    return Corpus.from_tokens(texts, model=model, bos_policy="prepended")


def looping(model: Model, texts: int = _TEXTS) -> Corpus:
    """BOS, different words, now more, now fewer, and some of the others again and again.

    A loop has one word of each first and one of each last digit, so that all amplifiers have their part in it.
    """
    rows = []
    for seed in range(texts):
        draw, loop = np.random.default_rng(50 + seed), [0]
        while loop[0] not in WORDS or loop[-1] not in WORDS:
            loop = (8 * np.arange(8) + draw.permutation(8)).tolist()
        others = draw.permutation([word for word in WORDS if word not in loop])
        rows.append([BOS, *others[: draw.integers(12, 20)].tolist(), *draw.permutation(loop).tolist() * _COPIES])
    return Corpus.from_tokens(rows, model=model, source="planted").with_cycles()


# --- heads ------------------------------------------------------------------------------------------------------------


def heads(truth: Truth) -> Iterator[Answer]:
    """Which heads are of which kind, on random repeats and on loops."""
    every = set(_every_head(truth.model))
    for (kind, place), said in (_judged_heads if truth.judged else _clear_heads)(truth).items():
        apart = truth.half if kind == "first_token" else frozenset[Unit]()
        yield from _units(f"{kind}, {place}", every - apart, truth.heads.get(kind, set()), set(said) - apart)


def _judged_heads(truth: Truth) -> dict[tuple[str, str], list[Unit]]:
    model, run = truth.model, truth.run()
    repeats, loops = random_repeats(model, n=_PERIOD, sequences=_TEXTS), looping(model)
    own, both, nulls = read_heads(model, repeats, loops, run), NullTexts.of(repeats, loops), []
    for make in null_models(model, run):
        with make() as null:
            nulls.append(read_null_heads(null, both, run))
    kinds = head_kinds(own, nulls)
    return {(kind, place): heads_of(kinds, kind, place) for kind, place in KINDS}


def _clear_heads(truth: Truth) -> dict[tuple[str, str], list[Unit]]:
    repeats = random_repeats(truth.model, n=_PERIOD, sequences=_TEXTS)
    scores = CorpusCache(truth.model, repeats, progress=False).run(HeadScores(bos_id=BOS))
    return {(kind, place): scores.clear(kind) for kind, place in KINDS if place == ON_REPEATS}


def induction(truth: Truth) -> Iterator[Answer]:
    """The heads; without either, or with its attention on BOS, nothing is copied; without all others it is."""
    yield from heads(truth)
    (previous,), (copies,), model = truth.heads["previous_token"], truth.heads["induction"], truth.model
    others = [unit for unit in _every_head(model) if unit not in (previous, copies)]
    sets = {"previous-token head": [previous], "induction head": [copies], "others": others}
    circuits = [Circuit(name, heads=units) for name, units in sets.items()]
    texts = StudyTexts(repeats=random_repeats(model, n=_PERIOD, sequences=_TEXTS, seed=5))
    table = ablation_study(
        model, circuits, outcomes=["copy_accuracy"], texts=texts, ops=("zero", "to_bos"), controls=(), when="all",
        run=truth.run(),
    )  # fmt: skip
    rows = table.to_frame().query("measure == 'copy_accuracy'")
    before = float(rows["value"].iloc[0])
    value = rows.set_index(["name", "op"])["value"]
    for op in ("zero", "to_bos"):
        for name in ("previous-token head", "induction head"):
            yield from _did(
                "induction", **{f"{op} of the {name} ends copying": before > 0.95 and value[name, op] < 0.3}
            )
        yield from _did("induction", **{f"{op} of all others does not": value["others", op] > 0.95})


def duplicate(truth: Truth) -> Iterator[Answer]:
    """The head; without it the model no longer says a word again that it has met before."""
    yield from heads(truth)
    model, (head,) = truth.model, truth.heads["duplicate_token"]
    corpus = random_repeats(model, n=_PERIOD, sequences=_TEXTS, seed=5)
    tokens, again = corpus.tokens, slice(_PERIOD + 1, 2 * _PERIOD + 1)

    def says(*cut: Unit, op: str = "zero") -> float:
        hooks = Heads(list(cut), op, "all").hooks(model) if cut else []
        logits = model.run_with_hooks(tokens, fwd_hooks=hooks)
        return float((logits.argmax(-1) == tokens)[:, again].float().mean())

    others = [unit for unit in _every_head(model) if unit != head]
    for op in ("zero", "to_bos"):
        yield from _did("duplicate token", **{
            f"{op} takes it away": says() > 0.95 and says(head, op=op) < 0.1,
            f"{op} of all others does not": says(*others, op=op) > 0.95,
        })  # fmt: skip


# --- sinks ------------------------------------------------------------------------------------------------------------


def sinks(truth: Truth) -> Iterator[Answer]:
    """Whether there is a sink, its stages with their neurons, and the heads that rest on it."""
    model, texts = truth.model, ordinary(truth.model)
    if truth.judged:
        result = find_sink(model, texts=texts, run=truth.run())
        resting = truth.heads.get("first_token", set())
        yield Answer("sink", "norm", bool(truth.sinks), result.norm_found)
        if resting or not truth.half:
            yield Answer("sink", "heads", bool(resting), result.heads_found)
        rests = {(layer, head) for layer, head in result.sink_heads} - truth.half
        yield from _units("sink heads", {*_every_head(model)} - truth.half, resting, rests)
        made = [stage.layer for stage in result.stages]
        carried = [(layer, unit) for stage in result.stages if stage.carried for layer, unit in stage.neurons]
    else:
        norms = CorpusCache(model, texts, progress=False).run(SinkNorms())
        made = [stage.peak - 1 for stage in norms.stages if stage.rise > 2]
        carried = [unit for layer in made for unit in sink_neurons(model, texts, layer).top(1)]
    layers = [(layer, 0) for layer, _ in truth.sinks]
    yield from _units("layer of a sink", [(n, 0) for n in range(model.anatomy.n_layers)], layers,
                      [(layer, 0) for layer in made])  # fmt: skip
    yield from _units("sink neuron", [], truth.sinks, carried)


def sink(truth: Truth) -> Iterator[Answer]:
    """The sink; without its neurons there is none, and patched, BOS stays one and repeats do not become one."""
    yield from sinks(truth)
    model = truth.model
    patches: list[Intervention] = [SinkPatch(layer, neuron) for layer, neuron in truth.sinks]
    patch = functools.reduce(lambda one, other: one + other, patches)
    cut = Neurons(list(truth.sinks), "zero", when="all")
    resting = sorted(truth.heads["first_token"])

    def measured(intervention: Intervention | None) -> tuple[float, float]:
        cache = CorpusCache(model, ordinary(model, 4), intervention=intervention, progress=False)
        norms, attention = cache.run(SinkNorms(), AttentionSinks())
        return float(norms.ratio[1:].max()), min(float(attention.alpha[unit]) for unit in resting)

    (ratio, seen), (left, unseen) = measured(None), measured(cut)
    yield from _did("sink", **{
        "zero takes it away": ratio > 20 and left < 2, "zero takes attention away": seen > 0.9 and unseen < 0.5,
    })  # fmt: skip
    if model.anatomy.has(Site.ROUTER):  # a token has no level at an expert that it is not sent to
        with pytest.raises(InputError, match="routed"):
            measured(patch)
        yield from _did("sink", the_patch_is_refused=True)
        return
    patched, still = measured(patch)
    yield from _did("sink", the_patch_keeps_it=patched > 20 and still > 0.9)
    if truth.drifts:
        repeated = Corpus.from_tokens([[BOS, *[word] * 60] for word in (9, 30, 61)], model=model)
        last = model.anatomy.n_layers - 1

        def norm(texts: Corpus, intervention: Intervention | None) -> float:
            cache = CorpusCache(model, texts, intervention=intervention, progress=False)
            return float(cache.get(Site.RESID_POST, layers=[last])[..., -1, :].norm(dim=-1).max())

        before, after, usual = norm(repeated, None), norm(repeated, patch), norm(ordinary(model, 4), None)
        yield from _did("sink", **{
            "repeated tokens drift": before > 2 * usual, "the patch leaves nothing of it": after < 1.05 * usual,
        })  # fmt: skip


# --- neurons that hold a loop -----------------------------------------------------------------------------------------


def neurons(truth: Truth) -> Iterator[Answer]:
    """The neurons that rise most, and whether a loop is held by as many of them."""
    model, run, texts = truth.model, truth.run(), looping(truth.model, _RISING)
    rises = RepetitionNeurons("mechrep", r=12)
    result = CorpusCache(model, texts, run=run, progress=False).run(rises)
    found = result.top(len(truth.loops), "t") if truth.loops else []
    if truth.judged:
        nulls = []
        for make in null_models(model, run):
            with make() as null:
                nulls.append(CorpusCache(null, texts, run=run, progress=False).run(rises))
        found = neurons_that_rise(rising_neurons(result, nulls))
    every = [(layer, n) for layer in range(model.anatomy.n_layers) for n in range(model.anatomy.d_mlp)]
    yield from _units("repetition neuron", every, truth.loops, found)
    table = _without(truth, {"rising": found or result.top(5)}, Controls(("layer_matched",), draws=truth.draws))
    held = _row(table, "rising")
    yield Answer("repetition neurons", "hold the loop", bool(truth.loops), held["verdict"] == SUPPORTED)


def _without(truth: Truth, sets: dict[str, Sequence[Unit]], controls: Any) -> Effects:
    circuits = [Circuit(name, neurons=list(units)) for name, units in sets.items()]
    texts = StudyTexts(loops=looping(truth.model), copies=2, held_out=False)
    return ablation_study(
        truth.model, circuits, outcomes=["loop_log_probability"], texts=texts, controls=controls, run=truth.run()
    )


def _row(table: Effects, name: str) -> Any:
    rows = table.summary(within=["copy"])  # the next repetition is what is asked about
    return rows[(rows["name"] == name) & (rows["copy"] == 1)].iloc[0]


def repetition(truth: Truth) -> Iterator[Answer]:
    """The neurons; with the amplifiers at zero a loop ends, without the others it goes on."""
    yield from neurons(truth)
    mute = [unit for unit in truth.loops if unit not in truth.amplifiers]
    table = _without(truth, {"amplifiers": truth.amplifiers, "others": mute}, ())
    yield from _did("repetition neurons", **{
        "zero takes it away": _row(table, "amplifiers")["effect"] < -1,
        "zero of those that only listen does not": abs(_row(table, "others")["effect"]) < 0.02,
    })  # fmt: skip


# --- the first token --------------------------------------------------------------------------------------------------


def first_token(truth: Truth) -> Iterator[Answer]:
    """Whether a neuron tells first tokens, which one, and which head of layer 0 it needs."""
    rows = [words(40, seed=seed) for seed in range(10)]
    texts = Corpus.from_tokens(rows, model=truth.model, attention_mask=True, bos_policy="absent")
    unit, needed = truth.first or (None, set())
    if not truth.judged:
        seen = first_token_detectors(truth.model, texts, triples=200, k=1, shuffles=5)
        found = seen.best_auroc > max(seen.shuffled_aurocs)
        yield Answer("first token", "neuron", unit is not None, found)
        yield from _units("first-token neuron", [], [] if unit is None else [unit], seen.top(1) if found else [])
        return
    result = find_first_token(truth.model, texts=texts, triples=200, run=truth.run())
    claims = result.claims.set_index("claim")["verdict"]
    yield Answer("first token", "neuron", unit is not None, result.found)
    yield Answer("first token", "head", unit is not None, claims[HEAD] == SUPPORTED and claims[DETECTOR] == SUPPORTED)
    if unit is not None:
        yield from _units("first-token neuron", [], [unit], result.top(1) if result.found else [])
        best = result.heads[0]
        yield Answer("first-token head", str(best), True, best in needed)
        yield from _did("first token", **{"zero of its head takes it away": float(result.lost[best[1]]) > 0.3})


# --- low-information tokens -------------------------------------------------------------------------------------------


def reading(truth: Truth) -> Iterator[Answer]:
    """Whether loops look at tokens of low surprisal, and which head does."""
    model, run = truth.model, truth.run()
    texts, usual = reading_texts(model), ordinary_texts(model)
    facts = token_facts(model, texts, reference=usual)
    result = CorpusCache(model, texts, run=run).run(TokenInformation(facts, distance_profile(model, usual)))
    value, draws = result.preference("looping")
    low = result.summary(matched=True).set_index("group").loc["low_surprisal"]
    ends = (float(np.log2(low["low"])), float(np.log2(low["high"])))
    row = detection("low-information tokens", "bias, log2", value, draws, interval=ends, n=len(texts))
    row |= {"baseline": 0.0, "effect": value, "low": ends[0], "high": ends[1]}
    found = judge([row])["verdict"].iloc[0] == SUPPORTED
    yield Answer("low-information tokens", "preferred", truth.reader is not None, found)
    if truth.reader is not None:
        yield from _units("low-information head", _every_head(model), [truth.reader], result.top(1) if found else [])


def information(truth: Truth) -> Iterator[Answer]:
    """The head; a loop ends without it, and where it cannot see the tokens."""
    yield from reading(truth)
    assert truth.reader is not None
    model, texts = truth.model, reading_texts(truth.model)
    facts = token_facts(model, texts, reference=ordinary_texts(model))
    hidden = (
        information_masking(model, texts, facts, way="mask", draws=19 if truth.judged else 2, run=truth.run())
        .summary()
        .iloc[0]
    )
    circuit = Circuit("reader", heads=[truth.reader])
    given = StudyTexts(loops=texts, copies=1, held_out=False)
    cut = ablation_study(
        model, circuit, outcomes=["loop_log_probability"], texts=given, ops=("zero", "to_bos"), controls=(), when="all",
        run=truth.run(),
    ).to_frame()  # fmt: skip
    effect = cut[(cut["selection"] == "ablation") & (cut["copy"] == 1)].set_index("op")["effect"]
    yield from _did("low-information tokens", **{
        "hiding them takes it away": hidden["effect"] < -1 and (not truth.judged or hidden["verdict"] == SUPPORTED),
        "zero takes it away": effect["zero"] < -1, "to_bos takes it away": effect["to_bos"] < -1,
    })  # fmt: skip


# --- one kind of text only --------------------------------------------------------------------------------------------


def text_kinds(truth: Truth) -> Iterator[Answer]:
    """Every head ablated alone in natural loops and in induced copies."""
    yield from heads(truth)
    model, listed = truth.model, several_prompts(truth.model)
    new: dict[str, Any] = {"max_new_tokens": 45, "progress": False}
    natural, induced = natural_texts(model, listed, **new), induced_texts(model, listed, **new)
    control = control_texts(model, listed, **new)
    table = ablation_contrast(
        model,
        [natural, induced],
        ops=["zero", "resample"] if truth.judged else ["zero"],
        reference=control,
        copies=1,
        run=truth.run(),
    )
    summary = table.summary(within=["measure", "op"])
    for op, rows in summary.groupby("op"):
        for kind, planted in (("natural", ()), ("induced", truth.copying)):
            mine = rows[(rows["measure"] == f"log_probability, {kind}") & (rows["copy"] == 1)]
            found = [_unit(name) for name in mine["name"][mine["verdict"] == SUPPORTED]]
            yield from _units(f"{kind} texts, {op}", _every_head(model), planted, found)
            strong = [_unit(name) for name in mine["name"][mine["effect"] < -1]]
            yield from _did(
                "text kinds", **{f"{op} ends {kind} copies of exactly these heads": set(strong) == set(planted)}
            )


def _unit(name: str) -> Unit:
    layer, head = name[1:].split("H")
    return int(layer), int(head)
