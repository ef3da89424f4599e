from hypothesis import given
from hypothesis import strategies as st

from sipsidecar.cli.beside import MAX_LINES, side_by_side
from sipsidecar.tables import cells
from terminal import HOSTILE

LEFT = b"INVITE sip:1 SIP/2.0\r\nVia: a;branch=z9hG4bK111111\r\nX-Foo: bar\r\nTo: <sip:b>\r\n\r\nv=0\r\na=ptime:20\r\n"
RIGHT = b"INVITE sip:2 SIP/2.0\r\nVia: a;branch=z9hG4bK222222\r\nTo: <sip:c>\r\n\r\nv=0\r\na=ptime:20\r\na=x\r\n"


def rows(left: bytes, right: bytes, width: int = 100, *, colour: bool = False) -> list[str]:
    return side_by_side(left, right, ("bad", "good"), width=width, colour=colour).splitlines()


def marks(lines: list[str], width: int = 100) -> str:
    half = (width - 3) // 2
    return "".join(line[half + 1 : half + 2] or " " for line in lines)


def test_lines_of_one_header_stand_beside_each_other_and_differences_are_marked() -> None:
    lines = rows(LEFT, RIGHT)
    assert lines[0].split() == ["bad", "good"]
    assert marks(lines) == " " + "..<|" + "   >"
    assert lines[4].split() == ["To:", "<sip:b>", "|", "To:", "<sip:c>"]


def test_a_header_that_moved_is_shown_at_both_places() -> None:
    left = b"INVITE x SIP/2.0\r\nCSeq: 1 INVITE\r\nFrom: a\r\nTo: b\r\n\r\n"
    right = b"INVITE x SIP/2.0\r\nFrom: a\r\nTo: b\r\nCSeq: 1 INVITE\r\n\r\n"
    assert sorted(marks(rows(left, right)).replace(" ", "")) == ["<", ">"]


def test_columns_fit_the_width_and_hostile_text_cannot_move_the_terminal() -> None:
    left = LEFT + f"a={HOSTILE}{'x' * 300}\r\n".encode()
    for width in (60, 80, 133):
        lines = rows(left, RIGHT, width)
        assert all(cells(line) <= width for line in lines)
        assert all(line.isprintable() for line in lines)
    assert rows(left, RIGHT, 1) == rows(left, RIGHT, 60)


def test_differences_are_coloured_when_asked_for() -> None:
    lines = rows(LEFT, RIGHT, colour=True)
    assert [line[:5] for line in lines if "\x1b" in line] == ["\x1b[31m", "\x1b[33m", "\x1b[32m"]
    assert all(line.endswith("\x1b[0m") for line in lines if "\x1b" in line)


def test_a_long_message_is_drawn_up_to_the_cap_and_says_so() -> None:
    lines = rows(LEFT + b"a=x\r\n" * 1000, RIGHT)
    assert len(lines) <= MAX_LINES + 5
    assert any("... and more lines" in line for line in lines)


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_any_two_payloads_are_drawn(left: bytes, right: bytes) -> None:
    lines = rows(left, right, 80)
    assert all(line.isprintable() and cells(line) <= 80 for line in lines)
