"""What `make dist` builds for a Python package index: the sdist, and the wheel made of it."""

from __future__ import annotations

import re
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.metadata import Metadata

from protocol import __version__
from tests.support.repository import ROOT

PACKAGES = ("protocol", "relay_agent", "relay_server")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([ROOT / ".ci" / "dist", folder], check=True)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> dict[str, bytes]:
    """Its files by their names."""
    with zipfile.ZipFile(built / f"ssh_relay-{__version__}-py3-none-any.whl") as file:
        return {name: file.read(name) for name in file.namelist()}


@pytest.fixture(scope="module")
def sdist(built: Path) -> dict[str, bytes]:
    """Its files by their names, without the folder that they all are in."""
    files = {}
    with tarfile.open(built / f"ssh_relay-{__version__}.tar.gz") as file:
        for member in file.getmembers():
            if content := file.extractfile(member):
                files[member.name.removeprefix(f"ssh_relay-{__version__}/")] = content.read()
    return files


def in_the_tree() -> dict[str, bytes]:
    files = {file for name in PACKAGES for file in (ROOT / name).rglob("*.py")}
    files |= {ROOT / name / "py.typed" for name in PACKAGES if (ROOT / name / "py.typed").exists()}
    return {file.relative_to(ROOT).as_posix(): file.read_bytes() for file in files}


def test_the_wheel_holds_every_module_and_nothing_else(wheel: dict[str, bytes]) -> None:
    ours = {name: data for name, data in wheel.items() if ".dist-info/" not in name}
    assert ours == in_the_tree()


def test_the_sdist_holds_what_the_wheel_is_built_from(sdist: dict[str, bytes]) -> None:
    wanted = in_the_tree() | {
        name: (ROOT / name).read_bytes() for name in ("pyproject.toml", "README.md", "LICENSE")
    }
    assert {name: sdist[name] for name in wanted} == wanted
    assert not [name for name in sdist if name.startswith(("tests/", "benchmarks/"))]


def test_both_bring_the_licence(wheel: dict[str, bytes], sdist: dict[str, bytes]) -> None:
    licence = (ROOT / "LICENSE").read_bytes()
    assert sdist["LICENSE"] == licence
    assert wheel[f"ssh_relay-{__version__}.dist-info/licenses/LICENSE"] == licence


def test_the_metadata_are_valid(wheel: dict[str, bytes], sdist: dict[str, bytes]) -> None:
    """An index refuses an upload otherwise. `validate` raises at each field that is not."""
    in_wheel = wheel[f"ssh_relay-{__version__}.dist-info/METADATA"]
    assert in_wheel == sdist["PKG-INFO"]
    metadata = Metadata.from_email(in_wheel, validate=True)
    assert (metadata.name, str(metadata.version)) == ("ssh-relay", __version__)
    assert (metadata.license_expression, metadata.license_files) == ("MIT", ["LICENSE"])
    assert metadata.description_content_type == "text/markdown"
    assert metadata.description == (ROOT / "README.md").read_text()
    # PEP 639: no classifier beside the expression.
    assert not [one for one in metadata.classifiers or [] if one.startswith("License ::")]


def test_the_classifiers_name_every_python_that_is_supported(wheel: dict[str, bytes]) -> None:
    metadata = Metadata.from_email(wheel[f"ssh_relay-{__version__}.dist-info/METADATA"])
    every = "\n".join(metadata.classifiers or [])
    minors = [
        int(n) for n in re.findall(r"^Programming Language :: Python :: 3\.(\d+)$", every, re.M)
    ]
    assert str(metadata.requires_python) == f">=3.{minors[0]}"
    assert minors == list(range(minors[0], minors[-1] + 1))


def test_both_commands_are_installed(wheel: dict[str, bytes]) -> None:
    text = wheel[f"ssh_relay-{__version__}.dist-info/entry_points.txt"].decode()
    assert sorted(re.findall(r"^[\w-]+", text, re.M)) == ["relay-agent", "relay-server"]
