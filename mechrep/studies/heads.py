"""Which heads carry repetition, and what does the model lose without them?

All heads are scored on random repeats and on the looping texts to find with, beside the heads of null models; the
circuits that they make are ablated in other looping texts, beside controls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import Tensor

from mechrep.ablation.circuit import Circuit
from mechrep.ablation.controls import Unit
from mechrep.ablation.effect_plots import single_head_frame, single_heads_figure
from mechrep.ablation.effects import SUPPORTED, Effects, judge
from mechrep.ablation.outcomes import LoopDecoding
from mechrep.ablation.screening import screening_of
from mechrep.ablation.study import (
    READ_OUTCOMES,
    Controls,
    StudyTexts,
    ablation_study,
    agreements,
    single_head_sweep,
)
from mechrep.ablation.texts import find_and_test, null_models, shared_loops, shared_windows, with_split
from mechrep.cache.corpus_cache import CorpusCache
from mechrep.errors import NothingFoundError
from mechrep.figures import attention_maps_figure, counted
from mechrep.generation.loops import without_counter
from mechrep.guards import Some, Whole, guarded
from mechrep.interventions.ops import When
from mechrep.measures.head_layers import layer_profiles
from mechrep.measures.head_scores import CLEAR, HeadScoreResult, HeadScores, head_scores_figure
from mechrep.measures.neurons import RepetitionNeuronResult, RepetitionNeurons
from mechrep.models.anatomy import Site
from mechrep.models.model import Model
from mechrep.models.units import units_per_layer
from mechrep.provenance import Provenance, provenance_of
from mechrep.results import Shown, check_same_model
from mechrep.run import LARGE_WEIGHTS, Run
from mechrep.sections import Section
from mechrep.stats import known
from mechrep.studies.kinds_of_heads import (
    ON_REPEATS,
    HeadReadings,
    NullTexts,
    head_kinds,
    heads_of,
    heads_that_say,
    name_of,
    read_heads,
    read_null_heads,
)
from mechrep.text.corpus import Corpus
from mechrep.text.stimuli import random_repeats
from mechrep.text.windows import SHORTEST_WINDOW

if TYPE_CHECKING:
    import plotly.graph_objects as go

BEST, INDUCTION, DUPLICATE, CIRCUIT, JOINT = (
    "best induction head",
    "all induction heads",
    "duplicate-token heads",
    "induction circuit",
    "induction heads and repetition neurons",
)
_PERIOD = 50
_EXAMPLE_TOKENS = 48  # so many can be read on the axes of an attention map
_CANDIDATES, _FEW_CANDIDATES = 16, 3  # texts among which the example is chosen; where reading one costs much
_LISTED = 10  # heads in a table of the page, at most


# --- the circuits that they make --------------------------------------------------------------------------------------


def planned_circuits(kinds: pd.DataFrame, neurons: RepetitionNeuronResult, n_heads: int) -> list[tuple[Circuit, When]]:
    """The circuits that these heads make, and where each is ablated.

    The induction circuit is the induction heads with the previous-token heads below them.  It is ablated at all
    positions, because a previous-token head does its work in the first repetition.  The last one joins the induction
    heads with the published share of repetition neurons.

    Args:
        kinds: of :func:`head_kinds`.
        neurons: the ranking of the same model.
        n_heads: heads per layer.

    Returns:
        Circuits with ``when``; none where no head qualifies.
    """
    sizes = {"n_layers": len(neurons.delta), "n_heads": n_heads}
    induction, duplicate = heads_of(kinds, "induction", ON_REPEATS), heads_of(kinds, "duplicate_token")
    highest = max((layer for layer, _ in induction), default=0)
    previous = [unit for unit in heads_of(kinds, "previous_token") if unit[0] < highest and unit not in induction]
    heads: dict[str, tuple[Sequence[Unit], When]] = {
        BEST: (induction[:1], "from_onset"),
        INDUCTION: (induction if len(induction) > 1 else [], "from_onset"),
        DUPLICATE: (duplicate, "from_onset"),
        CIRCUIT: ([*induction, *previous] if previous else [], "all"),
    }
    planned: list[tuple[Circuit, When]] = [
        (Circuit(name, heads=units, found="by their scores", sizes=sizes), when)
        for name, (units, when) in heads.items()
        if units
    ]
    if induction:
        top = Circuit.from_neurons(neurons, max(1, neurons.published_k))
        both = Circuit(JOINT, heads=induction, found="by their scores", sizes=sizes) + top
        facts: dict[str, Any] = {"found": both.found, "provenance": both.provenance, "sizes": both.sizes}
        planned.append((Circuit(JOINT, neurons=both.neurons, heads=both.heads, **facts), "from_onset"))
    return planned


def main_circuit(circuits: Sequence[Circuit]) -> Circuit:
    """The one that the section is about: all induction heads, where there are several."""
    order = (INDUCTION, BEST, DUPLICATE, CIRCUIT)
    return min(circuits, key=lambda one: order.index(one.name) if one.name in order else len(order))


def default_head_ks(n_heads: int, points: int | None = None) -> list[int]:
    """Numbers of heads to ablate together: 1, 2, 3, 4, 8, ... up to three eighths of the model, and at most 32.

    Args:
        n_heads: of the model.
        points: so many of these numbers, at least 2, evenly from the first to the last; by default all.

    Example:
        >>> default_head_ks(8), default_head_ks(144), default_head_ks(144, 2)
        ([1, 2, 3], [1, 2, 3, 4, 8, 16, 32], [1, 32])
    """
    every = [k for k in (1, 2, 3, 4, 8, 16, 32) if k <= max(1, 3 * n_heads // 8)]
    if points is None or len(every) <= 2:
        return every
    return [every[int(place)] for place in np.linspace(0, len(every) - 1, max(2, points)).round()]


# --- the study --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LoopExample:
    """What some heads look at in one looping text.

    Attributes:
        text_id: of the text.
        tokens: of the stretch that is shown, decoded one by one.
        first: place of the stretch in its text.
        onset: place of the second repetition in the stretch.
        patterns: attention by head, within the stretch; what goes to tokens before it is left out.
    """

    text_id: str
    tokens: list[str]
    first: int
    onset: int
    patterns: Mapping[Unit, Float[Tensor, "query_pos key_pos"]]


@dataclass(frozen=True)
class HeadStudy(Shown):
    """Which heads carry repetition, and what the model loses without them.

    Attributes:
        model_name: how the model was named.
        preset: whose detector decides what a loop is.
        corpus: looping and loop-free texts, with ``split``.
        readings: scores of all heads, on random repeats and on the looping texts to find with.
        kinds: which heads are of which kind, beside null models; see :func:`head_kinds`.
        neurons: repetition neurons of the same texts.
        single: every head ablated alone, on the looping texts to test with.
        ranking: more and more of the heads that score highest on induction, ablated together.
        circuits: the circuits that the heads make, with where each is ablated; none where no head qualifies.
        ablations: these circuits ablated, a table for each way of doing it.
        profiles: of :func:`mechrep.studies.layer_profiles`; ``None`` without an induction head or a rising neuron.
        example: attention in one looping text.
        nulls: null models.
        brief: tokens of a text that were scored under ablations, at most; ``None``: all.
        provenance: of the whole study.
    """

    model_name: str
    preset: str
    corpus: Corpus
    readings: HeadReadings
    kinds: pd.DataFrame
    neurons: RepetitionNeuronResult
    single: Effects
    ranking: Effects
    circuits: Sequence[tuple[Circuit, When]]
    ablations: Sequence[Effects]
    profiles: pd.DataFrame | None
    example: LoopExample
    nulls: int
    brief: int | None
    provenance: Provenance

    @guarded
    def heads_of(self, kind: str, measured_on: str | None = None) -> list[Unit]:
        """Heads of a kind, by any kind of text or by one."""
        return heads_of(self.kinds, kind, measured_on)

    def effects(self) -> pd.DataFrame:
        """All effects of the circuits; see :meth:`mechrep.ablation.effects.Effects.summary`.

        A family is what answers one question, whichever the circuit: do loops go on, is a repeat copied, what does it
        cost.  Each is asked of texts of its own.
        """
        if not self.ablations:
            return judge([])
        rows = pd.concat([table.summary() for table in self.ablations], ignore_index=True)
        rows["asked"] = rows["measure"].map(_ASKED).fillna("loops")
        return judge(rows, within=["asked"], family="one question of all circuits").drop(columns="asked")

    def section(self) -> list[Section]:
        """The sections on heads and on what ablating them does."""
        return [_heads_section(self), _ablation_section(self)]


@guarded
def run_head_study(
    model: Model,
    *,
    corpus: Corpus | None = None,
    repeats: Corpus | None = None,
    neurons: RepetitionNeuronResult | None = None,
    preset: str = "mechrep",
    ks: Some[Whole] | None = None,
    regenerate: bool = True,
    run: Run | None = None,
) -> HeadStudy:
    """Score all heads, tell which are of which kind, and ablate them beside controls.

    Heads are scored on random repeats and on the looping texts to find with, and ablated in the other looping texts.

    Args:
        model: the model.
        corpus: looping and loop-free texts, as :func:`mechrep.ablation.texts.shared_loops` gives them, which is the
            default; split by families of loops where they have no ``split``.
        repeats: random repeats to score heads on.
        neurons: repetition neurons of these texts; measured by default.
        preset: whose detector decides; with ``"hiraoka2025"`` heads are scored and ablated on the same texts.
        ks: numbers of heads of the ranking to ablate together; see :func:`default_head_ks`.
        regenerate: regenerate texts under the ablations of circuits, and count loops (expensive).
        run: options.

    Raises:
        NothingFoundError: the model wrote no looping text.
        InputError: fewer than two families of loops, ``ks`` that the model cannot serve, neurons of another model.
        ModelError: a model without attention patterns or separate heads.

    Source: see :mod:`mechrep.measures.head_scores` and :func:`mechrep.studies.ablation_study`.

    Limits: zero ablation only.  A model with few heads has few control sets of heads: then the verdict is "too few".

    Example:
        >>> import mechrep
        >>> from mechrep.run import Run
        >>> study = run_head_study(mechrep.load_model("mechrep-tiny"), regenerate=False, run=Run(effort="quick"))
        >>> study.single.conditions[1].name, len(study.kinds) > 0
        ('L0H0', True)
    """
    options = run or Run()
    texts = shared_loops(model, options, preset) if corpus is None else corpus
    if "split" not in texts.frame or not {"test", "both"} & set(texts.frame["split"]):
        texts = with_split(texts, preset, options.seed)
    find, test = find_and_test(texts)
    if neurons is None:
        neurons = CorpusCache(model, find, run=options).run(RepetitionNeurons(preset))
    check_same_model(neurons, model)
    on = _repeats(model, options) if repeats is None else repeats
    own = read_heads(model, on, find, options)
    key = (
        "heads of null models",
        model.fingerprint(),
        on.fingerprint(),
        find.fingerprint(),
        options.sizes_on(model).nulls,
    )
    both = NullTexts.of(on, find)
    nulls = options.once(key, lambda: [_null_heads(make, both, options) for make in null_models(model, options)])
    kinds = head_kinds(own, nulls)
    circuits, sizes = planned_circuits(kinds, neurons, model.anatomy.n_heads), options.sizes_on(model)
    brief = sizes.brief
    if brief is not None and circuits:
        main = main_circuit([one for one, _ in circuits]).name
        circuits = [pair for pair in circuits if pair[0].name == main]  # more tests would hide the verdict on this one
    windows = shared_windows(model, options, length=128 if brief is None else max(SHORTEST_WINDOW, 2 * brief))
    n_heads = sum(units_per_layer(model.anatomy, "heads"))
    points = None if brief is None else 1 + sizes.curve
    chosen = default_head_ks(n_heads, points) if ks is None else list(ks)
    read = READ_OUTCOMES if brief is None else READ_OUTCOMES[:1]
    plan = _Plan(model, texts, test, windows, circuits, preset, options)
    return HeadStudy(
        model_name=model.name, preset=preset, corpus=texts, readings=own, kinds=kinds, neurons=neurons,
        single=single_head_sweep(model, outcomes=read, texts=plan.on(test), run=options),
        ranking=plan.ranking(own.repeats, chosen), circuits=circuits, ablations=plan.ablations(regenerate),
        profiles=_profiles(neurons, own.repeats), example=_example(model, test, kinds, own.repeats), 
        nulls=len(nulls), brief=brief,
        provenance=provenance_of(
            model, texts, {"study": "heads", "preset": preset, "ks": chosen, "seed": options.seed,
                           "effort": options.effort, "regenerate": regenerate},
        ),
    )  # fmt: skip


def _null_heads(make: Callable[[], AbstractContextManager[Model]], both: NullTexts, run: Run) -> HeadReadings:
    with make() as null:
        return read_null_heads(null, both, run)


def _repeats(model: Model, run: Run) -> Corpus:
    n = min(_PERIOD, (model.anatomy.n_ctx - 1) // 2)
    return random_repeats(model, n=n, sequences=run.sizes_on(model).sequences, seed=run.seed)


@dataclass(frozen=True)
class _Plan:
    """What all ablations of a study share."""

    model: Model
    texts: Corpus
    test: Corpus
    windows: Corpus
    circuits: Sequence[tuple[Circuit, When]]
    preset: str
    run: Run

    @property
    def brief(self) -> int | None:
        """Tokens of a text that are scored, at most."""
        return self.run.sizes_on(self.model).brief

    def on(self, loops: Corpus) -> StudyTexts:
        """These texts; held out already, or the same ones where a preset wants it so."""
        decoding = LoopDecoding(self.preset).within(self.model.anatomy.n_ctx, self.texts)
        if self.brief is None:
            return StudyTexts(loops=loops, windows=self.windows, copies=2, decoding=decoding, held_out=False)
        return StudyTexts(loops, None, self.windows, 1, decoding, held_out=False, brief=self.brief)

    def controls(self, draws: int | None = None) -> Controls:
        """Heads of the same layers that belong to no circuit of repetition."""
        named = sorted({unit for circuit, _ in self.circuits for unit in circuit.heads})
        exclude = [Circuit("heads of the circuits", heads=named)] if named else []
        return Controls(("layer_matched",), draws, exclude, strict=False)

    def brief_ablations(self) -> list[Effects]:
        """What the main circuit does to loops, copying and language, and what the others do to loops.

        Nothing is regenerated: where the next tokens of a loop are the most probable ones, greedy decoding writes them.
        """
        circuits, sizes = [one for one, _ in self.circuits], self.run.sizes_on(self.model)
        if not circuits:
            return []
        main = main_circuit(circuits)
        jobs: list[tuple[Circuit, Sequence[str], When, int | None]] = [
            (main, READ_OUTCOMES[:1], "from_onset", None),
            (main, READ_OUTCOMES[1:], "from_onset", 2 * sizes.regenerated_draws + 1),
        ]
        for one in circuits:
            if one is not main:
                jobs.append((one, READ_OUTCOMES[:1], "from_onset", sizes.regenerated_draws))
        return [
            ablation_study(
                self.model, circuit, outcomes=asked, texts=self.on(self.test), controls=self.controls(draws), when=when,
                run=self.run,
            )
            for circuit, asked, when, draws in jobs
        ]  # fmt: skip

    def ablations(self, regenerate: bool) -> list[Effects]:
        """The circuits under each ``when``; and the first of them on loop-free texts, which run to their end."""
        if self.brief is not None:
            return self.brief_ablations()
        tables, outcomes = [], [*READ_OUTCOMES, *(["still_looping"] if regenerate else [])]
        for when in ("from_onset", "all"):
            some = [circuit for circuit, where in self.circuits if where == when]
            if some:
                texts, controls = self.on(self.test), self.controls()
                tables.append(
                    ablation_study(
                        self.model, some, outcomes=outcomes, texts=texts, controls=controls, when=when, run=self.run
                    )
                )
        long = self.texts.lengths.numpy() >= LoopDecoding().prompt_length
        free = self.texts.frame["onset"].isna().to_numpy() & long & without_counter(self.model, self.texts)
        if regenerate and self.circuits and free.any():
            first, texts = self.circuits[0][0], self.on(self.texts.select(free))
            tables.append(
                ablation_study(
                    self.model, first, outcomes=["newly_looping"], texts=texts, controls=self.controls(), run=self.run
                )
            )
        return tables

    def ranking(self, scores: HeadScoreResult, ks: Sequence[int]) -> Effects:
        """The heads that score highest on induction, ``ks`` of them."""
        circuits = [Circuit.from_heads(scores, k) for k in ks]
        controls = Controls(("layer_matched",), self.run.sizes_on(self.model).regenerated_draws, strict=False)
        outcomes = READ_OUTCOMES if self.brief is None else READ_OUTCOMES[:1]
        return ablation_study(
            self.model, circuits, outcomes=outcomes, texts=self.on(self.test), controls=controls, run=self.run
        )


def _profiles(neurons: RepetitionNeuronResult, scores: HeadScoreResult) -> pd.DataFrame | None:
    try:
        return layer_profiles(neurons, scores)
    except NothingFoundError:  # an answer too: there is nothing to lay side by side
        return None


def _example(model: Model, texts: Corpus, kinds: pd.DataFrame, scores: HeadScoreResult) -> LoopExample:
    """A text in which the heads of interest can be seen at work, at least two repetitions of its loop."""
    induction = heads_of(kinds, "induction", ON_REPEATS) or scores.top(1)
    heads = list(dict.fromkeys([induction[0], *heads_of(kinds, "duplicate_token")[:1]]))
    text = _typical(model, texts, heads[-1], "duplicate_token" if len(heads) > 1 else "induction")
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
    number = _CANDIDATES if model.n_weights <= LARGE_WEIGHTS else _FEW_CANDIDATES
    candidates = [texts.select([int(place)]) for place in np.flatnonzero(mask)[:number]]
    values = []
    for one in candidates:
        result = CorpusCache(model, one, progress=False).run(HeadScores("hiraoka2025", bos_id=model.bos_id))
        values.append(float(result.of(score)[head]))
    return candidates[int(np.argsort(values)[len(values) // 2])]


# --- as sections of the report ----------------------------------------------------------------------------------------


def _listed(units: Sequence[Unit], most: int = 12) -> str:
    more = f" and {len(units) - most} more" if len(units) > most else ""
    return (", ".join(map(name_of, units[:most])) + more) or "none found"


def _heads_section(study: HeadStudy) -> Section:
    own, scores, kinds = study.readings, study.readings.repeats, study.kinds
    first = kinds.groupby(["kind", "measured_on"], sort=False).first()  # the highest head of each kind
    best = heads_of(kinds, "induction", ON_REPEATS)[:1] or scores.top(1)
    row = first.loc[("induction", ON_REPEATS)]
    fields = {
        "model": study.model_name, "n_heads": len(known(scores.unexplained)), "nulls": study.nulls, "clear": CLEAR,
        "best": name_of(best[0]), "prefix": scores.induction[best[0]], "uniform": scores.chance[0],
        "null_prefix": row["control_high"] + row["baseline"],
        "saying": _listed(heads_that_say(kinds)),
        "in_loops": own.loops.induction[best[0]], "uniform_in_loops": own.loops.chance[0],
        **{kind: _listed(study.heads_of(kind)) for kind in scores.names if kind != "current_token"},
        "sequences": max(scores.n_texts.values()), "loops": max(own.loops.n_texts.values()),
        "onset": study.example.onset, "shown": ", ".join(map(name_of, study.example.patterns)), "listed": _LISTED,
    }  # fmt: skip
    profile = None if study.profiles is None else study.profiles.iloc[0]
    for name in ("overlap", "null", "null_low", "null_high", "p"):
        fields["overlap_p" if name == "p" else name] = None if profile is None else profile[name]
    claims = first[first["value"].notna()].reset_index()  # loops of period 1 say nothing about heads
    figures = {
        "repeats": head_scores_figure(scores), "loops": head_scores_figure(own.loops),
        "attention": attention_maps_figure(study.example.patterns, study.example.tokens, name=study.model_name),
    }  # fmt: skip
    tables = {"kinds": _kinds_frame(study), "scores": _scores_frame(study)}
    silent = own.copying is None
    claims = claims.assign(claim=[_claim(row) for row in claims.to_dict("records")])
    variant = "attention_only" if silent else ""
    return Section("heads", study.provenance, fields, claims, tables, figures, variant)


def _claim(row: Mapping[Any, Any]) -> str:
    """The wording of a claim: what stands out by little has its own, and so have loops."""
    where = "" if row["measured_on"] == ON_REPEATS else "_in_loops"
    weak = "_weak" if row["verdict"] == SUPPORTED and not row["clear"] else ""
    return f"{row['kind']}{where}{weak}"


def _kinds_frame(study: HeadStudy) -> pd.DataFrame:
    rows = []
    for (kind, place), part in study.kinds.groupby(["kind", "measured_on"], sort=False):
        row = part.iloc[0]
        rows.append({
            "kind": str(kind).replace("_", " "), "measured_on": place, "highest": round(row["value"], 3),
            "highest_of_null_models": round(row["control_high"] + row["baseline"], 3),
            "heads_above_null_models": int((part["verdict"] == SUPPORTED).sum()),
            "called_so": _listed(study.heads_of(str(kind), str(place))),
        })  # fmt: skip
    return pd.DataFrame(rows)


def _scores_frame(study: HeadStudy) -> pd.DataFrame:
    own, scores = study.readings, study.readings.repeats
    chosen = [unit for kind in scores.names for unit in study.heads_of(kind)]
    units = list(dict.fromkeys([*chosen, *scores.ranking("induction")]))[:_LISTED]
    columns = {
        "induction": scores.induction, "induction_in_loops": own.loops.induction,
        "duplicate_token": scores.duplicate_token, "duplicate_token_in_loops": own.loops.duplicate_token,
        "previous_token": scores.previous_token, "first_token": scores.first_token,
    }  # fmt: skip
    if own.copying is not None:
        columns["logit_of_the_next_token"] = own.copying.dla
    values = {name: [round(float(table[unit]), 3) for unit in units] for name, table in columns.items()}
    return pd.DataFrame({"head": [name_of(unit) for unit in units], **values})


_CLAIMED = {  # claims of every circuit, and those of the main one
    "loop_log_probability": "loop", "still_looping": "looping", "newly_looping": "newly", "stays_in_loop": "stays",
    "copy_accuracy": "copying", "loss": "loss",
}  # fmt: skip
_OF_ALL = ("loop_log_probability", "still_looping", "newly_looping", "stays_in_loop")


def _ablation_section(study: HeadStudy) -> Section:
    loops = study.single.clusters[0]
    single, told = single_head_frame(study.single), next(iter(agreements(study.single).values()), None)
    screening = screening_of(study.single.notes)
    heads = [name_of((layer, head)) for layer, head in zip(single["layer"], single["head"], strict=True)]
    fields: dict[str, Any] = {
        "model": study.model_name, "n_heads": len(known(study.readings.repeats.unexplained)), "n_alone": len(single),
        "n_texts": len(loops), "n_families": len(set(loops)),
        "single": heads[0], "single_effect": single["effect"].iloc[0], "listed": min(_LISTED, len(single)),
        "width": study.readings.repeats.unexplained.shape[1], "brief": study.brief,
        "screened_first": None if screening is None else len(screening.first),
        **{name: None if told is None else getattr(told, name) for name in ("sampled", "missed", "rank_correlation")},
    }  # fmt: skip
    shown = single[["effect", "low", "high"]].assign(rank=range(1, len(single) + 1), head=heads)
    tables = {"single": shown[["rank", "head", "effect", "low", "high"]].head(_LISTED).round(3)}
    figures = {"single": _described(study.single), "ranking": _claimed(study.ranking).curve()}
    if not study.circuits:
        return Section("ablation", study.provenance, fields, pd.DataFrame(), tables, figures, variant="not_found")
    effects = study.effects()
    circuits = {circuit.name: circuit for circuit, _ in study.circuits}
    main = main_circuit(list(circuits.values())).name
    whole = effects[(effects["part"] == "whole") & (effects["copy"].fillna(1) == 1)]
    mine = whole[whole["name"] == main].set_index("measure")
    fields |= {"main": _called(circuits[main]), "main_heads": _units(circuits[main]), "draws": int(mine["m"].max())}
    for measure, claim in _CLAIMED.items():
        for when, column in (("before", "baseline"), ("after", "value")):
            fields[f"{claim}_{when}"] = mine[column].get(measure)
    claims = whole[whole["measure"].isin(_OF_ALL) | ((whole["name"] == main) & whole["measure"].isin(_CLAIMED))]
    claims = claims.assign(
        claim=claims["measure"].map(_CLAIMED),
        units=[_units(circuits[name]) for name in claims["name"]],
        name=[_called(circuits[name]) for name in claims["name"]],
        family=claims["family"].where(claims["q"].notna(), ""),  # what could not be judged was not corrected
    )
    tables = {"effects": _effects_frame(study, effects), **tables}
    forest = _claimed(study.ablations[0])
    parts = [place for place, one in enumerate(forest.conditions) if one.part != "heads"]  # these are a circuit, too
    figures = {"forest": forest.select(parts).plot(), **figures}
    variant = "brief" if (claims["measure"] == "stays_in_loop").any() else ""
    return Section("ablation", study.provenance, fields, claims, tables, figures, variant)


def _claimed(effects: Effects) -> Effects:
    """The measures that claims are about; of a loop's repetitions the next one."""
    rows = [place for place, one in enumerate(effects.measures) if one.name in _CLAIMED and one.copy in (None, 1)]
    chosen = {name: [getattr(effects, name)[place] for place in rows] for name in ("measures", "units", "clusters")}
    return replace(effects, values=effects.values[rows], **chosen)


