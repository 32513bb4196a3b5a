//! The lane for bulk data: a second TCP port whose connections carry bytes and nothing else.
//!
//! Under emulation each copy of a byte is paid for, and so is each frame around it: a file of hundreds of
//! megabytes comes three times as fast over a plain connection straight into, or out of, a direct read or
//! write of the disk. The call itself stays gRPC: it names the file, carries a *ticket*, and says when
//! all bytes have been sent. A connection begins with the ticket; one with a ticket that no call waits for
//! is closed. Others than files use lanes too: programs whose streams are outside (`process::piped`) and
//! connections into the machine and out of it (`door`).
//!
//! This module owns the tickets. A file's data is moved by threads that block (`spawn_blocking`), each with
//! one buffer. Deliberately absent: any knowledge of files, beyond that they can be read and written at an
//! offset.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::collections::HashMap;
use std::convert::Infallible;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, TcpStream};
use std::ops::{Deref, DerefMut};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{MsgFlags, recv};
use nullspace_guest_proto::{BULK_LANES, TICKET_BYTES};
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, oneshot, watch};
use tonic::Status;

use crate::console::say;

/// Bytes moved at once.
const PIECE: usize = 1 << 20;
/// What a direct read or write must begin and end at: a page, which no disk asks more than.
const ALIGNMENT: usize = 4096;
/// How long a connection may take to show its ticket, and a call to get its connection.
const PATIENCE: Duration = Duration::from_secs(20);

type Ticket = [u8; TICKET_BYTES];

/// Calls and connections that wait for each other: whichever comes first.
#[derive(Default)]
pub struct Tickets {
    waiting: Mutex<HashMap<Ticket, Waiting>>,
    /// Told when all is forgotten.
    forgotten: watch::Sender<()>,
}

/// Learns that the machine is another one: what was a lane then has no other end any more.
pub struct Over(watch::Receiver<()>);

impl Over {
    /// Resolves when it has come.
    pub async fn come(&mut self) {
        // The sender lives as long as the agent; without it, it is over too.
        let _ = self.0.changed().await;
    }
}

enum Waiting {
    Call(oneshot::Sender<tokio::net::TcpStream>),
    /// Until then.
    Connection(tokio::net::TcpStream, Instant),
}

impl Tickets {
    /// Waits for the connection that shows this ticket, for a thread.
    pub async fn wait(&self, ticket: &[u8]) -> Result<Lane, Status> {
        Lane::of(self.connection(ticket).await?)
    }

    /// Waits for the connection that shows this ticket.
    pub async fn connection(&self, ticket: &[u8]) -> Result<tokio::net::TcpStream, Status> {
        let ticket: Ticket = ticket.try_into().map_err(|_| {
            Status::invalid_argument(format!("a ticket has {TICKET_BYTES} bytes, not {}", ticket.len()))
        })?;
        let come = {
            let mut waiting = self.waiting()?;
            match waiting.remove(&ticket) {
                Some(Waiting::Connection(stream, _)) => return Ok(stream),
                Some(Waiting::Call(_)) => {
                    return Err(Status::invalid_argument("this ticket was used before"));
                }
                None => {
                    let (send, receive) = oneshot::channel();
                    waiting.insert(ticket, Waiting::Call(send));
                    receive
                }
            }
        };
        match tokio::time::timeout(PATIENCE, come).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(_)) | Err(_) => Err(Status::deadline_exceeded("the bulk connection did not come")),
        }
    }

    /// Forgets all that wait, and ends what is under way on lanes: the calls and the connections of a machine
    /// that this one is no more.
    pub fn forget(&self) {
        self.waiting.lock().expect("no holder panics").clear();
        self.forgotten.send_replace(());
    }

    /// For what goes on beside its call.
    pub fn over(&self) -> Over {
        Over(self.forgotten.subscribe())
    }

    /// Brings a connection to its call, or has it wait for it.
    fn arrived(&self, ticket: Ticket, stream: tokio::net::TcpStream) {
        // One too many is closed; its call then learns that it did not come.
        let Ok(mut waiting) = self.waiting() else { return };
        match waiting.remove(&ticket) {
            // A call that was given up in this moment wants it no more.
            Some(Waiting::Call(call)) => drop(call.send(stream)),
            Some(Waiting::Connection(..)) => {}
            None => drop(waiting.insert(ticket, Waiting::Connection(stream, Instant::now() + PATIENCE))),
        }
    }

    /// Those that still wait, if there is room for another.
    fn waiting(&self) -> Result<MutexGuard<'_, HashMap<Ticket, Waiting>>, Status> {
        let mut waiting = self.waiting.lock().expect("no holder panics");
        let now = Instant::now();
        waiting.retain(|_, one| match one {
            Waiting::Call(call) => !call.is_closed(),
            Waiting::Connection(_, until) => *until > now,
        });
        if waiting.len() >= BULK_LANES {
            // Those whose call was refused have been given up by the node.
            waiting.retain(|_, one| match one {
                Waiting::Call(_) => true,
                Waiting::Connection(stream, _) => !is_closed(stream),
            });
        }
        if waiting.len() >= BULK_LANES {
            return Err(Status::resource_exhausted(format!("{BULK_LANES} transfers wait already")));
        }
        Ok(waiting)
    }
}

