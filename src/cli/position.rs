//! `walrelay position`: the LSNs that are worth saving.
//!
//! In: the settings. Out: how far the stream, the slot and the server are, as text or JSON. Guarantee: reads only, and
//! says so where a part cannot be told instead of guessing.

use anyhow::Context;
use postgres_types::PgLsn;
use serde::Serialize;

use crate::cli::exit::Exit;
use crate::cli::foreseen;
use crate::cli::lane_state::{LaneState, Missing, Recorded, missing};
use crate::cli::stderr;
use crate::cli::stdout::Account;
use crate::nats::admin::Admin;
use crate::nats::api::StoredMessage;
use crate::nats::stream;
use crate::pipeline::end_search::Lookup;
use crate::pipeline::position::Position;
use crate::pipeline::record::LaneRecord;
use crate::pipeline::request::StoredRecord;
use crate::postgres::catalog::inspect_server;
use crate::postgres::client::connect;
use crate::postgres::division;
use crate::postgres::findings::{Kind, findings, slot_misfit};
use crate::postgres::locks::{self, Inspected};
use crate::postgres::waiting;
use crate::relay::lane_client::{LaneClient, LaneError};
use crate::relay::settings::Settings;

/// How many messages are looked at, from the stream's end, for one of the slot: others may write to the stream too.
const SCAN_MESSAGES_MAX: u64 = 1_000;

const EXAMPLES: &str = "\
Examples:
  walrelay position                                     where stream, slot and server are
  walrelay position --json | jq -r .acknowledged_lsn    an LSN to save, for run --from

--from publishes the transaction at the LSN again, and all behind it.

acknowledged  the last event that the stream holds; everything before it is published
confirmed     what Postgres may forget; behind acknowledged by hold_back
server        the end of the write-ahead log, and how much of it is ahead of both

Exit code 0: printed. 1: Postgres, the slot or the stream is not there.";

/// Print the positions of stream, slot and server.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// One JSON object a line: of an outbox with shares, one for each share.
    #[arg(long)]
    json: bool,
}

/// Where stream, slot and server are; the names are the JSON keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Positions {
    /// The slot.
    pub slot: String,
    /// commit_lsn of the last event in the stream, as `run --from` takes it.
    pub acknowledged_lsn: Option<String>,
    /// The slot's confirmed_flush_lsn.
    pub confirmed_lsn: Option<String>,
    /// End of the server's WAL.
    pub server_lsn: String,
    /// The stream.
    pub stream: String,
    /// Sequence of that last event.
    pub stream_sequence: Option<u64>,
    /// Its commit_lsn and ordinal, as in its header.
    pub position: Option<String>,
    /// The same of the last copy of an event that no message in its place stands behind: what a mirror or a source leaves.
    pub(crate) copied_position: Option<String>,
    /// What is known of the lane and its relay.
    pub lane: LaneState,
    /// What the lane needs beside its slot, and has not.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) missing: Vec<Missing>,
    /// A lock that keeps a table from being looked at, and with it what the lane lacks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) locked: Option<Missing>,
    /// Whether the slot exists and is the lane's.
    #[serde(skip)]
    pub has_slot: bool,
    /// Whether one of its name is there that is not.
    #[serde(skip)]
    is_foreign: bool,
    /// Whether the stream exists.
    #[serde(skip)]
    pub(crate) has_stream: bool,
    /// Whether NATS could be asked.
    #[serde(skip)]
    is_stream_seen: bool,
}

impl Positions {
    /// WAL behind what is acknowledged or confirmed, whichever is further, in bytes.
    fn ahead_bytes(&self) -> Option<u64> {
        let lsn = |text: &str| text.parse::<PgLsn>().ok().map(u64::from);
        let known = [&self.acknowledged_lsn, &self.confirmed_lsn];
        let known = known
            .into_iter()
            .flatten()
            .filter_map(|text| lsn(text))
            .max()?;
        Some(lsn(&self.server_lsn)?.saturating_sub(known))
    }
}

/// Runs the command.
///
/// # Errors
/// Postgres or NATS cannot be reached, or refuses.
pub async fn execute(args: Args, settings: &Settings) -> Result<Exit, anyhow::Error> {
    let positions = read(settings).await?;
    let mut account = Account::default();
    account.line(if args.json {
        serde_json::to_string(&positions)?
    } else {
        text(&positions)
    });
    account.close()?;
    if args.json && !positions.has_slot && !positions.is_foreign {
        stderr::line(format_args!(
            "there is no replication slot \"{}\": run walrelay setup",
            positions.slot
        ));
    }
    let told = positions.missing.iter().chain(&positions.locked);
    for missing in told.filter(|_| args.json) {
        stderr::line(format_args!("{}: {}", missing.what, missing.remedy));
    }
    let complete = positions.has_slot && positions.has_stream;
    Ok(if complete { Exit::Done } else { Exit::Failed })
}

