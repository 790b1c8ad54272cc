"""The card of a model: which phenomena of repetition it shows, each as one number beside the bar it is held to.

Every row is measured by the analyzer of its phenomenon, so the card also says at a glance what mechrep has to work with
in a model: without an induction head there is no induction to study.

A model's card over its training: when does each phenomenon appear?

``CardResult``: the phenomena of a model as a table, each number beside the bar that it is held to.

A model's card over its training, one small panel per measure on one axis of tokens seen.
"""

from __future__ import annotations

import dataclasses
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechrep.ablation.controls import draw_controls
from mechrep.ablation.sink_outcomes import excess_removed
from mechrep.cache.corpus_cache import CorpusCache
from mechrep.errors import InputError
from mechrep.figures import ACCENT, AXIS, INK, plain, styled, translucent
from mechrep.interventions.ops import Neurons
from mechrep.measures.attention_sinks import AttentionSinkResult, AttentionSinks, attention_sinks
from mechrep.measures.head_scores import HeadScoreResult, HeadScores
from mechrep.measures.sink_neurons import sink_neurons
from mechrep.measures.sink_norms import RepeatNormResult, RepeatNorms, SinkNormResult, SinkNorms
from mechrep.models import tiny
from mechrep.models.load import load_model
from mechrep.models.model import Model
from mechrep.progress import progress_bar
from mechrep.provenance import provenance_of
from mechrep.results import Result
from mechrep.stats import paired_bootstrap_interval, proportion_interval
from mechrep.studies.neurons import measure_loop_share
from mechrep.text.corpus import Corpus, windows_of_text
from mechrep.text.stimuli import random_repeats, repeated_tokens

if TYPE_CHECKING:
    import plotly.graph_objects as go


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
        rows: see :class:`CardRow`, as JSON-ready values.
    """

    rows: Sequence[dict[str, object]]

    def card_rows(self) -> list[CardRow]:
        """The rows."""
        return [CardRow(**row) for row in self.rows]  # pyright: ignore[reportArgumentType]

    def value(self, measure: str) -> float:
        """One number, by the beginning of its measure's name.

        Raises:
            KeyError: no such measure, or several.
        """
        (row,) = [row for row in self.card_rows() if row.measure.startswith(measure)] or [None]
        if row is None:
            raise KeyError(measure)
        return row.value

    def to_frame(self) -> pd.DataFrame:
        """One row per measure, with ``shown``: True, False, or missing where no bar is set."""
        rows = self.card_rows()
        frame = pd.DataFrame(self.rows)
        return frame.assign(shown=pd.array([row.shown for row in rows], dtype="boolean"))

    def to_markdown(self) -> str:
        """The table of a model card: phenomenon, measure, value with its interval, bar, whether it is reached."""
        lines = ["| phenomenon | measure | value | bar | shown |", "|---|---|---|---|---|"]
        for row in self.card_rows():
            interval = "" if math.isnan(row.low) else f" [{row.low:.2f}, {row.high:.2f}]"
            note = f" ({row.note})" if row.note else ""
            shown = {None: "", True: "yes", False: "**no**"}[row.shown]
            lines.append(
                f"| {row.phenomenon} | {row.measure}{note} | {row.value:.2f}{interval} | {row.bar} | {shown} |"
            )
        return "\n".join(lines)


def card_of(rows: Sequence[CardRow], model: Model, corpus: Corpus, **config: object) -> CardResult:
    """A card with its provenance.

    Args:
        rows: the numbers.
        model: what they were measured on.
        corpus: on which texts.
        config: settings of the measurement.
    """
    return CardResult(provenance_of(model, corpus, dict(config)), [dataclasses.asdict(row) for row in rows])


SINK_ATTENTION = 0.3  # more mean attention to the first position makes a sink head; Gu et al. 2025
SINK_LENGTH = 64  # tokens; the score falls with the length, so it is stated
LOSS_WINDOWS = 32
_SINK_WINDOWS = 100
_CUT = 3  # sink neurons set to zero
_DRAWS = 19  # of as many other neurons
_PERIOD, _SEQUENCES = 50, 32  # of the random repeats
_REPEATED_TOKENS = 96
_LONGEST = 1024  # positions, where the context would allow more


def measure_card(
    model: Model,
    *,
    held_out_text: str | None = None,
    prompts: int = 256,
    sink_layer: int | None = None,
    seed: int = 0,
) -> CardResult:
    """Measure every phenomenon that mechrep studies on one model.

    Args:
        model: the model.
        held_out_text: English by default (public-domain books that mechrep-tiny was not trained on).
        prompts: sampled prompts for the share that loops.
        sink_layer: where norms are compared, for a model whose sink more than one layer makes; that of the largest jump
            by default.
        seed: of prompts, random repeats and draws.

    Returns:
        Rows in the order of the table of docs/mechrep-tiny.md.

    Raises:
        InputError: a context too short for the stimuli, a text shorter than one window, or a model without a BOS.

    Limits: the bars are those that mechrep-tiny is held to; they are conventions, and for large models low ones.

    Example:
        >>> import mechrep
        >>> card = measure_card(mechrep.load_model("mechrep-tiny"), prompts=16)
        >>> card.value("best head: prefix matching") > 0.5
        True
    """
    text = tiny.held_out_text() if held_out_text is None else held_out_text
    windows = windows_of_text(model, text, length=SINK_LENGTH, limit=_SINK_WINDOWS)
    attention, norms = CorpusCache(model, windows, progress=False).run(AttentionSinks(SINK_ATTENTION), SinkNorms())
    assert isinstance(attention, AttentionSinkResult)
    assert isinstance(norms, SinkNormResult)
    layer = norms.ranking()[0] if sink_layer is None else sink_layer
    if not 0 <= layer < model.anatomy.n_layers:
        raise InputError(f"layer {layer}", f"a layer from 0 to {model.anatomy.n_layers - 1}", "count layers from 0")
    rows = [
        *_language(model, text, default_text=held_out_text is None),
        _loops(model, prompts, seed),
        *_copying(model, seed),
        *_sinks(attention),
        *_norms(model, windows, norms, layer, seed),
        *_repeated_tokens(model, text, norms, layer, attention, seed),
    ]
    return card_of(rows, model, windows, study="card", prompts=prompts, seed=seed)


def loss_windows(model: Model, text: str) -> Corpus:
    """The windows that the card's held-out loss is measured on."""
    return windows_of_text(model, text, length=min(model.anatomy.n_ctx, _LONGEST), limit=LOSS_WINDOWS)


