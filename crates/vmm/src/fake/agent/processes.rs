//! Processes that only seem to run.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use nullspace_guest_proto as proto;
use nullspace_guest_proto::run_event::Event;
use tokio::sync::{mpsc, watch};
use tonic::Status;

use super::Links;

/// What a word does.
#[derive(Clone)]
pub enum Work {
    /// It is done at once: output, error output, exit status.
    Done(Vec<u8>, Vec<u8>, i32),
    /// It takes its time.
    Sleep(Duration),
    /// It copies standard input until that ends or it is killed.
    Copy,
}

/// What has come of a process so far.
#[derive(Clone, Default)]
pub struct Said {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// Exit status, and whether the time ran out.
    pub exit: Option<(i32, bool)>,
}

/// One of them.
pub struct Process {
    pub pid: u32,
    pub command: String,
    work: Work,
    /// None: it has all the time.
    timeout: Option<Duration>,
    /// None as long as its machine has only been captured, and nothing passes.
    begun: OnceLock<Instant>,
    pub said: watch::Sender<Said>,
}

/// All of them, and which start has which name.
#[derive(Default)]
pub struct Processes {
    all: BTreeMap<u32, Arc<Process>>,
    runs: HashMap<String, u32>,
}

/// What a command comes to. `None` when there is no such word.
pub fn work(words: &[String], environment: &BTreeMap<String, String>, cwd: &str) -> Option<Work> {
    let number = |n: usize| words.get(n).and_then(|word| word.parse::<f64>().ok()).unwrap_or(0.0);
    let said = |text: String| Work::Done(text.into_bytes(), Vec::new(), 0);
    Some(match words.first()?.as_str() {
        "true" => said(String::new()),
        "false" => Work::Done(Vec::new(), Vec::new(), 1),
        "echo" => said(format!("{}\n", words[1..].join(" "))),
        "env" => said(environment.iter().map(|(name, value)| format!("{name}={value}\n")).collect()),
        "pwd" => said(format!("{cwd}\n")),
        "exit" => Work::Done(Vec::new(), Vec::new(), number(1) as i32),
        "sleep" => Work::Sleep(Duration::try_from_secs_f64(number(1)).unwrap_or_default()),
        "cat" => Work::Copy,
        "yes-bytes" => Work::Done(vec![b'y'; number(1) as usize], Vec::new(), 0),
        "count" => said((0..number(1) as u64).map(|line| format!("{line}\n")).collect()),
        "bad-utf8" => Work::Done(b"\xff\xfe\n".to_vec(), Vec::new(), 0),
        _ => return None,
    })
}

impl Processes {
    pub fn start(
        &mut self,
        command: String,
        work: Work,
        timeout: Option<Duration>,
        run_id: &str,
    ) -> Arc<Process> {
        let pid = 100 + self.all.len() as u32;
        let said = watch::channel(Said::default()).0;
        let process = Arc::new(Process { pid, command, work, timeout, begun: OnceLock::new(), said });
        self.all.insert(pid, Arc::clone(&process));
        if !run_id.is_empty() {
            self.runs.insert(run_id.to_owned(), pid);
        }
        process
    }

    /// The same processes, as far as they have come now.
    pub fn copy(&self) -> Self {
        let all = self.all.iter().map(|(pid, process)| (*pid, Arc::new(process.copy()))).collect();
        Self { all, runs: self.runs.clone() }
    }

    /// What was started under this name before.
    pub fn named(&self, run_id: &str) -> Option<Arc<Process>> {
        self.runs.get(run_id).and_then(|pid| self.all.get(pid)).cloned()
    }

    pub fn find(&self, pid: u32) -> Result<Arc<Process>, Status> {
        self.all.get(&pid).cloned().ok_or_else(|| Status::not_found(format!("there is no process {pid}")))
    }

    pub fn all(&self) -> impl Iterator<Item = &Arc<Process>> {
        self.all.values()
    }

    pub fn forget(&mut self) {
        self.all.clear();
        self.runs.clear();
    }
}

/// Who hears of a process.
pub struct Follower {
    events: mpsc::Sender<Result<proto::RunEvent, Status>>,
    /// Events until the links break.
    left: Option<u64>,
    links: Links,
}

