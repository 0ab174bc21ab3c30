//! The way back: requests to the broker, the lane record, status updates for Postgres.
//!
//! In: the broker's answers to record and probes, the time. Out: requests, the record's content, status updates.

use super::{Engine, Stop};
use crate::pipeline::carrier::Carrier;
use crate::pipeline::confirm::{Ask, Due};
use crate::pipeline::copy_both::StatusUpdate;
use crate::pipeline::end_search::Lookup;
use crate::pipeline::progress::{Confirmable, WalRoom};
use crate::pipeline::record::LaneRecord;
use crate::pipeline::request::{Reply, Request};
use postgres_types::PgLsn;
use std::time::Duration;

impl Engine {
    /// The next request to the broker, if one is due.
    pub fn poll_request(&mut self, now: Duration) -> Option<Request<'static>> {
        self.drain();
        let confirmable = self.confirmable(now);
        let acknowledged_lsn = self.progress.acknowledged_lsn();
        let is_urgent = self.is_urgent();
        let due = Due {
            confirmable,
            pressing: self.progress.keeps_too_much(self.confirm.confirmed_lsn()),
            unanswered_since: self.window.unanswered_since(),
        };
        let ask = self.confirm.poll(due, acknowledged_lsn, now, is_urgent)?;
        Some(self.request(ask))
    }

    /// How far the slot may be confirmed now. On a standby not beyond what is known to be on the epoch's timeline: the lane
    /// record names that one, and explains no LSN of another. But the slot must not be lost to it.
    pub(super) fn confirmable(&mut self, now: Duration) -> Confirmable {
        let confirmable = self.progress.confirmable(now);
        let known = self.settings.epoch.on_timeline;
        match known.filter(|_| !self.progress.keeps_too_much(self.confirm.confirmed_lsn())) {
            Some(lsn) => Confirmable {
                end_lsn: confirmable.end_lsn.min(lsn),
                ..confirmable
            },
            None => confirmable,
        }
    }

    fn request(&mut self, ask: Ask) -> Request<'static> {
        match ask {
            Ask::Record(lsn) => {
                self.record_leaves();
                Request::StoreRecord {
                    record: Box::new(self.lane_record(lsn)),
                    behind: self.record_sequence,
                }
            }
            Ask::Info => Request::Stream,
            Ask::Message(sequence) => Request::Message(Lookup::Message(sequence)),
        }
    }

    /// The lane record is stored there: the next one must follow it.
    pub(crate) fn record_stored_at(&mut self, sequence: u64) {
        self.record_sequence = sequence;
    }

    /// The record that is stored before the first message on a connection to the broker.
    pub(crate) fn first_record(&self) -> LaneRecord {
        let recorded = self.settings.record.as_ref();
        let confirmed_lsn = self.confirm.confirmed_lsn();
        self.lane_record(recorded.map_or(confirmed_lsn, |record| {
            record.confirmed_lsn.max(confirmed_lsn)
        }))
    }

    /// The record that says where the lane is, and how far the slot may have been confirmed.
    pub fn lane_record(&self, confirmed_lsn: PgLsn) -> LaneRecord {
        let settings = &self.settings;
        // What was acknowledged since the stream was last seen to fit may not be there.
        let lane_end = self.confirm.sound();
        let previous = settings
            .record
            .as_ref()
            .filter(|record| record.created == settings.created);
        LaneRecord {
            epoch: settings.number,
            sequence: lane_end.map_or(
                previous.map_or(0, |record| record.adopted_sequence),
                |lane_end| lane_end.sequence,
            ),
            position: lane_end.map(|lane_end| lane_end.position),
            event_id: lane_end.and_then(|lane_end| lane_end.event_id.clone()),
            table: lane_end.and_then(|lane_end| lane_end.table.clone()),
            confirmed_lsn,
            active: !(self.stopping
                && self.window.in_flight() == 0
                && lane_end == self.confirm.lane_end()),
            adopted_sequence: previous.map_or(0, |record| record.adopted_sequence),
            taken_over_sequence: previous.map_or(0, |record| record.taken_over_sequence),
            skips: settings
                .skips()
                .iter()
                .copied()
                .filter(|skip| lane_end.is_none_or(|lane_end| *skip > lane_end.position))
                .collect(),
            carrier: settings.epoch.carrier.clone(),
            tables: self.tables(),
            publications: settings.epoch.publications.clone(),
            switched_lsn: self.switched_lsn,
            left: (settings.record.as_ref()).map_or_else(Vec::new, |record| record.left.clone()),
            ..LaneRecord::new(
                &settings.lane,
                &settings.history,
                &settings.stream,
                &settings.created,
            )
        }
    }

    /// Somebody has looked at the catalog, and what carries the table's rows is still the same.
    pub(crate) fn carried(&mut self, carrier: Carrier) {
        self.settings.epoch.carrier = Some(carrier);
    }

    /// Somebody has seen that the server was on the epoch's timeline when its WAL ended there.
    pub fn on_timeline(&mut self, lsn: PgLsn) {
        if let Some(known) = &mut self.settings.epoch.on_timeline {
            *known = lsn;
        }
    }

    /// Somebody has looked how much WAL the slot may keep.
    pub fn may_keep(&mut self, room: WalRoom) {
        self.progress.may_keep(room);
    }

    /// Takes the reply to the request of [`Self::poll_request`] or of this; returns the next request.
    ///
    /// # Errors
    /// The stream is not the one that acknowledged, or another message stands in the place of the lane's.
    pub(crate) fn handle_reply(
        &mut self,
        reply: Reply<'_>,
    ) -> Result<Option<Request<'static>>, Stop> {
        let ask = match reply {
            Reply::Stored(sequence) => {
                self.record_sequence = sequence;
                self.record_is_stored();
                self.confirm.recorded()
            }
            Reply::Stream(stream) => self.confirm.informed(stream)?,
            Reply::Message(found) => self.confirm.seen(found.as_ref())?,
            // Nothing of this epoch asks for it.
            Reply::Record(_) => None,
        };
        Ok(ask.map(|ask| self.request(ask)))
    }

    /// When [`Self::poll_status`] is worth calling again.
    pub(crate) fn status_due(&self) -> Duration {
        self.status_at + self.settings.epoch.status_interval
    }

    /// The next status update, if one is due. After one that confirms, one with flush 0 follows at once: the server
    /// then waits for nothing of ours, in a shutdown or as for a synchronous standby.
    pub fn poll_status(&mut self, now: Duration) -> Option<StatusUpdate> {
        let write_lsn = self.progress.received_lsn();
        let confirmed = self.confirm.confirmed_lsn();
        let confirms = confirmed > self.told_lsn;
        if !confirms && !self.status_wanted && now < self.status_due() {
            return None;
        }
        self.status_at = now;
        self.status_wanted = confirms;
        let flush_lsn = if confirms { confirmed } else { 0.into() };
        self.told_lsn = confirmed;
        Some(StatusUpdate {
            write_lsn,
            flush_lsn,
            apply_lsn: self.progress.acknowledged_lsn(),
            reply_requested: false,
        })
    }
}
