"""The benchmarks: files of questions on this machine, or questions made from the embedded text, as documents that
lm-evaluation-harness can ask.

A document has an ``id``, a ``text``, ``choices`` and a ``target``.  Where the choices are continuations of one text,
``target`` is the number of the right one.  Where they are beginnings of one continuation (WinoGrande), ``text`` is the
number of the right one and ``target`` the continuation.  Wording and scoring are those of the harness' tasks of the
same names, without examples in front (zero-shot); a choice follows its text after one blank.

Questions made from the embedded held-out text: benchmarks that need no file and no network.

1. ``continuation``: forty words of the text; which of four passages comes next?  One does, three stand elsewhere in the
   same text.  All four have as many words and as many characters, so that none is likelier for being shorter.
2. ``recall``: a passage, and the same passage again, cut before a word; which word comes?  One does, the other three
   stand in the passage too.  All four are drawn first and the asked one among them, so that without reading back there
   is nothing to tell them apart but what fits the sentence.  This is copying in context, which a patch may hurt.

Words are what blanks and line breaks separate, joined by single blanks: any tokenizer can read them.

lm-evaluation-harness around a module: its model class, its tasks, its scoring; an extra, imported when it is used.

What mechrep decides itself: texts begin with BOS as the model was loaded, and log-probabilities are taken in float32.
All else is the harness': a choice is scored by the sum of the log-probabilities of its tokens, rows are padded on the
right, and what does not fit is cut off on the *left*, which takes BOS first.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import gzip
import importlib
import importlib.resources
import importlib.util
import io
import itertools
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from mechrep.ablation.choices import Choice, Scores, score_choices
from mechrep.errors import InputError
from mechrep.guards import Count, guarded, some_of
from mechrep.interventions.ops import Intervention
from mechrep.models import tiny
from mechrep.models.model import Model

Question = dict[str, Any]
QUESTIONS, CHOICES = 100, 4
CONTEXT, ENDING = 40, 8  # words shown, words of a continuation
PASSAGE, SKIPPED = 32, 8  # words of a passage that is shown twice; the first of them are never asked for
_APART = 100  # words between a false continuation and the place that is asked about
_ENOUGH = CHOICES * 2 * ENDING  # passages of one length, so that three of them do not overlap
_SHORTEST = 4  # letters of a word that is asked for


def continuation_questions(text: str | None = None, *, questions: int = QUESTIONS, seed: int = 0) -> list[Question]:
    """Which of four passages comes next?

    Args:
        text: held-out English by default.
        questions: how many, from places spread evenly over the text.
        seed: of the false continuations and the order of places and choices.

    Returns:
        Records with ``id`` (number of the first word that is shown), ``query``, ``choices`` and ``gold``; of every four
        in a row, each place among the choices is right once.

    Raises:
        InputError: no question asked for, or a text with too few places for them.

    Limits: a false continuation may betray itself by its first word alone.  That is language, too, but it does not
    need the forty words.

    Example:
        >>> first = continuation_questions()[0]
        >>> len(first["query"].split()), [len(choice.split()) for choice in first["choices"]]
        (40, [8, 8, 8, 8])
        >>> len({len(choice) for choice in first["choices"]})
        1
    """
    words = _words(text)
    endings = [" ".join(words[place : place + ENDING]) for place in range(len(words) - ENDING + 1)]
    by_length: dict[int, list[int]] = {}
    for place, ending in enumerate(endings):
        by_length.setdefault(len(ending), []).append(place)
    alike = {length: np.array(places) for length, places in by_length.items()}
    places = range(CONTEXT, len(endings))
    known = [place for place in places if (abs(alike[len(endings[place])] - place) >= _APART).sum() >= _ENOUGH]
    chosen, right, generator = _draw(known, questions, seed)
    made = []
    for place, gold in zip(chosen, right, strict=True):
        false = _elsewhere(place, alike[len(endings[place])], endings, generator)
        choices = [*false[:gold], endings[place], *false[gold:]]
        start = place - CONTEXT
        made.append({"id": str(start), "query": " ".join(words[start:place]), "choices": choices, "gold": gold})
    return made


def recall_questions(text: str | None = None, *, questions: int = QUESTIONS, seed: int = 0) -> list[Question]:
    """A passage shown twice and cut before a word: which word of it comes?

    Args:
        text: held-out English by default.
        questions: how many, from places spread evenly over the text.
        seed: of the words that are asked for and the order of places and choices.

    Returns:
        Records as in :func:`continuation_questions`; the choices stand in the order in which they were drawn.

    Raises:
        InputError: no question asked for, or a text with too few places for them.

    Limits: a model may also find the word because it fits, so the level is no measure of copying; the change under an
    intervention, beside that of ``continuation``, is what this is for.

    Example:
        >>> first = recall_questions()[0]
        >>> whole, again = first["query"].split("\\n")
        >>> whole.startswith(f"{again} {first['choices'][first['gold']]}")
        True
    """
    words = _words(text)
    plain = [word.strip(".,;:!?\"'()-_").lower() for word in words]
    asked = {}
    for start in range(len(words) - PASSAGE + 1):
        fit = _asked(words[start : start + PASSAGE], plain[start : start + PASSAGE])
        if len(fit) >= CHOICES:
            asked[start] = fit
    starts, right, generator = _draw(list(asked), questions, seed)
    made = []
    for start, gold in zip(starts, right, strict=True):
        passage = words[start : start + PASSAGE]
        chosen = generator.permutation(asked[start])[:CHOICES].tolist()
        query = f"{' '.join(passage)}\n{' '.join(passage[: chosen[gold]])}"
        made.append({"id": str(start), "query": query, "choices": [passage[place] for place in chosen], "gold": gold})
    return made


def _words(text: str | None) -> list[str]:
    return (tiny.held_out_text() if text is None else text).split()


def _draw(places: Sequence[int], questions: int, seed: int) -> tuple[list[int], list[int], np.random.Generator]:
    """Places to ask about, spread evenly but in a random order, and which choice is right there."""
    if not 1 <= questions <= len(places):
        raise InputError(
            f"{questions} questions from a text with {len(places)} places for one",
            "at least one question, and as many places",
            "use a longer text or ask for fewer",
        )
    generator = np.random.default_rng(seed)
    spread = np.linspace(0, len(places) - 1, questions).astype(int)
    right = [int(place) for _ in range(-(-questions // CHOICES)) for place in generator.permutation(CHOICES)]
    return [places[number] for number in generator.permutation(spread)], right[:questions], generator


def _elsewhere(
    place: int, places: Int[np.ndarray, " place"], endings: Sequence[str], generator: np.random.Generator
) -> list[str]:
    """Passages of the same length that overlap neither each other nor what is near the place asked about."""
    taken: list[int] = []
    for other in generator.permutation(places[abs(places - place) >= _APART]).tolist():
        apart = all(abs(other - one) >= ENDING for one in taken)
        if apart and endings[other] not in [endings[one] for one in (place, *taken)]:
            taken.append(other)
        if len(taken) == CHOICES - 1:
            return [endings[one] for one in taken]
    raise InputError(
        f"{len(taken)} different passages of {len(endings[place])} characters", f"{CHOICES - 1}", "use another text"
    )


def _asked(passage: Sequence[str], plain: Sequence[str]) -> list[int]:
    """Places of words that can be asked for: plain, not at the beginning, and there once however they are written."""
    counts = Counter(plain)
    return [
        place
        for place, word in enumerate(passage)
        if place >= SKIPPED and len(word) >= _SHORTEST and word.isalpha() and word.islower() and counts[word] == 1
    ]


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
    some_of("tasks", names, TASKS)
    return [TASKS[name] for name in names]


@guarded
def read_documents(task: BenchmarkTask, folder: str | Path | None, limit: Count | None = None) -> list[Document]:
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


Record = dict[str, Any]
_SPLIT = "test"


def require_harness() -> None:
    """Refuse to go on where lm-evaluation-harness is not installed.

    Raises:
        InputError: with the command that installs it.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise InputError(
            "benchmarks without lm-evaluation-harness", "the package lm_eval", "pip install mechrep[evals]"
        )


