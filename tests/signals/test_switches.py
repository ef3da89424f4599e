from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipsidecar.signals import switches
from sipsidecar.signals.snapshot import GATEWAY_STATES, SWITCH_CAPS, SwitchFigures
from sipsidecar.signals.switches import (
    BEATS,
    EVENTS,
    EXPIRES,
    GRACE,
    MAX_GATEWAYS,
    MAX_TEXT,
    OTHER,
    PRUNE_SECONDS,
    Switches,
    count,
    gateway_state,
    share,
)
from sipsidecar.wire import esl

CORPUS = Path(__file__).parent.parent / "corpus" / "freeswitch"


def of(found: Switches, now: float = 0.0, name: str = "fs1") -> SwitchFigures:
    (one,) = (one for one in found.snapshot(now) if one.name == name)
    return one


@pytest.fixture
def found() -> Switches:
    return Switches(["fs1"])


# ------------------------------------------------------------------------------------------- texts


@given(st.integers(0, 10**15 - 1))
def test_a_count_is_its_digits(number: int) -> None:
    assert count(str(number)) == number


@pytest.mark.parametrize(
    "text",
    [None, "", "-1", "+1", " 1", "1 ", "1\n", "1_0", "1.0", "1e3", "0x1", "\u0661", "9" * 16],
)
def test_what_is_no_plain_number_is_no_count(text: str | None) -> None:
    assert count(text) is None


def test_a_percentage_is_a_share() -> None:
    assert share("88.933333") == pytest.approx(0.88933333)
    assert (share("0"), share("0.000000"), share("100.000000")) == (0, 0, 1)


@pytest.mark.parametrize(
    "text",
    [None, "", "100.1", "-0.5", "nan", "inf", "1e1", "5%", "5,5", ".5", "5.", "5.5\n", "\u0665"],
)
def test_what_is_no_percentage_is_no_share(text: str | None) -> None:
    assert share(text) is None


@given(st.text())
def test_any_text_is_a_count_and_a_share_in_range_or_unknown(text: str) -> None:
    number, part = count(text), share(text)
    assert number is None or 0 <= number < 10**15
    assert part is None or 0 <= part <= 1


# -------------------------------------------------------------------------------------- heartbeats


def test_a_switch_that_never_spoke_has_unknown_figures_not_zeros(found: Switches) -> None:
    one = of(found)
    assert (one.sessions, one.live_legs, one.idle_cpu, one.heartbeat_age_seconds) == (None,) * 4
    assert (one.max_sessions, one.sessions_per_second_limit, one.uptime_seconds) == (None,) * 3


def test_a_heartbeat_is_shown_with_its_age(found: Switches) -> None:
    found.heartbeat(
        "fs1", 100.0, sessions=12, max_sessions=1000, sessions_per_second=3, sps_limit=27,
        idle_cpu=0.5, uptime_ms=90_500, peak=40, since_startup=900,
    )  # fmt: skip
    one = of(found, 107.5)
    assert one.heartbeat_age_seconds == 7.5
    assert (one.sessions, one.max_sessions, one.live_legs) == (12, 1000, 12)
    assert (one.sessions_per_second, one.idle_cpu, one.uptime_seconds) == (3, 0.5, 90.5)
    assert (one.peak, one.since_startup) == (40, 900)


def test_the_limit_of_sessions_per_second_is_the_largest_budget_of_the_last_heartbeats(
    found: Switches,
) -> None:
    for at, left in enumerate((18, 30, 11)):
        found.heartbeat("fs1", float(at), sps_limit=left)
    assert of(found).sessions_per_second_limit == 30
    for at in range(BEATS):  # the operator lowered it
        found.heartbeat("fs1", 10.0 + at, sps_limit=20)
    assert of(found).sessions_per_second_limit == 20
    found.heartbeat("fs1", 99.0, sps_limit=2**32 - 3)  # three over it
    assert of(found).sessions_per_second_limit == 20


