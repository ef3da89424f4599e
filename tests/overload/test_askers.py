import json

from overload import askers
from sipsidecar.edges.kamailio import evapi


def test_a_question_is_one_that_the_sidecar_understands() -> None:
    ask, index, label = evapi.question(
        askers.question(7, "192.0.2.1").encode(), "edge", lambda _: 0.0
    )
    assert (index, label) == (7, 1)
    assert (ask.call_id, ask.from_tag, ask.cseq) == ("probe-7", "f", 1)
    assert ask.sighted.src_ip == "192.0.2.1"
    assert ask.sighted.ruri_host == "example.com"


def test_frames_are_those_that_the_sidecar_reads() -> None:
    frames = evapi.Netstrings()
    frames.receive_data(askers.netstring("b") + askers.netstring("c:d,"))
    assert [frames.next(), frames.next(), frames.next()] == [b"b", b"c:d,", None]


async def test_answers_are_told_apart_however_they_arrive() -> None:
    times: list[float | None] = []
    line = askers.Evapi(times)
    for number in range(3):
        line.ask(number, "192.0.2.1", 0.0)
    said = b"".join(askers.netstring(f"a|{number}|1|admit|0||") for number in (2, 0))
    for at in range(len(said)):
        line.data_received(said[at : at + 1])
    line.data_received(askers.netstring("a|9|1|admit|0||") + askers.netstring("b"))
    assert line.ready.is_set()
    assert (len(times), line.unanswered()) == (2, 1)


def test_a_table_gives_back_the_texts_that_it_was_given() -> None:
    rpc = askers.Rpc()
    key = ["sidecar_rule", "checksum"]
    assert "error" in rpc.answer({"method": "htable.get", "params": key, "id": 1})
    assert rpc.answer({"method": "htable.sets", "params": [*key, "x"], "id": 2})["result"] == {}
    said = rpc.answer({"method": "htable.get", "params": key, "id": 3})
    assert json.loads(json.dumps(said))["result"]["item"]["value"] == "x"
