from sipsidecar.app import thresholds_of
from sipsidecar.calls.thresholds import Thresholds
from sipsidecar.config import Config, Quality


def test_what_is_not_configured_is_as_the_configuration_says_by_default() -> None:
    assert thresholds_of(Config()) == Thresholds()


def test_each_choice_is_taken_from_the_configuration() -> None:
    config = Config(
        quality=Quality(
            low_mos=3.0,
            high_loss_percent=2.0,
            high_jitter_ms=30.0,
            dead_air_seconds=1.0,
            one_way_seconds=7.0,
            min_seconds=4.0,
            id_mode="linear",
            narrowband_only=True,
            plc=False,
            network_delay_ms=40.0,
        )
    )
    assert thresholds_of(config) == Thresholds(
        3.0, 2.0, 30.0, 1.0, 7.0, 4.0, "linear", True, False, 40.0
    )


def test_a_network_delay_of_nothing_is_unknown() -> None:
    assert thresholds_of(Config()).network_delay_ms is None
