//! The border error: a stable code for programs, a message for the caller, a context for the log.
//! What HTTP makes of it is decided in one place, in the API crate.

use std::fmt;

use crate::upload::UploadFailure;

/// Shorthand for results that end at the border.
pub type Result<T, E = Error> = std::result::Result<T, E>;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// The stable codes. Each has a page under `docs/errors/`; a test keeps the two in step.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Code { $($(#[$doc])* $name,)* }

        impl Code {
            /// Every code, in order.
            pub const ALL: &'static [Code] = &[$(Code::$name,)*];

            /// The code as it stands on the wire.
            pub const fn as_str(self) -> &'static str {
                match self { $(Code::$name => $text,)* }
            }
        }
    };
}

codes! {
    /// The request is malformed or a value is out of bounds.
    InvalidRequest = "invalid_request",
    /// `fields` names a field that the resource does not have.
    InvalidFields = "invalid_fields",
    /// The key is missing, malformed, unknown or revoked.
    Unauthorized = "unauthorized",
    /// The key is good but may not do this.
    PermissionDenied = "permission_denied",
    /// No such route or resource.
    NotFound = "not_found",
    /// No such sandbox, or not the caller's.
    SandboxNotFound = "sandbox_not_found",
    /// No such snapshot, or not the caller's.
    SnapshotNotFound = "snapshot_not_found",
    /// No such webhook, or not the caller's.
    WebhookNotFound = "webhook_not_found",
    /// No such delivery of the webhook.
    DeliveryNotFound = "delivery_not_found",
    /// No such template.
    TemplateNotFound = "template_not_found",
    /// No such process in the sandbox.
    ProcessNotFound = "process_not_found",
    /// No such file or directory in the sandbox.
    FileNotFound = "file_not_found",
    /// No such terminal session in the sandbox.
    TerminalNotFound = "pty_not_found",
    /// No such upload in the sandbox.
    UploadNotFound = "upload_not_found",
    /// The file operation failed in the sandbox: permission, a read-only place, not a directory, no space.
    FileError = "file_error",
    /// An upload was refused; the detail says why.
    FileUploadError = "file_upload_error",
    /// The part of a file that was asked for is outside of it.
    RangeNotSatisfiable = "range_not_satisfiable",
    /// The signature of a signed URL is wrong, or it was made for something else.
    EdgeTokenInvalid = "edge_token_invalid",
    /// A signed URL is too old.
    EdgeTokenExpired = "edge_token_expired",
    /// The sandbox's ports are private, and the request does not show the token for them.
    EdgeTokenMissing = "edge_token_missing",
    /// The token is good, but for another port, sandbox, kind or place.
    EdgeTokenScopeMismatch = "edge_token_scope_mismatch",
    /// No such preview grant of the sandbox.
    PreviewGrantNotFound = "preview_grant_not_found",
    /// The token speaks of a grant that does not exist.
    PreviewGrantInvalid = "preview_grant_invalid",
    /// The token's grant was revoked.
    PreviewGrantRevoked = "preview_grant_revoked",
    /// The token's grant ended with its sandbox.
    PreviewGrantDisabled = "preview_grant_disabled",
    /// The proxy did not send its token.
    PreviewProxyTokenMissing = "preview_proxy_token_missing",
    /// The proxy's token is wrong, or was made for something else.
    PreviewProxyTokenInvalid = "preview_proxy_token_invalid",
    /// The proxy's token is good, but for another port, sandbox or kind, or for a URL.
    PreviewProxyTokenScopeMismatch = "preview_proxy_token_scope_mismatch",
    /// The proxy's token is too old.
    PreviewProxyTokenExpired = "preview_proxy_token_expired",
    /// The address leads to no sandbox, or to one that cannot be used.
    PreviewSandboxDisabled = "preview_sandbox_disabled",
    /// Nothing in the sandbox listens on the port, or it did not answer as it should.
    PreviewServiceNotReady = "preview_service_not_ready",
    /// The port is one that previews do not reach.
    UnsupportedPreviewPort = "unsupported_preview_port",
    /// The sandbox's machine cannot be reached.
    EdgeRuntimeHostUnreachable = "edge_runtime_host_unreachable",
    /// The sandbox is paused and does not wake by itself.
    SandboxPausedAutoResumeDisabled = "sandbox_paused_auto_resume_disabled",
    /// No such stored secret.
    SecretNotFound = "secret_not_found",
    /// The method is not one that the route has.
    MethodNotAllowed = "method_not_allowed",
    /// The body is larger than the route takes.
    PayloadTooLarge = "payload_too_large",
    /// An idempotency key was used again with another request.
    Conflict = "conflict",
    /// The sandbox is not in a state in which this can be done.
    SandboxNotReady = "sandbox_not_ready",
    /// The same operation is under way; asking again later gives its result.
    TransitionInProgress = "transition_in_progress",
    /// A paused sandbox needs the snapshot.
    SnapshotInUse = "snapshot_in_use",
    /// The snapshot was captured by another kind of machine than this server has.
    IncompatibleSnapshot = "incompatible_snapshot",
    /// The snapshot's files are damaged.
    SnapshotCorrupted = "snapshot_corrupted",
    /// No room for another machine: memory, disk or slots.
    CapacityExceeded = "capacity_exceeded",
    /// The tenant's own limit is reached.
    QuotaExceeded = "quota_exceeded",
    /// Too many requests.
    RateLimitExceeded = "rate_limit_exceeded",
    /// The command could not be run: not found, not executable, or the guest did not answer.
    ExecFailed = "exec_failed",
    /// The command ran out of its time and its process group was killed.
    ExecTimeout = "exec_timeout",
    /// This server has the route but not the feature.
    NotImplemented = "not_implemented",
    /// The server is starting, stopping or repairing itself; try again.
    Unavailable = "unavailable",
    /// A fault of the server's own. Its log has more under the request's ID.
    InternalError = "internal_error",
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What the caller is told. `context` is for the log only and never leaves the server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// Stable, for programs.
    pub code: Code,
    /// Lower-case, names the thing, ends with what to do next where that is known.
    pub message: String,
    /// What the caller can do now, if that is known.
    pub suggested_action: Option<String>,
    /// More for the server's log.
    pub context: Option<String>,
    /// Why an upload was refused, for programs: with [`Code::FileUploadError`] alone.
    pub upload: Option<Box<UploadFailure>>,
}

