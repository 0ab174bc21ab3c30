//! The thread that exports.
//!
//! In: boards, and the spans that wait. Out: requests, a line for the first failure of a row and one for its end, counts. It is a
//! thread of its own, so that encoding and TLS take nothing of the relay's turn; the two signals do not wait for each other.

use super::Signal;
use super::client::{Client, NotExported};
use super::settings::OtlpSettings;
use super::{request, spans};
use crate::ops::metrics;
use crate::relay::board::Board;
use crate::relay::span_queue::{BatchSpan, SpanQueue};
use crate::relay::status::Status;
use crate::relay::{Shutdown, ShutdownHandle};
use crate::tls::TlsError;
use bytes::Bytes;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceResponse;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message;
use std::time::{Duration, SystemTime};
use tokio::sync::oneshot;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

/// How long the end of the process waits for what is still to be exported.
const FLUSH_LIMIT: Duration = Duration::from_secs(5);
/// Spans that could not be exported for so long are given up.
const GIVE_UP: Duration = Duration::from_secs(60);
/// Before the second attempt; twice as long before each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// Exports until it is [flushed](Exporter::flush).
#[derive(Debug)]
pub struct Exporter {
    stop: ShutdownHandle,
    ended: oneshot::Receiver<()>,
}

impl Exporter {
    /// Starts the thread, and has the boards put their spans where it takes them.
    ///
    /// # Errors
    /// A file of certificates that cannot be used, or no thread.
    pub fn start(settings: OtlpSettings, boards: Vec<Board>) -> anyhow::Result<Self> {
        let queue = SpanQueue::new(settings.span_limits());
        let client = |target: &Option<_>| -> Result<Option<Client>, TlsError> {
            target.clone().map(Client::new).transpose()
        };
        let metrics = client(&settings.metrics)?;
        let traces = client(&settings.traces)?;
        for (what, client) in [("metrics", &metrics), ("spans of batches", &traces)] {
            if let Some(client) = client {
                tracing::info!("{what} go to {} by OTLP", client.shown());
            }
        }
        for board in &boards {
            board.export(queue.clone());
        }
        let (stop, shutdown) = Shutdown::new();
        let (done, ended) = oneshot::channel();
        let work = async move {
            let of_metrics = async {
                if let Some(client) = metrics {
                    let exports = Exports::new(Signal::Metrics, client, &settings, &queue);
                    export_metrics(exports, &boards, shutdown.clone()).await;
                }
            };
            let of_traces = async {
                if let Some(client) = traces {
                    let exports = Exports::new(Signal::Traces, client, &settings, &queue);
                    export_spans(exports, shutdown.clone()).await;
                }
            };
            tokio::join!(of_metrics, of_traces);
        };
        std::thread::Builder::new()
            .name("otlp".to_owned())
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build();
                match runtime {
                    Ok(runtime) => runtime.block_on(work),
                    Err(error) => tracing::error!("OTLP: nothing is exported: {error}"),
                }
                // Nobody waits any more where this is not taken.
                let _ = done.send(());
            })?;
        Ok(Exporter { stop, ended })
    }

    /// Exports what is still there, as far as a few seconds go.
    pub async fn flush(self) {
        self.stop.stop();
        if timeout(FLUSH_LIMIT, self.ended).await.is_err() {
            tracing::warn!(
                "OTLP: what was still to be exported was not taken within {FLUSH_LIMIT:?}"
            );
        }
    }
}

/// One signal's exports, and what is told of them.
struct Exports<'a> {
    signal: Signal,
    client: Client,
    settings: &'a OtlpSettings,
    queue: &'a SpanQueue,
    /// The last attempt failed, and somebody was told.
    fails: bool,
}

impl<'a> Exports<'a> {
    fn new(
        signal: Signal,
        client: Client,
        settings: &'a OtlpSettings,
        queue: &'a SpanQueue,
    ) -> Self {
        Exports {
            signal,
            client,
            settings,
            queue,
            fails: false,
        }
    }

