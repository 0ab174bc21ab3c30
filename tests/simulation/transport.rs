//! The relay's two transports on simulated connections.

use crate::net::Net;
use crate::random::Random;
use bytes::{Buf, BytesMut};
use std::collections::VecDeque;
use std::io;
use std::time::Duration;
use walrelay::nats::protocol::{Op, Parser};
use walrelay::pipeline::copy_both::StatusUpdate;
use walrelay::pipeline::fault::Fault;
use walrelay::postgres::copy_both::Frame;
use walrelay::postgres::error::ReplicationError;
use walrelay::relay::lane_store::LaneStore;
use walrelay::relay::turn::{BrokerTransport, WalTransport};

/// A replication connection as its client sees it.
#[derive(Debug)]
pub(crate) struct Wal {
    pub(crate) link: usize,
    /// Pieces that have come and are not read yet.
    arrived: VecDeque<Vec<u8>>,
    at_end: bool,
    received: BytesMut,
    frame_bytes_max: usize,
    /// Of an oversized frame, still to be handed out.
    oversized_left: usize,
    /// Pieces of an oversized frame are so long at most.
    piece_bytes_max: usize,
    /// What was handed out last.
    frame: BytesMut,
    statuses: Vec<BytesMut>,
}

impl Wal {
    pub(crate) fn new(link: usize, frame_bytes_max: usize, random: &mut Random) -> Self {
        Wal {
            link,
            arrived: VecDeque::new(),
            at_end: false,
            received: BytesMut::new(),
            frame_bytes_max,
            oversized_left: 0,
            piece_bytes_max: random.between(1, 3_000) as usize,
            frame: BytesMut::new(),
            statuses: Vec::new(),
        }
    }

    /// Takes over what the network has brought, as far as the relay reads.
    pub(crate) fn pump(&mut self, net: &mut Net, reads: bool, now: Duration) {
        let link = &mut net.links[self.link];
        if !reads {
            return;
        }
        while let Some(bytes) = link.down.receive(now) {
            self.arrived.push_back(bytes);
        }
        self.at_end = link.is_at_end();
    }

    /// Whether something is at hand without the network.
    pub(crate) fn has_more(&self) -> bool {
        !self.arrived.is_empty()
    }

    /// Whether status updates wait.
    pub(crate) fn has_output(&self) -> bool {
        !self.statuses.is_empty()
    }

    /// Sends the status updates that wait.
    pub(crate) fn flush(&mut self, net: &mut Net, now: Duration, random: &mut Random) {
        let link = &mut net.links[self.link];
        for status in self.statuses.drain(..) {
            if link.server_open {
                link.up.send(&status, now, random);
            }
        }
    }
}

impl WalTransport for Wal {
    fn next_frame(&mut self) -> Result<Option<Frame<'_>>, ReplicationError> {
        if self.oversized_left > 0 {
            let len = self
                .received
                .len()
                .min(self.oversized_left)
                .min(self.piece_bytes_max);
            if len == 0 {
                return Ok(None);
            }
            self.oversized_left -= len;
            self.frame = self.received.split_to(len);
            return Ok(Some(Frame::Chunk(&self.frame)));
        }
        let Some(head) = self.received.get(1..5) else {
            return Ok(None);
        };
        let len = u32::from_be_bytes(head.try_into().expect("four bytes")) as usize - 4;
        if len > self.frame_bytes_max {
            self.received.advance(5);
            self.oversized_left = len;
            return Ok(Some(Frame::Oversized { total_len: len }));
        }
        if self.received.len() < 5 + len {
            return Ok(None);
        }
        self.received.advance(5);
        self.frame = self.received.split_to(len);
        Ok(Some(Frame::CopyData(&self.frame)))
    }

    fn read(&mut self) -> io::Result<bool> {
        match self.arrived.pop_front() {
            Some(bytes) => self.received.extend_from_slice(&bytes),
            None if self.at_end => return Err(io::ErrorKind::UnexpectedEof.into()),
            None => return Ok(false),
        }
        Ok(true)
    }

    fn queue_status(&mut self, update: StatusUpdate) {
        let mut payload = BytesMut::new();
        update.encode(0, &mut payload);
        self.statuses.push(payload);
    }

    fn write(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A connection to the broker as its client sees it.
#[derive(Debug)]
pub(crate) struct Broker {
    pub(crate) link: usize,
    inbox: String,
    parser: Parser,
    received: BytesMut,
    outgoing: BytesMut,
    store: LaneStore,
    has_moved: bool,
}

impl Broker {
    pub(crate) fn new(link: usize, store: LaneStore) -> Self {
        Broker {
            link,
            inbox: format!("_INBOX.c{link}"),
            parser: Parser::default(),
            received: BytesMut::new(),
            outgoing: BytesMut::new(),
            store,
            has_moved: false,
        }
    }

    /// Whether the next exchange moves something at once.
    pub(crate) fn is_busy(&self) -> bool {
        self.has_moved || !self.outgoing.is_empty()
    }

    /// Writes some or all, reads some; false at the end of the connection.
    pub(crate) fn exchange(&mut self, net: &mut Net, now: Duration, random: &mut Random) -> bool {
        let link = &mut net.links[self.link];
        if !link.server_open && !self.outgoing.is_empty() {
            return false;
        }
        self.has_moved = false;
        if !self.outgoing.is_empty() {
            let len = self.outgoing.len() as u64;
            let cut = if random.one_in(8) {
                random.between(1, len)
            } else {
                len
            };
            let bytes = self.outgoing.split_to(cut as usize);
            link.up.send(&bytes, now, random);
            self.has_moved = true;
        }
        let mut has_read = false;
        while let Some(bytes) = link.down.receive(now) {
            self.received.extend_from_slice(&bytes);
            has_read = true;
        }
        self.has_moved |= has_read;
        has_read || !link.is_at_end()
    }
}

impl BrokerTransport for Broker {
    fn next_op(&mut self) -> Result<Option<Op>, Fault> {
        let op = self.parser.next(&mut self.received);
        Ok(op.expect("the broker speaks the protocol"))
    }

    fn inbox(&self) -> &str {
        &self.inbox
    }

    fn outgoing(&mut self) -> &mut BytesMut {
        &mut self.outgoing
    }

    fn store(&self) -> &LaneStore {
        &self.store
    }
}
