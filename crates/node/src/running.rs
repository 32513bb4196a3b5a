//! One machine that is somebody's, and the one task that owns its end.
//!
//! The driver hears the monitor's process end, the machine stand still for want of disk, and the
//! order to end it. Whatever comes first, the machine's files, slot and control group are freed
//! once, and only then does anybody learn that it is gone.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{self, BoxStream};
use futures::{FutureExt, Stream, StreamExt};
use nullspace_node_api::Report;
use nullspace_types::sandbox::SandboxMetrics;
use nullspace_types::{Code, Error};
use nullspace_vmm::{MachineEvent, Monitor};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

use crate::assemble::{end_process, remove_files};
use crate::capacity::Room;
use crate::egress::Egress;
use crate::guest::{Client, Guest};
use crate::layer::LayerId;
use crate::machine::{self, Freezing, Record};
use crate::slot::Slot;
use crate::{Node, crash};

/// How often a machine that stands still looks whether the disk has room: nothing signals that.
const DISK_LOOK: Duration = Duration::from_secs(1);
/// MiB of disk that must be free before it is let go on.
const DISK_ROOM_MB: u64 = 64;
/// Streams out of one machine at once. Its agent takes 512 calls at once, and some must be left for those
/// that are no streams.
const STREAMS: usize = 384;

/// A running machine, for whoever calls into it.
pub struct Running {
    /// What is written down of it.
    pub record: Record,
    /// Its process.
    pub monitor: Arc<dyn Monitor>,
    /// Its disk, held by who changes that.
    pub disk: tokio::sync::Mutex<Disk>,
    /// Whether its layers are being merged.
    pub merging: AtomicBool,
    /// What it may reach.
    egress: Mutex<Egress>,
    /// Held by who changes that.
    pub ruling: tokio::sync::Mutex<()>,
    /// Samples of what it uses, newest last.
    pub samples: Mutex<VecDeque<SandboxMetrics>>,
    directory: PathBuf,
    slot: Slot,
    guest: Guest,
    streams: Arc<Semaphore>,
    end: mpsc::Sender<oneshot::Sender<Result<(), Error>>>,
    gone: watch::Receiver<bool>,
}

/// The layers of a machine's disk that are its own or shared with relatives.
#[derive(Debug)]
pub struct Disk {
    /// Frozen ones above the template's, lowest first. The machine holds them.
    pub layers: Vec<LayerId>,
    /// The file of the one that it writes to.
    pub top: String,
    /// It is not to be frozen any more: the machine is ending, or something is where nobody looks for it.
    pub closed: bool,
}

impl Disk {
    /// Refuses to change what is closed.
    pub fn check(&self) -> Result<(), Error> {
        if self.closed { Err(Running::lost()) } else { Ok(()) }
    }

    /// Where the top is.
    pub fn top_path(&self, directory: &Path) -> PathBuf {
        directory.join(&self.top)
    }

    /// A name for the next top, that no file has.
    pub fn next_top(&self) -> String {
        format!("top-{}.qcow2", uuid::Uuid::now_v7().simple())
    }
}

impl Running {
    /// Where its files are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Writes its record anew, with its disk as it is now and what is about to happen to that.
    pub async fn write_down(&self, disk: &Disk, freezing: Option<Freezing>) -> Result<(), Error> {
        let record =
            Record { layers: disk.layers.clone(), top: disk.top.clone(), freezing, ..self.record.clone() };
        machine::write(&self.directory, &record).await
    }

    /// What it may reach.
    pub fn egress(&self) -> Egress {
        self.egress.lock().expect("no panic under it").clone()
    }

    /// What it may reach from now on, as it is written down.
    pub fn replace_egress(&self, egress: Egress) {
        *self.egress.lock().expect("no panic under it") = egress;
    }

    /// Its place on the network.
    pub fn slot(&self) -> &Slot {
        &self.slot
    }

    /// Its agent.
    pub fn client(&self) -> Result<Client, Error> {
        self.guest.with_token(&self.record.token)
    }

    /// The way to its agent.
    pub fn guest(&self) -> &Guest {
        &self.guest
    }

    /// Ends it. Resolves when nothing of it is left.
    pub async fn end(&self) -> Result<(), Error> {
        let (send, receive) = oneshot::channel();
        if self.end.send(send).await.is_ok()
            && let Ok(outcome) = receive.await
        {
            return outcome;
        }
        // It ended by itself in this moment; its driver has freed it.
        let mut gone = self.gone.clone();
        gone.wait_for(|gone| *gone).await.map(drop).map_err(Error::internal)
    }

    /// Resolves once it is gone.
    pub fn gone(&self) -> BoxFuture<'static, ()> {
        let mut gone = self.gone.clone();
        // An error means that the driver is no more, which is the same.
        async move { drop(gone.wait_for(|gone| *gone).await) }.boxed()
    }

    /// Whether it is gone.
    pub fn is_gone(&self) -> bool {
        *self.gone.borrow()
    }

    /// What comes of a call, unless the machine goes away in the middle of it.
    pub async fn while_there<T>(&self, call: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        tokio::select! {
            result = call => result,
            () = self.gone() => Err(Self::lost()),
        }
    }

    /// A place for one more stream out of the machine.
    pub fn place(&self) -> Result<OwnedSemaphorePermit, Error> {
        Arc::clone(&self.streams).try_acquire_owned().map_err(|_| {
            let message = format!("the sandbox has {STREAMS} open streams, which is the most");
            Error::new(Code::QuotaExceeded, message).suggest("close one of them first")
        })
    }

    /// A stream of the guest's as it is given out: it ends with its first error, one of which is that the
    /// machine is gone, and takes its place for as long as it is there.
    pub fn stream<T: Send + 'static>(
        &self,
        place: OwnedSemaphorePermit,
        stream: impl Stream<Item = Result<T, Error>> + Send + 'static,
    ) -> BoxStream<'static, Result<T, Error>> {
        let state = Some((stream.boxed(), self.gone(), place));
        let next = |state: Option<(BoxStream<'static, _>, BoxFuture<'static, ()>, _)>| async move {
            let (mut stream, mut gone, place) = state?;
            tokio::select! {
                biased;
                item = stream.next() => match item? {
                    Ok(item) => Some((Ok(item), Some((stream, gone, place)))),
                    Err(error) => Some((Err(error), None)),
                },
                () = &mut gone => Some((Err(Self::lost()), None)),
            }
        };
        stream::unfold(state, next).boxed()
    }

    /// What calls on a machine that went away in the middle of them are answered.
    pub fn lost() -> Error {
        Error::new(Code::SandboxNotReady, "the sandbox's machine ended while this was being done")
    }
}

