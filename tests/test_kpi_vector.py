"""The ratios of RFC 6076 and E.425, from real SIP in HEP datagrams to rows of minutes."""

import random
from collections import Counter

import pytest

from flows import PARENTS, flow
from sim import ADDRESSES, EPOCH, Line, World, packet
from sipsidecar.calls.events import CallRecord, MediaRecord, RegistrationRecord
from sipsidecar.signals.cohort import Cohorts, Matcher
from sipsidecar.signals.minutes import MINUTE, CodeMinute, KpiMinute, Minutes
from sipsidecar.signals.ratios import added, ratios

VECTOR = (
    (60, 200), (10, 486), (8, 480), (5, 487), (4, 404), (3, 603), (4, 503), (2, 500), (2, 408), (2, 302)
)  # fmt: skip
"""A hundred INVITE attempts: how many ended with what, worked out by hand."""
EXPECTED = {
    "ser_percent": 61.2245,
    "seer_percent": 82.6531,
    "isa_percent": 8.0,
    "asr_percent": 61.2245,
    "ner_percent": 87.7551,
    "abr_percent": 60.0,
}
RINGS = frozenset({200, 486, 480, 487, 603})
COMPLETED = 55
"""Of the 60 that were answered; of the others no BYE comes."""
COHORTS = Cohorts(
    [
        Matcher(trunk="acme", carrier="one", destinations=(ADDRESSES["B"],)),
        Matcher(trunk="beta", carrier="two", destinations=(ADDRESSES["C"],)),
    ],
    {2001: "edge"},
)
Sent = tuple[str, Line, str | None]


class Counted(World):
    """A world whose setups and ended calls are counted as a running sidecar does."""

    def __init__(self) -> None:
        super().__init__(cohorts=COHORTS)
        self.pipeline.watch(setups=True)
        self.minutes = Minutes()
        self.kpis: list[KpiMinute] = []
        self.codes: list[CodeMinute] = []

    def _drain(self) -> None:
        at = EPOCH + round(self.now * 1_000_000)
        begun = len(self.outputs)
        super()._drain()
        for setup in self.pipeline.setups():
            self.minutes.receive_setup(setup, at)
        ended = {}
        for record in self.outputs[begun:]:
            if isinstance(record, CallRecord) and not record.revision:
                ended[record.call_id, record.from_tag] = record
                self.minutes.receive_call(record, at)
            elif isinstance(record, RegistrationRecord):
                self.minutes.receive_registration(record, at)
        for record in self.outputs[begun:]:
            if isinstance(record, MediaRecord) and not record.revision:
                self.minutes.receive_media(record, ended.get((record.call_id, record.from_tag)), at)
        self._keep(*self.minutes.close(at))

    def _keep(self, kpis: list[KpiMinute], codes: list[CodeMinute]) -> None:
        self.kpis += kpis
        self.codes += codes

    def rows(self, source: str, **labels: str) -> KpiMinute:
        """All minutes of all cohorts that have these labels, added up."""
        self._keep(*self.minutes.drain(EPOCH + round(self.now * 1_000_000)))
        return added(
            row
            for row in self.kpis
            if row.source == source and all(getattr(row, n) == v for n, v in labels.items())
        )


