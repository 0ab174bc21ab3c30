//! The lines of the log about a slot that runs out of the WAL that it may keep.

use crate::pipeline::room::Room;
use crate::postgres::slot_wal::SlotWal;

/// What to do about a slot that keeps much.
const SLOT_REMEDY: &str =
    "`walrelay status` says what the relay waits for; raise max_slot_wal_keep_size meanwhile";

/// How much the slot may still keep has changed.
pub(super) fn tell(room: Room, wal: &SlotWal) {
    let (kept, left) = (wal.retained_bytes, wal.safe_wal_bytes);
    let limit = wal.limit_bytes;
    match room {
        Room::Ample => tracing::info!(
            retained_bytes = kept,
            safe_wal_bytes = left,
            "the slot has room again: more than half of max_slot_wal_keep_size is free"
        ),
        Room::BelowHalf => tracing::warn!(
            retained_bytes = kept,
            safe_wal_bytes = left,
            limit_bytes = limit,
            "less than half of max_slot_wal_keep_size is free for the slot: {SLOT_REMEDY}"
        ),
        Room::BelowFifth => tracing::error!(
            retained_bytes = kept,
            safe_wal_bytes = left,
            limit_bytes = limit,
            "less than a fifth of max_slot_wal_keep_size is free for the slot, which is lost once nothing is: {SLOT_REMEDY}"
        ),
    }
}
