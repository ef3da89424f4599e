"""Whom incidents are told to, and in which words: one body per kind of receiver."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import msgspec

from sipsidecar.signals.alarms import Notice

Kind = Literal["alertmanager", "webhook", "pagerduty", "slack", "email"]


class Receiver(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One receiver of alerts."""

    name: str
    kind: Kind
    url: str = ""
    """Of alertmanager, webhook and slack; of pagerduty another than its own; of email smtp://HOST:PORT,
    or smtps://. A URL that is a secret by itself is left empty: `secret` is it then."""
    secret: str = ""
    """Name of a secret of `alerts.secrets`: a bearer token, PagerDuty's routing key, Slack's webhook
    URL, or the password of `user`."""
    user: str = ""
    """For SMTP."""
    sender: str = ""
    """From address of e-mail."""
    to: tuple[str, ...] = ()
    """To addresses of e-mail."""
    template: str = ""
    """Body of a webhook: text with `{name}` for values of the incident; empty: JSON of the incident."""
    severity: Literal["trend", "warn", "page"] = "warn"
    """What is less grave is not told here."""
    tenant: str = ""
    """Tells only incidents of this tenant, and those of all."""
    resolved: bool = True
    """Tell of the end, too."""


class ReceiverError(ValueError):
    """A receiver that cannot be; the message is one line that says which and why."""


def check_receivers(receivers: Sequence[Receiver], secrets: Mapping[str, str]) -> None:
    """Find what is wrong with receivers; ReceiverError says which."""


class Message(NamedTuple):
    """What is sent: for HTTP a POST of `body`, for e-mail a subject and a text."""

    url: str
    headers: Mapping[str, str]
    body: bytes
    subject: str = ""


def message_of(receiver: Receiver, secret: str, notice: Notice, link: str = "") -> Message | None:
    """Turn a notice into what a receiver is sent; None when it is none of its business."""
    raise NotImplementedError
