"""Whom incidents are told to, and in which words: one body per kind of receiver."""

import base64
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final, Literal, NamedTuple
from urllib.parse import urlencode, urlsplit

import msgspec

from sipsidecar.signals.alarms import SEVERITIES, IncidentRecord, Notice
from sipsidecar.tables import printable

Kind = Literal["alertmanager", "webhook", "pagerduty", "slack", "email"]

HOLD_SECONDS: Final = 300
"""How long Alertmanager takes an open incident for open after it was told; tell it again well before."""
PAGERDUTY: Final = "https://events.pagerduty.com/v2/enqueue"
LEVELS: Final = {"trend": "info", "warn": "warning", "page": "critical"}
"""Our severities in the words of Alertmanager's users and of PagerDuty (PD-CEF)."""
MOST_BODY: Final = 262_144
"""Bytes of the largest message; PagerDuty takes 512 KB."""
MOST_BATCH: Final = 50
"""Incidents in one message to Alertmanager."""
TEMPLATE_NAMES: Final = (
    "id", "what", "incident", "category", "scope", "title", "summary", "text", "time", "link",
    "severity", "state", "tenant", "trunk", "carrier", "direction", "region", "agent", "explained",
    "upstream", "at", "opened_at", "escalated_at", "cleared_at", "first_seen_at", "last_seen_at",
    "sources", "codes", "call_ids",
)  # fmt: skip
"""What may stand in braces in a webhook's template."""
_MOST_SUMMARY, _MOST_ID, _MOST_WORD, _MOST_ITEMS = 1000, 200, 256, 8
_MOST_EVIDENCE = 32_768
_MOST_TEMPLATE, _MOST_NAMES = 16_384, 32
_MOST_SECTION = 2900  # of Slack's 3,000 for one text
_SLACK_SUMMARY = 1800
_AROUND_US = 900_000_000  # what a link shows before it began
_LABELS = ("tenant", "trunk", "carrier", "direction", "region", "agent")
_WORDS = {"opened": "opened", "escalated": "got worse", "cleared": "is over"}
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)
_ADDRESS = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9.-]{1,255}", re.ASCII)
_PLACE = re.compile(r"\{([a-z_]+)\}")
_KNOWN = re.compile(rf"\{{({'|'.join(TEMPLATE_NAMES)})\}}")


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
    """For SMTP; for alertmanager and webhook: Basic authentication (RFC 7617) instead of a token."""
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


class Message(NamedTuple):
    """What is sent: for HTTP a POST of `body`, for e-mail a subject and a text."""

    url: str
    headers: Mapping[str, str]
    body: bytes
    subject: str = ""

    def __repr__(self) -> str:  # URL and headers are secrets
        return f"Message({len(self.body)} bytes)"


# -- what can be configured


def check_receivers(receivers: Sequence[Receiver], secrets: Mapping[str, str]) -> None:
    """Find what is wrong with receivers; ReceiverError says which, and shows no secret."""
    names = set()
    for each in receivers:
        if not _NAME.fullmatch(each.name):
            raise ReceiverError(
                f"{printable(each.name)!r}: expected a name of letters, digits, '_', '.' and '-'"
            )
        if each.name in names:
            raise ReceiverError(f"{each.name}: there are two of that name")
        names.add(each.name)
        why = _wrong(each, secrets)
        if why:
            raise ReceiverError(f"{each.name}: {why}")


def _wrong(receiver: Receiver, secrets: Mapping[str, str]) -> str:
    """What is wrong with one; empty: nothing."""
    kind, secret = receiver.kind, secrets.get(receiver.secret, "")
    if receiver.secret and not secret:
        return f"secret {printable(receiver.secret)!r} is not in alerts.secrets"
    if receiver.user and not secret:
        return "a user needs a secret: the password"
    if receiver.user and (kind in ("pagerduty", "slack") or not receiver.user.isprintable()):
        return f"user is of no use for {kind}"
    if kind == "alertmanager" and not receiver.resolved:
        return "alertmanager learns of every end; see its send_resolved"
    if receiver.template and kind != "webhook":
        return "template is for webhooks"
    if (receiver.sender or receiver.to) and kind != "email":
        return "sender and to are for email"
    if kind == "email":
        return _wrong_mail(receiver, secret)
    if not (secret.isascii() and secret.isprintable() and " " not in secret) and not receiver.user:
        return "expected a secret of one line without spaces"
    if kind == "pagerduty" and not secret:
        return "needs a secret: the routing key"
    if kind != "pagerduty" and not (receiver.url or secret):
        return "needs a url, or a secret that is the URL"
    if kind == "slack" and receiver.url and secret:
        return "has a url and a secret: the secret is the URL"
    if receiver.user and not receiver.url:
        return "needs a url beside the user"
    url = _target(receiver, secret)
    if _wrong_url(url, ("http", "https")):
        return "expected http://HOST:PORT/PATH or https:// without a password" + (
            "" if receiver.url else " as its secret"
        )
    return _wrong_template(receiver.template)


