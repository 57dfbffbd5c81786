"""How far a fault of ours reaches: to whoever met it, and not to all.

All agents share one process. A bug that one of them can set off would otherwise let it end the
sessions of everybody else, as often as it likes. So what is done for one caller, one session or one
visitor is contained: an exception that nothing is to raise (LocalProtocolError, or any other) is
logged with its traceback, and takes along what it was met in. What the relay does for all is not
contained: there a fault ends the process, and the service manager starts another one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from protocol.errors import LinkLost, SessionLost
from protocol.process.logs import failure

log = logging.getLogger(__name__)


@contextmanager
def contained(after: Callable[[], None] = lambda: None, **about: object) -> Iterator[None]:
    """Nothing leaves this block but the known ends, and cancellation.

    After a fault `after` is called, and whatever follows the block goes on.
    """
    try:
        yield
    except (LinkLost, SessionLost):
        raise
    except Exception:
        failure(log, "fault", **about)
    except BaseExceptionGroup as group:
        # Out of a nursery that was being cancelled.
        faults, rest = group.split(Exception)
        if faults is not None:
            failure(log, "fault", **about)
        if rest is not None:
            raise rest from None
    else:
        return
    after()
