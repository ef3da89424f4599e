"""Planted causes of an intermittent 400 in real SIP text: does the diagnosis name them, and only them?

    make bench-diagnose
    make bench-diagnose ARGS="--runs 20 --calls 300"

Each run makes INVITEs of several kinds of phones, each with its own headers, order and codecs, adds
decoys that come more often with the cause than without, and plants one cause in 95 % of the failing
calls and in 10 % of the good ones. The bytes go through the program's own reading of features and its
diagnosis. Without a cause, failing calls are drawn by luck.
"""

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sipsidecar.calls.features import features_of
from sipsidecar.signals.diagnose import Case, Diagnosis, Finding, Separator, diagnose

START = 1_795_000_000_000_000
HOUR = 3_600_000_000
CAUSES = ("header order", "over 1300 bytes", "over 1500 bytes", "a codec line")
NONE = "none"
WITH_FAILING, WITH_GOOD = 0.95, 0.10
LUCK = 0.02
"""Share of runs without a cause in which something may be named: twice what is asked for."""

Header = tuple[str, str]


@dataclass(frozen=True)
class Phone:
    """A kind of sender: how it writes its INVITEs."""

    agent: str
    order: tuple[str, ...]
    allow: str
    supported: str
    formats: tuple[str, ...]
    source: str
    extra: tuple[Header, ...] = ()


USUAL = ("Via", "Max-Forwards", "From", "To", "Call-ID", "CSeq", "Contact", "User-Agent")
PHONES = (
    Phone("Asterisk PBX 18.9", USUAL, "INVITE, ACK, CANCEL, OPTIONS, BYE, REFER", "replaces, timer",
          ("0", "8", "18", "101"), "192.0.2.10", (("Date", "Mon, 20 Jul 2026 12:00:00 GMT"),)),
    Phone("FreeSWITCH-mod_sofia/1.10", ("Via", "Max-Forwards", "From", "To", "Call-ID", "CSeq",
          "User-Agent", "Contact"), "INVITE, ACK, BYE, CANCEL, OPTIONS, MESSAGE, INFO, UPDATE",
          "timer, path, replaces", ("8", "0", "18", "101"), "192.0.2.11",
          (("Allow-Events", "talk, hold, conference"), ("Min-SE", "120"))),
    Phone("Zoiper rv2.10", ("Via", "Max-Forwards", "Contact", "To", "From", "Call-ID", "CSeq",
          "User-Agent"), "INVITE, ACK, CANCEL, BYE, NOTIFY", "replaces, norefersub",
          ("8", "0", "3", "18", "101"), "192.0.2.12"),
    Phone("Grandstream GXP2170", ("Via", "From", "To", "Contact", "Call-ID", "CSeq", "Max-Forwards",
          "User-Agent"), "INVITE, ACK, OPTIONS, CANCEL, BYE, SUBSCRIBE", "replaces, path, timer",
          ("0", "8", "9", "18", "101"), "192.0.2.13", (("Privacy", "none"),)),
    Phone("Voicebot/3.2", USUAL, "INVITE, ACK, BYE, CANCEL", "100rel",
          ("0", "18", "101"), "192.0.2.14", (("X-Session", "live"),)),
)  # fmt: skip
RTPMAPS = {
    "0": "PCMU/8000", "8": "PCMA/8000", "3": "GSM/8000", "9": "G722/8000", "18": "G729/8000",
    "101": "telephone-event/8000",
}  # fmt: skip
DECOYS: tuple[Header, ...] = (
    ("X-Campaign", "summer"),
    ("P-Early-Media", "supported"),
    ("X-Region", "eu-west"),
    ("Session-Expires", "1800;refresher=uac"),
    ("Accept-Language", "en"),
)
"""Headers that come more often with the cause than without it."""


@dataclass
class Written:
    """One INVITE on its way to bytes."""

    phone: Phone
    headers: list[Header]
    sdp: list[str]
    user: str
    rng: random.Random
    order: tuple[str, ...] = ()
    extra: list[Header] = field(default_factory=list)

    def text(self) -> bytes:
        body = "\r\n".join([*self.sdp, ""])
        fixed = dict(self.headers)
        lines = [f"INVITE sip:{self.user}@203.0.113.5 SIP/2.0"]
        lines += [f"{name}: {fixed[name]}" for name in self.order]
        lines += [f"{name}: {value}" for name, value in self.extra]
        lines += ["Content-Type: application/sdp", f"Content-Length: {len(body)}"]
        return ("\r\n".join(lines) + "\r\n\r\n" + body).encode()


