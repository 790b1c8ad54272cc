"""Small analyzers and a counter of forward passes, for tests of the cache."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from mechrep.cache import Analyzer, Batch
from mechrep.models.anatomy import Anatomy, Site
from mechrep.models.load import load_model
from mechrep.models.model import Model
from mechrep.provenance import Provenance
from mechrep.results import Result
from mechrep.text.corpus import Corpus
from tests.tiny_models import PARTS, random_tokens, tiny


@functools.cache
def model(family: str) -> Model:
    """The loaded model of a family, one per process."""
    return load_model(tiny(family))


def texts_of(lengths: tuple[int, ...], family: str = "llama_gqa", seed: int = 0) -> Corpus:
    """Random texts of these lengths."""
    rows = random_tokens(len(lengths), max(lengths), seed=seed).tolist()
    return Corpus.from_tokens([row[:length] for row, length in zip(rows, lengths, strict=True)], model=model(family))


@contextmanager
def counted_layers(family: str, module: torch.nn.Module | None = None) -> Iterator[list[tuple[int, int]]]:
    """Collects ``(layer, texts in the batch)`` for every decoder layer that the plain view really runs."""
    ran: list[tuple[int, int]] = []
    target = tiny(family) if module is None else module
    with contextmanager(_hooks)(family, target, ran):
        yield ran


def _hooks(family: str, target: torch.nn.Module, ran: list[tuple[int, int]]) -> Iterator[None]:
    def count(layer: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states = args[0] if args else kwargs["hidden_states"]
        ran.append((layer, len(states)))

    # Not by hooks or another `forward`: a model with something of somebody's own is another one for a store.
    layers: list[Any] = [PARTS[family].of(target, "layer", layer) for layer in range(target.config.num_hidden_layers)]  # pyright: ignore
    kind = type(layers[0])
    call, inherited = kind.__call__, "__call__" not in vars(kind)

    def counting(self: Any, *args: Any, **kwargs: Any) -> Any:
        for number, layer in enumerate(layers):
            if layer is self:
                count(number, args, kwargs)
        return call(self, *args, **kwargs)

    kind.__call__ = counting
    try:
        yield
    finally:
        if inherited:
            del kind.__call__
        else:
            kind.__call__ = call


@dataclass(frozen=True, eq=False)
class MeanResult(Result):
    """Mean of one site over all real positions."""

    mean: Tensor
    positions: int

    def to_frame(self) -> pd.DataFrame:
        """One row per layer."""
        return pd.DataFrame(self.mean.numpy())


class MeanOf(Analyzer[MeanResult]):
    """The simplest analyzer: the mean of a site in some layers; it may fall over at a batch, on purpose."""

    def __init__(self, site: Site, layers: int | None = None, *, dies_at: int | None = None) -> None:
        self.sites = frozenset({site})  # pyright: ignore[reportAttributeAccessIssue]
        self.site, self.first_layers, self.dies_at = site, layers, dies_at
        self.state, self.batches_seen = {}, []

    @property
    def config(self) -> dict[str, Any]:
        """What it measures; dying is no setting."""
        return {"site": self.site.value, "layers": self.first_layers}

    def layers(self, anatomy: Anatomy, site: Site) -> range:
        """The first few layers."""
        return range(self.first_layers or anatomy.n_layers)

    def prepare(self, anatomy: Anatomy, frame: pd.DataFrame) -> None:
        """Zero sums."""
        self.batches_seen = []
        width = anatomy.width(self.site)
        n_layers = len(self.layers(anatomy, self.site))
        self.state = {
            "sum": torch.zeros(n_layers, width, dtype=torch.float64),
            "positions": torch.zeros(1, dtype=torch.int64),
        }

    def observe(self, activation: Tensor, site: Site, layer: int, batch: Batch) -> None:
        """Add the real positions."""
        real = torch.arange(activation.shape[1])[None] < batch.lengths[:, None]
        self.state["sum"][layer] += activation[real].double().sum(0)

    def finish_batch(self, batch: Batch) -> None:
        """Count the batch, or die."""
        if self.dies_at is not None and len(self.batches_seen) == self.dies_at:
            raise KeyboardInterrupt
        self.batches_seen.append(batch.texts)
        self.state["positions"] += batch.lengths.sum()

    def result(self, provenance: Provenance) -> MeanResult:
        """Divide."""
        count = int(self.state["positions"])
        return MeanResult(provenance, self.state["sum"] / count, count)
