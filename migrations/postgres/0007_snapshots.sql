-- Snapshots: checkpoints that users can name. They outlive their sandbox, so they refer to none. One that is
-- not ready is being captured, or was when the server died.

CREATE TABLE snapshots (
    -- IDs sort by creation.
    id              TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    tenant_id       TEXT COLLATE "C" NOT NULL REFERENCES tenants (id),
    sandbox_id      TEXT COLLATE "C" NOT NULL,
    incarnation     TEXT COLLATE "C" NOT NULL,
    kind            TEXT COLLATE "C" NOT NULL CHECK (kind IN ('manual', 'hibernation')),
    ready           BOOLEAN NOT NULL,
    size_bytes      BIGINT NOT NULL CHECK (size_bytes >= 0),
    created_at      BIGINT NOT NULL,
    metadata        TEXT COLLATE "C" NOT NULL,

    -- What a sandbox that begins from it has, too.
    template        TEXT COLLATE "C" NOT NULL,
    vcpus           BIGINT NOT NULL CHECK (vcpus > 0),
    memory_mb       BIGINT NOT NULL CHECK (memory_mb > 0),
    disk_mb         BIGINT NOT NULL CHECK (disk_mb > 0),
    envs            TEXT COLLATE "C" NOT NULL,
    cwd             TEXT COLLATE "C",
    internet_access BOOLEAN NOT NULL,

    CHECK (kind = 'manual' OR ready)
);

CREATE INDEX snapshots_by_tenant ON snapshots (tenant_id, id);
CREATE INDEX snapshots_by_sandbox ON snapshots (tenant_id, sandbox_id, id);
-- A sandbox is hibernated to one at a time.
CREATE UNIQUE INDEX snapshots_of_hibernation ON snapshots (sandbox_id) WHERE kind = 'hibernation';

-- As for sandboxes: the SHA-256 of each pair's canonical JSON.
CREATE TABLE snapshot_metadata (
    tenant_id   TEXT COLLATE "C" NOT NULL,
    pair        BYTEA NOT NULL CHECK (length(pair) = 32),
    snapshot_id TEXT COLLATE "C" NOT NULL REFERENCES snapshots (id) ON DELETE CASCADE,
    PRIMARY KEY (tenant_id, pair, snapshot_id)
);

CREATE INDEX snapshot_metadata_by_snapshot ON snapshot_metadata (snapshot_id);
