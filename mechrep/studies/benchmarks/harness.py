"""lm-evaluation-harness around a module: its model class, its tasks, its scoring; an extra, imported when it is used.

What mechrep decides itself: texts begin with BOS as the model was loaded, and log-probabilities are taken in float32.
All else is the harness': a choice is scored by the sum of the log-probabilities of its tokens, rows are padded on the
right, and what does not fit is cut off on the *left*, which takes BOS first.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import importlib.resources
import importlib.util
import io
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from mechrep.errors import InputError
from mechrep.models.model import Model
from mechrep.studies.benchmarks.tasks import BenchmarkTask, Document

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
    module: nn.Module, model: Model, task: BenchmarkTask, documents: Sequence[Document], batch_size: int
) -> list[Record]:
    """The harness' verdict on every question.

    Args:
        module: what answers: the model's plain module, perhaps inside an intervention.
        model: its tokenizer, BOS policy and context length.
        task: the benchmark.
        documents: its questions.
        batch_size: rows per forward pass.

    Returns:
        One record per question, in order: ``id``, the ``scores`` of its choices (nats), the metrics of the task, and
        whether it was ``truncated``.

    Raises:
        InputError: a choice that is empty or longer than the model's context.
    """
    with _quiet():
        answering = _model_class()(module, model, batch_size)
        asked = _part("api.task").ConfigurableTask(config=_configuration(task, documents))
        found = _part("evaluator").evaluate(answering, {task.name: asked}, log_samples=True, bootstrap_iters=0)
    samples = sorted(found["samples"][task.name], key=lambda sample: sample["doc_id"])
    return [
        {
            "id": sample["doc"]["id"],
            "scores": [float(score) for score, _ in sample["filtered_resps"]],
            "truncated": sample["doc_id"] in answering.truncated,
            **{metric: float(sample[metric]) for metric in task.metrics},
        }
        for sample in samples
    ]


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
        def __init__(self, module: nn.Module, model: Model, batch_size: int) -> None:
            self.source, self.truncated, self._cut = model, set[int](), list[bool]()
            super().__init__(
                pretrained=module,
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

        def _loglikelihood_tokens(self, requests: Any, *args: Any, **kwargs: Any) -> list[tuple[float, bool]]:
            for (text, choice), _, tokens in requests:
                if not 0 < len(tokens) <= self.max_length:
                    raise InputError(
                        f"{len(tokens)} tokens of {choice[:60]!r} after {text[-60:]!r}",
                        f"1 to {self.max_length}, the model's context",
                        "leave this question out",
                    )
            self._cut = [len(text) + len(choice) > self.max_length + 1 for _, text, choice in requests]
            return super()._loglikelihood_tokens(requests, *args, **kwargs)

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
