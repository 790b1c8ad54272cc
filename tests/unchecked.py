"""Calls as users make them: without the checker of shapes that the tests run under."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import jaxtyping


def as_users_call(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with that checker off while it runs."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with patch.object(jaxtyping.config, "jaxtyping_disable", True):
            return function(*args, **kwargs)

    return call
