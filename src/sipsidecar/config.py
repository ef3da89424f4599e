"""Turns one TOML file, the environment and the command line's flags into checked settings.

A key is `section.name`. A flag wins over the environment (`SIPSIDECAR_SECTION__NAME`), that over
the file, that over the default.
"""

import difflib
import ipaddress
import json
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args, get_origin, get_type_hints

import msgspec

from sipsidecar.calls.events import OTHER
from sipsidecar.gate import Gate
from sipsidecar.signals.alarms import CATEGORIES, SEVERITIES
from sipsidecar.signals.cohort import Matcher, check_matchers
from sipsidecar.signals.detectors import SEVERITY, DetectorSettings, Slo, check_slos
from sipsidecar.signals.receivers import Receiver, check_receivers
from sipsidecar.signals.rules import EACH, Probe, Rule, check_rules
from sipsidecar.signals.trunk import Peer, check_peers
from sipsidecar.tables import printable
from sipsidecar.wire import esl

DEFAULT_FILE = Path("/etc/sipsidecar/sipsidecar.toml")
PREFIX = "SIPSIDECAR_"
FLAGS = {
    "hep.listen": "--hep",
    "http.listen": "--http",
    "database.directory": "--data",
    "database.dsn": "--dsn",
}
"""Keys with a flag of their own."""


def _meta(text: str, least: float | None = None, most: float | None = None) -> msgspec.Meta:
    return msgspec.Meta(description=text, ge=least, le=most)


class Node(msgspec.Struct, frozen=True):
    """Which sidecar this is, where several write to one database."""

    id: Annotated[int, _meta("Number of this sidecar; no other may have it", 1, 2**31 - 1)] = 1
    name: Annotated[str, _meta("Name to show; empty: the host's name")] = ""


class Hep(msgspec.Struct, frozen=True):
    """Where mirrored SIP comes in."""

    listen: Annotated[str, _meta("ADDR:PORT for HEP; port 0: any free one")] = "127.0.0.1:9060"
    receive_buffer_bytes: Annotated[
        int, _meta("UDP receive buffer to ask of the kernel, which may grant less", 65536, 2**30)
    ] = 64 * 2**20
    tcp: Annotated[bool, _meta("HEP over TCP too, on the same port")] = True
    tcp_connections: Annotated[
        int, _meta("TCP connections at one time; more are refused", 1, 65535)
    ] = 256
    tcp_idle_seconds: Annotated[
        float, _meta("A TCP peer that holds back half a message longer is closed", 0.1, 86400)
    ] = 30.0
    tls_listen: Annotated[
        str, _meta("ADDR:PORT for HEP over TLS, beside the plain port; empty: none")
    ] = ""
    tls_certificate: Annotated[str, _meta("PEM file with the certificate and its chain")] = ""
    tls_key: Annotated[str, _meta("PEM file with the private key")] = ""
    tls_client_ca: Annotated[
        str, _meta("PEM file of authorities: only agents with a certificate of theirs may connect")
    ] = ""
    allow: Annotated[
        tuple[str, ...], _meta("Networks (CIDR) whose HEP is taken; empty: every sender's")
    ] = ()
    keys: Annotated[
        dict[str, str],
        _meta('Agent keys as `{ 2001 = "file:/path" }`, `"*"` for other capture ids; secret'),
    ] = {}
    insecure: Annotated[
        bool, _meta("Allow a public address although neither `allow`, `keys` nor a CA is set")
    ] = False
    local_addresses: Annotated[
        tuple[str, ...], _meta("IP addresses of the capturing proxies; empty: learned")
    ] = ()
    agents: Annotated[
        dict[str, Annotated[int, _meta("capture id", 0, 2**32 - 1)]],
        _meta("Names of capture ids, as `{ edge = 2001 }`: the names label metrics"),
    ] = {}


class Http(msgspec.Struct, frozen=True):
    """Where metrics and health are read."""

    listen: Annotated[str, _meta("ADDR:PORT for HTTP; port 0: any free one")] = "127.0.0.1:9080"
    read_tokens: Annotated[
        tuple[str, ...], _meta("Bearer tokens that may read; empty: no token is asked; secret")
    ] = ()
    operate_tokens: Annotated[
        tuple[str, ...], _meta("Bearer tokens that may also change things; secret")
    ] = ()
    post_tokens: Annotated[
        tuple[str, ...], _meta("Bearer tokens that may post markers and call outcomes; secret")
    ] = ()
    tls_certificate: Annotated[str, _meta("PEM file with the certificate; empty: plain HTTP")] = ""
    tls_key: Annotated[str, _meta("PEM file with the private key")] = ""
    hosts: Annotated[
        tuple[str, ...], _meta("Names in URLs besides the address itself and localhost")
    ] = ()
    connections: Annotated[
        int, _meta("HTTP connections at one time; more are refused", 1, 65535)
    ] = 256
    insecure: Annotated[bool, _meta("Allow a public address although no token is set")] = False


class Database(msgspec.Struct, frozen=True):
    """Where records go."""

    dsn: Annotated[str, _meta("postgresql:// URI; empty: the sidecar's own PostgreSQL")] = ""
    password: Annotated[str, _meta("Password for the DSN, when it holds none; secret")] = ""
    directory: Annotated[
        str, _meta("Folder of the sidecar's own PostgreSQL; empty: by platform")
    ] = ""
    binaries: Annotated[
        str, _meta("Folder with `initdb` and `postgres`; empty: looked for in the usual places")
    ] = ""
    batch_rows: Annotated[int, _meta("Rows that make a batch leave at once", 1, 100_000)] = 2000
    batch_seconds: Annotated[float, _meta("Age at which a smaller batch leaves", 0.01, 60)] = 0.5
    queue_bytes: Annotated[
        int, _meta("Memory for waiting rows; more are dropped and counted", 2**20, 2**40)
    ] = 128 * 2**20
    store_messages: Annotated[bool, _meta("Keep each message's text, for ladders and pcap")] = True


