//! One connection from its first byte to its last: what it shows, whether that passes, how it is passed on,
//! and that it ends when the policy no longer lets it.

use std::io::Cursor;
use std::net::SocketAddrV4;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use http::request::Parts;
use http::{Method, StatusCode};
use nullspace_domain::network::{self, Verdict};
use nullspace_types::network::{DeniedProtocol, DeniedTarget, DenyReason};
use rustls::client::ClientConfig;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

use crate::first::{self, First};
use crate::inject::{self, Injected};
use crate::relay::{self, Refusal};
use crate::splice::{self, Tls};
use crate::{Enforced, Outside, Settings, request};

/// A client that is silent for so long may be waiting for the server to speak.
const SILENCE: Duration = Duration::from_secs(1);
/// Within this a client has to show what it begins with.
const FIRST_TIME: Duration = Duration::from_secs(10);
/// Within this a connection to the outside has to be there.
const CONNECT_TIME: Duration = Duration::from_secs(30);

/// Looks into a sandbox's connections.
pub struct Inspector {
    outside: Arc<dyn Outside>,
    config: Arc<ClientConfig>,
    policy: watch::Receiver<Arc<Enforced>>,
}

/// How a connection passes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// As it is: no name would change anything.
    Whole,
    /// By the name that it showed, and no other.
    ByName,
    /// With headers added.
    Injected,
}

/// Why a connection ends before its time.
enum Cut {
    /// It is denied.
    Denied(DenyReason, Option<String>),
    /// It would have to pass in another way, or nothing is enforced any more: whoever comes again is judged anew.
    Again,
    /// It broke.
    Broken(relay::Error),
}

impl<E: Into<relay::Error>> From<E> for Cut {
    fn from(error: E) -> Self {
        Self::Broken(error.into())
    }
}

/// A connection whose end is not known yet, and what is known of it.
struct Connection {
    outside: Arc<dyn Outside>,
    policy: watch::Receiver<Arc<Enforced>>,
    original: SocketAddrV4,
    /// DNS gave the address for the name that it shows, once: it is not asked again when the policy changes.
    given: bool,
}

/// A connection that was judged.
struct Passing {
    outside: Arc<dyn Outside>,
    config: Arc<ClientConfig>,
    policy: watch::Receiver<Arc<Enforced>>,
    original: SocketAddrV4,
    guest: TcpStream,
    /// What was read of it.
    bytes: BytesMut,
    first: First,
    way: Way,
    /// The connection to the outside, if there had to be one already.
    open: Option<TcpStream>,
}

impl Inspector {
    /// An inspector of one sandbox's connections. When whoever gives the policy is gone, nothing passes any more.
    pub fn new(
        outside: Arc<dyn Outside>,
        settings: Settings,
        policy: watch::Receiver<Arc<Enforced>>,
    ) -> Self {
        let config = Arc::new(inject::client_config(&settings));
        Self { outside, config, policy }
    }

    /// Serves one connection of the sandbox, which was for the address `original`, to its end. Dropping the
    /// future ends the connection.
    pub async fn serve(&self, stream: TcpStream, original: SocketAddrV4) {
        let (outside, policy) = (self.outside.clone(), self.policy.clone());
        let connection = Connection { outside, policy, original, given: false };
        match connection.serve(stream, self.config.clone()).await {
            Ok(()) | Err(Cut::Again) => {}
            Err(Cut::Denied(reason, name)) => denied(&*self.outside, original, reason, name),
            Err(Cut::Broken(error)) => tracing::debug!(%original, ?error, "a connection of a sandbox broke"),
        }
    }
}

/// Notes that a connection, or a request in it, was denied.
pub fn denied(outside: &dyn Outside, original: SocketAddrV4, reason: DenyReason, name: Option<String>) {
    let (address, port) = (Some(*original.ip()), Some(original.port()));
    outside.denied(DeniedTarget { protocol: DeniedProtocol::Tcp, address, port, name, reason });
}

async fn connect(outside: &dyn Outside, to: SocketAddrV4) -> Result<TcpStream, Cut> {
    let stream = timeout(CONNECT_TIME, outside.connect(to)).await??;
    splice::keep_alive(&stream)?;
    Ok(stream)
}

impl Connection {
    async fn serve(mut self, mut guest: TcpStream, config: Arc<ClientConfig>) -> Result<(), Cut> {
        splice::keep_alive(&guest)?;
        let mut bytes = BytesMut::new();
        let (first, way, open) = match self.begin(&mut guest, &mut bytes).await {
            Ok(begun) => begun,
            Err(cut) => {
                splice::reset(guest);
                return Err(cut);
            }
        };
        let (outside, policy, original) = (self.outside.clone(), self.policy.clone(), self.original);
        let passing =
            Passing { outside, config, policy, original, guest, bytes, first: first.clone(), way, open };
        tokio::select! {
            biased;
            cut = self.until_cut(&first, way) => Err(cut),
            passed = passing.pass() => passed,
        }
    }

