//! Where an event stands in its lane: the total order that walrelay keeps.
//!
//! A lane is (system identifier, database, slot). A position is (commit_lsn, ordinal in the transaction); rows of
//! one transaction share the LSN, so an LSN alone is never a position.

use postgres_types::PgLsn;
use std::fmt;
use std::str::FromStr;

/// Header that carries slot and position: `Walrelay-Position: <slot> 16/B374D848:3`.
pub const POSITION_HEADER: &str = "Walrelay-Position";
/// Header that tells what is not a plain event's first publication: `dead-letter`, `replay`.
pub const KIND_HEADER: &str = "Walrelay-Kind";
/// Header of a dead letter: why the row could not be published.
pub const REASON_HEADER: &str = "Walrelay-Reason";
/// Header of what comes from a further table of the lane: the table, as the configuration names it. The lane's own has none.
pub const TABLE_HEADER: &str = "Walrelay-Table";
/// Header of a replayed event: the lane's last position when it was sent, so that resume finds it behind a replay.
/// What is published outside the lane has it too, with the sequence behind which the lane has no message where it has none.
pub const TAIL_HEADER: &str = "Walrelay-Tail";
/// NATS' own header: the sequence that a message of a stream of our own was to follow. Stored with the message.
pub const EXPECTED_HEADER: &str = "Nats-Expected-Last-Sequence";
/// NATS' own header: the atomic batch that a message was published in. Stored with the message.
pub const BATCH_HEADER: &str = "Nats-Batch-Id";
/// NATS' own header: the message's number in that batch, from 1. Stored with the message.
pub const BATCH_SEQUENCE_HEADER: &str = "Nats-Batch-Sequence";
/// Value of [`KIND_HEADER`] on a row that could not be published.
pub const KIND_DEAD_LETTER: &str = "dead-letter";
/// Value of [`KIND_HEADER`] on an event that the table had and the stream had not.
pub const KIND_BACKFILL: &str = "backfill";
/// Value of [`KIND_HEADER`] on an event that is published again on request.
pub const KIND_REPLAY: &str = "replay";
/// Header of an event in a stream that `walrelay replay` publishes to: which replay, the stream it was read from and its
/// sequence there, `<replay> <stream> <sequence>`. Where a replay was stopped, it goes on behind the last of its own.
pub const REPLAY_HEADER: &str = "Walrelay-Replay";

/// Value of [`KIND_HEADER`] on a message that only tells an adopted lane's position, in [`TAIL_HEADER`].
pub const KIND_ADOPTED: &str = "adopted";
/// Value of [`KIND_HEADER`] on a message that only tells the lane's position, in [`TAIL_HEADER`], where messages were erased.
pub const KIND_ERASED: &str = "erased";
/// Value of [`KIND_HEADER`] on a message that only tells the lane's position, in [`TAIL_HEADER`]: what a command has sent that is taken
/// for ended is not stored behind it.
pub const KIND_FENCED: &str = "fenced";
/// Value of [`KIND_HEADER`] on a message behind which the lane publishes nothing to this stream: it was moved to another one.
pub const KIND_MOVED: &str = "moved";
/// Header of a message that `walrelay move` has copied: when the stream that it comes from was created, and its sequence there.
pub const MOVED_HEADER: &str = "Walrelay-Moved";
/// Value of [`KIND_HEADER`] on the event of a dead letter that could be published later.
pub const KIND_RETRY: &str = "retry";
/// Header of such an event: the dead letter's slot and position.
pub const RETRY_HEADER: &str = "Walrelay-Retry";
/// Header of a backfilled event: the lane's slot and the OID of the table that its row is of.
pub const BACKFILL_HEADER: &str = "Walrelay-Backfill";

/// Value of [`KIND_HEADER`] on the mark of a dead letter whose event is published.
pub const KIND_RETRIED: &str = "retried";
/// Value of [`KIND_HEADER`] on the mark of a dead letter whose event nobody wants.
pub const KIND_DISCARDED: &str = "discarded";
/// Header of such marks: the dead letter's slot and position.
pub const DEAD_LETTER_HEADER: &str = "Walrelay-Dead-Letter";

