"""``ablation_study``: cut circuits out of a model, and see what loops, copying and language lose, beside controls.

Every condition (circuit, part, operation, control, seed) on every text is one row of a batch; nothing is a run of the
model of its own.

From the names of outcomes to measurements, and from conditions to a table of values, shard by shard.

``single_head_sweep``: every head cut alone, all in one batch of rows, with corrected tests.

``layer_profiles``: do the top neurons and the top heads lie in the same layers?

``AblationResult``: what every text got under every condition, and the tables made from it.

Figures of an ablation study: every condition beside its controls, and curves over the number of components cut.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechrep.ablation.circuit import Circuit
from mechrep.ablation.old_conditions import CELL, AblationCondition, Circuits, MatchBy, ablation_conditions, as_circuits
from mechrep.ablation.old_controls import as_seeds, induction_heads
from mechrep.ablation.old_outcomes import (
    CopyAccuracy,
    HeldOutLoss,
    LoopLogProbability,
    Outcome,
    Regeneration,
    loop_free_texts,
    looping_texts,
    unseen,
)
from mechrep.ablation.old_sweeps import ACTIVATION_PROMPT, NEW_TOKENS
from mechrep.errors import InputError, NothingFoundError
from mechrep.figures import AXIS, INK, counted, plain, style_of, styled, translucent
from mechrep.generation.loops import collect_loops
from mechrep.interventions.ops import Cut, Op, When, as_ops, op_name
from mechrep.measures.attention_sinks import AttentionSinkResult
from mechrep.measures.head_scores import HeadScoreResult
from mechrep.measures.neurons import RepetitionNeuronResult
from mechrep.models import tiny
from mechrep.models.model import Model
from mechrep.provenance import Provenance, provenance_of
from mechrep.results import Result, check_count
from mechrep.stats import (
    benjamini_hochberg,
    bootstrap_intervals,
    holm,
    paired_p_values,
    percentile_interval,
    proportion_interval,
)
from mechrep.store import Journal
from mechrep.text.corpus import Corpus, windows_of_text
from mechrep.text.stimuli import random_repeats

if TYPE_CHECKING:
    import plotly.graph_objects as go

CHEAP_OUTCOMES = ("loop_log_probability", "copy_accuracy", "loss")
OUTCOMES = (*CHEAP_OUTCOMES, "still_looping", "newly_looping")
_COLLECTED = 64  # texts of each kind, where the model has to write them itself
_PERIOD, _REPEATS_SEED = 50, 1_000_003  # random repeats on which no head was scored
_ROWS_PER_SHARD = 4096


@dataclass(frozen=True)
class Settings:
    """What outcomes are measured on, and how; see :func:`mechrep.ablation.old_study.ablation_study`."""

    corpus: Corpus | None
    repeats: Corpus | None
    windows: Corpus | None
    when: When
    copies: int
    preset: str
    max_new_tokens: int
    prompt_length: int

    def outcomes(self, model: Model, names: Sequence[str], seen: Set[str]) -> dict[str, Outcome]:
        """The measurements of these names, on texts outside ``seen``.

        Raises:
            InputError: an unknown name, one given twice, none at all, an unknown ``when``, texts that do not serve.
            NothingFoundError: no text of the kind that an outcome needs.
        """
        if not names or not set(names) <= set(OUTCOMES) or len(set(names)) < len(names):
            raise InputError(f"outcomes={list(names)}", f"some of {OUTCOMES}, each once", "choose among these")
        if self.when not in ("from_onset", "all"):
            raise InputError(f"when={self.when!r}", "'from_onset' or 'all'", "choose one of these")
        makers: dict[str, Callable[[], Outcome]] = {
            "loop_log_probability": lambda: self._log_probability(model, texts()),
            "copy_accuracy": lambda: CopyAccuracy(model, self.repeats or _repeats(model)),
            "loss": lambda: HeldOutLoss(model, self.windows or windows_of_text(model, tiny.held_out_text())),
            "still_looping": lambda: self._still_looping(model, texts()),
            "newly_looping": lambda: self._newly_looping(model, texts()),
        }
        given = self.corpus
        if given is None and set(names) - {"copy_accuracy", "loss"}:
            others = _COLLECTED if "newly_looping" in names else 0
            given = collect_loops(model, _COLLECTED, n_others=others, preset=self.preset, progress=False)

        def texts() -> Corpus:
            assert given is not None
            given.check_model(model)
            return unseen(given, seen)

        return {name: makers[name]() for name in names}

    def _log_probability(self, model: Model, texts: Corpus) -> Outcome:
        looping, loops = looping_texts(texts)
        return LoopLogProbability(model, looping, loops, self.copies, self.when)

    def _still_looping(self, model: Model, texts: Corpus) -> Outcome:
        looping, loops = looping_texts(texts)
        return self._regeneration("still_looping", model, looping, [loop.onset for loop in loops])

    def _newly_looping(self, model: Model, texts: Corpus) -> Outcome:
        free = loop_free_texts(texts, self.prompt_length)
        return self._regeneration("newly_looping", model, free, [self.prompt_length] * len(free))

    def _regeneration(self, name: str, model: Model, texts: Corpus, cuts: list[int]) -> Outcome:
        return Regeneration(
            name, model, texts, cuts, when=self.when, preset=self.preset, max_new_tokens=self.max_new_tokens
        )


def _repeats(model: Model) -> Corpus:
    return random_repeats(model, n=min(_PERIOD, (model.anatomy.n_ctx - 1) // 2), seed=_REPEATS_SEED)


def run_plan(
    model: Model,
    conditions: Sequence[AblationCondition],
    outcomes: dict[str, Outcome],
    config: dict[str, Any],
    *,
    store: str | Path | None,
    progress: bool | None,
) -> dict[str, Any]:
    """Measure every outcome under every condition, a shard of conditions at a time.

    Returns:
        The fields of an :class:`~mechrep.ablation.old_study.AblationResult`.
    """
    provenance = _provenance(model, conditions, outcomes, config)
    journal = None if store is None else Journal(Path(store), provenance)
    tables: list[Tensor] = []
    shard = 0
    for outcome in outcomes.values():
        per_shard = max(1, _ROWS_PER_SHARD // len(outcome.corpus))
        parts = []
        for first in range(0, len(conditions), per_shard):
            records = journal.find(shard) if journal is not None else None
            if records is None:
                cuts = [condition.intervention for condition in conditions[first : first + per_shard]]
                records = [{"values": table.tolist()} for table in outcome.values(cuts, progress)]
                if journal is not None:
                    journal.keep(shard, records)
            parts.append(torch.tensor([record["values"] for record in records], dtype=torch.float64))
            shard += 1
        tables.append(torch.cat(parts, dim=1))
    return {
        "provenance": provenance,
        "conditions": [condition.record() for condition in conditions],
        "measures": [one for outcome in outcomes.values() for one in outcome.measures],
        "texts": [outcome.corpus.frame["id"].tolist() for outcome in outcomes.values() for _ in outcome.measures],
        "values": _stack(tables),
    }


def _stack(tables: Sequence[Float[Tensor, "_ condition _"]]) -> Float[Tensor, "measure condition text"]:
    """All measures in one tensor; NaN beyond the texts of each."""
    longest = max(table.shape[2] for table in tables)
    return torch.cat([torch.nn.functional.pad(t, (0, longest - t.shape[2]), value=torch.nan) for t in tables])


def _provenance(
    model: Model, conditions: Sequence[AblationCondition], outcomes: dict[str, Outcome], config: dict[str, Any]
) -> Provenance:
    """Corpus: that of the first outcome; the texts and settings of all stand in the configuration."""
    measured = {
        name: {"texts": outcome.corpus.fingerprint(), "settings": _digest(outcome.facts)}
        for name, outcome in outcomes.items()
    }
    cells = _digest([condition.record() for condition in conditions])
    first = next(iter(outcomes.values()))
    return provenance_of(model, first.corpus, {**config, "outcomes": measured, "conditions": cells})


def _digest(value: Any) -> str:
    """Fingerprint of what decides the values, yet is too long to stand in a record."""
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]


def layer_profiles(
    neurons: RepetitionNeuronResult,
    heads: HeadScoreResult,
    *,
    k_neurons: int | None = None,
    k_heads: int | None = None,
    score: str = "induction",
    draws: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Share of the top neurons and of the top heads in each layer, and how far the two profiles overlap.

    With the shares ``p`` of neurons and ``q`` of heads::

        overlap = sum over layers of min(p_l, q_l)            0: no layer in common;  1: the same profile

    The null shuffles the layers of the heads' profile: as concentrated as it is, but anywhere.

    Args:
        neurons: a ranking of neurons.
        heads: scores of heads of the same model.
        k_neurons: the first so many; by default the published share of 0.5 %.  Neurons that fall are left out.
        k_heads: the first so many; by default all induction heads (prefix matching of at least 0.3 above chance).
        score: of the heads.
        draws: of the null.
        seed: of the draws.

    Returns:
        One row per layer: ``layer``, the counts ``neurons`` and ``heads``, ``neuron_share`` and ``head_share``; and,
        the same in every row, ``overlap``, the mean ``null`` with its central 95 % ``null_low``/``null_high``, and
        ``p``, the share of draws (the observed one among them) that overlap at least as much.

    Raises:
        InputError: results of models with different layers, a ``k`` larger than there are, fewer than one draw, or
            ``k_heads`` left out with another score than induction.
        NothingFoundError: no neuron that rises among the first, or no induction head.

    Source: the question is Hiraoka & Inui 2025's (arXiv 2410.13497), section 5; overlap and null are mechrep's own.

    Limits: neighbouring layers count as different, and with few layers the null is coarse.

    Example:
        >>> import mechrep
        >>> from mechrep.measures.head_scores import score_heads
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> rows = [[0, *range(30 + i, 60 + i), *[9, 8, 7, 6, 5] * 8] for i in range(3)]
        >>> texts = mechrep.Corpus.from_tokens(rows, model=model).with_cycles()
        >>> (neurons,) = mechrep.CorpusCache(model, texts).run(mechrep.RepetitionNeurons("hiraoka2025", r=10))
        >>> profiles = layer_profiles(neurons, score_heads(model, n=10, sequences=4), k_neurons=50, k_heads=2)
        >>> float(profiles["head_share"].sum())
        1.0
    """
    n_layers = len(neurons.delta)
    if len(heads.scores[0]) != n_layers or draws < 1:
        raise InputError(
            f"neurons of {n_layers} layers, heads of {len(heads.scores[0])}, draws={draws}",
            "two results of one model, at least one draw",
            "measure both on the same model",
        )
    if k_heads is None and score != "induction":
        raise InputError(f"score={score!r} without k_heads", "a number of heads", "pass k_heads=")
    units = induction_heads(heads) if k_heads is None else heads.top(k_heads, score)
    head_counts = np.bincount([layer for layer, _ in units], minlength=n_layers)
    neuron_counts = np.array(neurons.layer_counts(k_neurons))
    if not neuron_counts.sum() or not head_counts.sum():
        raise NothingFoundError(
            f"{neuron_counts.sum()} neurons that rise and {head_counts.sum()} heads",
            "at least one of each",
            "pass k_neurons= and k_heads=",
        )
    neuron_share, head_share = neuron_counts / neuron_counts.sum(), head_counts / head_counts.sum()
    overlap = float(np.minimum(neuron_share, head_share).sum())
    generator = np.random.default_rng(seed)
    null = np.array([np.minimum(neuron_share, generator.permutation(head_share)).sum() for _ in range(draws)])
    low, high = percentile_interval(null.tolist())
    return pd.DataFrame(
        {
            "layer": range(n_layers),
            "neurons": neuron_counts,
            "heads": head_counts,
            "neuron_share": neuron_share,
            "head_share": head_share,
            "overlap": overlap,
            "null": null.mean(),
            "null_low": low,
            "null_high": high,
            "p": (1 + int((null >= overlap - 1e-12).sum())) / (1 + draws),
        }
    )


