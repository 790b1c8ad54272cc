"""``RepeatNorms``: the norm of the residual stream against the number of repeats of one token.

In models whose first layers tell the first token from the others by the presence of other tokens, a token repeated many
times ends up in the state of a first token, and becomes a sink itself.  The state is one row per text, filled when the
text is read, so texts may come in any order and from many workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechrep.analyzers.sinks.norms import norms_of
from mechrep.analyzers.sinks.repeat_norms_result import RepeatNormResult as RepeatNormResult
from mechrep.cache.analyzer import Analyzer, Batch
from mechrep.cache.corpus_cache import CorpusCache
from mechrep.errors import InputError
from mechrep.models.anatomy import Anatomy, Site
from mechrep.models.model import Model
from mechrep.provenance import Provenance
from mechrep.text.repeated import repeated_tokens

_COLUMNS = ("token_id", "repeats", "bos")
_POINTS = 24  # numbers of repeats on the logarithmic grid


def repeat_grid(n: int) -> list[int]:
    """Numbers of repeats from 1 to ``n`` in logarithmic steps.

    Example:
        >>> repeat_grid(5), repeat_grid(1000)[-2:]
        ([1, 2, 3, 4, 5], [741, 1000])
    """
    return np.unique(np.geomspace(1, n, _POINTS).round().astype(int)).tolist()


class RepeatNorms(Analyzer):
    """Measures how the norm of a repeated token grows, for many tokens at once.

    Runs on corpora of :func:`mechrep.text.repeated.repeated_tokens`.

    Args:
        taus: shares of the BOS norm whose first crossing is reported, ``n*(tau)``.

    Raises:
        InputError: a tau that is no positive number; when run, texts that are no repeated tokens, or of several kinds.

    Source: Yona et al. 2025 (arXiv 2503.08908): the curve of one prompt.  Building repeats from ids, the crossings
    ``n*`` and the share of tokens that move are mechrep's own.

    Limits: without BOS all copies are the same first token to a rotary model, and nothing can grow.  ``n*`` is one
    crossing; norms may fall again.

    Example:
        >>> import mechrep
        >>> from mechrep.text.repeated import repeated_tokens
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> (result,) = mechrep.CorpusCache(model, repeated_tokens(model, [300, 301], 40)).run(RepeatNorms())
        >>> result.token_ids, result.repeats[-1]
        ([300, 301], 40)
    """

    sites: ClassVar[frozenset[Site]] = frozenset({Site.RESID_PRE, Site.RESID_POST})

    def __init__(self, taus: Sequence[float] = (0.25, 0.5, 0.75)) -> None:
        if not taus or not all(tau > 0 for tau in taus):
            raise InputError(f"taus={list(taus)}", "positive shares of the BOS norm", "correct them")
        self.taus = tuple(float(tau) for tau in taus)
        self.state = {}

    @property
    def config(self) -> dict[str, Any]:
        """The shares of the BOS norm."""
        return {"taus": list(self.taus)}

    def layers(self, anatomy: Anatomy, site: Site) -> range:
        """All blocks' outputs, and the input of the first."""
        return range(1 if site is Site.RESID_PRE else anatomy.n_layers)

    def prepare(self, anatomy: Anatomy, frame: pd.DataFrame) -> None:
        """An empty row per text; refuses a corpus of other texts than repeated tokens of one kind."""
        if not set(_COLUMNS) <= set(frame.columns) or len(frame[["repeats", "bos"]].drop_duplicates()) > 1:
            raise InputError(
                "texts that are not all one token repeated equally often, all with BOS or all without",
                f"a corpus with the columns {', '.join(_COLUMNS)}, the last two equal in every row",
                "build it with mechrep.text.repeated.repeated_tokens",
            )
        self._tokens = [int(token) for token in frame["token_id"]]
        self._grid, self._bos = repeat_grid(int(frame["repeats"].iloc[0])), bool(frame["bos"].iloc[0])
        texts, depths = len(frame), anatomy.n_layers + 1
        self.state = {
            "norm": torch.zeros(texts, depths, len(self._grid), dtype=torch.float64),
            "bos_norm": torch.zeros(texts, depths, dtype=torch.float64),
            "reached": torch.zeros(texts, depths, len(self.taus), dtype=torch.float64),
        }

    def observe(self, activation: Tensor, site: Site, layer: int, batch: Batch) -> None:
        """Fill one depth of the rows of one batch."""
        depth, rows = 0 if site is Site.RESID_PRE else layer + 1, list(batch.texts)
        norms = norms_of(activation).cpu().double()
        copies = norms[:, int(self._bos) : int(self._bos) + self._grid[-1]]
        self.state["norm"][rows, depth] = copies[:, [n - 1 for n in self._grid]]
        if self._bos:
            self.state["bos_norm"][rows, depth] = norms[:, 0]
            self.state["reached"][rows, depth] = _first_crossings(copies, norms[:, 0], self.taus)

    def merge(self, other: Analyzer) -> None:
        """Add what another analyzer saw of the same texts, or append its texts where they are others.

        Raises:
            InputError: other settings, another model, other numbers of repeats, or texts that are partly the same.
        """
        if not isinstance(other, RepeatNorms) or other._tokens == self._tokens:
            super().merge(other)
            return
        same_kind = (other.config, other._grid, other._bos) == (self.config, self._grid, self._bos)
        depths = [analyzer.state["norm"].shape[1] for analyzer in (self, other)]
        if not same_kind or set(self._tokens) & set(other._tokens) or depths[0] != depths[1]:
            raise InputError(
                f"repeats of {other._tokens[:3]} ..., {other._grid[-1]} times",
                f"other tokens than {self._tokens[:3]} ..., {self._grid[-1]} times, in the same model",
                "merge like with like",
            )
        self.state = {name: torch.cat([value, other.state[name]]) for name, value in self.state.items()}
        self._tokens = [*self._tokens, *other._tokens]

    def result(self, provenance: Provenance) -> RepeatNormResult:
        """Norms by number of repeats, and crossings."""
        bos_norm = self.state["bos_norm"].mean(0)
        return RepeatNormResult(
            provenance,
            token_ids=self._tokens,
            repeats=self._grid,
            bos=self._bos,
            norm=self.state["norm"].float(),
            bos_norm=(bos_norm if self._bos else torch.full_like(bos_norm, torch.nan)).float(),
            taus=list(self.taus),
            reached=self.state["reached"].float(),
        )

    def load_result(self, folder: Path) -> RepeatNormResult:
        """Read a stored result."""
        return RepeatNormResult.load(folder)


