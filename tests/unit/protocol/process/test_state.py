from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from protocol.process.state import MAX_SECRET, StateError, StateFolder, default_state_dir

NOBODY = 65534
ROOT = os.geteuid() == 0


@pytest.fixture
def folder(tmp_path: Path) -> StateFolder:
    folder = StateFolder(tmp_path / "state")
    folder.ensure()
    return folder


@contextlib.contextmanager
def refused(*parts: str) -> Iterator[None]:
    with pytest.raises(StateError) as caught:
        yield
    line = str(caught.value)
    assert "\n" not in line
    for part in parts:
        assert part in line, line


@contextlib.contextmanager
def as_user(uid: int, *, reach: Path) -> Iterator[None]:
    """Be another user, who may pass through the folders above `reach`."""
    for above in reach.parents:
        if Path(tempfile.gettempdir()) in above.parents:  # pytest's own
            above.chmod(above.stat().st_mode | 0o711)
    os.setresuid(uid, uid, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


def failing(number: int) -> Callable[..., NoReturn]:
    def fail(*_: Any, **__: Any) -> NoReturn:
        raise OSError(number, os.strerror(number))

    return fail


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


# The folder


def test_the_default_follows_user_and_program(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_state_dir("relay-server") == Path("/var/lib/relay-server")
    assert default_state_dir("relay-agent") == Path("/etc/relay-agent")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert default_state_dir("relay-agent") == tmp_path / "relay-agent"
    monkeypatch.setenv("HOME", "/home/me")
    for ignored in ("", "relative"):
        monkeypatch.setenv("XDG_STATE_HOME", ignored)
        assert default_state_dir("relay-server") == Path("/home/me/.local/state/relay-server")


def test_a_user_without_a_home_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)

    def no_home() -> NoReturn:
        raise RuntimeError

    monkeypatch.setattr(Path, "home", no_home)
    with refused("--state-dir"):
        default_state_dir("relay-server")


def test_a_missing_folder_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path / "a" / "b")
    folder.ensure()
    assert mode(folder.path) == 0o700
    folder.ensure()


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with refused(f"{file}: expected a folder"):
        StateFolder(file).ensure()
    with refused(f"{file}/below: expected a folder"):
        StateFolder(file / "below").ensure()


@pytest.mark.parametrize("bits", [0o1777, 0o775, 0o755, 0o750, 0o710, 0o701])
def test_a_folder_that_others_may_use_is_refused(folder: StateFolder, bits: int) -> None:
    folder.path.chmod(bits)
    with refused(f"{folder.path}: other users", "--state-dir", f"chmod 700 {folder.path}"):
        folder.ensure()
    folder.path.chmod(0o700)
    folder.ensure()