class Spool(msgspec.Struct, frozen=True):
    """Where batches wait on disk while the database is away."""

    directory: Annotated[str, _meta("Folder of the spool; empty: beside the database's")] = ""
    max_bytes: Annotated[
        int, _meta("Most bytes on disk, oldest messages go first; 0: no spool", 0, 2**50)
    ] = 2 * 2**30
    max_age_hours: Annotated[
        float, _meta("Hours after which a spooled batch is given up", 0.01, 87600)
    ] = 72.0
    write_ahead: Annotated[
        bool, _meta("Write every batch to the spool first, so that a crash loses less")
    ] = False


class Retention(msgspec.Struct, frozen=True):
    """How long rows are kept."""

    max_bytes: Annotated[
        int, _meta("Most bytes of all tables; the oldest partitions go first; 0: any", 0, 2**60)
    ] = 0

    check_seconds: Annotated[
        float, _meta("Time between looks at partitions, age and size", 0.5, 86400)
    ] = 300.0
    calls_days: Annotated[int, _meta("Days to keep calls", 1, 36500)] = 90
    attempts_days: Annotated[int, _meta("Days to keep attempts", 1, 36500)] = 90
    legs_days: Annotated[int, _meta("Days to keep legs of FreeSWITCH", 1, 36500)] = 90
    conversations_days: Annotated[int, _meta("Days to keep conversations", 1, 36500)] = 90
    media_days: Annotated[int, _meta("Days to keep media quality per call", 1, 36500)] = 90
    quality_intervals_days: Annotated[
        int, _meta("Days to keep media quality over time", 1, 36500)
    ] = 14
    messages_days: Annotated[int, _meta("Days to keep messages", 1, 36500)] = 7
    registrations_days: Annotated[int, _meta("Days to keep registrations", 1, 36500)] = 30
    pings_days: Annotated[int, _meta("Days to keep OPTIONS pings", 1, 36500)] = 7
    admissions_days: Annotated[int, _meta("Days to keep refusals", 1, 36500)] = 90
    admission_states_days: Annotated[
        int, _meta("Days to keep changes of rules' states", 1, 36500)
    ] = 365
    kpi_minute_days: Annotated[int, _meta("Days to keep figures per minute", 1, 36500)] = 400
    code_minute_days: Annotated[int, _meta("Days to keep final codes per minute", 1, 36500)] = 400
    baseline_hours_days: Annotated[
        int, _meta("Days to keep what is normal per hour; 28 are looked at", 8, 36500)
    ] = 35
    incidents_days: Annotated[int, _meta("Days to keep incidents", 1, 36500)] = 400
    events_days: Annotated[int, _meta("Days to keep the timeline", 1, 36500)] = 400
    outcomes_days: Annotated[int, _meta("Days to keep posted call outcomes", 1, 36500)] = 90
    quarantine_days: Annotated[int, _meta("Days to keep what was not understood", 1, 36500)] = 7


class Calls(msgspec.Struct, frozen=True):
    """How calls are followed."""

    max_calls: Annotated[
        int, _meta("Live calls; newcomers over it are only counted", 1, 10_000_000)
    ] = 50_000
    settle_seconds: Annotated[
        float, _meta("Wait after a call's end for messages out of order", 0, 60)
    ] = 2.0
    linger_seconds: Annotated[
        float, _meta("Memory of a closed call, for its retransmissions", 0, 3600)
    ] = 32.0
    max_seconds: Annotated[
        float, _meta("Longest call: one whose BYE was not seen ends then", 1, 30 * 86400)
    ] = 14400.0
    rebuild_seconds: Annotated[
        float, _meta("How far back calls open at a crash are looked for; 0: not at all", 0, 86400)
    ] = 3600.0
    warming_seconds: Annotated[
        float, _meta("Time after a start during which calls may lack their beginning", 0, 86400)
    ] = 180.0


class Quality(msgspec.Struct, frozen=True):
    """How media is rated, and from where on a call gets a finding."""

    low_mos: Annotated[float, _meta("`low_mos` below this MOS, on the codec's scale", 1, 4.5)] = 3.5
    high_loss_percent: Annotated[
        float, _meta("`high_loss` from this share of lost packets on", 0, 100)
    ] = 1.0
    high_jitter_ms: Annotated[
        float, _meta("`high_jitter` from this mean interarrival jitter on", 0, 10_000)
    ] = 15.0
    dead_air_seconds: Annotated[
        float, _meta("`dead_air` when media begins this long after the answer", 0, 3600)
    ] = 2.0
    one_way_seconds: Annotated[
        float, _meta("Shortest call that `one_way_audio` and `no_media` are said of", 1, 3600)
    ] = 5.0
    min_seconds: Annotated[
        float, _meta("Media shorter than this gets no MOS: it is `unrated`", 0, 3600)
    ] = 10.0
    id_mode: Annotated[
        Literal["idd", "linear"], _meta("Delay impairment: G.107's Idd, or the linear fit")
    ] = "idd"
    narrowband_only: Annotated[
        bool, _meta("Rate every codec on the narrowband scale, so that all MOS compare")
    ] = False
    plc: Annotated[bool, _meta("Receivers conceal lost G.711 packets (G.711 Appendix I)")] = True
    network_delay_ms: Annotated[
        float, _meta("One-way network delay to take where none was measured; 0: unknown", 0, 5000)
    ] = 0.0
    store_intervals: Annotated[bool, _meta("Keep each report's figures, for quality over time")] = (
        True
    )


