"""Run the agent on the parts of Python that its OpenWrt package depends on.

    python -I -S openwrt_python.py DEPENDS FEED PACKAGE ARGUMENT...

OpenWrt splits the standard library into packages. A module of one that DEPENDS (names with commas)
does not bring cannot be imported here. Beside the standard library there is only FEED, the folder
with what comes from OpenWrt's feed, and PACKAGE, the folder that our package installs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

# Which package has which modules; all others are in python3-light. From lang/python/python3 of
# openwrt/packages, in the branches 24.10, 25.12 and master: files/python3-package-*.mk, and the
# Makefile for what is in no package.
SPLIT_OFF = {
    "python3-asyncio": "asyncio",
    "python3-cgi": "cgi",
    "python3-cgitb": "cgitb",
    "python3-codecs": "_codecs_cn _codecs_hk _codecs_iso2022 _codecs_jp _codecs_kr _codecs_tw"
    " unicodedata",
    "python3-ctypes": "ctypes _ctypes",
    "python3-dbm": "dbm _dbm _gdbm",
    "python3-decimal": "decimal _decimal",
    "python3-distutils": "distutils",
    "python3-email": "email",
    "python3-lib2to3": "lib2to3",
    "python3-logging": "logging",
    "python3-lzma": "lzma _lzma",
    "python3-multiprocessing": "multiprocessing _multiprocessing",
    "python3-ncurses": "curses _curses _curses_panel",
    "python3-openssl": "_hashlib _ssl",
    "python3-pydoc": "doctest pydoc pydoc_data",
    "python3-readline": "readline",
    "python3-sqlite3": "sqlite3 _sqlite3",
    "python3-unittest": "unittest",
    "python3-urllib": "urllib",
    "python3-uuid": "uuid _uuid",
    "python3-venv": "ensurepip venv",
    "python3-xml": "xml xmlrpc _elementtree pyexpat",
    "no package": "idlelib tkinter _tkinter turtledemo webbrowser _osx_support nis",
}
# email is a package of its own up to 25.12, and a part of python3-urllib after that.
BROUGHT_ALONG = {"python3-urllib": "python3-email"}


class OpenWrtParts:
    """Refuses to find what is in a package that is not there."""

    def __init__(self, depends: set[str]) -> None:
        there = depends | {BROUGHT_ALONG.get(package, package) for package in depends}
        self._missing = {
            module: package
            for package, modules in SPLIT_OFF.items()
            for module in modules.split()
            if package not in there
        }

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package = self._missing.get(name)
        if package is not None:
            raise ModuleNotFoundError(f"{name} is in {package}, not declared", name=name)
        return None


def main() -> None:
    depends, feed, package = sys.argv[1:4]
    parts = OpenWrtParts(set(depends.split(",")))
    sys.meta_path.insert(0, parts)
    early = parts._missing.keys() & sys.modules
    assert not early, f"imported before the restriction: {early}"
    sys.path += [feed]
    sys.argv = [package, *sys.argv[4:]]
    import runpy

    runpy.run_path(package, run_name="__main__")


if __name__ == "__main__":
    main()
