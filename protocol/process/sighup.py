"""What SIGHUP means: from a person "read your configuration again", from the kernel "your terminal
is gone", which is an end as ever."""

from __future__ import annotations

import os
from typing import Final

_STDERR: Final = 2


class ControllingTerminal:
    def __init__(self, descriptor: int = _STDERR) -> None:
        self._descriptor = descriptor
        self._had_one = os.isatty(descriptor)

    @property
    def is_gone(self) -> bool:
        """Whether there was one. The kernel hangs it up before it sends the signal."""
        return self._had_one and not os.isatty(self._descriptor)
