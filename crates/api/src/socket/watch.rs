//! Watching a path for changes. A client ends it by closing the socket.

use std::time::Duration;

use futures::StreamExt;
use nullspace_types::socket::{ClientFrame, ServerFrame};
use nullspace_types::{Error, Result};

use super::request::Request;
use super::{Connection, Ending, Incoming, Outgoing, Session};
use crate::Api;
use crate::file::{FileChanges, FileWatch};

/// How long a watch whose time is over waits for its client to close the socket: a client takes it for a
/// fault if the server is first.
const GRACE: Duration = Duration::from_secs(30);

/// Serves the socket to its end.
pub(super) async fn watch<A: Api>(
    session: Session<A>,
    id: String,
    request: FileWatch,
    timeout_secs: Option<f64>,
    connection: &mut Connection,
) -> Ending {
    let watched = async {
        let limit = timeout_secs.map(limit).transpose()?;
        Ok((session.api.file_watch(session.caller, session.sandbox, request).await?, limit))
    };
    let (changes, limit) = match watched.await {
        Ok(watched) => watched,
        Err(error) => return Ending::refused(Some(id), error),
    };
    let (outgoing, incoming) = connection.sides();
    tokio::select! {
        ending = tell(&id, changes, limit, outgoing) => ending,
        ending = listen(incoming) => ending,
    }
}

fn limit(secs: f64) -> Result<Duration> {
    // Written so that NaN is refused too; the upper bound is far beyond any sandbox's life.
    if !(secs > 0.0 && secs <= 1e9) {
        return Err(Error::invalid(format!(
            "timeout_secs must be greater than 0 and at most 1e9, got {secs}"
        )));
    }
    Ok(Duration::from_secs_f64(secs))
}

async fn tell(
    id: &str,
    mut changes: FileChanges,
    limit: Option<Duration>,
    outgoing: &mut Outgoing,
) -> Ending {
    if outgoing.send(&ServerFrame::FileWatchStarted { id: id.to_owned() }).await.is_err() {
        return Ending::Gone;
    }
    let over = async {
        match limit {
            Some(limit) => tokio::time::sleep(limit).await,
            None => std::future::pending().await,
        }
    };
    let mut over = std::pin::pin!(over);
    loop {
        let next = async {
            tokio::select! {
                biased;
                () = &mut over => None,
                change = changes.next() => Some(change),
            }
        };
        let Ok(next) = outgoing.until(next).await else { return Ending::Gone };
        let frame = match next {
            None => break,
            Some(Some(Ok(change))) => ServerFrame::FileEvent {
                id: id.to_owned(),
                event: change.event,
                name: change.name,
                path: change.path,
            },
            Some(Some(Err(error))) => return Ending::refused(Some(id.to_owned()), error),
            Some(None) => {
                let error = Error::internal("a watch ended by itself");
                return Ending::refused(Some(id.to_owned()), error);
            }
        };
        if outgoing.send(&frame).await.is_err() {
            return Ending::Gone;
        }
    }
    drop(changes);
    match outgoing.until(tokio::time::sleep(GRACE)).await {
        Ok(()) => Ending::done(),
        Err(_) => Ending::Gone,
    }
}

async fn listen(incoming: &mut Incoming) -> Ending {
    let refusal =
        || ClientFrame::told(None, Error::invalid("this socket watches a path: open another one for that"));
    incoming.serve(|_| false, |_| async { Err(refusal()) }).await
}
