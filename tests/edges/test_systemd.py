import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from running import ENVIRONMENT, LIMIT
from sipsidecar.edges.systemd import MAX_STATUS, Notifier, SystemdError, listening

Manager = tuple[socket.socket, str]


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    """A service manager's socket, and how NOTIFY_SOCKET names it."""
    place = str(tmp_path / "notify") if request.param == "path" else f"\0sipsidecar-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(place)
        sock.settimeout(LIMIT)
        yield sock, place.replace("\0", "@")


@pytest.fixture
def made() -> Iterator[list[Notifier]]:
    """Notifiers to close at the end."""
    notifiers: list[Notifier] = []
    yield notifiers
    for notifier in notifiers:
        notifier.close()


def told(manager: Manager) -> dict[str, str]:
    lines = manager[0].recv(65536).decode().split("\n")
    return dict(line.split("=", 1) for line in lines)


def test_a_manager_hears_ready_status_reloading_and_stopping(
    manager: Manager, made: list[Notifier]
) -> None:
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": manager[1]})
    made.append(notifier)
    assert notifier.present
    assert notifier.ready("takes HEP")
    assert told(manager) == {"READY": "1", "STATUS": "takes HEP"}
    assert notifier.status("3 calls")
    assert told(manager) == {"STATUS": "3 calls"}
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    assert notifier.reloading()
    said = told(manager)
    assert set(said) == {"RELOADING", "MONOTONIC_USEC"}
    assert before <= int(said["MONOTONIC_USEC"]) < before + LIMIT * 1e6
    assert notifier.ready()
    assert told(manager) == {"READY": "1"}
    assert notifier.stopping("drains")
    assert told(manager) == {"STOPPING": "1", "STATUS": "drains"}
    assert notifier.failures == 0


def test_a_status_is_one_line_of_bounded_length(manager: Manager, made: list[Notifier]) -> None:
    made.append(Notifier(manager[1]))
    made[0].status("a\nREADY=1\x1b[31m" + "x" * 10_000)
    said = told(manager)
    assert set(said) == {"STATUS"}
    assert said["STATUS"].startswith("a\\x0aREADY=1\\x1b[31mx")
    assert len(said["STATUS"]) == MAX_STATUS


def test_the_variables_are_gone_for_children(manager: Manager, made: list[Notifier]) -> None:
    environ = {
        "NOTIFY_SOCKET": manager[1], "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1", "PATH": "/bin",
        "LISTEN_FDS": "1", "LISTEN_PID": "1", "LISTEN_FDNAMES": "hep",
    }  # fmt: skip
    made.append(Notifier.from_environment(environ))
    assert listening(environ) == []
    assert environ == {"PATH": "/bin"}


@pytest.mark.parametrize(
    ("usec", "pid", "interval"),
    [
        ("30000000", "", 15.0),
        ("30000000", str(os.getpid()), 15.0),
        ("30000000", "1", None),
        ("0", "", None),
        ("", "", None),
        ("-5", "", None),
        ("1e6", "", None),
        ("٣", "", None),
    ],
)
def test_pings_are_due_at_half_the_limit_if_it_is_for_us(
    manager: Manager, made: list[Notifier], usec: str, pid: str, interval: float | None
) -> None:
    environ = {"NOTIFY_SOCKET": manager[1], "WATCHDOG_USEC": usec, "WATCHDOG_PID": pid}
    made.append(Notifier.from_environment(environ))
    assert made[0].watchdog_interval == interval
    assert made[0].ping() is (interval is not None)
    if interval:
        assert told(manager) == {"WATCHDOG": "1"}


@pytest.mark.parametrize(
    "address", [None, "", "relative", "vsock:2:1234", "/" + "x" * 200, "/a\0b", "/nowhere/notify"]
)
def test_without_a_manager_every_report_does_nothing(
    address: str | None, made: list[Notifier]
) -> None:
    environ = {"WATCHDOG_USEC": "1000000"} | ({} if address is None else {"NOTIFY_SOCKET": address})
    notifier = Notifier.from_environment(environ)
    made.append(notifier)
    calls = (notifier.ready, notifier.reloading, notifier.stopping, notifier.ping)
    assert not any([*(call() for call in calls), notifier.status("x")])


def test_a_manager_that_does_not_read_never_blocks_and_hears_the_newest_state_later(
    manager: Manager, made: list[Notifier]
) -> None:
    notifier = Notifier(manager[1], watchdog_interval=1.0)
    made.append(notifier)
    while notifier.ping():  # until its queue is full
        pass
    assert not notifier.ready()
    assert not notifier.stopping("drains")
    assert notifier.failures == 3
    manager[0].setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while manager[0].recv(100):
            pass
    assert notifier.ping()
    assert told(manager) == {"STOPPING": "1", "STATUS": "drains", "WATCHDOG": "1"}
    assert notifier.ping()
    assert told(manager) == {"WATCHDOG": "1"}


