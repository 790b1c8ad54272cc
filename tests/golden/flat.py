"""From results to flat records that JSON can hold, and the comparison of two such records."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

FRAMES = "frames/"  # names of rows of tables and verdicts, which may change; all others are raw values
WHOLE = 200  # tensors of up to so many entries are kept whole
SOME = 20
RTOL, ATOL = 2e-4, 1e-6

# Fields that say what a result means; all others hold what was measured.
JUDGED = frozenset(
    [
        "found",
        "norm_found",
        "heads_found",
        "reason",
        "moved_reason",
        "sink_reason",
        "law",
        "mass_law",
        "theory",
        "theory_words",
        "expected_rates",
        "agrees",
        "needs_attention",
        "rule",
        "null_aurocs",
    ]
)

Record = dict[str, Any]


def number(value: Any) -> Any:
    """One value: floats with 6 significant digits, what is missing as None, infinity as a word."""
    if value is None or value is pd.NA:
        return None
    if isinstance(value, (bool, np.bool_)):
        return int(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        if math.isnan(value):
            return None
        return str(float(value)) if math.isinf(value) else float(f"{value:.6g}")
    return str(value)


def of_array(name: str, values: Any) -> Record:
    """A small array whole; of a larger one its sum, its sum of squares and some entries."""
    array = values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
    shape = {f"{name} shape": list(array.shape)} if array.ndim != 1 or array.size > WHOLE else {}
    flat = array.reshape(-1)
    if flat.size <= WHOLE:
        return {**shape, name: [number(value) for value in flat]}
    wide = np.nan_to_num(flat.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    places = np.linspace(0, flat.size - 1, SOME).astype(int)
    return shape | {
        f"{name} sum": number(wide.sum()),
        f"{name} squares": number(np.square(wide).sum()),
        f"{name} entries": [number(flat[place]) for place in places],
    }


def of_value(name: str, value: Any) -> Record:
    """Anything a result holds, under names that begin with ``name``."""
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return of_array(name, value)
    if isinstance(value, pd.DataFrame):
        return of_frame(name, value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return of_result(value, name)
    if isinstance(value, Mapping):
        parts = [of_value(f"{name} {key}", one) for key, one in value.items()]
        return {key: one for part in parts for key, one in part.items()}
    if isinstance(value, (list, tuple, set, frozenset, range, pd.Series)):
        return _of_list(name, sorted(value) if isinstance(value, (set, frozenset)) else list(value))
    return {name: number(value)}


def _of_list(name: str, values: Sequence[Any]) -> Record:
    if any(isinstance(one, (Mapping, pd.DataFrame)) or dataclasses.is_dataclass(one) for one in values):
        return {key: one for i, value in enumerate(values) for key, one in of_value(f"{name} {i}", value).items()}
    if any(isinstance(one, (list, tuple)) for one in values):
        return {name: [",".join(map(str, one)) if isinstance(one, (list, tuple)) else str(one) for one in values]}
    return {name: [number(one) for one in values]}


def of_result(result: Any, name: str = "", leave_out: Sequence[str] = ("provenance",)) -> Record:
    """Every field of a dataclass."""
    record: Record = {}
    for field in dataclasses.fields(result):
        if field.name not in leave_out:
            judged = field.name in JUDGED or "interval" in field.name
            label = f"{name} {field.name}".strip()
            record |= of_value(FRAMES + label if judged else label, getattr(result, field.name))
    return record


def of_frame(name: str, frame: pd.DataFrame) -> Record:
    """A table by columns, as part of the frames."""
    name = name if name.startswith(FRAMES) else FRAMES + name
    record: Record = {}
    for column in frame.columns:
        values, label = frame[column], f"{name}.{column}"
        if len(values) <= WHOLE:
            record |= _of_list(label, values.tolist())
        elif pd.api.types.is_numeric_dtype(values):
            record |= of_array(label, values.astype(float).to_numpy(na_value=np.nan))
        else:
            record[label] = [str(one) for one in values.iloc[np.linspace(0, len(values) - 1, SOME).astype(int)]]
    return record


def where(**condition: Any) -> str:
    """A condition as the key of its values: ``selection=top k=2 seed=0``."""
    return " ".join(f"{name}={value}" for name, value in condition.items() if value is not None)


def differences(expected: Record, found: Record) -> list[str]:
    """In words, what differs: nothing where all names are the same and all values close."""
    told = [f"{name}: no longer there" for name in expected.keys() - found.keys()]
    told += [f"{name}: not in the record" for name in found.keys() - expected.keys()]
    for name in expected.keys() & found.keys():
        scale = expected.get(f"{name.removesuffix(' sum')} squares", 0.0) ** 0.5 if name.endswith(" sum") else 0.0
        told += _different(name, expected[name], found[name], ATOL + RTOL * scale)
    return sorted(told)


def _different(name: str, expected: Any, found: Any, atol: float) -> Iterable[str]:
    ones, others = ([value] if not isinstance(value, list) else value for value in (expected, found))
    if len(ones) != len(others):
        return [f"{name}: {len(others)} values, recorded are {len(ones)}"]
    bad = [i for i, pair in enumerate(zip(ones, others, strict=True)) if not _close(*pair, atol)]
    if not bad:
        return []
    return [f"{name}[{bad[0]}]: {others[bad[0]]!r}, recorded is {ones[bad[0]]!r} ({len(bad)} of {len(ones)} differ)"]


def _close(expected: Any, found: Any, atol: float) -> bool:
    if isinstance(expected, float) or isinstance(found, float):
        return (
            isinstance(expected, (int, float))
            and isinstance(found, (int, float))
            and math.isclose(expected, found, rel_tol=RTOL, abs_tol=atol)
        )
    return expected == found
