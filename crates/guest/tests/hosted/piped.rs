//! Programs whose standard streams are lanes.

use nullspace_guest_proto as pb;
use pb::run_event::Event;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::{Code, Streaming};

use crate::agent::{Agent, TOKEN, connect};
use crate::bulk::lane;

/// A program with its lanes.
pub struct Program {
    pub pid: u32,
    pub events: Streaming<pb::RunEvent>,
    pub stdio: TcpStream,
    pub stderr: TcpStream,
}

fn tickets(request: pb::RunPipedRequest) -> pb::RunPipedRequest {
    let ticket = |byte| vec![byte; pb::TICKET_BYTES].into();
    pb::RunPipedRequest { stdio_ticket: ticket(1), stderr_ticket: ticket(2), ..request }
}

pub fn line(command: &str) -> pb::RunPipedRequest {
    pb::RunPipedRequest { command: command.into(), shell: true, ..Default::default() }
}

impl Program {
    pub async fn start(agent: &mut Agent, request: pb::RunPipedRequest) -> Self {
        let request = tickets(request);
        let (stdio, stderr) = (request.stdio_ticket.clone(), request.stderr_ticket.clone());
        let (events, stdio, stderr) = tokio::join!(
            agent.client.run_piped(request),
            lane(agent.bulk, &stdio),
            lane(agent.bulk, &stderr)
        );
        let mut events = events.unwrap().into_inner();
        let Some(Event::Started(started)) = events.message().await.unwrap().unwrap().event else {
            panic!("not started");
        };
        Self { pid: started.pid, events, stdio, stderr }
    }

    /// Its exit code.
    pub async fn exited(&mut self) -> i32 {
        let Some(Event::Exited(exited)) = self.events.message().await.unwrap().unwrap().event else {
            panic!("not exited");
        };
        assert!(self.events.message().await.unwrap().is_none());
        exited.exit_code
    }

    /// What it says on standard output, to its end.
    pub async fn output(&mut self) -> String {
        read(&mut self.stdio).await
    }
}

async fn read(lane: &mut TcpStream) -> String {
    let mut text = String::new();
    lane.read_to_string(&mut text).await.unwrap();
    text
}

#[tokio::test]
async fn streams_are_passed_through_and_the_end_is_told() {
    let mut agent = Agent::start().await;
    let command = "cat; echo err >&2; pwd; echo $HOME $MACHINE; test -n \"$SHELL\" && exit 3";
    let mut program = Program::start(&mut agent, line(command)).await;
    let listed = agent.client.list_processes(pb::ListProcessesRequest {}).await.unwrap().into_inner();
    assert!(
        listed
            .processes
            .iter()
            .any(|each| each.pid == program.pid && each.from_api && each.command == command)
    );
    program.stdio.write_all(b"typed\n").await.unwrap();
    program.stdio.shutdown().await.unwrap();
    let output = program.output().await;
    assert_eq!(output, "typed\n/root\n/root of the machine\n");
    assert_eq!(read(&mut program.stderr).await, "err\n");
    assert_eq!(program.exited().await, 3);
    assert!(agent.log(program.pid, pb::Stream::Interleaved, 0).await.is_empty(), "nothing is recorded");
}

#[tokio::test]
async fn output_is_whole_though_input_was_not_read() {
    const BYTES: usize = 8_000_000;
    let mut agent = Agent::start().await;
    let mut program = Program::start(&mut agent, line(&format!("head -c {BYTES} /dev/zero"))).await;
    let (mut output, mut input) = program.stdio.split();
    let mut received = Vec::new();
    let sending = async {
        // Until the program is gone and what it left has been read.
        while input.write_all(&[7; 64 << 10]).await.is_ok() {}
    };
    tokio::select! {
        read = output.read_to_end(&mut received) => drop(read.unwrap()),
        () = sending => panic!("the lane was closed before its output was read"),
    }
    assert_eq!(received.len(), BYTES);
    assert_eq!(program.exited().await, 0);
}

