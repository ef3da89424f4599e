# ruff: noqa: S106 -- names of secrets
import asyncio
import contextlib
import email
import email.policy
import logging
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from certificates import Authority
from receiving import Mail, Web, mail_server, until, web_server
from sipsidecar.edges import alerting
from sipsidecar.edges.alerting import RESULTS, Alerter, Timing
from sipsidecar.signals.alarms import IncidentRecord, Notice
from sipsidecar.signals.receivers import Receiver, message_of

AT = 1_769_850_000_000_000
QUICK = Timing(
    one_try=2.0, first_pause=0.001, longest_pause=0.004, longest_asked=0.05, give_up=5.0,
    refresh=60.0,
)  # fmt: skip
SECRETS = {"token": "very-secret-token", "key": "routing-key", "password": "hunter2"}


def notice(what: str = "opened", name: str = "4xx-1", **changes: Any) -> Notice:
    over = {"state": "cleared", "cleared_at": AT + 60_000_000} if what == "cleared" else {}
    incident = IncidentRecord(
        incident=name,
        received_at=AT,
        category="4xx",
        severity="warn",
        scope="trunk=acme",
        trunk="acme",
        opened_at=AT,
        last_seen_at=AT,
        summary="4xx 17.6 % (37 of 210)",
        call_ids=("a@b",),
    )
    return Notice(what=what, incident=msgspec.structs.replace(incident, **over | changes), at=AT)


def hook(server: Web, name: str = "hook", **more: Any) -> Receiver:
    return Receiver(**{"name": name, "kind": "webhook", "url": f"{server.url}/in"} | more)


def mail_to(server: Mail, **more: Any) -> Receiver:
    settings = {
        "name": "mail",
        "kind": "email",
        "url": f"smtp://127.0.0.1:{server.port}",
        "sender": "sipsidecar@example.org",
        "to": ("noc@example.org",),
    }
    return Receiver(**settings | more)


@contextlib.asynccontextmanager
async def alerts(
    *receivers: Receiver, timing: Timing = QUICK, **more: Any
) -> AsyncIterator[Alerter]:
    alerter = Alerter(receivers, SECRETS, "https://g.example/d", timing=timing, **more)
    task = asyncio.create_task(alerter.run())
    await asyncio.sleep(0)
    try:
        yield alerter
    finally:
        await alerter.close()
        await asyncio.wait_for(task, 5)


def counted(alerter: Alerter, name: str = "hook") -> dict[str, int]:
    return {result: n for (of, result), n in alerter.counters.items() if of == name and n}


# -- HTTP


async def test_each_notice_is_told_once_and_in_order() -> None:
    async with web_server() as server, alerts(hook(server)) as alerter:
        alerter.send([notice(), notice("escalated"), notice("cleared"), notice(severity="trend")])
        await until(lambda: len(server.asked) == 3)
    assert [asked.json["what"] for asked in server.asked] == ["opened", "escalated", "cleared"]
    assert counted(alerter) == {"sent": 3}
    assert alerter.status()[0]["up"] is True


async def test_receivers_are_shown_by_the_order_of_the_configuration() -> None:
    def make(*names: str) -> list[Receiver]:
        return [Receiver(name=name, kind="webhook", url="http://x/") for name in names]

    alerter = Alerter(make("b", "a"))
    alerter.reload(make("c", "a", "b"), {})
    assert [status["name"] for status in alerter.status()] == ["c", "a", "b"]


@pytest.mark.parametrize("status", [500, 503, 429, 408])
async def test_what_may_pass_is_tried_again_with_the_same_key(status: int) -> None:
    async with web_server(status, status, 200) as server, alerts(hook(server)) as alerter:
        alerter.send([notice()])
        await until(lambda: counted(alerter).get("sent"))
    assert len({asked.headers["Idempotency-Key"] for asked in server.asked}) == 1
    assert counted(alerter) == {"again": 2, "sent": 1}


