//! The layers of a running machine's disk: which there are, how the top freezes under a new one, and how
//! frozen ones are merged into it.
//!
//! A new layer comes by descriptor: the jail shows QEMU no file but those it was started with. Its file and
//! the layer in it are block nodes of their own, and the file's stays as it is when the layer is only read
//! from then on: QEMU takes its locks off a file that it keeps, but forgets those on one that it opens anew
//! out of a descriptor set, and nobody else could use the layer.
//!
//! The nodes are called so that their names have the order of the layers: QEMU tells the nodes' names and
//! how many are in the disk, but not which is on which. So whoever finds the machine again knows its layers,
//! once what is in no disk is closed: layers that did not become the top, and such as were merged into it.
//!
//! Source: QEMU, "Live Block Device Operations" (docs/interop/live-block-operations.rst).

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use tokio::sync::{Mutex, oneshot};

use super::command_line::{BASE_NODE, LAYER_NODE, TOP_NODE, layer_node};
use super::merge;
use super::qmp::{self, Command, Dialogue, Job};
use crate::{Error, Layer};

/// One machine's disk.
pub struct Disk {
    /// Held while it changes.
    state: Mutex<State>,
    /// Shared with every layer that is open and not in the disk.
    open: Arc<()>,
}

struct State {
    /// What is known of it, or has to be asked for: what was begun and not seen to end leaves it unknown, as
    /// does a server's restart.
    chain: Option<Chain>,
    /// The merge that is under way.
    merge: Option<Merge>,
}

#[derive(Debug, PartialEq, Eq)]
struct Chain {
    /// Its layers, lowest first; never empty.
    layers: Vec<String>,
    /// Its size, where that is known.
    bytes: Option<u64>,
    /// A number that no layer has.
    next: u32,
}

struct Merge {
    /// Layers that are to stay below the top.
    below: usize,
    /// Told how it ended.
    ended: oneshot::Sender<Result<(), Error>>,
}

impl Chain {
    fn top(&self) -> &str {
        self.layers.last().map_or(TOP_NODE, String::as_str)
    }
}

impl Disk {
    /// That of a machine that is started now, with so many frozen layers.
    pub fn started(frozen: usize) -> Self {
        let layers = (0..frozen).map(layer_node).chain([TOP_NODE.into()]).collect();
        Self::new(Some(Chain { layers, bytes: None, next: 1 }))
    }

    /// That of a machine that has been found again.
    pub fn found() -> Self {
        Self::new(None)
    }

    fn new(chain: Option<Chain>) -> Self {
        Self { state: Mutex::new(State { chain, merge: None }), open: Arc::default() }
    }

    /// Opens a layer that is to become the top.
    pub async fn add(&self, dialogue: &Dialogue, path: &Path) -> Result<Layer, Error> {
        let mut state = self.state.lock().await;
        stop_merge(dialogue, &mut state).await?;
        let (bytes, number) = match &state.chain {
            Some(Chain { bytes: Some(bytes), next, .. }) => (*bytes, *next),
            _ => {
                let (chain, bytes) = self.ask(dialogue).await?;
                let number = chain.next;
                state.chain = Some(chain);
                (bytes, number)
            }
        };
        let file = fs_err::File::options()
            .read(true)
            .write(true)
            .open(path)
            .map_err(|source| Error::File { what: "a disk layer cannot be opened".into(), source })?;
        let file = file.into_parts().0;
        let own = virtual_size(&file, path)?;
        let set = dialogue.pass(file).await?;
        let name = format!("{TOP_NODE}-{number}");
        if let Some(chain) = &mut state.chain {
            chain.next += 1;
        }
        let opened = async {
            let filename = qmp::passed_name(set);
            let file = file_node(&name);
            let add_file =
                qmp::AddFileNode { driver: "file", node_name: file.clone(), filename, discard: "unmap" };
            dialogue.run(&add_file).await?;
            let add_layer = qmp::AddLayerNode {
                driver: "qcow2",
                node_name: name.clone(),
                file,
                backing: (),
                discard: "unmap",
                detect_zeroes: "unmap",
            };
            dialogue.run(&add_layer).await?;
            if own != bytes {
                dialogue.run(&qmp::ResizeBlock { node_name: name.clone(), size: bytes }).await?;
            }
            Ok(())
        };
        match opened.await {
            Ok(()) => Ok(Layer { name, bytes, open: Arc::clone(&self.open) }),
            Err(error) => Err(closed_after(dialogue, &mut state, &name, error).await),
        }
    }

