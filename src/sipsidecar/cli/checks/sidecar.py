"""Whether a sidecar runs, can listen, gets HEP from its agents and accounts for all of it."""

import errno
import os
import socket
from collections.abc import Iterator, Mapping
from typing import Any

from sipsidecar import __version__
from sipsidecar.cli.checks.case import SHOWN, Case, Finding, State, size, unasked
from sipsidecar.config import parse_address
from sipsidecar.edges import machine
from sipsidecar.tables import clip

SILENT_SECONDS = 60.0
SKEW_SECONDS = 1.0


def sidecar(case: Case) -> Iterator[Finding]:
    """Whether one answers, and what it says of its own health."""
    running, address = case.running, case.asked.address
    if running.silence is not None:
        reading = f"none answers at {address} ({running.silence})"
        advice = "start `sipsidecar run`, or name the address of the one that runs with --http"
        yield Finding("sidecar", "warn" if running.absent else "fail", reading, advice)
        return
    figures: dict[str, Any] = {"address": address, "version": running.version}
    checks = {} if running.ready is None else running.ready.checks
    bad = {name: check for name, check in checks.items() if not check.ok}
    bad = {name: check for name, check in bad.items() if check.required or check.advice}
    words = "; ".join(
        f"{clip(name, 40)} is {clip(str(check.reading), 40)}"
        + (f": {clip(check.advice, 200)}" if check.advice else "")
        for name, check in list(bad.items())[:SHOWN]
    )
    if running.ready is None or running.ready.status == "not-ready":
        reading = f"answers at {address} and is not ready"
        advice = words or "see its log"
        yield Finding("sidecar", "fail", reading, advice, figures)
    elif bad:
        yield Finding("sidecar", "warn", f"ready at {address}", words, figures)
    elif running.refused:
        advice = "set http.read_tokens to a token of that sidecar, such as file:PATH, to see more"
        yield Finding("sidecar", "warn", f"ready at {address}; asks for a token", advice, figures)
    elif running.version not in {None, __version__}:
        reading = f"ready at {address}, version {running.version}; installed is {__version__}"
        yield Finding("sidecar", "warn", reading, "restart it to run what is installed", figures)
    else:
        yield Finding("sidecar", "ok", f"ready at {address}", None, figures)


def ports(case: Case) -> Iterator[Finding]:
    """Whether the configured ports are free, or in use by the sidecar that runs."""
    hep, http = case.config.hep, case.config.http
    wanted = [("HEP", hep.listen, socket.SOCK_DGRAM, "--hep")]
    if hep.tcp:
        wanted.append(("HEP", hep.listen, socket.SOCK_STREAM, "--hep"))
    if hep.tls_listen:
        wanted.append(("HEP over TLS", hep.tls_listen, socket.SOCK_STREAM, "hep.tls_listen"))
    wanted.append(("HTTP", http.listen, socket.SOCK_STREAM, "--http"))
    troubles = [trouble for one in wanted if (trouble := _port(case, *one))]
    shown = ", ".join(dict.fromkeys(f"{name} {address}" for name, address, _, _ in wanted))
    if troubles:
        state: State = "warn" if case.runs else "fail"
        advice = "; ".join(what for _, what in troubles)
        yield Finding("ports", state, "; ".join(reading for reading, _ in troubles), advice)
    else:
        yield Finding("ports", "ok", f"{shown}: {'in use by it' if case.runs else 'free'}")


def _port(
    case: Case, name: str, address: str, kind: socket.SocketKind, change: str
) -> tuple[str, str] | None:
    """What is wrong with one port, and what to do; None when nothing is."""
    host, port = parse_address(address)
    if not port:
        return None
    shown = f"{name} {address} ({'UDP' if kind == socket.SOCK_DGRAM else 'TCP'})"
    why = machine.bind_error(host, port, kind)
    if case.runs:  # then its own ports are taken, and no other number proves anything
        if why is not None:
            return None
        return f"{shown} is not in use", "restart the sidecar: it listens elsewhere than configured"
    if why is None:
        return None
    if why == errno.EADDRINUSE:
        owner = machine.port_owner(port, kind)
        if owner and owner.startswith("systemd "):  # it keeps it for the service
            return None
        who = clip(owner, 60) if owner else "another program"
        return f"{shown} is taken by {who}", f"stop that program, or choose another {change}"
    if why == errno.EACCES:
        return f"{shown} may not be used by this user", f"choose a {change} with a port above 1023"
    if why == errno.EADDRNOTAVAIL:
        return f"{shown} is no address of this machine", f"choose a {change} that is"
    return f"{shown}: {os.strerror(why)}", f"choose another {change}"


