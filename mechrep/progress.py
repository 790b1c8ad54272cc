"""One progress display for every long step: what is done, of how much, how fast, how long still.

People see a bar, in terminals and in notebooks, which goes when the step is done.  Where nobody watches, as in a log
file, a step that takes long says so in a line now and then.  Continuous integration (``CI`` is set) gets nothing.
"""

from __future__ import annotations

import html
import os
import sys
import time
from types import TracebackType
from typing import Any

from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 10.0
_SECONDS_BETWEEN_BARS = 0.5


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

    def _line(self, now: float) -> str:
        passed = now - self.begin
        left = f", {passed * (self.total - self.n) / self.n:.0f} s left" if self.n else ""
        note = f", {self.note}" if self.note else ""
        return (
            f"{self.what}: {self.n:,} of {self.total:,} ({self.unit}), {self.n / max(passed, 1e-9):.3g} a second, "
            f"{passed:.0f} s passed{left}{note}"
        )

    def _say(self, now: float) -> None:
        sys.stderr.write(self._line(now) + "\n")
        sys.stderr.flush()
        self.last, self.told = now, self.n


class _InNotebook(_Lines):
    """A bar made of plain HTML: it needs no widgets, and leaves nothing behind."""

    def __init__(self, total: int, what: str, unit: str) -> None:
        super().__init__(total, what, unit, _SECONDS_BETWEEN_BARS)
        self._shown: Any = None

    def __exit__(self, kind: type[BaseException] | None, _error: Any, _trace: TracebackType | None) -> None:
        if self._shown is not None:
            self._shown.update(_html(""))

    def _say(self, now: float) -> None:
        from IPython.display import display

        line = html.escape(self._line(now))
        bar = _html(f'<progress value="{self.n}" max="{max(self.total, 1)}"></progress> <small>{line}</small>')
        if self._shown is None:
            self._shown = display(bar, display_id=True)
        else:
            self._shown.update(bar)
        self.last, self.told = now, self.n


def _has_kernel() -> bool:
    """Whether this runs in the kernel of a notebook, and has not only imported what one is made of."""
    if "ipykernel" not in sys.modules:
        return False
    import IPython

    return getattr(IPython.get_ipython(), "kernel", None) is not None


def _html(text: str) -> Any:
    from IPython.display import HTML

    return HTML(text)


def progress_bar(
    total: int, what: str, unit: str, shown: bool | None = None, every: float = _SECONDS_BETWEEN_LINES
) -> Any:
    """A tqdm bar on the error stream, or lines where nobody watches.

    Args:
        total: how many units of work there are.
        what: the step's name, e.g. ``"generating"``.
        unit: what is counted, e.g. ``"text"``.
        shown: ``None``: a bar for people, and for log files a line every ten seconds, and nothing where ``CI`` is set;
            ``True``: a bar; ``False``: nothing.
        every: seconds between lines; 0: a line for every step.
    """
    notebook = _has_kernel()
    watched = notebook or sys.stderr.isatty()
    if shown is None and not watched and not os.environ.get("CI"):
        return _Lines(total, what, unit, every)
    hidden = not (watched if shown is None else shown)
    if notebook and not hidden:
        return _InNotebook(total, what, unit)
    return tqdm(total=total, desc=what, unit=unit, disable=hidden, dynamic_ncols=True, mininterval=0.3, leave=False)
