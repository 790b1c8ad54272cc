"""The third main job from end to end: does a model rest on its first token, what makes it so, what do repeats do?

Two smaller questions of the study of sinks: what the published rule names, and one head on three kinds of text.

What a report on sinks shows beside the finding itself: norms of text and repeats, heads, and one head's patterns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechrep.cache.corpus_cache import CorpusCache
from mechrep.errors import InputError, NothingFoundError
from mechrep.measures.attention_sinks import AttentionSinkResult, AttentionSinks
from mechrep.measures.find_sink import SinkResult, find_sink, is_known, matches_known
from mechrep.measures.ov_cluster import OVClusterResult, ov_cluster
from mechrep.measures.sink_neurons import SinkNeuronResult, begins_with_bos, sink_neurons
from mechrep.measures.sink_norms import (
    Moved,
    RepeatNormResult,
    RepeatNorms,
    SinkNormResult,
    SinkNorms,
    bos_mlp_norms,
    outlier_layer,
    repeat_grid,
)
from mechrep.models import tiny
from mechrep.models.anatomy import Site
from mechrep.models.model import Model
from mechrep.models.reading import read_activations
from mechrep.progress import progress_bar
from mechrep.provenance import Provenance, provenance_of
from mechrep.results import Result
from mechrep.stats import paired_bootstrap_interval, proportion_interval
from mechrep.store import Journal
from mechrep.studies.repeat_behaviour import RepeatBehaviourResult, repeat_behaviour, sink_conditions
from mechrep.studies.sink_ablation import SinkCutResult, attention_to_first, ordinary_texts, sink_cut_study
from mechrep.text.corpus import Corpus, windows_of_text
from mechrep.text.stimuli import ordinary_ids, repeated_tokens

_PUBLISHED_LAYERS = 15  # that the released code looks at


@dataclass(frozen=True, eq=False)
class PublishedLayer:
    """The published rule for the sink layer: the first MLP that writes an outlier at BOS.

    Attributes:
        layer: what the rule names; ``None`` where it names none or cannot.
        reason: why there is none, or empty.
        mlp_norms: norm of what each of the first layers' MLPs writes at BOS, the whole profile; ``None`` without BOS.
    """

    layer: int | None
    reason: str
    mlp_norms: Float[Tensor, " layer"] | None


@dataclass(frozen=True, eq=False)
class HeadOnStimuli:
    """Attention to the first position by the head that rests on it most, in equally long texts of three kinds.

    Attributes:
        head: the ``(layer, head)``; chosen on ordinary text.
        length: tokens per text; the attention falls with it.
        text: of each ordinary text.
        random: of each text of different random tokens.
        repeats: of each text of one token, repeated.
    """

    head: tuple[int, int]
    length: int
    text: Float[Tensor, " text"]
    random: Float[Tensor, " draw"]
    repeats: Float[Tensor, " token"]

    def to_frame(self) -> pd.DataFrame:
        """One row per kind: mean attention with a 95 % bootstrap interval over texts."""
        rows = []
        for kind in ("text", "random", "repeats"):
            values = getattr(self, kind).tolist()
            low, high = paired_bootstrap_interval(values)
            rows.append({"kind": kind, "texts": len(values), "mean": float(np.mean(values)), "low": low, "high": high})
        return pd.DataFrame(rows)


def published_layer(model: Model) -> PublishedLayer:
    """The published rule, its profile, and why it names no layer where it does not.

    Source: Yona et al. 2025 (arXiv 2503.08908), ``find_sink_layer`` of the released code.
    """
    try:
        norms = bos_mlp_norms(model, min(_PUBLISHED_LAYERS, model.anatomy.n_layers))
    except InputError as error:
        return PublishedLayer(None, f"given {error.given}, it needs {error.expected}", None)
    try:
        return PublishedLayer(outlier_layer(norms), "", norms.float())
    except InputError as error:
        return PublishedLayer(None, f"given {error.given}, it needs {error.expected}", norms.float())
    except NothingFoundError as error:
        return PublishedLayer(None, f"of {error.given}, none is {error.expected}", norms.float())


def head_on_stimuli(model: Model, sink: SinkResult, texts: Corpus, tokens: Sequence[int], seed: int) -> HeadOnStimuli:
    """The head that rests most on the first position: on text, on random texts and on repeats, all equally long.

    Args:
        model: the model.
        sink: says which head.
        texts: ordinary texts; the shortest gives the length of the others.
        tokens: repeated ones; there are as many random texts.
        seed: of the random texts.
    """
    bos, length = begins_with_bos(model, texts), int(texts.lengths.min())
    generator, ordinary = np.random.default_rng(seed), ordinary_ids(model)
    start = [model.bos_id] if bos and model.bos_id is not None else []
    width = length - len(start)
    rows = [[*start, *generator.choice(ordinary, width, replace=width > len(ordinary)).tolist()] for _ in tokens]
    random = Corpus.from_tokens(rows, model=model, source="random", bos_policy="prepended" if bos else "absent")
    repeats = repeated_tokens(model, list(tokens), width, bos)
    values = [attention_to_first(model, corpus, sink.best_head, "auto").float() for corpus in (texts, random, repeats)]
    return HeadOnStimuli(sink.best_head, length, *values)


_LENGTH, _WINDOWS = 64, 100  # of find_sink's own texts
_REPEATS = 512
_SHOWN = 24  # positions of a drawn pattern


@dataclass(frozen=True, eq=False)
class SinkTables:
    """Measurements on ordinary text and on repeats of some tokens.

    Attributes:
        norms: of ordinary text.
        heads: attention to the first position in ordinary text.
        repeats: norms of repeated tokens.
        neurons: scores of the sink layer's neurons; ``None`` where there is no sink layer.
        text_ids: the beginning of one text.
        repeat_ids: the beginning of one repeat.
        text_pattern: attention of the head that rests most on the first position, on ``text_ids``.
        repeat_pattern: the same on ``repeat_ids``.
    """

    norms: SinkNormResult
    heads: AttentionSinkResult
    repeats: RepeatNormResult
    neurons: SinkNeuronResult | None
    text_ids: list[int]
    repeat_ids: list[int]
    text_pattern: Float[Tensor, "_ _"]
    repeat_pattern: Float[Tensor, "_ _"]

    def layer(self, result: SinkResult) -> int:
        """The sink layer, or where there is none that of the largest excess jump."""
        return self.norms.ranking()[0] if result.layer is None else result.layer

    def moved(self, result: SinkResult) -> Moved:
        """How far the repeats have moved to BOS, after :meth:`layer`."""
        return self.repeats.moved(self.layer(result), self.norms.other_norm)

    @property
    def largest_repeat(self) -> float:
        """Norm of a token's last copy over the typical norm, the largest over tokens and layers."""
        return float((self.repeats.norm[:, 1:, -1].double() / self.norms.other_norm[1:].double()).max())

    def by_layer(self) -> pd.DataFrame:
        """One row per layer: norm at the first position, elsewhere, and at the last copy of repeated tokens."""
        last = self.repeats.norm[:, 1:, -1].double()
        return pd.DataFrame(
            {
                "layer": range(len(self.norms.jump)),
                "first": self.norms.first_norm[1:].numpy(),
                "typical": self.norms.other_norm[1:].numpy(),
                "ratio": self.norms.ratio[1:].numpy(),
                "repeat median": last.quantile(0.5, dim=0).numpy(),
                "repeat largest": last.amax(0).numpy(),
            }
        )


