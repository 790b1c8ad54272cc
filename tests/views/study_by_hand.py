"""A result on neurons made by hand: every number in it is known."""

from __future__ import annotations

from typing import Any

import torch

from mechrep.measures.neurons import RepetitionNeuronResult
from mechrep.provenance import Provenance

SCRIPT = "</script><script>alert(1)</script>"
N_LAYERS, D_MLP, R = 6, 200, 10


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
