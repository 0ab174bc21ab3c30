//! What is published outside of a lane: one command at a time, in bulk, and nothing that another has published.
//!
//! In: a lane, a source of messages. Out: them in the stream, in the source's order. Guarantees: the same way of publishing as
//! the lane's; memory does not grow with the number of messages; what a command publishes that has lost its lease, frozen for
//! however long, is refused by the server; a command that was killed is done again from what the stream holds.
//!
//! ```text
//! source (the table, the stream, dead letters) ─▶ chunks ─▶ publisher: stints of a window, behind the place that the fence tells ─▶ JetStream
//! ```

use bytes::Bytes;

mod doubt;
pub mod fence;
pub(crate) mod holder;
pub mod lease;
pub mod letters;
pub mod moved;
pub mod occurred;
mod pace;
pub mod place;
pub mod publisher;
mod queue;
pub mod range;
pub mod readdress;
mod refused;
pub mod replayed;
pub mod rows;
mod source;
mod stint;
pub mod stream;
pub mod table;

pub use source::Source;

/// A message to be published.
#[derive(Debug, Clone)]
pub struct Item {
    /// What people call it: the event's id.
    pub name: String,
    /// Where it goes.
    pub subject: Vec<u8>,
    /// Whole lines, each with its CR LF; without what belongs to its place.
    pub headers: Vec<u8>,
    /// What it carries.
    pub body: Bytes,
}

impl Item {
    /// Its headers as a block of NATS'.
    fn block(&self) -> Vec<u8> {
        [b"NATS/1.0\r\n", &*self.headers].concat()
    }
}

/// One that was taken from its source.
#[derive(Debug)]
struct Queued {
    /// Of the source's messages, from 1.
    number: u64,
    item: Item,
}

/// What a source yields.
#[derive(Debug)]
pub enum Sourced {
    /// A message.
    Item(Item),
    /// It can be none.
    Rejected {
        /// What people call it.
        name: String,
        /// Why.
        why: String,
    },
    /// Nobody has it any more.
    Gone {
        /// What people call it.
        name: String,
    },
    /// It is the event of one before.
    Same {
        /// What people call it.
        name: String,
        /// And that one.
        of: String,
    },
    /// It is not asked for.
    Passed,
    /// It does not tell whether it is asked for.
    Untold,
}

/// What has become of one that the source yielded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome<'a> {
    /// The stream has it.
    Published {
        /// What people call it.
        name: &'a str,
    },
    /// It cannot be published.
    Rejected {
        /// What people call it.
        name: &'a str,
        /// Why.
        why: &'a str,
    },
    /// Nobody has it any more.
    Gone {
        /// What people call it.
        name: &'a str,
    },
    /// It is the event of one before, and becomes what that one does.
    Same {
        /// What people call it.
        name: &'a str,
        /// And that one.
        of: &'a str,
    },
    /// It is not asked for.
    Passed,
    /// It does not tell whether it is asked for.
    Untold,
}
