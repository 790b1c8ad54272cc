"""Figures that can be seen wherever they end up: live in a notebook, and beside it as a picture.

A plotly figure in a notebook is data for plotly's own code.  nbconvert, GitHub and a JupyterLab without that code show
nothing of it.  So a figure brings a still picture of itself along (:mod:`mechrep.pictures`), which needs no browser.
Files (:func:`save`) are drawn by kaleido, exactly as plotly shows them.
"""

from __future__ import annotations

import atexit
import functools
import html
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from mechrep.disk import write_whole
from mechrep.errors import InputError
from mechrep.pictures.figure import can_picture, picture_of

PICTURES = ("svg", "png", "pdf", "jpg", "webp")
_LIVE, _PICTURE = "application/vnd.plotly.v1+json", "image/svg+xml"
_WIDTH = 1000  # pixels; a figure that is live takes the width that there is


class Figure(go.Figure):
    """A plotly figure that says in one line what it is, and brings a picture of itself into notebooks.

    Example:
        >>> Figure(layout_title_text="Loss <b>by</b> k")
        Figure('Loss by k', 0 traces): .show() opens it; mechrep.save_figure(figure, "x.svg") keeps it
    """

    def __repr__(self) -> str:
        title = html.unescape(re.sub("<[^>]*>", "", str(self.layout["title"]["text"] or "")))
        traces = f"{len(self.data)} trace{'s' * (len(self.data) != 1)}"  # pyright: ignore[reportArgumentType]
        keep = 'mechrep.save_figure(figure, "x.svg") keeps it'
        return f"Figure({title[:80]!r}, {traces}): .show() opens it; {keep}"

    def _repr_mimebundle_(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        bundle = super()._repr_mimebundle_(*args, **kwargs)
        if _LIVE in bundle:
            bundle["text/plain"] = repr(self)
            record = json.loads(str(self.to_json()))
            if can_picture(record):
                bundle[_PICTURE] = picture_of(record, width=_WIDTH, titled=True)
        return bundle

    def _ipython_display_(self) -> None:
        bundle = self._repr_mimebundle_()
        if _LIVE not in bundle:  # opened in a browser, or however the user has set it
            super()._ipython_display_()
            return
        from IPython.display import display

        display(bundle, raw=True)


def can_draw() -> bool:
    """Whether kaleido is installed."""
    return importlib.util.find_spec("kaleido") is not None


def printed(figure: go.Figure, kind: str) -> bytes:
    """A figure as a file of a picture, drawn by plotly's own code in a browser.

    Args:
        figure: of plotly.
        kind: ``"svg"``, ``"png"``, ``"pdf"``, ...

    Raises:
        InputError: no kaleido, or no Chrome or Chromium for it.
    """
    if not can_draw():
        raise InputError(
            f"a picture ({kind}) without kaleido", "the package that draws it", "pip install 'mechrep[figures]'"
        )
    from choreographer.errors import BrowserClosedError, BrowserDepsError, BrowserFailedError, ChromeNotFoundError
    from kaleido import calc_fig_sync

    try:
        _start_drawing()
        size = {"width": figure.layout["width"] or _WIDTH, "height": figure.layout["height"] or 420}
        return calc_fig_sync(figure.to_plotly_json(), opts={"format": kind, "scale": 1 if kind == "svg" else 2, **size})
    except ChromeNotFoundError as error:
        raise InputError(
            f"a picture ({kind}) without Chrome or Chromium", "one of them", "install it, or run kaleido_get_chrome"
        ) from error
    except (BrowserClosedError, BrowserDepsError, BrowserFailedError, TimeoutError) as error:
        raise InputError(
            f"a picture ({kind}): the browser does not start ({type(error).__name__})",
            "Chrome or Chromium that kaleido can run",
            "see what mechrep doctor finds; save_figure('x.html') needs no browser",
        ) from error


@functools.cache  # a browser takes seconds to start, and 0.3 s for each figure afterwards
def _start_drawing() -> None:
    from kaleido import start_sync_server, stop_sync_server

    start_sync_server(silence_warnings=True)
    atexit.register(stop_sync_server, silence_warnings=True)


def save(figure: go.Figure, path: str | Path) -> Path:
    """See :func:`mechrep.figures.save_figure`."""
    target = Path(path)
    kind = target.suffix.lower().removeprefix(".")
    if kind not in (*PICTURES, "html", "json"):
        raise InputError(f"{target.name!r}", f"a file ending in .html, .json, .{', .'.join(PICTURES)}", "rename it")
    if not hasattr(figure, "to_html"):
        raise InputError(f"a {type(figure).__name__} in place of a figure", "a figure of plotly", "pass result.plot()")
    if kind in PICTURES:
        return write_whole(target, printed(figure, kind))
    return write_whole(target, str(figure.to_json()) if kind == "json" else figure.to_html(include_plotlyjs=True))
