-- Version 4: what FreeSWITCH tells of its channels. The rules of version 1 hold.

COMMENT ON COLUMN calls.final_origin IS 'Who made the final response: callee, caller, proxy, admission or inferred; esl: no SIP was seen, a FreeSWITCH told of the call';

CREATE TABLE legs (
    call_id text NOT NULL DEFAULT '',
    uuid text NOT NULL,
    conversation text NOT NULL,
    switch text NOT NULL,
    core_uuid text,
    received_at timestamptz NOT NULL,
    revision integer NOT NULL DEFAULT 0,
    direction text,
    other_leg text,
    created_at timestamptz NOT NULL,
    progress_at timestamptz,
    answered_at timestamptz,
    bridged_at timestamptz,
    ended_at timestamptz,
    answered boolean NOT NULL DEFAULT false,
    pdd_ms double precision,
    talk_ms double precision,
    hangup_cause text,
    q850 smallint,
    released_by text,
    sip_code smallint,
    sip_code_source text,
    gateway text,
    profile text,
    caller text,
    destination text,
    network_ip inet,
    network_port integer,
    codec_read text,
    codec_write text,
    packets_in bigint,
    packets_out bigint,
    packets_skipped bigint,
    fs_mos double precision,
    flags text[] NOT NULL DEFAULT '{}',
    node_id integer NOT NULL,
    PRIMARY KEY (call_id, uuid, received_at, node_id, revision)
) PARTITION BY RANGE (received_at);
CREATE TABLE legs_default PARTITION OF legs DEFAULT;
CREATE INDEX legs_conversation ON legs (conversation);
CREATE INDEX legs_uuid ON legs (uuid);
COMMENT ON TABLE legs IS 'One row per channel of a FreeSWITCH, one side of a bridged call, as its events (ESL) tell it';
COMMENT ON TABLE legs_default IS 'Rows of days that have no partition of their own';
COMMENT ON COLUMN legs.call_id IS 'SIP Call-ID of this leg, as in calls; empty when FreeSWITCH never told it';
COMMENT ON COLUMN legs.uuid IS 'UUID of the channel';
COMMENT ON COLUMN legs.conversation IS 'Row of conversations that it belongs to: UUID of the earliest leg that it was joined with';
COMMENT ON COLUMN legs.switch IS 'The FreeSWITCH: configured name, or switch name of a transcript';
COMMENT ON COLUMN legs.core_uuid IS 'The process of that FreeSWITCH; another after each restart';
COMMENT ON COLUMN legs.received_at IS 'First event of the leg by the sidecar''s own clock; the partition key';
COMMENT ON COLUMN legs.revision IS '0 for the first record, +1 each time late facts changed it; only the newest is kept';
COMMENT ON COLUMN legs.direction IS 'inbound or outbound, as FreeSWITCH sees it';
COMMENT ON COLUMN legs.other_leg IS 'UUID of the leg that it was bridged with, or made for';
COMMENT ON COLUMN legs.created_at IS 'When the channel was made, by FreeSWITCH''s clock, in ticks of 20 ms, as all times of the row';
COMMENT ON COLUMN legs.progress_at IS 'First 180 or 183';
COMMENT ON COLUMN legs.answered_at IS 'When it was answered';
COMMENT ON COLUMN legs.bridged_at IS 'When it was joined with the other leg';
COMMENT ON COLUMN legs.ended_at IS 'When it was hung up; NULL when unknown';
COMMENT ON COLUMN legs.answered IS 'It was answered: by answered_at alone, causes prove nothing';
COMMENT ON COLUMN legs.pdd_ms IS 'Creation to the first sign of the callee, milliseconds';
COMMENT ON COLUMN legs.talk_ms IS 'Answer to hangup, milliseconds';
COMMENT ON COLUMN legs.hangup_cause IS 'Cause in FreeSWITCH''s words';
COMMENT ON COLUMN legs.q850 IS 'The same as Q.850 cause';
COMMENT ON COLUMN legs.released_by IS 'Who hung up: peer or switch';
COMMENT ON COLUMN legs.sip_code IS 'Final SIP code of the leg';
COMMENT ON COLUMN legs.sip_code_source IS 'wire: seen in mirrored SIP; reported: FreeSWITCH says so, even where no answer came; derived: from the cause, which many codes share';
COMMENT ON COLUMN legs.gateway IS 'Gateway that an outbound leg was sent to';
COMMENT ON COLUMN legs.profile IS 'Sofia profile';
COMMENT ON COLUMN legs.caller IS 'Caller-ID number';
COMMENT ON COLUMN legs.destination IS 'Number that was dialled';
COMMENT ON COLUMN legs.network_ip IS 'The peer''s address';
COMMENT ON COLUMN legs.network_port IS 'Its port';
COMMENT ON COLUMN legs.codec_read IS 'Codec that FreeSWITCH receives';
COMMENT ON COLUMN legs.codec_write IS 'Codec that FreeSWITCH sends';
COMMENT ON COLUMN legs.packets_in IS 'RTP packets that FreeSWITCH received';
COMMENT ON COLUMN legs.packets_out IS 'RTP packets that FreeSWITCH sent';
COMMENT ON COLUMN legs.packets_skipped IS 'Ticks without a packet: about what was lost or late';
COMMENT ON COLUMN legs.fs_mos IS 'FreeSWITCH''s own MOS, which reads 4.50 for a call without audio: kept, never used';
COMMENT ON COLUMN legs.flags IS 'What was remarkable: created_unseen, end_unseen, restarted, no_packets_in';
COMMENT ON COLUMN legs.node_id IS 'The sidecar that wrote the row';