    /// Puts a layer on top.
    pub async fn freeze(&self, dialogue: &Dialogue, layer: Layer) -> Result<(), Error> {
        let mut state = self.state.lock().await;
        let mut chain = match state.chain.take() {
            Some(chain) => chain,
            None => self.ask(dialogue).await?.0,
        };
        let outcome = if chain.bytes == Some(layer.bytes) {
            let (node, overlay) = (chain.top().to_owned(), layer.name.clone());
            dialogue.run(&qmp::Snapshot { node, overlay }).await
        } else {
            let reason = "the disk was resized after the layer was added".into();
            Err(Error::Refused { command: qmp::Snapshot::NAME, reason })
        };
        match outcome {
            Ok(_) => {
                chain.layers.push(layer.name);
                state.chain = Some(chain);
                Ok(())
            }
            Err(error) => Err(closed_after(dialogue, &mut state, &layer.name, error).await),
        }
    }

    /// Closes a layer that does not become the top.
    pub async fn close(&self, dialogue: &Dialogue, layer: Layer) -> Result<(), Error> {
        let mut state = self.state.lock().await;
        let closed = close(dialogue, &layer.name).await;
        if closed.is_err() {
            state.chain = None;
        }
        closed
    }

    /// Gives the disk another size.
    pub async fn resize(&self, dialogue: &Dialogue, bytes: u64) -> Result<(), Error> {
        let mut state = self.state.lock().await;
        stop_merge(dialogue, &mut state).await?;
        let chain = match state.chain.take() {
            Some(chain) => chain,
            None => self.ask(dialogue).await?.0,
        };
        let node_name = chain.top().to_owned();
        dialogue.run(&qmp::ResizeBlock { node_name, size: bytes }).await?;
        state.chain = Some(Chain { bytes: Some(bytes), ..chain });
        Ok(())
    }

    /// How many layers it has.
    pub async fn layers(&self, dialogue: &Dialogue) -> Result<usize, Error> {
        let mut state = self.state.lock().await;
        see_merge(dialogue, &mut state).await?;
        self.known(dialogue, &mut state).await.map(|chain| chain.layers.len())
    }

    /// Merges into the top all but the lowest `below` layers.
    pub async fn merge(&self, dialogue: &Dialogue, below: usize) -> Result<(), Error> {
        let mut changes = dialogue.job_changes();
        let mut ended = {
            let mut state = self.state.lock().await;
            see_merge(dialogue, &mut state).await?;
            if Arc::strong_count(&self.open) > 1 || state.merge.is_some() {
                return Err(merge::refused("the disk is being changed already"));
            }
            let chain = self.known(dialogue, &mut state).await?;
            if chain.layers.len() <= below + 1 {
                return Ok(());
            }
            let base = below.checked_sub(1).map_or(BASE_NODE, |lowest| &chain.layers[lowest]);
            match merge::begin(dialogue, chain.top(), base).await {
                Ok(()) => {}
                Err(error @ Error::Refused { .. }) => return Err(error),
                Err(error) => {
                    state.chain = None;
                    return Err(error);
                }
            }
            let (ended, outcome) = oneshot::channel();
            state.merge = Some(Merge { below, ended });
            outcome
        };
        loop {
            tokio::select! {
                outcome = &mut ended => return outcome.unwrap_or_else(|_| Err(merge::gone())),
                changed = changes.changed() => {
                    changed.map_err(|_| merge::gone())?;
                    see_merge(dialogue, &mut *self.state.lock().await).await?;
                }
            }
        }
    }

    /// Gives up a merge that is under way.
    pub async fn stop_merge(&self, dialogue: &Dialogue) -> Result<(), Error> {
        stop_merge(dialogue, &mut *self.state.lock().await).await
    }

