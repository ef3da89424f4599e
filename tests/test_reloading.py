from pathlib import Path
from typing import Any

import pytest

from sipsidecar.config import SECRETS, SETTINGS, Config, load
from sipsidecar.reloading import RELOADABLE, Plan, changes, merged

SECRET = "a-secret-of-many-letters"  # noqa: S105 -- to look for


def configured(**values: object) -> Config:
    """Settings by dotted key, with two underscores for the dot."""
    return load(None, {}, {key.replace("__", "."): value for key, value in values.items()}).config


def value_of(config: Config, key: str) -> Any:
    section, _, name = key.partition(".")
    return getattr(getattr(config, section), name)


def test_every_setting_is_classified() -> None:
    assert list(RELOADABLE) == [setting.key for setting in SETTINGS]


def test_equal_settings_change_nothing() -> None:
    plan = changes(Config(), configured())
    assert plan == Plan()
    assert plan.words == "reloaded: no setting has changed"
    assert merged(Config(), Config(), plan) == Config()


def other(key: str, default: object) -> object:
    """A value that is not the default, and lawful together with all defaults."""
    words: dict[str, object] = {
        "hep.listen": "127.0.0.1:1",
        "hep.allow": ["192.0.2.0/24"],
        "hep.keys": {"1": SECRET},
        "freeswitch.switches": {"fs1": "127.0.0.1:8021"},
        "freeswitch.users": {"fs1": "sidecar@default"},
        "freeswitch.passwords": {"fs1": SECRET},
        "hep.local_addresses": ["192.0.2.1"],
        "hep.agents": {"edge": 1},
        "http.listen": "127.0.0.1:1",
        "database.dsn": "postgresql://h/d",
        "log.level": "debug",
        "cohorts.match": [{"trunk": "acme"}],
        "admission.rules": [{"name": "full", "measure": "calls", "limit": 5}],
        "admission.checks": [{"name": "asr", "url": "tcp://127.0.0.1:1"}],
        "admission.kamailio": {"edge": "udp:127.0.0.1:8033"},
        "admission.evapi": {"edge": "127.0.0.1:8448"},
        "admission.profiles": {"external": "acme"},
        "admission.outbound_listen": "127.0.0.1:8085",
        "admission.emergency": ["115"],
        "admission.priority_networks": ["192.0.2.0/24"],
        "admission.fail_closed": ["acme"],
        "trunks.peers": [{"name": "acme", "uri": "sip:192.0.2.7"}],
        "trunks.resolvers": ["192.0.2.53"],
        "trunks.kamailio": {"edge": "udp:127.0.0.1:8033"},
        "detect.method": "three_sigma",
        "detect.severities": {"404": "warn"},
        "detect.slos": [{"name": "gold", "objective_percent": 99}],
        "alerts.receivers": [{"name": "hook", "kind": "webhook", "url": "http://192.0.2.1/"}],
        "alerts.secrets": {"pager": SECRET},
        "alerts.link": "https://192.0.2.1/d",
        "otel.endpoint": "http://127.0.0.1:4318/v1/traces",
        "otel.headers": {"Authorization": SECRET},
        "otel.ratio": 0.5,
        "quality.id_mode": "linear",
        "log.format": "json",
    }
    if key in words:
        return words[key]
    if isinstance(default, bool):
        return not default
    if isinstance(default, int | float):
        return default + 1
    return [SECRET] if default == () else SECRET


TOGETHER: dict[str, dict[str, object]] = {
    "hep.tls_listen": {"hep.tls_listen": "127.0.0.1:2"},
    "hep.tls_client_ca": {"hep.tls_listen": "127.0.0.1:2"},
    "freeswitch.switches": {"freeswitch.passwords": {"*": SECRET}},
    "freeswitch.users": {
        "freeswitch.switches": {"fs1": "127.0.0.1:8021"},
        "freeswitch.passwords": {"*": SECRET},
    },
    "admission.freeswitch": {
        "freeswitch.switches": {"fs1": "127.0.0.1:8021"},
        "freeswitch.passwords": {"*": SECRET},
    },
    "admission.profiles": {"cohorts.match": [{"trunk": "acme"}]},
    "admission.fail_closed": {"cohorts.match": [{"trunk": "acme"}]},
    "privacy.mask_users": {"privacy.key": SECRET},
    "privacy.mask_names": {"privacy.key": SECRET},
}
RUNNING: dict[str, object] = {"admission.evapi": {"running": "127.0.0.1:9"}}
"""Where nothing of admission runs, all of it needs a restart."""
TLS = {"tls_certificate": "c.pem", "tls_key": "k.pem"}


