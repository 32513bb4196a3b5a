//! Ranges of a file (RFC 9110 §14): one range of bytes, whether it is still of the same file, and the
//! answer.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::header::{
    ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_RANGE, LAST_MODIFIED, RANGE,
};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use jiff::Timestamp;
use nullspace_types::file::FileRange;
use nullspace_types::{Code, Error};

use crate::error::Failure;
use crate::file::FileDownloadReply;

/// Bytes of a page of memory, which is what files of the kernel's say they hold.
const PAGE: u64 = 4096;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// All of it.
    Whole,
    /// From the first byte to the last, or to the end.
    Between(u64, Option<u64>),
    /// The last so many bytes.
    Last(u64),
}

impl Part {
    /// The same for the file API.
    pub fn file_range(self) -> FileRange {
        match self {
            Self::Whole => FileRange::Whole,
            Self::Between(first, last) => FileRange::From {
                offset: first,
                length: last.map(|last| last.saturating_sub(first).saturating_add(1)),
            },
            Self::Last(count) => FileRange::Last(count),
        }
    }

    /// The first byte and the last of a file of this size; none if it has none of them.
    fn within(self, size: u64) -> Option<(u64, u64)> {
        let (first, last) = match self {
            Self::Whole => (0, u64::MAX),
            Self::Between(first, last) => (first, last.unwrap_or(u64::MAX)),
            Self::Last(count) => (size.saturating_sub(count), if count == 0 { 0 } else { u64::MAX }),
        };
        let nothing = first >= size || self == Self::Last(0);
        (!nothing).then(|| (first, last.min(size - 1)))
    }
}

/// The one range that a request asks for. Several, other units, and what cannot be read are answered with
/// the whole, as the RFC allows; so is a `HEAD`, as it demands.
pub(crate) fn wanted(method: &Method, headers: &HeaderMap) -> Part {
    let range = headers.get(RANGE).filter(|_| method == Method::GET);
    range.and_then(|value| parse(value.to_str().ok()?)).unwrap_or(Part::Whole)
}

fn parse(text: &str) -> Option<Part> {
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| text.parse::<u64>().unwrap_or(u64::MAX))
    };
    let (first, last) = text.trim().strip_prefix("bytes=")?.trim().split_once('-')?;
    match (first, last) {
        ("", count) => number(count).map(Part::Last),
        (first, "") => Some(Part::Between(number(first)?, None)),
        (first, last) => {
            let (first, last) = (number(first)?, number(last)?);
            (first <= last).then_some(Part::Between(first, Some(last)))
        }
    }
}

/// Changes with the file's content, as far as its size and time tell. It is a strong one only in form: two
/// changes of the same length within the file system's clock tick look alike.
fn etag(reply: &FileDownloadReply) -> String {
    format!("\"{:x}-{:x}\"", reply.modified.as_nanosecond(), reply.size)
}

fn date(time: Timestamp) -> String {
    time.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
}

/// Whether a range may be answered: there is no `If-Range`, or it names this file as it is.
pub(crate) fn still_valid(headers: &HeaderMap, reply: &FileDownloadReply) -> bool {
    let named = headers.get(IF_RANGE).map(|value| value.to_str().unwrap_or_default());
    named.is_none_or(|named| named == etag(reply) || named == date(reply.modified))
}

/// The answer.
pub(crate) fn respond(reply: FileDownloadReply, part: Part) -> Response {
    let within = part.within(reply.size);
    let (etag, modified) = (etag(&reply), date(reply.modified));
    let mut response = match (part, within) {
        (Part::Whole, _) => Body::from_stream(reply.content).into_response(),
        (_, Some(_)) => (StatusCode::PARTIAL_CONTENT, Body::from_stream(reply.content)).into_response(),
        (_, None) => {
            let message = format!("the file has {} bytes, and the range none of them", reply.size);
            Failure(Error::new(Code::RangeNotSatisfiable, message)).into_response()
        }
    };
    let headers = response.headers_mut();
    let mut set = |name, value: String| {
        headers.insert(name, HeaderValue::from_str(&value).expect("digits and letters"));
    };
    set(ACCEPT_RANGES, "bytes".into());
    set(ETAG, etag);
    set(LAST_MODIFIED, modified);
    match (part, within) {
        // Files of /proc and /sys say 0 or one page, whatever they hold. Real files that small need no
        // length.
        (Part::Whole, _) if reply.size > PAGE => set(CONTENT_LENGTH, reply.size.to_string()),
        (Part::Whole, _) => {}
        (_, Some((first, last))) => {
            set(CONTENT_LENGTH, (last - first + 1).to_string());
            set(CONTENT_RANGE, format!("bytes {first}-{last}/{}", reply.size));
        }
        (_, None) => set(CONTENT_RANGE, format!("bytes */{}", reply.size)),
    }
    if part == Part::Whole || within.is_some() {
        set(CONTENT_TYPE, "application/octet-stream".into());
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_range_is_read_and_everything_else_means_the_whole() {
        for (text, part) in [
            ("bytes=0-0", Some(Part::Between(0, Some(0)))),
            ("bytes=5-", Some(Part::Between(5, None))),
            ("bytes=-7", Some(Part::Last(7))),
            ("bytes=99999999999999999999-", Some(Part::Between(u64::MAX, None))),
            ("bytes=5-4", None),
            ("bytes=0-1,3-4", None),
            ("bytes=a-b", None),
            ("bytes=-", None),
            ("lines=1-2", None),
            ("", None),
        ] {
            assert_eq!(parse(text), part, "{text}");
        }
    }

    #[test]
    fn a_range_is_cut_to_the_file_and_one_outside_is_none() {
        for (part, size, within) in [
            (Part::Between(0, Some(9)), 5, Some((0, 4))),
            (Part::Between(4, None), 5, Some((4, 4))),
            (Part::Between(5, None), 5, None),
            (Part::Last(9), 5, Some((0, 4))),
            (Part::Last(2), 5, Some((3, 4))),
            (Part::Last(0), 5, None),
            (Part::Last(1), 0, None),
        ] {
            assert_eq!(part.within(size), within, "{part:?} of {size}");
        }
    }
}
