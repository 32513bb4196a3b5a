//! Requests that are made to be misread, and clients that hold what others need.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::world::*;

/// A service that counts heads that begin with a method, wherever they stand, and answers each.
async fn counting() -> (std::net::SocketAddr, Arc<AtomicUsize>) {
    let seen = Arc::new(AtomicUsize::new(0));
    let count = seen.clone();
    let address = service(move |mut stream| {
        let count = count.clone();
        async move {
            let mut text = Vec::new();
            while stream.read_buf(&mut text).await.is_ok_and(|read| read > 0) {
                if String::from_utf8_lossy(&text).contains("smuggled") {
                    count.fetch_add(100, Ordering::SeqCst);
                }
                if text.windows(4).any(|window| window == b"\r\n\r\n") {
                    count.fetch_add(1, Ordering::SeqCst);
                    text.clear();
                    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
                    let _ = stream.write_all(answer).await;
                    return;
                }
            }
        }
    })
    .await;
    (address, seen)
}

#[tokio::test]
async fn a_request_that_could_be_read_in_two_ways_is_refused_and_never_reaches_the_service() {
    let (service, seen) = counting().await;
    let world = world(service).await;
    let host = "Host: 8000-abc.preview.test\r\n";
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: 8000-abc.preview.test\r\n\r\n";
    for (request, what) in [
        (
            format!("POST / HTTP/1.1\r\n{host}Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"),
            "two lengths",
        ),
        (format!("POST / HTTP/1.1\r\n{host}Content-Length: 3, 4\r\n\r\nabcd"), "a list of lengths"),
        (format!("POST / HTTP/1.1\r\n{host}Content-Length: +3\r\n\r\nabc"), "a signed length"),
        (format!("POST / HTTP/1.1\r\n{host}Content-Length: 0x3\r\n\r\nabc"), "a hexadecimal length"),
        (format!("POST / HTTP/1.1\r\n{host}Content-Length : 3\r\n\r\nabc"), "a space before the colon"),
        (format!("POST / HTTP/1.1\r\n{host}Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n"), "a space again"),
        (
            format!("POST / HTTP/1.1\r\n{host}Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n"),
            "not chunked last",
        ),
        (
            format!("POST / HTTP/1.1\r\n{host}Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
            "another coding",
        ),
        (
            format!("POST / HTTP/1.1\r\n{host}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
            "no coding at all",
        ),
        (
            format!(
                "POST / HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
            ),
            "two codings",
        ),
        (
            format!("POST / HTTP/1.0\r\n{host}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}"),
            "1.0 and chunked",
        ),
        (format!("GET / HTTP/1.1\r\n{host}X-A: b\r\n Content-Length: 9\r\n\r\n"), "a folded line"),
        (format!("GET / HTTP/1.1\r\n{host}X-A: b\0c\r\n\r\n"), "a zero byte"),
        (format!("GET / HTTP/1.1\r\n{host}X-A: b\rContent-Length: 9\r\n\r\n"), "a bare return"),
        (format!("GET / HTTP/1.1\r\n{host}: no name\r\n\r\n"), "no name"),
        (format!("GET /a b HTTP/1.1\r\n{host}\r\n"), "a space in the target"),
        (format!("GET / HTTP/1.1\r\n{host}Host: 8000-xyz.preview.test\r\n\r\n"), "two hosts"),
        ("GET / HTTP/1.1\r\nHost: a@8000-abc.preview.test\r\n\r\n".to_owned(), "a user in the host"),
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), "no host"),
        (format!("CONNECT 8000-abc.preview.test:80 HTTP/1.1\r\n{host}\r\n"), "CONNECT"),
        (format!("GET / HTTP/3.9\r\n{host}\r\n"), "another version"),
    ] {
        let mut client = TcpStream::connect(world.address).await.unwrap();
        client.write_all(request.as_bytes()).await.unwrap();
        client.shutdown().await.unwrap();
        let answer = rest(&mut client).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{what}: {answer}");
        assert_eq!(seen.load(Ordering::SeqCst), 0, "{what} reached the service");
    }
}

