//! Connections of clients: what each speaks, and who serves it.
//!
//! The domain's listener serves HTTP alone. A local address is plain TCP underneath: what is not HTTP, or has a
//! service that speaks first, is passed through as it is if the port is public.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use nullspace_edge_api::{Admission, Credentials, Edge, Stream};
use nullspace_types::preview::PreviewTransport;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::exchange::{Exchange, leash, tie};
use crate::forward::{Arrival, BUFFER_MAX, seconds};
use crate::gateway::Room;
use crate::tunnel::tunnel;
use crate::wire::{Speech, Wire};

/// How long a client may be silent before it is taken for one that waits for the service to speak.
const SILENCE: Duration = Duration::from_millis(300);

/// How often a connection of HTTP/2 is asked whether it is still there.
const PING: Duration = Duration::from_secs(30);

/// Serves one client of the domain's listener.
pub(crate) async fn serve_host<E: Edge, S>(room: Arc<Room<E>>, arrival: Arrival, mut wire: Wire<S>)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    match wire.listen(seconds(room.config.head_timeout_secs)).await {
        Ok(Some(speech @ (Speech::Http1 | Speech::Http2))) => speak(room, arrival, wire, speech).await,
        Ok(_) => tracing::debug!("a connection without HTTP"),
        Err(error) => tracing::debug!(%error, "a connection ended early"),
    }
}

/// Serves one client of a local address.
pub(crate) async fn serve_local<E: Edge, S>(room: Arc<Room<E>>, arrival: Arrival, mut wire: Wire<S>)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let other = match wire.listen(SILENCE).await {
        Ok(Some(speech @ (Speech::Http1 | Speech::Http2))) => {
            return speak(room, arrival, wire, speech).await;
        }
        Ok(Some(Speech::Other)) => true,
        // Silent, or too slow to tell: whoever speaks first from now on decides.
        Ok(None) => false,
        Err(error) => return tracing::debug!(%error, "a connection ended early"),
    };
    let patience = seconds(room.config.head_timeout_secs);
    let Some((service, exchange)) = raw(&room, &arrival).await else {
        // Not a public port, or nothing there: only HTTP can be told so.
        if !other {
            serve_host(room, arrival, wire).await;
        }
        return;
    };
    if other {
        return tunnel(wire, service, exchange, arrival.cut).await;
    }
    first_word(room, arrival, wire, service, exchange, patience).await;
}

/// Lets an unknown protocol in that shows nothing of itself.
async fn raw<E: Edge>(room: &Room<E>, arrival: &Arrival) -> Option<(Stream, Arc<Exchange>)> {
    let admission = Admission {
        destination: arrival.destination.clone()?,
        transport: PreviewTransport::Http,
        credentials: Credentials::default(),
    };
    let opened = async {
        let admitted = room.edge.admit(admission).await?;
        let stream = room.edge.connect(admitted.sandbox_id, admitted.port).await?;
        let idle = seconds(room.config.idle_timeout_secs);
        Ok::<_, nullspace_edge_api::Refusal>((stream, Exchange::new(&room.edge, &admitted, idle)))
    };
    match opened.await {
        Ok(opened) => Some(opened),
        Err(refused) => {
            tracing::debug!(code = %refused.error.code, error = %refused.error, "raw bytes were refused");
            None
        }
    }
}

/// Waits for whoever speaks first: a client that does may speak HTTP after all.
async fn first_word<E: Edge, S>(
    room: Arc<Room<E>>,
    arrival: Arrival,
    mut wire: Wire<S>,
    mut service: Stream,
    exchange: Arc<Exchange>,
    patience: Duration,
) where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut word = [0; 4096];
    let waited = leash(arrival.cut.clone(), async {
        tie(&exchange);
        tokio::select! {
            biased;
            read = service.read(&mut word) => {
                let read = read?;
                wire.write_all(&word[..read]).await?;
                wire.flush().await?;
                exchange.passed_out(read);
                Ok::<_, std::io::Error>(Some(Speech::Other))
            }
            speech = wire.listen(patience) => speech,
        }
    });
    match waited.await {
        Some(Ok(Some(speech @ (Speech::Http1 | Speech::Http2)))) => {
            drop((service, exchange));
            speak(room, arrival, wire, speech).await;
        }
        Some(Ok(Some(Speech::Other))) => tunnel(wire, service, exchange, arrival.cut).await,
        Some(Ok(None)) => tracing::debug!("a connection on which nobody spoke"),
        Some(Err(error)) => tracing::debug!(%error, "a connection ended early"),
        None => tracing::debug!("a connection was cut"),
    }
}

/// Runs what a connection of HTTP/2 has to do for each stream, on a leash of its own.
#[derive(Clone)]
struct Streams<E: Edge>(Arc<Room<E>>, Arc<Arrival>);

impl<E: Edge, F> hyper::rt::Executor<F> for Streams<E>
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        let cut = self.1.cut.clone();
        self.0.connections.spawn(async move {
            let _: Option<()> = leash(cut, stream).await;
        });
    }
}

/// Serves requests until there are no more, the connection has become something else, or it is cut.
async fn speak<E: Edge, S>(room: Arc<Room<E>>, arrival: Arrival, wire: Wire<S>, speech: Speech)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let arrival = Arc::new(arrival);
    let stop = room.stop.clone();
    let service = {
        let (room, arrival) = (room.clone(), arrival.clone());
        service_fn(move |request| {
            let (room, arrival) = (room.clone(), arrival.clone());
            async move { Ok::<_, Infallible>(room.answer(&arrival, request).await) }
        })
    };
    let config = &room.config;
    let (wire, patience) = (TokioIo::new(wire), seconds(config.head_timeout_secs));
    // A `Date` is added where the service has
    // none, as proxies must (RFC 9110 §6.6.1).
    macro_rules! serve {
        ($connection:expr) => {{
            let connection = $connection;
            leash(arrival.cut.clone(), async move {
                let mut connection = std::pin::pin!(connection);
                tokio::select! {
                    ended = connection.as_mut() => ended,
                    () = stop.cancelled() => {
                        connection.as_mut().graceful_shutdown();
                        connection.await
                    }
                }
            })
            .await
        }};
    }
    let ended = match speech {
        Speech::Http2 => serve!(
            hyper::server::conn::http2::Builder::new(Streams(room.clone(), arrival.clone()))
                .timer(TokioTimer::new())
                .keep_alive_interval(PING)
                .enable_connect_protocol()
                .initial_stream_window_size(256 * 1024)
                .initial_connection_window_size(1024 * 1024)
                .max_send_buf_size(BUFFER_MAX)
                .max_header_list_size(u32::try_from(config.head_bytes_max).unwrap_or(u32::MAX))
                .serve_connection(wire, service)
        ),
        Speech::Http1 | Speech::Other => serve!(
            hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(patience)
                .max_header_size(config.head_bytes_max)
                .max_buf_size(BUFFER_MAX.max(config.head_bytes_max))
                .half_close(true)
                // Names of headers mean the same in every case, and some programs read only one.
                .preserve_header_case(true)
                .serve_connection(wire, service)
                .with_upgrades()
        ),
    };
    match ended {
        Some(Ok(())) => {}
        Some(Err(error)) => tracing::debug!(%error, "a connection ended early"),
        None => tracing::debug!("a connection was cut"),
    }
}
