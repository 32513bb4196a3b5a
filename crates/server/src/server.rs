//! A server: the parts in the order in which they start and stop. Owns the data directory's lock, the
//! listeners, the connections, and through control and the node everything else.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context as _;
use nullspace_auth::{Admin, Authenticator, ensure_admin};
use nullspace_control::{Access, Control, SystemClock};
use nullspace_node_api::Node;
use nullspace_store::Store;
use nullspace_types::Error;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use crate::admin;
use crate::app::App;
use crate::args::ServerArgs;
use crate::compose::{NodeStart, StartNode};
use crate::config::Config;
use crate::data_dir::{DataDir, store_url};
use crate::entrance::{Entrances, Opening};
use crate::http;

/// News of the node that waits for control.
const REPORTS: usize = 256;
/// How long requests may take to end when the server stops.
const DRAIN: Duration = Duration::from_secs(4);
/// How long the node may take after that: it ends its spare machines and removes the slots that
/// nobody uses.
const NODE: Duration = Duration::from_millis(4200);
/// How long each of the other parts may take. All together stay under ten seconds.
const PART: Duration = Duration::from_millis(600);
/// Between two looks at whether the node is ready; it has no way to say so.
const LOOK: Duration = Duration::from_millis(100);

/// What a server is started with.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// Where it keeps what it knows.
    pub data_dir: PathBuf,
    /// Where it listens, unless as configured.
    pub listen: Option<SocketAddr>,
    /// The configuration.
    pub config: Config,
}