class Freeswitch(msgspec.Struct, frozen=True):
    """Which FreeSWITCHes tell of their channels, by the event socket (ESL)."""

    switches: Annotated[
        dict[str, str],
        _meta('Event sockets as `{ fs1 = "127.0.0.1:8021" }`: the names label metrics'),
    ] = {}
    users: Annotated[
        dict[str, str],
        _meta('Restricted users as `{ fs1 = "sidecar@default" }`; without one: `auth`'),
    ] = {}
    passwords: Annotated[
        dict[str, str],
        _meta('Passwords as `{ fs1 = "file:/path" }`, `"*"` for other switches; secret'),
    ] = {}
    heartbeat_seconds: Annotated[
        float, _meta("Silence after which a switch is taken for stuck and met anew", 1, 3600)
    ] = 45.0


class CohortMatchers(msgspec.Struct, frozen=True):
    """Whose a call is: its tenant, trunk, carrier, direction, region and agent."""

    match: Annotated[
        tuple[Matcher, ...],
        _meta('Ordered matchers, as `[[cohorts.match]]` tables; see "Trunks and tenants"'),
    ] = ()


class AdmissionSettings(msgspec.Struct, frozen=True):
    """Which new calls are refused, and who is told."""

    rules: Annotated[
        tuple[Rule, ...], _meta('Rules, as `[[admission.rules]]` tables; see "Admission"')
    ] = ()
    checks: Annotated[
        tuple[Probe, ...],
        _meta("Downstream checks, as `[[admission.checks]]` tables: `name`, `url`, `max_ms`"),
    ] = ()
    routes: Annotated[
        tuple[str, ...], _meta("Names of fallback routes that rules may overflow to")
    ] = ()
    kamailio: Annotated[
        dict[str, str],
        _meta('Kamailios to push to, as `{ edge = "udp:127.0.0.1:8033" }`, `unix:` or `http:`'),
    ] = {}
    evapi: Annotated[
        dict[str, str],
        _meta('Kamailios that ask per call, as `{ edge = "127.0.0.1:8448" }` (evapi)'),
    ] = {}
    freeswitch: Annotated[bool, _meta("Push to the FreeSWITCHes of `freeswitch.switches`, too")] = (
        False
    )
    profiles: Annotated[
        dict[str, str],
        _meta("Trunk whose calls a sofia profile takes, as `{ external = 'acme' }`"),
    ] = {}
    outbound_listen: Annotated[
        str, _meta("ADDR:PORT for FreeSWITCH's outbound socket, which asks per call; empty: none")
    ] = ""
    lease_seconds: Annotated[
        int, _meta("Time that what was pushed holds; renewed every second", 2, 60)
    ] = 3
    emergency: Annotated[
        tuple[str, ...], _meta("Called users that are never refused, besides `urn:service:sos`")
    ] = ("000", "110", "112", "119", "911", "933", "999")
    priority_callers: Annotated[
        tuple[str, ...],
        _meta("Calling users that are never refused; `*` at the end: any that begin"),
    ] = ()
    priority_networks: Annotated[
        tuple[str, ...], _meta("Networks (CIDR) whose Resource-Priority header is believed")
    ] = ()
    reserve_percent: Annotated[
        float, _meta("Part of each capacity for those, at least one call; 0: none", 0, 50)
    ] = 5.0
    pending_seconds: Annotated[
        float, _meta("Time that an admitted call has to be seen in HEP or ESL", 0.1, 3600)
    ] = 5.0
    quiet_seconds: Annotated[
        float,
        _meta("Silence of a call whose RTCP was heard that ends its lease; 0: never", 0, 86400),
    ] = 120.0
    waited_ms: Annotated[
        float, _meta("A request that is older when it is asked about is refused; 0: none", 0, 60000)
    ] = 0.0
    fail_closed: Annotated[
        tuple[str, ...],
        _meta("Trunks whose calls are refused while no sidecar speaks; else they pass"),
    ] = ()

    @property
    def wanted(self) -> bool:
        """Whether anything is configured that decides, or that asks or is told."""
        return bool(
            self.rules or self.kamailio or self.evapi or self.freeswitch or self.outbound_listen
        )


class Kpi(msgspec.Struct, frozen=True):
    """Figures per minute and cohort."""

    enabled: Annotated[
        bool, _meta("Keep figures per minute; without them nothing is detected, and no incident")
    ] = True
    max_cohorts: Annotated[
        int, _meta("Combinations of labels in one minute; more count as `other`", 10, 100_000)
    ] = 2000
    heplify_names: Annotated[
        bool, _meta("Show metrics under heplify-server's names, too, for dashboards made for it")
    ] = False


class TrunkSettings(msgspec.Struct, frozen=True):
    """Which far ends are looked after."""

    peers: Annotated[
        tuple[Peer, ...], _meta('Far ends, as `[[trunks.peers]]` tables; see "Trunks"')
    ] = ()
    resolvers: Annotated[
        tuple[str, ...],
        _meta("DNS servers (ADDR or ADDR:PORT) whose answers are compared; empty: the system's"),
    ] = ()
    dns_seconds: Annotated[
        float, _meta("Time between two looks at each peer's names in DNS", 5, 86400)
    ] = 60.0
    certificate_days: Annotated[
        float, _meta("An alarm when a trunk's TLS certificate ends within that", 0, 3650)
    ] = 14.0
    kamailio: Annotated[
        dict[str, str],
        _meta('Kamailios that take a trunk out (dispatcher): `{ edge = "udp:127.0.0.1:8033" }`'),
    ] = {}
    lease_seconds: Annotated[
        int, _meta("Time that a trunk stays out without being said again", 3, 3600)
    ] = 15


