"""Bytes off a TLS connection to bytes in clear, without the connection.

The loops' own TLS tells its protocol of a connection only after the handshake, and keeps a buffer
of 256 kB for each; here a half-open one is seen, counted and closed like any other.
"""

import ssl

READ_AT_ONCE = 16 * 1024
"""Bytes of one TLS record."""


class TlsSession:
    """The server's side of one TLS connection: no method raises, whatever the peer sends."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._in = ssl.MemoryBIO()
        self._out = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_side=True)
        self.ready = False
        """The handshake is done."""
        self.ended = False
        """The peer said that it is done, or it broke the protocol: there is nothing more to hear."""
        self.failed = False
        """The peer broke the protocol, or may not connect."""

    def receive(self, data: bytes) -> bytes:
        """Turn what came off the socket into what it says in clear; it may be nothing yet."""
        if self.ended:
            return b""
        self._in.write(data)
        said = []
        try:
            if not self.ready:
                self._tls.do_handshake()
                self.ready = True
            while piece := self._tls.read(READ_AT_ONCE):
                said.append(piece)
            self.ended = True  # nothing is a goodbye (close_notify)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError:
            self.ended = self.failed = True
        return b"".join(said)

    def to_send(self) -> bytes:
        """Return what the peer must be sent now: handshake messages and alerts."""
        return self._out.read()
