"""Both OpenWrt packages, taken apart without the code that made them.

An .ipk is a gzipped tar of three members. An .apk (of the second format, apk-v2(5)) is one tar in
two gzipped pieces, the first of which names the SHA-256 of the second.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import re
import subprocess
import sys
import tarfile
import zlib
from importlib import metadata
from pathlib import Path

import pytest

from protocol import __version__
from tests.support.repository import OPENWRT, ROOT

LIB = "usr/lib/relay-agent"
PROGRAMS = {"etc/init.d/relay-agent", "usr/bin/relay-agent"}
LISTS = {f"lib/apk/packages/relay-agent.{x}" for x in ("list", "conffiles", "conffiles_static")}
EPOCH_1980 = 315_532_800


class Tar:
    """A tar's members by name, without the leading dot of opkg's."""

    def __init__(self, data: bytes) -> None:
        self._tar = tarfile.open(fileobj=io.BytesIO(data))  # noqa: SIM115 - nothing to close
        self.order = [member.name.removeprefix("./") for member in self._tar.getmembers()]
        self.members = dict(zip(self.order, self._tar.getmembers(), strict=True))

    def __getitem__(self, name: str) -> bytes:
        file = self._tar.extractfile(self.members[name])
        assert file is not None, f"{name} is no file"
        return file.read()

    def files(self) -> set[str]:
        return {name for name, member in self.members.items() if member.isfile()}


@pytest.fixture(scope="module")
def ipk(built: Path) -> Tar:
    return Tar((built / f"relay-agent_{__version__}_all.ipk").read_bytes())


@pytest.fixture(scope="module")
def ipk_data(ipk: Tar) -> Tar:
    return Tar(ipk["data.tar.gz"])


@pytest.fixture(scope="module")
def ipk_control(ipk: Tar) -> Tar:
    return Tar(ipk["control.tar.gz"])


@pytest.fixture(scope="module")
def apk_pieces(built: Path) -> list[bytes]:
    """The gzipped pieces as they are."""
    rest = (built / f"relay-agent-{__version__}-r1.apk").read_bytes()
    pieces = []
    while rest:
        unpacker = zlib.decompressobj(wbits=31)
        unpacker.decompress(rest)
        assert unpacker.eof
        pieces.append(rest[: len(rest) - len(unpacker.unused_data)])
        rest = unpacker.unused_data
    return pieces


@pytest.fixture(scope="module")
def apk_control(apk_pieces: list[bytes]) -> Tar:
    return Tar(gzip.decompress(apk_pieces[0]))


@pytest.fixture(scope="module")
def apk_data(apk_pieces: list[bytes]) -> Tar:
    return Tar(gzip.decompress(apk_pieces[1]))


def fields(text: bytes, separator: str) -> dict[str, str]:
    return dict(line.split(separator, 1) for line in text.decode().splitlines())


# --- What is in them


def test_both_hold_the_same(ipk_data: Tar, apk_data: Tar) -> None:
    assert ipk_data.files() == apk_data.files() - LISTS
    for name in ipk_data.files():
        assert ipk_data[name] == apk_data[name]


def test_all_of_the_agent_and_nothing_of_the_relay(ipk_data: Tar) -> None:
    for package in ("protocol", "relay_agent"):
        ours = {f"{LIB}/{file.relative_to(ROOT)}" for file in (ROOT / package).rglob("*.py")}
        assert ours == {x for x in ipk_data.files() if x.startswith(f"{LIB}/{package}/")}
    assert not any("relay_server" in name for name in ipk_data.members)


def test_every_library_but_those_of_the_feed(ipk_data: Tar, ipk_control: Tar) -> None:
    depends = fields(ipk_control["control"], ": ")["Depends"].split(", ")
    wanted, seen = {"ssh-relay"}, set[str]()
    while wanted:
        name = wanted.pop()
        seen.add(name)
        for requirement in metadata.requires(name) or ():
            library, *marker = requirement.split(";")
            needed = re.match(r"[\w.-]+", library)
            assert needed
            if f"python3-{needed[0]}" not in depends and not "".join(marker).strip():
                wanted |= {needed[0]} - seen
    for name in seen - {"ssh-relay"}:
        module = {"attrs": "attr"}.get(name, name)
        assert f"{LIB}/{module}/__init__.py" in ipk_data.files()
        licences = {x for x in ipk_data.files() if x.startswith(f"{LIB}/licences/{name}/")}
        assert licences, name
    assert f"{LIB}/licences/ssh-relay/LICENSE" in ipk_data.files()


def test_nothing_compiled_no_tests_and_no_key(ipk_data: Tar) -> None:
    for name in ipk_data.members:
        assert not re.search(r"\.(so|pyc|pyi|key)$|_tests|__pycache__", name), name
    assert ipk_data.members["etc/relay-agent"].isdir()


def test_modes_owners_and_times(ipk_data: Tar, apk_data: Tar, ipk_control: Tar) -> None:
    for archive in (ipk_data, apk_data, ipk_control):
        for name, member in archive.members.items():
            assert (member.uid, member.gid) == (0, 0)
            assert member.mtime == EPOCH_1980
            if archive is ipk_control:
                continue
            private = name == "etc/relay-agent"
            runs = member.isdir() or name in PROGRAMS
            assert member.mode == (0o700 if private else 0o755 if runs else 0o644), name


def test_a_folder_comes_before_what_is_in_it(ipk_data: Tar, apk_data: Tar) -> None:
    for archive in (ipk_data, apk_data):
        for position, name in enumerate(archive.order):
            parent = str(Path(name).parent)
            assert parent in (".", "") or parent in archive.order[:position], name


# --- What opkg reads


def test_the_members_of_the_ipk(ipk: Tar, ipk_control: Tar) -> None:
    assert ipk.order == [".", "debian-binary", "data.tar.gz", "control.tar.gz"]
    assert ipk["debian-binary"] == b"2.0\n"
    scripts = {"postinst", "prerm", "postrm"}
    assert ipk_control.files() == {"control", "conffiles", *scripts}
    for name in scripts:
        assert ipk_control.members[name].mode == 0o755
        assert ipk_control[name] == (OPENWRT / name).read_bytes()
    assert ipk_control["conffiles"] == b"/etc/config/relay-agent\n"


def test_the_control_file(ipk_control: Tar, ipk_data: Tar) -> None:
    control = fields(ipk_control["control"], ": ")
    assert control["Package"] == "relay-agent"
    assert control["Version"] == f"{__version__}-r1"
    assert control["Architecture"] == "all"
    assert int(control["Installed-Size"]) == sum(x.size for x in ipk_data.members.values())
    assert {"python3-light", "python3-cryptography"} <= set(control["Depends"].split(", "))


def test_the_ipk_has_no_headers_that_opkg_cannot_read(ipk: Tar, built: Path) -> None:
    whole = next(built.glob("*.ipk")).read_bytes()
    for data in (whole, ipk["data.tar.gz"], ipk["control.tar.gz"]):
        tar = gzip.decompress(data)
        assert tar[257:265] == b"ustar  \0"  # GNU's
        assert b"PaxHeader" not in tar


# --- What apk reads


def test_the_first_piece_vouches_for_the_second(apk_pieces: list[bytes], apk_control: Tar) -> None:
    _, data = apk_pieces
    info = fields(apk_control[".PKGINFO"], " = ")
    assert info["datahash"] == hashlib.sha256(data).hexdigest()
    # The second goes on where the first stops: no end of archive in between.
    assert not gzip.decompress(apk_pieces[0]).endswith(bytes(1024))
    assert gzip.decompress(data).endswith(bytes(1024))


def test_the_package_info(apk_control: Tar, ipk_control: Tar) -> None:
    assert apk_control.order[0] == ".PKGINFO"
    text = apk_control[".PKGINFO"].decode()
    info = fields(text.encode(), " = ")
    assert (info["pkgname"], info["pkgver"]) == ("relay-agent", f"{__version__}-r1")
    assert info["arch"] == "noarch"
    depends = re.findall(r"^depend = (.*)$", text, re.MULTILINE)
    assert ", ".join(depends) == fields(ipk_control["control"], ": ")["Depends"]


def test_an_upgrade_by_apk_knows_that_it_is_one(apk_control: Tar) -> None:
    assert set(apk_control.order) == {
        ".PKGINFO",
        ".post-install",
        ".post-upgrade",
        ".pre-deinstall",
    }
    install, upgrade = apk_control[".post-install"], apk_control[".post-upgrade"]
    assert install == (OPENWRT / "postinst").read_bytes()
    assert upgrade == install.replace(b"#!/bin/sh\n", b"#!/bin/sh\nexport PKG_UPGRADE=1\n")
    assert apk_control[".pre-deinstall"] == (OPENWRT / "prerm").read_bytes()


def test_every_file_has_its_checksum(apk_data: Tar) -> None:
    for name in apk_data.files():
        headers = apk_data.members[name].pax_headers
        assert headers["APK-TOOLS.checksum.SHA1"] == hashlib.sha1(apk_data[name]).hexdigest()


def test_the_lists_that_openwrts_scripts_read(apk_data: Tar) -> None:
    prefix = "lib/apk/packages/relay-agent"
    listed = apk_data[f"{prefix}.list"].decode().splitlines()
    assert listed == sorted(f"/{name}" for name in apk_data.files() - LISTS)
    config = hashlib.sha256(apk_data["etc/config/relay-agent"]).hexdigest()
    assert apk_data[f"{prefix}.conffiles"] == b"/etc/config/relay-agent\n"
    static = f"/etc/config/relay-agent {config}\n"
    assert apk_data[f"{prefix}.conffiles_static"].decode() == static


# --- Building


def build(folder: Path, **environment: str) -> dict[str, bytes]:
    command = [sys.executable, str(OPENWRT / "build.py"), str(folder)]
    subprocess.run(command, check=True, env=os.environ | environment)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_built_again_it_is_the_same_to_the_bit(built: Path, tmp_path: Path) -> None:
    first = {file.name: file.read_bytes() for file in built.iterdir()}
    assert build(tmp_path, PYTHONHASHSEED="1", TZ="Asia/Kathmandu", LANG="C") == first


def test_the_time_may_be_given(built: Path, tmp_path: Path) -> None:
    packages = build(tmp_path, SOURCE_DATE_EPOCH="1700000000")
    data = Tar(Tar(packages[f"relay-agent_{__version__}_all.ipk"])["data.tar.gz"])
    assert {member.mtime for member in data.members.values()} == {1_700_000_000}
