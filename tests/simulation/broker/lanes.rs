//! The lanes of an outbox, by their shares' numbers and by their slots.

use walrelay::pipeline::position::Position;
use walrelay::pipeline::reshard::lanes_of;

/// Number of a share; none for the lane of all rows.
pub(crate) type Part = Option<u32>;

/// Where a first publication belongs.
pub(crate) type Place = (Part, Position);

pub(crate) const SHARES_MAX: u32 = 4;

const SLOTS: [&str; 5] = ["sim", "sim_0", "sim_1", "sim_2", "sim_3"];

/// All lanes that there may be.
pub(crate) fn all() -> impl Iterator<Item = Part> {
    lanes_of(1).chain(lanes_of(SHARES_MAX))
}

/// The slot of a lane.
pub(crate) fn slot_of(part: Part) -> &'static str {
    SLOTS[part.map_or(0, |share| share as usize + 1)]
}

/// The lane of a slot; none of another one.
pub(crate) fn part_of(slot: &str) -> Option<Part> {
    all().find(|part| slot_of(*part) == slot)
}
