"""The card of a model: which phenomena of repetition it shows, each as one number beside the bar it is held to.

Every row is measured by the analyzer of its phenomenon, so the card also says at a glance what mechrep has to work with
in a model: without an induction head there is no induction to study.  Bars are conventions: they are what mechrep-tiny
is held to, so the number comes first; a *verdict* says whether it exceeds what null models (shuffled and re-initialised
weights) or random neurons give, where that was measured.

A row is kept as soon as it is measured, so an interrupted card goes on where it was; so does a card over training.
"""

from __future__ import annotations

import dataclasses
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd

from mechrep.ablation.controls import draw_controls
from mechrep.ablation.effects import detection, judge
from mechrep.ablation.norm_profiles import excess_removed, norm_profiles
from mechrep.ablation.texts import loop_share, null_models
from mechrep.cache.corpus_cache import CorpusCache
from mechrep.errors import InputError
from mechrep.figures import ACCENT, AXIS, INK, new_figure, plain, styled, translucent
from mechrep.generation.loops import loop_preset
from mechrep.guards import Count, Whole, guarded
from mechrep.interventions.ops import Neurons
from mechrep.journal import Journal
from mechrep.measures.attention_sinks import WHOLE, AttentionSinkResult, AttentionSinks, attention_sinks
from mechrep.measures.head_scores import HeadScoreResult, HeadScores
from mechrep.measures.sink_neurons import sink_neurons
from mechrep.measures.sink_norms import RepeatNormResult, RepeatNorms, SinkNormResult, SinkNorms
from mechrep.measures.token_facts import token_surprisal
from mechrep.models import tiny
from mechrep.models.load import load_model
from mechrep.models.model import Model
from mechrep.notation import listed_units, unit_name
from mechrep.progress import progress_bar
from mechrep.provenance import provenance_of
from mechrep.results import Result
from mechrep.run import LARGE_WEIGHTS, Run
from mechrep.stats import known, paired_bootstrap_interval, proportion_interval
from mechrep.text.corpus import Corpus
from mechrep.text.stimuli import random_repeats, repeated_tokens
from mechrep.text.token_kinds import ordinary_ids
from mechrep.text.windows import windows_of_text

if TYPE_CHECKING:
    import plotly.graph_objects as go

SINK_ATTENTION = 0.3  # more mean attention to the first position makes a sink head; Gu et al. 2025
SINK_LENGTH = 64  # tokens; the score falls with the length, so it is stated
LOSS_WINDOWS = 32
_SINK_WINDOWS = 100
_ABLATED = 3  # sink neurons set to zero
_DRAWS = 19  # of as many other neurons
_PERIOD, _SEQUENCES = 50, 32  # of the random repeats
_REPEATED_TOKENS = 96
_LONGEST = 1024  # positions, where the context would allow more
_PROMPTS = 256
# The same for models in which one text costs as much as a hundred do in a model of a million weights.
_LONGEST_OF_LARGE = 512
_NULL_TEXTS_OF_LARGE = 2  # of windows and of random repeats, which a null model reads


@dataclass(frozen=True)
class CardRow:
    """One number of the card.

    Attributes:
        phenomenon: what is looked for.
        measure: how it is measured.
        value: the number; NaN where the question has no answer, and ``note`` says why.
        low: lower end of a 95 % interval, or NaN where none is known.
        high: upper end.
        n: what the interval is over.
        least: the bar: the value must reach it.
        most: the other bar: the value must not exceed it.
        note: which head, layer or neuron; or why there is no number.
        unit: a key of :data:`~mechrep.ablation.effects.UNITS`.
        texts: independent units behind the interval; 0: the number has none.
        draws: the same number of null models or random units; none where it was not measured.
        controls: what the draws are.
    """

    phenomenon: str
    measure: str
    value: float
    low: float = float("nan")
    high: float = float("nan")
    n: str = ""
    least: float = float("nan")
    most: float = float("nan")
    note: str = ""
    unit: str = "score"
    texts: int = 0
    draws: Sequence[float] = ()
    controls: str = ""

    @property
    def line(self) -> str:
        """The row in one line."""
        interval = "" if math.isnan(self.low) else f" [{self.low:.2f}, {self.high:.2f}]"
        bar = f"; by convention {self.bar}: {self.judgement}" if self.bar else ""
        return f"{self.phenomenon}: {self.measure}: {self.value:.2f}{interval}{bar}"

    @property
    def judgement(self) -> str:
        """The value against its bars, in words; nothing where there are none."""
        if self.shown is None:
            return ""
        if self.shown or math.isnan(self.value):
            return "reached" if self.shown else "not measured"
        return f"more than {self.most:g}" if self.value > self.most else f"less than {self.least:g}"

    @property
    def bar(self) -> str:
        """The bars in words."""
        if math.isnan(self.most):
            return "" if math.isnan(self.least) else f"at least {self.least:g}"
        return f"at most {self.most:g}" if math.isnan(self.least) else f"{self.least:g} to {self.most:g}"

    @property
    def shown(self) -> bool | None:
        """Whether the value lies within the bars; None where there is no bar."""
        if math.isnan(self.least) and math.isnan(self.most):
            return None
        return not (self.value < self.least or self.value > self.most or math.isnan(self.value))


