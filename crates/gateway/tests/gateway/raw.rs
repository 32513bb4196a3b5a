//! Local addresses: plain TCP underneath.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::world::*;

#[tokio::test]
async fn a_local_address_speaks_http_by_all_its_rules_under_any_name() {
    let world = world(mirror().await).await;
    let local = world.local().await;
    let cookie = format!("__ns_preview_{}", local.port());
    let request = format!(
        "GET /?edge_token=nsp_good HTTP/1.1\r\nHost: localhost:{}\r\nConnection: close\r\n\
         Cookie: __ns_preview_1=other; {cookie}=c-good\r\n\r\n",
        local.port()
    );
    let answer = talk(local, request).await;
    assert!(answer.contains("GET / HTTP/1.1\r\n") && !answer.contains("\r\ncookie:"), "{answer}");
    assert!(answer.contains(&format!("set-cookie: {cookie}=c-good; Max-Age=60; ")), "{answer}");
}

#[tokio::test]
async fn other_protocols_pass_whoever_speaks_first() {
    let greeting = service(|mut stream| async move {
        stream.write_all(b"220 ready\r\n").await.unwrap();
        let line = until(&mut stream, "\n").await;
        stream.write_all(format!("you said {line}").as_bytes()).await.unwrap();
    })
    .await;
    let greeting_world = world(greeting).await;
    let mut client = TcpStream::connect(greeting_world.local().await).await.unwrap();
    assert_eq!(until(&mut client, "\n").await, "220 ready\r\n");
    client.write_all(b"GET is no request here\n").await.unwrap();
    assert_eq!(rest(&mut client).await, "you said GET is no request here\n");

    let binary = service(|mut stream| async move {
        let mut asked = [0; 4];
        stream.read_exact(&mut asked).await.unwrap();
        stream.write_all(&asked).await.unwrap();
        // And the client's end is seen.
        assert_eq!(stream.read(&mut asked).await.unwrap(), 0);
        stream.write_all(b"bye").await.unwrap();
    })
    .await;
    let world = self::world(binary).await;
    let mut client = TcpStream::connect(world.local().await).await.unwrap();
    client.write_all(&[0, 1, 2, 3]).await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(rest(&mut client).await, "\u{0}\u{1}\u{2}\u{3}bye");
}

#[tokio::test]
async fn a_client_that_was_silent_may_speak_http_after_all() {
    let (said, mut hear) = tokio::sync::mpsc::channel(4);
    let service = service(move |mut stream| {
        let said = said.clone();
        async move {
            said.send(()).await.unwrap();
            let Ok(first) = stream.read_u8().await else { return };
            let asked = format!("{}{}", first as char, head(&mut stream).await);
            assert!(asked.contains("x-forwarded-for: 127.0.0.1\r\n"), "{asked}");
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        }
    })
    .await;
    let world = world(service).await;
    let mut client = TcpStream::connect(world.local().await).await.unwrap();
    // The gateway has taken it for a client that waits for the service's word.
    within(hear.recv()).await.unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    assert!(rest(&mut client).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_private_port_takes_no_raw_bytes_but_http_with_its_token() {
    let mut settings = settings();
    settings.private = true;
    let world = settings.start(mirror().await).await;
    let local = world.local().await;
    assert_eq!(talk(local, [0, 1, 2, 3]).await, "");
    let request = "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n";
    let answer = talk(local, format!("{request}\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
    let token = "x-nullspace-traffic-access-token: nst_good\r\n\r\n";
    let answer = talk(local, format!("{request}{token}")).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[tokio::test]
async fn an_address_stands_for_one_port_and_closing_it_cuts_what_is_open_and_frees_it() {
    let world = world(mirror().await).await;
    let local = world.local().await;
    let sandbox = world.edge.sandbox_id;
    world.gateway.open(local.port(), sandbox, PORT).await.unwrap();
    let other = world.gateway.open(local.port(), sandbox, PORT + 1).await.unwrap_err();
    assert_eq!(other.kind(), std::io::ErrorKind::AddrInUse);

    let mut client = TcpStream::connect(local).await.unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    head(&mut client).await;
    world.gateway.close(local.port()).await;
    rest(&mut client).await;
    drop(std::net::TcpListener::bind(local).unwrap());
    world.gateway.open(local.port(), sandbox, PORT + 1).await.unwrap();
}