def written(rng: random.Random, number: int) -> Written:
    """An INVITE without any cause: 600 to 1250 bytes."""
    phone = rng.choice(PHONES)
    ip, tag = phone.source, f"{rng.getrandbits(48):x}"
    caller = f"+1202555{rng.randrange(10_000):04}"
    user = f"+44207946{rng.randrange(40):04}"
    display = rng.choice(("", '"Front Desk" ', "Agent ", '"Sales" '))
    headers = [
        ("Via", f"SIP/2.0/UDP {ip}:5060;rport;branch=z9hG4bK{tag}"),
        ("Max-Forwards", str(rng.choice((69, 70)))),
        ("From", f"{display}<sip:{caller}@example.com>;tag={tag}"),
        ("To", f"<sip:{user}@203.0.113.5>"),
        ("Call-ID", f"{tag}-{number}@{ip}"),
        ("CSeq", f"{rng.randrange(1, 40_000)} INVITE"),
        ("Contact", f"<sip:{caller}@{ip}:5060>"),
        ("User-Agent", phone.agent),
    ]
    extra = [("Allow", phone.allow), ("Supported", phone.supported), *phone.extra]
    if rng.random() < 0.5:
        extra.append(("P-Asserted-Identity", f"<sip:{caller}@example.com>"))
    if rng.random() < 0.3:
        extra.append(("X-Trace", f"{rng.getrandbits(160):x}"))
    if rng.random() < 0.2:
        extra.append(("Diversion", f"<sip:{rng.randrange(900)}@example.com>;reason=unconditional"))
    formats = list(phone.formats)
    if rng.random() < 0.4:
        formats.remove("101")
    sdp = [
        "v=0", f"o=- {rng.randrange(10**9)} 1 IN IP4 {ip}", "s=-", f"c=IN IP4 {ip}", "t=0 0",
        f"m=audio {rng.randrange(10_000, 30_000, 2)} RTP/AVP {' '.join(formats)}",
        *(f"a=rtpmap:{one} {RTPMAPS[one]}" for one in formats),
    ]  # fmt: skip
    if "101" in formats:
        sdp.append("a=fmtp:101 0-15")
    sdp += [f"a=ptime:{rng.choice((20, 20, 30))}", "a=sendrecv"]
    return Written(phone, headers, sdp, user, rng, phone.order, extra)


def plant(cause: str, invite: Written) -> None:
    """Put the cause into an INVITE."""
    rng = invite.rng
    if cause == "header order":
        # CSeq before From: no phone here does that by itself
        rest = [name for name in invite.order if name != "CSeq"]
        at = rest.index("From")
        invite.order = (*rest[:at], "CSeq", *rest[at:])
    elif cause.startswith("over"):
        least = int(cause.split()[1])
        pad(invite, rng.randrange(least + 20, least + 400))
    elif cause == "a codec line":
        invite.sdp.insert(-2, "a=fmtp:18 annexb=yes")


def pad(invite: Written, size: int) -> None:
    """Make an INVITE of so many bytes or more: by headers, hops and candidates, others each time."""
    rng = invite.rng
    while (missing := size - len(invite.text())) > 0:
        way = rng.randrange(3)
        if way == 0 or missing < 60:
            name = f"X-{rng.choice('ABCDEFGH')}{rng.randrange(99)}"
            invite.extra.append((name, "x" * rng.randrange(10, max(11, min(missing, 200)))))
        elif way == 1:
            invite.sdp.append(
                f"a=candidate:{rng.randrange(9)} 1 udp {rng.getrandbits(31)} 192.0.2.200 "
                f"{rng.randrange(1024, 65_535)} typ host"
            )
        else:
            invite.extra.append(("Via", f"SIP/2.0/UDP 198.51.100.{rng.randrange(250)};branch=z9"))


def named(cause: str, finding: Finding) -> bool:
    """Whether the first words of a finding are the cause."""
    one = finding.separator
    if not one.present:
        return False
    if cause == "header order":
        return (one.name, one.value) == ("next", "cseq < from") or (
            one.name == "order" and one.value.startswith("cseq < ")
        )
    if cause.startswith("over"):
        least = int(cause.split()[1])
        if one.name == "size-over":
            return int(one.value) == least
        if one.name == "udp-fragments":  # over 1472 bytes
            return least == 1500
        return one.name == "size" and one.over and abs(float(one.value) - least) < 60
    return one.name in {"fmtp", "sdp-line"} and "annexb=yes" in one.value


