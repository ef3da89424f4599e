"""What came with a request to what a page takes, and what cannot be to an answer that says why."""

import re
from collections.abc import Callable
from hashlib import blake2b
from typing import Final, TypeVar
from urllib.parse import unquote_to_bytes

import msgspec
from aiohttp import web

from sipsidecar.edges.http.pages import Request, error_response
from sipsidecar.signals.rules import RuleError
from sipsidecar.tables import printable
from sipsidecar.wire.sip import text

_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_BROKEN: Final = re.compile("[\udc80-\udcff]")
"""Bytes that are not UTF-8, as `surrogateescape` leaves them."""
_T = TypeVar("_T")


class QuestionError(ValueError):
    """A request that cannot be answered; the message is one line that says what to send."""


class AbsentError(Exception):
    """Something that is named and not there."""


def refusing(make: Callable[[Request], web.Response]) -> Callable[[Request], web.Response]:
    """Turn what cannot be into an answer that says why."""

    def answer(request: Request) -> web.Response:
        try:
            return make(request)
        except QuestionError as error:
            return error_response(400, printable(str(error))[:500])
        except AbsentError as error:
            return error_response(404, printable(str(error))[:500])
        except RuleError as error:
            return error_response(422, str(error))

    return answer


def looked_up(call: Callable[[], _T]) -> _T:
    """Call what may name something that is not there; AbsentError then, with its words."""
    try:
        return call()
    except LookupError as error:
        if type(error) is not LookupError:  # a KeyError or IndexError is a fault of ours
            raise
        raise AbsentError(str(error)) from None


def query(request: Request) -> dict[str, str]:
    """Read the query as RFC 3986 has it: a plus sign is no blank, or numbers would lose theirs."""
    found: dict[str, str] = {}
    raw_query = request.http.rel_url.raw_query_string.encode("utf-8", "surrogateescape")
    for pair in filter(None, raw_query.split(b"&")):
        name, _, value = pair.partition(b"=")
        shown = text(unquote_to_bytes(name))
        if shown in found:
            raise QuestionError(f"{shown}: send it once")
        raw = unquote_to_bytes(value)
        # a Call-ID or tag is not cut here: two calls must not become one
        found[shown] = raw.decode("utf-8", "backslashreplace") if shown in _WHOLE else text(raw)
    return found


_WHOLE: Final = ("call_id", "from_tag")


def decode(kind: type[_T], body: bytes) -> _T:
    """Turn a JSON body into a kind of struct; QuestionError."""
    try:
        try:
            return msgspec.json.decode(body, type=kind)
        except UnicodeDecodeError:
            # Strangers' bytes in a header: an error would let their calls pass undecided. Made
            # visible in the way that the SIP parser does, so that Call-IDs are the same.
            escaped = _BROKEN.sub(
                lambda found: f"\\\\x{ord(found[0]) - 0xDC00:02x}",
                body.decode("utf-8", "surrogateescape"),
            )
            return msgspec.json.decode(escaped, type=kind)
    except RecursionError:
        raise QuestionError("send no JSON that is nested so deeply") from None
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise QuestionError(words_of(error)) from None


def words_of(error: Exception) -> str:
    """What to send, of what was wrong with a shape."""
    said = str(error).replace("Object contains", "there is an").replace("- at `$.", "for `")
    return f"send the fields that / names: {said}"


def check_name(what: str, value: str) -> None:
    """Find a name that none in the configuration could be; QuestionError."""
    if not _NAME.fullmatch(value):
        raise QuestionError(f"{what}: expected a name of letters, digits, dots, _ or -")


def identity(value: str, most: int) -> str:
    """Turn a Call-ID or tag into what the SIP parser makes of it.

    HEP shows none that is longer than `most`, so a longer one only must stay another than all others:
    cut short alone, many calls would be counted as one.
    """
    raw = value.encode()
    shown = text(raw)
    if len(shown) <= most and len(raw) <= most * 4:
        return shown
    return f"{shown[: most - 33]}-{blake2b(raw, digest_size=16).hexdigest()}"
