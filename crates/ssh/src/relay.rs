//! The relay itself: its listener, and one task for each connection, which owns its end.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nullspace_edge_api::Machines;
use nullspace_types::{Code, Error, Result};
use russh::keys::ssh_key::public::KeyData;
use russh::keys::{PrivateKey, PublicKey};
use russh::server::{Config as Protocol, RunningSession, run_stream};
use russh::{Disconnect, MethodKind, MethodSet, SshId};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{Config, Keys};
use crate::connection::Connection;
use crate::inlet::{Everything, Inlets};
use crate::peers::{Login, Peers};
use crate::session::reason;
use crate::wire::Wire;

/// How long to wait after the system refused a connection for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How often failed logins are reported.
const REPORT: Duration = Duration::from_secs(60);
/// How long somebody who was refused may stay to read why on a channel.
const REFUSED: Duration = Duration::from_secs(5);
/// How long a client has to go after it was told to.
const GOODBYE: Duration = Duration::from_secs(2);
/// How often a silent client is asked whether it is there, and how often it may not answer.
const KEEPALIVE: Duration = Duration::from_secs(30);
const KEEPALIVES_MISSED: usize = 3;
/// How long what was sent to a client may not be acknowledged.
const UNACKNOWLEDGED: Duration = Duration::from_secs(120);
/// Most attempts of a connection to log in.
const ATTEMPTS_MAX: usize = 6;
/// How long every refusal takes, so that it tells nothing.
const REJECTION: Duration = Duration::from_millis(300);
/// A channel's window and its largest packet.
const WINDOW: u32 = 2 << 20;
const PACKET: u32 = 0xffff;

/// What all connections share.
pub(crate) struct Relay<M> {
    pub(crate) machines: M,
    pub(crate) authority: KeyData,
    pub(crate) tasks: TaskTracker,
    config: Config,
    protocol: Arc<Protocol>,
    peers: Arc<Peers>,
    everything: Everything,
    stop: CancellationToken,
}

/// How far somebody has come.
#[derive(Debug, Clone)]
pub(crate) enum Phase {
    /// Not logged in.
    Login,
    /// Logged in; whether there is a sandbox is not known yet.
    Entering,
    /// Inside, until this is cancelled.
    In(CancellationToken),
    /// There is no way in.
    Refused(Error),
}

/// Waits until somebody who logged in is inside, or is not let in.
pub(crate) async fn entered(phase: &mut watch::Receiver<Phase>) -> Result<CancellationToken> {
    let settled = phase.wait_for(|phase| matches!(phase, Phase::In(_) | Phase::Refused(_))).await;
    match settled.as_deref() {
        Ok(Phase::In(ended)) => Ok(ended.clone()),
        Ok(Phase::Refused(error)) => Err(error.clone()),
        Ok(Phase::Login | Phase::Entering) | Err(_) => {
            Err(Error::new(Code::Unavailable, "the connection is over"))
        }
    }
}

/// Serves SSH on `listener` until `stop`; what it does then still is in `tasks` and ends within a few seconds.
/// Keys that are none are the server's fault: it is logged, and nobody is served.
pub async fn serve<M: Machines>(
    listener: TcpListener,
    config: Config,
    keys: Keys,
    machines: M,
    stop: CancellationToken,
    tasks: TaskTracker,
) {
    let (host_key, authority) =
        match (PrivateKey::from_openssh(&keys.host_key), PublicKey::from_openssh(&keys.authority)) {
            (Ok(host_key), Ok(authority)) => (host_key, authority),
            (Err(error), _) | (_, Err(error)) => {
                tracing::error!(%error, "the keys of the SSH relay cannot be read");
                return;
            }
        };
    let relay = Arc::new(Relay {
        machines,
        authority: authority.key_data().clone(),
        tasks,
        protocol: Arc::new(protocol(host_key)),
        peers: Arc::default(),
        everything: Everything::default(),
        stop,
        config,
    });
    relay.accept(listener).await;
}

fn protocol(host_key: PrivateKey) -> Protocol {
    Protocol {
        server_id: SshId::Standard("SSH-2.0-nullspace".into()),
        methods: MethodSet::from(&[MethodKind::PublicKey][..]),
        auth_rejection_time: REJECTION,
        // Every client asks first which ways there are.
        auth_rejection_time_initial: Some(Duration::ZERO),
        keys: vec![host_key],
        window_size: WINDOW,
        maximum_packet_size: PACKET,
        max_auth_attempts: ATTEMPTS_MAX,
        // The relay has its own, which does not count the answers to keepalives.
        inactivity_timeout: None,
        keepalive_interval: Some(KEEPALIVE),
        keepalive_max: KEEPALIVES_MISSED,
        ..Protocol::default()
    }
}

