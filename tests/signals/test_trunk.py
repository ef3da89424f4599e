from typing import Any

import pytest

from sipsidecar.calls.events import PingRecord
from sipsidecar.signals.alarms import PAGE, TREND, WARN, Alarm
from sipsidecar.signals.trunk import (
    MAX_FINGERPRINTS,
    MAX_PEERS,
    MAX_RECORDS,
    DnsAnswer,
    Peer,
    PeerError,
    PeerUri,
    Place,
    SeenCertificate,
    Trunks,
    check_peers,
    is_alive,
    parse_uri,
)

SECOND = 1_000_000
DAY = 86_400 * SECOND
NOW = 1_800_000_000 * SECOND
PLACE = Place("192.0.2.1", 5060)


def peer(name: str = "acme", **more: Any) -> Peer:
    return Peer(**({"name": name, "uri": "sip:192.0.2.1"} | more))


def ping(
    code: int | None = 200,
    *,
    at: int = NOW,
    call_id: str = "p1",
    ip: str = "192.0.2.1",
    port: int = 5060,
    transport: str | None = "udp",
    flags: tuple[str, ...] = (),
) -> PingRecord:
    return PingRecord(
        call_id=call_id,
        branch="z9hG4bKp",
        cseq=1,
        received_at=at,
        started_at=at,
        peer_ip=ip,
        peer_port=port,
        transport=transport,
        final_code=code,
        rtt_ms=None if code is None else 5.0,
        flags=flags,
    )


class Bench:
    """Trunks, and a clock of ten seconds."""

    def __init__(self, *peers: Peer) -> None:
        self.trunks = Trunks(peers or [peer()])
        self.at = NOW

    def answer(self, *codes: int | None, name: str = "acme", rtt_ms: float | None = 20.0) -> None:
        for code in codes:
            self.at += 10 * SECOND
            rtt = rtt_ms if code is not None else None
            why = "" if code is not None else "no-answer"
            self.trunks.receive_answer(name, code, rtt, self.at, why)

    def state(self, name: str = "acme") -> str:
        return next(one.state for one in self.trunks.states(self.at) if one.name == name)

    def alarms(self) -> list[Alarm]:
        return self.trunks.alarms(self.at)

    def told(self) -> list[tuple[str, str, str]]:
        return [(one.subject, one.previous, one.state) for one in self.trunks.records()]


# --------------------------------------------------------------------------------------------- peers


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("sip:trunk.example.com", PeerUri("trunk.example.com", None, "udp", False)),
        ("sip:Trunk.Example.com.:5080", PeerUri("trunk.example.com", 5080, "udp", False)),
        ("sip:ping@192.0.2.1;transport=tcp", PeerUri("192.0.2.1", None, "tcp", True)),
        ("sip:[2001:DB8::1]:5062;transport=tls", PeerUri("2001:db8::1", 5062, "tls", True)),
        ("sips:trunk.example.com", PeerUri("trunk.example.com", None, "tls", False)),
        ("sips:trunk.example.com;transport=tcp", PeerUri("trunk.example.com", None, "tls", False)),
    ],
)
def test_a_uri_says_where_and_how(uri: str, expected: PeerUri) -> None:
    assert parse_uri(uri) == expected
    assert expected.default_port == (5061 if expected.transport == "tls" else 5060)


