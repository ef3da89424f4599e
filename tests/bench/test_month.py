"""A short form of `make bench-month`: that every view leaves partitions out and finds its rows."""

import argparse

from bench import month


async def test_two_days_of_figures_are_looked_at_without_reading_all_weeks(database: str) -> None:
    options = argparse.Namespace(
        days=2, cohorts=20, share=0.2, spans=("6 hours", "1 day"), patience=0
    )
    result = await month.measure(database, options)
    loaded = result["loaded"]["rows"]
    assert 0.15 * 20 * 2880 < loaded["kpi_minute"] < 0.25 * 20 * 2880
    assert loaded["code_minute"] > loaded["kpi_minute"]
    asked = [month.Asked(**one) for one in result["asked"]]
    most = {"kpi_5min": 9, "kpi_hour": 18, "kpi_day": 32, "codes_5min": 9, "codes_hour": 18}
    for one in asked:
        if one.view in most or one.view.startswith("kpi("):
            # of 400 days at least, the next week, and the DEFAULT
            assert one.weeks + one.left_out >= 59
            assert one.weeks <= most.get(one.view, 5)
            assert one.by_index
            assert one.rows > 0 or one.view == "kpi_day"
    assert {one.view for one in asked} > set(most)
    assert next(one for one in asked if one.view == "trunk_health").rows > 0
