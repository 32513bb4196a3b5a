//! One server with a world of its own: a temporary directory, a free port, fake machines, its own threads
//! and log. It can be stopped, killed at any moment, and started again on what it left. The directory is
//! kept when a test fails, and an ERROR in the log that the test did not expect fails it.

use std::cell::RefCell;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt as _;
use nullspace_server::compose::StartNode;
use nullspace_server::{Config, Server, ServerOptions};
use nullspace_store::Store;
use nullspace_store::event::{EventFilter, EventOrder};
use nullspace_types::event::LifecycleEvent;
use nullspace_types::id::SandboxId;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tracing::subscriber::DefaultGuard;
use tracing_subscriber::fmt::MakeWriter;

use crate::fake_node::FakeHost;
use crate::socket::Socket;

/// What a request was answered with.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// The body as JSON; null if it is empty, a string if it is no JSON.
    pub body: Value,
    /// The headers.
    pub headers: reqwest::header::HeaderMap,
}

impl Answer {
    /// Expects a status, and hands out the body.
    #[track_caller]
    pub fn expect(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.body);
        self.body
    }

    /// Expects an error with this status and code, and hands out its message.
    #[track_caller]
    pub fn refused(self, status: u16, code: &str) -> String {
        assert_eq!((self.status, self.body["code"].as_str()), (status, Some(code)), "{}", self.body);
        assert!(self.body["request_id"].as_str().is_some_and(|id| id.starts_with("req_")), "{}", self.body);
        self.body["error"].as_str().expect("the envelope has a message").to_owned()
    }
}