def dialog(number: int, code: int, rng: random.Random) -> list[Sent]:
    """One call from A through the proxy P to the trunk B, as the proxy mirrors it."""
    call_id, at, cseq, branch = f"{number}@vector.example", number * 0.05, 1, f"a{number}"
    sent: list[Sent] = []

    def say(offset: float, text: str, parent: str | None = None) -> None:
        sent.append((call_id, Line.of(f"{at + offset:.4f} {text}"), parent))

    say(0.0, f"A>P INVITE {cseq}/INVITE {branch} f - sdp=0,8")
    challenged = rng.choice(["", "", "proxy", "trunk"])
    if challenged == "trunk":
        say(0.001, f"P>B INVITE {cseq}/INVITE c{number} f - sdp=0,8", branch)
        say(0.02, f"B>P 407 {cseq}/INVITE c{number} f q", branch)
        say(0.021, f"P>B ACK {cseq}/ACK c{number} f q")
    if challenged:
        say(0.03, f"P>A 407 {cseq}/INVITE {branch} f q")
        say(0.04, f"A>P ACK {cseq}/ACK {branch} f q")
        cseq, branch = 2, f"b{number}"
        say(0.05, f"A>P INVITE {cseq}/INVITE {branch} f - sdp=0,8")
    egress = f"p{number}"
    say(0.06, f"P>A 100 {cseq}/INVITE {branch} f -")
    say(0.061, f"P>B INVITE {cseq}/INVITE {egress} f - sdp=0,8", branch)
    if code in RINGS:
        say(0.5, f"B>P 180 {cseq}/INVITE {egress} f t", branch)
        say(0.501, f"P>A 180 {cseq}/INVITE {branch} f t")
    if code == 487:
        say(3.0, f"A>P CANCEL {cseq}/CANCEL {branch} f -")
        say(3.001, f"P>B CANCEL {cseq}/CANCEL {egress} f -", branch)
    sdp = " sdp=8" if code == 200 else ""
    say(4.0, f"B>P {code} {cseq}/INVITE {egress} f t{sdp}", branch)
    say(4.001, f"P>A {code} {cseq}/INVITE {branch} f t{sdp}")
    if code != 200:
        say(4.002, f"P>B ACK {cseq}/ACK {egress} f t")
        say(4.01, f"A>P ACK {cseq}/ACK {branch} f t")
        return sent
    say(4.01, f"A>P ACK {cseq}/ACK k{number} f t")
    say(4.011, f"P>B ACK {cseq}/ACK l{number} f t", f"k{number}")
    if number % 2:  # put on hold, refused once
        for order, answer in ((1, 200), (2, 488)):
            again, seen = cseq + order, f"h{order}{number}"
            say(10.0 * order, f"A>P INVITE {again}/INVITE {seen} f t sdp=8")
            say(10.0 * order + 0.01, f"P>B INVITE {again}/INVITE g{seen} f t sdp=8", seen)
            say(10.0 * order + 0.1, f"B>P {answer} {again}/INVITE g{seen} f t", seen)
            say(10.0 * order + 0.11, f"P>A {answer} {again}/INVITE {seen} f t")
            say(
                10.0 * order + 0.12,
                f"A>P ACK {again}/ACK {seen if answer > 299 else 'x' + seen} f t",
            )
    if number < COMPLETED:
        say(64.001, f"A>P BYE 9/BYE y{number} f t")
        say(64.002, f"P>B BYE 9/BYE z{number} f t", f"y{number}")
        say(64.02, f"B>P 200 9/BYE z{number} f t", f"y{number}")
        say(64.021, f"P>A 200 9/BYE y{number} f t")
    return sent


def vector(seed: int) -> list[Sent]:
    rng = random.Random(seed)
    codes = [code for count, code in VECTOR for _ in range(count)]
    sent = [one for number, code in enumerate(codes) for one in dialog(number, code, rng)]
    return sorted(sent, key=lambda one: one[1].at)


def hear(sent: list[Sent], rng: random.Random | None = None) -> Counted:
    """Let all of it arrive as it was sent; with chance, late by up to a second, some of it twice."""
    world = Counted()
    arrivals = []
    for order, (call_id, line, parent) in enumerate(sent):
        data = packet(line, call_id, parent=parent)
        copies = 1 if rng is None else 1 + (rng.random() < 0.3)
        for _ in range(copies):
            late = 0.0 if rng is None else rng.random()
            arrivals.append((line.at + late, order, data))
    for at, _, data in sorted(arrivals):
        world.send(data, at)
    world.run_out()
    return world


def check(world: Counted) -> None:
    for source, labels in (("call", {}), ("trunk", {"trunk": "acme"}), ("trunk", {})):
        row = world.rows(source, **labels)
        assert (row.attempts, row.seizures, row.redirected, row.unknown) == (100, 98, 2, 0)
        named = ratios(row)
        found = {name: getattr(named, name) for name in EXPECTED}
        assert found == pytest.approx(EXPECTED, abs=5e-5)
        classes = Counter[str]()
        for code in world.codes:
            if code.source == source:
                classes[f"{code.code // 100}xx"] += code.count
        assert classes == {"2xx": 60, "3xx": 2, "4xx": 29, "5xx": 6, "6xx": 3}
        # of the 60 that were answered 55 ended with a BYE, after a minute
        assert (row.ended, row.completed, row.dropped, row.short_calls) == (60, 55, 5, 0)
        assert named.scr_percent == pytest.approx(55.0)
        assert named.dropped_percent == pytest.approx(100 * 5 / 60)
        assert row.talk_count == 55
        assert named.acd_seconds == pytest.approx(60.0, abs=0.01)
        # all that rang did after half a second; a challenge does not begin the time again
        assert row.pdd_count == 86
        assert named.pdd_p50_ms == pytest.approx(500, abs=250)
        assert row.setup_count == 60
        assert row.failed_srd_count == 38
        assert (row.failovers, row.own_refusals, row.overflowed) == (0, 0, 0)
    world.rows("call")
    calls = [row for row in world.kpis if row.source == "call"]
    pdd = added(calls).pdd_sum_ms / 86
    assert pdd == pytest.approx(501.0)
    assert {row.codec for row in calls if row.answered} == {"PCMA"}
    assert {row.trunk for row in calls} == {"acme"}
    assert {row.minute_at % MINUTE for row in calls} == {0}


