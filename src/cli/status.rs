//! `walrelay status`: what the relay is doing.
//!
//! In: the settings. Out: the running relay's own word from `http.listen`, else what slot and stream tell, as text or
//! JSON. Guarantee: reads only, and says which of the two it is.

pub mod watch;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use postgres_types::PgLsn;
use serde::{Deserialize, Serialize};

use crate::bulk::lease::holders;
use crate::cli::exit::Exit;
use crate::cli::http_get::get;
use crate::cli::lane_state::{LaneState, wal_text};
use crate::cli::position::{self, Positions};
use crate::cli::stderr;
use crate::cli::stdout::Account;
use crate::config::HttpSettings;
use crate::counted::counted;
use crate::nats::admin::Admin;
use crate::ops::http::STATUS_PATH;
use crate::relay::FULL;
use crate::relay::bulk_work::BulkWork;
use crate::relay::settings::Settings;
use crate::relay::status::{State, Status};

/// How long the relay may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

const EXAMPLES: &str = "\
Examples:
  walrelay status                                 what the relay is doing
  walrelay status --json | jq -r .relay.state     starting, streaming, waiting or halted
  walrelay status --watch                         drawn anew every two seconds, or --watch=10s

The running relay is asked at http.listen. Where none answers there, slot, stream and lane record
tell: running elsewhere, stopped, halted (why, and what to do), or the slot is lost.

  server         the end of the write-ahead log, looked at every few seconds
  received       what has arrived of it
  acknowledged   what the broker has taken, and how far and for how long behind the server's end
  confirmed      what Postgres may forget; behind acknowledged by hold_back
  bulk work      a command that publishes for the lane beside the relay, such as backfill or move,
                 and how far it is; or one that was killed, and how it is finished. Whether it lives
                 is told by its lease, which it renews each second
  latency        of transactions, from the commit, by the server's clock, to the acknowledgement

--watch ends with 0.

Exit code 0: a relay is streaming, or stands by for one that is. 1: it does neither, or cannot see
the catalog, or none answers. 3: none answers, and Postgres or NATS could not be asked why, or a
lock keeps a table from being looked at.";

/// Show what the relay is doing.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// One JSON object a line: of an outbox with shares, one for each share.
    #[arg(long)]
    json: bool,

    /// Again and again until Ctrl-C: drawn anew on a terminal, else a line a look.
    #[arg(long, value_name = "PAUSE", num_args = 0..=1, require_equals = true, default_missing_value = "2s")]
    #[arg(value_parser = watch::parse_pause)]
    pub watch: Option<Duration>,
}

#[derive(Default, Serialize)]
struct Answer {
    relay: Option<Status>,
    #[serde(skip_serializing_if = "Option::is_none")]
    positions: Option<Positions>,
    /// Commands beside the relay.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    bulk_work: Vec<BulkWork>,
}

/// What `/status.json` has: of a process with several shares, a list.
#[derive(Deserialize)]
#[serde(untagged)]
enum Lanes {
    One(Box<Status>),
    Several(Vec<Status>),
}

impl Answer {
    fn text(&self) -> String {
        let mut text = match (&self.relay, &self.positions) {
            (Some(status), _) => text(status),
            (None, Some(positions)) => position::text(positions),
            (None, None) => String::new(),
        };
        for work in &self.bulk_work {
            let before = if text.is_empty() { "" } else { "\n" };
            text += &format!("{before}{:<14}{}", "bulk work", work.what());
            if let Some(remedy) = work.remedy() {
                text += &format!("\n{:<14}{remedy}", "what to do");
            }
        }
        text
    }
}

/// What one look has found.
struct Look {
    answer: Answer,
    /// Why there is no more.
    notes: Vec<String>,
    exit: Exit,
}

/// Runs the command for one lane.
///
/// # Errors
/// Standard output cannot be written.
pub async fn execute(
    args: Args,
    settings: &Settings,
    http: &HttpSettings,
) -> Result<Exit, anyhow::Error> {
    let look = look(settings, http).await;
    for note in &look.notes {
        stderr::line(note);
    }
    let mut account = Account::default();
    if args.json {
        account.line(serde_json::to_string(&look.answer)?);
    } else if let text = look.answer.text()
        && !text.is_empty()
    {
        account.line(text);
    }
    account.close()?;
    Ok(look.exit)
}