def measure_tables(
    model: Model,
    result: SinkResult,
    *,
    tokens: int = 32,
    repeats: int | None = None,
    texts: Corpus | None = None,
    seed: int = 0,
) -> SinkTables:
    """Measure what goes with a finding.

    Args:
        model: the model.
        result: of :func:`~mechrep.measures.find_sink.find_sink`, on the same texts.
        tokens: how many ordinary tokens are repeated, drawn at random (all where there are fewer).
        repeats: copies of each; by default 512, or as many as the context holds.
        texts: ordinary texts; by default those of ``find_sink``.
        seed: of the tokens.

    Raises:
        InputError: more copies than the context holds, or no tokenizer.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> sink = mechrep.find_sink(model, texts=["The sea was calm.", "It rained all day."])
        >>> tables = measure_tables(model, sink, tokens=4, repeats=50)
        >>> tables.by_layer().shape[0] == model.anatomy.n_layers, len(tables.repeats.token_ids)
        (True, 4)
    """
    bos = model.default_prepend_bos and model.bos_id is not None
    copies = min(_REPEATS, model.anatomy.n_ctx - int(bos)) if repeats is None else repeats
    ordinary = ordinary_ids(model)
    chosen = np.random.default_rng(seed).choice(ordinary, min(tokens, len(ordinary)), replace=False)
    stimulus = repeated_tokens(model, sorted(chosen.tolist()), copies, bos)
    text = texts
    if text is None:
        text = windows_of_text(model, tiny.held_out_text(), length=min(_LENGTH, model.anatomy.n_ctx), limit=_WINDOWS)
    norms, heads = CorpusCache(model, text, progress=False).run(SinkNorms(), AttentionSinks())
    (moved,) = CorpusCache(model, stimulus, progress=False).run(RepeatNorms())
    assert isinstance(norms, SinkNormResult) and isinstance(heads, AttentionSinkResult)
    assert isinstance(moved, RepeatNormResult)
    largest = moved.token_ids.index(moved.top(1, norms.ranking()[0] if result.layer is None else result.layer)[0])
    text_ids, repeat_ids = text.row(0)[:_SHOWN], stimulus.row(largest)[:_SHOWN]
    return SinkTables(
        norms,
        heads,
        moved,
        None if result.layer is None else sink_neurons(model, _windows(text), result.layer),
        text_ids,
        repeat_ids,
        _pattern(model, text_ids, *result.best_head),
        _pattern(model, repeat_ids, *result.best_head),
    )


