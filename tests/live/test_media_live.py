"""Calls with media over bad networks: every record says what the parties themselves counted.

Kamailio, rtpengine and the parties are real; loss, jitter and delay are injected and counted. It
prints the table of truth and record in Markdown.
"""

import asyncio
import functools
import json
import math
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import asyncpg
import pytest

from live import media
from live.media import Heard, Truth
from live.programs import need
from live.rtp import CLOCK_RATE
from running import Sidecar, sidecar, until

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(240)]

LOW_MOS, HIGH_LOSS, HIGH_JITTER = 3.5, 1.0, 15.0
"""The defaults of [quality], from where on media is flagged."""
QUERIES = (
    # The newest revision of each.
    "SELECT DISTINCT ON (call_id) * FROM calls ORDER BY call_id, revision DESC",
    "SELECT DISTINCT ON (call_id, stream) * FROM media ORDER BY call_id, stream, revision DESC",
    "SELECT * FROM quality_intervals",
)
Row = dict[str, Any]


@dataclass(frozen=True)
class Lab:
    """What the parties counted, and what the database says."""

    truths: dict[str, Truth]
    """By Call-ID."""
    calls: dict[str, Row]
    directions: dict[tuple[str, str], Row]
    """Rows of `media` by Call-ID and direction."""
    media_rows: int
    intervals: list[Row]
    exit_code: int
    errors: str

    def pairs(self) -> list[tuple[str, Heard, Row | None]]:
        """Every direction of every call: its name, the truth, its row."""
        return [
            (
                f"{truth.case.name} {media.WORDS[direction]}",
                heard,
                self.directions.get((call_id, direction)),
            )
            for call_id, truth in self.truths.items()
            for direction, heard in truth.directions.items()
        ]

    def of_the_call(self, call_id: str) -> set[str]:
        """Findings that are the call's and of neither direction."""
        rows = [self.directions.get((call_id, direction), {}) for direction in media.WORDS]
        own = {finding for row in rows for finding in row.get("findings", ())}
        return set(self.calls[call_id]["findings"]) - own


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    for program, package in media.NEEDED:
        need(program, package)
    folder = tmp_path_factory.mktemp("media")
    with sidecar(folder / "sidecar") as one:
        truths = media.run(folder, "{}:{}".format(*one.hep))
        until("records of all calls", functools.partial(all_ended, one, set(truths)))
        dsn = one.ask("dsn").stdout.strip()
        calls, streams, intervals = asyncio.run(rows(dsn))
        exit_code = one.stop()
        errors = one.words
    return Lab(
        truths,
        {row["call_id"]: row for row in calls},
        {(row["call_id"], row["direction"]): row for row in streams},
        len(streams),
        intervals,
        exit_code,
        errors,
    )


def all_ended(one: Sidecar, call_ids: set[str]) -> bool:
    assert one.process.poll() is None, one.words
    said = one.ask("calls", "--json", "--limit", "5000").stdout
    return {
        row["call_id"] for row in map(json.loads, said.splitlines()) if row["ended"]
    } == call_ids


async def rows(dsn: str) -> list[list[Row]]:
    connection = await asyncpg.connect(dsn)
    try:
        return [[dict(row) for row in await connection.fetch(query)] for query in QUERIES]
    finally:
        await connection.close()


# ------------------------------------------------------------------- what the figures should make


def mos_of(loss_percent: float, jitter_ms: float, round_trip_ms: float | None) -> float:
    """MOS of G.711 with concealment in packets of 20 ms (G.107; Ie 0, Bpl 25.1).

    The buffer holds four times the jitter, 20 to 200 ms; what is later than 200 ms is lost. Without
    a round-trip time it is a listening MOS.
    """
    late = math.exp(-200 / jitter_ms) if jitter_ms else 0.0
    lost = 100 * (1 - (1 - loss_percent / 100) * (1 - late))
    r = 93.2 - 95 * lost / (lost + 25.1)
    if round_trip_ms is not None:
        delay = round_trip_ms / 2 + 20 + min(max(4 * jitter_ms, 20), 200)
        if delay > 100:
            x = math.log2(delay / 100)
            r -= 25 * ((1 + x**6) ** (1 / 6) - 3 * (1 + (x / 3) ** 6) ** (1 / 6) + 2)
    return 1 + 0.035 * r + 7e-6 * r * (r - 60) * (100 - r)


