"""Making TransformerLens' hooks say what they do: names that exist, edits that take effect.

Two traps of TransformerLens 4 are closed here.  A list of names drops a name that does not exist without a word;
and on a ``TransformerBridge`` a tensor *returned* by a hook at ``hook_resid_mid`` reaches the MLP only, while the
residual stream keeps the old value (``HookedTransformer`` changed both).
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from mechrep.errors import InputError
from mechrep.models.anatomy import RESIDUAL_MID_SUFFIX


def check_name(name: str, known: set[str]) -> None:
    """Refuse a hook name that does not exist, and say which ones are close."""
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3) or sorted(known)[:3]
        raise InputError(f"hook name {name!r}", "a hook of this model", f"did you mean {', '.join(near)}?")


def check_filter(names_filter: Any, known: set[str]) -> None:
    """Check every name of a ``names_filter``; callables and ``None`` pass."""
    if isinstance(names_filter, str):
        check_name(names_filter, known)
    elif isinstance(names_filter, (list, tuple, set, frozenset)):
        for name in names_filter:
            check_name(name, known)


def honest_hooks(
    hooks: Sequence[tuple[Any, Callable]], known: set[str], *, in_place: bool
) -> list[tuple[Any, Callable]]:
    """The same hooks with checked names and, on a bridge, edits at ``hook_resid_mid`` that reach the stream.

    Raises:
        InputError: an unknown name, or a callable that selects ``hook_resid_mid`` on a bridge.
    """
    checked: list[tuple[Any, Callable]] = []
    for name, hook in hooks:
        if isinstance(name, str):
            check_name(name, known)
            hook = _writes_back(hook) if in_place and name.endswith(RESIDUAL_MID_SUFFIX) else hook
        elif in_place and any(name(known_name) for known_name in known if known_name.endswith(RESIDUAL_MID_SUFFIX)):
            raise InputError(
                "a function that selects hook_resid_mid",
                "explicit names there: TransformerLens would apply a returned edit to the MLP's input only",
                "pass (name, hook) pairs, one per layer",
            )
        checked.append((name, hook))
    return checked


def _writes_back(hook: Callable) -> Callable:
    """Copy what the hook returns into the tensor it was given, which is the residual stream itself."""

    @functools.wraps(hook)
    def wrapped(activation: Tensor, hook_point: Any = None, **kwargs: Any) -> None:
        returned = hook(activation, hook=kwargs.get("hook", hook_point))
        if returned is not None:
            activation.copy_(returned)

    return wrapped
