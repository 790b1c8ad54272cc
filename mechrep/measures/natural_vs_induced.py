"""Natural loops, induced texts and controls, read by one estimator.

At every position whose next token ``e`` is known because it goes on with the cycle, by the number ``k`` of cycles shown
before: ``log p(e)``, ``p(e)``, the entropy and the rank of ``e``; the logit lens, ``log p(e)`` from the residual stream
before each layer and after the last; and direct logit attribution of ``logit(e) - logit(r)``, ``r`` the most probable
other token.  With the final norm frozen at its scale ``s``, that difference is linear in what the parts of the model
add to the residual stream ``x = embedding + sum over layers of (heads + attention bias + MLP)``::

    logit(e) - logit(r) = x . d / s + b(e) - b(r)          d = c diag(g) (W_U[:, e] - W_U[:, r])
    DLA(part)           = (what the part adds) . d / s

where ``g`` and ``c`` are the final norm's gain and centring.  A head adds ``z_h W_O(h)`` (through the norm behind the
attention, where there is one); the MLP of a layer is what the layer adds besides.  Means over the tokens of a
repetition are kept for each text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from mechrep.cache.corpus_cache import Analyzer, Batch, CorpusCache
from mechrep.errors import InputError, ModelError, NothingFoundError
from mechrep.figures import ACCENT, AXIS, DASHES, SEQUENCE, counted, new_figure, plain, styled, translucent
from mechrep.generation.text_kinds import COPIES, clusters_of, joined_texts, text_kinds_of
from mechrep.guards import Count, check_count, guarded, one_of, within
from mechrep.measures.head_circuits import HeadCircuits
from mechrep.measures.text_kind_design import HeadEffects
from mechrep.models.anatomy import Anatomy, Site
from mechrep.models.model import Model
from mechrep.models.parts import wide
from mechrep.models.stream import exact
from mechrep.provenance import Provenance
from mechrep.results import Result
from mechrep.run import Run
from mechrep.stats import cluster_intervals
from mechrep.text.corpus import Corpus

if TYPE_CHECKING:
    import plotly.graph_objects as go

MEASURES = (
    "log_probability", "probability", "entropy", "rank", "correct", "logit_difference", "embedding", "biases",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class TextKindContrastResult(Result):
    """Means over the tokens of each copy of the cycle, for every text.

    Copy ``k`` has ``k`` whole cycles before it; copy 0 is the first.  Values are NaN where a text has no such copy.

    Attributes:
        measures: in the order of :data:`MEASURES`: ``log p``, ``p``, entropy (nats) and rank of the expected token,
            the share of tokens that are the most probable ones, the logit difference to the best other token, and what
            the embedding and the biases add to it.
        lens: ``log p`` of the expected token from the residual stream before each layer, and after the last.
        heads: what each head adds to the logit difference.
        mlps: what each MLP adds.
        counts: tokens.
        ids: of the texts.
        text_kinds: of the texts.
        builders: of the texts.
        prompts: that the texts are from.
        clusters: of the texts, see :func:`~mechrep.generation.text_kinds.clusters_of`.
        copies: copies beyond the first that were looked at.
    """

    measures: Float[Tensor, "measure text copy"]
    lens: Float[Tensor, "text copy depth"]
    heads: Float[Tensor, "text copy layer head"]
    mlps: Float[Tensor, "text copy layer"]
    counts: Int64[Tensor, "text copy"]
    ids: Sequence[str]
    text_kinds: Sequence[str]
    builders: Sequence[str]
    prompts: Sequence[str]
    clusters: Sequence[str]
    copies: int

    @property
    def labels(self) -> list[str]:
        """Group of each text: its kind, or its builder where a kind has several."""
        several = len(set(zip(self.text_kinds, self.builders, strict=True))) > len(set(self.text_kinds))
        return list(self.builders if several else self.text_kinds)

    @property
    def groups(self) -> dict[str, int]:
        """Number of texts of each group."""
        labels = self.labels
        return {name: labels.count(name) for name in dict.fromkeys(labels)}

    @guarded
    def of(self, measure: str) -> Float[Tensor, "text copy"]:
        """One of the measures by its name.

        Raises:
            InputError: a name that is not among :data:`MEASURES`.
        """
        one_of("measure", measure, MEASURES)
        return self.measures[MEASURES.index(measure)]

    def residual(self) -> float:
        """Largest difference between a logit difference and the sum of its parts, over all texts and copies."""
        parts = self.heads.double().sum((2, 3)) + self.mlps.double().sum(2)
        parts += self.of("embedding").double() + self.of("biases").double()
        return float((parts - self.of("logit_difference").double()).abs().nan_to_num(0.0).max())

    def to_frame(self) -> pd.DataFrame:
        """One row per group, copy and measure: mean over texts with its 95 % interval, median, number of texts.

        Columns: ``text_kind, copy, measure, value, low, high, median, n``.  A copy's tokens count equally within a
        text, texts count equally; intervals resample clusters.
        """
        return self._table(self.measures.permute(1, 2, 0), pd.DataFrame({"measure": MEASURES}))

    def lens_frame(self) -> pd.DataFrame:
        """The logit lens: ``text_kind, copy, layer`` (the stream before it; one more for the end), mean, interval."""
        return self._table(self.lens, pd.DataFrame({"layer": range(self.lens.shape[2])}))

    @guarded
    def parts_frame(self, copy: int | None = None) -> pd.DataFrame:
        """What all heads together, every MLP, the embedding and the biases add: ``text_kind, part, layer``, mean, ...

        Args:
            copy: of one copy; by default the mean over those that follow a whole cycle.
        """
        parts = [self.heads.sum(3), self.mlps, self.of("embedding")[..., None], self.of("biases")[..., None]]
        names = [(part, layer) for part in ("heads", "mlp") for layer in range(self.mlps.shape[2])]
        items = pd.DataFrame([*names, ("embedding", pd.NA), ("biases", pd.NA)], columns=["part", "layer"])
        table = self._table(self._over_copies(torch.cat(parts, dim=2), copy), items)
        return table.drop(columns="copy").astype({"layer": "Int64"})

    @guarded
    def head_effects(self, copy: int | None = None) -> HeadEffects:
        """What each head adds to the logit difference, for the tables of :class:`HeadEffects`: positive facilitates.

        Args:
            copy: of one copy; by default the mean over those that follow a whole cycle, and for texts without a
                cycle over all expected tokens.

        Raises:
            InputError: a copy that was not looked at.
        """
        values = self._over_copies(self.heads, copy)[:, 0].double().numpy()
        return HeadEffects(values, self.labels, list(self.clusters), "direct logit attribution", list(self.ids))

    @guarded
    def top(self, k: int) -> list[tuple[int, int]]:
        """The ``k`` heads in which induced texts and natural loops differ most.

        Raises:
            InputError: ``k`` larger than the number of heads, or a kind that is missing.
        """
        frame = self.head_effects().contrast()
        check_count(k, len(frame), "heads")
        return [(int(layer), int(head)) for layer, head in frame[["layer", "head"]].to_numpy()[:k]]

    def plot(self) -> go.Figure:
        """Confidence by number of cycles shown."""
        return confidence_figure(self)

    def _over_copies(self, values: Tensor, copy: int | None) -> Float[Tensor, "text 1 ..."]:
        """One copy, or the mean over copies from 1 on (copy 0 of texts that have no other)."""
        if copy is not None:
            copy = within("copy", copy, 0, self.copies, "a copy")
            return values[:, copy : copy + 1]
        later = values[:, 1:].nanmean(1, keepdim=True)
        return later.where(~later.isnan(), values[:, :1])

    def _table(self, values: Float[Tensor, "text copy item"], items: pd.DataFrame) -> pd.DataFrame:
        """One row per group, copy that has texts, and item: mean, interval, median, number of texts."""
        labels, clusters, tables = np.array(self.labels, dtype=object), np.array(self.clusters), []
        for name in self.groups:
            for copy in range(values.shape[1]):
                table = values[labels == name, copy].double().numpy().T
                known = ~np.isnan(table).all(0)
                if known.any():
                    table = table[:, known]
                    ends = cluster_intervals(table, clusters[labels == name][known])
                    numbers = {"value": table.mean(1), "low": ends[:, 0], "high": ends[:, 1]}
                    numbers |= {"median": np.median(table, axis=1), "n": table.shape[1]}
                    tables.append(items.assign(**numbers).assign(text_kind=name, copy=copy))
        frame = pd.concat(tables, ignore_index=True)
        first = ["text_kind", "copy"]
        return frame[[*first, *(column for column in frame if column not in first)]]


_LOGITS_AT_ONCE = 2**25


@dataclass(frozen=True)
class TokenPrediction:
    """What a residual stream says about an expected token.

    Attributes:
        log_probability: of it, in nats.
        entropy: of all tokens, in nats.
        rank: 1 for the most probable token; ties count for it.
        rival: the most probable token among all others.
        difference: logit of the token minus that of its rival.
    """

    log_probability: Float[Tensor, " query"]
    entropy: Float[Tensor, " query"]
    rank: Float[Tensor, " query"]
    rival: Int[Tensor, " query"]
    difference: Float[Tensor, " query"]


class LogitAttribution:
    """Predictions and direct logit attribution for one model.

    Args:
        model: the model, raw or in compatibility mode.

    Raises:
        ModelError: a model without separate heads, see :class:`~mechrep.measures.head_circuits.HeadCircuits`.

    Limits: where logits are capped behind the unembedding (Gemma 2), attribution is of the logits before the cap.

    Example:
        >>> import mechrep
        >>> attribution = LogitAttribution(mechrep.load_model("mechrep-tiny"))
        >>> stream = torch.randn(3, attribution.circuits.model.anatomy.d_model)
        >>> attribution.predict(stream, torch.tensor([5, 6, 7])).rank.shape
        torch.Size([3])
    """

    def __init__(self, model: Model) -> None:
        roles = () if model.trace is None else model.trace.roles
        without = sorted(set(range(model.anatomy.n_layers)) - set(model.anatomy.attention_layers))
        beside = [layer for layer, role in enumerate(roles) if role.beside is not None]
        if without or beside:
            raise ModelError(
                f"{model.anatomy.architecture}, with other mixers than attention in layers {without or beside}",
                "layers of attention and an MLP: what else writes would be counted as the MLP",
                "use ablations, or scores of attention patterns",
            )
        self.circuits = HeadCircuits(model, readers=())
        self.model = model

    @cached_property
    def bias(self) -> Float[Tensor, " d_vocab"]:
        """Logits that do not depend on the residual stream: ``b_norm W_U + b_U``."""
        weight, own = self.circuits.stream.unembedding, self.circuits.stream.unembedding_bias
        bias = self.circuits.final_norm.bias.to(weight) @ weight
        return bias if own is None else bias + wide(own)

    def predict(self, stream: Float[Tensor, "query d_model"], expected: Int[Tensor, " query"]) -> TokenPrediction:
        """What the final norm and the unembedding make of a residual stream (of any layer: the logit lens)."""
        parts: list[list[Tensor]] = []
        size = max(1, _LOGITS_AT_ONCE // self.model.anatomy.d_vocab)
        for some, tokens in zip(stream.split(size), expected.split(size), strict=True):
            raw = wide(self.circuits.stream.lens(some))
            parts.append(_judge(raw, tokens, self.circuits.stream.finish))
        return TokenPrediction(*(torch.cat(columns) for columns in zip(*parts, strict=True)))

    def direction(
        self, expected: Int[Tensor, " query"], rival: Int[Tensor, " query"]
    ) -> Float[Tensor, "query d_model"]:
        """``d``: what a part has to add for ``e`` to gain on ``r``."""
        unembed = self.circuits.unembed
        return exact((unembed[:, expected] - unembed[:, rival]).T)

    def heads(
        self, layer: int, z: Float[Tensor, "query head d_head"], direction: Float[Tensor, "query d_model"]
    ) -> tuple[Float[Tensor, "query head"], Float[Tensor, " query"]]:
        """What each head of a layer adds along a direction, and what the attention's bias does; not yet over ``s``."""
        factor, bias = self.circuits.writing_scale(layer, z)
        along = torch.einsum("hdm,qm->qhd", exact(self.circuits.writing(layer)), direction)
        return (exact(z) * along).sum(-1) * factor, (bias * direction).sum(-1)


