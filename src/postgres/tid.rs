//! Where a row stands in its table: the system column `ctid` (manual, 5.6, 8.19).
//!
//! In: its text. Out: block and line pointer. An UPDATE moves a row, and VACUUM FULL all of them.

use std::str::FromStr;

/// A tuple identifier; the order is that of the table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tid {
    /// From 0.
    pub block: u32,
    /// Within the block, from 1.
    pub offset: u16,
}

/// How many bits [`Tid::packed`] has.
pub(crate) const PACKED_BITS: u32 = 48;

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
    /// As a number of [`PACKED_BITS`], in the same order.
    pub(crate) fn packed(self) -> u64 {
        u64::from(self.block) << 16 | u64::from(self.offset)
    }

    /// What [`Self::packed`] has packed.
    pub(crate) fn unpacked(packed: u64) -> Self {
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
            assert!(tid.packed() >> PACKED_BITS == 0);
            assert_eq!(Tid::unpacked(tid.packed()), tid);
            assert!(last < Some(tid.packed()));
            last = Some(tid.packed());
        }
        for bad in ["", "(0)", "0,1", "(0,1", "(-1,1)", "(0,65536)"] {
            assert_eq!(bad.parse::<Tid>(), Err(TidError), "{bad:?}");
        }
    }
}
