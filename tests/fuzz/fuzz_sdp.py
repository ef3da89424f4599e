"""SDP and multipart bytes: a description or SdpError; names are printable, parts are parts.

Run as `python tests/fuzz/fuzz_sdp.py -max_total_time=60`.
"""

# ruff: noqa: PT017 - a fuzz target is no pytest

import importlib
import sys
from typing import Any

atheris: Any = importlib.import_module("atheris")

with atheris.instrument_imports(include=["sipsidecar"]):
    from sipsidecar.wire import sdp


def test_one_input(data: bytes) -> None:
    try:
        description = sdp.parse(data)
    except sdp.SdpError as error:
        assert error.why in sdp.WHYS
    else:
        assert len(description.media) <= sdp.MAX_MEDIA
        names = sdp.audio_codecs(description)
        assert all(name.isascii() and name.isprintable() for name in names)
        codec = sdp.negotiated(description)
        assert codec is None or codec.name is None or codec.name in names
    content_type, _, body = data.partition(b"\n")
    for each in (content_type.decode("latin-1"), "multipart/mixed;boundary=b"):
        part = sdp.body_of(each, body)
        assert part is None or part in body


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