class Detect(msgspec.Struct, frozen=True):
    """From where on figures are alarms."""

    enabled: Annotated[bool, _meta("Look for what is not normal, every minute")] = True
    method: Annotated[
        Literal["binomial", "three_sigma"],
        _meta("For shares of codes: binomial windows and CUSUM, or 3 sigma per minute"),
    ] = "binomial"
    severities: Annotated[
        dict[str, str],
        _meta('Severity by code or class, as `{ "404" = "warn" }`: trend, warn or page'),
    ] = {}
    inbound: Annotated[
        tuple[str, ...], _meta("Directions whose ASR has a fixed threshold (`answer_percent`)")
    ] = ("inbound",)
    answer_percent: Annotated[
        float, _meta("ASR of these over 5 minutes that is surely under it is an alarm", 0, 100)
    ] = 90.0
    slos: Annotated[
        tuple[Slo, ...],
        _meta("Objectives, as `[[detect.slos]]` tables: `name`, `measure`, `objective_percent`"),
    ] = ()
    arm_hours: Annotated[
        float, _meta("Hours of data before a cohort's own baseline counts", 1, 672)
    ] = 24.0

    @property
    def settings(self) -> DetectorSettings:
        """The same as detectors take it."""
        return DetectorSettings(
            method=self.method,
            severities={**SEVERITY, **self.severities},
            inbound=self.inbound,
            answer_percent=self.answer_percent,
            slos=self.slos,
            arm_hours=self.arm_hours,
        )


class Alerts(msgspec.Struct, frozen=True):
    """Who is told of incidents."""

    receivers: Annotated[
        tuple[Receiver, ...], _meta('Receivers, as `[[alerts.receivers]]` tables; see "Alerts"')
    ] = ()
    secrets: Annotated[
        dict[str, str],
        _meta('Secrets of receivers, as `{ pager = "file:/path" }`: named there; secret'),
    ] = {}
    link: Annotated[
        str, _meta("Address that messages link to: incident and time are put after it")
    ] = ""
    clear_seconds: Annotated[
        float, _meta("Time without any alarm after which an incident is over", 0, 86400)
    ] = 60.0
    merge_seconds: Annotated[
        float, _meta("The same trouble within this time reopens its incident", 0, 86400)
    ] = 1800.0


class Otel(msgspec.Struct, frozen=True):
    """Where a span per call goes (OpenTelemetry)."""

    endpoint: Annotated[
        str, _meta("OTLP over HTTP, as http://127.0.0.1:4318/v1/traces; empty: nowhere")
    ] = ""
    headers: Annotated[
        dict[str, str], _meta('HTTP headers, as `{ Authorization = "file:/path" }`; secret')
    ] = {}
    service_name: Annotated[str, _meta("`service.name` of the spans")] = "sipsidecar"
    ratio: Annotated[float, _meta("Share of calls that are told", 0, 1)] = 1.0


class Limits(msgspec.Struct, frozen=True):
    """What the process may use."""

    memory_bytes: Annotated[
        int, _meta("Memory ceiling; near it rows, then new calls are refused", 128 * 2**20, 2**40)
    ] = 512 * 2**20


class Privacy(msgspec.Struct, frozen=True):
    """What of people is masked before anything is kept."""

    key: Annotated[
        str, _meta("Key of the tokens that stand for masked names, 16 bytes or more; secret")
    ] = ""
    mask_users: Annotated[bool, _meta("Mask user parts of SIP and tel URIs")] = False
    mask_names: Annotated[bool, _meta("Mask display names")] = False
    mask_bodies: Annotated[bool, _meta("Mask message bodies other than SDP")] = False
    keep_dtmf: Annotated[bool, _meta("Keep the digits of DTMF in INFO bodies")] = False
    keep_media_keys: Annotated[bool, _meta("Keep the SRTP keys (SDES) in SDP")] = False


