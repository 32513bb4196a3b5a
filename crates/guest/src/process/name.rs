//! Names that callers give to starts, so that a start whose answer was lost can be asked for again.
//!
//! This owns whose turn it is: of several starts with one name only one is under way, and the others find
//! what came of it. What was started under which name is known to its own table.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use tokio::sync::OwnedMutexGuard;
use tonic::Status;

/// Bytes of a name.
const LONGEST: usize = 64;

/// See the module.
#[derive(Default)]
pub struct Names(Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>);

/// The right to start under a name, until it is dropped.
pub struct Turn {
    _turn: OwnedMutexGuard<()>,
}

impl Names {
    /// Waits until no other start has this name. `field` is what the request calls it.
    pub async fn turn(&self, field: &str, name: &str) -> Result<Turn, Status> {
        if !(1..=LONGEST).contains(&name.len()) {
            return Err(Status::invalid_argument(format!(
                "{field} has {} bytes; it must have 1 to {LONGEST}",
                name.len()
            )));
        }
        let turn = {
            let mut names = self.0.lock().expect("no holder panics");
            // Only those are kept that somebody has or waits for.
            names.retain(|_, turn| Arc::strong_count(turn) > 1);
            Arc::clone(names.entry(name.to_owned()).or_default())
        };
        Ok(Turn { _turn: turn.lock_owned().await })
    }
}