def _wrong_url(url: str, schemes: Sequence[str]) -> bool:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return True
    return (
        parts.scheme not in schemes
        or not parts.hostname
        or "@" in parts.netloc
        or not (url.isascii() and url.isprintable())
        or any(char in url for char in ' <>"\\')
        or len(url) > 2048
    )


def _wrong_mail(receiver: Receiver, secret: str) -> str:
    if _wrong_url(receiver.url, ("smtp", "smtps")) or urlsplit(receiver.url).path not in ("", "/"):
        return "expected smtp://HOST:PORT or smtps:// as its url"
    if not _ADDRESS.fullmatch(receiver.sender):
        return "expected USER@HOST as its sender"
    if not receiver.to or not all(map(_ADDRESS.fullmatch, receiver.to)):
        return "expected USER@HOST in to"
    if secret and not receiver.user:
        return "has a secret, but no user"
    if not (secret.isascii() and secret.isprintable() and receiver.user.isascii()):
        return "expected user and secret of ASCII"  # what AUTH PLAIN of smtplib can say
    return ""


def _wrong_template(template: str) -> str:
    places = _PLACE.findall(template)
    for name in places:
        if name not in TEMPLATE_NAMES:
            return f"template has {{{name}}}; known are {', '.join(TEMPLATE_NAMES)}"
    if len(template) > _MOST_TEMPLATE or len(places) > _MOST_NAMES:
        return f"template may have {_MOST_TEMPLATE} characters and {_MOST_NAMES} values"
    begins = template.lstrip()
    if not _is_json(template) and re.match(r'[{\[]\s*["{\[\]}]', begins):
        return "template looks like JSON, but is none"
    return ""


def _is_json(template: str) -> bool:
    with suppress(ValueError, RecursionError):
        found = msgspec.json.decode(_KNOWN.sub("0", template).encode(errors="replace"))
        return isinstance(found, dict | list)
    return False


# -- what is said


def concerns(receiver: Receiver, notice: Notice) -> bool:
    """Whether a notice is a receiver's business: by severity, tenant and what it tells."""
    incident = notice.incident
    return (
        _weight(incident.severity) >= _weight(receiver.severity)
        and (not receiver.tenant or incident.tenant in (None, receiver.tenant))
        and (notice.what != "cleared" or receiver.resolved)
    )


def message_of(
    receiver: Receiver, secret: str, notice: Notice, link: str = "", source: str = "sipsidecar"
) -> Message | None:
    """Turn a notice into what a receiver is sent; None when it is none of its business.

    `source`: who says it, as PagerDuty wants to know.
    """
    if not concerns(receiver, notice):
        return None
    if receiver.kind == "alertmanager":
        return alerts_of(receiver, secret, [notice], link)
    said = _Said(notice, link)
    if receiver.kind == "email":
        return _mail(receiver, said)
    url = _target(receiver, secret)
    if receiver.kind == "webhook":
        body, content = _webhook(receiver.template, said)
        headers = {"Content-Type": content, "Idempotency-Key": said.key}
        return Message(url, headers | _authorization(receiver, secret), body)
    made = _pagerduty(secret, said, source) if receiver.kind == "pagerduty" else _slack(said)
    return Message(url, {"Content-Type": "application/json"}, msgspec.json.encode(made))


def alerts_of(
    receiver: Receiver, secret: str, notices: Sequence[Notice], link: str = ""
) -> Message:
    """Turn notices into one message to Alertmanager (POST /api/v2/alerts), whoever they concern.

    Alertmanager ends by itself what it does not hear of: what is open lasts `HOLD_SECONDS` from the
    notice's time on, so say it again with a new time while it lasts.
    """
    body = msgspec.json.encode([_alert(_Said(notice, link)) for notice in notices])
    headers = {"Content-Type": "application/json"} | _authorization(receiver, secret)
    return Message(_target(receiver, secret), headers, body)


