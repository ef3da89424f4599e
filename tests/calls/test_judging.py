import msgspec
import pytest

import reports
from sim import Line, World, packet
from sipsidecar.calls.events import MediaRecord
from sipsidecar.calls.thresholds import Thresholds

CALL_ID = "judged@example.com"
FLOW = (
    "0.0 A>B INVITE 1/INVITE b1 a - sdp=0",
    "5.0 B>A 200 1/INVITE b1 a x sdp=0",
    "5.1 A>B ACK 1/ACK b2 a x",
    "65.5 A>B BYE 2/BYE b3 a x",
)


def _play(
    said: list[reports.Said],
    *,
    flow: tuple[str, ...] = FLOW,
    thresholds: Thresholds | None = None,
    skew_us: int = 0,
) -> World:
    """`skew_us`: how far the clock of the agent that mirrors RTCP is ahead."""
    world = World(thresholds=thresholds)
    events = [(line.at, packet(line, CALL_ID)) for line in map(Line.of, flow)]
    events += [(one.at, reports.datagram(one, CALL_ID, at_us=skew_us)) for one in said]
    for at, datagram in sorted(events, key=lambda event: event[0]):
        world.send(datagram, at)
    world.run_out()
    return world


def _media(world: World) -> dict[str, MediaRecord]:
    return {one.stream: one for one in world.outputs if isinstance(one, MediaRecord)}


def test_the_mos_of_a_call_is_that_of_the_direction_that_was_heard_worse() -> None:
    world = _play(reports.conversation(loss_to_callee=0.1))
    call, media = world.call(), _media(world)
    assert call.mos == media["caller_to_callee"].mos
    assert call.mos_scale == "nb"
    assert call.mos_direction == "caller_to_callee"


def test_each_finding_has_its_evidence_under_its_own_name() -> None:
    call = _play(reports.conversation(loss_to_callee=0.3)).call()
    assert call.evidence is not None
    evidence = msgspec.json.decode(call.evidence)
    assert tuple(sorted(evidence)) == call.findings
    assert {"high_loss", "low_mos"} <= set(evidence)
    for found in evidence.values():
        assert all(one.keys() > {"direction"} for one in found)


def test_thresholds_are_those_of_the_configuration() -> None:
    said = reports.conversation(loss_to_callee=0.05)
    assert _play(said, thresholds=Thresholds(high_loss_percent=6.0)).call().findings == ()
    assert _play(said, thresholds=Thresholds(low_mos=4.4)).call().findings == (
        "high_loss",
        "low_mos",
    )


def test_a_failed_call_without_early_media_is_not_judged() -> None:
    flow = (FLOW[0], "1.0 B>A 486 1/INVITE b1 a x", "1.1 A>B ACK 1/ACK b1 a x")
    call = _play([], flow=flow).call()
    assert (call.findings, call.evidence, call.mos) == ((), None, None)


@pytest.mark.parametrize("skew_us", [0, 200_000, 30_000_000, -30_000_000])
def test_media_that_began_with_the_answer_is_no_dead_air_whatever_the_agents_clock_says(
    skew_us: int,
) -> None:
    world = _play(reports.conversation(), skew_us=skew_us)
    assert world.call().findings == ()
    late = _play(reports.conversation(50.0, start=12.0), skew_us=skew_us)
    assert late.call().findings == ("dead_air",)


def test_blocks_about_a_source_that_nobody_has_are_counted_once_per_call() -> None:
    said = reports.conversation()
    clean = _play(said)
    assert "left_out" not in clean.pipeline.snapshot(clean.now).reports
    world = World()
    events = [(line.at, packet(line, CALL_ID)) for line in map(Line.of, FLOW)]
    for one in said:
        datagram = reports.datagram(one, CALL_ID)
        if one.by == "caller":  # it tells what it hears of somebody else
            datagram = datagram.replace(b'"source_ssrc": 572662306', b'"source_ssrc": 999999999')
        events.append((one.at, datagram))
    for at, datagram in sorted(events, key=lambda event: event[0]):
        world.send(datagram, at)
    world.run_out()
    told = sum(one.by == "caller" for one in said)
    assert world.pipeline.snapshot(world.now).reports["left_out"] == told
    assert "callee_to_caller" not in {s for s, one in _media(world).items() if one.rated}