    /// What is known, now.
    async fn known<'a>(&self, dialogue: &Dialogue, state: &'a mut State) -> Result<&'a Chain, Error> {
        let chain = match state.chain.take() {
            Some(chain) => chain,
            None => self.ask(dialogue).await?.0,
        };
        Ok(state.chain.insert(chain))
    }

    /// Finds out what the disk consists of, with its size, and closes what it does not.
    async fn ask(&self, dialogue: &Dialogue) -> Result<(Chain, u64), Error> {
        if let Some(job) = merge::end(dialogue).await? {
            let outcome = merge::dismiss(dialogue, job).await?;
            tracing::debug!(?outcome, "a merge of disk layers that nobody waits for has ended");
        }
        let devices = dialogue.run(&qmp::QueryBlock {}).await?;
        let disk = devices.into_iter().find_map(|device| device.inserted);
        let disk = disk.ok_or_else(|| Error::Monitor("it has no disk any more".into()))?;
        let nodes = dialogue.run(&qmp::QueryNodes { flat: true }).await?;
        let names = nodes.into_iter().filter_map(|node| node.node_name);
        let found = sort(names, &disk.node_name, disk.below)
            .ok_or_else(|| Error::Monitor("its disk has layers of unknown names".into()))?;
        // Those above the top are such as somebody is about to put there, or nobody any more.
        let above = if Arc::strong_count(&self.open) > 1 { Vec::new() } else { found.above };
        for name in above.iter().chain(found.merged.iter().rev()) {
            close(dialogue, name).await?;
        }
        let bytes = disk.image.virtual_size;
        Ok((Chain { layers: found.layers, bytes: Some(bytes), next: found.next }, bytes))
    }
}

/// Takes note of the end of a merge, if it has come.
async fn see_merge(dialogue: &Dialogue, state: &mut State) -> Result<(), Error> {
    if state.merge.is_none() {
        return Ok(());
    }
    match merge::find(dialogue).await? {
        Some(job) if !job.is_over() => Ok(()),
        job => merge_ended(dialogue, state, job).await,
    }
}

/// Gives up a merge, if there is one.
async fn stop_merge(dialogue: &Dialogue, state: &mut State) -> Result<(), Error> {
    if state.merge.is_none() {
        return Ok(());
    }
    let job = merge::end(dialogue).await?;
    merge_ended(dialogue, state, job).await
}

/// Closes what was merged, and tells whoever waits for that.
async fn merge_ended(dialogue: &Dialogue, state: &mut State, job: Option<Job>) -> Result<(), Error> {
    // Without either there is nothing to note, and what is in the middle is asked for.
    let (Some(Merge { below, ended }), chain) = (state.merge.take(), state.chain.take()) else {
        return Ok(());
    };
    let outcome = match job {
        Some(job) => merge::dismiss(dialogue, job).await?,
        None => Err(Error::Monitor("nobody knows what became of the merge of its disk layers".into())),
    };
    match (&outcome, chain) {
        (Ok(()), Some(mut chain)) => {
            let merged: Vec<_> = chain.layers.drain(below..chain.layers.len() - 1).collect();
            let mut closed = Ok(());
            for name in merged.iter().rev() {
                closed = closed.and(close(dialogue, name).await);
            }
            match closed {
                Ok(()) => state.chain = Some(chain),
                Err(error) => tracing::warn!(%error, "a disk layer that was merged is still open"),
            }
        }
        (Err(Error::Refused { .. }), chain) => state.chain = chain,
        (_, _) => {}
    }
    // Its caller may have gone.
    let _ = ended.send(outcome);
    Ok(())
}

/// Closes a layer that is not part of the disk.
async fn close(dialogue: &Dialogue, name: &str) -> Result<(), Error> {
    // Both are tried: after a failure only the file's may be there.
    let layer = dialogue.run(&qmp::DeleteNode { node_name: name.to_owned() }).await;
    let file = dialogue.run(&qmp::DeleteNode { node_name: file_node(name) }).await;
    layer.and(file).map(drop)
}

