"""Finds what is stored of one person, and deletes it."""

import argparse
import asyncio
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from sipsidecar import app
from sipsidecar.cli.reading import reading_dsn
from sipsidecar.cli.words import CliError, config_of, json_line, moment_of
from sipsidecar.config import Config
from sipsidecar.edges.postgres import PostgresSettings
from sipsidecar.edges.postgres.people import Person, find_person, forget_person
from sipsidecar.privacy import Mask
from sipsidecar.tables import printable, table

_TOKEN = re.compile("m[0-9a-f]{16}")


def forget(arguments: argparse.Namespace) -> int:
    """List what is stored of a user or, when told to, delete it."""
    config = config_of(arguments)
    users = _users(arguments.user, config)
    since_us = moment_of(arguments.since) if arguments.since else None
    found, gone = asyncio.run(_forget(config, users, since_us, delete=arguments.yes))
    waiting = _spooled(app.spool_directory(config))
    if arguments.json:
        said = {
            "users": [user.encode("utf-8", "backslashreplace").decode() for user in users],
            "deleted": arguments.yes,
            "rows": gone if arguments.yes else found.rows,
            "call_ids": found.call_ids,
            "spool_files": waiting,
        }
        print(json_line(said))
    else:
        _show(users, found, gone, deleted=arguments.yes)
    if waiting:
        print(
            f"{waiting} files wait in {printable(str(app.spool_directory(config)))}, and their rows"
            " come later: run this again when they are stored",
            file=sys.stderr,
        )
    return 0 if any(found.rows.values()) else 1


def _users(user: str, config: Config) -> list[str]:
    """The user, and the token that stands for it where users are masked."""
    if not user or re.match("(?:sips?|tel):", user, re.IGNORECASE):
        raise CliError(f"{user}: expected a user alone, such as alice or +4930123456")
    if config.privacy.key and not _TOKEN.fullmatch(user):
        return [user, Mask(config.privacy.key.encode(), users=True).user(user)]
    return [user]


async def _forget(
    config: Config, users: Sequence[str], since_us: int | None, *, delete: bool
) -> tuple[Person, dict[str, int]]:
    gone: Counter[str] = Counter()
    async with reading_dsn(config) as dsn:
        settings = PostgresSettings(dsn=dsn, password=config.database.password)
        found = await find_person(settings, users, since_us)
        if delete:
            try:
                async for rows in forget_person(settings, users, found):
                    gone.update(rows)
            except BaseException:
                print(f"{sum(gone.values())} rows were deleted before this:", file=sys.stderr)
                raise
    return found, {name: gone[name] for name in found.rows}


def _show(users: Sequence[str], found: Person, gone: dict[str, int], *, deleted: bool) -> None:
    who = printable(" or ".join(users))
    if not any(found.rows.values()):
        print(f"nothing is stored of {who}", file=sys.stderr)
        return
    counts = gone if deleted else found.rows
    column = "deleted" if deleted else "rows"
    print(table([{"table": t, column: n} for t, n in counts.items()], ["table", column]))
    if found.call_ids:
        print(f"\nCall-IDs in which {who} is caller, callee or registered:")
    for call_id in found.call_ids:
        print(f"  {printable(call_id)}")
    if found.rows["quarantine"]:
        print("\nThe rows in quarantine hold the user somewhere among their bytes.")
    if not deleted:
        print("\nNothing was deleted: say --yes to delete these rows.")


def _spooled(directory: Path) -> int:
    """How many files with rows wait to be stored."""
    try:
        return sum(1 for path in directory.iterdir() if path.name.endswith(".pgcopy"))
    except OSError:  # no spool, or not ours to read
        return 0