impl ServerOptions {
    /// Reads the configuration that the arguments name.
    pub fn load(args: ServerArgs) -> anyhow::Result<Self> {
        let config = Config::load(args.config.as_deref())?;
        Ok(Self { data_dir: args.data_dir, listen: args.listen, config })
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    Starting,
    Serving,
    Failed(String),
}

/// A server that listens.
pub struct Server {
    address: SocketAddr,
    admin_key: PathBuf,
    admin: Admin,
    entrances: Entrances,
    app: App,
    store: Arc<dyn Store>,
    node: Arc<OnceLock<Arc<dyn Node>>>,
    phase: watch::Receiver<Phase>,
    bring_up: AbortOnDropHandle<()>,
    stop: CancellationToken,
    connections: TaskTracker,
    accepting: AbortOnDropHandle<()>,
    /// Last, so that the lock outlives everything that works in the directory.
    _data_dir: DataDir,
}

/// Everything that waits for the node: it, and control over it.
struct BringUp {
    options: ServerOptions,
    data_dir: PathBuf,
    store: Arc<dyn Store>,
    app: App,
    access: Access,
    node: Arc<OnceLock<Arc<dyn Node>>>,
    start_node: StartNode,
}

impl BringUp {
    async fn run(self) -> anyhow::Result<()> {
        let (reports, news) = mpsc::channel(REPORTS);
        let config = self.options.config;
        let (limits, webhooks) = (config.limits.clone(), config.webhooks.clone());
        let start = NodeStart { config, data_dir: self.data_dir, reports };
        let node =
            (self.start_node)(start).await.map_err(with_context).context("the node could not start")?;
        let node = self.node.get_or_init(|| node).clone();
        let clock = Arc::new(SystemClock);
        let control = Control::start(self.store, node, news, clock, limits, webhooks, self.access)
            .await
            .map_err(with_context)
            .context("what the last server left could not be taken over")?;
        self.app.serve(control);
        Ok(())
    }
}

/// An error for the operator, who may see what callers may not.
pub(crate) fn with_context(error: Error) -> anyhow::Error {
    match &error.context {
        Some(context) => anyhow::anyhow!("{error}: {context}"),
        None => error.into(),
    }
}

impl Server {
    /// Locks the data directory, opens the store, sees to the first key, listens; the node comes up
    /// meanwhile. From here on requests are answered, if only with the news that the server is starting.
    pub async fn start(options: ServerOptions, start_node: StartNode) -> anyhow::Result<Self> {
        let data_dir = DataDir::open(&options.data_dir)?;
        let url = store_url(data_dir.path(), options.config.store.url.as_deref());
        let store = nullspace_store::open(&url).await.context("the store could not be opened")?;
        let admin_key = data_dir.admin_key_path();
        let admin = ensure_admin(&*store, &admin_key).await.map_err(with_context)?;
        let listen = options.listen.unwrap_or(options.config.server.listen);
        let listener = TcpListener::bind(listen)
            .await
            .with_context(|| format!("cannot listen on {listen}; choose another with --listen"))?;
        let address = listener.local_addr()?;
        let admin_socket = admin::bind(data_dir.path())?;

        let authenticator = Arc::new(Authenticator::open(store.clone()).await.map_err(with_context)?);
        let app = App::new(authenticator.clone(), options.config.server.public_url.clone());
        let (stop, connections) = (CancellationToken::new(), TaskTracker::new());
        let opening = Opening {
            config: &options.config,
            data_dir: data_dir.path(),
            store: &store,
            authenticator,
            app: app.clone(),
            stop: stop.clone(),
            tasks: connections.clone(),
        };
        let (entrances, access) = opening.open().await?;
        let serving = http::serve(
            listener,
            nullspace_api::router(app.clone()),
            options.config.server.connections_max,
            stop.clone(),
            connections.clone(),
        );
        let node = Arc::new(OnceLock::new());
        connections.spawn(admin::serve(admin_socket, node.clone(), stop.clone()));
        let bring_up = BringUp {
            options,
            data_dir: data_dir.path().to_owned(),
            store: store.clone(),
            app: app.clone(),
            access,
            node: node.clone(),
            start_node,
        };
        let (phase, seen) = watch::channel(Phase::Starting);
        let bring_up = async move {
            phase.send_replace(match bring_up.run().await {
                Ok(()) => Phase::Serving,
                Err(error) => Phase::Failed(format!("{error:#}")),
            });
        };
        Ok(Self {
            address,
            admin_key,
            admin,
            entrances,
            app,
            store,
            node,
            phase: seen,
            bring_up: AbortOnDropHandle::new(tokio::spawn(bring_up)),
            stop,
            connections,
            accepting: AbortOnDropHandle::new(tokio::spawn(serving)),
            _data_dir: data_dir,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where sandboxes are reached besides, a line for each way.
    pub fn entrances(&self) -> Vec<String> {
        self.entrances.lines()
    }

    /// Where the first key is, and what this start found or did about it.
    pub fn admin_key(&self) -> (&std::path::Path, &Admin) {
        (&self.admin_key, &self.admin)
    }

    /// Waits until a sandbox can be created. An error means that this server never will.
    pub async fn ready(&self) -> anyhow::Result<()> {
        let mut phase = self.phase.clone();
        let phase =
            phase.wait_for(|phase| *phase != Phase::Starting).await.context("the start was broken off")?;
        if let Phase::Failed(why) = &*phase {
            anyhow::bail!("{why}");
        }
        drop(phase);
        let control = self.app.control().map_err(with_context)?;
        while control.health().await.is_err() {
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// Stops in less than ten seconds: no new connections, requests at hand may end, then every part.
    /// Machines keep running.
    pub async fn stop(self) {
        self.stop.cancel();
        self.connections.close();
        if timeout(DRAIN, self.connections.wait()).await.is_err() {
            tracing::warn!(connections = self.connections.len(), "requests were broken off");
        }
        drop((self.accepting, self.bring_up));
        if let Ok(control) = self.app.control()
            && timeout(PART, control.stop()).await.is_err()
        {
            tracing::warn!("control did not end in time");
        }
        if let Some(node) = self.node.get()
            && timeout(NODE, node.shutdown()).await.is_err()
        {
            tracing::warn!("the node did not end in time");
        }
        if timeout(PART, self.store.close()).await.is_err() {
            tracing::warn!("the store did not close in time");
        }
    }
}
