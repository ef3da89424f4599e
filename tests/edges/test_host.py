import ctypes
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from sipsidecar.edges import host
from sipsidecar.signals.health import Host


def test_memory_in_use_is_seen() -> None:
    before = host.memory_bytes()
    block = b"x" * (64 << 20)
    assert host.memory_bytes() - before > 48 << 20
    assert before > 1 << 20
    del block


def test_where_the_system_does_not_say_the_reading_is_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(host, "_STATM", Path("/proc/self/no-such-file"))
    assert host.memory_bytes() == 0


def test_releasing_memory_needs_no_particular_c_library(monkeypatch: pytest.MonkeyPatch) -> None:
    host.release_memory()

    def none(_: object) -> object:
        return object()

    monkeypatch.setattr(ctypes, "CDLL", none)
    host.release_memory()


# ---------------------------------------------------------------------- how much is left of it


class Kernel:
    """A kernel's files as the test says."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.proc = folder / "proc"
        self.groups = folder / "cgroup"
        for name, path in (("_STAT", "stat"), ("_MEMINFO", "meminfo"), ("_GROUP", "cgroup")):
            monkeypatch.setattr(host, name, self.proc / path)
        monkeypatch.setattr(host, "_GROUPS", self.groups)
        self.say("proc/cgroup", "9:name=systemd:/\n0::/\n")

    def say(self, path: str, text: str) -> None:
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def ticks(self, user: int, idle: int, iowait: int = 0, steal: int = 0) -> None:
        fields = f"{user} 0 0 {idle} {iowait} 0 0 {steal} {user} 0"
        self.say("proc/stat", f"cpu  {fields}\ncpu0 {fields}\nintr 1 2 3\n")


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel(tmp_path, monkeypatch)


def test_the_real_machine_says_what_is_left_of_it(tmp_path: Path) -> None:
    reader = host.Machine([tmp_path])
    found = reader.read(0.0)
    assert found.cpu_percent is None
    assert found.memory_percent is not None
    assert 0 < found.memory_percent <= 100
    assert found.disk_percent is not None
    assert 0 < found.disk_percent <= 100


def test_a_machine_that_says_nothing_is_unknown(kernel: Kernel) -> None:
    reader = host.Machine([kernel.folder / "nowhere"])
    (kernel.proc / "cgroup").unlink()
    for now in (0.0, 1.0):
        assert reader.read(now) == Host(None, None, None)
    kernel.say("proc/meminfo", "MemTotal:\nMemAvailable: many kB\n")
    for text in ("", "cpu 1 2", "cpu a b c d e f g h", "intr 1 2 3 4 5 6 7 8"):
        kernel.say("proc/stat", text)
        now += 1.0
        assert reader.read(now) == Host(None, None, None)


def test_processors_are_busy_with_what_is_neither_idle_nor_waiting(kernel: Kernel) -> None:
    reader = host.Machine()
    kernel.ticks(1000, 9000)
    assert reader.read(10.0).cpu_percent is None
    kernel.ticks(1040, 9040, iowait=10, steal=10)
    assert reader.read(11.0).cpu_percent == pytest.approx(50.0)
    kernel.ticks(1140, 9040, iowait=10, steal=10)
    assert reader.read(11.1).cpu_percent == pytest.approx(50.0)  # too soon to tell
    assert reader.read(12.0).cpu_percent == 100.0
    # none went by, and time that the kernel took back (proc(5), iowait)
    assert reader.read(13.0).cpu_percent is None
    kernel.ticks(1150, 9030, iowait=5, steal=10)
    assert reader.read(14.0).cpu_percent is None
    kernel.ticks(1250, 9020, iowait=5, steal=10)
    assert reader.read(15.0).cpu_percent == 100.0


def test_under_a_quota_the_share_of_the_quota_counts(kernel: Kernel) -> None:
    kernel.say("proc/cgroup", "0::/a.slice/b.service\n")
    kernel.say("cgroup/a.slice/cpu.max", "50000 100000\n")
    kernel.say("cgroup/a.slice/b.service/cpu.max", "max 100000\n")
    reader = host.Machine()

    def read(now: float, busy: int, used: int) -> float | None:
        kernel.ticks(busy, 10_000 - busy)
        for group in ("a.slice", "a.slice/b.service"):
            kernel.say(f"cgroup/{group}/cpu.stat", f"usage_usec {used}\nuser_usec 1\n")
        return reader.read(now).cpu_percent

    assert read(0.0, 0, 5_000_000) is None
    assert read(1.0, 9000, 5_100_000) == pytest.approx(20.0)
    assert read(2.0, 9000, 5_600_000) == pytest.approx(100.0)
    assert read(3.0, 9000, 7_600_000) == pytest.approx(100.0)
    # the quota is lifted
    kernel.say("cgroup/a.slice/cpu.max", "max 100000\n")
    assert read(4.0, 9100, 7_700_000) is None
    kernel.ticks(9200, 1000)
    assert reader.read(5.0).cpu_percent == pytest.approx(50.0)


@pytest.mark.parametrize("text", ["", "max\n", "many 100000\n", "50000 0\n", "0 100000\n"])
def test_what_is_no_quota_limits_nothing(kernel: Kernel, text: str) -> None:
    kernel.say("cgroup/cpu.max", text)
    kernel.say("cgroup/cpu.stat", "usage_usec 5\n")
    reader = host.Machine()
    kernel.ticks(0, 0)
    reader.read(0.0)
    kernel.ticks(10, 30)
    assert reader.read(1.0).cpu_percent == pytest.approx(25.0)


def test_memory_is_what_the_kernel_cannot_make_available(kernel: Kernel) -> None:
    kernel.say("proc/meminfo", "MemTotal: 1000 kB\nMemFree: 1 kB\nMemAvailable: 400 kB\n")
    reader = host.Machine()
    assert reader.read(0.0).memory_percent == pytest.approx(60.0)
    # a control group whose limit is nearer, with files of which 100 can be given up
    kernel.say("cgroup/memory.max", "1000\n")
    kernel.say("cgroup/memory.current", "900\n")
    kernel.say("cgroup/memory.stat", "anon 800\ninactive_file 100\n")
    assert reader.read(0.0).memory_percent == pytest.approx(80.0)
    kernel.say("cgroup/memory.current", "300\n")
    assert reader.read(0.0).memory_percent == pytest.approx(60.0)
    kernel.say("cgroup/memory.current", "900\n")
    kernel.say("cgroup/memory.max", "max\n")
    assert reader.read(0.0).memory_percent == pytest.approx(60.0)


def test_the_limits_of_every_group_above_hold(kernel: Kernel) -> None:
    kernel.say("proc/cgroup", "1:cpu:/x\n0::/a/b/c\n")
    for group, used in (("a", 70), ("a/b", 90), ("a/b/c", 20), ("", 95)):
        kernel.say(f"cgroup/{group}/memory.max", "100")
        kernel.say(f"cgroup/{group}/memory.current", str(used))
    assert host.Machine().read(0.0).memory_percent == pytest.approx(95.0)
    kernel.say("proc/cgroup", "0::/../elsewhere\n")
    assert host.Machine().read(0.0).memory_percent == pytest.approx(95.0)


def test_the_disk_is_that_with_the_least_room(monkeypatch: pytest.MonkeyPatch) -> None:
    def statvfs(folder: Path) -> object:
        blocks, free, ours = {"a": (100, 60, 50), "b": (100, 30, 20), "c": (0, 0, 0)}[folder.name]
        return SimpleNamespace(f_blocks=blocks, f_bfree=free, f_bavail=ours)

    monkeypatch.setattr(os, "statvfs", statvfs)

    def used(*names: str) -> float | None:
        return host.Machine([Path(name) for name in names]).read(0.0).disk_percent

    assert used("a") == pytest.approx(100 * 40 / 90)
    assert used("a", "b", "c") == pytest.approx(100 * 70 / 90)
    assert used("c") is None
    assert used() is None