def _judge(
    raw: Float[Tensor, "query d_vocab"], expected: Int[Tensor, " query"], finish: Callable[[Tensor], Tensor]
) -> list[Tensor]:
    """Of raw logits, before scales and soft caps: rank and gap.  Of what the model says: probability and entropy."""
    place = expected[:, None]
    own = raw.gather(1, place)
    rank = 1 + (raw > own).sum(1)
    others = raw.scatter(1, place, -torch.inf)
    best, rival = others.max(1)
    log_probabilities = exact(finish(raw)).log_softmax(1)
    entropy = -(log_probabilities.exp() * log_probabilities).nan_to_num(0.0).sum(1)
    return [log_probabilities.gather(1, place)[:, 0], entropy, exact(rank), rival, exact(own[:, 0] - best)]


_CONTROL_TOKENS = 64  # of a text without a cycle, at most


@dataclass(frozen=True)
class ExpectedTokens:
    """Tokens that are expected next, all rows of a batch one after the other.

    Attributes:
        row: row of the batch.
        place: position of the expected token; the position before predicts it.
        copies: cycles shown before it: 0 in the first copy, and in a text without a cycle.
    """

    row: Int[np.ndarray, " query"]
    place: Int[np.ndarray, " query"]
    copies: Int[np.ndarray, " query"]


