"""SIP bytes: a message or SipError, accessors that never raise, usual shapes read as the odd ones.

Run as `python tests/fuzz/fuzz_sip.py -max_total_time=60 NEW_INPUTS tests/corpus/rfc4475`.
"""

# ruff: noqa: PT017 - a fuzz target is no pytest

import importlib
import re
import sys
from typing import Any

import msgspec

atheris: Any = importlib.import_module("atheris")

with atheris.instrument_imports(include=["sipsidecar"]):
    from sipsidecar.wire import sip

USUAL = {"_USUAL_VIA": sip._USUAL_VIA, "_USUAL_ADDRESS": sip._USUAL_ADDRESS}
NOTHING = re.compile(rb"(?!)")
HEADERS = (
    b"INVITE sip:a@b SIP/2.0\r\nVia:SIP/2.0/UDP a;branch=b\r\nFrom:<sip:a@b>;tag=c\r\n"
    b"To:<sip:d@e>\r\nCall-ID:f\r\nCSeq:1 INVITE\r\n"
)


def outcome(payload: bytes) -> sip.Message | str:
    try:
        return sip.parse(payload)
    except sip.SipError as error:
        assert error.why in sip.WHYS
        return error.why


def check_texts(value: object) -> None:
    """Every text can be stored and printed."""
    if isinstance(value, str):
        assert "\0" not in value
        assert len(value.encode()) <= 4 * sip.MAX_TEXT + 8
    elif isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            check_texts(getattr(value, name))
    elif isinstance(value, (list, tuple)):
        for each in value:
            check_texts(each)


def check_message(message: sip.Message) -> None:
    assert 0 < len(message.call_id) <= sip.MAX_CALL_ID
    assert 0 <= message.cseq < 1 << 32
    assert message.method
    assert message.branch
    vias = message.vias()
    assert message.branch == (vias[0].branch or "sent-by " + vias[0].sent_by)
    assert message.via_transport == vias[0].transport
    assert len(vias) <= message.via_count <= sip.MAX_COPIES
    reasons = message.reasons()
    assert len(reasons) <= sip.MAX_REASONS
    check_texts([message, sip.uri(message.ruri), vias, reasons])
    for name in (*message.headers, "reason", "x-tenant"):
        check_texts([message.first(name), message.address(name)])
        seconds = message.seconds(name)
        assert seconds is None or 0 <= seconds < 10**9
        for raw in message.values(name):
            check_value(raw)


def check_value(raw: bytes) -> None:
    text = sip.text(raw)
    check_texts([text, sip.uri(text), sip.name_addr(raw), sip.parse_reasons([raw])])
    parts = sip.split_values(raw)
    assert len(parts) <= sip.MAX_COPIES
    for part in parts:
        assert part
        check_texts(sip.name_addr(part))


def test_one_input(data: bytes) -> None:
    check_value(data)
    for payload in (data, HEADERS + data, HEADERS.replace(b"\r\nTo", data + b"\r\nTo", 1)):
        found = outcome(payload)
        if isinstance(found, sip.Message):
            check_message(found)
        for name in USUAL:
            setattr(sip, name, NOTHING)
        again = outcome(payload)
        for name, pattern in USUAL.items():
            setattr(sip, name, pattern)
        assert found == again


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
