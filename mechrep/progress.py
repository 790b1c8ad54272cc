"""One progress display for every long step: what is done, of how much, how fast, how long still.

People see a bar (terminals and notebooks).  Where nobody watches, as in a log file, a step that takes long says so in a
line now and then.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 10.0


class _Lines:
    """What tqdm's bar can do, as lines: at most one every few seconds, and a last one if there was a first."""

    def __init__(self, total: int, what: str, unit: str, every: float) -> None:
        self.total, self.what, self.unit, self.every, self.n = total, what, unit, every, 0
        self.begin = self.last = time.monotonic()
        self.note, self.told = "", 0.0

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, kind: type[BaseException] | None, _error: Any, _trace: TracebackType | None) -> None:
        if kind is None and 0 < self.told < self.n:
            self._say(time.monotonic())

    def update(self, n: int = 1) -> None:
        """So much more is done."""
        self.n += n
        now = time.monotonic()
        if now - self.last >= self.every:
            self._say(now)

    def set_postfix_str(self, note: str, refresh: bool = True) -> None:  # noqa: ARG002 - as tqdm has it
        """What is being done."""
        self.note = note

    def _say(self, now: float) -> None:
        passed = now - self.begin
        left = passed * (self.total - self.n) / self.n if self.n else float("nan")
        note = f", {self.note}" if self.note else ""
        sys.stderr.write(
            f"{self.what}: {self.n:,} of {self.total:,} ({self.unit}), {self.n / max(passed, 1e-9):.3g} a second, "
            f"{passed:.0f} s passed, {left:.0f} s left{note}\n"
        )
        sys.stderr.flush()
        self.last, self.told = now, self.n


def progress_bar(
    total: int, what: str, unit: str, shown: bool | None = None, every: float = _SECONDS_BETWEEN_LINES
) -> Any:
    """A tqdm bar on the error stream, or lines where nobody watches.

    Args:
        total: how many units of work there are.
        what: the step's name, e.g. ``"generating"``.
        unit: what is counted, e.g. ``"text"``.
        shown: ``None``: a bar for people, and for log files a line every ten seconds; ``False``: nothing.
        every: seconds between lines; 0: a line for every step.
    """
    watched = sys.stderr.isatty() or "ipykernel" in sys.modules
    if shown is None and not watched:
        return _Lines(total, what, unit, every)
    hidden = not (watched if shown is None else shown)
    return tqdm(total=total, desc=what, unit=unit, disable=hidden, dynamic_ncols=True, mininterval=0.3, leave=False)
