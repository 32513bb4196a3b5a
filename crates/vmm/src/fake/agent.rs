//! (To be written by the guest engineer; `mod.rs` relies on this shape.)
use tokio::io::DuplexStream;
/// An agent in memory.
#[derive(Clone)]
pub struct FakeAgent {}
impl FakeAgent {
    /// With the checkpoint's token.
    pub fn new(_token: String) -> Self {
        Self {}
    }
    /// Serves one link to its end.
    pub async fn serve(self, _stream: DuplexStream) {}
}
