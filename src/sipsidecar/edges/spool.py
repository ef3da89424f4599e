"""Batches to files that outlive the process, until PostgreSQL has them.

A file is what `COPY table (columns) FROM file (FORMAT binary)` reads, one for each table of a batch,
named `NODE-SEQUENCE-TABLE.pgcopy`. What else must be known to store it exactly once is in the header
extension, an area that PostgreSQL skips: three lines of JSON, see `_Seal`, `_Summary`, `_Details`.
A batch that got another number is `NODE-SEQUENCE-PLACE-TABLE.pgcopy`: its place is its old number.
"""

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import re
import stat
import struct
import time
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import msgspec

from sipsidecar.batch import WORTH, Batch, Row, Spooled, SpoolError
from sipsidecar.rows import HEADER, LATER_COLUMNS, TABLES, TRAILER, Replaced, clean_key
from sipsidecar.signals.snapshot import SpoolFigures

T = TypeVar("T")

MAX_FILES = 200_000
"""Files in one spool: each takes about 300 bytes of memory while it waits."""
BAD_KEPT = 8
"""Damaged files that are kept for people to look at; they are not in `max_bytes`."""
BLOCK = 4096
"""A file takes whole blocks of the disk, and that is what `max_bytes` is about."""

COMPLAIN_EVERY = 60.0

log = logging.getLogger("sipsidecar.spool")

_SIDES = ("disk", "inherited", "put", "stored", "refused")
_TRIES = 8
_NULL = b"\xff\xff\xff\xff"
_TEMPORARY = ".tmp"
_BAD = ".bad"
_SIGNATURE = HEADER[:15]
"""Magic and flags; the length of the extension follows."""
_START = len(HEADER)
_PEEK = 1024
_FULL = {errno.ENOSPC, errno.EDQUOT}
_NAME = re.compile(
    rf"([0-9]{{1,10}})-([0-9]{{1,19}})(?:-([0-9]{{1,19}}))?-({'|'.join(TABLES)})\.pgcopy"
    r"(\.tmp|\.bad)?"
)
_HIGHEST = 1 << 62
"""Numbers from here on are not ours: they would leave none for later batches."""


class _Seal(msgspec.Struct, frozen=True):
    """First line: what must be right to believe the rest."""

    crc32: int
    """Of everything behind this line."""


class _Summary(msgspec.Struct, frozen=True):
    """Second line: what is known of a file without reading all of it."""

    life: int
    rows: int
    packets: int
    """Received packets that its rows account for."""
    bytes: int
    """Of the rows."""
    spooled_at: float
    """Seconds UTC."""


class _Details(msgspec.Struct, frozen=True):
    """Third line: what is needed to store it."""

    columns: tuple[str, ...]
    lengths: list[int]
    """Bytes of each row."""
    packets: list[int]
    """Of each row."""
    replaced: list[Replaced]


class _File(NamedTuple):
    place: int
    sequence: int
    rows: int
    packets: int
    size: int
    """Bytes of the disk."""
    spooled_at: float


