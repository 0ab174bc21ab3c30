//! Where a lane goes on, and the search for the end that it goes on behind.

mod beginnings;
mod case;
mod halts;
#[path = "../lane_record/mod.rs"]
mod lane_record;
mod search;
