"""Wrong calls of circuits and results."""

from __future__ import annotations

import mechrep
from mechrep.errors import StoreError
from tests.badinput.case import file, folder, wrong

nan, inf = float("nan"), float("inf")
Circuit = mechrep.Circuit
wrong("Circuit", "empty", lambda w: Circuit("a"), lambda w: Circuit("", heads=[(0, 1)]))
wrong(
    "Circuit",
    "heads",
    *(
        lambda w, h=h: Circuit("a", heads=h)
        for h in ([(0, 1), (0, 1)], [(-1, 0)], [(0, 0.5)], [3], 3, [None], [(0, True)])
    ),
)
wrong("Circuit", "a neuron", lambda w: Circuit("a", heads="L2N0"))
wrong("Circuit", "layers", lambda w: Circuit("a", layers=[("nosuch", 0)]), lambda w: Circuit("a", layers=3))
wrong("Circuit", "sizes", lambda w: Circuit("a", heads=[(0, 1)], sizes={"nosuch": 3}))
wrong("Circuit", "provenance", lambda w: Circuit("a", heads=[(0, 1)], provenance={"x": object()}))
wrong("Circuit.from_heads", "k", *(lambda w, k=k: Circuit.from_heads(w.heads, k) for k in (-1, 99)))
wrong("Circuit.from_heads", "score", lambda w: Circuit.from_heads(w.heads, 1, score="nosuch"))
wrong("Circuit.from_heads", "result", lambda w: Circuit.from_heads("heads", 1), lambda w: Circuit.from_heads(None, 1))
wrong("Circuit.from_neurons", "k", lambda w: Circuit.from_neurons(w.neurons, 10**6))
wrong("Circuit.only", "one of", lambda w: w.circuit.only("nosuch"), lambda w: w.circuit.only("layers"))
wrong("Circuit.check", "layer", lambda w: Circuit("a", heads=[(9, 0)]).check(w.anatomy))
wrong("Circuit.check", "head", lambda w: Circuit("a", heads=[(0, 9)]).check(w.anatomy))
wrong("Circuit.check_model", "weights", lambda w: Circuit.from_heads(w.heads, 1).check_model(w.sibling))
wrong("Circuit.check_model", "circuit of this model", lambda w: Circuit.from_heads(w.heads, 1).check_model(w.other))
wrong("Circuit.intervention", "op", lambda w: w.circuit.intervention("nosuch"), lambda w: w.circuit.intervention(3))
wrong("Circuit.load", "nosuch.json", lambda w: Circuit.load(w.folder / "nosuch.json"), error=StoreError)
wrong("Circuit.load", "broken.json", lambda w: Circuit.load(file(w, "broken.json", "{")), error=StoreError)
wrong(
    "Circuit.load",
    "list.json",
    lambda w: Circuit.load(file(w, "list.json", "[]")),
    lambda w: Circuit.load(file(w, "list.json", "{}")),
    error=StoreError,
)
wrong("Circuit.save", "x.json", lambda w: w.circuit.save(file(w, "plain", "") / "x.json"), error=StoreError)
wrong("RepetitionNeuronResult.top", "k = ", *(lambda w, k=k: w.neurons.top(k) for k in (-1, 10**6)))
wrong("RepetitionNeuronResult.top", "score", lambda w: w.neurons.top(1, "nosuch"))
wrong("RepetitionNeuronResult.ranking", "score", lambda w: w.neurons.ranking("nosuch"))
wrong("RepetitionNeuronResult.routed", "window", lambda w: w.neurons.routed("nosuch"))
wrong("RepetitionNeuronResult.layer_counts", "k", lambda w: w.neurons.layer_counts(-1))
wrong("RepetitionNeuronResult.plot", "k", lambda w: w.neurons.plot(0), lambda w: w.neurons.plot(10**6))
wrong("RepetitionNeuronResult.load", "nosuch", lambda w: type(w.neurons).load(w.folder / "nosuch"), error=StoreError)
wrong("RepetitionNeuronResult.save", "plain2", lambda w: w.neurons.save(file(w, "plain2", "") / "x"), error=StoreError)
wrong(
    "HeadScoreResult.of",
    "score",
    lambda w: w.heads.of("nosuch"),
    lambda w: w.heads.row("nosuch"),
    lambda w: w.heads.ranking("nosuch"),
)
wrong("HeadScoreResult.row", "score", lambda w: w.heads.row("inductoin"))
wrong("HeadScoreResult.top", "k = ", lambda w: w.heads.top(99))
wrong("HeadScoreResult.above", "threshold", lambda w: w.heads.above(nan), lambda w: w.heads.above("0.5"))
wrong("HeadScoreResult.clear", "score", lambda w: w.heads.clear("nosuch"))
wrong(
    "HeadScoreResult.load",
    "RepetitionNeuronResult",
    lambda w: (w.neurons.save(w.folder / "n"), type(w.heads).load(w.folder / "n")),
    error=StoreError,
)
wrong("HeadScoreResult.save_figure", "x.bmp", lambda w: w.heads.save_figure(w.folder / "x.bmp"))
wrong("load", "nosuch", lambda w: mechrep.load(w.folder / "nosuch"), error=StoreError)
wrong("load", "odd.txt", lambda w: mechrep.load(file(w, "odd.txt", "x")), error=StoreError)
wrong("load", "odd", lambda w: mechrep.load(folder(w, "odd")), error=StoreError)
wrong("load", "save()", lambda w: mechrep.load(file(w, "r/result.json", "[]").parent), error=StoreError)
wrong("save_figure", "x.bmp", lambda w: mechrep.save_figure(w.heads.plot(), w.folder / "x.bmp"))
wrong(
    "save_figure",
    "figure",
    lambda w: mechrep.save_figure("no figure", w.folder / "x.html"),
    lambda w: mechrep.save_figure(None, w.folder / "x.html"),
)
wrong("Effects.of", "measure", lambda w: w.effects.of("nosuch"))
wrong("Effects.select", "measure", lambda w: w.effects.select(measures=["nosuch"]))
wrong("Effects.top", "k = ", lambda w: w.effects.top(99))
wrong("Effects.curve", "x", lambda w: w.effects.curve(x="nosuch"))
wrong("Effects.summary", "within", lambda w: w.effects.summary("nosuch"))
wrong("Comparison.parting", "condition", lambda w: w.comparison.parting("nosuch"))
wrong("HeadCompositionResult.of", "mode", lambda w: w.composition.of("X"), lambda w: w.composition.top(1, "X"))
wrong("HeadCompositionResult.top", "k = ", lambda w: w.composition.top(10**6))
wrong(
    "HeadCompositionResult.with_sources",
    "sources",
    *(lambda w, s=s: w.composition.with_sources(s, "K") for s in ([], [(9, 0)], [(0, -1)], 3, [3])),
)
wrong("SinkNormResult.top", "k = ", lambda w: w.norms.top(99))
wrong("RepeatNormResult.moved", "layer", lambda w: w.repeat_norms.moved(9, w.norms.other_norm))
wrong(
    "RepeatNormResult.moved",
    "typical",
    lambda w: w.repeat_norms.moved(1, w.norms.other_norm[:2]),
    lambda w: w.repeat_norms.moved(1, 3.0),
)
wrong("OVClusterResult.by_set", "kind", lambda w: w.cluster.by_set(w.cluster.signal, "nosuch"))
wrong("OVClusterResult.p_norm", "layer", lambda w: w.cluster.p_norm(9))
wrong("QKAttributionResult.marginals", "side", lambda w: w.qk.marginals("nosuch"))
wrong("AttentionSinkResult.top", "k = ", lambda w: w.sinks.top(10**6), lambda w: w.sinks.top(-1))
wrong("OVScoreResult.of", "score", lambda w: w.ov.of("nosuch"))
