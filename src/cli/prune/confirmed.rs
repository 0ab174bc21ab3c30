//! When the rows of a snapshot are confirmed.
//!
//! In: the LSN below which all of them were committed, the database's logical slots. Out: that every slot is confirmed through
//! it, or who never will be. Guarantee: a slot that has stopped, is lost or was moved by hand keeps every row.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use postgres_types::PgLsn;

use crate::cli::exit::UsageError;
use crate::cli::stderr;
use crate::nearest::nearest;
use crate::pipeline::record::LaneRecord;
use crate::postgres::client::Client;
use crate::postgres::logical_slots::{LogicalSlot, logical_slots};
use crate::relay::lane_client::LaneClient;

const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// A relay that is replaced by the next one has the slot again within this.
const TAKEOVER: Duration = Duration::from_secs(10);

/// Slots that count, and how long to wait for them.
#[derive(Debug)]
pub(super) struct Readers<'a> {
    pub(super) own: &'a str,
    pub(super) except: &'a [String],
    pub(super) limit: Duration,
}

/// Makes sure that the slots that are to be left out are those of somebody else.
///
/// # Errors
/// A [`UsageError`]: one is a slot of the outbox itself, or is none.
pub(super) fn excepted(
    except: &[String],
    own: &[&str],
    slots: &[LogicalSlot],
) -> Result<(), UsageError> {
    let others: Vec<&str> = slots
        .iter()
        .map(|slot| slot.slot.as_str())
        .filter(|slot| !own.contains(slot))
        .collect();
    let choice = match others[..] {
        [] => "no other slot is there to leave out, so leave the flag away".to_owned(),
        _ => format!("there are {}", others.join(", ")),
    };
    for name in except {
        let name = name.as_str();
        let why = if own.contains(&name) {
            "this outbox is published from it, so its rows must be confirmed there".to_owned()
        } else if !others.contains(&name) {
            let meant = nearest(name, others.iter().copied());
            let meant = meant.map(|meant| format!("; did you mean {meant}"));
            format!(
                "the database has no logical slot of that name{}",
                meant.unwrap_or_default()
            )
        } else {
            continue;
        };
        return Err(UsageError(format!("--except-slot {name}: {why}; {choice}")));
    }
    Ok(())
}

