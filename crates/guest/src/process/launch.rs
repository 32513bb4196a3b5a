//! A program to start, and the system calls that start it.
//!
//! What a `Launch` says has been settled before: who, where, with which environment. Here are the lookup
//! in `PATH`, as `execvp` has it, and what a failure means.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use nix::errno::Errno;

use super::spawn::{self, Program, Stage};
use crate::account::Account;
use crate::freezer::Admission;

/// The path of programs where the environment has none.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program to start, checked and complete.
pub struct Launch {
    /// Looked up in `PATH` when it has no slash.
    pub program: String,
    /// The first is what the program finds as its own name.
    pub arguments: Vec<String>,
    pub environment: BTreeMap<String, String>,
    pub directory: PathBuf,
    pub account: Account,
    /// Kept until it was started.
    pub admission: Admission,
}

/// Why a process was not started.
#[derive(Debug)]
pub enum LaunchError {
    NotFound,
    NotExecutable(Errno),
    Directory(Errno),
    User(Errno),
    Resources(String),
}

/// What the program's three standard files are.
pub enum Files<'a> {
    Three {
        stdin: BorrowedFd<'a>,
        stdout: BorrowedFd<'a>,
        stderr: BorrowedFd<'a>,
    },
    /// All of them, and the terminal of its session.
    Terminal(BorrowedFd<'a>),
}

impl Launch {
    /// Starts it and returns its process ID. May block. `change_user`: the agent may become another user.
    pub fn execute(&self, files: &Files<'_>, change_user: bool) -> Result<u32, LaunchError> {
        let string = |text: String| CString::new(text).map_err(|_| LaunchError::NotFound);
        let path = self.environment.get("PATH").map_or(DEFAULT_PATH, String::as_str);
        let (stdin, stdout, stderr) = match *files {
            Files::Three { stdin, stdout, stderr } => (stdin, stdout, stderr),
            Files::Terminal(terminal) => (terminal, terminal, terminal),
        };
        let program = Program {
            candidates: candidates(&self.program, path).into_iter().map(string).collect::<Result<_, _>>()?,
            arguments: self.arguments.iter().cloned().map(string).collect::<Result<_, _>>()?,
            environment: self
                .environment
                .iter()
                .map(|(name, value)| string(format!("{name}={value}")))
                .collect::<Result<_, _>>()?,
            directory: string(self.directory.to_string_lossy().into_owned())?,
            account: &self.account,
            change_user,
            group: self.admission.group(),
            terminal: matches!(files, Files::Terminal(_)),
            stdin,
            stdout,
            stderr,
        };
        spawn::spawn(&program).map_err(|(stage, error)| match (stage, error) {
            (Stage::Directory, error) => LaunchError::Directory(error),
            (Stage::User, error) => LaunchError::User(error),
            (Stage::Execute, Errno::ENOENT | Errno::ENOTDIR) => LaunchError::NotFound,
            (Stage::Execute, Errno::E2BIG) => {
                LaunchError::Resources("the arguments and the environment are too long".into())
            }
            (Stage::Execute, error @ (Errno::ENOMEM | Errno::EAGAIN | Errno::EMFILE | Errno::ENFILE)) => {
                LaunchError::Resources(error.desc().into())
            }
            (Stage::Execute, error) => LaunchError::NotExecutable(error),
            (Stage::Prepare, error) => LaunchError::Resources(error.desc().into()),
        })
    }
}

/// Where a program may be, in order, as `execvp` has it: an empty part of the path is the current
/// directory.
fn candidates(program: &str, path: &str) -> Vec<String> {
    if program.is_empty() || program.contains('/') {
        return vec![program.into()];
    }
    path.split(':')
        .map(|directory| if directory.is_empty() { program.into() } else { format!("{directory}/{program}") })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::candidates;

    #[test]
    fn a_program_with_a_slash_is_not_looked_up() {
        assert_eq!(candidates("./x", "/bin"), ["./x"]);
        assert_eq!(candidates("x", "/bin::/opt/b"), ["/bin/x", "x", "/opt/b/x"]);
    }
}