def _part(name: str) -> Any:
    """A module of the harness, by a name that type checkers do not look for: it need not be installed."""
    return importlib.import_module(f"lm_eval.{name}")


def ask(
    model: Model,
    task: BenchmarkTask,
    documents: Sequence[Document],
    interventions: Sequence[Intervention | None],
    batch_size: int,
    progress: bool | None = None,
) -> list[list[Record]]:
    """The harness' verdict on every question, under every intervention.

    The harness makes the questions, hands over what is to be scored, and judges the answers; all conditions are scored
    together (:func:`~mechrep.ablation.choices.score_choices`).

    Args:
        model: its tokenizer, BOS policy and context length.
        task: the benchmark.
        documents: its questions.
        interventions: ``None`` is the baseline.
        batch_size: rows per forward pass.
        progress: show a progress bar.

    Returns:
        By intervention one record per question, in order: ``id``, the ``scores`` of its choices (nats), the metrics of
        the task, and whether it was ``truncated``.

    Raises:
        InputError: a choice that is empty or longer than the model's context.
    """
    with _quiet():
        answering = _model_class()(model, interventions, batch_size)
        asked = _part("api.task").ConfigurableTask(config=_configuration(task, documents))
    found = []
    for number in range(len(interventions)):
        answering.number, answering.progress = number, progress
        with _quiet():
            result = _part("evaluator").evaluate(answering, {task.name: asked}, log_samples=True, bootstrap_iters=0)
        samples = sorted(result["samples"][task.name], key=lambda sample: sample["doc_id"])
        found.append(
            [
                {
                    "id": sample["doc"]["id"],
                    "scores": [float(score) for score, _ in sample["filtered_resps"]],
                    "truncated": sample["doc_id"] in answering.truncated,
                    **{metric: float(sample[metric]) for metric in task.metrics},
                }
                for sample in samples
            ]
        )
    return found


