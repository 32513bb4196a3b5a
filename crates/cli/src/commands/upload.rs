//! `nullspace sandbox upload`. Which way an upload takes is decided in `upload_plan`; here it is taken,
//! and what it leaves when it fails is told together with how it goes on.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use clap::{Args, ValueEnum};
use futures::StreamExt;
use jiff::Timestamp;
use nullspace_client::Client;
use nullspace_client::upload::archive::Directory;
use nullspace_client::upload::{UploadContent, UploadTarget, UploadWatcher};
use nullspace_types::file::{FilePath, FileRawQuery};
use nullspace_types::upload::{UploadConflict, UploadKind, UploadReason, UploadSession};
use serde::Serialize;

use super::sandbox::Target;
use super::upload_plan::{Plan, PlanEntry, SourceKind, Transport, Wishes};
use crate::failure::{Failure, Outcome, UploadNext};
use crate::printer::{self, Cell, Mood, Progress};
use crate::session;
use crate::session::stdin::Stdin;

#[derive(Args)]
pub(crate) struct Upload {
    #[command(flatten)]
    target: Target,
    /// A file, a directory, or - for standard input.
    #[arg(value_name = "SOURCE")]
    source: String,
    /// Where it shall be; the source's name when not given. Relative ones start at the sandbox's working
    /// directory.
    #[arg(value_name = "DESTINATION")]
    destination: Option<String>,
    /// The user who shall own what is made.
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// What happens if there is something at the destination.
    #[arg(long, value_enum, ignore_case = true, default_value = "merge")]
    conflict: Conflict,
    /// A pattern of what is left out of a directory, as in `.gitignore`.
    #[arg(long, value_name = "PATTERN")]
    exclude: Vec<String>,
    /// Go on with this upload where it stopped.
    #[arg(long, value_name = "UPLOAD")]
    resume: Option<String>,
    /// At most so many parts at once.
    #[arg(long, value_name = "PARTS", value_parser = clap::value_parser!(u32).range(1..))]
    concurrency: Option<u32>,
    /// Whether a file or standard input goes in parts: auto means above 8 MiB.
    #[arg(long, value_enum, ignore_case = true, default_value = "auto")]
    resumable: When,
    /// How it is checked: sha256 means as a whole too, which needs a resumable upload.
    #[arg(long, value_enum, ignore_case = true, default_value = "auto")]
    checksum: Checksum,
    /// Whether it is kept in a temporary file first.
    #[arg(long, value_enum, ignore_case = true, default_value = "auto")]
    spool_to_disk: When,
    /// Say what would be uploaded and send nothing.
    #[arg(long, conflicts_with = "resume")]
    dry_run: bool,
    /// Answer with JSON, and show no progress.
    #[arg(long)]
    json: bool,
}

/// As [`UploadConflict`], for the parser.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Conflict {
    Merge,
    Replace,
    Error,
}

