import json
from typing import Any

import pytest

from running import CORPUS
from sipsidecar.calls.emodel import CODECS
from terminal import Run, on_terminal

VECTORS = json.loads((CORPUS / "vectors/emodel.json").read_text())
OPTIONS = {
    "codec": "codec", "loss_pct": "loss", "burst_r": "burst", "ta_ms": "delay",
    "net_owd_ms": "network-delay", "jitter_ms": "jitter", "ptime_ms": "ptime", "id_mode": "id-mode",
}  # fmt: skip

LATER = "200 ms at most; what comes later than that is lost"


def rated(run: Run, *arguments: object) -> dict[str, Any]:
    said = run("mos", *map(str, arguments), "--json")
    assert (said.code, said.err) == (0, "")
    (row,) = said.rows
    return row


def test_every_vector_is_answered_as_published(run: Run) -> None:
    for vector in VECTORS["vectors"]:
        arguments = []
        for key, option in OPTIONS.items():
            if vector[key] is not None and (key, vector["jitter_ms"]) != ("ptime_ms", None):
                arguments += [f"--{option}", vector[key]]
        said = rated(run, *arguments)
        assert said["r"] == pytest.approx(vector["R"], abs=1e-3), arguments
        assert said["mos_cq"] == pytest.approx(vector["mos_cq"], abs=1e-4), arguments
        assert said["mos_lq"] == pytest.approx(vector["mos_lq"], abs=1e-4), arguments
        assert (said["scale"], said["grade"]) == (vector["scale"], vector["grade"])
        assert said["delay_ms"] == pytest.approx(vector["Ta"])
        assert said["buffer_ms"] == vector["jb_ms"]
        assert said["loss_percent"] == pytest.approx(vector["Ppl"], abs=1e-4)


def test_the_json_begins_with_what_was_asked_for(run: Run) -> None:
    said = rated(run, "--codec", "G729A-VAD", "--loss", 2, "--burst", 1, "--delay", 150)
    assert list(said)[:6] == ["r", "mos_cq", "mos_lq", "scale", "grade", "assumptions"]
    assert said["r"] == 74.0365
    assert said["assumptions"] == ["No echo comes back: the delay counts by G.107's Idd alone."]


def test_people_get_rounded_figures_and_what_was_assumed(run: Run) -> None:
    said = run("mos", "--codec", "amr-wb", "--loss", "2", "--network-delay", "40", "--jitter", "30")
    assert said.code == 0
    assert said.out.splitlines() == [
        "R       87.2 of 129 (WB scale)",
        "MOS-CQ  3.48",
        "MOS-LQ  3.54",
        "codec   AMRWB-12.65",
        "grade   C: estimated figures",
        "assumed",
        "  The name leaves the codec's mode open: AMRWB-12.65 is taken, grade C.",
        f"  AMRWB-12.65 has published figures but for a borrowed one: {CODECS['AMRWB-12.65'].note}.",
        "  A packet holds 20 ms.",
        f"  The receiver's buffer adapts to the jitter: 120 ms deep, {LATER} (0.127 %).",
        "  Losses are spread at random (burst ratio 1).",
        "  No echo comes back: the delay counts by G.107's Idd alone.",
    ]


def test_people_are_told_that_an_unknown_delay_leaves_mos_cq_unknown(run: Run) -> None:
    *_, assumed, sentence = run("mos", "--codec", "G729A-VAD").out.splitlines()
    assert (assumed, sentence[:23]) == ("assumed", "  The delay is unknown:")
    assert "\nMOS-CQ  unknown, as the delay is\n" in run("mos").out


def test_without_a_delay_only_listening_is_rated(run: Run) -> None:
    said = rated(run, "--codec", "G711", "--loss", 1)
    assert said["mos_cq"] is None
    assert said["delay_ms"] is None
    assert said["r"] == said["r_lq"] == 89.5602
    assert (
        "The delay is unknown: R and MOS are for listening, without its part."
        in (said["assumptions"])
    )


