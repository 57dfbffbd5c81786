from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.process.config import (
    MAX_DURATION,
    ConfigError,
    between,
    each,
    load,
    parse_count,
    parse_duration,
    parse_size,
)


@dataclass(frozen=True, slots=True)
class Service:
    target: str
    port: int | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    low: int = 0
    high: int = 10

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError("expected low to be at most high")


def parse_colour(value: object) -> str:
    if value not in ("red", "blue"):
        raise ValueError(f"expected red or blue, not {value!r}")
    return str(value).upper()


@dataclass(frozen=True, slots=True)
class Schema:
    former_keys: ClassVar = {"tint": "colour", "hues": "no key of this table"}

    title: str = "none"
    count: int = 1
    ratio: float = 0.5
    switch: bool = False
    file: Path = Path("/default")
    note: str | None = None
    numbers: tuple[int, ...] = ()
    tables: tuple[Limits, ...] = ()
    level: Literal["low", "high"] = "low"
    limits: Limits = Limits()
    services: dict[str, Service] = field(default_factory=dict)
    colour: str = field(default="RED", metadata={"parse": parse_colour})
    hue: int = field(default=0, metadata={"expects": "degrees from red"})


@dataclass(frozen=True, slots=True)
class Demanding:
    name: str
    word: str = field(metadata={"expects": "the magic word"})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "some.toml"


def test_everything_has_its_default(file: Path) -> None:
    assert load(Schema, file, required=False) == Schema()
    file.write_text("")
    assert load(Schema, file, required=True) == Schema()


def test_every_type_is_read(file: Path) -> None:
    file.write_text(
        """
        title = "a"
        count = 2
        ratio = 3
        switch = true
        file = "/x"
        note = "n"
        numbers = [1, 2]
        level = "high"
        colour = "blue"
        [limits]
        high = 5
        [[tables]]
        low = 3
        [services.ssh]
        target = "127.0.0.1:22"
        [services."a b"]
        target = "t"
        port = 5
        """
    )
    loaded = load(Schema, file, required=True)
    assert loaded == Schema(
        title="a",
        count=2,
        ratio=3.0,
        switch=True,
        file=Path("/x"),
        note="n",
        numbers=(1, 2),
        tables=(Limits(low=3),),
        level="high",
        colour="BLUE",
        limits=Limits(high=5),
        services={"ssh": Service("127.0.0.1:22"), "a b": Service("t", 5)},
    )
    assert isinstance(loaded.ratio, float)


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ("tint = 'x'", "tint: this key is called colour now"),
        ("hues = 'x'", "hues: unknown key; did you mean hue?"),
        ("titel = 'x'", "titel: unknown key; did you mean title?"),
        ("limits.hihg = 1", "limits.hihg: unknown key; did you mean high?"),
        ("limits.qqq = 1", "limits.qqq: unknown key; expected one of low, high"),
        ('"a\\nb" = 1', "'a\\nb': unknown key; expected one of title, count"),
        ("title = 1", "title: expected a string, not 1"),
        ("count = true", "count: expected a whole number, not True"),
        ("count = 1.0", "count: expected a whole number, not 1.0"),
        ("ratio = 'x'", "ratio: expected a number, not 'x'"),
        ("ratio = nan", "ratio: expected a number, not nan"),
        ("ratio = true", "ratio: expected a number, not True"),
        ("switch = 1", "switch: expected true or false, not 1"),
        ("file = ''", "file: expected a path, not ''"),
        ('file = "a\\u0000"', "file: expected a path, not 'a\\x00'"),
        ("note = 1", "note: expected a string, not 1"),
        ("numbers = 1", "numbers: expected an array, each item a whole number, not 1"),
        ("numbers = [1, 'x']", "numbers[1]: expected a whole number, not 'x'"),
        ("tables = [1]", "tables[0]: expected a table, not 1"),
        ("level = 'mid'", "level: expected 'low' or 'high', not 'mid'"),
        ("limits = 1", "limits: expected a table, not 1"),
        ("services = 1", "services: expected a table, not 1"),
        ("services.ssh = 1", "services.ssh: expected a table, not 1"),
        ("services.ssh.port = 1", "services.ssh.target: missing; expected a string"),
        ('services."a b".x = 1', "services.'a b'.x: unknown key; expected one of target, port"),
        ("colour = 'green'", "colour: expected red or blue, not 'green'"),
        ("hue = 'x'", "hue: expected degrees from red, not 'x'"),
        ("limits = {low = 11}", "limits: expected low to be at most high"),
        (f"title = [{'1,' * 100}]", "..."),
        ("x = ", "expected TOML: Invalid value (at end of document)"),
        (f"x = {'[' * 5000}", "expected TOML nested less deeply"),
    ],
)
def test_what_is_wrong_is_one_line_with_file_and_key(file: Path, toml: str, said: str) -> None:
    file.write_text(toml)
    with pytest.raises(ConfigError) as caught:
        load(Schema, file, required=False)
    line = str(caught.value)
    assert line.startswith(f"{file}: ")
    assert said in line
    assert "\n" not in line
    assert len(line) < len(str(file)) + 200


