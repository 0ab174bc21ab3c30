//! A nats-server with two streams: the events' own and that of the lane records.
//!
//! It reads the client's real frames and answers as nats-server 2.15 was measured to (tests/nats_lane): expectations
//! of sequence and message id, fast ingest with gap `fail`, atomic batches, removals that keep `last_seq`, a crash that does not.

mod atomic;
mod edits;
mod fast;
pub(crate) mod lanes;
mod stream;

use atomic::AtomicBatch;
use base64::Engine as _;
pub(crate) use edits::{Edit, subjects};
use fast::Batch;
use lanes::{Part, Place};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;
pub(crate) use stream::{Frame, Stream};
use walrelay::nats::headers::Headers;
use walrelay::pipeline::position::{self, Position};
use walrelay::pipeline::record::{LaneRecord, RecordOrNote};

pub(crate) const STREAM: &str = "OUTBOX";
pub(crate) const RECORDS: &str = "WALRELAY";
/// What others publish to.
const FOREIGN: &str = "outbox.foreign";
const BATCH_IDLE: Duration = Duration::from_secs(10);

/// What a store attempt tells the world.
pub(crate) type Reply = (String, Option<u16>, Value);

#[derive(Debug)]
pub(crate) struct Broker {
    pub(crate) up: bool,
    /// How often its process was started.
    pub(crate) starts: u64,
    pub(crate) events: Stream,
    pub(crate) records: Stream,
    batches: HashMap<String, Batch>,
    atomic_batches: HashMap<String, AtomicBatch>,
    /// The stream takes batches.
    pub(crate) allow_batched: bool,
    /// Others write to the stream too, and the lane in atomic batches.
    pub(crate) shared: bool,
    /// The lanes whose dead letters and fences the stream takes.
    pub(crate) parts: Vec<Part>,
    /// Refuses every event with this code until healed.
    pub(crate) refusal: Option<(u16, u16)>,
    /// Refuses the events with these ids for their size, as long as they are events.
    pub(crate) poison: Vec<String>,
    pub(crate) granted_max: u64,
    /// Most messages of an atomic batch.
    pub(crate) batch_messages_max: u64,
    /// The stream also takes the dead letters' subject.
    pub(crate) takes_dead_letters: bool,
    /// Somebody has edited the stream.
    pub(crate) edit: Option<Edit>,
    pub(crate) num_replicas: usize,
    /// Until then no event is stored or answered, and nothing else shows it.
    pub(crate) mute_until: Duration,
}

impl Broker {
    pub(crate) fn new(allow_batched: bool, granted_max: u64) -> Self {
        Broker {
            up: true,
            starts: 1,
            events: Stream::new(STREAM, 1),
            records: Stream::new(RECORDS, 1),
            batches: HashMap::new(),
            atomic_batches: HashMap::new(),
            allow_batched,
            shared: false,
            parts: vec![None],
            refusal: None,
            poison: Vec::new(),
            granted_max,
            batch_messages_max: 1_000,
            takes_dead_letters: true,
            edit: None,
            num_replicas: 1,
            mute_until: Duration::ZERO,
        }
    }

    pub(crate) fn sync(&mut self) {
        self.events.synced_seq = self.events.last_seq;
        self.records.synced_seq = self.records.last_seq;
    }

    /// When the events' stream was made, as it tells it.
    pub(crate) fn created(&self) -> String {
        created(&self.events)
    }

    /// The events' stream is not the one that the lane began with.
    pub(crate) fn is_made_anew(&self) -> bool {
        self.events.created > 1
    }

    /// The process is gone; `cut` are the sequences that its streams come back with.
    pub(crate) fn crash(&mut self, cut: (u64, u64)) {
        self.up = false;
        self.starts += 1;
        self.lose(cut);
    }

    /// The streams come back shorter.
    pub(crate) fn lose(&mut self, (events, records): (u64, u64)) {
        self.batches.clear();
        self.atomic_batches.clear();
        self.events.truncate(events);
        let last_record = self.records.messages.last_key_value().map(|(seq, _)| *seq);
        if last_record.is_some_and(|seq| seq > records) {
            self.records.truncate(records);
            self.records.restore_last_of_each_subject();
            if self.events.drops {
                self.sweep();
            }
        }
    }

    /// The stream is deleted and made again.
    pub(crate) fn recreate(&mut self) {
        self.batches.clear();
        self.atomic_batches.clear();
        self.events = Stream::new(STREAM, self.events.created + 1);
    }

    pub(crate) fn publish_foreign(&mut self) {
        self.publish_foreign_with("");
    }

