//! One turn of an epoch's loop: answers and WAL into the engine, what it decides out of it.
//!
//! In: two transports and the time. Out: bytes for both sides, and why the epoch ends. Nothing here waits: the relay
//! runs it on sockets, the simulation on connections of its own, and both run the same steps.

#[cfg(feature = "otlp")]
mod spans;
mod trace;

use crate::nats::api::AnswerError;
use crate::nats::protocol::{Msg, Op};
use crate::pipeline::copy_both::StatusUpdate;
use crate::pipeline::engine::{Engine, Stop};
use crate::pipeline::fault::{Fault, Halt};
use crate::pipeline::oversized::ColumnFilter;
use crate::pipeline::request::Request;
use crate::pipeline::silence::Silence;
use crate::postgres::copy_both::Frame;
use crate::postgres::error::{
    Notice, PUBLICATION_MISSING, PUBLICATION_MISSING_MEND, PUBLICATION_MISSING_WHY,
    ReplicationError, SILENT, SLOT_LOST_MEND, ServerError,
};
#[cfg(feature = "otlp")]
use crate::relay::batch_spans::BatchSpans;
use crate::relay::lane_store::{Expects, LaneStore, StoreError};
use crate::relay::open_error::with_cause;
use bytes::BytesMut;
use std::collections::VecDeque;
use std::time::Duration;

/// An idle connection to the broker is asked for an answer this often, and given up after as long again.
pub(crate) const PING_INTERVAL: Duration = Duration::from_secs(5);

/// Begins the reply token of requests that are not published events, and a number follows: an answer that comes twice is not
/// the next one's.
const REQUEST_TOKEN: &str = "q";

/// WAL in, status updates out. Nothing waits.
pub trait WalTransport {
    /// The next frame of what has been read; none where more must be read first.
    ///
    /// # Errors
    /// Nothing that the protocol knows.
    fn next_frame(&mut self) -> Result<Option<Frame<'_>>, ReplicationError>;

    /// Reads what is at hand; false where nothing is.
    ///
    /// # Errors
    /// The connection is gone.
    fn read(&mut self) -> std::io::Result<bool>;

    /// Puts a status update behind what waits to be written.
    fn queue_status(&mut self, update: StatusUpdate);

    /// Writes what waits, as far as the other side takes it.
    ///
    /// # Errors
    /// The connection is gone.
    fn write(&mut self) -> std::io::Result<()>;
}

/// Requests and events to the broker out, answers in. Nothing waits.
pub trait BrokerTransport {
    /// The next operation of what has been read.
    ///
    /// # Errors
    /// Nothing that the protocol knows.
    fn next_op(&mut self) -> Result<Option<Op>, Fault>;

    /// What answers come to, with the rest of the subject behind a dot.
    fn inbox(&self) -> &str;

    /// Bytes that wait to be written.
    fn outgoing(&mut self) -> &mut BytesMut;

    /// Turns requests into bytes and bytes into replies.
    fn store(&self) -> &LaneStore;
}

/// What a turn is bounded by.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Most bytes of frames in one turn before they are handed to the socket.
    pub turn_bytes_max: usize,
    /// Largest value of a column that is gathered, in bytes.
    pub column_bytes_max: usize,
    /// Largest frame that is gathered, in bytes.
    pub frame_bytes_max: usize,
    /// Silence that the server endures; none is for ever.
    pub wal_sender_timeout: Option<Duration>,
}

/// The WAL's side of an epoch while the broker's is made anew: nothing is read, and Postgres is told that we are there.
#[derive(Debug)]
pub struct Kept<W> {
    /// The decisions.
    pub engine: Engine,
    /// The WAL.
    pub wal: W,
    limits: Limits,
    /// An oversized frame on its way: what has been kept of it, and how many bytes are still to come.
    filter: Option<(ColumnFilter, usize)>,
    notices: VecDeque<Box<ServerError>>,
}

impl<W: WalTransport> Kept<W> {
    /// When [`Self::send_status`] must be called at the latest.
    pub fn next_time(&self) -> Duration {
        self.engine.status_due()
    }

