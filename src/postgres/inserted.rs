//! When and where a row was inserted, as far as its system columns tell (manual, 5.6): the order in which old rows are published.
//!
//! In: the columns' texts. Out: an order. Guarantees: a transaction's rows come in the order of its commands, and
//! those of one command as they stand in the table. What no column tells is not in it: which of two transactions committed first,
//! and that a savepoint's rows, which have an xmin of their own, are of the transaction around it. An UPDATE makes a row anew.

use std::str::FromStr;

/// SQL for how many transactions ago a row's began. Of a frozen row that may be more than an age can tell, which is below 0 then.
pub(crate) const XMIN_AGE: &str = "CASE WHEN age(xmin) < 0 THEN 2147483647 ELSE age(xmin) END";
/// SQL for this order.
pub(crate) fn order() -> String {
    // A cid has no order of its own.
    format!("{XMIN_AGE} DESC, cmin::text::int8, ctid")
}

/// A transaction's command, as far as it is told apart: the rows of further ones come as they stand in the table.
const COMMAND_BITS: u32 = 24;

/// The order of a row: that of the transaction, then that of the command, then the place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Inserted {
    /// Smaller the older the transaction is, and then the earlier its command.
    when: u64,
    /// Where it stands.
    pub(crate) tid: Tid,
}

/// How many bits [`Inserted::packed`] has of when a row was inserted.
pub(crate) const WHEN_BITS: u32 = u32::BITS + COMMAND_BITS;

impl Inserted {
    /// By [`XMIN_AGE`], `cmin` and `ctid`.
    pub(crate) fn of(xmin_age: u32, cmin: u32, tid: Tid) -> Self {
        let command = cmin.min((1 << COMMAND_BITS) - 1);
        Inserted {
            when: u64::from(u32::MAX - xmin_age) << COMMAND_BITS | u64::from(command),
            tid,
        }
    }

    /// As numbers of [`WHEN_BITS`] and [`PLACE_BITS`], in the same order.
    pub(crate) fn packed(self) -> (u64, u64) {
        (self.when, self.tid.packed())
    }

    /// What [`Self::packed`] has packed.
    pub(crate) fn unpacked(when: u64, place: u64) -> Self {
        Inserted {
            when,
            tid: Tid::unpacked(place),
        }
    }
}

/// Where a row stands: a tuple identifier (manual, 8.19). The order is that of the table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tid {
    /// From 0.
    pub block: u32,
    /// Within the block, from 1.
    pub offset: u16,
}

/// How many bits [`Inserted::packed`] has of where a row stands.
pub(crate) const PLACE_BITS: u32 = 48;

/// A text that is no [`Tid`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no tuple identifier, such as (0,1)")]
pub struct TidError;

impl FromStr for Tid {
    type Err = TidError;

    fn from_str(text: &str) -> Result<Self, TidError> {
        let inner = text
            .strip_prefix('(')
            .and_then(|text| text.strip_suffix(')'));
        let (block, offset) = inner
            .and_then(|inner| inner.split_once(','))
            .ok_or(TidError)?;
        Ok(Tid {
            block: block.parse().map_err(|_| TidError)?,
            offset: offset.parse().map_err(|_| TidError)?,
        })
    }
}

impl Tid {
    /// As a number of [`PLACE_BITS`], in the same order.
    fn packed(self) -> u64 {
        u64::from(self.block) << 16 | u64::from(self.offset)
    }

    /// What [`Self::packed`] has packed.
    fn unpacked(packed: u64) -> Self {
        Tid {
            block: (packed >> 16) as u32,
            offset: packed as u16,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_transaction_comes_first_then_its_first_command_then_the_first_place() {
        let at = |block, offset| Tid { block, offset };
        let ordered = [
            Inserted::of(u32::MAX, 9, at(9, 9)),
            Inserted::of(7, 0, at(5, 1)),
            Inserted::of(7, 1, at(0, 1)),
            Inserted::of(7, 1, at(0, 2)),
            Inserted::of(7, 1 << COMMAND_BITS, at(0, 1)),
            Inserted::of(7, u32::MAX, at(0, 2)),
            Inserted::of(0, 0, at(0, 1)),
        ];
        assert!(ordered.is_sorted());
        for inserted in ordered {
            let (when, place) = inserted.packed();
            assert!(when >> WHEN_BITS == 0 && place >> PLACE_BITS == 0);
            assert_eq!(Inserted::unpacked(when, place), inserted);
        }
    }

    #[test]
    fn a_place_is_read_and_comes_back_packed() {
        let mut last = None;
        for (text, block, offset) in [
            ("(0,1)", 0, 1),
            ("(0,226)", 0, 226),
            ("(1,1)", 1, 1),
            ("(4294967294,65535)", u32::MAX - 1, u16::MAX),
        ] {
            let tid: Tid = text.parse().expect(text);
            assert_eq!(tid, Tid { block, offset });
            assert!(tid.packed() >> PLACE_BITS == 0);
            assert_eq!(Tid::unpacked(tid.packed()), tid);
            assert!(last < Some(tid.packed()));
            last = Some(tid.packed());
        }
        for bad in ["", "(0)", "0,1", "(0,1", "(-1,1)", "(0,65536)"] {
            assert_eq!(bad.parse::<Tid>(), Err(TidError), "{bad:?}");
        }
    }
}
