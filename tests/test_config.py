import json
import re
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipsidecar import config
from sipsidecar.config import (
    LEAST_SECRET,
    SECRETS,
    SETTINGS,
    Config,
    ConfigError,
    Loaded,
    find_file,
    is_loopback,
    load,
    parse_address,
    redacted,
    render,
    render_json,
    settings_markdown,
)


def file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "sipsidecar.toml"
    path.write_text(text, encoding="utf-8")
    return path


def error_of(
    path: Path | None = None,
    environ: dict[str, str] | None = None,
    flags: dict[str, object] | None = None,
) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, environ or {}, flags or {})
    text = str(caught.value)
    assert "\n" not in text
    return text


def of_env(name: str, text: str) -> Config:
    return load(None, {f"SIPSIDECAR_{name}": text}, {}).config


# ---------------------------------------------------------------------------- where values come from


def test_nothing_given_means_the_defaults() -> None:
    loaded = load(None, {"PATH": "/bin"}, {})
    assert loaded.config == Config()
    assert set(loaded.sources.values()) == {"default"}
    assert loaded.config.hep.listen == "127.0.0.1:9060"
    assert loaded.config.retention.messages_days == 7


def test_a_flag_wins_over_the_environment_that_over_the_file_that_over_the_default(
    tmp_path: Path,
) -> None:
    path = file(
        tmp_path,
        """
        [hep]
        listen = "192.0.2.1:1"
        tcp = false
        insecure = true
        [http]
        listen = "192.0.2.1:2"
        insecure = true
        [node]
        id = 7
        """,
    )
    environ = {"SIPSIDECAR_HEP__LISTEN": "192.0.2.2:1", "SIPSIDECAR_HTTP__LISTEN": "192.0.2.2:2"}
    loaded = load(path, environ, {"hep.listen": "192.0.2.3:1", "http.listen": None})
    assert loaded.config.hep.listen == "192.0.2.3:1"
    assert loaded.sources["hep.listen"] == "flag --hep"
    assert loaded.config.http.listen == "192.0.2.2:2"
    assert loaded.sources["http.listen"] == "env SIPSIDECAR_HTTP__LISTEN"
    assert (loaded.config.hep.tcp, loaded.config.node.id) == (False, 7)
    assert loaded.sources["hep.tcp"] == loaded.sources["node.id"] == f"file {path}"
    assert loaded.sources["log.level"] == "default"


def test_every_setting_can_be_set_by_its_own_environment_variable() -> None:
    for setting in SETTINGS:
        default = setting.default
        text = default if isinstance(default, str) else json.dumps(default)
        loaded = load(None, {setting.variable: text}, {})
        assert loaded.config == Config()
        changed = {key: source for key, source in loaded.sources.items() if source != "default"}
        assert changed == {setting.key: f"env {setting.variable}"}


def test_a_flag_without_a_short_name_is_named_by_its_key() -> None:
    loaded = load(None, {}, {"log.level": "debug", "node.id": 3, "calls.max_calls": "5"})
    assert loaded.sources["log.level"] == "flag --log.level"
    assert (loaded.config.node.id, loaded.config.calls.max_calls) == (3, 5)


def test_other_variables_of_the_prefix_are_left_alone() -> None:
    environ = {"SIPSIDECAR_CONFIG": "x", "SIPSIDECAR_SERVICE_HOST": "192.0.2.1"}
    assert load(None, environ, {}).config == Config()


# --------------------------------------------------------------------------- reading text into values


@pytest.mark.parametrize(
    ("text", "addresses"),
    [
        ("192.0.2.1,2001:db8::1", ("192.0.2.1", "2001:db8::1")),
        (" 192.0.2.1 , ", ("192.0.2.1",)),
        ("", ()),
        ('["192.0.2.1"]', ("192.0.2.1",)),
        ("['192.0.2.1', '192.0.2.2']", ("192.0.2.1", "192.0.2.2")),
    ],
)
def test_a_list_is_comma_separated_or_a_literal(text: str, addresses: tuple[str, ...]) -> None:
    assert of_env("HEP__LOCAL_ADDRESSES", text).hep.local_addresses == addresses


@pytest.mark.parametrize("text", ['{"edge": 2001}', "{ edge = 2001 }", '{"edge" = 2001}'])
def test_a_table_is_a_json_or_toml_literal(text: str) -> None:
    assert of_env("HEP__AGENTS", text).hep.agents == {"edge": 2001}


