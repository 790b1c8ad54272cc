"""Attention sinks from end to end: is the first token a sink, what makes it one, and what do repeated tokens do?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechrep.ablation.effects import ABLATION, Effects, detection, judge
from mechrep.ablation.sink_outcomes import SinkOnTexts
from mechrep.errors import InputError, NothingFoundError
from mechrep.figures import counted, finished, panels, place_of, shown_token, tick_step
from mechrep.guards import Count, Several, guarded
from mechrep.measures.attention_sinks import AttentionSinkResult, sink_heads_figure
from mechrep.measures.ov_cluster import OVClusterResult, ov_cluster
from mechrep.measures.sink_neurons import (
    SinkNeuronResult,
    begins_with_bos,
    bos_mlp_norms,
    outlier_layer,
    sink_neurons,
)
from mechrep.measures.sink_norms import (
    RepeatNormResult,
    SinkNormResult,
    norms_by_layer_figure,
    norms_vs_repeats_figure,
)
from mechrep.models.anatomy import Site
from mechrep.models.model import Model
from mechrep.models.reading import read_activations
from mechrep.progress import progress_bar
from mechrep.provenance import Provenance, provenance_of
from mechrep.results import Shown
from mechrep.run import LARGE_WEIGHTS, Run
from mechrep.sections import Section
from mechrep.stats import cluster_intervals, known, proportion_interval
from mechrep.studies.find_sink import (
    SinkReading,
    SinkResult,
    find_sink,
    ordinary_texts,
    read_moved,
    read_sink,
)
from mechrep.studies.known_sinks import is_known, matches_known
from mechrep.studies.repeat_behaviour import repeat_behaviour, repeat_behaviour_figure
from mechrep.studies.sink_ablation import ALL, changed, sink_ablation, sink_conditions
from mechrep.studies.sink_repeats import RepeatedTokens
from mechrep.text.corpus import Corpus
from mechrep.text.stimuli import ordinary_ids, repeated_tokens
from mechrep.viewer.show import view

if TYPE_CHECKING:
    import plotly.graph_objects as go

Known = Literal["unknown", "met", "not met"]
_PUBLISHED_LAYERS = 15  # that the released code looks at
_NEW_TOKENS = 32
_CLUSTER, _SETS, _ORDERS = 4, 19, 4
_SHORT = 64  # tokens of the texts of a cluster, in large models
_SHOWN = 24  # positions of a drawn pattern
_SEEN = 96  # of the repeated token that the page shows
_TESTED = ["attention", "loss", "repeat_norm", "p_next"]  # by the ablation; the neurons were chosen by the norm
_LAYER_COLUMNS = {
    "first": "norm at the first position", "typical": "norm elsewhere", "mlp_at_bos": "norm of MLP at BOS",
    "repeat_median": "norm of repeated tokens, median", "repeat_largest": "largest",
}  # fmt: skip
_TOP = 5  # neurons in the table
_KNOWN: dict[Known, str] = {"unknown": "none known", "met": "found here too", "not met": "others than found here"}


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


def published_layer(model: Model) -> PublishedLayer:
    """The published rule, its profile, and why it names no layer where it does not.

    Source: Yona et al. 2025 (arXiv 2503.08908), ``find_sink_layer`` of the released code.
    """
    norms = None
    try:
        norms = bos_mlp_norms(model, min(_PUBLISHED_LAYERS, model.anatomy.n_layers))
        return PublishedLayer(outlier_layer(norms), "", norms.float())
    except (InputError, NothingFoundError) as error:
        return PublishedLayer(None, error.expected, None if norms is None else norms.float())


@dataclass(frozen=True, eq=False)
class HeadOnStimuli:
    """Attention to the first position by the head that gives it most, in equally long texts of three kinds.

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
            values = getattr(self, kind).double().numpy()[None]
            ((low, high),) = cluster_intervals(values, range(values.size))
            rows.append({"kind": kind, "texts": values.size, "mean": values.mean(), "low": low, "high": high})
        return pd.DataFrame(rows)