@dataclass(frozen=True, eq=False)
class CardResult(Result):
    """The rows of a model's card.

    Attributes:
        rows: see :class:`CardRow`.
    """

    rows: Sequence[CardRow]

    nested: ClassVar[Mapping[str, type]] = {"rows": CardRow}

    @guarded
    def row(self, measure: str) -> CardRow:
        """One row, by the beginning of its measure's name.

        Raises:
            InputError: no such measure, or several.
        """
        found = [row for row in self.rows if row.measure.startswith(measure)]
        if len(found) != 1:
            known = [row.measure for row in self.rows]
            raise InputError(
                f"measure {measure!r} ({len(found)} rows)", f"the beginning of one of {known}", "correct it"
            )
        return found[0]

    @guarded
    def value(self, measure: str) -> float:
        """One number, by the beginning of its measure's name."""
        return self.row(measure).value

    def to_frame(self) -> pd.DataFrame:
        """One row per measure, with ``shown``: whether it reaches its bar, missing where none is set.

        Where draws of null models or random neurons are known: their number ``m``, the largest, ``control_high``, and
        ``p, q, verdict`` of :func:`~mechrep.ablation.effects.judge`, within the family of the card's detections.
        """
        frame = pd.DataFrame([dataclasses.asdict(row) for row in self.rows]).drop(columns=["draws", "texts", "unit"])
        frame.insert(9, "shown", pd.array([row.shown for row in self.rows], dtype="boolean"))
        judged = judge(
            [
                detection(row.phenomenon, row.measure, row.value, row.draws, unit=row.unit, n=row.texts,
                          interval=(row.low, row.high))
                for row in self.rows
                if len(row.draws)
            ],
            family="detections of the card",
        )  # fmt: skip
        if judged.empty:
            return frame.assign(m=0, control_high=np.nan, p=np.nan, q=np.nan, verdict="")
        largest = judged["control_high"] + judged["baseline"]
        columns = judged[["measure", "m", "p", "q", "verdict"]].assign(control_high=largest)
        merged = frame.merge(columns, on="measure", how="left")
        return merged.assign(m=merged["m"].fillna(0).astype(int), verdict=merged["verdict"].fillna(""))

    def to_markdown(self) -> str:
        """The table of a model card, one line per row: the number, then the bar by convention, and the verdict."""
        lines = ["| phenomenon | measure | value | bar (convention) | verdict |", "|---|---|---|---|---|"]
        for row, verdict in zip(self.rows, self.to_frame()["verdict"], strict=True):
            interval = "" if math.isnan(row.low) else f" [{row.low:.2f}, {row.high:.2f}]"
            measure = row.measure + (f" ({row.note})" if row.note else "")
            bar = f"{row.bar}: {row.judgement}" if row.bar else ""
            cells = [row.phenomenon, measure, f"{row.value:.2f}{interval}", bar, verdict]
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)


