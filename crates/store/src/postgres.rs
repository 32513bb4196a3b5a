//! PostgreSQL, for many hosts on one store. READ COMMITTED is enough: every change is a compare-and-set on
//! one row, and what must be unique is a constraint.

use std::str::FromStr as _;
use std::time::Duration;

use nullspace_types::id::{SandboxId, TenantId};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions as _, Executor as _};

use crate::Result;

// The same source is compiled for each engine: it finds that engine's types and what differs in `super`.
#[path = "sql/mod.rs"]
#[allow(clippy::duplicate_mod, reason = "one text of the queries, compiled once per engine")]
mod sql;

type Db = sqlx::Postgres;
type Transaction = sqlx::Transaction<'static, Db>;

static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("../../migrations/postgres");

/// How long a caller waits for its turn.
const TURN_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECTIONS: u32 = 16;

/// The advisory lock of whoever writes events: "nullspac" in ASCII, so that it meets no one else's.
const EVENTS_LOCK: i64 = 0x6e75_6c6c_7370_6163;
/// The same of whoever writes webhooks or deliveries.
const WEBHOOKS_LOCK: i64 = EVENTS_LOCK + 1;

/// Nothing that the store does takes long; what does is stuck. `SET` rather than a start-up option,
/// because poolers refuse those.
const SESSION: &str = "SET statement_timeout = '30s'; SET lock_timeout = '10s'; \
                       SET idle_in_transaction_session_timeout = '30s'";

pub(crate) struct Engine {
    pool: sqlx::Pool<Db>,
}

impl Engine {
    pub(crate) async fn open(url: &str) -> Result<Self> {
        let options =
            PgConnectOptions::from_str(url)?.application_name("nullspace").disable_statement_logging();
        let pool = PgPoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(TURN_TIMEOUT)
            .after_connect(|connection, _| {
                Box::pin(async move {
                    connection.execute(SESSION).await?;
                    Ok(())
                })
            })
            .connect_with(options)
            .await?;
        MIGRATIONS.run(&pool).await?;
        Ok(Self { pool })
    }

    fn reader(&self) -> &sqlx::Pool<Db> {
        &self.pool
    }

    async fn begin(&self) -> Result<Transaction> {
        Ok(self.pool.begin().await?)
    }

    async fn close_all(&self) {
        self.pool.close().await;
    }
}

/// Until the end of the transaction nobody else draws from the sequence of events. Without this a
/// transaction that drew earlier could commit later, behind the back of whoever reads by cursor. Taken after
/// every row lock of the transaction, so that it takes part in no deadlock.
async fn lock_events(transaction: &mut Transaction) -> Result<()> {
    sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(EVENTS_LOCK).execute(&mut **transaction).await?;
    Ok(())
}

/// Until the end of the transaction nobody else writes webhooks or deliveries: whose turn it is among those
/// of a sandbox follows from many rows. Taken before any row lock, so that it takes part in no deadlock.
async fn lock_webhooks(transaction: &mut Transaction) -> Result<()> {
    sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(WEBHOOKS_LOCK).execute(&mut **transaction).await?;
    Ok(())
}

/// Until the end of the transaction nobody else changes the row of this sandbox, nor what is counted for it:
/// rows that refer to it can be written all the same.
async fn lock_sandbox(transaction: &mut Transaction, id: SandboxId) -> Result<()> {
    sqlx::query("SELECT id FROM sandboxes WHERE id = $1 FOR NO KEY UPDATE")
        .bind(id.to_string())
        .execute(&mut **transaction)
        .await?;
    Ok(())
}

/// The same of a tenant.
async fn lock_tenant(transaction: &mut Transaction, id: TenantId) -> Result<()> {
    sqlx::query("SELECT id FROM tenants WHERE id = $1 FOR NO KEY UPDATE")
        .bind(id.to_string())
        .execute(&mut **transaction)
        .await?;
    Ok(())
}
