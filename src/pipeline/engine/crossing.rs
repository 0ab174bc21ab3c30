//! The place in the WAL where the number of shares changes.
//!
//! In: the message that tells it, the record's storing, an answer about other lanes. Out: a question. Guarantees: nothing behind the
//! place is read before all in front of it is acknowledged and the lane record says so, nor before the lanes that had rows of this
//! one say the same; so no aggregate's event overtakes another of its own from one lane to the next.

use super::Engine;
use crate::pipeline::history::History;
use crate::pipeline::position::Lane;
use crate::pipeline::record::LaneRecord;
use crate::pipeline::reshard::Switch;
use postgres_types::PgLsn;

/// On the way over it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Crossing {
    switch: Switch,
    lsn: PgLsn,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// What is in flight is acknowledged first.
    Draining,
    /// The record is to say so.
    Due,
    /// It is on its way.
    Storing,
    /// It is stored; the other lanes are to be asked about.
    Stored,
    /// They are.
    Asked,
}

/// Which lanes have to be across before this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CrossingQuestion {
    /// What changes.
    pub switch: Switch,
    /// Where.
    pub lsn: PgLsn,
    /// The other lanes' shares; none for the lane of all rows.
    pub givers: Vec<Option<u32>>,
    /// Of the WAL in which the place is.
    pub history: History,
}

impl CrossingQuestion {
    /// Whether that lane is across, by all records of its slot, in whichever streams.
    pub fn is_across(&self, giving: &Lane, records: &[LaneRecord]) -> bool {
        let across = |record: &LaneRecord| record.across(giving, &self.history);
        records.iter().filter_map(across).max() >= Some(self.lsn)
    }
}

impl Engine {
    /// A logical message in a transaction.
    pub(super) fn told(&mut self, prefix: &[u8], content: &[u8]) {
        let share = self.settings.epoch.share;
        let slot = &self.settings.lane.slot;
        let switch = Switch::read(prefix, content, slot, share);
        let lsn = self.transaction.as_ref().map(|open| open.commit_lsn);
        if let Some((switch, lsn)) = switch.zip(lsn) {
            let stage = Stage::Draining;
            self.crossing = Some(Crossing { switch, lsn, stage });
        }
    }

    /// Once nothing is in flight, the record is to say that all in front of the place is acknowledged.
    pub(super) fn drain(&mut self) {
        let is_drained = self.window.in_flight() == 0 && !self.window.has_waiting();
        if let Some(crossing) = self.crossing.as_mut().filter(|_| is_drained)
            && crossing.stage == Stage::Draining
        {
            crossing.stage = Stage::Due;
            self.switched_lsn = self.switched_lsn.max(Some(crossing.lsn));
            // The publication was changed there, and by nobody who would have to be told of it.
            self.settings.epoch.carrier = None;
            self.confirm.want_record();
        }
    }

    /// A record is on its way.
    pub(super) fn record_leaves(&mut self) {
        self.step(Stage::Due, Stage::Storing);
    }

    /// It is stored.
    pub(super) fn record_is_stored(&mut self) {
        self.step(Stage::Storing, Stage::Stored);
        let is_free = |crossing: &Crossing| {
            let givers = crossing.switch.givers(self.settings.epoch.share);
            crossing.stage == Stage::Stored && givers.is_empty()
        };
        if self.crossing.as_ref().is_some_and(is_free) {
            self.crossing = None;
        }
    }

    /// Whether nothing should pause the requests to the broker.
    pub(super) fn is_urgent(&self) -> bool {
        self.stopping || self.is_record_due()
    }

    /// Whether the record that says so waits for nothing.
    pub(super) fn is_record_due(&self) -> bool {
        let is_due = |crossing: Crossing| crossing.stage == Stage::Due;
        self.confirm.is_idle() && self.crossing.is_some_and(is_due)
    }

    /// What was under way on a connection that is gone is done again.
    pub(super) fn cross_again(&mut self) {
        if self.crossing.is_some() {
            self.confirm.want_record();
        }
        self.step(Stage::Storing, Stage::Due);
        self.step(Stage::Asked, Stage::Stored);
    }

    fn step(&mut self, from: Stage, to: Stage) {
        if let Some(crossing) = self
            .crossing
            .as_mut()
            .filter(|crossing| crossing.stage == from)
        {
            crossing.stage = to;
        }
    }

    /// Which lanes have to be across before this one; asked once, and answered by [`Self::crossed`].
    pub fn poll_crossing(&mut self) -> Option<CrossingQuestion> {
        let crossing = self
            .crossing
            .filter(|crossing| crossing.stage == Stage::Stored)?;
        let (switch, lsn) = (crossing.switch, crossing.lsn);
        let givers = switch.givers(self.settings.epoch.share);
        self.step(Stage::Stored, Stage::Asked);
        Some(CrossingQuestion {
            switch,
            lsn,
            givers,
            history: self.settings.history.clone(),
        })
    }