def alert_labels(incident: IncidentRecord) -> dict[str, str]:
    """The labels by which Alertmanager knows an incident: other labels are another alert.

    All are words of ours and of the configuration.
    """
    labels = {
        "alertname": f"sip-{incident.category}",
        "severity": LEVELS.get(incident.severity, "warning"),
        "category": incident.category,
        "incident": incident.incident,
        "service": "sipsidecar",
    }
    for name in _LABELS:
        value = getattr(incident, name)
        if value is not None:
            labels[name] = value
    return {name: _clipped(value, _MOST_WORD) for name, value in labels.items()}


def link_of(link: str, notice: Notice) -> str:
    """Put incident and time range (milliseconds UTC, as Grafana has them) after a link; empty: none."""
    if not link:
        return ""
    first, last = _range(notice)
    query = urlencode(
        {
            "incident": _clipped(notice.incident.incident, _MOST_WORD),
            "from": max(first - _AROUND_US, 0) // 1000,
            "to": last // 1000,
        }
    )
    return f"{link}{'&' if '?' in link else '?'}{query}"


def _weight(severity: str) -> int:
    return SEVERITIES.index(severity) if severity in SEVERITIES else len(SEVERITIES)


def _target(receiver: Receiver, secret: str) -> str:
    if receiver.kind == "pagerduty":
        return receiver.url or PAGERDUTY
    url = receiver.url or secret
    if receiver.kind == "alertmanager" and not urlsplit(url).path.endswith("/api/v2/alerts"):
        return url.rstrip("/") + "/api/v2/alerts"
    return url


def _authorization(receiver: Receiver, secret: str) -> dict[str, str]:
    if receiver.user:
        pair = base64.b64encode(f"{receiver.user}:{secret}".encode()).decode()
        return {"Authorization": f"Basic {pair}"}
    # without a url of its own the secret is the URL
    return {"Authorization": f"Bearer {secret}"} if secret and receiver.url else {}


class _Said:
    """A notice in words that are printable and short enough for every receiver."""

    def __init__(self, notice: Notice, link: str) -> None:
        incident = notice.incident
        self.notice, self.incident = notice, incident
        self.name = _clipped(incident.incident, _MOST_WORD)
        self.category = _clipped(incident.category, _MOST_WORD)
        self.scope = _clipped(incident.scope, _MOST_WORD)
        word = _WORDS.get(notice.what, "changed")
        self.title = f"[{incident.severity}] {self.category} of {self.scope} {word}"
        self.summary = _clipped(incident.summary, _MOST_SUMMARY)
        self.codes = [_clipped(code, 32) for code in incident.codes[:_MOST_ITEMS]]
        self.sources = [_clipped(source, 64) for source in incident.sources[:_MOST_ITEMS]]
        self.call_ids = [_clipped(each, _MOST_ID) for each in incident.call_ids[:_MOST_ITEMS]]
        self.link = link_of(link, notice)
        self.first, self.last = _range(notice)
        so_far = "" if notice.what == "cleared" else " (still open)"
        self.range = f"{_moment(self.first)} to {_moment(self.last)} UTC{so_far}"
        self.key = re.sub(r"[^A-Za-z0-9.-]", "-", f"{self.name}.{notice.what}.{notice.at}")

    def lines(self, call: Callable[[str], str] | None = str) -> list[str]:
        """All of it but title and link, a line each; `call` makes a Call-ID harmless, None: no calls."""
        incident = self.incident
        found = [self.summary] if self.summary else []
        found.append(f"Time: {self.range}")
        if self.codes:
            found.append(f"Top codes: {', '.join(self.codes)}")
        if incident.explained is not None:
            found.append(f"Explained by {self.scope}: {incident.explained:.0%}")
        if incident.upstream:
            found.append("Several tenants have it: the trouble is upstream of them")
        if self.sources:
            found.append(f"Seen by: {', '.join(self.sources)}")
        if self.call_ids and call is not None:
            found.append(f"Calls: {', '.join(map(call, self.call_ids))}")
        found.append(f"Incident: {self.name}")
        return found

    def text(self, call: Callable[[str], str] = str) -> str:
        """The same as one text, with the link."""
        return "\n".join(self.lines(call) + ([self.link] if self.link else []))


