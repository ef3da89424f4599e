"""The rules of admission, as they are configured, and the measures that they stand on."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Final, Literal
from urllib.parse import urlsplit

import msgspec

from sipsidecar.signals.decisions import CROWDED, DRAIN, LOCAL_RULES, OTHER_RULE, WAITED

SCOPES: Final = ("tenant", "trunk", "direction", "region", "node")
"""What a rule can be about, besides all calls (`global`)."""
GLOBAL: Final = "global"
EACH: Final = "*"
"""A rule for each value of its scope by itself."""

Measured = Literal[
    "calls",
    "calls_per_second",
    "asr_percent",
    "ner_percent",
    "server_errors_percent",
    "pdd_p95_ms",
    "mos",
    "loss_percent",
    "cpu_percent",
    "memory_percent",
    "loop_lag_ms",
    "queue_percent",
    "disk_percent",
    "freeswitch_sessions_percent",
    "freeswitch_rate_percent",
    "freeswitch_idle_cpu_percent",
    "database",
    "check",
    "signal",
]


class Measure(msgspec.Struct, frozen=True):
    """One figure that a rule can be about."""

    kind: str
    """capacity, quality or health."""
    low_is_bad: bool = False
    default: float | None = None
    """Limit when the rule names none; None: it must."""
    resume: float | None = None
    """Where it is good again, when the rule names neither limit nor resume."""


MEASURES: Final[dict[str, Measure]] = {
    "calls": Measure("capacity"),
    "calls_per_second": Measure("capacity"),
    "asr_percent": Measure("quality", low_is_bad=True),
    "ner_percent": Measure("quality", low_is_bad=True),
    "server_errors_percent": Measure("quality"),
    "pdd_p95_ms": Measure("quality"),
    "mos": Measure("quality", low_is_bad=True),
    "loss_percent": Measure("quality"),
    "cpu_percent": Measure("health", default=85.0, resume=70.0),
    "memory_percent": Measure("health", default=90.0, resume=80.0),
    "loop_lag_ms": Measure("health", default=100.0, resume=50.0),
    "queue_percent": Measure("health", default=80.0, resume=50.0),
    "disk_percent": Measure("health", default=95.0, resume=90.0),
    "freeswitch_sessions_percent": Measure("health", default=95.0, resume=90.0),
    "freeswitch_rate_percent": Measure("health", default=95.0, resume=90.0),
    "freeswitch_idle_cpu_percent": Measure("health", low_is_bad=True, default=15.0, resume=30.0),
    # 1 while it is away or fails, else 0
    "database": Measure("health", default=0.5, resume=0.5),
    "check": Measure("health", default=0.5, resume=0.5),
    # pushed from outside: any number, judged by the rule's own limit
    "signal": Measure("health"),
}
"""standards for the defaults: thresholds with hysteresis that keep a node working."""

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_URL = re.compile(r"(?:https?|tcp)://[!-~]{1,500}")
_TEXT = re.compile(r"[A-Za-z0-9 ,.()/_%+-]{0,64}")


class RuleError(ValueError):
    """A rule that cannot be; the message is one line that names it and says what to do."""


class Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One rule: what is measured, of whom, from where on it objects, and what happens then."""

    name: str
    """Names it in logs, metrics, rows and the `Reason` header."""
    measure: Measured
    limit: float | None = None
    """From here on (for `calls`: so many at once) it objects; unit as the measure's name says."""
    tenant: str = ""
    """Whose calls it is about, `"*"` for each by itself; at most one of these five."""
    trunk: str = ""
    direction: str = ""
    region: str = ""
    node: str = ""
    which: str = ""
    """Name of the check or signal, or of one FreeSWITCH; empty: the worst of them."""
    notify: float | None = None
    """`calls`: from here on it only warns."""
    guaranteed: int = 0
    """`calls`: so many are always free for each value of the scope, whatever others use."""
    burst: float | None = None
    """`calls_per_second`: calls that may come at once after a pause; RFC 7415's TAU is one less than
    that, times 1/limit. None: 5."""
    resume: float | None = None
    """Where the figure is good again; None: the limit itself."""
    min_samples: int = 20
    """Quality: calls in the window below which nothing is said."""
    window_seconds: float = 300.0
    """Quality: how far back it looks."""
    trip_samples: int = 3
    """Bad readings in a row, one a second, that close it."""
    resume_seconds: float = 30.0
    """Least time that it stays closed; doubled each time that it closes again while ramping."""
    in_service_seconds: float = 5.0
    """Good readings in a row before it lets calls in again."""
    ramp_seconds: float = 30.0
    """Time from the first calls let in again to all of them."""
    outcome: Literal["refuse", "overflow", "shadow"] = "refuse"
    """shadow: count and store what would have been refused, refuse nothing."""
    code: int = 486
    """Of the refusal: 486, or 480, 503 or 603 among others."""
    reason: str = ""
    """Words for the `Reason` header, after the rule's name."""
    route: str = ""
    """overflow: one of `admission.routes`."""

    @property
    def scope(self) -> str:
        """Which of `SCOPES` it is about, or `global`."""
        return next((scope for scope in SCOPES if getattr(self, scope)), GLOBAL)

    @property
    def value(self) -> str:
        """Of its scope; empty for `global`."""
        return "" if self.scope == GLOBAL else str(getattr(self, self.scope))

    @property
    def kind(self) -> str:
        """capacity, quality or health."""
        return MEASURES[self.measure].kind

    @property
    def low_is_bad(self) -> bool:
        """Whether it objects to a figure under its limit."""
        return MEASURES[self.measure].low_is_bad

    @property
    def threshold(self) -> float:
        """From where on it objects."""
        default = MEASURES[self.measure].default
        found = self.limit if self.limit is not None else default
        assert found is not None  # check_rules saw to it
        return found

    @property
    def good(self) -> float:
        """Where the figure is good again."""
        if self.resume is not None:
            return self.resume
        preset = MEASURES[self.measure].resume
        return preset if self.limit is None and preset is not None else self.threshold

    @property
    def text(self) -> str:
        """What the `Reason` header says: `cac NAME`, and the rule's own words."""
        return f"cac {self.name}" + (f": {self.reason}" if self.reason else "")


