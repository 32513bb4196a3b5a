//! Sandboxes: create, look, keep alive, destroy. What is made of running ones, snapshots and forks, is in
//! `snapshot`.

use std::time::Duration;

use nullspace_types::sandbox::{
    Sandbox, SandboxCreate, SandboxDestroyed, SandboxGetQuery, SandboxList, SandboxListQuery, SandboxMetrics,
    SandboxPage, SandboxStatus, SandboxTimeout, SandboxTimeoutSet,
};
use reqwest::Method;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::transport::{Call, Client, segment};

/// A create answers when the machine runs; a shape without a checkpoint boots once.
pub(crate) const CREATE_TIMEOUT: Duration = Duration::from_secs(120);
/// A server that never ends its list is not followed for ever.
const PAGES_MAX: usize = 10_000;

impl Client {
    /// Creates a sandbox and answers when it runs. One idempotency key (one of its own when `None`)
    /// makes at most one sandbox: while the outcome of an attempt is unknown it is asked for again
    /// with the same key, for as long as the policy allows.
    ///
    /// # Errors
    /// See [`crate::Error`]. After a transport error the sandbox may exist; calling again with the
    /// same key finds out.
    pub async fn sandbox_create(
        &self,
        request: &SandboxCreate,
        idempotency_key: Option<&str>,
    ) -> Result<Sandbox> {
        let call = Call::new(Method::POST, "/v1/sandboxes".to_owned()).body(request)?;
        self.make(call.at_least(CREATE_TIMEOUT), idempotency_key).await
    }

    /// One page of sandboxes; with `fields` each is an object of the named fields only.
    ///
    /// # Errors
    /// See [`crate::Error`].
    pub async fn sandbox_list_page(&self, query: &SandboxListQuery) -> Result<SandboxPage> {
        let call = Call::new(Method::GET, "/v1/sandboxes".to_owned()).query(query)?;
        Ok(match self.json(call).await? {
            SandboxList::All(items) => SandboxPage { items, has_next: false, next_token: None },
            SandboxList::Page(page) => page,
        })
    }

    /// Every sandbox that the query selects, from all pages; with `fields`, objects of these alone.
    ///
    /// # Errors
    /// See [`crate::Error`].
    pub async fn sandbox_list_values(&self, query: &SandboxListQuery) -> Result<Vec<Value>> {
        let mut query = query.clone();
        let mut items = Vec::new();
        for _ in 0..PAGES_MAX {
            let page = self.sandbox_list_page(&query).await?;
            items.extend(page.items);
            match page.next_token.filter(|token| page.has_next && !token.is_empty()) {
                None => return Ok(items),
                token if token == query.next_token => {
                    return Err(Error::invalid_response("the server answered the same page twice"));
                }
                token => query.next_token = token,
            }
        }
        Err(Error::invalid_response(format!("the list of sandboxes does not end after {PAGES_MAX} pages")))
    }

    /// Every sandbox that the query selects, from all pages. `fields` is not sent.
    ///
    /// # Errors
    /// See [`crate::Error`].
    pub async fn sandbox_list(&self, query: &SandboxListQuery) -> Result<Vec<Sandbox>> {
        let query = SandboxListQuery { fields: None, ..query.clone() };
        let values = self.sandbox_list_values(&query).await?;
        values
            .into_iter()
            .map(|value| {
                serde_json::from_value(value)
                    .map_err(|error| Error::invalid_response(format!("a sandbox in the list: {error}")))
            })
            .collect()
    }

    /// One sandbox. Never wakes a paused one.
    ///
    /// # Errors
    /// See [`crate::Error`].
    pub async fn sandbox_get(&self, id: &str) -> Result<Sandbox> {
        self.json(Call::new(Method::GET, path(id, "")?)).await
    }

    /// The named fields of one sandbox, separated by commas.
    ///
    /// # Errors
    /// See [`crate::Error`].
    pub async fn sandbox_get_fields(&self, id: &str, fields: &str) -> Result<Value> {
        let query = SandboxGetQuery { fields: Some(fields.to_owned()) };
        self.json(Call::new(Method::GET, path(id, "")?).query(&query)?).await
    }

    /// Sees to it that a sandbox can be used: one that is paused is resumed.
    ///
    /// # Errors
    /// As [`Client::sandbox_resume`] has; see [`crate::Error`].
    pub async fn sandbox_connect(&self, id: &str) -> Result<()> {
        let sandbox = self.sandbox_get_fields(id, "status").await?;
        if sandbox.get("status").and_then(Value::as_str) == Some(SandboxStatus::Paused.as_str()) {
            self.sandbox_resume(id).await?;
        }
        Ok(())
    }

    /// Destroys a sandbox, from whatever state it is in.
    ///
    /// # Errors
    /// See [`crate::Error`].
    pub async fn sandbox_destroy(&self, id: &str) -> Result<SandboxDestroyed> {
        self.json(Call::new(Method::DELETE, path(id, "")?)).await
    }

    /// Gives a sandbox a new window of time, counted from now.
    ///
    /// # Errors
    /// See [`crate::Error`].
    pub async fn sandbox_timeout_set(&self, id: &str, request: &SandboxTimeoutSet) -> Result<SandboxTimeout> {
        self.json(Call::new(Method::POST, path(id, "/timeout")?).body(request)?).await
    }

    /// What a sandbox uses: samples, the newest last.
    ///
    /// # Errors
    /// See [`crate::Error`].
    pub async fn sandbox_metrics(&self, id: &str) -> Result<Vec<SandboxMetrics>> {
        self.json(Call::new(Method::GET, path(id, "/metrics")?)).await
    }
}

/// The path of a sandbox, and of what is under it.
pub(crate) fn path(id: &str, below: &str) -> Result<String> {
    Ok(format!("/v1/sandboxes/{}{below}", segment("sandbox ID", id)?))
}
