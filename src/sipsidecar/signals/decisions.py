"""The words of admission: what is asked, what is answered, and the rows that stay of it."""

from typing import Final

import msgspec

from sipsidecar.calls.events import Cohort, Sighted

ADMIT: Final = "admit"
REFUSE: Final = "refuse"
OVERFLOW: Final = "overflow"
VERDICTS: Final = (ADMIT, REFUSE, OVERFLOW)

OPEN: Final = "open"
LIMITING: Final = "limiting"
"""At its limit now: newcomers are refused until one leaves."""
CLOSED: Final = "closed"
RAMPING: Final = "ramping"
"""Letting a growing share of calls in again."""
STATES: Final = (OPEN, LIMITING, CLOSED, RAMPING)

WAYS: Final = ("http", "evapi", "freeswitch", "pushed")
"""How a decision is made effective: by a question over HTTP, by Kamailio's evapi, by FreeSWITCH's
outbound socket; or in the switch itself, by what was pushed to it."""
EXEMPTIONS: Final = ("in-dialog", "cancel", "emergency", "priority")
"""Why a request is never refused."""
DRAIN: Final = "drain"
"""The rule that an operator's drain stands under."""
WAITED: Final = "waited"
"""The rule that a question stands under that comes too late to be of use."""
CROWDED: Final = "crowded"
"""The rule that calls stand under of which there are too many under one Call-ID."""
LOCAL_RULES: Final = ("alone", "fail-closed")
"""Rules of a switch's own, while no sidecar speaks to it: its cap, and trunks that fail closed."""
OTHER_RULE: Final = "other"
"""A rule that a message of the network names and the configuration does not."""


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """One question: may this request begin a call? All of it but `node` and `way` is strangers'."""

    call_id: str
    from_tag: str = ""
    cseq: int | None = None
    sighted: Sighted = Sighted()
    method: str = "INVITE"
    in_dialog: bool = False
    """It has a To tag."""
    ruri: str = ""
    """The whole Request-URI: its scheme tells emergencies (RFC 5031)."""
    priority: str = ""
    """Priority header (RFC 3261 20.26)."""
    resource_priority: str = ""
    """Resource-Priority header (RFC 4412); counts only from networks that are trusted."""
    node: str = ""
    """Configured name of the proxy that asks."""
    way: str = "http"
    waited: float = 0.0
    """Seconds that the request is old, as the asker says."""


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """One answer, and what it stands on."""

    verdict: str
    """One of `VERDICTS`."""
    code: int | None = None
    """Of a refusal."""
    reason: str = ""
    """Text for the Reason header."""
    rule: str = ""
    """Name of the rule that objected first; empty when none did."""
    route: str = ""
    """Of an overflow."""
    scope: str = ""
    scope_value: str = ""
    value: float | None = None
    """What was measured, in the unit of the measure."""
    threshold: float | None = None
    cohort: Cohort = Cohort()
    shadow: tuple[str, ...] = ()
    """Rules that would have refused, were they enforced."""
    exempt: str | None = None
    """One of `EXEMPTIONS`."""
    repeated: bool = False
    """The same question was answered before: counted once."""


class AdmissionRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One call that was refused or sent elsewhere, or would have been."""

    call_id: str
    from_tag: str = ""
    received_at: int
    """When it was decided (or, where a switch did it itself, seen) by this sidecar's clock, in
    microseconds UTC; the partition key."""
    way: str
    """One of `WAYS`."""
    verdict: str
    """refuse or overflow; admit of a call that only a shadow rule objected to, or that was let in
    over a limit because it is never refused."""
    rule: str
    measure: str | None = None
    scope: str = ""
    """global, tenant, trunk, direction, region or node."""
    scope_value: str = ""
    value: float | None = None
    threshold: float | None = None
    code: int | None = None
    reason: str = ""
    route: str = ""
    shadow: tuple[str, ...] = ()
    exempt: str | None = None
    tenant: str | None = None
    trunk: str | None = None
    direction: str | None = None
    region: str | None = None
    node: str | None = None


class StateRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One change of the state of a rule."""

    call_id: str = ""
    """Always empty, for it is of no call; rows are distributed by it."""
    received_at: int
    rule: str
    measure: str | None = None
    scope: str
    scope_value: str = ""
    state: str
    """One of `STATES`."""
    previous: str
    value: float | None = None
    threshold: float | None = None
    reason: str = ""
    """Why, in words."""
    by: str = "rule"
    """rule or operator."""


class Denial(msgspec.Struct, frozen=True, kw_only=True):
    """What a switch must know now of one key, to decide by itself."""

    scope: str
    scope_value: str = ""
    verdict: str = REFUSE
    code: int = 486
    reason: str = ""
    rule: str = ""
    route: str = ""
    percent: int = 100
    """Share of new calls that it is about; less than 100 while ramping."""


class RateLimit(msgspec.Struct, frozen=True, kw_only=True):
    """Calls per second that a switch may let in of one key."""

    scope: str
    scope_value: str = ""
    limit: int
    """Whole calls, for a switch that counts by whole seconds."""
    rate: float = 0.0
    """Calls per second as the rule says it, and the burst: for RFC 7415's bucket. 0: `limit`."""
    burst: float = 5.0
    code: int = 486
    reason: str = ""
    rule: str = ""


class PushState(msgspec.Struct, frozen=True, kw_only=True):
    """One switch that is told what to refuse; unknown is None."""

    name: str
    """As it is configured."""
    kind: str
    """kamailio or freeswitch."""
    up: bool
    """It took what was pushed last."""
    error: str | None = None
    """Why not, in one line of ours."""
    rtt_ms: float | None = None
    """From push to answer, the median of the last ones."""
    entries: int = 0
    """Keys that it holds now."""
    pushed: int = 0
    failed: int = 0
    """Pushes without an answer, or that it refused."""
    since: float | None = None
    """Seconds that it has been so."""


class AskState(msgspec.Struct, frozen=True, kw_only=True):
    """One switch that asks for each call."""

    name: str
    kind: str
    """evapi or outbound."""
    up: bool
    error: str | None = None
    asked: int = 0
    refused: int = 0
    """Questions that were not understood: admitted, and counted."""
    since: float | None = None
