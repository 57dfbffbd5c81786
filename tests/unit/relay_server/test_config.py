from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from protocol.process.address import HostPort
from protocol.process.config import ConfigError
from protocol.wire.hello import MAX_SESSION_WINDOW, MAX_STREAM_WINDOW, MIN_WINDOW
from relay_server import CONFIG_FILE
from relay_server.config import (
    Host,
    ServerConfig,
    load_config,
    parse_bind,
    parse_host,
    parse_listen,
    parse_port_range,
)


def load(folder: Path, toml: str) -> ServerConfig:
    (folder / CONFIG_FILE).write_text(toml)
    return load_config(None, folder)


def test_everything_has_a_default(tmp_path: Path) -> None:
    config = load_config(None, tmp_path)
    assert config == ServerConfig()
    assert config.listen == (HostPort("::", 7022),)
    assert config.link_ports == (7022,)
    assert config.dialled == ()
    assert config.bind is None
    assert (config.ports[0], config.ports[-1]) == (11111, 12110)


def test_networks_of_visitors(tmp_path: Path) -> None:
    config = load_config(None, tmp_path)
    assert (len(config.deny), len(config.allow)) == (0, 0)
    assert [str(one) for one in config.penalty_exempt] == ["127.0.0.1/32", "::1/128"]
    config = load(tmp_path, "deny = ['203.0.113.0/24', '2001:db8::/32']\npenalty_exempt = []")
    assert "203.0.113.9" in config.deny
    assert "2001:db8::9" in config.deny
    assert not config.penalty_exempt


def test_metrics_are_told_nowhere_unless_asked_for(tmp_path: Path) -> None:
    assert load_config(None, tmp_path).metrics.listen is None
    config = load(tmp_path, "[metrics]\nlisten = '[::1]:9999'")
    assert config.metrics.listen == HostPort("::1", 9999)
    config = load(tmp_path, "metrics.listen = '127.0.0.1'")
    assert config.metrics.listen == HostPort("127.0.0.1", 9111)
    for value in ("9111", "'vps.example.net'", "':9111'", "true"):
        with pytest.raises(ConfigError, match=r"metrics\.listen: expected"):
            load(tmp_path, f"metrics.listen = {value}")


def test_a_file_that_is_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such file$"):
        load_config(tmp_path / "none.toml", tmp_path)


def test_the_file_is_under_the_options(tmp_path: Path) -> None:
    file = tmp_path / "some.toml"
    file.write_text(
        """
        listen = ["192.0.2.1:443", "[::1]:7022", "192.0.2.2:443"]
        hosts = ["a.example", "b.example:80", "[::1]", "::1", "[::1]:5"]
        bind = "192.0.2.1"
        ports = "1-2"
        detached_keep = "1h"
        replay = "1MiB"
        half_open = 5
        log_format = "json"
        """
    )
    config = load_config(file, tmp_path)
    assert config.link_ports == (443, 7022)
    assert config.dialled == (
        HostPort("a.example", 443),
        HostPort("b.example", 80),
        HostPort("::1", 443),
        HostPort("::1", 443),
        HostPort("::1", 5),
    )
    assert (config.bind, config.ports) == ("192.0.2.1", range(1, 3))
    assert (config.detached_keep, config.replay, config.half_open) == (3600.0, 1 << 20, 5)
    config = load_config(
        file, tmp_path, listen=[HostPort("::", 9)], hosts=[Host("c", None)], bind="::1"
    )
    assert config.dialled == (HostPort("c", 9),)
    assert config.bind == "::1"
    assert config.half_open == 5


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ("deny = '203.0.113.9'", "deny: expected an array of strings, not '203.0.113.9'"),
        ("deny = ['a.example']", "deny: expected an address or a network such as 203.0.113.0/24"),
        ("allow = ['203.0.113.9/24']", "allow: expected 203.0.113.0/24, if that is what"),
        ("penalty_exempt = [1]", "penalty_exempt: expected an array of strings, not [1]"),
        ("lisen = []", "lisen: unknown key; did you mean listen?"),
        ("listen = []", "listen: expected 1 to 8 items, not 0"),
        ("listen = '[::]:1'", "listen: expected an array of strings, not '[::]:1'"),
        ("listen = ['localhost:1']", "listen: expected an address of this machine and a port"),
        ("listen = ['::1:x']", "listen: expected HOST or HOST:PORT"),
        (f"hosts = {['a'] * 9}", "hosts: expected 1 to 8 items, not 9"),
        ("bind = 'eth0'", "bind: expected an address of this machine, not 'eth0'"),
        ("bind = 5", "bind: expected an address of this machine, not 5"),
        ("ports = [1]", 'ports: expected a range of ports such as "11111-12110", not [1]'),
        ("handshake_timeout = 0", "handshake_timeout: expected 1s to 60s, not 0"),
        ("half_open = 0", "half_open: expected 1 to 65535, not 0"),
        ("replay = '1KiB'", "replay: expected 256KiB to 1GiB, not '1KiB'"),
        ("max_streams = 65536", "max_streams: expected 1 to 65535, not 65536"),
        ("log_level = 'loud'", "log_level: expected 'debug' or 'info' or 'warning' or 'error'"),
        ("stream_window = '16MiB'", "expected stream_window to be at most stream_window_max"),
        ("replay_total = '1MiB'", "expected replay to be at most replay_total"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, toml: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, toml)
    assert str(caught.value).startswith(f"{tmp_path / CONFIG_FILE}: {said}")


