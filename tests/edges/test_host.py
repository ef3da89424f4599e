import ctypes
from pathlib import Path

import pytest

from sipsidecar.edges import host


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
