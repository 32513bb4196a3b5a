-- Snapshots: checkpoints that users can name. They outlive their sandbox, so they refer to none. One that is
-- not ready is being captured, or was when the server died.

CREATE TABLE snapshots (
    -- IDs sort by creation.
    id              TEXT NOT NULL PRIMARY KEY,
    tenant_id       TEXT NOT NULL REFERENCES tenants (id),
    sandbox_id      TEXT NOT NULL,
    incarnation     TEXT NOT NULL,
    kind            TEXT NOT NULL CHECK (kind IN ('manual', 'hibernation')),
    ready           INTEGER NOT NULL CHECK (ready IN (0, 1)),
    size_bytes      INTEGER NOT NULL CHECK (size_bytes >= 0),
    created_at      INTEGER NOT NULL,
    metadata        TEXT NOT NULL,

    -- What a sandbox that begins from it has, too.
    template        TEXT NOT NULL,
    vcpus           INTEGER NOT NULL CHECK (vcpus > 0),
    memory_mb       INTEGER NOT NULL CHECK (memory_mb > 0),
    disk_mb         INTEGER NOT NULL CHECK (disk_mb > 0),
    envs            TEXT NOT NULL,
    cwd             TEXT,
    internet_access INTEGER NOT NULL CHECK (internet_access IN (0, 1)),

    CHECK (kind = 'manual' OR ready)
) STRICT;

CREATE INDEX snapshots_by_tenant ON snapshots (tenant_id, id);
CREATE INDEX snapshots_by_sandbox ON snapshots (tenant_id, sandbox_id, id);
-- A sandbox is hibernated to one at a time.
CREATE UNIQUE INDEX snapshots_of_hibernation ON snapshots (sandbox_id) WHERE kind = 'hibernation';

-- As for sandboxes: the SHA-256 of each pair's canonical JSON.
CREATE TABLE snapshot_metadata (
    tenant_id   TEXT NOT NULL,
    pair        BLOB NOT NULL CHECK (length(pair) = 32),
    snapshot_id TEXT NOT NULL REFERENCES snapshots (id) ON DELETE CASCADE,
    PRIMARY KEY (tenant_id, pair, snapshot_id)
) STRICT, WITHOUT ROWID;

CREATE INDEX snapshot_metadata_by_snapshot ON snapshot_metadata (snapshot_id);