/// What the driver owns.
pub struct Parts {
    /// Its process.
    pub monitor: Arc<dyn Monitor>,
    /// Its place on the network.
    pub slot: Slot,
    /// Its files.
    pub directory: PathBuf,
    /// What it may reach.
    pub egress: Egress,
    /// Its share of the host.
    pub room: Room,
}

/// Starts the driver of a machine.
pub fn drive(node: Arc<Node>, record: Record, guest: Guest, parts: Parts) -> Arc<Running> {
    let (end, orders) = mpsc::channel(4);
    let (done, gone) = watch::channel(false);
    let streams = Arc::new(Semaphore::new(STREAMS));
    let disk = Disk { layers: record.layers.clone(), top: record.top.clone(), closed: false };
    let running = Arc::new(Running {
        record,
        monitor: Arc::clone(&parts.monitor),
        disk: tokio::sync::Mutex::new(disk),
        merging: AtomicBool::new(false),
        egress: Mutex::new(parts.egress.clone()),
        ruling: tokio::sync::Mutex::default(),
        samples: Mutex::default(),
        directory: parts.directory.clone(),
        slot: parts.slot.clone(),
        guest,
        streams,
        end,
        gone,
    });
    let name = running.record.spec.sandbox_id;
    tokio::spawn(crate::sample::keep(Arc::clone(&node), Arc::clone(&running)));
    let driver = driver(node, Arc::clone(&running), parts, orders, done);
    tokio::spawn(async move {
        tracing::debug!(sandbox = %name, "driver begins");
        driver.await;
        tracing::debug!(sandbox = %name, "driver ends");
    });
    running
}

/// Removes the files of a machine that is no more, and lets go of its layers. A capture that is in the middle
/// fails now, and lets go of the disk.
async fn remove_disk(node: &Node, running: &Running, directory: &Path) -> Result<(), Error> {
    let mut disk = running.disk.lock().await;
    disk.closed = true;
    let removed = remove_files(directory).await;
    removed.and(node.layers.release(&std::mem::take(&mut disk.layers)).await)
}

async fn driver(
    node: Arc<Node>,
    running: Arc<Running>,
    parts: Parts,
    mut orders: mpsc::Receiver<oneshot::Sender<Result<(), Error>>>,
    done: watch::Sender<bool>,
) {
    let sandbox = running.record.spec.sandbox_id;
    let monitor = Arc::clone(&parts.monitor);
    let (mut stalled, mut hears, mut guest_ended) = (false, true, false);
    let mut look = tokio::time::interval(DISK_LOOK);
    let order = loop {
        tokio::select! {
            Some(order) = orders.recv() => break Some(order),
            () = monitor.ended() => break None,
            event = monitor.next_event(), if hears => match event {
                Some(MachineEvent::DiskFull) if !stalled => {
                    stalled = true;
                    tracing::warn!(%sandbox, "the machine stands still until the host's disk has room");
                }
                Some(MachineEvent::DiskFull) => {}
                Some(MachineEvent::GuestEnded) => guest_ended = true,
                None => hears = false,
            },
            _ = look.tick(), if stalled => {
                if node.capacity.free_disk_mb().is_ok_and(|free| free >= DISK_ROOM_MB) {
                    match monitor.resume().await {
                        Ok(()) => {
                            stalled = false;
                            tracing::info!(%sandbox, "the machine goes on");
                        }
                        Err(error) => tracing::warn!(%sandbox, %error, "the machine does not go on yet"),
                    }
                }
            }
            () = node.stopping.cancelled() => return,
        }
    };
    let Parts { monitor, slot, directory, room, egress: _ } = parts;
    crash::step("destroy.begun");
    crate::egress::disown(&node, &slot).await;
    let ended = end_process(monitor.as_ref(), slot).await;
    let outcome = ended.and(remove_disk(&node, &running, &directory).await);
    crash::step("destroy.layers_released");
    if let Err(error) = &outcome {
        tracing::error!(%sandbox, %error, context = error.context, "a machine could not be removed whole");
    }
    drop(room);
    // Said before it is struck off the list, so that whoever puts it there now sees it.
    done.send_replace(true);
    node.forget(&running);
    match order {
        Some(order) => drop(order.send(outcome)),
        None => {
            let mut machine = running.record.machine.clone();
            machine.generation += 1;
            let reason = if guest_ended {
                "the guest shut down or crashed"
            } else {
                "the machine's monitor was killed"
            };
            if node.reports.send(Report::MachineLost { machine, reason: reason.into() }).await.is_err() {
                tracing::warn!(%sandbox, "nobody hears that a machine was lost");
            }
        }
    }
}