def _configuration(task: BenchmarkTask, documents: Sequence[Document]) -> dict[str, Any]:
    """A task of the harness over documents in memory: nothing is looked up or downloaded."""
    import datasets

    def questions(**_settings: Any) -> dict[str, Any]:
        return {_SPLIT: datasets.Dataset.from_list([dict(document) for document in documents])}

    metrics = [{"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in task.metrics]
    configuration: dict[str, Any] = {
        "task": task.name,
        "custom_dataset": questions,
        "test_split": _SPLIT,
        "output_type": "multiple_choice",
        "num_fewshot": 0,
        "doc_to_text": "text",  # names of fields: the documents hold what is asked, word for word
        "doc_to_choice": "choices",
        "doc_to_target": "target",
        "metric_list": metrics,
    }
    if "question" in documents[0]:
        configuration["doc_to_text"] = _truthfulqa_text()
    if task.graded:
        configuration["process_results"] = _share_of_true
    return configuration


@functools.cache
def _truthfulqa_text() -> str:
    """The six answered questions that come before every one of TruthfulQA, as a template, from the harness itself."""
    import yaml

    file = importlib.resources.files("lm_eval") / "tasks" / "truthfulqa" / "truthfulqa_mc1.yaml"
    return yaml.safe_load(file.read_text(encoding="utf-8"))["doc_to_text"]


def _share_of_true(document: Document, answers: Sequence[tuple[float, bool]]) -> dict[str, float]:
    """Probability of the true choices over that of all choices."""
    shares = torch.tensor([score for score, _ in answers], dtype=torch.float64).softmax(0)
    return {"acc": float(shares[torch.tensor(document["true"]) == 1].sum())}


@functools.cache
def _model_class() -> type[Any]:
    """The harness' model class with mechrep's tokens, and with an eye on what is cut off."""

    class ModuleInHarness(_part("models.huggingface").HFLM):
        number, progress = 0, None

        def __init__(self, model: Model, interventions: Sequence[Intervention | None], batch_size: int) -> None:
            self.source, self.truncated, self._cut = model, set[int](), list[bool]()
            self.interventions, self._scores = list(interventions), dict[Choice, Scores]()
            super().__init__(
                pretrained=model.plain,
                backend="causal",
                tokenizer=copy.deepcopy(model.tokenizer),  # the harness may give it a padding token
                batch_size=batch_size,
                max_length=model.anatomy.n_ctx,
                softmax_dtype=torch.float32,
            )

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_options: Any) -> list[int]:
            return self.source.encode(string, prepend_bos=add_special_tokens)

        def loglikelihood(self, requests: Any, **_options: Any) -> list[tuple[float, bool]]:
            answers = super().loglikelihood(requests, disable_tqdm=True)
            self.truncated = {request.doc_id for request, cut in zip(requests, self._cut, strict=True) if cut}
            return answers

        def _loglikelihood_tokens(self, requests: Any, *_args: Any, **_options: Any) -> list[tuple[float, bool]]:
            for (text, choice), _, tokens in requests:
                if not 0 < len(tokens) <= self.max_length:
                    raise InputError(
                        f"{len(tokens)} tokens of {choice[:60]!r} after {text[-60:]!r}",
                        f"1 to {self.max_length}, the model's context",
                        "leave this question out",
                    )
            self._cut = [len(text) + len(choice) > self.max_length + 1 for _, text, choice in requests]
            rows = [self._within_context(text, choice) for _, text, choice in requests]
            missing = [row for row in rows if row not in self._scores]
            if missing:  # under the first condition: all conditions are scored together
                self._scores |= score_choices(self.source, missing, self.interventions, progress=self.progress)
            return [
                (float(scores[self.number]), bool(greedy[self.number]))
                for scores, greedy in (self._scores[row] for row in rows)
            ]

        def _within_context(self, text: Sequence[int], choice: Sequence[int]) -> Choice:
            """What fits, as the harness cuts it: the last token is predicted, never read."""
            room = self.max_length + 1 - len(choice)
            return tuple(text[-room:]), tuple(choice)

    return ModuleInHarness


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Neither a line for every text that is cut nor a bar for every step: mechrep reports both in its own way."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
