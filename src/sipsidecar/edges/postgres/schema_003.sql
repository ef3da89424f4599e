-- Version 3: media quality. The rules of version 1 hold.
--
-- No index on findings: calls are looked for in a time, which the partitions and calls_started_at
-- narrow down; a GIN index would make every call that is written pay for rare questions.

ALTER TABLE calls
    ADD COLUMN mos_scale text,
    ADD COLUMN mos_direction text,
    ADD COLUMN findings text[] NOT NULL DEFAULT '{}',
    ADD COLUMN evidence jsonb;
COMMENT ON COLUMN calls.mos IS 'Mean opinion score, 1 to 4.5, of the direction that was heard worse; NULL when neither was rated';
COMMENT ON COLUMN calls.mos_scale IS 'Scale of mos: nb, wb or fb; two scales do not compare';
COMMENT ON COLUMN calls.mos_direction IS 'Direction that mos is of: caller_to_callee or callee_to_caller';
COMMENT ON COLUMN calls.findings IS 'What is wrong with the media: low_mos, high_loss, one_way_audio and others';
COMMENT ON COLUMN calls.evidence IS 'For each finding the figures that it stands on; NULL when there is none';

CREATE TABLE media (
    call_id text NOT NULL,
    from_tag text NOT NULL DEFAULT '',
    stream text NOT NULL DEFAULT '',
    received_at timestamptz NOT NULL,
    revision integer NOT NULL DEFAULT 0,
    direction text NOT NULL,
    started_at timestamptz NOT NULL,
    ended_at timestamptz NOT NULL,
    segment text,
    source text,
    ssrc bigint,
    ssrcs integer NOT NULL DEFAULT 0,
    sender_ip inet,
    sender_port integer,
    receiver_ip inet,
    receiver_port integer,
    codec text,
    clock_rate integer,
    ptime_ms integer,
    reports integer NOT NULL DEFAULT 0,
    packets_sent bigint,
    packets_expected bigint,
    packets_lost bigint,
    loss_percent double precision,
    loss_max_percent double precision,
    discard_percent double precision,
    burst_ratio double precision,
    upstream_loss_percent double precision,
    jitter_ms double precision,
    jitter_p95_ms double precision,
    jitter_max_ms double precision,
    rtt_ms double precision,
    rtt_max_ms double precision,
    delay_ms double precision,
    delay_source text,
    media_seconds double precision,
    mos double precision,
    mos_kind text,
    mos_lq double precision,
    mos_min double precision,
    low_share double precision,
    r double precision,
    mos_scale text,
    mos_grade text,
    mos_codec text,
    rated boolean NOT NULL DEFAULT false,
    unrated text,
    peer_mos double precision,
    peer_mos_source text,
    flags text[] NOT NULL DEFAULT '{}',
    findings text[] NOT NULL DEFAULT '{}',
    node_id integer NOT NULL,
    PRIMARY KEY (call_id, from_tag, stream, received_at, node_id, revision)
) PARTITION BY RANGE (received_at);
CREATE TABLE media_default PARTITION OF media DEFAULT;
COMMENT ON TABLE media IS 'One row per call and direction: what one party sent and the other heard, by the reports of who heard it';
COMMENT ON TABLE media_default IS 'Rows of days that have no partition of their own';
COMMENT ON COLUMN media.call_id IS 'Call-ID of the call, at most 512 bytes; empty, or what the reports name, for media without a call';
COMMENT ON COLUMN media.from_tag IS 'Tag of the From header; empty for media without a call';
COMMENT ON COLUMN media.stream IS 'Names the row among those of its call: the direction, or unknown- and the SSRC in hex';
COMMENT ON COLUMN media.received_at IS 'First sighting of its call by the sidecar''s own clock; the partition key';
COMMENT ON COLUMN media.revision IS '0 for the first record, +1 each time late facts changed it; only the newest is kept';
COMMENT ON COLUMN media.direction IS 'caller_to_callee, callee_to_caller or unknown';
COMMENT ON COLUMN media.started_at IS 'Its first report, by the clock that its call is timed by';
COMMENT ON COLUMN media.ended_at IS 'Its last report by the same clock';
COMMENT ON COLUMN media.segment IS 'end_to_end: one party heard what the other sent; to_middle: a node between heard it; from_middle: the party heard what a node between made anew';
COMMENT ON COLUMN media.source IS 'Whose figures these are: rtcp, esl, vq, rtp_stat, rtpengine or log; NULL when there are none';
COMMENT ON COLUMN media.ssrc IS 'Newest SSRC that was heard';
COMMENT ON COLUMN media.ssrcs IS 'How many SSRCs were heard';
COMMENT ON COLUMN media.sender_ip IS 'Who sent the media, by SDP; of its RTCP where SDP was not seen';
COMMENT ON COLUMN media.sender_port IS 'Its port';
COMMENT ON COLUMN media.receiver_ip IS 'Who heard the media, by SDP; of its RTCP where SDP was not seen';
COMMENT ON COLUMN media.receiver_port IS 'Its port';
COMMENT ON COLUMN media.codec IS 'Encoding name as negotiated; the newest one';
COMMENT ON COLUMN media.clock_rate IS 'RTP clock, Hz';
COMMENT ON COLUMN media.ptime_ms IS 'Media per packet, milliseconds';
COMMENT ON COLUMN media.reports IS 'Reports that speak of it';
COMMENT ON COLUMN media.packets_sent IS 'Packets sent, by the sender''s own word';
COMMENT ON COLUMN media.packets_expected IS 'Packets that the hearing side should have received';
COMMENT ON COLUMN media.packets_lost IS 'Of these, packets that it did not receive';
COMMENT ON COLUMN media.loss_percent IS 'Lost packets of those expected, percent';
COMMENT ON COLUMN media.loss_max_percent IS 'The same in the worst interval between two reports';
COMMENT ON COLUMN media.discard_percent IS 'Packets that came too late to be played, percent';
COMMENT ON COLUMN media.burst_ratio IS 'Mean length of loss bursts over that of random loss (G.107)';
COMMENT ON COLUMN media.upstream_loss_percent IS 'Loss before the node that made the stream anew, percent';
COMMENT ON COLUMN media.jitter_ms IS 'Mean of the reported interarrival jitter (RFC 3550), milliseconds';
COMMENT ON COLUMN media.jitter_p95_ms IS 'Its 95th percentile, milliseconds';
COMMENT ON COLUMN media.jitter_max_ms IS 'Its highest, milliseconds';
COMMENT ON COLUMN media.rtt_ms IS 'Round trip between the parties, median, milliseconds';
COMMENT ON COLUMN media.rtt_max_ms IS 'Its highest, milliseconds';
COMMENT ON COLUMN media.delay_ms IS 'Mouth to ear, one way, as taken for the MOS, milliseconds';
COMMENT ON COLUMN media.delay_source IS 'Where delay_ms comes from: xr, sr_rr, esl or declared; NULL when no delay is known';
COMMENT ON COLUMN media.media_seconds IS 'How much media the reports cover, seconds';
COMMENT ON COLUMN media.mos IS 'Mean opinion score, 1 to 4.5: mean over the intervals, weighted by packets; NULL when not rated';
COMMENT ON COLUMN media.mos_kind IS 'cq: conversational; lq: listening, when no delay is known';
COMMENT ON COLUMN media.mos_lq IS 'Listening quality, on the same scale';
COMMENT ON COLUMN media.mos_min IS 'MOS of the worst interval';
COMMENT ON COLUMN media.low_share IS 'Share of the intervals whose MOS is under the threshold, 0 to 1';
COMMENT ON COLUMN media.r IS 'Mean transmission rating factor (G.107), on its scale';
COMMENT ON COLUMN media.mos_scale IS 'nb, wb or fb; MOS of two scales do not compare';
COMMENT ON COLUMN media.mos_grade IS 'A: published codec figures; B: loss robustness borrowed; C: estimated';
COMMENT ON COLUMN media.mos_codec IS 'Row of the codec table that was taken';
COMMENT ON COLUMN media.rated IS 'There is a MOS';
COMMENT ON COLUMN media.unrated IS 'Why there is none: no_reports, short, no_packets or encrypted';
COMMENT ON COLUMN media.peer_mos IS 'MOS that a device or media proxy claims; never mixed with ours';
COMMENT ON COLUMN media.peer_mos_source IS 'Who claims it: xr, vq, rtp_stat, rtpengine or log';
COMMENT ON COLUMN media.flags IS 'What was remarkable: assumptions made, ssrc_changed, restarted, implausible';
COMMENT ON COLUMN media.findings IS 'What is wrong with this direction';
COMMENT ON COLUMN media.node_id IS 'The sidecar that wrote the row';

