"""Where the repository is that the tests run in."""

from __future__ import annotations

from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
OPENWRT: Final = ROOT / "deploy" / "openwrt"
