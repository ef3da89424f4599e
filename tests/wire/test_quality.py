import contextlib
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipsidecar.wire import quality
from sipsidecar.wire.quality import (
    QualityError,
    SessionQuality,
    parse_log,
    parse_ng,
    parse_rtp_stat,
    parse_vq,
)

CORPUS = Path(__file__).parent.parent / "corpus"
RTPENGINE = CORPUS / "rtpengine"

# RFC 6035 4.7.3: as it is printed, with its SSRC without 0x and its STOP nine days before its START.
RFC_6035 = b"""VQSessionReport: CallTerm
CallID: 6dg37f1890463
LocalID: Alice <sip:alice@example.org>
RemoteID: Bill <sip:bill@example.net>
OrigID: Alice <sip:alice@example.org>
LocalGroup: example-phone-55671
RemoteGroup: example-gateway-09871
LocalAddr: IP=192.0.2.100 PORT=5000 SSRC=1a3b5c7d
LocalMAC: 00:00:5e:00:53:01
RemoteAddr:IP=198.51.100.150 PORT=5002 SSRC=0x2468abcd
RemoteMAC: 00:00:5e:00:53:02
LocalMetrics:
Timestamps:START=2004-10-10T18:23:43Z STOP=2004-10-01T18:26:02Z
SessionDesc:PT=18 PD=G729 SR=8000 FD=20 FO=20 FPP=2 PPS=50
                FMTP="annexb=no" PLC=3 SSUP=on
JitterBuffer:JBA=3 JBR=2 JBN=40 JBM=80 JBX=120
PacketLoss:NLR=5.0 JDR=2.0
BurstGapLoss:BLD=0 BD=0 GLD=2.0 GD=500 GMIN=16
Delay:RTD=200 ESD=140 SOWD=200 IAJ=2 MAJ=10
Signal:SL=-21 NL=-50 RERL=55
QualityEst:RLQ=90 RCQ=85 EXTRI=90 MOSLQ=4.2 MOSCQ=4.3
  QoEEstAlg=P.564
RemoteMetrics:
Timestamps:START=2004-10-10T18:23:43Z STOP=2004-10-01T18:26:02Z
SessionDesc:PT=18 PD=G729 SR=8000 FD=20 FO=20 FPP=2 PPS=50
                FMTP="annexb=no" PLC=3 SSUP=on
JitterBuffer:JBA=3 JBR=2 JBN=40 JBM=80 JBX=120
PacketLoss:NLR=5.0 JDR=2.0
BurstGapLoss:BLD=0 BD=0 GLD=2.0 GD=500 GMIN=16
Delay:RTD=200 ESD=140 SOWD=200 IAJ=2 MAJ=10
Signal:SL=-21 NL=-45 RERL=55
QualityEst:RLQ=90 RCQ=85 MOSLQ=4.3 MOSCQ=4.2 QoEEstAlg=P.564
DialogID:1890463548@alice.example.org;to-tag=8472761;
   from-tag=9123dh311
"""
ALICE = SessionQuality(
    "vq",
    call_id="6dg37f1890463",
    local_ip="192.0.2.100",
    local_port=5000,
    remote_ip="198.51.100.150",
    remote_port=5002,
    local_ssrc=0x1A3B5C7D,
    remote_ssrc=0x2468ABCD,
    codec="G729",
    clock_rate=8000,
    loss_percent=5.0,
    discard_percent=2.0,
    jitter_ms=2.0,
    rtt_ms=200.0,
    end_system_ms=140.0,
    mos_lq=4.2,
    mos_cq=4.3,
    r=85.0,
    kind="final",
    claimed_by="caller",
    r_lq=90.0,
)


def vq(*lines: str) -> tuple[SessionQuality, ...]:
    return parse_vq("\r\n".join(lines).encode("latin-1"))


def heard(*lines: str) -> SessionQuality:
    """The one account of a report with these metrics."""
    (account,) = vq("VQSessionReport: CallTerm", "LocalMetrics:", "PacketLoss:NLR=0", *lines)
    return account


