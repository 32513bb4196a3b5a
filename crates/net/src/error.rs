//! What can go wrong with the host's network, said so that it can be mended.

use std::io;

/// This crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a slot could not be made, used or removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting is not usable.
    #[error("{field}: {problem}")]
    Config {
        /// The setting.
        field: &'static str,
        /// What is wrong with it, with its bounds.
        problem: String,
    },
    /// A program that is needed is not there.
    #[error("{tool}: not found: install {package}")]
    ToolMissing {
        /// The program.
        tool: &'static str,
        /// The package that has it, by its Debian name.
        package: &'static str,
    },
    /// A program said no.
    #[error("{tool}: {message}")]
    Tool {
        /// The program.
        tool: &'static str,
        /// What it wrote to standard error, or its status.
        message: String,
    },
    /// A program did not end and was killed.
    #[error("{tool}: did not end within {seconds} s and was killed: is the host overloaded?")]
    ToolTimeout {
        /// The program.
        tool: &'static str,
        /// How long it was given.
        seconds: u64,
    },
    /// Rights are missing.
    #[error("{doing}: not permitted: run as root, with CAP_SYS_ADMIN and CAP_NET_ADMIN")]
    NotPermitted {
        /// What was tried.
        doing: String,
    },
    /// The host said no.
    #[error("{doing}")]
    Io {
        /// What was tried.
        doing: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// There is no slot left to give.
    #[error("all {max} network slots are in use: destroy a machine, or raise the limit")]
    Exhausted {
        /// How many there may be.
        max: usize,
    },
    /// The pool is shutting down.
    #[error("the pool of network slots is shut down")]
    Closed,
    /// The slot has been released.
    #[error("network slot {index} has been released")]
    Released {
        /// Which one.
        index: u32,
    },
    /// The machine did not answer in time.
    #[error("no connection to port {port} of the machine in slot {index} within {milliseconds} ms")]
    ConnectTimeout {
        /// Which slot.
        index: u32,
        /// Which port of the machine.
        port: u16,
        /// How long it was given.
        milliseconds: u128,
    },
}

impl Error {
    /// An error of the host, told apart by whether rights would have helped.
    pub(crate) fn io(doing: impl Into<String>, source: impl Into<io::Error>) -> Self {
        let (doing, source) = (doing.into(), source.into());
        match source.kind() {
            io::ErrorKind::PermissionDenied => Self::NotPermitted { doing },
            _ => Self::Io { doing, source },
        }
    }
}

/// Adds what was tried to an error of the host.
pub(crate) trait Doing<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<io::Error>> Doing<T> for std::result::Result<T, E> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::io(what(), source))
    }
}