def test_what_a_heartbeat_does_not_say_is_unknown_and_not_as_before(found: Switches) -> None:
    found.heartbeat("fs1", 0.0, sessions=3, idle_cpu=0.9, sps_limit=30)
    found.heartbeat("fs1", 20.0)
    one = of(found, 20.0)
    assert (one.sessions, one.idle_cpu) == (None, None)
    assert one.live_legs == 3  # legs are counted on
    assert one.sessions_per_second_limit == 30


# ----------------------------------------------------------------------------------------- the legs


def test_between_heartbeats_legs_are_counted_from_their_beginnings_and_ends(
    found: Switches,
) -> None:
    found.heartbeat("fs1", 0.0, sessions=2)  # from before we listened
    found.created("fs1", "a")
    found.created("fs1", "b")
    assert of(found).live_legs == 4
    found.destroyed("fs1", "a")
    found.destroyed("fs1", "one of the first two")
    assert of(found).live_legs == 2
    assert of(found).sessions == 2
    assert of(found).drift == 0


def test_events_that_come_twice_count_once(found: Switches) -> None:
    found.heartbeat("fs1", 0.0, sessions=0)
    for _ in range(2):
        found.created("fs1", "a")
    assert of(found).live_legs == 1
    for _ in range(2):
        found.destroyed("fs1", "a")
    assert of(found).live_legs == 0


def test_the_end_of_a_leg_that_never_began_takes_none_away(found: Switches) -> None:
    """As of a call to a gateway that is down."""
    found.heartbeat("fs1", 0.0, sessions=0)
    found.created("fs1", "a")
    found.destroyed("fs1", "to-a-gateway-that-is-down")
    assert of(found).live_legs == 1


@pytest.mark.parametrize("uuid", [None, ""])
def test_an_event_without_a_uuid_counts_nothing(found: Switches, uuid: str | None) -> None:
    found.heartbeat("fs1", 0.0, sessions=1)
    found.created("fs1", uuid)
    found.destroyed("fs1", uuid)
    assert of(found).live_legs == 1


def test_legs_are_unknown_until_the_switch_said_how_many_there_are(found: Switches) -> None:
    found.created("fs1", "a")
    assert of(found).live_legs is None
    found.heartbeat("fs1", 0.0, sessions=5)
    assert (of(found).live_legs, of(found).drift) == (5, 0)
    found.destroyed("fs1", "a")
    assert of(found).live_legs == 4


def test_after_lost_events_the_next_heartbeat_puts_the_count_right_and_says_by_how_much(
    found: Switches,
) -> None:
    found.heartbeat("fs1", 0.0, sessions=0)
    for number in range(10):
        found.created("fs1", str(number))
    found.heartbeat("fs1", 20.0, sessions=4)  # six ends were lost
    assert (of(found).live_legs, of(found).drift) == (4, 6)
    found.heartbeat("fs1", 40.0, sessions=7)  # three beginnings
    assert (of(found).live_legs, of(found).drift) == (7, 9)
    found.created("fs1", "new")
    assert of(found).live_legs == 8


def test_where_nothing_lives_no_lost_leg_is_remembered(found: Switches) -> None:
    found.heartbeat("fs1", 0.0, sessions=0)
    found.created("fs1", "its end was lost")
    found.heartbeat("fs1", 20.0, sessions=0)
    assert not found._switches["fs1"].legs
    found.destroyed("fs1", "its end was lost")
    assert of(found).live_legs == 0


def test_the_list_of_channels_puts_the_count_right_at_once(found: Switches) -> None:
    found.heartbeat("fs1", 0.0, sessions=0)
    for uuid in "abc":
        found.created("fs1", uuid)
    found.reconcile("fs1", ["c", "d", "", "d"])
    assert (of(found).live_legs, of(found).drift) == (2, 1)
    found.created("fs1", "d")  # its event was under way
    found.destroyed("fs1", "a")
    assert of(found).live_legs == 2
    found.destroyed("fs1", "d")
    assert of(found).live_legs == 1