class Log(msgspec.Struct, frozen=True):
    """What is written to standard error."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"], _meta("Least level that is written")
    ] = "info"
    format: Annotated[Literal["text", "json"], _meta("A line of text or of JSON each")] = "text"


class Config(msgspec.Struct, frozen=True):
    """All settings; each part of the sidecar gets its own section."""

    node: Node = Node()
    hep: Hep = Hep()
    http: Http = Http()
    database: Database = Database()
    spool: Spool = Spool()
    retention: Retention = Retention()
    calls: Calls = Calls()
    quality: Quality = Quality()
    freeswitch: Freeswitch = Freeswitch()
    cohorts: CohortMatchers = CohortMatchers()
    admission: AdmissionSettings = AdmissionSettings()
    kpi: Kpi = Kpi()
    trunks: TrunkSettings = TrunkSettings()
    detect: Detect = Detect()
    alerts: Alerts = Alerts()
    otel: Otel = Otel()
    limits: Limits = Limits()
    privacy: Privacy = Privacy()
    log: Log = Log()


class ConfigError(ValueError):
    """One line that says which key is wrong, why, and where it was set."""

    def __init__(self, text: str) -> None:
        super().__init__(printable(text))


class Loaded(msgspec.Struct, frozen=True):
    """The settings, and for each key where it came from: default, file, env or flag."""

    config: Config
    sources: dict[str, str]
    references: dict[str, Any] = {}
    """For each secret what may be shown of it: where it comes from, never what it is."""


class Setting(msgspec.Struct, frozen=True):
    """One key: what the README and `load` know of it."""

    key: str
    annotation: Any
    base: Any
    """The type without its limits."""
    meta: msgspec.Meta
    default: Any

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return PREFIX + self.key.upper().replace(".", "__")


SETTINGS = tuple(
    Setting(f"{section}.{name}", annotation, base, meta, getattr(kind(), name))
    for section, kind in get_type_hints(Config).items()
    for name, annotation in get_type_hints(kind, include_extras=True).items()
    for base, meta in [get_args(annotation)]
)
_BY_KEY = {setting.key: setting for setting in SETTINGS}
_BY_VARIABLE = {setting.variable: setting for setting in SETTINGS}


def parse_address(text: str) -> tuple[str, int]:
    """Turn ADDR:PORT into a host for `bind` and a port; ValueError says what is expected.

    ADDR is an IPv4 address, an IPv6 address in brackets, or localhost.
    """
    found = re.fullmatch(r"(?:\[([^\]]+)\]|([^:\[\]]+)):([0-9]{1,5})", text)
    if found and int(found[3]) <= 65535:
        host = found[1] or found[2]
        try:
            if host != "localhost":
                (ipaddress.IPv6Address if found[1] else ipaddress.IPv4Address)(host)
        except ValueError:
            pass  # the one error below
        else:
            return host, int(found[3])
    raise ValueError(f"expected ADDR:PORT such as 127.0.0.1:9060 or [::1]:9060, got {text!r}")


def _check_addresses(addresses: tuple[str, ...]) -> None:
    for address in addresses:
        ipaddress.ip_address(address)


def _check_agents(agents: dict[str, int]) -> None:
    for name in agents:
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
            raise ValueError(f"a name has 1 to 64 letters, digits, _ or -, got {name!r}")
    if len(set(agents.values())) < len(agents):
        raise ValueError("one capture id has two names")


def _check_switches(switches: dict[str, str]) -> None:
    for name, address in switches.items():
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
            raise ValueError(f"a name has 1 to 64 letters, digits, _ or -, got {name!r}")
        if name == "other":
            raise ValueError("`other` stands for all switches without a name: choose another one")
        parse_address(address)


def _check_dsn(dsn: str) -> None:
    if dsn and not dsn.startswith(("postgresql://", "postgres://")):
        raise ValueError("expected postgresql://USER@HOST/NAME")  # never shows a password


def _check_listen(address: str) -> None:
    if address:
        parse_address(address)


def _check_networks(networks: tuple[str, ...]) -> None:
    Gate(networks)


def _check_keys(keys: dict[str, str]) -> None:
    for capture_id in keys:
        if capture_id != "*" and not (
            re.fullmatch("0|[1-9][0-9]{0,9}", capture_id) and int(capture_id) < 2**32
        ):
            # what stands there may be the key itself
            raise ValueError('expected { ID = "KEY" }, where ID is a capture id or "*"')


_RPC = re.compile(r"udp:(.+)|unix:/.+|https?://[^\s]+")
_LABEL = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def _check_names(names: Iterable[str]) -> None:
    for name in names:
        if not _LABEL.fullmatch(name):
            raise ValueError(f"a name has 1 to 64 letters, digits, dots, _ or -, got {name!r}")


def _check_kamailio(addresses: dict[str, str]) -> None:
    _check_names(addresses)
    for address in addresses.values():
        found = _RPC.fullmatch(address)
        if found is None:
            raise ValueError(
                f"expected udp:ADDR:PORT, unix:/PATH or http://ADDR:PORT/PATH, got {address!r}"
            )
        if found[1]:
            parse_address(found[1])


def _check_evapi(addresses: dict[str, str]) -> None:
    _check_names(addresses)
    for address in addresses.values():
        parse_address(address)


def _check_emergency(users: tuple[str, ...]) -> None:
    for user in users:
        if not re.fullmatch(r"[0-9*#+]{1,32}", user):
            raise ValueError(f"expected numbers such as 112, got {user!r}")


def _check_resolvers(resolvers: tuple[str, ...]) -> None:
    for each in resolvers:
        try:
            ipaddress.ip_address(each)
        except ValueError:
            try:
                parse_address(each)
            except ValueError:
                why = "expected ADDR or ADDR:PORT such as 192.0.2.53 or [::1]:53"
                raise ValueError(f"{why}, got {each!r}") from None


def _check_severities(severities: dict[str, str]) -> None:
    for category, severity in severities.items():
        if category not in CATEGORIES or severity not in SEVERITIES:
            raise ValueError(
                f"expected one of {', '.join(CATEGORIES)} and one of {', '.join(SEVERITIES)},"
                f" got {category!r} = {severity!r}"
            )


def _check_endpoint(url: str) -> None:
    if url and not re.fullmatch(r"https?://[^\s@]+", url):
        raise ValueError("expected http://HOST:PORT/PATH without a password")


_CHECKS: dict[str, Callable[[Any], object]] = {
    "hep.listen": parse_address,
    "http.listen": parse_address,
    "hep.tls_listen": _check_listen,
    "hep.allow": _check_networks,
    "hep.keys": _check_keys,
    "hep.local_addresses": _check_addresses,
    "hep.agents": _check_agents,
    "freeswitch.switches": _check_switches,
    "database.dsn": _check_dsn,
    "cohorts.match": check_matchers,
    "admission.routes": _check_names,
    "admission.kamailio": _check_kamailio,
    "admission.evapi": _check_evapi,
    "admission.profiles": _check_names,
    "admission.outbound_listen": _check_listen,
    "admission.emergency": _check_emergency,
    "admission.priority_networks": _check_networks,
    "trunks.peers": check_peers,
    "trunks.resolvers": _check_resolvers,
    "trunks.kamailio": _check_kamailio,
    "detect.slos": check_slos,
    "detect.severities": _check_severities,
    "otel.endpoint": _check_endpoint,
    "alerts.link": _check_endpoint,
}


SECRETS = frozenset(
    {
        "hep.keys",
        "http.read_tokens",
        "http.operate_tokens",
        "http.post_tokens",
        "database.password",
        "freeswitch.passwords",
        "privacy.key",
        "alerts.secrets",
        "otel.headers",
    }
)
"""Settings whose values nobody may read: never shown, never in an error.

