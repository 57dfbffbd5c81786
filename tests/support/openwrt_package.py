"""The .ipk as a router has it: built, taken apart and unpacked."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tarfile
from pathlib import Path

from tests.support.repository import ROOT


def unpack_package(folder: Path) -> tuple[Path, tuple[str, ...]]:
    """The folder of the agent's modules below `folder`, and the packages it depends on."""
    subprocess.run([sys.executable, ROOT / "deploy/openwrt/build.py", folder / "dist"], check=True)
    (ipk,) = folder.glob("dist/*.ipk")
    with tarfile.open(ipk) as outer:
        data = _member(outer, "./data.tar.gz")
        control = _member(_tar(_member(outer, "./control.tar.gz")), "./control").decode()
    archive = _tar(data)
    # Since 3.11.4, and asked for from 3.14 on.
    archive.extraction_filter = getattr(tarfile, "tar_filter", None)
    archive.extractall(folder / "root")
    (depends,) = re.findall(r"^Depends: (.*)$", control, re.MULTILINE)
    return folder / "root/usr/lib/relay-agent", tuple(depends.split(", "))


def _tar(data: bytes) -> tarfile.TarFile:
    return tarfile.open(fileobj=io.BytesIO(data))


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    member = archive.extractfile(name)
    assert member is not None
    return member.read()
