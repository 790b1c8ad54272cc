"""Sinks that were published, to compare one's own findings with."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

from mechrep.errors import InputError

_YONA = "Yona et al. 2025 (arXiv 2503.08908), poster"
_OH = "Oh et al. 2024 (arXiv 2410.01866), table 7"
_YU = "Yu et al. 2024 (arXiv 2411.07191), super weights"


class KnownSink(NamedTuple):
    """One published finding; layers count from 0, neurons as their source orders them.

    ``repeats`` is how often a token was repeated, missing where nothing was.
    """

    model: str
    layer: int
    neurons: tuple[int, ...]
    repeats: int | None
    source: str


_TABLE = (
    KnownSink("LLaMA-1-7B", 2, (7003,), 450, _YONA),
    KnownSink("Llama-2-7b", 1, (7890, 10411), 1000, _YONA),
    KnownSink("Llama-3-8B-Instruct", 1, (198, 2427), 4000, _YONA),
    KnownSink("Mistral-7B-Instruct-v0.1", 1, (7310, 8572), 1200, _YONA),
    KnownSink("Llama-2-7b", 1, (7890, 10411, 1192, 8731, 5843), None, _OH),
    KnownSink("Llama-3-8B", 1, (2427, 198, 6412, 12657, 591), None, _OH),
    KnownSink("Mistral-7B-v0.1", 1, (7310, 8572, 2514, 1878, 8693), None, _OH),
    KnownSink("gemma-2-2b", 1, (1257, 2896, 6954, 8624, 7118), None, _OH),
    KnownSink("Phi-3-mini", 2, (808, 340, 3644, 2473, 2987), None, _OH),
    KnownSink("LLaMA-1-7B", 2, (7003,), None, _YU),
    KnownSink("Mistral-7B-v0.1", 1, (7310,), None, _YU),
    KnownSink("Llama-3-8B", 1, (2427,), None, _YU),
    KnownSink("OLMo-1B-0724", 1, (1710,), None, _YU),
    KnownSink("OLMo-1B-0724", 2, (8041,), None, _YU),
)
_ALIASES = {"llama-7b": "llama-1-7b", "phi-3-mini-4k-instruct": "phi-3-mini", "phi-3-mini-128k-instruct": "phi-3-mini"}


def known_sinks() -> pd.DataFrame:
    """Published sink layers and neurons, one row per model, layer and source.

    Sources: Yona et al. 2025 (arXiv 2503.08908), poster; Oh et al. 2024 (arXiv 2410.01866), whose layers count from 1
    and are given from 0 here; Yu et al. 2024 (arXiv 2411.07191), columns of "super weights".

    Limits: transcribed from a poster and from tables; not measured again by mechrep.

    Example:
        >>> table = known_sinks()
        >>> table.neurons[table.model == "Llama-2-7b"].tolist()[0]
        (7890, 10411)
    """
    frame = pd.DataFrame(_TABLE, columns=list(KnownSink._fields))
    return frame.astype({"repeats": "Int64"})


def is_known(model_name: str) -> bool:
    """Whether a sink of this model is published, as far as the table knows.

    Example:
        >>> is_known("meta-llama/Llama-2-7b-hf"), is_known("mechrep-tiny")
        (True, False)
    """
    return any(_plain(row.model) == _plain(model_name) for row in _TABLE)


def matches_known(model_name: str, neurons: Sequence[tuple[int, int]]) -> bool:
    """Whether a finding agrees with a published one: one of these neurons is published, in the same layer.

    Args:
        model_name: as on the hub or in the table; owner, case and the endings ``-hf`` do not matter.
        neurons: the first ``(layer, neuron)`` of every stage: ``find_sink(model).found_neurons``.

    Raises:
        InputError: nothing is published on this model, as far as the table knows.
    """
    name = _plain(model_name)
    rows = [row for row in _TABLE if _plain(row.model) == name]
    if not rows:
        known = ", ".join(sorted({row.model for row in _TABLE}))
        raise InputError(f"model {model_name!r}", f"a model of known_sinks(): {known}", "compare by hand")
    known = {(row.layer, neuron) for row in rows for neuron in row.neurons}
    return bool(known & set(neurons))


def _plain(name: str) -> str:
    """A hub name without what differs between copies of the same weights."""
    short = re.sub(r"^meta-|-hf$", "", name.split("/")[-1].lower())
    return _ALIASES.get(short, short)
