"""Turns loss, delay and codec into R and MOS at the terminal: the E-model as a calculator."""

import argparse
import re
import shutil
import sys
from typing import Any

from sipsidecar.calls.emodel import (
    CODEC_ASSUMED,
    CODECS,
    MODE_ASSUMED,
    R_MAX,
    CodecFigures,
    codec_of,
    jitter_buffer,
    mouth_to_ear,
    rate,
    with_late,
)
from sipsidecar.cli.words import CliError, json_line
from sipsidecar.tables import table

DEFAULT_CODEC = "G711"
DEFAULT_PTIME_MS = 20.0
LEAST_BURST_BPL = 16.0
"""G.113 recommends burst ratios over 1 for codecs from this Bpl on."""
LINEAR_UNTIL_MS = 350.0
COLUMNS = ("codec", "scale", "ie", "bpl", "alg_delay_ms", "clock_rate", "grade", "note")
GRADES = {
    "A": "published figures",
    "B": "published figures but for a borrowed one",
    "C": "estimated figures",
}


def mos(arguments: argparse.Namespace) -> int:
    """Rate one stream, or list the codecs."""
    if arguments.list:
        _list(as_json=arguments.json)
        return 0
    said = _rated(arguments)
    if arguments.json:
        print(json_line(said))
    else:
        _show(said)
    return 0


def _rated(arguments: argparse.Namespace) -> dict[str, Any]:
    codec, assumptions = _codec(arguments)
    loss = _number("--loss", arguments.loss, 0, 100, "percentage") or 0.0
    burst = _number("--burst", arguments.burst, 0, 1000, "ratio")
    delay, buffer, late, more = _delay(arguments, codec)
    assumptions += more
    total = with_late(loss, late)
    rating = rate(codec, total, burst_ratio=burst or 1.0, delay_ms=delay, id_mode=arguments.id_mode)
    assumptions += _of_loss(codec, total, burst)
    if delay is None:
        assumptions.append("The delay is unknown: R and MOS are for listening, without its part.")
    elif arguments.id_mode == "linear":
        assumptions.append("The delay counts by the linear fit to G.107 with its default echo.")
        if delay > LINEAR_UNTIL_MS:
            assumptions.append(f"The linear fit is far too harsh over {LINEAR_UNTIL_MS:.0f} ms.")
    else:
        assumptions.append("No echo comes back: the delay counts by G.107's Idd alone.")
    return {
        "r": round(rating.r, 4),
        "mos_cq": None if rating.mos_cq is None else round(rating.mos_cq, 4),
        "mos_lq": round(rating.mos_lq, 4),
        "scale": rating.scale.upper(),
        "grade": rating.grade,
        "assumptions": assumptions,
        "codec": codec.name,
        "r_lq": round(rating.r_lq, 4),
        "r_max": R_MAX[rating.scale],
        "loss_percent": round(total, 4),
        "late_percent": round(late, 4),
        "burst_ratio": max(burst or 1.0, 1.0),
        "delay_ms": None if delay is None else round(delay, 4),
        "buffer_ms": buffer,
        "id_mode": arguments.id_mode,
    }


def _codec(arguments: argparse.Namespace) -> tuple[CodecFigures, list[str]]:
    """Find the codec's figures, and say what was assumed to find them."""
    assumptions = []
    name = arguments.codec
    if name is None:
        name = DEFAULT_CODEC
        assumptions.append(f"No codec is named: {name}.")
    codec, words = codec_of(
        name, plc=not arguments.no_plc, narrowband_only=arguments.narrowband_only
    )
    if CODEC_ASSUMED in words and name.lower() != "unknown":
        raise CliError(
            f"{name}: no figures are known of this codec; `sipsidecar mos --list` shows those that"
            " are, and --codec unknown rates a codec without any"
        )
    if MODE_ASSUMED in words:
        assumptions.append(
            f"The name leaves the codec's mode open: {codec.name} is taken, grade C."
        )
    if codec.name == "G711":
        assumptions.append("The receiver conceals losses (PLC).")
    grade = CODECS.get(codec.name, codec).grade  # of the figures, whatever the mode
    if grade != "A":
        assumptions.append(f"{codec.name} has {GRADES[grade]}: {codec.note}.")
    return codec, assumptions


