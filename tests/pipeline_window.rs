//! The window in each mode against a broker and foreign messages: what is acknowledged is stored, in order, without a gap.

#[allow(dead_code)]
mod simulation {
    pub(crate) mod broker;
}

use bytes::BytesMut;
use proptest::prelude::*;
use simulation::broker::{Broker, ClientOp, Frame, STREAM, answer_bytes, take_frame};
use std::collections::VecDeque;
use std::time::Duration;
use walrelay::nats::protocol::{Op, Parser};
use walrelay::pipeline::fault::Fault;
use walrelay::pipeline::limit::SizeLimit;
use walrelay::pipeline::position::Position;
use walrelay::pipeline::publish::{
    Body, EventId, Message, Mode, Origin, Window, WindowLimits, WindowSettings,
};

const FENCE: &str = "walrelay.fence.OUTBOX.sim";

#[derive(Debug, Clone)]
enum Step {
    /// A turn with so many rows at hand; whether more are behind them.
    Turn(u64, bool),
    /// The broker takes so many frames.
    Serve(usize),
    /// So many answers arrive.
    Answer(usize),
    Foreign,
    /// A new connection, which the relay opens behind the stream's end; so much of what the old one had sent arrives yet.
    Reconnect(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..30_u64, any::<bool>()).prop_map(|(rows, more)| Step::Turn(rows, more)),
        4 => (1..40_usize).prop_map(Step::Serve),
        4 => (1..20_usize).prop_map(Step::Answer),
        1 => Just(Step::Foreign),
        1 => (0..2_000_usize).prop_map(Step::Reconnect),
    ]
}

fn mode() -> impl Strategy<Value = Mode> {
    prop_oneof![
        Just(Mode::FastIngest),
        Just(Mode::Chain),
        Just(Mode::Atomic)
    ]
}

fn settings(mode: Mode, messages_max: usize, connection: u64) -> WindowSettings {
    WindowSettings {
        mode,
        stream: STREAM.into(),
        slot: "sim".to_owned(),
        fence_subject: FENCE.to_owned(),
        tables: Vec::new(),
        limits: WindowLimits {
            inbox: format!("_INBOX.x{connection}"),
            epoch_token: format!("e{connection}"),
            messages_max,
            one_by_one: 0,
            batch_messages_max: None,
            bytes_max: 1 << 20,
            message_limit: SizeLimit::smaller(10_000, None),
            ack_timeout: Duration::from_secs(5),
        },
    }
}

fn position(row: u64) -> Position {
    Position {
        commit_lsn: (row * 8).into(),
        ordinal: 1,
    }
}

fn body(row: u64) -> String {
    format!(
        r#"{{"row":{row},"text":"{}"}}"#,
        "x".repeat(row as usize % 40)
    )
}

struct Bench {
    mode: Mode,
    messages_max: usize,
    connections: u64,
    window: Window,
    broker: Broker,
    sent: Vec<u8>,
    /// What older connections have sent and has not arrived yet.
    late: Vec<Vec<u8>>,
    answers: VecDeque<Vec<u8>>,
    published: u64,
    acknowledged: u64,
    fault: Option<Fault>,
}

impl Bench {
    fn new(mode: Mode, messages_max: usize, granted: u64) -> Self {
        let mut broker = Broker::new(true, granted);
        broker.shared = mode == Mode::Atomic;
        let begin = end_of(&mut broker);
        Bench {
            mode,
            messages_max,
            connections: 1,
            window: Window::new(settings(mode, messages_max, 1), begin),
            late: Vec::new(),
            broker,
            sent: Vec::new(),
            answers: VecDeque::new(),
            published: 0,
            acknowledged: 0,
            fault: None,
        }
    }

    fn reconnect(&mut self, arrives: usize) {
        self.connections += 1;
        let mut late = std::mem::take(&mut self.sent);
        late.truncate(arrives);
        self.late.push(late);
        self.answers.clear();
        self.fault = None;
        let begin = end_of(&mut self.broker);
        let stored = self.stored().last().map(|row| position(*row));
        let settings = settings(self.mode, self.messages_max, self.connections);
        let mut found = Vec::new();
        let rows = self.window.reopen(settings, begin, stored, |row| {
            found.push(u64::from(row.position.commit_lsn) / 8);
        });
        let expected: Vec<u64> = (self.acknowledged + 1..=rows).collect();
        assert_eq!(found, expected, "each row once, in order");
        self.acknowledged = rows;
        assert_eq!(rows, self.stored().len() as u64);
    }

