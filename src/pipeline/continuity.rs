//! Where a lane goes on: the stream is the truth about what was published, and resume proves that the WAL continues it.
//!
//! In: the lane's identity, the slot's and the server's LSNs, the end of the stream, the lane record. Out: a [`Plan`]
//! or a [`Halt`]. Guarantee: with any doubt it halts; it never skips what nothing proves to be published.
//!
//! Telling a loss from a removal: expiry, limits, purges and deletions keep a stream's `last_seq` and `created`, and
//! only a broker that lost what it had acknowledged comes back with less of either.

use super::end_search::FoundEnd;
use super::fault::Halt;
use super::history::History;
use super::lane_end::{Doubt, LaneEnd, Memory, of_stream, recorded_end, settled_end};
use super::position::{Lane, Position};
use super::record::LaneRecord;
use postgres_types::PgLsn;

/// Everything that decides where a lane goes on.
#[derive(Debug, Clone)]
pub struct StartView<'a> {
    /// Who the lane is now.
    pub lane: &'a Lane,
    /// The slot's confirmed_flush_lsn.
    pub confirmed_flush_lsn: PgLsn,
    /// Where the slot began, if that was written down.
    pub begins_lsn: Option<PgLsn>,
    /// End of the server's WAL.
    pub server_lsn: PgLsn,
    /// The server's timelines.
    pub history: &'a History,
    /// The stream.
    pub stream: &'a str,
    /// The servers that it is at.
    pub nats: &'a str,
    /// When it was created, as the server writes it.
    pub created: &'a str,
    /// Its last sequence.
    pub last_sequence: u64,
    /// What its end says.
    pub lane_end: &'a FoundEnd,
    /// The lane record.
    pub record: Option<&'a LaneRecord>,
    /// What this process itself has seen in earlier epochs. A broker that was set back may have lost the newest record
    /// together with the newest messages.
    pub memory: Option<&'a Memory>,
    /// Publish again from here on (`run --from`).
    pub from: Option<PgLsn>,
}

/// What tells where the lane ends: the stream's end, and what record and memory know of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EndView<'a> {
    pub(crate) stream: &'a str,
    pub(crate) created: &'a str,
    pub(crate) last_sequence: u64,
    pub(crate) lane_end: &'a FoundEnd,
    pub(crate) record: Option<&'a LaneRecord>,
    pub(crate) memory: Option<&'a Memory>,
}

impl<'a> StartView<'a> {
    fn end(&self) -> EndView<'a> {
        EndView {
            stream: self.stream,
            created: self.created,
            last_sequence: self.last_sequence,
            lane_end: self.lane_end,
            record: self.record,
            memory: self.memory,
        }
    }
}

/// The row at the stream's last position must arrive, of this table and with this id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlap {
    /// The stream's last position.
    pub position: Position,
    /// The event's id there; with none, the position alone must be met.
    pub event_id: Option<String>,
    /// The table that it is of, where that is told; see [`LaneEnd::table`].
    pub table: Option<String>,
}

/// What the broker had acknowledged and no longer has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    /// Last position that survived.
    pub after: Option<Position>,
    /// Last position that was acknowledged.
    pub through: Position,
    /// At most how many messages, where the sequences tell: those of others among them count too.
    pub messages: Option<u64>,
    /// The slot no longer has those that committed below this; none when it has them all.
    pub gone_below: Option<PgLsn>,
}

/// Where and how the epoch begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// For START_REPLICATION.
    pub start_lsn: PgLsn,
    /// The lane's last message, from the stream or the record.
    pub lane_end: Option<LaneEnd>,
    /// What must arrive first.
    pub overlap: Option<Overlap>,
    /// The stream's last sequence: the chain's beginning.
    pub last_sequence: u64,
    /// Rows of transactions from here on that are published already are published again, marked as replay.
    pub replay_from: Option<PgLsn>,
    /// What the broker lost.
    pub loss: Option<Loss>,
    /// Messages of no lane behind the lane end.
    pub foreign_messages: u64,
}

/// Why a start is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A person has to look.
    #[error(transparent)]
    Halt(#[from] Halt),
    /// `--from` is older than what the slot holds.
    #[error(
        "--from {from} is below what the slot holds; the oldest LSN available is {oldest}. What the stream has from there on, \
         `walrelay replay --from {from}` publishes again, to another stream"
    )]
    FromTooOld {
        /// What was asked for.
        from: PgLsn,
        /// The slot's confirmed LSN.
        oldest: PgLsn,
    },
    /// `--from` is beyond the end of the WAL: of another server, or mistyped.
    #[error(
        "--from {from} is above the end of the server's WAL, {server_lsn}; nothing has committed there yet"
    )]
    FromTooNew {
        /// What was asked for.
        from: PgLsn,
        /// End of the WAL.
        server_lsn: PgLsn,
    },
}

