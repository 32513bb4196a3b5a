//! The network of fake machines: services that say what they were asked, and what each machine was last told
//! that it may reach.

use futures::StreamExt as _;
use futures::stream;
use nullspace_node_api::{Door, Listening, PipedProcess, Report, Stream, no_such_machine};
use nullspace_types::id::SandboxId;
use nullspace_types::network::{Denial, EgressPolicy};
use nullspace_types::{Code, Error, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::FakeHost;

/// Bytes between a service and whoever reaches it.
const PIPE: usize = 64 << 10;

impl FakeHost {
    /// Has a service listen on this port in every machine. It answers each request with the head that came,
    /// and takes WebSockets and says nothing over them.
    pub fn serve(&self, port: u16) {
        self.with(|world| world.services.insert(port));
    }

    /// What a machine was last told that it may reach.
    pub fn egress(&self, id: SandboxId) -> Option<EgressPolicy> {
        self.world.borrow().machines.get(&id).map(|machine| machine.spec.egress.clone())
    }

    /// Waits until a machine was told something like this.
    pub async fn egress_until(&self, id: SandboxId, what: impl Fn(&EgressPolicy) -> bool) {
        self.wait_until(|world| world.machines.get(&id).is_some_and(|machine| what(&machine.spec.egress)))
            .await;
    }

    /// Forgets what is only ever in memory, as a node does that starts anew.
    pub fn forget_secrets(&self) {
        self.with(|world| {
            for machine in world.machines.values_mut() {
                machine.spec.egress.injections.iter_mut().for_each(|injection| injection.value = None);
            }
        });
    }

    /// Reports that a machine was denied something.
    pub async fn deny(&self, id: SandboxId, denial: Denial) {
        let reports = self.world.borrow().reports.clone().expect("a server is attached");
        reports.send(Report::Denied(vec![(id, denial)])).await.expect("the server takes reports");
    }

    pub(super) fn set_egress(&self, id: SandboxId, policy: EgressPolicy) -> Result<()> {
        self.with(|world| {
            world.machine(id)?.spec.egress = policy;
            Ok(())
        })
    }

    pub(super) fn dial(&self, id: SandboxId, to: &Door) -> Result<Stream> {
        let world = self.world.borrow();
        if !world.machines.contains_key(&id) {
            return Err(no_such_machine(id));
        }
        match to {
            Door::Port(port) | Door::Inside { port, .. } if world.services.contains(port) => {}
            _ => return Err(Error::new(Code::PreviewServiceNotReady, "nothing listens there")),
        }
        let (outside, inside) = tokio::io::duplex(PIPE);
        // It ends when whoever reached it goes away.
        tokio::spawn(serve(inside));
        Ok(Box::new(outside))
    }

    /// A program that sends its input back and then ends well.
    pub(super) fn echo(&self, id: SandboxId) -> Result<PipedProcess> {
        let pid = self.with(|world| {
            let machine = world.machine(id)?;
            machine.next_pid += 1;
            Ok::<_, Error>(machine.next_pid)
        })?;
        let (stdio, inside) = tokio::io::duplex(PIPE);
        let (mut input, mut output) = tokio::io::split(inside);
        let running = tokio::spawn(async move { tokio::io::copy(&mut input, &mut output).await });
        let exit = Box::pin(async move {
            running.await.map_err(Error::internal)?.map_err(Error::internal)?;
            Ok(0)
        });
        Ok(PipedProcess { pid, stdio: Box::new(stdio), stderr: Box::new(tokio::io::empty()), exit })
    }

    /// A port that nothing ever comes to.
    pub(super) fn quiet(&self, id: SandboxId, port: u16) -> Result<Listening> {
        self.with(|world| world.machine(id).map(drop))?;
        Ok(Listening { port, connections: stream::pending().boxed() })
    }
}

async fn serve(mut stream: DuplexStream) -> std::io::Result<()> {
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await?);
        }
        let text = String::from_utf8_lossy(&head);
        let key = text.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("sec-websocket-key").then_some(value.trim())
        });
        let Some(key) = key else {
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{text}", text.len());
            stream.write_all(answer.as_bytes()).await?;
            continue;
        };
        let proof = derive_accept_key(key.as_bytes());
        let answer = format!(
            "HTTP/1.1 101 X\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: {proof}\r\n\r\n"
        );
        stream.write_all(answer.as_bytes()).await?;
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
        return Ok(());
    }
}
