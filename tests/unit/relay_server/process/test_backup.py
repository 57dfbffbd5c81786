from __future__ import annotations

import contextlib
import io
import sqlite3
import stat
import tarfile
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.process.address import HostPort
from protocol.process.config import ConfigError
from protocol.process.state import StateFolder
from protocol.wire.noise import StaticKey
from relay_server import CONFIG_FILE
from relay_server.process.backup import is_unknown, pack, put, unpack
from relay_server.registry.registry import REGISTRY_FILE, Registry
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
    (path / CONFIG_FILE).write_text('ports = "20000-20009"\n')
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
    assert (new.path / CONFIG_FILE).read_text() == 'ports = "20000-20009"\n'
    for file in new.path.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


def test_a_snapshot_is_whole_while_somebody_writes(tmp_path: Path) -> None:
    state = a_relay(tmp_path / "old")
    with closing(sqlite3.connect(state.path / REGISTRY_FILE)) as writer:
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
    (new.path / CONFIG_FILE).write_text('listen = ["[::]:443"]\n')
    assert is_unknown(new)
    put(new, unpack(packed(old)))
    with Registry(old) as before, Registry(new) as after:
        ours, theirs = load_or_make(old, before), load_or_make(new, after)
        assert [key.public for key in theirs.all] == [key.public for key in ours.all]
    assert (new.path / CONFIG_FILE).read_text() == 'listen = ["[::]:443"]\n'


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
        (
            archive(**{REGISTRY_FILE: files[REGISTRY_FILE]}),
            "no whole export of a relay: relay.key is miss",
        ),
        (
            archive(**(files | {REGISTRY_FILE: b"x" * 5000})),
            "this export cannot be used: registry.db: damaged, or not a database",
        ),
        (archive(**(files | {KEY: b"\xff"})), "this export cannot be used: relay.key: expected"),
        (archive(**(files | {KEY: b"00"})), "this export cannot be used: relay.key: expected"),
        (
            archive(**(files | {CONFIG_FILE: b"x = 1"})),
            "this export cannot be used: server.toml: x: un",
        ),
    ):
        with pytest.raises(ConfigError) as caught:
            unpack(data)
        assert str(caught.value).startswith(said), said


def test_a_sparse_file_is_as_large_as_it_says_and_so_refused(tmp_path: Path) -> None:
    """53 KB of archive took 3.1 GiB of memory."""
    hole = archive(**{REGISTRY_FILE: b"x" * 512})
    sparse = tarfile.TarInfo(KEY)
    sparse.type, sparse.size = tarfile.GNUTYPE_SPARSE, 512
    header = bytearray(sparse.tobuf(tarfile.GNU_FORMAT))
    # Its map: 512 bytes at the start; and its real size, 8 GiB less one.
    header[386:410] = b"00000000000\x0000000001000\x00"
    header[483:495] = b"77777777777\x00"
    seal(header, 0)
    data = bytes(header) + b"x" * 512 + hole[1024:]
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert tar.getmembers()[0].size == 2**33 - 1
    with pytest.raises(ConfigError, match=r"no export of a relay: it has 'relay\.key' in it"):
        unpack(data)


def test_there_are_as_many_files_as_a_relay_has(tmp_path: Path) -> None:
    files = unpack(packed(a_relay(tmp_path / "old")))
    former = {f"former-{number:016x}.key": b"" for number in range(9)}
    with pytest.raises(ConfigError, match="no export of a relay: more than 7 files"):
        unpack(archive(**(files | former)))


CHANGES = [
    ("CREATE TABLE more (x)", "its tables are not those"),
    ("CREATE VIEW more AS SELECT * FROM agents", "its tables are not those"),
    (
        "CREATE TRIGGER more AFTER INSERT ON agents BEGIN DELETE FROM revoked; END",
        "its tables are not those",
    ),
    ("DROP TABLE revoked", "its tables are not those"),
    ("UPDATE agents SET name = 'a' || char(27) || '[2J' WHERE name = 'home'", "expected a name"),
    ("UPDATE invitations SET name = char(8238) WHERE state = 'pending'", "expected a name"),
    ("UPDATE agents SET public_key = x'00' WHERE name = 'home'", "the key of home"),
    ("UPDATE agents SET public_key = 'text' WHERE name = 'home'", "the key of home"),
    ("UPDATE ports SET port = 65536 WHERE agent = 'home'", "the ports of home"),
    ("UPDATE settings SET value = '[[\"a b\", 1]]'", "expected HOST:PORT"),
    ("UPDATE settings SET value = '{'", "Expecting"),
    ("UPDATE settings SET value = '7'", "not written by a relay"),
    ("PRAGMA user_version = 99", "newer relay-server"),
]


@pytest.mark.parametrize(("change", "said"), CHANGES, ids=[change for change, _ in CHANGES])
def test_a_registry_that_no_relay_wrote_is_refused(tmp_path: Path, change: str, said: str) -> None:
    state = a_relay(tmp_path / "old")
    with closing(sqlite3.connect(state.path / REGISTRY_FILE)) as db:
        db.execute("PRAGMA foreign_keys = OFF")
        db.execute("DELETE FROM settings WHERE key = 'usable_by'")
        with contextlib.suppress(sqlite3.IntegrityError):
            db.execute(change)
        db.commit()
        files = {REGISTRY_FILE: db.serialize(), KEY: (state.path / KEY).read_bytes()}
    with pytest.raises(ConfigError) as caught:
        unpack(archive(**files))
    assert str(caught.value).startswith("this export cannot be used: registry.db: ")
    assert said in str(caught.value)
    assert str(caught.value).isprintable()


class Export(bytes):
    """Not shown whole where a test failed."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<an export of {len(self)} bytes>"


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Export:
    return Export(packed(a_relay(tmp_path_factory.mktemp("relay"))))


@settings(max_examples=200)
@given(data=st.data())
def test_a_damaged_export_is_refused_or_good(export: Export, data: st.DataObject) -> None:
    """Most of an archive is content: what can go wrong is in the headers, and where it ends."""
    with tarfile.open(fileobj=io.BytesIO(export)) as tar:
        headers = [member.offset for member in tar]
    damaged = bytearray(export)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.sampled_from(headers)) + data.draw(st.integers(0, 511))
        damaged[place] = data.draw(st.integers(0, 255))
    del damaged[data.draw(st.sampled_from([len(damaged), *(one + 700 for one in headers)])) :]
    if data.draw(st.booleans()):
        for offset in headers:  # as somebody who means it writes it
            seal(damaged, offset)
    with contextlib.suppress(ConfigError):
        unpack(bytes(damaged))


def seal(archive: bytearray, offset: int) -> None:
    """Make the checksum of the header at `offset` right."""
    archive[offset + 148 : offset + 156] = b"        "
    total = sum(archive[offset : offset + 512])
    archive[offset + 148 : offset + 156] = f"{total:06o}\0 ".encode()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE])
def test_only_ordinary_files_are_taken(kind: bytes) -> None:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as tar:
        member = tarfile.TarInfo(KEY)
        member.type, member.linkname = kind, "/etc/passwd"
        tar.addfile(member)
    with pytest.raises(ConfigError, match=r"no export of a relay: it has 'relay\.key' in it"):
        unpack(output.getvalue())
