//! What is written down of where the lane begins: its first record, and the slot's beginning.
//!
//! In: the lane before it was set up, and where its slot was made. Out: a record beside the stream, a comment on the publication, or why
//! `run` would halt. Guarantee: what somebody else has written stays.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use postgres_types::PgLsn;

use super::{identify, report};
use crate::cli::own_lane::no_beginning;
use crate::cli::stderr;
use crate::cli::stdout::Account;
use crate::nats::admin::Admin;
use crate::nats::stream;
use crate::pipeline::begin::{Begin, is_of_made};
use crate::pipeline::fault::Halt;
use crate::pipeline::record::LaneRecord;
use crate::postgres::catalog::{Inspection, slot_sent};
use crate::postgres::client::Client;
use crate::postgres::findings::Finding;
use crate::postgres::unwritten::Unwritten;
use crate::relay::lane_client::{LaneClient, LaneError};
use crate::relay::settings::Settings;

/// How often a relay's record is looked for.
const RECORD_POLL: Duration = Duration::from_millis(200);
/// How long a relay that meets the stream may take to write its record.
const RECORD_LIMIT: Duration = Duration::from_secs(5);
/// The longest pause between two attempts of a relay that is waited for.
const BACKOFF_LIMIT: Duration = Duration::from_secs(15);

/// A lane whose slot was made or found.
pub(super) struct Recording<'a> {
    pub(super) client: &'a Client,
    pub(super) nats: &'a Admin,
    pub(super) settings: &'a Settings,
    /// What there was before.
    pub(super) before: &'a Inspection,
    /// The lane's record from before.
    pub(super) record: Option<&'a LaneRecord>,
    /// This run has waited for somebody else to make the slot.
    pub(super) was_awaited: bool,
    /// Where the slot begins, if this run made it.
    pub(super) made_lsn: Option<PgLsn>,
    /// The events that the stream has already count as published by whoever was there before.
    pub(super) takes_over: bool,
}