def intervals(heard: Heard) -> list[tuple[int, int, float]]:
    """Packets expected and lost, and jitter in ms, of each report by what the receiver knew."""
    befores = (None, *heard.said)
    return [
        (
            one.expected - (before.expected if before else 0),
            one.lost - (before.lost if before else 0),
            one.jitter / CLOCK_RATE * 1e3,
        )
        for before, one in zip(befores, heard.said, strict=False)
    ]


def mos_of_intervals(heard: Heard) -> list[tuple[int, float]]:
    """Weight and MOS of each."""
    return [
        (expected, mos_of(max(100 * lost / expected, 0), jitter, heard.round_trip_ms))
        for expected, lost, jitter in intervals(heard)
    ]


def true_mos(heard: Heard) -> float | None:
    """MOS by what the receiver knew when it reported last: the mean of its intervals."""
    rated = mos_of_intervals(heard)
    if not rated:
        return None
    return sum(weight * mos for weight, mos in rated) / sum(weight for weight, _ in rated)


def wanted(heard: Heard) -> tuple[set[str], set[str]]:
    """Findings that one direction must have by the truth, and those that it may have: too close."""
    if not heard.said:
        return set(), set()
    last, jitter = heard.said[-1], heard.jitter_ms or 0.0
    low = sorted(mos for _, mos in mos_of_intervals(heard))
    # The call's own MOS, or two intervals'.
    mos = min(true_mos(heard) or 5.0, *low[1:2])
    figures = {
        "high_loss": last.loss_percent / HIGH_LOSS if last.lost >= 2 else 0.0,
        "high_jitter": jitter / HIGH_JITTER,
        "low_mos": LOW_MOS / mos,
    }
    return (
        {name for name, ratio in figures.items() if ratio >= 1.05},
        {name for name, ratio in figures.items() if 0.95 < ratio < 1.05},
    )


def test_the_reference_has_the_published_values() -> None:
    for loss, jitter, trip, mos in (
        (0, 0, None, 4.4093),
        (5, 0, None, 3.9228),
        (20, 0, None, 2.6313),
        (0, 10, 40, 4.4093),
        (0, 60, 40, 3.7650),
        (1, 20, 80, 4.3263),
    ):
        assert mos_of(loss, jitter, trip) == pytest.approx(mos, abs=1e-4)


# ------------------------------------------------------------------------------------ the lab itself


def test_the_proxy_and_the_loopback_lose_nothing_by_themselves(lab: Lab) -> None:
    for name, heard, _ in lab.pairs():
        assert heard.arrived == heard.sent - heard.dropped, name
        assert heard.dropped == round(heard.sent * heard.sender.loss), name


# ----------------------------------------------------------------------------------- the comparison


def test_every_direction_that_was_reported_has_one_row(lab: Lab) -> None:
    assert len(lab.directions) == lab.media_rows
    assert lab.calls.keys() == lab.truths.keys()
    for name, heard, row in lab.pairs():
        if heard.said:
            assert row is not None, name
            assert row["source"] == "rtcp", name
            # An SSRC that makes no reports of its own may be a node's in the middle.
            assert row["segment"] == ("end_to_end" if heard.sender.reports else None), name
            assert row["codec"] == "PCMU", name
            assert row["ssrc"] == heard.ssrc, name
            sender = str(row["sender_ip"]), row["sender_port"]
            receiver = str(row["receiver_ip"]), row["receiver_port"]
            assert (sender, receiver) == (heard.sender_address, heard.receiver_address), name


