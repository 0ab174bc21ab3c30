//! Which dead letters are open, and which commands publish beside the relay: on a connection of its own, not in the relay's way.
//!
//! In: the stream, looked at every five seconds, and those of the lanes that are no more and whose rows are this one's; the leases of
//! the slot, each second while a command is at work. Out: both on the board, the newest of the letters without their rows, and a line
//! at the start where there are any. Guarantees: each message on
//! the subject of the dead letters is read once, and all of them again only where some may have gone, at most once a minute; of the
//! newest, each is read once more. A lane that is no more belongs to one that there is, and that has one relay: each letter is counted once.

use crate::nats::admin::Admin;
use crate::nats::api::StreamInfo;
use crate::pipeline::dead_letter::state::OpenLetters;
use crate::pipeline::dead_letter::subject;
use crate::pipeline::end_search::Lookup;
use crate::pipeline::position::Position;
use crate::postgres::client::connect;
use crate::relay::board::Board;
use crate::relay::bulk_work::{RENEW_INTERVAL, Watch};
use crate::relay::lane_client::{LaneClient, LaneError};
use crate::relay::lane_records::was_divided;
use crate::relay::settings::Settings;
use crate::relay::status::State;
use crate::relay::stored_letter::{StoredLetter, told};
use crate::relay::taken_over;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Of so many, the newest, more than their number is told.
const TOLD_MAX: usize = 20;
/// Between two looks while no command is at work beside the relay.
const IDLE_INTERVAL: Duration = Duration::from_secs(5);
/// Between two times that all is read.
const RECOUNT_INTERVAL: Duration = Duration::from_secs(60);
/// Between two looks for lanes that are no more.
const LANES_INTERVAL: Duration = Duration::from_secs(30);
/// Postgres is given so long to tell of them.
const LANES_LIMIT: Duration = Duration::from_secs(10);

/// Counts for as long as it is polled.
pub(super) async fn count(settings: Settings, board: Board) {
    // Before, what keeps the relay from its start would be said twice.
    let mut watch = board.watch();
    while board.status().totals.epochs == 0 {
        watch.changed().await;
    }
    let (mut lanes, mut works) = (None, Watch::default());
    let mut is_told = false;
    loop {
        if board.status().state == State::Standby {
            lanes = None;
        } else {
            match look(&settings, &mut lanes, &board).await {
                Ok(told) => {
                    let open = told.open;
                    board.open_dead_letters(open, told.newest);
                    if !std::mem::replace(&mut is_told, true) && open > 0 {
                        tracing::warn!(
                            open,
                            "dead letters are open, rows that could not be published: `walrelay dead-letters list` shows them"
                        );
                    }
                }
                Err(error) => tracing::debug!("the open dead letters are not counted: {error:#}"),
            }
        }
        let pause = match &lanes {
            Some(Lanes { nats, own, .. }) => {
                tell(&mut works, nats, own.client.slot(), &board).await
            }
            None => Ok(IDLE_INTERVAL),
        };
        let pause = pause.unwrap_or_else(|error| {
            tracing::debug!("commands beside the relay are not seen: {error:#}");
            IDLE_INTERVAL
        });
        tokio::time::sleep(pause).await;
    }
}

/// Puts the commands beside the relay on the board; the pause until the next look.
async fn tell(
    works: &mut Watch,
    nats: &Admin,
    slot: &str,
    board: &Board,
) -> Result<Duration, LaneError> {
    let found = works.look(nats, slot).await?;
    let is_busy = found.is_undecided || found.works.iter().any(|work| !work.ended);
    board.bulk_work(found.works);
    Ok(match is_busy {
        true => RENEW_INTERVAL,
        false => IDLE_INTERVAL,
    })
}

/// What is told of all lanes together.
struct Open {
    open: u64,
    newest: Vec<StoredLetter>,
}

