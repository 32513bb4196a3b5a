//! The agent inside a machine: its first process and its only service.
//!
//! Started by the kernel as PID 1 it boots the machine (`boot`), serves the protocol of
//! `nullspace-guest-proto` to the node at the other end of the link (`serve`, `service`), reaps every
//! process (`process::reaper`) and ends the machine (`power`). Started with `--hosted ADDRESS TOKEN
//! [DIRECTORY [GROUPS]]` it only serves, for tests; its logs are in that directory, and its hooks below it,
//! and what it starts is in control groups that it makes in the other. Started with `--sftp`, as it starts
//! itself, it is an SFTP server on its standard streams and nothing else.
//!
//! One thread does all the work, with others for file work that may take long (`mounts`). Deliberately
//! absent: any configuration, any log beyond the console, any call out of the machine, and any program
//! of the guest's disk that the agent itself would need.

mod adopt;
mod authority;
mod boot;
mod bulk;
mod console;
mod door;
mod file;
mod freezer;
mod hooks;
mod links;
mod metrics;
mod mounts;
mod path;
mod power;
mod process;
mod serve;
mod service;
mod splice;
mod terminal;
mod token;
mod upload;
mod watch;

use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{TcpKeepCount, TcpKeepIdle, TcpKeepInterval};
use nullspace_guest::{account, sftp};
use nullspace_guest_proto as pb;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::mpsc;

use bulk::Tickets;
use console::say;
use freezer::Freezer;
use hooks::Hooks;
use links::Links;
use mounts::Mounts;
use power::Stop;
use process::children::Children;
use process::{reaper, table::Table};
use service::adoption::Adoption;
use service::{Place, Service};
use terminal::sessions::Sessions;
use token::Tokens;

/// Records of processes that outgrow memory.
const LOGS: &str = "/var/lib/nullspace/logs";
/// Hooks of an agent that is hosted, in its directory.
const HOSTED_HOOKS: &str = "after-restore.d";
/// A link that is silent for so long is asked whether it is there, and again, and is closed after so many
/// times without an answer.
const KEEPALIVE_SECONDS: u32 = 15;
const KEEPALIVE_COUNT: u32 = 3;
/// How long the answer to Shutdown may take on its way before the power goes.
const FAREWELL: Duration = Duration::from_millis(100);
/// Threads for file work. Those that hang in a dead file system count.
const THREADS: usize = 128;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--hosted", address, token, ref rest @ ..] if rest.len() <= 2 => {
            hosted(address, token, rest.first().copied(), rest.get(1).map(Path::new))
        }
        [sftp::ARGUMENT] => sftp::serve_standard_streams(),
        _ if std::process::id() == 1 => {
            let failed = machine();
            // Without its first process the kernel would panic; so it would without a link to serve.
            if let Err(error) = &failed {
                say!("{error}");
            }
            power::off();
            failed
        }
        _ => Err(io::Error::other(
            "usage: nullspace-guest --hosted ADDRESS TOKEN [DIRECTORY [GROUPS]]; or run it as PID 1",
        )),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn machine() -> io::Result<()> {
    let token = boot::boot()?;
    let listen = |port| -> io::Result<TcpListener> {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        // All are inherited by what is accepted. A link whose other end vanished while the machine stood
        // still is found out soon: a command may be waiting for its reader.
        socket.set_nodelay(true)?;
        socket.set_keepalive(true)?;
        setsockopt(&socket, TcpKeepIdle, &KEEPALIVE_SECONDS)?;
        setsockopt(&socket, TcpKeepInterval, &KEEPALIVE_SECONDS)?;
        setsockopt(&socket, TcpKeepCount, &KEEPALIVE_COUNT)?;
        socket.bind_device(Some(boot::LINK_DEVICE.as_bytes()))?;
        socket.bind(SocketAddr::from((pb::GUEST_ADDRESS, port)))?;
        socket.listen(64)
    };
    let listen = || Ok((listen(pb::AGENT_PORT)?, listen(pb::BULK_PORT)?));
    let directories = Directories { logs: LOGS.into(), hooks: hooks::DIRECTORY.into() };
    let freezer = Freezer::with_groups(Path::new(boot::CONTROL_GROUPS), true)?;
    run(Place::Machine, token, directories, freezer, Some(pb::GATEWAY_ADDRESS.into()), listen)
}

