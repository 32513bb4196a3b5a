//! SQLite: one file, one writer, a few readers. The file and what SQLite puts beside it are readable by
//! their owner only.
//!
//! WAL with `synchronous=NORMAL`: a crash of the process loses nothing, a crash of the host may lose the
//! last moments but never leaves half a transaction.

use std::io;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nullspace_types::id::{SandboxId, TenantId};
use sqlx::ConnectOptions as _;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};

use crate::{Error, Result};

// The same source is compiled for each engine: it finds that engine's types and what differs in `super`.
#[path = "sql/mod.rs"]
#[allow(clippy::duplicate_mod, reason = "one text of the queries, compiled once per engine")]
mod sql;

type Db = sqlx::Sqlite;
type Transaction = sqlx::Transaction<'static, Db>;

static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("../../migrations/sqlite");

/// How long a writer waits for another process's transaction, such as one of the command line.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a caller waits for its turn.
const TURN_TIMEOUT: Duration = Duration::from_secs(10);
const READERS: u32 = 4;

pub(crate) struct Engine {
    write: sqlx::Pool<Db>,
    read: sqlx::Pool<Db>,
}

impl Engine {
    pub(crate) async fn open(path: &Path) -> Result<Self> {
        if path.as_os_str().is_empty() {
            return Err(Error::invalid("the store's URL must name a file: sqlite://PATH"));
        }
        let prepared = path.to_owned();
        let migrating = tokio::task::spawn_blocking(move || prepare(&prepared))
            .await
            .map_err(|error| Error::Other(Box::new(error)))?
            .map_err(sqlx::Error::Io)?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Normal)
            .foreign_keys(true)
            .busy_timeout(BUSY_TIMEOUT)
            // A burst does not leave its WAL behind for good.
            .pragma("journal_size_limit", "67108864")
            .disable_statement_logging();
        let pool =
            || SqlitePoolOptions::new().acquire_timeout(TURN_TIMEOUT).idle_timeout(None).max_lifetime(None);
        let write = pool().max_connections(1).connect_with(options.clone()).await?;
        MIGRATIONS.run(&write).await?;
        drop(migrating);
        let read = pool().max_connections(READERS).connect_with(options.pragma("query_only", "ON")).await?;
        Ok(Self { write, read })
    }

    fn reader(&self) -> &sqlx::Pool<Db> {
        &self.read
    }

    /// A transaction that has the write lock from the start: it never has to give up half-way.
    async fn begin(&self) -> Result<Transaction> {
        Ok(self.write.begin_with("BEGIN IMMEDIATE").await?)
    }

    async fn close_all(&self) {
        self.read.close().await;
        self.write.close().await;
    }
}

/// With a single writer the order of `seq` is the order of commits anyway.
#[allow(clippy::unused_async, reason = "the other engine waits here")]
async fn lock_events(_transaction: &mut Transaction) -> Result<()> {
    Ok(())
}

/// The same holds for deliveries.
#[allow(clippy::unused_async, reason = "the other engine waits here")]
async fn lock_webhooks(_transaction: &mut Transaction) -> Result<()> {
    Ok(())
}

/// And for whatever hangs on a sandbox,
#[allow(clippy::unused_async, reason = "the other engine waits here")]
async fn lock_sandbox(_transaction: &mut Transaction, _id: SandboxId) -> Result<()> {
    Ok(())
}

/// or on a tenant.
#[allow(clippy::unused_async, reason = "the other engine waits here")]
async fn lock_tenant(_transaction: &mut Transaction, _id: TenantId) -> Result<()> {
    Ok(())
}

/// Makes the file with the right mode before SQLite sees it, or tightens it; SQLite gives its companions
/// the mode of the file. Answers the lock under which migrations run, since SQLite's own would let two
/// processes find the same migration missing.
fn prepare(path: &Path) -> io::Result<std::fs::File> {
    let about =
        |error: io::Error, path: &Path| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    match std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(_) => {}
        // By path, not by an open file: closing any descriptor of the database would drop the locks that
        // this process's SQLite may hold on it.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let mode = std::fs::metadata(path).map_err(|error| about(error, path))?.permissions().mode();
            if mode & 0o077 != 0 {
                tracing::warn!(path = %path.display(), "the database was open to other users; closed it to them");
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode & 0o700))
                    .map_err(|error| about(error, path))?;
            }
        }
        Err(error) => return Err(about(error, path)),
    }
    let mut lock = path.as_os_str().to_owned();
    lock.push(".migrating");
    let lock = PathBuf::from(lock);
    let file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&lock)
        .map_err(|error| about(error, &lock))?;
    file.lock().map_err(|error| about(error, &lock))?;
    Ok(file)
}