    /// Hands out the status updates that are due.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn send_status(&mut self, now: Duration) -> Result<(), Stop> {
        send_status(&mut self.engine, &mut self.wal, now)
    }

    /// Streams, with a broker.
    pub fn join<B: BrokerTransport>(self, broker: B, now: Duration) -> Turn<W, B> {
        Turn {
            filter: self.filter,
            notices: self.notices,
            ..Turn::new(self.engine, self.wal, broker, self.limits, now)
        }
    }
}

/// An epoch that streams, without its waiting.
#[derive(Debug)]
pub struct Turn<W, B> {
    /// The decisions.
    pub engine: Engine,
    /// The WAL.
    pub wal: W,
    /// The broker.
    pub broker: B,
    limits: Limits,
    /// An oversized frame on its way: what has been kept of it, and how many bytes are still to come.
    filter: Option<(ColumnFilter, usize)>,
    /// What the answer to the request on its way is; none where none is.
    expects: Option<Expects>,
    /// How many were sent.
    requests: u64,
    ping_at: Duration,
    ping_unanswered: bool,
    silence: Silence,
    /// Notices of Postgres that end nothing.
    notices: VecDeque<Box<ServerError>>,
    stop_by: Option<Duration>,
    /// Told of what leaves and of what is acknowledged.
    #[cfg(feature = "otlp")]
    spans: Option<BatchSpans>,
}

impl<W: WalTransport, B: BrokerTransport> Turn<W, B> {
    /// Begins to stream.
    pub fn new(engine: Engine, wal: W, broker: B, limits: Limits, now: Duration) -> Self {
        Turn {
            engine,
            wal,
            broker,
            limits,
            filter: None,
            expects: None,
            requests: 0,
            ping_at: now + PING_INTERVAL,
            ping_unanswered: false,
            silence: Silence::new(limits.wal_sender_timeout, now),
            notices: VecDeque::new(),
            stop_by: None,
            #[cfg(feature = "otlp")]
            spans: None,
        }
    }

    /// Leaves the broker, which is given back to be closed.
    pub fn part(self) -> (Kept<W>, B) {
        let kept = Kept {
            engine: self.engine,
            wal: self.wal,
            limits: self.limits,
            filter: self.filter,
            notices: self.notices,
        };
        (kept, self.broker)
    }

    /// Takes what is at hand on both sides and hands out what is due; true when a stop is complete.
    ///
    /// # Errors
    /// Why the epoch ends.
    pub fn run(&mut self, now: Duration) -> Result<bool, Stop> {
        let before = self.engine.in_flight();
        self.take_answers(now)?;
        self.trace_acknowledged(before);
        #[cfg(feature = "otlp")]
        self.tell_acknowledged();
        self.take_wal(now)?;
        self.engine.handle_time(now)?;
        if let Some(request) = self.engine.poll_request(now) {
            self.send(&request);
        }
        self.listen(now)?;
        self.send_status(now)?;
        self.keep_alive(now)?;
        Ok(self.engine.is_stopped(now) || self.stop_by.is_some_and(|by| now >= by))
    }

    /// When [`Self::run`] must be called at the latest.
    pub fn next_time(&mut self, now: Duration) -> Duration {
        let until = self.engine.next_time(now);
        let until = until.min(self.ping_at).min(self.silence.next_time());
        self.stop_by.map_or(until, |by| until.min(by))
    }

    /// Reads no more WAL; what is in flight is waited for until `by`.
    pub fn stop(&mut self, by: Duration) {
        self.engine.stop();
        self.stop_by = Some(by);
    }

    /// Largest frame that is gathered, in bytes.
    pub fn frame_bytes_max(&self) -> usize {
        self.limits.frame_bytes_max
    }

    /// Reads the WAL from another connection on.
    pub fn read_from(&mut self, wal: W, now: Duration) {
        self.wal = wal;
        self.filter = None;
        self.heard(now);
    }

    /// Postgres has shown that it is there.
    pub fn heard(&mut self, now: Duration) {
        self.silence.heard(now);
    }

