//! Slots from outside, on a host of the test's own. Needs root, `ip` and `nft`.
#![allow(clippy::print_stderr, missing_docs)]

mod host;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use host::{ALLOWED, HOST, METADATA, PATIENCE, Place, SERVER};
use nullspace_net::{Config, Error, Slot, SlotPool};

async fn start(config: &Config) -> SlotPool {
    SlotPool::start(config.clone(), BTreeSet::new()).await.unwrap().0
}

/// The host's end and the slot's end of the slot's pair.
fn pair(slot: &Slot) -> [Ipv4Addr; 2] {
    let base = Ipv4Addr::new(10, 201, 0, 0).to_bits() + slot.index() * 4;
    [base + 1, base + 2].map(Ipv4Addr::from_bits)
}

#[test]
fn a_slot_made_and_released_leaves_nothing() {
    let config = host::config("made");
    host::on_a_host(&config.instance, || {
        let before = host::state();
        host::runtime().block_on(async {
            let pool =
                SlotPool::start(Config { ready: 2, ..config.clone() }, BTreeSet::new()).await.unwrap().0;
            pool.wait_ready(2).await.unwrap();
            // No other is made meanwhile: its claim comes before its namespace, and a tool that is just being
            // started holds this one's tap for a moment.
            pool.set_busy(true);
            let slot = pool.take().await.unwrap();
            assert_eq!(host::claims(&config.instance).len(), host::names(&config.instance).len());
            assert!(slot.netns_path().exists());
            assert_eq!(slot.uid(), 600_000 + slot.index());

            let tap = slot.open_tap().unwrap();
            assert!(slot.open_tap().is_err(), "only one can have the tap");
            drop(tap);
            drop(slot.open_tap().unwrap());
            let inside = Place::of(&slot).enter(|| host::output("ip", &["-o", "addr"]));
            assert!(inside.contains("10.200.0.1/30") && !inside.contains("inet6"), "{inside}");

            slot.release().await.unwrap();
            slot.release().await.unwrap();
            assert!(matches!(slot.open_tap(), Err(Error::Released { .. })));
            assert!(!slot.netns_path().exists());
            pool.shutdown().await.unwrap();
            assert!(matches!(pool.take().await, Err(Error::Closed)));
        });
        assert_eq!(host::names(&config.instance), [""; 0]);
        assert_eq!(host::claims(&config.instance), [""; 0]);
        assert_eq!(host::state(), before);
    });
}

#[test]
fn a_machine_reaches_the_internet_and_neither_host_nor_neighbours_nor_private_networks() {
    let config = host::config("reach");
    host::on_a_host(&config.instance, || {
        let internet = host::internet();
        internet.serve((Ipv4Addr::UNSPECIFIED, 80));
        host::serve(TcpListener::bind("0.0.0.0:80").unwrap());
        let runtime = host::runtime();
        let pool = runtime.block_on(start(&config));
        let slot = runtime.block_on(pool.take()).unwrap();
        let other = runtime.block_on(pool.take()).unwrap();
        let guest = host::guest(&slot);
        Place::of(&other).serve((Ipv4Addr::UNSPECIFIED, 80));

        let mut line = String::new();
        let seen = guest.connect((SERVER, 80));
        BufReader::new(&seen).read_line(&mut line).unwrap();
        assert_eq!(line.trim(), HOST.to_string(), "comes from the host's address");
        guest.connect((ALLOWED, 80));

        let [host_end, own_end] = pair(&slot);
        let [other_host_end, other_end] = pair(&other);
        let gateway = config.link.gateway;
        for forbidden in [host_end, own_end, other_host_end, other_end, gateway, HOST, METADATA] {
            assert!(!guest.reaches((forbidden, 80)), "{forbidden}");
        }
        // With another's address as its own: only what it sends with its own arrives.
        let sink = internet.udp((SERVER, 9));
        guest.enter(|| host::ip("addr add 10.200.0.77/32 dev eth0\n"));
        for (from, text) in [(Ipv4Addr::new(10, 200, 0, 77), b"forged"), (config.link.guest, b"honest")] {
            guest.udp((from, 0)).send_to(text, (SERVER, 9)).unwrap();
        }
        let mut text = [0; 6];
        sink.recv(&mut text).unwrap();
        assert_eq!(&text, b"honest");

        // The way to the machine is the slot's own sockets only.
        guest.serve((Ipv4Addr::UNSPECIFIED, 7000));
        assert!(!internet.reaches((own_end, 7000)) && !internet.reaches((config.link.guest, 7000)));
        let mut stream = slot.connect(7000, PATIENCE).unwrap();
        stream.read_exact(&mut [0; 1]).unwrap();
        assert!(stream.nodelay().unwrap());
        runtime.block_on(async { slot.dial(7000, PATIENCE).await.unwrap() });
        assert!(matches!(slot.connect(7001, PATIENCE), Err(Error::Io { .. })), "refused");
        let traffic = slot.traffic().unwrap();
        assert!(traffic.received_bytes > 0 && traffic.sent_bytes > 0, "{traffic:?}");

        // Were the slot's own rules all gone, the host's table would hold alone...
        let bare = Place::of(&slot);
        bare.enter(|| host::output("nft", &["delete", "table", "inet", "slot"]));
        for forbidden in [host_end, HOST, other_host_end, other_end] {
            assert!(!bare.reaches((forbidden, 80)), "{forbidden} from the slot");
        }
        // ... and it is that table that does: without it the way is open.
        host::output("nft", &["delete", "table", "inet", &format!("nullspace_{}", config.instance)]);
        bare.connect((host_end, 80));
    });
}

