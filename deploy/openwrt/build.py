"""Build the agent's OpenWrt packages into dist/: an .ipk for opkg and an .apk for apk 3.

Run it with `make openwrt`. Neither needs OpenWrt's SDK, as there is nothing to compile: both hold
the same Python files, ours and those of the libraries below, taken from the environment that
constraints.txt has pinned. The same files give the same bytes.

The .apk is of the second format, which apk 3 installs like its own third one, with
`--allow-untrusted` as any local file. The third is a memory image of the C structs that apk 3
works with; the second is the tar below.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import re
import sys
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

from protocol import __version__

HERE: Final = Path(__file__).parent
ROOT: Final = HERE.parent.parent
NAME: Final = "relay-agent"
RELEASE: Final = "r1"
LIB: Final = f"usr/lib/{NAME}"

# What OpenWrt has must be compiled: these come from its feed. The rest of the standard library that
# the agent needs, beyond python3-light, is found by tests/e2e/test_openwrt.py. python3-urllib
# brings python3-email where that is a package of its own (up to 25.12).
DEPENDS: Final = (
    "python3-light",
    "python3-codecs",
    "python3-ctypes",
    "python3-logging",
    "python3-openssl",
    "python3-urllib",
    "python3-cryptography",
    "python3-msgpack",
)
# What is pure Python comes along: the feed's trio is older than we need, or does not start.
VENDORED: Final = ("trio", "attrs", "idna", "outcome", "sniffio", "sortedcontainers")
# Of those, what no agent imports, and would make the package half as large again.
LEFT_OUT: Final = re.compile(r"/_tests/|/_tools/|^trio/testing/|\.pyi$|/py\.typed$|\.pyc$")
LICENCE: Final = re.compile(r"LICEN[CS]E|COPYING|NOTICE|AUTHORS", re.IGNORECASE)

DESCRIPTION: Final = "Reach this router's SSH server from anywhere through a relay of your own"
LICENSE: Final = "MIT AND Apache-2.0 AND BSD-3-Clause"
CONFFILES: Final = (f"/etc/config/{NAME}",)

# Any fixed time does. This one is in the past on every clock and fits every file system.
EPOCH: Final = int(os.environ.get("SOURCE_DATE_EPOCH") or 315_532_800)  # 1980-01-01


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of a package, or a folder if `data` is None."""

    path: str
    data: bytes | None
    mode: int


# --- What is in it


def payload() -> list[Entry]:
    """All files and folders, in the order of their paths."""
    files = [*_own_files(), *_python_files(), *_library_files()]
    folders = {parent.as_posix() for file in files for parent in Path(file.path).parents}
    entries = [Entry(path, None, 0o755) for path in folders - {"."}]
    # For the key, so that it is nobody else's from the first moment on.
    entries.append(Entry(f"etc/{NAME}", None, 0o700))
    return sorted(files + entries, key=lambda entry: entry.path)


def _own_files() -> Iterator[Entry]:
    for file in sorted((HERE / "files").rglob("*")):
        path = file.relative_to(HERE / "files").as_posix()
        if file.is_file() and "__pycache__" not in path:
            program = path.startswith(("etc/init.d/", "usr/bin/"))
            yield Entry(path, file.read_bytes(), 0o755 if program else 0o644)


def _python_files() -> Iterator[Entry]:
    for package in ("protocol", "relay_agent"):
        for file in sorted((ROOT / package).rglob("*.py")):
            yield Entry(f"{LIB}/{file.relative_to(ROOT).as_posix()}", file.read_bytes(), 0o644)
    yield Entry(f"{LIB}/licences/ssh-relay/LICENSE", (ROOT / "LICENSE").read_bytes(), 0o644)


def _library_files() -> Iterator[Entry]:
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M))
    for name in VENDORED:
        library = metadata.distribution(name)
        if library.version != pins[name]:
            sys.exit(f"{name} {library.version} is not the pinned {pins[name]}; run: make setup")
        for file in library.files or ():
            path = file.as_posix()
            if ".dist-info/" in path:
                if LICENCE.search(file.name):
                    target = f"{LIB}/licences/{name}/{file.name}"
                    yield Entry(target, file.read_binary(), 0o644)
            elif not path.startswith("..") and not LEFT_OUT.search(path):
                yield Entry(f"{LIB}/{path}", file.read_binary(), 0o644)


# --- The two formats


def ipk(entries: Sequence[Entry]) -> bytes:
    """A gzipped tar of three members, as opkg-build makes it."""
    control = "\n".join(
        (
            f"Package: {NAME}",
            f"Version: {__version__}-{RELEASE}",
            f"Depends: {', '.join(DEPENDS)}",
            f"License: {LICENSE}",
            "Section: net",
            "Architecture: all",
            f"Installed-Size: {_size(entries)}",
            f"Description: {DESCRIPTION}\n",
        )
    )
    members = [
        Entry("control", control.encode(), 0o644),
        Entry("conffiles", _lines(CONFFILES), 0o644),
        Entry("postinst", (HERE / "postinst").read_bytes(), 0o755),
        Entry("prerm", (HERE / "prerm").read_bytes(), 0o755),
        Entry("postrm", (HERE / "postrm").read_bytes(), 0o755),
    ]
    parts = [
        Entry("debian-binary", b"2.0\n", 0o644),
        Entry("data.tar.gz", _gzip(_gnu_tar(entries)), 0o644),
        Entry("control.tar.gz", _gzip(_gnu_tar(members)), 0o644),
    ]
    return _gzip(_gnu_tar(parts))


