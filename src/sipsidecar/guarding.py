"""Keeps the parts of something running that is beside the capture: a bug in one ends nothing else."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

FIRST_PAUSE = 1.0
"""Seconds before a part that failed begins again; twice as long each time."""
LONGEST_PAUSE = 60.0
COMPLAIN_EVERY = 600.0
"""Seconds between two tracebacks of one part."""


class Guard:
    """Counts the bugs of one whole, `name`, and says where each is."""

    def __init__(self, name: str, log: logging.Logger) -> None:
        self.faults = 0
        """Bugs that cost something: a part's beginning again, or a turn."""
        self.ending = False
        """Parts that end now are not begun again."""
        self._name = name
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._complained: dict[str, float] = {}

    async def keep(self, what: str, run: Callable[[], Awaitable[None]]) -> None:
        """Keep a part running: when it fails it begins again."""
        pause = FIRST_PAUSE
        while True:
            began = self._loop.time()
            try:
                await run()
            except Exception as error:  # noqa: BLE001 -- a bug must not end the capture
                self.fault(what, error)
            if self.ending:
                return
            if self._loop.time() - began > LONGEST_PAUSE:
                pause = FIRST_PAUSE
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def fault(self, what: str, error: Exception) -> None:
        """Count a bug, and log it unless that part's last one was a short while ago."""
        self.faults += 1
        now = self._loop.time()
        if now >= self._complained.get(what, now):
            self._complained[what] = now + COMPLAIN_EVERY
            self._log.error("%s: %s failed", self._name, what, exc_info=error)
