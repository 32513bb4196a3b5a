//! Adoption again: what a machine is after it was captured and restored, and what it runs then.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use nullspace_guest_proto as pb;
use tonic::Code;

use crate::agent::{Agent, CHECKPOINT_TOKEN, Client, TOKEN, connect, shell};
use crate::uploads::{Uploads, wish};

const NEXT_TOKEN: &str = "next-token-next-token-next-token";

/// What makes the machine of `agent` another sandbox.
fn again(agent: &Agent) -> pb::AdoptRequest {
    pb::AdoptRequest {
        sandbox_id: "sb_2".into(),
        token: NEXT_TOKEN.into(),
        hostname: "sb-2".into(),
        envs: [("CHILD".to_string(), "of the child".to_string())].into(),
        cwd: agent.cwd.parent().unwrap().join("other").to_str().unwrap().into(),
        ..agent.adopt_request()
    }
}

async fn sandbox_id(client: &mut Client) -> String {
    client.hello(pb::HelloRequest { generation: 1 }).await.unwrap().into_inner().sandbox_id
}

#[tokio::test]
async fn a_restored_machine_is_adopted_again_and_what_ran_in_it_goes_on() {
    let mut agent = Agent::start().await;
    let ended = agent.shell("echo said before").await.pid.unwrap();
    let running = agent.start_process("read line; echo $line $MACHINE$CHILD; pwd").await;
    agent.client.begin(wish(2000)).await.unwrap();
    agent.client.part(0, &[7; 1000]).await.unwrap();
    fs::create_dir_all(&agent.cwd).unwrap();
    let watch = pb::WatchFilesRequest { path: ".".into(), ..Default::default() };
    let mut watch = agent.client.watch_files(watch).await.unwrap().into_inner();
    assert!(watch.message().await.unwrap().is_some());
    let mut follow = agent.client.run(shell("echo said; sleep 30")).await.unwrap().into_inner();
    while !matches!(follow.message().await.unwrap().unwrap().event.unwrap(), pb::run_event::Event::Output(_))
    {
    }

    let mut node = connect(agent.address, Some(TOKEN)).await;
    let request = again(&agent);
    let reply = node.adopt(request.clone()).await.unwrap().into_inner();
    assert!(reply.token && reply.environment && reply.hooks.is_empty());

    // What was a link is none any more; the one that adopts is.
    assert!(!matches!(watch.message().await, Ok(Some(_))));
    assert!(!matches!(follow.message().await, Ok(Some(_))));
    assert_eq!(node.adopt(request.clone()).await.unwrap().into_inner(), reply);
    let refused = node.metrics(pb::MetricsRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated, "the token of before");

    agent.client = connect(agent.address, Some(NEXT_TOKEN)).await;
    assert_eq!(agent.client.adopt(request).await.unwrap().into_inner(), reply);
    assert_eq!(sandbox_id(&mut agent.client).await, "sb_2");
    let now = agent.shell("echo $MACHINE$CHILD; pwd").await;
    assert_eq!(now.text(), format!("of the child\n{}\n", again(&agent).cwd));
    assert_eq!(agent.log(ended, pb::Stream::Stdout, 0).await, b"said before\n");
    let line = pb::WriteStdinRequest { pid: running, data: b"still\n"[..].into(), close: true };
    agent.client.write_stdin(line).await.unwrap();
    let outcome = agent.attach(running, 0, 0).await;
    assert_eq!(outcome.text(), format!("still of the machine\n{}\n", agent.cwd.display()));
    assert_eq!(agent.client.state().await.accepted_bytes, 1000);
    agent.client.part(1, &[8; 1000]).await.unwrap();
    agent.client.complete(bytes::Bytes::new()).await.unwrap();
}

#[tokio::test]
async fn only_who_holds_the_token_adopts_again_and_only_as_a_new_one() {
    let agent = Agent::start().await;
    let mut own = agent.client.clone();
    let refused = |answer: Result<_, tonic::Status>| answer.map(drop).unwrap_err().code();
    let same_token = pb::AdoptRequest { token: TOKEN.into(), ..again(&agent) };
    assert_eq!(refused(own.adopt(same_token).await), Code::FailedPrecondition);
    let resumed_as_another = pb::AdoptRequest { resumed: true, ..again(&agent) };
    assert_eq!(refused(own.adopt(resumed_as_another).await), Code::FailedPrecondition);
    let mut before = connect(agent.address, Some(CHECKPOINT_TOKEN)).await;
    assert_eq!(refused(before.adopt(again(&agent)).await), Code::FailedPrecondition);
    assert_eq!(sandbox_id(&mut own).await, "sb_1", "what is refused changes nothing");

    let resumed = pb::AdoptRequest { resumed: true, sandbox_id: "sb_1".into(), ..again(&agent) };
    own.adopt(resumed).await.unwrap();
    assert_eq!(refused(before.adopt(again(&agent)).await), Code::Unauthenticated);

    let mut bare = Agent::bare(None).await;
    let resumed = pb::AdoptRequest { resumed: true, ..bare.adopt_request() };
    assert_eq!(refused(bare.client.adopt(resumed).await), Code::FailedPrecondition);
}

