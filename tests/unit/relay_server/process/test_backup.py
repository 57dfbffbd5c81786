from __future__ import annotations

import io
import sqlite3
import stat
import tarfile
from contextlib import closing
from pathlib import Path

import pytest

from protocol.process.address import HostPort
from protocol.process.config import ConfigError
from protocol.process.state import StateFolder
from protocol.wire.noise import StaticKey
from relay_server.config import FILE as CONFIG
from relay_server.process.backup import is_unknown, pack, put, unpack
from relay_server.registry.registry import FILE as REGISTRY
from relay_server.registry.registry import Registry
from relay_server.registry.relay_keys import KEY, load_or_make, rotate

NOW = 1_000_000.0
TOKEN = b"t" * 16


def folder(path: Path) -> StateFolder:
    state = StateFolder(path)
    state.ensure()
    return state


def a_relay(path: Path) -> StateFolder:
    """With an agent, an invitation, a rotated key, a place to move to and a configuration."""
    state = folder(path)
    with Registry(state) as registry:
        keys = load_or_make(state, registry)
        ports = range(11111, 11120)
        registry.invite("home", TOKEN, now=NOW, lifetime=9, port_range=ports)
        registry.redeem(TOKEN, StaticKey.generate().public, NOW)
        registry.invite("late", b"u" * 16, now=NOW, lifetime=9, port_range=ports)
        registry.announce([HostPort("new.example.net", 7022)])
        rotate(state, keys)
    (path / CONFIG).write_text('ports = "20000-20009"\n')
    return state


def packed(state: StateFolder) -> bytes:
    with Registry(state) as registry:
        return pack(state, registry)


def archive(**files: bytes) -> bytes:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return output.getvalue()


def test_what_is_put_elsewhere_is_the_same_relay(tmp_path: Path) -> None:
    old, new = a_relay(tmp_path / "old"), folder(tmp_path / "new")
    assert is_unknown(new)
    put(new, unpack(packed(old)))
    assert not is_unknown(new)
    with Registry(old) as before, Registry(new) as after:
        assert after.agents() == before.agents()
        assert after.invitations() == before.invitations()
        assert after.announced() == (HostPort("new.example.net", 7022),)
        ours, theirs = load_or_make(old, before), load_or_make(new, after)
        assert [key.public for key in theirs.all] == [key.public for key in ours.all]
        # As ever, also what others change can be seen while somebody reads.
        after.announce([])
        assert after.announced() == ()
    assert (new.path / CONFIG).read_text() == 'ports = "20000-20009"\n'
    for file in new.path.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


def test_a_snapshot_is_whole_while_somebody_writes(tmp_path: Path) -> None:
    state = a_relay(tmp_path / "old")
    with closing(sqlite3.connect(state.path / REGISTRY)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("DELETE FROM agents")
        files = unpack(packed(state))
        writer.execute("COMMIT")
    new = folder(tmp_path / "new")
    put(new, files)
    with Registry(new) as registry:
        assert [agent.name for agent in registry.agents()] == ["home"]


def test_a_relay_that_was_only_started_gives_way(tmp_path: Path) -> None:
    old, new = a_relay(tmp_path / "old"), folder(tmp_path / "new")
    with Registry(new) as registry:
        rotate(new, load_or_make(new, registry))
    (new.path / CONFIG).write_text('listen = ["[::]:443"]\n')
    assert is_unknown(new)
    put(new, unpack(packed(old)))
    with Registry(old) as before, Registry(new) as after:
        ours, theirs = load_or_make(old, before), load_or_make(new, after)
        assert [key.public for key in theirs.all] == [key.public for key in ours.all]
    assert (new.path / CONFIG).read_text() == 'listen = ["[::]:443"]\n', "it is of this machine"


def test_a_relay_that_somebody_knows_does_not(tmp_path: Path) -> None:
    state = folder(tmp_path / "invited")
    with Registry(state) as registry:
        registry.invite("home", TOKEN, now=NOW, lifetime=9, port_range=range(1, 9))
    assert not is_unknown(state)
    state = folder(tmp_path / "key-alone")
    state.write_secret(KEY, "00" * 32)
    assert not is_unknown(state)


def test_what_cannot_be_a_relay_is_named(tmp_path: Path) -> None:
    files = unpack(packed(a_relay(tmp_path / "old")))
    for data, said in (
        (b"", "no export of a relay"),
        (archive(), "no whole export of a relay: registry.db is missing"),
        (b"garbage" * 100, "no export of a relay"),
        (archive(**files)[:700], "no export of a relay"),
        (archive(**(files | {"../evil": b""})), "no export of a relay: it has '../evil' in it"),
        (archive(**{REGISTRY: files[REGISTRY]}), "no whole export of a relay: relay.key is miss"),
        (
            archive(**(files | {REGISTRY: b"x" * 5000})),
            "this export cannot be used: registry.db: damaged, or not a database",
        ),
        (archive(**(files | {KEY: b"\xff"})), "this export cannot be used: relay.key: expected"),
        (archive(**(files | {KEY: b"00"})), "this export cannot be used: relay.key: expected"),
        (archive(**(files | {CONFIG: b"x = 1"})), "this export cannot be used: server.toml: x: un"),
    ):
        with pytest.raises(ConfigError) as caught:
            unpack(data)
        assert str(caught.value).startswith(said), said


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE])
def test_only_ordinary_files_are_taken(kind: bytes) -> None:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as tar:
        member = tarfile.TarInfo(KEY)
        member.type, member.linkname = kind, "/etc/passwd"
        tar.addfile(member)
    with pytest.raises(ConfigError, match=r"no export of a relay: it has 'relay\.key' in it"):
        unpack(output.getvalue())
