"""The choices by which media is rated and judged: defaults here, values from the configuration."""

import msgspec


class Thresholds(msgspec.Struct, frozen=True):
    """From where on media is bad, and what the E-model is to assume."""

    low_mos: float = 3.5
    high_loss_percent: float = 1.0
    high_jitter_ms: float = 15.0
    """A buffer of four times this, as the model takes it, costs 60 ms of delay."""
    dead_air_seconds: float = 2.0
    one_way_seconds: float = 5.0
    min_seconds: float = 10.0
    """Media shorter than this is not rated."""
    id_mode: str = "idd"
    """idd or linear."""
    narrowband_only: bool = False
    plc: bool = True
    network_delay_ms: float | None = None
    """One way, where none was measured."""
