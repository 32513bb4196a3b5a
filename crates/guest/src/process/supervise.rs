//! The task of one process: drains its pipes into the record, kills it at its time limit, and says
//! when it has ended.
//!
//! The end is said when the process is gone and the pipes hold nothing more, not when they are
//! closed: a descendant in the background may keep them open for as long as it likes. What such a
//! descendant writes later is recorded too, and so the task lives until the pipes are closed.
//!
//! While a follower that the process waits for is too far behind (`pace`), nothing is read from the pipes;
//! the end and the time limit are seen all the same.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;

use super::output::{Channel, Plan};
use super::table::Table;
use super::{Process, wake};

/// A pipe's default capacity, so one read empties it.
const READ_BYTES: usize = 64 << 10;

/// What is taken from each pipe after the process has ended and before that is said: more than any
/// pipe holds, so that what the process wrote is there, and no more, so that a descendant that writes
/// without end does not hold it up.
const DRAIN_BYTES: usize = 1 << 20;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BYTES]);
}

/// The ends of the two pipes, where output is recorded, and the news of the exit.
pub struct Ends {
    pub stdout: Option<AsyncFd<OwnedFd>>,
    pub stderr: Option<AsyncFd<OwnedFd>>,
    pub exit: oneshot::Receiver<i32>,
}

/// Runs until the process has ended and both pipes are closed.
pub async fn supervise(table: Arc<Table>, process: Arc<Process>, ends: Ends, timeout: Option<Duration>) {
    let Ends { stdout, stderr, mut exit } = ends;
    let mut pipes = [stdout, stderr];
    let mut running = true;
    let mut timed_out = false;
    let deadline = async {
        match timeout {
            Some(timeout) => tokio::time::sleep(timeout).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(deadline);
    while running || pipes.iter().any(Option::is_some) {
        let held = process.state().pace.holds();
        tokio::select! {
            biased;
            code = &mut exit, if running => {
                running = false;
                for channel in [Channel::Stdout, Channel::Stderr] {
                    drain(&table, &process, &mut pipes, channel).await;
                }
                // The reaper lives as long as the agent; without it there is no status to tell.
                process.finish(code.unwrap_or(-1), timed_out, table.directory());
                table.process_ended();
            }
            () = &mut deadline, if running && !timed_out => {
                timed_out = true;
                process.kill();
            }
            () = process.moved.notified(), if held => {}
            () = readable(&pipes[0]), if pipes[0].is_some() && !held => {
                take(&table, &process, &mut pipes, Channel::Stdout).await;
                // A flood on one stream must not hide the other.
                take(&table, &process, &mut pipes, Channel::Stderr).await;
            }
            () = readable(&pipes[1]), if pipes[1].is_some() && !held => {
                take(&table, &process, &mut pipes, Channel::Stderr).await;
            }
        }
        if !running {
            table.enforce_bounds(&process);
        }
    }
}

/// Ready when the pipe may have something, an error included, which the read then finds.
async fn readable(pipe: &Option<AsyncFd<OwnedFd>>) {
    match pipe {
        Some(pipe) => {
            if let Ok(mut ready) = pipe.readable().await {
                ready.retain_ready();
            }
        }
        None => std::future::pending().await,
    }
}

/// Reads once where the pipe is ready, and records it.
async fn take(table: &Table, process: &Process, pipes: &mut [Option<AsyncFd<OwnedFd>>; 2], channel: Channel) {
    let slot = &mut pipes[channel as usize];
    let Some(pipe) = slot.as_ref() else { return };
    let read = pipe.try_io(tokio::io::Interest::READABLE, |pipe| read(table, process, channel, pipe));
    finish_read(table, process, slot, channel, read).await;
}

/// Reads what is there, whatever the event loop knows about it yet.
async fn drain(
    table: &Table,
    process: &Process,
    pipes: &mut [Option<AsyncFd<OwnedFd>>; 2],
    channel: Channel,
) {
    let slot = &mut pipes[channel as usize];
    let mut drained = 0;
    while drained < DRAIN_BYTES
        && let Some(pipe) = slot.as_ref()
    {
        let read = read(table, process, channel, pipe.get_ref());
        let Some(len) = finish_read(table, process, slot, channel, read).await else { break };
        drained += len;
    }
}

/// One read: recorded at once where that cannot block, else returned to be written first.
fn read(table: &Table, process: &Process, channel: Channel, pipe: &OwnedFd) -> io::Result<Read> {
    BUFFER.with_borrow_mut(|buffer| {
        let len = loop {
            match nix::unistd::read(pipe.as_fd(), buffer) {
                Err(nix::errno::Errno::EINTR) => {}
                other => break other?,
            }
        };
        if len == 0 {
            return Ok(Read::End);
        }
        let data = &buffer[..len];
        let mut state = process.state();
        match state.output.plan(channel, len, table.directory()) {
            Plan::Commit => state.commit(channel, data, table.directory()),
            Plan::LeaveOut => state.leave_out(channel, data),
            Plan::Write(place) => return Ok(Read::Write(place, Bytes::copy_from_slice(data))),
        }
        wake(state);
        Ok(Read::Recorded(len))
    })
}

enum Read {
    End,
    Recorded(usize),
    Write(super::store::Reserved, Bytes),
}

/// The number of bytes that were recorded; none at the end of the pipe or when it is empty now.
async fn finish_read(
    table: &Table,
    process: &Process,
    slot: &mut Option<AsyncFd<OwnedFd>>,
    channel: Channel,
    read: io::Result<Read>,
) -> Option<usize> {
    match read {
        Ok(Read::Recorded(len)) => Some(len),
        Ok(Read::Write(place, data)) => {
            // The disk may hold a writer back; only this process is to feel that.
            let bytes = data.clone();
            let written = tokio::task::spawn_blocking(move || place.write(&bytes)).await;
            let mut state = process.state();
            match written {
                Ok(Ok(())) => state.commit(channel, &data, table.directory()),
                _ => state.leave_out(channel, &data),
            }
            wake(state);
            Some(data.len())
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
        Ok(Read::End) | Err(_) => {
            *slot = None;
            None
        }
    }
}
