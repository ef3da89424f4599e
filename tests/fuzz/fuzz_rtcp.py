"""RTCP as bytes, JSON and ESL headers: reports in the ranges of their fields or RtcpError.

Run as `python tests/fuzz/fuzz_rtcp.py -max_total_time=60`.
"""

# ruff: noqa: PT017 - a fuzz target is no pytest

import importlib
import sys
from typing import Any

atheris: Any = importlib.import_module("atheris")

with atheris.instrument_imports(include=["sipsidecar"]):
    from sipsidecar.wire import rtcp

WORD = 0xFFFFFFFF
SR = bytes.fromhex(
    "81c8000c58f33dea00024ffb828f5b92114a0c42000002ed0001cacfd2bd4e3e00000000000002010000001486e90f9d"
    "000344dd"
)


def check(report: rtcp.Report) -> None:
    assert 0 <= report.ssrc <= WORD
    assert report.flaw is None or report.flaw in rtcp.FLAWS
    assert len(report.blocks) <= rtcp.MAX_BLOCKS
    assert max(len(report.voip), len(report.dlrr), len(report.bye)) <= rtcp.MAX_BLOCKS
    for block in report.blocks:
        assert 0 <= block.fraction_lost <= 255
        for word in (block.source_ssrc, block.highest_seq, block.jitter, block.lsr, block.dlsr):
            assert 0 <= word <= WORD
        assert block.source_ssrc or block.highest_seq
    if report.sender is not None:
        assert 0 <= report.sender.ntp < 1 << 64
        assert max(report.sender.packets, report.sender.octets) <= WORD
    assert rtcp.implausible(report) in {None, *rtcp.IMPLAUSIBLE}


def test_one_input(data: bytes) -> None:
    for payload in (data, SR + data):
        try:
            compound = rtcp.packets(payload)
            assert compound.size == sum(packet.size for packet in compound.packets)
            assert (compound.size == len(payload)) or compound.flaw is not None
            reports = rtcp.parse(payload)
        except rtcp.RtcpError as error:
            assert error.why in rtcp.WHYS
        else:
            assert len(reports) <= rtcp.MAX_PACKETS
            for report in reports:
                check(report)
    try:
        check(rtcp.parse_json(data))
    except rtcp.RtcpError as error:
        assert error.why in rtcp.WHYS
    lines = data.decode("latin-1").split("\n")
    headers = {name: value for name, _, value in (line.partition(": ") for line in lines)}
    for sent in (False, True):
        try:
            check(rtcp.from_freeswitch(headers, sent=sent))
        except rtcp.RtcpError as error:
            assert error.why in rtcp.WHYS


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
