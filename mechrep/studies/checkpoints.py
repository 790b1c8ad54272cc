"""``over_checkpoints``: measure anything at every checkpoint of a model, one model in memory at a time, as one table.

A measure of a model gives, by name, a number, or one number per *unit*: per text, per prompt, per group of texts.
Units are the same at every checkpoint; intervals, change points and their order come from drawing units anew.  A
measure without units has no interval.
"""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import inspect
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from mechrep.ablation.effect_plots import training_axis
from mechrep.ablation.effects import (
    BASELINE,
    CHECKPOINT,
    SUPPORTED,
    UNITS,
    Condition,
    Effects,
    Measure,
    judge,
    rank_p_value,
)
from mechrep.cache.corpus_cache import Analyzer, CorpusCache
from mechrep.errors import InputError
from mechrep.figures import INK
from mechrep.guards import check_fields, each_once, guarded, one_of
from mechrep.journal import Journal
from mechrep.measures.change_points import DRAWS, ChangePoint, change_point, drawn_means, unit_draws
from mechrep.measures.mechanisms import Numbers, head_mechanisms, loop_flags, sink_share
from mechrep.models.load import load_model
from mechrep.models.model import Model
from mechrep.models.revisions import Checkpoint, Revisions, list_checkpoints
from mechrep.progress import progress_bar
from mechrep.provenance import Provenance
from mechrep.run import Run
from mechrep.stats import percentile_interval
from mechrep.text.corpus import Corpus

if TYPE_CHECKING:
    import plotly.graph_objects as go


# --- what is measured -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelMeasure:
    """Something that is measured at every checkpoint.

    Attributes:
        name: in the store and in messages.
        function: from a model to numbers by name, each one number or one per unit.
        config: what decides the numbers besides the function's own text, JSON-ready.
        described: the numbers by name as rows of the table; a number that is not described is a score.

    Example:
        >>> import mechrep
        >>> size = ModelMeasure("size", lambda model: {"weights": float(model.n_weights)})
        >>> sorted(size.function(mechrep.load_model("mechrep-tiny")))
        ['weights']
    """

    name: str
    function: Callable[[Model], Numbers]
    config: Mapping[str, Any] = field(default_factory=dict)
    described: Mapping[str, Measure] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)

    def identity(self) -> dict[str, Any]:
        """What the store files the numbers under: name, settings, and the function's source where there is one."""
        function = self.function.function if isinstance(self.function, _Bound) else self.function
        try:
            source = inspect.getsource(function)
        except (OSError, TypeError):
            source = repr(type(function))
        text = hashlib.sha256(source.encode()).hexdigest()[:24]
        return {"name": self.name, "function": text, "config": dict(self.config)}


def as_measures(
    given: str | Sequence[Any] | Mapping[str, Callable[[Model], Numbers]], corpus: Corpus | None
) -> list[ModelMeasure]:
    """Measures of all kinds as :class:`ModelMeasure`.

    Args:
        given: ``"all"`` ready-made ones; a list of names, measures, functions and analyzers; or functions by name.
        corpus: what analyzers read.

    Raises:
        InputError: nothing, an unknown name, two of one name, an analyzer without a corpus.
    """
    if isinstance(given, str):
        items: list[Any] = list(MEASURES) if given == "all" else [given]
    elif isinstance(given, Mapping):
        items = [ModelMeasure(name, function) for name, function in given.items()]
    else:
        items = list(given)
    measures = [_as_measure(item, corpus) for item in items]
    each_once("measures", (measure.name for measure in measures), remedy="wrap them in ModelMeasure(name, ...)")
    return measures


def _as_measure(item: Any, corpus: Corpus | None) -> ModelMeasure:
    if isinstance(item, ModelMeasure):
        return item
    if isinstance(item, str):
        return measure_named(item)
    if isinstance(item, Analyzer):
        if corpus is None:
            raise InputError(f"{type(item).__name__} without texts", "a corpus", "pass corpus=")
        return analyzer_measure(item, corpus)
    if callable(item):
        function: Any = item
        return ModelMeasure(getattr(function, "__qualname__", type(function).__name__), function)
    raise InputError(f"{item!r}", f"a function of a model, an analyzer, or one of {sorted(MEASURES)}", "correct it")


