"""What an agent says to its relay, kept to be said again."""

from __future__ import annotations

import contextlib
import socket
import threading

from protocol.wire.hello import encode_preface
from protocol.wire.noise import Suite
from tests.support.ports import LOOPBACK

PREFACE = encode_preface(Suite.AESGCM)


class Recorder:
    """Stands between an agent and the relay, and keeps what the agent says."""

    def __init__(self, relay_port: int) -> None:
        self._listener = socket.create_server((LOOPBACK, 0))
        self.port: int = self._listener.getsockname()[1]
        self.said = bytearray()
        self._ends: list[socket.socket] = []
        self._relay_port = relay_port
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                agent, _ = self._listener.accept()
                relay = socket.create_connection((LOOPBACK, self._relay_port))
                self._ends = [agent, relay]
                for source, sink, kept in ((agent, relay, self.said), (relay, agent, None)):
                    threading.Thread(
                        target=self._copy, args=(source, sink, kept), daemon=True
                    ).start()

    def _copy(self, source: socket.socket, sink: socket.socket, kept: bytearray | None) -> None:
        with contextlib.suppress(OSError), source:
            while data := source.recv(1 << 16):
                if kept is not None:
                    kept += data
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        """End the newest link, as seen from both sides."""
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
        self._listener.close()
