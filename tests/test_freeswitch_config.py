"""The configuration that is shipped for FreeSWITCH: what it says, and that the product fits it."""

import asyncio
import contextlib
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET
from xml.etree.ElementTree import Element

import pytest

from fakeswitch import FakeSwitch, Setup, User
from sipsidecar.config import Config, parse_address
from sipsidecar.edges.freeswitch import APIS, EVENTS, FreeSwitch
from sipsidecar.edges.switchpush import SwitchPush
from sipsidecar.signals.decisions import Denial, RateLimit
from sipsidecar.wire import esl

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "freeswitch"
FILES = sorted(FOLDER.rglob("*.xml"))
SIDECAR = FOLDER / "directory" / "sidecar.xml"
USER = "sidecar@sipsidecar"
SECRETS = re.compile(r"\$\$\{[a-z_]+\}")
every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)


def root(name: str | Path) -> Element:
    return ET.parse(FOLDER / name).getroot()  # noqa: S314 - our own files


def params(element: Element | None) -> list[tuple[str, str]]:
    assert element is not None
    return [(each.attrib["name"], each.attrib["value"]) for each in element.iter("param")]


def user() -> dict[str, str]:
    return dict(params(root("directory/sidecar.xml").find(".//user[@id='sidecar']/params")))


def test_the_folder_has_these_files_and_no_others() -> None:
    assert {str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*") if path.is_file()} == {
        "acl.xml",
        "dialplan/admission-asked.xml",
        "dialplan/admission.xml",
        "dialplan/overflow.xml",
        "dialplan/rtcp.xml",
        "directory/sidecar.xml",
        "event_socket.conf.xml",
        "sofia-capture.xml",
        "sofia-profile.xml",
    }


@every_file
def test_every_file_is_xml_that_its_user_can_include(path: Path) -> None:
    top = root(path)
    if path.name.endswith(".conf.xml"):
        assert (top.tag, top.attrib["name"]) == ("configuration", path.name.removesuffix(".xml"))
        return
    assert (top.tag, top.attrib) == ("include", {})
    # FreeSWITCH drops every whole line that has such a mark, in comments too.
    lines = path.read_text().splitlines()
    assert [line for line in lines if "include>" in line] == ["<include>", "</include>"]


@every_file
def test_no_comment_does_anything(path: Path) -> None:
    # FreeSWITCH obeys directives that are commented out, and comments that begin with #.
    said = path.read_text()
    assert "pre-process" not in said.lower()
    assert "<!--#" not in said
    assert "<?" not in said


@every_file
def test_no_file_has_a_secret(path: Path) -> None:
    for name, value in params(root(path)):
        if "password" in name:
            assert SECRETS.fullmatch(value), name
    assert "ClueCon" not in path.read_text()


@every_file
def test_all_else_is_not_left_to_a_variable_that_may_be_unset(path: Path) -> None:
    # One that is not set is empty text, without a warning.
    for name, value in params(root(path)):
        assert "password" in name or "$${" not in value, name


# --------------------------------------------------------------------------------- event socket


def test_the_event_socket_listens_on_loopback_and_asks_who_comes() -> None:
    assert params(root("event_socket.conf.xml").find("settings")) == [
        ("nat-map", "false"),
        ("listen-ip", "127.0.0.1"),
        ("listen-port", "8021"),
        ("password", "$${event_socket_password}"),
        ("apply-inbound-acl", "loopback.auto"),
    ]


def test_the_access_list_denies_whom_it_does_not_name() -> None:
    (one,) = root("acl.xml")
    assert (one.tag, one.attrib) == ("list", {"name": "sipsidecar", "default": "deny"})
    allowed = [node.attrib for node in one]
    assert {node["type"] for node in allowed} == {"allow"}
    # fs_cli, and one address of RFC 5737, which is nobody's.
    assert [node["cidr"] for node in allowed] == ["127.0.0.1/32", "192.0.2.10/32"]


# -------------------------------------------------------------------------------------- the user


def test_the_user_may_have_exactly_the_events_that_are_subscribed_to() -> None:
    words = user()["esl-allowed-events"].split(" ")
    plain, custom = words[: words.index("CUSTOM")], words[words.index("CUSTOM") + 1 :]
    assert tuple(plain + custom) == EVENTS
    # All behind CUSTOM are taken for subclasses.
    assert not any("::" in word for word in plain)
    assert all("::" in word for word in custom)