fn hosted(address: &str, token: &str, directory: Option<&str>, groups: Option<&Path>) -> io::Result<()> {
    let address: SocketAddr = address.parse().map_err(io::Error::other)?;
    // Orphans of the processes it starts come to it, as they do to PID 1.
    nix::sys::prctl::set_child_subreaper(true)?;
    let listen = |address| -> io::Result<TcpListener> {
        let socket = TcpSocket::new_v4()?;
        socket.set_nodelay(true)?;
        socket.bind(address)?;
        socket.listen(64)
    };
    let listen = || {
        let (calls, bulk) = (listen(address)?, listen(SocketAddr::new(address.ip(), 0))?);
        writeln!(io::stdout(), "{} {}", calls.local_addr()?, bulk.local_addr()?)?;
        Ok((calls, bulk))
    };
    let logs = directory.map_or_else(|| std::env::temp_dir().join("nullspace-guest-logs"), PathBuf::from);
    let directories = Directories { hooks: logs.join(HOSTED_HOOKS), logs };
    let freezer =
        groups.map_or_else(|| Ok(Freezer::without_groups()), |root| Freezer::with_groups(root, false))?;
    run(Place::Hosted, token.into(), directories, freezer, None, listen)
}

/// Where the agent's own files are.
struct Directories {
    logs: PathBuf,
    hooks: PathBuf,
}

/// Serves until it is told to stop.
fn run(
    place: Place,
    token: String,
    directories: Directories,
    freezer: Freezer,
    peer: Option<IpAddr>,
    listen: impl FnOnce() -> io::Result<(TcpListener, TcpListener)>,
) -> io::Result<()> {
    // Before there are other threads, which would take the signals.
    let signals = reaper::block_signals()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .max_blocking_threads(THREADS)
        .build()?;
    runtime.block_on(async move {
        let (stop, mut stops) = mpsc::channel::<Stop>(1);
        let change_user = nix::unistd::geteuid().is_root();
        let children = Arc::new(Children::default());
        let table = Arc::new(Table::new(directories.logs, change_user, Arc::clone(&children)));
        let sessions = Arc::new(Sessions::new(change_user, Arc::clone(&children)));
        let mounts = Arc::new(Mounts::watch()?);
        let tokens = Arc::new(Tokens::new(token));
        let (listener, bulk_listener) = listen()?;
        let tickets = Arc::new(Tickets::default());
        let links = Arc::new(Links::default());
        let freezer = Arc::new(freezer);
        let hooks =
            Hooks::new(directories.hooks, Arc::clone(&children), Arc::clone(&mounts), Arc::clone(&freezer));
        let adoption = Arc::new(Adoption::new(
            place,
            Arc::clone(&tokens),
            Arc::clone(&links),
            Arc::clone(&tickets),
            Arc::clone(&table),
            Arc::clone(&freezer),
            hooks,
        ));
        let service = Service::new(
            adoption,
            Arc::clone(&table),
            sessions,
            mounts,
            Arc::clone(&tickets),
            freezer,
            stop.clone(),
        )?;
        let server = serve::Server::new(service, tokens, Arc::clone(&links), peer);
        let reaping = tokio::spawn(reaper::reap(signals, Arc::clone(&children), stop));
        let serving = tokio::spawn(server.run(listener));
        let carrying = tokio::spawn(bulk::serve(bulk_listener, tickets, peer));
        say!("ready");
        let stop = tokio::select! {
            stop = stops.recv() => stop,
            ended = reaping => return Err(ended_early("the reaper", ended.map(|r| r.err()))),
            ended = serving => return Err(ended_early("the listener", ended.map(|r| r.err()))),
            ended = carrying => return Err(ended_early("the bulk listener", ended.map(|r| r.err()))),
        };
        say!("stopping");
        match place {
            Place::Machine => power::quiesce(&children).await,
            Place::Hosted => table.all().iter().for_each(|process| process.kill()),
        }
        if let Some(Stop(Some(done))) = stop {
            // The caller may have gone.
            let _ = done.send(());
            links.closed(FAREWELL).await;
        }
        Ok(())
    })
}

fn ended_early(task: &str, ended: Result<Option<io::Error>, tokio::task::JoinError>) -> io::Error {
    match ended {
        Ok(Some(error)) => io::Error::other(format!("{task} ended: {error}")),
        Ok(None) => io::Error::other(format!("{task} ended")),
        Err(error) => io::Error::other(format!("{task} ended: {error}")),
    }
}
