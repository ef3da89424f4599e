"""Turns a command line into one command and its exit code."""

import argparse
import io
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from sipsidecar import __version__, app, demo, serving
from sipsidecar.batch import SpoolError, StoreError
from sipsidecar.calls.findings import KINDS
from sipsidecar.cli import (
    diagnosing,
    explaining,
    reporting,
    sorting,
    steering,
    summarizing,
    timeline,
    trying,
)
from sipsidecar.cli.doctoring import doctor
from sipsidecar.cli.forgetting import forget
from sipsidecar.cli.parsers import Commands, Parser
from sipsidecar.cli.rating import mos
from sipsidecar.cli.reading import calls, ladder, print_dsn, write_pcap
from sipsidecar.cli.replaying import replay
from sipsidecar.cli.surveying import status
from sipsidecar.cli.words import CliError, clear_progress, config_of, loaded_of
from sipsidecar.config import ConfigError, render_json
from sipsidecar.config import render as render_config
from sipsidecar.edges import embedded, postgres
from sipsidecar.edges.replay import ReplayError
from sipsidecar.tables import printable
from sipsidecar.tls import TlsError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code: 0 done, 1 nothing found, 2 it could not."""
    parser = _parser()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of any script on any terminal
    arguments = parser.parse_args(argv)
    if not hasattr(arguments, "handle"):
        parser.print_help()
        return 2
    try:
        code: int = arguments.handle(arguments)
        sys.stdout.flush()
    except (
        CliError,
        ConfigError,
        StoreError,
        SpoolError,
        TlsError,
        ReplayError,
        embedded.EmbeddedError,
        OSError,
    ) as error:
        if isinstance(error, BrokenPipeError):
            # `sipsidecar calls | head` is no error; do not let the interpreter complain at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        text = str(error)
        if isinstance(error, OSError) and error.strerror:
            text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        clear_progress()
        print(f"sipsidecar: {printable(text)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return code


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="sipsidecar",
        description="Mirrored SIP in, one true record per call in PostgreSQL, live.",
        epilog="example: sipsidecar run --hep 127.0.0.1:9060",
    )
    parser.add_argument("--version", action="version", version=f"sipsidecar {__version__}")
    commands = Commands(parser)
    add = commands.add

    for name, handle, text in (
        ("run", _run, "receive HEP, follow calls, store them"),
        ("demo", _demo, "run, with sample traffic of its own"),
    ):
        command = add(name, handle, text, f"sipsidecar {name} --hep 127.0.0.1:9060")
        command.add_argument("--hep", metavar="ADDR:PORT", help="listen here for HEP (UDP and TCP)")
        command.add_argument("--http", metavar="ADDR:PORT", help="listen here for HTTP")

    command = add(
        "replay", replay, "print the records of capture files",
        "sipsidecar replay --json a.pcap b.esl",
    )  # fmt: skip
    command.add_argument(
        "files",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="pcap, pcapng, or what a FreeSWITCH sent on its event socket",
    )
    command.add_argument("--json", action="store_true", help="one JSON object per line")
    command.add_argument("--store", action="store_true", help="write to PostgreSQL instead")
    command.add_argument(
        "--intervals", action="store_true", help="with --json: quality over time, too"
    )

    command = add("calls", calls, "list calls", "sipsidecar calls --since 1h --code 5xx")
    command.add_argument(
        "--since", metavar="TIME", help="30m, 1d or 2026-01-31T10:00, UTC (the last day)"
    )
    command.add_argument("--until", metavar="TIME", help="the same forms")
    command.add_argument("--code", metavar="CODE", help="final code or class: 486 or 4xx")
    command.add_argument("--trunk", metavar="NAME", help="calls over this trunk")
    command.add_argument("--tenant", metavar="NAME", help="calls of this tenant")
    command.add_argument("--direction", metavar="NAME", help="calls of this direction")
    command.add_argument("--region", metavar="NAME", help="calls of this region")
    command.add_argument("--from", dest="from_user", metavar="TEXT", help="part of the From user")
    command.add_argument("--to", dest="to_user", metavar="TEXT", help="part of the To user")
    command.add_argument(
        "--pdd-above", metavar="SECONDS", help="post-dial delay above: 2 or 2000ms"
    )
    command.add_argument("--duration-above", metavar="SECONDS", help="talk time above: 60 or 1m")
    command.add_argument("--duration-below", metavar="SECONDS", help="talk time below")
    command.add_argument(
        "--mos-below", type=_mos, metavar="MOS", help="MOS of the worse direction below: 3.5"
    )
    command.add_argument(
        "--finding",
        action="append",
        default=[],
        choices=KINDS,
        metavar="FINDING",
        help="has this finding, such as one_way_audio; give it again for calls that have both",
    )
    command.add_argument(
        "--flag",
        action="append",
        default=[],
        metavar="FLAG",
        help="has this flag, such as failover; give it again for calls that have both",
    )
    command.add_argument("--call-id", metavar="TEXT", help="part of the Call-ID")
    which = command.add_mutually_exclusive_group()
    which.add_argument("--answered", action="store_true", help="only answered calls")
    which.add_argument("--failed", action="store_true", help="only calls that were not answered")
    command.add_argument(
        "--refused", action="store_true", help="only calls that admission control refused"
    )
    command.add_argument(
        "--sort",
        choices=postgres.ORDERS,
        default="started_at",
        help="highest first (started_at); mos: lowest first",
    )
    command.add_argument(
        "--limit", type=_count, default=50, metavar="N", help="at most so many (50)"
    )
    command.add_argument(
        "--live", action="store_true", help="calls that are going on now, unfiltered"
    )
    command.add_argument("--http", metavar="ADDR:PORT", help="for --live: the sidecar's HTTP")
    command.add_argument("--json", action="store_true", help="one JSON object per line")

    command = add(
        "ladder", ladder, "draw the messages of a call", "sipsidecar ladder 3848276298220188511@a"
    )
    command.add_argument(
        "call_id",
        metavar="CALL-ID",
        help="or a part of it that only one call has, or the UUID of a leg of a FreeSWITCH",
    )
    command.add_argument(
        "--one-leg",
        action="store_true",
        help="only this Call-ID, not the other legs that a FreeSWITCH joined with it",
    )
    command.add_argument("--width", type=int, metavar="N", help="columns (the terminal's)")
    command.add_argument("--json", action="store_true", help="one JSON object per message")

    command = add(
        "pcap",
        write_pcap,
        "write a call's messages to a pcap file",
        "sipsidecar pcap a84b4c76 -o a.pcap",
    )
    command.add_argument(
        "call_id", metavar="CALL-ID", help="or a part of it that only one call has"
    )
    command.add_argument(
        "-o", "--output", required=True, metavar="FILE", help="- for standard output"
    )

    command = add(
        "forget", forget, "list or delete what is stored of one person", "sipsidecar forget alice"
    )
    command.add_argument(
        "user", metavar="USER", help="user of a SIP or tel URI, exact, or its token"
    )
    command.add_argument("--yes", action="store_true", help="delete it; without this it is listed")
    command.add_argument(
        "--since", metavar="TIME", help="look from here on: 30m, 1d or 2026-01-31T10:00, UTC (all)"
    )
    command.add_argument("--json", action="store_true", help="as one JSON object")

    command = add(
        "mos",
        mos,
        "rate media by the E-model: loss, delay and codec to R and MOS",
        "sipsidecar mos --codec G729A-VAD --loss 2 --burst 1 --delay 150",
        settings=False,
    )
    command.add_argument("--codec", metavar="NAME", help="of --list, or as in SDP (G711)")
    command.add_argument("--loss", metavar="PERCENT", help="packets lost (0)")
    command.add_argument(
        "--burst", metavar="RATIO", help="how much longer bursts of loss are than by chance (1)"
    )
    command.add_argument("--delay", metavar="MS", help="mouth to ear, one way")
    command.add_argument(
        "--network-delay",
        metavar="MS",
        help="instead of --delay: the network's part, one way; the jitter buffer's is modelled",
    )
    command.add_argument(
        "--jitter",
        metavar="MS",
        help="interarrival jitter as RTCP has it; what is too late is lost",
    )
    command.add_argument("--ptime", metavar="MS", help="speech that a packet holds (20)")
    command.add_argument(
        "--id-mode",
        choices=("idd", "linear"),
        default="idd",
        help="how the delay counts: G.107 without echo (idd), or the linear fit",
    )
    command.add_argument("--no-plc", action="store_true", help="G.711 losses are not concealed")
    command.add_argument(
        "--narrowband-only", action="store_true", help="put wideband codecs on the NB scale"
    )
    command.add_argument("--list", action="store_true", help="show the codec table instead")
    command.add_argument("--json", action="store_true", help="as JSON, one object per line")

    command = add(
        "freeswitch", status, "show the FreeSWITCHes of the running sidecar",
        "sipsidecar freeswitch status",
    )  # fmt: skip
    command.add_argument("what", choices=("status",), help="connection, version, load and lag")
    command.add_argument("--http", metavar="ADDR:PORT", help="the sidecar's HTTP")
    command.add_argument("--json", action="store_true", help="one JSON object per switch")

    steering.add_commands(commands)
    sorting.add_commands(commands)
    trying.add_command(commands)
    timeline.add_command(commands)
    explaining.add_command(commands)
    diagnosing.add_command(commands)
    reporting.add_command(commands)
    summarizing.add_command(commands)
    add("dsn", print_dsn, "print the DSN of the database", 'psql "$(sipsidecar dsn)"')
    command = add(
        "doctor", doctor, "find what may keep a sidecar from its work here, and what to do",
        "sipsidecar doctor",
    )  # fmt: skip
    command.add_argument("--hep", metavar="ADDR:PORT", help="the sidecar's address for HEP")
    command.add_argument("--http", metavar="ADDR:PORT", help="the sidecar's HTTP")
    command.add_argument("--json", action="store_true", help="one JSON object per check")

    command = add(
        "check-config", _check_config, "print every setting and its source",
        "sipsidecar check-config --config sipsidecar.toml",
    )  # fmt: skip
    command.add_argument("--json", action="store_true", help="as one JSON object")
    return parser


def _count(text: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", text) or not int(text):
        raise argparse.ArgumentTypeError(f"expected a number from 1 on, got {text!r}")
    return int(text)


def _mos(text: str) -> float:
    if not re.fullmatch(r"[0-5](\.[0-9]{1,6})?", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"expected a MOS such as 3.5, got {text!r}")
    return float(text)


def _run(arguments: argparse.Namespace) -> int:
    return serving.run(config_of(arguments), lambda: config_of(arguments))


def _demo(arguments: argparse.Namespace) -> int:
    async def play(sidecar: app.Sidecar) -> None:
        host, port = sidecar.hep_address
        await demo.play(host, port)

    return serving.run(config_of(arguments), lambda: config_of(arguments), also=play)


def _check_config(arguments: argparse.Namespace) -> int:
    loaded = loaded_of(arguments)
    print(render_json(loaded) if arguments.json else render_config(loaded))
    return 0
