"""The configuration that is shipped for FreeSWITCH: what it says, and that the product fits it."""

import asyncio
import contextlib
import re
from pathlib import Path
from xml.etree import ElementTree as ET
from xml.etree.ElementTree import Element

import pytest

from fakeswitch import FakeSwitch, Setup, User
from sipsidecar.config import Config, parse_address
from sipsidecar.edges.freeswitch import APIS, EVENTS, FreeSwitch
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
        "dialplan/admission.xml",
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


def test_the_admission_condition_is_the_one_that_was_measured() -> None:
    (extension,) = root("dialplan/admission.xml")
    # Where it does not match, the next extension is tried without any `continue`.
    assert extension.attrib == {"name": "sidecar_admission"}
    (condition,) = extension
    assert condition.attrib == {
        "field": "${cond(${global_getvar(sidecar_deny_until_${sofia_profile_name})}"
        " > ${strepoch()} ? deny : allow)}",
        "expression": "^deny$",
    }
    (action,) = condition
    assert action.attrib == {"application": "respond", "data": "486"}


def test_the_admission_key_is_nothing_that_a_caller_can_choose() -> None:
    said = (FOLDER / "dialplan" / "admission.xml").read_text()
    condition = said.partition("<condition")[2]
    assert set(re.findall(r"\$\{([a-z_]+)\}", condition)) == {"sofia_profile_name"}
    assert "Without the sidecar it lets all calls pass" in said
