//! An append-only sequence of bytes: its head in memory, the rest in a file without a name.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

/// Bytes of a store that stay in memory.
pub const MEMORY_BYTES: usize = 64 << 10;

/// See the module.
#[derive(Default)]
pub struct Store {
    head: Vec<u8>,
    tail: Option<Arc<File>>,
    tail_len: u64,
}

impl Store {
    pub fn len(&self) -> u64 {
        self.head.len() as u64 + self.tail_len
    }

    pub fn memory_bytes(&self) -> u64 {
        self.head.len() as u64
    }

    pub fn disk_bytes(&self) -> u64 {
        self.tail_len
    }

    /// How many of `len` further bytes would stay in memory.
    fn room(&self, len: usize) -> usize {
        len.min(MEMORY_BYTES - self.head.len())
    }

    /// The file and the position to which all but the first bytes of `len` more must be written
    /// before they are committed, and the number of those first bytes; none when memory takes all.
    /// Errors: those of making the file.
    pub fn reserve(&mut self, len: usize, directory: &Path) -> io::Result<Option<Reserved>> {
        let room = self.room(len);
        if room == len {
            return Ok(None);
        }
        let file = match &self.tail {
            Some(file) => Arc::clone(file),
            None => Arc::clone(self.tail.insert(Arc::new(nameless(directory)?))),
        };
        Ok(Some(Reserved { file, position: self.tail_len, skip: room }))
    }

    /// Makes `data` part of the store. What `reserve` said goes to the file is in the file already.
    pub fn commit(&mut self, data: &[u8]) {
        let room = self.room(data.len());
        self.head.extend_from_slice(&data[..room]);
        self.tail_len += (data.len() - room) as u64;
    }

    /// Reserves, writes and commits in one.
    pub fn append(&mut self, data: &[u8], directory: &Path) -> io::Result<()> {
        if let Some(reserved) = self.reserve(data.len(), directory)? {
            reserved.write(data)?;
        }
        self.commit(data);
        Ok(())
    }

    /// At most `limit` bytes from `offset` on; fewer at the end, and where memory meets the file.
    pub fn read(&self, offset: u64, limit: usize) -> io::Result<Bytes> {
        let head = self.head.len() as u64;
        if offset < head {
            let start = offset as usize;
            return Ok(Bytes::copy_from_slice(&self.head[start..self.head.len().min(start + limit)]));
        }
        let position = offset - head;
        let len = (self.tail_len.saturating_sub(position)).min(limit as u64) as usize;
        let mut data = vec![0; len];
        if let Some(file) = &self.tail {
            file.read_exact_at(&mut data, position)?;
        }
        Ok(data.into())
    }
}

/// A place in the file of a store.
pub struct Reserved {
    file: Arc<File>,
    position: u64,
    skip: usize,
}

impl Reserved {
    /// Writes what does not fit into memory. May block; errors: no space.
    pub fn write(&self, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(&data[self.skip..], self.position)
    }
}

/// A file that is gone when it is closed, whatever becomes of the agent.
fn nameless(directory: &Path) -> io::Result<File> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    fs::create_dir_all(directory)?;
    loop {
        let path = directory.join(format!("log-{}", NEXT.fetch_add(1, Ordering::Relaxed)));
        match OpenOptions::new().read(true).write(true).create_new(true).open(&path) {
            Ok(file) => {
                fs::remove_file(&path)?;
                return Ok(file);
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
}