#[tokio::test]
async fn with_both_lengths_the_chunks_count_the_other_is_dropped_and_nothing_follows() {
    let service = service(|mut stream| async move {
        let asked = head(&mut stream).await;
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{asked}", asked.len());
        until(&mut stream, "0\r\n\r\n").await;
        stream.write_all(answer.as_bytes()).await.unwrap();
        assert!(stream.read_u8().await.is_err(), "something followed");
    })
    .await;
    for lengths in [
        "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
    ] {
        let request = get("/").replace("GET", "POST")
            + lengths
            + "\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: 8000-abc.preview.test\r\n\r\n";
        let answer = world(service).await.talk(request).await;
        assert!(answer.contains("transfer-encoding: chunked\r\n"), "{answer}");
        assert!(!answer.contains("content-length: 4") && !answer.contains("smuggled"), "{answer}");
        assert_eq!(answer.matches("HTTP/1.1 200 ").count(), 1, "{answer}");
    }
}

#[tokio::test]
async fn a_broken_chunk_breaks_the_request_off() {
    let (service, seen) = counting().await;
    let world = world(service).await;
    for chunks in [
        "-1\r\nabc\r\n",
        "0x3\r\nabc\r\n0\r\n\r\n",
        "3\r\nabcd\r\n0\r\n\r\n",
        "ffffffffffffffffff\r\nabc",
        "3 \n\nabc\r\n0\r\n\r\n",
        "3;\nabc\r\n0\r\n\r\n",
    ] {
        let request = get("/").replace("GET", "POST")
            + "Transfer-Encoding: chunked\r\n\r\n"
            + chunks
            + "GET /smuggled HTTP/1.1\r\nHost: 8000-abc.preview.test\r\n\r\n";
        let mut client = TcpStream::connect(world.address).await.unwrap();
        client.write_all(request.as_bytes()).await.unwrap();
        client.shutdown().await.unwrap();
        let answer = rest(&mut client).await;
        assert!(answer.matches("HTTP/1.1 ").count() <= 1, "{chunks:?}: {answer}");
    }
    assert!(seen.load(Ordering::SeqCst) < 100, "a request was smuggled");
}

#[tokio::test]
async fn heads_are_bounded_in_size_and_number_and_time() {
    let (service, seen) = counting().await;
    let mut settings = settings();
    settings.config.head_timeout_secs = 1;
    settings.config.head_bytes_max = 8192;
    let world = settings.start(service).await;
    let long = get("/") + "X-Long: " + &"x".repeat(16_384) + "\r\n\r\n";
    assert!(world.talk(long).await.starts_with("HTTP/1.1 431 "));
    let many = get("/") + &"X: y\r\n".repeat(200) + "\r\n";
    assert!(world.talk(many).await.starts_with("HTTP/1.1 431 "));
    let target = get(&format!("/{}", "x".repeat(70_000))) + "\r\n";
    assert!(world.talk(target).await.starts_with("HTTP/1.1 4"));
    // One that never ends its head, one that never begins it, and one that keeps a used connection.
    for begun in [get("/"), String::new(), "GE".to_owned()] {
        assert!(!world.talk(begun).await.contains("200"));
    }
    assert_eq!(seen.load(Ordering::SeqCst), 0);
    let answer = world.talk(get("/") + "\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[tokio::test]
async fn connections_beyond_the_most_wait_until_one_closes_and_sockets_keep_their_places() {
    let service = service(|mut stream| async move {
        let asked = head(&mut stream).await;
        let answer: &[u8] = if asked.contains("/ws") {
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: tcp\r\n\r\n"
        } else {
            b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
        };
        stream.write_all(answer).await.unwrap();
        let _ = stream.read_u8().await;
    })
    .await;
    let mut settings = settings();
    settings.config.connections_max = 1;
    let world = settings.start(service).await;
    let mut first = TcpStream::connect(world.address).await.unwrap();
    first.write_all((get("/ws") + "Connection: upgrade\r\nUpgrade: tcp\r\n\r\n").as_bytes()).await.unwrap();
    head(&mut first).await;
    let mut second = TcpStream::connect(world.address).await.unwrap();
    second.write_all((get("/") + "Connection: close\r\n\r\n").as_bytes()).await.unwrap();
    let early = tokio::time::timeout(std::time::Duration::from_millis(300), second.readable()).await;
    assert!(early.is_err(), "it was served beside the first");
    drop(first);
    assert!(rest(&mut second).await.starts_with("HTTP/1.1 200 "));
}
