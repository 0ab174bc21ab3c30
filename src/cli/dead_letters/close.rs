//! `walrelay dead-letters retry` and `discard`: a dead letter's event published after all, or given up; and a mark in the stream
//! that says so.
//!
//! In: which dead letters. Out: their events behind the stream's end, and their marks behind the events. Guarantees: no
//! position of the lane; not twice for one dead letter or for two of one event, also where the command was ended between an event
//! and its mark, or where another one has published its row. A signal ends it behind what is in flight, and what was published is
//! marked first.

use std::collections::{HashMap, HashSet};

use anyhow::{Context as _, bail};

use super::letters::{Letters, Standing};
use super::published::{OfLane, Published};
use super::{set, taken};
use crate::bulk::Outcome;
use crate::bulk::fence::Fence;
use crate::bulk::lease::Lease;
use crate::bulk::letters::{self, Values, Wanted};
use crate::bulk::publisher::Publisher;
use crate::bulk::rows::Looked;
use crate::cli::command_line;
use crate::cli::exit::Exit;
use crate::cli::own_lane::recorded_lane;
use crate::cli::reshard::alone;
use crate::cli::signals::{self, Hangup};
use crate::cli::stderr;
use crate::cli::stdout::Account;
use crate::nats::admin::Admin;
use crate::pipeline::dead_letter::state::{Mark, State};
use crate::pipeline::position::Position;
use crate::relay::Shutdown;
use crate::relay::lane_client::LaneClient;
use crate::relay::open::check_names;
use crate::relay::settings::Settings;

/// What is to become of dead letters.
#[derive(Debug, Clone)]
pub(super) enum Action {
    Retry { set: Vec<(String, String)> },
    Discard { reason: String },
}

impl Action {
    fn command(&self) -> &'static str {
        match self {
            Action::Retry { .. } => "dead-letters retry",
            Action::Discard { .. } => "dead-letters discard",
        }
    }
}

/// Does this to the dead letter at `position`, or to all that are open.
pub(super) async fn close(
    nats: &Admin,
    settings: &Settings,
    position: Option<Position>,
    action: Action,
) -> Result<Exit, anyhow::Error> {
    if let Action::Retry { set } = &action {
        set::check(settings, set)?;
    }
    let shutdown = signals::listen(Hangup::Stops)?;
    let lane = LaneClient::new(nats, &settings.nats.stream, &settings.postgres.slot)?;
    let looked = match &action {
        Action::Retry { .. } => {
            let mut stopped = shutdown.clone();
            tokio::select! {
                // A lock on the table keeps it waiting.
                looked = look_at_tables(settings, &lane) => Some(looked?),
                () = stopped.wait() => bail!("stopped before it began: run it again"),
            }
        }
        Action::Discard { .. } => None,
    };
    let values = match (&action, position, &looked) {
        (Action::Retry { set }, Some(position), Some(looked)) if !set.is_empty() => {
            let letters = Letters::read(&lane).await?;
            let letter = letters.find(position)?;
            let values = set::typed(settings, looked, letter, set.clone()).await?;
            let of_lane = taken::Lane {
                nats,
                client: &lane,
                settings,
                looked,
                letters: &letters,
            };
            if let Some(id) = set::id(settings, letter, &values) {
                of_lane.is_free(letter, id).await?;
            }
            values
        }
        _ => Values::new(),
    };
    let lease = Lease::take(&lane, action.command(), &command_line::typed()).await?;
    let mut closing = Closing {
        nats,
        settings,
        lane: &lane,
        looked,
        values,
        lease: &lease,
        shutdown,
        account: Account::default(),
        failed: false,
    };
    let done = closing.close(position, action).await;
    let Closing {
        account, failed, ..
    } = closing;
    lease.release().await;
    account.close()?;
    done?;
    Ok(if failed { Exit::Failed } else { Exit::Done })
}

/// A letter's table is told by its name.
async fn look_at_tables(settings: &Settings, lane: &LaneClient) -> anyhow::Result<Looked> {
    let looked = Looked::at(settings).await?;
    let record = recorded_lane(settings, looked.sql(), lane).await?;
    check_names(&looked.inspection, settings, Some(&record))?;
    Ok(looked)
}

