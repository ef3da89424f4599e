"""Counts of one row of minutes to the ratios, means and percentiles that have names.

Definitions: RFC 6076 (SER 4.6, SEER 4.7, ISA 4.8, SCR 4.9, RRD 4.1, IRA 4.2, failed SRD 4.3.2) and
ITU-T E.425 (ASR, NER, ABR). Setups of which nobody knows how they ended are in no ratio. A challenge
that was left unanswered is an attempt, and no seizure: SER holds it against a trunk, ASR does not.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import fsum
from typing import Final, TypeVar

import msgspec

from sipsidecar.signals.alarms import DIMENSIONS
from sipsidecar.signals.minutes import (
    DELAY_BOUNDS_MS,
    JITTER_BOUNDS_MS,
    LOSS_BOUNDS_PERCENT,
    MOS_BOUNDS,
    RTT_BOUNDS_MS,
    TALK_BOUNDS_SECONDS,
    KpiMinute,
    Minutes,
    Total,
)
from sipsidecar.signals.snapshot import KpiFigures, KpiScope

MAX_SCOPES: Final = 500
"""Values that are shown with figures of their own."""
WINDOW_MINUTES: Final = 5

_K = TypeVar("_K")


class Ratios(msgspec.Struct, frozen=True, kw_only=True):
    """Everything with a name that one row (or several added up) says; None where nothing was counted.

    Shares are in percent. Percentiles are linear inside a bucket; what is over the last bound reads as
    that bound.
    """

    asr_percent: float | None
    """answered / seizures."""
    ner_percent: float | None
    """effective / seizures."""
    ser_percent: float | None
    """answered / (attempts - redirected - unknown)."""
    seer_percent: float | None
    """session_effective / (attempts - redirected - unknown)."""
    isa_percent: float | None
    """ineffective / (attempts - unknown)."""
    scr_percent: float | None
    """completed / (attempts - unknown): of calls that ended in this time and setups that did."""
    abr_percent: float | None
    """answered / (attempts - unknown)."""
    failover_percent: float | None
    """Attempts that another had to follow, of all."""
    acd_seconds: float | None
    """Talk of calls that ended in this time: mean."""
    talk_p50_seconds: float | None
    short_percent: float | None
    """Of the calls whose talk is known."""
    dropped_percent: float | None
    """Of the answered calls that ended, as the next four."""
    one_way_percent: float | None
    no_media_percent: float | None
    dead_air_percent: float | None
    low_mos_percent: float | None
    pdd_ms: float | None
    """Mean."""
    pdd_p50_ms: float | None
    pdd_p95_ms: float | None
    failed_srd_ms: float | None
    failed_srd_p50_ms: float | None
    failed_srd_p95_ms: float | None
    setup_ms: float | None
    setup_p50_ms: float | None
    setup_p95_ms: float | None
    mos_nb: float | None
    """Mean of the calls' worse directions; so are the others."""
    mos_nb_p05: float | None
    """One call in twenty sounded like this or worse."""
    mos_wb: float | None
    mos_wb_p05: float | None
    mos_fb: float | None
    mos_fb_p05: float | None
    loss_percent: float | None
    loss_p95_percent: float | None
    jitter_ms: float | None
    jitter_p95_ms: float | None
    rtt_ms: float | None
    rtt_p95_ms: float | None
    ira_percent: float | None
    """registers_failed / registers."""
    rrd_ms: float | None
    rrd_p50_ms: float | None
    rrd_p95_ms: float | None


