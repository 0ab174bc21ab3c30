//! The choice among the ways of publishing.
//!
//! In: what server and stream offer. Out: a way. This is the only place that names all of them: a further one is a file
//! beside this one and a variant here.

use super::atomic::Atomic;
use super::chain::Chain;
use super::fast::FastIngest;
use super::publisher::{Preparation, Publisher};

/// How messages are published so that the broker keeps the order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Batches of fast ingest with gap `fail`.
    FastIngest,
    /// Ordinary publishes, each expecting the one before.
    Chain,
    /// Atomic batches behind a fence, on a stream that others write to.
    Atomic,
}

/// What decides how a stream is published to.
#[derive(Debug, Clone, Copy)]
pub struct Offer {
    /// The server's version: major, minor.
    pub server: (u16, u16),
    /// The stream takes batches of fast ingest.
    pub allow_batched: bool,
    /// The stream takes atomic batches.
    pub allow_atomic: bool,
    /// Others write to the stream too.
    pub shared: bool,
}

/// Why a stream cannot be published to in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoMode {
    /// The server has no atomic batches.
    #[error(
        "a shared stream needs atomic batches: upgrade nats-server {}.{} to 2.12 or newer",
        server.0,
        server.1
    )]
    ServerTooOld {
        /// Its version: major, minor.
        server: (u16, u16),
    },
    /// The stream does not take them.
    #[error("a shared stream needs atomic batches, and this one has them off")]
    AtomicOff,
}

impl Mode {
    /// Picks the best way that server and stream offer.
    ///
    /// # Errors
    /// A shared stream on a server, or with a configuration, that has no atomic batches.
    pub fn pick(offer: &Offer) -> Result<Self, NoMode> {
        if offer.shared {
            if offer.server < (2, 12) {
                return Err(NoMode::ServerTooOld {
                    server: offer.server,
                });
            }
            return offer
                .allow_atomic
                .then_some(Mode::Atomic)
                .ok_or(NoMode::AtomicOff);
        }
        if offer.server >= (2, 14) && offer.allow_batched {
            return Ok(Mode::FastIngest);
        }
        Ok(Mode::Chain)
    }

    /// What the start of an epoch prepares.
    pub fn preparation(self) -> Preparation {
        match self {
            Mode::FastIngest => FastIngest::preparation(),
            Mode::Chain => Chain::preparation(),
            Mode::Atomic => Atomic::preparation(),
        }
    }

    /// Begins an epoch behind this sequence.
    pub(super) fn publisher(self, base_sequence: u64) -> Box<dyn Publisher> {
        match self {
            Mode::FastIngest => Box::new(FastIngest::default()),
            Mode::Chain => Box::new(Chain::default()),
            Mode::Atomic => Box::new(Atomic::new(base_sequence)),
        }
    }

    /// Name in logs and in `status`.
    pub fn name(self) -> &'static str {
        self.preparation().name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(shared: bool, minor: u16, allow_batched: bool, allow_atomic: bool) -> Offer {
        Offer {
            server: (2, minor),
            allow_batched,
            allow_atomic,
            shared,
        }
    }

    #[test]
    fn the_best_way_on_offer_is_picked() {
        assert_eq!(
            Mode::pick(&offer(false, 14, true, true)),
            Ok(Mode::FastIngest)
        );
        assert_eq!(Mode::pick(&offer(false, 14, false, true)), Ok(Mode::Chain));
        assert_eq!(Mode::pick(&offer(false, 13, true, true)), Ok(Mode::Chain));
        assert_eq!(Mode::pick(&offer(true, 12, true, true)), Ok(Mode::Atomic));
    }

    #[test]
    fn a_shared_stream_has_no_other_way_than_atomic_batches() {
        assert_eq!(
            Mode::pick(&offer(true, 15, true, false)),
            Err(NoMode::AtomicOff)
        );
        assert_eq!(
            Mode::pick(&offer(true, 11, true, true)),
            Err(NoMode::ServerTooOld { server: (2, 11) })
        );
    }

    #[test]
    fn only_the_chain_is_slowed_down_by_replicas() {
        let messages = |mode: Mode, replicas| mode.preparation().messages_max(replicas, 500);
        assert_eq!(messages(Mode::Chain, 3), 1);
        assert_eq!(messages(Mode::Chain, 1), 500);
        assert_eq!(messages(Mode::FastIngest, 3), 500);
        assert_eq!(messages(Mode::Atomic, 3), 500);
    }
}