@pytest.mark.parametrize(
    "uri",
    [
        "trunk.example.com",
        "sip:",
        "sip:a b",
        "sip:a\r\nb",
        "sip:192.0.2.256",
        "sip:192.0.2",
        "sip:[192.0.2.1]",
        "sip:[::1",
        "sip:a..b",
        "sip:-a",
        "sip:a:0",
        "sip:a:65536",
        "sip:a;transport=ws",
        "sip:a;lr",
        "sips:a;transport=udp",
        "tel:112",
        "sip:" + "a." * 130 + "a",
    ],
)
def test_a_uri_that_cannot_be_pinged_is_refused(uri: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        parse_uri(uri)
    with pytest.raises(PeerError, match="peer 'acme': "):
        check_peers([peer(uri=uri)])


def test_peers_of_every_kind_are_taken() -> None:
    check_peers(
        [
            peer(),
            peer(
                "b.1",
                trunk="acme",
                uri="sips:trunk.example.com",
                alive=("200", "4xx"),
                from_host="[2001:db8::1]",
                source="::1",
                server_name="trunk.example.com",
                dispatcher_group=1,
                dispatcher_uri="sip:trunk.example.com:5061;transport=tls",
            ),
            peer("c", dispatcher_group=0, timeout_seconds=10, down_after=1, up_after=1),
        ]
    )


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"name": ""}, "name"),
        ({"name": "other"}, "name"),
        ({"name": "a b"}, "name"),
        ({"trunk": "x" * 65}, "trunk"),
        ({"interval_seconds": 0.5}, "interval"),
        ({"interval_seconds": float("nan")}, "interval"),
        ({"timeout_seconds": 11}, "timeout"),
        ({"timeout_seconds": 0}, "timeout"),
        ({"interval_seconds": 60, "timeout_seconds": 33}, "timeout"),
        ({"down_after": 0}, "down_after"),
        ({"up_after": 21}, "up_after"),
        ({"alive": ("1xx",)}, "alive"),
        ({"alive": ("2000",)}, "alive"),
        ({"from_host": "a b"}, "from_host"),
        ({"server_name": "a\n"}, "server_name"),
        ({"source": "localhost"}, "source"),
        ({"dispatcher_group": -1}, "dispatcher_group"),
        ({"dispatcher_group": 2**31}, "dispatcher_group"),
        ({"dispatcher_group": 1, "dispatcher_uri": 'sip:a"b'}, "dispatcher_uri"),
        ({"dispatcher_group": 1, "dispatcher_uri": "sip:a|b"}, "dispatcher_uri"),
    ],
)
def test_a_peer_that_cannot_be_is_refused_and_named(more: dict[str, Any], words: str) -> None:
    with pytest.raises(PeerError, match=words):
        check_peers([peer(**more)])


def test_two_peers_of_one_name_or_one_destination_are_refused() -> None:
    with pytest.raises(PeerError, match="this name"):
        check_peers([peer(), peer()])
    with pytest.raises(PeerError, match="dispatcher destination"):
        check_peers([peer(dispatcher_group=1), peer("b", dispatcher_group=1)])
    check_peers([peer(dispatcher_group=1), peer("b", dispatcher_group=2)])


def test_there_are_no_more_peers_than_the_limit() -> None:
    with pytest.raises(PeerError, match="at most"):
        check_peers([peer(f"p{number}") for number in range(MAX_PEERS + 1)])


@pytest.mark.parametrize(
    ("alive", "code", "expected"),
    [
        ((), 200, True),
        ((), 404, True),
        ((), 500, True),
        ((), 603, True),
        ((), 408, False),
        ((), 503, False),
        ((), None, False),
        (("200",), 200, True),
        (("200",), 404, False),
        (("2xx", "405"), 405, True),
        (("2xx", "405"), 404, False),
        (("5xx",), 503, True),
    ],
)
def test_any_answer_but_408_and_503_is_alive_unless_it_is_said(
    alive: tuple[str, ...], code: int | None, expected: bool
) -> None:
    assert is_alive(peer(alive=alive), code) is expected


# -------------------------------------------------------------------------------------------- states


def test_a_peer_is_unknown_until_it_was_heard_of() -> None:
    bench = Bench()
    assert bench.state() == "unknown"
    assert bench.alarms() == []
    bench.answer(200)
    assert bench.state() == "active"
    assert bench.told() == []


def test_it_is_trying_while_it_misses_and_inactive_after_three() -> None:
    bench = Bench()
    bench.answer(200, None, None)
    assert bench.state() == "trying"
    assert bench.trunks.down() == frozenset()
    bench.answer(None)
    assert bench.state() == "inactive"
    assert bench.trunks.down() == {"acme"}
    assert bench.told() == [("acme", "trying", "inactive")]