def test_numbers_and_booleans_are_read_from_text() -> None:
    assert of_env("CALLS__SETTLE_SECONDS", "1.5").calls.settle_seconds == 1.5
    assert of_env("CALLS__SETTLE_SECONDS", "0").calls.settle_seconds == 0.0
    assert of_env("HEP__TCP", "False").hep.tcp is False


@pytest.mark.parametrize("text", ["", " 1", "1_000", "\u0663", "0x10", "1.0", "1e3", "9" * 19])
def test_what_is_not_a_plain_integer_is_refused(text: str) -> None:
    error = error_of(environ={"SIPSIDECAR_NODE__ID": text})
    assert error == f"node.id: expected int, got {text!r} (env SIPSIDECAR_NODE__ID)"


# ------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("[hep]\nlisten = 5", "hep.listen: expected str, got int"),
        ("[hep]\ntcp = 1", "hep.tcp: expected true or false, got 1"),
        ("[hep]\ntcp = 'yes'", "hep.tcp: expected true or false, got 'yes'"),
        ("[hep]\nlocal_addresses = ['::1', 1]", "hep.local_addresses[1]: expected str, got int"),
        ("[hep]\nlocal_addresses = {}", "hep.local_addresses: expected list, got table"),
        ("[hep]\nagents = { a = 'x' }", "hep.agents: expected int, got str"),
        ("[hep]\nagents = { a = -1 }", "hep.agents: expected int >= 0, got {'a': -1}"),
        ("[node]\nid = 0", "node.id: expected int >= 1, got 0"),
        ("[node]\nid = 2147483648", "node.id: expected int <= 2147483647, got 2147483648"),
        ("[node]\nid = true", "node.id: expected int, got bool"),
        ("[node]\nid = 2.0", "node.id: expected int, got float"),
        ("[calls]\nsettle_seconds = nan", "calls.settle_seconds: expected float >= 0.0, got nan"),
        ("[calls]\nsettle_seconds = inf", "calls.settle_seconds: expected float <= 60.0, got inf"),
        (
            "[log]\nlevel = 'loud'",
            "log.level: expected debug or info or warning or error, got 'loud'",
        ),
        ("[log]\nformat = 1", "log.format: expected text or json, got 1"),
        ("[hep]\nlistne = 'x'", "hep.listne: no such setting, did you mean hep.listen?"),
        ("[heap]\nlisten = 'x'", "heap.listen: no such setting, did you mean hep.listen?"),
        ("[htpp]", "htpp: no such setting, did you mean http?"),
        ("qqqq = 1", "qqqq: no such setting"),
        ("hep = 1", "hep: expected [hep] and keys under it"),
        ('[hep]\n"\\u001b[31m" = 1', r"hep.\x1b[31m: no such setting"),
    ],
)
def test_a_wrong_value_in_the_file_is_told_with_its_key_and_the_file(
    tmp_path: Path, text: str, error: str
) -> None:
    path = file(tmp_path, text)
    assert error_of(path) == f"{error} (file {path})"


def test_an_unknown_environment_variable_of_a_section_is_refused() -> None:
    error = error_of(environ={"SIPSIDECAR_HEP__LISTN": "x"})
    assert error == (
        "SIPSIDECAR_HEP__LISTN: no such setting, did you mean SIPSIDECAR_HEP__LISTEN? (env)"
    )


def test_an_unknown_flag_is_refused() -> None:
    assert error_of(flags={"hep.listn": "x"}).startswith("hep.listn: no such setting, did you")


@pytest.mark.parametrize("text", ["{a = ", "[1", "edge=2001"])
def test_a_literal_that_cannot_be_read_is_refused(text: str) -> None:
    error = error_of(environ={"SIPSIDECAR_HEP__AGENTS": text})
    assert error == f"hep.agents: expected table, got {text!r} (env SIPSIDECAR_HEP__AGENTS)"


