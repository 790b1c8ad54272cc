"""Studies of a patch made by hand: one that repairs, one with nothing to repair, one without a sink."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mechrep.ablation.old_benchmarks import BenchmarkResult
from mechrep.studies.sink_patch import NOT_INSTALLED, PatchStudyResult, RepairStudy
from tests.views import study_by_hand as by_hand

TOKENS, TEXTS, QUESTIONS = 16, 12, 40
CONTROLS = ["random", "random", "layer_matched", "layer_matched"]
SELECTIONS = ["original", "patched", *CONTROLS]


def patch(
    name: str = "hand",
    *,
    drifted: tuple[float, ...] = (1.0, 0.0, 1.0, 1.0, 1.0, 1.0),
    loss: tuple[float, ...] = (2.0, 2.01, 2.1, 2.0, 2.0, 2.0),
    tokens: int = TOKENS,
    reason: str = "",
    controls: bool = True,
) -> PatchStudyResult:
    """Per condition the share of tokens that drift and the loss; ``reason``: drift is not known."""
    n = len(SELECTIONS) if controls else 2
    moved = torch.stack([(torch.arange(tokens) < round(share * tokens)).float() for share in drifted[:n]])
    losses = torch.tensor(loss[:n])[:, None] + torch.linspace(-0.1, 0.1, TEXTS)
    one = torch.ones(n)
    return PatchStudyResult(
        by_hand.provenance(name),
        layer=1,
        neurons=[7, 9],
        selections=SELECTIONS[:n],
        seeds=[0, 0, 0, 1, 0, 1][:n],
        units=[[], [[1, 7], [1, 9]], [[0, 3], [1, 4]], [[2, 3], [2, 4]], [[1, 3], [1, 4]], [[1, 5], [1, 6]]][:n],
        token_ids=list(range(100, 100 + tokens)),
        repeats=64,
        bos=True,
        first_norm=20 * one,
        typical_norm=2 * one,
        repeat_norm=2 + 18 * moved,
        moved=torch.full_like(moved, torch.nan) if reason else moved,
        moved_reason=reason,
        head=[2, 1],
        attention=0.8 * one,
        mean_attention=0.3 * one,
        continued=1 - moved,
        losses=losses,
    )


def benchmarks(name: str = "hand", *, lost: int = 0, right: int = 30) -> BenchmarkResult:
    """One benchmark of 40 questions; the patch loses some of those that were right, controls lose none or one."""
    cells = [("original", "none", 0), ("patched", "intervention", 0)]
    cells += [("patched", selection, seed) for selection, seed in zip(CONTROLS, (0, 1, 0, 1), strict=True)]
    conditions: list[dict[str, Any]] = [{"condition": c, "selection": s, "seed": n, "done": ""} for c, s, n in cells]
    verdicts = torch.stack([_right(count) for count in (right, right - lost, right, right - 1, right, right)])
    return BenchmarkResult(
        by_hand.provenance(name),
        conditions=conditions,
        tasks=[{"task": "recall", "title": "Recall <b>", "questions": QUESTIONS, "truncated": 0, "chance": 0.25}],
        measures=[{"task": "recall", "metric": "acc"}, {"task": "recall", "metric": "margin"}],
        questions=[[str(n) for n in range(QUESTIONS)]],
        values=torch.stack([verdicts, 2 * verdicts - 1]),
        choices=torch.zeros(1, len(cells), QUESTIONS, dtype=torch.long),
    )


def _right(count: int) -> Tensor:
    return (torch.arange(QUESTIONS) < count).double()


def study(name: str = "hand", *, found: bool = True, asked: bool = True, lost: int = 0, **changes: Any) -> RepairStudy:
    """A whole study.  ``found=False``: no sink; ``asked=False``: the harness is not installed."""
    return RepairStudy(
        model_name=name,
        patch=patch(name, **changes) if found else None,
        reason="" if found else "no norm sink <i>here</i>",
        benchmarks=benchmarks(name, lost=lost) if found and asked else None,
        benchmarks_reason="" if found and asked else NOT_INSTALLED if found else "there is no patch to ask about",
        provenance=by_hand.provenance(name, study="patch"),
    )
