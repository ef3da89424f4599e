-- Version 1. Applied once, in one transaction; a later version is a new file schema_002.sql.
--
-- Tables that grow are partitioned by day of received_at: the sidecar makes the days ahead and drops
-- the old ones. So that they can be distributed by call_id (Citus), call_id is in every primary key
-- and never NULL, nothing refers to another table, nothing counts up and nothing is unique across
-- calls.

CREATE TABLE calls (
    call_id text NOT NULL,
    from_tag text NOT NULL DEFAULT '',
    received_at timestamptz NOT NULL,
    revision integer NOT NULL DEFAULT 0,
    started_at timestamptz NOT NULL,
    ended boolean NOT NULL DEFAULT false,
    ended_at timestamptz,
    end_source text,
    agent_ids bigint[] NOT NULL DEFAULT '{}',
    time_source text NOT NULL DEFAULT 'agent',
    dated_by text NOT NULL DEFAULT 'agent',
    clock_agent_id bigint,
    from_user text,
    from_host text,
    to_user text,
    to_host text,
    ruri_user text,
    ruri_host text,
    user_agent text,
    src_ip inet,
    src_port integer,
    dst_ip inet,
    dst_port integer,
    transport text,
    final_code smallint,
    final_phrase text,
    final_class text,
    final_origin text,
    answered boolean NOT NULL DEFAULT false,
    inferred boolean NOT NULL DEFAULT false,
    pdd_ms double precision,
    srd_ms double precision,
    ring_ms double precision,
    early_media_ms double precision,
    setup_ms double precision,
    talk_ms double precision,
    fail_ms double precision,
    released_by text,
    q850 smallint,
    reason text,
    invites integer NOT NULL DEFAULT 0,
    retransmissions integer NOT NULL DEFAULT 0,
    attempts integer NOT NULL DEFAULT 0,
    codec_offered text,
    codec_negotiated text,
    flags text[] NOT NULL DEFAULT '{}',
    seizure boolean NOT NULL DEFAULT false,
    trunk text,
    mos double precision,
    node_id integer NOT NULL,
    PRIMARY KEY (call_id, from_tag, received_at, node_id, revision)
) PARTITION BY RANGE (received_at);
CREATE TABLE calls_default PARTITION OF calls DEFAULT;
CREATE INDEX calls_started_at ON calls (started_at);
COMMENT ON TABLE calls IS 'One row per call as its caller met it: (Call-ID, From tag) on the ingress hop';
COMMENT ON TABLE calls_default IS 'Rows of days that have no partition of their own';
COMMENT ON COLUMN calls.call_id IS 'Call-ID header, at most 512 bytes; NUL and bad bytes are backslash escapes';
COMMENT ON COLUMN calls.from_tag IS 'Tag of the From header; empty when absent';
COMMENT ON COLUMN calls.received_at IS 'First sighting by the sidecar''s own clock; the partition key';
COMMENT ON COLUMN calls.revision IS '0 for the first record, +1 each time late facts changed it; only the newest is kept';
COMMENT ON COLUMN calls.started_at IS 'First INVITE by the capture agent''s clock, or received_at when that clock is implausible';
COMMENT ON COLUMN calls.dated_by IS 'Whose clock dates the row: agent, or receiver when the agent''s is more than a day off';
COMMENT ON COLUMN calls.ended IS 'The call is known to be over';
COMMENT ON COLUMN calls.ended_at IS 'When it ended, by the same clock as started_at; NULL when unknown';
COMMENT ON COLUMN calls.end_source IS 'What ended it: bye, final, cancel, timer; NULL while unknown';
COMMENT ON COLUMN calls.agent_ids IS 'HEP capture ids that saw the call';
COMMENT ON COLUMN calls.time_source IS 'Whose clock the durations come from: agent or receiver';
COMMENT ON COLUMN calls.clock_agent_id IS 'HEP capture id of that agent; NULL for the receiver''s clock';
COMMENT ON COLUMN calls.from_user IS 'User part of the From URI';
COMMENT ON COLUMN calls.from_host IS 'Host part of the From URI';
COMMENT ON COLUMN calls.to_user IS 'User part of the To URI';
COMMENT ON COLUMN calls.to_host IS 'Host part of the To URI';
COMMENT ON COLUMN calls.ruri_user IS 'User part of the Request-URI of the first INVITE';
COMMENT ON COLUMN calls.ruri_host IS 'Host part of the Request-URI of the first INVITE';
COMMENT ON COLUMN calls.user_agent IS 'User-Agent header of the caller';
COMMENT ON COLUMN calls.src_ip IS 'Who sent the first INVITE of the ingress hop';
COMMENT ON COLUMN calls.src_port IS 'Its port';
COMMENT ON COLUMN calls.dst_ip IS 'Who received the first INVITE of the ingress hop';
COMMENT ON COLUMN calls.dst_port IS 'Its port';
COMMENT ON COLUMN calls.transport IS 'udp, tcp, tls, ws, wss or sctp';
COMMENT ON COLUMN calls.final_code IS 'Status code of the final response; NULL while there is none';
COMMENT ON COLUMN calls.final_phrase IS 'Reason phrase of the final response';
COMMENT ON COLUMN calls.final_class IS '2xx, 3xx, 4xx, 5xx or 6xx';
COMMENT ON COLUMN calls.final_origin IS 'Who made the final response: callee, caller, proxy, admission or inferred';
COMMENT ON COLUMN calls.answered IS 'A 2xx was seen or inferred';
COMMENT ON COLUMN calls.inferred IS 'The outcome was concluded from other messages, not seen';
COMMENT ON COLUMN calls.pdd_ms IS 'Post-dial delay, milliseconds: first INVITE to the first 180, 181, 182, 183 or 2xx';
COMMENT ON COLUMN calls.srd_ms IS 'RFC 6076 session request delay, milliseconds; for a failed call up to its final response';
COMMENT ON COLUMN calls.ring_ms IS 'First INVITE to the first 180, milliseconds';
COMMENT ON COLUMN calls.early_media_ms IS 'First INVITE to the first 183 with SDP, milliseconds';
COMMENT ON COLUMN calls.setup_ms IS 'First INVITE to the first 2xx, milliseconds';
COMMENT ON COLUMN calls.talk_ms IS 'First 2xx to the first BYE, milliseconds';
COMMENT ON COLUMN calls.fail_ms IS 'First INVITE to the final response of a call that was not answered, milliseconds';
COMMENT ON COLUMN calls.released_by IS 'caller or callee: who sent the BYE, or caller for a CANCEL';
COMMENT ON COLUMN calls.q850 IS 'Q.850 cause of the Reason header';
COMMENT ON COLUMN calls.reason IS 'Reason headers (RFC 3326) of what ended the call, as they stood';
COMMENT ON COLUMN calls.invites IS 'INVITE transactions on the caller''s side; a challenge and its retry are 2';
COMMENT ON COLUMN calls.retransmissions IS 'Messages sent again on the caller''s side';
COMMENT ON COLUMN calls.attempts IS 'Rows of the table attempts that belong to this call';
COMMENT ON COLUMN calls.codec_offered IS 'Encoding names of the offered audio formats, comma-joined, preferred first';
COMMENT ON COLUMN calls.codec_negotiated IS 'Encoding name of the audio format agreed on';
COMMENT ON COLUMN calls.flags IS 'What was remarkable: challenged, forked, no_ack, stuck_early and others';
COMMENT ON COLUMN calls.seizure IS 'The call counts as a seizure in the answer-seizure ratio';
COMMENT ON COLUMN calls.trunk IS 'Trunk the call went to; NULL when none is known';
COMMENT ON COLUMN calls.mos IS 'Mean opinion score, 1 to 5; NULL when media was not rated';
COMMENT ON COLUMN calls.node_id IS 'The sidecar that wrote the row';