async def test_a_receiver_that_is_gone_is_tried_until_it_is_back() -> None:
    async with web_server() as server:
        gone = Receiver(name="hook", kind="webhook", url="http://127.0.0.1:1/")
        async with alerts(gone) as alerter:
            alerter.send([notice()])
            await until(lambda: counted(alerter).get("again"))
            assert alerter.status()[0]["error"] == "refused"
            alerter.reload([hook(server)], {})
            await until(lambda: counted(alerter).get("sent"))


@pytest.mark.parametrize("status", [400, 401, 404, 302])
async def test_what_will_never_be_taken_is_counted_and_left(status: int) -> None:
    async with web_server(status, 200) as server, alerts(hook(server)) as alerter:
        alerter.send([notice(), notice("cleared")])
        await until(lambda: counted(alerter).get("sent"))
    assert counted(alerter) == {"refused": 1, "sent": 1}
    assert len(server.asked) == 2


async def test_a_receiver_is_not_tried_before_it_wants_to_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits = []

    async def post(*_: Any) -> Any:
        waits.append(asyncio.get_running_loop().time())
        return alerting.Outcome("again" if len(waits) < 2 else "sent", "HTTP 429", 0.05)

    async with alerts(Receiver(name="hook", kind="webhook", url="http://x/")) as alerter:
        monkeypatch.setattr(alerter._desks["hook"]._sender, "attempt", post)
        alerter.send([notice()])
        await until(lambda: counted(alerter).get("sent"))
    assert waits[1] - waits[0] >= 0.05


async def test_what_is_not_taken_in_time_is_no_news_any_more() -> None:
    timing = QUICK._replace(give_up=0.01)
    async with web_server(503) as server, alerts(hook(server), timing=timing) as alerter:
        alerter.send([notice()])
        await until(lambda: counted(alerter).get("expired"))
        (status,) = alerter.status()
        assert (status["up"], status["error"], status["failed"]) == (False, "HTTP 503", 1)
        server.answers = [(200, {})]
        alerter.send([notice("cleared")])
        await until(lambda: counted(alerter).get("sent"))


async def test_a_slow_receiver_delays_no_other() -> None:
    async with web_server() as slow, web_server() as quick:
        slow.held = asyncio.Event()
        async with alerts(hook(slow, "slow"), hook(quick, "quick")) as alerter:
            alerter.send([notice(), notice("cleared")])
            await until(lambda: len(quick.asked) == 2)
            assert counted(alerter, "slow") == {}
            slow.held.set()
            await until(lambda: counted(alerter, "slow") == {"sent": 2})


async def test_what_finds_no_room_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alerting, "MOST_WAITING", 2)
    async with web_server() as server, alerts(hook(server)) as alerter:
        alerter.send([notice(name=f"i{number}") for number in range(5)])
        await until(lambda: len(server.asked) == 2)
    assert [asked.json["incident"] for asked in server.asked] == ["i3", "i4"]
    assert counted(alerter) == {"dropped": 3, "sent": 2}


async def test_the_end_of_what_a_receiver_knows_is_told_even_when_it_became_anothers() -> None:
    async with web_server() as server, alerts(hook(server, tenant="shop")) as alerter:
        alerter.send([notice()])
        alerter.send([notice("cleared", tenant="bank", summary="of the bank", name="other")])
        await until(lambda: len(server.asked) == 1)
        await until(lambda: counted(alerter) == {"sent": 1})
        alerter.send([notice("cleared", tenant="bank", summary="of the bank")])
        await until(lambda: len(server.asked) == 2)
    over = server.asked[1].json
    assert (over["what"], over["tenant"], over["incident"]) == ("cleared", None, "4xx-1")
    assert over["summary"] == "4xx 17.6 % (37 of 210)"


