"""A wire between two programs that can be cut: what is sent then arrives nowhere, nothing is closed."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Self

Address = tuple[str, int]


class Relay:
    """Forwards UDP and TCP to their targets until it is cut.

    Cut, datagrams are lost; bytes of TCP wait where they are, as with a network that is gone.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._whole = asyncio.Event()
        self._whole.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._wires: list[asyncio.BaseTransport | asyncio.Server] = []
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def udp(self, listen: Address, target: Address) -> None:
        """Datagrams to `listen` go to `target`, what comes back to who sent last."""
        self._do(self._open_udp(listen, target))

    def tcp(self, listen: Address, target: Address) -> None:
        """Connections to `listen` are made to `target`."""
        self._do(self._open_tcp(listen, target))

    def cut(self, now: bool = True) -> None:
        """Nothing passes, or all does again."""
        self._loop.call_soon_threadsafe(self._whole.clear if now else self._whole.set)

    def _do(self, what: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(what, self._loop).result(10)

    async def _open_udp(self, listen: Address, target: Address) -> None:
        whole = self._whole
        sender: list[Address] = []

        class End(asyncio.DatagramProtocol):
            def __init__(self, forward: Callable[[bytes, Address], None]) -> None:
                self._forward = forward

            def datagram_received(self, data: bytes, addr: Address) -> None:
                if whole.is_set():
                    self._forward(data, addr)

        def out(data: bytes, addr: Address) -> None:
            sender[:] = [addr]
            far.sendto(data)

        def back(data: bytes, _: Address) -> None:
            if sender:
                near.sendto(data, sender[0])

        near, _ = await self._loop.create_datagram_endpoint(lambda: End(out), local_addr=listen)
        far, _ = await self._loop.create_datagram_endpoint(lambda: End(back), remote_addr=target)
        self._wires += [near, far]

    async def _open_tcp(self, listen: Address, target: Address) -> None:
        async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                far_reader, far_writer = await asyncio.open_connection(*target)
            except OSError:
                writer.close()
                return
            ends = ((reader, far_writer), (far_reader, writer))
            for task in [asyncio.create_task(self._pump(*pair)) for pair in ends]:
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

        self._wires.append(await asyncio.start_server(meet, *listen))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                await self._whole.wait()
                writer.write(data)
                await writer.drain()
        except OSError:
            pass  # the other end is gone: so is this one
        finally:
            writer.close()

    async def _close(self) -> None:
        for wire in self._wires:
            wire.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0.01)  # the transports close in the next turns
