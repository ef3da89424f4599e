from dataclasses import dataclass, field
from typing import Any

import pytest

from sipsidecar import rows
from sipsidecar.edges.postgres import comparing
from sipsidecar.edges.postgres.comparing import EGRESS, INGRESS, Comparison, Wanted, find_compared
from stored import DAY, NOON, attempt, call, message, store

PHONE, PROXY, TRUNK = "192.0.2.1", "203.0.113.5", "198.51.100.7"
HOUR = 3_600_000_000


def sip(
    start: str,
    *,
    branch: str,
    call_id: str,
    cseq: int = 1,
    to_tag: str = "",
    from_tag: str = "t",
    vias: int = 1,
    method: str = "INVITE",
) -> bytes:
    more = "Via: SIP/2.0/UDP 192.0.2.1;branch=z9hG4bKx\r\n" * (vias - 1)
    tag = f";tag={to_tag}" if to_tag else ""
    return (
        f"{start}\r\nVia: SIP/2.0/UDP 192.0.2.1;branch={branch}\r\n{more}"
        f"From: <sip:a@x>;tag={from_tag}\r\nTo: <sip:b@x>{tag}\r\nCall-ID: {call_id}\r\n"
        f"CSeq: {cseq} {method}\r\nContent-Length: 0\r\n\r\n"
    ).encode()


@dataclass
class Stored:
    """Rows on their way to a database."""

    tables: dict[str, list[bytes]] = field(default_factory=dict)
    sequence: int = 0

    def add(self, table: str, row: bytes) -> None:
        self.tables.setdefault(table, []).append(row)

    def message(self, call_id: str, payload: bytes, at: int, *ends: str) -> None:
        self.sequence += 1
        source, target = ends or (PHONE, PROXY)
        self.add(
            "messages",
            message(
                call_id, self.sequence, payload=payload, received_at=at, captured_at=at,
                src_ip=source, dst_ip=target,
            ),
        )  # fmt: skip

    def call(self, call_id: str, code: int, *, at: int = NOON, **changes: Any) -> None:
        """A call that the proxy sent on to the trunk, with all its INVITEs and final responses."""
        values: dict[str, Any] = {
            "received_at": at, "started_at": at, "src_ip": PHONE, "dst_ip": PROXY,
            "transport": "udp", "final_code": code, "final_class": f"{code // 100}xx",
            "answered": code < 300, "trunk": "acme",
        }  # fmt: skip
        values |= changes
        self.add("calls", rows.encode_call(call(call_id, **values), 1))
        del values["src_ip"], values["dst_ip"]
        values |= {"src_ip": PROXY, "peer_ip": TRUNK, "peer_port": 5060}
        out = f"z9hG4bK-out-{call_id}"
        values.pop("final_origin", None)
        self.add("attempts", rows.encode_attempt(attempt(call_id, out, **values), 1))
        branch = f"z9hG4bK-in-{call_id}"
        invite = sip("INVITE sip:b@x SIP/2.0", branch=branch, call_id=call_id)
        self.message(call_id, invite, at)
        sent = sip("INVITE sip:b@x SIP/2.0", branch=out, call_id=call_id, vias=2)
        self.message(call_id, sent, at + 1000, PROXY, TRUNK)
        reply = sip(f"SIP/2.0 {code} Said", branch=branch, call_id=call_id, to_tag="far")
        self.message(call_id, reply, at + 2000, PROXY, PHONE)

    async def write(self, dsn: str) -> None:
        async with store(dsn) as opened:
            await opened.write(1, self.tables)


def wanted(**changes: Any) -> Wanted:
    values: dict[str, Any] = {"since_us": NOON - HOUR, "until_us": NOON + HOUR, "final_code": 400}
    return Wanted(**(values | changes))


def named(found: Comparison, *, failed: bool) -> list[str]:
    return [one.call_id for one in found.calls if one.failed is failed]


async def test_failing_calls_and_answered_ones_come_with_their_invites(database: str) -> None:
    stored = Stored()
    for n in range(3):
        stored.call(f"bad{n}", 400, at=NOON + n * 1000)
        stored.call(f"good{n}", 200, at=NOON + n * 1000 + 500)
    stored.call("busy", 486)
    await stored.write(database)
    told: list[tuple[int, int]] = []
    found = await find_compared(database, wanted(), lambda part, whole: told.append((part, whole)))
    assert (found.hop, found.failing, found.good, found.without) == (INGRESS, 3, 3, 0)
    assert named(found, failed=True) == ["bad0", "bad1", "bad2"]
    assert named(found, failed=False) == ["good0", "good1", "good2"]
    assert b"z9hG4bK-in-bad0" in found.calls[0].payload
    assert found.calls[0].at == NOON
    assert found.calls[0].about == {
        "trunk": "acme", "carrier": None, "tenant": None, "direction": None, "region": None,
        "agent": None, "source": PHONE, "source-port": "5060", "destination": f"{PROXY} port 5060",
        "transport": "udp", "capture-agent": "2001", "retried": None, "attempt": None,
    }  # fmt: skip
    assert sum(slot.failing for slot in found.slots) == 3
    assert sum(slot.good for slot in found.slots) == 3
    assert told[-1] == (6, 6)