Each may be `file:PATH` or `env:NAME` instead of the secret itself.
"""
LEAST_SECRET = 16
"""Characters of a token or a masking key: fewer can be guessed."""
_GUESSABLE = frozenset(
    {"http.read_tokens", "http.operate_tokens", "http.post_tokens", "privacy.key"}
)


def _secret(setting: Setting, text: str, environ: Mapping[str, str]) -> str:
    """Fetch a secret from where a setting says it is; ValueError never shows any part of it."""
    if text.startswith("file:"):
        path = Path(text.removeprefix("file:"))
        try:
            found = path.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ValueError(f"{path}: {error.strerror}") from None
        except ValueError:
            raise ValueError(f"{path}: expected text in UTF-8") from None
    elif text.startswith("env:"):
        found = environ.get(text.removeprefix("env:"), "")
    else:
        found = text
    if not found and text:
        raise ValueError(f"{text}: nothing there")
    if not found and setting.base is not str:  # an empty token or key would let everybody in
        raise ValueError("expected secrets, got an empty one")
    if setting.key in _GUESSABLE and 0 < len(found) < LEAST_SECRET:
        raise ValueError(f"expected {LEAST_SECRET} characters or more")
    return found


def _reference(text: str) -> str:
    """What may be shown of a secret's setting."""
    return text if text.startswith(("file:", "env:")) or not text else "***"


_Secrets = str | tuple[str, ...] | dict[str, str]


def _each(value: _Secrets, use: Callable[[str], str]) -> _Secrets:
    if isinstance(value, dict):
        return {name: use(one) for name, one in value.items()}
    return use(value) if isinstance(value, str) else tuple(use(one) for one in value)


def _resolved(
    setting: Setting, value: _Secrets, source: str, environ: Mapping[str, str]
) -> tuple[_Secrets, _Secrets]:
    """Turn a setting with secrets into what may be shown of it, and into the secrets."""
    try:
        return _each(value, _reference), _each(value, lambda one: _secret(setting, one, environ))
    except ValueError as error:
        raise ConfigError(f"{setting.key}: {error} ({source})") from None


def is_loopback(address: str) -> bool:
    """Tell whether ADDR:PORT can be reached from this machine alone."""
    host, _ = parse_address(address)
    return host == "localhost" or ipaddress.ip_address(host).is_loopback


def _check_admission(config: Config, wrong: Callable[[str, str], ConfigError]) -> None:
    """Find rules that are wrong, and names in them that nothing else in the settings has."""
    fs, http = config.freeswitch, config.http
    said = config.admission
    try:
        check_rules(said.rules, said.routes, said.checks)
    except ValueError as error:
        raise wrong("admission.rules", str(error)) from None
    if said.freeswitch and not fs.switches:
        raise wrong("admission.freeswitch", "names no FreeSWITCH: set freeswitch.switches")
    if said.outbound_listen and not is_loopback(said.outbound_listen) and not http.insecure:
        raise wrong(
            "admission.outbound_listen",
            f"{said.outbound_listen} can be reached by everybody, and the outbound socket knows no"
            " password: use a loopback address",
        )
    known = {
        scope: {getattr(one, scope) for one in config.cohorts.match}
        for scope in ("tenant", "trunk", "direction", "region", "carrier", "agent")
    }
    seen = {*config.hep.agents, *said.evapi}
    known["node"] = {*seen, *said.kamailio, *fs.switches}
    for rule in said.rules:
        if rule.value not in {"", EACH, OTHER, *known.get(rule.scope, ())}:
            raise wrong(
                "admission.rules",
                f"rule {rule.name!r}: {rule.scope} {rule.value!r} is said by no matcher"
                if rule.scope != "node"
                else f"rule {rule.name!r}: node {rule.value!r} is the name of no agent or switch",
            )
        counted = rule.kind == "quality" or rule.measure == "calls"
        if counted and rule.node in said.kamailio and rule.node not in seen:
            raise wrong(
                "admission.rules",
                f"rule {rule.name!r}: nothing tells which calls are those of node {rule.node!r}:"
                f" name its capture id, such as hep.agents = {{ {rule.node} = 2001 }}",
            )
    known_trunks = known["trunk"] - {""}
    for key, trunks in (("fail_closed", said.fail_closed), ("profiles", said.profiles.values())):
        if lost := sorted(set(trunks) - known_trunks):
            raise wrong(f"admission.{key}", f"no matcher of cohorts.match has trunk {lost[0]!r}")


