-- Whoever owns resources, and the keys they prove it with. Times are microseconds since 1970 in UTC.

CREATE TABLE tenants (
    id         TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    name       TEXT             NOT NULL UNIQUE CHECK (name <> ''),
    created_at BIGINT           NOT NULL
);

CREATE TABLE api_keys (
    id          TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    tenant_id   TEXT COLLATE "C" NOT NULL REFERENCES tenants (id),
    label       TEXT             NOT NULL,
    hint        TEXT             NOT NULL,
    -- SHA-256 of the secret; the secret itself is nowhere.
    secret_hash BYTEA            NOT NULL UNIQUE CHECK (length(secret_hash) = 32),
    created_at  BIGINT           NOT NULL,
    revoked_at  BIGINT
);

CREATE INDEX api_keys_by_tenant ON api_keys (tenant_id, id);
