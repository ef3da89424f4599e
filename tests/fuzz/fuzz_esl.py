"""ESL bytes: events, replies or a fault, the same however they are cut; every text can be stored.

Run as `python tests/fuzz/fuzz_esl.py -max_total_time=60 NEW_INPUTS tests/corpus/freeswitch`.
"""

# ruff: noqa: PT017 - a fuzz target is no pytest

import importlib
import sys
from typing import Any

import msgspec

atheris: Any = importlib.import_module("atheris")

with atheris.instrument_imports(include=["sipsidecar"]):
    from sipsidecar.wire import esl


def check(item: esl.Event | esl.Reply) -> None:
    texts = []
    for name in item.__struct_fields__:
        value = getattr(item, name)
        if name == "rtcp" and value is not None:
            texts += [*value, *value.values()]
        elif name != "ok":
            texts.append(value)
        if isinstance(item, esl.Event) and name != "body" and isinstance(value, str):
            # Every character may be a NUL, which is written with four.
            assert len(value) <= 4 * esl.MAX_TEXT
    for text in texts:
        assert text is None or "\0" not in text
    # Encoding fails for what is no Unicode.
    msgspec.json.encode(item)


def outcome(reads: list[bytes], *, recorded: bool) -> Any:
    line = esl.Connection(recorded=recorded)
    found: list[esl.Event | esl.Reply] = []
    try:
        for read in reads:
            found += line.receive_data(read)
        found += line.receive_data(b"")
    except esl.EslError as error:
        assert error.why in esl.FAULTS
        assert error.why == line.fault
    assert set(line.refused) <= set(esl.REFUSALS)
    assert line.pending <= sum(map(len, reads))
    for item in found:
        check(item)
    return found, line.refused, line.fault, line.pending


def test_one_input(data: bytes) -> None:
    half = len(data) // 2
    for recorded in (False, True):
        whole = outcome([data], recorded=recorded)
        assert whole == outcome([data[:half], data[half:]], recorded=recorded)
    for parse in (esl.parse_json, esl.parse_plain):
        for body in (data, b'{"Event-Name":"X","Phrase":' + data, b"Event-Name: X\n" + data):
            try:
                check(parse(body))
            except esl.EslError as error:
                assert error.why in esl.REFUSALS
    text = data.decode("latin-1")
    try:
        assert esl.command(text).count(b"\n") == 2
        assert esl.bgapi(text, text).count(b"\n") == 3
    except esl.EslError as error:
        assert error.why in esl.WHYS


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
