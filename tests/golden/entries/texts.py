"""Texts: loops that a model writes, windows of held-out text, random repeats, kinds of texts, and their detection."""

from __future__ import annotations

import functools
from typing import Any

import mechrep
from tests.golden import api
from tests.golden.flat import Record, of_array, of_frame, of_value, where
from tests.golden.registry import EMBEDDED, TINY, expected, golden, known

DETECTORS = ("mechrep", "hiraoka2025")
_FACTS = ("prompt_length", "start", "onset", "period")


def of_corpus(name: str, corpus: mechrep.Corpus) -> Record:
    """Ids of every text, and the columns that say what it is."""
    record: Record = {f"{name} tokens {i}": corpus.row(i) for i in range(len(corpus))}
    for column in corpus.frame.columns:
        record |= of_value(f"{name} {column}", corpus.frame[column])
    if f"{name} text_kind" in record:  # recorded under the column's earlier name
        record[f"{name} condition"] = record.pop(f"{name} text_kind")
    return record


@golden(slow=True)
def collect_loops(model: mechrep.Model) -> Record:
    """Eight looping texts and four others."""
    return of_corpus("loops", api.collect_loops(model, 8, n_others=4, seed=0, max_prompts=512, progress=False))


@golden(slow=True)
def given_loops(model: mechrep.Model) -> Record:
    """Texts that other entries read: collected once, and kept, so that no entry depends on another."""
    return expected(known(model), "given_loops") or collect_loops(model)


@functools.cache
def written(model: mechrep.Model) -> mechrep.Corpus:
    """The texts of :func:`given_loops`."""
    record = given_loops(model)
    n = len(record["loops id"])
    corpus = mechrep.Corpus.from_tokens([record[f"loops tokens {i}"] for i in range(n)], model=model, source="loop")
    facts: dict[str, Any] = {name: record[f"loops {name}"] for name in (*_FACTS, "condition")}
    for name in ("start", "onset", "period"):
        facts[name] = corpus.frame["onset"].__class__(facts[name], dtype="Int64")
    return corpus.with_columns(**facts)


def loops(model: mechrep.Model) -> mechrep.Corpus:
    """The looping texts."""
    return written(model).where(condition="looping")


def halves(model: mechrep.Model) -> tuple[mechrep.Corpus, mechrep.Corpus]:
    """Looping texts to search on, and to test on."""
    texts = loops(model)
    middle = len(texts) // 2
    return texts.select(list(range(middle))), texts.select(list(range(middle, len(texts))))


def free(model: mechrep.Model) -> mechrep.Corpus:
    """The texts without a loop."""
    return written(model).where(condition="loop_free")


@functools.cache
def windows(model: mechrep.Model) -> mechrep.Corpus:
    """Windows of the embedded held-out text."""
    return api.windows_of_text(model, api.tiny.held_out_text(), length=48, limit=8)


@functools.cache
def repeats(model: mechrep.Model) -> mechrep.Corpus:
    """Random tokens, said twice."""
    return api.random_repeats(model, n=25, copies=2, sequences=8, seed=3)


@functools.cache
def kinds(model: mechrep.Model) -> tuple[mechrep.Corpus, mechrep.Corpus, mechrep.Corpus]:
    """Natural loops, induced ones and controls, from twelve prompts."""
    prompts = api.sample_prompts(model, 12)
    natural = mechrep.natural_texts(model, prompts, max_new_tokens=120, progress=False)
    induced = mechrep.induced_texts(model, prompts, 2, "cycle", max_new_tokens=120, progress=False)
    return natural, induced, mechrep.control_texts(model, prompts, max_new_tokens=30, progress=False)


@golden()
def corpora(model: mechrep.Model) -> Record:
    """Windows of text, random repeats, repeated tokens, prompts, and classes of tokens."""
    few = windows(model).select([0, 1])
    record = of_corpus("windows", few) | of_corpus("repeats", repeats(model).select([0, 7]))
    record |= of_corpus("repeated", api.repeated_tokens(model, [300, 301], 5))
    record |= of_corpus("prompts", api.sample_prompts(model, 3))
    three = api.random_repeats(model, n=5, copies=3, sequences=2, seed=1, bos=False)
    for on in ("word", "piece"):
        record |= of_value(f"classes by {on}", api.token_classes(few, model, on=on)[0].tolist())
    return record | of_corpus("without BOS", three)


