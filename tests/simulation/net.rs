//! Connections: bytes in order, late, in pieces, and cut at any byte.

use crate::random::Random;
use std::collections::VecDeque;
use std::time::Duration;

/// One direction of a connection.
#[derive(Debug, Default)]
pub(crate) struct Pipe {
    queue: VecDeque<(Duration, Vec<u8>)>,
    last: Duration,
    /// Nothing arrives before.
    pub(crate) stalled_until: Duration,
}

impl Pipe {
    pub(crate) fn send(&mut self, bytes: &[u8], now: Duration, random: &mut Random) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let cut = if random.one_in(3) {
                random.between(1, rest.len() as u64) as usize
            } else {
                rest.len()
            };
            let at = (now + random.micros(20, 2_000))
                .max(self.last)
                .max(self.stalled_until);
            self.last = at;
            self.queue.push_back((at, rest[..cut].to_vec()));
            rest = &rest[cut..];
        }
    }

    pub(crate) fn next_time(&self) -> Option<Duration> {
        self.queue
            .front()
            .map(|(at, _)| (*at).max(self.stalled_until))
    }

    pub(crate) fn receive(&mut self, now: Duration) -> Option<Vec<u8>> {
        self.next_time().filter(|at| *at <= now)?;
        self.queue.pop_front().map(|(_, bytes)| bytes)
    }

    pub(crate) fn len(&self) -> usize {
        self.queue.iter().map(|(_, bytes)| bytes.len()).sum()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Loses everything behind a random byte.
    pub(crate) fn cut(&mut self, random: &mut Random) {
        let mut left = random.below(self.len() as u64 + 1) as usize;
        for (_, bytes) in &mut self.queue {
            bytes.truncate(left);
            left -= bytes.len();
        }
        self.queue.retain(|(_, bytes)| !bytes.is_empty());
    }

    fn clear(&mut self) {
        self.queue.clear();
    }
}

/// Which server a connection leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum To {
    Nats,
    Postgres,
}

#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) to: To,
    pub(crate) up: Pipe,
    pub(crate) down: Pipe,
    pub(crate) client_open: bool,
    pub(crate) server_open: bool,
    /// What the server has received of a frame that is not complete.
    pub(crate) partial: Vec<u8>,
}

impl Link {
    fn new(to: To) -> Self {
        Link {
            to,
            up: Pipe::default(),
            down: Pipe::default(),
            client_open: true,
            server_open: true,
            partial: Vec::new(),
        }
    }

    /// Whether the client has read all that it ever will.
    pub(crate) fn is_at_end(&self) -> bool {
        !self.server_open && self.down.is_empty()
    }

    /// Nobody hears any more of it.
    fn is_over(&self) -> bool {
        let is_read = self.to == To::Nats && self.up.is_empty();
        !self.client_open && (!self.server_open || is_read)
    }
}

/// All connections that there ever were.
#[derive(Debug, Default)]
pub(crate) struct Net {
    pub(crate) links: Vec<Link>,
    /// Those that may still carry something.
    live: Vec<usize>,
}

impl Net {
    pub(crate) fn open(&mut self, to: To) -> usize {
        self.live.push(self.links.len());
        self.links.push(Link::new(to));
        self.links.len() - 1
    }

    /// The client closes: what it had sent may still arrive, also much later.
    pub(crate) fn close(&mut self, link: usize, random: &mut Random, now: Duration) {
        let link = &mut self.links[link];
        link.client_open = false;
        link.down.clear();
        match random.below(4) {
            0 => link.up.clear(),
            1 => link.up.cut(random),
            2 => link.up.stalled_until = now + random.millis(0, 3_000),
            _ => {}
        }
    }

    /// The server, or something between, cuts.
    pub(crate) fn cut(&mut self, link: usize, random: &mut Random) {
        let link = &mut self.links[link];
        link.server_open = false;
        link.up.clear();
        link.down.cut(random);
    }

    /// Connections that may still carry something.
    pub(crate) fn live(&mut self) -> Vec<usize> {
        let links = &self.links;
        self.live.retain(|at| !links[*at].is_over());
        self.live.clone()
    }
}
