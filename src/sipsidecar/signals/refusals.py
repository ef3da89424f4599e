"""Calls that were refused or sent elsewhere, remembered for as long as somebody may ask again."""

from collections import OrderedDict
from typing import NamedTuple

from sipsidecar.signals.decisions import OVERFLOW, Ask, Decision

REMEMBERED = 64.0
"""Seconds that a refusal is the answer to the same question: twice RFC 3261's Timer B."""
MAX_REMEMBERED = 50_000
"""Of each kind; the oldest give way."""
LONGEST_ELSEWHERE = 14_400.0
"""Seconds after which a call at a fallback, whose end nobody saw, is forgotten."""


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
        self._elsewhere: OrderedDict[str, float] = OrderedDict()
        """By Call-ID: until when."""
        self._over: OrderedDict[str, float] = OrderedDict()
        """Of those, the ones that ended: until when they are remembered."""

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
            self._elsewhere[ask.call_id] = now + LONGEST_ELSEWHERE
            self._elsewhere.move_to_end(ask.call_id)
            self._over.pop(ask.call_id, None)
            if len(self._elsewhere) > MAX_REMEMBERED:
                self._elsewhere.popitem(last=False)
        if len(self._refused) > MAX_REMEMBERED:
            self._forget_first()

    def answer(self, ask: Ask, now: float) -> Decision | None:
        """What the same question was answered with; None of a new one.

        Another CSeq under the same Call-ID and From tag is a new call of a caller who dials again.
        """
        self._forget_old(now)
        known = self._refused.get((ask.call_id, ask.from_tag))
        if known is None or (None not in (known.cseq, ask.cseq) and known.cseq != ask.cseq):
            return None
        return known.decision

    def admitted(self, ask: Ask) -> None:
        """A call that was refused before was admitted now."""
        if self._refused.pop((ask.call_id, ask.from_tag), None) is not None:
            self._lose(ask.call_id, ask.from_tag)
        self._elsewhere.pop(ask.call_id, None)
        self._over.pop(ask.call_id, None)

    def disproved(self, call_id: str) -> bool:
        """A call that was refused lives all the same: the answer came too late, or failed open."""
        tags = self._tags.pop(call_id, [])
        for tag in tags:
            del self._refused[call_id, tag]
        return bool(tags)

    def is_elsewhere(self, call_id: str) -> bool:
        """Whether a call was sent to a fallback, and takes no capacity of what refused it."""
        return call_id in self._elsewhere

    def over(self, call_id: str, now: float) -> None:
        """A call ended wherever it was; where that was is known until its record has left."""
        if call_id in self._elsewhere:
            self._over[call_id] = now + REMEMBERED

    def handle_timer(self, now: float) -> None:
        """Forget what nobody asks about any more."""
        self._forget_old(now)
        while self._elsewhere and next(iter(self._elsewhere.values())) <= now:
            self._elsewhere.popitem(last=False)
        while self._over and next(iter(self._over.values())) <= now:
            self._elsewhere.pop(self._over.popitem(last=False)[0], None)

    def _forget_old(self, now: float) -> None:
        while self._refused and next(iter(self._refused.values())).until <= now:
            self._forget_first()

    def _forget_first(self) -> None:
        (call_id, from_tag), _ = self._refused.popitem(last=False)
        self._lose(call_id, from_tag)

    def _lose(self, call_id: str, from_tag: str) -> None:
        tags = self._tags[call_id]
        tags.remove(from_tag)
        if not tags:
            del self._tags[call_id]
