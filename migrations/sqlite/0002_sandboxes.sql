-- Sandboxes: what was asked for and what was seen of them, the pairs they are found by, and the keys that
-- make a repeated request safe.

CREATE TABLE sandboxes (
    -- IDs sort by creation.
    id                  TEXT NOT NULL PRIMARY KEY,
    tenant_id           TEXT NOT NULL REFERENCES tenants (id),
    created_at          INTEGER NOT NULL,
    destroyed_at        INTEGER,

    -- What was asked for. Control writes it.
    desired             TEXT NOT NULL CHECK (desired IN ('running', 'destroyed')),
    desired_generation  INTEGER NOT NULL CHECK (desired_generation > 0),
    incarnation         TEXT NOT NULL,
    template            TEXT NOT NULL,
    vcpus               INTEGER NOT NULL CHECK (vcpus > 0),
    memory_mb           INTEGER NOT NULL CHECK (memory_mb > 0),
    disk_mb             INTEGER CHECK (disk_mb > 0),
    envs                TEXT NOT NULL,
    metadata            TEXT NOT NULL,
    cwd                 TEXT,
    internet_access     INTEGER NOT NULL CHECK (internet_access IN (0, 1)),
    timeout_ms          INTEGER NOT NULL CHECK (timeout_ms > 0),
    timeout_action      TEXT NOT NULL CHECK (timeout_action IN ('destroy', 'hibernate')),
    timeout_at          INTEGER,
    destroy_reason      TEXT,

    -- What a node reported. Written by compare-and-set on incarnation and generation.
    observed_state      TEXT NOT NULL CHECK (observed_state IN ('none', 'running', 'lost')),
    observed_generation INTEGER NOT NULL CHECK (observed_generation >= 0),
    observed_disk_mb    INTEGER CHECK (observed_disk_mb > 0),
    started_at          INTEGER,
    error_message       TEXT,

    CHECK ((desired = 'destroyed') = (destroy_reason IS NOT NULL)),
    CHECK (destroyed_at IS NULL OR desired = 'destroyed'),
    CHECK (observed_state <> 'none' OR (started_at IS NULL AND timeout_at IS NULL AND observed_generation = 0)),
    CHECK (observed_state <> 'running' OR (started_at IS NOT NULL AND timeout_at IS NOT NULL))
) STRICT;

CREATE INDEX sandboxes_by_tenant ON sandboxes (tenant_id, id);
-- Lists leave history out unless asked for, and history grows without end.
CREATE INDEX sandboxes_wanted ON sandboxes (tenant_id, id) WHERE desired = 'running';
CREATE INDEX sandboxes_unfinished ON sandboxes (id) WHERE destroyed_at IS NULL;
CREATE INDEX sandboxes_unfinished_by_tenant ON sandboxes (tenant_id) WHERE destroyed_at IS NULL;
CREATE INDEX sandboxes_by_timeout ON sandboxes (timeout_at, id) WHERE desired = 'running';

-- One row per pair of a sandbox's metadata: the SHA-256 of its canonical JSON. Finding by metadata is then
-- the same index lookup on every engine.
CREATE TABLE sandbox_metadata (
    tenant_id  TEXT NOT NULL,
    pair       BLOB NOT NULL CHECK (length(pair) = 32),
    sandbox_id TEXT NOT NULL REFERENCES sandboxes (id) ON DELETE CASCADE,
    PRIMARY KEY (tenant_id, pair, sandbox_id)
) STRICT, WITHOUT ROWID;

CREATE INDEX sandbox_metadata_by_sandbox ON sandbox_metadata (sandbox_id);

CREATE TABLE idempotency (
    tenant_id    TEXT NOT NULL REFERENCES tenants (id),
    operation    TEXT NOT NULL,
    key          TEXT NOT NULL,
    request_hash BLOB NOT NULL CHECK (length(request_hash) = 32),
    -- The key is claimed before the sandbox is written, in the same transaction.
    sandbox_id   TEXT NOT NULL REFERENCES sandboxes (id) ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED,
    created_at   INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, operation, key)
) STRICT, WITHOUT ROWID;

CREATE INDEX idempotency_by_sandbox ON idempotency (sandbox_id);
CREATE INDEX idempotency_by_age ON idempotency (created_at);
