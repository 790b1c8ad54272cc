"""``RouterShift``: which experts take over when a loop begins.

For expert ``e`` and a text whose loop has its first copy at ``start`` and its second at ``onset``, shares of the tokens
that the router sends to ``e``::

    before    of the r tokens before start
    first     of the first copy, start <= i < onset
    after     of the r tokens from the onset on

    shift(e)  =  after - before           or, with the same tokens on both sides,  after - first

Every looping text has a control: a loop-free text, read at the very same positions.  What is reported is the mean over
pairs of the loop's shift minus its control's, so that what positions do by themselves is taken out.  ``after - first``
also takes out which tokens the loop is made of: the first copy holds the same ones.

If a loop did nothing, loop and control could be exchanged in every pair (in whole families of loops: their texts are
not independent).  The draws do that, and of each draw the *largest* shift of a layer's experts counts: one of many
experts always moves most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechrep.cache.corpus_cache import Analyzer, Batch
from mechrep.errors import MissingPartError, NothingFoundError
from mechrep.guards import Count, guarded
from mechrep.models.anatomy import Anatomy, Site
from mechrep.provenance import Provenance
from mechrep.results import Result

Against = Literal["before", "first"]
WINDOWS = ("before", "first", "after")


@dataclass(frozen=True, eq=False)
class RouterShiftResult(Result):
    """Shares of tokens that each expert is sent, in pairs of a looping text and its control.

    Axis ``window`` runs over before, first, after.

    Attributes:
        loops: shares in the looping texts; NaN for experts that a layer does not have.
        controls: shares in their controls, at the same positions.
        families: family of each pair's loop.
        texts: ids of the looping texts.
        n_dropped: looping texts without a control, or without a token in some window.
        r: width of the windows.
    """

    loops: Float[Tensor, "pair window layer expert"]
    controls: Float[Tensor, "pair window layer expert"]
    families: Sequence[str]
    texts: Sequence[str]
    n_dropped: int
    r: int

    @guarded
    def shifts(self, against: Against = "before") -> Float[Tensor, "pair layer expert"]:
        """The loop's shift minus its control's, pair by pair.

        Args:
            against: ``"before"`` the loop, or the ``"first"`` copy.
        """
        other = WINDOWS.index(against)
        return (self.loops[:, 2] - self.loops[:, other]) - (self.controls[:, 2] - self.controls[:, other])

    @guarded
    def shift(self, against: Against = "before") -> Float[Tensor, "layer expert"]:
        """The mean over pairs."""
        return self.shifts(against).mean(0)

    @guarded
    def exchanged(
        self, against: Against = "before", *, draws: int = 999, seed: int = 0
    ) -> Float[Tensor, "draw layer expert"]:
        """The mean shift where loop and control are exchanged in families chosen at random.

        Args:
            against: see :meth:`shifts`.
            draws: how many.
            seed: of the draws.
        """
        names = sorted(set(self.families))
        column = torch.tensor([names.index(name) for name in self.families])
        signs = np.random.default_rng(seed).integers(0, 2, (draws, len(names))) * 2 - 1
        weights = torch.from_numpy(signs)[:, column].to(self.loops.dtype) / len(self.families)
        return torch.tensordot(weights, self.shifts(against), 1)

    def to_frame(self) -> pd.DataFrame:
        """One row per expert, the one that gains most first: shares in loops and controls, and the shifts."""
        tables = {
            f"{side}_{window}": getattr(self, side)[:, place].mean(0)
            for side in ("loops", "controls")
            for place, window in enumerate(WINDOWS)
        }
        tables |= {f"shift_from_{against}": self.shift(against) for against in ("before", "first")}
        layers, experts = torch.nonzero(~tables["loops_after"].isnan(), as_tuple=True)
        frame = pd.DataFrame({name: table[layers, experts].numpy() for name, table in tables.items()})
        frame.insert(0, "layer", layers.numpy())
        frame.insert(1, "expert", experts.numpy())
        return frame.sort_values("shift_from_before", ascending=False, kind="stable").reset_index(drop=True)


class RouterShift(Analyzer[RouterShiftResult]):
    """Measures which experts are sent more tokens, or fewer, once a text loops.

    The corpus holds looping texts (with ``start`` and ``onset``) and loop-free ones, as
    :func:`mechrep.generation.collect_loops` gives them; each loop-free text is the control of one looping text at most.
    A column ``family`` says which loops are alike; without it every text is its own.

    Args:
        r: width of the windows in tokens.

    Raises:
        InputError: ``r`` below 1.
        MissingPartError: a model without routed experts.
        NothingFoundError: no looping text with a control.

    Limits: routing says where tokens go, not what the experts do there; a loop of few tokens sends these where such
    tokens are always sent, which ``after - first`` takes out and ``after - before`` does not.

    Example:
        >>> RouterShift(r=8).config
        {'r': 8}
    """

    sites: ClassVar[frozenset[Site]] = frozenset({Site.ROUTER})

    @guarded
    def __init__(self, r: Count = 30) -> None:
        self.r = r
        self.state = {}

    @property
    def config(self) -> dict[str, Any]:
        """Width of the windows."""
        return {"r": self.r}

    def prepare(self, anatomy: Anatomy, frame: pd.DataFrame) -> None:
        """Pair texts, and make empty sums."""
        if not anatomy.has(Site.ROUTER):
            raise MissingPartError(anatomy.architecture, "a mixture of experts", "measure its neurons")
        marked = {"start", "onset"} <= set(frame.columns)
        looping = frame["onset"].notna().to_numpy() if marked else np.zeros(len(frame), dtype=bool)
        self._pairs = list(zip(np.flatnonzero(looping).tolist(), np.flatnonzero(~looping).tolist(), strict=False))
        if not self._pairs:
            raise NothingFoundError(
                f"{int(looping.sum())} looping and {int((~looping).sum())} loop-free texts",
                "at least one of each",
                "collect them (mechrep.generation.collect_loops), or mark loops with corpus.with_cycles()",
            )
        self._unpaired = int(looping.sum()) - len(self._pairs)
        places = frame[["start", "onset"]].astype("Int64").to_numpy(dtype=float, na_value=-1).astype(int)
        self._places = {
            text: places[loop].tolist() for pair in self._pairs for loop, text in ((pair[0], t) for t in pair)
        }
        self._ids = frame["id"].astype(str).tolist()
        self._families = (frame["family"] if "family" in frame else frame["id"]).astype(str).tolist()
        experts = torch.tensor(anatomy.experts)
        absent = torch.arange(int(experts.max())) >= experts[:, None]
        size = (len(frame), len(WINDOWS))
        self.state = {
            "sent": torch.zeros(*size, *absent.shape, dtype=torch.float64).masked_fill(absent, torch.nan),
            "tokens": torch.zeros(size, dtype=torch.float64),
        }
        self._known: tuple[Batch, Bool[Tensor, "text window pos"]] | None = None

    def _windows(self, batch: Batch) -> Bool[Tensor, "text window pos"]:
        """Which positions of each text are in which window; none of a text without a pair."""
        if self._known is None or self._known[0] is not batch:
            position = torch.arange(batch.tokens.shape[1])
            masks = torch.zeros(len(batch.texts), len(WINDOWS), len(position), dtype=torch.bool)
            for row, (text, length) in enumerate(zip(batch.texts, batch.lengths.tolist(), strict=True)):
                if text not in self._places:
                    continue
                start, onset = self._places[text]
                ends = ((max(1, start - self.r), start), (start, onset), (onset, onset + self.r))
                for window, (begin, end) in enumerate(ends):
                    masks[row, window] = (position >= begin) & (position < min(end, length))
            self._known = (batch, masks)
        return self._known[1]

    def observe(self, activation: Tensor, site: Site, layer: int, batch: Batch) -> None:  # noqa: ARG002 - it has one
        """Add one layer of one batch."""
        sent = (activation != 0).double().cpu()
        counts = torch.einsum("twp,tpe->twe", self._windows(batch).double(), sent)
        self.state["sent"][list(batch.texts), :, layer] += counts

    def finish_batch(self, batch: Batch) -> None:
        """Count tokens, once for all layers."""
        self.state["tokens"][list(batch.texts)] += self._windows(batch).sum(-1).double()

    def result(self, provenance: Provenance) -> RouterShiftResult:
        """Shares in the pairs in which no window is empty.

        Raises:
            NothingFoundError: there is no such pair.
        """
        tokens = self.state["tokens"]
        whole = [pair for pair in self._pairs if bool((tokens[list(pair)] > 0).all())]
        if not whole:
            raise NothingFoundError(
                f"{len(self._pairs)} pairs of a loop and a control, each with an empty window",
                "loops that begin behind position 1, and controls that are as long",
                "collect more or longer texts",
            )
        shares = self.state["sent"] / tokens[..., None, None]
        loops, controls = (list(side) for side in zip(*whole, strict=True))
        dropped = self._unpaired + len(self._pairs) - len(whole)
        return RouterShiftResult(
            provenance,
            shares[loops].float(),
            shares[controls].float(),
            [self._families[text] for text in loops],
            [self._ids[text] for text in loops],
            dropped,
            self.r,
        )