def test_the_user_may_run_the_commands_that_are_used_but_not_read_variables() -> None:
    allowed = set(user()["esl-allowed-api"].split(" "))
    # Global variables hold the passwords of event_socket.conf and of phones.
    assert allowed == set(APIS) - {"global_getvar"}
    # These run other commands, or programs.
    assert not allowed & {"bgapi", "sched_api", "eval", "expand", "xml_wrap", "system", "lua"}


def test_the_user_can_do_nothing_else() -> None:
    assert user().keys() == {
        "esl-password",
        "esl-allowed-events",
        "esl-allowed-api",
        "esl-allowed-log",
        "sip-forbid-register",
    }
    assert user()["esl-allowed-log"] == "false"
    assert user()["sip-forbid-register"] == "true"


def test_the_answer_to_the_login_is_not_cut() -> None:
    answer = (
        f"~Reply-Text: +OK accepted\nAllowed-Events: {user()['esl-allowed-events']}\n"
        f"Allowed-API: {user()['esl-allowed-api']}\nAllowed-LOG: false\n\n"
    )
    # FreeSWITCH has 512 bytes for it; without its end no client sees it. Some are left for more.
    assert len(answer) < 450


async def test_the_product_gets_all_events_as_this_user() -> None:
    said = user()
    rights = User(
        "secret",
        said["esl-allowed-events"],
        said["esl-allowed-api"],
        said["esl-allowed-log"] == "true",
    )
    heard: list[str | None] = []
    listed, done = asyncio.Event(), asyncio.Event()

    def deliver(_name: str, event: esl.Event, _now: float, _at: int) -> None:
        heard.append(event.event_subclass or event.event_name)
        if len(heard) == len(EVENTS):
            done.set()

    async with FakeSwitch(Setup(users={USER: rights})) as fake:
        client = FreeSwitch(
            "fs1",
            *fake.address,
            password="secret",  # noqa: S106
            user=USER,
            deliver=deliver,
            channels=lambda _name, _uuids: listed.set(),
        )
        running = asyncio.create_task(client.run())
        try:
            await asyncio.wait_for(listed.wait(), 10)
            for name in EVENTS:
                fake.emit(name)
            await fake.drained()
            await asyncio.wait_for(done.wait(), 10)
            for line in ("api global_getvar", "api originate x y", "log 7", "event json ALL"):
                assert (await client.command(line)).text == "-ERR permission denied", line
            state = client.status()
        finally:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running
    assert tuple(heard) == EVENTS
    assert client.counters["denied-events"] == 0
    assert state.version is not None
    # From the events, as it may not ask for the variable.
    assert state.core_uuid is not None


# ------------------------------------------------------------------------------------ SIP and RTCP


def test_sip_is_mirrored_to_where_the_sidecar_listens() -> None:
    ((name, value),) = params(root("sofia-capture.xml"))
    assert name == "capture-server"
    target, *keys = value.split(";")
    assert target == f"udp:{Config().hep.listen}"
    # FreeSWITCH refuses privileged ports, and any other key turns the capture off.
    assert parse_address(Config().hep.listen)[1] >= 1024
    assert keys == ["hep=3", "capture_id=100"]


def test_the_capture_id_is_not_that_of_the_shipped_kamailio() -> None:
    include = (ROOT / "kamailio" / "sipsidecar.cfg").read_text()
    assert "#!define SIPSIDECAR_CAPTURE_ID 2001" in include


def test_profiles_mirror_sip_and_send_rtcp() -> None:
    assert params(root("sofia-profile.xml")) == [
        ("sip-capture", "yes"),
        ("rtcp-audio-interval-msec", "2000"),
    ]


def test_rtcp_events_are_asked_for_on_both_legs_and_routing_goes_on() -> None:
    (extension,) = root("dialplan/rtcp.xml")
    assert extension.attrib["continue"] == "true"
    (condition,) = extension
    assert condition.attrib == {}
    (action,) = condition
    assert action.attrib == {"application": "export", "data": "fire_rtcp_events=true"}


# -------------------------------------------------------------------------------------- admission