impl Error {
    /// An error with a code and a message for the caller.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), suggested_action: None, context: None, upload: None }
    }

    /// [`Code::InvalidRequest`]: the message names the field and the bound.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidRequest, message)
    }

    /// [`Code::InternalError`]: the caller learns only that it happened, the log gets the context.
    pub fn internal(context: impl fmt::Display) -> Self {
        Self::new(Code::InternalError, "the server failed to do this").context(context)
    }

    /// [`Code::NotImplemented`], naming the feature.
    pub fn not_implemented(feature: impl fmt::Display) -> Self {
        Self::new(Code::NotImplemented, format!("{feature} is not implemented by this server"))
    }

    /// A sandbox that is not there, or not the caller's: the two look alike.
    pub fn sandbox_not_found(id: impl fmt::Display) -> Self {
        Self::new(Code::SandboxNotFound, format!("sandbox {id} does not exist"))
    }

    /// [`Code::FileUploadError`], with the detail that the wire has for it.
    pub fn upload(failure: UploadFailure) -> Self {
        let message = failure.message.clone();
        Self { upload: Some(Box::new(failure)), ..Self::new(Code::FileUploadError, message) }
    }

    /// Adds what the caller can do now.
    pub fn suggest(mut self, action: impl Into<String>) -> Self {
        self.suggested_action = Some(action.into());
        self
    }

    /// Adds what the log should know.
    pub fn context(mut self, context: impl fmt::Display) -> Self {
        self.context = Some(context.to_string());
        self
    }

    /// Whether the same request may succeed later without any change.
    pub fn retryable(&self) -> bool {
        if let Some(upload) = &self.upload {
            return upload.retryable;
        }
        matches!(
            self.code,
            Code::TransitionInProgress
                | Code::CapacityExceeded
                | Code::RateLimitExceeded
                | Code::Unavailable
                | Code::SandboxNotReady
                | Code::PreviewServiceNotReady
                | Code::EdgeRuntimeHostUnreachable
        )
    }
}