    /// They are across.
    pub fn crossed(&mut self) {
        self.crossing = self
            .crossing
            .filter(|crossing| crossing.stage != Stage::Asked);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::engine::sample::{
        CREATED, MS, begin, commit, insert, message, plan, relation, settings,
    };
    use crate::pipeline::request::{Reply, Request, StreamView};
    use bytes::BytesMut;

    /// The lane of this share with a row in flight, and behind it the place where 4 shares become 2.
    fn engine(share: u32) -> Engine {
        engine_of(Some(share), "4 2 s")
    }

    fn engine_of(share: Option<u32>, told: &str) -> Engine {
        let mut settings = settings();
        settings.epoch.share = share;
        settings.lane.slot = share.map_or("s".to_owned(), |share| format!("s_{share}"));
        let mut engine = Engine::new(settings, &plan(None, 0), MS);
        let mut out = BytesMut::new();
        for payload in [
            relation(),
            begin(100),
            insert(1, Some("a.b.v1")),
            commit(100),
            begin(200),
            // Another outbox of the database.
            message("walrelay.reshard", "8 4 t"),
            message("walrelay.reshard", told),
        ] {
            engine
                .handle_payload(&payload, &mut out, MS)
                .expect("well formed");
        }
        engine.end_turn(&mut out, true);
        engine
    }

    fn acknowledge(engine: &mut Engine) {
        let answer = br#"{"stream":"S","seq":1}"#;
        engine
            .handle_answer(b"1", None, answer, 2 * MS)
            .expect("the acknowledgement");
    }

    /// The records that are stored until nothing is asked any more.
    fn records(engine: &mut Engine) -> Vec<LaneRecord> {
        let mut records = Vec::new();
        let mut request = engine.poll_request(3 * MS);
        while let Some(asked) = request {
            request = match asked {
                Request::StoreRecord { record, .. } => {
                    records.push(*record);
                    engine.handle_reply(Reply::Stored(records.len() as u64))
                }
                Request::Stream => engine.handle_reply(Reply::Stream(StreamView {
                    created: CREATED.into(),
                    first_sequence: 1,
                    last_sequence: 1,
                    messages: 1,
                    num_replicas: 1,
                    allow_batched: false,
                    allow_atomic: false,
                    stored_as: Vec::new(),
                    unfit: None,
                })),
                other => panic!("{other:?}"),
            }
            .expect("in order");
        }
        records
    }

    #[test]
    fn a_lane_is_across_once_all_in_front_is_acknowledged_and_recorded() {
        let mut engine = engine(3);
        assert!(!engine.wants_wal());
        let told = |records: &[LaneRecord]| records.last().and_then(|record| record.switched_lsn);
        assert_eq!(told(&records(&mut engine)), None, "a row is in flight");
        acknowledge(&mut engine);
        assert_eq!(told(&records(&mut engine)), Some(200.into()));
        // It takes nothing over.
        assert_eq!(engine.poll_crossing(), None);
        assert!(engine.wants_wal());
    }

    #[test]
    fn a_lane_that_takes_rows_over_waits_for_those_that_had_them() {
        let mut engine = engine(1);
        assert_eq!(engine.poll_crossing(), None, "it is not there itself");
        acknowledge(&mut engine);
        records(&mut engine);
        assert!(!engine.wants_wal());
        let question = engine.poll_crossing().expect("who had its rows");
        assert_eq!((question.givers, question.lsn), (vec![Some(3)], 200.into()));
        assert_eq!(engine.poll_crossing(), None, "it is asked once");
        // On another connection to the broker it is asked again.
        engine.cross_again();
        assert!(engine.poll_crossing().is_some());
        engine.crossed();
        assert!(engine.wants_wal());
    }

    #[test]
    fn a_record_of_wal_that_is_no_more_says_nothing_of_a_place() {
        use crate::pipeline::history::Switch as Timeline;
        let mut gives = engine(3);
        acknowledge(&mut gives);
        let told = records(&mut gives).pop().expect("it is across");
        let mut engine = engine(1);
        acknowledge(&mut engine);
        records(&mut engine);
        let question = engine.poll_crossing().expect("who had its rows");
        let giving = told.lane();
        let is_across =
            |record: &LaneRecord| question.is_across(&giving, std::slice::from_ref(record));
        assert!(is_across(&told));
        let elsewhere = LaneRecord {
            system_identifier: told.system_identifier + 1,
            ..told.clone()
        };
        assert!(!is_across(&elsewhere), "the record of another cluster");
        // Of a primary whose standby was promoted in front of the place.
        let lost = |lsn: u64| CrossingQuestion {
            history: History::new(
                told.timeline + 1,
                Some(vec![Timeline {
                    timeline: told.timeline,
                    lsn: lsn.into(),
                }]),
            ),
            ..question.clone()
        };
        assert!(lost(200).is_across(&giving, std::slice::from_ref(&told)));
        assert!(!lost(199).is_across(&giving, std::slice::from_ref(&told)));
        assert!(!question.is_across(&giving, &[]));
    }

    #[test]
    fn the_lane_of_all_rows_gives_them_away_and_takes_them_back() {
        let mut before = engine_of(None, "1 2 s");
        assert!(!before.wants_wal());
        acknowledge(&mut before);
        let stored = records(&mut before);
        assert_eq!(
            stored.last().and_then(|record| record.switched_lsn),
            Some(200.into())
        );
        assert_eq!(before.poll_crossing(), None);
        assert!(before.wants_wal());

        let mut behind = engine_of(None, "2 1 s");
        acknowledge(&mut behind);
        records(&mut behind);
        let question = behind.poll_crossing().expect("who had its rows");
        assert_eq!(question.givers, [Some(0), Some(1)]);
        behind.crossed();
        assert!(behind.wants_wal());
    }

    #[test]
    fn a_lane_reads_on_where_another_outbox_changes() {
        let mut engine = Engine::new(settings(), &plan(None, 0), MS);
        let mut out = BytesMut::new();
        for payload in [begin(200), message("walrelay.reshard", "4 2 t")] {
            engine
                .handle_payload(&payload, &mut out, MS)
                .expect("well formed");
        }
        assert!(engine.wants_wal());
    }
}
