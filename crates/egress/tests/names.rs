//! Which connections pass by the names that they show, over real sockets and real TLS.

mod world;

use nullspace_types::network::DenyReason;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use world::{World, begin_tls, head, is_reset};

const ALLOWED: &str = "203.0.113.1:443";
const OTHER: &str = "203.0.113.2:443";

#[tokio::test]
async fn tls_to_an_allowed_name_passes_untouched() {
    let mut world = World::new(json!({"allow_domains": ["*.good.example"]}));
    let host = world.host(ALLOWED, &["api.good.example"]).await;
    let guest = world.connect(ALLOWED).await;
    let (guest, outside) = tokio::join!(
        begin_tls(guest, "api.good.example", world.roots(), &[]),
        world.accept_tls(&host, "api.good.example", &[])
    );
    let (mut guest, mut outside) = (guest.unwrap(), outside.unwrap());
    guest.write_all(b"question").await.unwrap();
    // The guest's end is passed on, and the host may go on talking.
    guest.shutdown().await.unwrap();
    let mut heard = String::new();
    outside.read_to_string(&mut heard).await.unwrap();
    assert_eq!(heard, "question");
    outside.write_all(b"answer").await.unwrap();
    outside.shutdown().await.unwrap();
    heard.clear();
    guest.read_to_string(&mut heard).await.unwrap();
    assert_eq!(heard, "answer");
    world.nothing_denied();
}

#[tokio::test]
async fn tls_that_shows_a_forged_name_or_another_or_none_is_reset() {
    let mut world = World::new(json!({"allow_domains": ["good.example"]}));
    let _good = world.host(ALLOWED, &["good.example", "neighbour.example"]).await;
    let _other = world.host(OTHER, &["bad.example"]).await;
    let cases = [
        (OTHER, "good.example", DenyReason::NameMismatch, Some("good.example")),
        (OTHER, "bad.example", DenyReason::NameNotAllowed, Some("bad.example")),
        (ALLOWED, "neighbour.example", DenyReason::NameNotAllowed, Some("neighbour.example")),
        (ALLOWED, "203.0.113.1", DenyReason::NoName, None),
    ];
    for (to, name, reason, shown) in cases {
        let guest = world.connect(to).await;
        begin_tls(guest, name, world.roots(), &[]).await.unwrap_err();
        assert_eq!(world.denial().await, (reason, shown.map(Into::into)), "{name} at {to}");
    }
}

/// The hello that rustls sends for a name.
fn hello(name: &str, world: &World) -> Vec<u8> {
    let config = rustls::ClientConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(world.roots())
        .with_no_client_auth();
    let mut written = Vec::new();
    let name = name.to_owned().try_into().unwrap();
    rustls::ClientConnection::new(config.into(), name).unwrap().write_tls(&mut written).unwrap();
    written
}

#[tokio::test]
async fn a_second_hello_that_the_server_asks_for_must_show_the_same_name() {
    // A server's hello, RFC 8446, 4.1.3, as far as it says that it asks again.
    let mut again = vec![22, 3, 3, 0, 100, 2, 0, 0, 96, 3, 3];
    again.extend_from_slice(&[
        0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91, 0xc2,
        0xa2, 0x11, 0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c,
    ]);
    let mut world = World::new(json!({"allow_domains": ["good.example"]}));
    let host = world.host(ALLOWED, &["good.example", "neighbour.example"]).await;
    // A change of ciphers, and early data, which a server that asks again skips.
    let between = [20, 3, 3, 0, 1, 1, 23, 3, 3, 0, 2, 9, 9];
    for second in ["good.example", "neighbour.example"] {
        let (first, second_hello) = (hello("good.example", &world), hello(second, &world));
        let mut guest = world.connect(ALLOWED).await;
        // All at once: it must be held back until the server has answered.
        guest.write_all(&[&first[..], &between, &second_hello].concat()).await.unwrap();
        let (mut outside, _) = host.accept().await.unwrap();
        let mut heard = vec![0; first.len()];
        outside.read_exact(&mut heard).await.unwrap();
        assert_eq!(heard, first);
        outside.write_all(&again).await.unwrap();
        let mut heard = vec![0; again.len()];
        guest.read_exact(&mut heard).await.unwrap();
        let mut heard = vec![0; between.len()];
        if second == "good.example" {
            outside.read_exact(&mut heard).await.unwrap();
            let mut heard = vec![0; second_hello.len()];
            outside.read_exact(&mut heard).await.unwrap();
            assert_eq!(heard, second_hello);
            world.nothing_denied();
        } else {
            assert_eq!(world.denial().await, (DenyReason::NameMismatch, Some(second.into())));
            is_reset(guest).await;
            let mut heard = Vec::new();
            let _reset = outside.read_to_end(&mut heard).await;
            assert!(heard.len() <= between.len());
        }
    }
}

