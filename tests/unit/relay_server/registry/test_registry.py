from __future__ import annotations

import contextlib
import sqlite3
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from protocol.process.address import HostPort
from protocol.process.state import StateError, StateFolder
from protocol.wire.hello import MAX_PORTS
from relay_server.net.networks import Admission, Networks, parse_network, parse_networks
from relay_server.registry.registry import (
    MAX_NETWORKS,
    REGISTRY_FILE,
    EnrolledAgent,
    Invited,
    Refused,
    Registry,
    TokenRefused,
)
from tests.support.registry import HOUR, PORTS, SOME, enrol, invite, key, token

# Inviting


def test_a_new_name_gets_the_lowest_free_port(registry: Registry) -> None:
    assert invite(registry, "home", 1, now=5.0) == Invited(
        name="home", ports=(11111,), created=5.0, expires=HOUR
    )
    assert invite(registry, "office", 2).ports == (11112,)
    assert registry.agents() == []
    assert registry.agent("home") == EnrolledAgent(
        name="home", public_key=None, ports=(11111,), created=5.0, enrolled=None
    )
    assert registry.agent("nobody") is None


def test_a_port_that_is_in_use_otherwise_is_passed_over(registry: Registry) -> None:
    invited = registry.invite(
        "home", token(1), now=0, lifetime=1, port_range=PORTS, usable=lambda port: port != 11111
    )
    assert invited.ports == (11112,)


def test_given_ports_keep_their_order(registry: Registry) -> None:
    assert invite(registry, "home", 1, 9000, 80, 9000).ports == (9000, 80)
    agent = registry.agent("home")
    assert agent is not None
    assert agent.ports == (9000, 80)


def test_a_granted_port_is_refused_by_its_holders_name(registry: Registry) -> None:
    invite(registry, "home", 1, 9000)
    with pytest.raises(Refused, match=r"^port 9000 is granted to home$"):
        invite(registry, "office", 2, 80, 9000)
    assert registry.agent("office") is None  # nothing of it stays
    assert invite(registry, "office", 3, 80).ports == (80,)


def test_the_number_of_ports_has_a_bound(registry: Registry) -> None:
    assert len(invite(registry, "home", 1, *range(1, MAX_PORTS + 1)).ports) == MAX_PORTS
    with pytest.raises(Refused, match=r"at most 256 ports, not 257"):
        invite(registry, "office", 2, *range(1001, 1002 + MAX_PORTS))


def test_an_existing_name_keeps_its_ports(registry: Registry) -> None:
    enrol(registry, "home", 1, 9000, 80)
    assert invite(registry, "home", 2).ports == (9000, 80)
    # Those asked for come first; the others may be in use by its agent at this moment.
    assert invite(registry, "home", 3, 80, 81).ports == (80, 81, 9000)
    with pytest.raises(Refused, match="port 9000 is granted to home"):
        invite(registry, "office", 4, 9000)
    with pytest.raises(Refused, match=f"expected at most {MAX_PORTS} ports"):
        invite(registry, "home", 5, *range(10_000, 10_000 + MAX_PORTS - 2))


def test_an_expired_invitation_keeps_its_ports_until_they_are_needed(registry: Registry) -> None:
    invite(registry, "home", 1, 9000, until=10.0)
    with pytest.raises(Refused, match=r"granted to home"):
        invite(registry, "office", 2, 9000, now=9.0)
    assert invite(registry, "home", 3, now=20.0, until=30.0).ports == (9000,)
    assert invite(registry, "office", 4, 9000, now=30.0).ports == (9000,)
    assert registry.agent("home") is None
    with pytest.raises(TokenRefused, match=r"has expired"):
        registry.redeem(token(3), key(1), 29.0)


def test_a_full_range_is_cleared_of_expired_invitations_first(registry: Registry) -> None:
    invite(registry, "a", 1, until=10.0)
    enrol(registry, "b", 2)
    invite(registry, "c", 3, until=20.0)
    assert invite(registry, "d", 4, now=10.0).ports == (11111,)
    with pytest.raises(Refused, match=r"^no port from 11111 to 11113 is free; give one"):
        invite(registry, "e", 5, now=19.0)
    assert [one.name for one in registry.invitations()] == ["c", "d"]


