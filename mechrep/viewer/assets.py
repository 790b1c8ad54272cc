"""Script and style of the viewer, as they stand on a page."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib import resources

_SCRIPTS = ("numbers.js", "page.js", "viewer.js")  # in the order in which they need each other


@cache
def viewer_script() -> str:
    """The script, a module without imports; it shows every view on the page that it has not shown yet."""
    lines = [line for name in _SCRIPTS for line in _asset(name).splitlines(keepends=True)]
    return "".join(line for line in lines if not line.startswith("import "))


@cache
def script_hash() -> str:
    """By which a page's policy allows this script and no other.

    Example:
        >>> script_hash().partition("-")[0]
        'sha256'
    """
    return "sha256-" + base64.b64encode(hashlib.sha256(viewer_script().encode()).digest()).decode("ascii")


@cache
def viewer_style() -> str:
    """The style of all views on a page."""
    return _asset("viewer.css")


def _asset(name: str) -> str:
    # Line ends are those of HTML, because a page may take hashes of what is read from it.
    text = resources.files("mechrep.viewer").joinpath(name).read_text(encoding="utf-8")
    return text.replace("\r\n", "\n")
