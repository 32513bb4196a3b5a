//! A host of the test's own: everything, the "host" included, is in namespaces made here, and
//! nothing is ever sent outside.

// Each test program uses a part of it.
#![allow(dead_code)]

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::sched::CloneFlags;
use nullspace_net::{Config, LinkConfig, MacAddress, Slot};

/// How long is waited for what must come.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// What the host is reached by from the "internet".
pub const HOST: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// A server on the "internet".
pub const SERVER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
/// Another.
pub const OTHER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
/// A private address behind the "internet" that the operator allows.
pub const ALLOWED: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 1);
/// The metadata service of a cloud, there too.
pub const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// The resolver, there too.
pub const RESOLVER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 53);

pub fn link() -> LinkConfig {
    LinkConfig {
        guest: [10, 200, 0, 2].into(),
        gateway: [10, 200, 0, 1].into(),
        prefix: 30,
        guest_mac: MacAddress([2, 0, 0, 0, 0, 2]),
        gateway_mac: MacAddress([2, 0, 0, 0, 0, 1]),
    }
}

/// Settings for an instance that no other test has.
pub fn config(name: &str) -> Config {
    let instance = format!("t{}{name}", std::process::id());
    let mut config = Config::new(instance, link());
    (config.ready, config.max) = (0, 8);
    config.resolvers = vec![RESOLVER.into()];
    config.allow = vec!["192.168.77.0/24".parse().unwrap()];
    config
}

/// Runs `test` in a namespace of its own that it takes for the host's. What it leaves is removed.
pub fn on_a_host(instance: &str, test: impl FnOnce() + Send) {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIP: network namespaces need root");
        return;
    }
    let _swept = Swept(instance.to_owned());
    thread::scope(|scope| {
        let run = scope.spawn(|| {
            nix::sched::unshare(CloneFlags::CLONE_NEWNET).unwrap();
            ip("link set dev lo up\n");
            test();
        });
        if let Err(panic) = run.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// A runtime whose threads are in the calling thread's namespace.
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

struct Swept(String);

impl Drop for Swept {
    fn drop(&mut self) {
        for name in names(&self.0) {
            let _ = Command::new("ip").args(["netns", "del", &name]).status();
        }
        for index in claims(&self.0) {
            let _ = std::fs::remove_file(format!("/run/nullspace/slots/{index}"));
        }
    }
}

/// The instance's namespaces.
pub fn names(instance: &str) -> Vec<String> {
    let prefix = format!("nullspace-{instance}-");
    let Ok(entries) = std::fs::read_dir("/run/netns") else { return Vec::new() };
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with(&prefix)).collect()
}

/// The instance's claims.
pub fn claims(instance: &str) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir("/run/nullspace/slots") else { return Vec::new() };
    let mine = |path: &Path| std::fs::read_to_string(path).is_ok_and(|text| text.trim() == instance);
    let paths = entries.map(|entry| entry.unwrap().path()).filter(|path| mine(path));
    paths.map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect()
}

/// Links and firewall of the calling thread's namespace.
pub fn state() -> (String, String) {
    (output("ip", &["-o", "link"]), output("nft", &["list", "ruleset"]))
}

pub fn output(tool: &str, args: &[&str]) -> String {
    let output = Command::new(tool).args(args).output().unwrap();
    assert!(output.status.success(), "{tool} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// `ip -batch` in the calling thread's namespace.
pub fn ip(script: &str) {
    let mut child = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{script}");
}

/// A namespace; it ends with this.
pub struct Place(File);

impl Place {
    pub fn new() -> Self {
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    nix::sched::unshare(CloneFlags::CLONE_NEWNET).unwrap();
                    ip("link set dev lo up\n");
                    Self(File::open("/proc/thread-self/ns/net").unwrap())
                })
                .join()
                .unwrap()
        })
    }

    pub fn of(slot: &Slot) -> Self {
        Self(File::open(slot.netns_path()).unwrap())
    }

    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                nix::sched::setns(self.0.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// Whether a TCP connection from here can be opened. Only to be asked where it must not be: the
    /// answer no takes as long as a silent drop is waited for.
    pub fn reaches(&self, to: impl Into<SocketAddr>) -> bool {
        self.try_connect(to.into(), Duration::from_millis(400)).is_ok()
    }

    /// Connects to where it must be possible.
    pub fn connect(&self, to: impl Into<SocketAddr>) -> TcpStream {
        let to = to.into();
        let stream = self.try_connect(to, PATIENCE).unwrap_or_else(|error| panic!("{to}: {error}"));
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    fn try_connect(&self, to: SocketAddr, patience: Duration) -> std::io::Result<TcpStream> {
        self.enter(|| TcpStream::connect_timeout(&to, patience))
    }

    /// A UDP socket here.
    pub fn udp(&self, at: impl Into<SocketAddr>) -> UdpSocket {
        let at = at.into();
        let socket = self.enter(|| UdpSocket::bind(at).unwrap());
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }

    /// A server that accepts whatever comes, for as long as the test runs, and writes back whom it saw.
    pub fn serve(&self, at: impl Into<SocketAddr>) {
        let at = at.into();
        let listener = self.enter(|| TcpListener::bind(at).unwrap());
        serve(listener);
    }
}

pub fn serve(listener: TcpListener) {
    thread::spawn(move || {
        let mut open = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let peer = stream.peer_addr().unwrap().ip().to_string();
            if writeln!(stream, "{peer}").is_ok() {
                open.push(stream);
            }
        }
    });
}