@guarded
def measure_card(
    model: Model,
    *,
    held_out_text: str | None = None,
    prompts: Count | None = None,
    sink_layer: int | None = None,
    nulls: Whole | None = None,
    run: Run | None = None,
    show: Callable[[CardRow], None] | None = None,
) -> CardResult:
    """Measure every phenomenon that mechrep studies on one model.

    With ``run.store`` each group of rows is kept as soon as it is measured, and the same call goes on.

    Args:
        model: the model.
        held_out_text: English by default (public-domain books that mechrep-tiny was not trained on).
        prompts: sampled prompts for the share that loops; by default 256, and in large models as many as the run's
            effort has loops.
        sink_layer: where norms are compared, for a model whose sink more than one layer makes; that of the largest rise
            by default.
        nulls: null models beside it; by default what the run's effort says; 0: no verdicts, bars only.
        run: options.
        show: called with every row as soon as it is measured, before there are null models to judge it by.

    Returns:
        Rows in the order of the table of docs/mechrep-tiny.md.

    Raises:
        InputError: a context too short for the stimuli, a text shorter than one window, a layer that is not there, or a
            model without a BOS.
        StoreError: a store that cannot be read or written.

    Limits: the bars are those that mechrep-tiny is held to; they are conventions, and for large models low ones.  Of
    models of over 20 million weights fewer and shorter texts are read, and null models read a few of them: their best
    head is then the best of noisier numbers, which makes verdicts stricter.

    Example:
        >>> import mechrep
        >>> card = measure_card(mechrep.load_model("mechrep-tiny"), prompts=4, nulls=0)
        >>> card.value("best head: prefix matching") > 0.5
        True
    """
    options = run or Run()
    if sink_layer is not None:
        model.anatomy.check_layer(sink_layer)
    sizes = CardSizes.of(model, options)
    prompts = sizes.prompts if prompts is None else prompts
    card = _Card(model, held_out_text, sink_layer, options, sizes)
    makers = null_models(model, options)
    makers = makers[: len(makers) if nulls is None else nulls]
    steps: dict[str, Callable[[], list[CardRow]]] = {
        "language": card.language,
        f"loops of {prompts} prompts": lambda: card.loops(prompts),
        "copying": card.copying,
        "sinks": card.sinks,
        "norms": card.norms,
        "repeated tokens": card.repeated_tokens,
    }
    steps |= {f"null model {i}": partial(_null_card, make, held_out_text, sink_layer, options)
              for i, make in enumerate(makers)}  # fmt: skip
    found: dict[str, list[CardRow]] = {}
    with progress_bar(len(steps), f"card of {model.name}", "part", options.progress) as bar:
        for name, make in steps.items():
            bar.set_postfix_str(name)
            found[name] = _kept(card, name, make)
            if show is not None and not name.startswith("null model"):
                for row in found[name]:
                    show(row)
            bar.update()
    others = [found.pop(name) for name in list(found) if name.startswith("null model")]
    rows = [_beside(row, others) for rows in found.values() for row in rows]
    facts = {"study": "card", "prompts": prompts, "seed": options.seed, "nulls": len(others)}
    return CardResult(provenance_of(model, card.windows, facts), rows)


def _null_card(
    make: Callable[[], AbstractContextManager[Model]], text: str | None, layer: int | None, run: Run
) -> list[CardRow]:
    with make() as null:
        sizes = CardSizes.of(null, run)
        few = {name: min(getattr(sizes, name), sizes.null_texts) for name in ("sink_windows", "sequences")}
        return _Card(null, text, layer, run, dataclasses.replace(sizes, **few)).beside()


def _kept(card: _Card, name: str, make: Callable[[], list[CardRow]]) -> list[CardRow]:
    """The rows of one part from the run's store, or measured now and filed there."""
    if card.run.store is None:
        return make()
    settings: dict[str, Any] = {"study": "card", "part": name, "sink_layer": card.sink_layer, "seed": card.run.seed}
    settings |= {"sizes": dataclasses.asdict(card.sizes)}
    journal = Journal(Path(card.run.store), provenance_of(card.model, card.windows, settings))
    kept = journal.find(0)
    if kept is None:
        kept = [dataclasses.asdict(row) for row in make()]
        journal.keep(0, kept)
    return [CardRow(**record) for record in kept]


def _beside(row: CardRow, others: Sequence[Sequence[CardRow]]) -> CardRow:
    """A row with the same numbers of null models, where they were measured."""
    draws = [one.value for rows in others for one in rows if one.measure == row.measure]
    return dataclasses.replace(row, draws=draws, controls="null models") if draws else row


