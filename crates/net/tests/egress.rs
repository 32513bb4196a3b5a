//! What a machine may reach, with packets from a machine's place against servers on a test's own "internet".
//! Needs root, `ip` and `nft`.
#![allow(clippy::print_stderr, missing_docs)]

mod host;

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use host::{ALLOWED, HOST, METADATA, OTHER, PATIENCE, Place, RESOLVER, SERVER};
use nullspace_net::{Config, Enforced, Range, Slot, SlotPool};
use nullspace_types::network::{
    Denial, DeniedProtocol, DenyReason, DomainPattern, EgressLimits, EgressPolicy, Injection,
};
use tokio::runtime::Runtime;

const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 1);
const NAMES: &[(&str, Ipv4Addr)] =
    &[("good.test", SERVER), ("second.test", SERVER), ("sub.good.test", OTHER), ("evil.test", OTHER)];

/// A slot with a machine's place in it, on an internet with a resolver.
struct World {
    runtime: Runtime,
    pool: SlotPool,
    slot: Slot,
    internet: Place,
    guest: Place,
}

impl World {
    fn new(config: &Config) -> Self {
        let internet = host::internet();
        host::resolver(&internet, NAMES);
        let runtime = host::runtime();
        let (pool, _) = runtime.block_on(SlotPool::start(config.clone(), BTreeSet::new())).unwrap();
        let slot = runtime.block_on(pool.take()).unwrap();
        let guest = host::guest(&slot);
        Self { runtime, pool, slot, internet, guest }
    }

    fn set(&self, policy: EgressPolicy) {
        self.runtime.block_on(self.slot.set_egress(enforced(policy))).unwrap();
    }

    /// Waits until denials of all these reasons, kinds and addresses were told.
    fn wait_denied(&self, mut expected: Vec<(DenyReason, DeniedProtocol, Option<Ipv4Addr>)>) {
        while !expected.is_empty() {
            let told = async { tokio::time::timeout(PATIENCE, self.pool.denials()).await };
            let denials = self.runtime.block_on(told).unwrap_or_else(|_| panic!("not told: {expected:?}"));
            for (index, Denial { target, count, .. }) in denials {
                assert_eq!(index, self.slot.index());
                assert!(count > 0);
                expected.retain(|&wanted| wanted != (target.reason, target.protocol, target.address));
            }
        }
    }

    /// The code of the answer to a query for a name, and the address in it.
    fn ask(&self, name: &str) -> (u8, Option<Ipv4Addr>) {
        let socket = self.guest.udp((Ipv4Addr::UNSPECIFIED, 0));
        socket.send_to(&host::query(name), (GATEWAY, 53)).unwrap();
        let mut answer = [0; 512];
        let length = socket.recv(&mut answer).unwrap();
        let address = answer[..length].last_chunk::<4>().filter(|_| answer[7] > 0);
        (answer[3] & 0xf, address.map(|&octets| octets.into()))
    }

    /// Whether a request that shows a name gets an answer from that address.
    fn requests(&self, to: Ipv4Addr, name: &str) -> bool {
        let request = format!("GET / HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n");
        match exchange(&self.guest, (to, 80).into(), request.as_bytes()) {
            Ok(answer) => answer.ends_with(&to.to_string()),
            Err(error) => {
                assert!(is_cut(&error), "{error}");
                false
            }
        }
    }

    /// Whether a TLS hello that shows a name gets to that address.
    fn greets(&self, to: Ipv4Addr, name: &str) -> bool {
        match exchange(&self.guest, (to, 443).into(), &hello(name)) {
            Ok(answer) => answer == "seen",
            Err(error) => {
                assert!(is_cut(&error), "{error}");
                false
            }
        }
    }
}

fn enforced(policy: EgressPolicy) -> Arc<Enforced> {
    Arc::new(Enforced { policy, authority: None })
}

fn is_cut(error: &std::io::Error) -> bool {
    [ErrorKind::ConnectionReset, ErrorKind::ConnectionRefused, ErrorKind::BrokenPipe].contains(&error.kind())
}

