"""A study made by hand: every number in it is known, and its texts try to break the page."""

from __future__ import annotations

from typing import Any

import torch

from mechrep.ablation.old_loss import LossResult
from mechrep.ablation.old_sweeps import SweepResult
from mechrep.measures.neurons import RepetitionNeuronResult
from mechrep.provenance import Provenance
from mechrep.studies.neurons import RepetitionStudy
from mechrep.text.corpus import Corpus

SCRIPT = "</script><script>alert(1)</script>"
N_LAYERS, D_MLP, R = 6, 200, 10
CONTROLS = ("random", "layer_matched", "activation_matched")
KS = (10, 100)
N_TEXTS = 40
# Texts of N_TEXTS that repeat: of the top neurons for each k, and of the controls for each of two draws.
CUT = {"top": (30, 4), "random": (40, 38), "layer_matched": (39, 34), "activation_matched": (38, 30)}
BOOSTED = {"top": (2, 25), "random": (0, 3), "layer_matched": (1, 6), "activation_matched": (0, 8)}


def provenance(name: str = "hand", **config: Any) -> Provenance:
    """Where a number made by hand comes from."""
    return Provenance({"name": name, "revision": None, "fingerprint": "made by hand"}, {"texts": 3}, config)


def neurons(name: str = "hand", n_layers: int = N_LAYERS, d_mlp: int = D_MLP) -> RepetitionNeuronResult:
    """Neuron ``(n_layers - 1, 7)`` rises most, all others by known small amounts; all but one layer hold some."""
    generator = torch.Generator().manual_seed(0)
    shape = (n_layers, d_mlp)
    delta = torch.randn(shape, generator=generator) * 0.02
    delta[-1, 7] = 1.0
    normal = torch.rand(shape, generator=generator)
    profile = torch.rand(n_layers, 2 * R + 1, d_mlp, generator=generator)
    error, spread = torch.full(shape, 0.01), torch.ones(shape)
    return RepetitionNeuronResult(
        provenance(name, window="clean", site="gate_act", preset="mechrep", r=R),
        delta=delta,
        normal_mean=normal,
        repetition_mean=normal + delta,
        normal_sd=spread,
        repetition_sd=spread.clone(),
        delta_published=delta.clone(),
        delta_clean=delta.clone(),
        standard_error=error,
        t=delta / error,
        dprime=delta.clone(),
        profile=profile,
        n_texts=32,
        n_dropped=1,
        r=R,
        texts=[f"text-{i}" for i in range(32)],
    )


def sweep(
    kind: str = "deactivation", name: str = "hand", counts: dict[str, tuple[int, ...]] | None = None
) -> SweepResult:
    """Counts of repeating texts per selection and k; the second draw of a control has one text less."""
    if counts is None:
        counts = CUT if kind == "deactivation" else BOOSTED
    base = N_TEXTS if kind == "deactivation" else 0
    cells = [("none", 0, 0, base)]
    for selection, per_k in counts.items():
        for k, count in zip(KS, per_k, strict=True):
            draws = (count,) if selection == "top" else (count, max(0, count - 1))
            cells += [(selection, k, seed, draw) for seed, draw in enumerate(draws)]
    outcomes = [
        {
            "selection": selection,
            "k": k,
            "seed": seed,
            "text": f"text-{text}",
            "repeating": text < count,
            "escaped_at": None if text < count else 5.0,
            "relooped": False,
            "new_period": None,
            "new_tokens": 160,
            "stop_reason": "length",
        }
        for selection, k, seed, count in cells
        for text in range(N_TEXTS)
    ]
    return SweepResult(provenance(name, op="zero", conditions=[["top", 10, 0, [[5, 7]]]]), kind, "mechrep", outcomes)


def losses(op: str = "zero", name: str = "hand", scale: float = 0.1) -> LossResult:
    """Loss 2 for the untouched model, more for every condition after it."""
    cells: list[list[Any]] = [["none", 0, 0]]
    for k in KS:
        cells += [["top", k, 0], *([control, k, seed] for control in CONTROLS for seed in range(2))]
    table = 2 + scale * torch.arange(len(cells))[:, None] / len(cells) + torch.tensor([[-0.1, 0.0, 0.1]])
    return LossResult(provenance(name, op=op), op, cells, table)


def study(
    name: str = "hand", *, activation: bool = True, counts: dict[str, tuple[int, ...]] | None = None
) -> RepetitionStudy:
    """A whole study; its examples hold markup."""
    conditions = ["looping"] * 3 + (["loop_free"] if activation else [])
    corpus = Corpus.from_tokens([[0, 5, 6, 5, 6]] * len(conditions), source="hand").with_columns(
        condition=conditions, split=["find", "find", "test", "find"][: len(conditions)]
    )
    examples = [
        {
            "text_id": f"text-{i}",
            "prompt": f"prompt {i} {SCRIPT}",
            "loop_before": " <b>before</b>",
            "first_copy": " & again",
            "loop": " & again & again" + SCRIPT,
            "cut": f" something else {i} {SCRIPT}",
            "k": 100,
        }
        for i in range(4)
    ]
    return RepetitionStudy(
        model_name=name,
        preset="mechrep",
        corpus=corpus,
        neurons=neurons(name),
        deactivation=sweep("deactivation", name, counts),
        activation=sweep("activation", name) if activation else None,
        deactivation_loss=losses("zero", name),
        activation_loss=losses("add(1)", name, scale=6.0),
        prompts=120,
        loop_share=0.25,
        loop_share_interval=(0.2, 0.31),
        examples=examples,
        provenance=provenance(name, study="repetition", note=SCRIPT),
    )
