"""Ended setups and calls to one row of figures per minute and cohort."""

from collections.abc import Sequence
from typing import Final

import msgspec

from sipsidecar.calls.events import CallRecord, MediaRecord, RegistrationRecord, Setup
from sipsidecar.signals.alarms import Scope

DELAY_BOUNDS_MS: Final = (
    100.0, 250.0, 500.0, 1000.0, 1500.0, 2000.0, 3000.0, 4000.0, 6000.0, 8000.0, 12000.0, 20000.0,
    32000.0, 60000.0,
)  # fmt: skip
"""Upper bounds of the buckets of PDD, failed SRD, setup and RRD; one more bucket is for all over it."""
TALK_BOUNDS_SECONDS: Final = (
    1.0, 3.0, 6.0, 10.0, 20.0, 30.0, 33.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0, 3600.0,
)  # fmt: skip
MOS_BOUNDS: Final = (1.5, 2.0, 2.5, 2.8, 3.1, 3.3, 3.5, 3.7, 3.9, 4.0, 4.1, 4.2, 4.3, 4.4)
LOSS_BOUNDS_PERCENT: Final = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0)
JITTER_BOUNDS_MS: Final = (1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 30.0, 50.0, 100.0, 200.0)
RTT_BOUNDS_MS: Final = (10.0, 25.0, 50.0, 75.0, 100.0, 150.0, 200.0, 300.0, 400.0, 600.0, 1000.0)


