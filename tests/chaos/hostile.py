"""Datagrams made wrong in every way, and connections that mean no good.

    python -m chaos.hostile --datagrams 10000000 --connections 100000

A half of both comes first: what a process keeps after that (caches, layouts, the allocator's
arenas at their largest) is the base line. The other half is as much again, and may add next to
nothing: what leaked, leaks again. Datagrams come as fast as the sidecar takes them: the sender is
held while the receive buffer is half full. At the end ordinary calls must be recorded exactly.
"""

import argparse
import re
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from chaos import lab, truth
from chaos.results import Result, command, progress
from running import CORPUS, datagrams

REAL_CALLS = 200
SETTINGS = {
    # Made-up calls are answered and never hung up: let them end within the test.
    "CALLS__MAX_SECONDS": "60",
    "CALLS__LINGER_SECONDS": "5",
    "HEP__TCP_IDLE_SECONDS": "2",
}


def parser() -> argparse.ArgumentParser:
    """The flags and the defaults of the long run."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--datagrams", type=int, default=10_000_000)
    flags.add_argument("--connections", type=int, default=100_000)
    flags.add_argument("--at-once", type=int, default=500, help="connections")
    flags.add_argument("--rate", type=float, default=60_000, help="most datagrams per second")
    flags.add_argument("--forget-seconds", type=float, default=300, help="for all made-up calls")
    flags.add_argument(
        "--patience", type=float, help="of the sidecar with messages in parts, when not its own"
    )
    flags.add_argument("--growth-mb", type=float, default=32, help="bound of resident memory")
    flags.add_argument("--settle-seconds", type=float, default=900)
    flags.add_argument("--seed", type=int, default=1)
    return flags


def corpus(folder: Path) -> Path:
    """HEP packets of every sender that the tests know, as hepfuzz reads them."""
    made = folder / "dialogs.lp"
    words = [lab.compiled("hepblast"), "--dump", made, "-n", "60", "--clock", "sim", "--seed", "99"]
    subprocess.run(list(map(str, words)), check=True, stdout=subprocess.DEVNULL)
    packets = [
        packet
        for path in sorted(CORPUS.glob("*/*.pcap"))
        for packet in datagrams(f"{path.parent.name}/{path.stem}")
        if packet
    ]
    extra = b"".join(struct.pack(">I", len(packet)) + packet for packet in packets)
    whole = folder / "corpus.lp"
    whole.write_bytes(made.read_bytes() + extra)
    return whole


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate that signs itself, and its key."""
    names = folder / "tls.crt", folder / "tls.key"
    words = [
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    ]
    words += ["-subj", "/CN=localhost", "-out", str(names[0]), "-keyout", str(names[1])]
    subprocess.run(["openssl", *words], check=True, capture_output=True)
    return names


def send(
    here: lab.Lab, sidecar: lab.Sidecar, wanted: argparse.Namespace, part: str
) -> tuple[int, int]:
    """One part of the datagrams, held whenever the receive buffer is half full.

    Returns how many were sent, and how many the sidecar counted.
    """
    half = wanted.datagrams // 2
    count = half if part == "first" else wanted.datagrams - half
    seed = wanted.seed * 2 + (part == "first")
    target = f"{sidecar.hep[0]}:{sidecar.hep[1]}"
    words = ["-t", target, "-f", str(here.folder / "corpus.lp"), "-c", str(count)]
    words += ["-r", str(wanted.rate), "--seed", str(seed)]
    before = sidecar.ledger()["received"]
    load = here.generator(f"fuzz-{part}", [lab.compiled("hepfuzz"), *words])
    held = False
    told = time.monotonic()
    while load.running:
        full = sidecar.kernel()[1] > 0.5
        if full != held:
            held = full
            load.hold(held)
        if time.monotonic() - told > 60:
            told = time.monotonic()
            progress(f"{sidecar.ledger()['received']} datagrams received")
        time.sleep(0.01)
    said = load.said()
    progress(f"{part} datagrams: {said['kinds']}")
    deadline = time.monotonic() + 60
    while sidecar.kernel()[1] and time.monotonic() < deadline:
        time.sleep(0.1)
    return int(said["sent"]), sidecar.ledger()["received"] - before


def attack(
    here: lab.Lab,
    sidecar: lab.Sidecar,
    tls: tuple[str, int],
    wanted: argparse.Namespace,
    part: str,
) -> dict[str, Any]:
    """One half of the hostile connections, by a process of their own."""
    half = wanted.connections // 2
    count = half if part == "first" else wanted.connections - half
    seed = wanted.seed * 2 + (part == "first")
    words = ["--plain", f"{sidecar.hep[0]}:{sidecar.hep[1]}", "--tls", f"{tls[0]}:{tls[1]}"]
    words += ["--connections", str(count), "--at-once", str(wanted.at_once)]
    program = [sys.executable, "-m", "chaos.attack", *words, "--seed", str(seed)]
    return here.generator(f"attack-{part}", program).said(60 + count)


def _events(sidecar: lab.Sidecar) -> dict[str, int]:
    """What happened to connections, by the sidecar's own count."""
    page = sidecar.page("/metrics").decode()
    found = re.findall(r'sipsidecar_tcp_events_total\{event="([^"]*)"\} (\S+)', page)
    return {event: int(float(count)) for event, count in found}