@dataclass(frozen=True, eq=False)
class AblationResult(Result):
    """Outcomes of an ablation study.

    Attributes:
        conditions: ``circuit, part, selection, k, op, seed`` and the components cut; the first is the untouched model.
        measures: ``outcome``, ``copy`` of the loop (0: its onset token alone; ``None`` where there are no copies) and
            ``trials`` (each value is the share of so many; 0: it is a mean).
        texts: ids of the texts of each measure.
        values: in nats per token, or shares; NaN where a measure has no such text, or the text no such copy.
    """

    conditions: Sequence[dict[str, Any]]
    measures: Sequence[dict[str, Any]]
    texts: Sequence[Sequence[str]]
    values: Float[Tensor, "measure condition text"]

    def to_frame(self) -> pd.DataFrame:
        """One row per measure and condition.

        Columns: ``circuit, part, selection, k, op, seed, outcome, copy``; ``value``, the mean over texts, with a 95 %
        interval ``low``/``high`` (for shares Wilson's over all ``n`` trials, else the bootstrap's over ``n`` texts);
        ``effect``, the mean difference to the untouched model in the same texts, with its paired bootstrap interval
        ``effect_low``/``effect_high``; ``texts``; and the ``perplexity`` that a ``loss`` makes.
        """
        tables = [self._table(number) for number in range(len(self.measures))]
        frame = pd.concat(tables, ignore_index=True)
        return frame.astype({"copy": "Int64"})

    def _known(self, measure: int) -> Float[np.ndarray, "condition text"]:
        """The values of a measure in the texts that have one: the same under all conditions."""
        values = self.values[measure].double().numpy()
        return values[:, ~np.isnan(values[0])]

    def _table(self, number: int) -> pd.DataFrame:
        measure, values = self.measures[number], self._known(number)
        effects = values - values[:1]
        trials = measure["trials"] * values.shape[1]
        if trials:
            counts = np.rint(values.sum(1) * measure["trials"]).astype(int)
            ends = np.array([proportion_interval(int(count), trials) for count in counts])
        else:
            ends = bootstrap_intervals(values)
        effect_ends = bootstrap_intervals(effects)
        table = pd.DataFrame(list(self.conditions))[CELL]
        return table.assign(
            outcome=measure["outcome"],
            copy=pd.array([measure["copy"]] * len(table), dtype="Int64"),
            value=values.mean(1),
            low=ends[:, 0],
            high=ends[:, 1],
            effect=effects.mean(1),
            effect_low=effect_ends[:, 0],
            effect_high=effect_ends[:, 1],
            n=trials or values.shape[1],
            texts=values.shape[1],
            perplexity=np.exp(values.mean(1)) if measure["outcome"] == "loss" else np.nan,
        )

    def text_frame(self) -> pd.DataFrame:
        """One row per measure, condition and text: its ``value``."""
        cells = pd.DataFrame(list(self.conditions))[CELL]
        tables = []
        for measure, names, values in zip(self.measures, self.texts, self.values, strict=True):
            for cell, row in zip(cells.to_dict("records"), values[:, : len(names)].tolist(), strict=True):
                facts = cell | {"outcome": measure["outcome"], "copy": measure["copy"]}
                tables.append(pd.DataFrame({"text": list(names), "value": row}).assign(**facts))
        frame = pd.concat(tables, ignore_index=True).astype({"copy": "Int64"})
        return frame[[*CELL, "outcome", "copy", "text", "value"]]

    def summary(self) -> pd.DataFrame:
        """As :meth:`to_frame`, with the draws of a control taken together.

        Of several draws ``value`` and ``effect`` are the means, and their intervals the central 95 % over draws (the
        least and the largest when there are few); ``draws`` counts them.
        """
        by = [name for name in CELL if name != "seed"] + ["outcome", "copy"]
        rows = []
        for _, cell in self.to_frame().groupby(by, sort=False, dropna=False):
            row = cell.iloc[0].drop("seed").to_dict() | {"draws": len(cell)}
            if len(cell) > 1:
                for name, ends in (("value", ("low", "high")), ("effect", ("effect_low", "effect_high"))):
                    row |= dict(zip(ends, percentile_interval(cell[name].tolist()), strict=True))
                    row[name] = cell[name].mean()
                row["perplexity"] = cell["perplexity"].mean()
            rows.append(row)
        return pd.DataFrame(rows).astype({"copy": "Int64"})

    def measure_number(self, outcome: str | None = None, copy: int | None = None) -> int:
        """Place of a measure; by default the first outcome, and of the copies of a loop the first.

        Raises:
            InputError: an outcome or copy that was not measured.
        """
        name = self.measures[0]["outcome"] if outcome is None else outcome
        places = {m["copy"]: i for i, m in enumerate(self.measures) if m["outcome"] == name}
        wanted = min(1, max(places)) if copy is None and None not in places and places else copy
        if wanted not in places:
            measured = [(m["outcome"], m["copy"]) for m in self.measures]
            raise InputError(f"outcome {name!r}, copy {copy}", f"one of {measured}", "choose one that was measured")
        return places[wanted]

    def ranking(self, outcome: str | None = None, copy: int | None = None) -> list[int]:
        """Numbers of all conditions but the untouched model, the one that changes a measure most first.

        Args:
            outcome: by default the first.
            copy: of the loop, by default the first.
        """
        values = self._known(self.measure_number(outcome, copy))
        sizes = np.abs((values - values[:1]).mean(1)[1:])
        return [int(place) + 1 for place in np.argsort(-sizes, kind="stable")]

    def top(self, k: int, outcome: str | None = None, copy: int | None = None) -> list[Any]:
        """The cells of the ``k`` conditions that change a measure most.

        Raises:
            InputError: ``k`` larger than the number of conditions, or a measure that is not there.
        """
        ranking = self.ranking(outcome, copy)
        check_count(k, len(ranking), "conditions")
        return [{name: self.conditions[place][name] for name in CELL} for place in ranking[:k]]


