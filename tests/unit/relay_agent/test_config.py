from __future__ import annotations

from pathlib import Path

import pytest

from protocol.process.address import HostPort
from protocol.process.config import ConfigError
from protocol.process.state import StateFolder
from protocol.session.replay import ReplayCap
from protocol.wire.buffers import BufferPool
from protocol.wire.hello import (
    MAX_SESSION_WINDOW,
    MAX_STREAM_WINDOW,
    MAX_STREAMS,
    MIN_WINDOW,
    Limits,
)
from relay_agent import CONFIG_FILE
from relay_agent.config import AgentConfig, ServiceTable, check_distinct, load_config
from relay_agent.services.service import Service

SSH = Service("ssh", HostPort("127.0.0.1", 22), 11111)


@pytest.fixture
def state(tmp_path: Path) -> StateFolder:
    return StateFolder(tmp_path)


def write(state: StateFolder, text: str) -> AgentConfig:
    (state.path / CONFIG_FILE).write_text(text)
    return load_config(state)


def refusal(state: StateFolder, text: str) -> str:
    with pytest.raises(ConfigError) as refused:
        write(state, text)
    line = str(refused.value)
    assert "\n" not in line
    assert line.startswith(f"{state.path / CONFIG_FILE}: ")
    return line.removeprefix(f"{state.path / CONFIG_FILE}: ")


def test_everything_has_a_default(state: StateFolder) -> None:
    assert load_config(state) == AgentConfig()


def test_a_file_named_by_the_user_must_exist(state: StateFolder, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    with pytest.raises(ConfigError, match="no such file"):
        load_config(state, other)
    other.write_text("max_streams = 7")
    write(state, "max_streams = 8")
    assert load_config(state, other).max_streams == 7


def test_every_option_is_read(state: StateFolder) -> None:
    config = write(
        state,
        """
        log_level = "debug"
        log_format = "json"
        replay = "1MiB"
        max_streams = 9
        stream_window = "32KiB"
        stream_window_max = "1MiB"
        session_window = "3MiB"
        detached_keep = "1h"
        [services.ssh]
        target = "[::1]:22"
        port = 11111
        [services."web.2"]
        target = "nas.lan:80"
        """,
    )
    assert config == AgentConfig(
        log_level="debug",
        log_format="json",
        replay=2**20,
        max_streams=9,
        stream_window=2**15,
        stream_window_max=2**20,
        session_window=3 * 2**20,
        detached_keep=3600.0,
        services={
            "ssh": ServiceTable(target=HostPort("::1", 22), port=11111),
            "web.2": ServiceTable(target=HostPort("nas.lan", 80)),
        },
    )


@pytest.mark.parametrize(
    ("key", "lowest", "highest"),
    [
        ("replay", 256 * 2**10, 256 * 2**20),
        ("max_streams", 1, MAX_STREAMS),
        ("stream_window_max", 256 * 2**10, MAX_STREAM_WINDOW),
        ("session_window", MIN_WINDOW, MAX_SESSION_WINDOW),
        ("detached_keep", 0, 7 * 86400),
    ],
)
def test_bounds_at_their_edges(state: StateFolder, key: str, lowest: int, highest: int) -> None:
    for value in (lowest, highest):
        assert getattr(write(state, f"{key} = {value}"), key) == value
    for value in (lowest - 1, highest + 1):
        assert refusal(state, f"{key} = {value}").startswith(f"{key}: expected ") or (
            # Within its own bounds, but under the initial window.
            key == "stream_window_max" and value < lowest
        )


def test_the_initial_window_is_bounded_by_its_maximum(state: StateFolder) -> None:
    assert write(state, f"stream_window = {MIN_WINDOW}").stream_window == MIN_WINDOW
    assert refusal(state, f"stream_window = {MIN_WINDOW - 1}").startswith("stream_window: expected")
    both = 'stream_window = "1MiB"\nstream_window_max = {}'
    assert write(state, both.format(2**20)).stream_window == 2**20
    assert "at most stream_window_max" in refusal(state, both.format(2**20 - 1))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max_stream = 1", "max_stream: unknown key; did you mean max_streams?"),
        ("replay = true", "replay: expected a size"),
        ('log_level = "loud"', "log_level: expected 'debug' or 'info'"),
        ("services = 1", "services: expected a table"),
        ("[services.ssh]\nport = 1", "services.ssh.target: missing; expected HOST:PORT"),
        ("[services.ssh]\ntarget = 22", "services.ssh.target: expected HOST:PORT"),
        ('[services.ssh]\ntarget = "localhost"', "services.ssh.target: expected HOST:PORT"),
        (
            '[services.ssh]\ntarget = "h:1"\nproxy_protocol = 2',
            "services.ssh.proxy_protocol: expected 'v1' or 'v2', not 2",
        ),
        ('[services.ssh]\ntarget = "h:1"\nport = 0', "services.ssh.port: expected 1 to 65535"),
        ('[services.ssh]\ntarget = "h:1"\nport = 65536', "services.ssh.port: expected 1 to"),
        ('[services."a b"]\ntarget = "h:1"', "services: expected a service name"),
    ],
)
def test_wrong_text_is_answered_with_key_and_expectation(
    state: StateFolder, text: str, expected: str
) -> None:
    assert refusal(state, text).startswith(expected)


