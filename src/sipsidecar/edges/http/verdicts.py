r"""Pages of admission: the questions of switches and the words of operators, to those of `signals`.

`POST /v1/admission` with a JSON object, or `GET` with the same names in the query, asks whether one
call may begin; the fields are those of `Question`. The answer has status 200 whatever was decided:

    {"verdict": "refuse", "code": 486, "rule": "acme-calls", "reason": "cac acme-calls: trunk full",
     "reason_header": "SIP;cause=486;text=\"cac acme-calls: trunk full\"", ...}

and with `?format=text` one line without an end: `admit`, `refuse 486 RULE` or `overflow ROUTE RULE`.
An admission takes a place, so a question needs the role to operate. Any other status, or no answer in
time (give it 200 ms), is no decision: let the call pass, unless its trunk is to fail closed.

A switch that glues JSON together from headers lets strangers write into it: use its JSON functions,
or the query with every value percent-encoded. There `+` stands for itself, a blank is %20, and a
header is `headers.NAME=VALUE`.
"""

import re
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any, Final, Protocol

import msgspec
from aiohttp import web
from msgspec import UNSET, UnsetType

from sipsidecar.calls.events import Sighted
from sipsidecar.edges.http.bodies import (
    AbsentError,
    QuestionError,
    check_name,
    decode,
    identity,
    looked_up,
    query,
    refusing,
    words_of,
)
from sipsidecar.edges.http.guard import Role
from sipsidecar.edges.http.pages import Page, Request, json_response
from sipsidecar.signals.decisions import ADMIT, REFUSE, Ask, Decision
from sipsidecar.signals.rules import GLOBAL, SCOPES
from sipsidecar.wire.sip import MAX_CALL_ID, MAX_TOKEN, text, uri

QUESTION: Final = "/v1/admission"
SIGNALS: Final = "/v1/signals"
MAX_HEADERS: Final = 32
"""Of one question."""
MAX_TTL: Final = 3600.0
"""Seconds that a signal may stand without being said again."""
MAX_WAITED: Final = 3600_000.0
ABSENT: Final = dict.fromkeys(
    (
        QUESTION,
        *(
            f"{QUESTION}/{one}"
            for one in ("status", "explain", "release", "drain", "resume", "set")
        ),
        SIGNALS,
    ),
    "nothing is decided here: configure admission.rules",
)
"""What is said of a page that is not there, by path."""
_NOTHING: Final = (None, "", "<null>")
"""No value; the last is what Kamailio and OpenSIPS write for one."""


class Admitter(Protocol):
    """What decides, and what an operator may tell it."""

    def ask(self, ask: Ask) -> Decision:
        """Decide about one request; an admission takes its place."""
        ...

    def release(self, call_id: str) -> int:
        """End what a call holds; returns how many leases that was."""
        ...

    def status(self) -> dict[str, Any]:
        """How admission is now, as JSON can hold it.

        `rules`: objects with rule, measure, scope, scope_value, state, since_seconds, value,
        threshold, reserve, percent_admitted, outcome and reason; `drains`: scope, scope_value and
        seconds; `leases`: held, pending, and ended by why; `pushes` and `asks`: as `signals.decisions` has them; `checks`: as
        `signals.health.Probed`; `signals`: value by name; `fail`: fail-open or fail-closed by trunk.
        """
        ...

    def explain(self, sighted: Sighted) -> dict[str, Any]:
        """What would be decided about an ordinary call of which this is seen.

        `decision`: as `Decision`; `rules`: as in `status`, and whether it `objects`; `matched`: the
        index of the matcher by what it said.
        """
        ...

    def explain_cohort(self, values: dict[str, str]) -> dict[str, Any]:
        """The same of a cohort, its values by scope; LookupError: no such value, in words."""
        ...

    def drain(self, scope: str, value: str) -> None:
        """Refuse every new call of a scope's value; LookupError: no such value, in words."""
        ...

    def resume(self, scope: str, value: str) -> int:
        """End drains and open closed rules; returns how many changed. LookupError as `drain`."""
        ...

    def set_limit(self, rule: str, limit: float) -> dict[str, Any]:
        """Give a rule another limit; returns what it is now. LookupError, RuleError."""
        ...

    def signal(self, name: str, value: float, ttl_seconds: float) -> bool:
        """Take what somebody says of his part; False when no rule is about such a signal."""
        ...


