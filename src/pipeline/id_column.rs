//! Which column tells the ids of a table's events, for the life of a lane.
//!
//! In: the column as the catalog has it, and as the lane record remembers it. Out: whether it is another one now. Guarantee:
//! a column that was renamed is the same; one that took the place of another under its name is taken for a copy of it.

use serde::{Deserialize, Serialize};

/// A column of the table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdColumn {
    /// Its name.
    pub name: String,
    /// Its number in the table, which a rename leaves alone.
    pub attnum: i16,
}

impl IdColumn {
    /// Whether it is neither that one under another name, nor one that has taken its name.
    pub(crate) fn is_another_than(&self, before: &IdColumn) -> bool {
        self.attnum != before.attnum && self.name != before.name
    }
}
