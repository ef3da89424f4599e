import pytest

from sipsidecar.calls import joining
from sipsidecar.calls.call import Call
from sipsidecar.calls.joining import MediaIndex
from sipsidecar.wire import quality, rtcp

BODY = (
    b"v=0\r\no=- 1 1 IN IP4 192.0.2.1\r\ns=-\r\nc=IN IP4 192.0.2.1\r\nt=0 0\r\n"
    b"m=audio 4000 RTP/AVP 0\r\na=ssrc:305419896 cname:x\r\n"
)
RTP, RTCP = (bytes([192, 0, 2, 1]), 4000), (bytes([192, 0, 2, 1]), 4001)
ELSEWHERE = (bytes([203, 0, 113, 9]), 9)


def _calls(*ids: str) -> dict[str, Call]:
    return {call_id: Call(call_id, 0.0, 0) for call_id in ids}


def test_a_report_is_found_by_either_of_its_addresses() -> None:
    index, calls = MediaIndex(), _calls("one")
    index.read("one", BODY, calls)
    assert index.find(RTCP, ELSEWHERE, ()) == "one"
    assert index.find(ELSEWHERE, RTP, ()) == "one"
    assert index.find(ELSEWHERE, ELSEWHERE, ()) is None


def test_an_ssrc_of_the_description_or_one_that_spoke_tells_where_addresses_do_not() -> None:
    index, calls = MediaIndex(), _calls("one")
    index.read("one", BODY, calls)
    index.learn("one", 77, calls)
    assert index.find(ELSEWHERE, ELSEWHERE, (305419896,)) == "one"
    assert index.find(ELSEWHERE, ELSEWHERE, (5, 77)) == "one"
    assert index.find(ELSEWHERE, ELSEWHERE, (5,)) is None


def test_an_address_that_two_live_calls_claim_is_nobodys() -> None:
    index, calls = MediaIndex(), _calls("one", "two")
    index.read("one", BODY.replace(b"305419896", b"1"), calls)
    index.read("two", BODY.replace(b"305419896", b"2"), calls)
    assert index.find(RTCP, ELSEWHERE, ()) is None
    assert index.ambiguous == 2
    assert index.find(RTCP, ELSEWHERE, (2,)) == "two"


def test_a_port_that_the_next_call_uses_again_is_the_next_calls() -> None:
    index, calls = MediaIndex(), _calls("one", "two")
    index.read("one", BODY, calls)
    calls["one"].emitted = {}
    index.read("two", BODY, calls)
    assert index.find(RTCP, ELSEWHERE, ()) == "two"
    index.forget("one")
    assert index.find(RTCP, ELSEWHERE, ()) == "two"
    index.forget("two")
    assert len(index) == 0


def test_addresses_that_name_two_calls_name_none() -> None:
    index, calls = MediaIndex(), _calls("one", "two")
    index.read("one", BODY, calls)
    index.read("two", BODY.replace(b"192.0.2.1", b"192.0.2.2").replace(b"305419896", b"9"), calls)
    assert index.find(RTCP, (bytes([192, 0, 2, 2]), 4001), ()) is None


def test_what_a_call_and_all_calls_may_claim_is_capped_and_counted() -> None:
    index, calls = MediaIndex(), _calls("one")
    for ssrc in range(joining.MAX_KEYS_PER_CALL + 3):
        index.learn("one", ssrc, calls)
    assert (len(index), index.refused) == (joining.MAX_KEYS_PER_CALL, 3)


def test_all_calls_together_have_a_cap_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "MAX_KEYS", 2)
    index, calls = MediaIndex(), _calls("one", "two")
    for ssrc in range(2):
        index.learn("one", ssrc, calls)
    index.learn("two", 5, calls)
    assert (len(index), index.refused) == (2, 1)


def test_nothing_is_read_until_a_report_needs_it_and_then_bit_by_bit() -> None:
    index = MediaIndex()
    calls = _calls(*(str(i) for i in range(joining.SWEEP + 1)))
    assert not index.wanted
    index.want(calls, 0.0)
    assert index.wanted
    index.want({}, 1.0)  # those that ended meanwhile are passed over
    assert index.find(RTP, RTCP, ()) is None


def test_a_quiet_index_forgets_everything() -> None:
    index, calls = MediaIndex(), _calls("one")
    index.want(calls, 0.0)
    index.read("one", BODY, calls)
    index.rest(joining.QUIET)
    assert len(index) > 0
    index.rest(joining.QUIET + 1)
    assert (len(index), index.wanted) == (0, False)


def test_the_ssrcs_of_a_report_begin_with_its_own() -> None:
    report = rtcp.Report(1, blocks=(rtcp.ReportBlock(2, 0, 0, 10, 0),))
    assert joining.ssrcs_in(report) == (1, 2)
    assert joining.ssrcs_in(quality.SessionQuality("vq", remote_ssrc=3)) == (3,)
