# ruff: noqa: S106 -- names of secrets
import json
import re
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipsidecar.signals.alarms import IncidentRecord, Notice
from sipsidecar.signals.receivers import (
    HOLD_SECONDS,
    MOST_BATCH,
    MOST_BODY,
    PAGERDUTY,
    TEMPLATE_NAMES,
    Message,
    Receiver,
    ReceiverError,
    alert_labels,
    alerts_of,
    check_receivers,
    link_of,
    message_of,
)
from sipsidecar.tables import printable

AT = 1_769_850_000_000_000  # 2026-01-31T09:00:00Z
SECOND = 1_000_000
SECRETS = {
    "token": "bearer-token",
    "key": "0123456789abcdef0123456789abcdef",
    "hook": "https://hooks.slack.example/services/T0/B0/xyz",
    "password": "pass word",
}
INCIDENT = IncidentRecord(
    incident="4xx-20260131T085500",
    received_at=AT - 300 * SECOND,
    category="4xx",
    severity="warn",
    scope="trunk=acme,direction=in",
    explained=0.914,
    tenant="shop",
    trunk="acme",
    direction="in",
    opened_at=AT - 300 * SECOND,
    first_seen_at=AT - 420 * SECOND,
    last_seen_at=AT,
    sources=("rate", "drift"),
    summary="4xx 17.6 % (37 of 210) in the last 5 min; normal for Sat 09:00 is 8.1 %",
    codes=("404 +29", "484 +5"),
    call_ids=("a84b4c76@pc33", "b@10.0.0.1"),
    evidence='{"z":5.1}',
)
HOSTILE = "</script>\"'`<!channel> <@U1>&\r\nBcc: x@y\u202e\x1b[2J{secret}\\"


def notice(what: str = "opened", at: int = AT, **changes: Any) -> Notice:
    if what == "cleared":
        changes = {"state": "cleared", "cleared_at": at} | changes
    return Notice(what=what, incident=msgspec.structs.replace(INCIDENT, **changes), at=at)


def receiver(kind: Any, **more: Any) -> Receiver:
    kinds: dict[str, dict[str, Any]] = {
        "alertmanager": {"url": "http://127.0.0.1:9093"},
        "webhook": {"url": "https://hook.example/in?x=1"},
        "pagerduty": {"secret": "key"},
        "slack": {"secret": "hook"},
        "email": {
            "url": "smtp://mail.example:587",
            "sender": "sipsidecar@example.org",
            "to": ("noc@example.org", "boss@example.org"),
        },
    }
    return Receiver(**{"name": kind, "kind": kind} | kinds[kind] | more)


KINDS = ("alertmanager", "webhook", "pagerduty", "slack", "email")


def said(to: Receiver, about: Notice, link: str = "") -> Message:
    message = message_of(to, SECRETS.get(to.secret, ""), about, link)
    assert message is not None
    return message


def body(to: Receiver, about: Notice, link: str = "") -> Any:
    return json.loads(said(to, about, link).body)


# -- settings