def analyzer_measure(analyzer: Analyzer, corpus: Corpus) -> ModelMeasure:
    """Largest and mean value over all units (heads, neurons, layers) of every column of an analyzer's table.

    Args:
        analyzer: the analyzer; its state is made anew for every checkpoint.
        corpus: the texts, the same at every checkpoint.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> corpus = mechrep.Corpus.from_texts(["The sea was calm."], model=model)
        >>> numbers = analyzer_measure(mechrep.AttentionSinks(), corpus).function(model)
        >>> "AttentionSinks: alpha, largest" in numbers
        True
    """
    kind = type(analyzer).__name__

    def measured(model: Model) -> dict[str, float]:
        result = CorpusCache(model, corpus, progress=False).run(analyzer)
        table = result.to_frame().drop(columns=["layer", "head", "neuron"], errors="ignore").select_dtypes("number")
        ways = {"largest": np.nanmax, "mean": np.nanmean}
        return {
            f"{kind}: {column}, {how}": float(way(values)) if (~np.isnan(values)).any() else float("nan")
            for column, values in ((name, table[name].to_numpy(dtype=float)) for name in table)
            for how, way in ways.items()
        }

    return ModelMeasure(kind, measured, {"analyzer": analyzer.config, "corpus": corpus.fingerprint()})


def measure_named(name: str, **settings: int) -> ModelMeasure:
    """A ready-made measure.

    Args:
        name: of :data:`MEASURES`.
        **settings: of the measure's function, e.g. ``prompts=200`` for ``"loops"``.

    Raises:
        InputError: an unknown name or setting.

    Example:
        >>> measure_named("loops", prompts=8).config
        {'prompts': 8}
    """
    one_of("measure", name, MEASURES)
    function, described = MEASURES[name]
    for setting in settings:
        one_of(f"settings of {name!r}", setting, sorted(set(inspect.signature(function).parameters) - {"model"}))
    return named_measure(name, function, settings, described)


def named_measure(
    name: str, function: Callable[..., Numbers], settings: Mapping[str, int], described: Sequence[Measure] = ()
) -> ModelMeasure:
    """A function with its settings as a measure; the store knows it by its own source, its name and the settings."""
    return ModelMeasure(
        name, _Bound(function, dict(settings)), dict(settings), {measure.name: measure for measure in described}
    )


@dataclass(frozen=True)
class _Bound:
    """A ready-made function with its settings; its source, not this class', identifies it."""

    function: Callable[..., Numbers]
    settings: Mapping[str, int]

    def __call__(self, model: Model) -> Numbers:
        return self.function(model, **self.settings)


MEASURES: dict[str, tuple[Callable[..., Numbers], tuple[Measure, ...]]] = {
    "heads": (
        head_mechanisms,
        (Measure("induction", "score"), Measure("self_finding", "score"), Measure("previous_token", "score"),
         Measure("copying", "nats")),
    ),
    "sinks": (sink_share, (Measure("sink_heads", "share"), Measure("sink", "score"))),
    "loops": (
        loop_flags,
        tuple(Measure(name, "share", trials=1) for name in ("loops_naturally", "copies_in_icl", "phrase_loops")),
    ),
}  # fmt: skip


# --- the table ------------------------------------------------------------------------------------------------------

Record = dict[str, Any]  # fingerprint and tokenizer of the model, and the units of each number


