from pathlib import Path

import pytest

from running import recent
from sipsidecar.privacy import Mask
from terminal import HOSTILE, Run

KEY = "a key of sixteen bytes"


@pytest.fixture
def stored(run: Run, database: str, tmp_path: Path) -> str:
    """The DSN of a database with the calls of one capture."""
    capture = recent("kamailio/j_failover", tmp_path / "j.pcap", 3600)
    assert run("replay", "--store", "--dsn", database, capture).code == 0
    return database


def _a_user(run: Run, dsn: str) -> tuple[str, set[str]]:
    """Somebody who is called, and the Call-IDs of it."""
    rows = run("calls", "--dsn", dsn, "--json").rows
    user = rows[0]["to_user"]
    return user, {row["call_id"] for row in rows if row["to_user"] == user}


def test_without_yes_it_says_what_would_go_and_deletes_nothing(run: Run, stored: str) -> None:
    user, call_ids = _a_user(run, stored)
    for _ in range(2):
        said = run("forget", user, "--dsn", stored)
        assert (said.code, said.err) == (0, "")
        assert "Nothing was deleted: say --yes" in said.out
        assert all(f"\n  {call_id}\n" in said.out for call_id in call_ids)
        (line,) = (line for line in said.out.splitlines() if line.startswith("calls "))
        assert int(line.split()[1]) == len(call_ids)


def test_with_yes_everything_of_the_person_goes_and_the_others_stay(run: Run, stored: str) -> None:
    user, call_ids = _a_user(run, stored)
    (listed,) = run("forget", user, "--json", "--dsn", stored).rows
    (gone,) = run("forget", user, "--json", "--yes", "--dsn", stored).rows
    assert (listed["deleted"], gone["deleted"]) == (False, True)
    assert set(gone["call_ids"]) == set(listed["call_ids"]) >= call_ids
    assert gone["rows"] == listed["rows"]
    assert gone["rows"]["messages"] > gone["rows"]["calls"] > 0
    left = run("calls", "--dsn", stored, "--json").rows
    assert left
    assert not call_ids & {row["call_id"] for row in left}
    assert run("ladder", min(call_ids), "--dsn", stored).code == 2
    said = run("forget", user, "--yes", "--dsn", stored)
    assert (said.code, said.out, said.err) == (1, "", f"nothing is stored of {user}\n")


def test_where_users_are_masked_the_person_is_found_by_name_and_by_token(
    run: Run, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    capture = recent("kamailio/j_failover", tmp_path / "j.pcap", 3600)
    assert run("replay", "--store", "--dsn", database, capture).code == 0
    open_user, call_ids = _a_user(run, database)
    assert run("forget", open_user, "--yes", "--dsn", database).code == 0
    monkeypatch.setenv("SIPSIDECAR_PRIVACY__KEY", KEY)
    monkeypatch.setenv("SIPSIDECAR_PRIVACY__MASK_USERS", "true")
    assert run("replay", "--store", "--dsn", database, capture).code == 0
    token = Mask(KEY.encode(), users=True).user(open_user)
    (by_name,) = run("forget", open_user, "--json", "--dsn", database).rows
    (by_token,) = run("forget", token, "--json", "--dsn", database).rows
    assert by_name["users"] == [open_user, token]
    assert by_token["users"] == [token]
    assert by_name["rows"] == by_token["rows"]
    assert set(by_name["call_ids"]) == set(by_token["call_ids"]) >= call_ids
    monkeypatch.delenv("SIPSIDECAR_PRIVACY__MASK_USERS")
    monkeypatch.delenv("SIPSIDECAR_PRIVACY__KEY")
    said = run("forget", open_user, "--dsn", database)
    assert (said.code, said.out) == (1, "")


def test_rows_that_still_wait_on_disk_are_named(
    run: Run, stored: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user, _ = _a_user(run, stored)
    spool = tmp_path / "spool"
    monkeypatch.setenv("SIPSIDECAR_SPOOL__DIRECTORY", str(spool))
    assert run("forget", user, "--dsn", stored).err == ""
    spool.mkdir()
    (spool / "1-7-calls.pgcopy").write_bytes(b"")
    (spool / "1-8-calls.tmp").write_bytes(b"")
    said = run("forget", user, "--json", "--dsn", stored)
    assert said.rows[0]["spool_files"] == 1
    assert said.err.startswith(f"1 files wait in {spool}, and their rows come later: run this")
    nobody = run("forget", "nobody", "--dsn", stored)
    assert nobody.code == 1
    assert "come later" in nobody.err


def test_an_old_call_is_left_out_when_a_time_is_given(run: Run, stored: str) -> None:
    user, _ = _a_user(run, stored)
    assert run("forget", user, "--since", "2000-01-01", "--dsn", stored).code == 0
    assert run("forget", user, "--since", "2999-01-01", "--dsn", stored).code == 1
    assert "expected so long ago" in run("forget", user, "--since", "x", "--dsn", stored).refusal


@pytest.mark.parametrize("user", ["", "sip:alice@h", "TEL:+4930"])
def test_a_uri_is_no_user(run: Run, user: str) -> None:
    assert "expected a user alone" in run("forget", user).refusal


def test_a_strangers_words_cannot_move_a_terminal(run: Run, dsn: str) -> None:
    said = run("forget", HOSTILE, "--dsn", dsn)
    assert said.code == 0
    assert "hostile-evil" in said.out
    assert all(char.isprintable() for char in said.out.replace("\n", ""))
    unknown = run("forget", f"none-{HOSTILE}\udcff", "--json", "--dsn", dsn)
    assert unknown.code == 1
    assert unknown.rows[0]["rows"]["calls"] == 0
