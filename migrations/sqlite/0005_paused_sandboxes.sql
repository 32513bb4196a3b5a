-- Sandboxes that are hibernated, come from others, and wake by themselves; and keys that name whatever they
-- made. SQLite changes no CHECK in place: the tables are built anew. Dropping a table deletes its rows first,
-- and with them all rows that refer to them, so everything is copied before anything is dropped.

CREATE TABLE new_sandboxes (
    -- IDs sort by creation.
    id                  TEXT NOT NULL PRIMARY KEY,
    tenant_id           TEXT NOT NULL REFERENCES tenants (id),
    created_at          INTEGER NOT NULL,
    destroyed_at        INTEGER,

    -- What was asked for. Control writes it.
    desired             TEXT NOT NULL CHECK (desired IN ('running', 'paused', 'destroyed')),
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
    auto_resume         INTEGER NOT NULL DEFAULT 0 CHECK (auto_resume IN (0, 1)),
    -- No reference: while it is being hibernated there is no such snapshot yet, and later it may be deleted.
    snapshot_id         TEXT,
    parent_id           TEXT,
    origin_id           TEXT,

    -- What a node reported. Written by compare-and-set on incarnation and generation.
    observed_state      TEXT NOT NULL CHECK (observed_state IN ('none', 'running', 'paused', 'lost')),
    observed_generation INTEGER NOT NULL CHECK (observed_generation >= 0),
    observed_disk_mb    INTEGER CHECK (observed_disk_mb > 0),
    started_at          INTEGER,
    error_message       TEXT,

    CHECK ((desired = 'destroyed') = (destroy_reason IS NOT NULL)),
    CHECK (destroyed_at IS NULL OR desired = 'destroyed'),
    CHECK (observed_state <> 'none' OR (started_at IS NULL AND timeout_at IS NULL AND observed_generation = 0)),
    CHECK (observed_state <> 'running' OR (started_at IS NOT NULL AND timeout_at IS NOT NULL)),
    CHECK (desired <> 'paused' OR (snapshot_id IS NOT NULL AND observed_state <> 'none')),
    CHECK (observed_state <> 'paused' OR (snapshot_id IS NOT NULL AND timeout_at IS NULL))
) STRICT;

INSERT INTO new_sandboxes (
    id, tenant_id, created_at, destroyed_at, desired, desired_generation, incarnation, template, vcpus, memory_mb,
    disk_mb, envs, metadata, cwd, internet_access, timeout_ms, timeout_action, timeout_at, destroy_reason,
    observed_state, observed_generation, observed_disk_mb, started_at, error_message
) SELECT
    id, tenant_id, created_at, destroyed_at, desired, desired_generation, incarnation, template, vcpus, memory_mb,
    disk_mb, envs, metadata, cwd, internet_access, timeout_ms, timeout_action, timeout_at, destroy_reason,
    observed_state, observed_generation, observed_disk_mb, started_at, error_message
FROM sandboxes;

-- One row per pair of a sandbox's metadata: the SHA-256 of its canonical JSON. Finding by metadata is then
-- the same index lookup on every engine.
CREATE TABLE new_sandbox_metadata (
    tenant_id  TEXT NOT NULL,
    pair       BLOB NOT NULL CHECK (length(pair) = 32),
    sandbox_id TEXT NOT NULL REFERENCES new_sandboxes (id) ON DELETE CASCADE,
    PRIMARY KEY (tenant_id, pair, sandbox_id)
) STRICT, WITHOUT ROWID;

INSERT INTO new_sandbox_metadata (tenant_id, pair, sandbox_id)
SELECT tenant_id, pair, sandbox_id FROM sandbox_metadata;

CREATE TABLE new_idempotency (
    tenant_id    TEXT NOT NULL REFERENCES tenants (id),
    operation    TEXT NOT NULL,
    key          TEXT NOT NULL,
    request_hash BLOB NOT NULL CHECK (length(request_hash) = 32),
    -- What the request made: the ID of a sandbox or a snapshot, or `fork/` and the children's origin. Whoever
    -- removes that removes the key.
    resource     TEXT NOT NULL,
    created_at   INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, operation, key)
) STRICT, WITHOUT ROWID;

INSERT INTO new_idempotency (tenant_id, operation, key, request_hash, resource, created_at)
SELECT tenant_id, operation, key, request_hash, sandbox_id, created_at FROM idempotency;

DROP TABLE sandbox_metadata;
DROP TABLE idempotency;
DROP TABLE sandboxes;
-- This renames it in what refers to it, too.
ALTER TABLE new_sandboxes RENAME TO sandboxes;
ALTER TABLE new_sandbox_metadata RENAME TO sandbox_metadata;
ALTER TABLE new_idempotency RENAME TO idempotency;

CREATE INDEX sandboxes_by_tenant ON sandboxes (tenant_id, id);
-- Lists leave history out unless asked for, and history grows without end.
CREATE INDEX sandboxes_wanted ON sandboxes (tenant_id, id) WHERE desired <> 'destroyed';
CREATE INDEX sandboxes_unfinished ON sandboxes (id) WHERE destroyed_at IS NULL;
CREATE INDEX sandboxes_unfinished_by_tenant ON sandboxes (tenant_id, desired, observed_state)
    WHERE destroyed_at IS NULL;
CREATE INDEX sandboxes_by_timeout ON sandboxes (timeout_at, id) WHERE desired = 'running';
CREATE INDEX sandboxes_by_snapshot ON sandboxes (snapshot_id) WHERE snapshot_id IS NOT NULL;
CREATE INDEX sandboxes_by_parent ON sandboxes (parent_id, id) WHERE parent_id IS NOT NULL;
CREATE INDEX sandboxes_by_origin ON sandboxes (origin_id, id) WHERE origin_id IS NOT NULL;

CREATE INDEX sandbox_metadata_by_sandbox ON sandbox_metadata (sandbox_id);

CREATE INDEX idempotency_by_resource ON idempotency (resource);
CREATE INDEX idempotency_by_age ON idempotency (created_at);