def test_it_comes_back_after_two_good_ones() -> None:
    bench = Bench()
    bench.answer(200, None, None, None, 200)
    assert bench.state() == "inactive"
    bench.answer(200)
    assert bench.state() == "active"
    assert bench.told()[-1] == ("acme", "inactive", "active")


def test_a_single_miss_is_no_news() -> None:
    bench = Bench()
    bench.answer(200, None, 200, None, None, 200)
    assert bench.told() == []


def test_503_and_408_are_misses_and_other_errors_are_answers() -> None:
    bench = Bench()
    bench.answer(404, 503, 408, 503)
    assert bench.state() == "inactive"
    [alarm] = bench.alarms()
    assert "answers 503, 3 OPTIONS in a row" in alarm.summary
    bench.answer(483, 501)
    assert bench.state() == "active"


def test_silence_of_our_own_is_no_miss_and_no_answer() -> None:
    bench = Bench()
    bench.answer(200, None, None)
    for _ in range(5):
        bench.trunks.receive_silence("acme", "socket", bench.at)
    assert bench.state() == "trying"
    [shown] = bench.trunks.states(bench.at)
    assert (shown.silences, shown.silence, shown.missed) == (5, "socket", 2)


def test_a_peer_that_could_not_be_asked_for_long_is_unknown_and_not_down() -> None:
    bench = Bench()
    bench.answer(None, None, None)
    assert bench.trunks.down() == {"acme"}
    assert len(bench.alarms()) == 1
    bench.at += 110 * SECOND
    bench.trunks.receive_silence("acme", "socket", bench.at)
    assert bench.state() == "inactive"
    bench.at += SECOND
    [alarm] = bench.alarms()
    assert not alarm.active
    assert bench.state() == "unknown"
    assert bench.trunks.down() == frozenset()
    last = bench.trunks.records()[-1]
    assert (last.previous, last.state) == ("inactive", "unknown")
    assert last.text == "nothing was heard for 110 s socket"
    assert bench.alarms() == []


def test_a_disabled_peer_is_silent_until_it_is_enabled() -> None:
    bench = Bench()
    bench.answer(None, None, None)
    assert len(bench.alarms()) == 1
    bench.trunks.disable("acme", bench.at)
    assert bench.trunks.is_disabled("acme")
    assert (bench.state(), bench.trunks.down()) == ("disabled", frozenset())
    assert bench.trunks.down_trunks() == frozenset()
    [alarm] = bench.alarms()
    assert not alarm.active
    bench.trunks.enable("acme", bench.at)
    bench.trunks.enable("acme", bench.at)
    assert bench.state() == "inactive"
    assert bench.told() == [
        ("acme", "trying", "inactive"),
        ("acme", "inactive", "disabled"),
        ("acme", "disabled", "inactive"),
    ]
    with pytest.raises(LookupError):
        bench.trunks.disable("nobody", NOW)


def test_flags_are_written_as_kamailio_writes_them() -> None:
    bench = Bench(peer(), peer("b", probe=False))
    flags = [one.flags for one in bench.trunks.states(NOW)]
    assert flags == ["?P", "?X"]
    bench.answer(200)
    assert bench.trunks.states(bench.at)[0].flags == "AP"
    bench.answer(None)
    assert bench.trunks.states(bench.at)[0].flags == "TP"
    bench.answer(None, None)
    assert bench.trunks.states(bench.at)[0].flags == "IP"
    bench.trunks.disable("acme", bench.at)
    assert bench.trunks.states(bench.at)[0].flags == "DX"


# ------------------------------------------------------------------------------------ captured OPTIONS


def test_captured_options_decide_where_none_are_sent() -> None:
    bench = Bench(peer(probe=False))
    bench.trunks.receive_ping(ping(200, at=NOW), NOW)
    assert bench.state() == "active"
    for turn in (10, 20, 30):
        at = NOW + turn * SECOND
        bench.trunks.receive_ping(ping(None, at=at, call_id=f"m{turn}"), at + 34 * SECOND)
    bench.at = NOW + 64 * SECOND
    assert bench.state() == "inactive"
    [alarm] = bench.alarms()
    assert alarm.call_ids == ("m30", "m20", "m10")
    assert alarm.evidence["acme"]["decides"] == "captured"
    assert alarm.since == NOW + 10 * SECOND