def expected_tokens(
    frame: pd.DataFrame, lengths: list[int], copies: int, per_copy: int | None = None
) -> ExpectedTokens:
    """The tokens of the whole copies of each text, aligned on its onset.

    Copy ``k`` begins at ``start + k * period``; what is predicted in it has seen ``k`` whole cycles.  Where the seam
    between two copies is not the text's own (``seam``), the first token of each copy is left out.  Of a text without
    a cycle, the first tokens after its prompt count, as copy 0.

    Args:
        frame: facts of the texts: ``start``, ``period``, ``prompt_length`` and, where it is known, ``seam``.
        lengths: of the texts.
        copies: copies beyond the first.
        per_copy: so many tokens of each copy, at most; by default all.

    Raises:
        InputError: a cycle that does not lie in its text.

    Example:
        >>> frame = pd.DataFrame({"id": ["a"], "start": [1], "period": [2], "prompt_length": [3]})
        >>> found = expected_tokens(frame, [6], copies=2)
        >>> found.place.tolist(), found.copies.tolist()
        ([1, 2, 3, 4], [0, 0, 1, 1])
    """
    rows: list[int] = []
    places: list[int] = []
    shown: list[int] = []
    for row, (facts, length) in enumerate(zip(frame.to_dict("records"), lengths, strict=True)):
        found, numbers = _of_text(facts, length, copies, per_copy)
        rows += [row] * len(found)
        places += found
        shown += numbers
    return ExpectedTokens(*(np.array(values, dtype=np.int64) for values in (rows, places, shown)))


