"""Repetition neurons: which neurons rise when a loop begins, and what ablating and boosting them does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from mechrep.ablation.effects import ABLATION, SUPPORTED, UNITS, Effects, detection, judge
from mechrep.ablation.outcomes import LoopDecoding
from mechrep.ablation.study import Controls
from mechrep.ablation.sweeps import activation_sweep, deactivation_sweep, loss_sweep
from mechrep.ablation.texts import find_and_test, loop_share, share_found, shared_loops, shared_windows
from mechrep.cache.corpus_cache import CorpusCache
from mechrep.errors import NothingFoundError
from mechrep.generation.decode import Request, run_requests
from mechrep.generation.loops import loop_preset
from mechrep.guards import Some, Whole, guarded
from mechrep.interventions.ops import Neurons
from mechrep.measures.neurons import (
    RepetitionNeuronResult,
    RepetitionNeurons,
    plot_layer_distribution,
    plot_onset_profile,
    plot_sorted_delta,
)
from mechrep.models.model import Model
from mechrep.provenance import Provenance, provenance_of
from mechrep.results import Shown
from mechrep.run import LARGE_WEIGHTS, Run
from mechrep.sections import Section
from mechrep.stats import largest
from mechrep.text.corpus import Corpus
from mechrep.viewer.show import view

_SHARES = (0.005, 0.07, 0.02, 0.0025, 0.01, 0.04)  # of all neurons; the published share first
_EXAMPLES = 3
_EXAMPLE_TOKENS = 60
_LISTED = 10  # neurons on the page, at most
_NORMAL = 1.96  # standard errors on either side that hold 95 %
_COPIES = 3  # of the old loop: enough to say that a text still loops
# In models of many weights: tokens written after loop-free prompts at effort quick, and held-out windows.
_BOOSTED_TOKENS, _WINDOWS, _WINDOW = 48, 6, 64


@dataclass(frozen=True)
class RepetitionStudy(Shown):
    """What was found and tested.

    Attributes:
        model_name: how the model was named.
        preset: ``"mechrep"`` or ``"hiraoka2025"``.
        corpus: all texts, with ``split``.
        neurons: the ranking and its uncertainty.
        deactivation: :func:`~mechrep.ablation.sweeps.deactivation_sweep` on texts to test with.
        activation: the same of :func:`~mechrep.ablation.sweeps.activation_sweep`; ``None`` without loop-free texts.
        losses: loss on held-out text under ``"zero"`` and ``"add"``.
        loop_share: share of sampled prompts that loop, with its interval and their number.
        examples: looping texts with and without the top neurons.
        provenance: of the whole study.
        views: a loop and an ordinary text to look at, see :func:`mechrep.view`.
    """

    model_name: str
    preset: str
    corpus: Corpus
    neurons: RepetitionNeuronResult
    deactivation: Effects
    activation: Effects | None
    losses: Mapping[str, Effects]
    loop_share: tuple[float, tuple[float, float], int]
    examples: pd.DataFrame
    provenance: Provenance
    views: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def claimed_k(self) -> int:
        """The number of neurons that the claims are about: the published share, or the nearest that was tested."""
        ks = sorted({one.k for one in self.deactivation.conditions if one.selection == ABLATION})
        return min(ks, key=lambda k: abs(k - max(1, self.neurons.published_k)))

    def judged(self) -> pd.DataFrame:
        """The effects of all sizes; ``claim`` is the key of a wording in the report.

        A family is what answers one question, whatever the size: do loops end, do loop-free texts begin to loop, what
        does it cost.  Each is asked of texts of its own.
        """
        rows = [self.deactivation.select(measures=["still_repeating", "escaped"]).summary()]
        if self.activation is not None:
            rows.append(self.activation.summary())
        rows = [table.assign(claim=table["measure"]) for table in rows]
        rows += [effects.summary().assign(claim=f"loss_{op}") for op, effects in self.losses.items()]
        table = pd.concat(rows, ignore_index=True).drop(columns=["q", "family", "verdict"])
        table["asked"] = table["measure"].map(_ASKED)
        return judge(table, within=["asked"], family="one question at all sizes").drop(columns="asked")

    def claims(self) -> pd.DataFrame:
        """The verdicts at the published share of neurons."""
        judged = self.judged()
        return judged[judged["k"] == self.claimed_k].reset_index(drop=True)

    def section(self) -> Section:
        """Numbers, tables and figures of the report."""
        result, share, preset = self.neurons, self.loop_share, loop_preset(self.preset)
        ((layer, neuron),) = result.top(1)
        find, test = find_and_test(self.corpus)
        k, most = self.claimed_k, min(max(1, self.neurons.published_k), _LISTED)
        fields: dict[str, Any] = {
            "model": self.model_name, "preset": self.preset, "loop_share": share[0], "loop_low": share[1][0],
            "loop_high": share[1][1], "prompts": share[2], "found_on": result.n_texts, "tested_on": len(test),
            "families": len(set(test.frame["family"])) if "family" in test.frame else len(test), "searched": len(find),
            "sampled": preset.sampled, "written": self.provenance.config["written"], "listed": most,
            "boosted": self.provenance.config["boosted"], "zeroed": self.provenance.config["zeroed"],
            "most": max(one.k for one in self.deactivation.conditions),
            "neurons": result.n_neurons, "k": k, "share": k / result.n_neurons, "top": f"L{layer}N{neuron}",
            "before": float(result.normal_mean[layer, neuron]), "after": float(result.repetition_mean[layer, neuron]),
            "window": result.provenance.config["window"], "r": result.r, "site": result.provenance.config["site"],
        }  # fmt: skip
        figures = {
            "profile": plot_onset_profile(result, k=1),
            "sorted": plot_sorted_delta(result),
            "deactivation": self.deactivation.plot(["still_repeating", "escaped"]),
        }
        if sum(count > 0 for count in result.layer_counts(most)) > 1:
            figures["layers"] = plot_layer_distribution(result, k=None if result.published_k else most)
        if self.activation is not None:
            figures["activation"] = self.activation.plot()
        tables = {"effects": _shown(self.judged()), "neurons": _rising(result, most), "examples": self.examples}
        return Section("neurons", self.provenance, fields, self.claims(), tables, figures, views=self.views)


_ASKED = {
    "still_repeating": "do loops end", "escaped": "do loops end", "newly_repeating": "do loops begin", "loss": "cost",
}  # fmt: skip

_WHAT = {
    "still_repeating": "set to zero: texts that loop",
    "escaped": "set to zero: texts that leave their loop",
    "newly_repeating": "plus 1: loop-free texts that begin to loop",
}


def _shown(judged: pd.DataFrame) -> pd.DataFrame:
    """Shares of texts for every number of neurons, in %; of the loss one number was tested, and a claim has it."""
    shares = judged[judged["claim"].isin(_WHAT)]
    columns = ["baseline", "value", "effect", "low", "high", "control_low", "control_high"]
    table = pd.DataFrame({"measure": shares["claim"].map(_WHAT), "neurons": shares["k"]})
    return table.join((100 * shares[columns]).round(1)).join(shares[["q", "verdict"]]).reset_index(drop=True)


def _rising(result: RepetitionNeuronResult, k: int) -> pd.DataFrame:
    """The first neurons, as the page shows them."""
    frame = result.to_frame().head(k)
    names = [f"L{layer}N{neuron}" for layer, neuron in zip(frame["layer"], frame["neuron"], strict=True)]
    columns = {
        "normal_mean": "before", "repetition_mean": "after", "delta": "rise", "standard_error": "standard_error",
    }  # fmt: skip
    return frame[list(columns)].rename(columns=columns).round(3).assign(neuron=names)[["neuron", *columns.values()]]


def rising_neurons(own: RepetitionNeuronResult, nulls: Sequence[RepetitionNeuronResult]) -> pd.DataFrame:
    """Which neurons rise when loops begin, beside null models that read the same texts?

    The statistic is ``t``, the mean rise over its standard error (the text is the unit): rises themselves cannot be
    compared with a null model's, whose neurons are as loud as chance makes them.  A draw is the largest ``t`` of all
    neurons of one null model, so having looked at all neurons is part of the p-value (Westfall & Young), and what
    position and repetition do to any neuron is in the draws.  A rise by less than 1 % of what the neuron was before
    does not count, however steady it is.

    Args:
        own: of the model.
        nulls: of models that have learned nothing (:func:`mechrep.ablation.texts.null_models`), on the same texts.

    Returns:
        One row per neuron above the least of the draws, highest ``t`` first, the best one always: ``layer``,
        ``neuron``, ``delta``, ``t``, and the columns of :func:`mechrep.ablation.effects.judge`; see
        :func:`neurons_that_rise`.

    Source: tests by the largest statistic: Westfall & Young 1993 (*Resampling-Based Multiple Testing*).

    Limits: of texts with one onset, a neuron that follows the position rises in all.  A rise is a correlation.

    Example:
        >>> import mechrep
        >>> from mechrep.models.nulls import shuffled
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> texts = [[0, *range(9 + i, 29 + i), *[40 + i, 41, 42, 43] * 5] for i in range(8)]
        >>> corpus = mechrep.Corpus.from_tokens(texts, model=model).with_cycles()
        >>> own, null = (mechrep.CorpusCache(one, corpus).run(RepetitionNeurons()) for one in (model, shuffled(model)))
        >>> table = rising_neurons(own, [null] * 19)  # one and the same: real nulls differ
        >>> bool((table["t"].iloc[0] > null.t.max()) == (len(neurons_that_rise(table)) > 0))
        True
    """
    draws = [largest(null.t) for null in nulls]
    ranking, least = own.ranking("t"), min(draws, default=float("inf"))
    rows = []
    for place, (layer, neuron) in enumerate(ranking):
        t = float(own.t[layer, neuron])
        if place and not t > least:
            break
        row = detection(f"L{layer}N{neuron}", "rise", t, draws, interval=(t - _NORMAL, t + _NORMAL), n=own.n_texts)
        delta, before = float(own.delta[layer, neuron]), float(own.normal_mean[layer, neuron])
        if delta < UNITS["ratio"].floor * abs(before):
            row["floor"] = float("inf")
        rows.append({"layer": layer, "neuron": neuron, "delta": delta, "t": t} | row)
    return judge(rows, within=["name"], family="all neurons")


def neurons_that_rise(rising: pd.DataFrame) -> list[tuple[int, int]]:
    """Neurons of :func:`rising_neurons` that stand out from every null model, highest first.

    Example:
        >>> rows = pd.DataFrame({"layer": [1, 0], "neuron": [2, 7]})
        >>> neurons_that_rise(rows.assign(verdict=["supported", "not supported"]))
        [(1, 2)]
    """
    mine = rising[rising["verdict"] == SUPPORTED]
    return list(zip(mine["layer"].tolist(), mine["neuron"].tolist(), strict=True))


def default_ks(n_neurons: int, number: int = 6) -> list[int]:
    """Numbers of neurons to try: the published share (0.5 %) first, then up to 7 % of the model.

    Example:
        >>> default_ks(1408), default_ks(1408, 2)
        ([3, 7, 14, 28, 56, 98], [7, 98])
    """
    return sorted({max(1, int(share * n_neurons)) for share in _SHARES[:number]})


@guarded
def run_repetition_study(
    model: Model,
    *,
    preset: str = "mechrep",
    ks: Some[Whole] | None = None,
    corpus: Corpus | None = None,
    held_out_text: str | None = None,
    controls: Controls | None = None,
    run: Run | None = None,
) -> RepetitionStudy:
    """Find repetition neurons and test what they do.

    Args:
        model: the model.
        preset: ``"hiraoka2025"`` searches and tests on the same texts with the published windows and detector;
            ``"mechrep"`` searches on half of the looping texts and tests on other families of loops.
        ks: numbers of neurons; see :func:`default_ks`.
        corpus: looping and loop-free texts with ``split``; by default the model writes them
            (:func:`mechrep.ablation.texts.shared_loops`).
        held_out_text: for the loss; English by default (public-domain books that mechrep-tiny was not trained on).
        controls: by default neurons of the same layer with nearly the same activation in normal text.
        run: options.

    Raises:
        NothingFoundError: the model wrote no looping text.
        InputError: fewer than two families of loops, or ``ks`` that the model cannot serve.

    Source: Hiraoka & Inui 2025 (arXiv 2410.13497); controls, families, intervals and verdicts are mechrep's own.

    Limits: a rise is a correlation; greedy decoding only; zero and plus 1 may lie far from what a neuron does.

    Example:
        >>> import mechrep
        >>> from mechrep.run import Run
        >>> study = run_repetition_study(mechrep.load_model("mechrep-tiny"), ks=[7], run=Run(effort="quick"))
        >>> sorted(study.losses), sorted(study.views)
        (['add', 'zero'], ['loop', 'ordinary'])
    """
    options = run or Run()
    texts = shared_loops(model, options, preset) if corpus is None else corpus
    find, test = find_and_test(texts)
    cache = CorpusCache(model, find, run=options)
    neurons = cache.run(RepetitionNeurons(preset))
    chosen = (
        default_ks(model.anatomy.n_neurons, options.sizes_on(model).curve)
        if ks is None
        else sorted({int(k) for k in ks} - {0})
    )
    wanted = controls or Controls(("activation_matched",), strict=False)
    common: dict[str, Any] = {"neurons": neurons, "controls": wanted, "run": options}
    decoding = LoopDecoding(preset, copies=None if preset == "hiraoka2025" else _COPIES)
    decoding = decoding.within(model.anatomy.n_ctx, texts)
    sweep = deactivation_sweep(model, test, ks=chosen, decoding=decoding, **common)
    try:
        boosted = activation_sweep(model, texts, ks=chosen, decoding=_boosting(decoding, model, options), **common)
    except NothingFoundError:  # an answer too: every text of this model loops
        boosted = None
    k = min(chosen, key=lambda k: abs(k - max(1, neurons.published_k)))
    losses = _losses(model, k, held_out_text, **common)
    config = {"study": "repetition neurons", "preset": preset, "ks": chosen, "effort": options.effort,
              "zeroed": "until the old loop would have three copies" if decoding.copies else "at most 160 new tokens",
              "boosted": _boosting(decoding, model, options).max_new_tokens,
              "written": loop_preset(preset).within(model.anatomy.n_ctx).greedy}  # fmt: skip
    sweep, boosted = _named(sweep, still_repeating=-1), boosted and _named(boosted, newly_repeating=1)
    examples = _examples(model, test, neurons, max(chosen))
    share = share_found(texts) or loop_share(model, preset, options, 2 * options.sizes_on(model).loops)
    return RepetitionStudy(
        model.name, preset, texts, neurons, sweep, boosted, losses, share, examples,
        provenance_of(model, texts, config),
        _views(model, test, shared_windows(model, options, held_out_text), neurons),
    )  # fmt: skip


def _views(
    model: Model, loops: Corpus, windows: Corpus, neurons: RepetitionNeuronResult
) -> dict[str, Mapping[str, Any]]:
    """A loop coloured by the neuron that rises most, and an ordinary text coloured by surprisal."""
    ((layer, neuron),) = neurons.top(1)
    top = f"L{layer}N{neuron}"
    return {
        "loop": view(model, loops, [top, "surprisal"], row=0).payload(),
        "ordinary": view(model, windows, ["surprisal", top], row=0).payload(),
    }


def _large(model: Model) -> bool:
    return model.n_weights > LARGE_WEIGHTS


def _boosting(decoding: LoopDecoding, model: Model, run: Run) -> LoopDecoding:
    """How loop-free texts are continued: every token counts where a model has many weights."""
    if not _large(model) or run.effort != "quick":
        return decoding
    return replace(decoding, max_new_tokens=min(_BOOSTED_TOKENS, decoding.max_new_tokens))


def _losses(
    model: Model, k: int, text: str | None, *, controls: Controls, run: Run, **common: Any
) -> dict[str, Effects]:
    """Loss on held-out text; in models of many weights on few, short windows and under as many draws as the loops."""
    windows = shared_windows(model, run, text)
    if _large(model):
        windows = shared_windows(model, run, text, _WINDOW)
        windows = windows.select(range(min(_WINDOWS, len(windows))))
        controls = replace(controls, draws=controls.draws or run.sizes_on(model).regenerated_draws)
    ops = ("zero", "add")
    return {op: loss_sweep(model, windows, ks=[k], op=op, controls=controls, run=run, **common) for op in ops}


def _named(effects: Effects, **directions: int) -> Effects:
    """The same with the direction that the hypothesis named before looking."""
    measures = [replace(one, direction=directions.get(one.name, one.direction)) for one in effects.measures]
    return replace(effects, measures=measures)


def _examples(model: Model, texts: Corpus, neurons: RepetitionNeuronResult, k: int) -> pd.DataFrame:
    """A few looping texts: the prompt, what came before the loop, the loop, and what is written without the neurons."""
    onsets, starts = texts.frame["onset"].astype(int).tolist(), texts.frame["start"].astype(int).tolist()
    prompts, chosen = texts.frame["prompt_length"].astype(int).tolist(), range(min(_EXAMPLES, len(texts)))
    ablated = Neurons(neurons.top(k), "zero", when="last")
    begins = [tuple(texts.row(i)[: onsets[i]]) for i in chosen]
    most = [min(_EXAMPLE_TOKENS, model.anatomy.n_ctx - len(begin)) for begin in begins]
    requests = [Request(begins[i], most[i], ablated, onsets[i] - 1, i) for i in chosen]
    answers = run_requests(model, requests, progress=False)

    def piece(ids: Sequence[int], begin: int, end: int | None = None) -> str:
        """Text of ``ids[begin:end]`` as it reads in its place: a piece alone may lose its leading blank."""
        return model.decode(ids[:end])[len(model.decode(ids[:begin])) :]

    rows = []
    for i, answer in zip(chosen, answers, strict=True):
        ids, start = texts.row(i), max(prompts[i], starts[i])
        rows.append(
            {
                "prompt": model.decode(ids[: prompts[i]]),
                "before the loop": piece(ids, prompts[i], start),
                "first repetition": piece(ids, start, onsets[i]),
                "the loop": piece(ids, onsets[i], onsets[i] + _EXAMPLE_TOKENS),
                f"regenerated without {k} neurons": piece(answer.ids, onsets[i]),
            }
        )
    return pd.DataFrame(rows)
