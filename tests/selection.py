"""Which files of unit tests concern a change, or a library.

    python -m tests.selection changed           those for what differs from the branch `main`
    python -m tests.selection using LIBRARY…    those of the modules that import one of them

A test module is taken to test each module of the product that it imports, itself or by way of other
modules of `tests`, the conftest.py files above it among them. Imports inside the product are not
followed: nearly all of it is reached from nearly everywhere.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable, Set
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Final

PRODUCT: Final = ("protocol", "relay_server", "relay_agent")
FOLDERS: Final = (*PRODUCT, "tests", "deploy", "docs", "benchmarks")
UNIT: Final = "tests/unit"
# What is there is about the tree as a whole: contracts, documents, packages. It costs seconds.
ALWAYS: Final = (UNIT, f"{UNIT}/deploy")
# On these all tests depend.
ROOTS: Final = frozenset({"pyproject.toml", "constraints.txt", "tests/conftest.py"})


class Tree:
    """The Python files below `root`, and which of them import which. Paths are relative to it."""

    def __init__(self, root: Path) -> None:
        self._root = root
        files = (file for folder in FOLDERS for file in (root / folder).rglob("*.py"))
        self._files = {_module(file.relative_to(root)): file for file in files}

    def path(self, module: str) -> str:
        return self._files[module].relative_to(self._root).as_posix()

    @cached_property
    def imports(self) -> dict[str, frozenset[str]]:
        """What each module imports, at its top, in a function, or by a name in a table of commands;
        absolute names."""
        return {module: frozenset(self._imports_of(module)) for module in self._files}

    def _imports_of(self, module: str) -> Iterable[str]:
        file = self._files[module]
        package = module if file.name == "__init__.py" else module.rpartition(".")[0]
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                parts = package.split(".")[: 1 - node.level or None] if node.level else []
                source = ".".join([*parts, *([node.module] if node.module else [])])
                for alias in node.names:
                    name = f"{source}.{alias.name}"
                    yield name if name in self._files else source
            elif isinstance(node, ast.Constant) and "." in str(node.value):
                yield from {str(node.value)} & self._files.keys()

    @cached_property
    def unit_tests(self) -> list[str]:
        """Those that pytest finds, by their paths."""
        return sorted(
            file.relative_to(self._root).as_posix()
            for file in (self._root / UNIT).rglob("test_*.py")
        )

    @cached_property
    def touched(self) -> dict[str, frozenset[str]]:
        """For each file of unit tests, the modules of `tests` that it is made of and whatever those
        import: modules of the product, libraries."""
        return {test: frozenset(self._touched_by(test)) for test in self.unit_tests}

    def _touched_by(self, test: str) -> set[str]:
        conftests = (folder / "conftest.py" for folder in PurePosixPath(test).parents)
        todo = {_module(path) for path in (PurePosixPath(test), *conftests)} & self._files.keys()
        found: set[str] = set()
        while todo:
            module = todo.pop()
            found.add(module)
            if module.startswith("tests."):
                todo |= self.imports.get(module, frozenset()) - found
        return found

    def importers_of(self, modules: Set[str]) -> set[str]:
        """Modules of the product that import one of these modules or libraries."""
        return {
            module
            for module, imported in self.imports.items()
            if module.partition(".")[0] in PRODUCT and imported & modules
        }

    def tests_naming(self, name: str) -> set[str]:
        return {test for test, text in self._texts.items() if name in text}

    @cached_property
    def _texts(self) -> dict[str, str]:
        return {test: (self._root / test).read_text() for test in self.unit_tests}

    def tests_of(self, module: str) -> set[str]:
        """Those that touch it: a module of the product or of `tests`, or a library.

        If there are none, those of the modules that import it, such as the command line's for a
        command.
        """
        seen: set[str] = set()
        modules = {module}
        while modules - seen:
            if found := {test for test, touched in self.touched.items() if touched & modules}:
                return found
            seen |= modules
            modules = self.importers_of(modules)
        return set()


def _module(path: Path | PurePosixPath) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def using(tree: Tree, libraries: Iterable[str]) -> list[str]:
    """The tests that import one of the libraries, and those of the product's modules that do."""
    prefixes = tuple(f"{library}." for library in libraries)
    imported = frozenset[str]().union(*tree.imports.values())
    names = {name for name in imported if f"{name}.".startswith(prefixes)}
    return sorted(_tests_of(tree, names | tree.importers_of(names)))


def concerned(tree: Tree, changed: Iterable[str]) -> list[str]:
    """The tests for changes in these files: of the changed modules and of those that import them.

    All of them where nothing can be told: nothing has changed, a module went away, a file is one
    that no test names, or one that all depend on.
    """
    changed = list(changed)
    always = {test for test in tree.unit_tests if PurePosixPath(test).parent.as_posix() in ALWAYS}
    found: set[str] = set()
    for file in changed:
        told = _concerned_by(tree, file)
        if told is None:
            return [UNIT]
        found |= told
    return sorted(found | always) if changed else [UNIT]


def _concerned_by(tree: Tree, file: str) -> set[str] | None:
    """None if it cannot be told."""
    path = PurePosixPath(file)
    if file in ROOTS:
        return None
    if path.suffix != ".py":
        naming = tree.tests_naming(path.name)
        return naming if naming or path.suffix == ".md" else None
    module = _module(path)
    if module not in tree.imports:
        return None
    return _tests_of(tree, {module} | tree.importers_of({module}))


def _tests_of(tree: Tree, modules: Iterable[str]) -> set[str]:
    return set[str]().union(*(tree.tests_of(module) for module in modules))


def changed_files(root: Path) -> list[str] | None:
    """Tracked or new, committed or not, since the branch left `main`. None without a `main`."""
    base = _git(root, "merge-base", "HEAD", "main")
    if not base:
        return None
    tracked = _git(root, "diff", "--name-only", "-z", "--no-renames", base[0].strip())
    new = _git(root, "ls-files", "--others", "--exclude-standard", "-z")
    return sorted({*tracked, *new})


def _git(root: Path, *command: str) -> list[str]:
    """What it prints, parted at NUL; nothing if it fails."""
    done = subprocess.run(["git", *command], cwd=root, capture_output=True, text=True, check=False)
    return [part for part in done.stdout.split("\0") if part] if done.returncode == 0 else []


def main(arguments: list[str], root: Path) -> None:
    tree = Tree(root)
    match arguments:
        case ["changed"]:
            changed = changed_files(root)
            tests = concerned(tree, changed) if changed else [UNIT]
            print(f"{len(changed or [])} changed files", end=": ", file=sys.stderr)
        case ["using", library, *more]:
            tests = using(tree, [library, *more])
            print(", ".join([library, *more]), end=": ", file=sys.stderr)
        case _:
            sys.exit(__doc__)
    of = "all" if tests == [UNIT] else f"{len(tests)} of {len(tree.unit_tests)}"
    print(f"{of} files of unit tests", file=sys.stderr)
    print("\n".join(tests))


if __name__ == "__main__":
    main(sys.argv[1:], Path(__file__).parents[1])