CREATE TABLE quality_intervals (
    call_id text NOT NULL,
    from_tag text NOT NULL DEFAULT '',
    direction text NOT NULL,
    reporter_ssrc bigint NOT NULL,
    source_ssrc bigint NOT NULL,
    received_at timestamptz NOT NULL,
    at timestamptz NOT NULL,
    source text NOT NULL,
    seconds double precision,
    packets_expected bigint,
    packets_lost bigint,
    loss_percent double precision,
    jitter_ms double precision,
    rtt_ms double precision,
    mos double precision,
    mos_kind text,
    mos_scale text,
    r double precision,
    node_id integer NOT NULL,
    PRIMARY KEY (call_id, from_tag, source_ssrc, reporter_ssrc, at, received_at, node_id)
) PARTITION BY RANGE (received_at);
CREATE TABLE quality_intervals_default PARTITION OF quality_intervals DEFAULT;
COMMENT ON TABLE quality_intervals IS 'One row per report: what was heard since the report before it';
COMMENT ON TABLE quality_intervals_default IS 'Rows of days that have no partition of their own';
COMMENT ON COLUMN quality_intervals.call_id IS 'Call-ID of the call, as in media';
COMMENT ON COLUMN quality_intervals.from_tag IS 'Tag of the From header; empty for media without a call';
COMMENT ON COLUMN quality_intervals.direction IS 'caller_to_callee, callee_to_caller or unknown';
COMMENT ON COLUMN quality_intervals.reporter_ssrc IS 'SSRC of who heard and reports';
COMMENT ON COLUMN quality_intervals.source_ssrc IS 'SSRC of the stream that was heard';
COMMENT ON COLUMN quality_intervals.received_at IS 'First sighting of its call by the sidecar''s own clock; the partition key';
COMMENT ON COLUMN quality_intervals.at IS 'When the report was captured, by the clock that its call is timed by';
COMMENT ON COLUMN quality_intervals.source IS 'Where the report came from: rtcp or esl';
COMMENT ON COLUMN quality_intervals.seconds IS 'Since the report before; NULL for the first';
COMMENT ON COLUMN quality_intervals.packets_expected IS 'Packets that the hearing side should have received in the interval';
COMMENT ON COLUMN quality_intervals.packets_lost IS 'Of these, packets that it did not receive';
COMMENT ON COLUMN quality_intervals.loss_percent IS 'Lost packets of those expected, percent';
COMMENT ON COLUMN quality_intervals.jitter_ms IS 'Reported interarrival jitter (RFC 3550), milliseconds';
COMMENT ON COLUMN quality_intervals.rtt_ms IS 'Round trip that the report shows, milliseconds';
COMMENT ON COLUMN quality_intervals.mos IS 'Mean opinion score of the interval, 1 to 4.5; NULL when not rated';
COMMENT ON COLUMN quality_intervals.mos_kind IS 'cq: conversational; lq: listening, when no delay is known';
COMMENT ON COLUMN quality_intervals.mos_scale IS 'nb, wb or fb; MOS of two scales do not compare';
COMMENT ON COLUMN quality_intervals.r IS 'Transmission rating factor (G.107), on its scale';
COMMENT ON COLUMN quality_intervals.node_id IS 'The sidecar that wrote the row';

