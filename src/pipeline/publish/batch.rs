//! The batches as fast ingest and atomic publishing number them (ADR-50).
//!
//! In: rows taken in, commits, reply subjects. Out: each message's batch and place there. Guarantee: nothing joins a batch
//! behind its commit, and one commit at most is under way.

use super::answer::excerpt;
use crate::pipeline::fault::Fault;

/// The batches of an epoch.
#[derive(Debug, Default)]
pub(super) struct Batches {
    opened: u64,
    /// Takes further messages.
    open: Option<Batch>,
    /// Its commit has no answer yet; and how many rows of the epoch there were with its last.
    committing: Option<(Batch, u64)>,
}

/// A batch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Batch {
    pub(super) number: u64,
    /// Rows of the epoch before the batch's first.
    pub(super) before: u64,
}

impl Batch {
    /// Its name.
    pub(super) fn id(&self, epoch_token: &str) -> String {
        format!("{epoch_token}-{}", self.number)
    }
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
    /// How many rows of the epoch there were with its last, once its commit is under way.
    pub(super) through: Option<u64>,
}

impl Batches {
    /// How many there were.
    pub(super) fn opened(&self) -> u64 {
        self.opened
    }

    /// The one that takes messages.
    #[inline]
    pub(super) fn open(&self) -> Option<&Batch> {
        self.open.as_ref()
    }

    #[inline]
    pub(super) fn is_committing(&self) -> bool {
        self.committing.is_some()
    }

    /// The one whose commit has no answer yet.
    pub(super) fn committing(&self) -> Option<&Batch> {
        self.committing.as_ref().map(|(batch, _)| batch)
    }

    /// Whether the fate of one is not known yet.
    pub(super) fn any(&self) -> bool {
        self.open.is_some() || self.committing.is_some()
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
    pub(super) fn join(&mut self, published: u64) -> Place {
        let place = self.next(published);
        self.opened = place.batch;
        self.open.get_or_insert(Batch {
            number: place.batch,
            before: published,
        });
        place
    }

    /// Whether a batch can be committed now.
    pub(super) fn may_commit(&self) -> bool {
        self.open.is_some() && self.committing.is_none()
    }

    /// The open batch, if there is one, is under commit from here on, behind so many rows.
    pub(super) fn commit(&mut self, published: u64) {
        self.committing = self.open.take().map(|batch| (batch, published));
    }

    /// The commit is answered.
    pub(super) fn close(&mut self) {
        self.committing = None;
    }

    /// The batch that the answer is one of.
    pub(super) fn answered(&self, token: &[u8], epoch_token: &str) -> Result<Answered, Fault> {
        if !self.any() {
            return Err(Fault::Answer(format!("{} behind a batch", excerpt(token))));
        }
        let committing = self
            .committing
            .map(|(batch, through)| (batch, Some(through)));
        let open = self.open.map(|batch| (batch, None));
        for (batch, through) in committing.into_iter().chain(open) {
            let id = batch.id(epoch_token);
            let rest = token.strip_prefix(id.as_bytes());
            if rest.is_some_and(|rest| rest.starts_with(b".")) {
                return Ok(Answered { batch, id, through });
            }
        }
        Err(Fault::Answer(excerpt(token)))
    }
}
