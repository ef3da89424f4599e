"""Traffic of days with what may go wrong in it, to the findings that are told of it."""

import math
import random
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from sipsidecar.calls.events import AttemptRecord, CallRecord, Setup, Traits
from sipsidecar.signals.alarms import SEVERITIES, Alarm, Scope
from sipsidecar.signals.shares import DAY, HOUR, MINUTE
from sipsidecar.signals.snapshot import AgentFigures
from sipsidecar.signals.traffic import CHECKS, OTHER_SOURCES, Traffic, TrafficSettings

T0 = 1_795_000_000_000_000 // DAY * DAY
ACME: Scope = (("trunk", "acme"), ("direction", "outbound"))
BELL: Scope = (("trunk", "bell"), ("direction", "outbound"))
TENANT: Scope = (("tenant", "shop"),)
ADDRESSES = {
    "acme": tuple(f"198.51.100.{number}" for number in range(1, 7)),
    "bell": ("203.0.113.1", "203.0.113.2"),
}
NORMAL: dict[str, Any] = {
    "codecs": {"PCMU": 0.55, "PCMA": 0.43, "G729": 0.02},
    "addresses": ADDRESSES["acme"],
    "tls": 0.97,
    "srtp": 0.9,
    "transcoded": 0.1,
    "differs": 0.05,
    "remote": 0.05,
    "diverted": 0.1,
    "identity": {"A": 0.7, "B": 0.15, "C": 0.05, "missing": 0.1},
    "origin": 0.01,
    "stale": 0.01,
    "refused": 0.002,
    "hosts": ("a.example", "b.example"),
    "twice": 0.001,
    "round": 0.002,
    "cut": 0.0,
    "silent": False,
    "skew": 0.01,
}


