//! Requests and answers on their way.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc};

use crate::world::*;

#[tokio::test]
async fn a_request_reaches_the_service_byte_for_byte_but_for_what_was_meant_for_the_gateway() {
    let world = world(mirror().await).await;
    let request = get("/a/../b//%2f?x=%41&edge_token=nsp_good&y")
        + "Connection: close, X-Mine\r\nX-Mine: 1\r\nKeep-Alive: timeout=5\r\nTE: trailers\r\n\
           Cookie: a=1; __ns_preview=c-good\r\nX-Forwarded-For: 192.0.2.7\r\n\
           X-Nullspace-Traffic-Access-Token: nst_x\r\nX-Other: kept\r\n\r\n";
    let answer = world.talk(request).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    for line in [
        "GET /a/../b//%2f?x=%41&y HTTP/1.1\r\n",
        "host: 8000-abc.preview.test\r\n",
        "cookie: a=1\r\n",
        "te: trailers\r\n",
        "x-other: kept\r\n",
        "x-forwarded-for: 192.0.2.7, 127.0.0.1\r\n",
        "x-forwarded-host: 8000-abc.preview.test\r\n",
        "x-forwarded-proto: http\r\n",
        "server: guest\r\n",
        "set-cookie: __ns_preview=c-good; Max-Age=60; Path=/; HttpOnly; SameSite=Lax\r\n",
    ] {
        assert!(answer.contains(line), "{line:?} is not in {answer}");
    }
    for word in ["x-mine", "keep-alive", "nsp_", "nst_", "edge_token"] {
        assert!(!answer.to_lowercase().contains(word), "{word:?} is in {answer}");
    }
}

#[tokio::test]
async fn an_absolute_target_names_the_host_and_a_masked_host_replaces_it() {
    let mut settings = settings();
    settings.mask = Some("localhost:8000".into());
    let world = settings.start(mirror().await).await;
    let request = "GET http://8000-abc.preview.test/p?q HTTP/1.1\r\nHost: other\r\nConnection: close\r\n\r\n";
    let answer = world.talk(request).await;
    assert!(answer.contains("GET /p?q HTTP/1.1\r\n"), "{answer}");
    assert!(answer.contains("host: localhost:8000\r\n"), "{answer}");
    assert!(answer.contains("x-forwarded-host: 8000-abc.preview.test\r\n"), "{answer}");
}

#[tokio::test]
async fn events_arrive_one_by_one_and_a_client_that_leaves_ends_the_stream() {
    let (said, mut hear) = mpsc::channel(1);
    let go = std::sync::Arc::new(Semaphore::new(0));
    let more = go.clone();
    let service = service(move |mut stream| {
        let (more, said) = (more.clone(), said.clone());
        async move {
            head(&mut stream).await;
            let start = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\
                         Transfer-Encoding: chunked\r\n\r\n";
            stream.write_all(start.as_bytes()).await.unwrap();
            for event in 0.. {
                more.acquire().await.unwrap().forget();
                let written = stream.write_all(format!("9\r\ndata: {event}\n\n\r\n").as_bytes()).await;
                if written.is_err() || stream.read_u8().now_or_never_ended() {
                    break;
                }
            }
            said.send(()).await.unwrap();
        }
    })
    .await;
    let world = world(service).await;
    let mut client = TcpStream::connect(world.address).await.unwrap();
    client.write_all((get("/?edge_token=nsp_good") + "\r\n").as_bytes()).await.unwrap();
    assert!(head(&mut client).await.contains("text/event-stream"));
    for event in 0..3 {
        go.add_permits(1);
        assert!(until(&mut client, "\n\n\r\n").await.contains(&format!("data: {event}\n")));
    }
    drop(client);
    go.add_permits(100_000);
    within(hear.recv()).await.unwrap();
}

/// Whether a read that ought to wait has ended.
trait NowOrNever {
    fn now_or_never_ended(self) -> bool;
}

impl<F: Future<Output = std::io::Result<u8>>> NowOrNever for F {
    fn now_or_never_ended(self) -> bool {
        futures::FutureExt::now_or_never(self).is_some()
    }
}