CREATE TABLE attempts (
    call_id text NOT NULL,
    from_tag text NOT NULL DEFAULT '',
    branch text NOT NULL DEFAULT '',
    received_at timestamptz NOT NULL,
    revision integer NOT NULL DEFAULT 0,
    started_at timestamptz NOT NULL,
    dated_by text NOT NULL DEFAULT 'agent',
    agent_ids bigint[] NOT NULL DEFAULT '{}',
    failover_order integer NOT NULL DEFAULT 1,
    src_ip inet,
    src_port integer,
    peer_ip inet,
    peer_port integer,
    transport text,
    ruri_user text,
    ruri_host text,
    trunk text,
    final_code smallint,
    final_phrase text,
    final_class text,
    answered boolean NOT NULL DEFAULT false,
    inferred boolean NOT NULL DEFAULT false,
    pdd_ms double precision,
    ring_ms double precision,
    early_media_ms double precision,
    setup_ms double precision,
    fail_ms double precision,
    q850 smallint,
    reason text,
    retransmissions integer NOT NULL DEFAULT 0,
    codec_offered text,
    codec_negotiated text,
    flags text[] NOT NULL DEFAULT '{}',
    node_id integer NOT NULL,
    PRIMARY KEY (call_id, from_tag, branch, received_at, node_id, revision)
) PARTITION BY RANGE (received_at);
CREATE TABLE attempts_default PARTITION OF attempts DEFAULT;
COMMENT ON TABLE attempts IS 'One row per egress INVITE branch of a call, towards a trunk or a callee';
COMMENT ON TABLE attempts_default IS 'Rows of days that have no partition of their own';
COMMENT ON COLUMN attempts.call_id IS 'Call-ID header, at most 512 bytes; NUL and bad bytes are backslash escapes';
COMMENT ON COLUMN attempts.from_tag IS 'Tag of the From header; empty when absent';
COMMENT ON COLUMN attempts.branch IS 'Branch of the top Via: which INVITE transaction';
COMMENT ON COLUMN attempts.received_at IS 'First sighting by the sidecar''s own clock; the partition key';
COMMENT ON COLUMN attempts.revision IS '0 for the first record, +1 each time late facts changed it; only the newest is kept';
COMMENT ON COLUMN attempts.started_at IS 'First INVITE of the branch by the capture agent''s clock, or received_at';
COMMENT ON COLUMN attempts.dated_by IS 'Whose clock dates the row: agent, or receiver when the agent''s is more than a day off';
COMMENT ON COLUMN attempts.agent_ids IS 'HEP capture ids that saw the attempt';
COMMENT ON COLUMN attempts.failover_order IS '1 for the first branch that was tried, 2 for the next';
COMMENT ON COLUMN attempts.src_ip IS 'Who sent the INVITE: the proxy';
COMMENT ON COLUMN attempts.src_port IS 'Its port';
COMMENT ON COLUMN attempts.peer_ip IS 'Where the INVITE was sent';
COMMENT ON COLUMN attempts.peer_port IS 'Its port';
COMMENT ON COLUMN attempts.transport IS 'udp, tcp, tls, ws, wss or sctp';
COMMENT ON COLUMN attempts.ruri_user IS 'User part of the Request-URI of this branch';
COMMENT ON COLUMN attempts.ruri_host IS 'Host part of the Request-URI of this branch';
COMMENT ON COLUMN attempts.trunk IS 'Trunk of the peer; NULL when none is known';
COMMENT ON COLUMN attempts.final_code IS 'Status code of the final response; NULL while there is none';
COMMENT ON COLUMN attempts.final_phrase IS 'Reason phrase of the final response';
COMMENT ON COLUMN attempts.final_class IS '2xx, 3xx, 4xx, 5xx or 6xx';
COMMENT ON COLUMN attempts.answered IS 'A 2xx was seen or inferred';
COMMENT ON COLUMN attempts.inferred IS 'The outcome was concluded from other messages, not seen';
COMMENT ON COLUMN attempts.pdd_ms IS 'INVITE of the branch to its first 180, 181, 182, 183 or 2xx, milliseconds';
COMMENT ON COLUMN attempts.ring_ms IS 'INVITE of the branch to its first 180, milliseconds';
COMMENT ON COLUMN attempts.early_media_ms IS 'INVITE of the branch to its first 183 with SDP, milliseconds';
COMMENT ON COLUMN attempts.setup_ms IS 'INVITE of the branch to its first 2xx, milliseconds';
COMMENT ON COLUMN attempts.fail_ms IS 'INVITE of the branch to its refusal, milliseconds';
COMMENT ON COLUMN attempts.q850 IS 'Q.850 cause of the Reason header';
COMMENT ON COLUMN attempts.reason IS 'Reason headers (RFC 3326) of what ended the attempt, as they stood';
COMMENT ON COLUMN attempts.retransmissions IS 'Messages sent again on this branch';
COMMENT ON COLUMN attempts.codec_offered IS 'Encoding names of the offered audio formats, comma-joined, preferred first';
COMMENT ON COLUMN attempts.codec_negotiated IS 'Encoding name of the audio format agreed on';
COMMENT ON COLUMN attempts.flags IS 'What was remarkable about this branch';
COMMENT ON COLUMN attempts.node_id IS 'The sidecar that wrote the row';