def _windows(text: Corpus) -> Corpus:
    """Some of the texts: a causal model's first position is the same in all that begin alike."""
    return text.select(range(min(len(text), 16)))


@torch.no_grad()
def _pattern(model: Model, ids: list[int], layer: int, head: int) -> Float[Tensor, "query_pos key_pos"]:
    kept: list[Tensor] = []
    tokens = torch.tensor([ids], device=model.device)
    read_activations(model, tokens, {Site.PATTERN: [layer]}, lambda pattern, *_: kept.append(pattern[0, head].cpu()))
    return kept[0].float()


_DEAR = 16  # tokens on which cuts and generation are tried, which are dearer than norms
_LONGEST, _POINTS = 512, 5  # copies given, and numbers of copies between 1 and that
_NEW_TOKENS = 32
_CLUSTER = 4

Known = Literal["unknown", "met", "not met"]
R = TypeVar("R", bound=Result)


@dataclass(frozen=True, eq=False)
class SinkStudy:
    """Everything that the report shows about attention sinks.

    Attributes:
        model_name: how the model was named.
        sink: whether there is one, beside null models; layer, neurons, heads.
        published: the published rule for the layer.
        tables: norms and heads on ordinary text, norms of repeated tokens, one head's patterns.
        names: the repeated tokens as text, by id.
        text_tokens: of the text whose pattern is shown, decoded one by one.
        repeat_tokens: of the repeats whose pattern is shown.
        on_stimuli: what one head gives to the first position in text, random tokens and repeats.
        ablation: the sink neurons set to zero, beside controls; ``None`` without a norm sink.
        ablation_reason: why there is none, or empty.
        behaviour: whether the model goes on repeating tokens, untouched and (with a norm sink) under cuts; ``None``
            where it was not asked for.
        cluster: different tokens that the first layer takes for one; ``None`` where none could be built.
        cluster_reason: why there is none, or empty.
        known: whether published sinks of this model are met; ``"unknown"`` where none is published.
        provenance: of the whole study.
    """

    model_name: str
    sink: SinkResult
    published: PublishedLayer
    tables: SinkTables
    names: dict[int, str]
    text_tokens: Sequence[str]
    repeat_tokens: Sequence[str]
    on_stimuli: HeadOnStimuli
    ablation: SinkCutResult | None
    ablation_reason: str
    behaviour: RepeatBehaviourResult | None
    cluster: OVClusterResult | None
    cluster_reason: str
    known: Known
    provenance: Provenance

    def crossings(self) -> pd.DataFrame:
        """One row per share tau of the BOS norm: how many tokens reach it after the sink layer, after how many copies.

        ``reached`` of ``tokens`` do, a ``share`` with its Wilson interval; ``median``, ``fewest`` and ``most`` are
        numbers of copies of those that do, missing where none does.
        """
        repeats, depth = self.tables.repeats, self.tables.layer(self.sink) + 1
        rows = []
        for number, tau in enumerate(repeats.taus):
            first = repeats.reached[:, depth, number]
            hit = first[first > 0].double()
            low, high = proportion_interval(len(hit), len(first))
            row = {"tau": tau, "tokens": len(first), "reached": len(hit), "share": len(hit) / len(first)}
            row |= {"low": low, "high": high}
            ends = (float(hit.quantile(0.5)), float(hit.min()), float(hit.max())) if len(hit) else (np.nan,) * 3
            rows.append(row | dict(zip(("median", "fewest", "most"), ends, strict=True)))
        return pd.DataFrame(rows)

    def moved(self) -> tuple[int, int, float, float, str]:
        """Of the repeated tokens: how many end at least half-way (log scale) to BOS, of how many, Wilson's interval.

        The last is the reason why there is no answer, or empty; the count is then 0 and the interval NaN.
        """
        tokens = len(self.tables.repeats.token_ids)
        reason = "" if self.sink.norm_found else "no norm sink was found, so repeats have nowhere to move to"
        move = self.tables.moved(self.sink)
        if reason or move.reason:
            return 0, tokens, float("nan"), float("nan"), reason or move.reason
        count = round(move.share * tokens)
        return count, tokens, *proportion_interval(count, tokens), ""