async def test_of_a_trunk_it_is_the_invite_that_went_there(database: str) -> None:
    stored = Stored()
    stored.call("bad", 400)
    stored.call("good", 200)
    await stored.write(database)
    found = await find_compared(database, wanted(trunk="acme"))
    assert found.hop == EGRESS
    assert {one.call_id: b"z9hG4bK-out-" in one.payload for one in found.calls} == {
        "bad": True,
        "good": True,
    }
    ingress = await find_compared(database, wanted(trunk="acme", hop=INGRESS))
    assert ingress.hop == INGRESS
    assert all(b"z9hG4bK-in-" in one.payload for one in ingress.calls)
    assert (await find_compared(database, wanted(trunk="other"))).calls == ()


async def test_of_a_trunk_that_calls_come_from_it_is_the_caller_s_invite(database: str) -> None:
    stored = Stored()
    stored.call("bad", 400)
    stored.tables["attempts"] = []
    await stored.write(database)
    found = await find_compared(database, wanted(trunk="acme"))
    assert (found.hop, found.failing) == (INGRESS, 1)


@pytest.mark.parametrize("scope", comparing.SCOPES)
async def test_each_scope_narrows_the_calls_down(database: str, scope: str) -> None:
    stored = Stored()
    for name in ("mine", "others"):
        values: dict[str, Any] = {scope: name}
        stored.call(name, 400, **values)
    await stored.write(database)
    for hop in (INGRESS, EGRESS):
        found = await find_compared(database, wanted(hop=hop, **{scope: "mine"}))
        assert [one.call_id for one in found.calls] == ["mine"]


async def test_a_class_of_codes_is_all_of_its_codes(database: str) -> None:
    stored = Stored()
    for code in (400, 486, 503):
        stored.call(str(code), code)
    await stored.write(database)
    found = await find_compared(database, wanted(final_code=None, final_class="4xx"))
    assert sorted(named(found, failed=True)) == ["400", "486"]


async def test_what_this_product_refused_is_no_failure(database: str) -> None:
    stored = Stored()
    stored.call("own", 486, final_origin="admission")
    stored.call("far", 486, final_origin="callee")
    await stored.write(database)
    found = await find_compared(database, wanted(final_code=486))
    assert named(found, failed=True) == ["far"]


async def test_times_are_a_beginning_and_an_end(database: str) -> None:
    stored = Stored()
    for n, at in enumerate((NOON - 1, NOON, NOON + HOUR - 1, NOON + HOUR)):
        stored.call(f"{n}", 400, at=at)
    await stored.write(database)
    found = await find_compared(database, wanted(since_us=NOON, until_us=NOON + HOUR))
    assert named(found, failed=True) == ["1", "2"]


async def test_good_calls_are_of_the_hours_in_which_others_failed(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparing, "FEW", 2)
    stored = Stored()
    stored.call("bad", 400, at=NOON)
    for n in range(3):
        stored.call(f"same{n}", 200, at=NOON + n)
        stored.call(f"before{n}", 200, at=NOON - 5 * HOUR + n)
    await stored.write(database)
    found = await find_compared(database, wanted(since_us=NOON - 6 * HOUR))
    assert named(found, failed=False) == ["same0", "same1", "same2"]
    assert found.same_hours
    assert found.good == 6
    assert sum(slot.good for slot in found.slots) == 6
    monkeypatch.setattr(comparing, "FEW", 5)
    found = await find_compared(database, wanted(since_us=NOON - 6 * HOUR))
    assert len(named(found, failed=False)) == 6
    assert not found.same_hours


async def test_more_calls_than_the_limit_are_taken_evenly_over_time(database: str) -> None:
    stored = Stored()
    for n in range(100):
        stored.call(f"bad{n:02}", 400, at=NOON + n * 1000)
    await stored.write(database)
    found = await find_compared(database, wanted(limit=10))
    assert named(found, failed=True) == [f"bad{n:02}" for n in range(0, 100, 10)]
    assert found.failing == 100


async def test_a_call_whose_messages_are_gone_is_counted(database: str) -> None:
    stored = Stored()
    stored.call("bad", 400)
    stored.tables["messages"] = []
    await stored.write(database)
    found = await find_compared(database, wanted())
    assert (found.calls, found.failing, found.without) == ((), 1, 1)


