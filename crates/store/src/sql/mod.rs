//! The queries, written once. Both engines take `$1` parameters, `RETURNING`, `ON CONFLICT` and partial
//! indexes alike, and all columns are 64-bit integers, texts, bytes and booleans; so this directory is
//! compiled once per engine as a child of its module, whose `Db`, `Engine`, `Transaction` and locks
//! (`lock_events` and the like) are all that differs.

mod denial;
mod event;
mod idempotency;
mod key;
mod local_port;
mod metadata;
mod preview;
mod sandbox;
mod sandbox_insert;
mod sandbox_list;
mod sandbox_pause;
mod sandbox_row;
mod secret;
mod snapshot;
mod vault;
mod webhook;
mod webhook_delivery;
mod webhook_fan_out;

use std::fmt::Display;
use std::str::FromStr;

use async_trait::async_trait;
use jiff::Timestamp;
use sqlx::Row as _;

use super::{Db, Engine, Transaction, lock_events, lock_sandbox, lock_tenant, lock_webhooks};
use crate::{Error, Result, Store};

type Row = <Db as sqlx::Database>::Row;

/// How often a transaction is tried that loses to others.
const ATTEMPTS: u32 = 8;

/// Does a whole transaction, and again if it was undone in favour of another.
macro_rules! retried {
    ($transaction:expr) => {{
        let mut attempt = 1;
        loop {
            match $transaction.await {
                Err(error) if error.is_contention() && attempt < super::ATTEMPTS => attempt += 1,
                result => break result,
            }
        }
    }};
}
use retried;

#[async_trait]
impl Store for Engine {
    async fn ping(&self) -> Result<()> {
        sqlx::query("SELECT 1").execute(self.reader()).await?;
        Ok(())
    }

    async fn close(&self) {
        self.close_all().await;
    }
}

/// A text column as what it stands for.
fn parsed<T: FromStr<Err: Display>>(row: &Row, column: &'static str) -> Result<T> {
    let text: String = row.try_get(column)?;
    text.parse().map_err(|error| Error::corrupt(format!("column {column}: {error}")))
}

/// The same for a column that may be null.
fn parsed_option<T: FromStr<Err: Display>>(row: &Row, column: &'static str) -> Result<Option<T>> {
    let text: Option<String> = row.try_get(column)?;
    text.map(|text| text.parse().map_err(|error| Error::corrupt(format!("column {column}: {error}"))))
        .transpose()
}

/// A text column that holds one of a few words.
fn word<T: Copy>(row: &Row, column: &'static str, known: &[(&str, T)]) -> Result<T> {
    let text: String = row.try_get(column)?;
    known
        .iter()
        .find(|(word, _)| *word == text)
        .map(|(_, value)| *value)
        .ok_or_else(|| Error::corrupt(format!("column {column}: unknown word {text:?}")))
}

fn json<T: serde::de::DeserializeOwned>(row: &Row, column: &'static str) -> Result<T> {
    let text: String = row.try_get(column)?;
    serde_json::from_str(&text).map_err(|error| Error::corrupt(format!("column {column}: {error}")))
}

/// A column that holds exactly 32 bytes.
fn bytes(row: &Row, column: &'static str) -> Result<[u8; 32]> {
    let value: Vec<u8> = row.try_get(column)?;
    value.try_into().map_err(|_| Error::corrupt(format!("column {column}: not 32 bytes")))
}

fn time(row: &Row, column: &'static str) -> Result<Timestamp> {
    from_micros(row.try_get(column)?)
}

fn time_option(row: &Row, column: &'static str) -> Result<Option<Timestamp>> {
    row.try_get::<Option<i64>, _>(column)?.map(from_micros).transpose()
}

fn from_micros(micros: i64) -> Result<Timestamp> {
    Timestamp::from_microsecond(micros).map_err(|error| Error::corrupt(error.to_string()))
}

fn number<T: TryFrom<i64, Error: Display>>(row: &Row, column: &'static str) -> Result<T> {
    let value: i64 = row.try_get(column)?;
    value.try_into().map_err(|error| Error::corrupt(format!("column {column}: {error}")))
}

fn number_option<T: TryFrom<i64, Error: Display>>(row: &Row, column: &'static str) -> Result<Option<T>> {
    let value: Option<i64> = row.try_get(column)?;
    value
        .map(|value| value.try_into().map_err(|error| Error::corrupt(format!("column {column}: {error}"))))
        .transpose()
}

/// An unsigned number as the database has it.
fn signed(value: u64, name: &str) -> Result<i64> {
    i64::try_from(value).map_err(|_| Error::invalid(format!("{name} is larger than the database takes")))
}

/// A text that means something to programs: PostgreSQL takes no NUL in it, so neither engine does.
fn exact<'a>(text: &'a str, name: &str) -> Result<&'a str> {
    if text.contains('\0') {
        return Err(Error::invalid(format!("{name} must not contain a NUL character")));
    }
    Ok(text)
}

/// A text for people: a NUL in it is replaced.
fn prose(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

fn to_json(value: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|error| Error::Invalid(Box::new(error)))
}