class Probe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One downstream check of the pipeline behind the calls (ASR, LLM, TTS)."""

    name: str
    url: str
    """http://, https:// or tcp://HOST:PORT."""
    every_seconds: float = 5.0
    timeout_seconds: float = 2.0
    max_ms: float | None = None
    """Slower than this is a failure; None: any answer in time will do."""
    status: int = 0
    """HTTP status that is expected; 0: any 2xx."""


def check_rules(
    rules: Sequence[Rule], routes: Sequence[str] = (), checks: Sequence[Probe] = ()
) -> None:
    """Find what is wrong with rules, alone and together; RuleError names the rule."""
    seen: set[str] = set()
    for rule in rules:

        def wrong(why: str, name: str = rule.name) -> RuleError:
            return RuleError(f"rule {name!r}: {why}")

        if not _NAME.fullmatch(rule.name):
            raise wrong("a name has 1 to 64 letters, digits, dots, _ or -")
        if rule.name in seen:
            raise wrong("there are two of this name")
        if rule.name in {DRAIN, WAITED, CROWDED, OTHER_RULE, *LOCAL_RULES}:
            raise wrong("this name is taken: choose another")
        seen.add(rule.name)
        scopes = [scope for scope in SCOPES if getattr(rule, scope)]
        if len(scopes) > 1:
            raise wrong(f"is about {' and '.join(scopes)}: name one, and write a rule for each")
        if rule.value not in {"", EACH} and not _NAME.fullmatch(rule.value):
            raise wrong(f"{rule.scope}: expected {EACH!r} or 1 to 64 letters, digits, dots, _ or -")
        check_limits(rule)
        measure = MEASURES[rule.measure]
        if measure.kind == "health" and rule.measure != "signal" and rule.value == EACH:
            raise wrong(f"{rule.measure} is one figure: name the {rule.scope} it closes")
        if rule.measure == "check" and not checks:
            raise wrong("there is nothing to check: name it under admission.checks")
        if rule.which and not rule.measure.startswith(("check", "signal", "freeswitch_")):
            raise wrong("which: is for checks, signals and what a FreeSWITCH says")
        if rule.measure == "check" and rule.which and rule.which not in {c.name for c in checks}:
            raise wrong(f"which: {rule.which!r} is not among admission.checks")
        if rule.measure == "signal" and not _NAME.fullmatch(rule.which):
            raise wrong("which: name the signal, as POST /v1/signals will")
        for key in ("window_seconds", "resume_seconds", "in_service_seconds", "ramp_seconds"):
            if not 0 <= getattr(rule, key) <= 3600:
                raise wrong(f"{key}: expected 0 to 3600")
        if rule.window_seconds < 1:
            raise wrong("window_seconds: expected 1 to 3600")
        if not 1 <= rule.trip_samples <= 3600 or not 1 <= rule.min_samples <= 1_000_000:
            raise wrong("trip_samples and min_samples: expected 1 or more")
        if rule.burst is not None and rule.measure != "calls_per_second":
            raise wrong("burst: is for `calls_per_second`")
        if rule.burst is not None and not 1 <= rule.burst <= 1e6:
            raise wrong("burst: expected 1 or more calls")
        if not 400 <= rule.code <= 699:
            raise wrong(f"code: expected 400 to 699, got {rule.code}")
        if not _TEXT.fullmatch(rule.reason):
            raise wrong("reason: expected up to 64 letters, digits, blanks and , . ( ) / _ % + -")
        if rule.outcome == "overflow" and rule.route not in routes:
            raise wrong(f"route: {rule.route!r} is not among admission.routes")
        if rule.route and rule.outcome != "overflow":
            raise wrong('route: is for outcome = "overflow"')
    _check_guarantees(rules)
    for check in checks:
        _check_probe(check)
    if len({check.name for check in checks}) < len(checks):
        raise RuleError("two checks have one name")


