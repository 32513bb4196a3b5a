//! JSON answers that are written while their contents come: any amount of bytes becomes a JSON string
//! in bounded memory.
//!
//! An error before the first part is an ordinary error answer. One after it aborts the connection: the
//! caller never sees JSON that is well-formed but not whole.

use std::collections::VecDeque;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use futures::{StreamExt, stream};
use http::HeaderValue;
use http::header::CONTENT_TYPE;
use nullspace_types::Result;

use crate::ByteStream;
use crate::text::TextWriter;

/// A part of the answer goes out when it has grown to this.
const PART: usize = 64 * 1024;
/// So much is taken from the source at once; escaping makes at most six times of it.
const SLICE: usize = 16 * 1024;

enum Piece {
    Literal(Bytes),
    Text { source: ByteStream, rest: Bytes, writer: TextWriter },
    Base64 { source: ByteStream, rest: Bytes, carry: Vec<u8> },
    Counted,
}

/// A JSON text in pieces.
#[derive(Default)]
pub(crate) struct JsonStream {
    pieces: VecDeque<Piece>,
    out: Vec<u8>,
    taken: u64,
}

impl JsonStream {
    /// JSON as it stands here.
    pub fn literal(mut self, text: impl Into<Bytes>) -> Self {
        self.pieces.push_back(Piece::Literal(text.into()));
        self
    }

    /// A JSON string of bytes; what is not UTF-8 is replaced, as [`String::from_utf8_lossy`] does.
    pub fn text(mut self, source: ByteStream) -> Self {
        self.pieces.push_back(Piece::Text { source, rest: Bytes::new(), writer: TextWriter::default() });
        self.quoted()
    }

    /// A JSON string of bytes in standard base64.
    pub fn base64(mut self, source: ByteStream) -> Self {
        self.pieces.push_back(Piece::Base64 { source, rest: Bytes::new(), carry: Vec::new() });
        self.quoted()
    }

    /// How many bytes the strings before this were made from.
    pub fn counted(mut self) -> Self {
        self.pieces.push_back(Piece::Counted);
        self
    }

    /// Puts quotation marks around the piece added last.
    fn quoted(mut self) -> Self {
        let quote = || Piece::Literal(Bytes::from_static(b"\""));
        self.pieces.insert(self.pieces.len() - 1, quote());
        self.pieces.push_back(quote());
        self
    }

    /// The answer. Small ones are sent whole, so that their errors are still ordinary ones.
    pub async fn respond(mut self) -> Result<Response> {
        let first = self.part().await?.unwrap_or_default();
        let body = if self.pieces.is_empty() && self.out.is_empty() {
            Body::from(first)
        } else {
            let rest = stream::try_unfold(self, |mut json| async move {
                Ok::<_, nullspace_types::Error>(json.part().await?.map(|part| (part, json)))
            });
            Body::from_stream(stream::once(std::future::ready(Ok(first))).chain(rest))
        };
        Ok(([(CONTENT_TYPE, HeaderValue::from_static("application/json"))], body).into_response())
    }

    /// The next part; none at the end.
    async fn part(&mut self) -> Result<Option<Bytes>> {
        while self.out.len() < PART {
            let Some(piece) = self.pieces.front_mut() else { break };
            if piece.advance(&mut self.out, &mut self.taken).await? {
                self.pieces.pop_front();
            }
        }
        Ok(if self.out.is_empty() { None } else { Some(Bytes::from(std::mem::take(&mut self.out))) })
    }
}

impl Piece {
    /// Writes some more of the piece; true when it is all written.
    async fn advance(&mut self, out: &mut Vec<u8>, taken: &mut u64) -> Result<bool> {
        match self {
            Self::Literal(text) => out.extend_from_slice(text),
            Self::Counted => out.extend_from_slice(taken.to_string().as_bytes()),
            Self::Text { source, rest, writer } => match slice(source, rest, taken).await? {
                Some(bytes) => {
                    writer.write(&bytes, out);
                    return Ok(false);
                }
                None => writer.finish(out),
            },
            Self::Base64 { source, rest, carry } => match slice(source, rest, taken).await? {
                Some(bytes) => {
                    carry.extend_from_slice(&bytes);
                    // Whole groups of three only: padding belongs at the very end.
                    let whole = carry.len() - carry.len() % 3;
                    out.extend_from_slice(BASE64.encode(&carry[..whole]).as_bytes());
                    carry.drain(..whole);
                    return Ok(false);
                }
                None => out.extend_from_slice(BASE64.encode(&carry).as_bytes()),
            },
        }
        Ok(true)
    }
}

