"""Scores of heads made by hand."""

from __future__ import annotations

import torch

from mechrep.measures.head_scores import HeadScoreResult
from mechrep.measures.head_targets import SCORES
from tests.views import study_by_hand as by_hand

N_LAYERS, N_HEADS = by_hand.N_LAYERS, 4
COPIES, PREVIOUS, RESTS = (4, 1), (2, 3), (1, 0)  # the heads that do something


def scores(found: bool = True, name: str = "hand") -> HeadScoreResult:
    """One induction head, one previous-token head and one sink head; no self-finding head."""
    table = torch.full((len(SCORES), N_LAYERS, N_HEADS), 0.05)
    if found:
        table[0][COPIES] = 0.9
    table[2][PREVIOUS], table[4][RESTS] = 0.8, 0.7
    chance = torch.full((len(SCORES),), 0.02)
    return HeadScoreResult(
        by_hand.provenance(name),
        scores=table,
        standard_errors=torch.full_like(table, 0.01),
        chance=chance,
        without_sink=table.clone(),
        sink_rows_dropped=torch.zeros(table.shape, dtype=torch.long),
        unexplained=torch.full((N_LAYERS, N_HEADS), 0.1),
        variants=torch.zeros(0, N_LAYERS, N_HEADS),
        variant_names=[],
        names=list(SCORES),
        n_queries=dict.fromkeys(SCORES, 100),
        n_texts=dict.fromkeys(SCORES, 32),
        not_used={"period-1": 2},
        missing={},
    )
