"""Wrong calls of what writes texts, and of interventions."""

from __future__ import annotations

import torch

import mechrep
from mechrep import Decoding, Heads, Neurons, SinkPatch, interventions
from tests.badinput.case import wrong

nan, inf = float("nan"), float("inf")
generate = mechrep.generate
wrong(
    "generate",
    "max_new_tokens",
    *(lambda w, n=n: generate(w.model, "The sea", max_new_tokens=n) for n in (0, -1, True, 2.0, "5", None, 2**40)),
)
wrong("generate", "positions", lambda w: generate(w.model, "The sea", max_new_tokens=10**5))
wrong(
    "generate",
    "top_k",
    lambda w: generate(w.model, "The sea", top_k=5),
    lambda w: generate(w.model, "The sea", top_k=0, temperature=1.0),
)
wrong(
    "generate",
    "temperature",
    *(lambda w, t=t: generate(w.model, "The sea", temperature=t) for t in (-1.0, nan, inf, "hot", True, None)),
)
wrong("generate", "temperature", lambda w: generate(w.model, "The sea", temprature=1.0))
wrong(
    "generate",
    "seed",
    *(lambda w, s=s: generate(w.model, "The sea", seed=s) for s in (-1, 1.5, "1", None, True, 2**70)),
)
wrong("generate", "view", lambda w: generate(w.model, "The sea", view="nosuch"))
wrong(
    "generate",
    "suppress",
    *(lambda w, s=s: generate(w.model, "The sea", suppress=s) for s in ([10**6], [-1], 3, [1.5], "a", [True])),
)
wrong("generate", "preset", lambda w: generate(w.model, "The sea", stop_when="nosuch"))
wrong(
    "generate",
    "stop_when",
    lambda w: generate(w.model, "The sea", stop_when=3),
    lambda w: generate(w.model, "The sea", stop_when=[3]),
)
wrong(
    "generate",
    "decoding",
    lambda w: generate(w.model, "The sea", decoding=Decoding(), temperature=0.0),
    lambda w: generate(w.model, "The sea", decoding="greedy"),
)
wrong(
    "generate",
    "starts",
    *(
        lambda w, s=s: generate(w.model, "The sea", interventions=Neurons([(0, 1)]), starts=s)
        for s in ([9999], [-1], [0, 0], [], 3, [True], [0.0], "0")
    ),
)
wrong(
    "generate",
    "interventions",
    lambda w: generate(w.model, "The sea", interventions=[None, None]),
    lambda w: generate(w.model, "The sea", interventions="L2H0"),
    lambda w: generate(w.model, "The sea", interventions=[3]),
)
wrong("generate", "layer", lambda w: generate(w.model, "The sea", interventions=Neurons([(9, 0)])))
wrong("generate", "neuron", lambda w: generate(w.model, "The sea", interventions=Neurons([(0, 10**6)])))
wrong("generate", "head", lambda w: generate(w.model, "The sea", interventions=Heads([(0, 9)])))
wrong("generate", "empty", lambda w: generate(w.model, ""), lambda w: generate(w.model, []))
wrong("generate", "vocabulary", lambda w: generate(w.model, w.foreign))
wrong("generate", "texts", lambda w: generate(w.model, 3), lambda w: generate(w.model, None))
wrong(
    "compare",
    "conditions",
    lambda w: mechrep.compare(w.model, "The sea", {"a": None}),
    lambda w: mechrep.compare(w.model, "The sea", {}),
)
wrong(
    "compare",
    "intervention",
    lambda w: mechrep.compare(w.model, "The sea", 3),
    lambda w: mechrep.compare(w.model, "The sea", {"a": None, "b": 3}),
)
wrong(
    "compare",
    "top_k",
    *(lambda w, k=k: mechrep.compare(w.model, "The sea", "L2H0", top_k=k) for k in (0, 10**6, True, 2.0)),
)
wrong(
    "compare",
    "L3H1",
    lambda w: mechrep.compare(w.model, "The sea", "head 3"),
    lambda w: mechrep.compare(w.model, "The sea", ""),
)
wrong("collect_loops", "preset", lambda w: mechrep.collect_loops(w.model, 2, preset="mahaut2025"))
wrong("natural_texts", "preset", lambda w: mechrep.natural_texts(w.model, "The sea", preset="nosuch"))
wrong("natural_texts", "cut", lambda w: mechrep.natural_texts(w.model, "The sea", cut="nosuch"))
wrong("natural_texts", "positions", lambda w: mechrep.natural_texts(w.model, "The sea", max_new_tokens=10**5))
wrong("induced_texts", "builder", lambda w: mechrep.induced_texts(w.model, "The sea", builder="nosuch"))
wrong("induced_texts", "copies", lambda w: mechrep.induced_texts(w.model, "The sea", 0))
wrong("control_texts", "preset", lambda w: mechrep.control_texts(w.model, "The sea", preset="nosuch"))
wrong("PatchedModel", "SinkPatch", lambda w: mechrep.PatchedModel(w.other.plain, Neurons([(0, 1)])))
wrong("PatchedModel", "Linear", lambda w: mechrep.PatchedModel(torch.nn.Linear(2, 2), SinkPatch(0, [1])))
wrong(
    "PatchedModel",
    "patch",
    lambda w: mechrep.PatchedModel(w.other, "L0N1"),
    lambda w: mechrep.PatchedModel(w.other, None),
)
wrong("PatchedModel", "layer", lambda w: mechrep.PatchedModel(w.other, SinkPatch(9, [1])))
wrong("PatchedModel", "neuron", lambda w: mechrep.PatchedModel(w.other, SinkPatch(0, [999])))

