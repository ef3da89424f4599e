from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sipsidecar.edges.http.bodies import (
    AbsentError,
    QuestionError,
    check_name,
    decode,
    identity,
    looked_up,
    query,
    refusing,
)
from sipsidecar.edges.http.guard import Role
from sipsidecar.edges.http.pages import Request, json_response
from sipsidecar.signals.rules import RuleError
from sipsidecar.wire.sip import MAX_CALL_ID


class Said(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    size: int = 0


def asked(text: str) -> Request:
    class Http:
        class rel_url:  # noqa: N801 -- aiohttp's name
            raw_query_string = text

    http: Any = Http
    return Request(http, Role.ALL)


def test_a_plus_sign_of_a_query_is_no_blank() -> None:
    assert query(asked("to=+491&x=a%20b&&y")) == {"to": "+491", "x": "a b", "y": ""}


def test_a_name_that_comes_twice_is_refused() -> None:
    with pytest.raises(QuestionError, match="to: send it once"):
        query(asked("to=1&to=2"))


def test_a_body_of_another_shape_is_refused_in_words() -> None:
    assert decode(Said, b'{"name": "a"}') == Said("a")
    for body in (b"", b"[]", b'{"name": 1}', b'{"name": "a", "more": 1}', b"\xff", b'"' * 3):
        with pytest.raises(QuestionError, match="send the fields that / names"):
            decode(Said, body)


def test_a_body_that_is_nested_too_deeply_is_refused_in_words() -> None:
    with pytest.raises(QuestionError, match="nested"):
        decode(dict[str, Any], b'{"a":' * 20_000 + b"1" + b"}" * 20_000)


def test_bytes_that_are_no_text_are_shown_as_the_sip_parser_shows_them() -> None:
    assert decode(Said, b'{"name": "caf\xe9"}').name == "caf\\xe9"


@pytest.mark.parametrize(
    ("error", "status"),
    [(QuestionError("send x\x1b"), 400), (AbsentError("no y"), 404), (RuleError("bad z"), 422)],
)
def test_what_cannot_be_has_its_status_and_no_control_characters(
    error: Exception, status: int
) -> None:
    def make(_: Request) -> Any:
        raise error

    reply = refusing(make)(asked(""))
    assert reply.status == status
    assert b"\x1b" not in (reply.body or b"")  # type: ignore[operator]
    assert refusing(lambda _: json_response(1))(asked("")).status == 200


def test_a_fault_of_ours_is_not_taken_for_something_absent() -> None:
    def absent() -> None:
        raise LookupError("no such trunk")

    with pytest.raises(AbsentError, match="no such trunk"):
        looked_up(absent)
    known: dict[str, int] = {}
    with pytest.raises(KeyError):
        looked_up(lambda: known["fault"])
    assert looked_up(lambda: 5) == 5


@pytest.mark.parametrize("name", ["", "a b", "a\n", "\u0661", "x" * 65])
def test_a_name_that_the_configuration_cannot_have_is_refused(name: str) -> None:
    check_name("trunk", "acme-1.de_x")
    with pytest.raises(QuestionError, match="trunk: expected a name"):
        check_name("trunk", name)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=2000), st.text(max_size=2000))
def test_two_identities_stay_two_however_long_they_are(one: str, other: str) -> None:
    first, second = identity(one, MAX_CALL_ID), identity(other, MAX_CALL_ID)
    assert max(len(first), len(second)) <= MAX_CALL_ID
    if len(one) > MAX_CALL_ID < len(other):
        assert (first == second) == (one == other)