fn exchange(from: &Place, to: SocketAddr, bytes: &[u8]) -> std::io::Result<String> {
    let mut stream = from.enter(|| TcpStream::connect_timeout(&to, PATIENCE))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(bytes)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// The first bytes of a TLS connection to a host of that name.
fn hello(name: &str) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let name = name.to_owned().try_into().unwrap();
    let mut bytes = Vec::new();
    rustls::ClientConnection::new(Arc::new(config), name).unwrap().write_tls(&mut bytes).unwrap();
    bytes
}

/// On every address, for as long as the test runs: HTTP at 80, which answers with the address it was reached
/// by; at 443 what says that it saw something; at 7 an echo.
fn serve_all(internet: &Place) {
    let serve = |port: u16, answer: fn(TcpStream) -> std::io::Result<()>| {
        let listener = internet.enter(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap());
        thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                // A client that goes is what some tests are about.
                thread::spawn(move || answer(stream));
            }
        });
    };
    serve(80, |mut stream| {
        let (mut request, mut byte) = (Vec::new(), [0]);
        while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte)? > 0 {
            request.push(byte[0]);
        }
        let body = stream.local_addr()?.ip().to_string();
        let length = body.len();
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
    });
    serve(443, |mut stream| {
        stream.read_exact(&mut [0; 5])?;
        stream.write_all(b"seen")?;
        stream.shutdown(std::net::Shutdown::Write)?;
        // What is left unread would make a reset of it.
        std::io::copy(&mut stream, &mut std::io::sink()).map(drop)
    });
    serve(7, |mut stream| {
        let mut reader = stream.try_clone()?;
        std::io::copy(&mut reader, &mut stream).map(drop)
    });
}

/// Whether a connection to an echo still works.
fn echoes(stream: &mut TcpStream) -> bool {
    let mut byte = [0];
    stream.write_all(b"x").and_then(|()| stream.read_exact(&mut byte)).is_ok()
}

fn names(allow: &[&str], deny: &[&str]) -> EgressPolicy {
    let patterns = |names: &[&str]| {
        names.iter().map(|&name| DomainPattern::from_normal(name.into())).collect::<Vec<_>>()
    };
    EgressPolicy {
        internet_access: allow.is_empty(),
        allow_domains: patterns(allow),
        deny_domains: patterns(deny),
        ..EgressPolicy::default()
    }
}

#[test]
fn ranges_are_judged_in_their_order_and_nothing_opens_what_is_protected() {
    let config = host::config("ranges");
    host::on_a_host(&config.instance, || {
        let world = World::new(&config);
        serve_all(&world.internet);
        let reached = |policy: EgressPolicy| {
            world.set(policy);
            [SERVER, OTHER, ALLOWED].map(|to| world.guest.reaches((to, 7)))
        };
        let all = Range::ALL;
        let server = Range::new(SERVER, 32).unwrap();
        let none = EgressPolicy { internet_access: false, ..EgressPolicy::default() };
        assert_eq!(
            reached(EgressPolicy { deny: vec![server], ..EgressPolicy::default() }),
            [false, true, true]
        );
        world.wait_denied(vec![(DenyReason::DeniedAddress, DeniedProtocol::Tcp, Some(SERVER))]);
        let policy = EgressPolicy { allow: vec![server], deny: vec![all], ..EgressPolicy::default() };
        assert_eq!(reached(policy), [true, false, false]);
        assert_eq!(reached(EgressPolicy { allow: vec![server], ..none.clone() }), [true, false, false]);
        world.wait_denied(vec![(DenyReason::AddressNotAllowed, DeniedProtocol::Tcp, Some(OTHER))]);
        assert_eq!(reached(none.clone()), [false; 3]);
        assert_eq!(world.ask("good.test").0, 5, "DNS is refused");

        world.set(EgressPolicy { allow: vec![all], ..none });
        for forbidden in [HOST, METADATA, GATEWAY] {
            assert!(!world.guest.reaches((forbidden, 7)), "{forbidden}");
        }
        world.wait_denied(vec![
            (DenyReason::ProtectedAddress, DeniedProtocol::Tcp, Some(HOST)),
            (DenyReason::ProtectedAddress, DeniedProtocol::Tcp, Some(METADATA)),
        ]);
        world.guest.connect((SERVER, 7));
    });
}

