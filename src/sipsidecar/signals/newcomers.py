"""Values that are seen again and again, as the addresses of a trunk, to those that are new to it."""

from typing import Final, NamedTuple

from sipsidecar.signals.shares import DAY

MAX_VALUES: Final = 256
"""Values of one owner."""
MAX_OWNERS: Final = 500
ARM_CALLS: Final = 200
"""Calls of an owner until a value can be new to it."""
KNOWN_DAYS: Final = 7
"""Days without a call after which a value is new again."""
REMEMBERED_DAYS: Final = 30
NEW_US: Final = DAY
"""How long a new value stays new."""


class Newcomer(NamedTuple):
    """What is known of one value."""

    new: bool
    first_at: int
    """When it came, or came again; microseconds UTC."""
    idle_days: int | None
    """Days that it had been away when it came again; None when it was never there before."""
    calls: int
    """Since it came, those of the last days counting most; so are `answered`."""
    answered: int


class _Value:
    __slots__ = ("answered", "calls", "first", "idle", "last", "new")

    def __init__(self, at: int, *, new: bool) -> None:
        self.first = self.last = at
        self.new = new
        self.idle: int | None = None
        self.calls = self.answered = 0.0


class _Owner:
    __slots__ = ("calls", "last", "values")

    def __init__(self) -> None:
        self.calls = 0
        self.last = 0
        self.values: dict[str, _Value] = {}


class Newcomers:
    """The values of each owner, as trunks and tenants."""

    def __init__(self, max_owners: int = MAX_OWNERS, max_values: int = MAX_VALUES) -> None:
        self.folded = 0
        """Calls of owners, and values, over the caps; a value over it is always new."""
        self._max_owners = max_owners
        self._max_values = max_values
        self._owners: dict[str, _Owner] = {}
        self._day = 0

    def receive(self, owner: str, value: str, at: int, *, answered: bool = False) -> bool | None:
        """One call with a value: whether that is new to its owner; None where nobody can know."""
        known = self._owners.get(owner)
        if known is None:
            if len(self._owners) >= self._max_owners:
                self.folded += 1
                return None
            known = self._owners[owner] = _Owner()
        known.calls += 1
        known.last = at
        armed = known.calls > ARM_CALLS
        one = known.values.get(value)
        if one is None:
            if len(known.values) >= self._max_values:
                self.folded += 1
                return True if armed else None
            one = known.values[value] = _Value(at, new=armed)
        elif at - one.last > KNOWN_DAYS * DAY:
            one.idle = (at - one.last) // DAY
            one.first, one.new = at, armed
            one.calls = one.answered = 0.0
        one.last = at
        one.calls += 1
        one.answered += answered
        return one.new and at - one.first < NEW_US

    def of(self, owner: str, at: int) -> dict[str, Newcomer]:
        """All values of an owner that are known, those with the most calls first."""
        known = self._owners.get(owner)
        if known is None:
            return {}
        values = sorted(known.values.items(), key=lambda one: (-one[1].calls, one[0]))
        return {
            text: Newcomer(
                one.new and at - one.first < NEW_US,
                one.first,
                one.idle,
                round(one.calls),
                round(one.answered),
            )
            for text, one in values
            if at - one.last <= KNOWN_DAYS * DAY
        }

    def grow_old(self, at: int) -> None:
        """Forget what was not seen for long; to be called at times."""
        days = min(at // DAY - self._day, 60)
        if days <= 0:
            return
        left = (1 - 1 / KNOWN_DAYS) ** days
        self._day = at // DAY
        for name, owner in list(self._owners.items()):
            if at - owner.last > REMEMBERED_DAYS * DAY:
                del self._owners[name]
                continue
            for text, one in list(owner.values.items()):
                one.calls *= left
                one.answered *= left
                if at - one.last > REMEMBERED_DAYS * DAY:
                    del owner.values[text]


class _Listed:
    __slots__ = ("gap", "last")

    def __init__(self, at: int) -> None:
        self.last = at
        self.gap = 0


class Directory:
    """What DNS says of each trunk over time, to addresses that it does not say any more.

    Many names are answered with a few of their addresses at a time, so an address is out of it only
    when it is missing for three times as long as it ever was, at least an hour and at most a day.
    """

    LEAST: Final = 3600 * 1_000_000

    def __init__(self, max_trunks: int = MAX_OWNERS, max_addresses: int = MAX_VALUES) -> None:
        self.folded = 0
        """Addresses and trunks over the caps."""
        self._max_trunks = max_trunks
        self._max_addresses = max_addresses
        self._trunks: dict[str, dict[str, _Listed]] = {}

    def receive(self, trunk: str, addresses: frozenset[str], at: int) -> None:
        """All that DNS says of a trunk now; nothing at all is a failure of DNS, and says nothing."""
        if not addresses:
            return
        known = self._trunks.get(trunk)
        if known is None:
            if len(self._trunks) >= self._max_trunks:
                self.folded += 1
                return
            known = self._trunks[trunk] = {}
        for address in addresses:
            one = known.get(address)
            if one is None:
                if len(known) >= self._max_addresses:
                    self.folded += 1
                    continue
                one = known[address] = _Listed(at)
            one.gap = max(one.gap, at - one.last) if at - one.last < DAY else one.gap
            one.last = at
        for address, one in list(known.items()):
            if at - one.last > REMEMBERED_DAYS * DAY:
                del known[address]

    def lists(self, trunk: str, address: str, at: int) -> bool | None:
        """Whether an address belongs to a trunk as DNS has it; None where DNS says nothing of it."""
        known = self._trunks.get(trunk)
        if known is None:
            return None
        one = known.get(address)
        if self._silent(known, at):
            return None if one is None else True
        if one is None:
            return False if len(known) < self._max_addresses else None
        return at - one.last <= min(max(self.LEAST, 3 * one.gap), DAY)

    def left(self, trunk: str, address: str) -> int | None:
        """When DNS said an address last; None when it never did."""
        one = self._trunks.get(trunk, {}).get(address)
        return one.last if one else None

    def _silent(self, known: dict[str, _Listed], at: int) -> bool:
        """Whether DNS was not heard of lately: then nothing has left it, and what is new may be in it."""
        return at - max(one.last for one in known.values()) > self.LEAST
