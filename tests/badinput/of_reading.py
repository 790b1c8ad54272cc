"""Wrong calls of what reads activations."""

from __future__ import annotations

import torch

import mechrep
from mechrep import Corpus, CorpusCache, Neurons
from mechrep.errors import NothingFoundError
from tests.badinput.case import wrong

nan, inf = float("nan"), float("inf")
tokens = Corpus.from_tokens
wrong("CorpusCache", "vocabulary", lambda w: CorpusCache(w.other, tokens([[0, 5]], model=w.model)))
wrong("CorpusCache", "vocabulary", lambda w: CorpusCache(w.model, w.foreign))
wrong("CorpusCache", "texts", lambda w: CorpusCache(w.model, 3), lambda w: CorpusCache(w.model, None))
wrong("CorpusCache", "empty", lambda w: CorpusCache(w.model, []), lambda w: CorpusCache(w.model, ""))
wrong("CorpusCache", "view", lambda w: CorpusCache(w.model, w.corpus, view="nosuch"))
wrong(
    "CorpusCache",
    "batch_size",
    *(lambda w, n=n: CorpusCache(w.model, w.corpus, batch_size=n) for n in (0, True, "all", 2.0)),
)
wrong("CorpusCache", "last", lambda w: CorpusCache(w.model, w.corpus, intervention=Neurons([(0, 1)], when="last")))
wrong("CorpusCache", "intervention", lambda w: CorpusCache(w.model, w.corpus, intervention="L2H0"))
wrong("CorpusCache.run", "class", lambda w: w.cache.run(mechrep.AttentionSinks))
wrong(
    "CorpusCache.run",
    "analyzer",
    lambda w: w.cache.run(),
    lambda w: w.cache.run(3),
    lambda w: w.cache.run([mechrep.SinkNorms()]),
)
wrong("CorpusCache.run_all", "twice", lambda w: w.cache.run_all([one := mechrep.SinkNorms(), one]))
wrong("CorpusCache.run_all", "analyzers", lambda w: w.cache.run_all(mechrep.SinkNorms()))
wrong("CorpusCache.get", "resid_post", lambda w: w.cache.get("resid_pots"))
wrong("CorpusCache.get", "site", lambda w: w.cache.get(3), lambda w: w.cache.get(None))
wrong("CorpusCache.get", "router", lambda w: w.cache.get("router"))
wrong(
    "CorpusCache.get",
    "layers",
    *(lambda w, n=n: w.cache.get("z", layers=n) for n in ([4], [-1], [], [0, 0], [True], 0, "0")),
)
wrong("CorpusCache.get", "texts", *(lambda w, n=n: w.cache.get("z", texts=n) for n in ([3], [], 0)))
wrong(
    "CorpusCache.get", "positions", lambda w: w.cache.get("z", positions=3), lambda w: w.cache.get("z", positions=[3])
)
wrong("CorpusCache.get", "GiB", lambda w: w.cache.get("z", max_gib=0.0))
wrong("CorpusCache", "cache[", lambda w: w.cache["z"], lambda w: w.cache[0], lambda w: w.cache["z", 0, 1])
wrong("CorpusCache", "layers", lambda w: w.cache["z", 9], lambda w: w.cache["z", None])
wrong("CorpusCache", "site", lambda w: w.cache["nosuch", 0])
wrong("RepetitionNeurons", "preset", lambda w: mechrep.RepetitionNeurons("nosuch"))
wrong("RepetitionNeurons", "window", lambda w: mechrep.RepetitionNeurons(window="nosuch"))
wrong(
    "RepetitionNeurons",
    "site",
    lambda w: mechrep.RepetitionNeurons(site="resid_pre"),
    lambda w: mechrep.RepetitionNeurons(site=3),
)
wrong("HeadScores", "preset", lambda w: mechrep.HeadScores("nosuch", bos_id=0))
wrong("HeadScores", "variant", lambda w: mechrep.HeadScores(bos_id=0, variants=["nosuch"]))
wrong("HeadScores", "positions", lambda w: mechrep.HeadScores(bos_id=0, positions=3, queries="all"))
wrong(
    "HeadScores",
    "average",
    lambda w: mechrep.HeadScores(bos_id=0, average="nosuch"),
    lambda w: mechrep.HeadScores(bos_id=0, average=nan),
)
wrong("RepeatNorms", "taus", *(lambda w, t=t: mechrep.RepeatNorms(t) for t in ([], [0.0], [-1.0], [nan], 0.5, "half")))
wrong("AttentionSinks", "epsilon", *(lambda w, e=e: mechrep.AttentionSinks(e) for e in (-0.1, 1.1, nan, "0.3", True)))
wrong("CopySuppression", "m", *(lambda w, m=m: mechrep.CopySuppression(w.model, m=m) for m in (0, 10**6)))
wrong("CopySuppression", "sample", lambda w: mechrep.CopySuppression(w.model, sample=10**6))
wrong("TokenInformation", "facts", lambda w: mechrep.TokenInformation("nosuch"))
wrong("TextKindContrast", "copies", lambda w: mechrep.TextKindContrast(w.model, copies=0))
wrong("TextKindContrast", "builder", lambda w: CorpusCache(w.model, w.repeats).run(mechrep.TextKindContrast(w.model)))
wrong("RepeatNorms", "repeat", lambda w: w.cache.run(mechrep.RepeatNorms()))
wrong("FirstTokenDetection", "outputs", lambda w: mechrep.FirstTokenDetection(outputs=torch.zeros(3)))
wrong("FirstTokenDetection", "outputs", lambda w: mechrep.FirstTokenDetection(outputs=[[0.0]]))
wrong("attention_sinks", "vocabulary", lambda w: mechrep.attention_sinks(w.model, w.foreign))
wrong(
    "first_position_attention",
    "layer",
    *(
        lambda w, n=n: mechrep.first_position_attention(w.model, w.corpus, layers=n)
        for n in ([9], [-1], [True], 3, "01")
    ),
)
wrong("first_position_attention", "vocabulary", lambda w: mechrep.first_position_attention(w.model, w.foreign))
wrong("score_heads", "n_ctx", lambda w: mechrep.score_heads(w.model, n=400))
wrong(
    "score_heads",
    "variant",
    lambda w: mechrep.score_heads(w.model, variants=["nosuch"]),
    lambda w: mechrep.score_heads(w.model, variants="nosuch"),
)
wrong("score_copying", "n_ctx", lambda w: mechrep.score_copying(w.model, n=400))
wrong("head_composition", "draws", *(lambda w, d=d: mechrep.head_composition(w.model, draws=d) for d in (1, 0, -3)))
wrong("ov_scores", "k ", lambda w: mechrep.ov_scores(w.model, k=10**6), lambda w: mechrep.ov_scores(w.model, k=0))
wrong(
    "ov_scores",
    "sample",
    lambda w: mechrep.ov_scores(w.model, sample=10**6),
    lambda w: mechrep.ov_scores(w.model, sample=0),
)
wrong("ov_scores", "embed", lambda w: mechrep.ov_scores(w.model, embed="mlp1"))
wrong("qk_attribution", "layer", lambda w: mechrep.qk_attribution(w.model, w.corpus, (9, 0), [(0, 5, 2)]))
wrong(
    "qk_attribution",
    "head",
    *(
        lambda w, h=h: mechrep.qk_attribution(w.model, w.corpus, h, [(0, 5, 2)])
        for h in ((1, 9), (1, -1), (1, True), (1,), "L1H0", 3)
    ),
)
wrong(
    "qk_attribution",
    "edge",
    *(
        lambda w, e=e: mechrep.qk_attribution(w.model, w.corpus, (1, 0), e)
        for e in ([], [(9, 1, 0)], [(0, 99, 0)], [(0, -1, 0)], [(0, 2, 5)], [(0, 1)], [3], 7, [(0, True, 0)])
    ),
)
wrong("qk_attribution", "vocabulary", lambda w: mechrep.qk_attribution(w.model, w.foreign, (1, 0), [(0, 5, 2)]))
wrong("target_edges", "target", lambda w: mechrep.target_edges(w.corpus, "nosuch", bos_id=0))
wrong("target_edges", "copies", lambda w: mechrep.target_edges(w.corpus, bos_id=0, copies="nosuch"))
wrong(
    "target_edges", "repeated", lambda w: mechrep.target_edges(tokens([[0, 5, 6]]), bos_id=0), error=NothingFoundError
)
wrong("ov_cluster", "token", *(lambda w, t=t: mechrep.ov_cluster(w.model, t) for t in (10**6, -1, True, None, 1.5)))
wrong("ov_cluster", "nosuchwordatall", lambda w: mechrep.ov_cluster(w.model, "nosuchwordatall"))
wrong(
    "ov_cluster",
    "size",
    lambda w: mechrep.ov_cluster(w.model, 300, 1),
    lambda w: mechrep.ov_cluster(w.model, 300, 10**6),
)
wrong(
    "ov_cluster",
    "candidates",
    lambda w: mechrep.ov_cluster(w.model, 300, candidates=[10**6]),
    lambda w: mechrep.ov_cluster(w.model, 300, candidates="abc"),
)
wrong(
    "ov_cluster",
    "draws",
    lambda w: mechrep.ov_cluster(w.model, 300, draws=(0, 8)),
    lambda w: mechrep.ov_cluster(w.model, 300, draws=3),
)
wrong(
    "induction_heads",
    "one model",
    lambda w: mechrep.induction_heads(w.heads, mechrep.score_copying(w.sibling, n=10, sequences=2)),
)
wrong("induction_heads", "copying", lambda w: mechrep.induction_heads(w.heads, w.heads))
wrong("view", "row", *(lambda w, r=r: mechrep.view(w.model, w.corpus, row=r) for r in (None, 3, -1, True, 0.0)))
wrong(
    "view",
    "quantit",
    *(
        lambda w, q=q: mechrep.view(w.model, "The sea", q)
        for q in ("nosuch", 3, ["surprisal", "surprisal"], "", [None])
    ),
)
wrong(
    "view",
    "layer",
    lambda w: mechrep.view(w.model, "The sea", "L9H0"),
    lambda w: mechrep.view(w.model, "The sea", layers=[9]),
    lambda w: mechrep.view(w.model, "The sea", layers=3),
)
wrong("view", "neuron", lambda w: mechrep.view(w.model, "The sea", "L0N99999"))
wrong(
    "view",
    "values",
    lambda w: mechrep.view(w.model, "The sea", {"x": [1.0]}),
    lambda w: mechrep.view(w.model, "The sea", {"x": [[1.0]]}),
)
wrong(
    "view",
    "cycle",
    lambda w: mechrep.view(w.model, "The sea", cycle="nosuch"),
    lambda w: mechrep.view(w.model, "The sea", cycle=w.cycle),
)
wrong("view", "theme", lambda w: mechrep.view(w.model, "The sea", theme="pink"))
wrong(
    "view",
    "infinite",
    lambda w: mechrep.view(w.model, tokens([[0, 5]], model=w.model), {"x": [inf, 1.0]}).to_fragment(),
)