def test_windows_have_the_bounds_of_the_wire(tmp_path: Path) -> None:
    for key, most in (
        ("stream_window_max", MAX_STREAM_WINDOW),
        ("session_window", MAX_SESSION_WINDOW),
    ):
        assert getattr(load(tmp_path, f"{key} = {most}"), key) == most
        with pytest.raises(ConfigError, match=rf"{key}: expected 16KiB to "):
            load(tmp_path, f"{key} = {most + 1}")
        with pytest.raises(ConfigError, match=rf"{key}: expected 16KiB to "):
            load(tmp_path, f"{key} = {MIN_WINDOW - 1}")
    assert load(tmp_path, f"stream_window = {MIN_WINDOW}").stream_window == MIN_WINDOW


def test_each_default_can_be_written_into_a_file(tmp_path: Path) -> None:
    plain = {
        field.name: getattr(ServerConfig(), field.name)
        for field in dataclasses.fields(ServerConfig)
        if isinstance(getattr(ServerConfig(), field.name), int | float)
    }
    toml = "\n".join(f"{name} = {value}" for name, value in plain.items())
    assert len(plain) > 10
    assert load(tmp_path, toml.replace(".0\n", "\n")) == ServerConfig()


@pytest.mark.parametrize(
    ("text", "ports"),
    [("1-65535", range(1, 65536)), ("5-5", range(5, 6)), ("80-99", range(80, 100))],
)
def test_port_ranges(text: str, ports: range) -> None:
    assert parse_port_range(text) == ports


@pytest.mark.parametrize(
    "value", ["", "1", "-", "1-", "0-5", "1-65536", "6-5", "a-b", "1-2-3", "-1-5", "٢-٣", 5]
)
def test_no_port_ranges(value: object) -> None:
    with pytest.raises(ValueError, match=r"^expected a range of ports such as "):
        parse_port_range(value)


def test_addresses_and_hosts() -> None:
    assert parse_listen("192.0.2.1") == HostPort("192.0.2.1", 7022)
    assert parse_bind("::1") == "::1"
    assert parse_host("vps.example.net:7022") == Host("vps.example.net", 7022)
    assert parse_host("vps.example.net:1") == Host("vps.example.net", 1)
    assert parse_host("vps.example.net") == Host("vps.example.net", None)
    with pytest.raises(ValueError, match=r"^expected "):
        parse_host("https://vps")
