//! What each request means. An error of the kernel is an answer; one of the protocol too, as long as it is
//! known which request it answers.

use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, RenameFlags, open, renameat2};
use nix::sys::stat::Mode;
use nix::sys::statvfs::{FsFlags, Statvfs, fstatvfs, statvfs};

use super::attributes::{self, Wanted};
use super::handles::{Handles, MOST, Open};
use super::wire::{DATA_BYTES, Fields, Malformed, PACKET_BYTES, Replies, kind, malformed};
use crate::account::Accounts;

const VERSION: u32 = 3;
/// What this server has beside version 3, each with its own version.
const EXTENSIONS: [(&str, &str); 6] =
    [(POSIX_RENAME, "1"), (STATVFS, "2"), (FSTATVFS, "2"), (HARDLINK, "1"), (FSYNC, "1"), (LIMITS, "1")];
const POSIX_RENAME: &str = "posix-rename@openssh.com";
const STATVFS: &str = "statvfs@openssh.com";
const FSTATVFS: &str = "fstatvfs@openssh.com";
const HARDLINK: &str = "hardlink@openssh.com";
const FSYNC: &str = "fsync@openssh.com";
const LIMITS: &str = "limits@openssh.com";

/// How many entries of a directory are told at once.
const ENTRIES: usize = 128;

/// Codes of answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Code {
    Ok = 0,
    End = 1,
    NoSuchFile = 2,
    PermissionDenied = 3,
    Failure = 4,
    BadMessage = 5,
    Unsupported = 8,
}

/// An answer that is a code and a text.
struct Status(Code, String);

impl From<io::Error> for Status {
    fn from(error: io::Error) -> Self {
        let code = match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR | libc::EBADF | libc::ELOOP) => Code::NoSuchFile,
            Some(libc::EPERM | libc::EACCES | libc::EFAULT) => Code::PermissionDenied,
            Some(libc::ENAMETOOLONG | libc::EINVAL) => Code::BadMessage,
            Some(libc::ENOSYS) => Code::Unsupported,
            _ => Code::Failure,
        };
        let text = match error.raw_os_error() {
            Some(number) => Errno::from_raw(number).desc().into(),
            None => error.to_string(),
        };
        Self(code, text)
    }
}

impl From<Errno> for Status {
    fn from(error: Errno) -> Self {
        io::Error::from(error).into()
    }
}

impl From<Malformed> for Status {
    fn from(_: Malformed) -> Self {
        Self(Code::BadMessage, "the request is malformed".into())
    }
}

fn no_such_handle() -> Status {
    Status(Code::Failure, "no such handle".into())
}

/// One client's session.
#[derive(Default)]
pub struct Server {
    begun: bool,
    handles: Handles,
}

impl Server {
    /// Answers a packet, which is given without its length. Errors: there is no telling what it is.
    pub fn answer(&mut self, packet: &[u8], replies: &mut Replies) -> io::Result<()> {
        let mut fields = Fields(packet);
        let kind = fields.byte().map_err(|_| malformed("a packet has no type"))?;
        // Of the first packet it is the client's version.
        let id = fields.u32().map_err(|_| malformed("a packet is too short"))?;
        if !self.begun {
            if kind != kind::INIT {
                return Err(malformed("the first packet is no greeting"));
            }
            self.begun = true;
            let mut reply = replies.begin(kind::VERSION, VERSION);
            for (name, version) in EXTENSIONS {
                reply.bytes(name.as_bytes()).bytes(version.as_bytes());
            }
            return Ok(());
        }
        let answered = self.request(kind, id, fields, replies);
        if let Some(Status(code, text)) = answered.err() {
            replies.begin(kind::STATUS, id).u32(code as u32).bytes(text.as_bytes()).bytes(b"");
        }
        Ok(())
    }

