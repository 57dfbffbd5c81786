"""autossh and `ssh -R` under the same faults, measured by the same script: `make lab`.

Nothing is demanded of them; each test adds a row beside ours. `make test` leaves them out, as they
say nothing about this project and take their time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest

from tests.support.lab import faults
from tests.support.lab.network import Way
from tests.support.lab.peers import SIGNS, PeerLab, missing
from tests.support.lab.traffic import Traffic, traffic
from tests.support.lab.trial import Pace, Trial, new_login

pytestmark = pytest.mark.peers

# From when the world is whole again. What has not come back by then is told as that.
PATIENCE = 200.0
# The relay is away this long, as in the test of ours.
DOWN = 2.0


class PeerTrial(Trial[PeerLab]):
    def observe(self, fault: Callable[[], object]) -> None:
        with traffic(self.lab) as user:
            self.strike(fault)
            self._watch(user)

    def _watch(self, user: Traffic) -> None:
        """Until both are known: when a new login works, and what became of the running ssh."""
        lines = user.lines
        with new_login(self.lab) as login:
            ends = self.whole + PATIENCE
            while time.monotonic() < ends:
                known = lines.ended or lines.confirmed(since=self.whole) is not None
                if known and login.answered is not None:
                    break
                time.sleep(0.05)
        again = lines.confirmed(since=self.whole)
        shell: str | float = "hangs"
        lost = 0
        silence = lines.silence(since=self.struck)
        trip = lines.round_trip(since=self.struck, until=self.whole)
        if lines.ended:
            shell = "ended"
        elif again is not None:
            shell = again - self.whole
        if isinstance(shell, float):
            time.sleep(self.pace.after)
            silence = lines.silence(since=self.struck)
            user.finish()
        else:
            for ssh in user.all:
                ssh.stopping.set()
            lost = user.lost()
        self.write(
            login=None if login.answered is None else login.answered - self.whole,
            shell=shell,
            silence=silence if isinstance(shell, float) else None,
            trip=trip,
            lost=lost,
        )


@pytest.fixture(params=[False, True], ids=["default", "tuned"])
def trial(
    possible: None,
    pace: Pace,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
    request: pytest.FixtureRequest,
) -> Iterator[PeerTrial]:
    if reason := missing():
        pytest.fail(reason, pytrace=False)
    name: str = request.node.name
    name = name.removeprefix("test_").replace("_", " ")
    how = "tuned" if request.param else "default"
    # As the same fault is called where it is ours.
    name = name.replace(f"[{how}]", "").replace(f"{how}-", "").replace(f"-{how}", "")
    seed = request.config.getoption("--lab-seed")
    with PeerLab(tmp_path, seed=seed, tuned=request.param) as lab:
        yield PeerTrial(
            lab=lab,
            pace=pace,
            record=record_property,
            name=name,
            by=f"autossh, {how}",
            signs=SIGNS,
        )
        print(lab.describe())  # seen when the test fails


@pytest.mark.parametrize("ways", [("up", "down"), ("up",)], ids=["both", "up"])
@pytest.mark.lengths(short=[5], full=[5, 30, 120])
def test_black_hole(trial: PeerTrial, ways: tuple[Way, ...], length: float) -> None:
    trial.observe(lambda: faults.black_hole(trial.lab, length, *ways))


@pytest.mark.parametrize("answer", ["reset", "silence"])
def test_middlebox_forgets(trial: PeerTrial, answer: Literal["reset", "silence"]) -> None:
    trial.name = "middlebox forgets " + {"reset": "and resets", "silence": "in silence"}[answer]
    trial.observe(lambda: trial.lab.wan.forget_flows(answer=answer))


@pytest.mark.parametrize("percent", [5])
@pytest.mark.lengths(short=[6], full=[60])
def test_loss(trial: PeerTrial, percent: int, length: float) -> None:
    trial.observe(lambda: faults.loss(trial.lab, length, percent=percent))


@pytest.mark.lengths(short=[10], full=[60])
def test_saturated_uplink(trial: PeerTrial, length: float) -> None:
    trial.observe(lambda: faults.saturated_uplink(trial.lab, length))


@pytest.mark.lengths(short=[10], full=[60])
def test_cut_at_random(trial: PeerTrial, length: float) -> None:
    trial.observe(lambda: faults.cuts(trial.lab, length))


@pytest.mark.lengths(short=[4], full=[4, 30])
def test_interface_down_and_up(trial: PeerTrial, length: float) -> None:
    trial.observe(lambda: faults.interface_down_and_up(trial.lab, length))


def test_address_changes(trial: PeerTrial) -> None:
    trial.observe(trial.lab.change_router_address)


def test_agent_is_killed_and_restarted(trial: PeerTrial) -> None:
    def restart() -> None:
        trial.lab.kill_autossh()
        trial.lab.start_autossh()

    trial.observe(restart)


def test_relay_is_killed_and_restarted(trial: PeerTrial) -> None:
    def restart() -> None:
        trial.lab.kill_sshd()
        time.sleep(DOWN)
        with trial.lab.vps.entered():
            process = trial.lab.sshd.start_again()
        trial.lab.journal.watch("sshd", process)

    trial.observe(restart)


def test_router_reboots_without_a_goodbye(trial: PeerTrial) -> None:
    lab = trial.lab

    def reboot() -> None:
        lab.wan.hole()
        lab.kill_autossh()
        lab.wan.forget_flows(answer="silence")
        lab.wan.mend()
        lab.start_autossh()

    trial.observe(reboot)
