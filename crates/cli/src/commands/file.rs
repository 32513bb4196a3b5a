//! `nullspace sandbox file`. Content is passed on byte for byte; only `--json` and `--encoding
//! base64` make text of it.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::{Bytes, BytesMut};
use clap::{Args, Subcommand, ValueEnum};
use futures::StreamExt;
use jiff::Timestamp;
use nullspace_client::Client;
use nullspace_types::file::{
    FileEncoding, FileInfo, FileListQuery, FilePath, FileRawQuery, FileRead, FileType, FileWrite,
};
use serde::Serialize;

use super::sandbox::Target;
use crate::failure::{Failure, Outcome};
use crate::printer::{self, Cell, Mood};
use crate::session::{self, stdin::Stdin};

/// Up to this size content is sent as one JSON document, above it as a stream.
const INLINE_MAX: usize = 8 << 20;
/// Base64 is decoded as a whole, so it must be small enough to be held.
const BASE64_MAX: usize = 64 << 20;

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Print the content of a file.
    Read(Read),
    /// Replace the content of a file by standard input, or make it.
    Write(Write),
    /// List a directory.
    List(List),
    /// Print what a path is, as JSON.
    Info(Path),
    /// Print whether there is anything at a path, as JSON; exits with 1 if not.
    Exists(Path),
    /// Remove a file, or a directory with all that is in it.
    Rm(Path),
    /// Make a directory, and those above it.
    Mkdir(Path),
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
pub(crate) struct Read {
    #[command(flatten)]
    at: Path,
    /// How the content is printed: as it is, or as base64.
    #[arg(long, value_enum, ignore_case = true, default_value = "utf8")]
    encoding: Encoding,
    /// Answer with JSON; what is not UTF-8 is replaced unless the encoding is base64.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub(crate) struct Write {
    #[command(flatten)]
    at: Path,
    /// How standard input is to be taken: as it is, or as base64.
    #[arg(long, value_enum, ignore_case = true, default_value = "utf8")]
    encoding: Encoding,
    /// Answer with JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub(crate) struct List {
    #[command(flatten)]
    target: Target,
    /// The directory.
    #[arg(value_name = "PATH", default_value = "/")]
    path: String,
    /// How many levels; 1 is the direct children.
    #[arg(long, value_name = "LEVELS")]
    depth: Option<u32>,
    /// The user on whose behalf.
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// Answer with JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Encoding {
    Utf8,
    Base64,
}

impl Encoding {
    fn wire(self) -> FileEncoding {
        match self {
            Self::Utf8 => FileEncoding::Utf8,
            Self::Base64 => FileEncoding::Base64,
        }
    }
}

impl Command {
    pub(crate) fn run(self) -> Outcome {
        match self {
            Self::Read(read) => read.run(),
            Self::Write(write) => write.run(),
            Self::List(list) => list.run(),
            Self::Info(path) => path.info(),
            Self::Exists(path) => path.exists(),
            Self::Rm(path) => path.remove(),
            Self::Mkdir(path) => path.mkdir(),
        }
    }
}

/// What `file read --json` answers.
#[derive(Serialize)]
struct ContentJson<'a> {
    path: &'a str,
    encoding: FileEncoding,
    content: &'a str,
}

impl Read {
    fn run(self) -> Outcome {
        let encoding = self.encoding.wire();
        session::run(async |client| {
            if self.encoding == Encoding::Utf8 && !self.json {
                return self.at.stream(&client).await;
            }
            let content = self.at.content(&client, encoding).await?;
            if self.json {
                printer::json(&ContentJson { path: &self.at.path, encoding, content: &content })?;
            } else {
                printer::bytes(content.as_bytes())?;
            }
            Ok(0)
        })
    }
}

impl Path {
    async fn content(&self, client: &Client, encoding: FileEncoding) -> Result<String, Failure> {
        let request = FileRead { path: self.path.clone(), encoding: Some(encoding), user: self.user.clone() };
        let reading = client.file_read(&self.target.sandbox, &request);
        Ok(session::wait("reading", None, reading).await?.content)
    }

    /// Byte for byte, whatever the size.
    async fn stream(&self, client: &Client) -> Outcome {
        let query = FileRawQuery { path: self.path.clone(), user: self.user.clone() };
        let opening = client.file_read_raw(&self.target.sandbox, &query);
        let mut stream = match session::wait("reading", None, opening).await {
            // A server without raw files has the same content as base64.
            Err(Failure::Api(error)) if error.code() == "not_implemented" => {
                let text = self.content(client, FileEncoding::Base64).await?;
                printer::bytes(&decode(text.as_bytes(), "the server's answer")?)?;
                return Ok(0);
            }
            opened => opened?,
        };
        while let Some(chunk) = session::quietly(async { Ok(stream.next().await.transpose()?) }).await? {
            printer::bytes(&chunk)?;
        }
        Ok(0)
    }

    fn request(&self) -> FilePath {
        FilePath { path: self.path.clone(), user: self.user.clone() }
    }