class Question(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a switch says of an INVITE.

    Only `call_id` must be there; what it does not know it leaves out, or sends as null, "" or "<null>".
    """

    call_id: str = ""
    from_tag: str | None = None
    cseq: int | str | None = None
    """With Call-ID and From tag it tells a retransmission or a fork from another call."""
    method: str | None = None
    """INVITE if left out."""
    to_tag: str | None = None
    """A request that has one is within a dialog, and never refused."""
    src_ip: str | None = None
    """Where the INVITE came from."""
    src_port: int | str | None = None
    dst_ip: str | None = None
    """Where it will go, if the switch knows."""
    dst_port: int | str | None = None
    from_user: str | None = None
    from_host: str | None = None
    to_user: str | None = None
    to_host: str | None = None
    ruri: str | None = None
    """The whole Request-URI: its scheme tells emergencies. Or its parts:"""
    ruri_user: str | None = None
    ruri_host: str | None = None
    headers: dict[str, str | None] | None = None
    """Values by name, of those that `cohorts.match` asks for."""
    gateway: str | None = None
    """Of a FreeSWITCH."""
    switch: str | None = None
    """Configured name of the FreeSWITCH."""
    priority: str | None = None
    """Priority header, if not among `headers`."""
    resource_priority: str | None = None
    """Resource-Priority header, if not among `headers`."""
    node: str | None = None
    """Configured name of who asks."""
    waited_ms: float | str | None = None
    """How old the request is."""


class Where(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whose calls an operator means; nothing: all calls. An empty or null name is not nothing."""

    tenant: str | UnsetType = UNSET
    trunk: str | UnsetType = UNSET
    direction: str | UnsetType = UNSET
    region: str | UnsetType = UNSET
    node: str | UnsetType = UNSET


class Release(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A call that has ended, or never began."""

    call_id: str


class SetLimit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Another limit for a rule."""

    rule: str
    limit: float


class Signal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What somebody says of his part; it is unknown again after `ttl_seconds`."""

    name: str
    value: float
    ttl_seconds: float = 30.0


def admission_pages(admitter: Admitter) -> dict[str, Page]:
    """Make the pages of admission, by path."""
    pages = _Pages(admitter)
    fields = ", ".join(Question.__struct_fields__)
    where = ", ".join(SCOPES)
    operate = Role.OPERATE

    def told(words: str, make: Callable[[Request], web.Response]) -> Page:
        return Page(words, refusing(make), operate, ("POST",), body=True)

    return {
        QUESTION: Page(
            f"may this call begin? an admission takes a place; ?format=text for one line; of {fields}"
            " only call_id is a must",
            refusing(pages.ask),
            operate,
            ("GET", "POST"),
            body=True,
            question=True,
        ),
        f"{QUESTION}/status": Page(
            "rules and their states, leases, drains, and the switches that are told or ask",
            refusing(pages.status),
        ),
        f"{QUESTION}/explain": Page(
            f"what would be decided now, and why, without taking a place: ?trunk=NAME ({where}),"
            " or what is seen, as in a question",
            refusing(pages.explain),
        ),
        f"{QUESTION}/release": told('end what a call holds: {"call_id": "..."}', pages.release),
        f"{QUESTION}/drain": told(
            f'refuse new calls until resumed: {{"trunk": "NAME"}} ({where}), or {{}} for all',
            pages.drain,
        ),
        f"{QUESTION}/resume": told(
            "end a drain, and open rules that have closed: as drain", pages.resume
        ),
        f"{QUESTION}/set": told(
            'another limit until the next start or reload: {"rule": "NAME", "limit": 50}',
            pages.set_limit,
        ),
        SIGNALS: told(
            'a figure that rules can be about: {"name": "asr", "value": 0.7, "ttl_seconds": 30}',
            pages.signal,
        ),
    }


class _Pages:
    """The pages, over what decides."""

    def __init__(self, admitter: Admitter) -> None:
        self._admitter = admitter

    def ask(self, request: Request) -> web.Response:
        given = query(request)
        shape = given.pop("format", "json")
        if shape not in {"json", "text"}:
            raise QuestionError("format: expected json or text")
        if request.http.method == "POST":
            if given:
                raise QuestionError("send the question in the body, or all of it in the query")
            question = decode(Question, request.body)
        else:
            question = _question(given)
        asked = _ask(question)
        if not asked.call_id:
            raise QuestionError("call_id: send the Call-ID of the request")
        decision = self._admitter.ask(asked)
        if shape == "text":
            return web.Response(text=_line(decision), content_type="text/plain")
        return json_response(
            {
                **msgspec.structs.asdict(decision),
                "reason_header": reason_header(decision),
                "cohort": decision.cohort._asdict(),
            }
        )

    def status(self, _: Request) -> web.Response:
        return json_response(self._admitter.status())

    def explain(self, request: Request) -> web.Response:
        given = query(request)
        if given.keys() <= set(SCOPES):
            for scope, value in given.items():
                check_name(scope, value)
            return json_response(looked_up(lambda: self._admitter.explain_cohort(given)))
        if mixed := sorted(given.keys() & set(SCOPES)):
            raise QuestionError(f"{mixed[0]}: send whose the call is, or what is seen, not both")
        return json_response(self._admitter.explain(_sighted(_question(given))))

    def release(self, request: Request) -> web.Response:
        call_id = decode(Release, request.body).call_id
        return json_response({"released": self._admitter.release(identity(call_id, MAX_CALL_ID))})

    def drain(self, request: Request) -> web.Response:
        scope, value = _where(request.body)
        looked_up(lambda: self._admitter.drain(scope, value))
        return json_response({"draining": {"scope": scope, "scope_value": value}})

    def resume(self, request: Request) -> web.Response:
        scope, value = _where(request.body)
        changed = looked_up(lambda: self._admitter.resume(scope, value))
        return json_response({"resumed": changed})

    def set_limit(self, request: Request) -> web.Response:
        wanted = decode(SetLimit, request.body)
        return json_response(looked_up(lambda: self._admitter.set_limit(wanted.rule, wanted.limit)))

    def signal(self, request: Request) -> web.Response:
        said = decode(Signal, request.body)
        if not 0 < said.ttl_seconds <= MAX_TTL:
            raise QuestionError(f"ttl_seconds: expected more than 0, up to {MAX_TTL:g}")
        if not self._admitter.signal(said.name, said.value, said.ttl_seconds):
            raise AbsentError("no rule of admission.rules is about a signal of this name")
        return json_response({"taken": True})


# -- what came


def _question(given: dict[str, str]) -> Question:
    inner = "headers."
    fields: dict[str, Any] = {k: v for k, v in given.items() if not k.startswith(inner)}
    headers = {k.removeprefix(inner): v for k, v in given.items() if k.startswith(inner)}
    if headers:
        fields.setdefault("headers", headers)
    try:
        return msgspec.convert(fields, Question)
    except msgspec.ValidationError as error:
        raise QuestionError(words_of(error)) from None


def _where(body: bytes) -> tuple[str, str]:
    """Whose calls are meant: scope and value."""
    given = msgspec.to_builtins(decode(Where, body if body.strip() else b"{}"))
    if len(given) > 1:
        raise QuestionError(f"name one of {', '.join(SCOPES)}")
    for scope, value in given.items():
        check_name(scope, value)
        return scope, value
    return GLOBAL, ""


# -- a question to an ask


def _ask(question: Question) -> Ask:
    sighted = _sighted(question)
    headers = sighted.headers
    if question.node not in _NOTHING:
        check_name("node", str(question.node))
    from_tag = "" if question.from_tag in _NOTHING else str(question.from_tag)
    return Ask(
        call_id=identity(question.call_id, MAX_CALL_ID),
        from_tag=identity(from_tag, MAX_TOKEN),
        # a stranger's: where it is no number nobody knows it
        cseq=_number(question.cseq, 2**32 - 1),
        sighted=sighted,
        method=(_text(question.method) or "INVITE").upper(),
        in_dialog=_text(question.to_tag) is not None,
        ruri=_text(question.ruri) or _joined(sighted.ruri_user, sighted.ruri_host),
        priority=_text(question.priority) or headers.get("priority", ""),
        resource_priority=(
            _text(question.resource_priority) or headers.get("resource-priority", "")
        ),
        node=_text(question.node) or "",
        waited=_waited(question.waited_ms),
    )


def _sighted(question: Question) -> Sighted:
    ruri = uri(_text(question.ruri) or "")
    given = question.headers or {}
    if len(given) > MAX_HEADERS:
        raise QuestionError(
            f"headers: send at most {MAX_HEADERS}, those that cohorts.match asks for"
        )
    headers = {name.lower(): _text(value) for name, value in given.items()}
    return Sighted(
        src_ip=_address("src_ip", question.src_ip),
        src_port=_port("src_port", question.src_port),
        dst_ip=_address("dst_ip", question.dst_ip),
        dst_port=_port("dst_port", question.dst_port),
        from_user=_text(question.from_user),
        from_host=_text(question.from_host),
        to_user=_text(question.to_user),
        to_host=_text(question.to_host),
        ruri_user=_text(question.ruri_user) or (ruri.user if ruri else None),
        ruri_host=_text(question.ruri_host) or (ruri.host if ruri else None),
        headers={name: value for name, value in headers.items() if value is not None},
        gateway=_text(question.gateway),
        switch=_text(question.switch),
    )


def _joined(user: str | None, host: str | None) -> str:
    """The Request-URI that has these parts."""
    if host is None:
        return "" if user is None else f"tel:{user}"
    return f"sip:{host}" if user is None else f"sip:{user}@{host}"


def _text(value: str | None) -> str | None:
    """Text as the SIP parser would have it: bounded, and without NUL."""
    return None if value is None or value in _NOTHING else text(value.encode()) or None


def _number(value: int | str | None, most: int) -> int | None:
    if isinstance(value, str):
        value = int(value) if re.fullmatch("[0-9]{1,10}", value) else None
    return value if value is not None and 0 <= value <= most else None


def _port(name: str, value: int | str | None) -> int | None:
    found = _number(value, 65535)
    if found is None and value not in _NOTHING:
        raise QuestionError(f"{name}: expected a port")
    return found


def _address(name: str, value: str | None) -> str | None:
    if value is None or value in _NOTHING:
        return None
    try:
        return str(ip_address(value.removeprefix("[").removesuffix("]")))
    except ValueError:
        raise QuestionError(f"{name}: expected an IP address") from None


def _waited(value: float | str | None) -> float:
    """Milliseconds to seconds; a clock of the switch that went back is no error of the call."""
    if isinstance(value, str):
        if value in _NOTHING:
            return 0.0
        if not re.fullmatch(r"-?[0-9]{1,12}(\.[0-9]{1,9})?", value):
            raise QuestionError("waited_ms: expected a number")
        value = float(value)
    return min(max(value or 0.0, 0.0), MAX_WAITED) / 1000


# -- a decision to what a switch reads


def reason_header(decision: Decision) -> str:
    """The value of a Reason header (RFC 3326) for a refusal; empty for any other verdict."""
    if decision.verdict != REFUSE or decision.code is None:
        return ""
    said = decision.reason.replace("\\", "\\\\").replace('"', '\\"')
    return f'SIP;cause={decision.code};text="{said}"'


def _line(decision: Decision) -> str:
    if decision.verdict == ADMIT:
        return ADMIT
    what = decision.code if decision.verdict == REFUSE else decision.route
    return f"{decision.verdict} {what} {decision.rule}"