    fn turn(&mut self, rows: u64, more: bool) {
        let mut out = BytesMut::new();
        while self
            .window
            .send_again(&mut out, Duration::ZERO)
            .expect("small")
        {}
        let mut taken = 0;
        while self.window.has_room() && !self.window.has_waiting() && taken < rows {
            taken += 1;
            self.published += 1;
            let position = position(self.published);
            let headers = format!("Walrelay-Position: sim {position}\r\n");
            let row = Origin {
                position,
                event_id: EventId::of(b"i"),
                outbox: 0,
                first_publication: true,
            };
            self.window
                .publish(
                    &mut out,
                    &Message {
                        subject: b"outbox.a",
                        headers: headers.as_bytes(),
                        body: Body::Bytes(body(self.published).as_bytes()),
                    },
                    row,
                    Duration::ZERO,
                )
                .expect("small");
        }
        let dry = !more && taken == rows;
        self.window.end_turn(&mut out, dry, None);
        self.sent.extend_from_slice(&out);
    }

    fn serve(&mut self, frames: usize) {
        for late in &mut self.late {
            if let Some(ClientOp::Publish(frame)) = take_frame(late) {
                self.broker.handle(frame, Duration::ZERO);
            }
        }
        for _ in 0..frames {
            let Some(ClientOp::Publish(frame)) = take_frame(&mut self.sent) else {
                return;
            };
            for answer in self.broker.handle(frame, Duration::ZERO) {
                self.answers.push_back(answer_bytes(&answer));
            }
        }
    }

    fn answer(&mut self, count: usize) {
        for _ in 0..count {
            let (Some(bytes), None) = (self.answers.pop_front(), &self.fault) else {
                return;
            };
            let mut received = BytesMut::from(&bytes[..]);
            let Ok(Some(Op::Msg(msg))) = Parser::default().next(&mut received) else {
                panic!("not a message");
            };
            let token = msg
                .subject
                .strip_prefix(format!("_INBOX.x{}.", self.connections).as_bytes())
                .expect("our inbox")
                .to_vec();
            let mut positions = Vec::new();
            let answer =
                self.window
                    .answer(&token, msg.status(), &msg.payload, Duration::ZERO, |sent| {
                        positions.push(u64::from(sent.position.commit_lsn) / 8);
                    });
            match answer {
                Ok(rows) => {
                    let expected: Vec<u64> = (self.acknowledged + 1..=rows).collect();
                    assert_eq!(positions, expected, "each row once, in order");
                    self.acknowledged = rows;
                }
                Err(fault) => self.fault = Some(fault),
            }
        }
    }

    /// Rows of ours that the stream has.
    fn stored(&self) -> Vec<u64> {
        let published = self.broker.events.published();
        published
            .iter()
            .map(|(_, (_, position), _)| u64::from(position.commit_lsn) / 8)
            .collect()
    }

    fn check(&self) {
        let stored = self.stored();
        let expected: Vec<u64> = (1..=stored.len() as u64).collect();
        assert_eq!(stored, expected, "a prefix, in order");
        for (row, (_, _, frame)) in expected.iter().zip(self.broker.events.published()) {
            assert_eq!(frame.data, body(*row).as_bytes());
        }
        assert!(
            self.acknowledged <= stored.len() as u64,
            "acknowledged and not stored"
        );
        assert!(
            self.window.in_flight() == self.published - self.acknowledged || self.fault.is_some()
        );
    }
}

