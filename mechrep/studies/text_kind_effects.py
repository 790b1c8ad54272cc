"""``ablation_contrast``: every head cut alone, in natural loops and in induced copying, from cached continuations.

Nothing is generated: the conditions' texts and their expected tokens are known, and each (head, text) is one row of a
batch of teacher-forced scores (:mod:`mechrep.ablation.score`).

``patching_contrast``: what a head wrote in another text, put in the place of what it writes in a repeating one.

At the position that predicts the first token of a copy, ``z`` of one head is replaced by what it was in a donor text:
of another condition, or of a text without repetition.  Donors are from the same prompt where there is one, else drawn.
A donor with a cycle gives the position that predicts the same copy, one without gives the same position in the text,
so that heads which attend by position see the same distances.

The dear way to the same question: write every text again under every cut, and see how long it goes on repeating.

It is here to check the cheap one on a sample, and to count what it saves.

``head_dissociation``: cut the heads of one condition all together, and see what *both* conditions lose.

Heads are found on one half of the prompts and cut on the other, beside as many random and layer-matched heads.

``compare_heads``: are the heads of two conditions other heads?  Beside what swapped labels of the conditions give.

Two samples of texts never rank heads alike, so a rank correlation below 1 says nothing by itself.  The placebo swaps
the labels of the conditions (within prompts that are in both, else among texts): whatever two *like* samples of this
size differ by is in it.

What heads write on text that does not repeat: what mean and resample ablation put in their place.

``HeadContrastResult``: what cutting (or patching) each head changes in every text of several conditions.

Scores of many texts under many cuts, a shard of texts at a time, so that a stopped study goes on where it was.

The texts of a contrast study: joined conditions, as texts whose tokens are to be predicted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechrep.ablation.old_controls import control_heads
from mechrep.ablation.score import ScoredText, score_tokens
from mechrep.cache.corpus_cache import CorpusCache
from mechrep.errors import InputError, NothingFoundError
from mechrep.generation.decode import Decoding, Request, run_requests
from mechrep.generation.text_kinds import COPIES, copy_run, joined_conditions
from mechrep.interventions import Heads, mean, resample, zero
from mechrep.interventions.ops import Intervention, Op, When
from mechrep.measures.text_kind_design import (
    FIRST,
    SECOND,
    ConditionDesign,
    HeadEffects,
    effective_number,
    gini,
    rank_correlation,
)
from mechrep.models import tiny
from mechrep.models.anatomy import Site
from mechrep.models.model import Model
from mechrep.progress import progress_bar
from mechrep.provenance import Provenance, provenance_of
from mechrep.results import Result, check_count
from mechrep.stats import holm, paired_bootstrap_interval, percentile_interval
from mechrep.store import Journal
from mechrep.text.corpus import Corpus, windows_of_text

if TYPE_CHECKING:
    import plotly.graph_objects as go

LEVEL = 0.05
_DRAWS, _SWAPS, _TESTED = 2000, 1000, 10
_ROUNDING = 1e-5  # what float32 makes of a head that does nothing


def compare_heads(
    effects: HeadEffects, k: int, *, first: str = FIRST, second: str = SECOND, swaps: int = _SWAPS, seed: int = 0
) -> pd.DataFrame:
    """How far two conditions differ in their heads, with intervals and the placebo of swapped labels.

    One row per ``measure``, of the sizes ``a`` of the mean effects of all heads:

    * ``common``: ``sum_h min(s_h, t_h)`` of the shares ``s = a / sum a`` and ``t`` in both conditions: the part of the
      effect that the same heads carry, 1 if all have the same shares; ``p``: share of swaps in which it is as *low*.
      Heads that do little weigh little.
    * ``rank_correlation``: Spearman's, of ``a`` in both conditions; ``p`` as above.  Idle heads count as much.
    * ``shared_top``: heads that are among the first ``k`` in both; ``p`` as above.
    * ``gini``: ``gini(a_first) - gini(a_second)``, above 0 where the first is carried by fewer heads; ``p`` on two
      sides.
    * ``effective_heads``: the same of their effective numbers, below 0 where the first is carried by fewer heads.
    * ``differing_heads``: heads with FDR below 0.05 in ``effects.contrast``; the swaps are ten whole tests, ``p`` the
      share of them that find as many.

    Args:
        effects: of one measure.
        k: heads that lead.
        first: a condition.
        second: another.
        swaps: of the labels.
        seed: of draws and swaps.

    Returns:
        ``measure, value, low, high`` (95 %, bootstrap over prompts; NaN for ``differing_heads``), ``null, null_low,
        null_high`` (mean and central 95 % of the swaps; for ``differing_heads`` their range), ``p, swaps``.

    Raises:
        InputError: a condition without texts, ``k`` larger than the number of heads.

    Limits: with few heads ranks are coarse.  A swap that by chance leaves most labels as they are makes the two
    halves differ as the conditions do: with few texts the first three find little; ``differing_heads`` is sharper.

    Example:
        >>> values = np.random.default_rng(0).normal(size=(400, 1, 6)) + [3, 2, 1, 0, 0, 0]
        >>> values[200:] = values[200:, :, ::-1]
        >>> names = ["induced"] * 200 + ["natural"] * 200
        >>> table = compare_heads(HeadEffects(values, names, [str(i) for i in range(400)], "made up"), 2)
        >>> row = table.set_index("measure").loc["common"]
        >>> bool(row["high"] < 0.5 < row["null_low"]), bool(row["p"] < 0.05)
        (True, True)
    """
    effects.shared_top(k, first, second, draws=1)  # refuses what cannot be compared
    known = _known(effects, first, second)
    values = known.values.reshape(len(known.values), -1)
    design = ConditionDesign(known.conditions, known.prompts, first, second)
    means = design.mean(first), design.mean(second)
    times = design.draws(_DRAWS, seed)
    swapped = design.swaps(swaps, seed)
    # Twice the coefficients of D: positive ones are the mean of whatever is called the first condition.
    nulls = _measures(np.clip(2 * swapped, 0, None) @ values, np.clip(-2 * swapped, 0, None) @ values, k)
    observed = _measures(means[0][None] @ values, means[1][None] @ values, k)
    drawn = _measures((times * means[0]) @ values, (times * means[1]) @ values, k)
    rows = []
    for name, (number,) in observed.items():
        null, sample = (one[~np.isnan(one)] for one in (nulls[name], drawn[name]))
        far: np.ndarray = (
            np.abs(null) >= abs(number) - 1e-9 if name in ("gini", "effective_heads") else null <= number + 1e-9
        )
        p = 1.0 if np.isnan(number) else (1 + int(far.sum())) / (1 + swaps)
        mean = float(null.mean()) if len(null) else float("nan")
        ends = (*percentile_interval(sample.tolist()), mean, *percentile_interval(null.tolist()))
        rows.append((name, float(number), *ends, p, swaps))
    rows.append(_differing(known, first, second, seed))
    columns = ["measure", "value", "low", "high", "null", "null_low", "null_high", "p", "swaps"]
    return pd.DataFrame(rows, columns=columns)


def _known(effects: HeadEffects, first: str, second: str) -> HeadEffects:
    """The texts of both conditions that have a value."""
    missing = np.isnan(effects.values.reshape(len(effects.values), -1).sum(1)).tolist()
    chosen = [i for i, name in enumerate(effects.conditions) if name in (first, second) and not missing[i]]
    names, prompts = ([list(column)[i] for i in chosen] for column in (effects.conditions, effects.prompts))
    return HeadEffects(effects.values[chosen], names, prompts, effects.measure)


def _measures(
    one: Float[np.ndarray, "draw head"], other: Float[np.ndarray, "draw head"], k: int
) -> dict[str, Float[np.ndarray, " draw"]]:
    sizes = [np.where(np.abs(part) > _ROUNDING, np.abs(part), 0.0) for part in (one, other)]
    leading = [_leading(part, k) for part in sizes]
    return {
        "common": _common(*sizes),
        "rank_correlation": rank_correlation(*sizes),
        "shared_top": (leading[0] & leading[1]).sum(1).astype(float),
        "gini": gini(sizes[0]) - gini(sizes[1]),
        "effective_heads": effective_number(sizes[0]) - effective_number(sizes[1]),
    }


def _common(one: Float[np.ndarray, "draw head"], other: Float[np.ndarray, "draw head"]) -> Float[np.ndarray, " draw"]:
    """What the same heads carry in both: nothing where one of them needs no head; NaN where neither does."""
    totals = [part.sum(1, keepdims=True) for part in (one, other)]
    shares = [
        np.divide(part, total, out=np.zeros_like(part), where=total > 0)
        for part, total in zip((one, other), totals, strict=True)
    ]
    return np.where((totals[0] + totals[1])[:, 0] > 0, np.minimum(*shares).sum(1), np.nan)


def _leading(sizes: Float[np.ndarray, "draw head"], k: int) -> np.ndarray:
    """Which heads are the first ``k``, fewer where fewer do anything at all."""
    order = np.argsort(-sizes, axis=1, kind="stable")[:, :k]
    chosen = np.zeros(sizes.shape, dtype=bool)
    np.put_along_axis(chosen, order, True, axis=1)
    return chosen & (sizes > 0)


def _differing(effects: HeadEffects, first: str, second: str, seed: int) -> tuple:
    """Heads that a test finds, and what it finds in ten placebos."""
    found = int((effects.contrast(first, second)["fdr"] < LEVEL).sum())
    placebos = [effects.swapped(seed + number, first, second) for number in range(1, _TESTED + 1)]
    nulls = [int((one.contrast(first, second, draws=2)["fdr"] < LEVEL).sum()) for one in placebos]
    p = (1 + sum(number >= found for number in nulls)) / (1 + len(nulls))
    unknown = float("nan")
    ends = float(min(nulls)), float(max(nulls))
    return ("differing_heads", float(found), unknown, unknown, float(np.mean(nulls)), *ends, p, len(nulls))


OPS = ("mean", "zero", "resample", "to_bos")
_SAMPLES = 256


@dataclass(frozen=True, eq=False)
class HeadReference:
    """Outputs ``z`` of all heads at positions of reference text.

    Attributes:
        samples: at positions drawn from it, all heads of a position together.
        mean: over all its positions.
    """

    samples: Float[Tensor, "sample layer head d_head"]
    mean: Float[Tensor, "layer head d_head"]

    def op(self, name: str, seed: int = 0) -> Op | str:
        """An operation on heads by its name.

        Raises:
            InputError: an unknown name.
        """
        if name not in OPS:
            raise InputError(f"op={name!r}", f"one of {OPS}", "choose one of these")
        return {"mean": mean(self.mean), "resample": resample(self.samples, seed), "zero": zero()}.get(name, name)


def head_reference(model: Model, corpus: Corpus, *, seed: int = 0, progress: bool | None = None) -> HeadReference:
    """Read what heads write in reference texts, without the first position, which is a sink in most models.

    Args:
        model: the model.
        corpus: texts that do not repeat: a control condition, or held-out windows.
        seed: of the draw of positions.
        progress: show a progress bar.

    Raises:
        InputError: texts of one token only.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> corpus = mechrep.Corpus.from_texts(["The sea was calm that day, and the ships lay still."], model=model)
        >>> reference = head_reference(model, corpus)
        >>> tuple(reference.mean.shape) == (model.anatomy.n_layers, model.anatomy.n_heads, model.anatomy.d_head)
        True
    """
    places = [(text, position) for text in range(len(corpus)) for position in range(1, int(corpus.lengths[text]))]
    if not places:
        raise InputError(f"{len(corpus)} reference texts of one token", "text to read", "pass longer reference texts")
    cache, total = CorpusCache(model, corpus, progress=progress), 0.0
    drawn = np.random.default_rng(seed).choice(len(places), min(_SAMPLES, len(places)), replace=False)
    samples: list[Tensor] = []
    for text in range(len(corpus)):  # text by text: all of them may be larger than the memory
        z = cache.get(Site.Z, texts=[text])[:, 0, 1:].transpose(0, 1)  # [pos layer head d_head]
        total = total + z.double().sum(0)
        samples += [z[places[i][1] - 1] for i in drawn if places[i][0] == text]
    return HeadReference(torch.stack(samples).float(), (torch.as_tensor(total) / len(places)).float())


@dataclass(frozen=True, eq=False)
class HeadContrastResult(Result):
    """Changes of the log-probability of the expected tokens, in nats per token; negative where the head helps.

    Attributes:
        effects: with the head cut minus without, per text and copy; NaN where a text has no such copy.
        untouched: log-probability without a cut.
        ops: operations.
        ids: of the texts.
        conditions: group of each text.
        prompts: that the texts are from.
        new_tokens: tokens that were generated for this.
    """

    effects: Float[Tensor, "op text copy layer head"]
    untouched: Float[Tensor, "text copy"]
    ops: Sequence[str]
    ids: Sequence[str]
    conditions: Sequence[str]
    prompts: Sequence[str]
    new_tokens: int

    def head_effects(self, op: str | None = None, copy: int | None = None) -> HeadEffects:
        """One operation and copy, for the tables of :class:`~mechrep.measures.text_kind_design.HeadEffects`.

        Args:
            op: by default the first.
            copy: from 1, the second copy, on; by default the mean over all.

        Raises:
            InputError: an operation or copy that was not measured.
        """
        name = self.ops[0] if op is None else op
        if name not in self.ops or (copy is not None and not 1 <= copy <= self.effects.shape[2]):
            raise InputError(
                f"op {name!r}, copy {copy}", f"one of {list(self.ops)}, 1 to {self.effects.shape[2]}", "choose again"
            )
        values = self.effects[list(self.ops).index(name)].double()
        chosen = values.nanmean(1) if copy is None else values[:, copy - 1]
        return HeadEffects(chosen.numpy(), list(self.conditions), list(self.prompts), f"{name}: change of log p")

    def to_frame(self) -> pd.DataFrame:
        """One row per operation, condition, copy and head: mean ``effect``, ``untouched`` log p, ``n``."""
        rows = []
        labels = np.array(self.conditions, dtype=object)
        for number, op in enumerate(self.ops):
            for name in dict.fromkeys(self.conditions):
                for copy in range(self.effects.shape[2]):
                    part = self.effects[number, labels == name, copy].double()
                    known = ~part.isnan().any(-1).any(-1)
                    base = self.untouched[labels == name, copy][known].double().mean()
                    means = part[known].mean(0)
                    rows += [
                        (op, name, copy + 1, layer, head, float(means[layer, head]), float(base), int(known.sum()))
                        for layer in range(means.shape[0])
                        for head in range(means.shape[1])
                        if int(known.sum())
                    ]
        columns = ["op", "condition", "copy", "layer", "head", "effect", "untouched", "n"]
        return pd.DataFrame(rows, columns=columns)

    def contrast(
        self, op: str | None = None, copy: int | None = None, *, first: str = FIRST, second: str = SECOND
    ) -> pd.DataFrame:
        """The table of ``HeadEffects.contrast``, with Holm's correction beside that of Benjamini and Hochberg."""
        frame = self.head_effects(op, copy).contrast(first, second)
        return frame.assign(holm=holm(frame["p"].to_numpy()))

    def top(self, k: int) -> list[tuple[int, int]]:
        """The ``k`` heads whose effect differs most between induced copying and natural loops.

        Raises:
            InputError: ``k`` larger than the number of heads, or a condition that is missing.
        """
        frame = self.contrast()
        check_count(k, len(frame), "heads")
        return [(int(layer), int(head)) for layer, head in frame[["layer", "head"]].to_numpy()[:k]]

    def plot(self) -> go.Figure:
        """Effects of all heads, per condition, and what tells them apart."""
        from mechrep.measures.text_kind_design import head_contrast_figure

        return head_contrast_figure(self.head_effects())


