"""What an analyzer is: it names the sites it wants, observes them, and its state is sums that can be merged."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from mechrep.errors import InputError
from mechrep.models.anatomy import Anatomy, Site
from mechrep.provenance import Provenance
from mechrep.results import Result


@dataclass(frozen=True)
class Batch:
    """The texts behind the activations of one forward pass.

    Attributes:
        tokens: right-padded ids ``[text pos]``, on the activations' device.
        lengths: real positions of each row.
        texts: each row's number in the corpus.
        frame: the corpus' rows of facts, in the order of the batch.
    """

    tokens: Int[Tensor, "batch pos"]
    lengths: Int[Tensor, " batch"]
    texts: tuple[int, ...]
    frame: pd.DataFrame


class Analyzer(ABC):
    """Base of the analyzers: state that only ever adds up.

    Subclasses put sums and counts into :attr:`state`, float64 or int64 tensors by name; merging two analyzers adds
    them.  So one pass, a resumed pass and many workers give the same numbers.
    """

    sites: ClassVar[frozenset[Site]]
    state: dict[str, Tensor]

    @abstractmethod
    def prepare(self, anatomy: Anatomy, frame: pd.DataFrame) -> None:
        """Make an empty state for this model; refuse a corpus that lacks what the analyzer needs."""

    @abstractmethod
    def observe(self, activation: Tensor, site: Site, layer: int, batch: Batch) -> None:
        """Add one activation to the state; it must not be kept or edited."""

    def finish_batch(self, batch: Batch) -> None:  # noqa: B027 - most analyzers have nothing to do here
        """Called once when every site of a batch has been observed."""

    @abstractmethod
    def result(self, provenance: Provenance) -> Result:
        """The result of everything observed so far."""

    @property
    @abstractmethod
    def config(self) -> dict[str, Any]:
        """JSON-ready settings: two analyzers with equal settings observe the same."""

    @abstractmethod
    def load_result(self, folder: Any) -> Result:
        """Read a result of this analyzer's kind from a store."""

    def layers(self, anatomy: Anatomy, site: Site) -> range:  # noqa: ARG002 - for those that override it
        """Layers at which ``site`` is observed; all of them unless overridden."""
        return range(anatomy.n_layers)

    def merge(self, other: Analyzer) -> None:
        """Add the state of another analyzer with the same settings.

        Raises:
            InputError: another kind or other settings, or a state of another model.
        """
        if type(other) is not type(self) or other.config != self.config:
            raise InputError(
                f"{type(other).__name__} {other.config}", f"{type(self).__name__} {self.config}", "merge like with like"
            )
        self._check_shapes(other.state)
        self.state = {name: value + other.state[name] for name, value in self.state.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over a stored state.

        Raises:
            InputError: tensors of other names or shapes.
        """
        self._check_shapes(state)
        self.state = {name: torch.as_tensor(value).clone() for name, value in state.items()}

    def _check_shapes(self, state: Mapping[str, Tensor]) -> None:
        given, own = ({name: tuple(value.shape) for name, value in s.items()} for s in (state, self.state))
        if given != own:
            raise InputError(f"a state of tensors {given}", f"tensors {own}, of one model and version", "run again")
