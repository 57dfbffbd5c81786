"""Which sentences a piece of our source can print: its string literals, as regular expressions."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any


def sentences(source: str) -> Iterator[str]:
    """Regular expressions of its strings and f-strings; of the latter, any value fits in."""
    tree = ast.parse(textwrap.dedent(source))
    parts = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        for part in ast.walk(node)
        if part is not node
    }
    for node in ast.walk(tree):
        if id(node) in parts:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield re.escape(node.value.removesuffix("\n"))
        elif isinstance(node, ast.JoinedStr):
            yield "".join(map(_part, node.values)).removesuffix(re.escape("\n"))


def _part(part: ast.expr) -> str:
    return re.escape(str(part.value)) if isinstance(part, ast.Constant) else "(.*)"


def is_sentence(text: str, patterns: list[str]) -> bool:
    """Whether one of `patterns` that says something of its own is `text`."""
    return any(
        re.fullmatch(one, text, re.S)
        for one in patterns
        if re.sub(r"\(\.\*\)|\\|\s", "", one)  # else it is a value alone
    )


def reachable(function: Callable[..., Any], depth: int = 2) -> Iterator[str]:
    """The sentences of `function`, and of what it names of ours: functions and constants."""
    yield from sentences(inspect.getsource(function))
    names = inspect.getclosurevars(function).globals
    for value in names.values():
        match value:
            case str():
                yield re.escape(value)
            case dict():
                yield from (re.escape(one) for one in value.values() if isinstance(one, str))
            case FunctionType() if depth:
                yield from reachable(value, depth - 1)