    /// The next notice of Postgres.
    pub(crate) fn poll_notice(&mut self) -> Option<Box<ServerError>> {
        self.notices.pop_front()
    }

    /// Hands out the status updates that are due.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn send_status(&mut self, now: Duration) -> Result<(), Stop> {
        send_status(&mut self.engine, &mut self.wal, now)
    }

    fn take_answers(&mut self, now: Duration) -> Result<(), Stop> {
        while let Some(op) = self.broker.next_op()? {
            match op {
                Op::Msg(msg) => self.take_answer(&msg, now)?,
                Op::Pong => self.ping_unanswered = false,
                Op::Err(text) => return Err(self.engine.handle_error(&text).into()),
                Op::Info(info) if info.lame_duck_mode => {
                    return Err(
                        Fault::Broker("the server is shutting down (lame duck)".into()).into(),
                    );
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn take_answer(&mut self, msg: &Msg, now: Duration) -> Result<(), Stop> {
        let Some(token) = msg.below(self.broker.inbox()) else {
            return Ok(());
        };
        let number = token.strip_prefix(REQUEST_TOKEN.as_bytes());
        let Some(number) = number else {
            // `r`: an answer to a request of the start, too late to matter.
            if token.first() != Some(&b'r') {
                self.engine
                    .handle_answer(token, msg.status(), &msg.payload, now)?;
            }
            return Ok(());
        };
        if number != itoa::Buffer::new().format(self.requests).as_bytes() {
            return Ok(());
        }
        let Some(expects) = self.expects.take() else {
            return Ok(());
        };
        let answer = self.broker.store().read(expects, &msg.payload);
        let next = self.engine.handle_reply(answer.map_err(lost)?.reply())?;
        if let Some(request) = next {
            self.send(&request);
        }
        Ok(())
    }

    /// Hands over what is to be sent again and what WAL is at hand, at most a turn's worth, and ends the turn.
    fn take_wal(&mut self, now: Duration) -> Result<(), Stop> {
        let turn_bytes_max = self.limits.turn_bytes_max;
        #[cfg(feature = "otlp")]
        let unread = self.unread();
        let before = self.handed();
        self.engine
            .send_again(self.broker.outgoing(), turn_bytes_max, now)?;
        let mut dry = false;
        self.engine.place_pending(self.broker.outgoing(), now);
        while self.engine.wants_wal() && self.broker.outgoing().len() < turn_bytes_max {
            if self.take_frame(now)? {
                continue;
            }
            let read = self.wal.read();
            if !read.map_err(|error| postgres_gone(error.into()))? {
                dry = true;
                break;
            }
            self.silence.heard(now);
        }
        #[cfg(feature = "otlp")]
        self.tell_sent(unread);
        self.engine.end_turn(self.broker.outgoing(), dry);
        self.trace_batch(before);
        Ok(())
    }

    /// Takes the next frame of what has been read; false when there is none.
    fn take_frame(&mut self, now: Duration) -> Result<bool, Stop> {
        let Some(frame) = self.wal.next_frame().map_err(postgres_gone)? else {
            return Ok(false);
        };
        let engine = &mut self.engine;
        match frame {
            Frame::CopyData(payload) => {
                engine.handle_payload(payload, self.broker.outgoing(), now)?;
            }
            Frame::Oversized { total_len } => {
                let Limits {
                    column_bytes_max,
                    frame_bytes_max,
                    ..
                } = self.limits;
                self.filter = Some((
                    ColumnFilter::new(column_bytes_max, frame_bytes_max),
                    total_len,
                ));
            }
            Frame::Chunk(piece) => {
                if let Some((mut filter, left)) = self.filter.take() {
                    filter.chunk(piece);
                    let left = left - piece.len();
                    if left > 0 {
                        self.filter = Some((filter, left));
                    } else {
                        let payload = filter.finish();
                        engine.handle_payload(&payload, self.broker.outgoing(), now)?;
                    }
                }
            }
            Frame::CopyDone | Frame::CommandComplete => {
                return Err(
                    Fault::Postgres("the server ended the stream (shutdown)".into()).into(),
                );
            }
            Frame::Error(error) => {
                return Err(postgres_gone(ReplicationError::Server(error)));
            }
            Frame::Notice(notice) => match notice.notice() {
                Notice::PublicationSkipped => return Err(publication_missing(&notice)),
                Notice::StandbyAwaited | Notice::Other => self.notices.push_back(notice),
            },
        }
        Ok(true)
    }

    fn send(&mut self, request: &Request<'_>) {
        let outgoing = self.broker.store().outgoing(request);
        tracing::trace!(subject = outgoing.subject, "request to the broker");
        self.expects = Some(outgoing.expects);
        self.requests += 1;
        let reply = format!("{}.{REQUEST_TOKEN}{}", self.broker.inbox(), self.requests);
        crate::nats::encode::request(
            self.broker.outgoing(),
            &outgoing.subject,
            &reply,
            outgoing.headers.as_deref(),
            &outgoing.payload,
        );
    }

    /// Notices a connection to Postgres on which nothing comes any more.
    fn listen(&mut self, now: Duration) -> Result<(), Stop> {
        if !self.engine.wants_wal() {
            self.silence.heard(now);
        }
        if self.silence.is_over(now) {
            return Err(Fault::Postgres(SILENT.into()).into());
        }
        if self.silence.asks(now) {
            let progress = self.engine.progress();
            self.wal.queue_status(StatusUpdate {
                write_lsn: progress.received_lsn(),
                flush_lsn: 0.into(),
                apply_lsn: progress.acknowledged_lsn(),
                reply_requested: true,
            });
        }
        Ok(())
    }

    /// Notices a connection to the broker that is only half there.
    fn keep_alive(&mut self, now: Duration) -> Result<(), Stop> {
        if now < self.ping_at {
            return Ok(());
        }
        if self.ping_unanswered {
            return Err(
                Fault::Broker(format!("no answer to a ping within {PING_INTERVAL:?}")).into(),
            );
        }
        crate::nats::encode::ping(self.broker.outgoing());
        self.ping_unanswered = true;
        self.ping_at = now + PING_INTERVAL;
        Ok(())
    }
}

fn send_status(
    engine: &mut Engine,
    wal: &mut impl WalTransport,
    now: Duration,
) -> Result<(), Stop> {
    while let Some(update) = engine.poll_status(now) {
        trace::status(&update);
        wal.queue_status(update);
    }
    wal.write().map_err(|error| postgres_gone(error.into()))
}

fn lost(error: StoreError) -> Stop {
    match error {
        StoreError::NotStored(fault) => fault.into(),
        StoreError::Answer(AnswerError::Api(api)) if !api.is_stream_not_found() => {
            Fault::Broker(format!("the probe before a confirmation: {api}")).into()
        }
        error => Fault::StreamLost(with_cause(&error)).into(),
    }
}

fn publication_missing(said: &ServerError) -> Stop {
    let halt = Halt::PublicationMissing {
        what: format!("{}: {PUBLICATION_MISSING_WHY}", said.without_hint()),
        mend: PUBLICATION_MISSING_MEND.to_owned(),
    };
    halt.into()
}

/// A server that could not be looked at.
pub(super) fn missed(reason: &str) -> Fault {
    Fault::Postgres(format!("could not look at the catalog: {reason}"))
}

pub(super) fn postgres_gone(error: ReplicationError) -> Stop {
    match &error {
        ReplicationError::Io(io) if io.kind() == std::io::ErrorKind::UnexpectedEof => {
            Fault::Postgres("the server closed the connection".into()).into()
        }
        ReplicationError::Server(server) if server.code == PUBLICATION_MISSING => {
            publication_missing(server)
        }
        ReplicationError::Server(server) if server.code == "55000" => {
            let halt = Halt::Slot {
                what: error.to_string(),
                mend: format!(
                    "See with `walrelay doctor` what has become of the slot; where it is lost, {SLOT_LOST_MEND}"
                ),
            };
            halt.into()
        }
        _ => Fault::Postgres(error.bare()).into(),
    }
}

#[cfg(test)]
mod tests;