/// Closes a layer after something failed, which is what the caller has to know of.
async fn closed_after(dialogue: &Dialogue, state: &mut State, name: &str, error: Error) -> Error {
    if let Err(second) = close(dialogue, name).await {
        state.chain = None;
        tracing::warn!(error = %second, name, "a disk layer that is not used may stay open");
    }
    error
}

/// What block nodes are.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    /// Those of the disk, lowest first.
    layers: Vec<String>,
    /// Those between, which were merged into the top.
    merged: Vec<String>,
    /// Those above.
    above: Vec<String>,
    /// A number that none has.
    next: u32,
}

/// Sorts a machine's nodes by their names: its disk has so many layers, the highest of them `top`.
fn sort(names: impl Iterator<Item = String>, top: &str, count: usize) -> Option<Found> {
    let mut next = 1;
    let mut nodes = Vec::new();
    for name in names {
        if let Some((true, number)) = place(name.strip_suffix(FILE).unwrap_or(&name)) {
            next = next.max(number + 1);
        }
        nodes.extend(place(&name).map(|place| (place, name)));
    }
    nodes.sort_unstable();
    let mut layers: Vec<String> = nodes.into_iter().map(|(_, name)| name).collect();
    let index = layers.iter().position(|name| name == top)?;
    let above = layers.split_off(index + 1);
    // A merge leaves the lowest and the top; it is looked for before anything else is put on that.
    let below = count.checked_sub(1).filter(|below| *below <= index)?;
    let merged = layers.drain(below..index).collect();
    Some(Found { layers, merged, above, next })
}

/// Where a layer is, by its name: whether it came after the machine's start, and its number.
fn place(name: &str) -> Option<(bool, u32)> {
    if name == TOP_NODE {
        return Some((true, 0));
    }
    if let Some(number) = name.strip_prefix(LAYER_NODE) {
        return Some((false, number.parse().ok()?));
    }
    let number = name.strip_prefix(TOP_NODE)?.strip_prefix('-')?;
    Some((true, number.parse().ok()?))
}

/// What the name of a file's node has more than its layer's.
const FILE: &str = "-file";

/// The node of a layer's file.
fn file_node(layer: &str) -> String {
    format!("{layer}{FILE}")
}

/// The size of the disk that a layer is for, from its header: QEMU, "Qcow2 Image
/// File Format" (docs/interop/qcow2.txt).
fn virtual_size(file: &File, path: &Path) -> Result<u64, Error> {
    let mut header = [0; 32];
    match file.read_exact_at(&mut header, 0) {
        Ok(()) if header.starts_with(b"QFI\xfb") => {
            Ok(u64::from_be_bytes(header[24..].try_into().expect("eight bytes")))
        }
        _ => Err(Error::Corrupted { path: path.to_owned(), reason: "it is no qcow2 layer".into() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(names: &[&str], top: &str, count: usize) -> Option<Found> {
        let with_files = names.iter().flat_map(|name| [(*name).to_owned(), file_node(name)]);
        let others = ["base", "base-file", "#block123"].map(str::to_owned);
        sort(others.into_iter().chain(with_files), top, count)
    }

    fn strings(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn names_tell_the_order_of_the_layers_and_what_is_in_no_disk() {
        let all = ["top-10", "layer-10", "top", "layer-9", "top-9", "layer-0", "top-11"];
        assert_eq!(
            sorted(&all, "top-10", 6).unwrap(),
            Found {
                layers: strings(&["layer-0", "layer-9", "layer-10", "top", "top-9", "top-10"]),
                merged: Vec::new(),
                above: strings(&["top-11"]),
                next: 12,
            }
        );
        let merged = sorted(&all, "top-10", 2).unwrap();
        assert_eq!(merged.layers, strings(&["layer-0", "top-10"]));
        assert_eq!(merged.merged, strings(&["layer-9", "layer-10", "top", "top-9"]));
        assert_eq!(sorted(&["top"], "top", 1).unwrap().next, 1);
    }

    #[test]
    fn a_disk_that_is_not_understood_is_said_to_be() {
        assert_eq!(sorted(&["layer-0", "top"], "top", 3), None);
        assert_eq!(sorted(&["layer-0", "top"], "top-1", 2), None);
        assert_eq!(sorted(&["layer-0", "top"], "top", 0), None);
    }
}
