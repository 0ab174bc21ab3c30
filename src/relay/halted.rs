//! A halt, kept in the lane record for those who look when the process is gone, and for every later start where it binds. Where
//! there is no record, a note stands in its place.
//!
//! In: the halt, what the relay remembers. Guarantees: the halt itself waits for this only so long, and stands whether it comes
//! about or not; the record of an epoch that another relay has begun since is left alone.

use crate::pipeline::fault::{Halt, of_share};
use crate::pipeline::record::RecordOrNote;
use crate::pipeline::request::StoredRecord;
use crate::relay::clock::now_text;
use crate::relay::open;
use crate::relay::open::Inherited;
use crate::relay::open_error::OpenError;
use crate::relay::settings::Settings;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout_at};

/// A start that has not read the record goes on behind this halt: a broker that has lost messages may be without a leader for
/// the record, so long it is tried.
const BINDING_LIMIT: Duration = Duration::from_secs(20);
/// What is only told is tried so long.
const TOLD_LIMIT: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(250);

/// Keeps the halt, or says that it could not.
pub(super) async fn keep(settings: &Settings, inherited: &Inherited, halt: &Halt) {
    if matches!(halt, Halt::OtherLane { .. }) {
        // The record is of that lane.
        return;
    }
    let binds = matches!(halt, Halt::Replaced { .. });
    let limit = if binds { BINDING_LIMIT } else { TOLD_LIMIT };
    let deadline = Instant::now() + limit;
    let at = now_text();
    let memory = inherited.memory.as_ref();
    let epoch = memory.map(|memory| (memory.created.as_str(), memory.epoch));
    let share = settings.postgres.part();
    let kept = |stored: &StoredRecord| {
        let mut kept = stored.kept(halt, epoch, at.clone())?;
        let note = match &mut kept {
            RecordOrNote::Record(record) => record.halted.as_mut(),
            RecordOrNote::Note(note) => Some(note),
        };
        if let Some(note) = note {
            note.remedy = of_share(&note.remedy, share);
        }
        Some(kept)
    };
    loop {
        let why = match timeout_at(deadline, try_keep(settings, inherited, &kept)).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer in time".to_owned(),
        };
        if Instant::now() + PAUSE >= deadline {
            return not_kept(binds, &why);
        }
        sleep(PAUSE).await;
    }
}

async fn try_keep(
    settings: &Settings,
    inherited: &Inherited,
    kept: impl Fn(&StoredRecord) -> Option<RecordOrNote>,
) -> Result<(), OpenError> {
    let mut broker = open::connect(settings, inherited).await?;
    let stored = broker.keep_halt(kept).await;
    broker.connection.close().await;
    stored
}

fn not_kept(binds: bool, why: &str) {
    match binds {
        true => tracing::warn!(
            error = why,
            "the lane record does not say why the relay halted, and a restart may go on"
        ),
        false => tracing::warn!(
            error = why,
            "the lane record does not say why the relay halted: walrelay status will not tell it either, this log does"
        ),
    }
}
