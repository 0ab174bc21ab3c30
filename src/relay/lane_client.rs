//! The lane as the commands reach it: the requests of the relay over the administrative connection.
//!
//! In: a client, stream and slot; [`Request`]s. Out: [`Answer`]s. Guarantees: a record is written only behind the one that
//! was read, so whoever came in between is not overwritten; what is published behind exactly the end that
//! [`LaneClient::end`] has found may tell the same place, since the lane cannot have moved between.

use crate::nats::admin::{Admin, AdminRequestError};
use crate::nats::api::subjects::Subjects;
use crate::nats::api::{AnswerError, ApiRequest, StoredMessage, StreamInfo, StreamNameError};
use crate::nats::denial::Denial;
use crate::nats::stream::{self, LANE_RECORD_STREAM, lane_record_subject};
use crate::pipeline::dead_letter::remembered::Remembered;
use crate::pipeline::end_search::{EndSearch, FoundEnd, Lookup, none_behind_header};
use crate::pipeline::fault::{Fault, Halt};
use crate::pipeline::lane_end::LaneEnd;
use crate::pipeline::opening::{Known, Reach};
use crate::pipeline::record::{LaneRecord, RecordOrNote};
use crate::pipeline::request::{Request, StoredRecord, StreamView};
use crate::relay::lane_store::{Answer, Expects, LaneStore, Outgoing, StoreError};
use crate::relay::settings::NatsSettings;
use async_nats::HeaderMap;

/// Why the lane's store did not answer.
#[derive(Debug, thiserror::Error)]
pub enum LaneError {
    /// There is no such stream.
    #[error("NATS has no stream {0}: run `walrelay setup`")]
    NoStream(String),
    /// The user may not ask, or may not hear the answer.
    #[error(transparent)]
    Denied(Denial),
    /// JetStream is off, or the user may not use it.
    #[error(transparent)]
    NoJetStream(AdminRequestError),
    /// No answer.
    #[error("no answer from stream {stream}")]
    Request {
        /// The stream that was asked.
        stream: String,
        /// Why.
        source: AdminRequestError,
    },
    /// Somebody else has written the record since it was read.
    #[error(
        "another process has written the lane record in the meantime; check that no relay runs, and try again"
    )]
    Taken,
    /// The lease cannot be read.
    #[error("the lane's lease in stream {LANE_RECORD_STREAM} cannot be read: {0}")]
    Lease(String),
    /// The answer is an error or cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The stream's name is none.
    #[error(transparent)]
    Name(#[from] StreamNameError),
}

/// Where stream and lane end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamEnd {
    /// The stream's last sequence.
    pub last_sequence: u64,
    /// The lane's place as [`TAIL_HEADER`](crate::pipeline::position::TAIL_HEADER) has it, or how far back it is not.
    pub lane_end: String,
}

/// A lane over the administrative connection.
#[derive(Debug, Clone)]
pub struct LaneClient {
    client: Admin,
    store: LaneStore,
}

impl LaneClient {
    /// The lane of `slot` in `stream`.
    ///
    /// # Errors
    /// The stream's name is none.
    pub fn new(client: &Admin, stream: &str, slot: &str) -> Result<Self, LaneError> {
        Ok(LaneClient {
            client: client.clone(),
            store: LaneStore::new(client.api_prefix(), stream, slot)?,
        })
    }

    /// The slot.
    #[must_use]
    pub fn slot(&self) -> &str {
        self.store.slot()
    }

