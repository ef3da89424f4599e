import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipsidecar.tables import cells, clip, printable, table


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("INVITE sip:bob@example.com", "INVITE sip:bob@example.com"),
        ("caf\u00e9 \u65e5\u672c \U0001f600", "caf\u00e9 \u65e5\u672c \U0001f600"),
        ("\x1b[2J\x07\x00\x7f", r"\x1b[2J\x07\x00\x7f"),
        ("a\r\nb\tc", r"a\x0d\x0ab\x09c"),
        ("\x85\x9b", r"\x85\x9b"),  # C1: a second way to say ESC [
        ("\u202egpj.exe\u2066\u200f", r"\u202egpj.exe\u2066\u200f"),
        ("\u200b\ufeff\u2028\u2029", r"\u200b\ufeff\u2028\u2029"),
        ("\udcff\ue000\U000e0001\U0010ffff", r"\udcff\ue000\U000e0001\U0010ffff"),
        ("\u00a0\u3000", "\u00a0\u3000"),
        ("", ""),
    ],
)
def test_what_moves_or_reverses_a_terminal_is_shown_as_an_escape(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text())
def test_printable_text_is_left_alone(text: str) -> None:
    assert printable(printable(text)) == printable(text)


@pytest.mark.parametrize(
    ("text", "width"), [("abc", 3), ("", 0), ("\u65e5\u672c", 4), ("e\u0301", 1), ("caf\u00e9", 4)]
)
def test_cells_are_those_of_a_terminal(text: str, width: int) -> None:
    assert cells(text) == width


@pytest.mark.parametrize(
    ("text", "width", "clipped"),
    [
        ("180 Ringing", 11, "180 Ringing"),
        ("180 Ringing", 10, "180 Ring.."),
        ("180 Ringing", 2, ".."),
        ("180 Ringing", 1, "."),
        ("180 Ringing", 0, ""),
        ("\u65e5\u672c\u8a9e", 5, "\u65e5.."),
        ("\x1b\x1b", 8, r"\x1b\x1b"),
        ("\x1b\x1b", 7, r"\x1b\.."),
    ],
)
def test_a_clipped_text_ends_in_dots(text: str, width: int, clipped: str) -> None:
    assert clip(text, width) == clipped


@given(st.text(), st.integers(0, 40))
def test_a_clipped_text_never_takes_more_cells_than_asked(text: str, width: int) -> None:
    assert cells(clip(text, width)) <= width


ROWS: list[dict[str, Any]] = [
    {"started": "10:00:00", "from": "+12125550123", "code": 200, "pdd_ms": 120.5, "answered": True},
    {"started": "10:00:01", "from": None, "code": 486, "pdd_ms": 1200.125, "answered": False},
    {"started": "10:00:02", "from": "\x1b[31m", "code": None, "pdd_ms": None, "answered": None},
]
COLUMNS = ["started", "from", "code", "pdd_ms", "answered"]


def test_numbers_stand_right_with_equal_decimals_and_none_is_a_dash() -> None:
    assert table(ROWS, COLUMNS) == (
        "started   from          code    pdd_ms  answered\n"
        "10:00:00  +12125550123   200   120.500  yes\n"
        "10:00:01  -              486  1200.125  no\n"
        r"10:00:02  \x1b[31m         -         -  -"
    )


def test_whole_floats_have_no_decimals() -> None:
    assert table([{"s": 2.0}, {"s": 30.0}], ["s"]).split("\n") == [" s", " 2", "30"]


def test_the_widest_text_gives_way_first() -> None:
    rows = [{"id": "a" * 40, "from": "b" * 10, "code": 200}]
    lines = table(rows, ["id", "from", "code"], 40).split("\n")
    assert lines == [
        "id" + " " * 20 + "  from        code",
        "a" * 20 + ".." + "  " + "b" * 10 + "   200",
    ]


def test_a_terminal_too_narrow_for_all_columns_cuts_the_line() -> None:
    rows = [{"id": "a" * 40, "from": "b" * 10, "code": 200}]
    assert table(rows, ["id", "from", "code"], 20).split("\n")[1] == "aaaaaa..  bbbbbb...."


def test_columns_of_numbers_alone_do_not_shrink() -> None:
    rows = [{"a": 123456789, "b": 123456789}]
    assert table(rows, ["a", "b"], 15).split("\n")[1] == "123456789  12.."


def test_a_list_is_joined_and_an_empty_one_is_a_dash() -> None:
    lines = table([{"flags": ("forked", "challenged")}, {"flags": ()}], ["flags"]).split("\n")
    assert lines == ["flags", "forked,challenged", "-"]


def test_a_missing_key_is_a_dash_and_no_rows_are_a_heading() -> None:
    assert table([{}], ["code"]) == "code\n-"
    assert table([], ["code", "from"]) == "code  from"


values = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.tuples(st.text())
)


@given(st.lists(st.dictionaries(st.sampled_from("abc"), values)), st.integers(8, 60))
def test_no_value_breaks_a_line_or_its_width(rows: list[dict[str, object]], width: int) -> None:
    lines = table(rows, ["a", "b", "c"], width).split("\n")
    assert len(lines) == len(rows) + 1
    assert all(cells(line) <= width and printable(line) == line for line in lines)
    assert not any(re.search(r"\s$", line) for line in lines if line.isascii())