impl Recording<'_> {
    /// Writes the lane's first record, so that `run` notices a slot that is not this one, and does not look for its own
    /// events among those that the stream holds already. A record that exists stays: it tells what was published before.
    ///
    /// A slot that was found may have published: it gets a record only beside a stream that never had a message, and only where it is
    /// known to have passed nothing. In any other stream, the lane's last event tells `run` more than this record, which says not to
    /// look for it: what is held back would be published twice. Returns where a new lane begins, or why `run` would halt.
    ///
    /// Behind a lane that is at its end, as a share's is that was no more, epochs are counted on: a relay that has lived through both
    /// remembers the one before, and takes the record for younger.
    pub(super) async fn store(
        &self,
        account: &mut Account,
    ) -> Result<Result<Option<Begin>, Halt>, anyhow::Error> {
        match self.store_once(account).await {
            // Another setup, or a relay, has just written it: it may be of this slot.
            Err(error) if matches!(error.downcast_ref(), Some(LaneError::Taken)) => {
                self.store_once(account).await
            }
            stored => stored,
        }
    }

    /// Whether there may be events that a slot from before could have passed. Messages without a table leave nothing that tells.
    async fn may_have_events(&self) -> bool {
        let postgres = &self.settings.postgres;
        if postgres.messages.is_some() {
            return true;
        }
        for table in postgres.tables() {
            let query = format!("SELECT EXISTS (SELECT FROM {})", table.table);
            let row = self.client.query_one(&query, &[]).await;
            // A role that may not read them sees none.
            let is_empty = |row: tokio_postgres::Row| row.try_get(0).is_ok_and(|has: bool| !has);
            if !row.is_ok_and(is_empty) {
                return true;
            }
        }
        false
    }

    async fn store_once(
        &self,
        account: &mut Account,
    ) -> Result<Result<Option<Begin>, Halt>, anyhow::Error> {
        let Recording {
            settings,
            before,
            made_lsn,
            ..
        } = *self;
        let (slot, name) = (&settings.postgres.slot, &settings.nats.stream);
        let store = LaneClient::new(self.nats, name, slot)?;
        let stored = store.record().await?;
        let retired = stored.record.as_ref().is_some_and(|record| record.retired);
        if let Some(record) = stored.record.clone().filter(|record| !record.retired) {
            if let Some(made_lsn) = made_lsn {
                let stored = (record, stored.sequence);
                self.behind_record(&store, stored, made_lsn, account)
                    .await?;
            }
            return Ok(Ok(None));
        }
        let stream = stream::find(self.nats, name)
            .await?
            .with_context(|| format!("stream {name} has gone"))?;
        let is_new = retired || stream.state.last_seq == 0;
        let found = before.slot.as_ref();
        let found_lsn = found.and_then(|slot| slot.confirmed_flush_lsn);
        let found_lsn = found_lsn.filter(|_| is_new);
        if let Some(halt) = no_beginning(before, settings).filter(|_| is_new) {
            let is_read = found.is_some_and(|slot| slot.active_pid.is_some());
            if is_read && goes_on(&store, settings).await? {
                report(
                    account,
                    "lane record",
                    slot,
                    "written by the relay, which goes on",
                );
                return Ok(Ok(None));
            }
            return Ok(Err(halt));
        }
        let is_free = found.is_some_and(|slot| slot.active_pid.is_none());
        let Some(confirmed_lsn) = made_lsn.or(found_lsn.filter(|_| is_free)) else {
            return Ok(Ok(None));
        };
        let (identity, history) = identify(settings).await?;
        let begin = match made_lsn.or(before.begins_lsn()) {
            Some(_) => Begin::At(confirmed_lsn),
            None => {
                let sent = slot_sent(self.client, slot).await?;
                let has_events = self.may_have_events().await;
                Begin::of_found(confirmed_lsn, self.was_awaited, has_events, sent)
            }
        };
        if begin == Begin::Unknown {
            // With a record, what it says would be taken for what is known.
            return Ok(Ok(Some(begin)));
        }
        let lane = identity.lane(slot);
        let recorded = stored.record.as_ref();
        let first = LaneRecord {
            epoch: recorded.map_or(0, |record| record.epoch + 1),
            sequence: stream.state.last_seq,
            confirmed_lsn,
            adopted_sequence: stream.state.last_seq,
            switched_lsn: recorded.and_then(|record| record.across(&lane, &history)),
            taken_over_sequence: match self.takes_over {
                true => stream.state.last_seq,
                false => 0,
            },
            left: recorded.map_or_else(Vec::new, |record| record.left.clone()),
            ..LaneRecord::new(&lane, &history, name, &stream.created)
        };
        store.store_record(first, stored.sequence).await?;
        report(account, "lane record", slot, "made");
        Ok(Ok(Some(begin)))
    }

    /// Beside the record of a lane that read from another slot of this name, nothing explains where the new one stands: the record is to
    /// say so. One of this very slot stays: this run was slow, or stood still, and another one or a relay has gone on meanwhile.
    async fn behind_record(
        &self,
        store: &LaneClient,
        (record, sequence): (LaneRecord, u64),
        made_lsn: PgLsn,
        account: &mut Account,
    ) -> Result<(), anyhow::Error> {
        let slot = store.slot();
        let is_of_lane = record.is_of(&identify(self.settings).await?.0.lane(slot));
        if is_of_lane && is_of_made(&record, self.record, made_lsn) {
            let by = "written meanwhile, by another setup or a relay";
            report(account, "lane record", slot, by);
            return Ok(());
        }
        let confirmed_lsn = record.confirmed_lsn;
        let before = match u64::from(confirmed_lsn) {
            // The one before this was new as well.
            0 => format!(
                "has read from other slots before: what committed before {made_lsn} is not in the new slot"
            ),
            lsn if lsn < u64::from(made_lsn) => format!(
                "has confirmed up to {confirmed_lsn} before: what committed from there to {made_lsn} is not in the new slot"
            ),
            _ => format!(
                "has confirmed up to {confirmed_lsn} before, and the new slot begins at {made_lsn}: this server was set back, or is another \
                 one, and what committed here before {made_lsn} is not in the new slot"
            ),
        };
        if is_of_lane {
            // Also where a server that was set back has used LSNs again.
            let unexplained = LaneRecord {
                confirmed_lsn: 0.into(),
                ..record
            };
            store.store_record(unexplained, sequence).await?;
        }
        account.line(format_args!(
            "a relay of this slot's name {before}. walrelay run will halt until walrelay adopt has been run; walrelay backfill publishes \
             the events in between"
        ));
        Ok(())
    }
}

/// Whether the relay that reads the slot, and has seen the broker lose the stream, writes the lane's record anew.
async fn goes_on(lane: &LaneClient, settings: &Settings) -> anyhow::Result<bool> {
    let wait = settings.relay.backoff_max.min(BACKOFF_LIMIT) + RECORD_LIMIT;
    stderr::line(format_args!(
        "a relay reads slot {}: whether it goes on with this stream is waited for, {} at the longest",
        lane.slot(),
        humantime::format_duration(wait)
    ));
    let deadline = Instant::now() + wait;
    while Instant::now() < deadline {
        if lane
            .record()
            .await?
            .record
            .is_some_and(|record| !record.retired)
        {
            return Ok(true);
        }
        tokio::time::sleep(RECORD_POLL).await;
    }
    Ok(false)
}

/// Writes down where the slot begins, in the publication's comment, or says what its owner has to run, or a person who knows what is so.
///
/// # Errors
/// Postgres refuses.
pub(super) async fn write_beginning(
    client: &Client,
    unwritten: Unwritten,
    begin: Begin,
) -> Result<Option<Finding>, anyhow::Error> {
    let own = unwritten
        .statement(begin)
        .filter(|_| unwritten.owner().is_none());
    let Some(sql) = own else {
        return Ok(Some(unwritten.finding(begin)));
    };
    client
        .batch_execute(&sql)
        .await
        .with_context(|| format!("cannot run {sql}"))?;
    Ok(None)
}