@guarded
def over_checkpoints(
    measures: str | Sequence[str | ModelMeasure | Analyzer | Callable[[Model], Numbers]] | Mapping[str, Any] = "all",
    *,
    model: str | Path = "mechrep-tiny",
    revisions: Revisions = "all",
    corpus: Corpus | None = None,
    run: Run | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
) -> Effects:
    """Measure every checkpoint with the same texts: one condition per checkpoint, the first one the baseline.

    With ``run.store`` every finished measure of every checkpoint is kept: after a kill, the same call goes on where it
    was, and a new measure or checkpoint costs only itself.  A checkpoint with nothing left to measure is not loaded.

    Args:
        measures: names of ready-made measures, ``"all"`` of them by default (:data:`MEASURES`); functions from a model
            to numbers by name, each a number or one per unit; :class:`ModelMeasure`; or analyzers, which read
            ``corpus``.
        model: an embedded model or a hub name.
        revisions: ``"all"``, ``"grid"``, a list of names, or a mapping from names to folders; see
            :func:`list_checkpoints`.
        corpus: what analyzers read, the same at every checkpoint.
        run: options.
        dtype: of the weights.
        device: of the weights.

    Returns:
        The table; ``notes`` hold ``tokens`` seen and ``fingerprints`` by checkpoint, and the ``sources`` of the rows.

    Raises:
        InputError: a revision that does not exist, checkpoints with different tokenizers, a measure whose units
            differ from checkpoint to checkpoint, or what :func:`as_measures` refuses.
        ModelError: a checkpoint that cannot be loaded.
        StoreError: a store that cannot be read or written.

    Limits: a function is known to the store by its source; what it takes from elsewhere belongs into
    ``ModelMeasure(config=...)``, or an old number may be found.

    Example:
        >>> def size(model): return {"weights": float(sum(p.abs().sum() for p in model.plain.parameters()))}
        >>> effects = over_checkpoints([size], revisions=["step0", "step512"])
        >>> effects.to_frame()["model"].tolist()
        ['step0', 'step512']
    """
    chosen, options = as_measures(measures, corpus), run or Run()
    checkpoints = list_checkpoints(model, revisions)
    facts = {"dtype": None if dtype is None else str(dtype).removeprefix("torch."), "model": str(model)}
    records: list[list[Record]] = []
    with progress_bar(len(checkpoints) * len(chosen), "measuring checkpoints", "measure", options.progress) as bar:
        for checkpoint in checkpoints:
            spec = _Spec(checkpoint, options.store, facts, dtype, device)
            records.append(_measure(spec, chosen, bar))
            _check_tokenizers(checkpoints, records)
    return _table(checkpoints, chosen, records, facts)


@dataclass(frozen=True)
class _Spec:
    """A checkpoint, how it is loaded, and where its numbers are kept."""

    checkpoint: Checkpoint
    store: str | Path | None
    facts: Mapping[str, Any]
    dtype: torch.dtype | None
    device: str | torch.device | None

    def load(self) -> Model:
        return load_model(self.checkpoint.spec, revision=self.checkpoint.revision, dtype=self.dtype, device=self.device)

    def journal(self, measure: ModelMeasure) -> Journal | None:
        if self.store is None:
            return None
        names = {"name": self.facts["model"], "revision": self.checkpoint.name, "identity": self.checkpoint.identity}
        settings = {"study": "checkpoints", "measure": measure.identity()}
        return Journal(Path(self.store), Provenance(names | {"dtype": self.facts["dtype"]}, {}, settings))


def _measure(spec: _Spec, measures: Sequence[ModelMeasure], bar: Any) -> list[Record]:
    """Records of all measures at one checkpoint; its model is gone when this returns."""
    loaded: Model | None = None
    records: list[Record] = []
    for measure in measures:
        bar.set_postfix_str(f"{spec.checkpoint.name}: {measure.name}", refresh=False)
        journal = spec.journal(measure)
        kept = None if journal is None else journal.find(0)
        if kept is None:
            loaded = loaded or spec.load()
            kept = [_record(loaded, measure)]
            if journal is not None:
                journal.keep(0, kept)
        records += kept
        bar.update(1)
    del loaded
    gc.collect()  # models hold hooks that point back at them
    return records


