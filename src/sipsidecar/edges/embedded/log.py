"""Turns what PostgreSQL prints into a bounded file, and its end into one line that tells why."""

import contextlib
import os
import re
import shutil
from pathlib import Path

LOG_BYTES = 8 * 1024 * 1024
"""A log over this moves to postgres.log.1, over the one that was there."""


class ServerLog:
    """The file that a server and the programs before it append to."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def size(self) -> int:
        """Return its bytes, 0 if there is none yet."""
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    def bound(self) -> None:
        """Copy and empty: the server keeps the file open, and appends."""
        with contextlib.suppress(OSError):
            if self.size() > LOG_BYTES:
                shutil.copyfile(self.path, f"{self.path}.1")
                os.truncate(self.path, 0)

    def last_words(self, offset: int) -> str:
        """Return the line of the log, from `offset` on, that tells why something failed."""
        with self.path.open("rb") as file:
            file.seek(offset)
            lines = file.read(1 << 16).decode("utf-8", "replace").split("\n")
        telling = [line for line in lines if re.search(r"FATAL|PANIC|ERROR:|error:", line)]
        spoken = telling[:1] or [line for line in lines if line.strip()][:3] or ["without a word"]
        return re.sub(r"^.*?(?=FATAL|PANIC|ERROR:|error:)", "", " ".join(spoken)).strip()
