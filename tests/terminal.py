"""What a command says to its caller, on a terminal or not."""

import json
import os
import pty
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from running import ENVIRONMENT, LIMIT
from sipsidecar.wire import pcap

HOSTILE = 'evil\x1b[31m\u202e"\x07'
"""What a stranger may put into a header to repaint a terminal."""
Row = dict[str, Any]


class Said:
    """What one command printed, and its exit code."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err

    @property
    def rows(self) -> list[Row]:
        """The JSON lines."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def refusal(self) -> str:
        """The one line of a command that could not."""
        assert (self.code, self.out) == (2, "")
        (line,) = self.err.splitlines()
        assert line.startswith("sipsidecar")
        assert "Traceback" not in line
        return line


Run = Callable[..., Said]


def hostile_capture(path: Path) -> Path:
    """A call of which every word is a stranger's."""
    at = time.time_ns() // 1000 - int(60 * 1e6)

    def message(start: str, to_tag: str = "") -> bytes:
        return (
            f"{start}\r\nVia: SIP/2.0/UDP 192.0.2.1;branch=z9hG4bKh\r\n"
            f'From: "x" <sip:{HOSTILE}@example.com>;tag=h\r\nTo: <sip:{HOSTILE}@x>{to_tag}\r\n'
            f"Call-ID: hostile-{HOSTILE}@x\r\nCSeq: 1 INVITE\r\nUser-Agent: {HOSTILE}\r\n"
            f'Reason: SIP;cause=1;text="{HOSTILE}"\r\n\r\n'
        ).encode()

    phone, proxy = (socket.inet_aton(address) for address in ("192.0.2.1", "192.0.2.2"))
    data = pcap.file_header()
    data += pcap.udp_record(
        at, phone, proxy, 5060, 5060, message(f"INVITE sip:{HOSTILE}@x SIP/2.0")
    )
    data += pcap.udp_record(
        at + 9000, proxy, phone, 5060, 5060, message(f"SIP/2.0 404 {HOSTILE}", ";tag=2")
    )
    path.write_bytes(data)
    return path


def on_terminal(arguments: list[str], columns: int) -> str:
    """What a command shows on a terminal of so many columns."""
    try:
        main, side = pty.openpty()
    except OSError as error:
        pytest.skip(f"no pseudo-terminal here: {error}")
    with subprocess.Popen(
        [sys.executable, "-m", "sipsidecar", *arguments],
        env=ENVIRONMENT | {"COLUMNS": str(columns)}, stdin=side, stdout=side, stderr=side,
    ) as process:  # fmt: skip
        os.close(side)
        shown = b""
        while True:
            try:
                data = os.read(main, 65_536)
            except OSError:  # the other side is gone
                break
            if not data:
                break
            shown += data
        assert process.wait(LIMIT) == 0
    os.close(main)
    return shown.decode().replace("\r\n", "\n")