CREATE TABLE registrations (
    call_id text NOT NULL,
    branch text NOT NULL DEFAULT '',
    cseq bigint NOT NULL,
    received_at timestamptz NOT NULL,
    started_at timestamptz NOT NULL,
    dated_by text NOT NULL DEFAULT 'agent',
    agent_ids bigint[] NOT NULL DEFAULT '{}',
    aor_user text,
    aor_host text,
    src_ip inet,
    src_port integer,
    peer_ip inet,
    peer_port integer,
    transport text,
    user_agent text,
    expires bigint,
    authorized boolean NOT NULL DEFAULT false,
    final_code smallint,
    final_phrase text,
    rtt_ms double precision,
    requests integer NOT NULL DEFAULT 0,
    flags text[] NOT NULL DEFAULT '{}',
    node_id integer NOT NULL,
    PRIMARY KEY (call_id, branch, cseq, received_at, node_id)
) PARTITION BY RANGE (received_at);
CREATE TABLE registrations_default PARTITION OF registrations DEFAULT;
COMMENT ON TABLE registrations IS 'One row per REGISTER transaction at one hop';
COMMENT ON TABLE registrations_default IS 'Rows of days that have no partition of their own';
COMMENT ON COLUMN registrations.call_id IS 'Call-ID header, at most 512 bytes; NUL and bad bytes are backslash escapes';
COMMENT ON COLUMN registrations.branch IS 'Branch of the top Via: which transaction';
COMMENT ON COLUMN registrations.cseq IS 'Number of the CSeq header';
COMMENT ON COLUMN registrations.received_at IS 'First sighting by the sidecar''s own clock; the partition key';
COMMENT ON COLUMN registrations.started_at IS 'First REGISTER by the capture agent''s clock, or received_at';
COMMENT ON COLUMN registrations.dated_by IS 'Whose clock dates the row: agent, or receiver when the agent''s is more than a day off';
COMMENT ON COLUMN registrations.agent_ids IS 'HEP capture ids that saw the transaction';
COMMENT ON COLUMN registrations.aor_user IS 'User part of the address of record (To)';
COMMENT ON COLUMN registrations.aor_host IS 'Host part of the address of record (To)';
COMMENT ON COLUMN registrations.src_ip IS 'Who sent the REGISTER';
COMMENT ON COLUMN registrations.src_port IS 'Its port';
COMMENT ON COLUMN registrations.peer_ip IS 'Where the REGISTER was sent';
COMMENT ON COLUMN registrations.peer_port IS 'Its port';
COMMENT ON COLUMN registrations.transport IS 'udp, tcp, tls, ws, wss or sctp';
COMMENT ON COLUMN registrations.user_agent IS 'User-Agent header of the sender';
COMMENT ON COLUMN registrations.expires IS 'Seconds asked for; 0 takes the binding away';
COMMENT ON COLUMN registrations.authorized IS 'The request carried credentials';
COMMENT ON COLUMN registrations.final_code IS 'Status code of the final response; NULL when no answer was seen';
COMMENT ON COLUMN registrations.final_phrase IS 'Reason phrase of the final response';
COMMENT ON COLUMN registrations.rtt_ms IS 'Request to final response, milliseconds';
COMMENT ON COLUMN registrations.requests IS 'Copies of the request on the wire: 1 and its retransmissions';
COMMENT ON COLUMN registrations.flags IS 'What was remarkable';
COMMENT ON COLUMN registrations.node_id IS 'The sidecar that wrote the row';

