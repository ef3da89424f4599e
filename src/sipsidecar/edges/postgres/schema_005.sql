-- Version 5: whose a call is, and what admission control decided. The rules of version 1 hold.
--
-- No index on trunk or tenant: calls are looked for in a time, newest first, which the partitions and
-- calls_started_at narrow down. In a day of a million calls the newest of a trunk come in 20 ms, those
-- of one with a hundred calls in 0.3 s; every call that is written would pay for the difference. None
-- on the time of refusals either: they are written when all is busiest, and a day of half a million
-- is read in 0.2 s.

ALTER TABLE calls
    ADD COLUMN tenant text,
    ADD COLUMN direction text,
    ADD COLUMN region text;
COMMENT ON COLUMN calls.tenant IS 'Tenant by the configuration''s matchers; other where none matched, NULL where none are configured';
COMMENT ON COLUMN calls.trunk IS 'Trunk of the ingress hop, else of the last attempt that has one; other where no matcher matched, NULL where none are configured';
COMMENT ON COLUMN calls.direction IS 'Direction by the configuration''s matchers; other where none matched, NULL where none are configured';
COMMENT ON COLUMN calls.region IS 'Region by the configuration''s matchers; other where none matched, NULL where none are configured';

ALTER TABLE attempts
    ADD COLUMN tenant text,
    ADD COLUMN direction text,
    ADD COLUMN region text;
COMMENT ON COLUMN attempts.tenant IS 'Tenant of its call, unless this hop says another; NULL where no matchers are configured';
COMMENT ON COLUMN attempts.trunk IS 'Trunk of this hop alone; other where no matcher matched, NULL where none are configured';
COMMENT ON COLUMN attempts.direction IS 'Direction of its call, unless this hop says another; NULL where no matchers are configured';
COMMENT ON COLUMN attempts.region IS 'Region of its call, unless this hop says another; NULL where no matchers are configured';

CREATE TABLE admissions (
    call_id text NOT NULL,
    from_tag text NOT NULL DEFAULT '',
    received_at timestamptz NOT NULL,
    way text NOT NULL,
    verdict text NOT NULL,
    rule text NOT NULL DEFAULT '',
    measure text,
    scope text NOT NULL DEFAULT '',
    scope_value text NOT NULL DEFAULT '',
    value double precision,
    threshold double precision,
    code smallint,
    reason text NOT NULL DEFAULT '',
    route text NOT NULL DEFAULT '',
    shadow text[] NOT NULL DEFAULT '{}',
    exempt text,
    tenant text,
    trunk text,
    direction text,
    region text,
    node text,
    node_id integer NOT NULL,
    PRIMARY KEY (call_id, from_tag, received_at, rule, way, verdict, node_id)
) PARTITION BY RANGE (received_at);
CREATE TABLE admissions_default PARTITION OF admissions DEFAULT;
COMMENT ON TABLE admissions IS 'One row per call that was refused or sent elsewhere on purpose, or would have been; a call that was simply let in has none';
COMMENT ON TABLE admissions_default IS 'Rows of days that have no partition of their own';
COMMENT ON COLUMN admissions.call_id IS 'Call-ID header, as in calls';
COMMENT ON COLUMN admissions.from_tag IS 'Tag of the From header; empty when absent or not told';
COMMENT ON COLUMN admissions.received_at IS 'When it was decided, or seen where a switch decided by itself, by the sidecar''s own clock; the partition key';
COMMENT ON COLUMN admissions.way IS 'Who was answered: http, evapi or freeswitch; pushed where a switch decided by what it had been told';
COMMENT ON COLUMN admissions.verdict IS 'refuse or overflow; admit of a call that only a shadow rule objected to, or that is never refused';
COMMENT ON COLUMN admissions.rule IS 'Name of the rule that objected first; drain by an operator; other for one that is not configured';
COMMENT ON COLUMN admissions.measure IS 'What that rule measures; NULL when unknown';
COMMENT ON COLUMN admissions.scope IS 'What that rule is about: global, tenant, trunk, direction, region or node; empty when unknown';
COMMENT ON COLUMN admissions.scope_value IS 'Which one of them; empty for global';
COMMENT ON COLUMN admissions.value IS 'What was measured, in the unit of the measure';
COMMENT ON COLUMN admissions.threshold IS 'From where on the rule objects, in the same unit';
COMMENT ON COLUMN admissions.code IS 'SIP code of a refusal';
COMMENT ON COLUMN admissions.reason IS 'Text of the Reason header that the caller gets';
COMMENT ON COLUMN admissions.route IS 'Fallback route of an overflow';
COMMENT ON COLUMN admissions.shadow IS 'Rules that would have refused the call, were they enforced';
COMMENT ON COLUMN admissions.exempt IS 'Why the call was let in although a rule objected: emergency or priority';
COMMENT ON COLUMN admissions.tenant IS 'Tenant of the call; other where no matcher matched';
COMMENT ON COLUMN admissions.trunk IS 'Trunk of the call; other where no matcher matched';
COMMENT ON COLUMN admissions.direction IS 'Direction of the call; other where no matcher matched';
COMMENT ON COLUMN admissions.region IS 'Region of the call; other where no matcher matched';
COMMENT ON COLUMN admissions.node IS 'Proxy or capture agent of the call, by its configured name';
COMMENT ON COLUMN admissions.node_id IS 'The sidecar that wrote the row';

