"""Everything that is shown of one text, from one pass of the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd
import torch
from jaxtyping import Float64, UInt8
from torch import Tensor

from mechrep.cache.corpus_cache import Analyzer, Batch, CorpusCache
from mechrep.errors import MissingPartError
from mechrep.interventions.ops import Intervention
from mechrep.measures.token_facts import has_lens, losses_of_states, token_surprisal
from mechrep.models.anatomy import Anatomy, Site
from mechrep.models.model import Model
from mechrep.provenance import Provenance
from mechrep.results import Result
from mechrep.text.corpus import Corpus
from mechrep.viewer.packing import quantised
from mechrep.viewer.quantities import Quantity

Heads = Sequence[tuple[int, int]]


@dataclass(frozen=True, eq=False)
class TextReading(Result):
    """What was read of one text.

    Attributes:
        values: of each quantity that is not a head; NaN where a token has none.
        attention: of each head, as :func:`mechrep.viewer.packing.quantised` gives it.
        names: of the quantities.
        heads: ``(layer, head)`` of each row of ``attention``.
    """

    values: Float64[Tensor, "quantity pos"]
    attention: UInt8[Tensor, "head pair"]
    names: Sequence[str]
    heads: Sequence[tuple[int, int]]


class TextReader(Analyzer[TextReading]):
    """Reads some quantities and heads of a corpus of one text.

    Args:
        model: whose last states are turned into surprisals.
        length: tokens of the text.
        quantities: none of them a head.
        heads: ``(layer, head)``.
    """

    sites: ClassVar[frozenset[Site]] = frozenset()

    def __init__(self, model: Model, length: int, quantities: Sequence[Quantity], heads: Heads) -> None:
        self.model, self.length, self.quantities, self.heads = model, length, list(quantities), list(heads)
        places = [(one.site, one.layer) for one in quantities if one.site is not None]
        places += [(Site.PATTERN, layer) for layer, _ in heads]
        self._asks_surprisal = any(one.kind == "surprisal" for one in quantities)
        if self._asks_surprisal:
            places.append((Site.RESID_POST, model.anatomy.n_layers - 1))
        self.places = sorted(set(places))
        self.sites = frozenset(site for site, _ in places)  # pyright: ignore[reportAttributeAccessIssue] - the instance's

    @property
    def config(self) -> dict[str, Any]:
        """Names of what is read."""
        return {"quantities": [one.name for one in self.quantities], "heads": [list(head) for head in self.heads]}

    def layers(self, anatomy: Anatomy, site: Site) -> Sequence[int]:  # noqa: ARG002 - told by whom it was made
        """Those asked for."""
        return [layer for place, layer in self.places if place is site]

    def prepare(self, anatomy: Anatomy, frame: pd.DataFrame) -> None:  # noqa: ARG002 - one text needs no facts
        """Make room."""
        for one in self.quantities:
            one.check(anatomy, self.length)
        pairs = self.length * (self.length + 1) // 2
        self.state = {
            "values": torch.full((len(self.quantities), self.length), torch.nan, dtype=torch.float64),
            "attention": torch.zeros(len(self.heads), pairs, dtype=torch.uint8),
        }
        for row, one in enumerate(self.quantities):
            if one.values is not None:
                self.state["values"][row] = torch.from_numpy(one.values)

    def observe(self, activation: Tensor, site: Site, layer: int, batch: Batch) -> None:  # noqa: ARG002 - one text
        """Take what was asked for out of one activation."""
        if site is Site.PATTERN:
            rows = [row for row, (of, _) in enumerate(self.heads) if of == layer]
            chosen = [self.heads[row][1] for row in rows]
            self.state["attention"][rows] = quantised(activation[0, chosen]).cpu()
            return
        if self._asks_surprisal and (site, layer) == (Site.RESID_POST, self.model.anatomy.n_layers - 1):
            self._last_states = activation.clone()
        for row, one in enumerate(self.quantities):
            if (one.site, one.layer) == (site, layer):
                seen = activation[0, :, one.number] if one.kind == "neuron" else activation[0].float().norm(dim=-1)
                self.state["values"][row] = seen.double().cpu()

    def finish_batch(self, batch: Batch) -> None:
        """Turn the last states into surprisals, outside of the pass."""
        for row, one in enumerate(self.quantities):
            if one.kind == "surprisal":
                losses = losses_of_states(self.model, self._last_states, batch.tokens)
                self.state["values"][row, 1:] = losses[0].double()

    def result(self, provenance: Provenance) -> TextReading:
        """What was read."""
        names = [one.name for one in self.quantities]
        return TextReading(provenance, self.state["values"], self.state["attention"], names, self.heads)


def read_text(
    model: Model,
    corpus: Corpus,
    quantities: Sequence[Quantity],
    heads: Heads = (),
    *,
    intervention: Intervention | None = None,
) -> TextReading:
    """Read a text once, whatever the number of quantities and heads.

    Args:
        model: the model.
        corpus: of one text.
        quantities: heads among them are left out.
        heads: ``(layer, head)`` whose attention is kept.
        intervention: what the model is under, at all positions or from the onset on.

    Raises:
        InputError: a quantity that does not fit the model or the text.
        MissingPartError: surprisal under an intervention, of a model whose logits are not made of its last states.

    Example:
        >>> import mechrep
        >>> from mechrep.viewer.quantities import read_quantities
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> corpus = mechrep.Corpus.from_texts(["The sea was calm."], model=model)
        >>> reading = read_text(model, corpus, read_quantities(["surprisal", "L2N5"]), [(1, 0)])
        >>> reading.values.shape[0], bool(reading.values[0, 1:].min() > 0), reading.attention.shape[0]
        (2, True, 1)
    """
    wanted = [one for one in quantities if one.kind != "head"]
    beside = [one for one in wanted if one.kind == "surprisal"] if not has_lens(model) else []
    if beside and intervention is not None:
        raise MissingPartError(
            f"surprisal of {model.name!r} under an intervention",
            "a model whose logits are made of its last residual stream",
            "leave out 'surprisal'",
        )
    # A place that is known already is a place that nothing is read for.
    known = {one.name: token_surprisal(model, corpus)[0].double().numpy() for one in beside}
    wanted = [Quantity(one.name, "given", values=known[one.name]) if one.name in known else one for one in wanted]
    reader = TextReader(model, int(corpus.lengths[0]), wanted, heads)
    return CorpusCache(model, corpus, intervention=intervention, progress=False).run(reader)
