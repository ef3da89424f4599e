"""What the process uses of its machine, and how much of the machine is left."""

import contextlib
import ctypes
import os
from collections.abc import Sequence
from pathlib import Path

from sipsidecar.signals.health import Host

_PAGE = os.sysconf("SC_PAGE_SIZE")
_STATM = Path("/proc/self/statm")
_STAT = Path("/proc/stat")
_MEMINFO = Path("/proc/meminfo")
_GROUP = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")

LEAST_SECONDS = 0.5
"""Between two readings of the processors: their times have steps of 10 ms."""


def memory_bytes() -> int:
    """Read the resident memory of this process; 0 where the system does not say."""
    try:
        return int(_STATM.read_bytes().split()[1]) * _PAGE
    except OSError:
        return 0


def release_memory() -> None:
    """Give freed memory back to the system, where the C library can."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):  # not glibc
        return
    trim(0)


class Machine:
    """This machine to percentages, as its kernel and our control group (cgroup v2) say; proc(5).

    Where our group, or one above it, may use only so much processor time, the figure is of that and
    not of the machine, whose others we do not know; of memory the worse of the two is said.
    `folders` are those that are written to.
    """

    def __init__(self, folders: Sequence[str | Path] = ()) -> None:
        self._folders = tuple(folders)
        self._ticks: tuple[int, int] | None = None
        """Ticks of all processors: busy, and all."""
        self._groups: dict[Path, float] = {}
        """Processor seconds that a group with a quota had used."""
        self._read_at: float | None = None
        self._cpu: float | None = None

    def read(self, now: float) -> Host:
        """Read everything; the processors' figure is of the time since the last reading.

        `now` is a steady clock's. Readings that follow at once have the processors' last figure.
        """
        return Host(self._cpu_percent(now), _memory_percent(), self._disk_percent())

    def _cpu_percent(self, now: float) -> float | None:
        elapsed = None if self._read_at is None else now - self._read_at
        if elapsed is not None and elapsed < LEAST_SECONDS:
            return self._cpu
        self._read_at = now
        machine, groups = self._machine_percent(), self._group_percents(elapsed)
        self._cpu = max(groups, default=None) if self._groups else machine
        return self._cpu

    def _machine_percent(self) -> float | None:
        before, self._ticks = self._ticks, _ticks()
        if before is None or self._ticks is None:
            return None
        busy, total = (b - a for a, b in zip(before, self._ticks, strict=True))
        # waiting for a disk counts as idle, and may count backwards (proc(5))
        return min(max(100 * busy / total, 0.0), 100.0) if total > 0 else None

    def _group_percents(self, elapsed: float | None) -> list[float]:
        before, self._groups = self._groups, {}
        found = []
        for group in _groups():
            quota = _quota(group)
            used = _field(group / "cpu.stat", "usage_usec")
            if quota is None or used is None:
                continue
            self._groups[group] = used / 1e6
            if elapsed and group in before:
                share = (self._groups[group] - before[group]) / (quota * elapsed)
                found.append(min(max(100 * share, 0.0), 100.0))
        return found

    def _disk_percent(self) -> float | None:
        found = []
        for folder in self._folders:
            with contextlib.suppress(OSError):
                space = os.statvfs(folder)
                used = space.f_blocks - space.f_bfree
                # as df: what is kept for root is neither used nor free for us
                if used + space.f_bavail:
                    found.append(100 * used / (used + space.f_bavail))
        return max(found, default=None)


def _ticks() -> tuple[int, int] | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        with _STAT.open("rb") as opened:
            name, *fields = opened.readline().split()
        # user nice system idle iowait irq softirq steal; guests are in user and nice already
        times = [int(field) for field in fields[:8]]
        if name == b"cpu":
            total = sum(times)
            return total - times[3] - times[4], total
    return None


def _memory_percent() -> float | None:
    total, free = _field(_MEMINFO, "MemTotal:"), _field(_MEMINFO, "MemAvailable:")
    found = [100 * (total - free) / total] if total and free is not None else []
    for group in _groups():
        most, used = _number(group / "memory.max"), _number(group / "memory.current")
        if most and used is not None:
            # files that nobody reads now are given up before anything is refused
            idle = _field(group / "memory.stat", "inactive_file") or 0
            found.append(min(max(100 * (used - idle) / most, 0.0), 100.0))
    return max(found, default=None)


def _groups() -> list[Path]:
    """Our control group and those above it, whose limits hold for us too."""
    try:
        path = _GROUP.read_text(encoding="utf-8").rpartition("0::")[2].strip()
    except (OSError, ValueError):
        return []
    group = _GROUPS / path.lstrip("/")
    found = [group, *group.parents]
    # the root has no limits, but in a container what it calls the root is our own group
    return found[: found.index(_GROUPS) + 1] if _GROUPS in found else []


def _quota(group: Path) -> float | None:
    """Processors that a group may use; None where there is no limit."""
    with contextlib.suppress(OSError, ValueError):
        most, period = (group / "cpu.max").read_text(encoding="ascii").split()
        if most != "max" and int(period) > 0 and int(most) > 0:
            return int(most) / int(period)
    return None


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):  # also `max`, which is no limit
        return None


def _field(path: Path, name: str) -> int | None:
    """Read the number behind a name at the begin of a line."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in path.read_text(encoding="ascii").splitlines():
            words = line.split()
            if words and words[0] == name:
                return int(words[1])
    return None
