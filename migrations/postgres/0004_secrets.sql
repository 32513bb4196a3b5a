-- What the server keeps for itself and must read back whole: keys that it signs with. Whoever can read this
-- table can sign; the database is readable by the server alone.

CREATE TABLE secrets (
    name  TEXT COLLATE "C" NOT NULL PRIMARY KEY CHECK (name <> ''),
    value BYTEA            NOT NULL CHECK (length(value) = 32)
);
