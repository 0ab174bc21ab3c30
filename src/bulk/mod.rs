//! What is published outside of a lane: one command at a time, in bulk, and nothing that another has published.
//!
//! In: a lane, a source of messages. Out: them in the stream, in the source's order. Guarantees: the same way of publishing as
//! the lane's; memory does not grow with the number of messages; what a command publishes that has lost its lease, frozen for
//! however long, is refused by the server; a command that was killed is done again from what the stream holds.
//!
//! ```text
//! source (the table, the stream, dead letters) ─▶ channel ─▶ publisher: stints of a window, behind the place that the fence tells ─▶ JetStream
//! ```

use anyhow::Context as _;
use bytes::Bytes;
use tokio::runtime::Builder;
use tokio::sync::mpsc;

pub mod fence;
pub mod lease;
pub mod letters;
pub mod moved;
pub mod occurred;
mod pace;
pub mod publisher;
mod queue;
pub mod range;
pub mod readdress;
pub mod replayed;
pub mod rows;
mod stint;
pub mod stream;
pub mod table;

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
    /// It is not asked for.
    Passed,
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
    /// It is not asked for.
    Passed,
}

/// Messages that a source reads ahead.
const AHEAD: usize = 64;

/// A source that reads ahead, a little.
pub type Source = mpsc::Receiver<anyhow::Result<Sourced>>;

/// Where a source puts what it reads.
type Sink = mpsc::Sender<anyhow::Result<Sourced>>;

/// A source that reads on a thread of its own, and on connections that it makes there: to take apart what is read costs as much as
/// to publish it.
fn on_thread<F>(read: impl FnOnce(Sink) -> F + Send + 'static) -> Source
where
    F: Future<Output = anyhow::Result<()>>,
{
    let (sender, receiver) = mpsc::channel(AHEAD);
    std::thread::spawn(move || {
        let runtime = Builder::new_current_thread().enable_all().build();
        let read = runtime
            .context("the runtime cannot start")
            .and_then(|runtime| runtime.block_on(read(sender.clone())));
        if let Err(error) = read {
            // With nobody there to take it, nobody misses it.
            let _ = sender.blocking_send(Err(error));
        }
    });
    receiver
}