def test_captured_misses_beside_good_probes_are_evidence_and_no_more() -> None:
    bench = Bench()
    bench.answer(200)
    for turn in range(5):
        bench.trunks.receive_ping(ping(None, at=NOW + turn), bench.at)
    assert bench.state() == "active"
    [shown] = bench.trunks.states(bench.at)
    assert (shown.answered, shown.missed, shown.seen_answered, shown.seen_missed) == (1, 0, 0, 5)


def test_an_alarm_says_that_others_still_get_answers() -> None:
    bench = Bench()
    bench.trunks.receive_ping(ping(200, at=NOW + 25 * SECOND), NOW + 27 * SECOND)
    bench.answer(None, None, None)
    [alarm] = bench.alarms()
    assert alarm.evidence["acme"]["captured_up"] is True
    assert alarm.evidence["acme"]["captured_code"] == 200


def test_an_answer_to_us_does_not_decide_where_captured_ones_do() -> None:
    bench = Bench(peer(probe=False))
    bench.answer(200)
    assert bench.state() == "unknown"


def test_our_own_options_seen_in_hep_are_not_counted_again() -> None:
    bench = Bench(peer(probe=False))
    bench.trunks.own_call_ids = "@ab12.sipsidecar"
    bench.trunks.receive_ping(ping(200, call_id="x@ab12.sipsidecar"), NOW)
    bench.trunks.receive_ping(ping(200, call_id="x@cd34.sipsidecar"), NOW)
    assert bench.trunks.own_seen == 1
    assert bench.trunks.states(NOW)[0].seen_answered == 1


@pytest.mark.parametrize("other", [{"ip": "192.0.2.2"}, {"port": 5080}, {"transport": "tls"}])
def test_options_to_another_address_port_or_transport_are_strange(other: dict[str, Any]) -> None:
    bench = Bench(peer(probe=False))
    bench.trunks.receive_ping(ping(200, **other), NOW)
    assert (bench.state(), bench.trunks.strange) == ("unknown", 1)


def test_options_of_unknown_transport_count() -> None:
    bench = Bench(peer(probe=False))
    bench.trunks.receive_ping(ping(200, transport=None), NOW)
    assert bench.state() == "active"


def test_options_that_nobody_waited_for_are_nothing() -> None:
    bench = Bench(peer(probe=False))
    for turn in range(4):
        bench.trunks.receive_ping(ping(None, at=NOW + turn, flags=("interrupted",)), NOW)
    assert bench.state() == "unknown"


def test_peers_of_one_address_all_hear_of_its_options() -> None:
    bench = Bench(peer(probe=False), peer("b", probe=False))
    bench.trunks.receive_ping(ping(200), NOW)
    assert bench.state() == bench.state("b") == "active"


def test_when_nobody_sends_options_any_more_the_state_is_unknown() -> None:
    bench = Bench(peer(probe=False), peer("b"))
    bench.trunks.receive_ping(ping(200), NOW)
    bench.at = NOW + 200 * SECOND
    bench.alarms()
    assert bench.state() == "unknown"
    # What was only evidence is forgotten as well.
    assert bench.trunks._peers["b"].seen.last is None


# -------------------------------------------------------------------------------------------- alarms


def test_a_down_trunk_is_one_alarm_that_holds_and_ends_once() -> None:
    bench = Bench()
    bench.answer(200, None, None, None)
    [alarm] = bench.alarms()
    assert alarm.key == ("trunk", "trunk-down", (("trunk", "acme"),))
    assert (alarm.active, alarm.severity, alarm.count, alarm.total) == (True, PAGE, 1, 1)
    assert alarm.since == NOW + 20 * SECOND
    assert alarm.summary == ("1 of 1 down: acme no-answer, 3 OPTIONS in a row since 08:00:20 UTC")
    assert alarm.evidence["acme"]["last_good_at"] == NOW + 10 * SECOND
    bench.answer(None)
    [again] = bench.alarms()
    assert again.since == alarm.since
    bench.answer(200, 200)
    [over] = bench.alarms()
    assert (over.active, over.key, over.at) == (False, alarm.key, bench.at)
    assert bench.alarms() == []