def _alert(said: _Said) -> dict[str, Any]:
    """One alert of Alertmanager's API v2: postableAlert of its openapi.yaml."""
    incident, over = said.incident, said.notice.what == "cleared"
    # It refuses an alert that ends before it starts.
    starts = min(incident.opened_at, said.notice.at)
    ends = said.last if over else said.notice.at + HOLD_SECONDS * 1_000_000
    alert = {
        "labels": alert_labels(incident),
        "annotations": {
            "summary": said.title,
            "description": said.text(_inert),
            "call_ids": ", ".join(map(_inert, said.call_ids)),
            "codes": ", ".join(said.codes),
            "time": said.range,
        },
        "startsAt": _iso(starts),
        "endsAt": _iso(max(ends, starts)),
    }
    if said.link:
        alert["generatorURL"] = said.link
    return alert


def _pagerduty(routing_key: str, said: _Said, source: str) -> dict[str, Any]:
    """One event of PagerDuty's Events API v2; what got worse is triggered again by the same key."""
    incident = said.incident
    event: dict[str, Any] = {
        "routing_key": routing_key,
        "event_action": "resolve" if said.notice.what == "cleared" else "trigger",
        "dedup_key": said.name[:255],
        "client": "sipsidecar",
        "payload": {
            "summary": _cut(f"{said.title}: {said.summary}", 1024),
            "source": _clipped(source, _MOST_WORD) or "sipsidecar",
            "severity": LEVELS.get(incident.severity, "warning"),
            "timestamp": _iso(said.notice.at),
            "component": said.scope,
            "group": _clipped(incident.trunk or incident.carrier or "all", _MOST_WORD),
            "class": said.category,
            "custom_details": {
                "time": said.range,
                "codes": ", ".join(said.codes),
                "call_ids": said.call_ids,
                "text": said.text(),
            },
        },
    }
    if said.link:
        event["client_url"] = said.link
        event["links"] = [{"href": said.link, "text": "Incident"}]
    return event


def _slack(said: _Said) -> dict[str, Any]:
    """One message of Slack's incoming webhooks, and of what understands them by `text` alone."""
    lines = [_escaped(line, _SLACK_SUMMARY) for line in said.lines(None)]
    texts = [_cut_lines([f"*{_escaped(said.title, 600)}*", *lines], _MOST_SECTION)]
    if said.call_ids:
        texts.append(_cut_lines(["Calls:", *map(_code, said.call_ids)], _MOST_SECTION))
    href = _ampersands(said.link)
    if 0 < len(href) < _MOST_SECTION - 20:  # a link that had to be cut would lead elsewhere
        texts.append(f"<{href}|Open the incident>")
    return {
        "text": "\n".join(texts),
        "blocks": [
            {"type": "section", "text": {"type": "mrkdwn", "text": text, "verbatim": True}}
            for text in texts
        ],
    }


def _mail(receiver: Receiver, said: _Said) -> Message:
    domain = receiver.sender.rpartition("@")[2]
    thread = re.sub(r"[^A-Za-z0-9.-]", "-", said.name)
    headers = {
        "From": receiver.sender,
        "To": ", ".join(receiver.to),
        "Message-ID": f"<{said.key}@{domain}>",  # the same however often it is tried
        "References": f"<{thread}@{domain}>",
        "Auto-Submitted": "auto-generated",  # RFC 3834: no holiday notes for it
    }
    text = f"{said.title}\n\n{said.text()}\n"
    return Message(receiver.url, headers, text.encode(), _cut(said.title, 200))


# -- webhooks


def _values(said: _Said) -> dict[str, Any]:
    """What a template can name, and what a webhook without one is sent."""
    incident = said.incident
    times = {
        name: None if at is None else _iso(at)
        for name, at in (
            ("at", said.notice.at),
            ("opened_at", incident.opened_at),
            ("escalated_at", incident.escalated_at),
            ("cleared_at", incident.cleared_at),
            ("first_seen_at", incident.first_seen_at),
            ("last_seen_at", incident.last_seen_at),
        )
    }
    words = {
        name: None if value is None else _clipped(value, _MOST_WORD)
        for name in ("severity", "state", *_LABELS)
        for value in [getattr(incident, name)]
    }
    return {
        "id": said.key,
        "what": said.notice.what,
        "incident": said.name,
        "category": said.category,
        "scope": said.scope,
        "title": said.title,
        "summary": said.summary,
        "text": said.text(),
        "time": said.range,
        "link": said.link,
        **words,
        "explained": incident.explained,
        "upstream": incident.upstream,
        **times,
        "sources": said.sources,
        "codes": said.codes,
        "call_ids": said.call_ids,
    }


