"""What is known of every token before any attention is read: its class, and how much information it carries.

* ``surprisal``: ``-log p_model(x_j | x_<j)``, in nats.  In a loop it collapses, so every copy of the cycle has the
  surprisal that the *first* copy had.
* ``unigram``: ``-log`` of the token's frequency in reference text, in nats, with one count added to every id.

A token is *low* in one of them if it lies in the lowest quartile of its text, the text up to the second copy, in which
every token of the cycle counts once.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from mechrep.cache.corpus_cache import Batch
from mechrep.errors import InputError
from mechrep.guards import Share, guarded
from mechrep.models import tiny
from mechrep.models.anatomy import Site
from mechrep.models.finite import no_number
from mechrep.models.model import Model
from mechrep.models.reading import read_activations
from mechrep.models.stream import Stream
from mechrep.text.corpus import Corpus
from mechrep.text.token_classes import CLASSES, token_classes
from mechrep.text.windows import windows_of_text

QUANTITIES = ("surprisal", "unigram")
GROUPS = (*CLASSES, "low_surprisal", "low_unigram")
LOWEST = 0.25  # the quartile
_TOKENS_PER_BATCH = 4096
_LOGITS = 2**24  # at a time: of a large vocabulary a few positions


@dataclass(frozen=True, eq=False)
class TokenFacts:
    """Facts about the tokens of a corpus.

    Attributes:
        groups: whether a token belongs to each group of :data:`GROUPS`; a token has one class and may be low besides.
        values: the :data:`QUANTITIES`, in nats; NaN at position 0, for which nothing is predicted, and in the padding.
        queries: positions from the second copy on; in a text without a cycle from the continuation on, and where that
            is not known either, all but the first.
        ends: last position of every whole copy.
        prompt: positions of the prompt.
        source: for every position the same place in the first copy; itself outside the loop.
    """

    groups: Bool[Tensor, "group text pos"]
    values: Float[Tensor, "quantity text pos"]
    queries: Bool[Tensor, "text pos"]
    ends: Bool[Tensor, "text pos"]
    prompt: Bool[Tensor, "text pos"]
    source: Int64[Tensor, "text pos"]

    def fingerprint(self) -> str:
        """SHA-256 over everything."""
        digest = hashlib.sha256()
        for part in (self.groups, self.values, self.queries, self.ends, self.prompt, self.source):
            digest.update(f"{tuple(part.shape)}".encode())
            digest.update(part.contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()[:24]

    def features(self) -> Float[Tensor, "text pos feature"]:
        """Groups as 0 and 1, then quantities; 0 where there is no value."""
        return torch.cat([self.groups.double(), self.values.double().nan_to_num(0.0)]).permute(1, 2, 0).contiguous()


def token_facts(
    model: Model,
    corpus: Corpus,
    *,
    reference: Corpus | None = None,
    on: str = "word",
    surprisal: Float[Tensor, "text pos"] | None = None,
) -> TokenFacts:
    """Work out classes, surprisals and frequencies of all tokens.

    Args:
        model: the model; its own surprisal counts.
        corpus: the texts, with ``start``, ``onset`` and ``period`` where they loop.
        reference: text that token frequencies are counted in; by default the embedded held-out text, which is English.
        on: ``"word"``: classes of the word a token is part of; ``"piece"``: of the token alone, as published.
        surprisal: of these texts, where it is known; else it is read.

    Raises:
        InputError: a model without a tokenizer, or a corpus of another one.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> facts = token_facts(model, mechrep.Corpus.from_texts(["The sea was calm."], model=model))
        >>> facts.groups.shape[0] == len(GROUPS), bool(facts.values[0, 0, 1:].min() > 0)
        (True, True)
    """
    classes = token_classes(corpus, model, on=on)
    source, queries, ends, prompt = _places(corpus)
    reference = reference_text(model) if reference is None else reference
    known = token_surprisal(model, corpus) if surprisal is None else surprisal
    surprisal = known.gather(1, source)
    unigram = unigram_information(corpus, reference, model.anatomy.d_vocab)
    values = torch.stack([surprisal, unigram.masked_fill(surprisal.isnan(), torch.nan)])
    by_class = [classes == number for number in range(len(CLASSES))]
    low = [lowest(part, source, LOWEST) for part in values]
    return TokenFacts(torch.stack([*by_class, *low]), values, queries, ends, prompt, source)


def reference_text(model: Model) -> Corpus:
    """Windows of the embedded held-out text: text that does not loop."""
    return windows_of_text(model, tiny.held_out_text(), length=min(model.anatomy.n_ctx, 512), limit=32)


@torch.no_grad()
def token_surprisal(model: Model, corpus: Corpus) -> Float[Tensor, "text pos"]:
    """``-log p(x_j | x_<j)`` in nats; NaN for the first token and the padding.

    Logits are made of a few positions at a time.  Only of a model without a logit lens, whose logits are more than its
    unembedding's output, are those of a whole text in memory.

    Args:
        model: the model.
        corpus: the texts.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> token_surprisal(model, mechrep.Corpus.from_texts(["The sea."], model=model)).isnan()[0, :2].tolist()
        [True, False]
    """
    corpus.check_model(model)
    found = torch.full(corpus.tokens.shape, torch.nan)
    width = corpus.tokens.shape[1]
    lens = has_lens(model)
    size = _TOKENS_PER_BATCH if lens else min(_TOKENS_PER_BATCH, _LOGITS // model.anatomy.d_vocab)
    for texts in torch.arange(len(corpus)).split(max(1, size // width)):
        tokens = corpus.tokens[texts].to(model.device)
        with model.each_alone(corpus.lengths[texts]):
            if lens:
                found[texts, 1:] = _losses_by_parts(model, tokens)
            else:
                logits = model.plain_logits(tokens) if model.fast else model.tl(tokens)
                found[texts, 1:] = _losses(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).view(len(texts), -1)
    inside = torch.arange(width) < corpus.lengths[:, None]
    if bool(found[:, 1:][inside[:, 1:]].isnan().any()):
        raise no_number(model.name, model.dtype, "logits")
    return found.masked_fill(~inside, torch.nan)


def _losses(logits: Float[Tensor, "token d_vocab"], targets: Int64[Tensor, " token"]) -> Float[Tensor, " token"]:
    return torch.nn.functional.cross_entropy(logits.float(), targets.to(logits.device), reduction="none").cpu()


def has_lens(model: Model) -> bool:
    """Whether the logits of the plain view are made of its last residual stream, position by position."""
    trace = model.trace if model.fast else None
    return trace is not None and trace.head is not None and trace.finish is not None


@torch.no_grad()
def losses_of_states(
    model: Model, states: Float[Tensor, "batch pos d_model"], tokens: Int64[Tensor, "batch pos"]
) -> Float[Tensor, "batch target"]:
    """``-log p`` of every token but the first, from the last residual stream; logits of a few positions at a time.

    Args:
        model: one that :func:`has_lens`.
        states: output of the last layer.
        tokens: that the states were made of.
    """
    stream, targets = Stream(model), tokens[:, 1:].flatten()
    step = max(1, _LOGITS // model.anatomy.d_vocab)
    pairs = zip(states[:, :-1].flatten(0, 1).split(step), targets.split(step), strict=True)
    return torch.cat([_losses(stream.logits(some), those) for some, those in pairs]).view(len(tokens), -1)


def _losses_by_parts(model: Model, tokens: Int64[Tensor, "batch pos"]) -> Float[Tensor, "batch target"]:
    seen, last = list[Tensor](), {Site.RESID_POST: [model.anatomy.n_layers - 1]}
    read_activations(model, tokens, last, lambda states, *_: seen.append(states), view="plain")
    return losses_of_states(model, seen[0], tokens)


def unigram_information(corpus: Corpus, reference: Corpus, d_vocab: int) -> Float[Tensor, "text pos"]:
    """``-log((count + 1) / (tokens + d_vocab))`` of every token, counted in the reference, in nats.

    Args:
        corpus: the texts.
        reference: where tokens are counted.
        d_vocab: size of the vocabulary.

    Example:
        >>> reference = Corpus.from_tokens([[1, 1, 2]])
        >>> unigram_information(Corpus.from_tokens([[1, 2, 0]]), reference, 3).exp()[0].round().tolist()
        [2.0, 3.0, 6.0]
    """
    real = torch.arange(reference.tokens.shape[1]) < reference.lengths[:, None]
    counts = torch.bincount(reference.tokens[real], minlength=d_vocab).double()
    information = (counts.sum() + d_vocab).log() - (counts + 1).log()
    return information[corpus.tokens].float()


@guarded
def lowest(
    values: Float[Tensor, "text pos"], source: Int64[Tensor, "text pos"], share: Share
) -> Bool[Tensor, "text pos"]:
    """The tokens up to the share's quantile of their text, in which each source position counts once.

    Args:
        values: NaN where a token has none.
        source: for every position the same place in the first copy.
        share: of the tokens.

    Raises:
        InputError: a share outside (0, 1).

    Example:
        >>> values, source = torch.tensor([[torch.nan, 4.0, 1.0, 3.0, 2.0, 1.0]]), torch.tensor([[0, 1, 2, 3, 4, 2]])
        >>> lowest(values, source, 0.25)[0].tolist()
        [False, False, True, False, False, True]
    """
    if share in (0, 1):
        raise InputError(f"share={share}", "between 0 and 1", "ask for 0.25, the lowest quartile")
    first = source == torch.arange(values.shape[1])
    known = values.masked_fill(~first, torch.nan)
    # The lower of two neighbours: a quantile between them would let "low" grow beyond the share.
    limits = torch.nanquantile(known, share, dim=1, keepdim=True, interpolation="lower")
    return values <= limits  # False for NaN


def _places(
    corpus: Corpus,
) -> tuple[Int64[Tensor, "text pos"], Bool[Tensor, "text pos"], Bool[Tensor, "text pos"], Bool[Tensor, "text pos"]]:
    """Source, queries, ends of copies, and prompt of every text."""
    position = torch.arange(corpus.tokens.shape[1])
    real = position < corpus.lengths[:, None]
    source = position.expand(corpus.tokens.shape).clone()
    queries, ends, prompt = (torch.zeros_like(real) for _ in range(3))
    columns = ("start", "onset", "period", "prompt_length")
    for text, (start, onset, period, prompt_length) in enumerate(corpus.frame[list(columns)].itertuples(index=False)):
        prompt[text] = position < int(prompt_length)
        if pd.isna(onset) or pd.isna(start) or pd.isna(period):
            queries[text] = position >= max(1, int(prompt_length))
            continue
        begin, second, length = int(start), int(onset), int(period)
        place = begin + (position - begin) % length
        copied = (position >= second) & (corpus.tokens[text] == corpus.tokens[text][place.clamp(max=len(position) - 1)])
        source[text] = torch.where(copied, place, position)
        queries[text] = position >= second
        ends[text] = (position >= second - 1) & ((position - begin) % length == length - 1)
    return source, queries & real, ends & real, prompt & real


@dataclass(frozen=True)
class FactRows:
    """Attention of one layer in one batch, with the facts about its texts.

    Attributes:
        pattern: ``[batch head query key]``, zero where padding takes part.
        features: ``[batch key feature]``.
        queries: ``[batch query]``.
        asked: the same from query ``first`` on, with an axis for heads.
        keys: real positions but the first, ``[batch 1 key]``.
        causal: ``[query key]``.
        first: the first query of any text.
        texts: numbers of the texts.
    """

    pattern: Tensor
    features: Tensor
    queries: Tensor
    asked: Tensor
    keys: Tensor
    causal: Tensor
    first: int
    texts: list[int]

    @classmethod
    def of(cls, activation: Tensor, batch: Batch, features: Tensor, queries: Tensor) -> FactRows:
        """Cut facts to the batch and silence the padding."""
        width, device, texts = activation.shape[-1], activation.device, list(batch.texts)
        wide = torch.float32 if device.type == "mps" else torch.float64
        real = torch.arange(width, device=device) < batch.lengths.to(device)[:, None]
        pattern = activation.to(wide).masked_fill(~(real[:, None, :, None] & real[:, None, None]), 0.0)
        chosen = queries[texts, :width].to(device)
        position = torch.arange(width, device=device)
        first = int(chosen.any(0).int().argmax()) if bool(chosen.any()) else 0
        return cls(
            pattern,
            features[texts, :width].to(device, wide),
            chosen,
            chosen[:, None, first:],
            (real & (position > 0))[:, None],
            position[:, None] >= position,
            first,
            texts,
        )

    def sinks(self, threshold: float | None) -> Bool[Tensor, "batch head key"]:
        """Keys other than the first to which the queries behind them give more than the threshold on average."""
        heads = self.pattern.shape[1]
        if threshold is None:
            return torch.zeros_like(self.keys.expand(-1, heads, -1))
        lengths = self.keys.sum(-1, keepdim=True) + 1
        behind = (lengths - 1 - torch.arange(self.keys.shape[-1], device=self.keys.device)).clamp_min(0)
        received = self.pattern.tril(-1).sum(2) / behind.clamp_min(1)
        # Of the last keys so few queries say anything that a previous-token head would make sinks of them.
        enough = 2 * behind >= lengths - 1
        return self.keys & enough & (received > threshold)
