-- Version 6: carriers and agents of calls, figures per minute, incidents, the timeline, what the voice
-- agent's side says of calls. The rules of version 1 hold.

ALTER TABLE calls
    ADD COLUMN carrier text,
    ADD COLUMN agent text;
COMMENT ON COLUMN calls.carrier IS 'Carrier of the ingress hop, else of the last attempt that has one; other where no matcher matched, NULL where none are configured';
COMMENT ON COLUMN calls.agent IS 'Voice agent, bot or queue, found as the carrier is; other where no matcher matched, NULL where none are configured';

ALTER TABLE attempts
    ADD COLUMN carrier text,
    ADD COLUMN agent text;
COMMENT ON COLUMN attempts.carrier IS 'Carrier of this hop alone; other where no matcher matched, NULL where none are configured';
COMMENT ON COLUMN attempts.agent IS 'Voice agent, bot or queue of this hop alone; other where no matcher matched, NULL where none are configured';

CREATE OR REPLACE VIEW calls_recent AS
SELECT started_at, call_id, from_user, to_user, final_code, final_phrase, pdd_ms,
    talk_ms, released_by, trunk, flags, mos, findings, tenant, direction, region, final_origin,
    carrier, agent
FROM calls
WHERE received_at > now() - interval '1 day'
ORDER BY started_at DESC;
COMMENT ON COLUMN calls_recent.carrier IS 'Carrier of the ingress hop, else of the last attempt that has one; other where no matcher matched, NULL where none are configured';
COMMENT ON COLUMN calls_recent.agent IS 'Voice agent, bot or queue, found as the carrier is; other where no matcher matched, NULL where none are configured';

-- Figures per minute. No primary key: rows of one minute and cohort add up, so two that look alike are
-- both true, and the ledger sees to it that each is stored once. A key of all that names a cohort would
-- take as much room as code_minute itself, and answer no question: what is asked for is a range of
-- time. A BRIN index finds its pages, for rows come in the order of time; it has each expression that
-- the views group by, so that a condition on their time finds them, too. Partitions are weeks: of 400
-- days there would be 400, and every plan looks through all of them. What names a cohort stands first,
-- for by it most questions pass over most rows.

CREATE TABLE kpi_minute (
    received_at timestamptz NOT NULL,
    minute_at timestamptz NOT NULL,
    source text NOT NULL,
    tenant text NOT NULL DEFAULT '',
    trunk text NOT NULL DEFAULT '',
    carrier text NOT NULL DEFAULT '',
    direction text NOT NULL DEFAULT '',
    region text NOT NULL DEFAULT '',
    agent text NOT NULL DEFAULT '',
    codec text NOT NULL DEFAULT '',
    attempts integer NOT NULL DEFAULT 0,
    redirected integer NOT NULL DEFAULT 0,
    unknown integer NOT NULL DEFAULT 0,
    seizures integer NOT NULL DEFAULT 0,
    answered integer NOT NULL DEFAULT 0,
    effective integer NOT NULL DEFAULT 0,
    session_effective integer NOT NULL DEFAULT 0,
    ineffective integer NOT NULL DEFAULT 0,
    own_refusals integer NOT NULL DEFAULT 0,
    overflowed integer NOT NULL DEFAULT 0,
    ended integer NOT NULL DEFAULT 0,
    completed integer NOT NULL DEFAULT 0,
    dropped integer NOT NULL DEFAULT 0,
    short_calls integer NOT NULL DEFAULT 0,
    talk_count integer NOT NULL DEFAULT 0,
    failovers integer NOT NULL DEFAULT 0,
    one_way integer NOT NULL DEFAULT 0,
    no_media integer NOT NULL DEFAULT 0,
    dead_air integer NOT NULL DEFAULT 0,
    low_mos integer NOT NULL DEFAULT 0,
    pdd_count integer NOT NULL DEFAULT 0,
    failed_srd_count integer NOT NULL DEFAULT 0,
    setup_count integer NOT NULL DEFAULT 0,
    mos_nb_count integer NOT NULL DEFAULT 0,
    mos_wb_count integer NOT NULL DEFAULT 0,
    mos_fb_count integer NOT NULL DEFAULT 0,
    loss_count integer NOT NULL DEFAULT 0,
    jitter_count integer NOT NULL DEFAULT 0,
    rtt_count integer NOT NULL DEFAULT 0,
    registers integer NOT NULL DEFAULT 0,
    registers_failed integer NOT NULL DEFAULT 0,
    rrd_count integer NOT NULL DEFAULT 0,
    node_id integer NOT NULL,
    talk_seconds double precision,
    pdd_sum_ms double precision,
    failed_srd_sum_ms double precision,
    setup_sum_ms double precision,
    mos_nb_sum double precision,
    mos_wb_sum double precision,
    mos_fb_sum double precision,
    loss_sum_percent double precision,
    jitter_sum_ms double precision,
    rtt_sum_ms double precision,
    rrd_sum_ms double precision,
    call_id text NOT NULL DEFAULT '',
    pdd_buckets integer[],
    failed_srd_buckets integer[],
    setup_buckets integer[],
    talk_buckets integer[],
    mos_nb_buckets integer[],
    mos_wb_buckets integer[],
    mos_fb_buckets integer[],
    loss_buckets integer[],
    jitter_buckets integer[],
    rtt_buckets integer[],
    rrd_buckets integer[]
) PARTITION BY RANGE (received_at);
CREATE TABLE kpi_minute_default PARTITION OF kpi_minute DEFAULT;
COMMENT ON TABLE kpi_minute IS 'Figures of one cohort in one minute; rows of one minute and cohort add up. To look at: kpi_5min, kpi_hour, kpi_day';
COMMENT ON TABLE kpi_minute_default IS 'Rows of weeks that have no partition of their own';
COMMENT ON COLUMN kpi_minute.received_at IS 'When the minute was closed, by the sidecar''s own clock; the partition key';
COMMENT ON COLUMN kpi_minute.minute_at IS 'Beginning of the minute in which the sidecar learned how a setup or call ended, by its own clock';
COMMENT ON COLUMN kpi_minute.source IS 'call: as callers met it; trunk: each attempt by the trunk that it went to; register: REGISTERs';
COMMENT ON COLUMN kpi_minute.tenant IS 'Tenant by the configuration''s matchers; other where none matched, empty where none are configured';
COMMENT ON COLUMN kpi_minute.trunk IS 'Trunk, likewise; with source trunk the one of each attempt';
COMMENT ON COLUMN kpi_minute.carrier IS 'Carrier, likewise';
COMMENT ON COLUMN kpi_minute.direction IS 'Direction, likewise';
COMMENT ON COLUMN kpi_minute.region IS 'Region, likewise';
COMMENT ON COLUMN kpi_minute.agent IS 'Voice agent, bot or queue, likewise';
COMMENT ON COLUMN kpi_minute.codec IS 'Negotiated codec where it is a known one, other for any other; empty: none was agreed on';
COMMENT ON COLUMN kpi_minute.attempts IS 'INVITEs that ended, without own refusals and overflows; those of calls whose challenge was left unanswered, too';
COMMENT ON COLUMN kpi_minute.redirected IS 'Of these, with a final 3xx: no seizures';
COMMENT ON COLUMN kpi_minute.unknown IS 'Of these, nobody saw how they ended: no seizures';
COMMENT ON COLUMN kpi_minute.seizures IS 'Attempts that count for ASR and NER: the final is known, no 3xx, and no challenge that was left unanswered';
COMMENT ON COLUMN kpi_minute.answered IS 'Seizures with a 2xx';
COMMENT ON COLUMN kpi_minute.effective IS 'Numerator of NER (E.425): answered, busy, no answer, rejected by the person';
COMMENT ON COLUMN kpi_minute.session_effective IS 'Numerator of SEER (RFC 6076 4.7): 200, 480, 486, 600, 603';
COMMENT ON COLUMN kpi_minute.ineffective IS 'Numerator of ISA (RFC 6076 4.8): 408, 500, 503, 504';
COMMENT ON COLUMN kpi_minute.own_refusals IS 'Calls that the sidecar''s admission refused: in nothing else here';
COMMENT ON COLUMN kpi_minute.overflowed IS 'Calls that admission sent to a fallback route: in nothing else here';
COMMENT ON COLUMN kpi_minute.ended IS 'Answered calls that are over; of source trunk once for each answered attempt';
COMMENT ON COLUMN kpi_minute.completed IS 'Of these, ended with a BYE: numerator of SCR (RFC 6076 4.9)';
COMMENT ON COLUMN kpi_minute.dropped IS 'Of these, without a BYE: a refresh failed, or nothing was seen any more';
COMMENT ON COLUMN kpi_minute.short_calls IS 'Of these, of less than 6 s';
COMMENT ON COLUMN kpi_minute.talk_count IS 'Of these, whose talk time is known';
COMMENT ON COLUMN kpi_minute.failovers IS 'Attempts that another had to follow; of source call those of its calls';
COMMENT ON COLUMN kpi_minute.one_way IS 'Calls with the finding one_way_audio';
COMMENT ON COLUMN kpi_minute.no_media IS 'Calls with the finding no_media';
COMMENT ON COLUMN kpi_minute.dead_air IS 'Calls with the finding dead_air';
COMMENT ON COLUMN kpi_minute.low_mos IS 'Calls with the finding low_mos';
COMMENT ON COLUMN kpi_minute.pdd_count IS 'Setups with a post-dial delay';
COMMENT ON COLUMN kpi_minute.failed_srd_count IS 'Failed setups with a session request delay';
COMMENT ON COLUMN kpi_minute.setup_count IS 'Answers with a setup time';
COMMENT ON COLUMN kpi_minute.mos_nb_count IS 'Narrowband scores; those of two scales do not add up';
COMMENT ON COLUMN kpi_minute.mos_wb_count IS 'Wideband scores';
COMMENT ON COLUMN kpi_minute.mos_fb_count IS 'Fullband scores';
COMMENT ON COLUMN kpi_minute.loss_count IS 'Directions of media with a loss';
COMMENT ON COLUMN kpi_minute.jitter_count IS 'Directions of media with a jitter';
COMMENT ON COLUMN kpi_minute.rtt_count IS 'Directions of media with a round-trip time';
COMMENT ON COLUMN kpi_minute.registers IS 'REGISTER transactions, without those that were challenged';
COMMENT ON COLUMN kpi_minute.registers_failed IS 'Of these, failed: numerator of IRA (RFC 6076 4.2)';
COMMENT ON COLUMN kpi_minute.rrd_count IS 'Registrations with a delay';
COMMENT ON COLUMN kpi_minute.node_id IS 'The sidecar that wrote the row';
COMMENT ON COLUMN kpi_minute.talk_seconds IS 'Sum of the known talk times of ended calls, seconds';
COMMENT ON COLUMN kpi_minute.pdd_sum_ms IS 'Sum of post-dial delays, milliseconds';
COMMENT ON COLUMN kpi_minute.failed_srd_sum_ms IS 'Sum of session request delays of failed setups (RFC 6076 4.3.2), milliseconds';
COMMENT ON COLUMN kpi_minute.setup_sum_ms IS 'Sum of times from INVITE to answer, milliseconds';
COMMENT ON COLUMN kpi_minute.mos_nb_sum IS 'Sum of narrowband mean opinion scores';
COMMENT ON COLUMN kpi_minute.mos_wb_sum IS 'Sum of wideband mean opinion scores';
COMMENT ON COLUMN kpi_minute.mos_fb_sum IS 'Sum of fullband mean opinion scores';
COMMENT ON COLUMN kpi_minute.loss_sum_percent IS 'Sum of packet loss of directions of media, percent';
COMMENT ON COLUMN kpi_minute.jitter_sum_ms IS 'Sum of jitter of directions of media, milliseconds';
COMMENT ON COLUMN kpi_minute.rtt_sum_ms IS 'Sum of round-trip times of directions of media, milliseconds';
COMMENT ON COLUMN kpi_minute.rrd_sum_ms IS 'Sum of registration request delays (RFC 6076 4.1), milliseconds';
COMMENT ON COLUMN kpi_minute.call_id IS 'Always empty: it is of no call, but every table has what rows are distributed by';
COMMENT ON COLUMN kpi_minute.pdd_buckets IS 'How many with 100, 250, 500, 1000, 1500, 2000, 3000, 4000, 6000, 8000, 12000, 20000, 32000, 60000 ms or less, each in the first bucket that takes it, and one more for all over it; without zeros at the end, NULL where there are none';
COMMENT ON COLUMN kpi_minute.failed_srd_buckets IS 'How many with 100, 250, 500, 1000, 1500, 2000, 3000, 4000, 6000, 8000, 12000, 20000, 32000, 60000 ms or less, each in the first bucket that takes it, and one more for all over it; without zeros at the end, NULL where there are none';
COMMENT ON COLUMN kpi_minute.setup_buckets IS 'How many with 100, 250, 500, 1000, 1500, 2000, 3000, 4000, 6000, 8000, 12000, 20000, 32000, 60000 ms or less, each in the first bucket that takes it, and one more for all over it; without zeros at the end, NULL where there are none';
COMMENT ON COLUMN kpi_minute.talk_buckets IS 'How many with 1, 3, 6, 10, 20, 30, 33, 60, 120, 300, 600, 1200, 1800, 3600 s or less, each in the first bucket that takes it, and one more for all over it; without zeros at the end, NULL where there are none';
COMMENT ON COLUMN kpi_minute.mos_nb_buckets IS 'How many with 1.5, 2, 2.5, 2.8, 3.1, 3.3, 3.5, 3.7, 3.9, 4, 4.1, 4.2, 4.3, 4.4 or less, each in the first bucket that takes it, and one more for all over it; without zeros at the end, NULL where there are none';
COMMENT ON COLUMN kpi_minute.mos_wb_buckets IS 'How many with 1.5, 2, 2.5, 2.8, 3.1, 3.3, 3.5, 3.7, 3.9, 4, 4.1, 4.2, 4.3, 4.4 or less, each in the first bucket that takes it, and one more for all over it; without zeros at the end, NULL where there are none';
COMMENT ON COLUMN kpi_minute.mos_fb_buckets IS 'How many with 1.5, 2, 2.5, 2.8, 3.1, 3.3, 3.5, 3.7, 3.9, 4, 4.1, 4.2, 4.3, 4.4 or less, each in the first bucket that takes it, and one more for all over it; without zeros at the end, NULL where there are none';
COMMENT ON COLUMN kpi_minute.loss_buckets IS 'How many with 0, 0.1, 0.25, 0.5, 1, 2, 3, 5, 10, 20, 50 % or less, each in the first bucket that takes it, and one more for all over it; without zeros at the end, NULL where there are none';
COMMENT ON COLUMN kpi_minute.jitter_buckets IS 'How many with 1, 2, 5, 10, 15, 20, 30, 50, 100, 200 ms or less, each in the first bucket that takes it, and one more for all over it; without zeros at the end, NULL where there are none';
COMMENT ON COLUMN kpi_minute.rtt_buckets IS 'How many with 10, 25, 50, 75, 100, 150, 200, 300, 400, 600, 1000 ms or less, each in the first bucket that takes it, and one more for all over it; without zeros at the end, NULL where there are none';
COMMENT ON COLUMN kpi_minute.rrd_buckets IS 'How many with 100, 250, 500, 1000, 1500, 2000, 3000, 4000, 6000, 8000, 12000, 20000, 32000, 60000 ms or less, each in the first bucket that takes it, and one more for all over it; without zeros at the end, NULL where there are none';
CREATE INDEX kpi_minute_minute_at ON kpi_minute USING brin (
    minute_at,
    date_bin(interval '5 minutes', minute_at, timestamptz '2001-01-01 00:00:00+00'),
    date_bin(interval '1 hour', minute_at, timestamptz '2001-01-01 00:00:00+00'),
    date_bin(interval '1 day', minute_at, timestamptz '2001-01-01 00:00:00+00')
) WITH (autosummarize = on);