/// The slot of the lane that a message is of, whatever it is to it; none where it names no lane. Others may write to the same stream, of
/// tables with ids of their own.
pub fn slot_of<'h>(header: impl Fn(&'static str) -> Option<&'h str>) -> Option<&'h str> {
    let of_slot = [
        POSITION_HEADER,
        TAIL_HEADER,
        RETRY_HEADER,
        BACKFILL_HEADER,
        DEAD_LETTER_HEADER,
    ];
    let told = of_slot.into_iter().find_map(header)?;
    told.split(' ').next()
}

/// (commit_lsn, ordinal): the place of a row in its lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Where the transaction's commit record begins.
    pub commit_lsn: PgLsn,
    /// Number of the inserted row in its transaction, from 1.
    pub ordinal: u64,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.commit_lsn, self.ordinal)
    }
}

/// A text that is not `<pg_lsn>:<ordinal>`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a position such as 16/B374D848:3")]
pub struct PositionError(String);

impl FromStr for Position {
    type Err = PositionError;

    fn from_str(text: &str) -> Result<Self, PositionError> {
        let error = || PositionError(text.chars().take(80).collect());
        let (lsn, ordinal) = text.rsplit_once(':').ok_or_else(error)?;
        Ok(Position {
            commit_lsn: lsn.parse().map_err(|_| error())?,
            ordinal: ordinal.parse().map_err(|_| error())?,
        })
    }
}

/// Reads the value of [`POSITION_HEADER`]: slot and position.
///
/// # Errors
/// The value is not `<slot> <pg_lsn>:<ordinal>`.
pub fn parse_header(value: &str) -> Result<(&str, Position), PositionError> {
    let (slot, position) = value
        .split_once(' ')
        .ok_or_else(|| PositionError(value.chars().take(80).collect()))?;
    Ok((slot, position.parse()?))
}

/// Appends the text form of an LSN, `16/B374D848`, without the formatting machinery: once for each transaction.
pub fn push_lsn(out: &mut Vec<u8>, lsn: PgLsn) {
    let lsn = u64::from(lsn);
    for (half, end) in [(lsn >> 32, Some(b'/')), (lsn & 0xFFFF_FFFF, None)] {
        let digits = (64 - half.leading_zeros()).div_ceil(4).max(1);
        for digit in (0..digits).rev() {
            out.push(b"0123456789ABCDEF"[(half >> (4 * digit) & 0xF) as usize]);
        }
        out.extend(end);
    }
}

/// Who the lane is. A change of it is never taken for the same lane by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lane {
    /// `system_identifier` of the Postgres cluster.
    pub system_identifier: u64,
    /// The database's name.
    pub database: String,
    /// The slot's name.
    pub slot: String,
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "system {}, database {}, slot {}",
            self.system_identifier, self.database, self.slot
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trip() {
        let position = Position {
            commit_lsn: PgLsn::from(0x16_B374_D848),
            ordinal: 3,
        };
        assert_eq!(position.to_string(), "16/B374D848:3");
        assert_eq!("16/B374D848:3".parse(), Ok(position));
        assert_eq!(
            parse_header("walrelay 16/B374D848:3"),
            Ok(("walrelay", position))
        );
        for bad in [
            "",
            "16/B374D848",
            "16:3",
            "x/y:3",
            "16/1:-1",
            "16/1:3 ",
            "w",
        ] {
            assert!(bad.parse::<Position>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_lsn_is_written_as_postgres_writes_it() {
        for lsn in [
            0,
            1,
            0xF,
            0x10,
            0xFFFF_FFFF,
            0x16_B374_D848,
            1 << 32,
            u64::MAX,
        ] {
            let mut written = Vec::new();
            push_lsn(&mut written, lsn.into());
            assert_eq!(written, PgLsn::from(lsn).to_string().as_bytes());
        }
    }

    #[test]
    fn order_is_transaction_first() {
        let p = |lsn: u64, ordinal| Position {
            commit_lsn: PgLsn::from(lsn),
            ordinal,
        };
        assert!(p(1, 9) < p(2, 1));
        assert!(p(2, 1) < p(2, 2));
    }
}