def head_on_stimuli(
    model: Model, head: tuple[int, int], texts: Corpus, tokens: Sequence[int], seed: int = 0
) -> HeadOnStimuli:
    """A head's attention to the first position: on text, on random texts and on repeats, all equally long.

    Args:
        model: the model.
        head: the ``(layer, head)``, for instance ``find_sink(model).best_head``.
        texts: ordinary texts; the shortest gives the length of the others.
        tokens: repeated ones; there are as many random texts.
        seed: of the random texts.
    """
    bos, length = begins_with_bos(model, texts), int(texts.lengths.min())
    generator, ordinary = np.random.default_rng(seed), ordinary_ids(model)
    start = [model.bos_id] if bos and model.bos_id is not None else []
    width = length - len(start)
    rows = [[*start, *generator.choice(ordinary, width, replace=width > len(ordinary)).tolist()] for _ in tokens]
    random = Corpus.from_tokens(
        rows, model=model, attention_mask=True, source="random", bos_policy="prepended" if bos else "absent"
    )
    repeats = repeated_tokens(model, list(tokens), width, bos)
    readings = [SinkOnTexts(model, corpus, head[0], head, loss=False) for corpus in (texts, random, repeats)]
    return HeadOnStimuli(head, length, *(reading.values([None], False)[2, 0].float() for reading in readings))


@dataclass(frozen=True, eq=False)
class ShownPattern:
    """One head's attention on the beginning of a text.

    Attributes:
        tokens: of the text, decoded one by one.
        pattern: the attention.
    """

    tokens: Sequence[str]
    pattern: Float[Tensor, "query_pos key_pos"]


@torch.no_grad()
def shown_pattern(model: Model, ids: Sequence[int], head: tuple[int, int]) -> ShownPattern:
    """What a ``(layer, head)`` looks at in the first tokens of a text."""
    kept: list[Tensor] = []
    few = list(ids)[:_SHOWN]
    tokens = torch.tensor([few], device=model.device)
    read_activations(
        model, tokens, {Site.PATTERN: [head[0]]}, lambda pattern, *_: kept.append(pattern[0, head[1]].float().cpu())
    )
    return ShownPattern([model.decode([token]) for token in few], kept[0])


def text_against_repeats_figure(shown: Sequence[ShownPattern], *, head: tuple[int, int], name: str) -> go.Figure:
    """Attention of one head in ordinary text and in repeats, side by side on one scale from 0 to 1.

    Args:
        shown: of the text and of the repeats.
        head: the ``(layer, head)``.
        name: of the model.

    Source: Yona et al. 2025 (arXiv 2503.08908) draw scores before the softmax, averaged over heads; this is one head,
    after it.

    Example:
        >>> one, two = (ShownPattern(["a", "b"], torch.eye(2)), ShownPattern(["a", "a"], torch.ones(2, 2) / 2))
        >>> figure = text_against_repeats_figure([one, two], head=(1, 0), name="mechrep-tiny")
        >>> figure.layout.title.text, figure.data[1].z[1].tolist()
        ('Attention of L1H0 in a text and in a repeated token', [0.5, 0.5])
    """
    figure = panels(["text", "one token, repeated"], 380)
    for panel, one in enumerate(shown):
        n, where = len(one.tokens), place_of(panel)
        future = torch.ones(n, n, dtype=torch.bool).triu(1)
        figure.add_heatmap(
            x=list(range(n)), y=list(range(n)), z=one.pattern.float().masked_fill(future, torch.nan).numpy(),
            coloraxis="coloraxis", hoverongaps=False,
            hovertemplate="query %{y:d}: %{y}<br>key %{x:d}: %{x}<br>attention %{z:.3f}<extra></extra>", **where,
        )  # fmt: skip
    title = f"Attention of L{head[0]}H{head[1]} in a text and in a repeated token"
    length = counted(max(len(one.tokens) for one in shown), "token")
    subtitle = f"{name}; the first {length}"
    finished(figure, title=title, subtitle=subtitle, x="key (token)", y="query (token)", share="attention")
    for panel, one in enumerate(shown):
        n, where = len(one.tokens), place_of(panel)
        names = {str(place): shown_token(token) for place, token in enumerate(one.tokens)}
        axis = {"labelalias": names, "tickformat": "d", "tick0": 0, "dtick": tick_step(n, 24)}
        figure.update_xaxes(axis | {"range": [-0.5, n - 0.5], "tickangle": -90}, row=where["row"], col=where["col"])
        figure.update_yaxes(axis | {"range": [n - 0.5, -0.5]}, row=where["row"], col=where["col"])
    return figure


