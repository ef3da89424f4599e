"""Capture files: packets or PcapError; no more bytes come out than went in.

Run as `python tests/fuzz/fuzz_pcap.py -max_total_time=60`.
"""

# ruff: noqa: PT017 - a fuzz target is no pytest

import importlib
import io
import struct
import sys
from typing import Any

atheris: Any = importlib.import_module("atheris")

with atheris.instrument_imports(include=["sipsidecar"]):
    from sipsidecar.wire import pcap

LINKS = (0, 1, 101, 113, 276)


def framed(data: bytes) -> bytes:
    """A file whose first byte chooses the link type and whose frames are cut by 0xff 0xff."""
    file = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65_535, LINKS[data[0] % len(LINKS)])
    for number, frame in enumerate(data[1:].split(b"\xff\xff")):
        file += struct.pack("<IIII", 1_700_000_000 + number, 0, len(frame), len(frame)) + frame
    return file


def test_one_input(data: bytes) -> None:
    files = [data, b"\xd4\xc3\xb2\xa1" + data]
    if data:
        files.append(framed(data))
    for file in files:
        try:
            reader = pcap.Reader(io.BytesIO(file))
        except pcap.PcapError as error:
            assert error.why in pcap.WHYS
            continue
        captured = list(reader)
        assert sum(len(each.payload) for each in captured) <= len(file)
        assert set(reader.skipped) <= pcap.SKIPS
        for each in captured[:3]:
            record = pcap.udp_record(
                each.captured_at or 0,
                each.source,
                each.destination,
                each.source_port,
                each.destination_port,
                each.payload,
            )
            (again,) = pcap.Reader(io.BytesIO(pcap.file_header() + record))
            assert again.payload == each.payload[: pcap.MAX_PAYLOAD]
            assert (again.source, again.destination) == (each.source, each.destination)


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
