"""What heads look for, what they write, and how they compose."""

from __future__ import annotations

import functools
from typing import Any

import mechrep
from tests.golden import api
from tests.golden.entries.texts import loops, repeats, windows
from tests.golden.flat import Record, of_frame, of_result, of_value
from tests.golden.registry import golden


def read(model: mechrep.Model, corpus: mechrep.Corpus, *analyzers: Any) -> tuple[Any, ...]:
    """Run analyzers over a corpus."""
    return mechrep.CorpusCache(model, corpus, progress=False).run_all(analyzers)


def as_recorded(record: Record) -> Record:
    """The name by which duplicate-token heads went when this was recorded."""
    old, new = "self_finding", "duplicate_token"
    return {
        key.replace(new, old): [old if one == new else one for one in value] if isinstance(value, list) else value
        for key, value in record.items()
    }


@functools.cache
def scores(model: mechrep.Model) -> mechrep.HeadScoreResult:
    """Head scores on random repeats."""
    return mechrep.score_heads(model, n=25, sequences=8, seed=0)


@golden()
def score_heads(model: mechrep.Model) -> Record:
    """All scores and all published variants."""
    result = mechrep.score_heads(model, n=25, sequences=8, seed=0, variants=api.VARIANTS)
    record = of_result(result) | of_frame("table", result.to_frame())
    for score in result.names:
        record |= of_value(f"top {score}", result.top(3, score))
    three = mechrep.score_heads(model, n=10, copies=3, sequences=4, seed=1, bos=False)
    return as_recorded(record | of_result(three, "three copies without BOS"))


@golden()
def head_scores_on_loops(model: mechrep.Model) -> Record:
    """Rules of one's own, on loops that the model wrote."""
    bos = model.bos_id
    rules = {
        "mechrep": mechrep.HeadScores(bos_id=bos),
        "hiraoka2025": mechrep.HeadScores("hiraoka2025", bos_id=bos, positions=10),
        "newest aligned": mechrep.HeadScores(bos_id=bos, copies="newest", form="aligned"),
        "oldest threshold": mechrep.HeadScores(bos_id=bos, copies="oldest", average=0.2),
    }
    record: Record = {}
    for name, result in zip(rules, read(model, loops(model), *rules.values()), strict=True):
        record |= of_result(result, name)
    return as_recorded(record)


@golden()
def head_composition(model: mechrep.Model) -> Record:
    """Composition of all pairs of heads, with its null."""
    result = mechrep.head_composition(model, draws=2)
    record = of_result(result)
    for mode in ("Q", "K", "V"):
        record |= of_value(f"top {mode}", result.top(3, mode)) | of_value(f"excess {mode}", result.excess(mode))
        record |= of_frame(f"table {mode}", result.to_frame(mode))
    return record | of_value("with sources", result.with_sources([(0, 0), (0, 1)], "K"))


@golden()
def ov_scores(model: mechrep.Model) -> Record:
    """Copying from weights, on both embeddings."""
    record: Record = {}
    for embed in ("token", "mlp0"):
        result = mechrep.ov_scores(model, embed=embed, k=5, draws=4, sample=64)
        record |= of_result(result, embed) | of_value(f"{embed} band", list(result.eigen_band))
        record |= of_frame(f"{embed} table", result.to_frame())
    return record


@golden()
def score_copying(model: mechrep.Model) -> Record:
    """Copying on random repeats, on loops, and the heads that both match and copy."""
    result = mechrep.score_copying(model, n=20, sequences=4)
    (on_repeats,) = read(model, repeats(model), mechrep.HeadCopying(model))
    record = of_result(result) | of_result(on_repeats, "on repeats") | of_frame("table", result.to_frame())
    record |= of_value("band", result.functional_band) | of_value("top", result.top(3))
    return record | of_value("induction heads", mechrep.induction_heads(scores(model), result))


@golden()
def head_kinds(model: mechrep.Model) -> Record:
    """Which heads count as what."""
    from mechrep.studies.kinds_of_heads import HeadReadings, head_kinds

    (on_loops,) = read(model, loops(model), mechrep.HeadScores(bos_id=model.bos_id))
    own = HeadReadings(scores(model), mechrep.score_copying(model, n=20, sequences=4), on_loops)
    record: Record = {}
    for (kind, place), rows in head_kinds(own, []).groupby(["kind", "measured_on"], sort=False):
        for column, name in (("clear", place), ("published", f"{place}, published rule")):
            if column == "clear" or place == "natural loops":
                heads = rows.loc[rows[column], ["layer", "head"]].to_numpy().tolist()
                record |= of_value(f"{kind} on {name} heads", heads)
    return as_recorded(record)


@golden()
def copy_suppression(model: mechrep.Model) -> Record:
    """Heads that look at what is predicted already, and write against it."""
    analyzer = mechrep.CopySuppression(model, m=5, k=5, sample=64)
    (result,) = read(model, windows(model), analyzer)
    return of_result(result) | of_value("top", result.top(3)) | of_frame("table", result.to_frame())


@golden()
def qk_attribution(model: mechrep.Model) -> Record:
    """Which parts of the stream make a head look where it looks."""
    corpus = repeats(model).select([0, 1])
    record: Record = {}
    for target in ("induction", "self_finding"):
        edges = mechrep.target_edges(corpus, target, bos_id=model.bos_id, per_text=6)
        result = mechrep.qk_attribution(model, corpus, (1, 0), edges)
        record |= of_result(result, target) | of_value(f"{target} top", result.top(3))
        record |= of_frame(f"{target} by key", result.marginals("key")) | of_frame(target, result.to_frame())
    return record