#[tokio::test]
async fn a_large_body_flows_both_ways_at_once_and_is_counted() {
    const PIECES: usize = 512;
    let service = service(|mut stream| async move {
        head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 33554432\r\n\r\n").await.unwrap();
        let (mut read, mut write) = stream.split();
        tokio::io::copy(&mut read, &mut write).await.unwrap();
    })
    .await;
    let world = world(service).await;
    let mut client = TcpStream::connect(world.address).await.unwrap();
    let request = get("/?edge_token=nsp_good").replace("GET", "POST") + "Content-Length: 33554432\r\n\r\n";
    client.write_all(request.as_bytes()).await.unwrap();
    assert!(head(&mut client).await.contains("33554432"));
    let (mut read, mut write) = client.split();
    let piece = |number: usize| -> Vec<u8> { (0..65536).map(|byte| (byte * 7 + number) as u8).collect() };
    let send = async {
        for number in 0..PIECES {
            write.write_all(&piece(number)).await.unwrap();
        }
    };
    let receive = async {
        let mut got = vec![0; 65536];
        for number in 0..PIECES {
            read.read_exact(&mut got).await.unwrap();
            assert!(got == piece(number), "piece {number}");
        }
    };
    within(async { tokio::join!(send, receive) }).await;
    world.counted(33_554_432, 33_554_432).await;
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_the_service_back() {
    let (said, mut hear) = mpsc::channel(1);
    let service = service(move |mut stream| {
        let said = said.clone();
        async move {
            head(&mut stream).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
            let (piece, mut written) = (vec![0; 65536], 0);
            // Until nothing is taken any more.
            while let Ok(Ok(())) =
                tokio::time::timeout(Duration::from_millis(500), stream.write_all(&piece)).await
            {
                written += piece.len();
                if written > 64 << 20 {
                    break;
                }
            }
            said.send(written).await.unwrap();
        }
    })
    .await;
    let world = world(service).await;
    let mut client = TcpStream::connect(world.address).await.unwrap();
    client.write_all((get("/") + "\r\n").as_bytes()).await.unwrap();
    head(&mut client).await;
    let written = within(hear.recv()).await.unwrap();
    assert!(written < 32 << 20, "{written} bytes were taken for a client that reads none");
}

#[tokio::test]
async fn trailers_pass_in_both_directions() {
    let service = service(|mut stream| async move {
        head(&mut stream).await;
        let body = until(&mut stream, "\r\n\r\n").await;
        let answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-End\r\n\r\n";
        let echo = format!("{answer}{:x}\r\n{body}\r\n0\r\nX-End: there\r\n\r\n", body.len());
        stream.write_all(echo.as_bytes()).await.unwrap();
    })
    .await;
    let world = world(service).await;
    let request = get("/").replace("GET", "POST")
        + "TE: trailers\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n\
           3\r\nabc\r\n0\r\nX-Sum: 7\r\n\r\n";
    let answer = world.talk(request).await.to_lowercase();
    assert!(answer.contains("3\r\nabc\r\n0\r\nx-sum: 7\r\n"), "{answer}");
    assert!(answer.contains("\r\n0\r\nx-end: there\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn an_answer_to_head_keeps_its_length_and_one_without_length_ends_with_the_connection() {
    let world = world(scripted("HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n").await).await;
    let answer = world.talk(get("/").replace("GET", "HEAD") + "Connection: close\r\n\r\n").await;
    assert!(answer.contains("content-length: 5000\r\n") && answer.ends_with("\r\n\r\n"), "{answer}");

    let world = self::world(scripted("HTTP/1.0 200 Fine\r\n\r\nall of it").await).await;
    let answer = world.talk(get("/").replace("1.1", "1.0") + "\r\n").await;
    assert!(answer.starts_with("HTTP/1.0 200 Fine\r\n") && answer.ends_with("\r\n\r\nall of it"), "{answer}");
}

#[tokio::test]
async fn a_client_that_asks_first_is_told_to_go_on_by_the_service_alone() {
    let service = service(|mut stream| async move {
        let asked = head(&mut stream).await;
        if asked.contains("/no") {
            stream
                .write_all(b"HTTP/1.1 413 No\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
                .await
                .unwrap();
        } else {
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
            assert_eq!(until(&mut stream, "body").await, "body");
            let answer = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
            stream.write_all(answer).await.unwrap();
        }
        let _ = stream.read_u8().await;
    })
    .await;
    let world = world(service).await;
    let ask =
        |target| get(target).replace("GET", "PUT") + "Expect: 100-continue\r\nContent-Length: 4\r\n\r\n";

    let mut client = TcpStream::connect(world.address).await.unwrap();
    client.write_all(ask("/yes").as_bytes()).await.unwrap();
    assert_eq!(head(&mut client).await, "HTTP/1.1 100 Continue\r\n\r\n");
    client.write_all(b"body").await.unwrap();
    assert!(head(&mut client).await.starts_with("HTTP/1.1 200 "));

    // Refused: it is not told to go on, and what it sends next is not taken for a request.
    let mut client = TcpStream::connect(world.address).await.unwrap();
    client.write_all(ask("/no").as_bytes()).await.unwrap();
    let answer = rest(&mut client).await;
    assert!(answer.starts_with("HTTP/1.1 413 ") && answer.contains("connection: close\r\n"), "{answer}");
}

#[tokio::test]
async fn a_client_that_has_closed_its_side_still_gets_its_answer() {
    let world = world(mirror().await).await;
    let mut client = TcpStream::connect(world.address).await.unwrap();
    client.write_all((get("/") + "\r\n").as_bytes()).await.unwrap();
    client.shutdown().await.unwrap();
    assert!(rest(&mut client).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn connections_are_used_again_and_a_stale_one_costs_nobody_an_answer() {
    let (said, mut hear) = mpsc::channel(16);
    let service = service(move |mut stream| {
        let said = said.clone();
        async move {
            said.send(()).await.unwrap();
            // Two requests, and then it closes when the third has been sent: too late to be known before.
            for _ in 0..2 {
                head(&mut stream).await;
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
            }
            head(&mut stream).await;
        }
    })
    .await;
    let world = world(service).await;
    let mut client = TcpStream::connect(world.address).await.unwrap();
    for _ in 0..6 {
        client.write_all((get("/") + "\r\n").as_bytes()).await.unwrap();
        assert!(head(&mut client).await.starts_with("HTTP/1.1 200 "));
        assert_eq!(until(&mut client, "ok").await, "ok");
    }
    let mut connections = 0;
    while hear.try_recv().is_ok() {
        connections += 1;
    }
    assert_eq!(connections, 3);
}

#[tokio::test]
async fn a_stopped_gateway_ends_with_all_that_is_open() {
    let world = world(mirror().await).await;
    let mut client = TcpStream::connect(world.address).await.unwrap();
    client.write_all((get("/") + "\r\n").as_bytes()).await.unwrap();
    head(&mut client).await;
    world.stop.cancel();
    world.tasks.close();
    within(world.tasks.wait()).await;
    rest(&mut client).await;
    assert!(TcpStream::connect(world.address).await.is_err());
}
