"""Turns the settings of a run and those read again into what changes now and what a restart needs.

The contents of TLS files are no settings: they are read again at every reload.
"""

import msgspec

from sipsidecar.config import Config

RELOADABLE = {
    "node.id": False,
    "node.name": False,
    "hep.listen": False,
    "hep.receive_buffer_bytes": False,
    "hep.tcp": False,
    "hep.tcp_connections": False,
    "hep.tcp_idle_seconds": False,
    "hep.tls_listen": False,
    "hep.tls_certificate": False,
    "hep.tls_key": False,
    "hep.tls_client_ca": False,
    "hep.allow": True,
    "hep.keys": True,
    "hep.insecure": True,
    "hep.local_addresses": False,
    "hep.agents": True,
    "http.listen": False,
    "http.read_tokens": True,
    "http.operate_tokens": True,
    "http.post_tokens": True,
    "http.tls_certificate": False,
    "http.tls_key": False,
    "http.hosts": True,
    "http.connections": False,
    "http.insecure": True,
    "database.dsn": False,
    "database.password": False,
    "database.directory": False,
    "database.binaries": False,
    "database.batch_rows": False,
    "database.batch_seconds": False,
    "database.queue_bytes": False,
    "database.store_messages": False,
    "spool.directory": False,
    "spool.max_bytes": False,
    "spool.max_age_hours": False,
    "spool.write_ahead": False,
    "retention.max_bytes": True,
    "retention.check_seconds": True,
    "retention.calls_days": True,
    "retention.attempts_days": True,
    "retention.legs_days": True,
    "retention.conversations_days": True,
    "retention.media_days": True,
    "retention.quality_intervals_days": True,
    "retention.messages_days": True,
    "retention.registrations_days": True,
    "retention.pings_days": True,
    "retention.admissions_days": True,
    "retention.admission_states_days": True,
    "retention.kpi_minute_days": True,
    "retention.code_minute_days": True,
    "retention.baseline_hours_days": True,
    "retention.incidents_days": True,
    "retention.events_days": True,
    "retention.outcomes_days": True,
    "retention.quarantine_days": True,
    "calls.max_calls": False,
    "calls.settle_seconds": False,
    "calls.linger_seconds": False,
    "calls.max_seconds": False,
    "calls.rebuild_seconds": False,
    "calls.warming_seconds": True,
    # one run, one way to rate: a call must not be judged by two
    "quality.low_mos": False,
    "quality.high_loss_percent": False,
    "quality.high_jitter_ms": False,
    "quality.dead_air_seconds": False,
    "quality.one_way_seconds": False,
    "quality.min_seconds": False,
    "quality.id_mode": False,
    "quality.narrowband_only": False,
    "quality.plc": False,
    "quality.network_delay_ms": False,
    "quality.store_intervals": False,
    "freeswitch.switches": False,
    "freeswitch.users": False,
    "freeswitch.passwords": False,
    "freeswitch.heartbeat_seconds": False,
    # names label metrics and rows: a run has one set of them
    "cohorts.match": False,
    "admission.rules": True,
    "admission.checks": False,
    "admission.routes": False,
    "admission.kamailio": False,
    "admission.evapi": False,
    "admission.freeswitch": False,
    "admission.profiles": False,
    "admission.outbound_listen": False,
    "admission.lease_seconds": False,
    "admission.emergency": True,
    "admission.priority_callers": True,
    "admission.priority_networks": True,
    "admission.reserve_percent": True,
    "admission.pending_seconds": False,
    "admission.quiet_seconds": False,
    "admission.waited_ms": True,
    "admission.fail_closed": False,
    "kpi.enabled": False,
    "kpi.max_cohorts": False,
    "kpi.heplify_names": False,
    "trunks.peers": False,
    "trunks.resolvers": False,
    "trunks.dns_seconds": False,
    "trunks.certificate_days": False,
    "trunks.kamailio": False,
    "trunks.lease_seconds": False,
    # one run, one way to judge: what was raised by one must not be ended by another
    "detect.enabled": False,
    "detect.method": False,
    "detect.severities": False,
    "detect.inbound": False,
    "detect.answer_percent": False,
    "detect.slos": False,
    "detect.arm_hours": False,
    "alerts.receivers": True,
    "alerts.secrets": True,
    "alerts.link": True,
    "alerts.clear_seconds": False,
    "alerts.merge_seconds": False,
    "otel.endpoint": False,
    "otel.headers": False,
    "otel.service_name": False,
    "otel.ratio": False,
    "limits.memory_bytes": True,
    # one run, one way to mask: a caller must not have two tokens in one call
    "privacy.key": False,
    "privacy.mask_users": False,
    "privacy.mask_names": False,
    "privacy.mask_bodies": False,
    "privacy.keep_dtmf": False,
    "privacy.keep_media_keys": False,
    "log.level": True,
    "log.format": True,
}
"""Every setting, and whether a run can take a new value of it."""

_GUARDS = {
    ("http.listen",): ("http.read_tokens", "http.operate_tokens", "http.insecure"),
    ("hep.listen", "hep.tls_listen", "hep.tls_client_ca"): (
        "hep.allow",
        "hep.keys",
        "hep.insecure",
    ),
}
"""Doors, and what guards them. A file that moves a door to loopback may drop its guards, but until
the restart the old door is open: then they stay, too."""


class Plan(msgspec.Struct, frozen=True):
    """What a reload does: dotted keys in the order of the settings."""

    applied: tuple[str, ...] = ()
    needs_restart: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """The line for the log; names only, for values may be secret."""
        parts = []
        if self.applied:
            parts.append("reloaded: " + ", ".join(self.applied))
        if self.needs_restart:
            parts.append("needs a restart: " + ", ".join(self.needs_restart))
        return "; ".join(parts) or "reloaded: no setting has changed"


def changes(old: Config, new: Config) -> Plan:
    """Sort the settings that differ; what this sidecar does not know to be reloadable is not."""
    changed = [key for key in _keys(new) if _value(old, key) != _value(new, key)]
    held = {
        guard
        for doors, guards in _GUARDS.items()
        if any(door in changed for door in doors)
        for guard in guards
    }
    if not old.admission.wanted:  # nothing of it runs
        held |= {key for key in changed if key.startswith("admission.")}
    applied = [key for key in changed if RELOADABLE.get(key, False) and key not in held]
    return Plan(tuple(applied), tuple(key for key in changed if key not in applied))


def merged(old: Config, new: Config, plan: Plan) -> Config:
    """The settings in effect after the reload: `new` where the plan applies it, `old` elsewhere."""
    sections = {name: getattr(old, name) for name in Config.__struct_fields__}
    for key in plan.applied:
        section, _, name = key.partition(".")
        value = _value(new, key)
        sections[section] = msgspec.structs.replace(sections[section], **{name: value})
    return Config(**sections)


def _keys(config: Config) -> list[str]:
    return [
        f"{section}.{name}"
        for section in Config.__struct_fields__
        for name in getattr(config, section).__struct_fields__
    ]


def _value(config: Config, key: str) -> object:
    section, _, name = key.partition(".")
    value: object = getattr(getattr(config, section), name)
    return value