def _record(model: Model, measure: ModelMeasure) -> Record:
    """What a measure says of a model, as lists of units.

    Raises:
        InputError: no numbers, or something that is no number.
    """
    with torch.no_grad():
        numbers = measure.function(model)
    try:
        units = {str(name): np.atleast_1d(np.asarray(value, dtype=float)).tolist() for name, value in numbers.items()}
        sound = bool(units) and all(isinstance(value[0], float) for value in units.values())
    except (TypeError, ValueError, AttributeError, IndexError):
        units, sound = {}, False
    if not sound:
        raise InputError(
            f"measure {measure.name!r}, which gave {numbers!r:.120}",
            "a dict from names to numbers, or to one number per unit",
            "return for instance {'loss': 3.2}",
        )
    return {"fingerprint": model.fingerprint(), "tokenizer": model.tokenizer_fingerprint, "units": units}


def _check_tokenizers(checkpoints: Sequence[Checkpoint], records: Sequence[Sequence[Record]]) -> None:
    """Refuse checkpoints whose ids mean different things.

    Raises:
        InputError: two tokenizers.
    """
    first, last = records[0][0]["tokenizer"], records[-1][0]["tokenizer"]
    if first != last:
        one, other = checkpoints[0].name, checkpoints[len(records) - 1].name
        raise InputError(
            f"checkpoints {one!r} (tokenizer {first}) and {other!r} (tokenizer {last})",
            "one tokenizer for all: the same ids are read at every checkpoint",
            "leave out the checkpoints of the other tokenizer",
        )


def _table(
    checkpoints: Sequence[Checkpoint],
    measures: Sequence[ModelMeasure],
    records: Sequence[Sequence[Record]],
    facts: Mapping[str, Any],
) -> Effects:
    rows: list[Measure] = []
    series: list[list[list[float]]] = []
    sources: dict[str, str] = {}
    for place, measure in enumerate(measures):
        for name in records[0][place]["units"]:
            if name in sources:
                raise InputError(
                    f"{name!r} from {sources[name]!r} and {measure.name!r}", "names of their own", "rename one"
                )
            values = [one[place]["units"].get(name, []) for one in records]
            if len({len(units) for units in values}) > 1:
                lengths = dict(zip((c.name for c in checkpoints), map(len, values), strict=True))
                raise InputError(
                    f"{name!r} with units {lengths}", "the same units at every checkpoint", "fix the texts it reads"
                )
            rows.append(measure.described.get(name, Measure(name, "score", "text" if len(values[0]) > 1 else "model")))
            series.append(values)
            sources[name] = measure.name
    most = max((len(values[0]) for values in series), default=0)
    ids = [
        [f"{sources[row.name]} {i}" for i in range(len(values[0]))] for row, values in zip(rows, series, strict=True)
    ]
    filled = [[units + [np.nan] * (most - len(units)) for units in values] for values in series]
    config = {"study": "checkpoints", "measures": [measure.identity() for measure in measures], **facts}
    return Effects(
        Provenance({"name": facts["model"], "revisions": len(checkpoints)}, {"texts": most}, config),
        [_condition(checkpoint, place == 0) for place, checkpoint in enumerate(checkpoints)],
        rows,
        ids,
        ids,
        torch.tensor(filled, dtype=torch.float64).reshape(len(rows), len(checkpoints), most),
        {
            "tokens": [checkpoint.tokens for checkpoint in checkpoints],
            "fingerprints": [one[0]["fingerprint"] for one in records],
            "sources": sources,
        },
    )


def _condition(checkpoint: Checkpoint, first: bool) -> Condition:
    step = None if np.isnan(checkpoint.step) else checkpoint.step
    return Condition("checkpoint", BASELINE if first else CHECKPOINT, model=checkpoint.name, step=step)


def revisions_of(effects: Effects) -> list[str]:
    """Names of the checkpoints of a table, in the order of training."""
    return [condition.model for condition in effects.conditions]


def step_name(revision: str) -> str:
    """A checkpoint as a reader names it.

    Example:
        >>> step_name("step2048"), step_name("main")
        ('step 2048', 'main')
    """
    return re.sub(r"^step(\d+)$", r"step \1", revision)


