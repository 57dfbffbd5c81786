from __future__ import annotations

import resource
from pathlib import Path

import pytest

from protocol.process.limits import raise_descriptor_limit, tell_small_buffers


def told(folder: Path, wanted: int, caplog: pytest.LogCaptureFixture) -> list[str]:
    caplog.clear()
    caplog.set_level("INFO")
    tell_small_buffers(wanted, folder)
    return [record.event_fields["sysctl"] for record in caplog.records]  # type: ignore[attr-defined]


def test_each_bound_below_what_is_wanted_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "tcp_rmem").write_text("4096\t131072\t6291456\n")
    (tmp_path / "tcp_wmem").write_text("4096\t16384\t4194304\n")
    assert told(tmp_path, 4_194_304, caplog) == []
    assert told(tmp_path, 4_194_305, caplog) == ["net.ipv4.tcp_wmem"]
    assert told(tmp_path, 8_388_608, caplog) == ["net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem"]


@pytest.mark.parametrize("text", ["", "4096 16384", "a b c"])
def test_a_system_that_does_not_say_is_let_be(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    (tmp_path / "tcp_rmem").write_text(text)
    assert told(tmp_path, 1, caplog) == []


def test_as_many_descriptors_as_the_system_allows() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    _, hard = before
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 256), hard))
        raise_descriptor_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
        raise_descriptor_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_system_that_does_not_let_it_leaves_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "getrlimit", lambda _: (1, 2))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    raise_descriptor_limit()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (1, 2)