/// Where replication may start before it is known for sure where the lane goes on, since the stream is looked at again
/// once the slot is taken: no later than at the lane end as it is now. 0/0, the slot's confirmed LSN, where there is none.
pub fn provisional_start_lsn(
    lane_end: &FoundEnd,
    record: Option<&LaneRecord>,
    from: Option<PgLsn>,
) -> PgLsn {
    let position = match lane_end {
        FoundEnd::Found(lane_end) => Some(lane_end.position),
        FoundEnd::Removed { .. } | FoundEnd::FenceRemoved => {
            record.and_then(|record| record.position)
        }
        _ => None,
    };
    let tail_lsn = position.map_or(0.into(), |position| position.commit_lsn);
    from.map_or(tail_lsn, |from| from.min(tail_lsn))
}

/// Decides where the lane goes on.
///
/// # Errors
/// Whatever cannot be proven to be the continuation.
pub fn plan(view: &StartView<'_>) -> Result<Plan, Refusal> {
    check_identity(view)?;
    let lane_end = known_end(&view.end())?;
    check_confirmed(view, lane_end.as_ref())?;
    let confirmed = view.confirmed_flush_lsn;
    if let Some(lane_end) = &lane_end
        && view.server_lsn < lane_end.position.commit_lsn
    {
        return Err(Halt::ServerBehind {
            server_lsn: view.server_lsn,
            position: lane_end.position,
        }
        .into());
    }
    let overlap = lane_end
        .as_ref()
        .filter(|lane_end| lane_end.position.commit_lsn >= confirmed)
        .map(|lane_end| Overlap {
            position: lane_end.position,
            event_id: lane_end.event_id.clone(),
            table: lane_end.table.clone(),
        });
    let resume_lsn = lane_end.as_ref().map_or(confirmed, |lane_end| {
        lane_end.position.commit_lsn.max(confirmed)
    });
    Ok(Plan {
        start_lsn: start_lsn(view, resume_lsn)?,
        overlap,
        last_sequence: view.last_sequence,
        replay_from: view.from,
        loss: loss(view, lane_end.as_ref()),
        foreign_messages: match view.lane_end {
            // Behind the look at the last sequence a further message may have come.
            FoundEnd::Found(found) => view.last_sequence.saturating_sub(found.sequence),
            _ => 0,
        },
        lane_end,
    })
}

/// With `--from`, the earlier of it and where the lane goes on: what is unpublished is never skipped. To skip is what
/// `adopt --position` is for.
fn start_lsn(view: &StartView<'_>, resume_lsn: PgLsn) -> Result<PgLsn, Refusal> {
    let Some(from) = view.from else {
        return Ok(resume_lsn);
    };
    if from < view.confirmed_flush_lsn {
        return Err(Refusal::FromTooOld {
            from,
            oldest: view.confirmed_flush_lsn,
        });
    }
    if from > view.server_lsn {
        return Err(Refusal::FromTooNew {
            from,
            server_lsn: view.server_lsn,
        });
    }
    Ok(from.min(resume_lsn))
}

fn check_identity(view: &StartView<'_>) -> Result<(), Halt> {
    if let Some(record) = view.record
        && !record.is_of(view.lane)
    {
        return Err(Halt::OtherLane {
            recorded: record.lane(),
            found: view.lane.clone(),
        });
    }
    Ok(())
}

/// The lane's last position: by the stream, or by record or memory where the stream's messages were removed.
///
/// # Errors
/// Nothing tells it.
pub(crate) fn known_end(view: &EndView<'_>) -> Result<Option<LaneEnd>, Halt> {
    if let Some(record) = view.record
        && record.created == view.created
        && let Some(sequence) = record.replaced
    {
        return Err(Halt::Replaced {
            stream: view.stream.to_owned(),
            sequence,
        });
    }
    match view.lane_end {
        FoundEnd::Found(found) => Ok(Some(found.clone())),
        FoundEnd::Nothing => Ok(None),
        FoundEnd::OtherSlot { sequence, slot } => Err(Halt::ForeignEnd {
            stream: view.stream.to_owned(),
            sequence: *sequence,
            slot: slot.clone(),
        }),
        FoundEnd::FenceRemoved => end_without_fence(view),
        FoundEnd::Removed { sequence } => end_before(view, *sequence).map(Some),
        FoundEnd::Replaced { sequence } => Err(Halt::Replaced {
            stream: view.stream.to_owned(),
            sequence: *sequence,
        }),
        FoundEnd::Copied { sequence } => Err(Halt::EndCopied {
            stream: view.stream.to_owned(),
            sequence: *sequence,
        }),
        FoundEnd::TooFar { scanned } => Err(Halt::EndUnknown {
            stream: view.stream.to_owned(),
            scanned: *scanned,
        }),
    }
}

/// The lane's last message where the search met a removed one: it must be that very one. All behind it is of no lane, the
/// search has read it: a known message further on was read too and is not the lane's any more, the broker lost it.
fn end_before(view: &EndView<'_>, removed: u64) -> Result<LaneEnd, Halt> {
    let record = of_stream(view.record, view.created, view.last_sequence);
    let remembered = view
        .memory
        .filter(|memory| memory.is_of(view.created, view.last_sequence))
        .and_then(|memory| memory.lane_end.clone());
    [remembered, record.and_then(recorded_end)]
        .into_iter()
        .flatten()
        .find(|lane_end| lane_end.sequence == removed)
        .ok_or_else(|| Halt::EndRemoved {
            stream: view.stream.to_owned(),
            sequence: removed,
            last_sequence: view.last_sequence,
            recorded: record.map_or(0, |record| record.sequence),
        })
}

