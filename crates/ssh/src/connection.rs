//! One connection: what its client asks for, one after the other, in the loop that `russh` runs. Owns what the
//! client has asked for and what has not begun yet; all that has runs in tasks of its own.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use nullspace_edge_api::{Machines, Program};
use nullspace_types::sandbox::Envs;
use russh::keys::Certificate;
use russh::server::{Auth, ChannelOpenHandle, Handler, Msg, Session as Protocol};
use russh::{Channel, ChannelId, ChannelOpenFailure, Error, Pty, Sig};
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::certificate::{Admission, judge};
use crate::forward::{Accepting, Direct, Listeners, Owner, Target};
use crate::inlet::{Inlets, Seat};
use crate::outlet::Outlet;
use crate::relay::{Phase, Relay};
use crate::session::{Run, Session, Size, number, set};

/// Signals that wait to be delivered; more are dropped, as a process has each at most once.
const SIGNALS_MAX: usize = 16;
/// Longest name of a host.
const HOST_BYTES_MAX: usize = 255;

type Done = Result<(), Error>;

/// See the module.
pub(crate) struct Connection<M> {
    relay: Arc<Relay<M>>,
    phase: Arc<watch::Sender<Phase>>,
    inlets: Arc<Inlets>,
    over: CancellationToken,
    /// Whether the client got as far as to log in.
    tried: Arc<AtomicBool>,
    admission: Option<Arc<Admission>>,
    sessions: HashMap<ChannelId, State>,
    listeners: Listeners,
}

/// A session channel.
enum State {
    Waiting(Box<Waiting>),
    Running { size: Option<watch::Sender<Size>>, signals: mpsc::Sender<i32> },
}

/// One on which nothing runs yet.
struct Waiting {
    seat: Seat,
    outlet: Outlet,
    envs: Envs,
    size: Option<Size>,
}

impl<M: Machines> Connection<M> {
    pub(crate) fn new(
        relay: Arc<Relay<M>>,
        phase: Arc<watch::Sender<Phase>>,
        inlets: Arc<Inlets>,
        tried: Arc<AtomicBool>,
        over: CancellationToken,
    ) -> Self {
        let listeners = Listeners::new(over.clone());
        Self { relay, phase, inlets, over, tried, admission: None, sessions: HashMap::new(), listeners }
    }

    /// Who came in. Nothing but logging in reaches the handler before that.
    fn admission(&self) -> Result<&Admission, Error> {
        self.admission.as_deref().ok_or(Error::NotAuthenticated)
    }

    fn owner(&self, admission: &Admission) -> Owner<M> {
        Owner {
            machines: self.relay.machines.clone(),
            claims: Arc::new(admission.claims.clone()),
            phase: self.phase.subscribe(),
        }
    }

    /// Runs something on a session channel. The client is told that it runs before it does: what it asks for
    /// next shall not wait for the machine, and a program that fails says so on its own channel.
    fn run(&mut self, id: ChannelId, program: Program, protocol: &mut Protocol) -> Done {
        let owner = self.owner(self.admission()?);
        let waiting = match self.sessions.remove(&id) {
            Some(State::Waiting(waiting)) => waiting,
            other => {
                other.and_then(|running| self.sessions.insert(id, running));
                return protocol.channel_failure(id);
            }
        };
        let Waiting { seat, outlet, envs, size } = *waiting;
        let (to_signals, signals) = mpsc::channel(SIGNALS_MAX);
        let (to_size, size) = size.map(watch::channel).unzip();
        self.sessions.insert(id, State::Running { size: to_size, signals: to_signals });
        protocol.channel_success(id)?;
        let session = Session { owner, seat, outlet };
        self.relay.tasks.spawn(session.run(Run { program, envs, size, signals }));
        Ok(())
    }

    /// Takes a place for a channel, or answers that there is none.
    async fn place(&self, reply: ChannelOpenHandle) -> Option<(OwnedSemaphorePermit, ChannelOpenHandle)> {
        match self.inlets.place() {
            Some(place) => Some((place, reply)),
            None => {
                reply.reject(ChannelOpenFailure::ResourceShortage).await;
                None
            }
        }
    }

