"""``RepetitionNeurons``: which neurons rise when a loop begins.

For neuron n, over texts x with windows N_x (normal) and R_x (repetition) around the onset, see
:mod:`mechrep.analyzers.windows`::

    delta_n = sum_x sum_{i in R_x} a_n(x, i) / sum_x |R_x|  -  sum_x sum_{i in N_x} a_n(x, i) / sum_x |N_x|

The state is sums over texts, so texts stream through and any split of the corpus gives the same numbers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import torch
from torch import Tensor

from mechrep.analyzers.neuron_result import RepetitionNeuronResult as RepetitionNeuronResult
from mechrep.analyzers.windows import Window, WindowPositions, check_onsets, usable_texts, window_positions
from mechrep.cache.analyzer import Analyzer, Batch
from mechrep.errors import InputError, NothingFoundError
from mechrep.models.anatomy import Anatomy, Site
from mechrep.provenance import Provenance

_PRESET_WINDOWS: dict[str, Window] = {"hiraoka2025": "published", "mechrep": "clean"}


class RepetitionNeurons(Analyzer):
    """Finds repetition neurons: for each neuron the rise of its activation when the loop begins.

    Args:
        preset: ``"hiraoka2025"`` takes the normal window of the released code, which usually contains the first copy
            of the loop; ``"mechrep"`` (default) takes the positions before the first copy.  Both report the other
            window's difference beside their own, standard errors and effect sizes.
        window: overrides the preset's window.
        r: width of the windows in tokens.
        site: ``GATE_ACT`` (default, as in the paper) or ``MLP_POST``.

    Raises:
        InputError: an unknown preset, window or site, or ``r`` below 1.
        NothingFoundError: when run on a corpus in which no text has an onset and a normal window.

    Source: Hiraoka & Inui 2025, *Repetition Neurons* (arXiv 2410.13497).

    Limits: the windows see ``r`` tokens; a neuron that rises later is not found.  A rise is a correlation: what the
    neuron does is shown by :func:`mechrep.studies.deactivation_sweep`.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> texts = [[0, *range(9, 29), *[40, 41, 42, 43] * 5], [0, *range(60, 90), *[7, 8, 9] * 6]]
        >>> corpus = mechrep.Corpus.from_tokens(texts, model=model).with_cycles()
        >>> (result,) = mechrep.CorpusCache(model, corpus).run(RepetitionNeurons())
        >>> len(result.top(5)), result.delta.shape
        (5, torch.Size([4, 352]))
    """

    sites: ClassVar[frozenset[Site]] = frozenset({Site.GATE_ACT})

    def __init__(
        self, preset: str = "mechrep", *, window: Window | None = None, r: int = 30, site: Site | str = Site.GATE_ACT
    ) -> None:
        if preset not in _PRESET_WINDOWS:
            raise InputError(f"preset {preset!r}", f"one of {sorted(_PRESET_WINDOWS)}", "choose one of these")
        if window not in (None, "published", "paper_form", "clean") or not isinstance(r, int) or r < 1:
            raise InputError(
                f"window={window!r}, r={r}", "'published', 'paper_form' or 'clean', a whole r >= 1", "correct them"
            )
        if site not in (Site.GATE_ACT, Site.MLP_POST):  # a Site equals its own value
            raise InputError(f"site {str(site)!r}", "gate_act or mlp_post", "choose one of these")
        self.preset, self.r, self.site = preset, r, Site(site)
        self.window: Window = window or _PRESET_WINDOWS[preset]
        self.sites = frozenset({self.site})  # pyright: ignore[reportAttributeAccessIssue]
        self.state = {}

    @property
    def config(self) -> dict[str, Any]:
        """Preset, window, width and site."""
        return {"preset": self.preset, "window": self.window, "r": self.r, "site": self.site.value}

    def prepare(self, anatomy: Anatomy, frame: pd.DataFrame) -> None:
        """Empty sums for this model's neurons; refuses a corpus without a usable looping text."""
        usable = usable_texts(frame, self.window)
        if not usable.any():
            raise NothingFoundError(
                f"{len(frame)} texts, none with an onset and a {self.window} window before it",
                "looping texts that are longer than the window's edge",
                "mark cycles with corpus.with_cycles(), collect loops with mechrep.generation.collect_loops, or choose "
                "another window",
            )
        self._ids = dict.fromkeys(frame["id"][usable])
        self._dropped = set(frame["id"][~usable])
        shape, columns = (anatomy.n_layers, anatomy.d_mlp), 2 * self.r + 1
        names = ("normal_sum", "repetition_sum", "published_sum", "clean_sum", "normal_squares", "repetition_squares")
        self.state = {name: torch.zeros(shape, dtype=torch.float64) for name in (*names, "text_sum", "text_squares")}
        self.state["profile_sum"] = torch.zeros(anatomy.n_layers, columns, anatomy.d_mlp, dtype=torch.float64)
        self.state["profile_count"] = torch.zeros(columns, dtype=torch.float64)
        self.state["counts"] = torch.zeros(4, dtype=torch.float64)  # positions: normal, repetition, published, clean
        self.state["texts"] = torch.zeros(1, dtype=torch.float64)
        self._positions: tuple[Batch, Tensor, WindowPositions] | None = None

    def _windows(self, batch: Batch) -> tuple[Tensor, WindowPositions]:
        """Rows of the batch that count, and their positions; worked out once per batch, not once per layer."""
        if self._positions is None or self._positions[0] is not batch:
            mask = usable_texts(batch.frame, self.window)
            rows = torch.from_numpy(mask.nonzero()[0]).to(batch.tokens.device)
            facts = batch.frame.loc[mask]
            check_onsets(facts, batch.lengths[rows])
            onset, first = (
                torch.tensor(facts[column].astype(int).to_numpy(), device=rows.device) for column in ("onset", "start")
            )
            self._positions = (batch, rows, window_positions(onset, first, batch.lengths[rows], self.r, self.window))
        return self._positions[1], self._positions[2]

    def observe(self, activation: Tensor, site: Site, layer: int, batch: Batch) -> None:  # noqa: ARG002 - it has one
        """Add one layer of one batch."""
        rows, at = self._windows(batch)
        if not len(rows):
            return
        device = activation.device  # the layers of a spread model lie on several
        # [text column neuron]: only what the windows need; in float64, so that equal values have no variance (Apple's
        # GPUs have none).
        wide = torch.float32 if device.type == "mps" else torch.float64
        seen = activation[rows.to(device)[:, None], at.index.to(device)].to(wide)
        weights = torch.stack([at.normal, at.repetition, at.published, at.clean], dim=1).to(seen)
        sums = torch.bmm(weights, seen)  # [text window neuron]
        state, columns = self.state, 2 * self.r + 1
        for window, name in enumerate(("normal", "repetition", "published", "clean")):
            state[f"{name}_sum"][layer] += sums[:, window].sum(0).cpu()
        squares = (weights[:, :2].transpose(0, 1).flatten(1) @ seen.square().flatten(0, 1)).cpu()
        state["normal_squares"][layer] += squares[0]
        state["repetition_squares"][layer] += squares[1]
        counts = weights[:, :2].sum(-1)
        differences = sums[:, 1] / counts[:, 1:2] - sums[:, 0] / counts[:, 0:1]
        state["text_sum"][layer] += differences.sum(0).cpu()
        state["text_squares"][layer] += differences.square().sum(0).cpu()
        profile = torch.einsum("tc,tcn->cn", at.valid[:, :columns].to(seen), seen[:, :columns])
        state["profile_sum"][layer] += profile.cpu()

    def finish_batch(self, batch: Batch) -> None:
        """Count the texts and positions of the batch, once for all layers."""
        rows, at = self._windows(batch)
        self.state["texts"] += len(rows)
        self.state["profile_count"] += at.valid[:, : 2 * self.r + 1].sum(0).cpu().double()
        for window, weights in enumerate((at.normal, at.repetition, at.published, at.clean)):
            self.state["counts"][window] += weights.sum().cpu().double()

    def merge(self, other: Analyzer) -> None:
        """Add the state of another analyzer with the same settings, and the names of its texts."""
        super().merge(other)
        assert isinstance(other, RepetitionNeurons)
        self._ids |= other._ids
        self._dropped |= other._dropped

    def result(self, provenance: Provenance) -> RepetitionNeuronResult:
        """Means, differences, their errors and the profile round the onset."""
        return RepetitionNeuronResult.from_state(self.state, provenance, self.r, list(self._ids), len(self._dropped))

    def load_result(self, folder: Path) -> RepetitionNeuronResult:
        """Read a stored result."""
        return RepetitionNeuronResult.load(folder)
