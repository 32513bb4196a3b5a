-- Webhooks, and the events on their way to them. Deliveries are made out of the log, in the transaction that
-- moves the cursor on.

CREATE TABLE webhooks (
    -- IDs sort by creation.
    id                   TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    tenant_id            TEXT COLLATE "C" NOT NULL REFERENCES tenants (id),
    url                  TEXT COLLATE "C" NOT NULL,
    operations           TEXT COLLATE "C" NOT NULL,
    -- Deliveries are signed with it, so it must be read back.
    signing_secret       TEXT COLLATE "C" NOT NULL CHECK (signing_secret <> ''),
    enabled              BOOLEAN NOT NULL,
    created_at           BIGINT NOT NULL,
    updated_at           BIGINT NOT NULL,
    -- The log's end when it was made: it hears of what is behind.
    after_seq            BIGINT NOT NULL,
    last_delivery_at     BIGINT,
    last_delivery_status TEXT COLLATE "C"
        CHECK (last_delivery_status IN ('queued', 'in_progress', 'succeeded', 'dead_letter')),
    last_error           TEXT COLLATE "C"
);

CREATE INDEX webhooks_by_tenant ON webhooks (tenant_id, id);

CREATE TABLE webhook_deliveries (
    id                   TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    webhook_id           TEXT COLLATE "C" NOT NULL REFERENCES webhooks (id) ON DELETE CASCADE,
    -- The event's place in the log, and what is needed of the event without reading it. The sandbox is empty
    -- where the event has none.
    seq                  BIGINT NOT NULL,
    event_id             TEXT COLLATE "C" NOT NULL,
    sandbox_id           TEXT COLLATE "C" NOT NULL,
    operation            TEXT COLLATE "C" NOT NULL,
    status               TEXT COLLATE "C" NOT NULL,
    delivery_status      TEXT COLLATE "C" NOT NULL
        CHECK (delivery_status IN ('queued', 'in_progress', 'succeeded', 'dead_letter')),
    attempt_count        BIGINT NOT NULL CHECK (attempt_count >= 0),
    created_at           BIGINT NOT NULL,
    -- Null when it is over, and while an earlier one of the same sandbox is not.
    next_attempt_at      BIGINT,
    last_attempt_at      BIGINT,
    last_response_status BIGINT,
    last_error           TEXT COLLATE "C",
    UNIQUE (webhook_id, seq),
    CHECK (next_attempt_at IS NULL OR delivery_status IN ('queued', 'in_progress'))
);

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
    id              TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    delivery_id     TEXT COLLATE "C" NOT NULL REFERENCES webhook_deliveries (id) ON DELETE CASCADE,
    attempt_number  BIGINT NOT NULL CHECK (attempt_number > 0),
    attempted_at    BIGINT NOT NULL,
    duration_ms     BIGINT NOT NULL CHECK (duration_ms >= 0),
    response_status BIGINT,
    error_code      TEXT COLLATE "C",
    error_message   TEXT COLLATE "C"
);

CREATE INDEX webhook_attempts_by_delivery ON webhook_attempts (delivery_id, id);

-- One row: up to where in the log deliveries were made.
CREATE TABLE webhook_cursor (
    one BIGINT NOT NULL PRIMARY KEY CHECK (one = 1),
    seq BIGINT NOT NULL
);

INSERT INTO webhook_cursor (one, seq) SELECT 1, coalesce(max(seq), 0) FROM events;