@dataclass(frozen=True)
class CardSizes:
    """How much the card reads and writes.

    Attributes:
        prompts: sampled prompts.
        loss_windows: windows of held-out text for the loss.
        longest: tokens of these windows.
        sink_windows: short windows, for sinks and norms.
        sequences: random repeats.
        repeated: tokens that are repeated, a text each.
        copies: how often, at most.
        null_texts: of windows and random repeats, which a null model reads.
    """

    prompts: int
    loss_windows: int
    longest: int
    sink_windows: int
    sequences: int
    repeated: int
    copies: int
    null_texts: int

    @classmethod
    def of(cls, model: Model, run: Run) -> CardSizes:
        """Sizes for this model; those of large models depend on the effort."""
        if model.n_weights <= LARGE_WEIGHTS:
            most = max(_SINK_WINDOWS, _SEQUENCES)
            return cls(_PROMPTS, LOSS_WINDOWS, _LONGEST, _SINK_WINDOWS, _SEQUENCES, _REPEATED_TOKENS, _LONGEST, most)
        sizes = run.sizes_on(model)
        return cls(sizes.loops, sizes.windows, _LONGEST_OF_LARGE, sizes.windows, sizes.sequences, 4 * sizes.tokens,
                   sizes.repeats, _NULL_TEXTS_OF_LARGE)  # fmt: skip


def loss_windows(model: Model, text: str, sizes: CardSizes | None = None) -> Corpus:
    """The windows that the card's held-out loss is measured on, as many and as long as for a small model."""
    longest, limit = (_LONGEST, LOSS_WINDOWS) if sizes is None else (sizes.longest, sizes.loss_windows)
    return windows_of_text(model, text, length=min(model.anatomy.n_ctx, longest), limit=limit)


