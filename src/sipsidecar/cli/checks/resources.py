"""Whether this machine has the disk, memory, descriptors and clock that a sidecar needs."""

import time
from collections.abc import Iterator

from sipsidecar import app
from sipsidecar.cli.checks.case import Case, Finding, State, age_of, size
from sipsidecar.edges import machine

LEAST_DISK = 256 * 2**20
LEAST_FILES = 1000


def disks(case: Case) -> Iterator[Finding]:
    """Room for the data and for a spool that grows to its limit."""
    config = case.config
    folders = {} if config.database.dsn else {"disk data": app.data_directory(config)}
    if config.spool.max_bytes:
        folders["disk spool"] = case.spool
    for check, folder in folders.items():
        found = machine.space(folder)
        if found is None:
            yield Finding(check, "unknown", f"{folder}: it does not say")
            continue
        reading = f"{folder}: {size(found.free_bytes)} of {size(found.total_bytes)} free"
        figures = {"free_bytes": found.free_bytes, "total_bytes": found.total_bytes,
                   "free_files": found.free_files}  # fmt: skip
        wanted = 0
        if check == "disk spool":
            waits = machine.backlog(folder, ".pgcopy", ".bad")
            wanted = config.spool.max_bytes - (waits.bytes if waits else 0)
        few = found.free_files is not None and found.free_files < LEAST_FILES
        if found.free_bytes < LEAST_DISK or few:
            what = "files (inodes)" if few else "bytes"
            advice = f"it runs out of {what}: make room, lower retention, or take another disk"
            yield Finding(check, "fail", reading, advice, figures)
        elif found.free_bytes < wanted:
            advice = f"the spool may grow by {size(wanted)}: make room, or lower spool.max_bytes"
            yield Finding(check, "warn", reading, advice, figures)
        else:
            yield Finding(check, "ok", reading, None, figures)


def spool(case: Case) -> Iterator[Finding]:
    """What waits in it, since when, and what is damaged."""
    settings, folder = case.config.spool, case.spool
    if not settings.max_bytes:
        why = "what comes while the database is away waits in memory only: set spool.max_bytes"
        yield Finding("spool", "warn", "switched off (spool.max_bytes = 0)", why)
        return
    found = machine.backlog(folder, ".pgcopy", ".bad")
    if found is None:
        yield Finding("spool", "unknown", f"{folder}: this user may not look inside")
        return
    age = None if found.oldest_at is None else max(time.time() - found.oldest_at, 0.0)
    figures = {"files": found.files, "bytes": found.bytes, "damaged": found.damaged,
               "oldest_seconds": None if age is None else round(age)}  # fmt: skip
    reading = f"{found.files} files, {size(found.bytes)} of {size(settings.max_bytes)}"
    if not found.complete:
        reading = f"more than {reading}"
    advice: list[str] = []
    if age is not None:
        reading += f", the oldest {age_of(age)}"
        if not case.runs:
            advice.append("they are stored when a sidecar runs here and its database is up")
        elif age > 60:
            advice.append("batches wait for the database: see `database` and the sidecar's log")
    if age is not None and age > 0.8 * settings.max_age_hours * 3600:
        advice.append("the oldest are soon given up (spool.max_age_hours)")
    if found.bytes > 0.8 * settings.max_bytes:
        advice.append("it is nearly full: then the oldest messages go (spool.max_bytes)")
    if found.damaged:
        reading += f", {found.damaged} damaged"
        advice.append(f"damaged files were set aside as {folder}/*.bad: keep or delete them")
    state: State = "warn" if advice else "ok"
    yield Finding("spool", state, reading, "; ".join(advice) or None, figures)


def clock(_: Case) -> Iterator[Finding]:
    """Whether NTP or the like keeps the clock that rows are filed by."""
    kept = machine.clock_is_kept()
    if kept is None:
        yield Finding("clock", "unknown", "the kernel does not say whether NTP keeps it")
    elif kept:
        yield Finding("clock", "ok", "kept right (NTP)")
    else:
        advice = "run chrony, or: timedatectl set-ntp true"
        yield Finding("clock", "warn", "nothing keeps it right", advice)


def open_files(case: Case) -> Iterator[Finding]:
    """Descriptors for every connection that the settings allow."""
    hep, http, metrics = case.config.hep, case.config.http, case.running.metrics
    needed = hep.tcp_connections * (2 if hep.tls_listen else 1) + http.connections + 256
    limit = int(metrics.get("process_max_fds", machine.open_file_limit()))
    used = metrics.get("process_open_fds")
    figures = {"limit": limit, "needed": needed, "used": None if used is None else int(used)}
    of = "the running sidecar" if "process_max_fds" in metrics else "a program of this user"
    reading = f"{limit} for {of}, {needed} may be needed"
    if 0 <= limit < needed:
        advice = f"LimitNOFILE={needed} in its unit, or: ulimit -n {needed}"
        yield Finding("open files", "warn", reading, advice, figures)
    else:
        yield Finding("open files", "ok", reading, None, figures)


def memory(case: Case) -> Iterator[Finding]:
    """Whether the ceiling of the settings can be reached at all."""
    ceiling = case.config.limits.memory_bytes
    free = machine.available_memory()
    used = int(case.running.metrics.get("process_resident_memory_bytes", 0))
    figures = {"available_bytes": free, "used_bytes": used, "limit_bytes": ceiling}
    if free is None:
        yield Finding("memory", "unknown", "the machine does not say", None, figures)
        return
    reading = f"{size(free)} available; the sidecar uses {size(used)} of {size(ceiling)}"
    if free + used < ceiling:
        advice = (
            "the kernel may end it before its ceiling: lower limits.memory_bytes, or add memory"
        )
        yield Finding("memory", "warn", reading, advice, figures)
    else:
        yield Finding("memory", "ok", reading, None, figures)