async def test_a_call_that_two_sidecars_saw_is_one(database: str) -> None:
    stored = Stored()
    stored.call("bad", 400)
    values: dict[str, Any] = {"final_code": 400, "final_class": "4xx", "src_ip": PHONE}
    stored.add("calls", rows.encode_call(call("bad", dst_ip=PROXY, **values), 2))
    await stored.write(database)
    assert len((await find_compared(database, wanted())).calls) == 1


async def test_silence_on_a_connection_is_measured_and_udp_has_none(database: str) -> None:
    stored = Stored()
    stored.call("first", 200, at=NOON, transport="tcp")
    stored.call("second", 400, at=NOON + 90_000_000, transport="tcp")
    stored.call("udp", 400, at=NOON + 95_000_000)
    await stored.write(database)
    for hop in (INGRESS, EGRESS):
        found = await find_compared(database, wanted(hop=hop))
        idle = {one.call_id: one.idle_seconds for one in found.calls}
        assert idle == {"first": None, "second": 90.0, "udp": None}


async def test_hostile_words_are_only_parameters(database: str) -> None:
    await Stored().write(database)
    found = await find_compared(database, wanted(trunk="'; DROP TABLE calls; --\0", tenant="%"))
    assert found.calls == ()
    assert (await find_compared(database, wanted(until_us=NOON + DAY))).failing == 0


def read(payload: bytes, *ends: str) -> comparing._Read:
    source, target = ends or (PHONE, PROXY)
    found = comparing._read({"payload": payload, "src_ip": source, "dst_ip": target})
    assert found is not None
    return found


ROW: dict[str, Any] = {
    "from_tag": "t", "branch": "", "src_ip": PHONE, "dst_ip": PROXY, "final_code": 400,
}  # fmt: skip


def invite(branch: str, **changes: Any) -> bytes:
    return sip("INVITE sip:b@x SIP/2.0", branch=branch, call_id="a", **changes)


def reply(code: int, branch: str, **changes: Any) -> bytes:
    return sip(f"SIP/2.0 {code} x", branch=branch, call_id="a", to_tag="f", **changes)


def branch_of(found: tuple[comparing._Read, bool] | None) -> tuple[str, bool]:
    assert found is not None
    return found[0][1].branch, found[1]


def test_the_invite_of_a_challenged_call_is_the_second_one() -> None:
    messages = [read(invite("one")), read(reply(407, "one"))]
    messages += [read(invite("two", cseq=2)), read(reply(400, "two", cseq=2))]
    assert branch_of(comparing.chosen(ROW, messages)) == ("two", True)


def test_an_answer_to_the_first_of_two_invites_is_the_first_one_s() -> None:
    messages = [read(invite("one")), read(reply(400, "one")), read(invite("two", cseq=2))]
    assert branch_of(comparing.chosen(ROW, messages)) == ("one", False)


def test_without_the_answer_it_is_the_newest() -> None:
    messages = [read(invite("one")), read(invite("two", cseq=2))]
    assert branch_of(comparing.chosen(ROW, messages)) == ("two", True)


def test_a_re_invite_or_an_invite_of_another_dialog_is_not_it() -> None:
    messages = [
        read(invite("one")),
        read(invite("again", cseq=2, to_tag="f")),
        read(invite("other", cseq=3, from_tag="u")),
    ]
    assert branch_of(comparing.chosen(ROW, messages)) == ("one", False)
    assert comparing.chosen(ROW, messages[1:]) is None


def test_the_caller_s_own_hop_is_chosen_and_where_nobody_saw_it_the_nearest() -> None:
    messages = [
        read(invite("far", vias=3), PROXY, TRUNK),
        read(invite("near", vias=2), "203.0.113.9", PROXY),
        read(invite("own", vias=1)),
    ]
    assert branch_of(comparing.chosen(ROW, messages)) == ("own", False)
    assert branch_of(comparing.chosen(ROW, messages[:2])) == ("near", False)


def test_of_an_attempt_it_is_the_invite_of_its_branch() -> None:
    messages = [read(invite("one"), PROXY, TRUNK), read(invite("two"), PROXY, TRUNK)]
    assert branch_of(comparing.chosen(ROW | {"branch": "two"}, messages)) == ("two", False)
    assert comparing.chosen(ROW | {"branch": "three"}, messages) is None


@pytest.mark.parametrize("payload", [b"", b"hello", sip("BYE sip:b@x SIP/2.0", branch="b", call_id="a", method="BYE")])  # fmt: skip
def test_what_is_no_invite_is_left_out(payload: bytes) -> None:
    assert comparing._read({"payload": payload}) is None
