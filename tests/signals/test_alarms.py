import msgspec
import pytest

from sipsidecar.calls.events import Cohort
from sipsidecar.signals.alarms import CATEGORIES, DIMENSIONS, SEVERITIES, Alarm, Scope, scope_text


@pytest.mark.parametrize(
    ("scope", "text"),
    [
        ((), "all"),
        ((("trunk", "acme"),), "trunk=acme"),
        ((("tenant", "t"), ("trunk", "acme")), "tenant=t,trunk=acme"),
    ],
)
def test_a_scope_is_written_as_its_pairs(scope: Scope, text: str) -> None:
    assert scope_text(scope) == text


def test_two_alarms_of_one_source_category_and_scope_are_the_same_one() -> None:
    one = Alarm(source="rate", category="5xx", at=1, summary="a")
    assert msgspec.structs.replace(one, at=2, active=False, summary="b").key == one.key
    for other in ({"source": "drift"}, {"category": "4xx"}, {"scope": (("trunk", "a"),)}):
        assert msgspec.structs.replace(one, **other).key != one.key


def test_every_dimension_but_the_codec_is_one_of_cohorts() -> None:
    assert {*DIMENSIONS} - {*Cohort._fields} == {"codec"}
    assert {*Cohort._fields} - {*DIMENSIONS} == {"node"}


def test_severities_are_in_the_order_of_their_weight() -> None:
    assert SEVERITIES == ("trend", "warn", "page")
    assert len(set(CATEGORIES)) == len(CATEGORIES)
