//! One epoch's loop: bytes of both sockets into the engine, what it decides out of it.
//!
//! In: an [`Epoch`], a shutdown signal. Out: why it ended. All decisions are the engine's; this loop only moves bytes
//! and tells the time. It is one task: nothing here waits for one side without listening to the other.

use crate::nats::api::{AnswerError, StoredMessage, StreamInfo};
use crate::nats::protocol::{Msg, Op};
use crate::nats::stream::lane_record_subject;
use crate::pipeline::copy_both::StatusUpdate;
use crate::pipeline::engine::{Note, Request, Stop};
use crate::pipeline::fault::{Fault, Halt};
use crate::pipeline::silence::Silence;
use crate::pipeline::skim::Skim;
use crate::postgres::copy_both::{CopyBoth, Frame};
use crate::postgres::error::{
    Notice, PUBLICATION_MISSING, PUBLICATION_MISSING_MEND, ReplicationError, SILENT, ServerError,
    log_notice,
};
use crate::relay::Shutdown;
use crate::relay::broker::{record_headers, stored_record, with_cause};
use crate::relay::clock::{self, Clock};
use crate::relay::log::{StandbyWait, StartLine};
use crate::relay::open::Epoch;
use crate::relay::status::{Board, EpochMarks};
use crate::relay::watch::Look;
use futures_util::FutureExt;
use std::time::Duration;

/// Most bytes of frames in one turn before they are handed to the socket.
const TURN_BYTES_MAX: usize = 1 << 20;
/// An idle connection to the broker is asked for a sign of life this often, and given up after as long again.
const PING_INTERVAL: Duration = Duration::from_secs(5);
/// The status that others see is so old at most.
const REPORT_INTERVAL: Duration = Duration::from_millis(100);

/// A broker that has lost messages may be without a leader for the record of that: so long it is tried, with pauses.
const KEEP_HALT_LIMIT: Duration = Duration::from_secs(20);
const KEEP_HALT_PAUSE: Duration = Duration::from_millis(250);

/// Reply tokens of requests that are not published events.
const RECORD_TOKEN: &str = "q.record";
const INFO_TOKEN: &str = "q.info";
const MESSAGE_TOKEN: &str = "q.message";

/// An epoch and what the loop itself remembers.
pub(super) struct Drive<'a> {
    epoch: Epoch,
    clock: Clock,
    slot: &'a str,
    /// An oversized frame on its way: what has been kept of it, and how many bytes are still to come.
    skim: Option<(Skim, usize)>,
    ping_at: Duration,
    ping_unanswered: bool,
    /// Of Postgres.
    silence: Silence,
    standby: StandbyWait,
    board: &'a Board,
    reported: EpochMarks,
    report_at: Duration,
    /// The line of the start, until it is said.
    start_line: Option<StartLine>,
    began: Duration,
}

/// How the loop ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// By the shutdown signal, everything in flight acknowledged.
    Stopped,
    /// By anything else.
    Stop(Stop),
}

impl<'a> Drive<'a> {
    pub(super) fn new(
        epoch: Epoch,
        start_line: StartLine,
        clock: Clock,
        slot: &'a str,
        board: &'a Board,
    ) -> Self {
        let began = clock.now();
        let ping_at = began + PING_INTERVAL;
        Drive {
            start_line: Some(start_line),
            began,
            standby: StandbyWait::default(),
            silence: Silence::new(epoch.wal_sender_timeout, began),
            epoch,
            clock,
            slot,
            skim: None,
            ping_at,
            ping_unanswered: false,
            board,
            reported: EpochMarks::default(),
            report_at: Duration::ZERO,
        }
    }

    pub(super) fn epoch(&self) -> &Epoch {
        &self.epoch
    }

    /// Whether the epoch is known to have got over what ended the one before.
    pub(super) fn is_well(&self) -> bool {
        self.start_line.is_none()
    }

    /// Runs until the epoch ends.
    pub(super) async fn run(&mut self, shutdown: &mut Shutdown, limit: Duration) -> Ended {
        let ended = self.stream(shutdown, limit).await;
        // What came together with the end.
        self.log_notes();
        match ended {
            Ok(()) => Ended::Stopped,
            Err(stop) => Ended::Stop(stop),
        }
    }

