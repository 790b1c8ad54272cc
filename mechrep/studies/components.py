"""The components of a circuit: what may be listed, what a model must have, and how they are kept in a file."""

from __future__ import annotations

import dataclasses
import itertools
import json
import operator
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mechrep.errors import InputError, StoreError
from mechrep.models.anatomy import Anatomy

KINDS = ("neurons", "heads", "layers")
_LAYER_PARTS = ("attention", "mlp")
_FORMAT, _VERSION = "mechrep circuit", 1


def as_components(kind: str, given: Iterable[Any]) -> tuple[Any, ...]:
    """Sorted pairs: ``(layer, number)``, or ``(part, layer)`` where ``kind`` is ``"layers"``.

    Raises:
        InputError: something else than pairs, a negative number, an unknown part of a layer, one given twice.
    """
    layers = kind == "layers"
    expected = "('attention' or 'mlp', layer)" if layers else f"(layer, {kind.removesuffix('s')})"
    try:
        pairs: list[Any] = sorted(
            (str(first) if layers else operator.index(first), operator.index(number)) for first, number in given
        )
    except (TypeError, ValueError) as error:
        raise InputError(f"{kind} that are no pairs ({error})", f"pairs {expected}", "correct them") from None
    bad = [p for p in pairs if p[1] < 0 or (p[0] not in _LAYER_PARTS if layers else p[0] < 0)]
    bad += [pair for pair, following in itertools.pairwise(pairs) if pair == following]
    if bad:
        raise InputError(f"{kind} with {bad[0]}", f"pairs {expected}, numbers from 0 on, each once", "correct them")
    return tuple(pairs)


def without(units: Sequence[tuple[int, int]], parts: Sequence[tuple[str, int]], part: str) -> tuple[Any, ...]:
    """The units whose layer is not listed as a whole."""
    whole = {layer for listed, layer in parts if listed == part}
    return tuple(unit for unit in units if unit[0] not in whole)


def as_sizes(given: Mapping[str, int]) -> dict[str, int]:
    """Sizes by the names of an :class:`~mechrep.models.anatomy.Anatomy`.

    Raises:
        InputError: another name.
    """
    names = {field.name for field in dataclasses.fields(Anatomy)}
    if not set(given) <= names:
        raise InputError(f"sizes {dict(given)}", f"sizes among {sorted(names)}", "correct the names")
    return dict(given)


def check_components(name: str, components: Mapping[str, Sequence[Any]], anatomy: Anatomy) -> None:
    """Refuse components that the model does not have.

    Raises:
        InputError: naming the first of them.
    """
    for kind, limit in (("neurons", anatomy.d_mlp), ("heads", anatomy.n_heads)):
        for layer, number in components[kind]:
            if layer >= anatomy.n_layers or number >= limit:
                raise InputError(
                    f"{kind.removesuffix('s')} {number} of layer {layer} in circuit {name!r}",
                    f"layers 0 to {anatomy.n_layers - 1} and {kind} 0 to {limit - 1}",
                    "use the model it was found in",
                )
    for part, layer in components["layers"]:
        if layer >= anatomy.n_layers:
            raise InputError(
                f"{part} of layer {layer} in circuit {name!r}", f"layers 0 to {anatomy.n_layers - 1}", "count from 0"
            )


def texts_of(provenance: Mapping[str, Any]) -> set[str]:
    """Ids of the texts that components were found on, through all unions."""
    texts = set(provenance.get("texts", []))
    return texts.union(*(texts_of(source["provenance"]) for source in provenance.get("union", [])))


def write_circuit(path: Path, record: Mapping[str, Any]) -> None:
    """Write one JSON file, complete or not at all.

    Raises:
        StoreError: it cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(json.dumps({"format": _FORMAT, "version": _VERSION, **record}, indent=1), encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise StoreError(f"{path} ({error.strerror})", "a place to write", "choose another") from error


def read_circuit(path: Path) -> dict[str, Any]:
    """Read what :func:`write_circuit` wrote.

    Raises:
        StoreError: nothing there, a file that is damaged or no circuit, or one of a newer mechrep.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record, dict) or record.pop("format", None) != _FORMAT:
            raise ValueError("no circuit")
        version = record.pop("version", None)
        if version == _VERSION:
            kinds = {"name": str, "found": str, "provenance": dict, "sizes": dict}
            if any(not isinstance(record[name], kind) for name, kind in kinds.items()):
                raise ValueError(f"{', '.join(kinds)} of other types")
            return record | {kind: [tuple(pair) for pair in record[kind]] for kind in KINDS}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path} ({error})", "a file written by Circuit.save", "save the circuit again") from error
    raise StoreError(f"{path}, version {version}", f"version {_VERSION}", "read it with the mechrep that wrote it")
