"""Studies of the first layer made by hand: one head and one neuron mark the first token, or nothing does."""

from __future__ import annotations

import torch

from mechrep.measures.first_token import FirstTokenParts
from mechrep.measures.first_token_detectors import ConvergenceResult, FirstDetectorResult
from mechrep.measures.first_token_heads import HeadCutResult
from mechrep.measures.first_token_mass import OtherTokenResult
from mechrep.studies.first_layer import FirstLayerStudy
from tests.views import study_by_hand as by_hand

HEADS, NEURONS, POSITIONS, TEXTS = 4, 12, 8, 3
CARRIER, DETECTOR = 2, 5
REPEATS = (1, 2, 4, 8, 16, 32, 64, 96, 128)
NULLS = (0.51, 0.55, 0.52, 0.53)


def mass(name: str) -> OtherTokenResult:
    """Heads look at other tokens with 0.2, 0.4, 0.6 and 0.8 of their attention, at every position but the first."""
    shares = torch.tensor([0.2, 0.4, 0.6, 0.8])
    by_position = shares[:, None].repeat(1, POSITIONS)
    by_position[:, 0] = 0
    small = torch.full((HEADS,), 1e-7)
    return OtherTokenResult(
        by_hand.provenance(name),
        mass=shares,
        by_position=by_position,
        uniform_mass=0.9,
        identity_error=small,
        same_value_error=small.clone(),
        bound_excess=small.clone(),
        value_shift=shares.clone(),
        head_shift=shares.clone(),
        shift_by_position=by_position.sum(0),
        n_texts=10,
        n_queries=70,
    )


def detectors(name: str, found: bool) -> FirstDetectorResult:
    """One neuron tells first tokens on other words, or no better than shuffled places do."""
    area = torch.full((NEURONS,), 0.5)
    area[DETECTOR] = 0.95 if found else 0.54
    ranking = [DETECTOR, 0, 1]
    half = torch.tensor([-0.03, 0.03])
    return FirstDetectorResult(
        by_hand.provenance(name),
        layer=0,
        score=area - 0.5,
        selection_auroc=area.clone(),
        auroc=area,
        first_second=area.clone(),
        second_third=torch.full((NEURONS,), 0.5),
        neurons=ranking,
        intervals=area[ranking][:, None] + half,
        values=torch.randn(30, 3, len(ranking), generator=torch.Generator().manual_seed(0)),
        state_auroc=float(area[DETECTOR]),
        state_interval=[float(area[DETECTOR]) - 0.03, float(area[DETECTOR]) + 0.03],
        shuffled_aurocs=[0.52, 0.56],
        random_aurocs=[0.5, 0.51],
        n_selection=90,
        n_test=80,
    )


def cuts(name: str, found: bool, sink: bool) -> HeadCutResult:
    """Cutting one head takes the mark, in both kinds of cut; cutting all heads takes as much."""
    lost = torch.zeros(2, HEADS + 1)
    if found:
        lost[:, [CARRIER, HEADS]] = 0.4
    ends = lost[..., None] + torch.tensor([-0.02, 0.02])
    unknown = torch.full_like(lost, torch.nan)
    area = 0.95 if found else 0.54
    return HeadCutResult(
        by_hand.provenance(name),
        detector=[0, DETECTOR],
        detector_auroc=area,
        state_auroc=area,
        sink_layer=1 if sink else None,
        sink_reason="" if sink else "no norm sink <i>here</i>",
        log_ratio=2.5 if sink else float("nan"),
        detector_loss=lost,
        state_loss=lost.clone(),
        norm_loss=3 * lost if sink else unknown,
        detector_interval=ends,
        state_interval=ends.clone(),
        norm_interval=3 * ends if sink else unknown[..., None].repeat(1, 1, 2),
    )


def convergence(name: str, positions: str = "rotary") -> ConvergenceResult:
    """Odds and distances fall exactly like 1/n; with learned positions distances stay where they are."""
    n = torch.tensor(REPEATS, dtype=torch.float64)
    learned = positions == "standard"
    odds = (4 / n).expand(TEXTS, HEADS, -1)
    distance = (torch.ones_like(n) if learned else 1 / n).expand(TEXTS, 2, -1)
    return ConvergenceResult.from_measured(
        by_hand.provenance(name),
        token_ids=[100, 101, 102],
        prefix_length=3,
        repeats=list(REPEATS),
        distance=distance,
        limit_norm=torch.full((TEXTS, 2), 2.0, dtype=torch.float64),
        mass=odds / (1 + odds),
        odds=odds,
        window=0,
        pure_deviation=torch.full((TEXTS, 5), 0.3 if learned else 1e-7, dtype=torch.float64),
        value_deviation=torch.full((TEXTS,), 0.3 if learned else 1e-7, dtype=torch.float64),
        positions=positions,
    )


def study(name: str = "hand", *, found: bool = True, sink: bool = True, positions: str = "rotary") -> FirstLayerStudy:
    """A whole study."""
    parts = FirstTokenParts(
        mass(name),
        detectors(name, found),
        cuts(name, found, sink),
        convergence(name, positions),
        NULLS,
        by_hand.provenance(name),
    )
    return FirstLayerStudy(name, parts, parts.summary(), by_hand.provenance(name, study="first-layer"))
