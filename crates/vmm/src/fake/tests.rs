//! Fake machines that are captured and restored.

use std::os::fd::OwnedFd;

use nullspace_guest_proto as proto;
use nullspace_guest_proto::agent_client::AgentClient;
use nullspace_guest_proto::run_event::Event;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use super::*;

type Client = AgentClient<tonic::service::interceptor::InterceptedService<Channel, Bearer>>;

#[derive(Clone)]
struct Bearer(&'static str);

impl tonic::service::Interceptor for Bearer {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status> {
        let value = format!("Bearer {}", self.0).parse().unwrap();
        request.metadata_mut().insert("authorization", value);
        Ok(request)
    }
}

fn client(machine: &Arc<dyn Monitor>, token: &'static str) -> Client {
    let link = machine.link();
    let connect = tower::service_fn(move |_| {
        let link = Arc::clone(&link);
        async move { link.dial(Duration::ZERO).await.map(hyper_util::rt::TokioIo::new) }
    });
    let channel = Endpoint::from_static("http://guest").connect_with_connector_lazy(connect);
    AgentClient::with_interceptor(channel, Bearer(token))
}

fn placement(directory: &Path) -> Placement {
    struct Nowhere;
    #[async_trait]
    impl GuestLink for Nowhere {
        async fn dial(&self, _: Duration) -> std::io::Result<Box<dyn LinkStream>> {
            Err(std::io::ErrorKind::Unsupported.into())
        }
        fn has_bulk(&self) -> bool {
            false
        }
        async fn dial_bulk(&self, _: Duration) -> std::io::Result<Box<dyn LinkStream>> {
            Err(std::io::ErrorKind::Unsupported.into())
        }
    }
    Placement {
        name: "fake".into(),
        directory: directory.into(),
        uid: 0,
        network_namespace: "/nowhere".into(),
        tap: OwnedFd::from(File::open("/dev/null").unwrap()),
        link: Arc::new(Nowhere),
    }
}

fn hardware() -> Hardware {
    Hardware {
        vcpus: 1,
        memory_mb: 1,
        kernel: "/nowhere".into(),
        initrd: "/nowhere".into(),
        kernel_parameters: "nullspace.token=checkpoint".into(),
        base: "/nowhere".into(),
        layers: vec!["/nowhere".into(); 3],
        top: "/nowhere".into(),
        mac: [0; 6],
    }
}

async fn restore(devices: &Path) -> Arc<dyn Monitor> {
    let (hardware, placement) = (hardware(), placement(devices.parent().unwrap()));
    let (memory, devices) = (Memory::new(1).unwrap(), File::open(devices).unwrap());
    FakeVmm::default().restore(&hardware, placement, &memory, None, devices).await.unwrap()
}

fn identity(sandbox_id: &str, token: &str) -> proto::AdoptRequest {
    proto::AdoptRequest { sandbox_id: sandbox_id.into(), token: token.into(), ..Default::default() }
}

async fn code(client: &mut Client) -> Option<Code> {
    client.sync(proto::SyncRequest {}).await.err().map(|status| status.code())
}

async fn start(client: &mut Client, line: &str) -> u32 {
    let request =
        proto::RunRequest { command: line.into(), shell: true, background: true, ..Default::default() };
    let mut events = client.run(request).await.unwrap().into_inner();
    match events.message().await.unwrap().unwrap().event.unwrap() {
        Event::Started(started) => started.pid,
        other => panic!("{other:?}"),
    }
}

async fn exit_code(client: &mut Client, pid: u32) -> Option<i32> {
    let list = client.list_processes(proto::ListProcessesRequest {}).await.unwrap().into_inner();
    let process = list.processes.into_iter().find(|process| process.pid == pid).unwrap();
    process.has_exit_code.then_some(process.exit_code)
}

#[tokio::test]
async fn what_is_restored_has_what_was_captured_and_goes_its_own_way() {
    let (vmm, directory) = (FakeVmm::default(), tempfile::tempdir().unwrap());
    let (memory, devices) = (Memory::new(1).unwrap(), directory.path().join("devices"));
    let parent = vmm.boot(&hardware(), placement(directory.path()), &memory).await.unwrap();
    let mut adopting = client(&parent, "checkpoint");
    adopting.adopt(identity("sb_1", "parent")).await.unwrap();
    adopting.adopt(identity("sb_1", "parent")).await.unwrap();
    assert_eq!(code(&mut adopting).await, Some(Code::Unauthenticated));
    let mut own = client(&parent, "parent");
    let pid = start(&mut own, "cat").await;
    own.make_directory(proto::PathRequest { path: "/kept".into(), ..Default::default() }).await.unwrap();

    parent.save_devices(File::create(&devices).unwrap()).await.unwrap();
    own.remove_file(proto::PathRequest { path: "/kept".into(), ..Default::default() }).await.unwrap();
    own.kill_process(proto::KillProcessRequest { pid, signal: 0 }).await.unwrap();
    for (sandbox, token) in [("sb_2", "second"), ("sb_3", "third")] {
        let child = restore(&devices).await;
        let mut adopting = client(&child, "parent");
        adopting.adopt(identity(sandbox, token)).await.unwrap();
        assert_eq!(code(&mut adopting).await, Some(Code::Unauthenticated), "a child has no parent's token");
        adopting.adopt(identity(sandbox, token)).await.unwrap();
        let refused = adopting.adopt(identity("sb_9", "another")).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        let mut own = client(&child, token);
        own.stat_file(proto::PathRequest { path: "/kept".into(), ..Default::default() }).await.unwrap();
        assert_eq!(exit_code(&mut own, pid).await, None);
        let line = proto::WriteStdinRequest { pid, close: true, ..Default::default() };
        own.write_stdin(line).await.unwrap();
        assert_eq!(exit_code(&mut own, pid).await, Some(0));
    }
    assert_eq!(exit_code(&mut own, pid).await, Some(137));
}

#[tokio::test]
async fn the_device_state_of_another_process_still_says_who_it_was() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("devices");
    std::fs::write(&path, r#"{"process":0,"number":0,"adopted":["sb_1","parent"]}"#).unwrap();
    let child = restore(&path).await;
    client(&child, "parent").adopt(identity("sb_1", "child")).await.unwrap();
    assert_eq!(code(&mut client(&child, "child")).await, None);
    assert_eq!(child.disk_layers().await.unwrap(), 4);
    child.merge_layers(1).await.unwrap();
    assert_eq!(child.disk_layers().await.unwrap(), 2);
}
