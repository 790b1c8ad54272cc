"""Activations made by hand for the sink analyzers: no model takes part, and what lies in the padding is huge."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from mechrep.cache import Analyzer, Batch
from mechrep.models.anatomy import Anatomy, Site
from mechrep.provenance import Provenance
from mechrep.results import Result

PROVENANCE = Provenance({"name": "hand"}, {"texts": 0}, {})
PADDING = 1e6

Tables = Mapping[tuple[Site, int], Sequence[Tensor]]  # per site and layer one activation per text, without padding


def anatomy(n_layers: int, **sizes: int) -> Anatomy:
    """Sizes of a model that need not exist."""
    wanted = {"n_heads": 2, "n_kv_heads": 2, "d_model": 8, "d_head": 4, "d_mlp": 5, "d_vocab": 61, "n_ctx": 128} | sizes
    kinds = {"gated": True, "parallel": False, "activation": "silu", "positions": "rotary", "norm": "RMS"}
    return Anatomy(n_layers=n_layers, **wanted, **kinds, architecture="hand")  # pyright: ignore[reportArgumentType]


def observed(
    analyzer: Any,
    tables: Tables,
    sizes: Anatomy,
    *,
    batch_size: int = 100,
    frame: pd.DataFrame | None = None,
    texts: Sequence[int] | None = None,
) -> Any:
    """The analyzer after it has seen the texts (all, or those named), batch by batch."""
    place, group = next(iter(tables.items()))
    lengths = [len_of(place, table) for table in group]
    facts = pd.DataFrame({"id": [f"text-{i}" for i in range(len(lengths))]}) if frame is None else frame
    analyzer.prepare(sizes, facts)
    order = list(range(len(lengths))) if texts is None else list(texts)
    for begin in range(0, len(order), batch_size):
        rows = order[begin : begin + batch_size]
        width = max(lengths[row] for row in rows)
        sizes_now = torch.tensor([lengths[row] for row in rows])
        batch = Batch(torch.zeros(len(rows), width, dtype=torch.long), sizes_now, tuple(rows), facts.iloc[rows])
        for (site, layer), group in tables.items():
            analyzer.observe(torch.stack([padded(group[row], width, site) for row in rows]), site, layer, batch)
        analyzer.finish_batch(batch)
    return analyzer


def len_of(place: tuple[Site, int], table: Tensor) -> int:
    """Positions of one text's activation; the query axis of patterns."""
    return table.shape[-2] if place[0] is Site.PATTERN else table.shape[0]


def padded(table: Tensor, width: int, site: Site) -> Tensor:
    """One text's activation as wide as the batch; patterns in ``[head query key]``."""
    if site is Site.PATTERN:
        full = torch.full((table.shape[0], width, width), PADDING, dtype=table.dtype)
        full[:, : table.shape[1], : table.shape[2]] = table
        return full
    full = torch.full((width, *table.shape[1:]), PADDING, dtype=table.dtype)
    full[: len(table)] = table
    return full


def check_equal(one: Result, other: Result, rtol: float = 1e-6) -> None:
    """All fields of two results are equal, NaN included; provenance aside."""
    assert type(one) is type(other)
    for field in dataclasses.fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, Tensor):
            torch.testing.assert_close(a, b, rtol=rtol, atol=1e-7, equal_nan=True, msg=field.name)
        elif field.name != "provenance":
            assert a == b or repr(a) == repr(b), field.name


def merged(analyzers: Sequence[Analyzer]) -> Any:
    """The first analyzer with the states of the others."""
    first, *others = analyzers
    for other in others:
        first.merge(other)
    return first
