//! What findings are about, and the codes that name it.

/// What a finding is about, for those who act on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// wal_level is not logical.
    WalLevel,
    /// The server is a standby.
    Standby,
    /// The relay is among the synchronous standbys.
    SynchronousStandby,
    /// The database's encoding does not guarantee UTF-8.
    Encoding,
    /// The role lacks a right.
    Privilege,
    /// There is no slot of this name.
    SlotMissing,
    /// The slot is not for this: plugin, type, database, temporary.
    SlotMismatch,
    /// The slot is lost, or about to be.
    SlotLost,
    /// The server gives up slots that nobody reads.
    IdleSlotTimeout,
    /// Somebody is still making the slot.
    SlotUnfinished,
    /// Somebody reads the slot.
    SlotActive,
    /// There is no publication of this name.
    PublicationMissing,
    /// The publication does not carry the table's inserts whole.
    PublicationMismatch,
    /// Where the slot begins is not written down.
    UnwrittenBeginning,
    /// The publication's row filter leaves rows out that nobody may have meant.
    RowFilter,
    /// `walrelay reshard` was ended before its end.
    Reshard,
    /// There is no such table.
    TableMissing,
    /// The relation is no table, or its rows never reach the WAL.
    TableMismatch,
    /// A column is missing or of a type that cannot serve.
    Column,
    /// Published rows cannot be marked or deleted, or not fast.
    AfterPublish,
    /// A relay that is away loses its slot, or fills the disk.
    SlotLimit,
    /// Slots, WAL senders or connections are taken.
    Places,
    /// Standbys that hold back what is sent to the relay.
    StandbySlots,
    /// A transaction that somebody has forgotten.
    OldTransaction,
    /// Transactions larger than decoding may keep in memory.
    Spill,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 25] = [
        Kind::WalLevel,
        Kind::Standby,
        Kind::SynchronousStandby,
        Kind::Encoding,
        Kind::Privilege,
        Kind::SlotMissing,
        Kind::SlotMismatch,
        Kind::SlotLost,
        Kind::IdleSlotTimeout,
        Kind::SlotUnfinished,
        Kind::SlotActive,
        Kind::PublicationMissing,
        Kind::PublicationMismatch,
        Kind::UnwrittenBeginning,
        Kind::RowFilter,
        Kind::Reshard,
        Kind::TableMissing,
        Kind::TableMismatch,
        Kind::Column,
        Kind::AfterPublish,
        Kind::SlotLimit,
        Kind::Places,
        Kind::StandbySlots,
        Kind::OldTransaction,
        Kind::Spill,
    ];

    /// The name in `walrelay doctor --json` and in docs/doctor.md; it stays.
    pub fn code(self) -> &'static str {
        match self {
            Kind::WalLevel => "wal-level",
            Kind::Standby => "standby",
            Kind::SynchronousStandby => "synchronous-standby",
            Kind::Encoding => "encoding",
            Kind::Privilege => "privilege",
            Kind::SlotMissing => "slot-missing",
            Kind::SlotMismatch => "slot-mismatch",
            Kind::SlotLost => "slot-lost",
            Kind::IdleSlotTimeout => "idle-slot-timeout",
            Kind::SlotUnfinished => "slot-unfinished",
            Kind::SlotActive => "slot-active",
            Kind::PublicationMissing => "publication-missing",
            Kind::PublicationMismatch => "publication-mismatch",
            Kind::UnwrittenBeginning => "unwritten-beginning",
            Kind::RowFilter => "row-filter",
            Kind::Reshard => "reshard",
            Kind::TableMissing => "table-missing",
            Kind::TableMismatch => "table-mismatch",
            Kind::Column => "column",
            Kind::AfterPublish => "after-publish",
            Kind::SlotLimit => "slot-limit",
            Kind::Places => "places",
            Kind::StandbySlots => "standby-slots",
            Kind::OldTransaction => "old-transaction",
            Kind::Spill => "spill",
        }
    }
}