def run_sink_study(
    model: Model,
    *,
    layer: int | None = None,
    seeds: int | Sequence[int] = 3,
    tokens: int = 32,
    repeats: int | None = None,
    held_out_text: str | None = None,
    behaviour: bool = True,
    store: str | Path | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> SinkStudy:
    """Look for a sink beside null models, for its cause, and for what repeated tokens do; then cut the cause.

    Args:
        model: the model.
        layer: a layer to take as the sink layer, see :func:`mechrep.find_sink`.
        seeds: draws of each control of the cut.
        tokens: how many ordinary tokens are repeated, drawn at random (all where there are fewer); cuts and generation
            are tried on at most 16 of them.
        repeats: copies of each; by default 512, or as many as the context holds.
        held_out_text: English by default.
        behaviour: let the model go on writing after repeated tokens (dear).
        store: folder that lets a stopped study go on.
        seed: of null models, tokens and draws.
        progress: show progress bars.

    Raises:
        InputError: no tokenizer, a text shorter than one window, more copies than the context holds, centred weights.

    Source: see :func:`~mechrep.measures.find_sink.find_sink`,
    :func:`~mechrep.studies.sink_ablation.sink_cut_study` and
    :func:`~mechrep.studies.repeat_behaviour.repeat_behaviour`.

    Limits: sink, neurons and cuts are seen on the same held-out text.

    Example:
        >>> import mechrep
        >>> from mechrep.models.load import reinitialised
        >>> untrained = reinitialised(mechrep.load_model("mechrep-tiny"))
        >>> study = run_sink_study(untrained, tokens=4, repeats=20, behaviour=False, progress=False)
        >>> study.sink.found, study.ablation is None, study.moved()[4] != ""
        (False, True, True)
    """
    texts = ordinary_texts(model, None, held_out_text)
    config = {"study": "sinks", "layer": layer, "tokens": tokens, "repeats": repeats, "seeds": seeds, "seed": seed}
    provenance = provenance_of(model, texts, config)
    keep = _Kept(store, provenance)
    with progress_bar(5, "sinks", "step", progress) as bar:
        sink = keep("sink", SinkResult, lambda: find_sink(model, texts=texts, layer=layer, seed=seed))
        bar.update()
        tables = measure_tables(model, sink, tokens=tokens, repeats=repeats, texts=texts, seed=seed)
        bar.update()
        chosen = _spread(tables.repeats.token_ids, _DEAR)
        cut, cut_reason = None, sink.reason
        if sink.layer is not None:
            copies = tables.repeats.repeats[-1]
            cut = keep(
                "ablation",
                SinkCutResult,
                lambda: sink_cut_study(
                    model, sink, texts=texts, tokens=chosen, repeats=copies, seeds=seeds, progress=progress
                ),
            )
            cut_reason = ""
        bar.update()
        said = None
        if behaviour:
            said = keep(
                "behaviour", RepeatBehaviourResult, lambda: _behaviour(model, sink, tables, chosen, seed, progress)
            )
        bar.update()
        cluster, cluster_reason = _cluster(model, chosen[0], tables.repeats.bos, seed)
        bar.update()
    known = is_known(model.name)
    return SinkStudy(
        model_name=model.name,
        sink=sink,
        published=published_layer(model),
        tables=tables,
        names={token: model.decode([token]) for token in tables.repeats.token_ids},
        text_tokens=[model.decode([token]) for token in tables.text_ids],
        repeat_tokens=[model.decode([token]) for token in tables.repeat_ids],
        on_stimuli=head_on_stimuli(model, sink, texts, tables.repeats.token_ids, seed),
        ablation=cut,
        ablation_reason=cut_reason,
        behaviour=said,
        cluster=cluster,
        cluster_reason=cluster_reason,
        known="unknown" if not known else "met" if matches_known(model.name, sink) else "not met",
        provenance=provenance,
    )


def _spread(tokens: Sequence[int], most: int) -> list[int]:
    """At most so many of the tokens, evenly over the list."""
    return [int(tokens[round(place)]) for place in np.linspace(0, len(tokens) - 1, min(most, len(tokens)))]


def _behaviour(
    model: Model, sink: SinkResult, tables: SinkTables, tokens: Sequence[int], seed: int, progress: bool | None
) -> RepeatBehaviourResult:
    """Untouched, and where there are sink neurons also without them and without as many others."""
    bos = tables.repeats.bos
    new = min(_NEW_TOKENS, max(1, (model.anatomy.n_ctx - bos) // 4))
    grid = repeat_grid(min(model.anatomy.n_ctx - bos - new, _LONGEST))
    counts = sorted({grid[round(place)] for place in np.linspace(0, len(grid) - 1, _POINTS)})
    conditions = None
    if tables.neurons is not None and sink.neurons:
        conditions = sink_conditions(tables.neurons, len(sink.neurons), seed=seed)
    return repeat_behaviour(model, tokens, counts, conditions, new_tokens=new, bos=bos, seed=seed, progress=progress)


def _cluster(model: Model, token: int, bos: bool, seed: int) -> tuple[OVClusterResult | None, str]:
    try:
        return ov_cluster(model, token, _CLUSTER, bos=bos, seed=seed), ""
    except InputError as error:  # an answer too: so small a vocabulary or context has no clusters
        return None, str(error)


class _Kept:
    """Finished results of the study on disk, if there is a store."""

    def __init__(self, store: str | Path | None, provenance: Provenance) -> None:
        self._folder = None if store is None else Journal(Path(store), provenance).folder

    def __call__(self, name: str, kind: type[R], make: Callable[[], R]) -> R:
        if self._folder is None:
            return make()
        place = self._folder / name
        if not place.is_dir():
            make().save(place)
        return kind.load(place)
