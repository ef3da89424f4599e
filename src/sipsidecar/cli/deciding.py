"""Rows of `admissions` to the line that each has in a ladder, and to its place there."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from sipsidecar.signals.decisions import OVERFLOW, REFUSE
from sipsidecar.signals.rules import GLOBAL, MEASURES

_PUSHED = "pushed"


class Shown(NamedTuple):
    """What a message of a ladder is to admission."""

    at: int
    """By the clock that the ladder is drawn by, microseconds UTC."""
    received_at: int
    """By the sidecar's own."""
    begins: bool
    """It is an INVITE."""
    code: int | None
    """Of an answer to an INVITE."""


def sentence(row: dict[str, Any]) -> str:
    """What was decided, by which rule, on which figures, and who asked; its text may be hostile."""
    rule = row["rule"]
    beside = row["shadow"]
    by = f" by rule {rule}" if rule else ""
    if row["verdict"] == REFUSE:
        said = ("refused" if row["code"] is None else f"refused {row['code']}") + by
    elif row["verdict"] == OVERFLOW:
        said = f"sent to {row['route']}{by}"
    elif row["exempt"]:
        said = f"let in as {row['exempt']}" + (f" in spite of rule {rule}" if rule else "")
    else:
        names = list(dict.fromkeys([*([rule] if rule else []), *beside]))
        beside = []
        said = f"would be refused by shadow rule{'s' if len(names) > 1 else ''} {', '.join(names)}"
    if figures := _figures(row):
        said += f": {figures}"
    if row["scope"] not in ("", GLOBAL):
        said += f" ({row['scope']} {row['scope_value']})"
    said += ", as pushed to the switch" if row["way"] == _PUSHED else f", asked by {row['way']}"
    return said + (f"; in shadow {', '.join(beside)}" if beside else "")


def _figures(row: dict[str, Any]) -> str:
    """What was measured, and the limit: a rule that is still closed may see good figures again."""
    measure, value, threshold = row["measure"], row["value"], row["threshold"]
    if not measure:
        return ""
    said = measure if value is None else f"{measure} {_number(value)}"
    if threshold is None:
        return str(said)
    known = MEASURES.get(measure)
    capacity = known is not None and known.kind == "capacity" and value is not None
    return f"{said}{' of ' if capacity else ', limit '}{_number(threshold)}"


def _number(value: float) -> str:
    return f"{round(value, 2):.12g}"


def place(row: dict[str, Any], messages: Sequence[Shown]) -> int:
    """When a decision was made, by the clock of the messages of its call, microseconds UTC.

    It is dated by the sidecar's clock and messages by their capture agent's: what the two differ by,
    as the INVITE shows, is taken off. It stands after the first INVITE, and before its own refusal.
    """
    invites = [one for one in messages if one.begins]
    ahead = min((one.received_at - one.at for one in invites or messages), default=0)
    at: int = row["received_at"] - ahead
    refusals = [one.at for one in messages if one.code is not None and one.code == row["code"]]
    if refusals:
        at = min(at, min(refusals, key=lambda one: abs(one - at)) - 1)
    return max(at, min((one.at for one in invites), default=at))
