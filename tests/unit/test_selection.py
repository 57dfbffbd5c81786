"""Which tests are run for a change, and for the oldest libraries."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.selection import UNIT, Tree, changed_files, concerned, main, using
from tests.support.repository import ROOT

FILES = {
    "protocol/__init__.py": "",
    "protocol/ciphers.py": "from cryptography.hazmat import primitives",
    "protocol/frames.py": "from .ciphers import seal\nimport cryptographic",
    "protocol/text.py": "",
    "relay_server/__init__.py": "",
    "relay_server/cli.py": "COMMANDS = {'run': 'relay_server.run'}",
    "relay_server/clocks.py": "def now():\n    import trio.lowlevel",
    "relay_server/run.py": "import cryptography",
    "tests/__init__.py": "",
    "tests/conftest.py": "",
    "tests/stage.py": "from protocol import ciphers",
    "tests/unit/test_documents.py": "README = 'README.md'",
    "tests/unit/protocol/test_ciphers.py": "from protocol.ciphers import seal",
    "tests/unit/protocol/test_frames.py": "import protocol.frames",
    "tests/unit/protocol/test_staged.py": "from ...stage import ciphers",
    "tests/unit/protocol/test_text.py": "from protocol.text import dashes",
    "tests/unit/relay_agent/test_cli.py": "import relay_server.cli",
    "tests/unit/relay_server/conftest.py": """
from relay_server import clocks
from tests.stage import curtain

@pytest.fixture
def clock(): return clocks.now()

