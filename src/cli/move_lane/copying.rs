//! The target, and the messages that go there.

use anyhow::{Context as _, bail, ensure};
use async_nats::jetstream::consumer::pull::OrderedConfig;
use async_nats::jetstream::stream::{Config, DiscardPolicy, SubjectTransform};

use super::Move;
use crate::bulk::Outcome;
use crate::bulk::fence::Fence;
use crate::bulk::lease::Lease;
use crate::bulk::moved::{self, Copied};
use crate::bulk::publisher::Publisher;
use crate::cli::progress::Progress;
use crate::cli::stdout::Account;
use crate::nats::stored::{StoredMessages, header};
use crate::nats::stream::{self, StreamSettings};
use crate::pipeline::end_search::Lookup;
use crate::pipeline::position::MOVED_HEADER;
use crate::pipeline::record::{LaneRecord, Moved};
use crate::relay::Shutdown;

/// The stage in which the lane is in neither stream.
pub(super) const BETWEEN: &str = "the lane leaves the old stream, and is not in the new one yet";
/// With so few messages left, the lane is taken over.
const CLOSE: u64 = 1_000;
/// The lease is renewed behind so many messages that were looked at.
const RENEW_MESSAGES: u64 = 5_000;
/// So many rounds of copying in a row may end further behind than the one before.
const ROUNDS_WITHOUT_GAIN_MAX: u32 = 5;

impl Move {
    /// Says at the target that the lane is on its way there: no relay publishes there from now on, and a second move finds this one.
    pub(super) async fn announce(&self) -> anyhow::Result<()> {
        let (record, _) = self.record().await?;
        let on_its_way = LaneRecord {
            stream: self.to.stream().to_owned(),
            created: String::new(),
            sequence: 0,
            position: None,
            event_id: None,
            table: None,
            active: false,
            moved: Some(Moved::From {
                stream: self.from.stream().to_owned(),
                created: self.created.clone(),
                nats: self.origin(),
                is_whole: false,
            }),
            ..record
        };
        let stored = self.to.lane.record().await?;
        self.to
            .lane
            .store_record(on_its_way, stored.sequence)
            .await?;
        Ok(())
    }

    /// Makes the target as the old stream is, with subjects that nobody else publishes on while those are the old stream's.
    pub(super) async fn make_target(&self) -> anyhow::Result<()> {
        if stream::find(&self.to.nats, self.to.stream())
            .await?
            .is_some()
        {
            return Ok(());
        }
        let old = self.config_of_old().await?;
        moved::check(&old)?;
        let prefix = &self.prefix;
        let subjects: Vec<String> = old
            .subjects
            .iter()
            .map(|subject| format!("{prefix}{subject}"))
            .collect();
        let config = Config {
            name: self.to.stream().to_owned(),
            subjects,
            subject_transform: (!prefix.is_empty()).then(|| SubjectTransform {
                source: format!("{prefix}>"),
                destination: ">".to_owned(),
            }),
            first_sequence: None,
            ..unsealed(old)
        };
        stream::create(&self.to.nats, &config)
            .await
            .with_context(|| format!("cannot make stream {}", config.name))?;
        Ok(())
    }

    pub(super) async fn config_of_old(&self) -> anyhow::Result<Config> {
        let jetstream = self.from.nats.jetstream();
        let found = async { Ok(jetstream.get_stream(self.from.stream()).await?) };
        let found = self.from.nats.allowed(found).await?;
        Ok(found.cached_info().config.clone())
    }

    /// Erases at the target what the old stream has no more: what `walrelay erase` has taken from there since an earlier run copied it.
    pub(super) async fn erase_what_is_gone(&self, lease: &Lease) -> anyhow::Result<()> {
        if !self.may_have_gone().await? {
            return Ok(());
        }
        let headers = || OrderedConfig {
            headers_only: true,
            ..OrderedConfig::default()
        };
        let (from, to) = (&self.from, &self.to);
        let mut old = StoredMessages::from(&from.nats, from.stream(), headers()).await?;
        let mut copies = StoredMessages::from(&to.nats, to.stream(), headers()).await?;
        let (mut last, mut there) = (0, 0);
        while copies.left() > 0 {
            let (sequence, copy) = copies.next().await?;
            // A consumer that was made anew after a lost connection may begin a little earlier.
            if sequence <= last {
                continue;
            }
            last = sequence;
            let moved = header(&copy, MOVED_HEADER);
            let Some(origin) = moved.and_then(|moved| moved::origin(moved, &self.created)) else {
                continue;
            };
            while there < origin && old.left() > 0 {
                there = old.next().await?.0;
            }
            if there != origin {
                stream::erase_message(&to.nats, to.stream(), sequence).await?;
            }
            if sequence.is_multiple_of(RENEW_MESSAGES) {
                lease.renew().await?;
            }
        }
        Ok(())
    }

