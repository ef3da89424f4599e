import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from answering import answering, page, pages
from certificates import Authority
from running import sidecar
from sipsidecar.cli import doctoring
from sipsidecar.cli.checks.case import Case, Finding
from sipsidecar.config import load
from sipsidecar.tables import printable
from terminal import Run, on_terminal

SECRET = "open-sesame-of-many-letters"  # noqa: S105 -- to look for


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Flags of a doctor that looks at an own folder and at ports that nobody uses."""
    monkeypatch.setattr("sipsidecar.edges.machine.clock_is_kept", lambda: True)
    return ["--data", str(tmp_path / "data"), "--hep", "127.0.0.1:0", "--http", "127.0.0.1:1"]


def test_a_machine_without_a_sidecar_is_examined_and_nothing_is_left_behind(
    run: Run, here: list[str], tmp_path: Path
) -> None:
    said = run("doctor", *here)
    assert said.code == 0
    assert said.err == ""
    assert "sidecar         warn     none answers at http://127.0.0.1:1" in said.out
    assert "warn  sidecar: start `sipsidecar run`" in said.out
    assert said.out.splitlines()[-1].endswith("0 failed, 2 unknown")
    assert not (tmp_path / "data").exists()


def test_every_check_is_an_object_of_json(run: Run, here: list[str]) -> None:
    said = run("doctor", "--json", *here)
    rows = said.rows
    assert [set(row) for row in rows] == [
        {"check", "state", "reading", "advice", "figures"} for _ in rows
    ]
    assert {row["state"] for row in rows} <= {"ok", "warn", "fail", "unknown"}
    assert len(rows) >= len(doctoring.CHECKS)
    assert all(row["advice"] for row in rows if row["state"] in ("warn", "fail"))


def test_a_failure_is_told_by_the_exit_code(run: Run, here: list[str]) -> None:
    said = run("doctor", *here, "--dsn", "postgresql://u@127.0.0.1:1/d")
    assert said.code == 1
    assert "fail  database: bring it up" in said.out
    assert said.out.index("fail  database") < said.out.index("warn  sidecar")


def test_a_configuration_that_cannot_be_read_is_the_only_finding(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    file.write_text("[node]\nid = 'x'\n")
    said = run("doctor", "--json", "--config", file)
    assert said.code == 1
    (row,) = said.rows
    assert (row["check"], row["state"]) == ("configuration", "fail")
    assert "node.id: expected" in row["reading"]


def test_wrong_words_are_what_it_cannot_run_with(run: Run) -> None:
    assert run("doctor", "--nonsense").code == 2


def test_no_secret_is_ever_shown(run: Run, here: list[str], tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text(SECRET)
    key.chmod(0o644)
    file = tmp_path / "s.toml"
    own = Authority(tmp_path).issue("own")
    file.write_text(
        f'[hep]\nkeys = {{ "*" = "{SECRET}", 7 = "file:{key}" }}\n'
        f'[http]\nread_tokens = ["{SECRET}"]\noperate_tokens = ["file:{key}"]\n'
        f'tls_certificate = "{own.certificate}"\ntls_key = "{own.key}"\n'
        f'[database]\ndsn = "postgresql://u:{SECRET}@127.0.0.1:1/d"\npassword = "{SECRET}"\n'
        f'[privacy]\nkey = "{SECRET}"\n'
    )
    for form in ([], ["--json"]):
        said = run("doctor", *here, *form, "--config", file)
        assert said.code == 1
        assert SECRET not in said.out + said.err
        assert f"chmod 600 {key}; chmod 600 {file}" in said.out.replace("\n      ", " ")


def test_what_a_sidecar_says_never_paints_the_terminal(run: Run, here: list[str]) -> None:
    hostile = "x\x1b[31m\n\u202e" * 9
    ready = page({"status": "not-ready", "checks": {hostile: {"ok": False, "reading": hostile}}})
    with answering(pages(ready=ready)) as (address, _):
        said = run("doctor", *here[:-1], address)
    assert said.code == 1
    for line in said.out.splitlines():
        assert printable(line) == line


def test_on_a_terminal_the_states_have_colours_and_nothing_is_cut(tmp_path: Path) -> None:
    words = [
        "doctor",
        "--data",
        str(tmp_path / "d"),
        "--hep",
        "127.0.0.1:0",
        "--http",
        "127.0.0.1:1",
    ]
    shown = on_terminal(words, 40)
    assert "\x1b[33mwarn\x1b[0m" in shown
    assert "none answers at http://127.0.0.1:1 (Connection refused)" in shown
    plain = shown.replace("\x1b[33m", "").replace("\x1b[32m", "").replace("\x1b[36m", "")
    assert "\x1b" not in plain.replace("\x1b[0m", "")


def case_of() -> Case:
    return Case(load(None, {}, {"http.listen": "127.0.0.1:1"}), None)


def test_a_check_that_breaks_or_hangs_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def breaks(_: Case) -> Iterator[Finding]:
        yield Finding("first", "ok", "half")
        raise ZeroDivisionError(SECRET)

    def hangs(_: Case) -> Iterator[Finding]:
        release.wait()
        yield Finding("second", "ok", "late")

    def works(_: Case) -> Iterator[Finding]:
        yield Finding("third", "ok", "fine")

    checks = {"first": breaks, "second": hangs, "third": works}
    monkeypatch.setattr(doctoring, "CHECKS", checks)
    began = time.monotonic()
    found = doctoring.examine_all(case_of(), seconds=0.2)
    release.set()
    assert time.monotonic() - began < 20
    assert [(one.check, one.state, one.reading) for one in found] == [
        ("first", "unknown", "this check broke: ZeroDivisionError"),
        ("second", "unknown", "no answer within 0.2 s"),
        ("third", "ok", "fine"),
    ]
    assert SECRET not in str(found)


def test_questions_that_break_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*_: object) -> None:
        raise ZeroDivisionError(SECRET)

    monkeypatch.setattr("sipsidecar.cli.asking.Asked.get", breaks)
    found = doctoring.examine_all(case_of())
    (one,) = (finding for finding in found if finding.check == "sidecar")
    assert one.reading.endswith("(asking it broke: ZeroDivisionError)")


def test_one_that_answers_drop_by_drop_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    release = threading.Event()
    monkeypatch.setattr("sipsidecar.cli.asking.Asked.get", lambda *_: (release.wait(), b""))
    monkeypatch.setattr(doctoring, "CHECKS", {"sidecar": doctoring.CHECKS["sidecar"]})
    (found,) = doctoring.examine_all(case_of(), seconds=0.1)
    release.set()
    assert (found.state, found.reading) == (
        "fail", "none answers at http://127.0.0.1:1 (no answer in time)",
    )  # fmt: skip


def test_a_running_sidecar_is_examined_from_outside(tmp_path: Path, database: str) -> None:
    with sidecar(tmp_path, "--dsn", database) as running:
        hep, http = (f"{host}:{port}" for host, port in (running.hep, running.http))
        said = running.ask("doctor", "--json", "--dsn", database, "--hep", hep, "--http", http)
        assert running.stop() == 0
    found = {row["check"]: row for row in map(json.loads, said.stdout.splitlines())}
    assert said.returncode == 0, said.stdout
    assert found["sidecar"]["reading"] == f"ready at http://{http}"
    assert found["node"]["state"] == found["partitions"]["state"] == "ok"
    assert found["ports"]["reading"] == f"HEP {hep}, HTTP {http}: in use by it"
    assert found["receive buffer"]["reading"].startswith("the running sidecar has")
    assert found["agents"]["reading"] == "none has sent anything yet"
    assert found["ledger"]["figures"]["balance"] == 0
    assert found["open files"]["figures"]["used"] > 3
