//! Stored messages as the pipeline asks for them and takes them: the JetStream API knows nothing of lanes.

use std::time::Duration;

use crate::nats::api::{ApiRequest, CallError, StoredMessage, StreamApi};
use crate::nats::connection::LaneConnection;
use crate::pipeline::confirm::StoredPosition;
use crate::pipeline::shared_tail::FENCE_PREFIX;
use crate::pipeline::tail::Lookup;
use crate::pipeline::{position, tail};

impl StreamApi {
    /// What a search for the lane's last message asks for; answer: [`StoredMessage::parse`].
    #[must_use]
    pub fn lookup_request(&self, lookup: Lookup<'_>) -> ApiRequest {
        match lookup {
            Lookup::Message(sequence) => self.message_get_request(sequence),
            Lookup::Last(subject) => self.last_by_subject_request(subject),
            Lookup::Next { from, filter } => self.next_by_subject_request(from, filter),
        }
    }

    /// A message; `None` where there is none. Before streaming only.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn message(
        &self,
        connection: &mut LaneConnection,
        lookup: Lookup<'_>,
        after: Duration,
    ) -> Result<Option<StoredMessage>, CallError> {
        let request = self.lookup_request(lookup);
        let answer = connection
            .request(&request.subject, None, &request.payload, after)
            .await?;
        Ok(StoredMessage::parse(&answer.payload)?)
    }
}

impl StoredMessage {
    /// As the search for the lane's last message takes it.
    #[must_use]
    pub fn for_search(&self) -> tail::StoredMessage<'_> {
        tail::StoredMessage {
            sequence: self.seq,
            position: self.header_text(position::POSITION_HEADER),
            tail: self.header_text(position::TAIL_HEADER),
            expected_sequence: self.header_text(position::EXPECTED_HEADER),
            is_fence: self.subject.starts_with(FENCE_PREFIX),
            in_batch: self.header(position::BATCH_HEADER).is_some(),
            body: &self.data,
        }
    }

    /// As the probe before a confirmation takes it.
    #[must_use]
    pub fn for_probe(&self) -> StoredPosition {
        let header = self.header_text(position::POSITION_HEADER).or_else(|| {
            // The lane's message in a shared stream tells the position of the batch that it ends.
            let (told, _) = tail::split_tail(self.header_text(position::TAIL_HEADER)?)?;
            Some(told)
        });
        let kind = self.header_text(position::KIND_HEADER);
        StoredPosition {
            sequence: self.seq,
            header: header.map(str::to_owned),
            is_first_publication: kind != Some(position::KIND_REPLAY),
            is_in_place: self.for_search().is_in_place(),
        }
    }
}
