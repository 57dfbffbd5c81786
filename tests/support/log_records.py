"""The events that were logged, as pytest's `caplog` has them."""

from __future__ import annotations

import logging
from typing import Any

import pytest


def told(caplog: pytest.LogCaptureFixture, name: str) -> list[dict[str, Any]]:
    """The fields of each event `name`."""
    return [vars(record)["event_fields"] for record in caplog.records if record.msg == name]


def events(caplog: pytest.LogCaptureFixture, name: str = "") -> list[dict[str, Any]]:
    """Name, level and fields of each event, of those called `name` if given."""
    return [
        {"event": record.msg, "level": logging.getLevelName(record.levelno)}
        | getattr(record, "event_fields", {})
        for record in caplog.records
        if name in ("", record.msg)
    ]
