//! How a bulk of messages leaves room for the lane's relay on the same stream.
//!
//! In: the slot, how long a stint took. Out: how much the next one may publish, and a rest. On a stream of its own each stint
//! costs a relay that has something to publish a resync, which fails as long as the stint goes on. So stints are shorter than
//! that where a relay reads from the slot, and after each the relay is waited for. On a shared stream neither disturbs the
//! other.

use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::postgres::client::Client;
use crate::relay::lane_client::LaneClient;

/// Most messages of a stint beside a relay that has something to publish: fewer than are published while it resyncs.
const STINT_MESSAGES: u64 = 500;
/// Beside one that had nothing: its next event may wait a little longer.
const STINT_MESSAGES_IDLE: u64 = 2_000;
/// A relay that has something to publish does so within this time, as a rule.
const REST_MAX: Duration = Duration::from_millis(15);
/// So long it is waited for where it had something to publish behind the stint before: it has now, as a rule, and misses its next
/// turn too where it is late for this one.
const REST_MAX_BUSY: Duration = Duration::from_millis(100);
/// Where it does, it gets so long for more.
const GRACE: Duration = Duration::from_millis(2);
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
            messages: match beside.map(|relay| relay.is_busy) {
                Some(true) => STINT_MESSAGES,
                Some(false) => STINT_MESSAGES_IDLE,
                None => u64::MAX,
            },
            until: now + LOOK_INTERVAL,
            contended: beside.is_some(),
        })
    }

    /// Lets a relay publish what has come meanwhile, behind the stint's last sequence.
    pub(super) async fn rest(
        &mut self,
        lane: &LaneClient,
        last_sequence: u64,
    ) -> anyhow::Result<()> {
        let Some(relay) = self.relay.as_mut().filter(|relay| relay.runs) else {
            return Ok(());
        };
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
                sleep(GRACE).await;
                break;
            }
        }
        Ok(())
    }
}

impl Relay {
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