/// Reads the positions.
///
/// # Errors
/// Postgres or NATS cannot be reached, or refuses.
pub async fn read(settings: &Settings) -> Result<Positions, anyhow::Error> {
    match look(settings).await? {
        (positions, None) => Ok(positions),
        (_, Some(unseen)) => Err(unseen),
    }
}

/// What NATS tells.
#[derive(Debug, Default)]
struct Stored {
    last: Option<(u64, Position)>,
    copied: Option<(u64, Position)>,
    has_stream: bool,
    has_record_stream: bool,
    record: StoredRecord,
}

/// As far as they can be read, and why NATS does not tell its part.
///
/// # Errors
/// Postgres cannot be reached, or refuses.
pub(super) async fn look(
    settings: &Settings,
) -> Result<(Positions, Option<anyhow::Error>), anyhow::Error> {
    let conninfo = &settings.postgres.conninfo;
    let client = connect(conninfo)
        .await
        .with_context(|| format!("cannot connect to {conninfo}"))?;
    let postgres = &settings.postgres;
    let (mut inspection, locked) = match locks::inspect(&client, postgres).await? {
        Inspected::Seen(inspection) => (*inspection, None),
        Inspected::Locked(locked) => (inspect_server(&client, postgres).await?, Some(locked)),
    };
    let (stored, nats, unseen) = match stored(settings).await {
        Ok((stored, nats)) => (stored, Some(nats), None),
        Err(error) => (Stored::default(), None, Some(error)),
    };
    let recorded = match &unseen {
        None => Recorded::Seen(&stored.record),
        Some(_) => Recorded::Unseen,
    };
    let mut foreseen = None;
    let found = match &locked {
        None => {
            let division = division::division(&client, postgres).await?;
            if let Some(nats) = &nats {
                let halt = foreseen::halt(settings, &client, &inspection, &division, nats).await;
                foreseen = halt.unwrap_or_else(|error| {
                    let why = super::exit::message(&error);
                    stderr::line(format_args!(
                        "what a relay that starts now would halt at is not seen: {why}"
                    ));
                    None
                });
            }
            division::findings_among(&client, &inspection, postgres, &division).await?
        }
        // What is not seen is not missing.
        Some(_) => {
            let mut found = findings(&inspection, postgres);
            found.retain(|it| {
                matches!(
                    it.kind,
                    Kind::SlotLost | Kind::SlotMismatch | Kind::SlotUnfinished
                )
            });
            found
        }
    };
    // One of another database, say, tells nothing of this lane.
    let dbname = &inspection.server.dbname;
    let is_foreign = (inspection.slot.as_ref()).is_some_and(|it| slot_misfit(it, dbname).is_some());
    if is_foreign {
        inspection.slot = None;
    }
    let foreseen = foreseen.map(|halt| foreseen::note(&halt, settings));
    let mut lane = LaneState::of(&inspection, recorded, &found, foreseen.as_ref());
    lane.take_waiting(waiting::relays(&client, &postgres.slot).await?);
    let streams = [
        (settings.nats.stream.as_str(), stored.has_stream),
        (stream::LANE_RECORD_STREAM, stored.has_record_stream),
    ];
    let absent = streams
        .iter()
        .filter(|(_, is_there)| !is_there && unseen.is_none());
    let absent: Vec<&str> = absent.map(|(name, _)| *name).collect();
    let mut missing = match is_foreign {
        // What a lane under another name would lack is not this one's.
        true => Vec::new(),
        false => missing(&found, &absent),
    };
    // Whoever reads the slot publishes elsewhere, or goes on by what no other knows.
    let beside = foreseen.filter(|_| lane.is_read());
    missing.extend(beside.map(|note| Missing {
        what: format!("a relay that starts now would halt: {}", note.reason),
        remedy: note.remedy,
    }));
    let Stored { last, copied, .. } = stored;
    let at = |last: Option<(u64, Position)>| last.map(|(_, position)| position);
    let copied_position = at(copied).filter(|_| at(copied) > at(last));
    let text = |lsn: PgLsn| lsn.to_string();
    let positions = Positions {
        slot: settings.postgres.slot.clone(),
        acknowledged_lsn: last.map(|(_, position)| text(position.commit_lsn)),
        confirmed_lsn: inspection
            .slot
            .as_ref()
            .and_then(|slot| slot.confirmed_flush_lsn)
            .map(text),
        server_lsn: text(inspection.server.current_lsn),
        stream: settings.nats.stream.clone(),
        stream_sequence: last.map(|(sequence, _)| sequence),
        position: last.map(|(_, position)| position.to_string()),
        copied_position: copied_position.map(|position| position.to_string()),
        lane,
        missing,
        locked: locked.map(|locked| Missing {
            what: locked.to_string(),
            remedy: locked.mend(),
        }),
        has_slot: inspection.slot.is_some(),
        is_foreign,
        has_stream: stored.has_stream,
        is_stream_seen: unseen.is_none(),
    };
    Ok((positions, unseen))
}

