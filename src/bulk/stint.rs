//! One window's life on a connection: from its place to its end.
//!
//! In: a connection, a place, messages, bytes of the broker. Out: frames, how many messages are stored, or why it ends. Nothing
//! here waits.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::Queued;
use super::fence::Place;
use super::lease::LeaseError;
use super::pace::Allowance;
use crate::nats::api::StreamConfig;
use crate::nats::protocol::{Msg, Op};
use crate::pipeline::fault::Fault;
use crate::pipeline::position::{Position, TAIL_HEADER};
use crate::pipeline::publish::{
    Body, Message, Mode, Origin, TooLarge, Window, WindowLimits, WindowSettings,
};
use crate::pipeline::shared_end_search::bulk_fence_subject;
use crate::relay::broker::Broker;
use crate::relay::lane_client::LaneError;
use crate::relay::open_error::OpenError;
use crate::relay::settings::Settings;

/// Most bytes of frames that are made before the socket is looked at.
const TURN_BYTES_MAX: usize = 1 << 20;

/// A connection on which nothing is in flight.
pub(super) struct Target {
    pub(super) broker: Broker,
    pub(super) mode: Mode,
    pub(super) messages_max: usize,
    /// The stream's, when it was connected to.
    pub(super) config: StreamConfig,
}

/// Why a stint ended early.
pub(super) enum Ended {
    /// The next one may go on.
    Fault(Fault),
    /// Nothing can.
    Failed(anyhow::Error),
}

impl From<Fault> for Ended {
    fn from(fault: Fault) -> Self {
        Ended::Fault(fault)
    }
}

impl From<OpenError> for Ended {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Fault(fault) => Ended::Fault(fault),
            OpenError::Permanent(error) => Ended::Failed(error),
            OpenError::Halt(halt) => Ended::Failed(halt.into()),
            OpenError::Unfit(unfit) => Ended::Failed(anyhow::anyhow!(unfit.reason)),
        }
    }
}

impl From<anyhow::Error> for Ended {
    fn from(error: anyhow::Error) -> Self {
        let unanswered = |error: &anyhow::Error| {
            let lane = match error.downcast_ref::<LeaseError>() {
                Some(LeaseError::Lane(lane)) => Some(lane),
                _ => error.downcast_ref::<LaneError>(),
            };
            // Nobody takes the message: nobody leads the stream for now.
            matches!(
                lane,
                Some(
                    LaneError::Request { .. } | LaneError::NoJetStream(_) | LaneError::NoStream(_)
                )
            )
        };
        match unanswered(&error) {
            true => Ended::Fault(Fault::Broker(format!("{error:#}"))),
            false => Ended::Failed(error),
        }
    }
}

/// A window and what it has in flight.
pub(super) struct Stint {
    pub(super) target: Target,
    pub(super) window: Window,
    /// What tells the lane's place, in a stream of its own.
    place_headers: Vec<u8>,
    headers: Vec<u8>,
    pub(super) sent: VecDeque<Queued>,
    /// Of these, the first so many are known to be stored.
    stored: usize,
    /// When a message left last, in the batch that is open.
    pub(super) fed_at: Option<Instant>,
    /// How many messages may still leave.
    pub(super) left: u64,
    pub(super) until: Instant,
}

impl Stint {
    pub(super) fn new(
        settings: &Settings,
        target: Target,
        place: &Place,
        allowance: Allowance,
        one_by_one: u64,
        batch_messages_max: Option<u64>,
    ) -> Self {
        let slot = &settings.postgres.slot;
        let (base_sequence, place_headers) = match place {
            Place::Behind {
                last_sequence,
                lane_end,
            } => {
                let tail = lane_end.iter();
                let tail = tail.map(|lane_end| format!("{TAIL_HEADER}: {lane_end}\r\n"));
                (*last_sequence, tail.collect::<String>().into_bytes())
            }
            Place::Fenced { sequence, .. } => (*sequence, Vec::new()),
        };
        let limits = WindowLimits {
            inbox: target.broker.connection.inbox().to_owned(),
            epoch_token: format!("b{:016x}", rand::random::<u64>()),
            messages_max: target.messages_max,
            one_by_one,
            batch_messages_max,
            bytes_max: settings.relay.window_bytes_max,
            message_limit: target.broker.message_limit(),
            ack_timeout: settings.relay.ack_timeout,
        };
        let window = WindowSettings {
            mode: target.mode,
            stream: settings.nats.stream.clone(),
            slot: slot.clone(),
            fence_subject: bulk_fence_subject(&settings.nats.stream, slot),
            tables: Vec::new(),
            limits,
        };
        Stint {
            window: Window::new(window, base_sequence),
            target,
            place_headers,
            headers: Vec::new(),
            sent: VecDeque::new(),
            stored: 0,
            fed_at: None,
            left: allowance.messages,
            until: allowance.until,
        }
    }

