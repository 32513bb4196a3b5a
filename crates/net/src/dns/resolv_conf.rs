//! Which resolvers the host uses: those configured, or those of `/etc/resolv.conf`, read again when
//! it changes.

use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use fs_err as fs;
use tokio::sync::{Semaphore, SemaphorePermit};

/// Where the host says it.
pub const PATH: &str = "/etc/resolv.conf";
/// How often the file is looked at, at most.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Each takes a socket of this process.
const QUERIES: usize = 2048;
/// As many as the system's own resolver takes.
const MOST: usize = 3;

/// The resolvers to ask, in order.
#[derive(Debug)]
pub(crate) struct Resolvers {
    configured: Vec<SocketAddr>,
    read: Mutex<Option<Read>>,
    /// Queries of all slots that are asked at a time.
    asking: Semaphore,
}

#[derive(Debug, Clone)]
struct Read {
    looked_at: Instant,
    modified: Option<SystemTime>,
    servers: Vec<SocketAddr>,
}

impl Resolvers {
    pub(crate) fn new(configured: &[IpAddr]) -> Self {
        Self::at(configured.iter().map(|&address| SocketAddr::from((address, 53))).collect())
    }

    pub(super) fn at(configured: Vec<SocketAddr>) -> Self {
        Self { configured, read: Mutex::new(None), asking: Semaphore::new(QUERIES) }
    }

    /// Leave to ask, while it is held; `None` when too much is asked already.
    pub(super) fn admit(&self) -> Option<SemaphorePermit<'_>> {
        self.asking.try_acquire().ok()
    }

    /// Those to ask now. None, if the host has none.
    pub(super) async fn current(self: &Arc<Self>) -> Vec<SocketAddr> {
        if !self.configured.is_empty() {
            return self.configured.clone();
        }
        let lock = || self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let known = lock().clone();
        if let Some(read) = &known
            && read.looked_at.elapsed() < LOOK_EVERY
        {
            return read.servers.clone();
        }
        let last = known.clone();
        let looked = tokio::task::spawn_blocking(move || look(last)).await;
        match looked {
            Ok(Ok(read)) => {
                *lock() = Some(read.clone());
                read.servers
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "cannot read the host's resolvers: machines keep using the last known");
                known.map(|read| read.servers).unwrap_or_default()
            }
            // The runtime is shutting down.
            Err(_) => Vec::new(),
        }
    }
}

fn look(last: Option<Read>) -> io::Result<Read> {
    let looked_at = Instant::now();
    let modified = fs::metadata(PATH)?.modified().ok();
    match last {
        Some(last) if last.modified == modified && modified.is_some() => Ok(Read { looked_at, ..last }),
        _ => Ok(Read { looked_at, modified, servers: read(Path::new(PATH))? }),
    }
}

/// The resolvers that a file in the format of resolv.conf(5) names. Blocks.
pub fn read(path: &Path) -> io::Result<Vec<SocketAddr>> {
    Ok(parse(&fs::read_to_string(path)?))
}

fn parse(text: &str) -> Vec<SocketAddr> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            (words.next()? == "nameserver").then_some(())?;
            address(words.next()?)
        })
        .take(MOST)
        .collect()
}

/// An address, with the link after `%` where an IPv6 one needs it.
fn address(text: &str) -> Option<SocketAddr> {
    let Some((address, zone)) = text.split_once('%') else {
        return Some(SocketAddr::from((text.parse::<IpAddr>().ok()?, 53)));
    };
    let scope = zone.parse().ok().or_else(|| nix::net::if_::if_nametoindex(zone).ok())?;
    Some(SocketAddrV6::new(address.parse().ok()?, 53, 0, scope).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_three_nameservers_that_can_be_read_are_used() {
        let text = "# nameserver 192.0.2.1\nsearch test\nnameserver 192.0.2.2 # first\nnameserver nonsense\n\
                    nameserver 2001:db8::1\nnameserver fe80::1%7\nnameserver 192.0.2.3\noptions edns0\n";
        let expected = ["192.0.2.2:53", "[2001:db8::1]:53", "[fe80::1%7]:53"];
        assert_eq!(parse(text), expected.map(|text| text.parse().unwrap()));
    }
}