def test_legs_are_known_after_a_list_of_channels_without_a_heartbeat(found: Switches) -> None:
    found.reconcile("fs1", ["a"])
    assert (of(found).live_legs, of(found).drift) == (1, 0)


def test_more_legs_than_are_known_are_still_counted(
    found: Switches, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(switches, "MAX_LEGS", 3)
    found.created("fs1", "unheard")
    found.heartbeat("fs1", 0.0, sessions=1)
    for number in range(5):
        found.created("fs1", str(number))
    assert of(found).live_legs == 6
    assert of(found).limits == {"legs": 3}
    assert len(found._switches["fs1"].legs) == 3
    for number in range(5):
        found.destroyed("fs1", str(number))
    assert of(found).live_legs == 1
    found.reconcile("fs1", map(str, range(7)))
    assert len(found._switches["fs1"].legs) == 3
    assert (of(found).live_legs, of(found).limits) == (7, {"legs": 7})


def test_a_full_switch_that_said_no_count_yet_has_none(
    found: Switches, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(switches, "MAX_LEGS", 1)
    found.created("fs1", "a")
    found.created("fs1", "b")
    assert (of(found).live_legs, of(found).limits) == (None, {"legs": 1})


UUIDS = st.sampled_from("abcdef")
STEPS = st.one_of(
    st.tuples(st.just("create"), UUIDS, st.booleans()),
    st.tuples(st.just("destroy"), UUIDS, st.booleans()),
    st.tuples(st.just("beat"), UUIDS, st.booleans()),
    st.tuples(st.just("list"), UUIDS, st.booleans()),
)


@given(st.lists(STEPS, max_size=60))
def test_whatever_is_lost_live_legs_are_right_at_every_heartbeat_and_never_below_none(
    steps: list[tuple[str, str, bool]],
) -> None:
    found, truth = Switches(["fs1"]), set[str]()
    for now, (step, uuid, heard) in enumerate(steps):
        if step == "create":
            truth.add(uuid)
            if heard:
                found.created("fs1", uuid)
        elif step == "destroy":
            truth.discard(uuid)
            if heard:
                found.destroyed("fs1", uuid)
        elif step == "beat":
            found.heartbeat("fs1", float(now), sessions=len(truth))
        else:
            found.reconcile("fs1", list(truth))
        live = of(found).live_legs
        assert live is None or live >= 0
        if step in ("beat", "list"):
            assert live == len(truth)


@given(st.lists(st.tuples(st.booleans(), UUIDS), max_size=60), st.sets(UUIDS))
def test_when_nothing_is_lost_live_legs_are_always_right(
    steps: list[tuple[bool, str]], first: set[str]
) -> None:
    found, truth = Switches(["fs1"]), set(first)
    found.reconcile("fs1", first)
    for begins, uuid in steps:
        if begins:
            truth.add(uuid)
            found.created("fs1", uuid)
        else:
            truth.discard(uuid)
            found.destroyed("fs1", uuid)
        assert of(found).live_legs == len(truth)
    found.heartbeat("fs1", 0.0, sessions=len(truth))
    assert of(found).drift == 0


# ----------------------------------------------------------------------------------------- gateways


@pytest.mark.parametrize(
    ("state", "ping", "expected"),
    [
        ("NOREG", "UP", "up"),
        ("REGED", "UP", "up"),
        ("TRYING", "UP", "up"),  # it registers again, and takes calls meanwhile
        ("NOREG", "DOWN", "down"),
        ("FAILED", "UP", "down"),
        ("FAIL_WAIT", "DOWN", "down"),
        ("TIMEOUT", None, "down"),
        ("REGED", None, "unknown"),
        ("REGED", "INVALID", "unknown"),
        (None, None, "unknown"),
        ("a stranger's", "words", "unknown"),
    ],
)
def test_a_gateway_is_up_or_down_by_what_freeswitch_goes_by(
    state: str | None, ping: str | None, expected: str
) -> None:
    assert gateway_state(state, ping) == expected
    assert expected in GATEWAY_STATES


def test_gateways_are_counted_by_their_newest_state(found: Switches) -> None:
    for name in ("a", "b", "c"):
        found.gateway("fs1", name, "NOREG", "UP")
    found.gateway("fs1", "b", "NOREG", "DOWN")
    found.gateway("fs1", None, "NOREG", "DOWN")
    assert of(found).gateways == {"up": 2, "down": 1}


def test_after_a_gap_the_state_of_a_gateway_is_unknown_until_it_changes(found: Switches) -> None:
    found.gateway("fs1", "a", "NOREG", "UP")
    found.gateway("fs1", "b", "NOREG", "DOWN")
    found.heartbeat("fs1", 0.0, sessions=3)
    found.reconnected("fs1")
    assert of(found).gateways == {"unknown": 2}
    assert of(found).live_legs == 3
    found.gateway("fs1", "a", "NOREG", "UP")
    assert of(found).gateways == {"up": 1, "unknown": 1}


def test_gateways_are_bounded_and_those_that_are_known_still_change(found: Switches) -> None:
    for number in range(MAX_GATEWAYS + 10):
        found.gateway("fs1", f"gw{number}", "NOREG", "UP")
    found.gateway("fs1", "gw0", "NOREG", "DOWN")
    assert of(found).gateways == {"up": MAX_GATEWAYS - 1, "down": 1}
    assert of(found).limits == {"gateways": 10}


# ------------------------------------------------------------------------------------ registrations


def test_registrations_are_users_that_came_and_did_not_go(found: Switches) -> None:
    found.registered("fs1", "1000@pbx", 0.0)
    found.registered("fs1", "1001@pbx", 0.0)
    found.registered("fs1", "1000@pbx", 5.0)
    assert of(found).registrations == 2
    found.unregistered("fs1", "1000@pbx")
    found.unregistered("fs1", "nobody@pbx")
    assert of(found).registrations == 1


def test_a_registration_for_no_time_is_none(found: Switches) -> None:
    found.registered("fs1", "1000@pbx", 0.0, expires=60)
    found.registered("fs1", "1000@pbx", 1.0, expires=0)
    assert of(found, 1.0).registrations == 0


@pytest.mark.parametrize(("expires", "seconds"), [(60, 60), (None, EXPIRES)])
def test_a_registration_that_is_not_renewed_ends_by_itself(
    found: Switches, expires: int | None, seconds: float
) -> None:
    found.registered("fs1", "1000@pbx", 100.0, expires=expires)
    assert of(found, 100.0 + seconds + GRACE - 1).registrations == 1
    assert of(found, 100.0 + seconds + GRACE + PRUNE_SECONDS).registrations == 0


def test_registrations_are_bounded_and_the_count_says_that_it_is_not_all(
    found: Switches, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(switches, "MAX_USERS", 3)
    for number in range(5):
        found.registered("fs1", f"{number}@pbx", 0.0, expires=60)
    found.registered("fs1", "0@pbx", 100.0, expires=60)  # renewed
    one = of(found, 100.0)
    assert (one.registrations, one.registrations_approximate) == (3, True)
    assert one.limits == {"registrations": 2}
    # Those that are over make room, and those that were not known are over too.
    found.registered("fs1", "5@pbx", 200.0, expires=60)
    one = of(found, 200.0)
    assert (one.registrations, one.registrations_approximate) == (2, False)


# ------------------------------------------------------------------------------ many, and restarts


def test_a_restart_forgets_what_was_true_of_the_old_life_and_keeps_the_counters(
    found: Switches,
) -> None:
    found.heartbeat("fs1", 0.0, sessions=3, max_sessions=10, sps_limit=30)
    found.heartbeat("fs1", 20.0, sessions=4)
    found.created("fs1", "a")
    found.gateway("fs1", "gw", "NOREG", "UP")
    found.registered("fs1", "1000@pbx", 0.0)
    found.restarted("fs1")
    assert of(found, 30.0) == SwitchFigures("fs1", drift=1, restarts=1)
    found.heartbeat("fs1", 40.0, sessions=0)
    assert (of(found).live_legs, of(found).drift) == (0, 1)


def test_a_restart_that_is_told_twice_is_one(found: Switches) -> None:
    found.restarted("fs1", "core-1")
    assert of(found).restarts == 0
    found.restarted("fs1", "core-2")
    found.created("fs1", "a")
    found.heartbeat("fs1", 0.0, sessions=1)
    found.restarted("fs1", "core-2")
    assert (of(found).restarts, of(found).live_legs) == (1, 1)
    found.restarted("fs1")  # by whom it is not known yet
    found.restarted("fs1", "core-3")
    assert of(found).restarts == 2


def test_every_switch_has_its_own_figures_in_the_order_of_names() -> None:
    found = Switches(["fs2", "fs1"])
    found.heartbeat("fs1", 0.0, sessions=1)
    found.heartbeat("fs2", 0.0, sessions=2)
    assert [(one.name, one.sessions) for one in found.snapshot(0.0)] == [("fs1", 1), ("fs2", 2)]


def test_switches_that_are_not_configured_share_one_entry_that_is_there_once_they_spoke(
    found: Switches,
) -> None:
    assert [one.name for one in found.snapshot(0.0)] == ["fs1"]
    found.created("a stranger's text", "a")
    found.heartbeat("another's", 0.0, sessions=2)
    names = [(one.name, one.configured, one.sessions) for one in found.snapshot(0.0)]
    assert names == [("fs1", True, None), (OTHER, False, 2)]


def test_a_switch_that_is_configured_as_other_is_there_once() -> None:
    found = Switches([OTHER])
    found.heartbeat(OTHER, 0.0, sessions=1)
    found.heartbeat("a stranger's text", 0.0, sessions=2)
    assert [(one.name, one.configured) for one in found.snapshot(0.0)] == [(OTHER, True)]


def test_what_is_written_by_strangers_is_kept_short(found: Switches) -> None:
    long = "x" * 100_000
    found.created("fs1", long)
    found.registered("fs1", long, 0.0)
    found.gateway("fs1", long, long, long)
    found.restarted("fs1", long)
    one = found._switches["fs1"]
    kept = (*one.legs, *one.users, *one.gateways, one.core_uuid)
    assert [len(text or "") for text in kept] == [MAX_TEXT] * 4
    found.destroyed("fs1", long)
    found.unregistered("fs1", long)
    assert (one.legs, one.users) == (set(), {})


# ------------------------------------------------------------------------------------ real events


def events(*names: str) -> Iterator[dict[str, Any]]:
    for name in names:
        for item in esl.read_transcript((CORPUS / name).read_bytes()):
            if isinstance(item, esl.Event) and item.event_name in EVENTS:
                yield msgspec.structs.asdict(item)


def heard(*names: str) -> Switches:
    found = Switches(["fs1"])
    for event in events(*names):
        found.receive("fs1", event, int(event["event_date_timestamp"]) / 1e6)
    return found


def test_the_fields_that_are_read_are_fields_of_an_event() -> None:
    class Asked(dict[str, str | None]):
        def get(self, key: str, default: Any = None) -> Any:
            asked.add(key)
            return super().get(key, "x")

    asked = set[str]()
    found = Switches(["fs1"])
    for event in sorted(EVENTS):
        for subclass in ("sofia::gateway_state", "sofia::register", "sofia::unregister"):
            found.receive("fs1", Asked(event_name=event, event_subclass=subclass), 0.0)
    assert len(asked) > 15
    assert asked <= set(esl.Event.__struct_fields__)


@pytest.mark.parametrize("name", ["10-bridged-a-bye-ALL.esl", "20-bridged-json.esl"])
def test_a_recorded_call_of_two_legs_begins_and_ends_whatever_the_format(name: str) -> None:
    found, most = Switches(["fs1"]), 0
    for event in events(name):
        found.receive("fs1", event, int(event["event_date_timestamp"]) / 1e6)
        most = max(most, of(found).live_legs or 0)
    assert (most, of(found).live_legs, of(found).drift) == (2, 0, 0)


def test_a_recorded_heartbeat_gives_its_figures() -> None:
    one = of(heard("23-paused-503.esl"))
    assert (one.sessions, one.max_sessions, one.sessions_per_second) == (0, 1000, 0)
    assert one.sessions_per_second_limit == 200
    assert one.idle_cpu is not None
    assert 0.5 < one.idle_cpu < 1
    assert one.uptime_seconds is not None
    assert one.uptime_seconds > 100
    assert one.restarts == 0


def test_a_recorded_registration_comes_and_goes() -> None:
    found, seen = Switches(["fs1"]), []
    for event in events("21-register-unregister.esl"):
        found.receive("fs1", event, 0.0)
        seen.append(of(found).registrations)
    assert sorted(set(seen)) == [0, 1]
    assert seen[-1] == 0


def test_a_gateway_state_event_is_read(found: Switches) -> None:
    event = esl.Event(
        "CUSTOM", event_subclass="sofia::gateway_state", gateway="trunk-a", state="NOREG",
        ping_status="DOWN", core_uuid="core-1",
    )  # fmt: skip
    found.receive("fs1", msgspec.structs.asdict(event), 0.0)
    assert of(found).gateways == {"down": 1}


def test_events_of_another_life_of_the_switch_begin_anew(found: Switches) -> None:
    def event(core_uuid: str, uuid: str) -> dict[str, str | None]:
        return {"event_name": "CHANNEL_CREATE", "core_uuid": core_uuid, "unique_id": uuid}

    found.reconcile("fs1", [])
    found.receive("fs1", event("core-1", "a"), 0.0)
    assert (of(found).live_legs, of(found).restarts) == (1, 0)
    found.receive("fs1", event("core-2", "b"), 0.0)
    assert (of(found).live_legs, of(found).restarts) == (None, 1)
    found.receive("fs1", {"event_name": "HEARTBEAT", "session_count": "1"}, 0.0)
    assert of(found).live_legs == 1
    for core_uuid in ("core-3", "core-4"):  # of several strangers, in turn
        found.receive("stranger", event(core_uuid, "c"), 0.0)
    assert of(found, name=OTHER).restarts == 0


TEXTS = st.one_of(st.none(), st.text(max_size=8), st.sampled_from(["0", "7", "UP", "DOWN", "50.5"]))
FIELDS = st.fixed_dictionaries(
    {
        "event_name": st.sampled_from([*sorted(EVENTS), "CHANNEL_ANSWER", None]),
        "event_subclass": st.sampled_from(
            ["sofia::gateway_state", "sofia::register", "sofia::unregister", "sofia::expire", None]
        ),
    },
    optional=dict.fromkeys(
        [
            "core_uuid", "unique_id", "session_count", "max_sessions", "session_per_sec",
            "session_per_sec_last", "idle_cpu", "uptime_msec", "gateway", "state", "ping_status",
            "from_user", "from_host", "expires",
        ],
        TEXTS,
    ),
)  # fmt: skip


@given(st.lists(FIELDS, max_size=20))
def test_no_event_breaks_it_and_no_figure_is_out_of_range(said: list[dict[str, Any]]) -> None:
    found = Switches(["fs1"])
    for now, fields in enumerate(said):
        found.receive("fs1", fields, float(now))
    one = of(found, float(len(said)))
    assert one.idle_cpu is None or 0 <= one.idle_cpu <= 1
    assert set(one.gateways) <= set(GATEWAY_STATES)
    assert set(one.limits) <= set(SWITCH_CAPS)
    assert one.live_legs is None or one.live_legs >= 0