impl Conflict {
    fn wire(self) -> UploadConflict {
        match self {
            Self::Merge => UploadConflict::Merge,
            Self::Replace => UploadConflict::Replace,
            Self::Error => UploadConflict::Error,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum When {
    Auto,
    Always,
    Never,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Checksum {
    Auto,
    Sha256,
}

/// What `upload --json` answers.
#[derive(Serialize)]
struct UploadedJson {
    source_kind: SourceKind,
    target_path: String,
    transport: Transport,
    resumed: bool,
    result: ResultJson,
}

#[derive(Serialize)]
struct ResultJson {
    kind: UploadKind,
    target_path: String,
    bytes_uploaded: u64,
    file_count: u64,
    transport: Transport,
    resumed: bool,
    started_at: Timestamp,
    completed_at: Timestamp,
    upload_id: Option<String>,
    session: Option<UploadSession>,
}

/// What became of it.
struct Uploaded {
    kind: UploadKind,
    path: String,
    bytes: u64,
    files: u64,
    transport: Transport,
    session: Option<UploadSession>,
    resumed: bool,
}

/// What is to be sent.
enum Content {
    Kept { content: UploadContent, files: u64 },
    Passing(Stdin),
}

/// Follows an upload: its ID for whoever has to resume it, its progress for whoever looks on.
struct Watcher {
    upload_id: Mutex<Option<String>>,
    progress: Progress,
    length: AtomicU64,
}

impl UploadWatcher for Watcher {
    fn began(&self, session: &UploadSession) {
        *self.upload_id.lock().unwrap_or_else(PoisonError::into_inner) = Some(session.upload_id.to_string());
    }

    fn moved(&self, bytes: u64) {
        self.progress.bytes(bytes, Some(self.length.load(Ordering::Relaxed)));
    }
}

impl Upload {
    pub(crate) fn run(self) -> Outcome {
        if self.dry_run {
            return self.plan();
        }
        let progress = if self.json { Progress::hidden() } else { Progress::start("uploading") };
        let watcher =
            Arc::new(Watcher { upload_id: Mutex::default(), progress, length: AtomicU64::default() });
        let outcome = self.prepared().and_then(|(kind, path)| {
            let sending = |client| self.send(client, kind, path, &watcher);
            session::run_in(&self.target.sandbox, async |client| {
                session::quietly(None, sending(client)).await
            })
        });
        watcher.progress.end();
        outcome.map_err(|cause| {
            if matches!(cause, Failure::BrokenPipe) {
                return cause;
            }
            let id = watcher.upload_id.lock().unwrap_or_else(PoisonError::into_inner).take();
            let next = self.next(&cause, id);
            Failure::Upload { cause: Box::new(cause), next }
        })
    }

    /// What there is, and where it goes.
    fn prepared(&self) -> Result<(SourceKind, String), Failure> {
        let kind = SourceKind::of(&self.source)?;
        if kind != SourceKind::Directory && !self.exclude.is_empty() {
            return Err(Failure::usage("--exclude is for directories"));
        }
        let path = match (&self.resume, &self.destination) {
            // The upload knows where it goes.
            (Some(_), None) => String::new(),
            _ => kind.target(&self.source, self.destination.as_deref())?,
        };
        Ok((kind, path))
    }

    fn wishes(&self) -> Wishes {
        Wishes {
            conflict: self.conflict.wire(),
            resumable: self.resumable,
            checksum: self.checksum,
            spool: self.spool_to_disk,
            resumes: self.resume.is_some(),
        }
    }

    fn plan(self) -> Outcome {
        let (kind, path) = self.prepared()?;
        let wishes = self.wishes();
        let plan = match kind {
            SourceKind::File => Plan::of_file(&self.source, path, &wishes)?,
            SourceKind::Directory => {
                let directory = Directory::survey(Path::new(&self.source), &self.exclude)?;
                Plan::of_directory(&directory, path, &wishes)?
            }
            SourceKind::Stdin => {
                return Err(Failure::usage(
                    "--dry-run: how much standard input has is known when it is read",
                ));
            }
        };
        if self.json {
            #[derive(Serialize)]
            struct DryRun {
                dry_run: bool,
                plan: Plan,
            }
            printer::json(&DryRun { dry_run: true, plan })?;
            return Ok(0);
        }
        if kind == SourceKind::Directory {
            let row = |entry: &PlanEntry| {
                let mood = if entry.included { Mood::Plain } else { Mood::Faint };
                let reason = entry.reason.as_deref().unwrap_or("-");
                vec![Cell::with(entry.kind, mood), Cell::with(reason, mood), Cell::with(&entry.path, mood)]
            };
            let rows: Vec<_> = plan.manifest.iter().map(row).collect();
            printer::table(&["KIND", "LEFT OUT BY", "PATH"], &rows)?;
        }
        let way = match plan.transport {
            Transport::Direct => "in one request",
            Transport::Resumable => "in parts",
        };
        let files = if plan.file_count == 1 { "file" } else { "files" };
        printer::note(format_args!(
            "would upload {} {files} ({} bytes) to {} {way}",
            plan.file_count, plan.source_bytes, plan.target_path
        ))?;
        Ok(0)
    }

    async fn send(&self, client: Client, kind: SourceKind, path: String, watcher: &Arc<Watcher>) -> Outcome {
        let started_at = Timestamp::now();
        let uploaded = match self.content(kind).await? {
            Content::Passing(stdin) => {
                kind.transport(0, &self.wishes())?;
                self.send_passing(&client, stdin, path, watcher).await?
            }
            Content::Kept { content, files } => {
                watcher.length.store(content.length(), Ordering::Relaxed);
                match kind.transport(content.length(), &self.wishes())? {
                    Transport::Direct => self.send_at_once(&client, content, path, watcher).await?,
                    Transport::Resumable => {
                        self.send_in_parts(&client, &content, files, path, watcher).await?
                    }
                }
            }
        };
        watcher.progress.end();
        self.tell(kind, uploaded, started_at)?;
        Ok(0)
    }

    async fn content(&self, kind: SourceKind) -> Result<Content, Failure> {
        let spooled = kind.is_spooled(&self.wishes())?;
        let content = match kind {
            SourceKind::Directory => {
                let (source, exclude) = (self.source.clone(), self.exclude.clone());
                let packing = tokio::task::spawn_blocking(move || {
                    let directory = Directory::survey(Path::new(&source), &exclude)?;
                    Ok::<_, nullspace_client::Error>((directory.pack()?, directory.file_count()))
                });
                let packed = packing.await.map_err(|error| Failure::Other(error.into()))?;
                let (content, files) = packed?;
                return Ok(Content::Kept { content, files });
            }
            SourceKind::Stdin if !spooled => return Ok(Content::Passing(Stdin::open()?)),
            SourceKind::Stdin => UploadContent::spool(Stdin::open()?.into_stream(Bytes::new())).await?,
            SourceKind::File => {
                let content = UploadContent::open(Path::new(&self.source))?;
                if spooled { UploadContent::spool(content.read(0, content.length())).await? } else { content }
            }
        };
        Ok(Content::Kept { content, files: 1 })
    }

    async fn send_passing(
        &self,
        client: &Client,
        stdin: Stdin,
        path: String,
        watcher: &Arc<Watcher>,
    ) -> Result<Uploaded, Failure> {
        let counted = Arc::new(AtomicU64::new(0));
        let (count, theirs) = (counted.clone(), watcher.clone());
        let stream = stdin.into_stream(Bytes::new()).inspect(move |piece| {
            let length = piece.as_ref().map_or(0, Bytes::len) as u64;
            let sent = count.fetch_add(length, Ordering::Relaxed) + length;
            theirs.progress.bytes(sent, None);
        });
        let query = FileRawQuery { path: path.clone(), user: self.user.clone() };
        client.file_write_raw(&self.target.sandbox, &query, stream).await?;
        let bytes = counted.load(Ordering::Relaxed);
        self.at_once(client, path, bytes).await
    }

    async fn send_at_once(
        &self,
        client: &Client,
        content: UploadContent,
        path: String,
        watcher: &Arc<Watcher>,
    ) -> Result<Uploaded, Failure> {
        let theirs = watcher.clone();
        let mut sent = 0;
        let stream = content.read(0, content.length()).inspect(move |piece| {
            sent += piece.as_ref().map_or(0, Bytes::len) as u64;
            theirs.moved(sent);
        });
        let query = FileRawQuery { path: path.clone(), user: self.user.clone() };
        client.file_write_raw(&self.target.sandbox, &query, stream).await?;
        self.at_once(client, path, content.length()).await
    }

    /// What a plain write made: it answers nothing, so it is asked for.
    async fn at_once(&self, client: &Client, path: String, bytes: u64) -> Result<Uploaded, Failure> {
        let request = FilePath { path, user: self.user.clone() };
        let info = client.file_info(&self.target.sandbox, &request).await?;
        let (kind, transport) = (UploadKind::File, Transport::Direct);
        Ok(Uploaded { kind, path: info.path, bytes, files: 1, transport, session: None, resumed: false })
    }

    async fn send_in_parts(
        &self,
        client: &Client,
        content: &UploadContent,
        files: u64,
        path: String,
        watcher: &Arc<Watcher>,
    ) -> Result<Uploaded, Failure> {
        let sandbox = &self.target.sandbox;
        let concurrency = self.concurrency.and_then(|parts| usize::try_from(parts).ok());
        let done = match &self.resume {
            Some(upload) => {
                client.upload_resume(sandbox, upload, content, concurrency, watcher.clone()).await?
            }
            None => {
                let conflict = Some(self.conflict.wire());
                let target = UploadTarget { path, conflict, user: self.user.clone() };
                client.upload_content(sandbox, content, &target, concurrency, watcher.clone()).await?
            }
        };
        Ok(Uploaded {
            kind: content.kind(),
            path: done.session.target_path.clone(),
            bytes: content.length(),
            files: done.files.unwrap_or(files),
            transport: Transport::Resumable,
            resumed: done.resumed,
            session: Some(done.session),
        })
    }

    fn tell(
        &self,
        source_kind: SourceKind,
        uploaded: Uploaded,
        started_at: Timestamp,
    ) -> std::io::Result<()> {
        let Uploaded { kind, path, bytes, files, transport, session, resumed } = uploaded;
        if !self.json {
            let what = match source_kind {
                SourceKind::Stdin => "standard input",
                SourceKind::File | SourceKind::Directory => &self.source,
            };
            let content = match (source_kind, files) {
                (SourceKind::Directory, 1) => format!("1 file, {bytes} bytes packed"),
                (SourceKind::Directory, files) => format!("{files} files, {bytes} bytes packed"),
                (SourceKind::File | SourceKind::Stdin, _) => format!("{bytes} bytes"),
            };
            return printer::line(format_args!("uploaded {what} to {path} ({content})"));
        }
        let result = ResultJson {
            kind,
            target_path: path.clone(),
            bytes_uploaded: bytes,
            file_count: files,
            transport,
            resumed,
            started_at,
            completed_at: Timestamp::now(),
            upload_id: session.as_ref().map(|session| session.upload_id.to_string()),
            session,
        };
        printer::json(&UploadedJson { source_kind, target_path: path, transport, resumed, result })
    }

    /// What a failed upload leaves, and what to do next.
    fn next(&self, cause: &Failure, upload_id: Option<String>) -> UploadNext {
        let reason = match cause {
            Failure::Api(error) => error.upload_failure().map(|failure| failure.reason),
            _ => None,
        };
        let usable = match (cause, reason) {
            (_, Some(reason)) => matches!(
                reason,
                UploadReason::InsufficientStagingSpace
                    | UploadReason::InvalidPartChecksum
                    | UploadReason::MissingParts
            ),
            (Failure::Api(error), None) => {
                error.is_transport()
                    || error.retryable() == Some(true)
                    || error.status().is_some_and(|s| s >= 500)
            }
            (cause, None) => matches!(cause, Failure::Interrupted { .. }),
        };
        // What came from standard input is gone with this program.
        let resume_command =
            upload_id.as_deref().filter(|_| usable && self.source != "-").map(|id| self.again(id));
        let action = match reason {
            _ if resume_command.is_some() => Some("go on with the resume command"),
            Some(UploadReason::TargetConflict) => {
                Some("choose another destination, or --conflict merge or replace")
            }
            Some(UploadReason::InsufficientStagingSpace) => Some("make room in the sandbox and upload again"),
            Some(UploadReason::SizeLimitExceeded) => Some("upload less"),
            Some(UploadReason::WholeChecksumMismatch | UploadReason::InvalidPartChecksum) => {
                Some("upload again: the source changed while it was read, or the connection garbled it")
            }
            Some(_) => Some("begin a new upload"),
            None => match cause {
                Failure::Api(error) => error.suggested_action().or(Some("upload again")),
                Failure::Interrupted { .. } => Some("upload again"),
                _ => None,
            },
        };
        let action = action.map(str::to_owned);
        UploadNext { upload_id, resume_command, action }
    }

    /// The command that goes on with an upload.
    fn again(&self, upload_id: &str) -> String {
        let mut words = vec!["nullspace", "sandbox", "upload", &self.target.sandbox, &self.source];
        words.extend(self.destination.as_deref());
        words.extend(["--resume", upload_id]);
        for pattern in &self.exclude {
            words.extend(["--exclude", pattern]);
        }
        if let Some(user) = &self.user {
            words.extend(["--user", user]);
        }
        words.into_iter().map(quoted).collect::<Vec<_>>().join(" ")
    }
}

/// A word as a shell must be given it.
pub(super) fn quoted(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:=@%+,".contains(&byte);
    if !word.is_empty() && word.bytes().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_given_to_a_shell_as_they_are() {
        let all = ["a/b.txt", "", "two words", "it's", "*.py"].map(quoted);
        assert_eq!(all, ["a/b.txt", "''", "'two words'", r"'it'\''s'", "'*.py'"]);
    }
}
