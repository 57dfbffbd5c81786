"""Which files of unit tests concern a change, or a library.

    python -m tests.selection changed           those for what differs from the branch `main`
    python -m tests.selection using LIBRARY…    those of the modules that import one of them

A test module is taken to test each module of the product that it imports, itself or by way of other
modules of `tests` and by way of the fixtures that it asks for. Imports inside the product are not
followed: nearly all of it is reached from nearly everywhere.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable, Set
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class _Fixture:
    name: str
    modules: Set[str]  # that its function names
    asks: Set[str]  # for these other fixtures, and more that are none
    always: bool  # whether or not a test asks for it


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
        """What each module imports, at its top or in a function, by absolute names.

        A string counts that names a module, as in a table of commands, or something in a module.
        """
        return {
            module: frozenset(self._bindings[module].values()) | self._named_by_strings(module)
            for module in self._files
        }

    @cached_property
    def _nodes(self) -> dict[str, list[ast.AST]]:
        return {
            module: list(ast.walk(ast.parse(file.read_text())))
            for module, file in self._files.items()
        }

    def _named_by_strings(self, module: str) -> set[str]:
        strings = _strings(self._nodes[module])
        return {one for name in strings for one in (name, name.rpartition(".")[0])} & self._dotted

    @cached_property
    def _dotted(self) -> set[str]:
        """Names of modules that are nothing else, as `tests` might be."""
        return {module for module in self._files if "." in module}

    @cached_property
    def _bindings(self) -> dict[str, dict[str, str]]:
        """For each module, what the names stand for that it imports."""
        return {module: dict(self._imports_of(module)) for module in self._files}

    def _imports_of(self, module: str) -> Iterable[tuple[str, str]]:
        package = module if self._files[module].name == "__init__.py" else module.rpartition(".")[0]
        for node in self._nodes[module]:
            if isinstance(node, ast.Import):
                yield from ((alias.asname or alias.name, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                parts = package.split(".")[: 1 - node.level or None] if node.level else []
                source = ".".join([*parts, *([node.module] if node.module else [])])
                for alias in node.names:
                    name = f"{source}.{alias.name}"
                    yield alias.asname or alias.name, name if name in self._files else source

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
        folders = PurePosixPath(test).parents
        conftests = {_module(folder / "conftest.py") for folder in folders} & self._files.keys()
        module = _module(PurePosixPath(test))
        todo = {module} | self._through_fixtures(_asks(self._nodes[module]), conftests)
        found = set(conftests)
        while todo:
            module = todo.pop()
            found.add(module)
            if module.startswith("tests."):
                todo |= self.imports.get(module, frozenset()) - found
        return found

    def _through_fixtures(self, asked: set[str], conftests: Set[str]) -> set[str]:
        """The modules that those fixtures use which are asked for by name, or by other fixtures."""
        found: set[str] = set()
        names, seen = set(asked), set[str]()
        while names - seen:
            seen |= names
            for fixture in (one for conftest in conftests for one in self._fixtures[conftest]):
                if fixture.name in seen or fixture.always:
                    found |= fixture.modules
                    names |= fixture.asks
        return found

    @cached_property
    def _fixtures(self) -> dict[str, list[_Fixture]]:
        """Those of each conftest.py, made there or imported."""
        return {
            module: list(self._fixtures_of(module))
            for module, file in self._files.items()
            if file.name == "conftest.py"
        }

    def _fixtures_of(self, module: str) -> Iterable[_Fixture]:
        bindings = self._bindings[module]
        for name, source in bindings.items():
            yield _Fixture(name, {source}, set(), always=False)
        for node in self._nodes[module]:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                nodes = list(ast.walk(node))
                names = {one.id for one in nodes if isinstance(one, ast.Name)}
                yield _Fixture(
                    node.name,
                    {
                        source
                        for name, source in bindings.items()
                        if name.partition(".")[0] in names
                    },
                    _asks(nodes),
                    always=any("autouse=True" in ast.unparse(one) for one in node.decorator_list),
                )

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


def _asks(nodes: Iterable[ast.AST]) -> set[str]:
    """For which fixtures: the names of arguments; and strings, as `usefixtures` has."""
    nodes = list(nodes)
    return {node.arg for node in nodes if isinstance(node, ast.arg)} | _strings(nodes)


def _strings(nodes: Iterable[ast.AST]) -> set[str]:
    constants = (node.value for node in nodes if isinstance(node, ast.Constant))
    return {value for value in constants if isinstance(value, str)}


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
            print(f"{len(changed or [])} changed", end=": ", file=sys.stderr)
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