class Days:
    """Two trunks with the same calls; what is planted is planted at acme."""

    def __init__(self, seed: int = 1, per_day: int = 10_000) -> None:
        self.random = random.Random(seed)
        self.traffic = Traffic({1: "edge"})
        self.per_day = per_day
        self.now = T0
        self.calls = 0
        self.how = dict(NORMAL)
        self.agents: dict[int, tuple[int, float]] = {1: (0, 0.0), 2: (0, 0.0)}
        self.found: list[Alarm] = []

    def _chance(self, name: str, how: dict[str, Any]) -> bool:
        return self.random.random() < float(how[name])

    def _pick(self, shares: dict[str, float]) -> str:
        return self.random.choices(list(shares), list(shares.values()))[0]

    def _setup(self, trunk: str) -> Setup:
        chance = self.random
        how = self.how if trunk == "acme" else {**NORMAL, "addresses": ADDRESSES["bell"]}
        self.calls += 1
        common: dict[str, Any] = {
            "call_id": str(self.calls), "from_tag": "f", "received_at": self.now,
            "started_at": self.now, "tenant": "shop", "direction": "outbound",
        }  # fmt: skip
        answered = chance.random() < 0.65
        codec = self._pick(how["codecs"]) if answered else None
        code = 438 if self._chance("refused", how) else 200 if answered else 486
        other = "bell" if trunk == "acme" else "acme"
        trunks = [other, trunk] if chance.random() < 0.03 else [trunk]
        trunks = [trunk, other, trunk] if self._chance("round", how) else trunks
        transport = "tls" if self._chance("tls", how) else "udp"
        identity = self._pick(how["identity"])
        said = Traits(
            max_forwards=70,
            passed_twice=self._chance("twice", how),
            asserted_differs=self._chance("differs", how),
            asserted_host=chance.choice(how["hosts"]),
            remote_party_differs=self._chance("remote", how),
            diverted=self._chance("diverted", how),
            identity=identity,
            origin_differs=None if identity == "missing" else self._chance("origin", how),
            identity_age_seconds=90 if self._chance("stale", how) else 2,
            secure_asked=chance.random() < 0.5,
            media="RTP/SAVP" if self._chance("srtp", how) else "RTP/AVP",
        )
        attempts = [
            AttemptRecord(
                **common, branch=f"b{place}", trunk=each, transport=transport,
                peer_ip=chance.choice(how["addresses"] if each == trunk else ADDRESSES[each]),
                answered=answered and place == len(trunks), codec_negotiated=codec,
                final_code=code if place == len(trunks) else 503,
            )
            for place, each in enumerate(trunks, 1)
        ]  # fmt: skip
        call = CallRecord(
            **common, trunk=trunk, answered=answered, final_code=code, transport="udp",
            codec_negotiated="opus" if codec and self._chance("transcoded", how) else codec,
            from_user=f"+49{chance.randrange(3000)}", ruri_user=f"{chance.randrange(2000)}",
        )  # fmt: skip
        sent = msgspec.structs.replace(said, vias=2, max_forwards=69)
        traits = [("", said), *((one.branch, sent) for one in attempts)]
        return Setup(call, tuple(attempts), tuple(traits))

    def _ended(self, call: CallRecord) -> CallRecord:
        cut = call.trunk == "acme" and self._chance("cut", self.how)
        talk = 32_050.0 if cut else 1000 * math.exp(self.random.gauss(4.2, 1.1))
        side = "callee" if cut or self.random.random() < 0.6 else "caller"
        flags = ("no_ack",) if cut else ()
        return msgspec.structs.replace(
            call, ended=True, talk_ms=talk, released_by=side, flags=flags
        )

    def minute(self) -> list[Alarm]:
        chance = self.random
        phase = 2 * math.pi * (self.now % DAY) / DAY
        mean = self.per_day / 1440 * (1 + 0.8 * math.sin(phase - 1.9))
        count = max(0, round(chance.gauss(mean, math.sqrt(mean))))
        for _ in range(count):
            setup = self._setup("acme" if chance.random() < 0.6 else "bell")
            self.traffic.receive_setup(setup, self.now)
            if setup.call.answered:
                self.traffic.receive_call(self._ended(setup.call), self.now)
        self.now += MINUTE
        figures = []
        for number, (packets, age) in self.agents.items():
            spoken = count if number == 1 else chance.random() < 0.3
            if number == 1 and self.how["silent"]:
                spoken = 0
            last = chance.random() * 60 / (spoken + 1) if spoken else age + 60
            self.agents[number] = packets + spoken, last
            skew = self.how["skew"] if number == 1 else 0.01
            figures.append(
                AgentFigures(number, f"192.0.2.{number}", None, packets + spoken, last, skew, None)
            )
        alarms = self.traffic.look(self.now, figures)
        self.found += alarms
        return alarms

    def run(self, days: float) -> list[Alarm]:
        return [alarm for _ in range(int(days * 1440)) for alarm in self.minute()]

    def until(self, source: str, *, active: bool) -> Alarm:
        for _ in range(2000):
            for alarm in self.minute():
                if alarm.source == source and alarm.active is active:
                    return alarm
        raise AssertionError(f"no {source}")


def test_two_days_of_traffic_as_ever_raise_nothing() -> None:
    days = Days(per_day=3000)
    assert not days.run(2)
    assert days.calls > 5000
    assert not any(days.traffic.folded.values())


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_seven_days_of_traffic_as_ever_raise_nothing(seed: int) -> None:
    days = Days(seed)
    assert not days.run(7)
    assert days.calls > 65_000


def seen(alarm: Alarm, key: str) -> Any:
    return alarm.evidence[key]


