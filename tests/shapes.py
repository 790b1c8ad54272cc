"""What checks types and shapes in the tests: jaxtyping and beartype, where it costs little.

Checked are the first calls of every function in every file of tests; ``make test-full`` checks every call
(``MECHREP_CHECKED_CALLS=all``).  Not checked are functions made inside of others: jaxtyping compiles their checks anew
each time that the outer one runs.  Both together took half of the time of the fast tests.

pytest hands ``checked`` to jaxtyping in place of beartype (``pyproject.toml``).
"""

from __future__ import annotations

import ast
import functools
import inspect
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from beartype import beartype
from jaxtyping import _import_hook

CALLS = os.environ.get("MECHREP_CHECKED_CALLS", "20")

_decorated = _import_hook.JaxtypingTransformer.visit_FunctionDef
_seen: Counter[tuple[str, str]] = Counter()
_silent: list[Any] = []


def _unless_inside(self: Any, node: ast.FunctionDef) -> ast.FunctionDef:
    inside = any(isinstance(parent, ast.FunctionDef) for parent in self._parents)
    return node if inside else _decorated(self, node)


_import_hook.JaxtypingTransformer.visit_FunctionDef = _unless_inside


def checked(function: Callable) -> Callable:
    """Beartype's check of a function, which ends after some calls."""
    check = beartype(function)
    if CALLS == "all":
        return check
    name, most = (function.__module__, function.__qualname__), 2 * int(CALLS)  # arguments, and then the result too

    @functools.wraps(check)
    def counted(*args: Any, **kwargs: Any) -> Any:
        _seen[name] += 1
        if _seen[name] == most:
            _silent.extend(_silenced(*name))
        return check(*args, **kwargs)

    return counted


def begin_again() -> None:
    """Check the next calls of every function again."""
    _seen.clear()
    for function in _silent:
        del function.__no_type_check__
    _silent.clear()


def _silenced(module: str, name: str) -> Iterator[Any]:
    """Tell jaxtyping's wrapper of a function to call it as it is."""
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = inspect.getattr_static(found, part, None)
    for inner in ("fget", "func", "__func__"):
        found = getattr(found, inner, found)
    found = inspect.unwrap(found) if callable(found) else None
    if inspect.isfunction(found):
        found.__no_type_check__ = True  # pyright: ignore[reportFunctionMemberAccess]
        yield found
