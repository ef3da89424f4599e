"""Whether the settings, the files they name and the certificates are fit for use."""

import time
from collections.abc import Iterator
from pathlib import Path

from sipsidecar.cli.checks.case import SHOWN, Case, Finding
from sipsidecar.cli.checks.certificates import days_left
from sipsidecar.config import redacted
from sipsidecar.edges import machine
from sipsidecar.tls import TlsError, server_context

EXPIRY_DAYS = 14


def configuration(case: Case) -> Iterator[Finding]:
    """Where the settings come from."""
    sources = case.loaded.sources.values()
    count = {
        kind: sum(source.startswith(kind) for source in sources) for kind in ("file", "env", "flag")
    }
    where = str(case.file) if case.file else "no file, only defaults"
    more = [
        f"{count[kind]} from {name}"
        for kind, name in (("env", "the environment"), ("flag", "flags"))
        if count[kind]
    ]
    yield Finding("configuration", "ok", ", ".join([where, *more]), figures={**count})


def secrets(case: Case) -> Iterator[Finding]:
    """Whether files with secrets are their owner's alone."""
    config, open_to = case.config, []
    paths = {path for path in (config.hep.tls_key, config.http.tls_key) if path}
    inline = 0
    for key, shown in case.loaded.references.items():
        several = shown.values() if isinstance(shown, dict) else shown
        for value in [shown] if isinstance(shown, str) else several:
            if value.startswith("file:"):
                paths.add(value.removeprefix("file:"))
            elif value and case.loaded.sources[key].startswith("file ") and value[:4] != "env:":
                inline += 1
    in_dsn = redacted(config.database.dsn) != config.database.dsn
    inline += in_dsn and case.loaded.sources["database.dsn"].startswith("file ")
    if inline and case.file:
        paths.add(str(case.file))
    unread = 0
    for path in sorted(paths):
        try:
            who = machine.readers(Path(path))
        except OSError:
            unread += 1
            continue
        if who == "everybody":
            open_to.append(path)
    if open_to:
        advice = "; ".join(f"chmod 600 {path}" for path in open_to[:SHOWN])
        reading = f"{len(open_to)} of {len(paths)} files with secrets can be read by everybody"
        yield Finding("secrets", "fail", reading, advice)
    elif unread:
        yield Finding("secrets", "unknown", f"{unread} of {len(paths)} files cannot be seen")
    else:
        files = f"{len(paths)} files, none readable by everybody" if paths else "no files"
        yield Finding("secrets", "ok", files)


def certificates(case: Case) -> Iterator[Finding]:
    """Whether each certificate fits its key and is still good."""
    hep, http = case.config.hep, case.config.http
    used = [
        (section, tls, ca)
        for section, tls, ca in (("hep", hep, hep.tls_client_ca), ("http", http, ""))
        if tls.tls_certificate
    ]
    if not used:
        yield Finding("certificates", "ok", "no TLS is configured")
    for section, tls, ca in used:
        check = f"certificate {section}"
        try:
            server_context(tls.tls_certificate, tls.tls_key, ca)
        except TlsError as error:
            advice = f"put {section}.tls_certificate and {section}.tls_key right"
            yield Finding(check, "fail", str(error), advice)
            continue
        for name, path in ((check, tls.tls_certificate), (f"{check} clients", ca)):
            if path:
                yield _expiry(name, path)


def _expiry(check: str, path: str) -> Finding:
    left = days_left(Path(path).read_bytes(), time.time())
    if left is None:
        return Finding(check, "unknown", f"{path}: its end is not understood")
    figures = {"days_left": round(left, 1)}
    if left < 0:
        advice = f"renew {path}, then reload the sidecar"
        return Finding(check, "fail", f"{path} has expired", advice, figures)
    reading = f"{path} is good for {int(left)} days"
    if left < EXPIRY_DAYS:
        advice = f"renew {path}; a reload of the sidecar takes it over"
        return Finding(check, "warn", reading, advice, figures)
    return Finding(check, "ok", reading, None, figures)
