"""Configuration: a TOML file read into frozen dataclasses.

The dataclass is the schema. Its fields are the keys, its defaults are the defaults, a field that is
itself a dataclass is a table and a `dict[str, Dataclass]` holds named tables. What a type cannot
say, a field's metadata does:

    parse:    takes the raw value, returns the field's; raises ValueError("expected …")
    expects:  what to put after "expected" when the type is wrong
    meaning:  what the key is for, and why its default is what it is  ┐ for
    syntax:   what its value looks like, unless the type says so       │ docs/configuration.md
    absent:   what applies if it is left out and the default is None  ┘

A class variable `former_keys` maps names that keys once had to their present ones; those of other
tables may be among them. A former name is refused with the present one in the message. A dataclass
may also raise ValueError from `__post_init__` where two keys contradict each other. Whatever is
wrong ends in one line that names the file, the key and what is expected.
"""

from __future__ import annotations

import dataclasses
import math
import re
import tomllib
import types
import typing
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

_Schema = TypeVar("_Schema")
_Number = TypeVar("_Number", int, float)

# Long enough for every setting; sums with the time of day stay far from any overflow.
MAX_DURATION: Final = 3650 * 86400.0

_DURATION: Final = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)\s*(ms|s|m|h|d)?")
_SECONDS: Final = {None: 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE: Final = re.compile(r"([0-9]{1,15})\s*(B|KiB|MiB|GiB)?")
_BYTES: Final = {None: 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}

_TYPE_NAMES: Final[dict[object, str]] = {
    str: "a string",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    Path: "a path",
}


class ConfigError(Exception):
    """The user's configuration or command line is wrong; the text is one line for the user."""


def load(schema: type[_Schema], path: Path, *, required: bool) -> _Schema:
    """Read the file at `path`; one that is missing and not `required` gives the defaults."""
    try:
        table = tomllib.loads(path.read_bytes().decode())
    except (FileNotFoundError, NotADirectoryError):
        if required:
            raise ConfigError(f"{path}: no such file") from None
        table = {}
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: expected TOML in UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: expected TOML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{path}: expected TOML nested less deeply") from None
    try:
        return _build(schema, table, "")
    except _Wrong as wrong:
        raise ConfigError(f"{path}: {wrong}") from None


class _Wrong(Exception):  # noqa: N818 - becomes a ConfigError once the file is known
    """What is wrong under which key."""


def _build(schema: type[_Schema], table: Mapping[str, object], where: str) -> _Schema:
    fields = {field.name: field for field in dataclasses.fields(schema)}  # type: ignore[arg-type]  # _Schema is a dataclass, which typing cannot say
    hints = typing.get_type_hints(schema)
    prefix = f"{where}." if where else ""
    for key in table:
        if key not in fields:
            raise _Wrong(f"{prefix}{_shown_key(key)}: {_what_instead(key, schema, fields)}")
    values = {}
    for name, field in fields.items():
        if name in table:
            values[name] = _convert(hints[name], table[name], f"{prefix}{name}", field.metadata)
        elif field.default is field.default_factory is dataclasses.MISSING:
            expected = field.metadata.get("expects") or _expected(hints[name])
            raise _Wrong(f"{prefix}{name}: missing; expected {expected}")
    try:
        return schema(**values)
    except ValueError as error:
        raise _Wrong(f"{where}: {error}" if where else str(error)) from None


def _what_instead(key: str, schema: type[object], fields: Collection[str]) -> str:
    former: Mapping[str, str] = getattr(schema, "former_keys", {})
    if former.get(key) in fields:
        return f"this key is called {former[key]} now"
    import difflib  # only needed after a typing error

    near = difflib.get_close_matches(key.replace("-", "_"), fields, n=1)
    hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(fields)}"
    return f"unknown key; {hint}"


def _convert(hint: Any, value: object, where: str, metadata: Mapping[str, Any]) -> object:
    parse: Callable[[object], object] | None = metadata.get("parse")
    if parse is not None:
        try:
            return parse(value)
        except ValueError as error:
            raise _Wrong(f"{where}: {error}") from None
    expects = metadata.get("expects") or _expected(hint)
    wrong = _Wrong(f"{where}: expected {expects}, not {_shown(value)}")
    if _is_union(hint):  # TOML has no null, so only X of X | None can be meant
        hint = next(part for part in typing.get_args(hint) if part is not types.NoneType)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise wrong
        return _build(typing.cast("type[object]", hint), value, where)
    if origin is dict:
        if not isinstance(value, dict):
            raise wrong
        return {
            key: _convert(arguments[1], item, f"{where}.{_shown_key(key)}", {})
            for key, item in value.items()
        }
    if origin is tuple:
        if not isinstance(value, list):
            raise wrong
        return tuple(
            _convert(arguments[0], item, f"{where}[{index}]", {})
            for index, item in enumerate(value)
        )
    if origin is typing.Literal:
        if value not in arguments:
            raise wrong
        return value
    if hint is Path and isinstance(value, str) and value and "\0" not in value:
        return Path(value)
    if hint is float and type(value) in (int, float) and math.isfinite(typing.cast("float", value)):
        return float(typing.cast("float", value))
    if hint in (str, int, bool) and type(value) is hint:  # a bool is no int here
        return value
    raise wrong


