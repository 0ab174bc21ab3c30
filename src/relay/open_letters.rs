//! Which dead letters are open, and which commands publish beside the relay: on a connection of its own, not in the relay's way.
//!
//! In: the stream, looked at every five seconds, and those of the lanes that are no more and whose rows are this one's; the leases of
//! the slot, each second while a command is at work. Out: both on the board, the newest of the letters without their rows, and a line
//! at the start where there are any; and which are open, kept beside the lane record, so that one that the stream's limits remove is
//! not forgotten. Guarantees: each message on
//! the subject of the dead letters is read once, and all of them again only where some may have gone, at most once a minute; of the
//! newest, each is read once more. A lane that is no more belongs to one that there is, and that has one relay: each letter is counted once.

use crate::nats::admin::Admin;
use crate::nats::api::{StoredMessage, StreamInfo};
use crate::pipeline::dead_letter::remembered::{Keeping, Kept, Remembered};
use crate::pipeline::dead_letter::state::{OpenLetters, Told};
use crate::pipeline::dead_letter::{DeadLetter, subject};
use crate::pipeline::end_search::Lookup;
use crate::pipeline::position::{Position, TABLE_HEADER};
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
    /// Of the lane's own alone: those of lanes that are no more, their relays have kept.
    memory: Option<Memory>,
}

/// Which letters are kept beside the lane record.
#[derive(Default)]
struct Memory {
    keeping: Keeping,
    /// What is stored, and where; none before anything is.
    stored: Option<(Remembered, u64)>,
    is_read: bool,
    /// So many are gone from the stream, and told of.
    gone: u64,
    /// Somebody was told that they cannot be kept.
    is_told: bool,
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
            let mut own = Lane::new(&nats, &settings.nats.stream, &settings.postgres.slot)?;
            own.memory = Some(Memory::default());
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
    // What was read in part may lack some.
    lanes.own.count(epochs).await?;
    lanes.own.remember().await;
    match lanes.count_gone(settings, epochs).await {
        Ok(()) => lanes.is_told = false,
        Err(error) if !std::mem::replace(&mut lanes.is_told, true) => {
            tracing::warn!("the dead letters of lanes that are no more are not counted: {error:#}");
        }
        Err(_) => {}
    }
    let all = || std::iter::once(&lanes.own).chain(&lanes.gone);
    Ok(Open {
        open: all().map(Lane::open).sum(),
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
            memory: None,
        })
    }

    /// Reads what has come since.
    async fn count(&mut self, epochs: u64) -> anyhow::Result<()> {
        let Lane {
            client,
            counting,
            memory,
        } = self;
        if let Some(memory) = memory
            && !memory.is_read
        {
            memory.stored = client.letters().await?;
            let stored = memory.stored.as_ref();
            memory.keeping = stored.map_or_else(Keeping::default, |(kept, _)| Keeping::of(kept));
            memory.is_read = true;
        }
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
                if let Some(memory) = memory {
                    memory.keeping.take(told, || kept(&message, told));
                }
            }
            counting.read_through = message.seq;
        }
        counting.read_newest(client).await
    }

    /// How many are open, those included that the stream has no more.
    fn open(&self) -> u64 {
        self.counting.open.count() + self.memory.as_ref().map_or(0, |memory| memory.gone)
    }

    /// Stores which are open, where that has changed, and tells of those that are gone. Nothing that fails here is in the way of the count.
    async fn remember(&mut self) {
        let Lane {
            client,
            counting,
            memory: Some(memory),
        } = self
        else {
            return;
        };
        if !memory.is_read {
            return;
        }
        match memory.store(client, &counting.open).await {
            Ok(()) => memory.is_told = false,
            Err(error) if !std::mem::replace(&mut memory.is_told, true) => {
                tracing::warn!(
                    "which dead letters are open is not kept beside the lane record: {error}"
                );
            }
            Err(error) => tracing::debug!("which dead letters are open is not kept: {error}"),
        }
    }
}

impl Memory {
    async fn store(&mut self, client: &LaneClient, open: &OpenLetters) -> Result<(), LaneError> {
        let is_there = |position: &Position| open.has(position);
        if self.keeping.gone(is_there) > 0 {
            // A command may have dealt with them: walrelay erase does.
            self.look_again(client, is_there).await?;
        }
        let gone = self.keeping.gone(is_there);
        if gone > self.gone {
            tracing::warn!(
                gone,
                "open dead letters are no longer in the stream, whose limits or somebody removed them: their rows may be nowhere but in \
                 the table, and `walrelay prune` keeps them; `walrelay dead-letters list` shows them, `walrelay dead-letters retry --all` \
                 publishes their rows"
            );
        }
        self.gone = gone;
        self.keeping.no_place_unless(is_there);
        let kept = self.keeping.remembered();
        let behind = match &self.stored {
            Some((stored, _)) if *stored == kept => return Ok(()),
            stored => stored.as_ref().map_or(0, |(_, behind)| *behind),
        };
        match client.store_letters(&kept, behind).await {
            Ok(sequence) => self.stored = Some((kept, sequence)),
            Err(LaneError::Taken) => self.look_again(client, is_there).await?,
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Forgets what is no longer stored, but for what the stream has.
    async fn look_again(
        &mut self,
        client: &LaneClient,
        is_there: impl Fn(&Position) -> bool,
    ) -> Result<(), LaneError> {
        self.stored = client.letters().await?;
        let stored = self.stored.as_ref().map(|(kept, _)| kept);
        self.keeping
            .forget_unless(stored.unwrap_or(&Remembered::default()), is_there);
        Ok(())
    }
}

/// What is kept of a letter.
fn kept(message: &StoredMessage, told: Told) -> Kept {
    let (Told::Letter(position) | Told::Mark(position, _)) = told;
    let letter: DeadLetter = serde_json::from_slice(&message.data).unwrap_or_default();
    Kept {
        position: position.to_string(),
        sequence: message.seq,
        id: letter.id,
        table: message.header_text(TABLE_HEADER).map(str::to_owned),
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