class Dialplan:
    """As much of FreeSWITCH's dialplan as the files use, read off its source: no real one is here.

    `cond` takes what is no number for its length; a pattern in an attribute may hold variables; an
    action's `$1` is of its own condition; an action without its condition is always there.
    """

    def __init__(self, *files: str) -> None:
        self.extensions = [one for file in files for one in root(f"dialplan/{file}")]
        self.globals: dict[str, str] = {}
        self.now = 1_795_168_000.0
        self.counts: dict[str, int] = {}
        self.rates: dict[tuple[str, int], int] = {}

    def call(self, number: str = "5100", **channel: str) -> "Passed":
        """A call on its first way through."""
        said = {"sofia_profile_name": "external", "endpoint_disposition": "RECEIVED"} | channel
        passed = Passed(said)
        for extension in self.extensions:
            actions = self._actions(extension, number, passed)
            passed.found = passed.found or bool(actions)
            for application, data in actions:
                self._execute(application, data, passed)
                if passed.over:
                    return passed
            if actions and extension.get("continue") != "true":
                break
        return passed

    def _actions(self, extension: Element, number: str, passed: "Passed") -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        for condition in extension:
            field = condition.get("field")
            groups: tuple[str, ...] = ()
            if field is not None:
                text = self.expand(field, passed.channel) if "$" in field else number
                match = re.search(self.expand(condition.attrib["expression"], passed.channel), text)
                if match is None:
                    return []
                groups = match.groups()
            for action in condition:
                data = action.get("data", "")
                for at, group in enumerate(groups, 1):
                    data = data.replace(f"${at}", group)
                found.append((action.attrib["application"], data))
        return found

    def _execute(self, application: str, data: str, passed: "Passed") -> None:
        data = self.expand(data, passed.channel)
        if application == "set":
            name, _, value = data.partition("=")
            passed.channel[name] = value
        elif application == "unset":
            passed.channel.pop(data)
        elif application in {"respond", "transfer"}:
            passed.over = data
        elif application == "socket":
            passed.asked = data
        elif application == "limit":
            backend, realm, resource, most, instead = data.split(" ")
            assert (backend, instead) == ("hash", "!USER_BUSY")
            count, per, second = most.partition("/")
            if per:
                assert second == "1"
                at = (f"{realm}_{resource}", int(self.now))
                self.rates[at] = self.rates.get(at, 0) + 1
                passed.over = "486" if self.rates[at] > int(count) else ""
            elif self.counts.get(f"{realm}_{resource}", 0) + 1 > int(count):
                passed.over = "486"
            else:
                self.counts[f"{realm}_{resource}"] = self.counts.get(f"{realm}_{resource}", 0) + 1
        else:
            raise AssertionError(application)

    def expand(self, text: str, channel: dict[str, str]) -> str:
        while found := re.search(r"\$\{([a-zA-Z0-9_-]+)\}", text):
            text = text.replace(found[0], channel.get(found[1], ""))
        # from the inside out
        while found := re.search(r"\$\{([a-z_]+)\(((?:[^${}]|\$(?!\{))*)\)\}", text):
            text = text.replace(found[0], self._api(found[1], found[2]))
        assert "${" not in text, text
        return text

    def _api(self, name: str, data: str) -> str:
        if name == "global_getvar":
            return self.globals.get(data, "")
        if name == "strepoch":
            return str(int(self.now))
        if name == "strmicroepoch":
            return str(int(self.now * 1_000_000))
        if name == "regex":
            text, pattern, wanted = data.split("|")
            match = re.search(pattern, text)
            assert wanted == "%1"
            return match[1] if match else ""
        assert name == "cond"
        left, relation, right, yes, no = (
            part.strip() for part in re.split(r"(>=|>|<)|[?:]", data) if part is not None
        )
        a, b = (
            float(one) if re.fullmatch(r"[-+]?[0-9.]+", one) else float(len(one))
            for one in (left, right)
        )
        return yes if {">": a > b, ">=": a >= b, "<": a < b}[relation] else no


class Passed:
    """What became of a call."""

    def __init__(self, channel: dict[str, str]) -> None:
        self.channel = channel
        self.found = False
        """An extension had it: a context without one for it no longer says 404."""
        self.over = ""
        """The code of its refusal, or where it was transferred to."""
        self.asked = ""


async def pushed(dialplan: Dialplan, *denials: Denial, **more: Any) -> None:
    """Have the product push to where the dialplan looks."""

    async def command(line: str, _timeout: float) -> esl.Reply:
        name, _, value = line.removeprefix("api global_setvar ").partition("=")
        dialplan.globals.pop(name, None)
        dialplan.globals |= {name: value} if value else {}
        return esl.Reply("api/response", "+OK")

    push = SwitchPush(
        "fs1",
        command,
        profiles={"external": "acme"},
        lease_seconds=3,
        clock=lambda: dialplan.now,
    )
    push.show(denials, more.get("rates", ()), more.get("caps"), more.get("cap_rules"))
    await push._round()


DENIED = Denial(scope="global", rule="cpu", reason="cac cpu: busy", code=503)


def test_without_a_sidecar_all_calls_pass_and_unknown_numbers_stay_unknown() -> None:
    dialplan = Dialplan("admission.xml", "admission-asked.xml")
    passed = dialplan.call()
    assert (passed.over, passed.asked, passed.found) == ("", "", False)


