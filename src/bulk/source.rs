//! How a source hands over what it reads: by the chunk, so that who reads and who publishes seldom wake each other.
//!
//! In: what a source yields, one after the other. Out: chunks of it, in its order. Guarantee: few are read ahead, however large
//! messages are; what was read before an error comes before it.

use anyhow::Context as _;
use tokio::runtime::Builder;
use tokio::sync::mpsc;

use super::Sourced;

/// What a chunk has at most; one message may have more bytes.
const CHUNK_MESSAGES: usize = 256;
const CHUNK_BYTES: usize = 1 << 18;
/// Chunks that are read ahead.
pub(super) const AHEAD: usize = 4;

/// A source that reads ahead, a little.
pub type Source = mpsc::Receiver<anyhow::Result<Vec<Sourced>>>;

/// Where a source puts what it reads.
pub(super) struct Sink {
    sender: mpsc::Sender<anyhow::Result<Vec<Sourced>>>,
    chunk: Vec<Sourced>,
    bytes: usize,
}

/// Whoever took what is read has gone, and misses nothing.
#[derive(Debug, thiserror::Error)]
#[error("nobody takes what is read")]
pub(super) struct Unwanted;

/// What is asked for and cannot be published. Nothing comes behind it: the next run goes on behind the last one that came, and
/// would never look at it again.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Gap(String);

impl Gap {
    pub(super) fn new(name: &str, why: &str) -> Self {
        Gap(format!(
            "{name} cannot be published, nor what is behind it; mend that, and run this again: {why}"
        ))
    }
}

impl Sink {
    /// Hands it over, together with those around it.
    pub(super) async fn put(&mut self, sourced: Sourced) -> Result<(), Unwanted> {
        if let Sourced::Item(item) = &sourced {
            self.bytes += item.body.len();
        }
        self.chunk.push(sourced);
        match self.chunk.len() >= CHUNK_MESSAGES || self.bytes >= CHUNK_BYTES {
            true => self.flush().await,
            false => Ok(()),
        }
    }

    async fn flush(&mut self) -> Result<(), Unwanted> {
        self.bytes = 0;
        let chunk = std::mem::take(&mut self.chunk);
        self.sender.send(Ok(chunk)).await.map_err(|_| Unwanted)
    }
}

/// A source that reads on a thread of its own, and on connections that it makes there: to take apart what is read costs as much as
/// to publish it.
pub(super) fn on_thread(
    read: impl AsyncFnOnce(&mut Sink) -> anyhow::Result<()> + Send + 'static,
) -> Source {
    let (sender, receiver) = mpsc::channel(AHEAD);
    std::thread::spawn(move || {
        let mut sink = Sink {
            sender,
            chunk: Vec::new(),
            bytes: 0,
        };
        let run = async {
            let read = read(&mut sink).await;
            // With nobody there to take it, nobody misses it.
            let _ = sink.flush().await;
            read
        };
        let runtime = Builder::new_current_thread().enable_all().build();
        let read = runtime.context("the runtime cannot start");
        if let Err(error) = read.and_then(|runtime| runtime.block_on(run)) {
            let _ = sink.sender.blocking_send(Err(error));
        }
    });
    receiver
}