    /// A consumer publishes the `nth` event again as it came, but for NATS' own headers.
    pub(crate) fn redrive(&mut self, nth: u64) {
        let header = self
            .events
            .messages
            .values()
            .nth(nth as usize)
            .and_then(|frame| frame.header(position::POSITION_HEADER))
            .map(|value| format!("{}: {value}\r\n", position::POSITION_HEADER));
        self.publish_foreign_with(&header.unwrap_or_default());
    }

    fn publish_foreign_with(&mut self, headers: &str) {
        self.events.store(Frame {
            subject: FOREIGN.into(),
            headers: format!("NATS/1.0\r\n{headers}\r\n").into_bytes(),
            data: b"{\"id\":\"by hand\"}".to_vec(),
            ..Frame::default()
        });
    }

    /// Handles one message; the answers that are asked for, in order.
    pub(crate) fn handle(&mut self, frame: Frame, now: Duration) -> Vec<Reply> {
        let mut answers = self.answers(frame, now);
        answers.retain(|(reply, ..)| !reply.is_empty());
        answers
    }

    fn answers(&mut self, frame: Frame, now: Duration) -> Vec<Reply> {
        let reply = frame.reply.clone();
        let one = |value: Value| vec![(reply.clone(), None, value)];
        let subject = frame.subject.clone();
        if let Some(name) = subject.strip_prefix("$JS.API.STREAM.INFO.") {
            return one(self.info(name));
        }
        if let Some(name) = subject.strip_prefix("$JS.API.STREAM.MSG.GET.") {
            return one(self.get(name, &frame.data));
        }
        if subject.starts_with("walrelay.lane.") {
            if let Some((code, text)) = self.records.expectation(&frame) {
                return one(refused(RECORDS, 400, code, &text));
            }
            let before = self.records.last_of(&subject).map(|(seq, _)| seq);
            if let Some(record) = frame.record() {
                let part = lanes::part_of(&record.slot).expect("a lane of ours");
                self.events.is_recorded(part, record.position);
            }
            let seq = self.records.store(frame);
            if let Some(before) = before {
                self.records.remove(std::iter::once(before));
            }
            return one(json!({"stream": RECORDS, "seq": seq}));
        }
        let is_own = (subject.starts_with("walrelay.dead.") && self.takes_dead_letters)
            || (subject.starts_with("walrelay.fence.") && self.shared);
        if self.edit == Some(Edit::Subjects) && subject.starts_with("outbox.") {
            return vec![(reply, Some(503), Value::Null)];
        }
        if !subject.starts_with("outbox.") && !is_own {
            return vec![(reply, Some(503), Value::Null)];
        }
        if now < self.mute_until {
            return Vec::new();
        }
        let mut answers = if frame.header(position::BATCH_HEADER).is_some() {
            self.atomic(frame, now)
        } else if reply.ends_with(".$FI") {
            self.fast(frame, now)
        } else {
            one(self.publish(frame))
        };
        if self.edit == Some(Edit::NoAck) {
            answers.clear();
        }
        answers
    }

    /// What refuses a message before its expectations are looked at.
    fn refusal(&self, frame: &Frame) -> Option<(u16, u16, String)> {
        let data = String::from_utf8_lossy(&frame.data);
        if frame.subject.starts_with("outbox.")
            && self
                .poison
                .iter()
                .any(|id| data.contains(id.as_str()) || frame.header("id") == Some(id.as_str()))
        {
            return Some((400, 10_054, "message size exceeds maximum allowed".into()));
        }
        match self.refusal {
            Some((code, err_code)) if err_code != 10_077 => {
                Some((code, err_code, "not now".into()))
            }
            _ => None,
        }
    }

    fn is_full(&self) -> bool {
        self.refusal.is_some_and(|(_, err_code)| err_code == 10_077)
    }

    fn publish(&mut self, frame: Frame) -> Value {
        if let Some((code, err_code, text)) = self.refusal(&frame) {
            return refused(STREAM, code, err_code, &text);
        }
        if let Some((err_code, text)) = self.events.expectation(&frame) {
            return refused(STREAM, 400, err_code, &text);
        }
        if let Some(id) = frame.header("Nats-Msg-Id")
            && self.events.ids.contains(id)
        {
            return json!({"stream": STREAM, "seq": 1, "duplicate": true});
        }
        if self.is_full() {
            return refused(STREAM, 503, 10_077, "maximum bytes exceeded");
        }
        json!({"stream": STREAM, "seq": self.events.store(frame)})
    }