def check_limits(rule: Rule) -> None:
    """Find what is wrong with the figures that a rule goes by; RuleError names it."""

    def wrong(why: str) -> RuleError:
        return RuleError(f"rule {rule.name!r}: {why}")

    measure = MEASURES[rule.measure]
    if rule.limit is None and measure.default is None:
        raise wrong(f"{rule.measure} needs a limit")
    if rule.limit is not None and not 0 <= rule.limit < 1e9:
        raise wrong(f"limit: expected a number from 0 on, got {rule.limit}")
    if rule.measure == "calls_per_second" and rule.threshold <= 0:
        raise wrong("limit: expected more than 0 calls per second")
    for key, figure in (("limit", rule.threshold), ("resume", rule.good)):
        if rule.measure.endswith("_percent") and not 0 <= figure <= 100:
            raise wrong(f"{key}: expected 0 to 100 percent, got {figure}")
        if rule.measure == "mos" and not 1 <= figure <= 5:
            raise wrong(f"{key}: expected a MOS from 1 to 5, got {figure}")
    if rule.measure in {"database", "check"} and not 0 < rule.threshold <= 1:
        raise wrong(f"limit: {rule.measure} is 0 while it is well, else 1: leave the limit out")
    if rule.resume is not None and not 0 <= rule.resume < 1e9:
        raise wrong(f"resume: expected a number from 0 on, got {rule.resume}")
    if rule.resume is not None and (
        rule.resume < rule.threshold if measure.low_is_bad else rule.resume > rule.threshold
    ):
        side = "under" if measure.low_is_bad else "over"
        raise wrong(f"resume: {rule.resume} is {side} the limit: it would never be good again")
    if rule.notify is not None and rule.measure != "calls":
        raise wrong("notify: is for `calls`")
    if rule.notify is not None and not 0 <= rule.notify <= rule.threshold:
        raise wrong("notify: expected 0 up to the limit")
    if rule.guaranteed and (rule.measure != "calls" or rule.scope == GLOBAL):
        raise wrong("guaranteed: is for `calls` of a tenant, trunk, direction, region or node")
    if rule.guaranteed < 0 or rule.guaranteed > rule.threshold:
        raise wrong("guaranteed: expected 0 up to the limit")


def _check_guarantees(rules: Sequence[Rule]) -> None:
    """What is guaranteed to some must be there: no more than all calls together may have."""
    enforced = [rule for rule in rules if rule.measure == "calls" and rule.outcome != "shadow"]
    whole = min(
        (rule for rule in enforced if rule.scope == GLOBAL),
        key=lambda rule: rule.threshold,
        default=None,
    )
    promised: Counter[str] = Counter()
    for rule in enforced:
        promised[rule.scope] += rule.guaranteed
        if whole is not None and promised[rule.scope] > whole.threshold:
            raise RuleError(
                f"rule {rule.name!r}: guaranteed: with it {promised[rule.scope]} calls are guaranteed"
                f" by {rule.scope}, and rule {whole.name!r} lets in {whole.threshold:g}"
            )


def _check_probe(check: Probe) -> None:
    def wrong(why: str) -> RuleError:
        return RuleError(f"check {check.name!r}: {why}")

    if not _NAME.fullmatch(check.name):
        raise wrong("a name has 1 to 64 letters, digits, dots, _ or -")
    if not _is_address(check.url):
        raise wrong("url: expected http://, https:// or tcp://HOST:PORT")
    if not 0.1 <= check.every_seconds <= 3600 or not 0.05 <= check.timeout_seconds <= 60:
        raise wrong("every_seconds: 0.1 to 3600, timeout_seconds: 0.05 to 60")
    if check.max_ms is not None and not 0 < check.max_ms <= 60_000:
        raise wrong("max_ms: expected more than 0, up to 60000")
    if check.status and not 100 <= check.status <= 599:
        raise wrong(f"status: expected 100 to 599, or 0 for any 2xx, got {check.status}")


def _is_address(url: str) -> bool:
    if not _URL.fullmatch(url):
        return False
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return False
    if parts.scheme == "tcp" and (port is None or parts.path or parts.query or parts.fragment):
        return False
    return bool(host) and port != 0
