-- Version 2: whose batch a ledger row was, who mirrored a message, why a row was refused, and what
-- maintenance did. The rules of version 1 hold. Partitions of messages are by hour from here on;
-- days that were made before stay.

ALTER TABLE ingest_batch
    ADD COLUMN life bigint NOT NULL DEFAULT 0,
    ADD COLUMN left_out integer NOT NULL DEFAULT 0,
    ADD COLUMN refused text;
COMMENT ON COLUMN ingest_batch.life IS 'Random number of the process that made the batch: the same sequence of another life is another batch';
COMMENT ON COLUMN ingest_batch.left_out IS 'How many of its rows were there already';
COMMENT ON COLUMN ingest_batch.refused IS 'Indexes of the rows that went to quarantine, as JSON by table; NULL when there are none';

ALTER TABLE messages ADD COLUMN agent_ip inet;
COMMENT ON COLUMN messages.agent_ip IS 'Who mirrored the packet: sender of the HEP packet; NULL when unknown';
COMMENT ON TABLE messages_default IS 'Rows of hours that have no partition of their own';

ALTER TABLE quarantine ADD COLUMN detail text;
COMMENT ON TABLE quarantine IS 'Mirrored packets that were not understood, and rows that PostgreSQL refused';
COMMENT ON COLUMN quarantine.sequence IS 'Order of arrival within one run of one sidecar; for a refused row that of its batch';
COMMENT ON COLUMN quarantine.why IS 'Which parser refused it, and its word for why; for a refused row postgres-SQLSTATE';
COMMENT ON COLUMN quarantine.payload IS 'The packet, byte for byte; for a refused row its fields in the form of COPY';
COMMENT ON COLUMN quarantine.detail IS 'For a refused row: its table, and what PostgreSQL said';

CREATE TABLE maintenance (
    node_id integer NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    seconds double precision NOT NULL DEFAULT 0,
    made integer NOT NULL DEFAULT 0,
    dropped integer NOT NULL DEFAULT 0,
    dropped_for_size integer NOT NULL DEFAULT 0,
    postponed integer NOT NULL DEFAULT 0,
    deleted bigint NOT NULL DEFAULT 0,
    moved bigint NOT NULL DEFAULT 0,
    default_rows bigint NOT NULL DEFAULT 0,
    default_left bigint NOT NULL DEFAULT 0,
    bytes bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (node_id, at)
);
COMMENT ON TABLE maintenance IS 'One row per round of maintenance, of whichever sidecar ran it; kept for 30 days';
COMMENT ON COLUMN maintenance.node_id IS 'The sidecar that ran the round';
COMMENT ON COLUMN maintenance.at IS 'When it ended, by the database''s clock';
COMMENT ON COLUMN maintenance.seconds IS 'How long it took';
COMMENT ON COLUMN maintenance.made IS 'Partitions made';
COMMENT ON COLUMN maintenance.dropped IS 'Partitions dropped by age';
COMMENT ON COLUMN maintenance.dropped_for_size IS 'Partitions dropped because all tables together were too large';
COMMENT ON COLUMN maintenance.postponed IS 'Partitions left for the next round because something was in the way';
COMMENT ON COLUMN maintenance.deleted IS 'Rows deleted by age from DEFAULT partitions and the ledger';
COMMENT ON COLUMN maintenance.moved IS 'Rows moved from DEFAULT partitions to partitions of their own';
COMMENT ON COLUMN maintenance.default_rows IS 'Rows found in DEFAULT partitions, at most 100001 counted per table';
COMMENT ON COLUMN maintenance.default_left IS 'Rows still there after the round, counted likewise';
COMMENT ON COLUMN maintenance.bytes IS 'Size of all tables with their indexes after the round';
