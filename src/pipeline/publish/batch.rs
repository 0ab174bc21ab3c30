//! The open batch, as fast ingest and atomic publishing number it (ADR-50).
//!
//! In: rows taken in, commits, reply subjects. Out: each message's batch and place there. Guarantee: nothing joins a batch
//! behind its commit.

use super::answer::excerpt;
use crate::pipeline::fault::Fault;

/// The batches of an epoch, of which one at most is open.
#[derive(Debug, Default)]
pub(super) struct Batches {
    opened: u64,
    open: Option<Batch>,
}

/// A batch that is open, or whose commit is under way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Batch {
    pub(super) number: u64,
    /// Rows of the epoch before the batch's first.
    pub(super) before: u64,
    pub(super) committing: bool,
}

/// A message's place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) batch: u64,
    /// From 1.
    pub(super) sequence: u64,
}

/// The batch that an answer belongs to.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) batch: Batch,
    /// `<epoch token>-<number>`
    pub(super) id: String,
}

impl Batches {
    /// How many there were.
    pub(super) fn opened(&self) -> u64 {
        self.opened
    }

    pub(super) fn open(&self) -> Option<&Batch> {
        self.open.as_ref()
    }

    #[inline]
    pub(super) fn is_committing(&self) -> bool {
        self.open.as_ref().is_some_and(|batch| batch.committing)
    }

    /// Where the next message behind so many rows goes; it may have to open a batch.
    pub(super) fn next(&self, published: u64) -> Place {
        match &self.open {
            Some(batch) => Place {
                batch: batch.number,
                sequence: published - batch.before + 1,
            },
            None => Place {
                batch: self.opened + 1,
                sequence: 1,
            },
        }
    }

    /// Takes in the next message behind so many rows.
    ///
    /// # Panics
    /// Behind a commit under way.
    pub(super) fn join(&mut self, published: u64) -> Place {
        assert!(!self.is_committing(), "a message behind a commit");
        let place = self.next(published);
        self.opened = place.batch;
        self.open.get_or_insert(Batch {
            number: place.batch,
            before: published,
            committing: false,
        });
        place
    }

    /// The open batch is under commit from here on; false where there is none, or it is already.
    pub(super) fn commit(&mut self) -> bool {
        match &mut self.open {
            Some(batch) if !batch.committing => {
                batch.committing = true;
                true
            }
            _ => false,
        }
    }

    /// The commit is answered.
    pub(super) fn close(&mut self) {
        self.open = None;
    }

    /// The open batch, provided that the answer is one of its own.
    pub(super) fn answered(&self, token: &[u8], epoch_token: &str) -> Result<Answered, Fault> {
        let Some(batch) = self.open else {
            return Err(Fault::Answer(format!("{} behind a batch", excerpt(token))));
        };
        let id = format!("{epoch_token}-{}", batch.number);
        let is_ours = token
            .strip_prefix(id.as_bytes())
            .is_some_and(|rest| rest.starts_with(b"."));
        if !is_ours {
            return Err(Fault::Answer(excerpt(token)));
        }
        Ok(Answered { batch, id })
    }
}