    fn stream(&self, name: &str) -> &Stream {
        if name == RECORDS {
            &self.records
        } else {
            &self.events
        }
    }

    fn info(&self, name: &str) -> Value {
        let stream = self.stream(name);
        let first = stream
            .messages
            .first_key_value()
            .map_or(stream.last_seq + 1, |(seq, _)| *seq);
        json!({
            "created": created(stream),
            "config": {
                "name": name, "max_msg_size": -1, "allow_batched": self.allow_batched, "allow_atomic": self.shared,
                "subjects": match self.edit {
                    Some(Edit::Subjects) => subjects(self.shared, &self.parts).split_off(1),
                    _ => subjects(self.shared, &self.parts),
                },
                "retention": if self.events.drops { "interest" } else { "limits" },
                "num_replicas": self.num_replicas,
                "no_ack": self.edit == Some(Edit::NoAck),
            },
            "state": {"messages": stream.messages.len(), "first_seq": first, "last_seq": stream.last_seq},
        })
    }

    fn get(&self, name: &str, request: &[u8]) -> Value {
        let request: Value = serde_json::from_slice(request).expect("JSON");
        let stream = self.stream(name);
        let text = |key: &str| request[key].as_str();
        let found = match (request["seq"].as_u64(), text("next_by_subj")) {
            (Some(from), Some(filter)) => stream.next_of(from, filter),
            (Some(seq), None) => stream.messages.get(&seq).map(|frame| (seq, frame)),
            _ => stream.last_of(text("last_by_subj").expect("a subject")),
        };
        let Some((seq, frame)) = found else {
            return json!({"error": {"code": 404, "err_code": 10_037, "description": "no message found"}});
        };
        let encode = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes);
        json!({"message": {
            "subject": frame.subject, "seq": seq, "hdrs": encode(&frame.headers), "data": encode(&frame.data),
            "time": "2026-11-23T00:00:00Z",
        }})
    }
}

fn created(stream: &Stream) -> String {
    format!("2026-11-23T00:00:00.{:09}Z", stream.created)
}

fn refused(stream: &str, code: u16, err_code: u16, description: &str) -> Value {
    let error = json!({"code": code, "err_code": err_code, "description": description});
    json!({"error": error, "stream": stream, "seq": 0})
}

fn number(frame: &Frame, name: &str) -> Option<u64> {
    frame.header(name)?.parse().ok()
}

/// Takes whole frames out of what a client has sent; a cut frame stays.
pub(crate) fn take_frame(received: &mut Vec<u8>) -> Option<ClientOp> {
    let end = received.windows(2).position(|pair| pair == b"\r\n")?;
    let line = std::str::from_utf8(&received[..end])
        .expect("a control line")
        .to_owned();
    let mut words = line.split(' ');
    let name = words.next().expect("an operation");
    if name == "PING" || name == "PONG" {
        received.drain(..end + 2);
        return Some(ClientOp::Ping);
    }
    let arguments: Vec<&str> = words.collect();
    let length = |at: usize| arguments[at].parse::<usize>().expect("a length");
    let (reply, headers, total) = match (name, arguments.len()) {
        ("PUB", 3) => (arguments[1], 0, length(2)),
        ("HPUB", 3) => ("", length(1), length(2)),
        ("HPUB", 4) => (arguments[1], length(2), length(3)),
        _ => panic!("the relay sent {line:?}"),
    };
    let body = end + 2;
    if received.len() < body + total + 2 {
        return None;
    }
    assert_eq!(
        &received[body + total..body + total + 2],
        b"\r\n",
        "the end of {line:?}"
    );
    let frame = Frame {
        subject: arguments[0].to_owned(),
        reply: reply.to_owned(),
        headers: received[body..body + headers].to_vec(),
        data: received[body + headers..body + total].to_vec(),
    };
    assert!(frame.len() == total);
    received.drain(..body + total + 2);
    Some(ClientOp::Publish(frame))
}

pub(crate) enum ClientOp {
    Ping,
    Publish(Frame),
}

/// The frame of an answer.
pub(crate) fn answer_bytes((reply, status, value): &Reply) -> Vec<u8> {
    if status.is_some() {
        return format!("HMSG {reply} 1 16 16\r\nNATS/1.0 503\r\n\r\n\r\n").into_bytes();
    }
    let body = match value {
        // A message of an atomic batch was taken.
        Value::Null => String::new(),
        value => value.to_string(),
    };
    format!("MSG {reply} 1 {}\r\n{body}\r\n", body.len()).into_bytes()
}