def _of_text(facts: dict[Any, Any], length: int, copies: int, per_copy: int | None) -> tuple[list[int], list[int]]:
    if pd.isna(facts["start"]):
        begin = max(1, int(facts["prompt_length"]))
        places = list(range(begin, min(length, begin + (per_copy or _CONTROL_TOKENS))))
        return places, [0] * len(places)
    start, period = int(facts["start"]), int(facts["period"])
    if not 0 <= start < start + period < length:
        raise InputError(
            f"text {facts['id']!r} of {length} tokens with a cycle of {period} from {start}",
            "a cycle and the beginning of its second copy",
            "build it with natural_texts or induced_texts",
        )
    whole = min(copies + 1, (length - start) // period)
    skipped = 1 if facts.get("seam", False) else 0
    end = period if per_copy is None else min(period, skipped + per_copy)
    pairs = [(start + k * period + j, k) for k in range(whole) for j in range(skipped, end)]
    return [place for place, _ in pairs if place > 0], [k for place, k in pairs if place > 0]


_KEPT_BYTES = 2**28  # of residual streams and head outputs, until the last layer says what they mean
_NEEDED = ("builder", "prompt", "start", "period", "prompt_length")


class TextKindContrast(Analyzer[TextKindContrastResult]):
    """Confidence, logit lens and direct logit attribution by kind of text and by number of cycles shown.

    Args:
        model: the model that will be read.
        copies: copies beyond the first that are looked at.
        per_copy: so many tokens of each, at most; by default all.

    Raises:
        InputError: fewer than one copy; later, texts that no builder of text kinds made.
        ModelError: a model without separate heads.

    Source: the question and the kinds of text are Mahaut & Franzon 2025's (arXiv 2504.01100); direct logit attribution
    as in Elhage et al. 2021 (*A Mathematical Framework for Transformer Circuits*).  Their published readout uses slices
    of the attention output behind ``W_O``, which mix all heads, and other positions for each kind.

    Limits: direct attribution sees what a part writes for this token, not what later parts make of it.  Ablate as
    well (:func:`mechrep.studies.text_kind_effects.ablation_contrast`).

    Example:
        >>> import mechrep
        >>> from mechrep.generation.text_kinds import induced_texts, joined_texts
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> prompts = mechrep.generation.sample_prompts(model, 8)
        >>> induced = induced_texts(model, prompts, 2, "cycle", max_new_tokens=100)
        >>> corpus = joined_texts(induced, n_ctx=model.anatomy.n_ctx, copies=2)
        >>> result = mechrep.CorpusCache(model, corpus).run(TextKindContrast(model, copies=2))
        >>> result.residual() < 1e-4
        True
    """

    sites: ClassVar[frozenset[Site]] = frozenset({Site.RESID_PRE, Site.RESID_POST, Site.Z})

    @guarded
    def __init__(self, model: Model, *, copies: Count = COPIES, per_copy: Count | None = None) -> None:
        self.copies, self.per_copy = copies, per_copy
        self.attribution = LogitAttribution(model)
        self.state = {}
        self._labels: dict[str, list[str]] = {}

    @property
    def config(self) -> dict[str, Any]:
        """All settings."""
        return {"copies": self.copies} | ({} if self.per_copy is None else {"per_copy": self.per_copy})

    def layers(self, anatomy: Anatomy, site: Site) -> range:
        """All layers; of the residual stream behind a layer, the last."""
        return range(anatomy.n_layers - 1 if site is Site.RESID_POST else 0, anatomy.n_layers)

    def prepare(self, anatomy: Anatomy, frame: pd.DataFrame) -> None:
        """Empty sums for every text; refuses a corpus that no builder of text kinds made.

        Raises:
            InputError: columns that are missing.
        """
        if missing := [name for name in _NEEDED if name not in frame]:
            raise InputError(
                f"a corpus without {missing}",
                "texts of natural_texts, induced_texts or control_texts",
                "build these, and join them with joined_texts",
            )
        size = (len(frame), self.copies + 1)
        shapes: dict[str, tuple[int, ...]] = {"count": size, "lens": (*size, anatomy.n_layers + 1)}
        shapes |= {"heads": (*size, anatomy.n_layers, anatomy.n_heads), "mlps": (*size, anatomy.n_layers)}
        shapes |= dict.fromkeys(MEASURES, size)
        self.state = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}
        self._labels = {name: frame[name].astype(str).tolist() for name in ("id", "builder", "prompt")}
        self._labels |= {"text_kind": text_kinds_of(frame), "cluster": clusters_of(frame)}
        self._expected: ExpectedTokens | None = None

    def observe(self, activation: Tensor, site: Site, layer: int, batch: Batch) -> None:  # noqa: ARG002
        """Keep what stands at the positions that predict, until the last layer has been seen."""
        if self._expected is None:
            self._expected = expected_tokens(batch.frame, batch.lengths.tolist(), self.copies, self.per_copy)
            self._streams: list[Tensor] = []
            self._heads: list[Tensor] = []
        rows, places = (torch.from_numpy(v).to(activation.device) for v in (self._expected.row, self._expected.place))
        (self._heads if site is Site.Z else self._streams).append(activation[rows, places - 1].detach().clone())

    @torch.no_grad()
    def finish_batch(self, batch: Batch) -> None:
        """Turn what was kept into sums by text and copy, and drop it."""
        known, self._expected = self._expected, None
        if known is None or not len(known.row):
            return
        streams, heads = self._streams, self._heads
        self._streams, self._heads = [], []
        rows, places = torch.from_numpy(known.row), torch.from_numpy(known.place)
        device = streams[0].device
        expected = batch.tokens[rows.to(device), places.to(device)]
        texts = torch.tensor(batch.texts)[rows]
        cells = texts * (self.copies + 1) + torch.from_numpy(known.copies)
        lens = [self.attribution.predict(stream, expected) for stream in streams]
        found = lens[-1]
        direction = self.attribution.direction(expected, found.rival)
        scale = self.attribution.circuits.final_norm.scale(streams[-1])[:, 0]
        along = torch.stack([(exact(stream) * direction).sum(-1) for stream in streams], dim=1)
        parts = [self.attribution.heads(layer, z, direction) for layer, z in enumerate(heads)]
        by_head, by_bias = torch.stack([part[0] for part in parts], dim=1), torch.stack([p[1] for p in parts], dim=1)
        mlps = along.diff(dim=1) - by_head.sum(-1) - by_bias
        bias = exact(self.attribution.bias[expected] - self.attribution.bias[found.rival])
        sums = {
            "count": torch.ones_like(found.entropy),
            "log_probability": found.log_probability,
            "probability": found.log_probability.exp(),
            "entropy": found.entropy,
            "rank": found.rank,
            "correct": (found.rank == 1).double(),
            "logit_difference": found.difference,
            "embedding": along[:, 0] / scale,
            "biases": by_bias.sum(1) / scale + bias,
            "lens": torch.stack([one.log_probability for one in lens], dim=1),
            "heads": by_head / scale[:, None, None],
            "mlps": mlps / scale[:, None],
        }
        for name, values in sums.items():
            self.state[name].flatten(0, 1).index_add_(0, cells, values.double().cpu())

    def result(self, provenance: Provenance) -> TextKindContrastResult:
        """Means by text and copy.

        Raises:
            NothingFoundError: not one token was expected in any text.
        """
        count = self.state["count"]
        if not count.any():
            raise NothingFoundError(
                f"{len(count)} texts without an expected token", "texts with a cycle", "build the texts again"
            )

        def mean(name: str) -> Tensor:
            value = self.state[name]
            return (value / count.view(*count.shape, *[1] * (value.ndim - 2))).float()

        return TextKindContrastResult(
            provenance,
            measures=torch.stack([mean(name) for name in MEASURES]),
            lens=mean("lens"),
            heads=mean("heads"),
            mlps=mean("mlps"),
            counts=count.long(),
            copies=self.copies,
            ids=self._labels["id"],
            text_kinds=self._labels["text_kind"],
            clusters=self._labels["cluster"],
            builders=self._labels["builder"],
            prompts=self._labels["prompt"],
        )