async def test_an_end_waits_with_what_it_is_the_end_of() -> None:
    async with web_server(503) as server, alerts(hook(server, tenant="shop")) as alerter:
        alerter.send([notice(name="first"), notice()])
        await until(lambda: counted(alerter).get("again"))
        alerter.send([notice("cleared", name="first", tenant="bank")])
        alerter.send(
            [notice("cleared", tenant="bank"), notice("cleared", name="no", tenant="bank")]
        )
        server.answers = [(200, {})]
        await until(lambda: counted(alerter).get("sent") == 4)
    told = [(asked.json["incident"], asked.json["what"]) for asked in server.asked]
    assert told[-3:] == [("4xx-1", "opened"), ("first", "cleared"), ("4xx-1", "cleared")]


@pytest.mark.parametrize("kind", ["webhook", "alertmanager"])
async def test_what_was_told_ends_whatever_is_configured_by_then(kind: str) -> None:
    async with web_server() as server, alerts(hook(server, kind=kind)) as alerter:
        alerter.send([notice()])
        await until(lambda: counted(alerter).get("sent"))
        alerter.reload([hook(server, kind=kind, severity="page")], {})
        alerter.send([notice("cleared")])
        await until(lambda: counted(alerter).get("sent") == 2)


async def test_what_was_cut_short_is_told_when_it_runs_again() -> None:
    async with web_server() as server:
        server.held = asyncio.Event()
        alerter = Alerter([hook(server)], timing=QUICK)
        alerter.send([notice(), notice("cleared")])
        task = asyncio.create_task(alerter.run())
        await until(lambda: server.asked)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert alerter.status()[0]["waiting"] == 2
        server.held.set()
        task = asyncio.create_task(alerter.run())
        await until(lambda: counted(alerter).get("sent") == 2)
        await alerter.close()
        await task
    assert [asked.json["what"] for asked in server.asked] == ["opened", "opened", "cleared"]


async def test_open_incidents_of_an_earlier_life_are_not_told_again() -> None:
    async with web_server() as server, alerts(hook(server, tenant="shop")) as alerter:
        alerter.restore([notice(name="old").incident, notice(tenant="bank", name="no").incident])
        alerter.send([notice("cleared", name="old", tenant="bank"), notice(name="new")])
        await until(lambda: len(server.asked) == 2)
    assert [asked.json["incident"] for asked in server.asked] == ["old", "new"]


async def test_what_is_remembered_of_open_incidents_is_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(alerting, "MOST_OPEN", 2)
    alerter = Alerter([Receiver(name="hook", kind="webhook", url="http://127.0.0.1:1/")])
    alerter.restore([notice(name=f"i{number}").incident for number in range(5)])
    assert list(alerter._desks["hook"]._told) == ["i3", "i4"]