def test_only_the_newest_invitation_of_a_name_counts(registry: Registry) -> None:
    invite(registry, "home", 1)
    invite(registry, "home", 2)
    assert [one.name for one in registry.invitations()] == ["home"]
    with pytest.raises(TokenRefused, match=r"was replaced"):
        registry.redeem(token(1), key(1), 0.0)
    assert registry.redeem(token(2), key(1), 0.0).name == "home"


def test_unused_tokens_are_forgotten_in_the_end(registry: Registry) -> None:
    invite(registry, "home", 1, until=10.0)
    invite(registry, "home", 2, until=10.0)
    month = 30 * 86400.0
    invite(registry, "home", 3, now=10.0 + month, until=20.0 + month)
    with pytest.raises(TokenRefused, match=r"was replaced"):
        registry.redeem(token(1), key(1), 0.0)
    invite(registry, "home", 4, now=11.0 + month, until=20.0 + month)
    for number in (1, 2):
        with pytest.raises(TokenRefused, match=r"is unknown here"):
            registry.redeem(token(number), key(1), 0.0)
    with pytest.raises(TokenRefused, match=r"was replaced"):
        registry.redeem(token(3), key(1), 0.0)


# Redeeming


def test_a_token_enrols_until_it_expires(registry: Registry) -> None:
    invite(registry, "home", 1, until=10.0)
    invite(registry, "office", 2, until=10.0)
    with pytest.raises(TokenRefused, match=r"has expired"):
        registry.redeem(token(1), key(1), 10.0)
    agent = registry.redeem(token(2), key(2), 9.999)
    assert agent == EnrolledAgent(
        name="office", public_key=key(2), ports=(11112,), created=0.0, enrolled=9.999
    )
    assert registry.agents() == [agent]
    assert registry.agent_by_key(key(2)) == agent
    assert registry.agent_by_key(key(1)) is None
    assert [one.name for one in registry.invitations()] == ["home"]


def test_a_token_binds_to_the_first_key_that_shows_it(registry: Registry) -> None:
    agent = enrol(registry, "home", 1)
    with pytest.raises(TokenRefused, match=r"used by another agent"):
        registry.redeem(token(1), key(9), 1.0)
    assert registry.redeem(token(1), key(1), 1e9) == agent  # and long after it expired
    assert registry.agents() == [agent]


def test_an_unknown_token_is_refused(registry: Registry) -> None:
    with pytest.raises(TokenRefused, match=r"is unknown here"):
        registry.redeem(token(1), key(1), 0.0)


def test_an_unknown_token_is_told_without_a_write(registry: Registry) -> None:
    with contextlib.closing(registry._connect(0.0)) as other:
        other.execute("BEGIN IMMEDIATE")  # whoever writes now has to wait for this one
        with pytest.raises(TokenRefused, match=r"is unknown here"):
            registry.check_token(token(1))
    for state in ("pending", "replaced"):
        invite(registry, "home", 1 if state == "pending" else 2)
        registry.check_token(token(1))


