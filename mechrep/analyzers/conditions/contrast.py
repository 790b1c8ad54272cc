"""``ConditionContrast``: natural loops, induced copying and controls, measured by one estimator.

At every position whose next token ``e`` is known because it goes on with the cycle, by the number ``k`` of cycles shown
before (:mod:`~mechrep.analyzers.conditions.positions`):

* the model's ``log p(e)``, ``p(e)``, the entropy, the rank of ``e``;
* the logit lens: ``log p(e)`` from the residual stream before each layer, and after the last;
* direct logit attribution of ``logit(e) - logit(r)``, ``r`` the most probable other token, to every head, every
  MLP, the embedding and the biases (:mod:`~mechrep.analyzers.conditions.attribution`).

Means over the tokens of a copy are kept for each text, because the text is the unit of every interval and test.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import torch
from torch import Tensor

from mechrep.analyzers.conditions.attribution import LogitAttribution
from mechrep.analyzers.conditions.contrast_result import MEASURES, ConditionContrastResult
from mechrep.analyzers.conditions.positions import ExpectedTokens, expected_tokens
from mechrep.analyzers.heads.frozen_norm import exact
from mechrep.cache.analyzer import Analyzer, Batch
from mechrep.cache.corpus_cache import CorpusCache
from mechrep.errors import InputError, NothingFoundError
from mechrep.generation.conditions.joined import COPIES, joined_conditions
from mechrep.models.anatomy import Anatomy, Site
from mechrep.models.model import Model
from mechrep.provenance import Provenance
from mechrep.text.corpus import Corpus

_KEPT_BYTES = 2**28  # of residual streams and head outputs, until the last layer says what they mean
_NEEDED = ("condition", "builder", "prompt", "start", "period", "prompt_length")


class ConditionContrast(Analyzer):
    """Confidence, logit lens and direct logit attribution by condition and by number of cycles shown.

    Args:
        model: the model that will be read.
        copies: copies beyond the first that are looked at.

    Raises:
        InputError: fewer than one copy; later, texts that no condition's builder made.
        ModelError: a model without separate heads.

    Source: the question and the conditions are Mahaut & Franzon 2025's (arXiv 2504.01100); direct logit attribution
    as in Elhage et al. 2021 (*A Mathematical Framework for Transformer Circuits*).  Their published readout uses slices
    of the attention output behind ``W_O``, which mix all heads, and other positions for each condition.

    Limits: direct attribution sees what a part writes for this token, not what later parts make of it.  Ablate as
    well (:func:`mechrep.studies.contrast.ablation_contrast`).

    Example:
        >>> import mechrep
        >>> from mechrep.generation.conditions import induced_condition, joined_conditions
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> prompts = mechrep.generation.sample_prompts(model, 8)
        >>> induced = induced_condition(model, prompts, 2, "cycle", max_new_tokens=100)
        >>> corpus = joined_conditions(induced, n_ctx=model.anatomy.n_ctx, copies=2)
        >>> (result,) = mechrep.CorpusCache(model, corpus).run(ConditionContrast(model, copies=2))
        >>> result.residual() < 1e-4
        True
    """

    sites: ClassVar[frozenset[Site]] = frozenset({Site.RESID_PRE, Site.RESID_POST, Site.Z})

    def __init__(self, model: Model, *, copies: int = COPIES) -> None:
        if copies < 1:
            raise InputError(f"copies={copies}", "at least 1 beyond the first", "ask for more")
        self.copies = copies
        self.attribution = LogitAttribution(model)
        self.state = {}
        self._labels: dict[str, list[str]] = {}

    @property
    def config(self) -> dict[str, Any]:
        """All settings."""
        return {"copies": self.copies}

    def layers(self, anatomy: Anatomy, site: Site) -> range:
        """All layers; of the residual stream behind a layer, the last."""
        return range(anatomy.n_layers - 1 if site is Site.RESID_POST else 0, anatomy.n_layers)

    def prepare(self, anatomy: Anatomy, frame: pd.DataFrame) -> None:
        """Empty sums for every text; refuses a corpus that no condition's builder made.

        Raises:
            InputError: columns that are missing.
        """
        if missing := [name for name in _NEEDED if name not in frame]:
            raise InputError(
                f"a corpus without {missing}",
                "texts of natural_condition, induced_condition or control_condition",
                "build the conditions, and join them with joined_conditions",
            )
        size = (len(frame), self.copies + 1)
        shapes: dict[str, tuple[int, ...]] = {"count": size, "lens": (*size, anatomy.n_layers + 1)}
        shapes |= {"heads": (*size, anatomy.n_layers, anatomy.n_heads), "mlps": (*size, anatomy.n_layers)}
        shapes |= dict.fromkeys(MEASURES, size)
        self.state = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}
        self._labels = {name: frame[name].astype(str).tolist() for name in ("id", "condition", "builder", "prompt")}
        self._expected: ExpectedTokens | None = None

    def observe(self, activation: Tensor, site: Site, layer: int, batch: Batch) -> None:  # noqa: ARG002
        """Keep what stands at the positions that predict, until the last layer has been seen."""
        if self._expected is None:
            self._expected = expected_tokens(batch.frame, batch.lengths.tolist(), self.copies)
            self._streams: list[Tensor] = []
            self._heads: list[Tensor] = []
        rows, places = (torch.from_numpy(v).to(activation.device) for v in (self._expected.row, self._expected.place))
        (self._heads if site is Site.Z else self._streams).append(activation[rows, places - 1].detach().clone())

    @torch.no_grad()
    def finish_batch(self, batch: Batch) -> None:
        """Turn what was kept into sums by text and copy, and drop it."""
        known, self._expected = self._expected, None
        if known is None or not len(known.row):
            return
        streams, heads = self._streams, self._heads
        self._streams, self._heads = [], []
        rows, places = torch.from_numpy(known.row), torch.from_numpy(known.place)
        device = streams[0].device
        expected = batch.tokens[rows.to(device), places.to(device)]
        texts = torch.tensor(batch.texts)[rows]
        cells = texts * (self.copies + 1) + torch.from_numpy(known.copies)
        lens = [self.attribution.predict(stream, expected) for stream in streams]
        found = lens[-1]
        direction = self.attribution.direction(expected, found.rival)
        scale = self.attribution.circuits.final_norm.scale(streams[-1])[:, 0]
        along = torch.stack([(exact(stream) * direction).sum(-1) for stream in streams], dim=1)
        parts = [self.attribution.heads(layer, z, direction) for layer, z in enumerate(heads)]
        by_head, by_bias = torch.stack([part[0] for part in parts], dim=1), torch.stack([p[1] for p in parts], dim=1)
        mlps = along.diff(dim=1) - by_head.sum(-1) - by_bias
        bias = exact(self.attribution.bias[expected] - self.attribution.bias[found.rival])
        sums = {
            "count": torch.ones_like(found.entropy),
            "log_probability": found.log_probability,
            "probability": found.log_probability.exp(),
            "entropy": found.entropy,
            "rank": found.rank,
            "correct": (found.rank == 1).double(),
            "logit_difference": found.difference,
            "embedding": along[:, 0] / scale,
            "biases": by_bias.sum(1) / scale + bias,
            "lens": torch.stack([one.log_probability for one in lens], dim=1),
            "heads": by_head / scale[:, None, None],
            "mlps": mlps / scale[:, None],
        }
        for name, values in sums.items():
            self.state[name].flatten(0, 1).index_add_(0, cells, values.double().cpu())

    def result(self, provenance: Provenance) -> ConditionContrastResult:
        """Means by text and copy.

        Raises:
            NothingFoundError: not one token was expected in any text.
        """
        count = self.state["count"]
        if not count.any():
            raise NothingFoundError(
                f"{len(count)} texts without an expected token", "texts with a cycle", "build the conditions again"
            )

        def mean(name: str) -> Tensor:
            value = self.state[name]
            return (value / count.view(*count.shape, *[1] * (value.ndim - 2))).float()

        return ConditionContrastResult(
            provenance,
            measures=torch.stack([mean(name) for name in MEASURES]),
            lens=mean("lens"),
            heads=mean("heads"),
            mlps=mean("mlps"),
            counts=count.long(),
            copies=self.copies,
            ids=self._labels["id"],
            conditions=self._labels["condition"],
            builders=self._labels["builder"],
            prompts=self._labels["prompt"],
        )

    def load_result(self, folder: Path) -> ConditionContrastResult:
        """Read a stored result."""
        return ConditionContrastResult.load(folder)


def contrast_conditions(
    model: Model,
    conditions: Sequence[Corpus],
    *,
    copies: int = COPIES,
    store: str | Path | None = None,
    progress: bool | None = None,
) -> ConditionContrastResult:
    """Join conditions and read the model over them: :class:`ConditionContrast` in one line.

    Args:
        model: the model.
        conditions: built from one list of prompts.
        copies: copies beyond the first.
        store: folder for results, see :class:`mechrep.CorpusCache`.
        progress: show a progress bar.

    Raises:
        InputError: conditions that cannot be joined.

    Example:
        >>> import mechrep
        >>> from mechrep.generation.conditions import induced_condition, natural_condition
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> prompts = mechrep.generation.sample_prompts(model, 8)
        >>> natural = natural_condition(model, prompts, max_new_tokens=100)
        >>> induced = induced_condition(model, prompts, 2, "cycle", max_new_tokens=100)
        >>> result = contrast_conditions(model, [natural, induced], copies=1)
        >>> sorted(result.groups)
        ['induced', 'natural']
    """
    anatomy = model.anatomy
    corpus = joined_conditions(*conditions, n_ctx=anatomy.n_ctx, copies=copies)
    per_token = anatomy.d_model * (2 * anatomy.n_layers + 1) * model.dtype.itemsize
    batch_size = max(1, _KEPT_BYTES // per_token // corpus.tokens.shape[1])
    cache = CorpusCache(model, corpus, batch_size=min(batch_size, 64), store=store, progress=progress)
    (result,) = cache.run(ConditionContrast(model, copies=copies))
    assert isinstance(result, ConditionContrastResult)
    return result