def part_of(effects: Effects, sources: Sequence[str]) -> Effects:
    """The rows that some measures of models made; what none of them made is left out."""
    made = effects.notes["sources"]
    rows = [place for place, measure in enumerate(effects.measures) if made[measure.name] in sources]
    return dataclasses.replace(
        effects,
        measures=[effects.measures[place] for place in rows],
        units=[effects.units[place] for place in rows],
        clusters=[effects.clusters[place] for place in rows],
        values=effects.values[rows],
    )


# --- when, and in which order -----------------------------------------------------------------------------------------


_ROW = ["name", "measure", "unit", "over", "value", "baseline", "effect", "low", "high", "n", "direction", "floor",
        "controls", "m", "control_mean", "control_low", "control_high", "p", "least"]  # fmt: skip
_STEP = ["explained", "before", "after", "earliest", "latest"]


def change_points(effects: Effects, *, draws: int = DRAWS, seed: int = 0) -> pd.DataFrame:
    """When each measure changes, with a verdict: one row per measure known at two checkpoints or more.

    Columns: those of :func:`~mechrep.ablation.effects.judge`; ``effect`` is the size of the step, ``baseline`` and
    ``value`` the levels before and behind it; and ``before, after``, the checkpoints it lies between; ``earliest,
    latest``, the ends of the 95 % interval of its place; ``explained``, the share of the variance over checkpoints.

    Args:
        effects: of :func:`over_checkpoints`.
        draws: of the units.
        seed: of draws and shuffled orders.
    """
    points, names = _points(effects, draws, seed), revisions_of(effects)
    rows = [step_row(effects.measures[place], *points[place], names) for place in points]
    return judge(pd.DataFrame(rows, columns=[*_ROW, *_STEP]), family="steps over training")


def step_row(measure: Measure, point: ChangePoint, n: int, revisions: Sequence[str]) -> dict[str, Any]:
    """A change point as a row for :func:`~mechrep.ablation.effects.judge`: its controls are shuffled checkpoints."""
    unit, level = UNITS[measure.unit], point.before_level
    least, most = percentile_interval(point.shuffled.tolist())  # the true order is among a thousand of few checkpoints
    return {
        "name": measure.name, "measure": measure.name, "unit": measure.unit, "over": measure.over,
        "value": level + point.size, "baseline": level, "effect": point.size, "low": point.low, "high": point.high,
        "n": n, "direction": measure.direction, "floor": unit.floor * (abs(level) if unit.relative else 1.0),
        "controls": "shuffled orders", "m": point.m, "control_mean": float(point.shuffled.mean()),
        "control_low": least, "control_high": most,
        "p": rank_p_value(point.size, point.shuffled.tolist(), measure.direction),
        "least": max(point.least, 1 / (point.m + 1)), "explained": point.explained,
        "before": revisions[point.after], "after": revisions[point.behind],
        "earliest": revisions[point.earliest], "latest": revisions[point.latest],
    }  # fmt: skip


def order_of_steps(
    effects: Effects, pairs: Sequence[tuple[str, str]] | None = None, *, draws: int = DRAWS, seed: int = 0
) -> pd.DataFrame:
    """Which of two measures changes first, with a verdict: one row per pair, the earlier as ``first``.

    ``effect`` is how many checkpoints later the step of ``second`` lies.  Its interval comes from drawing units anew;
    measures with the same units are drawn together.  Its control are the same draws moved to the middle 0; and as there
    is no order without steps, p is at least that of either step, and the smallest p that it can have at least theirs.
    ``earlier, same, later``: shares of the draws.

    Args:
        effects: of :func:`over_checkpoints`.
        pairs: of measures; by default all.
        draws: of the units.
        seed: of the draws.

    Raises:
        InputError: a measure that is not there, or known at fewer than two checkpoints.
    """
    points = {effects.measures[place].name: found for place, found in _points(effects, draws, seed).items()}
    steps = change_points(effects, draws=draws, seed=seed).set_index("measure")
    chosen = list(itertools.combinations(points, 2)) if pairs is None else list(pairs)
    for name in itertools.chain.from_iterable(chosen):
        one_of("measure", name, points)
    rows = [_order_row(points, steps, *pair) for pair in chosen]
    return judge(
        pd.DataFrame(rows, columns=[*_ROW, "first", "second", "earlier", "same", "later"]), family="order of steps"
    )


