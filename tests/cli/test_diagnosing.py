import asyncio
from collections.abc import Callable, Iterator

import asyncpg
import msgspec
import pytest

import separated
from bench.diagnosing import NONE
from sipsidecar import cli
from sipsidecar.cli import diagnosing
from sipsidecar.cli.parsers import Commands, Parser
from sipsidecar.cli.words import CliError
from sipsidecar.edges.postgres.comparing import Comparison, Wanted
from sipsidecar.signals.diagnose import Diagnosis, Finding, Separator
from terminal import Said

Diagnose = Callable[..., Said]


def separator(name: str, value: str, first_seen_at: int) -> Separator:
    return Separator(
        name=name, value=value, failing=18, of_failing=20, good=5, of_good=80, chance=1e-12, q=1e-9,
        odds=101.0, difference=0.75, low=0.5, high=0.9, first_seen_at=first_seen_at,
    )  # fmt: skip


@pytest.fixture
def diagnose(capsys: pytest.CaptureFixture[str]) -> Diagnose:
    def diagnose(*arguments: str) -> Said:
        capsys.readouterr()  # of the commands that made the database
        parser = Parser(prog="sipsidecar")
        diagnosing.add_command(Commands(parser))
        try:
            given = parser.parse_args(["diagnose", *arguments])
            code: int = given.handle(given)
        except CliError as error:
            return Said(2, "", f"sipsidecar: {error}")
        except SystemExit as end:
            code = int(end.code or 0)
        return Said(code, *capsys.readouterr())

    return diagnose


@pytest.fixture(scope="module")
def stored(
    postgres_dsn: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., str]]:
    """The DSN of a database with calls of a kind, made once each."""
    folder = tmp_path_factory.mktemp("separated")
    config = folder / "cohorts.toml"
    config.write_text(separated.COHORTS)
    made: dict[str, str] = {}

    async def execute(sql: str) -> None:
        connection = await asyncpg.connect(postgres_dsn)
        try:
            await connection.execute(sql)
        finally:
            await connection.close()

    def stored(cause: str, **changes: object) -> str:
        name = f"separated_{len(made)}"
        key = f"{cause} {changes}"
        if key not in made:
            asyncio.run(execute(f"CREATE DATABASE {name}"))
            made[key] = postgres_dsn.replace("///sipsidecar?", f"///{name}?")
            capture = folder / f"{name}.pcap"
            separated.capture(capture, cause=cause, **changes)  # type: ignore[arg-type]
            command = ["replay", "--store", "--config", config, "--dsn", made[key], capture]
            assert cli.main([str(one) for one in command]) == 0
        return made[key]

    yield stored
    for dsn in made.values():
        name = dsn.partition("///")[2].partition("?")[0]
        asyncio.run(execute(f"DROP DATABASE {name} WITH (FORCE)"))


Stored = Callable[..., str]


def test_the_planted_cause_is_said_first_with_its_counts_and_two_invites(
    diagnose: Diagnose, stored: Stored
) -> None:
    said = diagnose("--dsn", stored("a codec line"), "--code", "400", "--trunk", "acme")
    assert said.code == 0
    lines = said.out.splitlines()
    assert lines[0].startswith("24 attempts of trunk acme failed with 400, ")
    assert lines[0].endswith(
        "24 are compared with 96 answered ones of the same hours, by the INVITE that went out"
    )
    assert lines[2] == "1. the format parameters G729 annexb=yes"
    assert " of 24 failing calls, " in lines[3]
    assert " of 96 good ones; odds " in lines[3]
    assert "look at how the far side reads the offer" in said.out
    assert "a=fmtp:18 annexb=yes" in said.out
    assert "failing (400): " in said.out
    assert "good: " in said.out
    assert said.out.count("Via: SIP/2.0/UDP 203.0.113.5") == 2  # what went to the trunk


def test_programs_read_the_same(diagnose: Diagnose, stored: Stored) -> None:
    said = diagnose("--dsn", stored("a codec line"), "--code", "4xx", "--json")
    assert said.code == 0
    facts, finding, *_ = said.rows
    assert (facts["kind"], facts["hop"], facts["failing"], facts["good"]) == (
        "diagnosis", "ingress", 24, 96,
    )  # fmt: skip
    assert (finding["kind"], finding["number"], finding["name"]) == ("finding", 1, "fmtp")
    assert finding["text"] == "the format parameters G729 annexb=yes"
    assert finding["follows"] is None
    assert len(finding["call_ids"]) == 5
    assert finding["pair"][0] in finding["call_ids"]
    assert finding["alike"][0]["name"] == "sdp-line"
    assert finding["failing"] / finding["of_failing"] > 0.8


def test_a_challenged_call_is_compared_by_the_invite_that_was_refused(
    diagnose: Diagnose, stored: Stored
) -> None:
    dsn = stored("header order", challenged=True)
    said = diagnose("--dsn", dsn, "--code", "400", "--hop", "ingress")
    assert said.code == 0
    assert said.out.splitlines()[2].startswith("1. CSeq before ")


