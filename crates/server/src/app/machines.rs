//! What the SSH relay asks.

use async_trait::async_trait;
use bytes::Bytes;
use nullspace_edge_api::{Claims, Listening, Machines, PipedProcess, Program, Stream, Terminal};
use nullspace_types::Result;
use nullspace_types::id::SessionId;
use nullspace_types::sandbox::Envs;
use tokio_util::sync::CancellationToken;

use super::App;

#[async_trait]
impl Machines for App {
    async fn enter(&self, claims: &Claims) -> Result<CancellationToken> {
        Machines::enter(self.control()?, claims).await
    }

    async fn process(&self, claims: &Claims, program: Program, envs: Envs) -> Result<PipedProcess> {
        Machines::process(self.control()?, claims, program, envs).await
    }

    async fn signal(&self, claims: &Claims, pid: u32, signal: i32) -> Result<()> {
        Machines::signal(self.control()?, claims, pid, signal).await
    }

    async fn terminal(
        &self,
        claims: &Claims,
        line: Option<String>,
        envs: Envs,
        cols: u32,
        rows: u32,
    ) -> Result<Terminal> {
        Machines::terminal(self.control()?, claims, line, envs, cols, rows).await
    }

    async fn terminal_write(&self, claims: &Claims, session: SessionId, data: Bytes) -> Result<()> {
        Machines::terminal_write(self.control()?, claims, session, data).await
    }

    async fn terminal_resize(&self, claims: &Claims, session: SessionId, cols: u32, rows: u32) -> Result<()> {
        Machines::terminal_resize(self.control()?, claims, session, cols, rows).await
    }

    async fn terminal_end(&self, claims: &Claims, session: SessionId) -> Result<()> {
        Machines::terminal_end(self.control()?, claims, session).await
    }

    async fn connect(&self, claims: &Claims, host: String, port: u16) -> Result<Stream> {
        Machines::connect(self.control()?, claims, host, port).await
    }

    async fn connect_socket(&self, claims: &Claims, path: String) -> Result<Stream> {
        Machines::connect_socket(self.control()?, claims, path).await
    }

    async fn listen(&self, claims: &Claims, host: String, port: u16) -> Result<Listening> {
        Machines::listen(self.control()?, claims, host, port).await
    }
}