#[test]
fn a_change_cuts_what_is_no_longer_allowed_and_nothing_else() {
    let config = host::config("change");
    host::on_a_host(&config.instance, || {
        let world = World::new(&config);
        serve_all(&world.internet);
        let [mut kept, mut cut] = [SERVER, OTHER].map(|to| world.guest.connect((to, 7)));
        assert!(echoes(&mut kept) && echoes(&mut cut));
        let deny = vec![Range::new(OTHER, 32).unwrap()];
        world.set(EgressPolicy { deny, ..EgressPolicy::default() });
        assert!(echoes(&mut kept) && !echoes(&mut cut));

        // Now names decide: what was direct, and shows none, is cut too.
        world.set(names(&["good.test"], &[]));
        assert!(!echoes(&mut kept));
        assert!(world.requests(SERVER, "good.test"));
        world.set(EgressPolicy::default());
        assert!(world.requests(OTHER, "anything"));
    });
}

#[test]
fn a_closed_way_passes_nothing_and_opens_again_with_a_policy() {
    let config = host::config("close");
    host::on_a_host(&config.instance, || {
        let world = World::new(&config);
        serve_all(&world.internet);
        world.guest.serve((Ipv4Addr::UNSPECIFIED, 7000));
        let mut open = world.guest.connect((SERVER, 7));
        world.slot.close().unwrap();
        assert!(!world.guest.reaches((SERVER, 7)));
        assert_eq!(world.ask("good.test").0, 5);
        world.slot.connect(7000, PATIENCE).expect("its agent is still reached");
        world.set(EgressPolicy::default());
        assert!(echoes(&mut open), "what is still allowed goes on");
        assert_eq!(world.ask("good.test"), (0, Some(SERVER)));

        // The same where connections are looked into.
        world.set(names(&["good.test"], &[]));
        world.slot.close().unwrap();
        assert!(!world.requests(SERVER, "good.test"));
        world.set(names(&["good.test"], &[]));
        assert!(world.requests(SERVER, "good.test"));
    });
}

#[test]
fn a_policy_that_cannot_be_put_in_force_leaves_the_way_closed() {
    let config = host::config("fail");
    host::on_a_host(&config.instance, || {
        let world = World::new(&config);
        serve_all(&world.internet);
        world.guest.connect((SERVER, 7));
        // The kernel takes no such bound, and nothing below a policy's judges lets one come here.
        let limits = EgressLimits { connections_per_second: Some(0), ..EgressLimits::default() };
        let wrong = enforced(EgressPolicy { limits, ..EgressPolicy::default() });
        world.runtime.block_on(world.slot.set_egress(wrong)).unwrap_err();
        assert!(!world.guest.reaches((SERVER, 7)));
        assert_eq!(world.ask("good.test").0, 5);
        world.set(EgressPolicy::default());
        world.guest.connect((SERVER, 7));
    });
}