def test_without_a_cause_it_says_that_nothing_separates_them(
    diagnose: Diagnose, stored: Stored
) -> None:
    said = diagnose("--dsn", stored(NONE), "--code", "400")
    assert said.code == 1
    assert "nothing separates them: " in said.out
    assert "of the 24 failing calls share" in said.out
    assert said.out.count("\n") < 6


def test_with_few_failing_calls_it_says_what_cannot_be_known(
    diagnose: Diagnose, stored: Stored
) -> None:
    said = diagnose("--dsn", stored(NONE), "--code", "400", "--limit", "2")
    assert said.code == 1
    assert "2 failing and 2 good calls are too few to know" in said.out
    assert "that share a cause would be enough" in said.out


def test_a_part_of_the_calls_says_of_how_many(diagnose: Diagnose, stored: Stored) -> None:
    said = diagnose("--dsn", stored("a codec line"), "--code", "400", "--limit", "20")
    assert "24 calls failed with 400" in said.out
    assert "; 20 are compared with 20 answered ones of the same hours (of 96)" in said.out
    assert "percentage points" not in said.out


def test_without_such_failures_it_says_so(diagnose: Diagnose, stored: Stored) -> None:
    said = diagnose("--dsn", stored(NONE), "--code", "503")
    assert said.code == 1
    assert "no such calls failed" in said.out
    rows = diagnose("--dsn", stored(NONE), "--code", "503", "--json").rows
    assert [row["kind"] for row in rows] == ["diagnosis"]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--code", "200"], "200: expected a code or class of failures, such as 400 or 5xx"),
        (["--code", "4000"], "4000: expected a code or class of failures, such as 400 or 5xx"),
        (["--code", "400", "--since", "1h", "--until", "2h"], "--since is not before --until"),
        (["--code", "400", "--since", "yesterday"], "yesterday: expected so long ago (30m, 1d)"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    diagnose: Diagnose, arguments: list[str], why: str
) -> None:
    said = diagnose(*arguments)
    assert said.code == 2
    assert why in said.err


@pytest.mark.parametrize("limit", ["0", "2001", "x"])
def test_a_limit_is_a_number_within_bounds(diagnose: Diagnose, limit: str) -> None:
    said = diagnose("--code", "400", "--limit", limit)
    assert said.code == 2
    assert "expected a number from 1 to 2000" in said.err


def test_files_and_pipes_get_no_colour_and_a_terminal_gets_some(
    diagnose: Diagnose, stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    dsn = stored("a codec line")
    assert "\x1b" not in diagnose("--dsn", dsn, "--code", "400").out
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("NO_COLOR", raising=False)
    said = diagnose("--dsn", dsn, "--code", "400")
    assert "\x1b[1m1. " in said.out
    assert "comparing calls  100 %" in said.err


def test_what_is_gone_is_counted_and_without_good_calls_there_is_no_comparison(
    diagnose: Diagnose, stored: Stored
) -> None:
    dsn = stored(NONE, failing=4, calls=12)

    async def delete(what: str) -> None:
        connection = await asyncpg.connect(dsn)
        try:
            await connection.execute(f"DELETE FROM {what}")  # noqa: S608 -- of this test
        finally:
            await connection.close()

    asyncio.run(delete("messages"))
    said = diagnose("--dsn", dsn, "--code", "400")
    assert said.code == 1
    assert "of 12 no INVITE is stored" in said.out
    assert "not stored any more" in said.out
    asyncio.run(delete("calls WHERE answered"))
    said = diagnose("--dsn", dsn, "--code", "400")
    assert said.code == 1
    assert "no call was answered meanwhile" in said.out


def test_what_is_new_says_since_when() -> None:
    new = Finding(
        separator=separator("header", "x-new", first_seen_at=1_795_000_000_000_000), follows=0
    )
    told = diagnosing._followers([new] * 7)
    assert told.endswith("a header X-New (with 1, new at 2026-11-18T11:06:40Z); and 2 more")
    found = Comparison(hop="ingress", failing=20, good=80, calls=(), slots=())
    lines = diagnosing._finding(1, msgspec.structs.replace(new, follows=None), found, colour=False)
    assert "new: first seen at 2026-11-18T11:06:40Z" in lines
    assert "with it 75 percentage points more of the calls fail" in lines


def test_features_that_were_too_many_are_counted() -> None:
    wanted = Wanted(since_us=0, until_us=1, final_class="4xx", trunk="acme", tenant="t")
    found = Comparison(hop="egress", failing=20, good=80, calls=(), slots=(), same_hours=False)
    said = diagnosing._beginning(wanted, found, Diagnosis(failing=20, good=70, cut=3))
    assert said.startswith("20 attempts of trunk acme, tenant t failed with 4xx, 1970-01-01T")
    assert "70 answered ones of the whole time (of 80)" in said
    assert said.endswith("; 3 features were too many and left out")
