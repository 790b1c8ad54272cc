"""Wrong kinds and bounds of every argument of every public function, made from the signatures.

What an annotation allows is read here a second time, in another way than :mod:`mechrep.guards` does.
"""

from __future__ import annotations

import inspect
import math
import types
import typing
from collections.abc import Callable, Collection, Iterator
from typing import Annotated, Any, Literal

import torch

import mechrep
from mechrep import guards, interventions, studies
from mechrep.measures.token_facts import TokenFacts
from mechrep.results import Result
from mechrep.saved import import_results
from mechrep.studies.find_sink import SinkResult
from tests.badinput.world import World

# Called by CorpusCache, by interventions and by the store, never by people.
INNER = set(
    [
        "batches",
        "columns",
        "config",
        "edits",
        "enable_compatibility_mode",
        "finish_batch",
        "frames",
        "from_state",
        "holds",
        "identity",
        "layers",
        "load_result",
        "load_state",
        "merge",
        "observe",
        "observe_rows",
        "offsets",
        "order",
        "prepare",
        "result",
        "result_type",
        "shifted",
        "standing_for",
        "uniforms",
        "where",
        "once",
        "each_alone",
        "plain_logits",
    ]
)
MADE = {"Analyzer", "Anatomy", "Combined", "Cycle", "Intervention", "Model", "Op", "RouterShiftStudy", "Site"}


def public() -> dict[str, Callable[..., Any]]:
    """Every public function, class and method of the interface, by name."""
    found: dict[str, Callable[..., Any]] = {}
    for home, prefix in ((mechrep, ""), (studies, "studies."), (interventions, "interventions.")):
        names = mechrep.__all__ if home is mechrep else [name for name in vars(home) if not name.startswith("_")]
        for name in names:
            thing = getattr(home, name)
            if inspect.ismodule(thing) or not getattr(thing, "__module__", "").startswith("mechrep"):
                continue
            if inspect.isclass(thing):
                if name not in found:
                    found[prefix + name] = thing
                    found.update(_methods(prefix + name, thing))
            elif callable(thing):
                found[prefix + name] = thing
    return {name: one for name, one in found.items() if takes_something(one) and not _made_by_mechrep(one)}


def once_each() -> dict[str, Callable[..., Any]]:
    """The same, inherited methods of one class only."""
    found: dict[Any, tuple[str, Callable[..., Any]]] = {}
    for name, one in public().items():
        found.setdefault(one if inspect.isclass(one) else inspect.unwrap(getattr(one, "__func__", one)), (name, one))
    return dict(found.values())


def results() -> list[type]:
    """Every kind of result, whose methods the catalogue may name."""
    import_results()
    found, new = [], [Result]
    while new:
        found += new
        new = [one for kind in new for one in kind.__subclasses__()]
    return [
        *found,
        mechrep.Anatomy,
        mechrep.Circuit,
        mechrep.Corpus,
        mechrep.Cycle,
        mechrep.Model,
        interventions.Combined,
    ]


def _made_by_mechrep(thing: Any) -> bool:
    """Results, and what has functions that build it."""
    if not inspect.isclass(thing):
        return False
    fields = getattr(thing, "__dataclass_fields__", {})
    return "provenance" in fields or thing.__name__ in (
        "Op",
        "Combined",
        "Intervention",
        "RouterShiftStudy",
        "Model",
        "Anatomy",
        "Cycle",
        "Site",
        "Analyzer",
    )


def _methods(name: str, kind: type) -> Iterator[tuple[str, Callable[..., Any]]]:
    for method in dir(kind):
        function = getattr(kind, method)
        if method.startswith("_") or method in INNER or not callable(function) or inspect.isclass(function):
            continue
        if (getattr(inspect.unwrap(function), "__module__", "") or "").startswith("mechrep"):
            yield f"{name}.{method}", function


def takes_something(function: Callable[..., Any]) -> bool:
    """Whether it has a parameter beside the object itself."""
    names = list(inspect.signature(function).parameters)
    return bool([name for name in names if name not in ("self", "cls")])


WRONG: dict[str, Any] = {
    "bool": True, "number": 1.5, "text": "no such thing", "whole": 3, "none": None, "bytes": b"x", "object": object(),
    "nan": math.nan, "list": [object()],
}  # fmt: skip


def _kinds(hint: Any) -> set[str]:
    """What kinds of values an annotation allows, by the names of WRONG; "open" where it cannot be told."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _kinds(inner[0])
    if origin in (typing.Union, types.UnionType):
        return set().union(*map(_kinds, inner))
    if origin is Literal:
        return set()
    plain = {int: {"whole"}, float: {"whole", "number"}, bool: {"bool"}, str: {"text"}, type(None): {"none"}}
    if hint in plain:
        return plain[hint]
    if isinstance(origin, type) and issubclass(origin, Collection) and not issubclass(origin, typing.Mapping):
        return {"list"} if inner and inner[0] is Any else set()
    if isinstance(hint, type) and hint not in (Any, object) and origin is None:
        return {"open"} if getattr(hint, "_is_protocol", False) else set()
    return {"open"}


def _beyond(hint: Any) -> list[Any]:
    """Numbers just outside the bounds of an annotation."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return [value for one in inner for value in _beyond(one)]
    if origin is not Annotated:
        return []
    found: list[Any] = []
    for bound in inner[1:]:
        if isinstance(bound, guards.Filled):
            found.append([])
        elif inner[0] is int:
            found += [bound.low - 1, bound.high + 1]
        elif inner[0] is float:
            found += [bound.low - 1.0] if bound.low > -math.inf else [bound.above]
            found += [bound.high + 1.0] if bound.high < math.inf else []
    return found


