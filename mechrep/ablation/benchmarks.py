"""``benchmark_study``: what does a patch or an ablation cost on ordinary benchmarks?

1. The questions of each benchmark are read from files, or made from the embedded text, and fixed: every condition gets
   the same ones in the same order.
2. lm-evaluation-harness makes the prompts, says what is to be scored and judges the answers; the baseline, the model
   under each intervention and under the same intervention on matched other components are scored together.
3. Question by question: right or wrong, and the margin.  Effects are paired, so the spread between questions, which
   makes most of a benchmark's standard error, drops out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
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
from mechrep.ablation.controls import draw_controls
from mechrep.ablation.effects import ABLATION, BASELINE, Condition, Effects, Measure
from mechrep.ablation.outcomes import Cost
from mechrep.ablation.run import Cell, measure_effects
from mechrep.errors import InputError, MissingPartError
from mechrep.guards import Count, check_fields, guarded, some_of
from mechrep.interventions.ops import Combined, Heads, Intervention, Neurons, SinkPatch
from mechrep.models.anatomy import Anatomy
from mechrep.models.model import Model
from mechrep.models.units import units_per_layer
from mechrep.run import Run
from mechrep.stats import discordant, mcnemar

MARGIN, TRUNCATED = "margin", "truncated"
Changes = Intervention | Circuit | Mapping[str, Intervention | Circuit] | None
_NAMED_UNITS = 8


@dataclass(frozen=True)
class Questions:
    """Which benchmarks are asked.

    Attributes:
        tasks: names of benchmarks, see :data:`mechrep.ablation.benchmark_tasks.TASKS`.
        data: folder of the files of questions, see :func:`mechrep.ablation.benchmark_tasks.read_documents`; the
            benchmarks of :data:`mechrep.ablation.benchmark_tasks.EMBEDDED_TASKS` are made here and need none.
        limit: ask only so many questions of each.
    """

    tasks: Sequence[str] = POSTER_TASKS
    data: str | Path | None = None
    limit: Count | None = None

    def __post_init__(self) -> None:
        check_fields(self)


class BenchmarkAnswers:
    """What the harness says of every question of one benchmark.

    The model answers with the choice ``c`` whose tokens have the highest summed log-probability after the text of the
    question (``acc``), or the highest per character (``acc_norm``)::

        score(c) = sum over t of log p(c_t | question, c_<t);      margin = score(right) - max of score(others)

    Args:
        model: the model.
        task: the benchmark.
        documents: its questions.
        batch_size: rows per forward pass.
    """

    regenerates = True  # the harness is slow: as few control draws as where texts are written anew

    def __init__(self, model: Model, task: BenchmarkTask, documents: Sequence[Document], batch_size: int = 16) -> None:
        self.model, self.task, self.documents, self.batch_size = model, task, list(documents), batch_size
        right_or_wrong = int("true" not in self.documents[0])  # else the share of the true answers
        self.measures = [
            *(Measure(f"{task.name} {metric}", "share", "question", trials=right_or_wrong) for metric in task.metrics),
            Measure(f"{task.name} {MARGIN}", "nats", "question"),
            Measure(f"{task.name} {TRUNCATED}", "share", "question", trials=1),
        ]
        self.units = [str(document["id"]) for document in documents]
        self.clusters = self.units
        text = json.dumps(self.documents, sort_keys=True)
        self.facts: dict[str, Any] = {
            "questions": hashlib.sha256(text.encode()).hexdigest()[:16],
            "context": model.anatomy.n_ctx,
            "lm_eval": metadata.version("lm_eval"),
        }
        self.cost = Cost(read=len(text) // 4)

    @property
    def chance(self) -> float:
        """Share of questions that guessing answers right."""
        right = [_right(document) for document in self.documents]
        return sum(sum(one) / len(one) for one in right) / len(right)

    def values(
        self, interventions: Sequence[Intervention | None], progress: bool | None
    ) -> Float[Tensor, "measure intervention question"]:
        """Every metric and the margin of every question."""
        table = torch.full((len(self.measures), len(interventions), len(self.units)), torch.nan, dtype=torch.float64)
        asked = ask(self.model, self.task, self.documents, interventions, self.batch_size, progress)
        for column, records in enumerate(asked):
            table[:, column] = torch.tensor([self._row(*both) for both in zip(records, self.documents)]).T  # noqa: B905
        return table

    def _row(self, record: Record, document: Document) -> list[float]:
        scores, right = torch.tensor(record["scores"], dtype=torch.float64), torch.tensor(_right(document))
        margin = float(scores[right].max() - scores[~right].max())
        return [*(float(record[metric]) for metric in self.task.metrics), margin, float(record["truncated"])]


@guarded
def benchmark_study(
    model: Model,
    interventions: Changes = None,
    *,
    questions: Questions | None = None,
    controls: Sequence[str] = ("layer_matched",),
    batch_size: Count = 16,
    run: Run | None = None,
) -> Effects:
    """Asks a model the questions of benchmarks with and without interventions, through lm-evaluation-harness.

    Args:
        model: a model with a tokenizer and a plain view.
        interventions: one, called ``"patched"``, or several by name, all with ``when="all"``; circuits are set to zero.
            None: the model as it is.
        questions: which benchmarks.
        controls: the same operation on as many other components, see :mod:`mechrep.ablation.controls`; ``()`` for none.
        batch_size: rows per forward pass.
        run: options; the effort says how many draws.

    Returns:
        Effects with one measure per benchmark and metric, its margin, and which questions were ``truncated`` because
        they did not fit the context; ``notes["benchmarks"]`` has the number of questions and what guessing would give.

    Raises:
        InputError: lm-evaluation-harness is not installed; unknown benchmarks, missing or damaged files; a model
            without tokenizer or plain view; an intervention that does not edit all positions alike, or without
            controls; a choice longer than the model's context.
        StoreError: the store cannot be read or written.

    Source: the harness: Gao et al. (EleutherAI/lm-evaluation-harness); the comparison: the poster of Yona et al. 2025
    (arXiv 2503.08908), which gives rounded means without intervals.  Pairing, McNemar's test, controls and margins are
    mechrep's own.

    Limits: zero-shot multiple choice only.  Texts longer than the model's context lose their beginning, BOS first, as
    the harness does it: an intervention at BOS means nothing there.  A small model is near chance, where nothing can
    be lost: look at the margins.  Needs ``pip install mechrep[evals]``.

    Example:
        >>> import json, pathlib, tempfile
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> rows = [{"id": n, "query": f"Question: Is {n} a number?\\nAnswer:", "choices": ["yes", "no"], "gold": 0}
        ...         for n in range(4)]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     lines = "\\n".join(map(json.dumps, rows))
        ...     _ = (pathlib.Path(folder) / "arc_easy.jsonl").write_text(lines)
        ...     asked = Questions(["arc_easy"], folder)
        ...     effects = benchmark_study(model, mechrep.Neurons([(3, 7)], when="all"), questions=asked, controls=())
        >>> effects.summary()[["measure", "name", "texts"]].values.tolist()[0]
        ['arc_easy acc', 'patched', 4]
    """
    require_harness()
    if model.tokenizer is None:
        raise MissingPartError(f"{model.name}, which has no tokenizer", "a model that reads text", "load it with one")
    options, asked = run or Run(), questions or Questions()
    tasks = as_tasks(asked.tasks)
    outcomes = [
        BenchmarkAnswers(model, task, read_documents(task, asked.data, asked.limit), batch_size) for task in tasks
    ]
    draws = options.sizes_on(model).regenerated_draws
    cells = benchmark_cells(interventions, model.anatomy, controls=controls, draws=draws, seed=options.seed)
    notes = {
        one.task.name: {"title": one.task.title, "questions": len(one.units), "chance": one.chance} for one in outcomes
    }
    config = {
        "study": "benchmarks",
        "done": {c.name: in_words(done) for c, done in cells if done and c.selection == ABLATION},
    }
    return measure_effects(model, cells, outcomes, config=config, run=options, notes={"benchmarks": notes})


def benchmark_cells(
    changes: Changes, anatomy: Anatomy, *, controls: Sequence[str], draws: int, seed: int = 0
) -> list[Cell]:
    """The baseline, then every intervention with its controls.

    Args:
        changes: one intervention, called ``"patched"``, or several by name; a circuit is set to zero.
        anatomy: of the model.
        controls: kinds of controls that need nothing to match by.
        draws: of each kind.
        seed: of the draws.

    Raises:
        InputError: an unknown control or one named twice, an intervention named ``"baseline"`` or one for which none
            can be drawn.

    Example:
        >>> import mechrep
        >>> ablated = mechrep.Neurons([(3, 7)], when="all")
        >>> anatomy = mechrep.load_model("mechrep-tiny").anatomy
        >>> [one.selection for one, _ in benchmark_cells(ablated, anatomy, controls=["layer_matched"], draws=2)]
        ['baseline', 'ablation', 'layer_matched', 'layer_matched']
    """
    if controls:
        some_of("controls", controls, ("layer_matched", "random"))
    named = changes if isinstance(changes, Mapping) else {} if changes is None else {"patched": changes}
    cells: list[Cell] = [(Condition(), None)]
    for name, change in named.items():
        if name == BASELINE:
            raise InputError(f"an intervention named {name!r}", "another name", "rename it")
        if isinstance(change, Circuit):
            change.check(anatomy)
        chosen = change.intervention(when="all") if isinstance(change, Circuit) else change
        cells.append((Condition(name, ABLATION), chosen))
        for kind in controls:
            drawn = same_on_others(kind, chosen, anatomy, draws=draws, seed=seed)
            cells += [(Condition(name, kind, seed=number), one) for number, one in enumerate(drawn)]
    return cells


def same_on_others(
    kind: str, intervention: Intervention, anatomy: Anatomy, *, draws: int, seed: int = 0
) -> list[Intervention]:
    """The same operation on as many other neurons or heads, once per draw.

    Raises:
        InputError: an intervention on other things, or on more components than are left to draw from.

    Example:
        >>> import mechrep
        >>> anatomy = mechrep.load_model("mechrep-tiny").anatomy
        >>> (control,) = same_on_others("layer_matched", SinkPatch(1, [3, 8]), anatomy, draws=1)
        >>> control.layer, len(control.neurons), {3, 8}.isdisjoint(control.neurons)
        (1, 2, True)
    """
    if isinstance(intervention, Combined):
        parts = [same_on_others(kind, part, anatomy, draws=draws, seed=seed) for part in intervention.parts]
        return [Combined(one) for one in zip(*parts, strict=False)]
    if not isinstance(intervention, (Heads, Neurons, SinkPatch)):
        raise InputError(
            f"controls of {type(intervention).__name__}", "an intervention on neurons or heads", "pass controls=()"
        )
    width = units_per_layer(anatomy, "heads" if isinstance(intervention, Heads) else "neurons")
    units = list(intervention.units)
    sets = draw_controls(kind, units, layers=anatomy.n_layers, width=width, draws=draws, seed=seed)
    return [_on(intervention, chosen) for chosen in sets]


def _on(intervention: Heads | Neurons | SinkPatch, units: Sequence[tuple[int, int]]) -> Intervention:
    if isinstance(intervention, Heads):
        return Heads(units, intervention.op, intervention.when)
    if isinstance(intervention, Neurons):
        return Neurons(units, intervention.op, intervention.site, intervention.when)
    layers = sorted({layer for layer, _ in units})
    patches = tuple(
        SinkPatch(layer, [n for place, n in units if place == layer], intervention.when) for layer in layers
    )
    return patches[0] if len(patches) == 1 else Combined(patches)


def in_words(intervention: Intervention) -> str:
    """What is done to what, short.

    Example:
        >>> in_words(Neurons([(1, 2), (3, 4)], when="all") + SinkPatch(0, [7]))
        'zero: L1N2, L3N4; held at the first token after BOS: L0N7'
    """
    if isinstance(intervention, Combined):
        return "; ".join(in_words(part) for part in intervention.parts)
    if not isinstance(intervention, (Neurons, Heads, SinkPatch)):
        return type(intervention).__name__
    letter = "H" if isinstance(intervention, Heads) else "N"
    listed = [f"L{layer}{letter}{number}" for layer, number in intervention.units]
    more = [f"and {len(listed) - _NAMED_UNITS} more"] if len(listed) > _NAMED_UNITS else []
    done = "held at the first token after BOS" if isinstance(intervention, SinkPatch) else intervention.op.name
    return f"{done}: {', '.join([*listed[:_NAMED_UNITS], *more])}"


def paired_answers(effects: Effects) -> pd.DataFrame:
    """One row per benchmark metric and intervention: questions gained and lost, and McNemar's exact p-value.

    Columns: ``measure``, ``name``, ``selection``, ``seed``, ``gained`` and ``lost`` (questions that are right only with
    and only without the intervention), ``mcnemar``; metrics that are not right or wrong are left out.

    Source: McNemar 1947 (Psychometrika 12, 153-157).

    Limits: McNemar's test asks whether answers change at all; the verdict asks whether they change more than under
    matched controls.
    """
    rows = []
    for measure in effects.measures:
        if measure.trials == 1 and not measure.name.endswith(TRUNCATED):
            answers = effects.of(measure.name)
            for place, condition in enumerate(effects.conditions[1:], 1):
                gained, lost = discordant(answers[0], answers[place])
                facts = {"measure": measure.name, "name": condition.name, "selection": condition.selection}
                rows.append(
                    facts | {"seed": condition.seed, "gained": gained, "lost": lost, "mcnemar": mcnemar(gained, lost)}
                )
    columns = ["measure", "name", "selection", "seed", "gained", "lost", "mcnemar"]
    return pd.DataFrame(rows, columns=columns)


def _right(document: Document) -> list[bool]:
    """Which choices are right; where the beginnings are the choices, ``text`` says which one is."""
    if "true" in document:
        return [label == 1 for label in document["true"]]
    number = document["text"] if isinstance(document["text"], int) else document["target"]
    return [choice == number for choice in range(len(document["choices"]))]
