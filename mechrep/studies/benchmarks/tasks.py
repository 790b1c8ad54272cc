"""The benchmarks: files of questions on this machine, or questions made from the embedded text, as documents that
lm-evaluation-harness can ask.

A document has an ``id``, a ``text``, ``choices`` and a ``target``.  Where the choices are continuations of one text,
``target`` is the number of the right one.  Where they are beginnings of one continuation (WinoGrande), ``text`` is the
number of the right one and ``target`` the continuation.  Wording and scoring are those of the harness' tasks of the
same names, without examples in front (zero-shot); a choice follows its text after one blank.
"""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechrep.errors import InputError
from mechrep.studies.benchmarks.embedded import continuation_questions, recall_questions

Row = Mapping[str, Any]
Document = dict[str, Any]
_ENDINGS = (".jsonl", ".jsonl.gz")
_BLANK = "_"  # where an option goes in a sentence of WinoGrande


@dataclass(frozen=True)
class BenchmarkTask:
    """One benchmark.

    Attributes:
        name: on the command line and in tables.
        title: in figures.
        file: what the name of its file begins with; empty where the questions are made.
        document: makes a document of a row of the file.
        metrics: of the harness; the first is the one of the tables.
        graded: every choice counts, by a label in ``"true"``, and the metric is a share of probability.
        made: makes the rows from the embedded text, which needs no file.
    """

    name: str
    title: str
    file: str
    document: Callable[[Row], Document]
    metrics: tuple[str, ...] = ("acc",)
    graded: bool = False
    made: Callable[[], Sequence[Row]] | None = None


def _mmlu(row: Row) -> Document:
    subject = str(row["subject"])
    lines = [f"{letter}. {choice}" for letter, choice in zip("ABCD", row["choices"], strict=True)]
    head = f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n"
    text = head + "\n".join([row["question"].strip(), *lines, "Answer:"])
    return {"group": subject, "text": text, "choices": list("ABCD"), "target": int(row["answer"])}


def _query(row: Row) -> Document:
    return {"id": str(row["id"]), "text": row["query"], "choices": list(row["choices"]), "target": int(row["gold"])}


def _winogrande(row: Row) -> Document:
    before, after = row["sentence"].split(_BLANK, 1)
    choices = [before + row["option1"], before + row["option2"]]
    return {"id": str(row["id"]), "text": int(row["answer"]) - 1, "choices": choices, "target": after.strip()}


def _truthfulqa(targets: str) -> Callable[[Row], Document]:
    def document(row: Row) -> Document:
        labels = [int(label) for label in row[targets].values()]
        facts = {"question": row["question"], "choices": list(row[targets])}  # the harness has the text around it
        return facts | {"target": labels.index(1), "true": labels}

    return document


TASKS = {
    task.name: task
    for task in (
        BenchmarkTask("mmlu", "MMLU", "mmlu", _mmlu),
        BenchmarkTask("arc_challenge", "ARC-Challenge", "arc_challenge", _query, ("acc", "acc_norm")),
        BenchmarkTask("arc_easy", "ARC-Easy", "arc_easy", _query, ("acc", "acc_norm")),
        BenchmarkTask("hellaswag", "HellaSwag", "hellaswag", _query, ("acc", "acc_norm")),
        BenchmarkTask("winogrande", "WinoGrande", "winogrande", _winogrande),
        BenchmarkTask("truthfulqa", "TruthfulQA (MC1)", "truthfulqa", _truthfulqa("mc1_targets")),
        BenchmarkTask("truthfulqa_mc2", "TruthfulQA (MC2)", "truthfulqa", _truthfulqa("mc2_targets"), graded=True),
        BenchmarkTask("continuation", "Continuation", "", _query, made=continuation_questions),
        BenchmarkTask("recall", "Recall", "", _query, made=recall_questions),
    )
}
EMBEDDED_TASKS = tuple(task.name for task in TASKS.values() if task.made)
POSTER_TASKS = ("mmlu", "hellaswag", "truthfulqa", "winogrande", "arc_challenge")


