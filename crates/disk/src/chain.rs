//! A disk: a raw base under qcow2 layers, and where each of its bytes lies.
//!
//! A byte belongs to the uppermost layer that has its cluster. A layer that is shorter than the one above is
//! zeros beyond its end, whatever lies below it: the disk was grown, and is not to show what was once there.

use std::path::{Path, PathBuf};

use crate::Error;
use crate::file::DiskFile;
use crate::layer::{Cluster, Layer};

/// A disk. Reads only; its files must stay as they are while it is open.
pub struct Chain {
    base: DiskFile,
    /// Lowest first.
    layers: Vec<Layer>,
    bytes: u64,
}

/// Where bytes of a disk lie.
#[derive(Clone, Copy)]
pub enum Place<'a> {
    /// Nowhere: they are zeros.
    Zeros,
    /// In a file of the host, from this offset on.
    In(&'a DiskFile, u64),
}

impl Place<'_> {
    /// Whether both are the same bytes, which then need not be read to be compared.
    pub fn is(&self, other: &Place<'_>) -> bool {
        match (self, other) {
            (Place::Zeros, Place::Zeros) => true,
            (Place::In(one, at), Place::In(other, other_at)) => one.id == other.id && at == other_at,
            (Place::Zeros, Place::In(..)) | (Place::In(..), Place::Zeros) => false,
        }
    }

    pub fn read(&self, buffer: &mut [u8]) -> Result<(), Error> {
        match self {
            Place::Zeros => {
                buffer.fill(0);
                Ok(())
            }
            Place::In(file, at) => file.read_at(*at, buffer),
        }
    }
}

impl Chain {
    /// Opens a disk; `layers` lowest first.
    ///
    /// # Errors
    /// A file that cannot be read, a layer that is broken or has what this reader does not know.
    pub fn open(base: &Path, layers: &[PathBuf]) -> Result<Self, Error> {
        let base = DiskFile::open(base)?;
        let layers = layers.iter().map(|path| Layer::open(path)).collect::<Result<Vec<_>, _>>()?;
        let bytes = layers.last().map_or(base.bytes, |top| top.bytes);
        Ok(Self { base, layers, bytes })
    }

    /// Its size in bytes: that of its top.
    pub fn len_bytes(&self) -> u64 {
        self.bytes
    }

    /// Reads bytes of the disk.
    ///
    /// # Errors
    /// Bytes beyond its end, a file that cannot be read, a layer that is broken there.
    pub fn read_at(&self, mut offset: u64, mut buffer: &mut [u8]) -> Result<(), Error> {
        while !buffer.is_empty() {
            let (place, bytes) = self.place(offset, buffer.len() as u64)?;
            let (now, rest) = std::mem::take(&mut buffer).split_at_mut(bytes as usize);
            place.read(now)?;
            offset += bytes;
            buffer = rest;
        }
        Ok(())
    }

    /// Where the `length` (at least one) bytes from an offset on lie, and how many of them lie there in a row.
    pub(crate) fn place(&self, offset: u64, length: u64) -> Result<(Place<'_>, u64), Error> {
        let bytes = self.bytes;
        if offset.checked_add(length).is_none_or(|end| end > bytes) {
            return Err(Error::PastEnd { offset, length, bytes });
        }
        let (place, length) = place(&self.layers, offset, length)?;
        Ok(match (place, self.base.bytes.saturating_sub(offset)) {
            (Some(place), _) => (place, length),
            (None, 0) => (Place::Zeros, length),
            (None, left) => (Place::In(&self.base, offset), length.min(left)),
        })
    }
}

/// The same in layers without a base; `None` where none of them has the bytes.
pub fn place(layers: &[Layer], offset: u64, mut length: u64) -> Result<(Option<Place<'_>>, u64), Error> {
    for layer in layers.iter().rev() {
        let left = layer.bytes.saturating_sub(offset);
        if left == 0 {
            return Ok((Some(Place::Zeros), length));
        }
        let within = offset & (layer.cluster_bytes() - 1);
        length = length.min(left).min(layer.cluster_bytes() - within);
        match layer.cluster(offset >> layer.cluster_bits)? {
            Cluster::Below => {}
            Cluster::Zeros => return Ok((Some(Place::Zeros), length)),
            Cluster::At(at) => return Ok((Some(Place::In(&layer.file, at + within)), length)),
        }
    }
    Ok((None, length))
}
