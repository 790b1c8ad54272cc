"""What work costs: tokens that a model reads and writes, counted where they pass."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from mechrep.models.model import Model
from mechrep.models.parts import first_tensor


@dataclass
class Meter:
    """Work of the plain view since a moment.

    Attributes:
        passes: of layers over one token each, in passes of more than one position: known texts are read.
        steps: the same in passes of one position: texts are written.
        logits: rows of logits that were computed.
        layers: of the model.
    """

    layers: int
    passes: int = 0
    steps: int = 0
    logits: int = 0
    _begun: float = field(default_factory=time.perf_counter, repr=False)

    @property
    def read(self) -> int:
        """Tokens read, as if each had passed all layers: one that passes half of them counts half."""
        return round(self.passes / self.layers)

    @property
    def written(self) -> int:
        """Tokens written, counted alike."""
        return round(self.steps / self.layers)

    @property
    def seconds(self) -> float:
        """Since the meter was made."""
        return time.perf_counter() - self._begun

    def facts(self) -> dict[str, float]:
        """Tokens read and written, rows of logits, and seconds."""
        facts = {"read": self.read, "written": self.written, "logits": self.logits, "seconds": round(self.seconds, 1)}
        return {name: float(value) for name, value in facts.items()}


@contextmanager
def metered(model: Model) -> Iterator[Meter]:
    """While open, the passes of a model's plain view are counted.

    Limits: what TransformerLens' view computes is not counted.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> with metered(model) as meter:
        ...     _ = model.plain_logits(model.probe_tokens(8))
        >>> meter.read, meter.written, meter.logits
        (16, 0, 16)
    """
    meter = Meter(model.anatomy.n_layers)
    with ExitStack() as stack:
        if model.handles is not None and model.plain is not None:
            for layer in model.handles.layers:
                stack.callback(layer.register_forward_pre_hook(_counter(meter), with_kwargs=True).remove)
            head = model.plain.get_output_embeddings()  # pyright: ignore[reportCallIssue]
            if head is not None:
                stack.callback(head.register_forward_pre_hook(_row_counter(meter)).remove)
        yield meter


def _counter(meter: Meter) -> Any:
    def count(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = first_tensor((args, kwargs))
        if hidden is None:
            return
        tokens = hidden.numel() // hidden.shape[-1]
        if hidden.ndim > 2 and hidden.shape[1] == 1:
            meter.steps += tokens
        else:
            meter.passes += tokens

    return count


def _row_counter(meter: Meter) -> Any:
    def count(_head: nn.Module, args: tuple[Any, ...]) -> None:
        meter.logits += args[0].numel() // args[0].shape[-1]

    return count
