"""``benchmark_study``: what does a patch or a cut cost on ordinary benchmarks?

1. The questions of each benchmark are read from files, or made from the embedded text, and fixed: every condition gets
   the same ones in the same order.
2. The untouched model, the model under each intervention, and under the same intervention on matched other units, is
   handed to lm-evaluation-harness as a plain Hugging Face module.
3. Question by question: the verdict, the choice, the margin.  Differences are paired, so the spread between questions,
   which makes most of a benchmark's standard error, drops out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mechrep.errors import InputError
from mechrep.models.model import Model
from mechrep.progress import progress_bar
from mechrep.provenance import Provenance, provenance_of
from mechrep.studies.benchmarks.conditions import BenchmarkCondition, Changes, benchmark_conditions, identity
from mechrep.studies.benchmarks.harness import Record, ask, require_harness
from mechrep.studies.benchmarks.intervened import intervened
from mechrep.studies.benchmarks.result import MARGIN, BenchmarkResult
from mechrep.studies.benchmarks.tasks import POSTER_TASKS, BenchmarkTask, Document, as_tasks, read_documents
from mechrep.studies.controls import as_seeds
from mechrep.studies.journal import Journal


def benchmark_study(
    model: Model,
    interventions: Changes = None,
    *,
    data: str | Path | None = None,
    tasks: Sequence[str] = POSTER_TASKS,
    limit: int | None = None,
    controls: Sequence[str] = ("layer_matched",),
    seeds: int | Sequence[int] = 3,
    batch_size: int = 16,
    store: str | Path | None = None,
    progress: bool | None = None,
) -> BenchmarkResult:
    """Asks a model the questions of benchmarks with and without interventions, through lm-evaluation-harness.

    The model answers with the choice ``c`` whose tokens have the highest summed log-probability after the text of the
    question (``acc``), or the highest per character (``acc_norm``)::

        score(c) = sum over t of log p(c_t | question, c_<t);      margin = score(right) - max of score(others)

    Args:
        model: a model with a tokenizer and a plain view.
        interventions: one, or several by name, all with ``when="all"``; circuits are cut to zero.  None: the model as
            it is.
        data: folder of the files of questions, see :func:`mechrep.studies.benchmarks.tasks.read_documents`; the
            benchmarks of :data:`mechrep.studies.benchmarks.tasks.EMBEDDED_TASKS` are made here and need none.
        tasks: names of benchmarks, see :data:`mechrep.studies.benchmarks.tasks.TASKS`.
        limit: ask only so many questions of each.
        controls: the same operation on as many other units: ``"layer_matched"`` in the same layers, ``"random"``
            anywhere; ``()`` for none.
        seeds: draws of each kind of control.
        batch_size: rows per forward pass.
        store: folder in which finished benchmarks are kept, so that a stopped study goes on where it was.
        progress: show a progress bar.

    Raises:
        InputError: lm-evaluation-harness is not installed; unknown benchmarks, missing or damaged files; a model
            without tokenizer or plain view; an intervention that does not edit all positions alike, or without
            controls; a choice longer than the model's context.
        StoreError: the store cannot be read or written.

    Source: the harness: Gao et al. (EleutherAI/lm-evaluation-harness); the comparison: the poster of Yona et al. 2025
    (arXiv 2503.08908), which gives rounded means without intervals.  Pairing, McNemar's test, controls and margins are
    mechrep's own.

    Limits: zero-shot multiple choice only.  Texts longer than the model's context lose their beginning, BOS first, as
    the harness does it: an intervention at BOS means nothing there (``truncated`` counts them).  A small model is near
    chance, where nothing can be lost: look at the margins, and at ``chance``.  Needs ``pip install mechrep[evals]``.

    Example:
        >>> import json, pathlib, tempfile
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> rows = [{"id": n, "query": f"Question: Is {n} a number?\\nAnswer:", "choices": ["yes", "no"], "gold": 0}
        ...         for n in range(4)]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     lines = "\\n".join(map(json.dumps, rows))
        ...     _ = (pathlib.Path(folder) / "arc_easy.jsonl").write_text(lines)
        ...     study = benchmark_study(model, mechrep.Neurons([(3, 7)], when="all"), data=folder, tasks=["arc_easy"])
        >>> study.summary()[["task", "condition", "n"]].values.tolist()
        [['arc_easy', 'patched', 4]]
    """
    require_harness()
    if model.tokenizer is None:
        raise InputError(f"{model.name}, which has no tokenizer", "a model that reads text", "load it with one")
    if batch_size < 1:
        raise InputError(f"batch_size = {batch_size}", "at least one row", "use 16")
    chosen = as_tasks(tasks)
    conditions = benchmark_conditions(interventions, model.anatomy, controls=controls, seeds=as_seeds(seeds))
    questions = _Questions(model, {task.name: read_documents(task, data, limit) for task in chosen})
    provenance = _provenance(model, questions, conditions, limit)
    journal = None if store is None else Journal(Path(store), provenance)
    answers: list[list[list[Record]]] = []  # by condition, by task
    with progress_bar(len(conditions) * len(questions), "asking", "question", progress) as bar:
        for number, condition in enumerate(conditions):
            answers.append([])
            for place, task in enumerate(chosen):
                shard = number * len(chosen) + place
                records = journal.find(shard) if journal is not None else None
                if records is None:
                    with intervened(model, condition.intervention) as module:
                        records = ask(module, model, task, questions.documents[task.name], batch_size)
                    if journal is not None:
                        journal.keep(shard, records)
                answers[-1].append(records)
                bar.update(len(records))
    return _result(provenance, conditions, chosen, questions.documents, answers)


@dataclass(frozen=True)
class _Questions:
    """The questions of all benchmarks, as the corpus of a provenance."""

    model: Model
    documents: dict[str, list[Document]]

    def __len__(self) -> int:
        return sum(len(documents) for documents in self.documents.values())

    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(self.documents, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def bos_policy(self) -> str:
        return "prepended" if self.model.default_prepend_bos else "absent"

    @property
    def tokenizer(self) -> str | None:
        return self.model.tokenizer_fingerprint


def _provenance(
    model: Model, questions: _Questions, conditions: Sequence[BenchmarkCondition], limit: int | None
) -> Provenance:
    from importlib import metadata

    config = {
        "study": "benchmarks",
        "tasks": list(questions.documents),
        "limit": limit,
        "context": model.anatomy.n_ctx,
        "lm_eval": metadata.version("lm_eval"),
        "conditions": [
            condition.record() | {"identity": identity(condition.intervention, model.anatomy)}
            for condition in conditions
        ],
    }
    return provenance_of(model, questions, config)


def _result(
    provenance: Provenance,
    conditions: Sequence[BenchmarkCondition],
    tasks: Sequence[BenchmarkTask],
    documents: dict[str, list[Document]],
    answers: Sequence[Sequence[Sequence[Record]]],
) -> BenchmarkResult:
    longest = max(len(asked) for asked in documents.values())
    measures = [{"task": task.name, "metric": metric} for task in tasks for metric in (*task.metrics, MARGIN)]
    values = torch.full((len(measures), len(conditions), longest), torch.nan, dtype=torch.float64)
    choices = torch.full((len(tasks), len(conditions), longest), -1)
    facts, row = [], 0
    for place, task in enumerate(tasks):
        asked, own = documents[task.name], [by_task[place] for by_task in answers]
        right = [_right(document) for document in asked]
        for number, records in enumerate(own):
            scores = [torch.tensor(record["scores"], dtype=torch.float64) for record in records]
            choices[place, number, : len(asked)] = torch.stack([score.argmax() for score in scores])
            for offset, metric in enumerate(task.metrics):
                values[row + offset, number, : len(asked)] = torch.tensor(
                    [record[metric] for record in records], dtype=torch.float64
                )
            margins = [_margin(score, correct) for score, correct in zip(scores, right, strict=True)]
            values[row + len(task.metrics), number, : len(asked)] = torch.tensor(margins, dtype=torch.float64)
        row += len(task.metrics) + 1
        facts.append(
            {
                "task": task.name,
                "title": task.title,
                "questions": len(asked),
                "truncated": sum(record["truncated"] for record in own[0]),
                "chance": sum(sum(correct) / len(correct) for correct in right) / len(asked),
            }
        )
    return BenchmarkResult(
        provenance,
        conditions=[condition.record() for condition in conditions],
        tasks=facts,
        measures=measures,
        questions=[[document["id"] for document in documents[task.name]] for task in tasks],
        values=values,
        choices=choices,
    )


def _right(document: Document) -> list[bool]:
    """Which choices are right; where the beginnings are the choices, ``text`` says which one is."""
    if "true" in document:
        return [label == 1 for label in document["true"]]
    number = document["text"] if isinstance(document["text"], int) else document["target"]
    return [choice == number for choice in range(len(document["choices"]))]


def _margin(scores: Tensor, right: Sequence[bool]) -> float:
    mask = torch.tensor(right)
    return float(scores[mask].max() - scores[~mask].max())