def test_the_number_of_outstanding_invitations_has_a_bound(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay_server.registry.registry.MAX_OUTSTANDING", 3)
    for number, name in enumerate("abc"):
        invite(registry, name, number, 2000 + number)
    with pytest.raises(Refused, match=r"^3 invitations are outstanding; cancel some"):
        invite(registry, "d", 4, 2004)
    assert registry.agent("d") is None
    assert invite(registry, "a", 5).ports == (2000,)  # in the place of its own
    registry.redeem(token(5), key(5), 0.0)
    invite(registry, "d", 6, 2006)
    with pytest.raises(Refused, match="outstanding"):
        invite(registry, "e", 7, 2007)
    invite(registry, "e", 7, 2007, now=HOUR, until=2 * HOUR)  # the others have expired


def test_the_token_itself_is_nowhere_in_the_folder(registry: Registry, state: StateFolder) -> None:
    invite(registry, "home", 1)
    for file in state.path.iterdir():
        assert token(1) not in file.read_bytes()


def test_enrolling_a_name_again_revokes_its_former_key(registry: Registry) -> None:
    enrol(registry, "home", 1, 9000)
    invite(registry, "home", 2)
    assert registry.agent_by_key(key(1)) is not None  # until the new one is there
    agent = registry.redeem(token(2), key(2), 5.0)
    assert agent.ports == (9000,)
    assert registry.agent_by_key(key(1)) is None
    assert registry.revoked_name(key(1)) == "home"
    assert registry.revoked_name(key(2)) is None
    with pytest.raises(TokenRefused, match=r"key was revoked"):
        registry.redeem(token(1), key(1), 5.0)


def test_the_same_key_may_enrol_its_name_again(registry: Registry) -> None:
    enrol(registry, "home", 1)
    invite(registry, "home", 2)
    assert registry.redeem(token(2), key(1), 5.0).enrolled == 5.0
    assert registry.revoked_name(key(1)) is None
    for number in (1, 2):
        assert registry.redeem(token(number), key(1), 6.0).name == "home"


def test_one_key_is_one_agent(registry: Registry) -> None:
    enrol(registry, "home", 1)
    invite(registry, "office", 2)
    with pytest.raises(TokenRefused, match=r"^this agent is enrolled as home already$"):
        registry.redeem(token(2), key(1), 0.0)
    assert registry.redeem(token(2), key(2), 0.0).name == "office"  # the token was not burnt


def test_a_cancelled_invitation_is_worthless(registry: Registry) -> None:
    invite(registry, "home", 1, 9000)
    registry.cancel("home")
    with pytest.raises(TokenRefused, match=r"was cancelled"):
        registry.redeem(token(1), key(1), 0.0)
    assert registry.agent("home") is None
    assert invite(registry, "office", 2, 9000).ports == (9000,)
    for name in ("home", "nobody"):
        with pytest.raises(Refused, match=rf"^there is no pending invitation for {name}$"):
            registry.cancel(name)


def test_cancelling_leaves_an_enrolled_agent_alone(registry: Registry) -> None:
    agent = enrol(registry, "home", 1)
    with pytest.raises(Refused):
        registry.cancel("home")
    invite(registry, "home", 2)
    registry.cancel("home")
    assert registry.agents() == [agent]


# Revoking


def test_a_revoked_agent_is_gone_with_all_it_had(registry: Registry) -> None:
    enrol(registry, "home", 1, 9000)
    invite(registry, "home", 2)
    registry.revoke("home", 5.0)
    assert registry.agent("home") is None
    assert registry.revoked_name(key(1)) == "home"
    assert registry.invitations() == []
    with pytest.raises(TokenRefused, match=r"was cancelled"):
        registry.redeem(token(2), key(2), 5.0)
    with pytest.raises(TokenRefused, match=r"key was revoked"):
        registry.redeem(token(1), key(1), 5.0)
    assert invite(registry, "office", 3, 9000).ports == (9000,)
    with pytest.raises(Refused, match=r"^there is no agent home$"):
        registry.revoke("home", 6.0)


def test_a_revoked_key_stays_so_under_a_new_invitation(registry: Registry) -> None:
    enrol(registry, "home", 1)
    registry.revoke("home", 5.0)
    invite(registry, "home", 2)
    with pytest.raises(TokenRefused, match=r"a new invitation needs a new key"):
        registry.redeem(token(2), key(1), 5.0)
    assert registry.redeem(token(2), key(2), 5.0).name == "home"


def test_revoking_a_name_that_never_enrolled_cancels_its_invitation(registry: Registry) -> None:
    invite(registry, "home", 1)
    registry.revoke("home", 5.0)
    with pytest.raises(TokenRefused, match=r"was cancelled"):
        registry.redeem(token(1), key(1), 0.0)


# Settings and changes


def test_settings_are_remembered(registry: Registry, state: StateFolder) -> None:
    assert registry.hosts() == ()
    assert registry.link_ports() == ()
    assert registry.port_range() is None
    hosts = (HostPort("vps.example.net", 7022), HostPort("::1", 443))
    registry.remember_hosts(hosts)
    registry.remember_link_ports((7022, 443))
    registry.remember_port_range(range(5, 9))
    with Registry(state) as again:
        assert again.hosts() == hosts
        assert again.link_ports() == (7022, 443)
        assert again.port_range() == range(5, 9)


def test_what_is_known_is_not_written_again(registry: Registry) -> None:
    registry.remember_hosts((HostPort("a", 1),))
    stamp = registry.change_stamp()
    registry.remember_hosts((HostPort("a", 1),))
    assert registry.change_stamp() == stamp


def test_each_change_changes_the_stamp(registry: Registry, state: StateFolder) -> None:
    stamps = [registry.change_stamp()]
    assert registry.change_stamp() == stamps[0]
    with Registry(state) as cli:
        invite(cli, "home", 1)
        stamps.append(registry.change_stamp())
    enrol(registry, "office", 2)
    stamps.append(registry.change_stamp())
    registry.revoke("office", 1.0)
    stamps.append(registry.change_stamp())
    assert len(set(stamps)) == 4


def test_changes_may_be_made_in_another_thread(registry: Registry) -> None:
    invite(registry, "home", 1)
    thread = threading.Thread(target=registry.redeem, args=(token(1), key(1), 0.0))
    thread.start()
    thread.join()
    assert registry.agent_by_key(key(1)) is not None


# Any sequence of commands


class Model(RuleBasedStateMachine):
    """A registry beside the plainest account of who should hold what."""

    numbers = st.integers(1, 6)
    names = st.sampled_from(["home", "office", "cabin"])

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        state = StateFolder(Path(self.folder.name))
        self.registry = Registry(state)
        self.keys: dict[str, bytes] = {}  # by name
        self.pending: dict[str, bytes] = {}  # token by name
        self.bound: dict[bytes, bytes] = {}  # key by token
        self.revoked: set[bytes] = set()
        self.tokens = 0

    def teardown(self) -> None:
        self.registry.close()
        self.folder.cleanup()

    @rule(name=names)
    def invite(self, name: str) -> None:
        self.tokens += 1
        made = self.tokens.to_bytes(16, "big")
        self.registry.invite(name, made, now=0, lifetime=1, port_range=PORTS)
        self.pending[name] = made

    @rule(name=names)
    def cancel(self, name: str) -> None:
        if name in self.pending:
            self.registry.cancel(name)
            del self.pending[name]
        else:
            with pytest.raises(Refused):
                self.registry.cancel(name)

    @rule(name=names)
    def revoke(self, name: str) -> None:
        if name in self.keys or name in self.pending:
            self.registry.revoke(name, 0)
            self.pending.pop(name, None)
            if name in self.keys:
                self.revoked.add(self.keys.pop(name))
        else:
            with pytest.raises(Refused):
                self.registry.revoke(name, 0)

    @precondition(lambda self: self.tokens)
    @rule(number=numbers, data=st.data())
    def redeem(self, number: int, data: st.DataObject) -> None:
        shown = data.draw(st.integers(1, self.tokens)).to_bytes(16, "big")
        mine = key(number)
        name = next((name for name, made in self.pending.items() if made == shown), None)
        holder = next((name for name, held in self.keys.items() if held == mine), None)
        if mine not in self.revoked and self.bound.get(shown) == mine:
            assert self.registry.redeem(shown, mine, 0).name == holder
        elif name is None or mine in self.revoked or holder not in (None, name):
            with pytest.raises(TokenRefused):
                self.registry.redeem(shown, mine, 0)
        else:
            assert self.registry.redeem(shown, mine, 0).name == name
            if self.keys.get(name, mine) != mine:
                self.revoked.add(self.keys[name])
            self.keys[name] = mine
            self.bound[shown] = mine
            del self.pending[name]

    @invariant()
    def agrees(self) -> None:
        agents = self.registry.agents()
        assert {agent.name: agent.public_key for agent in agents} == self.keys
        assert {one.name for one in self.registry.invitations()} == self.pending.keys()
        for number in range(1, 7):
            revoked = self.registry.revoked_name(key(number)) is not None
            assert revoked == (key(number) in self.revoked)
        ports = [port for agent in agents for port in agent.ports]
        assert len(ports) == len(set(ports)) == len(agents)


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=20, stateful_step_count=25, deadline=None)


