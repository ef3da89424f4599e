import hmac
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from sipsidecar.edges.http.guard import Access, Role, refuse_forged

READ, OTHER, OPERATE = "read-read-read-00", "read-read-read-01", "operate-operate-0"
BOTH = Access([READ, OTHER], [OPERATE])


def bearer(*values: str) -> CIMultiDict[str]:
    return CIMultiDict([("Authorization", value) for value in values])


@pytest.mark.parametrize(
    ("values", "role"),
    [
        ([f"Bearer {READ}"], Role.READ),
        ([f"Bearer {OTHER}"], Role.READ),
        ([f"Bearer {OPERATE}"], Role.ALL),
        ([f"bEARER   {OPERATE} \t"], Role.ALL),
        ([], Role.NOBODY),
        ([""], Role.NOBODY),
        (["Bearer"], Role.NOBODY),
        (["Bearer "], Role.NOBODY),
        ([READ], Role.NOBODY),
        ([f"Basic {READ}"], Role.NOBODY),
        ([f"Bearer{READ}"], Role.NOBODY),
        ([f"Bearer {READ[:-1]}"], Role.NOBODY),
        ([f"Bearer {READ}0"], Role.NOBODY),
        ([f"Bearer {READ.upper()}"], Role.NOBODY),
        ([f"Bearer {READ} {READ}"], Role.NOBODY),
        ([f"Bearer {READ}", f"Bearer {READ}"], Role.NOBODY),
        (["Bearer wrong", f"Bearer {OPERATE}"], Role.NOBODY),
        (["Bearer \udcff\x00"], Role.NOBODY),
    ],
)
def test_only_a_whole_token_has_a_role(values: Sequence[str], role: Role) -> None:
    assert BOTH.role_of(bearer(*values)) is role


@given(st.text(max_size=40))
def test_no_text_that_is_not_a_token_has_a_role(text: str) -> None:
    assert BOTH.role_of(bearer(f"Bearer {text}")) is Role.NOBODY


def test_a_token_may_hold_any_text() -> None:
    assert (
        Access(["pässwörter sind gut"]).role_of(bearer("Bearer pässwörter sind gut")) is Role.READ
    )


@pytest.mark.parametrize("given", [READ, OTHER, OPERATE, "wrong", ""])
def test_every_token_is_compared_whichever_is_given(
    given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[int, int]] = []
    really = hmac.compare_digest

    def compare(one: bytes, two: bytes) -> bool:
        compared.append((len(one), len(two)))
        return really(one, two)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    BOTH.role_of(bearer(f"Bearer {given}"))
    assert compared == [(32, 32)] * 3


def test_a_token_of_both_roles_operates() -> None:
    assert Access([READ], [READ]).role_of(bearer(f"Bearer {READ}")) is Role.ALL
    both = Access([READ], post_tokens=[READ]).role_of(bearer(f"Bearer {READ}"))
    assert both == Role.READ | Role.POST
    assert Role.OPERATE not in both


def test_without_tokens_everybody_may_do_everything() -> None:
    assert Access().role_of(bearer()) is Role.ALL
    assert not Access().asked


def test_an_empty_token_locks_and_opens_nothing() -> None:
    access = Access([""])
    assert access.asked
    for values in ((), ("Bearer ",), ("Bearer",), ("",)):
        assert access.role_of(bearer(*values)) is Role.NOBODY


def test_tokens_cannot_be_read_out_of_it() -> None:
    assert READ not in repr(vars(BOTH))
    assert OPERATE not in repr(vars(BOTH))