def _described(single: Effects) -> go.Figure:
    """The figure of single heads without verdicts.

    What :func:`single_head_sweep` tests, whether a head does more than the middle one, is another question than that
    of the claims, whether it does more than other heads of its layer.
    """
    figure = single_heads_figure(replace(_claimed(single), notes={}))
    label = "L%{y}H%{x}: %{z:+.3g}<br>95 %: %{customdata[0]:.3g} to %{customdata[1]:.3g}<extra></extra>"
    return figure.update_traces(hovertemplate=label)


def _called(circuit: Circuit) -> str:
    return circuit.name.replace("heads", "head") if len(circuit.heads) == 1 else circuit.name


def _units(circuit: Circuit) -> str:
    neurons = [counted(len(circuit.neurons), "neuron")] if circuit.neurons else []
    return ", ".join([*map(name_of, circuit.heads), *neurons])


_ASKED = {"copy_accuracy": "copying", "copy_loss_drop": "copying", "loss": "cost"}  # all others are of loops

_COLUMNS = {  # of the table of circuits, and the factor of its numbers
    "loop_log_probability": ("next repetition (nats)", 1),
    "still_looping": ("still loop (%)", 100),
    "stays_in_loop": ("stay in the loop (%)", 100),
    "copy_accuracy": ("repeats predicted (%)", 100),
    "loss": ("loss (nats)", 1),
}


def _effects_frame(study: HeadStudy, effects: pd.DataFrame) -> pd.DataFrame:
    """Every measure of the claims, at baseline and under every circuit."""
    effects = effects[effects["copy"].fillna(1) == 1]
    rows: list[dict[str, Any]] = [{"ablated": "nothing"}]
    for circuit, _ in study.circuits:
        for part in ("whole", "neurons"):
            mine = effects[(effects["name"] == circuit.name) & (effects["part"] == part)].set_index("measure")
            if mine.empty:
                continue
            alone = part == "neurons"
            names = {
                "ablated": "its neurons alone" if alone else _called(circuit),
                "heads and neurons": counted(len(circuit.neurons), "neuron") if alone else _units(circuit),
                "control_sets": int(mine["m"].max()),
            }  # fmt: skip
            for column, target in (("baseline", rows[0]), ("value", names)):
                for measure, (label, scale) in _COLUMNS.items():
                    if measure in mine.index:
                        target[label] = round(scale * float(mine[column][measure]), 3)
            rows.append(names)
    order = ["ablated", "heads and neurons", "control_sets", *(label for label, _ in _COLUMNS.values())]
    frame = pd.DataFrame(rows)
    return frame[[name for name in order if name in frame]].astype({"control_sets": "Int64"})
