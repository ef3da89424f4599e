import ssl
import subprocess
from pathlib import Path

import pytest

from certificates import Authority, Certificate
from sipsidecar.tls import TlsError, server_context


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module")
def authority(folder: Path) -> Authority:
    return Authority(folder)


@pytest.fixture(scope="module")
def server(authority: Authority) -> Certificate:
    return authority.issue("server")


def error_of(certificate: str, key: str, client_ca: str = "") -> str:
    with pytest.raises(TlsError) as caught:
        server_context(certificate, key, client_ca)
    text = str(caught.value)
    assert "\n" not in text
    assert "\0" not in text
    return text


def test_a_context_speaks_tls_1_2_or_later_and_asks_clients_for_nothing(
    server: Certificate,
) -> None:
    context = server_context(*server)
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.verify_mode == ssl.CERT_NONE
    assert context.options & ssl.OP_NO_RENEGOTIATION


def test_authorities_for_clients_make_their_certificate_a_must(
    authority: Authority, server: Certificate
) -> None:
    context = server_context(*server, authority.certificate)
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert len(context.get_ca_certs()) == 1


def test_a_certificate_is_not_its_own_client_authority(server: Certificate) -> None:
    assert server_context(*server).get_ca_certs() == []


def test_each_file_that_is_missing_is_named(server: Certificate) -> None:
    certificate, key = server
    assert error_of("/no/such.pem", key) == "/no/such.pem: no such file"
    assert error_of(certificate, "/no/such.key") == "/no/such.key: no such file"
    assert error_of(certificate, key, "/no/ca.pem") == "/no/ca.pem: no such file"
    assert error_of("a\0b", key) == "a\\x00b: no such file"


def test_what_is_no_file_is_named_and_not_waited_for(server: Certificate, folder: Path) -> None:
    assert error_of(str(folder), server.key) == f"{folder}: is no file"
    assert error_of(server.certificate, "/dev/zero") == "/dev/zero: is no file"


def test_a_file_that_may_not_be_read_is_named(
    server: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, *_: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    assert error_of(*server) == f"{server.certificate}: Permission denied"


def test_files_that_are_swapped_are_told_by_what_they_lack(server: Certificate) -> None:
    certificate, key = server
    assert error_of(key, certificate) == f"{key}: holds no certificate in PEM form"
    assert error_of(certificate, certificate) == f"{certificate}: holds no private key in PEM form"
    assert error_of(certificate, key, key) == f"{key}: holds no certificate in PEM form"


def test_the_key_of_another_certificate_is_told(authority: Authority, server: Certificate) -> None:
    other = authority.issue("other")
    assert error_of(server.certificate, other.key) == (
        f"{other.key}: is not the key of {server.certificate}"
    )


@pytest.mark.parametrize("which", ["certificate", "key", "authorities"])
def test_a_damaged_file_is_named_and_nothing_of_it_is_shown(
    authority: Authority, server: Certificate, tmp_path: Path, which: str
) -> None:
    whole = {
        "certificate": server.certificate,
        "key": server.key,
        "authorities": authority.certificate,
    }
    lines = Path(whole[which]).read_text(encoding="ascii").splitlines(keepends=True)
    damaged = tmp_path / "damaged.pem"
    damaged.write_text("".join(lines[:2] + lines[3:]), encoding="ascii")
    told = error_of(*(whole | {which: str(damaged)}).values())
    assert told.startswith(f"{damaged}: ")
    assert not any(line.strip() in told for line in lines)


def test_an_encrypted_key_is_refused_and_no_passphrase_asked_for(
    server: Certificate, tmp_path: Path
) -> None:
    encrypted = tmp_path / "encrypted.key"
    subprocess.run(
        ["openssl", "pkey", "-in", server.key, "-out", encrypted, "-aes128", "-passout", "pass:x"],
        check=True,
        capture_output=True,
    )
    assert error_of(server.certificate, str(encrypted)) == (
        f"{encrypted}: the private key is encrypted; give one without a passphrase"
    )
