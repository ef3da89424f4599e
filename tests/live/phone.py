"""A telephone for tests of single calls."""

import re
import socket
from typing import Self


class Phone:
    """A UDP socket that knows enough SIP to be called."""

    def __init__(self, ip: str) -> None:
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind((ip, 0))
        self.sock.settimeout(5)
        self.address = f"{ip}:{self.sock.getsockname()[1]}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(
        self,
        to: str,
        method: str,
        uri: str,
        call_id: str,
        *headers: str,
        to_tag: str = "",
        cseq: int = 1,
        body: str = "",
    ) -> None:
        host, _, port = to.partition(":")
        branch = re.sub(r"[^A-Za-z0-9.-]", "-", f"{call_id}{cseq}")
        text = [
            f"{method} {uri} SIP/2.0",
            f"Via: SIP/2.0/UDP {self.address};branch=z9hG4bK{branch}",
            f"From: <sip:alice@{self.address}>;tag=a",
            f"To: <{uri}>{to_tag}",
            f"Call-ID: {call_id}",
            f"CSeq: {cseq} {method}",
            "Max-Forwards: 70",
            *headers,
            *self.about(body),
        ]
        self.sock.sendto("\r\n".join([*text, "", body]).encode(), (host, int(port)))

    @staticmethod
    def about(body: str) -> list[str]:
        kind = ["Content-Type: application/sdp"] if body else []
        return [*kind, f"Content-Length: {len(body)}"]

    def receive(self, start: str) -> str:
        """The next message that starts so; others are passed over."""
        while True:
            text = self.sock.recv(65535).decode()
            if text.startswith(start):
                return text

    def reply(self, request: str, to: str, status: str, body: str = "") -> None:
        host, _, port = to.partition(":")
        kept = re.findall(r"^(?:Via|From|Call-ID|CSeq|Record-Route): .*$", request, re.MULTILINE)
        to_line = re.findall(r"^To: .*$", request, re.MULTILINE)[0].strip()
        tag = "" if ";tag=" in to_line else f";tag={self.address[-4:]}"
        text = [f"SIP/2.0 {status}", *map(str.strip, kept), to_line + tag, *self.about(body)]
        self.sock.sendto("\r\n".join([*text, "", body]).encode(), (host, int(port)))