    /// A connection that the client forwards.
    async fn direct(&self, channel: Channel<Msg>, target: Option<Target>, reply: ChannelOpenHandle) -> Done {
        let admission = self.admission()?;
        if !admission.forwarding {
            reply.reject(ChannelOpenFailure::AdministrativelyProhibited).await;
            return Ok(());
        }
        let Some(target) = target else {
            reply.reject(ChannelOpenFailure::ConnectFailed).await;
            return Ok(());
        };
        let Some((place, reply)) = self.place(reply).await else { return Ok(()) };
        let direct = Direct {
            owner: self.owner(admission),
            seat: self.inlets.seat(channel.id(), place),
            outlet: Outlet::new(channel, self.inlets.clone()),
        };
        self.relay.tasks.spawn(direct.run(target, reply));
        Ok(())
    }
}

impl<M: Machines> Handler for Connection<M> {
    type Error = Error;

    /// Asked for once, when the client begins to log in.
    async fn authentication_banner(&mut self) -> Result<Option<String>, Error> {
        self.tried.store(true, Ordering::SeqCst);
        Ok(None)
    }

    async fn auth_openssh_certificate(
        &mut self,
        user: &str,
        certificate: &Certificate,
    ) -> Result<Auth, Error> {
        match judge(certificate, user, &self.relay.authority, SystemTime::now()) {
            Ok(admission) => {
                self.admission = Some(Arc::new(admission));
                Ok(Auth::Accept)
            }
            Err(why) => {
                tracing::debug!(why, "a certificate was refused");
                Ok(Auth::reject())
            }
        }
    }

    async fn auth_succeeded(&mut self, _: &mut Protocol) -> Done {
        let Owner { machines, claims, .. } = self.owner(self.admission()?);
        let (phase, over) = (self.phase.clone(), self.over.clone());
        phase.send_replace(Phase::Entering);
        self.relay.tasks.spawn(async move {
            let entering = tokio::select! {
                entering = machines.enter(&claims) => entering,
                () = over.cancelled() => return,
            };
            let (access_id, sandbox_id) = (claims.access_id, claims.sandbox_id);
            match &entering {
                Ok(_) => tracing::debug!(%access_id, %sandbox_id, "somebody came in by SSH"),
                Err(error) => tracing::debug!(%access_id, %sandbox_id, %error, "somebody was not let in"),
            }
            phase.send_replace(entering.map_or_else(Phase::Refused, Phase::In));
        });
        Ok(())
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Protocol,
    ) -> Done {
        self.admission()?;
        // Those that ended by themselves.
        self.sessions.retain(|_, state| match state {
            State::Running { signals, .. } => !signals.is_closed(),
            State::Waiting(_) => true,
        });
        let Some((place, reply)) = self.place(reply).await else { return Ok(()) };
        let id = channel.id();
        let seat = self.inlets.seat(id, place);
        let outlet = Outlet::new(channel, self.inlets.clone());
        let waiting = Waiting { seat, outlet, envs: Envs::new(), size: None };
        self.sessions.insert(id, State::Waiting(Box::new(waiting)));
        reply.accept().await;
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut Protocol,
    ) -> Done {
        let port = u16::try_from(port).ok().filter(|_| host.len() <= HOST_BYTES_MAX);
        self.direct(channel, port.map(|port| Target::Port(host.to_owned(), port)), reply).await
    }

    async fn channel_open_direct_streamlocal(
        &mut self,
        channel: Channel<Msg>,
        path: &str,
        reply: ChannelOpenHandle,
        _: &mut Protocol,
    ) -> Done {
        self.direct(channel, Some(Target::Socket(path.to_owned())), reply).await
    }

    /// The client took a forwarded connection. It may send before we look at its channel.
    async fn channel_open_confirmation(&mut self, id: ChannelId, _: u32, _: u32, _: &mut Protocol) -> Done {
        self.inlets.expect(id);
        Ok(())
    }

    async fn data(&mut self, id: ChannelId, data: &[u8], _: &mut Protocol) -> Done {
        self.inlets.push(id, data).await;
        Ok(())
    }

    async fn channel_eof(&mut self, id: ChannelId, _: &mut Protocol) -> Done {
        self.inlets.end(id);
        Ok(())
    }

