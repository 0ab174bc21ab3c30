//! One epoch's loop: bytes of both sockets into the engine, what it decides out of it.
//!
//! In: an [`Epoch`], a shutdown signal. Out: why it ended. All decisions are the engine's; this loop only moves bytes
//! and tells the time. It is one task: nothing here waits for one side without listening to the other.

use crate::nats::protocol::Op;
use crate::pipeline::commit_time::CommitTimes;
use crate::pipeline::copy_both::StatusUpdate;
use crate::pipeline::engine::{Engine, Note, Stop};
use crate::pipeline::fault::Fault;
use crate::pipeline::limit::SizeLimit;
use crate::pipeline::relations::Foreign;
use crate::pipeline::sight::{self, Sight};
use crate::pipeline::source::PassedOver;
use crate::postgres::copy_both::{CopyBoth, Frame};
use crate::postgres::error::{Notice, ReplicationError, log_notice};
use crate::relay::Shutdown;
use crate::relay::board::Board;
use crate::relay::broker::Broker;
use crate::relay::clock::{self, Clock};
use crate::relay::crossing;
use crate::relay::epoch_marks::EpochMarks;
use crate::relay::lane_store::LaneStore;
use crate::relay::log::{DeadLetterLog, StandbyWait, StartLine};
use crate::relay::open::{self, Epoch, Inherited};
use crate::relay::open_error::{OpenError, with_cause};
use crate::relay::settings::Settings;
#[cfg(feature = "otlp")]
use crate::relay::span_queue::SpanLane;
use crate::relay::turn::{BrokerTransport, WalTransport, missed, postgres_gone};
use crate::relay::watch::{Look, Looked};
use bytes::BytesMut;
use futures_util::FutureExt;
use std::io;
use std::pin::Pin;
use std::time::Duration;

/// The status that others see is so old at most.
const REPORT_INTERVAL: Duration = Duration::from_millis(100);

/// An epoch and what the loop itself remembers.
pub(super) struct Drive<'a> {
    epoch: Epoch,
    clock: Clock,
    told: Told,
    board: &'a Board,
    settings: &'a Settings,
    /// The look at how large a message may be, while it is under way.
    limit: Option<LimitLook<'a>>,
    /// The wait for other lanes, while it is under way.
    crossing: Option<Pin<Box<dyn Future<Output = ()> + Send + 'a>>>,
    reported: EpochMarks,
    report_at: Duration,
    /// The line of the start, until it is said.
    start_line: Option<StartLine>,
    began: Duration,
}

type LimitLook<'a> = Pin<Box<dyn Future<Output = Option<SizeLimit>> + Send + 'a>>;

/// Waits for the end of a look, for ever where there is none.
async fn limit_seen(look: &mut Option<LimitLook<'_>>) -> Option<SizeLimit> {
    let Some(under_way) = look else {
        return std::future::pending().await;
    };
    let seen = under_way.await;
    *look = None;
    seen
}

/// Waits for other lanes, for ever where there is nothing to wait for.
async fn passed(crossing: &mut Option<Pin<Box<dyn Future<Output = ()> + Send + '_>>>) {
    let Some(under_way) = crossing else {
        return std::future::pending().await;
    };
    under_way.await;
    *crossing = None;
}