impl Follower {
    pub fn new(
        events: mpsc::Sender<Result<proto::RunEvent, Status>>,
        left: Option<u64>,
        links: Links,
    ) -> Self {
        Self { events, left, links }
    }

    /// Whether it is still there.
    pub async fn tell(&mut self, event: Event) -> bool {
        match &mut self.left {
            Some(0) => {
                self.links.cut();
                return false;
            }
            Some(left) => *left -= 1,
            None => {}
        }
        self.events.send(Ok(proto::RunEvent { event: Some(event) })).await.is_ok()
    }
}

impl Process {
    /// Killed, unless it has ended.
    pub fn kill(&self) {
        self.end(137, false);
    }

    /// Ends it, unless it has ended.
    pub fn end(&self, code: i32, timed_out: bool) {
        self.said
            .send_if_modified(|said| said.exit.is_none() && said.exit.replace((code, timed_out)).is_none());
    }

    /// The same process from here on: of its time, what is left.
    fn copy(&self) -> Self {
        let passed = self.passed();
        let work = match &self.work {
            Work::Sleep(time) => Work::Sleep(time.saturating_sub(passed)),
            other => other.clone(),
        };
        Self {
            pid: self.pid,
            command: self.command.clone(),
            work,
            timeout: self.timeout.map(|timeout| timeout.saturating_sub(passed)),
            begun: OnceLock::new(),
            said: watch::channel(self.said.borrow().clone()).0,
        }
    }

    fn passed(&self) -> Duration {
        self.begun.get().map_or(Duration::ZERO, Instant::elapsed)
    }

    /// Runs it to its end or its timeout, unless it has ended.
    pub async fn work(&self) {
        self.begun.get_or_init(Instant::now);
        let end = async {
            match &self.work {
                Work::Done(stdout, stderr, code) => {
                    self.said.send_modify(|said| {
                        said.stdout.clone_from(stdout);
                        said.stderr.clone_from(stderr);
                    });
                    *code
                }
                Work::Sleep(time) => {
                    tokio::time::sleep(*time).await;
                    0
                }
                Work::Copy => std::future::pending().await,
            }
        };
        let limit = self.timeout.unwrap_or(Duration::MAX);
        let mut ended = self.said.subscribe();
        tokio::select! {
            biased;
            // The sender lives in `self`.
            _ = ended.wait_for(|said| said.exit.is_some()) => {}
            code = end => self.end(code, false),
            () = tokio::time::sleep(limit) => self.end(137, true),
        }
    }

    /// Tells a follower of the output from some offsets on, as it comes, and of the end.
    pub async fn tell(&self, follower: &mut Follower, (stdout, stderr): (u64, u64), limit: u64) {
        let (mut at, mut cut) = ((stdout as usize, stderr as usize), false);
        let mut left = if limit == 0 { usize::MAX } else { limit as usize };
        let mut changes = self.said.subscribe();
        loop {
            let (out, err, exited) = {
                let said = changes.borrow_and_update();
                let exited = said.exit.map(|(exit_code, timed_out)| proto::Exited {
                    exit_code,
                    timed_out,
                    duration_us: self.passed().as_micros() as u64,
                    stdout_bytes: said.stdout.len() as u64,
                    stderr_bytes: said.stderr.len() as u64,
                });
                (rest(&said.stdout, &mut at.0), rest(&said.stderr, &mut at.1), exited)
            };
            for (stream, data) in [(proto::Stream::Stdout, out), (proto::Stream::Stderr, err)] {
                if !cut && data.len() > left {
                    cut = true;
                    if !follower.tell(Event::OutputCut(proto::OutputCut {})).await {
                        return;
                    }
                }
                for data in super::calls::pieces(&data).into_iter().filter(|_| !cut) {
                    left -= data.len();
                    let output = proto::Output { stream: stream.into(), data };
                    if !follower.tell(Event::Output(output)).await {
                        return;
                    }
                }
            }
            if let Some(exited) = exited {
                follower.tell(Event::Exited(exited)).await;
                return;
            }
            if changes.changed().await.is_err() {
                return;
            }
        }
    }
}

/// What is behind an offset, which is then behind that.
fn rest(data: &[u8], at: &mut usize) -> Bytes {
    let rest = Bytes::copy_from_slice(data.get(*at..).unwrap_or_default());
    *at += rest.len();
    rest
}
