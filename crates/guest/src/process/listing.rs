//! All processes of the machine: those of the API, and those that were started inside.
//!
//! Kernel threads, zombies and the agent itself are left out. What `/proc` shows is at the mercy of
//! the programs inside, so lengths are bounded.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;

use nullspace_guest_proto as pb;

use super::table::Table;

/// Bytes of a command line that are shown.
const COMMAND_BYTES: usize = 4096;
/// Bytes of all command lines together, so that the answer fits into a message.
const ALL_BYTES: usize = pb::MESSAGE_LIMIT / 2;
/// Processes that are shown.
const PROCESSES: usize = 32 << 10;

/// `PF_KTHREAD` of the kernel's process flags.
const KERNEL_THREAD: u64 = 0x0020_0000;

/// The list, by process ID. May block, where a program's memory cannot be read at once.
pub fn list(table: &Table) -> Vec<pb::Process> {
    let mut all: BTreeMap<u32, pb::Process> = table
        .all()
        .into_iter()
        .map(|process| {
            let exit = process.exit();
            let entry = pb::Process {
                pid: process.pid,
                command: shorten(&process.command),
                running: exit.is_none(),
                has_exit_code: exit.is_some(),
                exit_code: exit.map_or(0, |exit| exit.code),
                from_api: true,
            };
            (process.pid, entry)
        })
        .collect();
    let myself = std::process::id();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if pid == myself || all.get(&pid).is_some_and(|known| known.running) {
            continue;
        }
        // A number that is in use again is no longer that of the process that ended.
        if let Some(command) = command_of(pid) {
            all.insert(pid, pb::Process { pid, command, running: true, ..Default::default() });
        }
    }
    let mut left = ALL_BYTES;
    all.into_values()
        .take(PROCESSES)
        .map(|mut process| {
            if process.command.len() > left {
                process.command.clear();
            }
            left -= process.command.len();
            process
        })
        .collect()
}

/// The command line of a process with a program; none for others, and for those that are gone.
fn command_of(pid: u32) -> Option<String> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat);
    let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?;
    let flags: u64 = fields.nth(5)?.parse().ok()?;
    if flags & KERNEL_THREAD != 0 || matches!(state, "Z" | "X") {
        return None;
    }
    let mut line = Vec::new();
    fs::File::open(format!("/proc/{pid}/cmdline"))
        .ok()?
        .take(COMMAND_BYTES as u64)
        .read_to_end(&mut line)
        .ok()?;
    while line.last() == Some(&0) {
        line.pop();
    }
    if line.is_empty() {
        return Some(format!("[{name}]"));
    }
    for byte in &mut line {
        if *byte == 0 {
            *byte = b' ';
        }
    }
    Some(String::from_utf8_lossy(&line).into_owned())
}

/// The process group to which a kill of `pid` goes: its own if it leads one, else none.
pub fn leads_group(pid: u32) -> Option<bool> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat);
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    let group: u32 = fields.nth(1)?.parse().ok()?;
    (!matches!(state, "Z" | "X")).then_some(group == pid)
}

fn shorten(command: &str) -> String {
    let mut end = command.len().min(COMMAND_BYTES);
    while !command.is_char_boundary(end) {
        end -= 1;
    }
    command[..end].into()
}