def test_each_kind_can_be_configured() -> None:
    check_receivers([receiver(kind) for kind in KINDS], SECRETS)
    check_receivers(
        [
            receiver("webhook", url="", secret="hook"),
            receiver("alertmanager", secret="token"),
            receiver("email", url="smtps://[::1]", user="me", secret="password"),
            receiver("slack", name="mattermost", url="https://chat.example/hooks/1", secret=""),
            receiver("pagerduty", url="https://events.eu.pagerduty.com/v2/enqueue"),
        ],
        SECRETS,
    )


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (receiver("webhook", name="a b"), "expected a name"),
        (receiver("webhook", name=""), "expected a name"),
        (receiver("webhook", secret="nope"), "'nope' is not in alerts.secrets"),
        (receiver("webhook", url=""), "needs a url"),
        (receiver("webhook", url="ftp://x"), "expected http://"),
        (receiver("webhook", url="http://u:p@x/"), "without a password"),
        (receiver("webhook", url="http://x:99999/"), "expected http://"),
        (receiver("webhook", url="http://x/\r\nA: b"), "expected http://"),
        (receiver("webhook", url="http://[::1"), "expected http://"),
        (receiver("webhook", url="http://x/<y>"), "expected http://"),
        (receiver("webhook", url="", secret="key"), "as its secret"),
        (receiver("webhook", user="me"), "a user needs a secret"),
        (receiver("webhook", url="", user="me", secret="hook"), "needs a url beside"),
        (receiver("webhook", secret="password"), "one line without spaces"),
        (receiver("webhook", template="{nothing}"), "template has {nothing}"),
        (receiver("webhook", template='{"a": {summary}, }'), "looks like JSON"),
        (receiver("webhook", template="{text}" * 33), "32 values"),
        (receiver("webhook", template="x" * 16_385), "16384 characters"),
        (receiver("slack", template="{text}"), "template is for webhooks"),
        (receiver("slack", url="https://x/"), "the secret is the URL"),
        (receiver("slack", user="me"), "user is of no use"),
        (receiver("slack", secret=""), "needs a url"),
        (receiver("pagerduty", secret=""), "routing key"),
        (receiver("alertmanager", resolved=False), "send_resolved"),
        (receiver("alertmanager", to=("x@y",)), "are for email"),
        (receiver("email", url=""), "expected smtp://"),
        (receiver("email", url="smtp://h/path"), "expected smtp://"),
        (receiver("email", sender="x"), "as its sender"),
        (receiver("email", sender="a@b\nBcc: c@d"), "as its sender"),
        (receiver("email", to=()), "in to"),
        (receiver("email", to=("a@b, c@d",)), "in to"),
        (receiver("email", secret="password"), "no user"),
        (receiver("email", user="m\xe4", secret="password"), "ASCII"),
        (receiver("email", user="a\nb", secret="password"), "no use"),
    ],
)
def test_a_receiver_that_cannot_be_is_named_with_the_reason(wrong: Receiver, why: str) -> None:
    with pytest.raises(ReceiverError) as caught:
        check_receivers([wrong], SECRETS)
    assert why in str(caught.value)
    assert not any(secret in str(caught.value) for secret in SECRETS.values())
    assert "\n" not in str(caught.value)


def test_two_receivers_of_one_name_are_refused() -> None:
    with pytest.raises(ReceiverError, match="webhook: there are two"):
        check_receivers([receiver("webhook"), receiver("webhook")], {})


def test_a_message_shows_no_secret_in_its_repr() -> None:
    shown = repr(said(receiver("webhook", secret="token"), notice()))
    assert re.fullmatch(r"Message\([0-9]+ bytes\)", shown)


# -- whose business it is


@pytest.mark.parametrize("kind", KINDS)
def test_a_receiver_is_told_only_what_is_grave_enough_for_it(kind: str) -> None:
    to = receiver(kind, severity="page")
    assert message_of(to, "", notice()) is None
    assert message_of(to, "", notice(severity="page")) is not None
    assert message_of(receiver(kind), "", notice(severity="trend")) is None
    assert message_of(receiver(kind, severity="trend"), "", notice(severity="trend")) is not None


def test_a_tenants_receiver_hears_of_its_own_and_of_what_is_everybodys() -> None:
    to = receiver("webhook", tenant="shop")
    assert message_of(to, "", notice()) is not None
    assert message_of(to, "", notice(tenant=None)) is not None
    assert message_of(to, "", notice(tenant="bank")) is None


def test_the_end_is_told_unless_it_is_not_wanted() -> None:
    assert message_of(receiver("webhook"), "", notice("cleared")) is not None
    assert message_of(receiver("webhook", resolved=False), "", notice("cleared")) is None


# -- links


