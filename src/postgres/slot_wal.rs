//! What the slot keeps of the WAL, and what it may keep.

use postgres_types::PgLsn;
use serde::{Deserialize, Serialize};

use crate::pipeline::progress::WalRoom;
use crate::postgres::catalog::Inspection;

/// What a slot keeps at one moment; the names are the JSON keys.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SlotWal {
    /// `wal_status`: reserved, extended, unreserved or lost.
    pub wal_status: Option<String>,
    /// WAL that the slot keeps, in bytes; none once it is lost.
    pub retained_bytes: Option<u64>,
    /// `safe_wal_size`: bytes that may still be written before the slot is in danger, below 0 once it is; none without a limit.
    pub safe_wal_bytes: Option<i64>,
    /// `max_slot_wal_keep_size` in bytes; none without a limit.
    pub limit_bytes: Option<u64>,
}

impl SlotWal {
    /// As an inspection has found it; nothing where there is no slot.
    pub fn of(inspection: &Inspection) -> Self {
        let Some(slot) = &inspection.slot else {
            return SlotWal::default();
        };
        let end = u64::from(inspection.server.current_lsn);
        let kept = |restart_lsn: PgLsn| end.saturating_sub(restart_lsn.into());
        SlotWal {
            wal_status: slot.wal_status.clone(),
            retained_bytes: slot.restart_lsn.map(kept),
            safe_wal_bytes: slot.safe_wal_size,
            limit_bytes: inspection.server.max_slot_wal_keep_bytes,
        }
    }

    /// What the slot may keep.
    pub fn room(&self) -> WalRoom {
        WalRoom {
            limit_bytes: self.limit_bytes,
            // Below zero the next checkpoint takes the slot.
            free_bytes: self
                .safe_wal_bytes
                .map(|bytes| u64::try_from(bytes).unwrap_or(0)),
        }
    }
}