/// The lane's own stream, and those of the lanes that are no more.
struct Lanes {
    nats: Admin,
    own: Lane,
    gone: Vec<Lane>,
    looked: Option<Instant>,
    /// Somebody was told that they cannot be read.
    is_told: bool,
}

struct Lane {
    client: LaneClient,
    counting: Counting,
}

async fn look(
    settings: &Settings,
    lanes: &mut Option<Lanes>,
    board: &Board,
) -> anyhow::Result<Open> {
    let lanes = match lanes {
        Some(lanes) => lanes,
        None => {
            let nats = Admin::connect(&settings.nats.connection).await?;
            let own = Lane::new(&nats, &settings.nats.stream, &settings.postgres.slot)?;
            lanes.insert(Lanes {
                nats,
                own,
                gone: Vec::new(),
                looked: None,
                is_told: false,
            })
        }
    };
    let epochs = board.status().totals.epochs;
    lanes.own.count(epochs).await?;
    match lanes.count_gone(settings, epochs).await {
        Ok(()) => lanes.is_told = false,
        Err(error) if !std::mem::replace(&mut lanes.is_told, true) => {
            tracing::warn!("the dead letters of lanes that are no more are not counted: {error:#}");
        }
        Err(_) => {}
    }
    let all = || std::iter::once(&lanes.own).chain(&lanes.gone);
    Ok(Open {
        open: all().map(|lane| lane.counting.open.count()).sum(),
        newest: all()
            .flat_map(|lane| lane.counting.newest.values().rev().cloned())
            .take(TOLD_MAX)
            .collect(),
    })
}

impl Lanes {
    async fn count_gone(&mut self, settings: &Settings, epochs: u64) -> anyhow::Result<()> {
        if self.looked.is_none_or(|at| at.elapsed() >= LANES_INTERVAL) {
            tokio::time::timeout(LANES_LIMIT, self.find_gone(settings)).await??;
            self.looked = Some(Instant::now());
        }
        for lane in &mut self.gone {
            match lane.count(epochs).await {
                Err(error) if is_without_stream(&error) => lane.counting = Counting::default(),
                counted => counted?,
            }
        }
        Ok(())
    }

    async fn find_gone(&mut self, settings: &Settings) -> anyhow::Result<()> {
        if !was_divided(&self.nats, &settings.postgres).await? {
            return Ok(());
        }
        let sql = connect(&settings.postgres.conninfo).await?;
        let found = taken_over::by(settings, &sql, &self.nats).await?;
        let mut known = std::mem::take(&mut self.gone);
        for lane in found {
            let is_it = |known: &Lane| {
                known.client.slot() == lane.slot && known.client.stream_name() == lane.stream
            };
            let lane = match known.iter().position(is_it) {
                Some(at) => known.swap_remove(at),
                None => Lane::new(&self.nats, &lane.stream, &lane.slot)?,
            };
            self.gone.push(lane);
        }
        Ok(())
    }
}

fn is_without_stream(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(LaneError::NoStream(_)))
}

impl Lane {
    fn new(nats: &Admin, stream: &str, slot: &str) -> anyhow::Result<Self> {
        Ok(Lane {
            client: LaneClient::new(nats, stream, slot)?,
            counting: Counting::default(),
        })
    }

    /// Reads what has come since.
    async fn count(&mut self, epochs: u64) -> anyhow::Result<()> {
        let Lane { client, counting } = self;
        let info = client.stream().await?;
        counting.begin(&info, epochs);
        let slot = client.slot();
        let filter = subject(slot);
        let end = info.state.last_seq;
        while counting.read_through < end {
            let lookup = Lookup::Next {
                from: counting.read_through + 1,
                filter: &filter,
            };
            let message = client.message(lookup).await?;
            let Some(message) = message.filter(|message| message.seq <= end) else {
                counting.read_through = end;
                break;
            };
            if let Some(told) = told(&message, slot) {
                counting.open.take(message.seq, told);
            }
            counting.read_through = message.seq;
        }
        counting.read_newest(client).await
    }
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
