//! What ends an epoch by its silence alone, and what a parting keeps.

use super::*;
use crate::pipeline::engine::RowPresence;
use crate::pipeline::engine::sample::{
    CREATED, MS, begin, commit, id, insert, plan, relation, settings,
};

/// WAL that is at hand, frame by frame; nothing is ever read behind it.
#[derive(Debug, Default)]
struct Wal {
    frames: VecDeque<Piece>,
    current: Vec<u8>,
    statuses: Vec<StatusUpdate>,
}

#[derive(Debug)]
enum Piece {
    Whole(Vec<u8>),
    Oversized(usize),
    Part(Vec<u8>),
}

impl WalTransport for Wal {
    fn next_frame(&mut self) -> Result<Option<Frame<'_>>, ReplicationError> {
        Ok(match self.frames.pop_front() {
            None => None,
            Some(Piece::Whole(payload)) => {
                self.current = payload;
                Some(Frame::CopyData(&self.current))
            }
            Some(Piece::Oversized(total_len)) => Some(Frame::Oversized { total_len }),
            Some(Piece::Part(piece)) => {
                self.current = piece;
                Some(Frame::Chunk(&self.current))
            }
        })
    }

    fn read(&mut self) -> std::io::Result<bool> {
        Ok(false)
    }

    fn queue_status(&mut self, update: StatusUpdate) {
        self.statuses.push(update);
    }

    fn write(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A broker that says what it is given to say.
#[derive(Debug)]
struct Broker {
    says: VecDeque<Op>,
    out: BytesMut,
    store: LaneStore,
}

impl Broker {
    fn new() -> Self {
        Broker {
            says: VecDeque::new(),
            out: BytesMut::new(),
            store: LaneStore::new("$JS.API", "S", "s").expect("a stream's name"),
        }
    }

    /// How many of what was written, and forgets it.
    fn count(&mut self, operation: &str) -> usize {
        let written = self.out.split();
        String::from_utf8_lossy(&written).matches(operation).count()
    }
}

impl BrokerTransport for Broker {
    fn next_op(&mut self) -> Result<Option<Op>, Fault> {
        Ok(self.says.pop_front())
    }

    fn inbox(&self) -> &str {
        "_INBOX.a"
    }

    fn outgoing(&mut self) -> &mut BytesMut {
        &mut self.out
    }

    fn store(&self) -> &LaneStore {
        &self.store
    }
}

const WAL_SENDER_TIMEOUT: Duration = Duration::from_secs(8);

fn turn(frames: impl IntoIterator<Item = Piece>) -> Turn<Wal, Broker> {
    let limits = Limits {
        turn_bytes_max: 1 << 20,
        column_bytes_max: 1 << 10,
        frame_bytes_max: 1 << 10,
        wal_sender_timeout: Some(WAL_SENDER_TIMEOUT),
    };
    let wal = Wal {
        frames: frames.into_iter().collect(),
        ..Wal::default()
    };
    // Nothing of the broker's is missed before its pongs are.
    let mut settings = settings();
    settings.epoch.limits.ack_timeout = 100 * PING_INTERVAL;
    let engine = Engine::new(settings, &plan(None, 0), MS);
    Turn::new(engine, wal, Broker::new(), limits, MS)
}

/// Runs until `by` whenever it wants to; how the epoch ended, where it did.
fn run_until(
    turn: &mut Turn<Wal, Broker>,
    by: Duration,
    mut each: impl FnMut(&mut Turn<Wal, Broker>, Duration),
) -> Option<(Duration, Stop)> {
    let mut now = MS;
    while now < by {
        if let Err(stop) = turn.run(now) {
            return Some((now, stop));
        }
        each(turn, now);
        now = turn.next_time(now).max(now + MS);
    }
    None
}

#[test]
fn a_silent_postgres_is_asked_and_then_given_up() {
    let mut turn = turn([]);
    let answer_pings = |turn: &mut Turn<Wal, Broker>, _| {
        if turn.broker.count("PING") > 0 {
            turn.broker.says.push_back(Op::Pong);
        }
    };
    let ended = run_until(&mut turn, 4 * WAL_SENDER_TIMEOUT, answer_pings);
    let Some((at, Stop::Fault(Fault::Postgres(said)))) = ended else {
        panic!("{ended:?}");
    };
    assert_eq!(said, SILENT);
    assert!(at <= 2 * WAL_SENDER_TIMEOUT, "{at:?}");
    let asked = |update: &StatusUpdate| update.reply_requested;
    assert!(turn.wal.statuses.iter().any(asked));
}

#[test]
fn a_broker_that_answers_no_ping_is_given_up() {
    for (answers, ends) in [(true, false), (false, true)] {
        let mut turn = turn([]);
        let ended = run_until(&mut turn, 4 * PING_INTERVAL, |turn, now| {
            turn.heard(now);
            if answers && turn.broker.count("PING") > 0 {
                turn.broker.says.push_back(Op::Pong);
            }
        });
        match ended {
            None => assert!(!ends),
            Some((at, Stop::Fault(Fault::Broker(said)))) => {
                assert!(ends && said.contains("ping"), "{said}");
                assert!(at <= 2 * PING_INTERVAL + MS, "{at:?}");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn an_oversized_row_that_has_come_in_part_is_gone_on_with_behind_a_parting() {
    let mut row = insert(1, Some("a.b.v1"));
    let payload = format!("\"{}\"", "x".repeat(4 << 10));
    // The payload is the last column: its length and its text are what the frame ends with.
    row.truncate(row.len() - 2 - 4);
    row.extend(u32::try_from(payload.len()).expect("short").to_be_bytes());
    row.extend(payload.as_bytes());
    let rest = row.split_off(2 << 10);
    let mut before = turn([
        Piece::Whole(relation()),
        Piece::Whole(begin(100)),
        Piece::Oversized(row.len() + rest.len()),
        Piece::Part(row),
    ]);
    before.run(2 * MS).expect("well formed");
    assert_eq!(before.broker.count("HPUB "), 0);

    let (mut kept, _) = before.part();
    kept.wal.frames = [
        Piece::Part(rest),
        Piece::Whole(insert(2, Some("a.b.v1"))),
        Piece::Whole(commit(100)),
    ]
    .into();
    let mut behind = kept.join(Broker::new(), 3 * MS);
    behind.run(3 * MS).expect("well formed");
    let question = behind
        .engine
        .poll_question()
        .expect("too large to be whole");
    assert_eq!(question.id, id(1));
    behind.engine.handle_row(&RowPresence::Kept);
    behind.run(4 * MS).expect("well formed");
    let written = String::from_utf8_lossy(&behind.broker.out).into_owned();
    assert!(written.contains("walrelay.dead.s"), "{written}");
    assert!(written.contains("s 0/64:1\r\n"), "{written}");
    assert!(written.contains("s 0/64:2\r\n"), "{written}");
    assert_eq!(behind.engine.created(), CREATED);
}