/// What a person has been told; it outlives a connection to the broker.
pub(super) struct Told {
    dead_letters: DeadLetterLog,
    standby: StandbyWait,
    sight: Sight,
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
        mut epoch: Epoch,
        start_line: StartLine,
        clock: Clock,
        board: &'a Board,
        settings: &'a Settings,
    ) -> Self {
        let began = clock.now();
        #[cfg(feature = "otlp")]
        if let Some(queue) = board.spans() {
            let lane = SpanLane::of(settings, epoch.summary.mode);
            epoch.turn.tell_batches(queue, lane);
        }
        set_clock(epoch.turn.engine.commit_times(), board, clock);
        Drive {
            start_line: Some(start_line),
            began,
            told: Told::new(began),
            epoch,
            clock,
            board,
            settings,
            limit: None,
            crossing: None,
            reported: EpochMarks::default(),
            report_at: Duration::ZERO,
        }
    }

    pub(super) fn engine(&self) -> &Engine {
        &self.epoch.turn.engine
    }

    /// Major and minor of the server's version.
    pub(super) fn nats_version(&self) -> (u16, u16) {
        self.epoch.turn.broker.server().version
    }

    /// The epoch, and what a person has been told in it.
    pub(super) fn into_epoch(self) -> (Epoch, Told) {
        (self.epoch, self.told)
    }

    /// Goes on with what a person has been told before.
    pub(super) fn with_told(self, told: Told) -> Self {
        Drive { told, ..self }
    }

    /// Whether the epoch is known to have got over what ended the one before.
    pub(super) fn is_well(&self) -> bool {
        self.start_line.is_none()
    }

    /// Reads the WAL on under the publication's next name, where it is missing under the present one; none where there is no
    /// further name.
    pub(super) async fn read_on(&mut self, inherited: &mut Inherited) -> Option<Result<(), Stop>> {
        let now = self.clock.now();
        let (name, lsn) = self.epoch.turn.engine.next_publication()?;
        let name = name.to_owned();
        tracing::info!(
            "from {lsn} on the publication has another name in the WAL: reading on as {name}"
        );
        let (settings, epoch) = (self.settings, &mut self.epoch);
        let read = open::read_on(settings, inherited, self.board, epoch, (&name, lsn), now).await;
        Some(read.map_err(|error| match error {
            OpenError::Halt(halt) => halt.into(),
            OpenError::Fault(fault) => fault.into(),
            OpenError::Permanent(error) => Fault::Unready(with_cause(error.as_ref())).into(),
            OpenError::Unfit(unfit) => Fault::Unready(unfit.reason).into(),
        }))
    }

    /// Runs until the epoch ends.
    pub(super) async fn run(&mut self, shutdown: &mut Shutdown, limit: Duration) -> Ended {
        let ended = self.stream(shutdown, limit).await;
        #[cfg(feature = "otlp")]
        self.epoch.turn.end_spans(match &ended {
            Ok(()) => "stopped",
            Err(Stop::Halt(halt)) => halt.name(),
            Err(Stop::Fault(fault)) => fault.name().1,
        });
        // What came together with the end.
        self.log_notes();
        match ended {
            Ok(()) => Ended::Stopped,
            Err(stop) => Ended::Stop(stop),
        }
    }

    async fn stream(&mut self, shutdown: &mut Shutdown, limit: Duration) -> Result<(), Stop> {
        let mut stopping = false;
        loop {
            let now = self.clock.now();
            let turned = self.epoch.turn.run(now);
            self.log_notes();
            if turned? {
                return Ok(());
            }
            let mut until = self.epoch.turn.next_time(now);
            let change = self.told.sight.poll(now);
            tell(self.board, change);
            let times = [
                self.report(now),
                self.say_start(now),
                self.told.sight.next_time(),
                self.told.dead_letters.poll(now),
            ];
            for at in times.into_iter().flatten() {
                until = until.min(at);
            }
            let reads = self.engine().wants_wal();
            self.ask();
            let Epoch { turn, watch, .. } = &mut self.epoch;
            tokio::select! {
                exchanged = turn.broker.connection.exchange() => {
                    exchanged.map_err(|error| broker_gone(&error))?;
                }
                moved = move_wal(&mut turn.wal, reads) => {
                    moved.map_err(|error| postgres_gone(error.into()))?;
                    turn.heard(self.clock.now());
                }
                looked = watch.look() => self.take_look(looked?)?,
                limit = limit_seen(&mut self.limit) => turn.engine.handle_limit(limit, self.clock.now())?,
                () = passed(&mut self.crossing) => turn.engine.crossed(),
                () = clock::sleep_until(self.clock, until) => {}
                () = shutdown.wait(), if !stopping => {
                    let in_flight = turn.engine.in_flight();
                    tracing::info!(in_flight, "stopping: no more WAL is read, waiting for messages in flight");
                    turn.stop(self.clock.now() + limit);
                    stopping = true;
                }
            }
        }
    }

    /// Asks on other connections what a rejected row waits for.
    fn ask(&mut self) {
        let Epoch { turn, watch, .. } = &mut self.epoch;
        if let Some(question) = turn.engine.poll_question() {
            watch.ask(question);
        }
        if turn.engine.poll_limit_question() {
            let advertised = turn.broker.connection.advertised();
            self.limit = Some(Box::pin(open::look_at_limit(self.settings, advertised)));
        }
        if let Some(question) = turn.engine.poll_crossing() {
            let lane = turn.engine.lane().clone();
            let across = crossing::until_across(self.settings, self.board, lane, question);
            self.crossing = Some(Box::pin(across));
        }
    }

    /// A server that cannot be looked at may be shutting down and wait for us: where the engine reads nothing, since it waits for
    /// an answer, the epoch ends.
    fn take_look(&mut self, looked: Looked) -> Result<(), Stop> {
        let now = self.clock.now();
        let turn = &mut self.epoch.turn;
        match looked {
            Looked::Seen(look) => {
                if look.is_decoding {
                    turn.heard(now);
                }
                self.told.take_look(look, &mut turn.engine, self.board, now);
            }
            Looked::Missed(reason) if turn.engine.awaits_answer() => {
                return Err(missed(&reason).into());
            }
            Looked::Missed(reason) => self.told.sight.missed(reason),
            Looked::Row(presence) => turn.engine.handle_row(&presence),
        }
        Ok(())
    }

    /// Tells of the dead letters that the epoch before had in flight, as far as the stream has them.
    pub(super) fn log_stored(&mut self, dead_letters: Vec<Note>) {
        let lane_end = self.epoch.summary.plan.lane_end.as_ref();
        let lane_end = lane_end.map(|lane_end| lane_end.position);
        for note in dead_letters {
            if let Note::DeadLetter(row) = &note
                && lane_end.is_some_and(|lane_end| row.position <= lane_end)
            {
                self.log(note);
            }
        }
    }

    fn log_notes(&mut self) {
        let transactions = self.engine().counters().transactions;
        while let Some(notice) = self.epoch.turn.poll_notice() {
            match notice.notice() {
                Notice::StandbyAwaited => self.told.standby.awaited(&notice, transactions),
                Notice::PublicationSkipped | Notice::Other => log_notice(&notice),
            }
        }
        self.told.standby.passed(transactions);
        while let Some(note) = self.epoch.turn.engine.poll_note() {
            self.log(note);
        }
    }

    fn log(&mut self, note: Note) {
        match note {
            Note::DeadLetter(row) => {
                self.board.dead_letter(row.reject.reason());
                self.told.dead_letters.stored(&row, self.clock.now());
            }
            Note::OtherTable(Foreign { table, why }) => match why {
                PassedOver::Other => tracing::warn!(
                    table,
                    "the publication also holds another table; its rows are passed over"
                ),
                PassedOver::NotYet => tracing::warn!(
                    table,
                    "rows of this table that committed before the relay first began with it are passed over: the configuration did \
                     not name it then. walrelay backfill publishes them"
                ),
                PassedOver::Elsewhere => tracing::warn!(
                    table,
                    "rows of this table are passed over: it is the outbox in other parts of the WAL, but here it has another name, \
                     or another table has its name. To publish these events, insert them into a table that the configuration names"
                ),
            },
            Note::NotTransactional => tracing::warn!(
                "a message of pg_logical_emit_message(false, …) is refused, and all others of that kind: it was written whether \
                 its transaction committed or not. Write it with true, or by the function outbox_message (sql/outbox_message.sql)"
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
        let marks = EpochMarks::of(self.engine(), now);
        if marks == self.reported {
            return None;
        }
        if now < self.report_at {
            return Some(self.report_at);
        }
        self.tell_board(&marks);
        self.reported = marks;
        self.report_at = now + REPORT_INTERVAL;
        None
    }

    /// Tells the board where the epoch is at its end.
    pub(super) fn report_end(&mut self) {
        let marks = EpochMarks::of(self.engine(), self.clock.now());
        self.tell_board(&marks);
    }

    fn tell_board(&mut self, marks: &EpochMarks) {
        let times = self.epoch.turn.engine.commit_times();
        set_clock(times, self.board, self.clock);
        self.board.took(&times.take_latencies());
        self.board.report(marks);
    }

    /// Says that the epoch streams, once that is worth a line; returns when to come again.
    fn say_start(&mut self, now: Duration) -> Option<Duration> {
        let line = self.start_line.as_ref()?;
        if let Some(patience) = line.patience
            && !self.engine().has_progressed()
        {
            let quiet_at = self.began + patience;
            if now < quiet_at {
                return Some(quiet_at);
            }
            // What is in flight will tell: it is acknowledged, or the epoch ends.
            if self.engine().in_flight() > 0 {
                return None;
            }
        }
        line.log();
        self.board.streaming();
        self.start_line = None;
        None
    }

    /// Publishes nothing more: what waits here may stand behind a message in doubt.
    pub(super) fn hush(&mut self) {
        self.epoch.turn.broker.outgoing().clear();
    }

    /// Ends a stopped epoch in good order: last status update, CopyDone, both connections closed.
    pub(super) async fn finish(self, limit: Duration) {
        let mut turn = self.epoch.turn;
        if turn.send_status(self.clock.now()).is_ok()
            && let Err(error) = turn.wal.finish(limit).await
        {
            tracing::debug!(error = %error, "the replication connection did not close cleanly");
        }
        turn.broker.connection.close().await;
        tracing::debug!("replication has ended in good order");
    }
}

impl WalTransport for CopyBoth {
    fn next_frame(&mut self) -> Result<Option<Frame<'_>>, ReplicationError> {
        CopyBoth::next_frame(self)
    }

    fn read(&mut self) -> io::Result<bool> {
        match self.fill().now_or_never() {
            Some(filled) => filled.map(|_| true),
            None => Ok(false),
        }
    }

    fn queue_status(&mut self, update: StatusUpdate) {
        CopyBoth::queue_status(self, update, clock::postgres_clock_us());
    }

    fn write(&mut self) -> io::Result<()> {
        if self.has_output() {
            self.try_write()?;
        }
        Ok(())
    }
}