@pytest.mark.parametrize(
    ("access", "role", "needs", "status"),
    [
        (BOTH, Role.NOBODY, Role.NOBODY, None),
        (BOTH, Role.NOBODY, Role.READ, 401),
        (BOTH, Role.NOBODY, Role.OPERATE, 401),
        (BOTH, Role.READ, Role.READ, None),
        (BOTH, Role.READ, Role.OPERATE, 403),
        (BOTH, Role.READ, Role.POST, 403),
        (BOTH, Role.NOBODY, Role.POST, 401),
        (BOTH, Role.ALL, Role.READ, None),
        (BOTH, Role.ALL, Role.OPERATE, None),
        (BOTH, Role.ALL, Role.POST, None),
        (Access([READ], post_tokens=[OTHER]), Role.POST, Role.POST, None),
        (Access([READ], post_tokens=[OTHER]), Role.POST, Role.READ, 403),
        (Access([READ], post_tokens=[OTHER]), Role.POST, Role.OPERATE, 403),
        (Access(post_tokens=[OTHER]), Role.NOBODY, Role.POST, 401),
        (Access(post_tokens=[OTHER]), Role.NOBODY, Role.OPERATE, 403),
        (Access([READ]), Role.READ, Role.POST, 403),
        (Access([READ]), Role.NOBODY, Role.READ, 401),
        (Access([READ]), Role.NOBODY, Role.OPERATE, 403),
        (Access([READ]), Role.READ, Role.OPERATE, 403),
        (Access((), [OPERATE]), Role.NOBODY, Role.READ, 401),
        (Access((), [OPERATE]), Role.NOBODY, Role.OPERATE, 401),
        (Access(), Role.ALL, Role.OPERATE, None),
    ],
)
def test_a_role_does_what_it_may_and_no_more(
    access: Access, role: Role, needs: Role, status: int | None
) -> None:
    refusal = access.refuse_role(role, needs, bearer())
    assert (refusal and refusal.status) == status
    if refusal is not None and status == 401:
        assert refusal.headers["WWW-Authenticate"].startswith("Bearer ")


def test_a_wrong_token_is_told_apart_from_none() -> None:
    none = BOTH.refuse_role(Role.NOBODY, Role.READ, bearer())
    wrong = BOTH.refuse_role(Role.NOBODY, Role.READ, bearer("Bearer x"))
    assert none
    assert wrong
    assert "invalid_token" not in none.headers["WWW-Authenticate"]
    assert "invalid_token" in wrong.headers["WWW-Authenticate"]


NAMED = Access(hosts=["Mon.Example.", "other.example:8443", "192.0.2.99", "[2001:DB8::9]", "?!"])


def host_status(
    host: str | None,
    *,
    access: Access = NAMED,
    local: str = "127.0.0.1",
    wildcard: bool = False,
    changing: bool = False,
    old: bool = False,
) -> int | None:
    headers = CIMultiDict({} if host is None else {"Host": host})
    refusal = access.refuse_host(
        headers, local=local, wildcard=wildcard, changing=changing, old=old
    )
    return refusal.status if refusal else None


@pytest.mark.parametrize("changing", [False, True])
@pytest.mark.parametrize(
    ("host", "local", "status"),
    [
        ("127.0.0.1", "127.0.0.1", None),
        ("127.0.0.1:9080", "127.0.0.1", None),
        ("127.0.0.1:1", "127.0.0.1", None),
        ("localhost:9080", "127.0.0.1", None),
        ("LOCALHOST.", "127.0.0.1", None),
        ("[::1]:9080", "::1", None),
        ("[0:0:0:0:0:0:0:1]", "::1", None),
        ("[fe80::1]", "fe80::1%eth0", None),
        ("mon.example", "10.0.0.1", None),
        ("MON.EXAMPLE:80", "10.0.0.1", None),
        ("other.example", "10.0.0.1", None),
        ("192.0.2.99:9080", "10.0.0.1", None),
        ("[2001:db8::9]", "10.0.0.1", None),
        ("evil.example", "127.0.0.1", 421),
        ("evil.example:9080", "127.0.0.1", 421),
        ("localhost.evil.example", "127.0.0.1", 421),
        ("127.0.0.1.evil.example", "127.0.0.1", 421),
        ("mon.example.evil", "127.0.0.1", 421),
        ("10.0.0.2", "127.0.0.1", 421),
        ("127.1", "127.0.0.1", 421),
        ("2130706433", "127.0.0.1", 421),
        ("0.0.0.0:9080", "127.0.0.1", 421),
        ("[::]", "::1", 421),
        ("", "127.0.0.1", 400),
        (None, "127.0.0.1", 400),
        (".", "127.0.0.1", 400),
        ("evil@127.0.0.1", "127.0.0.1", 400),
        ("127.0.0.1 ", "127.0.0.1", 400),
        ("127.0.0.1,evil", "127.0.0.1", 400),
        ("127.0.0.1:99999999", "127.0.0.1", 400),
        ("127.0.0.1\n", "127.0.0.1", 400),
        ("::1", "::1", 400),
        ("127.0.0.1", "", 421),
    ],
)
def test_a_url_must_name_us(
    host: str | None, local: str, status: int | None, changing: bool
) -> None:
    assert host_status(host, local=local, changing=changing) == status


