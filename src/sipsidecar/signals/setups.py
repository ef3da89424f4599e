"""What became of a setup to what it counts as: one classification for all figures of calls.

Definitions are those of ITU-T E.425 (ASR, NER) on SIP's final codes, and of RFC 6076 where it has
them.

- A final 2xx, seen or inferred from what only follows one, is an answer.
- 3xx is no seizure, nor is a challenge (401, 407) that was left unanswered. An attempt whose challenge
  was answered is none at all: the next one speaks for it. So is one with 422 or 494 that was sent to
  the same place again.
- 480, 486, 487, 600, 603, 607, 608, and 408 after a 180, are people's doing (NER): no failure.
- A final that was lost (`final_lost`: nobody saw its code) is an attempt, its class unknown, and no
  seizure. A call that goes on, `interrupted`, is nothing, nor is one whose INVITE was never seen.
- An inferred final counts as what it was inferred to be, for the timers of RFC 3261 ran out. Those of
  an attempt did not where its call was answered or cancelled before: then its 408 counts as a failure
  only if a later attempt took its place, or if nothing at all had come back within `SILENT`; else it
  is unknown.
- A call that this product refused counts as that, and as nothing else; nor do its attempts.
"""

from typing import Final

from sipsidecar.calls.events import AttemptRecord, CallRecord, Setup

SILENT: Final = 4_000_000
"""Microseconds: the INVITE was sent four times by then (RFC 3261 17.1.1.2), and a server that lives
answers 100 within 200 ms (17.2.1)."""

FORK: Final = 250_000
"""Microseconds: INVITEs within that of each other were sent side by side."""
INVERSION: Final = 20_000
"""Microseconds that an answer may look older than what it answers: it was stamped after it was sent."""

OWN, ANSWERED, REDIRECTED, CHALLENGED, FAILED, EFFECTIVE = range(6)
SERVER, GLOBAL_FAILED, GLOBAL_EFFECTIVE, UNKNOWN = range(6, 10)
"""What a setup counts as. OWN: refused by this product; CHALLENGED: and left at that; EFFECTIVE and
GLOBAL_EFFECTIVE (6xx): people's doing; FAILED: other 4xx; SERVER: 5xx; GLOBAL_FAILED: other 6xx."""

CLASSES: Final = {
    "2xx": (ANSWERED,),
    "3xx": (REDIRECTED,),
    "4xx": (CHALLENGED, FAILED, EFFECTIVE),
    "5xx": (SERVER,),
    "6xx": (GLOBAL_FAILED, GLOBAL_EFFECTIVE),
    "unknown": (UNKNOWN,),
}
SEIZURES: Final = (ANSWERED, FAILED, EFFECTIVE, SERVER, GLOBAL_FAILED, GLOBAL_EFFECTIVE)
NUMERATORS: Final = {
    "asr_percent": (ANSWERED,),
    "ner_percent": (ANSWERED, EFFECTIVE, GLOBAL_EFFECTIVE),
    "server_errors_percent": (SERVER,),
}
"""Of the seizures."""

_RETRIED: Final = frozenset({422, 494})
_MENDED: Final = _RETRIED | {401, 407}
"""Refusals that a caller mends and sends again: no other place is tried for them."""
_KINDS: Final = {
    **dict.fromkeys(range(200, 300), ANSWERED),
    **dict.fromkeys(range(300, 400), REDIRECTED),
    **dict.fromkeys(range(400, 500), FAILED),
    **dict.fromkeys((401, 407), CHALLENGED),
    **dict.fromkeys((480, 486, 487), EFFECTIVE),
    **dict.fromkeys(range(500, 600), SERVER),
    **dict.fromkeys(range(600, 700), GLOBAL_FAILED),
    **dict.fromkeys((600, 603, 607, 608), GLOBAL_EFFECTIVE),
}


def kind_of_code(code: int | None, rang: bool = False) -> int:
    """Turn a final code into what it counts as; `rang`: a 180 came before it."""
    if code is None:
        return UNKNOWN
    if code == 408 and rang:
        return EFFECTIVE
    return _KINDS.get(code, UNKNOWN)


def kind_of_call(call: CallRecord) -> int | None:
    """Turn a call that this product did not refuse into what it counts as; None: nothing."""
    kind = kind_of_code(call.final_code, call.ring_ms is not None)
    if kind == UNKNOWN and "interrupted" in call.flags:
        return None
    return kind if call.seizure or kind == REDIRECTED else None


def kind_of_attempt(attempt: AttemptRecord, setup: Setup) -> int | None:
    """Turn one attempt of a setup into what it counts as; None: nothing."""
    kind = kind_of_code(attempt.final_code, attempt.ring_ms is not None)
    if kind == CHALLENGED:
        return None if "challenged" in attempt.flags else kind
    if kind == UNKNOWN:
        return None if "interrupted" in attempt.flags else kind
    if kind == FAILED:
        if attempt.final_code in _RETRIED and _sent_again(attempt, setup):
            return None
        if attempt.inferred and not _gave_up(attempt, setup):
            return UNKNOWN
    return kind


def was_followed(attempt: AttemptRecord, setup: Setup) -> bool:
    """Whether another attempt was made after this one gave way (failover), by the same node."""
    code = attempt.final_code
    if "failover" not in setup.call.flags or code is None or code < 400 or code in _MENDED:
        return False
    if "cancelled" in attempt.flags:
        return False
    if attempt.fail_ms is not None:
        since = attempt.started_at + int(attempt.fail_ms * 1000) - INVERSION
    else:
        since = attempt.started_at + FORK
    return any(
        later.failover_order > attempt.failover_order
        and later.src_ip == attempt.src_ip
        and later.started_at >= since
        for later in setup.attempts
    )


def _sent_again(attempt: AttemptRecord, setup: Setup) -> bool:
    """Whether the same place was tried once more after it had asked for something else."""
    place = (attempt.peer_ip, attempt.peer_port)
    return any(
        later.failover_order > attempt.failover_order and (later.peer_ip, later.peer_port) == place
        for later in setup.attempts
    )


def _gave_up(attempt: AttemptRecord, setup: Setup) -> bool:
    """Whether an attempt without a final had failed before its call was answered or cancelled."""
    call = setup.call
    if not call.answered and call.final_code != 487:
        return True
    began = attempt.started_at
    if any(later.started_at - began >= FORK for later in setup.attempts):
        return True
    ended = call.ended_at
    if call.answered:
        ended = None if call.setup_ms is None else call.started_at + int(call.setup_ms * 1000)
    return "no_response" in attempt.flags and ended is not None and ended - began >= SILENT
