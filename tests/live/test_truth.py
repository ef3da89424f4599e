from pathlib import Path

import pytest

from live import truth

CALL = "answered.1.77@127.20.0.1"


def log(tmp_path: Path, *messages: str) -> list[truth.Line]:
    """Lines of SIPp's log; each message is seconds, direction, CSeq and start line."""
    lines = []
    for message in messages:
        at, direction, number, method, start = message.split(" ", 4)
        lines.append(
            f"2026-01-02\t03:04:{at}\t17000000{at}\t{direction}\t{CALL}\tCSeq:{number} {method}\t{start}"
        )
    path = tmp_path / "short"
    path.write_text("\n".join(lines) + "\n")
    return truth.read(path)


def test_an_answered_call_has_pdd_talk_time_and_who_hung_up(tmp_path: Path) -> None:
    call = truth.calls(
        log(
            tmp_path,
            "10.000 S 1 INVITE INVITE sip:a@b SIP/2.0",
            "10.001 R 1 INVITE SIP/2.0 100 Trying",
            "10.250 R 1 INVITE SIP/2.0 180 Ringing",
            "11.000 R 1 INVITE SIP/2.0 200 OK",
            "11.001 S 1 ACK ACK sip:a@b SIP/2.0",
            "13.500 R 1 BYE BYE sip:c@d SIP/2.0",
            "13.501 S 1 BYE SIP/2.0 200 OK",
        )
    )[CALL]
    assert (call.final_code, call.answered, call.released_by) == (200, True, "callee")
    assert call.pdd_ms == pytest.approx(250)
    assert call.talk_ms == pytest.approx(2500)
    assert call.invites == 1


def test_a_challenge_resets_neither_the_clock_nor_counts_as_the_end(tmp_path: Path) -> None:
    messages = [
        "10.000 S 1 INVITE INVITE sip:a@b SIP/2.0",
        "10.010 R 1 INVITE SIP/2.0 407 Proxy Authentication Required",
        "10.011 S 1 ACK ACK sip:a@b SIP/2.0",
        "10.020 S 2 INVITE INVITE sip:a@b SIP/2.0",
    ]
    open_call = truth.calls(log(tmp_path, *messages))[CALL]
    assert (open_call.final_code, open_call.invites) == (None, 2)
    messages.append("10.300 R 2 INVITE SIP/2.0 183 Session Progress")
    messages.append("10.400 R 2 INVITE SIP/2.0 486 Busy Here")
    call = truth.calls(log(tmp_path, *messages))[CALL]
    assert (call.final_code, call.released_by) == (486, None)
    assert call.pdd_ms == pytest.approx(300)


def test_a_retransmitted_invite_is_one_invite_and_the_first_starts_the_clock(
    tmp_path: Path,
) -> None:
    call = truth.calls(
        log(
            tmp_path,
            "10.000 S 1 INVITE INVITE sip:a@b SIP/2.0",
            "10.500 S 1 INVITE INVITE sip:a@b SIP/2.0",
            "10.600 R 1 INVITE SIP/2.0 200 OK",
        )
    )[CALL]
    assert (call.invites, call.released_by) == (1, None)
    assert call.pdd_ms == pytest.approx(600)


def test_a_refused_reinvite_changes_nothing(tmp_path: Path) -> None:
    call = truth.calls(
        log(
            tmp_path,
            "10.000 S 1 INVITE INVITE sip:a@b SIP/2.0",
            "10.100 R 1 INVITE SIP/2.0 200 OK",
            "11.000 S 2 INVITE INVITE sip:a@b SIP/2.0",
            "11.100 R 2 INVITE SIP/2.0 488 Not Acceptable Here",
            "12.100 S 3 BYE BYE sip:a@b SIP/2.0",
        )
    )[CALL]
    assert (call.final_code, call.invites, call.released_by) == (200, 1, "caller")
    assert call.talk_ms == pytest.approx(2000)


@pytest.mark.parametrize(
    ("final", "code", "answered"), [("487 Request Terminated", 487, False), ("200 OK", 200, True)]
)
def test_a_cancel_releases_the_call_unless_it_was_answered(
    tmp_path: Path, final: str, code: int, answered: bool
) -> None:
    call = truth.calls(
        log(
            tmp_path,
            "10.000 S 1 INVITE INVITE sip:a@b SIP/2.0",
            "10.100 S 1 CANCEL CANCEL sip:a@b SIP/2.0",
            "10.101 R 1 CANCEL SIP/2.0 200 canceling",
            f"10.102 R 1 INVITE SIP/2.0 {final}",
        )
    )[CALL]
    assert call.cancelled
    assert (call.final_code, call.answered) == (code, answered)
    assert call.released_by == (None if answered else "caller")


def test_a_register_and_its_retry_are_two_transactions(tmp_path: Path) -> None:
    lines = log(
        tmp_path,
        "10.000 S 1 REGISTER REGISTER sip:b SIP/2.0",
        "10.001 R 1 REGISTER SIP/2.0 401 Unauthorized",
        "10.010 S 2 REGISTER REGISTER sip:b SIP/2.0",
        "10.011 R 2 REGISTER SIP/2.0 200 OK",
    )
    assert truth.calls(lines) == {}
    found = truth.transactions(lines, "REGISTER")
    assert {key[1]: sent.final_code for key, sent in found.items()} == {1: 401, 2: 200}


def test_differences_name_the_field_and_both_values() -> None:
    call = truth.Call(CALL, 10.0, final_code=486, pdd_ms=20.0)
    record = {
        "final_code": 480,
        "answered": False,
        "released_by": None,
        "invites": 1,
        "pdd_ms": None,
        "talk_ms": None,
    }
    assert truth.differences(call, record) == [
        f"{CALL}: final_code is 480, the caller says 486",
        f"{CALL}: pdd_ms is None, the caller says 20.0",
    ]
    assert truth.errors_ms([(call, record)], "pdd_ms") == {}
    assert truth.errors_ms([(call, record | {"pdd_ms": 22.5})], "pdd_ms") == {CALL: 2.5}
