import pytest

from sipsidecar.signals.wording import (
    codes_text,
    line,
    minute_text,
    normal_text,
    percent_text,
    probability_text,
    values_text,
    week_text,
    window_text,
)


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.176, "17.6 %"),
        (1.0, "100.0 %"),
        (0.0, "0.0 %"),
        (0.005, "0.5 %"),
        (0.00052, "0.052 %"),
        (0.000001, "under 0.01 %"),
    ],
)
def test_a_share_keeps_the_digits_that_mean_something(share: float, text: str) -> None:
    assert percent_text(share) == text


@pytest.mark.parametrize(
    ("chance", "text"),
    [
        (3.4e-6, "3e-6"),
        (1.2e-123, "1e-123"),
        (0.0, "under 1e-300"),
        (0.04, "0.04"),
        (1.0, "1"),
    ],
)
def test_a_chance_is_short(chance: float, text: str) -> None:
    assert probability_text(chance) == text


def test_times_are_those_of_utc() -> None:
    assert week_text(0) == "Thu 00:00 UTC"
    assert week_text(20_055 * 24 + 14) == "Thu 14:00 UTC"  # 2024-11-28
    assert week_text(20_060 * 24) == "Tue 00:00 UTC"
    assert minute_text(20_060 * 1440 + 843) == "14:03 UTC"


def test_windows_say_how_long_they_are() -> None:
    assert window_text(1) == "in the last minute"
    assert window_text(15) == "in the last 15 min"


def test_what_is_normal_says_how_it_is_known() -> None:
    assert normal_text("own", 0, "8.1 %") == "normal for Thu 00:00 UTC is 8.1 %"
    fleet = normal_text("fleet", 0, "8.1 %")
    assert fleet == "normal of all calls for Thu 00:00 UTC is 8.1 %, its own is not known yet"
    assert normal_text("cold", 0, "20.0 %") == "normal is not known yet, taken for 20.0 %"


def test_lists_are_empty_where_there_is_nothing_to_list() -> None:
    assert codes_text(((404, 29), (484, 5))) == "top codes 404 +29, 484 +5"
    assert codes_text(()) == ""
    assert values_text("trunks", {"A": 31, "B": 6}) == "trunks A 31, B 6"
    assert values_text("trunks", {}) == ""
    assert line("a", "", "b", "") == "a; b"
