"""What holds for the whole package, read from its source: who imports whom."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import mechrep

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
