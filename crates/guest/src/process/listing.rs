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
    for pid in numbers() {
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
    let stat = Stat::read(pid)?;
    if stat.flags & KERNEL_THREAD != 0 {
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
        return Some(format!("[{}]", stat.name));
    }
    for byte in &mut line {
        if *byte == 0 {
            *byte = b' ';
        }
    }
    Some(String::from_utf8_lossy(&line).into_owned())
}

/// Whether a process leads its group, to which a kill of it then goes; none for one that is gone.
pub fn leads_group(pid: u32) -> Option<bool> {
    Stat::read(pid).map(|stat| stat.group == pid)
}

/// The processes of a session.
pub fn session(leader: u32) -> Vec<u32> {
    numbers().filter(|pid| Stat::read(*pid).is_some_and(|stat| stat.session == leader)).collect()
}

/// All numbers that `/proc` shows.
fn numbers() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// What the kernel says of a process that is there and no zombie.
struct Stat {
    name: String,
    group: u32,
    session: u32,
    flags: u64,
}

impl Stat {
    fn read(pid: u32) -> Option<Self> {
        let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
        Self::parse(&String::from_utf8_lossy(&stat))
    }

    /// A line of `proc_pid_stat(5)`. The name may have anything in it, also brackets.
    fn parse(stat: &str) -> Option<Self> {
        let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
        let mut fields = rest.split_ascii_whitespace();
        if matches!(fields.next()?, "Z" | "X") {
            return None;
        }
        let group = fields.nth(1)?.parse().ok()?;
        let session = fields.next()?.parse().ok()?;
        let flags = fields.nth(2)?.parse().ok()?;
        Some(Self { name: name.into(), group, session, flags })
    }
}

fn shorten(command: &str) -> String {
    let mut end = command.len().min(COMMAND_BYTES);
    while !command.is_char_boundary(end) {
        end -= 1;
    }
    command[..end].into()
}

#[cfg(test)]
mod tests {
    use super::Stat;

    #[test]
    fn the_kernels_line_is_read_whatever_the_name() {
        let stat = Stat::parse("42 (a) S (b) R 1 40 39 34816 42 4194560 9 9").unwrap();
        assert_eq!(
            (stat.name.as_str(), stat.group, stat.session, stat.flags),
            ("a) S (b", 40, 39, 4_194_560)
        );
        assert!(Stat::parse("42 (gone) Z 1 40 39 34816 42 4194560 9 9").is_none());
        assert!(Stat::parse("42 (short) S 1").is_none());
    }
}
