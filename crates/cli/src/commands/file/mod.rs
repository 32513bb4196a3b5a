//! `nullspace sandbox file`: what is done to files by one request each. Their content, lists, searches
//! and watches are in their own files.

mod content;
mod list;
mod search;
mod watch;

use clap::{Args, Subcommand};
use nullspace_types::file::{FilePath, FilePermissions, FileRename, FileSign};
use serde::Serialize;

use self::list::InfoJson;
use super::sandbox::Target;
use crate::failure::Outcome;
use crate::{printer, session};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Print the content of a file.
    Read(content::Read),
    /// Replace the content of a file by standard input, or make it.
    Write(content::Write),
    /// Write several files at once. Prints them as JSON.
    ///
    /// Each file is written for itself: one that fails does not affect the others.
    WriteFiles(content::WriteFiles),
    /// List a directory.
    List(list::List),
    /// Print what a path is, as JSON.
    Info(Path),
    /// Print whether there is anything at a path, as JSON; exits with 1 if not.
    Exists(Path),
    /// Print the lines of files that match a pattern, as JSON.
    Find(search::Find),
    /// Print the paths whose last part matches a glob, as JSON.
    Search(search::Search),
    /// Replace a text in files. Prints how many times it was there, as JSON.
    Replace(search::Replace),
    /// Move a file or directory. Prints what it is now as JSON.
    Mv(Move),
    /// Remove a file, or a directory with all that is in it.
    Rm(Path),
    /// Make a directory, and those above it.
    Mkdir(Path),
    /// Set the permission bits of a file or directory.
    Chmod(Chmod),
    /// Print a URL from which a file can be read without a key, for a quarter of an hour.
    DownloadUrl(DownloadUrl),
    /// Print a URL to which a file can be written without a key, for a quarter of an hour, as JSON.
    UploadUrl(Path),
    /// Print changes of files as they happen, one JSON object a line.
    Watch(watch::Watch),
}

#[derive(Args)]
pub(crate) struct Path {
    #[command(flatten)]
    target: Target,
    /// The path; relative ones start at the sandbox's working directory.
    #[arg(value_name = "PATH")]
    path: String,
    /// The user on whose behalf.
    #[arg(long, value_name = "USER")]
    user: Option<String>,
}

#[derive(Args)]
pub(crate) struct Move {
    #[command(flatten)]
    target: Target,
    /// What it is called now.
    #[arg(value_name = "OLD")]
    old: String,
    /// What it shall be called.
    #[arg(value_name = "NEW")]
    new: String,
    /// The user on whose behalf.
    #[arg(long, value_name = "USER")]
    user: Option<String>,
}

#[derive(Args)]
pub(crate) struct Chmod {
    #[command(flatten)]
    at: Path,
    /// In octal, such as 644 or 0755.
    #[arg(value_name = "MODE")]
    mode: String,
}

#[derive(Args)]
pub(crate) struct DownloadUrl {
    #[command(flatten)]
    at: Path,
    /// Answer with JSON.
    #[arg(long)]
    json: bool,
}

impl Command {
    pub(crate) fn run(self) -> Outcome {
        match self {
            Self::Read(read) => read.run(),
            Self::Write(write) => write.run(),
            Self::WriteFiles(write) => write.run(),
            Self::List(list) => list.run(),
            Self::Info(path) => path.info(),
            Self::Exists(path) => path.exists(),
            Self::Find(find) => find.run(),
            Self::Search(search) => search.run(),
            Self::Replace(replace) => replace.run(),
            Self::Mv(mv) => mv.run(),
            Self::Rm(path) => path.remove(),
            Self::Mkdir(path) => path.mkdir(),
            Self::Chmod(chmod) => chmod.run(),
            Self::DownloadUrl(url) => url.run(),
            Self::UploadUrl(path) => path.upload_url(),
            Self::Watch(watch) => watch.run(),
        }
    }
}

impl Path {
    fn request(&self) -> FilePath {
        FilePath { path: self.path.clone(), user: self.user.clone() }
    }

    fn info(self) -> Outcome {
        session::run_in(&self.target.sandbox, async |client| {
            let request = self.request();
            let info =
                session::wait("looking", None, client.file_info(&self.target.sandbox, &request)).await?;
            printer::json(&InfoJson::new(&info))?;
            Ok(0)
        })
    }

    fn exists(self) -> Outcome {
        #[derive(Serialize)]
        struct Exists<'a> {
            path: &'a str,
            exists: bool,
        }
        session::run_in(&self.target.sandbox, async |client| {
            let request = self.request();
            let looking = client.file_exists(&self.target.sandbox, &request);
            let exists = session::wait("looking", None, looking).await?;
            printer::json(&Exists { path: &self.path, exists })?;
            Ok(u8::from(!exists))
        })
    }

    fn remove(self) -> Outcome {
        session::run_in(&self.target.sandbox, async |client| {
            let request = self.request();
            session::wait("removing", None, client.file_remove(&self.target.sandbox, &request)).await?;
            printer::line(format_args!("removed {}", self.path))?;
            Ok(0)
        })
    }

    fn mkdir(self) -> Outcome {
        session::run_in(&self.target.sandbox, async |client| {
            let request = self.request();
            session::wait("making", None, client.file_mkdir(&self.target.sandbox, &request)).await?;
            printer::line(format_args!("made {}", self.path))?;
            Ok(0)
        })
    }

    fn sign(&self) -> FileSign {
        FileSign { path: self.path.clone(), user: self.user.clone(), expires_in_secs: None }
    }

    fn upload_url(self) -> Outcome {
        session::run_in(&self.target.sandbox, async |client| {
            let request = self.sign();
            let signing = client.file_upload_url(&self.target.sandbox, &request);
            printer::json(&session::wait("signing", None, signing).await?)?;
            Ok(0)
        })
    }
}

impl DownloadUrl {
    fn run(self) -> Outcome {
        session::run_in(&self.at.target.sandbox, async |client| {
            let request = self.at.sign();
            let signing = client.file_download_url(&self.at.target.sandbox, &request);
            let signed = session::wait("signing", None, signing).await?;
            if self.json {
                printer::json(&signed)?;
            } else {
                printer::line(&signed.url)?;
            }
            Ok(0)
        })
    }
}

impl Move {
    fn run(self) -> Outcome {
        let request = FileRename { old_path: self.old, new_path: self.new, user: self.user };
        session::run_in(&self.target.sandbox, async |client| {
            let moving = client.file_rename(&self.target.sandbox, &request);
            let info = session::wait("moving", None, moving).await?;
            printer::json(&InfoJson::new(&info))?;
            Ok(0)
        })
    }
}

impl Chmod {
    fn run(self) -> Outcome {
        let Self { at: Path { target, path, user }, mode } = self;
        session::run_in(&target.sandbox, async |client| {
            let request = FilePermissions { path: path.clone(), permissions: mode.clone(), user };
            let setting = client.file_permissions(&target.sandbox, &request);
            session::wait("setting the permissions", None, setting).await?;
            printer::line(format_args!("set {path} to {mode}"))?;
            Ok(0)
        })
    }
}
