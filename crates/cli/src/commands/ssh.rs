//! `nullspace ssh` and `sandbox ssh-access`: a certificate for a sandbox, and OpenSSH's own client with it.
//! What lies on the disk for that is in [`super::ssh_files`].

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;
use nullspace_types::ssh::{SshAccess, SshAccessRequest};
use serde::Serialize;

use super::sandbox::Target;
use super::ssh_files::{self, Written};
use super::upload::quoted;
use crate::failure::{Failure, Outcome};
use crate::{options, printer, session};

/// The port that SSH means when none is named.
const SSH_PORT: u16 = 22;

/// Whom to let in, and for how long.
#[derive(Args)]
pub(crate) struct Access {
    #[command(flatten)]
    target: Target,
    /// Whom to log in as; root when not given.
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// How long one may log in: seconds, or such as 10m; an hour at most, 10 minutes when not given.
    #[arg(long, value_name = "TIME", value_parser = options::span)]
    ttl: Option<i64>,
    /// The public key to certify: its text, @FILE, or - for standard input. When neither this nor
    /// --identity-file is given, a key in ~/.nullspace/ssh, which is made if it is not there.
    #[arg(long, value_name = "KEY")]
    public_key: Option<String>,
    /// The private key to certify, and to log in with.
    #[arg(long, value_name = "FILE")]
    identity_file: Option<PathBuf>,
    /// Answer with JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub(crate) struct Ssh {
    #[command(flatten)]
    access: Access,
    /// Print the command that would be run.
    #[arg(long)]
    print_command: bool,
    /// A setting for ssh, as its own -o takes it: 'LocalForward=8080 localhost:80'.
    #[arg(long, value_name = "KEY=VALUE")]
    option: Vec<String>,
    /// What to run there; a shell when there is nothing.
    #[arg(value_name = "COMMAND", trailing_var_arg = true)]
    command: Vec<String>,
}

/// A certificate in its place, and how to log in with it.
struct Ready {
    access: SshAccess,
    identity: Option<PathBuf>,
    written: Written,
}

#[derive(Serialize)]
struct AccessJson<'a> {
    #[serde(flatten)]
    access: &'a SshAccess,
    identity_file: Option<&'a Path>,
    certificate_file: &'a Path,
    known_hosts_file: &'a Path,
}

impl Access {
    pub(crate) fn run(self) -> Outcome {
        let ready = self.prepare()?;
        if self.json {
            ready.print_json()?
        } else {
            printer::line(&ready.access.command)?
        }
        Ok(0)
    }

    /// Asks for a certificate and puts it where ssh finds it.
    fn prepare(&self) -> Result<Ready, Failure> {
        let directory = ssh_files::directory()?;
        let (public_key, identity) = match (&self.public_key, &self.identity_file) {
            (Some(text), identity) => (options::text(text)?.trim().to_owned(), identity.clone()),
            (None, Some(identity)) => (ssh_files::public_key(identity)?, Some(identity.clone())),
            (None, None) => {
                let identity = ssh_files::own_key(&directory)?;
                (ssh_files::public_key(&identity)?, Some(identity))
            }
        };
        let request = SshAccessRequest {
            public_key: Some(public_key),
            expires_in_minutes: None,
            ttl_seconds: self.ttl,
            user: self.user.clone(),
        };
        let sandbox = &self.target.sandbox;
        let access = session::run_in(sandbox, async |client| {
            session::wait("asking for a certificate", None, client.ssh_access(sandbox, &request)).await
        })?;
        check(&access)?;
        let place = format!("{sandbox}-{}", access.user);
        let host = known_as(&access);
        let written = ssh_files::write(&directory, &place, &access.certificate, &host, &access.host_key)?;
        let mut ready = Ready { access, identity, written };
        ready.access.command = ready.command_line(&[], &[]);
        Ok(ready)
    }
}

/// What becomes part of a command, a file's name or a line of a file must be nothing else than that.
fn check(access: &SshAccess) -> Result<(), Failure> {
    let word = |text: &str, more: &str| {
        text.starts_with(|first: char| first.is_ascii_alphanumeric() || first == '_' || first == ':')
            && text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
    };
    let line = |text: &str| !text.is_empty() && !text.chars().any(char::is_control);
    let SshAccess { host, user, certificate, host_key, .. } = access;
    if word(host, ".-_:") && word(user, ".-_") && line(certificate.trim_end()) && line(host_key.trim_end()) {
        return Ok(());
    }
    Err(Failure::Local {
        code: "invalid_response",
        message: "the server's answer about SSH is not one that a command can be made from".to_owned(),
        hint: None,
        details: None,
    })
}

/// The relay as a file of known hosts names it.
fn known_as(access: &SshAccess) -> String {
    match access.port {
        SSH_PORT => access.host.clone(),
        port => format!("[{}]:{port}", access.host),
    }
}

impl Ready {
    fn print_json(&self) -> std::io::Result<()> {
        printer::json(&AccessJson {
            access: &self.access,
            identity_file: self.identity.as_deref(),
            certificate_file: &self.written.certificate,
            known_hosts_file: &self.written.known_hosts,
        })
    }

    /// The words behind `ssh`. Of a setting that is given twice ssh takes the first.
    fn words(&self, settings: &[String], command: &[String]) -> Vec<String> {
        let mut words: Vec<String> = Vec::new();
        let mut set = |setting: String| words.extend(["-o".to_owned(), setting]);
        settings.iter().cloned().for_each(&mut set);
        set(format!("CertificateFile={}", in_setting(&self.written.certificate)));
        set("StrictHostKeyChecking=yes".to_owned());
        set(format!("UserKnownHostsFile={}", in_setting(&self.written.known_hosts)));
        // All sandboxes are behind one address: a connection to one must not be used for another.
        set("ControlPath=none".to_owned());
        if let Some(identity) = &self.identity {
            set("IdentitiesOnly=yes".to_owned());
            words.splice(0..0, ["-i".to_owned(), identity.display().to_string()]);
        }
        words.extend(["-p".to_owned(), self.access.port.to_string()]);
        words.push(format!("{}@{}", self.access.user, self.access.host));
        words.extend(command.iter().cloned());
        words
    }

    fn command_line(&self, settings: &[String], command: &[String]) -> String {
        let words = self.words(settings, command);
        let words = std::iter::once("ssh").chain(words.iter().map(String::as_str));
        words.map(quoted).collect::<Vec<_>>().join(" ")
    }
}

/// A path as a setting of ssh has it: blanks separate and `%` begins something there.
fn in_setting(path: &Path) -> String {
    let text = path.display().to_string().replace('%', "%%");
    if text.contains(char::is_whitespace) { format!("\"{text}\"") } else { text }
}

impl Ssh {
    pub(crate) fn run(self) -> Outcome {
        let Self { access, print_command, option, command } = self;
        let ready = access.prepare()?;
        if access.json {
            ready.print_json()?;
            return Ok(0);
        }
        if print_command {
            printer::line(ready.command_line(&option, &command))?;
            return Ok(0);
        }
        // From here on this process is ssh, and its status that of ssh.
        let error = Command::new("ssh").args(ready.words(&option, &command)).exec();
        Err(ssh_files::cannot_run("ssh", error))
    }
}
