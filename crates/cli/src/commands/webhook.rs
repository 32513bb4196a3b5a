//! `nullspace lifecycle webhooks`.

use clap::{ArgGroup, Args, Subcommand};
use nullspace_types::event::Operation;
use nullspace_types::webhook::{WebhookCreate, WebhookDeliveryQuery, WebhookUpdate};

use crate::failure::Outcome;
use crate::{options, printer, session};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Have lifecycle events sent to a URL. Prints the webhook as JSON.
    Create(Create),
    /// Print the webhooks as JSON.
    List,
    /// Print a webhook as JSON.
    Get(One),
    /// Change a webhook. Prints it as JSON.
    Update(Update),
    /// Delete a webhook and its deliveries.
    Delete(One),
    /// Print the deliveries of a webhook as JSON, newest first.
    Deliveries(Deliveries),
    /// Print a delivery as JSON, with its event and every attempt.
    Delivery(Delivery),
    /// Put a delivery that is over on its way again. Prints it as JSON.
    Redeliver(Delivery),
}

#[derive(Args)]
pub(crate) struct Create {
    /// Where events are sent.
    #[arg(long)]
    url: String,
    /// An operation whose events are sent.
    #[arg(long, value_name = "OPERATION", ignore_case = true, required = true)]
    #[arg(value_parser = options::operation())]
    operation: Vec<Operation>,
    /// What deliveries are signed with: 16 to 256 visible characters.
    #[arg(long, value_name = "SECRET")]
    signing_secret: String,
    #[command(flatten)]
    switch: Switch,
}

#[derive(Args)]
#[command(group(
    ArgGroup::new("change")
        .args(["url", "operation", "signing_secret", "enabled", "disabled"])
        .required(true)
        .multiple(true)
))]
pub(crate) struct Update {
    #[command(flatten)]
    one: One,
    /// Where events are sent.
    #[arg(long)]
    url: Option<String>,
    /// An operation whose events are sent, instead of those so far.
    #[arg(long, value_name = "OPERATION", ignore_case = true, value_parser = options::operation())]
    operation: Vec<Operation>,
    /// What deliveries are signed with: 16 to 256 visible characters.
    #[arg(long, value_name = "SECRET")]
    signing_secret: Option<String>,
    #[command(flatten)]
    switch: Switch,
}

#[derive(Args)]
struct Switch {
    /// Send events.
    #[arg(long, overrides_with = "disabled")]
    enabled: bool,
    /// Send nothing for now.
    #[arg(long, overrides_with = "enabled")]
    disabled: bool,
}

#[derive(Args)]
pub(crate) struct One {
    /// The webhook's ID.
    #[arg(value_name = "WEBHOOK")]
    webhook: String,
}

#[derive(Args)]
pub(crate) struct Deliveries {
    #[command(flatten)]
    one: One,
    /// How many to pass over.
    #[arg(long, default_value_t = 0)]
    offset: u32,
    /// At most this many.
    #[arg(long, default_value_t = 50)]
    limit: u32,
}

#[derive(Args)]
pub(crate) struct Delivery {
    #[command(flatten)]
    one: One,
    /// The delivery's ID.
    #[arg(value_name = "DELIVERY")]
    delivery: String,
}

impl Command {
    pub(crate) fn run(self) -> Outcome {
        match self {
            Self::Create(create) => create.run(),
            Self::List => list(),
            Self::Get(one) => one.get(),
            Self::Update(update) => update.run(),
            Self::Delete(one) => one.delete(),
            Self::Deliveries(deliveries) => deliveries.run(),
            Self::Delivery(delivery) => delivery.get(),
            Self::Redeliver(delivery) => delivery.redeliver(),
        }
    }
}

impl Switch {
    /// The last of the two that was given.
    fn wire(&self) -> Option<bool> {
        (self.enabled || self.disabled).then_some(self.enabled)
    }
}

fn words(operations: &[Operation]) -> Option<Vec<String>> {
    let words: Vec<_> = operations.iter().map(|operation| operation.as_str().to_owned()).collect();
    (!words.is_empty()).then_some(words)
}

impl Create {
    fn run(self) -> Outcome {
        let request = WebhookCreate {
            operations: words(&self.operation),
            enabled: Some(self.switch.wire().unwrap_or(true)),
            url: Some(self.url),
            signing_secret: Some(self.signing_secret),
        };
        session::run(async |client| {
            let left = "the webhook may have been created: see `nullspace lifecycle webhooks list`";
            let creating = client.webhook_create(&request);
            printer::json(&session::wait("creating the webhook", Some(left), creating).await?)?;
            Ok(0)
        })
    }
}

fn list() -> Outcome {
    session::run(async |client| {
        printer::json(&session::wait("listing webhooks", None, client.webhook_list()).await?)?;
        Ok(0)
    })
}

impl One {
    fn get(self) -> Outcome {
        session::run(async |client| {
            let getting = client.webhook_get(&self.webhook);
            printer::json(&session::wait("looking for the webhook", None, getting).await?)?;
            Ok(0)
        })
    }

    fn delete(self) -> Outcome {
        session::run(async |client| {
            let left = format!("{} may be deleted all the same", self.webhook);
            let deleting = client.webhook_delete(&self.webhook);
            session::wait("deleting the webhook", Some(&left), deleting).await?;
            printer::line(format_args!("deleted {}", self.webhook))?;
            Ok(0)
        })
    }
}

impl Update {
    fn run(self) -> Outcome {
        let request = WebhookUpdate {
            operations: words(&self.operation),
            enabled: self.switch.wire(),
            url: self.url,
            signing_secret: self.signing_secret,
        };
        session::run(async |client| {
            let left = "the webhook may be changed all the same";
            let updating = client.webhook_update(&self.one.webhook, &request);
            printer::json(&session::wait("changing the webhook", Some(left), updating).await?)?;
            Ok(0)
        })
    }
}

impl Deliveries {
    fn run(self) -> Outcome {
        let query = WebhookDeliveryQuery {
            offset: Some(self.offset.to_string()),
            limit: Some(self.limit.to_string()),
        };
        session::run(async |client| {
            let listing = client.webhook_deliveries(&self.one.webhook, &query);
            printer::json(&session::wait("listing deliveries", None, listing).await?)?;
            Ok(0)
        })
    }
}

impl Delivery {
    fn get(self) -> Outcome {
        session::run(async |client| {
            let getting = client.webhook_delivery(&self.one.webhook, &self.delivery);
            printer::json(&session::wait("looking for the delivery", None, getting).await?)?;
            Ok(0)
        })
    }

    fn redeliver(self) -> Outcome {
        session::run(async |client| {
            let left = "it may be delivered again all the same";
            let asking = client.webhook_redeliver(&self.one.webhook, &self.delivery);
            printer::json(&session::wait("putting it on its way", Some(left), asking).await?)?;
            Ok(0)
        })
    }
}