@pytest.mark.parametrize("value", ["", "0", "yes", "-ERR", "1795168000", "1795167999", "x" * 400])
def test_a_deadline_that_is_none_or_over_lets_calls_pass(value: str) -> None:
    dialplan = Dialplan("admission.xml")
    for what in ("deny", "overflow"):
        for key in ("global", "profile_external", "trunk_"):
            dialplan.globals[f"sidecar_{what}_until_{key}"] = value
    assert not dialplan.call().found


async def test_a_denial_refuses_with_its_code_and_says_who_did() -> None:
    dialplan = Dialplan("admission.xml")
    await pushed(dialplan, DENIED)
    passed = dialplan.call()
    assert passed.over == "503"
    assert passed.channel["sip_reason"] == 'SIP;cause=503;text="cac cpu: busy"'
    assert passed.channel["sip_rh_X-Admission"] == "cpu"


async def test_a_sidecar_that_dies_has_calls_pass_within_its_lease() -> None:
    dialplan = Dialplan("admission.xml")
    await pushed(dialplan, DENIED)
    for second, over in ((2.9, "503"), (3.0, "")):
        dialplan.now = 1_795_168_000.0 + second
        assert dialplan.call().over == over


@pytest.mark.parametrize("key", ["profile", "trunk"])
async def test_a_denied_trunk_is_that_of_its_profile_or_of_the_mark(key: str) -> None:
    dialplan = Dialplan("admission.xml")
    await pushed(dialplan, Denial(scope="trunk", scope_value="acme", rule="r"))
    mark = {"sidecar_trunk": "acme", "sofia_profile_name": "internal"} if key == "trunk" else {}
    assert dialplan.call(**mark).over == "486"
    assert dialplan.call(sofia_profile_name="internal").over == ""
    # The mark says more exactly whose call it is.
    assert dialplan.call(sidecar_trunk="b").over == ""


@pytest.mark.parametrize("number", Config().admission.emergency)
async def test_emergency_numbers_are_never_refused_asked_about_or_counted(number: str) -> None:
    dialplan = Dialplan("admission.xml", "admission-asked.xml")
    dialplan.globals["sidecar_fail_closed_external"] = "true"
    await pushed(dialplan, DENIED, caps={("global", ""): 0})
    assert dialplan.call(number).over == ""
    assert not dialplan.call(number).found
    assert dialplan.call(number + "1").over == "503"


@pytest.mark.parametrize(
    "channel",
    [
        {"endpoint_disposition": "ANSWER"},
        {"transfer_history": "1795168000:uuid:bl_xfer:1/default/XML"},
        {"sidecar_exempt": "true"},
    ],
)
async def test_a_call_that_is_not_new_or_is_exempt_is_never_refused(
    channel: dict[str, str],
) -> None:
    dialplan = Dialplan("admission.xml", "admission-asked.xml")
    dialplan.globals["sidecar_fail_closed_external"] = "true"
    await pushed(dialplan, DENIED, caps={("global", ""): 0})
    assert not dialplan.call(**channel).found
    dialplan.now += 100
    assert not dialplan.call(**channel).found


@pytest.mark.parametrize("percent", [1, 30, 70, 99, 100])
async def test_a_share_of_the_calls_of_a_second_passes(percent: int) -> None:
    dialplan = Dialplan("admission.xml")
    await pushed(dialplan, Denial(scope="global", rule="r", percent=percent))
    refused = 0
    for hundredth in range(100):
        dialplan.now = 1_795_168_001.005 + hundredth / 100
        refused += dialplan.call().over == "486"
    assert refused == percent


async def test_an_overflow_is_transferred_to_its_route_in_a_context_of_its_own() -> None:
    dialplan = Dialplan("admission.xml")
    denial = Denial(scope="global", rule="r", verdict="overflow", route="announcement")
    await pushed(dialplan, denial)
    passed = dialplan.call()
    assert passed.over == "announcement XML sidecar_overflow"
    assert passed.channel["sidecar_rule"] == "r"
    (context,) = root("dialplan/overflow.xml")
    assert (context.tag, context.attrib) == ("context", {"name": "sidecar_overflow"})
    (condition,) = context[0]
    assert re.fullmatch(condition.attrib["expression"], "announcement")
    # which that call does not go through again
    assert not {"sidecar_deny", "socket"} & {one.attrib["name"] for one in context}


