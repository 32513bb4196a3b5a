//! Watching all sandboxes of a key as they change and what they use.
//!
//! A monitor outlives its connections: when one breaks it is made again, and what it tells begins with
//! another snapshot, which replaces all that was told before.

use nullspace_types::monitor::{MonitorFrame, MonitorRequest};
use reqwest::Method;

use crate::error::{Error, Result};
use crate::reconnect::Attempts;
use crate::socket::{Socket, conversation};
use crate::transport::{Call, Client};

/// A monitor.
pub struct Monitor {
    client: Client,
    subscription: MonitorRequest,
    socket: Option<Socket>,
    attempts: Attempts,
}

impl Client {
    /// Watches all sandboxes of the key. Between two samples of one are `interval_ms` milliseconds (the
    /// server's own choice when `None`).
    ///
    /// # Errors
    /// See [`crate::Error`].
    pub async fn monitor(
        &self,
        interval_ms: Option<i64>,
        include_processes: Option<bool>,
    ) -> Result<Monitor> {
        let id = conversation("monitor");
        let subscription = MonitorRequest::MonitorSubscribe { id, interval_ms, include_processes };
        let mut monitor =
            Monitor { client: self.clone(), subscription, socket: None, attempts: Attempts::default() };
        monitor.connect().await?;
        Ok(monitor)
    }
}

impl Monitor {
    /// What it tells next: a snapshot first, and another one whenever the connection was made again. Never
    /// [`MonitorFrame::MonitorError`]. May be dropped and called again without losing anything.
    ///
    /// # Errors
    /// A transport error once the connection could not be made again; calling again tries again. What the
    /// server says of a subscription that it cannot serve, with the code `monitor_error`. See
    /// [`crate::Error`].
    pub async fn next(&mut self) -> Result<MonitorFrame> {
        loop {
            let Some(socket) = &mut self.socket else {
                self.attempts.wait().await;
                if let Err(error) = self.connect().await {
                    self.attempts.failed(error, &self.client.retry_policy())?;
                }
                continue;
            };
            match socket.next().await {
                Ok(MonitorFrame::MonitorError { message, .. }) => {
                    self.socket = None;
                    return Err(Error::from_frame("monitor_error", message));
                }
                Ok(frame) => {
                    self.attempts.succeeded();
                    return Ok(frame);
                }
                Err(error) => {
                    self.socket = None;
                    self.attempts.failed(error, &self.client.retry_policy())?;
                }
            }
        }
    }

    /// Stops watching.
    pub fn close(self) {
        if let Some(socket) = self.socket {
            socket.close();
        }
    }

    async fn connect(&mut self) -> Result<()> {
        let call = Call::new(Method::GET, "/v1/monitor/ws".to_owned());
        let socket = self.client.open_socket(&call).await?;
        socket.writer().send(&self.subscription).await?;
        self.socket = Some(socket);
        self.attempts.connected();
        Ok(())
    }
}