/// Sequences tell nothing where others publish too: what is settled does, or a record that nobody has published behind.
/// A lane that is known to have published nothing has no last message.
fn end_without_fence(view: &EndView<'_>) -> Result<Option<LaneEnd>, Halt> {
    if let Some(doubt) = Doubt::of(view.record, view.memory, view.created, view.last_sequence) {
        return Ok(doubt.lane_end);
    }
    let record = of_stream(view.record, view.created, view.last_sequence);
    if let Some(record) = record
        && (!record.active || record.sequence == view.last_sequence)
    {
        return Ok(recorded_end(record));
    }
    let settled = settled_end(view.record, view.memory, view.created, view.last_sequence);
    let has_published_nothing = view.memory.is_some_and(|memory| {
        memory.settled
            && memory.lane_end.is_none()
            && memory.is_of(view.created, view.last_sequence)
            && memory.is_current(view.created, view.record)
    });
    if settled.is_some() || has_published_nothing {
        return Ok(settled);
    }
    let recorded = record.map_or(0, |record| record.sequence);
    Err(Halt::EndRemoved {
        stream: view.stream.to_owned(),
        sequence: recorded + 1,
        last_sequence: view.last_sequence,
        recorded,
    })
}

/// The slot may be confirmed only as far as this relay has recorded that it would, or as the stream itself reaches: a
/// broker's power failure may take the newest records. What was confirmed on another timeline explains nothing behind
/// the place where the server left it: there, other transactions have the same LSNs.
fn check_confirmed(view: &StartView<'_>, lane_end: Option<&LaneEnd>) -> Result<(), Halt> {
    let confirmed = view.confirmed_flush_lsn;
    // What commits below the stream's last row is published, whoever moved the slot there.
    let is_published = lane_end.is_some_and(|lane_end| lane_end.position.commit_lsn >= confirmed);
    let explains =
        |lsn: PgLsn, history: &History| confirmed <= lsn.min(view.history.shared_with(history));
    // Until another relay has begun an epoch.
    let is_remembered = view
        .memory
        .filter(|memory| {
            view.record
                .is_none_or(|record| record.epoch <= memory.epoch)
        })
        .is_some_and(|memory| explains(memory.confirmed_lsn, &memory.history));
    let explained = match view.record {
        _ if is_published || is_remembered => true,
        Some(record) => explains(record.confirmed_lsn, &record.history()),
        // Without a record: a lane that has published nothing, from a slot that has passed nothing as far as anybody knows.
        None => lane_end.is_none() && view.begins_lsn.is_none_or(|lsn| lsn == confirmed),
    };
    if explained {
        return Ok(());
    }
    if let (None, None, Some(begins_lsn)) = (view.record, lane_end, view.begins_lsn) {
        return Err(Halt::NoBeginning {
            slot: view.lane.slot.clone(),
            stream: view.stream.to_owned(),
            nats: view.nats.to_owned(),
            confirmed_lsn: confirmed,
            begins_lsn,
        });
    }
    Err(Halt::ConfirmedUnexplained {
        slot: view.lane.slot.clone(),
        confirmed_lsn: confirmed,
        recorded_lsn: view.record.map(|record| record.confirmed_lsn),
        switched_at: view
            .record
            .map(|record| view.history.shared_with(&record.history()))
            .filter(|shared| *shared < u64::MAX.into()),
    })
}

/// What record or memory say was acknowledged and the stream no longer has, and no removal explains.
fn loss(view: &StartView<'_>, lane_end: Option<&LaneEnd>) -> Option<Loss> {
    let recorded = view
        .record
        .and_then(|record| Some((recorded_end(record)?, record.created.as_str())));
    let remembered = view
        .memory
        .and_then(|memory| Some((memory.lane_end.clone()?, memory.created.as_str())));
    // What is of a lane before an adoption, or before this one began anew, is not missed.
    let is_of_lane = |(lane_end, created): &(LaneEnd, &str)| {
        view.record.is_none_or(|record| {
            record.created != *created || record.adopted_sequence < lane_end.sequence
        })
    };
    let remembered = remembered.filter(is_of_lane);
    let (through, created) = recorded
        .into_iter()
        .chain(remembered)
        .max_by_key(|(lane_end, _)| lane_end.position)?;
    let after = lane_end.map(|lane_end| lane_end.position);
    if after.is_some_and(|after| after >= through.position) {
        return None;
    }
    let kept = lane_end.map_or_else(
        || view.record.map_or(0, |record| record.adopted_sequence),
        |lane_end| lane_end.sequence,
    );
    Some(Loss {
        after,
        through: through.position,
        messages: (created == view.created).then(|| through.sequence.saturating_sub(kept)),
        gone_below: after
            .is_none_or(|after| after.commit_lsn < view.confirmed_flush_lsn)
            .then_some(view.confirmed_flush_lsn),
    })
}
