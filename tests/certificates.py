"""Throw-away certificates for TLS tests, made by the openssl program."""

import shutil
import ssl
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

LOCAL = "DNS:localhost,IP:127.0.0.1,IP:::1"


class Certificate(NamedTuple):
    """Paths of two PEM files."""

    certificate: str
    key: str


class Authority:
    """A certificate authority in a folder."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        if shutil.which("openssl") is None:
            pytest.skip("openssl is not installed: apt-get install openssl")
        self._folder = folder
        self._name = name
        self.certificate = str(folder / f"{name}.pem")
        self._key = str(folder / f"{name}.key")
        _openssl(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj",
            f"/CN={name}",
            "-keyout",
            self._key,
            "-out",
            self.certificate,
        )

    def issue(self, name: str, names: str = LOCAL, days: int = 2) -> Certificate:
        """Make a certificate for localhost and 127.0.0.1, or other names, signed by this authority."""
        made = Certificate(str(self._folder / f"{name}.pem"), str(self._folder / f"{name}.key"))
        request = str(self._folder / f"{name}.csr")
        extensions = self._folder / f"{name}.ext"
        extensions.write_text(f"subjectAltName={names}\n")
        _openssl(
            "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj",
            f"/CN={name}",
            "-keyout",
            made.key,
            "-out",
            request,
        )
        _openssl(
            f"x509 -req -days {days} -CAcreateserial -CA",
            self.certificate,
            "-CAkey",
            self._key,
            "-in",
            request,
            "-out",
            made.certificate,
            "-extfile",
            str(extensions),
        )
        return made

    def client(self, own: Certificate | None = None) -> ssl.SSLContext:
        """Make a client's context that trusts this authority, with its own certificate or none."""
        context = ssl.create_default_context(cafile=self.certificate)
        if own is not None:
            context.load_cert_chain(own.certificate, own.key)
        return context


def _openssl(words: str, *more: str) -> None:
    subprocess.run(["openssl", *words.split(), *more], check=True, capture_output=True)