async fn stored(settings: &Settings) -> Result<(Stored, Admin), anyhow::Error> {
    let nats = Admin::connect(&settings.nats.connection).await?;
    let found = stream::find(&nats, &settings.nats.stream).await?;
    let lane = LaneClient::new(&nats, &settings.nats.stream, &settings.postgres.slot)?;
    let (stored, has_record_stream) = match lane.record().await {
        Err(LaneError::NoStream(_)) => (StoredRecord::default(), false),
        stored => (stored?, true),
    };
    let (last, copied) = match &found {
        Some(info) => match last_of_slot(&lane, settings, info.state.last_seq).await? {
            (None, copied) => (recorded(stored.record.as_ref(), &info.created), copied),
            ended => ended,
        },
        None => (None, None),
    };
    let stored = Stored {
        last,
        copied,
        has_stream: found.is_some(),
        has_record_stream,
        record: stored,
    };
    Ok((stored, nats))
}

/// The positions for people.
pub(super) fn text(positions: &Positions) -> String {
    let or_none = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
    let ahead = positions.ahead_bytes().map_or_else(String::new, |count| {
        format!(" ({} ahead)", crate::ops::bytes(count))
    });
    let last = match positions.stream_sequence {
        Some(sequence) => format!("sequence {sequence}"),
        None if !positions.is_stream_seen => "not seen".to_owned(),
        None if !positions.has_stream => "missing".to_owned(),
        None => "no event of this slot at its end".to_owned(),
    };
    let copied = match &positions.copied_position {
        Some(position) => format!(
            ", and a copy of the one at {position}: where a mirror or a source became the stream, walrelay adopt compares them"
        ),
        None => String::new(),
    };
    let slot = match (positions.has_slot, positions.is_foreign) {
        (true, _) => positions.slot.clone(),
        (_, true) => format!("{}, another one", positions.slot),
        _ => format!("{}, missing", positions.slot),
    };
    let mut lines = positions.lane.lines();
    for missing in &positions.missing {
        lines.push(("missing", missing.what.clone()));
        lines.push(("what to do", missing.remedy.clone()));
    }
    if let Some(locked) = &positions.locked {
        lines.push(("locked", locked.what.clone()));
        lines.push(("what to do", locked.remedy.clone()));
    }
    let lane: String = lines
        .iter()
        .map(|(name, value)| format!("{name:<14}{value}\n"))
        .collect();
    format!(
        "{lane}slot          {slot}\nacknowledged  {}\nconfirmed     {}\nserver        {}{ahead}\nstream        {}, {last}{copied}",
        or_none(&positions.position),
        or_none(&positions.confirmed_lsn),
        positions.server_lsn,
        positions.stream,
    )
}

/// Sequence and position of the slot's last message and of its last copy behind that, looking back from the stream's end.
/// Removed messages are passed over.
async fn last_of_slot(
    lane: &LaneClient,
    settings: &Settings,
    last_seq: u64,
) -> Result<(Option<(u64, Position)>, Option<(u64, Position)>), anyhow::Error> {
    let end = last_seq.saturating_sub(SCAN_MESSAGES_MAX);
    let mut copied = None;
    for sequence in (end + 1..=last_seq).rev() {
        let message = lane
            .message(Lookup::Message(sequence))
            .await
            .with_context(|| {
                format!(
                    "cannot read message {sequence} of stream {}",
                    settings.nats.stream
                )
            })?;
        let place = message
            .as_ref()
            .and_then(|message| lane_place(message, &settings.postgres.slot, settings.nats.shared));
        match place {
            Some(Place::Own(position)) => return Ok((Some((sequence, position)), copied)),
            Some(Place::Copied(position)) => copied = copied.or(Some((sequence, position))),
            None => {}
        }
    }
    Ok((None, copied))
}

/// The lane record's word where the stream itself has no message of the slot left: age and limits remove messages.
fn recorded(record: Option<&LaneRecord>, created: &str) -> Option<(u64, Position)> {
    // The record of another stream of this name says nothing about this one.
    let record = record.filter(|record| record.created == created)?;
    Some((record.sequence, record.position?))
}

