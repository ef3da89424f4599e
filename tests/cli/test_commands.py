import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from running import CORPUS, ENVIRONMENT, LIMIT, command
from sipsidecar import __version__
from sipsidecar.cli import commands
from terminal import Run, hostile_capture

COMMANDS = (
    "run", "demo", "replay", "calls", "ladder", "pcap", "forget", "mos", "freeswitch", "admission",
    "cohorts", "alerts", "timeline", "explain", "diagnose", "report", "summary", "dsn", "doctor",
    "check-config",
)  # fmt: skip


def test_without_a_command_there_is_help(run: Run) -> None:
    said = run()
    assert said.code == 2
    assert all(f"\n    {name}" in said.out for name in COMMANDS)


def test_the_version_is_the_packages(run: Run) -> None:
    assert run("--version").out == f"sipsidecar {__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example_that_it_understands(run: Run, name: str) -> None:
    said = run(name, "--help")
    assert said.code == 0
    example = said.out.rpartition("example: ")[2].strip()
    inner = re.search(r"\$\((.*)\)", example)
    words = shlex.split(inner[1] if inner else example)
    assert words[:2] == ["sipsidecar", name]
    assert vars(commands._parser().parse_args(words[1:]))["handle"]


ADMISSION = ("status", "explain", "drain", "resume", "set", "signal")


@pytest.mark.parametrize("name", ADMISSION)
def test_every_command_of_admission_has_help_with_an_example(run: Run, name: str) -> None:
    said = run("admission", name, "--help")
    assert said.code == 0
    words = shlex.split(said.out.rpartition("example: ")[2].strip())
    assert words[:3] == ["sipsidecar", "admission", name]
    assert vars(commands._parser().parse_args(words[1:]))["handle"]


def test_the_commands_are_these(run: Run) -> None:
    found = re.findall(r"^    ([a-z-]+)", run("--help").out, re.MULTILINE)
    assert found == list(COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nope"], "invalid choice: 'nope'"),
        (["calls", "--nope"], "--nope"),
        (["calls", "--code", "6"], "6: expected a final code or a class, such as 486 or 4xx"),
        (["calls", "--code", "7xx"], "7xx: expected a final code"),
        (["calls", "--since", "yesterday"], "yesterday: expected so long ago (30m, 1d) or a date"),
        (["calls", "--since", "1.2.3h"], "1.2.3h: expected"),
        (["calls", "--until", "2026-13-01"], "2026-13-01: expected"),
        (["calls", "--pdd-above", "x"], "x: expected a duration such as 2, 1.5s, 2000ms"),
        (["calls", "--pdd-above", "-1"], "expected"),
        (["calls", "--limit", "0"], "expected a number from 1 on, got '0'"),
        (["calls", "--limit", "-5"], "expected"),
        (["calls", "--limit", "many"], "expected a number from 1 on, got 'many'"),
        (["calls", "--mos-below", "x"], "expected a MOS such as 3.5, got 'x'"),
        (["calls", "--mos-below", "nan"], "expected a MOS such as 3.5, got 'nan'"),
        (["calls", "--finding", "sad"], "invalid choice: 'sad' (choose from"),
        (["calls", "--finding", ""], "one_way_audio"),
        (["calls", "--sort", "call_id"], "invalid choice: 'call_id'"),
        (["calls", "--answered", "--failed"], "not allowed with"),
        (["calls", "--config", "absent.toml"], "absent.toml: No such file or directory"),
        (["calls", "--dsn", "nonsense"], "database.dsn: expected postgresql://"),
        (["calls", "--dsn", "postgresql://me:secret@127.0.0.1:1/x"], "127.0.0.1 port 1, database x"),
        (["calls"], "no calls here yet"),
        (["ladder", "x"], "no calls here yet"),
        (["pcap", "x", "-o", "x.pcap"], "no calls here yet"),
        (["dsn"], "no database runs in"),
        (["pcap", "x"], "-o"),
        (["ladder"], "CALL-ID"),
        (["admission"], "required: COMMAND"),
        (["replay"], "FILE"),
        (["replay", "absent.pcap"], "absent.pcap: no such file"),
        (["replay", "."], ".: Is a directory"),
        (["replay", "--json", __file__], "not a pcap or pcapng file"),
        (["calls", "\x1b[31m"], "\\x1b[31m"),
        (["calls", "--live", "--code", "486"], "--live shows all calls that are going on"),
    ],
)  # fmt: skip
def test_an_error_is_one_line_that_says_what_is_wrong(
    run: Run, arguments: list[str], says: str, tmp_path: Path
) -> None:
    line = run(*arguments).refusal
    assert says in line
    assert "secret" not in line
    assert list(tmp_path.iterdir()) == []


def test_the_configuration_is_printed_with_the_source_of_each_value(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "sipsidecar.toml"
    file.write_text("[hep]\ntcp = false\nagents = { edge = 2001 }\n")
    monkeypatch.setenv("SIPSIDECAR_NODE__ID", "7")
    dsn = "postgresql://me:hush-hush@db/x"
    said = run("check-config", "--config", file, "--dsn", dsn)
    assert said.code == 0
    assert re.search(rf"^hep\.tcp +{re.escape('= false')} +# file {file}$", said.out, re.MULTILINE)
    assert re.search(r"^node\.id += 7 +# env SIPSIDECAR_NODE__ID$", said.out, re.MULTILINE)
    assert re.search(r"^http\.listen += \"127.0.0.1:9080\" +# default$", said.out, re.MULTILINE)
    assert re.search(r"^database\.dsn += .*\*\*\*@db/x\" +# flag --dsn$", said.out, re.MULTILINE)
    assert "hush-hush" not in said.out
    as_json = json.loads(run("check-config", "--config", file, "--json").out)
    assert as_json["hep.agents"] == {"value": {"edge": 2001}, "source": f"file {file}"}


def test_a_reader_that_has_enough_is_no_error(dsn: str) -> None:
    for arguments in (
        ["replay", "--json", str(CORPUS / "kamailio/a_answered.pcap")],
        ["calls", "--dsn", dsn, "--since", "30d", "--limit", "1000", "--json"],
    ):
        with subprocess.Popen(
            [sys.executable, "-m", "sipsidecar", *arguments],
            env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        ) as process:  # fmt: skip
            assert process.stdout is not None
            assert process.stderr is not None
            assert json.loads(process.stdout.readline())["kind"] == "call"
            process.stdout.close()
            assert process.stderr.read() == ""
            assert process.wait(LIMIT) == 0


def test_names_of_any_script_are_printed_on_any_terminal(tmp_path: Path) -> None:
    path = hostile_capture(tmp_path / "hostile.pcap")
    path.write_bytes(path.read_bytes().replace(b"evil", "é漢".encode()[:4]))
    for encoding in ("ascii", "latin-1", "utf-8"):
        said = command("replay", path, PYTHONIOENCODING=encoding)
        assert (said.returncode, said.stderr) == (0, "")
        assert "1 calls" in said.stdout
