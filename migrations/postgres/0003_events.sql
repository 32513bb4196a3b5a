-- The log of lifecycle events, which is the outbox too. Its cursor is `seq`; whoever
-- inserts holds an advisory lock until the end of the transaction, so that the order of `seq` is the order of
-- commits.
-- It refers to no other table: history stays when what it tells of is gone.

CREATE TABLE events (
    seq           BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id            TEXT COLLATE "C" NOT NULL UNIQUE,
    tenant_id     TEXT COLLATE "C" NOT NULL,
    sandbox_id    TEXT COLLATE "C",
    occurred_at   BIGINT NOT NULL,
    operation     TEXT COLLATE "C" NOT NULL CHECK (operation IN (
        'create', 'destroy', 'timeout_updated', 'timeout_expired', 'hibernate', 'snapshot_created',
        'resume_from_snapshot', 'fork', 'reconcile'
    )),
    status        TEXT COLLATE "C" NOT NULL CHECK (status IN ('requested', 'succeeded', 'failed')),
    actor_kind    TEXT COLLATE "C" NOT NULL CHECK (actor_kind IN ('user', 'system', 'reconcile')),
    reason        TEXT COLLATE "C",
    error_code    TEXT COLLATE "C",
    error_message TEXT COLLATE "C",
    metadata      TEXT COLLATE "C" NOT NULL
);

CREATE INDEX events_by_tenant ON events (tenant_id, seq);
CREATE INDEX events_by_sandbox ON events (tenant_id, sandbox_id, seq);