def ablation_study(
    model: Model,
    circuits: Circuits,
    *,
    corpus: Corpus | None = None,
    ops: Sequence[Cut] = ("zero",),
    ks: Sequence[int] | None = None,
    controls: Sequence[str] = ("random", "layer_matched"),
    seeds: int | Sequence[int] = 5,
    outcomes: Sequence[str] = CHEAP_OUTCOMES,
    when: When = "from_onset",
    copies: int = 3,
    repeats: Corpus | None = None,
    windows: Corpus | None = None,
    preset: str = "mechrep",
    max_new_tokens: int = NEW_TOKENS,
    prompt_length: int = ACTIVATION_PROMPT,
    head_scores: HeadScoreResult | None = None,
    sinks: AttentionSinkResult | None = None,
    neurons: RepetitionNeuronResult | None = None,
    held_out: bool = True,
    store: str | Path | None = None,
    progress: bool | None = None,
) -> AblationResult:
    """Cut circuits and measure what changes, beside controls.

    Of a circuit of several kinds (a union of neurons and heads) each kind is also cut alone (column ``part``).

    Outcomes, cheap ones first:

    * ``loop_log_probability``: with the prompt ``ids[:onset]`` and the loop's own continuation after it, the mean
      ``log p`` of its tokens in copy 1, 2, ...; copy 0 is the onset token alone.  Teacher-forced, nats per token.
    * ``copy_accuracy`` and ``copy_loss_drop``: on random repeats, the share of the second copy's tokens that are the
      most probable ones, and the loss on the first copy minus that on the second.  Edited at every position.
    * ``loss``: on the second half of windows of held-out text, which is edited; the table adds the perplexity.
    * ``still_looping``: share of looping texts that, written again from their onset on, still loop: what
      :func:`mechrep.studies.deactivation_sweep` counts.  Dear, as every text is generated.
    * ``newly_looping``: share of loop-free texts that loop when written again after ``prompt_length`` tokens.  Dear.

    Args:
        model: the model.
        circuits: a circuit, a result whose ranking is cut at ``ks`` (heads by induction score), or several of these.
        corpus: texts with ``start`` and ``onset`` for the loops, loop-free ones for ``newly_looping``; by default 64
            that the model writes itself.
        ops: operations; a pair is one for neurons and one for heads.
        ks: numbers of components of ranked results.
        controls: ``"random"`` (anything), ``"layer_matched"`` (neurons, heads), ``"activation_matched"`` (neurons),
            ``"bos_matched"`` (heads); a part gets those that are defined for all its kinds.
        seeds: number of draws of each control, or the seeds.
        outcomes: which of the above; ``copy_loss_drop`` comes with ``copy_accuracy``.
        when: ``"from_onset"``: loops are edited from the position that predicts the onset token (or the first new
            one) on, so the prompt is read by the whole model; ``"all"``: at every position.  What a head wrote into
            the first copy, as a previous-token head does, only ``"all"`` removes.
        copies: copies of the loop whose tokens are predicted.
        repeats: by default 32 texts of ``random_repeats`` with another seed than that of head scores.
        windows: by default those of ``windows_of_text`` on the embedded held-out text, which is English.
        preset: detector of ``still_looping`` and ``newly_looping``.
        max_new_tokens: tokens that these two write.
        prompt_length: of ``newly_looping``.
        head_scores: for ``"bos_matched"``, unless the circuits are cut from such a result.
        sinks: for ``"bos_matched"``: where given, heads are matched by its ``alpha``.
        neurons: for ``"activation_matched"``, unless the circuits are cut from such a result.
        held_out: leave out texts that the circuits' provenance names.
        store: folder in which finished shards are kept, so that a stopped study goes on.
        progress: show progress bars.

    Returns:
        An :class:`AblationResult`; ``to_frame()`` has one row per outcome (and copy) and condition.

    Raises:
        InputError: a circuit of another model, ``k`` larger than a ranking, an unknown outcome or control, a control
            that cannot be drawn, texts that do not serve.
        NothingFoundError: no looping (or loop-free) text where an outcome needs one.

    Source: cutting heads and copying: Olsson et al. 2022 (arXiv 2209.11895); the counts: Hiraoka & Inui 2025
    (arXiv 2410.13497); matched controls and the measures by copy are mechrep's own.

    Limits: a cut part can be replaced by others in the same pass, so a small effect does not show that it does
    nothing.  Zero may lie far from what a part does on text; compare operations.

    Example:
        >>> import mechrep
        >>> from mechrep.ablation.circuit import Circuit
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> texts = mechrep.Corpus.from_tokens([[0, *range(30, 50), *[9, 8, 7, 6, 5] * 4]], model=model).with_cycles()
        >>> circuit = Circuit("two heads", heads=[(1, 0), (2, 1)])
        >>> study = ablation_study(
        ...     model, circuit, corpus=texts, outcomes=["loop_log_probability"], controls=["random"], seeds=1, copies=1
        ... )
        >>> study.to_frame()[["selection", "copy"]].values.tolist()
        [['none', 0], ['top', 0], ['random', 0], ['none', 1], ['top', 1], ['random', 1]]
    """
    chosen = as_circuits(circuits, ks)
    conditions = ablation_conditions(
        model,
        chosen,
        ops=ops,
        controls=controls,
        seeds=as_seeds(seeds),
        match_by=MatchBy(head_scores, sinks, neurons),
        when=when,
    )
    seen = frozenset[str]().union(*(circuit.seen_texts for circuit, _ in chosen)) if held_out else frozenset[str]()
    settings = Settings(corpus, repeats, windows, when, copies, preset, max_new_tokens, prompt_length)
    config = {
        "study": "ablation",
        "circuits": [[circuit.label, circuit.found] for circuit, _ in chosen],
        "ops": [[one.fingerprint for one in as_ops(op)] for op in ops],
        "controls": list(controls),
        "held_out": held_out,
    }
    found = run_plan(
        model, conditions, settings.outcomes(model, outcomes, seen), config, store=store, progress=progress
    )
    return AblationResult(**found)


