//! Connections into what listens in the machine, and out of ports in it.

use std::net::SocketAddr;

use nullspace_guest_proto as pb;
use pb::listen_event::Event;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tonic::{Code, Status};

use crate::agent::Agent;
use crate::bulk::lane;

const TICKET: [u8; pb::TICKET_BYTES] = [3; pb::TICKET_BYTES];

async fn connect(agent: &mut Agent, request: pb::ConnectRequest) -> Result<TcpStream, Status> {
    let request = pb::ConnectRequest { ticket: TICKET.to_vec().into(), ..request };
    let (answer, lane) = tokio::join!(agent.client.connect(request), lane(agent.bulk, &TICKET));
    answer.map(|_| lane)
}

fn to(host: &str, port: u16) -> pb::ConnectRequest {
    pb::ConnectRequest { host: host.into(), port: port.into(), ..Default::default() }
}

/// Sends, ends sending, and reads to the end: what the other side answers once it has heard it all.
async fn ask(lane: &mut TcpStream, question: &[u8]) -> Vec<u8> {
    lane.write_all(question).await.unwrap();
    lane.shutdown().await.unwrap();
    let mut answer = Vec::new();
    lane.read_to_end(&mut answer).await.unwrap();
    answer
}

/// Answers what was sent, backwards, once it has ended.
async fn answer<S: AsyncReadExt + AsyncWriteExt + Unpin>(mut stream: S) {
    let mut question = Vec::new();
    stream.read_to_end(&mut question).await.unwrap();
    question.reverse();
    stream.write_all(&question).await.unwrap();
}

#[tokio::test]
async fn a_connection_goes_both_ways_and_each_way_ends_by_itself() {
    let mut agent = Agent::start().await;
    let service = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = service.local_addr().unwrap().port();
    let question: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    let backwards: Vec<u8> = question.iter().rev().copied().collect();
    for host in ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]"] {
        let serving = async { answer(service.accept().await.unwrap().0).await };
        let asking = async {
            let mut lane = connect(&mut agent, to(host, port)).await.unwrap();
            assert!(ask(&mut lane, &question).await == backwards, "{host}");
        };
        tokio::join!(serving, asking);
    }
    let path = agent.hooks.parent().unwrap().parent().unwrap().join("socket");
    let service = UnixListener::bind(&path).unwrap();
    let request = pb::ConnectRequest { path: path.to_str().unwrap().into(), ..Default::default() };
    let serving = async { answer(service.accept().await.unwrap().0).await };
    let asking = async {
        let mut lane = connect(&mut agent, request).await.unwrap();
        assert_eq!(ask(&mut lane, b"abc").await, b"cba");
    };
    tokio::join!(serving, asking);
}

#[tokio::test]
async fn what_is_not_there_is_unavailable_and_what_means_nothing_is_refused() {
    let mut agent = Agent::start().await;
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let path = |path: &str| pb::ConnectRequest { path: path.into(), ..Default::default() };
    for (request, code) in [
        (to("127.0.0.1", closed), Code::Unavailable),
        (path("/no/such/socket"), Code::Unavailable),
        (path("relative"), Code::InvalidArgument),
        (to("no name", 80), Code::InvalidArgument),
        (to("127.0.0.1", 0), Code::InvalidArgument),
        (pb::ConnectRequest { port: 65536, ..to("127.0.0.1", 0) }, Code::InvalidArgument),
        (pb::ConnectRequest { path: "/x".into(), ..to("127.0.0.1", 80) }, Code::InvalidArgument),
        (pb::ConnectRequest::default(), Code::InvalidArgument),
    ] {
        assert_eq!(connect(&mut agent, request.clone()).await.unwrap_err().code(), code, "{request:?}");
    }
}

#[tokio::test]
async fn lanes_of_calls_that_were_refused_leave_room_for_others() {
    let mut agent = Agent::start().await;
    for round in 0..2 * pb::BULK_LANES {
        let ticket = [round as u8; pb::TICKET_BYTES];
        let request = pb::ConnectRequest { ticket: ticket.to_vec().into(), ..to("no name", 80) };
        let lane = lane(agent.bulk, &ticket).await;
        let refused = agent.client.connect(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{round}: {refused}");
        drop(lane);
    }
    let service = TcpListener::bind("127.0.0.1:0").await.unwrap();
    connect(&mut agent, to("127.0.0.1", service.local_addr().unwrap().port())).await.unwrap();
}

#[tokio::test]
async fn a_port_is_listened_on_and_what_comes_is_taken_once() {
    let mut agent = Agent::start().await;
    let request = pb::ListenRequest { host: "localhost".into(), port: 0 };
    let mut events = agent.client.listen(request).await.unwrap().into_inner();
    let Some(Event::Listening(listening)) = events.message().await.unwrap().unwrap().event else {
        panic!("does not listen");
    };
    let address = SocketAddr::from(([127, 0, 0, 1], listening.port as u16));
    for _ in 0..3 {
        let mut caller = TcpStream::connect(address).await.unwrap();
        let Some(Event::Arrived(arrived)) = events.message().await.unwrap().unwrap().event else {
            panic!("nothing arrived");
        };
        assert_eq!(arrived.host, "127.0.0.1");
        assert_eq!(arrived.port, u32::from(caller.local_addr().unwrap().port()));
        let request =
            pb::TakeConnectionRequest { connection: arrived.connection, ticket: TICKET.to_vec().into() };
        let (taken, lane) =
            tokio::join!(agent.client.take_connection(request.clone()), lane(agent.bulk, &TICKET));
        taken.unwrap();
        let (_, answered) = tokio::join!(answer(lane), ask(&mut caller, b"abc"));
        assert_eq!(answered, b"cba");
        assert_eq!(agent.client.take_connection(request).await.unwrap_err().code(), Code::NotFound);
    }
    let again = pb::ListenRequest { host: "127.0.0.1".into(), port: listening.port };
    assert_eq!(agent.client.listen(again.clone()).await.unwrap_err().code(), Code::AlreadyExists);

    // One that was not taken goes with the port.
    let mut left = TcpStream::connect(address).await.unwrap();
    events.message().await.unwrap().unwrap();
    drop(events);
    assert_eq!(left.read(&mut [0]).await.unwrap_or(0), 0);
    // The port is free by then.
    drop(agent.client.listen(again).await.unwrap());
}
