"""The truth of hepblast's traffic, dialog by dialog, against what the database holds of it.

Every number of a hepblast dialog follows from the seed and the dialog's index, which is in its
Call-ID: so it is known of each record, and not only of their sums, whether it is right.
"""

import functools
import re
from collections import Counter
from typing import Any, NamedTuple

from chaos.lab import Database, Kills, Sidecar, Watch
from chaos.results import Result

PACKETS_PER_DIALOG = 9.23
"""Of hepblast's default mix."""
SETTLES = 5.0
"""Seconds from a call's last message to its record in the database, when nothing is wrong: settle,
batch, write, and room. A call in this state at a kill is one that was open."""


def mix64(z: int) -> int:
    """hepblast's generator: every number of a call follows from its seed and index."""
    z = (z + 0x9E3779B97F4A7C15) % 2**64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    return z ^ (z >> 31)


class Kind(NamedTuple):
    """One of hepblast's dialogs."""

    name: str
    per_mille: int
    code: int | None
    """Final code of the call; None: no call."""
    packets: int


KINDS = (
    Kind("ok", 720, 200, 11),
    Kind("busy", 60, 486, 4),
    Kind("cancel", 80, 487, 7),
    Kind("503", 20, 503, 4),
    Kind("404", 20, 404, 4),
    Kind("timeout", 10, 408, 6),
    Kind("options", 60, None, 2),
    Kind("register", 30, None, 4),
)
"""hepblast's default mix, in its order."""


class Truth(NamedTuple):
    """What a dialog of hepblast is."""

    kind: Kind
    released_by: str | None
    """Who sent the BYE or CANCEL; None where nobody did."""


@functools.lru_cache(maxsize=1_000_000)
def truth_of(seed: int, index: int) -> Truth:
    """The truth of one dialog of hepblast's default mix."""
    r = mix64(seed * 0x1000003 + index)
    share = mix64(r ^ 1) % 1000
    for kind in KINDS:
        if share < kind.per_mille:
            break
        share -= kind.per_mille
    released = {"ok": "callee" if r & 1 else "caller", "cancel": "caller"}
    return Truth(kind, released.get(kind.name))


def call_id_of(seed: int, index: int) -> str:
    """The Call-ID that hepblast gives to a dialog, up to its host."""
    return f"{mix64(mix64(seed * 0x1000003 + index) ^ 20):016x}-{index:010x}"


def index_of(call_id: str) -> int | None:
    """The dialog's index in a Call-ID of hepblast; None for another's."""
    found = re.match(r"[0-9a-f]{16}-([0-9a-f]{10})@", call_id)
    return int(found[1], 16) if found else None


def dialogs(rate: float, seconds: float) -> int:
    """How many dialogs of the default mix make so many seconds at so many packets per second."""
    return max(int(rate * seconds / PACKETS_PER_DIALOG), 1)


class Judged(NamedTuple):
    """Records against the truth, by dialog index."""

    outcomes: dict[str, int]
    exact: int
    wrong: dict[int, str]
    """Records that say something else, and what."""
    missing: set[int]
    double: set[int]


def judge(database: Database, seed: int, dialogs_sent: int) -> Judged:
    """Compare every seizure in the database with what its dialog is."""
    seen: Counter[int] = Counter()
    outcomes: Counter[str] = Counter()
    wrong: dict[int, str] = {}

    def see(call_id: str, code: int | None, answered: bool, released_by: str | None) -> None:
        index = index_of(call_id)
        if index is None or index >= dialogs_sent:
            return
        if not call_id.startswith(call_id_of(seed, index)):
            return
        seen[index] += 1
        outcomes[str(code)] += 1
        truth = truth_of(seed, index)
        said = (code, answered, released_by if truth.released_by else None)
        meant = (truth.kind.code, truth.kind.code == 200, truth.released_by)
        if said != meant:
            wrong[index] = f"{call_id}: {meant} became {(code, answered, released_by)}"

    database.walk("SELECT call_id, final_code, answered, released_by FROM calls WHERE seizure", see)
    calls = (index for index in range(dialogs_sent) if truth_of(seed, index).kind.code is not None)
    missing = {index for index in calls if index not in seen}
    double = {index for index, count in seen.items() if count > 1}
    exact = len(seen) - len(wrong)
    return Judged(dict(sorted(outcomes.items())), exact, wrong, missing, double)