/// The next bytes of the source, never too many at once; none at its end.
async fn slice(source: &mut ByteStream, rest: &mut Bytes, taken: &mut u64) -> Result<Option<Bytes>> {
    while rest.is_empty() {
        match source.next().await {
            Some(bytes) => *rest = bytes?,
            None => return Ok(None),
        }
    }
    let bytes = rest.split_to(rest.len().min(SLICE));
    *taken += bytes.len() as u64;
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use http_body_util::BodyExt;
    use nullspace_types::Error;
    use proptest::prelude::*;

    use super::*;

    fn cut(bytes: &[u8], lengths: &[usize]) -> ByteStream {
        let mut bytes = Bytes::copy_from_slice(bytes);
        let mut parts = Vec::new();
        for &length in lengths {
            parts.push(Ok(bytes.split_to(length.min(bytes.len()))));
        }
        parts.push(Ok(bytes));
        stream::iter(parts).boxed()
    }

    fn written(json: JsonStream) -> Vec<u8> {
        async {
            let response = json.respond().await.expect("an answer");
            response.into_body().collect().await.expect("a whole body").to_bytes().to_vec()
        }
        .now_or_never()
        .expect("nothing to wait for")
    }

    /// Bytes in which characters, halves of characters and things to escape are all frequent.
    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            any::<u8>().prop_map(|byte| vec![byte]),
            (0x80_u8..=0xff).prop_map(|byte| vec![byte]),
            any::<char>().prop_map(|c| c.to_string().into_bytes()),
            prop::sample::select(vec!["\"", "\\", "\n", "\u{0}", "\u{7f}", "\u{1f}", "ä", "€", "🦀"])
                .prop_map(|text| text.as_bytes().to_vec()),
            Just(vec![0xf0, 0x9f]),
            Just(vec![0xed, 0xa0, 0x80]),
            Just(vec![0xe0]),
        ];
        prop::collection::vec(piece, 0..64).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn text_in_any_pieces_is_written_as_the_whole_would_be(
            bytes in bytes(),
            lengths in prop::collection::vec(0_usize..9, 0..64),
        ) {
            let whole = serde_json::to_vec(&String::from_utf8_lossy(&bytes)).expect("JSON");
            let json = JsonStream::default().text(cut(&bytes, &lengths));
            prop_assert_eq!(String::from_utf8(written(json)), String::from_utf8(whole));
        }

        #[test]
        fn base64_in_any_pieces_is_written_as_the_whole_would_be(
            bytes in bytes(),
            lengths in prop::collection::vec(0_usize..9, 0..64),
        ) {
            let json = JsonStream::default().base64(cut(&bytes, &lengths)).literal(",").counted();
            let whole = format!("\"{}\",{}", BASE64.encode(&bytes), bytes.len());
            prop_assert_eq!(String::from_utf8(written(json)), Ok(whole));
        }
    }

    #[test]
    fn a_large_answer_goes_out_in_parts_of_bounded_size() {
        let source = vec![0_u8; 3 << 20];
        let mut json = JsonStream::default().text(cut(&source, &[1 << 20, 1 << 20]));
        let mut length = 0;
        while let Some(part) = json.part().now_or_never().expect("nothing to wait for").expect("a part") {
            assert!(part.len() <= PART + 6 * SLICE, "{}", part.len());
            length += part.len();
        }
        assert_eq!(length, 6 * source.len() + 2);
    }

    #[test]
    fn an_error_before_the_first_part_is_an_answer_and_a_later_one_breaks_the_body() {
        let failing = |before: usize| {
            let parts = vec![Ok(Bytes::from(vec![b'x'; before])), Err(Error::internal("lost"))];
            JsonStream::default().text(stream::iter(parts).boxed())
        };
        assert!(failing(10).respond().now_or_never().expect("no waiting").is_err());
        let response = failing(PART).respond().now_or_never().expect("no waiting").expect("an answer");
        assert!(response.into_body().collect().now_or_never().expect("no waiting").is_err());
    }
}