class _BadFileError(Exception):
    """A file is not what was written; its summary, when that much can be read."""

    def __init__(self, message: str, summary: _Summary | None = None) -> None:
        super().__init__(message)
        self.summary = summary


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All counts of a spool at one moment; rows and packets by table, or by table and reason.

    What was put or inherited is on disk, stored, refused or dropped.
    """

    batches: int = 0
    bytes: int = 0
    oldest_at: float | None = None
    """When the oldest file was written, seconds UTC; None while there is none."""
    rows: dict[str, int] = {}
    packets: dict[str, int] = {}
    rows_inherited: dict[str, int] = {}
    packets_inherited: dict[str, int] = {}
    rows_put: dict[str, int] = {}
    packets_put: dict[str, int] = {}
    rows_stored: dict[str, int] = {}
    packets_stored: dict[str, int] = {}
    rows_refused: dict[str, int] = {}
    packets_refused: dict[str, int] = {}
    rows_dropped: dict[tuple[str, str], int] = {}
    packets_dropped: dict[tuple[str, str], int] = {}
    bad_files: int = 0
    """Damaged files found, those whose rows nobody knows included."""
    stuck_files: int = 0
    """Files that could not be removed: the next start finds them, and the ledger knows them."""


class _Content(NamedTuple):
    """A file to be: not joined, for its rows may take many megabytes."""

    summary: _Summary
    parts: tuple[bytes, ...]

    @property
    def size(self) -> int:
        """Bytes of the disk."""
        return _on_disk(sum(map(len, self.parts)))


def encode(
    table: str, rows: Sequence[Row], replaced: Sequence[Replaced], life: int, now: float
) -> _Content:
    """Turn the rows of a table into the content of a file."""
    body = b"".join([row.data for row in rows])
    packets = [row.packets for row in rows]
    summary = _Summary(life, len(rows), sum(packets), len(body), now)
    details = _Details(
        columns=TABLES[table],
        lengths=[len(row.data) for row in rows],
        packets=packets,
        replaced=[clean_key(key) for key in replaced],  # JSON is UTF-8, a stranger's tag may not be
    )
    lines = b"%b\n%b\n" % (msgspec.json.encode(summary), msgspec.json.encode(details))
    seal = _Seal(zlib.crc32(TRAILER, zlib.crc32(body, zlib.crc32(lines))))
    extension = b"%b\n%b" % (msgspec.json.encode(seal), lines)
    length = struct.pack(">i", len(extension))
    return _Content(summary, (_SIGNATURE + length + extension, body, TRAILER))


class _Opened(NamedTuple):
    """The beginning of a file."""

    seal: _Seal
    summary: _Summary
    sealed_at: int
    details_at: int
    rows_at: int


def _opened(head: bytes, size: int) -> _Opened:
    """Read the beginning of a file of so many bytes."""
    try:
        if head[: len(_SIGNATURE)] != _SIGNATURE:
            raise _BadFileError("it does not begin like a COPY file")
        (length,) = struct.unpack_from(">i", head, len(_SIGNATURE))
        sealed_at = head.index(b"\n", _START) + 1
        details_at = head.index(b"\n", sealed_at) + 1
        seal = msgspec.json.decode(head[_START:sealed_at], type=_Seal)
        summary = msgspec.json.decode(head[sealed_at:details_at], type=_Summary)
    except (struct.error, ValueError):
        raise _BadFileError("its header is not understood") from None
    if min(summary.rows, summary.packets, summary.bytes) < 0:
        raise _BadFileError("its header has impossible numbers")
    rows_at = _START + length
    if rows_at < details_at or size != rows_at + summary.bytes + len(TRAILER):
        raise _BadFileError("it is not as long as it says", summary)
    return _Opened(seal, summary, sealed_at, details_at, rows_at)


def decode(table: str, content: bytes) -> tuple[_Summary, list[Row], list[Replaced]]:
    """Turn the content of a file back into rows and replaced keys; nothing damaged comes through."""
    opened = _opened(content, len(content))
    summary = opened.summary
    if zlib.crc32(memoryview(content)[opened.sealed_at :]) != opened.seal.crc32:
        raise _BadFileError("its checksum is wrong", summary)
    try:
        details = msgspec.json.decode(content[opened.details_at : opened.rows_at], type=_Details)
        data = []
        end = opened.rows_at
        for length in details.lengths:
            data.append(content[end : end + length])
            end += length
        if details.columns != TABLES[table]:
            data = _fitted(data, details.columns, TABLES[table])
        rows = [Row(one, packets) for one, packets in zip(data, details.packets, strict=True)]
    except (struct.error, ValueError):
        raise _BadFileError("its header is not understood", summary) from None
    return summary, rows, details.replaced


def _fitted(rows: Iterable[bytes], have: Sequence[str], want: Sequence[str]) -> list[bytes]:
    """Give rows of another version of the sidecar the columns of this one; what is new is NULL.

    Or what stands for nothing where NULL may not.
    """
    count = struct.pack(">h", len(want))
    new = {column: LATER_COLUMNS.get(column, _NULL) for column in want}
    fitted = []
    for row in rows:
        at = 2
        fields = dict(new)
        for column in have:
            (length,) = struct.unpack_from(">i", row, at)
            end = at + 4 + max(length, 0)
            fields[column] = row[at:end]
            at = end
        fitted.append(count + b"".join([fields[column] for column in want]))
    return fitted


class SpoolFolder:
    """The files, their bounds and their counts; every call waits for the disk."""

    def __init__(
        self,
        directory: Path,
        node_id: int,
        *,
        max_bytes: int,
        max_age_seconds: float,
        max_files: int = MAX_FILES,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._directory = directory
        self._node_id = node_id
        self._max_bytes = max_bytes
        self._max_age = max_age_seconds
        self._max_files = max_files
        self._now = now
        self._fd = self._lock = -1
        self._files: dict[str, deque[_File]] = {table: deque() for table in WORTH}
        self._batches: Counter[tuple[int, int]] = Counter()
        self._bad: deque[str] = deque()
        self._out: tuple[int, int] | None = None
        self._complained: dict[str, float] = {}
        self._bytes = 0
        self.highest = -1
        """The highest sequence it has seen; -1 for none."""
        self._rows: dict[str, Counter[str]] = {side: Counter() for side in _SIDES}
        self._packets: dict[str, Counter[str]] = {side: Counter() for side in _SIDES}
        self._rows_dropped: Counter[tuple[str, str]] = Counter()
        self._packets_dropped: Counter[tuple[str, str]] = Counter()
        self._bad_files = self._stuck_files = 0

    # -- opening

    def open(self) -> None:
        """Become the only user of this node's files, and find what an earlier life left."""
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._check_mode()
            self._acquire()
            self._index()
        except OSError as error:
            self.close()
            raise SpoolError(
                f"{self._directory}: {error.strerror}; set spool.directory to a folder that the "
                "sidecar may write, or spool.max_bytes to 0 to do without"
            ) from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let others use the folder; the files stay."""
        for fd in (self._lock, self._fd):
            if fd >= 0:
                os.close(fd)
        self._fd = self._lock = -1

    def _check_mode(self) -> None:
        mode = stat.S_IMODE(os.fstat(self._fd).st_mode)
        if mode & 0o022:
            raise SpoolError(
                f"{self._directory} may be written by other users (mode {mode:o}): "
                "`chmod go-w` it, or set spool.directory to another folder"
            )

    def _acquire(self) -> None:
        # The file stays when the lock goes: a removed one could be locked twice.
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._lock = os.open(f"{self._node_id}.lock", flags, 0o600, dir_fd=self._fd)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(self._lock, 64, 0).decode("ascii", "replace").strip()
            who = f"sidecar pid {owner}" if owner.isdecimal() else "another sidecar"
            raise SpoolError(
                f"{self._directory} is in use by {who} as node {self._node_id}: "
                "stop it, or give this one its own node.id or spool.directory"
            ) from None
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)

    def _index(self) -> None:
        """Find this node's files by name; whatever else lies in the folder is left alone."""
        found: list[tuple[str, _File]] = []
        bad = []
        for name in os.listdir(self._fd):  # noqa: PTH208 -- of the folder we hold
            match = _NAME.fullmatch(name)
            if match is None:
                continue
            sequence, table, suffix = int(match[2]), match[4], match[5] or ""
            place = int(match[3] or sequence)
            if name != self._name(place, sequence, table) + suffix or sequence >= _HIGHEST:
                continue
            self.highest = max(self.highest, sequence, place)
            if suffix == _TEMPORARY:
                os.unlink(name, dir_fd=self._fd)
            elif suffix == _BAD:
                bad.append(name)
            else:
                file = self._inherit(name, table, place, sequence)
                if file is not None:
                    found.append((table, file))
        self._bad.extendleft(sorted(bad, reverse=True))
        self._keep_few_bad()
        for table, file in sorted(found, key=lambda one: one[1][:2]):
            self._remember(table, file)

    def _inherit(self, name: str, table: str, place: int, sequence: int) -> _File | None:
        """Count a file of an earlier life; None for one that is no use."""
        try:
            head, size = self._read(name, _PEEK)
            summary = _opened(head, size).summary
        except _BadFileError as error:
            self._spoiled(name, str(error))
            if error.summary is not None:
                self._count("inherited", table, error.summary.rows, error.summary.packets)
                self._drop(table, "spool-corrupt", error.summary.rows, error.summary.packets)
            return None
        self._count("inherited", table, summary.rows, summary.packets)
        return _file(place, sequence, summary, _on_disk(size))

    # -- the work

    @property
    def batches(self) -> int:
        """How many batches are on disk, whole or in part."""
        return len(self._batches)

    def put(self, spooled: Spooled, *, make_room: bool = True) -> None:
        """Write a batch, as the newest: when this returns it survives a crash.

        Where room is short what is worth least goes first, oldest first, this batch included; or
        nothing goes. SpoolError when nothing of the batch was written.
        """
        sequence, life, batch = spooled
        if any(files and files[-1].place >= sequence for files in self._files.values()):
            raise ValueError(f"sequence {sequence} is not above all that are on disk")
        self._expire()
        now = self._now()
        contents = {}
        for table in reversed(WORTH):
            rows = batch.tables.get(table, [])
            keys = [key for key in batch.replaced if key.table == table]
            if rows or keys:
                contents[table] = encode(table, rows, keys, life, now)
        dropped = self._room_for(contents, make_room=make_room)
        written: dict[str, _File] = {}
        try:
            for table, content in contents.items():
                try:
                    self._write(self._name(sequence, sequence, table), content, make_room and table)
                except OSError as error:
                    if not (written and make_room):
                        raise
                    dropped[table] = _reason(error)
                else:
                    written[table] = _file(sequence, sequence, content.summary, content.size)
            os.fsync(self._fd)
        except OSError as error:
            for table in written:
                self._unlink(self._name(sequence, sequence, table))
            raise SpoolError(f"{self._directory}: {error.strerror}", _reason(error)) from error
        self.highest = max(self.highest, sequence)
        if not make_room:
            self._out = sequence, sequence  # on its way to the store already
        for table, file in written.items():
            self._remember(table, file)
        for table, rows in batch.tables.items():
            packets = sum(row.packets for row in rows)
            self._count("put", table, len(rows), packets)
            if table in dropped:
                self._drop(table, dropped[table], len(rows), packets)

    def oldest(self) -> Spooled | None:
        """Read the batch that must be stored first; damaged files are set aside and counted."""
        self._out = None
        self._expire()
        while self._batches:
            place, sequence = min(files[0][:2] for files in self._files.values() if files)
            life = 0
            tables: dict[str, list[Row]] = {}
            replaced: list[Replaced] = []
            for table in reversed(WORTH):
                files = self._files[table]
                if not files or files[0][:2] != (place, sequence):
                    continue
                name = self._name(place, sequence, table)
                try:
                    content, _ = self._read(name)
                    summary, rows, keys = decode(table, content)
                    _check(files[0], summary)
                except (_BadFileError, FileNotFoundError) as error:
                    file = self._forget(table, 0)
                    self._spoiled(name, str(error))
                    self._drop(table, "spool-corrupt", file.rows, file.packets)
                except OSError as error:
                    raise SpoolError(f"{self._directory}: {error.strerror}") from error
                else:
                    life = summary.life
                    replaced += keys
                    if rows:
                        tables[table] = rows
            if (place, sequence) in self._batches:
                self._out = place, sequence
                return Spooled(sequence, life, Batch(tables, replaced))
        return None

    def renumber(self, spooled: Spooled, sequence: int) -> Spooled:
        """Give a batch another sequence, for good: its files get other names, and keep their place.

        Killed half-way it leaves two batches, whose files are stored once each.
        """
        try:
            for table, at in self._places(spooled):
                file = self._files[table][at]
                os.rename(
                    self._name(file.place, file.sequence, table),
                    self._name(file.place, sequence, table),
                    src_dir_fd=self._fd,
                    dst_dir_fd=self._fd,
                )
                self._forget(table, at)
                self._remember(table, file._replace(sequence=sequence), at)
                self.highest = max(self.highest, sequence)
            os.fsync(self._fd)
        except OSError as error:
            raise SpoolError(f"{self._directory}: {error.strerror}") from error
        return spooled._replace(sequence=sequence)

    def done(self, spooled: Spooled, refused: Mapping[str, Sequence[int]]) -> None:
        """Remove a batch that is in the database; its refused rows (indexes) are in quarantine."""
        for table, rows in self._removed(spooled):
            out = [rows[index] for index in refused.get(table, ())]
            packets = sum(row.packets for row in out)
            self._count("refused", table, len(out), packets)
            everything = sum(row.packets for row in rows)
            self._count("stored", table, len(rows) - len(out), everything - packets)

    def lost(self, spooled: Spooled, reason: str) -> None:
        """Remove a batch that will never be written."""
        for table, rows in self._removed(spooled):
            self._drop(table, reason, len(rows), sum(row.packets for row in rows))

    def report(self) -> Report:
        """All counts as they are now."""
        oldest = [files[0].spooled_at for files in self._files.values() if files]
        rows = {f"rows_{side}": dict(+count) for side, count in self._rows.items()}
        packets = {f"packets_{side}": dict(+count) for side, count in self._packets.items()}
        return Report(
            batches=self.batches,
            bytes=self._bytes,
            oldest_at=min(oldest, default=None),
            rows=rows.pop("rows_disk"),
            packets=packets.pop("packets_disk"),
            **rows,
            **packets,
            rows_dropped=dict(self._rows_dropped),
            packets_dropped=dict(self._packets_dropped),
            bad_files=self._bad_files,
            stuck_files=self._stuck_files,
        )

    # -- files

    def _name(self, place: int, sequence: int, table: str) -> str:
        number = f"{sequence}" if place == sequence else f"{sequence}-{place}"
        return f"{self._node_id}-{number}-{table}.pgcopy"

    def _read(self, name: str, most: int | None = None) -> tuple[bytes, int]:
        """Content of a file, or its beginning, and its size."""
        # Without O_NONBLOCK a FIFO of this name would stop the sidecar.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            fd = os.open(name, flags, dir_fd=self._fd)
            try:
                status = os.fstat(fd)
                if not stat.S_ISREG(status.st_mode):
                    raise _BadFileError("it is not a plain file")
                parts = []
                left = status.st_size if most is None else min(most, status.st_size)
                while left > 0 and (part := os.read(fd, left)):
                    parts.append(part)
                    left -= len(part)
            finally:
                os.close(fd)
        except OSError as error:
            if error.errno in {errno.EIO, errno.ELOOP}:
                raise _BadFileError(str(error.strerror)) from error
            raise
        return b"".join(parts), status.st_size

    def _write(self, name: str, content: _Content, room: str | Literal[False]) -> None:
        """Make a file that is there whole or not at all, given room up to that table's worth."""
        for _ in range(_TRIES):
            try:
                self._write_once(name, content.parts)
            except OSError as error:
                if error.errno not in _FULL or not room:
                    raise
                failure = error
            else:
                return
            if not self._free(content.size, room):
                break
        raise failure

    def _write_once(self, name: str, parts: Sequence[bytes]) -> None:
        temporary = name + _TEMPORARY
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(temporary, flags, 0o600, dir_fd=self._fd)
        try:
            try:
                for part in parts:
                    left = memoryview(part)
                    while left:
                        left = left[os.write(fd, left) :]
                os.fdatasync(fd)
            finally:
                os.close(fd)
            os.rename(temporary, name, src_dir_fd=self._fd, dst_dir_fd=self._fd)
        except OSError:
            self._unlink(temporary)
            raise

    def _unlink(self, name: str) -> bool:
        try:
            os.unlink(name, dir_fd=self._fd)
        except FileNotFoundError:
            return True
        except OSError as error:
            self._stuck_files += 1
            self._complain("stuck", f"{name} cannot be removed: {error.strerror}")
            return False
        return True

    def _spoiled(self, name: str, why: str) -> None:
        """Set a damaged file aside for people to look at; only the newest few are kept."""
        self._bad_files += 1
        with contextlib.suppress(OSError):
            os.rename(name, name + _BAD, src_dir_fd=self._fd, dst_dir_fd=self._fd)
            self._bad.append(name + _BAD)
        self._keep_few_bad()
        self._complain("bad", f"{name} is damaged ({why}) and set aside as {name}{_BAD}")

    def _keep_few_bad(self) -> None:
        while len(self._bad) > BAD_KEPT:
            self._unlink(self._bad.popleft())

    # -- bounds

    def _over(self, contents: Mapping[str, _Content]) -> bool:
        files = sum(map(len, self._files.values())) + len(contents)
        size = self._bytes + sum(content.size for content in contents.values())
        return size > self._max_bytes or files > self._max_files

    def _room_for(self, contents: dict[str, _Content], *, make_room: bool) -> dict[str, str]:
        """Give up what is worth least until the bounds hold; return what of the new batch went."""
        dropped: dict[str, str] = {}
        if self._max_bytes <= 0:
            raise SpoolError("the spool is switched off (spool.max_bytes is 0)", "spool-full")
        if self._over(contents) and not make_room:
            raise SpoolError(f"{self._directory}: spool.max_bytes is reached", "spool-full")
        for table in WORTH:
            while self._over(contents) and self._give_up(table, "spool-full"):
                pass
            if self._over(contents) and table in contents:
                del contents[table]
                dropped[table] = "spool-full"
        return dropped

    def _free(self, size: int, up_to: str) -> bool:
        """Make the disk less full, by so much if that can be, at the cost of what is worth no more."""
        before = self._bytes
        goal = before - size
        for table in WORTH[: WORTH.index(up_to) + 1]:
            while self._bytes > goal and self._give_up(table, "spool-full"):
                pass
        return self._bytes < before

    def _expire(self) -> None:
        eldest = self._now() - self._max_age
        for table in self._files:
            while (file := self._eldest(table)) is not None and file.spooled_at < eldest:
                if not self._give_up(table, "spool-expired"):
                    break

    def _eldest(self, table: str) -> _File | None:
        """The oldest file of a table that may go: not that of the batch that is being stored."""
        files = self._files[table]
        at = 1 if files and files[0][:2] == self._out else 0
        return files[at] if at < len(files) else None

    def _give_up(self, table: str, reason: str) -> bool:
        """Drop the oldest file of a table; False when there is none, or it cannot be removed."""
        file = self._eldest(table)
        if file is None or not self._unlink(self._name(file.place, file.sequence, table)):
            return False
        self._forget(table, self._files[table].index(file, 0, 2))
        self._drop(table, reason, file.rows, file.packets)
        why = "is too old" if reason == "spool-expired" else "has no room"
        self._complain(reason, f"what waits on disk {why}: {file.rows} rows of {table} are dropped")
        return True

    # -- counts

    def _remember(self, table: str, file: _File, at: int | None = None) -> None:
        files = self._files[table]
        files.insert(len(files) if at is None else at, file)
        self._batches[file[:2]] += 1
        self._bytes += file.size
        self._count("disk", table, file.rows, file.packets)

    def _forget(self, table: str, at: int) -> _File:
        files = self._files[table]
        file = files[at]
        del files[at]
        self._batches[file[:2]] -= 1
        if not self._batches[file[:2]]:
            del self._batches[file[:2]]
        self._bytes -= file.size
        self._count("disk", table, -file.rows, -file.packets)
        return file

    def _places(self, spooled: Spooled) -> list[tuple[str, int]]:
        """Where a batch's files are: it is the oldest, or was put a short while ago."""
        places = []
        for table, files in self._files.items():
            at = len(files) - 1
            while at > 0 and files[at].place > spooled.sequence:
                at -= 1
            for index in (0, at):
                if files and files[index].sequence == spooled.sequence:
                    places.append((table, index))
                    break
        return places

    def _removed(self, spooled: Spooled) -> Iterator[tuple[str, list[Row]]]:
        for table, at in self._places(spooled):
            file = self._forget(table, at)
            self._unlink(self._name(file.place, file.sequence, table))
            yield table, spooled.batch.tables.get(table, [])

    def _count(self, side: str, table: str, rows: int, packets: int) -> None:
        self._rows[side][table] += rows
        self._packets[side][table] += packets

    def _drop(self, table: str, reason: str, rows: int, packets: int) -> None:
        self._rows_dropped[table, reason] += rows
        self._packets_dropped[table, reason] += packets

    def _complain(self, kind: str, words: str) -> None:
        now = self._now()
        if not 0 <= now - self._complained.get(kind, float("-inf")) < COMPLAIN_EVERY:
            self._complained[kind] = now
            log.warning("%s: %s", self._directory, words)