def test_where_everything_is_bound_any_address_reads_but_only_ours_changes() -> None:
    pod = "10.1.2.3:9080"
    assert host_status(pod, local="172.17.0.2", wildcard=True) is None
    assert host_status(pod, local="172.17.0.2", wildcard=True, changing=True) == 421
    assert host_status("172.17.0.2", local="172.17.0.2", wildcard=True, changing=True) is None
    assert host_status("evil.example", local="172.17.0.2", wildcard=True) == 421
    assert host_status("0.0.0.0", local="172.17.0.2", wildcard=True) == 421  # noqa: S104


def test_only_an_old_probe_may_leave_the_host_out() -> None:
    assert host_status(None, old=True) is None
    assert host_status(None, old=True, changing=True) == 400
    assert host_status("evil.example", old=True) == 421


def test_two_hosts_are_none() -> None:
    two = CIMultiDict([("Host", "127.0.0.1"), ("Host", "evil.example")])
    refusal = NAMED.refuse_host(two, local="127.0.0.1", wildcard=True, changing=False, old=False)
    assert refusal
    assert refusal.status == 400


def test_the_refusal_of_a_host_names_the_setting() -> None:
    refusal = NAMED.refuse_host(
        CIMultiDict(Host="evil.example"), local="::1", wildcard=False, changing=False, old=False
    )
    assert refusal
    assert "http.hosts" in refusal.error
    assert "evil" not in refusal.error


@given(st.text(max_size=60), st.booleans(), st.booleans())
def test_no_host_text_raises(text: str, wildcard: bool, changing: bool) -> None:
    assert host_status(text, wildcard=wildcard, changing=changing) in {None, 400, 421}


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize(
    ("headers", "refused"),
    [
        ({}, False),
        ({"Origin": "https://mon.example"}, False),
        ({"Origin": "https://MON.example:443"}, False),
        ({"Origin": "https://mon.example", "Sec-Fetch-Site": "same-origin"}, False),
        ({"Sec-Fetch-Site": "none"}, False),
        ({"Sec-Fetch-Site": "cross-site"}, True),
        ({"Sec-Fetch-Site": "same-site"}, True),
        ({"Sec-Fetch-Site": ""}, True),
        ({"Origin": "https://mon.example", "Sec-Fetch-Site": "cross-site"}, True),
        ({"Origin": "null"}, True),
        ({"Origin": ""}, True),
        ({"Origin": "https://evil.example"}, True),
        ({"Origin": "https://mon.example.evil"}, True),
        ({"Origin": "https://evil@mon.example"}, True),
        ({"Origin": "https://mon.example/"}, True),
        ({"Origin": "https://mon.example:8443"}, True),
        ({"Origin": "mon.example"}, True),
        ({"Origin": "file://mon.example"}, True),
    ],
)
def test_a_changing_request_comes_from_us_or_from_no_page(
    headers: dict[str, str], refused: bool, secure: bool
) -> None:
    asked = CIMultiDict({"Host": "mon.example", **headers})
    refusal = refuse_forged(asked, secure=secure)
    assert (refusal is not None) == refused
    assert refusal is None or refusal.status == 403


def test_one_of_two_origins_is_enough_to_refuse() -> None:
    ours, evil = ("Origin", "https://mon.example"), ("Origin", "https://evil.example")
    for pair in ([ours, evil], [evil, ours]):
        assert refuse_forged(CIMultiDict([("Host", "mon.example"), *pair]), secure=True)


def test_a_plain_page_of_our_name_is_not_ours_over_tls() -> None:
    asked = CIMultiDict({"Host": "mon.example:9080", "Origin": "http://mon.example:9080"})
    assert refuse_forged(asked, secure=True)
    assert not refuse_forged(asked, secure=False)
