//! How a command can fail, and what a person or a program is told about it.

use std::io;

use nullspace_client::Error;
use serde::Serialize;
use serde_json::Value;

use crate::{exit, printer};

/// What a command answers: its exit status, or why there is none.
pub(crate) type Outcome = Result<u8, Failure>;

/// Why a command failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The server or the way to it.
    Api(Error),
    /// The parser refused the command line, or was asked for help.
    Parser(Box<clap::Error>),
    /// The command line is well formed and still wrong.
    Usage { message: String, hint: Option<String> },
    /// What this program itself finds, where nobody else has a code for it.
    Local { code: &'static str, message: String, hint: Option<String>, details: Option<Value> },
    /// An upload, whatever it failed by, and how it can go on.
    Upload { cause: Box<Failure>, next: UploadNext },
    /// Reading or writing on this host.
    Io { doing: String, source: io::Error },
    /// Whoever read our output went away.
    BrokenPipe,
    /// Ctrl-C; what may have been left behind.
    Interrupted { left: Option<String> },
    /// Anything of the appliance's own: a server that does not start, a store that does not open.
    Other(anyhow::Error),
}

/// What an upload that failed leaves, and what to do next.
#[derive(Debug, Default)]
pub(crate) struct UploadNext {
    /// Its ID, if it had begun.
    pub(crate) upload_id: Option<String>,
    /// The command with which it goes on where it stopped, if it can.
    pub(crate) resume_command: Option<String>,
    /// For people.
    pub(crate) action: Option<String>,
}

impl Failure {
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::Usage { message: message.into(), hint: None }
    }

    /// For failures of reading or writing that are not standard output's.
    pub(crate) fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }

    /// Tells it where it belongs and answers the exit status. `json` is whether the literal
    /// `--json` stands anywhere on the command line.
    pub(crate) fn report(self, json: bool) -> u8 {
        // When even the report cannot be written there is nobody left to tell.
        match self {
            Self::BrokenPipe => exit::BROKEN_PIPE,
            Self::Parser(error) if !error.use_stderr() => {
                let written = printer::help(&error);
                if written.is_ok() { 0 } else { exit::BROKEN_PIPE }
            }
            Self::Parser(error) if !json => {
                drop(printer::usage(&error));
                exit::USAGE
            }
            Self::Upload { cause, next } if !json && matches!(*cause, Self::Interrupted { .. }) => {
                Self::Interrupted { left: next.hint() }.report(json)
            }
            Self::Interrupted { left } if !json => {
                drop(printer::error("interrupted", left.as_deref(), None));
                exit::INTERRUPTED
            }
            failure => {
                let told = failure.told();
                drop(if json { told.as_json() } else { told.as_text() });
                told.status
            }
        }
    }

    fn told(self) -> Told {
        match self {
            Self::Api(error) => Told::from_api(&error),
            Self::Parser(error) => {
                let text = error.to_string();
                let text = text.strip_prefix("error: ").unwrap_or(&text);
                let message = text.split("\n\nUsage:").next().unwrap_or(text).split("\n\nFor more").next();
                Told::usage(message.unwrap_or(text).trim().to_owned(), None)
            }
            Self::Usage { message, hint } => Told::usage(message, hint),
            Self::Local { code, message, hint, details } => {
                let mut told = Told::new(code, message, hint, exit::status(code));
                told.error.details = details;
                told
            }
            Self::Upload { cause, next } => cause.told().with_upload(next),
            Self::Io { doing, source } => {
                Told::new("cli_error", format!("cannot {doing}: {source}"), None, exit::GENERIC)
            }
            Self::BrokenPipe => Told::new("cli_error", "broken pipe".to_owned(), None, exit::BROKEN_PIPE),
            Self::Interrupted { left } => {
                Told::new("interrupted", "interrupted".to_owned(), left, exit::INTERRUPTED)
            }
            Self::Other(error) => Told::from_appliance(&error),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Api(error)
    }
}

impl From<clap::Error> for Failure {
    fn from(error: clap::Error) -> Self {
        Self::Parser(Box::new(error))
    }
}

/// An I/O error without any other context is one of writing our output.
impl From<io::Error> for Failure {
    fn from(source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::BrokenPipe => Self::BrokenPipe,
            _ => Self::Io { doing: "write the output".to_owned(), source },
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Other(error)
    }
}

/// A failure as it is told.
struct Told {
    status: u8,
    from_server: bool,
    error: ErrorJson,
}

/// The fields of the contract, in its order.
#[derive(Serialize)]
struct ErrorJson {
    code: String,
    message: String,
    hint: Option<String>,
    doc_url: String,
    request_id: Option<String>,
    retryable: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_detail: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    suggested_action: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<Value>,
    #[serde(flatten)]
    upload: Option<UploadJson>,
}

/// What an upload's error has besides, always all of it.
#[derive(Serialize)]
struct UploadJson {
    upload_id: Option<String>,
    path: Option<String>,
    reason: Option<Value>,
    part_number: Option<u32>,
    resume_command: Option<String>,
    next_action: Option<String>,
}

impl UploadNext {
    fn hint(&self) -> Option<String> {
        match &self.resume_command {
            Some(command) => Some(format!("go on where it stopped with `{command}`")),
            None => self.action.clone(),
        }
    }
}