def ratios(row: KpiMinute) -> Ratios:
    """Turn the counts of a row into everything that has a name."""
    known = row.attempts - row.unknown
    sessions = known - row.redirected

    def delay(buckets: tuple[int, ...], share: float) -> float | None:
        return percentile(buckets, DELAY_BOUNDS_MS, share)

    def heard(buckets: tuple[int, ...]) -> float | None:
        return percentile(buckets, MOS_BOUNDS, 0.05, low=1.0, high=5.0)

    return Ratios(
        asr_percent=_percent(row.answered, row.seizures),
        ner_percent=_percent(row.effective, row.seizures),
        ser_percent=_percent(row.answered, sessions),
        seer_percent=_percent(row.session_effective, sessions),
        isa_percent=_percent(row.ineffective, known),
        scr_percent=_percent(row.completed, known),
        abr_percent=_percent(row.answered, known),
        failover_percent=_percent(row.failovers, row.attempts),
        acd_seconds=_mean(row.talk_seconds, row.talk_count),
        talk_p50_seconds=percentile(row.talk_buckets, TALK_BOUNDS_SECONDS, 0.5),
        short_percent=_percent(row.short_calls, row.talk_count),
        dropped_percent=_percent(row.dropped, row.ended),
        one_way_percent=_percent(row.one_way, row.ended),
        no_media_percent=_percent(row.no_media, row.ended),
        dead_air_percent=_percent(row.dead_air, row.ended),
        low_mos_percent=_percent(row.low_mos, row.ended),
        pdd_ms=_mean(row.pdd_sum_ms, row.pdd_count),
        pdd_p50_ms=delay(row.pdd_buckets, 0.5),
        pdd_p95_ms=delay(row.pdd_buckets, 0.95),
        failed_srd_ms=_mean(row.failed_srd_sum_ms, row.failed_srd_count),
        failed_srd_p50_ms=delay(row.failed_srd_buckets, 0.5),
        failed_srd_p95_ms=delay(row.failed_srd_buckets, 0.95),
        setup_ms=_mean(row.setup_sum_ms, row.setup_count),
        setup_p50_ms=delay(row.setup_buckets, 0.5),
        setup_p95_ms=delay(row.setup_buckets, 0.95),
        mos_nb=_mean(row.mos_nb_sum, row.mos_nb_count),
        mos_nb_p05=heard(row.mos_nb_buckets),
        mos_wb=_mean(row.mos_wb_sum, row.mos_wb_count),
        mos_wb_p05=heard(row.mos_wb_buckets),
        mos_fb=_mean(row.mos_fb_sum, row.mos_fb_count),
        mos_fb_p05=heard(row.mos_fb_buckets),
        loss_percent=_mean(row.loss_sum_percent, row.loss_count),
        loss_p95_percent=percentile(row.loss_buckets, LOSS_BOUNDS_PERCENT, 0.95),
        jitter_ms=_mean(row.jitter_sum_ms, row.jitter_count),
        jitter_p95_ms=percentile(row.jitter_buckets, JITTER_BOUNDS_MS, 0.95),
        rtt_ms=_mean(row.rtt_sum_ms, row.rtt_count),
        rtt_p95_ms=percentile(row.rtt_buckets, RTT_BOUNDS_MS, 0.95),
        ira_percent=_percent(row.registers_failed, row.registers),
        rrd_ms=_mean(row.rrd_sum_ms, row.rrd_count),
        rrd_p50_ms=delay(row.rrd_buckets, 0.5),
        rrd_p95_ms=delay(row.rrd_buckets, 0.95),
    )


def added(rows: Iterable[KpiMinute]) -> KpiMinute:
    """Turn rows into one of all their counts, with the times and labels of the first.

    ValueError without any row.
    """
    every = list(rows)
    if not every:
        raise ValueError("there is nothing to add up")
    changes: dict[str, object] = {}
    for name in _SUMMED:
        values = [getattr(row, name) for row in every]
        if name.endswith("_buckets"):
            width = max(map(len, values))
            changes[name] = tuple(
                sum(buckets[place] for buckets in values if buckets) for place in range(width)
            )
        else:
            changes[name] = fsum(values) if isinstance(values[0], float) else sum(values)
    return msgspec.structs.replace(every[0], **changes)


_SUMMED: Final = tuple(
    name
    for name in KpiMinute.__struct_fields__
    if name not in {"call_id", "received_at", "minute_at", "source", *DIMENSIONS}
)


def percentile(
    buckets: Sequence[int],
    bounds: Sequence[float],
    share: float,
    low: float = 0.0,
    high: float | None = None,
) -> float | None:
    """Turn counts per bucket into the value that so large a share is not over; None without any.

    Linear inside the bucket. `low` is the least value there can be, `high` the greatest: without it
    what is over the last bound reads as that bound.
    """
    total = sum(buckets)
    if not total:
        return None
    rank, seen = share * total, 0
    edges = (*bounds, bounds[-1] if high is None else high)
    before = low
    for edge, count in zip(edges, buckets, strict=True):
        # The first bound may be the least value itself, as of loss.
        if count and seen + count >= rank:
            return before + (max(edge, before) - before) * max(rank - seen, 0.0) / count
        seen += count
        before = edge
    return before


def kpi_figures(minutes: Minutes, values: Mapping[str, Sequence[str]], at: int) -> KpiFigures:
    """Turn the last minutes into what metrics show: of all calls, and of each configured value.

    `values`: by dimension, the values that the configuration knows; only these name a series.
    """
    *_, made = kpi_slices(minutes, values, at)
    assert made is not None
    return made