@golden()
def detection(model: mechrep.Model) -> Record:
    """Cycles of the written texts by every detector, and how much of them is repetition."""
    record: Record = {}
    texts = written(model)
    for preset in DETECTORS:
        seen = texts.with_cycles(preset)
        for column in ("start", "onset", "period", "copies"):
            record |= of_value(where(preset=preset, column=column), seen.frame[column])
    rows = [texts.row(i) for i in range(len(texts))]
    record |= of_value("seq_rep_4", [api.seq_rep_n(row) for row in rows])
    return record | of_value("rep_2", api.rep_n([" ".join(map(str, row)) for row in rows], n=2))


@golden(slow=True)
def generate(model: mechrep.Model) -> Record:
    """Greedy and sampled continuations, untouched and under cuts, on both views."""
    prompts = windows(model).select([0, 1, 2])
    both = mechrep.Heads([(1, 0)], "zero", "all") + mechrep.SinkPatch(0, [3])
    cuts = [None, mechrep.Neurons([(1, 3), (2, 5)], "zero", when="last"), both]
    record: Record = {}
    for name, settings in {
        "greedy": {},
        "sampled": {"decoding": mechrep.Decoding(temperature=1.0, top_k=20, seed=5)},
        "cut": {"interventions": cuts},
        "suppressed": {"decoding": mechrep.Decoding(None, suppress=[10, 11, 12])},
        "reference view": {"interventions": cuts, "decoding": mechrep.Decoding(view="transformer_lens")},
    }.items():
        longer = mechrep.generate(model, prompts, max_new_tokens=12, progress=False, **settings)
        for i in range(len(longer)):
            record[f"{name} {i}"] = longer.row(i)[len(prompts.row(i)) :]
    return record


@golden(slow=True, models=EMBEDDED)
def text_kinds(model: mechrep.Model) -> Record:
    """Natural, induced and control texts from the same prompts, and joined."""
    natural, induced, control = kinds(model)
    prompts = api.sample_prompts(model, 12)
    record = (
        of_corpus("natural", natural) | of_corpus("induced", induced) | of_corpus("control", control.select([0, 1]))
    )
    shown = mechrep.induced_texts(model, prompts, 3, "text", max_new_tokens=120, progress=False)
    record |= of_corpus("induced text", shown.select([0, 1]))
    published = mechrep.natural_texts(model, prompts, preset="mahaut2025", max_new_tokens=120, progress=False)
    record |= of_corpus("mahaut2025", published)
    joined = api.joined_texts(natural, induced, n_ctx=model.anatomy.n_ctx, copies=2)
    record |= {f"joined tokens {i}": joined.row(i) for i in range(len(joined))}
    flow = api.text_flow(model, prompts, copies=2, builder="cycle", max_new_tokens=120, progress=False)
    return record | of_frame("flow counts", flow.counts()) | of_value("flow new tokens", flow.new_tokens)


@golden()
def reading(model: mechrep.Model) -> Record:
    """Logits, and activations at every place that the model has."""
    few = windows(model).select([0, 1, 2])
    cache = mechrep.CorpusCache(model, few, progress=False)
    record = of_array("logits", model(few.tokens))
    for site in mechrep.Site:
        if model.anatomy.has(site):
            record |= of_array(f"{site.value} last layer", cache[site, model.anatomy.n_layers - 1])
    return record


@golden(slow=True, models=(TINY,))
def null_models(model: mechrep.Model) -> Record:
    """Shuffled and new weights."""
    record: Record = {}
    few = windows(model).select([0]).tokens
    for name, make in {"shuffled": api.shuffled, "reinitialised": api.reinitialised}.items():
        for seed in (0, 1):
            null = make(model, seed=seed)
            record |= of_array(f"{name} {seed} embedding", null.W_E) | of_array(f"{name} {seed} logits", null(few))
    return record
