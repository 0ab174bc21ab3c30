//! The broker's side made anew, while the WAL's stays: what is not acknowledged is kept, and sent again where it is not stored.
//!
//! In: where a new connection has found the lane's end. Out: frames of the rows behind it. Guarantee: the lane goes on only
//! behind its last acknowledged message or a row that was in flight, in the one stream that has acknowledged; anything else is
//! a doubt about more than the connection, and the WAL is read again.

use super::{Engine, Stop};
use crate::pipeline::continuity::Plan;
use crate::pipeline::fault::Fault;
use crate::pipeline::history::History;
use crate::pipeline::position::Lane;
use crate::pipeline::publish::{Mode, TooLarge, WindowLimits};
use crate::pipeline::record::LaneRecord;
use bytes::BytesMut;
use std::time::Duration;

/// What a new connection to the broker has brought.
#[derive(Debug)]
pub struct Resumed {
    /// The lane record as it was found.
    pub record: Option<LaneRecord>,
    /// How to publish.
    pub mode: Mode,
    /// The stream's replicas.
    pub num_replicas: usize,
    /// The connection, and what may be in flight on it.
    pub limits: WindowLimits,
    /// Which process of the broker answers; none where that does not tell who stores.
    pub server_id: Option<String>,
}

impl Engine {
    /// Who the lane is.
    pub fn lane(&self) -> &Lane {
        &self.settings.lane
    }

    /// Where the server's WAL comes from.
    pub fn history(&self) -> &History {
        &self.settings.history
    }

    /// Whether the broker's side alone may be made anew: no row on its way is a replay, which is not looked for.
    pub fn can_resync(&self) -> bool {
        self.replay_left().is_none()
    }

    /// Whether no other relay has begun an epoch since.
    ///
    /// # Errors
    /// [`Fault::RecordTaken`]
    pub(crate) fn check_record(&self, record: Option<&LaneRecord>) -> Result<(), Fault> {
        match record.filter(|record| record.epoch > self.settings.number) {
            Some(record) => Err(Fault::RecordTaken(format!(
                "it has begun epoch {}",
                record.epoch
            ))),
            None => Ok(()),
        }
    }

    /// Whether the lane goes on where a new connection has found its end.
    ///
    /// # Errors
    /// [`Fault::Reread`]
    pub fn check_goes_on(&self, created: &str, plan: &Plan) -> Result<(), Fault> {
        if created != self.settings.created {
            return Err(Fault::Reread("the stream is another one"));
        }
        let goes_on = match (&plan.lane_end, self.lane_end()) {
            (None, None) => true,
            (None, Some(_)) => false,
            // Behind the row others may tell its position too: a backfill does.
            (Some(found), Some(known)) if found.position == known.position => {
                let is_known = found.event_id.is_none() || found.event_id == known.event_id;
                found.sequence >= known.sequence && is_known
            }
            (Some(found), _) => self.window.has(found),
        };
        match goes_on && plan.loss.is_none() {
            true => Ok(()),
            false => Err(Fault::Reread("no row in flight is the lane's last there")),
        }
    }

    /// Goes on behind the lane's end as a new connection has found it; see [`Self::check_goes_on`]. May be called again where
    /// that connection, too, comes to nothing.
    ///
    /// # Errors
    /// [`Fault::Reread`] where the rows were made for messages of another size.
    pub fn resume(&mut self, resumed: Resumed, plan: &Plan, now: Duration) -> Result<(), Fault> {
        let settings = &mut self.settings;
        if resumed.limits.message_limit != settings.epoch.limits.message_limit {
            return Err(Fault::Reread("it takes messages of another size"));
        }
        let is_started_anew = settings.server_id != resumed.server_id;
        settings.record = resumed.record;
        settings.mode = resumed.mode;
        settings.num_replicas = resumed.num_replicas;
        settings.epoch.limits = resumed.limits;
        settings.server_id = resumed.server_id;
        if is_started_anew {
            self.progress.hold_anew(now);
        }
        self.limit_stands(now);
        let before = self.progress.acknowledged_rows();
        let through = plan.lane_end.as_ref().map(|lane_end| lane_end.position);
        let window = self.settings.window();
        let rows = self
            .window
            .reopen(window, plan.last_sequence, through, |_| {});
        if rows > before {
            // Only of the last one it is known where it stands.
            let chained = self.settings.mode.preparation().chained;
            let lane_end = plan.lane_end.as_ref().filter(|_| chained);
            self.progress.acknowledged(rows - 1, None, now);
            self.progress
                .acknowledged(rows, lane_end.map(|lane_end| lane_end.sequence), now);
            self.tell_dead_letters(rows);
        }
        self.acknowledged_before = rows;
        let confirmed_lsn = self.confirm.confirmed_lsn();
        self.begun.clone_from(&plan.lane_end);
        self.confirm = self
            .settings
            .confirm(confirmed_lsn, plan.lane_end.clone(), now);
        self.cross_again();
        Ok(())
    }

    /// Sends again what fits of the rows that wait for it, until the turn has so many bytes of frames.
    ///
    /// # Errors
    /// [`Fault::Reread`] where one has become too large.
    pub fn send_again(
        &mut self,
        out: &mut BytesMut,
        turn_bytes_max: usize,
        now: Duration,
    ) -> Result<(), Stop> {
        while self.window.has_waiting() && out.len() < turn_bytes_max {
            let sent = self.window.send_again(out, now);
            if !sent.map_err(|TooLarge { .. }| Fault::Reread("a row is too large for it now"))? {
                break;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
