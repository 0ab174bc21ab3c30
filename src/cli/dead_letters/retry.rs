//! A dead letter's event, published after all.
//!
//! In: dead letters. Out: their rows, as the table has them now, behind the stream's end. Guarantees: the same envelope as
//! the relay's; no position of the lane; not twice for one dead letter.

use std::time::Duration;

use anyhow::{Context as _, anyhow};
use async_nats::jetstream::consumer::{DeliverPolicy, pull::OrderedConfig};
use futures_util::StreamExt as _;

use super::{Letter, find, next};
use crate::bulk::fence::Fence;
use crate::bulk::lease::Lease;
use crate::cli::exit::{Exit, message};
use crate::cli::republish::{Outcome, Republish};
use crate::cli::stderr;
use crate::cli::stdout::{self, Account};
use crate::nats::admin::Admin;
use crate::pipeline::position::{KIND_HEADER, KIND_RETRY, Position, RETRY_HEADER, parse_header};
use crate::relay::lane_client::LaneClient;
use crate::relay::settings::Settings;

/// How long the broker may keep us waiting for a message that it has.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(30);

/// Retries one dead letter, or all.
pub(super) async fn retry(
    nats: &Admin,
    settings: &Settings,
    position: Option<Position>,
) -> Result<Exit, anyhow::Error> {
    let lane = LaneClient::new(nats, &settings.nats.stream, &settings.postgres.slot)?;
    let lease = Lease::take(&lane, "dead-letters retry").await?;
    let fence = Fence::raise(&lane, &lease, settings, nats.server_version()?).await;
    let done = match fence {
        Ok(fence) => retry_leased(nats, settings, position, &lease, fence).await,
        Err(error) => Err(error),
    };
    lease.release().await;
    done
}

async fn retry_leased(
    nats: &Admin,
    settings: &Settings,
    position: Option<Position>,
    lease: &Lease,
    fence: Fence,
) -> Result<Exit, anyhow::Error> {
    let mut letters = Vec::new();
    match position {
        Some(position) => letters.push((position, find(nats, settings, position).await?)),
        None => {
            let mut from = 1;
            while let Some(found) = next(nats, settings, &mut from).await? {
                letters.push(found);
            }
        }
    }
    let Some(first) = letters.first().map(|(_, letter)| letter.sequence) else {
        stdout::write(&format!(
            "no dead letters of slot {}\n",
            settings.postgres.slot
        ))?;
        return Ok(Exit::Done);
    };
    let retried = retried(nats, settings, first).await?;
    let mut republish = Republish::open(nats, settings, lease, fence).await?;
    let mut account = Account::default();
    let mut failed = false;
    for (at, letter) in letters {
        if retried.contains(&at) {
            account.line(format_args!("{at} was already retried"));
            failed |= position.is_some();
            continue;
        }
        match publish(&mut republish, &settings.postgres.slot, at, &letter).await? {
            Outcome::Published(sequence) => {
                account.line(format_args!("{at} published at sequence {sequence}"));
            }
            Outcome::Rejected(error) => {
                failed = true;
                stderr::line(format_args!(
                    "{at} cannot be published: {}",
                    message(&error)
                ));
            }
        }
    }
    account.close()?;
    Ok(if failed { Exit::Failed } else { Exit::Done })
}

/// The dead letters that have a retry behind sequence `from`.
async fn retried(nats: &Admin, settings: &Settings, from: u64) -> anyhow::Result<Vec<Position>> {
    let name = &settings.nats.stream;
    let config = OrderedConfig {
        deliver_policy: DeliverPolicy::ByStartSequence {
            start_sequence: from,
        },
        headers_only: true,
        ..OrderedConfig::default()
    };
    let consume = async {
        let stream = nats.jetstream().get_stream(name).await?;
        Ok(stream.create_consumer(config).await?.messages().await?)
    };
    let mut messages = nats
        .allowed(consume)
        .await
        .with_context(|| format!("cannot read stream {name}"))?;
    let mut found = Vec::new();
    loop {
        // The dead letter itself is there, so there is at least one message.
        let next = async {
            tokio::time::timeout(MESSAGE_TIMEOUT, messages.next())
                .await
                .with_context(|| format!("no message of stream {name} within {MESSAGE_TIMEOUT:?}"))?
                .context("the consumer ended")?
                .with_context(|| format!("cannot read stream {name}"))
        };
        let message = nats.allowed(next).await?;
        let header = |name| {
            let headers = message.headers.as_ref()?;
            headers.get(name).map(async_nats::HeaderValue::as_str)
        };
        if header(KIND_HEADER) == Some(KIND_RETRY)
            && let Some(Ok((slot, position))) = header(RETRY_HEADER).map(parse_header)
            && slot == settings.postgres.slot
        {
            found.push(position);
        }
        let pending = message
            .info()
            .map(|info| info.pending)
            .map_err(|error| anyhow::anyhow!("a message without its sequence: {error}"))?;
        if pending == 0 {
            return Ok(found);
        }
    }
}

async fn publish(
    republish: &mut Republish<'_>,
    slot: &str,
    position: Position,
    letter: &Letter,
) -> anyhow::Result<Outcome> {
    let Some(id) = &letter.body.id else {
        let why = anyhow!("its row has no id, so it cannot be found in the table");
        return Ok(Outcome::Rejected(why));
    };
    let marks = [
        (KIND_HEADER, KIND_RETRY.to_owned()),
        (RETRY_HEADER, format!("{slot} {position}")),
    ];
    republish.publish(id, &marks).await
}
