"""A call's record and what was reported of its media, to the record with MOS, findings and evidence."""

import json
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from sipsidecar.calls import findings, media, negotiation
from sipsidecar.calls.call import Call
from sipsidecar.calls.dialog import Dialog
from sipsidecar.calls.events import CallRecord, MediaRecord, QualityInterval
from sipsidecar.calls.thresholds import Thresholds

SKEW_STEP_US = 500_000
"""Clocks this near to each other are taken for one; the skew of others is rounded to it."""


class Judged(NamedTuple):
    """What is known of the media of one call."""

    records: tuple[MediaRecord, ...] = ()
    intervals: tuple[QualityInterval, ...] = ()
    left_out: int = 0
    """Blocks and accounts that cannot be, or that nobody can place."""


def judged(
    record: CallRecord, dialog: Dialog, facts: media.Facts | None, thresholds: Thresholds
) -> tuple[CallRecord, Judged]:
    """Rate and judge the media of a dialog: its record with that, and the records of its media."""
    offsets = _offsets(dialog)
    agreed = _by_one_clock(negotiation.read(dialog), offsets)
    heard = media.Media()
    if facts is not None:
        heard = media.derive(
            facts,
            agreed,
            thresholds,
            call_id=record.call_id,
            from_tag=record.from_tag,
            received_at=record.received_at,
            skews=offsets,
        )
    ends = dialog.ends()
    found = findings.judge(
        findings.CallFacts(
            record.answered,
            dialog.answered_at(),
            record.talk_ms,
            dialog.early_media_at(),
            ends[0][0] if ends else b"",
            ends[1][0] if ends else b"",
            dialog.callee_ip(),
        ),
        agreed,
        heard,
        thresholds,
    )
    records = _with_findings(heard, found)
    return _with_mos(record, records, found), Judged(records, heard.intervals, heard.left_out)


def judged_alone(record: CallRecord, facts: media.Facts, thresholds: Thresholds) -> CallRecord:
    """Rate and judge the media of a call whose SIP was not seen: its record with that."""
    call_id, received_at = record.call_id, record.received_at
    said = findings.CallFacts(record.answered, None, record.talk_ms, None, b"", b"")
    heard, found = _alone(call_id, received_at, facts, thresholds, said)
    return _with_mos(record, _with_findings(heard, found), found)


def media_alone(call: Call, facts: media.Facts, thresholds: Thresholds) -> Judged:
    """Rate and judge media whose call was not seen."""
    told = (
        findings.CallFacts(call.told[0], None, call.told[1], None, b"", b"") if call.told else None
    )
    heard, found = _alone(call.call_id, call.first_received_at, facts, thresholds, told)
    return Judged(_with_findings(heard, found), heard.intervals, heard.left_out)


def _alone(
    call_id: str,
    received_at: int,
    facts: media.Facts,
    thresholds: Thresholds,
    call: findings.CallFacts | None = None,
) -> tuple[media.Media, tuple[findings.Finding, ...]]:
    unknown = negotiation.Negotiation()
    heard = media.derive(
        facts,
        unknown,
        thresholds,
        call_id=call_id,
        from_tag="",
        received_at=received_at,
        skews={},
    )
    return heard, findings.judge(call, unknown, heard, thresholds)


def _with_mos(
    record: CallRecord, records: Sequence[MediaRecord], found: Sequence[findings.Finding]
) -> CallRecord:
    """The record with the MOS of the direction that was heard worse, and with what was found."""
    if not records and not found:
        return record
    rated = [one for one in records if one.mos is not None]
    worst = min(rated, key=lambda one: (one.mos or 0.0, one.stream), default=None)
    return msgspec.structs.replace(
        record,
        mos=worst.mos if worst else None,
        mos_scale=worst.mos_scale if worst else None,
        mos_direction=worst.direction if worst else None,
        findings=tuple(sorted({finding.kind for finding in found})),
        evidence=_evidence(found),
    )


def _offsets(dialog: Dialog) -> dict[int, int]:
    """Microseconds that other clocks are ahead of the one that this dialog is timed by.

    Between clocks that agree within the delay of packets nothing is corrected, else in coarse
    steps: what is known of a skew changes from packet to packet, and rows must not.
    """
    skews = dialog.clocks.skews
    if len(skews) < 2:
        return {}
    own = skews.get(dialog.order[0]) if dialog.order else None
    if own is None:
        return {}
    apart = {clock: skew - own for clock, skew in skews.items()}
    steps = {
        clock: round(us / SKEW_STEP_US) * SKEW_STEP_US
        for clock, us in apart.items()
        if abs(us) > SKEW_STEP_US
    }
    # Its own clock is the surest of all: those that are not named here are of unknown skew.
    return {dialog.order[0]: 0, **steps} if steps else {}


def _by_one_clock(
    agreed: negotiation.Negotiation, offsets: dict[int, int]
) -> negotiation.Negotiation:
    """The same with times by the clock that the dialog is timed by, as reports have them."""
    if not offsets:
        return agreed

    def moved(some: Sequence[negotiation.Agreement]) -> tuple[negotiation.Agreement, ...]:
        return tuple(
            msgspec.structs.replace(one, at=one.at - offsets.get(one.clock, 0))
            if one.at is not None and one.clock is not None
            else one
            for one in some
        )

    return msgspec.structs.replace(
        agreed, ingress=moved(agreed.ingress), egress=moved(agreed.egress)
    )


def _evidence(found: Sequence[findings.Finding]) -> str | None:
    """JSON: for each kind what was found, by direction."""
    if not found:
        return None
    kinds: dict[str, list[dict[str, object]]] = {}
    for finding in found:
        kinds.setdefault(finding.kind, []).append(
            {"direction": finding.direction, **finding.evidence}
        )
    return json.dumps(kinds, sort_keys=True, separators=(",", ":"))


def _with_findings(
    heard: media.Media, found: Sequence[findings.Finding]
) -> tuple[MediaRecord, ...]:
    """The records of each direction, with the words of what was found of it."""
    kinds: dict[str | None, set[str]] = {}
    for finding in found:
        kinds.setdefault(finding.direction, set()).add(finding.kind)
    return tuple(
        msgspec.structs.replace(
            direction.record, findings=tuple(sorted(kinds.get(direction.record.stream, ())))
        )
        for direction in heard.directions
    )