@dataclass(frozen=True, eq=False)
class _Card:
    """The parts of a card, and what several of them read."""

    model: Model
    held_out_text: str | None
    sink_layer: int | None
    run: Run
    sizes: CardSizes

    @property
    def text(self) -> str:
        return tiny.held_out_text() if self.held_out_text is None else self.held_out_text

    @cached_property
    def windows(self) -> Corpus:
        return windows_of_text(self.model, self.text, length=SINK_LENGTH, limit=self.sizes.sink_windows)

    @cached_property
    def read(self) -> tuple[AttentionSinkResult, SinkNormResult]:
        cache = CorpusCache(self.model, self.windows, progress=False)
        return cache.run(AttentionSinks(SINK_ATTENTION), SinkNorms())

    @property
    def layer(self) -> int:
        """Where norms are compared."""
        if self.sink_layer is not None:
            return self.sink_layer
        rises = self.read[1].stages
        return max(rises, key=lambda stage: stage.rise).peak - 1 if rises else 0

    def beside(self) -> list[CardRow]:
        """The rows that a null model has too: those that only read."""
        return [*self.heads(), *self.sinks(), self._norm_ratio()]

    def language(self) -> list[CardRow]:
        """Loss on held-out text, and beside that of a 5-gram where it is known."""
        windows = loss_windows(self.model, self.text, self.sizes)
        losses = token_surprisal(self.model, windows)[:, 1:].double().mean(1).numpy()
        n = f"{len(losses)} windows of {windows.tokens.shape[1]} tokens"
        facts: dict[str, Any] = {"n": n, "unit": "nats", "texts": len(losses)}
        ends = paired_bootstrap_interval(losses)
        rows = [CardRow("language", "held-out loss, nats per token", float(losses.mean()), *ends, **facts)]
        known_losses = self.held_out_text is None and self.model.name in tiny.NAMES
        if known_losses and len(losses) == len(tiny.ngram_losses()):
            gains = np.array(tiny.ngram_losses()) - losses
            measure, ends = "5-gram's loss on the same windows minus the model's", paired_bootstrap_interval(gains)
            rows.append(CardRow("language", measure, float(gains.mean()), *ends, least=0.0, **facts))
        return rows

    def loops(self, prompts: int) -> list[CardRow]:
        """How often it loops."""
        share, ends, _ = loop_share(self.model, "mechrep", self.run, n=prompts)
        written = loop_preset("mechrep").within(self.model.anatomy.n_ctx).greedy
        measure = f"share of sampled prompts that loop within {written} greedy tokens"
        facts: dict[str, Any] = {"n": f"{prompts} prompts", "unit": "share", "texts": prompts}
        return [CardRow("greedy loops", measure, share, *ends, least=0.25, most=0.85, **facts)]

    def random_repeats(self) -> tuple[Corpus, int, str]:
        """Random repeated tokens, their period, and how they are called."""
        period = min(_PERIOD, (self.model.anatomy.n_ctx - 1) // 2)
        corpus = random_repeats(self.model, n=period, sequences=self.sizes.sequences, seed=self.run.seed)
        return corpus, period, f"{len(corpus)} texts of 2 x {period} random tokens"

    def heads(self) -> list[CardRow]:
        """Induction and previous-token heads on random repeated tokens."""
        corpus, _, n = self.random_repeats()
        heads = CorpusCache(self.model, corpus, progress=False).run(HeadScores(bos_id=self.model.bos_id))
        return [
            _best_head("induction", "best head: prefix matching on random repeats", heads, "induction", n, len(corpus)),
            _best_head("previous token", "best head: mean attention to the token before", heads, "previous_token", n,
                       len(corpus)),
        ]  # fmt: skip

    def copying(self) -> list[CardRow]:
        """Induction and previous-token heads, and what repetition does to the loss, on random repeated tokens."""
        induction, previous = self.heads()
        corpus, period, n = self.random_repeats()
        losses = token_surprisal(self.model, corpus)[:, 1:]
        losses = losses[:, -2 * period :] if self.model.bos_id is not None else losses
        # The first token of the second repetition cannot be foreseen, so it belongs to neither.
        gain = (losses[:, :-period].mean(1) - losses[:, -period + 1 :].mean(1)).double().numpy()
        ends = paired_bootstrap_interval(gain)
        return [
            induction,
            CardRow("induction", "loss on the first copy minus the second, nats", float(gain.mean()), *ends, n,
                    least=2.0, unit="nats", texts=len(corpus)),
            previous,
        ]  # fmt: skip

    def sinks(self) -> list[CardRow]:
        """How many heads rest on the first position, and how much the best does."""
        attention = self.read[0]
        n = f"{attention.n_texts} windows of {attention.mean_length:.0f} tokens"
        above = int((attention.alpha > SINK_ATTENTION).sum())
        names = listed_units("head", attention.top(above), most=above)
        layer, head = attention.top(1)[0]
        measure = f"share of heads with mean attention to the first position > {SINK_ATTENTION}"
        note = f"{unit_name('head', layer, head)}; a uniform head {attention.uniform_alpha:.2f}"
        return [
            CardRow("attention sink", measure, above / len(known(attention.alpha)), n=n, least=0.25, unit="share",
                    note=f"heads {names}" if above else "no head"),
            CardRow("attention sink", "best head: mean attention to the first position",
                    float(attention.alpha[layer, head]), n=n, least=0.6, note=note),
        ]  # fmt: skip

    def _norm_ratio(self) -> CardRow:
        norms, measure = self.read[1], "norm at the first position over the mean elsewhere, after the sink layer"
        ratio = float(norms.ratio[self.layer + 1])
        facts: dict[str, Any] = {"n": f"{norms.n_texts} windows", "unit": "ratio", "note": f"layer {self.layer}"}
        return CardRow("BOS norm", measure, ratio, least=5.0, **facts)

    def norms(self) -> list[CardRow]:
        """The norm at the first position, and how much of it few neurons make, beside as many others of the layer."""
        model, anatomy = self.model, self.model.anatomy
        scores = sink_neurons(model, self.windows, self.layer)
        units, shape = scores.top(_ABLATED), (anatomy.n_layers, anatomy.neurons)
        drawn = draw_controls("layer_matched", units, layers=shape[0], width=shape[1], draws=_DRAWS, seed=self.run.seed)
        zeros = [Neurons(one, "zero", when="all") for one in [units, *drawn]]
        depth = self.layer + 1
        ratios = norm_profiles(model, self.windows, [None, *zeros], depth)
        removed, *others = excess_removed(ratios)[:, depth].tolist()
        note = f"{listed_units('neuron', units, _ABLATED)}; {_ABLATED} random ones {float(np.mean(others)):.2f}"
        measure = f"share of the excess that {_ABLATED} neurons of that layer make"
        facts: dict[str, Any] = {"n": f"{self.read[1].n_texts} windows", "unit": "share", "note": note}
        own = CardRow("BOS norm", measure, removed, least=0.5, draws=others, controls="random neurons", **facts)
        return [self._norm_ratio(), own]

    def _norms_and_attention(self, corpus: Corpus) -> tuple[RepeatNormResult, AttentionSinkResult]:
        """Of repeated tokens; of long texts the pattern is read by rows, as a whole one would be too large."""
        cache = CorpusCache(self.model, corpus, progress=False)
        if int(corpus.lengths.max()) <= WHOLE:
            return cache.run(RepeatNorms(), AttentionSinks(SINK_ATTENTION))
        return cache.run(RepeatNorms()), attention_sinks(self.model, corpus, epsilon=SINK_ATTENTION)

    def repeated_tokens(self) -> list[CardRow]:
        """One token over and over: does its norm move to that of BOS, does the sink spread?"""
        model, (attention, norms) = self.model, self.read
        length = min(model.anatomy.n_ctx, self.sizes.copies)
        ordinary, generator = ordinary_ids(model), np.random.default_rng(self.run.seed)
        chosen = generator.choice(ordinary, min(self.sizes.repeated, len(ordinary)), replace=False)
        corpus = repeated_tokens(model, sorted(chosen.tolist()), length - 1, bos=True)
        repeats, on_repeats = self._norms_and_attention(corpus)
        limit = self.sizes.loss_windows
        on_text = attention_sinks(
            model, windows_of_text(model, self.text, length=length, limit=limit), epsilon=SINK_ATTENTION
        )
        moved = repeats.moved(self.layer, norms.other_norm)
        count = 0 if np.isnan(moved.share) else round(moved.share * len(corpus))
        ends = proportion_interval(count, len(corpus)) if not moved.reason else (float("nan"), float("nan"))
        head, n = attention.top(1)[0], f"{len(corpus)} tokens, {length - 1} times each"
        alpha_text, alpha_repeats = float(on_text.alpha[head]), float(on_repeats.alpha[head])
        note = f"{alpha_text:.2f} on text of {length} tokens, {alpha_repeats:.2f} on repeats"
        return [
            CardRow("repeated token", "share of tokens whose norm moves half-way (log scale) to that of BOS",
                    moved.share, *ends, n, least=0.3, note=moved.reason or f"after layer {self.layer}", unit="share",
                    texts=len(corpus)),
            CardRow("repeated token", "best sink head: attention to the first position, text minus repeats",
                    alpha_text - alpha_repeats, n=n, note=note),
        ]  # fmt: skip


def _best_head(phenomenon: str, measure: str, heads: HeadScoreResult, score: str, n: str, texts: int) -> CardRow:
    ((layer, head),) = heads.top(1, score)
    number = list(heads.names).index(score)
    value, error = (float(table[number, layer, head]) for table in (heads.scores, heads.standard_errors))
    ends = (value - 1.96 * error, value + 1.96 * error)
    return CardRow(phenomenon, measure, value, *ends, n, least=0.6, note=unit_name("head", layer, head), texts=texts)


# --- over training ----------------------------------------------------------------------------------------------------


def card_history(
    name: str,
    revisions: Sequence[str],
    *,
    prompts: int = 128,
    sink_layer: int | None = None,
    run: Run | None = None,
) -> pd.DataFrame:
    """Measure the card at every revision, one model in memory at a time, without null models.

    With ``run.store`` every part of every revision is kept, and the same call goes on.

    Args:
        name: a model with revisions, ``"mechrep-tiny"`` or a hub name.
        revisions: in the order of training.
        prompts: sampled prompts for the share that loops.
        sink_layer: see :func:`measure_card`.
        run: options.

    Returns:
        One row per revision and measure, with the columns of :meth:`CardResult.to_frame` and ``revision``.

    Example:
        >>> frame = card_history("mechrep-tiny", ["step0"], prompts=4)
        >>> set(frame["revision"])
        {'step0'}
    """
    options, frames = run or Run(), []
    with progress_bar(len(revisions), "measuring checkpoints", "checkpoint", options.progress) as bar:
        for revision in revisions:
            bar.set_postfix_str(revision)
            model = load_model(name, revision=revision)
            card = measure_card(model, prompts=prompts, sink_layer=sink_layer, nulls=0, run=options)
            frames.append(card.to_frame().assign(revision=revision))
            bar.update(1)
    return pd.concat(frames, ignore_index=True)


_COLUMNS = 2
_PANEL = 230  # pixels
_LINE = 62  # characters


def history_figure(history: pd.DataFrame, name: str, tokens_seen: dict[str, int] | None = None) -> go.Figure:
    """Each measure of the card at each checkpoint, with its 95 % interval where it has one, and its bars as lines.

    Args:
        history: as :func:`mechrep.studies.card.card_history` gives it.
        name: of the model.
        tokens_seen: tokens by revision, for the axis; without it revisions stand side by side.

    Example:
        >>> history = pd.DataFrame({"revision": ["step0", "step8"], "value": [0.1, 0.6], "low": [0.0, 0.5]})
        >>> history = history.assign(high=0.7, phenomenon="loops", measure="share", least=0.25, most=0.85)
        >>> figure = history_figure(history, "my-model", {"step0": 0, "step8": 16384})
        >>> len(figure.data)  # band, line, and two bars
        4
    """
    from plotly.subplots import make_subplots

    measures = list(dict.fromkeys(history["measure"]))
    rows = -(-len(measures) // _COLUMNS)
    parts = [history[history["measure"] == measure] for measure in measures]
    titles = [_title(str(part["phenomenon"].iloc[0]), str(part["measure"].iloc[0])) for part in parts]
    figure = make_subplots(
        rows,
        _COLUMNS,
        subplot_titles=titles,
        vertical_spacing=0.35 / rows,
        horizontal_spacing=0.09,
        figure=new_figure(),
    )
    for index, part in enumerate(parts):
        places = _places(part["revision"].tolist(), tokens_seen)
        _add_panel(figure, part, places, index // _COLUMNS + 1, index % _COLUMNS + 1)
    figure.update_annotations(font_size=12)
    titled = styled(figure, title="What the model shows over training", subtitle=name, x="", y="")
    for update, axis in ((titled.update_xaxes, {"showline": True, "showgrid": False}), (titled.update_yaxes, {})):
        update(AXIS | axis)
    if tokens_seen is not None:
        titled.update_xaxes(type="log", title_text="tokens seen", row=rows)
        titled.update_xaxes(type="log", dtick=1)
    return titled.update_layout(height=rows * _PANEL + 150, margin={"t": 140}, showlegend=False)


def _title(phenomenon: str, measure: str) -> str:
    """The phenomenon in bold and its measure under it, in lines that fit half of a page."""
    lines = textwrap.wrap(measure, _LINE)
    return f"<b>{plain(phenomenon)}</b><br>" + "<br>".join(plain(line) for line in lines)


def _places(revisions: list[str], tokens_seen: dict[str, int] | None) -> list[float] | list[str]:
    """The untrained model has seen nothing, which a logarithmic axis cannot show: half of the first place after it."""
    if tokens_seen is None:
        return [plain(revision) for revision in revisions]
    smallest = min((value for value in tokens_seen.values() if value > 0), default=1)
    return [float(tokens_seen[revision] or smallest / 2) for revision in revisions]


def _add_panel(figure: go.Figure, part: pd.DataFrame, places: list, row: int, column: int) -> None:
    import plotly.graph_objects as go

    low, high = part["low"].fillna(part["value"]), part["high"].fillna(part["value"])
    band = go.Scatter(
        x=[*places, *reversed(places)],
        y=[*high, *reversed(low.tolist())],
        mode="lines",
        fill="toself",
        fillcolor=translucent(ACCENT, 0.18),
        line={"width": 0},
        hoverinfo="skip",
    )
    line = go.Scatter(
        x=places,
        y=part["value"],
        mode="lines+markers",
        line={"color": ACCENT, "width": 2},
        marker={"size": 5},
        customdata=np.stack([[plain(name) for name in part["revision"]], low.round(3), high.round(3)], axis=1),
        hovertemplate="%{customdata[0]}<br>%{y:.3f} (%{customdata[1]} to %{customdata[2]})<extra></extra>",
    )
    figure.add_trace(band, row=row, col=column)
    figure.add_trace(line, row=row, col=column)
    for bar in ("least", "most"):
        if not np.isnan(part[bar].iloc[0]):
            height = float(part[bar].iloc[0])
            dotted = go.Scatter(
                x=[places[0], places[-1]],
                y=[height, height],
                mode="lines",
                line={"color": INK, "dash": "dot", "width": 1},
                hoverinfo="skip",
            )
            figure.add_trace(dotted, row=row, col=column)