def run(wanted: argparse.Namespace) -> Result:
    """One half, the base line, the other half, and what is left of it all."""
    result = Result(f"hostile: {wanted.datagrams} datagrams, {wanted.connections} connections")
    with lab.Lab(disk_gb=2 + wanted.datagrams * 2e-6, memory_gb=2) as here:
        corpus(here.folder)
        crt, key = certificate(here.folder)
        tls = ("127.0.0.1", lab.free_port())
        settings = {
            **SETTINGS,
            "HEP__TLS_LISTEN": f"{tls[0]}:{tls[1]}",
            "HEP__TLS_CERTIFICATE": str(crt),
            "HEP__TLS_KEY": str(key),
        }
        database = here.database()
        patience = {"sipsidecar.pipeline:STREAM_PATIENCE": wanted.patience}
        constants = patience if wanted.patience else None
        sidecar = here.sidecar("sidecar", database, settings, constants=constants)
        pid = sidecar.pid
        with lab.Watch(sidecar, every=0.5) as watch:
            sent, taken = send(here, sidecar, wanted, "first")
            attack(here, sidecar, tls, wanted, "first")
            sidecar.settle(wanted.settle_seconds)
            base = lab.resident(pid)[0], lab.descriptors(pid)
            progress(f"base line: {base[0] >> 20} MB, {base[1]} descriptors")
            began = time.monotonic()
            more, more_taken = send(here, sidecar, wanted, "second")
            sent, taken = sent + more, taken + more_taken
            took = time.monotonic() - began
            began = time.monotonic()
            attacked = attack(here, sidecar, tls, wanted, "second")
            result.note(
                datagram_seconds=round(took), connection_seconds=round(time.monotonic() - began)
            )
            progress("all are sent; waiting until nothing is left of them")
            said = sidecar.settle(wanted.settle_seconds)
            tracked = _forgotten(sidecar, wanted.forget_seconds)
            ended = lab.resident(pid)[0], lab.descriptors(pid)
        _claim(result, sidecar, pid, base, ended, said, (sent, taken), wanted)
        if wanted.forget_seconds:
            result.claim("no call state is left", tracked == 0, tracked)
        result.note(
            connections=attacked["kinds"],
            connections_cut_short=attacked["cut_short"],
            tcp_events=_events(sidecar),
            refused=said["refused_by_reason"],
            dropped=said["dropped_by_reason"],
            peak_memory_mb=round(watch.peak / 2**20, 1),
            health_live_ms=watch.latency_ms(),
        )
        _real_calls(result, here, sidecar, database, wanted)
    return result


def _forgotten(sidecar: lab.Sidecar, limit: float) -> int:
    """Wait until no made-up call is remembered; how many still are."""
    deadline = time.monotonic() + limit
    while True:
        tracked = int(sidecar.metric("sipsidecar_calls_tracked"))
        if not tracked or time.monotonic() > deadline:
            return tracked
        time.sleep(1)


def _claim(
    result: Result,
    sidecar: lab.Sidecar,
    pid: int,
    base: tuple[int, int],
    ended: tuple[int, int],
    said: dict[str, object],
    counted: tuple[int, int],
    wanted: argparse.Namespace,
) -> None:
    sent, taken = counted
    alive = sidecar.process is not None and sidecar.process.poll() is None and sidecar.pid == pid
    result.claim("no crash: the same process is there", alive and not sidecar.crashes, pid)
    words = sidecar.words()
    bad = [line for line in words.splitlines() if "Traceback" in line or "xception" in line]
    errors = int(sidecar.metric("sipsidecar_capture_errors_total"))
    result.claim("no unhandled exception", not bad and not errors, bad[:3] or errors)
    drops = sidecar.kernel()[0]
    result.claim(
        "every datagram was received or dropped by the kernel, and counted",
        taken + drops == sent,
        f"{sent} sent, {taken} received, {drops} dropped by the kernel",
    )
    share = 1 - drops / max(sent, 1)
    result.claim("nine of ten datagrams reached the parsers", share > 0.9, f"{share:.1%}")
    result.claim("the ledger balances", said["balance"] == 0, said["balance"])
    result.claim(
        "descriptors are back where they were",
        abs(ended[1] - base[1]) <= 2,
        f"{base[1]}, {ended[1]}",
    )
    grown = (ended[0] - base[0]) / 2**20
    result.claim(
        f"resident memory has grown by at most {wanted.growth_mb:g} MB in the second half",
        grown <= wanted.growth_mb,
        f"{base[0] / 2**20:.0f} MB, then {ended[0] / 2**20:.0f} MB",
    )


def _real_calls(
    result: Result,
    here: lab.Lab,
    sidecar: lab.Sidecar,
    database: lab.Database,
    wanted: argparse.Namespace,
) -> None:
    """Ordinary calls after all that."""
    seed = wanted.seed + 1000
    load = here.blast("real", sidecar.hep, "-n", REAL_CALLS, "-r", 1000, "--seed", seed)
    load.said()
    sidecar.settle(wanted.settle_seconds)
    judged = truth.judge(database, seed, REAL_CALLS)
    faults = len(judged.missing) + len(judged.wrong) + len(judged.double)
    result.claim(
        "ordinary calls are recorded exactly afterwards",
        not faults and judged.exact > 0,
        f"{judged.exact} exact, {faults} not",
    )
    code = sidecar.stop()
    result.claim("it ends cleanly", code == 0, f"exit code {code}")


main = command(parser(), run)

if __name__ == "__main__":
    sys.exit(main())