    /// Writes the reply, or gives what is to be replied. What is done and has nothing to say is a code, too.
    fn request(
        &mut self,
        kind: u8,
        id: u32,
        mut fields: Fields<'_>,
        replies: &mut Replies,
    ) -> Result<(), Status> {
        let done = || Status(Code::Ok, "success".into());
        match kind {
            kind::OPEN => {
                let (path, flags) = (path(&mut fields)?, fields.u32()?);
                let wanted = Wanted::read(&mut fields)?;
                // Before anything is made.
                self.check_room()?;
                let file = open_file(&path, flags, &wanted)?;
                self.opened(Open::File(file), id, replies)
            }
            kind::OPENDIR => {
                let path = path(&mut fields)?;
                self.check_room()?;
                self.opened(Open::Directory(fs::read_dir(path)?), id, replies)
            }
            kind::CLOSE => {
                if self.handles.close(fields.bytes()?) {
                    Err(done())
                } else {
                    Err(no_such_handle())
                }
            }
            kind::READ => {
                let (file, offset) = (self.file(fields.bytes()?)?, fields.u64()?);
                let length = (fields.u32()? as usize).min(DATA_BYTES);
                match replies.begin(kind::DATA, id).file(file, offset, length)? {
                    0 => Err(Status(Code::End, "end of file".into())),
                    _ => Ok(()),
                }
            }
            kind::WRITE => {
                let (file, offset) = (self.file(fields.bytes()?)?, fields.u64()?);
                file.write_all_at(fields.bytes()?, offset)?;
                Err(done())
            }
            kind::READDIR => self.read_directory(fields.bytes()?, id, replies),
            kind::STAT => told(id, replies, &fs::metadata(path(&mut fields)?)?),
            kind::LSTAT => told(id, replies, &fs::symlink_metadata(path(&mut fields)?)?),
            kind::FSTAT => told(id, replies, &self.file(fields.bytes()?)?.metadata()?),
            kind::SETSTAT => {
                let path = path(&mut fields)?;
                Wanted::read(&mut fields)?.set(&path)?;
                Err(done())
            }
            kind::FSETSTAT => {
                let file = self.file(fields.bytes()?)?;
                Wanted::read(&mut fields)?.set_open(file)?;
                Err(done())
            }
            kind::REMOVE => {
                fs::remove_file(path(&mut fields)?)?;
                Err(done())
            }
            kind::MKDIR => {
                let path = path(&mut fields)?;
                let mode = Wanted::read(&mut fields)?.mode_or(0o777);
                fs::DirBuilder::new().mode(mode).create(path)?;
                Err(done())
            }
            kind::RMDIR => {
                fs::remove_dir(path(&mut fields)?)?;
                Err(done())
            }
            kind::REALPATH => {
                named(id, replies, &real_path(&path(&mut fields)?)?);
                Ok(())
            }
            kind::READLINK => {
                named(id, replies, &fs::read_link(path(&mut fields)?)?);
                Ok(())
            }
            kind::RENAME => {
                let (from, to) = (path(&mut fields)?, path(&mut fields)?);
                // Version 3 never renames over something.
                renameat2(AT_FDCWD, &from, AT_FDCWD, &to, RenameFlags::RENAME_NOREPLACE)?;
                Err(done())
            }
            kind::SYMLINK => {
                // The draft has them the other way round; OpenSSH, and whoever speaks to it, has them so.
                let (target, link) = (path(&mut fields)?, path(&mut fields)?);
                std::os::unix::fs::symlink(target, link)?;
                Err(done())
            }
            kind::EXTENDED => {
                let name = fields.bytes()?;
                self.extended(name, id, fields, replies)
            }
            _ => Err(Status(Code::Unsupported, "there is no such request".into())),
        }
    }

    fn extended(
        &mut self,
        name: &[u8],
        id: u32,
        mut fields: Fields<'_>,
        replies: &mut Replies,
    ) -> Result<(), Status> {
        let done = || Status(Code::Ok, "success".into());
        match std::str::from_utf8(name).unwrap_or_default() {
            POSIX_RENAME => {
                fs::rename(path(&mut fields)?, path(&mut fields)?)?;
                Err(done())
            }
            HARDLINK => {
                fs::hard_link(path(&mut fields)?, path(&mut fields)?)?;
                Err(done())
            }
            FSYNC => {
                self.file(fields.bytes()?)?.sync_all()?;
                Err(done())
            }
            STATVFS => file_system(id, replies, &statvfs(&path(&mut fields)?)?),
            FSTATVFS => file_system(id, replies, &fstatvfs(self.file(fields.bytes()?)?)?),
            LIMITS => {
                let mut reply = replies.begin(kind::EXTENDED_REPLY, id);
                for limit in [PACKET_BYTES, DATA_BYTES, DATA_BYTES, MOST] {
                    reply.u64(limit as u64);
                }
                Ok(())
            }
            _ => Err(Status(Code::Unsupported, "there is no such extension".into())),
        }
    }

    fn check_room(&self) -> Result<(), Status> {
        if self.handles.has_room() {
            return Ok(());
        }
        Err(Status(Code::Failure, format!("{MOST} files and directories are open already")))
    }