# Who may visit

OTHERS = Admission(deny=parse_networks(["2001:db8::/32"]))


def admissions(registry: Registry, name: str = "home") -> dict[int, Admission]:
    agent = registry.agent(name)
    assert agent is not None
    return dict(agent.admissions)


def test_who_may_visit_is_kept_with_each_port(registry: Registry) -> None:
    enrol(registry, "home", 1, 9000, 80)
    assert admissions(registry) == {}
    assert registry.admit("home", SOME) == (9000, 80)
    assert registry.admit("home", OTHERS, (80, 80)) == (80,)
    assert admissions(registry) == {9000: SOME, 80: OTHERS}
    # A new invitation with another port in front changes nothing, unless it says so.
    invite(registry, "home", 2, 81)
    assert admissions(registry) == {9000: SOME, 80: OTHERS}
    registry.invite("home", token(3), now=0.0, lifetime=1.0, port_range=PORTS, admission=OTHERS)
    assert admissions(registry) == {81: OTHERS, 9000: OTHERS, 80: OTHERS}
    registry.admit("home", Admission(), (81, 9000))
    agent = registry.agent("home")
    assert agent is not None
    assert agent.ports == (81, 9000, 80)
    assert (agent.admission(81), agent.admission(80)) == (Admission(), OTHERS)