@torch.no_grad()
def _losses(model: Model, corpus: Corpus) -> Float[Tensor, "text target"]:
    """Loss in nats of every token but the first; all texts are equally long."""
    losses = []
    for rows in corpus.tokens.split(8):
        tokens = rows.to(model.device)
        logits = model.tl(tokens) if not model.fast else model.plain_logits(tokens)
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].float().transpose(1, 2), tokens[:, 1:], reduction="none"
        )
        losses.append(loss.cpu())
    return torch.cat(losses)


def _language(model: Model, text: str, *, default_text: bool) -> list[CardRow]:
    windows = loss_windows(model, text)
    losses = _losses(model, windows).double().mean(1).numpy()
    low, high = paired_bootstrap_interval(losses)
    n = f"{len(losses)} windows of {windows.tokens.shape[1]} tokens"
    rows = [CardRow("language", "held-out loss, nats per token", float(losses.mean()), low, high, n)]
    if default_text and model.name in tiny.NAMES:
        gains = np.array(tiny.ngram_losses()) - losses
        low, high = paired_bootstrap_interval(gains)
        measure = "5-gram's loss on the same windows minus the model's"
        rows.append(CardRow("language", measure, float(gains.mean()), low, high, n, least=0.0))
    return rows


def _loops(model: Model, prompts: int, seed: int) -> CardRow:
    share, (low, high) = measure_loop_share(model, "mechrep", n=prompts, seed=seed)
    measure = "share of sampled prompts that loop within 200 greedy tokens"
    return CardRow("greedy loops", measure, share, low, high, f"{prompts} prompts", least=0.25, most=0.85)