def _is_union(hint: Any) -> bool:
    # The second is that of a Literal and None.
    return isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union


def _expected(hint: Any) -> str:
    arguments = typing.get_args(hint)
    if _is_union(hint):
        return " or ".join(_expected(part) for part in arguments if part is not types.NoneType)
    match typing.get_origin(hint):
        case builtins_tuple if builtins_tuple is tuple:
            return f"an array, each item {_expected(arguments[0])}"
        case literal if literal is typing.Literal:
            return " or ".join(repr(argument) for argument in arguments)
    return _TYPE_NAMES.get(hint, "a table")


def _shown(value: object) -> str:
    """`value` on one line of bearable length."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _shown_key(key: str) -> str:
    return key if re.fullmatch(r"[\w-]+", key) else _shown(key)


def parse_duration(value: object) -> float:
    """Read `30s`, `15m`, `1h`, `2d`, `250ms` or a number of seconds; the result is in seconds."""
    seconds = math.nan
    if isinstance(value, str):
        if match := _DURATION.fullmatch(value.strip()):
            seconds = float(match[1]) * _SECONDS[match[2]]
    elif isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value) if abs(value) <= MAX_DURATION else math.inf
    if not 0 <= seconds <= MAX_DURATION:  # true of NaN as well
        raise ValueError(f"expected a duration such as 30s, 15m, 1h or 2d, not {_shown(value)}")
    return seconds


def parse_size(value: object) -> int:
    """Read `64KiB`, `4MiB`, `1GiB` or a number of bytes; the result is in bytes."""
    if isinstance(value, str) and (match := _SIZE.fullmatch(value.strip())):
        return int(match[1]) * _BYTES[match[2]]
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise ValueError(f"expected a size such as 64KiB, 4MiB or 1GiB, not {_shown(value)}")


def parse_count(value: object) -> int:
    """Accept a whole number; for use with `between`."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ValueError(f"expected a whole number, not {_shown(value)}")


def between(
    parse: Callable[[object], _Number], low: str | int, high: str | int
) -> Callable[[object], _Number]:
    """A parser that accepts what `parse` does from `low` to `high`, both as a user writes them."""
    lowest, highest = parse(low), parse(high)

    def bounded(value: object) -> _Number:
        result = parse(value)
        if not lowest <= result <= highest:
            raise ValueError(f"expected {low} to {high}, not {_shown(value)}")
        return result

    return bounded


def each(
    parse: Callable[[str], _Schema], *, least: int = 0, most: int | None = None
) -> Callable[[object], tuple[_Schema, ...]]:
    """A parser for an array of `least` to `most` strings, each read by `parse`."""

    def items(value: object) -> tuple[_Schema, ...]:
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise ValueError(f"expected an array of strings, not {_shown(value)}")
        if most is not None and not least <= len(value) <= most:
            raise ValueError(f"expected {least} to {most} items, not {len(value)}")
        return tuple(parse(item) for item in value)

    return items


def setting(
    default: Any,
    meaning: str,
    *,
    parse: Callable[[object], object] | None = None,
    syntax: str = "",
    absent: str = "",
) -> Any:
    """A field; the module's docstring says what the arguments are."""
    said = {"meaning": meaning, "parse": parse, "syntax": syntax, "absent": absent}
    return dataclasses.field(
        default=default, metadata={key: value for key, value in said.items() if value}
    )


def duration(default: str | None, low: str, high: str, meaning: str) -> Any:
    """A field in seconds. All but `meaning` are as a user writes them."""
    return setting(
        None if default is None else parse_duration(default),
        meaning,
        parse=between(parse_duration, low, high),
        syntax=f"duration, {low} to {high}",
    )


def size(default: str, low: str, high: str, meaning: str) -> Any:
    """A field in bytes. All but `meaning` are as a user writes them."""
    return setting(
        parse_size(default),
        meaning,
        parse=between(parse_size, low, high),
        syntax=f"size, {low} to {high}",
    )


def count(default: int | None, low: int, high: int, meaning: str, *, absent: str = "") -> Any:
    return setting(
        default,
        meaning,
        parse=between(parse_count, low, high),
        syntax=f"{low} to {high}",
        absent=absent,
    )
