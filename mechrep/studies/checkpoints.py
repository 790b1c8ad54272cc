"""``over_checkpoints``: measure anything at every checkpoint of a model, one model in memory at a time.

``CheckpointResult``: every measure at every checkpoint, when each changes, and in which order.

What is measured at every checkpoint: functions from a model to numbers, and ready-made ones for each mechanism.

A measure gives, by name, a number, or one number per *unit*: per text, per prompt, per group of texts.  Units are the
same at every checkpoint; intervals, change points and their order come from drawing units anew.  A measure without
units has no interval.

The checkpoints of a model: their names, in the order of training, and how far training was.

When does a measure change?  One step between two levels, with an interval.

For the means ``y_1 .. y_K`` at K checkpoints in order, the change point is the ``k`` whose two levels leave the
smallest squared error::

    k = argmin_k  sum_{i <= k} (y_i - mean(y_1..y_k))^2  +  sum_{i > k} (y_i - mean(y_k+1..y_K))^2

so the measure changes *between* checkpoints k and k + 1.  The units behind the means (texts, prompts) are drawn anew,
the same draw at every checkpoint, and the change point is estimated on each draw: the interval is the central 95 % of
these.  It says how sure the units make us, on this grid: between two neighbouring checkpoints nothing is known.  A
gradual rise is placed near its middle; a measure that rises and falls has one change point, the sharper of the two.

The step is *clear* if the difference of the levels has an interval without 0 and the two levels leave less than half of
the variance over checkpoints.  Its control is the order of the checkpoints (:func:`order_p_value`).

Figures of training: all mechanisms on one axis with their change points, and what becomes of the same prompts.
"""

from __future__ import annotations

import gc
import hashlib
import inspect
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int

from mechrep.cache.corpus_cache import Analyzer, CorpusCache
from mechrep.errors import InputError, ModelError
from mechrep.figures import ACCENT, AXIS, INK, SEQUENCE, counted, plain, styled, translucent
from mechrep.generation.text_kinds import condition_flow
from mechrep.measures.attention_sinks import AttentionSinkResult, AttentionSinks
from mechrep.measures.head_scores import HeadScoreResult, HeadScores
from mechrep.models import tiny
from mechrep.models.load import load_model
from mechrep.models.model import Model
from mechrep.progress import progress_bar
from mechrep.provenance import Provenance
from mechrep.results import Result
from mechrep.stats import percentile_interval
from mechrep.store import Journal
from mechrep.text.corpus import Corpus, windows_of_text
from mechrep.text.stimuli import random_repeats

if TYPE_CHECKING:
    import plotly.graph_objects as go

Numbers = Mapping[str, float | Sequence[float]]

PERIOD, SEQUENCES, _GROUPS = 50, 32, 16  # random repeats; in groups of two, the units of head scores
_SINK_LENGTH, _SINK_WINDOWS = 64, 96  # attention to a sink falls with the length
_PROMPT_LENGTH, _NEW_TOKENS = 32, 200


@dataclass(frozen=True)
class Measure:
    """Something that is measured at every checkpoint.

    Attributes:
        name: of the measure, in the store and in messages.
        function: from a model to numbers by name, each one number or one per unit.
        config: what decides the numbers besides the function's own text, JSON-ready.
    """

    name: str
    function: Callable[[Model], Numbers]
    config: Mapping[str, Any] = field(default_factory=dict)

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
    analyzers: str | Sequence[Any] | Mapping[str, Callable[[Model], Numbers]], corpus: Corpus | None
) -> list[Measure]:
    """Measures of all kinds as :class:`Measure`.

    Args:
        analyzers: ``"all"`` ready-made ones; a list of names, measures, functions and analyzers; or functions by name.
        corpus: what analyzers read.

    Raises:
        InputError: nothing, an unknown name, two of one name, an analyzer without a corpus.
    """
    if isinstance(analyzers, str):
        items: list[Any] = list(MEASURES) if analyzers == "all" else [analyzers]
    elif isinstance(analyzers, Mapping):
        items = [Measure(name, function) for name, function in analyzers.items()]
    else:
        items = list(analyzers)
    measures = [_as_measure(item, corpus) for item in items]
    names = [measure.name for measure in measures]
    if not measures or len(set(names)) < len(names):
        raise InputError(f"measures {names}", "at least one, each of its own name", "wrap them in Measure(name, ...)")
    return measures


def _as_measure(item: Any, corpus: Corpus | None) -> Measure:
    if isinstance(item, Measure):
        return item
    if isinstance(item, str):
        return measure_named(item)
    if isinstance(item, Analyzer):
        if corpus is None:
            raise InputError(f"{type(item).__name__} without texts", "a corpus", "pass corpus=")
        return analyzer_measure(item, corpus)
    if callable(item):
        function: Any = item
        return Measure(getattr(function, "__qualname__", type(function).__name__), function)
    raise InputError(f"{item!r}", f"a function of a model, an analyzer, or one of {sorted(MEASURES)}", "correct it")


def analyzer_measure(analyzer: Analyzer, corpus: Corpus) -> Measure:
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
        (result,) = CorpusCache(model, corpus, progress=False).run(analyzer)
        table = result.to_frame().drop(columns=["layer", "head", "neuron"], errors="ignore").select_dtypes("number")
        ways = {"largest": np.nanmax, "mean": np.nanmean}
        return {
            f"{kind}: {column}, {how}": float(way(values)) if (~np.isnan(values)).any() else float("nan")
            for column, values in ((name, table[name].to_numpy(dtype=float)) for name in table)
            for how, way in ways.items()
        }

    return Measure(kind, measured, {"analyzer": analyzer.config, "corpus": corpus.fingerprint()})