def _copying(model: Model, seed: int) -> list[CardRow]:
    """Induction and previous-token heads, and what copying does to the loss, on random repeated tokens."""
    period = min(_PERIOD, (model.anatomy.n_ctx - 1) // 2)
    corpus = random_repeats(model, n=period, sequences=_SEQUENCES, seed=seed)
    (heads,) = CorpusCache(model, corpus, progress=False).run(HeadScores(bos_id=model.bos_id))
    assert isinstance(heads, HeadScoreResult)
    losses = _losses(model, corpus)[:, -2 * period :] if model.bos_id is not None else _losses(model, corpus)
    # The first token of the second copy cannot be foreseen, so it belongs to neither.
    gain = (losses[:, :-period].mean(1) - losses[:, -period + 1 :].mean(1)).double().numpy()
    low, high = paired_bootstrap_interval(gain)
    n = f"{_SEQUENCES} texts of 2 x {period} random tokens"
    return [
        _best_head("induction", "best head: prefix matching on random repeats", heads, "induction", n),
        CardRow(
            "induction", "loss on the first copy minus the second, nats", float(gain.mean()), low, high, n, least=2.0
        ),
        _best_head("previous token", "best head: mean attention to the token before", heads, "previous_token", n),
    ]


def _best_head(phenomenon: str, measure: str, heads: HeadScoreResult, score: str, n: str) -> CardRow:
    ((layer, head),) = heads.top(1, score)
    number = list(heads.names).index(score)
    value, error = (float(table[number, layer, head]) for table in (heads.scores, heads.standard_errors))
    interval = (value - 1.96 * error, value + 1.96 * error)
    return CardRow(phenomenon, measure, value, *interval, n, least=0.6, note=f"layer {layer}, head {head}")


def _sinks(attention: AttentionSinkResult) -> list[CardRow]:
    n = f"{attention.n_texts} windows of {attention.mean_length:.0f} tokens"
    share = float((attention.alpha > SINK_ATTENTION).double().mean())
    heads = [f"{layer}.{head}" for layer, head in attention.top(int((attention.alpha > SINK_ATTENTION).sum()))]
    layer, head = attention.top(1)[0]
    return [
        CardRow(
            "attention sink",
            f"share of heads with mean attention to the first position > {SINK_ATTENTION}",
            share,
            n=n,
            least=0.25,
            note=f"heads {', '.join(heads)}" if heads else "no head",
        ),
        CardRow(
            "attention sink",
            "best head: mean attention to the first position",
            float(attention.alpha[layer, head]),
            n=n,
            least=0.6,
            note=f"layer {layer}, head {head}; a uniform head {attention.uniform_alpha:.2f}",
        ),
    ]


def _norms(model: Model, windows: Corpus, norms: SinkNormResult, layer: int, seed: int) -> list[CardRow]:
    ratio = float(norms.ratio[layer + 1])
    n = f"{norms.n_texts} windows"
    scores = sink_neurons(model, windows, layer)
    shape = {"layers": model.anatomy.n_layers, "width": model.anatomy.d_mlp}
    sets = [scores.top(_CUT), *draw_controls("layer_matched", scores.top(_CUT), draws=_DRAWS, seed=seed, **shape)]
    zeros = [Neurons(units, "zero", when="all") for units in sets]
    removed, *others = excess_removed(model, windows, layer, zeros).tolist()
    random = float(np.mean(others))
    names = ", ".join(str(neuron) for neuron in scores.ranking()[:_CUT])
    measure = "norm at the first position over the mean elsewhere, after the sink layer"
    return [
        CardRow("BOS norm", measure, ratio, n=n, least=5.0, note=f"layer {layer}"),
        CardRow(
            "BOS norm",
            f"share of the excess that {_CUT} neurons of that layer make",
            removed,
            n=n,
            least=0.5,
            note=f"neurons {names}; {_CUT} random ones {random:.2f}",
        ),
    ]


def _repeated_tokens(
    model: Model, text: str, norms: SinkNormResult, layer: int, attention: AttentionSinkResult, seed: int
) -> list[CardRow]:
    """One token over and over, up to the context length: does its norm move to that of BOS, does the sink spread?"""
    length = min(model.anatomy.n_ctx, _LONGEST)
    ordinary = sorted(set(range(model.anatomy.d_vocab)) - set(model.special_ids))
    chosen = np.random.default_rng(seed).choice(ordinary, min(_REPEATED_TOKENS, len(ordinary)), replace=False)
    corpus = repeated_tokens(model, sorted(chosen.tolist()), length - 1, bos=True)
    (repeats,) = CorpusCache(model, corpus, progress=False).run(RepeatNorms())
    assert isinstance(repeats, RepeatNormResult)
    # By rows of the pattern where texts are long: whole patterns would be positions x positions numbers per head.
    on_repeats = attention_sinks(model, corpus, epsilon=SINK_ATTENTION)
    on_text = attention_sinks(model, loss_windows(model, text), epsilon=SINK_ATTENTION)
    moved = repeats.moved(layer, norms.other_norm)
    count = 0 if np.isnan(moved.share) else round(moved.share * len(corpus))
    low, high = proportion_interval(count, len(corpus)) if not moved.reason else (float("nan"), float("nan"))
    n = f"{len(corpus)} tokens, {length - 1} times each"
    head = attention.top(1)[0]
    alpha_text, alpha_repeats = float(on_text.alpha[head]), float(on_repeats.alpha[head])
    return [
        CardRow(
            "repeated token",
            "share of tokens whose norm moves half-way (log scale) to that of BOS",
            moved.share,
            low,
            high,
            n,
            least=0.3,
            note=moved.reason or f"after layer {layer}",
        ),
        CardRow(
            "repeated token",
            "best sink head: attention to the first position, text minus repeats",
            alpha_text - alpha_repeats,
            n=n,
            note=f"{alpha_text:.2f} on text of {length} tokens, {alpha_repeats:.2f} on repeats",
        ),
    ]


HALF = 0.5  # of the way from the untrained model to the largest value: "has appeared"


def card_history(
    name: str,
    revisions: Sequence[str],
    *,
    prompts: int = 128,
    sink_layer: int | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> pd.DataFrame:
    """Measure the card at every revision, one model in memory at a time.

    Args:
        name: a model with revisions, ``"mechrep-tiny"`` or a hub name.
        revisions: in the order of training.
        prompts: sampled prompts for the share that loops.
        sink_layer: see :func:`~mechrep.studies.card.measure_card`.
        seed: of prompts, random repeats and draws.
        progress: show a progress bar.

    Returns:
        One row per revision and measure, with the columns of :meth:`CardResult.to_frame` and ``revision``.

    Example:
        >>> frame = card_history("mechrep-tiny", ["step0"], prompts=8)
        >>> set(frame["revision"])
        {'step0'}
    """
    frames = []
    with progress_bar(len(revisions), "measuring checkpoints", "checkpoint", progress) as bar:
        for revision in revisions:
            card = measure_card(load_model(name, revision=revision), prompts=prompts, sink_layer=sink_layer, seed=seed)
            frames.append(card.to_frame().assign(revision=revision))
            bar.update(1)
    return pd.concat(frames, ignore_index=True)


def appearances(history: pd.DataFrame) -> pd.DataFrame:
    """For each measure the revision at which it first is half-way from its first value to its largest.

    Args:
        history: as :func:`card_history` gives it, revisions in order.

    Returns:
        One row per measure: ``first`` and ``largest`` value and the ``revision``; a measure that never rises has none.

    Example:
        >>> rows = [("a", "step0", 0.0), ("a", "step8", 0.4), ("a", "step16", 0.9), ("a", "step32", 1.0)]
        >>> history = pd.DataFrame(rows, columns=["measure", "revision", "value"])
        >>> appearances(history)["revision"].tolist()
        ['step16']
    """
    rows = []
    for measure, part in history.groupby("measure", sort=False):
        values = part["value"].to_numpy(dtype=float)
        first, largest = float(values[0]), float(np.nanmax(values)) if not np.isnan(values).all() else float("nan")
        start = 0.0 if np.isnan(first) else first
        reached = values >= start + HALF * (largest - start)
        rises = largest > start and reached.any()
        revision = part["revision"].iloc[int(reached.argmax())] if rises else None
        rows.append({"measure": measure, "first": first, "largest": largest, "revision": revision})
    return pd.DataFrame(rows)


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
    figure = make_subplots(rows, _COLUMNS, subplot_titles=titles, vertical_spacing=0.35 / rows, horizontal_spacing=0.09)
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
