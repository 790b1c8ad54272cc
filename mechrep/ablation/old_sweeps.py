"""Deactivation and activation sweeps: cut neurons from the onset of loops, boost them on loop-free texts.

Every text under every condition is one row of one batch; nothing is run twice and a text whose question is answered
stops.

``SweepResult``: what became of every text under every condition, and the table made from it.

Figures of sweeps: what changing k neurons does to repetition, and to the loss on other text.

What a sweep says in one sentence, as far as its controls allow.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from mechrep.ablation.old_controls import CONTROLS, Condition, Unit, as_seeds, sweep_conditions
from mechrep.ablation.old_loss import LossResult, perplexity_summary
from mechrep.ablation.old_outcomes import OldLoop, outcome_of
from mechrep.errors import InputError, NothingFoundError
from mechrep.figures import counted, draw_selections, number_axis, style_of, styled
from mechrep.generation.decode import Continuation, Decoding, Request, run_requests
from mechrep.interventions.ops import Op, as_op
from mechrep.measures.neurons import RepetitionNeuronResult, check_onsets
from mechrep.models.model import Model
from mechrep.provenance import provenance_of
from mechrep.results import Result
from mechrep.stats import percentile_interval, proportion_interval
from mechrep.store import Journal
from mechrep.text.corpus import Corpus

if TYPE_CHECKING:
    import plotly.graph_objects as go

CELL = ["selection", "k", "seed"]


@dataclass(frozen=True, eq=False)
class SweepResult(Result):
    """Outcomes of a sweep; reads like its table: ``sweep["share"]``, ``sweep.query("k == 50")``, ``len(sweep)``.

    Attributes:
        kind: ``"deactivation"`` or ``"activation"``.
        preset: detector preset that says whether a text repeats.
        outcomes: one record per text and condition: ``selection, k, seed, text, repeating, escaped_at, relooped,
            new_period, new_tokens, stop_reason``.
    """

    kind: str
    preset: str
    outcomes: list[dict[str, Any]]

    @property
    def frame(self) -> pd.DataFrame:
        """Same as :meth:`to_frame`."""
        return self.to_frame()

    def outcome_frame(self) -> pd.DataFrame:
        """One row per text and condition."""
        return pd.DataFrame(self.outcomes)

    def to_frame(self) -> pd.DataFrame:
        """One row per condition.

        Columns: ``selection``, ``k``, ``seed``, ``texts``; the count ``still_repeating`` (``newly_repeating`` after
        activation), its ``share`` with a 95 % Wilson interval ``low``/``high``; after deactivation also ``escaped``
        (left the old loop at some point), ``median_tokens_to_escape`` among these, ``relooped`` (escaped, yet
        repeating) and ``median_new_period``.
        """
        rows = []
        for (selection, k, seed), cell in self.outcome_frame().groupby(CELL, sort=False):
            count, texts = int(cell["repeating"].sum()), len(cell)
            low, high = proportion_interval(count, texts)
            row: dict[str, Any] = {"selection": selection, "k": k, "seed": seed, "texts": texts, self.count_name: count}
            row |= {"share": count / texts, "low": low, "high": high}
            if self.kind == "deactivation":
                escaped = cell["escaped_at"].notna()
                row |= {"escaped": int(escaped.sum()), "median_tokens_to_escape": cell["escaped_at"].median()}
            row |= {"relooped": int(cell["relooped"].sum()), "median_new_period": cell["new_period"].median()}
            rows.append(row)
        return pd.DataFrame(rows)

    @property
    def count_name(self) -> str:
        """Column with the count of repeating texts."""
        return "still_repeating" if self.kind == "deactivation" else "newly_repeating"

    def summary(self) -> pd.DataFrame:
        """One row per selection and k: mean share over seeds, its interval, number of draws and texts.

        For one set (``none``, ``top``) the interval is Wilson's over texts; for controls the central 95 % over draws
        (their minimum and maximum when there are few).
        """
        rows = []
        for (selection, k), cell in self.to_frame().groupby(["selection", "k"], sort=False):
            low, high = (cell["low"].iloc[0], cell["high"].iloc[0])
            if len(cell) > 1:
                low, high = percentile_interval(cell["share"].tolist())
            rows.append(
                {
                    "selection": selection,
                    "k": k,
                    "share": cell["share"].mean(),
                    "low": low,
                    "high": high,
                    "draws": len(cell),
                    "texts": int(cell["texts"].iloc[0]),
                }
            )
        return pd.DataFrame(rows)

    def __getitem__(self, key: Any) -> Any:
        return self.to_frame()[key]

    def __len__(self) -> int:
        return len(self.to_frame())

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name in self.__dataclass_fields__:
            raise AttributeError(name)
        return getattr(self.to_frame(), name)

    def plot(self) -> go.Figure:
        """Share of repeating texts against the number of neurons, with controls."""
        return plot_sweep(self)


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
        controls: see :mod:`mechrep.ablation.old_controls`.
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
        controls: see :mod:`mechrep.ablation.old_controls`.
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


_VERBS = {"zero": "cut", "deactivation": "cut", "activation": "boosted"}


def plot_sweep(sweep: SweepResult) -> go.Figure:
    """Share of repeating texts against the number of neurons that were cut or boosted.

    The top neurons have a 95 % Wilson interval over texts, the controls the central 95 % of their draws (with few
    draws that is about their smallest and largest).  All lines begin at ``k = 0``, the untouched model.

    Args:
        sweep: of :func:`mechrep.studies.deactivation_sweep` or :func:`mechrep.studies.activation_sweep`.

    Source: Hiraoka & Inui 2025 (arXiv 2410.13497), figures on deactivation and activation.

    Example:
        >>> from mechrep.provenance import Provenance
        >>> outcomes = [
        ...     {"selection": s, "k": k, "seed": 0, "text": "a", "repeating": s != "top",
        ...      "escaped_at": 3.0 if s == "top" else None, "relooped": False, "new_period": None}
        ...     for s, k in [("none", 0), ("top", 5), ("random", 5)]
        ... ]
        >>> sweep = SweepResult(Provenance({"name": "net"}, {}, {}), "deactivation", "mechrep", outcomes)
        >>> {trace.name: trace.y.tolist() for trace in plot_sweep(sweep).data if trace.mode == "lines+markers"}
        {'random neurons': [1.0, 1.0], 'top neurons': [1.0, 0.0]}
    """
    import plotly.graph_objects as go

    table, figure = sweep.summary(), go.Figure()
    table = table.assign(over=np.where(table["draws"] > 1, "draws", "texts"))
    hover = (
        "%{fullData.name}, k = %{customdata[0]}<br>%{y:.1%} of texts repeat"
        "<br>95 %: %{customdata[1]:.1%} to %{customdata[2]:.1%} over %{customdata[3]}<extra></extra>"
    )
    draw_selections(figure, table, "share", hover)
    cut = sweep.kind == "deactivation"
    texts = counted(int(table["texts"].max()), "looping text" if cut else "loop-free text")
    styled(
        figure,
        title="Texts that still repeat when neurons are cut"
        if cut
        else "Texts that begin to repeat when neurons are boosted",
        subtitle=f"{sweep.provenance.model['name']}, {texts}",
        x=f"neurons {_VERBS[sweep.kind]}, k (logarithmic, 0 apart)",
        y="share of texts that repeat",
    )
    number_axis(figure, table["k"].tolist())
    return figure.update_yaxes(tickformat=".0%", range=[-0.03, 1.05], tickvals=[0, 0.25, 0.5, 0.75, 1])


NO_BREAK = "\u00a0"
Verdict = Literal["beyond controls", "beyond controls, few texts", "not beyond controls", "no controls"]


@dataclass(frozen=True)
class Finding:
    """A sentence and the verdict that it rests on.

    Attributes:
        verdict: ``"beyond controls"`` when the 95 % interval of the top neurons over texts lies beyond the interval of
            every control; ``"beyond controls, few texts"`` when only the share itself does; ``"not beyond controls"``;
            or ``"no controls"``.
        sentence: plain text.
    """

    verdict: Verdict
    sentence: str


def percent(share: float) -> str:
    """A share in whole percent, or with one decimal where whole ones would hide it.

    Example:
        >>> percent(0.25).replace("\\u00a0", " "), percent(0.004).replace("\\u00a0", " ")
        ('25 %', '0.4 %')
    """
    number = 100 * share
    whole = number == 0 or 1 <= number <= 99 or number == 100
    return f"{number:.0f}{NO_BREAK}%" if whole else f"{number:.1f}{NO_BREAK}%"


def percent_range(low: float, high: float) -> str:
    """Two shares as a range, or one where they look the same.

    Example:
        >>> percent_range(0.25, 0.5).replace("\\u00a0", " "), percent_range(1.0, 1.0).replace("\\u00a0", " ")
        ('25–50 %', '100 %')
    """
    first, second = percent(low), percent(high)
    return first if first == second else f"{first.split(NO_BREAK)[0]}–{second}"


def deactivation_finding(sweep: SweepResult, model_name: str) -> Finding:
    """What cutting the largest number of top neurons did, beside what the controls did.

    Example:
        >>> from mechrep.provenance import Provenance
        >>> outcomes = [
        ...     {"selection": s, "k": k, "seed": seed, "text": str(text), "repeating": s != "top",
        ...      "escaped_at": None, "relooped": False, "new_period": None}
        ...     for s, k, seed in [("none", 0, 0), ("top", 5, 0), ("random", 5, 0), ("random", 5, 1)]
        ...     for text in range(20)
        ... ]
        >>> sweep = SweepResult(Provenance({"name": "net"}, {}, {}), "deactivation", "mechrep", outcomes)
        >>> deactivation_finding(sweep, "net").verdict
        'beyond controls'
    """
    facts = _at_largest_k(sweep)
    if facts is None:
        return Finding("no controls", f"No neurons of {model_name} were cut, so nothing is known about what they do.")
    k, top, controls = facts
    cut = f"cutting the {_neurons(k)} that rise most at the onset"
    left = f"leaves {percent(top['share'])} of {counted(int(top['texts']), 'looping text')} repeating"
    if controls.empty:
        return Finding(
            "no controls", f"In {model_name}, {cut} {left}; without controls this says nothing about these neurons."
        )
    low, high = controls["low"].min(), controls["high"].max()
    others = f"as many control neurons leave {percent_range(low, high)}"
    if top["share"] >= low:
        same = controls[controls["low"] <= top["share"]]
        names = (
            _listed([style_of(name).label for name in same["selection"]])
            if len(same) < len(controls)
            else "control neurons"
        )
        span = percent_range(same["low"].min(), same["high"].max())
        return Finding(
            "not beyond controls", f"In {model_name}, {cut} {left}: no fewer than cutting as many {names} ({span})."
        )
    if top["high"] >= low:
        return Finding(
            "beyond controls, few texts",
            f"In {model_name}, {cut} {left}; {others}, but the interval over texts "
            f"({percent_range(top['low'], top['high'])}) reaches the controls': more texts are needed.",
        )
    return Finding("beyond controls", f"In {model_name}, {cut} {left}; {others}.")


def activation_finding(sweep: SweepResult | None) -> Finding:
    """What boosting the largest number of top neurons did on loop-free texts, beside what the controls did."""
    facts = None if sweep is None else _at_largest_k(sweep)
    if sweep is None or facts is None:
        return Finding(
            "no controls",
            "Boosting was not tested: the model wrote no loop-free text that is long enough to be continued.",
        )
    k, top, controls = facts
    base = sweep.summary().query("selection == 'none'")["share"].iloc[0]
    sentence = f"Boosting the same {_neurons(k)} starts a loop in {percent(top['share'])} of "
    sentence += f"{counted(int(top['texts']), 'loop-free text')} ({percent(base)} untouched)"
    if controls.empty:
        return Finding("no controls", f"{sentence}; no controls were run.")
    low, high = controls["low"].min(), controls["high"].max()
    sentence += f"; boosting as many control neurons does so in {percent_range(low, high)}"
    if top["share"] <= high:
        return Finding("not beyond controls", f"{sentence}: no more than controls.")
    if top["low"] <= high:
        return Finding("beyond controls, few texts", f"{sentence}; over texts the intervals overlap.")
    return Finding("beyond controls", f"{sentence}.")


def escape_sentence(sweep: SweepResult) -> str:
    """How many texts left the loop they were in, whether or not they fell into another one.

    Said for the fewest and the most neurons cut, wherever more is seen: choosing the k would choose the finding.

    Example:
        >>> from mechrep.provenance import Provenance
        >>> outcomes = [
        ...     {"selection": s, "k": k, "seed": 0, "text": str(text), "repeating": True,
        ...      "escaped_at": 3 if s == "top" and text < 7 else None, "relooped": s == "top", "new_period": 4}
        ...     for s, k in [("none", 0), ("top", 5), ("random", 5)]
        ...     for text in range(20)
        ... ]
        >>> escape_sentence(SweepResult(Provenance({"name": "net"}, {}, {}), "deactivation", "mechrep", outcomes))
        'Leaving a loop is not the end of looping: with 5 neurons cut, 7 of 20 texts leave theirs (controls 0 to 0).'
    """
    table = sweep.to_frame()
    top = table[table["selection"] == "top"]
    if top.empty:
        return ""
    parts = []
    for k in sorted({int(top["k"].min()), int(top["k"].max())}):
        cell = top[top["k"] == k].iloc[0]
        controls = table[(table["k"] == k) & ~table["selection"].isin(["none", "top"])]["escaped"]
        beside = f" (controls {controls.min()} to {controls.max()})" if len(controls) else ""
        leave = "texts leave theirs" if not parts else "do"
        parts.append(f"with {_neurons(k)} cut, {cell['escaped']} of {cell['texts']} {leave}{beside}")
    return f"Leaving a loop is not the end of looping: {'; '.join(parts)}."


def cost_sentence(result: LossResult) -> str:
    """What the same change does to perplexity on held-out text."""
    table = perplexity_summary(result)
    k = int(table["k"].max())
    base, last = float(table["perplexity"].iloc[0]), table[table["k"] == k]
    change = "the cut" if result.op == "zero" else "the boost"
    top, controls = last[last["selection"] == "top"], last[~last["selection"].isin(["top", "none"])]
    if top.empty:
        return f"Perplexity on held-out text is {base:.1f}."
    after = float(top["perplexity"].iloc[0])
    sentence = f"On held-out text {change} of {_neurons(k)} moves perplexity from {base:.1f} to {after:.1f}"
    if controls.empty:
        return f"{sentence}."
    return f"{sentence} (controls: {controls['perplexity'].min():.1f} to {controls['perplexity'].max():.1f})."


def _at_largest_k(sweep: SweepResult) -> tuple[int, pd.Series, pd.DataFrame] | None:
    """The largest k, the row of the top neurons and the rows of the controls there.

    An interval of few draws ends inside their range; here it reaches to the farthest draw, in favour of the controls.
    """
    table = sweep.summary()
    top = table[table["selection"] == "top"]
    if top.empty:
        return None
    row = top.loc[top["k"].idxmax()]
    here = table[table["k"] == row["k"]]
    controls = here[~here["selection"].isin(["top", "none"])]
    draws = sweep.to_frame().query("k == @row.k").groupby("selection")["share"]
    low, high = (controls["selection"].map(ends) for ends in (draws.min(), draws.max()))
    controls = controls.assign(low=controls["low"].clip(upper=low), high=controls["high"].clip(lower=high))
    return int(row["k"]), row, controls


def _neurons(k: int) -> str:
    return counted(k, "neuron")


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