    fn opened(&mut self, open: Open, id: u32, replies: &mut Replies) -> Result<(), Status> {
        let handle = self.handles.put(open).ok_or_else(no_such_handle)?;
        replies.begin(kind::HANDLE, id).bytes(&handle);
        Ok(())
    }

    fn file(&mut self, handle: &[u8]) -> Result<&File, Status> {
        match self.handles.find(handle) {
            Some(Open::File(file)) => Ok(file),
            Some(Open::Directory(_)) => Err(Status(Code::Failure, "the handle is a directory's".into())),
            None => Err(no_such_handle()),
        }
    }

    fn read_directory(&mut self, handle: &[u8], id: u32, replies: &mut Replies) -> Result<(), Status> {
        let entries = match self.handles.find(handle) {
            Some(Open::Directory(entries)) => entries,
            Some(Open::File(_)) => return Err(Status(Code::Failure, "the handle is a file's".into())),
            None => return Err(no_such_handle()),
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry?;
            // It may be gone by now.
            if let Ok(metadata) = entry.metadata() {
                found.push((entry.file_name(), metadata));
            }
            if found.len() == ENTRIES {
                break;
            }
        }
        if found.is_empty() {
            return Err(Status(Code::End, "end of directory".into()));
        }
        let accounts = Accounts::load();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let mut reply = replies.begin(kind::NAME, id);
        reply.u32(found.len() as u32);
        for (name, metadata) in found {
            let name = name.as_bytes();
            reply.bytes(name).bytes(&attributes::line(name, &metadata, &accounts, now.as_secs() as i64));
            attributes::write(&mut reply, &metadata);
        }
        Ok(())
    }
}

/// A path as the kernel takes it; an empty one is the directory itself.
fn path(fields: &mut Fields<'_>) -> Result<PathBuf, Status> {
    let bytes = fields.bytes()?;
    let bytes = if bytes.is_empty() { b"." } else { bytes };
    Ok(Path::new(OsStr::from_bytes(bytes)).to_path_buf())
}

fn open_file(path: &Path, flags: u32, wanted: &Wanted) -> Result<File, Status> {
    const READ: u32 = 1;
    const WRITE: u32 = 2;
    let mut how = match (flags & READ != 0, flags & WRITE != 0) {
        (true, true) => OFlag::O_RDWR,
        (false, true) => OFlag::O_WRONLY,
        (_, false) => OFlag::O_RDONLY,
    };
    for (bit, flag) in [(4, OFlag::O_APPEND), (8, OFlag::O_CREAT), (16, OFlag::O_TRUNC), (32, OFlag::O_EXCL)]
    {
        how.set(flag, flags & bit != 0);
    }
    let mode = Mode::from_bits_truncate(wanted.mode_or(0o666));
    Ok(File::from(open(path, how | OFlag::O_CLOEXEC | OFlag::O_NOCTTY, mode)?))
}

fn told(id: u32, replies: &mut Replies, metadata: &Metadata) -> Result<(), Status> {
    attributes::write(&mut replies.begin(kind::ATTRS, id), metadata);
    Ok(())
}

/// One name, of which nothing else is told.
fn named(id: u32, replies: &mut Replies, path: &Path) {
    let name = path.as_os_str().as_bytes();
    let mut reply = replies.begin(kind::NAME, id);
    reply.u32(1).bytes(name).bytes(name);
    attributes::write_none(&mut reply);
}

/// The whole path of what is there, or would be in a directory that is.
fn real_path(path: &Path) -> io::Result<PathBuf> {
    match path.canonicalize() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) => {
                let parent = if parent == Path::new("") { Path::new(".") } else { parent };
                Ok(parent.canonicalize()?.join(name))
            }
            (None, _) | (_, None) => Err(error),
        },
        real => real,
    }
}

/// What `statvfs(3)` says, field by field.
fn file_system(id: u32, replies: &mut Replies, says: &Statvfs) -> Result<(), Status> {
    let flags = [(FsFlags::ST_RDONLY, 1), (FsFlags::ST_NOSUID, 2)];
    let flags = flags.iter().filter(|(flag, _)| says.flags().contains(*flag)).map(|(_, bit)| bit).sum();
    let mut reply = replies.begin(kind::EXTENDED_REPLY, id);
    for field in [
        says.block_size(),
        says.fragment_size(),
        says.blocks(),
        says.blocks_free(),
        says.blocks_available(),
        says.files(),
        says.files_free(),
        says.files_available(),
        says.filesystem_id(),
        flags,
        says.name_max(),
    ] {
        reply.u64(field);
    }
    Ok(())
}