class KpiMinute(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of one cohort in one minute. Rows of one minute and cohort add up: there may be
    several, of several sidecars, or of one that was restarted."""

    call_id: str = ""
    """Always empty, for it is of no call; rows are distributed by it."""
    received_at: int
    """When the minute was closed, microseconds UTC; the partition key."""
    minute_at: int
    """Its beginning, microseconds UTC, by this sidecar's clock: the time at which it learned how a
    setup or call ended."""
    source: str
    """call: as callers met it; trunk: how it went at each trunk, that is each attempt, and calls whose
    trunk none of their attempts has; register: REGISTERs."""
    tenant: str = ""
    """Empty where no cohorts are configured, as all of these; `other` where nothing matched."""
    trunk: str = ""
    carrier: str = ""
    direction: str = ""
    region: str = ""
    agent: str = ""
    codec: str = ""
    """Negotiated, when it is one that is known by name, `other` for one that is not; empty: none."""
    attempts: int = 0
    """INVITEs that ended, without our own refusals and overflows."""
    redirected: int = 0
    """3xx: no seizures."""
    unknown: int = 0
    """Nobody saw how they ended."""
    seizures: int = 0
    answered: int = 0
    effective: int = 0
    """Numerator of NER (E.425)."""
    session_effective: int = 0
    """Numerator of SEER: 200, 480, 486, 600, 603 (RFC 6076 4.7)."""
    ineffective: int = 0
    """Numerator of ISA: 408, 500, 503, 504 (RFC 6076 4.8)."""
    own_refusals: int = 0
    """Calls that this product refused: in nothing else here; so is the next."""
    overflowed: int = 0
    """Calls that it sent elsewhere."""
    ended: int = 0
    """Answered calls that are over."""
    completed: int = 0
    """Of these, with a BYE: numerator of SCR (RFC 6076 4.9)."""
    dropped: int = 0
    """Of these, without one: a refresh failed, or nothing was seen any more."""
    short_calls: int = 0
    """Of these, of less than 6 s."""
    talk_seconds: float = 0.0
    failovers: int = 0
    """Attempts that another had to follow."""
    one_way: int = 0
    """Calls with this finding; so are the next three."""
    no_media: int = 0
    dead_air: int = 0
    low_mos: int = 0
    pdd_count: int = 0
    pdd_sum_ms: float = 0.0
    pdd_buckets: tuple[int, ...] = ()
    """How many in each bucket, not cumulative, one more than there are bounds; () when there are none."""
    failed_srd_count: int = 0
    """Failed session request delay (RFC 6076 4.3.2)."""
    failed_srd_sum_ms: float = 0.0
    failed_srd_buckets: tuple[int, ...] = ()
    setup_count: int = 0
    setup_sum_ms: float = 0.0
    setup_buckets: tuple[int, ...] = ()
    talk_buckets: tuple[int, ...] = ()
    """Of `ended`."""
    mos_nb_count: int = 0
    """MOS of two scales do not add up."""
    mos_nb_sum: float = 0.0
    mos_nb_buckets: tuple[int, ...] = ()
    mos_wb_count: int = 0
    mos_wb_sum: float = 0.0
    mos_wb_buckets: tuple[int, ...] = ()
    mos_fb_count: int = 0
    mos_fb_sum: float = 0.0
    mos_fb_buckets: tuple[int, ...] = ()
    loss_count: int = 0
    """Directions of media."""
    loss_sum_percent: float = 0.0
    loss_buckets: tuple[int, ...] = ()
    jitter_count: int = 0
    jitter_sum_ms: float = 0.0
    jitter_buckets: tuple[int, ...] = ()
    rtt_count: int = 0
    rtt_sum_ms: float = 0.0
    rtt_buckets: tuple[int, ...] = ()
    registers: int = 0
    """REGISTER transactions; those that were challenged (401, 407) are not counted by themselves."""
    registers_failed: int = 0
    """Numerator of IRA (RFC 6076 4.2)."""
    rrd_count: int = 0
    """Successful registrations (RFC 6076 4.1)."""
    rrd_sum_ms: float = 0.0
    rrd_buckets: tuple[int, ...] = ()


class CodeMinute(msgspec.Struct, frozen=True, kw_only=True):
    """How often one final code ended setups of one cohort in one minute; a row as `KpiMinute`."""

    call_id: str = ""
    received_at: int
    minute_at: int
    source: str
    tenant: str = ""
    trunk: str = ""
    carrier: str = ""
    direction: str = ""
    region: str = ""
    agent: str = ""
    codec: str = ""
    code: int
    """0: unknown."""
    origin: str = ""
    """Who made it: as `CallRecord.final_origin`; admission: our own refusals. Empty of attempts."""
    count: int


class Minutes:
    """The open minutes of every cohort, and the last `keep` closed ones for live windows.

    Times are microseconds UTC of this sidecar's clock. Over `max_cohorts` combinations in one minute a
    new one counts as `other` in all dimensions, and `folded` counts what did.
    """

    def __init__(self, max_cohorts: int = 2000, keep: int = 60) -> None:
        self.folded = 0
        raise NotImplementedError

    def receive_setup(self, setup: Setup, at: int) -> None:
        """One call whose setup is over, and its attempts."""
        raise NotImplementedError

    def receive_call(self, record: CallRecord, at: int) -> None:
        """One call that is over, at its first record."""
        raise NotImplementedError

    def receive_media(self, record: MediaRecord, call: CallRecord | None, at: int) -> None:
        """One direction of media at its first record, and its call if that is known."""
        raise NotImplementedError

    def receive_registration(self, record: RegistrationRecord, at: int) -> None:
        """One REGISTER transaction."""
        raise NotImplementedError

    def receive_overflow(self, call: CallRecord, at: int) -> None:
        """One call that admission sent elsewhere."""
        raise NotImplementedError

    def close(self, at: int) -> tuple[list[KpiMinute], list[CodeMinute]]:
        """Give out the rows of all minutes that ended at `at` or before, each once."""
        raise NotImplementedError

    def drain(self, at: int) -> tuple[list[KpiMinute], list[CodeMinute]]:
        """Give out all that is left, the open minute too."""
        raise NotImplementedError

    def live(
        self, source: str, scope: Scope, at: int, minutes: int = 5
    ) -> tuple[KpiMinute, list[CodeMinute]]:
        """Add up the last whole minutes, and the open one, of all cohorts within a scope."""
        raise NotImplementedError

    def values(self, source: str, dimension: str, at: int, minutes: int = 5) -> Sequence[str]:
        """The values of a dimension that have figures in that time."""
        raise NotImplementedError
