//! `nullspace sandbox download`: a file of a sandbox as a file of this host. It appears under its name
//! only when all of it is there.

use std::io;
use std::path::{Path, PathBuf};

use clap::Args;
use nullspace_client::Client;
use nullspace_types::file::FileRawQuery;
use serde::Serialize;

use super::sandbox::Target;
use crate::failure::{Failure, Outcome};
use crate::printer::{self, Progress};
use crate::session;

#[derive(Args)]
pub(crate) struct Download {
    #[command(flatten)]
    target: Target,
    /// The file in the sandbox.
    #[arg(value_name = "PATH")]
    path: String,
    /// Where it shall be, or the directory for it; the current one when not given.
    #[arg(value_name = "DESTINATION")]
    destination: Option<PathBuf>,
    /// Replace what is there.
    #[arg(long)]
    force: bool,
    /// The user on whose behalf.
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// Answer with JSON, and show no progress.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Downloaded<'a> {
    sandbox_id: &'a str,
    sandbox_path: &'a str,
    local_path: &'a Path,
    kind: &'static str,
    bytes_downloaded: u64,
}

impl Download {
    pub(crate) fn run(self) -> Outcome {
        let local = self.local()?;
        session::run_in(&self.target.sandbox, async |client| {
            let bytes = session::quietly(None, self.fetch(&client, &local)).await?;
            if self.json {
                printer::json(&Downloaded {
                    sandbox_id: &self.target.sandbox,
                    sandbox_path: &self.path,
                    local_path: &local,
                    kind: "file",
                    bytes_downloaded: bytes,
                })?;
            } else {
                let local = local.display();
                printer::line(format_args!("downloaded {} to {local} ({bytes} bytes)", self.path))?;
            }
            Ok(0)
        })
    }

    /// Where it will be. That something is there is said before anything is sent.
    fn local(&self) -> Result<PathBuf, Failure> {
        let name = || Path::new(&self.path).file_name().filter(|_| !self.path.ends_with('/'));
        let local = match &self.destination {
            Some(path) if !path.is_dir() => path.clone(),
            directory => {
                let name = name().ok_or_else(|| {
                    Failure::usage(format!("{:?} has no file name to give to the copy here", self.path))
                })?;
                directory.as_deref().unwrap_or(Path::new("")).join(name)
            }
        };
        if self.force || local.symlink_metadata().is_err() {
            return Ok(local);
        }
        Err(exists(&local))
    }

    async fn fetch(&self, client: &Client, local: &Path) -> Result<u64, Failure> {
        let directory = local.parent().filter(|parent| !parent.as_os_str().is_empty());
        let directory = directory.unwrap_or(Path::new("."));
        let writing = || format!("write {}", local.display());
        let mut builder = tempfile::Builder::new();
        // As any new file of this user; the name is known only to this program until the end.
        builder.prefix(".nullspace-").permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let file = builder.tempfile_in(directory).map_err(Failure::io(writing()))?;
        let mut target = tokio::fs::File::from_std(file.reopen().map_err(Failure::io(writing()))?);
        let query = FileRawQuery { path: self.path.clone(), user: self.user.clone() };
        let progress = if self.json { Progress::hidden() } else { Progress::start("downloading") };
        let told = |done, length| progress.bytes(done, length);
        let bytes = client.file_download(&self.target.sandbox, &query, &mut target, told).await?;
        target.sync_all().await.map_err(Failure::io(writing()))?;
        let kept = if self.force { file.persist(local) } else { file.persist_noclobber(local) };
        kept.map_err(|error| match error.error.kind() {
            io::ErrorKind::AlreadyExists => exists(local),
            _ => Failure::io(writing())(error.error),
        })?;
        Ok(bytes)
    }
}

fn exists(local: &Path) -> Failure {
    Failure::Local {
        code: "local_conflict",
        message: format!("{} exists", local.display()),
        hint: Some("choose another destination, or replace it with --force".to_owned()),
        details: None,
    }
}
