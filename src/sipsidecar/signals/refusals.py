"""Calls that were refused or sent elsewhere, remembered for as long as somebody may ask again."""

from collections import OrderedDict
from typing import NamedTuple

from sipsidecar.signals.decisions import OVERFLOW, Ask, Decision

REMEMBERED = 64.0
"""Seconds that a refusal is the answer to the same question: twice RFC 3261's Timer B."""
MAX_REMEMBERED = 50_000
"""Of each kind; the oldest give way."""


class _Refused(NamedTuple):
    cseq: int | None
    decision: Decision
    until: float


class Refusals:
    """What was refused lately; times are seconds of one steady clock."""

    def __init__(self) -> None:
        self._refused: OrderedDict[tuple[str, str], _Refused] = OrderedDict()
        self._tags: dict[str, list[str]] = {}
        """From tags that were refused, by Call-ID."""
        self._elsewhere: OrderedDict[str, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._refused)

    def __contains__(self, call_id: str) -> bool:
        """Whether a call of this Call-ID was refused lately."""
        return call_id in self._tags

    def remember(self, ask: Ask, decision: Decision, now: float) -> None:
        """One refusal, or an overflow: that call goes on, but not where it was refused."""
        key = (ask.call_id, ask.from_tag)
        if key not in self._refused:
            self._tags.setdefault(ask.call_id, []).append(ask.from_tag)
        self._refused[key] = _Refused(ask.cseq, decision, now + REMEMBERED)
        self._refused.move_to_end(key)
        if decision.verdict == OVERFLOW:
            self._elsewhere[ask.call_id] = None
            if len(self._elsewhere) > MAX_REMEMBERED:
                self._elsewhere.popitem(last=False)
        if len(self._refused) > MAX_REMEMBERED:
            self._forget_first()

    def answer(self, ask: Ask, now: float) -> Decision | None:
        """What the same question was answered with; None of a new one.

        Another CSeq under the same Call-ID and From tag is a new call of a caller who dials again.
        """
        while self._refused and next(iter(self._refused.values())).until <= now:
            self._forget_first()
        known = self._refused.get((ask.call_id, ask.from_tag))
        if known is None or (None not in (known.cseq, ask.cseq) and known.cseq != ask.cseq):
            return None
        return known.decision

    def admitted(self, ask: Ask) -> None:
        """A call that was refused before was admitted now."""
        if self._refused.pop((ask.call_id, ask.from_tag), None) is not None:
            self._lose(ask.call_id, ask.from_tag)
        self._elsewhere.pop(ask.call_id, None)

    def disproved(self, call_id: str) -> bool:
        """A call that was refused lives all the same: the answer came too late, or failed open."""
        tags = self._tags.pop(call_id, [])
        for tag in tags:
            del self._refused[call_id, tag]
        return bool(tags)

    def is_elsewhere(self, call_id: str) -> bool:
        """Whether a call was sent to a fallback, and takes no capacity of what refused it."""
        return call_id in self._elsewhere

    def over(self, call_id: str) -> None:
        """A call ended wherever it was."""
        self._elsewhere.pop(call_id, None)

    def _forget_first(self) -> None:
        (call_id, from_tag), _ = self._refused.popitem(last=False)
        self._lose(call_id, from_tag)

    def _lose(self, call_id: str, from_tag: str) -> None:
        tags = self._tags[call_id]
        tags.remove(from_tag)
        if not tags:
            del self._tags[call_id]
