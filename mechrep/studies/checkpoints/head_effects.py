"""The measure behind "do the same heads carry both": what every head does in loops and in copying, at one checkpoint.

Three numbers per head, each with its units, in two passes over the model:

* ``natural``: direct logit attribution of the loop's next token, mean over the copies that follow a whole cycle, for
  every prompt that loops by itself;
* ``induced``: the same for the next token of *every* prompt, shown twice.  The published condition shows only those
  that do not loop by themselves; which these are can be told from ``natural``, where they have no value.  Showing all
  keeps the texts the same from checkpoint to checkpoint, whatever the model has learned to loop on meanwhile;
* ``induction``: attention on what followed the earlier copy, on random repeats, for groups of texts.

Both effects are teacher-forced, so they exist before the model copies anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pandas as pd

from mechrep.analyzers.conditions.contrast import contrast_conditions
from mechrep.errors import NothingFoundError
from mechrep.generation.conditions import natural_condition
from mechrep.models.model import Model
from mechrep.studies.checkpoints.measures import (
    PERIOD,
    SEQUENCES,
    Measure,
    Numbers,
    fixed_prompts,
    named_measure,
    scores_by_group,
)
from mechrep.text.corpus import Corpus
from mechrep.text.random_repeats import random_repeats

HEAD_EFFECTS = "head_effects"
NATURAL, INDUCED, INDUCTION = "natural", "induced", "induction"
_SHOWN, _COPIES = 2, 2  # times a text is shown; copies beyond the first that are looked at


def head_effects_measure(prompts: int = 64, sequences: int = SEQUENCES, seed: int = 0) -> Measure:
    """:func:`head_effects` for :func:`mechrep.studies.over_checkpoints`.

    Its numbers are many, one series per head and condition: read them with
    :meth:`mechrep.studies.checkpoints.HeadHistory.of_checkpoints`.

    Args:
        prompts: how many, the same that loops are counted on.
        sequences: random repeats.
        seed: of the random repeats.

    Example:
        >>> head_effects_measure(prompts=8).name
        'head_effects'
    """
    return named_measure(HEAD_EFFECTS, head_effects, {"prompts": prompts, "sequences": sequences, "seed": seed})


def head_effects(model: Model, prompts: int = 64, sequences: int = SEQUENCES, seed: int = 0) -> Numbers:
    """Effects of all heads: ``natural/L.H`` and ``induced/L.H`` by prompt, ``induction/L.H`` by group of repeats.

    A prompt without a natural loop has NaN there; there may be none with one.

    Args:
        model: the model.
        prompts: how many.
        sequences: random repeats.
        seed: of the random repeats.

    Source: the question is Mahaut and Franzon's (2025, arXiv 2504.01100), the estimator direct logit attribution, see
    :mod:`mechrep.analyzers.conditions.contrast`.

    Limits: direct attribution sees what a head writes for this token, not what later parts make of it.
    """
    corpus, limit = fixed_prompts(model, prompts)
    conditions = [shown_twice(model, corpus)]
    with suppress(NothingFoundError):  # that no prompt loops is a fact of this checkpoint, and NaN says it
        conditions.append(natural_condition(model, corpus, max_new_tokens=limit, progress=False))
    result = contrast_conditions(model, conditions, copies=_COPIES, progress=False)
    place = {str(name): i for i, name in enumerate(corpus.frame["id"])}
    values = result.head_effects().values
    shape = (len(corpus), *values.shape[1:])
    tables: dict[str, np.ndarray[Any, Any]] = {name: np.full(shape, np.nan) for name in (NATURAL, INDUCED)}
    for condition, prompt, effects in zip(result.conditions, result.prompts, values, strict=True):
        tables[condition][place[prompt]] = effects
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

    The condition is that of :func:`mechrep.induced_condition`, whatever the texts do by themselves.

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
    return Corpus.from_tokens(rows, model=model, frame=_facts(prompts, starts, periods), bos_policy=prompts.bos_policy)


def _facts(prompts: Corpus, starts: Sequence[int], periods: Sequence[int]) -> pd.DataFrame:
    """What the builders of conditions say of each text."""
    frame = pd.DataFrame({"prompt": prompts.frame["id"].tolist(), "source": prompts.frame["source"].tolist()})
    frame = frame.assign(condition=INDUCED, builder=f"every_text_shown({_SHOWN})", shown=_SHOWN, seam=True)
    frame["id"] = frame["prompt"] + "/" + frame["builder"]
    frame["start"], frame["period"] = pd.array(list(starts), "Int64"), pd.array(list(periods), "Int64")
    frame["onset"] = frame["start"] + frame["period"]
    frame["prompt_length"] = frame["start"] + _SHOWN * frame["period"]
    return frame
