"""The published repair, tried on one model: find the sink, hold its neurons, and see what changes and what it costs.

1. :func:`mechrep.find_sink` looks for a sink.  Where there is none, nothing can be patched, and that is the answer.
2. :func:`mechrep.studies.run_patch_study` measures norms, attention, repetition and perplexity before and after, beside
   the same patch on other neurons.
3. :func:`mechrep.studies.benchmark_study` asks the same questions before and after, beside the same controls, where
   lm-evaluation-harness is installed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mechrep.analyzers.sinks.find_sink import find_sink
from mechrep.interventions.sink_patch import SinkPatch
from mechrep.models.model import Model
from mechrep.provenance import Provenance
from mechrep.studies.benchmarks.conditions import BENCHMARK_CONTROLS
from mechrep.studies.benchmarks.result import BenchmarkResult
from mechrep.studies.benchmarks.study import benchmark_study
from mechrep.studies.benchmarks.tasks import EMBEDDED_TASKS
from mechrep.studies.controls import as_seeds
from mechrep.studies.patch_result import PatchStudyResult
from mechrep.studies.patch_study import run_patch_study
from mechrep.text.corpus import Corpus

NOT_INSTALLED = "lm-evaluation-harness is not installed: pip install mechrep[evals]"


@dataclass(frozen=True)
class RepairStudy:
    """Everything that the report shows about the sink patch.

    Attributes:
        model_name: how the model was named.
        patch: what the patch changes, beside controls; ``None`` where there is no sink to patch.
        reason: why there is no patch, or empty.
        benchmarks: questions with and without the patch, beside controls; ``None`` where they were not asked.
        benchmarks_reason: why not, or empty.
        provenance: of the whole study.
    """

    model_name: str
    patch: PatchStudyResult | None
    reason: str
    benchmarks: BenchmarkResult | None
    benchmarks_reason: str
    provenance: Provenance


def run_repair_study(
    model: Model,
    *,
    texts: Corpus | Sequence[str] | None = None,
    layer: int | None = None,
    repeats: int | None = None,
    seeds: int | Sequence[int] = 3,
    tasks: Sequence[str] = EMBEDDED_TASKS,
    limit: int | None = 100,
    data: str | Path | None = None,
    store: str | Path | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> RepairStudy:
    """Patches the sink that is found in a model, and measures what that repairs and what it costs.

    Args:
        model: the model.
        texts: a corpus, or texts, for the sink, norms, attention and loss; up to 100 windows of 64 tokens of held-out
            English by default.
        layer: a layer to take as the sink layer, see :func:`mechrep.find_sink`.
        repeats: how often a token is repeated; by default 512, or what the context holds.
        seeds: draws of each control, or the seeds.
        tasks: benchmarks, see :data:`mechrep.studies.benchmarks.tasks.TASKS`; none with ``()``.  Those made from the
            embedded text by default.
        limit: ask only so many questions of each.
        data: folder of the files of questions, for benchmarks that are files.
        store: folder in which finished benchmarks are kept.
        seed: of the search for the sink.
        progress: show progress bars.

    Returns:
        A study whose ``patch`` is ``None`` where no sink was found, and whose ``benchmarks`` is ``None`` where there is
        no patch or they cannot be asked, with the reason.

    Raises:
        InputError: see :func:`mechrep.studies.run_patch_study` and :func:`mechrep.studies.benchmark_study`.
        StoreError: the store cannot be read or written.

    Source: the patch and its three questions (norms, repetition, benchmarks) are Yona et al. 2025 (arXiv 2503.08908);
    measures, controls and intervals are mechrep's own.

    Limits: benchmarks that a model answers at chance cannot show what a patch costs.  The sink is looked for, and the
    loss measured, on the same texts.

    Example:
        >>> import mechrep
        >>> from mechrep.models.nulls import reinitialised
        >>> untrained = reinitialised(mechrep.load_model("mechrep-tiny"))
        >>> few = ["The sea was calm that day.", "It rained, and it rained."]
        >>> study = run_repair_study(untrained, texts=few, progress=False)
        >>> study.patch is None, study.reason.startswith("no")
        (True, True)
    """
    drawn = as_seeds(seeds)
    sink = find_sink(model, texts=texts, layer=layer, seed=seed)
    found = SinkPatch(sink.layer, [neuron for _, neuron in sink.neurons]) if sink.layer is not None else None
    patch, benchmarks, why = None, None, ""
    if found is not None:
        patch = run_patch_study(model, found, texts=texts, repeats=repeats, seeds=drawn, seed=seed, progress=progress)
        why = _unasked(model, tasks)
        if not why:
            benchmarks = benchmark_study(
                model,
                found,
                data=data,
                tasks=tasks,
                limit=limit,
                controls=BENCHMARK_CONTROLS,
                seeds=drawn,
                store=store,
                progress=progress,
            )
    config = {
        "study": "patch",
        "patch": None if found is None else found.to_dict(),
        "tasks": list(tasks),
        "limit": limit,
        "seeds": list(drawn),
        "seed": seed,
    }
    return RepairStudy(
        model_name=model.name,
        patch=patch,
        reason="" if found is not None else sink.reason,
        benchmarks=benchmarks,
        benchmarks_reason=why if found is not None else "there is no patch to ask about",
        provenance=Provenance(sink.provenance.model, sink.provenance.corpus, config),
    )


def _unasked(model: Model, tasks: Sequence[str]) -> str:
    """Why benchmarks are not asked; empty where they are."""
    if not tasks:
        return "no benchmark was asked for"
    if model.plain is None:
        return f"{model.name} has no plain Hugging Face module, which the harness needs"
    return NOT_INSTALLED if importlib.util.find_spec("lm_eval") is None else ""
