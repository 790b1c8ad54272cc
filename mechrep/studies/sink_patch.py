"""The sink patch: hold the sink neurons at the level of the first token after BOS; what that repairs, what it costs.

Each condition holds as many neurons: the patched ones, then draws of others.  Under every condition the same ordinary
texts and the same repeated tokens are read, and the same benchmark questions are asked.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from mechrep.ablation.benchmark_tasks import EMBEDDED_TASKS, as_tasks
from mechrep.ablation.benchmarks import MARGIN, Questions, benchmark_cells, benchmark_study, paired_answers
from mechrep.ablation.effects import Effects, Measure, judge
from mechrep.ablation.run import measure_effects
from mechrep.ablation.sink_outcomes import sink_outcomes
from mechrep.errors import InputError, NothingFoundError
from mechrep.guards import Count, Several, guarded
from mechrep.interventions.ops import SinkPatch
from mechrep.measures.sink_norms import CLEARLY_ABOVE, MOVED
from mechrep.models.model import Model
from mechrep.provenance import Provenance, provenance_of
from mechrep.results import Shown
from mechrep.run import Run
from mechrep.sections import Section
from mechrep.studies.find_sink import SinkResult, find_sink, ordinary_texts
from mechrep.studies.sink_ablation import changed, repeated_stimulus
from mechrep.text.corpus import Corpus

NOT_INSTALLED = "lm-evaluation-harness is not installed: pip install mechrep[evals]"


@guarded
def run_patch_study(
    model: Model,
    patch: SinkPatch | None = None,
    *,
    texts: Corpus | Sequence[str] | None = None,
    tokens: Sequence[int | str] | None = None,
    repeats: Several | None = None,
    controls: Sequence[str] = ("layer_matched",),
    sink: SinkResult | None = None,
    run: Run | None = None,
) -> Effects:
    """Measures a model before and after a sink patch, and under the same patch on other neurons.

    Measures by text: ``first_norm``, ``typical_norm``, ``attention`` of the head that attends most to the first
    position, ``loss``; by repeated token: ``repeat_norm``, ``continued``, ``p_next``
    (:mod:`mechrep.ablation.sink_outcomes`), and ``drifted``: whether the norm at the last repetition has moved at least
    half-way, on the log scale, from the typical norm to that of the first position; NaN where these two do not differ
    clearly in the baseline.

    Args:
        model: the model.
        patch: by default the layer and neurons that :func:`~mechrep.studies.find_sink.find_sink` finds.
        texts: ordinary texts: a corpus, or texts.  By default up to 100 windows of 64 tokens of held-out English, with
            BOS by the model's habit.
        tokens: ids, or words of one token, to repeat; by default drawn at random, of every kind alike.
        repeats: how often; by default what the effort says, or what the context holds.
        controls: ``"layer_matched"``, ``"random"``.
        sink: of ``find_sink``, where it is known already.
        run: options; the effort says how many draws.

    Raises:
        NothingFoundError: no patch is given and the model has no norm sink.
        InputError: a patch that begins later than at the first token after BOS or does not fit the model; a corpus of
            another model, texts of one token, no tokens to repeat, fewer than two repeats; a control twice or unknown,
            or more neurons than a control can match.

    Source: the patch and the three questions (norms, repetition, benchmarks) are Yona et al. 2025 (arXiv 2503.08908);
    measures, controls and verdicts are mechrep's own.  Their measure of repetition is not known to us.

    Limits: "continued" reads the most probable next token after true repetitions.  That is what greedy decoding does as
    long as it has gone on repeating; it says nothing about what follows the first other token.  The neurons are found
    on the same default texts that the loss is measured on.

    Example:
        >>> import mechrep
        >>> from mechrep.run import Run
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> texts = ["The sea was calm that day."]
        >>> patch = SinkPatch(0, [3])
        >>> effects = run_patch_study(model, patch, texts=texts, tokens=[300, 301], repeats=20, controls=())
        >>> effects.wide()["selection"].tolist(), effects.measures[-1].name
        (['baseline', 'ablation'], 'drifted')
    """
    options, corpus = run or Run(), ordinary_texts(model, texts)
    if patch is None:
        sink = find_sink(model, texts=corpus, run=options) if sink is None else sink
        patch = _patch_of(model, sink)
    patch.check(model.anatomy.neurons)
    if patch.when != "all":
        raise InputError(f"when={patch.when!r}", "'all'", "study the patch as it is: from the first token after BOS on")
    stimulus = repeated_stimulus(model, corpus, tokens, repeats, options)
    head = _best_head(model, corpus) if sink is None else sink.best_head
    cells = benchmark_cells(
        patch, model.anatomy, controls=controls, draws=options.sizes_on(model).draws, seed=options.seed
    )
    outcomes = sink_outcomes(model, corpus, stimulus, patch.layer, head, options)
    config = {"study": "sink patch", "patch": patch.to_dict(), "head": list(head)}
    effects = with_drift(measure_effects(model, cells, outcomes, config=config, run=options))
    # BOS stays a sink under the patch, so attention to it may as well rise: unlike an ablation, no direction is named.
    sides = [replace(one, direction=0) if one.name == "attention" else one for one in effects.measures]
    return replace(effects, measures=sides)


def _patch_of(model: Model, sink: SinkResult) -> SinkPatch:
    if sink.patch is None:
        found = "in which no norm sink was found" if sink.main is None else "whose norm sink no few neurons carry"
        raise NothingFoundError(
            f"{model.name}, {found}",
            "a norm sink, whose neurons could be patched",
            "there is nothing to patch here; to see what holding other neurons does, pass patch=SinkPatch(...)",
        )
    return SinkPatch(*sink.patch)


def _best_head(model: Model, corpus: Corpus) -> tuple[int, int]:
    from mechrep.cache.corpus_cache import CorpusCache
    from mechrep.measures.attention_sinks import AttentionSinks

    heads = CorpusCache(model, corpus, progress=False).run(AttentionSinks())
    return heads.ranking()[0]


def with_drift(effects: Effects) -> Effects:
    """The same with the measure ``drifted``, made from the norms."""
    first, typical = (effects.of(name)[0].mean() for name in ("first_norm", "typical_norm"))
    place = effects.number("repeat_norm")
    values = torch.full_like(effects.values[place], torch.nan)
    if first >= CLEARLY_ABOVE * typical:
        norms, ends = effects.values[place].log(), torch.tensor([typical, first], dtype=torch.float64).log()
        moved = (norms - ends[0]) / (ends[1] - ends[0])
        values = torch.where(norms.isnan(), torch.nan, (moved >= MOVED).double())
    return replace(
        effects,
        measures=[*effects.measures, Measure("drifted", "share", over="token", trials=1, direction=-1)],
        units=[*effects.units, effects.units[place]],
        clusters=[*effects.clusters, effects.clusters[place]],
        values=torch.cat([effects.values, values[None]]),
    )


@dataclass(frozen=True)
class RepairStudy(Shown):
    """What a patch on the sink repairs, and what it costs.

    Attributes:
        model_name: how the model was named.
        sink: that is patched.
        patch: of :func:`run_patch_study`.
        benchmarks: of :func:`~mechrep.ablation.benchmarks.benchmark_study`; ``None`` where they were not asked.
        left_out: why not.
        provenance: of the whole study.
    """

    model_name: str
    sink: SinkResult
    patch: Effects
    benchmarks: Effects | None
    left_out: str
    provenance: Provenance

    @property
    def drifts(self) -> bool:
        """Whether any repeated token drifts without the patch; otherwise there is nothing to repair."""
        return bool((self.patch.of("drifted")[0] > 0).any())

    def claims(self) -> pd.DataFrame:
        """The verdicts, in one family: what the patch repairs, where anything drifts, and what it costs.

        The first position is not asked about: by definition the patch leaves it as it is.  Nor is anything that neither
        the patch nor a draw of its controls has changed: nothing was tested there.
        """
        keys = [*(("drifted", "continued") if self.drifts else ()), "attention", "loss"]
        tables = [self.patch.select(measures=keys).summary()]
        tables[0]["claim"] = tables[0]["measure"]
        if self.benchmarks is not None:
            margins = [m.name for m in self.benchmarks.measures if m.name.endswith(MARGIN)]
            tables.append(self.benchmarks.select(measures=margins).summary().assign(claim="benchmark"))
        table = pd.concat(tables, ignore_index=True).drop(columns=["q", "family", "verdict"])
        return judge(changed(table), family="all claims of this section")

    def section(self) -> Section:
        """Numbers, tables and figures of the report."""
        wide, names = self.patch.wide(), [m.name for m in self.patch.measures]
        layer, head = self.patch.provenance.config["head"]
        means = self.patch.to_frame().query("selection in ['baseline', 'ablation']").set_index(["measure", "selection"])
        fields: dict[str, Any] = {
            "model": self.model_name, "layer": self.sink.layer,
            "neurons": ", ".join(f"L{layer}N{neuron}" for layer, neuron in self.sink.neurons),
            "texts": len(self.patch.units[0]), "tokens": len(self.patch.units[names.index("repeat_norm")]),
            "draws": int((wide["selection"] == "layer_matched").sum()),
            "left_out": self.left_out or "none", "head": f"L{layer}H{head}",
            "loss_change": means.loc[("loss", "ablation"), "effect"],
            **{f"{name}_before": means.loc[(name, "baseline"), "value"] for name in names},
            **{f"{name}_after": means.loc[(name, "ablation"), "value"] for name in names},
        }  # fmt: skip
        if not self.drifts:
            return Section("patch", self.provenance, fields, self.claims(), variant="nothing_drifts")
        shown = [name for name in names if name != "first_norm"]
        tables, figures = {"patch": _shown(self.patch, shown)}, {"patch": self.patch.plot(shown)}
        if self.benchmarks is not None:
            asked = [m.name for m in self.benchmarks.measures if not m.name.endswith("truncated")]
            tables["benchmarks"] = _shown(self.benchmarks, asked)
            answers = paired_answers(self.benchmarks)
            answers = answers[(answers["selection"] == "ablation") & (answers["gained"] + answers["lost"] > 0)]
            if len(answers):
                names = {"mcnemar": "p (McNemar)"}
                tables["answers"] = answers[["measure", "gained", "lost", "mcnemar"]].rename(columns=names)
            figures["benchmarks"] = self.benchmarks.plot(asked)
        return Section("patch", self.provenance, fields, self.claims(), tables, figures)


_COLUMNS = {
    "measure": "measure", "baseline": "without the patch", "value": "with the patch", "effect": "effect", "low": "low",
    "high": "high", "control_low": "controls from", "control_high": "controls to", "n": "independent units",
}  # fmt: skip


def _shown(effects: Effects, measures: Sequence[str]) -> pd.DataFrame:
    """Measures that the patch or a control has changed."""
    return changed(effects.select(measures=measures).summary())[[*_COLUMNS]].rename(columns=_COLUMNS)


@guarded
def run_repair_study(
    model: Model,
    *,
    texts: Corpus | Sequence[str] | None = None,
    layer: int | None = None,
    repeats: Several | None = None,
    tasks: Sequence[str] = EMBEDDED_TASKS,
    limit: Count | None = None,
    data: str | Path | None = None,
    run: Run | None = None,
) -> RepairStudy:
    """Patches the sink that is found in a model, and measures what that repairs and what it costs.

    Args:
        model: the model.
        texts: a corpus, or texts, for the sink, norms, attention and loss; windows of 64 tokens of held-out English by
            default.
        layer: a layer to take as the sink layer, see :func:`mechrep.find_sink`.
        repeats: how often a token is repeated; by default what the effort says, or what the context holds.
        tasks: benchmarks, see :data:`mechrep.ablation.benchmark_tasks.TASKS`; none with ``()``.  Those made from the
            embedded text by default.
        limit: ask only so many questions of each; by default as many as the effort says.
        data: folder of the files of questions, for benchmarks that are files.
        run: options.

    Raises:
        NothingFoundError: the model has no norm sink.
        InputError: see :func:`run_patch_study` and :func:`mechrep.ablation.benchmarks.benchmark_study`.

    Source: the patch and its three questions (norms, repetition, benchmarks) are Yona et al. 2025 (arXiv 2503.08908);
    measures, controls and verdicts are mechrep's own.

    Limits: benchmarks that a model answers at chance cannot show what a patch costs.  The sink is looked for, and the
    loss measured, on the same texts.

    Example:
        >>> import mechrep
        >>> from mechrep.models.nulls import reinitialised
        >>> untrained = reinitialised(mechrep.load_model("mechrep-tiny"))
        >>> run_repair_study(untrained, texts=["The sea was calm that day.", "It rained, and it rained."])
        Traceback (most recent call last):
        mechrep.errors.NothingFoundError: given: mechrep-tiny (reinitialised, seed 0), in which ...
    """
    if tasks:
        as_tasks(tasks)
    options, corpus = run or Run(), ordinary_texts(model, texts)
    sink = find_sink(model, texts=corpus, layer=layer, run=options)
    found = _patch_of(model, sink)
    few = corpus.select(range(min(len(corpus), options.sizes_on(model).windows)))
    patch = run_patch_study(model, found, texts=few, repeats=repeats, sink=sink, run=options)
    why, benchmarks = _unasked(model, tasks), None
    if not why:
        asked = Questions(tasks, data, options.sizes_on(model).questions if limit is None else limit)
        benchmarks = benchmark_study(model, found, questions=asked, run=options)
    config = {
        "study": "patch",
        "patch": found.to_dict(),
        "tasks": list(tasks),
        "limit": limit,
        "effort": options.effort,
    }
    return RepairStudy(model.name, sink, patch, benchmarks, why, provenance_of(model, few, config))


def _unasked(model: Model, tasks: Sequence[str]) -> str:
    """Why benchmarks are not asked; empty where they are."""
    if not tasks:
        return "no benchmark was asked for"
    if not model.fast:
        return f"{model.name} has no plain Hugging Face module, which the harness needs"
    return NOT_INSTALLED if importlib.util.find_spec("lm_eval") is None else ""
