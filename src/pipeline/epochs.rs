//! From one epoch to the next: how long to wait, and when to stop trying.
//!
//! In: the fault that ended an epoch, the lane's last position, whether there was progress. Out: a pause, or a halt.
//! Guarantees: no busy loop, no pause beyond the maximum, no endless repetition of a refusal that will repeat.

use super::fault::{Class, Fault, Halt, STUCK_EPOCHS};
use super::position::Position;
use std::collections::BTreeMap;
use std::time::Duration;

const PAUSE_MIN: Duration = Duration::from_millis(20);
/// Where the lane end has the answer, somebody may be publishing all the time: a relay that comes back too seldom
/// never meets a gap in it, and a command that gives way to it waits for it meanwhile.
const RESYNC_PAUSE: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(100));

/// Rows that the broker has refused for their own sake, and what it said. In an atomic batch, which is stored whole or not
/// at all, one after the other is met before the lane gets past the first; never more than a batch has.
pub type Refused = BTreeMap<Position, String>;

/// What has happened since the last progress.
#[derive(Debug)]
pub struct Epochs {
    pause_max: Duration,
    attempts: u32,
    refusals: u32,
    ended_at: Option<Position>,
    refused: Refused,
    one_by_one: u64,
    batch_messages_max: Option<u64>,
}

impl Epochs {
    /// `pause_max` bounds the time between two epochs.
    pub fn new(pause_max: Duration) -> Self {
        Epochs {
            pause_max,
            attempts: 0,
            refusals: 0,
            ended_at: None,
            refused: Refused::new(),
            one_by_one: 0,
            batch_messages_max: None,
        }
    }

    /// So many rows the next epoch is to send one at a time: the broker refused one of them, and did not say which.
    pub fn one_by_one(&self) -> u64 {
        self.one_by_one
    }

    /// Most messages of an atomic batch, where the broker has told.
    pub fn batch_messages_max(&self) -> Option<u64> {
        self.batch_messages_max
    }

    /// The rows that the broker has refused, until the lane is past them: the next epoch rejects them without asking
    /// again.
    pub fn refused(&self) -> &Refused {
        &self.refused
    }

