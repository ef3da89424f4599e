"""Tries the receivers of alerts: each is told of an incident that is none, and of its end."""

import argparse
import asyncio
import sys
import time
from typing import Any, NamedTuple

import msgspec

from sipsidecar.cli.parsers import Commands
from sipsidecar.cli.words import CliError, config_of, json_line, terminal_width
from sipsidecar.config import Alerts
from sipsidecar.edges.alerting import Outcome, Sender
from sipsidecar.posting import Poster
from sipsidecar.signals.alarms import IncidentRecord, Notice
from sipsidecar.signals.receivers import HOLD_SECONDS, Receiver, message_of
from sipsidecar.tables import printable, table

SECONDS = 10.0
"""How long one try may take."""
_COLUMNS = ("receiver", "kind", "opened", "cleared", "advice")
_HINTS = {
    "refused": "nobody listens there: check its url, and whether it runs",
    "timeout": "no answer in time: check its url, and the firewall between",
    "tls": "it speaks no TLS, or its certificate is not trusted: check its url, or add its authority"
    " to the system's (SSL_CERT_FILE)",
    "dns": "no such host: check its url, and the resolvers of this machine",
    "no TLS": "offers no TLS, so it is not given the password: use smtps://, or no user",
    "not supported": "cannot do what is asked of it: check user, sender and to",
}
_STATUSES = {
    400: "it does not understand the message: check kind, template, and PagerDuty's routing key",
    401: "it does not know the token: check its secret",
    403: "it does not accept the token or URL: check its secret",
    404: "there is nothing at that path: check its url",
    405: "that path takes no POST: check its url",
    410: "that webhook is no more: make a new one",
    413: "it takes no message of that size",
    429: "it has too much to do: try later",
}


class _Tried(NamedTuple):
    """What came of one receiver's test; None where nothing is told."""

    receiver: Receiver
    opened: Outcome
    cleared: Outcome | None

    @property
    def failed(self) -> Outcome | None:
        """The try that failed first."""
        return next((one for one in (self.opened, self.cleared) if one and one.why), None)


def add_command(commands: Commands) -> None:
    """Add `alerts` and its commands."""
    group = commands.group("alerts", "try who is told of incidents", "sipsidecar alerts test")
    command = group.add(
        "test",
        test,
        "send each receiver a test incident that opens and ends",
        "sipsidecar alerts test --receiver pager",
    )
    command.add_argument(
        "--receiver", action="append", default=[], metavar="NAME", help="only this one; repeatable"
    )
    command.add_argument("--json", action="store_true", help="one JSON object per receiver")


def test(arguments: argparse.Namespace) -> int:
    """Tell the configured receivers of a test incident; 1 when one of them did not take it."""
    config = config_of(arguments)
    alerts = config.alerts
    names = [receiver.name for receiver in alerts.receivers]
    for name in arguments.receiver:
        if name not in names:
            known = ", ".join(names) or "none"
            raise CliError(f"no receiver {name!r} in alerts.receivers; there are: {known}")
    if not names:
        raise CliError("no receivers: configure alerts.receivers")
    chosen = [one for one in alerts.receivers if one.name in (arguments.receiver or names)]
    tried = asyncio.run(_try_all(chosen, alerts, time.time_ns() // 1000))
    if arguments.json:
        for one in tried:
            print(json_line(_row(one) | {"kind": "alert_test", "protocol": one.receiver.kind}))
    else:
        print(table([_row(one) for one in tried], _COLUMNS, terminal_width()))
    failed = sum(one.failed is not None for one in tried)
    if failed:
        print(printable(f"{failed} of {len(tried)} receivers did not take it"), file=sys.stderr)
    return 1 if failed else 0


async def _try_all(receivers: list[Receiver], alerts: Alerts, at: int) -> list[_Tried]:
    poster = Poster(SECONDS)
    try:
        return await asyncio.gather(*(_try(one, alerts, at, poster) for one in receivers))
    finally:
        await poster.close()


async def _try(receiver: Receiver, alerts: Alerts, at: int, poster: Poster) -> _Tried:
    secret = alerts.secrets.get(receiver.secret, "")
    sender = Sender(poster, SECONDS)

    async def tell(what: str) -> Outcome | None:
        notice = _notice(receiver, what, at)
        # PagerDuty would page somebody until he ends it by hand.
        told = msgspec.structs.replace(
            receiver, resolved=receiver.resolved or receiver.kind == "pagerduty"
        )
        message = message_of(told, secret, notice, alerts.link)
        return None if message is None else await sender.attempt(receiver, secret, message)

    opened = await tell("opened")
    assert opened is not None  # it is as grave as the receiver wants
    # What ends at once Alertmanager tells nobody of (group_wait).
    ends = opened.result == "sent" and receiver.kind != "alertmanager"
    return _Tried(receiver, opened, await tell("cleared") if ends else None)


def _notice(receiver: Receiver, what: str, at: int) -> Notice:
    over = at if what == "cleared" else None
    incident = IncidentRecord(
        incident=f"test-{at}",
        received_at=at,
        category="test",
        severity=receiver.severity,  # the least that it is told: nobody is woken without need
        state="open" if over is None else "cleared",
        opened_at=at,
        cleared_at=over,
        last_seen_at=at,
        sources=("test",),
        summary="TEST of sipsidecar's alerts: nothing is wrong, nothing is to be done",
        codes=("486 +1",),
        call_ids=("test@sipsidecar.invalid",),
    )
    return Notice(what=what, incident=incident, at=at)


def _row(tried: _Tried) -> dict[str, Any]:
    failed = tried.failed
    advice = None if failed is None else _hint(failed.why)
    if failed is None and tried.receiver.kind == "alertmanager":
        advice = f"it ends there by itself in {HOLD_SECONDS // 60} min"
    return {
        "receiver": tried.receiver.name,
        "kind": tried.receiver.kind,
        "opened": _word(tried.opened),
        "cleared": None if tried.cleared is None else _word(tried.cleared),
        "advice": advice,
        "ok": failed is None,
    }


def _word(outcome: Outcome) -> str:
    return outcome.why or "OK"


def _hint(why: str) -> str:
    kind, _, code = why.partition(" ")
    if kind == "HTTP":
        status = int(code)
        if 300 <= status < 400:
            return "it sends elsewhere, where no secret is sent to: give that address as its url"
        other = "it cannot do it now: try later, and see its log"
        return _STATUSES.get(status, other)
    if kind == "SMTP":
        return (
            "it does not know user and password: check user and secret"
            if code in ("530", "534", "535")
            else "it does not take the mail: check sender and to, and see its log"
        )
    return _HINTS.get(
        why, "the connection broke: check its url, and whether that is what it speaks"
    )