impl BrokerTransport for Broker {
    fn next_op(&mut self) -> Result<Option<Op>, Fault> {
        let op = self.connection.next_op();
        match op.map_err(|error| Fault::Broker(error.to_string()))? {
            Some(Op::Err(text)) if self.may_not_listen(&text) => Ok(Some(Op::Ok)),
            Some(Op::Err(text)) => match self.denied(&text) {
                Some(fault) => Err(fault),
                None => Ok(Some(Op::Err(text))),
            },
            // What the old leader had taken and not stored is lost, and nobody answers it.
            Some(Op::Msg(msg)) if msg.is_of_new_leader() => {
                let stream = self.store.stream();
                Err(Fault::Broker(format!("stream {stream} has a new leader")))
            }
            op => Ok(op),
        }
    }

    fn inbox(&self) -> &str {
        self.connection.inbox()
    }

    fn outgoing(&mut self) -> &mut BytesMut {
        self.connection.outgoing()
    }

    fn store(&self) -> &LaneStore {
        &self.store
    }
}

impl Told {
    fn new(now: Duration) -> Self {
        Told {
            dead_letters: DeadLetterLog::default(),
            standby: StandbyWait::default(),
            sight: Sight::new(now),
        }
    }

    /// Takes over what a look at the catalog has found.
    pub(super) fn take_look(
        &mut self,
        look: Look,
        engine: &mut Engine,
        board: &Board,
        now: Duration,
    ) {
        engine.carried(look.carrier);
        engine.may_keep(look.wal.room());
        engine.on_timeline(look.server_lsn);
        board.looked(look.server_lsn, look.confirmed_lsn, look.wal, look.clock);
        let change = self.sight.seen(now);
        tell(board, change);
    }
}

