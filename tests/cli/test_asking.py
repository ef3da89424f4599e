import http.server
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from answering import answering, page, pages
from certificates import Authority
from sipsidecar.cli import asking
from sipsidecar.cli.asking import Asked, NoAnswerError
from sipsidecar.config import Config, load

TOKEN = "a-token-of-many-letters"  # noqa: S105 -- to look for


def configured(address: str, **more: object) -> Config:
    flags = {f"http.{key}": value for key, value in more.items()}
    return load(None, {}, {"http.listen": address, **flags}).config


def test_a_page_is_fetched_with_the_token_and_without_where_none_is_wanted() -> None:
    with answering(pages(), token=TOKEN) as (address, asked):
        config = configured(address, operate_tokens=[TOKEN])
        one = Asked(config)
        assert one.address == f"http://{address}"
        assert one.get("/v1/ledger")[0] == 200
        assert one.get("/health/ready", token=False)[0] == 200
        assert Asked(configured(address)).get("/v1/ledger")[0] == 401
    assert asked == [
        ("/v1/ledger", f"Bearer {TOKEN}"), ("/health/ready", None), ("/v1/ledger", None),
    ]  # fmt: skip


class Heard(http.server.BaseHTTPRequestHandler):
    requests: list[tuple[str, str, str | None, str | None, bytes]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        given, kind = self.headers["Authorization"], self.headers["Content-Type"]
        self.requests.append((self.command, self.path, given, kind, body))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("read", "operate", "sent"),
    [(["r" * 16], [TOKEN], TOKEN), ([], [TOKEN], TOKEN), ([TOKEN], [], TOKEN), ([], [], None)],
)
def test_what_changes_something_is_sent_with_a_token_that_may_operate(
    read: list[str], operate: list[str], sent: str | None
) -> None:
    class Mine(Heard):
        requests = []  # noqa: RUF012

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mine) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        config = configured(
            f"127.0.0.1:{server.server_address[1]}", read_tokens=read, operate_tokens=operate
        )
        assert Asked(config).post("/x", {"trunk": "é"}) == (200, b"{}")
        server.shutdown()
        thread.join()
    header = None if sent is None else f"Bearer {sent}"
    assert Mine.requests == [("POST", "/x", header, "application/json", '{"trunk":"é"}'.encode())]


def test_a_token_goes_nowhere_but_to_the_address() -> None:
    with (
        answering(pages()) as (elsewhere, asked_there),
        answering({"/x": (302, f"http://{elsewhere}/x".encode())}) as (address, _),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("http_proxy", f"http://{elsewhere}")
        assert Asked(configured(address, read_tokens=[TOKEN])).get("/x")[0] == 302
        assert asked_there == []


@pytest.mark.parametrize(
    ("listen", "shown"),
    [
        ("0.0.0.0:1", "http://127.0.0.1:1"),
        ("[::]:1", "http://[::1]:1"),
        ("[2001:db8::1]:1", "http://[2001:db8::1]:1"),
    ],
)
def test_a_wildcard_is_asked_on_loopback(listen: str, shown: str) -> None:
    assert Asked(configured(listen, insecure=True)).address == shown


@pytest.fixture
def free() -> str:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{sock.getsockname()[1]}"


def test_nothing_there_is_said_in_the_systems_words(free: str) -> None:
    with pytest.raises(NoAnswerError, match=r"^Connection refused$"):
        Asked(configured(free)).get("/")


@pytest.fixture
def speaker(request: pytest.FixtureRequest) -> Iterator[str]:
    """A program that accepts one connection after the other and says something else than HTTP."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def speak() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(1000)
                    connection.sendall(request.param)

        thread = threading.Thread(target=speak)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.mark.parametrize("speaker", [b"", b"SSH-2.0-x\r\n"], indirect=True)
def test_what_speaks_no_http_is_no_answer(speaker: str) -> None:
    with pytest.raises(NoAnswerError, match="does not speak HTTP"):
        Asked(configured(speaker)).get("/")


def test_one_that_says_nothing_is_given_up_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        began = time.monotonic()
        with pytest.raises(NoAnswerError, match="no answer in time"):
            Asked(configured(address), seconds=0.1).get("/")
        assert time.monotonic() - began < 20


def test_an_answer_without_end_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "MAX_PAGE", 10)
    with (
        answering({"/": page("x" * 100)}) as (address, _),
        pytest.raises(NoAnswerError, match="no end"),
    ):
        Asked(configured(address)).get("/")


def test_over_tls_only_the_certificate_of_the_settings_is_trusted(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    ours, other = authority.issue("ours"), authority.issue("other")
    chain = Path(ours.certificate)
    chain.write_text(chain.read_text() + Path(authority.certificate).read_text())
    with answering(pages(), tls=ours) as (address, _):
        config = configured(address, tls_certificate=str(chain), tls_key=ours.key)
        assert Asked(config).address.startswith("https://")
        assert Asked(config).get("/v1/agents")[0] == 200
    with answering(pages(), tls=other) as (address, asked):
        config = configured(address, tls_certificate=str(chain), tls_key=ours.key)
        with pytest.raises(NoAnswerError, match=r"is not that of http\.tls_certificate"):
            Asked(config).get("/v1/agents")
        assert asked == []


def test_tls_that_cannot_work_is_one_line(tmp_path: Path) -> None:
    own = Authority(tmp_path).issue("own")
    with answering(pages()) as (address, _):
        config = configured(address, tls_certificate=own.certificate, tls_key=own.key)
        with pytest.raises(NoAnswerError, match="does not speak TLS"):
            Asked(config).get("/")
        for name, text in (("absent", None), ("garbage", "x"), ("binary", "\xff")):
            path = tmp_path / name
            if text is not None:
                path.write_text(text)
            config = configured(address, tls_certificate=str(path), tls_key=own.key)
            with pytest.raises(NoAnswerError, match="cannot be read"):
                Asked(config).get("/")
