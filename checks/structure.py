"""Check the structure of `src/kinema`: module and class names are unique, and no modules import each other in a cycle.

Run by `make check`. Imports under `if TYPE_CHECKING` are left out: they never run. Imports inside functions count.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCE = Path(__file__).parent.parent / "src"
# Every package has these.
COMMON = {"__init__", "__main__"}


def main(source: Path = SOURCE) -> int:
    """Print every fault found; return 1 if there is one, else 0."""
    trees = {module_name(path, source): ast.parse(path.read_text("utf-8")) for path in sorted(source.rglob("*.py"))}
    faults = [*same_names(trees), *cycles(trees)]
    for fault in faults:
        print(fault)
    return 1 if faults else 0


def module_name(path: Path, source: Path) -> str:
    """Return the dotted name of a module; a package's is that of its `__init__`."""
    return ".".join(path.relative_to(source).with_suffix("").parts).removesuffix(".__init__")


def same_names(trees: dict[str, ast.Module]) -> Iterator[str]:
    """Yield a line for each name that two modules, or two classes at the top of a module, share."""
    modules, classes = defaultdict(list), defaultdict(list)
    for module, tree in trees.items():
        if (name := module.rpartition(".")[2]) not in COMMON:
            modules[name].append(module)
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                classes[node.name].append(module)
    for kind, places in (("module", modules), ("class", classes)):
        for name, where in places.items():
            if len(where) > 1:
                yield f"two of one name: {kind} {name} in {' and '.join(where)}"


def cycles(trees: dict[str, ast.Module]) -> Iterator[str]:
    """Yield a line for a cycle of imports, if there is one."""
    graph = {module: set(imported(tree, trees)) - {module} for module, tree in trees.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        yield f"import cycle: {' <- '.join(error.args[1])}"


def imported(tree: ast.Module, known: dict[str, ast.Module]) -> Iterator[str]:
    """Yield the modules of Kinema that a module imports at run time."""
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting.extend(node.orelse)
            continue
        waiting.extend(ast.iter_child_nodes(node))
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module in known:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            submodules = [name for name in names if name in known]
            yield from submodules
            if len(submodules) < len(names):  # something of the package itself
                yield node.module


if __name__ == "__main__":
    sys.exit(main())