def test_the_vector_has_its_ratios() -> None:
    check(hear(vector(1)))


@pytest.mark.parametrize("seed", range(5))
def test_the_vector_has_its_ratios_with_duplicates_and_out_of_order(seed: int) -> None:
    check(hear(vector(seed), random.Random(seed)))


def test_challenges_and_re_invites_are_among_them() -> None:
    sent = vector(1)
    retried = {call_id for call_id, line, _ in sent if line.start == "407"}
    assert 30 < len(retried) < 70
    assert sum(line.start == "INVITE" and line.to_tag != "" for _, line, _ in sent) == 120


def played(lines: list[str], rng: random.Random | None = None) -> Counted:
    return hear(
        [("flow@example.com", line, PARENTS.get(line.branch)) for line in map(Line.of, lines)], rng
    )


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
def test_a_call_that_failed_over_is_answered_and_its_first_trunk_shows_503(
    seed: int | None,
) -> None:
    world = played(flow("503 at the first trunk"), None if seed is None else random.Random(seed))
    call = world.rows("call")
    assert (call.attempts, call.answered, call.failovers, call.completed) == (1, 1, 1, 1)
    first, second = world.rows("trunk", trunk="acme"), world.rows("trunk", trunk="beta")
    assert (first.attempts, first.answered, first.failovers, first.ineffective) == (1, 0, 1, 1)
    assert (second.attempts, second.answered, second.failovers) == (1, 1, 0)
    assert ratios(first).failover_percent == 100.0
    assert ratios(first).asr_percent == 0.0
    assert (first.ended, second.ended, second.completed) == (0, 1, 1)
    assert ratios(second).acd_seconds == pytest.approx(3.0)
    assert ratios(first).acd_seconds is None
    assert {(c.trunk, c.carrier, c.code) for c in world.codes if c.source == "trunk"} == {
        ("acme", "one", 503),
        ("beta", "two", 200),
    }


def test_a_call_that_fell_silent_at_its_trunk_is_unknown_there_when_the_caller_gave_up() -> None:
    world = played(
        [
            "0.0 A>P INVITE 1/INVITE b1 a -",
            "0.01 P>B INVITE 1/INVITE p1 a -",
            "2.0 A>P CANCEL 1/CANCEL b1 a -",
            "2.01 P>A 487 1/INVITE b1 a k",
        ]
    )
    assert world.rows("call").effective == 1
    attempt = world.rows("trunk", trunk="acme")
    assert (attempt.attempts, attempt.unknown, attempt.seizures) == (1, 1, 0)
    assert ratios(attempt).ser_percent is None


REGISTERED = [
    "0.0 A>P REGISTER 1/REGISTER r1 a -",
    "0.05 P>A 401 1/REGISTER r1 a x",
    "0.1 A>P REGISTER 2/REGISTER r2 a -",
    "0.15 P>A 200 2/REGISTER r2 a x",
]
REFUSED = [
    "0.0 A>P REGISTER 1/REGISTER r1 a -",
    "0.05 P>A 403 1/REGISTER r1 a x",
]


def test_the_delay_of_a_registration_has_the_challenge_in_it() -> None:
    row = played(REGISTERED).rows("register")
    assert (row.registers, row.registers_failed, row.rrd_count) == (1, 0, 1)
    assert row.rrd_sum_ms == pytest.approx(150.0)
    assert ratios(row).ira_percent == 0.0


def test_a_registration_that_was_refused_or_never_answered_is_ineffective() -> None:
    for lines in (REFUSED, REGISTERED[:1]):
        row = played(lines).rows("register")
        assert (row.registers, row.registers_failed, row.rrd_count) == (1, 1, 0)
        assert ratios(row).ira_percent == 100.0