def test_who_may_visit_goes_with_the_grant(registry: Registry) -> None:
    enrol(registry, "home", 1, 9000)
    registry.admit("home", SOME)
    registry.revoke("home", 0.0)
    enrol(registry, "office", 2, 9000)
    assert admissions(registry, "office") == {}


def test_what_cannot_be_admitted_is_refused(registry: Registry) -> None:
    enrol(registry, "home", 1, 9000)
    with pytest.raises(Refused, match=r"^there is no agent office$"):
        registry.admit("office", SOME)
    with pytest.raises(Refused, match=r"^port 80 is not granted to home$"):
        registry.admit("home", SOME, (9000, 80))
    most = [parse_network(f"192.0.2.{number}") for number in range(MAX_NETWORKS)]
    registry.admit("home", Admission(deny=Networks(most)))
    for name in ("allow", "deny"):
        many = Networks([*most, parse_network("2001:db8::1")])
        with pytest.raises(Refused, match=r"^expected at most 256 networks, not 257$"):
            registry.admit("home", Admission(**{name: many}))
    assert len(admissions(registry)[9000].deny) == MAX_NETWORKS


@pytest.mark.parametrize("text", ["", "{}", '["everybody"]'])
def test_a_list_that_cannot_be_read_admits_nobody(
    registry: Registry, state: StateFolder, text: str
) -> None:
    enrol(registry, "home", 1)
    with sqlite3.connect(state.path / REGISTRY_FILE) as db:
        db.execute("UPDATE ports SET allow = ?", (text,))
    db.close()
    with pytest.raises(StateError, match=r"^registry: who may visit home cannot be read: "):
        registry.agent("home")


def test_a_token_without_its_agent_is_damage(registry: Registry, state: StateFolder) -> None:
    enrol(registry, "home", 1)
    with sqlite3.connect(state.path / REGISTRY_FILE) as db:
        db.execute("UPDATE agents SET public_key = NULL")
    db.close()
    with pytest.raises(StateError, match=r"damaged: a token without its agent$"):
        registry.redeem(token(1), key(1), 0.0)


# Which key of the relay is known to whom


def test_who_is_behind_the_current_key(registry: Registry) -> None:
    for number, name in enumerate(("home", "cabin"), 1):
        enrol(registry, name, number)
    invite(registry, "guest", 3)
    assert registry.behind(b"new") == ["cabin", "home"]
    registry.follow("home", key(1), b"new")
    assert registry.behind(b"new") == ["cabin"]
    assert registry.behind(b"newer") == ["cabin", "home"]
    agent = registry.agent("home")
    assert agent is not None
    assert agent.relay_key == b"new"


