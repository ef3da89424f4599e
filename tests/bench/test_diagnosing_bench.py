"""A short form of `make bench-diagnose`: the same calls, a few runs instead of a hundred."""

import json

import pytest

from bench import diagnosing


@pytest.mark.parametrize("cause", diagnosing.CAUSES)
def test_a_planted_cause_is_named_first(cause: str) -> None:
    found = diagnosing.row(cause, 30, runs=2, calls=300)
    assert found.first == found.among == found.runs == 2
    assert not found.wrong


def test_without_a_cause_nothing_is_named() -> None:
    found = diagnosing.row(diagnosing.NONE, 30, runs=8, calls=300)
    assert found.silent == found.runs == 8
    assert not found.wrong


def test_the_runs_are_of_the_sizes_that_they_say() -> None:
    for seed in range(5):
        cases = diagnosing.cases_of(diagnosing.NONE, seed, 100, 10)
        assert sum(case.failed for case in cases) == 10
        sizes = [dict(case.shown.numbers)["size"] for case in cases]
        assert max(sizes) <= 1300


def test_the_program_says_what_it_found_and_fails_when_a_cause_is_not_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    arguments = ["--runs", "1", "--failing", "20", "--calls", "200"]
    assert diagnosing.main([*arguments, "--only", "a codec line", "none"], said.append) == 0
    assert [line.split()[-7:-4] for line in said[0].splitlines()[1:]] == [["20", "1", "1"]]
    assert said[1].startswith("none ")
    monkeypatch.setattr(diagnosing, "named", lambda *_: False)
    assert diagnosing.main([*arguments, "--only", "a codec line", "--json"], said.append) == 1
    assert json.loads(said[-1])[0]["wrong"]
