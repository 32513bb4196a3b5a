//! The content of files. It is passed on byte for byte; only `--json` and `--encoding base64` make text
//! of it.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::{Bytes, BytesMut};
use clap::{Args, ValueEnum};
use futures::StreamExt;
use nullspace_client::Client;
use nullspace_types::file::{FileBatchResult, FileEncoding, FileInfo, FileRawQuery, FileRead, FileWrite};
use serde::Serialize;
use serde_json::Value;

use super::Path;
use super::list::InfoJson;
use crate::commands::sandbox::Target;
use crate::failure::{Failure, Outcome};
use crate::session::stdin::Stdin;
use crate::{options, printer, session};

/// Up to this size content is sent as one JSON document, above it as a stream.
const INLINE_MAX: usize = 8 << 20;
/// Base64 is decoded as a whole, so it must be small enough to be held.
const BASE64_MAX: usize = 64 << 20;

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
pub(crate) struct WriteFiles {
    #[command(flatten)]
    target: Target,
    /// Paths and their texts, `{"PATH": "TEXT"}` or `[{"path": "PATH", "content": "TEXT"}]`; `@FILE` and `-`
    /// read it from there.
    #[arg(value_name = "JSON")]
    files: String,
    /// The user who shall own the files.
    #[arg(long, value_name = "USER")]
    user: Option<String>,
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

/// What `file read --json` answers.
#[derive(Serialize)]
struct ContentJson<'a> {
    path: &'a str,
    encoding: FileEncoding,
    content: &'a str,
}

impl Read {
    pub(super) fn run(self) -> Outcome {
        let encoding = self.encoding.wire();
        session::run_in(&self.at.target.sandbox, async |client| {
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
        while let Some(chunk) = session::quietly(None, async { Ok(stream.next().await.transpose()?) }).await?
        {
            printer::bytes(&chunk)?;
        }
        Ok(0)
    }
}

impl Write {
    pub(super) fn run(self) -> Outcome {
        session::run_in(&self.at.target.sandbox, async |client| {
            if std::io::IsTerminal::is_terminal(&std::io::stdin()) {
                printer::note("reading standard input; end it with ctrl-d")?;
            }
            let mut stdin = Stdin::open()?;
            let max = if self.encoding == Encoding::Base64 { BASE64_MAX } else { INLINE_MAX };
            let mut content = BytesMut::new();
            let mut ended = false;
            while content.len() <= max && !ended {
                match session::quietly(None, stdin.next()).await? {
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

impl WriteFiles {
    pub(super) fn run(self) -> Outcome {
        let files = batch(&options::text(&self.files)?)?;
        session::run_in(&self.target.sandbox, async |client| {
            let count = files.len();
            let files = files.into_iter().map(|(path, text)| (path, Bytes::from(text))).collect();
            let writing = client.file_write_batch(&self.target.sandbox, files, self.user.as_deref());
            let left = "some of the files may be written";
            let results = session::wait("writing", Some(left), writing).await?;
            let mut written = Vec::new();
            let mut failed = Vec::new();
            for result in &results {
                match result {
                    FileBatchResult::Success { info, .. } => written.push(InfoJson::new(info)),
                    FileBatchResult::Error { path, error } => failed.push(format!("{path}: {error}")),
                }
            }
            if failed.is_empty() {
                printer::json(&written)?;
                return Ok(0);
            }
            Err(Failure::Local {
                code: "file_error",
                message: format!("{} of {count} files are not written\n{}", failed.len(), failed.join("\n")),
                hint: Some(
                    "the others are; see which there are with `nullspace sandbox file list`".to_owned(),
                ),
                details: serde_json::to_value(&results).ok(),
            })
        })
    }
}

/// Either form of a batch.
fn batch(json: &str) -> Result<Vec<(String, String)>, Failure> {
    let form = || Failure::Usage {
        message: "the files are neither an object of paths and texts nor a list of objects with path and \
                  content"
            .to_owned(),
        hint: Some(r#"for example '{"/tmp/a.txt": "hello"}'"#.to_owned()),
    };
    let value: Value = serde_json::from_str(json)
        .map_err(|error| Failure::usage(format!("the files are no JSON: {error}")))?;
    let files: Option<Vec<_>> = match value {
        Value::Object(files) => {
            files.into_iter().map(|(path, text)| Some((path, text.as_str()?.to_owned()))).collect()
        }
        Value::Array(files) => files
            .iter()
            .map(|file| {
                let text = |name: &str| Some(file.get(name)?.as_str()?.to_owned());
                Some((text("path")?, text("content")?))
            })
            .collect(),
        _ => None,
    };
    files.ok_or_else(form)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_has_two_forms() {
        let expected = vec![("/b".to_owned(), "x".to_owned()), ("/a".to_owned(), String::new())];
        let list = r#"[{"path":"/b","content":"x"},{"path":"/a","content":""}]"#;
        assert_eq!(batch(list).unwrap(), expected);
        assert_eq!(batch(r#"{"/a":"x"}"#).unwrap(), [("/a".to_owned(), "x".to_owned())]);
        for wrong in ["", "1", r#"{"/a":1}"#, r#"[{"path":"/a"}]"#, r#"["/a"]"#] {
            assert!(batch(wrong).is_err(), "{wrong}");
        }
    }
}