@dataclass(frozen=True, eq=False)
class HeadSweepResult(AblationResult):
    """Outcomes with each head cut alone; the condition of head ``h`` of layer ``l`` is the circuit ``"l.h"``."""

    def top(self, k: int, outcome: str | None = None, copy: int | None = None) -> list[tuple[int, int]]:
        """The ``k`` heads whose cut changes a measure most, as ``(layer, head)``.

        Args:
            k: how many.
            outcome: by default the first.
            copy: of the loop, by default the first.

        Raises:
            InputError: ``k`` larger than the number of heads, or a measure that is not there.
        """
        ranking = self.ranking(outcome, copy)
        check_count(k, len(ranking), "heads")
        return [self._head(place) for place in ranking[:k]]

    def tests(self, outcome: str | None = None, copy: int | None = None) -> pd.DataFrame:
        """One row per head, the largest effect first, with corrections for having looked at all of them.

        Columns: ``layer, head, value, effect, effect_low, effect_high``; ``p`` of a paired t-test over texts; ``holm``,
        the adjusted p-value under which any false finding has that chance; ``fdr``, the one of Benjamini and Hochberg,
        under which that share of the findings is expected to be false.

        Args:
            outcome: by default the first.
            copy: of the loop, by default the first.

        Raises:
            InputError: fewer than two texts, or a measure that is not there.
        """
        number = self.measure_number(outcome, copy)
        values = self._known(number)
        p_values = paired_p_values(values[1:] - values[:1])
        heads = [self._head(place) for place in range(1, len(values))]
        columns = self._table(number).loc[1:, ["value", "effect", "effect_low", "effect_high"]].reset_index(drop=True)
        frame = pd.DataFrame(heads, columns=["layer", "head"]).join(columns)
        frame = frame.assign(p=p_values, holm=holm(p_values), fdr=benjamini_hochberg(p_values))
        order = [place - 1 for place in self.ranking(outcome, copy)]
        return frame.iloc[order].reset_index(drop=True)

    def _head(self, place: int) -> tuple[int, int]:
        ((layer, head),) = self.conditions[place]["heads"]
        return layer, head


