//! What Debezium has published: the ids of the events at the stream's end.
//!
//! In: a stream that Debezium's router wrote to. Out: ids. Guarantee: at most [`COMPARED_MESSAGES_MAX`] messages are read.

use std::collections::HashSet;

use async_nats::jetstream::consumer::{DeliverPolicy, pull::OrderedConfig};

use super::in_stream::COMPARED_MESSAGES_MAX;
use crate::nats::admin::Admin;
use crate::nats::api::StreamInfo;
use crate::nats::stored::{StoredMessages, header};
use crate::pipeline::event_id;
use crate::relay::settings::Settings;

/// Reads the ids. Debezium confirms what it has published with a delay, so the slot may hold some of these rows.
pub(super) async fn ids(
    nats: &Admin,
    settings: &Settings,
    info: &StreamInfo,
) -> anyhow::Result<HashSet<String>> {
    let (name, last) = (&settings.nats.stream, info.state.last_seq);
    let config = OrderedConfig {
        deliver_policy: DeliverPolicy::ByStartSequence {
            start_sequence: last.saturating_sub(COMPARED_MESSAGES_MAX).max(1),
        },
        filter_subject: settings.nats.subject.filter(),
        headers_only: true,
        ..OrderedConfig::default()
    };
    let mut messages = StoredMessages::from(nats, name, config).await?;
    let mut ids = HashSet::new();
    while messages.left() > 0 {
        let (_, message) = messages.next().await?;
        let header = |name| header(&message, name);
        ids.extend(event_id::of_headers(event_id::ID_HEADERS.map(header)));
    }
    Ok(ids)
}