def receive_buffer(case: Case) -> Iterator[Finding]:
    """What the kernel grants of the receive buffer that the settings ask for."""
    wanted = case.config.hep.receive_buffer_bytes
    most = machine.receive_buffer_limit()
    measured = case.running.metrics.get("sipsidecar_receive_buffer_bytes")
    granted = machine.granted_buffer(wanted) if measured is None else int(measured)
    figures = {"granted_bytes": granted, "wanted_bytes": wanted, "rmem_max_bytes": most}
    if granted is None:
        yield Finding("receive buffer", "unknown", "no socket can be opened", None, figures)
        return
    by = "the running sidecar has" if measured is not None else "a sidecar of this user would get"
    reading = f"{by} {size(granted)} of {size(wanted)}"
    if granted >= wanted:
        yield Finding("receive buffer", "ok", reading, None, figures)
        return
    advice = (
        f"bursts may be lost in the kernel: sysctl -w net.core.rmem_max={wanted}, and the same line"
        " in /etc/sysctl.d, then restart; or run it by sipsidecar.socket of systemd"
    )
    yield Finding("receive buffer", "warn", reading, advice, figures)


def ledger(case: Case) -> Iterator[Finding]:
    """Whether every packet is accounted for, and where packets were lost."""
    page = case.running.ledger
    if page is None:
        yield unasked("ledger", case)
        return
    lost, gone = page.kernel_drops, _reasons(page.dropped_by_reason)
    figures = {
        "received": page.received, "stored": page.stored, "dropped": page.dropped,
        "refused": page.refused, "kernel_drops": lost, "balance": page.balance,
    }  # fmt: skip
    reading = f"{page.received} packets received, {page.stored} stored, {page.dropped} dropped"
    advice = []
    state: State = "ok"
    if page.balance:
        state = "fail"
        reading += f", {page.balance} unaccounted for"
        advice.append("that is a defect: report it with /v1/ledger and /metrics")
    if lost:
        reading += f", {lost} more lost in the kernel"
        advice.append("for what the kernel lost: a larger receive buffer, or less load per core")
    if page.dropped:
        advice.append(f"dropped because of {gone}: see `database`, `spool` and limits.memory_bytes")
    strangers = {
        reason: count
        for reason, count in page.refused_by_reason.items()
        if reason in {"not-allowed", "bad-key"} and count
    }
    if strangers:
        advice.append(
            f"refused because of {_reasons(strangers)}: a stranger, or an agent that is missing in"
            " hep.allow or has another key than hep.keys"
        )
    if advice and state == "ok":
        state = "warn"
    yield Finding("ledger", state, reading, "; ".join(advice) or None, figures)


def agents(case: Case) -> Iterator[Finding]:
    """Who sends, who has fallen silent, and whose clock is off."""
    seen = case.running.agents
    if seen is None:
        yield unasked("agents", case)
        return
    if not seen:
        yield Finding("agents", "warn", "none has sent anything yet", _how_to_send(case))
        return
    advice = []
    for words, what, found in (
        (
            "silent for over a minute",
            "is it up, and is its way here free?",
            [a for a in seen if a.last_seen_seconds > SILENT_SECONDS],
        ),
        (
            "with a clock more than a second off",
            "keep its clock by NTP",
            [a for a in seen if abs(a.clock_skew_seconds or 0.0) > SKEW_SECONDS],
        ),
        (
            "without times (HEP version 1)",
            'in Kamailio set modparam("siptrace", "hep_version", 3), in FreeSWITCH hep=3',
            [a for a in seen if a.clock_skew_seconds is None],
        ),
    ):
        if found:
            some = ", ".join(agent.shown for agent in found[:SHOWN])
            more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
            advice.append(f"{words}: {some}{more}; {what}")
    lately = sum(agent.last_seen_seconds <= SILENT_SECONDS for agent in seen)
    reading = f"{len(seen)} seen, {lately} of them in the last minute"
    state: State = "warn" if advice else "ok"
    yield Finding("agents", state, reading, ". ".join(advice) or None, {"seen": len(seen)})


def _how_to_send(case: Case) -> str:
    host, port = parse_address(case.config.hep.listen)
    host = {"0.0.0.0": "THIS-HOST", "::": "THIS-HOST"}.get(host, host)  # noqa: S104 -- only shown
    at = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return (
        f'Kamailio: #!define SIPSIDECAR_URI "sip:{at}" and include_file "sipsidecar.cfg", or modparam'
        f'("siptrace", "duplicate_uri", "sip:{at}") with hep_mode_on 1, hep_version 3 and trace_mode 1.'
        f' FreeSWITCH: capture-server "udp:{at};hep=3;capture_id=100" in sofia.conf.xml and'
        " sip-capture=yes in each profile"
    )


def _reasons(counts: Mapping[str, int]) -> str:
    most = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(f"{clip(reason, 40)} ({count})" for reason, count in most[:SHOWN] if count)