async def test_a_bug_in_one_message_ends_no_alerts(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def break_once(receiver: Receiver, secret: str, about: Notice, *rest: str) -> Any:
        if about.incident.incident == "bad":
            raise ValueError(secret)
        return message_of(receiver, secret, about, *rest)

    monkeypatch.setattr(alerting, "message_of", break_once)
    async with web_server() as server, alerts(hook(server, secret="token")) as alerter:
        alerter.send([notice(name="bad"), notice()])
        await until(lambda: counted(alerter).get("sent"))
    assert counted(alerter) == {"broken": 1, "sent": 1}
    assert SECRETS["token"] not in caplog.text


async def test_no_secret_is_in_logs_status_or_repr(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with web_server(401, 503, 200) as server:
        more = {"hidden": f"{server.url}/very-secret-path"}
        alerter = Alerter(
            [
                hook(server, secret="token"),
                hook(server, "chat", kind="slack", url="", secret="hidden"),
            ],
            SECRETS | more,
            timing=QUICK,
        )
        task = asyncio.create_task(alerter.run())
        alerter.send([notice(), notice("cleared")])
        await until(lambda: sum(alerter.counters.values()) >= 4)
        shown = f"{alerter!r} {alerter.status()} {alerter.counters} {alerter._desks}"
        await alerter.close()
        await task
    assert "receiver hook" in caplog.text
    assert "secret" not in shown + caplog.text


async def test_a_desk_without_news_waits_for_some() -> None:
    async with web_server() as server, alerts(hook(server)) as alerter:
        for place in (1, 2):
            alerter.send([notice(name=f"i{place}")])
            await until(lambda: not alerter.status()[0]["waiting"])
            assert len(server.asked) == place


# -- while it runs


async def test_other_receivers_are_taken_while_it_runs() -> None:
    async with (
        web_server(503) as first,
        web_server() as second,
        alerts(hook(first), hook(first, "gone")) as alerter,
    ):
        alerter.send([notice()])
        await until(lambda: counted(alerter, "gone").get("again"))
        alerter.reload([hook(second, secret="token"), hook(second, "new")], SECRETS)
        alerter.send([notice("cleared")])
        await until(lambda: len(second.asked) == 3)
        assert [status["name"] for status in alerter.status()] == ["hook", "new"]
    of_hook = [asked for asked in second.asked if "Authorization" in asked.headers]
    assert [asked.json["what"] for asked in of_hook] == ["opened", "cleared"]
    assert counted(alerter, "gone")["dropped"] == 1
    assert counted(alerter, "new") == {"sent": 1}


@pytest.mark.parametrize("kind", ["webhook", "alertmanager"])
async def test_what_a_reload_makes_no_concern_is_not_told(kind: str) -> None:
    async with web_server(503) as server, alerts(hook(server, kind=kind)) as alerter:
        alerter.send([notice()])
        await until(lambda: counted(alerter).get("again"))
        alerter.reload([hook(server, kind=kind, severity="page")], {})
        await until(lambda: counted(alerter).get("dropped"))


async def test_closing_tells_what_it_can_and_counts_the_rest(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(alerting, "CLOSING", 0.1)
    async with web_server() as server, web_server(503) as failing, web_server() as dead:
        dead.held = asyncio.Event()
        receivers = hook(server), hook(failing, "failing"), hook(dead, "dead")
        async with alerts(*receivers, timing=QUICK._replace(first_pause=60)) as alerter:
            alerter.send([notice(), notice("cleared")])
    assert counted(alerter) == {"sent": 2}
    assert counted(alerter, "failing") == {"left": 2}
    assert counted(alerter, "dead") == {"left": 2}
    assert "receiver dead: 2 notices are not told" in caplog.text


async def test_what_was_never_run_is_closed_at_once() -> None:
    alerter = Alerter([Receiver(name="hook", kind="webhook", url="http://127.0.0.1:1/")])
    alerter.send([notice()])
    await alerter.close()
    assert counted(alerter) == {"left": 1}
    await asyncio.wait_for(alerter.run(), 1)


async def test_a_cancelled_run_leaves_nothing_behind() -> None:
    async with web_server() as server:
        server.held = asyncio.Event()
        alerter = Alerter([hook(server)], timing=QUICK)
        task = asyncio.create_task(alerter.run())
        alerter.send([notice()])
        await until(lambda: server.asked)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await alerter.close()
    assert counted(alerter) == {"left": 1}


async def test_results_are_of_few_words() -> None:
    async with web_server(503, 400, 200) as server, alerts(hook(server)) as alerter:
        alerter.send([notice(), notice("cleared")])
        await until(lambda: counted(alerter).get("sent"))
        assert {result for _, result in alerter.counters} <= set(RESULTS)


# -- Alertmanager


async def test_alertmanager_hears_of_what_is_open_until_it_is_over() -> None:
    timing = QUICK._replace(refresh=0.02)
    async with web_server() as server:
        to = hook(server, kind="alertmanager")
        async with alerts(to, timing=timing) as alerter:
            alerter.send([notice(), notice(name="4xx-2")])
            await until(lambda: counted(alerter).get("resent", 0) >= 2)
            alerter.send([notice("cleared"), notice("cleared", name="4xx-2")])
            await until(lambda: counted(alerter).get("sent") == 4)
            seen = len(server.asked)
            await asyncio.sleep(0.06)
            assert len(server.asked) == seen
    assert server.asked[0].path == "/in/api/v2/alerts"
    first, later = server.asked[0].json[0], server.asked[seen - 3].json
    assert {alert["labels"]["incident"] for alert in later} == {"4xx-1", "4xx-2"}
    assert later[0]["endsAt"] > first["endsAt"] > first["startsAt"] == later[0]["startsAt"]
    assert server.asked[-1].json[0]["endsAt"] == "2026-01-31T09:01:00.000Z"


async def test_alertmanager_hears_at_once_of_what_an_earlier_life_left_open() -> None:
    async with web_server() as server, alerts(hook(server, kind="alertmanager")) as alerter:
        alerter.restore([notice(name="old").incident])
        await until(lambda: server.asked)
        assert server.asked[0].json[0]["labels"]["incident"] == "old"
        await until(lambda: counted(alerter) == {"resent": 1})


async def test_what_gets_worse_is_not_two_alerts() -> None:
    async with web_server() as server, alerts(hook(server, kind="alertmanager")) as alerter:
        alerter.send([notice(), notice("escalated", severity="page")])
        await until(lambda: counted(alerter).get("sent") == 2)
    opened, worse = server.asked[0].json, server.asked[1].json
    assert [alert["labels"]["severity"] for alert in worse] == ["critical", "warning"]
    assert worse[1]["labels"] == opened[0]["labels"]
    assert worse[1]["endsAt"] < worse[0]["endsAt"]


async def test_what_alertmanager_missed_it_learns_when_it_is_back() -> None:
    timing = QUICK._replace(refresh=0.02, give_up=0.01)
    async with web_server(503) as server:
        to = hook(server, kind="alertmanager")
        async with alerts(to, timing=timing) as alerter:
            alerter.send([notice()])
            await until(lambda: counted(alerter).get("expired"))
            server.answers = [(200, {})]
            await until(lambda: counted(alerter).get("resent"))
            assert server.asked[-1].json[0]["labels"]["incident"] == "4xx-1"


async def test_many_open_incidents_are_told_in_batches_and_news_between_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(alerting, "MOST_BATCH", 2)
    async with web_server() as server:
        alerter = Alerter([hook(server, kind="alertmanager")], timing=QUICK)
        alerter.restore([notice(name=f"i{number}").incident for number in range(4)])
        desk = alerter._desks["hook"]
        desk.put(notice("cleared", name="i2"))
        desk.put(notice("cleared", name="i3"))
        await desk._refresh()
        names = [[alert["labels"]["incident"] for alert in asked.json] for asked in server.asked]
        assert names == [["i2"], ["i0", "i1"], ["i3"]]
        await alerter.close()


# -- mail


def read(letter: bytes) -> Any:
    return email.message_from_bytes(letter.removesuffix(b".\r\n"), policy=email.policy.default)


async def test_a_mail_is_handed_over_with_its_headers() -> None:
    async with mail_server() as server, alerts(mail_to(server)) as alerter:
        alerter.send([notice(summary="zw\xf6lf"), notice("cleared")])
        await until(lambda: counted(alerter, "mail") == {"sent": 2})
    opened, over = map(read, server.letters)
    assert opened["Subject"] == "[warn] 4xx of trunk=acme opened"
    assert opened["From"] == "sipsidecar@example.org"
    assert opened["To"] == "noc@example.org"
    assert opened["Auto-Submitted"] == "auto-generated"
    assert opened["Date"].datetime is not None
    assert "zw\xf6lf" in opened.get_content()
    assert "Incident: 4xx-1" in opened.get_content()
    assert opened["References"] == over["References"]
    assert server.commands[1].startswith("mail FROM:<sipsidecar@example.org>")


async def test_no_header_of_a_mail_can_be_injected() -> None:
    name = "x\r\nBcc: victim@example.org\r\n\r\nbody"
    async with mail_server() as server, alerts(mail_to(server)) as alerter:
        alerter.send([notice(name=name, category=name, scope=name)])
        await until(lambda: counted(alerter, "mail") == {"sent": 1})
    letter = read(server.letters[0])
    assert letter["Bcc"] is None
    assert "Bcc" in letter["Subject"]
    assert not any("victim" in command for command in server.commands)


async def test_names_of_mails_stay_whole_however_long() -> None:
    name = "codec-change-" + "x" * 180
    async with mail_server() as server, alerts(mail_to(server)) as alerter:
        alerter.send([notice(name=name, scope="\xf6" * 200)])
        await until(lambda: counted(alerter, "mail") == {"sent": 1})
    letter = read(server.letters[0])
    assert letter["References"] == f"<{name}@example.org>"
    assert letter["Message-ID"] == f"<{name}.opened.{AT}@example.org>"
    assert letter["Subject"].startswith("[warn] 4xx of \xf6\xf6")
    assert max(map(len, server.letters[0].split(b"\r\n"))) < 998


async def test_a_user_logs_in() -> None:
    async with (
        mail_server() as server,
        alerts(mail_to(server, user="me", secret="password")) as alerter,
    ):
        alerter.send([notice()])
        await until(lambda: counted(alerter, "mail") == {"sent": 1})
    assert server.passwords == [b"\0me\0hunter2"]


async def test_a_password_is_not_sent_in_the_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alerting, "_is_near", lambda _: False)
    async with (
        mail_server() as server,
        alerts(mail_to(server, user="me", secret="password")) as alerter,
    ):
        alerter.send([notice()])
        await until(lambda: counted(alerter, "mail") == {"refused": 1})
        assert alerter.status()[0]["error"] == "no TLS"
    assert not server.passwords


async def test_a_mail_without_a_password_needs_no_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alerting, "_is_near", lambda _: False)
    async with mail_server() as server, alerts(mail_to(server)) as alerter:
        alerter.send([notice()])
        await until(lambda: counted(alerter, "mail") == {"sent": 1})


async def test_tls_is_used_where_it_is_offered_and_its_certificate_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alerting, "_is_near", lambda _: False)
    authority = Authority(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*authority.issue("mail"))
    async with mail_server(starttls=context) as server, mail_server(tls=context) as secure:
        receivers = (
            mail_to(server, user="me", secret="password"),
            mail_to(secure, name="secure", url=f"smtps://127.0.0.1:{secure.port}"),
        )
        async with alerts(*receivers) as alerter:
            alerter.send([notice()])
            await until(
                lambda: (
                    counted(alerter, "mail").get("again")
                    and counted(alerter, "secure").get("again")
                )
            )
            assert [status["error"] for status in alerter.status()] == ["tls", "tls"]
            assert not server.passwords
            monkeypatch.setenv("SSL_CERT_FILE", authority.certificate)
            await until(lambda: counted(alerter, "mail").get("sent"))
            await until(lambda: counted(alerter, "secure").get("sent"))
    assert server.passwords == [b"\0me\0hunter2"]
    assert len(server.letters) == len(secure.letters) == 1


