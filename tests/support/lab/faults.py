"""What happens to a network. Each function returns when the world is whole again."""

from __future__ import annotations

import random
import time

from tests.support.lab.network import BOTH, DELAY, RATE, Network, Way


def black_hole(network: Network, length: float, *ways: Way) -> None:
    """All packets are swallowed, or those of one direction."""
    network.wan.hole(*(ways or BOTH))
    time.sleep(length)
    network.wan.mend()


def loss(network: Network, length: float, *, percent: float) -> None:
    """At 50 ms, each way half of it."""
    network.wan.shape(delay=0.025, loss=percent / 100)
    time.sleep(length)
    network.wan.shape(delay=DELAY, loss=0.0)


def saturated_uplink(network: Network, length: float) -> None:
    """The copy upwards finds 1 Mbit/s, and half a second of queue in front of it."""
    network.wan.shape("up", rate=1e6)
    time.sleep(length)
    network.wan.shape("up", rate=RATE)


def cuts(network: Network, length: float) -> int:
    """About every two seconds a middlebox resets all there is; how many times it did."""
    chance = random.Random(network.wan.seed)
    ends = time.monotonic() + length
    count = 0
    while time.monotonic() < ends:
        network.wan.forget_flows(answer="reset")
        count += 1
        time.sleep(chance.uniform(1.0, 3.0))
    return count


def interface_down_and_up(network: Network, length: float) -> None:
    network.set_router_interface(is_up=False)
    time.sleep(length)
    network.set_router_interface(is_up=True)