class Traffic(NamedTuple):
    """One run of hepblast, over."""

    sent: dict[str, Any]
    """What it said at its end."""
    seed: int
    dialogs: int
    node: int = 1
    """The sidecar that it sent to."""

    @property
    def packets(self) -> int:
        """How many it sent."""
        return int(self.sent["sent"])


class Stored(NamedTuple):
    """What the tables hold of one node."""

    messages: int
    distinct: int
    """Messages that differ in call, time of capture or bytes: hepblast sends none twice."""
    quarantined: int


def stored(database: Database, node: int = 1) -> Stored:
    """Count what a node has stored."""
    messages, distinct = database.query(
        "SELECT coalesce(sum(n), 0)::bigint, count(*) FROM (SELECT count(*) AS n FROM messages"
        " WHERE node_id = $1 GROUP BY call_id, captured_at, md5(payload)) AS each",
        node,
    )[0]
    quarantined = database.value("SELECT count(*) FROM quarantine WHERE node_id = $1", node)
    return Stored(messages, distinct, quarantined)


def doubles(database: Database) -> dict[str, int]:
    """Records that are there more than once, whoever wrote them, by table."""
    keys = {
        "calls": "call_id, from_tag",
        "attempts": "call_id, from_tag, branch",
        "pings": "call_id, branch, cseq",
        "registrations": "call_id, branch, cseq",
    }
    return {
        table: database.value(
            f"SELECT coalesce(sum(n - 1), 0)::bigint FROM (SELECT count(*) AS n FROM {table}"  # noqa: S608
            f" GROUP BY {key}) AS each"
        )
        for table, key in keys.items()
    }


def claim_no_doubles(result: Result, database: Database, have: Stored) -> None:
    """Claim that nothing is there twice."""
    found = {"messages": have.messages - have.distinct, **doubles(database)}
    result.claim("no row double", not any(found.values()), found)


def claim_calls(result: Result, database: Database, traffic: Traffic) -> None:
    """Claim that every call, ping and registration is there, as it was, and once."""
    judged = judge(database, traffic.seed, traffic.dialogs)
    done = traffic.sent["done"]
    truth = {str(kind.code): done[kind.name] for kind in KINDS if kind.code and done[kind.name]}
    truth = dict(sorted(truth.items()))
    result.note(truth=truth, outcomes=judged.outcomes, sent=traffic.packets)
    result.claim("rows per outcome equal the truth", judged.outcomes == truth, judged.outcomes)
    faulty = judged.missing | judged.wrong.keys() | judged.double
    result.claim(
        "every call is there once with its own code, answer and side that hung up",
        not faulty,
        f"{judged.exact} exact, {len(judged.missing)} missing, {len(judged.wrong)} wrong,"
        f" {len(judged.double)} double" + _some(judged, faulty),
    )
    calls, pings, registrations = (
        database.value(f"SELECT count(*) FROM {table} WHERE node_id = $1", traffic.node)  # noqa: S608
        for table in ("calls", "pings", "registrations")
    )
    result.claim("no other call", calls == sum(truth.values()), calls - sum(truth.values()))
    result.claim(
        "pings and registrations equal the truth",
        (pings, registrations) == (done["options"], 2 * done["register"]),
        (pings, registrations),
    )


def claim_exact(result: Result, database: Database, traffic: Traffic) -> Stored:
    """Claim that nothing is lost and nothing is there twice: call by call, message by message."""
    claim_calls(result, database, traffic)
    have = stored(database, traffic.node)
    lost = traffic.packets - have.distinct
    result.claim("no message lost", lost == 0, lost)
    claim_no_doubles(result, database, have)
    return have