def test_a_folder_on_a_read_only_file_system_is_refused(
    folder: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    class ReadOnly:
        f_flag = os.ST_RDONLY

    monkeypatch.setattr(os, "statvfs", lambda _: ReadOnly())
    with refused("read-only file system"):
        folder.ensure()


def test_a_folder_that_is_not_writable_is_refused(
    folder: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    with refused("not writable for user", "it belongs to", "--state-dir"):
        folder.ensure()


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "no space left on the disk"),
        (errno.EDQUOT, "no space left on the disk"),
        (errno.EROFS, "on a read-only file system"),
        (errno.EACCES, "has no access; it belongs to"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_a_folder_that_cannot_be_made(
    folder: StateFolder, monkeypatch: pytest.MonkeyPatch, number: int, said: str
) -> None:
    monkeypatch.setattr(Path, "mkdir", failing(number))
    with refused(said):
        folder.ensure()


def test_an_error_without_a_number_is_told_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> NoReturn:
        raise OSError("odd")

    monkeypatch.setattr(Path, "mkdir", fail)
    with refused("odd"):
        StateFolder(tmp_path).ensure()


def test_no_owner_is_named_where_nothing_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "mkdir", failing(errno.EACCES))
    with pytest.raises(StateError, match=r"has no access$"):
        StateFolder(tmp_path / "none").ensure()


# Files


def test_a_secret_comes_back_as_written(folder: StateFolder) -> None:
    assert folder.read_secret("key") is None
    folder.write_secret("key", "first\n")
    folder.write_secret("key", "sécond\n")
    assert folder.read_secret("key") == "sécond\n"
    assert mode(folder.path / "key") == 0o600
    assert os.listdir(folder.path) == ["key"]  # noqa: PTH208 - hidden ones too, in one line


def test_a_file_for_all_to_read(folder: StateFolder) -> None:
    assert folder.read("note") is None
    folder.write("note", "x", 0o644)
    assert mode(folder.path / "note") == 0o644
    assert folder.read("note") == "x"


def test_the_first_of_two_writers_wins_without_replace(folder: StateFolder) -> None:
    folder.write_secret("key", "first", replace=False)
    folder.write_secret("key", "second", replace=False)
    assert folder.read_secret("key") == "first"


@pytest.mark.parametrize("bits", [0o640, 0o604, 0o601, 0o620])
def test_a_secret_that_others_may_see_is_refused(folder: StateFolder, bits: int) -> None:
    folder.write("key", "x", bits)
    with refused(f"chmod 600 {folder.path / 'key'}"):
        folder.read_secret("key")


def test_size_and_encoding_have_bounds(folder: StateFolder) -> None:
    folder.write_secret("key", "x" * MAX_SECRET)
    assert len(folder.read_secret("key") or "") == MAX_SECRET
    folder.write_secret("key", "x" * (MAX_SECRET + 1))
    with refused(f"expected at most {MAX_SECRET} bytes of text"):
        folder.read_secret("key")
    (folder.path / "key").write_bytes(b"\xff")
    with refused(f"expected at most {MAX_SECRET} bytes of text"):
        folder.read_secret("key")


def test_only_ordinary_files_are_read(folder: StateFolder) -> None:
    (folder.path / "link").symlink_to("/etc/passwd")
    os.mkfifo(folder.path / "fifo", 0o600)
    (folder.path / "dir").mkdir(mode=0o700)
    with refused("link: expected an ordinary file, not a symbolic link"):
        folder.read_secret("link")
    for name in ("fifo", "dir"):
        with refused(f"{name}: expected an ordinary file"):
            folder.read_secret(name)


def test_a_link_is_replaced_and_not_followed(folder: StateFolder, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    for name in ("key", ".key.new"):
        (folder.path / name).symlink_to(victim)
    folder.write_secret("key", "new")
    assert victim.read_text() == "mine"
    assert folder.read_secret("key") == "new"


def test_what_a_killed_writer_left_behind_is_no_hindrance(folder: StateFolder) -> None:
    (folder.path / ".key.new").write_text("hal")
    folder.write_secret("key", "whole")
    assert folder.read_secret("key") == "whole"
    assert not (folder.path / ".key.new").exists()


@pytest.mark.parametrize("call", ["write", "fsync", "fchmod", "rename", "fchown", "open"])
def test_a_write_that_fails_anywhere_leaves_the_old_file_alone(
    folder: StateFolder, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    folder.write_secret("key", "old")
    with monkeypatch.context() as patch:
        if call == "write":
            patch.setattr(os, "fdopen", failing(errno.ENOSPC))
        elif call == "fchown":
            patch.setattr(os, "geteuid", lambda: 0)
            patch.setattr(os, "fstat", lambda _: os.stat_result((0,) * 4 + (NOBODY,) * 6))
            patch.setattr(os, "fchown", failing(errno.ENOSPC))
        else:
            patch.setattr(os, call, failing(errno.ENOSPC))
        with refused("no space left on the disk"):
            folder.write_secret("key", "new")
    assert folder.read_secret("key") == "old"
    assert [path.name for path in folder.path.iterdir()] == ["key"]


def test_a_folder_that_went_away(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path / "none")
    with refused("No such file or directory"):
        folder.write("x", "y")
    with refused("No such file or directory"):
        folder.claim("x")
    with refused("No such file or directory"), folder.exclusively():
        pass


def test_reading_that_fails(folder: StateFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "open", failing(errno.EACCES))
    with refused("has no access"):
        folder.read("x")


def test_a_claimed_file_is_ours_and_kept(folder: StateFolder) -> None:
    file = folder.claim("db")
    assert mode(file) == 0o600
    file.write_text("content")
    assert folder.claim("db").read_text() == "content"
    (folder.path / "link").symlink_to("nowhere")
    with refused("link: expected an ordinary file"):
        folder.claim("link")


@pytest.mark.parametrize("bits", [0o640, 0o604, 0o660, 0o644])
def test_a_claimed_file_that_others_may_use_is_refused(folder: StateFolder, bits: int) -> None:
    folder.claim("db").chmod(bits)
    with refused(f"chmod 600 {folder.path / 'db'}"):
        folder.claim("db")


def test_a_claimed_file_must_be_usable(
    folder: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.claim("db")
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    with refused("db: user", "has no access; it belongs to"):
        folder.claim("db")


def test_one_writer_at_a_time(folder: StateFolder) -> None:
    with folder.exclusively():
        fd = os.open(folder.path, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(fd)
    folder.write("key", "x")


# Locks

HOLD = """
import sys
from pathlib import Path
from protocol.process.state import StateFolder
with StateFolder(Path(sys.argv[1])).lock("lock"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_keeps_a_second_process_out_until_the_first_is_gone(folder: StateFolder) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, folder.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with refused(f"{folder.path}: already in use by another process"), folder.lock("lock"):
            pass
        other.kill()
    with folder.lock("lock"), folder.lock("other"):
        assert mode(folder.path / "lock") == 0o600
    with folder.lock("lock"):
        pass


def test_a_lock_that_cannot_be_opened(folder: StateFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StateFolder, "claim", lambda self, name: self.path / name)
    with refused("No such file or directory"), folder.lock("lock"):
        pass


# As root, beside a server under its own user. Elsewhere these say nothing that can be tried.

if ROOT:

    def test_files_belong_to_the_folders_owner(folder: StateFolder) -> None:
        os.chown(folder.path, NOBODY, NOBODY)
        folder.write_secret("key", "x")
        folder.claim("db")
        made = folder.path / "made"
        made.touch()
        folder.give_to_owner(made)
        with folder.lock("lock"):
            pass
        for path in folder.path.iterdir():
            assert (path.stat().st_uid, path.stat().st_gid) == (NOBODY, NOBODY), path
        with as_user(NOBODY, reach=folder.path):
            assert folder.read_secret("key") == "x"
            folder.write_secret("key", "y")
        assert folder.read_secret("key") == "y"

    def test_a_secret_of_a_stranger_is_refused(folder: StateFolder) -> None:
        folder.write_secret("key", "x")
        os.chown(folder.path / "key", NOBODY, NOBODY)
        with refused("this secret belongs to", f"chown root {folder.path / 'key'}"):
            folder.read_secret("key")

    def test_a_foreign_folder_is_refused_to_others(folder: StateFolder) -> None:
        folder.write_secret("key", "x")
        folder.path.chmod(0o755)
        with as_user(NOBODY, reach=folder.path):
            with refused("not writable for user", "belongs to root", "run as that user"):
                folder.ensure()
            with refused("key: user", "has no access; it belongs to root"):
                folder.read_secret("key")
            with refused("has no access; it belongs to root"):
                folder.write_secret("key", "y")
            with refused("has no access"):
                folder.claim("db")

    def test_an_owner_without_a_name_is_a_number(folder: StateFolder) -> None:
        folder.write_secret("key", "x")
        os.chown(folder.path / "key", 54321, 54321)
        with refused("belongs to 54321"):
            folder.read_secret("key")


def test_the_owner_is_left_alone_without_root(
    folder: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "chown", failing(errno.EPERM))
    made = folder.path / "made"
    made.touch()
    folder.give_to_owner(made)


# On a disk of its own, where one may be mounted: containers often forbid that even to root. The
# same errors are made up above.

if ROOT and subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode == 0:

    @pytest.fixture
    def small_disk(tmp_path: Path) -> Iterator[StateFolder]:
        disk = tmp_path / "disk"
        disk.mkdir(mode=0o700)
        mount = ["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "tmpfs", str(disk)]
        subprocess.run(mount, check=True)
        yield StateFolder(disk)
        subprocess.run(["umount", "--lazy", disk], check=True)

    def test_a_full_disk(small_disk: StateFolder) -> None:
        small_disk.ensure()
        small_disk.write_secret("key", "old")
        with refused("big: no space left on the disk"):
            small_disk.write("big", "x" * 100_000)
        assert [path.name for path in small_disk.path.iterdir()] == ["key"]
        assert small_disk.read_secret("key") == "old"

    def test_a_read_only_disk(small_disk: StateFolder) -> None:
        small_disk.write_secret("key", "old")
        subprocess.run(["mount", "-o", "remount,ro", small_disk.path], check=True)
        with refused("on a read-only file system"):
            small_disk.ensure()
        with refused("key: on a read-only file system"):
            small_disk.write_secret("key", "new")
        assert small_disk.read_secret("key") == "old"


def test_what_is_removed_is_gone(folder: StateFolder) -> None:
    folder.write_secret("a.key", "1")
    folder.remove("a.key")
    assert folder.read_secret("a.key") is None
    folder.remove("a.key")  # nothing to do
    (folder.path / "a.key").mkdir()
    with refused("a.key"):
        folder.remove("a.key")


def test_what_cannot_be_removed_is_told(
    folder: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.write_secret("a.key", "1")
    monkeypatch.setattr(os, "unlink", failing(errno.EROFS))
    with refused("a.key: on a read-only file system"):
        folder.remove("a.key")