/// Where the lane stood at a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// A relay of the slot put it there.
    Own(Position),
    /// Somebody copied it there.
    Copied(Position),
}

fn lane_place(message: &StoredMessage, slot: &str, shared: bool) -> Option<Place> {
    let message = message.for_search();
    // The fence behind a batch is no event.
    if shared && message.is_fence {
        return None;
    }
    let is_own = match shared {
        true => message.in_batch,
        false => message.is_in_place(),
    };
    let (_, told) = message.told().filter(|(of_slot, _)| *of_slot == slot)?;
    let position = told.position;
    Some(match is_own {
        true => Place::Own(position),
        false => Place::Copied(position),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(headers: &str) -> StoredMessage {
        StoredMessage {
            seq: 1,
            subject: "outbox.a".to_owned(),
            headers: format!("NATS/1.0\r\n{headers}\r\n\r\n").into_bytes(),
            data: Vec::new(),
            time: String::new(),
        }
    }

    #[test]
    fn the_server_is_ahead_of_what_is_furthest() {
        let ahead = |acknowledged: Option<&str>, confirmed: Option<&str>| {
            let positions = Positions {
                slot: "a".to_owned(),
                acknowledged_lsn: acknowledged.map(str::to_owned),
                confirmed_lsn: confirmed.map(str::to_owned),
                server_lsn: "1/30".to_owned(),
                stream: "S".to_owned(),
                stream_sequence: None,
                position: None,
                copied_position: None,
                lane: LaneState::of_stopped(),
                missing: Vec::new(),
                locked: None,
                has_slot: true,
                is_foreign: false,
                has_stream: true,
                is_stream_seen: true,
            };
            positions.ahead_bytes()
        };
        assert_eq!(ahead(Some("1/20"), Some("1/10")), Some(0x10));
        assert_eq!(ahead(Some("1/20"), Some("1/28")), Some(8));
        assert_eq!(ahead(None, Some("1/30")), Some(0));
        assert_eq!(ahead(None, None), None);
    }

    #[test]
    fn the_keys_of_the_object_stay() {
        let positions = Positions {
            slot: "a".to_owned(),
            acknowledged_lsn: Some("1/2".to_owned()),
            confirmed_lsn: None,
            server_lsn: "1/3".to_owned(),
            stream: "S".to_owned(),
            stream_sequence: Some(7),
            position: Some("1/2:1".to_owned()),
            copied_position: None,
            lane: LaneState::of_stopped(),
            missing: Vec::new(),
            locked: None,
            has_slot: true,
            is_foreign: false,
            has_stream: true,
            is_stream_seen: true,
        };
        assert_eq!(
            serde_json::to_string(&positions).unwrap(),
            r#"{"slot":"a","acknowledged_lsn":"1/2","confirmed_lsn":null,"server_lsn":"1/3","stream":"S","stream_sequence":7,"position":"1/2:1","copied_position":null,"lane":{"state":"stopped","reason":null,"remedy":null,"halted_at":null,"active_pid":null,"wal_status":null,"retained_bytes":null,"safe_wal_bytes":null,"limit_bytes":null}}"#
        );
    }

    #[test]
    fn only_the_lanes_own_place_counts() {
        let place = |headers: &str, shared| lane_place(&message(headers), "a", shared);
        let position = |text: &str| text.parse::<Position>().expect("a position");
        let at = position("16/B374D848:3");
        let own = "Nats-Expected-Last-Sequence: 0\r\nWalrelay-Position: a 16/B374D848:3";
        assert_eq!(place(own, false), Some(Place::Own(at)));
        for (headers, shared) in [
            ("Walrelay-Position: a 16/B374D848:3", false),
            ("Walrelay-Position: a 16/B374D848:3", true),
            (&own.replace(": 0", ": 7"), false),
        ] {
            assert_eq!(place(headers, shared), Some(Place::Copied(at)), "{headers}");
        }
        for headers in [
            &own.replace(": a ", ": b "),
            "Nats-Expected-Last-Sequence: 0\r\nOther: x",
            "Nats-Expected-Last-Sequence: 0\r\nWalrelay-Position: nonsense",
        ] {
            assert_eq!(place(headers, false), None, "{headers}");
        }
        let replay = "Nats-Expected-Last-Sequence: 0\r\nWalrelay-Kind: replay\r\n\
                      Walrelay-Position: a 1/1:1\r\nWalrelay-Tail: a 2/2:2 -";
        assert_eq!(place(replay, false), Some(Place::Own(position("2/2:2"))));
        let batched = "Nats-Batch-Id: b\r\nWalrelay-Position: a 1/1:1";
        assert_eq!(place(batched, true), Some(Place::Own(position("1/1:1"))));
    }
}
