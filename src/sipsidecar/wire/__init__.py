"""Bytes to values and back.

Everything here is stateless across messages, or the framing of one connection.
It may import the standard library's pure parts and msgspec, nothing of this project above it;
no protocol imports another. A parser returns a value or raises its one error, nothing else.
"""


class WireError(ValueError):
    """What every parser of this room raises: bytes that are not what they should be.

    `why` is one of a small fixed set of words per parser, so that it can be a metric label.
    """

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why
