import pytest

from sipsidecar.calls.features import RANKS
from sipsidecar.cli.causes import alike, has, look_at, spelled, title
from sipsidecar.signals.diagnose import Finding, Separator
from terminal import HOSTILE


def separator(name: str, value: str = "x", **changes: object) -> Separator:
    figures = {
        "failing": 18, "of_failing": 20, "good": 5, "of_good": 80, "chance": 1e-12, "q": 1e-9,
        "odds": 101.0, "difference": 0.75, "low": 0.5, "high": 0.9,
    }  # fmt: skip
    return Separator(name=name, value=value, **(figures | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (separator("size-over", "1300"), "an INVITE of more than 1300 bytes"),
        (separator("size", "904", over=True), "an INVITE of more than 904 bytes"),
        (separator("header", "x-foo"), "a header X-Foo"),
        (separator("header", "x-foo", present=False), "without a header X-Foo"),
        (separator("duplicate", "call-id"), "more than one header Call-ID"),
        (separator("x-foo:", "a: b"), "the header X-Foo: a: b"),
        (separator("order", "cseq < from"), "CSeq before From"),
        (separator("next", "cseq < from"), "CSeq right before From"),
        (separator("fmtp", "G729 annexb=yes"), "the format parameters G729 annexb=yes"),
        (separator("content-length", "none"), "no Content-Length"),
        (separator("content-length", "too large"), "a Content-Length that is too large"),
        (separator("sdp", "none, but another body"), "no SDP, but another body"),
        (separator("tenant", "acme"), "tenant acme"),
        (separator("x-new", "1", over=True), "x-new over 1"),
        (
            separator("time", since=1_795_000_000_000_000),
            "a beginning after 2026-11-18T11:06:40Z",
        ),
        (
            separator("time", until=1_795_000_000_000_000),
            "a beginning before 2026-11-18T11:06:40Z",
        ),
        (
            separator("time", since=1_795_000_000_000_000, until=1_795_000_060_000_000),
            "a beginning from 2026-11-18T11:06:40Z to 2026-11-18T11:07:40Z",
        ),
    ],
)
def test_a_feature_is_told_in_words(one: Separator, words: str) -> None:
    assert has(one) == words


def test_every_name_has_words_and_an_advice_that_fit_a_terminal() -> None:
    for name in [*RANKS, "x-foo:"]:
        for over in (True, False):
            for value in (HOSTILE, "{} {header} {0}"):
                words = has(separator(name, value, over=over, since=0))
                assert words.isprintable()
                assert len(words) > 5
        assert look_at(separator(name))


def test_a_header_is_spelled_as_people_write_it() -> None:
    assert [spelled(name) for name in ("call-id", "x-foo-bar", "min-se")] == [
        "Call-ID", "X-Foo-Bar", "Min-SE",
    ]  # fmt: skip


def order(*pairs: str, lead: str = "order") -> Finding:
    first, *others = [separator(lead, pair) for pair in pairs]
    return Finding(separator=first, alike=tuple(others))


def test_an_order_of_headers_is_told_by_the_header_that_moved() -> None:
    moved = order("contact < cseq", "contact < from", "contact < to")
    assert title(moved) == "Contact before CSeq, From and To"
    assert title(order("from < via", "to < via")) == "From and To before Via"
    assert title(order("from < to")) == "From before To"
    assert title(order("from < to", lead="next")) == "From right before To"
    assert title(Finding(separator=separator("header"))) == "a header X"


def test_what_cannot_be_told_from_it_leaves_out_what_the_title_says() -> None:
    others = (separator("order", "a < b"), separator("next", "a < b"), separator("header", "x-foo"))
    moved = Finding(separator=separator("order", "a < c"), alike=others)
    assert alike(moved) == ["a header X-Foo"]
    plain = Finding(separator=separator("header"), alike=others)
    assert alike(plain, 2) == ["A before B", "A right before B"]