def single_head_sweep(
    model: Model,
    corpus: Corpus | None = None,
    *,
    op: Op | str = "zero",
    outcomes: Sequence[str] = ("loop_log_probability",),
    when: When = "from_onset",
    copies: int = 3,
    repeats: Corpus | None = None,
    windows: Corpus | None = None,
    preset: str = "mechrep",
    max_new_tokens: int = NEW_TOKENS,
    prompt_length: int = ACTIVATION_PROMPT,
    store: str | Path | None = None,
    progress: bool | None = None,
) -> HeadSweepResult:
    """Cut every head alone and measure what changes.

    Each (head, text) is one row of a batch; what lies before a text's first edited position is computed once for all
    heads, and so are, where given texts are scored, the layers below each head.

    Args:
        model: the model.
        corpus: looping texts with ``start`` and ``onset``; by default 64 that the model writes itself.
        op: an operation on heads.
        outcomes: see :func:`mechrep.ablation.old_study.ablation_study`, as for all that follows.
        when: ``"from_onset"`` or ``"all"``.
        copies: copies of the loop whose tokens are predicted.
        repeats: random repeats for ``copy_accuracy``.
        windows: held-out windows for ``loss``.
        preset: detector of ``still_looping`` and ``newly_looping``.
        max_new_tokens: tokens that these two write.
        prompt_length: of ``newly_looping``.
        store: folder in which finished shards are kept.
        progress: show progress bars.

    Raises:
        InputError: an unknown outcome, an operation that is not for heads, texts that do not serve.
        NothingFoundError: no looping (or loop-free) text where an outcome needs one.

    Limits: heads that do the same work hide each other: cut alone, neither matters.  Cut them together with
    :func:`mechrep.ablation.old_study.ablation_study`.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> rows = [[0, *range(30, 50), *[9, 8, 7, 6, 5] * 4], [0, *range(50, 70), *[4, 8, 3, 6] * 5]]
        >>> sweep = single_head_sweep(model, mechrep.Corpus.from_tokens(rows, model=model).with_cycles(), copies=1)
        >>> len(sweep.tests()) == model.anatomy.n_layers * model.anatomy.n_heads
        True
    """
    anatomy, name = model.anatomy, op_name(op)
    conditions = [AblationCondition()]
    for layer in range(anatomy.n_layers):
        for head in range(anatomy.n_heads):
            cut = Circuit(f"{layer}.{head}", heads=[(layer, head)])
            intervention = cut.intervention(op, when)
            conditions.append(AblationCondition(cut.name, "whole", "single", 1, name, 0, cut, intervention))
    settings = Settings(corpus, repeats, windows, when, copies, preset, max_new_tokens, prompt_length)
    config = {"study": "single heads", "op": as_ops(op)[1].fingerprint}
    measured = settings.outcomes(model, outcomes, frozenset())
    return HeadSweepResult(**run_plan(model, conditions, measured, config, store=store, progress=progress))