CREATE TABLE admission_states (
    call_id text NOT NULL DEFAULT '',
    received_at timestamptz NOT NULL,
    rule text NOT NULL,
    measure text,
    scope text NOT NULL,
    scope_value text NOT NULL DEFAULT '',
    state text NOT NULL,
    previous text NOT NULL,
    value double precision,
    threshold double precision,
    reason text NOT NULL DEFAULT '',
    by text NOT NULL DEFAULT 'rule',
    node_id integer NOT NULL,
    PRIMARY KEY (call_id, rule, scope, scope_value, received_at, state, node_id)
) PARTITION BY RANGE (received_at);
CREATE TABLE admission_states_default PARTITION OF admission_states DEFAULT;
COMMENT ON TABLE admission_states IS 'One row per change of the state of a rule';
COMMENT ON TABLE admission_states_default IS 'Rows of days that have no partition of their own';
COMMENT ON COLUMN admission_states.call_id IS 'Always empty: it is of no call, but every table has what rows are distributed by';
COMMENT ON COLUMN admission_states.received_at IS 'When it changed, by the sidecar''s own clock; the partition key';
COMMENT ON COLUMN admission_states.rule IS 'Name of the rule; drain for an operator''s drain';
COMMENT ON COLUMN admission_states.measure IS 'What the rule measures; NULL for a drain';
COMMENT ON COLUMN admission_states.scope IS 'What it is about: global, tenant, trunk, direction, region or node';
COMMENT ON COLUMN admission_states.scope_value IS 'Which one of them; empty for global';
COMMENT ON COLUMN admission_states.state IS 'open; limiting: at its limit, newcomers are refused until one leaves; closed; ramping: a growing share of calls is let in again';
COMMENT ON COLUMN admission_states.previous IS 'State before';
COMMENT ON COLUMN admission_states.value IS 'What was measured, in the unit of the measure; NULL when unknown';
COMMENT ON COLUMN admission_states.threshold IS 'From where on the rule objects, in the same unit';
COMMENT ON COLUMN admission_states.reason IS 'Why, in words';
COMMENT ON COLUMN admission_states.by IS 'Who changed it: rule or operator';
COMMENT ON COLUMN admission_states.node_id IS 'The sidecar that wrote the row';

CREATE OR REPLACE VIEW calls_recent AS
SELECT started_at, call_id, from_user, to_user, final_code, final_phrase, pdd_ms,
    talk_ms, released_by, trunk, flags, mos, findings, tenant, direction, region, final_origin
FROM calls
WHERE received_at > now() - interval '1 day'
ORDER BY started_at DESC;
COMMENT ON COLUMN calls_recent.trunk IS 'Trunk of the ingress hop, else of the last attempt that has one; other where no matcher matched, NULL where none are configured';
COMMENT ON COLUMN calls_recent.tenant IS 'Tenant by the configuration''s matchers; other where none matched, NULL where none are configured';
COMMENT ON COLUMN calls_recent.direction IS 'Direction by the configuration''s matchers; other where none matched, NULL where none are configured';
COMMENT ON COLUMN calls_recent.region IS 'Region by the configuration''s matchers; other where none matched, NULL where none are configured';
COMMENT ON COLUMN calls_recent.final_origin IS 'Who made the final response: admission for a refusal by rule';

CREATE VIEW admissions_recent AS
SELECT received_at, call_id, verdict, code, rule, measure, value, threshold, scope, scope_value,
    route, shadow, exempt, tenant, trunk, direction, region, node, way, reason
