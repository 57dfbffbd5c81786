"""A relay goes on at another address, and its agents find it there."""

from __future__ import annotations

import stat
from collections.abc import Callable

from tests.support.ports import LOOPBACK, free_port, wait_until_listening
from tests.support.programs import Agent, Relay, only_line
from tests.support.ssh import Login, SshServer
from tests.support.waiting import eventually

NewRelay = Callable[..., Relay]
NewAgent = Callable[..., Agent]


def test_agents_follow_a_relay_that_moves(
    new_relay: NewRelay, new_agent: NewAgent, dropbear: SshServer, login: Login
) -> None:
    here, there = new_relay("here"), new_relay("there")
    here.start()
    home, away = new_agent("home"), new_agent("away")
    port, away_port = free_port(), free_port()
    for agent, name, public in ((home, "home", port), (away, "away", away_port)):
        agent.join(here.invite(name, public), f"ssh={LOOPBACK}:{dropbear.port}@{public}")
    home.start(port)
    with login.session(port, "echo up; exec cat") as session:
        assert session.stdin is not None
        assert session.stdout is not None
        assert session.stdout.readline() == b"up\n"
        moved = here.cli("move", f"{LOOPBACK}:{there.port}")
        assert (moved.returncode, moved.stderr) == (
            0,
            "told: 1 of 2 agents\nto be told when they are here next: away\n",
        )
        session.stdin.write(b"still here\n")
        session.stdin.flush()
        assert session.stdout.readline() == b"still here\n"
        session.stdin.close()
        session.wait()
    away.start(away_port)
    away.process.wait_for_line(rf"relay-hosts-told hosts={LOOPBACK}:{there.port}")
    backup = here.folder / "relay.backup"
    exported = here.cli("export", str(backup))
    assert exported.stderr == "exported a relay with 2 agents; keep it like a key\n"
    assert stat.S_IMODE(backup.stat().st_mode) == 0o600
    assert here.process.running, "an export leaves the relay alone"
    here.stop()
    imported = there.cli("import", str(backup))
    assert imported.returncode == 0, imported.stderr
    assert f"invitations will name {LOOPBACK}:{there.port}" in imported.stderr
    again = there.cli("import", str(backup))
    assert again.returncode == 2
    assert "there is a relay here that agents know" in again.stderr
    there.start()
    for public in (port, away_port):
        wait_until_listening(public)
        assert login.ssh(public, "echo in").stdout == "in\n"
    # Also one that starts anew, and knows from its files.
    home.stop()
    home.start(port)
    assert login.ssh(port, "echo in").stdout == "in\n"
    cancelled = there.cli("move", "--cancel")
    assert cancelled.returncode == 0, cancelled.stderr
    eventually(
        lambda: "further_hosts" not in (home.state / "enrolment.toml").read_text(),
        what="the agent forgets",
    )


def test_what_is_no_export_changes_nothing(new_relay: NewRelay) -> None:
    relay, other = new_relay("relay"), new_relay("other")
    nothing = relay.folder / "nothing"
    nothing.write_bytes(bytes(1024))
    for file, said in (
        (nothing, "no whole export of a relay: registry.db is missing"),
        (relay.folder / "none", "No such file or directory"),
    ):
        done = relay.cli("import", str(file))
        assert done.returncode != 0
        assert said in only_line(done.stderr)
        assert not relay.state.exists()
    other.start()
    file = other.folder / "exported"
    file.write_bytes(b"somebody's")
    done = other.cli("export", str(file))
    assert (done.returncode, file.read_bytes()) == (1, b"somebody's")
    assert only_line(done.stderr) == f"relay-server: {file}: File exists"
