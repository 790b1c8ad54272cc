"""The mechanisms of repetition in one model, each as numbers per unit on fixed texts: what training studies follow.

Texts and prompts are the same for every model with the same tokenizer, so checkpoints can be compared unit by unit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from mechrep.cache.corpus_cache import CorpusCache
from mechrep.errors import NothingFoundError
from mechrep.generation.text_kinds import natural_texts, text_flow
from mechrep.measures.attention_sinks import AttentionSinks
from mechrep.measures.head_scores import HeadScoreResult, HeadScores
from mechrep.measures.natural_vs_induced import contrast_text_kinds
from mechrep.measures.token_facts import token_surprisal
from mechrep.models import tiny
from mechrep.models.model import Model
from mechrep.text.corpus import Corpus
from mechrep.text.stimuli import random_repeats
from mechrep.text.windows import windows_of_text

Numbers = Mapping[str, float | Sequence[float]]

PERIOD, SEQUENCES, _GROUPS = 50, 32, 16  # random repeats; in groups of two, the units of head scores
_SINK_LENGTH, _SINK_WINDOWS = 64, 96  # attention to a sink falls with the length
_PROMPT_LENGTH, _NEW_TOKENS = 32, 200
NATURAL, INDUCED, INDUCTION = "natural", "induced", "induction"
_SHOWN, _COPIES = 2, 2  # times a text is shown; repetitions beyond the first that are looked at


def head_mechanisms(model: Model, sequences: int = SEQUENCES, seed: int = 0) -> Numbers:
    """Best head of each kind on random repeats, and what copying saves.

    ``induction``, ``self_finding`` (duplicate-token heads) and ``previous_token`` are the attention on targets of the
    head that is best over all texts, with groups of texts as units; ``copying`` is the loss on the first repetition
    minus that on the second, in nats, text by text.

    Args:
        model: the model.
        sequences: texts.
        seed: of the draw.
    """
    period = min(PERIOD, (model.anatomy.n_ctx - 1) // 2)
    corpus = random_repeats(model, n=period, sequences=sequences, seed=seed)
    names = ("induction", "self_finding", "previous_token")
    tables = {name: table.flatten(1) for name, table in scores_by_group(model, corpus, names).items()}
    best = {name: table[:, int(table.mean(0).nan_to_num(-1).argmax())].tolist() for name, table in tables.items()}
    return best | {"copying": copying_gain(model, corpus, period)}


_SCORED: WeakKeyDictionary[Model, dict[tuple[str, str], list[HeadScoreResult]]] = WeakKeyDictionary()


def scores_by_group(
    model: Model, corpus: Corpus, names: Sequence[str]
) -> dict[str, Float[torch.Tensor, "group layer head"]]:
    """Scores of all heads on groups of texts of equal size, the units of everything that is said of heads' attention.

    Several measures ask for them; they are remembered for as long as the model lives.

    Args:
        model: the model.
        corpus: random repeats.
        names: of the scores.
    """
    known, key = _SCORED.setdefault(model, {}), (model.fingerprint(), corpus.fingerprint())
    if key not in known:
        by_group: list[HeadScoreResult] = []
        for texts in _groups(len(corpus)):
            result = CorpusCache(model, corpus.select(texts), progress=False).run(HeadScores(bos_id=model.bos_id))
            by_group.append(result)
        known[key] = by_group
    return {name: torch.stack([result.of(name) for result in known[key]]) for name in names}


@torch.no_grad()
def copying_gain(model: Model, corpus: Corpus, period: int) -> list[float]:
    """Loss on the first repetition minus that on the second, per text, in nats; the token at the seam is in neither."""
    losses = token_surprisal(model, corpus)[:, -2 * period :]
    return (losses[:, 1:period].mean(1) - losses[:, period + 1 :].mean(1)).tolist()


def sink_share(model: Model, windows: int = _SINK_WINDOWS) -> Numbers:
    """Share of heads whose mean attention to the first position exceeds 0.3, and that attention for the best head.

    On windows of 64 tokens of the embedded held-out text; units: groups of windows.

    Args:
        model: the model.
        windows: how many.
    """
    corpus = windows_of_text(model, tiny.held_out_text(), length=_SINK_LENGTH, limit=windows)
    alphas = []
    for texts in _groups(len(corpus)):
        result = CorpusCache(model, corpus.select(texts), progress=False).run(AttentionSinks())
        alphas.append(result.alpha.flatten())
    table = torch.stack(alphas)
    return {
        "sink_heads": ((table > 0.3).sum(1) / (~table.isnan()).sum(1)).tolist(),
        "sink": table[:, int(table.mean(0).nan_to_num(-1).argmax())].tolist(),
    }


def loop_flags(model: Model, prompts: int = 64) -> Numbers:
    """What becomes of fixed prompts, see :func:`fixed_prompts`; units: prompts.

    ``loops_naturally``; ``phrase_loops``, the same with a cycle of two tokens or more, because a model that has learned
    little repeats single tokens; ``copies_in_icl``, copying of texts shown twice (NaN where a text loops by itself).

    Args:
        model: the model.
        prompts: how many.
    """
    corpus, limit = fixed_prompts(model, prompts)
    flow = text_flow(model, corpus, max_new_tokens=limit, progress=False)
    flags = {
        name: flow.frame[name].astype("Float64").to_numpy(dtype=float, na_value=np.nan).tolist()
        for name in ("loops_naturally", "copies_in_icl")
    }
    periods = flow.texts.written.frame["period"].astype("Float64").to_numpy(dtype=float, na_value=0.0)
    return flags | {"phrase_loops": (periods > 1).astype(float).tolist()}


def fixed_prompts(model: Model, prompts: int) -> tuple[Corpus, int]:
    """Prompts of 32 tokens of the embedded held-out text, the same at every checkpoint, and how far to continue them.

    Args:
        model: the model.
        prompts: how many.
    """
    begin = 1 if model.default_prepend_bos and model.bos_id is not None else 0
    length = min(_PROMPT_LENGTH, model.anatomy.n_ctx // 8) + begin
    corpus = windows_of_text(model, tiny.held_out_text(), length=length, limit=prompts)
    return corpus, min(_NEW_TOKENS, model.anatomy.n_ctx - 3 * length)


def head_effects(model: Model, prompts: int = 64, sequences: int = SEQUENCES, seed: int = 0) -> Numbers:
    """What every head does in loops and in copying, three numbers per head.

    ``natural/L.H``, by prompt: direct logit attribution of the loop's next token, mean over the repetitions that follow
    a whole cycle, for prompts that loop by themselves.  ``induced/L.H``, by prompt: the same for the next token of
    *every* prompt, shown twice.  (The published text kind shows only those that do not loop by themselves; which these
    are can be told from ``natural``, where they have no value.)  ``induction/L.H``, by group of random repeats: the
    attention on what followed the earlier occurrence.  Teacher-forced, so all exist before the model repeats anything.

    A prompt without a natural loop has NaN there; there may be none with one.

    Args:
        model: the model.
        prompts: how many.
        sequences: random repeats.
        seed: of the random repeats.

    Source: the question is Mahaut and Franzon's (2025, arXiv 2504.01100), the estimator direct logit attribution, see
    :mod:`mechrep.measures.natural_vs_induced`.

    Limits: direct attribution sees what a head writes for this token, not what later parts make of it.
    """
    corpus, limit = fixed_prompts(model, prompts)
    kinds = [shown_twice(model, corpus)]
    with suppress(NothingFoundError):  # that no prompt loops is a fact of this checkpoint, and NaN says it
        kinds.append(natural_texts(model, corpus, max_new_tokens=limit, progress=False))
    result = contrast_text_kinds(model, kinds, copies=_COPIES, progress=False)
    place = {str(name): i for i, name in enumerate(corpus.frame["id"])}
    values = result.head_effects().values
    shape = (len(corpus), *values.shape[1:])
    tables: dict[str, np.ndarray[Any, Any]] = {name: np.full(shape, np.nan) for name in (NATURAL, INDUCED)}
    for kind, prompt, effects in zip(result.text_kinds, result.prompts, values, strict=True):
        tables[kind][place[prompt]] = effects
    repeats = random_repeats(model, n=min(PERIOD, (model.anatomy.n_ctx - 1) // 2), sequences=sequences, seed=seed)
    tables[INDUCTION] = scores_by_group(model, repeats, ["induction"])["induction"].double().numpy()
    return {
        f"{name}/{layer}.{head}": table[:, layer, head].tolist()
        for name, table in tables.items()
        for layer in range(table.shape[1])
        for head in range(table.shape[2])
    }


def shown_twice(model: Model, prompts: Corpus) -> Corpus:
    """Every prompt twice, and once more as what is expected; a BOS stays in front and is not repeated.

    The kind of text is that of :func:`mechrep.induced_texts`, whatever the texts do by themselves.

    Args:
        model: the model.
        prompts: the fixed list.
    """
    rows, starts, periods = [], [], []
    for i in range(len(prompts)):
        prompt = prompts.row(i)
        begin = prompt[:1] if prompt[0] == model.bos_id else []
        copy = prompt[len(begin) :]
        rows.append([*begin, *copy * (_SHOWN + 1)])
        starts.append(len(begin))
        periods.append(len(copy))
    return Corpus.from_tokens(
        rows, model=model, attention_mask=True, frame=_facts(prompts, starts, periods), bos_policy=prompts.bos_policy
    )


def _facts(prompts: Corpus, starts: Sequence[int], periods: Sequence[int]) -> pd.DataFrame:
    """What the builders of conditions say of each text."""
    frame = pd.DataFrame({"prompt": prompts.frame["id"].tolist(), "source": prompts.frame["source"].tolist()})
    frame = frame.assign(condition=INDUCED, builder=f"every_text_shown({_SHOWN})", shown=_SHOWN, seam=True)
    frame["id"] = frame["prompt"] + "/" + frame["builder"]
    frame["start"], frame["period"] = pd.array(list(starts), "Int64"), pd.array(list(periods), "Int64")
    frame["onset"] = frame["start"] + frame["period"]
    frame["prompt_length"] = frame["start"] + _SHOWN * frame["period"]
    return frame


def _groups(texts: int) -> list[list[int]]:
    """Texts in groups of equal size, so that each counts alike; a remainder is left out."""
    size = max(1, texts // _GROUPS)
    return [list(range(begin, begin + size)) for begin in range(0, texts - size + 1, size)]
