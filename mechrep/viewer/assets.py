"""Script and style of the viewer, as they stand on a page."""

from __future__ import annotations

from functools import cache
from importlib import resources

_SCRIPTS = ("numbers.js", "page.js", "viewer.js")  # in the order in which they need each other


@cache
def viewer_script() -> str:
    """The script, a module without imports; it shows every view on the page that it has not shown yet."""
    lines = [line for name in _SCRIPTS for line in _asset(name).splitlines(keepends=True)]
    return "".join(line for line in lines if not line.startswith("import "))


@cache
def viewer_style() -> str:
    """The style of all views on a page."""
    return _asset("viewer.css")


def _asset(name: str) -> str:
    # Line ends are those of HTML, because a page may take hashes of what is read from it.
    text = resources.files("mechrep.viewer").joinpath(name).read_text(encoding="utf-8")
    return text.replace("\r\n", "\n")
