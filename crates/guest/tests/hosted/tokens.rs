//! Who may call, and adoption.

use nullspace_guest_proto as pb;
use tonic::Code;

use crate::agent::{Agent, CHECKPOINT_TOKEN, TOKEN, connect};

#[tokio::test]
async fn before_adoption_only_what_prepares_the_machine_is_answered() {
    let mut agent = Agent::bare(None).await;
    let hello = agent.client.hello(pb::HelloRequest { generation: 1 }).await.unwrap().into_inner();
    assert_eq!((hello.generation, hello.sandbox_id.as_str()), (pb::GENERATION, ""));
    assert!(hello.agent_start_us > 0 && !hello.kernel_release.is_empty());
    let refused = agent.client.metrics(pb::MetricsRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let run = pb::RunRequest { command: "true".into(), ..Default::default() };
    let mut events = agent.client.run(run).await.unwrap().into_inner();
    while events.message().await.unwrap().is_some() {}
    for token in [None, Some("wrong")] {
        let mut stranger = connect(agent.address, token).await;
        let refused = stranger.hello(pb::HelloRequest { generation: 1 }).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated);
    }
}

#[tokio::test]
async fn the_same_adoption_again_answers_the_same_and_another_is_refused() {
    let mut agent = Agent::bare(None).await;
    let request = agent.adopt_request();
    let mut bad = request.clone();
    bad.machine_id = "short".into();
    assert_eq!(agent.client.adopt(bad).await.unwrap_err().code(), Code::InvalidArgument);
    let first = agent.client.adopt(request.clone()).await.unwrap().into_inner();
    assert!(first.token && first.environment);
    // The caller that lost the answer has only the old token for sure.
    assert_eq!(agent.client.adopt(request.clone()).await.unwrap().into_inner(), first);
    let mut own = connect(agent.address, Some(TOKEN)).await;
    assert_eq!(own.adopt(request.clone()).await.unwrap().into_inner(), first);
    let another_name = pb::AdoptRequest { sandbox_id: "sb_2".into(), ..request.clone() };
    let another_token = pb::AdoptRequest { token: "x".repeat(32), ..request.clone() };
    for other in [another_name, another_token] {
        assert_eq!(agent.client.adopt(other).await.unwrap_err().code(), Code::FailedPrecondition);
    }
    assert_eq!(own.hello(pb::HelloRequest { generation: 1 }).await.unwrap().into_inner().sandbox_id, "sb_1");
    let mut old = connect(agent.address, Some(CHECKPOINT_TOKEN)).await;
    assert_eq!(old.metrics(pb::MetricsRequest {}).await.unwrap_err().code(), Code::Unauthenticated);
    let metrics = own.metrics(pb::MetricsRequest {}).await.unwrap().into_inner();
    assert!(
        metrics.mem_total_bytes > metrics.mem_used_bytes
            && metrics.cpu_count > 0
            && metrics.disk_total_bytes > 0
    );
}