def _delay(
    arguments: argparse.Namespace, codec: CodecFigures
) -> tuple[float | None, float | None, float, list[str]]:
    """Work out the delay from mouth to ear, the buffer's depth, percent late, and assumptions."""
    delay = _number("--delay", arguments.delay, 0, 60_000, "time in ms")
    network = _number("--network-delay", arguments.network_delay, 0, 60_000, "time in ms")
    jitter = _number("--jitter", arguments.jitter, 0, 60_000, "time in ms")
    ptime = _number("--ptime", arguments.ptime, 1, 1000, "time in ms")
    if delay is not None:
        if (network, jitter, ptime) != (None, None, None):
            raise CliError(
                "--delay is all of the delay from mouth to ear: give --network-delay, --jitter and"
                " --ptime instead of it, not with it"
            )
        return delay, None, 0.0, []
    if network is None and jitter is None:
        return None, None, 0.0, []
    assumptions = []
    if jitter is None:
        jitter = 0.0
        assumptions.append("No jitter is given: there is none.")
    if ptime is None:
        ptime = DEFAULT_PTIME_MS
        if codec.frame_ms <= ptime:
            assumptions.append(f"A packet holds {ptime:g} ms.")
    if codec.frame_ms > ptime:
        ptime = codec.frame_ms
        assumptions.append(f"A packet holds {ptime:g} ms, one frame of {codec.name}.")
    buffer, late = jitter_buffer(jitter, ptime)
    assumptions.append(
        f"The receiver's buffer adapts to the jitter: {buffer:g} ms deep, 200 ms at most; what comes"
        f" later than that is lost ({late:.3g} %)."
    )
    if network is None:
        return None, buffer, late, assumptions
    return mouth_to_ear(network, ptime, codec, buffer), buffer, late, assumptions


def _of_loss(codec: CodecFigures, loss: float, burst: float | None) -> list[str]:
    if loss == 100.0:
        return ["All is lost: that is no media at all, and no listener's opinion stands behind R."]
    if not loss:
        return []
    if burst is None:
        return ["Losses are spread at random (burst ratio 1)."]
    if burst < 1.0:
        return ["A burst ratio under 1 counts as 1."]
    if burst > 1.0 and codec.scale != "nb":
        return [f"The burst ratio does not count: the {codec.scale.upper()} formula has none."]
    if burst > 1.0 and codec.bpl < LEAST_BURST_BPL:
        least = f"Bpl {LEAST_BURST_BPL:.0f}"
        return [f"Burst ratios over 1 are meant for codecs from {least} on, not {codec.bpl:g}."]
    return []


def _number(
    option: str, text: str | None, lowest: float, highest: float, what: str
) -> float | None:
    """Read an option's value; CliError. Decimal digits only: float() would take nan and 1e9."""
    if text is None:
        return None
    if re.fullmatch(r"[0-9]{1,6}(?:\.[0-9]{1,9})?", text):
        value = float(text)
        if lowest <= value <= highest:
            return value
    raise CliError(f"{option} {text}: expected a {what} from {lowest:g} to {highest:g}")


def _show(said: dict[str, Any]) -> None:
    conversational = said["mos_cq"]
    cq = "unknown, as the delay is" if conversational is None else f"{conversational:.2f}"
    print(f"R       {said['r']:.1f} of {said['r_max']:g} ({said['scale']} scale)")
    print(f"MOS-CQ  {cq}")
    print(f"MOS-LQ  {said['mos_lq']:.2f}")
    print(f"codec   {said['codec']}")
    print(f"grade   {said['grade']}: {GRADES[said['grade']]}")
    print("assumed")
    for sentence in said["assumptions"]:
        print(f"  {sentence}")


def _list(*, as_json: bool) -> None:
    rows = [
        {
            "codec": codec.name,
            "scale": codec.scale.upper(),
            "ie": codec.ie,
            "bpl": codec.bpl,
            "alg_delay_ms": codec.alg_delay_ms,
            "clock_rate": codec.clock_rate,
            "grade": codec.grade,
            "note": codec.note,
        }
        for codec in CODECS.values()
    ]
    if as_json:
        for row in rows:
            print(json_line(row))
        return
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    print(table(rows, COLUMNS, width))
