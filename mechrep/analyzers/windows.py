"""Which positions of a looping text count as normal and which as repetition.

``s`` is the onset (start of the second copy), ``first`` the start of the first copy, ``r`` the width.

=============  ====================  ======================  =============================================
window         normal                repetition              note
=============  ====================  ======================  =============================================
published      [s-1-r, s-1)          [s-1, s-1+r)            released code: from the position predicting s
paper_form     [s-r, s)              [s, s+r)                as printed
clean          [first-r, first)      [s-1, s-1+r)            before the *first* copy
=============  ====================  ======================  =============================================

The published normal window usually holds the first copy of the loop itself; the clean one never does.  Windows are
clipped at the ends of the text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechrep.errors import InputError

Window = Literal["published", "paper_form", "clean"]


@dataclass(frozen=True)
class WindowPositions:
    """Positions of a batch that are looked at, and what each counts for.

    Columns are first ``2 r + 1`` offsets from ``s - 1`` (``-r .. r``), then the ``r`` positions before ``first``.

    Attributes:
        index: positions ``[text column]``, clamped into the text.
        valid: whether the position exists in the text.
        normal: weight 1 where the column belongs to the normal window of the text.
        repetition: the same for the repetition window.
        published: the same for the published normal window.
        clean: the same for the clean normal window.
    """

    index: Int[Tensor, "text column"]
    valid: Bool[Tensor, "text column"]
    normal: Float[Tensor, "text column"]
    repetition: Float[Tensor, "text column"]
    published: Float[Tensor, "text column"]
    clean: Float[Tensor, "text column"]


def window_positions(
    onset: Int[Tensor, " text"], first: Int[Tensor, " text"], lengths: Int[Tensor, " text"], r: int, window: Window
) -> WindowPositions:
    """Positions and weights of a batch; see the table at the top of this module.

    Example:
        >>> onset, first, length = torch.tensor([5]), torch.tensor([2]), torch.tensor([9])
        >>> positions = window_positions(onset, first, length, 2, "published")
        >>> positions.index[0][positions.normal[0] > 0].tolist()
        [2, 3]
        >>> positions.index[0][positions.repetition[0] > 0].tolist()
        [4, 5]
    """
    offsets = torch.arange(-r, r + 1, device=onset.device)
    before_first = torch.arange(-r, 0, device=onset.device)
    index = torch.cat([(onset - 1)[:, None] + offsets, first[:, None] + before_first], dim=1)
    valid = (index >= 0) & (index < lengths[:, None])
    from_onset = torch.cat([offsets, torch.full_like(before_first, 2 * r)])  # 2 r: in no window counted from s - 1
    is_clean = torch.cat([torch.zeros_like(offsets), torch.ones_like(before_first)]).bool()
    shift = 1 if window == "paper_form" else 0
    repetition = (from_onset >= shift) & (from_onset < r + shift)
    published = (from_onset >= -r) & (from_onset < 0)
    normal = is_clean if window == "clean" else (from_onset >= shift - r) & (from_onset < shift)
    weights = [(valid & columns[None]).float() for columns in (normal, repetition, published, is_clean)]
    return WindowPositions(index.clamp(min=0).minimum(lengths[:, None] - 1), valid, *weights)


def check_onsets(frame: pd.DataFrame, lengths: Int[Tensor, " text"]) -> None:
    """Refuse loops that do not lie in their texts; the facts may come from the user.

    Raises:
        InputError: naming the first text without ``0 <= start < onset < length``.
    """
    facts = zip(frame["id"], frame["start"], frame["onset"], lengths.tolist(), strict=True)
    for name, first, onset, length in facts:
        if not 0 <= first < onset < length:
            raise InputError(
                f"text {name!r} of {length} tokens with a loop from {first} and onset {onset}",
                "0 <= start < onset < length",
                "mark cycles with corpus.with_cycles()",
            )


def usable_texts(frame: pd.DataFrame, window: Window) -> np.ndarray:
    """Texts with an onset and at least one position in their normal window, as a boolean mask.

    A text that begins with its loop (``first = 0``) has no clean window; one whose onset is at position 1 or earlier
    has no published one.
    """
    if "onset" not in frame or "start" not in frame:
        return np.zeros(len(frame), dtype=bool)
    onset = frame["onset"].astype("Float64").fillna(-1).to_numpy(dtype=float)
    first = frame["start"].astype("Float64").fillna(-1).to_numpy(dtype=float)
    begins = first if window == "clean" else onset - (0 if window == "paper_form" else 1)
    return (onset >= 1) & (first >= 0) & (begins >= 1)