def cases_of(cause: str, seed: int, calls: int, failing: int) -> list[Case]:
    """The calls of one run, through the program's own reading of their INVITEs."""
    rng = random.Random(f"{cause} {seed}")
    failed = [True] * failing + [False] * (calls - failing)
    rng.shuffle(failed)
    cases = []
    for number, one in enumerate(failed):
        has = cause != NONE and rng.random() < (WITH_FAILING if one else WITH_GOOD)
        invite = written(rng, number)
        for decoy in DECOYS:
            if rng.random() < (0.6 if has else 0.2):
                invite.extra.insert(rng.randrange(len(invite.extra) + 1), decoy)
        if has:
            plant(cause, invite)
        elif cause == "over 1500 bytes" and rng.random() < 0.15:
            pad(invite, rng.randrange(1320, 1380))  # over the other limit, which is not the cause
        about = {"source": invite.phone.source, "transport": "udp", "trunk": "acme"}
        shown_by = features_of(invite.text(), about)
        at = START + int(6 * HOUR * number / calls) + rng.randrange(1_000_000)
        cases.append(Case(call_id=f"{number}@bench", at=at, failed=one, shown=shown_by))
    return cases


@dataclass
class Row:
    """What became of all runs with one cause and so many failing calls."""

    cause: str
    failing: int
    runs: int = 0
    first: int = 0
    """The first words of the first finding are the cause."""
    among: int = 0
    """The cause is in the first finding."""
    silent: int = 0
    others: int = 0
    """Findings that say they are a cause of their own and are none."""
    seconds: list[float] = field(default_factory=list)

    @property
    def wrong(self) -> bool:
        """Not what must be shown: with 15 failing calls, and strictly from 30 on."""
        if self.cause == NONE:
            return self.runs - self.silent > LUCK * self.runs
        least = 1.0 if self.failing >= 30 else 0.95
        return self.failing >= 15 and (self.first < least * self.runs or self.among < self.runs)


def run(cause: str, seed: int, calls: int, failing: int) -> tuple[Diagnosis, float]:
    """One run; and how many seconds its diagnosis took, without the reading."""
    cases = cases_of(cause, seed, calls, failing)
    began = time.perf_counter()
    return diagnose(cases), time.perf_counter() - began


def among(cause: str, finding: Finding) -> bool:
    """Whether the cause is among the words of a finding."""
    members: tuple[Separator, ...] = (finding.separator, *finding.alike)
    return any(named(cause, Finding(separator=one)) for one in members)


def row(cause: str, failing: int, runs: int, calls: int) -> Row:
    """All runs of one kind."""
    found = Row(cause, failing)
    for seed in range(runs):
        answer, seconds = run(cause, seed, calls, failing)
        found.runs += 1
        found.seconds.append(seconds)
        found.silent += not answer.findings
        leading = [one for one in answer.findings if one.follows is None]
        if leading and cause != NONE:
            found.first += named(cause, leading[0])
            found.among += among(cause, leading[0])
        found.others += sum(cause == NONE or not among(cause, one) for one in leading)
    return found


def shown(rows: Sequence[Row]) -> str:
    """A table for people."""
    lines = [
        "cause             failing  runs  named first  in the first  nothing said  others  s each"
    ]
    lines += [
        f"{one.cause:16}  {one.failing:7}  {one.runs:4}  {one.first:11}  {one.among:12}"
        f"  {one.silent:12}  {one.others:6}  {statistics.mean(one.seconds):6.3f}"
        for one in rows
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None, tell: Callable[[str], Any] = print) -> int:
    """Run all and show it; 1 when a row is not what it must be."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=100, help="of each row (100)")
    parser.add_argument("--calls", type=int, default=300, help="in each run (300)")
    parser.add_argument("--failing", type=int, nargs="*", default=[5, 8, 15, 30, 60])
    parser.add_argument("--only", nargs="*", choices=(*CAUSES, NONE), default=[*CAUSES, NONE])
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    rows = []
    for cause in given.only:
        for failing in given.failing:
            rows.append(row(cause, failing, given.runs, given.calls))
            if not given.json:
                tell(shown(rows[-1:]) if len(rows) == 1 else shown(rows[-1:]).splitlines()[1])
    if given.json:
        tell(json.dumps([{**one.__dict__, "wrong": one.wrong} for one in rows]))
    return int(any(one.wrong for one in rows))


if __name__ == "__main__":
    sys.exit(main())