def kpi_slices(
    minutes: Minutes, values: Mapping[str, Sequence[str]], at: int, slice_scopes: int = 50
) -> Iterator[KpiFigures | None]:
    """Do as `kpi_figures`, some values at a time, so that others may work in between; they come last."""
    pairs = [("", "")]
    pairs += [(name, value) for name in DIMENSIONS for value in values.get(name, ())]
    totals = {name: minutes.totals(_source(name), name) for name in {name for name, _ in pairs}}
    shown: list[KpiScope] = []
    for name, value in pairs[: MAX_SCOPES + 1]:
        if len(shown) % slice_scopes == 0:
            yield None
        shown.append(_scope(minutes, name, value, at, totals[name].get(value)))
    registers, _ = minutes.live("register", (), at, WINDOW_MINUTES)
    named = ratios(registers)
    total = minutes.totals("register").get("")
    registering = KpiScope(
        scope="registrations",
        value="",
        counts={"registers": registers.registers},
        ratios=_told({"ira": _share(named.ira_percent)}),
        seconds=_told(
            {
                ("rrd", "0.5"): _seconds(named.rrd_p50_ms),
                ("rrd", "0.95"): _seconds(named.rrd_p95_ms),
            }
        ),
        codes=total.codes if total is not None else {},
    )
    yield KpiFigures(
        window_seconds=60.0 * WINDOW_MINUTES,
        scopes=(*shown, registering),
        limits={
            "cohorts": minutes.folded,
            "minutes": minutes.misdated,
            "calls": minutes.forgotten,
            "challenges": minutes.unpaired,
        },
        left_out=max(0, len(pairs) - MAX_SCOPES - 1),
    )


def _source(dimension: str) -> str:
    """Which rows speak for a dimension."""
    return "trunk" if dimension in ("trunk", "carrier") else "call"


def _scope(minutes: Minutes, dimension: str, value: str, at: int, total: Total | None) -> KpiScope:
    """What all calls, or one value of one dimension, did in the last minutes and since the start."""
    scope = ((dimension, value),) if dimension else ()
    row, _ = minutes.live(_source(dimension), scope, at, WINDOW_MINUTES)
    named = ratios(row)
    return KpiScope(
        scope=dimension or "global",
        value=value,
        counts={name: getattr(row, name) for name in _SHOWN_COUNTS},
        ratios=_told({name: _share(getattr(named, field)) for name, field in _SHOWN_RATIOS}),
        seconds=_told(
            {
                (name, quantile): _seconds(getattr(named, field))
                for name, quantile, field in _SHOWN_DELAYS
            }
        ),
        acd_seconds=named.acd_seconds,
        mos=_told({scale: getattr(named, f"mos_{scale}") for scale in ("nb", "wb", "fb")}),
        codes=total.codes if total is not None else {},
        completed=total.completed if total is not None else 0,
    )


_SHOWN_COUNTS: Final = (
    "attempts", "seizures", "answered", "unknown", "own_refusals", "overflowed", "failovers", "ended",
    "dropped", "short_calls", "one_way", "no_media",
)  # fmt: skip
_SHOWN_RATIOS: Final = tuple(
    (name, f"{name}_percent")
    for name in (
        "asr", "ner", "ser", "seer", "isa", "scr", "abr", "failover", "short", "dropped", "one_way",
        "no_media", "dead_air", "low_mos", "loss",
    )
)  # fmt: skip
_SHOWN_DELAYS: Final = tuple(
    (name, quantile, f"{name}_{suffix}_ms")
    for name, quantile, suffix in (
        ("pdd", "0.5", "p50"),
        ("pdd", "0.95", "p95"),
        ("failed_srd", "0.5", "p50"),
        ("failed_srd", "0.95", "p95"),
        ("setup", "0.5", "p50"),
        ("setup", "0.95", "p95"),
        ("jitter", "0.95", "p95"),
        ("rtt", "0.95", "p95"),
    )
)


def _told(values: Mapping[_K, float | None]) -> dict[_K, float]:
    """Without what nobody knows."""
    return {name: value for name, value in values.items() if value is not None}


def _percent(part: int, whole: int) -> float | None:
    return 100 * part / whole if whole else None


def _mean(total: float, count: int) -> float | None:
    return total / count if count else None


def _share(percent: float | None) -> float | None:
    return None if percent is None else percent / 100


def _seconds(ms: float | None) -> float | None:
    return None if ms is None else ms / 1000
