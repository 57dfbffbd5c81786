"""Logs: one line an event on standard error, for people or for machines.

Names of events are stable kebab-case (`link-up`), since alerts and tests look for them; what varies
is in the fields. Values come from peers too, so whatever is not plain printable ASCII is escaped: a
log line cannot be forged and a terminal not driven. Peers also cause events, as often as they like,
so each kind of event has so many lines a minute; the first line after that has the number
suppressed.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from typing import Any, Final, Literal

from protocol.process.rate_limit import RateLimit

LEVELS: Final = ("debug", "info", "warning", "error")
FORMATS: Final = ("text", "json")

# Of one event, and of one agent where an event names it, so that no agent's flood hides another's.
# More than any person causes; at some 200 bytes a line a flood is 12 MB a day in each of a dozen
# kinds, which whoever rotates logs does not notice.
LINES_A_MINUTE: Final = 60
# Kinds remembered, about 250 bytes each. More are those of a large fleet, mostly long silent.
_MAX_KINDS: Final = 4096

_PLAIN: Final = re.compile(r"[!#-<>-~]+")  # printable, without space, quote and equals sign


def configure(level: str, log_format: str) -> None:
    """Send this process's logs, those of libraries included, to standard error."""
    output = logging.StreamHandler(sys.stderr)
    output.addFilter(Enough())
    output.setFormatter(_JsonLine() if log_format == "json" else _TextLine())
    logging.basicConfig(level=level.upper(), handlers=[output], force=True)
    # A full disk or a closed pipe behind standard error must not make a second error of each event.
    logging.raiseExceptions = False


def event(logger: logging.Logger, level: int, name: str, /, **fields: object) -> None:
    if logger.isEnabledFor(level):
        logger.log(level, name, extra={"event_fields": fields})


def failure(logger: logging.Logger, name: str, /, **fields: object) -> None:
    """An error event with the traceback of the exception being handled: a bug of ours."""
    logger.error(name, exc_info=True, extra={"event_fields": fields})


class Enough(logging.Filter):
    """Holds back what is more than LINES_A_MINUTE; debug output was asked for, and is all told."""

    def __init__(self) -> None:
        super().__init__()
        self._rate_limits: dict[tuple[str, object], RateLimit] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        fields: dict[str, Any] | None = getattr(record, "event_fields", None)
        if fields is None or record.levelno < logging.INFO:
            return True
        now = time.monotonic()
        limit = self._rate_limit(record.msg, fields.get("agent"), now)
        if not limit.allows(now):
            return False
        if suppressed := limit.take_suppressed():
            vars(record)["event_fields"] = fields | {"suppressed": suppressed}
        return True

    def _rate_limit(self, name: str, agent: object, now: float) -> RateLimit:
        kind = name, agent
        limit = self._rate_limits.get(kind)
        if limit is None:
            if len(self._rate_limits) >= _MAX_KINDS:
                self._rate_limits = {
                    one: held for one, held in self._rate_limits.items() if held.ends > now
                }
            limit = self._rate_limits[kind] = RateLimit(lines=LINES_A_MINUTE)
        return limit


class _Line(logging.Formatter):
    """Tells an event's fields from the plain text that a library logs."""

    def parts(self, record: logging.LogRecord) -> tuple[str, dict[str, Any]]:
        fields: dict[str, Any] | None = getattr(record, "event_fields", None)
        name = record.msg
        if fields is None:
            name, fields = "log", {"logger": record.name, "text": record.getMessage()}
        if record.exc_info:
            fields = fields | {"traceback": self.formatException(record.exc_info)}
        return name, {key: _simple(value) for key, value in fields.items()}


class _TextLine(_Line):
    def format(self, record: logging.LogRecord) -> str:
        name, fields = self.parts(record)
        shown = (f"{key}={_quoted(value)}" for key, value in fields.items() if value is not None)
        return " ".join([_utc(record.created, "seconds"), record.levelname, name, *shown])


class _JsonLine(_Line):
    def format(self, record: logging.LogRecord) -> str:
        name, fields = self.parts(record)
        envelope = {
            "time": _utc(record.created, "milliseconds"),
            "level": record.levelname.lower(),
            "event": name,
        }
        # Twice: the first for the order, the second so that no field passes for the envelope.
        return json.dumps(envelope | fields | envelope)


def _utc(seconds: float, precision: Literal["seconds", "milliseconds"]) -> str:
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{text}Z" if precision == "seconds" else f"{text}.{int(seconds * 1000) % 1000:03}Z"


def _simple(value: object) -> object:
    match value:
        case bool() | int() | str() | None:
            return value
        case float():
            return round(value, 3)
        case bytes():
            return value.hex()
        case list() | tuple():
            return [_simple(item) for item in value]
    return str(value)


def _quoted(value: object) -> str:
    match value:
        case bool():
            text = "true" if value else "false"
        case list():
            text = ",".join(str(item) for item in value)
        case _:
            text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)