class TestRfc6035:
    def test_the_example_of_the_rfc_says_what_each_side_heard(self) -> None:
        here, there = parse_vq(RFC_6035)
        assert here == ALICE
        assert there == SessionQuality(
            "vq",
            call_id="6dg37f1890463",
            local_ip="198.51.100.150",
            local_port=5002,
            remote_ip="192.0.2.100",
            remote_port=5000,
            local_ssrc=0x2468ABCD,
            remote_ssrc=0x1A3B5C7D,
            codec="G729",
            clock_rate=8000,
            loss_percent=5.0,
            discard_percent=2.0,
            jitter_ms=2.0,
            rtt_ms=200.0,
            end_system_ms=140.0,
            mos_lq=4.3,
            mos_cq=4.2,
            r=85.0,
            kind="final",
            second_hand=True,
            claimed_by="callee",
            r_lq=90.0,
        )

    def test_line_ends_case_and_spaces_do_not_matter(self) -> None:
        for changed in (
            RFC_6035.replace(b"\n", b"\r\n"),
            RFC_6035.replace(b"VQSessionReport:", b"vqsessionreport  :").replace(b"NLR", b"nlr"),
            RFC_6035.replace(b"NLR=", b"NLR = ").replace(b"Delay:", b"delay: "),
            b"\n" + RFC_6035.replace(b"LocalMetrics:", b"LocalMetrics"),
        ):
            assert parse_vq(changed)[0] == ALICE

    def test_an_indented_body_is_the_same_body(self) -> None:
        lines = RFC_6035.splitlines(keepends=True)
        assert parse_vq(b"".join(b"  " + line for line in lines))[0] == ALICE

    def test_an_interval_is_told_from_the_end_and_an_alert_gives_nothing(self) -> None:
        assert [
            vq(first, "NLR=1")[0].kind for first in ("VQIntervalReport", "VQSessionReport")
        ] == [
            "interval",
            "session",
        ]
        assert vq("VQAlertReport: Type=NLR Severity=Critical Dir=local", "Metrics:", "NLR=9") == ()

    def test_a_phone_s_report_with_its_addresses_in_the_group_is_read(self) -> None:
        here, there = vq(
            "VQSessionReport",
            "LocalMetrics:",
            "Timestamps:START=2010-02-17T13:59:42Z STOP=2010-02-17T13:59:46Z",
            "SessionDesc:PT=0 PD=G.711U PPS=50 SSUP=off",
            "CallID:3c26a8de500f-12ct7zov3kjs",
            "x-UserAgent:snom360/8.2.sf",
            "FromID:<sip:a@example.net>",
            "LocalAddr:IP=192.0.2.7 PORT=62754 SSRC=0xCBE3450E",
            "RemoteAddr:IP=192.0.2.8 PORT=54018 SSRC=0xB80B52F3",
            "x-SIPmetrics:SVA=RG SRD=310 SFC=0",
            "JitterBuffer:JBA=0 JBR=0 JBN=0 JBM=0 JBX=65535",
            "PacketLoss:NLR=0.0 JDR=0.0",
            "Delay:RTD=0 ESD=0 IAJ=4",
            "RemoteMetrics:",
            "PacketLoss:NLR=0.0 JDR=0.0",
            "Delay:RTD=0 ESD=0 IAJ=2",
        )
        assert (here.local_ip, here.remote_ssrc, here.kind) == ("192.0.2.7", 0xB80B52F3, "session")
        assert (here.codec, here.ptime_ms, here.seconds) == ("G.711U", 20, 4.0)
        assert (here.jitter_ms, there.jitter_ms) == (4.0, 2.0)
        # 0 is how they say that they know none.
        assert here.rtt_ms is None
        assert here.end_system_ms is None
        assert (there.local_ip, there.local_port, there.second_hand) == ("192.0.2.8", 54018, True)

    def test_addresses_of_a_remote_group_are_from_where_it_stands(self) -> None:
        local = ["LocalAddr:IP=192.0.2.7 PORT=2", "RemoteAddr:IP=192.0.2.8 PORT=4"]
        remote = ["LocalAddr:IP=192.0.2.8 PORT=4", "RemoteAddr:IP=192.0.2.7 PORT=2"]
        groups = ["LocalMetrics:", "NLR=1", *local], ["RemoteMetrics:", "NLR=2", *remote]
        here, there = vq("VQSessionReport", *groups[0], *groups[1])
        assert (here.local_port, there.local_port) == (2, 4)
        # One that only comes late is the report's own.
        here, there = vq("VQSessionReport", *groups[0][:3], *groups[1][:2], local[1])
        assert (here.local_port, here.remote_port, there.local_port) == (2, 4, 4)

    def test_what_is_said_again_in_the_remote_group_changes_nothing(self) -> None:
        here, there = vq(
            "VQSessionReport",
            "LocalMetrics:",
            "CallID:1890463548@alice.example.org",
            "LocalAddr:IP=192.0.2.100 PORT=5000 SSRC=2468abcd",
            "RemoteAddr:IP=198.51.100.150 PORT=5002 SSRC=1357efff",
            "LocalAddr:IP=203.0.113.9",
            "  PORT=9",
            "PacketLoss:NLR=5.0 JDR=2.0",
            "PacketLoss:NLR=9.0",
            "RemoteMetrics:",
            "CallID:1890463548@alice.example.org",
            "LocalAddr:IP=198.51.100.150 PORT=5002 SSRC=1357efff",
            "RemoteAddr:IP=192.0.2.100 PORT=5000 SSRC=2468abcd",
            "PacketLoss:NLR=6.0",
        )
        assert here.call_id == there.call_id == "1890463548@alice.example.org"
        assert (here.local_ip, here.local_port, here.loss_percent) == ("192.0.2.100", 5000, 5.0)
        assert (there.local_ip, there.local_port, there.loss_percent) == (
            "198.51.100.150",
            5002,
            6.0,
        )
        assert here.remote_ssrc == there.local_ssrc == 0x1357EFFF

    def test_a_gateway_s_equals_signs_and_values_on_lines_of_their_own_are_read(self) -> None:
        account = heard(
            "CallID=20328634@192.0.2.1",
            "LocalAddr: IP=192.0.2.1 Port=6000 SSRC=0x54c62a13",
            "SessionDesc: PT=8 PD=PCMA SR=8000 FD=20 PLC=3 SSUP=Off",
            "Delay: RTD=0 ESD=11",
            "QualityEst: RLQ=93 MOSLQ=4.1",
            "MOSCQ=4.10",
        )
        assert (account.call_id, account.local_port) == ("20328634@192.0.2.1", 6000)
        assert (account.mos_lq, account.mos_cq, account.end_system_ms) == (4.1, 4.1, 11.0)
        assert account.ptime_ms is None  # a frame's length is not a packet's

    def test_a_bare_line_of_values_is_a_report(self) -> None:
        (account,) = vq("NLR=0.5 JDR=0.1 IAJ=3;MOSLQ=4.1, MOSCQ=4.0")
        assert account == SessionQuality(
            "vq", loss_percent=0.5, discard_percent=0.1, jitter_ms=3.0, mos_lq=4.1, mos_cq=4.0
        )

    def test_the_dialog_names_the_call_when_nothing_else_does(self) -> None:
        assert heard("DialogID: 1@example.net ;to-tag=a;from-tag=b").call_id == "1@example.net"
        assert heard("DialogID: a b;to-tag=a").call_id is None

    def test_a_report_without_figures_or_without_a_group_gives_nothing(self) -> None:
        assert vq("VQSessionReport: CallTerm", "CallID: 1") == ()
        assert vq("VQSessionReport: CallTerm", "SessionDesc: PD=G729 PPS=50") == ()
        assert vq("VQSessionReport: CallTerm", "NLR=unknown MOSLQ=127 RTD=0") == ()

    def test_lines_of_other_names_give_no_values(self) -> None:
        account = heard("X-Vendor: IAJ=99", "  RTD=99", "LocalMAC: ESD=99", "nonsense", "!? RLQ=9")
        assert account == SessionQuality("vq", kind="final", loss_percent=0.0)

    @pytest.mark.parametrize(
        ("line", "field", "value"),
        [
            ("PacketLoss:JDR=100", "discard_percent", 100.0),
            ("PacketLoss:JDR=100.1", "discard_percent", None),
            ("PacketLoss:JDR=-1", "discard_percent", None),
            ("PacketLoss:JDR=1e1", "discard_percent", None),
            ("PacketLoss:JDR=1_0", "discard_percent", None),
            ("PacketLoss:JDR=\xb2", "discard_percent", None),
            ("PacketLoss:JDR=", "discard_percent", None),
            ("QualityEst:MOSLQ=0.9", "mos_lq", None),
            ("QualityEst:MOSLQ=1.0", "mos_lq", 1.0),
            ("QualityEst:MOSLQ=5.1", "mos_lq", None),
            ("QualityEst:MOSCQ=127", "mos_cq", None),
            ("QualityEst:RCQ=120", "r", 120.0),
            ("QualityEst:RCQ=127", "r", None),
            ("QualityEst:RLQ=127", "r_lq", None),
            ("Delay:IAJ=9999", "jitter_ms", 9999.0),
            ("Delay:IAJ=10000", "jitter_ms", None),
            ("Delay:IAJ=00000000001", "jitter_ms", None),
            ("Delay:RTD=65535", "rtt_ms", None),
            ('SessionDesc:PD="G729"', "codec", "G729"),
            ("SessionDesc:PD=" + 33 * "x", "codec", None),
            ("SessionDesc:PD=G\x1b[2J", "codec", None),
            ("SessionDesc:PD=opus SR=48000", "clock_rate", 48000),
            ("SessionDesc:PD=opus SR=0", "clock_rate", None),
            ("SessionDesc:PD=G.722 SR=16000", "clock_rate", 8000),
            ("SessionDesc:FD=10 FPP=2", "ptime_ms", 20),
            ("SessionDesc:FD=10 FPP=2 PPS=50", "ptime_ms", 20),
            ("SessionDesc:FD=20 FPP=2 PPS=50", "ptime_ms", None),
            ("LocalAddr: IP=[2001:DB8::1] PORT=2", "local_ip", "2001:db8::1"),
            ("LocalAddr: IP=::ffff:192.0.2.1", "local_ip", "192.0.2.1"),
            ("LocalAddr: IP=0.0.0.0 PORT=2", "local_ip", None),
            ("LocalAddr: IP=1.2.3 PORT=2", "local_ip", None),
            ("LocalAddr: IP=phone.example.net PORT=2", "local_ip", None),
            ("LocalAddr: IP=192.0.2.1 PORT=65536", "local_port", None),
            ("LocalAddr: IP=192.0.2.1 PORT=0", "local_port", None),
            ("LocalAddr: SSRC=0x1", "local_ssrc", 1),
            ("LocalAddr: SSRC=3825483318", "local_ssrc", 3825483318),
            ("LocalAddr: SSRC=-1640316609", "local_ssrc", 2**32 - 1640316609),
            ("LocalAddr: SSRC=9999999999", "local_ssrc", None),
            ("LocalAddr: SSRC=12345678", "local_ssrc", None),  # hexadecimal or decimal?
            ("LocalAddr: SSRC=1234", "local_ssrc", None),
            ("CallID: a b", "call_id", None),
            ("CallID: " + 256 * "x", "call_id", None),
        ],
    )
    def test_values_are_read_strictly_and_in_their_range(
        self, line: str, field: str, value: object
    ) -> None:
        assert getattr(heard(line), field) == value

    @pytest.mark.parametrize(
        ("start", "stop", "seconds"),
        [
            ("2024-02-28T23:59:59Z", "2024-03-01T00:00:01Z", 86402.0),
            ("2024-02-28T23:59:59.25", "2024-02-29T00:00:00.5", 1.25),
            ("2024-02-28T23:59:59Z", "2024-02-28T23:59:58Z", None),
            ("2024-02-28T23:59:59Z", "2024-03-28T23:59:59Z", None),
            ("2023-02-29T00:00:00Z", "2023-03-01T00:00:00Z", None),
            ("2024-01-01T00:00:00Z", "soon", None),
            ("1712024.13.59.42", "1712024.13.59.46", None),
        ],
    )
    def test_seconds_are_from_the_start_to_the_stop(
        self, start: str, stop: str, seconds: float | None
    ) -> None:
        assert heard(f"Timestamps:START={start} STOP={stop}").seconds == seconds

    @pytest.mark.parametrize(
        ("local", "remote", "origin", "by"),
        [
            ("<sip:a@x>", "<sip:b@x>", "sip:A@x", "caller"),
            ('"A" <sip:a@x>', "sip:b@x", "<sip:b@x>", "callee"),
            ("<sip:a@x>", "<sip:b@x>", "<sip:c@x>", None),
            ("<sip:a@x>", "<sip:a@x>", "<sip:a@x>", None),
            ("", "<sip:a@x>", "", None),
        ],
    )
    def test_who_began_the_session_is_only_claimed_where_it_is_clear(
        self, local: str, remote: str, origin: str, by: str | None
    ) -> None:
        account = heard(f"LocalID: {local}", f"RemoteID: {remote}", f"OrigID: {origin}")
        assert account.claimed_by == by
        assert account.heard_by is None

    @pytest.mark.parametrize(
        ("body", "why"),
        [
            (b"", "not-quality"),
            (b"v=0\r\no=- 1 1 IN IP4 192.0.2.1\r\n", "not-quality"),
            (b"VQSessionReport: CallTerm\nNLR=1\nVQSessionReport: CallTerm\n", "several"),
            (b"\n" * quality.MAX_LINES, "lines"),
            (b"x" * (quality.MAX_VQ + 1), "size"),
        ],
    )
    def test_what_is_no_such_body_is_refused(self, body: bytes, why: str) -> None:
        with pytest.raises(QualityError) as caught:
            parse_vq(body)
        assert caught.value.why == why