/// The server's log: in a file for people, in memory for the test.
#[derive(Clone)]
struct Log(Arc<Mutex<(std::fs::File, String)>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let (file, text) = &mut *self.0.lock().expect("no panic under it");
        text.push_str(&String::from_utf8_lossy(bytes));
        file.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

thread_local! {
    static LOG: RefCell<Option<DefaultGuard>> = const { RefCell::new(None) };
}

struct Running {
    runtime: Runtime,
    server: Server,
}

/// A server and its world.
pub struct Harness {
    directory: Option<tempfile::TempDir>,
    /// The fake machines.
    pub host: FakeHost,
    /// The key of the default tenant.
    pub key: String,
    running: Option<Running>,
    base: String,
    http: reqwest::Client,
    log: Log,
    expected: Vec<String>,
    config: Config,
}

impl Harness {
    /// A server with default settings that is ready.
    pub async fn start() -> Self {
        Self::with(Config::default()).await
    }

    /// A server with these settings that is ready. Like the API, SSH is served on a port that is free.
    pub async fn with(mut config: Config) -> Self {
        config.ssh.listen = Some(([127, 0, 0, 1], 0).into());
        // There is one per process, and tests of one process share it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let directory =
            tempfile::Builder::new().prefix("nullspace-api-").tempdir().expect("a temporary directory");
        let file = std::fs::File::create(directory.path().join("server.log")).expect("a log file");
        let mut harness = Self {
            directory: Some(directory),
            host: FakeHost::default(),
            key: String::new(),
            running: None,
            base: String::new(),
            http: reqwest::Client::new(),
            log: Log(Arc::new(Mutex::new((file, String::new())))),
            expected: Vec::new(),
            config,
        };
        harness.start_again().await;
        harness.key = std::fs::read_to_string(harness.data_dir().join("admin.key")).expect("the first key");
        harness.key.truncate(harness.key.trim_end().len());
        harness
    }

    /// The server's data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.directory
            .as_ref()
            .map(|directory| directory.path().join("data"))
            .expect("it lives as long as this")
    }

    /// Starts a server on what the last one left, and waits until it is ready.
    pub async fn start_again(&mut self) {
        self.start_unready().await;
        let server = &self.running.as_ref().expect("started above").server;
        let ready = tokio::time::timeout(Duration::from_secs(20), server.ready()).await;
        ready.expect("the server becomes ready").expect("the server can start");
    }

    /// Starts a server and waits only until it listens.
    pub async fn start_unready(&mut self) {
        let host = self.host.clone();
        self.launch(Box::new(move |start| async move { Ok(host.node(start.reports)) }.boxed())).await;
    }

    /// Starts a server whose node is started like this, and waits only until it listens.
    pub async fn launch(&mut self, node: StartNode) {
        assert!(self.running.is_none(), "one server at a time");
        let subscriber = tracing_subscriber::fmt()
            .with_env_filter("debug,hyper=info,sqlx=info")
            .with_ansi(false)
            .with_writer(self.log.clone())
            .finish();
        let dispatch = tracing::Dispatch::new(subscriber);
        // One thread, so that a kill is sudden: of several, one would still run what waits for a task that
        // another has just dropped.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .on_thread_start(move || {
                let guard = tracing::dispatcher::set_default(&dispatch);
                LOG.with(|log| *log.borrow_mut() = Some(guard));
            })
            .on_thread_stop(|| LOG.with(|log| drop(log.borrow_mut().take())))
            .build()
            .expect("a runtime");
        let options = ServerOptions {
            data_dir: self.data_dir(),
            listen: Some(([127, 0, 0, 1], 0).into()),
            config: self.config.clone(),
        };
        let server =
            runtime.spawn(Server::start(options, node)).await.expect("no panic").expect("the server starts");
        self.base = format!("http://{}", server.address());
        self.running = Some(Running { runtime, server });
    }

    /// Stops the server as SIGTERM does.
    pub async fn stop(&mut self) {
        let Running { runtime, server } = self.running.take().expect("it runs");
        runtime.spawn(server.stop()).await.expect("no panic");
        Self::end(runtime).await;
    }

    /// Ends the server as a kill does: every task at whatever it waits for.
    pub async fn kill(&mut self) {
        let Running { runtime, server } = self.running.take().expect("it runs");
        Self::end(runtime).await;
        drop(server);
    }

    async fn end(runtime: Runtime) {
        let end = move || runtime.shutdown_timeout(Duration::from_secs(10));
        tokio::task::spawn_blocking(end).await.expect("no panic");
    }

    /// A second connection to the server's database.
    pub async fn store(&self) -> Arc<dyn Store> {
        let url = format!("sqlite://{}", self.data_dir().join("state.db").display());
        nullspace_store::open(&url).await.expect("the store opens")
    }

    /// A key of another tenant, made as the command line makes it.
    pub async fn key_of(&self, tenant: &str) -> String {
        let store = self.store().await;
        let made = nullspace_auth::keys::create(&*store, tenant, "test").await.expect("a key");
        store.close().await;
        made.secret.expose().to_owned()
    }

    /// All events of the default tenant's sandbox, oldest first.
    pub async fn events(&self, id: &str) -> Vec<LifecycleEvent> {
        let store = self.store().await;
        let tenant = store.tenant_find("default").await.expect("the store answers").expect("there is one").id;
        let filter = EventFilter {
            sandbox_id: Some(sandbox_id(id)),
            order: EventOrder::Ascending,
            limit: 1000,
            ..EventFilter::default()
        };
        let rows = store.event_list(tenant, &filter).await.expect("the store answers");
        store.close().await;
        rows.into_iter().map(|row| row.event).collect()
    }

    /// The same in words: `operation/status`, with the reason if there is one.
    pub async fn event_words(&self, id: &str) -> Vec<String> {
        words(&self.events(id).await)
    }

    /// Lines of the log with this text are no reason to fail.
    pub fn expect_error(&mut self, text: &str) {
        self.expected.push(text.to_owned());
    }

    /// What the server has logged so far.
    pub fn log(&self) -> String {
        self.log.0.lock().expect("no panic under it").1.clone()
    }

    /// A request to build upon.
    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.http.request(method, format!("{}{path}", self.base)).bearer_auth(&self.key)
    }

    /// Sends a request.
    pub async fn send(&self, request: reqwest::RequestBuilder) -> Answer {
        let response = request.send().await.expect("the server answers");
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let bytes = response.bytes().await.expect("the answer comes whole");
        let text = || Value::String(String::from_utf8_lossy(&bytes).into_owned());
        let body = if bytes.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&bytes).unwrap_or_else(|_| text())
        };
        Answer { status, body, headers }
    }

    /// GET.
    pub async fn get(&self, path: &str) -> Answer {
        self.send(self.request(Method::GET, path)).await
    }

    /// POST of JSON.
    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.send(self.request(Method::POST, path).json(&body)).await
    }

    /// DELETE.
    pub async fn delete(&self, path: &str) -> Answer {
        self.send(self.request(Method::DELETE, path)).await
    }

    /// POST of a create with an idempotency key.
    pub async fn create_with_key(&self, key: &str, body: Value) -> Answer {
        self.send(self.request(Method::POST, "/v1/sandboxes").header("Idempotency-Key", key).json(&body))
            .await
    }

    /// POST without a body.
    pub async fn act(&self, path: &str) -> Answer {
        self.send(self.request(Method::POST, path)).await
    }

    /// Opens a sandbox's socket.
    pub async fn socket(&self, id: &str) -> Socket {
        self.socket_at(&format!("/v1/sandboxes/{id}/ws")).await
    }

    /// Opens the socket at a path.
    pub async fn socket_at(&self, path: &str) -> Socket {
        Socket::open(&self.base, path, &self.key).await
    }

    /// A request without a key to build upon, for URLs that the server has given out.
    pub fn bare(&self, method: Method, url: &str) -> reqwest::RequestBuilder {
        self.http.request(method, url)
    }

    /// Makes a sandbox and answers its ID.
    pub async fn sandbox(&self) -> String {
        let body = self.post("/v1/sandboxes", json!({})).await.expect(201);
        body["id"].as_str().expect("a sandbox has an ID").to_owned()
    }

    /// Reads a sandbox until it has a status.
    pub async fn until_status(&self, id: &str, status: &str) -> Value {
        self.until(|| async {
            let answer = self.get(&format!("/v1/sandboxes/{id}")).await;
            (answer.body["status"] == status).then_some(answer.body)
        })
        .await
    }

    /// The ID of the one sandbox that is being created. It is written while its machine is being made, so
    /// it may be listed only a moment after the node was asked.
    pub async fn creating(&self) -> String {
        self.until(|| async {
            let listed = self.get("/v1/sandboxes?state=creating").await.expect(200);
            listed["items"][0]["id"].as_str().map(str::to_owned)
        })
        .await
    }

    /// Repeats a question until it has an answer. Only for what the API has no way to wait for.
    pub async fn until<T, F: Future<Output = Option<T>>>(&self, mut ask: impl FnMut() -> F) -> T {
        let asking = async {
            loop {
                if let Some(answer) = ask().await {
                    return answer;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), asking).await.expect("it comes to what is waited for")
    }
}

