//! A consumer of the stream that knows when each event was sent.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::pull::OrderedConfig;
use futures_util::StreamExt as _;
use hdrhistogram::Histogram;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::nats::admin::Admin;
use crate::relay::settings::NatsSettings;

/// The last event of each transaction that is under way, and when its INSERT was due.
#[derive(Clone, Default)]
pub(super) struct Sent(Arc<Mutex<HashMap<Uuid, Instant>>>);

impl Sent {
    pub(super) fn tell(&self, id: Uuid, at: Instant) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(id, at);
    }

    fn take(&self, id: Uuid) -> Option<Instant> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&id)
    }
}

/// Reads the stream from its end on.
pub(super) struct Watch {
    arrivals: UnboundedReceiver<(Uuid, Instant)>,
    reading: JoinHandle<Result<(), anyhow::Error>>,
    sent: Sent,
    latencies: Histogram<u64>,
}

impl Watch {
    pub(super) async fn start(settings: &NatsSettings) -> Result<Watch, anyhow::Error> {
        let client = Admin::connect(&settings.connection).await?;
        let stream = client
            .jetstream()
            .get_stream(&settings.stream)
            .await
            .with_context(|| format!("cannot read the stream {}", settings.stream))?;
        let config = OrderedConfig {
            deliver_policy: DeliverPolicy::New,
            ..OrderedConfig::default()
        };
        let mut messages = stream.create_consumer(config).await?.messages().await?;
        let (sender, arrivals) = unbounded_channel();
        let reading = tokio::spawn(async move {
            while let Some(message) = messages.next().await {
                let message = message?;
                let at = Instant::now();
                // {"id":"<36 characters>; anything else in the stream is not an event.
                let id = message
                    .payload
                    .get(7..43)
                    .and_then(|id| Uuid::try_parse_ascii(id).ok());
                if let Some(id) = id
                    && sender.send((id, at)).is_err()
                {
                    break;
                }
            }
            Ok(())
        });
        Ok(Watch {
            arrivals,
            reading,
            sent: Sent::default(),
            latencies: Histogram::new(3)?,
        })
    }

    /// Where the load tells what it sends.
    pub(super) fn sent(&self) -> Sent {
        self.sent.clone()
    }

    async fn next(&mut self, silence_max: Duration) -> Result<(Uuid, Instant), anyhow::Error> {
        let next = tokio::time::timeout(silence_max, self.arrivals.recv()).await;
        next.with_context(|| format!("nothing arrived for {silence_max:?}"))?
            .context("the consumer ended")
    }

    /// Waits for one event.
    pub(super) async fn arrives(
        &mut self,
        id: &Uuid,
        silence_max: Duration,
    ) -> Result<(), anyhow::Error> {
        while self.next(silence_max).await?.0 != *id {}
        Ok(())
    }

    /// Waits for so many transactions of the load; others' events in the same stream are passed over.
    pub(super) async fn catches_up(
        &mut self,
        transactions: u64,
        silence_max: Duration,
    ) -> Result<(), anyhow::Error> {
        let mut arrived = 0;
        while arrived < transactions {
            let (id, at) = self
                .next(silence_max)
                .await
                .with_context(|| format!("{arrived} of {transactions} transactions arrived"))?;
            if let Some(due) = self.sent.take(id) {
                arrived += 1;
                let micros = u64::try_from(at.saturating_duration_since(due).as_micros())?;
                self.latencies.record(micros.max(1))?;
            }
        }
        Ok(())
    }

    /// Of each transaction's last event, in µs.
    pub(super) fn latencies(self) -> Result<Histogram<u64>, anyhow::Error> {
        self.reading.abort();
        Ok(self.latencies.clone())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.reading.abort();
    }
}