def _check_whole(config: Config, sources: Mapping[str, str]) -> None:
    """Find settings that are wrong together: half of TLS, and doors open to everybody."""

    def wrong(key: str, why: str) -> ConfigError:
        return ConfigError(f"{key}: {why} ({sources[key]})")

    hep, http, privacy = config.hep, config.http, config.privacy
    for section, tls in (("hep", hep), ("http", http)):
        if bool(tls.tls_certificate) != bool(tls.tls_key):
            missing = "tls_key" if tls.tls_certificate else "tls_certificate"
            raise wrong(f"{section}.{missing}", "TLS needs both a certificate and a key")
    if hep.tls_listen and not hep.tls_certificate:
        raise wrong("hep.tls_listen", "needs hep.tls_certificate and hep.tls_key")
    if hep.tls_client_ca and not hep.tls_listen:
        raise wrong("hep.tls_client_ca", "guards nothing without hep.tls_listen")
    try:
        Gate(keys=hep.keys)
    except ValueError as error:
        raise wrong("hep.keys", str(error)) from None
    fs = config.freeswitch
    if lost := sorted(fs.users.keys() - fs.switches.keys()):
        raise wrong("freeswitch.users", f"{lost[0]!r} is not in freeswitch.switches")
    for name in fs.switches:
        user, password = fs.users.get(name), fs.passwords.get(name, fs.passwords.get("*"))
        if not password:
            raise wrong(
                "freeswitch.passwords",
                f'{name} has none: set {{ {name} = "file:/path" }}, or one for "*"',
            )
        try:
            _ = esl.userauth(user, password) if user else esl.auth(password)
        except esl.EslError as error:
            if error.why == "user":
                raise wrong(
                    "freeswitch.users", f"expected USER@DOMAIN for {name}, got {user!r}"
                ) from None
            raise wrong("freeswitch.passwords", f"{name}: expected one line of text") from None
    _check_admission(config, wrong)
    try:
        check_receivers(config.alerts.receivers, config.alerts.secrets)
    except ValueError as error:
        raise wrong("alerts.receivers", str(error)) from None
    if (privacy.mask_users or privacy.mask_names) and not privacy.key:
        raise wrong("privacy.key", "masking needs a key, such as file:/etc/sipsidecar/mask.key")
    known = bool(hep.allow or hep.keys or hep.insecure)
    if not known and not is_loopback(hep.listen):
        raise wrong(
            "hep.listen",
            f"{hep.listen} can be reached by everybody: say whose HEP is taken with hep.allow"
            " (networks) or hep.keys, or set hep.insecure = true",
        )
    if not (known or hep.tls_client_ca) and hep.tls_listen and not is_loopback(hep.tls_listen):
        raise wrong(
            "hep.tls_listen",
            f"{hep.tls_listen} can be reached by everybody: say whose HEP is taken with"
            " hep.tls_client_ca, hep.allow or hep.keys, or set hep.insecure = true",
        )
    authenticated = http.read_tokens or http.operate_tokens or http.insecure
    if not authenticated and not is_loopback(http.listen):
        raise wrong(
            "http.listen",
            f"{http.listen} can be reached by everybody: set http.read_tokens, or"
            " http.insecure = true",
        )


def find_file(
    flag: Path | None, environ: Mapping[str, str], default: Path = DEFAULT_FILE
) -> Path | None:
    """Choose the file to load: --config, else $SIPSIDECAR_CONFIG, else the default if it exists."""
    named = environ.get(f"{PREFIX}CONFIG")
    return flag or (Path(named) if named else default if default.exists() else None)


def load(path: Path | None, environ: Mapping[str, str], flags: Mapping[str, object]) -> Loaded:
    """Read the settings; `flags` has dotted keys, and None for a flag that was not given."""
    values: dict[str, dict[str, object]] = {}
    sources = dict.fromkeys(_BY_KEY, "default")

    def put(setting: Setting, value: object, source: str) -> None:
        section, _, name = setting.key.partition(".")
        values.setdefault(section, {})[name] = _checked(setting, value, source)
        sources[setting.key] = source

    if path:
        for key, value in _read(path).items():
            _expect(key, _BY_KEY, f"file {path}")
            put(_BY_KEY[key], value, f"file {path}")
    for variable, text in environ.items():
        if variable.startswith(PREFIX) and "__" in variable:
            _expect(variable, _BY_VARIABLE, "env")
            setting = _BY_VARIABLE[variable]
            put(setting, _from_text(text, setting.base), f"env {variable}")
    for key, value in flags.items():
        if value is not None:
            _expect(key, _BY_KEY, "flag")
            plain = _from_text(value, _BY_KEY[key].base) if isinstance(value, str) else value
            put(_BY_KEY[key], plain, f"flag {FLAGS.get(key, '--' + key)}")
    references: dict[str, Any] = {}
    for setting in SETTINGS:
        if setting.key in SECRETS and sources[setting.key] != "default":
            section, _, name = setting.key.partition(".")
            references[setting.key], values[section][name] = _resolved(
                setting, cast("_Secrets", values[section][name]), sources[setting.key], environ
            )
    config = msgspec.convert(values, Config)
    _check_whole(config, sources)
    return Loaded(config, sources, references)