def _order_row(
    points: Mapping[str, tuple[ChangePoint, int]], steps: pd.DataFrame, one: str, other: str
) -> dict[str, Any]:
    if points[other][0].after < points[one][0].after:
        one, other = other, one
    (first, n_first), (second, n_second) = points[one], points[other]
    effect = float(second.after - first.after)
    apart = (second.places - first.places).astype(float)
    low, high = percentile_interval(apart.tolist())
    moved = apart - effect
    p = max(rank_p_value(effect, moved.tolist()), *steps.loc[[one, other], "p"])
    range_low, range_high = percentile_interval(moved.tolist())
    return {
        "name": f"{one}, {other}", "measure": "order", "unit": "count", "over": "text", "first": one, "second": other,
        "value": effect, "baseline": 0.0, "effect": effect, "low": low, "high": high, "n": min(n_first, n_second),
        "direction": 0, "floor": UNITS["count"].floor, "controls": "draws of texts, moved to 0",
        "m": min(len(moved), *steps.loc[[one, other], "m"]), "control_mean": float(moved.mean()),
        "control_low": range_low, "control_high": range_high, "p": p,
        "least": max(1 / (len(moved) + 1), *steps.loc[[one, other], "least"]),
        **{name: float(share.mean()) for name, share in
           (("earlier", apart > 0), ("same", apart == 0), ("later", apart < 0))},
    }  # fmt: skip


def _points(effects: Effects, draws: int, seed: int) -> dict[int, tuple[ChangePoint, int]]:
    """Change point and number of independent units of every measure known at two checkpoints."""
    found, sets = {}, list(dict.fromkeys(tuple(ids) for ids in effects.clusters))
    for place, clusters in enumerate(effects.clusters):
        values = effects.values[place, :, : len(clusters)].double().numpy()
        curve = drawn_means(values, np.ones((1, len(clusters))))[0]
        if (~np.isnan(curve)).sum() < 2:
            continue
        own = seed * 1009 + sets.index(tuple(clusters))
        drawn = drawn_means(values, unit_draws(clusters, draws, own)) if len(set(clusters)) > 1 else None
        point = change_point(curve, drawn, seed=seed)
        if drawn is None:
            point = dataclasses.replace(point, places=np.full(draws, point.after))
        n = len({name for name, unit in zip(clusters, values.T, strict=True) if not np.isnan(unit).all()})
        found[place] = (point, n)
    return found


def training_curves(effects: Effects, measures: Sequence[str] | None = None) -> go.Figure:
    """The measures over training, with the interval of each supported step as a band and its place as a line.

    Example:
        >>> def size(model): return {"weights": float(model.tl.W_E.abs().sum())}
        >>> training_curves(over_checkpoints([size], revisions=["step0", "step512"])).layout.title.text
        'Measures over training'
    """
    figure = effects.curve("step", measures)
    chosen = effects.select(measures=measures)
    places, ticks = training_axis(effects.to_frame())
    steps = change_points(chosen).set_index("measure")
    for row, measure in enumerate(chosen.measures, start=1):
        if measure.name not in steps.index or steps.loc[measure.name, "verdict"] != SUPPORTED:
            continue
        ends = [places[str(steps.loc[measure.name, name])] for name in ("earliest", "latest", "before", "after")]
        panel: dict[str, Any] = {"row": row, "col": 1}
        figure.add_vrect(x0=ends[0], x1=ends[1], fillcolor=INK, opacity=0.12, line_width=0, **panel)
        middle = (ends[2] + ends[3]) / 2 if ticks else (ends[2] * ends[3]) ** 0.5
        figure.add_vline(x=middle, line={"color": INK, "dash": "dot", "width": 1.5}, **panel)
    return figure
