"""Minutes of figures to alarms: what is surely not normal for this hour of the week."""

from collections.abc import Mapping, Sequence
from typing import Final, Literal

import msgspec

from sipsidecar.signals.alarms import CATEGORIES, PAGE, TREND, WARN, Alarm, Share
from sipsidecar.signals.baseline import Baseline
from sipsidecar.signals.minutes import CodeMinute, KpiMinute


class Slo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One objective: a share of good setups that is promised over 30 days."""

    name: str
    measure: Literal["asr", "ner"] = "ner"
    objective_percent: float
    scope: str = "all"
    """`all`, or pairs such as `trunk=acme,direction=in`."""


class DetectorError(ValueError):
    """Settings of detectors that cannot be; the message is one line that says which and why."""


def check_slos(slos: Sequence[Slo]) -> None:
    """Find what is wrong with objectives; DetectorError says which."""


SEVERITY: Final = {**dict.fromkeys(CATEGORIES, TREND), "4xx": WARN, "5xx": PAGE, "6xx": PAGE}
"""What is not configured otherwise."""


class DetectorSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What detectors are told by the configuration."""

    method: Literal["binomial", "three_sigma"] = "binomial"
    severities: Mapping[str, str] = msgspec.field(default_factory=lambda: SEVERITY)
    inbound: tuple[str, ...] = ("inbound",)
    """Directions whose ASR and NER have a fixed threshold."""
    answer_percent: float = 90.0
    """That threshold."""
    slos: tuple[Slo, ...] = ()
    arm_hours: float = 24.0
    """Data that a baseline needs before it is used; until then the fleet's own, of all calls, is."""


class Detectors:
    """Every detector over every series, fed one closed minute after the other."""

    def __init__(self, settings: DetectorSettings, baseline: Baseline) -> None:
        raise NotImplementedError

    def receive_minute(
        self, minute_at: int, kpis: Sequence[KpiMinute], codes: Sequence[CodeMinute]
    ) -> list[Alarm]:
        """All rows of one minute that is over: alarms that hold or end. A minute without any calls is
        fed, too; one in which the sidecar was not there is not: no data is not zero."""
        raise NotImplementedError

    def shares(self, alarm: Alarm) -> list[Share]:
        """How calls and failures of an alarm's category were divided among cohorts in its time."""
        raise NotImplementedError

    def exclude(self, alarm_scope: tuple[tuple[str, str], ...], since: int, until: int) -> None:
        """Let minutes of an incident not become normal: what they taught is taken back."""
        raise NotImplementedError
