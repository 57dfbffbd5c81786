"""Stateful models of Hypothesis: how long they run, and how their rules await."""

from __future__ import annotations

import os
from collections.abc import Coroutine
from typing import Any, TypeVar, cast

from hypothesis import HealthCheck, settings

T = TypeVar("T")

LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"
MODEL = settings(
    # The default run repeats itself, so that a change cannot fail by another's bad luck; the long
    # one explores.
    derandomize=not LONG,
    max_examples=3000 if LONG else 100,
    stateful_step_count=120 if LONG else 50,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run one that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return cast("T", stop.value)
    raise AssertionError("it waits")
