import json
import shutil
import struct
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from chaos import lab, truth
from sipsidecar.wire import hep, sip

SEED = 5
DIALOGS = 400
Row = tuple[str, int | None, bool, str | None]


class _Table:
    """The rows of `calls` that a judge is shown."""

    def __init__(self, rows: list[Row]) -> None:
        self._rows = rows

    def walk(self, _: str, see: Callable[..., None]) -> None:
        for row in self._rows:
            see(*row)


def _judge(rows: list[Row], seed: int = SEED) -> truth.Judged:
    return truth.judge(cast("lab.Database", _Table(rows)), seed, DIALOGS)


def _rows() -> list[Row]:
    """What a sidecar that makes no mistake has in its table."""
    rows: list[Row] = []
    for index in range(DIALOGS):
        kind, released_by = truth.truth_of(SEED, index)
        if kind.code:
            call_id = truth.call_id_of(SEED, index) + "@10.1.0.10"
            rows.append((call_id, kind.code, kind.code == 200, released_by))
    return rows


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler: apt-get install gcc")
def test_what_we_know_of_a_dialog_is_what_hepblast_sends(tmp_path: Path) -> None:
    words = ["-n", str(DIALOGS), "--seed", str(SEED), "--dump", str(tmp_path / "lp")]
    done = subprocess.run(
        [lab.compiled("hepblast"), *words], check=True, capture_output=True, text=True
    )
    raw = (tmp_path / "lp").read_bytes()
    packets: Counter[int] = Counter()
    ended: dict[int, str] = {}
    at = 0
    while at < len(raw):
        (length,) = struct.unpack_from(">I", raw, at)
        packet = hep.decode(raw[at + 4 : at + 4 + length])
        at += 4 + length
        if packet.correlation_id is not None:
            call_id = packet.correlation_id.decode()
        else:
            message = sip.parse(packet.payload)
            call_id = message.call_id
        index = truth.index_of(call_id)
        assert index is not None
        assert call_id.startswith(truth.call_id_of(SEED, index))
        packets[index] += 1
        if packet.payload.startswith((b"BYE", b"CANCEL")):
            ended[index] = "caller" if packet.source.startswith(b"\x0a\x01") else "callee"
    known = {index: truth.truth_of(SEED, index) for index in range(DIALOGS)}
    assert packets == {index: one.kind.packets for index, one in known.items()}
    assert ended == {index: one.released_by for index, one in known.items() if one.released_by}
    kinds = Counter(one.kind.name for one in known.values())
    said = json.loads(done.stdout)["done"]
    assert kinds == {name: count for name, count in said.items() if count}


def test_a_table_without_a_mistake_is_exact() -> None:
    judged = _judge(_rows())
    assert (judged.exact, judged.wrong, judged.missing, judged.double) == (
        len(_rows()),
        {},
        set(),
        set(),
    )


def test_each_kind_of_mistake_is_found() -> None:
    rows = _rows()
    changed = {
        "missing": rows[1:],
        "double": [*rows, rows[0]],
        "wrong": [(rows[0][0], 599, *rows[0][2:]), *rows[1:]],
        "answered": [(*rows[0][:2], not rows[0][2], rows[0][3]), *rows[1:]],
    }
    index = truth.index_of(rows[0][0])
    assert _judge(changed["missing"]).missing == {index}
    assert _judge(changed["double"]).double == {index}
    assert set(_judge(changed["wrong"]).wrong) == {index}
    assert set(_judge(changed["answered"]).wrong) == {index}


def test_the_side_that_hung_up_counts_where_somebody_did() -> None:
    rows = _rows()
    other = {"caller": "callee", "callee": "caller", None: None}
    turned = [(call_id, code, up, other[side]) for call_id, code, up, side in rows]
    assert len(_judge(turned).wrong) == sum(1 for row in rows if row[3])


def test_calls_of_another_seed_are_not_taken_for_ours() -> None:
    judged = _judge(_rows(), seed=SEED + 1)
    assert judged.exact == 0
    assert not judged.outcomes
