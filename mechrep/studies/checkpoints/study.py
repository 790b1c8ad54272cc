"""``over_checkpoints``: measure anything at every checkpoint of a model, one model in memory at a time."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mechrep.cache.analyzer import Analyzer
from mechrep.errors import InputError
from mechrep.models.load import load_model
from mechrep.models.model import Model
from mechrep.progress import progress_bar
from mechrep.provenance import Provenance
from mechrep.studies.checkpoints.measures import Measure, Numbers, as_measures
from mechrep.studies.checkpoints.result import CheckpointResult
from mechrep.studies.checkpoints.revisions import Checkpoint, list_checkpoints
from mechrep.studies.journal import Journal
from mechrep.text.corpus import Corpus

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
            (:data:`~mechrep.studies.checkpoints.measures.MEASURES`), functions from a model to numbers by name, each a
            number or one per unit, :class:`~mechrep.studies.checkpoints.measures.Measure`, or analyzers, which read
            ``corpus``.
        model: ``"mechrep-tiny"`` or a hub name.
        revisions: ``"all"``, ``"grid"``, a list of names, or a mapping from names to folders; see
            :func:`~mechrep.studies.checkpoints.revisions.list_checkpoints`.
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
