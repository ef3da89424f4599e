import pytest

from sipsidecar.calls.events import Sighted
from sipsidecar.signals.decisions import Ask
from sipsidecar.signals.exemptions import Exemptions

WHO = Exemptions(
    emergency=("112", "911"),
    callers=("+4930123", "vip*"),
    networks=("192.0.2.0/24", "2001:db8::/32"),
)


def why(**said: object) -> str | None:
    sighted = {name: said.pop(name) for name in list(said) if name in Sighted.__struct_fields__}
    return WHO.of(Ask(call_id="a", sighted=Sighted(**sighted), **said))  # type: ignore[arg-type]


def test_an_ordinary_call_is_not_exempt() -> None:
    assert why(ruri="sip:+49301@example.com", ruri_user="+49301", from_user="alice") is None


@pytest.mark.parametrize("method", ["CANCEL", "cancel"])
def test_a_cancel_is_never_refused(method: str) -> None:
    assert why(method=method) == "cancel"


@pytest.mark.parametrize("method", ["BYE", "ACK", "PRACK", "UPDATE", "INFO", "OPTIONS"])
def test_only_an_invite_can_be_refused(method: str) -> None:
    assert why(method=method) == "in-dialog"


def test_a_reinvite_is_never_refused() -> None:
    assert why(in_dialog=True) == "in-dialog"


@pytest.mark.parametrize(
    "ruri",
    [
        "urn:service:sos",
        "URN:SERVICE:SOS",
        "urn:service:sos.police",
        "urn:service:sos.animal-control",
        "urn:service:sos;phone-context=x",
    ],
)
def test_an_emergency_urn_is_never_refused(ruri: str) -> None:
    assert why(ruri=ruri) == "emergency"


@pytest.mark.parametrize(
    "ruri", ["urn:service:sosxyz", "sip:urn:service:sos@a", "urn:service:counseling"]
)
def test_what_only_looks_like_an_emergency_urn_is_ordinary(ruri: str) -> None:
    assert why(ruri=ruri, ruri_user="urn:service:sos") is None


@pytest.mark.parametrize("user", ["112", "9-1-1", "(911)"])
def test_an_emergency_number_is_never_refused(user: str) -> None:
    assert why(ruri=f"sip:{user}@example.com", ruri_user=user) == "emergency"


def test_a_tel_uri_may_name_an_emergency_number() -> None:
    assert why(ruri="tel:112") == "emergency"
    assert why(ruri="tel:112;phone-context=+49") == "emergency"


@pytest.mark.parametrize("user", ["1121", "0112", "+112", ""])
def test_a_number_that_only_begins_like_one_is_ordinary(user: str) -> None:
    assert why(ruri_user=user) is None


def test_configured_callers_have_priority() -> None:
    assert why(from_user="+4930123") == "priority"
    assert why(from_user="vip-7") == "priority"
    assert why(from_user="+49301234") is None


@pytest.mark.parametrize("source", ["192.0.2.7", "2001:db8::1"])
def test_priority_headers_count_from_trusted_networks(source: str) -> None:
    assert why(resource_priority="ets.0", src_ip=source) == "priority"
    assert why(priority="Emergency", src_ip=source) == "emergency"
    assert why(priority="psap-callback", src_ip=source) == "emergency"
    assert why(priority="urgent", src_ip=source) is None


@pytest.mark.parametrize("source", ["198.51.100.1", None, "not an address", ""])
def test_priority_headers_of_strangers_count_for_nothing(source: str | None) -> None:
    assert why(resource_priority="ets.0", priority="emergency", src_ip=source) is None


def test_without_networks_no_header_is_believed() -> None:
    ask = Ask(call_id="a", priority="emergency", sighted=Sighted(src_ip="192.0.2.7"))
    assert Exemptions().of(ask) is None