    pub(super) fn has_room(&mut self) -> bool {
        self.window.has_room() && self.target.broker.connection.outgoing().len() < TURN_BYTES_MAX
    }

    /// Puts a message into the window; its name and why not, where it cannot be sent.
    pub(super) fn send(&mut self, next: Queued, now: Duration) -> Result<(), (String, String)> {
        let Queued { number, item } = next;
        self.headers.clear();
        self.headers.extend_from_slice(&item.headers);
        self.headers.extend_from_slice(&self.place_headers);
        let message = Message {
            subject: &item.subject,
            headers: &self.headers,
            body: Body::Bytes(&item.body),
        };
        let origin = Origin {
            position: position(number),
            event_id: None,
            outbox: 0,
            first_publication: false,
        };
        let out = self.target.broker.connection.outgoing();
        match self.window.publish(out, &message, origin, now) {
            Ok(()) => {
                self.sent.push_back(Queued { number, item });
                self.left -= 1;
                Ok(())
            }
            Err(TooLarge { bytes }) => Err((
                item.name,
                format!(
                    "{bytes} bytes with its headers, more than {}",
                    self.target.broker.message_limit()
                ),
            )),
        }
    }

    /// Takes what answers are there. Messages that they tell to be stored are counted also where an answer behind them ends it all.
    pub(super) fn take_answers(&mut self, now: Duration) -> Result<(), Ended> {
        loop {
            let op = self.target.broker.connection.next_op();
            match op.map_err(|error| Fault::Broker(error.to_string()))? {
                Some(Op::Msg(msg)) => self.take_answer(&msg, now)?,
                Some(Op::Err(text)) => return Err(self.refused(&text)),
                Some(Op::Info(info)) if info.lame_duck_mode => {
                    let text = "the server is shutting down (lame duck)";
                    return Err(Fault::Broker(text.into()).into());
                }
                Some(_) => {}
                None => return Ok(()),
            }
        }
    }

    fn take_answer(&mut self, msg: &Msg, now: Duration) -> Result<(), Fault> {
        let inbox = self.target.broker.connection.inbox();
        // `r`: an answer to a request of the start, too late to matter.
        let Some(token) = msg
            .below(inbox)
            .filter(|token| token.first() != Some(&b'r'))
        else {
            return Ok(());
        };
        let stored = &mut self.stored;
        self.window
            .answer(token, msg.status(), &msg.payload, now, |_| *stored += 1)?;
        Ok(())
    }

    /// The messages that answers have told to be stored, since this was asked last.
    pub(super) fn take_stored(&mut self) -> VecDeque<Queued> {
        // By far the most stay: these are moved, not those.
        self.sent
            .drain(..std::mem::take(&mut self.stored))
            .collect()
    }

    /// Whether another's message took the place of the only one that was in flight: it is not stored, and no answer is to come, so that
    /// the connection can be kept.
    pub(super) fn is_refused_alone(&self, ended: &Ended) -> bool {
        let out_of_sequence = matches!(ended, Ended::Fault(fault) if fault.is_out_of_sequence());
        out_of_sequence && self.sent.len() == 1 && self.window.is_settled()
    }

    fn refused(&self, text: &str) -> Ended {
        // Nobody adds a permission while a command waits.
        if let Some(denied) = self.target.broker.denied(text) {
            return Ended::Failed(denied.into());
        }
        self.window.fault_of(text).into()
    }
}

/// Where a message stands among those of its source.
pub(super) fn position(number: u64) -> Position {
    Position {
        commit_lsn: 0.into(),
        ordinal: number,
    }
}
