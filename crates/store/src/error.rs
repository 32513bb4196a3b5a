//! What can go wrong with the store, sorted by what the caller can do about it.

use std::io;

use nullspace_types::Code;
use sqlx::migrate::MigrateError;
use sqlx::postgres::PgDatabaseError;
use sqlx::sqlite::SqliteError;

/// Shorthand for results of the store.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Where an error comes from.
pub type Source = Box<dyn std::error::Error + Send + Sync>;

/// An error of the store. Each speaks only of its own level; the cause is its source.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such row, or it is another tenant's.
    #[error("no such {0}")]
    NotFound(&'static str),
    /// There is such a row already.
    #[error("the row exists already")]
    Conflict(#[source] Source),
    /// A value that the schema does not allow; the caller has a bug.
    #[error("the database refused the value")]
    Invalid(#[source] Source),
    /// No space left on the database's disk.
    #[error("the database's disk is full")]
    Full(#[source] Source),
    /// The database does not answer, is busy for too long, or was closed. The same call may work later.
    #[error("the database is unavailable")]
    Unavailable(#[source] Source),
    /// What is stored cannot be read.
    #[error("the database is damaged")]
    Corrupt(#[source] Source),
    /// The database was made by a newer version, or one of its migrations was changed.
    #[error("the database does not fit this version")]
    Incompatible(#[source] Source),
    /// Anything else.
    #[error("the database failed")]
    Other(#[source] Source),
}

/// A transaction that lost to another and was undone: worth doing again at once.
#[derive(Debug, thiserror::Error)]
#[error("the transaction was undone in favour of another")]
pub(crate) struct Contention(#[source] pub(crate) sqlx::Error);

impl Error {
    /// Whether doing the same transaction again may go well at once.
    pub(crate) fn is_contention(&self) -> bool {
        matches!(self, Self::Unavailable(source) if source.is::<Contention>())
    }

    /// A value that the store does not take.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::Invalid(message.into().into())
    }

    /// Something stored that this version cannot read.
    pub(crate) fn corrupt(message: impl Into<String>) -> Self {
        Self::Corrupt(message.into().into())
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        use sqlx::Error as E;
        match &error {
            E::Database(database) => {
                if let Some(postgres) = database.try_downcast_ref::<PgDatabaseError>() {
                    match postgres.code() {
                        "40001" | "40P01" => Self::Unavailable(Box::new(Contention(error))),
                        "53100" => Self::Full(Box::new(error)),
                        "23505" => Self::Conflict(Box::new(error)),
                        "22021" | "23502" | "23503" | "23514" => Self::Invalid(Box::new(error)),
                        // A lock, a statement or the session waited too long; the database only reads.
                        "55P03" | "57014" | "25006" | "25P03" => Self::Unavailable(Box::new(error)),
                        // The connection, the resources, or the operator.
                        code if ["08", "53", "57"].contains(&code.get(..2).unwrap_or_default()) => {
                            Self::Unavailable(Box::new(error))
                        }
                        "XX001" | "XX002" => Self::Corrupt(Box::new(error)),
                        _ => Self::Other(Box::new(error)),
                    }
                } else if let Some(sqlite) = database.try_downcast_ref::<SqliteError>() {
                    use sqlx::error::DatabaseError as _;
                    let code: i32 = sqlite.code().and_then(|code| code.parse().ok()).unwrap_or(0);
                    match (code, code & 0xff) {
                        // BUSY_RECOVERY, BUSY_SNAPSHOT. A plain BUSY has waited for its time already.
                        (261 | 517, _) => Self::Unavailable(Box::new(Contention(error))),
                        (_, 5 | 6) => Self::Unavailable(Box::new(error)),
                        // FULL; IOERR_SHMSIZE, which is how a full disk shows when the WAL's index grows.
                        (_, 13) | (4874, _) => Self::Full(Box::new(error)),
                        (1555 | 2067 | 2579, _) => Self::Conflict(Box::new(error)),
                        // CONSTRAINT, TOOBIG, MISMATCH.
                        (_, 18..=20) => Self::Invalid(Box::new(error)),
                        // READONLY, IOERR, CANTOPEN.
                        (_, 8 | 10 | 14) => Self::Unavailable(Box::new(error)),
                        // CORRUPT, NOTADB.
                        (_, 11 | 26) => Self::Corrupt(Box::new(error)),
                        _ => Self::Other(Box::new(error)),
                    }
                } else {
                    Self::Other(Box::new(error))
                }
            }
            E::Io(cause)
                if matches!(cause.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) =>
            {
                Self::Full(Box::new(error))
            }
            E::Io(_) | E::Tls(_) | E::PoolTimedOut | E::PoolClosed | E::WorkerCrashed => {
                Self::Unavailable(Box::new(error))
            }
            E::ColumnDecode { .. } | E::Decode(_) => Self::Corrupt(Box::new(error)),
            _ => Self::Other(Box::new(error)),
        }
    }
}

impl From<MigrateError> for Error {
    fn from(error: MigrateError) -> Self {
        match error {
            MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => error.into(),
            MigrateError::VersionMissing(_)
            | MigrateError::VersionMismatch(_)
            | MigrateError::VersionTooNew(..)
            | MigrateError::VersionTooOld(..)
            | MigrateError::Dirty(_) => Self::Incompatible(Box::new(error)),
            _ => Self::Other(Box::new(error)),
        }
    }
}

/// An error and its causes in one line, for a log.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// What a caller at the border is told, where control has nothing better to say.
impl From<Error> for nullspace_types::Error {
    fn from(error: Error) -> Self {
        let context = chain(&error);
        match error {
            Error::NotFound(what) => Self::new(Code::NotFound, format!("no such {what}")),
            Error::Full(_) => Self::new(Code::CapacityExceeded, "the server's disk is full"),
            Error::Unavailable(_) => {
                Self::new(Code::Unavailable, "the server's database is unavailable; try again")
            }
            Error::Conflict(_)
            | Error::Invalid(_)
            | Error::Corrupt(_)
            | Error::Incompatible(_)
            | Error::Other(_) => return Self::internal(context),
        }
        .context(context)
    }
}
