"""Studies of training made by hand: every curve is planted, so what the study has to find is known."""

from __future__ import annotations

import numpy as np
import torch

from mechrep.ablation.effects import BASELINE, CHECKPOINT, Condition, Effects, Measure
from mechrep.provenance import Provenance
from mechrep.studies.training import TrainingStudy, study_of_checkpoints
from mechrep.studies.training_heads import HEAD_EFFECTS

CHECKPOINTS, PROMPTS, GROUPS = 12, 24, 8
N_LAYERS, N_HEADS = 4, 3
NEVER = CHECKPOINTS  # a place behind the last checkpoint


def share(place: int, *, before: float = 0.0, after: float = 1.0, seed: int = 0) -> np.ndarray:
    """Prompts that have a flag: a share of them up to a checkpoint, another behind it."""
    rng = np.random.default_rng(seed)
    level = np.where(np.arange(CHECKPOINTS) > place, after, before)
    return (rng.random((CHECKPOINTS, PROMPTS)) < level[:, None]).astype(float)


def score(place: int, *, size: float = 0.8, noise: float = 0.02, seed: int = 0) -> np.ndarray:
    """A score of groups of texts that steps up behind a checkpoint; every group a little different."""
    rng = np.random.default_rng(seed)
    return 0.05 + rng.normal(0, noise, (CHECKPOINTS, GROUPS)) + size * (np.arange(CHECKPOINTS)[:, None] > place)


def flat(seed: int = 0) -> np.ndarray:
    """A score that never changes but by chance."""
    return score(NEVER, seed=seed)


def head_units(
    *, same: bool = True, least_loops: int = PROMPTS, place: int = 5, seed: int = 0
) -> dict[str, np.ndarray]:
    """Effects ``[checkpoint unit]`` by the names of the measure.

    Behind ``place`` the heads have effects of known, falling sizes: in both conditions the same heads, or in induced
    copying the heads of the other end.  ``least_loops`` prompts loop at the last checkpoint, all before.
    """
    rng = np.random.default_rng(seed)
    sizes = np.geomspace(3.0, 0.05, N_LAYERS * N_HEADS)[rng.permutation(N_LAYERS * N_HEADS)]
    other = sizes if same else np.sort(sizes)[::-1][np.argsort(np.argsort(sizes))]
    grown = np.where(np.arange(CHECKPOINTS) > place, 1.0, 0.0)[:, None]
    units: dict[str, np.ndarray] = {}
    for number in range(N_LAYERS * N_HEADS):
        name = f"{number // N_HEADS}.{number % N_HEADS}"
        for condition, size in (("natural", sizes[number]), ("induced", other[number])):
            units[f"{condition}/{name}"] = grown * size + rng.normal(0, 0.02, (CHECKPOINTS, PROMPTS))
        units[f"induction/{name}"] = np.abs(grown * sizes[number] / 4 + rng.normal(0, 0.01, (CHECKPOINTS, GROUPS)))
        units[f"natural/{name}"][-1, least_loops:] = np.nan
    return units


def table(series: dict[str, np.ndarray], *, heads: dict[str, np.ndarray] | None = None, name: str = "hand") -> Effects:
    """Planted series as a table; those of one kind of unit have one source."""
    sources = {one: "loops" if values.shape[1] == PROMPTS else "heads" for one, values in series.items()}
    sources |= dict.fromkeys(heads or {}, HEAD_EFFECTS)
    everything = series | (heads or {})
    n = len(next(iter(everything.values())))
    steps = [0.0, *(float(2**i) for i in range(5, 4 + n))]
    most = max(values.shape[1] for values in everything.values())
    filled = [
        np.pad(values, ((0, 0), (0, most - values.shape[1])), constant_values=np.nan) for values in everything.values()
    ]
    units = [[f"{sources[one]} {i}" for i in range(values.shape[1])] for one, values in everything.items()]
    return Effects(
        Provenance({"name": name}, {"texts": PROMPTS}, {}),
        [
            Condition("checkpoint", CHECKPOINT if step else BASELINE, model=f"step{step:.0f}", step=step)
            for step in steps
        ],
        [Measure(one, "score", "text" if values.shape[1] > 1 else "model") for one, values in everything.items()],
        units,
        units,
        torch.from_numpy(np.stack(filled).astype(float)),
        {"sources": sources, "tokens": [float("nan")] * n, "fingerprints": [""] * n},
    )


def study(
    *,
    loops: np.ndarray | None = None,
    phrases: np.ndarray | None = None,
    copies: np.ndarray | None = None,
    induction: np.ndarray | None = None,
    heads: dict[str, np.ndarray] | None = None,
    name: str = "hand",
) -> TrainingStudy:
    """Loops appear behind checkpoint 2 and induction behind 7, and the same heads carry both, unless said otherwise."""
    looping = share(2) if loops is None else loops
    series = {
        "loops_naturally": looping,
        "copies_in_icl": np.where(looping > 0, np.nan, share(8, seed=2) if copies is None else copies),
        "phrase_loops": looping if phrases is None else phrases,
        "induction": score(7) if induction is None else induction,
        "self_finding": flat(3),
    }
    given = head_units() if heads is None else heads
    return study_of_checkpoints(table(series, heads=given or None, name=name), prompts=PROMPTS)