    /// Whether the old stream may lack what the target has: something was removed inside, or in front of where the target begins.
    async fn may_have_gone(&self) -> anyhow::Result<bool> {
        let first = Lookup::Next {
            from: 1,
            filter: ">",
        };
        let Some(first) = self.to.lane.message(first).await? else {
            return Ok(false);
        };
        let old = self.from.lane.stream().await?.state;
        let copied = moved::copied_from(&first, &self.created);
        Ok(old.num_deleted > 0 || copied.is_some_and(|origin| origin < old.first_seq))
    }

    /// Copies until few messages are left, beside the relay.
    pub(super) async fn copy_history(
        &self,
        lease: &Lease,
        shutdown: &Shutdown,
    ) -> anyhow::Result<()> {
        let (mut least, mut without_gain) = (u64::MAX, 0);
        loop {
            let last = self.from.lane.stream().await?.state.last_seq;
            let stage = format!("copying to stream {}", self.to.stream());
            let left = self.copy_through(lease, &stage, last, shutdown).await?;
            ensure!(!shutdown.is_sent(), "stopped while messages were copied");
            if left <= CLOSE {
                return Ok(());
            }
            without_gain = if left < least { 0 } else { without_gain + 1 };
            least = least.min(left);
            if without_gain > ROUNDS_WITHOUT_GAIN_MAX {
                bail!(
                    "the relay publishes as fast as messages are copied: wait until it has less to do"
                );
            }
        }
    }

    /// Copies the last messages, and says at the target that nothing is missing there: a run that follows one that was killed behind
    /// this would take the lane's own mark, or a message of the old relay that came late, for somebody else's.
    pub(super) async fn copy_rest(&self, lease: &Lease, last: u64) -> anyhow::Result<()> {
        self.copy_through(lease, BETWEEN, last, &Shutdown::never())
            .await?;
        let stored = self.to.lane.record().await?;
        let on_its_way = stored.record.filter(|record| record.moved.is_some());
        let whole = LaneRecord {
            moved: Some(Moved::From {
                stream: self.from.stream().to_owned(),
                created: self.created.clone(),
                nats: self.origin(),
                is_whole: true,
            }),
            ..on_its_way.context("somebody else has written the lane's record there")?
        };
        self.to.lane.store_record(whole, stored.sequence).await?;
        Ok(())
    }

    /// Copies up to this sequence; how many messages have come behind it meanwhile.
    async fn copy_through(
        &self,
        lease: &Lease,
        stage: &str,
        last: u64,
        shutdown: &Shutdown,
    ) -> anyhow::Result<u64> {
        let (record, _) = self.record().await?;
        let copied = Copied {
            stream: self.from.stream().to_owned(),
            created: self.created.clone(),
            adopted_sequence: record.adopted_sequence,
            prefix: self.prefix.clone(),
        };
        let info = self.to.lane.stream().await?;
        let first = copied.reached(&self.to.lane, &info).await? + 1;
        if first <= last {
            let source = copied.source(&self.from.settings.nats.connection, (first, last));
            let wanted = StreamSettings {
                name: self.to.stream().to_owned(),
                subjects: info.config.subjects.clone(),
                subjects_to_create: Vec::new(),
                slot: self.to.lane.slot().to_owned(),
                num_replicas: info.config.num_replicas,
                shared: false,
            };
            let fence = Fence::aside(&self.to.lane, info.state.last_seq);
            let mut publisher =
                Publisher::aside(&self.to.settings, &self.to.lane, lease, fence, wanted)
                    .edited_by(self.at_target(&format!("stream edit {}", self.to.stream())))
                    .until(shutdown.clone());
            let mut account = Account::default();
            let mut progress = Progress::of(last - first + 1, false).told_by(lease, stage);
            let mut refused = None;
            let each = |outcome: Outcome<'_>| {
                if let Outcome::Rejected { name, why } = outcome {
                    refused.get_or_insert_with(|| format!("{name}: {why}"));
                }
                progress.take(outcome, &mut account);
            };
            publisher.run(source, each).await?;
            progress.end(&mut account);
            if let Some(refused) = refused {
                bail!("stream {} does not take {refused}", self.to.stream());
            }
        }
        let now = self.from.lane.stream().await?.state.last_seq;
        Ok(now.saturating_sub(last))
    }
}

/// What a sealed stream was before, as far as it tells: nats-server has set these keys with the seal, and taken the age limit away.
fn unsealed(config: Config) -> Config {
    match config.sealed {
        true => Config {
            sealed: false,
            deny_delete: false,
            deny_purge: false,
            discard: DiscardPolicy::Old,
            ..config
        },
        false => config,
    }
}
