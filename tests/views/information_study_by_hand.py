"""A study of token information made by hand: who looks where is known, and its texts try to break the page."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch

from mechrep.measures.token_information import GROUPS, QUANTITIES, TokenInformationResult
from mechrep.measures.token_information_masks import InformationCut
from mechrep.studies.token_information_study import FREE, HELD_OUT, LOOPS, InformationStudy
from mechrep.text.corpus import Corpus
from tests.views import study_by_hand

N_LAYERS, N_HEADS, N_TEXTS, QUERIES = 3, 2, 20, 10
PLACE = GROUPS.index("low_surprisal")


def attention(bias: dict[str, float], n: int = N_TEXTS, name: str = "hand") -> TokenInformationResult:
    """Every head looks at low-surprisal tokens so many times as a reader by distance would, a little noise aside."""
    generator, parts, frames = np.random.default_rng(0), [], []
    features = len(GROUPS) + len(QUANTITIES)
    shape = (n, N_LAYERS, N_HEADS, features)
    for condition, times in bias.items():
        values = np.full(shape, 0.25 * QUERIES)
        values[..., PLACE] *= times * (1 + 0.02 * generator.normal(size=n))[:, None, None]
        parts.append(values)
        prompts = [f"{condition}-{i}" for i in range(n)]
        frames.append(pd.DataFrame({"id": prompts, "condition": condition, "prompt": prompts}))
    attended = torch.from_numpy(np.concatenate(parts))
    heads = attended.shape[:3]
    return TokenInformationResult.from_state(
        {
            "attended": attended,
            "visible": torch.full(attended.shape, 0.2 * QUERIES, dtype=torch.float64),
            "matched": torch.full(attended.shape, 0.25 * QUERIES, dtype=torch.float64),
            "queries": torch.full(heads, float(QUERIES), dtype=torch.float64),
            "dropped": torch.zeros(heads, dtype=torch.float64),
            "on_first": torch.full(heads, 0.3 * QUERIES, dtype=torch.float64),
            "on_sinks": torch.zeros(heads, dtype=torch.float64),
        },
        pd.concat(frames, ignore_index=True),
        study_by_hand.provenance(name),
    )


def cut(low: float, others: float, way: str, n: int = N_TEXTS, name: str = "hand") -> InformationCut:
    """Texts that lose so much without low-information tokens, and so much without others."""
    noise = 0.01 * torch.from_numpy(np.random.default_rng(1).normal(size=n))
    untouched = torch.full((n,), -0.5, dtype=torch.float64)
    return InformationCut(
        study_by_hand.provenance(name),
        untouched=untouched,
        low=untouched + low + noise,
        others=untouched + others - noise,
        pairs=torch.full((n,), 4.0, dtype=torch.float64),
        distance=torch.full((n,), 2.0, dtype=torch.float64),
        ids=[f"loop-{i}" for i in range(n)],
        conditions=[LOOPS] * n,
        way=way,
        left_out=1,
    )


def study(
    loops: float = 2.0,
    free: float | None = 1.0,
    *,
    low: float = -1.0,
    others: float = -0.2,
    n: int = N_TEXTS,
    name: str = "hand",
    **changes: Any,
) -> InformationStudy:
    """Bias of loops and of loop-free texts towards low surprisal; what loops lose without such tokens and others."""
    bias = {LOOPS: loops} | ({} if free is None else {FREE: free, HELD_OUT: 1.0})
    result = attention(bias, n, name)
    frame = pd.DataFrame({"id": result.ids, "condition": result.conditions, "prompt": result.prompts})
    fields: dict[str, Any] = {
        "model_name": name,
        "preset": "mechrep",
        "corpus": Corpus.from_tokens([[0, 5, 6]] * len(frame), frame=frame),
        "attention": result,
        "published": result,
        "bias": {kind: result.summary(matched=kind == "matched", draws=200) for kind in ("matched", "visible")},
        "compared": {one: result.compare(LOOPS, one, matched=True, draws=200) for one in bias if one != LOOPS},
        "sinks": result.sinks(),
        "cuts": {way: cut(low, others, way, n, name) for way in ("mask", "swap")},
        "left_out": {FREE: f"a reason {study_by_hand.SCRIPT}"},
        "provenance": study_by_hand.provenance(name, study="information"),
    }
    return InformationStudy(**(fields | changes))
