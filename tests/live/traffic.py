"""A mix of calls by SIPp through a real Kamailio that mirrors them: what the callers saw of each."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

from live import truth
from live.programs import (
    Program,
    answers_options,
    free_port,
    kamailio_command,
    need,
    network,
    running,
    until,
)

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Kind:
    """One way in which a call can go, and the facts that make it this one."""

    name: str
    """Begins the Call-ID of each of its calls."""
    uac: str = "uac_answered"
    number: str = "call"
    """The called number without its last part; kamailio-test.cfg routes by its first word."""
    callee: str | None = "uas_answers"
    """Whose address the request URI has; None: the proxy knows what to do with the number."""
    share: int = 4
    code: int = 200
    branches: tuple[int, ...] = (200,)
    """The final codes of the attempts."""
    released_by: str | None = None
    invites: int = 1
    options: tuple[str, ...] = ()


KINDS = (
    # Made first, for its records come last: they wait 32 s for an INVITE that follows the 407.
    Kind("wrong-password", "uac_auth", "auth", share=3, code=407, branches=(), invites=2),
    Kind("answered", share=20, released_by="caller"),
    Kind("tcp", share=5, released_by="caller", options=("-t", "t1")),
    Kind("no-18x", callee="uas_answers_silently", share=6, released_by="caller"),
    Kind("early-media", callee="uas_early_media", share=6, released_by="caller"),
    Kind("callee-bye", "uac_released", callee="uas_hangs_up", share=8, released_by="callee"),
    Kind("busy", "uac_refused", "call", "uas_refuses_486", 8, 486, (486,)),
    Kind("not-found", "uac_refused", "call", "uas_refuses_404", 5, 404, (404,)),
    Kind("unavailable", "uac_refused", "call", "uas_refuses_480", 4, 480, (480,)),
    Kind("decline", "uac_refused", "call", "uas_refuses_603", 4, 603, (603,)),
    # Kamailio's tm turns a 503 into a 500, or the caller would think that the proxy is at its end.
    Kind("overload", "uac_refused", "call", "uas_refuses_503", 5, 500, (503,)),
    Kind("cancel-ringing", "uac_cancel_ringing", "call", "uas_rings", 6, 487, (487,), "caller"),
    Kind("cancel-silent", "uac_cancel_silent", "call", "uas_trying", 4, 487, (487,), "caller"),
    Kind("no-answer", "uac_refused", "call", "uas_rings", 4, 408, (487,)),
    # The attempt's 408 is inferred: nothing ever came back from there.
    Kind("dead-trunk", "uac_refused", "dead", None, 4, 408, (408,)),
    Kind("password", "uac_auth", "auth", share=5, released_by="caller", invites=2),
    Kind("reinvite", "uac_reinvite", callee="uas_reinvite", released_by="caller"),
    Kind("reinvite-488", "uac_reinvite", callee="uas_reinvite_488", share=3, released_by="caller"),
    Kind("failover", "uac_answered", "failover", None, 5, 200, (503, 200), "caller"),
    Kind("fork", "uac_answered", "fork", share=4, branches=(200, 486, 487), released_by="caller"),
    Kind("reject", "uac_refused", "reject", None, 4, 486, ()),
    Kind("reply", "uac_refused", "reply", None, 3, 503, ()),
)
OTHERS = (
    Kind("register", "uac_register"),
    Kind("register-wrong", "uac_register"),
    Kind("options", "uac_options"),
)
PASSWORD = "secret"  # noqa: S105 - of kamailio-test.cfg
NEEDED = (("kamailio", "kamailio"), ("sipp", "sip-tester"))
"""Programs and the Debian packages that bring them."""


@dataclass(frozen=True)
class Seen:
    """What the callers sent and received, by their own logs."""

    calls: dict[str, truth.Call]
    """By Call-ID."""
    kinds: dict[str, Kind]
    """By Call-ID."""
    registers: dict[tuple[str, int], truth.Transaction]
    options: dict[tuple[str, int], truth.Transaction]


def counts(total: int) -> dict[str, int]:
    """How many calls of each kind make `total`: by their shares, at least one of each."""
    shares = sum(kind.share for kind in KINDS)
    numbers = {kind.name: max(1, total * kind.share // shares) for kind in KINDS}
    numbers["answered"] += total - sum(numbers.values())
    return numbers


def run(folder: Path, collector: str, total: int) -> Seen:
    """Make `total` calls, a few REGISTER and OPTIONS, mirrored as HEP to `collector` (ADDR:PORT)."""
    sipp = need("sipp", "sip-tester")
    net, port = network(), free_port()
    # Few calls come faster than many, so that the short run is short.
    seconds = max(8.0, total / 25)
    names = sorted({kind.callee for kind in KINDS if kind.callee})
    callees = {name: f"{net}.{10 + n}" for n, name in enumerate(names)}
    with contextlib.ExitStack() as stack:
        proxy = stack.enter_context(_kamailio(folder, net, port, callees, collector))
        until("answer to OPTIONS", lambda: answers_options(f"{net}.1", port), 20, proxy)
        for name, ip in callees.items():
            command = [sipp, *_sipp_options(folder, name, name, ip, port)]
            stack.enter_context(running(name, command, folder))
        numbers = counts(total) | {kind.name: max(3, total // 30) for kind in OTHERS}
        callers: list[Program] = []
        for n, kind in enumerate(KINDS + OTHERS):
            options = _sipp_options(folder, kind.name, kind.uac, f"{net}.{100 + n}", port)
            pace = seconds if n else seconds / 4
            options += _caller_options(kind, numbers[kind.name], pace)
            options += ["-key", "callee", f"{callees.get(kind.callee or '', f'{net}.1')}:{port}"]
            command = [sipp, f"{net}.1:{port}", *options]
            callers.append(stack.enter_context(running(kind.name, command, folder)))
        for caller in callers:
            code = caller.wait(seconds + 60)
            assert code == 0, f"SIPp {caller.name} ended with {code}:\n{caller.tail()}"
    logs = {kind: truth.read(folder / f"{kind.name}.short") for kind in KINDS + OTHERS}
    lines = [line for log in logs.values() for line in log]
    return Seen(
        calls={
            call_id: call for kind in KINDS for call_id, call in truth.calls(logs[kind]).items()
        },
        kinds={call_id: kind for kind in KINDS for call_id in truth.calls(logs[kind])},
        registers=truth.transactions(lines, "REGISTER"),
        options=truth.transactions(lines, "OPTIONS"),
    )


def _kamailio(
    folder: Path, net: str, port: int, callees: dict[str, str], collector: str
) -> contextlib.AbstractContextManager[Program]:
    trunks = folder / "dispatcher.list"
    trunks.write_text(
        f"1 sip:{callees['uas_refuses_503']}:{port} 0 10\n1 sip:{callees['uas_answers']}:{port} 0 5\n"
    )
    command = kamailio_command(
        HERE / "kamailio-test.cfg",
        folder,
        {"PROXY_LISTEN": f"{net}.1:{port}"},
        strings={
            "SIPSIDECAR_URI": f"sip:{collector}",
            "TRUNK_LIST": str(trunks),
            "FORK_RINGS": f"sip:fork@{callees['uas_rings']}:{port}",
            "FORK_REFUSES": f"sip:fork@{callees['uas_refuses_486']}:{port}",
            "DEAD_TRUNK": f"sip:{net}.9:{port}",  # nobody listens there
        },
    )
    return running("kamailio", command, folder)


def _scenario(folder: Path, name: str) -> Path:
    """The scenario file of a name; `uas_refuses_486` is uas_refuses with its code filled in."""
    kind, _, code = name.rpartition("_")
    if not code.isdigit():
        return HERE / "scenarios" / f"{name}.xml"
    filled = folder / f"{name}.xml"
    text = (HERE / "scenarios" / f"{kind}.xml").read_text()
    filled.write_text(text.replace("CODE Refused", f"{code} Refused"))
    return filled


def _sipp_options(folder: Path, name: str, scenario: str, ip: str, port: int) -> list[str | Path]:
    return [
        *("-sf", _scenario(folder, scenario)),
        *("-i", ip, "-bind_local", "-p", str(port), "-ci", ip, "-nostdin"),
        *("-trace_err", "-error_file", folder / f"{name}.errors"),
    ]


def _caller_options(kind: Kind, number: int, seconds: float) -> list[str | Path]:
    password = "guess" if kind.name in {"wrong-password", "register-wrong"} else PASSWORD
    return [
        *("-s", kind.number, "-au", "alice", "-ap", password),
        *("-m", str(number), "-l", str(number), "-r", str(number), "-rp", str(int(seconds * 1e3))),
        *("-cid_str", f"{kind.name}.%u.%p@%s", "-trace_shortmsg"),
        *("-shortmessage_file", f"{kind.name}.short"),
        *("-timeout", f"{seconds + 45:.0f}s", "-timeout_error", *kind.options),
    ]