def measure_named(name: str, **settings: int) -> Measure:
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
    if name not in MEASURES:
        raise InputError(f"measure {name!r}", f"one of {sorted(MEASURES)}", "choose one, or pass a function")
    function = MEASURES[name]
    allowed = set(inspect.signature(function).parameters) - {"model"}
    if not set(settings) <= allowed:
        raise InputError(f"settings {sorted(settings)} of {name!r}", f"some of {sorted(allowed)}", "correct them")
    return named_measure(name, function, settings)


def named_measure(name: str, function: Callable[..., Numbers], settings: Mapping[str, int]) -> Measure:
    """A function with its settings as a measure; the store knows it by its own source, its name and the settings."""
    return Measure(name, _Bound(function, dict(settings)), dict(settings))


@dataclass(frozen=True)
class _Bound:
    """A ready-made function with its settings; its source, not this class', identifies it."""

    function: Callable[..., Numbers]
    settings: Mapping[str, int]

    def __call__(self, model: Model) -> Numbers:
        return self.function(model, **self.settings)


def head_mechanisms(model: Model, sequences: int = SEQUENCES, seed: int = 0) -> Numbers:
    """Best head of each kind on random repeats, and what copying saves.

    ``induction``, ``self_finding`` and ``previous_token`` are the attention on targets of the head that is best over
    all texts, with groups of texts as units; ``copying`` is the loss on the first copy minus that on the second, in
    nats, text by text.

    Args:
        model: the model.
        sequences: texts.
        seed: of the draw.
    """
    period = min(PERIOD, (model.anatomy.n_ctx - 1) // 2)
    corpus = random_repeats(model, n=period, sequences=sequences, seed=seed)
    names = ("induction", "self_finding", "previous_token")
    tables = {name: table.flatten(1) for name, table in scores_by_group(model, corpus, names).items()}
    best = {name: table[:, int(table.mean(0).nan_to_num(-1).argmax())].tolist() for name, table in tables.items()}
    return best | {"copying": copying_gain(model, corpus, period)}


_SCORED: WeakKeyDictionary[Model, dict[tuple[str, str], list[HeadScoreResult]]] = WeakKeyDictionary()


def scores_by_group(
    model: Model, corpus: Corpus, names: Sequence[str]
) -> dict[str, Float[torch.Tensor, "group layer head"]]:
    """Scores of all heads on groups of texts of equal size, the units of everything that is said of heads' attention.

    Several measures ask for them; they are remembered for as long as the model lives.

    Args:
        model: the model.
        corpus: random repeats.
        names: of the scores.
    """
    known, key = _SCORED.setdefault(model, {}), (model.fingerprint(), corpus.fingerprint())
    if key not in known:
        by_group: list[HeadScoreResult] = []
        for texts in _groups(len(corpus)):
            (result,) = CorpusCache(model, corpus.select(texts), progress=False).run(HeadScores(bos_id=model.bos_id))
            assert isinstance(result, HeadScoreResult)
            by_group.append(result)
        known[key] = by_group
    return {name: torch.stack([result.of(name) for result in known[key]]) for name in names}


@torch.no_grad()
def copying_gain(model: Model, corpus: Corpus, period: int) -> list[float]:
    """Loss on the first copy minus loss on the second, per text, in nats; the token at the seam belongs to neither."""
    from mechrep.measures.token_information import token_surprisal

    losses = token_surprisal(model, corpus)[:, -2 * period :]
    return (losses[:, 1:period].mean(1) - losses[:, period + 1 :].mean(1)).tolist()


def sink_share(model: Model, windows: int = _SINK_WINDOWS) -> Numbers:
    """Share of heads whose mean attention to the first position exceeds 0.3, and that attention for the best head.

    On windows of 64 tokens of the embedded held-out text; units: groups of windows.

    Args:
        model: the model.
        windows: how many.
    """
    corpus = windows_of_text(model, tiny.held_out_text(), length=_SINK_LENGTH, limit=windows)
    alphas = []
    for texts in _groups(len(corpus)):
        (result,) = CorpusCache(model, corpus.select(texts), progress=False).run(AttentionSinks())
        assert isinstance(result, AttentionSinkResult)
        alphas.append(result.alpha.flatten())
    table = torch.stack(alphas)
    return {
        "sink_heads": (table > 0.3).double().mean(1).tolist(),
        "sink": table[:, int(table.mean(0).argmax())].tolist(),
    }


def loop_flags(model: Model, prompts: int = 64) -> Numbers:
    """What becomes of fixed prompts, see :func:`fixed_prompts`; units: prompts.

    ``loops_naturally``; ``phrase_loops``, the same with a cycle of two tokens or more, because a model that has learned
    little repeats single tokens; ``copies_in_icl``, copying of texts shown twice (NaN where a text loops by itself).

    Args:
        model: the model.
        prompts: how many.
    """
    corpus, limit = fixed_prompts(model, prompts)
    flow = condition_flow(model, corpus, max_new_tokens=limit, progress=False)
    flags = {
        name: flow.frame[name].astype("Float64").to_numpy(dtype=float, na_value=np.nan).tolist()
        for name in ("loops_naturally", "copies_in_icl")
    }
    periods = flow.texts.written.frame["period"].astype("Float64").to_numpy(dtype=float, na_value=0.0)
    return flags | {"phrase_loops": (periods > 1).astype(float).tolist()}


def fixed_prompts(model: Model, prompts: int) -> tuple[Corpus, int]:
    """Prompts of 32 tokens of the embedded held-out text, the same at every checkpoint, and how far to continue them.

    Args:
        model: the model.
        prompts: how many.
    """
    begin = 1 if model.default_prepend_bos and model.bos_id is not None else 0
    length = min(_PROMPT_LENGTH, model.anatomy.n_ctx // 8) + begin
    corpus = windows_of_text(model, tiny.held_out_text(), length=length, limit=prompts)
    return corpus, min(_NEW_TOKENS, model.anatomy.n_ctx - 3 * length)


MEASURES: dict[str, Callable[..., Numbers]] = {"heads": head_mechanisms, "sinks": sink_share, "loops": loop_flags}


def _groups(texts: int) -> list[list[int]]:
    """Texts in groups of equal size, so that each counts alike; a remainder is left out."""
    size = max(1, texts // _GROUPS)
    return [list(range(begin, begin + size)) for begin in range(0, texts - size + 1, size)]


GRID = (0, 128, 256, 512, 1000, 2000, 4000, 8000, 16000, 33000, 66000, 143000)  # Pythia's steps, by default
_PYTHIA_STEPS = (0, *(2**k for k in range(10)), *range(1000, 143_001, 1000))
_PYTHIA_BATCH = 2_097_152  # tokens per step
_STEP = re.compile(r"step[-_]?(\d+)")
_TOKENS = re.compile(r"tokens?[-_]?(\d+(?:\.\d+)?)([MBT])")
_UNITS = {"M": 1e6, "B": 1e9, "T": 1e12}


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint.

    Attributes:
        name: of the revision.
        spec: what :func:`mechrep.load_model` is given.
        revision: its revision, or ``None`` where ``spec`` is a checkpoint's own folder.
        step: of training; NaN if the name does not say.
        tokens: seen so far; NaN if not known.
        identity: changes when the weights do, as far as can be told without loading them.
    """

    name: str
    spec: str
    revision: str | None
    step: float
    tokens: float
    identity: str


def list_checkpoints(
    model: str | Path, revisions: str | Sequence[str] | Mapping[str, str | Path] = "all"
) -> list[Checkpoint]:
    """The checkpoints that are meant.

    Args:
        model: ``"mechrep-tiny"`` or a hub name.
        revisions: ``"all"``: all that there are, in the order of their steps (Pythia's 154 are known by heart, other
            models' are asked of the hub); ``"grid"``: of these, the ones next to :data:`GRID`, which resolves the rise
            of induction in Pythia; a list of names, in the order of training; or a mapping from names to folders, for
            checkpoints that lie on a disk.

    Raises:
        InputError: no revision, one twice, one that an embedded model does not have, or a folder that is not there.
        ModelError: a hub that cannot be asked, or a model without revisions that name a step.

    Example:
        >>> [checkpoint.step for checkpoint in list_checkpoints("mechrep-tiny", ["step0", "step512"])]
        [0.0, 512.0]
    """
    if isinstance(revisions, Mapping):
        return _folders(revisions)
    name = str(model)
    if isinstance(revisions, str):
        if revisions not in ("all", "grid"):
            raise InputError(f"revisions={revisions!r}", "'all', 'grid', a list or a mapping", "pass [revision]")
        known = all_revisions(name)
        names = known if revisions == "all" else _nearest_to_grid(known)
    else:
        names = list(revisions)
    if not names or len(set(names)) < len(names):
        raise InputError(f"revisions {names[:5]}", "at least one, each once", "correct the list")
    if name in tiny.NAMES:
        missing = [revision for revision in names if revision not in tiny.revisions(name)]
        if missing:
            raise InputError(
                f"revision {missing[0]!r} of {name}",
                f"kept checkpoints: {', '.join(tiny.revisions(name))}",
                "choose among these, or revisions='all'",
            )
    seen = {f"step{line['step']}": float(line["tokens"]) for line in tiny.history(name)} if name in tiny.NAMES else {}
    return [
        Checkpoint(
            revision,
            name,
            revision,
            _number(_STEP, revision),
            seen.get(revision, _tokens_seen(name, revision)),
            _embedded_identity(name, revision) if name in tiny.NAMES else f"{name}@{revision}",
        )
        for revision in names
    ]


def all_revisions(name: str) -> list[str]:
    """Names of all checkpoints, first to last.

    Raises:
        ModelError: they cannot be found.

    Example:
        >>> len(all_revisions("EleutherAI/pythia-70m"))
        154
    """
    if name in tiny.NAMES:
        return tiny.revisions(name)
    if name.startswith("EleutherAI/pythia"):
        return [f"step{step}" for step in _PYTHIA_STEPS]
    from huggingface_hub import list_repo_refs
    from huggingface_hub.errors import (
        HFValidationError,
        HTTPError,  # pyright: ignore[reportPrivateImportUsage] - the HTTP library differs from version to version
    )

    try:
        refs = list_repo_refs(name)
    except (HTTPError, HFValidationError, OSError) as error:
        reason = (str(error) or repr(error)).splitlines()[0]
        raise ModelError(
            f"the revisions of {name!r} ({reason})", "a hub that can be reached", "name the revisions yourself"
        ) from error
    steps = [ref.name for ref in [*refs.branches, *refs.tags] if _STEP.search(ref.name)]
    if not steps:
        raise ModelError(
            f"{name!r}, none of whose revisions names a step", "checkpoints of training", "name the revisions yourself"
        )
    return sorted(dict.fromkeys(steps), key=lambda revision: _number(_STEP, revision))


def _nearest_to_grid(names: Sequence[str]) -> list[str]:
    steps = [_number(_STEP, name) for name in names]
    last = max(steps)
    wanted = [step for step in GRID if step <= last] + [last]
    chosen = {min(range(len(names)), key=lambda i, w=w: abs(steps[i] - w)) for w in wanted}
    return [names[i] for i in sorted(chosen)]


def _folders(revisions: Mapping[str, str | Path]) -> list[Checkpoint]:
    if not revisions:
        raise InputError("no revision", "at least one", "name some")
    found = []
    for name, place in revisions.items():
        folder = Path(place).expanduser()
        if not (folder / "config.json").is_file():
            raise InputError(
                f"revision {name!r} at {folder}", "a folder in Hugging Face format, with config.json", "check the path"
            )
        files = sorted((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in folder.iterdir())
        identity = hashlib.sha256(repr(files).encode()).hexdigest()[:24]
        step, tokens = _number(_STEP, name), _tokens_seen("", name)
        found.append(Checkpoint(name, str(folder.resolve()), None, step, tokens, identity))
    return found


def _embedded_identity(name: str, revision: str) -> str:
    with tiny.weights(name, revision).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:24]


def _number(pattern: re.Pattern[str], name: str) -> float:
    found = pattern.search(name)
    return float(found.group(1)) if found else float("nan")


def _tokens_seen(model: str, revision: str) -> float:
    """Tokens by the revision's name (OLMo writes them), or by Pythia's batch."""
    found = _TOKENS.search(revision)
    if found:
        return float(found.group(1)) * _UNITS[found.group(2)]
    return _number(_STEP, revision) * _PYTHIA_BATCH if model.startswith("EleutherAI/pythia") else float("nan")


_CLEAR = 0.5


@dataclass(frozen=True)
class ChangePoint:
    """One step in a series; checkpoints are counted from 0.

    Attributes:
        after: the step lies between this checkpoint and the next.
        low: lower end of the interval of ``after``.
        high: upper end.
        size: level behind the step minus level before it.
        size_low: lower end of the interval of ``size``.
        size_high: upper end.
        explained: share of the variance over checkpoints that the step takes away.
    """

    after: int
    low: int
    high: int
    size: float
    size_low: float
    size_high: float
    explained: float

    @property
    def clear(self) -> bool:
        """Whether there is a step to speak of; without units its size has no interval, and the variance decides."""
        return not (self.size_low <= 0 <= self.size_high) and self.explained >= _CLEAR


def change_point(
    units: Float[np.ndarray, "checkpoint unit"], *, draws: int = 1000, seed: int = 0
) -> tuple[ChangePoint, Int[np.ndarray, " draw"]]:
    """The step of one measure, and its place in every draw of the units.

    Args:
        units: values; NaN where a unit has none.  Checkpoints without any value are skipped over.
        draws: of the bootstrap.
        seed: of the draws; measures with the same units and seed are drawn together.

    Raises:
        InputError: values at fewer than two checkpoints.

    Source: least-squares segmentation with one break is textbook (Bai 1994, J. Time Series Analysis 15).

    Example:
        >>> values = np.array([[0.0, 0.1], [0.1, 0.0], [0.9, 1.0], [1.0, 0.9]])
        >>> point, _ = change_point(values)
        >>> point.after, point.low, point.high, point.clear
        (1, 1, 1, True)
    """
    places = np.flatnonzero(~np.isnan(units).all(1))
    if len(places) < 2:
        raise InputError(
            f"values at {len(places)} of {len(units)} checkpoints", "values at two at least", "measure more checkpoints"
        )
    known = units[places]
    (means,) = bootstrap_means(known, np.ones((1, known.shape[1])))
    counts = draw_counts(known.shape[1], draws, seed)
    drawn = bootstrap_means(known, counts)
    point, steps = _estimate(means, drawn if known.shape[1] > 1 else None, places)
    return point, np.full(draws, point.after) if steps is None else steps


def change_point_of_draws(
    values: Float[np.ndarray, " checkpoint"], drawn: Float[np.ndarray, "draw checkpoint"]
) -> tuple[ChangePoint, Int[np.ndarray, " draw"]]:
    """The step of a curve that is no mean over units, and its place in every draw of the units behind it.

    Args:
        values: the curve; NaN where it is not known.
        drawn: the same curve of every draw; a draw that has no number at a checkpoint takes the curve's own.

    Raises:
        InputError: values at fewer than two checkpoints.

    Example:
        >>> values = np.array([0.1, 0.1, 0.8, float("nan"), 0.9])
        >>> point, _ = change_point_of_draws(values, np.tile(values, (5, 1)))
        >>> point.after, round(point.size, 2)
        (1, 0.75)
    """
    places = np.flatnonzero(~np.isnan(values))
    if len(places) < 2:
        raise InputError(
            f"values at {len(places)} of {len(values)} checkpoints",
            "values at two at least",
            "measure more checkpoints, or more texts at each",
        )
    known = drawn[:, places]
    point, steps = _estimate(values[places], np.where(np.isnan(known), values[places], known), places)
    assert steps is not None
    return point, steps


def order_p_value(values: Float[np.ndarray, " checkpoint"], *, orders: int = 1000, seed: int = 0) -> float:
    """Share of shuffled orders of the checkpoints in which one step explains as much as in the true order.

    The control of every change point: some split of any list of numbers explains something.  The observed order counts
    as one of the shuffled ones.  With fewer than five checkpoints the share cannot be small.

    Args:
        values: one per checkpoint; NaN is left out.
        orders: how many are shuffled.
        seed: of the shuffling.

    Returns:
        The share; NaN for fewer than two values, and 1 for values that are all the same.

    Example:
        >>> order_p_value(np.array([0.0] * 6 + [1.0] * 6)) < 0.01
        True
    """
    known = values[~np.isnan(values)]
    if len(known) < 2:
        return float("nan")
    shuffled = np.random.default_rng(seed).permuted(np.tile(known, (orders, 1)), axis=1)
    _, _, explained = _step(np.vstack([known[None], shuffled]))
    return float((1 + (explained[1:] >= explained[0] - 1e-9).sum()) / (1 + orders))


def _estimate(
    means: Float[np.ndarray, " known"], drawn: Float[np.ndarray, "draw known"] | None, places: Int[np.ndarray, " known"]
) -> tuple[ChangePoint, Int[np.ndarray, " draw"] | None]:
    """The step of a curve without gaps, with intervals where there are draws; ``places`` are its checkpoints."""
    after, size, explained = _step(means[None])
    low = high = float(after[0])
    size_low = size_high = float("nan")
    steps = None
    if drawn is not None:
        drawn_after, drawn_size, _ = _step(drawn)
        low, high = percentile_interval(drawn_after.astype(float).tolist())
        size_low, size_high = percentile_interval(drawn_size.tolist())
        steps = places[drawn_after]
    point = ChangePoint(
        int(places[after[0]]),
        int(places[int(np.floor(low))]),
        int(places[int(np.ceil(high))]),
        float(size[0]),
        size_low,
        size_high,
        float(explained[0]),
    )
    return point, steps


def draw_counts(units: int, draws: int, seed: int) -> Float[np.ndarray, "draw unit"]:
    """How often each unit is in each draw.

    Example:
        >>> draw_counts(3, 2, 0).sum(1).tolist()
        [3.0, 3.0]
    """
    generator = np.random.default_rng(seed)
    return generator.multinomial(units, [1 / units] * units, size=draws).astype(float)


def bootstrap_means(
    units: Float[np.ndarray, "checkpoint unit"], counts: Float[np.ndarray, "draw unit"]
) -> Float[np.ndarray, "draw checkpoint"]:
    """Means over the units that have a value; where a draw has none at a checkpoint, the mean of the units."""
    has = ~np.isnan(units)
    n = counts @ has.T
    means = np.divide(counts @ np.nan_to_num(units).T, n, out=np.zeros_like(n), where=n > 0)
    return np.where(n > 0, means, np.nanmean(units, axis=1))


def _step(
    means: Float[np.ndarray, "draw checkpoint"],
) -> tuple[Int[np.ndarray, " draw"], Float[np.ndarray, " draw"], Float[np.ndarray, " draw"]]:
    """Place, size and explained share of the best step of each row; a flat row has its step in the middle, size 0."""
    total = means.shape[1]
    sums = means.cumsum(1)
    before = np.arange(1, total)
    first = sums[:, :-1] / before
    second = (sums[:, -1:] - sums[:, :-1]) / (total - before)
    # Between groups: what the step takes away from the squared error.
    taken = (before * (total - before) / total) * (second - first) ** 2
    variance = ((means - means.mean(1, keepdims=True)) ** 2).sum(1)
    flat = variance <= 1e-24
    place = np.where(flat, (total - 2) // 2, taken.argmax(1))
    rows = np.arange(len(means))
    size = np.where(flat, 0.0, (second - first)[rows, place])
    explained = np.divide(taken[rows, place], variance, out=np.zeros_like(variance), where=~flat)
    return place, size, explained


@dataclass(frozen=True, eq=False)
class CheckpointResult(Result):
    """Measures over training.

    Attributes:
        revisions: names, in the order of training.
        steps: of training; NaN where unknown.
        tokens: seen; NaN where unknown.
        fingerprints: of the models.
        units: by measure, per checkpoint the value of every unit; one unit where a measure is a single number.
        sources: by measure, which :class:`Measure` it comes from; measures of one source share their units.
    """

    revisions: Sequence[str]
    steps: Sequence[float]
    tokens: Sequence[float]
    fingerprints: Sequence[str]
    units: Mapping[str, Sequence[Sequence[float]]]
    sources: Mapping[str, str]

    @property
    def measures(self) -> list[str]:
        """Names of the measures."""
        return list(self.units)

    def of(self, measure: str) -> Float[np.ndarray, "checkpoint unit"]:
        """Values of one measure.

        Args:
            measure: its name.

        Raises:
            InputError: an unknown name.
        """
        if measure not in self.units:
            raise InputError(f"measure {measure!r}", f"one of {self.measures}", "choose one of these")
        return np.array(self.units[measure], dtype=float)

    def to_frame(self, *, draws: int = 1000, seed: int = 0) -> pd.DataFrame:
        """One row per measure and checkpoint, with a 95 % bootstrap interval over units.

        Columns: ``measure, revision, step, tokens, value, low, high, n``; ``n`` counts units with a value, and an
        interval of one unit is NaN.

        Args:
            draws: of the bootstrap.
            seed: of the draws.
        """
        rows = []
        for measure in self.measures:
            values = self.of(measure)
            n = (~np.isnan(values)).sum(1)
            with np.errstate(invalid="ignore"):
                drawn = _bootstrap(values, draws, seed)
            for place, revision in enumerate(self.revisions):
                value = float(np.nanmean(values[place])) if n[place] else float("nan")
                low, high = percentile_interval(drawn[:, place].tolist()) if n[place] > 1 else (float("nan"),) * 2
                facts = (measure, revision, self.steps[place], self.tokens[place])
                rows.append((*facts, value, low, high, int(n[place])))
        return pd.DataFrame(rows, columns=["measure", "revision", "step", "tokens", "value", "low", "high", "n"])

    def wide(self) -> pd.DataFrame:
        """One row per checkpoint, one column per measure."""
        frame = pd.DataFrame({"revision": list(self.revisions)})
        for measure in self.measures:
            frame[measure] = self._means(measure)
        return frame

    def part(self, sources: Sequence[str]) -> CheckpointResult:
        """The measures of some sources alone.

        Args:
            sources: names of :attr:`sources`; what none of them made is left out.
        """
        chosen = [name for name in self.measures if self.sources[name] in sources]
        return replace(
            self,
            units={name: self.units[name] for name in chosen},
            sources={name: self.sources[name] for name in chosen},
        )

    def change_points(self, *, draws: int = 1000, seed: int = 0) -> pd.DataFrame:
        """When each measure changes; see :mod:`mechrep.studies.checkpoints` for the estimator.

        One row per measure: the step lies between ``before`` and ``after``, with 95 % between ``earliest`` (the last
        checkpoint surely before it) and ``latest`` (the first surely behind it); ``size`` of the step with its
        interval; ``explained`` share of the variance over checkpoints; ``p``, the share of shuffled orders of the
        checkpoints in which a step explains as much; ``clear``.  Measures known at fewer than two checkpoints are left
        out.

        Args:
            draws: of the bootstrap.
            seed: of the draws.
        """
        names, rows = self.revisions, []
        for measure, (point, _) in self._points(draws, seed).items():
            places = (point.after, self._next(measure, point.after), point.low, self._next(measure, point.high))
            rows.append(
                (
                    measure, *(names[place] for place in places), point.size, point.size_low, point.size_high,
                    point.explained, order_p_value(self._means(measure), seed=seed), point.clear,
                )
            )  # fmt: skip
        columns = ["measure", "before", "after", "earliest", "latest", "size", "low", "high", "explained", "p", "clear"]
        return pd.DataFrame(rows, columns=columns)

    def order(self, measures: Sequence[str] | None = None, *, draws: int = 1000, seed: int = 0) -> pd.DataFrame:
        """Which of two measures changes first?  Share of bootstrap draws in which one's step is earlier.

        Measures with the same units are drawn together, others independently.  On a coarse grid many draws tie:
        ``same`` is the share in which both steps lie between the same checkpoints.  A measure without units is the
        same in every draw.

        Args:
            measures: to compare; those with a clear step by default.
            draws: of the bootstrap.
            seed: of the draws.

        Returns:
            ``first, second, earlier, same, later`` for every pair, the one more often earlier as ``first``.
        """
        points = self._points(draws, seed)
        chosen = [name for name, (point, _) in points.items() if point.clear] if measures is None else list(measures)
        unknown = [name for name in chosen if name not in points]
        if unknown:
            raise InputError(f"measure {unknown[0]!r}", f"one of {list(points)}", "choose among these")
        rows = []
        for one, other in itertools.combinations(chosen, 2):
            a, b = points[one][1], points[other][1]
            earlier, same, later = (float(share.mean()) for share in (a < b, a == b, a > b))
            rows.append((one, other, earlier, same, later) if earlier >= later else (other, one, later, same, earlier))
        return pd.DataFrame(rows, columns=["first", "second", "earlier", "same", "later"])

    def plot(self) -> go.Figure:
        """All measures on one axis of training, with their change points."""
        return mechanisms_figure(self)

    def _means(self, measure: str) -> Float[np.ndarray, " checkpoint"]:
        """Mean over the units that have a value; NaN at a checkpoint without any."""
        known = [row[~np.isnan(row)] for row in self.of(measure)]
        return np.array([row.mean() if len(row) else np.nan for row in known])

    def _points(self, draws: int, seed: int) -> dict[str, tuple[ChangePoint, Int[np.ndarray, " draw"]]]:
        found = {}
        sources = list(dict.fromkeys(self.sources.values()))
        for measure in self.measures:
            values = self.of(measure)
            if (~np.isnan(values).all(1)).sum() >= 2:
                own_seed = seed * 1009 + sources.index(self.sources[measure])
                found[measure] = change_point(values, draws=draws, seed=own_seed)
        return found

    def _next(self, measure: str, place: int) -> int:
        """The next checkpoint at which a measure is known."""
        has = np.flatnonzero(~np.isnan(self.of(measure)).all(1))
        return int(has[has > place][0])


def _bootstrap(values: Float[np.ndarray, "checkpoint unit"], draws: int, seed: int) -> np.ndarray:
    """Means ``[draw checkpoint]``; NaN at checkpoints without a value."""
    known = ~np.isnan(values).all(1)
    drawn = np.full((draws, len(values)), np.nan)
    if known.any():
        drawn[:, known] = bootstrap_means(values[known], draw_counts(values.shape[1], draws, seed))
    return drawn


Record = dict[str, Any]  # fingerprint and tokenizer of the model, and the units of each number


def over_checkpoints(
    analyzers: str | Sequence[str | Measure | Analyzer | Callable[[Model], Numbers]] | Mapping[str, Any] = "all",
    *,
    model: str | Path = "mechrep-tiny",
    revisions: str | Sequence[str] | Mapping[str, str | Path] = "all",
    corpus: Corpus | None = None,
    store: str | Path | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    progress: bool | None = None,
) -> CheckpointResult:
    """Measure every checkpoint with the same texts, and put the numbers into one table.

    Args:
        analyzers: what is measured: names of ready-made measures, ``"all"`` of them by default
            (:data:`~mechrep.studies.checkpoints.MEASURES`), functions from a model to numbers by name, each a
            number or one per unit, :class:`~mechrep.studies.checkpoints.Measure`, or analyzers, which read
            ``corpus``.
        model: ``"mechrep-tiny"`` or a hub name.
        revisions: ``"all"``, ``"grid"``, a list of names, or a mapping from names to folders; see
            :func:`~mechrep.studies.checkpoints.list_checkpoints`.
        corpus: what analyzers read, the same at every checkpoint.
        store: folder in which every finished measure of every checkpoint is kept: after a kill, the same call goes on
            where it was, and a new measure or checkpoint costs only itself.  A checkpoint with nothing left to measure
            is not loaded.
        dtype: of the weights.
        device: of the weights.
        progress: show a progress bar.

    Raises:
        InputError: a revision that does not exist, checkpoints with different tokenizers, a measure whose units
            differ from checkpoint to checkpoint, or what :func:`as_measures` refuses.
        ModelError: a checkpoint that cannot be loaded.
        StoreError: a store that cannot be read or written.

    Limits: a function is known to the store by its source; what it takes from elsewhere belongs into
    ``Measure(config=...)``, or an old number may be found.

    Example:
        >>> def size(model): return {"weights": float(sum(p.abs().sum() for p in model.plain.parameters()))}
        >>> result = over_checkpoints([size], revisions=["step0", "step512"])
        >>> result.to_frame()["revision"].tolist()
        ['step0', 'step512']
    """
    measures = as_measures(analyzers, corpus)
    checkpoints = list_checkpoints(model, revisions)
    options = {"dtype": None if dtype is None else str(dtype).removeprefix("torch."), "model": str(model)}
    records: list[list[Record]] = []
    with progress_bar(len(checkpoints) * len(measures), "measuring checkpoints", "measure", progress) as bar:
        for checkpoint in checkpoints:
            records.append(_measure(checkpoint, measures, store, options, dtype, device, bar))
            _check_tokenizers(checkpoints, records)
    return _result(str(model), checkpoints, measures, records, options)


def _measure(
    checkpoint: Checkpoint,
    measures: Sequence[Measure],
    store: str | Path | None,
    options: dict[str, Any],
    dtype: torch.dtype | None,
    device: str | torch.device | None,
    bar: Any,
) -> list[Record]:
    """Records of all measures at one checkpoint; its model is gone when this returns."""
    loaded: Model | None = None
    records: list[Record] = []
    for measure in measures:
        journal = None if store is None else Journal(Path(store), _filed_under(checkpoint, measure, options))
        kept = None if journal is None else journal.find(0)
        if kept is None:
            if loaded is None:
                loaded = load_model(checkpoint.spec, revision=checkpoint.revision, dtype=dtype, device=device)
            kept = [_record(loaded, measure)]
            if journal is not None:
                journal.keep(0, kept)
        records += kept
        bar.set_postfix_str(f"{checkpoint.name}: {measure.name}", refresh=False)
        bar.update(1)
    del loaded
    gc.collect()  # models hold hooks that point back at them
    return records


def _filed_under(checkpoint: Checkpoint, measure: Measure, options: dict[str, Any]) -> Provenance:
    facts = {"name": options["model"], "revision": checkpoint.name, "identity": checkpoint.identity}
    return Provenance(facts | {"dtype": options["dtype"]}, {}, {"study": "checkpoints", "measure": measure.identity()})


def _record(model: Model, measure: Measure) -> Record:
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


def _result(
    name: str,
    checkpoints: Sequence[Checkpoint],
    measures: Sequence[Measure],
    records: Sequence[Sequence[Record]],
    options: dict[str, Any],
) -> CheckpointResult:
    units: dict[str, list[list[float]]] = {}
    sources: dict[str, str] = {}
    for place, measure in enumerate(measures):
        for number in records[0][place]["units"]:
            if number in units:
                raise InputError(
                    f"{number!r} from {sources[number]!r} and {measure.name!r}", "names of their own", "rename one"
                )
            series = [one[place]["units"].get(number, []) for one in records]
            if len({len(values) for values in series}) > 1:
                lengths = dict(zip((c.name for c in checkpoints), map(len, series), strict=True))
                raise InputError(
                    f"{number!r} with units {lengths}", "the same units at every checkpoint", "fix the texts it reads"
                )
            units[number], sources[number] = series, measure.name
    config = {"study": "checkpoints", "measures": [measure.identity() for measure in measures], **options}
    most = max((len(series[0]) for series in units.values()), default=0)
    return CheckpointResult(
        Provenance({"name": name, "revisions": len(checkpoints)}, {"texts": most}, config),
        revisions=[checkpoint.name for checkpoint in checkpoints],
        steps=[checkpoint.step for checkpoint in checkpoints],
        tokens=[checkpoint.tokens for checkpoint in checkpoints],
        fingerprints=[one[0]["fingerprint"] for one in records],
        units=units,
        sources=sources,
    )


_PANEL = 150  # pixels
_NEVER, _NATURAL, _COPIED = "neither", "loops naturally", "copies when shown twice"
_STATES = {_NATURAL: ACCENT, _COPIED: "#3b82c4", _NEVER: "#747c88"}


def mechanisms_figure(result: CheckpointResult, measures: Sequence[str] | None = None) -> go.Figure:
    """Each measure over training, one panel under the other on one axis, with 95 % intervals.

    A line marks the change point of a clear step, a band its interval; both lie between two checkpoints.

    Args:
        result: of :func:`mechrep.studies.over_checkpoints`.
        measures: some of them; all by default.

    Example:
        >>> from mechrep.studies.checkpoints import over_checkpoints
        >>> def size(model): return {"weights": float(model.tl.W_E.abs().sum())}
        >>> figure = mechanisms_figure(over_checkpoints([size], revisions=["step0", "step512"]))
        >>> figure.layout.title.text
        'Mechanisms over training'
    """
    from plotly.subplots import make_subplots

    chosen = result.measures if measures is None else list(measures)
    frame, points = result.to_frame(), result.change_points().set_index("measure")
    places, axis = _places(result)
    figure = make_subplots(len(chosen), 1, shared_xaxes=True, subplot_titles=[plain(name) for name in chosen])
    for row, measure in enumerate(chosen, start=1):
        result.of(measure)  # refuses an unknown name
        _add_series(figure, frame[frame["measure"] == measure], places, SEQUENCE[(row - 1) % len(SEQUENCE)], row)
        if measure in points.index and bool(points.loc[measure, "clear"]):
            by_name = dict(zip(result.revisions, places, strict=True))
            _add_change(figure, points.loc[measure], by_name, row, logarithmic=axis != "revision")
    figure.update_annotations(font_size=13)
    subtitle = f"{result.provenance.model['name']}, {counted(len(result.revisions), 'checkpoint')}"
    titled = styled(figure, title="Mechanisms over training", subtitle=subtitle, x="", y="")
    titled.update_xaxes(AXIS | {"showgrid": False, "showline": True})
    titled.update_yaxes(AXIS)
    if axis == "revision":
        titled.update_xaxes(tickvals=places, ticktext=[plain(name) for name in result.revisions], row=len(chosen))
    else:
        titled.update_xaxes(type="log", dtick=1)
    titled.update_xaxes(title_text=axis, row=len(chosen))
    return titled.update_layout(height=150 + _PANEL * len(chosen), showlegend=False)


def flow_figure(result: CheckpointResult, revisions: Sequence[str] | None = None) -> go.Figure:
    """What becomes of the same prompts from checkpoint to checkpoint: loops naturally, copies when shown, or neither.

    Args:
        result: with the measure ``"loops"``.
        revisions: checkpoints side by side; by default up to eight, spread evenly.

    Raises:
        InputError: a result without that measure, or fewer than two checkpoints.

    Example:
        >>> from mechrep.provenance import Provenance
        >>> units = {"loops_naturally": [[1.0, 1.0], [0.0, 1.0]], "copies_in_icl": [[0.0, 0.0], [1.0, 0.0]]}
        >>> provenance, facts = Provenance({"name": "mine"}, {}, {}), ([0.0, 8.0], [0.0, 64.0], ["", ""])
        >>> result = CheckpointResult(provenance, ["step0", "step8"], *facts, units, dict.fromkeys(units, "loops"))
        >>> figure = flow_figure(result)
        >>> sum(figure.data[0].link.value)
        2.0
    """
    import plotly.graph_objects as go

    columns = ("loops_naturally", "copies_in_icl")
    if not set(columns) <= set(result.measures):
        raise InputError(f"measures {result.measures}", f"{list(columns)}", 'measure "loops" too')
    if revisions is None:
        spread = np.linspace(0, len(result.revisions) - 1, min(8, len(result.revisions))).round().astype(int)
        chosen: list[str] = [result.revisions[int(place)] for place in spread]
    else:
        chosen = list(revisions)
    unknown = [name for name in chosen if name not in result.revisions]
    if unknown or len(chosen) < 2:
        raise InputError(f"revisions {chosen}", f"two or more of {list(result.revisions)}", "correct them")
    known = list(result.revisions)
    numbers = [known.index(str(name)) for name in chosen]
    loops, copies = (result.of(name)[numbers] for name in columns)
    states = np.where(loops > 0.5, 0, np.where(np.nan_to_num(copies) > 0.5, 1, 2))  # [checkpoint prompt]
    names = list(_STATES)
    links = [
        (3 * place + a, 3 * (place + 1) + b, float(((states[place] == a) & (states[place + 1] == b)).sum()))
        for place in range(len(chosen) - 1)
        for a in range(3)
        for b in range(3)
    ]
    source, target, value = zip(*(link for link in links if link[2] > 0), strict=True)
    sankey = go.Sankey(
        arrangement="snap",
        node={
            "label": [""] * (3 * len(chosen)),  # names of all nodes would lie on top of each other
            "customdata": [plain(f"{revision}: {name}") for revision in chosen for name in names],
            "hovertemplate": "%{customdata}, %{value:.0f} prompts<extra></extra>",
            "color": [_STATES[name] for _ in chosen for name in names],
            "pad": 14,
            "thickness": 12,
            "line": {"width": 0},
        },
        link={
            "source": source,
            "target": target,
            "value": value,
            "color": [translucent(_STATES[names[node % 3]], 0.3) for node in source],
            "hovertemplate": "%{source.customdata} → %{target.customdata}, %{value:.0f} prompts<extra></extra>",
        },
    )
    subtitle = f"{result.provenance.model['name']}, the same {counted(loops.shape[1], 'prompt')} at every checkpoint"
    figure = styled(go.Figure(sankey), title="What becomes of each prompt", subtitle=subtitle, x="", y="")
    paper = {"xref": "paper", "yref": "paper", "showarrow": False}
    for place, revision in enumerate(chosen):
        figure.add_annotation(text=plain(revision), x=place / (len(chosen) - 1), y=-0.02, yanchor="top", **paper)
    legend = "   ".join(f'<span style="color:{colour}">■</span> {name}' for name, colour in _STATES.items())
    return figure.add_annotation(text=legend, x=0, y=1.02, xanchor="left", yanchor="bottom", **paper)


def _places(result: CheckpointResult) -> tuple[list[float], str]:
    """Places on the axis and its title; the untrained model, at 0, stands half of the first place before it."""
    for values, axis in ((result.tokens, "tokens seen"), (result.steps, "training step")):
        numbers = np.array(values, dtype=float)
        if not np.isnan(numbers).any() and len(set(numbers.tolist())) == len(numbers) and (numbers > 0).any():
            return np.where(numbers > 0, numbers, numbers[numbers > 0].min() / 2).tolist(), axis
    return [float(place) for place in range(len(result.revisions))], "revision"


def _add_series(figure: go.Figure, part: pd.DataFrame, places: list[float], colour: str, row: int) -> None:
    low, high = part["low"].fillna(part["value"]), part["high"].fillna(part["value"])
    known = part["value"].notna().to_numpy()
    x = np.array(places)[known]
    figure.add_scatter(
        x=[*x, *x[::-1]],
        y=[*high[known], *low[known][::-1]],
        mode="lines",
        fill="toself",
        fillcolor=translucent(colour, 0.18),
        line={"width": 0},
        hoverinfo="skip",
        row=row,
        col=1,
    )
    figure.add_scatter(
        x=x,
        y=part["value"][known],
        mode="lines+markers",
        line={"color": colour, "width": 2},
        marker={"size": 5},
        customdata=np.stack(
            [[plain(name) for name in part["revision"][known]], low[known].round(3), high[known].round(3)], axis=1
        ),
        hovertemplate="%{customdata[0]}<br>%{y:.3f} (%{customdata[1]} to %{customdata[2]})<extra></extra>",
        row=row,
        col=1,
    )


def _add_change(figure: go.Figure, point: pd.Series, place: dict[str, float], row: int, *, logarithmic: bool) -> None:
    """The interval as a band, and the step in the middle of the two checkpoints that it lies between."""
    panel: dict[str, Any] = {"row": row, "col": 1}
    first, last = place[point["earliest"]], place[point["latest"]]
    figure.add_vrect(x0=first, x1=last, fillcolor=INK, opacity=0.12, line_width=0, **panel)
    before, after = place[point["before"]], place[point["after"]]
    middle = (before * after) ** 0.5 if logarithmic else (before + after) / 2
    figure.add_vline(x=middle, line={"color": INK, "dash": "dot", "width": 1.5}, **panel)
