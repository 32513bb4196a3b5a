//! `nullspace key`: works on the store itself, whether or not a server runs.

use std::fmt;
use std::sync::Arc;

use anyhow::Context as _;
use nullspace_auth::keys;
use nullspace_store::Store;
use nullspace_types::key::Key;
use serde::Serialize;

use crate::args::{KeyAction, KeyArgs, KeyStoreArgs};
use crate::config::Config;
use crate::data_dir::store_url;

/// What a key command answers: as JSON, or printed for people.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum KeyAnswer {
    /// A new key, with its secret.
    Created {
        /// What is listed of it.
        #[serde(flatten)]
        key: Key,
        /// The secret: shown now and never again.
        secret: String,
    },
    /// Every key.
    List(Vec<Key>),
    /// The key that was revoked.
    Revoked(Key),
}

impl fmt::Display for KeyAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Created { key, secret } => {
                writeln!(f, "{secret}")?;
                write!(
                    f,
                    "key {} of tenant {}; this is the only time its secret is shown",
                    key.id, key.tenant
                )
            }
            Self::List(keys) if keys.is_empty() => write!(f, "no keys"),
            Self::List(keys) => {
                let width = keys.iter().map(|key| key.tenant.len()).max().unwrap_or(0).max("TENANT".len());
                write!(
                    f,
                    "{:<36}  {:<width$}  {:<14}  {:<20}  {:<7}  LABEL",
                    "ID", "TENANT", "KEY", "CREATED", "STATE"
                )?;
                for key in keys {
                    let state = if key.revoked_at.is_some() { "revoked" } else { "active" };
                    let created = key.created_at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
                    write!(
                        f,
                        "\n{:<36}  {:<width$}  {:<14}  {created:<20}  {state:<7}  {}",
                        key.id.to_string(),
                        key.tenant,
                        key.hint,
                        key.label
                    )?;
                }
                Ok(())
            }
            Self::Revoked(key) => write!(f, "key {} of tenant {} is revoked", key.id, key.tenant),
        }
    }
}

async fn open(args: &KeyStoreArgs) -> anyhow::Result<Arc<dyn Store>> {
    let config = Config::load(args.config.as_deref())?;
    if config.store.url.is_none() {
        // A mistyped directory must not become a new, empty database.
        anyhow::ensure!(
            args.data_dir.join("state.db").exists(),
            "{} is not the data directory of a server; start one there first, or name another with --data-dir",
            args.data_dir.display()
        );
    }
    let url = store_url(&args.data_dir, config.store.url.as_deref());
    nullspace_store::open(&url).await.context("the store could not be opened")
}

/// Does what the arguments say. Errors of the border keep their type, for the exit status.
pub async fn key(args: KeyArgs) -> anyhow::Result<KeyAnswer> {
    match args.action {
        KeyAction::Create { store, tenant, label } => {
            let store = open(&store).await?;
            let made = keys::create(&*store, &tenant, &label).await;
            store.close().await;
            let made = made?;
            Ok(KeyAnswer::Created { key: made.key, secret: made.secret.expose().to_owned() })
        }
        KeyAction::List { store } => {
            let store = open(&store).await?;
            let keys = keys::list(&*store, None).await;
            store.close().await;
            Ok(KeyAnswer::List(keys?))
        }
        KeyAction::Revoke { store, id } => {
            let id =
                id.parse().map_err(|error| nullspace_types::Error::invalid(format!("{id:?}: {error}")))?;
            let store = open(&store).await?;
            let revoked = keys::revoke(&*store, id).await;
            store.close().await;
            Ok(KeyAnswer::Revoked(revoked?))
        }
    }
}