/// One run of the command, which has the lease.
struct Closing<'a> {
    nats: &'a Admin,
    settings: &'a Settings,
    lane: &'a LaneClient,
    /// At the tables, where rows are needed.
    looked: Option<Looked>,
    /// What is set anew in the one that is wanted.
    values: Values,
    lease: &'a Lease,
    shutdown: Shutdown,
    account: Account,
    failed: bool,
}

/// The dead letters that the action is about.
#[derive(Debug, Default)]
struct Found {
    /// Their events are in the stream, and they are not marked so.
    there: Vec<Standing>,
    left: Vec<Standing>,
}

/// The dead letters whose events a retry has published.
#[derive(Debug, Default)]
struct Retried {
    published: Vec<Mark>,
    /// Others of these events, each with the position of the one that was published.
    same: Vec<(Mark, String)>,
}

impl Closing<'_> {
    async fn close(&mut self, position: Option<Position>, action: Action) -> anyhow::Result<()> {
        if let Some(looked) = &self.looked {
            alone::none_at_work(looked.sql(), &self.settings.postgres).await?;
        }
        let version = self.nats.server_version()?;
        let fence = Fence::raise(self.lane, self.lease, self.settings, version).await?;
        let mut shutdown = self.shutdown.clone();
        let found = tokio::select! {
            found = self.find(position, &action) => found?,
            () = shutdown.wait() => bail!("stopped while the stream was read: nothing is published or marked"),
        };
        if found.there.is_empty() && found.left.is_empty() {
            return Ok(());
        }
        let mut publisher = Publisher::new(self.settings, self.lane, self.lease, fence)
            .await?
            .until(shutdown);
        let there = |_: &str| "was published already, and is marked so now".to_owned();
        let marked = marks(&found.there, None);
        self.mark(&mut publisher, State::Retried, there, marked)
            .await?;
        match action {
            Action::Retry { .. } => {
                let retried = self.publish(&mut publisher, &found.left).await?;
                // Also when a signal has ended the events: these are in the stream.
                let mut publisher = publisher.until(Shutdown::never());
                self.mark_retried(&mut publisher, retried)
                    .await
                    .context("the events are published, and their dead letters are not marked so: run this again")?;
            }
            Action::Discard { reason } => {
                self.failed |= position.is_some() && !found.there.is_empty();
                let discarded = |_: &str| "discarded".to_owned();
                let marked = marks(&found.left, Some(&reason));
                self.mark(&mut publisher, State::Discarded, discarded, marked)
                    .await?;
            }
        }
        if self.shutdown.is_sent() {
            self.failed = true;
            stderr::line(format_args!(
                "stopped: run it again for those that are still open"
            ));
        }
        Ok(())
    }

    /// Those that the action is about, and which of them were published and not marked so.
    async fn find(&mut self, position: Option<Position>, action: &Action) -> anyhow::Result<Found> {
        let letters = Letters::read(self.lane).await?;
        let wanted = self.wanted(&letters, position, action)?;
        let Some(first) = wanted.first() else {
            return Ok(Found::default());
        };
        let of_lane = match &self.looked {
            Some(looked) => Some(OfLane::read(self.settings, looked, self.lane).await?),
            None => None,
        };
        let published = Published::read(self.nats, self.lane, &wanted, of_lane.as_ref()).await?;
        let is_there = |letter: &Standing| published.has(letter);
        if first.state == State::Retried && (is_there(first) || self.may_be_removed().await?) {
            self.refuse(first);
            return Ok(Found::default());
        }
        let (there, left) = wanted.into_iter().cloned().partition(is_there);
        Ok(Found { there, left })
    }

    /// Those that the action is about, in their order.
    fn wanted<'l>(
        &mut self,
        letters: &'l Letters,
        position: Option<Position>,
        action: &Action,
    ) -> anyhow::Result<Vec<&'l Standing>> {
        let Some(position) = position else {
            let open: Vec<_> = letters.open().collect();
            if open.is_empty() {
                let slot = &self.settings.postgres.slot;
                self.account
                    .line(format_args!("no open dead letters of slot {slot}"));
            }
            return Ok(open);
        };
        let letter = letters.find(position)?;
        let is_possible = match action {
            // Also one that is marked so, where the stream has no retry of it.
            Action::Retry { .. } => true,
            Action::Discard { .. } => letter.state == State::Open,
        };
        if is_possible {
            return Ok(vec![letter]);
        }
        self.refuse(letter);
        Ok(Vec::new())
    }

    fn refuse(&mut self, letter: &Standing) {
        self.failed = true;
        let (position, state) = (letter.place.position, letter.state.name());
        self.account
            .line(format_args!("{position} was already {state}"));
    }

    /// Whether retention may remove a message behind one that it leaves there.
    async fn may_be_removed(&self) -> anyhow::Result<bool> {
        let info = self.lane.stream().await?;
        Ok(info.config.max_msgs_per_subject > 0)
    }

    /// Publishes the events of these dead letters; those that the stream has.
    async fn publish(
        &mut self,
        publisher: &mut Publisher<'_>,
        letters: &[Standing],
    ) -> anyhow::Result<Retried> {
        let mut retried = Retried::default();
        let Some(looked) = self.looked.as_ref().filter(|_| !letters.is_empty()) else {
            return Ok(retried);
        };
        let by_name: HashMap<String, &Standing> = letters
            .iter()
            .map(|letter| (letter.place.position.to_string(), letter))
            .collect();
        let wanted = letters.iter().map(|letter| Wanted {
            place: letter.place,
            id: letter.id.clone(),
            table: letter.table.clone(),
            is_gone: letter.is_gone,
        });
        let values = self.values.clone();
        let events = letters::events(self.settings, looked, self.lane, wanted.collect(), values);
        let mut shutdown = self.shutdown.clone();
        let events = tokio::select! {
            events = events => events?,
            () = shutdown.wait() => return Ok(retried),
        };
        let mut same = Vec::new();
        let working = self.lease.working();
        working.begin("publishing events");
        let (mut done, total) = (0, letters.len() as u64);
        let mut each = |outcome: Outcome<'_>| match outcome {
            Outcome::Passed | Outcome::Untold | Outcome::Gone { .. } => {}
            Outcome::Published { name } => retried.published.push(by_name[name].mark(None)),
            Outcome::Same { name, of } => same.push((name.to_owned(), of.to_owned())),
            Outcome::Rejected { name, why } => {
                self.failed = true;
                stderr::line(format_args!("{name} cannot be published: {why}"));
            }
        };
        let each = |outcome: Outcome<'_>| {
            each(outcome);
            done += 1;
            working.tell(done, total);
        };
        publisher.run(events, each).await?;
        let published = retried.published.iter().map(|mark| &mark.position);
        let published: HashSet<&String> = published.collect();
        retried.same = (same.into_iter())
            .filter(|(_, of)| published.contains(of))
            .map(|(name, of)| (by_name[&name].mark(None), of))
            .collect();
        Ok(retried)
    }

    /// Marks those whose events are published, and the others of these events.
    async fn mark_retried(
        &mut self,
        publisher: &mut Publisher<'_>,
        retried: Retried,
    ) -> anyhow::Result<()> {
        let published = |_: &str| "published".to_owned();
        self.mark(publisher, State::Retried, published, retried.published)
            .await?;
        let (marks, of): (Vec<Mark>, Vec<String>) = retried.same.into_iter().unzip();
        let names = marks.iter().map(|mark| mark.position.clone());
        let of: HashMap<String, String> = names.zip(of).collect();
        let closed = |name: &str| {
            let of = &of[name];
            format!("has the event that was published for {of}, and is closed with it")
        };
        self.mark(publisher, State::Retried, closed, marks).await
    }

    /// Stores these marks, of a state, and says of each what has become of its dead letter.
    async fn mark(
        &mut self,
        publisher: &mut Publisher<'_>,
        state: State,
        what: impl Fn(&str) -> String,
        marks: Vec<Mark>,
    ) -> anyhow::Result<()> {
        if marks.is_empty() {
            return Ok(());
        }
        let source = letters::marks(&self.settings.postgres.slot, state, marks);
        let each = |outcome: Outcome<'_>| match outcome {
            Outcome::Passed | Outcome::Untold | Outcome::Gone { .. } | Outcome::Same { .. } => {}
            Outcome::Published { name } => {
                self.account.line(format_args!("{name} {}", what(name)));
            }
            Outcome::Rejected { name, why } => {
                self.failed = true;
                stderr::line(format_args!(
                    "{name} cannot be marked as {}: {why}",
                    state.name()
                ));
            }
        };
        publisher.run(source, each).await
    }
}

fn marks(letters: &[Standing], reason: Option<&str>) -> Vec<Mark> {
    letters.iter().map(|letter| letter.mark(reason)).collect()
}