    /// The events' stream.
    #[must_use]
    pub fn stream_name(&self) -> &str {
        self.store.stream()
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// [`LaneError`].
    pub async fn ask(&self, request: &Request<'_>) -> Result<Answer, LaneError> {
        let stream = match request {
            Request::Record | Request::StoreRecord { .. } => LANE_RECORD_STREAM,
            _ => self.store.stream(),
        };
        self.send(self.store.outgoing(request), stream).await
    }

    async fn send(&self, outgoing: Outgoing, stream: &str) -> Result<Answer, LaneError> {
        let expects = outgoing.expects;
        let stores = matches!(expects, Expects::StoredRecord | Expects::StoredFence);
        let (subject, payload) = (outgoing.subject, outgoing.payload.into());
        let answered = match outgoing.headers {
            Some(block) => {
                let headers = header_map(&block);
                self.client
                    .request_with_headers(subject, headers, payload)
                    .await
            }
            None => self.client.request(subject, payload).await,
        };
        let answer = answered.map_err(|source| match source {
            // Nothing listens where a message is to be stored.
            AdminRequestError::NoResponders if stores => LaneError::NoStream(stream.to_owned()),
            source => unanswered(source, stream),
        })?;
        let read = self.store.read(expects, &answer.payload);
        read.map_err(|error| unread(error, stream))
    }

    /// The lane record, and where it is stored.
    ///
    /// # Errors
    /// [`LaneError`].
    pub async fn record(&self) -> Result<StoredRecord, LaneError> {
        match self.ask(&Request::Record).await? {
            Answer::Record(stored) => Ok(*stored),
            answer => unreachable!("{answer:?} to a request for the record"),
        }
    }

    /// Stores a record behind the one at `behind`; returns its sequence.
    ///
    /// # Errors
    /// [`LaneError`].
    pub async fn store_record(&self, record: LaneRecord, behind: u64) -> Result<u64, LaneError> {
        let request = Request::StoreRecord {
            record: Box::new(record),
            behind,
        };
        stored(self.ask(&request).await?)
    }

    /// The lane's lease as it is stored; none before the first.
    ///
    /// # Errors
    /// [`LaneError`].
    pub async fn lease(&self) -> Result<Option<StoredMessage>, LaneError> {
        let answer = self.send(self.store.lease(), LANE_RECORD_STREAM);
        Ok(found(answer.await?))
    }

    /// Stores the lane's lease behind the one at `behind`; returns its sequence.
    ///
    /// # Errors
    /// [`LaneError`]; [`LaneError::Taken`] where it is not the last one any more.
    pub async fn store_lease(&self, lease: Vec<u8>, behind: u64) -> Result<u64, LaneError> {
        let outgoing = self.store.store_lease(lease, behind);
        stored(self.send(outgoing, LANE_RECORD_STREAM).await?)
    }

    /// How far the lane's published rows are marked or deleted; none where nobody has begun.
    ///
    /// # Errors
    /// [`LaneError`].
    pub(crate) async fn settled(&self) -> Result<Option<StoredMessage>, LaneError> {
        let answer = self.send(self.store.settled(), LANE_RECORD_STREAM);
        Ok(found(answer.await?))
    }

    /// Stores that behind the one at `behind`; returns its sequence.
    ///
    /// # Errors
    /// [`LaneError`]; [`LaneError::Taken`] where it is not the last one any more.
    pub(crate) async fn store_settled(
        &self,
        place: Vec<u8>,
        behind: u64,
    ) -> Result<u64, LaneError> {
        let outgoing = self.store.store_settled(place, behind);
        stored(self.send(outgoing, LANE_RECORD_STREAM).await?)
    }

    /// The dead letters that were open when the relay last looked, and where that is stored; none before the first look.
    ///
    /// # Errors
    /// [`LaneError`].
    pub(crate) async fn letters(&self) -> Result<Option<(Remembered, u64)>, LaneError> {
        let message = match self.send(self.store.letters(), LANE_RECORD_STREAM).await {
            Err(LaneError::NoStream(_)) => None,
            answer => found(answer?),
        };
        Ok(message.map(|message| (Remembered::from_json(&message.data), message.seq)))
    }

    /// Stores that behind the one at `behind`; returns its sequence.
    ///
    /// # Errors
    /// [`LaneError`]; [`LaneError::Taken`] where it is not the last one any more.
    pub(crate) async fn store_letters(
        &self,
        letters: &Remembered,
        behind: u64,
    ) -> Result<u64, LaneError> {
        let outgoing = self.store.store_letters(letters, behind);
        stored(self.send(outgoing, LANE_RECORD_STREAM).await?)
    }

    /// Stores a fence for what is published outside of the lane, behind the one at `behind`; returns its sequence.
    ///
    /// # Errors
    /// [`LaneError`]; [`Fault::Sequence`] where it is not the last one any more.
    pub async fn store_bulk_fence(&self, behind: u64) -> Result<u64, LaneError> {
        let outgoing = self.store.store_bulk_fence(behind);
        stored(self.send(outgoing, self.store.stream()).await?)
    }

    /// The stream as it is.
    ///
    /// # Errors
    /// [`LaneError`].
    pub async fn stream(&self) -> Result<StreamInfo, LaneError> {
        match self.ask(&Request::Stream).await? {
            Answer::Stream(info, _) => Ok(*info),
            answer => unreachable!("{answer:?} to a request for the stream"),
        }
    }

    /// A message of the stream; none where there is none.
    ///
    /// # Errors
    /// [`LaneError`].
    pub async fn message(&self, lookup: Lookup<'_>) -> Result<Option<StoredMessage>, LaneError> {
        Ok(found(self.ask(&Request::Message(lookup)).await?))
    }

    /// The subjects of the stream's messages that match.
    ///
    /// # Errors
    /// [`LaneError`].
    pub(crate) async fn subjects(&self, filter: &str) -> Result<Vec<String>, LaneError> {
        let stream = self.store.stream();
        let mut subjects = Vec::new();
        loop {
            let ApiRequest { subject, payload } = self.store.subjects(filter, subjects.len());
            let answer = self.client.request(subject, payload.into()).await;
            let answer = answer.map_err(|source| unanswered(source, stream))?;
            let told = Subjects::parse(&answer.payload);
            let told = told.map_err(|error| unread(error.into(), stream))?;
            let is_last = told.names.is_empty();
            subjects.extend(told.names);
            if is_last || subjects.len() >= told.total {
                return Ok(subjects);
            }
        }
    }

    /// The last message of each subject that matches and is wanted, with its subject.
    ///
    /// One subject after the other, and not one message after the other: who writes anew all the time writes behind all others, and
    /// whoever reads more slowly than that would never come to the end.
    ///
    /// # Errors
    /// [`LaneError`].
    pub(super) async fn last_of_each(
        &self,
        filter: &str,
        is_wanted: impl Fn(&str) -> bool,
    ) -> Result<Vec<(String, StoredMessage)>, LaneError> {
        let mut found = Vec::new();
        for subject in self.subjects(filter).await? {
            if !is_wanted(&subject) {
                continue;
            }
            // It may be removed meanwhile.
            if let Some(message) = self.message(Lookup::Last(&subject)).await? {
                found.push((subject, message));
            }
        }
        Ok(found)
    }

    /// Up to where a relay that starts now publishes nothing more; or why it would halt.
    ///
    /// # Errors
    /// [`LaneError`].
    pub async fn reach(
        &self,
        settings: &NatsSettings,
    ) -> Result<Result<Option<LaneEnd>, Halt>, LaneError> {
        let view = self.stream_view(settings).await?;
        let reach = self.looked(settings, view, self.record().await?);
        Ok(reach.await?.end())
    }

    /// What a relay that starts now finds at the broker. Streams that are missing are taken for those that `setup` makes.
    ///
    /// # Errors
    /// [`LaneError`].
    #[cfg(feature = "cli")]
    pub(crate) async fn start<'a>(
        &'a self,
        settings: &NatsSettings,
    ) -> Result<Reach<'a>, LaneError> {
        let view = match self.stream_view(settings).await {
            Err(LaneError::NoStream(_)) => StreamView::new(String::new()),
            view => view?,
        };
        let stored = match self.record().await {
            Err(LaneError::NoStream(_)) => StoredRecord::default(),
            stored => stored?,
        };
        self.looked(settings, view, stored).await
    }

    async fn stream_view(&self, settings: &NatsSettings) -> Result<StreamView, LaneError> {
        let (info, mut view) = match self.ask(&Request::Stream).await? {
            Answer::Stream(info, view) => (info, view),
            answer => unreachable!("{answer:?} to a request for the stream"),
        };
        view.stored_as = stream::stored_as(&info.config, &settings.stream_settings(self.slot()));
        Ok(view)
    }

    /// The look of a start that knows nothing by itself.
    async fn looked<'a>(
        &'a self,
        settings: &NatsSettings,
        view: StreamView,
        stored: StoredRecord,
    ) -> Result<Reach<'a>, LaneError> {
        let known = Known {
            slot: self.store.slot(),
            stream: self.store.stream(),
            nats: settings.connection.servers_text(),
            template: settings.subject.clone(),
            shared: settings.shared,
            memory: None,
            from: None,
            no_share: None,
        };
        let mut reach = Reach::new(known, view, stored);
        while let Some(lookup) = reach.wanted() {
            let message = self.message(lookup).await?;
            reach.take(message.as_ref().map(StoredMessage::for_search));
        }
        Ok(reach)
    }

    /// The stream, and the lane's record.
    ///
    /// # Errors
    /// [`LaneError`].
    pub async fn stream_and_record(&self) -> Result<(StreamInfo, StoredRecord), LaneError> {
        tokio::try_join!(self.stream(), self.record())
    }

    /// Looks for the lane end of a stream of its own, as a relay does at its start.
    ///
    /// # Errors
    /// [`LaneError`].
    pub async fn end(&self) -> Result<StreamEnd, LaneError> {
        let (info, record) = self.stream_and_record().await?;
        Ok(StreamEnd {
            last_sequence: info.state.last_seq,
            lane_end: self.lane_end(&info, record.record.as_ref()).await?,
        })
    }

    /// As [`LaneClient::end`], in the stream as it was found: the lane's place as [`StreamEnd::lane_end`] has it.
    ///
    /// # Errors
    /// [`LaneError`].
    pub async fn lane_end(
        &self,
        info: &StreamInfo,
        record: Option<&LaneRecord>,
    ) -> Result<String, LaneError> {
        let slot = self.store.slot();
        let mut search = EndSearch::new(slot, info.state.last_seq, &info.created, record, None);
        let mut found = FoundEnd::Nothing;
        while let Some(lookup) = search.wanted() {
            let message = self.message(lookup).await?;
            if let Some(lane_end) = search.take(message.as_ref().map(StoredMessage::for_search)) {
                found = lane_end;
                break;
            }
        }
        Ok(match found {
            FoundEnd::Found(lane_end) => lane_end.tail(slot),
            _ => none_behind_header(slot, search.none_behind()),
        })
    }
}