#[tokio::test]
async fn requests_pass_by_their_host_and_one_for_another_host_is_refused() {
    let mut world = World::new(json!({"allow_domains": ["good.example"]}));
    let host = world.host("203.0.113.1:80", &["good.example", "neighbour.example"]).await;
    let mut guest = world.connect("203.0.113.1:80").await;
    // Two at once, in one packet.
    let two = "POST /one HTTP/1.1\r\nHost: good.example\r\nX-CaSe: y\r\nContent-Length: 4\r\n\r\nbody\
               GET /two HTTP/1.1\r\nHost: neighbour.example\r\n\r\n";
    guest.write_all(two.as_bytes()).await.unwrap();
    let (mut outside, _) = host.accept().await.unwrap();
    let asked = head(&mut outside).await;
    assert_eq!(asked, "POST /one HTTP/1.1\r\nHost: good.example\r\nX-CaSe: y\r\nContent-Length: 4\r\n\r\n");
    let mut body = [0; 4];
    outside.read_exact(&mut body).await.unwrap();
    assert_eq!(&body, b"body");
    outside.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
    let mut heard = String::new();
    guest.read_to_string(&mut heard).await.unwrap();
    assert!(heard.starts_with("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 421 "), "{heard}");
    assert_eq!(world.denial().await, (DenyReason::NameMismatch, Some("neighbour.example".into())));
    let mut beyond = Vec::new();
    outside.read_to_end(&mut beyond).await.unwrap();
    assert_eq!(String::from_utf8(beyond).unwrap(), "");
}

#[tokio::test]
async fn requests_that_hide_their_host_or_their_end_are_reset() {
    let mut world = World::new(json!({"allow_domains": ["good.example"]}));
    let _host = world.host("203.0.113.1:80", &["good.example"]).await;
    let hidden = [
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: good.example\r\nHost: bad.example\r\n\r\n",
        "GET http://bad.example/ HTTP/1.1\r\nHost: good.example\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: good.example\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET / HTTP/1.1\r\nX: y\r\n Host: bad.example\r\nHost: good.example\r\n\r\n",
        "GET / HTTP/1.1\nHost: good.example\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: 203.0.113.1\r\n\r\n",
        "GET / HTTP/1.0\r\n\r\n",
        "SSH-2.0-client\r\n",
        "\x16\x03\x01garbage",
        "\0\0\0\0",
    ];
    for bytes in hidden {
        let mut guest = world.connect("203.0.113.1:80").await;
        guest.write_all(bytes.as_bytes()).await.unwrap();
        is_reset(guest).await;
        assert_eq!(world.denial().await, (DenyReason::NoName, None), "{bytes:?}");
    }
}

#[tokio::test]
async fn a_later_request_is_framed_anew_so_that_nothing_is_smuggled_in_it() {
    let world = World::new(json!({"allow_domains": ["good.example"]}));
    let host = world.host("203.0.113.1:80", &["good.example"]).await;
    let mut guest = world.connect("203.0.113.1:80").await;
    let asked = "GET / HTTP/1.1\r\nHost: good.example\r\n\r\n";
    guest.write_all(asked.as_bytes()).await.unwrap();
    let (mut outside, _) = host.accept().await.unwrap();
    assert_eq!(head(&mut outside).await, asked);
    outside.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
    head(&mut guest).await;
    // Both lengths, and a chunk's size with an extension: whoever went by the first would see another request.
    let chunk = "GET / HTTP/1.1\r\nHost: bad\r\n\r\n";
    let tricky =
        "POST / HTTP/1.1\r\nHost: good.example\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n";
    let tricky = format!("{tricky}{:x};x=y\r\n{chunk}\r\n0\r\n\r\n", chunk.len());
    guest.write_all(tricky.as_bytes()).await.unwrap();
    guest.shutdown().await.unwrap();
    let anew = "POST / HTTP/1.1\r\nHost: good.example\r\nTransfer-Encoding: chunked\r\n\r\n";
    let anew = format!("{anew}{:X}\r\n{chunk}\r\n0\r\n\r\n", chunk.len());
    let mut heard = vec![0; anew.len()];
    outside.read_exact(&mut heard).await.unwrap();
    assert_eq!(str::from_utf8(&heard).unwrap(), anew);
    // The guest has said that it ends, and gets its answer all the same.
    outside.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
    assert!(head(&mut guest).await.starts_with("HTTP/1.1 204 "));
    assert_eq!(outside.read(&mut heard).await.unwrap(), 0);
}

