//! Which dead letters are open, read from the stream beside the relay: on a connection of its own, not in the relay's way.
//!
//! In: the stream, looked at every five seconds. Out: their number on the board and the newest of them without their rows, and a
//! line at the start where there are any. Guarantee: each message on the subject of the dead letters is read once, and all of
//! them again only where some may have gone, at most once a minute; of the newest, each is read once more.

use crate::nats::admin::Admin;
use crate::nats::api::StreamInfo;
use crate::pipeline::dead_letter::state::OpenLetters;
use crate::pipeline::dead_letter::subject;
use crate::pipeline::end_search::Lookup;
use crate::pipeline::position::Position;
use crate::relay::board::Board;
use crate::relay::lane_client::LaneClient;
use crate::relay::settings::Settings;
use crate::relay::stored_letter::{StoredLetter, told};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Of so many, the newest, more than their number is told.
const TOLD_MAX: usize = 20;
/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(5);
/// Between two times that all is read.
const RECOUNT_INTERVAL: Duration = Duration::from_secs(60);

/// Counts for as long as it is polled.
pub(super) async fn count(settings: Settings, board: Board) {
    // Before, what keeps the relay from its start would be said twice.
    let mut watch = board.watch();
    while board.status().totals.epochs == 0 {
        watch.changed().await;
    }
    let mut lane = None;
    let mut counting = Counting::default();
    let mut is_told = false;
    loop {
        match look(&settings, &mut lane, &mut counting, &board).await {
            Ok(()) => {
                let open = counting.open.count();
                board.open_dead_letters(open, counting.newest.values().rev().cloned().collect());
                if !std::mem::replace(&mut is_told, true) && open > 0 {
                    tracing::warn!(
                        open,
                        "dead letters are open, rows that could not be published: `walrelay dead-letters list` shows them"
                    );
                }
            }
            Err(error) => tracing::debug!("the open dead letters are not counted: {error:#}"),
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

async fn look(
    settings: &Settings,
    lane: &mut Option<LaneClient>,
    counting: &mut Counting,
    board: &Board,
) -> anyhow::Result<()> {
    let slot = &settings.postgres.slot;
    let lane = match lane {
        Some(lane) => lane,
        None => {
            let nats = Admin::connect(&settings.nats.connection).await?;
            lane.insert(LaneClient::new(&nats, &settings.nats.stream, slot)?)
        }
    };
    let epochs = board.status().totals.epochs;
    let info = lane.stream().await?;
    counting.begin(&info, epochs);
    let filter = subject(slot);
    let end = info.state.last_seq;
    while counting.read_through < end {
        let lookup = Lookup::Next {
            from: counting.read_through + 1,
            filter: &filter,
        };
        let message = lane.message(lookup).await?;
        let Some(message) = message.filter(|message| message.seq <= end) else {
            counting.read_through = end;
            break;
        };
        if let Some(told) = told(&message, slot) {
            counting.open.take(message.seq, told);
        }
        counting.read_through = message.seq;
    }
    counting.read_newest(lane).await
}

/// How far the stream was read, and what it was then.
#[derive(Debug, Default)]
struct Counting {
    open: OpenLetters,
    /// By their sequences, without their values.
    newest: BTreeMap<u64, StoredLetter>,
    read_through: u64,
    created: String,
    removed_inside: u64,
    epochs: u64,
    recounted: Option<Instant>,
}

impl Counting {
    /// Goes on behind what was read, or begins anew.
    fn begin(&mut self, info: &StreamInfo, epochs: u64) {
        let state = &info.state;
        let is_another = self.created != info.created || state.last_seq < self.read_through;
        // Somebody removes messages. Or there was a doubt about the broker, which may have lost some.
        let may_lack = self.open.count() > 0 && state.num_deleted != self.removed_inside
            || epochs != self.epochs;
        let is_due = self
            .recounted
            .is_none_or(|at| at.elapsed() >= RECOUNT_INTERVAL);
        if is_another || may_lack && is_due {
            *self = Counting {
                created: info.created.clone(),
                removed_inside: state.num_deleted,
                epochs,
                recounted: Some(Instant::now()),
                ..Counting::default()
            };
        }
        self.open.begins_at(state.first_seq);
    }

    /// Reads those of the newest that were not read before.
    async fn read_newest(&mut self, lane: &LaneClient) -> anyhow::Result<()> {
        let newest: BTreeMap<u64, Position> = self.open.newest(TOLD_MAX).collect();
        self.newest
            .retain(|sequence, _| newest.contains_key(sequence));
        for (sequence, position) in newest {
            if self.newest.contains_key(&sequence) {
                continue;
            }
            if let Some(message) = lane.message(Lookup::Message(sequence)).await? {
                let mut stored = StoredLetter::of(message, position);
                stored.letter.mask();
                self.newest.insert(sequence, stored);
            }
        }
        Ok(())
    }
}
