//! What somebody is told before the lane is adopted.
//!
//! In: what slot, stream and record have. Out: its lines. Guarantee: pure.

use super::in_stream::Published;
use super::{Args, View};
use crate::cli::stdout::Account;
use crate::counted::counted;
use crate::postgres::catalog::Inspection;
use crate::postgres::id_column::IdColumn;
use crate::relay::settings::Settings;

/// The lane's tables whose ids are numbers.
pub(super) fn numbered(inspection: &Inspection, settings: &Settings) -> Vec<String> {
    let tables = inspection.tables().zip(settings.postgres.tables());
    let numbered = tables.filter(|(found, settings)| {
        (found.table.as_ref()).is_some_and(|table| IdColumn::is_number(table, settings))
    });
    numbered
        .map(|(_, settings)| settings.table.to_string())
        .collect()
}

pub(super) fn explain(
    account: &mut Account,
    view: &View,
    published: Option<&Published>,
    args: &Args,
) {
    account.line(format_args!("present lane   {}", view.lane));
    match &view.record.record {
        Some(record) => account.line(format_args!(
            "recorded lane  {}, published through {}, {}",
            record.lane(),
            record
                .position
                .map_or_else(|| "nothing".to_owned(), |position| position.to_string()),
            match u64::from(record.confirmed_lsn) {
                0 => "nothing confirmed".to_owned(),
                _ => format!("confirmed at most {}", record.confirmed_lsn),
            }
        )),
        None => account.line("recorded lane  none"),
    }
    account.line(format_args!(
        "slot           confirmed {}; the server's WAL ends at {}",
        view.confirmed_lsn, view.server_lsn
    ));
    account.line(format_args!(
        "stream         last sequence {}, this slot's last event {}",
        view.stream.state.last_seq, view.in_stream
    ));
    account.line(match published {
        Some(published) if args.position.is_some() => format!(
            "The relay will go on behind {}, as given: rows up to there count as published.",
            published.told.position
        ),
        Some(published) => format!(
            "The relay will go on behind {}, the last row that slot and stream have in common.",
            published.told.position
        ),
        None => format!(
            "The relay will go on from {}: slot and stream have no row in common from there on.",
            view.confirmed_lsn
        ),
    });
    if view.absent > 0 {
        account.line(format_args!(
            "Before it the slot has {} that the stream has not: walrelay backfill publishes what is missing.",
            counted(view.absent, "event", "events")
        ));
    }
    account.line(format_args!(
        "Events that committed before {} and are not in the stream may be missing; events that the stream has at another\n\
         place may be doubled. walrelay verify names both.",
        view.confirmed_lsn
    ));
    for table in &view.numbered {
        account.line(format_args!(
            "The ids of {table} are numbers: where the database was set back, or they began anew, a row with the id of an event that the stream\n\
             has passes for published. Set their sequence beyond the highest one in the stream before the application writes."
        ));
    }
}
