-- Sandboxes that are hibernated, come from others, and wake by themselves; and keys that name whatever they
-- made.

ALTER TABLE sandboxes
    ADD COLUMN auto_resume BOOLEAN NOT NULL DEFAULT FALSE,
    -- No reference: while it is being hibernated there is no such snapshot yet, and later it may be deleted.
    ADD COLUMN snapshot_id TEXT COLLATE "C",
    ADD COLUMN parent_id   TEXT COLLATE "C",
    ADD COLUMN origin_id   TEXT COLLATE "C",
    DROP CONSTRAINT sandboxes_desired_check,
    DROP CONSTRAINT sandboxes_observed_state_check,
    ADD CHECK (desired IN ('running', 'paused', 'destroyed')),
    ADD CHECK (observed_state IN ('none', 'running', 'paused', 'lost')),
    ADD CHECK (desired <> 'paused' OR (snapshot_id IS NOT NULL AND observed_state <> 'none')),
    ADD CHECK (observed_state <> 'paused' OR (snapshot_id IS NOT NULL AND timeout_at IS NULL));

DROP INDEX sandboxes_wanted;
DROP INDEX sandboxes_unfinished_by_tenant;
-- Lists leave history out unless asked for, and history grows without end.
CREATE INDEX sandboxes_wanted ON sandboxes (tenant_id, id) WHERE desired <> 'destroyed';
CREATE INDEX sandboxes_unfinished_by_tenant ON sandboxes (tenant_id, desired, observed_state)
    WHERE destroyed_at IS NULL;
CREATE INDEX sandboxes_by_snapshot ON sandboxes (snapshot_id) WHERE snapshot_id IS NOT NULL;
CREATE INDEX sandboxes_by_parent ON sandboxes (parent_id, id) WHERE parent_id IS NOT NULL;
CREATE INDEX sandboxes_by_origin ON sandboxes (origin_id, id) WHERE origin_id IS NOT NULL;

-- What the request made: the ID of a sandbox or a snapshot, or `fork/` and the children's origin. Whoever
-- removes that removes the key.
ALTER TABLE idempotency DROP CONSTRAINT idempotency_sandbox_id_fkey;
ALTER TABLE idempotency RENAME COLUMN sandbox_id TO resource;
ALTER INDEX idempotency_by_sandbox RENAME TO idempotency_by_resource;
