"""``load``: whatever mechrep saved, without naming its class."""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Iterator
from os import PathLike
from pathlib import Path

from mechrep.ablation.circuit import Circuit
from mechrep.disk import tidy
from mechrep.errors import StoreError
from mechrep.guards import guarded
from mechrep.results import RECORD, Result
from mechrep.sections import Section
from mechrep.text.corpus import Corpus

_FLOORS = ("mechrep.measures", "mechrep.ablation", "mechrep.generation", "mechrep.studies")


@guarded
def load(path: str | PathLike[str]) -> Result | Corpus | Circuit | Section:
    """Read anything that a ``save`` of mechrep wrote: a result, a corpus, a circuit, a section of a report.

    Args:
        path: the folder of a result or of a section, the ``.parquet`` of a corpus, the ``.json`` of a circuit.

    Raises:
        StoreError: nothing there, something else, or damaged.

    Example:
        >>> import tempfile, mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> sinks = mechrep.attention_sinks(model, ["It was the best of times"])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sinks.save(folder + "/sinks")
        ...     mechrep.load(folder + "/sinks").top(1) == sinks.top(1)
        True
    """
    where = Path(path)
    if not where.exists():
        tidy(where.parent, where.name)  # a program may have been killed between two moves
    if (where / RECORD).is_file():
        return _class_of(where).load(where)
    if (where / "section.json").is_file():
        return Section.load(where)
    if where.suffix == ".parquet" and where.is_file():
        return Corpus.load(where)
    if where.suffix == ".json" and where.is_file():
        return Circuit.load(where)
    remedy = "check the path"
    if (where / "config.json").is_file():
        remedy = "use mechrep.load_model for a model"
    elif where.is_dir():
        inside = sorted(
            str(one.parent.relative_to(where)) for depth in ("*", "*/*") for one in where.glob(f"{depth}/result.json")
        )
        remedy = f"it holds {', '.join(inside[:5])}: name one of these" if inside else remedy
    given = f"{where}, {'which holds nothing of the kind' if where.exists() else 'which does not exist'}"
    raise StoreError(given, "what a save() wrote: a folder, a .parquet or a .json file", remedy)


def _class_of(folder: Path) -> type[Result]:
    """The class of a saved result.

    Raises:
        StoreError: damaged, or a class that nobody has defined.
    """
    try:
        kind = json.loads((folder / RECORD).read_text(encoding="utf-8"))["kind"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise StoreError(f"{folder} ({error})", "a folder written by save()", "make the result again") from error
    known = {one.__name__: one for one in _subclasses(Result)}
    if kind not in known:
        import_results()
        known = {one.__name__: one for one in _subclasses(Result)}
    if kind not in known:
        raise StoreError(f"a {kind} in {folder}", "a result of mechrep", "import the module that defines this class")
    return known[kind]


def import_results() -> None:
    """Import every module that may define a result."""
    for floor in _FLOORS:
        package = importlib.import_module(floor)
        for module in pkgutil.iter_modules(package.__path__, floor + "."):
            importlib.import_module(module.name)


def _subclasses(base: type[Result]) -> Iterator[type[Result]]:
    for one in base.__subclasses__():
        yield one
        yield from _subclasses(one)