#[tokio::test]
async fn an_authority_is_in_place_with_the_adoption_and_programs_are_told_unless_they_know_better() {
    let mut agent = Agent::start().await;
    let bundle = agent.hooks.parent().unwrap().join("root/etc/ssl/certs/ca-certificates.crt");
    fs::create_dir_all(bundle.parent().unwrap()).unwrap();
    fs::write(&bundle, "# theirs\n").unwrap();
    let certificate = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let envs = [("CURL_CA_BUNDLE".to_string(), "own".to_string())].into();
    let request = pb::AdoptRequest { authority_pem: certificate.into(), envs, ..again(&agent) };
    let wrong = pb::AdoptRequest { authority_pem: "none".into(), ..request.clone() };
    assert_eq!(agent.client.adopt(wrong).await.unwrap_err().code(), Code::InvalidArgument);
    assert!(agent.client.adopt(request).await.unwrap().into_inner().authority);
    agent.client = connect(agent.address, Some(NEXT_TOKEN)).await;
    let line = "cat $SSL_CERT_FILE $NODE_EXTRA_CA_CERTS; echo $CURL_CA_BUNDLE";
    let told = agent.shell(line).await;
    assert_eq!((told.text().matches(certificate).count(), told.text().ends_with("own\n")), (2, true));

    agent.client.set_authority(pb::SetAuthorityRequest::default()).await.unwrap();
    assert_eq!(agent.shell("echo $SSL_CERT_FILE$NODE_EXTRA_CA_CERTS").await.text(), "\n");
    assert_eq!(fs::read_to_string(&bundle).unwrap(), "# theirs\n");
}

#[tokio::test]
async fn of_two_adoptions_by_the_same_token_one_is_done() {
    let agent = Agent::start().await;
    let (mut one, mut two) = (agent.client.clone(), connect(agent.address, Some(TOKEN)).await);
    let other = pb::AdoptRequest { token: "t".repeat(32), sandbox_id: "sb_3".into(), ..again(&agent) };
    let (one, two) = tokio::join!(one.adopt(again(&agent)), two.adopt(other));
    // The link of the one that is not done may be ended before it is answered.
    assert_eq!(usize::from(one.is_ok()) + usize::from(two.is_ok()), 1, "{one:?} {two:?}");
}

#[tokio::test]
async fn hooks_run_in_order_at_each_restore_and_what_becomes_of_them_is_told() {
    let mut agent = Agent::start().await;
    fs::create_dir_all(&agent.hooks).unwrap();
    for (name, script) in [
        (
            "10-says",
            "#!/bin/sh\necho $NULLSPACE_REASON of $NULLSPACE_SANDBOX_ID $CHILD; pwd >&2; (sleep 30 &)",
        ),
        ("20-fails", "#!/bin/sh\nexit 3"),
        ("30-never-ends", "#!/bin/sh\necho begun; sleep 1000; echo never"),
        ("40-nothing-runs-it", "#!/no/such/interpreter"),
        ("50-goes-on", "#!/bin/sh\nkill -9 $$"),
    ] {
        let path = agent.hooks.join(name);
        fs::write(&path, script).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o700)).unwrap();
    }
    let reply = agent.client.adopt(again(&agent)).await.unwrap().into_inner();
    let told: Vec<_> = reply.hooks.iter().map(|hook| (&*hook.name, hook.exit_code, &*hook.output)).collect();
    let expected = [
        ("10-says", 0, "restore of sb_2 of the child\n/\n"),
        ("20-fails", 3, ""),
        ("30-never-ends", 124, "begun\n"),
        ("40-nothing-runs-it", 126, "not run: its interpreter does not exist"),
        ("50-goes-on", 137, ""),
    ];
    assert_eq!(told, expected);
    agent.client = connect(agent.address, Some(NEXT_TOKEN)).await;
    let listed = agent.client.list_processes(pb::ListProcessesRequest {}).await.unwrap().into_inner();
    let from_api = listed.processes.iter().filter(|process| process.from_api).count();
    assert_eq!(from_api, 0, "a hook is no process of the API");
    let again = pb::AdoptRequest { resumed: true, token: TOKEN.into(), ..again(&agent) };
    fs::remove_file(agent.hooks.join("30-never-ends")).unwrap();
    assert_eq!(agent.client.adopt(again).await.unwrap().into_inner().hooks.len(), 4);
}