@dataclass(frozen=True, eq=False)
class SinkStudy(Shown):
    """Everything that the report shows about attention sinks.

    Attributes:
        model_name: how the model was named.
        sink: whether there is one, beside null models; layer, neurons, heads.
        published: the published rule for the layer.
        reading: norms of ordinary text, and attention to its first position, with BOS and without.
        read: norms of repeated tokens, after BOS and without.
        neurons: scores of the sink layer's neurons; ``None`` where there is no sink layer.
        shown: attention of the best head on a text, and on the token whose norm grows most, repeated.
        names: the repeated tokens as text, by id.
        on_stimuli: what the best head gives to the first position in text, random tokens and repeats.
        ablation: the sink neurons set to zero, beside controls; ``None`` without a norm sink.
        behaviour: whether the model goes on repeating tokens, with and (given a norm sink) without its sink neurons;
            ``None`` where it was not asked for.
        cluster: different tokens that the first layer takes for one; ``None`` where none could be built.
        known: whether published sinks of this model are met; ``"unknown"`` where none is published.
        provenance: of the whole study.
        views: the token whose norm grows most, repeated, to look at; see :func:`mechrep.view`.
    """

    model_name: str
    sink: SinkResult
    published: PublishedLayer
    reading: SinkReading
    read: RepeatedTokens
    neurons: SinkNeuronResult | None
    shown: Sequence[ShownPattern]
    names: dict[int, str]
    on_stimuli: HeadOnStimuli
    ablation: Effects | None
    behaviour: Effects | None
    cluster: OVClusterResult | None
    known: Known
    provenance: Provenance
    views: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def norms(self) -> SinkNormResult:
        """Norms of the ordinary texts."""
        return self.reading.norms[self.reading.bos]

    @property
    def heads(self) -> AttentionSinkResult:
        """Attention to the first position of the ordinary texts."""
        return self.reading.heads[self.reading.bos]

    @property
    def repeats(self) -> RepeatNormResult:
        """Norms of repeated tokens, after BOS where there is one."""
        return self.read.main

    @property
    def layer(self) -> int:
        """The layer after which the main stage peaks; without one, that of the largest ratio."""
        main = self.sink.main
        return int(self.norms.ratio[1:].nan_to_num(0.0).argmax()) if main is None else main.layer

    def crossings(self) -> pd.DataFrame:
        """One row per share tau of the BOS norm: how many tokens reach it after the sink layer, after how many repeats.

        ``reached`` of ``tokens`` do, a ``share`` with its Wilson interval; ``median``, ``fewest`` and ``most`` are
        numbers of repeats of those that do, missing where none does.
        """
        rows = []
        for number, tau in enumerate(self.repeats.taus):
            first = self.repeats.reached[:, self.layer + 1, number]
            hit = first[first > 0].double()
            low, high = proportion_interval(len(hit), len(first))
            row = {"tau": tau, "tokens": len(first), "reached": len(hit), "share": len(hit) / len(first)}
            ends = (float(hit.quantile(0.5)), float(hit.min()), float(hit.max())) if len(hit) else (np.nan,) * 3
            rows.append(row | {"low": low, "high": high} | dict(zip(("median", "fewest", "most"), ends, strict=True)))
        return pd.DataFrame(rows)

    def claims(self) -> pd.DataFrame:
        """Every claim with its verdict: the search's, the ablation's (one family), the behaviour's, the cluster's.

        Nothing is claimed about what neither the ablation nor a draw of its controls has changed: nothing was tested
        there.
        """
        found = self.sink.claims
        tables = [found.assign(claim=found["name"].str.replace(", ", "_").str.replace(" ", "_"))]
        if self.ablation is not None:
            rows = _about(self.ablation, "without the sink neurons", _TESTED)
            tables.append(rows.assign(claim="without_" + rows["measure"]))
        if self.behaviour is not None and any(one.selection == ABLATION for one in self.behaviour.conditions):
            last = max(one.copy or 0 for one in self.behaviour.measures)
            rows = _about(self.behaviour, "repeated tokens abandoned", ["abandoned"], last)
            tables.append(rows.assign(claim="behaviour"))
        if self.cluster is not None:
            tables.append(judge([self._cluster_row()], family="this claim alone").assign(claim="cluster"))
        return pd.concat([table.dropna(axis=1, how="all") for table in tables], ignore_index=True)

    def _cluster_row(self) -> dict[str, Any]:
        assert self.cluster is not None
        signals = {kind: self.cluster.by_set(self.cluster.signal, kind).tolist() for kind in ("cluster", "random")}
        (own,), draws = signals["cluster"], signals["random"]
        row = detection("cluster", "other-token signal", own, draws, unit="norm", direction=-1)
        return row | {"controls": "random sets"}

    def section(self) -> Section:
        """What the report shows."""
        sink, variant = self.sink, "" if self.sink.neurons else "no_neurons"
        if not sink.norm_found:
            variant = "heads_only" if sink.heads_found else "not_found"
        parts = self._fields(), self.claims(), self._tables(), self._figures()
        return Section("sinks", self.provenance, *parts, variant, self.views)

    def _fields(self) -> dict[str, Any]:
        sink, main = self.sink, self.sink.main
        (layer, head), last = sink.best_head, self.repeats.norm[:, 1:, -1].double()
        times = last / self.norms.other_norm[1:].double()
        told = {} if main is None else {
            "rise": main.norm.rise, "tried": len(main.neurons), "removed_at_peak": main.removed_at_peak,
            "removed": main.removed, "removed_by_random": main.removed_by_random,
            "tried_neurons": ", ".join(f"L{x}N{y}" for x, y in main.neurons),
        }  # fmt: skip
        return told | {
            "model": self.model_name, "ratio": sink.largest_ratio, "layer": self.layer, "texts": self.norms.n_texts,
            "null_rise": max(sink.null_rises), "stages": len(sink.stages),
            "nulls": len(sink.null_rises), "sink_heads": len(sink.sink_heads), "all_heads": len(known(sink.alpha)),
            "best_head": f"L{layer}H{head}", "alpha": float(sink.alpha[layer, head]),
            "null_alpha": max(sink.null_alphas), "uniform": sink.uniform_alpha, "sink_rate": sink.sink_share,
            "length": sink.mean_length, "first": sink.first,
            "without": float(sink.ratio_without[1:].max()), "heads_without": int((sink.alpha_without > 0.3).sum()),
            "heads_with": int((sink.alpha > 0.3).sum()), "other": "without BOS" if sink.first_is_bos else "with BOS",
            "neurons": ", ".join(f"L{x}N{y}" for x, y in sink.neurons) or "none", "n_neurons": len(sink.neurons),
            "rule_layer": self.published.layer, "known": _KNOWN[self.known],
            "tokens": len(self.repeats.token_ids), "repeats": self.repeats.repeats[-1],
            "largest_repeat": float(times.max()), "largest_layer": int(times.amax(0).argmax()),
            "stimulus_length": self.on_stimuli.length,
        } | self._fields_of_ablations()  # fmt: skip

    def _fields_of_ablations(self) -> dict[str, Any]:
        told: dict[str, Any] = {}
        if self.behaviour is not None:
            told["new_tokens"] = self.behaviour.provenance.config["new_tokens"]
        if self.ablation is None:
            return told
        rows = self.ablation.summary()
        norms = rows[rows["name"] == ALL].set_index("measure").loc[["first_norm", "typical_norm"]]
        (before, after), (typical, _) = norms[["baseline", "value"]].to_numpy(float).tolist()
        told |= {"norm_with": before, "norm_without": after, "typical": typical}
        return told | {
            "few_texts": len(self.ablation.units[0]), "few_tokens": len(self.ablation.units[-1]),
        }  # fmt: skip

    def _tables(self) -> dict[str, pd.DataFrame]:
        layers, ruled = self.by_layer(), self.published.layer is not None
        layers = (layers if ruled else layers.drop(columns="mlp_at_bos")).rename(columns=_LAYER_COLUMNS)
        tables = {"layers and rule" if ruled else "layers": layers}
        if self.sink.stages:
            tables = {"stages": _stage_rows(self.sink), "moved": _moved_rows(self.sink)} | tables
        if self.neurons is not None:
            frame = self.neurons.to_frame().head(_TOP)
            names = {"contribution_first": "adds at the first position", "authors_first": "score of Yona et al."}
            tables["neurons"] = frame[["layer", "neuron", *names]].rename(columns=names)
        crossings = self.crossings()
        if crossings["reached"].any():
            names = {"tau": "share of the norm of BOS", "median": "median repetitions", "fewest": "fewest repetitions"}
            tables["crossings"] = crossings[["tau", "tokens", "reached", "median", "fewest"]].rename(columns=names)
        tables["stimuli"] = self.on_stimuli.to_frame().rename(columns={"kind": "text kind", "mean": "attention"})
        if self.cluster is not None:
            columns = ["kind", "texts", "signal", "signal_low", "signal_high", "norm"]
            names = {"kind": "tokens", "signal": "moved by attention", "signal_low": "low", "signal_high": "high"}
            tables["cluster"] = self.cluster.to_frame(self.layer)[columns].rename(columns=names)
        return tables

    def by_layer(self) -> pd.DataFrame:
        """One row per layer: norms at the first position, elsewhere, and at the last repeat; what the MLP writes."""
        last, layers = self.repeats.norm[:, 1:, -1].double(), len(self.norms.jump)
        written = np.full(layers, np.nan)
        if self.published.mlp_norms is not None:
            written[: len(self.published.mlp_norms)] = self.published.mlp_norms.numpy()
        return pd.DataFrame(
            {
                "layer": range(layers),
                "first": self.norms.first_norm[1:].numpy(),
                "typical": self.norms.other_norm[1:].numpy(),
                "ratio": self.norms.ratio[1:].numpy(),
                "mlp_at_bos": written,
                "repeat_median": last.quantile(0.5, dim=0).numpy(),
                "repeat_largest": last.amax(0).numpy(),
            }
        )

    def _figures(self) -> dict[str, go.Figure]:
        typical = self.norms.other_norm
        figures = {
            "norms": norms_by_layer_figure(self.norms),
            "heads": sink_heads_figure(self.heads),
            "repeats": norms_vs_repeats_figure(self.repeats, self.layer, typical, names=self.names),
            "attention": text_against_repeats_figure(self.shown, head=self.sink.best_head, name=self.model_name),
        }
        if self.ablation is not None:
            figures["ablation"] = self.ablation.plot(_TESTED)
        if self.behaviour is not None:
            figures["behaviour"] = repeat_behaviour_figure(self.behaviour)
        return figures