PLANTED: list[tuple[dict[str, Any], dict[str, int]]] = [
    (
        {
            "codecs": {"PCMU": 0.37, "PCMA": 0.33, "G729": 0.3},
            "tls": 0.0,
            "differs": 0.5,
            "origin": 0.5,
            "identity": {"B": 0.9, "missing": 0.1},
            "cut": 0.4,
            "silent": True,
        },
        {
            "codec-change": 200,
            "transport-downgrade": 80,
            "secure-asked": 150,
            "caller-id": 150,
            "attestation-number": 150,
            "attestation-drop": 150,
            "early-cut": 400,
            "agent-silent edge": 1000,
        },
    ),
    (
        {
            "codecs": {"G729": 1.0},
            "tls": 0.5,
            "remote": 0.5,
            "stale": 0.5,
            "identity": {"A": 0.5, "missing": 0.5},
        },
        {
            "codec-change": 100,
            "transport-downgrade": 250,
            "secure-asked": 300,
            "caller-id": 200,
            "attestation-stale": 200,
            "attestation-drop": 300,
        },
    ),
    (
        {
            "codecs": {"x-odd": 1.0},
            "transcoded": 0.8,
            "srtp": 0.0,
            "diverted": 0.6,
            "refused": 0.3,
            "twice": 0.5,
            "hosts": ("a.example", "evil.example"),
            "skew": -2.0,
        },
        {
            "codec-change": 100,
            "transcoding": 150,
            "media-downgrade": 150,
            "diversion": 150,
            "attestation-refused": 150,
            "failover-loop": 150,
            "caller-domain": 150,
            "clock-skew edge": 100,
        },
    ),
    (
        {"addresses": (*ADDRESSES["acme"], "198.51.100.99"), "round": 0.5},
        {"destination-new": 300, "failover-loop": 150},
    ),
]


def scope_of(source: str) -> Scope:
    if source.split(" ", 1)[0] in OTHER_SOURCES[1:]:
        return ()
    return TENANT if source in ("failover-loop", "caller-domain") else ACME


@pytest.mark.parametrize(("planted", "within"), PLANTED, ids=range(len(PLANTED)))
def test_what_is_planted_is_found_within_so_many_calls_and_ends(
    planted: dict[str, Any], within: dict[str, int]
) -> None:
    days = Days(per_day=20_000)
    assert not days.run(0.25)
    before = days.calls
    days.how |= planted
    first: dict[str, tuple[Alarm, int]] = {}
    for _ in range(100):
        alarms = days.minute()
        assert all(alarm.active for alarm in alarms)  # what holds does not end
        told = {alarm.source: alarm for alarm in alarms}
        assert len(told) == len(alarms)
        assert first.keys() <= told.keys()  # and is said again
        for alarm in alarms:
            first.setdefault(alarm.source, (alarm, days.calls - before))
    assert {source for source, (_, calls) in first.items() if calls <= within[source]} == {*within}
    for source, (alarm, _) in first.items():
        assert alarm.scope == scope_of(source)
        assert alarm.severity in SEVERITIES
        assert alarm.since is not None
        assert T0 < alarm.since <= alarm.at
        assert len(alarm.call_ids) == (5 if alarm.scope else 0)
        assert alarm.evidence
        msgspec.json.encode(alarm.evidence)
    days.how = dict(NORMAL)
    healed = days.run(0.25)
    ends = [alarm.key for alarm in healed if not alarm.active]
    assert sorted(ends) == sorted(alarm.key for alarm, _ in first.values())


def test_the_words_of_an_alarm_are_ours_and_have_numbers() -> None:
    days = Days(per_day=20_000)
    days.run(0.2)
    days.how |= {"codecs": {"PCMU": 0.3, "G729": 0.7}, "transcoded": 0.0}
    alarm = days.until("codec-change", active=True)
    assert alarm.category == "codec-change"
    assert alarm.summary.startswith("codec G729: ")
    assert f"({alarm.count} of {alarm.total} calls) of trunk=acme,direction=outbound;" in (
        alarm.summary
    )
    assert alarm.value is not None
    assert alarm.expected is not None
    assert alarm.value > 50
    assert alarm.expected < 10
    days.run(0.05)
    alarm = days.until("codec-change", active=True)
    mix = seen(alarm, "percent_in_the_last_hour")
    assert mix["G729"] == pytest.approx(70, abs=10)
    assert seen(alarm, "normal_percent")["G729"] == pytest.approx(2, abs=1)


def test_a_codec_nobody_knows_by_name_is_not_named() -> None:
    days = Days(per_day=20_000)
    days.run(0.2)
    days.how |= {"codecs": {"\x1b[31m": 1.0}}
    assert days.until("codec-change", active=True).summary.startswith("codec other: ")


