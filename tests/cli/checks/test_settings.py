from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from certificates import Authority
from sipsidecar.cli.checks import settings
from sipsidecar.cli.checks.case import Case, Finding
from sipsidecar.config import load

LETTERS = "a-secret-of-many-letters"


def case_of(text: str = "", file: Path | None = None, **environ: str) -> Case:
    if file is not None:
        file.write_text(text)
    return Case(load(file, environ, {}), file)


def only(check: Callable[[Case], Iterator[Finding]], case: Case) -> Finding:
    (finding,) = check(case)
    assert LETTERS not in str(finding)
    return finding


def test_the_configuration_tells_where_it_comes_from(tmp_path: Path) -> None:
    assert only(settings.configuration, case_of()).reading == "no file, only defaults"
    file = tmp_path / "s.toml"
    case = case_of("[node]\nid = 2", file, SIPSIDECAR_LOG__LEVEL="debug")
    found = only(settings.configuration, case)
    assert found.reading == f"{file}, 1 from the environment"
    assert found.figures == {"file": 1, "env": 1, "flag": 0}


def test_files_with_secrets_are_their_owners(tmp_path: Path) -> None:
    token, key = tmp_path / "token", tmp_path / "key"
    for path in (token, key):
        path.write_text(LETTERS)
        path.chmod(0o600)
    text = (
        f'[http]\nread_tokens = ["file:{token}"]\ntls_certificate = "c"\ntls_key = "{key}"\n'
        f'[hep]\nkeys = {{ 1 = "file:{token}", 2 = "env:KEY" }}\n'
    )
    case = case_of(text, tmp_path / "s.toml", KEY=LETTERS)
    found = only(settings.secrets, case)
    assert (found.state, found.reading) == ("ok", "2 files, none readable by everybody")
    key.chmod(0o604)
    found = only(settings.secrets, case)
    assert found.state == "fail"
    assert found.advice == f"chmod 600 {key}"
    key.chmod(0o640)
    assert only(settings.secrets, case).state == "ok"
    key.unlink()
    assert only(settings.secrets, case).state == "unknown"


@pytest.mark.parametrize(
    "text",
    [
        f'[http]\nread_tokens = ["{LETTERS}"]',
        f'[database]\npassword = "{LETTERS}"',
        f'[database]\ndsn = "postgresql://u:{LETTERS}@h/d"',
        f'[hep]\nkeys = {{ "*" = "{LETTERS}" }}',
    ],
)
def test_a_configuration_with_secrets_in_it_is_a_secret_itself(tmp_path: Path, text: str) -> None:
    file = tmp_path / "s.toml"
    case = case_of(text, file)
    file.chmod(0o644)
    assert only(settings.secrets, case).advice == f"chmod 600 {file}"
    file.chmod(0o600)
    assert only(settings.secrets, case).state == "ok"


def test_a_configuration_without_secrets_may_be_read_by_everybody(tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    case = case_of('[database]\ndsn = "postgresql://h/d"', file, SIPSIDECAR_PRIVACY__KEY=LETTERS)
    file.chmod(0o644)
    assert only(settings.secrets, case).reading == "no files"


def test_without_tls_no_certificate_is_looked_at() -> None:
    assert only(settings.certificates, case_of()).reading == "no TLS is configured"


@pytest.fixture
def tls(tmp_path: Path) -> Case:
    authority = Authority(tmp_path)
    own = authority.issue("own")
    listen = 'tls_listen = "127.0.0.1:1"\n'
    lines = f'tls_certificate = "{own.certificate}"\ntls_key = "{own.key}"\n'
    clients = f'tls_client_ca = "{authority.certificate}"\n'
    return case_of(f"[hep]\n{listen}{lines}{clients}[http]\n{lines}", tmp_path / "s.toml")


def test_each_certificate_is_good_until_its_end(tls: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def found() -> list[tuple[str, str]]:
        return [(one.check, one.state) for one in settings.certificates(tls)]

    names = ["certificate hep", "certificate hep clients", "certificate http"]
    monkeypatch.setattr(settings, "EXPIRY_DAYS", 1)
    assert found() == [(name, "ok") for name in names]
    monkeypatch.setattr(settings, "EXPIRY_DAYS", 3)
    assert found() == [(name, "warn") for name in names]
    monkeypatch.setattr("time.time", lambda: 4e9)
    assert found() == [(name, "fail") for name in names]
    monkeypatch.setattr(settings, "days_left", lambda *_: None)
    assert found() == [(name, "unknown") for name in names]


def test_a_key_of_another_certificate_fails(tls: Case, tmp_path: Path) -> None:
    other = Authority(tmp_path, "other").issue("stranger")
    Path(tls.config.http.tls_key).write_text(Path(other.key).read_text())
    hep, http = settings.certificates(tls)
    assert (hep.state, http.state) == ("fail", "fail")
    assert "is not the key of" in http.reading
    assert http.advice == "put http.tls_certificate and http.tls_key right"