/// Where a connection begins: behind the stream's end, or in a shared stream behind a fence of its own.
fn end_of(broker: &mut Broker) -> u64 {
    if broker.shared {
        let fence = Frame {
            subject: FENCE.to_owned(),
            headers: b"NATS/1.0\r\n\r\n".to_vec(),
            ..Frame::default()
        };
        broker.handle(fence, Duration::ZERO);
    }
    broker.events.last_seq
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    #[test]
    fn what_is_acknowledged_is_stored_in_order(
        steps in prop::collection::vec(step(), 1..60),
        mode in mode(),
        messages_max in prop_oneof![Just(1_usize), 2..10_usize, 400..500_usize],
        granted in prop_oneof![Just(1), Just(5), Just(200_u64)],
    ) {
        let mut bench = Bench::new(mode, messages_max, granted);
        let mut is_disturbed = false;
        for step in steps {
            match step {
                Step::Turn(rows, more) if bench.fault.is_none() => bench.turn(rows, more),
                Step::Turn(..) => {}
                Step::Serve(frames) => bench.serve(frames),
                Step::Answer(count) => bench.answer(count),
                Step::Foreign => {
                    // Others write to a shared stream, and disturb nobody.
                    is_disturbed |= mode != Mode::Atomic;
                    bench.broker.publish_foreign();
                }
                Step::Reconnect(arrives) => {
                    is_disturbed = true;
                    bench.reconnect(arrives);
                }
            }
            bench.check();
        }
        // Nothing waits for ever: the rest is acknowledged, or the epoch ends.
        for _ in 0..2_000 {
            if bench.fault.is_none() {
                bench.turn(0, false);
            }
            bench.serve(usize::MAX);
            bench.answer(usize::MAX);
        }
        bench.check();
        prop_assert!(bench.window.in_flight() == 0 || bench.fault.is_some());
        prop_assert!(is_disturbed || bench.fault.is_none(), "{:?}", bench.fault);
        prop_assert!(bench.fault.is_some() || bench.window.ack_deadline().is_none());
        // On a connection that nothing disturbs all of it gets there, once.
        bench.late.clear();
        bench.reconnect(0);
        for _ in 0..2_000 {
            bench.turn(0, false);
            bench.serve(usize::MAX);
            bench.answer(usize::MAX);
        }
        bench.check();
        prop_assert_eq!(&bench.fault, &None);
        prop_assert_eq!(bench.stored().len() as u64, bench.published);
    }

    /// Whatever the broker or somebody else answers, the window does not panic and acknowledges no more than was sent.
    #[test]
    fn any_answer_is_survived(
        token in prop_oneof!["[0-9]{1,20}", Just("e1-1.200.fail.1.0.$FI".to_owned()), any::<String>()],
        payload in prop_oneof![
            any::<String>(),
            (any::<u64>(), any::<u64>()).prop_map(|(seq, count)| format!(r#"{{"stream":"OUTBOX","seq":{seq},"batch":"e1-1","count":{count}}}"#)),
            any::<u64>().prop_map(|seq| format!(r#"{{"type":"ack","seq":{seq}}}"#)),
            any::<u64>().prop_map(|seq| format!(r#"{{"type":"err","seq":{seq},"error":{{"err_code":10071}}}}"#)),
        ],
        status in prop::option::of(any::<u16>()),
        mode in mode(),
    ) {
        let mut bench = Bench::new(mode, 100, 200);
        bench.turn(3, true);
        if let Ok(rows) = bench.window.answer(token.as_bytes(), status, payload.as_bytes(), Duration::ZERO, |_| {}) {
            prop_assert!(rows <= 3);
        }
    }
}

/// In a shared stream a batch is filled while the one before is committed, and committed behind that one's fence.
#[test]
fn a_batch_is_filled_while_the_one_before_is_committed() {
    let mut bench = Bench::new(Mode::Atomic, 5_000, 1);
    bench.turn(999, true);
    bench.turn(500, false);
    assert_eq!(bench.window.in_flight(), 1_499);
    bench.serve(usize::MAX);
    assert_eq!(bench.stored().len(), 999, "one commit is under way");
    bench.broker.publish_foreign();
    bench.answer(usize::MAX);
    assert_eq!(bench.acknowledged, 999);
    assert!(bench.window.ack_deadline().is_some());
    bench.turn(0, false);
    bench.serve(usize::MAX);
    bench.answer(usize::MAX);
    bench.check();
    assert_eq!((bench.acknowledged, bench.stored().len()), (1_499, 1_499));
    assert_eq!(bench.window.last_sequence(), bench.broker.events.last_seq);
    assert!(bench.window.ack_deadline().is_none());
    // A fence that another relay has put in between refuses the whole of the next one.
    bench.turn(3, true);
    bench.serve(usize::MAX);
    end_of(&mut bench.broker);
    bench.turn(0, false);
    bench.serve(usize::MAX);
    bench.answer(usize::MAX);
    assert!(
        matches!(bench.fault, Some(Fault::Sequence(_))),
        "{:?}",
        bench.fault
    );
    assert_eq!(bench.stored().len(), 1_499);
}

/// Numbers that no server sends must not overflow: network bytes never panic.
#[test]
fn huge_sequences_are_survived() {
    for answer in [
        format!(r#"{{"type":"ack","seq":{}}}"#, u64::MAX),
        format!(
            r#"{{"type":"err","seq":{},"error":{{"err_code":10071}}}}"#,
            u64::MAX
        ),
    ] {
        let mut bench = Bench::new(Mode::FastIngest, 100, 200);
        bench.turn(3, false);
        bench.serve(3);
        bench.answer(3);
        bench.turn(3, true);
        let token = b"e1-2.200.fail.1.0.$FI";
        let found = bench
            .window
            .answer(token, None, answer.as_bytes(), Duration::ZERO, |_| {});
        assert!(found.is_err(), "{found:?}");
    }
}
