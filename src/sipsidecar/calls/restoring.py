"""What an earlier life of this sidecar stored of a call, to what this life has to say of it.

A call's stored messages are facts like any others, and the join does not ask when they came. What
needs thought is what was said already: its rows in `calls` and `attempts`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from sipsidecar.calls.call import Call, Endpoint
from sipsidecar.calls.joining import Said
from sipsidecar.calls.leaving import hashes
from sipsidecar.calls.record import Outcome
from sipsidecar.wire import sip

RowKey = tuple[str, str | None, str | None, int]
"""From tag, branch (of an attempt), stream (of media) and `received_at` of a stored row; the Call-ID
goes beside."""


class Sighting(NamedTuple):
    """One stored message, read again: what `CallTable.receive` is told of a live one."""

    message: sip.Message
    source: Endpoint
    destination: Endpoint
    transport: str | None
    fingerprint: int
    clock: int
    at: int
    received_at: int


class Heard(NamedTuple):
    """One stored report of media, read again: what `CallTable.receive_media` is told of a live one."""

    said: Said
    source: Endpoint
    destination: Endpoint
    clock: int
    at: int
    received_at: int


class StoredRow(msgspec.Struct, frozen=True):
    """One row of `calls`, `attempts` or `media` that an earlier life wrote. Times in microseconds."""

    from_tag: str
    branch: str | None
    """None for a call, and for media."""
    received_at: int
    revision: int
    interrupted: bool
    """It was written at drain, of a call that went on."""
    lasted_us: int | None = None
    """From `started_at` to `ended_at`; None when that is unknown, and for what is no call."""
    stream: str | None = None
    """None for a call and an attempt."""

    @property
    def key(self) -> RowKey:
        """What names it among the rows of its Call-ID."""
        return self.from_tag, self.branch, self.stream, self.received_at

    @property
    def of_a_call(self) -> bool:
        """Whether it is a row of `calls`."""
        return self.branch is None and self.stream is None

    @property
    def over_at(self) -> int | None:
        """When its call was over, by this sidecar's clock."""
        return None if self.lasted_us is None else self.received_at + self.lasted_us


def last_call(
    sightings: Sequence[Sighting], rows: Sequence[StoredRow], patience_us: int
) -> tuple[list[Sighting], list[StoredRow]]:
    """Leave out what earlier calls of the same Call-ID left behind, oldest first.

    Test generators use Call-IDs again. A call that was over and forgotten, `patience_us` after its
    end, before the next message came, is another one than that message's.
    """
    facts = sorted(sightings, key=lambda fact: fact.received_at)
    begin = 0
    for i in range(1, len(facts)):
        before, after = facts[i - 1].received_at, facts[i].received_at
        if after - before <= patience_us:
            continue
        said = [r for r in rows if facts[begin].received_at <= r.received_at <= before]
        ends = [row.over_at for row in said if row.of_a_call]
        forgotten = (over is not None and after - over > patience_us for over in ends)
        if ends and not any(row.interrupted for row in said) and all(forgotten):
            begin = i
    if not begin:
        return facts, list(rows)
    since = facts[begin].received_at
    return facts[begin:], [row for row in rows if row.received_at >= since]


def join_stored(call: Call, facts: Sequence[Sighting], rows: Sequence[StoredRow]) -> int:
    """Join what was stored of a call; the newest revision of its rows, -1 when it has none.

    Its next record replaces or takes back those rows, and what this life said before it knew of
    the beginning: that has another `received_at`, and so another key.
    """
    stored = {row.key for row in rows}
    revisions = [row.revision for row in rows]
    first = min([facts[0].received_at, call.first_received_at, *(row.received_at for row in rows)])
    if call.emitted is not None:
        stored |= {(*key, call.first_received_at) for key in call.emitted}
        revisions.append(call.revision)
    elif is_over(rows):
        first = min(row.received_at for row in rows)  # what was said keeps its key
    for fact in facts:
        call.see(*fact[:-1])
    call.first_received_at = first
    call.stored = tuple(stored)
    call.marks = (*call.marks, "rebuilt")
    return max(revisions, default=-1)


def is_over(rows: Sequence[StoredRow]) -> bool:
    """Whether the rows are those of a call whose record had left: none says `interrupted`."""
    return bool(rows) and not any(row.interrupted for row in rows)


def saw_all_of_it(call: Call, facts: Sequence[Sighting], rows: Sequence[StoredRow]) -> bool:
    """Whether a call that this life met has nothing of an earlier one: what is stored is its own."""
    return (
        facts[0].received_at >= call.first_received_at
        and all(fact.fingerprint in call.copies for fact in facts)
        and not any(row.interrupted for row in rows)
    )


def says_it_all(
    rows: Sequence[StoredRow], said: Outcome, facts: Sequence[Sighting], settle_us: int
) -> bool:
    """Whether the rows of a call that was over hold what `said` would say again.

    Not when a message came after them (nobody knows whether its revision was stored), when a row is
    missing, or when the rows do not agree on when the call was first seen. That messages are
    missing (they are given up first under load) is no reason: then the rows know more.
    """
    if len({row.received_at for row in rows}) > 1:
        return False
    over_at = max((row.over_at for row in rows if row.over_at is not None), default=None)
    newest = max(fact.received_at for fact in facts)
    # Half of it: messages are received with delay, and to say a record again costs one row.
    if over_at is not None and newest > over_at + settle_us // 2:
        return False
    return hashes(said.records).keys() <= {row.key[:-1] for row in rows}
