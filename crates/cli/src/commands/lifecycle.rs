//! `nullspace lifecycle`: the log of lifecycle events. Webhooks are in `webhook`.

use clap::{Args, Subcommand, ValueEnum};
use nullspace_types::event::{EventStatus, LifecycleEventQuery, LifecycleSubscription, Operation};
use serde_json::{Map, Value};

use super::until::Until;
use super::webhook;
use crate::failure::Outcome;
use crate::{options, printer, session};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Print a page of the lifecycle events as JSON.
    Events(Events),
    /// Print lifecycle events as they happen, one JSON object a line.
    ///
    /// Begins with the newest events of the past. When the connection breaks it is made again and goes on
    /// behind the last event that was printed: none is missing, none comes twice.
    Stream(Stream),
    /// Endpoints that lifecycle events are sent to.
    #[command(subcommand)]
    Webhooks(webhook::Command),
}

#[derive(Args)]
pub(crate) struct Events {
    /// How many to pass over.
    #[arg(long, default_value_t = 0)]
    offset: u32,
    /// At most this many.
    #[arg(long, default_value_t = 50)]
    limit: u32,
    /// The newest first, or the oldest.
    #[arg(long, value_enum, ignore_case = true, default_value_t = Order::Desc)]
    order: Order,
    /// Only of this operation.
    #[arg(long, value_name = "OPERATION", ignore_case = true, value_parser = options::operation())]
    operation: Option<Operation>,
    /// Only of this status.
    #[arg(long, value_name = "STATUS", ignore_case = true, value_parser = options::event_status())]
    status: Option<EventStatus>,
    /// Only those at or after this time, in RFC 3339.
    #[arg(long, value_name = "TIME")]
    from_time: Option<String>,
    /// Only those before this time, in RFC 3339.
    #[arg(long, value_name = "TIME")]
    to_time: Option<String>,
    /// Only those in which this sandbox has any part.
    #[arg(long, value_name = "SANDBOX")]
    sandbox_id: Option<String>,
    /// Only those about this snapshot.
    #[arg(long, value_name = "SNAPSHOT")]
    snapshot_id: Option<String>,
    /// Only those that came from this sandbox.
    #[arg(long, value_name = "SANDBOX")]
    source_sandbox_id: Option<String>,
    /// Only those of which this sandbox came.
    #[arg(long, value_name = "SANDBOX")]
    target_sandbox_id: Option<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Order {
    Asc,
    Desc,
}

#[derive(Args)]
pub(crate) struct Stream {
    /// Only of this operation.
    #[arg(long, value_name = "OPERATION", ignore_case = true, value_parser = options::operation())]
    operation: Option<Operation>,
    /// Only of this status.
    #[arg(long, value_name = "STATUS", ignore_case = true, value_parser = options::event_status())]
    status: Option<EventStatus>,
    /// Only those in which this sandbox has any part.
    #[arg(long, value_name = "SANDBOX")]
    sandbox_id: Option<String>,
    /// Only those about this snapshot.
    #[arg(long, value_name = "SNAPSHOT")]
    snapshot_id: Option<String>,
    /// Nothing of the past.
    #[arg(long)]
    live_only: bool,
    /// Begin behind this event.
    #[arg(long, value_name = "EVENT")]
    after_event_id: Option<String>,
    /// At most this many events of the past.
    #[arg(long, value_name = "COUNT", default_value_t = 100, allow_negative_numbers = true)]
    replay_limit: i64,
    /// Only events whose metadata has all pairs of this JSON object.
    #[arg(long, value_name = "JSON", value_parser = options::object)]
    metadata_json: Option<Map<String, Value>>,
    #[command(flatten)]
    until: Until,
}

impl Command {
    pub(crate) fn run(self) -> Outcome {
        match self {
            Self::Events(events) => events.run(),
            Self::Stream(stream) => stream.run(),
            Self::Webhooks(command) => command.run(),
        }
    }
}

impl Events {
    fn run(self) -> Outcome {
        let order = match self.order {
            Order::Asc => "asc",
            Order::Desc => "desc",
        };
        let query = LifecycleEventQuery {
            offset: Some(self.offset.to_string()),
            limit: Some(self.limit.to_string()),
            order: Some(order.to_owned()),
            operation: self.operation.map(|operation| operation.as_str().to_owned()),
            status: self.status.map(|status| status.as_str().to_owned()),
            from: self.from_time,
            to: self.to_time,
            audience: None,
            sandbox_id: self.sandbox_id,
            snapshot_id: self.snapshot_id,
            source_sandbox_id: self.source_sandbox_id,
            target_sandbox_id: self.target_sandbox_id,
        };
        session::run(async |client| {
            let listing = client.lifecycle_list(&query);
            printer::json(&session::wait("listing events", None, listing).await?)?;
            Ok(0)
        })
    }
}

impl Stream {
    fn run(self) -> Outcome {
        let subscription = LifecycleSubscription {
            sandbox_id: self.sandbox_id,
            snapshot_id: self.snapshot_id,
            operation: self.operation.map(|operation| operation.as_str().to_owned()),
            status: self.status.map(|status| status.as_str().to_owned()),
            audience: None,
            live_only: Some(self.live_only),
            after_event_id: self.after_event_id,
            replay_limit: Some(self.replay_limit),
            metadata: self.metadata_json,
        };
        session::run(async |client| {
            let opening = client.lifecycle_stream(&subscription);
            let mut stream = session::wait("connecting", None, opening).await?;
            self.until.print(async || stream.next().await).await?;
            stream.close();
            Ok(0)
        })
    }
}
