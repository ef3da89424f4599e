import argparse
import json
import sys
from pathlib import Path

import pytest

from chaos.results import Result, Unfit, command


def _main(monkeypatch: pytest.MonkeyPatch, result: Result | Unfit, *words: str) -> int:
    def run(_: argparse.Namespace) -> Result:
        if isinstance(result, Unfit):
            raise result
        return result

    monkeypatch.setattr(sys, "argv", ["script", *words])
    return command(argparse.ArgumentParser(), run)()


def test_one_broken_claim_breaks_the_result_and_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    result = Result("it")
    result.claim("first", True, 1)
    assert _main(monkeypatch, result) == 0
    result.claim("second", False, "2 of 3")
    assert _main(monkeypatch, result, "--json", str(tmp_path / "said")) == 1
    said = json.loads((tmp_path / "said").read_text())
    assert (said["held"], said["claims"][1]["measured"]) == (False, "2 of 3")


def test_a_run_without_a_claim_has_shown_nothing() -> None:
    assert not Result("it").held


def test_a_machine_that_cannot_do_it_is_neither_a_success_nor_a_broken_claim(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _main(monkeypatch, Unfit("no compiler")) == 2
    assert "no compiler" in capsys.readouterr().err


def test_tables_of_several_scripts_gather_in_one_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for title in ("one", "two"):
        result = Result(title)
        result.claim("something", True)
        _main(monkeypatch, result, "--out", str(tmp_path / "table"))
    lines = (tmp_path / "table").read_text().splitlines()
    assert [line for line in lines if line.startswith("==")] == [
        "== one: every claim held",
        "== two: every claim held",
    ]


def test_a_run_that_breaks_off_is_in_the_table_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def run(_: argparse.Namespace) -> Result:
        raise AssertionError("it did not start")

    monkeypatch.setattr(sys, "argv", ["chaos/it.py", "--out", str(tmp_path / "table")])
    with pytest.raises(AssertionError):
        command(argparse.ArgumentParser(), run)()
    assert (tmp_path / "table").read_text().startswith("== it: broke off: ")