@pytest.mark.parametrize(
    ("says", "result", "why"),
    [
        ({"AUTH": "535 no"}, "refused", "SMTP 535"),
        ({"MAIL": "550 no"}, "refused", "SMTP 550"),
        ({"RCPT": "550 no such user"}, "refused", "SMTP 550"),
        ({"RCPT": "451 grey"}, "again", "SMTP 451"),
        ({"DATA": "554 spam"}, "refused", "SMTP 554"),
        ({"SENT": "452 full"}, "again", "SMTP 452"),
        ({"HELLO": "554 go away"}, "refused", "SMTP 554"),
        ({"HELLO": "rubbish"}, "again", "SMTP -1"),
        ({"EHLO": "250 bare"}, "refused", "not supported"),
    ],
)
async def test_what_a_mail_server_says_decides_whether_it_is_asked_again(
    says: dict[str, str], result: str, why: str
) -> None:
    async with mail_server(says=says) as server:
        to = mail_to(server, user="me", secret="password")
        async with alerts(to, timing=QUICK._replace(first_pause=60, give_up=600)) as alerter:
            alerter.send([notice()])
            await until(lambda: counted(alerter, "mail") == {result: 1})
            assert alerter.status()[0]["error"] == why


async def test_a_server_that_says_goodbye_wrongly_has_taken_the_mail() -> None:
    async with (
        mail_server(says={"QUIT": "500 what?"}) as server,
        alerts(mail_to(server)) as alerter,
    ):
        alerter.send([notice()])
        await until(lambda: counted(alerter, "mail") == {"sent": 1})