    async fn channel_close(&mut self, id: ChannelId, _: &mut Protocol) -> Done {
        self.inlets.close(id);
        self.sessions.remove(&id);
        Ok(())
    }

    async fn env_request(&mut self, id: ChannelId, name: &str, value: &str, protocol: &mut Protocol) -> Done {
        let taken = match self.sessions.get_mut(&id) {
            Some(State::Waiting(waiting)) => set(&mut waiting.envs, name, value),
            Some(State::Running { .. }) | None => false,
        };
        if taken { protocol.channel_success(id) } else { protocol.channel_failure(id) }
    }

    async fn pty_request(
        &mut self,
        id: ChannelId,
        term: &str,
        cols: u32,
        rows: u32,
        _: u32,
        _: u32,
        _: &[(Pty, u32)],
        protocol: &mut Protocol,
    ) -> Done {
        let allowed = self.admission()?.pty;
        match self.sessions.get_mut(&id) {
            Some(State::Waiting(waiting)) if allowed => {
                waiting.size = Some((cols, rows));
                set(&mut waiting.envs, "TERM", term);
                protocol.channel_success(id)
            }
            Some(_) | None => protocol.channel_failure(id),
        }
    }

    async fn x11_request(
        &mut self,
        id: ChannelId,
        _: bool,
        _: &str,
        _: &str,
        _: u32,
        protocol: &mut Protocol,
    ) -> Done {
        protocol.channel_failure(id)
    }

    async fn shell_request(&mut self, id: ChannelId, protocol: &mut Protocol) -> Done {
        self.run(id, Program::Shell, protocol)
    }

    async fn exec_request(&mut self, id: ChannelId, line: &[u8], protocol: &mut Protocol) -> Done {
        match String::from_utf8(line.to_vec()) {
            Ok(line) => self.run(id, Program::Line(line), protocol),
            // The machine takes text.
            Err(_) => protocol.channel_failure(id),
        }
    }

    async fn subsystem_request(&mut self, id: ChannelId, name: &str, protocol: &mut Protocol) -> Done {
        match name {
            "sftp" => self.run(id, Program::Sftp, protocol),
            _ => protocol.channel_failure(id),
        }
    }

    async fn window_change_request(
        &mut self,
        id: ChannelId,
        cols: u32,
        rows: u32,
        _: u32,
        _: u32,
        _: &mut Protocol,
    ) -> Done {
        match self.sessions.get_mut(&id) {
            Some(State::Waiting(waiting)) if waiting.size.is_some() => waiting.size = Some((cols, rows)),
            Some(State::Running { size: Some(size), .. }) => {
                size.send_replace((cols, rows));
            }
            Some(_) | None => {}
        }
        Ok(())
    }

    async fn signal(&mut self, id: ChannelId, signal: Sig, _: &mut Protocol) -> Done {
        if let (Some(State::Running { signals, .. }), Some(number)) =
            (self.sessions.get(&id), number(&signal))
            && signals.try_send(number).is_err()
        {
            tracing::debug!(number, "a signal was dropped");
        }
        Ok(())
    }

    async fn tcpip_forward(
        &mut self,
        address: &str,
        port: &mut u32,
        protocol: &mut Protocol,
    ) -> Result<bool, Error> {
        let admission = self.admission()?;
        let wanted = u16::try_from(*port).ok();
        let allowed = admission.forwarding && address.len() <= HOST_BYTES_MAX;
        let Some(wanted) = wanted.filter(|_| allowed) else { return Ok(false) };
        let owner = self.owner(admission);
        let accepting = Accepting {
            handle: protocol.handle(),
            inlets: self.inlets.clone(),
            tasks: self.relay.tasks.clone(),
        };
        match self.listeners.open(owner, address, wanted, accepting).await {
            Ok(opened) => {
                *port = u32::from(opened);
                Ok(true)
            }
            Err(error) => {
                tracing::debug!(%error, "a port was not forwarded");
                Ok(false)
            }
        }
    }

    async fn cancel_tcpip_forward(
        &mut self,
        address: &str,
        port: u32,
        _: &mut Protocol,
    ) -> Result<bool, Error> {
        Ok(self.listeners.close(address, port))
    }
}
