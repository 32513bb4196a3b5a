//! The pairs that sandboxes and snapshots are found by.

use nullspace_types::id::TenantId;
use serde_json::{Map, Value};
use sqlx::QueryBuilder;

use super::{Db, Transaction};
use crate::Result;
use crate::canonical::pair_digest;

/// Pairs per statement: well below the number of parameters that either engine takes.
const PAIRS: usize = 1000;

/// Writes the pairs of a new row. `insert` is the statement up to its values: tenant, pair, ID.
pub(super) async fn insert(
    transaction: &mut Transaction,
    insert: &'static str,
    tenant: TenantId,
    id: &str,
    metadata: &Map<String, Value>,
) -> Result<()> {
    let pairs: Vec<[u8; 32]> = metadata.iter().map(|(name, value)| pair_digest(name, value)).collect();
    for pairs in pairs.chunks(PAIRS) {
        let mut query = QueryBuilder::<Db>::new(insert);
        query.push_values(pairs, |mut tuple, pair| {
            tuple.push_bind(tenant.to_string()).push_bind(pair.to_vec()).push_bind(id.to_owned());
        });
        query.build().execute(&mut **transaction).await?;
    }
    Ok(())
}