@pytest.mark.parametrize(
    ("name", "text", "error"),
    [
        ("HEP__LISTEN", "9060", "expected ADDR:PORT such as 127.0.0.1:9060 or [::1]:9060"),
        ("HTTP__LISTEN", "127.0.0.1", "expected ADDR:PORT"),
        ("HEP__LOCAL_ADDRESSES", "proxy", "'proxy' does not appear to be an IPv4 or IPv6 address"),
        ("HEP__ALLOW", "192.0.2.1/24", "192.0.2.1/24 has host bits set"),
        ("HEP__ALLOW", "::1,proxy", "'proxy' does not appear to be an IPv4 or IPv6 network"),
        ("HEP__ALLOW", "fe80::%eth0/64", "'fe80::%eth0/64' names an interface"),
        ("HEP__TLS_LISTEN", "9061", "expected ADDR:PORT"),
        ("HEP__AGENTS", '{"a b": 1}', "a name has 1 to 64 letters, digits, _ or -, got 'a b'"),
        ("HEP__AGENTS", "{a = 1, b = 1}", "one capture id has two names"),
        ("DATABASE__DSN", "host=db password=hush", "expected postgresql://USER@HOST/NAME"),
    ],
)
def test_a_value_of_the_right_type_that_means_nothing_is_refused(
    name: str, text: str, error: str
) -> None:
    told = error_of(environ={f"SIPSIDECAR_{name}": text})
    assert told.startswith(f"{name.lower().replace('__', '.')}: {error}")
    assert told.endswith(f"(env SIPSIDECAR_{name})")
    assert "hush" not in told


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    missing = tmp_path / "missing.toml"
    assert error_of(missing) == f"{missing}: No such file or directory"
    assert error_of(tmp_path) == f"{tmp_path}: Is a directory"
    broken = file(tmp_path, "[hep\n")
    assert error_of(broken).startswith(f"{broken}: Expected ']'")
    broken.write_bytes(b"\xff\xfe")
    assert "utf-8" in error_of(broken)


# ------------------------------------------------------------------------------------------ addresses


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:9060", ("127.0.0.1", 9060)),
        ("0.0.0.0:0", ("0.0.0.0", 0)),  # noqa: S104
        ("[::1]:65535", ("::1", 65535)),
        ("[fe80::1%eth0]:1", ("fe80::1%eth0", 1)),
        ("localhost:9060", ("localhost", 9060)),
    ],
)
def test_an_address_is_split_into_host_and_port(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text",
    [
        "", ":9060", "9060", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:-1",
        "127.0.0.1:9060 ", "127.0.0.1:\u0663", "::1:9060", "[127.0.0.1]:1", "[::1]", "[]:1",
        "example.com:9060", "256.0.0.1:1", "127.0.0.1:123456",
    ],
)  # fmt: skip
def test_what_is_not_an_address_and_port_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected ADDR:PORT"):
        parse_address(text)


@given(st.text(alphabet="0123456789.:[]localhst%", max_size=20) | st.text(max_size=10))
def test_any_text_is_an_address_or_a_value_error(text: str) -> None:
    try:
        host, port = parse_address(text)
    except ValueError:
        return
    assert host
    assert 0 <= port <= 65535


# ----------------------------------------------------------------------------------------- which file


def test_the_file_is_the_flag_s_else_the_environment_s_else_the_default_s(tmp_path: Path) -> None:
    default = tmp_path / "default.toml"
    environ = {"SIPSIDECAR_CONFIG": "env.toml"}
    assert find_file(Path("flag.toml"), environ, default) == Path("flag.toml")
    assert find_file(None, environ, default) == Path("env.toml")
    assert find_file(None, {}, default) is None
    default.touch()
    assert find_file(None, {"SIPSIDECAR_CONFIG": ""}, default) == default


# ------------------------------------------------------------------------------------------- secrets

HUSH = "hush-hush-hush-hush"


def secrets() -> dict[str, Any]:
    """A value for each secret; the type of each is that of its default."""
    return {
        "hep.keys": {"2001": HUSH, "*": HUSH},
        "http.read_tokens": [HUSH, HUSH],
        "http.operate_tokens": [HUSH],
        "http.post_tokens": [HUSH],
        "alerts.secrets": {"pager": HUSH},
        "otel.headers": {"Authorization": HUSH},
        "database.password": HUSH,
        "freeswitch.passwords": {"fs1": HUSH, "*": HUSH},
        "privacy.key": HUSH,
    }


def value_of(loaded: Loaded, key: str) -> Any:
    section, _, name = key.partition(".")
    return getattr(getattr(loaded.config, section), name)


def each(value: Any, text: str) -> Any:
    """The same value with another text in place of each secret."""
    if isinstance(value, dict):
        return dict.fromkeys(value, text)
    return text if isinstance(value, str) else [text] * len(value)


def test_the_settings_that_are_secret_say_so_and_no_others_do() -> None:
    told = {s.key for s in SETTINGS if str(s.meta.description).endswith("; secret")}
    assert told == SECRETS == secrets().keys()


