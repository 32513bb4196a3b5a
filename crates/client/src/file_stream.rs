//! The content of a file as it arrives. A connection that breaks is made again and goes on where it
//! broke, as long as the file is still the same: the server names its version by an entity tag, and a
//! range is asked for on the condition that it holds (RFC 9110, sections 13.1.5 and 14.2).

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use reqwest::header::{CONTENT_RANGE, ETAG, HeaderMap, HeaderValue, IF_RANGE, RANGE};
use reqwest::{Response, StatusCode};

use crate::error::{Error, Result};
use crate::transport::{Call, Client, transport};

/// The content of a file as it arrives.
pub struct FileStream {
    chunks: BoxStream<'static, Result<Bytes>>,
    length: Option<u64>,
}

impl Stream for FileStream {
    type Item = Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.chunks.poll_next_unpin(cx)
    }
}

impl FileStream {
    pub(crate) async fn open(client: &Client, call: Call) -> Result<Self> {
        let (response, url, limit) = client.open(&call).await?;
        let length = response.content_length();
        let tag = strong_tag(response.headers());
        let transfer = Transfer {
            client: client.clone(),
            call,
            url,
            limit,
            tag,
            length,
            given: 0,
            failures: 0,
            chunks: Some(response.bytes_stream().boxed()),
        };
        let chunks = futures::stream::try_unfold(transfer, |mut transfer| async move {
            Ok(transfer.next().await?.map(|chunk| (chunk, transfer)))
        });
        Ok(Self { chunks: chunks.boxed(), length })
    }

    /// Bytes of the file, if the server said.
    pub fn length(&self) -> Option<u64> {
        self.length
    }
}

/// A tag that stands for exactly these bytes, without which nothing can be resumed.
fn strong_tag(headers: &HeaderMap) -> Option<HeaderValue> {
    headers.get(ETAG).filter(|tag| !tag.as_bytes().starts_with(b"W/")).cloned()
}

struct Transfer {
    client: Client,
    call: Call,
    url: String,
    limit: Duration,
    tag: Option<HeaderValue>,
    length: Option<u64>,
    given: u64,
    /// In a row, without a byte between them.
    failures: u32,
    chunks: Option<BoxStream<'static, reqwest::Result<Bytes>>>,
}

impl Transfer {
    async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            let Some(chunks) = &mut self.chunks else {
                self.resume().await?;
                continue;
            };
            let error = match tokio::time::timeout(self.limit, chunks.next()).await {
                Ok(Some(Ok(chunk))) => {
                    self.given += chunk.len() as u64;
                    self.failures = 0;
                    return Ok(Some(chunk));
                }
                Ok(None) if self.length.is_none_or(|length| length == self.given) => return Ok(None),
                Ok(None) => Error::cut(&self.url, "it ended before the file"),
                Ok(Some(Err(error))) => transport(&self.url, &error),
                Err(_) => Error::timed_out(&self.url, self.limit),
            };
            self.chunks = None;
            self.give_up_or_wait(error).await?;
        }
    }

    async fn give_up_or_wait(&mut self, error: Error) -> Result<()> {
        let policy = self.client.retry_policy();
        if self.tag.is_none() || !error.is_passing() || self.failures == policy.resume_retries {
            return Err(error);
        }
        tokio::time::sleep(policy.resume_delay(self.failures)).await;
        self.failures += 1;
        Ok(())
    }

    async fn resume(&mut self) -> Result<()> {
        let mut call = self.call.clone();
        if let Some(tag) = &self.tag {
            let range = HeaderValue::try_from(format!("bytes={}-", self.given));
            let range = range.map_err(|error| Error::invalid_request(error.to_string()))?;
            call = call.header(RANGE, range).header(IF_RANGE, tag.clone());
        }
        let response = match self.client.open(&call).await {
            Ok((response, ..)) => response,
            Err(error) => return self.give_up_or_wait(error).await,
        };
        self.check(&response)?;
        self.chunks = Some(response.bytes_stream().boxed());
        Ok(())
    }

    /// That what comes now is the continuation of what has come.
    fn check(&self, response: &Response) -> Result<()> {
        let same = strong_tag(response.headers()) == self.tag;
        match response.status() {
            StatusCode::PARTIAL_CONTENT if same && begins_at(response.headers(), self.given) => Ok(()),
            StatusCode::PARTIAL_CONTENT if same => {
                Err(Error::invalid_response(format!("{} gave another part than was asked for", self.url)))
            }
            _ if same && self.given == 0 => Ok(()),
            _ => Err(Error::source_changed(format!(
                "the file changed after {} bytes of it had come, while the connection was broken",
                self.given
            ))),
        }
    }
}

/// `bytes 5-9/10` begins at 5.
fn begins_at(headers: &HeaderMap, offset: u64) -> bool {
    let range = headers.get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
    let first = range.and_then(|range| range.strip_prefix("bytes ")?.split('-').next()?.parse().ok());
    first == Some(offset)
}
