//! What can be asked about lifecycle events: pages of the log, and to follow it. Nothing here writes events:
//! each is written in the transaction of its change.

use futures::stream::{self, BoxStream, StreamExt as _, TryStreamExt as _};
use nullspace_domain::event::{Begin, EventSelection, validate_list, validate_subscription};
use nullspace_domain::snapshot::snapshot_not_found;
use nullspace_store::event::{EventCursor, EventFilter, EventOrder};
use nullspace_types::event::{
    LifecycleEvent, LifecycleEventPage, LifecycleEventQuery, LifecycleSubscription,
};
use nullspace_types::id::TenantId;
use nullspace_types::{Error, Result};

use crate::Control;
use crate::feed::Follower;

fn filter(selection: EventSelection) -> EventFilter {
    EventFilter {
        sandbox_id: selection.sandbox_id,
        snapshot_id: selection.snapshot_id,
        source_sandbox_id: selection.source_sandbox_id,
        target_sandbox_id: selection.target_sandbox_id,
        operation: selection.operation,
        status: selection.status,
        metadata: selection.metadata,
        ..EventFilter::default()
    }
}

impl Control {
    /// A page of the log. What is destroyed is still in it; a sandbox or snapshot that never was, or is
    /// another tenant's, is not found.
    pub async fn lifecycle_list(
        &self,
        tenant_id: TenantId,
        query: LifecycleEventQuery,
    ) -> Result<LifecycleEventPage> {
        let spec = validate_list(&query)?;
        let (offset, limit) = (spec.page.offset, spec.page.limit);
        let filter = EventFilter {
            from: spec.from,
            until: spec.until,
            order: if spec.ascending { EventOrder::Ascending } else { EventOrder::Descending },
            offset,
            // One more than asked for tells whether there are more.
            limit: limit + 1,
            ..filter(spec.selection)
        };
        let mut rows = self.shared.store.event_list(tenant_id, &filter).await.map_err(Error::from)?;
        if rows.is_empty() {
            self.known(tenant_id, &filter).await?;
        }
        let has_more = rows.len() > limit as usize;
        rows.truncate(limit as usize);
        let events = rows.into_iter().map(|row| row.event).collect();
        Ok(LifecycleEventPage { events, offset, limit, has_more })
    }

    /// Whether the sandbox and the snapshot that a filter names exist, or ever did.
    async fn known(&self, tenant_id: TenantId, filter: &EventFilter) -> Result<()> {
        let store = &self.shared.store;
        if let Some(id) = filter.sandbox_id
            && self.shared.registry.of_tenant(tenant_id, id).is_err()
        {
            match store.sandbox_get(tenant_id, id).await {
                Err(nullspace_store::Error::NotFound(_)) => {
                    let of_it = EventFilter { sandbox_id: Some(id), limit: 1, ..EventFilter::default() };
                    if store.event_list(tenant_id, &of_it).await?.is_empty() {
                        return Err(Error::sandbox_not_found(id));
                    }
                }
                found => drop(found?),
            }
        }
        if let Some(id) = filter.snapshot_id {
            match store.snapshot_get(tenant_id, id).await {
                Err(nullspace_store::Error::NotFound(_)) => {
                    let of_it = EventFilter { snapshot_id: Some(id), limit: 1, ..EventFilter::default() };
                    if store.event_list(tenant_id, &of_it).await?.is_empty() {
                        return Err(snapshot_not_found(id));
                    }
                }
                found => drop(found?),
            }
        }
        Ok(())
    }

    /// Follows the log: first what is to be told of the past, then what happens, each event once. Ends only
    /// with an error.
    pub async fn lifecycle_subscribe(
        &self,
        tenant_id: TenantId,
        subscription: LifecycleSubscription,
    ) -> Result<BoxStream<'static, Result<LifecycleEvent>>> {
        let spec = validate_subscription(&subscription)?;
        let filter = filter(spec.selection);
        let begin = self.begin(tenant_id, spec.begin, &filter).await?;
        let follower = Follower::new(&self.shared, tenant_id, filter, begin);
        let batches = stream::try_unfold(follower, |mut follower| async move {
            let batch = follower.batch().await?;
            Ok::<_, Error>(Some((stream::iter(batch.into_iter().map(Ok)), follower)))
        });
        Ok(batches.try_flatten().boxed())
    }

    /// The place behind which a subscription begins.
    async fn begin(&self, tenant_id: TenantId, begin: Begin, filter: &EventFilter) -> Result<EventCursor> {
        let store = &self.shared.store;
        match begin {
            Begin::After(id) => store.event_cursor(tenant_id, id).await?.ok_or_else(|| {
                Error::invalid(format!("after_event_id: event {id} does not exist"))
                    .suggest("subscribe without it, and list what happened before")
            }),
            Begin::Newest(0) => Ok(store.event_cursor_latest().await?),
            Begin::Newest(count) => {
                let oldest = EventFilter { offset: count - 1, limit: 1, ..filter.clone() };
                let rows = store.event_list(tenant_id, &oldest).await?;
                Ok(rows.first().map_or(EventCursor::START, |row| EventCursor(row.cursor.0 - 1)))
            }
        }
    }
}