impl Told {
    fn new(code: &str, message: String, hint: Option<String>, status: u8) -> Self {
        let error = ErrorJson {
            code: code.to_owned(),
            message,
            hint,
            doc_url: doc_url(code),
            request_id: None,
            retryable: None,
            error_detail: None,
            suggested_action: None,
            details: None,
            upload: None,
        };
        Self { status, from_server: false, error }
    }

    fn with_upload(mut self, next: UploadNext) -> Self {
        let failure = self.error.error_detail.as_ref();
        let detail =
            |name: &str| failure.and_then(|detail| detail.get(name)).filter(|value| !value.is_null());
        let text = |name: &str| Some(detail(name)?.as_str()?.to_owned());
        let upload = UploadJson {
            upload_id: next.upload_id.clone().or_else(|| text("upload_id")),
            path: text("path"),
            reason: detail("reason").cloned(),
            part_number: detail("part_number").and_then(Value::as_u64).and_then(|part| part.try_into().ok()),
            resume_command: next.resume_command.clone(),
            next_action: next.action.clone(),
        };
        let details = detail("details").cloned();
        self.error.details = self.error.details.or(details).or(Some(Value::Null));
        self.error.hint = next.hint().or(self.error.hint);
        self.error.upload = Some(upload);
        self
    }

    fn usage(message: String, hint: Option<String>) -> Self {
        let hint = hint.or_else(|| Some("run the command with --help to see what it takes".to_owned()));
        Self::new("invalid_request", message, hint, exit::USAGE)
    }

    /// A border error keeps its code; anything else is told with all its reasons.
    fn from_appliance(error: &anyhow::Error) -> Self {
        match error.downcast_ref::<nullspace_types::Error>() {
            Some(border) => {
                let code = border.code.as_str();
                let hint = border.suggested_action.clone().or_else(|| hint(code).map(str::to_owned));
                Self::new(code, format!("{error}"), hint, exit::status(code))
            }
            None => Self::new("cli_error", format!("{error:#}"), None, exit::GENERIC),
        }
    }

    fn from_api(error: &Error) -> Self {
        let hint = error.suggested_action().or_else(|| hint(error.code())).map(str::to_owned);
        let status = match error.upload_failure() {
            Some(failure) => exit::upload_status(failure.reason),
            None => exit::status(error.code()),
        };
        let mut told = Self::new(error.code(), error.message().to_owned(), hint, status);
        told.from_server = error.status().is_some();
        told.error.request_id = error.request_id().map(str::to_owned);
        told.error.retryable = error.retryable();
        told.error.error_detail = error.error_detail().cloned();
        told.error.suggested_action = error.suggested_action().map(str::to_owned);
        told.error.details = error.details().cloned();
        told
    }

    fn as_json(&self) -> io::Result<()> {
        #[derive(Serialize)]
        struct Document<'a> {
            error: &'a ErrorJson,
        }
        printer::json(&Document { error: &self.error })
    }

    fn as_text(&self) -> io::Result<()> {
        let mut more = Vec::new();
        if self.from_server && crate::pages::find(&self.error.code).is_some() {
            more.push(format!("more about it: nullspace explain {}", self.error.code));
        }
        if let Some(id) = &self.error.request_id {
            more.push(format!("request {id}"));
        }
        let more = Some(more.join("\n")).filter(|more| !more.is_empty());
        printer::error(&self.error.message, self.error.hint.as_deref(), more.as_deref())
    }
}

/// Where an error code is described: relative to the documentation of this version unless
/// `NULLSPACE_DOCS_URL` says where that is published.
fn doc_url(code: &str) -> String {
    let base = std::env::var("NULLSPACE_DOCS_URL").ok().filter(|base| !base.is_empty());
    let base = base.as_deref().unwrap_or("docs").trim_end_matches('/');
    format!("{base}/error-codes#{}", code.replace('_', "-"))
}

/// What to do where the server did not say.
fn hint(code: &str) -> Option<&'static str> {
    Some(match code {
        "unauthorized" => "check NULLSPACE_API_KEY and that NULLSPACE_API_URL is the server it belongs to",
        "sandbox_not_found" => "see which sandboxes there are with `nullspace sandbox list`",
        "snapshot_not_found" => "see which snapshots there are with `nullspace snapshot list`",
        "webhook_not_found" => "see which webhooks there are with `nullspace lifecycle webhooks list`",
        "delivery_not_found" => {
            "see which deliveries there are with `nullspace lifecycle webhooks deliveries`"
        }
        "snapshot_in_use" => "resume or destroy the paused sandbox that needs it",
        "template_not_found" => "see which templates there are with `nullspace template list`",
        "process_not_found" => "see which processes there are with `nullspace sandbox process list`",
        "pty_not_found" => "see which sessions there are with `nullspace sandbox pty list`",
        "upload_not_found" => "begin a new upload: leave out --resume",
        "file_not_found" => "see what is there with `nullspace sandbox file list`",
        "preview_grant_not_found" => "see which grants there are with `nullspace sandbox preview-url list`",
        "secret_not_found" => "see which secrets there are with `nullspace secret list`",
        "rate_limit_exceeded" => "wait a little and try again",
        "exec_timeout" => "allow more time with --timeout, or run it with --background",
        "exec_failed" => "use --shell for a command line, and check that the program is in the sandbox",
        "capacity_exceeded" => "destroy sandboxes that are no longer needed, or ask for a smaller one",
        "invalid_request" | "invalid_fields" => "run the command with --help to see what it takes",
        _ => return None,
    })
}