def test_jitter_alone_loses_what_is_late_and_leaves_the_delay_unknown(run: Run) -> None:
    said = rated(run, "--jitter", 100)
    assert said["mos_cq"] is None
    assert said["late_percent"] == said["loss_percent"] == 13.5335
    assert said["buffer_ms"] == 200


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "No codec is named: G711."),
        (["--codec", "PCMU"], "The receiver conceals losses (PLC)."),
        (["--codec", "G729"], "G729 has published figures but for a borrowed one: without VAD;"),
        (["--codec", "opus"], "OPUS-FB has estimated figures:"),
        (["--codec", "unknown"], "unknown has estimated figures:"),
        (["--codec", "EVS", "--narrowband-only"], "EVS-13.2-NB is taken, grade C"),
        (["--codec", "EVS-32", "--narrowband-only"], "EVS-32-NB has estimated figures: EVS-32 on"),
        (["--loss", "100"], "All is lost: that is no media at all"),
        (["--loss", "3"], "Losses are spread at random (burst ratio 1)."),
        (["--loss", "3", "--burst", "0.5"], "A burst ratio under 1 counts as 1."),
        (["--codec", "GSM", "--loss", "3", "--burst", "2"], "meant for codecs from Bpl 16 on"),
        (["--codec", "opus", "--loss", "3", "--burst", "2"], "the FB formula has none"),
        (["--delay", "400", "--id-mode", "linear"], "the linear fit to G.107 with its default echo"),
        (["--delay", "400", "--id-mode", "linear"], "far too harsh over 350 ms"),
        (["--network-delay", "40"], "No jitter is given: there is none."),
        (["--network-delay", "40"], "A packet holds 20 ms."),
        (["--codec", "G723", "--jitter", "1"], "A packet holds 30 ms, one frame of G723.1-6.3."),
    ],
)  # fmt: skip
def test_each_assumption_is_a_sentence(run: Run, arguments: list[str], sentence: str) -> None:
    assert any(sentence in each for each in rated(run, *arguments)["assumptions"])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--loss", "0"], "Losses"),
        (["--loss", "3", "--burst", "2"], "ratio"),
        (["--codec", "G729A-VAD"], "PLC"),
        (["--no-plc"], "PLC"),
        (["--delay", "350", "--id-mode", "linear"], "harsh"),
        (["--network-delay", "40", "--jitter", "0", "--ptime", "20"], "given"),
        (["--network-delay", "40", "--jitter", "0", "--ptime", "20"], "packet holds"),
    ],
)
def test_what_was_said_is_not_an_assumption(run: Run, arguments: list[str], sentence: str) -> None:
    assert not any(sentence in each for each in rated(run, *arguments)["assumptions"])


def test_losses_that_are_not_concealed_cost_more(run: Run) -> None:
    concealed, bare = (rated(run, "--loss", 1, *more) for more in ([], ["--no-plc"]))
    assert (concealed["codec"], bare["codec"]) == ("G711", "G711-noPLC")
    assert bare["mos_lq"] < concealed["mos_lq"]


def test_a_wideband_codec_can_be_put_on_the_narrowband_scale(run: Run) -> None:
    said = rated(run, "--codec", "G722", "--narrowband-only")
    assert (said["codec"], said["scale"], said["r"]) == ("G722-NB", "NB", 93.2)


def test_the_list_has_every_codec(run: Run) -> None:
    rows = run("mos", "--list", "--json").rows
    assert [row["codec"] for row in rows] == list(CODECS)
    listed = {row["codec"]: row for row in rows}
    for name, row in VECTORS["codecs"].items():
        ours = listed[name]
        assert [
            ours[key] for key in ("scale", "ie", "bpl", "alg_delay_ms", "clock_rate", "grade")
        ] == [row[key] for key in ("scale", "Ie", "Bpl", "alg_delay_ms", "rtp_clock", "grade")]
    heading, *lines = run("mos", "--list").out.splitlines()
    assert heading.split()[:3] == ["codec", "scale", "ie"]
    assert [line.split()[0] for line in lines] == list(CODECS)


def test_on_a_terminal_the_list_fits() -> None:
    lines = on_terminal(["mos", "--list"], 90).splitlines()
    assert len(lines) == len(CODECS) + 1
    assert max(map(len, lines)) <= 90


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--loss", "101"], "--loss 101: expected a percentage from 0 to 100"),
        (["--loss", "-1"], "--loss -1: expected a percentage from 0 to 100"),
        (["--loss", "nan"], "--loss nan: expected"),
        (["--loss", "1e1"], "--loss 1e1: expected"),
        (["--loss", "1_0"], "--loss 1_0: expected"),
        (["--loss", "\u0663"], "expected a percentage"),
        (["--loss", ""], "expected a percentage"),
        (["--loss", "5%"], "--loss 5%: expected a percentage"),
        (["--burst", "inf"], "--burst inf: expected a ratio from 0 to 1000"),
        (["--delay", "-0"], "--delay -0: expected a time in ms"),
        (["--delay", "99999999"], "--delay 99999999: expected a time in ms from 0 to 60000"),
        (["--jitter", "x"], "--jitter x: expected a time in ms"),
        (["--network-delay", "x"], "--network-delay x: expected a time in ms"),
        (["--ptime", "0"], "--ptime 0: expected a time in ms from 1 to 1000"),
        (["--delay", "1", "--network-delay", "1"], "instead of it, not with it"),
        (["--delay", "1", "--jitter", "0"], "instead of it, not with it"),
        (["--delay", "1", "--ptime", "20"], "instead of it, not with it"),
        (["--id-mode", "cole"], "invalid choice: 'cole'"),
        (["--codec", "G.711"], "G.711: no figures are known of this codec; `sipsidecar mos --list`"),
        (["--codec", "L16"], "L16: no figures are known"),
        (["--codec", "\x1b[31m"], "\\x1b[31m: no figures are known"),
        (["--codec", ""], "no figures are known"),
        (["--dsn", "postgresql://x"], "--dsn"),
        (["2"], "unrecognized arguments: 2"),
    ],
)  # fmt: skip
def test_what_cannot_be_rated_is_refused_in_one_line(
    run: Run, arguments: list[str], says: str
) -> None:
    assert says in run("mos", *arguments).refusal


def test_it_needs_no_settings(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIPSIDECAR_HEP__LISTEN", "nonsense")
    assert rated(run)["mos_lq"] == 4.4093
    assert "--config" not in run("mos", "--help").out
