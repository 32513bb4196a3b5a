-- Preview grants, and the addresses on this host that stand for ports of sandboxes. Nothing of a token is
-- stored.

CREATE TABLE preview_grants (
    -- IDs sort by creation.
    id            TEXT    NOT NULL PRIMARY KEY,
    tenant_id     TEXT    NOT NULL REFERENCES tenants (id),
    key_id        TEXT    NOT NULL,
    sandbox_id    TEXT    NOT NULL REFERENCES sandboxes (id) ON DELETE CASCADE,
    port          INTEGER NOT NULL CHECK (port BETWEEN 1 AND 65535),
    auth_mode     TEXT    NOT NULL CHECK (auth_mode IN ('direct', 'proxy')),
    -- A list, as JSON.
    token_kinds   TEXT    NOT NULL,
    issued_at     INTEGER NOT NULL,
    expires_at    INTEGER NOT NULL,
    revoked_at    INTEGER,
    disabled_at   INTEGER,

    -- How it was used. Only ever added to.
    http_requests INTEGER NOT NULL DEFAULT 0 CHECK (http_requests >= 0),
    websockets    INTEGER NOT NULL DEFAULT 0 CHECK (websockets >= 0),
    bytes_in      INTEGER NOT NULL DEFAULT 0 CHECK (bytes_in >= 0),
    bytes_out     INTEGER NOT NULL DEFAULT 0 CHECK (bytes_out >= 0),
    first_used_at INTEGER,
    last_used_at  INTEGER,
    last_error    TEXT,
    last_error_at INTEGER,
    updated_at    INTEGER NOT NULL,

    CHECK ((last_error IS NULL) = (last_error_at IS NULL))
) STRICT;

CREATE INDEX preview_grants_by_sandbox ON preview_grants (sandbox_id, id);

CREATE TABLE local_ports (
    local      INTEGER NOT NULL PRIMARY KEY CHECK (local BETWEEN 1 AND 65535),
    sandbox_id TEXT    NOT NULL REFERENCES sandboxes (id) ON DELETE CASCADE,
    port       INTEGER NOT NULL CHECK (port BETWEEN 1 AND 65535),
    UNIQUE (sandbox_id, port)
) STRICT;
