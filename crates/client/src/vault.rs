//! Stored secrets.

use nullspace_types::vault::{StoredSecret, StoredSecretCreate, StoredSecretList};
use reqwest::Method;

use crate::error::Result;
use crate::transport::{Call, Client, segment};

const SECRETS: &str = "/v1/secrets";

impl Client {
    /// Stores a secret. Its value is never told again.
    ///
    /// # Errors
    /// `conflict` if there is one of that name; see [`crate::Error`].
    pub async fn secret_create(&self, request: &StoredSecretCreate) -> Result<StoredSecret> {
        self.json(Call::new(Method::POST, SECRETS.to_owned()).body(request)?).await
    }

    /// All stored secrets by name, without their values.
    ///
    /// # Errors
    /// See [`crate::Error`].
    pub async fn secret_list(&self) -> Result<StoredSecretList> {
        self.json(Call::new(Method::GET, SECRETS.to_owned())).await
    }

    /// Removes a stored secret. Sandboxes that use it can do so no more.
    ///
    /// # Errors
    /// `secret_not_found`; see [`crate::Error`].
    pub async fn secret_delete(&self, name: &str) -> Result<()> {
        let path = format!("{SECRETS}/{}", segment("secret's name", name)?);
        self.empty(Call::new(Method::DELETE, path)).await
    }
}