    /// An epoch ended. `lane_end` is the lane's last acknowledged position, `progressed` whether it moved in this epoch
    /// (or the epoch streamed for a while), `jitter` a random number in 0..1.
    ///
    /// # Errors
    /// [`Halt::Stuck`] after [`STUCK_EPOCHS`] permanent refusals at one position.
    pub fn ended(
        &mut self,
        fault: &Fault,
        lane_end: Option<Position>,
        progressed: bool,
        jitter: f64,
    ) -> Result<Duration, Halt> {
        if progressed || lane_end != self.ended_at {
            self.attempts = 0;
            self.refusals = 0;
        }
        self.ended_at = lane_end;
        let class = fault.class();
        match fault {
            Fault::BatchTooLarge { messages_max } => {
                self.batch_messages_max = Some(*messages_max);
            }
            Fault::Frame { in_flight: 1, .. } => self.one_by_one = 0,
            Fault::Frame { in_flight, .. } => self.one_by_one = *in_flight,
            // The first time the broker may have forgotten the batch.
            Fault::Incomplete { in_flight, .. } if self.attempts > 0 => {
                self.one_by_one = *in_flight;
            }
            // There may be more of them.
            Fault::Refused { .. } if class == Class::Row => {}
            _ if progressed => self.one_by_one = 0,
            _ => {}
        }
        if self.refuses_again(fault, lane_end) || class == Class::Permanent {
            self.refusals += 1;
            if self.refusals >= STUCK_EPOCHS {
                return Err(Halt::Stuck(fault.clone()));
            }
        }
        let attempts = self.attempts;
        self.attempts = self.attempts.saturating_add(1);
        // The first resync needs no pause: the lane end has the answer.
        if class == Class::Resync && attempts == 0 {
            return Ok(Duration::ZERO);
        }
        let (pause_min, pause_max) = match class {
            Class::Resync => (RESYNC_PAUSE.0, RESYNC_PAUSE.1.min(self.pause_max)),
            Class::Transient | Class::Row | Class::Permanent => (PAUSE_MIN, self.pause_max),
        };
        let pause = pause_min
            .saturating_mul(1 << attempts.min(16))
            .min(pause_max);
        Ok(pause.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0))
    }

    /// Remembers a row that was refused for its own sake; whether it had been already, so that even its dead letter
    /// was refused.
    fn refuses_again(&mut self, fault: &Fault, lane_end: Option<Position>) -> bool {
        if let Some(lane_end) = lane_end {
            self.refused.retain(|position, _| *position > lane_end);
        }
        if fault.class() != Class::Row {
            return false;
        }
        let (position, description) = match fault {
            Fault::Refused {
                position,
                description,
                ..
            } => (position, description),
            Fault::Frame { oldest, text, .. } => (oldest, text),
            _ => return false,
        };
        let again = self
            .refused
            .insert(*position, description.clone())
            .is_some();
        if !again {
            // One less to find.
            self.attempts = 0;
        }
        again
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(lsn: u64) -> Option<Position> {
        Some(Position {
            commit_lsn: lsn.into(),
            ordinal: 1,
        })
    }

    #[test]
    fn pauses_grow_to_the_maximum_and_start_again_after_progress() {
        let max = Duration::from_millis(500);
        let mut epochs = Epochs::new(max);
        let gone = Fault::Broker("gone".into());
        let mut last = Duration::ZERO;
        for _ in 0..100 {
            let pause = epochs.ended(&gone, at(1), false, 1.0).expect("transient");
            assert!(pause >= last && pause <= max);
            last = pause;
        }
        assert_eq!(last, max);
        assert_eq!(epochs.ended(&gone, at(2), true, 1.0), Ok(PAUSE_MIN));
    }

    #[test]
    fn a_permanent_refusal_halts_at_the_third_epoch_without_progress() {
        let refused = Fault::Refused {
            position: at(2).expect("some"),
            code: 400,
            err_code: 10_109,
            description: "sealed".into(),
        };
        let mut epochs = Epochs::new(Duration::from_secs(1));
        assert!(epochs.ended(&refused, at(1), false, 0.0).is_ok());
        assert!(epochs.ended(&refused, at(1), false, 0.0).is_ok());
        assert_eq!(
            epochs.ended(&refused, at(1), false, 0.0),
            Err(Halt::Stuck(refused.clone()))
        );
        let mut epochs = Epochs::new(Duration::from_secs(1));
        for lsn in 0..20 {
            assert!(epochs.ended(&refused, at(lsn), true, 0.0).is_ok());
        }
    }

    #[test]
    fn a_refused_row_is_remembered_until_the_lane_is_past_it() {
        let refused = Fault::Refused {
            position: at(5).expect("some"),
            code: 400,
            err_code: 10_054,
            description: "too large".into(),
        };
        let gone = Fault::Broker("gone".into());
        let mut epochs = Epochs::new(Duration::from_secs(1));
        for _ in 0..10 {
            assert!(epochs.ended(&gone, at(1), false, 0.0).is_ok());
        }
        assert!(epochs.ended(&refused, at(1), false, 0.0).is_ok());
        assert!(epochs.ended(&gone, at(1), false, 0.0).is_ok());
        assert!(!epochs.refused().is_empty());
        assert!(epochs.ended(&gone, at(5), true, 0.0).is_ok());
        assert!(epochs.refused().is_empty());
        // Its dead letter is refused too.
        for _ in 0..3 {
            assert!(epochs.ended(&refused, at(1), false, 0.0).is_ok());
        }
        assert!(epochs.ended(&refused, at(1), false, 0.0).is_err());
    }

    #[test]
    fn all_refused_rows_of_a_batch_are_remembered_and_cost_no_growing_pause() {
        let refused = |lsn| Fault::Refused {
            position: at(lsn).expect("some"),
            code: 400,
            err_code: 10_054,
            description: "too large".into(),
        };
        let mut epochs = Epochs::new(Duration::from_secs(60));
        for lsn in 2..50 {
            let pause = epochs.ended(&refused(lsn), at(1), false, 1.0);
            assert_eq!(pause, Ok(PAUSE_MIN));
        }
        assert_eq!(epochs.refused().len(), 48);
        let gone = Fault::Broker("gone".into());
        assert!(epochs.ended(&gone, at(30), true, 0.0).is_ok());
        assert_eq!(epochs.refused().len(), 19);
    }

    #[test]
    fn a_frame_that_is_refused_among_others_is_looked_for_one_by_one() {
        let frame = |lsn, in_flight| Fault::Frame {
            oldest: at(lsn).expect("some"),
            in_flight,
            text: "maximum control line exceeded".into(),
        };
        let mut epochs = Epochs::new(Duration::from_secs(1));
        assert!(epochs.ended(&frame(2, 40), at(1), false, 0.0).is_ok());
        assert!(epochs.one_by_one() == 40 && epochs.refused().is_empty());
        // What comes between does not matter.
        let gone = Fault::Broker("gone".into());
        assert!(epochs.ended(&gone, at(1), false, 0.0).is_ok());
        assert_eq!(epochs.one_by_one(), 40);
        assert!(epochs.ended(&frame(5, 1), at(4), true, 0.0).is_ok());
        assert_eq!(epochs.one_by_one(), 0);
        assert_eq!(
            epochs.refused().keys().copied().last(),
            at(5),
            "it becomes a dead letter"
        );
    }

    #[test]
    fn a_batch_that_is_incomplete_twice_is_sent_one_by_one() {
        let incomplete = Fault::Incomplete {
            oldest: at(2).expect("some"),
            in_flight: 40,
            text: "batch incomplete".into(),
        };
        let mut epochs = Epochs::new(Duration::from_secs(1));
        // The broker was restarted each time, and the lane goes on.
        for lsn in 0..3 {
            assert!(epochs.ended(&incomplete, at(lsn), true, 0.0).is_ok());
            assert_eq!(epochs.one_by_one(), 0);
        }
        assert!(epochs.ended(&incomplete, at(2), false, 0.0).is_ok());
        assert_eq!(epochs.one_by_one(), 40);
        // One is found, and the others are looked for behind it.
        let refused = Fault::Refused {
            position: at(5).expect("some"),
            code: 400,
            err_code: 10_054,
            description: "too large".into(),
        };
        assert!(epochs.ended(&refused, at(4), true, 0.0).is_ok());
        assert_eq!((epochs.one_by_one(), epochs.refused().len()), (40, 1));
        let gone = Fault::Broker("gone".into());
        assert!(epochs.ended(&gone, at(30), true, 0.0).is_ok());
        assert_eq!(epochs.one_by_one(), 0);
    }

    #[test]
    fn a_foreign_message_costs_no_pause() {
        let mut epochs = Epochs::new(Duration::from_secs(1));
        let foreign = Fault::Sequence("10071".into());
        for lsn in 0..20 {
            assert_eq!(
                epochs.ended(&foreign, at(lsn), true, 0.5),
                Ok(Duration::ZERO)
            );
        }
    }
}
