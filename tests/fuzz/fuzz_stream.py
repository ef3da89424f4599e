"""SIP streams: every payload is closed once, no byte but line ends is lost, what is held is capped.

Run as `python tests/fuzz/fuzz_stream.py -max_total_time=60`.
"""

import importlib
import sys
from typing import Any

atheris: Any = importlib.import_module("atheris")

with atheris.instrument_imports(include=["sipsidecar"]):
    from sipsidecar.wire import stream

MESSAGE = b"BYE sip:x SIP/2.0\r\nl: 0\r\n\r\n"


def test_one_input(data: bytes) -> None:
    # 0xff cuts the payloads, 0xfe stands for a whole message.
    payloads = [each.replace(b"\xfe", MESSAGE) for each in data.split(b"\xff")]
    line = stream.SipStream()
    outputs = []
    for payload in payloads:
        outputs += line.feed(payload, None)
        assert line.pending <= stream.MAX_HELD
    last = line.flush()
    if last is not None:
        outputs.append(last)
    assert sum(out.packets for out in outputs) == len(payloads)
    got = b"".join(out.payload for out in outputs)
    assert got.translate(None, b"\r\n") == b"".join(payloads).translate(None, b"\r\n")
    for payload in payloads:
        if stream.is_whole(payload):
            assert stream.SipStream().feed(payload, 1) == [stream.StreamMessage(payload, 1, 1, 1)]


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