@pytest.mark.parametrize("key", RELOADABLE)
def test_a_single_change_is_applied_or_needs_a_restart_as_the_table_says(key: str) -> None:
    (default,) = (setting.default for setting in SETTINGS if setting.key == key)
    flags: dict[str, object] = {key: other(key, default), **TOGETHER.get(key, {})}
    if ".tls_" in key:
        flags |= {f"{key.partition('.')[0]}.{name}": value for name, value in TLS.items()}
    old = load(None, {}, RUNNING if key.startswith("admission.") else {}).config
    if key != "admission.evapi":
        flags = {**(RUNNING if key.startswith("admission.") else {}), **flags}
    new = load(None, {}, flags).config
    plan = changes(old, new)
    assert key in (plan.applied if RELOADABLE[key] else plan.needs_restart)
    effective = merged(old, new, plan)
    assert value_of(effective, key) == value_of(new if RELOADABLE[key] else old, key)
    assert changes(effective, new).applied == ()


def test_the_words_name_what_was_done_and_what_was_not() -> None:
    new = configured(
        log__level="debug", hep__agents={"edge": 1}, calls__max_calls=7, node__name="x"
    )
    plan = changes(Config(), new)
    assert plan.words == (
        "reloaded: hep.agents, log.level; needs a restart: node.name, calls.max_calls"
    )
    assert Plan(needs_restart=("node.id",)).words == "needs a restart: node.id"
    assert Plan(applied=("log.level",)).words == "reloaded: log.level"


def test_the_words_never_show_a_secret(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(SECRET)
    new = configured(
        hep__keys={"*": f"file:{tmp_path / 'key'}"},
        http__read_tokens=[SECRET],
        http__operate_tokens=[SECRET],
        http__post_tokens=[SECRET],
        alerts__secrets={"pager": SECRET},
        otel__headers={"Authorization": SECRET},
        database__password=SECRET,
        freeswitch__passwords={"*": SECRET},
        privacy__key=SECRET,
    )
    plan = changes(Config(), new)
    assert set(plan.applied + plan.needs_restart) == set(SECRETS)
    assert SECRET not in plan.words


def test_a_secret_whose_file_has_new_contents_has_changed(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text(SECRET)
    old = configured(hep__keys={"*": f"file:{key}"})
    key.write_text(SECRET[::-1])
    new = configured(hep__keys={"*": f"file:{key}"})
    assert changes(old, new).applied == ("hep.keys",)


def test_a_door_that_stays_open_until_the_restart_keeps_its_guards() -> None:
    old = configured(
        http__listen="0.0.0.0:9080", http__read_tokens=[SECRET],
        hep__listen="0.0.0.0:9060", hep__allow=["192.0.2.0/24"],
    )  # fmt: skip
    plan = changes(old, configured(log__level="debug"))
    assert plan.applied == ("log.level",)
    assert set(plan.needs_restart) == {
        "http.listen", "http.read_tokens", "hep.listen", "hep.allow",
    }  # fmt: skip
    effective = merged(old, configured(), plan)
    assert effective.http == old.http
    assert effective.hep == old.hep


def test_guards_change_while_their_door_stays_as_it_is() -> None:
    old = configured(http__listen="0.0.0.0:9080", http__read_tokens=[SECRET])
    new = configured(http__listen="0.0.0.0:9080", http__read_tokens=[SECRET[::-1]])
    plan = changes(old, new)
    assert plan == Plan(applied=("http.read_tokens",))
    assert merged(old, new, plan) == new


def test_the_first_rules_need_a_restart() -> None:
    rules = [{"name": "full", "measure": "calls", "limit": 5}]
    assert changes(Config(), configured(admission__rules=rules)).needs_restart == (
        "admission.rules",
    )
