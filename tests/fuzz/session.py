"""Two sessions that keep to the rules, over a link that does what the input says.

The same pair as in the unit tests' model: its books are compared with what is held after every
step, each byte that arrives with what was written there, and at the end everything has arrived.
"""

from __future__ import annotations

from typing import Final

from protocol.errors import ResetCode
from tests.fuzz.choices import Choices
from tests.support.pair import TINY, Half, Pair, PairSide

RECORDS: Final = (50, 300, 65514)
# Each step costs up to a millisecond, and shows most of what it can do early.
MAX_STEPS: Final = 80
# The books are half of that; what is wrong in them stays wrong for a few steps.
CHECK_EVERY: Final = 4


def fuzz_one(data: bytes) -> None:
    choices = Choices(data)
    pair = Pair(TINY, TINY)
    live = [pair.publish()]
    pair.settle()
    pair.open(live[0])
    for number in range(MAX_STEPS):
        if not choices:
            break
        side = pair.relay if choices.flag() else pair.agent
        _step(pair, side, live, choices)
        if number % CHECK_EVERY == 0:
            pair.check()
    pair.bring_to_an_end()


def _pick(side: PairSide, choices: Choices) -> Half | None:
    live = [half for half in side.halves.values() if not half.over]
    return live[choices.number() % len(live)] if live else None


def _step(pair: Pair, side: PairSide, live: list[int], choices: Choices) -> None:
    match choices.below(11):
        case 0:
            pair.deliver(side, choices.number() or None)
        case 1:
            _open(pair, choices)
        case 2:
            _write(pair, side, choices)
        case 3:
            if (half := _pick(side, choices)) is not None:
                pair.read(side, half.stream, choices.number(2), kept_up=choices.flag())
        case 4:
            _end(pair, side, choices)
        case 5:
            side.session.record_size = RECORDS[choices.below(len(RECORDS))]
        case 6:
            _publication(pair, live, choices)
        case 7:
            side.capacity = choices.number(2) or 10**9
            pair.serve(side)
        case 8:
            _cut(pair, side, choices)
        case 9:
            pair.heal()
        case 10:
            pair.tick(choices.number(2) / 1000)
            if choices.flag() and side.session.attached:
                side.session.probe(pair.now)
                pair.serve(side)


def _open(pair: Pair, choices: Choices) -> None:
    asked = sorted(pair.relay.publications)
    if asked:
        stream = pair.open(asked[choices.number() % len(asked)])
        assert stream is not None or pair.relay.session.open_streams == TINY.streams


def _write(pair: Pair, side: PairSide, choices: Choices) -> None:
    half = _pick(side, choices)
    if half is not None and not half.want_fin and half.reset_came is None:
        pair.write(side, half.stream, choices.number(2) % 5000)


def _end(pair: Pair, side: PairSide, choices: Choices) -> None:
    half = _pick(side, choices)
    if half is None:
        return
    if choices.flag():
        pair.reset(side, half.stream, ResetCode.ABORTED)
    elif not half.want_fin and half.reset_came is None:
        pair.finish(side, half.stream)


def _publication(pair: Pair, live: list[int], choices: Choices) -> None:
    relay, agent = pair.sides
    asked = sorted(relay.publications)
    which, index = choices.below(4), choices.number()
    if which == 0 and len(live) < 4:
        live.append(pair.publish())
    elif which == 1 and live:
        agent.session.unpublish(live.pop(index % len(live)))
    elif which == 2 and asked:
        relay.session.published(asked[index % len(asked)], 11111)
    elif which == 3 and asked:
        relay.session.refused(asked[index % len(asked)], 1, "port 11111 is held by nginx")
    for side in pair.sides:
        pair.serve(side)


def _cut(pair: Pair, side: PairSide, choices: Choices) -> None:
    pair.cut(choices.below(8), choices.below(8))
    match choices.below(4):
        case 0:
            pair.notice(side)
        case 1:
            pair.resume()
        case 2:
            pair.half_resume()