_TITLES = {
    "loop_log_probability": "log-probability of the loop's tokens (nats per token)",
    "copy_accuracy": "share of the second copy that is predicted",
    "copy_loss_drop": "loss on the first copy minus the second (nats)",
    "loss": "held-out loss (nats per token)",
    "still_looping": "share of looping texts that still loop",
    "newly_looping": "share of loop-free texts that loop",
}
_ROW = 24  # pixels per condition
_UNTOUCHED = "none"


def ablation_figure(result: AblationResult) -> go.Figure:
    """One panel per outcome, one point with its 95 % interval per condition; the dotted line is the untouched model.

    The draws of a control are one point: their mean, with the interval over draws.

    Args:
        result: of :func:`mechrep.ablation.old_study.ablation_study` or ``single_head_sweep``.

    Example:
        >>> import mechrep
        >>> from mechrep.ablation.old_study import single_head_sweep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> row = [0, *range(30, 50), *[9, 8, 7, 6, 5] * 4]
        >>> corpus = mechrep.Corpus.from_tokens([row, row], model=model).with_cycles()
        >>> figure = ablation_figure(single_head_sweep(model, corpus, copies=1))
        >>> figure.layout.title.text
        'What the model loses'
    """
    from plotly.subplots import make_subplots

    summary = result.summary()
    measures = list(dict.fromkeys(zip(summary["outcome"], summary["copy"].fillna(-1).astype(int), strict=True)))
    rows = max(1, len(summary) // len(measures) - 1)
    height = rows * _ROW + 90
    figure = make_subplots(
        len(measures),
        1,
        subplot_titles=[_measure(*measure) for measure in measures],
        vertical_spacing=0.3 / len(measures),
    )
    for number, (outcome, copy) in enumerate(measures, start=1):
        part = summary[(summary["outcome"] == outcome) & (summary["copy"].fillna(-1) == copy)]
        _add_points(figure, part, number)
    figure.update_annotations(font_size=13)
    texts = counted(int(summary["texts"].max()), "text")
    titled = styled(figure, title="What the model loses", subtitle=f"{_name(result)}, {texts}", x="", y="")
    titled.update_xaxes(AXIS | {"showgrid": True})
    titled.update_yaxes(AXIS | {"showgrid": False, "autorange": "reversed"})
    return titled.update_layout(height=height * len(measures) + 150, showlegend=False, margin={"l": 220, "t": 140})


def ablation_curves_figure(result: AblationResult, outcome: str | None = None, copy: int | None = None) -> go.Figure:
    """One outcome over the number of components cut: the ranking beside its controls, with 95 % bands.

    Args:
        result: of an ablation study with several ``ks``.
        outcome: by default the first.
        copy: of the loop, by default the first.

    Raises:
        InputError: an outcome that was not measured.
        NothingFoundError: nothing was cut at more than one number of components.
    """
    import plotly.graph_objects as go

    measure = result.measures[result.measure_number(outcome, copy)]
    summary = result.summary()
    copies = summary["copy"].isna() if measure["copy"] is None else summary["copy"] == measure["copy"]
    part = summary[(summary["outcome"] == measure["outcome"]) & copies]
    cut = part[part["selection"] != _UNTOUCHED]
    if cut["k"].nunique() < 2:
        raise NothingFoundError("cuts of one size", "several numbers of components", "pass ks= to ablation_study")
    untouched = part[part["selection"] == _UNTOUCHED].iloc[0]
    figure = go.Figure()
    groups = cut.groupby(["circuit", "part", "op", "selection"], sort=False)
    for place, ((circuit, kind, op, selection), line) in enumerate(groups):
        label = selection if len(groups) == cut["selection"].nunique() else f"{circuit}, {kind}, {op}: {selection}"
        _add_curve(figure, pd.concat([untouched.to_frame().T, line.sort_values("k")]), selection, label, place)
    title = _TITLES.get(str(measure["outcome"]), str(measure["outcome"]))
    return styled(
        figure,
        title="What the model loses as more is cut",
        subtitle=f"{_name(result)}, {counted(int(part['texts'].max()), 'text')}",
        x="components cut",
        y=title,
    )


def _name(result: AblationResult) -> str:
    return str(result.provenance.model["name"])


def _measure(outcome: str, copy: int) -> str:
    title = plain(_TITLES.get(outcome, outcome))
    return title if copy < 0 else f"{title}, {'onset token' if copy == 0 else f'copy {copy}'}"


def _label(row: pd.Series) -> str:
    """What was cut, in words: circuit, part, operation, and the control it is."""
    what = row["circuit"] if row["part"] == "whole" else f"{row['circuit']}: {row['part']}"
    control = "" if row["selection"] in ("top", "single", "whole") else f", {row['selection'].replace('_', '-')}"
    draws = f" x {row['draws']}" if row["draws"] > 1 else ""
    return plain(f"{what} (k = {row['k']}, {row['op']}{control}{draws})")


def _add_points(figure: go.Figure, part: pd.DataFrame, number: int) -> None:
    import plotly.graph_objects as go

    untouched = part[part["selection"] == _UNTOUCHED]
    cut = part[part["selection"] != _UNTOUCHED]
    styles = [style_of(selection) for selection in cut["selection"]]
    labels = [_label(row) for _, row in cut.iterrows()]
    points = go.Scatter(
        x=cut["value"],
        y=labels,
        mode="markers",
        marker={"size": 9, "color": [s.colour for s in styles], "symbol": [s.symbol for s in styles]},
        error_x=_bars(cut),
        customdata=cut[["effect", "effect_low", "effect_high", "n"]],
        hovertemplate="%{y}<br>%{x:.3f}; change %{customdata[0]:.3f} (%{customdata[1]:.3f} to %{customdata[2]:.3f}), "
        "n = %{customdata[3]}<extra></extra>",
    )
    figure.add_trace(points, row=number, col=1)
    if len(untouched) and len(cut):
        value = float(untouched["value"].iloc[0])
        line = go.Scatter(
            x=[value] * 2,
            y=[labels[0], labels[-1]],
            mode="lines",
            line={"color": INK, "dash": "dot", "width": 1.5},
            hovertemplate=f"untouched: {value:.3f}<extra></extra>",
        )
        figure.add_trace(line, row=number, col=1)


def _bars(part: pd.DataFrame) -> dict[str, object]:
    above, below = part["high"] - part["value"], part["value"] - part["low"]
    return {"type": "data", "symmetric": False, "array": above, "arrayminus": below, "thickness": 1.2, "width": 3}


def _add_curve(figure: go.Figure, line: pd.DataFrame, selection: str, label: str, place: int) -> None:
    import plotly.graph_objects as go

    style = style_of(selection, place)
    ks: Sequence[int] = [0 if row["selection"] == _UNTOUCHED else int(row["k"]) for _, row in line.iterrows()]
    low, high = ([float(value) for value in line[name]] for name in ("low", "high"))
    if not any(map(math.isnan, [*low, *high])):
        band = go.Scatter(
            x=[*ks, *reversed(ks)],
            y=[*high, *reversed(low)],
            mode="lines",
            fill="toself",
            fillcolor=translucent(style.colour, 0.15),
            line={"width": 0},
            hoverinfo="skip",
            showlegend=False,
        )
        figure.add_trace(band)
    figure.add_trace(
        go.Scatter(
            x=ks,
            y=[float(value) for value in line["value"]],
            mode="lines+markers",
            name=plain(label.replace("_", "-")),
            line={"color": style.colour, "dash": style.dash, "width": style.width},
            marker={"symbol": style.symbol, "size": 7},
        )
    )