CREATE TABLE code_minute (
    received_at timestamptz NOT NULL,
    minute_at timestamptz NOT NULL,
    source text NOT NULL,
    tenant text NOT NULL DEFAULT '',
    trunk text NOT NULL DEFAULT '',
    carrier text NOT NULL DEFAULT '',
    direction text NOT NULL DEFAULT '',
    region text NOT NULL DEFAULT '',
    agent text NOT NULL DEFAULT '',
    codec text NOT NULL DEFAULT '',
    code smallint NOT NULL,
    origin text NOT NULL DEFAULT '',
    count integer NOT NULL,
    node_id integer NOT NULL,
    call_id text NOT NULL DEFAULT ''
) PARTITION BY RANGE (received_at);
CREATE TABLE code_minute_default PARTITION OF code_minute DEFAULT;
COMMENT ON TABLE code_minute IS 'How often one final code ended setups of one cohort in one minute; rows add up. To look at: codes_5min, codes_hour';
COMMENT ON TABLE code_minute_default IS 'Rows of weeks that have no partition of their own';
COMMENT ON COLUMN code_minute.received_at IS 'When the minute was closed, by the sidecar''s own clock; the partition key';
COMMENT ON COLUMN code_minute.minute_at IS 'Beginning of the minute, by the sidecar''s own clock';
COMMENT ON COLUMN code_minute.source IS 'call: as callers met it; trunk: each attempt by the trunk that it went to; register: REGISTERs';
COMMENT ON COLUMN code_minute.tenant IS 'Tenant by the configuration''s matchers; other where none matched, empty where none are configured';
COMMENT ON COLUMN code_minute.trunk IS 'Trunk, likewise; with source trunk the one of each attempt';
COMMENT ON COLUMN code_minute.carrier IS 'Carrier, likewise';
COMMENT ON COLUMN code_minute.direction IS 'Direction, likewise';
COMMENT ON COLUMN code_minute.region IS 'Region, likewise';
COMMENT ON COLUMN code_minute.agent IS 'Voice agent, bot or queue, likewise';
COMMENT ON COLUMN code_minute.codec IS 'Negotiated codec where it is a known one, other for any other; empty: none was agreed on';
COMMENT ON COLUMN code_minute.code IS 'Final status code; 0: nobody saw it';
COMMENT ON COLUMN code_minute.origin IS 'Who made it, as calls.final_origin; admission: own refusals; empty of attempts';
COMMENT ON COLUMN code_minute.count IS 'How many setups it ended; of source register REGISTERs, challenged ones too';
COMMENT ON COLUMN code_minute.node_id IS 'The sidecar that wrote the row';
COMMENT ON COLUMN code_minute.call_id IS 'Always empty: it is of no call, but every table has what rows are distributed by';
CREATE INDEX code_minute_minute_at ON code_minute USING brin (
    minute_at,
    date_bin(interval '5 minutes', minute_at, timestamptz '2001-01-01 00:00:00+00'),
    date_bin(interval '1 hour', minute_at, timestamptz '2001-01-01 00:00:00+00'),
    date_bin(interval '1 day', minute_at, timestamptz '2001-01-01 00:00:00+00')
) WITH (autosummarize = on);