class TestRtpStat:
    def test_a_fritzbox_counts_both_ways_and_its_pair_of_jitters_has_no_known_unit(self) -> None:
        account = parse_rtp_stat(
            b"CS=123;PS=131918;ES=132131;OS=21106880;SP=0/0;SO=0;QS=-;PR=132118;ER=132131;"
            b"OR=21138880;CR=0;SR=0;QR=-;PL=22,33;BL=0;LS=0;RB=0/0;SB=-/-;EN=PCMA;DE=PCMA;JI=23,111;"
            b"DL=34,25,70;IP=192.0.2.185:16000,198.51.100.185:17000"
        )
        assert account == SessionQuality(
            "rtp_stat",
            local_ip="192.0.2.185",
            local_port=16000,
            remote_ip="198.51.100.185",
            remote_port=17000,
            codec="PCMA",
            packets_received=132118,
            packets_lost=22,
            loss_percent=100 * 22 / 132140,
            packets_sent=131918,
        )

    @pytest.mark.parametrize(
        ("header", "expected"),
        [
            (  # Cisco, Linksys: commas
                "PS=0,OS=0,PR=5429,OR=955504,PL=0,JI=3,LA=0,DU=108,EN=G711u,DE=G711u",
                SessionQuality(
                    "rtp_stat",
                    codec="G711u",
                    packets_received=5429,
                    packets_lost=0,
                    loss_percent=0.0,
                    jitter_ms=3.0,
                    seconds=108.0,
                    packets_sent=0,
                ),
            ),
            (  # AudioCodes: an empty field
                "PS=207;OS=49680;;PR=314;OR=50240;PL=0;JI=600;LA=40;",
                SessionQuality(
                    "rtp_stat",
                    packets_received=314,
                    packets_lost=0,
                    loss_percent=0.0,
                    jitter_ms=600.0,
                    packets_sent=207,
                ),
            ),
            (  # Obihai, Poly
                "PS=1234,OS=34560,PR=1236,OR=24720,JI=1,DU=1230,PL=0,EN=G711U,DE=G711U,MOS=4.0",
                SessionQuality(
                    "rtp_stat",
                    codec="G711U",
                    packets_received=1236,
                    packets_lost=0,
                    loss_percent=0.0,
                    jitter_ms=1.0,
                    seconds=1230.0,
                    packets_sent=1234,
                    mos=4.0,
                ),
            ),
            (  # baresip: its jitter is in timestamp units
                "EX=BareSip;CD=5;PR=250;PS=251;PL=3,0;PD=1,0;JI=16.0,24.0;IP=192.0.2.1:4000,[::2]:4002",
                SessionQuality(
                    "rtp_stat",
                    local_ip="192.0.2.1",
                    local_port=4000,
                    remote_ip="::2",
                    remote_port=4002,
                    packets_received=250,
                    packets_lost=3,
                    loss_percent=100 * 3 / 253,
                    seconds=5.0,
                    packets_sent=251,
                ),
            ),
            (  # a comma where a semicolon should be
                "PR=0;ER=0;PL=0;RB=0/0;DE=PCMU,G729;EN=PCMU;JI=0;DL=86,84,90,IP=192.0.2.1:7078",
                SessionQuality(
                    "rtp_stat",
                    local_ip="192.0.2.1",
                    local_port=7078,
                    codec="PCMU",
                    packets_received=0,
                    packets_lost=0,
                    jitter_ms=0.0,
                ),
            ),
            ("junk, ps = 7 ;PR", SessionQuality("rtp_stat", packets_sent=7)),
            ("PS=1;JI=7;;", SessionQuality("rtp_stat", packets_sent=1, jitter_ms=7.0)),
        ],
        ids=["cisco", "audiocodes", "poly", "baresip", "old-avm", "odd", "empty-fields"],
    )
    def test_the_dialects_come_to_one_form(self, header: str, expected: SessionQuality) -> None:
        assert parse_rtp_stat(header) == expected

    @pytest.mark.parametrize(
        ("header", "why"),
        [
            ("", "not-quality"),
            ("JI=3,LA=40", "not-quality"),
            ("PR=-1;PL=x;PS=1 2", "not-quality"),
            ("PR=1;" + "A=1;" * quality.MAX_FIELDS, "fields"),
            ("PR=1;" + "x" * quality.MAX_HEADER, "size"),
        ],
    )
    def test_what_counts_nothing_is_refused(self, header: str, why: str) -> None:
        with pytest.raises(QualityError) as caught:
            parse_rtp_stat(header)
        assert caught.value.why == why


