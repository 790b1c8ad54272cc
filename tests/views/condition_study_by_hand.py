"""A study of conditions made by hand: which heads carry what is known, and its texts try to break the page."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pandas as pd
import torch

from mechrep.measures.natural_vs_induced import MEASURES, ConditionContrastResult
from mechrep.studies.natural_vs_induced_study import BuilderContrast, ConditionStudy
from mechrep.studies.text_kind_effects import HeadContrastResult, compare_heads
from mechrep.text.corpus import Corpus
from tests.views import head_study_by_hand, study_by_hand

N_LAYERS, N_HEADS, K = head_study_by_hand.N_LAYERS, head_study_by_hand.N_HEADS, 3
COPIES = [(4, 1), (2, 3), (0, 0)]  # what induced copying loses without each: 3, 2 and 1 nats
LOOPS = [(1, 0), (3, 2), (5, 1)]
PAPER = "differs from the paper"


def corpus(n: int, condition: str, script: bool = False) -> Corpus:
    """Texts of a condition, from prompts 0, 1, 2, ..."""
    names = [f"{study_by_hand.SCRIPT if script else 'prompt'}-{i}" for i in range(n)]
    frame = pd.DataFrame({"id": [f"{name}/{condition}" for name in names], "prompt": names, "condition": condition})
    return Corpus.from_tokens([[0, 5, 6, 5, 6]] * n, frame=frame)


def effects(carried: dict[str, dict[tuple[int, int], float]], n: int, *, seed: int = 0) -> np.ndarray:
    """Effects ``[text layer head]``, those of ``n`` induced texts first: what is carried, and a little noise."""
    generator = np.random.default_rng(seed)
    parts = []
    for condition in ("induced", "natural"):
        values = 0.05 * generator.normal(size=(n, N_LAYERS, N_HEADS))
        for unit, size in carried[condition].items():
            values[:, unit[0], unit[1]] -= size * (1 + 0.1 * generator.normal(size=n))
        parts.append(values)
    return np.concatenate(parts)


def head_result(values: np.ndarray, name: str) -> HeadContrastResult:
    """Every head cut alone."""
    n = len(values) // 2
    return HeadContrastResult(
        study_by_hand.provenance(name),
        effects=torch.from_numpy(values)[None, :, None].contiguous(),
        untouched=torch.full((2 * n, 1), -0.5, dtype=torch.float64),
        ops=["mean"],
        ids=[f"{condition}-{i}" for condition in ("induced", "natural") for i in range(n)],
        conditions=["induced"] * n + ["natural"] * n,
        prompts=[f"p{i}" for i in range(n)] * 2,
        new_tokens=0,
    )


def seen(values: np.ndarray, name: str) -> ConditionContrastResult:
    """Confidence that rises with the cycles, and the same effects as direct attribution."""
    n, shape = len(values), (len(values), 2)
    measures = torch.zeros(len(MEASURES), *shape, dtype=torch.float64)
    measures[MEASURES.index("probability")] = torch.tensor([0.25, 0.75])
    measures[MEASURES.index("entropy")] = torch.tensor([2.0, 1.0])
    heads = torch.from_numpy(values)[:, None].expand(-1, 2, -1, -1).contiguous()
    return ConditionContrastResult(
        study_by_hand.provenance(name),
        measures=measures,
        lens=torch.full((*shape, N_LAYERS + 1), -1.0, dtype=torch.float64),
        heads=heads,
        mlps=torch.zeros(*shape, N_LAYERS, dtype=torch.float64),
        counts=torch.ones(shape, dtype=torch.long),
        ids=[f"text-{i}" for i in range(n)],
        conditions=["induced"] * (n // 2) + ["natural"] * (n // 2),
        builders=["icl_from_cycle(2)"] * (n // 2) + ["natural"] * (n // 2),
        prompts=[f"p{i}" for i in range(n // 2)] * 2,
        copies=1,
    )


def sets(n: int, own: float) -> pd.DataFrame:
    """Each condition's first heads cost it ``own`` nats, the other condition nothing; controls cost 0.1 or nothing."""
    rows = []
    heads = {"induced": COPIES, "natural": LOOPS}
    for owner, units in heads.items():
        names = " ".join(f"{layer}.{head}" for layer, head in units)
        for condition in heads:
            change = own if owner == condition else 0.0
            rows.append((owner, "top", 0, names, condition, change, change - 0.05, change + 0.05, n))
            for selection in ("random", "layer_matched"):
                for draw, beside in enumerate((-0.1, 0.0)):
                    ends = (beside, beside - 0.05, beside + 0.05)
                    rows.append((owner, selection, draw, f"0.{draw + 1}", condition, *ends, n))
    columns = ["heads_of", "selection", "draw", "heads", "condition", "effect", "low", "high", "n"]
    return pd.DataFrame(rows, columns=columns)


@functools.cache
def contrast(kind: str = "other heads", n: int = 24, own: float = -2.0, name: str = "hand") -> BuilderContrast:
    """``"other heads"``: three for each condition.  ``"same heads"``: the same three, half as strong in loops.

    ``"not found"``: the same three, equally strong.  ``"natural"``: loops rest on one head, copying on three.
    """
    three = {unit: size for unit, size in zip(COPIES, (3.0, 2.0, 1.0), strict=True)}
    natural = {
        "other heads": {unit: size for unit, size in zip(LOOPS, (3.0, 2.0, 1.0), strict=True)},
        "same heads": {unit: size / 2 for unit, size in three.items()},
        "not found": three,
        "natural": {COPIES[0]: 3.0},
    }[kind]
    result = head_result(effects({"induced": three, "natural": natural}, n), name)
    one = result.head_effects()
    tables = {"ablation": one}
    return BuilderContrast(
        builder="icl_from_cycle(2)",
        induced=corpus(n, "induced"),
        seen=seen(one.values, name),
        cut=result,
        patched=None,
        heads={"ablation": one.contrast(), "attribution": one.contrast()},
        comparison={measure: compare_heads(table, K, swaps=200) for measure, table in tables.items()},
        specialisation={measure: table.specialisation(draws=100) for measure, table in tables.items()},
        overlap={measure: table.overlap(head_study_by_hand.scores(), K) for measure, table in tables.items()},
        sets=sets(n // 2, own) if n > 3 else None,
        left_out={"patching": f"no control text {study_by_hand.SCRIPT}"},
    )


def study(kind: str = "other heads", *, name: str = "hand", **changes: Any) -> ConditionStudy:
    """A whole study; the texts shown again gave nothing."""
    found = contrast(kind, name=name, **changes)
    n = len(found.induced)
    counts = {"loops_naturally": (n, n + 2), "eligible_for_icl": (2, n + 2), "copies_in_icl": (n - 1, n)}
    flow = pd.DataFrame([(flag, *numbers) for flag, numbers in counts.items()], columns=["flag", "n", "of"])
    return ConditionStudy(
        model_name=name,
        preset="mechrep",
        prompts=n + 2,
        k=K,
        op="mean",
        natural=corpus(n, "natural", script=True),
        control=None,
        flow={"cycle": flow},
        texts={"cycle": pd.DataFrame({"prompt": [f"p{i}" for i in range(n + 2)]})},
        contrasts={"cycle": found},
        scores=head_study_by_hand.scores(name=name),
        new_tokens=1234,
        left_out={"text": f"every text loops {study_by_hand.SCRIPT}"},
        provenance=study_by_hand.provenance(name, study="conditions", seeds=[0, 1]),
    )