/// A resolver on the "internet", over UDP and TCP, for as long as the test runs: it knows the addresses of
/// these names, and that no others exist.
pub fn resolver(internet: &Place, names: &'static [(&'static str, Ipv4Addr)]) {
    let udp = internet.udp((RESOLVER, 53));
    udp.set_read_timeout(None).unwrap();
    let tcp = internet.enter(|| TcpListener::bind((RESOLVER, 53)).unwrap());
    thread::spawn(move || {
        let mut buffer = [0; 1500];
        while let Ok((length, from)) = udp.recv_from(&mut buffer) {
            udp.send_to(&answer(names, &buffer[..length]), from).unwrap();
        }
    });
    thread::spawn(move || {
        for stream in tcp.incoming() {
            let mut stream = stream.unwrap();
            let mut length = [0; 2];
            while stream.read_exact(&mut length).is_ok() {
                let mut query = vec![0; u16::from_be_bytes(length).into()];
                stream.read_exact(&mut query).unwrap();
                let answer = answer(names, &query);
                stream.write_all(&u16::try_from(answer.len()).unwrap().to_be_bytes()).unwrap();
                stream.write_all(&answer).unwrap();
            }
        }
    });
}

fn answer(names: &[(&str, Ipv4Addr)], query: &[u8]) -> Vec<u8> {
    let mut answer = query.to_vec();
    let found = names.iter().find(|(name, _)| query[12..].starts_with(&encoded(name)));
    (answer[2], answer[3]) = (0x81, if found.is_some() { 0 } else { 3 });
    if let Some((_, address)) = found {
        answer[7] = 1;
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        answer.extend(address.octets());
    }
    answer
}

fn encoded(name: &str) -> Vec<u8> {
    let labels =
        name.split('.').flat_map(|label| [&[u8::try_from(label.len()).unwrap()], label.as_bytes()].concat());
    labels.chain([0]).collect()
}

/// A query for the addresses of a name.
pub fn query(name: &str) -> Vec<u8> {
    [&[7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], &encoded(name), &[0, 1, 0, 1]].concat()
}

/// The "internet", linked to the calling thread's namespace.
pub fn internet() -> Place {
    let place = Place::new();
    ip(&format!(
        "link add name wan0 type veth peer name wan0 netns {}\n\
         addr add 198.51.100.1/24 dev wan0\n\
         link set dev wan0 up\n\
         route add default via 198.51.100.2\n",
        // The other end has the same name in its own namespace.
        place.path()
    ));
    place.enter(|| {
        let addresses = [SERVER, OTHER, ALLOWED, METADATA, RESOLVER]
            .map(|a| format!("addr add {}/32 dev lo\n", a))
            .concat();
        // It knows the way to everything here: only rules may keep it out.
        ip(&format!(
            "addr add 198.51.100.2/24 dev wan0\nlink set dev wan0 up\n{addresses}route add default via 198.51.100.1\n"
        ));
    });
    place
}

/// A stand-in for the machine: the slot's tap is replaced by a pair, its other end in a namespace.
pub fn guest(slot: &Slot) -> Place {
    let place = Place::new();
    Place::of(slot).enter(|| {
        ip(&format!(
            "link del dev tap0\n\
             link add name tap0 address 02:00:00:00:00:01 type veth peer name eth0 address 02:00:00:00:00:02 netns {}\n\
             addr add 10.200.0.1/30 dev tap0\n\
             link set dev tap0 up\n\
             neigh replace 10.200.0.2 lladdr 02:00:00:00:00:02 dev tap0 nud permanent\n",
            place.path()
        ));
    });
    place.enter(|| {
        ip("addr add 10.200.0.2/30 dev eth0\nlink set dev eth0 up\nroute add default via 10.200.0.1\n");
    });
    place
}