/// How the slots stand to an LSN.
#[derive(Debug, PartialEq, Eq)]
enum Standing<'s> {
    /// All are confirmed through it.
    Confirmed,
    /// This one is read, and not yet there.
    Behind(&'s LogicalSlot),
    /// This one is not there, and nobody reads it.
    Stopped(&'s LogicalSlot),
    /// This one never will be.
    Lost(&'s LogicalSlot),
    /// There is no such slot.
    Missing,
}

impl Readers<'_> {
    /// Makes sure that each slot is read.
    ///
    /// # Errors
    /// One of them will not be confirmed further.
    pub(super) async fn are_read(&self, client: &Client, lsn: PgLsn) -> anyhow::Result<()> {
        let slots = logical_slots(client).await?;
        match self.standing(&slots, lsn) {
            Standing::Confirmed | Standing::Behind(_) => Ok(()),
            standing => bail!(self.why_not(&standing, lsn)),
        }
    }

    /// Waits until all are confirmed through `lsn`.
    ///
    /// # Errors
    /// One of them will not be, or not in time.
    pub(super) async fn confirm(&self, client: &Client, lsn: PgLsn) -> anyhow::Result<()> {
        let begun = Instant::now();
        let mut stopped_since = None;
        let mut told = Vec::new();
        loop {
            let slots = logical_slots(client).await?;
            let standing = self.standing(&slots, lsn);
            match standing {
                Standing::Confirmed => return Ok(()),
                Standing::Stopped(slot) => {
                    tell(&mut told, slot, lsn);
                    let since = *stopped_since.get_or_insert_with(Instant::now);
                    if since.elapsed() >= TAKEOVER {
                        bail!(self.why_not(&standing, lsn));
                    }
                }
                Standing::Behind(slot) => {
                    tell(&mut told, slot, lsn);
                    stopped_since = None;
                }
                Standing::Lost(_) | Standing::Missing => bail!(self.why_not(&standing, lsn)),
            }
            if begun.elapsed() >= self.limit {
                bail!(self.why_not(&standing, lsn));
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    fn standing<'s>(&self, slots: &'s [LogicalSlot], lsn: PgLsn) -> Standing<'s> {
        if !slots.iter().any(|slot| slot.slot == self.own) {
            return Standing::Missing;
        }
        let counts = |slot: &&LogicalSlot| !self.except.contains(&slot.slot);
        let behind = slots
            .iter()
            .filter(counts)
            .filter(|slot| slot.is_lost || slot.confirmed_lsn.is_none_or(|at| at < lsn));
        behind
            .map(|slot| match (slot.is_lost, slot.is_active) {
                (true, _) => Standing::Lost(slot),
                (false, false) => Standing::Stopped(slot),
                (false, true) => Standing::Behind(slot),
            })
            .max_by_key(|standing| match standing {
                Standing::Lost(_) => 2,
                Standing::Stopped(_) => 1,
                _ => 0,
            })
            .unwrap_or(Standing::Confirmed)
    }

    fn why_not(&self, standing: &Standing<'_>, lsn: PgLsn) -> String {
        let (slot, what) = match standing {
            Standing::Missing => {
                return format!(
                    "this server has no slot {}, so nothing tells which rows are published: run walrelay setup",
                    self.own
                );
            }
            Standing::Lost(slot) => (
                slot,
                "is lost, and the table alone has what it did not send".to_owned(),
            ),
            Standing::Stopped(slot) | Standing::Behind(slot) => {
                let at = slot
                    .confirmed_lsn
                    .map_or("nothing".to_owned(), |at| at.to_string());
                let reader = match slot.is_active {
                    true => format!(
                        "and did not get there within {:?}: give --wait more",
                        self.limit
                    ),
                    false => "and nobody reads it: start its reader".to_owned(),
                };
                (slot, format!("has confirmed {at} of {lsn}, {reader}"))
            }
            Standing::Confirmed => unreachable!("nothing stands against a confirmed LSN"),
        };
        let name = &slot.slot;
        let other = match (name == self.own, standing) {
            (true, Standing::Lost(_)) => "; walrelay doctor says what to do",
            (true, _) => "",
            (false, _) => {
                "; where it is read for other tables alone, leave it out with --except-slot"
            }
        };
        format!("slot {name} {what}{other}")
    }
}

/// Says once what is waited for.
fn tell(told: &mut Vec<String>, slot: &LogicalSlot, lsn: PgLsn) {
    if !told.contains(&slot.slot) {
        let at = (slot.confirmed_lsn).map_or("nothing".to_owned(), |at| at.to_string());
        stderr::line(format_args!(
            "waiting until slot {} is confirmed through {lsn}; it has confirmed {at}",
            slot.slot
        ));
        told.push(slot.slot.clone());
    }
}

/// Makes sure that the lane's own relay has confirmed through `lsn`, and not somebody who moved the slot.
///
/// # Errors
/// The lane record does not say so.
pub(super) async fn explained(lane: &LaneClient, lsn: PgLsn) -> anyhow::Result<()> {
    let stored = lane.record().await?;
    let slot = lane.slot();
    let record = stored.record.with_context(|| {
        format!("slot {slot} has no lane record: no relay has published from it")
    })?;
    unhalted(&record)?;
    if record.confirmed_lsn < lsn {
        bail!(
            "slot {slot} is confirmed through {lsn}, and its relay only through {}: somebody else has moved the slot, and rows \
             in between may be in the table alone; walrelay verify shows them, walrelay adopt goes on from there",
            record.confirmed_lsn
        );
    }
    Ok(())
}

/// Makes sure that no person is waited for.
///
/// # Errors
/// The relay has halted.
pub(super) fn unhalted(record: &LaneRecord) -> anyhow::Result<()> {
    match &record.halted {
        Some(halted) => bail!("the relay has halted: {}; {}", halted.reason, halted.remedy),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(name: &str, confirmed: u64, is_active: bool, is_lost: bool) -> LogicalSlot {
        LogicalSlot {
            slot: name.to_owned(),
            confirmed_lsn: (confirmed > 0).then(|| confirmed.into()),
            is_active,
            is_lost,
        }
    }

    #[test]
    fn every_slot_keeps_what_it_has_not_confirmed() {
        let except = ["other".to_owned()];
        let readers = Readers {
            own: "own",
            except: &except,
            limit: Duration::ZERO,
        };
        let lsn = PgLsn::from(100);
        let own = slot("own", 100, true, false);
        let standing = |more: &[LogicalSlot]| {
            let mut slots = vec![own.clone()];
            slots.extend_from_slice(more);
            match readers.standing(&slots, lsn) {
                Standing::Confirmed => "confirmed".to_owned(),
                Standing::Behind(slot) => format!("behind {}", slot.slot),
                Standing::Stopped(slot) => format!("stopped {}", slot.slot),
                Standing::Lost(slot) => format!("lost {}", slot.slot),
                Standing::Missing => "missing".to_owned(),
            }
        };
        assert_eq!(standing(&[]), "confirmed");
        assert_eq!(standing(&[slot("b", 99, true, false)]), "behind b");
        // One that is being made has confirmed nothing.
        assert_eq!(standing(&[slot("b", 0, true, false)]), "behind b");
        assert_eq!(
            standing(&[slot("b", 99, true, false), slot("c", 99, false, false)]),
            "stopped c"
        );
        // A lost slot keeps its rows wherever it had been.
        assert_eq!(
            standing(&[slot("c", 99, false, false), slot("d", 200, false, true)]),
            "lost d"
        );
        assert_eq!(standing(&[slot("other", 1, false, true)]), "confirmed");
        assert_eq!(
            readers.standing(&[slot("b", 200, true, false)], lsn),
            Standing::Missing
        );
    }
}