CREATE TABLE pings (
    call_id text NOT NULL,
    branch text NOT NULL DEFAULT '',
    cseq bigint NOT NULL,
    received_at timestamptz NOT NULL,
    started_at timestamptz NOT NULL,
    dated_by text NOT NULL DEFAULT 'agent',
    agent_ids bigint[] NOT NULL DEFAULT '{}',
    src_ip inet,
    src_port integer,
    peer_ip inet,
    peer_port integer,
    transport text,
    user_agent text,
    final_code smallint,
    final_phrase text,
    rtt_ms double precision,
    requests integer NOT NULL DEFAULT 0,
    flags text[] NOT NULL DEFAULT '{}',
    node_id integer NOT NULL,
    PRIMARY KEY (call_id, branch, cseq, received_at, node_id)
) PARTITION BY RANGE (received_at);
CREATE TABLE pings_default PARTITION OF pings DEFAULT;
COMMENT ON TABLE pings IS 'One row per OPTIONS transaction outside a dialog, at one hop';
COMMENT ON TABLE pings_default IS 'Rows of days that have no partition of their own';
COMMENT ON COLUMN pings.call_id IS 'Call-ID header, at most 512 bytes; NUL and bad bytes are backslash escapes';
COMMENT ON COLUMN pings.branch IS 'Branch of the top Via: which transaction';
COMMENT ON COLUMN pings.cseq IS 'Number of the CSeq header';
COMMENT ON COLUMN pings.received_at IS 'First sighting by the sidecar''s own clock; the partition key';
COMMENT ON COLUMN pings.started_at IS 'First OPTIONS by the capture agent''s clock, or received_at';
COMMENT ON COLUMN pings.dated_by IS 'Whose clock dates the row: agent, or receiver when the agent''s is more than a day off';
COMMENT ON COLUMN pings.agent_ids IS 'HEP capture ids that saw the transaction';
COMMENT ON COLUMN pings.src_ip IS 'Who sent the OPTIONS';
COMMENT ON COLUMN pings.src_port IS 'Its port';
COMMENT ON COLUMN pings.peer_ip IS 'Where the OPTIONS was sent';
COMMENT ON COLUMN pings.peer_port IS 'Its port';
COMMENT ON COLUMN pings.transport IS 'udp, tcp, tls, ws, wss or sctp';
COMMENT ON COLUMN pings.user_agent IS 'User-Agent header of the sender';
COMMENT ON COLUMN pings.final_code IS 'Status code of the final response; NULL when no answer was seen';
COMMENT ON COLUMN pings.final_phrase IS 'Reason phrase of the final response';
COMMENT ON COLUMN pings.rtt_ms IS 'Request to final response, milliseconds';
COMMENT ON COLUMN pings.requests IS 'Copies of the request on the wire: 1 and its retransmissions';
COMMENT ON COLUMN pings.flags IS 'What was remarkable';
COMMENT ON COLUMN pings.node_id IS 'The sidecar that wrote the row';