def test_a_closed_notifier_says_nothing(manager: Manager) -> None:
    notifier = Notifier(manager[1])
    notifier.close()
    notifier.close()
    assert not notifier.present
    assert not notifier.ready()


# What `sh` does here is what systemd does: the descriptors from 3 on, and the pid of the service.
CHILD = """
import os, socket
from sipsidecar.edges.systemd import SystemdError, listening
try:
    for name, sock in listening(os.environ):
        at = sock.getsockname()
        print(name, sock.family.name, sock.type.name, at[1] if at else "", sock.get_inheritable(),
              sock.getblocking())
        sock.close()
except SystemdError as error:
    print("error:", error)
print(sorted(name for name in os.environ if name.startswith("LISTEN_")))
"""


def child(descriptors: list[int], **variables: str) -> list[str]:
    """What a real process says that finds these descriptors from 3 on."""
    words = [sys.executable, "-c", CHILD]
    moved = "".join(f" {3 + number}<&{fd}" for number, fd in enumerate(descriptors))
    pid = variables.pop("LISTEN_PID", "$$")
    done = subprocess.run(
        ["/bin/bash", "-c", f'LISTEN_PID={pid} exec "$@"{moved}', "bash", *words],
        env=ENVIRONMENT | variables,
        pass_fds=descriptors,
        capture_output=True,
        encoding="utf-8",
        timeout=LIMIT,
        check=False,
    )
    assert done.stderr == ""
    *said, left = done.stdout.splitlines()
    assert left == "[]"
    return said


@pytest.fixture
def udp() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock


@pytest.fixture
def tcp() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def high(*sockets: socket.socket) -> Iterator[int]:
    """Descriptors out of the way of 3 to 9, for `sh` to move them there."""
    for number, sock in enumerate(sockets):
        yield os.dup2(sock.fileno(), 90 + number)


def test_a_service_takes_over_the_sockets_that_systemd_opened(
    udp: socket.socket, tcp: socket.socket
) -> None:
    fds = list(high(udp, tcp))
    try:
        said = child(fds, LISTEN_FDS="2", LISTEN_FDNAMES="hep:hep")
        assert said == [
            f"hep AF_INET SOCK_DGRAM {udp.getsockname()[1]} False False",
            f"hep AF_INET SOCK_STREAM {tcp.getsockname()[1]} False False",
        ]
        assert child(fds, LISTEN_FDS="1") == [said[0].replace("hep", "unknown")]
        assert child(fds, LISTEN_FDS="2", LISTEN_FDNAMES="hep")[1].startswith("unknown ")
        assert child(fds, LISTEN_FDS="0") == []
    finally:
        for fd in fds:
            os.close(fd)


def test_sockets_of_another_process_are_left_alone(udp: socket.socket) -> None:
    fds = list(high(udp))
    try:
        for pid in ("1", "''", "x"):
            assert child(fds, LISTEN_FDS="1", LISTEN_PID=pid) == []
    finally:
        os.close(fds[0])


def test_what_is_no_listening_socket_of_ours_is_one_line_that_names_it(
    udp: socket.socket, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with (
        (tmp_path / "file").open() as file,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as unix,
        socket.socket(socket.AF_INET, socket.SOCK_STREAM) as connecting,
    ):
        for wrong in (file, unix, connecting):
            fds = [os.dup2(udp.fileno(), 90), os.dup2(wrong.fileno(), 91)]
            try:
                said = child(fds, LISTEN_FDS="2", LISTEN_FDNAMES="hep:odd\x1b")
            finally:
                for fd in fds:
                    os.close(fd)
            (line,) = said
            assert line.startswith("error: descriptor 4 (odd\\x1b) from systemd is neither a UDP")
            assert line.endswith("ListenDatagram= and ListenStream= of sipsidecar.socket")
    assert child([], LISTEN_FDS="1", LISTEN_FDNAMES="hep")[0].startswith(
        "error: descriptor 3 (hep)"
    )


@pytest.mark.parametrize("count", ["65", "-1", "1x", "99999999999"])
def test_a_wild_number_of_sockets_is_refused(count: str) -> None:
    environ = {"LISTEN_FDS": count, "LISTEN_PID": "7"}
    with pytest.raises(SystemdError, match="at most 64 sockets"):
        listening(environ, pid=7)
