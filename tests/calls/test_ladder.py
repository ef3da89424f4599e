"""Ladders against golden files, and what must hold for any ladder.

`python tests/calls/test_ladder.py` writes the expected parts anew; read the difference.
"""

import json
import random
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipsidecar.calls.ladder import LadderMessage, Remark, printable, render
from sipsidecar.tables import cells

GOLDEN = sorted((Path(__file__).parent.parent / "ladders").glob("*.txt"))
WIDTHS = (80, 120, 160)


def message(
    at: int, source: str, destination: str, label: str, *notes: str, sequence: int = 0
) -> LadderMessage:
    return LadderMessage(
        at=at, sequence=sequence, source=source, destination=destination, label=label, notes=notes
    )


def read(path: Path) -> tuple[list[LadderMessage], list[Remark], dict[int, str]]:
    """Split a golden file: a JSON list per message or remark, then each width's dashed line and ladder."""
    head, *rest = re.split(r"^-{10} (\d+)\n", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    steps = [json.loads(line) for line in head.splitlines()]
    messages = [
        LadderMessage(
            at=at, sequence=seq, source=src, destination=dst, label=label, notes=(*notes,)
        )
        for at, seq, src, dst, label, notes in (one for one in steps if len(one) > 2)
    ]
    remarks = [Remark(at=at, text=text) for at, text in (one for one in steps if len(one) == 2)]
    return (
        messages,
        remarks,
        {
            int(width): text.removesuffix("\n")
            for width, text in zip(rest[::2], rest[1::2], strict=True)
        },
    )


def columns_of(ladder: str) -> list[str]:
    return ladder.split("\n")[2].split()


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
@pytest.mark.parametrize("width", WIDTHS)
def test_a_call_is_drawn_as_its_golden_file_shows(path: Path, width: int) -> None:
    messages, remarks, expected = read(path)
    assert render(messages, width=width, remarks=remarks) == expected[width]


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_the_order_of_the_argument_changes_nothing(path: Path) -> None:
    messages, remarks, expected = read(path)
    shuffled = random.sample(messages, len(messages))
    assert render(shuffled, width=80, remarks=remarks[::-1]) == expected[80]


def test_there_are_golden_files() -> None:
    assert len(GOLDEN) >= 10


def test_no_messages_is_said_so() -> None:
    assert render([], width=80) == "no messages"


def test_equal_stamps_keep_the_order_of_their_sequence() -> None:
    one = message(5, "a:1", "b:2", "INVITE sip:x", sequence=1)
    two = message(5, "b:2", "a:1", "100 Trying", sequence=2)
    ladder = render([two, one], width=80)
    assert ladder.index("INVITE") < ladder.index("100 Trying")


def test_the_caller_stands_left_when_the_relayed_invite_was_stamped_first() -> None:
    ladder = render(
        [
            message(1, "192.0.2.1:5060", "192.0.2.9:5060", "INVITE sip:x"),
            message(2, "198.51.100.1:5060", "192.0.2.1:5060", "INVITE sip:x"),
        ],
        width=100,
    )
    assert columns_of(ladder) == ["198.51.100.1:5060", "192.0.2.1:5060", "192.0.2.9:5060"]


def test_the_caller_stands_left_when_only_a_response_of_its_first_hop_comes_first() -> None:
    ladder = render(
        [
            message(1, "192.0.2.1:5060", "198.51.100.1:5060", "100 Trying"),
            message(2, "198.51.100.1:5060", "192.0.2.1:5060", "INVITE sip:x"),
        ],
        width=100,
    )
    assert columns_of(ladder) == ["198.51.100.1:5060", "192.0.2.1:5060"]


def test_ports_of_one_client_share_a_column_only_when_all_would_not_fit() -> None:
    messages = [
        message(port, f"198.51.100.1:{port}", "192.0.2.1:5060", "REGISTER sip:x")
        for port in range(40001, 40007)
    ]
    assert columns_of(render(messages, width=160))[0] == "198.51.100.1:40001"
    assert columns_of(render(messages, width=80)) == ["198.51.100.1:*", "192.0.2.1:5060"]


def test_two_servers_of_one_host_that_talk_to_each_other_stay_two_columns() -> None:
    messages = [message(0, "192.0.2.1:5060", "192.0.2.1:5080", "INVITE sip:x")]
    messages += [
        message(n, "192.0.2.1:5080", f"203.0.113.{n}:5060", "INVITE sip:x") for n in range(1, 7)
    ]
    ladder = render(messages, width=100)
    assert "[1] 192.0.2.1:5060\n[2] 192.0.2.1:5080\n" in ladder


def test_endpoints_without_a_port_are_drawn_as_they_are() -> None:
    ladder = render([message(1, "alice", "bob", "INVITE sip:x")], width=80)
    assert columns_of(ladder) == ["alice", "bob"]


def test_a_single_endpoint_is_a_list() -> None:
    ladder = render([message(1, "192.0.2.1:5060", "192.0.2.1:5060", "OPTIONS sip:x")], width=80)
    assert ladder.split("\n")[2:] == ["+0.000  192.0.2.1:5060 -> 192.0.2.1:5060  OPTIONS sip:x"]


def test_a_stamp_beyond_any_calendar_is_shown_as_a_number() -> None:
    at = 2**63 - 1
    ladder = render([message(at, "a:1", "b:2", "INVITE sip:x")], width=80)
    assert ladder.startswith(f"{at} us since 1970, 1 message\n")


def test_a_relative_time_of_hours_has_room() -> None:
    messages = [
        message(0, "a:1", "b:2", "INVITE sip:x"),
        message(14_400_123_999, "a:1", "b:2", "BYE sip:x"),
    ]
    assert "+14400.123  |" in render(messages, width=80)


@pytest.mark.parametrize(
    ("label", "code"),
    [("180 Ringing", 36), ("200 OK", 32), ("302 Moved", 33), ("486 Busy", 31), ("603 No", 31)],
)
@pytest.mark.parametrize("destination", ["b:2", "a:1"])
def test_a_response_is_coloured_by_its_class_only_when_asked(
    label: str, code: int, destination: str
) -> None:
    one = [message(1, "a:1", destination, label)]
    assert "\x1b" not in render(one, width=80)
    assert f"\x1b[{code}m" in render(one, width=80, colour=True)
    assert render(one, width=80, colour=True).endswith("\x1b[0m|" if destination == "b:2" else "m")


def test_a_request_has_no_colour() -> None:
    one = [message(1, "a:1", "b:2", "INVITE sip:x")]
    assert render(one, width=80, colour=True) == render(one, width=80)


def test_colour_changes_no_cell() -> None:
    messages, _, expected = read(GOLDEN[0])
    plain = re.sub(r"\x1b\[\d+m", "", render(messages, width=80, colour=True))
    assert plain == expected[80]


def test_a_remark_comes_after_the_messages_of_its_stamp_and_before_later_ones() -> None:
    messages = [
        message(5, "a:1", "b:2", "INVITE sip:x", sequence=7),
        message(6, "b:2", "a:1", "486 Busy Here", sequence=8),
    ]
    drawn = render(messages, width=80, remarks=[Remark(at=5, text="refused")])
    lines = drawn.split("\n")
    assert lines[0].endswith(", 2 messages")
    places = [n for n, line in enumerate(lines) if re.search("INVITE|-- refused --|486 Busy", line)]
    assert [lines[n].split()[1:3] for n in places][1] == ["--", "refused"]
    assert "INVITE" in lines[places[0]]


def test_remarks_without_messages_are_a_list_of_their_own() -> None:
    at = 1_800_000_000_000_000
    drawn = render(
        [], width=80, remarks=[Remark(at=at + 2000, text="two"), Remark(at=at, text="1")]
    )
    assert drawn.split("\n") == [
        "2027-01-15 08:00:00.000000 UTC, no messages", "", "+0.000  -- 1 --", "+0.002  -- two --",
    ]  # fmt: skip


def test_a_remark_that_comes_first_begins_the_ladder() -> None:
    drawn = render(
        [message(2000, "a:1", "b:2", "INVITE sip:x")], width=80, remarks=[Remark(at=0, text="x")]
    )
    assert re.search(r"\+0\.000 +-- x --\n +\+0\.002  \|", drawn)


@pytest.mark.parametrize("source", ["a:1", "b:2"])
def test_a_remark_has_a_colour_of_its_own_only_when_asked(source: str) -> None:
    one, said = [message(1, source, "b:2", "INVITE sip:x")], [Remark(at=2, text="refused")]
    assert "\x1b" not in render(one, width=80, remarks=said)
    assert "\x1b[35m-- refused --\x1b[0m" in render(one, width=80, colour=True, remarks=said)


endpoints = st.one_of(
    st.builds("198.51.100.{}:{}".format, st.integers(1, 9), st.sampled_from([5060, 40000, 40001])),
    st.builds("[2001:db8::{:x}]:5060".format, st.integers(1, 2**64)),
    st.text(max_size=30),
)
texts = st.one_of(st.sampled_from(["INVITE sip:bob@example.com", "180 Ringing"]), st.text())
messages_of_strangers = st.lists(
    st.builds(
        LadderMessage,
        at=st.integers(0, 2**62),
        sequence=st.integers(0, 3),
        source=endpoints,
        destination=endpoints,
        label=texts,
        notes=st.lists(texts, max_size=2).map(tuple),
    ),
    max_size=12,
)


remarks_of_strangers = st.lists(
    st.builds(Remark, at=st.integers(0, 2**62), text=st.text()), max_size=3
)


@given(messages_of_strangers, remarks_of_strangers, st.integers(0, 200))
def test_no_text_of_strangers_leaves_its_line_or_widens_it(
    messages: list[LadderMessage], remarks: list[Remark], width: int
) -> None:
    lines = render(messages, width=width, remarks=remarks).split("\n")
    assert all(printable(line) == line for line in lines)
    assert max(map(cells, lines)) <= max(width, 40)


def rewrite() -> None:
    for path in GOLDEN:
        head = path.read_text(encoding="utf-8").partition("-" * 10)[0]
        messages, remarks, _ = read(path)
        parts = [
            f"{'-' * 10} {width}\n{render(messages, width=width, remarks=remarks)}\n"
            for width in WIDTHS
        ]
        path.write_text(head + "".join(parts), encoding="utf-8")


if __name__ == "__main__":
    rewrite()
