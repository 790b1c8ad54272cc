"""``single_head_sweep``: every head cut alone, all in one batch of rows, with corrected tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from mechrep.interventions.base import When
from mechrep.interventions.ops import Op
from mechrep.models.model import Model
from mechrep.results import check_count
from mechrep.studies.ablation.conditions import AblationCondition
from mechrep.studies.ablation.ops import as_ops, op_name
from mechrep.studies.ablation.plan import Settings, run_plan
from mechrep.studies.ablation.result import AblationResult
from mechrep.studies.ablation.statistics import benjamini_hochberg, holm, paired_p_values
from mechrep.studies.circuit import Circuit
from mechrep.studies.sweeps import ACTIVATION_PROMPT, NEW_TOKENS
from mechrep.text.corpus import Corpus


@dataclass(frozen=True, eq=False)
class HeadSweepResult(AblationResult):
    """Outcomes with each head cut alone; the condition of head ``h`` of layer ``l`` is the circuit ``"l.h"``."""

    def top(self, k: int, outcome: str | None = None, copy: int | None = None) -> list[tuple[int, int]]:
        """The ``k`` heads whose cut changes a measure most, as ``(layer, head)``.

        Args:
            k: how many.
            outcome: by default the first.
            copy: of the loop, by default the first.

        Raises:
            InputError: ``k`` larger than the number of heads, or a measure that is not there.
        """
        ranking = self.ranking(outcome, copy)
        check_count(k, len(ranking), "heads")
        return [self._head(place) for place in ranking[:k]]

    def tests(self, outcome: str | None = None, copy: int | None = None) -> pd.DataFrame:
        """One row per head, the largest effect first, with corrections for having looked at all of them.

        Columns: ``layer, head, value, effect, effect_low, effect_high``; ``p`` of a paired t-test over texts; ``holm``,
        the adjusted p-value under which any false finding has that chance; ``fdr``, the one of Benjamini and Hochberg,
        under which that share of the findings is expected to be false.

        Args:
            outcome: by default the first.
            copy: of the loop, by default the first.

        Raises:
            InputError: fewer than two texts, or a measure that is not there.
        """
        number = self.measure_number(outcome, copy)
        values = self._known(number)
        p_values = paired_p_values(values[1:] - values[:1])
        heads = [self._head(place) for place in range(1, len(values))]
        columns = self._table(number).loc[1:, ["value", "effect", "effect_low", "effect_high"]].reset_index(drop=True)
        frame = pd.DataFrame(heads, columns=["layer", "head"]).join(columns)
        frame = frame.assign(p=p_values, holm=holm(p_values), fdr=benjamini_hochberg(p_values))
        order = [place - 1 for place in self.ranking(outcome, copy)]
        return frame.iloc[order].reset_index(drop=True)

    def _head(self, place: int) -> tuple[int, int]:
        ((layer, head),) = self.conditions[place]["heads"]
        return layer, head


def single_head_sweep(
    model: Model,
    corpus: Corpus | None = None,
    *,
    op: Op | str = "zero",
    outcomes: Sequence[str] = ("loop_log_probability",),
    when: When = "from_onset",
    copies: int = 3,
    repeats: Corpus | None = None,
    windows: Corpus | None = None,
    preset: str = "mechrep",
    max_new_tokens: int = NEW_TOKENS,
    prompt_length: int = ACTIVATION_PROMPT,
    store: str | Path | None = None,
    progress: bool | None = None,
) -> HeadSweepResult:
    """Cut every head alone and measure what changes.

    Each (head, text) is one row of a batch; what lies before a text's first edited position is computed once for all
    heads, and so are, where given texts are scored, the layers below each head.

    Args:
        model: the model.
        corpus: looping texts with ``start`` and ``onset``; by default 64 that the model writes itself.
        op: an operation on heads.
        outcomes: see :func:`mechrep.studies.ablation.study.ablation_study`, as for all that follows.
        when: ``"from_onset"`` or ``"all"``.
        copies: copies of the loop whose tokens are predicted.
        repeats: random repeats for ``copy_accuracy``.
        windows: held-out windows for ``loss``.
        preset: detector of ``still_looping`` and ``newly_looping``.
        max_new_tokens: tokens that these two write.
        prompt_length: of ``newly_looping``.
        store: folder in which finished shards are kept.
        progress: show progress bars.

    Raises:
        InputError: an unknown outcome, an operation that is not for heads, texts that do not serve.
        NothingFoundError: no looping (or loop-free) text where an outcome needs one.

    Limits: heads that do the same work hide each other: cut alone, neither matters.  Cut them together with
    :func:`mechrep.studies.ablation.study.ablation_study`.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> rows = [[0, *range(30, 50), *[9, 8, 7, 6, 5] * 4], [0, *range(50, 70), *[4, 8, 3, 6] * 5]]
        >>> sweep = single_head_sweep(model, mechrep.Corpus.from_tokens(rows, model=model).with_cycles(), copies=1)
        >>> len(sweep.tests()) == model.anatomy.n_layers * model.anatomy.n_heads
        True
    """
    anatomy, name = model.anatomy, op_name(op)
    conditions = [AblationCondition()]
    for layer in range(anatomy.n_layers):
        for head in range(anatomy.n_heads):
            cut = Circuit(f"{layer}.{head}", heads=[(layer, head)])
            intervention = cut.intervention(op, when)
            conditions.append(AblationCondition(cut.name, "whole", "single", 1, name, 0, cut, intervention))
    settings = Settings(corpus, repeats, windows, when, copies, preset, max_new_tokens, prompt_length)
    config = {"study": "single heads", "op": as_ops(op)[1].fingerprint}
    measured = settings.outcomes(model, outcomes, frozenset())
    return HeadSweepResult(**run_plan(model, conditions, measured, config, store=store, progress=progress))