#[tokio::test]
async fn a_request_may_change_to_websocket_and_to_nothing_else() {
    let mut world = World::new(json!({"allow_domains": ["good.example"]}));
    let host = world.host("203.0.113.1:80", &["good.example"]).await;
    let mut guest = world.connect("203.0.113.1:80").await;
    guest
        .write_all(b"GET / HTTP/1.1\r\nHost: good.example\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n\r\n")
        .await
        .unwrap();
    let (mut outside, _) = host.accept().await.unwrap();
    let asked = head(&mut outside).await.to_lowercase();
    assert!(!asked.contains("h2c") && !asked.contains("http2-settings:"), "{asked}");
    outside.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    head(&mut guest).await;
    guest
        .write_all(
            b"GET / HTTP/1.1\r\nHost: good.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        )
        .await
        .unwrap();
    let asked = head(&mut outside).await;
    assert!(asked.contains("Upgrade: websocket"), "{asked}");
    outside
        .write_all(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n\x81\x00",
        )
        .await
        .unwrap();
    let answer = head(&mut guest).await;
    assert!(answer.starts_with("HTTP/1.1 101 ") && answer.contains("Connection: upgrade"), "{answer}");
    let mut frame = [0; 2];
    guest.read_exact(&mut frame).await.unwrap();
    assert_eq!(frame, [0x81, 0]);
    guest.write_all(&[0x88, 0x80, 1, 2, 3, 4]).await.unwrap();
    let mut frame = [0; 6];
    outside.read_exact(&mut frame).await.unwrap();
    assert_eq!(frame, [0x88, 0x80, 1, 2, 3, 4]);
    drop(outside);
    assert_eq!(guest.read(&mut frame).await.unwrap(), 0);
    world.nothing_denied();
}

#[tokio::test(start_paused = true)]
async fn a_hello_that_never_ends_is_reset() {
    let mut world = World::new(json!({"allow_domains": ["good.example"]}));
    let _host = world.host(ALLOWED, &["good.example"]).await;
    let whole = hello("good.example", &world);
    for begin in [0, 1, whole.len() - 1] {
        let mut guest = world.connect(ALLOWED).await;
        guest.write_all(&whole[..begin]).await.unwrap();
        is_reset(guest).await;
        assert_eq!(world.denial().await, (DenyReason::NoName, None));
    }
}

#[tokio::test]
async fn a_server_may_speak_first_where_no_name_is_needed() {
    let mut world = World::new(json!({"deny_domains": ["bad.example"]}));
    let host = world.host("203.0.113.1:22", &["good.example"]).await;
    let mut guest = world.connect("203.0.113.1:22").await;
    let (mut outside, _) = host.accept().await.unwrap();
    outside.write_all(b"SSH-2.0-server\r\n").await.unwrap();
    let mut heard = [0; 16];
    guest.read_exact(&mut heard).await.unwrap();
    guest.write_all(b"SSH-2.0-client\r\n").await.unwrap();
    outside.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"SSH-2.0-client\r\n");
    world.nothing_denied();

    // Waiting does not hide a denied name.
    let mut guest = world.connect("203.0.113.1:22").await;
    let (mut outside, _) = host.accept().await.unwrap();
    guest.write_all(b"GET / HTTP/1.1\r\nHost: bad.example\r\n\r\n").await.unwrap();
    assert_eq!(world.denial().await, (DenyReason::DeniedName, Some("bad.example".into())));
    is_reset(guest).await;
    assert_eq!(outside.read(&mut heard).await.unwrap_or(0), 0);

    // An address that DNS never gave is not reached without a name.
    let _unknown = world.host("203.0.113.9:22", &[]).await;
    let mut guest = world.connect("203.0.113.9:22").await;
    guest.write_all(b"SSH-2.0-client\r\n").await.unwrap();
    is_reset(guest).await;
    assert_eq!(world.denial().await, (DenyReason::NoName, None));
}

#[tokio::test]
async fn a_change_of_the_policy_ends_what_it_no_longer_allows_and_nothing_else() {
    let mut world = World::new(json!({"allow_domains": ["good.example", "better.example"]}));
    let (good, better) =
        (world.host(ALLOWED, &["good.example"]).await, world.host(OTHER, &["better.example"]).await);
    let guests = [world.connect(ALLOWED).await, world.connect(OTHER).await];
    let [one, other] = guests;
    let (one, outside) = tokio::join!(
        begin_tls(one, "good.example", world.roots(), &[]),
        world.accept_tls(&good, "good.example", &[])
    );
    let (mut one, _outside) = (one.unwrap(), outside.unwrap());
    let (other, outside) = tokio::join!(
        begin_tls(other, "better.example", world.roots(), &[]),
        world.accept_tls(&better, "better.example", &[])
    );
    let (mut other, mut outside) = (other.unwrap(), outside.unwrap());
    world.change(json!({"allow_domains": ["better.example"]}), |_| None);
    assert_eq!(world.denial().await, (DenyReason::NameNotAllowed, Some("good.example".into())));
    one.read_u8().await.unwrap_err();
    outside.write_all(b"x").await.unwrap();
    assert_eq!(other.read_u8().await.unwrap(), b'x');
    world.end();
    other.read_u8().await.unwrap_err();
}
