"""Typing beside bulk over a thin line, and one stream over a long fat one.

    python -m benchmarks --only wan

Both need the network lab, hence root: a router and a VPS in network namespaces, and between them a
path with a rate, a delay and a queue. Each carrier has a lab of its own and they take turns, so
what the machine does meanwhile meets all of them. Every TCP connection has cubic.

**Typing.** A visitor says 64 bytes now and then, which the router echoes, while others load as much
as they get from the router through its uplink. Whoever carries it, an echo waits in the queue of
the line like everything else. So at the same moment a ping (UDP, past the carrier) takes the same
path through the same queue, and what is compared is the time of the echo beyond that of its ping.
A ping that got lost, which happens only while the queue is full, is taken to be like the one before
it. The queue before the line holds either one product of bandwidth and delay or 400 ms.

**Long fat line.** 200 Mbit/s and 150 ms. One copy goes each way in turn, through the carriers and
directly, as one plain TCP connection.
"""

from __future__ import annotations

import contextlib

from tests.support.lab.network import missing

from . import wan_fat, wan_typing
from .carriers import Ssh
from .machine import Others
from .report import Findings, Plan, Unable
from .wan_lab import OURS, THEIRS, Ours, Theirs


def run(plan: Plan) -> Findings:
    if reason := missing() or Ssh().missing():
        raise Unable(reason)
    others = Others()
    with contextlib.ExitStack() as undo:
        labs: dict[str, Ours | Theirs] = {}
        for name, kind in ((OURS, Ours), (THEIRS, Theirs)):
            folder = plan.work / kind.__name__.lower()
            folder.mkdir()
            lab = kind(folder)
            undo.enter_context(lab)
            labs[name] = lab
        parts = wan_typing.typing(plan, labs), wan_fat.fat(plan, labs)
    return Findings(
        title="Over a WAN: typing beside bulk, and a long fat line",
        measurements=tuple(one for part in parts for one in part.measurements),
        targets=tuple(one for part in parts for one in part.targets),
        plots=tuple(one for part in parts for one in part.plots),
        notes=tuple(one for part in parts for one in part.notes),
        # All that was started has ended, and so counts as ours.
        others=others.remark([]),
    )
