"""HEP bytes: a packet or HepError; the fast path agrees with the loop, the stream with itself.

Run as `python tests/fuzz/fuzz_hep.py -max_total_time=60`.
"""

# ruff: noqa: PT017 - a fuzz target is no pytest

import importlib
import sys
from typing import Any

atheris: Any = importlib.import_module("atheris")

with atheris.instrument_imports(include=["sipsidecar"]):
    from sipsidecar.wire import hep

LAYOUTS: dict[bytes, Any] = {}


def outcome(datagram: bytes, layouts: dict[bytes, Any]) -> hep.Packet | str:
    try:
        return hep._decode3(datagram, layouts)
    except hep.HepError as error:
        assert error.why in hep.WHYS
        return error.why


def frames(reads: list[bytes]) -> list[bytes]:
    stream = hep.HepStream()
    found: list[bytes] = []
    try:
        for read in reads:
            found += stream.feed(read)
    except hep.HepError as error:
        assert error.why == "stream"
    assert stream.pending <= 65_535
    return found


def again(packet: hep.Packet) -> None:
    """What was decoded and can be said again is decoded as the same."""
    fields = {
        name: getattr(packet, name)
        for name in packet.__struct_fields__
        if name not in {"version", "kind", "trailing", "overdeclared", "inflated"}
    }
    try:
        datagram = hep.encode(**fields)
    except hep.HepError:
        return
    repeated = hep.decode(datagram)
    assert all(getattr(repeated, name) == value for name, value in fields.items())


def test_one_input(data: bytes) -> None:
    for datagram in (data, b"HEP3" + data, b"HEP3" + (len(data) + 6).to_bytes(3, "big")[1:] + data):
        try:
            packet = hep.decode(datagram, now_seconds=1_700_000_000)
        except hep.HepError as error:
            assert error.why in hep.WHYS
        else:
            again(packet)
            hep.address_text(packet.source)
            hep.transport_name(packet.ip_protocol, "TLS")
        if datagram[:4] == b"HEP3":
            assert outcome(datagram, LAYOUTS) == outcome(datagram, {})
    half = len(data) // 2
    if len(data) < 65_000:
        assert frames([data]) == frames([data[:half], data[half:]])


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