async fn look(settings: &Settings, http: &HttpSettings) -> Look {
    let relay = match http.listen {
        Some(listen) => ask(listen, settings).await,
        None => Err(anyhow!("http.listen is turned off")),
    };
    match relay {
        Ok(mut status) => {
            // The process is well, and says nothing of whether another one has the share.
            let nobodys = match status.reason.as_deref() == Some(FULL) {
                true => nobodys(settings).await,
                false => None,
            };
            Look {
                exit: match status.is_ready() && nobodys.is_none() {
                    true => Exit::Done,
                    false => Exit::Failed,
                },
                answer: Answer {
                    bulk_work: std::mem::take(&mut status.bulk_work),
                    relay: Some(status),
                    positions: None,
                },
                notes: nobodys.into_iter().collect(),
            }
        }
        Err(error) => {
            let mute = error.downcast_ref::<Mute>().map(|mute| mute.0);
            let why = super::exit::message(&error);
            without_relay(settings, format!("no relay answers: {why}"), mute).await
        }
    }
}

/// Why a share that this process leaves to others is nobody's, as far as Postgres tells.
async fn nobodys(settings: &Settings) -> Option<String> {
    let (positions, _) = position::look(settings).await.ok()?;
    (!positions.lane.is_read()).then(|| {
        format!(
            "nobody reads slot {}, and what is written for it waits: start another instance, or raise relay.max_shares_per_instance",
            positions.slot
        )
    })
}

/// What slot, stream and lane record tell.
async fn without_relay(settings: &Settings, why: String, mute: Option<SocketAddr>) -> Look {
    let (looked, bulk_work) = tokio::join!(position::look(settings), bulk_work(settings));
    let (mut positions, unseen) = match looked {
        Ok((positions, unseen)) => (Some(positions), unseen),
        Err(error) => (None, Some(error)),
    };
    let unseen_work = match (&unseen, &bulk_work) {
        // That tells why.
        (Some(_), _) | (None, Ok(_)) => None,
        (None, Err(error)) => Some(format!(
            "commands beside the relay are not seen: {}",
            super::exit::message(error)
        )),
    };
    if let (Some(positions), Some(address)) = (&mut positions, mute) {
        positions.lane.take_mute(address);
    }
    let told = positions.as_ref().map(|positions| &positions.lane);
    let is_known = told.is_some_and(LaneState::is_known);
    let locked = positions
        .as_ref()
        .and_then(|positions| positions.locked.as_ref());
    let is_locked = locked.is_some();
    let error = |unseen| format!("error: {}", super::exit::message(unseen));
    let notes = [why].into_iter();
    let notes = notes.chain(unseen.as_ref().map(error)).chain(unseen_work);
    Look {
        notes: notes.collect(),
        exit: match (unseen.is_none() || is_known) && !is_locked {
            true => Exit::Failed,
            false => Exit::Unchecked,
        },
        answer: Answer {
            relay: None,
            positions,
            bulk_work: bulk_work.unwrap_or_default(),
        },
    }
}

/// What publishes for the slot's lanes beside the relay.
async fn bulk_work(settings: &Settings) -> anyhow::Result<Vec<BulkWork>> {
    let nats = Admin::connect(&settings.nats.connection).await?;
    Ok(holders(&nats, &settings.postgres.slot).await?)
}

/// Asks the relay that should listen there.
async fn ask(listen: SocketAddr, settings: &Settings) -> anyhow::Result<Status> {
    let address = reachable(listen);
    let body = tokio::time::timeout(ANSWER_TIMEOUT, get(&address.to_string(), STATUS_PATH))
        .await
        .map_err(|_| Mute(address))?
        .with_context(|| format!("{address}"))?;
    let lanes: Lanes = serde_json::from_slice(&body)
        .with_context(|| format!("what answers at {address} is not walrelay"))?;
    let lanes = match lanes {
        Lanes::One(status) => vec![*status],
        Lanes::Several(lanes) => lanes,
    };
    // Slot and stream have the same names by default.
    let names = |status: &Status| {
        let Status {
            slot,
            stream,
            database,
            ..
        } = status;
        (slot.clone(), stream.clone(), database.clone())
    };
    let found = lanes.iter().map(names).collect::<Vec<_>>();
    let wanted = (
        settings.postgres.slot.clone(),
        settings.nats.stream.clone(),
        settings.postgres.conninfo.dbname.clone(),
    );
    let lane = lanes.into_iter().find(|status| names(status) == wanted);
    lane.ok_or_else(|| {
        let found = found.iter().map(|(slot, stream, database)| {
            format!("slot {slot} of database {database} and stream {stream}")
        });
        let found = found.collect::<Vec<_>>().join(", ");
        anyhow!("the relay at {address} has {found}")
    })
}

/// Nothing refuses the connection, and nothing answers.
#[derive(Debug, thiserror::Error)]
#[error("no answer from {0} within {ANSWER_TIMEOUT:?}")]
struct Mute(SocketAddr);

/// A listener on all addresses is reached on the loopback one.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    SocketAddr::new(ip, listen.port())
}