/// Events in words, as [`Harness::event_words`] has them.
pub fn words(events: &[LifecycleEvent]) -> Vec<String> {
    let word = |event: &LifecycleEvent| {
        let reason = event.reason.as_deref().map(|reason| format!(" {reason}")).unwrap_or_default();
        format!("{}/{}{reason}", event.operation.as_str(), event.status.as_str())
    };
    events.iter().map(word).collect()
}

/// An ID from its text.
pub fn sandbox_id(text: &str) -> SandboxId {
    text.parse().expect("a sandbox's ID")
}

impl Drop for Harness {
    #[allow(clippy::print_stderr, reason = "tells whoever runs the tests where to look")]
    fn drop(&mut self) {
        if let Some(Running { runtime, server }) = self.running.take() {
            drop(server);
            runtime.shutdown_background();
        }
        let log = self.log();
        let unexpected = log.lines().find(|line| {
            line.contains(" ERROR ") && !self.expected.iter().any(|text| line.contains(text.as_str()))
        });
        if std::thread::panicking() || unexpected.is_some() {
            let kept: Option<PathBuf> = self.directory.take().map(tempfile::TempDir::keep);
            eprintln!(
                "the server's directory is kept: {}",
                kept.as_deref().unwrap_or(Path::new("?")).display()
            );
        }
        if let (false, Some(line)) = (std::thread::panicking(), unexpected) {
            panic!("unexpected ERROR in the server's log: {line}");
        }
    }
}
