"""What a process leaves to the one that goes on in its place: open descriptors, and a state.

There are two carriers, and what they carry is the same:

    replace_process   exec: the same process id, the descriptors stay open       any system
    store             copies to the service manager, which starts the next one   systemd's FD store

A state is a memory file: it is never on a disk, belongs to who made it, and is sealed, so that what
is read is what was written, and all of it. It is told by its name from the sockets beside it, which
are known by their cookie: no carrier need keep an order.

    magic ‖ u16 FORMAT ‖ records of (u32 length ‖ msgpack map)

A record that cannot be read costs what it describes, a state that cannot be read all of it; neither
costs more.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import struct
import sys
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from typing import Final, NoReturn

import msgpack
import trio

from protocol.process.systemd import NamedDescriptor, notify, take_descriptors
from protocol.wire.body import Fields

# Rises with every change of what either side leaves: protocol.session.snapshot, Splice.export,
# relay_server.agents.saved.
FORMAT: Final = 1
# The name of the memory file among what is left.
STATE: Final = "state"
# Names with their descriptors, of a process that has become us.
_INHERITED: Final = "SSH_RELAY_INHERITED"

_HEAD: Final = struct.Struct(">8sH")
_MAGIC: Final = b"SRLYLEFT"
_LENGTH: Final = struct.Struct(">I")
# All sessions together. Replay is bounded by half of it by default (`replay_total`), what sockets
# have not taken yet by their windows; more would only take memory that the machine does not have.
MAX_STATE: Final = 1024 * 1024 * 1024

_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
# A message takes no more descriptors (SCM_MAX_FD).
_MOST_DESCRIPTORS: Final = 253
# For the manager to read what it was told: it does so at once, unless the machine is in trouble.
# Well inside the 2 s in which a service is to end.
PATIENCE: Final = 1.0
# For Python to start and load everything: a second on a VPS, ten on a slow router.
_TRIAL: Final = 60.0
# <asm/socket.h>; Python does not have it.
_SO_COOKIE: Final = 57


class StateUnreadable(Exception):  # noqa: N818 - an outcome, not a defect
    """Not a state of this version; the text says what it is instead."""


def cookie(sock: socket.socket) -> int:
    """A number that the kernel gives each socket once, whoever holds it."""
    data = sock.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8)
    return int.from_bytes(data, sys.byteorder)


# The state


def write_state(records: Iterable[Mapping[str, object]], *, limit: int = MAX_STATE) -> int:
    """A sealed memory file of `records`; its descriptor is the caller's.

    One that would exceed `limit` is left out, and those that follow may fit. Raises OSError.
    """
    descriptor = os.memfd_create("ssh-relay", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(_HEAD.pack(_MAGIC, FORMAT))
        size = _HEAD.size
        for record in records:
            packed: bytes = msgpack.packb(record)
            if size + _LENGTH.size + len(packed) <= limit:
                size += _LENGTH.size + len(packed)
                file.write(_LENGTH.pack(len(packed)))
                file.write(packed)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    return descriptor


def read_state(descriptor: int) -> Iterator[bytes]:
    """The records of a state, for `unpack`. Raises StateUnreadable. Closes `descriptor`."""
    with os.fdopen(descriptor, "rb") as file:
        try:
            sealed = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
        except OSError:
            raise StateUnreadable("it is no memory file") from None
        if sealed & _SEALS != _SEALS:
            raise StateUnreadable("it was not finished")
        file.seek(0)
        head = file.read(_HEAD.size)
        if len(head) < _HEAD.size or not head.startswith(_MAGIC):
            raise StateUnreadable("it is something else")
        found = _HEAD.unpack(head)[1]
        if found != FORMAT:
            raise StateUnreadable(f"its format is {found}, not {FORMAT}")
        left = os.fstat(descriptor).st_size - len(head)
        while left:
            length = file.read(_LENGTH.size)
            left -= _LENGTH.size
            size = _LENGTH.unpack(length)[0] if len(length) == _LENGTH.size else left + 1
            if size > left:
                raise StateUnreadable("it ends early")
            yield file.read(size)
            left -= size


def unpack(record: bytes) -> Fields:
    """Raises StateUnreadable."""
    try:
        value = msgpack.unpackb(record)
    except (ValueError, RecursionError, msgpack.UnpackException) as exc:
        raise StateUnreadable(f"a record is malformed ({type(exc).__name__})") from None
    if type(value) is not dict:
        raise StateUnreadable("a record is no map")
    return Fields(value, strict=True)


# The carriers


def _python() -> list[str]:
    """This Python, isolated: it imports what is installed, and nothing of the folder we are in.

    That folder may be anybody's, and the relay's user root. PYTHONPATH does not count either.
    """
    return [sys.executable, "-I"]


async def why_not(module: str) -> str:
    """Why the program that is installed now would not start, as far as a trial can tell; or ""."""
    argv = [*_python(), "-c", f"import {module}"]
    try:
        with trio.fail_after(_TRIAL):
            done = await trio.run_process(argv, cwd="/", capture_stderr=True, check=False)
    except (OSError, trio.TooSlowError) as exc:
        return f"cannot run {sys.executable}: {exc or 'too slow'}"
    *_, last = done.stderr.decode("utf-8", "replace").splitlines() or [""]
    return "" if done.returncode == 0 else f"what is installed does not start: {last}"


def replace_process(left: Sequence[NamedDescriptor]) -> NoReturn:
    """Become the program that is installed now under the path we were started from.

    Raises OSError if that cannot be; then nothing has changed.
    """
    for _, descriptor in left:
        os.set_inheritable(descriptor, True)
    names = " ".join(f"{name}={descriptor}" for name, descriptor in left)
    # Until it listens for them, signals must not end it that would not end us.
    asked_again = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    try:
        arguments = sys.orig_argv[1:]
        argv = [*_python(), *(arguments[1:] if arguments[:1] == ["-I"] else arguments)]
        os.execve(sys.executable, argv, os.environ | {_INHERITED: names})  # noqa: S606 - ourselves
    finally:
        signal.signal(signal.SIGUSR2, asked_again)
        for _, descriptor in left:
            os.set_inheritable(descriptor, False)


def has_store() -> bool:
    """Whether a manager listens; whether it keeps what it is given, only its unit says."""
    return bool(os.environ.get("NOTIFY_SOCKET"))


def store(left: Sequence[NamedDescriptor]) -> None:
    """Give copies to the manager, which closes what it does not keep, and wait until it has them.

    Kept until they are closed by `forget`, or the service is stopped for good.
    """
    by_name: dict[str, list[int]] = {}
    for name, descriptor in left:
        by_name.setdefault(name, []).append(descriptor)
    for name, descriptors in by_name.items():
        for first in range(0, len(descriptors), _MOST_DESCRIPTORS):
            some = descriptors[first : first + _MOST_DESCRIPTORS]
            # FDPOLL=0: one that both sides have finished may hold what is not read yet.
            notify("FDSTORE=1", "FDPOLL=0", f"FDNAME={name}", descriptors=some, wait=PATIENCE)
    _wait_until_read()


def forget(*names: str) -> None:
    """What was stored is here now: the end of a socket is ours to give."""
    for name in names:
        notify("FDSTOREREMOVE=1", f"FDNAME={name}", wait=PATIENCE)


def _wait_until_read() -> None:
    """sd_notify_barrier(3): the manager closes what it is given when it has read all before it."""
    reader, writer = os.pipe()
    try:
        notify("BARRIER=1", descriptors=[writer], wait=PATIENCE)
        os.close(writer)
        poll = select.poll()
        poll.register(reader, 0)
        poll.poll(PATIENCE * 1000)
    finally:
        os.close(reader)


def take_left(environment: MutableMapping[str, str] = os.environ) -> list[NamedDescriptor]:
    """What was left to this process, and what a socket unit opened for it. Once only."""
    left = take_descriptors(environment)
    for entry in environment.pop(_INHERITED, "").split():
        name, _, number = entry.rpartition("=")
        if number.isdecimal():
            descriptor = int(number)
            try:
                os.set_inheritable(descriptor, False)
            except OSError:  # somebody else's idea
                continue
            left.append((name, descriptor))
    return left


def as_socket(descriptor: int) -> socket.socket | None:
    """None, and closed, if it is none."""
    try:
        sock = socket.socket(fileno=descriptor)
    except OSError:
        os.close(descriptor)
        return None
    sock.setblocking(False)
    return sock
