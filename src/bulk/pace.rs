//! How a bulk of messages leaves room for the lane's relay on the same stream.
//!
//! In: the slot, how long a stint took. Out: how much the next one may publish, and a rest. On a stream of its own each stint
//! costs a relay that has something to publish a resync, which fails as long as the stint goes on. So stints are short where a
//! relay reads from the slot, and after each the relay is waited for. How many messages that are, the stint before tells. On a
//! shared stream neither disturbs the other.

use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::postgres::client::Client;
use crate::relay::lane_client::LaneClient;

/// How long a stint is to take beside a relay that has something to publish: that is what its next event waits at most, as a rule.
const STINT: Duration = Duration::from_millis(10);
/// Beside one that had nothing: its next event may wait a little longer.
const STINT_IDLE: Duration = Duration::from_millis(25);
/// Messages of the first stint; a stint has half or twice as many as the one before it at most.
const MESSAGES_FIRST: u64 = 500;
/// Fewer cost more in turns than they save; more come near the window of a relay.
const MESSAGES: RangeInclusive<u64> = 100..=8_000;
/// A relay that has something to publish does so within this time, as a rule.
const REST_MAX: Duration = Duration::from_millis(15);
/// So long it is waited for where it had something to publish behind the stint before: it has now, as a rule, and misses its next
/// turn too where it is late for this one.
const REST_MAX_BUSY: Duration = Duration::from_millis(100);
const REST_LOOK_INTERVAL: Duration = Duration::from_millis(1);
/// So often it is looked for a relay.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(super) struct Pace {
    /// The one that a stint would disturb.
    relay: Option<Relay>,
}

/// The relay of a slot.
#[derive(Debug)]
struct Relay {
    sql: Client,
    slot: String,
    runs: bool,
    looked: Option<Instant>,
    /// Whether it had something to publish behind the last stint.
    is_busy: bool,
    /// Messages that are published in the time of a stint beside it while it is busy, as of the last one.
    messages: u64,
}

/// What one stint may publish.
#[derive(Debug, Clone, Copy)]
pub(super) struct Allowance {
    pub(super) messages: u64,
    pub(super) until: Instant,
    /// Others publish too: one message goes first, to see whether it finds its place.
    pub(super) contended: bool,
}

impl Pace {
    /// On the own stream of a slot's relay.
    pub(super) fn beside_relay(sql: Client, slot: &str) -> Self {
        Pace {
            relay: Some(Relay {
                sql,
                slot: slot.to_owned(),
                runs: true,
                looked: None,
                is_busy: true,
                messages: MESSAGES_FIRST,
            }),
        }
    }

    /// Where no relay is disturbed.
    pub(super) fn alone() -> Self {
        Pace { relay: None }
    }

    /// Looks for a relay where that is due.
    pub(super) async fn allowance(&mut self) -> anyhow::Result<Allowance> {
        let now = Instant::now();
        if let Some(relay) = &mut self.relay {
            relay.look(now).await?;
        }
        let beside = self.relay.as_ref().filter(|relay| relay.runs);
        Ok(Allowance {
            messages: beside.map_or(u64::MAX, Relay::stint_messages),
            until: now + LOOK_INTERVAL,
            contended: beside.is_some(),
        })
    }

    /// Lets a relay publish what has come meanwhile, behind the stint's last sequence. It had `stored` messages, in the time since the
    /// first of them.
    pub(super) async fn rest(
        &mut self,
        lane: &LaneClient,
        last_sequence: u64,
        (stored, took): (u64, Duration),
    ) -> anyhow::Result<()> {
        let Some(relay) = self.relay.as_mut().filter(|relay| relay.runs) else {
            return Ok(());
        };
        // The source's last ones tell nothing.
        if stored >= relay.stint_messages() {
            relay.messages = next_messages(relay.messages, stored, took);
        }
        let limit = match relay.is_busy {
            true => REST_MAX_BUSY,
            false => REST_MAX,
        };
        relay.is_busy = false;
        let begin = Instant::now();
        while begin.elapsed() < limit {
            sleep(REST_LOOK_INTERVAL).await;
            if lane.stream().await?.state.last_seq > last_sequence {
                relay.is_busy = true;
                break;
            }
        }
        Ok(())
    }
}

impl Relay {
    fn stint_messages(&self) -> u64 {
        match self.is_busy {
            true => self.messages,
            false => self.messages * STINT_IDLE.as_millis() as u64 / STINT.as_millis() as u64,
        }
    }

    async fn look(&mut self, now: Instant) -> anyhow::Result<()> {
        if self.looked.is_none_or(|at| now - at >= LOOK_INTERVAL) {
            let query = "SELECT count(*) FROM pg_catalog.pg_replication_slots \
                         WHERE slot_name = $1::text AND active_pid IS NOT NULL";
            let row = self.sql.query_one(query, &[&self.slot]).await?;
            self.runs = row.try_get::<_, i64>(0)? > 0;
            self.looked = Some(now);
        }
        Ok(())
    }
}

/// How many messages take as long as a stint is to, where `stored` ones `took` so long; not all at once, since one stint may meet a
/// pause of the server.
fn next_messages(before: u64, stored: u64, took: Duration) -> u64 {
    let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1);
    let in_stint = stored.saturating_mul(STINT.as_micros() as u64) / took_us;
    in_stint
        .clamp(before / 2, before * 2)
        .clamp(*MESSAGES.start(), *MESSAGES.end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stint_has_what_is_stored_in_its_time() {
        let ms = Duration::from_millis;
        assert_eq!(next_messages(500, 500, STINT), 500);
        assert_eq!(next_messages(1_000, 3_000, 3 * STINT), 1_000);
        assert_eq!(next_messages(500, 500, STINT / 2), 1_000);
        assert_eq!(next_messages(500, 500, ms(1)), 1_000);
        assert_eq!(next_messages(500, 500, Duration::ZERO), 1_000);
        assert_eq!(next_messages(500, 500, ms(10_000)), 250);
        assert_eq!(
            next_messages(*MESSAGES.start(), 100, ms(10_000)),
            *MESSAGES.start()
        );
        assert_eq!(
            next_messages(*MESSAGES.end(), 8_000, ms(1)),
            *MESSAGES.end()
        );
    }
}
