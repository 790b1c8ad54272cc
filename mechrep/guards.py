"""What is passed to the public functions, checked against their own signatures before any work.

An annotation says once what an argument must be, for people, type checkers and :func:`guarded`: ``int``, ``Count``
(from 1 on), ``Share`` (0 to 1), ``Literal["query", "key"]``, ``Model``.  NumPy's own numbers arrive as Python's.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import math
import numbers
import operator
import sys
import types
import typing
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from mechrep.errors import InputError

F = TypeVar("F", bound=Callable)
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Between:
    """Bounds of a number, both allowed; ``above`` is a lower bound that is not."""

    low: int | float = -math.inf
    high: int | float = math.inf
    above: int | float = -math.inf

    def holds(self, value: int | float) -> bool:
        """Whether a number lies within."""
        return self.low <= value <= self.high and value > self.above

    def words(self) -> str:
        """The bounds, as a message says them."""
        if self.above > -math.inf:
            return f"above {self.above:g}" + (f" and at most {self.high:g}" if self.high < math.inf else "")
        if self.high >= _MOST:
            return f"from {self.low:g} on" + ", below 2**31" * (self.high == _MOST)
        return f"from {self.low:g} to {self.high:g}"


@dataclasses.dataclass(frozen=True)
class Filled:
    """At least one element."""

    def holds(self, value: Collection[Any]) -> bool:
        """Whether there is one."""
        return len(value) > 0

    def words(self) -> str:
        """The same in a message."""
        return "and there is at least one"


_MOST = 2**31 - 1  # of anything that is counted; beyond it numbers overflow in the libraries below
Count = Annotated[int, Between(1, _MOST)]
Several = Annotated[int, Between(2, _MOST)]
Whole = Annotated[int, Between(0, _MOST)]
Some = Annotated[Sequence[T], Filled()]  # Some[Count]: numbers, at least one
Seed = Annotated[int, Between(0, 2**63 - 1)]
Share = Annotated[float, Between(0, 1)]
NotNegative = Annotated[float, Between(0)]
Positive = Annotated[float, Between(above=0)]

_TO_DO = {
    "Model": "load it with mechrep.load_model(name, a folder or a Hugging Face module)",
    "Corpus": "make it with mechrep.Corpus.from_texts(texts, model=model)",
    "Run": "pass for instance mechrep.Run(effort='quick')",
}


def guarded(function: F) -> F:
    """Check the arguments of every call against the annotations, and refuse what does not fit.

    Checked are numbers (whole or not, their bounds, NaN), truth values, texts, paths, choices, classes, and sequences
    of these; an iterator becomes a tuple, so that it can be read twice.  Everything else is left to the function.

    Raises:
        InputError: when called, naming the argument.

    Example:
        >>> @guarded
        ... def first(k: Count, side: Literal["left", "right"] = "left") -> int:
        ...     return k
        >>> first(-1)
        Traceback (most recent call last):
        mechrep.errors.InputError: given: k=-1; expected: a whole number from 1 on, below 2**31; to do: correct it
    """
    own = inspect.unwrap(function)
    signature = inspect.signature(own)

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:  # Python's own message, which names the function
            return function(*args, **kwargs)
        hints = _hints(own)
        for name, value in bound.arguments.items():
            if name in hints and signature.parameters[name].kind is inspect.Parameter.VAR_POSITIONAL:
                bound.arguments[name] = tuple(_fitting(name, one, hints[name]) for one in value)
            elif name in hints and signature.parameters[name].kind is not inspect.Parameter.VAR_KEYWORD:
                bound.arguments[name] = _fitting(name, value, hints[name], (signature.parameters[name].default,))
        return function(*bound.args, **bound.kwargs)

    checked.__guarded__ = True  # pyright: ignore[reportAttributeAccessIssue] - tests ask for it
    return checked  # pyright: ignore[reportReturnType]


def check_fields(one: Any) -> None:
    """The same for the fields of a dataclass: called first in ``__post_init__``.

    Raises:
        InputError: naming the field.
    """
    hints = _hints(type(one).__init__)
    for field in dataclasses.fields(one):
        if field.name in hints:
            value = getattr(one, field.name)
            fitting = _fitting(field.name, value, hints[field.name], (field.default,))
            if fitting is not value:
                object.__setattr__(one, field.name, fitting)


@functools.cache
def _hints(function: Callable) -> dict[str, Any]:
    """Annotations of the parameters; what only type checkers can resolve is left out."""
    own, hints = inspect.unwrap(function), {}
    for name, hint in own.__annotations__.items():
        known = dict(own.__globals__)
        while isinstance(hint, str):
            try:
                hint = eval(hint, known)  # as Python itself would read it
            except NameError as missing:  # imported for type checkers alone
                if missing.name in known or (found := _loaded(str(missing.name))) is None:
                    break
                known[str(missing.name)] = found
            except (AttributeError, TypeError):
                break
        if not isinstance(hint, str):
            hints[name] = hint
    hints.pop("return", None)
    return hints


def _loaded(name: str) -> type | None:
    """A class of mechrep by its name: what is passed can only be one of it if its module is there."""
    homes = [module for key, module in sys.modules.items() if key.startswith("mechrep.")]
    found = (vars(module).get(name) for module in homes)
    return next((one for one in found if isinstance(one, type) and one.__module__.startswith("mechrep.")), None)


def _fitting(name: str, value: Any, hint: Any, defaults: tuple[Any, ...] = ()) -> Any:
    """The value as the annotation has it.

    Raises:
        InputError: it does not fit.
    """
    if any(value is default for default in defaults):
        return value
    fits, made = _fit(value, hint)
    if fits:
        return made
    expected, shown = _in_words(hint), repr(value)
    kind = "" if isinstance(value, (bool, int, float, str, type(None))) else f", a {type(value).__name__}"
    given = f"{name}={shown[:60]}{'...' * (len(shown) > 60)}{kind}"
    raise InputError(given, expected, _remedy(value, hint))


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is what an annotation allows.

    Example:
        >>> fits(3, int | None), fits(True, int | None)
        (True, False)
    """
    return _fit(value, hint)[0]