@pytest.mark.parametrize("where", ["file", "env", "plain"])
@pytest.mark.parametrize("key", sorted(SECRETS))
def test_a_secret_is_fetched_from_where_it_is_and_never_shown(
    tmp_path: Path, key: str, where: str
) -> None:
    kept = tmp_path / "secret"
    kept.write_text(f"\n {HUSH}\n", encoding="utf-8")
    reference = {"file": f"file:{kept}", "env": "env:THE_SECRET", "plain": HUSH}[where]
    given = each(secrets()[key], reference)
    loaded = load(None, {"THE_SECRET": HUSH}, {key: given})
    assert json.loads(json.dumps(value_of(loaded, key))) == secrets()[key]
    seen = "***" if where == "plain" else reference
    assert json.loads(render_json(loaded))[key]["value"] == each(given, seen)
    section, _, name = key.partition(".")
    assert tomllib.loads(render(loaded))[section][name] == each(given, seen)
    assert HUSH not in render(loaded) + render_json(loaded)


@pytest.mark.parametrize("key", sorted(SECRETS))
def test_a_secret_that_is_not_where_it_should_be_is_told_without_another(
    tmp_path: Path, key: str
) -> None:
    def told(reference: str) -> str:
        return error_of(None, {"EMPTY": "", "OTHER": HUSH}, {key: each(secrets()[key], reference)})

    missing, empty, binary = (tmp_path / name for name in ("missing", "empty", "binary"))
    empty.write_text(" \n", encoding="utf-8")
    binary.write_bytes(b"\xffhush")
    flag = f"(flag --{key})"
    assert told(f"file:{missing}") == f"{key}: {missing}: No such file or directory {flag}"
    assert told(f"file:{tmp_path}") == f"{key}: {tmp_path}: Is a directory {flag}"
    assert told(f"file:{empty}") == f"{key}: file:{empty}: nothing there {flag}"
    assert told(f"file:{binary}") == f"{key}: {binary}: expected text in UTF-8 {flag}"
    assert told("env:EMPTY") == f"{key}: env:EMPTY: nothing there {flag}"
    assert told("env:MISSING") == f"{key}: env:MISSING: nothing there {flag}"


@pytest.mark.parametrize(
    "value", [5, True, {"a": 1}, {"hush": 1}, {"hush": HUSH}, [1], [["hush"]], {"a": ["hush"]}]
)
@pytest.mark.parametrize("key", sorted(SECRETS))
def test_a_secret_of_a_wrong_type_is_refused_without_being_shown(key: str, value: object) -> None:
    named = {"freeswitch.passwords", "alerts.secrets", "otel.headers"}
    if key in named and value == {"hush": HUSH}:
        pytest.skip("a switch, a secret or a header may be called so")
    if key in {"alerts.secrets", "otel.headers"} and value == {"hush": 1}:
        pytest.skip("it is the name that is shown")
    assert "hush" not in error_of(None, {}, {key: value})


@pytest.mark.parametrize("key", sorted(SECRETS))
def test_a_secret_that_cannot_be_read_from_the_environment_is_not_shown(key: str) -> None:
    name = f"SIPSIDECAR_{key.upper().replace('.', '__')}"
    if key in {"database.password", "privacy.key"}:
        assert value_of(load(None, {name: "{a = 'x', " + HUSH}, {}), key).endswith(HUSH)
    else:
        assert "hush" not in error_of(None, {name: "[{a = 'hush"})


@pytest.mark.parametrize(
    "key", ["http.read_tokens", "http.operate_tokens", "http.post_tokens", "privacy.key"]
)
def test_a_secret_that_can_be_guessed_is_refused(key: str) -> None:
    short = "hush" * 4
    assert len(short) == LEAST_SECRET
    load(None, {}, {key: each(secrets()[key], short)})
    told = error_of(None, {}, {key: each(secrets()[key], short[1:])})
    assert told == f"{key}: expected 16 characters or more (flag --{key})"


@pytest.mark.parametrize(
    "key", ["hep.keys", "http.read_tokens", "http.operate_tokens", "http.post_tokens"]
)
def test_an_empty_token_or_key_is_refused(key: str) -> None:
    told = error_of(None, {}, {key: each(secrets()[key], "")})
    assert told == f"{key}: expected secrets, got an empty one (flag --{key})"


@pytest.mark.parametrize("key", ["database.password", "privacy.key"])
def test_an_empty_secret_that_is_no_list_is_none(key: str) -> None:
    loaded = load(None, {}, {key: ""})
    assert value_of(loaded, key) == ""
    assert json.loads(render_json(loaded))[key]["value"] == ""


