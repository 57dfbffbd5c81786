"""The fuzzer's targets without the fuzzer: what it starts from, what it found, and random bytes."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.__main__ import SEEDS, TARGETS, replay
from tests.fuzz.seeds import seeds

FOUND = "found-"


def test_every_target_is_run_and_has_seeds() -> None:
    modules = {
        path.stem for path in SEEDS.parent.glob("*.py") if "\ndef fuzz_one(" in path.read_text()
    }
    assert modules == set(TARGETS) == {folder.name for folder in SEEDS.iterdir()}


def test_the_seeds_are_what_is_recorded_today() -> None:
    """After a change on the wire: `python -m tests.fuzz.seeds`."""
    recorded = dict(seeds())
    for path, data in recorded.items():
        assert path.read_bytes() == data, path
    others = {path for path in SEEDS.glob("*/*") if not path.name.startswith(FOUND)}
    assert others == set(recorded)


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_is_wrong_with_the_corpus(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    paths = sorted((SEEDS / name).iterdir())
    replay(name, paths)
    assert capsys.readouterr().out.count("nothing is wrong") == len(paths)


@pytest.mark.parametrize("name", TARGETS)
@given(data=st.data())
@settings(max_examples=50)
def test_random_bytes(name: str, data: st.DataObject) -> None:
    target = importlib.import_module(f"tests.fuzz.{name}")
    target.fuzz_one(data.draw(st.binary(max_size=300)))


@pytest.mark.parametrize("name", TARGETS)
@given(data=st.data())
@settings(max_examples=50)
def test_seeds_that_are_changed(name: str, data: st.DataObject) -> None:
    """As far from a seed as a few cuts and changes go, which random bytes seldom come near."""
    target = importlib.import_module(f"tests.fuzz.{name}")
    seed: Path = data.draw(st.sampled_from(sorted((SEEDS / name).iterdir())))
    changed = bytearray(seed.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(changed)))
        changed[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    target.fuzz_one(bytes(changed))


def test_a_finding_shows_when_it_is_replayed(tmp_path: Path) -> None:
    nothing = tmp_path / "nothing"
    nothing.write_bytes(b"")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.fuzz.hello.decode_preface", lambda _: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            replay("hello", [nothing])
