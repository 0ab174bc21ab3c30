//! A lane record, for the tests that vary it.

use walrelay::pipeline::record::LaneRecord;

/// Of slot `s` and stream `S`, before the lane has published anything.
pub fn fresh(created: &str) -> LaneRecord {
    LaneRecord {
        version: LaneRecord::VERSION,
        system_identifier: 7,
        timeline: 1,
        switches: Some(Vec::new()),
        database: "app".into(),
        slot: "s".into(),
        stream: "S".into(),
        created: created.into(),
        epoch: 1,
        sequence: 0,
        position: None,
        event_id: None,
        confirmed_lsn: 1.into(),
        active: false,
        adopted_sequence: 0,
        taken_over_sequence: 0,
        skips: Vec::new(),
        replaced: None,
        doubted: false,
        carrier: None,
        tables: Vec::new(),
        halted: None,
        publications: Vec::new(),
    }
}