async def test_calls_at_once_are_counted_together_for_all_profiles_of_a_trunk() -> None:
    dialplan = Dialplan("admission.xml")
    await pushed(dialplan, caps={("trunk", "acme"): 3}, cap_rules={("trunk", "acme"): "cap"})
    outcomes = [
        # a marked call is not counted as one of its profile as well
        dialplan.call(sidecar_trunk=trunk)
        for trunk in ("acme", "", "acme", "", "acme", "acme")
    ]
    assert [one.over for one in outcomes] == ["", "", "", "486", "486", "486"]
    assert dialplan.counts == {"sidecar_trunk_acme": 3}
    assert outcomes[4].channel["sip_rh_X-Admission"] == "cap"
    assert outcomes[4].channel["sip_reason"] == 'SIP;cause=486;text="cac cap"'
    # what marks a refusal does not go out with what ends a call that passed
    assert "sip_reason" not in outcomes[0].channel
    assert "sip_rh_X-Admission" not in outcomes[0].channel


async def test_a_limit_of_0_refuses_all_and_holds_without_a_sidecar() -> None:
    dialplan = Dialplan("admission.xml")
    await pushed(dialplan, caps={("global", ""): 0})
    dialplan.now += 3600
    assert dialplan.call().over == "486"


async def test_calls_in_a_second_have_a_limit() -> None:
    dialplan = Dialplan("admission.xml")
    await pushed(dialplan, rates=[RateLimit(scope="global", limit=2, rule="cps")])
    assert [dialplan.call().over for _ in range(4)] == ["", "", "486", "486"]
    dialplan.now += 1
    assert dialplan.call().over == ""


async def test_a_profile_that_fails_closed_refuses_while_no_sidecar_is_there() -> None:
    dialplan = Dialplan("admission.xml")
    dialplan.globals["sidecar_fail_closed_external"] = "true"
    passed = dialplan.call()
    assert passed.over == "486"
    assert passed.channel["sip_rh_X-Admission"] == "fail-closed"
    assert dialplan.call(sofia_profile_name="internal").over == ""
    await pushed(dialplan)
    assert dialplan.call().over == ""
    dialplan.now += 4
    assert dialplan.call().over == "486"


async def test_calls_are_asked_about_while_the_sidecar_says_that_it_is_there() -> None:
    dialplan = Dialplan("admission.xml", "admission-asked.xml")
    await pushed(dialplan)
    assert dialplan.call().asked == "127.0.0.1:8084"
    dialplan.now += 4
    assert dialplan.call().asked == ""


async def test_refusals_in_force_are_not_asked_about() -> None:
    dialplan = Dialplan("admission.xml", "admission-asked.xml")
    await pushed(dialplan, DENIED)
    assert dialplan.call().asked == ""


def test_the_condition_that_refuses_is_the_one_that_was_measured() -> None:
    (extension,) = root("dialplan/admission.xml").findall(
        ".//extension[@name='sidecar_deny_profile']"
    )
    # Where it does not match, the next extension is tried without any `continue`.
    assert "continue" not in extension.attrib
    assert extension[0].attrib == {
        "field": "${cond(${global_getvar(sidecar_deny_until_profile_${sofia_profile_name})}"
        " > ${strepoch()} ? deny : allow)}",
        "expression": "^deny$",
    }


def test_nothing_that_admission_looks_at_can_be_chosen_by_a_caller() -> None:
    for path in (FOLDER / "dialplan").glob("admission*.xml"):
        code = re.sub(r"<!--.*?-->", "", path.read_text(), flags=re.DOTALL)
        assert set(re.findall(r"\$\{([a-z_]+)\}", code)) <= {
            "sofia_profile_name",
            "sidecar_trunk",
            "sidecar_exempt",
            "sidecar_code",
            "transfer_history",
            "endpoint_disposition",
        }
        # of what the caller wrote only the number, and it can only spare an emergency
        fields = {one.get("field") for one in root(path).iter("condition")}
        assert {one for one in fields if one and "$" not in one} == {"destination_number"}


def test_a_reason_is_never_cut() -> None:
    words = esl.refusal_words("cac " + "r" * 64 + ": " + "w" * 64)
    assert len(f'SIP;cause=486;text="{words}"') < 128


def test_actions_stand_in_conditions_whose_pattern_takes_nothing_of_them() -> None:
    # FreeSWITCH replaces $1 and the like in actions of a condition that has a bracket.
    for path in (FOLDER / "dialplan").glob("admission*.xml"):
        for condition in root(path).iter("condition"):
            if len(condition) and "(" in condition.get("expression", ""):
                assert condition.attrib["expression"] == "^([0-9]+)$"
