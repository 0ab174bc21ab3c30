//! The lane of a share: one configuration names the streams of all of them.
//!
//! In: a lane on its way. Out: the configuration that has it there, and what takes the other shares there too. Guarantee: reads only.

use anyhow::bail;

use super::{Move, Stage};
use crate::cli::exit::UsageError;
use crate::nats::admin::Admin;
use crate::pipeline::record::Moved;
use crate::pipeline::reshard::{common_stream, name_of};
use crate::relay::lane_client::{LaneError, lane_records};

impl Move {
    /// The number of its share.
    pub(super) fn part(&self) -> Option<u32> {
        self.from.settings.postgres.part()
    }

    /// As `nats.stream` has it, for all shares.
    fn common(&self) -> Option<String> {
        common_stream(self.to.stream(), self.part()?)
    }

    /// Whether one configuration can name the target together with the streams of other shares.
    pub(super) fn check_name(&self) -> anyhow::Result<()> {
        let to = self.to.stream();
        match self.part() {
            Some(number) if self.stage == Stage::Begin && self.common().is_none() => {
                bail!(UsageError(format!(
                    "--to-stream {to}: nats.stream names the streams of all shares, by {{share}}, so the one of share {number} has that \
                     number in its name: --to-stream {to}_{number}"
                )))
            }
            _ => Ok(()),
        }
    }

    /// What the new configuration has.
    fn keys(&self) -> String {
        let nats = self.nats.as_ref();
        let nats = nats.map_or_else(String::new, |nats| format!(" and nats.url = \"{nats}\""));
        let stream = self.common();
        let stream = stream.as_deref().unwrap_or(self.to.stream());
        format!("nats.stream = \"{stream}\"{nats}")
    }

    /// The same, of a relay of this lane alone.
    pub(super) fn keys_of_lane(&self) -> String {
        let share = self.part();
        let share = share.map_or_else(String::new, |share| format!(" and relay.share = {share}"));
        self.keys() + &share
    }

    /// What the relay needs once the lane is there.
    pub(super) async fn needed(&self) -> anyhow::Result<String> {
        let rest = self.others().await?;
        Ok(match rest.is_empty() {
            true => self.keys(),
            false => format!(
                "{} until the other shares are there too, by {} with the configuration of the old stream",
                self.keys_of_lane(),
                rest.join(" && ")
            ),
        })
    }

    /// What takes the other shares there which are not there yet.
    async fn others(&self) -> anyhow::Result<Vec<String>> {
        let postgres = &self.from.settings.postgres;
        let (Some(common), Some(own)) = (self.common(), postgres.share.as_ref()) else {
            return Ok(Vec::new());
        };
        let nats = self.nats.as_deref();
        let mut rest = Vec::new();
        for number in (0..own.count).filter(|number| *number != own.number) {
            let there = name_of(&common, number);
            if is_to_be_moved(&self.from.nats, &own.slot(Some(number)), &there, nats).await? {
                rest.push(command_of(number, &there, nats));
            }
        }
        Ok(rest)
    }
}

/// Whether there is a lane of this slot that is not in stream `there` yet, at another NATS where one is named.
///
/// # Errors
/// NATS refuses to tell.
pub(in crate::cli) async fn is_to_be_moved(
    nats: &Admin,
    slot: &str,
    there: &str,
    at: Option<&str>,
) -> anyhow::Result<bool> {
    let records = match lane_records(nats, slot).await {
        Err(LaneError::NoStream(_)) => return Ok(false),
        records => records?,
    };
    let is_there = match at {
        None => (records.iter()).any(|it| it.stream == there && it.moved.is_none()),
        Some(at) => records.iter().any(|it| {
            matches!(&it.moved, Some(Moved::To { stream, nats: Some(nats) }) if stream == there && nats == at)
        }),
    };
    Ok(!is_there && records.iter().any(|it| !it.retired))
}

/// The command that takes a share there.
pub(in crate::cli) fn command_of(share: u32, there: &str, at: Option<&str>) -> String {
    let nats = at.map_or_else(String::new, |at| format!(" --to-nats {at}"));
    format!("walrelay move --share {share} --to-stream {there}{nats}")
}