def _webhook(template: str, said: _Said) -> tuple[bytes, str]:
    values = _values(said)
    if not template:
        return msgspec.json.encode(values | {"evidence": _evidence(said.incident)}), (
            "application/json"
        )
    if not _is_json(template):
        text = _KNOWN.sub(lambda place: _plain(values[place[1]]), template)
        return text.encode(errors="replace"), "text/plain; charset=utf-8"
    made, quoted, before = [], False, 0
    # A value within a JSON string is escaped for it, one that stands alone is JSON by itself: no
    # Call-ID can end the string that it stands in.
    for place in _KNOWN.finditer(template):
        between = template[before : place.start()]
        quoted ^= _quotes(between) % 2 == 1
        value = values[place[1]]
        made += [between, _json(_plain(value))[1:-1] if quoted else _json(value)]
        before = place.end()
    made.append(template[before:])
    return "".join(made).encode(errors="replace"), "application/json"


def _quotes(text: str) -> int:
    """How many quotation marks of a piece of JSON begin or end a string."""
    return re.sub(r"\\.", "", text, flags=re.DOTALL).count('"')


def _plain(value: Any) -> str:  # noqa: ANN401 -- whatever `_values` has
    if value is None:
        return ""
    if isinstance(value, list):
        return ", ".join(value)
    return value if isinstance(value, str) else _json(value)


def _json(value: Any) -> str:  # noqa: ANN401 -- whatever `_values` has
    return msgspec.json.encode(value).decode()


def _evidence(incident: IncidentRecord) -> Any:  # noqa: ANN401 -- a JSON object of any shape
    if incident.evidence is not None and len(incident.evidence) <= _MOST_EVIDENCE:
        with suppress(ValueError, RecursionError):
            return msgspec.json.decode(incident.evidence)
    return None


# -- words


def _range(notice: Notice) -> tuple[int, int]:
    """From when to when it was, microseconds UTC; of an open one to the time of the notice."""
    incident = notice.incident
    first = incident.opened_at if incident.first_seen_at is None else incident.first_seen_at
    over = incident.cleared_at if notice.what == "cleared" else None
    last = notice.at if over is None else over
    return first, max(first, last)


def _date(at: int) -> datetime:
    """A time that some clock says; what no calendar has becomes its first or last day."""
    return datetime.fromtimestamp(min(max(at // 1_000_000, 0), 253_402_300_799), UTC)


def _moment(at: int) -> str:
    return f"{_date(at):%Y-%m-%d %H:%M:%S}"


def _iso(at: int) -> str:
    return f"{_date(at):%Y-%m-%dT%H:%M:%S}.{at % 1_000_000 // 1000:03d}Z"


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 2]}.."


def _clipped(text: str, most: int) -> str:
    return _cut(printable(text[:most] + ("..." if len(text) > most else "")), most)


def _cut_lines(lines: Sequence[str], most: int) -> str:
    """As many whole lines as fit: a cut within one could leave half an escape."""
    made = ""
    for line in lines:
        if len(made) + len(line) + 1 > most:
            break
        made += f"\n{line}" if made else line
    return made


def _ampersands(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _escaped(text: str, most: int) -> str:
    """Text for Slack: without its escapes `<!channel>` would call everybody, and none opens code."""
    text = text.replace("`", "'")
    while len(made := _ampersands(text)) > most:
        text = _cut(text, len(text) * 3 // 4)
    return made


def _code(text: str) -> str:
    """A Call-ID for Slack and its like: nothing within a code span mentions anybody."""
    return f"`{_escaped(text, 500)}`"


def _inert(text: str) -> str:
    """A Call-ID for Alertmanager, whose templates for Slack escape nothing: no `<!channel>` of it."""
    return text.replace("<", "\\x3c").replace(">", "\\x3e")
