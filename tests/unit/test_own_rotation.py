"""An agent's keys on both sides: in whatever order things happen and fail, the relay takes one.

The agent's files and the relay's registry are the real ones; between them is a handshake without a
network. The relay may be put back to a state of any age: the agent is denied exactly if it has had
more keys since than it keeps.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from protocol.errors import DenialCode, LinkDenied, LinkLost
from protocol.process.state import StateError, StateFolder
from protocol.transport.link import Link
from protocol.wire.hello import Hello, Welcome
from protocol.wire.noise import StaticKey
from relay_agent.identity.agent_keys import (
    MAX_FORMER,
    load_agent_keys,
    rotate,
    save_accepted,
)
from relay_agent.identity.enrolment import load_or_make_key, save_enrolment
from relay_agent.identity.relay_identity import RelayIdentity
from relay_agent.link import relay_dialer as dialer_module
from relay_agent.link.relay_dialer import RelayDialer
from relay_server.registry.registry import REGISTRY_FILE, Refused, Registry
from tests.support.ends import LIMITS
from tests.support.enrolment import enrolment
from tests.support.models import run

TOKEN = b"t" * 16
HELLO = Hello(instance=bytes(16), epoch=1, software="", features=(), limits=LIMITS)


class OwnRotation(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        path = Path(self.folder.name)
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(dialer_module, "attach", self.shake)
        self.state, self.relay_state = StateFolder(path / "agent"), StateFolder(path / "relay")
        self.backup = path / "backup"
        for state in (self.state, self.relay_state):
            state.ensure()
        key = load_or_make_key(self.state, TOKEN)
        save_enrolment(self.state, enrolment())
        self.registry = Registry(self.relay_state)
        self.registry.invite("home", TOKEN, now=0, lifetime=9, port_range=range(11111, 11112))
        self.registry.redeem(TOKEN, key.public, 0)
        self.now = 0.0
        self.understands, self.answers = True, True
        self.made = [key.public]  # the newest last
        self.back_up()
        self.boot()

    def teardown(self) -> None:
        self.patch.undo()
        self.registry.close()
        self.folder.cleanup()

    # The relay

    @rule(understands=st.booleans())
    def install_another_relay(self, understands: bool) -> None:
        self.understands = understands

    @rule()
    def back_up(self) -> None:
        self.registry.close()
        shutil.copy(self.relay_state.path / REGISTRY_FILE, self.backup)
        self.registry = Registry(self.relay_state)

    @rule()
    def put_back(self) -> None:
        self.registry.close()
        shutil.copy(self.backup, self.relay_state.path / REGISTRY_FILE)
        self.registry = Registry(self.relay_state)

    def relays_key(self) -> bytes:
        (agent,) = self.registry.agents()
        assert agent.public_key is not None
        return agent.public_key

    # The agent

    @rule()
    def boot(self) -> None:
        self.agent = RelayDialer(
            load_agent_keys(self.state),
            RelayIdentity(hosts=(), key=bytes(32)),
            save_relay=lambda _: None,
            save_keys=self.save,
        )
        self.full = False

    def save(self, own: Any) -> None:
        if self.full:
            raise StateError("no space left on the disk")
        save_accepted(self.state, own)

    @rule(fails_at=st.sampled_from([None, 0, 1]))
    def rotate(self, fails_at: int | None) -> None:
        """The agent dies with the power, so it boots."""
        steps, write = 0, StateFolder.write

        def failing(*arguments: Any, **options: Any) -> None:
            nonlocal steps
            if steps == fails_at:
                raise StateError("the power failed")
            steps += 1
            write(*arguments, **options)

        with self.patch.context() as patch:
            patch.setattr(StateFolder, "write", failing)
            try:
                self.agent.agent_keys = rotate(self.state)
            except StateError:
                self.boot()
        newest = load_agent_keys(self.state).newest.public
        if newest != self.made[-1]:
            self.made.append(newest)

    @rule(full=st.booleans(), answers=st.booleans())
    def come(self, full: bool, answers: bool) -> None:
        self.full, self.answers = full, answers
        self.now += 10
        if not answers:
            with pytest.raises((LinkLost, LinkDenied)):
                run(self.agent.connect(lambda: HELLO))
            return
        known = self.relays_key()
        if self.rotations_since(known) > MAX_FORMER:
            with pytest.raises(LinkDenied, match="UNKNOWN_AGENT"):
                run(self.agent.connect(lambda: HELLO))
            return
        run(self.agent.connect(lambda: HELLO))
        if not self.understands:
            return
        own = self.agent.agent_keys
        assert own.accepted
        assert self.relays_key() == own.newest.public
        # What was valid is worth nothing any more, and what the relay never knew is not either.
        assert known == own.newest.public or self.registry.revoked_name(known) == "home"
        assert not any(self.registry.agent_by_key(former.public) for former in own.former)

    def rotations_since(self, key: bytes) -> int:
        return len(self.made) - 1 - self.made.index(key)

    async def shake(
        self, _: RelayIdentity, *, static: StaticKey, hello: Any, **__: object
    ) -> tuple[Link, Welcome]:
        """What the relay does with an agent's keys."""
        if self.registry.agent_by_key(static.public) is None:
            revoked = self.registry.revoked_name(static.public)
            code = DenialCode.UNKNOWN_AGENT if revoked is None else DenialCode.REVOKED
            raise LinkDenied(code, code.name)
        successor, taken = hello().successor, None
        if self.understands and successor is not None:
            try:
                self.registry.succeed(static.public, successor, self.now)
            except Refused as exc:
                raise AssertionError("nothing speaks against it") from exc
            taken = successor
        if not self.answers:
            raise LinkLost("before the welcome")
        welcome = partial(Welcome, session=bytes(16), resumed=False, received=0, limits=LIMITS)
        return cast("Link", None), welcome(
            name="home", ports=(), features=(), software="", agent_key=taken
        )


@pytest.fixture
def model() -> Iterator[OwnRotation]:
    model = OwnRotation()
    model.begin()
    yield model
    model.teardown()


def test_rotated_again_before_it_finds_out_that_the_relay_was_put_back(model: OwnRotation) -> None:
    model.rotate(fails_at=None)
    model.come(full=False, answers=True)
    model.put_back()
    model.rotate(fails_at=None)
    model.come(full=False, answers=True)


@pytest.mark.parametrize("rotations", [MAX_FORMER, MAX_FORMER + 1])
def test_a_relay_may_be_put_back_by_as_many_rotations_as_there_are_former_keys(
    model: OwnRotation, rotations: int
) -> None:
    for _ in range(rotations):
        model.rotate(fails_at=None)
        model.come(full=False, answers=True)
    model.put_back()
    model.come(full=False, answers=True)
    assert (model.relays_key() == model.made[-1]) is (rotations == MAX_FORMER)


TestOwnRotation = OwnRotation.TestCase
# Each step writes files and waits for the disk.
TestOwnRotation.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)