def _stage_rows(sink: SinkResult) -> pd.DataFrame:
    """The stages as the page shows them."""
    table = sink.stage_frame()
    shares = ["removed_at_peak", "removed_later", "removed_by_random", "attention", "attention_without"]
    table[shares] = (100 * table[shares]).round(1)
    names = {
        "rises_in": "rises in layers", "peak_after": "peak after layer", "stands_until": "stands until layer",
        "neurons": "neurons tried", "removed_at_peak": "removed at the peak (%)",
        "removed_later": "removed at worst later (%)", "removed_by_random": "random neurons, most (%)",
        "heads": "heads resting on it", "attention": "their attention (%)",
        "attention_without": "without the neurons (%)",
    }  # fmt: skip
    table[["ratio", "rise"]] = table[["ratio", "rise"]].round(2)
    return table.drop(columns="carried").rename(columns=names)


def _moved_rows(sink: SinkResult) -> pd.DataFrame:
    """Shares of repeated tokens as the page shows them, in per cent."""
    table = sink.moved_frame().drop(columns="peak")
    table["bos"] = table["bos"].map({True: "after BOS", False: "without BOS"})
    shares = ["moved", "low", "high"]
    table[shares] = (100 * table[shares]).round(0)
    names = {
        "kind": "kind of token", "bos": "repeated", "moved": "half-way (%)", "repeats": "repetitions it took, median",
    }  # fmt: skip
    return table.rename(columns=names)


