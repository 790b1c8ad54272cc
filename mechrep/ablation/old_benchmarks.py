"""``benchmark_study``: what does a patch or a cut cost on ordinary benchmarks?

1. The questions of each benchmark are read from files, or made from the embedded text, and fixed: every condition gets
   the same ones in the same order.
2. The untouched model, the model under each intervention, and under the same intervention on matched other units, is
   handed to lm-evaluation-harness as a plain Hugging Face module.
3. Question by question: the verdict, the choice, the margin.  Differences are paired, so the spread between questions,
   which makes most of a benchmark's standard error, drops out.

Conditions of a benchmark study: the untouched model, interventions under their names, and controls of each.

``BenchmarkResult``: every question's verdict under every condition, and the paired tables made from them.

Benchmarks under intervention: the poster's table for several models, and a figure of paired differences.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechrep.ablation.benchmark_tasks import (
    POSTER_TASKS,
    BenchmarkTask,
    Document,
    Record,
    as_tasks,
    ask,
    read_documents,
    require_harness,
)
from mechrep.ablation.circuit import Circuit
from mechrep.ablation.old_controls import as_seeds, control_heads, control_units
from mechrep.errors import InputError
from mechrep.figures import ACCENT, AXIS, INK, counted, plain, style_of, styled
from mechrep.generation.patched_model import intervened
from mechrep.interventions.ops import Combined, Heads, Intervention, Neurons, SinkPatch
from mechrep.models.anatomy import Anatomy
from mechrep.models.model import Model
from mechrep.progress import progress_bar
from mechrep.provenance import Provenance, provenance_of
from mechrep.results import Result, check_count
from mechrep.stats import bootstrap_intervals, discordant, mcnemar, proportion_interval
from mechrep.store import Journal

if TYPE_CHECKING:
    import plotly.graph_objects as go

CELL = ["condition", "selection", "seed"]
MARGIN = "margin"
UNTOUCHED = "original"


@dataclass(frozen=True, eq=False)
class BenchmarkResult(Result):
    """The same questions, asked of the untouched model, of the model under each intervention, and under its controls.

    Attributes:
        conditions: ``condition`` (the name of the intervention; the first is ``"original"``), ``selection``
            (``"none"``, ``"intervention"`` or the name of a control), ``seed`` of the control's draw, and in words
            what was ``done``.
        tasks: for each benchmark ``task``, ``title``, number of ``questions`` and of those ``truncated``, whose text
            did not fit the model's context for at least one choice, and the share right by ``chance``.
        measures: ``task`` (its name) and ``metric``: those of the benchmark, then ``"margin"``, the log-probability of
            the right choice minus the largest of the others (nats).
        questions: ids of the questions of each benchmark.
        values: of each measure; NaN beyond the questions of its benchmark.
        choices: which choice has the highest log-probability; -1 beyond the questions of the benchmark.
    """

    conditions: Sequence[dict[str, Any]]
    tasks: Sequence[dict[str, Any]]
    measures: Sequence[dict[str, Any]]
    questions: Sequence[Sequence[str]]
    values: Float[Tensor, "measure condition question"]
    choices: Int[Tensor, "task condition question"]

    def to_frame(self) -> pd.DataFrame:
        """One row per measure and condition.

        Columns: ``task, title, metric``, ``condition, selection, seed``; ``value``, the mean over the ``n`` questions,
        with a 95 % interval ``low``/``high`` (Wilson's where every answer is right or wrong, else the bootstrap's);
        ``difference`` to the untouched model on the same questions, with its paired bootstrap interval
        ``difference_low``/``difference_high``; ``gained`` and ``lost``, the questions that are right only with and only
        without the intervention, and ``p_value`` of :func:`~mechrep.stats.mcnemar` (these three
        are missing where answers are not right or wrong); ``truncated`` and ``chance`` of the benchmark.
        """
        return pd.concat([self._table(number) for number in range(len(self.measures))], ignore_index=True)

    def _table(self, number: int) -> pd.DataFrame:
        measure = self.measures[number]
        facts = next(facts for facts in self.tasks if facts["task"] == measure["task"])
        values = self.values[number, :, : facts["questions"]].double().numpy()
        differences = values - values[:1]
        binary = bool(np.isin(values, (0.0, 1.0)).all())
        if binary:
            ends = np.array([proportion_interval(int(row.sum()), len(row)) for row in values])
            changed: list[Any] = [discordant(values[0], row) for row in values]
            p_values = [mcnemar(*pair) for pair in changed]
        else:
            ends, changed = bootstrap_intervals(values), [(None, None)] * len(values)
            p_values = [float("nan")] * len(values)
        difference_ends = bootstrap_intervals(differences)
        table = pd.DataFrame(list(self.conditions))[CELL].assign(
            task=measure["task"],
            title=facts["title"],
            metric=measure["metric"],
            value=values.mean(1),
            low=ends[:, 0],
            high=ends[:, 1],
            difference=differences.mean(1),
            difference_low=difference_ends[:, 0],
            difference_high=difference_ends[:, 1],
            gained=pd.array([gained for gained, _ in changed], dtype="Int64"),
            lost=pd.array([lost for _, lost in changed], dtype="Int64"),
            p_value=p_values,
            n=values.shape[1],
            truncated=facts["truncated"],
            chance=facts["chance"] if measure["metric"] != MARGIN else np.nan,
        )
        return table[["task", "title", "metric", *CELL, *table.columns[len(CELL) + 3 :]]]

    def summary(self, metric: str | None = None) -> pd.DataFrame:
        """The poster's comparison: one row per benchmark and intervention.

        Columns: ``task, title, metric, condition``; ``original`` and ``patched``, the means without and with the
        intervention; ``difference, difference_low, difference_high, gained, lost, p_value, n, truncated, chance`` as in
        :meth:`to_frame`; and, where controls were drawn, for each kind of them the mean of the differences
        ``<kind>`` with the least and the largest of the draws, ``<kind>_low`` and ``<kind>_high``.

        Args:
            metric: one that all benchmarks have; by default the first of each.

        Raises:
            InputError: a metric that no benchmark has.
        """
        frame = self.to_frame()
        first = {facts["task"]: self._metric(facts["task"], metric) for facts in self.tasks}
        frame = frame[frame["metric"] == frame["task"].map(first)]
        if frame.empty:
            known = list(dict.fromkeys(measure["metric"] for measure in self.measures))
            raise InputError(f"metric {metric!r}", f"one of {known}", "choose one that was measured")
        rows = []
        for (task, condition), cell in frame.groupby(["task", "condition"], sort=False):
            if condition == UNTOUCHED:
                continue
            row = cell[cell["selection"] == "intervention"].iloc[0].drop(["selection", "seed", "low", "high"])
            untouched = frame[(frame["task"] == task) & (frame["condition"] == UNTOUCHED)].iloc[0]
            record = row.rename({"value": "patched"}).to_dict()
            rows.append(record | {"original": untouched["value"]} | _controls(cell))
        columns = ["task", "title", "metric", "condition", "original", "patched"]
        table = pd.DataFrame(rows, columns=None if rows else columns)
        return table[[*columns, *(name for name in table.columns if name not in columns)]]

    def _metric(self, task: str, metric: str | None) -> str | None:
        own = [measure["metric"] for measure in self.measures if measure["task"] == task]
        return own[0] if metric is None else metric if metric in own else None

    def question_frame(self) -> pd.DataFrame:
        """One row per benchmark, condition and question: its ``choice`` and the value of each measure."""
        cells = pd.DataFrame(list(self.conditions))[CELL].to_dict("records")
        tables = []
        for number, (facts, ids) in enumerate(zip(self.tasks, self.questions, strict=True)):
            own = [(i, m["metric"]) for i, m in enumerate(self.measures) if m["task"] == facts["task"]]
            for place, cell in enumerate(cells):
                columns = {metric: self.values[i, place, : len(ids)].tolist() for i, metric in own}
                chosen = {"question": list(ids), "choice": self.choices[number, place, : len(ids)].tolist()}
                tables.append(pd.DataFrame(chosen | columns).assign(task=facts["task"], **cell))
        frame = pd.concat(tables, ignore_index=True)
        head = ["task", *CELL, "question", "choice"]
        return frame[[*head, *(name for name in frame.columns if name not in head)]]

    def top(self, k: int) -> list[Any]:
        """``(task, condition)`` of the ``k`` largest differences that an intervention makes, of either sign.

        Raises:
            InputError: ``k`` larger than the number of benchmarks times interventions.
        """
        summary = self.summary()
        check_count(k, len(summary), "benchmarks under an intervention")
        order = np.argsort(-summary["difference"].abs().to_numpy(dtype=float), kind="stable")[:k]
        return [(summary["task"].iloc[i], summary["condition"].iloc[i]) for i in order]

    def plot(self) -> go.Figure:
        """Differences with their intervals, beside the controls (:mod:`mechrep.ablation.benchmarks`)."""
        return benchmark_figure(self)


def _controls(cell: pd.DataFrame) -> dict[str, float]:
    """Mean, least and largest difference over the draws of each kind of control."""
    found: dict[str, float] = {}
    for kind, draws in cell[cell["selection"] != "intervention"].groupby("selection", sort=False):
        differences = draws["difference"]
        found |= {
            str(kind): float(differences.mean()),
            f"{kind}_low": float(differences.min()),
            f"{kind}_high": float(differences.max()),
        }
    return found


BENCHMARK_CONTROLS = ("layer_matched", "random")
Changes = Intervention | Circuit | Mapping[str, Intervention | Circuit] | None
_NAMED_UNITS = 8


@dataclass(frozen=True)
class BenchmarkCondition:
    """One column of the table.

    Attributes:
        condition: name of the intervention, ``"original"`` for none.
        selection: ``"none"``, ``"intervention"`` or the name of a control.
        seed: of the control's draw.
        intervention: what is done.
    """

    condition: str = UNTOUCHED
    selection: str = "none"
    seed: int = 0
    intervention: Intervention | None = None

    def record(self) -> dict[str, Any]:
        """The cell, and in words what is done."""
        return {
            "condition": self.condition,
            "selection": self.selection,
            "seed": self.seed,
            "done": "nothing" if self.intervention is None else in_words(self.intervention),
        }


def benchmark_conditions(
    changes: Changes, anatomy: Anatomy, *, controls: Sequence[str], seeds: Sequence[int]
) -> list[BenchmarkCondition]:
    """The untouched model, then every intervention with its controls.

    Args:
        changes: one intervention, called ``"patched"``, or several by name; a circuit is cut to zero.
        anatomy: of the model.
        controls: kinds of controls, see :data:`BENCHMARK_CONTROLS`.
        seeds: one draw of each kind per seed.

    Raises:
        InputError: an unknown control or one named twice, an intervention named ``"original"`` or one for which none
            can be drawn.

    Example:
        >>> import mechrep
        >>> cut = mechrep.Neurons([(3, 7)], when="all")
        >>> anatomy = mechrep.load_model("mechrep-tiny").anatomy
        >>> conditions = benchmark_conditions(cut, anatomy, controls=["layer_matched"], seeds=[0, 1])
        >>> [(one.condition, one.selection, one.seed) for one in conditions[1:]]
        [('patched', 'intervention', 0), ('patched', 'layer_matched', 0), ('patched', 'layer_matched', 1)]
    """
    if not set(controls) <= set(BENCHMARK_CONTROLS) or len(set(controls)) < len(controls):
        raise InputError(f"controls={list(controls)}", f"some of {BENCHMARK_CONTROLS}, each once", "correct the list")
    named = changes if isinstance(changes, Mapping) else {} if changes is None else {"patched": changes}
    conditions = [BenchmarkCondition()]
    for name, change in named.items():
        if name == UNTOUCHED:
            raise InputError(f"an intervention named {name!r}", "another name", "rename it")
        if isinstance(change, Circuit):
            change.check(anatomy)
        chosen = change.intervention(when="all") if isinstance(change, Circuit) else change
        conditions.append(BenchmarkCondition(name, "intervention", 0, chosen))
        for kind in controls:
            conditions += [BenchmarkCondition(name, kind, seed, draw(kind, chosen, anatomy, seed)) for seed in seeds]
    return conditions


def draw(kind: str, intervention: Intervention, anatomy: Anatomy, seed: int) -> Intervention:
    """The same operation on as many other neurons or heads.

    Raises:
        InputError: an intervention on other things, or on more units than are left to draw from.

    Example:
        >>> import mechrep
        >>> anatomy = mechrep.load_model("mechrep-tiny").anatomy
        >>> control = draw("layer_matched", SinkPatch(1, [3, 8]), anatomy, seed=0)
        >>> control.layer, len(control.neurons), {3, 8}.isdisjoint(control.neurons)
        (1, 2, True)
    """
    if isinstance(intervention, Combined):
        return Combined(tuple(draw(kind, part, anatomy, seed) for part in intervention.parts))
    sizes: dict[str, Any] = {"n_layers": anatomy.n_layers, "seed": seed}
    if isinstance(intervention, Heads):
        heads = control_heads(kind, intervention.units, n_heads=anatomy.n_heads, **sizes)
        return Heads(heads, intervention.op, intervention.when)
    if isinstance(intervention, Neurons):
        units = control_units(kind, intervention.units, d_mlp=anatomy.d_mlp, **sizes)
        return Neurons(units, intervention.op, intervention.site, intervention.when)
    if isinstance(intervention, SinkPatch):
        units = control_units(kind, intervention.units, d_mlp=anatomy.d_mlp, **sizes)
        by_layer: dict[int, list[int]] = {}
        for layer, neuron in units:
            by_layer.setdefault(layer, []).append(neuron)
        patches = [SinkPatch(layer, neurons, intervention.when) for layer, neurons in by_layer.items()]
        return patches[0] if len(patches) == 1 else Combined(tuple(patches))
    raise InputError(
        f"controls of {type(intervention).__name__}", "an intervention on neurons or heads", "pass controls=()"
    )


def in_words(intervention: Intervention) -> str:
    """What is done to what, short.

    Example:
        >>> in_words(Neurons([(1, 2), (3, 4)], when="all") + SinkPatch(0, [7]))
        'zero: neurons 1.2, 3.4; held at the first token after BOS: neuron 0.7'
    """
    if isinstance(intervention, Combined):
        return "; ".join(in_words(part) for part in intervention.parts)
    if not isinstance(intervention, (Neurons, Heads, SinkPatch)):
        return type(intervention).__name__
    held = isinstance(intervention, SinkPatch)
    what = "neuron" if held else intervention.unit
    listed = [f"{layer}.{number}" for layer, number in intervention.units]
    more = f" and {len(listed) - _NAMED_UNITS} more" if len(listed) > _NAMED_UNITS else ""
    done = "held at the first token after BOS" if held else intervention.op.name
    return f"{done}: {what}{'s' * (len(listed) > 1)} {', '.join(listed[:_NAMED_UNITS])}{more}"


def identity(intervention: Intervention | None, anatomy: Anatomy) -> str:
    """Fingerprint of everything that an intervention changes in a model of this anatomy."""
    digest = hashlib.sha256()
    if intervention is not None:
        for (site, layer), edit in sorted(intervention.edits(anatomy).items()):
            digest.update(f"{site.value} {layer}".encode())
            for numbers in (edit.factor, edit.offset):
                digest.update(numbers.double().contiguous().numpy().tobytes())
        digest.update(repr((sorted(intervention.holds(anatomy).items()), intervention.when)).encode())
    return digest.hexdigest()[:16]


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
        data: folder of the files of questions, see :func:`mechrep.ablation.benchmark_tasks.read_documents`; the
            benchmarks of :data:`mechrep.ablation.benchmark_tasks.EMBEDDED_TASKS` are made here and need none.
        tasks: names of benchmarks, see :data:`mechrep.ablation.benchmark_tasks.TASKS`.
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


_ROW = 30  # pixels per point
_OWN = ("none", "intervention")


def benchmark_table(*results: BenchmarkResult, metric: str | None = None) -> pd.DataFrame:
    """The poster's table: a row per benchmark, a column per model and intervention, "original → patched" in per cent.

    Behind it, in brackets, the 95 % interval of the paired difference in percentage points.  Differences whose interval
    leaves out 0 are marked with ``*``; among many benchmarks some are so by chance.

    Args:
        results: one per model.
        metric: one that all benchmarks have; by default the first of each.

    Raises:
        InputError: no result, or two of one model and intervention.

    Example:
        >>> import torch
        >>> from mechrep.provenance import Provenance
        >>> conditions = [
        ...     {"condition": "original", "selection": "none", "seed": 0},
        ...     {"condition": "patched", "selection": "intervention", "seed": 0},
        ... ]
        >>> tasks = [{"task": "winogrande", "title": "WinoGrande", "questions": 4, "truncated": 0, "chance": 0.5}]
        >>> result = BenchmarkResult(
        ...     Provenance({"name": "a model"}, {"texts": 4}, {}),
        ...     conditions,
        ...     tasks,
        ...     measures=[{"task": "winogrande", "metric": "acc"}],
        ...     questions=[["0", "1", "2", "3"]],
        ...     values=torch.tensor([[[0.0, 0, 1, 1], [1, 0, 1, 1]]]),
        ...     choices=torch.tensor([[[0, 0, 0, 0], [1, 0, 0, 0]]]),
        ... )
        >>> benchmark_table(result).values.tolist()
        [['WinoGrande', '50.00 → 75.00 [+0.00, +75.00]']]
    """
    if not results:
        raise InputError("no result", "at least one", "pass results of benchmark_study")
    columns: dict[str, dict[str, str]] = {}
    for result in results:
        summary = result.summary(metric)
        for condition, rows in summary.groupby("condition", sort=False):
            name = f"{result.provenance.model['name']}, {condition}"
            if name in columns:
                raise InputError(f"two results of {name}", "one per model and intervention", "leave one out")
            columns[name] = {row["title"]: _entry(row) for _, row in rows.iterrows()}
    titles = dict.fromkeys(title for column in columns.values() for title in column)
    table = {"benchmark": list(titles)}
    return pd.DataFrame(table | {name: [column.get(title, "") for title in titles] for name, column in columns.items()})


def _entry(row: pd.Series) -> str:
    scale = 1 if row["metric"] == MARGIN else 100
    values = f"{scale * row['original']:.2f} → {scale * row['patched']:.2f}"
    low, high = scale * row["difference_low"], scale * row["difference_high"]
    return f"{values} [{low:+.2f}, {high:+.2f}]{'*' if low > 0 or high < 0 else ''}"


def benchmark_figure(result: BenchmarkResult, metric: str | None = None) -> go.Figure:
    """What every intervention changes on every benchmark: paired differences with 95 % intervals, beside controls.

    Open markers are controls: the mean of their draws with the least and the largest.  The dotted line is the untouched
    model.

    Args:
        result: of :func:`mechrep.ablation.benchmarks.benchmark_study`.
        metric: one that all benchmarks have; by default the first of each.

    Raises:
        InputError: a result without interventions, or a metric that no benchmark has.

    Example:
        >>> import torch
        >>> from mechrep.provenance import Provenance
        >>> conditions = [
        ...     {"condition": "original", "selection": "none", "seed": 0},
        ...     {"condition": "patched", "selection": "intervention", "seed": 0},
        ... ]
        >>> tasks = [{"task": "winogrande", "title": "WinoGrande", "questions": 4, "truncated": 0, "chance": 0.5}]
        >>> result = BenchmarkResult(
        ...     Provenance({"name": "a model"}, {"texts": 4}, {}),
        ...     conditions,
        ...     tasks,
        ...     measures=[{"task": "winogrande", "metric": "acc"}],
        ...     questions=[["0", "1", "2", "3"]],
        ...     values=torch.tensor([[[0.0, 0, 1, 1], [1, 0, 1, 1]]]),
        ...     choices=torch.tensor([[[0, 0, 0, 0], [1, 0, 0, 0]]]),
        ... )
        >>> float(benchmark_figure(result).data[0].x[0])  # percentage points
        25.0
    """
    import plotly.graph_objects as go

    summary = result.summary(metric)
    if summary.empty:
        raise InputError("a result without interventions", "at least one", "pass interventions to benchmark_study")
    in_nats = metric == MARGIN
    scale = 1.0 if in_nats else 100.0
    kinds = list(dict.fromkeys(c["selection"] for c in result.conditions if c["selection"] not in _OWN))
    points: list[go.Scatter] = []
    for place, (condition, rows) in enumerate(summary.groupby("condition", sort=False)):
        colour = ACCENT if place == 0 else style_of(str(condition), place - 1).colour
        several = summary["condition"].nunique() > 1
        label = str(condition) if several else "intervention"
        points.append(_points(rows, "difference", label, colour, "circle", scale))
        for kind in (kind for kind in kinds if kind in rows and not rows[kind].isna().all()):
            style = style_of(kind)
            name = f"{kind.replace('_', '-')} units" + (f", {condition}" if several else "")
            points.append(_points(rows, kind, name, colour if several else style.colour, style.symbol, scale))
    figure = go.Figure(points)
    figure.add_vline(x=0, line={"color": INK, "dash": "dot", "width": 1.5})
    subtitle = (
        f"{result.provenance.model['name']}, {counted(int(summary.groupby('task')['n'].first().sum()), 'question')}"
    )
    titled = styled(
        figure,
        title="What an intervention costs on benchmarks",
        subtitle=subtitle,
        x="change of the margin (nats)" if in_nats else "change (percentage points)",
        y="",
    )
    titled.update_xaxes(AXIS | {"showgrid": True})
    titled.update_yaxes(AXIS | {"showgrid": False, "autorange": "reversed"})
    height = _ROW * len(points) * summary["task"].nunique() + 216
    return titled.update_layout(height=height, scattermode="group", margin={"l": 150, "t": 130})


def _points(rows: pd.DataFrame, name: str, label: str, colour: str, symbol: str, scale: float) -> go.Scatter:
    import plotly.graph_objects as go

    values, low, high = (scale * rows[column] for column in (name, f"{name}_low", f"{name}_high"))
    facts = pd.DataFrame({"n": rows["n"], "truncated": rows["truncated"], "low": low, "high": high})
    return go.Scatter(
        x=values,
        y=[plain(title) for title in rows["title"]],
        orientation="h",
        mode="markers",
        name=plain(label),
        marker={"size": 9, "color": colour, "symbol": symbol},
        error_x={
            "type": "data",
            "symmetric": False,
            "array": high - values,
            "arrayminus": values - low,
            "thickness": 1.2,
            "width": 3,
        },
        customdata=facts,
        hovertemplate="%{y}: %{x:+.2f} (%{customdata[2]:+.2f} to %{customdata[3]:+.2f})<br>%{customdata[0]} questions, "
        "%{customdata[1]} longer than the context<extra>%{fullData.name}</extra>",
    )