def _fit(value: Any, hint: Any) -> tuple[bool, Any]:
    """Whether a value fits an annotation, and the value as plain Python has it."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        fits, made = _fit(value, inner[0])
        return fits and all(one.holds(made) for one in inner[1:]), made
    if origin in (typing.Union, types.UnionType):
        return next((found for found in (_fit(value, one) for one in inner) if found[0]), (False, value))
    if origin is Literal:
        return any(type(one) is type(value) and one == value for one in inner), value
    if hint in _PLAIN:
        return _PLAIN[hint](value)
    if isinstance(origin, type) and origin is not type:
        return _fit_many(value, origin, inner)
    return hint is Any or not isinstance(hint, type) or _is_one(value, hint), value


def _is_one(value: Any, kind: type) -> bool:
    """Whether a value is of a class; of tensors, also whether axes and kinds of numbers agree."""
    if kind.__module__.startswith("jaxtyping"):
        from jaxtyping import jaxtyped

        with jaxtyped("context"):  # sizes of axes are compared within one argument, not with those of callers
            return isinstance(value, kind)
    try:
        return isinstance(value, kind)
    except TypeError:  # a protocol that cannot be asked; nothing plain is one
        return not isinstance(value, _NOTHING_MORE)


def _fit_many(value: Any, origin: type, inner: tuple[Any, ...]) -> tuple[bool, Any]:
    """The same for sequences and other collections, and their elements; what is merely iterable is the function's."""
    if origin in (Iterable, Callable) or not issubclass(origin, Collection) or issubclass(origin, Mapping):
        return origin is Iterable or isinstance(value, origin), value
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable) or getattr(value, "ndim", 1) != 1:
        return False, value
    if not isinstance(value, Collection):  # an iterator, which can be read once only
        value = tuple(value)
    kinds = [inner[0]] * len(value) if origin is not tuple or inner[1:] == (Ellipsis,) else list(inner)
    if len(kinds) != len(value):
        return False, value
    if set(map(type, value)) <= {inner[0]} & {int, str, bool}:
        return True, value
    found = [_fit(one, kind) for one, kind in zip(value, kinds, strict=True)]
    if not all(fits for fits, _ in found):
        return False, value
    if all(made is one for (_, made), one in zip(found, value, strict=True)):
        return True, value
    return True, (tuple if isinstance(value, tuple) else list)(made for _, made in found)


def _whole(value: Any) -> tuple[bool, Any]:
    try:
        return (False, value) if type(value).__name__ in ("bool", "bool_") else (True, operator.index(value))
    except TypeError:
        return False, value


def _number(value: Any) -> tuple[bool, Any]:
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return False, value
    try:
        return math.isfinite(value), float(value)
    except OverflowError:  # a whole number that no float holds
        return False, value


def _truth(value: Any) -> tuple[bool, Any]:
    plain = type(value).__name__ in ("bool", "bool_") and getattr(value, "ndim", 0) == 0
    return plain, bool(value) if plain else value


_PLAIN: dict[Any, Callable[[Any], tuple[bool, Any]]] = {
    int: _whole,
    float: _number,
    bool: _truth,
    str: lambda value: (isinstance(value, str), value),
    None: lambda value: (value is None, value),
    type(None): lambda value: (value is None, value),
}  # fmt: skip
_NOTHING_MORE = (bool, int, float, str, bytes, list, tuple, dict, set, type(None))
_WORDS = {int: "a whole number", float: "a number", bool: "True or False", str: "a text", Path: "a path"}


