"""The files in systemd/ against the program that they start."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from running import LIMIT
from sipsidecar import cli
from sipsidecar.config import SECRETS, SETTINGS, Config, load

LETTERS = "a-secret-of-many-letters"
FOLDER = Path(__file__).parents[1] / "systemd"
MIB = 2**20
ANALYZE = shutil.which("systemd-analyze")
needs_systemd = pytest.mark.skipif(
    ANALYZE is None, reason="systemd-analyze is not here: apt-get install systemd"
)


def sections(text: str) -> dict[str, dict[str, list[str]]]:
    """Section, key, and its values in their order: systemd takes a key more than once."""
    found: dict[str, dict[str, list[str]]] = {}
    for line in text.splitlines():
        if line.startswith("["):
            section = found.setdefault(line.strip("[]"), {})
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            section.setdefault(key, []).append(value)
    return found


@pytest.fixture(scope="module")
def service() -> dict[str, list[str]]:
    return sections((FOLDER / "sipsidecar.service").read_text())["Service"]


@pytest.fixture(scope="module")
def sockets() -> dict[str, list[str]]:
    return sections((FOLDER / "sipsidecar.socket").read_text())["Socket"]


def uncommented(name: str) -> str:
    """A file with all of its examples in effect: `#key = value`, where prose is `# text`."""
    return re.sub(r"(?m)^#(?=[A-Za-z_]+ ?=)", "", (FOLDER / name).read_text())


def size(text: str) -> int:
    found = re.fullmatch("([0-9]+)([MG])", text)
    assert found, text
    return int(found[1]) * {"M": MIB, "G": 1024 * MIB}[found[2]]


def seconds(text: str) -> float:
    found = re.fullmatch("([0-9]+)(s|min)", text)
    assert found, text
    return int(found[1]) * {"s": 1, "min": 60}[found[2]]


# -- the units


@needs_systemd
@pytest.mark.parametrize("form", ["as it is", "with its examples"])
def test_systemd_finds_nothing_wrong(tmp_path: Path, form: str) -> None:
    names = ("sipsidecar.service", "sipsidecar.socket")
    for name in names:
        text = (FOLDER / name).read_text() if form == "as it is" else uncommented(name)
        # the program need not be installed here
        (tmp_path / name).write_text(re.sub(r"=/opt/sipsidecar/bin/\w+", "=/bin/true", text))
    done = subprocess.run(
        [str(ANALYZE), "verify", "--man=no", *(str(tmp_path / name) for name in names)],
        capture_output=True, encoding="utf-8", timeout=LIMIT, check=False,
        env={"SYSTEMD_UNIT_PATH": f"{tmp_path}:", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    ours = [line for line in done.stderr.splitlines() if "sipsidecar" in line]
    assert ours == []
    assert done.returncode == 0, done.stderr


@needs_systemd
def test_the_sandbox_is_as_tight_as_it_was(tmp_path: Path) -> None:
    done = subprocess.run(
        [str(ANALYZE), "security", "--offline=true", "--no-pager", "--threshold=18",
         str(FOLDER / "sipsidecar.service")],
        capture_output=True, encoding="utf-8", timeout=LIMIT, check=False,
    )  # fmt: skip
    if "offline" in done.stderr:
        pytest.skip("this systemd-analyze reads no unit that is not loaded")
    assert done.returncode == 0, done.stdout[-300:]


def test_the_program_is_called_with_words_that_it_knows(
    service: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (line,) = service["ExecStart"]
    program, *words = shlex.split(line)
    assert Path(program).name == "sipsidecar"
    monkeypatch.setattr("sipsidecar.cli.commands._run", lambda _: 77)
    assert cli.main(words) == 77


def test_variables_of_the_service_are_settings(service: dict[str, list[str]]) -> None:
    known = {setting.variable for setting in SETTINGS}
    with_examples = sections(uncommented("sipsidecar.service"))["Service"]
    named = [
        word.partition("=")[0]
        for line in with_examples["Environment"]
        for word in shlex.split(line)
    ]
    assert len(named) > len(service["Environment"])
    assert {name for name in named if name.startswith("SIPSIDECAR_")} <= known
    assert {name for name in named if not name.startswith("SIPSIDECAR_")} == {"XDG_STATE_HOME"}


def test_secrets_given_as_credentials_can_be_read(tmp_path: Path) -> None:
    with_examples = sections(uncommented("sipsidecar.service"))["Service"]
    for credential in with_examples["LoadCredential"]:
        (tmp_path / credential.partition(":")[0]).write_text(LETTERS)
    environ = dict(
        word.replace("%d", str(tmp_path)).split("=", 1)
        for line in with_examples["Environment"]
        for word in shlex.split(line)
    )
    loaded = load(None, environ | {"SIPSIDECAR_HTTP__TLS_CERTIFICATE": "c.pem"}, {})
    config = loaded.config
    assert config.http.read_tokens == (LETTERS,)
    assert config.hep.keys == {"*": LETTERS}
    assert config.database.password == config.privacy.key == LETTERS
    assert Path(config.http.tls_key).parent == tmp_path


def test_a_stop_waits_for_the_drain_and_the_database(service: dict[str, list[str]]) -> None:
    from sipsidecar.app import DRAIN_SECONDS
    from sipsidecar.edges.embedded.server import STOP_STEPS

    database = sum(limit for _, limit in STOP_STEPS) + 10.0  # the kill at the end
    assert seconds(service["TimeoutStopSec"][0]) >= DRAIN_SECONDS + database + 10
    # a PostgreSQL that is told to stop first could take no last row
    assert service["KillMode"] == ["mixed"]
    assert service["KillSignal"] == ["SIGTERM"]


def test_the_memory_of_the_cgroup_is_enough_for_all_that_is_in_it(
    service: dict[str, list[str]], sockets: dict[str, list[str]]
) -> None:
    config = Config()
    assert size(sockets["ReceiveBuffer"][0]) == config.hep.receive_buffer_bytes
    in_kernel = 2 * config.hep.receive_buffer_bytes
    shared_buffers, others = 128 * MIB, 256 * MIB
    needed = config.limits.memory_bytes + in_kernel + shared_buffers + others
    assert needed <= size(service["MemoryMax"][0]) <= 2 * needed


def test_descriptors_are_enough_for_every_connection(service: dict[str, list[str]]) -> None:
    config = Config()
    most = 2 * config.hep.tcp_connections + config.http.connections  # plain and TLS
    assert int(service["LimitNOFILE"][0]) >= most + 1000


def test_the_socket_listens_where_the_sidecar_would(sockets: dict[str, list[str]]) -> None:
    listen = Config().hep.listen
    assert sockets["ListenDatagram"] == sockets["ListenStream"] == [listen]
    assert sockets["FileDescriptorName"] == ["hep"]


def test_the_service_only_has_the_capability_for_the_receive_buffer(
    service: dict[str, list[str]],
) -> None:
    assert service["CapabilityBoundingSet"] == service["AmbientCapabilities"] == ["CAP_NET_ADMIN"]
    assert service["DynamicUser"] == service["NoNewPrivileges"] == ["yes"]


# -- the example configuration


def test_the_example_configuration_is_the_defaults() -> None:
    loaded = load(FOLDER / "sipsidecar.toml", {}, {})
    assert loaded.config == Config()
    assert any(source.startswith("file ") for source in loaded.sources.values())


def test_each_example_in_it_can_be_uncommented(tmp_path: Path) -> None:
    path = tmp_path / "sipsidecar.toml"
    path.write_text(uncommented("sipsidecar.toml"))
    loaded = load(path, {}, {})
    from_file = {key for key, source in loaded.sources.items() if source.startswith("file ")}
    plain = load(FOLDER / "sipsidecar.toml", {}, {})
    before = {key for key, source in plain.sources.items() if source.startswith("file ")}
    assert len(from_file) >= len(before) + 10
    assert not from_file & SECRETS
    assert loaded.config.hep.agents == {"kamailio-1": 2001, "freeswitch-1": 100}
