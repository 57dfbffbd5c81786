"""The relay's keys on both sides: in whatever order things happen and fail, the agent can come.

The relay's files and the agent's rules are the real ones; between them is a handshake without a
network, and a registry that knows one agent.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from protocol.errors import NoAnswer
from protocol.process.state import StateError, StateFolder
from protocol.transport.link import Link
from protocol.wire.hello import Limits, Welcome
from protocol.wire.noise import StaticKey
from relay_agent.identity.agent_keys import AgentKeys
from relay_agent.identity.relay_identity import RelayIdentity
from relay_agent.link import relay_dialer as dialer_module
from relay_agent.link.relay_dialer import RelayDialer
from relay_server.registry import relay_keys as relay_module
from relay_server.registry.registry import Registry
from relay_server.registry.relay_keys import (
    MAX_FORMER,
    RelayKeys,
    load_or_make,
    retire_unneeded,
    rotate,
)
from tests.support.models import run


class OneAgent:
    """Stands for the registry."""

    def __init__(self) -> None:
        self.followed = b""

    def agents(self) -> list[str]:
        return ["home"]

    def behind(self, relay_key: bytes) -> list[str]:
        return [] if self.followed == relay_key else ["home"]

    def invited_behind(self, relay_key: bytes, now: float) -> list[str]:
        return []


class Rotation(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.state = StateFolder(Path(self.folder.name))
        self.registry = OneAgent()
        self.relay = RelayKeys(StaticKey.generate())
        relay_module._save(self.state, relay_module.KEY, self.relay.current)
        self.disk = RelayIdentity(hosts=(), key=self.relay.current.public)
        self.full = False
        self.made = [self.relay.current.public]  # all that were ever the current one
        self.newest_used = 0
        self.boot()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(dialer_module, "attach", self.shake)

    def teardown(self) -> None:
        self.patch.undo()
        self.folder.cleanup()

    # The relay

    @precondition(lambda self: len(self.relay.former) < MAX_FORMER)
    @rule(fails_at=st.sampled_from([None, 0, 1]))
    def rotate(self, fails_at: int | None) -> None:
        """By the command, which may die half-way; the server looks afterwards."""
        command = load_or_make(self.state, cast("Registry", self.registry))
        saved, save = 0, relay_module._save

        def failing(*arguments: Any) -> None:
            nonlocal saved
            if saved == fails_at:
                raise StateError("the power failed")
            saved += 1
            save(*arguments)

        with self.patch.context() as patch:
            patch.setattr(relay_module, "_save", failing)
            try:
                rotate(self.state, command)
            except StateError:
                assert fails_at is not None
            else:
                self.made.append(command.current.public)
        self.relay.look_again(self.state)

    @rule()
    def retire_unneeded(self) -> None:
        retire_unneeded(self.state, self.relay, cast("Registry", self.registry), 0.0)

    @rule()
    def restart_relay(self) -> None:
        self.relay = load_or_make(self.state, cast("Registry", self.registry))

    # The agent

    @rule()
    def boot(self) -> None:
        own = AgentKeys(StaticKey.generate())
        self.agent = RelayDialer(own, self.disk, save_relay=self.save, save_keys=lambda _: None)

    def save(self, relay: RelayIdentity) -> None:
        if self.full:
            raise StateError("no space left on the disk")
        self.disk = relay

    @rule(full=st.booleans(), interrupted=st.booleans())
    def come(self, full: bool, interrupted: bool) -> None:
        self.full = full
        while self.agent.learn_successor(self.attach()) and not interrupted:
            pass
        if not full and not interrupted:
            assert self.disk == RelayIdentity(hosts=(), key=self.relay.current.public)

    def attach(self) -> Welcome:
        """Never NoAnswer."""
        _, welcome = run(self.agent.connect(lambda: pytest.fail("not asked")))
        return welcome

    async def shake(self, relay: RelayIdentity, **_: object) -> tuple[Link, Welcome]:
        """What the two sides do with their keys in a handshake."""
        if relay.key not in [key.public for key in self.relay.all]:
            raise NoAnswer
        used = self.made.index(relay.key)
        assert used >= self.newest_used, "it has gone back to an older key"
        self.newest_used = used
        if relay.key == self.relay.current.public:
            self.registry.followed = relay.key
        welcome = Welcome(
            session=bytes(16),
            resumed=False,
            received=0,
            limits=Limits(streams=1, stream_window=1 << 16, session_window=1 << 16),
            name="home",
            ports=(),
            features=(),
            software="",
            successor=self.relay.successor(relay.key),
        )
        return cast("Link", None), welcome


TestRotation = Rotation.TestCase
# Each step writes files and waits for the disk.
TestRotation.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
