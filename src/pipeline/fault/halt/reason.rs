//! What is known of a halt.
//!
//! In: a [`Halt`]. Out: whole sentences, for a person.

use super::Halt;
use crate::pipeline::fault::STUCK_EPOCHS;
use crate::pipeline::record::at;
use postgres_types::PgLsn;

impl Halt {
    /// What is known: whole sentences, without the last full stop.
    pub fn reason(&self) -> String {
        match self {
            Halt::OtherLane { recorded, found } => format!(
                "the lane record of this stream and slot belongs to {recorded}, but this is {found}. Another database stands \
                 behind the same names: a restored dump, a new cluster (pg_upgrade, blue/green), or a second service. Nothing \
                 was published or confirmed"
            ),
            Halt::Moved { stream, to, nats } => {
                format!(
                    "the lane has left stream {stream}: walrelay move has taken it to stream {to}{}",
                    at(nats.as_ref())
                )
            }
            Halt::ForeignEnd { .. }
            | Halt::EndRemoved { .. }
            | Halt::EndCopied { .. }
            | Halt::Replaced { .. }
            | Halt::EndUnknown { .. } => self.of_stream(),
            Halt::ConfirmedUnexplained {
                slot,
                confirmed_lsn,
                recorded_lsn,
                switched_at,
            } => unexplained(slot, *confirmed_lsn, *recorded_lsn, *switched_at),
            Halt::NoBeginning {
                slot,
                stream,
                confirmed_lsn,
                begins_lsn,
                ..
            } => {
                // What is written down where nobody knew it any more.
                let began = match u64::from(*begins_lsn) {
                    0 => "began where nobody knows".to_owned(),
                    _ => format!("began at {begins_lsn}"),
                };
                format!(
                    "slot {slot} {began} and is confirmed up to {confirmed_lsn}, and stream {stream} has no event of it \
                     and no lane record: what the slot has passed is in another stream or at another NATS, or it was lost here. \
                     Nothing was published or confirmed"
                )
            }
            Halt::ServerBehind {
                server_lsn,
                position,
            } => format!(
                "the server's WAL ends at {server_lsn}, but {position} is already in the stream. The database was restored to \
                 an earlier state, or a standby without these transactions was promoted"
            ),
            Halt::OverlapMiss {
                position,
                expected,
                found,
                unnamed,
            } if !unnamed.is_empty() => format!(
                "at {position} the stream has event {expected}, the WAL {found}: the configuration no longer names {}, whose rows \
                 were published and are not confirmed yet. Nothing was published or confirmed",
                unnamed.join(" and ")
            ),
            Halt::OverlapMiss {
                position,
                expected,
                found,
                ..
            } => format!(
                "the WAL does not continue what is in the stream: at {position} the stream has event {expected}, the WAL \
                 {found}. The database was restored to an earlier state and its LSNs were used again, or another database \
                 stands behind the name"
            ),
            Halt::Rejected { row, blocks } => format!(
                "the row at {} (event {}) cannot be published: {}{}",
                row.position,
                row.event_id,
                row.reject,
                blocks.reason()
            ),
            Halt::PublicationMissing { what, .. } | Halt::Slot { what, .. } => what.clone(),
            Halt::Renamed(renamed) => renamed.reason(),
            Halt::OtherId(other) => other.reason(),
            Halt::Stuck(fault) => format!(
                "{STUCK_EPOCHS} attempts in a row ended at the same place without progress: {fault}"
            ),
        }
    }

    /// What is known of the stream's end.
    fn of_stream(&self) -> String {
        match self {
            Halt::ForeignEnd {
                stream,
                sequence,
                slot,
            } => format!(
                "message {sequence} of stream {stream} was written by the relay of slot {slot:?}, and the stream is meant to \
                 be of one slot alone"
            ),
            Halt::EndRemoved {
                stream,
                sequence,
                last_sequence,
                recorded,
            } => {
                let known = match recorded {
                    0 => "no lane record names a message".to_owned(),
                    recorded => format!("the lane record reaches only to {recorded}"),
                };
                format!(
                    "message {sequence} of stream {stream} (last sequence {last_sequence}) was removed, and {known}: how far \
                     the lane came cannot be known"
                )
            }
            Halt::EndCopied { stream, sequence } => format!(
                "message {sequence} of stream {stream} has a position of this slot but does not stand where a relay put it: \
                 it was copied here, or the stream was made from another one (a mirror, a source)"
            ),
            Halt::Replaced { stream, sequence } => format!(
                "message {sequence} of stream {stream} was acknowledged as an event of this lane and is somebody else's now: \
                 the broker lost acknowledged messages, and others took their places before this relay could see it"
            ),
            Halt::EndUnknown { stream, scanned } => format!(
                "the last {scanned} messages of stream {stream} were not written by a relay, and no lane record tells how far \
                 this one came"
            ),
            other => other.reason(),
        }
    }
}

/// Why nobody knows whether what the slot has passed was published.
fn unexplained(
    slot: &str,
    confirmed_lsn: PgLsn,
    recorded_lsn: Option<PgLsn>,
    switched_at: Option<PgLsn>,
) -> String {
    let unpublished = "events below that LSN may never have been published";
    let somebody = "Somebody advanced, consumed or recreated the slot";
    match (recorded_lsn, switched_at) {
        (Some(lsn), _) if u64::from(lsn) == 0 => format!(
            "slot {slot} begins at {confirmed_lsn}: `walrelay setup` made it anew in the place of one that this relay had read \
             from, and it does not hold what committed before: {unpublished}"
        ),
        (Some(lsn), Some(at)) => format!(
            "slot {slot} is confirmed up to {confirmed_lsn}, but this relay has confirmed up to {lsn} on another timeline, \
             which this server left at {at} (a promotion or a recovery). {somebody}, and {unpublished}"
        ),
        (Some(lsn), None) => format!(
            "slot {slot} is confirmed up to {confirmed_lsn}, but this relay has never confirmed beyond {lsn}. {somebody}, and \
             {unpublished}"
        ),
        (None, _) => format!(
            "slot {slot} is confirmed up to {confirmed_lsn}, but this relay has no record of it. {somebody}, and {unpublished}"
        ),
    }
}
