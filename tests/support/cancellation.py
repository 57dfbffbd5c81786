"""Cancelling a task at each of its steps in turn, so that no await is left untried."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio


class CancelAtStep(trio.abc.Instrument):
    """Cancels `scope` after the n-th step that any task takes from now on.

    Every await of whatever runs inside is hit by one n; a test goes through all n until one is
    beyond the end.
    """

    def __init__(self, scope: trio.CancelScope, step: int) -> None:
        self._scope = scope
        self._left = step

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self._left -= 1
        if self._left == 0:
            self._scope.cancel()


@contextmanager
def cancelled_at(step: int, scope: trio.CancelScope | None = None) -> Iterator[trio.CancelScope]:
    """Cancel the body, or `scope` in it, after `step` steps of any task.

    The scope tells whether that came in time.
    """
    with trio.CancelScope() as whole:
        instrument = CancelAtStep(scope or whole, step)
        trio.lowlevel.add_instrument(instrument)
        try:
            yield whole
        finally:
            trio.lowlevel.remove_instrument(instrument)
