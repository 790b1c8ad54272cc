"""The third main job from end to end: does a model rest on its first token, what makes it so, what do repeats do?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import pandas as pd

from mechrep.analyzers.sinks.cluster import OVClusterResult, ov_cluster
from mechrep.analyzers.sinks.find_sink import find_sink
from mechrep.analyzers.sinks.known_sinks import is_known, matches_known
from mechrep.analyzers.sinks.repeat_norms import repeat_grid
from mechrep.analyzers.sinks.result import SinkResult
from mechrep.errors import InputError
from mechrep.models.model import Model
from mechrep.progress import progress_bar
from mechrep.provenance import Provenance, provenance_of
from mechrep.results import Result
from mechrep.stats import proportion_interval
from mechrep.studies.journal import Journal
from mechrep.studies.repeat_behaviour import repeat_behaviour, sink_conditions
from mechrep.studies.repeat_behaviour_result import RepeatBehaviourResult
from mechrep.studies.sink_ablation import SinkCutResult, sink_cut_study
from mechrep.studies.sink_measures import ordinary_texts
from mechrep.studies.sink_stimuli import HeadOnStimuli, PublishedLayer, head_on_stimuli, published_layer
from mechrep.studies.sink_tables import SinkTables, measure_tables

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

    Source: see :func:`~mechrep.analyzers.sinks.find_sink.find_sink`,
    :func:`~mechrep.studies.sink_ablation.sink_cut_study` and
    :func:`~mechrep.studies.repeat_behaviour.repeat_behaviour`.

    Limits: sink, neurons and cuts are seen on the same held-out text.

    Example:
        >>> import mechrep
        >>> from mechrep.models.nulls import reinitialised
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