CREATE TABLE baseline_hours (
    call_id text NOT NULL DEFAULT '',
    received_at timestamptz NOT NULL,
    hour_at timestamptz NOT NULL,
    series text NOT NULL,
    minutes integer NOT NULL,
    total integer NOT NULL,
    answered integer NOT NULL,
    effective integer NOT NULL,
    counts integer[] NOT NULL DEFAULT '{}',
    pdd_p95_ms double precision,
    jitter_ms double precision,
    rate_minutes integer NOT NULL DEFAULT 0,
    rate_sums double precision[] NOT NULL DEFAULT '{}',
    rate_squares double precision[] NOT NULL DEFAULT '{}',
    node_id integer NOT NULL,
    PRIMARY KEY (call_id, series, hour_at, received_at, node_id)
) PARTITION BY RANGE (received_at);
CREATE TABLE baseline_hours_default PARTITION OF baseline_hours DEFAULT;
COMMENT ON TABLE baseline_hours IS 'What one series taught in one hour, without minutes of incidents: from this the sidecar knows what is normal; rows add up';
COMMENT ON TABLE baseline_hours_default IS 'Rows of weeks that have no partition of their own';
COMMENT ON COLUMN baseline_hours.call_id IS 'Always empty: it is of no call, but every table has what rows are distributed by';
COMMENT ON COLUMN baseline_hours.received_at IS 'When it was written; the partition key';
COMMENT ON COLUMN baseline_hours.hour_at IS 'Beginning of the hour, by the sidecar''s own clock';
COMMENT ON COLUMN baseline_hours.series IS 'Source and scope, such as trunk:trunk=acme,direction=in or call:all';
COMMENT ON COLUMN baseline_hours.minutes IS 'Minutes that were learned from';
COMMENT ON COLUMN baseline_hours.total IS 'Seizures in them';
COMMENT ON COLUMN baseline_hours.answered IS 'Of these, answered';
COMMENT ON COLUMN baseline_hours.effective IS 'Of these, effective as NER counts';
COMMENT ON COLUMN baseline_hours.counts IS 'Failures by category: 4xx, 5xx, 6xx, 404, 480, 486, 487';
COMMENT ON COLUMN baseline_hours.pdd_p95_ms IS '95th percentile of the post-dial delay, smoothed, at the end of the hour, milliseconds; NULL when unknown';
COMMENT ON COLUMN baseline_hours.jitter_ms IS 'Jitter, smoothed, at the end of the hour, milliseconds; NULL when unknown';
COMMENT ON COLUMN baseline_hours.rate_minutes IS 'Minutes with seizures; this and the next two for the method three_sigma alone';
COMMENT ON COLUMN baseline_hours.rate_sums IS 'Sums of the shares of single minutes, 0 to 1, by category as counts';
COMMENT ON COLUMN baseline_hours.rate_squares IS 'Sums of their squares';
COMMENT ON COLUMN baseline_hours.node_id IS 'The sidecar that wrote the row';

CREATE TABLE incidents (
    call_id text NOT NULL DEFAULT '',
    incident text NOT NULL,
    received_at timestamptz NOT NULL,
    revision integer NOT NULL DEFAULT 0,
    category text NOT NULL,
    severity text NOT NULL,
    state text NOT NULL DEFAULT 'open',
    scope text NOT NULL DEFAULT 'all',
    explained double precision,
    tenant text,
    trunk text,
    carrier text,
    direction text,
    region text,
    agent text,
    upstream boolean NOT NULL DEFAULT false,
    opened_at timestamptz NOT NULL,
    escalated_at timestamptz,
    cleared_at timestamptz,
    first_seen_at timestamptz,
    last_seen_at timestamptz NOT NULL,
    sources text[] NOT NULL DEFAULT '{}',
    summary text NOT NULL DEFAULT '',
    codes text[] NOT NULL DEFAULT '{}',
    call_ids text[] NOT NULL DEFAULT '{}',
    evidence jsonb,
    node_id integer NOT NULL,
    PRIMARY KEY (call_id, incident, received_at, node_id, revision)
) PARTITION BY RANGE (received_at);
CREATE TABLE incidents_default PARTITION OF incidents DEFAULT;
COMMENT ON TABLE incidents IS 'One row per incident: alarms that are one trouble, from the first to its end';
COMMENT ON TABLE incidents_default IS 'Rows of weeks that have no partition of their own';
COMMENT ON COLUMN incidents.call_id IS 'Always empty: it is of no call, but every table has what rows are distributed by';
COMMENT ON COLUMN incidents.incident IS 'Its name: category and time of opening, unique within one sidecar';
COMMENT ON COLUMN incidents.received_at IS 'When it was opened, by the sidecar''s own clock; the partition key';
COMMENT ON COLUMN incidents.revision IS '0 for the first row, +1 each time it changed; only the newest is kept';
COMMENT ON COLUMN incidents.category IS 'What is wrong: a class or code such as 5xx or 404, or a word such as volume, asr, pdd, trunk-down';
COMMENT ON COLUMN incidents.severity IS 'trend: only recorded; warn: somebody should look today; page: now';
COMMENT ON COLUMN incidents.state IS 'open or cleared';
COMMENT ON COLUMN incidents.scope IS 'The smallest cohort that explains more than 80 % of it, such as trunk=acme,direction=in';
COMMENT ON COLUMN incidents.explained IS 'Share of the excess that this cohort explains, 0 to 1; NULL when unknown';
COMMENT ON COLUMN incidents.tenant IS 'Tenant of the scope; NULL where it is not part of it';
COMMENT ON COLUMN incidents.trunk IS 'Trunk of the scope, likewise';
COMMENT ON COLUMN incidents.carrier IS 'Carrier of the scope, likewise';
COMMENT ON COLUMN incidents.direction IS 'Direction of the scope, likewise';
COMMENT ON COLUMN incidents.region IS 'Region of the scope, likewise';
COMMENT ON COLUMN incidents.agent IS 'Voice agent, bot or queue of the scope, likewise';
COMMENT ON COLUMN incidents.upstream IS 'Several tenants on one region or carrier: the trouble is there, not with them';
COMMENT ON COLUMN incidents.opened_at IS 'When it was opened';
COMMENT ON COLUMN incidents.escalated_at IS 'When it last became graver; NULL: never';
COMMENT ON COLUMN incidents.cleared_at IS 'When it was over; NULL while it is open';
COMMENT ON COLUMN incidents.first_seen_at IS 'When the trouble was first seen, which may be before it was opened';
COMMENT ON COLUMN incidents.last_seen_at IS 'When it was last seen';
COMMENT ON COLUMN incidents.sources IS 'Detectors and findings that said it';
COMMENT ON COLUMN incidents.summary IS 'One line with numbers, for people';
COMMENT ON COLUMN incidents.codes IS 'SIP codes and how many more than expected, such as 404 +29';
COMMENT ON COLUMN incidents.call_ids IS 'Call-IDs of examples';
COMMENT ON COLUMN incidents.evidence IS 'Figures that it stands on; texts in it may be strangers''';
COMMENT ON COLUMN incidents.node_id IS 'The sidecar that wrote the row';

CREATE TABLE events (
    call_id text NOT NULL DEFAULT '',
    received_at timestamptz NOT NULL,
    event text NOT NULL,
    at timestamptz NOT NULL,
    kind text NOT NULL,
    subject text NOT NULL DEFAULT '',
    state text NOT NULL DEFAULT '',
    previous text NOT NULL DEFAULT '',
    severity text,
    scope text NOT NULL DEFAULT 'all',
    tenant text,
    trunk text,
    carrier text,
    direction text,
    region text,
    agent text,
    text text NOT NULL DEFAULT '',
    by text NOT NULL DEFAULT 'sidecar',
    data jsonb,
    node_id integer NOT NULL,
    PRIMARY KEY (call_id, event, received_at, node_id)
) PARTITION BY RANGE (received_at);
CREATE TABLE events_default PARTITION OF events DEFAULT;
COMMENT ON TABLE events IS 'One row per thing that happened, for the timeline; changes of admission are in admission_states';
COMMENT ON TABLE events_default IS 'Rows of weeks that have no partition of their own';
COMMENT ON COLUMN events.call_id IS 'Always empty: it is of no call, but every table has what rows are distributed by';
COMMENT ON COLUMN events.received_at IS 'When the sidecar knew of it; the partition key';
COMMENT ON COLUMN events.event IS 'Its name, unique within one sidecar';
COMMENT ON COLUMN events.at IS 'When it happened, as whoever told it says';
COMMENT ON COLUMN events.kind IS 'incident, trunk, agent (capture agent), switch, sidecar or marker';
COMMENT ON COLUMN events.subject IS 'What it is about: an incident''s name, a trunk, an agent, a switch, a marker''s kind';
COMMENT ON COLUMN events.state IS 'State after it; empty where there is none';
COMMENT ON COLUMN events.previous IS 'State before it';
COMMENT ON COLUMN events.severity IS 'trend, warn or page of an incident, or of what is wrong now; NULL of all else';
COMMENT ON COLUMN events.scope IS 'Whose calls it concerns, such as trunk=acme; all for everybody''s';
COMMENT ON COLUMN events.tenant IS 'Tenant of the scope; NULL where it is not part of it';
COMMENT ON COLUMN events.trunk IS 'Trunk of the scope, likewise';
COMMENT ON COLUMN events.carrier IS 'Carrier of the scope, likewise';
COMMENT ON COLUMN events.direction IS 'Direction of the scope, likewise';
COMMENT ON COLUMN events.region IS 'Region of the scope, likewise';
COMMENT ON COLUMN events.agent IS 'Voice agent, bot or queue of the scope, likewise';
COMMENT ON COLUMN events.text IS 'For people; of a marker it is whatever was posted';
COMMENT ON COLUMN events.by IS 'sidecar, or the name that a poster gave';
COMMENT ON COLUMN events.data IS 'What else is known of it; of a marker it is whatever was posted';
COMMENT ON COLUMN events.node_id IS 'The sidecar that wrote the row';

