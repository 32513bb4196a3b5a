//! Secrets of the server's own.

use async_trait::async_trait;

use super::{Engine, bytes, exact, retried};
use crate::Result;
use crate::secret::SecretStore;

impl Engine {
    async fn secret_ensure_once(&self, name: &str, candidate: &[u8; 32]) -> Result<[u8; 32]> {
        let mut transaction = self.begin().await?;
        sqlx::query("INSERT INTO secrets (name, value) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING")
            .bind(exact(name, "the secret's name")?)
            .bind(&candidate[..])
            .execute(&mut *transaction)
            .await?;
        // Whoever came first made it.
        let row = sqlx::query("SELECT value FROM secrets WHERE name = $1")
            .bind(name)
            .fetch_one(&mut *transaction)
            .await?;
        transaction.commit().await?;
        bytes(&row, "value")
    }
}

#[async_trait]
impl SecretStore for Engine {
    async fn secret_ensure(&self, name: &str, candidate: &[u8; 32]) -> Result<[u8; 32]> {
        retried!(self.secret_ensure_once(name, candidate))
    }
}