def test_a_secret_that_another_source_replaces_is_not_looked_for(tmp_path: Path) -> None:
    path = file(tmp_path, "[database]\npassword = 'file:/no/such/file'")
    loaded = load(path, {"SIPSIDECAR_DATABASE__PASSWORD": HUSH}, {})
    assert loaded.config.database.password == HUSH
    assert loaded.references == {"database.password": "***"}


@pytest.mark.parametrize("name", ["", "fs 1", "fs.1", "x" * 65, "\u0663"])
def test_a_switch_that_cannot_label_a_metric_is_refused(name: str) -> None:
    told = error_of(None, {}, {"freeswitch.switches": {name: "127.0.0.1:8021"}})
    assert told.startswith("freeswitch.switches: a name has 1 to 64 letters, digits, _ or -")


def test_the_name_of_all_other_switches_is_no_switchs_own() -> None:
    told = error_of(None, {}, {"freeswitch.switches": {"other": "127.0.0.1:8021"}})
    assert told.startswith("freeswitch.switches: `other` stands for all")


@pytest.mark.parametrize(
    ("users", "passwords", "told"),
    [
        ({"fs2": "a@b"}, {"*": HUSH}, "freeswitch.users: 'fs2' is not in freeswitch.switches"),
        ({"fs1": "nobody"}, {"*": HUSH}, "freeswitch.users: expected USER@DOMAIN for fs1"),
        ({}, {}, 'freeswitch.passwords: fs1 has none: set { fs1 = "file:/path" }, or one for "*"'),
        ({}, {"fs2": HUSH}, "freeswitch.passwords: fs1 has none"),
        ({}, {"fs1": "two\nhush"}, "freeswitch.passwords: fs1: expected one line of text"),
        ({"fs1": "a\n@b"}, {"*": HUSH}, "freeswitch.passwords: fs1: expected one line of text"),
    ],
)
def test_a_switch_that_nobody_could_log_in_to_is_refused(
    users: dict[str, str], passwords: dict[str, str], told: str
) -> None:
    flags: dict[str, object] = {
        "freeswitch.switches": {"fs1": "127.0.0.1:8021"},
        "freeswitch.users": users,
        "freeswitch.passwords": passwords,
    }
    error = error_of(None, {}, flags)
    assert error.startswith(told)
    assert "hush" not in error


def test_a_switch_without_a_port_is_refused() -> None:
    told = error_of(None, {}, {"freeswitch.switches": {"fs1": "127.0.0.1"}})
    assert "expected ADDR:PORT" in told


@pytest.mark.parametrize("capture_id", ["0", "7", "2001", "4294967295", "*"])
def test_a_key_belongs_to_a_capture_id_or_to_the_rest(capture_id: str) -> None:
    assert load(None, {}, {"hep.keys": {capture_id: "k"}}).config.hep.keys == {capture_id: "k"}


@pytest.mark.parametrize(
    "capture_id", ["", "edge", "-1", "4294967296", "1.0", "01", " 1", "**", "\u0663", HUSH]
)
def test_a_key_of_anything_else_is_refused_and_not_shown(capture_id: str) -> None:
    told = error_of(None, {}, {"hep.keys": {capture_id: HUSH}})
    assert told == (
        'hep.keys: expected { ID = "KEY" }, where ID is a capture id or "*" (flag --hep.keys)'
    )


def test_a_key_that_is_too_long_for_a_packet_is_refused() -> None:
    told = error_of(None, {}, {"hep.keys": {"7": "hush" * 1000}})
    assert told == "hep.keys: the key of 7 must have 1 to 1024 bytes (flag --hep.keys)"


# ------------------------------------------------------------------------------------ wrong together