CREATE TABLE outcomes (
    call_id text NOT NULL,
    received_at timestamptz NOT NULL,
    outcome text NOT NULL,
    first_audio_ms double precision,
    asr_confidence double precision,
    asr_accuracy double precision,
    completed boolean,
    transferred boolean,
    result text,
    agent text,
    data jsonb,
    node_id integer NOT NULL,
    PRIMARY KEY (call_id, outcome, received_at, node_id)
) PARTITION BY RANGE (received_at);
CREATE TABLE outcomes_default PARTITION OF outcomes DEFAULT;
COMMENT ON TABLE outcomes IS 'What the voice agent''s side said of calls, as it was posted; a call may have several rows';
COMMENT ON TABLE outcomes_default IS 'Rows of days that have no partition of their own';
COMMENT ON COLUMN outcomes.call_id IS 'Call-ID header, as in calls';
COMMENT ON COLUMN outcomes.received_at IS 'When it was posted, by the sidecar''s own clock; the partition key';
COMMENT ON COLUMN outcomes.outcome IS 'Its name, unique within one sidecar';
COMMENT ON COLUMN outcomes.first_audio_ms IS 'Answer to the first audio of the voice agent, milliseconds';
COMMENT ON COLUMN outcomes.asr_confidence IS 'Confidence of speech recognition, its own word, 0 to 1';
COMMENT ON COLUMN outcomes.asr_accuracy IS 'Accuracy of speech recognition as measured, 0 to 1 (1 - word error rate)';
COMMENT ON COLUMN outcomes.completed IS 'The caller''s task was done; NULL when not said';
COMMENT ON COLUMN outcomes.transferred IS 'The caller was handed to a person; NULL when not said';
COMMENT ON COLUMN outcomes.result IS 'A word of the poster''s, such as booked';
COMMENT ON COLUMN outcomes.agent IS 'The poster''s name of the voice agent or its version';
COMMENT ON COLUMN outcomes.data IS 'All other fields that were posted';
COMMENT ON COLUMN outcomes.node_id IS 'The sidecar that wrote the row';

CREATE FUNCTION bucket_percentile(
    buckets bigint[], share double precision, edges double precision[]
) RETURNS double precision LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE
    n bigint;
    total bigint := 0;
    upto bigint := 0;
    place integer := 0;
BEGIN
    FOREACH n IN ARRAY buckets LOOP
        total := total + coalesce(n, 0);
    END LOOP;
    IF total > 0 THEN
        FOREACH n IN ARRAY buckets LOOP
            place := place + 1;
            upto := upto + coalesce(n, 0);
            IF n > 0 AND upto >= share * total THEN
                IF place >= cardinality(edges) THEN
                    RETURN edges[cardinality(edges)];
                END IF;
                RETURN edges[place]
                    + (edges[place + 1] - edges[place]) * (share * total - (upto - n)) / n;
            END IF;
        END LOOP;
    END IF;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION bucket_percentile IS
    'Percentile of a histogram, linear within the bucket: edges are the lower edge of the first bucket and the upper one of each, share is 0 to 1; of the last bucket, which has no upper edge, its lower one; NULL when all are empty';

-- By whatever length of time and by whatever cohorts. PostgreSQL puts the function's text in its
-- caller's place, so what is not selected is not reckoned, and the bounds leave out partitions: since
-- these go by received_at, with a day of slack for a sidecar that stood still. Times begin at
-- multiples of the step from a Monday on, UTC.

