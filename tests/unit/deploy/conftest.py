from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.repository import OPENWRT


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with both OpenWrt packages."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, OPENWRT / "build.py", folder], check=True)
    return folder
