"""The OpenWrt package: the agent from it, on what OpenWrt has, with a real ssh through it.

On OpenWrt there are cryptography 41, a msgpack that may lack its C extension, and of the standard
library the parts that the package depends on.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.openwrt_package import unpack_package
from tests.support.ports import LOOPBACK, free_port
from tests.support.processes import run
from tests.support.programs import Agent, Relay
from tests.support.repository import ROOT
from tests.support.ssh import Login, SshServer
from tests.support.waiting import LONG_LIMIT

OLDEST_CRYPTOGRAPHY = ROOT / ".venv" / "oldest" / "cryptography"
FEED = ("python3-cryptography", "python3-msgpack")
# Imports all that `join` and `run` import, and does nothing.
# All of it: a command that is rarely given must not be the first to miss a module.
IMPORT_ALL = """
import importlib, pkgutil, relay_agent, protocol
for package in (relay_agent, protocol):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """The .ipk, unpacked, and the folder with what its dependencies would install."""

    lib: Path
    feed: Path
    depends: tuple[str, ...]

    def command(self, *, without: str = "", program: Path | None = None) -> list[str]:
        depends = ",".join(name for name in self.depends if name != without)
        launcher = Path(__file__).parents[1] / "support" / "openwrt_python.py"
        parts = [sys.executable, "-I", "-S", launcher, depends, self.feed, program or self.lib]
        return [str(part) for part in parts]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    folder = tmp_path_factory.mktemp("openwrt")
    lib, depends = unpack_package(folder)
    return Package(lib=lib, feed=_feed(folder / "feed"), depends=depends)


def _feed(feed: Path) -> Path:
    """As OpenWrt's feed has it; nothing else of this environment is in reach of the agent."""
    feed.mkdir()
    (feed / "cryptography").symlink_to(OLDEST_CRYPTOGRAPHY)
    for name in ("cffi", "pycparser", "_cffi_backend"):
        path = _installed(name)
        (feed / path.name).symlink_to(path)
    without_extension = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(_installed("msgpack"), feed / "msgpack", ignore=without_extension)
    return feed


def _installed(name: str) -> Path:
    """The folder or the file of a module of this environment."""
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    path = Path(spec.origin)
    return path.parent if path.name == "__init__.py" else path


def test_a_real_login_through_the_agent_of_the_package(
    package: Package,
    new_relay: Callable[..., Relay],
    tmp_path: Path,
    login: Login,
    dropbear: SshServer,
) -> None:
    relay, agent = new_relay(), Agent(tmp_path / "router", package.command())
    port = free_port()
    relay.start()
    try:
        # By a name, since looking one up needs more of the standard library.
        invitation = relay.invite("home", port, hosts=[f"localhost:{relay.port}"])
        agent.join(invitation, f"ssh={LOOPBACK}:{dropbear.port}")
        agent.start(port)
        done = login.ssh(port, "echo $((6 * 7))")
        assert (done.returncode, done.stdout) == (0, "42\n"), done.stderr
    finally:
        agent.stop()


def test_each_part_of_python_is_needed(package: Package, tmp_path: Path) -> None:
    """And none too many: a router has little flash."""
    program = package.lib / "import_all.py"
    program.write_text(f"import sys; sys.path.insert(0, {str(package.lib)!r})\n{IMPORT_ALL}")
    parts = [name for name in package.depends if name not in ("python3-light", *FEED)]
    for without in ("", *parts):
        command = package.command(without=without, program=program)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if without:
            assert f"is in {without}, not declared" in done.stderr, (without, done.stderr)
        else:
            assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["cryptography", "msgpack"])
def test_a_library_that_is_not_there(package: Package, tmp_path: Path, name: str) -> None:
    """As on 32-bit routers with OpenWrt 25.12, whose feed has no cryptography for them."""
    poor = tmp_path / "feed"
    poor.mkdir()
    for entry in package.feed.iterdir():
        if entry.name != name:
            (poor / entry.name).symlink_to(entry)
    command = [str(poor) if part == str(package.feed) else part for part in package.command()]
    done = run([*command, "join", "relay1_x"], environment={"HOME": "/"}, limit=LONG_LIMIT)
    assert done.returncode == 1
    assert re.fullmatch(rf"relay-agent: the Python library {name} is missing; .*\n", done.stderr)
