import base64
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certificates import Authority
from sipsidecar.cli.checks.certificates import days_left


def test_the_end_is_the_one_that_openssl_shows(tmp_path: Path) -> None:
    now = time.time()
    path = Authority(tmp_path).issue("a").certificate
    left = days_left(Path(path).read_bytes(), now)
    assert left == pytest.approx(2.0, abs=0.01)
    assert days_left(Path(path).read_bytes(), now + 3 * 86_400) == pytest.approx(-1.0, abs=0.01)


@pytest.mark.parametrize(
    ("days", "kind"), [("10", "rsa:2048"), ("36500", "rsa:2048"), ("36500", "ed25519")]
)
def test_ends_before_and_after_2050_are_read(tmp_path: Path, days: str, kind: str) -> None:
    Authority(tmp_path)  # skips where there is no openssl
    made = tmp_path / "b.pem"
    words = f"req -x509 -newkey {kind} -nodes -days {days} -subj /CN=b -keyout {tmp_path}/b.key"
    subprocess.run(["openssl", *words.split(), "-out", str(made)], check=True, capture_output=True)
    left = days_left(made.read_bytes(), time.time())
    assert left == pytest.approx(float(days), abs=0.01)


def test_the_first_certificate_of_a_chain_counts(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    chain = Path(authority.certificate).read_bytes()
    assert days_left(b"words\n" + chain + b"-----BEGIN CERTIFICATE-----\nxx", 0) is not None


@pytest.mark.parametrize(
    "pem", [b"", b"x", b"-----BEGIN CERTIFICATE-----\n\n-----END CERTIFICATE-----"]
)
def test_no_certificate_has_no_end(pem: bytes) -> None:
    assert days_left(pem, 0) is None


@given(st.binary(max_size=300))
def test_no_bytes_break_the_reader(der: bytes) -> None:
    body = base64.encodebytes(der)
    days_left(b"-----BEGIN CERTIFICATE-----\n" + body + b"-----END CERTIFICATE-----", 0)


def test_no_damage_breaks_the_reader(tmp_path: Path) -> None:
    pem = Path(Authority(tmp_path).certificate).read_text()
    der = base64.b64decode("".join(pem.splitlines()[1:-1]))
    for index in range(min(len(der), 200)):
        for value in (0x00, 0x30, 0x7F, 0x80, 0x84, 0xFF):
            bad = der[:index] + bytes([value]) + der[index + 1 :]
            body = base64.encodebytes(bad)
            days_left(b"-----BEGIN CERTIFICATE-----\n" + body + b"-----END CERTIFICATE-----", 0)
