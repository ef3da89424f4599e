from overload import sipwords

INVITE = sipwords.text(
    "INVITE sip:call-1@192.0.2.2:5060 SIP/2.0",
    ("Via", "SIP/2.0/UDP 192.0.2.1:5060;branch=z9hG4bKa;rport"),
    ("Via", "SIP/2.0/UDP 192.0.2.3:5060;branch=z9hG4bKb"),
    ("Record-Route", "<sip:192.0.2.1;lr>"),
    ("From", "<sip:caller@192.0.2.3>;tag=f"),
    ("To", "<sip:call-1@192.0.2.2>"),
    ("Call-ID", "one"),
    ("CSeq", "1 INVITE"),
)


def test_a_message_that_was_written_is_read_again() -> None:
    message = sipwords.read(INVITE)
    assert message is not None
    assert (message.method, message.code, message.branch) == ("INVITE", None, "z9hG4bKa")
    assert message.headers["via"][1].endswith("z9hG4bKb")
    assert message.value("subject") == ""


def test_a_response_goes_back_the_way_the_request_came() -> None:
    request = sipwords.read(INVITE)
    assert request is not None
    response = sipwords.read(
        sipwords.answer(request, 200, "OK", "t", ("Contact", "<sip:callee@192.0.2.2>"))
    )
    assert response is not None
    assert (response.code, response.method) == (200, "INVITE")
    assert response.headers["via"] == request.headers["via"]
    assert response.headers["record-route"] == request.headers["record-route"]
    assert response.value("to") == "<sip:call-1@192.0.2.2>;tag=t"
    assert sipwords.address(response.value("contact")) == "sip:callee@192.0.2.2"


def test_a_tag_that_is_there_is_not_replaced() -> None:
    within = sipwords.read(INVITE.replace(b"<sip:call-1@192.0.2.2>\r\n", b"<sip:c@b>;tag=x\r\n"))
    assert within is not None
    assert b"To: <sip:c@b>;tag=x\r\n" in sipwords.answer(within, 200, "OK", "t")


def test_a_keep_alive_is_no_message() -> None:
    assert sipwords.read(b"\r\n\r\n") is None