CREATE FUNCTION kpi(
    step interval, since timestamptz, until timestamptz DEFAULT 'infinity',
    by text[] DEFAULT '{tenant,trunk,carrier,direction,region,agent,codec}'
) RETURNS TABLE (
    "time" timestamptz, source text, tenant text, trunk text, carrier text, direction text,
    region text, agent text, codec text,
    attempts bigint, seizures bigint, answered bigint, asr_percent double precision,
    ner_percent double precision, ser_percent double precision, seer_percent double precision,
    isa_percent double precision, scr_percent double precision, abr_percent double precision,
    redirected bigint, unknown bigint, own_refusals bigint, overflowed bigint, failovers bigint,
    ended bigint, acd_seconds double precision, talk_minutes double precision,
    talk_p50_seconds double precision, short_calls bigint, short_percent double precision,
    dropped bigint, dropped_percent double precision, pdd_count bigint, pdd_ms double precision,
    pdd_p50_ms double precision, pdd_p95_ms double precision, setup_p50_ms double precision,
    setup_p95_ms double precision, failed_srd_ms double precision,
    failed_srd_p95_ms double precision, mos_nb_count bigint, mos_nb double precision,
    mos_nb_p05 double precision, mos_wb_count bigint, mos_wb double precision,
    mos_wb_p05 double precision, mos_fb_count bigint, mos_fb double precision,
    mos_fb_p05 double precision, loss_count bigint, loss_percent double precision,
    loss_p95_percent double precision, jitter_ms double precision, jitter_p95_ms double precision,
    rtt_ms double precision, rtt_p95_ms double precision, one_way bigint, no_media bigint,
    dead_air bigint, low_mos bigint, registers bigint, ira_percent double precision,
    rrd_ms double precision, rrd_p95_ms double precision
) LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT "time", source, tenant, trunk, carrier, direction, region, agent, codec,
        attempts,
        seizures,
        answered,
        float8 '100' * answered / nullif(seizures, 0) AS asr_percent,
        float8 '100' * effective / nullif(seizures, 0) AS ner_percent,
        float8 '100' * answered / nullif(attempts - redirected, 0) AS ser_percent,
        float8 '100' * session_effective / nullif(attempts - redirected, 0) AS seer_percent,
        float8 '100' * ineffective / nullif(attempts, 0) AS isa_percent,
        float8 '100' * completed / nullif(attempts, 0) AS scr_percent,
        float8 '100' * answered / nullif(attempts, 0) AS abr_percent,
        redirected,
        unknown,
        own_refusals,
        overflowed,
        failovers,
        ended,
        talk_seconds / nullif(talk_count, 0) AS acd_seconds,
        talk_seconds / 60.0 AS talk_minutes,
        bucket_percentile(talk_buckets, 0.5, talk_edges) AS talk_p50_seconds,
        short_calls,
        float8 '100' * short_calls / nullif(ended, 0) AS short_percent,
        dropped,
        float8 '100' * dropped / nullif(ended, 0) AS dropped_percent,
        pdd_count,
        pdd_sum_ms / nullif(pdd_count, 0) AS pdd_ms,
        bucket_percentile(pdd_buckets, 0.5, delay_edges) AS pdd_p50_ms,
        bucket_percentile(pdd_buckets, 0.95, delay_edges) AS pdd_p95_ms,
        bucket_percentile(setup_buckets, 0.5, delay_edges) AS setup_p50_ms,
        bucket_percentile(setup_buckets, 0.95, delay_edges) AS setup_p95_ms,
        failed_srd_sum_ms / nullif(failed_srd_count, 0) AS failed_srd_ms,
        bucket_percentile(failed_srd_buckets, 0.95, delay_edges) AS failed_srd_p95_ms,
        mos_nb_count,
        mos_nb_sum / nullif(mos_nb_count, 0) AS mos_nb,
        bucket_percentile(mos_nb_buckets, 0.05, mos_edges) AS mos_nb_p05,
        mos_wb_count,
        mos_wb_sum / nullif(mos_wb_count, 0) AS mos_wb,
        bucket_percentile(mos_wb_buckets, 0.05, mos_edges) AS mos_wb_p05,
        mos_fb_count,
        mos_fb_sum / nullif(mos_fb_count, 0) AS mos_fb,
        bucket_percentile(mos_fb_buckets, 0.05, mos_edges) AS mos_fb_p05,
        loss_count,
        loss_sum_percent / nullif(loss_count, 0) AS loss_percent,
        bucket_percentile(loss_buckets, 0.95, loss_edges) AS loss_p95_percent,
        jitter_sum_ms / nullif(jitter_count, 0) AS jitter_ms,
        bucket_percentile(jitter_buckets, 0.95, jitter_edges) AS jitter_p95_ms,
        rtt_sum_ms / nullif(rtt_count, 0) AS rtt_ms,
        bucket_percentile(rtt_buckets, 0.95, rtt_edges) AS rtt_p95_ms,
        one_way,
        no_media,
        dead_air,
        low_mos,
        registers,
        float8 '100' * registers_failed / nullif(registers, 0) AS ira_percent,
        rrd_sum_ms / nullif(rrd_count, 0) AS rrd_ms,
        bucket_percentile(rrd_buckets, 0.95, delay_edges) AS rrd_p95_ms
    FROM (
        SELECT
            date_bin(step, minute_at, timestamptz '2001-01-01 00:00:00+00') AS "time",
            source,
            CASE WHEN 'tenant' = ANY (by) THEN tenant END AS tenant,
            CASE WHEN 'trunk' = ANY (by) THEN trunk END AS trunk,
            CASE WHEN 'carrier' = ANY (by) THEN carrier END AS carrier,
            CASE WHEN 'direction' = ANY (by) THEN direction END AS direction,
            CASE WHEN 'region' = ANY (by) THEN region END AS region,
            CASE WHEN 'agent' = ANY (by) THEN agent END AS agent,
            CASE WHEN 'codec' = ANY (by) THEN codec END AS codec,
            sum(talk_seconds) AS talk_seconds, sum(pdd_sum_ms) AS pdd_sum_ms,
            sum(failed_srd_sum_ms) AS failed_srd_sum_ms, sum(setup_sum_ms) AS setup_sum_ms,
            sum(mos_nb_sum) AS mos_nb_sum, sum(mos_wb_sum) AS mos_wb_sum,
            sum(mos_fb_sum) AS mos_fb_sum, sum(loss_sum_percent) AS loss_sum_percent,
            sum(jitter_sum_ms) AS jitter_sum_ms, sum(rtt_sum_ms) AS rtt_sum_ms,
            sum(rrd_sum_ms) AS rrd_sum_ms, sum(attempts) AS attempts, sum(redirected) AS redirected,
            sum(unknown) AS unknown, sum(seizures) AS seizures, sum(answered) AS answered,
            sum(effective) AS effective, sum(session_effective) AS session_effective,
            sum(ineffective) AS ineffective, sum(own_refusals) AS own_refusals,
            sum(overflowed) AS overflowed, sum(ended) AS ended, sum(completed) AS completed,
            sum(dropped) AS dropped, sum(short_calls) AS short_calls, sum(talk_count) AS talk_count,
            sum(failovers) AS failovers, sum(one_way) AS one_way, sum(no_media) AS no_media,
            sum(dead_air) AS dead_air, sum(low_mos) AS low_mos, sum(pdd_count) AS pdd_count,
            sum(failed_srd_count) AS failed_srd_count, sum(setup_count) AS setup_count,
            sum(mos_nb_count) AS mos_nb_count, sum(mos_wb_count) AS mos_wb_count,
            sum(mos_fb_count) AS mos_fb_count, sum(loss_count) AS loss_count,
            sum(jitter_count) AS jitter_count, sum(rtt_count) AS rtt_count,
            sum(registers) AS registers, sum(registers_failed) AS registers_failed,
            sum(rrd_count) AS rrd_count,
            ARRAY[
                sum(pdd_buckets[1]), sum(pdd_buckets[2]), sum(pdd_buckets[3]), sum(pdd_buckets[4]),
                sum(pdd_buckets[5]), sum(pdd_buckets[6]), sum(pdd_buckets[7]), sum(pdd_buckets[8]),
                sum(pdd_buckets[9]), sum(pdd_buckets[10]), sum(pdd_buckets[11]),
                sum(pdd_buckets[12]), sum(pdd_buckets[13]), sum(pdd_buckets[14]),
                sum(pdd_buckets[15])
            ] AS pdd_buckets,
            ARRAY[
                sum(failed_srd_buckets[1]), sum(failed_srd_buckets[2]), sum(failed_srd_buckets[3]),
                sum(failed_srd_buckets[4]), sum(failed_srd_buckets[5]), sum(failed_srd_buckets[6]),
                sum(failed_srd_buckets[7]), sum(failed_srd_buckets[8]), sum(failed_srd_buckets[9]),
                sum(failed_srd_buckets[10]), sum(failed_srd_buckets[11]),
                sum(failed_srd_buckets[12]), sum(failed_srd_buckets[13]),
                sum(failed_srd_buckets[14]), sum(failed_srd_buckets[15])
            ] AS failed_srd_buckets,
            ARRAY[
                sum(setup_buckets[1]), sum(setup_buckets[2]), sum(setup_buckets[3]),
                sum(setup_buckets[4]), sum(setup_buckets[5]), sum(setup_buckets[6]),
                sum(setup_buckets[7]), sum(setup_buckets[8]), sum(setup_buckets[9]),
                sum(setup_buckets[10]), sum(setup_buckets[11]), sum(setup_buckets[12]),
                sum(setup_buckets[13]), sum(setup_buckets[14]), sum(setup_buckets[15])
            ] AS setup_buckets,
            ARRAY[
                sum(talk_buckets[1]), sum(talk_buckets[2]), sum(talk_buckets[3]),
                sum(talk_buckets[4]), sum(talk_buckets[5]), sum(talk_buckets[6]),
                sum(talk_buckets[7]), sum(talk_buckets[8]), sum(talk_buckets[9]),
                sum(talk_buckets[10]), sum(talk_buckets[11]), sum(talk_buckets[12]),
                sum(talk_buckets[13]), sum(talk_buckets[14]), sum(talk_buckets[15])
            ] AS talk_buckets,
            ARRAY[
                sum(mos_nb_buckets[1]), sum(mos_nb_buckets[2]), sum(mos_nb_buckets[3]),
                sum(mos_nb_buckets[4]), sum(mos_nb_buckets[5]), sum(mos_nb_buckets[6]),
                sum(mos_nb_buckets[7]), sum(mos_nb_buckets[8]), sum(mos_nb_buckets[9]),
                sum(mos_nb_buckets[10]), sum(mos_nb_buckets[11]), sum(mos_nb_buckets[12]),
                sum(mos_nb_buckets[13]), sum(mos_nb_buckets[14]), sum(mos_nb_buckets[15])
            ] AS mos_nb_buckets,
            ARRAY[
                sum(mos_wb_buckets[1]), sum(mos_wb_buckets[2]), sum(mos_wb_buckets[3]),
                sum(mos_wb_buckets[4]), sum(mos_wb_buckets[5]), sum(mos_wb_buckets[6]),
                sum(mos_wb_buckets[7]), sum(mos_wb_buckets[8]), sum(mos_wb_buckets[9]),
                sum(mos_wb_buckets[10]), sum(mos_wb_buckets[11]), sum(mos_wb_buckets[12]),
                sum(mos_wb_buckets[13]), sum(mos_wb_buckets[14]), sum(mos_wb_buckets[15])
            ] AS mos_wb_buckets,
            ARRAY[
                sum(mos_fb_buckets[1]), sum(mos_fb_buckets[2]), sum(mos_fb_buckets[3]),
                sum(mos_fb_buckets[4]), sum(mos_fb_buckets[5]), sum(mos_fb_buckets[6]),
                sum(mos_fb_buckets[7]), sum(mos_fb_buckets[8]), sum(mos_fb_buckets[9]),
                sum(mos_fb_buckets[10]), sum(mos_fb_buckets[11]), sum(mos_fb_buckets[12]),
                sum(mos_fb_buckets[13]), sum(mos_fb_buckets[14]), sum(mos_fb_buckets[15])
            ] AS mos_fb_buckets,
            ARRAY[
                sum(loss_buckets[1]), sum(loss_buckets[2]), sum(loss_buckets[3]),
                sum(loss_buckets[4]), sum(loss_buckets[5]), sum(loss_buckets[6]),
                sum(loss_buckets[7]), sum(loss_buckets[8]), sum(loss_buckets[9]),
                sum(loss_buckets[10]), sum(loss_buckets[11]), sum(loss_buckets[12])
            ] AS loss_buckets,
            ARRAY[
                sum(jitter_buckets[1]), sum(jitter_buckets[2]), sum(jitter_buckets[3]),
                sum(jitter_buckets[4]), sum(jitter_buckets[5]), sum(jitter_buckets[6]),
                sum(jitter_buckets[7]), sum(jitter_buckets[8]), sum(jitter_buckets[9]),
                sum(jitter_buckets[10]), sum(jitter_buckets[11])
            ] AS jitter_buckets,
            ARRAY[
                sum(rtt_buckets[1]), sum(rtt_buckets[2]), sum(rtt_buckets[3]), sum(rtt_buckets[4]),
                sum(rtt_buckets[5]), sum(rtt_buckets[6]), sum(rtt_buckets[7]), sum(rtt_buckets[8]),
                sum(rtt_buckets[9]), sum(rtt_buckets[10]), sum(rtt_buckets[11]),
                sum(rtt_buckets[12])
            ] AS rtt_buckets,
            ARRAY[
                sum(rrd_buckets[1]), sum(rrd_buckets[2]), sum(rrd_buckets[3]), sum(rrd_buckets[4]),
                sum(rrd_buckets[5]), sum(rrd_buckets[6]), sum(rrd_buckets[7]), sum(rrd_buckets[8]),
                sum(rrd_buckets[9]), sum(rrd_buckets[10]), sum(rrd_buckets[11]),
                sum(rrd_buckets[12]), sum(rrd_buckets[13]), sum(rrd_buckets[14]),
                sum(rrd_buckets[15])
            ] AS rrd_buckets
        FROM kpi_minute
        WHERE minute_at >= date_bin(step, since, timestamptz '2001-01-01 00:00:00+00')
            AND minute_at < until
            AND received_at >= since - step - interval '1 day'
            AND received_at < until + interval '1 day'
        GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9
    ) AS summed, (
        SELECT
            '{0,100,250,500,1000,1500,2000,3000,4000,6000,8000,12000,20000,32000,60000}'::float8[]
                AS delay_edges,
            '{0,1,3,6,10,20,30,33,60,120,300,600,1200,1800,3600}'::float8[]
                AS talk_edges,
            '{1,1.5,2,2.5,2.8,3.1,3.3,3.5,3.7,3.9,4,4.1,4.2,4.3,4.4}'::float8[]
                AS mos_edges,
            '{0,0,0.1,0.25,0.5,1,2,3,5,10,20,50}'::float8[]
                AS loss_edges,
            '{0,1,2,5,10,15,20,30,50,100,200}'::float8[]
                AS jitter_edges,
            '{0,10,25,50,75,100,150,200,300,400,600,1000}'::float8[]
                AS rtt_edges
    ) AS buckets
$$;
COMMENT ON FUNCTION kpi IS
    'Figures from a time on until another, per step of time (such as 5 minutes), source and those of tenant, trunk, carrier, direction, region, agent and codec that are named in by (by default all; the others are NULL). Choose one source: call, trunk or register. The columns are those of kpi_5min.';

CREATE FUNCTION codes(
    step interval, since timestamptz, until timestamptz DEFAULT 'infinity',
    by text[] DEFAULT '{tenant,trunk,carrier,direction,region,agent,codec}'
) RETURNS TABLE (
    "time" timestamptz, source text, tenant text, trunk text, carrier text, direction text,
    region text, agent text, codec text, code smallint, class text, origin text, count bigint
) LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT "time", source, tenant, trunk, carrier, direction, region, agent, codec, code,
        CASE WHEN code > 0 THEN code / 100 || 'xx' ELSE 'unknown' END AS class, origin, count
    FROM (
        SELECT
            date_bin(step, minute_at, timestamptz '2001-01-01 00:00:00+00') AS "time",
            source,
            CASE WHEN 'tenant' = ANY (by) THEN tenant END AS tenant,
            CASE WHEN 'trunk' = ANY (by) THEN trunk END AS trunk,
            CASE WHEN 'carrier' = ANY (by) THEN carrier END AS carrier,
            CASE WHEN 'direction' = ANY (by) THEN direction END AS direction,
            CASE WHEN 'region' = ANY (by) THEN region END AS region,
            CASE WHEN 'agent' = ANY (by) THEN agent END AS agent,
            CASE WHEN 'codec' = ANY (by) THEN codec END AS codec,
            code, origin, sum(count) AS count
        FROM code_minute
        WHERE minute_at >= date_bin(step, since, timestamptz '2001-01-01 00:00:00+00')
            AND minute_at < until
            AND received_at >= since - step - interval '1 day'
            AND received_at < until + interval '1 day'
        GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11
    ) AS summed
