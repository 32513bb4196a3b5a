//! Upgrades, and what cuts what is open.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::world::*;

const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n";

/// A service that agrees to every upgrade and then sends back what it gets, and its end.
async fn echo() -> std::net::SocketAddr {
    service(|mut stream| async move {
        let asked = head(&mut stream).await;
        let protocol = asked.lines().find_map(|line| line.strip_prefix("upgrade: ")).expect("an upgrade");
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: {protocol}\r\n\
             Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\nfirst"
        );
        stream.write_all(answer.as_bytes()).await.unwrap();
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
        let _ = write.shutdown().await;
    })
    .await
}

async fn open(world: &World, target: &str) -> TcpStream {
    let mut client = TcpStream::connect(world.address).await.unwrap();
    // The first frame comes with the head, before the answer to it.
    client.write_all((get(target) + UPGRADE + "\r\nearly").as_bytes()).await.unwrap();
    let answer = head(&mut client).await;
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    assert!(answer.contains("upgrade: websocket\r\n") && answer.contains("sec-websocket-accept: s3pP"));
    until(&mut client, "first").await;
    until(&mut client, "early").await;
    client
}

#[tokio::test]
async fn a_websocket_passes_bytes_both_ways_and_its_end_and_is_counted() {
    let world = world(echo().await).await;
    let mut client = open(&world, "/ws?edge_token=nsp_good").await;
    client.write_all(b"hello").await.unwrap();
    until(&mut client, "hello").await;
    // Half-open: what is on its way back still comes.
    client.write_all(&vec![b'x'; 1 << 20]).await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(rest(&mut client).await.len(), 1 << 20);
    world.counted((1 << 20) + 10, (1 << 20) + 15).await;
}

#[tokio::test]
async fn other_protocols_are_upgraded_to_as_well_but_not_to_one_that_nobody_asked_for() {
    let world = world(echo().await).await;
    let mut client = TcpStream::connect(world.address).await.unwrap();
    client.write_all((get("/") + "Connection: upgrade\r\nUpgrade: tcp\r\n\r\n").as_bytes()).await.unwrap();
    assert!(head(&mut client).await.contains("upgrade: tcp\r\n"));
    client.write_all(b"bytes").await.unwrap();
    until(&mut client, "firstbytes").await;

    let switched = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    let world = self::world(scripted(switched).await).await;
    for asked in ["", "Connection: upgrade\r\nUpgrade: tcp\r\n", "Connection: upgrade\r\nUpgrade: h2c\r\n"] {
        let mut client = TcpStream::connect(world.address).await.unwrap();
        client.write_all((get("/") + asked + "\r\n").as_bytes()).await.unwrap();
        client.shutdown().await.unwrap();
        let answer = rest(&mut client).await;
        assert!(answer.starts_with("HTTP/1.1 502 "), "{asked}: {answer}");
    }
}

#[tokio::test]
async fn a_websocket_without_its_key_is_refused_and_a_cookie_does_not_open_one() {
    let mut settings = settings();
    settings.private = true;
    let world = settings.start(echo().await).await;
    let keyless = UPGRADE.replace("Sec-WebSocket-Key", "X-Key");
    let answer = world.talk(get("/?edge_token=nsp_good") + &keyless + "Connection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("Sec-WebSocket-Key"), "{answer}");
    assert!(world.edge.seen.lock().unwrap().is_empty(), "it was judged");
    let cookie = "Cookie: __ns_preview=c-good\r\nConnection: close\r\n\r\n";
    let answer = world.talk(get("/") + UPGRADE + cookie).await;
    assert!(answer.starts_with("HTTP/1.1 401 ") && answer.contains("edge_token_missing"), "{answer}");
}

#[tokio::test]
async fn the_end_of_a_grant_cuts_sockets_streams_raw_connections_and_clients_that_do_not_read() {
    let (said, mut hear) = mpsc::channel(16);
    let service = service(move |mut stream| {
        let said = said.clone();
        async move {
            let mut kind = [0; 4];
            stream.read_exact(&mut kind).await.unwrap();
            if &kind == b"GET " {
                let asked = head(&mut stream).await;
                let answer: &[u8] = if asked.contains("/ws") {
                    b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
                } else if asked.contains("/late") {
                    b""
                } else {
                    b"HTTP/1.1 200 OK\r\n\r\n"
                };
                stream.write_all(answer).await.unwrap();
                if asked.contains("/flood") {
                    said.send(()).await.unwrap();
                    while stream.write_all(&[0; 65536]).await.is_ok() {}
                    return said.send(()).await.unwrap();
                }
            }
            said.send(()).await.unwrap();
            let mut more = [0; 64];
            while stream.read(&mut more).await.is_ok_and(|read| read > 0) {}
            said.send(()).await.unwrap();
        }
    })
    .await;
    let world = world(service).await;
    let local = world.local().await;
    let mut clients = Vec::new();
    for (address, bytes) in [
        (world.address, get("/ws") + UPGRADE + "\r\n"),
        (world.address, get("/events") + "\r\n"),
        (world.address, get("/late") + "\r\n"),
        (world.address, get("/flood") + "\r\n"),
        (local, "raw bytes".to_owned()),
    ] {
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(bytes.as_bytes()).await.unwrap();
        clients.push(client);
    }
    for _ in 0..5 {
        within(hear.recv()).await.unwrap();
    }
    world.edge.ended.cancel();
    // Both sides of each learn of it; one client never reads.
    for _ in 0..5 {
        within(hear.recv()).await.unwrap();
    }
    for (number, client) in clients.iter_mut().enumerate().filter(|(number, _)| *number != 3) {
        rest(client).await;
        assert!(client.write_all(b"x").await.is_err() || client.read_u8().await.is_err(), "{number}");
    }
}
