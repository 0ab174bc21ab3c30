//! A lane record, for the tests that vary it.

use walrelay::pipeline::history::History;
use walrelay::pipeline::position::Lane;
use walrelay::pipeline::record::LaneRecord;

/// Of slot `s` and stream `S`, before the lane has published anything.
pub fn fresh(created: &str) -> LaneRecord {
    let lane = Lane {
        system_identifier: 7,
        database: "app".into(),
        slot: "s".into(),
    };
    LaneRecord {
        epoch: 1,
        confirmed_lsn: 1.into(),
        ..LaneRecord::new(&lane, &History::first(), "S", created)
    }
}