def _about(effects: Effects, family: str, measures: Sequence[str], copy: int | None = None) -> pd.DataFrame:
    """Some measures of all sink neurons together, judged as one family, where anything was changed."""
    rows = effects.summary()
    rows = changed(rows[(rows["name"] == ALL) & rows["measure"].isin(measures)])
    return judge(rows if copy is None else rows[rows["copy"] == copy], family=family)


@guarded
def run_sink_study(
    model: Model,
    *,
    layer: int | None = None,
    tokens: Count | None = None,
    repeats: Several | None = None,
    held_out_text: str | None = None,
    behaviour: bool = True,
    run: Run | None = None,
) -> SinkStudy:
    """Look for a sink beside null models, for its cause, and for what repeated tokens do; then ablate the cause.

    Args:
        model: the model.
        layer: take the stage that this layer writes as the only one, see :func:`mechrep.find_sink`.
        tokens: how many tokens of each kind (frequent, rare, punctuation, pieces of words) are repeated, drawn at
            random; ablations and generation are tried on some of them, and after fewer repetitions.
        repeats: how often; by default 512 times (large models: 192), or as often as the context holds.
        held_out_text: English by default.
        behaviour: let the model go on writing after repeated tokens (expensive).
        run: options.

    Raises:
        InputError: no tokenizer, a text shorter than one window, more repeats than the context holds, centred weights.

    Source: see :func:`~mechrep.studies.find_sink.find_sink`,
    :func:`~mechrep.studies.sink_ablation.sink_ablation` and
    :func:`~mechrep.studies.repeat_behaviour.repeat_behaviour`.

    Limits: sink, neurons and ablations are seen on the same held-out text.

    Example:
        >>> import mechrep
        >>> from mechrep.models.nulls import reinitialised
        >>> untrained = reinitialised(mechrep.load_model("mechrep-tiny"))
        >>> study = run_sink_study(untrained, tokens=4, repeats=20, behaviour=False)
        >>> study.sink.found, study.ablation is None, study.section().variant
        (False, True, 'not_found')
    """
    if layer is not None:
        model.anatomy.check_layer(layer)
    options = run or Run()
    texts = ordinary_texts(model, None, held_out_text)
    config = {"study": "sinks", "layer": layer, "tokens": tokens, "repeats": repeats, "seed": options.seed}
    with progress_bar(5, "sinks", "step", options.progress) as bar:
        read = read_moved(model, options, tokens, repeats)
        bar.update()
        sink = find_sink(model, texts=texts, layer=layer, run=options)
        reading = read_sink(model, texts, options)
        moved, main = read.main, sink.main
        chosen = _spread(moved.token_ids, options.sizes_on(model).tokens)
        bar.update()
        ablation = None
        if sink.neurons:
            few = texts.select(range(min(len(texts), options.sizes_on(model).windows)))
            times = min(moved.repeats[-1], options.sizes_on(model).repeats)
            ablation = sink_ablation(model, sink, texts=few, tokens=chosen, repeats=times, run=options)
        bar.update()
        said = _behaviour(model, sink, chosen, moved.bos, options) if behaviour else None
        bar.update()
        cluster = _cluster(model, chosen[0], moved.bos, options.seed)
        bar.update()
    where = int(reading.norms[reading.bos].ratio[1:].nan_to_num(0.0).argmax()) if main is None else main.layer
    largest = moved.top(1, where)[0]
    stimulus = repeated_tokens(model, [largest], moved.repeats[-1], moved.bos)
    seen = view(model, stimulus.row(0)[:_SEEN], [f"norm L{where}", "surprisal"], cycle=None)
    return SinkStudy(
        model_name=model.name,
        sink=sink,
        published=published_layer(model),
        reading=reading,
        read=read,
        neurons=None
        if main is None
        else sink_neurons(model, texts.select(range(min(len(texts), 16))), main.norm.layer),
        shown=[shown_pattern(model, ids, sink.best_head) for ids in (texts.row(0), stimulus.row(0))],
        names={token: model.decode([token]) for token in moved.token_ids},
        on_stimuli=head_on_stimuli(model, sink.best_head, texts, moved.token_ids, options.seed),
        ablation=ablation,
        behaviour=said,
        cluster=cluster,
        known="unknown"
        if not is_known(model.name)
        else "met"
        if matches_known(model.name, sink.found_neurons)
        else "not met",
        provenance=provenance_of(model, texts, config),
        views={"repeated": seen.payload()},
    )