    async fn stream(&mut self, shutdown: &mut Shutdown, limit: Duration) -> Result<(), Stop> {
        let mut stop_by = None;
        loop {
            let now = self.clock.now();
            self.take_answers(now)?;
            self.take_wal(now)?;
            self.standby
                .passed(self.epoch.engine.counters().transactions);
            self.epoch.engine.handle_time(now)?;
            self.send_requests(now);
            self.listen(now)?;
            self.send_status(now)?;
            self.log_notes();
            self.keep_alive(now)?;
            if self.epoch.engine.is_stopped(now) || stop_by.is_some_and(|by| now >= by) {
                return Ok(());
            }
            let mut until = self.epoch.engine.next_time(now).min(self.ping_at);
            until = until.min(self.silence.next_time());
            if let Some(by) = stop_by {
                until = until.min(by);
            }
            for at in [self.report(now), self.say_start(now)]
                .into_iter()
                .flatten()
            {
                until = until.min(at);
            }
            let reads = self.epoch.engine.wants_wal();
            let Epoch {
                wal, broker, watch, ..
            } = &mut self.epoch;
            tokio::select! {
                exchanged = broker.connection.exchange() => {
                    exchanged.map_err(|error| broker_gone(&error))?;
                }
                moved = move_wal(wal, reads) => {
                    moved.map_err(|error| postgres_gone(error.into()))?;
                    self.silence.heard(self.clock.now());
                }
                look = watch.look() => {
                    let Look {
                        carrier,
                        room,
                        is_decoding,
                        server_lsn,
                        confirmed_lsn,
                    } = look?;
                    if is_decoding {
                        self.silence.heard(self.clock.now());
                    }
                    self.board.looked(server_lsn, confirmed_lsn);
                    self.epoch.engine.carried(carrier);
                    self.epoch.engine.may_keep(room);
                }
                () = clock::sleep_until(self.clock, until) => {}
                () = shutdown.wait(), if stop_by.is_none() => {
                    let in_flight = self.epoch.engine.in_flight();
                    tracing::info!(in_flight, "reading stops, waiting for what is in flight");
                    self.epoch.engine.stop();
                    stop_by = Some(self.clock.now() + limit);
                }
            }
        }
    }