    /// Finds out how the connection begins and whether it passes. A connection to the outside is opened here
    /// only if the client waits for it.
    async fn begin(
        &mut self,
        guest: &mut TcpStream,
        bytes: &mut BytesMut,
    ) -> Result<(First, Way, Option<TcpStream>), Cut> {
        let enforced = self.policy.borrow_and_update().clone();
        let ip = *self.original.ip();
        let nothing_matters = enforced.policy.injections.is_empty()
            && network::connection(&enforced.policy, ip, None) == Verdict::Allow;
        if nothing_matters {
            return Ok((First::Other, Way::Whole, None));
        }
        let mut deadline = Instant::now() + FIRST_TIME;
        let mut open = None;
        if timeout(SILENCE, splice::speaks(guest)).await.is_err() {
            match self.judge(&First::Other).await {
                Ok(way) => {
                    let outside = connect(&*self.outside, self.original).await?;
                    let spoke = tokio::select! {
                        spoke = splice::speaks(guest) => spoke.map(|()| false),
                        spoke = splice::speaks(&outside) => spoke.map(|()| true),
                        cut = self.until_cut(&First::Other, way) => return Err(cut),
                    };
                    open = Some(outside);
                    if spoke? {
                        return Ok((First::Other, way, open));
                    }
                    deadline = Instant::now() + FIRST_TIME;
                }
                // Only a name could let it pass, and a guest may be slow to show one.
                Err(Cut::Denied(..)) => {}
                Err(cut) => return Err(cut),
            }
        }
        let first = timeout_at(deadline, first::read(guest, bytes)).await.unwrap_or(Ok(First::Unreadable))?;
        let way = self.judge(&first).await?;
        Ok((first, way, open))
    }

    /// How a connection passes that begins like this, by the policy of now.
    async fn judge(&mut self, first: &First) -> Result<Way, Cut> {
        let enforced = self.policy.borrow_and_update().clone();
        let address = *self.original.ip();
        let name = first.name();
        let denied = |reason| Err(Cut::Denied(reason, name.map(str::to_owned)));
        let verdict = network::connection(&enforced.policy, address, name);
        if let Verdict::Deny(reason) = verdict {
            return denied(reason);
        }
        let outside = self.outside.clone();
        if let Some(name) = name {
            let injected = network::injections(&enforced.policy, name).next().is_some();
            // In the clear a secret is everybody's.
            if injected && (matches!(first, First::Http(_)) || enforced.authority.is_none()) {
                return denied(DenyReason::InjectionFailed);
            }
            if injected || verdict == Verdict::AllowIfGiven {
                self.given = self.given || outside.gives(name, address).await;
                if !self.given {
                    return denied(DenyReason::NameMismatch);
                }
            }
            if injected {
                return Ok(Way::Injected);
            }
        }
        match verdict {
            Verdict::Allow => Ok(Way::Whole),
            Verdict::AllowIfGiven => Ok(Way::ByName),
            Verdict::AllowIfKnown if *first != First::Unreadable && outside.knows(address) => Ok(Way::ByName),
            Verdict::AllowIfKnown => denied(DenyReason::NoName),
            Verdict::Deny(reason) => denied(reason),
        }
    }

    /// Waits until the policy no longer lets a connection pass that began like this, in this way.
    async fn until_cut(&mut self, first: &First, way: Way) -> Cut {
        loop {
            if self.policy.changed().await.is_err() {
                return Cut::Again;
            }
            match self.judge(first).await {
                Ok(now) if now == way => {}
                Ok(_) => return Cut::Again,
                Err(cut) => return cut,
            }
        }
    }
}

impl Passing {
    /// Passes it on, to its end.
    async fn pass(self) -> Result<(), Cut> {
        let Self { outside, config, policy, original, mut guest, bytes, first, way, open } = self;
        if way == Way::Injected {
            let (host, authority) = (first.name().map(str::to_owned), policy.borrow().authority.clone());
            let (Some(host), Some(authority)) = (host, authority) else { return Err(Cut::Again) };
            let injected = Injected { outside, config, policy, original, host };
            return Ok(injected.serve(guest, bytes, open, authority).await?);
        }
        let connected = match open {
            Some(open) => Ok(open),
            None => connect(&*outside, original).await,
        };
        let mut there = match connected {
            Ok(there) => there,
            Err(cut) => {
                splice::reset(guest);
                return Err(cut);
            }
        };
        let passed = match (way, first) {
            (Way::ByName, First::Http(head)) => {
                let (read, write) = guest.into_split();
                let guest = tokio::io::join(Cursor::new(bytes).chain(read), write);
                return Ok(relay::http1(guest, there, one_host(outside, original, head.host)).await?);
            }
            (Way::ByName, First::Tls(hello)) => splice::pass_tls(&mut guest, &mut there, hello, bytes).await,
            _ => splice::pass(&mut guest, &mut there, &bytes).await.map(|()| Tls::Done),
        };
        let cut = match passed {
            Ok(Tls::Done) => return Ok(()),
            Ok(Tls::OtherName(name)) => Cut::Denied(DenyReason::NameMismatch, name),
            Err(error) => error.into(),
        };
        splice::reset(guest);
        splice::reset(there);
        Err(cut)
    }
}

/// The rule that every request of a connection is for the host of the first.
fn one_host(outside: Arc<dyn Outside>, original: SocketAddrV4, host: Option<String>) -> impl relay::Rule {
    move |parts: &mut Parts| {
        let shown = request::host(&parts.method, &parts.uri, parts.version, &parts.headers);
        // What comes through a tunnel shows no host.
        if shown.as_ref() == Ok(&host) && parts.method != Method::CONNECT {
            return Ok(());
        }
        denied(&*outside, original, DenyReason::NameMismatch, shown.unwrap_or(None));
        let host = host.as_deref().unwrap_or("none");
        let text =
            format!("each request of this connection must be for the host of the first, which is {host}");
        Err(Refusal { status: StatusCode::MISDIRECTED_REQUEST, text })
    }
}