def test_loss_is_what_the_receiver_had_counted_at_its_last_report(lab: Lab) -> None:
    for name, heard, row in lab.pairs():
        if not heard.said:
            assert row is None or row["packets_lost"] is None, name
            continue
        assert row is not None, name
        last = heard.said[-1]
        assert row["packets_lost"] == max(last.lost, 0), name
        # No report says with which packet its receiver began to count: A.1 leaves out the first ones
        # until two have come in order. The sender's count that helps has those on the way in it.
        # Without that count the record begins with the first report.
        left_out = heard.sent - heard.expected
        on_the_way = heard.sender.delay_ms / 20
        before = 0 if heard.sender.reports else heard.said[0].expected
        more = row["packets_expected"] - (last.expected - before)
        assert -3 <= more <= left_out + on_the_way + 3, name
        loss = 100 * row["packets_lost"] / row["packets_expected"]
        assert row["loss_percent"] == pytest.approx(loss, abs=0.001), name
        assert loss == pytest.approx(max(last.loss_percent, 0), abs=0.2), name
        # What came after the last report nobody tells: at most 3 s of 16.
        assert row["loss_percent"] == pytest.approx(heard.loss_percent, abs=1.0), name


def test_jitter_is_the_mean_of_what_the_receiver_reported(lab: Lab) -> None:
    for name, heard, row in lab.pairs():
        if heard.said:
            assert row is not None, name
            assert row["jitter_ms"] == pytest.approx(heard.jitter_ms, abs=0.01), name


def test_the_round_trip_is_what_the_parties_measured(lab: Lab) -> None:
    for name, heard, row in lab.pairs():
        if row is not None and heard.round_trip_ms is not None:
            assert row["rtt_ms"] == pytest.approx(heard.round_trip_ms, abs=15), name
            assert row["delay_source"] == "sr_rr", name
        elif row is not None:
            assert row["rtt_ms"] is None, name
            assert row["mos_kind"] in {"lq", None}, name


def test_mos_is_the_e_model_of_the_truth(lab: Lab) -> None:
    for name, heard, row in lab.pairs():
        true = true_mos(heard)
        if true is None:
            assert row is None or (row["mos"], row["rated"]) == (None, False), name
            continue
        assert row is not None, name
        assert row["rated"], name
        assert row["mos"] == pytest.approx(true, abs=0.05), name
        assert (row["mos_scale"], row["mos_grade"]) == ("nb", "A"), name


def test_rtpengine_s_own_mos_stands_beside_ours_in_its_direction(lab: Lab) -> None:
    for name, heard, row in lab.pairs():
        said = None if row is None else (row["peer_mos"], row["peer_mos_source"])
        if heard.rtpengine_mos is None:
            assert said in {None, (None, None)}, name
        else:
            assert said == (pytest.approx(heard.rtpengine_mos, abs=0.01), "log"), name


def test_the_call_s_mos_is_the_worse_direction_s(lab: Lab) -> None:
    for call_id, call in lab.calls.items():
        rated = {
            direction: lab.directions[call_id, direction]["mos"]
            for direction in media.WORDS
            if (call_id, direction) in lab.directions
            and lab.directions[call_id, direction]["mos"] is not None
        }
        assert call["mos"] == (min(rated.values()) if rated else None), call_id
        if rated:
            assert rated[call["mos_direction"]] == call["mos"], call_id


def test_what_is_wrong_is_flagged_in_its_direction_and_nothing_else_is(lab: Lab) -> None:
    silent = {"one_way_audio", "no_media"}
    for name, heard, row in lab.pairs():
        found = set(row["findings"]) - silent if row is not None else set()
        must, may = wanted(heard)
        assert must <= found <= must | may, name


