//! What waits to be published: messages of a source, and those that go out again before them.
//!
//! In: sources, one after the other. Out: its messages in their order, numbered; what cannot be one is told at once. Nothing is decided here.

use std::collections::VecDeque;

use tokio::sync::mpsc::{self, error::TryRecvError};

use super::source::Gap;
use super::{Outcome, Queued, Source, Sourced};

/// What is to be published, the next one first.
pub(super) struct Queue {
    source: Source,
    /// Messages that were taken from the source and are not in the stream.
    ready: VecDeque<Queued>,
    taken: u64,
    ended: bool,
    /// Why the source ended early: told once what it has given before is published.
    failed: Option<anyhow::Error>,
}

impl Queue {
    pub(super) fn new() -> Self {
        let (_, nothing) = mpsc::channel(1);
        Queue {
            source: nothing,
            ready: VecDeque::new(),
            taken: 0,
            ended: true,
            failed: None,
        }
    }

    /// Goes on with the messages of another source; what a signal has left of the one before is dropped.
    pub(super) fn feed(&mut self, source: Source) {
        self.source = source;
        self.ready.clear();
        self.ended = false;
        self.failed = None;
    }

    /// The source's next messages, to be handed to [`Self::take`]; waits for ever where one is at hand or the source has ended.
    pub(super) async fn next_of_source(&mut self) -> Option<anyhow::Result<Vec<Sourced>>> {
        match self.ended || !self.ready.is_empty() {
            true => std::future::pending().await,
            false => self.source.recv().await,
        }
    }

    /// Waits until there is a message, or the source has ended; whether there is one.
    ///
    /// # Errors
    /// The source has failed, and all that it gave before is published.
    pub(super) async fn has_next(
        &mut self,
        each: &mut impl FnMut(Outcome<'_>),
    ) -> anyhow::Result<bool> {
        while self.ready.is_empty() && !self.ended {
            let next = self.source.recv().await;
            self.take(next, each);
        }
        match self.failed.take_if(|_| self.ready.is_empty()) {
            // It was read, and the stream does not take it.
            Some(error) if error.is::<Gap>() => Err(error),
            Some(error) => Err(error.context("the source failed")),
            None => Ok(!self.ready.is_empty()),
        }
    }

    /// Reads ahead until so much is at hand, or the source has ended.
    pub(super) async fn gather(
        &mut self,
        messages: u64,
        bytes_max: usize,
        each: &mut impl FnMut(Outcome<'_>),
    ) {
        let mut bytes: usize = self.ready.iter().map(|queued| queued.item.body.len()).sum();
        while (self.ready.len() as u64) < messages && bytes < bytes_max && !self.ended {
            let before = self.ready.len();
            let next = self.source.recv().await;
            self.take(next, each);
            bytes += self
                .ready
                .range(before..)
                .map(|queued| queued.item.body.len())
                .sum::<usize>();
        }
    }

    /// A message that is at hand.
    pub(super) fn next_ready(&mut self, each: &mut impl FnMut(Outcome<'_>)) -> Option<Queued> {
        while self.ready.is_empty() && !self.ended {
            match self.source.try_recv() {
                Ok(next) => self.take(Some(next), each),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => self.ended = true,
            }
        }
        self.ready.pop_front()
    }

    /// Takes what the source has sent; nothing is its end.
    pub(super) fn take(
        &mut self,
        next: Option<anyhow::Result<Vec<Sourced>>>,
        each: &mut impl FnMut(Outcome<'_>),
    ) {
        let Some(next) = next else {
            self.ended = true;
            return;
        };
        let next = match next {
            Ok(next) => next,
            Err(error) => {
                self.failed = Some(error);
                self.ended = true;
                return;
            }
        };
        for sourced in next {
            match sourced {
                Sourced::Item(item) => {
                    self.taken += 1;
                    self.ready.push_back(Queued {
                        number: self.taken,
                        item,
                    });
                }
                Sourced::Same { name, of } => each(Outcome::Same {
                    name: &name,
                    of: &of,
                }),
                Sourced::Gone { name } => each(Outcome::Gone { name: &name }),
                Sourced::Passed => each(Outcome::Passed),
                Sourced::Untold => each(Outcome::Untold),
                Sourced::Rejected { name, why } => each(Outcome::Rejected {
                    name: &name,
                    why: &why,
                }),
            }
        }
    }

    /// Nothing more comes of the source, and nothing of what it has given.
    pub(super) fn end(&mut self, why: anyhow::Error) {
        self.ready.clear();
        self.ended = true;
        self.failed = Some(why);
    }

    pub(super) fn put_back(&mut self, mut items: VecDeque<Queued>) {
        items.append(&mut self.ready);
        self.ready = items;
    }

    /// Those that were taken from the source and are not in the stream.
    pub(super) fn ready(&self) -> impl Iterator<Item = &Queued> {
        self.ready.iter()
    }

    pub(super) fn is_done(&self) -> bool {
        self.ended && self.ready.is_empty()
    }
}