def test_a_key_that_was_replaced_meanwhile_follows_for_nobody(registry: Registry) -> None:
    enrol(registry, "home", 1)
    registry.follow("home", key(1), b"new")
    enrol(registry, "home", 2)
    assert registry.behind(b"new") == ["home"]
    registry.follow("home", key(1), b"new")
    assert registry.behind(b"new") == ["home"]
    # Unless it is its own successor that took its place, over the link that tells of it.
    registry.succeed(key(2), key(3), 100.0)
    registry.follow("home", key(2), b"new", key(3))
    assert registry.behind(b"new") == []


def test_which_invitations_carry_another_key(registry: Registry) -> None:
    def invite_with(name: str, number: int, relay_key: bytes | None, lifetime: float) -> None:
        registry.invite(
            name,
            token(number),
            now=0,
            lifetime=lifetime,
            port_range=range(1, 9),
            relay_key=relay_key,
        )

    invite_with("old", 1, b"old", 10)
    invite_with("oldest", 2, None, 10)
    invite_with("late", 3, b"old", 5)
    invite_with("new", 4, b"new", 10)
    assert registry.invited_behind(b"new", 0) == ["late", "old", "oldest"]
    assert registry.invited_behind(b"new", 5) == ["old", "oldest"]
    registry.cancel("oldest")
    registry.redeem(token(1), key(1), 5)
    assert registry.invited_behind(b"new", 5) == []


def test_the_current_key_is_remembered_once_it_was_rotated(registry: Registry) -> None:
    assert registry.relay_key() is None
    registry.remember_relay_key(b"new")
    assert registry.relay_key() == b"new"


# A new key for an agent


def test_a_successor_takes_the_agent_and_the_invitation_over(registry: Registry) -> None:
    before = enrol(registry, "home", 1)
    registry.follow("home", key(1), b"relay")
    registry.succeed(key(1), key(2), 100.0)
    agent = registry.agent_by_key(key(2))
    assert agent is not None
    assert (agent.name, agent.ports, agent.relay_key) == ("home", before.ports, b"relay")
    assert registry.agent_by_key(key(1)) is None
    assert registry.revoked_name(key(1)) == "home"
    assert registry.redeem(token(1), key(2), 101.0).public_key == key(2)
    with pytest.raises(TokenRefused, match="revoked"):
        registry.redeem(token(1), key(1), 101.0)
    registry.revoke("home", 200.0)
    assert registry.revoked_name(key(2)) == "home"


def test_a_successor_that_is_somebody_elses_is_refused(registry: Registry) -> None:
    for number, name in enumerate(("home", "cabin", "gone"), 1):
        enrol(registry, name, number)
    registry.revoke("gone", 1.0)
    for successor in (key(1), key(2), key(3)):
        with pytest.raises(Refused, match="is, or was, that of an agent"):
            registry.succeed(key(1), successor, 2.0)
    for nobody in (key(3), key(9)):
        with pytest.raises(Refused, match="not an agent's any more"):
            registry.succeed(nobody, key(8), 2.0)
    assert registry.agent_by_key(key(1)) is not None
    assert registry.revoked_name(key(1)) is None


def test_successors_come_one_at_a_time(registry: Registry) -> None:
    enrol(registry, "home", 1)
    registry.succeed(key(1), key(2), 100.0)
    with pytest.raises(Refused, match="10 s"):
        registry.succeed(key(2), key(3), 109.9)
    # A clock that was put back is no reason to wait until it is there again.
    registry.succeed(key(2), key(3), 50.0)
    registry.succeed(key(3), key(4), 110.0)
    assert registry.agent_by_key(key(4)) is not None


def test_a_successor_does_not_wait_long_for_another_writer(state: StateFolder) -> None:
    with Registry(state) as registry:
        enrol(registry, "home", 1)
        with registry._change() as db:
            db.execute("UPDATE agents SET created = 2")
            with pytest.raises(StateError, match="another process keeps it locked"):
                registry.succeed(key(1), key(2), 1.0)
        assert registry.agent_by_key(key(1)) is not None
