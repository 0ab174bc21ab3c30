//! A relay of the model: what it knows, and how far it may confirm.

use super::lane::{Case, Rule};

/// A stored message; row 0 is somebody else's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Stored {
    pub row: u8,
    pub token: u8,
}

/// A message on its way to the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sent {
    pub row: u8,
    pub expected_sequence: u8,
    /// Of its epoch (chain) or batch (fast ingest).
    pub first: bool,
    pub commits: bool,
    pub token: u8,
    pub batch: u8,
}

/// The lane's last message as somebody knows it; row 0 is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Tail {
    pub row: u8,
    pub sequence: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Record {
    pub sequence: u8,
    pub tail: Tail,
    pub confirmed_lsn: u8,
    /// How many epochs have begun with one.
    pub epoch: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Memory {
    pub tail: Tail,
    pub confirmed_lsn: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    Down,
    /// Has the slot, has read stream and record, and is about to write the epoch's record.
    Opened,
    Streaming,
    Halted,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Relay {
    pub phase: Phase,
    pub frozen: bool,
    pub memory: Option<Memory>,
    /// As in its record; it outlives a resync.
    pub epoch: u8,
    /// Of the connection.
    pub token: u8,
    pub batch: u8,
    /// Rows that have come from the WAL.
    pub read: u8,
    /// The stream's last sequence at the start of the epoch, and the last row before its first.
    pub base_sequence: u8,
    pub base_row: u8,
    pub record_sequence: u8,
    pub recorded_lsn: u8,
    pub recorded_tail: Tail,
    pub overlap: bool,
    pub tail: Tail,
    pub sent: u8,
    /// The last row of a commit under way.
    pub commit: Option<u8>,
    pub batch_open: bool,
    /// What the broker has answered and the relay not read yet.
    pub answered: u8,
    pub refused: bool,
    pub acknowledged: u8,
    pub old_enough: u8,
    pub probed_lsn: u8,
    pub told_lsn: u8,
    pub on_the_way: Vec<Sent>,
    /// What an earlier connection left on the way.
    pub left_behind: Vec<Sent>,
}

impl Relay {
    pub fn down() -> Self {
        Relay {
            phase: Phase::Down,
            frozen: false,
            memory: None,
            epoch: 0,
            token: 0,
            batch: 0,
            read: 0,
            base_sequence: 0,
            base_row: 0,
            record_sequence: 0,
            recorded_lsn: 0,
            recorded_tail: Tail::default(),
            overlap: false,
            tail: Tail::default(),
            sent: 0,
            commit: None,
            batch_open: false,
            answered: 0,
            refused: false,
            acknowledged: 0,
            old_enough: 0,
            probed_lsn: 0,
            told_lsn: 0,
            on_the_way: Vec::new(),
            left_behind: Vec::new(),
        }
    }

    /// Ends the epoch: nothing of it stays but what a process remembers, and what is on the way.
    pub fn end_epoch(&mut self) {
        let memory = match self.phase {
            Phase::Streaming => Some(Memory {
                tail: self.tail,
                confirmed_lsn: self.told_lsn,
            }),
            _ => self.memory,
        };
        let mut left_behind = std::mem::take(&mut self.on_the_way);
        if left_behind.is_empty() {
            left_behind = std::mem::take(&mut self.left_behind);
        }
        *self = Relay {
            memory,
            left_behind,
            ..Relay::down()
        };
    }

    /// The row at the stream's end arrives: it counts as just acknowledged.
    pub fn meet_overlap(&mut self) {
        if std::mem::take(&mut self.overlap) {
            self.acknowledged = self.acknowledged.max(self.tail.row);
        }
    }

    pub fn is_streaming(&self) -> bool {
        self.phase == Phase::Streaming && !self.frozen
    }

    /// How far the slot may be confirmed.
    pub fn target(&self, case: &Case) -> u8 {
        let without = |rule| case.without == Some(rule);
        if self.overlap {
            let idle = (self.tail.row * 2).saturating_sub(1);
            return if without(Rule::HoldIdleWal) {
                idle.max(self.told_lsn)
            } else {
                self.told_lsn
            };
        }
        let old_enough = if without(Rule::HoldBack) {
            self.acknowledged
        } else {
            self.old_enough
        };
        let idle = u8::from(case.idle_wal && old_enough == self.acknowledged);
        (old_enough * 2 + idle).max(self.told_lsn)
    }
}