def test_a_contradiction_at_the_top_has_no_key(file: Path) -> None:
    file.write_text("low = 11")
    with pytest.raises(ConfigError) as caught:
        load(Limits, file, required=True)
    assert str(caught.value) == f"{file}: expected low to be at most high"


def test_what_has_no_default_must_be_there(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"name: missing; expected a string$"):
        load(Demanding, file, required=False)
    file.write_text("name = 'x'")
    with pytest.raises(ConfigError, match=r"word: missing; expected the magic word$"):
        load(Demanding, file, required=False)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none: no such file$"):
        load(Schema, tmp_path / "none", required=True)
    with pytest.raises(ConfigError, match=r"cannot be read: Is a directory$"):
        load(Schema, tmp_path, required=False)
    (tmp_path / "file").touch()
    # Whose folder that should be is the better one to complain.
    assert load(Schema, tmp_path / "file" / "some.toml", required=False) == Schema()
    latin = tmp_path / "latin.toml"
    latin.write_bytes(b"title = '\xe9'")
    with pytest.raises(ConfigError, match=r"expected TOML in UTF-8$"):
        load(Schema, latin, required=True)


@given(st.text())
def test_any_text_gives_a_schema_or_a_config_error(text: str) -> None:
    class Text(type(Path())):  # type: ignore[misc]  # the concrete class is chosen at run time
        def read_bytes(self) -> bytes:
            return text.encode("utf-8", "surrogatepass")

    with contextlib.suppress(ConfigError):
        load(Schema, Text("any"), required=True)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("30s", 30.0),
        ("15m", 900.0),
        ("1h", 3600.0),
        ("2d", 172800.0),
        ("250ms", 0.25),
        (" 1.5 h ", 5400.0),
        ("90", 90.0),
        (90, 90.0),
        (0, 0.0),
        (0.5, 0.5),
        ("3650d", MAX_DURATION),
        (MAX_DURATION, MAX_DURATION),
    ],
)
def test_durations(value: object, seconds: float) -> None:
    assert parse_duration(value) == seconds


@pytest.mark.parametrize(
    "value",
    [
        *("", "s", "-1s", "1w", "1h30m", "1e9", "3651d", "٣s", True, None, []),
        *(-1, float("nan"), float("inf"), 10**400, MAX_DURATION + 1),
    ],
)
def test_no_durations(value: object) -> None:
    with pytest.raises(ValueError, match=r"^expected a duration such as 30s, 15m, 1h or 2d, not "):
        parse_duration(value)


@pytest.mark.parametrize(
    ("value", "size"),
    [("4MiB", 4 << 20), ("64 KiB", 1 << 16), ("1GiB", 1 << 30), ("7", 7), ("7B", 7), (0, 0)],
)
def test_sizes(value: object, size: int) -> None:
    assert parse_size(value) == size


@pytest.mark.parametrize("value", ["", "4MB", "4mib", "-1", "1.5MiB", -1, 1.0, True, None])
def test_no_sizes(value: object) -> None:
    with pytest.raises(ValueError, match=r"^expected a size such as 64KiB, 4MiB or 1GiB, not "):
        parse_size(value)


def test_bounds_are_included_and_named() -> None:
    bounded = between(parse_duration, "1s", "1m")
    assert bounded("1s") == 1.0
    assert bounded(60) == 60.0
    for value in ("999ms", "61s"):
        with pytest.raises(ValueError, match=f"^expected 1s to 1m, not '{value}'$"):
            bounded(value)
    with pytest.raises(ValueError, match=r"^expected a duration"):
        bounded("x")


def test_counts() -> None:
    assert parse_count(3) == 3
    for value in (True, 1.0, "3"):
        with pytest.raises(ValueError, match=r"^expected a whole number, not "):
            parse_count(value)


def test_arrays_of_parsed_strings() -> None:
    assert each(str.upper)(["a", "b"]) == ("A", "B")
    for value in ("a", ["a", 1]):
        with pytest.raises(ValueError, match=r"^expected an array of strings, not "):
            each(str.upper)(value)


def test_arrays_with_bounds() -> None:
    bounded = each(str.upper, least=1, most=2)
    assert [bounded(["a"] * count) for count in (1, 2)] == [("A",), ("A", "A")]
    for count in (0, 3):
        with pytest.raises(ValueError, match=f"^expected 1 to 2 items, not {count}$"):
            bounded(["a"] * count)