def test_what_the_protocol_is_told() -> None:
    config = AgentConfig(max_streams=9, stream_window=2**15, session_window=2**21)
    limits = Limits(streams=9, stream_window=2**15, session_window=2**21)
    assert config.limits() == limits
    cap, pool = ReplayCap(1), BufferPool()
    options = config.session_options(cap, pool)
    assert options.limits == limits
    assert (options.window_limit, options.replay_limit) == (2 * 2**20, 4 * 2**20)
    assert options.replay_cap is cap
    assert options.pool is pool


def test_the_services_of_the_enrolment_serve_unless_the_user_names_some() -> None:
    assert AgentConfig().services_over((SSH,)) == (SSH,)


def test_the_users_services_replace_them_and_inherit_the_port_by_name() -> None:
    config = AgentConfig(
        services={
            "ssh": ServiceTable(target=HostPort("192.168.1.1", 22)),
            "web": ServiceTable(target=HostPort("::1", 80), port=11112),
        }
    )
    assert config.services_over((SSH,)) == (
        Service("ssh", HostPort("192.168.1.1", 22), 11111),
        Service("web", HostPort("::1", 80), 11112),
    )


def test_a_service_without_any_port_is_refused() -> None:
    config = AgentConfig(services={"web": ServiceTable(target=HostPort("::1", 80))})
    with pytest.raises(ConfigError, match=r"services\.web\.port: missing; expected"):
        config.services_over((SSH,))


def test_two_services_on_one_port_are_refused() -> None:
    table = ServiceTable(target=HostPort("::1", 80), port=11111)
    with pytest.raises(ConfigError, match="ssh and web both ask for port 11111"):
        AgentConfig(services={"ssh": table, "web": table}).services_over((SSH,))


def test_distinct_names_and_ports() -> None:
    without = Service("b", HostPort("h", 1))
    check_distinct([SSH, without, Service("c", HostPort("h", 1))])
    with pytest.raises(ConfigError, match="service b is given twice"):
        check_distinct([SSH, without, without])


def test_the_proxy_protocol_is_a_services_own(state: StateFolder) -> None:
    toml = '[services.web]\ntarget = "[::1]:80"\nport = 2\nproxy_protocol = "v2"\n'
    toml += '[services.ssh]\ntarget = "[::1]:22"\nport = 1\n'
    web, ssh = write(state, toml).services_over(())
    assert web == Service("web", HostPort("::1", 80), 2, "v2")
    assert ssh.proxy_protocol is None
