"""What is measured at every checkpoint: functions from a model to numbers, and ready-made ones for each mechanism.

A measure gives, by name, a number, or one number per *unit*: per text, per prompt, per group of texts.  Units are the
same at every checkpoint; intervals, change points and their order come from drawing units anew.  A measure without
units has no interval.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Float

from mechrep.analyzers.heads.scores import HeadScoreResult, HeadScores
from mechrep.analyzers.sinks.attention_sinks import AttentionSinkResult, AttentionSinks
from mechrep.cache.analyzer import Analyzer
from mechrep.cache.corpus_cache import CorpusCache
from mechrep.errors import InputError
from mechrep.generation.conditions.flow import condition_flow
from mechrep.models import tiny
from mechrep.models.model import Model
from mechrep.text.corpus import Corpus
from mechrep.text.random_repeats import random_repeats
from mechrep.text.windows import windows_of_text

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
    from mechrep.analyzers.token_information.facts import token_surprisal

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
