//! Calls about terminal sessions.

use std::path::Path;
use std::sync::Arc;

use nullspace_guest_proto as pb;
use pb::failed::Reason;
use tonic::Status;

use super::process::{Refusal, SHELL};
use super::{Service, check_environment};
use crate::account::{Account, Accounts};
use crate::process::launch::Launch;
use crate::terminal::Size;
use crate::terminal::sessions::Start;
use crate::terminal::viewer::Viewer;

/// Where a user has no shell, or one that is not there.
const SHELLS: [&str; 2] = ["/bin/bash", "/bin/sh"];
/// What a terminal is said to be.
const TERM: &str = "xterm-256color";
const COLORTERM: &str = "truecolor";
/// Bytes of one message that is typed.
const TYPED_BYTES: usize = 1 << 20;

impl From<Refusal> for Status {
    fn from(Refusal { reason, message }: Refusal) -> Self {
        match reason {
            Reason::BadCwd | Reason::BadUser => Status::invalid_argument(message),
            Reason::NoResources => Status::resource_exhausted(message),
            Reason::CommandNotFound | Reason::NotExecutable | Reason::Unspecified => {
                Status::failed_precondition(message)
            }
        }
    }
}

impl Service {
    pub(super) async fn do_start_terminal(
        &self,
        request: pb::StartTerminalRequest,
    ) -> Result<pb::Terminal, Status> {
        let size = Size::new(request.cols, request.rows)?;
        check_environment(&request.envs)?;
        if request.command.contains('\0') {
            return Err(Status::invalid_argument("the command contains a NUL byte"));
        }
        let turn = self.sessions.turn(&request.session_id).await?;
        if let Some(session) = self.sessions.known(&request.session_id) {
            return Ok(session.info());
        }
        let (account, directory) = self.setting(&request.user, &request.cwd)?;
        let shell = shell(&account);
        let mut environment = self.environment(&account, request.envs);
        for (name, value) in [("TERM", TERM), ("COLORTERM", COLORTERM), ("SHELL", &shell)] {
            environment.entry(name.into()).or_insert_with(|| value.into());
        }
        let (program, arguments) = program(&shell, request.command);
        let admission = self.freezer.admit().await;
        let start = Arc::new(Start {
            name: (request.session_id, turn),
            size,
            launch: Launch { program, arguments, environment, directory, account, admission },
        });
        let own_directory = request.cwd.is_empty().then_some(request.user.as_str());
        let session = self
            .start(&start.launch, own_directory, |elsewhere| {
                self.sessions.launch(Arc::clone(&start), elsewhere)
            })
            .await?;
        Ok(session.info())
    }

    pub(super) fn do_attach_terminal(&self, request: &pb::TerminalRequest) -> Result<Viewer, Status> {
        Ok(Viewer::new(self.sessions.find(&request.session_id)?))
    }

    pub(super) async fn do_write_terminal(&self, request: pb::WriteTerminalRequest) -> Result<(), Status> {
        if request.data.len() > TYPED_BYTES {
            return Err(Status::invalid_argument(format!(
                "data has {} bytes; at most {TYPED_BYTES}",
                request.data.len()
            )));
        }
        self.sessions.find(&request.session_id)?.write(&request.data).await
    }

    pub(super) fn do_resize_terminal(&self, request: &pb::ResizeTerminalRequest) -> Result<(), Status> {
        let size = Size::new(request.cols, request.rows)?;
        let session = self.sessions.find(&request.session_id)?;
        self.sessions.resize(&session, size)
    }

    pub(super) async fn do_kill_terminal(&self, request: &pb::TerminalRequest) -> Result<(), Status> {
        self.sessions.find(&request.session_id)?.kill().await
    }

    pub(super) fn do_list_terminals(&self) -> pb::ListTerminalsReply {
        pb::ListTerminalsReply { terminals: self.sessions.running() }
    }
}

/// The user's shell.
pub(super) fn shell(account: &Account) -> String {
    let accounts = Accounts::load();
    accounts
        .shell(&account.name)
        .into_iter()
        .chain(SHELLS)
        .find(|shell| Path::new(shell).exists())
        .unwrap_or(SHELLS[1])
        .into()
}

/// A shell as a login shell, which is what the dash in its name says.
pub(super) fn login_shell(shell: &str) -> (String, Vec<String>) {
    let name = shell.rsplit('/').next().unwrap_or(shell);
    (shell.into(), vec![format!("-{name}")])
}

/// A program and its arguments: the command as Run has it, or else the shell.
fn program(shell: &str, command: String) -> (String, Vec<String>) {
    if command.is_empty() {
        login_shell(shell)
    } else {
        (SHELL.into(), vec![SHELL.into(), "-c".into(), command])
    }
}
