-- Whom an event is told, and what else it is about. One sandbox may be an event's own, its source and its
-- target; each is an index of its own, so that a page of a sandbox's events is read in the log's order.

ALTER TABLE events ADD COLUMN audience TEXT NOT NULL DEFAULT 'customer' CHECK (audience IN ('customer', 'internal'));
ALTER TABLE events ADD COLUMN snapshot_id TEXT;
ALTER TABLE events ADD COLUMN source_sandbox_id TEXT;
ALTER TABLE events ADD COLUMN target_sandbox_id TEXT;

CREATE INDEX events_by_snapshot ON events (tenant_id, snapshot_id, seq) WHERE snapshot_id IS NOT NULL;
CREATE INDEX events_by_source ON events (tenant_id, source_sandbox_id, seq) WHERE source_sandbox_id IS NOT NULL;
CREATE INDEX events_by_target ON events (tenant_id, target_sandbox_id, seq) WHERE target_sandbox_id IS NOT NULL;