/// The records of the lanes of this slot in whichever stream.
///
/// # Errors
/// [`LaneError`].
pub async fn lane_records(client: &Admin, slot: &str) -> Result<Vec<LaneRecord>, LaneError> {
    let records = LaneClient::new(client, LANE_RECORD_STREAM, slot)?;
    let filter = lane_record_subject("*", slot);
    let (mut from, mut found) = (1, Vec::new());
    loop {
        let lookup = Lookup::Next {
            from,
            filter: &filter,
        };
        let Some(message) = records.message(lookup).await? else {
            return Ok(found);
        };
        from = message.seq + 1;
        found.extend(record(&message)?);
    }
}

/// The records of all lanes whose slots are wanted; one that is not wanted may be unreadable.
///
/// # Errors
/// [`LaneError`].
pub(crate) async fn all_lane_records(
    client: &Admin,
    is_wanted: impl Fn(&str) -> bool,
) -> Result<Vec<LaneRecord>, LaneError> {
    let records = LaneClient::new(client, LANE_RECORD_STREAM, "*")?;
    let of_wanted = |subject: &str| subject.rsplit('.').next().is_some_and(&is_wanted);
    let subjects = lane_record_subject("*", "*");
    let mut found = Vec::new();
    for (_, message) in records.last_of_each(&subjects, of_wanted).await? {
        found.extend(record(&message)?);
    }
    Ok(found)
}

