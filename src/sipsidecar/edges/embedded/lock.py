"""Turns a data directory into one that has a single owner."""

import contextlib
import fcntl
import os
from pathlib import Path
from typing import Literal, Self

from sipsidecar.edges.embedded.cluster import EmbeddedError

Role = Literal["run", "read"]


class InUseError(EmbeddedError):
    """Another process owns the data directory; `role` says for what."""

    def __init__(self, directory: Path, owner: str) -> None:
        pid, _, self.role = owner.strip().partition(" ")
        who = f"sidecar pid {pid}" if pid.isdecimal() else "another sidecar"
        super().__init__(
            f"{directory} is in use by {who}; stop it, or give this one its own --data or a --dsn"
        )


class DirectoryLock:
    """One owner for a data directory: a lock that the kernel drops when the owner dies."""

    def __init__(self, directory: Path, role: Role = "run") -> None:
        self.path = directory / "lock"
        self._role = role
        self._fd: int | None = None

    @property
    def held(self) -> bool:
        """Whether this object has the lock."""
        return self._fd is not None

    def acquire(self) -> None:
        """Take the lock or raise InUseError; never waits."""
        while True:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(self.path, flags, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                owner = os.pread(fd, 64, 0).decode("ascii", "replace")
                os.close(fd)
                if not isinstance(error, BlockingIOError):
                    raise
                raise InUseError(self.path.parent, owner) from None
            # An owner that gave up removes the file: what we hold must be the one others open.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(fd), self.path.stat()):
                    break
            os.close(fd)
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()} {self._role}\n".encode(), 0)
        self._fd = fd

    def release(self, *, remove: bool = False) -> None:
        """Let go, if held; `remove` leaves no file."""
        if self._fd is not None:
            if remove:
                self.path.unlink(missing_ok=True)
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