/// Tells how late it is at the server, as last seen.
fn set_clock(times: &mut CommitTimes, board: &Board, clock: Clock) {
    if let Some(seen) = board.server_clock() {
        times.seen_clock(seen.us, clock.at(seen.at));
    }
}

/// Tells a person that the catalog is out of sight, or that it no longer is.
fn tell(board: &Board, change: Option<sight::Change>) {
    match change {
        Some(sight::Change::Blind(reason)) => {
            let text = format!(
                "the catalog has not been seen for {:?}: {reason}. Rows of a table that leaves the publication meanwhile are \
                 passed over by Postgres; what was changed is told once it is seen again",
                sight::BLIND_AFTER
            );
            tracing::warn!("{text}");
            board.blind(Some(text));
        }
        Some(sight::Change::Sees) => {
            tracing::info!("the catalog is seen again");
            board.blind(None);
        }
        None => {}
    }
}

/// Reads WAL where there is room for it, and sends what waits for Postgres in any case.
pub(super) async fn move_wal(wal: &mut CopyBoth, reads: bool) -> std::io::Result<()> {
    if reads {
        wal.fill().await.map(|_| ())
    } else {
        wal.write_some().await?;
        std::future::pending().await
    }
}

fn broker_gone(error: &std::io::Error) -> Stop {
    Fault::Broker(match error.kind() {
        std::io::ErrorKind::UnexpectedEof => "the server closed the connection".into(),
        _ => error.to_string(),
    })
    .into()
}