PUBLIC = "192.0.2.1:9060"
TLS = {"hep.tls_certificate": "c.pem", "hep.tls_key": "k.pem"}
ALLOW, KEYS = {"hep.allow": ["192.0.2.0/24"]}, {"hep.keys": {"*": "k"}}


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        ("127.0.0.1:1", True),
        ("127.255.255.254:1", True),
        ("[::1]:1", True),
        ("localhost:1", True),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("[::2]:1", False),
        ("[::ffff:192.0.2.1]:1", False),
        ("[fe80::1%lo]:1", False),
        ("10.0.0.1:1", False),
        ("128.0.0.1:1", False),
    ],
)
def test_only_this_machine_reaches_a_loopback_address(address: str, loopback: bool) -> None:
    assert is_loopback(address) is loopback


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        ({"hep.tls_certificate": "c.pem"}, "hep.tls_key: TLS needs both a certificate and a key"),
        ({"hep.tls_key": "k.pem"}, "hep.tls_certificate: TLS needs both"),
        ({"http.tls_certificate": "c.pem"}, "http.tls_key: TLS needs both"),
        ({"http.tls_key": "k.pem"}, "http.tls_certificate: TLS needs both"),
        ({"hep.tls_listen": "127.0.0.1:1"}, "hep.tls_listen: needs hep.tls_certificate"),
        (
            {"hep.tls_client_ca": "ca.pem"},
            "hep.tls_client_ca: guards nothing without hep.tls_listen",
        ),
        ({"privacy.mask_users": True}, "privacy.key: masking needs a key"),
        ({"privacy.mask_names": True}, "privacy.key: masking needs a key"),
        ({"hep.listen": PUBLIC}, f"hep.listen: {PUBLIC} can be reached by everybody"),
        ({"hep.listen": "0.0.0.0:1"}, "hep.listen: 0.0.0.0:1 can be reached by everybody"),
        ({"hep.listen": "[::]:1"}, "hep.listen: [::]:1 can be reached by everybody"),
        ({"hep.tls_listen": PUBLIC, **TLS}, f"hep.tls_listen: {PUBLIC} can be reached by"),
        (
            # an authority says nothing about who may speak to the plain port
            {"hep.listen": PUBLIC, "hep.tls_listen": PUBLIC, "hep.tls_client_ca": "ca.pem", **TLS},
            f"hep.listen: {PUBLIC} can be reached by everybody",
        ),
        ({"http.listen": PUBLIC}, f"http.listen: {PUBLIC} can be reached by everybody"),
        ({"http.listen": PUBLIC, "hep.insecure": True}, f"http.listen: {PUBLIC} can be"),
        ({"hep.listen": PUBLIC, "http.insecure": True}, f"hep.listen: {PUBLIC} can be"),
    ],
)
def test_settings_that_are_wrong_together_are_refused(flags: dict[str, object], error: str) -> None:
    assert error_of(None, {}, flags).startswith(error)


@pytest.mark.parametrize(
    "flags",
    [
        {"hep.listen": PUBLIC, **ALLOW},
        {"hep.listen": PUBLIC, **KEYS},
        {"hep.listen": PUBLIC, "hep.insecure": True},
        {"hep.tls_listen": PUBLIC, **TLS, **ALLOW},
        {"hep.tls_listen": PUBLIC, **TLS, **KEYS},
        {"hep.tls_listen": PUBLIC, **TLS, "hep.insecure": True},
        {"hep.tls_listen": PUBLIC, **TLS, "hep.tls_client_ca": "ca.pem"},
        {"hep.tls_listen": "127.0.0.1:1", **TLS},
        {"http.listen": PUBLIC, "http.read_tokens": [HUSH]},
        {"http.listen": PUBLIC, "http.operate_tokens": [HUSH]},
        {"http.listen": PUBLIC, "http.insecure": True},
        {"http.listen": "[::1]:1", "http.tls_certificate": "c.pem", "http.tls_key": "k.pem"},
        {"privacy.mask_users": True, "privacy.mask_names": True, "privacy.key": HUSH},
        {"privacy.mask_bodies": True},
    ],
)
def test_settings_that_are_right_together_are_taken(flags: dict[str, object]) -> None:
    loaded = load(None, {}, flags)
    assert {key for key, source in loaded.sources.items() if source != "default"} == set(flags)


def test_what_is_wrong_together_is_told_with_where_it_was_set(tmp_path: Path) -> None:
    path = file(tmp_path, f"[hep]\nlisten = '{PUBLIC}'")
    assert error_of(path).endswith(f"or set hep.insecure = true (file {path})")
    assert error_of(environ={"SIPSIDECAR_HTTP__LISTEN": PUBLIC}).endswith(
        "(env SIPSIDECAR_HTTP__LISTEN)"
    )


# -------------------------------------------------------------------------------------------- showing


def shown() -> Loaded:
    return load(
        None,
        {
            "SIPSIDECAR_DATABASE__DSN": "postgresql://me:hu:s/h@db:5432/calls?sslpassword=hush&a=b",
            "SIPSIDECAR_HEP__AGENTS": "{edge = 1, core = 2}",
            "SIPSIDECAR_NODE__NAME": 'a "b"',
        },
        {"hep.local_addresses": ["192.0.2.1", "::1"]},
    )