#[test]
fn a_name_passes_by_what_it_shows_and_by_the_address_that_dns_gives_for_it() {
    let config = host::config("names");
    host::on_a_host(&config.instance, || {
        let world = World::new(&config);
        serve_all(&world.internet);
        world.set(names(&["good.test", "*.good.test"], &["sub.good.test"]));
        assert_eq!(world.ask("good.test"), (0, Some(SERVER)));
        assert_eq!(world.ask("evil.test"), (3, None));
        assert_eq!(world.ask("sub.good.test"), (3, None));
        assert!(world.requests(SERVER, "good.test") && world.greets(SERVER, "good.test"));
        // A literal address with an allowed name; another name on the same address; a denied one; none.
        for (to, name) in [(OTHER, "good.test"), (SERVER, "second.test"), (OTHER, "sub.good.test")] {
            assert!(!world.requests(to, name) && !world.greets(to, name), "{name} at {to}");
        }
        assert!(!world.requests(SERVER, &SERVER.to_string()));
        // Nor do other ways: datagrams, and resolvers of its own choice.
        let datagrams = world.internet.udp((SERVER, 9));
        let elsewhere = world.guest.udp((Ipv4Addr::UNSPECIFIED, 0));
        assert!(elsewhere.send_to(b"hidden", (SERVER, 9)).is_ok());
        elsewhere.connect((RESOLVER, 53)).unwrap();
        elsewhere.send(&host::query("evil.test")).unwrap();
        assert!(elsewhere.recv(&mut [0; 512]).is_err(), "another resolver does not answer");
        datagrams.set_nonblocking(true).unwrap();
        assert!(datagrams.recv(&mut [0; 16]).is_err());
        let asked = [&[0, 27][..], &host::query("evil.test")].concat();
        assert!(exchange(&world.guest, (RESOLVER, 53).into(), &asked).is_err());
        world.wait_denied(vec![
            (DenyReason::NameNotAllowed, DeniedProtocol::Dns, None),
            (DenyReason::DeniedName, DeniedProtocol::Dns, None),
            (DenyReason::NameMismatch, DeniedProtocol::Tcp, Some(OTHER)),
            (DenyReason::NameNotAllowed, DeniedProtocol::Tcp, Some(SERVER)),
            (DenyReason::DeniedName, DeniedProtocol::Tcp, Some(OTHER)),
            (DenyReason::NoName, DeniedProtocol::Tcp, Some(SERVER)),
            (DenyReason::AddressNotAllowed, DeniedProtocol::Udp, Some(SERVER)),
            (DenyReason::AddressNotAllowed, DeniedProtocol::Udp, Some(RESOLVER)),
        ]);

        // With names denied and all else allowed, an address passes that DNS gave.
        world.set(names(&[], &["evil.test"]));
        assert!(world.requests(SERVER, "second.test") && !world.requests(OTHER, "evil.test"));
        assert!(!world.requests(OTHER, "second.test"), "that is not where this name is");
        for forbidden in [HOST, METADATA, GATEWAY] {
            assert!(!world.guest.reaches((forbidden, 80)), "{forbidden}");
        }
    });
}

#[test]
fn a_host_that_is_added_to_is_looked_into_even_where_its_range_is_allowed() {
    let config = host::config("inject");
    host::on_a_host(&config.instance, || {
        let world = World::new(&config);
        serve_all(&world.internet);
        let injection = Injection { host: "good.test".into(), header: "x-key".into(), value: None };
        let allow = vec![Range::new(SERVER, 32).unwrap()];
        world.set(EgressPolicy { allow, injections: vec![injection], ..EgressPolicy::default() });
        assert!(world.greets(SERVER, "second.test") && world.requests(SERVER, "second.test"));
        assert!(!world.greets(SERVER, "good.test"), "without its secret nothing is sent");
        world.wait_denied(vec![(DenyReason::InjectionFailed, DeniedProtocol::Tcp, Some(SERVER))]);
    });
}

#[test]
fn a_forged_source_is_dropped_and_noted() {
    let config = host::config("forged");
    host::on_a_host(&config.instance, || {
        let world = World::new(&config);
        let sink = world.internet.udp((SERVER, 9));
        let forged = Ipv4Addr::new(10, 200, 0, 77);
        world.guest.enter(|| host::ip("addr add 10.200.0.77/32 dev eth0\n"));
        for (from, text) in [(forged, b"forged"), (config.link.guest, b"honest")] {
            world.guest.udp((from, 0)).send_to(text, (SERVER, 9)).unwrap();
        }
        let mut text = [0; 6];
        sink.recv(&mut text).unwrap();
        assert_eq!(&text, b"honest");
        world.wait_denied(vec![(DenyReason::ForgedSource, DeniedProtocol::Udp, Some(SERVER))]);
    });
}