def apk(entries: Sequence[Entry]) -> bytes:
    """Two gzipped pieces of one tar: what to know before unpacking, and what to unpack."""
    data = _gzip(_apk_tar(sorted([*entries, *_apk_lists(entries)], key=lambda entry: entry.path)))
    info = [
        f"pkgname = {NAME}",
        f"pkgver = {__version__}-{RELEASE}",
        f"pkgdesc = {DESCRIPTION}",
        f"license = {LICENSE}",
        "arch = noarch",
        f"size = {_size(entries)}",
        f"builddate = {EPOCH}",
        *(f"depend = {package}" for package in DEPENDS),
        f"datahash = {hashlib.sha256(data).hexdigest()}",
    ]
    postinst = (HERE / "postinst").read_bytes()
    interpreter, rest = postinst.split(b"\n", 1)
    control = [
        Entry(".PKGINFO", _lines(info), 0o644),
        Entry(".post-install", postinst, 0o755),
        # opkg sets this by itself, and calls prerm for an upgrade too.
        Entry(".post-upgrade", interpreter + b"\nexport PKG_UPGRADE=1\n" + rest, 0o755),
        Entry(".pre-deinstall", (HERE / "prerm").read_bytes(), 0o755),
    ]
    return _gzip(_apk_tar(control, last=False)) + data


def _apk_lists(entries: Sequence[Entry]) -> Iterator[Entry]:
    """What OpenWrt's scripts read where opkg has lists of its own."""
    yield Entry("lib/apk", None, 0o755)
    yield Entry("lib/apk/packages", None, 0o755)
    prefix = f"lib/apk/packages/{NAME}"
    files = {f"/{entry.path}": entry.data for entry in entries if entry.data is not None}
    digests = [f"{path} {hashlib.sha256(files[path] or b'').hexdigest()}" for path in CONFFILES]
    yield Entry(f"{prefix}.list", _lines(sorted(files)), 0o644)
    yield Entry(f"{prefix}.conffiles", _lines(CONFFILES), 0o644)
    yield Entry(f"{prefix}.conffiles_static", _lines(digests), 0o644)


def _gnu_tar(entries: Iterable[Entry]) -> bytes:
    """opkg does not read pax headers, and wants paths that begin with a dot."""
    archive = io.BytesIO()
    for entry in [Entry("", None, 0o755), *entries]:
        header = _header(entry, f"./{entry.path}")
        archive.write(header.tobuf(tarfile.GNU_FORMAT, errors="strict"))
        archive.write(_padded(entry))
    archive.write(bytes(2 * tarfile.BLOCKSIZE))
    return archive.getvalue()


def _apk_tar(entries: Iterable[Entry], *, last: bool = True) -> bytes:
    """With the checksums by which apk tells that somebody has changed a file."""
    archive = io.BytesIO()
    for entry in entries:
        header = _header(entry, entry.path)
        if entry.data is not None:
            checksum = hashlib.sha1(entry.data, usedforsecurity=False).hexdigest()
            header.pax_headers = {"APK-TOOLS.checksum.SHA1": checksum}
        archive.write(header.tobuf(tarfile.PAX_FORMAT))
        archive.write(_padded(entry))
    if last:  # or else the next piece goes on with it
        archive.write(bytes(2 * tarfile.BLOCKSIZE))
    return archive.getvalue()


def _header(entry: Entry, path: str) -> tarfile.TarInfo:
    header = tarfile.TarInfo(path)
    header.mtime = EPOCH
    header.mode = entry.mode
    header.uname = header.gname = "root"
    if entry.data is None:
        header.type = tarfile.DIRTYPE
    else:
        header.size = len(entry.data)
    return header


def _padded(entry: Entry) -> bytes:
    data = entry.data or b""
    return data + bytes(-len(data) % tarfile.BLOCKSIZE)


def _gzip(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


def _size(entries: Iterable[Entry]) -> int:
    return sum(len(entry.data or b"") for entry in entries)


def _lines(lines: Iterable[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def main(folder: Path) -> None:
    entries = payload()
    folder.mkdir(parents=True, exist_ok=True)
    for name, package in (
        (f"{NAME}_{__version__}_all.ipk", ipk(entries)),
        (f"{NAME}-{__version__}-{RELEASE}.apk", apk(entries)),
    ):
        path = folder / name
        path.write_bytes(package)
        digest = hashlib.sha256(package).hexdigest()
        sys.stdout.write(f"{digest}  {os.path.relpath(path)}  {len(package) / 1000:.0f} kB\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "dist")
