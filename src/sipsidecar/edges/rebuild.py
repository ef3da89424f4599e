"""What a killed sidecar stored of calls that went on, to those calls live again.

It runs beside the capture that has already begun: questions wait for the database, and after so
many messages other work has its turn.
"""

import asyncio
import logging
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import msgspec

from sipsidecar.batch import StoreError, StoreUnavailable
from sipsidecar.calls.restoring import StoredRow
from sipsidecar.pipeline import Pipeline, Restored
from sipsidecar.wire import hep

CHUNK = 500
"""Call-IDs per question."""
MAX_ROWS = 5000
"""Messages per answer; a Call-ID alone that has more is one of a flood, and keeps its first ones."""
MAX_MESSAGES = 1000
"""Messages per call: they go in without a pause, for half a call would be judged."""
LOOKS = 4
"""Times candidates are asked for, each time half as far back."""
TRIES = 8
"""Times another question is asked: a database that is started again answers within a minute."""
RETRY_PAUSE, LONGEST_PAUSE = 1.0, 30.0
HOLD_SECONDS = 60.0
"""How long calls without their INVITE wait for it to be restored."""

log = logging.getLogger("sipsidecar.rebuild")

AskUnfinished = Callable[[int, int, int], Awaitable[Sequence[tuple[str, int | None, bool]]]]
"""Since when, lingering (both in microseconds) and limit, to Call-IDs; the newest come first."""
AskMessages = Callable[[Sequence[str], int], Awaitable[Sequence[dict[str, Any]]]]
"""Call-IDs and limit, to their SIP and their reports of media: columns of `messages`."""
AskRows = Callable[[Sequence[str]], Awaitable[Sequence[dict[str, Any]]]]
"""Call-IDs, to their rows in `calls`, `attempts` and `media`: call_id from_tag branch (of an attempt)
stream (of media) received_at revision flags started_at ended_at (of a call)."""


class Rebuilt(msgspec.Struct, kw_only=True):
    """What a rebuild did."""

    calls: int = 0
    """Call-IDs whose messages were joined again."""
    messages: int = 0
    messages_left_out: int = 0
    """Of calls that have more than `MAX_MESSAGES`, as far as they were asked for."""
    seconds: float = 0.0
    left_out: int = 0
    """Calls over the limit or without room, and those the database did not answer for."""


async def rebuild(
    ask_unfinished: AskUnfinished,
    ask_messages: AskMessages,
    ask_rows: AskRows,
    pipeline: Pipeline,
    *,
    now: Callable[[], float],
    at_us: int,
    look_back: float,
    linger: float,
    limit: int,
    turn: int = 64,
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> Rebuilt:
    """Restore what was open, or had just ended, when an earlier life of this sidecar ended.

    `now` is monotonic, `at_us` the wall clock, `look_back` and `linger` are seconds. Does not raise
    for a database that is away: then the calls are in `left_out`, or nobody knows of them, and a
    line in the log says so. Meanwhile calls without their INVITE wait for it, `HOLD_SECONDS` at most.
    """
    began = now()
    done = Rebuilt()
    pipeline.calls.hold_partials_until = began + HOLD_SECONDS
    try:
        found = await _candidates(ask_unfinished, at_us, look_back, linger, limit, pause)
        wanted = found[:limit]
        done.left_out += len(found) - len(wanted)
        chunks = deque(wanted[i : i + CHUNK] for i in range(0, len(wanted), CHUNK))
        while chunks:
            chunk = chunks.popleft()
            try:
                messages = await _ask(partial(ask_messages, chunk, MAX_ROWS), pause)
                if len(messages) >= MAX_ROWS and len(chunk) > 1:
                    half = len(chunk) // 2
                    chunks.extendleft((chunk[half:], chunk[:half]))
                    continue
                rows = await _ask(partial(ask_rows, chunk), pause)
            except StoreError as error:
                left = len(chunk) + sum(map(len, chunks))
                done.left_out += left
                log.warning("%d calls are not rebuilt: %s", left, error)
                break
            await _restore(pipeline, messages, rows, done, now, turn, pause)
    finally:
        pipeline.calls.hold_partials_until = None
        done.seconds = now() - began
    return done


async def _candidates(
    ask: AskUnfinished,
    at_us: int,
    look_back: float,
    linger: float,
    limit: int,
    pause: Callable[[float], Awaitable[None]],
) -> list[str]:
    """Call-IDs to look at, more than `limit` when there are more; each once."""
    for attempt in range(LOOKS):
        since_us = at_us - int(look_back * 1_000_000)
        try:
            found = await ask(since_us, int(linger * 1_000_000), 2 * limit)
        except StoreUnavailable as error:
            if attempt < LOOKS - 1:
                look_back /= 2
                log.warning("looking for open calls %d s back instead: %s", look_back, error)
                await pause(RETRY_PAUSE)
                continue
            log.warning("calls that were open before are not rebuilt: %s", error)
        except StoreError as error:
            log.warning("calls that were open before are not rebuilt: %s", error)
        else:
            return list(dict.fromkeys(call_id for call_id, *_ in found))
        break
    return []


async def _ask(
    question: Callable[[], Awaitable[Sequence[dict[str, Any]]]],
    pause: Callable[[float], Awaitable[None]],
) -> Sequence[dict[str, Any]]:
    """One answer, of a database that may be away for a moment."""
    for attempt in range(TRIES - 1):
        try:
            return await question()
        except StoreUnavailable:
            await pause(min(RETRY_PAUSE * 2**attempt, LONGEST_PAUSE))
    return await question()


async def _restore(
    pipeline: Pipeline,
    messages: Sequence[dict[str, Any]],
    rows: Sequence[dict[str, Any]],
    done: Rebuilt,
    now: Callable[[], float],
    turn: int,
    pause: Callable[[float], Awaitable[None]],
) -> None:
    """Give one answer to the pipeline, call by call."""
    said: defaultdict[str, list[StoredRow]] = defaultdict(list)
    for row in rows:
        said[row["call_id"]].append(_row(row))
    calls: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for message in messages:
        calls[message["call_id"]].append(message)
    worked = 0
    for call_id, of_call in calls.items():
        whole = [_message(message) for message in of_call[:MAX_MESSAGES]]
        done.messages_left_out += len(of_call) - len(whole)
        joined = pipeline.restore(whole, said[call_id], now())
        if joined is None:
            done.left_out += 1
        elif joined:
            done.calls += 1
            done.messages += joined
        worked += len(whole)
        if worked >= turn:
            worked = 0
            await pause(0)


def _row(row: dict[str, Any]) -> StoredRow:
    started, ended = row["started_at"], row["ended_at"]
    return StoredRow(
        row["from_tag"],
        row["branch"],
        row["received_at"],
        row["revision"],
        "interrupted" in row["flags"],
        ended - started if ended is not None else None,
        row["stream"],
    )


def _message(row: dict[str, Any]) -> Restored:
    return Restored(
        row["received_at"],
        row["captured_at"],
        row["agent_id"],
        row["agent_ip"] or "",
        _packed(row["src_ip"]),
        row["src_port"] or 0,
        _packed(row["dst_ip"]),
        row["dst_port"] or 0,
        row["transport"],
        row["payload"],
        row["kind"],
    )


def _packed(address: str | None) -> bytes:
    return hep.packed_address(address) if address else b""
