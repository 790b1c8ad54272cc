"""One progress bar for every long step: what is done, how fast, how long still."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm


def progress_bar(total: int, what: str, unit: str, shown: bool | None = None) -> Any:
    """A tqdm bar on the error stream.

    Args:
        total: how many units of work there are.
        what: the step's name, e.g. ``"generating"``.
        unit: what is counted, e.g. ``"text"``.
        shown: ``None`` shows it to people (terminals and notebooks) and not to log files.
    """
    watched = sys.stderr.isatty() or "ipykernel" in sys.modules
    hidden = not (watched if shown is None else shown)
    return tqdm(total=total, desc=what, unit=unit, disable=hidden, dynamic_ncols=True, mininterval=0.3, leave=False)