CREATE TABLE messages (
    received_at timestamptz NOT NULL,
    captured_at timestamptz,
    agent_id bigint,
    sequence bigint NOT NULL,
    node_id integer NOT NULL,
    src_port integer,
    dst_port integer,
    kind smallint NOT NULL,
    codec smallint NOT NULL DEFAULT 0,
    src_ip inet,
    dst_ip inet,
    transport text,
    call_id text NOT NULL DEFAULT '',
    payload bytea NOT NULL
) PARTITION BY RANGE (received_at);
CREATE TABLE messages_default PARTITION OF messages DEFAULT;
CREATE INDEX messages_call_id ON messages (call_id);
COMMENT ON TABLE messages IS 'Mirrored packets as they were';
COMMENT ON TABLE messages_default IS 'Rows of days that have no partition of their own';
COMMENT ON COLUMN messages.received_at IS 'When the sidecar received it, by its own clock; the partition key';
COMMENT ON COLUMN messages.captured_at IS 'When the capture agent saw it, by the agent''s clock; NULL when it did not say';
COMMENT ON COLUMN messages.agent_id IS 'HEP capture id; NULL when the agent did not say';
COMMENT ON COLUMN messages.sequence IS 'Order of arrival within one run of one sidecar';
COMMENT ON COLUMN messages.node_id IS 'The sidecar that wrote the row';
COMMENT ON COLUMN messages.src_port IS 'Sender''s port';
COMMENT ON COLUMN messages.dst_port IS 'Receiver''s port';
COMMENT ON COLUMN messages.kind IS 'HEP protocol type: 1 SIP, 5 RTCP as JSON, and so on';
COMMENT ON COLUMN messages.codec IS 'How payload is stored: 0 as it was';
COMMENT ON COLUMN messages.src_ip IS 'Sender of the packet';
COMMENT ON COLUMN messages.dst_ip IS 'Receiver of the packet';
COMMENT ON COLUMN messages.transport IS 'udp, tcp, tls, ws, wss or sctp';
COMMENT ON COLUMN messages.call_id IS 'Call-ID header or correlation id; empty when the packet names no call';
COMMENT ON COLUMN messages.payload IS 'The packet, byte for byte';