async def test_one_refused_address_keeps_no_mail_from_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with mail_server() as server:
        answers = iter(["550 who?", "250 OK"])
        server._answer = lambda word, own=server._answer: (  # type: ignore[method-assign, misc]
            next(answers) if word == "RCPT" else own(word)
        )
        async with alerts(mail_to(server, to=("a@x.org", "b@x.org"))) as alerter:
            alerter.send([notice()])
            await until(lambda: counted(alerter, "mail") == {"sent": 1})
    assert "receiver mail: 1 addresses are refused" in caplog.text


async def test_a_mail_that_is_still_being_taken_is_not_sent_twice() -> None:
    async with mail_server() as server:
        server.held = asyncio.Event()
        async with alerts(mail_to(server), timing=QUICK._replace(one_try=0.2)) as alerter:
            alerter._desks["mail"]._sender._seconds = 0.01
            with pytest.MonkeyPatch.context() as patch:
                made = alerting._mail
                patch.setattr(
                    alerting, "_mail", lambda to, secret, letter, _: made(to, secret, letter, 5.0)
                )
                alerter.send([notice(), notice("cleared")])
                await until(lambda: counted(alerter, "mail").get("again", 0) >= 3)
                assert alerter.status()[0]["error"] == "timeout"
                server.held.set()
                await until(lambda: counted(alerter, "mail").get("sent") == 2)
    assert len(server.letters) == 2


