//! The envelopes of the CopyBoth stage: XLogData and keepalives in, status updates out.
//!
//! In: the payload of one CopyData frame. Out: what it carries. Manual: "Streaming Replication Protocol".
//! The LSNs of XLogData's own header are never a progress mark: for logical slots both are 0/0 on some messages.

use super::reader::{DecodeError, Reader};
use bytes::{BufMut, BytesMut};
use postgres_types::PgLsn;

/// What the server sends inside CopyData.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplicationMessage<'a> {
    /// `w`: one message of the output plugin.
    XLogData {
        /// The WAL position that the server names; informative only.
        wal_start: PgLsn,
        /// When the server sent it, in µs since 2000-01-01 UTC.
        sent_at_us: i64,
        /// The output plugin's message.
        data: &'a [u8],
    },
    /// `k`: all that commits at or below `wal_end` has been sent before it.
    Keepalive {
        /// How far the server has read the WAL.
        wal_end: PgLsn,
        /// The server wants a status update at once.
        reply_requested: bool,
    },
}

/// Reads the payload of one CopyData frame.
///
/// # Errors
/// A truncated or unknown message, with field and offset.
#[inline]
pub fn decode(payload: &[u8]) -> Result<ReplicationMessage<'_>, DecodeError> {
    let mut reader = Reader::new("CopyData", payload);
    match reader.u8("tag")? {
        b'w' => {
            let mut reader = reader.named("XLogData");
            let wal_start = reader.lsn("wal_start")?;
            reader.lsn("wal_end")?;
            let sent_at_us = reader.i64("sent_at")?;
            Ok(ReplicationMessage::XLogData {
                wal_start,
                sent_at_us,
                data: reader.rest(),
            })
        }
        b'k' => {
            let mut reader = reader.named("Keepalive");
            let wal_end = reader.lsn("wal_end")?;
            reader.i64("sent_at")?;
            let reply_requested = reader.u8("reply_requested")? != 0;
            reader.finish()?;
            Ok(ReplicationMessage::Keepalive {
                wal_end,
                reply_requested,
            })
        }
        tag => Err(reader.unknown("tag", 0, tag.into())),
    }
}

/// A standby status update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatusUpdate {
    /// How far the WAL has been received.
    pub write_lsn: PgLsn,
    /// What the slot may forget; 0 leaves the slot where it is.
    pub flush_lsn: PgLsn,
    /// Up to where everything is in the stream. The server only shows it, as `replay_lsn`.
    pub apply_lsn: PgLsn,
    /// Asks the server for a keepalive at once.
    pub reply_requested: bool,
}

impl StatusUpdate {
    /// Appends the payload of the CopyData frame. `clock_us` is µs since 2000-01-01 UTC.
    pub fn encode(&self, clock_us: i64, out: &mut BytesMut) {
        out.put_u8(b'r');
        out.put_u64(self.write_lsn.into());
        out.put_u64(self.flush_lsn.into());
        out.put_u64(self.apply_lsn.into());
        out.put_i64(clock_us);
        out.put_u8(self.reply_requested.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keepalive_is_read() {
        let mut frame = vec![b'k'];
        frame.extend_from_slice(&0x16_B374_D848_u64.to_be_bytes());
        frame.extend_from_slice(&7_i64.to_be_bytes());
        frame.push(1);
        assert_eq!(
            decode(&frame),
            Ok(ReplicationMessage::Keepalive {
                wal_end: PgLsn::from(0x16_B374_D848),
                reply_requested: true
            })
        );
        for end in 0..frame.len() {
            assert!(matches!(
                decode(&frame[..end]),
                Err(DecodeError::Truncated { .. })
            ));
        }
        frame.push(0);
        assert!(matches!(decode(&frame), Err(DecodeError::Trailing { .. })));
    }

    #[test]
    fn status_update_layout() {
        let mut out = BytesMut::new();
        StatusUpdate {
            write_lsn: PgLsn::from(9),
            flush_lsn: PgLsn::from(0),
            apply_lsn: PgLsn::from(7),
            reply_requested: true,
        }
        .encode(1, &mut out);
        assert_eq!(out.len(), 34);
        assert_eq!(out[0], b'r');
        assert_eq!(&out[1..9], &9_u64.to_be_bytes());
        assert_eq!(&out[9..17], &[0; 8]);
        assert_eq!(&out[17..25], &7_u64.to_be_bytes());
        assert_eq!(out[33], 1);
    }
}