$$;
COMMENT ON FUNCTION codes IS
    'Final codes from a time on until another, per step of time, source and those of tenant, trunk, carrier, direction, region, agent and codec that are named in by, as kpi does. The columns are those of codes_5min.';

-- What people look at. Each view goes back so far, and a plain condition on time finds its pages by
-- the index; for any other time there are the functions.

CREATE VIEW kpi_5min AS
SELECT * FROM kpi('5 minutes', now() - interval '35 days');
COMMENT ON VIEW kpi_5min IS 'Figures per 5 minutes and cohort of the last 35 days; for other times and groups: kpi(step, since, until, by)';
COMMENT ON COLUMN kpi_5min."time" IS 'Beginning of the 5 minutes, UTC';
COMMENT ON COLUMN kpi_5min.source IS 'call: as callers met it; trunk: each attempt by the trunk that it went to; register: REGISTERs. Choose one: call and trunk hold the same calls';
COMMENT ON COLUMN kpi_5min.tenant IS 'Tenant by the configuration''s matchers; other where none matched, empty where none are configured';
COMMENT ON COLUMN kpi_5min.trunk IS 'Trunk, likewise; with source trunk the one of each attempt';
COMMENT ON COLUMN kpi_5min.carrier IS 'Carrier, likewise';
COMMENT ON COLUMN kpi_5min.direction IS 'Direction, likewise';
COMMENT ON COLUMN kpi_5min.region IS 'Region, likewise';
COMMENT ON COLUMN kpi_5min.agent IS 'Voice agent, bot or queue, likewise';
COMMENT ON COLUMN kpi_5min.codec IS 'Negotiated codec where it is a known one, other for any other; empty: none was agreed on';
COMMENT ON COLUMN kpi_5min.attempts IS 'INVITEs that ended, without own refusals and overflows; of source trunk: attempts towards it';
COMMENT ON COLUMN kpi_5min.seizures IS 'Attempts that count for ASR and NER: the final is known, no 3xx, and no challenge that was left unanswered';
COMMENT ON COLUMN kpi_5min.answered IS 'Seizures with a 2xx';
COMMENT ON COLUMN kpi_5min.asr_percent IS 'Answer-seizure ratio (ITU-T E.411, E.425): answered / seizures';
COMMENT ON COLUMN kpi_5min.ner_percent IS 'Network effectiveness ratio (E.425): (answered, busy, no answer, rejected by the person) / seizures';
COMMENT ON COLUMN kpi_5min.ser_percent IS 'Session establishment ratio (RFC 6076 4.6): answered / (attempts without 3xx)';
COMMENT ON COLUMN kpi_5min.seer_percent IS 'Session establishment effectiveness ratio (RFC 6076 4.7): (200, 480, 486, 600, 603) / (attempts without 3xx)';
COMMENT ON COLUMN kpi_5min.isa_percent IS 'Ineffective session attempts (RFC 6076 4.8): (408, 500, 503, 504) / attempts';
COMMENT ON COLUMN kpi_5min.scr_percent IS 'Session completion ratio (RFC 6076 4.9): calls ended with a BYE / attempts; long calls end in a later time than they were attempted in';
COMMENT ON COLUMN kpi_5min.abr_percent IS 'Answer-bid ratio (E.425): answered / attempts';
COMMENT ON COLUMN kpi_5min.redirected IS 'Attempts with a final 3xx: no seizures';
COMMENT ON COLUMN kpi_5min.unknown IS 'Attempts of which nobody saw how they ended: no seizures';
COMMENT ON COLUMN kpi_5min.own_refusals IS 'Calls that the sidecar''s admission refused: in nothing else here';
COMMENT ON COLUMN kpi_5min.overflowed IS 'Calls that admission sent to a fallback route: in nothing else here';
COMMENT ON COLUMN kpi_5min.failovers IS 'Attempts that another had to follow';
COMMENT ON COLUMN kpi_5min.ended IS 'Answered calls that are over';
COMMENT ON COLUMN kpi_5min.acd_seconds IS 'Average call duration: mean talk time of answered calls that are over, seconds';
COMMENT ON COLUMN kpi_5min.talk_minutes IS 'Talk time of calls that are over, minutes';
COMMENT ON COLUMN kpi_5min.talk_p50_seconds IS 'Median talk time, seconds; linear within the buckets of kpi_minute, as are all percentiles';
COMMENT ON COLUMN kpi_5min.short_calls IS 'Answered calls of less than 6 s';
COMMENT ON COLUMN kpi_5min.short_percent IS 'Short calls / answered calls that are over';
COMMENT ON COLUMN kpi_5min.dropped IS 'Answered calls that were over without a BYE: a refresh failed, or nothing was seen any more';
COMMENT ON COLUMN kpi_5min.dropped_percent IS 'Dropped-call rate: dropped / answered calls that are over';
COMMENT ON COLUMN kpi_5min.pdd_count IS 'Setups with a post-dial delay';
COMMENT ON COLUMN kpi_5min.pdd_ms IS 'Post-dial delay, mean, milliseconds: first INVITE to the first 180, 181, 182, 183 or 2xx';
COMMENT ON COLUMN kpi_5min.pdd_p50_ms IS 'The same, median';
COMMENT ON COLUMN kpi_5min.pdd_p95_ms IS 'The same, 95th percentile';
COMMENT ON COLUMN kpi_5min.setup_p50_ms IS 'INVITE to answer, median, milliseconds';
COMMENT ON COLUMN kpi_5min.setup_p95_ms IS 'The same, 95th percentile';
COMMENT ON COLUMN kpi_5min.failed_srd_ms IS 'Session request delay of failed setups (RFC 6076 4.3.2), mean, milliseconds';
COMMENT ON COLUMN kpi_5min.failed_srd_p95_ms IS 'The same, 95th percentile';
COMMENT ON COLUMN kpi_5min.mos_nb_count IS 'Calls with a narrowband mean opinion score; those of two scales do not compare';
COMMENT ON COLUMN kpi_5min.mos_nb IS 'Mean opinion score, narrowband: mean of the calls, each by the direction that was heard worse';
COMMENT ON COLUMN kpi_5min.mos_nb_p05 IS 'The same, 5th percentile: one call in twenty sounded like this or worse';
COMMENT ON COLUMN kpi_5min.mos_wb_count IS 'Calls with a wideband mean opinion score; those of two scales do not compare';
COMMENT ON COLUMN kpi_5min.mos_wb IS 'Mean opinion score, wideband: mean of the calls, each by the direction that was heard worse';
COMMENT ON COLUMN kpi_5min.mos_wb_p05 IS 'The same, 5th percentile: one call in twenty sounded like this or worse';
COMMENT ON COLUMN kpi_5min.mos_fb_count IS 'Calls with a fullband mean opinion score; those of two scales do not compare';
COMMENT ON COLUMN kpi_5min.mos_fb IS 'Mean opinion score, fullband: mean of the calls, each by the direction that was heard worse';
COMMENT ON COLUMN kpi_5min.mos_fb_p05 IS 'The same, 5th percentile: one call in twenty sounded like this or worse';
COMMENT ON COLUMN kpi_5min.loss_count IS 'Directions of media with a packet loss';
COMMENT ON COLUMN kpi_5min.loss_percent IS 'Packet loss, mean of the directions of media, percent';
COMMENT ON COLUMN kpi_5min.loss_p95_percent IS 'The same, 95th percentile';
COMMENT ON COLUMN kpi_5min.jitter_ms IS 'RFC 3550 jitter, mean of the directions of media, milliseconds';
COMMENT ON COLUMN kpi_5min.jitter_p95_ms IS 'The same, 95th percentile';
COMMENT ON COLUMN kpi_5min.rtt_ms IS 'Round-trip time, mean of the directions of media, milliseconds';
COMMENT ON COLUMN kpi_5min.rtt_p95_ms IS 'The same, 95th percentile';
COMMENT ON COLUMN kpi_5min.one_way IS 'Calls with one-way audio';
COMMENT ON COLUMN kpi_5min.no_media IS 'Calls without media';
COMMENT ON COLUMN kpi_5min.dead_air IS 'Calls with two seconds or more between the answer and the first packet';
COMMENT ON COLUMN kpi_5min.low_mos IS 'Calls with a mean opinion score under the threshold';
COMMENT ON COLUMN kpi_5min.registers IS 'REGISTER transactions, without those that were challenged; of source register alone';
COMMENT ON COLUMN kpi_5min.ira_percent IS 'Ineffective registration attempts (RFC 6076 4.2): failed / registers';
COMMENT ON COLUMN kpi_5min.rrd_ms IS 'Registration request delay (RFC 6076 4.1), mean, milliseconds';
COMMENT ON COLUMN kpi_5min.rrd_p95_ms IS 'The same, 95th percentile';
CREATE VIEW kpi_hour AS
SELECT * FROM kpi('1 hour', now() - interval '100 days');
COMMENT ON VIEW kpi_hour IS 'Figures per hour and cohort of the last 100 days; for other times and groups: kpi(step, since, until, by)';
COMMENT ON COLUMN kpi_hour."time" IS 'Beginning of the hour, UTC';
DO $$
DECLARE
    it record;
