"""Why visitors are refused and handshakes fail: a token for programs, a sentence for people.

Tokens are labels of metrics and keys of `--json`, and do not change. Sentences are in the log and
in tables, and may.
"""

from __future__ import annotations

import enum
from typing import Final, Self


class _Reason(enum.StrEnum):
    sentence: str

    def __new__(cls, token: str, sentence: str) -> Self:
        reason = str.__new__(cls, token)
        reason._value_ = token
        reason.sentence = sentence
        return reason


class Refusal(_Reason):
    """Why a visitor is not carried, or no longer."""

    SOURCE_DENIED = "source_denied", "the source is denied"
    SOURCE_NOT_ALLOWED = "source_not_allowed", "the source is not allowed"
    TOO_MANY_OF_AGENT = "too_many_of_agent", "too many visitors of this agent"
    TOO_MANY_FROM_SOURCE = "too_many_from_source", "too many visitors from there"
    TOO_MANY_WAITING = "too_many_waiting", "too many visitors wait for the agent"
    TOO_MANY_STREAMS = "too_many_streams", "too many streams"
    STREAM_IDS_USED_UP = "stream_ids_used_up", "stream ids are used up"
    NOT_SSH = "not_ssh", "not an SSH client"
    GONE_SILENT = "gone_silent", "gone without a word"
    AGENT_AWAY = "agent_away", "the agent is away"
    PORT_CLOSED = "port_closed", "the port is closed"
    EVICTED = "evicted", "evicted for another visitor"


class VisitorRefused(Exception):  # noqa: N818 - an answer, not an error
    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.sentence)
        self.refusal = refusal


class HandshakeFailure(_Reason):
    """Why a caller is not let in."""

    TOO_MANY_FROM_SOURCE = "too_many_from_source", "too many attempts from there"
    PUSHED_OUT = "pushed_out", "pushed out by newer callers"
    LATE = "late", "no handshake in time"
    CLOSED = "closed", "closed before the handshake was done"
    WRONG_PROTOCOL = "wrong_protocol", "not the protocol"  # the log has more
    NETWORK_ERROR = "network_error", "network error"  # likewise


def sentence_of(refusal: str) -> str:
    """For people; a token that a relay of another version sent stays as it is."""
    return _SENTENCES.get(refusal, refusal)


_SENTENCES: Final = {str(one): one.sentence for one in Refusal}
