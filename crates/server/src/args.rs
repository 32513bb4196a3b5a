//! The arguments of `nullspace server`, `nullspace key` and `nullspace gc`, declared once; the command line flattens
//! them into its own.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand};

/// Where a server keeps what it knows, unless told otherwise.
pub const DATA_DIR: &str = "/var/lib/nullspace";

/// Run the server in the foreground.
#[derive(Debug, Clone, Args)]
pub struct ServerArgs {
    /// Directory for the database, the sockets and the machines' disks; made if missing.
    #[arg(long, value_name = "DIR", env = "NULLSPACE_DATA_DIR", default_value = DATA_DIR)]
    pub data_dir: PathBuf,
    /// Address and port to listen on; port 0 takes a free one. Overrides `listen` in the configuration.
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Option<SocketAddr>,
    /// Configuration file in TOML; see docs/reference/config.md.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// Show what lies on the server's disk and nobody needs, or remove it.
#[derive(Debug, Clone, Args)]
pub struct GcArgs {
    /// The running server's data directory.
    #[arg(long, value_name = "DIR", env = "NULLSPACE_DATA_DIR", default_value = DATA_DIR)]
    pub data_dir: PathBuf,
    /// Remove it; without this it is only shown.
    #[arg(long)]
    pub apply: bool,
}

/// Manage API keys and the tenants they belong to. Works while the server runs.
#[derive(Debug, Clone, Args)]
pub struct KeyArgs {
    /// What to do.
    #[command(subcommand)]
    pub action: KeyAction,
}

/// Where the keys are.
#[derive(Debug, Clone, Args)]
pub struct KeyStoreArgs {
    /// The server's data directory.
    #[arg(long, value_name = "DIR", env = "NULLSPACE_DATA_DIR", default_value = DATA_DIR)]
    pub data_dir: PathBuf,
    /// The server's configuration file, if it has one.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// What can be done with keys.
#[derive(Debug, Clone, Subcommand)]
pub enum KeyAction {
    /// Make a key. The secret is shown once and cannot be shown again.
    Create {
        /// Where the keys are.
        #[command(flatten)]
        store: KeyStoreArgs,
        /// Whose key it is; a tenant that does not exist yet is made.
        #[arg(long, value_name = "NAME", default_value = "default")]
        tenant: String,
        /// A note to recognise the key by.
        #[arg(long, value_name = "TEXT", default_value = "")]
        label: String,
    },
    /// List keys, without their secrets.
    List {
        /// Where the keys are.
        #[command(flatten)]
        store: KeyStoreArgs,
    },
    /// Revoke a key. Requests with it are refused from then on.
    Revoke {
        /// The key's ID, as listed.
        #[arg(value_name = "ID")]
        id: String,
        /// Where the keys are.
        #[command(flatten)]
        store: KeyStoreArgs,
    },
}
