import errno
import os
import resource
import socket
import subprocess
from pathlib import Path

import pytest

from running import LIMIT
from sipsidecar.edges import machine


def test_the_limit_of_receive_buffers_is_the_kernels() -> None:
    said = Path("/proc/sys/net/core/rmem_max").read_text().strip()
    assert machine.receive_buffer_limit() == int(said)


def test_a_small_buffer_is_granted_whole_and_a_huge_one_is_not() -> None:
    assert machine.granted_buffer(65536) == 65536
    granted = machine.granted_buffer(2**30)
    assert granted is not None
    assert 65536 < granted <= 2**30


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
def test_a_port_that_is_taken_is_told_from_a_free_one(kind: socket.SocketKind) -> None:
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.bind(("127.0.0.1", 0))
        if kind == socket.SOCK_STREAM:
            sock.listen()
        port = sock.getsockname()[1]
        assert machine.bind_error("127.0.0.1", port, kind) == errno.EADDRINUSE
        assert machine.bind_error("127.0.0.2", port, kind) is None
        ours = Path("/proc/self/comm").read_text().strip()
        assert machine.port_owner(port, kind) == f"{ours} (pid {os.getpid()})"
    assert machine.bind_error("127.0.0.1", port, kind) is None
    assert machine.port_owner(port, kind) is None
    assert machine.bind_error("192.0.2.1", port, kind) == errno.EADDRNOTAVAIL
    assert machine.bind_error("no.such.host.invalid", port, kind) == errno.EADDRNOTAVAIL


def test_the_clock_is_kept_as_timedatectl_would_say(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.clock_is_kept() in {True, False}
    timex = machine._Timex
    assert timex.max_error.offset == 3 * timex.offset.size
    assert timex.status.offset == 5 * timex.offset.size

    class Kernel:
        def __init__(self, state: int, error: int) -> None:
            self.state, self.error = state, error

        def adjtimex(self, pointer: object) -> int:
            pointer._obj.max_error = self.error  # type: ignore[attr-defined]
            return self.state

    for state, error, kept in ((0, 15_999_999, True), (5, 16_000_000, False), (-1, 0, None)):
        monkeypatch.setattr("ctypes.CDLL", lambda *_, s=state, e=error, **__: Kernel(s, e))
        assert machine.clock_is_kept() is kept
    monkeypatch.setattr("ctypes.CDLL", lambda *_, **__: object())
    assert machine.clock_is_kept() is None


def test_limits_and_memory_are_those_of_this_process() -> None:
    assert machine.open_file_limit() == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    available = machine.available_memory()
    assert available is not None
    assert 2**20 < available < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_a_control_group_with_less_memory_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real, files = Path.read_text, {"/proc/self/cgroup": "1:cpu:/\n0::/system.slice/s.service\n"}
    files["/sys/fs/cgroup/system.slice/s.service/memory.max"] = "3000\n"
    files["/sys/fs/cgroup/system.slice/s.service/memory.current"] = "1000\n"

    def read(path: Path, *args: str, **options: str) -> str:
        return files.get(str(path)) or real(path, *args, **options)

    monkeypatch.setattr(Path, "read_text", read)
    assert machine.available_memory() == 2000
    files["/sys/fs/cgroup/system.slice/s.service/memory.max"] = "max\n"
    assert (machine.available_memory() or 0) > 2**20


def test_space_is_that_of_the_nearest_folder_that_exists(tmp_path: Path) -> None:
    found = machine.space(tmp_path / "not" / "yet")
    assert found is not None
    said = subprocess.run(
        ["df", "--output=size", "-B1", tmp_path], capture_output=True, timeout=LIMIT, check=True
    )
    assert found.total_bytes == int(said.stdout.split()[-1])
    assert 0 < found.free_bytes <= found.total_bytes
    assert found.free_files is None or 0 < found.free_files <= found.total_files
    assert machine.space(Path("/" + "x" * 300)) is None


def test_a_backlog_is_counted_with_its_oldest_and_what_is_damaged(tmp_path: Path) -> None:
    assert machine.backlog(tmp_path / "absent", ".x", ".bad") == machine.Backlog(
        0, 0, None, 0, complete=True
    )
    for name, length, at in (("a.x", 3, 2000), ("b.x", 4, 1000), ("c.x.bad", 9, 5), ("d", 9, 5)):
        (tmp_path / name).write_bytes(b"." * length)
        os.utime(tmp_path / name, (at, at))
    found = machine.backlog(tmp_path, ".x", ".bad")
    assert found == machine.Backlog(2, 7, 1000.0, 1, complete=True)
    assert machine.backlog(tmp_path / "d", ".x", ".bad") is None


def test_a_folder_without_end_is_not_counted_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_MAX_ENTRIES", 3)
    for number in range(5):
        (tmp_path / f"{number}.x").touch()
    found = machine.backlog(tmp_path, ".x", ".bad")
    assert found is not None
    assert (found.files, found.complete) == (3, False)


@pytest.mark.parametrize(
    ("mode", "who"),
    [
        (0o600, None),
        (0o400, None),
        (0o640, "its group"),
        (0o644, "everybody"),
        (0o604, "everybody"),
    ],
)
def test_who_may_read_a_file_is_told_by_its_mode(
    tmp_path: Path, mode: int, who: str | None
) -> None:
    path = tmp_path / "key"
    path.touch()
    path.chmod(mode)
    assert machine.readers(path) == who
