-- The log of lifecycle events, which is the outbox too. Its cursor is `seq`; SQLite has one writer at a
-- time, so that the order of `seq` is the order of commits.
-- It refers to no other table: history stays when what it tells of is gone.

CREATE TABLE events (
    seq           INTEGER PRIMARY KEY AUTOINCREMENT,
    id            TEXT NOT NULL UNIQUE,
    tenant_id     TEXT NOT NULL,
    sandbox_id    TEXT,
    occurred_at   INTEGER NOT NULL,
    operation     TEXT NOT NULL CHECK (operation IN (
        'create', 'destroy', 'timeout_updated', 'timeout_expired', 'hibernate', 'snapshot_created',
        'resume_from_snapshot', 'fork', 'reconcile'
    )),
    status        TEXT NOT NULL CHECK (status IN ('requested', 'succeeded', 'failed')),
    actor_kind    TEXT NOT NULL CHECK (actor_kind IN ('user', 'system', 'reconcile')),
    reason        TEXT,
    error_code    TEXT,
    error_message TEXT,
    metadata      TEXT NOT NULL
) STRICT;

CREATE INDEX events_by_tenant ON events (tenant_id, seq);
CREATE INDEX events_by_sandbox ON events (tenant_id, sandbox_id, seq);
