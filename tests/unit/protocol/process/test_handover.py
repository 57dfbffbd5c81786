from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import msgpack
import pytest

from protocol.process import handover
from protocol.process.handover import StateUnreadable, read_state, unpack, write_state
from tests.support.service_manager import Manager

HEAD = b"SRLYLEFT\0\x01"


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    with Manager(str(tmp_path / "notify")) as manager:
        monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
        yield manager


def file_of(data: bytes, *, sealed: bool = True) -> int:
    descriptor = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.write(descriptor, data)
    if sealed:
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, handover._SEALS)
    return descriptor


# The state


def test_a_state_is_read_as_it_was_written_and_nobody_can_change_it() -> None:
    state = write_state([{"a": b"1"}, {}, {"b": [2]}])
    for change in (lambda: os.write(state, b"x"), lambda: os.ftruncate(state, 3)):
        with pytest.raises(PermissionError):
            change()
    assert [msgpack.unpackb(one) for one in read_state(state)] == [{"a": b"1"}, {}, {"b": [2]}]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(state)


def test_it_is_nowhere_on_a_disk_and_is_not_inherited_by_children() -> None:
    state = write_state([])
    assert Path(f"/proc/self/fd/{state}").readlink().name.startswith("memfd:ssh-relay")
    assert not os.get_inheritable(state)
    os.close(state)


@pytest.mark.parametrize(("limit", "kept"), [(31, 1), (32, 2)])
def test_beyond_the_bound_a_record_is_left_out(limit: int, kept: int) -> None:
    # 10 of the head, 4 and 7 of each record.
    state = write_state([{"a": b"12"}, {"a": b"12"}], limit=limit)
    assert len(list(read_state(state))) == kept


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "something else"),
        (HEAD[:-1], "something else"),
        (b"x" * 100, "something else"),
        (b"SRLYLEFT\0\x02", "its format is 2, not 1"),
        (HEAD + b"\0\0\0", "ends early"),
        (HEAD + b"\0\0\0\2x", "ends early"),
        (HEAD + b"\xff\xff\xff\xff", "ends early"),
    ],
)
def test_what_is_no_state_of_this_version_is_told(data: bytes, why: str) -> None:
    with pytest.raises(StateUnreadable, match=why):
        list(read_state(file_of(data)))


def test_a_state_whose_writer_was_killed_is_none() -> None:
    with pytest.raises(StateUnreadable, match="not finished"):
        list(read_state(file_of(HEAD, sealed=False)))


def test_a_file_of_a_disk_is_none(tmp_path: Path) -> None:
    (tmp_path / "state").write_bytes(HEAD)
    with pytest.raises(StateUnreadable, match="no memory file"):
        list(read_state(os.open(tmp_path / "state", os.O_RDONLY)))


@pytest.mark.parametrize(
    "record", [b"", b"\x80\x80", b"\xc1", b"\x01", b"\x81\x01\x02", b"\xa1\xff"]
)
def test_what_is_no_record_is_told(record: bytes) -> None:
    with pytest.raises(StateUnreadable):
        unpack(record)


# Sockets


def test_a_socket_is_known_again_whoever_holds_it() -> None:
    with socket.socket() as one, socket.socket() as other, one.dup() as copy:
        assert handover.cookie(one) == handover.cookie(copy) != handover.cookie(other)


def test_what_is_no_socket_is_closed() -> None:
    reader, writer = os.pipe()
    assert handover.as_socket(reader) is None
    with pytest.raises(BrokenPipeError):
        os.write(writer, b"x")
    os.close(writer)


# The carriers


def test_the_manager_has_it_all_before_this_process_ends(manager: Manager) -> None:
    with socket.socket() as sock:
        some = [os.dup(sock.fileno()) for _ in range(300)]
        state = write_state([])
        handover.store([("state", state), *(("visitor", one) for one in some)])
        messages = manager.take()
        assert [lines[-1] for lines, _ in messages] == [
            "FDNAME=state",
            "FDNAME=visitor",
            "FDNAME=visitor",
            "BARRIER=1",
        ]
        assert [len(descriptors) for _, descriptors in messages] == [1, 253, 47, 1]
        for _, descriptors in messages:
            for one in descriptors:
                os.close(one)
        for one in [*some, state]:
            os.close(one)


def test_what_was_stored_is_forgotten_by_its_name(manager: Manager) -> None:
    handover.forget("state", "visitor")
    assert [lines for lines, _ in manager.take()] == [
        ["FDSTOREREMOVE=1", "FDNAME=state"],
        ["FDSTOREREMOVE=1", "FDNAME=visitor"],
    ]


def test_a_store_is_where_a_manager_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not handover.has_store()
    handover.store([])
    monkeypatch.setenv("NOTIFY_SOCKET", "@nobody")
    assert handover.has_store()


def test_what_was_inherited_comes_by_name_and_only_once() -> None:
    with socket.socket() as one:
        given = os.dup(one.fileno())
        os.set_inheritable(given, True)
        environment = {"SSH_RELAY_INHERITED": f"visitor={given} odd= =x state=999999 y"}
        assert handover.take_left(environment) == [("visitor", given)]
        assert not os.get_inheritable(given)
        os.close(given)
        assert environment == {}
        assert handover.take_left(environment) == []


def test_where_nothing_can_take_over_nothing_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with socket.socket() as sock:
        with pytest.raises(FileNotFoundError):
            handover.replace_process([("visitor", sock.fileno())])
        assert not sock.get_inheritable()
    assert signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL


async def test_a_trial_tells_why_a_version_would_not_start() -> None:
    assert await handover.why_not("protocol.process.handover") == ""
    assert "No module named 'protocol.nowhere'" in await handover.why_not("protocol.nowhere")


@pytest.fixture
def has_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], bool]:
    """Whether a package of our name that somebody planted in the folder we are in was imported."""
    (tmp_path / "protocol").mkdir()
    trace = tmp_path / "trace"
    (tmp_path / "protocol" / "__init__.py").write_text(f"open({str(trace)!r}, 'w')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return trace.exists


async def test_a_trial_imports_nothing_of_the_folder_it_was_started_in(
    has_run: Callable[[], bool],
) -> None:
    assert await handover.why_not("protocol.process.handover") == ""
    assert not has_run()


@pytest.mark.parametrize("option", [[], ["-I"]])
def test_the_next_process_imports_nothing_of_the_folder_it_was_started_in(
    has_run: Callable[[], bool], monkeypatch: pytest.MonkeyPatch, option: list[str]
) -> None:
    """Run as it would be, but for the program itself."""
    became: list[list[str]] = []
    monkeypatch.setattr(sys, "orig_argv", [sys.executable, *option, "-c", "import protocol"])

    def become(path: str, argv: list[str], environment: dict[str, str]) -> NoReturn:
        became.append(argv)
        subprocess.run([path, *argv[1:]], env=environment, check=True)
        raise OSError

    monkeypatch.setattr(os, "execve", become)
    with pytest.raises(OSError, match=r"^$"):
        handover.replace_process([])
    assert became[0][1:] == ["-I", "-c", "import protocol"]
    assert not has_run()


async def test_a_trial_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert "cannot run /nowhere/python" in await handover.why_not("os")
