"""PEM files to the TLS context of a listener, for HEP and HTTP alike."""

import ssl
from pathlib import Path

from sipsidecar.tables import printable

MAX_PEM = 2**20
"""Bytes that are read of a PEM file: the largest bundles of authorities are a quarter of it."""


class TlsError(ValueError):
    """One line that says which file is wrong, and why."""

    def __init__(self, text: str) -> None:
        super().__init__(printable(text))


def server_context(certificate: str, key: str, client_ca: str = "") -> ssl.SSLContext:
    """Make a server's context (TLS 1.2 or later) from the paths of its PEM files.

    With `client_ca` only clients with a certificate of those authorities may connect. A file that
    cannot be used is a TlsError; no part of a key is ever in it.
    """
    _require(certificate, "CERTIFICATE", "certificate")
    _require(key, "PRIVATE KEY", "private key")
    _trust(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), certificate)  # what fails below is the key
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION  # it costs the server more than the client

    def refuse() -> str:  # without it OpenSSL asks on the terminal, and waits
        raise TlsError(f"{key}: the private key is encrypted; give one without a passphrase")

    try:
        context.load_cert_chain(certificate, key, password=refuse)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise TlsError(f"{key}: is not the key of {certificate}") from None
        raise TlsError(f"{key}: {_reason(error)}") from None
    except OSError as error:
        raise TlsError(f"{certificate} or {key}: {error.strerror}") from None
    if client_ca:
        _require(client_ca, "CERTIFICATE", "certificate")
        _trust(context, client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _require(path: str, mark: str, what: str) -> None:
    """Refuse a file that is not there, not readable or not PEM; OpenSSL does not say which it was."""
    file = Path(path)
    try:
        if not file.is_file():
            raise TlsError(f"{path}: {'is no file' if file.exists() else 'no such file'}")
        with file.open("rb") as opened:
            text = opened.read(MAX_PEM)
    except OSError as error:
        raise TlsError(f"{path}: {error.strerror}") from None
    if b"-----BEGIN " not in text or mark.encode() + b"-----" not in text:
        raise TlsError(f"{path}: holds no {what} in PEM form")


def _trust(context: ssl.SSLContext, authorities: str) -> None:
    try:
        context.load_verify_locations(authorities)
    except ssl.SSLError as error:
        raise TlsError(f"{authorities}: {_reason(error)}") from None
    except OSError as error:
        raise TlsError(f"{authorities}: {error.strerror}") from None


def _reason(error: ssl.SSLError) -> str:
    """Say what OpenSSL says, such as `bad end line`."""
    return error.reason.replace("_", " ").lower() if error.reason else "cannot be read as PEM"
