"""Whose a call is: what its INVITEs show at each hop, asked of the configured matchers.

The ingress hop says it, and each attempt's own hop says it of the attempt. What a matcher without
any condition says is said of everything, so it is no more than a default: another hop that says
more counts before it.
"""

from collections.abc import Iterable, Mapping
from typing import Protocol

from sipsidecar.calls.call import Call, Endpoint, Invite, Times
from sipsidecar.calls.dialog import any_time
from sipsidecar.calls.events import OTHER, Cohort, LegRecord, Sighted
from sipsidecar.wire import hep


class Classifier(Protocol):
    """Who knows cohorts."""

    @property
    def headers(self) -> tuple[str, ...]:
        """Names, in small letters, of the headers that it asks for."""

    def of(self, sighted: Sighted) -> Cohort:
        """The cohort of what was seen."""


def sighted_of(
    invite: Invite | None,
    source: tuple[bytes, int | None],
    destination: tuple[bytes, int | None],
    agent_ids: tuple[int, ...] = (),
) -> Sighted:
    """What cohorts are told of one hop: its two ends and, unless it was lost, what its INVITE names."""
    if invite is None:
        return Sighted(
            src_ip=hep.address_text(source[0]),
            src_port=source[1],
            dst_ip=hep.address_text(destination[0]),
            dst_port=destination[1],
            agent_ids=agent_ids,
        )
    return Sighted(
        src_ip=hep.address_text(source[0]),
        src_port=source[1],
        dst_ip=hep.address_text(destination[0]),
        dst_port=destination[1],
        from_user=invite.from_user,
        from_host=invite.from_host,
        to_user=invite.to_user,
        to_host=invite.to_host,
        ruri_user=invite.ruri_user,
        ruri_host=invite.ruri_host,
        agent_ids=agent_ids,
        headers=invite.headers,
    )


class Labels:
    """A classifier, asked about hops and calls."""

    def __init__(self, cohorts: Classifier) -> None:
        self.of = cohorts.of
        self._default = cohorts.of(Sighted())

    def of_hop(
        self,
        invite: Invite | None,
        ends: tuple[Endpoint, Endpoint] | None,
        seen: Times,
        agent_ids: Mapping[int, int | None],
    ) -> Cohort:
        """The cohort of one hop by its two `ends` and, unless it was lost, what its INVITE names.

        `seen`: the hop's first sightings; the agent that saw it first names the node. `agent_ids`:
        clock to capture id.
        """
        clocks = seen[::2]
        if len(clocks) > 1:
            clocks = tuple(clock for _, clock in sorted(zip(seen[1::2], clocks, strict=True)))
        ids = tuple([one for clock in clocks if (one := agent_ids.get(clock)) is not None])
        source, destination = ends or ((b"", None), (b"", None))
        return self.of(sighted_of(invite, source, destination, ids))

    def of_attempt(self, hop: Cohort, call: Cohort) -> Cohort:
        """An attempt's: its hop's own trunk and carrier, its call's of all that the hop does not say."""
        default = self._default
        return Cohort(
            call.tenant if hop.tenant in (OTHER, default.tenant) else hop.tenant,
            hop.trunk,
            call.direction if hop.direction in (OTHER, default.direction) else hop.direction,
            call.region if hop.region in (OTHER, default.region) else hop.region,
            call.node,
            hop.carrier,
            call.agent if hop.agent in (OTHER, default.agent) else hop.agent,
        )

    def with_peers(self, ingress: Cohort, hops: Iterable[Cohort]) -> Cohort:
        """A call's: trunk, carrier and agent that its ingress does not say are those of `hops`.

        Each is of the first one that says it.
        """
        default, missing = self._default, {}
        for name in ("trunk", "carrier", "agent"):
            if getattr(ingress, name) in (OTHER, getattr(default, name)):
                missing[name] = (OTHER, getattr(default, name))
        if not missing:
            return ingress
        for hop in hops:
            for name in [n for n, none in missing.items() if getattr(hop, n) not in none]:
                ingress = ingress._replace(**{name: getattr(hop, name)})
                del missing[name]
            if not missing:
                break
        return ingress

    def of_call(self, call: Call, agent_ids: Mapping[int, int | None]) -> Cohort:
        """A live call's, by the INVITEs seen so far; as its record's, but without deriving that."""
        legs = [(leg.first.key, leg) for leg in call.legs.values() if leg.first is not None]
        legs.sort(key=lambda one: (one[0], one[1].branch))
        if not legs:
            return Cohort()
        known = call.legs
        roots = (
            leg for _, leg in legs if leg.parent is None or (leg.parent, leg.cseq) not in known
        )
        ingress = hop = next(roots, legs[0][1])
        above = known.get((ingress.parent or "", ingress.cseq))
        if above is not None and above.first is None and above.ends():
            hop = above  # its INVITE was lost, but not all that answered it
        found = self.of_hop(ingress.first, hop.ends(), any_time(hop), agent_ids)
        others = (leg for _, leg in reversed(legs) if leg is not hop)
        return self.with_peers(
            found, (self.of_hop(leg.first, leg.ends(), leg.invite, agent_ids) for leg in others)
        )

    def of_leg(self, leg: LegRecord) -> Cohort:
        """That of a leg of FreeSWITCH, as its events tell it."""
        inbound = leg.direction == "inbound"
        return self.of(
            Sighted(
                src_ip=leg.network_ip if inbound else None,
                src_port=leg.network_port if inbound else None,
                dst_ip=None if inbound else leg.network_ip,
                dst_port=None if inbound else leg.network_port,
                from_user=leg.caller,
                to_user=leg.destination,
                gateway=leg.gateway,
                switch=leg.switch,
            )
        )