CREATE TABLE conversations (
    call_id text NOT NULL DEFAULT '',
    conversation text NOT NULL,
    switch text NOT NULL,
    received_at timestamptz NOT NULL,
    revision integer NOT NULL DEFAULT 0,
    started_at timestamptz NOT NULL,
    ended_at timestamptz,
    answered boolean NOT NULL DEFAULT false,
    legs text[] NOT NULL DEFAULT '{}',
    call_ids text[] NOT NULL DEFAULT '{}',
    flags text[] NOT NULL DEFAULT '{}',
    node_id integer NOT NULL,
    PRIMARY KEY (call_id, conversation, received_at, node_id, revision)
) PARTITION BY RANGE (received_at);
CREATE TABLE conversations_default PARTITION OF conversations DEFAULT;
CREATE INDEX conversations_conversation ON conversations (conversation);
COMMENT ON TABLE conversations IS 'One row per conversation: the legs that a FreeSWITCH joined, what people call one call';
COMMENT ON TABLE conversations_default IS 'Rows of days that have no partition of their own';
COMMENT ON COLUMN conversations.call_id IS 'The first of call_ids; empty when none is known';
COMMENT ON COLUMN conversations.conversation IS 'Its name: UUID of its earliest leg';
COMMENT ON COLUMN conversations.switch IS 'The FreeSWITCH: configured name, or switch name of a transcript';
COMMENT ON COLUMN conversations.received_at IS 'First event of its legs by the sidecar''s own clock; the partition key';
COMMENT ON COLUMN conversations.revision IS '0 for the first record, +1 each time late facts changed it; only the newest is kept';
COMMENT ON COLUMN conversations.started_at IS 'When its first leg was made, by FreeSWITCH''s clock';
COMMENT ON COLUMN conversations.ended_at IS 'When its last leg was hung up; NULL when unknown';
COMMENT ON COLUMN conversations.answered IS 'One of its legs was answered';
COMMENT ON COLUMN conversations.legs IS 'UUIDs of its legs, in the order they were made';
COMMENT ON COLUMN conversations.call_ids IS 'SIP Call-IDs of its legs, those that are known';
COMMENT ON COLUMN conversations.flags IS 'What was remarkable about its legs';
COMMENT ON COLUMN conversations.node_id IS 'The sidecar that wrote the row';

CREATE VIEW conversations_recent AS
SELECT started_at, conversation, switch, answered, ended_at, cardinality(legs) AS legs, call_ids,
    flags
FROM conversations
WHERE received_at > now() - interval '1 day'
ORDER BY started_at DESC;
COMMENT ON VIEW conversations_recent IS 'Conversations received in the last 24 hours, newest first';
COMMENT ON COLUMN conversations_recent.started_at IS 'When its first leg was made, by FreeSWITCH''s clock';
COMMENT ON COLUMN conversations_recent.conversation IS 'Its name: UUID of its earliest leg';
COMMENT ON COLUMN conversations_recent.switch IS 'The FreeSWITCH: configured name, or switch name of a transcript';
COMMENT ON COLUMN conversations_recent.answered IS 'One of its legs was answered';
COMMENT ON COLUMN conversations_recent.ended_at IS 'When its last leg was hung up; NULL when unknown';
COMMENT ON COLUMN conversations_recent.legs IS 'How many legs it has';
COMMENT ON COLUMN conversations_recent.call_ids IS 'SIP Call-IDs of its legs, those that are known';
COMMENT ON COLUMN conversations_recent.flags IS 'What was remarkable about its legs';