def test_the_rendered_settings_are_toml_of_the_same_values_without_passwords() -> None:
    loaded = shown()
    document = tomllib.loads(render(loaded))
    dsn = "postgresql://me:***@db:5432/calls?sslpassword=***&a=b"
    assert document["database"]["dsn"] == dsn
    document["database"]["dsn"] = loaded.config.database.dsn
    assert msgspec.convert(document, Config) == loaded.config


def test_the_rendered_settings_are_aligned_and_say_where_each_comes_from() -> None:
    lines = render(shown()).split("\n")
    assert len(lines) == len(SETTINGS)
    assert len({line.index(" = ") for line in lines}) == 1
    assert len({line.rindex("  # ") for line in lines}) == 1
    assert lines[0].endswith("  # default")
    assert any(
        re.fullmatch(r"hep.agents +=.*  # env SIPSIDECAR_HEP__AGENTS", line) for line in lines
    )
    assert "hush" not in "".join(lines)


def test_a_long_value_does_not_push_the_sources_of_all_others_out_of_sight(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text("[http]\nhosts = [" + ", ".join(f'"{n}.example"' for n in range(99)) + "]\n")
    lines = render(load(path, {}, {})).split("\n")
    assert sum(len(line) > 160 for line in lines) == 1


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('[[detect.slos]]\nname = "x"', "detect.slos[0]: needs the key objective_percent"),
        ('[[trunks.peers]]\nname = "x"', "trunks.peers[0]: needs the key uri"),
        (
            '[trunks]\nresolvers = ["192.0.2.53", "dns.x"]',
            "trunks.resolvers: expected ADDR or ADDR:PORT such as 192.0.2.53 or [::1]:53, got 'dns.x'",
        ),
        (
            '[[alerts.receivers]]\nname = "x"\nkind = "slak"\nurl = "https://x.example/hush"',
            "alerts.receivers[0].kind: no such one, did you mean slack?, got 'slak'",
        ),
        (
            '[[alerts.receivers]]\nname = "x"\nkind = "slack"\nlink = "https://x.example/hush"',
            "alerts.receivers[0]: no such key link",
        ),
    ],
)
def test_what_is_wrong_in_one_table_of_a_list_is_said_without_the_rest_of_it(
    tmp_path: Path, text: str, error: str
) -> None:
    path = tmp_path / "s.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(path, {}, {})
    assert str(caught.value) == f"{error} (file {path})"


def test_a_value_cannot_move_the_terminal() -> None:
    assert "\x9b" not in render(load(None, {"SIPSIDECAR_NODE__NAME": "\x9b31m"}, {}))


def test_the_settings_as_json_have_value_and_source_of_each_key() -> None:
    document = json.loads(render_json(shown()))
    assert list(document) == [setting.key for setting in SETTINGS]
    assert document["hep.agents"] == {
        "value": {"edge": 1, "core": 2},
        "source": "env SIPSIDECAR_HEP__AGENTS",
    }
    assert document["hep.local_addresses"]["value"] == ["192.0.2.1", "::1"]
    assert "hush" not in json.dumps(document)


@pytest.mark.parametrize(
    ("dsn", "plain"),
    [
        ("", ""),
        ("postgresql://db/calls", "postgresql://db/calls"),
        ("postgresql://me@db/calls", "postgresql://me@db/calls"),
        ("postgresql://me:p@db/calls", "postgresql://me:***@db/calls"),
        ("postgresql://me:p@ss@db/calls", "postgresql://me:***@db/calls"),
        ("postgresql://db/calls?user=me&PASSWORD=p", "postgresql://db/calls?user=me&PASSWORD=***"),
        ("postgresql://db:5432/calls?x=a@b", "postgresql://db:***@b"),
    ],
)
def test_a_password_never_leaves_a_dsn(dsn: str, plain: str) -> None:
    assert redacted(dsn) == plain


def test_every_setting_has_a_description_and_a_default_that_fits() -> None:
    assert len({setting.key for setting in SETTINGS}) == len(SETTINGS) == 130
    for setting in SETTINGS:
        assert setting.meta.description
        assert "|" not in setting.meta.description
        msgspec.convert(msgspec.to_builtins(setting.default), setting.annotation)


def test_the_keys_with_a_flag_of_their_own_exist() -> None:
    assert set(config.FLAGS) <= {setting.key for setting in SETTINGS}


