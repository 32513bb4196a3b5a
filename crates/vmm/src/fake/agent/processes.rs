//! Processes that only seem to run.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nullspace_guest_proto as proto;
use nullspace_guest_proto::run_event::Event;
use tokio::sync::{mpsc, watch};
use tonic::Status;

/// What a word does.
pub enum Work {
    /// It is done at once: output, error output, exit status.
    Done(Vec<u8>, Vec<u8>, i32),
    /// It takes its time.
    Sleep(Duration),
    /// It copies standard input until it is killed.
    Copy,
}

/// One of them.
pub struct Process {
    pub pid: u32,
    pub command: String,
    pub work: Work,
    pub stdout: Mutex<Vec<u8>>,
    pub stderr: Mutex<Vec<u8>>,
    pub exit: watch::Sender<Option<i32>>,
}

/// All of them.
#[derive(Default)]
pub struct Processes(BTreeMap<u32, Arc<Process>>);

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
        "bad-utf8" => Work::Done(b"\xff\xfe\n".to_vec(), Vec::new(), 0),
        _ => return None,
    })
}

impl Processes {
    pub fn start(&mut self, command: String, work: Work) -> Arc<Process> {
        let pid = 100 + self.0.len() as u32;
        let process = Arc::new(Process {
            pid,
            command,
            work,
            stdout: Mutex::default(),
            stderr: Mutex::default(),
            exit: watch::channel(None).0,
        });
        self.0.insert(pid, Arc::clone(&process));
        process
    }

    pub fn find(&self, pid: u32) -> Result<Arc<Process>, Status> {
        self.0.get(&pid).cloned().ok_or_else(|| Status::not_found(format!("there is no process {pid}")))
    }

    pub fn all(&self) -> impl Iterator<Item = &Arc<Process>> {
        self.0.values()
    }

    pub fn forget(&mut self) {
        self.0.clear();
    }
}

impl Process {
    /// The status, once it has ended.
    pub async fn ended(&self) -> i32 {
        let mut exit = self.exit.subscribe();
        // The sender lives in `self`.
        exit.wait_for(Option::is_some).await.ok().and_then(|exit| *exit).unwrap_or(-1)
    }

    /// Killed, unless it has ended.
    pub fn kill(&self) {
        self.exit.send_if_modified(|exit| exit.is_none() && exit.replace(137).is_none());
    }

    /// Runs it to its end or its timeout; says whether that came first.
    pub async fn work(&self, timeout_ms: u64) -> bool {
        let end = async {
            match &self.work {
                Work::Done(stdout, stderr, code) => {
                    self.stdout.lock().expect("no holder panics").extend_from_slice(stdout);
                    self.stderr.lock().expect("no holder panics").extend_from_slice(stderr);
                    *code
                }
                Work::Sleep(time) => {
                    tokio::time::sleep(*time).await;
                    0
                }
                Work::Copy => std::future::pending().await,
            }
        };
        let limit = if timeout_ms == 0 { Duration::MAX } else { Duration::from_millis(timeout_ms) };
        tokio::select! {
            code = end => {
                self.exit.send_if_modified(|exit| exit.is_none() && exit.replace(code).is_none());
                false
            }
            _ = self.ended() => false,
            () = tokio::time::sleep(limit) => {
                self.kill();
                true
            }
        }
    }

    /// Tells of its output from some offsets on, and of its end.
    pub async fn tell(
        &self,
        events: &mpsc::Sender<Result<proto::RunEvent, Status>>,
        (stdout, stderr): (u64, u64),
        limit: u64,
        (timed_out, begun): (bool, Instant),
    ) {
        let exit_code = self.ended().await;
        let take = |data: &Mutex<Vec<u8>>, from: u64| {
            let data = data.lock().expect("no holder panics");
            (data.get(from as usize..).unwrap_or_default().to_vec(), data.len() as u64)
        };
        let (out, stdout_bytes) = take(&self.stdout, stdout);
        let (err, stderr_bytes) = take(&self.stderr, stderr);
        let mut told = Vec::new();
        if limit > 0 && (out.len() + err.len()) as u64 > limit {
            told.push(Event::OutputCut(proto::OutputCut {}));
        } else {
            for (stream, data) in [(proto::Stream::Stdout, out), (proto::Stream::Stderr, err)] {
                let pieces = data.chunks(proto::CHUNK_BYTES).map(bytes::Bytes::copy_from_slice);
                told.extend(pieces.map(|data| Event::Output(proto::Output { stream: stream.into(), data })));
            }
        }
        told.push(Event::Exited(proto::Exited {
            exit_code,
            timed_out,
            duration_us: begun.elapsed().as_micros() as u64,
            stdout_bytes,
            stderr_bytes,
        }));
        for event in told {
            if events.send(Ok(proto::RunEvent { event: Some(event) })).await.is_err() {
                // Nobody listens any more; the process has ended all the same.
                return;
            }
        }
    }
}
