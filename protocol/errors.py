"""Errors, one class for each scope: what is lost, and where the error is caught.

=====================  ==========================================  ================================
class                  what is lost                                caught by
=====================  ==========================================  ================================
RemoteProtocolError    the link, by the peer's fault               transport.link
LinkLost               the link; its session lives                 transport.link
NoAnswer               the attempt with this key of the relay      the agent, which may try another
SessionLost            the session and its streams                 the owner of the session
LinkDenied             the attempt to attach                       the agent's attach loop
LocalProtocolError     an invariant of this program: a bug         the relay's net.fault_isolation,
                                                                   which logs it; not at the agent
=====================  ==========================================  ================================

The loss of a single stream is an event (`session.events.StreamReset`) and not an error: it is part
of normal operation.
"""

from __future__ import annotations

import enum


class ResetCode(enum.IntEnum):
    """Why a stream ended before both directions were finished (RESET frame, docs/protocol.md)."""

    ABORTED = 1  # the socket behind the sender's end was reset or failed
    TARGET_UNREACHABLE = 2  # the agent could not connect to the service's target
    SERVICE_GONE = 3  # the publication named by OPEN is withdrawn
    REFUSED = 4  # the sender's limits or guard refuse the stream
    SESSION_LOST = 5  # never sent: how a local end learns that its session is gone
    SHUTDOWN = 6  # the sender's process is going away


class RefusalCode(enum.IntEnum):
    """Why a publication is refused (REFUSED frame)."""

    PORT_BUSY = 1  # another program holds the port; the relay keeps trying by itself
    NOT_GRANTED = 2  # this agent may not publish that port
    LIMIT = 3  # too many publications
    PORT_FAILED = 4  # the relay may not open that port (privileged, address not here)


class DenialCode(enum.IntEnum):
    """Why the relay does not let a link attach (DENIED frame, or message 2 for VERSION)."""

    VERSION = 1  # the relay does not speak the agent's protocol version
    UNKNOWN_AGENT = 2  # the key is not enrolled and no token was shown
    TOKEN = 3  # the enrolment token is unknown, used by another key, or expired
    REVOKED = 4  # the key was revoked
    DUPLICATE = 5  # another process with the same key is attached and alive
    BUSY = 6  # a limit of the relay; try again later
    SUPERSEDED = 7  # a newer link of the same key overtook this attempt
    SHUTDOWN = 8  # the relay is going away


class ProtocolError(Exception):
    """Base of the errors that the protocol itself raises."""


class RemoteProtocolError(ProtocolError):
    """The peer sent what the protocol does not allow. The only error that received bytes raise."""


class LocalProtocolError(ProtocolError):
    """This side asked for what the protocol does not allow: a bug here."""


class LinkLost(ProtocolError):  # noqa: N818 - an end, not an error
    """The link is lost; its session may go on over another link."""


class NoAnswer(LinkLost):
    """The peer closed without a byte after message 1, as a relay without the expected key does."""


class SessionLost(ProtocolError):  # noqa: N818 - an end, not an error
    """The session cannot go on; its streams are reset."""


class LinkDenied(ProtocolError):  # noqa: N818 - an answer, not an error
    """The relay answered the handshake with a refusal.

    `retry_after` is in seconds; 0 leaves the interval to the agent's own backoff.
    """

    def __init__(self, code: int, reason: str, retry_after: float = 0.0) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
        self.retry_after = retry_after
