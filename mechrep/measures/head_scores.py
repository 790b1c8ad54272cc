"""``HeadScores``: what every attention head looks at, on repetitive text.

For attention ``A`` and the targets ``D`` of :mod:`mechrep.measures.head_targets`, over all queries with a target::

    score(head) = sum_{texts, i} sum_j A[head, i, j] D[i, j]  /  number of queries        (a perfect head: 1.0)
    chance      = the same for A[i, j] = 1 / (i + 1)

Targets are found by ids, so accidental repeats count as what they are, and only their masks live as long as a batch.
Of the patterns, one layer exists at a time; the state is sums over texts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechrep.cache.corpus_cache import Analyzer, Batch, CorpusCache
from mechrep.errors import InputError, ModelError, NothingFoundError
from mechrep.figures import (
    add_heads,
    counted,
    finished,
    panel_height,
    panels,
    plain,
)
from mechrep.guards import Count, Seed, Several, guarded, one_of
from mechrep.measures.head_copying import HeadCopyingResult
from mechrep.measures.head_targets import (
    ALIASES,
    EXPLAINED,
    NOT_USED,
    SCORES,
    Average,
    BatchTargets,
    Copies,
    Form,
    HeadRules,
    HeadTableResult,
    HeadTargets,
    Queries,
    attention_on_targets,
)
from mechrep.models.anatomy import Anatomy, Site
from mechrep.models.model import Model
from mechrep.models.units import empty_table
from mechrep.provenance import Provenance
from mechrep.results import Result
from mechrep.text.stimuli import random_repeats

if TYPE_CHECKING:
    import plotly.graph_objects as go

PUBLISHED_THRESHOLD = 0.5  # of Hiraoka and Inui 2025, for their own score
CLEAR = 0.3  # score above chance that is shown as clear; a convention of this package


@dataclass(frozen=True, eq=False)
class HeadScoreResult(HeadTableResult):
    """How much of its attention every head gives to the targets of each kind of head; a perfect head scores 1.0.

    Axis ``score`` runs over ``names``: induction (prefix matching), duplicate_token (alias self_finding),
    previous_token, current_token, first_token (sink).  ``result.induction`` and so on are its rows, ``[layer head]``.

    Attributes:
        scores: mean attention on the targets.
        standard_errors: of the scores, with the text as the unit.
        chance: score of a head that attends to all keys up to its own alike; the same for all heads.
        without_sink: the scores with the first position left out, as a target and as a sink, and the rest of each row
            scaled to 1.  Never to be read alone: a head with 0.99 on the first token and 0.01 on targets has 1.0 here.
        sink_rows_dropped: queries that are not in ``without_sink`` because less than 1e-6 of the row was left.
        unexplained: attention on no target of any of the five.
        variants: published normalisations of prefix matching, in the order of ``variant_names``.
        variant_names: see :mod:`mechrep.measures.head_targets`.
        names: the scores.
        n_queries: queries behind each score.
        n_texts: texts behind each score.
        not_used: texts that could not be used for a repetition score, by reason.
        missing: why a score is NaN, by its name.
    """

    ranked_by: ClassVar[str] = "induction"

    scores: Float[Tensor, "score layer head"]
    standard_errors: Float[Tensor, "score layer head"]
    chance: Float[Tensor, " score"]
    without_sink: Float[Tensor, "score layer head"]
    sink_rows_dropped: Int[Tensor, "score layer head"]
    unexplained: Float[Tensor, "layer head"]
    variants: Float[Tensor, "variant layer head"]
    variant_names: Sequence[str]
    names: Sequence[str]  # pyright: ignore[reportIncompatibleVariableOverride] - of this result alone they are a field
    n_queries: Mapping[str, int]
    n_texts: Mapping[str, int]
    not_used: Mapping[str, int]
    missing: Mapping[str, str]

    @classmethod
    def from_state(
        cls,
        state: Mapping[str, Tensor],
        provenance: Provenance,
        variant_names: Sequence[str],
        not_used: Mapping[str, int],
        missing: Mapping[str, str],
    ) -> HeadScoreResult:
        """Turn sums into means; a score without a query is NaN."""
        weight, n = state["weight"], state["texts"]
        means = state["sum"] / weight[:, None, None]
        # A ratio of sums over texts: its variance is that of the residuals y - mean * w.
        wide = (slice(None), None, None)
        spread = state["squares"] - 2 * means * state["cross"] + means.square() * state["weight_squares"][wide]
        spread = torch.where(spread < 1e-12 * state["squares"], 0.0, spread)  # below rounding error the texts agree
        errors = (spread * (n / (n - 1))[wide]).sqrt() / weight[wide]
        errors = torch.where((n > 1)[wide], errors, torch.nan)
        tensors = {
            "scores": means[:EXPLAINED],
            "standard_errors": errors[:EXPLAINED],
            "chance": (state["chance"] / weight)[:EXPLAINED],
            "without_sink": (state["sink_sum"] / state["sink_weight"])[:EXPLAINED],
            "unexplained": 1 - means[EXPLAINED],
            "variants": state["variants"] / state["observed"],
        }
        counts = {
            name: dict(zip(SCORES, map(int, state[name].tolist()), strict=False)) for name in ("queries", "texts")
        }
        return cls(
            provenance,
            **{name: value.float() for name, value in tensors.items()},
            sink_rows_dropped=state["sink_dropped"][:EXPLAINED].long(),
            variant_names=list(variant_names),
            names=list(SCORES),
            n_queries=counts["queries"],
            n_texts=counts["texts"],
            not_used=dict(not_used),
            missing=dict(missing),
        )

    @property
    def induction(self) -> Float[Tensor, "layer head"]:
        """Attention on tokens that follow earlier copies of the current one (prefix matching)."""
        return self.of("induction")

    @property
    def duplicate_token(self) -> Float[Tensor, "layer head"]:
        """Attention on earlier copies of the current token (self-finding)."""
        return self.of("duplicate_token")

    @property
    def previous_token(self) -> Float[Tensor, "layer head"]:
        """Attention on the position before."""
        return self.of("previous_token")

    @property
    def first_token(self) -> Float[Tensor, "layer head"]:
        """Attention on position 0 (sink)."""
        return self.of("first_token")

    @property
    def adjusted(self) -> Float[Tensor, "score layer head"]:
        """``(score - chance) / (1 - chance)``: 0 for uniform attention, 1 for a perfect head."""
        chance = self.chance[:, None, None]
        return (self.scores - chance) / (1 - chance)

    @guarded
    def row(self, score: str) -> int:
        """Place of a score on the axis ``score``.

        Raises:
            InputError: a name that is not among ``names``.
        """
        name = ALIASES.get(score, score)
        one_of("score", name, self.names)
        return list(self.names).index(name)

    @guarded
    def of(self, score: str) -> Float[Tensor, "layer head"]:
        """One of the scores, or of the published variants, by its name.

        Raises:
            InputError: a name that is not in this result.
        """
        if score in self.variant_names:
            return self.variants[list(self.variant_names).index(score)]
        one_of("score", ALIASES.get(score, score), [*self.names, *self.variant_names])
        return self.scores[self.row(score)]

    @guarded
    def above(self, threshold: float = PUBLISHED_THRESHOLD, score: str = "duplicate_token") -> list[tuple[int, int]]:
        """Heads whose score *exceeds* the threshold, highest first.

        The default is the published rule for self-finding heads; for it, run the analyzer with
        ``preset="hiraoka2025"``.  No threshold means the same for two scores or two stimuli.
        """
        values = self.of(score)
        return [unit for unit in self.ranking(score) if values[unit] > threshold]

    @guarded
    def clear(self, score: str = "induction") -> list[tuple[int, int]]:
        """Heads whose score, adjusted for chance, is at least :data:`CLEAR`; highest first."""
        adjusted = self.adjusted[self.row(score)]
        return [unit for unit in self.ranking(score) if adjusted[unit] >= CLEAR]

    def columns(self) -> dict[str, Float[Tensor, "layer head"]]:
        """Each score, its ``_error`` (standard error), ``_adjusted`` and ``_without_sink``; unexplained; variants."""
        columns: dict[str, Tensor] = {}
        tables = {"": self.scores, "_error": self.standard_errors, "_adjusted": self.adjusted}
        for number, name in enumerate(self.names):
            for suffix, table in (tables | {"_without_sink": self.without_sink}).items():
                columns[name + suffix] = table[number]
        return columns | {"unexplained": self.unexplained} | {name: self.of(name) for name in self.variant_names}

    def plot(self) -> go.Figure:
        """All scores of all heads."""
        return head_scores_figure(self)


_LEAST_OFF_SINK = 1e-6  # of a row's attention: less is rounding error of what lies on the sink
_TOKENS_PER_BATCH = 2048  # a pattern is heads x T x T per text; on a CPU small batches stay in its cache


class HeadScores(Analyzer[HeadScoreResult]):
    """Scores every head as induction, duplicate-token, previous-token, current-token and first-token head.

    Args:
        preset: ``"mechrep"`` (default): all queries, each counts once.  ``"hiraoka2025"``: queries from the second copy
            of the loop on, mean per text and then over texts; a head qualifies with more than 0.5
            (:meth:`HeadScoreResult.above`).  Print leaves open whether queries are averaged or texts counted; for the
            latter choose ``average=0.5``.
        bos_id: id that is a BOS where it stands at position 0, as ``model.bos_id`` gives it; None for texts without.
            A BOS is neither a copy of anything nor a previous token.
        copies: for induction and duplicate token: ``"all"`` earlier copies, or only the ``"newest"`` or ``"oldest"``.
        form: ``"id"``: a copy is the same id.  ``"aligned"``: a copy is the same place in the loop that the corpus'
            frame states (``start``, ``onset``, ``period``, ``copies``), so chance repeats do not count.
        queries: overrides the preset's: ``"all"``, or ``"after_onset"``, those from the second copy on.
        positions: with ``"after_onset"``: only the first so many of them.
        average: overrides the preset's: over queries (``"query"``), over queries and then texts (``"text"``), or, for
            a number, the share of texts whose score exceeds it.
        variants: published normalisations of prefix matching to measure beside it, see
            :mod:`mechrep.measures.head_targets`.

    Raises:
        InputError: unknown or contradicting settings; a corpus whose frame lacks what they need.
        ModelError: a model without attention patterns.
        NothingFoundError: a corpus without a single repeated token, or, where an onset is needed, without a loop.

    Source: Elhage et al. 2021; Olsson et al. 2022 (arXiv 2209.11895); self-finding: Hiraoka and Inui 2025 (2410.13497).

    Limits: Attention is not effect: heads that suppress copies match prefixes too.  In loops of period 1 all targets
    but the first token are the same keys; such texts do not count for those scores, which are NaN if there are no
    others (``missing`` says ``period-1``).  In loops of period 2 the newest induction target is the previous token;
    with ``copies="newest"`` they do not count for induction (``period-2``).  A period is known only from the frame.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> corpus = mechrep.Corpus.from_tokens([[0, 5, 6, 7, 5, 6, 7, 5], [0, 8, 9, 10, 8, 9, 10]], model=model)
        >>> result = mechrep.CorpusCache(model, corpus).run(HeadScores(bos_id=model.bos_id))
        >>> result.induction.shape == (model.anatomy.n_layers, model.anatomy.n_heads), result.n_queries["induction"]
        (True, 7)
    """

    sites: ClassVar[frozenset[Site]] = frozenset({Site.PATTERN})

    @guarded
    def __init__(
        self,
        preset: str = "mechrep",
        *,
        bos_id: int | None,
        copies: Copies = "all",
        form: Form = "id",
        queries: Queries | None = None,
        positions: Count | None = None,
        average: Average | float | None = None,
        variants: Sequence[str] = (),
    ) -> None:
        self.preset = preset
        self.rules = HeadRules.of(
            preset,
            variants,
            bos_id=bos_id,
            copies=copies,
            form=form,
            queries=queries,
            positions=positions,
            average=average,
        )
        self.state = {}

    @property
    def config(self) -> dict[str, Any]:
        """All settings."""
        return {"preset": self.preset, **dataclasses.asdict(self.rules), "variants": list(self.rules.variants)}

    def prepare(self, anatomy: Anatomy, frame: pd.DataFrame) -> None:
        """Empty sums for this model's heads; refuses a corpus whose frame lacks what the settings need."""
        if not anatomy.has(Site.PATTERN):
            raise ModelError(anatomy.architecture, "attention patterns", "this model has no heads to score")
        self.rules.check_frame(frame)
        scores, heads = len(SCORES) + 1, empty_table(anatomy, "heads")
        shapes: dict[str, tuple[int, ...]] = {"not_used": (len(NOT_USED),), "observed": (1,)}
        shapes |= dict.fromkeys(("weight", "weight_squares", "texts", "queries", "chance"), (scores,))
        shapes["sink_dropped"] = (scores, *heads.shape)
        self.state = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}
        for name in ("sum", "squares", "cross", "sink_sum", "sink_weight"):
            self.state[name] = heads.repeat(scores, 1, 1)
        self.state["variants"] = heads.repeat(len(self.rules.variants), 1, 1)
        self._known: BatchTargets | None = None

    def _known_of(self, batch: Batch) -> BatchTargets:
        if self._known is None or self._known.batch is not batch:
            self._known = self.rules.look_at(batch)
        return self._known

    def observe(self, activation: Tensor, site: Site, layer: int, batch: Batch) -> None:  # noqa: ARG002 - it has one
        """Add one layer of one batch."""
        known = self._known_of(batch)
        targets = known.targets.to(activation.device)
        pattern = activation.float() if activation.dtype.itemsize < 4 else activation
        # Apple's GPUs have no float64.
        wide = torch.float32 if pattern.device.type == "mps" else torch.float64
        on_targets = attention_on_targets(pattern, targets).to(wide)
        self._add_scores(on_targets, targets, layer)
        self._add_without_sink(on_targets, pattern[..., 1:].sum(-1).to(wide), targets, layer)
        for texts in known.variant_texts:
            for number, name in enumerate(self.rules.variants):
                self.state["variants"][number, layer] += texts.score(name, pattern).to(wide).sum(0).cpu()

    def _add_scores(self, on_targets: Tensor, targets: HeadTargets, layer: int) -> None:
        attention = on_targets.masked_fill(~targets.valid[:, :, None], 0.0).sum(-1)  # [score text head]
        value, weight = self._text_value(attention, targets.valid.sum(-1)[:, :, None])
        sums = torch.stack([value, value.square(), value * weight]).sum(2).cpu()
        for name, part in zip(("sum", "squares", "cross"), sums, strict=True):
            self.state[name][:, layer] += part

    def _add_without_sink(self, on_targets: Tensor, off_sink: Tensor, targets: HeadTargets, layer: int) -> None:
        """The same with column 0 taken away, as a target and from every row's attention."""
        kept, on_first = on_targets.clone(), on_targets[4]
        kept[1] -= on_first * targets.masks[0, :, None, :, 0].to(on_first)  # a first token without BOS can be a copy
        kept[5] -= on_first
        valid, enough = targets.valid_without_sink[:, :, None], off_sink >= _LEAST_OFF_SINK
        attention = (kept / off_sink).masked_fill(~(valid & enough), 0.0).sum(-1)
        value, weight = self._text_value(attention, (valid & enough).sum(-1))
        dropped = (valid & ~enough).sum(-1).to(value)
        sums = torch.stack([value, weight, dropped]).sum(2).cpu()
        for name, part in zip(("sink_sum", "sink_weight", "sink_dropped"), sums, strict=True):
            self.state[name][:, layer] += part

    def _text_value(self, attention: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
        """What each text adds above and below the fraction line of the mean."""
        if self.rules.average == "query":
            return attention, queries.to(attention)
        mean = attention / queries.clamp_min(1)
        value = mean if self.rules.average == "text" else (mean > self.rules.average).to(attention)
        return value, (queries > 0).to(attention)

    def finish_batch(self, batch: Batch) -> None:
        """Count texts and queries, and add what uniform attention would give, once for all layers."""
        known = self._known_of(batch)
        queries = known.targets.valid.sum(-1)
        chance, weight = self._text_value(known.targets.uniform.sum(-1), queries)
        counts = {"weight": weight, "weight_squares": weight.square(), "texts": queries > 0, "queries": queries}
        for name, part in (counts | {"chance": chance, "not_used": known.not_used}).items():
            self.state[name] += part.cpu().double().sum(-1)
        self.state["observed"] += len(batch.texts)
        self._known = None  # masks are as large as one head's patterns

    def result(self, provenance: Provenance) -> HeadScoreResult:
        """Means, their errors, chance, and what was left out.

        Raises:
            NothingFoundError: no token was repeated in any text that could be used.
        """
        not_used = dict(zip(NOT_USED, map(int, self.state["not_used"].tolist()), strict=True))
        texts = self.state["texts"].tolist()
        period = next((reason for reason in ("period-1", "period-2") if not_used[reason]), None)
        if texts[0] == 0 and period is None:
            raise NothingFoundError(
                f"{int(self.state['observed'])} texts in which no query that counts repeats an earlier token",
                "texts with repeats",
                "make some with mechrep.text.random_repeats",
            )
        # Without a text whose period is in the way, what lacks a query is a text too short to have one.
        reason = period or "no query"
        missing = {name: reason for name, n in zip(SCORES, texts, strict=False) if n == 0}
        return HeadScoreResult.from_state(self.state, provenance, self.rules.variants, not_used, missing)


@guarded
def score_heads(
    model: Model,
    *,
    n: Count = 50,
    copies: Several = 2,
    sequences: Count = 32,
    seed: Seed = 0,
    bos: bool | None = None,
    variants: Sequence[str] = (),
) -> HeadScoreResult:
    """Score all heads of a model on random repeated tokens: ``random_repeats`` read by :class:`HeadScores`.

    Args:
        model: the model.
        n: period of the repeats.
        copies: copies of each.
        sequences: texts.
        seed: of the draw.
        bos: whether texts begin with BOS; by default if the model has one.
        variants: published normalisations to add.  ``score_heads(model, **PROTOCOLS["song2025"])`` measures what a
            paper measured, see :mod:`mechrep.measures.head_targets`.

    Raises:
        InputError: texts that cannot be made or read, see :func:`mechrep.text.stimuli.random_repeats`.
        ModelError: a model without attention patterns.

    Example:
        >>> import mechrep
        >>> result = score_heads(mechrep.load_model("mechrep-tiny"), n=20, sequences=8)
        >>> bool(result.induction.max() > 5 * result.chance[0])
        True
    """
    corpus = random_repeats(model, n=n, copies=copies, sequences=sequences, seed=seed, bos=bos)
    batch_size = max(1, _TOKENS_PER_BATCH // corpus.tokens.shape[1])
    cache = CorpusCache(model, corpus, batch_size=batch_size, progress=False)
    return cache.run(HeadScores(bos_id=model.bos_id, variants=variants))


@guarded
def induction_heads(
    scores: HeadScoreResult, copying: HeadCopyingResult, *, prefix: float = CLEAR, functional: float = 0.0
) -> list[tuple[int, int]]:
    """Heads that look at what followed the earlier copy *and* say it: adjusted prefix matching and copying.

    A head qualifies if its adjusted induction score is at least ``prefix``, its functional copying score at least
    ``functional``, and both lie above the 99 % bands of their permutation nulls.  The threshold of attention is a
    convention of this package, not of the literature; ``functional`` has none of its own, because how much of its
    logits a head can give to one token depends on the vocabulary.

    Args:
        scores: attention, from :func:`~mechrep.measures.head_scores.score_heads`.
        copying: logits and nulls, from :func:`~mechrep.measures.head_copying.score_copying`; of the same
            model, best on the same texts.
        prefix: least adjusted induction score.
        functional: least functional copying score.

    Returns:
        ``(layer, head)`` pairs, best prefix matching first.

    Raises:
        InputError: results of two models.

    Limits: prefix matching alone also finds heads that suppress what they look at; those fail the second condition.

    Example:
        >>> import mechrep
        >>> from mechrep.measures.head_copying import score_copying
        >>> from mechrep.measures.head_scores import score_heads
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> found = induction_heads(score_heads(model, n=20, sequences=4), score_copying(model, n=20, sequences=4))
        >>> isinstance(found, list)
        True
    """
    check_one_model(scores, copying)
    adjusted = scores.adjusted[scores.row("induction")]
    enough = (adjusted >= prefix) & (copying.functional >= functional)
    by_chance = (scores.induction <= copying.prefix_band[1]) | (copying.functional <= copying.functional_band[1])
    return [unit for unit in scores.ranking("induction") if enough[unit] and not by_chance[unit]]


def check_one_model(first: Result, second: Result) -> None:
    """Refuse results of two models.

    Raises:
        InputError: other weights, or another name or revision where the weights are unknown.
    """
    names = ("name", "revision", "fingerprint")
    one, other = ([result.provenance.model.get(name) for name in names] for result in (first, second))
    known = one[2] is not None and other[2] is not None
    if one[2] != other[2] if known else one[:2] != other[:2]:
        raise InputError(f"results of {one} and {other}", "two results of one model", "measure both on one model")


_LABELS = {
    "induction": "induction (prefix matching)",
    "duplicate_token": "duplicate token (self-finding)",
    "previous_token": "previous token",
    "current_token": "current token",
    "first_token": "first token (sink)",
}
_REASONS = {
    "period-1": "every loop has period 1: all targets are the same keys",
    "period-2": "every loop has period 2: the target is the previous token",
    "no query": "no text has a query with such a target",
}


def head_scores_figure(result: HeadScoreResult, score: str | None = None) -> go.Figure:
    """Scores of all heads, a cell each, on one scale of colours from 0 to 1 (a variant below 0 has the colour of 0).

    Values stand in the cells while they fit, and always in the labels under the pointer, with standard error, chance
    and numbers of queries and texts.  Cells without a value are grey, and say why.

    Args:
        result: what was measured.
        score: one of the result's scores or variants; by default its five scores, a panel each.

    Raises:
        InputError: a score that is not in this result.

    Source: the scores are those of :mod:`mechrep.measures.head_scores`.

    Example:
        >>> import mechrep
        >>> from mechrep.measures.head_scores import score_heads
        >>> result = score_heads(mechrep.load_model("mechrep-tiny"), n=10, sequences=2)
        >>> len(head_scores_figure(result).data)
        5
        >>> bool((head_scores_figure(result, "induction").data[0].z == result.induction.numpy()).all())
        True
    """
    names = list(result.names) if score is None else [score]
    n_layers = result.of(names[0]).shape[0]
    figure = panels([_panel_title(result, name) for name in names], panel_height(n_layers))
    for index, name in enumerate(names):
        add_heads(figure, result.of(name), _details(result, name), index=index, reason=_reason(result, name))
    texts = counted(max(result.n_texts.values()), "text")
    label = "What every attention head looks at" if score is None else f"Heads by {label_of(score)}"
    return finished(
        figure,
        title=label,
        subtitle=f"{result.provenance.model['name']}, {texts}",
        x="head",
        y="layer",
        share="share of texts" if isinstance(result.provenance.config.get("average"), float) else "share of attention",
    )


def label_of(score: str) -> str:
    """What a score is called in figures."""
    return _LABELS.get(score, score)


def _panel_title(result: HeadScoreResult, name: str) -> str:
    title = f"<b>{plain(label_of(name))}</b>"
    if name not in result.names:
        return title
    if name in result.missing:
        return f"{title}<br>no value: {_reason(result, name)}"
    return f"{title}<br>chance {_chance(result, name):.3f}, {counted(result.n_texts[name], 'text')}"


def _reason(result: HeadScoreResult, name: str) -> str:
    why = result.missing.get(name, "not defined on these texts")
    return plain(_REASONS.get(why, why))


def _chance(result: HeadScoreResult, name: str) -> float:
    return float(result.chance[result.row(name)])


def _details(result: HeadScoreResult, name: str) -> list[list[str]]:
    """What a pointer on a head shows below its score."""
    if name not in result.names:
        about = f"{plain(name)}, a published normalisation"
        return [[about] * result.of(name).shape[1] for _ in result.of(name)]
    errors = result.standard_errors[result.row(name)].tolist()
    counts = f"queries: {result.n_queries[name]:,}, texts: {result.n_texts[name]:,}"
    about = f"{plain(label_of(name))}<br>chance {_chance(result, name):.3f}<br>{counts}"
    return [[f"{_error(value)}<br>{about}" for value in row] for row in errors]


def _error(value: float) -> str:
    return "no standard error (one text)" if np.isnan(value) else f"± {value:.3f} (standard error)"