def _in_words(hint: Any) -> str:
    """What an annotation expects, as a message says it."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return " ".join([_in_words(inner[0]), *filter(None, (one.words() for one in inner[1:]))])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_in_words(one) for one in inner if one is not type(None)))
    if origin is Literal:
        return "one of " + ", ".join(map(str, inner))
    if origin is not None and inner and issubclass(origin, Iterable) and not issubclass(origin, Mapping):
        return "a list of which each is " + _in_words(inner[0])
    return _WORDS.get(hint, f"a {getattr(hint, '__name__', str(hint))}")


def _remedy(value: Any, hint: Any) -> str:
    """What to do: the nearest choice where it is one of a few, how it is made where it is a thing of mechrep's."""
    kinds = [hint, *typing.get_args(hint)]
    choices = [one for kind in kinds if typing.get_origin(kind) is Literal for one in typing.get_args(kind)]
    if choices:
        return nearest(value, choices)
    return next((_TO_DO[name] for kind in kinds if (name := getattr(kind, "__name__", "")) in _TO_DO), "correct it")


def nearest(given: Any, allowed: Iterable[Any]) -> str:
    """What to do about a name that is not there: the one that is meant, if one is near.

    Example:
        >>> nearest("quik", ["quick", "standard"]), nearest("loud", ["quick", "standard"])
        ("did you mean 'quick'?", 'choose one')
    """
    near = difflib.get_close_matches(str(given), [str(one) for one in allowed], n=1)
    return f"did you mean {near[0]!r}?" if near else "choose one"


def one_of(name: str, given: Any, allowed: Iterable[Any]) -> None:
    """Refuse what is not among the allowed values.

    Raises:
        InputError: with the nearest.
    """
    choices = list(allowed)
    if not any(one is given or (type(one) is type(given) and one == given) for one in choices):
        expected = f"one of {', '.join(map(str, choices))}" if choices else "none: there is nothing to choose from"
        raise InputError(f"{name}={given!r}", expected, nearest(given, choices) if choices else "leave it out")


def some_of(name: str, given: Iterable[Any], allowed: Iterable[Any]) -> None:
    """Refuse a list that is empty, names something twice, or something that is not among the allowed values.

    Raises:
        InputError: with the nearest of the first that is not there.
    """
    chosen, choices = list(given), list(allowed)
    unknown = [one for one in chosen if one not in choices]
    twice = [one for one, count in Counter(chosen).items() if count > 1]
    if unknown or twice or not chosen:
        remedy = f"leave out the second {twice[0]!r}" if twice else "name some"
        expected = f"some of {', '.join(map(str, choices))}, each once"
        raise InputError(f"{name}={chosen}", expected, nearest(unknown[0], choices) if unknown else remedy)


def each_once(name: str, given: Iterable[T], *, least: int = 1, remedy: str = "") -> list[T]:
    """Refuse a list that names something twice, or holds too little.

    Raises:
        InputError: with what stands there twice.

    Example:
        >>> each_once("layers", [3, 1, 3])
        Traceback (most recent call last):
        mechrep.errors.InputError: given: layers [3, 1, 3] with 3 twice; expected: at least one, each once; \
to do: leave out the second
    """
    chosen = list(given)
    twice = [one for one, count in Counter(chosen).items() if count > 1]
    if twice or len(chosen) < least:
        shown = f"[{', '.join(map(repr, chosen[:5]))}{', ...' * (len(chosen) > 5)}]"
        what = f" with {twice[0]!r} twice" if twice else ""
        expected = f"at least {'one' if least == 1 else least}, each once" if least else "each once"
        raise InputError(
            f"{name} {shown}{what}", expected, remedy or ("leave out the second" if twice else "name some")
        )
    return chosen


def in_step(name: str, given: int, texts: int) -> None:
    """Refuse another number of something than there are texts.

    Raises:
        InputError: with both numbers.
    """
    if given != texts:
        raise InputError(f"{given} {name} for {texts} texts", "one per text", "give one for each text")


def whole(value: Any) -> int:
    """``operator.index``, for which True is no number.

    Raises:
        TypeError: no whole number.
    """
    fits, number = _whole(value)
    if not fits:
        raise TypeError(f"{value!r} is no whole number")
    return number


def check_count(k: Any, available: int, what: str) -> int:
    """Refuse to choose more units than there are.

    Raises:
        InputError: ``k`` no whole number, negative, or larger than ``available``.
    """
    fits, number = _whole(k)
    if not fits or not 0 <= number <= available:
        raise InputError(f"k = {k!r}", f"0 to {available} {what}", "ask for fewer")
    return number


def within(name: str, given: Any, low: int, high: int, what: str = "a whole number") -> int:
    """A number of something that is counted from ``low`` to ``high``: a layer, a position, a text.

    Raises:
        InputError: it is none of them.

    Example:
        >>> within("layer", 7, 0, 5, "a layer")
        Traceback (most recent call last):
        mechrep.errors.InputError: given: layer 7; expected: a layer from 0 to 5; to do: correct it
    """
    fits, number = _whole(given)
    if not fits or not low <= number <= high:
        raise InputError(f"{name} {given!r}", f"{what} from {low} to {high}", "correct it")
    return number
