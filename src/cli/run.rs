//! `walrelay run`: the relay itself, until a signal or a halt.
//!
//! In: settings. Out: exit code 0 on SIGTERM, SIGINT or SIGQUIT with everything in flight acknowledged, 4 when a person has
//! to look. A second signal ends the process at once; SIGHUP reads the log level again.

mod preparation;
mod reread;
mod supervisor;
mod telemetry;

use super::exit::{Exit, UsageError};
use super::exposed::exposed;
use super::given::Given;
use super::signals::{self, Hangup};
use crate::config::{HttpSettings, Loaded};
use crate::ops::http::Server;
use crate::pipeline::position::Position;
use crate::relay::board::Board;
use crate::relay::claims::Claims;
use crate::relay::settings::Settings;
use crate::relay::{self, Outcome, Shutdown};
use postgres_types::PgLsn;

const EXAMPLES: &str = "\
Examples:
  walrelay run                                    relay what commits, from where the stream ends
  walrelay run --setup                            make slot, publication and stream first
  walrelay run --from 16/B374D848                 publish again what the slot still holds from there
                                                  on; what was never published comes in any case
  walrelay run --hold-back 0s                     confirm to Postgres at the acknowledgement

SIGTERM, SIGINT and SIGQUIT stop it; a second one ends it at once with 1. SIGHUP reads the
configuration again: the log level is taken up, and what takes a restart is named.

Exit code 0: stopped by a signal. 1: something is wrong that waiting does not cure, or a second
signal came. 2: wrong configuration. 4: halted until a person has looked; the message says at what,
and the way on.";

/// Relay committed events from Postgres to the stream.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Make what is missing first, as `walrelay setup` does; waits for servers that are away.
    #[arg(long)]
    setup: bool,

    /// Publish again what committed from this LSN on; `walrelay position` prints LSNs to save. Events that are in the
    /// stream already come again as replays, marked by a header; those that are not are never skipped. Of a position
    /// such as 16/B374D848:3 the LSN counts: a replay begins with a whole transaction. They come to all consumers of the
    /// stream; walrelay replay is the better way where only some want them, or where the slot no longer holds them.
    #[arg(long, value_name = "LSN", value_parser = parse_from)]
    from: Option<PgLsn>,
}

fn parse_from(text: &str) -> Result<PgLsn, String> {
    let position = text.parse::<Position>().map(|position| position.commit_lsn);
    text.parse().ok().or(position.ok()).ok_or_else(|| {
        format!(
            "{text:?} is neither an LSN such as 16/B374D848 nor a position such as 16/B374D848:3"
        )
    })
}

/// Relays until a signal or a halt.
///
/// # Errors
/// What waiting does not cure, at the first start.
pub(super) async fn execute(
    args: Args,
    given: Given,
    loaded: Loaded,
) -> Result<Exit, anyhow::Error> {
    let telemetry = telemetry::of(given.environment())?;
    for exposed in exposed(&loaded.secret_files) {
        tracing::warn!("{}: {}", exposed.what(), exposed.mend());
    }
    let started = loaded.clone();
    let hangup = Hangup::Reads(Box::new(move || reread::reread(&given, &started)));
    let shutdown = signals::listen(hangup)?;
    if args.from.is_some_and(|lsn| u64::from(lsn) == 0) {
        return Err(UsageError("--from 0/0 is not a position in the WAL".into()).into());
    }
    let lanes: Vec<(Settings, Board)> = (loaded.lanes.iter())
        .map(|settings| (settings.clone(), Board::of(settings)))
        .collect();
    // Served by a task beside the relay's loop, until this function ends.
    let boards: Vec<Board> = lanes.iter().map(|(_, board)| board.clone()).collect();
    let _server = serve(&loaded.http, lanes.clone()).await?;
    let _supervised = supervisor::tell(boards.clone(), shutdown.clone());
    let exporting = telemetry.start(boards)?;
    let ended = relay_lanes(&args, &loaded, lanes, shutdown).await;
    exporting.flush().await;
    ended
}

/// Relays, with what is missing made first where that is wanted.
async fn relay_lanes(
    args: &Args,
    loaded: &Loaded,
    mut lanes: Vec<(Settings, Board)>,
    shutdown: Shutdown,
) -> Result<Exit, anyhow::Error> {
    if args.setup
        && let Some(exit) = preparation::prepare(loaded, &shutdown, &lanes).await?
    {
        return Ok(exit);
    }
    let outcome = match &lanes[..] {
        [(settings, board)] => relay::run_watched(settings, args.from, shutdown, board).await?,
        _ => {
            // Processes that begin together do not all try the same one first.
            let first = rand::random_range(0..lanes.len());
            lanes.rotate_left(first);
            let claims = Claims::new(lanes.len(), loaded.lanes_max);
            relay::lanes::run(lanes, args.from, &claims, shutdown).await?
        }
    };
    match outcome {
        Outcome::Stopped => Ok(Exit::Done),
        Outcome::Halted(_) => Ok(Exit::Halted),
    }
}

/// Serves the status page where that is wanted. A second relay on the machine does not end for the default address.
async fn serve(
    http: &HttpSettings,
    lanes: Vec<(Settings, Board)>,
) -> Result<Option<Server>, anyhow::Error> {
    let Some(listen) = http.listen else {
        return Ok(None);
    };
    match Server::start(listen, lanes).await {
        Ok(server) => {
            tracing::info!(
                "status page, /metrics and /readyz on http://{}",
                server.address()
            );
            Ok(Some(server))
        }
        Err(error) if http.chosen => Err(error),
        Err(error) => {
            tracing::warn!("no status page and no metrics: {error:#}");
            Ok(None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replay_begins_at_an_lsn_or_at_the_transaction_of_a_position() {
        let lsn = PgLsn::from(0x16_B374_D848);
        assert_eq!(parse_from("16/B374D848"), Ok(lsn));
        assert_eq!(parse_from("16/B374D848:3"), Ok(lsn));
        for bad in [
            "",
            "yesterday",
            "16",
            "16/",
            "16/B374D848:",
            "16/B374D848:x",
            "walrelay 16/B374D848:3",
        ] {
            assert!(parse_from(bad).is_err(), "{bad:?}");
        }
    }
}
