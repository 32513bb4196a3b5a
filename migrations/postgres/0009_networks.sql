-- What sandboxes may reach and who may reach them, and what they tried besides. Rows from before have the
-- default settings: an empty object.

ALTER TABLE sandboxes ADD COLUMN network TEXT COLLATE "C" NOT NULL DEFAULT '{}';
ALTER TABLE snapshots ADD COLUMN network TEXT COLLATE "C" NOT NULL DEFAULT '{}';

-- Equal denials of a sandbox are one row.
CREATE TABLE denials (
    tenant_id  TEXT COLLATE "C" NOT NULL REFERENCES tenants (id),
    sandbox_id TEXT COLLATE "C" NOT NULL REFERENCES sandboxes (id) ON DELETE CASCADE,
    -- SHA-256 of what was denied, as JSON: names may be longer than an index takes.
    digest     BYTEA NOT NULL CHECK (length(digest) = 32),
    target     TEXT COLLATE "C" NOT NULL,
    count      BIGINT NOT NULL CHECK (count > 0),
    first_at   BIGINT NOT NULL,
    last_at    BIGINT NOT NULL,
    PRIMARY KEY (sandbox_id, digest)
);

CREATE INDEX denials_latest ON denials (sandbox_id, last_at);