def claim_bounded(
    result: Result,
    database: Database,
    sidecar: Sidecar,
    traffic: Traffic,
    kills: Kills,
    rate: float,
) -> None:
    """Claim what holds although processes died with rows in their memory.

    A kill may lose the packets that no write had finished with: what waited at the newest reading,
    and what came since. The readings are 0.2 s apart when the machine is idle; a batch collects
    for 0.5 s or 2000 rows, and one may be on its way.
    """
    have = stored(database, traffic.node)
    drops = sidecar.kernel()[0]
    lost = traffic.packets - have.distinct - have.quarantined - drops
    allowance = rate * (0.5 + 2 * 0.2) + 2 * 2000
    bound = sum(kills.waiting) + len(kills.at) * allowance
    judged = judge(database, traffic.seed, traffic.dialogs)
    whole, spans = _spans(database, traffic)
    faulty = judged.missing | judged.wrong.keys()
    open_then = {
        index
        for index, (first, last) in spans.items()
        if any(first <= at <= last + SETTLES for at in kills.at)
    }
    unexcused = faulty & whole - open_then
    rebuilt = open_then & whole
    failed = rebuilt & faulty
    result.note(
        sent=traffic.packets,
        lost_messages=lost,
        lost_per_kill=round(lost / max(len(kills.at), 1)),
        waiting_before_each_kill=str(kills.waiting),
        kernel_drops=drops,
        outcomes=judged.outcomes,
        calls_exact=judged.exact,
        calls_missing=len(judged.missing),
        calls_otherwise=len(judged.wrong),
        calls_open_at_a_kill=len(open_then),
        calls_that_lost_messages=len(spans) - len(whole),
    )
    result.claim(
        f"lost at most what was in the {len(kills.at)} processes: what waited at the last reading"
        f" and {allowance:.0f} packets each (0.9 s of traffic, two batches)",
        0 <= lost <= bound,
        f"{lost} lost, bound {bound:.0f}",
    )
    claim_no_doubles(result, database, have)
    result.claim(
        "each call that was not open at a kill and lost no message is exact",
        not unexcused,
        f"{len(unexcused)} are not" + _some(judged, unexcused),
    )
    result.claim(
        "each call that was open at a kill and lost no message was rebuilt",
        not failed,
        f"{len(rebuilt) - len(failed)} of {len(rebuilt)}" + _some(judged, failed),
    )


def _some(judged: Judged, indexes: set[int]) -> str:
    shown = [judged.wrong.get(one, f"dialog {one} is missing") for one in sorted(indexes)[:3]]
    return "".join(f"; {words}" for words in shown)


def _spans(database: Database, traffic: Traffic) -> tuple[set[int], dict[int, tuple[float, float]]]:
    """Dialogs all of whose packets are stored, and from when to when each dialog was seen."""
    whole = set()
    spans = {}
    for call_id, packets, first, last in database.query(
        "SELECT call_id, count(*), extract(epoch FROM min(received_at))::float8,"
        " extract(epoch FROM max(received_at))::float8 FROM messages WHERE node_id = $1"
        " GROUP BY call_id",
        traffic.node,
    ):
        index = index_of(call_id)
        if index is not None:
            spans[index] = (first, last)
            if packets == truth_of(traffic.seed, index).kind.packets:
                whole.add(index)
    return whole, spans


def claim_ledger(
    result: Result, sidecar: Sidecar, said: dict[str, Any], sent: int, watch: Watch | None = None
) -> None:
    """Claim that the ledger of a sidecar's only life says where every packet went."""
    drops = sidecar.kernel()[0]
    sides = ("stored", "spooled", "quarantined", "refused", "dropped", "waiting")
    parts = {side: said.get(side, 0) for side in sides}
    parts["kernel_drops"] = drops
    result.note(ledger=parts)
    result.claim("sent = received + kernel drops", sent == said["received"] + drops, sent)
    result.claim(
        "sent = stored + spooled + quarantined + refused + shed + kernel drops",
        sent == sum(parts.values()) - parts["waiting"],
        " + ".join(str(parts[side]) for side in (*sides[:5], "kernel_drops")) + f" = {sent}",
    )
    result.claim("the balance is 0 at the end", said["balance"] == 0, said["balance"])
    if watch is not None:
        count = len(watch.unbalanced)
        words = f"{count} of {len(watch.samples)}"
        result.claim("the balance was 0 whenever somebody looked", count == 0, words)
