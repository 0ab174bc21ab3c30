//! The way through the stream: once, whatever number of tables.
//!
//! In: a stream, the readings of a lane's tables, which are at one place. Out: each message handed to all of them. Guarantees: one
//! consumer; what is kept in memory does not grow with the number of tables.

use async_nats::jetstream::consumer::{DeliverPolicy, pull::OrderedConfig};
use postgres_types::PgLsn;

use super::LaneReading;
use crate::cli::verify::sort::{Entries, share_memory};
use crate::nats::admin::Admin;
use crate::nats::api::StoredMessage;
use crate::nats::stored::StoredMessages;

/// How often it is looked what several tables have in memory.
pub(in crate::cli::verify) const MEMORY_LOOK_MESSAGES: u64 = 1_024;

/// Reads on to what is the stream's end now, once for all tables. `server_lsn` tells the end of the server's WAL; it is asked behind
/// the stream, so that no event of this server's can stand above it.
///
/// # Errors
/// The broker cannot be reached, or the stream was made anew meanwhile.
///
/// # Panics
/// Where there is no table.
pub(in crate::cli::verify) async fn read_on(
    tables: &mut [(&mut LaneReading, &mut Entries)],
    nats: &Admin,
    server_lsn: impl Future<Output = anyhow::Result<PgLsn>>,
    mut progress: impl FnMut(u64, u64),
) -> anyhow::Result<()> {
    let info = tables[0].0.info(nats).await?;
    let (first, end) = (info.state.first_seq, info.state.last_seq);
    let server_lsn = server_lsn.await?;
    for (lane, _) in tables.iter_mut() {
        lane.begin(&info, server_lsn)?;
    }
    let name = tables[0].0.name.clone();
    let next = tables.iter().map(|(lane, _)| lane.next).min();
    let next = next.expect("there is a table");
    if end < next || !has_next(nats, &name, next).await? {
        return Ok(());
    }
    let config = OrderedConfig {
        deliver_policy: DeliverPolicy::ByStartSequence {
            start_sequence: next,
        },
        ..OrderedConfig::default()
    };
    let mut messages = StoredMessages::from(nats, &name, config).await?;
    loop {
        let (sequence, message) = messages.next().await?;
        if sequence > end {
            break;
        }
        for (lane, entries) in tables.iter_mut() {
            // A consumer that was made anew after a lost connection may begin a little earlier.
            if sequence >= lane.next {
                let headers = message.headers.as_ref();
                lane.take(
                    sequence,
                    &message.subject,
                    headers,
                    &message.payload,
                    entries,
                )?;
                lane.unread += sequence - lane.next;
                lane.next = sequence + 1;
            }
        }
        progress(
            sequence.saturating_sub(first) + 1,
            end.saturating_sub(first) + 1,
        );
        if sequence.is_multiple_of(MEMORY_LOOK_MESSAGES) && tables.len() > 1 {
            share_memory(tables.iter_mut().map(|(_, entries)| &mut **entries))?;
        }
        if sequence == end || messages.left() == 0 {
            break;
        }
    }
    let now = tables[0].0.info(nats).await?.state.first_seq;
    for (lane, _) in tables.iter_mut() {
        lane.front_moved |= now > first;
    }
    Ok(())
}

/// Whether the stream still holds anything at or behind `next`.
async fn has_next(nats: &Admin, stream: &str, next: u64) -> anyhow::Result<bool> {
    let request = serde_json::json!({"seq": next, "next_by_subj": ">"}).to_string();
    let subject = format!("{}.STREAM.MSG.GET.{stream}", nats.api_prefix());
    let answer = nats.request(subject, request.into()).await?;
    Ok(StoredMessage::parse(&answer.payload)?.is_some())
}