async def test_a_mail_that_was_given_up_delays_the_next_only_while_it_is_being_taken() -> None:
    async with mail_server() as server:
        server.held = asyncio.Event()
        timing = QUICK._replace(give_up=0.02)
        async with alerts(mail_to(server), timing=timing) as alerter:
            alerter._desks["mail"]._sender._seconds = 0.01
            with pytest.MonkeyPatch.context() as patch:
                made = alerting._mail
                patch.setattr(
                    alerting, "_mail", lambda to, secret, letter, _: made(to, secret, letter, 5.0)
                )
                alerter.send([notice()])
                await until(lambda: counted(alerter, "mail").get("expired"))
                server.held.set()
                alerter._desks["mail"]._sender._seconds = 5.0
                alerter.send([notice("cleared")])
                await until(lambda: counted(alerter, "mail").get("sent"))
    assert [read(letter)["Subject"].split()[-1] for letter in server.letters] == ["opened", "over"]


async def test_a_host_name_with_dots_is_said_to_a_mail_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, said in (("sip.example.org", "ehlo sip.example.org"), ("sip", "ehlo [127.0.0.1]")):
        monkeypatch.setattr(socket, "gethostname", lambda name=name: name)
        async with mail_server() as server, alerts(mail_to(server)) as alerter:
            alerter.send([notice()])
            await until(lambda: counted(alerter, "mail") == {"sent": 1})
        assert server.commands[0] == said


def test_what_stays_on_this_machine() -> None:
    near = [alerting._is_near(host) for host in ("127.0.0.1", "::1", "localhost", "192.0.2.1", "x")]
    assert near == [True, True, True, False, False]