    fn info(self) -> Outcome {
        session::run(async |client| {
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
        session::run(async |client| {
            let request = self.request();
            let looking = client.file_exists(&self.target.sandbox, &request);
            let exists = session::wait("looking", None, looking).await?;
            printer::json(&Exists { path: &self.path, exists })?;
            Ok(u8::from(!exists))
        })
    }

    fn remove(self) -> Outcome {
        session::run(async |client| {
            let request = self.request();
            session::wait("removing", None, client.file_remove(&self.target.sandbox, &request)).await?;
            printer::line(format_args!("removed {}", self.path))?;
            Ok(0)
        })
    }

    fn mkdir(self) -> Outcome {
        session::run(async |client| {
            let request = self.request();
            session::wait("making", None, client.file_mkdir(&self.target.sandbox, &request)).await?;
            printer::line(format_args!("made {}", self.path))?;
            Ok(0)
        })
    }
}

impl Write {
    fn run(self) -> Outcome {
        session::run(async |client| {
            if std::io::IsTerminal::is_terminal(&std::io::stdin()) {
                printer::note("reading standard input; end it with ctrl-d")?;
            }
            let mut stdin = Stdin::open()?;
            let max = if self.encoding == Encoding::Base64 { BASE64_MAX } else { INLINE_MAX };
            let mut content = BytesMut::new();
            let mut ended = false;
            while content.len() <= max && !ended {
                match session::quietly(stdin.next()).await? {
                    Some(piece) => content.extend_from_slice(&piece),
                    None => ended = true,
                }
            }
            let left = format!("{} may be written in part", self.at.path);
            let info = match (self.encoding, ended) {
                (Encoding::Utf8, true) => {
                    let writing = self.at.write(&client, content.freeze());
                    session::wait("writing", Some(&left), writing).await?
                }
                (Encoding::Base64, true) => {
                    let decoded = decode(&content, "standard input")?;
                    session::wait("writing", Some(&left), self.at.write(&client, decoded.into())).await?
                }
                (Encoding::Utf8, false) => {
                    let writing = self.at.upload(&client, stdin, content.freeze());
                    session::wait("writing", Some(&left), writing).await?
                }
                (Encoding::Base64, false) => {
                    return Err(Failure::Usage {
                        message: format!("standard input has more than {BASE64_MAX} bytes of base64"),
                        hint: Some("pipe the bytes themselves, without --encoding base64".to_owned()),
                    });
                }
            };
            if self.json {
                printer::json(&InfoJson::new(&info))?;
            } else {
                printer::line(format_args!("wrote {} ({} bytes)", info.path, info.size))?;
            }
            Ok(0)
        })
    }
}

impl Path {
    async fn write(&self, client: &Client, content: Bytes) -> Result<FileInfo, Failure> {
        let (content, encoding) = match String::from_utf8(content.into()) {
            Ok(text) => (text, FileEncoding::Utf8),
            Err(error) => (BASE64_STANDARD.encode(error.as_bytes()), FileEncoding::Base64),
        };
        let request =
            FileWrite { path: self.path.clone(), content, encoding: Some(encoding), user: self.user.clone() };
        Ok(client.file_write(&self.target.sandbox, &request).await?)
    }

    /// For content of any size. A raw write answers nothing, so what it made is asked for.
    async fn upload(&self, client: &Client, stdin: Stdin, first: Bytes) -> Result<FileInfo, Failure> {
        let query = FileRawQuery { path: self.path.clone(), user: self.user.clone() };
        client.file_write_raw(&self.target.sandbox, &query, stdin.into_stream(first)).await?;
        Ok(client.file_info(&self.target.sandbox, &self.request()).await?)
    }
}

/// Line ends and spaces are allowed: programs that make base64 put them in.
fn decode(text: &[u8], what: &str) -> Result<Vec<u8>, Failure> {
    let packed: Vec<u8> = text.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
    BASE64_STANDARD.decode(packed).map_err(|error| Failure::usage(format!("{what} is not base64: {error}")))
}

impl List {
    fn run(self) -> Outcome {
        let query = FileListQuery {
            path: Some(self.path),
            depth: self.depth.map(|depth| depth.to_string()),
            user: self.user,
        };
        session::run(async |client| {
            let listing = client.file_list(&self.target.sandbox, &query);
            let entries = session::wait("listing files", None, listing).await?;
            if self.json {
                printer::json(&entries.iter().map(InfoJson::new).collect::<Vec<_>>())?;
            } else if entries.is_empty() {
                printer::note("no files")?;
            } else {
                let rows: Vec<_> = entries.iter().map(list_row).collect();
                printer::table(&["MODE", "OWNER", "SIZE", "MODIFIED", "TYPE", "PATH"], &rows)?;
            }
            Ok(0)
        })
    }
}

fn list_row(info: &FileInfo) -> Vec<Cell> {
    let kind = match info.kind {
        FileType::File => "file",
        FileType::Dir => "dir",
        FileType::Symlink => "symlink",
        FileType::Other => "other",
    };
    let path = match &info.symlink_target {
        Some(target) => format!("{} -> {target}", info.path),
        None => info.path.clone(),
    };
    vec![
        Cell::new(&info.mode),
        Cell::new(format!("{}:{}", info.owner, info.group)),
        Cell::new(info.size),
        Cell::new(format_args!("{:.0}", info.modified_time)),
        Cell::new(kind),
        Cell::with(path, if info.is_dir { Mood::Good } else { Mood::Plain }),
    ]
}

/// A file as the command line prints it: all fields, those without a value as null.
#[derive(Serialize)]
struct InfoJson<'a> {
    name: &'a str,
    path: &'a str,
    is_dir: bool,
    size: u64,
    #[serde(rename = "type")]
    kind: FileType,
    mode: &'a str,
    permissions: &'a str,
    owner: &'a str,
    group: &'a str,
    modified_time: Timestamp,
    symlink_target: Option<&'a str>,
}

impl<'a> InfoJson<'a> {
    fn new(info: &'a FileInfo) -> Self {
        Self {
            name: &info.name,
            path: &info.path,
            is_dir: info.is_dir,
            size: info.size,
            kind: info.kind,
            mode: &info.mode,
            permissions: &info.permissions,
            owner: &info.owner,
            group: &info.group,
            modified_time: info.modified_time,
            symlink_target: info.symlink_target.as_deref(),
        }
    }
}