def test_nodes_of_a_trunk_are_one_alarm_which_pages_when_all_are_down() -> None:
    bench = Bench(
        peer("a", trunk="acme"), peer("b", trunk="acme", severity="warn"), peer("c", trunk="acme")
    )
    for name in ("a", "b"):
        bench.answer(None, None, None, name=name)
    [alarm] = bench.alarms()
    assert (alarm.severity, alarm.count, alarm.total) == (WARN, 2, 3)
    assert bench.trunks.down() == {"a", "b"}
    assert bench.trunks.down_trunks() == frozenset()
    since = alarm.since
    bench.answer(None, None, None, name="c")
    [alarm] = bench.alarms()
    assert (alarm.severity, alarm.count, alarm.since) == (PAGE, 3, since)
    assert bench.trunks.down_trunks() == {"acme"}


def test_a_trunk_of_little_weight_is_only_recorded() -> None:
    bench = Bench(peer(severity="trend"), peer("b", trunk="acme", severity="trend"))
    bench.answer(None, None, None)
    assert bench.alarms()[0].severity == TREND


def test_an_event_says_who_why_and_what_it_was() -> None:
    bench = Bench(peer("a1", trunk="acme"))
    bench.answer(200, None, None, None, name="a1")
    [event] = bench.trunks.records()
    assert (event.kind, event.subject, event.trunk, event.scope) == (
        "trunk", "a1", "acme", "trunk=acme"
    )  # fmt: skip
    assert event.at == event.received_at == bench.at
    assert event.severity == PAGE
    assert event.text == "no-answer, 3 OPTIONS in a row since 08:00:20 UTC"
    bench.answer(200, 200, name="a1", rtt_ms=12.4)
    [back] = bench.trunks.records()
    assert back.text == "answers 200 in 12 ms, 2 OPTIONS in a row"
    assert back.severity is None
    assert back.event != event.event
    bench.answer(None, None, None, name="a1")
    bench.answer(200, 200, name="a1", rtt_ms=None)
    assert bench.trunks.records()[-1].text == "answers 200, 2 OPTIONS in a row"