impl<M: Machines> Relay<M> {
    async fn accept(self: Arc<Self>, listener: TcpListener) {
        let places = Arc::new(Semaphore::new(self.config.connections_max));
        let mut report = tokio::time::interval(REPORT);
        loop {
            let accepted = tokio::select! {
                () = self.stop.cancelled() => return,
                _ = report.tick() => {
                    let failed = self.peers.report();
                    if failed > 0 {
                        tracing::warn!(failed, "SSH logins failed or were refused in the last minute");
                    }
                    continue;
                }
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((socket, peer)) => {
                    let Ok(place) = places.clone().try_acquire_owned() else {
                        tracing::debug!(%peer, "there are too many SSH connections");
                        continue;
                    };
                    let Some(login) = self.peers.begin(peer.ip(), Instant::now()) else {
                        tracing::debug!(%peer, "too many SSH logins failed from there");
                        continue;
                    };
                    let relay = self.clone();
                    self.tasks.spawn(async move {
                        relay.attend(socket, peer, login).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "an SSH connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// One connection, from its first byte to its last.
    async fn attend(self: Arc<Self>, socket: TcpStream, peer: SocketAddr, login: Login) {
        if let Err(error) = tune(&socket) {
            tracing::debug!(%error, "an SSH connection could not be tuned");
        }
        // Whatever ends this task cuts the socket, and ends all that was begun on it.
        let over = CancellationToken::new();
        let _over = over.clone().drop_guard();
        let phase = Arc::new(watch::Sender::new(Phase::Login));
        let tried = Arc::new(AtomicBool::new(false));
        let inlets = Inlets::new(self.config.channels_max, self.everything.clone(), over.clone());
        let inlets = Arc::new(inlets);
        let mut progress = phase.subscribe();
        let connection = Connection::new(self.clone(), phase, inlets.clone(), tried.clone(), over.clone());
        let wire = Wire::new(socket, over.clone());
        let limit = Duration::from_secs(self.config.login_secs.into());
        let begun = tokio::select! {
            begun = timeout(limit, self.begin(wire, connection, &mut progress)) => begun,
            () = self.stop.cancelled() => return,
        };
        let mut session = match begun {
            Ok(Ok(session)) => session,
            Ok(Err(error)) => {
                tracing::debug!(%peer, %error, "an SSH connection ended before its login");
                if tried.load(Ordering::SeqCst) {
                    login.failed(Instant::now());
                }
                return;
            }
            Err(_) => {
                tracing::debug!(%peer, "an SSH connection took too long to log in");
                login.failed(Instant::now());
                return;
            }
        };
        drop(login);
        let why = tokio::select! {
            ended = &mut session => {
                if let Err(error) = ended {
                    tracing::debug!(%peer, %error, "an SSH connection broke off");
                }
                return;
            }
            why = self.parting(progress, &inlets) => why,
        };
        tracing::debug!(%peer, why, "an SSH connection is ended");
        let handle = session.handle();
        let goodbye = async {
            // Both fail only if the connection ended by itself meanwhile.
            let told = handle.disconnect(Disconnect::ByApplication, why, String::new()).await;
            told.and(session.await)
        };
        match timeout(GOODBYE, goodbye).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%peer, %error, "an SSH connection broke off at its end"),
            Err(_) => tracing::debug!(%peer, "a client did not go when it was told to"),
        }
    }

    /// Until somebody has logged in.
    async fn begin(
        &self,
        wire: Wire,
        connection: Connection<M>,
        progress: &mut watch::Receiver<Phase>,
    ) -> Result<RunningSession<Connection<M>>, russh::Error> {
        let mut session = run_stream(self.protocol.clone(), wire, connection).await?;
        tokio::select! {
            ended = &mut session => Err(ended.err().unwrap_or(russh::Error::Disconnect)),
            passed = progress.wait_for(|phase| !matches!(phase, Phase::Login)) => match passed {
                Ok(_) => Ok(session),
                Err(_) => Err(russh::Error::Disconnect),
            },
        }
    }

    /// Waits until the connection has to end, and says why.
    async fn parting(&self, mut progress: watch::Receiver<Phase>, inlets: &Inlets) -> String {
        let sandbox = async {
            match entered(&mut progress).await {
                Ok(ended) => {
                    ended.cancelled().await;
                    "the sandbox was paused or removed".to_owned()
                }
                Err(error) => {
                    tokio::time::sleep(REFUSED).await;
                    reason(&error)
                }
            }
        };
        let limit = self.config.idle_secs;
        let idle = async {
            match limit {
                0 => std::future::pending().await,
                limit => inlets.idle(Duration::from_secs(limit.into())).await,
            }
        };
        tokio::select! {
            () = self.stop.cancelled() => "the server is stopping".to_owned(),
            why = sandbox => why,
            () = idle => format!("nothing was sent for {limit} seconds"),
        }
    }
}

/// Small writes go at once, and a peer that vanished is noticed while something is written to it, too.
fn tune(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    socket2::SockRef::from(socket).set_tcp_user_timeout(Some(UNACKNOWLEDGED))
}
