"""One target under atheris: `python -m tests.fuzz.engine TARGET [libFuzzer's options]`.

What is imported here is instrumented, so that each new way through it counts as a find and is
built upon: the protocol, msgpack's decoder in Python, and the judges of the targets themselves.
"""

from __future__ import annotations

import importlib
import sys

import atheris


def main() -> None:
    name = sys.argv[1]
    with atheris.instrument_imports(include=["protocol", "msgpack", "tests.fuzz"]):
        target = importlib.import_module(f"tests.fuzz.{name}")
    atheris.Setup([name, *sys.argv[2:]], target.fuzz_one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