def test_a_link_has_incident_and_times_in_milliseconds() -> None:
    assert link_of("https://grafana.example/d/x", notice()) == (
        "https://grafana.example/d/x?incident=4xx-20260131T085500"
        f"&from={(AT - 1320 * SECOND) // 1000}&to={AT // 1000}"
    )
    assert "?orgId=1&incident=" in link_of("https://g.example/d?orgId=1", notice())
    assert link_of("", notice()) == ""


# -- alertmanager


def test_alertmanager_is_told_labels_annotations_and_when_it_lasts_to() -> None:
    message = said(receiver("alertmanager", secret="token"), notice(), "https://g.example/d")
    assert message.url == "http://127.0.0.1:9093/api/v2/alerts"
    assert message.headers["Authorization"] == "Bearer bearer-token"
    (alert,) = json.loads(message.body)
    assert alert["labels"] == {
        "alertname": "sip-4xx",
        "severity": "warning",
        "category": "4xx",
        "incident": "4xx-20260131T085500",
        "service": "sipsidecar",
        "tenant": "shop",
        "trunk": "acme",
        "direction": "in",
    }
    assert alert["startsAt"] == "2026-01-31T08:55:00.000Z"
    assert alert["endsAt"] == "2026-01-31T09:05:00.000Z"
    assert HOLD_SECONDS == 300
    assert alert["annotations"]["call_ids"] == "a84b4c76@pc33, b@10.0.0.1"
    assert alert["annotations"]["summary"] == "[warn] 4xx of trunk=acme,direction=in opened"
    assert alert["generatorURL"].startswith("https://g.example/d?incident=")


def test_what_is_over_ends_for_alertmanager_when_it_ended() -> None:
    (alert,) = body(receiver("alertmanager"), notice("cleared", cleared_at=AT - 5 * SECOND))
    assert alert["endsAt"] == "2026-01-31T08:59:55.000Z"
    (alert,) = body(receiver("alertmanager"), notice("cleared", cleared_at=AT - 5000 * SECOND))
    assert alert["endsAt"] >= alert["startsAt"]


def test_the_path_of_alertmanagers_api_is_added_once() -> None:
    for url in ("http://a/am", "http://a/am/", "http://a/am/api/v2/alerts"):
        message = said(receiver("alertmanager", url=url), notice())
        assert message.url == "http://a/am/api/v2/alerts"


def test_a_user_is_authenticated_by_basic() -> None:
    message = said(receiver("alertmanager", user="me", secret="password"), notice())
    assert message.headers["Authorization"] == "Basic bWU6cGFzcyB3b3Jk"


def test_alertmanager_cannot_be_made_to_mention_anybody_by_a_call_id() -> None:
    (alert,) = body(receiver("alertmanager"), notice(call_ids=(HOSTILE,)))
    assert not {"<", ">"} & set(alert["annotations"]["call_ids"])
    assert not {"<", ">"} & set(alert["annotations"]["description"])


def test_no_label_is_what_strangers_wrote() -> None:
    labels = alert_labels(notice(call_ids=(HOSTILE,), summary=HOSTILE, evidence=HOSTILE).incident)
    assert labels == alert_labels(INCIDENT)


# -- pagerduty


def test_pagerduty_is_triggered_and_resolved_by_one_key() -> None:
    message = said(receiver("pagerduty"), notice(), "https://g.example/d")
    assert message.url == PAGERDUTY
    event = json.loads(message.body)
    assert event["routing_key"] == SECRETS["key"]
    assert event["event_action"] == "trigger"
    assert event["dedup_key"] == "4xx-20260131T085500"
    payload = event["payload"]
    assert payload["severity"] == "warning"
    assert payload["source"] == "sipsidecar"
    assert payload["timestamp"] == "2026-01-31T09:00:00.000Z"
    assert payload["summary"].endswith(INCIDENT.summary)
    assert payload["custom_details"]["codes"] == "404 +29, 484 +5"
    assert event["links"][0]["href"] == event["client_url"]
    worse = body(receiver("pagerduty"), notice("escalated", severity="page"))
    assert (worse["event_action"], worse["payload"]["severity"]) == ("trigger", "critical")
    over = body(receiver("pagerduty"), notice("cleared"))
    assert (over["event_action"], over["dedup_key"]) == ("resolve", event["dedup_key"])