def _file(place: int, sequence: int, summary: _Summary, size: int) -> _File:
    return _File(
        place,
        sequence,
        summary.rows,
        summary.packets,
        size,
        summary.spooled_at,
    )


def _check(file: _File, summary: _Summary) -> None:
    if (file.rows, file.packets) != (summary.rows, summary.packets):
        raise _BadFileError("it is another file than it was")


def _on_disk(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _reason(error: OSError) -> str:
    return "spool-full" if error.errno in _FULL else "spool-error"


class Spool:
    """The same for an event loop: the disk's time is spent in a thread of its own."""

    def __init__(
        self,
        directory: Path,
        node_id: int,
        *,
        max_bytes: int,
        max_age_seconds: float,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._folder = SpoolFolder(
            directory, node_id, max_bytes=max_bytes, max_age_seconds=max_age_seconds, now=now
        )
        self._max_bytes = max_bytes
        self._now = now
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="spool")
        self._closed = False
        self.report = Report()
        """Of the last call that returned: what is counted elsewhere at the same time agrees."""

    @property
    def batches(self) -> int:
        """How many batches are on disk."""
        return self.report.batches

    @property
    def highest(self) -> int:
        """The highest sequence it has seen; -1 for none."""
        return self._folder.highest

    async def open(self) -> None:
        """Become the only user of this node's files, and find what an earlier life left."""
        await self._call(self._folder.open)

    async def close(self) -> None:
        """Let others use the folder, after what is under way; the files stay."""
        if not self._closed:
            self._closed = True
            await self._call(self._folder.close)
            self._thread.shutdown()

    async def put(self, spooled: Spooled, *, make_room: bool = True) -> None:
        """Write a batch, as the newest; see `SpoolFolder.put`."""
        await self._call(lambda: self._folder.put(spooled, make_room=make_room))

    async def oldest(self) -> Spooled | None:
        """Read the batch that must be stored first."""
        return await self._call(self._folder.oldest)

    async def renumber(self, spooled: Spooled, sequence: int) -> Spooled:
        """Give a batch another sequence, for good."""
        return await self._call(lambda: self._folder.renumber(spooled, sequence))

    async def done(self, spooled: Spooled, refused: Mapping[str, Sequence[int]]) -> None:
        """Remove a batch that is in the database; its refused rows (indexes) are in quarantine."""
        await self._call(lambda: self._folder.done(spooled, refused))

    async def lost(self, spooled: Spooled, reason: str) -> None:
        """Remove a batch that will never be written."""
        await self._call(lambda: self._folder.lost(spooled, reason))

    def figures(self) -> SpoolFigures:
        """What metrics, health and pages show of it."""
        report = self.report
        oldest = None if report.oldest_at is None else max(0.0, self._now() - report.oldest_at)
        return SpoolFigures(
            batches=report.batches,
            bytes=report.bytes,
            limit_bytes=self._max_bytes,
            oldest_seconds=oldest,
            rows=report.rows,
            packets=sum(report.packets.values()),
            inherited=sum(report.packets_inherited.values()),
            rows_spooled=report.rows_put,
            rows_replayed=report.rows_stored,
        )

    async def _call(self, work: Callable[[], T]) -> T:
        report: Report | None = None

        def run() -> T:
            nonlocal report
            try:
                return work()
            finally:
                report = self._folder.report()

        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, run)
        finally:
            if report is not None:  # none when we were cancelled: the thread goes on
                self.report = report