def labels_of(corpus: Corpus) -> list[str]:
    """Group of each text: its condition, or its builder where a condition has several."""
    pairs = corpus.frame[["condition", "builder"]].drop_duplicates()
    column = "builder" if pairs["condition"].duplicated().any() else "condition"
    return corpus.frame[column].astype(str).tolist()


def cyclic_texts(corpus: Corpus) -> Corpus:
    """The texts with a cycle.

    Raises:
        InputError: there is none.
    """
    has = corpus.frame["start"].notna()
    if not has.any():
        raise InputError(
            f"{len(corpus)} texts without a cycle",
            "a natural or an induced condition",
            "build some with mechrep.natural_condition",
        )
    return corpus.select(has)


def scored_texts(corpus: Corpus, when: When) -> list[ScoredText]:
    """Every text from its second copy on; ``"from_onset"`` edits from the position that predicts it.

    Raises:
        InputError: another ``when``.
    """
    if when not in ("from_onset", "all"):
        raise InputError(f"when={when!r}", "'from_onset' or 'all'", "choose one of these")
    onsets = corpus.frame["onset"].astype(int).tolist()
    return [
        ScoredText(tuple(corpus.row(i)), onset, 0 if when == "all" else onset - 1, i)
        for i, onset in enumerate(onsets)
    ]  # fmt: skip


