"""Asks the running sidecar that a configuration names: over TLS and with a token if it says so."""

import http.client
import socket
import ssl
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from sipsidecar.cli.words import CliError
from sipsidecar.config import Config, parse_address
from sipsidecar.tables import printable

T = TypeVar("T")
MAX_PAGE = 16 * 2**20
"""Bytes of an answer: whatever listens there may not be a sidecar."""
_END = "-----END CERTIFICATE-----"
_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 -- asked, not listened on


class NoAnswerError(Exception):
    """Nothing usable answers; the message is one line that says why."""


class Asked:
    """One sidecar's HTTP address; never follows a redirect, never asks a proxy."""

    def __init__(self, config: Config, seconds: float = 1.0) -> None:
        host, self._port = parse_address(config.http.listen)
        self._host = _ANYWHERE.get(host, host)
        self._certificate = config.http.tls_certificate
        self._seconds = seconds
        read, operate = config.http.read_tokens, config.http.operate_tokens
        self._token = next(filter(None, (*read, *operate)), None)
        self._operate_token = next(filter(None, operate), self._token)
        shown = f"[{self._host}]" if ":" in self._host else self._host
        self.address = f"{'https' if self._certificate else 'http'}://{shown}:{self._port}"
        """For people."""

    def get(self, path: str, *, token: bool = True) -> tuple[int, bytes]:
        """Fetch a page: status and body. Each step may take the seconds given; NoAnswerError."""
        return self._ask("GET", path, self._token if token else None, None)

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, bytes]:
        """Have something done, with a token that may operate; as `get`."""
        return self._ask("POST", path, self._operate_token, msgspec.json.encode(body))

    def _ask(
        self, method: str, path: str, token: str | None, body: bytes | None
    ) -> tuple[int, bytes]:
        connection = self._connection()
        headers: dict[str, str | bytes] = {"Connection": "close"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}".encode()
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            connection.request(method, path, body, headers)
            reply = connection.getresponse()
            read = reply.read(MAX_PAGE + 1)
        except ssl.SSLCertVerificationError as error:
            why = f"its certificate is not that of http.tls_certificate: {error.verify_message}"
            raise NoAnswerError(printable(why)) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise NoAnswerError(_reason(error)) from None
        finally:
            connection.close()
        if len(read) > MAX_PAGE:
            raise NoAnswerError("its answer has no end")
        return reply.status, read

    def _connection(self) -> http.client.HTTPConnection:
        if not self._certificate:
            return http.client.HTTPConnection(self._host, self._port, timeout=self._seconds)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        # The sidecar's own certificate is trusted, the first of the file, and no name in it.
        context.check_hostname = False
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        try:
            own = Path(self._certificate).read_text(encoding="ascii").partition(_END)[0] + _END
            context.load_verify_locations(cadata=own)
        except (OSError, ValueError):
            raise NoAnswerError("the file of http.tls_certificate cannot be read") from None
        return http.client.HTTPSConnection(
            self._host, self._port, timeout=self._seconds, context=context
        )


def answered(
    asked: Asked, ask: Callable[[Asked], tuple[int, bytes]], kind: type[T], tokens: str
) -> T:
    """Ask a running sidecar for JSON of a kind; CliError says in one line what to do.

    `tokens`: the setting with tokens that may have it.
    """
    try:
        code, body = ask(asked)
    except NoAnswerError as error:
        raise CliError(
            f"no sidecar answers at {asked.address} ({error}): "
            "start `sipsidecar run`, or name its --http"
        ) from None
    if code == HTTPStatus.UNAUTHORIZED:
        raise CliError(
            f"{asked.address} answers {code}: "
            f"set {tokens} to a token of that sidecar, such as file:PATH"
        )
    try:
        if code == HTTPStatus.OK:
            return msgspec.json.decode(body, type=kind)
        why = printable(msgspec.json.decode(body, type=dict[str, str])["error"])
    except (ValueError, LookupError, RecursionError):
        raise CliError(f"{asked.address} is no sidecar; name its --http") from None
    raise CliError(f"{asked.address} answers {code}: {why}")


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return "it does not speak TLS as it should"
    if isinstance(error, socket.gaierror):
        return "no such host"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, OSError) and not isinstance(error, http.client.HTTPException):
        return printable(error.strerror or str(error) or type(error).__name__)
    return "what answers does not speak HTTP"