def test_the_attestation_that_is_told_is_the_gravest() -> None:
    days = Days(per_day=20_000)
    days.run(0.2)
    days.how |= {"identity": {"missing": 1.0}}
    for _ in range(30):
        days.minute()
    assert days.until("attestation-drop", active=True).summary.startswith("not signed: ")


def test_masked_identities_are_unknown_and_no_drop() -> None:
    days = Days(per_day=20_000)
    days.run(0.2)
    days.how |= {"identity": {"unreadable": 1.0}}
    assert not days.run(0.2)


def test_a_better_attestation_is_no_drop() -> None:
    days = Days(per_day=20_000)
    days.how |= {"identity": {"missing": 1.0}}
    days.run(0.2)
    days.how |= {"identity": {"B": 1.0}}
    assert not [one for one in days.run(0.2) if one.source == "attestation-drop"]


def test_a_new_address_is_shown_with_its_answers() -> None:
    days = Days(per_day=20_000)
    days.run(0.2)
    days.how |= {"addresses": ("198.51.100.1", "2001:db8::9")}
    alarm = days.until("destination-new", active=True)
    addresses = seen(alarm, "addresses")
    new = addresses["2001:db8::9"]
    assert new["new"]
    assert new["calls"] >= 10
    assert 20 < new["asr_percent"] < 100
    assert not addresses["198.51.100.1"]["new"]
    assert seen(alarm, "seen_in_the_last_hour").keys() <= {"2001:db8::9"}


def polls(days: Days, *addresses: str) -> Iterator[Alarm]:
    for _ in range(150):
        days.traffic.receive_addresses("acme", frozenset(addresses), days.now)
        yield from days.minute()


def test_an_address_that_left_dns_and_takes_calls_is_drift() -> None:
    days = Days(per_day=6000)
    mapped = "::ffff:198.51.100.1"
    for _ in range(5):
        assert not list(polls(days, mapped, *ADDRESSES["acme"][1:]))
    left = days.now - MINUTE
    found = list(polls(days, *ADDRESSES["acme"][1:]))
    assert {(one.source, one.scope) for one in found} == {("destination-unlisted", ACME)}
    assert found[0].at - left >= HOUR
    shown = seen(found[-1], "addresses")["198.51.100.1"]
    assert (shown["in_dns"], shown["left_dns_at"]) == (False, left)
    back = list(polls(days, *ADDRESSES["acme"]))
    assert [one.active for one in back[-3:]].count(False) == 1


def test_an_address_that_dns_never_gave_and_that_always_took_calls_is_as_ever() -> None:
    days = Days(per_day=6000)
    for _ in range(8):
        assert not list(polls(days, *ADDRESSES["acme"][2:]))


def test_an_address_that_was_idle_for_a_week_is_shown_so() -> None:
    traffic, idle = Traffic(), "192.0.2.9"

    def send(address: str, at: int, times: int = 250) -> list[Alarm]:
        common: dict[str, Any] = {
            "call_id": "c", "from_tag": "f", "received_at": at, "started_at": at, "trunk": "acme",
        }  # fmt: skip
        attempt = AttemptRecord(**common, branch="b", peer_ip=address)
        for _ in range(times):
            traffic.receive_setup(Setup(CallRecord(**common), (attempt,)), at)
        return traffic.look(at + MINUTE, ())

    traffic.receive_addresses("acme", frozenset({"192.0.2.1", "sbc.example"}), T0)
    assert not send(idle, T0, times=1)
    for day in range(9):
        assert not send("192.0.2.1", T0 + day * DAY)
    (alarm,) = send(idle, T0 + 9 * DAY)
    assert (alarm.source, alarm.scope) == ("destination-new", (("trunk", "acme"),))
    shown = seen(alarm, "addresses")[idle]
    assert (shown["idle_days_before"], shown["asr_percent"]) == (9, 0.0)


