"""Reports of a whole session: accounts in their ranges or QualityError, from every parser.

Run as `python tests/fuzz/fuzz_quality.py -max_total_time=60`.
"""

# ruff: noqa: PT017 - a fuzz target is no pytest

import importlib
import sys
from typing import Any

atheris: Any = importlib.import_module("atheris")

with atheris.instrument_imports(include=["sipsidecar"]):
    from sipsidecar.wire import quality


def test_one_input(data: bytes) -> None:
    for parser, head in (
        (quality.parse_vq, b""),
        (quality.parse_vq, b"VQSessionReport: CallTerm\nLocalMetrics:\n"),
        (quality.parse_rtp_stat, b""),
        (quality.parse_ng, b""),
        (quality.parse_ng, b"1 d4:SSRC"),
        (quality.parse_ng, b'1 {"SSRC":'),
        (quality.parse_log, b""),
        (quality.parse_log, b'{"quality": "x", "caller": '),
    ):
        try:
            told: Any = parser(head + data)
        except quality.QualityError as error:
            assert error.why in quality.WHYS
            continue
        accounts = told if isinstance(told, tuple) else (told,)
        assert len(accounts) <= 2 * quality.MAX_PARTIES
        for account in accounts:
            for mos in (account.mos, account.mos_lq, account.mos_cq, account.mos_min):
                assert mos is None or 1 <= mos <= 5
            for share in (account.loss_percent, account.discard_percent):
                assert share is None or 0 <= share <= 100
            for word in (account.call_id, account.codec, account.local_tag):
                assert word is None or (word.isascii() and word.isprintable())


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
