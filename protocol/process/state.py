"""The state folder: a process's keys and databases, safe against a full disk and against others.

Writing goes through a new file beside the old one and a rename, so whoever reads sees the old text
or the new one, also after the power failed. Files belong to the folder's owner, whoever writes
them: root runs the CLI beside a server that has an account of its own, and a file of root's in
there would stop that server.

The folder may belong to somebody less trusted than root, so a symbolic link in the place of a file
is never followed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pwd
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, NoReturn, TypeAlias

# Keys and tokens take a line; more is not a secret of ours.
MAX_SECRET: Final = 64 * 1024


class StateError(Exception):
    """The state folder or something in it cannot be used; the text is one line for the user."""


Program: TypeAlias = Literal["relay-server", "relay-agent"]


def default_state_dir(program: Program) -> Path:
    """Where `program` keeps its state unless told otherwise."""
    if os.geteuid() == 0:
        # /etc is what OpenWrt keeps across an upgrade; /var is gone at each boot there.
        return Path("/etc" if program == "relay-agent" else "/var/lib", program)
    base = Path(os.environ.get("XDG_STATE_HOME", ""))
    if not base.is_absolute():  # the specification wants a relative one ignored
        try:
            base = Path.home() / ".local" / "state"
        except RuntimeError:
            raise StateError("this user has no home folder; give --state-dir") from None
    return base / program


@dataclass(frozen=True, slots=True)
class StateFolder:
    path: Path

    def ensure(self) -> None:
        """Make the folder if it is missing; refuse one that cannot be used, or others may use."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = self.path.stat()
            writable = os.access(self.path, os.W_OK | os.X_OK)
            read_only = os.statvfs(self.path).f_flag & os.ST_RDONLY
        except FileExistsError:
            raise StateError(f"{self.path}: expected a folder") from None
        except OSError as error:
            self._fail(self.path, error)
        if read_only:
            raise StateError(f"{self.path}: on a read-only file system")
        if not writable:
            raise StateError(
                f"{self.path}: not writable for user {_user(os.geteuid())}; it belongs to"
                f" {_user(status.st_uid)}: run as that user or give another --state-dir"
            )
        if _is_open(status.st_mode):
            raise StateError(
                f"{self.path}: other users may use this folder; give one of its own by"
                f" --state-dir, or run: chmod 700 {self.path}"
            )

    def read(self, name: str) -> str | None:
        """The text of a file of ours, None if it is missing."""
        with self._opened(name) as fd:
            return None if fd is None else self._read(fd, name)

    def read_secret(self, name: str) -> str | None:
        """Like `read`, for a file that nobody else may see: refused if somebody can."""
        file = self.path / name
        with self._opened(name) as fd:
            if fd is None:
                return None
            status = os.fstat(fd)
            if _is_open(status.st_mode):
                raise StateError(f"{file}: others may read this secret; run: chmod 600 {file}")
            if status.st_uid not in (os.geteuid(), self._owner()[0]):
                raise StateError(
                    f"{file}: this secret belongs to {_user(status.st_uid)};"
                    f" run: chown {_user(self._owner()[0])} {file}"
                )
            return self._read(fd, name)

    def write_secret(self, name: str, text: str, *, replace: bool = True) -> None:
        self.write(name, text, 0o600, replace=replace)

    def write(self, name: str, text: str, mode: int = 0o600, *, replace: bool = True) -> None:
        """Replace the file `name` in one step; on any failure the old one stays as it was.

        Without `replace` one that exists is left alone, so the first of two writers wins.
        """
        file, temporary = self.path / name, f".{name}.new"
        try:
            with self._locked_folder() as folder:
                if not replace and _exists(name, folder):
                    return
                # Whoever left one behind is dead, since we hold the lock.
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary, dir_fd=folder)
                try:
                    fd = self._create(temporary, folder)
                    with os.fdopen(fd, "w", encoding="utf-8") as output:
                        output.write(text)
                        output.flush()
                        os.fchmod(fd, mode)
                        os.fsync(fd)
                    os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
                except BaseException:
                    with contextlib.suppress(OSError):
                        os.unlink(temporary, dir_fd=folder)
                    raise
                os.fsync(folder)  # else the rename may be lost with the power
        except OSError as error:
            self._fail(file, error)

    def remove(self, name: str) -> None:
        """Remove the file `name`, if it is there; it is not back after a power failure."""
        try:
            with self._locked_folder() as folder:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=folder)
                os.fsync(folder)
        except OSError as error:
            self._fail(self.path / name, error)

    def claim(self, name: str) -> Path:
        """The path of the file `name`, made empty with the right owner and mode if missing.

        For files that others write: SQLite gives its companions (-wal, -shm) the mode of the
        database and, as root, its owner.
        """
        file = self.path / name
        try:
            with self._locked_folder() as folder:
                try:
                    os.close(self._create(name, folder))
                except FileExistsError:
                    status = os.stat(name, dir_fd=folder, follow_symlinks=False)
                    if not stat.S_ISREG(status.st_mode):
                        raise StateError(f"{file}: expected an ordinary file") from None
                    if _is_open(status.st_mode):
                        reason = f"others may use this file; run: chmod 600 {file}"
                        raise StateError(f"{file}: {reason}") from None
                    # Asked and not opened: closing it would undo SQLite's locks in this process.
                    if not os.access(name, os.R_OK | os.W_OK, dir_fd=folder):
                        read_only = os.fstatvfs(folder).f_flag & os.ST_RDONLY
                        raise OSError(errno.EROFS if read_only else errno.EACCES, "") from None
        except OSError as error:
            self._fail(file, error)
        return file

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Hold the file `name` against other processes; refused if one of them holds it.

        The kernel lets go when a process ends, however it ends. The file itself stays: removing
        it would let two processes lock two files of one name.
        """
        file = self.claim(name)
        try:
            fd = os.open(file, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            self._fail(file, error)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise StateError(f"{self.path}: already in use by another process") from None
        try:
            yield
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def exclusively(self) -> Iterator[None]:
        """Keep other writers out of the whole folder, for work of a few milliseconds.

        They wait meanwhile. Do not call `write` or `claim` inside: they would wait too.
        """
        try:
            with self._locked_folder():
                yield
        except OSError as error:
            self._fail(self.path, error)

    def give_to_owner(self, file: Path) -> None:
        """Hand a file that we made to the folder's owner, if that is somebody else."""
        uid, gid = self._owner()
        if os.geteuid() == 0 and uid != 0:
            os.chown(file, uid, gid, follow_symlinks=False)

    def _owner(self) -> tuple[int, int]:
        status = self.path.stat()
        return status.st_uid, status.st_gid

    @contextlib.contextmanager
    def _locked_folder(self) -> Iterator[int]:
        """The folder's descriptor, for one writer at a time; that lasts a few milliseconds."""
        folder = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield folder
        finally:
            os.close(folder)

    def _create(self, name: str, folder: int) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        fd = os.open(name, flags, mode=0o600, dir_fd=folder)
        try:
            owner = os.fstat(folder)
            if os.geteuid() == 0 and owner.st_uid != 0:
                os.fchown(fd, owner.st_uid, owner.st_gid)
        except BaseException:
            os.close(fd)
            os.unlink(name, dir_fd=folder)
            raise
        return fd

    @contextlib.contextmanager
    def _opened(self, name: str) -> Iterator[int | None]:
        file = self.path / name
        try:
            # Not blocking: a FIFO in the place of the file would hold us for ever.
            fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            yield None
            return
        except OSError as error:
            self._fail(file, error)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise StateError(f"{file}: expected an ordinary file")
            yield fd
        finally:
            os.close(fd)

    def _read(self, fd: int, name: str) -> str:
        with os.fdopen(fd, "rb", closefd=False) as file:
            data = file.read(MAX_SECRET + 1)
        try:
            if len(data) <= MAX_SECRET:
                return data.decode()
        except UnicodeDecodeError:
            pass
        raise StateError(f"{self.path / name}: expected at most {MAX_SECRET} bytes of text")

    def _fail(self, file: Path, error: OSError) -> NoReturn:
        match error.errno:
            case errno.ENOSPC | errno.EDQUOT:
                reason = "no space left on the disk"
            case errno.EROFS:
                reason = "on a read-only file system"
            case errno.EACCES | errno.EPERM:
                reason = f"user {_user(os.geteuid())} has no access{self._belongs(file)}"
            case errno.ELOOP:
                reason = "expected an ordinary file, not a symbolic link"
            case errno.ENOTDIR:
                reason = "expected a folder"
            case _:
                reason = os.strerror(error.errno) if error.errno else str(error)
        raise StateError(f"{file}: {reason}") from None

    def _belongs(self, file: Path) -> str:
        for path in (file, self.path):
            with contextlib.suppress(OSError):
                return f"; it belongs to {_user(path.lstat().st_uid)}"
        return ""


def _is_open(mode: int) -> bool:
    """Whether anybody but the owner may do anything: who can write could put in a key of theirs."""
    return bool(stat.S_IMODE(mode) & 0o077)


def _exists(name: str, folder: int) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
