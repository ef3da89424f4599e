import re
from xml.etree import ElementTree as ET

import pytest

from overload.plot import Line, Panel, draw, steps

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("most", [0.4, 1.0, 7.0, 10.0, 33.0, 1234.0])
def test_ticks_are_few_and_reach_the_highest_value(most: float) -> None:
    found = steps(most)
    assert found[0] == 0
    assert found[-1] >= most
    assert 3 <= len(found) <= 8


def test_a_drawing_is_well_formed_whatever_its_words_are() -> None:
    line = Line("<none> & all", [(0.0, 0.0), (1.0, None), (2.0, 1.0), (3.0, 2.0)], dashed=True)
    text = draw([Panel("a < b", "x & y", '"up"', [line], [(1.0, "<here>")])] * 2)
    found = ET.fromstring(text)  # noqa: S314 - we wrote it
    words = {element.text for element in found.iter(f"{SVG}text")}
    assert {"<none> & all", "a < b", "x & y", '"up"', "<here>"} <= words
    # In each panel, of four points with a gap: one alone, and two together.
    thick = [one for one in found.iter(f"{SVG}polyline") if one.get("stroke-width") == "2"]
    assert [len(str(one.get("points")).split()) for one in thick] == [1, 2, 1, 2]


def test_every_line_stays_inside_its_panel() -> None:
    line = Line("one", [(0.8, 0.8), (10.0, 0.97)])
    text = draw([Panel("t", "x", "y", [line])])
    for pair in re.findall(r"(-?[\d.]+),(-?[\d.]+)", text):
        assert 0 <= float(pair[0]) <= 460
        assert 0 <= float(pair[1]) <= 344