def _met(name: str, sink: SinkResult) -> Known:
    if not is_known(name):
        return "unknown"
    return "met" if matches_known(name, sink.found_neurons) else "not met"


def _spread(tokens: Sequence[int], most: int) -> list[int]:
    """At most so many of the tokens, evenly over the list."""
    return [int(tokens[round(place)]) for place in np.linspace(0, len(tokens) - 1, min(most, len(tokens)))]


def _behaviour(model: Model, sink: SinkResult, tokens: Sequence[int], bos: bool, run: Run) -> Effects:
    """The model itself, and where there are sink neurons also without them and without as many others."""
    new = min(_NEW_TOKENS, max(1, (model.anatomy.n_ctx - bos) // 4))
    cells = () if not sink.neurons else sink_conditions(model, sink.top(len(sink.neurons)), first_alone=False, run=run)
    return repeat_behaviour(model, tokens, None, cells, new_tokens=new, bos=bos, run=run)


def _cluster(model: Model, token: int, bos: bool, seed: int) -> OVClusterResult | None:
    large = model.n_weights > LARGE_WEIGHTS  # shorter texts, and one of each set
    length = min(_SHORT, model.anatomy.n_ctx - bos) if large else None
    try:
        return ov_cluster(
            model, token, _CLUSTER, length=length, draws=(_SETS, 1 if large else _ORDERS), bos=bos, seed=seed
        )
    except InputError:  # so small a vocabulary or context has no clusters
        return None
