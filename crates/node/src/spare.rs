//! Spare machines: restored, warmed and standing still, waiting for a create of the size that was
//! asked for last. One keeper task makes and ends them, only while no create is being worked on:
//! spares are there to make creates quick, never to slow one down.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use nullspace_node_api::Shape;
use nullspace_types::Error;
use tokio::sync::{Notify, watch};

use crate::Node;
use crate::assemble::{Assembled, Source, assemble};
use crate::capacity::Room;
use crate::layer::Layers;
use crate::template::vmm_error;
use crate::warm;

struct Spare {
    shape: Shape,
    assembled: Assembled,
    /// Held, so that spares count as machines.
    _room: Room,
}

/// The spares, and what the keeper has to know.
pub struct Spares {
    directory: PathBuf,
    target: usize,
    next: AtomicU64,
    ready: Mutex<Vec<Spare>>,
    wanted: Mutex<Option<Shape>>,
    changed: Notify,
    busy: watch::Sender<usize>,
}

/// While one lives, a create is being worked on, and neither slots nor spares are made ahead.
pub struct Busy(Arc<Node>);

impl Busy {
    /// Begins.
    pub fn begin(node: Arc<Node>) -> Self {
        node.spares.busy.send_modify(|count| *count += 1);
        node.slots.set_busy(true);
        Self(node)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let spares = &self.0.spares;
        spares.busy.send_modify(|count| {
            *count -= 1;
            self.0.slots.set_busy(*count > 0);
        });
        spares.changed.notify_one();
    }
}

impl Spares {
    /// None yet.
    pub fn new(directory: PathBuf, target: usize) -> Self {
        Self {
            directory,
            target,
            next: AtomicU64::new(0),
            ready: Mutex::default(),
            wanted: Mutex::default(),
            changed: Notify::new(),
            busy: watch::channel(0).0,
        }
    }

    /// A spare of this shape, if there is one; and remembers what was asked for.
    pub fn take(&self, shape: Shape) -> Option<Assembled> {
        *self.wanted.lock().expect("no panic under it") = Some(shape);
        let mut ready = self.ready.lock().expect("no panic under it");
        let found = ready.iter().position(|spare| spare.shape == shape)?;
        Some(ready.swap_remove(found).assembled)
    }

    /// Says what to keep spares of, before anybody has asked.
    pub fn want(&self, shape: Shape) {
        self.wanted.lock().expect("no panic under it").get_or_insert(shape);
        self.changed.notify_one();
    }

    /// Ends every spare: room is wanted, or the node stops.
    pub async fn drain(&self, layers: &Layers) -> Result<(), Error> {
        let all = std::mem::take(&mut *self.ready.lock().expect("no panic under it"));
        for spare in all {
            spare.assembled.remove(layers).await?;
        }
        Ok(())
    }

    /// How many are ready.
    pub fn count(&self) -> usize {
        self.ready.lock().expect("no panic under it").len()
    }

    fn missing(&self) -> Option<(Shape, Vec<Spare>)> {
        let shape = (*self.wanted.lock().expect("no panic under it"))?;
        let mut ready = self.ready.lock().expect("no panic under it");
        let fitting = ready.iter().filter(|spare| spare.shape == shape).count();
        if fitting >= self.target {
            return None;
        }
        let others = ready.extract_if(.., |spare| spare.shape != shape).collect();
        Some((shape, others))
    }
}

/// The keeper. Ends when the node stops.
pub async fn keep(node: Arc<Node>) {
    let spares = &node.spares;
    let mut busy = spares.busy.subscribe();
    loop {
        tokio::select! {
            () = node.stopping.cancelled() => return,
            () = spares.changed.notified() => {}
        }
        while !node.stopping.is_cancelled() {
            if busy.wait_for(|count| *count == 0).await.is_err() {
                return;
            }
            let Some((shape, others)) = spares.missing() else { break };
            for spare in others {
                if let Err(error) = spare.assembled.remove(&node.layers).await {
                    tracing::error!(%error, context = error.context, "a spare machine could not be removed");
                }
            }
            match make(&node, shape).await {
                Ok(spare) => spares.ready.lock().expect("no panic under it").push(spare),
                Err(error) => {
                    tracing::warn!(%error, context = error.context, "no spare machine could be made");
                    break;
                }
            }
        }
    }
}

async fn make(node: &Node, shape: Shape) -> Result<Spare, Error> {
    let room = node.capacity.take(shape)?;
    let source = Source { template: node.templates.get(shape).await?, captured: None };
    let number = node.spares.next.fetch_add(1, Ordering::Relaxed);
    let directory = node.spares.directory.join(number.to_string());
    let assembled = assemble(node.vmm.as_ref(), &node.slots, &node.layers, source, &directory, None).await?;
    match warm_up(&assembled).await {
        Ok(()) => Ok(Spare { shape, assembled, _room: room }),
        Err(error) => {
            assembled.remove(&node.layers).await?;
            Err(error)
        }
    }
}

/// Lets it run a command, so that its link is open and its code translated, and stops it again.
async fn warm_up(spare: &Assembled) -> Result<(), Error> {
    let mut client = spare.guest.with_token(spare.source.token())?;
    spare.monitor.resume().await.map_err(vmm_error)?;
    warm::run_one_command(&mut client).await?;
    spare.monitor.pause().await.map_err(vmm_error)
}