CREATE TABLE quarantine (
    received_at timestamptz NOT NULL,
    captured_at timestamptz,
    agent_id bigint,
    sequence bigint NOT NULL,
    node_id integer NOT NULL,
    src_port integer,
    dst_port integer,
    src_ip inet,
    dst_ip inet,
    why text NOT NULL,
    payload bytea NOT NULL
) PARTITION BY RANGE (received_at);
CREATE TABLE quarantine_default PARTITION OF quarantine DEFAULT;
COMMENT ON TABLE quarantine IS 'Mirrored packets that were not understood';
COMMENT ON TABLE quarantine_default IS 'Rows of days that have no partition of their own';
COMMENT ON COLUMN quarantine.received_at IS 'When the sidecar received it, by its own clock; the partition key';
COMMENT ON COLUMN quarantine.captured_at IS 'When the capture agent saw it, by the agent''s clock; NULL when it did not say';
COMMENT ON COLUMN quarantine.agent_id IS 'HEP capture id; NULL when the agent did not say';
COMMENT ON COLUMN quarantine.sequence IS 'Order of arrival within one run of one sidecar';
COMMENT ON COLUMN quarantine.node_id IS 'The sidecar that wrote the row';
COMMENT ON COLUMN quarantine.src_port IS 'Sender''s port';
COMMENT ON COLUMN quarantine.dst_port IS 'Receiver''s port';
COMMENT ON COLUMN quarantine.src_ip IS 'Sender of the packet';
COMMENT ON COLUMN quarantine.dst_ip IS 'Receiver of the packet';
COMMENT ON COLUMN quarantine.why IS 'Which parser refused it, and its word for why';
COMMENT ON COLUMN quarantine.payload IS 'The packet, byte for byte';

CREATE TABLE ingest_batch (
    node_id integer NOT NULL,
    sequence bigint NOT NULL,
    committed_at timestamptz NOT NULL DEFAULT now(),
    rows integer NOT NULL,
    PRIMARY KEY (node_id, sequence)
);
COMMENT ON TABLE ingest_batch IS 'One row per batch that was stored, written with it: a batch sent twice is stored once';
COMMENT ON COLUMN ingest_batch.node_id IS 'The sidecar that wrote the batch';
COMMENT ON COLUMN ingest_batch.sequence IS 'Number of the batch, rising within one node';
COMMENT ON COLUMN ingest_batch.committed_at IS 'When it was stored, by the database''s clock';
COMMENT ON COLUMN ingest_batch.rows IS 'How many rows it had in all tables';

CREATE TABLE sipsidecar_schema (
    version integer PRIMARY KEY,
    applied_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE sipsidecar_schema IS 'Versions of this schema that were applied';
COMMENT ON COLUMN sipsidecar_schema.version IS 'Number of the schema_NNN.sql file';
COMMENT ON COLUMN sipsidecar_schema.applied_at IS 'When it was applied, by the database''s clock';

CREATE VIEW calls_recent AS
SELECT started_at, call_id, from_user, to_user, final_code, final_phrase, pdd_ms,
    talk_ms, released_by, trunk, flags
FROM calls
WHERE received_at > now() - interval '1 day'
ORDER BY started_at DESC;
COMMENT ON VIEW calls_recent IS 'Calls received in the last 24 hours, newest first';
COMMENT ON COLUMN calls_recent.started_at IS 'First INVITE by the capture agent''s clock, or received_at when that clock is implausible';
COMMENT ON COLUMN calls_recent.call_id IS 'Call-ID header, at most 512 bytes; NUL and bad bytes are backslash escapes';
COMMENT ON COLUMN calls_recent.from_user IS 'User part of the From URI';
COMMENT ON COLUMN calls_recent.to_user IS 'User part of the To URI';
COMMENT ON COLUMN calls_recent.final_code IS 'Status code of the final response; NULL while there is none';
COMMENT ON COLUMN calls_recent.final_phrase IS 'Reason phrase of the final response';
COMMENT ON COLUMN calls_recent.pdd_ms IS 'Post-dial delay, milliseconds: first INVITE to the first 180, 181, 182, 183 or 2xx';
COMMENT ON COLUMN calls_recent.talk_ms IS 'First 2xx to the first BYE, milliseconds';
COMMENT ON COLUMN calls_recent.released_by IS 'caller or callee: who sent the BYE, or caller for a CANCEL';
COMMENT ON COLUMN calls_recent.trunk IS 'Trunk the call went to; NULL when none is known';
COMMENT ON COLUMN calls_recent.flags IS 'What was remarkable: challenged, forked, no_ack, stuck_early and others';