def _read(path: Path) -> dict[str, object]:
    """Turn the file into values by dotted key."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except ValueError as error:  # not TOML, or not UTF-8
        raise ConfigError(f"{path}: {error}") from None
    flat: dict[str, object] = {}
    for section, body in document.items():
        if not isinstance(body, dict) or not body:
            _expect(section, Config.__struct_fields__, f"file {path}")
        if not isinstance(body, dict):
            raise ConfigError(f"{section}: expected [{section}] and keys under it (file {path})")
        flat |= {f"{section}.{name}": value for name, value in body.items()}
    return flat


def _expect(name: str, known: Iterable[str], source: str) -> None:
    if name in known:
        return
    hint = _near(name, [*known, *_BY_KEY])
    raise ConfigError(f"{name}: no such setting{hint} ({source})")


def _from_text(text: str, base: object) -> object:
    """Read a value out of a variable or flag; what does not fit stays text, for the type check."""
    if base is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    if base is int and re.fullmatch(r"-?[0-9]{1,18}", text):
        return int(text)
    if base is float and re.fullmatch(r"-?[0-9]{1,18}(\.[0-9]{1,18})?", text):
        return float(text)
    if get_origin(base) is tuple and not text.lstrip().startswith("["):
        return [part.strip() for part in text.split(",") if part.strip()]
    if get_origin(base) in (tuple, dict):
        for read in json.loads, lambda toml: tomllib.loads(f"value = {toml}")["value"]:
            try:
                return read(text)
            except ValueError:
                continue
    return text


def _checked(setting: Setting, value: object, source: str) -> object:
    inside = ""
    try:
        value = msgspec.convert(value, setting.annotation)
        _CHECKS.get(setting.key, bool)(value)
    except msgspec.ValidationError as error:
        why, _, at = str(error).replace("`", "").partition(" - at $")
        inside = "" if at == "[...]" else at
        if get_origin(setting.base) is Literal:
            why = f"expected {' or '.join(get_args(setting.base))}"
        if setting.base is bool:
            why = "expected true or false"
        why = why[0].lower() + re.sub(r"\barray\b", "list", re.sub(r"\bobject\b", "table", why[1:]))
        if isinstance(value, str) and at == "":
            why = why.removesuffix(", got str")
        if isinstance(value, list | tuple) and (place := re.match(r"\[([0-9]+)\]", at)):
            why = _in_table(get_args(setting.base)[0], at, why)
            value = _inner(value[int(place[1])], at[place.end() :])  # the whole list may be long
        if ", got" not in why and setting.key not in SECRETS and value is not None:
            why += f", got {value!r}"
    except ValueError as error:
        why = str(error)
    else:
        return value
    raise ConfigError(f"{setting.key}{inside}: {why} ({source})")


def _inner(value: object, at: str) -> object:
    """What stands at `.name` in one value of a list; None where that is a table, which may be long."""
    for name in filter(None, at.split(".")):
        value = value.get(name) if isinstance(value, dict) else None
    return None if isinstance(value, dict) else value


def _in_table(kind: Any, at: str, why: str) -> str:  # noqa: ANN401 -- any type of a setting's
    """Why one table of a list is wrong, with the names that could have been meant."""
    hints = get_type_hints(kind) if hasattr(kind, "__struct_fields__") else {}
    said = re.fullmatch(r"object contains unknown field (.+)", why)
    if said:
        return f"no such key {said[1]}{_near(said[1], hints)}"
    said = re.fullmatch(r"object missing required field (.+)", why)
    if said:
        return f"needs the key {said[1]}"
    said = re.fullmatch(r"invalid enum value '(.*)'", why)
    known = get_args(hints.get(at.rpartition(".")[2]))
    if said and known:
        near = _near(said[1], known)
        return f"no such one{near}" if near else f"expected one of {', '.join(known)}"
    return why.replace(" | null", "")


def _near(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f", did you mean {near[0]}?" if near else ""


def redacted(dsn: str) -> str:
    """Take the passwords out of a database URI, for people to read."""
    dsn = re.sub(r"^(\w+://[^:/@?]*:).*@", r"\1***@", dsn)
    return re.sub(r"(?i)([?&]\w*password=)[^&]*", r"\1***", dsn)


def _shown(loaded: Loaded) -> dict[str, Any]:
    values = {}
    for key in _BY_KEY:
        section, _, name = key.partition(".")
        values[key] = getattr(getattr(loaded.config, section), name)
    return values | {"database.dsn": redacted(loaded.config.database.dsn)} | loaded.references


_WIDEST = 64
"""Characters of a value that move the column of sources; lists of tables are longer."""


def render(loaded: Loaded) -> str:
    """Show every key, its value and its source, one aligned line each; it is TOML, too."""
    shown = {key: _toml(value) for key, value in _shown(loaded).items()}
    left = max(map(len, shown))
    right = max((len(one) for one in shown.values() if len(one) <= _WIDEST), default=0)
    return "\n".join(
        printable(f"{key:{left}} = {value:{right}}  # {loaded.sources[key]}")
        for key, value in shown.items()
    )


def render_json(loaded: Loaded) -> str:
    """Show the same as one JSON object, by dotted key."""
    sources = loaded.sources
    values = msgspec.to_builtins(_shown(loaded))
    shown = {key: {"value": v, "source": sources[key]} for key, v in values.items()}
    return json.dumps(shown, indent=2)


def _toml(value: object) -> str:
    value = msgspec.to_builtins(value)
    if isinstance(value, list | tuple) and any(isinstance(one, dict) for one in value):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, dict):
        pairs = (
            f"{_toml_key(key)} = {_toml(one)}" for key, one in value.items() if one is not None
        )
        return "{" + ", ".join(pairs) + "}"
    return json.dumps(value, ensure_ascii=False)


def _toml_key(key: str) -> str:
    return key if re.fullmatch("[A-Za-z0-9_-]+", key) else json.dumps(key)


def settings_markdown() -> str:
    """Make the table of all settings that the README shows."""
    lines = ["| Key | Type | Default | Meaning |", "| --- | --- | --- | --- |"]
    for setting in SETTINGS:
        default = setting.default
        lines.append(
            f"| `{setting.key}` | {_type(setting)} | `{_toml(default)}` | {setting.meta.description} |"
        )
    return "\n".join(lines)


def _type(setting: Setting) -> str:
    base, meta = setting.base, setting.meta
    if get_origin(base) is Literal:
        return " or ".join(f"`{one}`" for one in get_args(base))
    names = {int: "integer", float: "number", bool: "boolean", str: "text", tuple: "list"}
    limits = "" if meta.ge is None else f", {meta.ge} to {meta.le}"
    return names.get(get_origin(base) or base, "table") + limits