CREATE OR REPLACE VIEW calls_recent AS
SELECT started_at, call_id, from_user, to_user, final_code, final_phrase, pdd_ms,
    talk_ms, released_by, trunk, flags, mos, findings
FROM calls
WHERE received_at > now() - interval '1 day'
ORDER BY started_at DESC;
COMMENT ON COLUMN calls_recent.mos IS 'Mean opinion score, 1 to 4.5, of the direction that was heard worse; NULL when neither was rated';
COMMENT ON COLUMN calls_recent.findings IS 'What is wrong with the media: low_mos, high_loss, one_way_audio and others';

CREATE VIEW media_recent AS
SELECT started_at, call_id, direction, codec, mos, mos_scale, mos_grade, unrated, loss_percent,
    jitter_ms, rtt_ms, source, findings
FROM media
WHERE received_at > now() - interval '1 day'
ORDER BY started_at DESC;
COMMENT ON VIEW media_recent IS 'Media of calls received in the last 24 hours, newest first';
COMMENT ON COLUMN media_recent.started_at IS 'Its first report, by the clock that its call is timed by';
COMMENT ON COLUMN media_recent.call_id IS 'Call-ID of the call; empty, or what the reports name, for media without a call';
COMMENT ON COLUMN media_recent.direction IS 'caller_to_callee, callee_to_caller or unknown';
COMMENT ON COLUMN media_recent.codec IS 'Encoding name as negotiated; the newest one';
COMMENT ON COLUMN media_recent.mos IS 'Mean opinion score, 1 to 4.5; NULL when not rated';
COMMENT ON COLUMN media_recent.mos_scale IS 'nb, wb or fb; MOS of two scales do not compare';
COMMENT ON COLUMN media_recent.mos_grade IS 'A: published codec figures; B: loss robustness borrowed; C: estimated';
COMMENT ON COLUMN media_recent.unrated IS 'Why there is no MOS: no_reports, short, no_packets or encrypted';
COMMENT ON COLUMN media_recent.loss_percent IS 'Lost packets of those expected, percent';
COMMENT ON COLUMN media_recent.jitter_ms IS 'Mean of the reported interarrival jitter (RFC 3550), milliseconds';
COMMENT ON COLUMN media_recent.rtt_ms IS 'Round trip between the parties, median, milliseconds';
COMMENT ON COLUMN media_recent.source IS 'Whose figures these are: rtcp, esl, vq, rtp_stat, rtpengine or log';
COMMENT ON COLUMN media_recent.findings IS 'What is wrong with this direction';