/// A note of a halt stands where there is no record.
fn record(message: &StoredMessage) -> Result<Option<LaneRecord>, StoreError> {
    Ok(match RecordOrNote::from_json(&message.data)? {
        RecordOrNote::Record(record) => Some(*record),
        RecordOrNote::Note(_) => None,
    })
}

fn unanswered(source: AdminRequestError, stream: &str) -> LaneError {
    match source {
        AdminRequestError::Denied(denial) => LaneError::Denied(denial),
        none @ AdminRequestError::NoJetStream { .. } => LaneError::NoJetStream(none),
        source => LaneError::Request {
            stream: stream.to_owned(),
            source,
        },
    }
}

fn unread(error: StoreError, stream: &str) -> LaneError {
    match error {
        StoreError::Answer(AnswerError::Api(api)) if api.is_stream_not_found() => {
            LaneError::NoStream(stream.to_owned())
        }
        StoreError::NotStored(Fault::RecordTaken(_)) => LaneError::Taken,
        error => error.into(),
    }
}

fn found(answer: Answer) -> Option<StoredMessage> {
    match answer {
        Answer::Message(message) => message,
        answer => unreachable!("{answer:?} to a request for a message"),
    }
}

fn stored(answer: Answer) -> Result<u64, LaneError> {
    match answer {
        Answer::Stored(sequence) => Ok(sequence),
        answer => unreachable!("{answer:?} to a message to be stored"),
    }
}

/// A header block of ours as async-nats has it.
fn header_map(block: &[u8]) -> HeaderMap {
    let text = std::str::from_utf8(block).expect("the lane store writes ASCII");
    let mut headers = HeaderMap::new();
    for (name, value) in text.lines().filter_map(|line| line.split_once(": ")) {
        headers.insert(name, value);
    }
    headers
}
