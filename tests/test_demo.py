import asyncio
import ipaddress
import itertools
import re
import socket
from collections import Counter

import pytest

from sipsidecar import demo
from sipsidecar.calls.events import AttemptRecord, CallRecord
from sipsidecar.demo import OUTCOMES, PROXY, TRUNKS, Dialog, Step, dialogs, timeline, truth
from sipsidecar.pipeline import Pipeline
from sipsidecar.wire import hep

NETWORKS = [ipaddress.ip_network(n) for n in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24")]
PLAN = list(itertools.islice(dialogs(7), 1000))
CALLS = [dialog for dialog in PLAN if dialog.truth]
ALL_STEPS = [step for dialog in PLAN for step in dialog.steps]
STEPS = [step for step in ALL_STEPS if step.rtcp_of is None]
RTCP = [step for step in ALL_STEPS if step.rtcp_of is not None]


def headers(step: Step) -> list[tuple[str, str]]:
    head = step.payload.decode("ascii").partition("\r\n\r\n")[0]
    return [
        (name, value) for name, _, value in (line.partition(": ") for line in head.split("\r\n"))
    ]


def header(step: Step, name: str) -> list[str]:
    values = [value for key, value in headers(step)[1:] if key == name]
    return [part for value in values for part in value.split(", ")] if name == "Via" else values


def start(step: Step) -> str:
    return step.payload.decode("ascii").partition("\r\n")[0]


def code(step: Step) -> int:
    return int(start(step)[8:11]) if start(step).startswith("SIP/2.0 ") else 0


def invite_finals(dialog: Dialog, sender: tuple[str, int], receiver: str) -> list[int]:
    return [
        code(step)
        for step in dialog.steps
        if step.source == sender
        and step.destination.host == receiver
        and code(step) >= 200
        and header(step, "CSeq")[0].endswith("INVITE")
    ]


# ------------------------------------------------------------------------------------------- the plan


def test_a_seed_always_makes_the_same_plan_and_another_makes_another() -> None:
    assert list(itertools.islice(dialogs(7), 1000)) == PLAN
    assert list(itertools.islice(dialogs(8), 1000)) != PLAN


def test_the_name_of_a_run_changes_the_call_ids_and_nothing_else() -> None:
    for plain, named in zip(PLAN[:50], dialogs(7, "run-"), strict=False):
        assert len(plain.steps) == len(named.steps)
        for one, other in zip(plain.steps, named.steps, strict=True):
            if one.rtcp_of is not None:
                assert other == one._replace(rtcp_of=f"run-{one.rtcp_of}")
                continue
            call_id = header(one, "Call-ID")[0]
            assert other.payload.decode() == one.payload.decode().replace(
                f"Call-ID: {call_id}", f"Call-ID: run-{call_id}"
            )


def test_the_messages_come_in_the_order_of_their_time_and_none_is_lost() -> None:
    steps = list(timeline(iter(PLAN)))
    assert [step.at for step in steps] == sorted(step.at for step in steps)
    assert sorted(steps, key=repr) == sorted(ALL_STEPS, key=repr)
    assert list(itertools.islice(timeline(dialogs(7)), 5000)) == steps[:5000]


def test_several_calls_of_several_outcomes_end_within_five_seconds() -> None:
    ended = truth(7, 5.0)
    assert len(ended) >= 7
    assert {200, 404, 486, 487} <= {one.final_code for one in ended.values()}
    assert any(one.attempts == (503, 200) for one in ended.values())


def test_about_two_calls_a_second_follow() -> None:
    starts = [dialog.steps[0].at for dialog in CALLS]
    assert 1.6 < len(starts) / starts[-1] < 2.2


def test_each_outcome_occurs_about_as_often_as_told() -> None:
    assert sum(OUTCOMES.values()) == 100
    codes = Counter(dialog.truth.final_code for dialog in CALLS if dialog.truth)
    assert set(codes) == {200, 404, 408, 486, 487}
    assert 0.55 < codes[200] / len(CALLS) < 0.8


def test_the_truth_holds_only_calls_that_end_in_time() -> None:
    ends = {d.truth.call_id: d.steps[-1].at for d in CALLS if d.truth and d.steps[-1].at <= 60}
    assert truth(7, 60.0).keys() == ends.keys()
    assert all(call_id == one.call_id for call_id, one in truth(7, 60.0).items())


def test_the_messages_tell_what_the_truth_tells() -> None:
    for dialog in CALLS:
        assert dialog.truth is not None
        caller = dialog.steps[0].source
        [*challenges, final] = invite_finals(dialog, PROXY, caller.host)
        assert final == dialog.truth.final_code
        assert set(challenges) <= {407}
        attempts = [one for trunk in TRUNKS for one in invite_finals(dialog, trunk, PROXY.host)]
        assert tuple(attempts) == dialog.truth.attempts
        ends = [
            s for s in dialog.steps if re.match("BYE|CANCEL", start(s)) and s.destination == PROXY
        ]
        by = {caller: "caller"}.get(ends[0].source, "callee") if ends else None
        assert by == dialog.truth.released_by


# --------------------------------------------------------------------------------------- the messages


def test_all_names_and_addresses_are_reserved_for_examples() -> None:
    for step in STEPS:
        text = step.payload.decode("ascii")
        for address in {
            step.source.host,
            step.destination.host,
            *re.findall(r"\d+\.\d+\.\d+\.\d+", text),
        }:
            assert any(ipaddress.ip_address(address) in network for network in NETWORKS)
        for number in re.findall(r"sip:(\+\d+)@", text):
            assert re.fullmatch(r"\+121255501\d\d|\+442079460\d{3}|\+447700900\d{3}", number)
        for domain in re.findall(r"@([a-z][a-z.]+)", text):
            assert domain == "example.com"


def test_every_message_is_whole() -> None:
    for step in STEPS:
        head, _, body = step.payload.partition(b"\r\n\r\n")
        names = [name for name, _ in headers(step)[1:]]
        assert re.fullmatch(r"SIP/2\.0 \d{3} .+|[A-Z]+ sip:\S+ SIP/2\.0", start(step))
        for name in ("From", "To", "Call-ID", "CSeq", "Content-Length"):
            assert names.count(name) == 1
        assert header(step, "Content-Length") == [str(len(body))]
        assert (b"Content-Type: application/sdp" in head) == bool(body)
        assert b"m=audio" in body or not body


def test_every_message_passes_the_proxy_and_has_its_vias() -> None:
    for step in STEPS:
        assert PROXY in {step.source, step.destination}
        vias = [via.split()[1].partition(";")[0].partition(":")[0] for via in header(step, "Via")]
        assert vias[0] == (step.destination if code(step) else step.source).host


def test_every_response_answers_a_request_of_its_hop() -> None:
    for dialog in PLAN:
        seen = set()
        for step in (s for s in dialog.steps if s.rtcp_of is None):
            key = (header(step, "Via")[0], header(step, "CSeq")[0])
            if code(step):
                assert (step.destination, step.source, key) in seen
            seen.add((step.source, step.destination, key))


def test_every_final_response_to_an_invite_is_acknowledged_with_its_tags() -> None:
    for dialog in CALLS:
        for index, step in enumerate(dialog.steps):
            if code(step) < 200 or not header(step, "CSeq")[0].endswith("INVITE"):
                continue
            acks = [
                later
                for later in dialog.steps[index:]
                if start(later).startswith("ACK")
                and (later.source, later.destination) == (step.destination, step.source)
                and (header(later, "To"), header(later, "From"))
                == (header(step, "To"), header(step, "From"))
            ]
            assert len(acks) == 1
            same_transaction = header(acks[0], "Via")[0] == header(step, "Via")[0]
            assert same_transaction == (code(step) >= 300)


def test_a_request_of_the_callee_changes_the_places_of_from_and_to() -> None:
    backward = [s for s in STEPS if start(s).startswith("BYE") and s.source in TRUNKS]
    assert backward
    for step in backward:
        [origin], [target] = header(step, "From"), header(step, "To")
        assert "sip:+44" in origin
        assert "sip:+1212" in target
        assert ";tag=" in origin
        assert ";tag=" in target


def test_a_registration_is_challenged_and_a_ping_is_answered() -> None:
    others = Counter(
        (start(dialog.steps[0]).split()[0], *filter(None, map(code, dialog.steps)))
        for dialog in PLAN
        if not dialog.truth
    )
    assert set(others) == {("REGISTER", 401, 200), ("OPTIONS", 200)}


def test_pings_go_to_both_trunks_every_ten_seconds() -> None:
    at = [s.at for s in STEPS if start(s).startswith("OPTIONS") and s.destination == TRUNKS[1]]
    assert at[:4] == [0.0, 10.0, 20.0, 30.0]


# ----------------------------------------------------------------------------------------- on the wire


def test_a_datagram_is_hep_of_the_step() -> None:
    step = PLAN[5].steps[0]
    packet = hep.decode(demo.datagram(step, 1_767_225_600_123_456))
    assert packet.captured_at == 1_767_225_600_123_456
    assert packet.agent_id == demo.AGENT_ID
    assert bytes(packet.payload) == step.payload
    assert hep.address_text(packet.source) == step.source.host
    assert packet.destination_port == 5060


def test_the_records_of_the_plan_tell_what_its_truth_tells() -> None:
    pipeline, started = Pipeline(), 1_767_225_600_000_000
    for step in itertools.takewhile(lambda step: step.at <= 60, timeline(iter(PLAN))):
        while (due := pipeline.next_timer()) is not None and due <= step.at:
            pipeline.handle_timer(due)
        stamp = started + int(step.at * 1_000_000)
        pipeline.receive(demo.datagram(step, stamp), step.at, stamp, PROXY.host)
    while (due := pipeline.next_timer()) is not None:
        pipeline.handle_timer(due)
    records = pipeline.records()
    calls = {one.call_id: one for one in records if isinstance(one, CallRecord)}
    for call_id, expected in truth(7, 60).items():
        attempts = [a for a in records if isinstance(a, AttemptRecord) and a.call_id == call_id]
        attempts.sort(key=lambda attempt: attempt.failover_order)
        assert (calls[call_id].final_code, calls[call_id].released_by) == (
            expected.final_code,
            expected.released_by,
        )
        assert tuple(attempt.final_code for attempt in attempts) == expected.attempts


async def received(
    count: int, **arguments: float | str | None
) -> tuple[list[bytes], asyncio.Task[int]]:
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.setblocking(False)
        task = asyncio.create_task(
            demo.play("127.0.0.1", receiver.getsockname()[1], **arguments)  # type: ignore[arg-type]
        )
        return [await loop.sock_recv(receiver, 65535) for _ in range(count)], task


async def test_the_plan_is_sent_as_hep_stamped_in_order() -> None:
    datagrams, task = await received(6, seed=7, seconds=0.12, run="x")
    packets = list(map(hep.decode, datagrams))
    expected = list(itertools.islice(timeline(dialogs(7, "x")), 6))
    assert [bytes(packet.payload) for packet in packets] == [step.payload for step in expected]
    stamps = [packet.captured_at or 0 for packet in packets]
    assert stamps == sorted(stamps)
    assert await task >= 6


async def test_two_runs_have_different_call_ids() -> None:
    [[one], first] = await received(1, seconds=0.0)
    [[other], second] = await received(1, seconds=0.0)
    assert one.partition(b"Call-ID")[2] != other.partition(b"Call-ID")[2]
    assert (await first, await second) == (2, 2)


async def test_traffic_without_end_stops_when_cancelled() -> None:
    _, task = await received(2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_reports_come_from_both_sides_while_a_call_talks() -> None:
    assert RTCP
    ports = {step.source.port for step in RTCP} | {step.destination.port for step in RTCP}
    assert ports == {28101}
    for dialog in CALLS:
        reports = [step for step in dialog.steps if step.rtcp_of is not None]
        sides = Counter(step.source for step in reports)
        assert len(sides) <= 2
        assert dialog.steps == sorted(dialog.steps, key=lambda step: step.at)


def test_some_calls_of_the_plan_are_rated_and_some_lose_packets() -> None:
    pipeline = Pipeline()
    records = []
    for step in itertools.takewhile(lambda step: step.at <= 120, timeline(iter(PLAN))):
        at = 1_795_000_000_000_000 + round(step.at * 1_000_000)
        while (due := pipeline.next_timer()) is not None and due <= step.at:
            pipeline.handle_timer(due)
        pipeline.receive(demo.datagram(step, at), step.at, at, "127.0.0.1")
        records += pipeline.records()
    calls = [one for one in records if isinstance(one, CallRecord)]
    rated = [one for one in calls if one.mos is not None]
    assert len(rated) > 20
    found = Counter(finding for one in calls for finding in one.findings)
    assert found["high_loss"] >= 3
    assert set(found) <= {"high_loss", "low_mos", "early_media_only"}