def _first_crossings(
    norms: Float[Tensor, "batch pos"], bos: Float[Tensor, " batch"], taus: Sequence[float]
) -> Float[Tensor, "batch tau"]:
    """Number of the first copy whose norm is at least ``tau`` times that of BOS; 0 where none is."""
    above = norms[..., None] >= bos[:, None, None] * torch.tensor(taus, dtype=norms.dtype)
    first = above.int().argmax(1) + 1
    return torch.where(above.any(1), first, 0).to(norms.dtype)


def limit_norms(model: Model, token_ids: Sequence[int]) -> Float[Tensor, "text depth"]:
    """Norms of each token alone, without BOS: the state that its repeats tend to in a model without positions.

    Look here first.  Where a token alone is not large, its repeats are not predicted to become a sink.

    Args:
        model: the model.
        token_ids: the tokens, none twice.

    Raises:
        InputError: an id outside the vocabulary or twice, or no ids.

    Example:
        >>> import mechrep
        >>> len(limit_norms(mechrep.load_model("mechrep-tiny"), [300, 301]))
        2
    """
    corpus = repeated_tokens(model, list(token_ids), 1, bos=False)
    (result,) = CorpusCache(model, corpus, progress=False).run(RepeatNorms())
    assert isinstance(result, RepeatNormResult)
    return result.norm[:, :, 0]
