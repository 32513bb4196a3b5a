//! Watching files over the sandbox's socket. A watch whose connection broke has missed what happened
//! meanwhile, so it ends with an error and is not made again here.

use std::time::Duration;

use nullspace_types::file::FileChange;
use nullspace_types::socket::{ClientFrame, ServerFrame};
use tokio::time::Instant;

use crate::error::{Error, Result};
use crate::socket::{Socket, conversation};
use crate::transport::Client;

/// A watch.
pub struct FileWatch {
    id: String,
    socket: Socket,
    until: Option<Instant>,
}

impl Client {
    /// Watches a file or a directory; with `recursive`, all that is below it. What happens after this has
    /// answered is seen. With a `timeout` the watch ends by itself.
    ///
    /// # Errors
    /// `file_not_found`; see [`crate::Error`].
    pub async fn file_watch(
        &self,
        sandbox: &str,
        path: &str,
        recursive: bool,
        user: Option<&str>,
        timeout: Option<Duration>,
    ) -> Result<FileWatch> {
        let id = conversation("watch");
        let frame = ClientFrame::FileWatch {
            id: id.clone(),
            path: path.to_owned(),
            user: user.map(str::to_owned),
            recursive: Some(recursive),
            timeout_secs: timeout.map(|timeout| timeout.as_secs_f64()),
        };
        let mut socket = self.socket(sandbox, None).await?;
        socket.writer().send(&frame).await?;
        match socket.first().await? {
            ServerFrame::FileWatchStarted { id: theirs } if theirs == id => {
                // A time that no clock can hold is as good as none.
                let until = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
                Ok(FileWatch { id, socket, until })
            }
            other => Err(socket.unexpected(&other)),
        }
    }
}

impl FileWatch {
    /// The next change; `None` when the time is over. May be dropped and called again without losing
    /// anything.
    ///
    /// # Errors
    /// See [`crate::Error`].
    pub async fn next(&mut self) -> Result<Option<FileChange>> {
        loop {
            let next = self.socket.next();
            let frame = match self.until {
                Some(until) => match tokio::time::timeout_at(until, next).await {
                    Ok(frame) => frame,
                    Err(_) => return Ok(None),
                },
                None => next.await,
            };
            match frame? {
                ServerFrame::FileEvent { id, event, name, path } if id == self.id => {
                    return Ok(Some(FileChange { event, name, path }));
                }
                ServerFrame::Error { id, code, message } if id.as_ref().is_none_or(|id| *id == self.id) => {
                    return Err(Error::from_frame(&code, message));
                }
                _ => {}
            }
        }
    }

    /// Stops watching.
    pub fn close(self) {
        self.socket.close();
    }
}