def contrast_text_kinds(
    model: Model,
    texts: Sequence[Corpus],
    *,
    copies: int = COPIES,
    per_copy: int | None = None,
    progress: bool | None = None,
    run: Run | None = None,
) -> TextKindContrastResult:
    """Join kinds of text and read the model over them: :class:`TextKindContrast` in one line.

    Args:
        model: the model.
        texts: natural, induced, control, built from one list of prompts.
        copies: copies beyond the first.
        per_copy: so many tokens of each, at most; by default all.
        progress: show a progress bar; by default as ``run`` says.
        run: options, see :class:`mechrep.CorpusCache`.

    Raises:
        InputError: texts that cannot be joined.

    Example:
        >>> import mechrep
        >>> from mechrep.generation.text_kinds import induced_texts, natural_texts
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> prompts = mechrep.generation.sample_prompts(model, 8)
        >>> natural = natural_texts(model, prompts, max_new_tokens=100)
        >>> induced = induced_texts(model, prompts, 2, "cycle", max_new_tokens=100)
        >>> result = contrast_text_kinds(model, [natural, induced], copies=1)
        >>> sorted(result.groups)
        ['induced', 'natural']
    """
    anatomy = model.anatomy
    corpus = joined_texts(*texts, n_ctx=anatomy.n_ctx, copies=copies)
    per_token = anatomy.d_model * (2 * anatomy.n_layers + 1) * model.dtype.itemsize
    batch_size = max(1, _KEPT_BYTES // per_token // corpus.tokens.shape[1])
    cache = CorpusCache(model, corpus, batch_size=min(batch_size, 64), progress=progress, run=run)
    return cache.run(TextKindContrast(model, copies=copies, per_copy=per_copy))


_COLOURS = {"natural": ACCENT, "induced": "#3b82c4", "control": "#747c88"}
_CONFIDENCE = {
    "probability": "probability of the expected token",
    "entropy": "entropy (nats)",
    "rank": "median rank of the expected token",
}


def confidence_figure(result: TextKindContrastResult) -> go.Figure:
    """Probability, entropy and rank of the expected token, by the number of cycles shown, one line per kind of text.

    Args:
        result: of :class:`mechrep.TextKindContrast`.

    Example:
        >>> import mechrep
        >>> from mechrep.measures.natural_vs_induced import contrast_text_kinds
        >>> from mechrep.generation.text_kinds import natural_texts
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> natural = natural_texts(model, mechrep.generation.sample_prompts(model, 4), max_new_tokens=100)
        >>> confidence_figure(contrast_text_kinds(model, [natural], copies=1)).layout.title.text
        'Confidence by number of cycles shown'
    """
    from plotly.subplots import make_subplots

    frame = result.to_frame()
    figure = make_subplots(
        1, len(_CONFIDENCE), subplot_titles=list(_CONFIDENCE.values()), horizontal_spacing=0.09, figure=new_figure()
    )
    for column, measure in enumerate(_CONFIDENCE, start=1):
        for number, name in enumerate(result.groups):
            line = frame[(frame["text_kind"] == name) & (frame["measure"] == measure)]
            ranked = measure == "rank"
            y = line["median" if ranked else "value"].tolist()
            band = None if ranked else (line["low"].tolist(), line["high"].tolist())
            _add_line(figure, line["copy"].tolist(), y, band, name, number, column)
    figure.update_annotations(font_size=13)
    titled = styled(
        figure, title="Confidence by number of cycles shown", subtitle=_said(result), x="cycles shown", y=""
    )
    titled.update_xaxes(AXIS | {"title": {"text": "cycles shown"}, "dtick": 1})
    titled.update_yaxes(AXIS)
    titled.update_yaxes(type="log", col=3)
    return titled.update_layout(margin={"t": 150}, legend={"y": 1.1})


def lens_figure(result: TextKindContrastResult, copy: int = 1) -> go.Figure:
    """The logit lens: log-probability of the expected token after each layer, one line per kind of text.

    Args:
        result: of :class:`mechrep.TextKindContrast`.
        copy: cycles shown; a kind without that copy (a control) is drawn with its only one.
    """

    frame, figure = result.lens_frame(), new_figure()
    for number, name in enumerate(result.groups):
        own = frame[frame["text_kind"] == name]
        line = own[own["copy"] == (copy if copy in set(own["copy"]) else own["copy"].min())]
        band = (line["low"].tolist(), line["high"].tolist())
        _add_line(figure, line["layer"].tolist(), line["value"].tolist(), band, name, number, None)
    titled = styled(
        figure,
        title="Where in the model the next token is known",
        subtitle=f"{_said(result)}; logit lens, {counted(copy, 'cycle')} shown",
        x="layer (the residual stream before it)",
        y="log-probability of the expected token (nats)",
    )
    return titled.update_xaxes(tick0=0, dtick=max(1, result.lens.shape[-1] // 12))


def _said(result: TextKindContrastResult) -> str:
    groups = ", ".join(f"{name}: {counted(n, 'text')}" for name, n in result.groups.items())
    return f"{result.provenance.model['name']}; {groups}"


def _add_line(
    figure: go.Figure,
    x: list[int],
    y: list[float],
    band: tuple[list[float], list[float]] | None,
    name: str,
    number: int,
    column: int | None,
) -> None:
    import plotly.graph_objects as go

    colour = _COLOURS.get(name, SEQUENCE[number % len(SEQUENCE)])
    place: dict[str, Any] = {} if column is None else {"row": 1, "col": column}
    if band is not None:
        low, high = band
        area = go.Scatter(
            x=[*x, *reversed(x)], y=[*high, *reversed(low)], mode="lines", fill="toself",
            fillcolor=translucent(colour, 0.15), line={"width": 0}, hoverinfo="skip", showlegend=False,
        )  # fmt: skip
        figure.add_trace(area, **place)
    line = go.Scatter(
        x=x, y=y, mode="lines+markers", name=plain(name), legendgroup=name, showlegend=column in (None, 1),
        line={"color": colour, "dash": DASHES[number % len(DASHES)], "width": 2}, marker={"size": 7},
    )  # fmt: skip
    figure.add_trace(line, **place)
