"""One attempt to attach: dial, shake hands, hear the relay's answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import trio

from protocol import __version__
from protocol.errors import LinkLost
from protocol.transport.handshake import initiate
from protocol.transport.link import Link
from protocol.transport.sockets import plain, reset_on_close
from protocol.wire.hello import Hello, Welcome
from protocol.wire.noise import StaticKey, Suite
from relay_agent.identity.relay_identity import RelayIdentity
from relay_agent.net.dial import DialFailed, dial

SOFTWARE: Final = f"ssh-relay {__version__}"
# One deadline for name, TCP and handshake: a link over which that takes longer is too slow to type.
ATTACH_TIMEOUT: Final = 10.0


async def attach(
    relay: RelayIdentity,
    *,
    static: StaticKey,
    hello: Callable[[], Hello],
    patience: float = ATTACH_TIMEOUT,
) -> tuple[Link, Welcome]:
    """Make one attempt, within `patience` seconds: a link at one of `relay.hosts`, and its welcome.

    `hello` is called right before the handshake commits to the link. What it raises ends the
    attempt and is raised here.

    Raises LinkDenied with the relay's reason, LinkLost with one line for anything else.
    """
    deadline = trio.current_time() + patience
    try:
        sock = plain(await dial(relay.hosts, deadline=deadline))
    except DialFailed as exc:
        raise LinkLost(str(exc)) from exc
    try:
        with trio.CancelScope(deadline=deadline):
            attached = await initiate(
                sock,
                suite=preferred_suite(),
                static=static,
                relay_key=relay.key,
                hello=hello,
            )
            # When this process is killed, the bytes that wait in a full uplink must not arrive for
            # seconds more: the relay would take the next process for a duplicate of one that is
            # alive. Nothing is lost by it, since what is not acked is sent again or void.
            reset_on_close(sock)
            return attached
    except OSError as exc:
        sock.close()
        raise LinkLost(exc.strerror or str(exc)) from exc
    except BaseException:
        sock.close()
        raise
    sock.close()
    raise LinkLost(f"no answer to the handshake within {patience:g} s")


def preferred_suite(cpuinfo: Path = Path("/proc/cpuinfo")) -> Suite:
    """AES-GCM where the processor has instructions for it; elsewhere ChaCha20 is far faster.

    x86 lists its instruction sets as "flags", ARM as "Features"; both call this one "aes".
    """
    try:
        lines = cpuinfo.read_text("ascii", "replace").splitlines()
    except OSError:
        return Suite.CHACHAPOLY
    has_aes = any("aes" in line.split() for line in lines if line.startswith(("flags", "Features")))
    return Suite.AESGCM if has_aes else Suite.CHACHAPOLY