BEGIN
    FOR it IN
        SELECT attname, col_description(attrelid, attnum) AS said FROM pg_attribute
        WHERE attrelid = 'kpi_5min'::regclass AND attnum > 1
    LOOP
        EXECUTE format('COMMENT ON COLUMN kpi_hour.%I IS %L', it.attname, it.said);
    END LOOP;
END $$;
CREATE VIEW kpi_day AS
SELECT * FROM kpi('1 day', now() - interval '200 days');
COMMENT ON VIEW kpi_day IS 'Figures per day (UTC) and cohort of the last 200 days; for other times and groups: kpi(step, since, until, by)';
COMMENT ON COLUMN kpi_day."time" IS 'Beginning of the day, UTC';
DO $$
DECLARE
    it record;
BEGIN
    FOR it IN
        SELECT attname, col_description(attrelid, attnum) AS said FROM pg_attribute
        WHERE attrelid = 'kpi_5min'::regclass AND attnum > 1
    LOOP
        EXECUTE format('COMMENT ON COLUMN kpi_day.%I IS %L', it.attname, it.said);
    END LOOP;
END $$;

CREATE VIEW codes_5min AS
SELECT * FROM codes('5 minutes', now() - interval '35 days');
COMMENT ON VIEW codes_5min IS 'Final codes per 5 minutes and cohort of the last 35 days; for other times and groups: codes(step, since, until, by)';
COMMENT ON COLUMN codes_5min."time" IS 'Beginning of the 5 minutes, UTC';
COMMENT ON COLUMN codes_5min.source IS 'call: as callers met it; trunk: each attempt by the trunk that it went to; register: REGISTERs. Choose one: call and trunk hold the same calls';
COMMENT ON COLUMN codes_5min.tenant IS 'Tenant by the configuration''s matchers; other where none matched, empty where none are configured';
COMMENT ON COLUMN codes_5min.trunk IS 'Trunk, likewise; with source trunk the one of each attempt';
COMMENT ON COLUMN codes_5min.carrier IS 'Carrier, likewise';
COMMENT ON COLUMN codes_5min.direction IS 'Direction, likewise';
COMMENT ON COLUMN codes_5min.region IS 'Region, likewise';
COMMENT ON COLUMN codes_5min.agent IS 'Voice agent, bot or queue, likewise';
COMMENT ON COLUMN codes_5min.codec IS 'Negotiated codec where it is a known one, other for any other; empty: none was agreed on';
COMMENT ON COLUMN codes_5min.code IS 'Final status code; 0: nobody saw it';
COMMENT ON COLUMN codes_5min.class IS '2xx, 3xx, 4xx, 5xx, 6xx or unknown';
COMMENT ON COLUMN codes_5min.origin IS 'Who made it, as calls.final_origin; admission: own refusals; empty of attempts';
COMMENT ON COLUMN codes_5min.count IS 'Setups that it ended; of source register REGISTERs, challenged ones too';
CREATE VIEW codes_hour AS
SELECT * FROM codes('1 hour', now() - interval '100 days');
COMMENT ON VIEW codes_hour IS 'Final codes per hour and cohort of the last 100 days; for other times and groups: codes(step, since, until, by)';
COMMENT ON COLUMN codes_hour."time" IS 'Beginning of the hour, UTC';
DO $$
DECLARE
    it record;
BEGIN
    FOR it IN
        SELECT attname, col_description(attrelid, attnum) AS said FROM pg_attribute
        WHERE attrelid = 'codes_5min'::regclass AND attnum > 1
    LOOP
        EXECUTE format('COMMENT ON COLUMN codes_hour.%I IS %L', it.attname, it.said);
    END LOOP;
END $$;

CREATE VIEW trunk_health AS
WITH figures AS (
    SELECT trunk, sum(attempts) AS attempts,
        sum(seizures) AS seizures, sum(answered) AS answered, sum(effective) AS effective,
        sum(ineffective) AS ineffective, sum(failovers) AS failovers, sum(one_way) AS one_way,
        sum(dropped) AS dropped, sum(ended) AS ended, sum(mos_nb_sum) AS mos_nb_sum,
        sum(mos_nb_count) AS mos_nb_count, sum(mos_wb_sum) AS mos_wb_sum,
        sum(mos_wb_count) AS mos_wb_count, sum(mos_fb_sum) AS mos_fb_sum,
        sum(mos_fb_count) AS mos_fb_count, sum(loss_sum_percent) AS loss_sum_percent,
        sum(loss_count) AS loss_count,
        ARRAY[
            sum(pdd_buckets[1]), sum(pdd_buckets[2]), sum(pdd_buckets[3]), sum(pdd_buckets[4]),
            sum(pdd_buckets[5]), sum(pdd_buckets[6]), sum(pdd_buckets[7]), sum(pdd_buckets[8]),
            sum(pdd_buckets[9]), sum(pdd_buckets[10]), sum(pdd_buckets[11]),
            sum(pdd_buckets[12]), sum(pdd_buckets[13]), sum(pdd_buckets[14]),
            sum(pdd_buckets[15])
        ] AS pdd_buckets,
        max(minute_at) FILTER (WHERE attempts > 0) AS last_attempt_at
    FROM kpi_minute
    WHERE source = 'trunk' AND trunk <> '' AND minute_at >= now() - interval '1 hour'
        AND received_at >= now() - interval '1 day'
    GROUP BY trunk
), told AS (
    SELECT DISTINCT ON (node_id, subject) coalesce(trunk, subject) AS trunk, subject, state, at
    FROM events
    WHERE kind = 'trunk' AND state NOT IN ('certificate', 'dns')
        AND received_at >= now() - interval '35 days'
        -- a sidecar that has begun anew says nothing of what is well
        AND NOT EXISTS (
            SELECT FROM events AS later
            WHERE later.call_id = events.call_id AND later.node_id = events.node_id
                AND later.kind = 'sidecar' AND later.state = 'started'
                AND later.received_at > events.received_at
        )
    ORDER BY node_id, subject, at DESC, received_at DESC
), states AS (
    SELECT trunk, array_agg(DISTINCT peer ORDER BY peer) AS peers, max(at) AS changed_at
    FROM (SELECT trunk, subject || ' ' || state AS peer, at FROM told) AS said
    GROUP BY trunk
)
SELECT trunk, peers, changed_at, last_attempt_at,
    attempts,
    seizures,
    answered,
    float8 '100' * answered / nullif(seizures, 0) AS asr_percent,
    float8 '100' * effective / nullif(seizures, 0) AS ner_percent,
    float8 '100' * ineffective / nullif(attempts, 0) AS isa_percent,
    failovers,
    bucket_percentile(pdd_buckets, 0.5, delay_edges) AS pdd_p50_ms,
    bucket_percentile(pdd_buckets, 0.95, delay_edges) AS pdd_p95_ms,
    mos_nb_sum / nullif(mos_nb_count, 0) AS mos_nb,
    mos_wb_sum / nullif(mos_wb_count, 0) AS mos_wb,
    mos_fb_sum / nullif(mos_fb_count, 0) AS mos_fb,
    loss_sum_percent / nullif(loss_count, 0) AS loss_percent,
    one_way,
    float8 '100' * dropped / nullif(ended, 0) AS dropped_percent
FROM figures FULL JOIN states USING (trunk), (
    SELECT '{0,100,250,500,1000,1500,2000,3000,4000,6000,8000,12000,20000,32000,60000}'::float8[]
        AS delay_edges
) AS buckets
ORDER BY trunk;
COMMENT ON VIEW trunk_health IS 'Each trunk now: the state of its peers, and its figures of the last hour as its attempts met it';
COMMENT ON COLUMN trunk_health.trunk IS 'Trunk by the configuration''s matchers; other where none matched';
COMMENT ON COLUMN trunk_health.peers IS 'Each far end of which a change was told since the sidecar began, and its state since then; NULL: of none';
COMMENT ON COLUMN trunk_health.changed_at IS 'When one of these last changed its state';
COMMENT ON COLUMN trunk_health.last_attempt_at IS 'Minute of the last attempt of the last hour; NULL: there was none';
COMMENT ON COLUMN trunk_health.attempts IS 'INVITEs that ended, without own refusals and overflows; of source trunk: attempts towards it';
COMMENT ON COLUMN trunk_health.seizures IS 'Attempts that count for ASR and NER: the final is known, no 3xx, and no challenge that was left unanswered';
COMMENT ON COLUMN trunk_health.answered IS 'Seizures with a 2xx';
COMMENT ON COLUMN trunk_health.asr_percent IS 'Answer-seizure ratio (ITU-T E.411, E.425): answered / seizures';
COMMENT ON COLUMN trunk_health.ner_percent IS 'Network effectiveness ratio (E.425): (answered, busy, no answer, rejected by the person) / seizures';
COMMENT ON COLUMN trunk_health.isa_percent IS 'Ineffective session attempts (RFC 6076 4.8): (408, 500, 503, 504) / attempts';
COMMENT ON COLUMN trunk_health.failovers IS 'Attempts that another had to follow';
COMMENT ON COLUMN trunk_health.pdd_p50_ms IS 'The same, median';
COMMENT ON COLUMN trunk_health.pdd_p95_ms IS 'The same, 95th percentile';
COMMENT ON COLUMN trunk_health.mos_nb IS 'Mean opinion score, narrowband: mean of the calls, each by the direction that was heard worse';
COMMENT ON COLUMN trunk_health.mos_wb IS 'Mean opinion score, wideband: mean of the calls, each by the direction that was heard worse';
COMMENT ON COLUMN trunk_health.mos_fb IS 'Mean opinion score, fullband: mean of the calls, each by the direction that was heard worse';
COMMENT ON COLUMN trunk_health.loss_percent IS 'Packet loss, mean of the directions of media, percent';
COMMENT ON COLUMN trunk_health.one_way IS 'Calls with one-way audio';
COMMENT ON COLUMN trunk_health.dropped_percent IS 'Dropped-call rate: dropped / answered calls that are over';