fn text(status: &Status) -> String {
    let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let marks = status.marks;
    let lines = [
        (
            "relay",
            format!("{}, walrelay {}", status.name, status.version),
        ),
        ("state", state(status)),
        (
            "slot",
            format!(
                "{} of database {}, Postgres {}",
                status.slot,
                status.database,
                or_dash(&status.postgres)
            ),
        ),
        (
            "stream",
            format!("{}, nats-server {}", status.stream, or_dash(&status.nats)),
        ),
        ("publishes by", or_dash(&status.mode)),
        ("last event", or_dash(&status.position)),
        ("server", server(status)),
        (
            "received",
            format!(
                "{} ({}{})",
                lsn(marks.received_lsn),
                behind(status.received_lag_bytes()),
                behind_for(status.received_lag_seconds)
            ),
        ),
        (
            "acknowledged",
            match status.state {
                // What another relay reads is not behind here.
                State::Standby => lsn(marks.acknowledged_lsn),
                _ => format!(
                    "{} ({}{})",
                    lsn(marks.acknowledged_lsn),
                    behind(status.lag_bytes()),
                    behind_for(status.lag_seconds)
                ),
            },
        ),
        (
            "confirmed",
            format!(
                "{} ({} held back{})",
                lsn(marks.confirmed_lsn),
                bytes(status.held_back_bytes()),
                behind_for(status.confirmed_lag_seconds)
            ),
        ),
        ("latency", latency(status)),
        (
            "events",
            format!(
                "{} acknowledged, {} in flight, {} a second",
                status.totals.acknowledged, marks.in_flight, status.events_per_second
            ),
        ),
        ("dead letters", dead_letters(status)),
        ("after publish", after_publish(status)),
        (
            "slot's WAL",
            wal_text(&status.slot_wal).unwrap_or_else(|| "-".to_owned()),
        ),
    ];
    let line = |(name, value): (&str, String)| format!("{name:<14}{value}");
    lines.map(line).join("\n")
}

/// The server's end, and when that was, where it is no more than a look from some time ago.
fn server(status: &Status) -> String {
    let end = lsn(status.server_lsn);
    match status.looked_at {
        Some(at) if !status.lag_known => {
            format!("{end} as of {}", at.format("%Y-%m-%d %H:%M:%S UTC"))
        }
        _ => end,
    }
}

/// `-` where nobody has seen it yet.
fn lsn(lsn: u64) -> String {
    match lsn {
        0 => "-".to_owned(),
        lsn => PgLsn::from(lsn).to_string(),
    }
}

fn behind(bytes_behind: Option<u64>) -> String {
    match bytes_behind {
        Some(count) => format!("{} behind", bytes(Some(count))),
        None => "not known how far behind".to_owned(),
    }
}

fn behind_for(seconds: Option<u64>) -> String {
    match seconds {
        None | Some(0) => String::new(),
        Some(seconds) => format!(", for {seconds} s"),
    }
}

/// From commit to acknowledgement, since the start, as far as the histogram tells.
fn latency(status: &Status) -> String {
    let latencies = &status.commit_to_ack;
    let at_most = |share| {
        let us = latencies.at_most_us(share)?;
        Some(match us {
            1_000_000.. => format!("{} s", us as f64 / 1e6),
            us => format!("{} ms", us as f64 / 1e3),
        })
    };
    match (at_most(0.5), at_most(0.99)) {
        (Some(half), Some(most)) => {
            format!("half within {half} of their commit, 99 % within {most}")
        }
        _ => "-".to_owned(),
    }
}

fn after_publish(status: &Status) -> String {
    match status.after_publish_lag {
        None => "rows are kept".to_owned(),
        Some(lag) => format!(
            "{} marked or deleted since the start, those of {} still to be",
            counted(status.totals.after_publish_rows, "row", "rows"),
            counted(lag, "message", "messages")
        ),
    }
}

fn dead_letters(status: &Status) -> String {
    let since_start: u64 = status.totals.dead_letters.values().sum();
    match status.dead_letters_open {
        Some(0) => format!("none open, {since_start} since the start"),
        Some(open) => {
            format!("{open} open, {since_start} since the start: walrelay dead-letters list")
        }
        None => format!("{since_start} since the start, the open ones are not counted yet"),
    }
}

fn state(status: &Status) -> String {
    let name = status.state.name();
    let reason = status
        .reason
        .as_ref()
        .map_or_else(String::new, |reason| format!(": {reason}"));
    format!(
        "{name} since {}{reason}",
        status.since.format("%Y-%m-%d %H:%M:%S UTC")
    )
}

fn bytes(count: Option<u64>) -> String {
    count.map_or_else(|| "-".to_owned(), crate::ops::bytes)
}