def test_records_that_nobody_takes_are_bounded_and_counted() -> None:
    bench = Bench(peer(down_after=1, up_after=1))
    bench.answer(*([None, 200] * (MAX_RECORDS // 2 + 5)))
    assert len(bench.trunks.records()) == MAX_RECORDS
    assert bench.trunks.records_lost == 10


def test_destinations_that_are_down_are_those_of_the_dispatcher() -> None:
    bench = Bench(
        peer("a", dispatcher_group=1),
        peer("b", dispatcher_group=2, dispatcher_uri="sip:b.example.com"),
        peer("c"),
    )
    for name in ("a", "b", "c"):
        bench.answer(None, None, None, name=name)
    assert bench.trunks.out() == {(1, "sip:192.0.2.1"), (2, "sip:b.example.com")}


# -------------------------------------------------------------------------------------- certificates


def seen(days: float | None = 90, **more: Any) -> SeenCertificate:
    given: dict[str, Any] = {
        "place": PLACE,
        "not_before": NOW - DAY,
        "not_after": None if days is None else NOW + int(days * DAY),
        "subject": "trunk.example.com",
        "issuer": "Authority",
        "fingerprint": "aa",
        "verified": True,
    }
    return SeenCertificate(**(given | more))


def certificate_alarm(*shown: SeenCertificate, at: int = NOW) -> Alarm | None:
    trunks = Trunks([peer(uri="sips:192.0.2.1:5060")])
    for one in shown:
        trunks.receive_certificate("acme", one, NOW)
    alarms = trunks.alarms(at)
    assert len(alarms) <= 1
    return alarms[0] if alarms else None


def test_a_good_certificate_is_no_alarm() -> None:
    assert certificate_alarm(seen()) is None


@pytest.mark.parametrize(
    ("shown", "severity", "words"),
    [
        (seen(13.9), WARN, "acme: certificate ends in 13.9 days, 2027-01-29"),
        (seen(-1), PAGE, "acme: certificate expired 2027-01-14"),
        (seen(-1, verified=False, why="expired"), PAGE, "acme: certificate expired 2027-01-14"),
        (seen(verified=False, why="name"), WARN, "acme: certificate not verified: name"),
        (
            seen(verified=False, why="self-signed"),
            WARN,
            "acme: certificate not verified: self-signed",
        ),
        (seen(None, verified=False, why="broken"), WARN, "acme: certificate not verified: broken"),
        (
            seen(verified=None, why="ca"),
            WARN,
            "acme: certificate not verified: the file of authorities cannot be read",
        ),
        (
            seen(3, verified=False, why="untrusted"),
            WARN,
            "acme: certificate not verified: untrusted; acme: certificate ends in 3.0 days, 2027-01-18",
        ),
    ],
)
def test_what_is_wrong_with_a_certificate_is_said(
    shown: SeenCertificate, severity: str, words: str
) -> None:
    alarm = certificate_alarm(shown)
    assert alarm is not None
    assert (alarm.source, alarm.category, alarm.severity) == (
        "certificate",
        "certificate",
        severity,
    )
    assert alarm.summary == words
    assert alarm.evidence["acme"]["192.0.2.1:5060"]["subject"] == "trunk.example.com"
    assert alarm.evidence["acme"]["192.0.2.1:5060"]["expected"] == "192.0.2.1"


def test_a_certificate_comes_near_its_end_without_being_shown_again() -> None:
    assert certificate_alarm(seen(20)) is None
    assert certificate_alarm(seen(20), at=NOW + 7 * DAY) is not None


def test_a_renewed_certificate_ends_the_alarm_and_is_told() -> None:
    trunks = Trunks([peer(uri="sips:192.0.2.1:5060")])
    trunks.receive_certificate("acme", seen(3), NOW)
    assert trunks.alarms(NOW)[0].active
    trunks.receive_certificate("acme", seen(90, fingerprint="bb"), NOW)
    [over] = trunks.alarms(NOW)
    assert not over.active
    [event] = trunks.records()
    assert (event.state, event.text) == ("certificate", "another certificate until 2027-04-15")
    trunks.receive_certificate("acme", seen(None, fingerprint="cc"), NOW)
    assert trunks.records()[0].text == "another certificate"
    [shown] = trunks.states(NOW)
    assert shown.certificate_days is None


def test_certificates_of_machines_that_take_turns_are_told_once() -> None:
    trunks = Trunks([peer(uri="sips:192.0.2.1:5060")])
    for fingerprint in ("aa", "bb", "cc") * 3:
        trunks.receive_certificate("acme", seen(90, fingerprint=fingerprint), NOW)
    assert len(trunks.records()) == 2
    for number in range(MAX_FINGERPRINTS):
        trunks.receive_certificate("acme", seen(90, fingerprint=str(number)), NOW)
    trunks.receive_certificate("acme", seen(90, fingerprint="aa"), NOW)
    assert len(trunks.records()) == MAX_FINGERPRINTS + 1


def test_the_certificate_that_ends_first_is_shown() -> None:
    trunks = Trunks([peer(uri="sips:trunk.example.com:5061")])
    places = (Place("192.0.2.1", 5061), Place("192.0.2.2", 5061))
    trunks.receive_dns("acme", [DnsAnswer(resolver="a", outcome="ok", places=places)], NOW)
    for place, days in zip(places, (90, 30), strict=True):
        trunks.receive_certificate("acme", seen(days, place=place), NOW)
    [shown] = trunks.states(NOW)
    assert shown.certificate_days == 30
    assert shown.places == ("192.0.2.1:5061", "192.0.2.2:5061")
    # One of an address that is gone is forgotten.
    trunks.receive_dns("acme", [DnsAnswer(resolver="a", outcome="ok", places=places[:1])], NOW)
    assert trunks.states(NOW)[0].certificate_days == 90


# ----------------------------------------------------------------------------------------------- DNS


def dns(*ips: str, resolver: str = "a", port: int = 5060) -> DnsAnswer:
    return DnsAnswer(
        resolver=resolver, outcome="ok", places=tuple(Place(ip, port) for ip in ips), ttl=0
    )


NAMED = peer(uri="sip:trunk.example.com", probe=False)


def test_a_literal_address_is_where_its_uri_says() -> None:
    trunks = Trunks([peer(), peer("b", uri="sip:[2001:db8::1];transport=tls")])
    assert trunks.places("acme") == (PLACE,)
    assert trunks.places("b") == (Place("2001:db8::1", 5061),)
    assert trunks.states(NOW)[1].places == ("[2001:db8::1]:5061",)


def test_captured_options_are_known_by_the_addresses_of_a_name() -> None:
    trunks = Trunks([NAMED])
    trunks.receive_ping(ping(200), NOW)
    assert trunks.strange == 1
    trunks.receive_dns("acme", [dns("192.0.2.1")], NOW)
    trunks.receive_ping(ping(200), NOW)
    assert trunks.states(NOW)[0].state == "active"
    trunks.receive_dns("acme", [dns("192.0.2.2")], NOW)
    trunks.receive_ping(ping(200), NOW)
    assert trunks.strange == 2


def test_what_is_odd_in_dns_is_one_alarm_with_what_each_resolver_said() -> None:
    trunks = Trunks([NAMED, peer("b", trunk="acme")])
    trunks.receive_dns("acme", [dns("192.0.2.1")], NOW)
    nothing = DnsAnswer(resolver="b", outcome="nxdomain")
    for turn in (1, 2):
        trunks.receive_dns("acme", [dns("192.0.2.1"), nothing], NOW + turn * 60 * SECOND)
    [alarm] = trunks.alarms(NOW + 120 * SECOND)
    assert alarm.key == ("dns", "dns", (("trunk", "acme"),))
    assert alarm.severity == WARN
    assert alarm.summary == "acme: 2 resolvers disagree: a 192.0.2.1; b none"
    assert alarm.evidence == {
        "acme": {
            "host": "trunk.example.com",
            "addresses": ["192.0.2.1:5060"],
            "resolvers": {"a": ["192.0.2.1:5060"], "b": "nxdomain"},
        }
    }
    assert trunks.states(NOW + 120 * SECOND)[0].problems == (
        "2 resolvers disagree: a 192.0.2.1; b none",
    )
    trunks.receive_dns("acme", [dns("192.0.2.1")], NOW + 180 * SECOND)
    [over] = trunks.alarms(NOW + 180 * SECOND)
    assert not over.active


def test_a_change_of_addresses_is_in_the_timeline() -> None:
    trunks = Trunks([NAMED])
    trunks.receive_dns("acme", [dns("192.0.2.1")], NOW)
    assert trunks.records() == []
    trunks.receive_dns("acme", [dns("198.51.100.1")], NOW + SECOND)
    [event] = trunks.records()
    assert (event.state, event.text) == (
        "dns", "addresses changed: 192.0.2.1 before, 198.51.100.1 now"
    )  # fmt: skip


def test_addresses_of_a_trunk_are_those_of_all_its_peers_or_unknown() -> None:
    trunks = Trunks([NAMED, peer("b", trunk="acme", uri="sip:192.0.2.9"), peer("solo")])
    assert trunks.addresses() == {"solo": {"192.0.2.1"}}
    trunks.receive_dns("acme", [dns("192.0.2.1", "192.0.2.2")], NOW)
    assert trunks.addresses()["acme"] == {"192.0.2.1", "192.0.2.2", "192.0.2.9"}
    many = [f"198.51.100.{number}" for number in range(20)]
    trunks.receive_dns("acme", [dns(*many)], NOW)
    assert "acme" not in trunks.addresses()