#[test]
fn bounds_hold_on_the_direct_way_and_where_connections_are_looked_into() {
    let config = host::config("limits");
    host::on_a_host(&config.instance, || {
        let world = World::new(&config);
        serve_all(&world.internet);
        let limited = |limits| EgressPolicy { limits, ..EgressPolicy::default() };
        let limit = |protocol| vec![(DenyReason::Limit, protocol, Some(SERVER))];

        let few = EgressLimits { connections_max: Some(3), ..EgressLimits::default() };
        world.set(limited(few));
        let open: Vec<_> = (0..3).map(|_| world.guest.connect((SERVER, 7))).collect();
        assert!(!world.guest.reaches((SERVER, 7)), "a fourth");
        world.wait_denied(limit(DeniedProtocol::Tcp));
        drop(open);

        world.set(EgressPolicy { limits: few, ..names(&[], &["evil.test"]) });
        let mut open = Vec::new();
        for _ in 0..3 {
            let mut stream = world.guest.connect((SERVER, 443));
            stream.write_all(&hello("good.test")).unwrap();
            stream.read_exact(&mut [0; 4]).unwrap();
            open.push(stream);
        }
        assert!(!world.greets(SERVER, "good.test"), "a fourth");
        world.wait_denied(limit(DeniedProtocol::Tcp));
        drop(open);

        let slow = EgressLimits { connections_per_second: Some(2), ..EgressLimits::default() };
        world.set(limited(slow));
        assert!((0..50).any(|_| !world.guest.reaches((SERVER, 7))));
        world.wait_denied(limit(DeniedProtocol::Tcp));

        let narrow = EgressLimits { bytes_per_second: Some(16 << 10), ..EgressLimits::default() };
        world.set(limited(narrow));
        let socket = world.guest.udp((Ipv4Addr::UNSPECIFIED, 0));
        for _ in 0..1000 {
            socket.send_to(&[0; 1000], (SERVER, 9)).unwrap();
        }
        world.wait_denied(limit(DeniedProtocol::Udp));
        // And towards the machine.
        let sender = world.internet.udp((OTHER, 9));
        let (mut byte, receiver) = ([0], world.guest.udp((Ipv4Addr::UNSPECIFIED, 0)));
        let from = (0..).find_map(|_| {
            receiver.send_to(&[1], (OTHER, 9)).unwrap();
            sender.set_read_timeout(Some(std::time::Duration::from_millis(200))).unwrap();
            sender.recv_from(&mut byte).ok()
        });
        let (_, from) = from.unwrap();
        for _ in 0..1000 {
            sender.send_to(&[0; 1000], from).unwrap();
        }
        world.wait_denied(vec![(DenyReason::Limit, DeniedProtocol::Udp, Some(OTHER))]);
    });
}

#[test]
fn a_slot_found_after_a_crash_keeps_its_firewall_and_gets_its_names_with_its_policy() {
    let config = host::config("found");
    host::on_a_host(&config.instance, || {
        let World { runtime, pool: _, slot, internet, guest } = World::new(&config);
        serve_all(&internet);
        let deny = vec![Range::new(OTHER, 32).unwrap()];
        let policy = EgressPolicy { deny, ..EgressPolicy::default() };
        runtime.block_on(slot.set_egress(enforced(policy.clone()))).unwrap();
        let index = slot.index();
        let mut open = guest.connect((SERVER, 7));
        drop((runtime, slot));

        let runtime = host::runtime();
        let (pool, found) =
            runtime.block_on(SlotPool::start(config.clone(), BTreeSet::from([index]))).unwrap();
        let world = World { runtime, pool, slot: found[0].clone(), internet, guest };
        assert!(echoes(&mut open) && !world.guest.reaches((OTHER, 7)));
        assert_eq!(world.ask("good.test").0, 5, "no names before the policy is told");
        world.set(policy);
        assert_eq!(world.ask("good.test"), (0, Some(SERVER)));
        assert!(echoes(&mut open) && !world.guest.reaches((OTHER, 7)));
        // It was never told that it knows the name's address: it is looked up.
        world.set(names(&["good.test"], &[]));
        assert!(world.requests(SERVER, "good.test"));
    });
}

#[test]
fn what_a_policy_of_two_hundred_ranges_costs_is_printed() {
    let config = host::config("cost");
    host::on_a_host(&config.instance, || {
        let world = World::new(&config);
        let ranges = |from: u8| {
            (0..100).map(|number| Range::new(Ipv4Addr::new(from, number, 1, 0), 24).unwrap()).collect()
        };
        let policy = EgressPolicy { allow: ranges(20), deny: ranges(30), ..EgressPolicy::default() };
        let timed = |what: &str, work: &dyn Fn()| {
            let begun = std::time::Instant::now();
            work();
            eprintln!("{what}: {:?}", begun.elapsed());
        };
        timed("200 ranges", &|| world.set(policy.clone()));
        timed("the same again", &|| world.set(policy.clone()));
        timed("closed", &|| world.slot.close().unwrap());
        timed("opened with the same", &|| world.set(policy.clone()));
        timed("the default", &|| world.set(EgressPolicy::default()));
    });
}