def wrong_arguments(function: Callable[..., Any]) -> Iterator[tuple[str, Any]]:
    """Parameters with a value that each must not take."""
    own = inspect.unwrap(function.__init__ if inspect.isclass(function) else function)
    hints = guards._hints(own)
    for name in inspect.signature(own).parameters:
        if name in hints and "open" not in (allowed := _kinds(hints[name])):
            for kind, value in WRONG.items():
                if kind not in allowed:
                    yield name, value
            for value in _beyond(hints[name]):
                yield name, value


# Right values of parameters that have no default, by name; of some functions others than usual.
RIGHT: dict[str, Callable[[World], Any]] = {
    "k": lambda w: 1,
    "n_loops": lambda w: 1,
    "token": lambda w: 300,
    "head": lambda w: (1, 0),
    "bos_id": lambda w: 0,
    "edges": lambda w: [(0, 25, 21)],
    "conditions": lambda w: "L2H0",
    "name": lambda w: "a",
    "units": lambda w: [(0, 1)],
    "scores": lambda w: w.heads,
    "figure": lambda w: w.heads.plot(),
    "path": lambda w: w.folder / "x",
    "i": lambda w: 0,
    "folder": lambda w: w.folder / "x",
    "ids": lambda w: [5],
    "text": lambda w: "a",
    "kind": lambda w: "heads",
    "copying": lambda w: w.copying,
    "circuits": lambda w: w.circuit,
    "ks": lambda w: [1],
    "neurons": lambda w: [(3, 1)],
    "layers": lambda w: 2,
    "width": lambda w: 4,
    "draws": lambda w: 1,
    "texts": lambda w: [w.corpus],
    "interventions": lambda w: [None],
    "window": lambda w: "normal",
    "score": lambda w: "induction",
    "patch": lambda w: mechrep.SinkPatch(0, [1]),
    "prompts": lambda w: "The sea",
    "donors": lambda w: w.corpus,
    "tokens": lambda w: [[0, 5, 6]],
    "spec": lambda w: "mechrep-tiny",
    "facts": lambda w: object.__new__(TokenFacts),
    "result": lambda w: w.neurons,
    "heads": lambda w: w.heads,
    "layer": lambda w: 0,
    "site": lambda w: mechrep.Site.Z,
    "given": lambda w: ["a"],
    "there": lambda w: [8],
    "values": lambda w: {"layer": 0, "neurons": [1]},
    "measure": lambda w: "loss",
    "lengths": lambda w: w.corpus.lengths,
    "frame": lambda w: w.corpus.frame,
    "function": lambda w: print,
    "sink": lambda w: object.__new__(SinkResult),
    "bank": lambda w: torch.zeros(1, 2, 3),
    "factor": lambda w: 2.0,
    "target": lambda w: "induction",
    "effects": lambda w: w.effects,
    "verdict": lambda w: "match",
}
OWN: dict[tuple[str, str], Callable[[World], Any]] = {
    ("detect_cycle", "tokens"): lambda w: [5, 6],
    ("Corpus", "tokens"): lambda w: w.corpus.tokens,
    ("studies.layer_profiles", "neurons"): lambda w: w.neurons,
    ("Corpus.text_of", "ids"): lambda w: [5],
}


VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def is_guarded(function: Callable[..., Any]) -> bool:
    """Whether its arguments are checked against its signature."""
    inner: Any = function.__init__ if inspect.isclass(function) else function
    while inner is not None:
        if getattr(inner, "__guarded__", False):
            return True
        inner = getattr(inner, "__wrapped__", None)
    source = inspect.getsource(function) if inspect.isclass(function) else ""
    return "check_fields(self)" in source


def call_with(w: World, name: str, function: Callable[..., Any], parameter: str, value: Any) -> Any:
    """Call it with one wrong argument, all others that it needs being right."""
    own = function.__init__ if inspect.isclass(function) else function
    given: dict[str, Any] = {}
    for one, described in inspect.signature(own).parameters.items():
        if one == parameter and described.kind is inspect.Parameter.VAR_POSITIONAL:
            return function(value)
        if one == parameter:
            given[one] = value
        elif (
            described.default is inspect.Parameter.empty
            and one not in ("self", "cls")
            and described.kind not in VARIABLE
        ):
            make = OWN.get((name, one)) or RIGHT.get(one)
            given[one] = make(w) if make else getattr(w, one)
    if "self" in inspect.signature(own).parameters and not inspect.isclass(function):
        kind, method = name.rsplit(".", 1)
        home = {"studies": studies, "interventions": interventions}.get(kind.split(".")[0], mechrep)
        return getattr(object.__new__(getattr(home, kind.split(".")[-1])), method)(**given)  # refused before it is used
    return function(**given)
