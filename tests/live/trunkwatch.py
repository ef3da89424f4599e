"""The parts of the sidecar that look after trunks, as a program of their own that can be killed.

    python -m live.trunkwatch RPC LEASE PEERS

RPC is Kamailio's address, LEASE seconds, PEERS a JSON list. Prints when all of them answer, and each change of a state.
"""

import asyncio
import signal
import sys
import time

import msgspec
import uvloop

from sipsidecar.edges.kamailio.dispatching import Dispatching
from sipsidecar.edges.pinger import Pingers
from sipsidecar.signals.trunk import Peer, Trunks, check_peers


async def main(rpc: str, lease: int, peers: list[Peer]) -> None:
    check_peers(peers)
    trunks = Trunks(peers)
    pingers = Pingers(peers, trunks)
    kamailio = Dispatching("edge", rpc, lease_seconds=lease)
    tasks = [asyncio.create_task(part.run()) for part in (pingers, kamailio)]
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    answered = False
    while not stopped.is_set():
        await asyncio.sleep(0.02)
        states = trunks.states(time.time_ns() // 1000)
        if not answered and all(one.state == "active" for one in states):
            answered = True
            print("all answer", flush=True)
        trunks.alarms(time.time_ns() // 1000)
        kamailio.show(trunks.out())
        for event in trunks.records():
            print(f"{event.at} {event.subject} {event.previous} -> {event.state}", flush=True)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


if __name__ == "__main__":
    rpc, lease, peers = sys.argv[1:]
    uvloop.run(main(rpc, int(lease), msgspec.json.decode(peers, type=list[Peer])))