# -- slack


def test_slack_gets_text_and_blocks_with_all_of_it() -> None:
    message = said(receiver("slack"), notice(), "https://g.example/d")
    assert message.url == SECRETS["hook"]
    assert "Authorization" not in message.headers
    found = json.loads(message.body)
    for part in (
        "*[warn] 4xx of trunk=acme,direction=in opened*",
        "17.6 % (37 of 210)",
        "Time: 2026-01-31 08:53:00 to 2026-01-31 09:00:00 UTC (still open)",
        "Top codes: 404 +29, 484 +5",
        "Explained by trunk=acme,direction=in: 91%",
        "`a84b4c76@pc33`",
        "<https://g.example/d?incident=4xx-20260131T085500&amp;from=",
    ):
        assert part in found["text"]
        assert any(part in block["text"]["text"] for block in found["blocks"])
    assert all(block["text"]["verbatim"] for block in found["blocks"])


def test_slack_mentions_nobody_whom_strangers_name() -> None:
    found = body(receiver("slack"), notice(summary=HOSTILE, call_ids=(HOSTILE,)))
    for text in (found["text"], *(block["text"]["text"] for block in found["blocks"])):
        assert "<!" not in text
        assert "<@" not in text
        assert text.count("`") == (2 if "Calls:" in text else 0)


def test_slack_gets_whole_lines_of_what_is_too_much() -> None:
    found = body(receiver("slack"), notice(call_ids=("&" * 200,) * 8, explained=None))
    calls = found["blocks"][1]["text"]["text"]
    assert 2000 < len(calls) <= 3000
    assert all(re.fullmatch("`(&amp;)+(\\.\\.)?`", line) for line in calls.split("\n")[1:])


# -- webhook


def test_a_webhook_without_a_template_gets_the_incident_as_json() -> None:
    message = said(receiver("webhook", secret="token"), notice())
    assert message.headers["Authorization"] == "Bearer bearer-token"
    assert message.headers["Content-Type"] == "application/json"
    found = json.loads(message.body)
    assert found["incident"] == "4xx-20260131T085500"
    assert found["opened_at"] == "2026-01-31T08:55:00.000Z"
    assert found["cleared_at"] is None
    assert found["call_ids"] == ["a84b4c76@pc33", "b@10.0.0.1"]
    assert found["evidence"] == {"z": 5.1}
    assert set(found) == {*TEMPLATE_NAMES, "evidence"}
    assert message.headers["Idempotency-Key"] == found["id"]


def test_each_notice_has_a_key_of_its_own_that_stays() -> None:
    def key(about: Notice) -> str:
        return said(receiver("webhook"), about).headers["Idempotency-Key"]

    assert key(notice()) == key(notice())
    assert len({key(notice()), key(notice("cleared")), key(notice(at=AT + 1))}) == 3


def test_evidence_that_is_no_json_or_too_much_is_left_out() -> None:
    for evidence in ("{", "[" * 5000, '"' + "x" * 40_000 + '"', None):
        assert body(receiver("webhook"), notice(evidence=evidence))["evidence"] is None


def test_a_templates_names_become_values_as_json_wants_them() -> None:
    template = (
        '{"m": "{title}: {codes}", "e": {explained}, "c": {cleared_at}, "ids": {call_ids},'
        ' "q\\"{what}": "{upstream} {carrier} {explained}", "o": {}}'
    )
    found = body(receiver("webhook", template=template), notice())
    assert found == {
        "m": "[warn] 4xx of trunk=acme,direction=in opened: 404 +29, 484 +5",
        "e": 0.914,
        "c": None,
        "ids": ["a84b4c76@pc33", "b@10.0.0.1"],
        'q"opened': "false  0.914",
        "o": {},
    }