def as_tasks(names: Sequence[str]) -> list[BenchmarkTask]:
    """Benchmarks by name.

    Raises:
        InputError: an unknown name, one given twice, none at all.

    Example:
        >>> [task.title for task in as_tasks(["mmlu", "winogrande"])]
        ['MMLU', 'WinoGrande']
    """
    if not names or not set(names) <= set(TASKS) or len(set(names)) < len(names):
        raise InputError(f"tasks={list(names)}", f"some of {list(TASKS)}, each once", "choose among these")
    return [TASKS[name] for name in names]


def read_documents(task: BenchmarkTask, folder: str | Path | None, limit: int | None = None) -> list[Document]:
    """The first ``limit`` questions of a benchmark, all of them by default.

    The order is that of the file; subjects of MMLU take turns, so that few questions are about many subjects.

    Args:
        task: the benchmark.
        folder: where its file ``<task.file>*.jsonl`` or ``.jsonl.gz`` is, one JSON object per line; benchmarks made
            from the embedded text need none.
        limit: how many.

    Raises:
        InputError: no folder or no such file or several, a row that is none of this benchmark, a limit below 1.

    Example:
        >>> import tempfile
        >>> row = {"id": "7", "sentence": "The cup fits the box as _ is small.", "option1": "the cup", "option2": "it"}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "winogrande.jsonl"
        ...     _ = file.write_text(json.dumps(row | {"answer": "1"}), encoding="utf-8")
        ...     read_documents(TASKS["winogrande"], folder)[0]["choices"]
        ['The cup fits the box as the cup', 'The cup fits the box as it']
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit = {limit}", "at least one question", "leave it out for all")
    if task.made is not None:
        return [task.document(row) for row in task.made()][:limit]
    path = _find(task, folder)
    documents: list[Document] = []
    turns: dict[str, Iterator[int]] = {}
    places = []
    for number, row in enumerate(_rows(path)):
        try:
            document = task.document(row)
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            message = f"row {number + 1} of {path} ({type(error).__name__}: {error})"
            raise InputError(message, f"a question of {task.title}", "see docs/concepts/benchmarks.md") from error
        group = document.get("group", str(number))
        turn = next(turns.setdefault(group, itertools.count()))
        places.append((turn, number))
        documents.append({"id": f"{group}/{turn}" if "group" in document else str(number)} | document)
    if not documents:
        raise InputError(f"{path}, which is empty", f"questions of {task.title}", "check the file")
    return [documents[number] for _, number in sorted(places)][:limit]


def _find(task: BenchmarkTask, folder: str | Path | None) -> Path:
    if folder is None:
        raise InputError(
            f"no folder for {task.name}, whose questions are a file",
            f"the folder of that file, or only {', '.join(EMBEDDED_TASKS)}, which are made here",
            "name the folder with data=, or --data",
        )
    folder = Path(folder)
    found = [path for path in sorted(folder.glob(f"{task.file}*")) if path.name.endswith(_ENDINGS)]
    if len(found) != 1:
        listed = ", ".join(path.name for path in found) or "no such file"
        raise InputError(
            f"{listed} in {folder} for {task.name}",
            f"one file {task.file}*{_ENDINGS[0]} or {task.file}*{_ENDINGS[1]}",
            "name the folder with data=, or --data",
        )
    return found[0]


def _rows(path: Path) -> Iterator[Row]:
    try:
        raw = path.read_bytes()
        lines = (gzip.decompress(raw) if path.name.endswith(".gz") else raw).decode("utf-8").split("\n")
        yield from (json.loads(line) for line in lines if line.strip())
    except (OSError, EOFError, ValueError) as error:  # a damaged gzip file is an OSError or an EOFError
        raise InputError(f"{path} ({error})", "one JSON object per line, in UTF-8", "check the file") from error