def test_the_table_for_people_has_a_row_per_setting() -> None:
    lines = settings_markdown().split("\n")
    assert len(lines) == len(SETTINGS) + 2
    assert {line.count("|") for line in lines} == {5}
    assert lines[2] == (
        "| `node.id` | integer, 1 to 2147483647 | `1` "
        "| Number of this sidecar; no other may have it |"
    )
    assert any("| `hep.agents` | table | `{}` |" in line for line in lines)
    assert '| `log.format` | `text` or `json` | `"text"` |' in lines[-1]


ADMISSION = """
[[cohorts.match]]
trunk = "acme"
sources = ["192.0.2.0/24"]

[admission]
routes = ["ivr"]
fail_closed = ["acme"]

[[admission.rules]]
name = "acme-calls"
measure = "calls"
trunk = "acme"
limit = 50
outcome = "overflow"
route = "ivr"

[[admission.checks]]
name = "asr"
url = "http://127.0.0.1:8000/health"
max_ms = 200
"""


def test_rules_and_matchers_are_tables_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text(ADMISSION)
    loaded = load(path, {}, {})
    (rule,), (matcher,) = loaded.config.admission.rules, loaded.config.cohorts.match
    assert (rule.name, rule.scope, rule.value, rule.threshold) == (
        "acme-calls",
        "trunk",
        "acme",
        50,
    )
    assert matcher.sources == ("192.0.2.0/24",)
    assert loaded.config.admission.checks[0].max_ms == 200
    assert json.loads(render_json(loaded))["admission.rules"]["value"][0]["limit"] == 50
    (line,) = [one for one in render(loaded).splitlines() if one.startswith("admission.rules ")]
    again = tomllib.loads("[admission]\n" + line.removeprefix("admission."))
    assert again["admission"]["rules"][0]["name"] == "acme-calls"


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (
            'measure = "calls"',
            'measure = "cals"',
            "admission.rules[0].measure: no such one, did you mean calls?, got 'cals' (",
        ),
        ('measure = "calls"', 'measure = "x"', "expected one of calls, calls_per_second, asr_"),
        ("limit = 50", "limitt = 50", "no such key limitt, did you mean limit? ("),
        ("limit = 50", 'limit = "50"', "admission.rules[0].limit: expected float, got str"),
        ("limit = 50\n", "", "calls needs a limit"),
        ('route = "ivr"', 'route = "other"', "is not among admission.routes"),
        ('fail_closed = ["acme"]', 'fail_closed = ["beta"]', "no matcher of cohorts.match has"),
        ("192.0.2.0/24", "192.0.2.0/240", "cohorts.match"),
        ('trunk = "acme"\nlimit', 'trunk = "beta"\nlimit', "trunk 'beta' is said by no matcher"),
        (
            'trunk = "acme"\nlimit',
            'node = "x"\nlimit',
            "node 'x' is the name of no agent or switch",
        ),
        (
            'trunk = "acme"\nlimit = 50\noutcome = "overflow"\nroute = "ivr"',
            'node = "edge"\nlimit = 50\n[admission.kamailio]\nedge = "udp:127.0.0.1:8033"',
            "name its capture id, such as hep.agents = { edge = 2001 }",
        ),
        ("http://127.0.0.1:8000/health", "ftp://x", "expected http://, https:// or tcp://"),
    ],
)
def test_a_wrong_rule_is_named_before_anything_opens(
    tmp_path: Path, old: str, new: str, why: str
) -> None:
    path = tmp_path / "s.toml"
    assert old in ADMISSION
    path.write_text(ADMISSION.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        load(path, {}, {})
    assert why in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("admission.kamailio", {"edge": "tcp:1"}, "expected udp:ADDR:PORT, unix:/PATH or http://"),
        ("admission.kamailio", {"a b": "udp:127.0.0.1:1"}, "a name has"),
        ("admission.kamailio", {"edge": "udp:nowhere"}, "expected ADDR:PORT"),
        ("admission.evapi", {"edge": "nowhere"}, "expected ADDR:PORT"),
        ("admission.emergency", ["help"], "expected numbers such as 112"),
        ("admission.priority_networks", ["x"], "admission.priority_networks"),
        ("admission.outbound_listen", "0.0.0.0:1", "use a loopback address"),
        ("admission.freeswitch", True, "set freeswitch.switches"),
        (
            "admission.profiles",
            {"external": "acme"},
            "no matcher of cohorts.match has trunk 'acme'",
        ),
    ],
)
def test_a_wrong_setting_of_admission_says_what_to_do(key: str, value: object, why: str) -> None:
    assert why in error_of(None, {}, {key: value})