def copy_means(
    corpus: Corpus, text: int, scores: Float[Tensor, "row token"], copies: int
) -> Float[np.ndarray, "row copy"]:
    """Means over the whole copies behind the first, without seams; NaN for copies that the text does not have."""
    period = int(corpus.frame["period"][text])
    skipped = 1 if bool(corpus.frame["seam"][text]) else 0
    means = np.full((len(scores), copies), np.nan)
    whole = min(copies, scores.shape[1] // period)
    by_copy = scores[:, : whole * period].double().unflatten(1, (whole, period)) if whole else scores[:, None, :0]
    if whole and period > skipped:
        means[:, :whole] = by_copy[..., skipped:].mean(-1).numpy()
    return means


SHARD = 16  # texts: enough to fill batches, few enough to lose little


def in_shards(
    ids: Sequence[str],
    compute: Callable[[Sequence[int]], Sequence[np.ndarray]],
    *,
    provenance: Provenance,
    store: str | Path | None,
    what: str,
    progress: bool | None,
) -> list[np.ndarray]:
    """One array per text, computed shard by shard; finished shards are read back from the store.

    Args:
        ids: of the texts.
        compute: gives the arrays of some texts by their numbers; it must not depend on which texts share a shard.
        provenance: of the study: what the arrays depend on.
        store: folder of finished shards.
        what: name of the progress bar.
        progress: show it.

    Raises:
        StoreError: the store cannot be read or written.

    Example:
        >>> from mechrep.provenance import Provenance
        >>> def squares(texts):
        ...     return [np.array([text**2]) for text in texts]
        >>> nothing = Provenance({}, {}, {})
        >>> found = in_shards(["a", "b"], squares, provenance=nothing, store=None, what="", progress=False)
        >>> [one.tolist() for one in found]
        [[0.0], [1.0]]
    """
    journal = None if store is None else Journal(Path(store), provenance)
    found: list[np.ndarray] = []
    with progress_bar(len(ids), what, "text", progress) as bar:
        for shard, begin in enumerate(range(0, len(ids), SHARD)):
            numbers = range(begin, min(begin + SHARD, len(ids)))
            records = None if journal is None else journal.find(shard)
            if records is None:
                records = _records(ids, numbers, compute(numbers))
                if journal is not None:
                    journal.keep(shard, records)
            found += [np.array(record["values"], dtype=float) for record in records]
            bar.update(len(numbers))
    return found


def _records(ids: Sequence[str], numbers: Sequence[int], arrays: Sequence[np.ndarray]) -> list[dict[str, Any]]:
    return [{"text": ids[i], "values": array.tolist()} for i, array in zip(numbers, arrays, strict=True)]


def copy_scores(
    model: Model,
    corpus: Corpus,
    cuts: Sequence[Intervention | None],
    *,
    when: When,
    copies: int,
    provenance: Provenance,
    store: str | Path | None = None,
    progress: bool | None = None,
    what: str = "cutting heads",
) -> Float[np.ndarray, "text cut copy"]:
    """Mean log-probability of each copy behind the first, for every text and cut; NaN where a text has no such copy.

    Args:
        model: the model.
        corpus: texts with cycles.
        cuts: ``None`` is the untouched model.
        when: ``"all"`` or ``"from_onset"``.
        copies: copies beyond the first.
        provenance: of the study.
        store: folder of finished shards.
        progress: show a progress bar.
        what: its name.

    Raises:
        InputError: another ``when``.
        StoreError: the store cannot be read or written.
    """
    texts = scored_texts(corpus, when)

    def compute(numbers: Sequence[int]) -> list[np.ndarray]:
        scored = score_tokens(model, [texts[i] for i in numbers], cuts, progress=False)
        return [copy_means(corpus, i, s.log_probability, copies) for i, s in zip(numbers, scored, strict=True)]

    ids = corpus.frame["id"].astype(str).tolist()
    found = in_shards(ids, compute, provenance=provenance, store=store, what=what, progress=progress)
    return np.stack(found)


def all_heads(model: Model) -> list[tuple[int, int]]:
    """All heads of a model, layer by layer."""
    return [(layer, head) for layer in range(model.anatomy.n_layers) for head in range(model.anatomy.n_heads)]


def reference_of(model: Model, reference: Corpus | None) -> HeadReference:
    """What heads write in the reference texts; by default windows of the embedded held-out text, which is English."""
    length = min(model.anatomy.n_ctx, 128)
    return head_reference(
        model, reference or windows_of_text(model, tiny.held_out_text(), length=length), progress=False
    )


def ablation_contrast(
    model: Model,
    conditions: Sequence[Corpus],
    *,
    ops: Sequence[str] = ("mean",),
    reference: Corpus | None = None,
    when: When = "all",
    copies: int = COPIES,
    seed: int = 0,
    store: str | Path | None = None,
    progress: bool | None = None,
) -> HeadContrastResult:
    """Cut every head alone and see what each condition loses.

    With the text ``prefix, cycle, cycle, ...`` and its tokens given, ``effect = mean over a copy's tokens of
    (log p with the head cut - log p without)``, in nats per token, for copies 1 (the second) to ``copies``.  The same
    estimator at the same positions for both conditions.

    Args:
        model: the model.
        conditions: natural and induced, built from one list of prompts; texts without a cycle are left out.
        ops: ``"mean"`` (the head's mean over reference text), ``"zero"``, ``"resample"`` (what all heads wrote at one
            position of it), ``"to_bos"``.
        reference: texts that do not repeat, for ``mean`` and ``resample``: a control condition; by default windows of
            the embedded held-out text.
        when: ``"all"``: cut at every position, so what a head writes into the first copy is gone too (as a
            previous-token head does); ``"from_onset"``: from the position that predicts the second copy on.
        copies: copies beyond the first.
        seed: of ``resample``.
        store: folder in which finished shards of texts are kept, so that a stopped run goes on.
        progress: show a progress bar.

    Raises:
        InputError: conditions that cannot be joined, none with a cycle, an unknown operation.
        StoreError: the store cannot be read or written.

    Source: cutting heads in both conditions is Mahaut & Franzon 2025's (arXiv 2504.01100), who write every text again
    under every cut and count loops.  A natural prompt loops by construction before the cut, so counts have a ceiling
    there and none in the induced condition; log-probabilities have none in either.

    Limits: heads that do the same work hide each other when each is cut alone.

    Example:
        >>> import mechrep
        >>> from mechrep.generation.text_kinds import induced_condition, natural_condition
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> prompts = mechrep.generation.sample_prompts(model, 6)
        >>> natural = natural_condition(model, prompts, max_new_tokens=100)
        >>> induced = induced_condition(model, prompts, 2, "cycle", max_new_tokens=100)
        >>> result = ablation_contrast(model, [natural, induced], ops=["zero"], copies=1)
        >>> result.new_tokens, len(result.contrast()) == model.anatomy.n_layers * model.anatomy.n_heads
        (0, True)
    """
    if not ops or not set(ops) <= set(OPS) or len(set(ops)) < len(ops):
        raise InputError(f"ops={list(ops)}", f"some of {OPS}, each once", "choose among these")
    joined = joined_conditions(*conditions, n_ctx=model.anatomy.n_ctx, copies=copies)
    joined.check_model(model)
    corpus, heads = cyclic_texts(joined), all_heads(model)
    known = reference_of(model, reference) if {"mean", "resample"} & set(ops) else None
    cuts: list[Intervention | None] = [None]
    for name in ops:
        op = name if known is None else known.op(name, seed)
        cuts += [Heads([unit], op, when) for unit in heads]
    config = {"study": "ablation contrast", "ops": list(ops), "when": when, "copies": copies, "seed": seed}
    if known is not None:
        config["reference"] = [float(known.mean.double().sum()), len(known.samples)]
    provenance = provenance_of(model, corpus, config)
    values = copy_scores(
        model, corpus, cuts, when=when, copies=copies, provenance=provenance, store=store, progress=progress
    )
    shape = (len(corpus), len(ops), model.anatomy.n_layers, model.anatomy.n_heads, copies)
    effects = (values[:, 1:] - values[:, :1]).reshape(shape).transpose(1, 0, 4, 2, 3)
    return HeadContrastResult(
        provenance,
        effects=torch.from_numpy(effects.copy()),
        untouched=torch.from_numpy(values[:, 0].copy()),
        ops=list(ops),
        ids=corpus.frame["id"].tolist(),
        conditions=labels_of(corpus),
        prompts=corpus.frame["prompt"].tolist(),
        new_tokens=0,
    )


def patching_contrast(
    model: Model,
    conditions: Sequence[Corpus],
    donors: Corpus,
    *,
    copy: int = 1,
    seed: int = 0,
    store: str | Path | None = None,
    progress: bool | None = None,
) -> HeadContrastResult:
    """Patch every head alone, from donor texts into the texts of conditions.

    ``effect = log p(e | z_h from the donor) - log p(e)`` at the position that predicts the first token ``e`` of a copy
    (the second, where the seam is not the text's own), in nats.

    Args:
        model: the model.
        conditions: texts that are patched.
        donors: a condition, whose texts give ``z``; its own texts are not patched.
        copy: copy whose first token is predicted, from 1, the second copy, on.
        seed: of the choice of donors.
        store: folder in which finished shards of texts are kept.
        progress: show a progress bar.

    Returns:
        A result with one operation, named after the donors' builder; NaN for texts without a donor that is as long.

    Raises:
        InputError: fewer than one copy, conditions that cannot be joined.
        NothingFoundError: no text has a donor that is as long.

    Source: interchange of activations between runs: Vig et al. 2020 (arXiv 2004.12265), Geiger et al. 2021
    (2106.02997).

    Limits: one position is patched; what heads wrote into earlier ones stays.

    Example:
        >>> import mechrep
        >>> from mechrep.generation.text_kinds import induced_condition, natural_condition
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> prompts = mechrep.generation.sample_prompts(model, 4)
        >>> natural = natural_condition(model, prompts, max_new_tokens=100)
        >>> induced = induced_condition(model, prompts, 2, "cycle", max_new_tokens=100)
        >>> patching_contrast(model, [natural], induced).ops
        ['patched from icl_from_cycle(2)']
    """
    if copy < 1:
        raise InputError(f"copy={copy}", "1, the second copy, or a later one", "choose another")
    joined = joined_conditions(*conditions, n_ctx=model.anatomy.n_ctx, copies=copy)
    giving = joined_conditions(donors, n_ctx=model.anatomy.n_ctx, copies=copy)
    for corpus in (joined, giving):
        corpus.check_model(model)
    corpus, heads, cache = cyclic_texts(joined), all_heads(model), CorpusCache(model, giving, progress=False)
    config = {"study": "patching contrast", "donors": donors.fingerprint(), "copy": copy, "seed": seed}
    provenance = provenance_of(model, corpus, config)

    def patched(text: int) -> np.ndarray:
        place = _place(corpus, text, copy)
        chosen = (
            None if place is None else _donor(corpus, text, place, giving, copy, np.random.default_rng([seed, text]))
        )
        if place is None or chosen is None:
            return np.full(len(heads) + 1, np.nan)
        table = _outputs(cache, *chosen)
        asked = ScoredText(tuple(corpus.row(text)[: place + 1]), place, place - 1, text)
        (scores,) = score_tokens(model, [asked], [None, *(Heads([one], mean(table)) for one in heads)], progress=False)
        return scores.log_probability[:, 0].numpy()

    found = in_shards(
        corpus.frame["id"].astype(str).tolist(), lambda texts: [patched(text) for text in texts],
        provenance=provenance, store=store, what="patching heads", progress=progress,
    )  # fmt: skip
    values = torch.from_numpy(np.stack(found))
    size = (1, len(corpus), 1, model.anatomy.n_layers, model.anatomy.n_heads)
    effects, untouched = (values[:, 1:] - values[:, :1]).view(size), values[:, :1].clone()
    if untouched.isnan().all():
        raise NothingFoundError(
            f"{len(giving)} donors, none as long as any of {len(corpus)} texts at the position asked about",
            "donors that reach that far",
            "build controls with more max_new_tokens, or patch from another condition",
        )
    name = "+".join(sorted(set(donors.frame["builder"])))
    return HeadContrastResult(
        provenance,
        effects=effects.contiguous(),
        untouched=untouched,
        ops=[f"patched from {name}"],
        ids=corpus.frame["id"].tolist(),
        conditions=labels_of(corpus),
        prompts=corpus.frame["prompt"].tolist(),
        new_tokens=0,
    )


def _place(corpus: Corpus, text: int, copy: int) -> int | None:
    """Position of the first token of a copy that counts; ``None`` if the text ends before it."""
    facts = corpus.frame.iloc[text]
    place = int(facts["start"]) + copy * int(facts["period"]) + int(bool(facts["seam"]))
    return place if place < int(corpus.lengths[text]) else None


def _donor(
    corpus: Corpus, text: int, place: int, donors: Corpus, copy: int, generator: np.random.Generator
) -> tuple[int, int] | None:
    """A donor text, and the position in it that predicts; ``None`` if no donor is long enough."""
    places = []
    for donor in range(len(donors)):
        cyclic = not np.isnan(donors.frame["copies"][donor])
        found = _place(donors, donor, copy) if cyclic else place
        places.append(found if found is not None and found <= int(donors.lengths[donor]) else None)
    usable = [donor for donor, found in enumerate(places) if found is not None]
    if not usable:
        return None
    same = [donor for donor in usable if donors.frame["prompt"][donor] == corpus.frame["prompt"][text]]
    chosen = same[0] if same else usable[int(generator.integers(len(usable)))]
    found = places[chosen]
    assert found is not None
    return chosen, found - 1


def _outputs(cache: CorpusCache, text: int, position: int) -> Float[Tensor, "layer head d_head"]:
    """What all heads write at one position."""
    return cache.get(Site.Z, texts=[text], positions=slice(position, position + 1))[:, 0, 0].float()


def regenerated_contrast(
    model: Model,
    conditions: Sequence[Corpus],
    *,
    op: str = "mean",
    reference: Corpus | None = None,
    when: When = "all",
    texts: int | None = 16,
    max_new_tokens: int = 64,
    seed: int = 0,
    progress: bool | None = None,
) -> HeadContrastResult:
    """Write the texts of conditions again, greedily, with every head cut alone.

    ``effect`` is the change of the share of ``max_new_tokens`` that goes on with the cycle before another token comes.
    Where two copies meet at a seam that is not the text's own, the first token of the next copy is given.

    Args:
        model: the model.
        conditions: natural and induced.
        op: as in :func:`~mechrep.studies.text_kind_effects.ablation_contrast`, as are the next two.
        reference: as there.
        when: as there.
        texts: a sample of at most so many of each condition; ``None`` takes all.
        max_new_tokens: after each prompt.
        seed: of the sample, and of ``resample``.
        progress: show a progress bar.

    Returns:
        A result with one copy; ``new_tokens`` counts all that was generated.

    Raises:
        InputError: an unknown operation, prompts that leave no room, conditions without a cycle.

    Example:
        >>> import mechrep
        >>> from mechrep.generation.text_kinds import natural_condition
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> natural = natural_condition(model, mechrep.generation.sample_prompts(model, 4), max_new_tokens=100)
        >>> result = regenerated_contrast(model, [natural], op="zero", texts=1, max_new_tokens=4)
        >>> result.new_tokens <= 4 * (1 + model.anatomy.n_layers * model.anatomy.n_heads)
        True
    """
    if op not in OPS:
        raise InputError(f"op={op!r}", f"one of {OPS}", "choose one of these")
    corpus = _sample(cyclic_texts(Corpus.concatenate(*conditions)), texts, seed)
    heads, known = all_heads(model), reference_of(model, reference) if op in ("mean", "resample") else None
    cut = op if known is None else known.op(op, seed)
    cuts: list[Intervention | None] = [None, *(Heads([unit], cut, when) for unit in heads)]
    seams = corpus.frame["seam"].astype(int).tolist()  # a seam is given: nothing could foresee it
    ends = [int(end) + seam for end, seam in zip(corpus.frame["prompt_length"], seams, strict=True)]
    prompts = [corpus.row(i)[:end] for i, end in enumerate(ends)]
    requests = [
        Request(tuple(prompt), one, 0 if when == "all" else len(prompt) - 1, i)
        for one in cuts
        for i, prompt in enumerate(prompts)
    ]
    answers = run_requests(model, requests, Decoding(max_new_tokens), progress=progress, what="writing again")
    shares = np.array([_share(corpus, a.request.text, a.tokens, max_new_tokens) for a in answers])
    values = torch.from_numpy(shares).view(len(cuts), len(corpus))
    shape = (1, len(corpus), 1, model.anatomy.n_layers, model.anatomy.n_heads)
    config = {"study": "regenerated", "op": op, "when": when, "max_new_tokens": max_new_tokens, "seed": seed}
    return HeadContrastResult(
        provenance_of(model, corpus, config),
        effects=(values[1:] - values[:1]).T.reshape(shape).contiguous(),
        untouched=values[0][:, None].clone(),
        ops=[op],
        ids=corpus.frame["id"].tolist(),
        conditions=labels_of(corpus),
        prompts=corpus.frame["prompt"].tolist(),
        new_tokens=sum(len(answer.tokens) for answer in answers),
    )


def agreement(cheap: HeadContrastResult, dear: HeadContrastResult, *, k: int = 3) -> pd.DataFrame:
    """Do two ways of cutting heads rank and sign them alike?  On the texts that both have.

    Columns: ``condition``; ``rank_correlation``, Spearman's, over all heads, of the effects with their signs;
    ``top_shared`` of the first ``k`` by size; ``signs``, the share of the ``k`` largest of the first way whose sign is
    the same; ``n``.

    Args:
        cheap: of :func:`~mechrep.studies.text_kind_effects.ablation_contrast`.
        dear: of :func:`regenerated_contrast`.
        k: heads compared.

    Raises:
        InputError: no text in common.
    """
    common = [name for name in dear.ids if name in set(cheap.ids)]
    if not common:
        raise InputError("two results without a text in common", "the same conditions", "measure both on them")
    rows = []
    tables = [one.head_effects().values for one in (cheap, dear)]
    for condition in dict.fromkeys(dear.conditions):
        chosen = [name for name, own in zip(dear.ids, dear.conditions, strict=True) if own == condition]
        chosen = [name for name in chosen if name in set(common)]
        means = [
            table[[list(one.ids).index(name) for name in chosen]].mean(0).ravel()
            for table, one in zip(tables, (cheap, dear), strict=True)
        ]
        tops = [set(np.argsort(-np.abs(mean), kind="stable")[:k].tolist()) for mean in means]
        same = [np.sign(means[0][place]) == np.sign(means[1][place]) for place in tops[0]]
        (ranks,) = rank_correlation(means[0][None], means[1][None])
        rows.append((condition, float(ranks), len(tops[0] & tops[1]), float(np.mean(same)), len(chosen)))
    return pd.DataFrame(rows, columns=["condition", "rank_correlation", "top_shared", "signs", "n"])


def _sample(corpus: Corpus, texts: int | None, seed: int) -> Corpus:
    if texts is None:
        return corpus
    generator, labels = np.random.default_rng(seed), np.array(labels_of(corpus), dtype=object)
    chosen: list[int] = []
    for name in dict.fromkeys(labels):
        here = np.flatnonzero(labels == name)
        chosen += sorted(generator.choice(here, min(texts, len(here)), replace=False).tolist())
    return corpus.select(chosen)


def _share(corpus: Corpus, text: int, tokens: Sequence[int], limit: int) -> float:
    """Share of the new tokens that go on with the cycle."""
    start, onset = int(corpus.frame["start"][text]), int(corpus.frame["onset"][text])
    cycle, seam = corpus.row(text)[start:onset], int(corpus.frame["seam"][text])
    return copy_run(tokens, [*cycle[seam:], *cycle[:seam]]) / limit


Unit = tuple[int, int]
HeadSet = tuple[str, str, int, list[Unit]]  # condition that they matter in, selection, draw, heads


def head_dissociation(
    model: Model,
    conditions: Sequence[Corpus],
    *,
    k: int,
    op: str = "mean",
    controls: Sequence[str] = ("random",),
    draws: int = 5,
    reference: Corpus | None = None,
    when: When = "all",
    copies: int = COPIES,
    strict: bool = True,
    seed: int = 0,
    store: str | Path | None = None,
    progress: bool | None = None,
) -> pd.DataFrame:
    """Cut the ``k`` heads that matter most in each condition, together, in texts on which they were not found.

    Args:
        model: the model.
        conditions: natural and induced, built from one list of prompts.
        k: heads cut together.
        op: as in :func:`~mechrep.studies.text_kind_effects.ablation_contrast`, as are ``reference`` to ``copies``.
        controls: ``"random"``, ``"layer_matched"``, see :func:`mechrep.ablation.old_controls.control_heads`.
        draws: of each control.
        reference: as there.
        when: as there.
        copies: as there.
        strict: refuse controls that cannot be drawn; otherwise they are left out, and ``attrs["left_out"]`` of the
            table says why.
        seed: of the split and the draws.
        store: folder in which finished shards of texts are kept.
        progress: show a progress bar.

    Returns:
        One row per set of heads and condition: ``heads_of`` (the condition that they matter in), ``selection``
        (``"top"`` or a control), ``draw``, ``heads``, ``condition``, the mean ``effect`` (change of log p, nats per
        token), ``low`` and ``high`` (bootstrap over texts), ``n``.

    Raises:
        InputError: fewer than two prompts in a condition, ``k`` larger than there are heads, controls that cannot be
            drawn.

    Example:
        >>> import mechrep
        >>> from mechrep.generation.text_kinds import induced_condition, natural_condition
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> prompts = mechrep.generation.sample_prompts(model, 8)
        >>> natural = natural_condition(model, prompts, max_new_tokens=100)
        >>> induced = induced_condition(model, prompts, 2, "cycle", max_new_tokens=100)
        >>> table = head_dissociation(model, [natural, induced], k=1, op="zero", draws=1, copies=1)
        >>> sorted(set(table["heads_of"])), sorted(set(table["selection"]))
        (['induced', 'natural'], ['random', 'top'])
    """
    joined = cyclic_texts(joined_conditions(*conditions, n_ctx=model.anatomy.n_ctx, copies=copies))
    find, test = halves(joined, seed)
    known = reference_of(model, reference) if op in ("mean", "resample") else None
    effects = ablation_contrast(
        model, [find], ops=[op], reference=reference, when=when, copies=copies, seed=seed, store=store,
        progress=progress,
    ).head_effects()  # fmt: skip
    tops = {condition: effects.top(k, condition) for condition in dict.fromkeys(labels_of(find))}
    sets, left_out = _head_sets(model, tops, controls, range(seed, seed + draws), strict)
    cut = op if known is None else known.op(op, seed)
    cuts: list[Intervention | None] = [None, *(Heads(units, cut, when) for *_, units in sets)]
    config = {"study": "head dissociation", "sets": [list(one) for one in sets], "op": op, "when": when}
    if known is not None:
        config["reference"] = [float(known.mean.double().sum()), len(known.samples)]
    by_copy = copy_scores(
        model, test, cuts, when=when, copies=copies, store=store, progress=progress, what="cutting sets of heads",
        provenance=provenance_of(model, test, config | {"copies": copies, "seed": seed}),
    )  # fmt: skip
    values = _known_mean(by_copy)
    changes, labels = values[:, 1:] - values[:, :1], np.array(labels_of(test), dtype=object)
    rows = []
    for number, (owner, selection, draw, units) in enumerate(sets):
        for condition in dict.fromkeys(labels):
            here = changes[labels == condition, number]
            here = here[~np.isnan(here)]
            ends = paired_bootstrap_interval(here, seed=seed)
            names = " ".join(f"{layer}.{head}" for layer, head in units)
            rows.append((owner, selection, draw, names, condition, here.mean(), *ends, len(here)))
    columns = ["heads_of", "selection", "draw", "heads", "condition", "effect", "low", "high", "n"]
    frame = pd.DataFrame(rows, columns=columns)
    frame.attrs["left_out"] = left_out
    return frame


def _head_sets(
    model: Model, tops: dict[str, list[Unit]], controls: Sequence[str], seeds: Sequence[int], strict: bool
) -> tuple[list[HeadSet], dict[str, str]]:
    """Sets to cut, and why some control is not among them."""
    anatomy, sets, left_out = model.anatomy, [], {}
    for condition, top in tops.items():
        sets.append((condition, "top", 0, top))
        for control in controls:
            try:
                drawn = [
                    control_heads(control, top, n_layers=anatomy.n_layers, n_heads=anatomy.n_heads, seed=one)
                    for one in seeds
                ]
            except InputError as error:
                if strict:
                    raise
                left_out[f"{control}, {condition}"] = str(error)
                continue
            sets += [(condition, control, draw, units) for draw, units in enumerate(drawn)]
    return sets, left_out


def _known_mean(values: Float[np.ndarray, "text cut copy"]) -> Float[np.ndarray, "text cut"]:
    """Mean over the copies that a text has; NaN where it has none."""
    counts = (~np.isnan(values)).sum(-1)
    return np.divide(np.nansum(values, -1), counts, out=np.full(counts.shape, np.nan), where=counts > 0)


def halves(corpus: Corpus, seed: int) -> tuple[Corpus, Corpus]:
    """Two halves of the prompts, each with texts of every condition; a prompt's texts stay together.

    Raises:
        InputError: a condition with fewer than two prompts.
    """
    generator, labels = np.random.default_rng(seed), np.array(labels_of(corpus), dtype=object)
    prompts, chosen = corpus.frame["prompt"].to_numpy(dtype=object), set()
    memberships: dict[str, str] = {}
    for prompt, label in zip(prompts, labels, strict=True):
        memberships[prompt] = memberships.get(prompt, "") + label
    for membership in dict.fromkeys(memberships.values()):
        group = [prompt for prompt, own in memberships.items() if own == membership]
        order = generator.permutation(len(group))
        chosen |= {group[i] for i in order[: (len(group) + 1) // 2]}
    mask = np.array([prompt in chosen for prompt in prompts])
    for name in dict.fromkeys(labels):
        if not mask[labels == name].any() or mask[labels == name].all():
            raise InputError(
                f"condition {name!r} with {int((labels == name).sum())} texts", "at least two prompts", "try more"
            )
    return corpus.select(mask), corpus.select(~mask)
