"""Records on their way out of the table: what is said before the end, again, or with marks."""

from collections.abc import Sequence

import msgspec

from sipsidecar.calls.call import Call
from sipsidecar.calls.events import AttemptRecord, CallRecord, MediaRecord

_INFERRED_BY_TIMER = frozenset({"no_response", "stuck_early"})

Revisable = CallRecord | AttemptRecord | MediaRecord
"""Records that late facts may change."""
Key = tuple[str, str | None, str | None]


def key_of(record: Revisable) -> Key:
    """What names a record of its Call-ID: From tag, branch of an attempt, stream of media."""
    branch = record.branch if isinstance(record, AttemptRecord) else None
    return record.from_tag, branch, record.stream if isinstance(record, MediaRecord) else None


def hashes(records: Sequence[Revisable]) -> dict[Key, int]:
    """What is remembered of records that left: enough to see whether they would change."""
    return {key_of(record): hash(record) for record in records}


def marks_of(call: Call) -> tuple[str, ...]:
    """The flags for how a call came to be known; one whose first INVITE was seen missed nothing."""
    if "warming" not in call.marks:
        return call.marks
    first: dict[str, int] = {}
    for leg in call.legs.values():
        if leg.invite:
            first[leg.from_tag] = min(leg.cseq, first.get(leg.from_tag, leg.cseq))
    # A re-INVITE is no leg's first INVITE: only what precedes those that were seen was missed.
    missed = any(leg.cseq < first.get(leg.from_tag, 0) for leg in call.legs.values())
    if first and not missed:
        return tuple(mark for mark in call.marks if mark != "warming")
    return call.marks


def marked(record: Revisable, revision: int, marks: Sequence[str]) -> Revisable:
    """The record as it leaves: its revision, and its flags with these."""
    flags = tuple(sorted({*record.flags, *marks}))
    return msgspec.structs.replace(record, revision=revision, flags=flags)


def interrupted(record: Revisable) -> Revisable:
    """A record whose timers did not run out: nothing that only they would prove is said."""
    flags = tuple(sorted({*record.flags, "interrupted"} - _INFERRED_BY_TIMER))
    if isinstance(record, MediaRecord):
        return msgspec.structs.replace(record, flags=flags)
    by_timer = record.inferred and not record.answered
    if not by_timer:
        return msgspec.structs.replace(record, flags=flags)
    unknown = msgspec.structs.replace(
        record, flags=flags, final_code=None, final_class=None, inferred=False
    )
    if isinstance(unknown, CallRecord):
        return msgspec.structs.replace(
            unknown,
            final_origin=None,
            ended=False,
            ended_at=None,
            end_source=None,
            released_by=None,
        )
    return unknown
