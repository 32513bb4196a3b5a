//! What was captured of fake machines.

use std::collections::HashMap;
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::{Read, Write};
use std::sync::{LazyLock, Mutex};

use serde::{Deserialize, Serialize};

use super::FakeAgent;
use crate::Error;

/// Agents as they were, by number.
static CAPTURED: LazyLock<Mutex<HashMap<u64, FakeAgent>>> = LazyLock::new(Mutex::default);

/// Tells this process's numbers from another's.
static PROCESS: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one(std::process::id()));

/// A device state.
#[derive(Serialize, Deserialize)]
struct Devices {
    process: u64,
    number: u64,
    /// As whom the agent was adopted.
    adopted: Option<(String, String)>,
}

/// Writes the device state of an agent's machine.
pub fn save(agent: &FakeAgent, mut to: File) -> Result<(), Error> {
    let agent = agent.copy();
    let adopted = agent.identity();
    let number = {
        let mut captured = CAPTURED.lock().expect("no panic under it");
        let number = captured.len() as u64;
        captured.insert(number, agent);
        number
    };
    let devices = Devices { process: *PROCESS, number, adopted };
    serde_json::to_writer(&to, &devices)
        .map_err(std::io::Error::from)
        .and_then(|()| to.flush())
        .map_err(|source| Error::File { what: "the device state cannot be written".into(), source })
}

/// An agent as it was when its machine's device state was written; none where that does not say.
pub fn restore(mut devices: File) -> Result<Option<FakeAgent>, Error> {
    let mut text = String::new();
    let read = devices.read_to_string(&mut text);
    read.map_err(|source| Error::File { what: "the device state cannot be read".into(), source })?;
    let devices: Devices = serde_json::from_str(&text)
        .map_err(|error| Error::Incompatible(format!("its device state is not a fake machine's: {error}")))?;
    let captured = CAPTURED.lock().expect("no panic under it");
    match captured.get(&devices.number).filter(|_| devices.process == *PROCESS) {
        Some(agent) => Ok(Some(agent.copy())),
        None => Ok(devices.adopted.map(|(sandbox_id, token)| FakeAgent::adopted(sandbox_id, token))),
    }
}
