//! One qcow2 layer: where it has a cluster of the disk, or that it has none.
//!
//! The name of a backing file in its header is not followed: what is below it is for the caller to say.
//! Reference counts are not read: nothing is written. Compressed and encrypted clusters, data outside of the
//! file and split clusters are refused; QEMU makes none here.
//!
//! Source: QEMU, docs/interop/qcow2.txt.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use crate::Error;
use crate::cache::Cache;
use crate::field::{be32, be64};
use crate::file::DiskFile;

pub const MAGIC: u32 = 0x5146_49fb;
/// Of the header's version 3.
pub const HEADER_BYTES: usize = 104;
/// In an entry of either table: where in the file.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;
/// The cluster is zeros, whatever lies below.
pub const ZEROS: u64 = 1;
/// What QEMU takes of the first table as well.
const TABLE_BYTES_MAX: u64 = 32 << 20;
/// Features that change nothing for a reader: that the reference counts may be wrong.
const KNOWN_FEATURES: u64 = 1;
/// Parts of the second tables that are kept: 2 MiB, for 16 GiB of a disk.
const SLICES_KEPT: usize = 512;
const SLICE_BYTES: u64 = 4096;

/// An open layer.
pub struct Layer {
    pub file: DiskFile,
    /// The disk's size as of this layer, in bytes.
    pub bytes: u64,
    pub cluster_bits: u32,
    version: u32,
    /// Where the second tables are.
    table: Vec<u64>,
    slices: Mutex<Cache<u64, Arc<[u8]>>>,
}

/// What a layer has of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cluster {
    /// Nothing: the layer below counts.
    Below,
    Zeros,
    /// It is at this offset of the layer's file.
    At(u64),
}

impl Layer {
    pub fn open(path: &Path) -> Result<Self, Error> {
        let file = DiskFile::open(path)?;
        let broken = |reason: String| Error::layer(path, reason);
        let mut header = [0; HEADER_BYTES];
        file.read_at(0, &mut header)?;
        if be32(&header, 0) != MAGIC {
            return Err(broken("it is not qcow2".into()));
        }
        let version = be32(&header, 4);
        let features = match version {
            2 => 0,
            3 => be64(&header, 72),
            other => return Err(broken(format!("its version is {other}, not 2 or 3"))),
        };
        if features & !KNOWN_FEATURES != 0 {
            return Err(broken(format!("it has features that are not known: {features:#x}")));
        }
        let encryption = be32(&header, 32);
        if encryption != 0 {
            return Err(broken(format!("it is encrypted, by method {encryption}")));
        }
        let cluster_bits = be32(&header, 20);
        if !(9..=21).contains(&cluster_bits) {
            return Err(broken(format!("its clusters have 2^{cluster_bits} bytes, not 2^9 to 2^21")));
        }
        let bytes = be64(&header, 24);
        // A second table is a cluster of entries of 8 bytes.
        let entries = bytes.div_ceil(1 << (2 * cluster_bits - 3));
        let at = be64(&header, 40);
        let table_bytes = entries * 8;
        if u64::from(be32(&header, 36)) < entries || table_bytes > TABLE_BYTES_MAX {
            return Err(broken(format!("its table does not fit a disk of {bytes} bytes")));
        }
        if entries > 0 && !is_within(at, table_bytes, cluster_bits, &file) {
            return Err(broken(format!("its table at {at} is not within the file")));
        }
        let mut table = vec![0; table_bytes as usize];
        file.read_at(at, &mut table)?;
        let table = table.chunks_exact(8).map(|entry| be64(entry, 0) & OFFSET).collect();
        let slices = Mutex::new(Cache::new(SLICES_KEPT));
        Ok(Self { file, bytes, cluster_bits, version, table, slices })
    }

    pub fn cluster_bytes(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Where the table of a cluster is; 0 if there is none.
    fn second_table(&self, number: u64) -> u64 {
        let number = usize::try_from(number >> (self.cluster_bits - 3));
        number.ok().and_then(|number| self.table.get(number)).copied().unwrap_or(0)
    }

    /// What it has of the cluster of this number, counted from the disk's beginning.
    pub fn cluster(&self, number: u64) -> Result<Cluster, Error> {
        let entry_bits = self.cluster_bits - 3;
        let second = self.second_table(number);
        if second == 0 {
            return Ok(Cluster::Below);
        }
        if !is_within(second, self.cluster_bytes(), self.cluster_bits, &self.file) {
            return Err(self.broken(number, format!("its table at {second} is not within the file")));
        }
        let within = (number & ((1 << entry_bits) - 1)) * 8;
        let slice = self.slice(second + within / SLICE_BYTES * SLICE_BYTES)?;
        let entry = be64(&slice, (within % SLICE_BYTES) as usize);
        if entry & COMPRESSED != 0 {
            return Err(self.broken(number, "it is compressed".into()));
        }
        let at = entry & OFFSET;
        match at {
            _ if self.version > 2 && entry & ZEROS != 0 => Ok(Cluster::Zeros),
            0 => Ok(Cluster::Below),
            // The last one of a file may be cut where its data ends.
            _ if is_within(at, 1, self.cluster_bits, &self.file) => Ok(Cluster::At(at)),
            _ => Err(self.broken(number, format!("its place {at} is not within the file"))),
        }
    }

    fn slice(&self, at: u64) -> Result<Arc<[u8]>, Error> {
        let mut slices = self.slices.lock().unwrap_or_else(PoisonError::into_inner);
        slices.get_or(at, || {
            let mut slice = vec![0; SLICE_BYTES.min(self.cluster_bytes()) as usize];
            self.file.read_at(at, &mut slice)?;
            Ok(slice.into())
        })
    }

    fn broken(&self, cluster: u64, reason: String) -> Error {
        Error::layer(self.file.path(), format!("cluster {cluster}: {reason}"))
    }
}

/// Whether whole clusters begin there, and so many bytes are in the file.
fn is_within(at: u64, bytes: u64, cluster_bits: u32, file: &DiskFile) -> bool {
    at != 0
        && at.trailing_zeros() >= cluster_bits
        && at.checked_add(bytes).is_some_and(|end| end <= file.bytes)
}
