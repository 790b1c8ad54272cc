"""What holds for the whole package, read from its source: who imports whom, and how much a function asks."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import mechrep
from mechrep.results import Result, Shown

PACKAGE = Path(mechrep.__file__).parent
SOURCES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): ast.parse(
        path.read_text(encoding="utf-8")
    )
    for path in sorted(PACKAGE.rglob("*.py"))
}


def imported(tree: ast.AST) -> set[str]:
    """Modules of the package that a module imports, inside functions too, but not for type checkers alone."""
    found: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names if name.name in SOURCES}
        elif isinstance(node, ast.ImportFrom) and node.module in SOURCES:
            wholes = {f"{node.module}.{name.name}" for name in node.names}
            found |= wholes & set(SOURCES) or {node.module}
        else:
            found |= imported(node)
    return found


def test_no_two_modules_import_each_other() -> None:
    graph = {module: imported(tree) for module, tree in SOURCES.items()}
    assert {"mechrep.errors", "mechrep.models.model"} <= graph["mechrep.interventions.ops"]
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the modules of a cycle


def functions(tree: ast.AST, inside: str, in_class: bool = False) -> Iterator[tuple[str, int]]:
    """Name and number of parameters of every function and method, ``self`` and ``cls`` not counted."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef):
            given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            bound = in_class and bool(given) and given[0].arg in ("self", "cls")
            yield f"{inside}.{node.name}", len(given) - bound
            yield from functions(node, f"{inside}.{node.name}")
        else:
            named = f"{inside}.{node.name}" if isinstance(node, ast.ClassDef) else inside
            yield from functions(node, named, isinstance(node, ast.ClassDef))


def test_no_function_takes_more_than_eight_parameters() -> None:
    taken = dict(one for module, tree in SOURCES.items() for one in functions(tree, module))
    assert taken["mechrep.interventions.ops.Intervention.hooks"] == 4
    assert {name: count for name, count in taken.items() if count > 8} == {}


def test_every_slow_test_is_still_there() -> None:
    root = Path(__file__).parents[1]
    lines = (root / "tests" / "slow.txt").read_text(encoding="utf-8").splitlines()
    named = [line.split("::") for line in lines if line and not line.startswith("#")]
    assert len(named) > 20
    for file, what in named:
        name = what.partition("[")[0].rpartition(".")[2]
        assert (root / file).is_file() and f" {name}(" in (root / file).read_text(encoding="utf-8"), f"{file}: {name}"


def test_what_users_call_has_an_example() -> None:
    public = {f"mechrep.{name}": getattr(mechrep, name) for name in mechrep.__all__}
    public |= {f"mechrep.studies.{name}": one for name, one in vars(mechrep.studies).items() if name[0] != "_"}
    called = {name: one for name, one in public.items() if inspect.isfunction(one) or inspect.isclass(one)}
    assert len(called) > 80
    made = (Result, Shown)  # by a function that has one
    kinds = [one for one in called.values() if inspect.isfunction(one) or not issubclass(one, made)]
    assert [one.__qualname__ for one in kinds if ">>>" not in (inspect.getdoc(one) or "")] == []
