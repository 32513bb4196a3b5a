//! Calls about programs whose standard streams are lanes, as an SSH server has them: a command, the user's
//! login shell, or the agent's own SFTP server.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use nullspace_guest::sftp;
use nullspace_guest_proto as pb;
use tokio_stream::Stream;
use tonic::Status;

use super::process::{Refusal, check_command, explain, shown};
use super::terminal::{login_shell, shell};
use super::{Service, check_environment};
use crate::path;
use crate::process::follow;
use crate::process::launch::Launch;
use crate::process::piped::{Piped, Streams};
use crate::process::table::{Standard, Start};

/// What the call answers with.
pub enum Events {
    Piped(Piped),
    Failed(follow::Events),
}

impl Stream for Events {
    type Item = Result<pb::RunEvent, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.get_mut() {
            Events::Piped(piped) => Pin::new(piped).poll_next(context),
            Events::Failed(failed) => Pin::new(failed).poll_next(context),
        }
    }
}

/// What is executed: the program, its arguments, and what it is listed as.
struct Executed {
    program: String,
    arguments: Vec<String>,
    shown: String,
}

impl Service {
    pub(super) async fn do_run_piped(
        &self,
        request: pb::RunPipedRequest,
        arrived: Instant,
    ) -> Result<Events, Status> {
        check_environment(&request.envs)?;
        check_command(&request.command, &request.args, request.shell)?;
        if request.sftp && (request.shell || !request.command.is_empty() || !request.args.is_empty()) {
            return Err(Status::invalid_argument("the SFTP server takes no command"));
        }
        if !request.sftp && !request.shell && request.command.is_empty() {
            return Err(Status::invalid_argument("the command is empty"));
        }
        match self.run_piped(request, arrived).await? {
            Ok(piped) => Ok(Events::Piped(piped)),
            Err(refusal) => Ok(Events::Failed(refusal.into())),
        }
    }

    async fn run_piped(
        &self,
        request: pb::RunPipedRequest,
        arrived: Instant,
    ) -> Result<Result<Piped, Refusal>, Status> {
        let (account, mut directory) = match self.setting(&request.user, "/") {
            Ok(setting) => setting,
            Err(refusal) => return Ok(Err(refusal)),
        };
        // As an SSH server has it: in the user's home, or where there is none at the root.
        let home = PathBuf::from(&account.home);
        if !request.cwd.is_empty() {
            directory = path::resolve(&request.cwd, &account.home)?;
        } else if self.is_directory(home.clone()).await? {
            directory = home;
        }
        let over = self.tickets.over();
        let (stdio, stderr) = tokio::try_join!(
            self.tickets.connection(&request.stdio_ticket),
            self.tickets.connection(&request.stderr_ticket),
        )?;
        let own_shell = shell(&account);
        let mut environment = self.environment(&account, request.envs);
        environment.entry("SHELL".into()).or_insert_with(|| own_shell.clone());
        let Executed { program, arguments, shown } = if request.sftp {
            self.sftp_server()
        } else {
            executed(&own_shell, request.shell, request.command, request.args)
        };
        let admission = self.freezer.admit().await;
        let launch = Launch { program, arguments, environment, directory, account, admission };
        let made = if request.sftp {
            Streams::direct(stdio, stderr)?
        } else {
            match Streams::piped(stdio, stderr) {
                Ok(made) => made,
                Err(error) => return Ok(Err(explain(&error, &launch))),
            }
        };
        let (streams, theirs) = made;
        Ok(self
            .start_piped(launch, shown, theirs, arrived)
            .await
            .map(|process| Piped::new(process, streams, over)))
    }

    /// The program's ends of its streams are closed with this.
    async fn start_piped(
        &self,
        launch: Launch,
        shown: String,
        theirs: [OwnedFd; 3],
        arrived: Instant,
    ) -> Result<Arc<crate::process::Process>, Refusal> {
        let standard = Standard::Given(theirs);
        let start = Arc::new(Start { launch, shown, timeout: None, standard, arrived, name: None });
        self.start(&start.launch, None, |elsewhere| self.table.launch(Arc::clone(&start), elsewhere)).await
    }

    async fn is_directory(&self, path: PathBuf) -> Result<bool, Status> {
        self.mounts.run(false, move || Ok(path.is_dir())).await
    }

    /// The agent's own program again, by a descriptor: its file has no name any more.
    fn sftp_server(&self) -> Executed {
        Executed {
            program: format!("/proc/self/fd/{}", self.own.as_raw_fd()),
            arguments: vec![sftp::NAME.into(), sftp::ARGUMENT.into()],
            shown: sftp::NAME.into(),
        }
    }
}

/// A line is the user's shell's, and a login shell where there is none.
fn executed(own_shell: &str, shell: bool, command: String, args: Vec<String>) -> Executed {
    let shown = if command.is_empty() { own_shell.into() } else { shown(&command, &args) };
    let (program, arguments) = if !shell {
        (command.clone(), std::iter::once(command).chain(args).collect())
    } else if command.is_empty() {
        login_shell(own_shell)
    } else {
        let name = own_shell.rsplit('/').next().unwrap_or(own_shell);
        (own_shell.into(), vec![name.into(), "-c".into(), command])
    };
    Executed { program, arguments, shown }
}
