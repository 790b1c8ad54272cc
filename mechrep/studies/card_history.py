"""A model's card over its training: when does each phenomenon appear?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mechrep.models.load import load_model
from mechrep.progress import progress_bar
from mechrep.studies.card import measure_card

HALF = 0.5  # of the way from the untrained model to the largest value: "has appeared"


def card_history(
    name: str,
    revisions: Sequence[str],
    *,
    prompts: int = 128,
    sink_layer: int | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> pd.DataFrame:
    """Measure the card at every revision, one model in memory at a time.

    Args:
        name: a model with revisions, ``"mechrep-tiny"`` or a hub name.
        revisions: in the order of training.
        prompts: sampled prompts for the share that loops.
        sink_layer: see :func:`~mechrep.studies.card.measure_card`.
        seed: of prompts, random repeats and draws.
        progress: show a progress bar.

    Returns:
        One row per revision and measure, with the columns of :meth:`CardResult.to_frame` and ``revision``.

    Example:
        >>> frame = card_history("mechrep-tiny", ["step0"], prompts=8)
        >>> set(frame["revision"])
        {'step0'}
    """
    frames = []
    with progress_bar(len(revisions), "measuring checkpoints", "checkpoint", progress) as bar:
        for revision in revisions:
            card = measure_card(load_model(name, revision=revision), prompts=prompts, sink_layer=sink_layer, seed=seed)
            frames.append(card.to_frame().assign(revision=revision))
            bar.update(1)
    return pd.concat(frames, ignore_index=True)


def appearances(history: pd.DataFrame) -> pd.DataFrame:
    """For each measure the revision at which it first is half-way from its first value to its largest.

    Args:
        history: as :func:`card_history` gives it, revisions in order.

    Returns:
        One row per measure: ``first`` and ``largest`` value and the ``revision``; a measure that never rises has none.

    Example:
        >>> rows = [("a", "step0", 0.0), ("a", "step8", 0.4), ("a", "step16", 0.9), ("a", "step32", 1.0)]
        >>> history = pd.DataFrame(rows, columns=["measure", "revision", "value"])
        >>> appearances(history)["revision"].tolist()
        ['step16']
    """
    rows = []
    for measure, part in history.groupby("measure", sort=False):
        values = part["value"].to_numpy(dtype=float)
        first, largest = float(values[0]), float(np.nanmax(values)) if not np.isnan(values).all() else float("nan")
        start = 0.0 if np.isnan(first) else first
        reached = values >= start + HALF * (largest - start)
        rises = largest > start and reached.any()
        revision = part["revision"].iloc[int(reached.argmax())] if rises else None
        rows.append({"measure": measure, "first": first, "largest": largest, "revision": revision})
    return pd.DataFrame(rows)
