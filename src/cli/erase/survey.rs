//! One look at all streams of a NATS, and at what the lane records say of them.
//!
//! In: a connection. Out: what tells of each stream whose it is. Guarantee: as many requests as there are streams, and a few; however
//! many tables and shares are then erased from.

use std::collections::{BTreeMap, BTreeSet};

use async_nats::jetstream::stream::Info;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use crate::nats::admin::Admin;
use crate::nats::stream::{
    LANE_RECORD_STREAM, LANE_RECORD_SUBJECTS, lane_lease_subject, lane_record_subject,
};
use crate::pipeline::end_search::Lookup;
use crate::pipeline::position::{POSITION_HEADER, REPLAY_HEADER};
use crate::relay::lane_client::{LaneClient, LaneError};

/// So many streams are asked for their first message at once.
const AT_ONCE: usize = 16;

/// What was found.
#[derive(Debug)]
pub(super) struct Survey {
    /// All streams that the user of NATS may see.
    pub(super) streams: Vec<Info>,
    /// Subjects of the records' stream.
    subjects: BTreeSet<String>,
    /// Of the streams that were asked.
    firsts: BTreeMap<String, Option<First>>,
    /// Streams of which a person was told.
    pub(super) told: BTreeSet<String>,
}

/// What the headers of a stream's first message tell.
#[derive(Debug)]
pub(super) struct First {
    pub(super) replay: Option<String>,
    pub(super) position: Option<String>,
}

impl Survey {
    /// Looks.
    ///
    /// # Errors
    /// NATS refuses, or does not answer.
    pub(super) async fn of(nats: &Admin) -> anyhow::Result<Self> {
        let jetstream = nats.jetstream();
        let streams = async { Ok(jetstream.streams().try_collect().await?) };
        let streams: Vec<Info> = nats.allowed(streams).await?;
        let records = LaneClient::new(nats, LANE_RECORD_STREAM, "-")?;
        let subjects = match records.subjects(LANE_RECORD_SUBJECTS).await {
            Err(LaneError::NoStream(_)) => Vec::new(),
            subjects => subjects?,
        };
        Ok(Survey {
            streams,
            subjects: subjects.into_iter().collect(),
            firsts: BTreeMap::new(),
            told: BTreeSet::new(),
        })
    }

    /// Looks at what there is now.
    ///
    /// # Errors
    /// As [`Survey::of`].
    pub(super) async fn look_again(&mut self, nats: &Admin) -> anyhow::Result<()> {
        let told = std::mem::take(&mut self.told);
        *self = Survey {
            told,
            ..Survey::of(nats).await?
        };
        Ok(())
    }

    /// Whether the slot's lane lives in stream `name`, or has lived there.
    pub(super) fn has_record(&self, name: &str, slot: &str) -> bool {
        self.subjects.contains(&lane_record_subject(name, slot))
    }

    /// Whether a command has published to stream `name` for the slot.
    pub(super) fn has_lease(&self, name: &str, slot: &str) -> bool {
        self.subjects.contains(&lane_lease_subject(name, slot))
    }

    /// The streams, also those that are gone, to which commands have published for the slot.
    pub(super) fn with_leases(&self, slot: &str) -> impl Iterator<Item = &str> {
        let streams = self.subjects.iter().filter_map(|it| it.split('.').nth(2));
        streams.filter(move |stream| self.has_lease(stream, slot))
    }

    /// Whether any lane lives in stream `name`, or has lived there.
    pub(super) fn has_lane(&self, name: &str) -> bool {
        let lanes = lane_record_subject(name, "");
        let of_stream = self.subjects.iter();
        let mut slots = of_stream.filter_map(|subject| subject.strip_prefix(&lanes));
        slots.any(|slot| !slot.contains('.'))
    }

    /// What the first message of stream `name` tells; none where it has none, or [`Survey::ask_firsts`] did not ask it.
    pub(super) fn first(&self, name: &str) -> Option<&First> {
        self.firsts.get(name)?.as_ref()
    }

    /// Asks those of the streams that were not asked for their first message.
    ///
    /// # Errors
    /// NATS refuses, or does not answer.
    pub(super) async fn ask_firsts(
        &mut self,
        nats: &Admin,
        names: Vec<String>,
    ) -> anyhow::Result<()> {
        let names = names
            .into_iter()
            .filter(|name| !self.firsts.contains_key(name));
        let asked = names.map(|name| first(nats, name));
        let found = stream::iter(asked).buffer_unordered(AT_ONCE);
        let found: Vec<_> = found.try_collect().await?;
        self.firsts.extend(found);
        Ok(())
    }
}

async fn first(nats: &Admin, name: String) -> anyhow::Result<(String, Option<First>)> {
    let stream = LaneClient::new(nats, &name, "-")?;
    let lookup = Lookup::Next {
        from: 1,
        filter: ">",
    };
    let found = match stream.message(lookup).await {
        // It was deleted meanwhile.
        Err(LaneError::NoStream(_)) => None,
        found => found?,
    };
    let first = found.map(|found| {
        let header = |name| found.header_text(name).map(str::to_owned);
        First {
            replay: header(REPLAY_HEADER),
            position: header(POSITION_HEADER),
        }
    });
    Ok((name, first))
}
