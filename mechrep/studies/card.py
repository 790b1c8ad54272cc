"""The card of a model: which phenomena of repetition it shows, each as one number beside the bar it is held to.

Every row is measured by the analyzer of its phenomenon, so the card also says at a glance what mechrep has to work with
in a model: without an induction head there is no induction to study.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechrep.analyzers.heads.scores import HeadScoreResult, HeadScores
from mechrep.analyzers.sinks.ablation import sink_neuron_ablation
from mechrep.analyzers.sinks.attention_sinks import AttentionSinkResult, AttentionSinks
from mechrep.analyzers.sinks.first_position import attention_sinks
from mechrep.analyzers.sinks.neurons import sink_neurons
from mechrep.analyzers.sinks.norms import SinkNormResult, SinkNorms
from mechrep.analyzers.sinks.repeat_norms import RepeatNormResult, RepeatNorms
from mechrep.cache.corpus_cache import CorpusCache
from mechrep.errors import InputError
from mechrep.models import tiny
from mechrep.models.model import Model
from mechrep.stats import paired_bootstrap_interval, proportion_interval
from mechrep.studies.card_result import CardResult, CardRow, card_of
from mechrep.studies.repetition_study import measure_loop_share
from mechrep.text.corpus import Corpus
from mechrep.text.random_repeats import random_repeats
from mechrep.text.repeated import repeated_tokens
from mechrep.text.windows import windows_of_text

SINK_ATTENTION = 0.3  # more mean attention to the first position makes a sink head; Gu et al. 2025
SINK_LENGTH = 64  # tokens; the score falls with the length, so it is stated
LOSS_WINDOWS = 32
_SINK_WINDOWS = 100
_CUT = 3  # sink neurons set to zero
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
        logits = model.tl(tokens) if model.plain is None or model.processed else model.plain_logits(tokens)
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
    cut = sink_neuron_ablation(model, windows, scores, k=_CUT, seed=seed)
    removed, random = float(cut.removed_by(f"top {_CUT}")), float(cut.removed_by("random").mean())
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