def test_a_template_of_text_is_text() -> None:
    message = said(receiver("webhook", template="{severity} {summary}\n{secret}"), notice())
    assert message.headers["Content-Type"].startswith("text/plain")
    assert message.body.decode() == f"warn {INCIDENT.summary}\n{{secret}}"


@given(st.text(max_size=300), st.sampled_from(TEMPLATE_NAMES))
def test_no_call_id_leaves_the_json_string_that_it_stands_in(text: str, name: str) -> None:
    to = receiver("webhook", template=f'{{"a": "x{{call_ids}}y{{{name}}}", "b": {{call_ids}}}}')
    found = body(to, notice(call_ids=(text,), summary=text))
    assert set(found) == {"a", "b"}
    assert isinstance(found["a"], str)
    assert len(found["b"]) == 1


# -- e-mail


def test_a_mail_has_a_subject_a_text_and_a_thread() -> None:
    message = said(receiver("email"), notice(), "https://g.example/d")
    assert message.subject == "[warn] 4xx of trunk=acme,direction=in opened"
    assert message.headers["To"] == "noc@example.org, boss@example.org"
    assert "Calls: a84b4c76@pc33, b@10.0.0.1" in message.body.decode()
    over = said(receiver("email"), notice("cleared"))
    assert over.headers["References"] == message.headers["References"]
    assert over.headers["Message-ID"] != message.headers["Message-ID"]
    assert "(still open)" not in over.body.decode()


# -- whatever it is about


texts = st.text(max_size=2000) | st.just(HOSTILE * 20) | st.just("&" * 3000) | st.just("\ud800")


@given(
    kind=st.sampled_from(KINDS),
    what=st.sampled_from(("opened", "escalated", "cleared", "?")),
    text=texts,
    at=st.integers(-(2**63), 2**63),
    calls=st.lists(texts, max_size=30),
    template=st.sampled_from(("", '{"a": "{text}", "b": {text}}', "{text}{call_ids}" * 16)),
)
def test_every_message_is_small_printable_and_valid(
    kind: str, what: str, text: str, at: int, calls: list[str], template: str
) -> None:
    incident = msgspec.structs.replace(
        INCIDENT,
        incident=text,
        scope=text,
        summary=text,
        trunk=text,
        codes=tuple(calls),
        sources=tuple(calls),
        call_ids=tuple(calls),
        opened_at=at,
        cleared_at=at,
        upstream=True,
        evidence=text,
        severity="page",
    )
    to = receiver(kind, **({"template": template} if kind == "webhook" else {}))
    message = said(to, Notice(what=what, incident=incident, at=at), "https://g.example/d")
    assert len(message.body) <= MOST_BODY
    assert printable(message.subject) == message.subject
    assert all(value.isprintable() and value.isascii() for value in message.headers.values())
    if message.headers.get("Content-Type") == "application/json":
        found = json.loads(message.body)
    if kind == "slack":
        assert all(1 <= len(block["text"]["text"]) <= 3000 for block in found["blocks"])
    if kind == "pagerduty":
        assert len(found["dedup_key"]) <= 255
        assert len(found["payload"]["summary"]) <= 1024
    if kind == "email":
        lines = message.body.decode().split("\n")
        assert all(printable(line) == line for line in lines)  # a no-break space moves nothing


def test_a_full_batch_for_alertmanager_is_small() -> None:
    big = notice(summary="\x1b" * 5000, call_ids=("\x1b" * 500,) * 9, codes=("\x1b" * 99,) * 9)
    assert len(alerts_of(receiver("alertmanager"), "", [big] * MOST_BATCH).body) < 2**20
