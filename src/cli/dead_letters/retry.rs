//! A dead letter's event, published after all.
//!
//! In: dead letters. Out: their rows, as the table has them now or else as the dead letter has them, behind the stream's
//! end. Guarantees: the same envelope as the relay's; no position of the lane; not twice for one dead letter.

use std::time::Duration;

use anyhow::{Context as _, bail};
use async_nats::jetstream::consumer::{DeliverPolicy, pull::OrderedConfig};
use futures_util::StreamExt as _;

use super::{find, next};
use crate::bulk::fence::Fence;
use crate::bulk::lease::Lease;
use crate::bulk::rows::{RowText, Rows, columns};
use crate::cli::exit::{Exit, UsageError, message};
use crate::cli::republish::{Outcome, Republish};
use crate::cli::stderr;
use crate::cli::stdout::{self, Account};
use crate::nats::admin::Admin;
use crate::pipeline::dead_letter::DeadLetter;
use crate::pipeline::mapping::Mapping;
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
    set: &[(String, String)],
) -> Result<Exit, anyhow::Error> {
    check_set(&settings.mapping(), set)?;
    let lane = LaneClient::new(nats, &settings.nats.stream, &settings.postgres.slot)?;
    let lease = Lease::take(&lane, "dead-letters retry").await?;
    let fence = Fence::raise(&lane, &lease, settings, nats.server_version()?).await;
    let done = match fence {
        Ok(fence) => retry_leased(nats, settings, position, set, &lease, fence).await,
        Err(error) => Err(error),
    };
    lease.release().await;
    done
}

async fn retry_leased(
    nats: &Admin,
    settings: &Settings,
    position: Option<Position>,
    set: &[(String, String)],
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
        match publish(&mut republish, settings, at, &letter.body, set).await? {
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

/// What `--set` says: other values for one publication.
fn check_set(mapping: &Mapping, set: &[(String, String)]) -> Result<(), UsageError> {
    let columns = columns(mapping);
    match set
        .iter()
        .find(|(name, _)| !columns.contains(&name.as_str()))
    {
        Some((name, _)) => Err(UsageError(format!(
            "--set: no message is made of a column {name:?}"
        ))),
        None => Ok(()),
    }
}

async fn publish(
    republish: &mut Republish<'_>,
    settings: &Settings,
    position: Position,
    letter: &DeadLetter,
    set: &[(String, String)],
) -> anyhow::Result<Outcome> {
    let found = match in_table(republish.rows(), settings, letter).await {
        Ok(Some(row)) => Ok(row),
        Ok(None) => in_letter(&settings.mapping(), letter, set),
        Err(error) => Err(error),
    };
    let mut row = match found {
        Ok(row) => row,
        Err(error) => return Ok(Outcome::Rejected(error)),
    };
    for (name, value) in set {
        row.columns.insert(name.clone(), Some(value.clone()));
    }
    let marks = [
        (KIND_HEADER, KIND_RETRY.to_owned()),
        (
            RETRY_HEADER,
            format!("{} {position}", settings.postgres.slot),
        ),
    ];
    republish.publish(&row, &marks).await
}

/// The row as the table has it now; none where it is gone, or has no id to find it by.
async fn in_table(
    rows: &Rows,
    settings: &Settings,
    letter: &DeadLetter,
) -> anyhow::Result<Option<RowText>> {
    let row = letter.row.as_ref();
    // Beside it, long ones are cut, and bytes are told as a UUID.
    let whole = row.and_then(|row| row.get(settings.postgres.id_column()));
    let whole = whole.cloned().flatten().filter(|id| id.len() > 200);
    match whole.or_else(|| letter.id.clone()) {
        Some(id) => rows.find(&id).await,
        None => Ok(None),
    }
}

/// The row as the relay read it, where the dead letter has all of it that a message needs and that is not set anew.
fn in_letter(
    mapping: &Mapping,
    letter: &DeadLetter,
    set: &[(String, String)],
) -> anyhow::Result<RowText> {
    let gone = "the table no longer has its row, and the dead letter";
    let row = letter.row.as_ref();
    let row = row.with_context(|| format!("{gone} does not hold it"))?;
    for name in columns(mapping) {
        if set.iter().any(|(set, _)| set == name) {
            continue;
        }
        let value = row.get(name);
        let value = value.with_context(|| format!("{gone} has no column {name:?}"))?;
        if let Some(bytes) = letter.truncated.get(name) {
            let kept = value.as_ref().map_or(0, String::len);
            bail!("{gone} has {kept} of the {bytes} bytes of {name:?}");
        }
    }
    Ok(RowText {
        columns: row.clone(),
        committed_at_us: letter.committed_at_us,
    })
}
