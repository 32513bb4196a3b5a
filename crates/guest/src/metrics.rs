//! What the machine uses now, from `/proc` and the root file system.

use std::fs;
use std::io;
use std::sync::Mutex;

use nullspace_guest_proto as pb;

/// Remembers the processors' times of the call before.
#[derive(Default)]
pub struct Metrics {
    before: Mutex<Times>,
}

/// Ticks since boot, of all processors together.
#[derive(Clone, Copy, Default, PartialEq, Debug)]
struct Times {
    busy: u64,
    all: u64,
}

impl Metrics {
    /// Reads everything. Errors: `/proc` or the root file system cannot be read.
    pub fn read(&self) -> io::Result<pb::MetricsReply> {
        let stat = fs::read_to_string("/proc/stat")?;
        let (times, cpu_count) = parse_stat(&stat);
        let before = std::mem::replace(&mut *self.before.lock().expect("no holder panics"), times);
        let memory = fs::read_to_string("/proc/meminfo")?;
        let total = parse_meminfo(&memory, "MemTotal:");
        let disk = nix::sys::statvfs::statvfs("/")?;
        let (network_rx_bytes, network_tx_bytes) = parse_net(&fs::read_to_string("/proc/net/dev")?);
        Ok(pb::MetricsReply {
            cpu_percent: percent(before, times),
            cpu_count,
            mem_used_bytes: total.saturating_sub(parse_meminfo(&memory, "MemAvailable:")),
            mem_total_bytes: total,
            disk_used_bytes: (disk.blocks() - disk.blocks_free()) * disk.fragment_size(),
            disk_total_bytes: disk.blocks() * disk.fragment_size(),
            network_rx_bytes,
            network_tx_bytes,
        })
    }
}

fn percent(before: Times, now: Times) -> f64 {
    let all = now.all.saturating_sub(before.all);
    if all == 0 {
        return 0.0;
    }
    now.busy.saturating_sub(before.busy) as f64 * 100.0 / all as f64
}

/// The times, and the number of processors.
fn parse_stat(text: &str) -> (Times, u32) {
    let mut times = Times::default();
    let mut count = 0;
    for line in text.lines() {
        let Some(rest) = line.strip_prefix("cpu") else { continue };
        if !rest.starts_with(' ') {
            count += 1;
            continue;
        }
        // user nice system idle iowait irq softirq steal; guest time is in user already.
        for (index, ticks) in rest.split_ascii_whitespace().take(8).enumerate() {
            let ticks: u64 = ticks.parse().unwrap_or(0);
            times.all += ticks;
            if !matches!(index, 3 | 4) {
                times.busy += ticks;
            }
        }
    }
    (times, count)
}

/// A line of `/proc/meminfo`, in bytes.
fn parse_meminfo(text: &str, name: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.split_ascii_whitespace().next()?.parse::<u64>().ok())
        .unwrap_or(0)
        * 1024
}

/// Bytes received and sent by all devices but the loopback.
fn parse_net(text: &str) -> (u64, u64) {
    let mut sum = (0, 0);
    for line in text.lines() {
        let Some((name, counters)) = line.split_once(':') else { continue };
        if name.trim() == "lo" {
            continue;
        }
        let mut counters = counters.split_ascii_whitespace().map(|n| n.parse::<u64>().unwrap_or(0));
        sum.0 += counters.next().unwrap_or(0);
        sum.1 += counters.nth(7).unwrap_or(0);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_tables_are_read() {
        let (times, count) =
            parse_stat("cpu  100 5 20 800 50 3 2 20 7 0\ncpu0 50 0 0 0\ncpu1 50 0 0 0\nintr 1 2 3\nctxt 9\n");
        assert_eq!((times, count), (Times { busy: 150, all: 1000 }, 2));
        assert_eq!(parse_meminfo("MemTotal:  251264 kB\nMemFree: 1 kB\n", "MemTotal:"), 251264 * 1024);
        assert_eq!(
            parse_net(
                "Inter-| Receive\n face |bytes\n  lo: 9 9 0 0 0 0 0 0 9 9\neth0:1234 5 0 0 0 0 0 0 88 2 0\n"
            ),
            (1234, 88)
        );
    }

    #[test]
    fn use_is_counted_between_two_calls() {
        let before = Times { busy: 100, all: 1000 };
        assert_eq!(percent(before, Times { busy: 150, all: 1200 }), 25.0);
        assert_eq!(percent(before, before), 0.0);
    }
}