@pytest.fixture
def late(clock): return clock + 1
""",
    "tests/unit/relay_server/test_any.py": "EXAMPLE = 'example.toml'",
    "tests/unit/relay_server/test_curtain.py": "def test(curtain): pass",
    "tests/unit/relay_server/test_late.py": "def test(late): pass",
    "tests/unit/relay_server/test_patched.py": "patch('relay_server.clocks.now', 0)",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.fixture
def tree(folder: Path) -> Tree:
    return Tree(folder)


def short(tests: list[str]) -> list[str]:
    """Without the folders, and without what is always there."""
    return [Path(test).stem for test in tests if test != "tests/unit/test_documents.py"]


def test_a_library_is_used_by_the_tests_of_the_modules_that_import_it(tree: Tree) -> None:
    """Also of a module that no test imports itself."""
    found = ["test_ciphers", "test_staged", "test_cli", "test_curtain"]
    assert short(using(tree, ["cryptography"])) == found


def test_a_fixture_counts_for_the_tests_that_ask_for_it_directly_or_not(tree: Tree) -> None:
    assert short(using(tree, ["trio"])) == ["test_late", "test_patched"]


def test_a_fixture_that_is_always_there_counts_for_every_test_below(folder: Path) -> None:
    conftest = folder / "tests/unit/relay_server/conftest.py"
    conftest.write_text(
        conftest.read_text().replace("fixture\ndef c", "fixture(autouse=True)\ndef c")
    )
    below = ["test_any", "test_curtain", "test_late", "test_patched"]
    assert short(using(Tree(folder), ["trio"])) == below


def test_of_several_libraries_any_counts(tree: Tree) -> None:
    both = using(tree, ["cryptography", "trio"])
    one = using(tree, ["cryptography"])
    other = using(tree, ["trio"])
    assert both == sorted({*one, *other})


@pytest.mark.parametrize(
    ("changed", "tests"),
    [
        ("protocol/ciphers.py", ["test_ciphers", "test_frames", "test_staged", "test_curtain"]),
        ("protocol/text.py", ["test_text"]),
        ("relay_server/clocks.py", ["test_late", "test_patched"]),
        ("relay_server/run.py", ["test_cli"]),
        ("tests/stage.py", ["test_staged", "test_curtain"]),
        ("tests/unit/protocol/test_text.py", ["test_text"]),
        (
            "tests/unit/relay_server/conftest.py",
            ["test_any", "test_curtain", "test_late", "test_patched"],
        ),
        ("docs/example.toml", ["test_any"]),
        ("docs/any.md", []),
    ],
)
def test_a_changed_file_concerns(tree: Tree, changed: str, tests: list[str]) -> None:
    found = concerned(tree, [changed])
    assert short(found) == tests
    assert "tests/unit/test_documents.py" in found


def test_several_changes_concern_what_each_of_them_does(tree: Tree) -> None:
    found = concerned(tree, ["protocol/text.py", "tests/stage.py"])
    assert short(found) == ["test_staged", "test_text", "test_curtain"]


@pytest.mark.parametrize(
    "changed",
    ["pyproject.toml", "tests/conftest.py", "protocol/went_away.py", "deploy/no_test_names_it"],
)
def test_where_it_cannot_be_told_all_are_run(tree: Tree, changed: str) -> None:
    assert concerned(tree, ["protocol/text.py", changed]) == [UNIT]


def test_where_nothing_has_changed_all_are_run(tree: Tree) -> None:
    assert concerned(tree, []) == [UNIT]


def git(folder: Path, *command: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *who, *command], cwd=folder, check=True, capture_output=True)


def test_changed_is_what_differs_from_where_the_branch_left_main(folder: Path) -> None:
    git(folder, "init", "--initial-branch=main")
    git(folder, "add", ".")
    git(folder, "commit", "--message=1")
    git(folder, "checkout", "-b", "topic")
    assert changed_files(folder) == []
    (folder / "protocol/text.py").write_text("committed = 1")
    git(folder, "commit", "--all", "--message=2")
    git(folder, "mv", "protocol/frames.py", "protocol/moved.py")
    (folder / "protocol/ciphers.py").write_text("not_committed = 1")
    (folder / "protocol/new file.py").write_text("")
    changed = ["ciphers", "frames", "moved", "new file", "text"]
    assert changed_files(folder) == [f"protocol/{name}.py" for name in changed]
    git(folder, "checkout", "--force", "main")
    (folder / "protocol/on_main.py").write_text("")
    git(folder, "add", ".")
    git(folder, "commit", "--message=3")
    git(folder, "checkout", "topic")
    assert changed_files(folder) == ["protocol/text.py"]


def test_without_a_main_it_cannot_be_told(folder: Path) -> None:
    git(folder, "init", "--initial-branch=other")
    assert changed_files(folder) is None


def test_the_command_prints_files_for_pytest(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["using", "trio"], folder)
    said = capsys.readouterr()
    late, patched = (f"tests/unit/relay_server/test_{name}.py" for name in ("late", "patched"))
    assert said.out == f"{late}\n{patched}\n"
    assert said.err == "trio: 2 of 10 files of unit tests\n"


def test_without_git_the_command_prints_the_folder(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["changed"], folder)
    assert capsys.readouterr().out == f"{UNIT}\n"


def test_anything_else_is_no_command(folder: Path) -> None:
    with pytest.raises(SystemExit, match="changed"):
        main(["unused"], folder)


def oldest() -> dict[str, Requirement]:
    lines = (ROOT / ".ci" / "oldest.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    here = [pin for pin in pins if pin.marker is None or pin.marker.evaluate()]
    assert len({pin.name for pin in here}) == len(here)
    return {pin.name: pin for pin in here}


def required() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = project["dependencies"] + project["optional-dependencies"]["metrics"]
    return [Requirement(line) for line in lines]


def test_the_oldest_are_the_oldest_that_are_promised() -> None:
    """To as many places as the promise has; on a newer Python nothing so old may exist."""
    pins = oldest()
    assert {one.name.replace("-", "_") for one in required()} == pins.keys()
    for one in required():
        (promised,) = one.specifier
        (pinned,) = pins[one.name.replace("-", "_")].specifier
        assert (promised.operator, pinned.operator) == (">=", "==")
        least, tried = Version(promised.version), Version(pinned.version)
        if pins[one.name.replace("-", "_")].marker is None:
            assert tried.release[: len(least.release)] == least.release
        else:
            assert tried >= least


def test_the_oldest_are_tried_on_every_module_that_imports_one() -> None:
    (libraries,) = re.findall(r"^LIBRARIES := (.+)$", (ROOT / "Makefile").read_text(), re.M)
    assert set(libraries.split()) == oldest().keys()
    tree = Tree(ROOT)
    importers = tree.importers_of(
        {
            name
            for imported in tree.imports.values()
            for name in imported
            if name.partition(".")[0] in libraries.split()
        }
    )
    tests = set(using(tree, libraries.split()))
    assert not [module for module in importers if not tree.tests_of(module) & tests]
