"""A program that answers HTTP as a sidecar does, or as none would."""

import contextlib
import http.server
import json
import ssl
import threading
from collections.abc import Iterator

from certificates import Certificate

Pages = dict[str, tuple[int, bytes]]

READY = {"status": "ready", "checks": {"database": {"ok": True, "reading": "up"}}}
LEDGER = {
    "received": 10, "stored": 10, "dropped": 0, "refused": 0, "balance": 0, "kernel_drops": 0,
    "dropped_by_reason": {}, "refused_by_reason": {},
}  # fmt: skip
AGENT = {
    "agent_id": 2001, "address": "192.0.2.1", "node_name": None, "packets": 10, "name": "edge",
    "last_seen_seconds": 0.5, "clock_skew_seconds": 0.001, "local_address": None,
}  # fmt: skip
METRICS = """# HELP sipsidecar_build_info This sidecar's version
sipsidecar_build_info{version="9.9.9"} 1.0
sipsidecar_receive_buffer_bytes 6.7108864e+07
process_resident_memory_bytes 5e+07
process_open_fds 20.0
process_max_fds 1024.0
"""


def page(body: object, status: int = 200) -> tuple[int, bytes]:
    return status, json.dumps(body).encode()


def pages(**changes: tuple[int, bytes]) -> Pages:
    """What a healthy sidecar answers; `changes` by the last word of the path."""
    made = {
        "/health/ready": page(READY),
        "/metrics": (200, METRICS.encode()),
        "/v1/ledger": page(LEDGER),
        "/v1/agents": page([AGENT]),
    }
    for name, changed in changes.items():
        (path,) = (path for path in made if path.endswith(name))
        made[path] = changed
    return made


@contextlib.contextmanager
def answering(
    found: Pages, *, token: str | None = None, tls: Certificate | None = None
) -> Iterator[tuple[str, list[tuple[str, str | None]]]]:
    """The address, and what was asked: path and Authorization header."""
    asked: list[tuple[str, str | None]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            given = self.headers.get("Authorization")
            asked.append((self.path, given))
            status, body = found.get(self.path, (404, b"{}"))
            open_to_all = self.path.startswith("/health/")
            if token is not None and given != f"Bearer {token}" and not open_to_all:
                status, body = 401, b"{}"
            self.send_response(status)
            if status == 302:
                self.send_header("Location", body.decode())
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- its name
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.handle_error = lambda *_: None  # type: ignore[method-assign]
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tls.certificate, tls.key)
            server.socket = context.wrap_socket(
                server.socket, server_side=True, do_handshake_on_connect=False
            )
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}", asked
        finally:
            server.shutdown()
            thread.join()
