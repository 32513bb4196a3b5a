//! What the gateway asks. Like the API it serves from before control is there, and says so until then.

use async_trait::async_trait;
use nullspace_edge_api::{Admission, Admitted, Edge, Refusal, Stream, Traffic};
use nullspace_types::Code;
use nullspace_types::id::{PreviewGrantId, SandboxId};

use super::App;

#[async_trait]
impl Edge for App {
    async fn admit(&self, request: Admission) -> Result<Admitted, Refusal> {
        Edge::admit(self.control()?, request).await
    }

    async fn connect(&self, sandbox_id: SandboxId, port: u16) -> Result<Stream, Refusal> {
        Edge::connect(self.control()?, sandbox_id, port).await
    }

    fn passed(&self, grant: PreviewGrantId, traffic: Traffic) {
        // Without control nothing was let through.
        if let Ok(control) = self.control() {
            Edge::passed(control, grant, traffic);
        }
    }

    fn failed(&self, grant: PreviewGrantId, code: Code) {
        if let Ok(control) = self.control() {
            Edge::failed(control, grant, code);
        }
    }
}
