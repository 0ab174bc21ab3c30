//! What each way of publishing decides for itself.
//!
//! In: the messages in flight, answers. Out: headers, reply subjects, commits, how many rows are stored.

use super::flight::{Flight, Reply};
use super::frame::Frames;
use crate::pipeline::fault::Fault;
use crate::pipeline::lane_end::LaneEnd;
use std::fmt::Debug;

/// A way of publishing: how the broker is made to keep the order, and to leave no gap.
pub(super) trait Publisher: Debug + Send + Sync {
    /// What the start of an epoch prepares.
    fn preparation() -> Preparation
    where
        Self: Sized;

    /// Appends the headers of the next message, whole lines.
    fn write_headers(&self, flight: &Flight, headers: &mut Vec<u8>);

    /// Takes in the next message, which is for `subject`, and writes its reply subject.
    ///
    /// # Panics
    /// Behind a commit under way: the caller would be reordering.
    fn take_in(&mut self, flight: &Flight, subject: &[u8], reply: &mut Vec<u8>);

    /// The message taken in last is framed; its reply subject ends at `reply_end` of the turn's frames.
    fn framed(&mut self, reply_end: usize);

    /// Whether it takes a further message now.
    fn may_send(&self, flight: &Flight) -> bool;

    /// Ends a turn: commits what is to be committed.
    fn end_turn(&mut self, flight: &Flight, end: &TurnEnd<'_>, frames: &mut Frames<'_>);

    /// Takes an answer. Returns how many rows of the epoch are stored as far as it tells.
    ///
    /// # Errors
    /// Anything but an expected acknowledgement.
    fn answer(&mut self, flight: &Flight, reply: &Reply<'_>) -> Result<u64, Fault>;

    /// Sequence of the last acknowledged message; in a shared stream that of the lane's fence.
    fn last_sequence(&self, flight: &Flight) -> u64;

    /// Whether a batch is open, or its commit has no answer yet.
    fn has_open_batch(&self) -> bool;

    /// The name of the atomic batch whose commit has no answer yet.
    fn committing(&self, _flight: &Flight) -> Option<String> {
        None
    }

    /// How many batches were opened on this connection.
    fn batches(&self) -> u64;

    /// Whether everything in flight was refused, as the answer to its oldest message or to all of it says: none is stored.
    fn is_refused_whole(&self) -> bool;
}

/// How a turn ends.
#[derive(Debug)]
pub(super) struct TurnEnd<'a> {
    /// No further row is at hand.
    pub(super) dry: bool,
    /// The window takes no further row.
    pub(super) full: bool,
    /// The lane's last acknowledged message.
    pub(super) lane_end: Option<&'a LaneEnd>,
}

/// What a way of publishing asks of the start of an epoch, and what it makes of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preparation {
    /// Name in logs and in `status`.
    pub name: &'static str,
    /// A fence is written before the first message, and the epoch begins behind it.
    pub fenced: bool,
    /// Each message tells which one of the stream it follows: the stream is the lane's own.
    pub(crate) chained: bool,
    /// Most messages in flight on a stream with replicas, where that is fewer than configured.
    pub(crate) replicated_messages_max: Option<usize>,
}

impl Preparation {
    /// Most messages in flight on a stream with so many replicas.
    pub fn messages_max(&self, replicas: usize, configured: usize) -> usize {
        let limit = self.replicated_messages_max.filter(|_| replicas > 1);
        limit.map_or(configured, |limit| limit.min(configured))
    }
}
