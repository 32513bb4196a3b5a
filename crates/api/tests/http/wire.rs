//! What only a connection shows: answers that break off, and bodies that nobody reads.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::fake::{Fake, KEY};

async fn serve(fake: &Fake) -> TcpStream {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = nullspace_api::router(fake.clone());
    tokio::spawn(async move { axum::serve(listener, router).await });
    TcpStream::connect(address).await.unwrap()
}

async fn answer(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    // A reset after the answer would be a fault: it may overtake the answer.
    stream.read_to_end(&mut bytes).await.expect("the connection ends in order");
    String::from_utf8_lossy(&bytes).into_owned()
}

#[tokio::test]
async fn an_answer_whose_source_breaks_has_no_end() {
    let fake = Fake::new();
    let mut stream = serve(&fake).await;
    let body = "{\"command\":\"break\"}";
    let head = format!(
        "POST /v1/sandboxes/{}/exec HTTP/1.1\r\nhost: x\r\nauthorization: {KEY}\r\ncontent-length: {}\r\n\r\n{body}",
        fake.id,
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    // The connection may end in any way; what matters is that the answer does not look whole.
    _ = stream.read_to_end(&mut bytes).await;
    let text = String::from_utf8_lossy(&bytes);
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{}", &text[..text.len().min(200)]);
    assert!(text.contains("transfer-encoding: chunked"));
    assert!(!text.ends_with("0\r\n\r\n"), "the last chunk was sent");
}

#[tokio::test]
async fn a_refused_body_is_read_so_that_the_answer_arrives() {
    let fake = Fake::new();
    for (path, key, status) in [
        (format!("/v1/sandboxes/{}/exec", fake.id), KEY, "413 Payload Too Large"),
        (format!("/v1/sandboxes/{}/exec", fake.id), "Bearer bad", "401 Unauthorized"),
        ("/v1/nothing".to_owned(), KEY, "404 Not Found"),
    ] {
        let mut stream = serve(&fake).await;
        let length = 16 << 20;
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: {key}\r\n\
             content-length: {length}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let chunk = vec![b' '; 1 << 20];
        for _ in 0..length >> 20 {
            stream.write_all(&chunk).await.expect("the body is taken");
        }
        let text = answer(&mut stream).await;
        assert!(text.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{text}");
    }
}

#[tokio::test]
async fn an_upload_that_breaks_off_fails_and_one_in_chunks_arrives() {
    let fake = Fake::new();
    let path = format!("/v1/sandboxes/{}/file?path=/x", fake.id);
    let head = format!(
        "PUT {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: {KEY}\r\ntransfer-encoding: chunked\r\n\r\n"
    );
    let mut stream = serve(&fake).await;
    stream.write_all(format!("{head}2\r\nab\r\n").as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    _ = answer(&mut stream).await;
    assert!(fake.asked.lock().unwrap().is_empty(), "half of a file was taken for a whole one");
    let mut stream = serve(&fake).await;
    stream.write_all(format!("{head}2\r\nab\r\n1\r\nc\r\n0\r\n\r\n").as_bytes()).await.unwrap();
    let text = answer(&mut stream).await;
    assert!(text.starts_with("HTTP/1.1 204 No Content\r\n"), "{text}");
    assert_eq!(*fake.asked.lock().unwrap(), ["(\"/x\", b\"abc\")"]);
}
