-- Preview grants, and the addresses on this host that stand for ports of sandboxes. Nothing of a token is
-- stored.

CREATE TABLE preview_grants (
    -- IDs sort by creation.
    id            TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    tenant_id     TEXT COLLATE "C" NOT NULL REFERENCES tenants (id),
    key_id        TEXT COLLATE "C" NOT NULL,
    sandbox_id    TEXT COLLATE "C" NOT NULL REFERENCES sandboxes (id) ON DELETE CASCADE,
    port          BIGINT NOT NULL CHECK (port BETWEEN 1 AND 65535),
    auth_mode     TEXT COLLATE "C" NOT NULL CHECK (auth_mode IN ('direct', 'proxy')),
    -- A list, as JSON.
    token_kinds   TEXT COLLATE "C" NOT NULL,
    issued_at     BIGINT NOT NULL,
    expires_at    BIGINT NOT NULL,
    revoked_at    BIGINT,
    disabled_at   BIGINT,

    -- How it was used. Only ever added to.
    http_requests BIGINT NOT NULL DEFAULT 0 CHECK (http_requests >= 0),
    websockets    BIGINT NOT NULL DEFAULT 0 CHECK (websockets >= 0),
    bytes_in      BIGINT NOT NULL DEFAULT 0 CHECK (bytes_in >= 0),
    bytes_out     BIGINT NOT NULL DEFAULT 0 CHECK (bytes_out >= 0),
    first_used_at BIGINT,
    last_used_at  BIGINT,
    last_error    TEXT COLLATE "C",
    last_error_at BIGINT,
    updated_at    BIGINT NOT NULL,

    CHECK ((last_error IS NULL) = (last_error_at IS NULL))
);

CREATE INDEX preview_grants_by_sandbox ON preview_grants (sandbox_id, id);

CREATE TABLE local_ports (
    local      BIGINT NOT NULL PRIMARY KEY CHECK (local BETWEEN 1 AND 65535),
    sandbox_id TEXT COLLATE "C" NOT NULL REFERENCES sandboxes (id) ON DELETE CASCADE,
    port       BIGINT NOT NULL CHECK (port BETWEEN 1 AND 65535),
    UNIQUE (sandbox_id, port)
);