#[test]
fn names_are_resolved_through_the_gateway_over_udp_and_tcp() {
    let config = host::config("dns");
    host::on_a_host(&config.instance, || {
        host::resolver(&host::internet(), &[("example.test", SERVER)]);
        let runtime = host::runtime();
        let pool = runtime.block_on(start(&config));
        let slot = runtime.block_on(pool.take()).unwrap();
        let guest = host::guest(&slot);
        let query = host::query("example.test");

        let socket = guest.udp((Ipv4Addr::UNSPECIFIED, 0));
        socket.send_to(&query, "10.200.0.1:53").unwrap();
        let mut datagram = [0; 512];
        let (length, from) = socket.recv_from(&mut datagram).unwrap();
        assert_eq!(from, "10.200.0.1:53".parse::<SocketAddr>().unwrap());
        assert!(
            datagram[..length].starts_with(&query[..2]) && datagram[..length].ends_with(&SERVER.octets())
        );

        let mut stream = guest.connect((Ipv4Addr::new(10, 200, 0, 1), 53));
        let asked = [&[0, u8::try_from(query.len()).unwrap()][..], &query].concat();
        stream.write_all(&asked).unwrap();
        let mut answer = vec![0; 2 + length];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer[2..], datagram[..length]);
    });
}

#[test]
fn after_a_crash_slots_in_use_are_found_and_all_others_removed() {
    let config = host::config("crash");
    host::on_a_host(&config.instance, || {
        let first = host::runtime();
        let (used, lost) = first.block_on(async {
            let pool =
                SlotPool::start(Config { ready: 2, ..config.clone() }, BTreeSet::new()).await.unwrap().0;
            pool.wait_ready(2).await.unwrap();
            (pool.take().await.unwrap().index(), pool.take().await.unwrap().index())
        });
        // Everything that the process had is gone; the kernel's part stays.
        drop(first);
        assert!(host::names(&config.instance).len() >= 2);

        host::runtime().block_on(async {
            let keep = BTreeSet::from([used, 9999]);
            let (pool, kept) = SlotPool::start(config.clone(), keep).await.unwrap();
            assert_eq!(kept.iter().map(Slot::index).collect::<Vec<_>>(), [used]);
            assert_eq!(host::names(&config.instance), [format!("nullspace-{}-{used}", config.instance)]);
            assert_eq!(host::claims(&config.instance), [used.to_string()]);
            assert!(used != lost);
            drop(kept[0].open_tap().unwrap());
            pool.shutdown().await.unwrap();
            assert_eq!(host::claims(&config.instance).len(), 1, "a slot in use outlives a stop");
            kept[0].release().await.unwrap();
            assert_eq!(host::names(&config.instance), [""; 0]);
        });
    });
}

#[test]
fn a_full_pool_says_so_and_a_released_slot_can_be_had_again() {
    let config = Config { max: 2, ..host::config("full") };
    host::on_a_host(&config.instance, || {
        host::runtime().block_on(async {
            let pool = start(&config).await;
            let (first, second) = (pool.take().await.unwrap(), pool.take().await.unwrap());
            assert_ne!(first.index(), second.index());
            assert!(matches!(pool.take().await, Err(Error::Exhausted { max: 2 })));
            first.release().await.unwrap();
            // A taker that stops waiting costs no slot.
            let mut impatient = Box::pin(pool.take());
            assert!(futures_poll(&mut impatient).await.is_none());
            drop(impatient);
            let again = pool.take().await.unwrap();
            again.release().await.unwrap();
            second.release().await.unwrap();
            pool.shutdown().await.unwrap();
        });
        assert_eq!(host::claims(&config.instance), [""; 0]);
    });
}

/// Polls once.
async fn futures_poll<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    std::future::poll_fn(|context| {
        std::task::Poll::Ready(match std::pin::Pin::new(&mut *future).poll(context) {
            std::task::Poll::Ready(output) => Some(output),
            std::task::Poll::Pending => None,
        })
    })
    .await
}

#[test]
fn many_slots_can_be_had_at_once() {
    let config = Config { max: 128, ..host::config("many") };
    host::on_a_host(&config.instance, || {
        let count = std::env::var("NULLSPACE_TEST_SLOTS").map_or(24, |text| text.parse().unwrap());
        let begun = std::time::Instant::now();
        host::runtime().block_on(async {
            let pool =
                SlotPool::start(Config { ready: count, ..config.clone() }, BTreeSet::new()).await.unwrap().0;
            pool.wait_ready(count).await.unwrap();
            eprintln!("{count} slots made in {:?}", begun.elapsed());
            let begun = std::time::Instant::now();
            pool.shutdown().await.unwrap();
            eprintln!("removed in {:?}", begun.elapsed());
        });
        let used = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).unwrap();
        let tools = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_CHILDREN).unwrap();
        eprintln!(
            "own {:?}+{:?}, tools {:?}+{:?}",
            used.user_time(),
            used.system_time(),
            tools.user_time(),
            tools.system_time()
        );
        assert_eq!(host::claims(&config.instance), [""; 0]);
        assert_eq!(host::names(&config.instance), [""; 0]);
    });
}