CREATE VIEW incidents_open AS
SELECT opened_at, incident, severity, category, state, scope, explained, upstream, summary, codes,
    call_ids, first_seen_at, last_seen_at, escalated_at, cleared_at, sources, tenant, trunk,
    carrier, direction, region, agent, evidence, node_id
FROM (
    SELECT DISTINCT ON (node_id, received_at, incident) *
    FROM incidents
    ORDER BY node_id, received_at, incident, revision DESC
) AS newest
WHERE state = 'open'
ORDER BY array_position(ARRAY['page', 'warn', 'trend'], severity), opened_at DESC;
COMMENT ON VIEW incidents_open IS 'Incidents that are open now, the gravest first';
COMMENT ON COLUMN incidents_open.opened_at IS 'When it was opened';
COMMENT ON COLUMN incidents_open.incident IS 'Its name: category and time of opening, unique within one sidecar';
COMMENT ON COLUMN incidents_open.severity IS 'trend: only recorded; warn: somebody should look today; page: now';
COMMENT ON COLUMN incidents_open.category IS 'What is wrong: a class or code such as 5xx or 404, or a word such as volume, asr, pdd, trunk-down';
COMMENT ON COLUMN incidents_open.state IS 'open or cleared';
COMMENT ON COLUMN incidents_open.scope IS 'The smallest cohort that explains more than 80 % of it, such as trunk=acme,direction=in';
COMMENT ON COLUMN incidents_open.explained IS 'Share of the excess that this cohort explains, 0 to 1; NULL when unknown';
COMMENT ON COLUMN incidents_open.upstream IS 'Several tenants on one region or carrier: the trouble is there, not with them';
COMMENT ON COLUMN incidents_open.summary IS 'One line with numbers, for people';
COMMENT ON COLUMN incidents_open.codes IS 'SIP codes and how many more than expected, such as 404 +29';
COMMENT ON COLUMN incidents_open.call_ids IS 'Call-IDs of examples';
COMMENT ON COLUMN incidents_open.first_seen_at IS 'When the trouble was first seen, which may be before it was opened';
COMMENT ON COLUMN incidents_open.last_seen_at IS 'When it was last seen';
COMMENT ON COLUMN incidents_open.escalated_at IS 'When it last became graver; NULL: never';
COMMENT ON COLUMN incidents_open.cleared_at IS 'When it was over; NULL while it is open';
COMMENT ON COLUMN incidents_open.sources IS 'Detectors and findings that said it';
COMMENT ON COLUMN incidents_open.tenant IS 'Tenant of the scope; NULL where it is not part of it';
COMMENT ON COLUMN incidents_open.trunk IS 'Trunk of the scope, likewise';
COMMENT ON COLUMN incidents_open.carrier IS 'Carrier of the scope, likewise';
COMMENT ON COLUMN incidents_open.direction IS 'Direction of the scope, likewise';
COMMENT ON COLUMN incidents_open.region IS 'Region of the scope, likewise';
COMMENT ON COLUMN incidents_open.agent IS 'Voice agent, bot or queue of the scope, likewise';
COMMENT ON COLUMN incidents_open.evidence IS 'Figures that it stands on; texts in it may be strangers''';
COMMENT ON COLUMN incidents_open.node_id IS 'The sidecar that wrote the row';
CREATE VIEW incidents_recent AS
SELECT opened_at, incident, severity, category, state, scope, explained, upstream, summary, codes,
    call_ids, first_seen_at, last_seen_at, escalated_at, cleared_at, sources, tenant, trunk,
    carrier, direction, region, agent, evidence, node_id
FROM (
    SELECT DISTINCT ON (node_id, received_at, incident) *
    FROM incidents
    WHERE received_at > now() - interval '35 days'
    ORDER BY node_id, received_at, incident, revision DESC
) AS newest
ORDER BY opened_at DESC;
COMMENT ON VIEW incidents_recent IS 'Incidents that were opened in the last 35 days, newest first';
COMMENT ON COLUMN incidents_recent.opened_at IS 'When it was opened';
COMMENT ON COLUMN incidents_recent.incident IS 'Its name: category and time of opening, unique within one sidecar';
COMMENT ON COLUMN incidents_recent.severity IS 'trend: only recorded; warn: somebody should look today; page: now';
COMMENT ON COLUMN incidents_recent.category IS 'What is wrong: a class or code such as 5xx or 404, or a word such as volume, asr, pdd, trunk-down';
COMMENT ON COLUMN incidents_recent.state IS 'open or cleared';
COMMENT ON COLUMN incidents_recent.scope IS 'The smallest cohort that explains more than 80 % of it, such as trunk=acme,direction=in';
COMMENT ON COLUMN incidents_recent.explained IS 'Share of the excess that this cohort explains, 0 to 1; NULL when unknown';
COMMENT ON COLUMN incidents_recent.upstream IS 'Several tenants on one region or carrier: the trouble is there, not with them';
COMMENT ON COLUMN incidents_recent.summary IS 'One line with numbers, for people';
COMMENT ON COLUMN incidents_recent.codes IS 'SIP codes and how many more than expected, such as 404 +29';
COMMENT ON COLUMN incidents_recent.call_ids IS 'Call-IDs of examples';
COMMENT ON COLUMN incidents_recent.first_seen_at IS 'When the trouble was first seen, which may be before it was opened';
COMMENT ON COLUMN incidents_recent.last_seen_at IS 'When it was last seen';
COMMENT ON COLUMN incidents_recent.escalated_at IS 'When it last became graver; NULL: never';
COMMENT ON COLUMN incidents_recent.cleared_at IS 'When it was over; NULL while it is open';
COMMENT ON COLUMN incidents_recent.sources IS 'Detectors and findings that said it';
COMMENT ON COLUMN incidents_recent.tenant IS 'Tenant of the scope; NULL where it is not part of it';
COMMENT ON COLUMN incidents_recent.trunk IS 'Trunk of the scope, likewise';
COMMENT ON COLUMN incidents_recent.carrier IS 'Carrier of the scope, likewise';
COMMENT ON COLUMN incidents_recent.direction IS 'Direction of the scope, likewise';
COMMENT ON COLUMN incidents_recent.region IS 'Region of the scope, likewise';
COMMENT ON COLUMN incidents_recent.agent IS 'Voice agent, bot or queue of the scope, likewise';
COMMENT ON COLUMN incidents_recent.evidence IS 'Figures that it stands on; texts in it may be strangers''';
COMMENT ON COLUMN incidents_recent.node_id IS 'The sidecar that wrote the row';

CREATE VIEW timeline AS
SELECT at AS "time", kind, subject, state, previous, severity, scope, tenant, trunk, carrier,
    direction, region, agent, text, by, data, event, received_at, node_id
FROM events
WHERE received_at > now() - interval '35 days'
UNION ALL
SELECT received_at, 'admission', rule, state, previous, NULL,
    CASE WHEN scope_value = '' THEN 'all' ELSE scope || '=' || scope_value END,
    CASE WHEN scope = 'tenant' THEN scope_value END,
    CASE WHEN scope = 'trunk' THEN scope_value END,
    CASE WHEN scope = 'carrier' THEN scope_value END,
    CASE WHEN scope = 'direction' THEN scope_value END,
    CASE WHEN scope = 'region' THEN scope_value END,
    CASE WHEN scope = 'agent' THEN scope_value END,
    reason, by, NULL, 'admission-' || floor(1e6 * extract(epoch FROM received_at)) || '-' || rule,
    received_at, node_id
FROM admission_states
WHERE received_at > now() - interval '35 days'
ORDER BY 1 DESC;
COMMENT ON VIEW timeline IS 'All that happened in the last 35 days, newest first: incidents, trunks, capture agents, switches, admission, markers';
COMMENT ON COLUMN timeline."time" IS 'When it happened, as whoever told it says';
COMMENT ON COLUMN timeline.kind IS 'incident, trunk, agent (capture agent), switch, sidecar, marker or admission';
COMMENT ON COLUMN timeline.subject IS 'What it is about: an incident''s name, a trunk, an agent, a switch, a rule of admission, a marker''s kind';
COMMENT ON COLUMN timeline.state IS 'State after it; empty where there is none';
COMMENT ON COLUMN timeline.previous IS 'State before it';
COMMENT ON COLUMN timeline.severity IS 'trend, warn or page of an incident, or of what is wrong now; NULL of all else';
COMMENT ON COLUMN timeline.scope IS 'Whose calls it concerns, such as trunk=acme; all for everybody''s';
COMMENT ON COLUMN timeline.tenant IS 'Tenant of the scope; NULL where it is not part of it';
COMMENT ON COLUMN timeline.trunk IS 'Trunk of the scope, likewise';
COMMENT ON COLUMN timeline.carrier IS 'Carrier of the scope, likewise';
COMMENT ON COLUMN timeline.direction IS 'Direction of the scope, likewise';
COMMENT ON COLUMN timeline.region IS 'Region of the scope, likewise';
COMMENT ON COLUMN timeline.agent IS 'Voice agent, bot or queue of the scope, likewise';
COMMENT ON COLUMN timeline.text IS 'For people; of a marker it is whatever was posted';
COMMENT ON COLUMN timeline.by IS 'sidecar, or the name that a poster gave';
COMMENT ON COLUMN timeline.data IS 'What else is known of it; of a marker it is whatever was posted';
COMMENT ON COLUMN timeline.event IS 'Its name, unique within one sidecar';
COMMENT ON COLUMN timeline.received_at IS 'When the sidecar knew of it; a condition on it leaves out partitions';
COMMENT ON COLUMN timeline.node_id IS 'The sidecar that wrote the row';
