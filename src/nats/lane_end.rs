//! The end of a lane in a stream of its own, read over the administrative connection.
//!
//! In: a client, stream and slot. Out: the stream's last sequence, and where the lane stands there. Guarantee: what is
//! then published behind exactly that sequence may tell the same place, since the lane cannot have moved between.

use anyhow::Context as _;
use async_nats::Client;

use super::api::{ApiRequest, DEFAULT_PREFIX, StoredMessage, StreamApi};
use super::{record, stream};
use crate::pipeline::publish::tail_header;
use crate::pipeline::tail::{Tail, TailSearch};

/// Where stream and lane end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneEnd {
    /// The stream's last sequence.
    pub last_sequence: u64,
    /// The lane's place as [`TAIL_HEADER`](crate::pipeline::position::TAIL_HEADER) has it; none where the stream does not
    /// tell it.
    pub tail: Option<String>,
}

/// Looks for the lane's last message from the stream's end, as a relay does at its start.
///
/// # Errors
/// No such stream, or no answer.
pub async fn lane_end(client: &Client, stream: &str, slot: &str) -> anyhow::Result<LaneEnd> {
    let info = stream::find(client, stream)
        .await?
        .with_context(|| format!("there is no stream {stream}"))?;
    let record = record::read(client, stream, slot).await?.record;
    let record = record.as_ref();
    let last_sequence = info.state.last_seq;
    let mut search = TailSearch::new(slot, last_sequence, &info.created, record, None);
    let api = StreamApi::new(DEFAULT_PREFIX, stream)?;
    let mut found = Tail::Nothing;
    while let Some(lookup) = search.wanted() {
        let message = stored(client, api.lookup_request(lookup)).await?;
        if let Some(tail) = search.take(message.as_ref().map(StoredMessage::for_search)) {
            found = tail;
            break;
        }
    }
    let tail = match found {
        Tail::Found(tail) => Some(tail_header(slot, tail.position, tail.event_id.as_deref())),
        _ => None,
    };
    Ok(LaneEnd {
        last_sequence,
        tail,
    })
}

/// The answer to a request for one message; `None` where it is not there.
///
/// # Errors
/// No answer, or one that cannot be read.
pub async fn stored(client: &Client, request: ApiRequest) -> anyhow::Result<Option<StoredMessage>> {
    let answer = client
        .request(request.subject, request.payload.into())
        .await?;
    Ok(StoredMessage::parse(&answer.payload)?)
}