def test_two_trunks_are_two_alarms_and_one_is_not_the_other() -> None:
    days = Days(per_day=20_000)
    days.run(0.2)
    days.how |= {"tls": 0.0}
    days.until("transport-downgrade", active=True)
    days.run(0.02)
    assert {one.scope for one in days.found if one.source == "transport-downgrade"} == {ACME}
    assert BELL not in {one.scope for one in days.found}


def call(**more: Any) -> CallRecord:
    return CallRecord(call_id="c", from_tag="f", received_at=T0, started_at=T0, **more)


def fed(*setups: Setup, minutes: int = 1) -> Traffic:
    traffic = Traffic(settings=TrafficSettings(arm_calls=100))
    for minute in range(minutes):
        for setup in setups:
            traffic.receive_setup(setup, T0 + minute * MINUTE)
        traffic.look(T0 + (minute + 1) * MINUTE, ())
    return traffic


def test_without_cohorts_findings_are_of_all_calls() -> None:
    traffic = fed(*[Setup(call(transport="tls"), ())] * 150)
    bad = Setup(call(transport="udp"), ())
    found = []
    for minute in range(1, 10):
        for _ in range(20):
            traffic.receive_setup(bad, T0 + minute * MINUTE)
        found += traffic.look(T0 + (minute + 1) * MINUTE, ())
    assert {(one.source, one.scope) for one in found} == {("transport-downgrade", ())}
    assert " of all; " in found[0].summary


def test_a_call_of_which_only_a_switch_told_says_nothing() -> None:
    traffic = fed(Setup(call(answered=True, final_origin="esl"), ()), minutes=3)
    watches = {source: watch.share(()) for source, watch in traffic._watches.items()}
    assert {source for source, share in watches.items() if share} == {"failover-loop"}


def test_the_ingress_hop_counts_where_no_attempt_is_at_its_trunk() -> None:
    attempt = AttemptRecord(
        call_id="c", from_tag="f", branch="b", received_at=T0, started_at=T0, trunk="out",
        transport="tls", final_code=200,
    )  # fmt: skip
    inside = fed(Setup(call(trunk="in", transport="udp"), (attempt,)))
    watch = inside._watches["transport-downgrade"]
    assert watch.share((("trunk", "in"),)) is not None
    assert watch.share((("trunk", "out"),)) is not None
    same = fed(Setup(call(trunk="out", transport="udp"), (attempt,)))
    assert same._watches["transport-downgrade"].share((("trunk", "out"),)) is not None
    assert same._watches["transport-downgrade"].share((("trunk", "in"),)) is None


@pytest.mark.parametrize(
    "record",
    [
        call(answered=True, ended=True),
        call(answered=True, talk_ms=32_000.0),
        call(ended=True, talk_ms=32_000.0),
    ],
)
def test_calls_without_a_known_length_are_not_cut(record: CallRecord) -> None:
    traffic = Traffic()
    for _ in range(100):
        traffic.receive_call(record, T0)
    assert traffic.look(T0 + MINUTE, ()) == []


def test_a_shift_that_becomes_normal_says_so() -> None:
    days = Days(per_day=1500)
    days.run(1.2)
    days.how |= {"tls": 0.0}
    days.until("transport-downgrade", active=True)
    end = days.until("transport-downgrade", active=False)
    assert end.summary.endswith("this is normal now, after a day")


def test_every_source_has_its_category() -> None:
    kinds = {check.category for check in CHECKS.values()} | set(OTHER_SOURCES)
    assert kinds == {
        "codec-change", "transport-downgrade", "destination-drift", "failover-loop", "caller-id",
        "attestation-drop", "early-cut", "agent-silent", "clock-skew",
    }  # fmt: skip


def test_what_strangers_may_grow_is_bounded_and_counted() -> None:
    traffic = Traffic()
    for number in range(700):
        said = Traits(asserted_host=f"h{number}.example")
        one = call(trunk=f"t{number}", tenant="shop", transport="udp", from_user=f"u{number}")
        traffic.receive_setup(Setup(one, (), (("", said),)), T0)
    folded = traffic.folded
    assert folded["transport-downgrade"] == 200
    assert folded["domains"] == 700 - 256