for _kind in (Neurons, Heads, mechrep.Experts):
    _who = _kind.__name__
    wrong(_who, "twice", lambda w, kind=_kind: kind([(0, 1), (0, 1)]))
    wrong(
        _who,
        "pairs",
        *(
            lambda w, u=u, kind=_kind: kind(u)
            for u in ([7], [(0, 1, 2)], [(0.5, 1)], [(0, "a")], [(0, True)], [None], 3, None)
        ),
    )
    wrong(_who, "L3H1", lambda w, kind=_kind: kind("third"), lambda w, kind=_kind: kind(""))
    wrong(_who, "when", lambda w, kind=_kind: kind([(0, 1)], when="nosuch"))
    wrong(_who, "layer", lambda w, kind=_kind: kind([(-1, 0)]).hooks(w.other))
wrong(
    "Neurons",
    "op",
    lambda w: Neurons([(0, 1)], "boost"),
    lambda w: Neurons([(0, 1)], 3),
    lambda w: Neurons([(0, 1)], None),
)
wrong("Neurons", "site", lambda w: Neurons([(0, 1)], site="resid_pre"), lambda w: Neurons([(0, 1)], site=3))
wrong("Neurons", "to_bos", lambda w: Neurons([(0, 1)], "to_bos"))
wrong("Neurons", "a head", lambda w: Neurons("L2H0"))
wrong("Heads", "a neuron", lambda w: Heads("L2N0"))
wrong("Heads", "op", lambda w: Heads([(0, 1)], "boost"))
wrong("Heads", "add(1)", lambda w: Heads([(0, 1)], "add"))
wrong("Neurons.hooks", "starts", lambda w: Neurons([(0, 1)], when="from_onset").hooks(w.other))
wrong(
    "Neurons.hooks",
    "starts",
    *(
        lambda w, s=s: Neurons([(0, 1)], when="from_onset").hooks(w.other, s)
        for s in ([0], 3, torch.tensor([0.5]), torch.tensor([[0]]))
    ),
)
wrong("Heads.hooks", "head", lambda w: Heads([(0, 9)]).hooks(w.other))
wrong("SinkPatch", "neurons", *(lambda w, n=n: SinkPatch(0, n) for n in ([], [1, 1], [0.5], "a", None, [True])))
wrong(
    "SinkPatch",
    "layer",
    lambda w: SinkPatch("x", [1]),
    lambda w: SinkPatch(0.5, [1]),
    lambda w: SinkPatch(True, [1]),
    lambda w: SinkPatch(None),
)
wrong("SinkPatch", "one layer", lambda w: SinkPatch("L0N1, L1N2"))
wrong("SinkPatch", "when", lambda w: SinkPatch(0, [1], when="nosuch"))
wrong("SinkPatch", "neuron -1", lambda w: SinkPatch(0, [-1]).hooks(w.other))
wrong(
    "SinkPatch.from_dict",
    "keys",
    lambda w: SinkPatch.from_dict({}),
    lambda w: SinkPatch.from_dict({"layer": 1, "neurons": [1], "x": 2}),
)
wrong("interventions.scale", "factor", *(lambda w, f=f: interventions.scale(f) for f in (nan, inf, "2", None, True)))
wrong(
    "interventions.add",
    "value",
    *(
        lambda w, f=f: interventions.add(f)
        for f in (nan, inf, "2", None, True, torch.zeros(3), torch.zeros(2, 3, dtype=torch.int64))
    ),
)
wrong(
    "interventions.mean",
    "values",
    *(lambda w, f=f: interventions.mean(f) for f in (3.0, torch.zeros(3), torch.zeros(2, 3, dtype=torch.int64))),
)
wrong("interventions.resample", "bank", *(lambda w, f=f: interventions.resample(f) for f in (3.0, torch.zeros(2))))
wrong("interventions.resample", "seed", lambda w: interventions.resample(torch.zeros(1, 2, 3), seed=-1))
wrong(
    "interventions.mean", "for every", lambda w: Neurons([(0, 1)], interventions.mean(torch.zeros(2, 3))).hooks(w.other)
)
wrong(
    "interventions.mean",
    "NaN",
    *(lambda w, v=v: Neurons([(0, 1)], interventions.mean(torch.full((3, 48), v))).hooks(w.other) for v in (nan, inf)),
)
wrong("Combined", "when", lambda w: Neurons([(0, 1)], when="all") + Neurons([(0, 2)], when="last"))
wrong(
    "Combined",
    "Intervention",
    lambda w: Neurons([(0, 1)]) + 3,
    lambda w: Neurons([(0, 1)]) + None,
    lambda w: Neurons([(0, 1)]) + "L2H0",
)
