//! The lane for bulk data.

use std::net::SocketAddr;
use std::time::Duration;

use nullspace_guest_proto as pb;
use pb::write_file_request::Part;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use crate::agent::Agent;

const TICKET: [u8; pb::TICKET_BYTES] = [7; pb::TICKET_BYTES];

fn content() -> Vec<u8> {
    (0..(pb::BULK_FROM_BYTES as usize * 3 + 77)).map(|n| (n % 251) as u8).collect()
}

pub async fn lane(address: SocketAddr, ticket: &[u8]) -> TcpStream {
    let mut lane = TcpStream::connect(address).await.unwrap();
    lane.write_all(ticket).await.unwrap();
    lane
}

fn start(path: &str) -> pb::WriteFileRequest {
    let start = pb::WriteFileStart { path: path.into(), user: String::new(), ticket: TICKET.to_vec().into() };
    pb::WriteFileRequest { part: Some(Part::Start(start)) }
}

fn told(bytes: u64) -> pb::WriteFileRequest {
    pb::WriteFileRequest { part: Some(Part::BulkBytes(bytes)) }
}

/// Writes a file over the lane, and tells of so many bytes.
async fn write(agent: &mut Agent, content: &[u8], tell: Option<u64>) -> Result<pb::FileInfo, tonic::Status> {
    let (send, requests) = mpsc::channel(2);
    send.send(start("bulk")).await.unwrap();
    let mut lane = lane(agent.bulk, &TICKET).await;
    let mut client = agent.client.clone();
    let call = tokio::spawn(async move { client.write_file(ReceiverStream::new(requests)).await });
    lane.write_all(content).await.unwrap();
    lane.shutdown().await.unwrap();
    if let Some(bytes) = tell {
        send.send(told(bytes)).await.unwrap();
    }
    drop(send);
    call.await.unwrap().map(|reply| reply.into_inner())
}

#[tokio::test]
async fn a_file_comes_over_the_lane_and_goes_back_over_it_whole_and_in_part() {
    let mut agent = Agent::start().await;
    let content = content();
    let info = write(&mut agent, &content, Some(content.len() as u64)).await.unwrap();
    assert_eq!(info.size, content.len() as u64);
    assert_eq!(std::fs::read(agent.cwd.join("bulk")).unwrap(), content);
    for (offset, length) in [(0, 0), (5, 0), (4096, pb::BULK_FROM_BYTES + 1)] {
        let ticket = [offset as u8 + 1; pb::TICKET_BYTES];
        let read = pb::ReadFileRequest {
            path: "bulk".into(),
            offset,
            length,
            ticket: ticket.to_vec().into(),
            ..Default::default()
        };
        let mut chunks = agent.client.read_file(read).await.unwrap().into_inner();
        let first = chunks.message().await.unwrap().unwrap();
        assert!(first.bulk && first.data.is_empty() && first.size == content.len() as u64);
        let mut got = Vec::new();
        lane(agent.bulk, &ticket).await.read_to_end(&mut got).await.unwrap();
        let wanted = &content[offset as usize..];
        let wanted = if length == 0 { wanted } else { &wanted[..length as usize] };
        assert!(got == wanted, "from {offset}, {length} bytes");
        assert_eq!(chunks.message().await.unwrap().unwrap().bulk_bytes, wanted.len() as u64);
        assert!(chunks.message().await.unwrap().is_none());
    }
}

#[tokio::test]
async fn a_small_file_needs_no_lane() {
    let mut agent = Agent::start().await;
    agent.write("small", "", b"content").await.unwrap();
    let read =
        pb::ReadFileRequest { path: "small".into(), ticket: TICKET.to_vec().into(), ..Default::default() };
    let mut chunks = agent.client.read_file(read).await.unwrap().into_inner();
    let first = chunks.message().await.unwrap().unwrap();
    assert!(!first.bulk && &first.data[..] == b"content");
}

#[tokio::test]
async fn what_did_not_come_whole_is_not_published() {
    let mut agent = Agent::start().await;
    let content = content();
    let length = content.len() as u64;
    for (tell, code) in
        [(Some(length + 1), Code::Aborted), (Some(0), Code::Aborted), (None, Code::InvalidArgument)]
    {
        assert_eq!(write(&mut agent, &content, tell).await.unwrap_err().code(), code, "{tell:?}");
    }
    // A call that is dropped while its lane is open.
    let (send, requests) = mpsc::channel(2);
    send.send(start("bulk")).await.unwrap();
    let mut client = agent.client.clone();
    let call = tokio::spawn(async move { client.write_file(ReceiverStream::new(requests)).await });
    let mut lane = lane(agent.bulk, &TICKET).await;
    lane.write_all(&content).await.unwrap();
    call.abort();
    // The agent lets the lane go.
    let mut rest = Vec::new();
    _ = lane.read_to_end(&mut rest).await;
    assert!(rest.is_empty());
    // And then the file, in its own time.
    let empty = async {
        while std::fs::read_dir(&agent.cwd).unwrap().next().is_some() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), empty).await.expect("nothing is left");
}

#[tokio::test]
async fn a_ticket_of_the_wrong_length_is_refused() {
    let mut agent = Agent::start().await;
    let start = pb::WriteFileStart { path: "bulk".into(), user: String::new(), ticket: vec![1, 2].into() };
    let request = pb::WriteFileRequest { part: Some(Part::Start(start)) };
    let refused = agent.client.write_file(tokio_stream::iter([request])).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
}
