//! Lanes that live elsewhere than the configuration says: `walrelay move` has taken them there, or it names another NATS.
//!
//! In: the lanes that a run changes. Out: what takes the others there too, and the configuration that names all of them. Guarantees:
//! reads only; no lane changes without its record, which tells that it lives here; a run that ends lanes which carry nothing any more is
//! not held up by where the others live: their relays have them.

use std::collections::BTreeSet;

use anyhow::bail;

use super::{Resharding, of_all_rows};
use crate::cli::move_lane;
use crate::nats::admin::Admin;
use crate::pipeline::record::{LaneRecord, Moved};
use crate::pipeline::reshard::{Switch, common_stream, has_lane, lanes_of, name_of};
use crate::postgres::catalog::inspect;
use crate::relay::crossing::name;
use crate::relay::lane_client::LaneClient;
use crate::relay::settings::Settings;

impl Resharding<'_> {
    /// A relay of this configuration would halt for a lane that lives elsewhere, and others wait for it.
    ///
    /// # Errors
    /// One does, or NATS refuses to tell.
    pub(super) async fn check_moved(&self) -> anyhow::Result<()> {
        let Switch { from, to } = self.switch;
        let parts: BTreeSet<Option<u32>> = match from == to {
            true => self.leaving().collect(),
            false => lanes_of(from)
                .chain(lanes_of(to))
                .chain(self.division.parts())
                .collect(),
        };
        let nats = Admin::connect(&self.shares[0].nats.connection).await?;
        for part in &parts {
            let lane = self.lane(*part);
            let client = LaneClient::new(&nats, &lane.nats.stream, &lane.postgres.slot)?;
            let record = client.record().await?.record;
            let is_known = record.is_some();
            match record.filter(|record| !record.retired || record.moved.is_some()) {
                Some(record) => self.check_is_here(&nats, &parts, *part, &record).await?,
                // A name without a publication may be another outbox's.
                None if from != to && part.is_some() && self.division.has(*part) => {
                    self.check_lives_nowhere(&nats, lane).await?;
                    // Others would wait for it here, and it publishes elsewhere, for all that this NATS knows.
                    if has_lane(from, *part) {
                        bail!(self.no_record(&nats, *part).await?);
                    }
                }
                None if from == to && !is_known && self.has_passed(lane).await? => {
                    bail!(self.no_record(&nats, *part).await?);
                }
                None => {}
            }
        }
        Ok(())
    }

    /// Whether the lane's slot is known to have passed something.
    async fn has_passed(&self, lane: &Settings) -> anyhow::Result<bool> {
        Ok(inspect(&self.sql, &lane.postgres).await?.has_passed())
    }

    async fn check_is_here(
        &self,
        nats: &Admin,
        parts: &BTreeSet<Option<u32>>,
        part: Option<u32>,
        record: &LaneRecord,
    ) -> anyhow::Result<()> {
        let slot = &self.lane(part).postgres.slot;
        let (to, at) = match &record.moved {
            None => return Ok(()),
            Some(Moved::From {
                stream, nats: at, ..
            }) => {
                let here = self.shares[0].nats.connection.servers_text();
                let to_here = at.as_ref().map(|_| here.as_str());
                let common = part.and_then(|number| common_stream(stream, number));
                let typed = match (part, common, at) {
                    (Some(number), Some(common), _) => {
                        let at = at.as_ref();
                        let at = at.map_or_else(String::new, |url| format!(" --nats-url {url}"));
                        let command = move_lane::command_of(number, &record.stream, to_here);
                        format!("{command} --stream '{common}'{at}")
                    }
                    _ => {
                        let to_here =
                            to_here.map_or_else(String::new, |url| format!(" --to-nats {url}"));
                        format!(
                            "walrelay move --to-stream {}{to_here} with the configuration of the old stream",
                            record.stream
                        )
                    }
                };
                bail!(
                    "{} (slot {slot}) is still on its way from stream {stream}{} to {}, so nothing was changed: run {typed}, which ends \
                     that move; then run this again",
                    name(part),
                    at.as_ref()
                        .map_or_else(String::new, |url| format!(" at {url}")),
                    record.stream,
                )
            }
            Some(Moved::To { stream, nats }) => (stream, nats.as_deref()),
        };
        let is_at = at.map_or_else(String::new, |url| format!(" at {url}"));
        let what = format!(
            "{} (slot {slot}) lives in stream {to}{is_at}, where walrelay move has taken it: a relay of this configuration halts, \
             and others would wait for it, so nothing was changed",
            name(part)
        );
        let Some(number) = part else {
            let told = of_all_rows(&self.shares[0]).await;
            let told = told.filter(|told| told.is_told && !told.is_own && at.is_none());
            match told {
                Some(told) => bail!("{what}: give {}", told.flags()),
                None => bail!("{what}: run this again with the configuration of that stream"),
            }
        };
        let Some(common) = common_stream(to, number) else {
            bail!(
                "{what}. No nats.stream names that stream together with those of other shares: its name has no number {number}"
            );
        };
        let mut rest = Vec::new();
        for number in parts.iter().copied().flatten() {
            let there = name_of(&common, number);
            let slot = &self.lane(Some(number)).postgres.slot;
            if move_lane::is_to_be_moved(nats, slot, &there, at).await? {
                rest.push(move_lane::command_of(number, &there, at));
            }
        }
        let count = (parts.iter().copied().flatten().max())
            .map_or(2, |last| (last + 1).next_power_of_two().max(2));
        let first = match rest.is_empty() {
            true => "Set".to_owned(),
            false => format!(
                "Run {}, with relay.shares = {count} and nats.stream as it is. Then set",
                rest.join(" && ")
            ),
        };
        let [key, flag] = match at {
            None => [String::new(), String::new()],
            Some(url) => [
                format!(" and nats.url = \"{url}\""),
                format!(" --nats-url {url}"),
            ],
        };
        bail!(
            "{what}. {first} nats.stream = \"{common}\"{key} for all relays, and run walrelay reshard --shares {} --stream \
             '{common}'{flag}",
            self.switch.to
        )
    }
}
