-- Webhooks, and the events on their way to them. Deliveries are made out of the log, in the transaction that
-- moves the cursor on.

CREATE TABLE webhooks (
    -- IDs sort by creation.
    id                   TEXT NOT NULL PRIMARY KEY,
    tenant_id            TEXT NOT NULL REFERENCES tenants (id),
    url                  TEXT NOT NULL,
    operations           TEXT NOT NULL,
    -- Deliveries are signed with it, so it must be read back.
    signing_secret       TEXT NOT NULL CHECK (signing_secret <> ''),
    enabled              INTEGER NOT NULL CHECK (enabled IN (0, 1)),
    created_at           INTEGER NOT NULL,
    updated_at           INTEGER NOT NULL,
    -- The log's end when it was made: it hears of what is behind.
    after_seq            INTEGER NOT NULL,
    last_delivery_at     INTEGER,
    last_delivery_status TEXT
        CHECK (last_delivery_status IN ('queued', 'in_progress', 'succeeded', 'dead_letter')),
    last_error           TEXT
) STRICT;

CREATE INDEX webhooks_by_tenant ON webhooks (tenant_id, id);

CREATE TABLE webhook_deliveries (
    id                   TEXT NOT NULL PRIMARY KEY,
    webhook_id           TEXT NOT NULL REFERENCES webhooks (id) ON DELETE CASCADE,
    -- The event's place in the log, and what is needed of the event without reading it. The sandbox is empty
    -- where the event has none.
    seq                  INTEGER NOT NULL,
    event_id             TEXT NOT NULL,
    sandbox_id           TEXT NOT NULL,
    operation            TEXT NOT NULL,
    status               TEXT NOT NULL,
    delivery_status      TEXT NOT NULL
        CHECK (delivery_status IN ('queued', 'in_progress', 'succeeded', 'dead_letter')),
    attempt_count        INTEGER NOT NULL CHECK (attempt_count >= 0),
    created_at           INTEGER NOT NULL,
    -- Null when it is over, and while an earlier one of the same sandbox is not.
    next_attempt_at      INTEGER,
    last_attempt_at      INTEGER,
    last_response_status INTEGER,
    last_error           TEXT,
    UNIQUE (webhook_id, seq),
    CHECK (next_attempt_at IS NULL OR delivery_status IN ('queued', 'in_progress'))
) STRICT;

CREATE INDEX webhook_deliveries_due ON webhook_deliveries (next_attempt_at) WHERE next_attempt_at IS NOT NULL;
-- Of each webhook and sandbox one at a time.
CREATE UNIQUE INDEX webhook_deliveries_turn ON webhook_deliveries (webhook_id, sandbox_id)
    WHERE next_attempt_at IS NOT NULL;
CREATE INDEX webhook_deliveries_of_sandbox ON webhook_deliveries (webhook_id, sandbox_id, seq)
    WHERE delivery_status IN ('queued', 'in_progress');
CREATE INDEX webhook_deliveries_unfinished ON webhook_deliveries (webhook_id, seq)
    WHERE delivery_status IN ('queued', 'in_progress');
CREATE INDEX webhook_deliveries_finished ON webhook_deliveries (webhook_id, seq)
    WHERE delivery_status IN ('succeeded', 'dead_letter');

CREATE TABLE webhook_attempts (
    id              TEXT NOT NULL PRIMARY KEY,
    delivery_id     TEXT NOT NULL REFERENCES webhook_deliveries (id) ON DELETE CASCADE,
    attempt_number  INTEGER NOT NULL CHECK (attempt_number > 0),
    attempted_at    INTEGER NOT NULL,
    duration_ms     INTEGER NOT NULL CHECK (duration_ms >= 0),
    response_status INTEGER,
    error_code      TEXT,
    error_message   TEXT
) STRICT;

CREATE INDEX webhook_attempts_by_delivery ON webhook_attempts (delivery_id, id);

-- One row: up to where in the log deliveries were made.
CREATE TABLE webhook_cursor (
    one INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
    seq INTEGER NOT NULL
) STRICT;

INSERT INTO webhook_cursor (one, seq) SELECT 1, coalesce(max(seq), 0) FROM events;