FROM admissions
WHERE received_at > now() - interval '1 day'
ORDER BY received_at DESC;
COMMENT ON VIEW admissions_recent IS 'Calls of the last 24 hours that were refused or sent elsewhere on purpose, or would have been, newest first';
COMMENT ON COLUMN admissions_recent.received_at IS 'When it was decided, or seen where a switch decided by itself, by the sidecar''s own clock';
COMMENT ON COLUMN admissions_recent.call_id IS 'Call-ID header, as in calls';
COMMENT ON COLUMN admissions_recent.verdict IS 'refuse or overflow; admit of a call that only a shadow rule objected to, or that is never refused';
COMMENT ON COLUMN admissions_recent.code IS 'SIP code of a refusal';
COMMENT ON COLUMN admissions_recent.rule IS 'Name of the rule that objected first; drain by an operator; other for one that is not configured';
COMMENT ON COLUMN admissions_recent.measure IS 'What that rule measures; NULL when unknown';
COMMENT ON COLUMN admissions_recent.value IS 'What was measured, in the unit of the measure';
COMMENT ON COLUMN admissions_recent.threshold IS 'From where on the rule objects, in the same unit';
COMMENT ON COLUMN admissions_recent.scope IS 'What that rule is about: global, tenant, trunk, direction, region or node; empty when unknown';
COMMENT ON COLUMN admissions_recent.scope_value IS 'Which one of them; empty for global';
COMMENT ON COLUMN admissions_recent.route IS 'Fallback route of an overflow';
COMMENT ON COLUMN admissions_recent.shadow IS 'Rules that would have refused the call, were they enforced';
COMMENT ON COLUMN admissions_recent.exempt IS 'Why the call was let in although a rule objected: emergency or priority';
COMMENT ON COLUMN admissions_recent.tenant IS 'Tenant of the call; other where no matcher matched';
COMMENT ON COLUMN admissions_recent.trunk IS 'Trunk of the call; other where no matcher matched';
COMMENT ON COLUMN admissions_recent.direction IS 'Direction of the call; other where no matcher matched';
COMMENT ON COLUMN admissions_recent.region IS 'Region of the call; other where no matcher matched';
COMMENT ON COLUMN admissions_recent.node IS 'Proxy or capture agent of the call, by its configured name';
COMMENT ON COLUMN admissions_recent.way IS 'Who was answered: http, evapi or freeswitch; pushed where a switch decided by what it had been told';
COMMENT ON COLUMN admissions_recent.reason IS 'Text of the Reason header that the caller gets';

-- A rule counts where it decided, and where it only would have: a shadow rule may stand beside one
-- that is enforced, of which the row then speaks.
CREATE VIEW refused_by_rule AS
WITH said AS (
    SELECT rule, scope, scope_value, received_at, verdict, exempt, false AS in_shadow
    FROM admissions
    WHERE received_at > now() - interval '1 day' AND (verdict <> 'admit' OR exempt IS NOT NULL)
    UNION ALL
    SELECT name, CASE WHEN name = rule THEN scope ELSE '' END,
        CASE WHEN name = rule THEN scope_value ELSE '' END, received_at, verdict, exempt, true
    FROM admissions, unnest(shadow) AS name
    WHERE received_at > now() - interval '1 day'
)
SELECT rule, scope, scope_value,
    count(*) FILTER (WHERE NOT in_shadow AND verdict = 'refuse') AS refused,
    count(*) FILTER (WHERE NOT in_shadow AND verdict = 'overflow') AS overflowed,
    count(*) FILTER (WHERE NOT in_shadow AND exempt IS NOT NULL) AS exempted,
    count(*) FILTER (WHERE in_shadow) AS shadowed,
    min(received_at) AS first_at,
    max(received_at) AS last_at
FROM said
GROUP BY rule, scope, scope_value
ORDER BY refused DESC, overflowed DESC, shadowed DESC, rule, scope_value;
COMMENT ON VIEW refused_by_rule IS 'What each rule did in the last 24 hours, the one that refused most first';
COMMENT ON COLUMN refused_by_rule.rule IS 'Name of the rule; drain by an operator; other for one that is not configured';
COMMENT ON COLUMN refused_by_rule.scope IS 'What it is about: global, tenant, trunk, direction, region or node; empty when unknown';
COMMENT ON COLUMN refused_by_rule.scope_value IS 'Which one of them; empty for global';
COMMENT ON COLUMN refused_by_rule.refused IS 'Calls that it refused';
COMMENT ON COLUMN refused_by_rule.overflowed IS 'Calls that it sent to a fallback route';
COMMENT ON COLUMN refused_by_rule.exempted IS 'Calls that were let in although it objected, for they are never refused';
COMMENT ON COLUMN refused_by_rule.shadowed IS 'Calls that it would have refused, were it enforced';
COMMENT ON COLUMN refused_by_rule.first_at IS 'The first of them';
COMMENT ON COLUMN refused_by_rule.last_at IS 'The last of them';