#[tokio::test]
async fn what_is_left_in_the_background_keeps_its_streams() {
    let mut agent = Agent::start().await;
    let fifo = agent.hooks.parent().unwrap().parent().unwrap().join("fifo");
    let command = format!("mkfifo {0}; echo early; (cat {0}) & exit 0", fifo.display());
    let mut program = Program::start(&mut agent, line(&command)).await;
    assert_eq!(program.exited().await, 0);
    // The call is over; what writes still is heard.
    let told = agent.shell(&format!("echo late > {}", fifo.display())).await;
    assert_eq!(told.code(), 0);
    assert_eq!(program.output().await, "early\nlate\n");
}

#[tokio::test]
async fn a_call_that_is_dropped_hangs_its_program_up_and_kills_what_does_not_hear() {
    let mut agent = Agent::start().await;
    for (trap, code) in [("exit 9", 9), ("", 137)] {
        // The shell would say of its `sleep` that it was hung up, on a stream that is closed by then.
        let command =
            format!("exec 2>/dev/null; trap '{trap}' HUP; echo ready; while :; do sleep 0.01; done");
        let mut program = Program::start(&mut agent, line(&command)).await;
        let mut ready = [0; 6];
        program.stdio.read_exact(&mut ready).await.unwrap();
        drop(program.events);
        assert_eq!(agent.attach(program.pid, 0, 0).await.code(), code);
        assert_eq!(read(&mut program.stdio).await, "");
    }
}

#[tokio::test]
async fn without_a_command_it_is_a_login_shell() {
    let mut agent = Agent::start().await;
    let mut program = Program::start(&mut agent, line("")).await;
    program.stdio.write_all(b"echo $0; exit 4\n").await.unwrap();
    assert!(program.output().await.starts_with('-'));
    assert_eq!(program.exited().await, 4);
}

#[tokio::test]
async fn what_cannot_be_started_says_why_and_what_makes_no_sense_is_refused() {
    let mut agent = Agent::start().await;
    let command = |command: &str| pb::RunPipedRequest { command: command.into(), ..Default::default() };
    for (request, reason) in [
        (command("no-such-command"), pb::failed::Reason::CommandNotFound),
        (pb::RunPipedRequest { cwd: "/no/such".into(), ..line("true") }, pb::failed::Reason::BadCwd),
        (pb::RunPipedRequest { user: "no-such-user".into(), ..line("true") }, pb::failed::Reason::BadUser),
    ] {
        let (events, _stdio, _stderr) = tokio::join!(
            agent.client.run_piped(tickets(request)),
            lane(agent.bulk, &[1; pb::TICKET_BYTES]),
            lane(agent.bulk, &[2; pb::TICKET_BYTES])
        );
        let event = events.unwrap().into_inner().message().await.unwrap().unwrap().event.unwrap();
        let Event::Failed(failed) = event else { panic!("{event:?}") };
        assert_eq!(failed.reason(), reason);
    }
    for request in [
        command(""),
        command("a\0b"),
        pb::RunPipedRequest { sftp: true, ..line("true") },
        pb::RunPipedRequest { args: vec!["x".into()], ..line("true") },
        pb::RunPipedRequest { stdio_ticket: vec![1].into(), ..line("true") },
    ] {
        let refused = agent.client.run_piped(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    }
}

#[tokio::test]
async fn a_machine_that_is_adopted_again_has_no_lanes_any_more() {
    let mut agent = Agent::start().await;
    let mut program = Program::start(&mut agent, line("trap '' HUP; echo ready; cat; exec sleep 1000")).await;
    program.stdio.read_exact(&mut [0; 6]).await.unwrap();
    let mut node = connect(agent.address, Some(TOKEN)).await;
    let token = "next-token-next-token-next-token".to_string();
    let request =
        pb::AdoptRequest { token: token.clone(), sandbox_id: "sb_2".into(), ..agent.adopt_request() };
    node.adopt(request).await.unwrap();
    assert_eq!(program.output().await, "");
    agent.client = connect(agent.address, Some(&token)).await;
    assert_eq!(agent.attach(program.pid, 0, 0).await.code(), 137);
}
