//! Bodies of `multipart/form-data` (RFC 7578) that are passed on while they come.
//!
//! The parser keeps whatever its source has ready until it can make something of it, without a bound: the
//! source here is [`Sips`], which has one.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt, stream};
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use multer::{Field, Multipart};
use nullspace_types::file::{BatchPart, FileBatch, FileBatchEntry};
use nullspace_types::{Error, Result};

use crate::ByteStream;
use crate::file::BatchParts;
use crate::request::{JSON_LIMIT, parse};

/// Files of one batch.
const FILES: usize = 10_000;

/// The name of a batch's first part, and of a form's only one.
const MANIFEST: &str = "manifest";
const FILE: &str = "file";

/// Bytes that may come before a part's content does: what stands before the first part, and a part's head.
const HEAD: usize = 64 << 10;

/// The parts of a body, one after the other.
pub(crate) struct Form {
    parts: Multipart<'static>,
    idle: Arc<AtomicUsize>,
}

/// A body in single pieces, and an error once more than [`HEAD`] bytes came of it in vain.
struct Sips {
    body: ByteStream,
    /// Bytes that came since the parser last made something of them.
    idle: Arc<AtomicUsize>,
    /// Whether the parser is to look at what it has before there is more.
    given: bool,
}

impl Stream for Sips {
    type Item = Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Bytes>>> {
        if std::mem::take(&mut self.given) {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        if self.idle.load(Ordering::Relaxed) > HEAD {
            let message = format!("a part's head may have at most {} KiB", HEAD >> 10);
            return Poll::Ready(Some(Err(Error::invalid(message))));
        }
        let piece = std::task::ready!(self.body.poll_next_unpin(context));
        if let Some(Ok(piece)) = &piece {
            self.idle.fetch_add(piece.len(), Ordering::Relaxed);
            self.given = true;
        }
        Poll::Ready(piece)
    }
}

/// A body's parts.
pub(crate) fn open(headers: &HeaderMap, body: ByteStream) -> Result<Form> {
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let boundary = multer::parse_boundary(kind).map_err(|error| {
        Error::invalid(format!(
            "the header Content-Type must be multipart/form-data with a boundary: {error}"
        ))
    })?;
    let idle = Arc::new(AtomicUsize::new(0));
    let sips = Sips { body, idle: idle.clone(), given: false };
    Ok(Form { parts: Multipart::new(sips, boundary), idle })
}

impl Form {
    /// The next part. The one before it must have been read to its end.
    async fn next(&mut self) -> Result<Option<Field<'static>>> {
        let field = self.parts.next_field().await.map_err(broken)?;
        self.idle.store(0, Ordering::Relaxed);
        Ok(field)
    }

    /// The content of a manifest.
    async fn whole(&self, mut field: Field<'static>) -> Result<BytesMut> {
        let mut whole = BytesMut::new();
        while let Some(data) = self.chunk(&mut field).await? {
            if whole.len() + data.len() > JSON_LIMIT {
                return Err(Error::invalid(format!("{MANIFEST} is larger than {} MiB", JSON_LIMIT >> 20)));
            }
            whole.extend_from_slice(&data);
        }
        Ok(whole)
    }

    /// More of a part's content.
    async fn chunk(&self, field: &mut Field<'static>) -> Result<Option<Bytes>> {
        let data = field.chunk().await.map_err(broken)?;
        self.idle.store(0, Ordering::Relaxed);
        Ok(data)
    }
}

/// What is wrong with a body. An error of the connection's own comes back as it was.
fn broken(error: multer::Error) -> Error {
    match error {
        multer::Error::StreamReadFailed(source) => match source.downcast::<Error>() {
            Ok(error) => *error,
            Err(source) => Error::invalid("the body broke off before its end").context(source),
        },
        error => Error::invalid(format!("the body is no valid multipart/form-data: {error}")),
    }
}

/// The content of a form's `file`.
pub(crate) async fn file(mut form: Form) -> Result<ByteStream> {
    match form.next().await? {
        Some(field) if field.name() == Some(FILE) => Ok(content(form, field)),
        Some(field) => Err(unexpected(&field, FILE)),
        None => Err(Error::invalid(format!("the form has no field {FILE}"))),
    }
}

/// A form's one field, and then its end.
fn content(form: Form, field: Field<'static>) -> ByteStream {
    stream::try_unfold(Some((form, field)), |state| async move {
        let Some((mut form, mut field)) = state else { return Ok(None) };
        match form.chunk(&mut field).await? {
            Some(data) => Ok(Some((data, Some((form, field))))),
            None => {
                drop(field);
                match form.next().await? {
                    None => Ok(None),
                    Some(field) => Err(Error::invalid(format!(
                        "the form has another field behind {FILE}: {}",
                        field.name().unwrap_or("without a name")
                    ))),
                }
            }
        }
    })
    .boxed()
}

/// A batch's manifest, and its files as they come: in the manifest's order.
pub(crate) async fn batch(mut form: Form) -> Result<(FileBatch, BatchParts)> {
    let manifest: FileBatch = match form.next().await? {
        Some(field) if field.name() == Some(MANIFEST) => {
            parse(&form.whole(field).await?).map_err(|error| {
                Error::invalid(format!("{MANIFEST}: {}", error.message.replace("the body", "it")))
            })?
        }
        Some(field) => return Err(unexpected(&field, MANIFEST)),
        None => return Err(Error::invalid(format!("the body has no part {MANIFEST}"))),
    };
    if manifest.files.len() > FILES {
        let count = manifest.files.len();
        return Err(Error::invalid(format!("files must have at most {FILES} entries, got {count}")));
    }
    let state = Files { form, entries: manifest.files.clone().into_iter(), open: None };
    let files =
        stream::try_unfold(
            state,
            |mut files| async move { Ok(files.part().await?.map(|part| (part, files))) },
        );
    Ok((manifest, files.boxed()))
}

struct Files {
    form: Form,
    entries: std::vec::IntoIter<FileBatchEntry>,
    open: Option<Field<'static>>,
}

impl Files {
    async fn part(&mut self) -> Result<Option<BatchPart>> {
        if let Some(field) = &mut self.open
            && let Some(data) = self.form.chunk(field).await?
        {
            return Ok(Some(BatchPart::Data(data)));
        }
        self.open = None;
        match (self.entries.next(), self.form.next().await?) {
            (Some(entry), Some(field)) if field.name() == Some(&entry.field) => {
                self.open = Some(field);
                Ok(Some(BatchPart::Start { path: entry.path }))
            }
            (Some(entry), Some(field)) => Err(unexpected(&field, &entry.field)),
            (Some(entry), None) => Err(Error::invalid(format!("the body has no part {}", entry.field))),
            (None, Some(field)) => Err(Error::invalid(format!(
                "the body has a part that {MANIFEST} does not name: {}",
                field.name().unwrap_or("without a name")
            ))),
            (None, None) => Ok(None),
        }
    }
}

fn unexpected(field: &Field<'_>, wanted: &str) -> Error {
    let name = field.name().unwrap_or("without a name");
    Error::invalid(format!("the part {wanted} was expected here, and there is {name}"))
}
