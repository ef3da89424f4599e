"""A part of the sidecar in a thread with its own event loop, beside a test that waits and blocks."""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, Self, TypeVar

import uvloop

T = TypeVar("T")


class Beside:
    """Runs the `run()` of parts, on the loop that the program uses."""

    def __init__(self, *parts: Any) -> None:
        self._parts = parts
        self._loop = uvloop.new_event_loop()
        self._tasks: list[asyncio.Task[Any]] = []
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self) -> Self:
        self._thread.start()
        for part in self._parts:
            self.wait(self._begin(part))
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End it as a program ends: nothing is taken back."""
        if not self._loop.is_closed():
            self.wait(self._end())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10)
            self._loop.close()

    def stand_still(self, seconds: float) -> None:
        """Hold its loop, as SIGSTOP would; returns once it stands."""
        stands = threading.Event()

        def stand() -> None:
            stands.set()
            time.sleep(seconds)

        self._loop.call_soon_threadsafe(stand)
        assert stands.wait(10)

    def do(self, what: Callable[[], T]) -> T:
        """Call something on its loop."""

        async def call() -> T:
            return what()

        return self.wait(call())

    def wait(self, what: Coroutine[Any, Any, T]) -> T:
        """Await something on its loop."""
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(10)

    async def _begin(self, part: Any) -> None:
        self._tasks.append(self._loop.create_task(part.run()))

    async def _end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
