//! The layers of a running machine's disk: which one is the top, and how it freezes under a new one.
//!
//! A new layer comes by descriptor: the jail shows QEMU no file but those it was started with. Its file and
//! the layer in it are block nodes of their own, and the file's stays as it is when the layer is only read
//! from then on: QEMU takes its locks off a file that it keeps, but forgets those on one that it opens anew
//! out of a descriptor set, and nobody else could use the layer.
//!
//! Source: QEMU, "Live Block Device Operations" (docs/interop/live-block-operations.rst).

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use tokio::sync::Mutex;

use super::command_line::TOP_NODE;
use super::qmp::{self, Command, Dialogue};
use crate::{Error, Layer};

/// One machine's disk. The top is known, or it is asked for: what was begun and not seen to end leaves it
/// unknown, as does a server's restart. Held while it changes.
pub struct Disk(Mutex<Option<Top>>);

struct Top {
    node: String,
    /// Its size, where that is known.
    bytes: Option<u64>,
}

impl Disk {
    /// That of a machine that is started now.
    pub fn started() -> Self {
        Self(Mutex::new(Some(Top { node: TOP_NODE.into(), bytes: None })))
    }

    /// That of a machine that has been found again.
    pub fn found() -> Self {
        Self(Mutex::new(None))
    }

    /// Opens a layer that is to become the top.
    pub async fn add(&self, dialogue: &Dialogue, path: &Path) -> Result<Layer, Error> {
        let mut top = self.0.lock().await;
        let bytes = match &*top {
            Some(Top { bytes: Some(bytes), .. }) => *bytes,
            _ => {
                let (found, bytes) = ask(dialogue).await?;
                *top = Some(found);
                bytes
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
        // No other set has this number for as long as anything of it is open.
        let name = format!("{TOP_NODE}-{set}");
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
            Ok(()) => Ok(Layer { name, bytes }),
            Err(error) => Err(self.closed_after(dialogue, &name, error).await),
        }
    }

    /// Puts a layer on top.
    pub async fn freeze(&self, dialogue: &Dialogue, layer: Layer) -> Result<(), Error> {
        let mut top = self.0.lock().await;
        let below = match top.take() {
            Some(below) => below,
            None => ask(dialogue).await?.0,
        };
        let outcome = if below.bytes == Some(layer.bytes) {
            dialogue.run(&qmp::Snapshot { node: below.node, overlay: layer.name.clone() }).await
        } else {
            let reason = "the disk was resized after the layer was added".into();
            Err(Error::Refused { command: qmp::Snapshot::NAME, reason })
        };
        match outcome {
            Ok(_) => {
                *top = Some(Top { node: layer.name, bytes: Some(layer.bytes) });
                Ok(())
            }
            Err(error) => Err(self.closed_after(dialogue, &layer.name, error).await),
        }
    }

    /// Closes a layer that is not part of the disk.
    pub async fn close(&self, dialogue: &Dialogue, name: &str) -> Result<(), Error> {
        // Both are tried: after a failure only the file's may be there.
        let layer = dialogue.run(&qmp::DeleteNode { node_name: name.to_owned() }).await;
        let file = dialogue.run(&qmp::DeleteNode { node_name: file_node(name) }).await;
        layer.and(file).map(drop)
    }

    /// Closes a layer after something failed, which is what the caller has to know of.
    async fn closed_after(&self, dialogue: &Dialogue, name: &str, error: Error) -> Error {
        if let Err(second) = self.close(dialogue, name).await {
            tracing::warn!(error = %second, name, "a disk layer that is not used may stay open");
        }
        error
    }

    /// Gives the disk another size.
    pub async fn resize(&self, dialogue: &Dialogue, bytes: u64) -> Result<(), Error> {
        let mut top = self.0.lock().await;
        let node = match top.take() {
            Some(top) => top.node,
            None => ask(dialogue).await?.0.node,
        };
        dialogue.run(&qmp::ResizeBlock { node_name: node.clone(), size: bytes }).await?;
        *top = Some(Top { node, bytes: Some(bytes) });
        Ok(())
    }
}

/// The node of a layer's file.
fn file_node(layer: &str) -> String {
    format!("{layer}-file")
}

/// The top, and its size.
async fn ask(dialogue: &Dialogue) -> Result<(Top, u64), Error> {
    let devices = dialogue.run(&qmp::QueryBlock {}).await?;
    let top = devices.into_iter().find_map(|device| device.inserted);
    let top = top.ok_or_else(|| Error::Monitor("it has no disk any more".into()))?;
    let bytes = top.image.virtual_size;
    Ok((Top { node: top.node_name, bytes: Some(bytes) }, bytes))
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