    /// One attempt; it is told of where it is the first that fails, or the first that does not.
    async fn attempt<A: Message + Default>(&mut self, message: Bytes) -> Result<A, NotExported> {
        let posted = self.client.post(message).await;
        let answer = posted.and_then(|answer| {
            A::decode(answer)
                .map_err(|_| NotExported::for_good("the answer is none of OTLP".to_owned()))
        });
        let what = match self.signal {
            Signal::Metrics => "metrics",
            Signal::Traces => "traces",
        };
        match &answer {
            Ok(_) if self.fails => {
                tracing::info!("OTLP: {what} are exported again");
                self.fails = false;
            }
            Ok(_) => {}
            Err(error) => {
                self.queue.failed(what);
                if !self.fails {
                    tracing::warn!(
                        "OTLP: {what} cannot be exported to {}: {error}; told once until it works again, the relay goes on",
                        self.client.shown()
                    );
                }
                self.fails = true;
            }
        }
        answer
    }

    /// The collector took a part only.
    fn refused(&self, count: i64, what: &str, why: &str) -> u64 {
        let count = u64::try_from(count).unwrap_or(0);
        if count > 0 || !why.is_empty() {
            let why: String = why
                .chars()
                .filter(|it| !it.is_control())
                .take(200)
                .collect();
            tracing::warn!("OTLP: the collector refuses {count} {what}: {why}");
        }
        count
    }
}

/// All that is counted goes with the next one where one attempt fails.
async fn export_metrics(mut exports: Exports<'_>, boards: &[Board], mut shutdown: Shutdown) {
    let mut ticks = interval(exports.settings.metrics_interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut refusals_told = false;
    loop {
        let is_last = tokio::select! {
            _ = ticks.tick() => false,
            () = shutdown.wait() => true,
        };
        let statuses: Vec<Status> = boards.iter().map(Board::status).collect();
        let now = SystemTime::now();
        let started = statuses.first().map_or(now, |status| status.started.into());
        let families = metrics::collect(&statuses);
        let message = request::metrics(&exports.settings.resource, families, started, now);
        let sent = exports.attempt::<ExportMetricsServiceResponse>(message.encode_to_vec().into());
        if let Ok(answer) = sent.await
            && let Some(partial) = answer.partial_success
            && !std::mem::replace(&mut refusals_told, true)
        {
            exports.refused(
                partial.rejected_data_points,
                "points",
                &partial.error_message,
            );
        }
        if is_last {
            return;
        }
    }
}

async fn export_spans(mut exports: Exports<'_>, mut shutdown: Shutdown) {
    loop {
        let is_last = tokio::select! {
            () = exports.queue.has_batch() => false,
            () = sleep(exports.settings.spans_delay) => false,
            () = shutdown.wait() => true,
        };
        loop {
            let batches = exports.queue.take();
            if batches.is_empty() {
                break;
            }
            deliver(&mut exports, batches, &mut shutdown).await;
        }
        if is_last {
            return;
        }
    }
}

/// Tries until the spans are taken, refused, or too old; once the process ends, one attempt more.
async fn deliver(exports: &mut Exports<'_>, batches: Vec<BatchSpan>, shutdown: &mut Shutdown) {
    let count = batches.len() as u64;
    let message = spans::request(&exports.settings.resource, batches).encode_to_vec();
    let message = Bytes::from(message);
    let give_up_at = Instant::now() + GIVE_UP;
    let mut pause = FIRST_PAUSE;
    loop {
        let is_last = shutdown.is_sent();
        let error = match exports
            .attempt::<ExportTraceServiceResponse>(message.clone())
            .await
        {
            Ok(answer) => {
                let partial = answer.partial_success.unwrap_or_default();
                let refused = exports
                    .refused(partial.rejected_spans, "spans", &partial.error_message)
                    .min(count);
                exports.queue.dropped("refused", refused);
                exports.queue.exported(count - refused);
                return;
            }
            Err(error) => error,
        };
        let Some(after) = error.again else {
            exports.queue.dropped("refused", count);
            return;
        };
        let wait = after.unwrap_or(pause);
        if is_last || Instant::now() + wait > give_up_at {
            exports.queue.dropped("unreachable", count);
            return;
        }
        tokio::select! {
            () = sleep(wait) => {}
            () = shutdown.wait() => {}
        }
        pause *= 2;
    }
}