def bencoded(value: object) -> bytes:
    if isinstance(value, dict):
        return b"d" + b"".join(bencoded(k) + bencoded(v) for k, v in value.items()) + b"e"
    if isinstance(value, list):
        return b"l" + b"".join(map(bencoded, value)) + b"e"
    if isinstance(value, int):
        return b"i%de" % value
    data = str(value).encode()
    return b"%d:%s" % (len(data), data)


def ng(said: dict[str, Any]) -> tuple[SessionQuality, ...]:
    told = parse_ng(b"5323_1 " + bencoded(said))
    assert told == parse_ng(b"5323_1 " + json.dumps(said).encode())
    return told


def stream(ssrc: int | None, packets: int, **more: Any) -> dict[str, Any]:
    found = {"flags": ["RTP"], "stats": {"packets": packets}, **more}
    return found if ssrc is None else found | {"SSRC": ssrc}


def mos(value: int) -> dict[str, Any]:
    return {"average MOS": {"MOS": value, "samples": 2}}


class TestNg:
    def test_loss_is_told_of_the_side_that_heard_it(self) -> None:
        caller, callee = parse_ng((RTPENGINE / "query_loss5.bencode").read_bytes())
        assert caller == SessionQuality(
            "rtpengine",
            heard_by="caller",
            local_ip="127.77.31.60",
            local_port=20000,
            local_ssrc=0x11111111,
            packets_lost=0,
            loss_percent=0.0,
            jitter_ms=1.0,
            rtt_ms=40.451,
            mos_cq=4.3,
            mos_min=4.3,
            local_tag="ta",
            packets_sent=350,
            samples=3,
        )
        assert callee == SessionQuality(
            "rtpengine",
            heard_by="callee",
            local_ip="127.77.31.61",
            local_port=20002,
            local_ssrc=0x22222222,
            packets_lost=14,
            loss_percent=5.0,
            jitter_ms=5.0,
            rtt_ms=40.378,
            mos_cq=3.9,
            mos_min=3.9,
            local_tag="tb",
            packets_sent=350,
            samples=4,
        )

    def test_a_client_that_speaks_json_gets_the_same(self) -> None:
        in_json = parse_ng((RTPENGINE / "query_loss5.json").read_bytes())
        assert in_json == parse_ng((RTPENGINE / "query_loss5.bencode").read_bytes())

    def test_a_side_that_sends_nothing_shows_by_its_packets(self) -> None:
        told = parse_ng((RTPENGINE / "query_one_way.bencode").read_bytes())
        assert [(a.heard_by, a.packets_sent, a.mos_cq, a.local_ssrc) for a in told] == [
            ("caller", 350, None, 0x11111111),
            ("callee", 0, None, None),
        ]

    def test_captured_tables_have_the_impairment_under_the_reporter(self) -> None:
        truth = json.loads((CORPUS / "kamailio" / "r_rtpengine_rtcp.json").read_text())
        seen = {}
        for call in truth["calls"]:
            told = ng({"result": "ok", "SSRC": call["rtpengine_delete_SSRC"], "tags": {}})
            by_ssrc = {account.local_ssrc: account for account in told}
            if told:
                heard = [by_ssrc[call["ssrc"][name]] for name in "AB"]
                seen[call["case"]] = [(a.mos_cq, a.mos_min, a.packets_lost) for a in heard]
            else:
                assert call["rtpengine_delete_SSRC"] == {}
        assert seen["clean"] == [(4.4, 4.4, 0), (4.4, 4.4, 0)]
        assert seen["loss5_AtoB"] == [(4.4, 4.4, 0), (4.0, 3.6, 14)]
        caller, callee = seen["loss20_jitter_AtoB"]
        assert caller[:2] == (4.4, 4.4)
        assert callee[:2] == (2.2, 1.7)

    def test_newer_versions_list_the_ssrcs_of_a_stream_or_of_a_media(self) -> None:
        for holder in ("stream", "media"):
            listed = {"ingress SSRCs": [{"SSRC": 1}, {"SSRC": 2}, {"SSRC": 2}, {}, 7]}
            only = stream(None, 9, **(listed if holder == "stream" else {}))
            media = {"type": "audio", "streams": [only], **(listed if holder == "media" else {})}
            party = {"tag": "a", "label": "left", "medias": [media]}
            table = {"1": mos(44), "2": mos(20), "3": mos(30)}
            told = ng({"SSRC": table, "tags": {"a": party}})
            assert [(a.local_ssrc, a.mos_cq, a.packets_sent, a.local_tag) for a in told] == [
                (1, 4.4, 9, "a"),
                (2, 2.0, None, "a"),
                (3, 3.0, None, None),
            ]
            assert {a.heard_by for a in told} == {None}

    def test_only_streams_of_audio_count(self) -> None:
        medias = [
            {"type": "video", "streams": [stream(1, 1)]},
            {"type": "audio", "streams": [stream(2, 2) | {"flags": ["RTCP"]}]},
            {"type": "audio", "streams": [stream(3, 3) | {"flags": "RTP"}]},
            {"type": "audio", "streams": [stream(4, 4), "x"]},
            {"type": "audio", "streams": "x"},
            "x",
        ]
        told = ng({"SSRC": {}, "tags": {"a": {"tag": "a b", "medias": medias}, "b": "x"}})
        assert [(a.local_ssrc, a.packets_sent, a.local_tag) for a in told] == [(4, 4, None)]

    @pytest.mark.parametrize(
        ("entry", "field", "value"),
        [
            ({"average MOS": {"MOS": 0}}, "mos_cq", None),
            ({"average MOS": {"MOS": 51}}, "mos_cq", None),
            ({"average MOS": {"MOS": 10**19}}, "mos_cq", None),
            ({"average MOS": {"MOS": [44]}}, "mos_cq", None),
            ({"average MOS": {"round-trip time": 0}}, "rtt_ms", None),
            ({"average MOS": {"round-trip time": 10**7}}, "rtt_ms", None),
            ({"average MOS": {"jitter": -1}}, "jitter_ms", None),
            ({"average MOS": {"packet loss": 101}}, "loss_percent", None),
            ({"average MOS": {}, "cumulative loss": 16777213}, "packets_lost", None),
            ({"average MOS": {}, "cumulative loss": -1}, "packets_lost", None),
            ({"average MOS": "x", "lowest MOS": {"MOS": 17}}, "mos_min", 1.7),
        ],
    )
    def test_figures_out_of_range_are_unknown(
        self, entry: dict[str, Any], field: str, value: object
    ) -> None:
        (account,) = ng({"SSRC": {"7": entry}})
        assert getattr(account, field) == value

    def test_true_is_no_figure(self) -> None:
        (account,) = parse_ng(
            b'1 {"SSRC": {"7": {"average MOS": {"jitter": true, "samples": true}}}}'
        )
        assert (account.jitter_ms, account.samples) == (None, None)

    def test_commands_and_other_answers_give_nothing(self) -> None:
        assert parse_ng(b"1_2 d7:command4:pinge") == ()
        assert parse_ng(b"1_2 d6:result4:ponge") == ()
        assert ng({"command": "query", "call-id": "SSRC"}) == ()
        assert ng({"SSRC": {"x": mos(4), "99999999999": mos(4), "1": {}, "2": 3}, "tags": 4}) == ()

    @pytest.mark.parametrize(
        ("payload", "why"),
        [
            (b"", "not-quality"),
            (b"hello world", "not-quality"),
            (b"x" * 129 + b" d4:SSRCdee", "not-quality"),
            (b'1 {"SSRC": ', "json"),
            (b'1 {"SSRC": "\xff"}', "json"),
            (b'1 {"SSRC":' + b"[" * 100_000, "json"),
            (b"d4:SSRC", "bencode"),
            (b"d4:SSRCdee ", None),
            (b"d4:SSRCdeex", "bencode"),
            (b"d4:SSRCe", "bencode"),
            (b"di1e4:SSRCe", "bencode"),
            (b"d4:SSRC999999:e", "bencode"),
            (b"d4:SSRC-1:e", "bencode"),
            (b"d4:SSRCi+1ee", "bencode"),
            (b"d4:SSRCi1_0ee", "bencode"),
            (b"d4:SSRCi" + b"1" * 21 + b"ee", "bencode"),
            (b"d4:SSRC" + b"l" * 20_000 + b"e" * 20_001, "bencode"),
            (b"d4:SSRCl" + b"le" * (quality.MAX_ITEMS // 2) + b"ee", "bencode"),
            (b"1 " + b"d4:SSRC" + b"0" * quality.MAX_NG, "size"),
        ],
    )
    def test_hostile_bytes_are_refused_at_once(self, payload: bytes, why: str | None) -> None:
        if why is None:
            assert parse_ng(payload) == ()
            return
        with pytest.raises(QualityError) as caught:
            parse_ng(payload)
        assert caught.value.why == why

    def test_more_parties_than_a_call_has_are_refused(self) -> None:
        many = {str(n): mos(44) for n in range(quality.MAX_PARTIES + 1)}
        empty: dict[str, Any] = {}
        for table, tags in ((many, empty), (empty, dict.fromkeys(many, empty))):
            with pytest.raises(QualityError, match="parties"):
                ng({"SSRC": table, "tags": tags})

    def test_streams_without_number_in_one_party_are_refused(self) -> None:
        streams = [stream(n, 1) for n in range(quality.MAX_PARTIES + 1)]
        party = {"medias": [{"type": "audio", "streams": streams}]}
        with pytest.raises(QualityError, match="parties"):
            ng({"SSRC": {}, "tags": {"a": party}})


FIGURES = {
    "mos_average": "3.9",
    "mos_min": "3.6",
    "packetloss": "5",
    "jitter": "24",
    "roundtrip": "40378",
    "samples": "4",
}
HEARD_BY_CALLEE = SessionQuality(
    "log",
    heard_by="callee",
    loss_percent=5.0,
    jitter_ms=24.0,
    rtt_ms=40.378,
    mos_cq=3.9,
    mos_min=3.6,
    samples=4,
)


class TestLog:
    def test_each_label_is_what_that_side_heard(self) -> None:
        caller = FIGURES | {"mos_average": 4.4, "packetloss": 0}
        said = {"quality": "rtpengine", "caller": caller, "callee": FIGURES}
        first, second = parse_log(json.dumps(said).encode())
        assert (first.heard_by, first.mos_cq, first.loss_percent) == ("caller", 4.4, 0.0)
        assert second == HEARD_BY_CALLEE

    def test_kamailio_s_nulls_are_unknown_with_and_without_quotes(self) -> None:
        figures = json.dumps(FIGURES)
        for null in ('"<null>"', "<null>"):
            nothing = "{" + ", ".join(f'"{key}": {null}' for key in FIGURES) + "}"
            text = f'\n {{"quality": "x", "caller": {nothing}, "callee": {figures}}}'
            assert parse_log(text.encode()) == (HEARD_BY_CALLEE,)
            assert parse_log(text.replace(figures, null).encode()) == ()

    @pytest.mark.parametrize(
        ("payload", "why"),
        [
            (b"", "not-quality"),
            (b"call of alice refused", "not-quality"),
            (b'{"level": "info"}', "not-quality"),
            (b'{"text": "quality"}', "not-quality"),
            (b'{"quality": 5}', "not-quality"),
            (b'{"quality": ', "json"),
            (b'{"quality": "' + b"x" * quality.MAX_LOG, "size"),
        ],
    )
    def test_other_log_lines_are_told_apart(self, payload: bytes, why: str) -> None:
        with pytest.raises(QualityError) as caught:
            parse_log(payload)
        assert caught.value.why == why


PARSERS = (parse_vq, parse_rtp_stat, parse_ng, parse_log)
SAMPLES = (
    RFC_6035,
    b"PS=0,OS=0,PR=5429,OR=955504,PL=0,JI=3,LA=0,DU=108,IP=192.0.2.1:1,192.0.2.2:2",
    (RTPENGINE / "query_loss5.bencode").read_bytes(),
    (RTPENGINE / "query_loss5.json").read_bytes(),
    b'{"quality": "x", "callee": ' + json.dumps(FIGURES).encode() + b"}",
)
RANGES = {
    "loss_percent": (0, 100),
    "discard_percent": (0, 100),
    "jitter_ms": (0, 10_000),
    "rtt_ms": (0, 10_000),
    "mos_lq": (1, 5),
    "mos_cq": (1, 5),
    "mos_min": (1, 5),
    "mos": (1, 5),
    "r": (0, 120),
    "r_lq": (0, 120),
}


def checked(parser: Any, payload: bytes) -> None:
    """Whatever the bytes are: accounts with figures in their ranges and plain words, or the one error."""
    told: Any = ()
    with contextlib.suppress(QualityError):
        told = parser(payload)
    for account in told if isinstance(told, tuple) else (told,):
        for name, (low, high) in RANGES.items():
            value = getattr(account, name)
            assert value is None or low <= value <= high
        for word in (account.call_id, account.codec, account.local_tag):
            assert word is None or (word.isascii() and word.isprintable() and len(word) <= 255)


class TestStrangers:
    @given(st.binary(max_size=400))
    def test_no_bytes_raise_anything_else(self, payload: bytes) -> None:
        for parser in PARSERS:
            checked(parser, payload)
        checked(parse_ng, b"1 d4:SSRC" + payload)
        checked(parse_log, b'{"quality": "x", "caller": ' + payload)

    @given(st.sampled_from(SAMPLES), st.data())
    def test_no_changed_report_raises_anything_else(
        self, sample: bytes, data: st.DataObject
    ) -> None:
        changed = bytearray(sample)
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.integers(0, len(changed) - 1))
            changed[at : at + data.draw(st.integers(0, 3))] = data.draw(
                st.sampled_from(
                    [b"", b"\xff", b"e", b"d", b"9", b"=", b":", b"-", b"1e999", b"<null>"]
                )
            )
        for parser in PARSERS:
            checked(parser, bytes(changed))

    @given(st.lists(st.sampled_from(RFC_6035.splitlines(keepends=True)[1:]), max_size=40))
    def test_lines_in_any_order_are_read(self, lines: list[bytes]) -> None:
        checked(parse_vq, RFC_6035.splitlines(keepends=True)[0] + b"".join(lines))

    def test_groups_of_one_report_may_come_in_either_order(self) -> None:
        head, _, tail = RFC_6035.partition(b"LocalMetrics:")
        local, _, rest = tail.partition(b"RemoteMetrics:")
        remote, _, dialog = rest.partition(b"DialogID:")
        swapped = b"RemoteMetrics:" + remote + b"LocalMetrics:" + local
        assert parse_vq(head + swapped + b"DialogID:" + dialog) == parse_vq(RFC_6035)

    def test_deep_json_ends_in_the_error_of_all_parsers_that_read_it(self) -> None:
        deep = b'{"quality": "SSRC", "caller": ' + b'{"a":' * 2000
        for parser, head in itertools.product((parse_ng, parse_log), (b"", b" ")):
            checked(parser, head + deep)