/// Whether the other side has closed a connection without having sent anything.
fn is_closed(stream: &tokio::net::TcpStream) -> bool {
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    !matches!(recv(stream.as_raw_fd(), &mut [0], flags), Ok(1) | Err(Errno::EAGAIN))
}

/// Accepts connections and gives each to the call that waits for it. Ends only with the agent.
pub async fn serve(
    listener: TcpListener,
    tickets: Arc<Tickets>,
    peer: Option<IpAddr>,
) -> io::Result<Infallible> {
    let places = Arc::new(Semaphore::new(BULK_LANES));
    loop {
        let place = Arc::clone(&places).acquire_owned().await.map_err(|_| io::Error::other("closed"))?;
        match listener.accept().await {
            Ok((mut stream, from)) if peer.is_none_or(|peer| peer == from.ip()) => {
                let tickets = Arc::clone(&tickets);
                tokio::spawn(async move {
                    let mut ticket = [0; TICKET_BYTES];
                    let shown = tokio::time::timeout(PATIENCE, stream.read_exact(&mut ticket)).await;
                    if let Ok(Ok(_)) = shown {
                        tickets.arrived(ticket, stream);
                    }
                    drop(place);
                });
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            // Descriptors or memory are used up; what frees them cannot be waited for.
            Err(error) => {
                say!("no bulk connection could be taken: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// A bulk connection that belongs to a call. When it is dropped the connection is closed, which ends a
/// thread that still moves data over it.
pub struct Lane(TcpStream);

impl Lane {
    /// A connection that a thread, or a program, can wait for.
    pub fn of(stream: tokio::net::TcpStream) -> Result<Self, Status> {
        let blocking = stream.into_std().and_then(|stream| stream.set_nonblocking(false).map(|()| stream));
        blocking.map(Self).map_err(unusable)
    }

    /// The same connection for a thread, or a program.
    pub fn handle(&self) -> Result<TcpStream, Status> {
        self.0.try_clone().map_err(unusable)
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        // An error means that it is closed already.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

fn unusable(error: io::Error) -> Status {
    Status::internal(format!("the bulk connection cannot be used: {error}"))
}

/// Why bytes could not be moved.
#[derive(Debug)]
pub enum Failure {
    /// The connection broke.
    Connection(io::Error),
    /// The file could not be read or written.
    File(io::Error),
}

/// Writes what comes to the file, from `offset` on, until the other side ends or `most` bytes have come;
/// answers how many. Blocks.
pub fn receive(mut from: &TcpStream, to: &File, offset: u64, most: u64) -> Result<u64, Failure> {
    let mut buffer = Buffer::new();
    let direct = Direct::on(to, offset);
    let mut received = 0;
    while received < most {
        let want = (PIECE as u64).min(most - received) as usize;
        let filled = fill(&mut from, &mut buffer[..want]).map_err(Failure::Connection)?;
        if !filled.is_multiple_of(ALIGNMENT) {
            // The last piece: what does not fill a page goes the ordinary way.
            direct.off();
        }
        to.write_all_at(&buffer[..filled], offset + received).map_err(Failure::File)?;
        received += filled as u64;
        if filled < want {
            break;
        }
    }
    Ok(received)
}

/// Sends the file from `offset` on, at most `most` bytes; answers how many. Blocks.
pub fn send(mut to: &TcpStream, from: &File, offset: u64, most: u64) -> Result<u64, Failure> {
    let mut buffer = Buffer::new();
    let direct = Direct::on(from, offset);
    let mut sent = 0;
    while sent < most {
        let filled = match read_at(from, &mut buffer, offset + sent) {
            // A file that cannot be read that way after all.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                direct.off();
                read_at(from, &mut buffer, offset + sent).map_err(Failure::File)?
            }
            filled => filled.map_err(Failure::File)?,
        };
        let len = (filled as u64).min(most - sent) as usize;
        to.write_all(&buffer[..len]).map_err(Failure::Connection)?;
        sent += len as u64;
        if filled < PIECE {
            break;
        }
    }
    Ok(sent)
}

/// Reads until the buffer is full or the stream ends.
fn fill(from: &mut &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match from.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(len) => filled += len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Reads at an offset until the buffer is full or the file ends. A direct read that comes short is at the
/// end of the file: the next one would begin off the page and is not made.
fn read_at(from: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match from.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(len) => filled += len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if !filled.is_multiple_of(ALIGNMENT) {
            break;
        }
    }
    Ok(filled)
}

/// Direct access to a file as long as this lives, where its file system has that and the offset allows it.
struct Direct<'a>(&'a File);

impl<'a> Direct<'a> {
    fn on(file: &'a File, offset: u64) -> Self {
        if offset.is_multiple_of(ALIGNMENT as u64) {
            set_direct(file, true);
        }
        Self(file)
    }

    fn off(&self) {
        set_direct(self.0, false);
    }
}

impl Drop for Direct<'_> {
    fn drop(&mut self) {
        self.off();
    }
}

/// A file system that does not have it says so, and the file is used as it is: only slower.
fn set_direct(file: &File, direct: bool) {
    if let Ok(flags) = fcntl(file, FcntlArg::F_GETFL) {
        let mut flags = OFlag::from_bits_retain(flags);
        flags.set(OFlag::O_DIRECT, direct);
        let _ = fcntl(file, FcntlArg::F_SETFL(flags));
    }
}

/// A buffer of [`PIECE`] bytes at the beginning of a page.
struct Buffer(NonNull<u8>);

impl Buffer {
    const LAYOUT: Layout = match Layout::from_size_align(PIECE, ALIGNMENT) {
        Ok(layout) => layout,
        Err(_) => panic!("a power of two"),
    };

    #[allow(unsafe_code)]
    fn new() -> Self {
        // SAFETY: the layout's size is not zero.
        let memory = unsafe { alloc_zeroed(Self::LAYOUT) };
        Self(NonNull::new(memory).unwrap_or_else(|| handle_alloc_error(Self::LAYOUT)))
    }
}

impl Deref for Buffer {
    type Target = [u8];

    #[allow(unsafe_code)]
    fn deref(&self) -> &[u8] {
        // SAFETY: `new` made so many initialised bytes, which are this buffer's alone.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr(), PIECE) }
    }
}

impl DerefMut for Buffer {
    #[allow(unsafe_code)]
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and it is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_ptr(), PIECE) }
    }
}

impl Drop for Buffer {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        // SAFETY: made by `alloc_zeroed` with this layout, and dropped once.
        unsafe { dealloc(self.0.as_ptr(), Self::LAYOUT) }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (one, listener.accept().unwrap().0)
    }

    #[test]
    fn bytes_come_and_go_whole_at_every_length_and_offset() {
        let directory = tempfile::tempdir().unwrap();
        for (offset, length) in
            [(0, 0), (0, 1), (0, 4096), (0, PIECE), (4096, 3 * PIECE + 17), (5, 2 * PIECE)]
        {
            let data: Vec<u8> = (0..length).map(|n| (n % 251) as u8).collect();
            let file = tempfile::tempfile_in(&directory).unwrap();
            let (ours, theirs) = pair();
            let sending = data.clone();
            let sender = std::thread::spawn(move || (&theirs).write_all(&sending).map(|()| drop(theirs)));
            assert_eq!(receive(&ours, &file, offset, u64::MAX).unwrap(), length as u64);
            sender.join().unwrap().unwrap();

            let (ours, theirs) = pair();
            let reader = std::thread::spawn(move || {
                let mut all = Vec::new();
                (&theirs).read_to_end(&mut all).map(|_| all)
            });
            assert_eq!(send(&ours, &file, offset, u64::MAX).unwrap(), length as u64);
            drop(ours);
            assert_eq!(reader.join().unwrap().unwrap(), data);
        }
    }
}
