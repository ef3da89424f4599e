"""How it is with one switch that decisions are pushed to, or that asks for each call."""

import msgspec


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