    fn take_answers(&mut self, now: Duration) -> Result<(), Stop> {
        while let Some(op) = self
            .epoch
            .broker
            .connection
            .next_op()
            .map_err(|error| Fault::Broker(error.to_string()))?
        {
            match op {
                Op::Msg(msg) => self.take_answer(&msg, now)?,
                Op::Pong => self.ping_unanswered = false,
                Op::Err(text) => return Err(self.epoch.engine.handle_error(&text).into()),
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
        let Some(token) = self.epoch.broker.connection.inbox_token(msg) else {
            return Ok(());
        };
        let engine = &mut self.epoch.engine;
        let next = if token == RECORD_TOKEN.as_bytes() {
            self.epoch.record_sequence = stored_record(&msg.payload)?;
            engine.recorded()
        } else if token == INFO_TOKEN.as_bytes() {
            let info = StreamInfo::parse(&msg.payload).map_err(|error| lost(&error))?;
            engine.informed(&info.created, info.state.last_seq)?
        } else if token == MESSAGE_TOKEN.as_bytes() {
            let found = StoredMessage::parse(&msg.payload).map_err(|error| lost(&error))?;
            engine.seen(found.as_ref().map(StoredMessage::for_probe).as_ref())?
        } else if token.first() == Some(&b'r') {
            // An answer to a request of the start, too late to matter.
            None
        } else {
            engine.handle_answer(token, msg.status(), &msg.payload, now)?;
            None
        };
        if let Some(request) = next {
            self.send(request);
        }
        Ok(())
    }

    /// Hands over what WAL is at hand, at most a turn's worth, and ends the turn.
    fn take_wal(&mut self, now: Duration) -> Result<(), Stop> {
        let mut dry = false;
        while self.epoch.engine.wants_wal()
            && self.epoch.broker.connection.pending_bytes() < TURN_BYTES_MAX
        {
            if self.take_frame(now)? {
                continue;
            }
            match self.epoch.wal.fill().now_or_never() {
                Some(filled) => {
                    filled.map_err(|error| postgres_gone(error.into()))?;
                    self.silence.heard(now);
                }
                None => {
                    dry = true;
                    break;
                }
            }
        }
        let Epoch { engine, broker, .. } = &mut self.epoch;
        engine.end_turn(broker.connection.outgoing(), dry);
        Ok(())
    }

    /// Takes the next frame of what has been read; false when there is none.
    fn take_frame(&mut self, now: Duration) -> Result<bool, Stop> {
        let Epoch {
            engine,
            wal,
            broker,
            column_bytes_max,
            frame_bytes_max,
            ..
        } = &mut self.epoch;
        let Some(frame) = wal.next_frame().map_err(postgres_gone)? else {
            return Ok(false);
        };
        match frame {
            Frame::CopyData(payload) => {
                engine.handle_payload(payload, broker.connection.outgoing(), now)?;
            }
            Frame::Oversized { total_len } => {
                let skim = Skim::new(*column_bytes_max, *frame_bytes_max);
                self.skim = Some((skim, total_len));
            }
            Frame::Chunk(piece) => {
                if let Some((mut skim, left)) = self.skim.take() {
                    skim.chunk(piece);
                    let left = left - piece.len();
                    if left > 0 {
                        self.skim = Some((skim, left));
                    } else {
                        let payload = skim.finish();
                        engine.handle_payload(&payload, broker.connection.outgoing(), now)?;
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
                Notice::StandbyAwaited => {
                    let transactions = engine.counters().transactions;
                    self.standby.awaited(&notice, transactions);
                }
                Notice::Other => log_notice(&notice),
            },
        }
        Ok(true)
    }

    fn send_requests(&mut self, now: Duration) {
        if let Some(request) = self.epoch.engine.poll_request(now) {
            self.send(request);
        }
    }

    fn send(&mut self, request: Request) {
        let broker = &mut self.epoch.broker;
        match request {
            Request::Record(record) => {
                let subject = lane_record_subject(broker.api.stream(), self.slot);
                let headers = record_headers(self.epoch.record_sequence);
                let reply = format!("{}.{RECORD_TOKEN}", broker.connection.inbox());
                crate::nats::encode::publish_with_headers(
                    broker.connection.outgoing(),
                    &subject,
                    Some(&reply),
                    &headers,
                    &record.to_json(),
                );
            }
            Request::Info => {
                let request = broker.api.info_request();
                broker
                    .connection
                    .queue_request(INFO_TOKEN, &request.subject, &request.payload);
            }
            Request::Message(sequence) => {
                let request = broker.api.message_get_request(sequence);
                broker
                    .connection
                    .queue_request(MESSAGE_TOKEN, &request.subject, &request.payload);
            }
        }
    }

    /// Notices a connection to Postgres on which nothing comes any more.
    fn listen(&mut self, now: Duration) -> Result<(), Stop> {
        if !self.epoch.engine.wants_wal() {
            self.silence.heard(now);
        }
        if self.silence.is_over(now) {
            return Err(Fault::Postgres(SILENT.into()).into());
        }
        if self.silence.asks(now) {
            let progress = self.epoch.engine.progress();
            let question = StatusUpdate {
                write_lsn: progress.received_lsn(),
                flush_lsn: 0.into(),
                apply_lsn: progress.acknowledged_lsn(),
                reply_requested: true,
            };
            self.epoch
                .wal
                .queue_status(question, clock::postgres_clock_us());
        }
        Ok(())
    }

    fn send_status(&mut self, now: Duration) -> Result<(), Stop> {
        while let Some(update) = self.epoch.engine.poll_status(now) {
            self.epoch
                .wal
                .queue_status(update, clock::postgres_clock_us());
        }
        if self.epoch.wal.has_output() {
            self.epoch
                .wal
                .try_write()
                .map_err(|error| postgres_gone(error.into()))?;
        }
        Ok(())
    }

    /// Tells of the dead letters that the epoch before had in flight, as far as the stream has them.
    pub(super) fn log_stored(&self, dead_letters: Vec<Note>) {
        let tail = self.epoch.summary.plan.tail.as_ref();
        for note in dead_letters {
            if let Note::DeadLetter { position, .. } = &note
                && tail.is_some_and(|tail| *position <= tail.position)
            {
                self.log(note);
            }
        }
    }

    fn log_notes(&mut self) {
        while let Some(note) = self.epoch.engine.poll_note() {
            self.log(note);
        }
    }

    fn log(&self, note: Note) {
        match note {
            Note::DeadLetter {
                position,
                event_id,
                reject,
            } => {
                self.board.dead_letter(reject.reason());
                tracing::error!(
                    %position, event_id, reason = reject.reason(), "a row cannot be published and became a dead letter: {reject}"
                );
            }
            Note::OtherTable(table) => tracing::warn!(
                table,
                "the publication also holds another table; its rows are passed over"
            ),
            Note::HoldBackCut => tracing::warn!(
                "the slot keeps more WAL for the hold-back than it may; confirming early: a power failure of the broker now \
                     may cost events that the slot no longer has (raise max_slot_wal_keep_size or lower relay.hold_back)"
            ),
            Note::Continued(position) => {
                tracing::debug!(%position, "the WAL continues the stream");
            }
        }
    }

    /// Tells the board where the epoch is, not more often than [`REPORT_INTERVAL`]; returns when to come again.
    fn report(&mut self, now: Duration) -> Option<Duration> {
        let marks = EpochMarks::of(&self.epoch.engine);
        if marks == self.reported {
            return None;
        }
        if now < self.report_at {
            return Some(self.report_at);
        }
        self.board.report(&marks);
        self.reported = marks;
        self.report_at = now + REPORT_INTERVAL;
        None
    }

    /// Says that the epoch streams, once that is worth a line; returns when to come again.
    fn say_start(&mut self, now: Duration) -> Option<Duration> {
        let line = self.start_line.as_ref()?;
        if let Some(patience) = line.patience
            && self.epoch.engine.progress().acknowledged_rows() == 0
        {
            let quiet_at = self.began + patience;
            if now < quiet_at {
                return Some(quiet_at);
            }
            // What is in flight will tell: it is acknowledged, or the epoch ends.
            if self.epoch.engine.in_flight() > 0 {
                return None;
            }
        }
        line.log();
        self.board.streaming();
        self.start_line = None;
        None
    }

    /// Notices a connection to the broker that is only half there.
    fn keep_alive(&mut self, now: Duration) -> Result<(), Stop> {
        if now < self.ping_at {
            return Ok(());
        }
        if self.ping_unanswered {
            return Err(Fault::Broker(format!("no sign of life for {PING_INTERVAL:?}")).into());
        }
        self.epoch.broker.connection.queue_ping();
        self.ping_unanswered = true;
        self.ping_at = now + PING_INTERVAL;
        Ok(())
    }

    /// Stores what a later start could not find out again, so that it halts as well.
    pub(super) async fn keep_halt(&mut self, halt: &Halt) {
        let Halt::Replaced { sequence, .. } = halt else {
            return;
        };
        let Epoch { engine, broker, .. } = &mut self.epoch;
        // Nothing more is published behind the message in doubt.
        broker.connection.outgoing().clear();
        let begin = self.clock.now();
        while let Err(error) = broker.keep_halt(*sequence, engine.created()).await {
            if self.clock.now() >= begin + KEEP_HALT_LIMIT {
                tracing::warn!(
                    ?error,
                    "the lane record does not say why the relay halted, and a restart may go on"
                );
                return;
            }
            tokio::time::sleep(KEEP_HALT_PAUSE).await;
        }
    }

    /// Ends a stopped epoch in good order: last status update, CopyDone, both connections closed.
    pub(super) async fn finish(mut self, limit: Duration) {
        let now = self.clock.now();
        if self.send_status(now).is_ok()
            && let Err(error) = self.epoch.wal.finish(limit).await
        {
            tracing::debug!(error = %error, "the replication connection did not end in good order");
        }
        self.epoch.broker.connection.close().await;
    }
}

/// Reads WAL where there is room for it, and sends what waits for Postgres in any case.
async fn move_wal(wal: &mut CopyBoth, reads: bool) -> std::io::Result<()> {
    if reads {
        wal.fill().await.map(|_| ())
    } else {
        wal.write_some().await?;
        std::future::pending().await
    }
}

fn lost(error: &AnswerError) -> Stop {
    match error {
        AnswerError::Api(api) if !api.is_stream_not_found() => {
            Fault::Broker(format!("the probe before a confirmation: {api}")).into()
        }
        error => Fault::StreamLost(with_cause(error)).into(),
    }
}

fn broker_gone(error: &std::io::Error) -> Stop {
    Fault::Broker(match error.kind() {
        std::io::ErrorKind::UnexpectedEof => "the server closed the connection".into(),
        _ => error.to_string(),
    })
    .into()
}

fn publication_missing(said: &ServerError) -> Stop {
    Halt::Slot(format!("{said}: {PUBLICATION_MISSING_MEND}")).into()
}

fn postgres_gone(error: ReplicationError) -> Stop {
    match &error {
        ReplicationError::Io(io) if io.kind() == std::io::ErrorKind::UnexpectedEof => {
            Fault::Postgres("the server closed the connection".into()).into()
        }
        ReplicationError::Server(server) if server.code == PUBLICATION_MISSING => {
            publication_missing(server)
        }
        ReplicationError::Server(server) if server.code == "55000" => {
            Halt::Slot(error.to_string()).into()
        }
        _ => Fault::Postgres(error.bare()).into(),
    }
}
