"""Commands of relay-server: the time they are run at, agents by number, a server that answers."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from protocol.process.control.client import SOCKET
from protocol.process.state import StateFolder
from protocol.wire.identifiers import AgentKey, Token
from relay_server.registry.registry import Registry
from relay_server.registry.relay_keys import RelayKeys, load_or_make

NOW = 1_000_000.0
Run = Callable[..., tuple[int, str, str]]


def enrol(state: StateFolder, name: str, number: int, *ports: int) -> None:
    with Registry(state) as registry:
        token = Token(bytes([number]) * 16)
        registry.invite(
            name, token, now=NOW, lifetime=1, port_range=range(11111, 11120), ports=ports
        )
        registry.redeem(token, AgentKey(bytes([number]) * 32), NOW)


@contextmanager
def server(state: StateFolder, answer: dict[str, Any]) -> Iterator[list[str]]:
    """Stands for the running process: answers once, and tells what it was asked."""
    asked: list[str] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(state.path / SOCKET))
        listener.listen()

        def serve() -> None:
            with listener.accept()[0] as accepted:
                asked.append(json.loads(accepted.recv(1000))["command"])
                accepted.sendall(json.dumps(answer).encode() + b"\n")

        thread = threading.Thread(target=serve)
        thread.start()
        yield asked
        thread.join(10)


def keys_of(state: StateFolder) -> RelayKeys:
    with Registry(state) as registry:
        return load_or_make(state, registry)