def test_silence_is_found_where_it_is_and_only_there(lab: Lab) -> None:
    for call_id, truth in lab.truths.items():
        found = set(lab.calls[call_id]["findings"])
        match truth.case.name:
            case "one-way" | "one-way-back":
                silent = "callee_to_caller" if truth.case.caller.media else "caller_to_callee"
                assert found == {"one_way_audio"}, call_id
                assert lab.directions[call_id, silent]["findings"] == ["one_way_audio"]
            case "no-media":
                assert found == {"no_media"}, call_id
            case "clean" | "clean-leaves" | "far" | "no-rtcp-back" | "nothing":
                # Of the last two nobody can know more: who reports nothing may hear everything.
                # A machine that stalls makes jitter of its own, and the parties count it.
                stalls = [set.union(*wanted(heard)) for heard in truth.directions.values()]
                assert found <= set.union(*stalls), call_id
            case _:
                assert not found & {"one_way_audio", "no_media"}, call_id


def test_every_finding_of_a_call_has_its_evidence(lab: Lab) -> None:
    for call_id, call in lab.calls.items():
        evidence = json.loads(call["evidence"]) if call["evidence"] else {}
        assert set(evidence) == set(call["findings"]), call_id


def test_every_report_block_is_an_interval_with_the_receiver_s_own_figures(lab: Lab) -> None:
    for call_id, truth in lab.truths.items():
        for direction, heard in truth.directions.items():
            name = f"{truth.case.name} {media.WORDS[direction]}"
            found = [
                (row["packets_expected"], row["packets_lost"], row["jitter_ms"])
                for row in sorted(lab.intervals, key=itemgetter("at"))
                if (row["call_id"], row["direction"]) == (call_id, direction)
            ]
            counted = intervals(heard)
            assert len(found) == len(counted), name
            # Of the first one nobody knows where it begins.
            for ours, theirs in list(zip(found, counted, strict=True))[1:]:
                expected, lost, jitter = theirs
                assert ours == (expected, max(lost, 0), pytest.approx(jitter, abs=0.01)), name


def test_the_sidecar_ends_with_0_and_without_an_error(lab: Lab) -> None:
    assert lab.exit_code == 0, lab.errors
    assert "Traceback" not in lab.errors
    assert "ERROR" not in lab.errors


# --------------------------------------------------------------------------------------- the table


def test_the_table_has_every_direction(lab: Lab) -> None:
    lines = table(lab)
    print("\n\n" + "\n".join(lines))  # with pytest -s
    assert len(lines) == 2 + 2 * len(lab.truths)


def table(lab: Lab) -> list[str]:
    """Truth and record of each direction as a Markdown table."""
    columns = (
        "call",
        "lost, whole call %",
        "lost at the last report %",
        "**record %**",
        "jitter reported ms",
        "**record ms**",
        "RTT ms",
        "**record ms**",
        "MOS of the truth",
        "**record** (LQ)",
        "rtpengine",
        "**findings**",
    )
    lines = [_line(*columns), _line(*("---",) * len(columns))]
    for name, heard, row in lab.pairs():
        record: Row = row or dict.fromkeys(("loss_percent", "jitter_ms", "rtt_ms", "mos", "mos_lq"))
        findings = sorted({*record.get("findings", ()), *lab.of_the_call(heard.call_id)})
        last = heard.said[-1].loss_percent if heard.said else None
        mos = record["mos"] and f"{record['mos']:.2f} ({record['mos_lq']:.2f})"
        lines.append(
            _line(
                name,
                _figure(heard.loss_percent, 2),
                _figure(last, 2),
                _figure(record["loss_percent"], 2),
                _figure(heard.jitter_ms, 1),
                _figure(record["jitter_ms"], 1),
                _figure(heard.round_trip_ms, 1),
                _figure(record["rtt_ms"], 1),
                _figure(true_mos(heard), 2),
                mos or "-",
                _figure(heard.rtpengine_mos, 1),
                ", ".join(findings) or "-",
            )
        )
    return lines


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _figure(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
