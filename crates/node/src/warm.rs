//! What a machine runs before it is anybody's, so that the first command costs a user nothing that
//! could be paid before: in a template, so that the programs are in its page cache; in a spare
//! machine, so that under TCG their code is translated.

use nullspace_guest_proto as proto;
use nullspace_guest_proto::run_event::Event;
use nullspace_types::Error;

use crate::guest::{Client, PATIENCE, failed};

/// Runs a program and a shell line, each to its end.
pub async fn run_first_commands(client: &mut Client) -> Result<(), Error> {
    run_one_command(client).await?;
    let shell = proto::RunRequest {
        command: "cat /etc/hostname | head -c 1 && ls / && python3 -c 'pass'".into(),
        shell: true,
        inline_limit: 1 << 16,
        ..Default::default()
    };
    run(client, shell).await
}

/// Runs what makes a restored machine quick, and no more.
pub async fn run_one_command(client: &mut Client) -> Result<(), Error> {
    let quick = proto::RunRequest {
        command: "true".into(),
        inline_limit: 1 << 16,
        hold_ms: 50,
        ..Default::default()
    };
    run(client, quick).await
}

async fn run(client: &mut Client, request: proto::RunRequest) -> Result<(), Error> {
    let what = request.command.clone();
    let end = async {
        let mut events = client.run(request).await?.into_inner();
        while let Some(event) = events.message().await? {
            match event.event {
                Some(Event::Exited(_)) => return Ok(()),
                Some(Event::Failed(failure)) => return Err(tonic::Status::internal(failure.message)),
                _ => {}
            }
        }
        Err(tonic::Status::internal("the command has no end"))
    };
    match tokio::time::timeout(PATIENCE, end).await {
        Ok(outcome) => outcome.map_err(|status| failed(&what, &status)),
        Err(_) => Err(Error::internal(format!("{what}: the guest does not answer"))),
    }
}
