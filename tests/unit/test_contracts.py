"""The walls of the house are listed by hand; nobody may build outside of them unnoticed."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_module_of_the_core_is_under_its_contract() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = [
        contract["source_modules"]
        for contract in settings["tool"]["importlinter"]["contracts"]
        if contract["name"].startswith("The core")
    ]
    modules = {path.stem for path in (ROOT / "protocol").glob("*.py")} - {"__init__"}
    assert listed == [[f"protocol.{name}" for name in sorted(modules)]]
